//! What holds for one project and not for the others, and what is served over other transports.

use std::time::{Duration, Instant};

use reqwest::Method;

use super::http::Server;
use super::support::{Forge, cloud, empty, run};

#[test]
fn settings_of_single_projects_are_laid_over_those_of_the_source() {
    let mut forge = Forge::new();
    let sim = cloud(&mut forge, &[]);
    let boxed = |name: &str| {
        format!("version: 1\nname: {name}\ndefaults: {{ provider: sim }}\nsandboxes:\n  box: {{}}\n")
    };
    for name in ["heal", "warn", "asleep", "waits", "closed"] {
        forge.write(&format!("{name}/pocketenv.yaml"), &boxed(name));
    }
    let first = forge.push();
    let overrides = "    overrides:
      - { paths: ['wa*'], drift: warn }
      - { paths: [asleep], suspend: true }
      - { paths: [waits], depends_on: [shop/asleep] }
      - { paths: [closed], windows: [{ deny: '00:00-24:00' }] }
";
    let controller = forge.control(&forge.source(overrides));
    controller.until_applied("heal", &first);
    controller.until_applied("warn", &first);
    for (path, phase, message) in [
        ("asleep", "Suspended", "suspended"),
        ("waits", "Waiting", "`shop/asleep` is not in sync"),
        ("closed", "Waiting", "no window"),
    ] {
        controller.until(path, "it is held back", |project| {
            project["phase"] == phase && project["message"].as_str().is_some_and(|m| m.contains(message))
        });
    }
    assert_eq!(run(sim.names()).len(), 2);

    // Somebody deletes both; one is made again, the other is shown.
    let inventory = run(sim.inventory());
    for sandbox in inventory["sandboxes"].as_array().unwrap() {
        let path = format!("/v1/sandboxes/{}", sandbox["id"].as_str().unwrap());
        let (status, answer) = run(sim.send(Method::DELETE, &path, None));
        assert!(status.is_success(), "{answer}");
    }
    let states = |project: &str| -> Vec<String> {
        let inventory = run(sim.inventory());
        let all = inventory["sandboxes"].as_array().unwrap().iter();
        all.filter(|s| s["labels"]["pocketenv.io/project"] == project)
            .map(|s| s["state"].as_str().unwrap().to_owned())
            .collect()
    };
    controller.until("warn", "the drift is shown", |project| {
        let message = project["message"].as_str().unwrap_or_default();
        project["sync"] == "OutOfSync" && message.contains("sandbox/box drifted")
    });
    controller.until("heal", "the drift is healed", |_| states("heal") == ["running"]);
    assert!(states("warn").is_empty());
    assert_eq!(controller.stop(), 0);

    // Awake, it is applied, and with it the one that waited for it.
    let controller = forge.control(&forge.source(&overrides.replace("suspend: true", "suspend: false")));
    controller.until_applied("asleep", &first);
    controller.until_applied("waits", &first);
    assert_eq!(controller.stop(), 0);
}

#[test]
fn data_is_lost_only_where_the_operator_says_that_it_may() {
    let mut forge = Forge::new();
    let sim = cloud(&mut forge, &[]);
    // Another image is another sandbox.
    let declare = |forge: &Forge, image: &str| {
        for name in ["kept", "given"] {
            let text = format!(
                "version: 1\nname: {name}\ndefaults: {{ provider: sim }}\nsandboxes:\n  box: {{ image: {image} }}\n"
            );
            forge.write(&format!("{name}/pocketenv.yaml"), &text);
        }
        forge.push()
    };
    let first = declare(&forge, "debian:12");
    let source = forge.source("    overrides: [{ paths: [given], allow_data_loss: true }]\n");
    let controller = forge.control(&source);
    let id = |project: &str| {
        let inventory = run(sim.inventory());
        let all = inventory["sandboxes"].as_array().unwrap().iter();
        let of: Vec<_> = all.filter(|s| s["labels"]["pocketenv.io/project"] == project).collect();
        assert!(of.len() <= 1, "{of:#?}");
        of.first().map(|s| s["id"].as_str().unwrap().to_owned())
    };
    for project in ["kept", "given"] {
        controller.until_applied(project, &first);
    }
    let (kept, given) = (id("kept"), id("given"));
    let second = declare(&forge, "debian:13");
    controller.until_applied("given", &second);
    let told = controller.until("kept", "it is told what might be lost", |project| {
        project["message"].as_str().is_some_and(|m| m.contains("allow_data_loss: true"))
    });
    assert!(told["sync"] == "OutOfSync" && told["phase"] != "Applied", "{told}");
    assert!(id("given").is_some() && id("given") != given, "it was made anew");
    assert_eq!(id("kept"), kept, "it is as it was");

    // The operator says so for all.
    assert_eq!(controller.stop(), 0);
    let controller = forge.control(&forge.source("    allow_data_loss: true\n"));
    controller.until_applied("kept", &second);
    assert!(id("kept").is_some() && id("kept") != kept);
    assert_eq!(controller.stop(), 0);
}

#[test]
fn a_run_that_takes_too_long_is_ended_told_and_taken_up_again() {
    let mut forge = Forge::new();
    // What is made stays on its way for longer than anybody waits.
    let sim = cloud(&mut forge, &["create.stuck=1", "create.stuck_for=1h"]);
    let boxed = |name: &str| {
        format!("version: 1\nname: {name}\ndefaults: {{ provider: sim }}\nsandboxes:\n  box: {{}}\n")
    };
    forge.write("slow/pocketenv.yaml", &boxed("slow"));
    forge.write("other/pocketenv.yaml", &empty("other"));
    let head = forge.push();
    let controller = forge.control(&forge.source("    timeout: 2s\n"));
    controller.until("slow", "its time is up", |project| {
        project["phase"] == "Failed"
            && project["message"].as_str().is_some_and(|m| m.contains("within the time allowed"))
    });
    controller.until_applied("other", &head);
    let made = run(sim.names());
    assert_eq!(made.len(), 1, "what was asked for is not forgotten: {made:?}");
    // The cloud comes to itself: the one that is stuck is given up, and another one made in its place.
    run(sim.set(serde_json::json!({ "create.stuck": "0", "create.stuck_for": "0s" })));
    let inventory = run(sim.inventory());
    let stuck = inventory["sandboxes"][0]["id"].as_str().unwrap();
    let (status, answer) = run(sim.send(Method::DELETE, &format!("/v1/sandboxes/{stuck}"), None));
    assert!(status.is_success(), "{answer}");
    controller.until_applied("slow", &head);
    assert_eq!(run(sim.names()).len(), 1);
    assert_eq!(controller.stop(), 0);
}

#[test]
fn a_source_that_does_not_heal_applies_once_and_then_only_watches() {
    let mut forge = Forge::new();
    let sim = cloud(&mut forge, &[]);
    let manifest = |more: &str| {
        format!("version: 1\nname: shop\ndefaults: {{ provider: sim }}\nsandboxes:\n  box: {{}}\n{more}")
    };
    forge.write("shop/pocketenv.yaml", &manifest(""));
    let first = forge.push();
    let source = forge.source("    self_heal: false\n").replace("resync: 2s", "resync: 1s");
    let controller = forge.control(&source);
    controller.until("shop", "it is applied, and watched from then on", |project| {
        project["phase"] == "Watching" && project["sync"] == "Synced" && project["revision"] == first.as_str()
    });
    let id = run(sim.inventory())["sandboxes"][0]["id"].as_str().unwrap().to_owned();
    let (status, answer) = run(sim.send(Method::DELETE, &format!("/v1/sandboxes/{id}"), None));
    assert!(status.is_success(), "{answer}");
    controller.until("shop", "the loss is told", |project| {
        project["phase"] == "Watching"
            && project["sync"] == "OutOfSync"
            && project["message"].as_str().is_some_and(|m| m.contains("does not heal"))
    });
    assert_eq!(run(sim.names()), Vec::<String>::new(), "and left");
    let counted = |health: &str| {
        let (_, text) = controller.http("GET", "/metrics", "", "").unwrap();
        let line = format!("pocketenv_sandboxes{{state=\"{health}\"}} ");
        text.lines().find_map(|l| l.strip_prefix(&line)?.parse::<u32>().ok()).unwrap_or(0)
    };
    assert_eq!((counted("Healthy"), counted("Missing")), (0, 1));

    // A new revision is no drift.
    forge.write("shop/pocketenv.yaml", &manifest("  other: {}\n"));
    forge.push();
    controller.until("shop", "what is pushed is applied", |project| {
        project["phase"] == "Watching" && project["sync"] == "Synced" && run(sim.names()).len() == 2
    });
    assert_eq!((counted("Healthy"), counted("Missing")), (2, 0));
    assert_eq!(controller.stop(), 0);
}

#[test]
fn a_sandbox_that_somebody_stopped_is_started_only_where_drift_is_healed() {
    let mut forge = Forge::new();
    let sim = cloud(&mut forge, &[]);
    for name in ["heal", "warn", "ignore"] {
        let text = format!(
            "version: 1\nname: {name}\ndefaults: {{ provider: sim, drift: {name} }}\nsandboxes:\n  box: {{}}\n"
        );
        forge.write(&format!("{name}/pocketenv.yaml"), &text);
    }
    let first = forge.push();
    let controller = forge.control(&forge.source("").replace("resync: 2s", "resync: 1s"));
    for name in ["heal", "warn", "ignore"] {
        controller.until_applied(name, &first);
    }
    let sandbox = |project: &str| {
        let inventory = run(sim.inventory());
        let mut all = inventory["sandboxes"].as_array().unwrap().iter();
        all.find(|s| s["labels"]["pocketenv.io/project"] == project).unwrap().clone()
    };
    let stop = |project: &str| {
        let path = format!("/v1/sandboxes/{}/stop", sandbox(project)["id"].as_str().unwrap());
        let (status, answer) = run(sim.send(Method::POST, &path, None));
        assert!(status.is_success(), "{answer}");
    };
    let started = sandbox("heal")["started_at"].clone();
    for name in ["warn", "ignore", "heal"] {
        stop(name);
    }
    controller.until("heal", "it is started again", |_| {
        let sandbox = sandbox("heal");
        sandbox["state"] == "running" && sandbox["started_at"] != started
    });
    controller.until("warn", "it is told", |project| {
        let message = project["message"].as_str().unwrap();
        project["sync"] == "OutOfSync"
            && message.contains("sandbox/box drifted")
            && message.contains("it was stopped")
    });
    controller
        .until("ignore", "how it fares is told all the same", |project| project["health"] == "Degraded");
    let compared = controller.metric("pocketenv_reconcile_duration_seconds_count");
    controller.until("warn", "all are compared again", |_| {
        controller.metric("pocketenv_reconcile_duration_seconds_count") >= compared + 9.0
    });
    assert!(!controller.project("ignore").to_string().contains("drifted"));
    assert_eq!(
        (&sandbox("warn")["state"], &sandbox("ignore")["state"]),
        (&"stopped".into(), &"stopped".into())
    );

    // Whoever asks for it gets it.
    for name in ["warn", "ignore"] {
        let manifest = forge.path("work").join(name).join("pocketenv.yaml").display().to_string();
        let output = forge.command(&["start", "-f", &manifest, "box"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        controller.until_applied(name, &first);
        assert_eq!(sandbox(name)["state"], "running");
    }
    assert_eq!(controller.stop(), 0);
}

#[test]
fn an_account_says_which_secrets_a_project_reads() {
    let mut forge = Forge::new();
    let sim = cloud(&mut forge, &[]);
    std::fs::create_dir(forge.path("keys")).unwrap();
    std::fs::write(forge.path("keys/web"), "key-of-the-web").unwrap();
    let file = forge.path("keys/web").display().to_string();
    let manifest = |name: &str| {
        format!(
            "version: 1\nname: {name}\ndefaults: {{ provider: sim }}\nsecrets:\n  A: {{ env: HOOK_SECRET }}\n  B: {{ file: '{file}' }}\nsandboxes:\n  box: {{ secrets: [A, B] }}\n"
        )
    };
    forge.write("web/pocketenv.yaml", &manifest("web"));
    forge.write("other/pocketenv.yaml", &manifest("other"));
    let first = forge.push();
    let accounts = "accounts: { web: { env: [HOOK_SECRET], files: [keys] }, none: {} }\n";
    let source = forge.source("    account: none\n    overrides: [{ paths: [web], account: web }]\n");
    let controller = forge.control_with(accounts, &source);
    controller.until_applied("web", &first);
    let refused = controller.until("other", "it is refused", |project| project["phase"] == "Invalid");
    let lines: Vec<u64> = refused["diagnostics"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d["labels"][0]["line"].as_u64().unwrap())
        .collect();
    assert_eq!(lines, [5, 6], "{refused}");
    let text = format!("{}{}", controller.status(), run(sim.inventory()));
    assert!(!text.contains("key-of-the-web") && !text.contains("hunter2"), "{text}");
    assert_eq!(controller.stop(), 0);
}

#[test]
fn a_directory_of_projects_is_followed_and_only_what_changed_is_worked_on() {
    let forge = Forge::new();
    forge.write("a/pocketenv.yaml", &empty("a"));
    forge.write("teams/b/pocketenv.yaml", &empty("b"));
    let source = format!(
        "  - name: here\n    directory: '{}'\n    projects: many\n    interval: 1s\n    resync: 1h\n",
        forge.path("work").display()
    );
    let controller = forge.control(&source);
    for path in ["a", "teams/b"] {
        controller.until(path, "it is applied", |project| project["phase"] == "Applied");
    }
    let before = controller.project("a")["reconciled_at"].clone();
    forge.write("teams/b/pocketenv.yaml", "version: 1\nname: b\nnonsense: 1\n");
    let bad = controller.until("teams/b", "it is told", |project| project["phase"] == "Invalid");
    assert!(bad["message"].as_str().unwrap().starts_with("teams/b/pocketenv.yaml:3:1: "), "{bad}");
    forge.write("teams/b/pocketenv.yaml", &empty("b"));
    controller.until("teams/b", "it is mended", |project| project["phase"] == "Applied");
    assert_eq!(controller.project("a")["reconciled_at"], before, "nobody looked at the other one");
    std::fs::remove_dir_all(forge.path("work/teams")).unwrap();
    controller.until("teams/b", "its end is told", |project| project["phase"] == "Removed");
    assert_eq!(controller.stop(), 0);
}

#[test]
fn smart_http_is_followed_with_the_credentials_that_git_knows() {
    let forge = Forge::new();
    let server = Server::git(&forge.path("srv"), Some("ada:open-sesame"));
    forge.write("a/pocketenv.yaml", &empty("a"));
    let first = forge.push();
    let source = forge.source("").replace(&forge.url(), &server.url("/repo.git"));
    let controller = forge.control(&source);
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let status = controller.status();
        let message = status["sources"][0]["message"].as_str().unwrap();
        if message.contains("failed") {
            assert!(message.contains("ls-remote"), "{message}");
            break;
        }
        assert!(Instant::now() < deadline, "{status}");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(controller.http("GET", "/readyz", "", "").unwrap().0, 200, "it was looked at, in vain");

    // The operator tells git, as for any other use of it.
    std::fs::write(forge.path(".git-credentials"), format!("http://ada:open-sesame@{}\n", server.address))
        .unwrap();
    std::fs::write(forge.path(".gitconfig"), "[credential]\n\thelper = store\n").unwrap();
    controller.until_applied("a", &first);
    forge.write("a/pocketenv.yaml", &format!("{}    env: {{ X: y }}\n", empty("a")));
    let second = forge.push();
    controller.until_applied("a", &second);
    forge.git(&["reset", "--quiet", "--hard", &first]);
    forge.git(&["commit", "--quiet", "--amend", "-m", "rewritten"]);
    forge.force_push();
    // The same files in another commit: there is nothing to do but to know it.
    controller.until("a", "the rewritten history is followed", |project| {
        project["sync"] == "Synced" && controller.status()["sources"][0]["revision"] != second.as_str()
    });
    assert!(!controller.status().to_string().contains("open-sesame"));
    let log = controller.stop_and_read();
    assert!(!log.contains("open-sesame"), "{log}");
}

#[test]
fn a_tag_a_commit_and_a_path_are_followed() {
    let forge = Forge::new();
    forge.write("deploy/x/pocketenv.yaml", &empty("x"));
    forge.write("pocketenv.yaml", &empty("top"));
    let first = forge.push();
    forge.git(&["tag", "-a", "v1", "-m", "one"]);
    let url = forge.path("srv/repo.git").display().to_string();
    forge.git(&["push", "--quiet", &url, "v1"]);
    forge.write("deploy/x/pocketenv.yaml", &format!("{}    env: {{ X: y }}\n", empty("x")));
    let second = forge.push();
    let one = |name: &str, what: &str| {
        format!(
            "  - name: {name}\n    git: {{ url: '{}', {what} }}\n    interval: 1s\n    resync: 1h\n",
            forge.url()
        )
    };
    let controller = forge.control(&one("tag", "tag: v1, path: deploy/x"));
    controller.until_applied("deploy/x", &first);
    assert_eq!(controller.stop(), 0);
    let controller = forge.control(&one("tag", &format!("commit: {second}, path: deploy/x/pocketenv.yaml")));
    controller.until_applied("deploy/x", &second);
    assert_eq!(controller.stop(), 0);
    let controller = forge.control(&one("top", "branch: main"));
    let top = controller.until_applied(".", &second);
    assert_eq!(top["project"], "top");
    assert_eq!(controller.stop(), 0);
}
