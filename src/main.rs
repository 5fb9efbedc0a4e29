//! The `pocketenv` program: reads its environment once and hands over to the command line.

use std::process::ExitCode;

use pocketenv::cli::{self, Process};

fn main() -> ExitCode {
    // Before anything else: the engine starts this program again as its helper, which must stay single-threaded.
    #[cfg(target_os = "linux")]
    if std::env::args_os().nth(1).is_some_and(|argument| argument == pocketenv::engine::shim::ARGUMENT) {
        return pocketenv::engine::shim::main();
    }
    let place = std::env::current_dir().and_then(|cwd| Ok((cwd, std::env::current_exe()?)));
    let (cwd, executable) = match place {
        Ok(place) => place,
        Err(error) => {
            eprintln!("error: the working directory or this program cannot be found: {error}");
            return ExitCode::FAILURE;
        }
    };
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    ExitCode::from(cli::run(Process {
        args: std::env::args_os().collect(),
        vars: std::env::vars_os().filter_map(text).collect(),
        cwd,
        executable,
    }))
}
