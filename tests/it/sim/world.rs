//! One simulator in a process of its own, and a client that knows nothing of ours.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::scenarios::world::history;

/// A running simulator. It is killed when this is dropped.
pub struct Sim {
    child: Child,
    pub url: String,
    pub state: PathBuf,
    client: reqwest::Client,
}

impl Sim {
    /// Starts one on a fresh file in `dir`.
    pub fn start(dir: &Path, seed: u64, profile: &str, settings: &[&str]) -> Self {
        Self::on(dir.join("cloud.sim"), seed, profile, settings)
    }

    /// Starts one on a file.
    pub fn on(state: PathBuf, seed: u64, profile: &str, settings: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pocketenv"));
        command.args(["sim", "--quiet", "--until-stdin-ends", "--listen", "127.0.0.1:0", "--chaos", profile]);
        command.arg("--state").arg(&state).args(["--seed", &seed.to_string()]);
        for setting in settings {
            command.args(["--faults", setting]);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        assert!(url.starts_with("http://127.0.0.1:"), "the simulator did not come up: {url:?}");
        // The client of the library wants to know by whom it would speak TLS.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().unwrap();
        Self { child, url: url.trim().to_owned(), state, client }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL, and a new life on the same file.
    pub fn restart(mut self, seed: u64, profile: &str, settings: &[&str]) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        Self::on(self.state.clone(), seed, profile, settings)
    }

    pub async fn try_send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> reqwest::Result<Response> {
        let mut request = self.client.request(method, format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        request.send().await
    }

    pub async fn send(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let response = self.try_send(method, path, &[], body).await.unwrap();
        (response.status(), response.json().await.unwrap_or(Value::Null))
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, value) = self.send(Method::GET, path, None).await;
        assert_eq!(status, StatusCode::OK, "GET {path}: {value}");
        value
    }

    pub async fn create(&self, name: &str, key: &str) -> reqwest::Result<Response> {
        let body =
            json!({ "name": name, "labels": { "app": name }, "spec": { "image": "x" }, "ports": [80] });
        self.try_send(
            Method::POST,
            "/v1/sandboxes",
            &[("idempotency-key", key), ("x-request-id", "r-1")],
            Some(body),
        )
        .await
    }

    /// Creates a sandbox at a cloud that takes it; its id.
    pub async fn created(&self, name: &str) -> String {
        let response = self.create(name, name).await.unwrap();
        assert_eq!(response.status(), StatusCode::CREATED);
        response.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned()
    }

    pub async fn set(&self, settings: Value) {
        let (status, answer) = self.send(Method::PATCH, "/faults", Some(settings)).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
    }

    pub async fn inventory(&self) -> Value {
        self.get("/inventory").await
    }

    /// Names of what exists, in order.
    pub async fn names(&self) -> Vec<String> {
        let inventory = self.inventory().await;
        let mut names: Vec<String> = inventory["sandboxes"].as_array().unwrap().iter().map(name).collect();
        names.sort();
        names
    }

    pub async fn listed(&self) -> Vec<String> {
        self.get("/v1/sandboxes?limit=1000").await["items"].as_array().unwrap().iter().map(name).collect()
    }

    pub async fn state_of(&self, id: &str) -> String {
        let (status, sandbox) = self.send(Method::GET, &format!("/v1/sandboxes/{id}"), None).await;
        if status == StatusCode::NOT_FOUND {
            "gone".to_owned()
        } else {
            sandbox["state"].as_str().unwrap().to_owned()
        }
    }

    /// Waits until the sandbox is in a state.
    pub async fn becomes(&self, id: &str, wanted: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let state = self.state_of(id).await;
            if state == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "{id} is {state} and not {wanted}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !std::thread::panicking() {
            let dir = self.state.parent().unwrap();
            let checked = history::check(&dir.join("home"), &[dir], false);
            assert_eq!(checked, Ok(()), "what a store beside the cloud claims");
        }
    }
}

fn name(sandbox: &Value) -> String {
    sandbox["name"].as_str().unwrap().to_owned()
}

/// How often each kind of effect stands in an inventory.
pub fn count(inventory: &Value, kind: &str) -> usize {
    inventory["effects"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["effect"].get(kind).is_some())
        .count()
}
