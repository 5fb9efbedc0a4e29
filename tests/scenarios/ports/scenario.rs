//! A port of the host that somebody else has is named, with the line, and nothing half-made is claimed to work.

use std::net::TcpListener;

use crate::scenarios::world::{World, free_port, http_get};

#[test]
fn a_taken_port() {
    let world = World::scenario("ports");
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap().port();
    world.edit("pocketenv.yaml", "18099", &taken.to_string());

    let failed = world.run(&["apply", "--yes"]);
    assert!([1, 4].contains(&failed.code), "{failed:?}");
    assert!(failed.stderr.contains(&taken.to_string()), "the port is named: {}", failed.stderr);
    assert_ne!(world.status("sandbox/box/port/8000")["health"], "Healthy");
    assert_ne!(world.status("sandbox/box")["health"], "Healthy");

    // the other goes away: apply mends it
    drop(other);
    world.apply();
    let address = ([127, 0, 0, 1], taken).into();
    assert_eq!(http_get(address, "/").unwrap().0, 200);

    // another port: only the forward changes
    let web = world.process("box", "python3 -m http.server");
    let port = free_port();
    world.edit("pocketenv.yaml", &format!("host_port: {taken}"), &format!("host_port: {port}"));
    world.apply();
    let moved = ([127, 0, 0, 1], port).into();
    assert_eq!(http_get(moved, "/").unwrap().0, 200);
    assert!(http_get(address, "/").is_err(), "the old one is closed");
    assert!(web.lives());

    // chosen for us: once, and kept over a restart
    world.edit("pocketenv.yaml", &format!(", host_port: {port}"), "");
    world.apply();
    let chosen = world.endpoint("box", 8000);
    assert_eq!(http_get(chosen, "/").unwrap().0, 200);
    world.run(&["restart", "box"]).ends(0);
    assert_eq!(world.endpoint("box", 8000), chosen);
    assert_eq!(http_get(chosen, "/").unwrap().0, 200);
    world.assert_converged();
    world.destroy_and_see_nothing_left(&[moved]);
}
