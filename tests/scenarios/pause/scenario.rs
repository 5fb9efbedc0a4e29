//! A sandbox is paused and goes on with its processes; while it is paused that is what every verb says, and nothing hangs or is lost.

use crate::scenarios::world::World;

#[test]
fn pause() {
    let world = World::scenario("pause");
    world.apply();
    let (init, service) = (world.init("box"), world.process("box", "sleep 150001"));
    let paused = world.run(&["pause", "box"]);
    if paused.stderr.contains("nothing can be paused here") {
        assert_ne!(paused.code, 0, "{paused:?}");
        assert!(init.lives());
        world.assert_converged();
        if nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: control groups are missing");
        }
        return;
    }
    paused.ends(0);
    let status = world.status("sandbox/box");
    assert_eq!(
        (&status["health"], &status["phase"], &status["message"]),
        (&"Suspended".into(), &"Paused".into(), &"it is paused".into()),
        "{status}"
    );
    world.run(&["pause", "box"]).ends(0);
    let refused = world.run(&["exec", "box", "--", "true"]);
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(refused.stderr.contains("is paused; `pocketenv resume box` lets it go on"), "{refused:?}");
    world.assert_out_of_sync();
    assert!(init.lives() && service.lives());

    // it goes on, and so does everything in it
    world.run(&["resume", "box"]).ends(0);
    assert_eq!(world.sh("box", "echo alive"), "alive");
    world.assert_converged();
    assert!(init.lives() && service.lives());

    // apply lets it go on too, and brings what was changed meanwhile
    world.run(&["pause", "box"]).ends(0);
    world.edit("pocketenv.yaml", "    services:\n", "    env: { COLOUR: blue }\n    services:\n");
    world.apply();
    assert_eq!(world.sh("box", "echo $COLOUR"), "blue");
    assert!(init.lives());
    world.assert_converged();

    // what is paused can be stopped and destroyed
    world.run(&["pause", "box", "other"]).ends(0);
    world.run(&["stop", "box"]).ends(0);
    assert!(!init.lives());
    let stopped = world.run(&["pause", "box"]);
    assert!(stopped.code != 0 && stopped.stderr.contains("only what runs can be paused"), "{stopped:?}");
    let service = world.run(&["pause", "box/one"]);
    assert_eq!(service.code, 64, "{service:?}");
    world.destroy_and_see_nothing_left(&[]);
}
