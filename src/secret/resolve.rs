//! From a source to a value. Everything is bounded: size, time and what an error repeats.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use futures::StreamExt;
use secrecy::zeroize::Zeroizing;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::{SecretSource, SecretValue, Vault, VaultError};

/// The largest value: bigger than any key or certificate chain.
const MAX_BYTES: usize = 1 << 20;

/// How long a command may take: a person may have to touch a key.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How much of a failed command's last line is repeated, in characters.
const MAX_LINE: usize = 300;

/// Commands that run at once.
const PARALLEL: usize = 4;

/// A value, and what should be said about it.
#[derive(Debug)]
pub struct Resolved {
    /// The value.
    pub value: SecretValue,
    /// What a user should know.
    pub warning: Option<SecretWarning>,
}

/// All values by name, and what should be said about them.
#[derive(Debug, Default)]
pub struct ResolvedAll {
    /// The values by name.
    pub values: BTreeMap<String, SecretValue>,
    /// What a user should know, by name.
    pub warnings: BTreeMap<String, SecretWarning>,
}

/// Something a user should know about a secret that could be resolved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretWarning {
    /// Every user of the machine can read the file.
    #[error("{} can be read by every user of this machine; `chmod 600` it", .0.display())]
    WorldReadable(PathBuf),
    /// The value is empty, as CI systems give for a secret that is not set.
    #[error("the value is empty")]
    Empty,
}

/// Why a secret has no value.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The variable is not set.
    #[error("the environment variable `{0}` is not set")]
    EnvMissing(String),
    /// The file cannot be read.
    #[error("{} cannot be read", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// There is something else than a file.
    #[error("{} is not a file", .0.display())]
    NotAFile(PathBuf),
    /// The value is larger than a secret can be.
    #[error("the value is larger than {} KiB", MAX_BYTES / 1024)]
    TooLarge,
    /// The value has bytes that no environment variable can hold.
    #[error("the value is not text: it is not UTF-8 or holds a NUL byte")]
    NotText,
    /// The command has no program.
    #[error("the command is empty")]
    EmptyCommand,
    /// The program cannot be started.
    #[error("`{program}` cannot be run")]
    CommandNotRun {
        /// The program; its arguments are not repeated.
        program: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The program failed.
    #[error("`{program}` failed ({status}){}", if last_line.is_empty() { String::new() } else { format!(": {last_line}") })]
    CommandFailed {
        /// The program; its arguments are not repeated.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The last line it wrote to standard error. Standard output is never repeated.
        last_line: String,
    },
    /// The program took too long, and was killed.
    #[error("`{program}` took longer than {} s", timeout.as_secs())]
    CommandTimedOut {
        /// The program; its arguments are not repeated.
        program: String,
        /// How long it may take.
        timeout: Duration,
    },
    /// The vault does not give it.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

/// Every secret that has no value, by name.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.lines())]
pub struct SecretErrors(pub BTreeMap<String, SecretError>);

impl SecretErrors {
    fn lines(&self) -> String {
        let line = |(name, error): (&String, &SecretError)| {
            let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
            format!("secret `{name}`: {error}{}", cause.unwrap_or_default())
        };
        self.0.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

/// The value of one secret. `env` is the environment of the calling process; a command runs with it too. `vault` is asked for what is sealed.
///
/// # Errors
/// Why there is no value; no error repeats any part of one.
pub async fn resolve(
    source: &SecretSource,
    env: &BTreeMap<String, String>,
    vault: &Vault,
) -> Result<Resolved, SecretError> {
    let (value, warning) = match source {
        SecretSource::Env(name) => {
            let value = env.get(name).ok_or_else(|| SecretError::EnvMissing(name.clone()))?;
            (SecretValue::new(value.as_str()), None)
        }
        SecretSource::File(path) => {
            let path = path.clone();
            let read = tokio::task::spawn_blocking({
                let path = path.clone();
                move || read_file(&path)
            });
            read.await.map_err(|error| SecretError::File { path, source: error.into() })??
        }
        SecretSource::Command(argv) => (run(argv, env, TIMEOUT).await?, None),
        // Names with a slash are credentials of providers, which no manifest gets at.
        SecretSource::Vault(name) if name.contains('/') => {
            return Err(VaultError::Missing(name.clone()).into());
        }
        SecretSource::Vault(name) => (vault.open(name)?, None),
    };
    let warning = warning.or_else(|| value.expose().is_empty().then_some(SecretWarning::Empty));
    Ok(Resolved { value, warning })
}

/// The values of all secrets.
///
/// # Errors
/// Every secret that has none, not the first only.
pub async fn resolve_all(
    sources: &BTreeMap<String, SecretSource>,
    env: &BTreeMap<String, String>,
    vault: &Vault,
) -> Result<ResolvedAll, SecretErrors> {
    let mut all = ResolvedAll::default();
    let mut errors = BTreeMap::new();
    let mut results = futures::stream::iter(sources)
        .map(|(name, source)| async move { (name.clone(), resolve(source, env, vault).await) })
        .buffer_unordered(PARALLEL);
    while let Some((name, result)) = results.next().await {
        match result {
            Ok(resolved) => {
                if let Some(warning) = resolved.warning {
                    all.warnings.insert(name.clone(), warning);
                }
                all.values.insert(name, resolved.value);
            }
            Err(error) => {
                errors.insert(name, error);
            }
        }
    }
    if errors.is_empty() { Ok(all) } else { Err(SecretErrors(errors)) }
}

fn read_file(path: &Path) -> Result<(SecretValue, Option<SecretWarning>), SecretError> {
    let failed = |source| SecretError::File { path: path.to_owned(), source };
    // Without blocking, so that a FIFO cannot make us wait for ever.
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(SecretError::NotAFile(path.to_owned()));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES.min(metadata.len() as usize) + 1));
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    let world_readable = metadata.permissions().mode() & 0o004 != 0;
    Ok((value(&bytes)?, world_readable.then(|| SecretWarning::WorldReadable(path.to_owned()))))
}

/// Runs a program and takes what it prints.
async fn run(
    argv: &[String],
    env: &BTreeMap<String, String>,
    timeout: Duration,
) -> Result<SecretValue, SecretError> {
    let [program, arguments @ ..] = argv else { return Err(SecretError::EmptyCommand) };
    let not_run = |source| SecretError::CommandNotRun { program: program.clone(), source };
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(env)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(not_run)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let work = async {
        // A program that prints too much gets a closed pipe, and its own failure does not matter then.
        let (bytes, last_line) = tokio::join!(read_bounded(stdout), last_line(stderr));
        let bytes = bytes.map_err(not_run)?;
        if bytes.len() > MAX_BYTES {
            return Err(SecretError::TooLarge);
        }
        let status = child.wait().await.map_err(not_run)?;
        if !status.success() {
            return Err(SecretError::CommandFailed { program: program.clone(), status, last_line });
        }
        value(&bytes)
    };
    // On a time-out the child is dropped, which kills it.
    let timed_out = || SecretError::CommandTimedOut { program: program.clone(), timeout };
    tokio::time::timeout(timeout, work).await.map_err(|_| timed_out())?
}

/// Reads to the end, or to one byte more than a value may have.
async fn read_bounded(stream: Option<impl AsyncRead + Unpin>) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::new());
    if let Some(stream) = stream {
        stream.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// Reads to the end and keeps the last line that says something, for people.
async fn last_line(stream: Option<impl AsyncRead + Unpin>) -> String {
    const TAIL: usize = 4096;
    let mut tail = Vec::new();
    let mut chunk = [0; TAIL];
    if let Some(mut stream) = stream {
        // If it cannot be read, then there is nothing to tell.
        while let Ok(count @ 1..) = stream.read(&mut chunk).await {
            tail.extend_from_slice(&chunk[..count]);
            tail.drain(..tail.len().saturating_sub(TAIL));
        }
    }
    let text = String::from_utf8_lossy(&tail);
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(MAX_LINE).collect()
}

/// The bytes as a value, without one newline at their end.
fn value(bytes: &[u8]) -> Result<SecretValue, SecretError> {
    if bytes.len() > MAX_BYTES {
        return Err(SecretError::TooLarge);
    }
    let text = std::str::from_utf8(bytes).map_err(|_| SecretError::NotText)?;
    if text.contains('\0') {
        return Err(SecretError::NotText);
    }
    let text = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
    Ok(SecretValue::new(text))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NONE: fn() -> Vault = Vault::default;

    fn env() -> BTreeMap<String, String> {
        let path = std::env::var("PATH").unwrap();
        BTreeMap::from([("PATH".to_owned(), path), ("TOKEN".to_owned(), "hunter2".to_owned())])
    }

    fn sh(script: &str) -> SecretSource {
        SecretSource::Command(["sh", "-c", script].map(str::to_owned).to_vec())
    }

    async fn exposed(source: SecretSource) -> String {
        resolve(&source, &env(), &NONE()).await.unwrap().value.expose().to_owned()
    }

    #[tokio::test]
    async fn each_source_gives_its_value_without_one_newline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        for (content, expected) in [("v", "v"), ("v\n", "v"), ("v\r\n", "v"), ("v\n\n", "v\n"), ("", "")] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(exposed(SecretSource::File(path.clone())).await, expected);
        }
        assert_eq!(exposed(SecretSource::Env("TOKEN".to_owned())).await, "hunter2");
        assert_eq!(exposed(sh("echo $TOKEN")).await, "hunter2");
        let argv = ["printf", "%s", "$TOKEN; exit 1"].map(str::to_owned).to_vec();
        assert_eq!(exposed(SecretSource::Command(argv)).await, "$TOKEN; exit 1", "no shell");
    }

    #[tokio::test]
    async fn a_readable_file_and_an_empty_value_are_warnings() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "v").unwrap();
        let warning = async |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            resolve(&SecretSource::File(path.clone()), &env(), &NONE()).await.unwrap().warning
        };
        assert_eq!(warning(0o640).await, None);
        assert_eq!(warning(0o644).await, Some(SecretWarning::WorldReadable(path.clone())));
        assert_eq!(resolve(&sh("true"), &env(), &NONE()).await.unwrap().warning, Some(SecretWarning::Empty));
    }

    #[tokio::test]
    async fn an_error_names_the_cause_and_never_what_was_printed() {
        let source = sh("echo hunter2; echo first >&2; echo 'not signed in' >&2; exit 3");
        let error = resolve(&source, &env(), &NONE()).await.unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains("not signed in") && text.contains("exit status: 3"), "{text}");
        assert!(!text.contains("hunter2") && !text.contains("first"), "{text}");
    }

    #[tokio::test]
    async fn what_is_too_large_binary_or_no_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let file = SecretSource::File(path.clone());
        std::fs::write(&path, vec![b'a'; MAX_BYTES + 1]).unwrap();
        assert!(matches!(resolve(&file, &env(), &NONE()).await, Err(SecretError::TooLarge)));
        for bytes in [&b"\xff\xfe"[..], b"a\0b"] {
            std::fs::write(&path, bytes).unwrap();
            assert!(matches!(resolve(&file, &env(), &NONE()).await, Err(SecretError::NotText)));
        }
        let endless = SecretSource::Command(vec!["yes".to_owned()]);
        assert!(matches!(resolve(&endless, &env(), &NONE()).await, Err(SecretError::TooLarge)));
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [dir.path().to_owned(), fifo] {
            let result = resolve(&SecretSource::File(path), &env(), &NONE()).await;
            assert!(matches!(result, Err(SecretError::NotAFile(_))), "{result:?}");
        }
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = format!("echo $$ > '{}'; exec sleep 1000", file.display());
        let argv = ["sh", "-c", &script].map(str::to_owned);
        let result = run(&argv, &env(), Duration::from_secs(2)).await;
        assert!(matches!(result, Err(SecretError::CommandTimedOut { .. })), "{result:?}");
        let stat = format!("/proc/{}/stat", std::fs::read_to_string(&file).unwrap().trim());
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(std::time::Instant::now() < deadline, "it still runs");
            std::thread::yield_now();
        }
    }

    #[tokio::test]
    async fn every_secret_without_a_value_is_reported_at_once() {
        let sources = BTreeMap::from([
            ("A".to_owned(), SecretSource::Env("A_VAR".to_owned())),
            ("B".to_owned(), SecretSource::File("/nonexistent/b".into())),
            ("C".to_owned(), SecretSource::Vault("c".to_owned())),
            ("D".to_owned(), SecretSource::Command(vec!["no-such-program-here".to_owned()])),
            ("E".to_owned(), SecretSource::Command(vec![])),
            ("F".to_owned(), SecretSource::Env("TOKEN".to_owned())),
        ]);
        let errors = resolve_all(&sources, &env(), &NONE()).await.unwrap_err();
        assert_eq!(errors.0.keys().map(String::as_str).collect::<String>(), "ABCDE");
        let text = errors.to_string();
        assert!(text.contains("secret `A`: the environment variable `A_VAR` is not set\n"), "{text}");
        assert!(text.contains("secret `B`: /nonexistent/b cannot be read: No such file"), "{text}");
    }
}
