//! What is pushed becomes so; what cannot be used does not; what is gone is told.

use std::time::{Duration, Instant};

use super::support::{Forge, cloud, empty, run};
use crate::sim::world::count;

#[test]
fn a_push_converges_and_a_bad_one_keeps_the_last_good_and_tells_the_line() {
    let forge = Forge::new();
    forge.write("a/pocketenv.yaml", &empty("a"));
    forge.write("b/pocketenv.yaml", &empty("b"));
    let first = forge.push();
    let controller = forge.control(&forge.source(""));
    controller.until_applied("a", &first);
    controller.until_applied("b", &first);

    // A change touches only the project whose files changed.
    forge.write("a/pocketenv.yaml", &format!("{}    env: {{ X: y }}\n", empty("a")));
    let second = forge.push();
    controller.until_applied("a", &second);
    assert_eq!(controller.project("b")["revision"], first.as_str());

    forge.write("a/pocketenv.yaml", "version: 1\nname: a\nsandboxes:\n  box:\n    imgae: host\n");
    forge.push();
    let bad = controller.until("a", "the bad revision is told", |project| project["phase"] == "Invalid");
    assert_eq!(bad["revision"], second.as_str(), "the last good one stays");
    assert_eq!(bad["sync"], "OutOfSync");
    let place = &bad["diagnostics"][0]["labels"][0];
    assert_eq!((place["line"].as_u64(), place["column"].as_u64()), (Some(5), Some(5)), "{bad}");
    assert!(bad["message"].as_str().unwrap().starts_with("a/pocketenv.yaml:5:5: "), "{bad}");

    // History is rewritten: the ref is followed wherever it goes.
    forge.git(&["reset", "--quiet", "--hard", &first]);
    forge.write("a/pocketenv.yaml", &format!("{}    env: {{ X: z }}\n", empty("a")));
    let rewritten = forge.push();
    let mended = controller.until_applied("a", &rewritten);
    assert_eq!(mended["diagnostics"].as_array().unwrap().len(), 0);
    assert_eq!(controller.stop(), 0);
}

#[test]
fn what_is_deleted_stays_until_the_source_says_otherwise() {
    let forge = Forge::new();
    forge.write("a/pocketenv.yaml", &empty("a"));
    forge.write("b/pocketenv.yaml", &empty("b"));
    let first = forge.push();
    let controller = forge.control(&forge.source(""));
    controller.until_applied("b", &first);
    controller.until_applied("a", &first);

    forge.git(&["rm", "--quiet", "-r", "b"]);
    forge.push();
    let removed = controller.until("b", "the removal is told", |project| project["phase"] == "Removed");
    assert!(removed["message"].as_str().unwrap().contains("prune_projects"), "{removed}");

    let repository = forge.path("srv/repo.git");
    super::support::git(&repository, &["update-ref", "-d", "refs/heads/main"]);
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let status = controller.status();
        let message = status["sources"][0]["message"].as_str().unwrap().to_owned();
        if message.contains("no branch `main`") {
            break;
        }
        assert!(Instant::now() < deadline, "{status}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let kept = controller.project("a");
    assert_eq!((kept["phase"].as_str(), kept["revision"].as_str()), (Some("Applied"), Some(first.as_str())));
    controller.stop();

    // With the policy it goes, and with it its record.
    forge.force_push();
    let controller = forge.control(&forge.source("    prune_projects: true\n"));
    controller.until("b", "the project is gone", serde_json::Value::is_null);
    controller.until("a", "the other one stays", |project| project["phase"] == "Applied");
}

#[test]
fn a_webhook_triggers_at_once_and_only_if_signed() {
    let forge = Forge::new();
    forge.write("a/pocketenv.yaml", &empty("a"));
    let first = forge.push();
    // It would not look again by itself while this test runs.
    let slow = forge
        .source("    webhook: { secret: { env: HOOK_SECRET } }\n")
        .replace("interval: 1s", "interval: 1h");
    let controller = forge.control(&slow);
    controller.until_applied("a", &first);
    assert_eq!(controller.http("GET", "/healthz", "", "").unwrap().0, 200);
    assert_eq!(controller.http("GET", "/readyz", "", "").unwrap().0, 200);

    forge.write("a/pocketenv.yaml", &format!("{}    env: {{ X: y }}\n", empty("a")));
    let second = forge.push();
    for (path, token) in [("/hooks/shop", "wrong"), ("/hooks/other", "hunter2")] {
        let (code, _) = controller.http("POST", path, &format!("x-gitlab-token: {token}\r\n"), "{}").unwrap();
        assert_eq!(code, 401);
    }
    assert_eq!(controller.metric("pocketenv_source_polls_total") as u64, 1);
    assert_eq!(controller.http("POST", "/hooks/shop", "x-gitlab-token: hunter2\r\n", "{}").unwrap().0, 202);
    controller.until_applied("a", &second);

    // GitHub and Gitea sign the body: what is signed is what has to come.
    let body = r#"{"ref":"refs/heads/main"}"#;
    let signature = {
        use hmac::Mac as _;
        let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(b"hunter2").unwrap();
        mac.update(body.as_bytes());
        hex::encode(mac.finalize().into_bytes())
    };
    let mut newest = second;
    for header in
        [format!("x-hub-signature-256: sha256={signature}"), format!("x-gitea-signature: {signature}")]
    {
        let more = format!("{}    env: {{ X: '{}' }}\n", empty("a"), &header[..8]);
        forge.write("a/pocketenv.yaml", &more);
        newest = forge.push();
        let hook = |body| controller.http("POST", "/hooks/shop", &format!("{header}\r\n"), body).unwrap().0;
        assert_eq!((hook("{}"), hook(body)), (401, 202), "{header}");
        controller.until_applied("a", &newest);
    }

    let output = forge
        .command(&["controller", "status", "--address", &controller.address().to_string()])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("Applied") && text.contains(&newest[..12]), "{text}");
}

#[test]
fn it_is_alive_and_not_ready_before_every_source_was_looked_at_and_counts_what_fails() {
    let forge = Forge::new();
    forge.write("a/pocketenv.yaml", "version: 1\nname: a\nsandboxes: [\n");
    forge.push();
    // Somebody takes the connection and says nothing.
    let silent = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = silent.local_addr().unwrap().port();
    let second = forge
        .source("")
        .replace("name: shop", "name: silent")
        .replace(&forge.url(), &format!("git://127.0.0.1:{port}/repo.git"));
    let controller = forge.control(&(forge.source("") + &second));
    controller.until("a", "the manifest is broken", |project| project["phase"] == "Invalid");
    let (_, text) = controller.http("GET", "/metrics", "", "").unwrap();
    let counted =
        text.lines().find_map(|line| line.strip_prefix("pocketenv_errors_total{kind=\"manifest\"} "));
    assert!(counted.is_some_and(|n| n.parse::<u32>().unwrap() > 0), "{text}");
    let state = |path| controller.http("GET", path, "", "").unwrap().0;
    assert_eq!((state("/healthz"), state("/readyz")), (200, 503));
    drop(silent);
    controller.until("a", "the other source was looked at, in vain", |_| state("/readyz") == 200);
    assert_eq!(controller.stop(), 0);
}

#[test]
fn a_killed_controller_resumes_and_two_take_turns() {
    let forge = Forge::new();
    forge.write("a/pocketenv.yaml", &empty("a"));
    let first = forge.push();
    let controller = forge.control(&forge.source(""));
    controller.until_applied("a", &first);
    controller.kill();

    // The newest revision is bad and the one before is known only to the record: it is still kept.
    forge.write("a/pocketenv.yaml", "version: 1\nname: a\nnonsense: 1\n");
    forge.push();
    let one = forge.control(&forge.source(""));
    let bad = one.until("a", "the bad revision is told", |project| project["phase"] == "Invalid");
    assert_eq!(bad["revision"], first.as_str());

    let two = forge.control(&forge.source(""));
    forge.write("a/pocketenv.yaml", &format!("{}    env: {{ X: y }}\n", empty("a")));
    let good = forge.push();
    one.until_applied("a", &good);
    two.until_applied("a", &good);
    assert_eq!((one.stop(), two.stop()), (0, 0));
}

#[test]
fn a_new_revision_is_not_called_in_sync_before_it_is() {
    let mut forge = Forge::new();
    let sim = cloud(&mut forge, &["create.latency=2s"]);
    let manifest =
        |boxes: &str| format!("version: 1\nname: a\ndefaults: {{ provider: sim }}\nsandboxes:\n{boxes}");
    forge.write("a/pocketenv.yaml", &manifest("  one: {}\n"));
    let first = forge.push();
    let controller = forge.control(&forge.source(""));
    controller.until_applied("a", &first);
    forge.write("a/pocketenv.yaml", &manifest("  one: {}\n  two: {}\n"));
    let second = forge.push();
    let project = controller.until("a", "the new revision is taken", |project| project["revision"] == second);
    let made = count(&run(sim.inventory()), "created");
    assert!(made == 2 || project["sync"] == "OutOfSync", "{made} of 2 are there: {project}");
    controller.until_applied("a", &second);
    assert_eq!(count(&run(sim.inventory()), "created"), 2);
}
