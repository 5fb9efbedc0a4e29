//! What is removed from the manifest is removed from the world: files, environment, services, sandboxes; what is kept is left alone.

use crate::scenarios::world::World;

#[test]
fn prune() {
    let world = World::scenario("prune");
    world.apply();
    let (init, one) = (world.init("keep"), world.process("keep", "sleep 900001"));

    // inside: a file and a service
    world.edit("pocketenv.yaml", "      - { path: /etc/two, content: \"2\" }\n", "");
    world.edit("pocketenv.yaml", "      two: { command: exec sleep 900002, env: { SIZE: \"9\" } }\n", "");
    world.apply();
    assert_eq!(world.sh("keep", "ls /etc/one /etc/two 2>/dev/null || true"), "/etc/one");
    assert!(!world.processes().iter().any(|process| process.command.starts_with("sleep 900002")));
    assert!(one.lives() && init.lives());
    world.assert_converged();

    // a variable: gone from new processes and from the services, which restart
    world.edit("pocketenv.yaml", ", SHAPE: round", "");
    world.apply();
    assert_eq!(world.sh("keep", "echo $COLOUR.$SHAPE."), "red..");
    let environment = world.process("keep", "sleep 900001").environment();
    assert!(
        environment.contains(&"COLOUR=red".to_owned())
            && !environment.iter().any(|entry| entry.starts_with("SHAPE"))
    );
    assert!(init.lives());

    // a whole sandbox: kept if asked, else deleted with consent
    world.edit("pocketenv.yaml", "  gone:\n    services:\n      three: { command: exec sleep 900003 }\n", "");
    let gone = world.processes().into_iter().find(|process| process.command == "sleep 900003").unwrap();
    world.run(&["apply", "--yes", "--no-prune"]).ends(0);
    assert!(gone.lives());
    world.run(&["apply", "--yes", "--allow-data-loss"]).ends(0);
    assert!(!gone.lives());
    assert_eq!(world.box_count(), 1);
    world.assert_converged();

    // a mount: the sandbox restarts, the volume and its data stay
    world.sh("keep", "echo kept > /data/file");
    world.edit("pocketenv.yaml", "    volumes: [\"data:/data\"]\n", "");
    world.apply();
    assert_eq!(world.sh("keep", "ls -A /data 2>/dev/null | wc -l"), "0");
    world.edit("pocketenv.yaml", "  keep:\n", "  keep:\n    volumes: [\"data:/again\"]\n");
    world.apply();
    assert_eq!(world.sh("keep", "cat /again/file"), "kept");
    world.assert_converged();

    // the volume itself: only when asked, with its data
    world.edit("pocketenv.yaml", "    volumes: [\"data:/again\"]\n", "");
    world.edit("pocketenv.yaml", "volumes:\n  data: {}\n", "");
    world.apply();
    let volumes = world.home().join("data/engine/volumes");
    assert_eq!(std::fs::read_dir(&volumes).unwrap().count(), 1, "kept");
    world.run(&["apply", "--yes", "--volumes", "--allow-data-loss"]).ends(0);
    assert_eq!(std::fs::read_dir(&volumes).unwrap().count(), 0);
    world.assert_converged();
    world.destroy_and_see_nothing_left(&[]);
}
