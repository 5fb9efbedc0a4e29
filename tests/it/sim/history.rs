//! The checker of histories finds what it is for: each lie, put into a copy of a true history.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::verbs::Shop;
use super::world::Sim;
use crate::scenarios::world::history;

/// A copy of what a home and a cloud have written, and what the checker says of it after a lie.
fn found(of: &Path, settled: bool, lie: impl FnOnce(&Connection, &Path)) -> Result<(), String> {
    let copy = tempfile::tempdir().unwrap();
    let path = |name: &str| copy.path().join(name);
    fs::create_dir_all(path("home/state")).unwrap();
    let store: PathBuf = path("home/state/state.db");
    let from = Connection::open(of.join("home/state/state.db")).unwrap();
    from.execute("VACUUM INTO ?1", [store.to_str().unwrap()]).unwrap();
    fs::copy(of.join("cloud.sim"), path("cloud.sim")).unwrap();
    lie(&Connection::open(store).unwrap(), &path("cloud.sim"));
    history::check(&path("home"), &[copy.path()], settled)
}

fn sql(statement: &'static str) -> impl FnOnce(&Connection, &Path) {
    move |store, _| assert_ne!(store.execute(statement, []).unwrap(), 0, "{statement}")
}

/// Every line of the cloud's file that has these words, once more, changed.
fn again(words: &'static [&'static str], change: fn(&str) -> String) -> impl FnOnce(&Connection, &Path) {
    move |_, cloud| {
        let text = fs::read_to_string(cloud).unwrap();
        let mut file = OpenOptions::new().append(true).open(cloud).unwrap();
        let lines: Vec<_> =
            text.lines().filter(|line| words.iter().all(|word| line.contains(word))).collect();
        assert_ne!(lines.len(), 0, "{words:?} in {text}");
        for line in lines {
            writeln!(file, "{}", change(line)).unwrap();
        }
    }
}

#[tokio::test]
async fn every_lie_is_found_and_the_truth_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let sim = Sim::start(dir.path(), 1, "calm", &[]);
    let shop = Shop { dir: dir.path(), sim: &sim };
    shop.declare(&["a", "b"]);
    shop.succeeds(&["apply", "--yes"]);
    shop.declare(&["a"]);
    shop.succeeds(&["apply", "--yes", "--allow-data-loss"]);
    let a = &shop.found().await[0].1;

    assert_eq!(found(dir.path(), false, |_, _| ()), Ok(()));
    let another = |line: &str| line.replace("\"id\":\"", "\"id\":\"x");
    type Lie = Box<dyn FnOnce(&Connection, &Path)>;
    let lies: [(&str, Lie); 9] = [
        ("knows nothing of it", Box::new(sql("DELETE FROM sandboxes WHERE name = 'a'"))),
        ("never was", Box::new(sql("UPDATE sandboxes SET id = 'sim-0' WHERE name = 'a'"))),
        ("without a word", Box::new(sql("DELETE FROM intents WHERE operation = 'create'"))),
        ("was made by", Box::new(sql("UPDATE intents SET address = 'sandbox/z' WHERE address = 'sandbox/a'"))),
        (
            "as failed, and it was made",
            Box::new(sql(
                "UPDATE intents SET outcome = '{\"failed\":{\"kind\":\"refused\",\"message\":\"no\"}}'
                 WHERE operation = 'create' AND address = 'sandbox/b'",
            )),
        ),
        (
            "as done, and nothing was made",
            Box::new(sql(
                "INSERT INTO intents SELECT project, seq + 100, 'never', address, provider, operation, spec_hash, begun_at, ended_at, outcome
                 FROM intents WHERE operation = 'create' AND address = 'sandbox/b'",
            )),
        ),
        (
            "told to have been made 2 times",
            Box::new(sql(
                "INSERT INTO events SELECT project, seq + 100, at, address, kind, operation, reason, message, run
                 FROM events WHERE operation = 'create' AND reason = 'StepDone' AND address = 'sandbox/a'",
            )),
        ),
        ("sandbox/a twice", Box::new(again(&["created", "sandbox/a"], another))),
        ("knows nothing of it", Box::new(again(&["created", "sandbox/b"], another))),
    ];
    for (what, lie) in lies {
        let said = found(dir.path(), false, lie).expect_err(what);
        assert!(said.contains(what), "{what}: {said}");
    }
    let said = found(dir.path(), true, |_, _| ()).expect_err("something is left");
    assert!(said.contains(&format!("{a} (sandbox/a of shop) is left")), "{said}");

    shop.succeeds(&["destroy", "--yes"]);
    assert_eq!(found(dir.path(), true, |_, _| ()), Ok(()));
    let said =
        found(dir.path(), true, again(&["created", "sandbox/a"], str::to_owned)).expect_err("one more");
    assert!(said.contains("is left"), "{said}");
}
