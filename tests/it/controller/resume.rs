//! Real controllers that are killed: what is left undone is finished exactly, and two of them never both write.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::support::{Forge, cloud, run};
use crate::sim::world::{Sim, count};

/// A project whose sandboxes come one after the other.
pub(super) fn chain(name: &str, length: usize, round: usize) -> String {
    let boxes: String = (0..length)
        .map(|n| {
            let after = if n == 0 { String::new() } else { format!(", depends_on: [b{}]", n - 1) };
            format!("  b{n}: {{ env: {{ ROUND: '{round}' }}{after} }}\n")
        })
        .collect();
    format!("version: 1\nname: {name}\ndefaults: {{ provider: sim }}\nsandboxes:\n{boxes}")
}

/// Waits until the cloud's truth is so.
#[track_caller]
fn until(sim: &Sim, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let inventory = run(sim.inventory());
        if holds(&inventory) {
            return inventory;
        }
        assert!(Instant::now() < deadline, "{what}: {inventory}");
        std::thread::sleep(Duration::from_millis(15));
    }
}

fn effects(inventory: &Value) -> usize {
    inventory["effects"].as_array().unwrap().len()
}

#[test]
fn a_controller_that_is_killed_at_any_moment_goes_on_exactly_where_it_was() {
    let mut forge = Forge::new();
    let sim = cloud(&mut forge, &["create.latency=100ms", "exec.latency=10ms"]);
    forge.write("fleet/pocketenv.yaml", &chain("fleet", 6, 0));
    let first = forge.push();
    let source = forge.source("");
    for created in [1, 2, 4, 6] {
        let controller = forge.control(&source);
        until(&sim, "another sandbox is made", |inventory| count(inventory, "created") >= created);
        controller.kill();
    }
    let controller = forge.control(&source);
    controller.until_applied("fleet", &first);
    // The same with a change that is under way.
    forge.write("fleet/pocketenv.yaml", &chain("fleet", 6, 1));
    let second = forge.push();
    let before = effects(&run(sim.inventory()));
    until(&sim, "the change has begun", |inventory| effects(inventory) > before + 1);
    controller.kill();
    let controller = forge.control(&source);
    controller.until_applied("fleet", &second);
    let inventory = run(sim.inventory());
    assert_eq!(count(&inventory, "created"), 6, "nothing was made twice");
    assert_eq!(count(&inventory, "deleting"), 0, "nothing was thrown away");
    controller.kill();

    // One that had nothing to do has nothing to do, fetches nothing and remembers what is good.
    let settled = effects(&inventory);
    let controller = forge.control(&source);
    controller.until_applied("fleet", &second);
    let compared = controller.metric("pocketenv_reconcile_duration_seconds_count");
    controller.until("fleet", "it is compared again", |_| {
        controller.metric("pocketenv_reconcile_duration_seconds_count") >= compared + 2.0
    });
    assert_eq!(effects(&run(sim.inventory())), settled);
    assert_eq!(controller.metric("pocketenv_source_fetches_total") as u64, 0);
    assert_eq!(controller.stop(), 0);
}

#[test]
fn a_controller_that_has_not_looked_yet_does_not_undo_what_another_took() {
    let mut forge = Forge::new();
    let sim = cloud(&mut forge, &[]);
    // What is new is heard of at the start only; what exists is compared again and again.
    let source = forge.source("    prune: true\n    allow_data_loss: true\n");
    let source = source.replace("interval: 1s", "interval: 1h").replace("resync: 2s", "resync: 1s");
    forge.write("fleet/pocketenv.yaml", &chain("fleet", 3, 0));
    let first = forge.push();
    let behind = forge.control(&source);
    behind.until_applied("fleet", &first);
    forge.write("fleet/pocketenv.yaml", &chain("fleet", 2, 1));
    let second = forge.push();
    let ahead = forge.control(&source);
    ahead.until_applied("fleet", &second);
    let settled = effects(&run(sim.inventory()));
    for controller in [&behind, &ahead] {
        let compared = controller.metric("pocketenv_reconcile_duration_seconds_count");
        controller.until("fleet", "it is compared again", |_| {
            controller.metric("pocketenv_reconcile_duration_seconds_count") >= compared + 2.0
        });
        controller.until_applied("fleet", &second);
    }
    assert_eq!(effects(&run(sim.inventory())), settled, "nobody went back");
    assert_eq!((behind.stop(), ahead.stop()), (0, 0));
}

#[test]
fn two_controllers_on_one_store_never_both_write() {
    const PROJECTS: [&str; 3] = ["p0", "p1", "p2"];
    const ROUNDS: usize = 4;
    let mut forge = Forge::new();
    let sim = cloud(&mut forge, &["latency=20ms", "create.latency=80ms"]);
    let source =
        forge.source("    prune: true\n    allow_data_loss: true\n").replace("resync: 2s", "resync: 1s");
    let mut killed = Vec::new();
    let mut pair = [Some(forge.control(&source)), Some(forge.control(&source))];
    for round in 0..ROUNDS {
        let before = effects(&run(sim.inventory()));
        for name in PROJECTS {
            // One more and one less from round to round.
            forge.write(&format!("{name}/pocketenv.yaml"), &chain(name, 2 + round % 2, round));
        }
        let revision = forge.push();
        until(&sim, "somebody has begun", |inventory| effects(inventory) > before + 2);
        let victim = round % 2;
        pair[victim].take().unwrap().kill();
        killed.push(now());
        pair[victim] = Some(forge.control(&source));
        for controller in pair.iter().flatten() {
            for name in PROJECTS {
                controller.until_applied(name, &revision);
            }
        }
    }
    pair.into_iter().flatten().for_each(|controller| assert_eq!(controller.stop(), 0));

    for name in PROJECTS {
        let output =
            forge.command(&["-n", name, "history", "-o", "json", "--limit", "1000"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let history: Value = serde_json::from_slice(&output.stdout).unwrap();
        let at = |time: &Value| Some(time.as_str()?.parse::<jiff::Timestamp>().unwrap().as_millisecond());
        let mut runs: Vec<(i64, Option<i64>)> = history["runs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|run| (at(&run["started_at"]).unwrap(), at(&run["ended_at"])))
            .collect();
        runs.sort_unstable();
        assert!(runs.len() >= ROUNDS, "{runs:?}");
        for pair in runs.windows(2) {
            let [(started, ended), (next, _)] = pair else { unreachable!() };
            // A run without an end is one that was killed.
            let ended = ended.or_else(|| killed.iter().copied().find(|at| at >= started));
            let ended = ended.unwrap_or_else(|| panic!("a run has no end and was not killed: {runs:?}"));
            // The kill is noted a moment after it has happened.
            assert!(ended <= *next + 100, "two wrote to {name} at once: {runs:?} killed at {killed:?}");
        }
    }
    let inventory = run(sim.inventory());
    let mut names: Vec<String> = inventory["sandboxes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| {
            let label = |name: &str| s["labels"][format!("pocketenv.io/{name}")].as_str().unwrap().to_owned();
            format!("{}/{}", label("project"), label("resource"))
        })
        .collect();
    names.sort();
    let last = 2 + (ROUNDS - 1) % 2;
    let wanted: Vec<String> =
        PROJECTS.iter().flat_map(|name| (0..last).map(move |n| format!("{name}/sandbox/b{n}"))).collect();
    assert_eq!(names, wanted);
    // Each sandbox once, and the third one again after it was pruned.
    let made = PROJECTS.len() * (2 + ROUNDS / 2);
    assert_eq!(count(&inventory, "created"), made, "nothing was made twice");
}

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}
