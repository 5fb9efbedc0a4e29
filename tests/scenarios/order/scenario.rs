//! What depends on the health of something starts after it is healthy, and what does not depend on it does not wait.

use crate::scenarios::world::{World, eventually};

#[test]
fn order() {
    let world = World::scenario("order");
    let apply = world.start(&["apply", "--yes"]);
    let volumes = world.home().join("data/engine/volumes");
    let shared = |name: &str| {
        let find = std::process::Command::new("find").arg(&volumes).args(["-name", name]).output().unwrap();
        !find.stdout.is_empty()
    };

    // the independent sandbox runs while the gate is closed; the dependent one has no service
    eventually("the independent service runs", || shared("free"));
    let sleeps =
        |seconds: &str| world.processes().iter().any(|process| process.command == format!("sleep {seconds}"));
    assert!(!shared("ready") && !shared("first") && !sleeps("100001"));

    // the gate is opened from the side
    world.sh("free", "touch /shared/open");
    let applied = world.finish(apply);
    assert_eq!(applied.code, 0, "{}", applied.text());
    let time =
        |name: &str| -> f64 { world.sh("free", &format!("stat -c %.9Y /shared/{name}")).parse().unwrap() };
    assert!(time("ready") <= time("first"), "the other sandbox waited");
    assert!(time("first") <= time("second"), "the other service waited");
    world.assert_converged();
    world.destroy_and_see_nothing_left(&[]);
}
