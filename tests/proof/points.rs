//! Real processes, `apply`, `destroy` and `controller`, killed at every named point of what they do with a provider, and at random times.
//!
//! A point is a kind of request and how far it has come; with what comes before a request is made and after its answer (the intent is written down
//! before, the result after) these are all the places where the journal and the provider may know different things. The provider has no idempotency
//! keys, and its listing lags.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::time::Duration;

use crate::between::{Between, Point, Station};
use crate::machine::{Started, World, eventually};
use crate::process::Cloud;
use crate::schedule::chance;

const STATIONS: [Station; 3] = [Station::Asked, Station::Happened, Station::Answered];

const MANIFEST: &str = r#"
version: 1
name: points
defaults: { provider: sim }
volumes:
  data: {}
sandboxes:
  box:
    count: 2
    hostname: one
    volumes: ["data:/data"]
    files:
      - { path: /root/number, content: "{{ index }}" }
    services:
      idle: { command: [idle] }
"#;

struct Scene {
    world: World,
    cloud: Cloud,
    between: Between,
}

impl Scene {
    fn new() -> Scene {
        let mut world = World::scenario("crash");
        world.write("pocketenv.yaml", MANIFEST);
        let manners = ["--chaos", "calm", "--faults", "idempotent_create=false", "--faults", "lag=150ms"];
        let cloud = Cloud::with(&world, 1, &manners);
        let between = Between::start(&cloud.url);
        world.set("POCKETENV_SIM_URL", &between.url);
        Scene { world, cloud, between }
    }

    /// Runs the program; whether it was killed at the point.
    #[track_caller]
    fn killed(&self, arguments: &[&str], point: Point) -> bool {
        let mut command = self.world.command(arguments);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.between.aim(child.id(), point);
        let status = child.wait().unwrap();
        let fired = self.between.lower();
        assert_eq!(status.signal() == Some(9), fired, "{point:?}: {status}");
        assert!(fired || status.success(), "{point:?} was not reached: {status}");
        fired
    }

    fn wanted(count: usize) -> Vec<String> {
        (1..=count).map(|n| format!("sandbox/box-{n}")).collect()
    }

    /// Everything is there once, and the record says so.
    #[track_caller]
    fn whole(&self, count: usize, when: &str) {
        self.world.assert_converged();
        assert_eq!(self.cloud.resources(), Self::wanted(count), "{when}");
        assert_eq!(self.cloud.inventory()["volumes"].as_array().unwrap().len(), 1, "{when}");
        assert_eq!(self.open(), (0, 0), "intents and leases are left: {when}");
    }

    /// Open intents and leases in the store, asked with the database's own eyes.
    fn open(&self) -> (i64, i64) {
        let store = rusqlite::Connection::open(self.world.home().join("state/state.db")).unwrap();
        let count = |sql: &str| store.query_row(sql, [], |row| row.get(0)).unwrap();
        (count("SELECT count(*) FROM intents WHERE ended_at IS NULL"), count("SELECT count(*) FROM leases"))
    }

    #[track_caller]
    fn empty(&self, when: &str) {
        let left = self.cloud.inventory();
        let nothing = serde_json::json!([]);
        assert_eq!((&left["sandboxes"], &left["volumes"]), (&nothing, &nothing), "{when}");
    }
}

fn points(operations: &[(&'static str, usize)]) -> Vec<Point> {
    let each = |(operation, most): &(&'static str, usize)| {
        let operation = *operation;
        (0..*most).flat_map(move |nth| STATIONS.map(|station| Point { operation, station, nth }))
    };
    operations.iter().flat_map(each).collect()
}

/// Operations at which something was killed.
fn hit(points: &[Point]) -> BTreeSet<&'static str> {
    points.iter().map(|point| point.operation).collect()
}

#[test]
fn apply_killed_at_every_point_is_made_good_by_the_next_apply() {
    let scene = Scene::new();
    let mut fired = Vec::new();
    for point in points(&[("volume", 1), ("create", 2), ("exec", 3), ("list", 2)]) {
        if scene.killed(&["apply", "--yes"], point) {
            fired.push(point);
        }
        scene.world.apply();
        scene.whole(2, &format!("{point:?}"));
        scene.world.run(&["destroy", "--yes", "--volumes"]).ends(0);
        scene.empty(&format!("{point:?}"));
    }
    println!("killed at {} points", fired.len());
    assert_eq!(hit(&fired), BTreeSet::from(["volume", "create", "exec", "list"]));
}

#[test]
fn changes_and_destroy_killed_at_every_point_are_made_good_by_the_next_run() {
    let scene = Scene::new();
    scene.world.apply();
    let (mut fired, mut host) = (Vec::new(), "one");
    for point in points(&[("stop", 1), ("update", 1), ("start", 1)]) {
        let next = if host == "one" { "two" } else { "one" };
        scene.world.edit("pocketenv.yaml", &format!("hostname: {host}"), &format!("hostname: {next}"));
        host = next;
        if scene.killed(&["apply", "--yes"], point) {
            fired.push(point);
        }
        scene.world.apply();
        scene.whole(2, &format!("{point:?}"));
    }
    for point in points(&[("delete", 2), ("volume", 1)]) {
        if scene.killed(&["destroy", "--yes", "--volumes"], point) {
            fired.push(point);
        }
        // Either way on is a way on.
        if point.nth == 1 {
            scene.world.apply();
            scene.whole(2, &format!("{point:?}"));
        }
        scene.world.run(&["destroy", "--yes", "--volumes"]).ends(0);
        scene.empty(&format!("{point:?}"));
        scene.world.apply();
    }
    println!("killed at {} points", fired.len());
    assert_eq!(hit(&fired), BTreeSet::from(["stop", "update", "start", "delete", "volume"]));
}

/// A controller of the project's directory.
fn control(scene: &Scene) -> Started {
    let project = scene.world.project().display().to_string();
    let config = format!(
        "version: 1\nretry: {{ initial: 1s, max: 2s }}\nsources:\n  - {{ name: here, directory: {project}, interval: 1s, resync: 8s, prune: true, \
         allow_data_loss: true }}\n"
    );
    scene.world.write("../controller.yaml", &config);
    scene.world.start(&["controller", "run", "--config", "../controller.yaml", "--listen", "127.0.0.1:0"])
}

/// Ends with what was started.
struct Ending(Started);

impl Ending {
    /// Asks it to end, and waits until it has: what it is about it brings to an end.
    fn asked(mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.0.child.wait().unwrap();
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.child.kill();
        let _ = self.0.child.wait();
    }
}

/// A fresh controller puts everything right, and nobody has to do anything.
#[track_caller]
fn a_controller_puts_it_right(scene: &Scene, count: usize, when: &str) {
    let controller = Ending(control(scene));
    eventually(when, || {
        let there = scene.cloud.resources() == Scene::wanted(count) && scene.open() == (0, 0);
        there && scene.world.run(&["plan", "--detailed-exitcode"]).code == 0
    });
    controller.asked();
    scene.whole(count, when);
}

#[test]
fn a_controller_killed_at_every_point_goes_on_where_it_was() {
    let scene = Scene::new();
    let (mut fired, mut count, mut host) = (Vec::new(), 2, "one");
    for point in points(&[("volume", 1), ("create", 1), ("exec", 1), ("stop", 1), ("delete", 1)]) {
        let when = format!("{point:?}");
        match point.operation {
            "stop" => {
                let next = if host == "one" { "two" } else { "one" };
                scene.world.edit(
                    "pocketenv.yaml",
                    &format!("hostname: {host}"),
                    &format!("hostname: {next}"),
                );
                host = next;
            }
            "delete" => {
                let next = 3 - count;
                scene.world.edit("pocketenv.yaml", &format!("count: {count}"), &format!("count: {next}"));
                count = next;
            }
            _ => {
                scene.world.run(&["destroy", "--yes", "--volumes"]).ends(0);
                scene.empty(&when);
            }
        }
        let mut controller = Ending(control(&scene));
        scene.between.aim(controller.0.child.id(), point);
        eventually(&when, || {
            if controller.0.child.try_wait().unwrap().is_some() {
                return true;
            }
            let there = scene.cloud.resources() == Scene::wanted(count) && scene.open() == (0, 0);
            // A plan looks inside as well, and must not be taken for the controller.
            let settled = || scene.world.run(&["plan", "--detailed-exitcode"]).code == 0;
            there && (point.operation == "exec" || settled())
        });
        drop(controller);
        if scene.between.lower() {
            fired.push(point);
        }
        a_controller_puts_it_right(&scene, count, &when);
    }
    println!("killed at {} points", fired.len());
    let all = ["volume", "create", "exec", "stop", "delete"];
    assert_eq!(hit(&fired), BTreeSet::from(all), "{fired:?}");
}

#[test]
fn a_controller_killed_at_random_and_crossed_by_apply_makes_nothing_twice() {
    let scene = Scene::new();
    for round in 0..8_u64 {
        let controller = Ending(control(&scene));
        // At any time at all: that is what is tried.
        std::thread::sleep(Duration::from_millis(chance(7, round) % 700));
        if round % 2 == 1 {
            scene.world.run(&["apply", "--yes", "--lock-timeout", "60s"]).ends(0);
        }
        drop(controller);
        let there = scene.cloud.resources();
        let once: BTreeSet<&String> = there.iter().collect();
        assert_eq!(there.len(), once.len(), "round {round}: {there:?}");
        if round % 3 == 2 {
            a_controller_puts_it_right(&scene, 2, &format!("round {round}"));
            scene.world.run(&["destroy", "--yes", "--volumes"]).ends(0);
            scene.empty(&format!("round {round}"));
        }
    }
    a_controller_puts_it_right(&scene, 2, "the end");
    scene.world.run(&["destroy", "--yes", "--volumes"]).ends(0);
    scene.empty("the end");
}
