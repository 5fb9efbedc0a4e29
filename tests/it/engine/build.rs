//! Images built here from a Containerfile: on nothing but a shell, and on an image of a registry.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use pocketenv::build::{BuildError, Event, Request, build};
use pocketenv::engine::{BoxSpec, EngineError, Image, OciImage};
use pocketenv::image::Reference;

use super::images::{archive, busybox, file, pocketenv, push, served, symlink, tool};
use super::support::Fixture;

/// A context with an archive in it that has a shell, and two users.
fn context(fixture: &Fixture) -> Option<PathBuf> {
    let mut entries = busybox()?;
    let more = ["mkdir", "rm", "echo", "chmod", "ln", "find", "sort", "wc", "true", "ps", "wget", "mv"];
    entries.extend(more.map(|name| symlink(Box::leak(format!("bin/{name}").into_boxed_str()), "busybox")));
    entries.push(file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n"));
    entries.push(file("etc/group", b"me:x:1000:\nus:x:50:\n"));
    let dir = fixture.dir.path().join("context");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("root.tar"), archive(&entries)).unwrap();
    Some(dir)
}

#[derive(Debug, Default)]
struct Told {
    /// Instructions that were carried out, and those that were known.
    done: Vec<String>,
    cached: Vec<String>,
    output: Vec<u8>,
}

async fn built(fixture: &Fixture, dir: &Path, name: Option<&str>) -> (Result<OciImage, BuildError>, Told) {
    let told: Mutex<Told> = Mutex::default();
    let say = |event: Event<'_>| {
        let mut told = told.lock().unwrap();
        match event {
            Event::Done { position, cached: true, .. } => told.cached.push(position.text.clone()),
            Event::Done { position, cached: false, .. } => told.done.push(position.text.clone()),
            Event::Output(bytes) => told.output.extend_from_slice(bytes),
            Event::Pull(_) | Event::Begin(_) => {}
        }
    };
    let name = name.map(|name| name.parse::<Reference>().unwrap());
    let request = Request {
        context: dir,
        file: None,
        sha256: None,
        name: name.as_ref(),
        pins: &Default::default(),
        secrets: &Default::default(),
    };
    let image = build(&fixture.engine, &request, &say).await.map(|(image, _hold)| image);
    (image, told.into_inner().unwrap())
}

async fn sandbox(fixture: &Fixture, id: &str, image: OciImage) {
    fixture.create_with(id, BoxSpec { image: Image::Oci(image), ..BoxSpec::default() }).await;
}

fn has_ids() -> bool {
    std::env::var("POCKETENV_TEST_CHOICE").as_deref() != Ok("a single one")
}

#[tokio::test]
async fn every_instruction_does_what_it_says() {
    let fixture = Fixture::new();
    let Some(dir) = context(&fixture) else { return };
    fs::create_dir_all(dir.join("sub/deep")).unwrap();
    fs::write(dir.join("sub/one"), "1").unwrap();
    fs::write(dir.join("sub/deep/two"), "2").unwrap();
    fs::write(dir.join("sub/left.log"), "out").unwrap();
    fs::write(dir.join(".dockerignore"), "*.log\n").unwrap();
    std::os::unix::fs::symlink("one", dir.join("sub/link")).unwrap();
    let text = r#"# syntax=docker/dockerfile:1
ARG GREETING=hello
FROM scratch AS base
ADD root.tar /
ENV WHO=me PATH=/opt/bin:/bin

FROM base AS maker
ARG GREETING
RUN mkdir -p /out/inner && echo "$GREETING $WHO" > /out/inner/file \
    # a comment in between
    && ln -s inner/file /out/link && rm /bin/wc
FROM base AS unused
RUN exit 9

FROM base
WORKDIR /srv/app
COPY --chown=me:us --chmod=0640 sub/one sub/deep ./
COPY sub /all
COPY --from=maker /out /made
COPY --from=0 /etc/passw? /copied/
COPY <<notes <<"raw" /texts/
for $WHO
notes
for $WHO
raw
RUN <<END
rm -r /all/deep
mkdir /all/deep
echo new > /all/deep/three
rm /all/one
END
RUN ["/bin/sh", "-c", "echo exec form > /exec"]
SHELL ["/bin/sh", "-ec"]
RUN false | true; chmod 1777 /srv
USER me:us
WORKDIR sub
ENTRYPOINT ["/entry"]
CMD run $WHO
EXPOSE 8080 53/udp
VOLUME ["/data"]
LABEL "a b"="c d"
STOPSIGNAL SIGINT
"#;
    fs::write(dir.join("Containerfile"), text).unwrap();
    let (image, told) = built(&fixture, &dir, None).await;
    let image = image.unwrap();
    assert!(told.cached.is_empty() && !told.done.iter().any(|step| step.contains("exit 9")), "{told:?}");
    let notes = image.notes.join("\n");
    for note in ["/entry /bin/sh -ec run $WHO", "me:us", "53/udp, 8080/tcp", "/data"] {
        assert!(notes.contains(note), "{note}: {notes}");
    }
    assert_eq!(image.stop_signal.as_deref(), Some("INT"));
    sandbox(&fixture, "a", image.clone()).await;
    let sh = async |script: &str| fixture.sh("a", script).await.ok();
    assert_eq!(sh("pwd; echo $WHO; echo ${GREETING:-none}").await, "/srv/app/sub\nme\nnone");
    let owner = if has_ids() { "1000:50" } else { "0:0" };
    assert_eq!(
        sh("cd /srv/app; stat -c '%n %a %u:%g' one two; stat -c '%a %u:%g' /srv /srv/app").await,
        format!("one 640 {owner}\ntwo 640 {owner}\n1777 0:0\n755 0:0")
    );
    assert_eq!(sh("cd /all; find . | sort; readlink link").await, ".\n./deep\n./deep/three\n./link\none");
    assert_eq!(sh("cat /made/link; readlink /made/link").await, "hello me\ninner/file");
    assert_eq!(
        sh("ls /copied; ls /bin/wc; cat /texts/notes /texts/raw /exec").await,
        "passwd\n/bin/wc\nfor me\nfor $WHO\nexec form"
    );
    assert_eq!(sh("ls /etc/hosts /root.tar 2>&1 | wc -l; ls / | sort").await.lines().next(), Some("2"));

    // The same again is known, whatever it is called; what changes is made anew, and what stands above it is not.
    let (again, told) = built(&fixture, &dir, Some("named:1")).await;
    assert_eq!((again.unwrap().digest, told.done), (image.digest.clone(), Vec::<String>::new()));
    fs::write(dir.join("sub/left.log"), "ignored").unwrap();
    fs::write(dir.join("sub/deep/two"), "changed").unwrap();
    let (changed, told) = built(&fixture, &dir, None).await;
    assert_ne!(changed.unwrap().digest, image.digest);
    assert!(told.done[0].starts_with("COPY --chown"), "{told:?}");
    assert!(told.cached.iter().any(|step| step.starts_with("RUN mkdir -p /out")), "{told:?}");

    // By its name it is there for sandboxes, and for other builds.
    let named: Reference = "named:1".parse().unwrap();
    let (found, hold) = fixture.engine.image(&named, false, &|_| ()).await.unwrap();
    drop(hold);
    assert_eq!(found.digest, image.digest);
    assert_eq!(fixture.engine.image_digest(&named).unwrap(), None, "nobody else has it");
    fs::write(dir.join("Containerfile"), "FROM named:1\nUSER root\nRUN cat /exec > /on\n").unwrap();
    sandbox(&fixture, "b", built(&fixture, &dir, None).await.0.unwrap()).await;
    assert_eq!(fixture.sh("b", "cat /on; pwd").await.ok(), "exec form\n/srv/app/sub");
    assert_eq!(fixture.engine.list().await.unwrap().len(), 2, "no box of a build is left");
}

#[tokio::test]
async fn what_is_not_built_is_refused_before_anything_runs() {
    let fixture = Fixture::new();
    let Some(dir) = context(&fixture) else { return };
    std::os::unix::fs::symlink("/etc/passwd", dir.join("out")).unwrap();
    for (line, says) in [
        ("RUN --mount=type=ssh true", "--mount"),
        ("HEALTHCHECK CMD true", "healthcheck"),
        ("ADD https://example.com/x /x", "context alone"),
        ("COPY none /x", "none"),
        ("COPY out /x", "leads out of the context"),
        ("COPY ../x /x", "leads out of the context"),
        ("COPY --chmod=a+x root.tar /x", "octal"),
        ("COPY --from=9 /x /x", "no stage 9"),
        ("FROM oci:/somewhere", "registry"),
    ] {
        fs::write(dir.join("Containerfile"), format!("FROM scratch\nADD root.tar /\nRUN true\n{line}\n"))
            .unwrap();
        let (refused, told) = built(&fixture, &dir, None).await;
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("Containerfile:4: ") && error.contains(says), "{line}: {error}");
        assert!(told.done.is_empty(), "{line}: {told:?}");
    }
    // The file itself may be no link either: what it leads to is none of the context's, and no message shows a line of it.
    let outside = fixture.dir.path().join("outside");
    fs::write(&outside, "top secret\n").unwrap();
    fs::remove_file(dir.join("Containerfile")).unwrap();
    std::os::unix::fs::symlink(&outside, dir.join("Containerfile")).unwrap();
    let error = built(&fixture, &dir, None).await.0.unwrap_err();
    let said = format!("{error} {error:?}");
    assert!(said.contains("Containerfile") && !said.contains("secret"), "{said}");
    let missing = fixture.dir.path().join("data/engine/boxes");
    assert!(!missing.exists(), "nothing was ever run");
}

#[tokio::test]
async fn a_command_that_fails_shows_its_end_and_leaves_nothing() {
    let fixture = Fixture::new();
    let Some(dir) = context(&fixture) else { return };
    let text = "FROM scratch\nADD root.tar /\nRUN i=0; while test $i != 3000; do echo line $i; i=$((i+1)); done; \\\n  echo the reason >&2; exit 7\n";
    fs::write(dir.join("Containerfile"), text).unwrap();
    let (failed, told) = built(&fixture, &dir, None).await;
    let error = failed.unwrap_err().to_string();
    assert!(error.contains("Containerfile:3: the command ended with code 7"), "{error}");
    assert!(
        error.ends_with("the reason") && error.contains("line 2999") && !error.contains("line 10\n"),
        "{error}"
    );
    assert!(told.output.starts_with(b"line 0\n"), "all of it was to be seen");
    assert_eq!(fixture.engine.list().await.unwrap(), []);

    for (step, says) in [
        ("RUN [\"/none\"]", "/none"),
        ("USER nobody\nRUN true", "nobody"),
        ("COPY --chown=stranger root.tar /x", "stranger"),
        ("COPY --from=0 /none /x", "/none"),
        ("COPY root.tar /bin", "busybox"),
    ] {
        let text = format!("FROM scratch\nADD root.tar /\nFROM scratch\nADD root.tar /\n{step}\n");
        fs::write(dir.join("Containerfile"), text).unwrap();
        let result = built(&fixture, &dir, None).await.0;
        if says == "busybox" {
            // A file goes into a directory that is there.
            sandbox(&fixture, "into", result.unwrap()).await;
            assert_eq!(fixture.sh("into", "ls /bin/root.tar").await.ok(), "/bin/root.tar");
            continue;
        }
        let error = result.unwrap_err().to_string();
        assert!(error.contains("Containerfile:") && error.contains(says), "{step}: {error}");
    }
}

/// A build has the rights of a sandbox, and what it leaves running ends with its step.
#[tokio::test]
async fn a_command_of_a_build_is_a_sandbox() {
    let fixture = Fixture::new();
    let Some(dir) = context(&fixture) else { return };
    let secret = fixture.dir.path().join("secret");
    fs::write(&secret, "of the host").unwrap();
    let text = format!(
        "FROM scratch\nADD root.tar /\nRUN test ! -e {} && echo $HTTP_PROXY > /proxy && ps > /ps\nRUN sleep 1000 & echo started\nRUN ps > /ps2\n",
        secret.display()
    );
    fs::write(dir.join("Containerfile"), text).unwrap();
    let (image, _) = built(&fixture, &dir, None).await;
    sandbox(&fixture, "a", image.unwrap()).await;
    assert!(fixture.sh("a", "cat /proxy").await.ok().starts_with("http://"), "the way out is a sandbox's");
    assert!(!fixture.sh("a", "cat /ps /ps2").await.ok().contains("sleep 1000"));
}

/// Symbolic links of the image lead nowhere but into it, for what is copied as for what is made.
#[tokio::test]
async fn links_in_the_image_stay_in_the_image() {
    let fixture = Fixture::new();
    let Some(dir) = context(&fixture) else { return };
    fs::write(dir.join("file"), "copied").unwrap();
    let outside = fixture.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let out = outside.display();
    let text = format!(
        "FROM scratch AS one\nADD root.tar /\nRUN mkdir -p /usr/real && ln -s usr/real /short && ln -s {out} /escape && ln -s ../../../../../../etc/passwd /up\nCOPY file /short/\nRUN mkdir -p {out}\nCOPY file /escape/\nFROM one\nCOPY --from=one /up /taken\n"
    );
    fs::write(dir.join("Containerfile"), text).unwrap();
    let image = built(&fixture, &dir, None).await.0.unwrap();
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    sandbox(&fixture, "a", image).await;
    let seen =
        fixture.sh("a", &format!("cat /usr/real/file {out}/file; readlink /short; cat /taken")).await.ok();
    assert!(seen.starts_with("copiedcopiedusr/real\nroot:x:0:0:root:/root:/bin/sh"), "{seen}");
}

#[tokio::test]
async fn what_was_built_is_kept_until_it_is_collected() {
    let fixture = Fixture::new();
    let Some(dir) = context(&fixture) else { return };
    fs::write(dir.join("Containerfile"), "FROM scratch\nADD root.tar /\nRUN echo x > /x\n").unwrap();
    let first = built(&fixture, &dir, None).await.0.unwrap();
    let name: Reference = first.reference.parse().unwrap();
    fixture.engine.remove_image(&name).await.unwrap();
    // What a build left that was killed goes with the next one.
    let left = format!("build.{}", "0".repeat(40));
    fixture.create(&left).await;
    let (_, told) = built(&fixture, &dir, None).await;
    assert_eq!(fixture.engine.list().await.unwrap(), []);
    assert_eq!(told.cached.len(), 2, "the name went, and the steps stayed");
    let removed = fixture.engine.collect_images().await.unwrap();
    assert_eq!((removed.images, removed.layers), (1, 2));
    let (again, told) = built(&fixture, &dir, None).await;
    assert_eq!((told.done.len(), told.cached.len()), (2, 0));
    sandbox(&fixture, "a", again.unwrap()).await;
    let error = fixture.engine.remove_image(&name).await.unwrap_err();
    assert!(matches!(error, EngineError::Image(_)), "{error}");
}

#[tokio::test]
async fn a_build_begins_with_an_image_of_a_registry() {
    let fixture = Fixture::new();
    let Some((_, registry, _)) = served(fixture.dir.path()).await else { return };
    let dir = fixture.dir.path().join("context");
    fs::create_dir(&dir).unwrap();
    let from = format!("{}/test/image", registry.host);
    let text = format!(
        "ARG TAG=v1\nFROM {from}:${{TAG}}\nRUN echo $MADE_BY > /by && ls /bin/sleep > /sleep 2>&1 || true\nCOPY --from={from}:v1 /version /copied\n"
    );
    fs::write(dir.join("Dockerfile"), text).unwrap();
    let image = built(&fixture, &dir, None).await.0.unwrap();
    sandbox(&fixture, "a", image).await;
    let seen = fixture.sh("a", "cat /by /sleep /copied").await.ok();
    assert_eq!(seen, "umoci\nls: /bin/sleep: No such file or directory\n2");
    fs::write(dir.join("Dockerfile"), format!("\nFROM {from}:v9\n")).unwrap();
    let error = built(&fixture, &dir, None).await.0.unwrap_err();
    assert!(
        error.to_string().contains("Dockerfile:2: ") && matches!(error, BuildError::Image { .. }),
        "{error}"
    );
}

/// A tag in `FROM` is locked as one in `image` is, and what is built changes when the lock does.
#[tokio::test]
async fn a_moved_tag_changes_no_build_until_the_lock_does() {
    let (fixture, other) = (Fixture::new(), Fixture::new());
    let Some((source, _registry, name)) = served(fixture.dir.path()).await else { return };
    for fixture in [&fixture, &other] {
        let context = fixture.dir.path().join("context");
        fs::create_dir(&context).unwrap();
        let text = format!("FROM {name}\nRUN echo $MADE_BY > /by\nCOPY --from={name} /version /copied\n");
        fs::write(context.join("Containerfile"), text).unwrap();
        let manifest = "version: 1\nname: locked\nsandboxes: { box: { build: ./context } }\n";
        fs::write(fixture.dir.path().join("pocketenv.yaml"), manifest).unwrap();
    }
    let run = |fixture: &Fixture, args: &[&str]| {
        let (code, text) = pocketenv(fixture, args);
        assert_eq!(code, 0, "{args:?}: {text}");
        text
    };
    let lock = |fixture: &Fixture| fs::read_to_string(fixture.dir.path().join("pocketenv.lock")).unwrap();
    let by = |fixture: &Fixture| run(fixture, &["exec", "box", "--", "cat", "/by"]);
    let told = run(&fixture, &["apply", "--yes"]);
    assert!(told.contains("[1/2] RUN echo $MADE_BY > /by"), "{told}");
    let locked = lock(&fixture);
    assert!(locked.contains(&name) && locked.contains("sha256:"), "{locked}");

    tool("umoci", &["config", "--image", &source[4..], "--config.env", "MADE_BY=somebody else"]);
    push(&source, &name);
    fs::write(other.dir.path().join("pocketenv.lock"), &locked).unwrap();
    run(&other, &["apply", "--yes"]);
    assert_eq!(by(&other), "umoci\n");
    // Nor does it where the other one is here.
    run(&other, &["image", "pull", &name]);
    run(&other, &["destroy", "--yes"]);
    run(&other, &["apply", "--yes"]);
    assert_eq!((by(&other), lock(&other)), ("umoci\n".to_owned(), locked.clone()));

    fs::remove_file(other.dir.path().join("pocketenv.lock")).unwrap();
    run(&other, &["destroy", "--yes"]);
    let told = run(&other, &["apply", "--yes", "-o", "json"]);
    assert!(told.contains("step_output") && told.contains("[1/2] RUN"), "{told}");
    assert_eq!(by(&other), "somebody else\n");
    assert_ne!(lock(&other), locked);
}

/// What a context holds decides; where it lies, and what is ignored in it, does not.
#[tokio::test]
async fn a_changed_context_is_a_planned_change() {
    let fixture = Fixture::new();
    let Some(dir) = context(&fixture) else { return };
    let manifest = "version: 1\nname: built\nsandboxes: { box: { build: ./context } }\n";
    fs::write(fixture.dir.path().join("pocketenv.yaml"), manifest).unwrap();
    let head = [
        "tr",
        "kill",
        "date",
        "head",
        "tail",
        "sed",
        "awk",
        "mkfifo",
        "mktemp",
        "cp",
        "tar",
        "grep",
        "setsid",
        "sha256sum",
        "printf",
        "uname",
        "chown",
        "rmdir",
        "cmp",
        "cut",
        "od",
    ];
    let links: Vec<String> = head.iter().map(|name| format!("ln -s busybox /bin/{name}")).collect();
    let text = format!("FROM scratch\nADD root.tar /\nRUN {}\nCOPY word /word\n", links.join(" && "));
    fs::write(dir.join("Containerfile"), text).unwrap();
    fs::write(dir.join("word"), "first").unwrap();
    fs::write(dir.join(".dockerignore"), "*.log\n").unwrap();
    let run = |args: &[&str], code: i32| {
        let (found, text) = pocketenv(&fixture, args);
        assert_eq!(found, code, "{args:?}: {text}");
        text
    };
    run(&["apply", "--yes"], 0);
    assert_eq!(run(&["exec", "box", "--", "cat", "/word"], 0), "first");
    fs::write(dir.join("noise.log"), "ignored").unwrap();
    run(&["plan", "--detailed-exitcode"], 0);

    fs::write(dir.join("word"), "second").unwrap();
    let plan = run(&["plan", "--detailed-exitcode"], 2);
    assert!(plan.contains("build.context"), "{plan}");
    run(&["apply", "--yes", "--allow-data-loss"], 0);
    assert_eq!(run(&["exec", "box", "--", "cat", "/word"], 0), "second");
    run(&["plan", "--detailed-exitcode"], 0);

    run(&["stop", "box"], 0);
    run(&["snapshot", "create", "box", "kept"], 0);
    run(&["snapshot", "export", "kept", "oci:out"], 0);
    let text = run(&["snapshot", "export", "kept", "out"], 64);
    assert!(text.contains("oci-archive:FILE"), "{text}");
    assert!(fixture.dir.path().join("out/index.json").is_file());

    // A build that fails says so at its line, and nothing is recorded as if it were there.
    fs::write(dir.join("Containerfile"), "FROM scratch\nADD root.tar /\nRUN echo because; false\n").unwrap();
    let (code, text) = pocketenv(&fixture, &["apply", "--yes", "--allow-data-loss"]);
    assert!(code != 0 && text.contains("Containerfile:3: ") && text.contains("because"), "{code}: {text}");
    run(&["destroy", "--yes"], 0);

    fs::write(dir.join("Containerfile"), "FROM scratch\nADD root.tar /\n").unwrap();
    let text = run(&["image", "build", "context", "-t", "tools"], 0);
    assert!(
        text.contains("[1/1] cached") && text.contains("docker.io/library/tools:latest@sha256:"),
        "{text}"
    );
    run(&["image", "export", "tools", "oci-archive:tools.tar:x"], 0);
    let pulled = run(&["image", "pull", "oci-archive:tools.tar"], 0);
    assert!(pulled.contains("sha256:"), "{pulled}");
    fs::remove_file(dir.join("Containerfile")).unwrap();
    run(&["plan"], 3);
}
