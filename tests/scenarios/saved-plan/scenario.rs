//! A plan that was saved does exactly what it said, once, and is refused when the world has changed since.

use crate::scenarios::world::World;

#[test]
fn saved_plan() {
    let world = World::scenario("saved-plan");
    world.run(&["plan", "--out", "first.plan"]).ends(0);
    assert_eq!(world.box_count(), 0, "planning changes nothing");
    world.run(&["apply", "--yes", "first.plan"]).ends(0);
    let idle = world.process("box", "sleep 130001");

    // a second time: the world is another one now
    let refused = world.run(&["apply", "--yes", "first.plan"]);
    assert!([1, 8].contains(&refused.code), "{refused:?}");
    assert!(idle.lives());

    // planned, and then somebody else was faster
    world.edit("pocketenv.yaml", "COLOUR: red", "COLOUR: blue");
    world.run(&["plan", "--out", "second.plan"]).ends(0);
    world.run(&["stop", "box"]).ends(0);
    let refused = world.run(&["apply", "--yes", "second.plan"]);
    assert!([1, 8].contains(&refused.code), "{refused:?}");
    assert!(world.processes().is_empty(), "nothing was done");

    world.apply();
    assert!(world.process("box", "sleep 130001").environment().contains(&"COLOUR=blue".to_owned()));
    world.assert_converged();
    world.destroy_and_see_nothing_left(&[]);
}
