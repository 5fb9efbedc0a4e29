//! How often the controller looks, and whose call goes next, seen at what the simulated cloud was asked.

use std::time::{Duration, Instant};

use reqwest::Method;

use super::support::{Forge, Running, cloud, run};
use crate::sim::world::{Sim, count};

/// How often the cloud was asked, refusals left out: for listings, or for anything.
fn asked(sim: &Sim, operation: Option<&str>) -> u64 {
    let all = run(sim.get("/requests"));
    let all = all.as_object().unwrap().iter();
    all.filter(|(name, _)| operation.is_none_or(|wanted| wanted == *name))
        .map(|(_, asked)| asked["calls"].as_u64().unwrap() - asked["throttled"].as_u64().unwrap())
        .sum()
}

/// How long it takes until a project is looked at again.
fn pause(controller: &Running, path: &str) -> Duration {
    let before = controller.project(path)["reconciled_at"].clone();
    let begun = Instant::now();
    controller.until(path, "it is looked at again", |project| project["reconciled_at"] != before);
    begun.elapsed()
}

#[test]
fn what_stays_as_it_should_is_looked_at_less_often_and_a_change_is_still_seen() {
    let mut forge = Forge::new();
    let sim = cloud(&mut forge, &[]);
    let manifest = |env: &str| {
        format!(
            "version: 1\nname: calm\ndefaults: {{ provider: sim }}\nsandboxes:\n  box: {{ env: {{ A: {env} }} }}\n"
        )
    };
    forge.write("calm/pocketenv.yaml", &manifest("one"));
    let first = forge.push();
    let controller = forge.control(&forge.source("").replace("resync: 2s", "resync: 16s"));
    controller.until_applied("calm", &first);
    let listed = asked(&sim, Some("list"));
    // The first looks come after an eighth of it, a quarter, half; one that finds something to do may be among them.
    let early = (0..3).map(|_| pause(&controller, "calm")).min().unwrap();
    let late = (0..2).map(|_| pause(&controller, "calm")).max().unwrap();
    assert!(late > early * 2, "{early:?}, and later {late:?}");
    assert!(asked(&sim, Some("list")) >= listed + 5, "it was looked at without asking anybody");

    // What somebody changes is seen by the next look, and looked after from then on.
    let id = run(sim.inventory())["sandboxes"][0]["id"].as_str().unwrap().to_owned();
    let (status, answer) = run(sim.send(Method::POST, &format!("/v1/sandboxes/{id}/stop"), None));
    assert!(status.is_success(), "{answer}");
    let started = |inventory: &serde_json::Value| inventory["sandboxes"][0]["state"] == "running";
    controller.until("calm", "it is healed", |project| {
        started(&run(sim.inventory())) && project["sync"] == "Synced"
    });
    let after = (0..3).map(|_| pause(&controller, "calm")).min().unwrap();
    assert!(late > after * 2, "{late:?}, and after the change {after:?}");

    // A new revision does not wait for the next look.
    forge.write("calm/pocketenv.yaml", &manifest("two"));
    let begun = Instant::now();
    let second = forge.push();
    controller.until_applied("calm", &second);
    assert!(begun.elapsed() < late, "{:?}, and between two looks {late:?}", begun.elapsed());
    assert_eq!(count(&run(sim.inventory()), "created"), 1);
    assert_eq!(controller.stop(), 0);
}

#[test]
fn a_large_project_that_fails_for_ever_does_not_hold_up_a_small_one() {
    const LARGE: usize = 40;
    let mut forge = Forge::new();
    let sim = cloud(&mut forge, &["rate=30", "step_failure=1"]);
    let small = |name: &str| {
        format!(
            "version: 1\nname: {name}\ndefaults: {{ provider: sim }}\nsandboxes:\n  box: {{ env: {{ A: b }} }}\n"
        )
    };
    forge.write("alone/pocketenv.yaml", &small("alone"));
    let first = forge.push();
    let controller = forge.control(&forge.source("").replace("resync: 2s", "resync: 1h"));
    controller.until_applied("alone", &first);
    let alone = asked(&sim, None);

    // Each of its sandboxes has a step that fails, and is tried again and again.
    forge.write(
        "large/pocketenv.yaml",
        &format!(
            "version: 1\nname: large\ndefaults: {{ provider: sim }}\npresets:\n  bad: {{ steps: [{{ name: never, run: work }}] }}\nsandboxes:\n  box: {{ count: {LARGE}, presets: [bad] }}\n"
        ),
    );
    forge.push();
    controller.until("large", "it has failed", |project| project["phase"] == "Failed");
    assert_eq!(count(&run(sim.inventory()), "created"), LARGE + 1);
    let busy = asked(&sim, None);
    controller.until("large", "and goes on failing", |_| asked(&sim, None) > busy + 2 * LARGE as u64);

    forge.write("small/pocketenv.yaml", &small("small"));
    let second = forge.push();
    controller.until("small", "it is known", |project| !project.is_null());
    let before = asked(&sim, None);
    controller.until_applied("small", &second);
    let both = asked(&sim, None) - before;
    // Its calls took turns with those of the other one, of which many more were waiting.
    println!("{alone} calls alone, {both} while the other one failed");
    assert!(both < alone * 6, "{both} calls were made until it was done; alone it takes {alone}");
    assert_ne!(controller.project("large")["phase"], "Applied");
    assert_eq!(controller.stop(), 0);
}
