//! The emulator of E2B: its SDKs run against it, it survives its own death, and its sandboxes are ours.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::sdk::{Emulator, boxes, kept, pocketenv, sdks};

fn home() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("pocketenv-it-").tempdir().unwrap()
}

fn python(name: &str, arguments: &[&str]) {
    let Some(sdks) = sdks() else { return };
    let home = home();
    let emulator = Emulator::start("e2b", home.path(), arguments);
    emulator.python(&sdks, name);
    emulator.stop();
    assert_eq!(boxes(home.path()), Vec::<String>::new());
    assert_eq!(kept(home.path()), Vec::<String>::new());
}

#[test]
fn the_python_sdk_finds_its_sandboxes() {
    python("lifecycle.py", &[]);
}

#[test]
fn the_python_sdk_keeps_things() {
    python("kept.py", &[]);
}

#[test]
fn the_python_sdk_runs_commands() {
    python("commands.py", &[]);
}

#[test]
fn the_python_sdk_moves_files() {
    python("files.py", &[]);
}

#[test]
fn the_javascript_sdk_does_all_of_it() {
    let Some(sdks) = sdks() else { return };
    let home = home();
    let emulator = Emulator::start("e2b", home.path(), &[]);
    emulator.node(&sdks, "all.mjs");
    emulator.stop();
    assert_eq!(boxes(home.path()), Vec::<String>::new());
}

/// A client that knows nothing of ours.
struct Plain<'a> {
    emulator: &'a Emulator,
    client: reqwest::Client,
}

impl<'a> Plain<'a> {
    fn new(emulator: &'a Emulator) -> Self {
        // What TLS is made of is chosen once in a process.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap();
        Self { emulator, client }
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> (u16, Value) {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self.client.request(method, format!("{}{path}", self.emulator.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap_or(Value::Null))
    }

    async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        self.send(method, path, &[("x-api-key", "local")], body).await
    }

    async fn create(&self, body: Value) -> Value {
        let (status, made) = self.ask("POST", "/v2/sandboxes", Some(body)).await;
        assert_eq!(status, 201, "{made}");
        made
    }

    async fn listed(&self) -> Vec<String> {
        let (status, page) = self.ask("GET", "/v2/sandboxes", None).await;
        assert_eq!(status, 200, "{page}");
        page.as_array().unwrap().iter().map(|s| s["sandboxID"].as_str().unwrap().to_owned()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_emulator_goes_on_with_its_sandboxes() {
    let home = home();
    let emulator = Emulator::start("e2b", home.path(), &[]);
    let plain = Plain::new(&emulator);
    let long = json!({ "templateID": "base", "timeout": 1000, "metadata": { "a": "b" }, "envVars": { "SECRET": "hunter2" } });
    let kept = plain.create(long).await;
    plain.create(json!({ "templateID": "base", "timeout": 1 })).await;
    emulator.kill();
    assert_eq!(boxes(home.path()).len(), 2);
    // Only its user may read what it lives in, and no environment stands there.
    let state = home.path().join("pocketenv/state/emulate/emulate-e2b.json");
    assert_eq!(std::fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!std::fs::read_to_string(&state).unwrap().contains("hunter2"));

    // It goes on, and what was to end meanwhile ends now.
    let emulator = Emulator::start("e2b", home.path(), &[]);
    let plain = Plain::new(&emulator);
    let id = kept["sandboxID"].as_str().unwrap();
    eventually(async || plain.listed().await == [id]).await;
    let (_, found) = plain.ask("GET", &format!("/sandboxes/{id}"), None).await;
    assert_eq!((&found["metadata"], &found["state"]), (&json!({ "a": "b" }), &json!("running")));
    let token = kept["envdAccessToken"].as_str().unwrap();
    let inside = [("e2b-sandbox-id", id), ("x-access-token", token)];
    assert_eq!(plain.send("GET", "/envs", &inside, None).await, (200, json!({ "SECRET": "hunter2" })));
    assert_eq!(plain.send("GET", "/envs", &inside[..1], None).await.0, 401);

    // A second one on the same state is refused.
    let second = pocketenv(home.path()).args(["emulate", "e2b", "--listen", "127.0.0.1:0"]).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("--project"), "{second:?}");

    // Its sandboxes are ours by their labels, and somebody else's by their owner.
    let gc = pocketenv(home.path()).args(["gc", "-o", "json"]).output().unwrap();
    let found: Value = serde_json::from_slice(&gc.stdout).unwrap();
    let orphan = &found["orphans"][0];
    assert_eq!(
        (&orphan["project"], &orphan["why"]),
        (&json!("emulate-e2b"), &json!("foreign_store")),
        "{found}"
    );
    assert_eq!(orphan["address"], format!("sandbox/{id}"));

    // The file is lost: the labels are enough to find it, and to end it.
    emulator.kill();
    std::fs::remove_file(&state).unwrap();
    let emulator = Emulator::start("e2b", home.path(), &["--keep"]);
    assert_eq!(Plain::new(&emulator).listed().await, [id]);
    emulator.stop();
    assert_eq!(boxes(home.path()).len(), 1, "they were to be kept");
    Emulator::start("e2b", home.path(), &[]).stop();
    assert_eq!(boxes(home.path()), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_ask_and_how_it_says_no() {
    let home = home();
    for listen in [&["--listen", "0.0.0.0:0"][..], &["--listen", "0.0.0.0:0", "--allow-remote"]] {
        let output = pocketenv(home.path()).args(["emulate", "e2b"]).args(listen).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{output:?}");
    }
    let emulator = Emulator::start("e2b", home.path(), &["--api-key", "sesame", "--template", "mine=host"]);
    let plain = Plain::new(&emulator);
    let list = async |headers: &[(&str, &str)]| plain.send("GET", "/v2/sandboxes", headers, None).await;
    assert_eq!(list(&[("x-api-key", "sesame")]).await, (200, json!([])));
    for headers in [&[("x-api-key", "sesamf")][..], &[]] {
        let (status, said) = list(headers).await;
        assert_eq!((status, &said["code"]), (401, &json!(401)), "{said}");
        assert!(said["message"].is_string());
    }
    // A page of a browser has its own name, whatever that leads to.
    assert_eq!(list(&[("x-api-key", "sesame"), ("host", "evil.example")]).await.0, 403);
    let key = [("x-api-key", "sesame")];
    let (status, said) = plain.send("POST", "/v3/templates", &key, Some(json!({}))).await;
    assert_eq!((status, &said["code"]), (501, &json!(501)), "{said}");
    for body in [
        json!({ "templateID": "other" }),
        json!({ "templateID": "mine", "volumeMounts": [{}] }),
        json!({ "templateID": "mine", "network": { "rules": { "a.example": [] } } }),
        json!([]),
    ] {
        let (status, said) = plain.send("POST", "/v2/sandboxes", &key, Some(body)).await;
        assert!([400, 404].contains(&status) && said["message"].is_string(), "{status} {said}");
    }
    let (status, said) = plain.send("GET", "/health", &[("e2b-sandbox-id", "inosuch")], None).await;
    assert_eq!((status, &said["message"]), (502, &json!("The sandbox was not found")));
    assert_eq!(plain.send("POST", "/v2/sandboxes", &key, Some(json!({ "templateID": "mine" }))).await.0, 201);
    emulator.stop();
    assert_eq!(boxes(home.path()), Vec::<String>::new());
}

/// A manifest whose sandbox lives at E2B.
const MANIFEST: &str = "\
version: 1
name: shop
secrets: { KEY: { env: E2B_KEY } }
providers: { e2b: { api_key: { secret: KEY }, api_url: URL, sandbox_url: URL } }
sandboxes:
  hello:
    provider: e2b
    env: { GREETING: good morning }
    files:
      - { path: /srv/www/index.html, content: \"hello\\n\" }
    services:
      web:
        command: exec python3 -m http.server \"$PORT\" --bind 127.0.0.1 --directory /srv/www
        env: { PORT: \"8000\" }
        healthcheck: { http: { port: 8000, path: / }, interval: 1s, timeout: 5s, start_period: 20s }
    ports: [8000]
";

#[tokio::test(flavor = "multi_thread")]
async fn a_project_lives_at_e2b() {
    let home = home();
    let emulator = Emulator::start("e2b", home.path(), &[]);
    let plain = Plain::new(&emulator);
    std::fs::write(home.path().join("pocketenv.yaml"), MANIFEST.replace("URL", &emulator.url)).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = pocketenv(home.path());
        let output = command.args(arguments).env("E2B_KEY", "key-of-the-account").output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(!format!("{out}{err}").contains("key-of-the-account"));
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {out}{err}");
        out.into_owned()
    };
    let inside = |script: &str| run(&["exec", "hello", "--", "sh", "-c", script]);
    run(&["apply", "--yes"]);
    let ids = plain.listed().await;
    assert_eq!(ids.len(), 1);
    let (_, found) = plain.ask("GET", &format!("/sandboxes/{}", ids[0]), None).await;
    assert_eq!(found["metadata"]["pocketenv.io/resource"], "sandbox/hello");
    assert_eq!((&found["templateID"], &found["lifecycle"]["onTimeout"]), (&json!("base"), &json!("pause")));
    assert_eq!(inside("cat /srv/www/index.html; echo $GREETING; id -un"), "hello\ngood morning\nroot\n");
    let fetch =
        "python3 -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:8000/\").read())'";
    assert_eq!(inside(fetch), "b'hello\\n'\n");
    let status: Value = serde_json::from_str(&run(&["status", "-o", "json"])).unwrap();
    let resources = status["resources"].as_array().unwrap();
    assert!(resources.iter().all(|r| r["health"] == "Healthy" && r["sync"] == "Synced"), "{status}");
    run(&["plan", "--detailed-exitcode"]);

    // What was changed inside is put right.
    inside("echo bad > /srv/www/index.html");
    run(&["apply", "--yes"]);
    assert_eq!(inside("cat /srv/www/index.html"), "hello\n");
    // So is a sandbox that was paused behind our back; its disk is as it was.
    inside("echo kept > /var/kept");
    assert_eq!(plain.ask("POST", &format!("/sandboxes/{}/pause", ids[0]), Some(json!({}))).await.0, 204);
    run(&["apply", "--yes"]);
    assert_eq!(inside(&format!("cat /var/kept; {fetch}")), "kept\nb'hello\\n'\n");
    run(&["plan", "--detailed-exitcode"]);
    assert_eq!(plain.listed().await, ids);
    // And one that is gone.
    assert_eq!(plain.ask("DELETE", &format!("/sandboxes/{}", ids[0]), None).await.0, 204);
    eventually(async || {
        let mut plan = pocketenv(home.path());
        plan.args(["plan", "--detailed-exitcode"]).env("E2B_KEY", "k").output().unwrap().status.code()
            == Some(2)
    })
    .await;
    run(&["apply", "--yes"]);
    let again = plain.listed().await;
    assert!(again.len() == 1 && again != ids);
    assert_eq!(inside(fetch), "b'hello\\n'\n");

    // The store is lost: the metadata says whose it is, and nothing is made twice.
    std::fs::remove_file(home.path().join("pocketenv/state/state.db")).unwrap();
    run(&["apply", "--yes"]);
    assert_eq!(plain.listed().await, again);
    run(&["destroy", "--yes"]);
    assert_eq!(plain.listed().await, Vec::<String>::new());
    emulator.stop();
    assert_eq!(boxes(home.path()), Vec::<String>::new());
}

/// A manifest with what outlives sandboxes.
const KEPT: &str = "\
version: 1
name: shop
secrets: { KEY: { env: E2B_KEY } }
defaults: { provider: e2b }
providers: { e2b: { api_key: { secret: KEY }, api_url: URL, sandbox_url: URL } }
volumes: { data: {} }
sandboxes:
  api:
    env: { GREETING: good morning }
    volumes: [ { name: data, path: /data } ]
    network: { egress: deny, allow: [ \"a.invalid\" ] }
";

#[tokio::test(flavor = "multi_thread")]
async fn a_project_has_snapshots_forks_and_volumes_at_e2b() {
    let home = home();
    let emulator = Emulator::start("e2b", home.path(), &[]);
    let plain = Plain::new(&emulator);
    let file = home.path().join("pocketenv.yaml");
    let manifest = KEPT.replace("URL", &emulator.url);
    std::fs::write(&file, &manifest).unwrap();
    snapshots_forks_and_volumes(home.path(), &file, &manifest, &["E2B_KEY"]);
    assert_eq!(plain.listed().await, Vec::<String>::new());
    for listing in ["/snapshots", "/volumes"] {
        assert_eq!(plain.ask("GET", listing, None).await, (200, json!([])));
    }
    emulator.stop();
    assert_eq!(boxes(home.path()), Vec::<String>::new());
    assert_eq!(kept(home.path()), Vec::<String>::new());
}

/// A project with a sandbox `api` that has the volume `data`, from its first apply to its end, at whatever cloud its manifest names.
pub fn snapshots_forks_and_volumes(home: &Path, file: &Path, manifest: &str, keys: &[&str]) {
    let ends = |code: i32, arguments: &[&str]| {
        let mut command = pocketenv(home);
        command.args(arguments).envs(keys.iter().map(|key| (key, "key-of-the-account")));
        let output = command.output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {out}{err}");
        (out.into_owned(), err.into_owned())
    };
    let run = |arguments: &[&str]| ends(0, arguments).0;
    let inside = |name: &str, script: &str| run(&["exec", name, "--", "sh", "-c", script]);
    run(&["apply", "--yes"]);
    run(&["plan", "--detailed-exitcode"]);
    inside("api", "echo one > /var/kept; echo shared > /data/kept");
    let told = |url: &str| {
        let proxy = "--proxy http://127.0.0.1:61080";
        inside("api", &format!("curl -s -o /dev/null -m 20 -w '%{{http_code}}' {proxy} {url} || true"))
    };
    assert_eq!((told("http://a.invalid/"), told("http://b.invalid/")), ("502".to_owned(), "403".to_owned()));

    run(&["snapshot", "create", "api", "Before_1"]);
    inside("api", "echo two > /var/kept");
    let (_, said) = ends(1, &["snapshot", "create", "api", "Before_1"]);
    assert!(said.contains("Before_1"), "{said}");
    let listed = |n: usize| {
        let listed: Value = serde_json::from_str(&run(&["snapshot", "list", "-o", "json"])).unwrap();
        let snapshots = listed["snapshots"].as_array().unwrap().clone();
        assert_eq!(snapshots.len(), n, "{listed}");
        snapshots
    };
    let snapshot = listed(1).remove(0);
    assert_eq!((&snapshot["name"], &snapshot["of"]), (&json!("Before_1"), &json!("sandbox/api")));

    // Forks start from what is there now, and are gone with the next apply.
    run(&["fork", "api", "--count", "2"]);
    assert_eq!(
        inside("api-fork-2", "cat /var/kept; cat /data/kept; echo $GREETING"),
        "two\nshared\ngood morning\n"
    );
    inside("api-fork-2", "echo forked > /var/kept");
    assert_eq!(inside("api-fork-1", "cat /var/kept"), "two\n");
    run(&["apply", "--yes", "--allow-data-loss"]);
    run(&["gc", "--delete", "--yes"]);
    assert_eq!(listed(1)[0]["name"], "Before_1");

    // A sandbox from it is declared; what it is made from stays.
    std::fs::write(file, format!("{manifest}  trial: {{ snapshot: Before_1 }}\n")).unwrap();
    run(&["apply", "--yes"]);
    run(&["plan", "--detailed-exitcode"]);
    assert_eq!(inside("trial", "cat /var/kept"), "one\n");
    let (_, said) = ends(1, &["snapshot", "rm", "Before_1"]);
    assert!(said.contains("Before_1"), "{said}");
    assert!(!listed(1)[0]["used_by"].as_array().unwrap().is_empty());

    // The store is lost: volumes and snapshots are known by their names.
    std::fs::remove_file(home.join("pocketenv/state/state.db")).unwrap();
    run(&["apply", "--yes"]);
    run(&["plan", "--detailed-exitcode"]);
    assert_eq!(listed(1)[0]["name"], "Before_1");
    std::fs::write(file, manifest).unwrap();
    run(&["apply", "--yes", "--allow-data-loss"]);
    run(&["snapshot", "rm", "Before_1"]);
    listed(0);

    // The volume outlives its sandbox.
    run(&["destroy", "--yes"]);
    run(&["apply", "--yes"]);
    assert_eq!(inside("api", "cat /data/kept"), "shared\n");
    run(&["destroy", "--yes", "--volumes"]);
}

async fn eventually(mut test: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !test().await {
        assert!(Instant::now() < deadline, "it has not become true within 30 s");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
