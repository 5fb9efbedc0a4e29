//! Which providers there are and how each is opened.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Capabilities, Provider, ProviderError};
use crate::secret::SecretValue;

/// What opening a provider needs to know about this machine.
#[derive(Clone)]
pub struct ProviderContext {
    /// `$XDG_DATA_HOME/pocketenv`.
    pub data_dir: PathBuf,
    /// `$XDG_RUNTIME_DIR/pocketenv`.
    pub runtime_dir: PathBuf,
    /// This program, to be started again as a helper of itself.
    pub executable: PathBuf,
    /// The process environment: vendors' own names for addresses and credentials.
    pub vars: BTreeMap<String, String>,
    /// The settings of each provider, from the manifest or the vendor's own variables, without those that are secrets.
    pub settings: BTreeMap<String, BTreeMap<String, String>>,
    /// Those that are secrets, also from the vault.
    pub credentials: BTreeMap<String, BTreeMap<String, SecretValue>>,
}

impl ProviderContext {
    /// One setting of a provider.
    pub fn setting(&self, provider: &str, name: &str) -> Option<&str> {
        self.settings.get(provider)?.get(name).map(String::as_str)
    }

    /// One credential of a provider.
    pub fn credential(&self, provider: &str, name: &str) -> Option<&SecretValue> {
        self.credentials.get(provider)?.get(name)
    }

    /// Fails, saying how to set it, if a setting is missing that nothing works without.
    fn check(&self, sheet: &Capabilities) -> Result<(), ProviderError> {
        let provider = sheet.provider;
        for setting in sheet.settings.iter().filter(|setting| setting.required) {
            let name = setting.name;
            let set = match setting.secret {
                true => self.credential(provider, name).is_some_and(|value| !value.expose().is_empty()),
                false => self.setting(provider, name).is_some_and(|value| !value.is_empty()),
            };
            if set {
                continue;
            }
            let variable = setting.variable.map_or_else(String::new, |v| format!("set {v}, or "));
            let summary = setting.summary;
            return Err(match setting.secret {
                true => ProviderError::Unauthorised {
                    message: format!(
                        "there is no `{name}` ({summary}): {variable}run `pocketenv provider login {provider}`, or name a secret of \
                         the manifest: `providers: {{ {provider}: {{ {name}: {{ secret: NAME }} }} }}`"
                    ),
                },
                false => ProviderError::Invalid {
                    message: format!(
                        "there is no `{name}` ({summary}): {variable}write `providers: {{ {provider}: {{ {name}: … }} }}` into the manifest"
                    ),
                },
            });
        }
        Ok(())
    }
}

/// The sheet of every provider in this build, by name.
pub fn builtin_capabilities() -> &'static [&'static Capabilities] {
    #[cfg(target_os = "linux")]
    static SHEETS: &[&Capabilities] = &[
        &super::local::SHEET,
        &super::docker::SHEET,
        &super::kubernetes::SHEET,
        &super::e2b::SHEET,
        &super::daytona::SHEET,
        &super::sim::SHEET,
    ];
    #[cfg(not(target_os = "linux"))]
    static SHEETS: &[&Capabilities] = &[
        &super::docker::SHEET,
        &super::kubernetes::SHEET,
        &super::e2b::SHEET,
        &super::daytona::SHEET,
        &super::sim::SHEET,
    ];
    SHEETS
}

/// The opened providers of one run.
#[derive(Clone, Default)]
pub struct Registry {
    providers: BTreeMap<String, Arc<dyn Provider>>,
}

impl Registry {
    /// Opens the named providers. A name that no build knows is an error; the manifest's checks find it first, at its line. An error comes with the
    /// provider's name.
    pub async fn open<'a>(
        names: impl IntoIterator<Item = &'a str>,
        context: &ProviderContext,
    ) -> Result<Self, (String, ProviderError)> {
        let mut registry = Self::default();
        for name in names {
            let named = |error| (name.to_owned(), error);
            if let Some(sheet) = builtin_capabilities().iter().find(|sheet| sheet.provider == name) {
                context.check(sheet).map_err(named)?;
            }
            match name {
                #[cfg(target_os = "linux")]
                "local" => registry.insert(name, Arc::new(super::local::Local::new(context))),
                #[cfg(not(target_os = "linux"))]
                "local" => {
                    let message =
                        "provider `local` is the Linux engine; on this system choose another provider";
                    return Err(named(ProviderError::Unsupported { message: message.to_owned() }));
                }
                "daytona" => {
                    registry.insert(name, Arc::new(super::daytona::Daytona::open(context).map_err(named)?))
                }
                "docker" => {
                    registry.insert(name, Arc::new(super::docker::Docker::open(context).map_err(named)?))
                }
                "e2b" => registry.insert(name, Arc::new(super::e2b::E2b::open(context).map_err(named)?)),
                "kubernetes" => registry.insert(name, Arc::new(super::kubernetes::Kubernetes::new(context))),
                "sim" => {
                    registry.insert(name, Arc::new(super::sim::Sim::open(context).await.map_err(named)?))
                }
                _ => {
                    let message = format!("there is no provider `{name}`");
                    return Err(named(ProviderError::Unsupported { message }));
                }
            }
        }
        Ok(registry)
    }

    /// Adds or replaces a provider.
    pub fn insert(&mut self, name: impl Into<String>, provider: Arc<dyn Provider>) {
        self.providers.insert(name.into(), provider);
    }

    /// An opened provider.
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Provider>> {
        self.providers.get(name)
    }

    /// All opened providers in order of name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<dyn Provider>)> {
        self.providers.iter().map(|(name, provider)| (name.as_str(), provider))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::ProviderSetting;
    use super::*;

    #[test]
    fn what_is_missing_is_told_with_how_to_set_it_and_without_any_value() {
        const SETTINGS: &[ProviderSetting] = &[
            ProviderSetting { name: "url", variable: None, secret: false, required: false, summary: "" },
            ProviderSetting {
                name: "api_key",
                variable: Some("CLOUD_API_KEY"),
                secret: true,
                required: true,
                summary: "a key of the account",
            },
        ];
        let sheet = Capabilities { provider: "cloud", settings: SETTINGS, ..Capabilities::NOTHING };
        let mut context = ProviderContext {
            data_dir: PathBuf::new(),
            runtime_dir: PathBuf::new(),
            executable: PathBuf::new(),
            vars: BTreeMap::new(),
            settings: BTreeMap::new(),
            credentials: BTreeMap::new(),
        };
        let error = context.check(&sheet).unwrap_err();
        assert!(matches!(error, ProviderError::Unauthorised { .. }), "{error:?}");
        for told in ["CLOUD_API_KEY", "pocketenv provider login cloud", "api_key: { secret: NAME }"] {
            assert!(error.to_string().contains(told), "{error}");
        }
        let given = |value: &str| BTreeMap::from([("api_key".to_owned(), SecretValue::new(value))]);
        context.credentials.insert("cloud".to_owned(), given(""));
        assert!(
            context.check(&sheet).is_err(),
            "CI systems give an empty value for a secret that is not set"
        );
        context.credentials.insert("cloud".to_owned(), given("hunter2"));
        context.check(&sheet).unwrap();
    }
}
