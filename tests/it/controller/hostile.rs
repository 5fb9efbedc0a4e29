//! Repositories that anybody can push to.

use super::support::{Forge, cloud, empty};

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
            "linkdir",
            "sandboxes:\n  box:\n    state: absent\n    files: [ { path: /x, source: ./linkdir/outside } ]\n"
                .to_owned(),
            "leads out",
        ),
        ("include", format!("x-a: 1\ninclude: ['{outside}']\n"), "leads out"),
        ("includelink", "x-a: 1\ninclude: [ ./link ]\n".to_owned(), "leads out"),
        (
            "envlink",
            "sandboxes:\n  box:\n    state: absent\n    env_file: [ ./link ]\n".to_owned(),
            "leads out",
        ),
        (
            "sync",
            format!("sandboxes:\n  box:\n    state: absent\n    sync: [ {{ from: '{outside}', to: /x }} ]\n"),
            "leads out",
        ),
        (
            "bind",
            "sandboxes:\n  box:\n    state: absent\n    sync: [ { from: ., to: /x, mode: bind } ]\n".to_owned(),
            "may not share a directory",
        ),
        (
            "build",
            "sandboxes:\n  box:\n    state: absent\n    build: { context: ../.. }\n".to_owned(),
            "leads out",
        ),
        (
            "dockerfile",
            "sandboxes:\n  box:\n    state: absent\n    build: { context: ., dockerfile: ../env/Dockerfile }\n"
                .to_owned(),
            "leads out",
        ),
        (
            "home",
            "sandboxes:\n  box:\n    state: absent\n    files: [ { path: /x, source: ~/outside } ]\n".to_owned(),
            "",
        ),
        (
            "proc",
            "sandboxes:\n  box:\n    state: absent\n    env_file: [ /proc/self/environ ]\n".to_owned(),
            "leads out",
        ),
        ("settings", "providers: { sim: { url: 'http://127.0.0.1:1' } }\n".to_owned(), "set providers up"),
        ("secretenv", "secrets: { X: { env: HOOK_SECRET } }\n".to_owned(), "may not read the variable"),
        ("vault", "secrets: { X: { vault: db } }\n".to_owned(), "may not come from `vault`"),
        (
            "network",
            "sandboxes:\n  box:\n    state: absent\n    network: { mode: host }\n".to_owned(),
            "network of this machine",
        ),
    ];
    for (name, text, _) in &cases {
        forge.write(&format!("{name}/pocketenv.yaml"), &format!("version: 1\nname: {name}\n{text}"));
    }
    for name in ["link", "includelink", "envlink"] {
        std::os::unix::fs::symlink(&outside, forge.path(&format!("work/{name}/link"))).unwrap();
    }
    std::os::unix::fs::symlink(forge.path("."), forge.path("work/linkdir/linkdir")).unwrap();
    // Not even the file that is laid over a manifest may be somebody else's.
    forge.write("override/pocketenv.yaml", &empty("override"));
    std::os::unix::fs::symlink(&outside, forge.path("work/override/pocketenv.override.yaml")).unwrap();
    // A link in a directory that goes into a sandbox goes there as a link.
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
    let project = controller.until("override", "it is refused", |project| project["phase"] == "Invalid");
    assert_eq!(
        project["diagnostics"][0]["labels"][0]["file"], "override/pocketenv.override.yaml",
        "{project}"
    );
    assert!(
        project.to_string().contains("leads out") && !project.to_string().contains("top secret"),
        "{project}"
    );
    // The operator may lift each limit.
    drop(controller);
    let account = "accounts: { one: { env: [HOOK_SECRET] } }\n";
    let controller = forge.control_with(account, &forge.source("    account: one\n"));
    controller.until("env", "it is allowed", |project| project["phase"] == "Applied");
}

#[test]
fn each_permission_lifts_what_it_names_and_nothing_else() {
    let mut forge = Forge::new();
    let sim = cloud(&mut forge, &[]);
    std::fs::write(forge.path("outside"), "ELSEWHERE=1\n").unwrap();
    let outside = forge.path("outside").display().to_string();
    let absent = |more: &str| format!("sandboxes:\n  box: {{ state: absent, {more} }}\n");
    let marker = |permission: &str| forge.path(&format!("ran-for-{permission}"));
    // What is written for a permission, as a manifest that needs it.
    let needs = |permission: &str, of: &str| match of {
        "host_paths" => absent(&format!("env_file: ['{outside}']")),
        "command_secrets" => format!(
            "secrets: {{ X: {{ command: [sh, -c, 'echo it; touch {}'] }} }}\nsandboxes:\n  box: {{ provider: sim, secrets: [X] }}\n",
            marker(permission).display()
        ),
        "vault_secrets" => format!("secrets: {{ X: {{ vault: db }} }}\n{}", absent("secrets: [X]")),
        "host_network" => absent("network: { mode: host }"),
        "devices" => absent("devices: [kvm]"),
        "host_ports" => absent("ports: [{ port: 80, host_port: 18080 }]"),
        "provider_settings" => {
            format!("providers: {{ sim: {{ url: '{}' }} }}\n{}", sim.url, absent("provider: sim"))
        }
        other => panic!("{other}"),
    };
    let permissions = [
        "host_paths",
        "command_secrets",
        "vault_secrets",
        "host_network",
        "devices",
        "host_ports",
        "provider_settings",
    ];
    let mut sources = String::new();
    for permission in permissions {
        for of in permissions {
            let name = format!("{permission}-{of}").replace('_', "-");
            let text = format!("version: 1\nname: {name}\n{}", needs(permission, of));
            forge.write(&format!("{permission}/{of}/pocketenv.yaml"), &text);
        }
        sources += &format!(
            "  - name: {}\n    git: {{ url: '{}', branch: main, path: {permission}, projects: many }}
    interval: 1s\n    allow: {{ {permission}: true }}\n",
            permission.replace('_', "-"),
            forge.url()
        );
    }
    forge.push();
    let value = std::fs::File::open(forge.path("outside")).unwrap();
    assert!(forge.command(&["secret", "set", "db"]).stdin(value).status().unwrap().success());
    let controller = forge.control(&sources);
    for permission in permissions {
        for of in permissions {
            let path = format!("{permission}/{of}");
            let expected = if permission == of { "Applied" } else { "Invalid" };
            controller.until(&path, expected, |project| project["phase"] == expected);
        }
        assert_eq!(marker(permission).exists(), permission == "command_secrets", "{permission}");
    }
    assert_eq!(controller.stop(), 0);
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

#[test]
fn what_is_too_large_is_refused_before_it_is_written() {
    let forge = Forge::new();
    forge.write("good/pocketenv.yaml", &empty("good"));
    forge.write("big/pocketenv.yaml", &empty("big"));
    // Zeros take no place in a repository.
    let zeros = std::fs::File::create(forge.path("work/big/zeros")).unwrap();
    zeros.set_len(129 << 20).unwrap();
    forge.git(&["add", "--all"]);
    // Forty directories that each hold the next one twice are more files than there are atoms to write them on.
    let blob = forge.git(&["hash-object", "-w", "good/pocketenv.yaml"]);
    let mut tree = forge.make_tree(&format!("100644 blob {}\tf\n", blob.trim()));
    for _ in 0..40 {
        tree = forge.make_tree(&format!("040000 tree {tree}\ta\n040000 tree {tree}\tb\n"));
    }
    forge.git(&["commit", "--quiet", "-m", "first"]);
    let head = forge.force_push();
    let controller = forge.control(&forge.source(""));
    controller.until_applied("good", &head);
    let big = controller.until("big", "it is refused", |project| project["phase"] == "Invalid");
    assert!(big["message"].as_str().unwrap().contains("larger than 128 MiB"), "{big}");

    // The bomb: the projects that were there stay, and why nothing is taken is told.
    let manifest = forge.git(&["rev-parse", "HEAD:good"]);
    let root = forge.make_tree(&format!("040000 tree {tree}\tbomb\n040000 tree {}\tgood\n", manifest.trim()));
    let commit = forge.git(&["commit-tree", &root, "-m", "bomb", "-p", "HEAD"]);
    let url = forge.path("srv/repo.git").display().to_string();
    forge.git(&["push", "--quiet", "--force", &url, &format!("{}:refs/heads/main", commit.trim())]);
    controller.until("good", "the bomb is told", |_| {
        controller.status()["sources"][0]["message"].as_str().is_some_and(|m| m.contains("larger than"))
    });
    assert_eq!(controller.project("good")["phase"], "Applied");
    let status = std::fs::read_to_string(format!("/proc/{}/status", controller.child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 400 << 10, "it took {peak} kB");
    assert_eq!(controller.stop(), 0);
}
