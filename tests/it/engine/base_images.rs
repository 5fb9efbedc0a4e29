//! The base images in `images/`: each read by our own parser and held against the rules of the house, and one built for real.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use pocketenv::build::{Command, Instruction, Kind, Request, build, parse};
use pocketenv::image::Reference;
use pocketenv::provider::base;

use super::images::{pocketenv, registry, tool};
use super::support::{Fixture, is_root};
use crate::scenarios::world::have;

fn images() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("images")
}

fn shell(instruction: &Instruction) -> &str {
    match &instruction.kind {
        Kind::Run(Command::Shell(text), _) => text,
        _ => "",
    }
}

#[test]
fn each_is_pinned_for_an_ordinary_user_and_takes_nothing_unseen() {
    let directories = fs::read_dir(images()).unwrap().map(|entry| entry.unwrap());
    let directories: BTreeSet<String> = directories
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    assert_eq!(base::names().map(str::to_owned).collect::<BTreeSet<_>>(), directories);
    for name in base::names() {
        let text = base::containerfile(name).unwrap();
        let instructions =
            parse(&text).unwrap_or_else(|wrong| panic!("{name}:{}: {}", wrong.line, wrong.what));
        let kinds: Vec<&Kind> = instructions.iter().map(|instruction| &instruction.kind).collect();
        let Kind::Arg(args) = kinds[0] else { panic!("{name}: what it begins with is not first") };
        let (_, tag) = args[0].1.as_deref().unwrap().rsplit_once(':').unwrap();
        assert!(tag.split('.').count() >= 3, "{name}: `{tag}` moves");
        let last_user = kinds.iter().rev().find_map(|kind| match kind {
            Kind::User(user) => Some(user.as_str()),
            _ => None,
        });
        assert_eq!(last_user, Some("dev"), "{name}");
        let env: Vec<_> = kinds
            .iter()
            .filter_map(|kind| match kind {
                Kind::Env(pairs) => Some(pairs),
                _ => None,
            })
            .flatten()
            .collect();
        assert!(env.iter().any(|(name, value)| name == "LANG" && value == "C.UTF-8"), "{name}");
        assert!(
            kinds.iter().any(|kind| matches!(kind, Kind::Shell(shell) if shell[0] == "/bin/bash")),
            "{name}"
        );
        for instruction in &instructions {
            let run = shell(instruction).replace("| sha256sum -c -", "| CHECKED");
            for unwanted in ["curl ", "wget ", "| sh", "|sh", "| bash", "@latest"] {
                let installs = unwanted == "curl " && run.contains("apt-get install");
                let checked = unwanted == "curl " && run.contains("| CHECKED");
                assert!(
                    installs || checked || !run.contains(unwanted),
                    "{name}:{}: `{unwanted}`",
                    instruction.line
                );
            }
            let installs = run.contains("apt-get install");
            assert!(
                !installs
                    || run.contains("--no-install-recommends") && run.contains("rm -rf /var/lib/apt/lists/*")
            );
            if let Kind::From { image, platform, .. } = &instruction.kind {
                assert!(platform.is_none(), "{name}: for one platform");
                let tag = image.rsplit_once(':').map_or("", |(_, tag)| tag);
                let is_ours = matches!(image.as_str(), "base" | "${FROM}");
                assert!(is_ours || tag.split('.').count() >= 3, "{name}: `{image}` moves");
            }
        }
        // A tool of npm has the version of the preset of the same name.
        let version = kinds.iter().find_map(|kind| match kind {
            Kind::Arg(args) if args[0].0 == "VERSION" => args[0].1.clone(),
            _ => None,
        });
        let preset = images().with_file_name("presets").join(name).with_extension("yaml");
        match version {
            Some(version) => {
                let preset = fs::read_to_string(&preset).unwrap();
                assert!(preset.contains(&format!("VERSION: \"{version}\"")), "{name} and its preset differ");
            }
            None => assert!(matches!(name, "base" | "nix"), "{name} is not pinned"),
        }
    }
}

#[test]
fn a_name_that_is_none_is_refused_at_its_line() {
    let fixture = Fixture::new();
    for (name, code) in base::names().map(|name| (name, 0)).chain([("clawed", 3)]) {
        let manifest = format!("version: 1\nname: b\nsandboxes:\n  box: {{ base: {name} }}\n");
        fs::write(fixture.dir.path().join("pocketenv.yaml"), manifest).unwrap();
        for provider in ["local", "docker"] {
            let (found, text) = pocketenv(&fixture, &["validate", "--provider", provider]);
            assert_eq!(found, code, "{provider}: {text}");
            assert!(
                code == 0 || text.contains("pocketenv.yaml:4:") && text.contains("use one of amp, "),
                "{text}"
            );
        }
    }
}

/// On a Debian of the distribution's mirror, which a registry on the loopback serves.
#[tokio::test]
async fn one_is_built_for_real() {
    let fixture = Fixture::new();
    if !is_root() {
        eprintln!("SKIPPED: mmdebstrap without root needs more than this");
        return;
    }
    if !have(&["mmdebstrap", "umoci", "skopeo"]) {
        return;
    }
    let Some(registry) = registry(fixture.dir.path()).await else { return };
    let path = |name: &str| fixture.dir.path().join(name).display().to_string();
    let made = std::process::Command::new("mmdebstrap")
        .args(["--quiet", "--variant=minbase", "--include=ca-certificates", "bookworm", &path("debian.tar")])
        .output()
        .unwrap();
    if !made.status.success() {
        eprintln!("SKIPPED: no mirror of Debian: {}", String::from_utf8_lossy(&made.stderr));
        return;
    }
    let (layout, image) = (path("layout"), format!("{}:v1", path("layout")));
    tool("umoci", &["init", "--layout", &layout]);
    tool("umoci", &["new", "--image", &image]);
    tool("umoci", &["raw", "add-layer", "--image", &image, &path("debian.tar")]);
    let from = format!("{}/debian:v1", registry.host);
    tool(
        "skopeo",
        &[
            "--insecure-policy",
            "copy",
            "--dest-tls-verify=false",
            &format!("oci:{image}"),
            &format!("docker://{from}"),
        ],
    );
    // What base images begin with is not to be had here: that name stands for this Debian.
    let context = fixture.dir.path().join("context");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("Containerfile"), format!("FROM {from}\n")).unwrap();
    let shared = base::containerfile("base").unwrap();
    let (_, rest) = shared.split_once("ARG FROM=").unwrap();
    let name: Reference = rest.lines().next().unwrap().parse().unwrap();
    let request = Request {
        context: &context,
        file: None,
        sha256: None,
        name: Some(&name),
        pins: &Default::default(),
        secrets: &Default::default(),
    };
    drop(build(&fixture.engine, &request, &|_| ()).await.unwrap());

    let manifest = "version: 1\nname: based\nsandboxes: { box: { base: nix } }\n";
    fs::write(fixture.dir.path().join("pocketenv.yaml"), manifest).unwrap();
    let run = |args: &[&str]| {
        let (code, text) = pocketenv(&fixture, args);
        assert_eq!(code, 0, "{args:?}: {text}");
        text
    };
    run(&["apply", "--yes"]);
    let script =
        "id -un; pwd; locale charmap; command -v sudo git gcc python3 | wc -l; nix --version; echo $PATH";
    let seen = run(&["exec", "box", "--", "bash", "-c", script]);
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[..4], ["dev", "/home/dev", "UTF-8", "4"], "{seen}");
    assert!(lines[4].starts_with("nix (Nix) ") && lines[5].starts_with("/home/dev/.local/bin:"), "{seen}");
    assert!(run(&["describe", "box"]).contains("its user, dev"));
    run(&["plan", "--detailed-exitcode"]);
}
