//! Somebody works on a project while `watch` runs: what they do arrives, what they break is told, and nothing else is touched.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::scenarios::world::{Run, Started, Terminal, World, eventually};

/// Everything below a directory of the host, as `LIST` prints it inside.
const LIST: &str = "cd /work/src && find . -mindepth 1 ! -path '*/.pocketenv-*' | LC_ALL=C sort | while IFS= read -r p; do \
    if [ -h \"$p\" ]; then echo \"$p -> $(readlink \"$p\")\"; \
    elif [ -d \"$p\" ]; then echo \"$p/ $(stat -c %a \"$p\")\"; \
    else echo \"$p $(stat -c %a \"$p\") $(sha256sum <\"$p\")\"; fi; done";

struct Watched {
    world: World,
    watch: Option<Started>,
}

impl Watched {
    fn begin(arguments: &[&str]) -> Self {
        let world = World::scenario("watch");
        let watch = world.start(&[&["watch", "--yes"], arguments].concat());
        let watched = Self { world, watch: Some(watch) };
        watched.says("watching; Ctrl-C ends it");
        watched
    }

    fn text(&self) -> String {
        self.watch.as_ref().unwrap().printed()
    }

    #[track_caller]
    fn says(&self, text: &str) {
        eventually(&format!("watch says {text:?}"), || {
            let found = self.text().contains(text);
            assert!(found || self.watch.as_ref().unwrap().runs(), "watch ended:\n{}", self.text());
            found
        });
    }

    /// Ends it as Ctrl-C does.
    #[track_caller]
    fn interrupt(&mut self) -> Run {
        let watch = self.watch.take().unwrap();
        kill(Pid::from_raw(i32::try_from(watch.child.id()).unwrap()), Signal::SIGINT).unwrap();
        self.world.finish(watch)
    }

    /// What is inside becomes what the host has, to the last bit and mode.
    #[track_caller]
    fn arrives(&self, what: &str) {
        let script = LIST.replace("/work/src", "\"$0\"");
        let src = self.world.project().join("src");
        let host = Command::new("sh").args(["-c", &script]).arg(src).output().unwrap();
        let host = String::from_utf8(host.stdout).unwrap();
        eventually(what, || self.world.sh("box", LIST) == host.trim_end());
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(mut watch) = self.watch.take() {
            if std::thread::panicking() {
                eprintln!("watch printed:\n{}", watch.printed());
            }
            let _ = watch.child.kill();
            let _ = watch.child.wait();
        }
    }
}

#[test]
fn watch_brings_every_kind_of_change() {
    let mut watched = Watched::begin(&[]);
    let src = watched.world.project().join("src");
    let at = |path: &str| src.join(path);
    watched.world.sh("box", "echo mine > /work/src/theirs; echo mine > /work/src/sub/theirs");
    let mine = |watched: &Watched| {
        watched.world.sh("box", "rm /work/src/theirs; cat /work/src/sub/theirs; rm /work/src/sub/theirs")
    };
    fs::remove_file(at("sub/b")).unwrap();
    fs::remove_dir(at("sub")).unwrap();
    eventually("a deletion", || watched.world.sh("box", "ls /work/src/sub") == "theirs");
    assert_eq!(mine(&watched), "mine", "what was not put there stays");
    // It may have gone by itself: the deletion of the directory may have arrived after that of the file in it.
    watched.world.sh("box", "rmdir /work/src/sub 2>/dev/null || ! test -e /work/src/sub");

    fs::write(at("a"), [0, 255, b'\n', 13]).unwrap();
    fs::create_dir_all(at("deep/er/empty")).unwrap();
    fs::write(at("deep/er/x y"), "blank").unwrap();
    fs::set_permissions(at("deep/er/x y"), fs::Permissions::from_mode(0o750)).unwrap();
    symlink("../a", at("deep/link")).unwrap();
    fs::write(at("left.tmp"), "not me").unwrap();
    fs::create_dir(at(".git")).unwrap();
    fs::write(at(".git/HEAD"), "not me").unwrap();
    eventually("the last of them", || {
        watched.world.sh("box", "readlink /work/src/deep/link || true") == "../a"
    });
    let absent = watched.world.sh("box", "ls -d /work/src/left.tmp /work/src/.git 2>/dev/null || true");
    assert_eq!(absent, "");
    fs::remove_file(at("left.tmp")).unwrap();
    fs::remove_dir_all(at(".git")).unwrap();
    watched.arrives("new, binary, mode, link, empty directory");

    // an editor's save: a new file takes the place of the old one
    fs::write(at("a.swp"), "two").unwrap();
    fs::rename(at("a.swp"), at("a")).unwrap();
    fs::set_permissions(at("deep/er/x y"), fs::Permissions::from_mode(0o600)).unwrap();
    watched.arrives("an atomic save and a mode alone");
    watched.says("box/web | serving two");

    fs::rename(at("deep"), at("moved")).unwrap();
    fs::write(at("moved/new"), "").unwrap();
    watched.arrives("a renamed directory");
    // a file takes the name of a directory and the other way round
    fs::remove_dir_all(at("moved")).unwrap();
    fs::write(at("moved"), "a file").unwrap();
    fs::remove_file(at("a")).unwrap();
    fs::create_dir(at("a")).unwrap();
    watched.arrives("kinds that change");

    for n in 0..2000 {
        let dir = at(&format!("many/{}", n % 40));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(n.to_string()), n.to_string()).unwrap();
    }
    watched.arrives("two thousand files");
    fs::remove_dir_all(at("many")).unwrap();
    watched.arrives("their deletion");

    // the record inside is complete: nothing is left to do, and nothing was sent twice
    eventually("converged", || watched.world.run(&["plan", "--detailed-exitcode"]).code == 0);
    let run = watched.interrupt();
    assert_eq!(run.code, 0, "{}", run.text());
    assert!(watched.world.process("box", "sleep 800003").lives(), "Ctrl-C leaves things running");

    // what happens meanwhile is brought by the next one
    fs::write(at("moved"), "while nobody watched").unwrap();
    watched.world.assert_out_of_sync();
    watched.watch = Some(watched.world.start(&["watch", "--yes", "--down-on-exit"]));
    watched.arrives("what happened while nobody watched");
    watched.says("watching; Ctrl-C ends it");
    assert_eq!(watched.interrupt().code, 0);
    assert_eq!(watched.world.box_count(), 0, "--down-on-exit");
}

#[test]
fn watch_follows_the_manifest() {
    let mut watched = Watched::begin(&[]);
    let world = &watched.world;
    let web = world.process("box", "sleep 800003");
    world.edit("pocketenv.yaml", "red", "green");
    eventually("an edit is applied", || world.sh("box", "cat /etc/colour") == "green");
    watched.says("pocketenv.yaml");
    world.write("note.hbs", "changed {{ project.name }}\n");
    eventually("a template is applied", || world.sh("box", "cat /etc/template") == "changed watch");

    // broken: the diagnostic is shown, the last good one stays; no other verb can be used, so the inside is seen from outside
    // on the disk (an ordinary user cannot look through its init, which is closed to inspection)
    let dir = world.box_dir("box");
    let cat = |path: &str| {
        let places = ["rootfs", "upper"].map(|place| dir.join(place).join(path.trim_start_matches('/')));
        places.iter().find_map(|place| fs::read_to_string(place).ok()).unwrap_or_default()
    };
    world.edit("pocketenv.yaml", "version: 1", "version: [");
    watched.says("the last good manifest stays in force");
    fs::write(world.project().join("src/a"), "still in step\n").unwrap();
    eventually("directories are still kept in step", || cat("/work/src/a") == "still in step\n");
    assert_eq!(cat("/etc/colour"), "green\n");
    world.edit("pocketenv.yaml", "version: [", "version: 1");
    world.edit("pocketenv.yaml", "green", "blue");
    eventually("the mended one is applied", || world.sh("box", "cat /etc/colour") == "blue");
    eventually("on_change has restarted the service", || !web.lives());

    // a crash is shown, and the policy restarts
    watched.says("serving still in step");
    eventually("web runs", || {
        world.processes_of("box").iter().any(|process| process.command == "sleep 800003")
    });
    world.process("box", "sleep 800003").kill();
    watched.says("box/web ended with exit code 137");
    watched.says("box/web runs again (restart 1)");

    // the sandbox is killed: it is made to run again
    world.init("box").kill();
    watched.says("sandbox box does not answer any more");
    eventually("it runs again", || world.run(&["exec", "box", "--", "true"]).code == 0);
    eventually("all is well", || world.run(&["plan", "--detailed-exitcode"]).code == 0);
    fs::write(world.project().join("src/a"), "after all\n").unwrap();
    eventually("in step again", || world.sh("box", "cat /work/src/a") == "after all");
    assert_eq!(watched.interrupt().code, 0);
}

#[test]
fn watch_survives_git_and_finds_loops() {
    let mut watched = Watched::begin(&[]);
    let repo = watched.world.project().join("repo");
    if Command::new("git").arg("--version").output().is_err() {
        eprintln!("SKIPPED: git is missing");
        return;
    }
    let git = |arguments: &[&str]| git(&repo, arguments);
    git(&["init", "-q", "-b", "main"]);
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "one"]);
    git(&["checkout", "-q", "-b", "other"]);
    for n in 0..300 {
        fs::create_dir_all(repo.join(format!("d{}", n % 10))).unwrap();
        fs::write(repo.join(format!("d{}/{n}", n % 10)), format!("{n}")).unwrap();
    }
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "many"]);
    for _ in 0..5 {
        git(&["checkout", "-q", "main"]);
        git(&["checkout", "-q", "other"]);
    }
    eventually("the last checkout arrives", || {
        watched.world.sh("box", "find /work/repo -type f | wc -l") == "301"
    });
    git(&["checkout", "-q", "main"]);
    eventually("and goes", || watched.world.sh("box", "find /work/repo -type f | wc -l") == "1");

    // while git has its lock nothing is passed on
    let lock = repo.join(".git/index.lock");
    fs::write(&lock, "").unwrap();
    fs::write(repo.join("f"), "second\n").unwrap();
    fs::write(watched.world.project().join("src/a"), "marker\n").unwrap();
    eventually("the other directory is in step", || watched.world.sh("box", "cat /work/src/a") == "marker");
    assert_eq!(watched.world.sh("box", "cat /work/repo/f"), "first");
    fs::remove_file(&lock).unwrap();
    eventually("the lock is gone", || watched.world.sh("box", "cat /work/repo/f") == "second");
    eventually("the command ran", || watched.world.sh("box", "tail -n 1 /work/seen") == "second");

    // somebody on the host answers each run of the command with the next change
    let mut seen = BTreeMap::new();
    eventually("the loop is found", || {
        let lines = watched.world.sh("box", "wc -l < /work/seen");
        if seen.insert(lines, ()).is_none() {
            fs::write(repo.join("f"), format!("round {}\n", seen.len())).unwrap();
        }
        watched.text().contains("changes again and again right after")
    });
    watched.says("leave the file out with `ignore`");
    assert_eq!(watched.interrupt().code, 0);
}

#[test]
fn watch_catches_up_after_a_pause_and_with_lost_events() {
    let mut watched = Watched::begin(&["--no-logs"]);
    let src = watched.world.project().join("src");
    let at = |path: &str| src.join(path);
    fs::create_dir_all(at("dir/deep")).unwrap();
    fs::write(at("dir/deep/x"), "x").unwrap();
    fs::write(at("gone"), "x").unwrap();
    watched.arrives("what is there at first");
    let pid = watched.watch.as_ref().unwrap().child.id();
    let pause = |signal, state: &str| {
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
        eventually("it is paused or goes on", || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            (stat.rsplit_once(") ").unwrap().1.starts_with('T')) == (state == "T")
        });
    };

    // a lid is closed: every kind of change happens meanwhile
    pause(Signal::SIGSTOP, "T");
    fs::rename(at("dir"), at("moved")).unwrap();
    fs::write(at("moved/deep/new"), "new").unwrap();
    fs::remove_file(at("gone")).unwrap();
    fs::write(at("a.swp"), "saved").unwrap();
    fs::rename(at("a.swp"), at("a")).unwrap();
    symlink("a", at("link")).unwrap();
    pause(Signal::SIGCONT, "");
    watched.arrives("what happened in the pause");

    // more happens than the kernel keeps
    let most = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let most: usize = most.trim().parse().unwrap();
    if most > 200_000 {
        eprintln!("SKIPPED: fs.inotify.max_queued_events is {most}, which is too many to exceed");
        return;
    }
    pause(Signal::SIGSTOP, "T");
    // Each is at least two events, and no two of one file follow each other, which would make them one.
    for n in 0..most / 2 {
        fs::write(at(&format!("flood-{}", n % 64)), "").unwrap();
        fs::remove_file(at(&format!("flood-{}", n % 64))).unwrap();
    }
    // Of these nothing is heard.
    fs::write(at("moved/deep/new"), "newer").unwrap();
    fs::create_dir(at("unheard")).unwrap();
    fs::write(at("unheard/of"), "x").unwrap();
    pause(Signal::SIGCONT, "");
    watched.says("file events were lost");
    watched.arrives("what was not heard of");
    fs::write(at("unheard/of"), "but now it is").unwrap();
    watched.arrives("a change in what was not heard of");
    eventually("converged", || watched.world.run(&["plan", "--detailed-exitcode"]).code == 0);
    assert_eq!(watched.interrupt().code, 0);
}

fn git(dir: &Path, arguments: &[&str]) {
    let output = Command::new("git")
        .args(["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "core.hooksPath=/dev/null"])
        .args(arguments)
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

/// What enters and leaves the other screen of a terminal, on which the view is drawn.
const ENTERS: &str = "\x1b[?1049h";
const LEAVES: &str = "\x1b[?1049l";

#[test]
fn watch_fills_a_terminal_and_gives_it_back() {
    let mut world = World::scenario("watch");
    world.set("TERM", "xterm");
    // A key that means nothing: one that comes together with a new size may be read with the next one only.
    let nudge = |terminal: &mut Terminal| std::io::Write::write_all(&mut terminal.keys, &[2]).unwrap();
    let ends = |terminal: &mut Terminal| {
        eventually("it ends", || {
            nudge(terminal);
            terminal.child.try_wait().unwrap().is_some()
        });
        terminal.end()
    };
    let started = |terminal: &Terminal| {
        eventually("the view has the service's log", || {
            // A new size draws all of it anew; what is the same is not drawn again, so that words are looked for one by one.
            terminal.resize(40, 120);
            terminal.resize(41, 121);
            let shown = terminal.shown();
            ["sandbox/box", "Healthy", "serving", "box/web", "web"].iter().all(|word| shown.contains(word))
        });
        assert!(terminal.is_raw());
    };

    // a question is asked on the terminal as it was
    let mut terminal = Terminal::new(&world, &["watch"]);
    terminal.shows("Do this?");
    assert!(!terminal.is_raw() && terminal.shown().contains(LEAVES));
    std::io::Write::write_all(&mut terminal.keys, b"y\r").unwrap();
    started(&terminal);
    let web = world.process("box", "sleep 800003");
    // what is typed filters, so that it ends nothing
    std::io::Write::write_all(&mut terminal.keys, b"/q").unwrap();
    eventually("the filter is typed", || {
        nudge(&mut terminal);
        terminal.shown().contains("filter:")
    });
    std::io::Write::write_all(&mut terminal.keys, b"\rq").unwrap();
    assert_eq!(ends(&mut terminal), 0);
    let shown = terminal.shown();
    assert!(shown.rfind(LEAVES) > shown.rfind(ENTERS), "{shown:?}");
    terminal.shows("what runs goes on running");
    assert!(web.lives(), "what runs goes on running");

    // signals: the terminal is given back as well; Ctrl-C is one, though it comes as a key
    for asked in [Some(Signal::SIGTERM), Some(Signal::SIGHUP), Some(Signal::SIGINT), None] {
        let mut terminal = Terminal::new(&world, &["watch", "--yes"]);
        started(&terminal);
        match asked {
            Some(signal) => terminal.signal(signal),
            None => std::io::Write::write_all(&mut terminal.keys, &[3]).unwrap(),
        }
        assert_eq!(ends(&mut terminal), 0, "{asked:?}");
        let shown = terminal.shown();
        assert!(shown.rfind(LEAVES) > shown.rfind(ENTERS), "{asked:?}: {shown:?}");
    }
    assert!(web.lives(), "what runs goes on running");

    // plain was asked for
    let mut terminal = Terminal::new(&world, &["watch", "--yes", "--progress", "plain", "--down-on-exit"]);
    terminal.shows("watching; Ctrl-C ends it");
    terminal.signal(Signal::SIGINT);
    assert_eq!(terminal.end(), 0);
    assert!(!terminal.shown().contains(ENTERS));
    assert_eq!(world.box_count(), 0, "--down-on-exit");
}

#[test]
fn a_panic_gives_the_terminal_back() {
    use pocketenv::cli::ui::style::Paint;
    use pocketenv::cli::ui::view::{FullScreen, View};
    const PART: &str = "POCKETENV_TEST_PANIC";
    if std::env::var_os(PART).is_some() {
        struct Clock;
        impl pocketenv::model::Clock for Clock {
            fn now(&self) -> pocketenv::model::Timestamp {
                pocketenv::model::Timestamp(0)
            }
        }
        let view = View::new("shop".to_owned(), jiff::tz::TimeZone::UTC);
        let screen = FullScreen::begin(view, std::sync::Arc::new(Clock), Paint(false), |_| {}).unwrap();
        // The key that was waited for is proof that it was drawn.
        let _ = std::io::Read::read(&mut fs::File::open(std::env::var_os(PART).unwrap()).unwrap(), &mut [0]);
        // Not even the view's own end is reached.
        std::mem::forget(screen);
        panic!("on purpose");
    }
    let world = World::scenario("watch");
    let pipe = world.project().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "scenarios::watch::a_panic_gives_the_terminal_back", "--nocapture"]);
    let mut terminal = Terminal::of(command.env(PART, &pipe).env("TERM", "xterm"));
    terminal.shows("resources");
    assert!(terminal.is_raw());
    fs::write(&pipe, "x").unwrap();
    assert_ne!(terminal.end(), 0);
    let shown = terminal.shown();
    let (left, said) = (shown.rfind(LEAVES), shown.find("on purpose"));
    assert!(left.is_some() && left < said, "what it says is read on the terminal as it was: {shown:?}");
}
