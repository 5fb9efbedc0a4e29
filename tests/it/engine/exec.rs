use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use pocketenv::engine::{BoxSpec, EngineError, ExecRequest, Exit, Stdio, resize};

use super::support::{Fixture, eventually, null, request};

#[tokio::test]
async fn codes_signals_streams_and_errors() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    assert_eq!(fixture.sh("one", "exit 7").await.exit, Exit::Code(7));
    assert_eq!(fixture.sh("one", "kill -TERM $$").await.exit, Exit::Signal(15));
    let both = fixture.sh("one", "echo out; echo err >&2").await;
    assert_eq!((both.stdout.as_slice(), both.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
    let missing = fixture.run("one", request(["no-such-program"])).await.unwrap_err();
    assert!(
        matches!(&missing, EngineError::Exec { what, source, .. }
        if what.contains("no-such-program") && source.kind() == std::io::ErrorKind::NotFound),
        "{missing:?}"
    );
    let cwd = ExecRequest { cwd: Some("/nowhere".into()), ..request(["true"]) };
    assert!(matches!(fixture.run("one", cwd).await, Err(EngineError::Exec { .. })));
    let denied = fixture.run("one", request(["/etc/passwd"])).await.unwrap_err();
    assert!(
        matches!(&denied, EngineError::Exec { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied),
        "{denied:?}"
    );
    let nobody = ExecRequest { user: Some("no-such-user".into()), ..request(["true"]) };
    assert!(matches!(fixture.run("one", nobody).await, Err(EngineError::Exec { .. })));
    assert!(matches!(fixture.run("one", ExecRequest::default()).await, Err(EngineError::Invalid(_))));
    assert!(matches!(fixture.run("two", request(["true"])).await, Err(EngineError::NotFound(_))));
}

#[tokio::test]
async fn a_run_file_is_read_without_a_program_and_only_if_it_is_one() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    let read = async |path: &str| fixture.engine.read_run_file("one", path, 100).await;
    assert!(read("of/env").await.is_err(), "there is not even a directory");
    let made = "mkdir /run/of && cd /run/of && printf 'A=1\\0' > env && ln -s env link && ln -s /run/of ../link && mkfifo pipe \
                && mkdir dir && head -c 101 /dev/zero > long && mkdir -m 755 /run/theirs && echo > /run/theirs/env \
                && { chown 1:1 /run/theirs/env /run/theirs; [ \"$(stat -c %u /run/theirs)\" = 1 ] || rm -r /run/theirs; } 2>/dev/null; :";
    fixture.sh("one", made).await.ok();
    assert_eq!(read("of/env").await.unwrap().as_deref(), Some(&b"A=1\0"[..]));
    assert_eq!(read("of/missing").await.unwrap(), None);
    for path in [
        "of/link",
        "link/env",
        "of/pipe",
        "of/dir",
        "of/long",
        "../etc/passwd",
        "/etc/passwd",
        "",
        "theirs/env",
        "theirs/no",
    ] {
        let error = read(path).await.expect_err(path);
        assert!(matches!(error, EngineError::Read { .. }), "{path}: {error:?}");
    }
    assert!(matches!(fixture.engine.read_run_file("two", "of/env", 9).await, Err(EngineError::NotFound(_))));
    assert_eq!(fixture.sh("one", "echo alive").await.ok(), "alive");
}

#[tokio::test]
async fn ten_mebibytes_pass_both_ways_unchanged() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    let mut seed = 1u32;
    let data: Vec<u8> = std::iter::repeat_with(|| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 24) as u8
    })
    .take(10 << 20)
    .collect();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let (mut out, out_writer) = std::io::pipe().unwrap();
    let (mut err, err_writer) = std::io::pipe().unwrap();
    let both = request(["sh", "-c", "tee /dev/stderr"]);
    let mut handle =
        fixture.start("one", both, reader.into(), out_writer.into(), err_writer.into()).await.unwrap();
    let sent = data.clone();
    let feed = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    let drain = |mut from: std::io::PipeReader| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).unwrap();
            bytes
        })
    };
    let (out, err) = (
        drain(std::mem::replace(&mut out, std::io::pipe().unwrap().0)),
        drain(std::mem::replace(&mut err, std::io::pipe().unwrap().0)),
    );
    assert_eq!(handle.wait().await.unwrap(), Exit::Code(0));
    feed.join().unwrap();
    assert!(out.join().unwrap() == data, "stdout differs");
    assert!(err.join().unwrap() == data, "stderr differs");
}

#[tokio::test]
async fn environment_directory_and_user() {
    let fixture = Fixture::new();
    let spec =
        BoxSpec { env: vec![("BASE".into(), "1".into()), ("OVER".into(), "1".into())], ..BoxSpec::default() };
    fixture.create_with("one", spec).await;
    let every: Vec<u8> = (1..=255).collect();
    let value = OsString::from_vec(every.clone());
    let env = vec![("EVERY".into(), value), ("OVER".into(), "2".into())];
    let printed = fixture.run("one", ExecRequest { env, ..request(["printenv", "EVERY"]) }).await.unwrap();
    assert_eq!(printed.stdout.strip_suffix(b"\n").unwrap(), every);
    let big = OsString::from("x".repeat(100_000));
    let env = (0..10).map(|n| (format!("BIG{n}").into(), big.clone())).collect();
    assert_eq!(
        fixture
            .run("one", ExecRequest { env, ..request(["sh", "-c", "echo ${#BIG9} $BASE $OVER $HOME"]) })
            .await
            .unwrap()
            .ok(),
        "100000 1 1 /root"
    );
    assert_eq!(
        fixture.sh("one", "pwd; hostname 2>/dev/null || cat /etc/hostname").await.ok(),
        "/workspace\none"
    );
    assert_eq!(fixture.sh("one", "rmdir /workspace").await.exit, Exit::Code(0));
    assert_eq!(fixture.sh("one", "pwd").await.ok(), "/");
    let cwd = ExecRequest { cwd: Some("/usr/bin".into()), ..request(["pwd"]) };
    assert_eq!(fixture.run("one", cwd).await.unwrap().ok(), "/usr/bin");
    for (user, expected) in [("nobody", "65534"), ("1234", "1234"), ("0", "0")] {
        let user = ExecRequest {
            user: Some(user.into()),
            ..request(["sh", "-c", "id -u; touch /tmp/by-$(id -u); stat -c %u /tmp/by-$(id -u)"])
        };
        assert_eq!(fixture.run("one", user).await.unwrap().ok(), format!("{expected}\n{expected}"));
    }
}

#[tokio::test]
async fn signals_reach_the_group_and_dropping_kills_it() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    let (mut out, writer) = std::io::pipe().unwrap();
    let trap =
        request(["sh", "-c", "trap 'echo got; exit 3' USR1; echo ready; while :; do sleep 0.01; done"]);
    let mut handle = fixture.start("one", trap, null(), writer.into(), null()).await.unwrap();
    let mut line = [0; 6];
    out.read_exact(&mut line).unwrap();
    handle.signal(10).await.unwrap();
    assert_eq!(handle.wait().await.unwrap(), Exit::Code(3));

    let sleeper = request(["sh", "-c", "sleep 987654 & sleep 987654"]);
    let handle = fixture.start("one", sleeper, null(), null(), null()).await.unwrap();
    let count =
        || async { fixture.sh("one", "grep -lz 98765[4] /proc/*/cmdline 2>/dev/null | wc -l").await.text() };
    eventually("two sleepers run", async || count().await.starts_with('3')).await; // the shell and its two
    drop(handle);
    eventually("the group is gone", async || count().await == "0").await;
}

#[tokio::test]
async fn a_terminal_of_the_right_size() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    let mut handle = fixture
        .engine
        .exec(
            "one",
            request([
                "sh",
                "-c",
                "tty; stty size; read line; stty size; exec sh -c 'test -t 0 && echo tty:$TERM'",
            ]),
            Stdio::Pty { rows: 33, cols: 77 },
        )
        .await
        .unwrap();
    let pty: OwnedFd = handle.take_pty().unwrap();
    let mut file = std::fs::File::from(pty.try_clone().unwrap());
    let mut seen = String::new();
    let mut until = |wanted: &str| {
        while !seen.contains(wanted) {
            let mut bytes = [0; 1024];
            match file.read(&mut bytes) {
                Ok(n) => seen.push_str(&String::from_utf8_lossy(&bytes[..n])),
                Err(error) => panic!("{error} after {seen:?}"),
            }
        }
    };
    until("/dev/pts/");
    until("33 77");
    resize(&pty, 44, 88).unwrap();
    std::fs::File::from(pty.try_clone().unwrap()).write_all(b"\n").unwrap();
    until("44 88");
    until("tty:xterm-256color");
    assert_eq!(handle.wait().await.unwrap(), Exit::Code(0));
}

#[tokio::test]
async fn hundreds_of_commands_at_once_and_orphans_leave_nothing() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    for _ in 0..5 {
        let mut handles = Vec::new();
        for _ in 0..40 {
            handles.push(
                fixture
                    .start("one", request(["sh", "-c", "(true &) ; exit 5"]), null(), null(), null())
                    .await
                    .unwrap(),
            );
        }
        for mut handle in handles {
            assert_eq!(handle.wait().await.unwrap(), Exit::Code(5));
        }
    }
    eventually("no zombies", async || {
        fixture.sh("one", "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l").await.text() == "0"
    })
    .await;
    assert_eq!(
        fixture.sh("one", "ls /proc/self/fd | wc -l").await.ok(),
        "4",
        "nothing of init's is inherited"
    );
    let stopped = fixture.engine.stop("one", Duration::from_secs(5));
    tokio::time::timeout(Duration::from_secs(4), stopped).await.unwrap().unwrap();
}
