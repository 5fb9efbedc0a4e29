//! Two people apply the same project at once: one waits, or is told who is at it, and nothing is made twice.

use crate::scenarios::world::{World, eventually};

#[test]
fn two_applies_at_once() {
    let world = World::scenario("concurrency");
    let runs = [world.start(&["apply", "--yes"]), world.start(&["apply", "--yes"])];
    for run in runs {
        world.finish(run).ends(0);
    }
    assert_eq!(world.box_count(), 3);
    for name in ["box-1", "box-2", "box-3"] {
        assert_eq!(world.sh(name, "cat /root/ran"), "ran", "the preset ran once");
        world.process(name, "sleep 600001");
    }
    world.assert_converged();
    world.destroy_and_see_nothing_left(&[]);
}

#[test]
fn an_impatient_apply_is_told_who_is_at_it() {
    let world = World::scenario("concurrency");
    world.edit("pocketenv.yaml", "sleep 1\"", "until [ -e /root/go ]; do sleep 0.05; done\"");
    let first = world.start(&["apply", "--yes"]);
    let pid = first.child.id();
    eventually("the first is at it", || {
        world.processes().iter().any(|process| process.command.contains("sleep 0.05"))
    });
    let locked = world.run(&["apply", "--yes", "--lock-timeout", "100ms"]).ends(6);
    assert!(locked.stderr.contains(&pid.to_string()), "it says who: {}", locked.stderr);
    // looking needs no lock
    world.run(&["plan"]).ends(0);
    world.run(&["status"]);
    for name in ["box-1", "box-2", "box-3"] {
        eventually("the sandbox is there", || {
            world.run(&["exec", name, "--", "touch", "/root/go"]).code == 0
        });
    }
    world.finish(first).ends(0);
    world.assert_converged();
    world.destroy_and_see_nothing_left(&[]);
}
