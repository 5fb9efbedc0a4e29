//! The real program against simulated clouds: whatever goes wrong, the end is exactly what is declared.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use super::world::{Sim, count};

const MANIFEST: &str = r#"
version: 1
name: shop
defaults: { provider: sim }
secrets: { TOKEN: { env: TOKEN } }
volumes: { data: {} }
sandboxes:
  db:
    volumes: [ { name: data, path: /data } ]
    secrets: [TOKEN]
    services:
      postgres: { command: [postgres], healthcheck: { tcp: 5432, interval: 1s } }
    ports: [5432]
  api:
    count: 4
    depends_on: { db: { condition: healthy } }
    env: { A: b }
    files: [ { path: /etc/motd, content: "hello\n" } ]
    services:
      web: { command: [npm, start], healthcheck: { http: { port: 3000 }, interval: 1s } }
"#;

const SECRET: &str = "s3cr3t-value-of-the-token";

/// Runs the program on the manifest in `dir`, with its own directories there.
fn pocketenv(dir: &Path, sim: &Sim, arguments: &[&str]) -> Output {
    std::fs::write(dir.join("pocketenv.yaml"), MANIFEST).unwrap();
    Command::new(env!("CARGO_BIN_EXE_pocketenv"))
        .args(arguments)
        .current_dir(dir)
        .env_clear()
        .env("POCKETENV_HOME", dir.join("home"))
        .env("POCKETENV_SIM_URL", &sim.url)
        .env("TOKEN", SECRET)
        .output()
        .unwrap()
}

/// Runs it until it succeeds, as a user would who sees that it did not.
fn insist(dir: &Path, sim: &Sim, arguments: &[&str]) {
    let mut last = None;
    for _ in 0..5 {
        let output = pocketenv(dir, sim, arguments);
        if output.status.success() {
            return;
        }
        last = Some(output);
    }
    panic!("{arguments:?} never succeeded: {last:?}");
}

fn declared(inventory: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let sandboxes = inventory["sandboxes"].as_array().unwrap();
    let mut found: Vec<_> = sandboxes
        .iter()
        .map(|s| {
            let label = s["labels"]["pocketenv.io/resource"].as_str().map(str::to_owned);
            let address = label.or_else(|| s["name"].as_str()?.split('~').nth(2).map(str::to_owned));
            (address.unwrap_or_default(), text(&s["state"]))
        })
        .collect();
    found.sort();
    found
}

fn all_running() -> Vec<(String, String)> {
    ["api-1", "api-2", "api-3", "api-4", "db"]
        .map(|name| (format!("sandbox/{name}"), "running".to_owned()))
        .to_vec()
}

async fn life(profile: &str, seed: u64, settings: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), seed, profile, settings);
    insist(dir.path(), &sim, &["apply", "--yes"]);
    let inventory = sim.inventory().await;
    assert_eq!(declared(&inventory), all_running(), "{profile} {seed}");
    assert_eq!(count(&inventory, "created"), 5, "{profile} {seed}: something was created twice");
    assert_eq!(inventory["volumes"].as_array().unwrap().len(), 1);

    insist(dir.path(), &sim, &["destroy", "--yes", "--volumes"]);
    let inventory = sim.inventory().await;
    assert_eq!(declared(&inventory), [], "{profile} {seed}: something is left");
    assert_eq!(inventory["volumes"].as_array().unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_calm_life_is_one_apply_an_empty_plan_and_one_destroy() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &[]);
    for (arguments, code) in [
        (&["apply", "--yes"][..], 0),
        (&["plan", "--detailed-exitcode"], 0),
        (&["destroy", "--yes", "--volumes"], 0),
    ] {
        let output = pocketenv(dir.path(), &sim, arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
    }
    assert_eq!(declared(&sim.inventory().await), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stormy_life_ends_with_exactly_what_is_declared() {
    for seed in 1..=3 {
        life("stormy", seed, &["speed=20"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_answers_create_nothing_twice_without_keys_and_with_a_listing_that_lags() {
    life(
        "calm",
        5,
        &["idempotent_create=false", "create.cut_after=0.4", "create.error_after=0.2", "lag=500ms"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_enough_where_there_are_no_labels() {
    life("sprites", 1, &["speed=20", "create.cut_after=0.3"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_profile_is_lived_through() {
    // Those of vendors; the weather has tests of its own.
    for profile in
        ["e2b", "daytona", "vercel", "modal", "deno", "runloop", "hopx", "blaxel", "cloudflare", "kubernetes"]
    {
        life(profile, 1, &["speed=20"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_store_adopts_everything_and_creates_nothing() {
    for profile in ["calm", "sprites"] {
        let dir = tempfile::tempdir().unwrap();
        let sim = Sim::start(dir.path(), 1, profile, &["speed=20"]);
        insist(dir.path(), &sim, &["apply", "--yes"]);
        std::fs::remove_dir_all(dir.path().join("home")).unwrap();
        insist(dir.path(), &sim, &["apply", "--yes"]);
        let inventory = sim.inventory().await;
        assert_eq!((declared(&inventory), count(&inventory, "created")), (all_running(), 5), "{profile}");
        let output = pocketenv(dir.path(), &sim, &["plan", "--detailed-exitcode"]);
        assert_eq!(output.status.code(), Some(0), "{profile}: {output:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_dies_is_brought_back() {
    for stop in ["suspend", "destroy"] {
        let dir = tempfile::tempdir().unwrap();
        let sim = Sim::start(dir.path(), 1, "calm", &[&format!("stop={stop}"), "death_after=100ms"]);
        insist(dir.path(), &sim, &["apply", "--yes"]);
        sim.set(serde_json::json!({ "death": "1" })).await;
        // A new sandbox dies by itself; those that ran before are stopped behind our back.
        let inventory = sim.inventory().await;
        let id = inventory["sandboxes"][0]["id"].as_str().unwrap().to_owned();
        sim.send(reqwest::Method::POST, &format!("/v1/sandboxes/{id}/stop"), None).await;
        sim.send(reqwest::Method::POST, &format!("/v1/sandboxes/{id}/start"), None).await;
        sim.becomes(&id, if stop == "suspend" { "stopped" } else { "gone" }).await;
        sim.set(serde_json::json!({ "death": "0" })).await;
        insist(dir.path(), &sim, &["apply", "--yes"]);
        assert_eq!(declared(&sim.inventory().await), all_running(), "{stop}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_reaches_the_simulators_file() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &[]);
    insist(dir.path(), &sim, &["apply", "--yes"]);
    let journal = std::fs::read_to_string(&sim.state).unwrap();
    assert!(journal.contains("TOKEN") && !journal.contains(SECRET));
}

#[test]
fn an_address_is_asked_for_where_there_is_none() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("pocketenv.yaml"), "version: 1\nsandboxes: { a: { provider: sim } }\n")
        .unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_pocketenv"))
        .args(["plan"])
        .current_dir(dir.path())
        .env_clear()
        .env("POCKETENV_HOME", dir.path().join("home"))
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && told.contains("POCKETENV_SIM_URL"), "{told}");
}

#[test]
fn a_rehearsal_passes_in_a_storm_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = MANIFEST.replace("defaults: { provider: sim }", "defaults: { provider: local }").replace(
        "    env: { A: b }\n",
        "    env: { A: b }\n    secrets: { TOKEN: { hosts: [api.example.com] } }\n",
    );
    assert!(manifest.contains("hosts:"));
    std::fs::write(dir.path().join("pocketenv.yaml"), manifest).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_pocketenv"))
        .args(["rehearse", "--chaos", "stormy", "--seed", "3", "-o", "json"])
        .current_dir(dir.path())
        .env_clear()
        .env("POCKETENV_HOME", dir.path().join("home"))
        .env("TMPDIR", dir.path())
        .env("TOKEN", SECRET)
        .output()
        .unwrap();
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    assert_eq!((output.status.code(), &report["passed"]), (Some(0), &Value::Bool(true)), "{report:#}");
    assert_eq!(report["rehearsals"][0]["verdicts"].as_array().unwrap().len(), 5);
    assert!(report["rehearsals"][0]["effects"]["created"].as_u64().unwrap() >= 5);
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["pocketenv.yaml"]);
}
