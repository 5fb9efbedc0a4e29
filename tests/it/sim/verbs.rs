//! Ownership and repair as verbs, seen at the cloud's own truth.

use std::path::Path;
use std::process::Command;

use super::world::{Sim, count};

/// A project at a cloud.
pub struct Shop<'a> {
    pub dir: &'a Path,
    pub sim: &'a Sim,
}

impl Shop<'_> {
    /// Declares these sandboxes.
    pub fn declare(&self, names: &[&str]) {
        let boxes: String = names.iter().map(|name| format!("  {name}: {{}}\n")).collect();
        let text = format!("version: 1\nname: shop\ndefaults: {{ provider: sim }}\nsandboxes:\n{boxes}");
        std::fs::write(self.dir.join("pocketenv.yaml"), text).unwrap();
    }

    /// Runs the program; its code, and what it printed.
    fn run(&self, arguments: &[&str]) -> (i32, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_pocketenv"))
            .args(arguments)
            .current_dir(self.dir)
            .env_clear()
            .env("POCKETENV_HOME", self.dir.join("home"))
            .env("POCKETENV_SIM_URL", &self.sim.url)
            .output()
            .unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap(), format!("{out}{err}"))
    }

    #[track_caller]
    pub fn succeeds(&self, arguments: &[&str]) -> String {
        let (code, said) = self.run(arguments);
        assert_eq!(code, 0, "{arguments:?}: {said}");
        said
    }

    /// The sandboxes that exist: address, and id.
    pub async fn found(&self) -> Vec<(String, String)> {
        let inventory = self.sim.inventory().await;
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let all = inventory["sandboxes"].as_array().unwrap().iter();
        let mut found: Vec<_> =
            all.map(|s| (text(&s["labels"]["pocketenv.io/resource"]), text(&s["id"]))).collect();
        found.sort();
        found
    }

    async fn addresses(&self) -> Vec<String> {
        self.found().await.into_iter().map(|(address, _)| address).collect()
    }

    async fn created(&self) -> usize {
        count(&self.sim.inventory().await, "created")
    }
}

#[tokio::test]
async fn a_rollback_is_a_plan_like_any_other_and_the_history_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &[]);
    let shop = Shop { dir: dir.path(), sim: &sim };
    shop.declare(&["a"]);
    shop.succeeds(&["apply", "--yes"]);
    shop.declare(&["a", "b"]);
    shop.succeeds(&["apply", "--yes"]);
    let (code, said) = shop.run(&["rollback", "1", "--yes"]);
    assert!(code == 8 && said.contains("--allow-data-loss"), "{code}: {said}");
    assert_eq!(shop.addresses().await, ["sandbox/a", "sandbox/b"]);
    shop.succeeds(&["rollback", "1", "--yes", "--allow-data-loss"]);
    assert_eq!(shop.addresses().await, ["sandbox/a"]);
    let history = shop.succeeds(&["history", "-o", "json"]);
    assert!(history.contains("rollback"), "{history}");
    // What is declared now is the other one again.
    shop.succeeds(&["apply", "--yes"]);
    assert_eq!(shop.addresses().await, ["sandbox/a", "sandbox/b"]);
}

#[tokio::test]
async fn a_manifest_that_declares_nothing_ends_nothing_unless_that_is_meant() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &[]);
    let shop = Shop { dir: dir.path(), sim: &sim };
    shop.declare(&["a", "b"]);
    shop.succeeds(&["apply", "--yes"]);
    let text = "version: 1\nname: shop\ndefaults: { provider: sim }\nsandboxes: {}\n";
    std::fs::write(dir.path().join("pocketenv.yaml"), text).unwrap();
    let (code, said) = shop.run(&["apply", "--yes", "--allow-data-loss"]);
    assert!(code == 8 && said.contains("--allow-empty"), "{code}: {said}");
    assert_eq!(shop.addresses().await, ["sandbox/a", "sandbox/b"]);
    shop.succeeds(&["apply", "--yes", "--allow-data-loss", "--allow-empty"]);
    assert_eq!(shop.addresses().await, [""; 0]);
}

#[tokio::test]
async fn what_is_protected_is_neither_deleted_nor_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &[]);
    let shop = Shop { dir: dir.path(), sim: &sim };
    let declare = |a: &str| {
        let text = format!(
            "version: 1\nname: shop\ndefaults: {{ provider: sim }}\nsandboxes:\n  a: {{ {a} }}\n  b: {{}}\n"
        );
        std::fs::write(dir.path().join("pocketenv.yaml"), text).unwrap();
    };
    declare("protect: true");
    shop.succeeds(&["apply", "--yes"]);
    let found = shop.found().await;

    // Another image needs another sandbox, and being absent none.
    for change in ["protect: true, image: docker.io/library/other:1", "protect: true, state: absent"] {
        declare(change);
        let (code, said) = shop.run(&["apply", "--yes", "--allow-data-loss"]);
        assert!(code != 0 && said.contains("protect"), "{change}: {code}: {said}");
        assert_eq!(shop.found().await, found, "{change}");
    }
    declare("protect: true");
    let (code, said) = shop.run(&["destroy", "--yes"]);
    assert!(code != 0 && said.contains("protect"), "{code}: {said}");
    assert_eq!(shop.addresses().await, ["sandbox/a"], "all that may go is gone");

    declare("protect: false");
    shop.succeeds(&["destroy", "--yes"]);
    assert_eq!(shop.addresses().await, [""; 0]);
}

#[tokio::test]
async fn a_plan_without_a_look_asks_nobody_and_the_history_says_who_did_what() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &[]);
    let shop = Shop { dir: dir.path(), sim: &sim };
    shop.declare(&["a"]);
    shop.succeeds(&["apply", "--yes"]);
    // Gone behind our back: a look sees it, a plan from the record does not.
    let id = shop.found().await.remove(0).1;
    let (status, _) = sim.send(reqwest::Method::DELETE, &format!("/v1/sandboxes/{id}"), None).await;
    assert!(status.is_success(), "{status}");
    sim.becomes(&id, "gone").await;
    let asked = sim.get("/requests").await;
    shop.succeeds(&["plan", "--refresh=false", "--detailed-exitcode"]);
    assert_eq!(sim.get("/requests").await, asked, "nobody was asked");
    assert_eq!(shop.run(&["plan", "--detailed-exitcode"]).0, 2);

    shop.declare(&["a", "b"]);
    shop.succeeds(&["apply", "--yes"]);
    let history: serde_json::Value =
        serde_json::from_str(&shop.succeeds(&["history", "-o", "json"])).unwrap();
    let runs = history["data"]["runs"].as_array().or(history["runs"].as_array()).unwrap();
    let numbers: Vec<u64> = runs.iter().map(|run| run["revision"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [2, 1], "{history}");
    assert!(runs.iter().all(|run| run["verb"] == "apply" && run["exit_code"] == 0), "{history}");
    assert!(runs.iter().all(|run| !run["actor"].as_str().unwrap().is_empty()), "{history}");
    assert_ne!(runs[0]["manifest_digest"], runs[1]["manifest_digest"], "{history}");
}

#[tokio::test]
async fn what_is_let_go_of_is_found_and_deleted_only_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &[]);
    let shop = Shop { dir: dir.path(), sim: &sim };
    let stray = sim.created("stray").await;
    shop.declare(&["a", "b"]);
    shop.succeeds(&["apply", "--yes"]);
    assert!(!shop.succeeds(&["gc"]).contains("sandbox/"), "all of it is accounted for");
    let found = shop.found().await;
    let id = |address: &str| found.iter().find(|(a, _)| a == address).unwrap().1.clone();
    shop.succeeds(&["state", "rm", "sandbox/b"]);
    shop.declare(&["a"]);
    let told = shop.succeeds(&["gc"]);
    assert!(told.contains(&id("sandbox/b")) && !told.contains(&id("sandbox/a")), "{told}");
    assert!(!told.contains(&stray), "what has no labels of ours is not ours: {told}");
    assert_eq!(shop.found().await, found, "nothing is changed unless asked");
    // Nothing is that old.
    shop.succeeds(&["gc", "--delete", "--yes", "--older-than", "1h"]);
    assert_eq!(shop.found().await, found);
    shop.succeeds(&["gc", "--delete", "--yes"]);
    assert_eq!(shop.addresses().await, ["", "sandbox/a"]);
}

#[tokio::test]
async fn what_is_renamed_or_imported_is_not_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &[]);
    let shop = Shop { dir: dir.path(), sim: &sim };
    shop.declare(&["a"]);
    shop.succeeds(&["apply", "--yes"]);
    let id = shop.found().await[0].1.clone();
    shop.succeeds(&["state", "mv", "a", "c"]);
    shop.declare(&["c"]);
    shop.succeeds(&["apply", "--yes"]);
    assert_eq!(shop.found().await, [("sandbox/c".to_owned(), id.clone())]);
    assert_eq!(shop.created().await, 1);

    // As if it were lost to its project, and taken over by another.
    shop.succeeds(&["state", "rm", "sandbox/c"]);
    let text = shop.succeeds(&["import", &id]);
    assert!(text.contains("provider: sim") && text.contains(&id), "{text}");
    shop.declare(&["d"]);
    shop.succeeds(&["import", &id, "--adopt", "--as", "d"]);
    shop.succeeds(&["apply", "--yes"]);
    assert_eq!(shop.found().await, [("sandbox/d".to_owned(), id)]);
    assert_eq!(shop.created().await, 1);
    let (code, said) = shop.run(&["plan", "--detailed-exitcode"]);
    assert_eq!(code, 0, "{said}");
}
