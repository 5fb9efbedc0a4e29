//! The presets that come with Pocketenv: well-formed, and as many of them for real as a test may take time for.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

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
        "amp bun claude codex copilot crush cursor deno gemini git-tools kilo kiro mise nix node nullclaw openclaw opencode pi pkgx \
         python rust uv wasmer zeroclaw"
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
                let checked = text.replace("| sha256sum -c -", "| CHECKED");
                for unwanted in ["&>", "[[", "| sh", "|sh", "wget", "sudo", "<(", "function ", "local "] {
                    assert!(!checked.contains(unwanted), "{at} has `{unwanted}`");
                }
                let fetches = text.lines().any(|line| line.starts_with("curl "));
                assert!(!fetches || checked.contains("| CHECKED"), "{at} takes what it gets");
            }
        }
    }
}

#[test]
fn each_passes_the_linter() {
    let all = presets();
    let scripts = all.iter().flat_map(|(name, preset)| {
        preset.steps.iter().flat_map(move |step| {
            let texts = [Some(&step.run), step.unless.as_ref(), step.only_if.as_ref()];
            texts.into_iter().flatten().map(move |text| (format!("{name}: {}", step.name), text))
        })
    });
    for (at, text) in scripts {
        let mut lint = Command::new("shellcheck");
        lint.args(["--shell", "sh", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let Ok(mut child) = lint.spawn() else {
            eprintln!("SKIPPED: no shellcheck");
            return;
        };
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{at}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

async fn apply(room: &Room, preset: &Preset, shell: &str) -> (Vec<StepOutcome>, String) {
    let path = format!("/root/.local/bin:{}", std::env::var("PATH").unwrap());
    let mut env = BTreeMap::from([("PATH".to_owned(), path)]);
    // How this machine gets out is not the sandbox's to know.
    let outside = ["HTTPS_PROXY", "https_proxy", "NODE_EXTRA_CA_CERTS"];
    env.extend(outside.into_iter().filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?))));
    let mut output = String::new();
    let mut outcomes = Vec::new();
    for step in steps(preset) {
        let step = PresetStep { shell: shell.to_owned(), ..step };
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
    assert_eq!(apply(&room, preset, "bash").await.0[2], StepOutcome::Ran);
    assert_eq!(room.sh("git config --global init.defaultBranch").await, "main");
    assert_eq!(apply(&room, preset, "sh").await.0[2], StepOutcome::Skipped);
}

/// What runs first in a `sh` is done, and known to be done in a `bash` too.
async fn twice(room: &Room, name: &str, program: &str) {
    let preset = &presets()[name];
    let (first, output) = apply(room, preset, "sh").await;
    assert_eq!(first.last(), Some(&StepOutcome::Ran), "{name}: {output}");
    for shell in ["bash", "sh"] {
        let again = apply(room, preset, shell).await.0;
        assert!(again.iter().all(|outcome| *outcome == StepOutcome::Skipped), "{name} in {shell}: {again:?}");
    }
    let version = room.sh(&format!("PATH=/root/.local/bin:$PATH {program} --version")).await;
    assert!(version.contains(&preset.vars["VERSION"]), "{name}: {version}");
}

/// Those that stand for all from the npm registry: scripts, programs that a platform's own package brings, and one that needs a newer Node.js than
/// this machine may have.
#[tokio::test]
async fn tools_from_the_npm_registry_run_and_are_installed_once() {
    let Some(room) = Room::new() else { return };
    let node = Command::new("/usr/bin/node").arg("--version").output();
    let major = node.ok().and_then(|out| String::from_utf8_lossy(&out.stdout).get(1..3)?.parse::<u32>().ok());
    if major.is_none_or(|major| major < 20) {
        eprintln!("SKIPPED: no /usr/bin/node of version 20 or newer");
        return;
    }
    for name in ["gemini", "mise", "bun"] {
        twice(&room, name, name).await;
    }
    let wanted = &presets()["node"].vars["VERSION"];
    if major == wanted.split('.').next().and_then(|major| major.parse().ok()) {
        apply(&room, &presets()["node"], "sh").await;
    } else {
        twice(&room, "node", "node").await;
    }
    twice(&room, "pi", "pi").await;
}

#[tokio::test]
async fn uv_comes_from_the_python_registry_once() {
    let Some(room) = Room::new() else { return };
    let has = Command::new("/usr/bin/python3").args(["-c", "import venv, ensurepip"]).status();
    if !has.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: no /usr/bin/python3 with venv");
        return;
    }
    twice(&room, "uv", "uv").await;
}

/// What vendors offer as a file is taken with the digest that the preset has, and with no other. The files here have the shape of theirs.
#[tokio::test]
async fn a_file_of_a_vendor_is_taken_by_its_digest_alone() {
    for (name, program, inside, files) in [
        (
            "cursor",
            "cursor-agent",
            Some("dist-package/cursor-agent"),
            ["V/linux/x64/agent-cli-package.tar.gz", "V/linux/arm64/agent-cli-package.tar.gz"],
        ),
        (
            "kiro",
            "kiro-cli",
            Some("kirocli/bin/kiro-cli"),
            ["V/kirocli-x86_64-linux.tar.gz", "V/kirocli-aarch64-linux.tar.gz"],
        ),
        (
            "wasmer",
            "wasmer",
            Some("bin/wasmer"),
            ["vV/wasmer-linux-amd64.tar.gz", "vV/wasmer-linux-aarch64.tar.gz"],
        ),
        ("nullclaw", "nullclaw", None, ["vV/nullclaw-linux-x86_64.bin", "vV/nullclaw-linux-aarch64.bin"]),
    ] {
        let Some(room) = Room::new() else { return };
        let mut preset = presets().remove(name).unwrap();
        let version = preset.vars["VERSION"].clone();
        let program_text = format!("#!/bin/sh\necho {program} {version}\n");
        let program_text = match name {
            "cursor" => program_text.replace("cursor-agent ", ""),
            _ => program_text,
        };
        let made = room.work().join("made");
        let path = made.join(inside.unwrap_or(program));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, program_text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        for file in files {
            let to = room.work().join("vendor").join(file.replace('V', &version));
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            match inside {
                Some(inside) => {
                    let top = inside.split('/').next().unwrap();
                    let packed =
                        Command::new("tar").arg("-czf").arg(&to).arg("-C").arg(&made).arg(top).status();
                    assert!(packed.unwrap().success());
                }
                None => drop(std::fs::copy(&path, &to).unwrap()),
            }
        }
        preset.vars.insert("FROM".to_owned(), format!("file://{}", room.at("vendor")));
        let install = |preset: &Preset| PresetStep { retries: 0, ..steps(preset).remove(1) };
        let env =
            BTreeMap::from([("PATH".to_owned(), "/root/.local/bin:/usr/local/bin:/usr/bin:/bin".to_owned())]);
        let refused = run_step(&room, name, &install(&preset), &env, None, &mut |_| {}).await.unwrap_err();
        assert!(refused.to_string().contains("did NOT match"), "{name}: {refused}");
        assert_eq!(room.sh("ls /root/.local/bin").await, "", "{name}");

        for (variable, file) in ["SHA256_X86_64", "SHA256_AARCH64"].into_iter().zip(files) {
            let bytes = std::fs::read(room.work().join("vendor").join(file.replace('V', &version))).unwrap();
            preset.vars.insert(variable.to_owned(), pocketenv::model::sha256_hex(&bytes));
        }
        for (shell, expected) in
            [("sh", StepOutcome::Ran), ("bash", StepOutcome::Skipped), ("sh", StepOutcome::Skipped)]
        {
            let step = PresetStep { shell: shell.to_owned(), ..install(&preset) };
            let mut said = String::new();
            let outcome = run_step(&room, name, &step, &env, None, &mut |text| said.push_str(text)).await;
            assert_eq!(outcome.unwrap_or_else(|error| panic!("{name}: {error}")), expected, "{name}: {said}");
        }
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
        ("bun", "needs npm"),
        ("deno", "needs npm"),
        ("pi", "needs npm"),
        ("uv", "needs python3"),
        ("pkgx", "needs cargo"),
        ("zeroclaw", "needs cargo"),
        ("cursor", "needs curl"),
        ("kiro", "needs curl"),
        ("nullclaw", "needs curl"),
        ("wasmer", "needs curl"),
        ("nix", "Nix of at least"),
        ("git-tools", "git of at least"),
    ] {
        let step = PresetStep { retries: 0, ..steps(&presets()[name]).remove(0) };
        let error = run_step(&room, name, &step, &BTreeMap::new(), None, &mut |_| {}).await.unwrap_err();
        assert!(error.to_string().contains(missing), "{name}: {error}");
    }
}
