//! What happens in the cloud: effects. The state is nothing but all of them, one after the other.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::guest::GuestChange;

/// An effect with who asked for it and when: one line of the journal.
#[derive(Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Its number, from 1.
    pub n: u64,
    /// When it happened, in milliseconds since the epoch by our clock.
    pub at: i64,
    /// Who asked; absent for what the cloud does by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Caller>,
    /// What happened.
    pub effect: Effect,
}

/// Who asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// The request's number in the life of this simulator, from 1.
    pub request: u64,
    /// The `X-Request-Id` that the client gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The `Idempotency-Key` that the client gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
}

/// What happened. Times are in milliseconds since the epoch by our clock; everything that chance decided stands here, so that a replay needs none.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// A sandbox was made and is on its way to running.
    Created {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
        /// Its labels.
        labels: BTreeMap<String, String>,
        /// What it is made from.
        spec: Box<RawValue>,
        /// Its volumes.
        volumes: Vec<String>,
        /// Its ports.
        ports: Vec<u16>,
        /// The key of the request that made it.
        key: Option<String>,
        /// When it will run.
        until: i64,
        /// Whether it will be of no use then.
        fails: bool,
        /// When it dies on its own.
        dies_at: Option<i64>,
        /// When it expires.
        expires_at: Option<i64>,
    },
    /// It was changed.
    Updated {
        /// Its id.
        id: String,
        /// Its new name.
        name: Option<String>,
        /// Its labels, all of them.
        labels: Option<BTreeMap<String, String>>,
        /// Its new spec.
        spec: Option<Box<RawValue>>,
        /// Its volumes.
        volumes: Option<Vec<String>>,
        /// Its ports.
        ports: Option<Vec<u16>>,
    },
    /// It is on its way to running.
    Starting {
        /// Its id.
        id: String,
        /// When it will run.
        until: i64,
        /// When it dies on its own.
        dies_at: Option<i64>,
    },
    /// It runs.
    Running {
        /// Its id.
        id: String,
    },
    /// It is on its way to stopped.
    Stopping {
        /// Its id.
        id: String,
        /// When it will be stopped.
        until: i64,
    },
    /// It does not run any more.
    Stopped {
        /// Its id.
        id: String,
        /// Why, if nobody asked.
        unclean: Option<String>,
        /// Whether its disk is lost.
        wiped: bool,
    },
    /// Its creation failed.
    Failed {
        /// Its id.
        id: String,
    },
    /// It is on its way to gone.
    Deleting {
        /// Its id.
        id: String,
        /// When it will be gone.
        until: i64,
    },
    /// It is gone.
    Deleted {
        /// Its id.
        id: String,
        /// Why, if nobody asked.
        reason: Option<String>,
    },
    /// Something changed inside it.
    Inside {
        /// Its id.
        id: String,
        /// What.
        change: GuestChange,
    },
    /// A volume was made.
    VolumeCreated {
        /// Its name.
        name: String,
        /// Its labels.
        labels: BTreeMap<String, String>,
    },
    /// A volume is gone with its data.
    VolumeDeleted {
        /// Its name.
        name: String,
    },
    /// Settings were changed while it ran.
    Settings(BTreeMap<String, String>),
}
