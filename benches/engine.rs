//! The engine beside bubblewrap, in one run: create → first output of a command, and exec into a running sandbox.
//!
//! `cargo bench --bench engine`. Medians of alternating rounds, so that the machine's moods meet both.

#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Read;
use std::process::{Command, Stdio as ProcessStdio};
use std::time::{Duration, Instant};

use pocketenv::engine::{BoxSpec, Engine, EngineConfig, ExecRequest, Network, Stdio};

const ROUNDS: usize = 40;

async fn first_output(engine: &Engine, id: &str) {
    let (mut out, writer) = std::io::pipe().unwrap();
    let null = || std::fs::File::options().read(true).write(true).open("/dev/null").unwrap().into();
    let request = ExecRequest { argv: vec!["/bin/echo".into(), "hi".into()], ..ExecRequest::default() };
    let stdio = Stdio::Files { stdin: null(), stdout: writer.into(), stderr: null() };
    let mut handle = engine.exec(id, request, stdio).await.unwrap();
    let mut bytes = [0; 3];
    out.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hi\n");
    handle.wait().await.unwrap();
}

fn bubblewrap() -> Option<Duration> {
    let started = Instant::now();
    let output = Command::new("bwrap")
        .args([
            "--ro-bind",
            "/",
            "/",
            "--unshare-all",
            "--proc",
            "/proc",
            "--dev",
            "/dev",
            "--tmpfs",
            "/tmp",
            "/bin/echo",
            "hi",
        ])
        .env("LANG", "C.UTF-8") // as in a sandbox: programs of the C library read thirteen files for it
        .stdin(ProcessStdio::null())
        .output()
        .ok()?;
    assert_eq!(output.stdout, b"hi\n", "{}", String::from_utf8_lossy(&output.stderr));
    Some(started.elapsed())
}

fn report(what: &str, mut times: Vec<Duration>) {
    if times.is_empty() {
        println!("{what:<44} SKIPPED: bwrap is missing");
        return;
    }
    times.sort();
    println!(
        "{what:<44} median {:>9.2?}   min {:>9.2?}   max {:>9.2?}",
        times[times.len() / 2],
        times[0],
        times[times.len() - 1]
    );
}

/// Of all processes of this program that serve sandboxes.
fn proportional_memory(exe: &std::path::Path) -> u64 {
    let mut kib = 0;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let cmdline = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let ours = std::fs::read_link(entry.path().join("exe")).is_ok_and(|path| path == exe);
        if ours && String::from_utf8_lossy(&cmdline).contains("__engine-shim") {
            let rollup = std::fs::read_to_string(entry.path().join("smaps_rollup")).unwrap_or_default();
            let line = rollup.lines().find(|line| line.starts_with("Pss:"));
            kib += line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    kib
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let dir = tempfile::tempdir().unwrap();
    let exe: std::path::PathBuf = option_env!("CARGO_BIN_EXE_pocketenv")
        .map_or_else(|| std::env::current_exe().unwrap().with_file_name("pocketenv"), Into::into);
    let engine = Engine::new(EngineConfig {
        data_dir: dir.path().join("data"),
        runtime_dir: dir.path().join("run"),
        exe: exe.clone(),
    });
    let labels = BTreeMap::new();
    let (mut create, mut none, mut bwrap, mut exec) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        for (network, times) in [(Network::Isolated, &mut create), (Network::None, &mut none)] {
            let id = format!("b{round}-{}", if network == Network::None { "none" } else { "isolated" });
            let started = Instant::now();
            engine.create(&id, &BoxSpec { network, ..BoxSpec::default() }, &labels).await.unwrap();
            first_output(&engine, &id).await;
            times.push(started.elapsed());
            // Nothing is deleted in between: ext4 looks past all that was deleted lately for each new file. But nothing else runs beside the next.
            engine.stop(&id, Duration::ZERO).await.unwrap();
        }
        bwrap.extend(bubblewrap());
    }
    engine.create("running", &BoxSpec::default(), &labels).await.unwrap();
    for _ in 0..200 {
        let started = Instant::now();
        first_output(&engine, "running").await;
        exec.push(started.elapsed());
    }
    report("engine: create -> first output", create);
    report("engine: the same, network none", none);
    report("bwrap --unshare-all ro-bind -> first output", bwrap);
    report("engine: exec in a running sandbox", exec);
    for n in 1..50 {
        engine.create(&format!("idle{n}"), &BoxSpec::default(), &labels).await.unwrap();
    }
    println!("memory of an idle sandbox (PSS, mean of 50)  {} KiB", proportional_memory(&exe) / 50);
    for info in engine.list().await.unwrap() {
        engine.delete(&info.id).await.unwrap();
    }
}
