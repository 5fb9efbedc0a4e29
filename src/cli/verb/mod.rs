//! One file per verb: flags in, a use case, the answer out.

pub mod apply;
pub mod change;
pub mod completion;
pub mod control;
pub mod controller;
pub mod cp;
pub mod describe;
pub mod destroy;
pub mod doctor;
pub mod egress;
pub mod emulate;
pub mod events;
pub mod exec;
pub mod fmt;
pub mod fork;
pub mod gc;
pub mod history;
#[cfg(target_os = "linux")]
pub mod image;
pub mod import;
pub mod init;
pub mod logs;
pub mod ls;
pub mod man;
pub mod plan;
pub mod ports;
pub mod preset;
pub mod provider;
pub mod ps;
pub mod rehearse;
pub mod rollback;
pub mod schema;
pub mod secret;
pub mod session;
pub mod sim;
pub mod snapshot;
pub mod state;
pub mod status;
pub mod validate;
pub mod version;
pub mod wait;
pub mod watch;

use std::path::Path;

use super::error::CliError;
use crate::model::Image;

/// Where an image is written to, its path made absolute: a directory or an archive of this machine.
fn target(cwd: &Path, text: &str) -> Result<String, CliError> {
    match Image::file(text) {
        Some((transport @ ("oci" | "oci-archive"), path, name)) if !path.is_empty() => {
            let path = std::path::absolute(cwd.join(path)).map_err(|error| CliError::system(path, &error))?;
            Ok(format!("{transport}:{}{name}", path.display()))
        }
        _ => Err(CliError::usage(format!(
            "`{}` is no place for an image; expected `oci:DIR[:NAME]` or `oci-archive:FILE[:NAME]`",
            text.escape_debug()
        ))),
    }
}
