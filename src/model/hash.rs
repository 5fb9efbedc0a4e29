//! Hashes of specs: equal specs have equal hashes, on every machine and in every version that writes the same fields.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// SHA-256 over the canonical JSON of a spec, as 64 lowercase hex digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SpecHash(pub String);

impl SpecHash {
    /// The first twelve digits: enough for people to tell two specs apart.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl fmt::Display for SpecHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// SHA-256 of `bytes`, as 64 lowercase hex digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The hash of a value by its JSON form. Struct fields stand in declaration order, maps must be ordered (`BTreeMap`).
///
/// Values of this crate's model always serialise; a value that cannot is hashed by its error text, which no good value equals.
pub fn hash_of<T: Serialize + ?Sized>(value: &T) -> SpecHash {
    match serde_json::to_vec(value) {
        Ok(bytes) => SpecHash(sha256_hex(&bytes)),
        Err(error) => SpecHash(sha256_hex(format!("unserialisable: {error}").as_bytes())),
    }
}
