//! The container of `dist/`, built and run by a daemon of the test's own, on a base made from Debian's packages.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::resume::chain;
use super::support::{Forge, Served, cloud, run};
use crate::docker::support::{Daemon, which};
use crate::scenarios::world::program;
use crate::sim::world::{Sim, count};

const DEADLINE: Duration = Duration::from_secs(90);
const BASE: &str = "debian:test";
/// Where the container listens, by its command line. It has the network of the machine: the simulator is there.
const PORT: u16 = 8484;

/// The root filesystem of a small Debian, of the release that the program was built on; `None`, after saying why, where there is none. It is
/// made once and kept beside what else is built.
fn debian() -> Option<PathBuf> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    let (Some(name), Some(mmdebstrap)) = (name, which("mmdebstrap")) else {
        eprintln!("SKIPPED: mmdebstrap is missing, or this is no Debian");
        return None;
    };
    let archive = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("debian-{name}.tar"));
    if archive.exists() {
        return Some(archive);
    }
    let unfinished = archive.with_extension(format!("{}.tar", std::process::id()));
    let made = Command::new(mmdebstrap)
        .args(["--quiet", "--variant=minbase", "--mode=root", name])
        .arg(&unfinished)
        .output()
        .unwrap();
    if !made.status.success() {
        let _ = fs::remove_file(&unfinished);
        eprintln!("SKIPPED: no Debian can be made here: {}", String::from_utf8_lossy(&made.stderr));
        return None;
    }
    fs::rename(&unfinished, &archive).unwrap();
    Some(archive)
}

/// Builds the image with the program of these tests; its name.
fn build(daemon: &Daemon, base: &Path) -> &'static str {
    daemon.says(&["import", base.to_str().unwrap(), BASE]);
    let dist = Path::new(env!("CARGO_MANIFEST_DIR")).join("dist");
    let file = dist.join("Containerfile");
    let base = format!("BASE={BASE}");
    let arguments =
        ["build", "--quiet", "--network=host", "--target=runtime", "--tag=runtime", "--build-arg"];
    let arguments = [&arguments[..], &[&base, "-f", file.to_str().unwrap(), dist.to_str().unwrap()]].concat();
    daemon.says(&arguments);
    let context = daemon.dir.path().join("image");
    fs::create_dir(&context).unwrap();
    fs::copy(program(), context.join("pocketenv")).unwrap();
    fs::write(context.join("Dockerfile"), "FROM runtime\nCOPY pocketenv /usr/local/bin/pocketenv\n").unwrap();
    daemon.says(&["build", "--quiet", "--tag=controller", context.to_str().unwrap()]);
    "controller"
}

/// Starts a container of it that may do nothing that it need not, on the volume `state`.
fn start(daemon: &Daemon, name: &str, config: &Path, sim: &Sim) {
    let mount = format!("{}:/etc/pocketenv/controller.yaml:ro", config.display());
    let cloud = format!("POCKETENV_SIM_URL={}", sim.url);
    let arguments = ["run", "--detach", "--name", name, "--network=host", "--read-only", "--tmpfs=/tmp"];
    let tied = ["--cap-drop=ALL", "--security-opt=no-new-privileges", "-v", "state:/var/lib/pocketenv"];
    daemon.says(&[&arguments[..], &tied, &["-v", &mount, "-e", &cloud, "controller"]].concat());
}

/// The controller in the container, once it listens.
#[track_caller]
fn served(daemon: &Daemon, name: &str) -> Served {
    let served = Served(([127, 0, 0, 1], PORT).into());
    let deadline = Instant::now() + DEADLINE;
    loop {
        let running = daemon.says(&["inspect", "-f", "{{.State.Running}}", name]);
        let ready = served.http("GET", "/readyz", "", "").is_ok_and(|(code, _)| code == 200);
        if running == "true" && ready {
            return served;
        }
        let log = daemon.docker(&["logs", name]);
        let log = String::from_utf8_lossy(&log.stderr).into_owned();
        assert!(running == "true" && Instant::now() < deadline, "it does not serve: {log}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Counts in the store in the volume. Nobody may be at work on it.
fn counted(daemon: &Daemon, what: &str) -> i64 {
    let volume = daemon.says(&["volume", "inspect", "-f", "{{.Mountpoint}}", "state"]);
    let found = Command::new("find").args([&volume, "-name", "state.db*"]).output().unwrap();
    let copy = tempfile::tempdir().unwrap();
    for path in String::from_utf8(found.stdout).unwrap().lines().map(Path::new) {
        fs::copy(path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let store = rusqlite::Connection::open(copy.path().join("state.db")).unwrap();
    store.query_row(&format!("SELECT count(*) FROM {what}"), [], |row| row.get(0)).unwrap()
}

#[test]
fn the_container_is_stopped_and_killed_half_way_and_another_one_goes_on() {
    let Some(daemon) = Daemon::start() else { return };
    let Some(base) = debian() else { return };
    build(&daemon, &base);
    let mut forge = Forge::new();
    // So that there is a moment at which some are made and some are not.
    let sim = cloud(&mut forge, &["create.rate=3"]);
    forge.write("fleet/pocketenv.yaml", &chain("fleet", 8, 0));
    let first = forge.push();
    let config = forge.path("controller.yaml");
    let text = format!("version: 1\nretry: {{ initial: 1s, max: 2s }}\nsources:\n{}", forge.source(""));
    fs::write(&config, text).unwrap();
    let made = |wanted: usize| {
        let deadline = Instant::now() + DEADLINE;
        while count(&run(sim.inventory()), "created") < wanted {
            assert!(Instant::now() < deadline, "{wanted} are never made");
            std::thread::sleep(Duration::from_millis(15));
        }
        count(&run(sim.inventory()), "created")
    };

    start(&daemon, "one", &config, &sim);
    made(1);
    daemon.says(&["stop", "--time=60", "one"]);
    let ended = daemon.says(&["inspect", "-f", "{{.State.ExitCode}} {{.State.Running}}", "one"]);
    assert_eq!(ended, "0 false", "it exits by itself");
    let half = made(0);
    assert!(half < 8, "the stop came too late to show anything");
    assert_eq!(counted(&daemon, "sandboxes"), half as i64, "what was made is written down");

    daemon.says(&["start", "one"]);
    made(half + 1);
    daemon.says(&["kill", "one"]);
    assert!(made(0) < 8, "the kill came too late to show anything");
    daemon.says(&["rm", "one"]);
    start(&daemon, "two", &config, &sim);
    served(&daemon, "two").until_applied("fleet", &first);
    let inventory = run(sim.inventory());
    assert_eq!((count(&inventory, "created"), run(sim.names()).len()), (8, 8), "nothing is made twice");

    // It is nobody in particular, has no power, and can write to its volume only.
    assert_eq!(daemon.says(&["exec", "two", "id", "-u"]), "10001");
    let status = daemon.says(&["exec", "two", "cat", "/proc/1/status"]);
    for line in ["Uid:\t10001\t10001\t10001\t10001", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    for path in ["/new", "/etc/new", "/usr/local/bin/new"] {
        assert!(!daemon.docker(&["exec", "two", "touch", path]).status.success(), "{path} can be written");
    }

    // A third one on the same volume has nothing to do.
    daemon.says(&["stop", "--time=60", "two"]);
    assert_eq!(daemon.says(&["inspect", "-f", "{{.State.ExitCode}}", "two"]), "0");
    assert_eq!(counted(&daemon, "sandboxes"), 8);
    assert_eq!(counted(&daemon, "intents WHERE ended_at IS NULL"), 0, "nothing is left open");
    let settled = inventory["effects"].as_array().unwrap().len();
    start(&daemon, "three", &config, &sim);
    let controller = served(&daemon, "three");
    controller.until_applied("fleet", &first);
    let compared = controller.metric("pocketenv_reconcile_duration_seconds_count");
    controller.until("fleet", "it is compared again", |_| {
        controller.metric("pocketenv_reconcile_duration_seconds_count") > compared
    });
    assert_eq!(run(sim.inventory())["effects"].as_array().unwrap().len(), settled);
    assert_eq!(controller.metric("pocketenv_source_fetches_total") as u64, 0);
}
