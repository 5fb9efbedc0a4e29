//! Somebody tampers with what was applied: each tampering is found by plan and status, and repaired by apply, and nothing else is touched.

use crate::scenarios::world::{Process, World, eventually, http_get};

struct Drift {
    world: World,
}

impl Drift {
    /// What was done is found, repaired, and after that nothing is left to do.
    #[track_caller]
    fn is_found_and_healed(&self, what: &str, kept: &[&Process]) {
        let world = &self.world;
        eventually(&format!("{what} is found"), || world.run(&["plan", "--detailed-exitcode"]).code == 2);
        assert_ne!(world.status("sandbox/box")["sync"], "Synced", "{what}: status tells");
        world.apply();
        world.assert_converged();
        assert!(world.is_ready("sandbox/box"), "{what}: {}", world.status("sandbox/box"));
        for process in kept {
            assert!(process.lives(), "{what}: {process:?} was not left alone");
        }
    }
}

#[test]
fn drift() {
    let drift = Drift { world: World::scenario("drift") };
    let world = &drift.world;
    world.apply();
    world.assert_converged();
    let (init, web, idle) = (
        world.init("box"),
        world.process("box", "python3 -m http.server"),
        world.process("box", "sleep 800001"),
    );
    let all = [&init, &web, &idle];

    for (what, script) in [
        ("a changed file", "echo mine > /etc/managed"),
        ("a changed mode", "chmod 0600 /etc/managed"),
        ("a deleted file", "rm /etc/managed"),
        ("a changed file in a directory", "echo mine > /srv/tree/sub/b"),
        ("a deleted directory", "rm -r /srv/tree/sub"),
    ] {
        world.sh("box", script);
        drift.is_found_and_healed(what, &all);
        assert_eq!(
            world.sh("box", "cat /etc/managed /srv/tree/a /srv/tree/sub/b; stat -c %a /etc/managed"),
            "managed\na\nb\n640",
            "{what}"
        );
    }

    // a directory in the place of a file may hold what somebody needs: it is not deleted, and apply says so
    world.sh("box", "rm /etc/managed; mkdir /etc/managed; echo precious > /etc/managed/file");
    let failed = world.run(&["apply", "--yes"]).ends(1);
    assert!(failed.stderr.contains("/etc/managed is a directory"), "{}", failed.stderr);
    assert_eq!(world.sh("box", "cat /etc/managed/file; rm -r /etc/managed"), "precious");
    drift.is_found_and_healed("a deleted directory in the place of a file", &all);

    // a service is stopped behind our back, its supervisor with it
    let supervisors: Vec<_> = world
        .processes_of("box")
        .into_iter()
        .filter(|p| p.command.contains("idle") && p.pid != idle.pid)
        .collect();
    assert!(!supervisors.is_empty(), "{:#?}", world.processes());
    supervisors.iter().filter(|process| process.lives()).for_each(Process::kill);
    if idle.lives() {
        idle.kill();
    }
    drift.is_found_and_healed("a service without its supervisor", &[&init, &web]);
    let idle = world.process("box", "sleep 800001");

    // the sandbox is stopped, then killed
    world.run(&["stop", "box"]).ends(0);
    assert!(!init.lives());
    world.sh_is_refused("box");
    drift.is_found_and_healed("a stopped sandbox", &[]);
    assert!(!idle.lives());
    assert_eq!(http_get(world.endpoint("box", 8000), "/a").unwrap().1, "a\n");
    let address = world.endpoint("box", 8000);
    world.init("box").kill();
    drift.is_found_and_healed("a killed sandbox", &[]);
    assert_eq!(world.endpoint("box", 8000), address, "the address is kept");

    // the engine's helper outside is killed: nobody listens for the sandbox any more
    let outside: Vec<_> =
        world.processes_of("box").into_iter().filter(|p| p.command.contains("__engine")).collect();
    assert!(!outside.is_empty());
    outside.iter().filter(|process| process.lives()).for_each(Process::kill);
    drift.is_found_and_healed("a sandbox whose helper was killed", &[]);
    assert_eq!(http_get(address, "/a").unwrap().1, "a\n");

    // its directory is deleted
    let dir = world.box_dir("box");
    world.init("box").kill();
    std::process::Command::new("chmod").args(["-R", "u+rwx"]).arg(&dir).output().unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    drift.is_found_and_healed("a sandbox whose directory was deleted", &[]);
    assert_eq!(http_get(address, "/a").unwrap().1, "a\n");

    // by policy: reported, not repaired
    world.sh("watched", "echo mine > /etc/managed");
    world.apply();
    assert_eq!(world.sh("watched", "cat /etc/managed"), "mine");
    assert!(world.run(&["plan"]).text().contains("/etc/managed"), "it is reported");
    world.destroy_and_see_nothing_left(&[]);
}
