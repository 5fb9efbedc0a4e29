//! The presets that come with Pocketenv: well-formed, and two of them for real.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use pocketenv::guest::{StepOutcome, run_step};
use pocketenv::model::{Duration, PresetStep};
use serde::Deserialize;

use super::room::Room;

/// A preset as its file has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Preset {
    description: String,
    vars: BTreeMap<String, String>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    name: String,
    #[serde(rename = "if")]
    only_if: Option<String>,
    unless: Option<String>,
    run: String,
    shell: Option<String>,
    user: Option<String>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    timeout: Option<Duration>,
    #[serde(default)]
    retries: u32,
    #[serde(default)]
    continue_on_error: bool,
}

fn presets() -> BTreeMap<String, Preset> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("presets");
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let preset =
            serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (path.file_stem().unwrap().to_str().unwrap().to_owned(), preset)
    };
    std::fs::read_dir(directory).unwrap().map(read).collect()
}

fn steps(preset: &Preset) -> Vec<PresetStep> {
    let step = |step: &Step| PresetStep {
        name: step.name.clone(),
        only_if: step.only_if.clone(),
        unless: step.unless.clone(),
        run: step.run.clone(),
        shell: step.shell.clone().unwrap_or_else(|| "sh".to_owned()),
        user: step.user.clone(),
        env: preset.vars.clone().into_iter().chain(step.env.clone()).collect(),
        timeout: step.timeout.unwrap_or(Duration::from_secs(600)),
        retries: step.retries,
        continue_on_error: step.continue_on_error,
    };
    preset.steps.iter().map(step).collect()
}

#[test]
fn each_is_documented_pinned_idempotent_and_plain_posix_shell() {
    let presets = presets();
    let names = presets.keys().map(String::as_str).collect::<Vec<_>>().join(" ");
    assert_eq!(
        names,
        "amp claude codex copilot crush gemini git-tools kilo mise nix node openclaw opencode python rust"
    );
    for (name, preset) in &presets {
        assert!(preset.description.ends_with('.'), "{name}");
        assert!(preset.vars.contains_key("VERSION"), "{name} is not pinned");
        for step in &preset.steps {
            let at = format!("{name}: {}", step.name);
            assert!(step.unless.is_some(), "{at} is not idempotent");
            assert!(step.shell.is_none() && step.user.is_none(), "{at}");
            for text in [Some(&step.run), step.unless.as_ref(), step.only_if.as_ref()].into_iter().flatten() {
                let shells: &[&[&str]] = &[&["sh"], &["dash"], &["busybox", "sh"], &["bash", "--posix"]];
                for shell in shells {
                    let check = Command::new(shell[0]).args(&shell[1..]).args(["-n", "-c", text]).output();
                    let Ok(output) = check else {
                        eprintln!("SKIPPED: no {}", shell[0]);
                        continue;
                    };
                    assert!(output.status.success(), "{at}: {}", String::from_utf8_lossy(&output.stderr));
                }
                for unwanted in
                    ["&>", "[[", "| sh", "|sh", "curl", "wget", "sudo", "<(", "function ", "local "]
                {
                    assert!(!text.contains(unwanted), "{at} has `{unwanted}`");
                }
            }
        }
    }
}

async fn apply(room: &Room, preset: &Preset) -> (Vec<StepOutcome>, String) {
    let path = format!("/root/.local/bin:{}", std::env::var("PATH").unwrap());
    let mut env = BTreeMap::from([("PATH".to_owned(), path)]);
    // How this machine gets out is not the sandbox's to know.
    let outside = ["HTTPS_PROXY", "https_proxy", "NODE_EXTRA_CA_CERTS"];
    env.extend(outside.into_iter().filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?))));
    let mut output = String::new();
    let mut outcomes = Vec::new();
    for step in steps(preset) {
        let outcome = run_step(room, "p", &step, &env, None, &mut |text| output.push_str(text)).await;
        outcomes.push(outcome.unwrap_or_else(|error| panic!("{}: {error}\n{output}", step.name)));
    }
    (outcomes, output)
}

#[tokio::test]
async fn python_gives_an_interpreter_with_pip_and_the_second_time_nothing() {
    let Some(room) = Room::new() else { return };
    let has = Command::new("/usr/bin/python3").args(["-c", "import venv, ensurepip"]).status();
    if !has.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: no /usr/bin/python3 with venv");
        return;
    }
    let python = &presets()["python"];
    // The machine's own, and not one that only the caller's PATH has.
    let env =
        BTreeMap::from([("PATH".to_owned(), "/root/.local/bin:/usr/local/bin:/usr/bin:/bin".to_owned())]);
    for expected in [StepOutcome::Ran, StepOutcome::Skipped] {
        let mut last = None;
        for step in steps(python) {
            last = Some(run_step(&room, "python", &step, &env, None, &mut |_| {}).await.unwrap());
        }
        assert_eq!(last, Some(expected));
    }
    let prefix = room.sh("/root/.local/bin/python -c 'import sys; print(sys.prefix)'").await;
    assert_eq!(prefix, "/root/.local");
    assert!(room.sh("/root/.local/bin/pip --version").await.starts_with("pip "));
}

#[tokio::test]
async fn git_tools_set_defaults_once() {
    let Some(room) = Room::new() else { return };
    let has = Command::new("git").arg("--version").status();
    if !has.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: no git");
        return;
    }
    let preset = &presets()["git-tools"];
    assert_eq!(apply(&room, preset).await.0[2], StepOutcome::Ran);
    assert_eq!(room.sh("git config --global init.defaultBranch").await, "main");
    assert_eq!(apply(&room, preset).await.0[2], StepOutcome::Skipped);
}

/// Two that stand for those from the npm registry: a script, and a program that a platform's own package brings.
#[tokio::test]
async fn tools_from_the_npm_registry_run_and_are_installed_once() {
    let Some(room) = Room::new() else { return };
    let node = Command::new("/usr/bin/node").arg("--version").output();
    let major = node.ok().and_then(|out| String::from_utf8_lossy(&out.stdout).get(1..3)?.parse::<u32>().ok());
    if major.is_none_or(|major| major < 20) {
        eprintln!("SKIPPED: no /usr/bin/node of version 20 or newer");
        return;
    }
    for name in ["gemini", "mise"] {
        let preset = &presets()[name];
        let (first, output) = apply(&room, preset).await;
        assert_eq!(first, [StepOutcome::Skipped, StepOutcome::Ran], "{name}: {output}");
        let again = apply(&room, preset).await.0;
        assert_eq!(again, [StepOutcome::Skipped, StepOutcome::Skipped], "{name}");
        let version = room.sh(&format!("PATH=/root/.local/bin:$PATH {name} --version")).await;
        assert!(version.contains(&preset.vars["VERSION"]), "{name}: {version}");
    }
}

#[tokio::test]
async fn what_is_missing_is_said() {
    let Some(room) = Room::busybox() else { return };
    for (name, missing) in [
        ("node", "npm is missing"),
        ("python", "python3 of at least"),
        ("rust", "Rust of at least"),
        ("amp", "needs npm"),
        ("claude", "needs npm"),
        ("codex", "needs npm"),
        ("copilot", "needs npm"),
        ("crush", "needs npm"),
        ("gemini", "needs npm"),
        ("kilo", "needs npm"),
        ("mise", "needs npm"),
        ("openclaw", "needs npm"),
        ("opencode", "needs npm"),
        ("nix", "Nix of at least"),
        ("git-tools", "git of at least"),
    ] {
        let step = PresetStep { retries: 0, ..steps(&presets()[name]).remove(0) };
        let error = run_step(&room, name, &step, &BTreeMap::new(), None, &mut |_| {}).await.unwrap_err();
        assert!(error.to_string().contains(missing), "{name}: {error}");
    }
}
