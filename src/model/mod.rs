//! The nouns of Pocketenv: addresses, desired, observed and recorded state, conditions, labels, hashes, durations and quantities.
//!
//! This room does no I/O, reads no clock, no environment and no randomness: whatever varies is an argument.

mod address;
mod causes;
mod condition;
mod desired;
mod duration;
mod egress;
mod hash;
mod id;
mod label;
mod observed;
mod origin;
mod quantity;
mod recorded;
mod similar;

pub use address::{Address, ParseAddressError};
pub use causes::with_causes;
pub use condition::{Condition, ConditionStatus, Health, Sync};
pub use desired::*;
pub use duration::{Duration, ParseDurationError};
pub use egress::{BoundHost, EgressAttempt, EgressHost, EgressRule, ParseEgressRuleError};
pub use hash::{SpecHash, hash_of, sha256_hex};
pub use id::{Clock, IdSource, IntentId, OwnerId, SandboxId, Timestamp};
pub use label::{Identity, ParseIdentityError};
pub use observed::*;
pub use origin::Location;
pub use quantity::{ParseQuantityError, Quantity};
pub use recorded::*;
pub use similar::nearest;

/// Label names and their encoding at a provider.
pub mod labels {
    pub use super::label::{
        ADDRESS, EXPIRES_AT, FOR_FORKS, GENERATION, INTENT, MANAGED_BY, OWNER, PROJECT, SNAPSHOT_OF,
        SPEC_HASH,
    };
}
