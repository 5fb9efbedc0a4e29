//! `RUN --mount`: caches that outlive builds and are shared as they say, secrets that are nowhere afterwards, files that are lent, memory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use pocketenv::build::{BuildError, Event, Request, build};
use pocketenv::engine::{BoxSpec, Image, OciImage};
use secrecy::SecretString;

use super::images::{archive, busybox, file, pocketenv, symlink};
use super::support::Fixture;

const VALUE: &str = "value-of-the-token-93aa";

fn context(fixture: &Fixture, name: &str, text: &str) -> Option<PathBuf> {
    let mut entries = busybox()?;
    let more = [
        "mkdir", "rm", "echo", "chmod", "ln", "find", "sort", "wc", "true", "mv", "stat", "touch", "id",
        "test", "env", "df", "mount", "head", "sleep",
    ];
    entries.extend(more.map(|name| symlink(Box::leak(format!("bin/{name}").into_boxed_str()), "busybox")));
    entries.push(file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n"));
    let dir = fixture.dir.path().join(name);
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("root.tar"), archive(&entries)).unwrap();
    fs::write(dir.join("Containerfile"), format!("FROM scratch AS base\nADD root.tar /\n{text}")).unwrap();
    Some(dir)
}

struct Told {
    cached: usize,
    done: usize,
    output: String,
}

async fn built(
    fixture: &Fixture,
    dir: &Path,
    secrets: &[(&str, &str)],
) -> (Result<OciImage, BuildError>, Told) {
    let told = Mutex::new(Told { cached: 0, done: 0, output: String::new() });
    let say = |event: Event<'_>| {
        let mut told = told.lock().unwrap();
        match event {
            Event::Done { cached: true, .. } => told.cached += 1,
            Event::Done { .. } => told.done += 1,
            Event::Output(bytes) => told.output.push_str(&String::from_utf8_lossy(bytes)),
            Event::Pull(_) | Event::Begin(_) => {}
        }
    };
    let secrets = secrets
        .iter()
        .map(|(id, value)| ((*id).to_owned(), SecretString::from((*value).to_owned())))
        .collect();
    let pins = BTreeMap::new();
    let request =
        Request { context: dir, file: None, sha256: None, name: None, pins: &pins, secrets: &secrets };
    let image = build(&fixture.engine, &request, &say).await.map(|(image, _hold)| image);
    (image, told.into_inner().unwrap())
}

async fn look(fixture: &Fixture, id: &str, image: OciImage, script: &str) -> String {
    fixture.create_with(id, BoxSpec { image: Image::Oci(image), ..BoxSpec::default() }).await;
    fixture.sh(id, script).await.ok()
}

fn has_ids() -> bool {
    std::env::var("POCKETENV_TEST_CHOICE").as_deref() != Ok("a single one")
}

/// Files below `dir` that hold `needle`, by content or by name.
fn find(dir: &Path, needle: &[u8], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            find(&path, needle, found);
        } else if kind.is_file()
            && fs::read(&path).unwrap_or_default().windows(needle.len()).any(|part| part == needle)
        {
            found.push(path);
        }
    }
}

#[tokio::test]
async fn a_cache_outlives_the_build_and_is_no_part_of_the_image() {
    let fixture = Fixture::new();
    let text = |what: &str| {
        format!(
            "RUN --mount=type=cache,target=/var/cache/kept,id=kept,mode=0770,uid=1000,gid=50 echo {what} >> /var/cache/kept/log; stat -c '%a %u:%g' /var/cache/kept; cat /var/cache/kept/log > /seen\n"
        )
    };
    let Some(dir) = context(&fixture, "one", &text("first")) else { return };
    let (image, told) = built(&fixture, &dir, &[]).await;
    let image = image.unwrap();
    assert_eq!(told.output.trim(), if has_ids() { "770 1000:50" } else { "770 0:0" });
    let seen = "cat /seen; find /var/cache 2>/dev/null; true";
    assert_eq!(
        look(&fixture, "one", image, seen).await,
        "first",
        "nothing is left of the place it was mounted at"
    );

    // The same step is not done again; another one finds what was kept.
    let (_, told) = built(&fixture, &dir, &[]).await;
    assert_eq!((told.done, told.cached), (0, 2));
    let dir = context(&fixture, "two", &text("second")).unwrap();
    let (image, _) = built(&fixture, &dir, &[]).await;
    assert_eq!(look(&fixture, "two", image.unwrap(), "cat /seen").await, "first\nsecond");

    // Another id is another cache, and without one the path is the id; who only reads does not write.
    let text = "RUN --mount=type=cache,target=/var/cache/kept test -z \"$(find /var/cache/kept -type f)\" && touch /var/cache/kept/x\nRUN --mount=type=cache,id=/var/cache/kept,target=/c,ro test -e /c/x && ! touch /c/y\n";
    let dir = context(&fixture, "three", text).unwrap();
    built(&fixture, &dir, &[]).await.0.unwrap();

    for id in ["one", "two"] {
        fixture.engine.delete(id).await.unwrap();
    }
    let removed = fixture.engine.collect_images().await.unwrap();
    assert_eq!(removed.caches, 2);
    assert!(
        removed.images >= 3
            && fs::read_dir(fixture.dir.path().join("data/engine/images/caches"))
                .unwrap()
                .all(|owner| fs::read_dir(owner.unwrap().path()).unwrap().count() == 0)
    );
    assert_eq!(fixture.engine.collect_images().await.unwrap().caches, 0);
}

/// Two builds at once, each of which says in its cache that it is there and waits until it sees the other, or for a while.
async fn two_at_once(sharing: &str) -> (String, String) {
    let fixture = Fixture::new();
    let text = |own: &str, other: &str| {
        format!(
            "RUN --mount=type=cache,target=/c,id=both,sharing={sharing} touch /c/{own}.in; i=0; while [ $i -lt 30 ] && ! [ -e /c/{other}.in ]; do sleep 0.1; i=$((i + 1)); done; \
             if [ -e /c/{other}.in ]; then echo seen; else echo alone; fi\n"
        )
    };
    let Some(a) = context(&fixture, "a", &text("a", "b")) else { return (String::new(), String::new()) };
    let b = context(&fixture, "b", &text("b", "a")).unwrap();
    let ((first, a), (second, b)) = tokio::join!(built(&fixture, &a, &[]), built(&fixture, &b, &[]));
    first.unwrap();
    second.unwrap();
    (a.output.trim().to_owned(), b.output.trim().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_builds_at_once_have_a_cache_as_it_is_shared() {
    if busybox().is_none() {
        return;
    }
    assert_eq!(two_at_once("shared").await, ("seen".to_owned(), "seen".to_owned()));
    assert_eq!(two_at_once("private").await, ("alone".to_owned(), "alone".to_owned()));
    let (a, b) = two_at_once("locked").await;
    let mut locked = [a.as_str(), b.as_str()];
    locked.sort_unstable();
    assert_eq!(locked, ["alone", "seen"]);
}

#[tokio::test]
async fn a_secret_is_there_for_its_command_and_nowhere_after() {
    let fixture = Fixture::new();
    let text = "RUN --mount=type=secret,id=token,required --mount=type=secret,id=token,target=/root/.conf/rc,mode=0440,uid=1000,gid=50 --mount=type=secret,id=token,env=TOKEN \\\n\
        stat -c '%a %u:%g' /run/secrets/token /root/.conf/rc; wc -c < /run/secrets/token; test \"$(cat /root/.conf/rc)\" = \"$TOKEN\" && ! echo x 2>/dev/null > /root/.conf/rc; mount | grep -c 'tmpfs on /root/.conf/rc'\n\
        RUN --mount=type=secret,id=none --mount=type=secret,id=none,env=NONE test ! -e /run/secrets/none && test -z \"${NONE+x}\"\n\
        USER me\n\
        RUN --mount=type=secret,id=token,uid=1000 cat /run/secrets/token > /dev/null; OTHERS\n";
    // With a single id every user reads every file.
    let text = &text.replace("OTHERS", if has_ids() { "! cat /run/pocketenv-filled/0" } else { "true" });
    let Some(dir) = context(&fixture, "c", text) else { return };
    let (image, told) = built(&fixture, &dir, &[("token", VALUE)]).await;
    let image = image.unwrap_or_else(|error| panic!("{error}: {}", told.output));
    let owners = if has_ids() { "400 0:0\n440 1000:50" } else { "400 0:0\n440 0:0" };
    assert_eq!(
        told.output.lines().take(4).collect::<Vec<_>>().join("\n"),
        format!("{owners}\n{}\n1", VALUE.len())
    );
    let mut found = Vec::new();
    find(fixture.dir.path(), VALUE.as_bytes(), &mut found);
    assert!(found.is_empty(), "{found:?}");
    let left = "find / -xdev \\( -path '*secret*' -o -path '*filled*' -o -name rc -o -name .conf \\) | grep -v ^/proc; env; true";
    let seen = look(&fixture, "x", image, left).await;
    assert!(!seen.contains("secret") && !seen.contains("TOKEN") && !seen.contains("/root/.conf"), "{seen}");

    // Another value is no other step; without a value there is no build where one is required, and nothing ran.
    let (_, told) = built(&fixture, &dir, &[("token", "another")]).await;
    assert_eq!(told.done, 0);
    let (error, told) = built(&fixture, &dir, &[]).await;
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("Containerfile:3: `--mount` has `id=token,required`")
            && error.contains("build.secrets"),
        "{error}"
    );
    assert_eq!((told.done, told.cached), (0, 0));
}

#[tokio::test]
async fn files_are_lent_from_the_context_and_from_other_stages() {
    let fixture = Fixture::new();
    let text = "FROM base AS maker\nRUN mkdir -p /out/deep && echo made > /out/deep/file && chmod 700 /out/deep\n\
        FROM base\nWORKDIR /srv\n\
        RUN --mount=target=. --mount=type=bind,source=sub/one,target=/opt/one --mount=from=maker,source=/out,target=/made \\\n\
        cat one.txt sub/one /opt/one /made/deep/file; test ! -e left.log && ! touch new 2>/dev/null && ! echo x 2>/dev/null > /opt/one; echo $?\n\
        RUN --mount=type=tmpfs,target=/scratch,size=64k touch /scratch/x && ! head -c 100000 /dev/zero 2>/dev/null > /scratch/big; mount | grep -c 'tmpfs on /scratch.*size=64k'\n";
    let Some(dir) = context(&fixture, "c", text) else { return };
    fs::create_dir(dir.join("sub")).unwrap();
    fs::write(dir.join("one.txt"), "top\n").unwrap();
    fs::write(dir.join("sub/one"), "inner\n").unwrap();
    fs::write(dir.join("left.log"), "out").unwrap();
    fs::write(dir.join(".dockerignore"), "*.log\n").unwrap();
    let (image, told) = built(&fixture, &dir, &[]).await;
    let image = image.unwrap_or_else(|error| panic!("{error}: {}", told.output));
    assert_eq!(told.output.trim(), "top\ninner\ninner\nmade\n0\n1");
    let left = "find /srv /opt /made /scratch 2>/dev/null; true";
    assert_eq!(look(&fixture, "x", image, left).await, "/srv", "nothing lent is kept, nor its place");

    // What is lent is what a step depends on, and nothing else of the context is.
    fs::write(dir.join("unrelated"), "").unwrap();
    fs::write(dir.join("sub/one"), "another\n").unwrap();
    let (image, told) = built(&fixture, &dir, &[]).await;
    image.unwrap();
    assert!(told.output.contains("another") && told.done == 1, "{} {}", told.output, told.done);
}

#[tokio::test]
async fn what_cannot_be_mounted_is_refused_at_its_line() {
    let fixture = Fixture::new();
    for (name, text, says) in [
        ("a", "RUN --mount=type=ssh true\n", "Containerfile:3: `--mount=type=ssh` is not supported"),
        (
            "b",
            "\nRUN --mount=type=cache,target=/x,sharing=some true\n",
            "Containerfile:4: `--mount` has `sharing=some`; expected `shared`",
        ),
        ("c", "RUN --mount=source=missing,target=/x true\n", "Containerfile:3: `/missing` is not in"),
        ("d", "RUN --mount=from=9,target=/x true\n", "Containerfile:3: there is no stage 9"),
        (
            "e",
            "RUN --mount=type=tmpfs,target=/x --mount=type=cache,target=/x true\n",
            "Containerfile:3: two mounts",
        ),
        (
            "f",
            "RUN --mount=type=tmpfs,target=/etc/passwd true\n",
            "Containerfile:3: the command cannot be run",
        ),
    ] {
        let Some(dir) = context(&fixture, name, text) else { return };
        let (image, told) = built(&fixture, &dir, &[]).await;
        let error = image.unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(told.done == 0 || name == "f", "{name}");
    }
}

#[tokio::test]
async fn secrets_of_a_build_come_from_the_manifest_and_the_command_line() {
    let fixture = Fixture::new();
    let text = "RUN --mount=type=secret,id=npm,required echo \"said $(cat /run/secrets/npm)\" && wc -c < /run/secrets/npm > /length\n";
    let Some(dir) = context(&fixture, "c", text) else { return };
    fs::write(fixture.dir.path().join("token"), format!("{VALUE}\n")).unwrap();
    let run = |args: &[&str]| pocketenv(&fixture, args);
    let manifest = "version: 1\nname: b\nsecrets: { NPM: { file: ./token } }\nsandboxes:\n  box: { build: { context: ./c, secrets: { npm: { secret: NPM } } } }\n";
    let write = |text: &str| fs::write(fixture.dir.path().join("pocketenv.yaml"), text).unwrap();
    write(manifest);
    let (code, text) = run(&["apply", "--yes"]);
    assert!(code == 0 && !text.contains(VALUE), "{text}");
    assert_eq!(run(&["exec", "box", "--", "cat", "/length"]).1.trim(), VALUE.len().to_string());
    assert_eq!(run(&["plan", "--detailed-exitcode"]).0, 0);
    for path in ["pocketenv.lock", "data"] {
        let mut found = Vec::new();
        find(&fixture.dir.path().join(path), VALUE.as_bytes(), &mut found);
        assert!(found.is_empty(), "{found:?}");
    }
    // What a build is given is no part of what it makes.
    write(&manifest.replace(
        "secrets: { npm: { secret: NPM } }",
        "secrets: { npm: { secret: NPM }, more: { secret: NPM } }",
    ));
    assert_eq!(run(&["plan", "--detailed-exitcode"]).0, 0);
    write(&manifest.replace("{ secret: NPM } }", "{ secret: NONE } }"));
    let (code, text) = run(&["validate"]);
    assert!(code == 3 && text.contains("pocketenv.yaml:5:") && text.contains("NONE"), "{text}");
    write(&manifest.replace("npm:", "'a/b':"));
    let (code, text) = run(&["validate"]);
    assert!(code == 3 && text.contains("no name for a secret of a build"), "{text}");

    let dir = dir.to_str().unwrap();
    let edit = |text: &str| {
        fs::write(
            Path::new(dir).join("Containerfile"),
            fs::read_to_string(Path::new(dir).join("Containerfile")).unwrap().replace("said", text),
        )
        .unwrap()
    };
    edit("heard");
    let (code, text) = run(&["image", "build", dir]);
    assert!(code != 0 && text.contains("--secret id=npm,env=NAME"), "{text}");
    let token = fixture.dir.path().join("token");
    let (code, text) = run(&["image", "build", dir, "--secret", &format!("id=npm,src={}", token.display())]);
    assert!(code == 0 && text.contains("heard [secret npm]") && !text.contains(VALUE), "{text}");
    for wrong in ["npm", "id=npm,src=a,env=B", "id=a/b,src=x", "id=npm,what=x"] {
        let (code, text) = run(&["image", "build", dir, "--secret", wrong]);
        assert!(code == 64, "{wrong}: {text}");
    }
    let (_, text) = run(&["image", "gc", "-o", "json"]);
    assert!(text.contains("\"caches\""), "{text}");
}

/// Links lead where they lead inside, never to this machine.
#[tokio::test]
async fn what_is_lent_does_not_lead_out() {
    let fixture = Fixture::new();
    let outside = fixture.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("marker"), "MARKER-OF-THE-HOST").unwrap();
    let at = outside.to_str().unwrap();
    for (name, text) in [
        ("context", "RUN --mount=type=bind,source=link,target=/x cat /x/marker\n".to_owned()),
        ("context-file", "RUN --mount=type=bind,source=link/marker,target=/x cat /x\n".to_owned()),
        (
            "stage",
            format!(
                "RUN ln -s {at} /link\nFROM base\nRUN --mount=type=bind,from=base,source=/link,target=/x cat /x/marker\n"
            ),
        ),
        (
            "stage-file",
            format!(
                "RUN ln -s {at}/marker /link\nFROM base\nRUN --mount=type=bind,from=base,source=/link,target=/x cat /x\n"
            ),
        ),
        (
            "stage-below",
            format!(
                "RUN ln -s {at} /link\nFROM base\nRUN --mount=type=bind,from=base,source=/link/marker,target=/x cat /x\n"
            ),
        ),
    ] {
        let Some(dir) = context(&fixture, name, &text) else { return };
        std::os::unix::fs::symlink(&outside, dir.join("link")).unwrap();
        let (image, told) = built(&fixture, &dir, &[]).await;
        assert!(!told.output.contains("MARKER"), "{name}: {}", told.output);
        let error = image.expect_err(name).to_string();
        assert!(!error.contains("MARKER"), "{name}: {error}");
        eprintln!("{name}: {error}");
    }
}
