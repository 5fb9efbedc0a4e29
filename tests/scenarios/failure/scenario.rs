//! One service fails: the others run, what depends on it waits, and status says so, until it is mended.

use crate::scenarios::world::World;

#[test]
fn failure() {
    let world = World::scenario("failure");
    // `condition: healthy` on something without a health check is refused before anything happens.
    let refused = world.run(&["apply", "--yes"]).ends(3);
    assert!(refused.stderr.contains("pocketenv.yaml:13:"), "{}", refused.stderr);
    assert_eq!(world.box_count(), 0);
    world.edit(
        "pocketenv.yaml",
        "restart: never }",
        "restart: never, healthcheck: { exec: [\"false\"], interval: 100ms, retries: 2 } }",
    );

    let run = world.run(&["apply", "--yes", "--timeout", "60s"]).ends(4);
    assert!(run.text().contains("cannot find the thing"), "the reason is shown:\n{}", run.text());
    world.process("good", "sleep 200001");
    world.process("mixed", "sleep 200002");
    assert!(
        !world.processes().iter().any(|process| process.command == "sleep 200003"),
        "the dependent waits"
    );

    // status tells the truth
    let bad = world.status("sandbox/mixed/service/bad");
    assert_eq!(bad["health"], "Degraded", "{bad}");
    assert!(world.is_ready("sandbox/good") && world.is_ready("sandbox/mixed/service/good"));
    assert_ne!(world.status("sandbox/mixed")["health"], "Healthy");
    assert!(
        run.text().contains("`wait for sandbox/mixed/service/bad` did not succeed"),
        "it says why:\n{}",
        run.text()
    );
    assert_ne!(world.status("sandbox/waiting/service/web")["health"], "Healthy");
    world.assert_out_of_sync();

    // mended: only what is missing happens
    let good = world.process("good", "sleep 200001");
    world.edit("pocketenv.yaml", "echo cannot find the thing >&2; exit 7", "exec sleep 200004");
    world.edit("pocketenv.yaml", "[\"false\"]", "[\"true\"]");
    world.apply();
    world.process("mixed", "sleep 200004");
    world.process("waiting", "sleep 200003");
    assert_eq!(world.process("good", "sleep 200001"), good);
    world.assert_converged();
    world.destroy_and_see_nothing_left(&[]);
}
