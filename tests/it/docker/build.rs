//! `build:` with the real builder.

use std::fs;

use pocketenv::model::{Image, SandboxSpec};
use pocketenv::provider::{Command, ProviderError, capture};

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
    let built = |context: &std::path::Path, dockerfile: Option<&str>| SandboxSpec {
        image: Image::Build { context: context.to_owned(), dockerfile: dockerfile.map(str::to_owned) },
        ..spec()
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
    let id = provider.create(&wanted, &identity("three", &wanted)).await.unwrap();
    assert_eq!(images(), 2);
    let guest = provider.guest(&id).await.unwrap();
    let output = capture(&*guest, &Command::new(["cat", "/ctx/app/main"]), &[], 1000).await.unwrap();
    assert_eq!(output.stdout, b"two");

    // A build that fails says what the builder said, and leaves no sandbox.
    fs::write(context.join("Broken"), format!("FROM {IMAGE}\nRUN echo because >&2; exit 3\n")).unwrap();
    for (dockerfile, said) in [("Broken", "because"), ("Missing", "does not exist there")] {
        let wanted = built(&context, Some(dockerfile));
        let error = provider.create(&wanted, &identity("bad", &wanted)).await.unwrap_err();
        assert!(
            matches!(error, ProviderError::Invalid { .. }) && error.to_string().contains(said),
            "{error}"
        );
    }
    assert_eq!(daemon.inventory().into_iter().filter(|name| name.starts_with("container")).count(), 3);
}
