//! What an image says of how it is run, as a sandbox from a manifest has it: user, working directory, command, signal, volumes, ports, `PATH`.

use std::fs;
use std::process::Command;

use serde_json::json;

use super::images::{Entry, Form, Layout, archive, busybox, file, pocketenv, symlink};
use super::support::Fixture;

/// A shell with every tool of busybox, and a user who is not root.
fn equipped() -> Option<Vec<Entry>> {
    let mut entries = busybox()?;
    let there: Vec<&str> = entries.iter().map(|entry| entry.path).collect();
    let list = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find_map(|path| Command::new(path).arg("--list").output().ok())?;
    let more: Vec<Entry> = String::from_utf8(list.stdout)
        .unwrap()
        .lines()
        .map(|name| format!("bin/{name}"))
        .filter(|path| !there.contains(&path.as_str()) && path != "bin/busybox")
        .map(|path| symlink(Box::leak(path.into_boxed_str()), "busybox"))
        .collect();
    entries.extend(more);
    entries.push(file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n"));
    entries.push(file("etc/group", b"root:x:0:\nme:x:1000:\n"));
    Some(entries)
}

const SERVE: &str = "trap 'echo INT > /tmp/ended; exit 0' INT; trap 'echo TERM > /tmp/ended; exit 0' TERM; \
    rm -f /tmp/seen; { id -un; pwd; cat /etc/app.conf; } > /tmp/seen; while :; do sleep 0.1; done";

#[tokio::test]
async fn the_configuration_of_an_image_is_what_commands_and_services_get() {
    let fixture = Fixture::new();
    let Some(entries) = equipped() else { return };
    let layout = Layout::new(&fixture.dir.path().join("layout"));
    layout.image(
        &[(archive(&entries), Form::Gzip)],
        json!({
            "User": "me", "Env": ["PATH=/bin"], "WorkingDir": "/srv/app", "Entrypoint": ["/bin/sh", "-c"], "Cmd": [SERVE],
            "StopSignal": "SIGINT", "Volumes": { "/data/kept": {} }, "ExposedPorts": { "8080/tcp": {} },
        }),
    );
    let manifest = r#"
version: 1
name: configured
sandboxes:
  box:
    image: oci:./layout:v1
    files: [{ path: /etc/app.conf, content: "x = 1\n", mode: "0600" }]
    services: { app: {} }
"#;
    let write = |text: &str| fs::write(fixture.dir.path().join("pocketenv.yaml"), text).unwrap();
    let run = |args: &[&str]| {
        let (code, text) = pocketenv(&fixture, args);
        assert_eq!(code, 0, "{args:?}: {text}");
        text
    };
    let sh = |script: &str| run(&["exec", "box", "--", "sh", "-c", script]);
    write(manifest);
    run(&["apply", "--yes"]);
    assert_eq!(
        sh("id -un; pwd; echo $PATH; ls -d /data/kept"),
        "me\n/srv/app\n/home/me/.local/bin:/bin\n/data/kept\n"
    );
    assert_eq!(run(&["exec", "--user", "root", "box", "--", "id", "-un"]), "root\n");
    assert_eq!(sh("until [ -s /tmp/seen ]; do sleep 0.1; done; cat /tmp/seen"), "me\n/srv/app\nx = 1\n");
    run(&["plan", "--detailed-exitcode"]);
    let told = run(&["describe", "box"]);
    assert!(told.contains("8080/tcp") && told.contains("/data/kept") && told.contains("me"), "{told}");

    write(&manifest.replace("app: {}", "app: { state: stopped }"));
    run(&["apply", "--yes"]);
    assert_eq!(sh("cat /tmp/ended"), "INT\n");
    // What the manifest says is stronger.
    write(&manifest.replace("app: {}", "app: { stop_signal: TERM, user: root, working_dir: /tmp }"));
    run(&["apply", "--yes"]);
    assert_eq!(sh("until grep -q root /tmp/seen; do sleep 0.1; done; cat /tmp/seen"), "root\n/tmp\nx = 1\n");
}

#[tokio::test]
async fn a_service_without_a_command_needs_an_image_that_can_be_asked() {
    let fixture = Fixture::new();
    for (provider, image, says) in [
        ("local", "", "no image that could have one"),
        ("local", "image: host, ", "no image that could have one"),
        ("docker", "image: 'docker.io/library/redis:7', ", "cannot tell what the command of an image"),
    ] {
        let manifest =
            format!("version: 1\nname: c\nsandboxes:\n  box: {{ {image}services: {{ app: {{}} }} }}\n");
        fs::write(fixture.dir.path().join("pocketenv.yaml"), manifest).unwrap();
        let (code, text) = pocketenv(&fixture, &["validate", "--provider", provider]);
        assert!(code == 3 && text.contains("pocketenv.yaml:4:") && text.contains(says), "{provider}: {text}");
    }
}

#[tokio::test]
async fn an_image_without_a_command_is_told() {
    let fixture = Fixture::new();
    let Some(entries) = equipped() else { return };
    let layout = Layout::new(&fixture.dir.path().join("layout"));
    layout.image(&[(archive(&entries), Form::Gzip)], json!({}));
    let manifest =
        "version: 1\nname: c\nsandboxes: { box: { image: 'oci:./layout:v1', services: { app: {} } } }\n";
    fs::write(fixture.dir.path().join("pocketenv.yaml"), manifest).unwrap();
    let (code, text) = pocketenv(&fixture, &["apply", "--yes"]);
    assert!(
        code != 0 && text.contains("service app has no command, and neither has the image"),
        "{code}: {text}"
    );
}
