//! Secrets: where their values come from, how a change is noticed without keeping them, and how they stay out of what is shown.
//!
//! A value lives in a [`SecretValue`], which neither prints nor serialises. What is kept of it is a keyed [`digest`]. Whatever
//! text may hold one goes through a [`Redactor`] before it is shown, logged or recorded (invariant 11).

mod redact;
mod resolve;
mod secrets;
mod source;
mod vault;

use std::fmt;

use hmac::{Hmac, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

pub use redact::{RedactStream, Redactor};
pub use resolve::{Resolved, ResolvedAll, SecretError, SecretErrors, SecretWarning, resolve, resolve_all};
pub use secrets::Secrets;
pub use source::SecretSource;
pub use vault::{Sealed, VAULT_KEY_VARIABLE, Vault, VaultError, VaultKey};

/// The value of a secret. It is wiped from memory when dropped; it cannot be printed or serialised.
#[derive(Clone)]
pub struct SecretValue(SecretString);

impl SecretValue {
    /// Takes a value in.
    pub fn new(value: impl Into<String>) -> Self {
        Self(SecretString::from(value.into()))
    }

    /// The value itself, for the one place that hands it to a sandbox or provider.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// The keyed digest (HMAC-SHA256) of a secret, as 64 lowercase hex digits: equal for the same key, name and value only.
pub fn digest(key: &[u8; 32], name: &str, value: &SecretValue) -> String {
    // Provably impossible: HMAC takes a key of any length.
    #[allow(clippy::expect_used)]
    let mut mac = <Hmac<Sha256> as Mac>::new_from_slice(key).expect("HMAC takes a key of any length");
    // The length keeps `a` + `bc` apart from `ab` + `c`.
    mac.update(&(name.len() as u64).to_le_bytes());
    mac.update(name.as_bytes());
    mac.update(value.expose().as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

/// What stands for a secret inside `sandbox`, where the value itself must not be: known to whoever is told it, and to nobody else.
pub fn placeholder(key: &[u8; 32], sandbox: &str, name: &str) -> String {
    // No secret has a name with spaces in it.
    let of = digest(key, "the placeholder of", &SecretValue::new(format!("{name} in {sandbox}")));
    format!("pocketenv-bound-{}", &of[..40])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_binds_key_name_and_value() {
        let of = |key: u8, name: &str, value: &str| digest(&[key; 32], name, &SecretValue::new(value));
        let base = of(1, "DB", "hunter2");
        assert_eq!(base.len(), 64);
        assert_eq!(base, of(1, "DB", "hunter2"));
        for other in
            [of(2, "DB", "hunter2"), of(1, "DC", "hunter2"), of(1, "DB", "hunter3"), of(1, "DBh", "unter2")]
        {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn a_value_does_not_print() {
        assert_eq!(format!("{:?}", SecretValue::new("hunter2")), "[secret]");
    }
}
