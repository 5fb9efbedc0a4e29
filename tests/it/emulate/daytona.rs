//! The emulator of Daytona: its SDKs run against it, and leave nothing behind.

use std::path::Path;

use super::sdk::{Emulator, boxes, kept, sdks};

fn with_sdks(program: impl FnOnce(&Emulator, &Path)) {
    let Some(sdks) = sdks() else { return };
    let home = tempfile::Builder::new().prefix("pocketenv-it-").tempdir().unwrap();
    let emulator =
        Emulator::start("daytona", home.path(), &["--template", "debian:12=host", "--template", "base=host"]);
    program(&emulator, &sdks);
    emulator.stop();
    assert_eq!(boxes(home.path()), Vec::<String>::new());
    assert_eq!(kept(home.path()), Vec::<String>::new());
}

#[test]
fn the_python_sdk_keeps_things() {
    with_sdks(|emulator, sdks| emulator.python(sdks, "kept.py"));
}

#[test]
fn the_python_sdk_does_all_of_it() {
    with_sdks(|emulator, sdks| emulator.python(sdks, "all.py"));
}

#[test]
fn the_python_sdk_works_with_repositories() {
    with_sdks(|emulator, sdks| emulator.python(sdks, "repositories.py"));
}

#[test]
fn the_javascript_sdk_does_all_of_it() {
    with_sdks(|emulator, sdks| emulator.node(sdks, "all.mjs"));
}

/// A manifest with what outlives sandboxes.
const KEPT: &str = "\
version: 1
name: shop
secrets: { KEY: { env: DAYTONA_KEY } }
defaults: { provider: daytona }
providers: { daytona: { api_key: { secret: KEY }, api_url: URL } }
volumes: { data: {} }
sandboxes:
  api:
    image: debian:12
    resources: { cpu: 1, memory: 1GiB }
    env: { GREETING: good morning }
    volumes: [ { name: data, path: /data } ]
    network: { egress: deny, allow: [ \"a.invalid\" ] }
";

#[test]
fn a_project_has_snapshots_forks_and_volumes_at_daytona() {
    let home = tempfile::Builder::new().prefix("pocketenv-it-").tempdir().unwrap();
    let emulator =
        Emulator::start("daytona", home.path(), &["--template", "debian:12=host", "--template", "base=host"]);
    let file = home.path().join("pocketenv.yaml");
    let manifest = KEPT.replace("URL", &emulator.url);
    std::fs::write(&file, &manifest).unwrap();
    super::e2b::snapshots_forks_and_volumes(home.path(), &file, &manifest, &["DAYTONA_KEY"]);
    emulator.stop();
    assert_eq!(boxes(home.path()), Vec::<String>::new());
    assert_eq!(kept(home.path()), Vec::<String>::new());
}
