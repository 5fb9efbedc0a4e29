//! Which providers there are and how each is opened.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Capabilities, Provider, ProviderError};

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
    /// The settings of each provider as the manifest has them, without those that are secrets.
    pub settings: BTreeMap<String, BTreeMap<String, String>>,
}

impl ProviderContext {
    /// One setting of a provider.
    pub fn setting(&self, provider: &str, name: &str) -> Option<&str> {
        self.settings.get(provider)?.get(name).map(String::as_str)
    }
}

/// The sheet of every provider in this build, by name.
pub fn builtin_capabilities() -> &'static [&'static Capabilities] {
    #[cfg(target_os = "linux")]
    static SHEETS: &[&Capabilities] = &[&super::local::SHEET, &super::docker::SHEET, &super::sim::SHEET];
    #[cfg(not(target_os = "linux"))]
    static SHEETS: &[&Capabilities] = &[&super::docker::SHEET, &super::sim::SHEET];
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
            match name {
                #[cfg(target_os = "linux")]
                "local" => registry.insert(name, Arc::new(super::local::Local::new(context))),
                #[cfg(not(target_os = "linux"))]
                "local" => {
                    let message =
                        "provider `local` is the Linux engine; on this system choose another provider";
                    return Err(named(ProviderError::Unsupported { message: message.to_owned() }));
                }
                "docker" => {
                    registry.insert(name, Arc::new(super::docker::Docker::open(context).map_err(named)?))
                }
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
