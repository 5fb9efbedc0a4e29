//! The sealed vault and credentials, by the program: what is kept, what is shown, and what is refused.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pocketenv::app::{SystemClock, UuidIds};
use pocketenv::secret::VaultKey;
use pocketenv::store::Store;
use serde_json::Value;

const VALUE: &str = "hunter2-value-of-the-vault";

/// A home of its own.
struct World(tempfile::TempDir);

impl World {
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("pocketenv-it-").tempdir().unwrap())
    }

    fn state(&self) -> PathBuf {
        self.0.path().join("home/state")
    }

    fn manifest(&self, text: &str) {
        std::fs::write(self.0.path().join("pocketenv.yaml"), text).unwrap();
    }

    fn command(&self, args: &[&str], vars: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pocketenv"));
        command
            .args(args)
            .current_dir(self.0.path())
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("HOME", self.0.path())
            .env("POCKETENV_HOME", self.0.path().join("home"))
            .envs(vars.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str], vars: &[(&str, &str)]) -> Output {
        self.command(args, vars).output().unwrap()
    }

    /// Runs it with a standard input.
    fn feed(&self, args: &[&str], input: &str) -> Output {
        let mut child = self.command(args, &[]).stdin(Stdio::piped()).spawn().unwrap();
        // It may refuse before it reads.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }
}

/// Exit code and all that was said.
fn told(output: &Output) -> (i32, String) {
    let text = [&output.stdout[..], &output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{:?}", told(output)))
}

/// Files below a directory that hold some bytes.
fn holding(dir: &Path, wanted: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let kind = std::fs::symlink_metadata(&path).unwrap().file_type();
            if kind.is_dir() {
                dirs.push(path);
            } else if kind.is_file()
                && std::fs::read(&path).unwrap().windows(wanted.len()).any(|window| window == wanted)
            {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn values_are_sealed_listed_by_name_and_removed() {
    let world = World::new();
    let (code, text) = told(&world.run(&["secret", "list"], &[]));
    assert_eq!(code, 0, "{text}");
    assert!(!world.state().join("state.db").exists(), "looking made a store");
    for name in ["db", "other.key"] {
        let (code, text) = told(&world.feed(&["secret", "set", name], &format!("{VALUE}\n")));
        assert!(code == 0 && !text.contains("hunter2"), "{code} {text}");
    }
    let output = world.run(&["secret", "list", "-o", "json"], &[]);
    let names: Vec<_> =
        json(&output)["secrets"].as_array().unwrap().iter().map(|s| s["name"].clone()).collect();
    assert_eq!(names, ["db", "other.key"]);
    for form in ["table", "wide", "json", "yaml", "name"] {
        let (code, text) = told(&world.run(&["secret", "list", "-o", form], &[]));
        assert!(code == 0 && text.contains("other.key") && !text.contains("hunter2"), "{text}");
    }
    assert_eq!(holding(world.0.path(), VALUE.as_bytes()), Vec::<PathBuf>::new());
    let mode = std::fs::metadata(world.state().join("vault.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(told(&world.run(&["secret", "rm", "db"], &[])).0, 0);
    let (code, text) = told(&world.run(&["secret", "rm", "db"], &[]));
    assert!(code == 3 && text.contains("the vault has no `db`"), "{code} {text}");
    for (name, input) in
        [("../x", "v"), ("provider/sim/token", "v"), ("-x", "v"), ("good", ""), ("good", "a\0b")]
    {
        let (code, text) = told(&world.feed(&["secret", "set", "--", name], input));
        assert_ne!(code, 0, "{name}: {text}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_manifest_gets_at_a_value_with_the_right_key_only() {
    let world = World::new();
    world.manifest(
        "version: 1\nname: vaulted\nsecrets: { TOKEN: { vault: db } }\nsandboxes: { box: { secrets: [TOKEN] } }\n",
    );
    let (code, text) = told(&world.run(&["apply", "--yes"], &[]));
    assert!(code == 3 && text.contains("pocketenv secret set db"), "{code} {text}");
    assert_eq!(told(&world.feed(&["secret", "set", "db"], VALUE)).0, 0);
    let (code, text) = told(&world.run(&["apply", "--yes"], &[]));
    assert!(code == 0 && !text.contains("hunter2"), "{code} {text}");
    let output = world.run(&["exec", "box", "--", "printenv", "TOKEN"], &[]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{VALUE}\n"), "{:?}", told(&output));
    assert_eq!(holding(&world.0.path().join("home"), VALUE.as_bytes()), Vec::<PathBuf>::new());
    let (code, text) = told(&world.run(&["apply", "--yes"], &[]));
    assert!(code == 0, "a second apply: {code} {text}");

    let (key, kept) = (world.state().join("vault.key"), world.state().join("vault.key.kept"));
    std::fs::rename(&key, &kept).unwrap();
    let (code, text) = told(&world.run(&["apply", "--yes"], &[("POCKETENV_VAULT_KEY", &"07".repeat(32))]));
    assert!(code == 3 && text.contains("sealed with another key"), "{code} {text}");
    let (code, text) = told(&world.run(&["apply", "--yes"], &[]));
    assert!(code == 3 && text.contains("the key of the vault is gone"), "{code} {text}");
    let (code, text) = told(&world.feed(&["secret", "set", "more"], "v"));
    assert!(code != 0 && text.contains("the key of the vault is gone"), "{code} {text}");
    std::fs::rename(&kept, &key).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let (code, text) = told(&world.run(&["apply", "--yes"], &[]));
    assert!(code == 3 && text.contains("chmod 600"), "{code} {text}");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let (code, text) = told(&world.run(&["destroy", "--yes"], &[]));
    assert_eq!(code, 0, "{text}");
}

#[tokio::test]
async fn a_kill_at_any_moment_leaves_whole_values_only() {
    let world = World::new();
    let mut acknowledged = Vec::new();
    for n in 0..16_u64 {
        let name = format!("s{n}");
        let mut child = world.command(&["secret", "set", &name], &[]).stdin(Stdio::piped()).spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(format!("{VALUE}-{n}").as_bytes());
        // From the very beginning to about the end.
        let until = Instant::now() + Duration::from_millis(n * 6);
        while Instant::now() < until && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = child.kill();
        if child.wait().unwrap().success() {
            acknowledged.push(name);
        }
    }
    let (code, text) = told(&world.feed(&["secret", "set", "last"], &format!("{VALUE}-last")));
    assert_eq!(code, 0, "{text}");
    acknowledged.push("last".to_owned());
    let path = world.state().join("state.db");
    let store = Store::open(path, Arc::new(SystemClock), Arc::new(UuidIds)).await.unwrap();
    let key = VaultKey::find(&BTreeMap::new(), &world.state().join("vault.key")).unwrap().unwrap();
    let sealed = store.sealed().await.unwrap();
    for (name, value) in &sealed {
        let expected = format!("{VALUE}-{}", name.trim_start_matches('s'));
        assert_eq!(key.open(name, &value.sealed).unwrap().expose(), expected);
    }
    assert!(acknowledged.iter().all(|name| sealed.contains_key(name)), "{acknowledged:?}");
    assert_eq!(holding(world.0.path(), VALUE.as_bytes()), Vec::<PathBuf>::new());
}

/// A simulated cloud that asks for a token. It is killed when this is dropped.
struct Guarded {
    child: std::process::Child,
    url: String,
}

impl Guarded {
    fn start(world: &World, token: &str) -> Self {
        use std::io::BufRead as _;
        let state = world.0.path().join("cloud.sim");
        let args = [
            "sim",
            "--quiet",
            "--until-stdin-ends",
            "--listen",
            "127.0.0.1:0",
            "--state",
            state.to_str().unwrap(),
        ];
        let mut command = world.command(&args, &[("POCKETENV_SIM_TOKEN", token)]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        let mut url = String::new();
        std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        assert!(url.starts_with("http://"), "{url:?}");
        Self { child, url: url.trim().to_owned() }
    }

    async fn created(&self) -> usize {
        let http = pocketenv::provider::http::Http::new(&self.url, |_| None).unwrap();
        let inventory: Value = http.call(reqwest::Method::GET, &["inventory"]).read("look").await.unwrap();
        inventory["effects"].as_array().unwrap().len()
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn credentials_come_from_the_manifest_the_environment_or_the_vault() {
    const TOKEN: &str = "hunter2-token";
    let world = World::new();
    let cloud = Guarded::start(&world, TOKEN);
    let url = ("POCKETENV_SIM_URL", cloud.url.as_str());
    let test = ["provider", "test", "sim", "--case", "errors/unknown"];
    let state = |vars: &[(&str, &str)]| {
        let output = world.run(&["provider", "list", "-o", "json"], vars);
        assert!(!told(&output).1.contains("hunter2"), "{:?}", told(&output));
        let list = json(&output);
        let sim =
            list["providers"].as_array().unwrap().iter().find(|p| p["provider"] == "sim").unwrap().clone();
        (sim["configured"].clone(), sim["set_up"][1]["from"].clone())
    };
    assert_eq!(state(&[]), (false.into(), Value::Null));
    assert_eq!(state(&[url]), (true.into(), Value::Null));
    let (code, text) = told(&world.run(&test, &[]));
    assert!(code == 1 && text.contains("POCKETENV_SIM_URL"), "{code} {text}");

    // Missing and refused, before anything is created.
    world.manifest("version: 1\nname: p\ndefaults: { provider: sim }\nsandboxes: { box: {} }\n");
    for vars in [&[url][..], &[url, ("POCKETENV_SIM_TOKEN", "wrong")]] {
        for args in [&test[..], &["apply", "--yes"]] {
            let (code, text) = told(&world.run(args, vars));
            assert!(code == 7 && text.contains("not authorised"), "{args:?}: {code} {text}");
        }
    }
    assert_eq!(cloud.created().await, 0);

    let (code, text) = told(&world.feed(&["provider", "login", "sim"], &format!("{TOKEN}\n")));
    assert!(code == 0 && !text.contains("hunter2"), "{code} {text}");
    assert_eq!(holding(&world.state(), TOKEN.as_bytes()), Vec::<PathBuf>::new());
    assert_eq!(state(&[url]), (true.into(), "vault".into()));
    let (code, text) = told(&world.run(&test, &[url]));
    assert!(code == 0 && !text.contains("hunter2"), "{code} {text}");
    assert!(cloud.created().await > 0);
    let listed = told(&world.run(&["secret", "list", "-o", "name"], &[])).1;
    assert_eq!(listed, "", "credentials of providers are not secrets of manifests");
    world.manifest(
        "version: 1\nname: p\nsecrets: { T: { vault: provider/sim/token } }\nsandboxes: { box: { provider: sim, secrets: [T] } }\n",
    );
    let (code, text) = told(&world.run(&["apply", "--yes"], &[url]));
    assert!(code == 3 && text.contains("the vault has no"), "{code} {text}");

    // The environment counts before the vault, the manifest before both.
    let wrong = ("POCKETENV_SIM_TOKEN", "wrong");
    assert_eq!(state(&[url, wrong]).1, "environment");
    assert_eq!(told(&world.run(&test, &[url, wrong])).0, 7);
    world.manifest(
        "version: 1\nname: p\nsecrets: { T: { env: MY_TOKEN } }\nproviders: { sim: { token: { secret: T } } }\nsandboxes: {}\n",
    );
    assert_eq!(state(&[url, wrong]).1, "manifest");
    let (code, text) = told(&world.run(&test, &[url, wrong, ("MY_TOKEN", TOKEN)]));
    assert_eq!(code, 0, "{text}");

    world.manifest("version: 1\nname: p\nproviders: { sim: { token: plain, tokn: x } }\nsandboxes: {}\n");
    let (code, text) = told(&world.run(&["validate"], &[]));
    assert!(code == 3 && text.contains("is a credential") && text.contains("did you mean `token`"), "{text}");
    std::fs::remove_file(world.0.path().join("pocketenv.yaml")).unwrap();
    assert_eq!(told(&world.run(&["provider", "logout", "sim"], &[])).0, 0);
    assert_eq!(state(&[url]).1, Value::Null);
}

#[cfg(target_os = "linux")]
#[test]
fn the_kit_of_the_program_reports_and_cleans_up() {
    let world = World::new();
    let boxes = || {
        let dir = world.0.path().join("home/data/engine/boxes");
        std::fs::read_dir(dir).map_or(0, Iterator::count)
    };
    let output = world.run(&["provider", "test", "local", "--case", "exec/codes", "-o", "json"], &[]);
    let report = json(&output);
    assert_eq!((output.status.code(), &report["passed"]), (Some(0), &true.into()), "{report}");
    assert_eq!(report["cases"][0]["result"], "passed");
    assert_eq!(boxes(), 0);
    let (code, text) = told(&world.run(&["provider", "test", "local", "--case", "lifecycle/disk"], &[]));
    assert!(code == 0 && text.contains("1 passed, 1 not offered"), "{code} {text}");
    assert_eq!(told(&world.run(&["provider", "test", "local", "--case", "nothing-of-that-name"], &[])).0, 64);

    // Ctrl-C in the middle of it.
    let mut child = world.command(&["provider", "test", "local"], &[]).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while boxes() == 0 {
        assert!(Instant::now() < deadline, "nothing was made");
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    assert_eq!(boxes(), 0, "something is left");
}
