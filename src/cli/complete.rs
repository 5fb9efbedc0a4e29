//! What a shell is told when it completes a command line of ours: verbs and flags, and the names that the manifest declares.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, Command};
use clap_complete::CompletionCandidate;
use clap_complete::engine::{
    ArgValueCandidates, ArgValueCompleter, PathCompleter, ValueCandidates, ValueCompleter,
};
use clap_complete::env::{EnvCompleter, Shells};

use super::Process;
use super::args::{self, GlobalArgs};
use super::context::Context;

/// Set by the scripts that `completion` prints, to the name of the shell.
const VARIABLE: &str = "POCKETENV_COMPLETE";

/// From a directory of functions zsh loads the script when it completes for the first time, and takes it for the completion itself.
const AUTOLOADED: &str =
    "[[ \"${funcstack[1]}\" != _pocketenv ]] || _clap_dynamic_completer_pocketenv \"$@\"\n";

/// Services by sandbox.
type Names = BTreeMap<String, Vec<String>>;

fn completer(shell: &str) -> Option<&'static dyn EnvCompleter> {
    const SHELLS: Shells<'static> = Shells::builtins();
    SHELLS.completer(shell)
}

/// The script that makes a shell ask us.
pub fn script(shell: &str) -> Option<Vec<u8>> {
    let mut script = Vec::new();
    completer(shell)?
        .write_registration(VARIABLE, "pocketenv", "pocketenv", "pocketenv", &mut script)
        .ok()?;
    if shell == "zsh" {
        script.extend_from_slice(AUTOLOADED.as_bytes());
    }
    Some(script)
}

/// The answer, if a shell asks: the words of its command line follow `--`.
pub fn answer(process: &Process) -> Option<Vec<u8>> {
    let completer = completer(process.vars.get(VARIABLE)?)?;
    let words: Vec<OsString> = process.args.iter().skip_while(|arg| *arg != "--").skip(1).cloned().collect();
    let names = names(process, &words);
    let mut answer = Vec::new();
    let mut command = with_names(args::command(), &names);
    // There is nobody to be told that nothing can be completed.
    completer.write_complete(&mut command, words, Some(&process.cwd), &mut answer).ok()?;
    Some(answer)
}

/// What the manifest declares that the words mean; nothing while it has problems.
fn names(process: &Process, words: &[OsString]) -> Names {
    let named = words.windows(2).filter(|pair| pair[0] == "-f" || pair[0] == "--file");
    let file = named.map(|pair| PathBuf::from(&pair[1])).collect();
    let Ok(context) = Context::new(process.clone(), GlobalArgs { file, ..GlobalArgs::default() }) else {
        return Names::new();
    };
    let manifest = context.app.load(context.selection());
    let Ok(resolved) = manifest.and_then(|manifest| context.app.resolve(&manifest)) else {
        return Names::new();
    };
    let services = |guest: crate::model::GuestSpec| guest.services.into_keys().collect();
    resolved.desired.sandboxes.into_iter().map(|(name, sandbox)| (name, services(sandbox.guest))).collect()
}

/// The command line, with names where it takes some.
fn with_names(command: Command, names: &Names) -> Command {
    command.mut_subcommands(|verb| {
        let of = verb.get_name().to_owned();
        with_names(verb.mut_args(|arg| named(&of, arg, names)), names)
    })
}

fn named(verb: &str, arg: Arg, names: &Names) -> Arg {
    let sandboxes: Vec<String> = names.keys().cloned().collect();
    match (verb, arg.get_id().as_str()) {
        ("exec" | "shell" | "egress" | "fork" | "kill", "name")
        | ("ps" | "ports" | "list", "names")
        | ("create", "sandbox")
        | ("doctor", "isolation") => arg.add(ArgValueCandidates::new(Words(sandboxes))),
        (_, "addresses" | "sources") => {
            let service = |(sandbox, services): (&String, &Vec<String>)| {
                services.iter().map(|service| format!("{sandbox}/{service}")).collect::<Vec<_>>()
            };
            let services = names.iter().flat_map(service);
            arg.add(ArgValueCandidates::new(Words(sandboxes.iter().cloned().chain(services).collect())))
        }
        ("cp", "from" | "to") => arg.add(ArgValueCompleter::new(Ends(sandboxes))),
        _ => arg,
    }
}

struct Words(Vec<String>);

impl ValueCandidates for Words {
    fn candidates(&self) -> Vec<CompletionCandidate> {
        self.0.iter().map(CompletionCandidate::new).collect()
    }
}

/// What `cp` takes: files of this machine, and `NAME:`.
struct Ends(Vec<String>);

impl ValueCompleter for Ends {
    fn complete(&self, current: &std::ffi::OsStr) -> Vec<CompletionCandidate> {
        let mut found = PathCompleter::any().complete(current);
        let typed = current.to_string_lossy();
        let ends = self.0.iter().map(|name| format!("{name}:")).filter(|end| end.starts_with(&*typed));
        found.extend(ends.map(CompletionCandidate::new));
        found
    }
}
