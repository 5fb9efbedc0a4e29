//! Which providers there are and how each is opened.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Capabilities, Provider, ProviderError};

/// What opening a provider needs to know about this machine.
#[derive(Clone, Debug)]
pub struct ProviderContext {
    /// `$XDG_DATA_HOME/pocketenv`.
    pub data_dir: PathBuf,
    /// `$XDG_RUNTIME_DIR/pocketenv`.
    pub runtime_dir: PathBuf,
    /// This program, to be started again as a helper of itself.
    pub executable: PathBuf,
}

/// The sheet of every provider in this build, by name.
pub fn builtin_capabilities() -> &'static [&'static Capabilities] {
    #[cfg(target_os = "linux")]
    static SHEETS: &[&Capabilities] = &[&super::local::SHEET];
    #[cfg(not(target_os = "linux"))]
    static SHEETS: &[&Capabilities] = &[];
    SHEETS
}

/// The opened providers of one run.
#[derive(Clone, Default)]
pub struct Registry {
    providers: BTreeMap<String, Arc<dyn Provider>>,
}

impl Registry {
    /// Opens the named providers. A name that no build knows is an error; the manifest's checks find it first, at its line.
    pub fn open<'a>(
        names: impl IntoIterator<Item = &'a str>,
        context: &ProviderContext,
    ) -> Result<Self, ProviderError> {
        let mut registry = Self::default();
        for name in names {
            match name {
                #[cfg(target_os = "linux")]
                "local" => registry.insert(name, Arc::new(super::local::Local::new(context))),
                #[cfg(not(target_os = "linux"))]
                "local" => {
                    let message =
                        "provider `local` is the Linux engine; on this system choose another provider";
                    return Err(ProviderError::Unsupported { message: message.to_owned() });
                }
                _ => {
                    let message = format!("there is no provider `{name}`");
                    return Err(ProviderError::Unsupported { message });
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
