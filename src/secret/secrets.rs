//! The secrets of one run.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Redactor, SecretValue, digest};

/// The values of a project's secrets, with the redactor that keeps them out of everything that is shown.
#[derive(Debug)]
pub struct Secrets {
    values: BTreeMap<String, SecretValue>,
    redactor: Arc<Redactor>,
}

impl Secrets {
    /// Takes the values in.
    pub fn new(values: BTreeMap<String, SecretValue>) -> Self {
        let redactor = Arc::new(Redactor::new(values.iter().map(|(name, value)| (name.as_str(), value))));
        Self { values, redactor }
    }

    /// The value of a secret, if it could be had.
    pub fn get(&self, name: &str) -> Option<&SecretValue> {
        self.values.get(name)
    }

    /// Keyed digests of all values, by name: what a plan knows of them.
    pub fn digests(&self, key: &[u8; 32]) -> BTreeMap<String, String> {
        self.values.iter().map(|(name, value)| (name.clone(), digest(key, name, value))).collect()
    }

    /// `text` without any of the values.
    pub fn redact(&self, text: &str) -> String {
        self.redactor.redact(text)
    }

    /// For text that comes in pieces.
    pub fn redactor(&self) -> &Arc<Redactor> {
        &self.redactor
    }
}
