//! Ownership as it is written at the provider: who made an object, for which resource, from which spec (invariant 1).

use std::collections::BTreeMap;

use super::{Address, IntentId, OwnerId, SpecHash, Timestamp};

/// The project's name.
pub const PROJECT: &str = "pocketenv.io/project";
/// The resource's address.
pub const ADDRESS: &str = "pocketenv.io/resource";
/// The id of the store that owns the object.
pub const OWNER: &str = "pocketenv.io/owner";
/// The hash of the spec that the object was made or last updated from.
pub const SPEC_HASH: &str = "pocketenv.io/spec-hash";
/// Which version of the resource's spec, counted from 1.
pub const GENERATION: &str = "pocketenv.io/generation";
/// The idempotency token of the intent that created the object.
pub const INTENT: &str = "pocketenv.io/intent";
/// When the object may be collected, in milliseconds since the epoch; absent for never.
pub const EXPIRES_AT: &str = "pocketenv.io/expires-at";
/// Of a snapshot, the sandbox that it was made of, by its address.
pub const SNAPSHOT_OF: &str = "pocketenv.io/snapshot-of";
/// Of a snapshot, `true` if it was made for forks alone and is of no use without them.
pub const FOR_FORKS: &str = "pocketenv.io/for-forks";
/// Always `pocketenv`.
pub const MANAGED_BY: &str = "pocketenv.io/managed-by";

/// What an object at a provider says about its owner.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    /// The project's name.
    pub project: String,
    /// The resource.
    pub address: Address,
    /// The store that owns the object.
    pub owner: OwnerId,
    /// The hash of the applied spec.
    pub spec_hash: SpecHash,
    /// The version of the spec, from 1.
    pub generation: u64,
    /// The idempotency token of the create.
    pub intent: IntentId,
    /// When the object may be collected; `None` for never.
    pub expires_at: Option<Timestamp>,
}

/// Labels that claim to be ours but cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("label `{label}` is {found}")]
pub struct ParseIdentityError {
    /// The label's name.
    pub label: &'static str,
    /// What stands there: `missing`, or the text in quotes.
    pub found: String,
}

impl Identity {
    /// The labels that carry this identity.
    pub fn to_labels(&self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::from([
            (MANAGED_BY.to_owned(), "pocketenv".to_owned()),
            (PROJECT.to_owned(), self.project.clone()),
            (ADDRESS.to_owned(), self.address.to_string()),
            (OWNER.to_owned(), self.owner.0.clone()),
            (SPEC_HASH.to_owned(), self.spec_hash.0.clone()),
            (GENERATION.to_owned(), self.generation.to_string()),
            (INTENT.to_owned(), self.intent.0.clone()),
        ]);
        if let Some(at) = self.expires_at {
            labels.insert(EXPIRES_AT.to_owned(), at.0.to_string());
        }
        labels
    }

    /// Reads the identity back; `Ok(None)` if the object is not managed by Pocketenv at all.
    pub fn from_labels(labels: &BTreeMap<String, String>) -> Result<Option<Self>, ParseIdentityError> {
        if labels.get(MANAGED_BY).map(String::as_str) != Some("pocketenv") {
            return Ok(None);
        }
        let text = |label: &'static str| {
            labels.get(label).ok_or(ParseIdentityError { label, found: "missing".to_owned() })
        };
        let bad =
            |label: &'static str, found: &str| ParseIdentityError { label, found: format!("`{found}`") };
        let address = text(ADDRESS)?;
        let generation = text(GENERATION)?;
        Ok(Some(Self {
            project: text(PROJECT)?.clone(),
            address: address.parse().map_err(|_| bad(ADDRESS, address))?,
            owner: OwnerId(text(OWNER)?.clone()),
            spec_hash: SpecHash(text(SPEC_HASH)?.clone()),
            generation: generation.parse().map_err(|_| bad(GENERATION, generation))?,
            intent: IntentId(text(INTENT)?.clone()),
            expires_at: match labels.get(EXPIRES_AT) {
                None => None,
                Some(at) => Some(Timestamp(at.parse().map_err(|_| bad(EXPIRES_AT, at))?)),
            },
        }))
    }
}
