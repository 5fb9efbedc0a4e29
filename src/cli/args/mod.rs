//! What can be typed: flags and verbs as types, apart from what they do.
//!
//! Nothing here reads the environment; `Context` lays the `POCKETENV_*` defaults under the flags.

mod apply;
mod control;
mod controller;
mod emulate;
mod info;
mod inside;
mod look;
mod manifest;
mod repair;
mod session;
mod sim;
mod snapshot;
mod value;
mod watch;

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};

pub use apply::{ApplyArgs, DestroyArgs, PlanArgs, PlanFormat};
pub use control::{ControlArgs, PauseArgs, RestartArgs, ResumeArgs, StartArgs, StopArgs};
pub use controller::{ControllerCommand, ControllerStatusArgs, RunArgs};
pub use emulate::{EmulateArgs, EmulateCommand};
pub use info::{
    CompletionArgs, DoctorArgs, ImageCommand, ManArgs, PresetCommand, ProviderCommand, SecretCommand,
    VersionArgs,
};
pub use inside::{CpArgs, EgressArgs, ExecArgs, LogsArgs, PortsArgs, ShellArgs};
pub use look::{
    DescribeArgs, EventsArgs, HistoryArgs, LsArgs, PsArgs, StateCommand, StatusArgs, WaitArgs, WaitFor,
};
pub use manifest::{ConfigArgs, FmtArgs, InitArgs, SchemaArgs, SchemaOf, ValidateArgs, ValidateFormat};
pub use repair::{GcArgs, ImportArgs, RollbackArgs};
pub use session::{DetachKey, SessionArgs, SessionCommand};
pub use sim::{RehearseArgs, SimArgs};
pub use snapshot::{ForkArgs, SnapshotCommand};
pub use value::{BuildSecret, CopyEnd, KeyValue, LogSource};
pub use watch::WatchArgs;

/// The exit codes, for the end of every help.
const EXIT_CODES: &str = "\
Exit codes:
  0  done                    4  partly done       8    refused by policy
  1  failed                  5  timed out         64   usage
  2  changes pending (plan   6  locked            130  interrupted
     --detailed-exitcode)    7  not authorised
  3  invalid configuration   exec and shell return the code of what they run";

const EXAMPLES: &str = "\
Examples:
  pocketenv init                      write a commented pocketenv.yaml
  pocketenv plan                      show what apply would do, and why
  pocketenv apply                     make it so
  pocketenv exec api -- npm test      run a command inside a sandbox
  pocketenv logs -f api/web           follow a service
  pocketenv destroy                   remove what the manifest declares; volumes stay";

/// Sandboxes, declared. One manifest says what should exist; a reconcile loop makes it so.
#[derive(Debug, Parser)]
#[command(
    name = "pocketenv",
    version,
    disable_help_subcommand = true,
    propagate_version = false,
    arg_required_else_help = true,
    subcommand_required = true,
    max_term_width = 100,
    subcommand_value_name = "VERB",
    subcommand_help_heading = "Verbs",
    after_help = EXAMPLES
)]
pub struct Cli {
    /// Flags that every verb takes.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// Flags that every verb takes, before or after it.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Global options")]
pub struct GlobalArgs {
    /// A manifest, a directory of them, or - for stdin; repeat to merge [env: POCKETENV_FILE]
    #[arg(short, long, value_name = "PATH", global = true)]
    pub file: Vec<PathBuf>,
    /// The project's name, over the one in the manifest [env: POCKETENV_PROJECT]
    #[arg(short = 'n', long, value_name = "NAME", global = true)]
    pub project: Option<String>,
    /// Merge pocketenv.NAME.yaml as well [env: POCKETENV_PROFILE]
    #[arg(long, value_name = "NAME", global = true)]
    pub profile: Option<String>,
    /// Set a variable of the manifest [env: POCKETENV_VAR_name]
    #[arg(long, value_name = "NAME=VALUE", global = true)]
    pub var: Vec<KeyValue>,
    /// Read environment for templates and secrets from a file
    #[arg(long, value_name = "PATH", global = true)]
    pub env_file: Vec<PathBuf>,
    /// The provider of sandboxes that name none
    #[arg(long, value_name = "NAME", global = true)]
    pub provider: Option<String>,
    /// The form of what is printed: table, wide, json, yaml or name
    #[arg(short, long, value_enum, value_name = "FORM", hide_possible_values = true, global = true)]
    pub output: Option<OutputForm>,
    /// When to colour: auto, always or never [env: NO_COLOR]
    #[arg(
        long,
        value_enum,
        value_name = "WHEN",
        default_value_t,
        hide_possible_values = true,
        hide_default_value = true,
        global = true
    )]
    pub color: ColorWhen,
    /// How progress is shown: auto, tty, plain, json or quiet [env: POCKETENV_PROGRESS]
    #[arg(long, value_enum, value_name = "HOW", hide_possible_values = true, global = true)]
    pub progress: Option<ProgressHow>,
    /// Say nothing but results and errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

/// The form of what is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputForm {
    /// A table for people.
    #[default]
    Table,
    /// A table with more columns.
    Wide,
    /// JSON; streams are JSON Lines.
    Json,
    /// YAML.
    Yaml,
    /// Names or addresses, one a line.
    Name,
}

/// When to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ColorWhen {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ProgressHow {
    /// Live on a terminal, plain lines elsewhere.
    #[default]
    Auto,
    /// Live.
    Tty,
    /// One line per event.
    Plain,
    /// One JSON object per event.
    Json,
    /// Not at all.
    Quiet,
}

/// What to do. What a verb takes is put together when it is typed: all of it would be half the time of a short command.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum Verb {
    /// Write a commented pocketenv.yaml to begin with
    Init(InitArgs),
    /// Check the manifest and report every problem with its line
    Validate(ValidateArgs),
    /// Lay out manifests in the standard form, keeping comments
    Fmt(FmtArgs),
    /// Print the manifest fully resolved, without secrets
    Config(ConfigArgs),
    /// Print the JSON Schema of the manifest or of a preset
    Schema(SchemaArgs),
    /// Show what apply would do, and why; change nothing
    #[command(visible_alias = "diff")]
    Plan(PlanArgs),
    /// Make what exists equal to what the manifest declares
    #[command(visible_alias = "up")]
    Apply(ApplyArgs),
    /// Delete what the project has; volumes only if asked
    #[command(visible_aliases = ["down", "rm", "delete"])]
    Destroy(DestroyArgs),
    /// Apply, then follow every edit and keep directories in step
    #[command(visible_alias = "dev")]
    Watch(WatchArgs),
    /// Show how every resource does, as measured now
    Status(StatusArgs),
    /// List the project's sandboxes
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// List the services of the project's sandboxes
    Ps(PsArgs),
    /// Show everything known about resources: conditions, reasons, events
    Describe(DescribeArgs),
    /// Show what happened
    Events(EventsArgs),
    /// Show the runs of the project, newest first
    History(HistoryArgs),
    /// Make true again what an earlier run was to achieve
    Rollback(RollbackArgs),
    /// Wait until resources are in a condition
    Wait(WaitArgs),
    /// Find what carries our labels and nobody accounts for
    Gc(GcArgs),
    /// Turn existing sandboxes into manifest text, or take them into the project
    Import(ImportArgs),
    /// Look into the record of what was applied, and mend it
    #[command(subcommand)]
    State(StateCommand),
    /// Show what services wrote
    Logs(LogsArgs),
    /// Run a command inside a sandbox
    Exec(ExecArgs),
    /// Open a shell inside a sandbox
    #[command(visible_aliases = ["console", "ssh"])]
    Shell(ShellArgs),
    /// List and end the named sessions of sandboxes
    #[command(subcommand, alias = "sessions")]
    Session(SessionCommand),
    /// Copy files into, out of and between sandboxes
    Cp(CpArgs),
    /// Show where ports are reached
    Ports(PortsArgs),
    /// Show what a sandbox tried to reach, and what would allow it
    Egress(EgressArgs),
    /// Start stopped sandboxes or services
    Start(StartArgs),
    /// Stop sandboxes or services; disks are kept
    Stop(StopArgs),
    /// Stop and start sandboxes or services
    Restart(RestartArgs),
    /// Freeze what runs in sandboxes, with its memory, until resume or apply
    Pause(PauseArgs),
    /// Let paused sandboxes go on
    Resume(ResumeArgs),
    /// Keep the files of sandboxes under names, to start others from
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Make sandboxes like another one, with its files as they are now
    Fork(ForkArgs),
    /// Keep projects as their repositories say, until stopped
    #[command(subcommand)]
    Controller(ControllerCommand),
    /// Show, pull, build and remove the images of the local engine
    #[cfg(target_os = "linux")]
    #[command(subcommand)]
    Image(ImageCommand),
    /// Show the presets there are
    #[command(subcommand)]
    Preset(PresetCommand),
    /// Show providers and what they can do, keep their credentials, try their promises
    #[command(subcommand)]
    Provider(ProviderCommand),
    /// Keep secrets sealed on this machine
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Run the manifest against a simulated cloud and report what would have happened
    Rehearse(RehearseArgs),
    /// Serve a simulated cloud with faults on demand
    Sim(SimArgs),
    /// Serve a vendor's API in front of sandboxes of this machine
    #[command(subcommand)]
    Emulate(EmulateCommand),
    /// Check what this machine offers and say how to get the rest
    Doctor(DoctorArgs),
    /// Print the completion script of a shell
    Completion(CompletionArgs),
    /// Print the version
    Version(VersionArgs),
    /// Write the manual pages
    #[command(hide = true)]
    Man(ManArgs),
}

/// What was typed. The whole command line is put together only for who asked for help, or made a mistake.
///
/// # Errors
/// What makes no sense, or the help that was asked for.
pub fn parse(args: &[OsString]) -> Result<Cli, clap::Error> {
    let command = args.get(1).and_then(|word| of_verb(word)).unwrap_or_else(Cli::command);
    let matches =
        command.try_get_matches_from(args).or_else(|_| self::command().try_get_matches_from(args))?;
    Cli::from_arg_matches(&matches)
}

/// The command line with one verb alone. Into every verb that it knows clap copies every global flag, which cost as much as all else that a short
/// command does before its work.
fn of_verb(word: &OsStr) -> Option<clap::Command> {
    let verb = Cli::command().find_subcommand(word)?.clone();
    let root = clap::Command::new("pocketenv").subcommand_required(true);
    Some(GlobalArgs::augment_args(root).subcommand(verb))
}

/// The whole command line, with the exit codes at the end of every help.
pub fn command() -> clap::Command {
    // There is one help, compact: what would make a long one (help of possible values) is hidden.
    fn finish(command: clap::Command) -> clap::Command {
        let help = match command.get_after_help() {
            Some(examples) => format!("{examples}\n\n{EXIT_CODES}"),
            None => EXIT_CODES.to_owned(),
        };
        command.after_help(help).mut_subcommands(finish)
    }
    let mut command = Cli::command();
    // What a type of arguments is documented as takes the place of what its verb does when it is put together.
    let verbs = command.get_subcommands();
    let abouts: Vec<_> = verbs
        .map(|verb| (verb.get_name().to_owned(), verb.get_about().cloned().unwrap_or_default()))
        .collect();
    command.build();
    for (verb, about) in abouts {
        command = command.mut_subcommand(verb, |verb| verb.about(about));
    }
    finish(command)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Cli {
        let args: Vec<OsString> = [&["pocketenv"], args].concat().into_iter().map(OsString::from).collect();
        super::parse(&args).unwrap()
    }

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn global_flags_are_taken_before_and_after_the_verb() {
        for args in [["-f", "a.yaml", "plan"], ["plan", "-f", "a.yaml"]] {
            assert_eq!(parse(&args).global.file, [PathBuf::from("a.yaml")]);
        }
        assert_eq!(parse(&["plan", "--var", "a=b=c"]).global.var, [KeyValue::new("a", "b=c")]);
    }

    #[test]
    fn exec_takes_its_command_as_it_is() {
        let words = |args: &[&str]| match parse(args) {
            Cli { verb: Verb::Exec(exec), global } => (exec.name, exec.command, global.file.len()),
            other => panic!("{other:?}"),
        };
        let expected = |words: &[&str], files| {
            ("api".to_owned(), words.iter().map(ToString::to_string).collect::<Vec<_>>(), files)
        };
        assert_eq!(words(&["exec", "api", "--", "ls", "-la"]), expected(&["ls", "-la"], 0));
        assert_eq!(words(&["exec", "api", "ls", "-la", "-f", "x"]), expected(&["ls", "-la", "-f", "x"], 0));
        assert_eq!(words(&["exec", "-f", "a", "api", "--", "a", "--", "b"]), expected(&["a", "--", "b"], 1));
        assert_eq!(words(&["exec", "api", "-f", "a", "--", "-x"]), expected(&["-x"], 1));
    }

    #[test]
    fn follow_takes_the_short_flag_where_there_is_something_to_follow() {
        match parse(&["-f", "a.yaml", "logs", "-f", "api/web"]) {
            Cli { verb: Verb::Logs(logs), global } => {
                assert!(logs.follow);
                assert_eq!(global.file, [PathBuf::from("a.yaml")]);
            }
            other => panic!("{other:?}"),
        }
        match parse(&["logs", "--file", "a.yaml", "--follow"]) {
            Cli { verb: Verb::Logs(logs), global } => {
                assert!(logs.follow);
                assert_eq!(global.file, [PathBuf::from("a.yaml")]);
            }
            other => panic!("{other:?}"),
        }
    }
}
