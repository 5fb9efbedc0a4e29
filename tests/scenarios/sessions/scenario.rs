//! Two people at one shell, who leave in every way there is, and come back from another terminal.

use std::io::Write as _;
use std::process::Stdio;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::scenarios::world::{Terminal, World, eventually};

const DETACH: &[u8] = b"\x1c";

#[test]
fn sessions() {
    let world = World::scenario("sessions");
    world.apply();
    let empty = world.run(&["session", "list", "-o", "json"]).ends(0).json();
    assert_eq!(empty["sessions"], Value::Array(Vec::new()));
    shared(&world);
    left(&world);
    scripts(&world);
    screens(&world);
    wrong(&world);
    world.run(&["stop", "box"]).ends(0);
    world.run(&["exec", "box", "--session", "work"]).ends(1);
    world.run(&["session", "list"]).ends(0);
    world.destroy_and_see_nothing_left(&[]);
}

fn session(world: &World, name: &str) -> Option<Value> {
    let listed = world.run(&["session", "list", "box", "-o", "json"]).ends(0).json();
    listed["sessions"].as_array().unwrap().iter().find(|session| session["session"] == name).cloned()
}

fn clients(world: &World) -> Option<u64> {
    session(world, "work")?["clients"].as_u64()
}

fn shared(world: &World) {
    let mut one = Terminal::new(world, &["shell", "box", "--session", "work"]);
    one.shows("session work of box; ctrl-\\ detaches");
    one.keys.write_all(b"echo \"$GREETING\" from $((40+2))\r").unwrap();
    one.shows("hello there from 42");
    let mut two = Terminal::new(world, &["shell", "box", "--session", "work"]);
    two.shows("with 1 more attached; ctrl-\\ detaches");
    two.shows("hello there from 42");
    two.keys.write_all(b"echo typed-by-$((1+1))\r").unwrap();
    one.shows("typed-by-2");
    let listed = session(world, "work").unwrap();
    assert_eq!((&listed["sandbox"], &listed["command"]), (&"box".into(), &"shell".into()));
    assert_eq!((&listed["clients"], &listed["state"]), (&2.into(), &"running".into()));
    assert_eq!((&listed["rows"], &listed["columns"]), (&33.into(), &101.into()));
    assert!(listed["since"].as_str().unwrap().ends_with('Z'), "{listed}");
    two.resize(44, 111);
    eventually("it has the size of the other", || session(world, "work").unwrap()["rows"] == 44);
    one.keys.write_all(b"stty size\r").unwrap();
    one.shows("33 101");

    // One detaches; the other is killed with its terminal; the shell is still there, with what it knows.
    one.keys.write_all(b"mark=here-it-is\r").unwrap();
    one.keys.write_all(DETACH).unwrap();
    assert_eq!(one.end(), 0);
    assert!(one.shown().contains("detached; `pocketenv exec box --session work`"), "{}", one.shown());
    two.signal(Signal::SIGKILL);
    two.child.wait().unwrap();
    eventually("nobody is attached", || clients(world) == Some(0));
    let mut three = Terminal::new(world, &["exec", "-it", "box", "--session", "work"]);
    three.shows("typed-by-2");
    three.keys.write_all(b"echo $mark-$((2+2))\r").unwrap();
    three.shows("here-it-is-4");

    // The end is told to all of them, with the code.
    let mut four = Terminal::new(world, &["shell", "box", "--session", "work"]);
    four.shows("here-it-is-4");
    four.keys.write_all(b"exit 6\r").unwrap();
    assert_eq!((three.end(), four.end()), (6, 6));
    assert_eq!(session(world, "work"), None);
}

fn left(world: &World) {
    for signal in [Signal::SIGHUP, Signal::SIGTERM] {
        let mut terminal = Terminal::new(world, &["shell", "box", "--session", "work"]);
        terminal.shows("ctrl-\\ detaches");
        eventually("it is attached", || clients(world) == Some(1));
        terminal.signal(signal);
        assert_eq!(terminal.end(), 128 + signal as i32);
        eventually("it is left", || clients(world) == Some(0));
    }
    // A client that is stopped keeps nobody from working.
    let mut stopped = Terminal::new(world, &["shell", "box", "--session", "work"]);
    eventually("it is attached", || clients(world) == Some(1));
    stopped.signal(Signal::SIGSTOP);
    let mut terminal = Terminal::new(world, &["shell", "box", "--session", "work", "--detach-key", "ctrl-]"]);
    terminal.shows("ctrl-] detaches");
    terminal.keys.write_all(b"seq 1 300000; echo all-$((1+1))-of-them\r").unwrap();
    terminal.shows("all-2-of-them");
    stopped.signal(Signal::SIGCONT);
    stopped.shows("all-2-of-them");
    terminal.keys.write_all(b"\x1b[93;5u").unwrap();
    assert_eq!(terminal.end(), 0);
    world.run(&["session", "kill", "box", "work"]).ends(0);
    assert_ne!(stopped.end(), 0);
    assert_eq!(session(world, "work"), None);
    world.run(&["session", "kill", "box", "work"]).ends(1);
}

/// Without a terminal of one's own: made, followed, asked for its end.
fn scripts(world: &World) {
    let script = "echo begun; until [ -e /tmp/go ]; do sleep 0.05; done; echo over; exit 3";
    let make = ["exec", "-d", "--session", "build", "box", "--", "sh", "-c", script];
    let made = world.run(&make).ends(0);
    assert!(made.stderr.contains("session build of box runs"), "{}", made.stderr);
    let again = world.run(&make).ends(0);
    assert!(again.stderr.contains("already"), "{}", again.stderr);
    let listed = session(world, "build").unwrap();
    assert!(listed["command"].as_str().unwrap().starts_with("sh -c echo begun"), "{listed}");
    let follower = world.start(&["exec", "--session", "build", "box"]);
    eventually("it follows", || session(world, "build").unwrap()["clients"] == 1);
    world.sh("box", "touch /tmp/go");
    let followed = world.finish(follower).ends(3);
    assert_eq!(followed.stdout, "begun\r\nover\r\n");
    assert_eq!(session(world, "build"), None);

    // Nobody looks when it ends.
    world.run(&make).ends(0);
    eventually("it ends", || session(world, "build").is_some_and(|session| session["state"] == "ended"));
    assert_eq!(session(world, "build").unwrap()["exit_code"], 3);
    let asked = world.run(&["exec", "--session", "build", "box"]).ends(3);
    assert_eq!(asked.stdout, "begun\r\nover\r\n");
    assert!(asked.stderr.contains("ended with 3"), "{}", asked.stderr);
    let table = world.run(&["session", "list"]).ends(0).stdout;
    assert!(table.contains("ended with 3"), "{table}");
    assert_eq!(world.run(&["sessions", "list", "-o", "name"]).ends(0).stdout, "box/build\n");
    world.run(&["session", "rm", "box", "build"]).ends(0);

    // What is piped in is typed.
    let mut child = world
        .command(&["exec", "--session", "piped", "box", "--", "sh", "-c", "read a; echo \"<$a>\"; exit 4"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"some words\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&output.stdout).contains("<some words>"));
}

/// A program that fills the screen is found as it was, and leaves nothing behind on the terminal of one who detaches.
fn screens(world: &World) {
    let script = r#"printf '\033[?1049h\033[?25l\033[?2004hthe \033[6nscreen'; read line"#;
    let mut one = Terminal::new(world, &["exec", "--session", "full", "box", "--", "sh", "-c", script]);
    one.shows("screen");
    assert!(one.shown().contains("\x1b[6n"), "who is there is asked");
    one.keys.write_all(DETACH).unwrap();
    assert_eq!(one.end(), 0);
    one.shows("\x1b[?2004l\x1b[?25h\x1b[?1049l\x1b[m");
    let mut two = Terminal::new(world, &["exec", "--session", "full", "box"]);
    two.shows("\x1b[?1049h\x1b[?25l\x1b[?2004hthe screen");
    two.keys.write_all(b"\r").unwrap();
    assert_eq!(two.end(), 0);
}

fn wrong(world: &World) {
    let run = world.run(&["exec", "--session", "none", "box"]).ends(1);
    assert!(run.stderr.contains("there is no session `none`"), "{}", run.stderr);
    let run = world.run(&["exec", "--session", "a\u{1b}b", "box", "--", "true"]).ends(127);
    assert!(run.stderr.contains("is not a name") && !run.stderr.contains('\u{1b}'), "{}", run.stderr);
    world.run(&["exec", "--session", "x", "box", "--", "no-such-program"]).ends(127);
    world.run(&["exec", "-d", "box", "--", "true"]).ends(64);
    world.run(&["exec", "-d", "--session", "x", "box"]).ends(64);
    world.run(&["shell", "--session", "x", "--detach-key", "q", "box"]).ends(64);
    world.run(&["exec", "box"]).ends(64);
}
