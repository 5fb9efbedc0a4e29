//! What is put into a sandbox belongs to whoever runs there: files, directories, secrets, copies, and after a change of `user` as well.

use std::fs;

use super::images::pocketenv;
use super::support::Fixture;

const MANIFEST: &str = r#"
version: 1
name: owners
secrets: { KEY: { file: ./key.txt }, OTHER: { file: ./key.txt } }
sandboxes:
  box:
    user: nobody
    secrets: { KEY: { as_file: /run/secrets/key }, OTHER: { as_file: /run/secrets/other, owner: root } }
    files:
      - { path: /workspace/new/conf/a.conf, content: "x\n", mode: "0600" }
      - { path: /etc/closed, content: "r\n", mode: "0600", owner: root }
      - { path: /workspace/tree, source: ./tree }
    services:
      reader: { command: "{ id -un; cat /run/secrets/key; } > /tmp/seen.$(id -un); exec sleep 300011" }
  second: { user: nobody }
"#;

/// What the user of the sandbox owns, and may do.
const OWNS: &str = "id -un; cat /run/secrets/key; for f in /run/secrets/key /workspace/new/conf/a.conf /workspace/tree /workspace/tree/sub \
    /workspace/tree/sub/f /workspace/new /workspace/new/conf; do [ -O $f ] || echo \"$f is not mine\"; done; touch /workspace/new/conf/by.$(id -un)";

fn has_single_id() -> bool {
    std::env::var("POCKETENV_TEST_CHOICE").as_deref() == Ok("a single one")
}

#[tokio::test]
async fn what_is_put_inside_belongs_to_whoever_runs_there() {
    let fixture = Fixture::new();
    let at = |name: &str| fixture.dir.path().join(name);
    fs::create_dir_all(at("tree/sub")).unwrap();
    fs::write(at("tree/sub/f"), "f\n").unwrap();
    fs::write(at("key.txt"), "value-of-the-key\n").unwrap();
    let write = |text: &str| fs::write(at("pocketenv.yaml"), text).unwrap();
    let run = |args: &[&str]| {
        let (code, text) = pocketenv(&fixture, args);
        assert_eq!(code, 0, "{args:?}: {text}");
        text
    };
    let sh = |name: &str, script: &str| run(&["exec", name, "--", "sh", "-c", script]);
    let owns = |user: &str| assert_eq!(sh("box", OWNS), format!("{user}\nvalue-of-the-key"));
    let seen = |user: &str| {
        let wait = format!("until [ -s /tmp/seen.{user} ]; do sleep 0.05; done; cat /tmp/seen.{user}");
        assert_eq!(sh("box", &wait), format!("{user}\nvalue-of-the-key"));
    };

    write(MANIFEST);
    let told = run(&["apply", "--yes"]);
    assert_eq!(told.contains("there is a single id here"), has_single_id(), "{told}");
    owns("nobody");
    seen("nobody");
    let closed = "cat /run/secrets/other /etc/closed 2>/dev/null | wc -l";
    assert_eq!(sh("box", closed).trim() == "0", !has_single_id(), "what names another owner is his");
    let stat = "stat -c '%a %U' /run/secrets/other /etc/closed";
    assert_eq!(run(&["exec", "--user", "root", "box", "--", "sh", "-c", stat]), "400 root\n600 root\n");
    run(&["plan", "--detailed-exitcode"]);

    // What is copied belongs to him too.
    run(&["cp", at("key.txt").to_str().unwrap(), "box:/tmp/copied"]);
    run(&["cp", "box:/tmp/copied", "second:/tmp/copied"]);
    for name in ["box", "second"] {
        assert_eq!(sh(name, "[ -O /tmp/copied ] && cat /tmp/copied"), "value-of-the-key\n");
    }

    // Another user is a planned change, and gets everything that was the other one's.
    write(&MANIFEST.replacen("user: nobody", "user: daemon", 1));
    let (code, plan) = pocketenv(&fixture, &["plan", "--detailed-exitcode"]);
    assert!(
        code == 2 && plan.contains("user") && plan.contains("nobody") && plan.contains("daemon"),
        "{plan}"
    );
    assert!(!plan.contains("/etc/closed"), "it stays root's: {plan}");
    run(&["apply", "--yes"]);
    owns("daemon");
    seen("daemon");
    if !has_single_id() {
        let (code, text) =
            pocketenv(&fixture, &["exec", "--user", "nobody", "box", "--", "cat", "/run/secrets/key"]);
        assert!(code == 1 && !text.contains("value-of"), "{text}");
    }
    run(&["plan", "--detailed-exitcode"]);

    // Nobody in particular is root.
    write(&MANIFEST.replacen("    user: nobody\n", "", 1));
    run(&["apply", "--yes"]);
    seen("root");
    assert_eq!(sh("box", "stat -c '%a %U' /run/secrets/key /workspace/tree/sub/f"), "400 root\n644 root\n");
    run(&["plan", "--detailed-exitcode"]);
}

#[tokio::test]
async fn an_owner_who_is_not_there_is_an_error() {
    if has_single_id() {
        // Nothing is given to anybody there.
        return;
    }
    let fixture = Fixture::new();
    let text =
        "version: 1\nname: o\nsandboxes: { box: { files: [{ path: /tmp/f, content: x, owner: ghost }] } }\n";
    fs::write(fixture.dir.path().join("pocketenv.yaml"), text).unwrap();
    let (code, text) = pocketenv(&fixture, &["apply", "--yes"]);
    assert!(code != 0 && text.contains("ghost") && text.contains("such a user"), "{code}: {text}");
    let text = "version: 1\nname: o\nsecrets: { K: { env: K } }\nsandboxes: { box: { secrets: { K: { owner: root } } } }\n";
    fs::write(fixture.dir.path().join("pocketenv.yaml"), text).unwrap();
    let (code, text) = pocketenv(&fixture, &["validate"]);
    assert!(
        code == 3
            && text.contains("pocketenv.yaml:4:")
            && text.contains("`owner` is for a secret that is a file"),
        "{text}"
    );
}
