//! A Containerfile as a list of instructions, each with its line. Pure.
//!
//! The language is that of the Dockerfile reference. What is not built here is refused at its line, by everybody who reads a file: nothing that
//! stands in one is left out in silence.

use super::error::Wrong;
use super::mounts::{self, Written};
use super::words;

/// The most bytes of a Containerfile.
pub const MAX_FILE: u64 = 1 << 20;
/// The most instructions.
const MAX_INSTRUCTIONS: usize = 1000;

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// Where it begins, from 1.
    pub line: usize,
    /// The instruction in one line, to be shown.
    pub text: String,
    /// What it says.
    pub kind: Kind,
}

/// What an instruction says. Variables in it are not replaced yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A stage begins.
    From {
        /// The image, an earlier stage, or `scratch`.
        image: String,
        /// `--platform`.
        platform: Option<String>,
        /// What the stage is called, in lower case.
        name: Option<String>,
    },
    /// A command is run, with these mounts.
    Run(Command, Vec<Written>),
    /// Files are copied.
    Copy(Copy),
    /// Environment, also of what is made from the image.
    Env(Vec<(String, String)>),
    /// A variable of the build, with what it is unless something else is said.
    Arg(Vec<(String, Option<String>)>),
    /// The working directory.
    Workdir(String),
    /// Who runs commands.
    User(String),
    /// What the image runs.
    Entrypoint(Command),
    /// Its arguments.
    Cmd(Command),
    /// Ports that it listens on.
    Expose(Vec<String>),
    /// Directories that are meant to be volumes.
    Volume(Vec<String>),
    /// Facts.
    Label(Vec<(String, String)>),
    /// The signal that asks it to end.
    StopSignal(String),
    /// What runs the commands that are one text.
    Shell(Vec<String>),
}

/// A command in one of its two forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// A text for the shell.
    Shell(String),
    /// Program and arguments.
    Exec(Vec<String>),
}

/// `COPY` and `ADD`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copy {
    /// `ADD`: archives are unpacked.
    pub is_add: bool,
    /// `--from`.
    pub from: Option<String>,
    /// `--chown`.
    pub chown: Option<String>,
    /// `--chmod`.
    pub chmod: Option<String>,
    /// Paths of the context or of the other stage.
    pub sources: Vec<String>,
    /// Files that stand in the Containerfile itself.
    pub inline: Vec<Inline>,
    /// Where to.
    pub target: String,
}

/// A file that stands in the Containerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inline {
    /// Its name: the word that ends it.
    pub name: String,
    /// What it holds.
    pub content: String,
    /// Whether variables in it are replaced: the word is not quoted.
    pub expand: bool,
}

/// A text that follows an instruction up to a word.
#[derive(Debug)]
struct Heredoc {
    word: String,
    quoted: bool,
    strips_tabs: bool,
    content: String,
}

/// The instructions of a file.
///
/// # Errors
/// The first line that is not understood, or that asks for what is not built here.
pub fn parse(text: &str) -> Result<Vec<Instruction>, Wrong> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = text.lines().map(|line| line.strip_suffix('\r').unwrap_or(line)).enumerate().peekable();
    let mut found: Vec<Instruction> = Vec::new();
    let mut at_top = true;
    while let Some((index, first)) = lines.next() {
        let line = index + 1;
        if first.contains('\0') {
            return Err(Wrong::at(line, "there is a zero byte in it"));
        }
        let trimmed = first.trim();
        if let Some(comment) = trimmed.strip_prefix('#') {
            if at_top {
                at_top = directive(line, comment)?;
            }
            continue;
        }
        at_top = false;
        if trimmed.is_empty() {
            continue;
        }
        let mut whole = String::new();
        let mut next = trimmed.to_owned();
        while let Some(begun) = next.trim_end().strip_suffix('\\') {
            whole.push_str(begun);
            next = String::new();
            for (_, more) in lines.by_ref() {
                let is_left_out = more.trim().is_empty() || more.trim_start().starts_with('#');
                if !is_left_out {
                    next = more.to_owned();
                    break;
                }
            }
        }
        whole.push_str(&next);
        let whole = whole.trim();
        let (keyword, rest) = whole.split_once(char::is_whitespace).unwrap_or((whole, ""));
        let keyword = keyword.to_ascii_uppercase();
        let mut heredocs = match keyword.as_str() {
            "RUN" | "COPY" | "ADD" => heredocs(rest),
            _ => Vec::new(),
        };
        for heredoc in &mut heredocs {
            loop {
                let Some((_, text)) = lines.next() else {
                    return Err(Wrong::at(line, format!("the text up to `{}` has no end", heredoc.word)));
                };
                let text = if heredoc.strips_tabs { text.trim_start_matches('\t') } else { text };
                if text == heredoc.word {
                    break;
                }
                heredoc.content.push_str(text);
                heredoc.content.push('\n');
            }
        }
        let kind = instruction(&keyword, rest.trim(), heredocs).map_err(|what| Wrong::at(line, what))?;
        check_order(&found, &kind).map_err(|what| Wrong::at(line, what))?;
        if found.len() == MAX_INSTRUCTIONS {
            return Err(Wrong::at(line, format!("there are more than {MAX_INSTRUCTIONS} instructions")));
        }
        found.push(Instruction { line, text: shown(&keyword, rest), kind });
    }
    if !found.iter().any(|instruction| matches!(instruction.kind, Kind::From { .. })) {
        return Err(Wrong::at(1, "there is no FROM; expected `FROM IMAGE` or `FROM scratch`"));
    }
    Ok(found)
}

fn shown(keyword: &str, rest: &str) -> String {
    let mut text = format!("{keyword} {}", rest.split_whitespace().collect::<Vec<_>>().join(" "));
    if let Some((cut, _)) = text.char_indices().nth(120) {
        text.truncate(cut);
        text.push('…');
    }
    text
}

/// A comment at the top that may be an order to the parser; whether others may follow.
fn directive(line: usize, comment: &str) -> Result<bool, Wrong> {
    let Some((name, value)) = comment.split_once('=') else { return Ok(false) };
    match (name.trim().to_ascii_lowercase().as_str(), value.trim()) {
        ("escape", "`") => {
            Err(Wrong::at(line, "lines are continued by `\\` alone; remove `escape` and use that"))
        }
        ("escape" | "syntax" | "check", _) => Ok(true),
        _ => Ok(false),
    }
}

fn check_order(before: &[Instruction], kind: &Kind) -> Result<(), String> {
    let has_stage = before.iter().any(|instruction| matches!(instruction.kind, Kind::From { .. }));
    match kind {
        Kind::From { .. } | Kind::Arg(_) => Ok(()),
        _ if has_stage => Ok(()),
        _ => Err("it stands before the first FROM; only ARG may".to_owned()),
    }
}

/// The words that announce texts, in their order.
fn heredocs(rest: &str) -> Vec<Heredoc> {
    let announced = words::split(rest).unwrap_or_default();
    announced.iter().filter_map(|word| heredoc(word)).collect()
}

fn heredoc(word: &str) -> Option<Heredoc> {
    let word = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (strips_tabs, word) = match word.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, word),
    };
    let unquoted = ['"', '\''].iter().find_map(|quote| word.strip_prefix(*quote)?.strip_suffix(*quote));
    let (quoted, word) = (unquoted.is_some(), unquoted.unwrap_or(word));
    let legal = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
    (!word.is_empty() && word.chars().all(legal)).then(|| Heredoc {
        word: word.to_owned(),
        quoted,
        strips_tabs,
        content: String::new(),
    })
}

fn instruction(keyword: &str, rest: &str, heredocs: Vec<Heredoc>) -> Result<Kind, String> {
    let unsupported = match keyword {
        "HEALTHCHECK" => Some("give the service a `healthcheck` in the manifest"),
        "ONBUILD" => Some("write the instruction into the Containerfile that needs it"),
        "MAINTAINER" => Some("use LABEL"),
        _ => None,
    };
    if let Some(help) = unsupported {
        return Err(format!("{keyword} is not supported; {help}"));
    }
    const KNOWN: [&str; 15] = [
        "FROM",
        "RUN",
        "COPY",
        "ADD",
        "ENV",
        "ARG",
        "WORKDIR",
        "USER",
        "ENTRYPOINT",
        "CMD",
        "EXPOSE",
        "VOLUME",
        "LABEL",
        "STOPSIGNAL",
        "SHELL",
    ];
    if !KNOWN.contains(&keyword) {
        return Err(format!(
            "`{}` is not an instruction; expected one of {}",
            keyword.escape_debug(),
            KNOWN.join(", ")
        ));
    }
    if rest.is_empty() {
        return Err(format!("{keyword} needs something behind it"));
    }
    let one = |what: &str| match &words::split(rest)?[..] {
        [word] => Ok(word.clone()),
        _ => Err(format!("{keyword} needs one {what}")),
    };
    Ok(match keyword {
        "FROM" => from(rest)?,
        "RUN" => run(rest, heredocs)?,
        "COPY" | "ADD" => Kind::Copy(copy(keyword, rest, heredocs)?),
        "ENV" => Kind::Env(pairs(keyword, rest)?),
        "LABEL" => Kind::Label(pairs(keyword, rest)?),
        "ARG" => Kind::Arg(args(rest)?),
        "WORKDIR" => Kind::Workdir(rest.to_owned()),
        "USER" => Kind::User(one("user")?),
        "ENTRYPOINT" => Kind::Entrypoint(command(rest)),
        "CMD" => Kind::Cmd(command(rest)),
        "EXPOSE" => Kind::Expose(words::split(rest)?),
        "VOLUME" => match list(rest) {
            Some(list) => Kind::Volume(list),
            None => Kind::Volume(words::split(rest)?),
        },
        "STOPSIGNAL" => Kind::StopSignal(one("signal")?),
        _ => match list(rest).filter(|list| !list.is_empty()) {
            Some(list) => Kind::Shell(list),
            None => return Err("SHELL needs a list, such as `SHELL [\"/bin/bash\", \"-c\"]`".to_owned()),
        },
    })
}

/// `["a", "b"]`; what is no list of texts is the other form.
fn list(rest: &str) -> Option<Vec<String>> {
    rest.starts_with('[').then(|| serde_json::from_str(rest).ok()).flatten()
}

fn command(rest: &str) -> Command {
    list(rest).map_or_else(|| Command::Shell(rest.to_owned()), Command::Exec)
}

/// Takes the flags off the beginning: `--name=value`, or `--name`.
fn flags(rest: &str) -> (Vec<(&str, &str)>, &str) {
    let (mut found, mut rest) = (Vec::new(), rest.trim_start());
    while let Some(flag) = rest.strip_prefix("--") {
        let (flag, behind) = flag.split_once(char::is_whitespace).unwrap_or((flag, ""));
        if flag.is_empty() {
            break;
        }
        found.push(flag.split_once('=').unwrap_or((flag, "")));
        rest = behind.trim_start();
    }
    (found, rest)
}

fn from(rest: &str) -> Result<Kind, String> {
    let (flags, rest) = flags(rest);
    let mut platform = None;
    for (name, value) in flags {
        match name {
            "platform" => platform = Some(value.to_owned()),
            other => return Err(format!("FROM has no `--{}`", other.escape_debug())),
        }
    }
    let words = words::split(rest)?;
    let (image, name) = match &words[..] {
        [image] => (image.clone(), None),
        [image, by, name] if by.eq_ignore_ascii_case("as") => {
            (image.clone(), Some(name.to_ascii_lowercase()))
        }
        _ => return Err("expected `FROM IMAGE` or `FROM IMAGE AS NAME`".to_owned()),
    };
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if let Some(name) = &name
        && (!name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.chars().all(legal))
    {
        return Err(format!(
            "`{}` is not the name of a stage: a letter, then letters, digits, `-`, `_`, `.`",
            name.escape_debug()
        ));
    }
    Ok(Kind::From { image, platform, name })
}

fn run(rest: &str, heredocs: Vec<Heredoc>) -> Result<Kind, String> {
    let (flags, rest) = flags(rest);
    let mut mounts = Vec::new();
    for (name, value) in flags {
        if name != "mount" {
            return Err(format!(
                "`RUN --{}` is not supported; a command of a build has the network of a sandbox, and no more rights",
                name.escape_debug()
            ));
        }
        mounts.push(mounts::read(value)?);
    }
    if rest.is_empty() {
        return Err("RUN needs a command".to_owned());
    }
    Ok(Kind::Run(run_command(rest, &heredocs)?, mounts))
}

fn run_command(rest: &str, heredocs: &[Heredoc]) -> Result<Command, String> {
    match heredocs {
        [] => Ok(command(rest)),
        [only] if words::split(rest)?.len() == 1 => {
            if only.content.starts_with("#!") {
                return Err(
                    "a script with an interpreter of its own is not supported; write `RUN INTERPRETER <<EOF`"
                        .to_owned(),
                );
            }
            Ok(Command::Shell(only.content.clone()))
        }
        // The shell reads them itself.
        several => {
            let mut text = format!("{rest}\n");
            for heredoc in several {
                text.push_str(&heredoc.content);
                text.push_str(&heredoc.word);
                text.push('\n');
            }
            Ok(Command::Shell(text))
        }
    }
}

fn copy(keyword: &str, rest: &str, heredocs: Vec<Heredoc>) -> Result<Copy, String> {
    let (flags, rest) = flags(rest);
    let mut copy = Copy { is_add: keyword == "ADD", ..Copy::default() };
    for (name, value) in flags {
        let value = Some(value.to_owned());
        match name {
            "from" if !copy.is_add => copy.from = value,
            "chown" => copy.chown = value,
            "chmod" => copy.chmod = value,
            // A hint how to store the layer; the files are the same.
            "link" => {}
            other => return Err(format!("`{keyword} --{}` is not supported", other.escape_debug())),
        }
    }
    let mut words = match list(rest) {
        Some(list) => list,
        None => words::split(rest)?,
    };
    copy.target = words.pop().unwrap_or_default();
    if words.is_empty() {
        return Err(format!("{keyword} needs a source and a target"));
    }
    for word in words {
        match heredoc(&word) {
            Some(announced) => {
                let heredoc = heredocs.iter().find(|heredoc| heredoc.word == announced.word);
                let heredoc = heredoc.ok_or("a text is announced and does not follow")?;
                copy.inline.push(Inline {
                    name: heredoc.word.clone(),
                    content: heredoc.content.clone(),
                    expand: !heredoc.quoted,
                });
            }
            None if is_remote(&word) => {
                return Err(format!(
                    "`{}` is somewhere else, and a build takes files from its context alone; download it in a RUN, and check its digest there",
                    word.escape_debug()
                ));
            }
            None => copy.sources.push(word),
        }
    }
    if copy.from.is_some() && !copy.inline.is_empty() {
        return Err("`--from` and a text do not go together".to_owned());
    }
    Ok(copy)
}

fn is_remote(source: &str) -> bool {
    source.contains("://") || source.starts_with("git@")
}

/// `NAME=VALUE …`, or `NAME VALUE`.
fn pairs(keyword: &str, rest: &str) -> Result<Vec<(String, String)>, String> {
    let words = words::split(rest)?;
    let is_old_form = words.first().is_some_and(|word| !word.contains('='));
    let pairs: Vec<(String, String)> = if is_old_form {
        let (name, value) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        if value.trim().is_empty() {
            return Err(format!("expected `{keyword} NAME=VALUE`"));
        }
        vec![(name.to_owned(), value.trim().to_owned())]
    } else {
        let pair = |word: &String| {
            word.split_once('=')
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .ok_or_else(|| format!("expected `NAME=VALUE`, found `{}`", word.escape_debug()))
        };
        words.iter().map(pair).collect::<Result<_, _>>()?
    };
    match pairs.iter().find(|(name, _)| name.is_empty()) {
        Some(_) => Err("a name is missing before `=`".to_owned()),
        None => Ok(pairs),
    }
}

fn args(rest: &str) -> Result<Vec<(String, Option<String>)>, String> {
    let words = words::split(rest)?;
    let arg = |word: &String| {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word.as_str(), None),
        };
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '_';
        match !name.is_empty() && name.chars().all(legal) {
            true => Ok((name.to_owned(), value)),
            false => Err(format!("`{}` is not the name of a variable", name.escape_debug())),
        }
    };
    words.iter().map(arg).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn kinds(text: &str) -> Vec<Kind> {
        parse(text).unwrap().into_iter().map(|instruction| instruction.kind).collect()
    }

    fn wrong(text: &str) -> Wrong {
        parse(text).unwrap_err()
    }

    #[test]
    fn lines_are_continued_and_comments_left_out() {
        let text = "# syntax=docker/dockerfile:1\n\nFROM a AS One\nRUN x && \\\n  # why\n\n  y\nENV A=1 \\\r\n B=\"2 3\"\n";
        let found = parse(text).unwrap();
        assert_eq!(found.iter().map(|i| i.line).collect::<Vec<_>>(), [3, 4, 8]);
        assert_eq!(found[0].kind, Kind::From { image: "a".into(), platform: None, name: Some("one".into()) });
        assert_eq!(found[1].kind, Kind::Run(Command::Shell("x &&   y".into()), Vec::new()));
        assert_eq!(found[2].kind, Kind::Env(vec![("A".into(), "1".into()), ("B".into(), "\"2 3\"".into())]));
    }

    #[test]
    fn both_forms_of_a_command() {
        let shell = |text: &str| Kind::Run(Command::Shell(text.into()), Vec::new());
        assert_eq!(
            kinds("FROM a\nRUN [\"a\", \"b c\"]\nRUN [ -f x ] && y\nrun z")[1..],
            [
                Kind::Run(Command::Exec(vec!["a".into(), "b c".into()]), Vec::new()),
                shell("[ -f x ] && y"),
                shell("z")
            ]
        );
    }

    #[test]
    fn texts_follow_run_and_copy() {
        let text = "FROM a\nRUN <<EOF\necho 1\n# kept\nEOF\nRUN cat <<-X > /f && echo\n\tin\n\tX\nCOPY <<\"a.conf\" <<b /etc/\n$x\na.conf\n$y\nb\nUSER me\n";
        let found = parse(text).unwrap();
        assert_eq!(found[1].kind, Kind::Run(Command::Shell("echo 1\n# kept\n".into()), Vec::new()));
        assert_eq!(
            found[2].kind,
            Kind::Run(Command::Shell("cat <<-X > /f && echo\nin\nX\n".into()), Vec::new())
        );
        let inline =
            |name: &str, content: &str, expand| Inline { name: name.into(), content: content.into(), expand };
        let copy = Copy {
            inline: vec![inline("a.conf", "$x\n", false), inline("b", "$y\n", true)],
            target: "/etc/".into(),
            ..Copy::default()
        };
        assert_eq!(found[3].kind, Kind::Copy(copy));
        assert_eq!(found[4].line, 14);
        assert_eq!(wrong("FROM a\nRUN <<EOF\nx\n").line, 2);
    }

    #[test]
    fn what_is_not_built_is_refused_at_its_line() {
        for (text, says) in [
            ("RUN --mount=type=ssh y", "deploy key"),
            ("RUN --mount=type=cache y", "has no `target`"),
            ("RUN --mount=type=cache,target=/x", "needs a command"),
            ("RUN --network=none y", "--network"),
            ("HEALTHCHECK CMD x", "healthcheck"),
            ("ONBUILD RUN x", "ONBUILD"),
            ("MAINTAINER x", "LABEL"),
            ("ADD https://a.b/c /d", "context alone"),
            ("ADD git@a.b:c /d", "context alone"),
            ("COPY --parents a /b", "--parents"),
            ("ADD --checksum=x a /b", "--checksum"),
            ("INSTALL x", "is not an instruction"),
            ("COPY a", "source and a target"),
            ("ENV A", "NAME=VALUE"),
            ("ENV A=\"1", "quote"),
            ("SHELL bash", "list"),
            ("RUN", "needs something"),
            ("RUN <<X\n#!/bin/x\nX", "interpreter"),
            ("FROM a b", "AS NAME"),
            ("FROM --x=y a", "--x"),
            ("FROM a AS 1", "name of a stage"),
        ] {
            let wrong = wrong(&format!("FROM a\n\n{text}\n"));
            assert!(wrong.line == 3 && wrong.what.contains(says), "{text}: {wrong:?}");
        }
        assert_eq!(wrong("# escape=`\nFROM a").line, 1);
        assert_eq!(wrong("ARG A\nRUN x").line, 2);
        assert!(wrong("# nothing\n").what.contains("no FROM"));
    }

    #[test]
    fn flags_of_copy() {
        let copy = Copy {
            from: Some("build".into()),
            chown: Some("me:us".into()),
            chmod: Some("0755".into()),
            sources: vec!["/a b".into()],
            target: "/c".into(),
            ..Copy::default()
        };
        let text = "FROM a\nCOPY --from=build --chown=me:us --link --chmod=0755 [\"/a b\", \"/c\"]";
        assert_eq!(kinds(text)[1], Kind::Copy(copy));
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_too_strange(text in "(FROM a\n)?(RUN|COPY|ADD|ENV|ARG|LABEL|VOLUME|#)?[ -~\n\\\\\"'$<{}]{0,80}") {
            let _ = parse(&text);
        }
    }
}
