//! The command line as a program sees it: exit codes, streams, forms, help. What needs a sandbox is in the scenarios.
#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::scenarios::world::{Terminal, have};

/// A home of its own, so that nothing of this machine is seen or changed.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn with(manifest: &str) -> Self {
        let world = Self::new();
        world.write("pocketenv.yaml", manifest);
        world
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pocketenv"));
        command
            .args(args)
            .current_dir(self.path())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.path())
            .env("POCKETENV_HOME", self.path().join("home"))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

const ONE: &str = "version: 1\nname: demo\nsandboxes:\n  api:\n    ports: [8000]\n";

/// Every verb, with its subcommands. One that is missing here fails the test of the top-level help.
const VERBS: &[&[&str]] = &[
    &[],
    &["init"],
    &["validate"],
    &["fmt"],
    &["config"],
    &["schema"],
    &["plan"],
    &["rollback"],
    &["gc"],
    &["import"],
    &["controller"],
    &["controller", "run"],
    &["controller", "status"],
    &["state", "rm"],
    &["state", "mv"],
    &["sim"],
    &["emulate"],
    &["emulate", "e2b"],
    &["rehearse"],
    &["apply"],
    &["destroy"],
    &["status"],
    &["ls"],
    &["ps"],
    &["describe"],
    &["events"],
    &["history"],
    &["wait"],
    &["watch"],
    &["state"],
    &["state", "list"],
    &["state", "show"],
    &["state", "locks"],
    &["state", "unlock"],
    &["logs"],
    &["exec"],
    &["shell"],
    &["session"],
    &["session", "list"],
    &["session", "kill"],
    &["cp"],
    &["ports"],
    &["egress"],
    &["start"],
    &["stop"],
    &["restart"],
    &["pause"],
    &["resume"],
    &["snapshot"],
    &["snapshot", "create"],
    &["snapshot", "list"],
    &["snapshot", "rm"],
    &["fork"],
    &["image"],
    &["image", "list"],
    &["image", "pull"],
    &["image", "rm"],
    &["image", "gc"],
    &["preset"],
    &["preset", "list"],
    &["preset", "show"],
    &["provider"],
    &["provider", "list"],
    &["provider", "show"],
    &["provider", "login"],
    &["provider", "logout"],
    &["provider", "test"],
    &["secret"],
    &["secret", "set"],
    &["secret", "list"],
    &["secret", "rm"],
    &["doctor"],
    &["completion"],
];

#[test]
fn the_help_of_every_verb_is_as_it_was_read() {
    let world = World::new();
    let mut all = String::new();
    for &verb in VERBS {
        let output = world.run(&[verb, &["--help"]].concat());
        assert_eq!((code(&output), err(&output).as_str()), (0, ""), "{verb:?}");
        let help = out(&output);
        assert!(help.contains("Exit codes:"), "{verb:?}");
        // What every help repeats is kept once.
        let own = if verb.is_empty() { help.as_str() } else { help.split("Global options:").next().unwrap() };
        let examples = help.split("Global options:").nth(1).and_then(|rest| rest.split_once("\n\n"));
        let examples = examples.map_or("", |(_, rest)| rest.split("Exit codes:").next().unwrap());
        all += &format!("$ pocketenv {} --help\n{own}", verb.join(" "));
        if !verb.is_empty() {
            all += examples;
        }
        all += "\n";
    }
    insta::assert_snapshot!("help", all);
}

#[test]
fn the_top_level_help_lists_the_verbs_that_are_tested() {
    let help = out(&World::new().run(&["--help"]));
    let listed = help.split("Verbs:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    for line in listed.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   ")) {
        let verb = line.split_whitespace().next().unwrap();
        assert!(VERBS.contains(&[verb].as_slice()) || verb == "version", "{verb}");
    }
}

#[test]
fn a_wrong_command_line_is_64_and_its_reason_on_stderr() {
    let world = World::with(ONE);
    for args in [
        &["bogus"] as &[&str],
        &[],
        &["plan", "--bogus"],
        &["apply", "--timeout", "soon"],
        &["apply", "--parallelism", "0"],
        &["plan", "--target", "sandbox/"],
        &["cp", "a", "b"],
        &["exec", "api"],
        &["exec", "-e", "=x", "api", "--", "true"],
        &["wait", "--for", "green"],
        &["status", "-o", "xml"],
        &["plan", "--var", "novalue"],
        &["stop", "volume/data"],
    ] {
        let output = world.run(args);
        assert_eq!(code(&output), 64, "{args:?}: {}", err(&output));
        assert_eq!(out(&output), "", "{args:?}");
        assert_ne!(err(&output), "", "{args:?}");
    }
    for (name, value) in
        [("POCKETENV_PROGRESS", "loud"), ("POCKETENV_LOG", "a=b=c"), ("POCKETENV_PARALLELISM", "many")]
    {
        let output = world.command(&["apply", "--dry-run"]).env(name, value).output().unwrap();
        assert_eq!(code(&output), 64, "{name}");
        assert!(err(&output).contains(name), "{}", err(&output));
    }
}

#[test]
fn a_value_on_the_command_line_is_not_repeated_in_errors() {
    let output = World::with(ONE).run(&["plan", "--var", "=hunter2"]);
    assert_eq!(code(&output), 64);
    assert!(err(&output).contains("NAME=VALUE"), "{}", err(&output));
}

#[test]
fn an_invalid_manifest_is_3_for_every_verb_that_reads_it() {
    let world = World::with("version: 1\nsandboxes:\n  api: { imgae: host, ports: [70000] }\n");
    for args in [
        &["validate"] as &[&str],
        &["config"],
        &["plan"],
        &["apply", "-y"],
        &["destroy", "-y"],
        &["status"],
        &["exec", "api", "--", "true"],
        &["logs"],
    ] {
        let output = world.run(args);
        assert_eq!(code(&output), 3, "{args:?}");
        assert_eq!(out(&output), "", "{args:?}");
        // Both problems, each with its place.
        assert!(err(&output).contains("pocketenv.yaml:3:10"), "{}", err(&output));
        assert!(err(&output).contains("did you mean `image`?"), "{}", err(&output));
        assert!(err(&output).contains("70000"), "{}", err(&output));
    }
    assert!(!world.path().join("home").exists(), "a manifest that is not valid opens no store");
}

#[test]
fn no_manifest_is_3_and_says_how_to_get_one() {
    let output = World::new().run(&["plan"]);
    assert_eq!(code(&output), 3);
    assert!(err(&output).contains("pocketenv init"), "{}", err(&output));
}

#[test]
fn problems_are_data_where_data_was_asked_for() {
    let world = World::with("version: 1\nsandboxes:\n  api: { imgae: host }\n");
    for args in [["validate", "-o", "json"], ["validate", "--format", "json"]] {
        let output = world.run(&args);
        assert_eq!(code(&output), 3);
        let value = json(&output);
        assert_eq!(value["format_version"], "1.0");
        assert_eq!(value["valid"], false);
        assert_eq!(value["diagnostics"][0]["code"], "unknown-key");
        assert_eq!(value["diagnostics"][0]["labels"][0]["line"], 3);
    }
    let github = world.run(&["validate", "--format", "github"]);
    assert!(out(&github).starts_with("::error file="), "{}", out(&github));
}

#[test]
fn verbs_about_text_open_no_store() {
    let world = World::with(ONE);
    for args in [
        &["validate"] as &[&str],
        &["config"],
        &["fmt", "--check"],
        &["schema"],
        &["schema", "preset"],
        &["version"],
        &["completion", "bash"],
        &["preset", "list"],
        &["provider", "list"],
        &["--help"],
    ] {
        let output = world.run(args);
        assert_eq!(code(&output), 0, "{args:?}: {}", err(&output));
    }
    assert!(!world.path().join("home").exists());
}

#[test]
fn every_object_is_json_with_its_version() {
    let world = World::with(ONE);
    for args in [
        &["validate"] as &[&str],
        &["config"],
        &["version"],
        &["plan"],
        &["status"],
        &["ls"],
        &["ls", "--all"],
        &["ps"],
        &["ports"],
        &["describe"],
        &["history"],
        &["state", "list"],
        &["state", "locks"],
        &["preset", "list"],
        &["preset", "show", "node"],
        &["provider", "list"],
        &["provider", "show", "local"],
    ] {
        let output = world.run(&[args, &["-o", "json"]].concat());
        assert_eq!(code(&output), 0, "{args:?}: {}", err(&output));
        assert_eq!(json(&output)["format_version"], "1.0", "{args:?}");
        let yaml = world.run(&[args, &["-o", "yaml"]].concat());
        let value: Value = serde_saphyr::from_str(&out(&yaml)).unwrap();
        assert_eq!(value["format_version"], "1.0", "{args:?}");
    }
}

#[test]
fn names_are_one_a_line() {
    let world = World::with("version: 1\nname: demo\nsandboxes: { web: { count: 2 }, db: {} }\n");
    assert_eq!(out(&world.run(&["ls", "-o", "name"])), "db\nweb-1\nweb-2\n");
    assert_eq!(out(&world.run(&["plan", "-o", "name"])), "sandbox/db\nsandbox/web-1\nsandbox/web-2\n");
}

#[test]
fn a_plan_has_its_own_codes_and_forms() {
    let world = World::with(ONE);
    assert_eq!(code(&world.run(&["plan"])), 0);
    assert_eq!(code(&world.run(&["diff", "--detailed-exitcode"])), 2);
    assert!(out(&world.run(&["plan", "--format", "markdown"])).starts_with("### Plan for `demo`"));
    assert!(out(&world.run(&["plan", "--format", "dot"])).starts_with("digraph plan {"));
    let empty = World::with("version: 1\nname: demo\nsandboxes: {}\n");
    assert_eq!(code(&empty.run(&["plan", "--detailed-exitcode"])), 0);
}

#[test]
fn a_saved_plan_is_private_and_stale_when_the_manifest_has_changed() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::with(ONE);
    let output = world.run(&["plan", "-out", "next.plan"]);
    assert_eq!(code(&output), 0, "{}", err(&output));
    let mode = std::fs::metadata(world.path().join("next.plan")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    world.write("pocketenv.yaml", &ONE.replace("8000", "8001"));
    let output = world.run(&["apply", "--yes", "next.plan"]);
    assert_eq!(code(&output), 8, "{}", err(&output));
    assert!(err(&output).contains("stale"), "{}", err(&output));
    world.write("not.plan", "{}");
    assert_eq!(code(&world.run(&["apply", "--yes", "not.plan"])), 1);
}

#[test]
fn where_nobody_can_be_asked_the_flag_is_named() {
    let world = World::with(ONE);
    let output = world.run(&["apply"]);
    assert_eq!(code(&output), 8, "{}", err(&output));
    assert!(err(&output).contains("--yes"), "{}", err(&output));
    assert_eq!(json(&world.run(&["state", "list", "-o", "json"]))["sandboxes"], serde_json::json!({}));
}

#[test]
fn an_unknown_name_gets_a_suggestion() {
    let world = World::with("version: 1\nname: demo\nsandboxes: { database: {} }\n");
    let output = world.run(&["exec", "databse", "--", "true"]);
    assert_eq!(code(&output), 1);
    assert!(err(&output).contains("did you mean `database`?"), "{}", err(&output));
    let output = world.run(&["provider", "show", "locl"]);
    assert_eq!(code(&output), 1);
    assert!(err(&output).contains("did you mean `local`?"), "{}", err(&output));
}

#[test]
fn a_project_that_another_process_writes_to_is_6() {
    let world = World::with(ONE);
    assert_eq!(code(&world.run(&["ls"])), 0);
    // A holder that runs: ourselves.
    let store = world.path().join("home/state/state.db");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let guard = runtime.block_on(async {
        use pocketenv::app::{SystemClock, UuidIds};
        use pocketenv::store::{Holder, Store};
        let store =
            Store::open(store, std::sync::Arc::new(SystemClock), std::sync::Arc::new(UuidIds)).await.unwrap();
        let lease = std::time::Duration::from_secs(60);
        store.acquire("demo", Holder::current("somebody"), lease, std::time::Duration::ZERO).await.unwrap()
    });
    let output = world.run(&["apply", "--yes", "--lock-timeout", "100ms"]);
    assert_eq!(code(&output), 6, "{}", err(&output));
    assert!(err(&output).contains("somebody"), "{}", err(&output));
    let stream = out(&world.run(&["apply", "--yes", "--lock-timeout", "100ms", "-o", "json"]));
    let lines: Vec<Value> = stream.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let types: Vec<&str> = lines.iter().map(|line| line["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["stream", "waiting_for_lock", "error"]);
    assert_eq!((&lines[0]["format_version"], &lines[2]["exit_code"]), (&"1.0".into(), &6.into()));
    assert_eq!(out(&world.run(&["state", "locks", "-o", "name"])), "demo\n");
    runtime.block_on(guard.release()).unwrap();
    assert_eq!(out(&world.run(&["state", "locks", "-o", "name"])), "");
}

#[test]
fn waiting_ends_with_5() {
    let world = World::with(ONE);
    let output = world.run(&["wait", "api", "--timeout", "50ms"]);
    assert_eq!(code(&output), 5, "{}", err(&output));
    assert_eq!(code(&world.run(&["wait", "api", "--for", "deleted", "--timeout", "50ms"])), 0);
}

#[test]
fn colour_is_for_terminals_or_on_demand() {
    let world = World::with(ONE);
    let coloured = |command: &mut Command| out(&command.output().unwrap()).contains('\u{1b}');
    assert!(!coloured(&mut world.command(&["plan"])));
    assert!(coloured(&mut world.command(&["plan", "--color", "always"])));
    assert!(!coloured(world.command(&["plan"]).env("NO_COLOR", "1")));
    assert!(!coloured(&mut world.command(&["plan", "--color", "never"])));
}

#[test]
fn a_closed_pipe_is_a_quiet_end() {
    let world = World::with(ONE);
    for args in
        [&["schema"] as &[&str], &["--help"], &["completion", "bash"], &["plan"], &["config", "-o", "json"]]
    {
        let mut child = world.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{args:?}");
        assert!(!said.contains("panicked") && !said.contains("Broken pipe"), "{args:?}: {said}");
    }
}

#[test]
fn init_never_overwrites_and_fmt_keeps_comments() {
    let world = World::new();
    assert_eq!(code(&world.run(&["init"])), 0);
    assert_eq!(code(&world.run(&["validate"])), 0);
    assert_eq!(code(&world.run(&["fmt", "--check"])), 0);
    let before = std::fs::read(world.path().join("pocketenv.yaml")).unwrap();
    assert_eq!(code(&world.run(&["init"])), 1);
    assert_eq!(std::fs::read(world.path().join("pocketenv.yaml")).unwrap(), before);

    world.write("pocketenv.yaml", "version: 1   \nsandboxes:\n    api: {}   # the api\n");
    let output = world.run(&["fmt", "--check"]);
    assert_eq!((code(&output), out(&output).lines().count()), (1, 1));
    assert_eq!(code(&world.run(&["fmt"])), 0);
    let text = std::fs::read_to_string(world.path().join("pocketenv.yaml")).unwrap();
    assert_eq!(text, "version: 1\nsandboxes:\n  api: {} # the api\n".replace("{} #", "{}   #"));
    assert_eq!(code(&world.run(&["fmt", "--check"])), 0);
}

#[test]
fn flags_come_from_the_environment_where_they_are_not_given() {
    let world = World::new();
    world.write("a.yaml", ONE);
    world.write("b.yaml", "version: 1\nsandboxes: { extra: {} }\n");
    let names = |command: &mut Command| out(&command.output().unwrap());
    assert_eq!(
        names(world.command(&["ls", "-o", "name"]).env("POCKETENV_FILE", "a.yaml:b.yaml")),
        "api\nextra\n"
    );
    assert_eq!(
        names(world.command(&["ls", "-o", "name", "-f", "a.yaml"]).env("POCKETENV_FILE", "b.yaml")),
        "api\n"
    );
    let output = world
        .command(&["config", "-f", "a.yaml", "-o", "json"])
        .env("POCKETENV_PROJECT", "other")
        .output()
        .unwrap();
    assert_eq!(json(&output)["name"], "other");
}

/// `PATH`, with this program first.
fn path_with_ours() -> String {
    let program = super::scenarios::world::program();
    format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap())
}

#[test]
fn completion_knows_what_the_manifest_declares() {
    let world = World::new();
    let complete = |line: &[&str]| {
        let mut command = world.command(&[&["--", "pocketenv"], line].concat());
        command.env("POCKETENV_COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", line.len().to_string());
        let output = command.env("_CLAP_IFS", "\n").output().unwrap();
        assert_eq!(code(&output), 0, "{}", err(&output));
        out(&output).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(complete(&["she"]), ["shell"], "without a manifest");
    world.write(
        "pocketenv.yaml",
        "version: 1\nsandboxes:\n  api:\n    services: { web: { command: x }, worker: { command: y } }\n  db: { count: 2 }\n",
    );
    world.write("other.yaml", "version: 1\nsandboxes: { another: {} }\n");
    assert_eq!(complete(&["exec", "a"]), ["api"]);
    assert_eq!(complete(&["shell", "--session", "work", "d"]), ["db-1", "db-2"]);
    assert_eq!(complete(&["logs", "api/"]), ["api/web", "api/worker"]);
    assert_eq!(complete(&["restart", "api/we"]), ["api/web"]);
    assert_eq!(complete(&["session", "kill", "ap"]), ["api"]);
    assert_eq!(complete(&["cp", "ap"]), ["api:"]);
    assert_eq!(complete(&["cp", "poc"]), ["pocketenv.yaml"]);
    assert_eq!(complete(&["-f", "other.yaml", "exec", "a"]), ["another"]);
    world.write("pocketenv.yaml", "version: 1\nsandboxes: [");
    assert_eq!(complete(&["she"]), ["shell"], "while the manifest is being worked on");
    assert_eq!(complete(&["exec", "a"]), [""; 0]);

    // As bash does it, by the script.
    world.write("pocketenv.yaml", ONE);
    let script =
        "eval \"$(pocketenv completion bash)\"; COMP_WORDS=(pocketenv exec a) COMP_CWORD=2 COMP_TYPE=9
        _clap_complete_pocketenv pocketenv a exec; echo \"${COMPREPLY[@]}\"";
    let mut bash = Command::new("bash");
    bash.args(["-c", script]).current_dir(world.path()).env("POCKETENV_HOME", world.path().join("home"));
    assert_eq!(out(&bash.env("PATH", path_with_ours()).output().unwrap()), "api\n");
}

#[test]
fn completion_works_in_the_shells_themselves() {
    if !have(&["fish", "zsh"]) {
        return;
    }
    let world = World::with("version: 1\nsandboxes: { api: { services: { web: { command: x } } } }\n");
    let path = path_with_ours();
    let shell = |name: &str, args: &[&str]| {
        let mut shell = Command::new(name);
        shell.args(args).current_dir(world.path()).env("HOME", world.path()).env("PATH", &path);
        shell.env("POCKETENV_HOME", world.path().join("home")).env("TERM", "dumb");
        shell
    };
    let ask = "pocketenv completion fish | source; complete -C 'pocketenv exec a'; complete -C 'pocketenv logs api/'";
    assert_eq!(out(&shell("fish", &["--no-config", "-c", ask]).output().unwrap()), "api\napi/web\n");

    // It can be asked at a terminal only.
    let mut zsh = Terminal::of(&mut shell("zsh", &["-f", "-i"]));
    let types = |text: &str| (&zsh.keys).write_all(text.as_bytes()).unwrap();
    types("autoload -U compinit && compinit -u -D; eval \"$(pocketenv completion zsh)\"; echo RE''ADY\n");
    zsh.shows("\nREADY");
    types("pocketenv exec a\t");
    zsh.shows("pocketenv exec api ");
    types("\u{15}pocketenv logs api/\t");
    zsh.shows("pocketenv logs api/web ");
    zsh.child.kill().unwrap();
    zsh.child.wait().unwrap();
}

#[test]
fn completion_and_manual_cover_every_shell_and_verb() {
    let world = World::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let output = world.run(&["completion", shell]);
        assert_eq!(code(&output), 0);
        assert!(out(&output).contains("POCKETENV_COMPLETE"), "{shell}");
    }
    assert_eq!(code(&world.run(&["man", "--dir", "man"])), 0);
    assert!(world.path().join("man/pocketenv-apply.1").is_file());
}

#[test]
fn a_directory_is_its_project_or_every_project_in_it() {
    let world = World::new();
    for dir in ["one", "many"] {
        std::fs::create_dir(world.path().join(dir)).unwrap();
    }
    world.write("one/pocketenv.yaml", ONE);
    world.write("one/pocketenv.prod.yaml", "version: 1\nsandboxes: { api: { hostname: prod } }\n");
    assert_eq!(out(&world.run(&["ls", "-f", "one", "-o", "name"])), "api\n");
    world.write("many/a.yaml", "version: 1\nname: a\nsandboxes: { x: {} }\n");
    world.write("many/b.yaml", "version: 1\nname: b\nsandboxes: { y: {} }\n");
    assert_eq!(out(&world.run(&["plan", "-f", "many", "-o", "name"])), "sandbox/x\nsandbox/y\n");
    assert_eq!(code(&world.run(&["plan", "-f", "many", "--detailed-exitcode"])), 2);
    assert_eq!(code(&world.run(&["exec", "-f", "many", "x", "--", "true"])), 64);
    world.write("many/b.yaml", "version: 2\n");
    let output = world.run(&["plan", "-f", "many", "-o", "name"]);
    assert_eq!((code(&output), out(&output).as_str()), (4, "sandbox/x\n"), "{}", err(&output));
}
