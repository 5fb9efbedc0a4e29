//! Which stages a build needs, and what each of its instructions comes to when variables have their values. Pure: everything that can be wrong
//! with a Containerfile is found here, before anything runs.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::containerfile::{Command, Copy, Instruction, Kind};
use super::context::{Context, Item, Selection, normal};
use super::error::Wrong;
use super::mounts::{self, Mount};
use super::words::{expand, expand_text};
use crate::engine::RunStep;
use crate::image::{Execution, Platform};

/// Where something comes from that is not the context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nothing at all.
    Scratch,
    /// An earlier stage, by its number.
    Stage(usize),
    /// An image.
    Image(String),
}

/// A stage as it stands in the file.
#[derive(Debug)]
pub struct Outline<'a> {
    /// Where it begins.
    pub line: usize,
    /// What it begins with.
    pub base: Origin,
    /// What `--from` and `from=` of it take from, by their lines, and which of the mounts of a line they are.
    pub takes: BTreeMap<(usize, usize), Origin>,
    instructions: &'a [Instruction],
    globals: BTreeMap<String, String>,
}

/// One step that makes a layer.
#[derive(Debug)]
pub struct Step {
    /// Its line.
    pub line: usize,
    /// To be shown.
    pub text: String,
    /// What is done.
    pub what: What,
}

/// What a step does.
#[derive(Debug)]
pub enum What {
    /// Run a command, with these mounts.
    Run(RunStep, Vec<Mounted>),
    /// Put files into the image.
    Place {
        /// Where to, from the root of the image.
        target: String,
        /// Whether that is a directory whatever is copied.
        into: bool,
        /// Whose they become.
        owner: Option<String>,
        /// Their permissions.
        mode: Option<u32>,
        /// The files.
        files: Files,
    },
}

/// A mount, and the files that it brings if it brings some.
#[derive(Debug)]
pub struct Mounted {
    /// The mount.
    pub mount: Mount,
    /// Of a bind.
    pub files: Option<Files>,
}

/// Files to put into an image.
#[derive(Debug)]
pub enum Files {
    /// None: the directory alone.
    None,
    /// Of the context, and of the Containerfile.
    Context(Selection),
    /// What is in an archive of the context.
    Archive(Item),
    /// Of a stage or an image.
    Other(Origin, Vec<String>),
}

/// A stage with all values.
#[derive(Debug)]
pub struct Stage {
    /// What is done, in order.
    pub steps: Vec<Step>,
    /// How the result is run.
    pub execution: Execution,
}

/// The stages of a file.
///
/// # Errors
/// A base or stage that cannot be.
pub fn outline(instructions: &[Instruction]) -> Result<Vec<Outline<'_>>, Wrong> {
    let mut globals = platform();
    let mut stages: Vec<Outline<'_>> = Vec::new();
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, instruction) in instructions.iter().enumerate() {
        let at = |what: String| Wrong::at(instruction.line, what);
        match &instruction.kind {
            Kind::Arg(args) if stages.is_empty() => {
                for (name, default) in args {
                    if let Some(default) = default {
                        let value = expand(default, &|name| globals.get(name).cloned()).map_err(at)?;
                        globals.insert(name.clone(), value);
                    }
                }
            }
            Kind::From { image, platform, name } => {
                let value = |word: &str| expand(word, &|name| globals.get(name).cloned()).map_err(at);
                check_platform(platform.as_deref().map(value).transpose()?).map_err(at)?;
                let image = value(image)?;
                let base = match (image.as_str(), names.get(image.to_ascii_lowercase().as_str())) {
                    (_, Some(stage)) => Origin::Stage(*stage),
                    ("scratch", None) => Origin::Scratch,
                    ("", None) => return Err(at("the image of FROM is empty".to_owned())),
                    (_, None) => Origin::Image(image),
                };
                let rest = &instructions[index + 1..];
                let end = rest.iter().position(|next| matches!(next.kind, Kind::From { .. }));
                let own = &rest[..end.unwrap_or(rest.len())];
                let mut takes = BTreeMap::new();
                for instruction in own {
                    let at = |what: String| Wrong::at(instruction.line, what);
                    let from: Vec<Option<&str>> = match &instruction.kind {
                        Kind::Copy(Copy { from, .. }) => vec![from.as_deref()],
                        Kind::Run(_, mounts) => mounts.iter().map(|mount| mount.from()).collect(),
                        _ => Vec::new(),
                    };
                    for (index, from) in from.into_iter().enumerate() {
                        let Some(from) = from else { continue };
                        let origin = origin(from, &names, stages.len()).map_err(at)?;
                        takes.insert((instruction.line, index), origin);
                    }
                }
                let (line, globals) = (instruction.line, globals.clone());
                stages.push(Outline { line, base, takes, instructions: own, globals });
                if let Some(name) = name {
                    names.insert(name, stages.len() - 1);
                }
            }
            _ => {}
        }
    }
    Ok(stages)
}

fn origin(from: &str, names: &BTreeMap<&str, usize>, stages: usize) -> Result<Origin, String> {
    if from.contains('$') {
        return Err("`--from` takes no variables; name a stage, and use them in its FROM".to_owned());
    }
    let number = from.parse::<usize>().ok();
    match (names.get(from.to_ascii_lowercase().as_str()), number) {
        (Some(stage), _) => Ok(Origin::Stage(*stage)),
        (None, Some(stage)) if stage < stages => Ok(Origin::Stage(stage)),
        (None, Some(_)) => Err(format!("there is no stage {from} before this one")),
        (None, None) if matches!(from, "" | "scratch") => Err("`--from` names nothing".to_owned()),
        (None, None) => Ok(Origin::Image(from.to_owned())),
    }
}

/// The numbers of the stages that the last one needs, itself too, in order.
pub fn needed(stages: &[Outline<'_>]) -> BTreeSet<usize> {
    let mut needed = BTreeSet::new();
    let mut todo: Vec<usize> = stages.len().checked_sub(1).into_iter().collect();
    while let Some(stage) = todo.pop() {
        if needed.insert(stage) {
            let stage = &stages[stage];
            let origins = stage.takes.values().chain([&stage.base]);
            todo.extend(origins.filter_map(|origin| match origin {
                Origin::Stage(stage) => Some(*stage),
                _ => None,
            }));
        }
    }
    needed
}

/// The images that the last stage needs, by the lines that name them.
pub fn images<'a>(stages: &'a [Outline<'_>]) -> BTreeSet<(usize, &'a str)> {
    let mut images = BTreeSet::new();
    for stage in needed(stages) {
        let stage = &stages[stage];
        let takes = stage.takes.iter().map(|((line, _), origin)| (*line, origin));
        for (line, origin) in takes.chain([(stage.line, &stage.base)]) {
            if let Origin::Image(name) = origin {
                images.insert((line, name.as_str()));
            }
        }
    }
    images
}

/// What every build knows without being told.
fn platform() -> BTreeMap<String, String> {
    let here = Platform::here();
    let mut known = BTreeMap::new();
    for kind in ["TARGET", "BUILD"] {
        known.insert(format!("{kind}PLATFORM"), here.name());
        known.insert(format!("{kind}OS"), here.os.clone());
        known.insert(format!("{kind}ARCH"), here.architecture.clone());
        known.insert(format!("{kind}VARIANT"), here.variant.clone().unwrap_or_default());
    }
    known
}

fn check_platform(platform: Option<String>) -> Result<(), String> {
    let here = Platform::here();
    let fits = |wanted: &str| {
        wanted.is_empty() || wanted == here.name() || wanted == format!("{}/{}", here.os, here.architecture)
    };
    match platform {
        Some(wanted) if !fits(&wanted) => Err(format!(
            "`--platform={}`: a build is for this machine alone, which is {}",
            wanted.escape_debug(),
            here.name()
        )),
        _ => Ok(()),
    }
}

struct Values<'a> {
    execution: Execution,
    env: Vec<(String, String)>,
    args: Vec<(String, String)>,
    has_cmd: bool,
    globals: &'a BTreeMap<String, String>,
}

impl Values<'_> {
    fn lookup(&self, name: &str) -> Option<String> {
        let find = |pairs: &[(String, String)]| {
            pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
        };
        find(&self.env).or_else(|| find(&self.args))
    }

    fn expand(&self, word: &str) -> Result<String, String> {
        expand(word, &|name| self.lookup(name))
    }

    fn shell(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(argv) => argv.clone(),
            Command::Shell(text) => {
                let shell = &self.execution.shell;
                let default = || vec!["/bin/sh".to_owned(), "-c".to_owned()];
                let mut argv = if shell.is_empty() { default() } else { shell.clone() };
                argv.push(text.clone());
                argv
            }
        }
    }

    fn working_dir(&self) -> String {
        if self.execution.working_dir.is_empty() {
            "/".to_owned()
        } else {
            self.execution.working_dir.clone()
        }
    }
}

fn set(pairs: &mut Vec<(String, String)>, name: String, value: String) {
    match pairs.iter_mut().find(|(known, _)| *known == name) {
        Some((_, old)) => *old = value,
        None => pairs.push((name, value)),
    }
}

/// What a stage comes to that begins with an image that is run so.
///
/// # Errors
/// The line of what cannot be done.
pub fn evaluate(outline: &Outline<'_>, base: &Execution, context: &Context) -> Result<Stage, Wrong> {
    let env = base.env.iter().filter_map(|pair| pair.split_once('='));
    let mut values = Values {
        execution: base.clone(),
        env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        args: Vec::new(),
        has_cmd: false,
        globals: &outline.globals,
    };
    let mut steps = Vec::new();
    for instruction in outline.instructions {
        let at = |what: String| Wrong::at(instruction.line, what);
        let mut step =
            |what: What| steps.push(Step { line: instruction.line, text: instruction.text.clone(), what });
        match &instruction.kind {
            Kind::Run(command, written) => {
                let argv = values.shell(command);
                if argv.first().is_none_or(String::is_empty) || argv.iter().any(|word| word.contains('\0')) {
                    return Err(at("RUN needs a program".to_owned()));
                }
                let args =
                    values.args.iter().filter(|(name, _)| values.env.iter().all(|(env, _)| env != name));
                let run = RunStep {
                    argv,
                    args: args.cloned().collect(),
                    env: values.env.clone(),
                    working_dir: values.working_dir(),
                    user: Some(values.execution.user.clone()).filter(|user| !user.is_empty()),
                    ..RunStep::default()
                };
                let mounts = mounted(written, outline, instruction.line, &values, context).map_err(at)?;
                step(What::Run(run, mounts));
            }
            Kind::Copy(copy) => {
                for what in self::copy(copy, outline, instruction.line, &values, context).map_err(at)? {
                    step(what);
                }
            }
            Kind::Workdir(dir) => {
                let dir = values.expand(dir).map_err(at)?;
                let dir = normal(&format!(
                    "{}/{dir}",
                    if dir.starts_with('/') { "" } else { &values.execution.working_dir }
                ));
                let files = Files::None;
                step(What::Place { target: dir.clone(), into: true, owner: None, mode: None, files });
                values.execution.working_dir = dir;
            }
            other => values.set(other).map_err(at)?,
        }
    }
    values.execution.env = values.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    Ok(Stage { steps, execution: values.execution })
}

impl Values<'_> {
    /// Takes over what makes no layer.
    fn set(&mut self, kind: &Kind) -> Result<(), String> {
        match kind {
            Kind::Env(pairs) => {
                let expanded = pairs
                    .iter()
                    .map(|(name, value)| Ok((self.expand(name)?, self.expand(value)?)))
                    .collect::<Result<Vec<_>, String>>()?;
                for (name, value) in expanded {
                    if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                        return Err(format!("variable `{}` cannot be set", name.escape_debug()));
                    }
                    set(&mut self.env, name, value);
                }
            }
            Kind::Arg(args) => {
                for (name, default) in args {
                    let value = match default {
                        Some(default) => Some(self.expand(default)?),
                        None => self.globals.get(name).cloned(),
                    };
                    if let Some(value) = value {
                        set(&mut self.args, name.clone(), value);
                    }
                }
            }
            Kind::User(user) => self.execution.user = self.expand(user)?,
            Kind::Entrypoint(command) => {
                self.execution.entrypoint = self.shell(command);
                if !self.has_cmd {
                    self.execution.cmd = Vec::new();
                }
            }
            Kind::Cmd(command) => {
                self.execution.cmd = self.shell(command);
                self.has_cmd = true;
            }
            Kind::Shell(shell) => self.execution.shell = shell.clone(),
            Kind::StopSignal(signal) => {
                let signal = self.expand(signal)?;
                let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-');
                if signal.is_empty() || !signal.chars().all(legal) {
                    return Err(format!("`{}` is not a signal", signal.escape_debug()));
                }
                self.execution.stop_signal = signal;
            }
            Kind::Volume(paths) => {
                for path in paths {
                    let path = self.expand(path)?;
                    self.execution.volumes.insert(path, json!({}));
                }
            }
            Kind::Label(pairs) => {
                for (name, value) in pairs {
                    let (name, value) = (self.expand(name)?, self.expand(value)?);
                    self.execution.labels.insert(name, value);
                }
            }
            Kind::Expose(ports) => {
                for port in ports {
                    let words = self.expand(port)?;
                    for port in words.split_whitespace() {
                        self.execution.exposed_ports.insert(exposed(port)?, json!({}));
                    }
                }
            }
            // They are seen to where they stand.
            Kind::From { .. } | Kind::Run(..) | Kind::Copy(_) | Kind::Workdir(_) => {}
        }
        Ok(())
    }
}

fn exposed(port: &str) -> Result<String, String> {
    let (numbers, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    let is_protocol = matches!(protocol, "tcp" | "udp" | "sctp");
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last && is_protocol => Ok(format!("{numbers}/{protocol}")),
        _ => Err(format!("`{}` is not a port; expected such as `80` or `53/udp`", port.escape_debug())),
    }
}

fn mounted(
    written: &[mounts::Written],
    outline: &Outline<'_>,
    line: usize,
    values: &Values<'_>,
    context: &Context,
) -> Result<Vec<Mounted>, String> {
    let mut all: Vec<Mounted> = Vec::new();
    for (index, written) in written.iter().enumerate() {
        let mount = written.evaluate(&|word| values.expand(word), &values.working_dir())?;
        if let Some(target) = &mount.target
            && all.iter().any(|other| other.mount.target.as_ref() == Some(target))
        {
            return Err(format!(
                "two mounts have `target={}`; expected one at a path",
                target.escape_debug()
            ));
        }
        let files = match (&mount.what, outline.takes.get(&(line, index))) {
            (mounts::What::Bind { source }, Some(origin)) => {
                Some(Files::Other(origin.clone(), vec![source.clone()]))
            }
            (mounts::What::Bind { source }, None) => {
                Some(Files::Context(context.select(std::slice::from_ref(source), &[], false)?))
            }
            _ => None,
        };
        all.push(Mounted { mount, files });
    }
    Ok(all)
}

fn copy(
    copy: &Copy,
    outline: &Outline<'_>,
    line: usize,
    values: &Values<'_>,
    context: &Context,
) -> Result<Vec<What>, String> {
    let target = values.expand(&copy.target)?;
    if target.is_empty() {
        return Err("the target is empty".to_owned());
    }
    let is_dir = target.ends_with('/') || target == "." || target.ends_with("/.") || target.ends_with("..");
    let base = if target.starts_with('/') { String::new() } else { values.working_dir() };
    let target = normal(&format!("{base}/{target}"));
    if copy.sources.len() + copy.inline.len() > 1 && !is_dir {
        return Err(format!("several sources need a target that ends with `/`: `{target}/`"));
    }
    let owner = copy.chown.as_deref().map(|owner| values.expand(owner)).transpose()?;
    let mode = copy.chmod.as_deref().map(|mode| values.expand(mode)).transpose()?;
    let mode = mode.map(|text| {
        let octal = u32::from_str_radix(text.trim_start_matches("0o"), 8).ok();
        octal.filter(|mode| *mode <= 0o7777).ok_or_else(|| {
            format!("`--chmod={}`: expected permissions in octal, such as `0755`", text.escape_debug())
        })
    });
    let mode = mode.transpose()?;
    let sources =
        copy.sources.iter().map(|source| values.expand(source)).collect::<Result<Vec<_>, String>>()?;
    let place = |into: bool, files: Files| What::Place {
        target: target.clone(),
        into: into || is_dir,
        owner: owner.clone(),
        mode,
        files,
    };
    if let Some(origin) = outline.takes.get(&(line, 0)) {
        let sources = sources.iter().map(|source| normal(source)).collect();
        return Ok(vec![place(false, Files::Other(origin.clone(), sources))]);
    }
    let mut inline = copy.inline.clone();
    for text in &mut inline {
        if text.expand {
            text.content = expand_text(&text.content, &|name| values.lookup(name))?;
        }
    }
    let mut selection = context.select(&sources, &inline, copy.is_add)?;
    let archives = std::mem::take(&mut selection.archives);
    let mut placed: Vec<What> = archives.into_iter().map(|item| place(true, Files::Archive(item))).collect();
    if placed.is_empty() || !selection.items.is_empty() || !selection.texts.is_empty() {
        placed.push(place(selection.into, Files::Context(selection)));
    }
    Ok(placed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::containerfile::parse;
    use super::*;

    fn context() -> Context {
        Context::new("/nowhere".into(), Vec::new())
    }

    fn last(text: &str, base: &Execution) -> Result<Stage, Wrong> {
        let instructions = parse(text)?;
        let stages = outline(&instructions)?;
        evaluate(stages.last().unwrap(), base, &context())
    }

    fn run(stage: &Stage, index: usize) -> &RunStep {
        match &stage.steps[index].what {
            What::Run(run, _) => run,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_what_the_last_stage_needs_is_built() {
        let text = "ARG V=1\nFROM a:$V AS one\nFROM scratch AS unused\nFROM one AS two\nFROM scratch\nCOPY --from=Two /x /y\nCOPY --from=docker.io/b /z /z\nCOPY --from=0 /q /q\n";
        let instructions = parse(text).unwrap();
        let stages = outline(&instructions).unwrap();
        assert_eq!(stages[0].base, Origin::Image("a:1".into()));
        assert_eq!(stages[2].base, Origin::Stage(0));
        let copies: Vec<_> = stages[3].takes.values().cloned().collect();
        assert_eq!(copies, [Origin::Stage(2), Origin::Image("docker.io/b".into()), Origin::Stage(0)]);
        assert_eq!(needed(&stages), BTreeSet::from([0, 2, 3]));
        for (text, line) in
            [("FROM a\nCOPY --from=1 x y", 2), ("FROM --platform=linux/z80 a", 1), ("FROM $X", 1)]
        {
            assert_eq!(outline(&parse(text).unwrap()).unwrap_err().line, line, "{text}");
        }
    }

    #[test]
    fn variables_have_their_values_where_they_stand() {
        let base = Execution {
            env: vec!["PATH=/bin".into(), "KEPT=1".into()],
            cmd: vec!["old".into()],
            working_dir: "/base".into(),
            ..Execution::default()
        };
        let text = "ARG V=7\nARG W\nFROM a\nRUN one\nARG V\nARG W=w${V}\nENV A=$V B=$A\nENV A=\"x y\" PATH=/own:$PATH\nWORKDIR sub\nWORKDIR ../$W\nUSER $A:g\nARG KEPT=other\nRUN [\"two\", \"$A\"]\nSHELL [\"/bin/bash\", \"-ec\"]\nRUN three\nENTRYPOINT [\"e\"]\nEXPOSE 80 53/udp\nVOLUME /d /e\nLABEL a=$V\nSTOPSIGNAL SIGINT\n";
        let stage = last(text, &base).unwrap();
        assert_eq!(run(&stage, 0).argv, ["/bin/sh", "-c", "one"]);
        assert_eq!((run(&stage, 0).working_dir.as_str(), run(&stage, 0).args.len()), ("/base", 0));
        let two = run(&stage, 3);
        assert_eq!(two.argv, ["two", "$A"], "the program gets it as it stands");
        assert_eq!((two.working_dir.as_str(), two.user.as_deref()), ("/base/w7", Some("x y:g")));
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(two.env, [pair("PATH", "/own:/bin"), pair("KEPT", "1"), pair("A", "x y"), pair("B", "")]);
        assert_eq!(two.args, [pair("V", "7"), pair("W", "w7")], "environment is stronger");
        assert_eq!(run(&stage, 4).argv, ["/bin/bash", "-ec", "three"]);
        let execution = &stage.execution;
        assert_eq!(
            (execution.entrypoint.len(), execution.cmd.len()),
            (1, 0),
            "the base's command is not its"
        );
        assert_eq!(execution.env[2], "A=x y");
        let keys = |map: &BTreeMap<String, serde_json::Value>| map.keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&execution.exposed_ports), ["53/udp", "80/tcp"]);
        assert_eq!(keys(&execution.volumes), ["/d", "/e"]);
        assert_eq!((execution.labels["a"].as_str(), execution.stop_signal.as_str()), ("7", "SIGINT"));
    }

    #[test]
    fn what_cannot_be_done_is_found_before_anything_runs() {
        for (text, says) in [
            ("COPY none /x", "is not in"),
            ("COPY --chmod=u+x a /x", "octal"),
            ("COPY a b /x", "ends with `/`"),
            ("EXPOSE 0", "not a port"),
            ("EXPOSE 80/x", "not a port"),
            ("STOPSIGNAL \"a b\"", "not a signal"),
            ("RUN [\"\"]", "needs a program"),
            ("USER ${X#y}", "not understood"),
            ("ENV ${NONE}=1", "cannot be set"),
        ] {
            let wrong = last(&format!("FROM a\nRUN x\n{text}\n"), &Execution::default()).unwrap_err();
            assert!(wrong.line == 3 && wrong.what.contains(says), "{text}: {wrong:?}");
        }
    }

    #[test]
    fn targets_are_directories_where_they_say_so() {
        let text = "FROM a\nWORKDIR /w\nCOPY <<x <<y ./\n1\nx\n$A\ny\nCOPY <<z /f/g\n2\nz\n";
        let stage = last(text, &Execution::default()).unwrap();
        let placed = |index: usize| match &stage.steps[index].what {
            What::Place { target, into, .. } => (target.clone(), *into),
            other => panic!("{other:?}"),
        };
        assert_eq!(placed(0), ("/w".to_owned(), true));
        assert_eq!(placed(1), ("/w".to_owned(), true));
        assert_eq!(placed(2), ("/f/g".to_owned(), false));
    }
}
