//! A preset as written: under `presets:`, and as a file of its own in the top-level `presets` directory.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Text, User, env_name_schema};
use crate::model::Duration;

/// A preset: steps that put something in place inside a sandbox, once. Its text is never a template: variables reach the scripts
/// as environment variables.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Preset {
    /// For people.
    pub description: Option<Text>,
    /// Variables with their defaults.
    #[serde(default)]
    #[schemars(extend("propertyNames" = env_name_schema()))]
    pub vars: BTreeMap<String, Text>,
    /// Steps in the order they run.
    #[schemars(length(min = 1))]
    pub steps: Vec<Step>,
}

/// One step of a preset.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    /// Its name, unique in the preset. Default: `step-N`.
    pub name: Option<Text>,
    /// A script: the step is skipped unless it exits 0.
    #[serde(rename = "if")]
    pub only_if: Option<Text>,
    /// A script: the step is skipped if it exits 0.
    pub unless: Option<Text>,
    /// The script. One script, not one shell for each line.
    pub run: Text,
    /// The interpreter. Default: `sh`.
    pub shell: Option<Text>,
    /// Who runs it: a name or `uid[:gid]`. Default: the sandbox's user.
    pub user: Option<User>,
    /// Environment over the preset's variables.
    #[serde(default)]
    #[schemars(extend("propertyNames" = env_name_schema()))]
    pub env: BTreeMap<String, Text>,
    /// How long one attempt may take. Default: 10m.
    pub timeout: Option<Duration>,
    /// Attempts after the first. Default: 0.
    #[schemars(range(max = 20))]
    pub retries: Option<u32>,
    /// A failure is reported and does not hold up what follows. Default: false.
    pub continue_on_error: Option<bool>,
}
