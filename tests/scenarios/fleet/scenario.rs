//! Fifty sandboxes from one entry: all run, a change reaches those that it concerns, the dead one comes back, none is left.

use std::collections::BTreeSet;

use crate::scenarios::world::{World, eventually};

#[test]
fn fleet() {
    let world = World::example("fleet");

    // applied: fifty real sandboxes, each with its own number
    world.apply();
    assert_eq!(world.box_count(), 50);
    let status = world.run(&["status", "-o", "json"]).json();
    let all = status["resources"].as_array().unwrap();
    assert!(
        all.iter().all(|resource| resource["health"] == "Healthy" && resource["sync"] == "Synced"),
        "{status:#}"
    );
    let boxes: BTreeSet<_> = all.iter().filter_map(|resource| resource["id"].as_str()).collect();
    assert_eq!(boxes.len(), 50);
    for number in [1, 7, 50] {
        let name = format!("worker-{number}");
        assert_eq!(
            world.sh(&name, "cat /srv/work/beat /srv/work/shard; echo $SHARD"),
            format!("{number}\n{number}\n{number}")
        );
    }

    // applied again: nothing happens
    world.assert_converged();

    // fewer are declared: only the others go, and only with consent, since their disks go with them
    let (first, last) = (world.init("worker-1"), world.init("worker-50"));
    world.edit("pocketenv.yaml", "count: 50", "count: 48");
    world.run(&["apply", "--yes"]).ends(8);
    world.run(&["apply", "--yes", "--allow-data-loss"]).ends(0);
    assert_eq!(world.box_count(), 48);
    assert!(first.lives() && !last.lives());

    // one dies: it alone is healed
    let (victim, other) = (world.init("worker-7"), world.init("worker-8"));
    victim.kill();
    eventually("its death is seen", || world.run(&["plan", "--detailed-exitcode"]).code == 2);
    world.apply();
    assert_ne!(world.init("worker-7"), victim);
    assert_eq!(world.init("worker-8"), other);
    eventually("it works", || world.sh("worker-7", "cat /srv/work/beat") == "7");
    world.assert_converged();

    world.destroy_and_see_nothing_left(&[]);
}
