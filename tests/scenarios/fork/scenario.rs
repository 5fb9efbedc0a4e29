//! Snapshots and forks: sandboxes start from the files of another one, are their own from then on, and leave nothing behind.

use crate::scenarios::world::World;

#[test]
fn fork() {
    let world = World::scenario("fork");
    world.apply();
    world.sh("box", "echo kept > /root/kept; echo changed > /root/managed");
    world.run(&["apply", "--yes"]).ends(0);

    // a snapshot, of one that is stopped: that is possible everywhere
    world.run(&["stop", "box"]).ends(0);
    world.run(&["snapshot", "create", "box", "before"]).ends(0);
    let again = world.run(&["snapshot", "create", "box", "before"]);
    assert!(again.code != 0 && again.stderr.contains("already exists"), "{again:?}");
    let bad = world.run(&["snapshot", "create", "box", "a.b"]);
    assert!(bad.code != 0 && bad.stderr.contains("cannot be the name of a snapshot"), "{bad:?}");
    let listed = world.run(&["snapshot", "list", "-o", "json"]).ends(0).json();
    assert_eq!(listed["snapshots"][0]["name"], "before", "{listed}");
    assert_eq!(listed["snapshots"][0]["of"], "sandbox/box", "{listed}");

    // forks: they run what their parent runs, with its files, and are not it
    world.run(&["fork", "box", "--count", "2"]).ends(0);
    assert_eq!(world.box_count(), 4);
    for fork in ["box-fork-1", "box-fork-2"] {
        assert_eq!(
            world.sh(fork, "cat /root/kept; cat /root/managed; echo $COLOUR; hostname"),
            format!("kept\nmanagedblue\n{fork}")
        );
        assert!(world.process(fork, "sleep 160001").lives());
    }
    // They stop and start like any other, though no manifest declares them.
    world.run(&["stop", "box-fork-2"]).ends(0);
    assert_ne!(world.run(&["exec", "box-fork-2", "--", "true"]).code, 0);
    world.run(&["start", "box-fork-2"]).ends(0);
    assert!(world.process("box-fork-2", "sleep 160001").lives());
    let unknown = world.run(&["stop", "box-fork-3"]);
    assert!(unknown.code != 0 && unknown.stderr.contains("there is no sandbox `box-fork-3`"), "{unknown:?}");
    world.sh("box-fork-1", "echo one > /root/kept");
    assert_eq!(world.sh("box-fork-2", "cat /root/kept"), "kept");
    let ids = [world.id("box"), world.id("box-fork-1"), world.id("box-fork-2")];
    assert!(ids[0] != ids[1] && ids[1] != ids[2]);
    world.run(&["start", "box"]).ends(0);
    assert_eq!(world.sh("box", "cat /root/kept"), "kept");
    let listed = world.run(&["snapshot", "list", "-o", "json"]).ends(0).json();
    let made =
        listed["snapshots"].as_array().unwrap().iter().find(|s| s["for_forks"] == true).unwrap().clone();
    assert_eq!(made["used_by"].as_array().unwrap().len(), 2, "{made}");
    let used = world.run(&["snapshot", "rm", made["name"].as_str().unwrap()]);
    assert!(used.code != 0 && used.stderr.contains("is in use"), "{used:?}");

    let described = world.run(&["describe", "box-fork-1", "-o", "json"]).ends(0).json();
    assert!(described["resources"][0]["disk_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{described}");

    // the next apply removes what is not declared, and says that this loses data
    let refused = world.run(&["apply", "--yes"]);
    assert!(refused.code == 8 && refused.stderr.contains("box-fork-1"), "{refused:?}");
    world.run(&["apply", "--yes", "--allow-data-loss"]).ends(0);
    assert_eq!(world.box_count(), 2);
    world.assert_converged();
    let orphans = world.run(&["gc", "-o", "json"]).json();
    assert_eq!(orphans["orphans"][0]["why"], "unused", "{orphans}");
    assert_eq!(orphans["orphans"].as_array().unwrap().len(), 1, "{orphans}");
    world.run(&["gc", "--delete", "--yes"]).ends(0);

    // declared with a snapshot
    world.edit("pocketenv.yaml", "  base: {}\n", "  base: {}\n  trial: { snapshot: before }\n");
    world.apply();
    world.assert_converged();
    assert_eq!(world.sh("trial", "cat /root/kept; hostname"), "kept\ntrial");
    world.edit("pocketenv.yaml", "snapshot: before", "snapshot: missing");
    let missing = world.run(&["apply", "--yes", "--allow-data-loss"]);
    assert!(
        missing.code != 0 && missing.stderr.contains("snapshot `fork.missing` does not exist"),
        "{missing:?}"
    );
    world.edit("pocketenv.yaml", "  trial: { snapshot: missing }\n", "");
    world.run(&["apply", "--yes", "--allow-data-loss"]).ends(0);
    let unknown = world.run(&["snapshot", "rm", "befor"]);
    assert!(unknown.code != 0 && unknown.stderr.contains("did you mean `before`"), "{unknown:?}");
    world.run(&["snapshot", "rm", "before"]).ends(0);
    world.destroy_and_see_nothing_left(&[]);
}
