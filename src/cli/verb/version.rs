//! `version`.

use serde::Serialize;

use crate::cli::context::Context;
use crate::cli::error::CliError;
use crate::cli::ui::exit::Exit;

#[derive(Serialize)]
struct Version {
    version: &'static str,
    os: &'static str,
    arch: &'static str,
}

/// Prints it.
pub fn run(cx: &Context) -> Result<Exit, CliError> {
    let version = Version {
        version: env!("CARGO_PKG_VERSION"),
        os: std::env::consts::OS,
        arch: std::env::consts::ARCH,
    };
    cx.ui.show(
        &version,
        || vec![version.version.to_owned()],
        |_| format!("pocketenv {} ({}-{})\n", version.version, version.os, version.arch),
    )?;
    Ok(Exit::Done)
}
