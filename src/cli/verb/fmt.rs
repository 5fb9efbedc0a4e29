//! `fmt`: manifests in the standard form, with their comments.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::cli::args::FmtArgs;
use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;
use crate::cli::ui::lines;
use crate::manifest::{self, MAX_FILE_BYTES};

/// Rewrites files that are not in the standard form, or names them. `-` is a filter from stdin to stdout.
pub fn run(cx: &Context, args: &FmtArgs) -> Result<Exit, CliError> {
    if args.paths == [PathBuf::from("-")] {
        let text = bounded(&mut std::io::stdin().lock(), Path::new("standard input"))?;
        let formatted = manifest::format("<stdin>", &text).map_err(CliError::Manifest)?;
        cx.ui.write(&formatted)?;
        return Ok(Exit::Done);
    }
    let mut changed = Vec::new();
    for path in files(cx, args)? {
        let failed = |error: std::io::Error| CliError::system(path.display(), &error);
        let text = bounded(&mut std::fs::File::open(&path).map_err(failed)?, &path)?;
        let formatted = manifest::format(&path.to_string_lossy(), &text).map_err(CliError::Manifest)?;
        if formatted != text {
            if !args.check {
                replace(&path, &formatted).map_err(failed)?;
            }
            changed.push(path.display().to_string());
        }
    }
    if cx.ui.is_machine() {
        cx.ui.value(&json!({ "changed": changed }))?;
    } else {
        cx.ui.write(&lines(changed.clone()))?;
    }
    Ok(if args.check && !changed.is_empty() { Exit::Failed } else { Exit::Done })
}

/// The files that are meant: those named, else `-f`, else the manifest of this directory with all that belongs to it.
fn files(cx: &Context, args: &FmtArgs) -> Result<Vec<PathBuf>, CliError> {
    if !args.paths.is_empty() {
        return Ok(args.paths.clone());
    }
    if !cx.selection().files.is_empty() {
        return Ok(cx.selection().files.clone());
    }
    let environment = cx.app.environment();
    manifest::discover(&environment.cwd, &environment.vars).map_err(CliError::Manifest)
}

fn bounded(from: &mut dyn std::io::Read, name: &Path) -> Result<String, CliError> {
    let mut text = String::new();
    let read = from.take(MAX_FILE_BYTES + 1).read_to_string(&mut text);
    read.map_err(|error| CliError::system(name.display(), &error))?;
    if u64::try_from(text.len()).is_ok_and(|length| length > MAX_FILE_BYTES) {
        return Err(CliError::new(Exit::InvalidConfiguration, format!("{} is too large", name.display())));
    }
    Ok(text)
}

/// Writes beside the file and renames: whoever is interrupted has the old file or the new one. A link is followed, modes are kept.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let path = path.canonicalize()?;
    let mut new = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new("/")))?;
    new.write_all(text.as_bytes())?;
    new.as_file().set_permissions(std::fs::metadata(&path)?.permissions())?;
    new.persist(&path)?;
    Ok(())
}
