//! Repositories that anybody can push to.

use super::support::{Forge, empty};

#[test]
fn submodules_and_lfs_are_refused_and_do_not_hold_up_others() {
    let forge = Forge::new();
    forge.write("good/pocketenv.yaml", &empty("good"));
    forge.write("lfs/pocketenv.yaml", &empty("lfs"));
    forge.write("lfs/big.bin", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n");
    forge.write("sub/pocketenv.yaml", &empty("sub"));
    forge.git(&["add", "--all"]);
    forge.git(&["commit", "--quiet", "-m", "first"]);
    let id = forge.git(&["rev-parse", "HEAD"]);
    forge.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{},sub/lib", id.trim())]);
    forge.git(&["commit", "--quiet", "-m", "a submodule"]);
    let head = forge.force_push();
    let controller = forge.control(&forge.source(""));
    controller.until_applied("good", &head);
    for (path, expected) in [("lfs", "`lfs/big.bin` is kept in Git LFS"), ("sub", "`sub/lib` is a submodule")]
    {
        let project = controller.until(path, "it is refused", |project| project["phase"] == "Invalid");
        assert!(project["message"].as_str().unwrap().starts_with(expected), "{project}");
    }
}

#[test]
fn manifests_reach_nothing_of_the_machine() {
    let forge = Forge::new();
    std::fs::write(forge.path("outside"), "top secret").unwrap();
    let outside = forge.path("outside").display().to_string();
    let cases = [
        (
            "env",
            "sandboxes:\n  box: { state: absent, env: { X: '{{ env.HOOK_SECRET }}' } }\n".to_owned(),
            "HOOK_SECRET",
        ),
        (
            "command",
            "secrets: { X: { command: [touch, /tmp/never] } }\n".to_owned(),
            "may not come from `command`",
        ),
        ("file", format!("secrets: {{ X: {{ file: '{outside}' }} }}\n"), "leads out"),
        (
            "source",
            format!(
                "sandboxes:\n  box:\n    state: absent\n    files: [ {{ path: /x, source: '{outside}' }} ]\n"
            ),
            "leads out",
        ),
        (
            "link",
            "sandboxes:\n  box:\n    state: absent\n    files: [ { path: /x, template: ./link } ]\n"
                .to_owned(),
            "leads out",
        ),
        (
            "dots",
            "sandboxes:\n  box:\n    state: absent\n    env_file: [ ../env/pocketenv.yaml ]\n".to_owned(),
            "leads out",
        ),
        (
            "network",
            "sandboxes:\n  box:\n    state: absent\n    network: { mode: host }\n".to_owned(),
            "network of this machine",
        ),
    ];
    for (name, text, _) in &cases {
        forge.write(&format!("{name}/pocketenv.yaml"), &format!("version: 1\nname: {name}\n{text}"));
    }
    std::os::unix::fs::symlink(&outside, forge.path("work/link/link")).unwrap();
    forge.push();
    let controller = forge.control(&forge.source(""));
    for (name, _, expected) in &cases {
        let project = controller.until(name, "it is refused", |project| project["phase"] == "Invalid");
        let text = project["diagnostics"].to_string();
        assert!(text.contains(expected), "{name}: {project}");
        assert!(!text.contains("top secret") && !text.contains("hunter2"), "{name}: {project}");
        assert!(
            project["diagnostics"][0]["labels"][0]["line"].as_u64().is_some_and(|line| line > 2),
            "{project}"
        );
    }
    // The operator may lift each limit.
    drop(controller);
    let controller = forge.control(&forge.source("    allow: { env: [HOOK_SECRET] }\n"));
    controller.until("env", "it is allowed", |project| project["phase"] == "Applied");
}

#[test]
fn a_configuration_that_makes_no_sense_is_told_with_its_line() {
    let forge = Forge::new();
    std::fs::write(forge.path("bad.yaml"), "version: 1\nsources:\n  - name: x\n    gti: {}\n").unwrap();
    let output = forge
        .command(&["controller", "run", "--config", forge.path("bad.yaml").to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("line 4") && text.contains("gti"), "{text}");
    // Only transports are taken that run nothing of the URL's choice.
    let text = "version: 1\nsources:\n  - name: x\n    git: { url: 'ext::sh -c id' }\n";
    std::fs::write(forge.path("bad.yaml"), text).unwrap();
    let output = forge
        .command(&["controller", "run", "--config", forge.path("bad.yaml").to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
}
