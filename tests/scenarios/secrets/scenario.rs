//! Secrets reach the processes that were promised them, and nothing else: no disk, argument, output or record.

use std::fs;
use std::path::Path;

use crate::scenarios::world::World;

const VALUES: [&str; 3] = ["env-value-8f1c44aa", "file-value-2b9d77ce", "command-value-5e0a31bd"];

#[test]
fn secrets() {
    let mut world = World::scenario("secrets");
    world.set("MY_SECRET", VALUES[0]);
    world.write("secret.txt", &format!("{}\n", VALUES[1]));
    world.write("other.txt", &format!("{}\n", VALUES[2]));
    world.apply();

    // there where they should be
    let holder = world.process("box", "sleep 300001");
    let environment = holder.environment();
    assert!(environment.contains(&format!("FROM_ENV={}", VALUES[0])));
    assert!(environment.contains(&format!("RENAMED={}", VALUES[2])));
    assert!(!environment.iter().any(|entry| entry.contains(VALUES[1])), "a file secret is no variable");
    assert_eq!(
        world.sh("box", "stat -c '%a %n' /run/secrets/token; stat -f -c %T /run/secrets"),
        "400 /run/secrets/token\ntmpfs"
    );
    // compared inside, so that no value is printed by this very test
    world.sh(
        "box",
        &format!("test \"$(sha256sum < /run/secrets/token)\" = \"$(printf %s {} | sha256sum)\"", VALUES[1]),
    );

    // and nowhere else
    let commands: Vec<_> = world.processes().into_iter().map(|process| process.command).collect();
    for verb in [
        &["plan"][..],
        &["plan", "--format", "json"],
        &["config"],
        &["status", "-o", "json"],
        &["describe"],
        &["events", "-o", "json"],
        &["history", "-o", "json"],
        &["state", "list", "-o", "json"],
        &["logs"],
    ] {
        world.run(verb);
    }
    let printed = world.printed();
    for value in VALUES {
        assert!(!commands.iter().any(|command| command.contains(value)), "in an argument: {commands:#?}");
        assert!(!printed.contains(value), "printed: {printed}");
        let mut found = Vec::new();
        // What a service itself writes to its log is its own affair; everything else is ours.
        find(&world.home(), value.as_bytes(), &mut found);
        found.retain(|path| !path.contains("/log/pocketenv/teller/"));
        assert!(found.is_empty(), "on the disk: {found:?}");
    }
    world.assert_converged();
    assert!(world.run(&["logs", "box/teller"]).stdout.contains("[secret FROM_ENV] [secret FROM_COMMAND]"));

    // a check and a service that fail aloud
    world.edit(
        "pocketenv.yaml",
        "      # Says its secrets aloud.\n",
        "      sick:\n        command: exec sleep 300003\n        healthcheck: { exec: 'echo \"$FROM_ENV\" >&2; exit 1', interval: 100ms, retries: 2 }\n      dead: { command: 'echo \"$RENAMED\" >&2; exit 1', restart: never }\n",
    );
    world.run(&["apply", "--yes", "--timeout", "60s"]).ends(4);
    for verb in
        [&["status", "-o", "json"][..], &["status"], &["describe"], &["events", "-o", "json"], &["plan"]]
    {
        world.run(verb);
    }
    // also by somebody who does not have the secret
    world.unset("MY_SECRET");
    world.run(&["status", "-o", "json"]);
    world.set("MY_SECRET", VALUES[0]);
    for value in VALUES {
        let printed = world.printed();
        assert!(!printed.contains(value), "printed: {printed}");
    }
    world.edit("pocketenv.yaml", "echo \"$FROM_ENV\" >&2; exit 1", "true");
    world.edit("pocketenv.yaml", "echo \"$RENAMED\" >&2; exit 1", "exec sleep 300004");
    world.apply();

    // a changed secret is seen without being kept
    world.set("MY_SECRET", "env-value-changed");
    world.assert_out_of_sync();
    world.apply();
    assert!(!holder.lives());
    assert!(
        world.process("box", "sleep 300001").environment().contains(&"FROM_ENV=env-value-changed".to_owned())
    );
    world.assert_converged();
    world.destroy_and_see_nothing_left(&[]);
}

/// Files below `dir` that hold `needle`.
pub fn find(dir: &Path, needle: &[u8], found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            find(&path, needle, found);
        } else if kind.is_file() {
            let bytes = fs::read(&path).unwrap_or_default();
            if bytes.windows(needle.len()).any(|window| window == needle) {
                found.push(path.to_string_lossy().into_owned());
            }
        }
    }
}
