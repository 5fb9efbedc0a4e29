//! `build:` with the real builder.

use std::fs;

use pocketenv::model::{Image, Place, SandboxSpec};
use pocketenv::provider::{Command, ProviderError, capture};

use pocketenv::tree::{scan, tree_sha256};

use super::support::{Daemon, IMAGE, identity, spec};

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_built_once_from_what_the_ignore_files_leave() {
    let Some(daemon) = Daemon::start() else { return };
    let provider = daemon.provider().await;
    let context = daemon.dir.path().join("context");
    fs::create_dir_all(context.join("app")).unwrap();
    fs::write(context.join("Dockerfile"), format!("FROM {IMAGE}\nCOPY . /ctx\nUSER dev\n")).unwrap();
    fs::write(context.join("app/main"), "one").unwrap();
    fs::write(context.join("secret.env"), "hidden").unwrap();
    fs::write(context.join(".dockerignore"), "*.env\n").unwrap();
    std::os::unix::fs::symlink("main", context.join("app/link")).unwrap();
    let built = |context: &std::path::Path, dockerfile: Option<&str>| {
        let sha256 = tree_sha256(&scan(context).unwrap());
        let (context, dockerfile) = (Place(context.to_owned()), dockerfile.map(str::to_owned));
        SandboxSpec { image: Image::Build { context, dockerfile, sha256 }, ..spec() }
    };
    let images = || daemon.says(&["images", "pocketenv-build", "--format", "{{.Tag}}"]).lines().count();

    let wanted = built(&context, None);
    let id = provider.create(&wanted, &identity("one", &wanted)).await.unwrap();
    let guest = provider.guest(&id).await.unwrap();
    let look = Command::new(["sh", "-c", "id -un; cd /ctx; find . | sort; cat app/link"]);
    let output = capture(&*guest, &look, &[], 1000).await.unwrap();
    let expected = "dev\n.\n./.dockerignore\n./Dockerfile\n./app\n./app/link\n./app/main\none";
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);

    // Unchanged, also by what is ignored: not built again.
    fs::write(context.join("secret.env"), "hidden differently").unwrap();
    provider.create(&wanted, &identity("two", &wanted)).await.unwrap();
    assert_eq!(images(), 1);
    fs::write(context.join("app/main"), "two").unwrap();
    let wanted = built(&context, None);
    let id = provider.create(&wanted, &identity("three", &wanted)).await.unwrap();
    assert_eq!(images(), 2);
    let guest = provider.guest(&id).await.unwrap();
    let output = capture(&*guest, &Command::new(["cat", "/ctx/app/main"]), &[], 1000).await.unwrap();
    assert_eq!(output.stdout, b"two");

    // A build that fails says what the builder said, and leaves no sandbox.
    fs::write(context.join("Broken"), format!("FROM {IMAGE}\nRUN echo because >&2; exit 3\n")).unwrap();
    let planned = built(&context, None);
    fs::write(context.join("app/main"), "three").unwrap();
    for (wanted, said) in [(planned, "it has changed since"), (built(&context, Some("Broken")), "because")] {
        let error = provider.create(&wanted, &identity("bad", &wanted)).await.unwrap_err();
        assert!(
            matches!(error, ProviderError::Invalid { .. }) && error.to_string().contains(said),
            "{error}"
        );
    }
    assert_eq!(daemon.inventory().into_iter().filter(|name| name.starts_with("container")).count(), 3);
}

/// What a build context holds decides; where it lies, and what is ignored in it, does not.
#[test]
fn a_changed_build_context_is_a_planned_change() {
    let Some(daemon) = Daemon::start() else { return };
    let dir = daemon.dir.path().join("one/project");
    fs::create_dir_all(dir.join("box")).unwrap();
    let manifest = "version: 1\nname: built\nsandboxes: { box: { build: ./box } }\n";
    fs::write(dir.join("pocketenv.yaml"), manifest).unwrap();
    fs::write(dir.join("box/Dockerfile"), format!("FROM {IMAGE}\nCOPY word /word\n")).unwrap();
    fs::write(dir.join("box/word"), "first").unwrap();
    fs::write(dir.join("box/.dockerignore"), "*.log\n").unwrap();
    let run = |dir: &std::path::Path, verb: &[&str], code: i32| {
        let file = dir.join("pocketenv.yaml");
        let args = [&verb[..1], &["-f", file.to_str().unwrap(), "--provider", "docker"], &verb[1..]].concat();
        daemon.runs(&args, &[], code)
    };
    run(&dir, &["apply", "--yes"], 0);
    run(&dir, &["plan", "--detailed-exitcode"], 0);

    fs::write(dir.join("box/noise.log"), "ignored").unwrap();
    let elsewhere = daemon.dir.path().join("two/project");
    fs::create_dir_all(elsewhere.parent().unwrap()).unwrap();
    fs::rename(&dir, &elsewhere).unwrap();
    run(&elsewhere, &["plan", "--detailed-exitcode"], 0);

    fs::write(elsewhere.join("box/word"), "second").unwrap();
    let plan = run(&elsewhere, &["plan", "--detailed-exitcode"], 2);
    assert!(plan.contains("build.context"), "{plan}");
    run(&elsewhere, &["apply", "--yes", "--allow-data-loss"], 0);
    assert_eq!(run(&elsewhere, &["exec", "box", "--", "cat", "/word"], 0), "second");
    run(&elsewhere, &["plan", "--detailed-exitcode"], 0);
    run(&elsewhere, &["destroy", "--yes"], 0);

    fs::remove_file(elsewhere.join("box/Dockerfile")).unwrap();
    run(&elsewhere, &["plan"], 3);
}
