//! The `pocketenv` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    if std::env::args_os().nth(1).is_some_and(|argument| argument == pocketenv::engine::shim::ARGUMENT) {
        return pocketenv::engine::shim::main();
    }
    ExitCode::SUCCESS
}
