//! Sandboxes end by themselves, with no Pocketenv running, and it is told when they will and why they did.

use crate::scenarios::world::{World, eventually};

#[test]
fn lifetime() {
    let world = World::scenario("lifetime");
    world.apply();
    let notes = |name: &str| {
        let status = world.status(&format!("sandbox/{name}"));
        status["notes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|note| note.as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    let tells = |name: &str, what: &str| notes(name).iter().any(|note| note.starts_with(what));
    assert!(tells("short", "lifetime: it is deleted at 20"), "{:?}", notes("short"));
    assert!(tells("lazy", "lifetime: it is stopped after 3s without use"), "{:?}", notes("lazy"));
    assert!(tells("always", "lifetime: it is deleted at 20"), "{:?}", notes("always"));
    assert!(!tells("always", "lifetime: it is stopped"), "{:?}", notes("always"));
    let (short, lazy, always) = (world.box_dir("short"), world.init("lazy"), world.init("always"));

    // Nobody looks but at files and processes.
    eventually("the one is deleted", || !short.exists());
    // A look is no use, and neither is a check of health.
    eventually("the other is stopped", || {
        world.status("sandbox/lazy");
        !lazy.lives()
    });
    let (gone, stopped) = (world.status("sandbox/short"), world.status("sandbox/lazy"));
    assert_eq!((&gone["health"], &gone["phase"]), (&"Missing".into(), &"Absent".into()), "{gone}");
    assert_eq!(
        (&stopped["phase"], &stopped["message"]),
        (&"Stopped".into(), &"nothing used it for 3s".into()),
        "{stopped}"
    );
    assert!(always.lives());

    // Changed while it runs.
    world.edit("pocketenv.yaml", "idle_timeout: 1s, ttl: 8h", "ttl: 9h");
    world.run(&["apply", "--yes", "--target", "always"]).ends(0);
    assert!(always.lives());
    world.destroy_and_see_nothing_left(&[]);
}
