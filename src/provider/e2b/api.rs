//! What travels between E2B and its clients: the control plane, and `envd`, the agent inside a sandbox, which speaks the Connect protocol with JSON.
//!
//! The emulator (`src/server/emulate/e2b`) uses the same types; that they are E2B's is shown by E2B's own SDKs, which the tests run against it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The port of the agent inside.
pub const ENVD_PORT: u16 = 49983;
/// The largest message of the Connect protocol that is taken in.
pub const MESSAGE_LIMIT: usize = 64 << 20;

/// A new sandbox.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NewSandbox {
    /// A template by id, alias or name, or a snapshot.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// It lives so many seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// At the end it is paused instead of deleted.
    #[serde(rename = "autoPause", skip_serializing_if = "Option::is_none")]
    pub auto_pause: Option<bool>,
    /// Whether traffic starts it again.
    #[serde(rename = "autoResume", skip_serializing_if = "Option::is_none")]
    pub auto_resume: Option<AutoResume>,
    /// Whether it reaches the internet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_internet_access: Option<bool>,
    /// What it reaches in detail, and who reaches it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// For the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
    /// The environment of everything inside.
    #[serde(rename = "envVars", skip_serializing_if = "Option::is_none")]
    pub env_vars: Option<BTreeMap<String, String>>,
    /// A gateway for the model context protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mcp: Option<Value>,
    /// Identities for workloads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iam: Option<Value>,
    /// Volumes.
    #[serde(rename = "volumeMounts", skip_serializing_if = "Option::is_none")]
    pub volume_mounts: Option<Vec<VolumeMount>>,
}

/// A volume in a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// The volume's name.
    pub name: String,
    /// Where it is inside.
    pub path: String,
}

/// A new volume.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NewVolume {
    /// No two of an account have the same.
    pub name: String,
}

/// A volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Volume {
    /// Its id.
    #[serde(rename = "volumeID")]
    pub volume_id: String,
    /// Its name.
    pub name: String,
    /// Opens its files; only when looked at alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// A snapshot that is to be made.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NewSnapshot {
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether its memory is kept too; it is if this is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<bool>,
}

/// A snapshot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// What sandboxes are made from it by, and what it is deleted by.
    #[serde(rename = "snapshotID")]
    pub snapshot_id: String,
    /// `TEAM/NAME:TAG`.
    #[serde(default)]
    pub names: Vec<String>,
}

/// Forks that are to be made.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Fork {
    /// They live so many seconds.
    pub timeout: Option<u64>,
    /// How many.
    pub count: Option<u32>,
}

/// Whether traffic starts a paused sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AutoResume {
    /// It does.
    pub enabled: bool,
}

/// What a sandbox reaches, and who reaches it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Network {
    /// Whether its ports need no token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_public_traffic: Option<bool>,
    /// Addresses and names that it reaches all the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_out: Option<Vec<String>>,
    /// Addresses that it does not reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deny_out: Option<Vec<String>>,
    /// Whatever else there is.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// A sandbox that was made or resumed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sandbox {
    /// Its template.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// Its id.
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// Deprecated.
    #[serde(rename = "clientID", default)]
    pub client_id: String,
    /// The template's alias.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// The version of the agent inside.
    #[serde(rename = "envdVersion")]
    pub envd_version: String,
    /// Opens the agent.
    #[serde(rename = "envdAccessToken", default, skip_serializing_if = "Option::is_none")]
    pub envd_access_token: Option<String>,
    /// Opens its ports.
    #[serde(rename = "trafficAccessToken", default)]
    pub traffic_access_token: Option<String>,
    /// Its ports are reached below this.
    #[serde(default)]
    pub domain: Option<String>,
}

/// A sandbox in a listing, or looked at alone.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxDetail {
    /// Its template.
    #[serde(rename = "templateID")]
    pub template_id: String,
    /// The template's alias.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Its id.
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    /// Deprecated.
    #[serde(rename = "clientID", default)]
    pub client_id: String,
    /// When it was last started, RFC 3339.
    #[serde(rename = "startedAt")]
    pub started_at: String,
    /// When it ends.
    #[serde(rename = "endAt")]
    pub end_at: String,
    /// Processors.
    #[serde(rename = "cpuCount", default)]
    pub cpu_count: u32,
    /// Memory in MiB.
    #[serde(rename = "memoryMB", default)]
    pub memory_mb: u64,
    /// Disk in MiB.
    #[serde(rename = "diskSizeMB", default)]
    pub disk_size_mb: u64,
    /// For the client.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// `running` or `paused`.
    pub state: String,
    /// The version of the agent inside.
    #[serde(rename = "envdVersion", default)]
    pub envd_version: String,
    /// Opens the agent; only when looked at alone.
    #[serde(rename = "envdAccessToken", default, skip_serializing_if = "Option::is_none")]
    pub envd_access_token: Option<String>,
    /// Whether it reaches the internet; only when looked at alone.
    #[serde(rename = "allowInternetAccess", default, skip_serializing_if = "Option::is_none")]
    pub allow_internet_access: Option<bool>,
    /// Its ports are reached below this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// How it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifecycle: Option<Lifecycle>,
    /// What it reaches, and who reaches it; only when looked at alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Its volumes; only when looked at alone.
    #[serde(rename = "volumeMounts", default, skip_serializing_if = "Option::is_none")]
    pub volume_mounts: Option<Vec<VolumeMount>>,
}

/// How a sandbox ends.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Lifecycle {
    /// Whether traffic starts it again.
    pub auto_resume: bool,
    /// `kill` or `pause`.
    pub on_timeout: String,
}

/// A new time to live, in seconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Timeout {
    /// From now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// The same, as a refresh has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<u64>,
}

/// A measurement of a sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metric {
    /// When, RFC 3339.
    pub timestamp: String,
    /// The same, in seconds since the epoch.
    pub timestamp_unix: i64,
    /// Processors.
    pub cpu_count: u32,
    /// How much of one processor is used, in percent.
    pub cpu_used_pct: f64,
    /// Memory in use, bytes.
    pub mem_used: u64,
    /// All memory, bytes.
    pub mem_total: u64,
    /// Memory in use for caches, bytes.
    pub mem_cache: u64,
    /// Disk in use, bytes.
    pub disk_used: u64,
    /// All disk, bytes.
    pub disk_total: u64,
}

/// An error of the control plane, and of the agent's files.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The status of the answer.
    pub code: u16,
    /// A sentence for people.
    pub message: String,
}

/// A file that was written.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Written {
    /// Where.
    pub path: String,
    /// The last part of it.
    pub name: String,
    /// Always `file`.
    #[serde(rename = "type")]
    pub kind: String,
}

/// Nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// A program with its surroundings.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessConfig {
    /// The program.
    pub cmd: String,
    /// Its arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Environment.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub envs: BTreeMap<String, String>,
    /// Working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
}

/// A terminal.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Terminal {
    /// Its size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
}

/// The size of a terminal.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Size {
    /// Characters a line.
    pub cols: u16,
    /// Lines.
    pub rows: u16,
}

/// Which process is meant.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Selector {
    /// By its id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// By its tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

/// A call about processes: what each of them has stands side by side, since their names do not clash.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessCall {
    /// Which process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Selector>,
    /// What it is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub input: Option<ProcessInput>,
    /// Its new terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pty: Option<Terminal>,
    /// `SIGNAL_SIGTERM` or `SIGNAL_SIGKILL`, or its number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signal: Option<Value>,
}

/// What a process is given.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessInput {
    /// On its standard input.
    #[serde(with = "base64_bytes", skip_serializing_if = "Option::is_none")]
    pub stdin: Option<Vec<u8>>,
    /// On its terminal.
    #[serde(with = "base64_bytes", skip_serializing_if = "Option::is_none")]
    pub pty: Option<Vec<u8>>,
}

/// One message of a stream of input.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamInput {
    /// The first: for whom it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<ProcessCall>,
    /// Some of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<ProcessCall>,
    /// Nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive: Option<Empty>,
}

/// A process to start.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StartProcess {
    /// What it is.
    pub process: ProcessConfig,
    /// On a terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pty: Option<Terminal>,
    /// A name to find it by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Whether it takes input; it does if this is not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdin: Option<bool>,
}

/// Running processes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessList {
    /// All of them.
    pub processes: Vec<ProcessInfo>,
}

/// A running process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessInfo {
    /// What it is.
    pub config: ProcessConfig,
    /// Its id.
    pub pid: u32,
    /// Its tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

/// One message of what a process does.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessMessage {
    /// What happened.
    pub event: ProcessEvent,
}

/// What a process does: one of these.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessEvent {
    /// It runs; the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Started>,
    /// It wrote something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<ProcessOutput>,
    /// It ended; the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<Ended>,
    /// Nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive: Option<Empty>,
}

/// A process runs.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Started {
    /// Its id.
    pub pid: u32,
}

/// What a process wrote: one of these.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessOutput {
    /// On its standard output.
    #[serde(with = "base64_bytes", skip_serializing_if = "Option::is_none")]
    pub stdout: Option<Vec<u8>>,
    /// On its standard error.
    #[serde(with = "base64_bytes", skip_serializing_if = "Option::is_none")]
    pub stderr: Option<Vec<u8>>,
    /// On its terminal.
    #[serde(with = "base64_bytes", skip_serializing_if = "Option::is_none")]
    pub pty: Option<Vec<u8>>,
}

/// How a process ended.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ended {
    /// Its code; -1 if it was ended by a signal.
    pub exit_code: i32,
    /// Whether it ended by itself.
    pub exited: bool,
    /// In words: `exit status 3`, `signal: killed`.
    pub status: String,
    /// The same, unless it ended with 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// A call about files: what each of them has stands side by side, since their names do not clash.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FileCall {
    /// The path.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// From where.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// To where.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub destination: String,
    /// How deep.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<u32>,
    /// Whether directories below are followed too.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub recursive: bool,
    /// Which watcher.
    #[serde(alias = "watcher_id", skip_serializing_if = "String::is_empty")]
    pub watcher_id: String,
}

/// An answer about files: one of these, or nothing.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FileAnswer {
    /// What is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry: Option<EntryInfo>,
    /// What is in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries: Option<Vec<EntryInfo>>,
    /// The new watcher.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watcher_id: Option<String>,
    /// What happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<Vec<FileEvent>>,
}

/// A file, a directory or a link.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EntryInfo {
    /// The last part of its path.
    pub name: String,
    /// `FILE_TYPE_FILE`, `FILE_TYPE_DIRECTORY`; of a link that of what it leads to.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its path.
    pub path: String,
    /// Bytes, as text.
    pub size: String,
    /// Permission bits.
    pub mode: u32,
    /// The same for people.
    pub permissions: String,
    /// Whom it belongs to.
    pub owner: String,
    /// Its group.
    pub group: String,
    /// When its contents changed, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modified_time: Option<String>,
    /// Where it leads, if it is a link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symlink_target: Option<String>,
}

/// What happened in a directory.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct FileEvent {
    /// Where, from the directory.
    pub name: String,
    /// `EVENT_TYPE_CREATE`, ….
    #[serde(rename = "type")]
    pub kind: String,
}

/// One message of what happens in a directory: one of these.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WatchMessage {
    /// It is followed; the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Empty>,
    /// Something happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<FileEvent>,
    /// Nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive: Option<Empty>,
}

/// An error of the Connect protocol.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectError {
    /// `not_found`, `invalid_argument`, ….
    pub code: String,
    /// A sentence for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// The end of a stream of the Connect protocol.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EndOfStream {
    /// Why, if it did not end well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ConnectError>,
}

/// The flag of a message that is compressed.
pub const COMPRESSED: u8 = 1;
/// The flag of the last message of a stream.
pub const END_OF_STREAM: u8 = 2;

/// A message with the five bytes before it: a flag and its length.
pub fn frame(flag: u8, message: &[u8]) -> Vec<u8> {
    let mut framed = Vec::with_capacity(message.len() + 5);
    framed.push(flag);
    framed.extend(u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    framed.extend(message);
    framed
}

/// Takes messages out of a stream of bytes.
#[derive(Debug, Default)]
pub struct Frames(Vec<u8>);

/// A message that is too long to be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message of {0} bytes")]
pub struct TooLong(pub usize);

impl Frames {
    /// Adds bytes that came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next message with its flag, if all of it is there.
    ///
    /// # Errors
    /// [`TooLong`].
    pub fn take(&mut self) -> Result<Option<(u8, Vec<u8>)>, TooLong> {
        let Some((head, _)) = self.0.split_first_chunk::<5>() else { return Ok(None) };
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > MESSAGE_LIMIT {
            return Err(TooLong(length));
        }
        if self.0.len() < length + 5 {
            return Ok(None);
        }
        let flag = head[0];
        let rest = self.0.split_off(length + 5);
        let message = std::mem::replace(&mut self.0, rest).split_off(5);
        Ok(Some((flag, message)))
    }

    /// Whether there is the beginning of a message.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Bytes as JSON has them in protocol buffers: base64, of either alphabet, padded or not.
mod base64_bytes {
    use base64::Engine as _;
    use base64::alphabet;
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
    use base64::prelude::BASE64_STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );

    pub fn serialize<S: Serializer>(bytes: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
        match bytes {
            Some(bytes) => serializer.serialize_str(&BASE64_STANDARD.encode(bytes)),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
        // The other alphabet is allowed and rare.
        let decoded = LENIENT.decode(&text);
        let decoded = decoded.or_else(|_| LENIENT.decode(text.replace('-', "+").replace('_', "/")));
        decoded.map(Some).map_err(D::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_whole_out_of_pieces() {
        let mut bytes = frame(0, b"one");
        bytes.extend(frame(END_OF_STREAM, b"{}"));
        let mut frames = Frames::default();
        let mut found = Vec::new();
        for byte in bytes {
            frames.push(&[byte]);
            found.extend(frames.take().unwrap());
        }
        assert_eq!(found, [(0, b"one".to_vec()), (END_OF_STREAM, b"{}".to_vec())]);
        assert!(frames.is_empty());
        frames.push(&[0, 255, 255, 255, 255]);
        assert!(frames.take().is_err());
    }

    #[test]
    fn bytes_are_read_in_every_form_that_json_may_have() {
        for text in ["+/8=", "+/8", "-_8"] {
            let input: ProcessInput = serde_json::from_str(&format!("{{\"stdin\":\"{text}\"}}")).unwrap();
            assert_eq!(input.stdin, Some(vec![0xfb, 0xff]), "{text}");
        }
        assert_eq!(serde_json::to_string(&ProcessInput::default()).unwrap(), "{}");
    }
}
