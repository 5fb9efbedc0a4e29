//! The emulator of Daytona: its SDKs run against it, and leave nothing behind.

use std::path::Path;

use super::sdk::{Emulator, sdks};

/// The engine's sandboxes, as the disk has them.
fn boxes(home: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(home.join("pocketenv/data/engine/boxes")).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn with_sdks(program: impl FnOnce(&Emulator, &Path)) {
    let Some(sdks) = sdks() else { return };
    let home = tempfile::Builder::new().prefix("pocketenv-it-").tempdir().unwrap();
    let emulator = Emulator::start("daytona", home.path(), &[]);
    program(&emulator, &sdks);
    emulator.stop();
    assert_eq!(boxes(home.path()), Vec::<String>::new());
}

#[test]
fn the_python_sdk_does_all_of_it() {
    with_sdks(|emulator, sdks| emulator.python(sdks, "all.py"));
}

#[test]
fn the_javascript_sdk_does_all_of_it() {
    with_sdks(|emulator, sdks| emulator.node(sdks, "all.mjs"));
}
