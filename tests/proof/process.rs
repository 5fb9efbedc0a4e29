//! Real processes on the local engine, killed and crossed in every way: one plain `apply` afterwards puts everything right.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Stdio;

use crate::machine::World;

const SANDBOXES: usize = 3;

const MANIFEST: &str = r#"
version: 1
name: proof
volumes:
  data: {}
sandboxes:
  box:
    count: 3
    volumes: ["data:/data"]
    files:
      - { path: /root/number, content: "{{ index }}" }
    presets: [once]
    services:
      idle: { command: exec sleep 700002 }
presets:
  once:
    steps:
      - { name: once, run: "echo ran >> /root/ran" }
"#;

fn world() -> World {
    let world = World::scenario("crash");
    world.write("pocketenv.yaml", MANIFEST);
    world
}

/// One plain apply puts everything right, and nothing is there twice.
#[track_caller]
fn one_apply_puts_it_right(world: &World) {
    world.apply();
    whole(world);
}

#[track_caller]
fn whole(world: &World) {
    world.assert_converged();
    assert_eq!(world.box_count(), SANDBOXES, "three sandboxes, none twice");
    for number in 1..=SANDBOXES {
        let name = format!("box-{number}");
        assert_eq!(world.sh(&name, "cat /root/number"), number.to_string());
        world.process(&name, "sleep 700002");
    }
    journal_is_closed(world);
}

/// What the journal and the history claim is what the engine holds: asked with the database's own eyes.
#[track_caller]
fn journal_is_closed(world: &World) {
    let store = rusqlite::Connection::open(world.home().join("state/state.db")).unwrap();
    let count = |sql: &str| store.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count("SELECT count(*) FROM intents WHERE ended_at IS NULL"), 0, "no intent is left open");
    assert_eq!(count("SELECT count(*) FROM leases"), 0, "no lease is left");
    let mut ids = store.prepare("SELECT id FROM sandboxes").unwrap();
    let mut recorded: Vec<String> =
        ids.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let boxes = fs::read_dir(world.home().join("data/engine/boxes")).into_iter().flatten();
    let mut there: Vec<String> = boxes.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    recorded.sort();
    there.sort();
    assert_eq!(recorded, there, "the record is what the engine holds");
}

/// Starts the program, kills it as soon as it has told `lines` events; whether it was still there to be killed.
#[track_caller]
fn kill_after(world: &World, arguments: &[&str], lines: usize) -> bool {
    let mut command = world.command(arguments);
    let mut child =
        command.args(["--progress", "json"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let told = BufReader::new(child.stderr.take().unwrap()).lines().take(lines).count();
    child.kill().unwrap();
    let status = child.wait().unwrap();
    let was_killed = status.signal() == Some(9);
    assert!(was_killed || status.success() || told <= lines, "it failed by itself: {status}");
    was_killed
}

#[test]
fn killed_at_each_event_that_it_tells() {
    let world = world();
    let mut killed = 0;
    for lines in 1..200 {
        if !kill_after(&world, &["apply", "--yes"], lines) {
            break;
        }
        killed += 1;
        assert!(world.box_count() <= SANDBOXES, "{} sandboxes after {lines} events", world.box_count());
        if lines % 4 == 0 {
            one_apply_puts_it_right(&world);
            world.run(&["destroy", "--yes", "--volumes"]).ends(0);
        }
    }
    println!("killed at {killed} events of apply");
    assert!(killed > 10, "{killed}");
    one_apply_puts_it_right(&world);
    for lines in 1..200 {
        if !kill_after(&world, &["destroy", "--yes", "--volumes"], lines) {
            break;
        }
        if lines % 4 == 0 {
            one_apply_puts_it_right(&world);
        }
    }
    world.destroy_and_see_nothing_left(&[]);
}

#[test]
fn two_writers_at_once_are_one_after_the_other() {
    let world = world();
    for round in 0..3 {
        let arguments = ["apply", "--yes", "--lock-timeout", "60s"];
        let both = [world.start(&arguments), world.start(&arguments)];
        for started in both {
            world.finish(started).ends(0);
        }
        whole(&world);
        if round == 1 {
            world.run(&["destroy", "--yes", "--volumes"]).ends(0);
        }
    }
    // One that does not wait is refused, and says so with its own code.
    world.run(&["destroy", "--yes", "--volumes"]).ends(0);
    let (one, other) = (world.start(&["apply", "--yes"]), world.start(&["apply", "--yes"]));
    let mut codes = [world.finish(one).code, world.finish(other).code];
    codes.sort_unstable();
    assert!(codes == [0, 6] || codes == [0, 0], "{codes:?}");
    whole(&world);
    world.destroy_and_see_nothing_left(&[]);
}

#[test]
fn a_store_that_is_cut_off_is_refused_and_one_that_is_gone_or_old_is_made_good() {
    let world = world();
    world.apply();
    let state = world.home().join("state");
    let store = state.join("state.db");
    let old = fs::read(&store).unwrap();
    let before: Vec<_> =
        (1..=SANDBOXES).map(|n| world.process(&format!("box-{n}"), "sleep 700002")).collect();

    // Older: it was put back from a copy made before an edit.
    world.edit("pocketenv.yaml", "count: 3", "count: 2");
    world.run(&["apply", "--yes", "--allow-data-loss"]).ends(0);
    world.edit("pocketenv.yaml", "count: 2", "count: 3");
    remove_store(&state);
    fs::write(&store, &old).unwrap();
    one_apply_puts_it_right(&world);

    // Cut off: nothing is guessed, nothing is touched, and the message says what to do.
    remove_store(&state);
    fs::write(&store, &old[..old.len() / 2]).unwrap();
    let refused = world.run(&["apply", "--yes"]);
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(refused.stderr.contains("state.db"), "{refused:?}");
    assert_eq!(world.box_count(), SANDBOXES);

    // Gone: everything is taken over.
    remove_store(&state);
    one_apply_puts_it_right(&world);
    let after: Vec<_> = (1..SANDBOXES).map(|n| world.process(&format!("box-{n}"), "sleep 700002")).collect();
    assert_eq!(before[..SANDBOXES - 1], after, "what ran was left alone");
    world.destroy_and_see_nothing_left(&[]);
}

fn remove_store(state: &Path) {
    for name in ["state.db", "state.db-wal", "state.db-shm"] {
        let _ = fs::remove_file(state.join(name));
    }
}

/// Where nothing more can be written a run fails and says so; with room again, one apply puts everything right. The limit is the process's own, which
/// fails a write as a full disk does and needs neither a filesystem to fill nor root.
#[test]
fn a_run_without_room_fails_and_loses_nothing() {
    let world = world();
    world.edit("pocketenv.yaml", "count: 3", "count: 1");
    world.apply();
    world.edit("pocketenv.yaml", "count: 1", "count: 3");
    let mut failed = 0;
    for blocks in ["0", "64", "128", "256", "512"] {
        let program = world.command(&["apply", "--yes"]);
        let script = r#"trap "" XFSZ; ulimit -f "$1"; shift; exec "$@""#;
        let mut limited = std::process::Command::new("sh");
        limited.args(["-c", script, "sh", blocks]).arg(program.get_program()).args(program.get_args());
        limited.current_dir(world.project()).env_clear();
        limited.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = limited.stdin(Stdio::null()).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!told.contains("panicked"), "{told}");
        assert!(output.status.success() || told.contains("error"), "{blocks}: {:?}: {told}", output.status);
        failed += u32::from(!output.status.success());
    }
    assert!(failed > 0, "there was room all the time");
    one_apply_puts_it_right(&world);
    world.destroy_and_see_nothing_left(&[]);
}

/// A simulated cloud in a process of its own; it ends with this.
pub struct Cloud {
    child: std::process::Child,
    pub url: String,
}

impl Cloud {
    /// In a hurry, and rough: lost answers on both sides, lagging listings, throttling, sandboxes that die.
    fn start(world: &World, seed: u64) -> Cloud {
        Self::with(world, seed, &["--chaos", "stormy", "--faults", "speed=20"])
    }

    pub fn with(world: &World, seed: u64, manners: &[&str]) -> Cloud {
        let seed = seed.to_string();
        let arguments = ["sim", "--listen", "127.0.0.1:0", "--state", "cloud.sim", "--seed", &seed];
        let mut command = world.command(&arguments);
        command
            .args(manners)
            .arg("--until-stdin-ends")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        Cloud { child, url: url.trim().to_owned() }
    }

    /// What really exists there and everything that ever happened, past every fault.
    pub fn inventory(&self) -> serde_json::Value {
        let address = self.url.strip_prefix("http://").unwrap().parse().unwrap();
        let (status, body) = crate::machine::http_get(address, "/inventory").unwrap();
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// The resources that exist, by their labels.
    pub fn resources(&self) -> Vec<String> {
        let inventory = self.inventory();
        let all = inventory["sandboxes"].as_array().unwrap().iter();
        let name = |s: &serde_json::Value| s["labels"]["pocketenv.io/resource"].as_str().map(str::to_owned);
        let mut names: Vec<String> = all.map(|s| name(s).unwrap_or_else(|| panic!("{s}"))).collect();
        names.sort();
        names
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Applies until it succeeds: in a rough cloud a run may give up, and the next one goes on where it was.
#[track_caller]
fn until_done(world: &World, arguments: &[&str]) {
    for _ in 0..10 {
        if world.run(arguments).code == 0 {
            return;
        }
    }
    panic!("ten runs of {arguments:?} did not do it:\n{}", world.printed());
}

#[test]
fn killed_against_a_rough_cloud_that_is_killed_too() {
    let mut world = world();
    world.edit("pocketenv.yaml", "name: proof", "name: proof\ndefaults: { provider: sim }");
    let wanted: Vec<String> = (1..=SANDBOXES).map(|n| format!("sandbox/box-{n}")).collect();
    let mut killed = 0;
    for seed in 1..=3 {
        let mut cloud = Cloud::start(&world, seed);
        world.set("POCKETENV_SIM_URL", &cloud.url);
        for lines in [2, 5, 9, 14, 20] {
            killed += u32::from(kill_after(&world, &["apply", "--yes"], lines));
            let there = cloud.resources();
            let mut once = there.clone();
            once.dedup();
            assert_eq!(there, once, "something exists twice after a kill at event {lines}, seed {seed}");
            if lines == 9 {
                // The cloud dies and comes back with everything it had.
                drop(cloud);
                cloud = Cloud::start(&world, seed);
                world.set("POCKETENV_SIM_URL", &cloud.url);
            }
        }
        until_done(&world, &["apply", "--yes"]);
        assert_eq!(cloud.resources(), wanted, "seed {seed}");
        until_done(&world, &["destroy", "--yes", "--volumes"]);
        let left = cloud.inventory();
        assert_eq!(left["sandboxes"], serde_json::json!([]), "seed {seed}");
        assert_eq!(left["volumes"], serde_json::json!([]), "seed {seed}");
    }
    println!("killed {killed} times");
    assert!(killed > 3, "{killed}");
}
