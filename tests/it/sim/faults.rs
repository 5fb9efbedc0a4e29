//! Each fault does what it says, seen at the inventory.

use std::time::{Duration, Instant};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::world::{Sim, count};

#[tokio::test]
async fn faults_before_the_effect_leave_no_effect_and_faults_after_it_leave_one() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &[]);
    let all = ["throttle", "error_before", "error_after", "cut_before", "cut_after"];
    for (fault, status, happens) in [
        ("throttle", Some(429), false),
        ("error_before", Some(503), false),
        ("cut_before", None, false),
        ("error_after", Some(500), true),
        ("cut_after", None, true),
    ] {
        for other in all {
            sim.set(json!({ format!("create.{other}"): if other == fault { "1" } else { "0" } })).await;
        }
        let answer = sim.create(fault, fault).await;
        match (&answer, status) {
            (Ok(response), Some(status)) => assert_eq!(response.status().as_u16(), status, "{fault}"),
            (Err(error), None) => assert!(!error.is_timeout(), "{fault}: {error:?}"),
            other => panic!("{fault}: {other:?}"),
        }
        assert_eq!(sim.names().await.contains(&fault.to_owned()), happens, "{fault}");
        // Other operations are not touched.
        sim.listed().await;
    }
}

#[tokio::test]
async fn a_429_says_when_to_come_back_in_each_form_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &["get.throttle=1"]);
    for (setting, check) in [
        ("none", (|value: Option<&str>| value.is_none()) as fn(Option<&str>) -> bool),
        ("seconds:1500ms", |value| value == Some("2")),
        ("date:1h", |value| value.is_some_and(|date| date.ends_with(" GMT"))),
    ] {
        sim.set(json!({ "retry_after": setting })).await;
        let response = sim.try_send(Method::GET, "/v1/sandboxes/x", &[], None).await.unwrap();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        let value = response.headers().get("retry-after").map(|v| v.to_str().unwrap());
        assert!(check(value), "{setting}: {value:?}");
    }
}

#[tokio::test]
async fn calls_above_a_rate_are_refused_by_operation_and_in_all() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &["create.rate=2", "create.retry_after=seconds:3s"]);
    let answers = futures::future::join_all((0..20).map(|n| {
        let name = format!("s{n}");
        let sim = &sim;
        async move { sim.create(&name, &name).await.unwrap() }
    }))
    .await;
    let refused = answers.iter().filter(|answer| answer.status() == StatusCode::TOO_MANY_REQUESTS).count();
    assert_eq!(20 - refused, sim.names().await.len());
    assert!(refused >= 5, "{refused}");
    assert_eq!(sim.get("/requests").await["create"], json!({ "calls": 20, "throttled": refused }));
    // Each operation has its own way to say when to come back, and its own rate.
    sim.listed().await;
    sim.set(json!({ "create.rate": "0", "rate": "1" })).await;
    let mut codes = Vec::new();
    for _ in 0..10 {
        let answer = sim.try_send(Method::GET, "/v1/sandboxes", &[], None).await.unwrap();
        assert_eq!(answer.headers().get("retry-after"), None);
        codes.push(answer.status());
    }
    assert!(codes.contains(&StatusCode::TOO_MANY_REQUESTS), "{codes:?}");
    wait_for(async || {
        sim.try_send(Method::GET, "/v1/sandboxes", &[], None).await.unwrap().status() == StatusCode::OK
    })
    .await;
}

#[tokio::test]
async fn each_operation_takes_its_own_time_and_may_be_stuck_alone() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(
        dir.path(),
        1,
        "calm",
        &["stop.transition=200ms", "delete.stuck=1", "delete.stuck_for=1h"],
    );
    let id = sim.created("a").await;
    assert_eq!(sim.state_of(&id).await, "running");
    let (_, answer) = sim.send(Method::POST, &format!("/v1/sandboxes/{id}/stop"), None).await;
    assert_eq!(answer["state"], "stopping");
    sim.becomes(&id, "stopped").await;
    sim.send(Method::DELETE, &format!("/v1/sandboxes/{id}"), None).await;
    assert_eq!(sim.state_of(&id).await, "deleting");
    assert_eq!(count(&sim.inventory().await, "deleted"), 0);
}

#[tokio::test]
async fn a_listing_that_does_not_filter_shows_everything() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &[]);
    sim.created("a").await;
    let listed = async || {
        let page = sim.get("/v1/sandboxes?label=app=other").await;
        page["items"].as_array().unwrap().len()
    };
    assert_eq!(listed().await, 0);
    sim.set(json!({ "label_filter": "false" })).await;
    assert_eq!(listed().await, 1);
}

#[tokio::test]
async fn a_key_makes_one_sandbox_of_two_creates_where_the_cloud_has_the_manners() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &[]);
    assert_eq!(sim.create("a", "k").await.unwrap().status(), StatusCode::CREATED);
    assert_eq!(sim.create("a", "k").await.unwrap().status(), StatusCode::OK);
    assert_eq!(sim.names().await, ["a"]);
    let other = json!({ "name": "a", "spec": { "image": "y" } });
    let reused =
        sim.try_send(Method::POST, "/v1/sandboxes", &[("idempotency-key", "k")], Some(other)).await.unwrap();
    assert_eq!(reused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    sim.set(json!({ "idempotent_create": "false" })).await;
    assert_eq!(sim.create("a", "k").await.unwrap().status(), StatusCode::CREATED);
    assert_eq!(sim.names().await, ["a", "a"]);
    // The history tells who asked.
    let inventory = sim.inventory().await;
    let by = &inventory["effects"][0]["by"];
    assert_eq!((by["idempotency_key"].as_str(), by["request_id"].as_str()), (Some("k"), Some("r-1")));
}

#[tokio::test]
async fn a_listing_lags_and_a_direct_question_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &["lag=1500ms"]);
    let made = Instant::now();
    let id = sim.created("a").await;
    assert!(sim.listed().await.is_empty());
    assert_eq!(sim.state_of(&id).await, "running");
    wait_for(async || sim.listed().await == ["a"]).await;
    assert!(made.elapsed() >= Duration::from_millis(1400));
    sim.send(Method::DELETE, &format!("/v1/sandboxes/{id}"), None).await;
    assert_eq!(sim.state_of(&id).await, "gone");
    assert_eq!(sim.listed().await, ["a"]);
    wait_for(async || sim.listed().await.is_empty()).await;
}

#[tokio::test]
async fn a_listing_can_lose_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &[]);
    sim.created("a").await;
    sim.set(json!({ "miss_page": "1" })).await;
    assert!(sim.listed().await.is_empty());
    assert_eq!(sim.names().await, ["a"]);
}

#[tokio::test]
async fn transitions_take_their_time_and_may_be_stuck() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &["transition=300ms", "stuck_for=2s"]);
    let id = sim.created("a").await;
    assert_eq!(sim.state_of(&id).await, "creating");
    sim.becomes(&id, "running").await;
    sim.set(json!({ "stuck": "1" })).await;
    let asked = Instant::now();
    let (_, answer) = sim.send(Method::POST, &format!("/v1/sandboxes/{id}/stop"), None).await;
    assert_eq!(answer["state"], "stopping");
    sim.becomes(&id, "stopped").await;
    assert!(asked.elapsed() >= Duration::from_millis(2200));
    // A conflict says that the state is in the way.
    sim.send(Method::POST, &format!("/v1/sandboxes/{id}/start"), None).await;
    let (status, _) = sim.send(Method::POST, &format!("/v1/sandboxes/{id}/stop"), None).await;
    assert_eq!(status, StatusCode::CONFLICT);
}

#[tokio::test]
async fn sandboxes_die_and_expire_silently() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &["death=1", "death_after=200ms"]);
    let id = sim.created("a").await;
    sim.becomes(&id, "stopped").await;
    let (_, dead) = sim.send(Method::GET, &format!("/v1/sandboxes/{id}"), None).await;
    assert_eq!(dead["reason"], "it died");
    sim.set(json!({ "stop": "destroy" })).await;
    let id = sim.created("b").await;
    sim.becomes(&id, "gone").await;
    sim.set(json!({ "death": "0", "ttl": "300ms" })).await;
    let id = sim.created("c").await;
    assert_eq!(sim.state_of(&id).await, "running");
    sim.becomes(&id, "gone").await;
    let inventory = sim.inventory().await;
    let last = inventory["effects"].as_array().unwrap().last().unwrap();
    assert_eq!(last["effect"]["deleted"]["reason"], "its lifetime was over");
    assert!(last.get("by").is_none(), "nobody asked for it");
}

#[tokio::test]
async fn deletes_are_refused_quotas_hold_and_clocks_differ() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &["refuse_delete=1", "quota=1", "clock_offset=-2h"]);
    let id = sim.created("a").await;
    let (status, _) = sim.send(Method::DELETE, &format!("/v1/sandboxes/{id}"), None).await;
    assert_eq!((status, sim.state_of(&id).await.as_str()), (StatusCode::CONFLICT, "running"));
    let refused = sim.create("b", "b").await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(refused.json::<Value>().await.unwrap()["error"]["code"], "quota_exceeded");
    let inventory = sim.inventory().await;
    let (told, true_time) =
        (inventory["sandboxes"][0]["created_at"].as_i64(), inventory["effects"][0]["at"].as_i64());
    assert_eq!(true_time.unwrap() - told.unwrap(), 2 * 3600 * 1000);
    sim.set(json!({ "refuse_delete": "0" })).await;
    let (status, _) = sim.send(Method::DELETE, &format!("/v1/sandboxes/{id}"), None).await;
    assert_eq!((status, sim.state_of(&id).await.as_str()), (StatusCode::ACCEPTED, "gone"));
}

#[tokio::test]
async fn a_cloud_without_labels_has_names_only() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &["labels=false", "read_back=false"]);
    assert_eq!(sim.create("a", "k").await.unwrap().status(), StatusCode::UNPROCESSABLE_ENTITY);
    let body = json!({ "name": "p~a", "spec": {} });
    let (status, made) = sim.send(Method::POST, "/v1/sandboxes", Some(body)).await;
    assert_eq!((status, made.get("spec"), made.get("labels")), (StatusCode::CREATED, None, None));
    assert_eq!(sim.get("/v1/sandboxes?prefix=p~").await["items"].as_array().unwrap().len(), 1);
    assert_eq!(sim.get("/v1/sandboxes?prefix=q~").await["items"].as_array().unwrap().len(), 0);
    let (status, _) = sim.send(Method::GET, "/v1/sandboxes?label=a=b", None).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn the_same_seed_goes_wrong_in_the_same_way() {
    let mut runs = Vec::new();
    for seed in [7, 7, 8] {
        let dir = tempfile::tempdir().unwrap();
        let sim = Sim::start(
            dir.path(),
            seed,
            "calm",
            &["create.error_before=0.3", "create.throttle=0.3", "create.cut_after=0.2"],
        );
        let mut answers = Vec::new();
        for n in 0..40 {
            let answer = sim.create(&format!("s{}", n % 5), &n.to_string()).await;
            answers.push(answer.map_or(0, |response| response.status().as_u16()));
        }
        runs.push(answers);
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
}

#[tokio::test]
async fn a_setting_that_cannot_be_is_refused_with_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &[]);
    let (status, answer) =
        sim.send(Method::PATCH, "/faults", Some(json!({ "quota": "3", "create.throtle": "1" }))).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(answer["error"]["message"].as_str().unwrap().contains("did you mean `throttle`"), "{answer}");
    assert_eq!(sim.get("/faults").await["quota"], "0");
    assert_eq!(count(&sim.inventory().await, "settings"), 0);
}

async fn wait_for(mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(Instant::now() < deadline, "it never happened");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
