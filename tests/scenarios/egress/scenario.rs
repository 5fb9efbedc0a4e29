//! An agent reaches what its manifest allows and nothing else; what it tried is told, with the rule to add; the rules change while it runs.

use serde_json::Value;

use crate::scenarios::world::{World, eventually};

/// Asks for a URL and gives what the proxy or the far end answered.
fn get(world: &World, sandbox: &str, url: &str) -> String {
    world.sh(sandbox, &format!("curl -s -m 3 {url} || true"))
}

fn attempts(world: &World, sandbox: &str) -> Vec<(String, u64, bool)> {
    let list = world.run(&["egress", sandbox, "-o", "json"]).ends(0).json()["attempts"].clone();
    let attempt =
        |a: &Value| Some((a["host"].as_str()?.to_owned(), a["port"].as_u64()?, a["allowed"].as_bool()?));
    list.as_array().unwrap().iter().map(|a| attempt(a).unwrap()).collect()
}

#[test]
fn egress() {
    let world = World::scenario("egress");
    world.apply();
    let before = world.process("agent", "sleep 400003");

    let refusal = get(&world, "agent", "http://elsewhere.example.invalid/");
    assert!(refusal.contains("elsewhere.example.invalid") && refusal.contains("network.allow"), "{refusal}");
    assert!(get(&world, "agent", "http://192.0.2.7:8080/").contains("network.allow"));
    // The allowed name is looked for, and is not there.
    assert!(
        !world
            .sh("agent", "curl -s -m 3 -p https://api.example.invalid/ -w '%{http_connect}' || true")
            .contains("403")
    );
    get(&world, "open", "http://somewhere.example.invalid:8080/");

    eventually("what was tried is told", || {
        let tried = attempts(&world, "agent");
        let wanted = [
            ("192.0.2.7", 8080, false),
            ("api.example.invalid", 443, true),
            ("elsewhere.example.invalid", 80, false),
        ];
        wanted.iter().all(|(host, port, allowed)| tried.contains(&((*host).to_owned(), *port, *allowed)))
    });
    let told = world.run(&["egress", "agent", "--denied"]).ends(0);
    assert!(told.stderr.contains("\"elsewhere.example.invalid:80\""), "{told:?}");
    assert!(!told.stdout.contains("api.example"), "{told:?}");

    // A sandbox without rules shows which rules it would need.
    let proposal = "network:\n  egress: deny\n  allow:\n    - \"somewhere.example.invalid:8080\"\n";
    eventually("it is proposed", || world.run(&["egress", "open", "--propose"]).ends(0).stdout == proposal);

    // Other rules, without a restart.
    world.edit(
        "pocketenv.yaml",
        "\"api.example.invalid:443\"",
        "\"*.example.invalid\", \"192.0.2.0/24:8080\"",
    );
    world.apply();
    world.assert_converged();
    assert_eq!(world.process("agent", "sleep 400003"), before, "the agent's service goes on");
    assert!(!get(&world, "agent", "http://elsewhere.example.invalid/").contains("network.allow"));
    assert!(get(&world, "agent", "http://192.0.2.7:9090/").contains("network.allow"), "another port");
    assert!(get(&world, "agent", "http://example.invalid/").contains("network.allow"), "not below itself");

    let verified = world.run(&["doctor", "--isolation", "agent", "-o", "json"]).ends(0).json();
    assert_eq!(verified["condition"]["status"], "True", "{verified:#}");
    let rules = verified["checks"].as_array().unwrap().iter().find(|check| check["name"] == "egress-rules");
    assert_eq!(rules.unwrap()["verdict"], "held");

    world.destroy_and_see_nothing_left(&[]);
}
