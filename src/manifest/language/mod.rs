//! The language: the types behind `pocketenv.yaml`. The JSON Schema, the checks and `docs/manifest.md` all come from here.
//!
//! Every type is the long form. Where a short form may be written (`ports: [5432]`), the schema says so with a type from
//! [`short`], and `normal` rewrites it to the long form before serde sees it.

mod preset;
mod sandbox;
pub(crate) mod scalar;
mod service;
pub(crate) mod short;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use preset::*;
pub(crate) use sandbox::*;
pub(crate) use scalar::*;
pub(crate) use service::*;

use crate::model::{DriftPolicy, RunState};
use short::OneOrMany;

/// A manifest: everything one project declares.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// The version of the language. Always 1.
    #[schemars(range(min = 1, max = 1))]
    pub version: u32,
    /// The project's name. Default: the name of the directory that holds the manifest.
    pub name: Option<Name>,
    /// Manifests read before this one, which overrides them. Paths start at this file and stay below the directory of the first one.
    #[schemars(with = "Option<OneOrMany<HostPath>>")]
    pub include: Option<Vec<HostPath>>,
    /// What sandboxes and volumes use where they say nothing themselves.
    #[serde(default)]
    pub defaults: Defaults,
    /// Values for templates, as `{{ vars.NAME }}`; overridden by `POCKETENV_VAR_NAME` and, above that, `--var NAME=VALUE`.
    #[serde(default)]
    #[schemars(extend("propertyNames" = name_schema()))]
    pub vars: BTreeMap<String, Text>,
    /// Settings of providers by the provider's name.
    #[serde(default)]
    #[schemars(extend("propertyNames" = name_schema()))]
    pub providers: BTreeMap<String, BTreeMap<String, Setting>>,
    /// Secrets by name: where each value comes from. A value never stands in the file.
    #[serde(default)]
    #[schemars(extend("propertyNames" = env_name_schema()))]
    pub secrets: BTreeMap<String, SecretSource>,
    /// Volumes by name. They outlive the sandboxes that mount them.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Option<Volume>>", extend("propertyNames" = name_schema()))]
    pub volumes: BTreeMap<String, Volume>,
    /// Presets of this project by name, next to the built-in ones. One of the same name replaces the built-in one.
    #[serde(default)]
    #[schemars(extend("propertyNames" = name_schema()))]
    pub presets: BTreeMap<String, Preset>,
    /// Sandboxes by name.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, Option<Sandbox>>", extend("propertyNames" = name_schema()))]
    pub sandboxes: BTreeMap<String, Sandbox>,
}

/// What sandboxes and volumes use where they say nothing themselves.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Defaults {
    /// The provider. Default: `local`. `--provider` overrides it.
    pub provider: Option<Name>,
    /// What is done about drift. Default: `heal`.
    pub drift: Option<DriftPolicy>,
    /// Whether sandboxes and volumes are protected from deletion. Default: false.
    pub protect: Option<bool>,
    /// The state of sandboxes. Default: `running`.
    pub state: Option<RunState>,
}

/// One setting of a provider: a value, a list of values, or a secret.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Setting {
    /// A value.
    Value(Text),
    /// Several values.
    List(Vec<Text>),
    /// A secret, by name.
    Secret(SecretRef),
}

/// A secret of this manifest, by name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretRef {
    /// The name under `secrets:`.
    pub secret: String,
}

/// Where the value of a secret comes from; exactly one of these.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SecretSource {
    /// An environment variable of the `pocketenv` process.
    pub env: Option<EnvName>,
    /// A file of the host, relative to this manifest. One newline at its end is not part of the value.
    pub file: Option<HostPath>,
    /// A program with its arguments, run without a shell; its output is the value.
    #[schemars(length(min = 1))]
    pub command: Option<Vec<Text>>,
    /// A name in the sealed store of this machine.
    pub vault: Option<Text>,
}

/// A volume. `{}` is one kept by the provider.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Volume {
    /// The provider that keeps it. Default: the default provider.
    pub provider: Option<Name>,
    /// Never deleted while true. Default: `defaults.protect`, else false.
    pub protect: Option<bool>,
    /// Every mount of it is read-only. Default: false.
    pub read_only: Option<bool>,
    /// A bucket of an S3-compatible store instead of a volume of the provider.
    pub s3: Option<S3>,
}

/// A bucket of an S3-compatible store.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct S3 {
    /// The bucket's name.
    pub bucket: Text,
    /// Only keys that begin with this.
    pub prefix: Option<Text>,
    /// The URL of the store. Default: the vendor's own.
    pub endpoint: Option<Text>,
    /// The region.
    pub region: Option<Text>,
    /// The secret that holds the credentials.
    pub credentials: Option<SecretRef>,
}
