//! Nothing that may lose data, and without a terminal nothing at all, happens unless somebody said so.

use crate::scenarios::world::World;

#[test]
fn consent() {
    let world = World::scenario("consent");

    // no terminal, no consent: refused, and the flag is named
    let refused = world.run(&["apply"]).ends(8);
    assert!(refused.stderr.contains("--yes"), "{}", refused.stderr);
    assert_eq!(world.box_count(), 0, "nothing was done");
    world.run(&["apply", "--yes", "--dry-run"]).ends(0);
    assert_eq!(world.box_count(), 0, "a dry run does nothing");

    world.apply();
    world.sh("box", "echo precious > /data/file; echo disk > /root/file");
    // nothing to do needs no consent
    world.run(&["apply"]).ends(0);

    // destroy without consent
    let refused = world.run(&["destroy"]).ends(8);
    assert!(refused.stderr.contains("--yes"), "{}", refused.stderr);
    world.process("box", "sleep 500001");

    // the sandbox is no longer declared: its disk is at risk, and consent to apply is not consent to that
    world.edit("pocketenv.yaml", "sandboxes:\n  box:", "sandboxes:\n  other:");
    let plan = world.assert_out_of_sync();
    assert!(plan.stdout.contains("box"), "{}", plan.stdout);
    let refused = world.run(&["apply", "--yes"]).ends(8);
    assert!(refused.stderr.contains("--allow-data-loss"), "{}", refused.stderr);
    world.process("box", "sleep 500001");
    assert_eq!(world.sh("box", "cat /root/file"), "disk");

    world.run(&["apply", "--yes", "--allow-data-loss"]).ends(0);
    assert_eq!(world.box_count(), 1);
    // the volume is declared and was kept
    assert_eq!(world.sh("other", "cat /data/file"), "precious");
    world.assert_converged();
    world.destroy_and_see_nothing_left(&[]);
}
