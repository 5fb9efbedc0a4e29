//! Limits are enforced, changed without a restart, and told as they are; a machine that cannot enforce them says so and makes nothing.

use crate::scenarios::world::{World, eventually};

fn condition(world: &World) -> serde_json::Value {
    let status = world.status("sandbox/box");
    let conditions = status["conditions"].as_array().unwrap();
    conditions.iter().find(|condition| condition["type"] == "LimitsEnforced").unwrap().clone()
}

#[test]
fn limits() {
    let world = World::scenario("limits");
    let applied = world.run(&["apply", "--yes"]);
    if applied.stderr.contains("cannot be limited here") {
        assert_ne!(applied.code, 0, "{applied:?}");
        assert_eq!(world.box_count(), 0);
        if nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: control groups are missing");
        }
        return;
    }
    let applied = applied.ends(0);
    assert!(applied.stderr.contains("Done"), "{applied:?}");
    world.assert_converged();
    let enforced = condition(&world);
    assert_eq!(
        (&enforced["status"], &enforced["reason"]),
        (&"True".into(), &"Enforced".into()),
        "{enforced}"
    );

    // out of memory: only that process ends, and it is told
    let (init, web) = (world.init("box"), world.process("box", "sleep 120001"));
    assert_ne!(world.sh("box", "head -c 400M /dev/zero | tail -c 400M > /dev/null; echo $?"), "0");
    let told = condition(&world)["message"].as_str().unwrap().to_owned();
    assert!(told.contains("out of memory"), "{told}");
    assert!(init.lives() && web.lives());
    eventually("it is an event", || {
        world.status("sandbox/box");
        let events = world.run(&["events", "sandbox/box"]).ends(0).stdout;
        events.contains("OutOfMemory") && events.contains("the kernel killed")
    });

    // another limit: nothing is restarted
    world.edit("pocketenv.yaml", "64MiB, pids: 60", "256MiB, pids: 70");
    world.apply();
    world.assert_converged();
    assert_eq!(world.sh("box", "head -c 100M /dev/zero | tail -c 100M | wc -c"), "104857600");
    assert!(init.lives() && web.lives());

    // none: the same
    world.edit("pocketenv.yaml", "    resources: { cpu: 1.5, memory: 256MiB, pids: 70 }\n", "");
    world.apply();
    world.assert_converged();
    assert!(init.lives() && web.lives());
    world.destroy_and_see_nothing_left(&[]);
}
