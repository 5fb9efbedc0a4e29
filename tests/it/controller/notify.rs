//! Others are told how projects fare: once, signed, sooner or later, and without anybody waiting for them.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use hmac::{Hmac, Mac as _};

use super::http::{Answer, Server};
use super::support::{Forge, empty};
use crate::http::tls;

/// Answers with a status that the test can change.
fn receiver(code: &Arc<AtomicU16>) -> Server {
    let code = code.clone();
    Server::start(move |_| Answer::Status(code.load(Ordering::SeqCst), b"{}".to_vec()))
}

fn told(server: &Server) -> Vec<(String, String)> {
    let all = server.requests();
    all.iter()
        .map(|r| {
            (r.json()["path"].as_str().unwrap().to_owned(), r.json()["state"].as_str().unwrap().to_owned())
        })
        .collect()
}

#[test]
fn a_webhook_is_told_once_of_each_state_and_its_body_is_signed() {
    let forge = Forge::new();
    let good = Arc::new(AtomicU16::new(204));
    let chat = receiver(&good);
    forge.write("a/pocketenv.yaml", &empty("a"));
    let first = forge.push();
    let source = forge.source(&format!(
        "    prune_projects: true\n    notify: [{{ name: chat, webhook: {{ url: '{}', secret: {{ env: HOOK_SECRET }} }} }}]\n",
        chat.url("/hook/?room=7")
    ));
    let controller = forge.control(&source.replace("resync: 2s", "resync: 1s"));
    let requests = chat.until("it is told", |requests| !requests.is_empty());
    let news = requests[0].json();
    assert_eq!((requests[0].path.as_str(), requests[0].query.as_str()), ("/hook/", "room=7"));
    assert_eq!(
        (news["state"].as_str(), news["revision"].as_str()),
        (Some("Applied"), Some(first.as_str())),
        "{news}"
    );
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(b"hunter2").unwrap();
    mac.update(&requests[0].body);
    let signature = format!("sha256={}", hex::encode(mac.finalize().into_bytes()));
    assert_eq!(requests[0].header("x-pocketenv-signature-256"), signature);
    assert_eq!(requests[0].header("x-pocketenv-event"), "Applied");

    forge.write("a/pocketenv.yaml", "version: 1\nname: a\nsandboxes:\n  box:\n    imgae: host\n");
    let bad = forge.push();
    let requests = chat.until("the bad revision is told", |requests| requests.len() > 1);
    let news = requests[1].json();
    assert_eq!(
        (news["state"].as_str(), news["revision"].as_str()),
        (Some("Invalid"), Some(bad.as_str())),
        "{news}"
    );
    assert_eq!(news["diagnostics"][0]["labels"][0]["line"], 5);
    assert!(news["message"].as_str().unwrap().starts_with("a/pocketenv.yaml:5:5: "), "{news}");
    assert_ne!(requests[0].header("x-pocketenv-delivery"), requests[1].header("x-pocketenv-delivery"));

    // It is compared again and again, and there is no more to tell.
    let before = controller.metric("pocketenv_reconcile_duration_seconds_count");
    controller.until("a", "it is compared again", |_| {
        controller.metric("pocketenv_reconcile_duration_seconds_count") >= before + 3.0
    });
    assert_eq!(chat.requests().len(), 2);

    forge.git(&["rm", "--quiet", "-r", "a"]);
    forge.write("b/pocketenv.yaml", &empty("b"));
    forge.push();
    chat.until("the removal is told", |_| {
        told(&chat).contains(&("a".to_owned(), "Removed".to_owned()))
            && told(&chat).contains(&("b".to_owned(), "Applied".to_owned()))
    });
    controller.until("a", "it is gone", serde_json::Value::is_null);
    assert_eq!(controller.stop(), 0);
    assert_eq!(chat.requests().len(), 4, "{:?}", told(&chat));
}

#[test]
fn what_was_not_delivered_is_told_after_a_restart_and_only_once() {
    let forge = Forge::new();
    let code = Arc::new(AtomicU16::new(503));
    let chat = receiver(&code);
    forge.write("a/pocketenv.yaml", &empty("a"));
    let first = forge.push();
    let source = forge.source(&format!(
        "    notify: [{{ name: chat, webhook: {{ url: '{}' }}, states: [Applied, Invalid] }}]\n",
        chat.url("/hook")
    ));
    let controller = forge.control(&source);
    controller.until_applied("a", &first);
    chat.until("it is tried again", |requests| requests.len() >= 2);
    let status = controller.status();
    let message = status["sources"][0]["notify"][0]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("503"), "{status}");
    controller.kill();

    code.store(200, Ordering::SeqCst);
    let before = chat.requests().len();
    let controller = forge.control(&source);
    chat.until("it is told at last", |requests| requests.len() > before);
    controller.until("a", "the failure is over", |_| {
        controller.status()["sources"][0]["notify"][0]["message"] == ""
    });
    // Counted once it is written down; a kill in between would make it be told again.
    controller.until("a", "it is written down", |_| {
        let (_, metrics) = controller.http("GET", "/metrics", "", "").unwrap();
        metrics.contains("pocketenv_notifications_total{kind=\"delivered\"}")
    });
    controller.kill();

    // And it knows that it was told.
    let controller = forge.control(&source);
    forge.write("b/pocketenv.yaml", &empty("b"));
    let second = forge.push();
    controller.until_applied("b", &second);
    chat.until("the other one is told", |_| told(&chat).iter().any(|(path, _)| path == "b"));
    assert_eq!(told(&chat).iter().skip(before).filter(|(path, _)| path == "a").count(), 1);
    assert_eq!(controller.stop(), 0);
}

#[test]
fn commits_get_their_status_as_each_forge_wants_it() {
    let forge = Forge::new();
    // The token of the file is renewed later; until then it is refused, with the token in the answer as a rude server might.
    let api = Server::start(|request| {
        let old = request.headers.iter().any(|(_, value)| value.contains("old-token-1234"));
        if old {
            return Answer::Status(401, br#"{"message":"old-token-1234 is not a token"}"#.to_vec());
        }
        if request.path.starts_with("/gitlab") && request.json()["state"] == "pending" {
            let said = r#"{"message":"Cannot transition status via :enqueue from :pending (Reason(s): x)"}"#;
            return Answer::Status(400, said.as_bytes().to_vec());
        }
        Answer::Status(201, b"{}".to_vec())
    });
    std::fs::write(forge.path("token"), "old-token-1234\n").unwrap();
    forge.write("a/pocketenv.yaml", &empty("a"));
    forge.write("slow/pocketenv.yaml", &empty("slow"));
    let first = forge.push();
    let notify = format!(
        "    overrides: [{{ paths: [slow], suspend: true }}]
    notify:
      - {{ name: hub, commit_status: {{ forge: github, api: '{0}', repository: acme/shop, token: {{ env: HOOK_SECRET }} }} }}
      - {{ name: lab, commit_status: {{ forge: gitlab, api: '{1}', repository: acme/sub/shop, token: {{ env: HOOK_SECRET }} }} }}
      - {{ name: tea, commit_status: {{ forge: forgejo, api: '{2}', repository: acme/shop, token: {{ file: token }}, context: ci }} }}
",
        api.url("/github"),
        api.url("/gitlab/api/v4"),
        api.url("/gitea/api/v1/"),
    );
    let controller = forge.control(&forge.source(&notify));
    let good = |path: &str, context: &'static str, state: &'static str| {
        let path = path.replace("SHA", &first);
        move |request: &&super::http::Request| {
            request.path == path
                && (request.json()["context"] == context || request.json()["name"] == context)
                && request.json()["state"] == state
        }
    };
    let requests = api.until("all forges are told", |requests| {
        let one = |path: &str, context, state| requests.iter().any(|r| good(path, context, state)(&r));
        one("/github/repos/acme/shop/statuses/SHA", "pocketenv/shop/a", "success")
            && one("/github/repos/acme/shop/statuses/SHA", "pocketenv/shop/slow", "pending")
            && one("/gitlab/api/v4/projects/acme%2Fsub%2Fshop/statuses/SHA", "pocketenv/shop/a", "success")
            && one("/gitlab/api/v4/projects/acme%2Fsub%2Fshop/statuses/SHA", "pocketenv/shop/slow", "pending")
            && one("/gitea/api/v1/repos/acme/shop/statuses/SHA", "ci/shop/a", "success")
    });
    let by = |prefix: &str| requests.iter().find(|r| r.path.starts_with(prefix)).unwrap();
    assert_eq!(by("/github").header("authorization"), "Bearer hunter2");
    assert_eq!(by("/github").header("accept"), "application/vnd.github+json");
    assert_eq!(by("/gitlab").header("private-token"), "hunter2");
    assert_eq!(by("/gitea").header("authorization"), "token old-token-1234");

    let status = controller.until("a", "the refusal is told", |_| {
        controller.status()["sources"][0]["notify"][2]["message"].as_str().is_some_and(|m| m.contains("401"))
    });
    assert_eq!(status["phase"], "Applied");
    assert!(!controller.status().to_string().contains("old-token-1234"));
    std::fs::write(forge.path("token"), "new-token-5678\n").unwrap();
    api.until("the new token is used", |requests| {
        requests.iter().any(|r| r.header("authorization") == "token new-token-5678")
    });

    // What GitLab knows already is told, and not told again and again.
    controller.until("a", "the others are told", |_| {
        let status = controller.status();
        (0..3).all(|n| status["sources"][0]["notify"][n]["message"] == "")
    });
    forge.write("a/pocketenv.yaml", "version: 1\nname: a\nnonsense: 1\n");
    let bad = forge.push();
    api.until("the failure is told", |requests| {
        let of = |prefix: &str, state: &str| {
            requests
                .iter()
                .any(|r| r.path.starts_with(prefix) && r.path.ends_with(&bad) && r.json()["state"] == state)
        };
        of("/github", "failure") && of("/gitlab", "failed") && of("/gitea", "failure")
    });
    let pending = api
        .requests()
        .iter()
        .filter(|r| r.path.starts_with("/gitlab") && r.json()["state"] == "pending")
        .count();
    assert_eq!(pending, 1);
    let log = controller.stop_and_read();
    assert!(!log.contains("hunter2") && !log.contains("token-"), "{log}");
}

#[test]
fn a_receiver_that_never_answers_holds_up_nobody() {
    let forge = Forge::new();
    let (deaf, good) = (Server::start(|_| Answer::Never), Arc::new(AtomicU16::new(200)));
    let chat = receiver(&good);
    for n in 0..20 {
        forge.write(&format!("p{n}/pocketenv.yaml"), &empty(&format!("p{n}")));
    }
    let first = forge.push();
    let source =
        forge.source(&format!("    notify: [{{ name: deaf, webhook: {{ url: '{}' }} }}]\n", deaf.url("/")));
    let other = source
        .replace("name: shop", "name: other")
        .replace("deaf", "chat")
        .replace(&deaf.url("/"), &chat.url("/"));
    let controller = forge.control(&source);
    for n in 0..20 {
        controller.until_applied(&format!("p{n}"), &first);
    }
    deaf.until("it was asked", |requests| !requests.is_empty());
    assert_eq!(controller.http("GET", "/healthz", "", "").unwrap().0, 200);
    controller.kill();
    // Another source with the same projects is refused them, and its receiver is told of that while the deaf one is silent.
    let controller = forge.control(&format!("{source}{other}"));
    chat.until("the other receiver is told", |requests| requests.len() >= 20);
    drop(controller);
}

#[test]
fn a_receiver_over_https_is_told_once_it_is_up_and_trusted() {
    let mut forge = Forge::new();
    let trusted = forge.path("trusted.pem");
    std::fs::copy(tls("other-ca.pem"), &trusted).unwrap();
    forge.vars.push(("SSL_CERT_FILE".to_owned(), trusted.display().to_string()));
    forge.write("a/pocketenv.yaml", &empty("a"));
    let first = forge.push();
    // Kept for the server that comes later.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let controller = forge.control(&forge.source(&format!(
        "    notify: [{{ name: chat, webhook: {{ url: 'https://localhost:{}/hook' }} }}]\n",
        address.port()
    )));
    let says = |what: &str| {
        controller.until("a", what, |_| {
            let status = controller.status();
            let message = status["sources"][0]["notify"][0]["message"].as_str().unwrap();
            message.contains(what)
        })
    };
    controller.until_applied("a", &first);
    says("Connection refused");
    let chat = Server::start_tls(TcpListener::bind(address).unwrap(), |_| Answer::Status(204, Vec::new()));
    says("invalid peer certificate");
    assert!(chat.requests().is_empty(), "somebody who is not trusted was told");

    std::fs::copy(tls("ca.pem"), &trusted).unwrap();
    let requests = chat.until("it is told", |requests| !requests.is_empty());
    assert_eq!(told(&chat), [("a".to_owned(), "Applied".to_owned())]);
    assert_eq!(requests[0].json()["revision"], first.as_str());
    controller.until("a", "the failure is over", |_| {
        controller.status()["sources"][0]["notify"][0]["message"] == ""
    });
    assert_eq!(controller.stop(), 0);
}
