//! The sealed vault: values put there by `secret set` and `provider login`, listed by name, never shown.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::{App, Error};
use crate::model::Timestamp;
use crate::secret::{SecretSource, SecretValue, Vault, VaultError, VaultKey};

/// The longest name of a value.
const MAX_NAME: usize = 128;
/// What names of providers' credentials begin with. The slash keeps them out of manifests.
const PROVIDER: &str = "provider/";

/// A value of the vault, without the value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VaultEntry {
    /// Its name.
    pub name: String,
    /// When it was first sealed.
    pub created_at: Timestamp,
    /// When it was last sealed.
    pub updated_at: Timestamp,
}

impl App {
    /// The file with the key of the vault.
    fn key_file(&self) -> PathBuf {
        self.environment().directories.state.join("vault.key")
    }

    /// What is in the vault, to be opened value by value.
    pub(super) async fn vault(&self) -> Result<Vault, Error> {
        // Without a store nothing was ever sealed, and looking must not make one.
        if !self.environment().directories.store().exists() {
            return Ok(Vault::default());
        }
        let sealed = self.store().await?.sealed().await?;
        let key = match sealed.is_empty() {
            true => None,
            false => VaultKey::find(&self.environment().vars, &self.key_file())?,
        };
        let sealed = sealed.into_iter().map(|(name, value)| (name, value.sealed)).collect();
        Ok(Vault::new(key, self.key_file(), sealed))
    }

    /// The vault if one of these sources is in it, else an empty one: then neither store nor key is touched.
    pub(super) async fn vault_for(&self, sources: &BTreeMap<String, SecretSource>) -> Result<Vault, Error> {
        if sources.values().any(|source| matches!(source, SecretSource::Vault(_))) {
            self.vault().await
        } else {
            Ok(Vault::default())
        }
    }

    /// What `secret set` has sealed, by name.
    pub async fn sealed_secrets(&self) -> Result<Vec<VaultEntry>, Error> {
        if !self.environment().directories.store().exists() {
            return Ok(Vec::new());
        }
        let sealed = self.store().await?.sealed().await?;
        let entry = |(name, value): (String, crate::store::SealedValue)| VaultEntry {
            name,
            created_at: value.created_at,
            updated_at: value.updated_at,
        };
        Ok(sealed.into_iter().filter(|(name, _)| !name.starts_with(PROVIDER)).map(entry).collect())
    }

    /// Seals a value under a name that manifests use as `{ vault: NAME }`.
    pub async fn seal_secret(&self, name: &str, value: &SecretValue) -> Result<(), Error> {
        check_name(name)?;
        self.seal(name, value).await
    }

    /// Forgets a sealed value.
    pub async fn forget_secret(&self, name: &str) -> Result<(), Error> {
        check_name(name)?;
        match self.store().await?.remove_sealed(name).await? {
            true => Ok(()),
            false => Err(VaultError::Missing(name.to_owned()).into()),
        }
    }

    /// Seals a credential of a provider.
    pub(super) async fn seal_credential(
        &self,
        provider: &str,
        setting: &str,
        value: &SecretValue,
    ) -> Result<(), Error> {
        self.seal(&credential_name(provider, setting), value).await
    }

    /// Forgets a credential of a provider; whether there was one.
    pub(super) async fn forget_credential(&self, provider: &str, setting: &str) -> Result<bool, Error> {
        Ok(self.store().await?.remove_sealed(&credential_name(provider, setting)).await?)
    }

    async fn seal(&self, name: &str, value: &SecretValue) -> Result<(), Error> {
        let store = self.store().await?;
        let sealed = store.sealed().await?;
        let (vars, file) = (&self.environment().vars, self.key_file());
        let key = match VaultKey::find(vars, &file)? {
            Some(key) => key,
            // A new key would leave what is sealed with the old one unreadable, and nobody would have been told.
            None if sealed.keys().any(|other| other != name) => return Err(VaultError::NoKey(file).into()),
            None => VaultKey::find_or_make(vars, &file)?,
        };
        Ok(store.put_sealed(name, key.seal(name, value)?).await?)
    }
}

/// The name under which a provider's credential is sealed.
pub(super) fn credential_name(provider: &str, setting: &str) -> String {
    format!("{PROVIDER}{provider}/{setting}")
}

fn check_name(name: &str) -> Result<(), Error> {
    let word = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    let good = !name.is_empty() && name.len() <= MAX_NAME && name.chars().all(word);
    match good && !name.starts_with(['-', '.']) {
        true => Ok(()),
        false => Err(Error::Refused {
            message: format!(
                "`{}` cannot name a secret: a name has letters, digits, `_`, `-` and `.`, does not begin with `-` or `.`, and is \
                 not longer than {MAX_NAME} characters",
                name.escape_debug()
            ),
        }),
    }
}
