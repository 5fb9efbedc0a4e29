//! The command line: flags apart from behaviour, one file per verb, and everything that people see.
//!
//! A verb is thin: flags in, one use case of `app/`, the answer out. Data goes to stdout, people read stderr.

pub mod args;
mod complete;
mod context;
mod error;
mod session;
pub mod ui;
mod verb;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry;

use args::{Cli, Verb};
use context::Context;
use error::CliError;
use ui::exit::Exit;
use verb::control::Control;

/// What the process was started with. It is read once, in `main`.
#[derive(Clone, Debug)]
pub struct Process {
    /// The arguments, the program first.
    pub args: Vec<OsString>,
    /// The environment, as far as it is UTF-8.
    pub vars: BTreeMap<String, String>,
    /// The working directory.
    pub cwd: PathBuf,
    /// This program.
    pub executable: PathBuf,
}

/// Runs the command line; returns the exit code.
pub fn run(process: Process) -> u8 {
    if let Some(answer) = complete::answer(&process) {
        // A shell that does not read it does not need it.
        let _ = std::io::Write::write_all(&mut std::io::stdout(), &answer);
        return Exit::Done.code();
    }
    let cli = match args::parse(&with_long_out(&process.args)) {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe: nobody is there to be told.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.code() } else { Exit::Done.code() };
        }
    };
    let Cli { global, verb } = cli;
    let mut context = match Context::new(process, global) {
        Ok(context) => context,
        Err((ui, error)) => return error.report(&ui).code(),
    };
    let exit = match install_log(&context).and_then(|()| each_project(&mut context, &verb)) {
        Ok(exit) => exit,
        Err(error) => error.report(&context.ui),
    };
    exit.code()
}

/// Runs the verb for every project that is meant, which is one unless `-f` names a directory of many. What fails for one of many does not keep
/// the others from being done.
fn each_project(cx: &mut Context, verb: &Verb) -> Result<Exit, CliError> {
    let selections = cx.selections()?;
    let many = selections.len() > 1;
    let takes_many = matches!(
        verb,
        Verb::Validate(_)
            | Verb::Config(_)
            | Verb::Plan(_)
            | Verb::Apply(_)
            | Verb::Destroy(_)
            | Verb::Status(_)
    );
    if many && !takes_many {
        let text = format!("there are {} projects, and this verb takes one; name its file", selections.len());
        return Err(CliError::usage(text));
    }
    let mut ends = Vec::new();
    for selection in selections {
        cx.select(selection);
        match dispatch(cx, verb) {
            Err(error) if !many => return Err(error),
            ended => ends.push(ended.unwrap_or_else(|error| error.report(&cx.ui)).code()),
        }
    }
    Ok(together(&ends))
}

/// The end of several runs: theirs if they agree.
fn together(ends: &[u8]) -> Exit {
    let good = |code: &u8| [Exit::Done.code(), Exit::ChangesPending.code()].contains(code);
    match ends {
        [first, rest @ ..] if rest.iter().all(|code| code == first) => Exit::Code(i32::from(*first)),
        all if all.contains(&Exit::Interrupted.code()) => Exit::Interrupted,
        all if all.iter().all(good) => Exit::ChangesPending,
        _ => Exit::Partly,
    }
}

/// `plan -out FILE` is what people type; a short flag `-o` with the value `ut` is what it would mean.
fn with_long_out(args: &[OsString]) -> Vec<OsString> {
    let mut planning = false;
    let mut flags = true;
    args.iter()
        .map(|arg| {
            flags &= arg != "--";
            planning |= arg == "plan" || arg == "diff";
            match arg.to_str() {
                Some("-out") if planning && flags => "--out".into(),
                Some(text) if planning && flags && text.starts_with("-out=") => format!("-{text}").into(),
                _ => arg.clone(),
            }
        })
        .collect()
}

/// `POCKETENV_LOG`, a level or `TARGET=LEVEL,…` as `tracing` has them, to stderr. Without it people are told what they should know.
fn install_log(context: &Context) -> Result<(), CliError> {
    let log =
        tracing_subscriber::fmt::layer().with_writer(|| ui::view::LogWriter).with_ansi(context.ui.err.0);
    // Nobody else installs one, so it cannot fail.
    let _ = match context.var("POCKETENV_LOG") {
        None => {
            let filter = Targets::new().with_target("pocketenv", LevelFilter::WARN);
            registry().with(filter).with(log.without_time().with_target(false)).try_init()
        }
        Some(filter) => {
            let filter: Targets =
                filter.parse().map_err(|error| CliError::usage(format!("POCKETENV_LOG: {error}")))?;
            registry().with(filter).with(log).try_init()
        }
    };
    Ok(())
}

fn dispatch(cx: &Context, verb: &Verb) -> Result<Exit, CliError> {
    match verb {
        // These open no store and start no runtime.
        Verb::Init(args) => verb::init::run(cx, args),
        Verb::Validate(args) => verb::validate::validate(cx, args),
        Verb::Fmt(args) => verb::fmt::run(cx, args),
        Verb::Config(_) => verb::validate::config(cx),
        Verb::Schema(args) => verb::schema::run(cx, args),
        Verb::Preset(command) => verb::preset::run(cx, command),
        Verb::Doctor(args) => match &args.isolation {
            Some(name) => cx.block_on(verb::doctor::isolation(cx, name)),
            None => verb::doctor::run(cx),
        },
        Verb::Completion(args) => verb::completion::run(cx, args),
        Verb::Version(_) => verb::version::run(cx),
        Verb::Man(args) => verb::man::run(cx, args),

        #[cfg(target_os = "linux")]
        Verb::Image(command) => cx.block_on(verb::image::run(cx, command)),
        Verb::Provider(command) => cx.block_on(verb::provider::run(cx, command)),
        Verb::Secret(command) => cx.block_on(verb::secret::run(cx, command)),
        Verb::Plan(args) => cx.block_on_one(verb::plan::run(cx, args)),
        Verb::Apply(args) => cx.block_on(verb::apply::run(cx, args)),
        Verb::Destroy(args) => cx.block_on(verb::destroy::run(cx, args)),
        Verb::Start(args) => cx.block_on(verb::control::run(cx, Control::Start, &args.control)),
        Verb::Stop(args) => cx.block_on(verb::control::run(cx, Control::Stop, &args.control)),
        Verb::Restart(args) => cx.block_on(verb::control::run(cx, Control::Restart, &args.control)),
        Verb::Pause(args) => cx.block_on(verb::control::run(cx, Control::Pause, &args.control)),
        Verb::Resume(args) => cx.block_on(verb::control::run(cx, Control::Resume, &args.control)),
        Verb::Snapshot(command) => cx.block_on(verb::snapshot::run(cx, command)),
        Verb::Fork(args) => cx.block_on(verb::fork::run(cx, args)),
        Verb::Watch(args) => cx.block_on(verb::watch::run(cx, args)),
        Verb::Status(args) => cx.block_on_one(verb::status::run(cx, args)),
        Verb::Ls(args) => cx.block_on(verb::ls::run(cx, args)),
        Verb::Ps(args) => cx.block_on(verb::ps::run(cx, args)),
        Verb::Ports(args) => cx.block_on(verb::ports::run(cx, args)),
        Verb::Egress(args) => cx.block_on(verb::egress::run(cx, args)),
        Verb::Describe(args) => cx.block_on(verb::describe::run(cx, args)),
        Verb::Events(args) => cx.block_on(verb::events::run(cx, args)),
        Verb::History(args) => cx.block_on(verb::history::run(cx, args)),
        Verb::State(command) => cx.block_on(verb::state::run(cx, command)),
        Verb::Rollback(args) => cx.block_on(verb::rollback::run(cx, args)),
        Verb::Gc(args) => cx.block_on(verb::gc::run(cx, args)),
        Verb::Import(args) => cx.block_on(verb::import::run(cx, args)),
        Verb::Wait(args) => cx.block_on(verb::wait::run(cx, args)),
        Verb::Exec(args) => cx.block_on_one(verb::exec::exec(cx, args)),
        Verb::Shell(args) => cx.block_on_one(verb::exec::shell(cx, args)),
        Verb::Session(command) => cx.block_on_one(verb::session::run(cx, command)),
        Verb::Rehearse(args) => cx.block_on(verb::rehearse::run(cx, args)),
        Verb::Sim(args) => cx.block_on(verb::sim::run(cx, args)),
        Verb::Emulate(command) => cx.block_on(verb::emulate::run(cx, command)),
        Verb::Logs(args) => cx.block_on(verb::logs::run(cx, args)),
        Verb::Controller(command) => cx.block_on(verb::controller::run(cx, command)),
        Verb::Cp(args) => cx.block_on(verb::cp::run(cx, args)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_projects_end_as_one() {
        assert_eq!(together(&[3, 3]).code(), 3);
        assert_eq!(together(&[0, 2]).code(), 2);
        assert_eq!(together(&[0, 1]).code(), 4);
        assert_eq!(together(&[0, 130]).code(), 130);
    }

    #[test]
    fn the_single_dash_of_out_is_understood_where_it_makes_sense() {
        let convert = |args: &[&str]| {
            let args: Vec<OsString> = args.iter().map(OsString::from).collect();
            with_long_out(&args).into_iter().map(|a| a.into_string().unwrap_or_default()).collect::<Vec<_>>()
        };
        assert_eq!(convert(&["p", "plan", "-out", "f"]), ["p", "plan", "--out", "f"]);
        assert_eq!(convert(&["p", "plan", "-out=f"]), ["p", "plan", "--out=f"]);
        assert_eq!(
            convert(&["p", "exec", "a", "--", "plan", "-out"]),
            ["p", "exec", "a", "--", "plan", "-out"]
        );
    }
}
