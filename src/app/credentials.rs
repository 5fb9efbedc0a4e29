//! What a provider is set up with: settings and credentials, from the manifest, the environment or the vault, in this order.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::vault::credential_name;
use super::{App, Error};
use crate::manifest::{Manifest, Setting};
use crate::provider::{
    Capabilities, Provider, ProviderContext, ProviderSetting, Registry, builtin_capabilities,
};
use crate::secret::{self, SecretSource, SecretValue, Vault};

/// Where a setting comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SettingSource {
    /// The manifest.
    Manifest,
    /// The vendor's own environment variable.
    Environment,
    /// `provider login`.
    Vault,
}

/// A setting of a provider, and where it comes from; never its value.
#[derive(Clone, Debug, Serialize)]
pub struct Configured {
    /// The setting.
    #[serde(flatten)]
    pub setting: ProviderSetting,
    /// Where it comes from; `None` if it is not set.
    pub from: Option<SettingSource>,
}

impl App {
    /// The settings of a provider and where each comes from. A secret is looked for, not opened.
    pub async fn setup(
        &self,
        sheet: &Capabilities,
        manifest: Option<&Manifest>,
    ) -> Result<Vec<Configured>, Error> {
        let sealed = match sheet.settings.iter().any(|setting| setting.secret) {
            true if self.environment().directories.store().exists() => self.store().await?.sealed().await?,
            _ => BTreeMap::new(),
        };
        let written = manifest.and_then(|manifest| manifest.provider_settings().get(sheet.provider));
        let from = |setting: &ProviderSetting| {
            if written.is_some_and(|settings| settings.contains_key(setting.name)) {
                Some(SettingSource::Manifest)
            } else if self.variable(setting).is_some() {
                Some(SettingSource::Environment)
            } else if setting.secret && sealed.contains_key(&credential_name(sheet.provider, setting.name)) {
                Some(SettingSource::Vault)
            } else {
                None
            }
        };
        Ok(sheet.settings.iter().map(|s| Configured { setting: *s, from: from(s) }).collect())
    }

    fn variable(&self, setting: &ProviderSetting) -> Option<&str> {
        let value = self.environment().vars.get(setting.variable?)?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }

    /// What opening these providers needs: their settings, and the values of their credentials.
    pub(super) async fn provider_context(
        &self,
        sheets: &[&Capabilities],
        manifest: Option<&Manifest>,
    ) -> Result<ProviderContext, Error> {
        let env = self.environment();
        let written = |provider: &str| manifest.and_then(|m| m.provider_settings().get(provider));
        // All secrets that settings name are resolved together, so that all problems are told at once.
        let mut sources: BTreeMap<String, SecretSource> = BTreeMap::new();
        for setting in sheets.iter().filter_map(|sheet| written(sheet.provider)).flat_map(BTreeMap::values) {
            if let Setting::Secret(secret) = setting
                && let Some(source) = manifest.and_then(|manifest| manifest.secrets().get(&secret.secret))
            {
                sources.insert(secret.secret.clone(), source.clone());
            }
        }
        let vault = self.vault_for(&sources).await?;
        let named = secret::resolve_all(&sources, self.visible(), &vault).await?.values;
        let wants_vault = |sheet: &&Capabilities| {
            sheet.settings.iter().any(|setting| {
                let written = written(sheet.provider).is_some_and(|s| s.contains_key(setting.name));
                setting.secret && !written && self.variable(setting).is_none()
            })
        };
        let sealed = if sheets.iter().any(wants_vault) { self.vault().await? } else { Vault::default() };
        let mut settings = BTreeMap::new();
        let mut credentials: BTreeMap<String, BTreeMap<String, SecretValue>> = BTreeMap::new();
        for sheet in sheets {
            let mut plain = BTreeMap::new();
            let secrets = credentials.entry(sheet.provider.to_owned()).or_default();
            for (name, setting) in written(sheet.provider).into_iter().flatten() {
                match setting {
                    Setting::Value(text) => {
                        plain.insert(name.clone(), text.0.clone());
                    }
                    Setting::List(texts) => {
                        let texts: Vec<&str> = texts.iter().map(|text| text.0.as_str()).collect();
                        plain.insert(name.clone(), texts.join(","));
                    }
                    Setting::Secret(secret) => {
                        secrets.extend(named.get(&secret.secret).map(|value| (name.clone(), value.clone())));
                    }
                }
            }
            for setting in sheet.settings {
                let (name, sealed_as) = (setting.name, credential_name(sheet.provider, setting.name));
                let known = plain.contains_key(name) || secrets.contains_key(name);
                match self.variable(setting) {
                    _ if known => {}
                    Some(value) if setting.secret => {
                        secrets.insert(name.to_owned(), SecretValue::new(value));
                    }
                    Some(value) => {
                        plain.insert(name.to_owned(), value.to_owned());
                    }
                    None if setting.secret && sealed.holds(&sealed_as) => {
                        secrets.insert(name.to_owned(), sealed.open(&sealed_as)?);
                    }
                    None => {}
                }
            }
            settings.insert(sheet.provider.to_owned(), plain);
        }
        Ok(ProviderContext {
            data_dir: env.directories.data.clone(),
            runtime_dir: env.directories.runtime.clone(),
            executable: env.executable.clone(),
            vars: env.vars.clone(),
            settings,
            credentials,
        })
    }

    /// Opens one provider as a manifest sets it up, if there is one.
    pub async fn open_provider(
        &self,
        sheet: &Capabilities,
        manifest: Option<&Manifest>,
    ) -> Result<Arc<dyn Provider>, Error> {
        let context = self.provider_context(&[sheet], manifest).await?;
        let failed = |(provider, source)| Error::Provider { provider, source };
        let registry = Registry::open([sheet.provider], &context).await.map_err(failed)?;
        let missing = || Error::Provider {
            provider: sheet.provider.to_owned(),
            source: crate::provider::ProviderError::Unsupported {
                message: "this build does not have it".to_owned(),
            },
        };
        registry.get(sheet.provider).cloned().ok_or_else(missing)
    }

    /// Seals a credential, so that the provider is used without a variable.
    pub async fn login(
        &self,
        sheet: &Capabilities,
        setting: &ProviderSetting,
        value: &SecretValue,
    ) -> Result<(), Error> {
        self.seal_credential(sheet.provider, setting.name, value).await
    }

    /// Forgets what `login` has sealed; the names of the settings.
    pub async fn logout(&self, sheet: &Capabilities) -> Result<Vec<&'static str>, Error> {
        let mut forgotten = Vec::new();
        for setting in sheet.settings.iter().filter(|setting| setting.secret) {
            if self.forget_credential(sheet.provider, setting.name).await? {
                forgotten.push(setting.name);
            }
        }
        Ok(forgotten)
    }
}

/// The sheets of the named providers that this build has.
pub(super) fn sheets<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<&'static Capabilities> {
    let known = builtin_capabilities();
    names.into_iter().filter_map(|name| known.iter().copied().find(|sheet| sheet.provider == name)).collect()
}
