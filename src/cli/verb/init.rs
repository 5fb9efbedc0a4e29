//! `init`: a first manifest, never over one that exists.

use std::io::Write as _;

use serde_json::json;

use crate::cli::args::InitArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::manifest;

/// Names under which a manifest is found.
const NAMES: [&str; 2] = ["pocketenv.yaml", "pocketenv.yml"];

/// Writes the manifest and says what it chose.
pub fn run(cx: &Context, args: &InitArgs) -> Result<Exit, CliError> {
    let dir = cx.app.environment().cwd.join(&args.dir);
    let path = dir.join(NAMES[0]);
    let shown_dir = args.dir.strip_prefix(".").unwrap_or(&args.dir);
    let shown = shown_dir.join(NAMES[0]);
    let failed = |error: std::io::Error| CliError::system(format!("writing {}", shown.display()), &error);
    let starter = manifest::starter(&dir);
    if let Some(name) = NAMES.iter().find(|name| dir.join(name).symlink_metadata().is_ok()) {
        return Err(there_already(&shown_dir.join(name)));
    }
    // `create_new` settles the race with whoever else writes one.
    let mut file = match std::fs::OpenOptions::new().write(true).create_new(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Err(there_already(&shown)),
        Err(error) => return Err(failed(error)),
    };
    file.write_all(starter.text.as_bytes()).map_err(failed)?;
    for choice in &starter.chosen {
        cx.ui.say(choice);
    }
    if cx.ui.is_machine() {
        cx.ui.value(&json!({ "path": path, "chosen": starter.chosen }))?;
    } else {
        cx.ui.say(&format!("wrote {}", shown.display()));
        cx.ui.hint("`pocketenv plan` shows what it would do, `pocketenv apply` does it");
    }
    Ok(Exit::Done)
}

fn there_already(path: &std::path::Path) -> CliError {
    CliError::new(Exit::Failed, format!("{} is there already and is not overwritten", path.display()))
}
