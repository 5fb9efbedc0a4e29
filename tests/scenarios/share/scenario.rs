//! Somebody shares directories of the machine with a sandbox instead of copying them, and has a sandbox made anew when its recipe changes.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use nix::sys::signal::Signal;

use crate::scenarios::world::{Process, Started, World, eventually};

fn mount_options(init: &Process, point: &str) -> String {
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", init.pid)).unwrap();
    let line = mounts.lines().find(|line| line.split(' ').nth(4) == Some(point));
    line.and_then(|line| line.split(' ').nth(5))
        .unwrap_or_else(|| panic!("no {point} in {mounts}"))
        .to_owned()
}

#[test]
fn a_shared_directory_is_the_directory_itself() {
    let world = World::scenario("share");
    let at = |path: &str| world.project().join(path);
    world.apply();
    world.assert_converged();
    assert_eq!(world.sh("box", "cat /work/src/a"), "one");
    fs::write(at("src/a"), "two\n").unwrap();
    assert_eq!(world.sh("box", "cat /work/src/a"), "two", "nothing has to be brought");

    // one is to be read only, the other is written to, as the user who shares it; devices and set-user-id mean nothing in either
    let refused =
        world.run(&["exec", "box", "--", "sh", "-c", "echo no > /work/src/a; mount -o remount,rw /work/src"]);
    assert!(refused.code != 0, "{refused:?}");
    assert_eq!(fs::read_to_string(at("src/a")).unwrap(), "two\n");
    world.sh("box", "echo inside > /work/out/new");
    let new = fs::metadata(at("out/new")).unwrap();
    assert_eq!(new.uid(), nix::unistd::geteuid().as_raw());
    let init = world.init("box");
    for (point, read_only) in [("/work/src", true), ("/work/out", false)] {
        let options = mount_options(&init, point);
        let has = |option: &str| options.split(',').any(|found| found == option);
        assert!(has("nosuid") && has("nodev") && has("ro") == read_only, "{point}: {options}");
    }
    world.assert_converged();

    // another directory stands at the path: what the sandbox sees is not it any more
    fs::rename(at("src"), at("old")).unwrap();
    fs::create_dir(at("src")).unwrap();
    fs::write(at("src/a"), "three\n").unwrap();
    assert_eq!(world.sh("box", "cat /work/src/a"), "two");
    let plan = world.assert_out_of_sync();
    assert!(plan.text().contains("nothing is mounted at /work/src"), "{}", plan.text());
    world.apply();
    assert_eq!(world.sh("box", "cat /work/src/a"), "three");
    world.assert_converged();

    // from shared to copied and back: what is on the host stays, whatever the sandbox remembers of its copies
    world.edit("pocketenv.yaml", "mode: bind, read_only: false, ", "");
    world.apply();
    assert_eq!(world.sh("box", "cat /work/out/kept; rm /work/out/kept; ls /work/out"), "kept\nnew");
    assert!(at("out/kept").exists());
    world.edit("pocketenv.yaml", "to: /work/out, ", "to: /work/out, mode: bind, read_only: false, ");
    world.apply();
    assert_eq!(world.sh("box", "ls /work/out"), "kept\nnew");
    world.assert_converged();
    assert_eq!(fs::read_to_string(at("out/kept")).unwrap(), "kept\n");
    world.destroy_and_see_nothing_left(&[]);
    assert!(at("out/kept").exists() && at("src/a").exists());
}

struct Watched {
    world: World,
    watch: Option<Started>,
}

impl Watched {
    #[track_caller]
    fn begin(world: World, arguments: &[&str]) -> Self {
        let watch = world.start(&[&["watch", "--yes"], arguments].concat());
        let watched = Self { world, watch: Some(watch) };
        watched.says("watching; Ctrl-C ends it");
        watched
    }

    #[track_caller]
    fn says(&self, text: &str) {
        let watch = self.watch.as_ref().unwrap();
        eventually(&format!("watch says {text:?}"), || {
            let found = watch.printed().contains(text);
            assert!(found || watch.runs(), "watch ended:\n{}", watch.printed());
            found
        });
    }

    #[track_caller]
    fn interrupt(&mut self) {
        let watch = self.watch.take().unwrap();
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(watch.child.id().try_into().unwrap()),
            Signal::SIGINT,
        )
        .unwrap();
        assert_eq!(self.world.finish(watch).code, 0);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(mut watch) = self.watch.take() {
            eprintln!("watch printed:\n{}", watch.printed());
            let _ = watch.child.kill();
            let _ = watch.child.wait();
        }
    }
}

#[test]
fn watch_rebuilds_with_consent_and_reacts_to_what_is_shared() {
    let mut watched = Watched::begin(World::scenario("share"), &[]);
    let project = watched.world.project();
    let first = watched.world.id("box");
    watched.world.sh("box", "echo mine > /mine");

    // a change of a shared directory needs no bringing, only its reaction; one that is left out needs not even that
    fs::write(project.join("out/left.tmp"), "x").unwrap();
    fs::write(project.join("out/made"), "made\n").unwrap();
    eventually("on_change has run", || watched.world.sh("box", "cat /seen || true") == "made");
    watched.says("since made ");
    assert!(!watched.watch.as_ref().unwrap().printed().contains("left.tmp"));

    // nobody agreed to lose what is inside: the change arrives, and that is all
    // Saved as editors do: a file that is written in place may be seen half written, which is a change of its own.
    fs::write(project.join("list"), "second\n").unwrap();
    fs::rename(project.join("list"), project.join("recipe/list")).unwrap();
    watched.says(", rebuild box: planning");
    watched.says("`--allow-data-loss` says that it may");
    eventually("it arrives all the same", || watched.world.sh("box", "cat /work/recipe/list") == "second");
    assert_eq!(
        (watched.world.id("box"), watched.world.sh("box", "cat /mine")),
        (first.clone(), "mine".to_owned())
    );
    // Once for each change, whatever is brought again after the run that was refused.
    eventually("settled", || watched.world.run(&["plan", "--detailed-exitcode"]).code == 0);
    let printed = watched.watch.as_ref().unwrap().printed();
    assert_eq!(printed.matches("rebuild box: planning").count(), 1, "{printed}");
    watched.interrupt();

    watched.watch = Some(watched.world.start(&["watch", "--yes", "--allow-data-loss"]));
    watched.says("watching; Ctrl-C ends it");
    fs::write(project.join("recipe/list"), "third\n").unwrap();
    // Whether it is heard of or found at the first look, depends on who is faster.
    watched.says("asked for: ");
    watched.says(", rebuild box");
    eventually("it is made anew", || {
        // While it is being made there is none.
        let id = watched.world.status("sandbox/box")["id"].as_str().map(str::to_owned);
        id.is_some_and(|id| id != first)
    });
    eventually("with everything inside", || {
        watched.world.run(&["exec", "box", "--", "sh", "-c", "cat /work/recipe/list"]).stdout == "third\n"
    });
    assert_eq!(
        watched.world.sh("box", "ls /mine /seen 2>/dev/null || true"),
        "",
        "what was written in it is gone"
    );
    assert_eq!(watched.world.sh("box", "cat /work/out/made"), "made");
    eventually("nothing is left to do", || watched.world.run(&["plan", "--detailed-exitcode"]).code == 0);
    assert_eq!(watched.world.box_count(), 1);
    // once is enough, and the new one is watched like the old one
    let second = watched.world.id("box");
    fs::write(project.join("out/made"), "again\n").unwrap();
    eventually("on_change runs in the new one", || watched.world.sh("box", "cat /seen || true") == "again");
    assert_eq!(watched.world.id("box"), second);
    watched.interrupt();
}
