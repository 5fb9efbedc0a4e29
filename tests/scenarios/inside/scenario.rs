//! People work inside sandboxes: commands with their streams and codes, terminals, files in and out, logs, stop and start.

use std::fs;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::scenarios::world::{Terminal, World, eventually};

#[test]
fn inside() {
    let world = World::scenario("inside");
    world.apply();
    commands(&world);
    streams(&world);
    files(&world);
    logs(&world);
    control(&world);
    terminal(&world);
}

fn commands(world: &World) {
    // streams stay apart, and the code is the command's
    let run = world.run(&["exec", "box", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]).ends(7);
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("out\n", "err\n"));
    world.run(&["exec", "box", "--", "sh", "-c", "kill -9 $$"]).ends(137);
    world.run(&["exec", "box", "--", "no-such-program"]).ends(127);
    world.run(&["exec", "--timeout", "200ms", "box", "--", "sleep", "1000"]).ends(5);

    // arguments are what was typed, with or without `--`, and by every name
    let run = world.run(&["exec", "sandbox/box", "printf", "[%s]", "a b", "$HOME", "-f", "--"]).ends(0);
    assert_eq!(run.stdout, "[a b][$HOME][-f][--]");
    let id = world.id("box");
    world.run(&["exec", &id, "--", "true"]).ends(0);

    // the environment of the manifest, then what the flags say
    assert_eq!(world.sh("box", "echo $GREETING"), "hello there");
    let run = world.run(&[
        "exec",
        "-e",
        "GREETING=bye",
        "-w",
        "/tmp",
        "box",
        "--",
        "sh",
        "-c",
        "echo $GREETING; pwd",
    ]);
    assert_eq!(run.ends(0).stdout, "bye\n/tmp\n");

    // a sandbox can be got at while its manifest is being worked on
    world.edit("pocketenv.yaml", "  other: {}", "  other: { env_file: [not-there.env] }");
    world.run(&["plan"]).ends(3);
    assert_eq!(world.sh("box", "echo $GREETING"), "hello there");
    world.run(&["logs", "box"]).ends(0);
    world.edit("pocketenv.yaml", "  other: { env_file: [not-there.env] }", "  other: {}");

    // standard input is passed, bytes are bytes
    let mut child = world
        .command(&["exec", "box", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let sent: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn({
        let sent = sent.clone();
        move || stdin.write_all(&sent).unwrap()
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout == sent, "a mebibyte of every byte comes back");

    // a script for a shell
    let mut child = world
        .command(&["shell", "box"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"echo from a shell\nexit 3\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stdout).contains("from a shell"));
}

/// Files and terminals of ours are not given to what runs inside, but it seems so.
fn streams(world: &World) {
    let file = |name: &str| {
        let path = world.project().join(name);
        fs::File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap()
    };
    let run = |script: &str, input: fs::File| {
        let (mut out, err) = (file("out"), file("err"));
        let mut command = world.command(&["exec", "box", "--", "sh", "-c", script]);
        command.stdin(input).stdout(out.try_clone().unwrap()).stderr(err);
        let code = command.status().unwrap().code();
        let mut text = String::new();
        out.rewind().unwrap();
        out.read_to_string(&mut text).unwrap();
        (code, text)
    };

    // what a command leaves of a file is there for the next one
    let mut lines = file("lines");
    lines.write_all(b"one\ntwo\nthree\n").unwrap();
    lines.rewind().unwrap();
    for line in ["one\n", "two\n"] {
        assert_eq!(run("read line; echo $line", lines.try_clone().unwrap()), (Some(0), line.to_owned()));
    }
    assert_eq!(lines.stream_position().unwrap(), 8);
    assert_eq!(run("cat", lines.try_clone().unwrap()), (Some(0), "three\n".to_owned()));

    // streams can be opened again by their names
    lines.rewind().unwrap();
    let script = "cat /dev/stdin; echo out >/dev/stdout; echo err >/dev/stderr";
    assert_eq!(run(script, lines), (Some(0), "one\ntwo\nthree\nout\n".to_owned()));
    assert_eq!(fs::read_to_string(world.project().join("err")).unwrap(), "err\n");
    assert_eq!(run("cat /dev/stdin", fs::File::open("/dev/null").unwrap()), (Some(0), String::new()));

    // a directory is no input, and no way into it
    let (code, text) = run("ls -a /proc/self/fd/0/", fs::File::open(world.project()).unwrap());
    assert!(code != Some(0) && !text.contains("pocketenv.yaml"), "{code:?} {text}");
}

fn files(world: &World) {
    let tree = world.project().join("tree");
    fs::create_dir_all(tree.join("empty")).unwrap();
    fs::write(tree.join("run"), b"#!/bin/sh\necho \xff\0\n").unwrap();
    fs::set_permissions(tree.join("run"), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("run", tree.join("link")).unwrap();
    world.run(&["cp", "tree", "box:/tmp/tree"]).ends(0);
    world.run(&["cp", "box:/tmp/tree", "sandbox/other:/tmp/tree"]).ends(0);
    world.run(&["cp", "other:/tmp/tree", "back"]).ends(0);
    let back = world.project().join("back");
    assert_eq!(fs::read(back.join("run")).unwrap(), fs::read(tree.join("run")).unwrap());
    assert_eq!(fs::metadata(back.join("run")).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(fs::read_link(back.join("link")).unwrap().to_str(), Some("run"));
    assert!(back.join("empty").is_dir());
    world.run(&["cp", "box:/tmp/nothing", "x"]).ends(1);
    assert!(!world.project().join("x").exists());
}

fn logs(world: &World) {
    eventually("both services have written", || {
        let text = world.run(&["logs", "--tail", "1", "box"]).ends(0).stdout;
        text.contains("one | one\n") && text.contains("two | two\n")
    });
    assert_eq!(world.run(&["logs", "--tail", "1", "box/one"]).ends(0).stdout, "one\n");
    let lines = world.run(&["logs", "--tail", "1", "-o", "json", "box/two"]).ends(0).stdout;
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!((&last["resource"], &last["text"]), (&"sandbox/box/service/two".into(), &"two".into()));
    world.run(&["logs", "box/three"]).ends(1);

    // following ends when it is told to
    let mut following =
        world.command(&["logs", "-f", "--tail", "0", "box/one"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 4];
    following.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(&line, b"one\n");
    kill(pid(&following), Signal::SIGINT).unwrap();
    assert_eq!(following.wait().unwrap().code(), Some(130));
}

fn control(world: &World) {
    let (init, one, two) = (world.init("box"), one(world), service(world, "two"));
    world.run(&["stop", "box/one"]).ends(0);
    assert!(!one.lives() && two.lives() && init.lives());
    world.run(&["start", "box/one"]).ends(0);
    world.run(&["restart", "box/two"]).ends(0);
    assert!(!two.lives() && init.lives());
    world.run(&["stop", "box"]).ends(0);
    assert!(!init.lives());
    let run = world.run(&["exec", "box", "--", "true"]).ends(1);
    assert!(run.stderr.contains("pocketenv start box"), "{}", run.stderr);
    world.run(&["start", "box"]).ends(0);
    world.run(&["wait", "--timeout", "30s"]).ends(0);
    world.assert_converged();
}

fn one(world: &World) -> crate::scenarios::world::Process {
    service(world, "one")
}

fn service(world: &World, name: &str) -> crate::scenarios::world::Process {
    world.process("box", &format!("sh -c while :; do echo {name}"))
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap())
}

fn terminal(world: &World) {
    let script = r#"
        test -t 0 && test -t 1 && echo terminal && stty size
        while [ "$(stty size)" = "33 101" ]; do sleep 0.05; done
        stty size
        read line
        echo "got $line"
        exit 5
    "#;
    let mut terminal = Terminal::new(world, &["exec", "-it", "box", "--", "sh", "-c", script]);
    terminal.shows("33 101");
    assert!(terminal.is_raw());
    terminal.resize(44, 111);
    terminal.shows("44 111");
    terminal.keys.write_all(b"keys\r").unwrap();
    terminal.shows("got keys");
    assert_eq!(terminal.end(), 5);

    // at a terminal there is one without asking, of its own; Ctrl-C belongs to the command
    let script = "readlink /proc/self/fd/0; echo ready; exec sleep 1000";
    let mut terminal = Terminal::new(world, &["exec", "box", "--", "sh", "-c", script]);
    terminal.shows("/dev/pts/0");
    terminal.shows("ready");
    terminal.keys.write_all(&[3]).unwrap();
    assert_eq!(terminal.end(), 130);

    // a signal to us ends it, and the terminal is put back
    let mut terminal =
        Terminal::new(world, &["exec", "-it", "box", "--", "sh", "-c", "echo ready; exec sleep 1000"]);
    terminal.shows("ready");
    assert!(terminal.is_raw());
    terminal.signal(Signal::SIGTERM);
    assert_eq!(terminal.end(), 143);
    eventually("nothing is left of it", || !world.processes().iter().any(|p| p.command == "sleep 1000"));
}
