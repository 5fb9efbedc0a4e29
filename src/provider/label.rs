//! The whole spec beside the labels of ownership, at providers whose objects carry free text: a lost store reads it back.

use std::collections::BTreeMap;

use super::ProviderError;
use crate::model::{Identity, SandboxSpec};

/// The label that keeps it, as JSON.
pub(super) const SPEC: &str = "pocketenv.io/spec";

/// The labels of a sandbox: whose it is, and what it is to be.
///
/// # Errors
/// [`ProviderError::Permanent`] if the spec cannot be written as JSON.
pub(super) fn labels(
    spec: &SandboxSpec,
    identity: &Identity,
) -> Result<BTreeMap<String, String>, ProviderError> {
    let json = serde_json::to_string(spec)
        .map_err(|error| ProviderError::permanent("the spec cannot be kept as a label", error))?;
    let mut labels = identity.to_labels();
    labels.insert(SPEC.to_owned(), json);
    Ok(labels)
}

/// The spec that labels carry; `None` if there is none that can be read.
pub(super) fn labelled_spec(labels: &BTreeMap<String, String>) -> Option<SandboxSpec> {
    serde_json::from_str(labels.get(SPEC)?).ok()
}

/// An identity, for tests.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) fn any_identity() -> Identity {
    use crate::model::{IntentId, OwnerId, SpecHash};
    Identity {
        project: "shop".to_owned(),
        address: "sandbox/api".parse().unwrap(),
        owner: OwnerId("o".to_owned()),
        spec_hash: SpecHash("h".to_owned()),
        generation: 1,
        intent: IntentId("i".to_owned()),
        expires_at: None,
    }
}
