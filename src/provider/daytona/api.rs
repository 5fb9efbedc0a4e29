//! What travels between Daytona and its clients: the control plane, and the daemon inside a sandbox (the "toolbox"). Names and meanings are those of the
//! vendor's published clients, `daytona_api_client` and `daytona_toolbox_api_client` 0.226.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A new sandbox (`CreateSandbox`). What is left out is the vendor's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NewSandbox {
    /// No two sandboxes of an organisation have the same.
    pub name: String,
    /// A snapshot by name or id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// An image instead of a snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_info: Option<BuildInfo>,
    /// Who runs what is run inside.
    pub user: String,
    pub labels: BTreeMap<String, String>,
    /// Whether its ports need no token.
    pub public: bool,
    pub network_block_all: bool,
    /// IPv4 networks, separated by commas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_allow_list: Option<String>,
    /// Names, separated by commas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain_allow_list: Option<String>,
    /// Cores; GiB; GiB. Only of an image: a snapshot has its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeMount>,
    /// A region.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Minutes without activity; 0 is never.
    pub auto_stop_interval: u64,
    /// Minutes that it may be stopped; less than 0 is for ever.
    pub auto_delete_interval: i64,
    /// Minutes from its creation on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_minutes: Option<u64>,
}

/// An image, as the SDKs ask for one (`CreateBuildInfo`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BuildInfo {
    pub dockerfile_content: String,
}

/// A sandbox, alone (`Sandbox`) or in a listing (`SandboxListItem`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Sandbox {
    pub id: String,
    pub labels: BTreeMap<String, String>,
    pub state: Option<String>,
    pub error_reason: Option<String>,
    pub public: bool,
    #[serde(default)]
    pub network_block_all: bool,
    #[serde(default)]
    pub network_allow_list: Option<String>,
    #[serde(default)]
    pub domain_allow_list: Option<String>,
    /// Minutes; the vendor's clients allow for fractions.
    pub auto_stop_interval: Option<f64>,
    /// RFC 3339.
    pub auto_destroy_at: Option<String>,
    pub created_at: Option<String>,
    /// Where the daemons of sandboxes are reached, each below its id.
    pub toolbox_proxy_url: String,
}

/// A volume in a sandbox (`SandboxVolume`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct VolumeMount {
    pub volume_id: String,
    pub mount_path: String,
}

/// A volume (`VolumeDto`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Volume {
    pub id: String,
    pub name: String,
    /// `ready`, or on the way there or out.
    pub state: String,
    pub error_reason: Option<String>,
    pub created_at: Option<String>,
}

/// A snapshot (`SnapshotDto`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Snapshot {
    pub id: String,
    pub name: String,
    /// `active`, or on the way there or out.
    pub state: String,
    pub error_reason: Option<String>,
    /// In GB.
    pub size: Option<f64>,
    /// Cores; GB; GB: what sandboxes made from it have.
    pub cpu: f64,
    pub mem: f64,
    pub disk: f64,
    pub created_at: Option<String>,
}

/// One page of snapshots (`PaginatedSnapshots`).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Snapshots {
    pub items: Vec<Snapshot>,
    pub total_pages: u64,
}

/// A name for something new.
#[derive(Debug, Serialize)]
pub(super) struct Named<'a> {
    pub name: &'a str,
}

/// What a sandbox reaches (`UpdateSandboxNetworkSettings`).
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Reach {
    pub network_block_all: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_allow_list: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain_allow_list: Option<String>,
}

/// One page of a listing.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Page {
    pub items: Vec<Sandbox>,
    pub next_cursor: Option<String>,
}

/// New labels: all of them.
#[derive(Debug, Serialize)]
pub(super) struct Labels<'a> {
    pub labels: &'a BTreeMap<String, String>,
}

/// Where a port is reached (`PortPreviewUrl`).
#[derive(Debug, Deserialize)]
pub(super) struct Preview {
    pub url: String,
}

/// A shell that runs commands (`CreateSessionRequest`).
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NewSession<'a> {
    pub session_id: &'a str,
}

/// A command of a session (`SessionExecuteRequest`).
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SessionCommand<'a> {
    pub command: &'a str,
    pub run_async: bool,
    /// Otherwise what it is sent stands in its output.
    pub suppress_input_echo: bool,
}

/// A command that was begun (`SessionExecuteResponse`).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Begun {
    pub cmd_id: String,
}

/// Input of a command (`SessionSendInputRequest`).
#[derive(Debug, Serialize)]
pub(super) struct Input<'a> {
    pub data: &'a str,
}

/// A command that is waited for (`ExecuteRequest`).
#[derive(Debug, Serialize)]
pub(super) struct Execute<'a> {
    pub command: &'a str,
    pub envs: BTreeMap<&'a str, &'a str>,
    /// Seconds.
    pub timeout: u64,
}

/// The size of a terminal (`PtyResizeRequest`).
#[derive(Debug, Serialize)]
pub(super) struct Size {
    pub cols: u16,
    pub rows: u16,
}

/// What the daemon says in words on the connection of a terminal.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Control {
    /// `connected`, `error` or `exited`.
    pub status: String,
    pub error: Option<String>,
    pub exit_code: Option<i32>,
}

/// Why the daemon closed the connection of a terminal.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Closed {
    pub exit_code: i32,
}
