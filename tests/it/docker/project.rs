//! A whole project with `--provider docker`, through the program.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::support::{Daemon, IMAGE};

const SECRET: &str = "s3cr3t-4nd-l0ng";

/// GET of a page on a port of this machine; `None` if nothing answers.
fn get(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer.split_once("\r\n\r\n")?.1.trim_end().to_owned())
}

fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

#[test]
fn a_project_is_applied_kept_and_destroyed() {
    let Some(daemon) = Daemon::start() else { return };
    let port = free_port();
    let dir = daemon.dir.path().join("project");
    fs::create_dir(&dir).unwrap();
    let file = dir.join("pocketenv.yaml");
    let manifest = |page: &str| {
        format!(
            r#"version: 1
name: shop
secrets: {{ TOKEN: {{ env: TOKEN }}, CERT: {{ env: TOKEN }} }}
volumes: {{ data: {{}} }}
sandboxes:
  hello:
    image: {IMAGE}
    hostname: front
    secrets: {{ TOKEN: {{}}, CERT: {{ as_file: /run/secrets/cert }} }}
    resources: {{ cpu: 1.5, memory: 128MiB }}
    volumes: [ {{ name: data, path: /data }} ]
    files:
      - {{ path: /srv/www/index.html, content: "{page}" }}
    services:
      web:
        command: exec httpd -f -p "$PORT" -h /srv/www
        env: {{ PORT: "8000" }}
        healthcheck: {{ http: {{ port: 8000, path: /index.html }}, interval: 1s, timeout: 1s, start_period: 10s }}
    ports:
      - {{ port: 8000, host_port: {port}, protocol: http }}
  other:
    image: {IMAGE}
    depends_on: {{ hello: {{ condition: healthy }} }}
    env: {{ HELLO: "http://{{{{ sandboxes.hello.ports.8000.host }}}}:{{{{ sandboxes.hello.ports.8000.port }}}}/index.html" }}
"#
        )
    };
    fs::write(&file, manifest("one")).unwrap();
    let file = file.to_str().unwrap();
    let env = [("TOKEN", SECRET)];
    let with = |verb: &[&str]| -> Vec<String> {
        let rest = ["-f", file, "--provider", "docker"].map(str::to_owned);
        verb.iter()
            .map(|word| (*word).to_owned())
            .take(1)
            .chain(rest)
            .chain(verb.iter().skip(1).map(|w| (*w).to_owned()))
            .collect()
    };
    let run = |verb: &[&str], code: i32| {
        let args = with(verb);
        daemon.runs(&args.iter().map(String::as_str).collect::<Vec<_>>(), &env, code)
    };
    let container = |name: &str| {
        let label = format!("label=pocketenv.io/resource=sandbox/{name}");
        daemon.says(&["ps", "-a", "--filter", &label, "--format", "{{.Names}}"])
    };
    let settled = || run(&["plan", "--detailed-exitcode"], 0);

    let begun = Instant::now();
    run(&["apply", "--yes"], 0);
    eprintln!("apply of two sandboxes: {:?}", begun.elapsed());
    settled();
    assert_eq!(get(port).as_deref(), Some("one"));
    let fetched =
        run(&["exec", "other", "--", "sh", "-c", "wget -q -O- \"$HELLO\"; echo; echo \"$HELLO\""], 0);
    assert_eq!(fetched, format!("one\nhttp://127.0.0.1:{port}/index.html"));
    let by_name = run(&["exec", "other", "--", "wget", "-q", "-O-", "http://hello:8000/index.html"], 0);
    assert_eq!(by_name, "one");
    assert_eq!(
        run(&["exec", "hello", "--", "sh", "-c", "hostname; echo \"$TOKEN\"; cat /run/secrets/cert"], 0),
        format!("front\n{SECRET}\n{SECRET}")
    );
    let begun = Instant::now();
    run(&["exec", "other", "--", "true"], 0);
    eprintln!("exec: {:?}", begun.elapsed());

    // Nothing secret is to be seen from outside, nor on the daemon's disk.
    let names = [container("hello"), container("other")];
    let inspected = daemon.says(&["inspect", &names[0], &names[1]]);
    assert!(inspected.contains("pocketenv.io/owner") && !inspected.contains(SECRET));
    let found = std::process::Command::new("grep")
        .args(["-r", "-l", "-a", "-s", SECRET])
        .arg(daemon.dir.path())
        .stdout(Stdio::piped())
        .output();
    assert_eq!(String::from_utf8_lossy(&found.unwrap().stdout), "");

    // Drift: killed, removed, stopped by hand.
    run(&["exec", "hello", "--", "sh", "-c", "echo kept > /var/tmp/kept; echo kept > /data/kept"], 0);
    daemon.says(&["kill", &names[0]]);
    assert_eq!(get(port), None);
    run(&["plan", "--detailed-exitcode"], 2);
    run(&["apply", "--yes"], 0);
    settled();
    assert_eq!(get(port).as_deref(), Some("one"));
    assert_eq!(run(&["exec", "hello", "--", "cat", "/var/tmp/kept"], 0), "kept");
    daemon.says(&["rm", "-f", &names[0]]);
    run(&["apply", "--yes"], 0);
    settled();
    assert_eq!(get(port).as_deref(), Some("one"));
    assert_eq!(run(&["exec", "hello", "--", "cat", "/data/kept"], 0), "kept");
    assert_eq!(run(&["exec", "other", "--", "sh", "-c", "wget -q -O- \"$HELLO\""], 0), "one");
    daemon.says(&["stop", &names[1]]);
    run(&["apply", "--yes"], 0);
    settled();

    // A changed file, and a limit, without a new container.
    let before = daemon.says(&["inspect", "-f", "{{.Id}} {{.State.Pid}}", &container("hello")]);
    fs::write(file, manifest("two").replace("128MiB", "256MiB")).unwrap();
    run(&["apply", "--yes"], 0);
    settled();
    assert_eq!(get(port).as_deref(), Some("two"));
    assert_eq!(daemon.says(&["inspect", "-f", "{{.Id}} {{.State.Pid}}", &container("hello")]), before);
    assert_eq!(
        daemon.says(&["inspect", "-f", "{{.HostConfig.Memory}}", &container("hello")]),
        (256 << 20).to_string()
    );

    // The whole store is lost: everything is adopted, nothing is made twice.
    let inventory = |what: &str| -> Vec<String> {
        daemon.inventory().into_iter().filter(|name| name.starts_with(what)).collect()
    };
    let containers = inventory("container");
    fs::remove_dir_all(daemon.dir.path().join("home")).unwrap();
    run(&["apply", "--yes"], 0);
    settled();
    assert_eq!(inventory("container"), containers);
    assert_eq!(daemon.says(&["inspect", "-f", "{{.Id}} {{.State.Pid}}", &container("hello")]), before);

    // A command ends with whoever runs it.
    let args = with(&["exec", "other", "--", "sleep", "4321"]);
    let sleeps = || daemon.says(&["exec", &container("other"), "ps"]).contains("sleep 4321");
    let program =
        std::env::var_os("POCKETENV_TEST_EXE").unwrap_or_else(|| env!("CARGO_BIN_EXE_pocketenv").into());
    let mut exec = std::process::Command::new(program);
    exec.args(&args)
        .envs(env)
        .env("POCKETENV_HOME", daemon.dir.path().join("home"))
        .env("DOCKER_HOST", daemon.host());
    let mut exec = exec.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while !sleeps() {
        assert!(begun.elapsed() < Duration::from_secs(20), "it never ran");
        std::thread::sleep(Duration::from_millis(50));
    }
    std::process::Command::new("kill").args(["-s", "INT", &exec.id().to_string()]).status().unwrap();
    exec.wait().unwrap();
    assert!(!sleeps(), "it still runs");

    run(&["destroy", "--yes"], 0);
    assert_eq!(daemon.inventory(), ["volume pocketenv.shop.data"]);
    run(&["destroy", "--yes", "--volumes"], 0);
    assert_eq!(daemon.inventory(), Vec::<String>::new());
}

#[test]
fn what_docker_cannot_do_is_refused_at_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pocketenv.yaml");
    let text = "version: 1\nname: no\ndefaults: { provider: docker }\nsandboxes:\n  a: {}\n  b: { image: host }\n  c:\n    image: x\n    resources: { disk: 1GiB }\n    network: { egress: deny, allow: [ example.com ] }\n    lifecycle: { ttl: 1h }\n    ports: [ { port: 80, public: true } ]\n";
    fs::write(&file, text).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_pocketenv"));
    command.args(["validate", "-f"]).arg(&file).env("POCKETENV_HOME", dir.path());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    for line in [5, 6, 9, 10, 11, 12] {
        assert!(said.contains(&format!("pocketenv.yaml:{line}:")), "line {line} is not in {said}");
    }
}
