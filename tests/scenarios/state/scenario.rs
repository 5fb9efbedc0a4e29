//! Sandboxes and services are running, stopped or absent as declared, keep their disk over a stop, and `--target` touches nothing else.

use crate::scenarios::world::World;

fn runs(world: &World, command: &str) -> bool {
    world.processes().iter().any(|process| process.command == command)
}

#[test]
fn state() {
    let world = World::scenario("state");

    // one target: the other sandbox is not made
    world.run(&["apply", "--yes", "--target", "box"]).ends(0);
    assert_eq!(world.box_count(), 1);
    assert!(runs(&world, "sleep 110001") && !runs(&world, "sleep 110002"));
    world.assert_out_of_sync();
    world.apply();
    assert!(runs(&world, "sleep 110003"));
    world.assert_converged();
    let other = world.init("other");

    // stopped: no process, and the disk is kept
    world.sh("box", "echo kept > /root/file");
    world.edit("pocketenv.yaml", "  box:\n", "  box:\n    state: stopped\n");
    world.apply();
    assert!(!runs(&world, "sleep 110001"));
    assert_eq!(world.box_count(), 2);
    assert_eq!(world.status("sandbox/box")["health"], "Suspended");
    world.sh_is_refused("box");
    world.assert_converged();

    // running again
    world.edit("pocketenv.yaml", "state: stopped\n    services", "state: running\n    services");
    world.apply();
    assert_eq!(world.sh("box", "cat /root/file"), "kept");
    assert!(runs(&world, "sleep 110001"));

    // a service is started and stopped by its own state
    let (init, one) = (world.init("box"), world.process("box", "sleep 110001"));
    world.edit("pocketenv.yaml", "110002, state: stopped", "110002, state: running");
    world.apply();
    assert!(runs(&world, "sleep 110002"));
    world.edit("pocketenv.yaml", "110002, state: running", "110002, state: stopped");
    world.apply();
    assert!(!runs(&world, "sleep 110002"));
    assert!(one.lives() && init.lives() && other.lives());

    // absent
    world.edit("pocketenv.yaml", "state: running\n", "state: absent\n");
    world.run(&["apply", "--yes", "--allow-data-loss"]).ends(0);
    assert_eq!(world.box_count(), 1);
    assert!(other.lives());
    world.assert_converged();
    world.destroy_and_see_nothing_left(&[]);
}
