//! Commands, files and services inside.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::time::Duration;

use tokio::time::timeout;

use super::bench::{Bench, Doing as _, Failure, check, output, script, sh, shown};
use super::{Need, Verdict, group};
use crate::guest::tree::scan;
use crate::guest::{ServiceDefaults, copy_in, copy_out, observe, remove_service, start_service};
use crate::model::{Quantity, RestartPolicy, ServiceSpec, ServiceState, ServiceStatus};
use crate::provider::{Command, ExecIo, ExitStatus, Guest, GuestError, capture};

group! {
    "exec/codes": "the exit code of a command comes back, also of one that a signal ended", [Need::Processes], codes;
    "exec/streams": "standard output and standard error arrive apart", [Need::Processes], streams;
    "exec/arguments": "arguments arrive as they are: spaces, quotes, line ends, what a shell would expand", [Need::Processes], arguments;
    "exec/environment": "variables arrive as they are, every character of them, over those that are there", [Need::Processes], environment;
    "exec/directory": "a command runs in the directory that was asked for, whatever its name", [Need::Processes], directory;
    "exec/no-program": "a program that is not there is an error that names it", [Need::Processes], no_program;
    "exec/no-input": "a command without input finds its end at once", [Need::Processes], no_input;
    "exec/time-limit": "a command that takes too long is ended, and so is its process", [Need::Processes], time_limit;
    "exec/given-up": "a command that is given up ends", [Need::Processes], given_up;
    "exec/left-behind": "a command ends when its program does, whatever that left running", [Need::Processes], left_behind;
    "exec/many": "commands at the same time do not get in each other's way", [Need::Processes], many;
    "files/tree": "a directory comes in and goes out again as it was: bytes, modes, links, empty directories, every name", [Need::Processes], tree;
    "services/outlive": "a service outlives the connection that started it, and ends when it is removed", [Need::Processes], service;
}

/// How long something that should happen at once may take.
const SOON: Duration = Duration::from_secs(30);

async fn codes(bench: &Bench) -> Verdict {
    let guest = bench.inside().await?;
    for code in [0, 1, 42, 126, 255] {
        let text = code.to_string();
        let status = output(&*guest, &script("exit \"$1\"", [text.as_str()])).await?.status;
        check(status == ExitStatus::Code(code), || format!("`exit {code}` ended with {status}"))?;
    }
    let status = output(&*guest, &script("kill -KILL $$", [])).await?.status;
    check(status.code() == 137, || format!("a command ended by signal 9 ended with {status}"))
}

async fn streams(bench: &Bench) -> Verdict {
    let guest = bench.inside().await?;
    let output = output(&*guest, &script("echo out; echo err >&2; echo more; exit 3", [])).await?;
    let (out, err) = (output.stdout.as_slice(), output.stderr.as_slice());
    check(out == b"out\nmore\n" && err == b"err\n", || {
        format!("standard output was {}, standard error {}", shown(out), shown(err))
    })?;
    check(output.status == ExitStatus::Code(3), || format!("it ended with {}", output.status))?;
    // What a provider sends along with a command, for itself, may be shown by the command.
    let list = script("cat /proc/[0-9]*/cmdline 2>/dev/null; echo end", []);
    let listed = timeout(SOON, super::bench::output(&*guest, &list)).await;
    let listed = listed.map_err(|_| Failure::Broken("a list of processes does not end".to_owned()))??;
    check(listed.stdout.ends_with(b"end\n"), || "a list of processes is cut off".to_owned())
}

async fn arguments(bench: &Bench) -> Verdict {
    let guest = bench.inside().await?;
    let hostile = [
        "",
        " two  words ",
        "line\nend\n",
        "tab\t\r",
        "'\"`\\",
        "$(id) ${HOME} $HOME `id`",
        "; exit 9 & | > /dev/null #",
        "*",
        "~",
        "--help",
        "-n",
        "%s%n\\0\\x41",
        "ünïcödé 日本語 🦀",
        "\u{1}\u{1b}[2J\u{7f}",
    ];
    let output = output(&*guest, &script(r#"for a; do printf '%s\0' "$a"; done"#, hostile)).await?;
    let expected: Vec<u8> = hostile.iter().flat_map(|a| a.bytes().chain([0])).collect();
    check(output.stdout == expected, || format!("they arrived as {}", shown(&output.stdout)))
}

async fn environment(bench: &Bench) -> Verdict {
    let guest = bench.inside().await?;
    let mut every: String = (1..=0x7f_u8).map(char::from).collect();
    every.push_str("é日本🦀\u{80}\u{ffff}");
    let values = [("EVERY", every.as_str()), ("_empty", ""), ("EQUALS", "a=b=c"), ("HOME", "/over/ridden")];
    for (name, value) in values {
        let mut command =
            script(r#"eval "printf '%s|' \"\${$1-unset}\""; printf %s "${PATH:+path}""#, [name]);
        command.env = values.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        let output = output(&*guest, &command).await?;
        let expected = format!("{value}|path");
        check(output.stdout == expected.as_bytes(), || {
            format!("`{name}` arrived as {} and not {}", shown(&output.stdout), shown(expected.as_bytes()))
        })?;
    }
    Ok(())
}

async fn directory(bench: &Bench) -> Verdict {
    let guest = bench.inside().await?;
    const NAME: &str = "/tmp/conformance 'dir' $HOME é";
    sh(&*guest, "mkdir -p \"$1\"", [NAME]).await?;
    let mut command = script("pwd", []);
    command.cwd = Some(NAME.to_owned());
    let found = output(&*guest, &command).await?.stdout;
    check(found == format!("{NAME}\n").as_bytes(), || format!("it ran in {}", shown(&found)))?;
    command.cwd = Some("/does/not/exist".to_owned());
    let ran = output(&*guest, &command).await.is_ok_and(|output| output.status.success());
    check(!ran, || "a command in a directory that does not exist succeeded".to_owned())
}

async fn no_program(bench: &Bench) -> Verdict {
    let guest = bench.inside().await?;
    const NAME: &str = "/no/such/program";
    match capture(&*guest, &Command::new([NAME]), &[], 4096).await {
        Err(GuestError::NotExecutable { program, .. }) if program == NAME => Ok(()),
        // What a shell says, where a shell is in between.
        Ok(output) if output.status == ExitStatus::Code(127) => Ok(()),
        other => Err(Failure::Broken(format!("it answers {other:?}"))),
    }
}

async fn no_input(bench: &Bench) -> Verdict {
    let guest = bench.inside().await?;
    let ended = timeout(SOON, output(&*guest, &Command::new(["cat"]))).await;
    let ended = ended.map_err(|_| Failure::Broken("`cat` without input does not end".to_owned()))??;
    check(ended.stdout.is_empty(), || format!("`cat` without input wrote {}", shown(&ended.stdout)))
}

/// Writes its process id to a file and goes on for long.
pub(super) const LONG: &str = r#"echo $$ > "$1"; exec sleep 1000"#;
/// Whether the process of that id still is what `LONG` became.
const LIVES: &str = r#"pid=$(cat "$1") && grep -q sleep "/proc/$pid/cmdline" 2>/dev/null && echo lives || :"#;

/// The process of that id has to end soon.
pub(super) async fn ends(bench: &Bench, guest: &dyn Guest, file: &str) -> Verdict {
    bench
        .eventually(SOON, || async {
            let lives = sh(guest, LIVES, [file]).await?;
            Ok(if lives.is_empty() { Ok(()) } else { Err("its process still runs".to_owned()) })
        })
        .await
}

async fn time_limit(bench: &Bench) -> Verdict {
    let guest = bench.inside().await?;
    const FILE: &str = "/tmp/conformance-limit";
    let mut command = script(LONG, [FILE]);
    command.timeout = Some(Duration::from_secs(3));
    match timeout(SOON, guest.exec(&command, ExecIo::default())).await {
        Ok(Err(GuestError::TimedOut { .. })) => ends(bench, &*guest, FILE).await,
        Ok(other) => Err(Failure::Broken(format!("after its 3 s it answers {other:?}"))),
        Err(_) => Err(Failure::Broken("a limit of 3 s does not end it".to_owned())),
    }
}

async fn given_up(bench: &Bench) -> Verdict {
    let guest = bench.inside().await?;
    const FILE: &str = "/tmp/conformance-given-up";
    let command = script(LONG, [FILE]);
    let started = bench.eventually(SOON, || async {
        let found = sh(&*guest, r#"cat "$1" 2>/dev/null || :"#, [FILE]).await?;
        Ok(if found.is_empty() { Err("it has not begun".to_owned()) } else { Ok(()) })
    });
    tokio::select! {
        ended = guest.exec(&command, ExecIo::default()) => {
            return Err(Failure::Broken(format!("it ended by itself: {ended:?}")));
        }
        started = started => started?,
    }
    ends(bench, &*guest, FILE).await
}

async fn left_behind(bench: &Bench) -> Verdict {
    let guest = bench.inside().await?;
    // What is left behind holds the streams open.
    let ended = timeout(SOON, output(&*guest, &script("sleep 100 & echo done", []))).await;
    let ended =
        ended.map_err(|_| Failure::Broken("it waits for what the command left behind".to_owned()))??;
    check(ended.stdout == b"done\n", || format!("it wrote {}", shown(&ended.stdout)))
}

async fn many(bench: &Bench) -> Verdict {
    let guest = bench.inside().await?;
    let count = bench.sheet().max_concurrency.clamp(1, 8);
    let one = |n: usize| {
        let guest = &*guest;
        async move {
            let text = n.to_string();
            let command = script("read line; echo \"$1 $line\"; exit \"$1\"", [text.as_str()]);
            // Without input `read` fails, and the line is empty.
            let output = output(guest, &command).await?;
            let right = output.stdout == format!("{n} \n").as_bytes() && output.status.code() == n as i32;
            check(right, || format!("command {n} answered {} and {}", shown(&output.stdout), output.status))
        }
    };
    futures::future::try_join_all((0..count).map(one)).await.map(drop)
}

async fn tree(bench: &Bench) -> Verdict {
    let guest = bench.inside().await?;
    let host = tempfile::Builder::new().prefix("pocketenv-conformance-").tempdir()?;
    let from = host.path().join("tree");
    let long = "n".repeat(200);
    std::fs::create_dir_all(from.join("deep/er/empty"))?;
    let every: Vec<u8> = (0..=255).collect();
    let files: [(&str, &[u8], u32); 10] = [
        ("binary", &every, 0o644),
        ("empty-file", b"", 0o600),
        ("deep/er/script", b"#!/bin/sh\n", 0o755),
        ("read-only", b"r", 0o400),
        (" space at both ends ", b"1", 0o644),
        ("'quotes\" `and` $(more)", b"2", 0o644),
        ("-rf", b"3", 0o644),
        ("*?[a]", b"4", 0o644),
        ("日本語 é e\u{301} 🦀", b"5", 0o644),
        (&long, b"6", 0o644),
    ];
    for (name, bytes, mode) in files {
        std::fs::write(from.join(name), bytes)?;
        std::fs::set_permissions(from.join(name), std::fs::Permissions::from_mode(mode))?;
    }
    std::fs::write(from.join("large"), vec![7_u8; 3 << 20])?;
    symlink("deep/er/script", from.join("link"))?;
    symlink("/nowhere/at all", from.join("dangling"))?;
    let there = copy_in(&*guest, &from, "/tmp/conformance-tree", None).await.doing("copying in")?;
    let back = copy_out(&*guest, &there, &host.path().join("back"), None).await.doing("copying out")?;
    let scan = |path: &std::path::Path| scan(path).map_err(std::io::Error::from);
    let (sent, came) = (scan(&from)?, scan(&back)?);
    let differ = sent.iter().find(|entry| !came.contains(entry)).or(came.iter().find(|e| !sent.contains(e)));
    check(differ.is_none(), || format!("it is not the same afterwards: {differ:?}"))
}

async fn service(bench: &Bench) -> Verdict {
    let id = bench.create("service").await?;
    let guest = bench.guest(&id).await?;
    let spec = ServiceSpec {
        command: ["sh", "-c", "while :; do sleep 1; done"].map(str::to_owned).to_vec(),
        state: ServiceState::Running,
        working_dir: None,
        user: None,
        env: BTreeMap::new(),
        depends_on: BTreeMap::new(),
        healthcheck: None,
        restart: RestartPolicy::Never,
        stop_signal: "TERM".to_owned(),
        stop_timeout: crate::model::Duration::from_secs(5),
        log_max_size: Quantity::from_bytes(1 << 20),
        log_max_files: 1,
    };
    let defaults = ServiceDefaults::default();
    start_service(&*guest, "kit", &spec, "digest", &BTreeMap::new(), defaults).await?;
    drop(guest);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let guest = bench.guest(&id).await?;
    let state = async |guest: &dyn Guest| {
        let seen = observe(guest, &BTreeMap::new(), ServiceDefaults::default()).await?;
        Ok::<_, Failure>(seen.services.get("kit").map(|service| service.state))
    };
    let found = state(&*guest).await?;
    check(found == Some(ServiceStatus::Running), || format!("two seconds after its start it is {found:?}"))?;
    remove_service(&*guest, "kit").await?;
    let found = state(&*guest).await?;
    check(found.is_none(), || format!("after its removal it is {found:?}"))
}
