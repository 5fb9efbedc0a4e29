//! A limit on the disk is told with what is used of it, a full disk is an event, a larger one is a restart that keeps the files, and a smaller one a new sandbox.

use crate::scenarios::world::{World, eventually};

#[test]
fn disk() {
    let world = World::scenario("disk");
    let applied = world.run(&["apply", "--yes"]);
    if !nix::unistd::geteuid().is_root() {
        assert!(
            applied.code != 0 && applied.stderr.contains("run it as root, or remove `disk`"),
            "{applied:?}"
        );
        assert_eq!(world.box_count(), 0);
        return;
    }
    applied.ends(0);
    world.assert_converged();
    let disk = world.status("sandbox/box")["disk"].clone();
    assert_eq!(disk["limit_bytes"], 64 << 20, "{disk}");
    assert!(disk["used_bytes"].as_u64().unwrap() < 32 << 20, "{disk}");

    world.sh("box", "echo kept > /root/file; head -c 200M /dev/zero > /root/big; echo");
    let events = || world.run(&["events", "sandbox/box"]).ends(0).stdout;
    eventually("the full disk is an event", || {
        let told = world.status("sandbox/box")["conditions"].to_string();
        assert!(told.contains("disk is full: 64MiB of 64MiB used"), "{told}");
        events().contains("DiskFull")
    });
    world.status("sandbox/box");
    assert_eq!(events().matches("DiskFull").count(), 1, "{}", events());

    // larger: a restart, which keeps what is there
    world.edit("pocketenv.yaml", "disk: 64MiB", "disk: 256MiB");
    let plan = world.run(&["plan"]);
    assert!(plan.stdout.contains("restart"), "{plan:?}");
    world.apply();
    world.assert_converged();
    assert_eq!(
        world.sh("box", "cat /root/file; head -c 100M /dev/zero > /root/more && echo room"),
        "kept\nroom"
    );

    // smaller: a new sandbox, and what is lost is said
    world.edit("pocketenv.yaml", "disk: 256MiB", "disk: 128MiB");
    let plan = world.run(&["plan"]);
    assert!(plan.stdout.contains("everything written in sandbox `box`"), "{plan:?}");
    world.edit("pocketenv.yaml", "disk: 128MiB", "disk: 256MiB");
    world.assert_converged();
    world.destroy_and_see_nothing_left(&[]);
}
