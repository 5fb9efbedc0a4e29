//! A database server on a volume and an app that needs it: the data outlives stop, start, recreate and destroy.

use std::net::SocketAddr;

use crate::scenarios::world::{World, eventually, http_get};

const SERVER: &str = "/usr/lib/postgresql/";
const APP: &str = "python3 -u /srv/app/app.py";
const PASSWORD: &str = "correct-horse-battery-staple-31415";

/// The number of the next visit.
#[track_caller]
fn visit(app: SocketAddr) -> u32 {
    let (status, body) = http_get(app, "/").unwrap();
    assert_eq!(status, 200, "{body}");
    body.trim().parse().unwrap()
}

#[test]
fn database() {
    if !std::path::Path::new("/usr/lib/postgresql").exists() {
        eprintln!("SKIPPED: PostgreSQL is missing, see scripts/setup-test-deps");
        return;
    }
    let mut world = World::example("database");
    world.set("DB_PASSWORD", PASSWORD);

    // applied: the app counts in the database
    world.apply();
    let app = world.endpoint("app", 8000);
    let db = world.endpoint("db", 5432);
    assert_eq!(visit(app), 1);
    assert_eq!(visit(app), 2);
    for resource in ["sandbox/db", "sandbox/app", "sandbox/db/service/postgres", "sandbox/app/service/visits"]
    {
        assert!(world.is_ready(resource), "{}", world.status(resource));
    }
    assert!(std::net::TcpStream::connect(db).is_ok());

    // the app waited for the health of the database: it started after the server
    let server = world.process("db", SERVER);
    let visits = world.process("app", APP);

    // applied again: nothing happens
    world.assert_converged();
    world.apply();
    assert_eq!((world.process("db", SERVER), world.process("app", APP)), (server.clone(), visits.clone()));

    // the app is changed: the database is left alone
    world.edit("pocketenv.yaml", "PGCONNECT_TIMEOUT: \"5\"", "PGCONNECT_TIMEOUT: \"6\"");
    world.apply();
    assert_eq!(world.process("db", SERVER), server);
    assert!(!visits.lives());
    assert!(world.process("app", APP).environment().contains(&"PGCONNECT_TIMEOUT=6".to_owned()));
    assert_eq!(visit(app), 3);
    world.assert_converged();

    // stopped and started: the data and the address are kept
    world.run(&["stop", "db"]).ends(0);
    assert!(!server.lives());
    assert!(std::net::TcpStream::connect(db).is_err());
    let (status, _) = http_get(app, "/").unwrap();
    assert_eq!(status, 503, "the app says that its database is gone");
    world.run(&["start", "db"]).ends(0);
    eventually("the app has its database back", || {
        http_get(app, "/health").is_ok_and(|(status, _)| status == 200)
    });
    assert_eq!(visit(app), 4);
    world.assert_converged();

    // the server is killed: its supervisor starts it again, and PostgreSQL recovers
    world.process("db", SERVER).kill();
    eventually("the app has its database back", || {
        http_get(app, "/health").is_ok_and(|(status, _)| status == 200)
    });
    assert_eq!(visit(app), 5);

    // the sandbox is deleted and made anew: the volume is not touched
    world.run(&["destroy", "--yes", "--target", "sandbox/db"]).ends(0);
    assert!(world.run(&["status", "sandbox/db", "-o", "json"]).stdout.contains("Missing"));
    world.apply();
    eventually("the app has its database back", || {
        http_get(app, "/health").is_ok_and(|(status, _)| status == 200)
    });
    assert_eq!(visit(app), 6);

    // everything is destroyed but the volume, and comes back with the data
    world.run(&["destroy", "--yes"]).ends(0);
    assert_eq!(world.processes(), []);
    world.apply();
    assert!(visit(world.endpoint("app", 8000)) >= 7);
    world.assert_converged();

    assert!(!world.printed().contains(PASSWORD));
    world.destroy_and_see_nothing_left(&[]);
}
