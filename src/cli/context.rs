//! What every verb has at hand: the flags with their defaults, and how to print.

use std::future::Future;

use super::Process;
use super::args::{GlobalArgs, ProgressHow};
use super::error::CliError;
use super::ui::exit::Exit;
use super::ui::{Ui, UiOptions};

/// What every verb has at hand.
pub struct Context {
    /// What the process was started with.
    pub process: Process,
    /// Flags that every verb takes.
    pub global: GlobalArgs,
    /// How to print.
    pub ui: Ui,
}

impl Context {
    /// Lays the defaults of the environment under the flags.
    ///
    /// # Errors
    /// A default that makes no sense, with what is needed to say so.
    pub fn new(process: Process, global: GlobalArgs) -> Result<Self, (Ui, CliError)> {
        let set = |name: &str| process.vars.get(name).is_some_and(|value| !value.is_empty());
        let mut options = UiOptions {
            form: global.output.unwrap_or_default(),
            color: global.color,
            progress: global.progress.unwrap_or_default(),
            quiet: global.quiet,
            no_color: set("NO_COLOR"),
            ci: set("CI"),
            dumb: process.vars.get("TERM").is_some_and(|term| term == "dumb"),
        };
        if let (None, Some(how)) =
            (global.progress, process.vars.get("POCKETENV_PROGRESS").filter(|v| !v.is_empty()))
        {
            match <ProgressHow as clap::ValueEnum>::from_str(how, true) {
                Ok(how) => options.progress = how,
                Err(_) => {
                    let message =
                        format!("POCKETENV_PROGRESS is `{how}`; expected auto, tty, plain, json or quiet");
                    return Err((Ui::new(options), CliError::usage(message)));
                }
            }
        }
        Ok(Self { ui: Ui::new(options), process, global })
    }

    /// A variable of the environment that is set to something.
    pub fn var(&self, name: &str) -> Option<&str> {
        self.process.vars.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Runs a use case to its end.
    ///
    /// # Errors
    /// What the use case answers, or the system if no thread can be started.
    pub fn block_on<T>(&self, work: impl Future<Output = Result<T, CliError>>) -> Result<T, CliError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .map_err(|error| CliError::new(Exit::Failed, format!("starting: {error}")))?;
        let result = runtime.block_on(work);
        // A read of a terminal cannot be called off; it must not hold us up.
        runtime.shutdown_background();
        result
    }
}
