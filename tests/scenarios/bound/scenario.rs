//! A secret that never enters the sandbox reaches the hosts that it is bound to, and nobody else, whatever is tried; its value changes while the
//! sandbox runs, and without it nothing goes out.

#[path = "outside.rs"]
mod outside;

use std::process::Command;

use pocketenv::engine::{Engine, EngineConfig};

use crate::scenarios::secrets::find;
use crate::scenarios::world::World;

use outside::{Outside, Seen};

const API: &str = "api-value-77a1c3f0";
const GIT: &str = "git-value-0d52be19";
const OLD: &str = "old-value-c4409a6e";
const PLACEHOLDER: &str = "pocketenv-bound-";

fn world(outside: &Outside) -> World {
    let mut world = World::scenario("bound");
    let proxy = format!("http://{}", outside.proxy);
    world.write("authority.pem", &outside.authority);
    let authority = world.project().join("authority.pem").display().to_string();
    for (name, value) in [
        ("API_KEY", API),
        ("GIT_TOKEN", GIT),
        ("OLD_KEY", OLD),
        ("https_proxy", &proxy),
        ("http_proxy", &proxy),
        ("SSL_CERT_FILE", &authority),
    ] {
        world.set(name, value);
    }
    world
}

/// The one request with this in its head.
#[track_caller]
fn one(outside: &Outside, text: &str) -> Seen {
    let mut seen = outside.with(text);
    assert_eq!(seen.len(), 1, "{text}: {seen:#?}");
    seen.remove(0)
}

/// No host but its own has ever seen a value.
#[track_caller]
fn assert_kept(outside: &Outside, more: &[(&str, &str)]) {
    let api = ["https://api.example.invalid", "https://a.wild.example.invalid"];
    for seen in outside.seen() {
        let text = format!("{}{}", seen.head, seen.body);
        for value in [API].iter().chain(more.iter().map(|(value, _)| value)) {
            assert!(!text.contains(value) || api.contains(&seen.of.as_str()), "{seen:?}");
        }
        assert!(!text.contains(GIT), "only within a login: {seen:?}");
        assert!(!text.contains(OLD) || seen.of == "http://old.example.invalid", "{seen:?}");
    }
}

#[test]
fn bound_secrets() {
    let outside = Outside::new();
    let mut world = world(&outside);
    world.apply();
    let worker = world.process("agent", "sleep 400077");

    // What every process inside sees, and what the host gets.
    let environment = worker.environment();
    let placeholder = world.sh("agent", "printf %s \"$API_KEY\"");
    assert!(
        placeholder.starts_with(PLACEHOLDER) && placeholder.len() == PLACEHOLDER.len() + 40,
        "{placeholder}"
    );
    for entry in [format!("API_KEY={placeholder}"), "SSL_CERT_FILE=/run/pocketenv-roots.pem".to_owned()] {
        assert!(environment.contains(&entry), "{entry}: {environment:#?}");
    }
    let curl = |world: &World, rest: &str| world.sh("agent", &format!("curl -sS -m 20 {rest}"));
    let get = |rest: &str| curl(&world, rest);
    let bearer = "-H \"Authorization: Bearer $API_KEY\"";
    assert_eq!(get(&format!("{bearer} https://api.example.invalid/curl")), "ok");
    let seen = one(&outside, "/curl");
    assert!(
        seen.head.contains(&format!("Bearer {API}\r\n")) && seen.of == "https://api.example.invalid",
        "{seen:?}"
    );
    assert_eq!(get(&format!("{bearer} https://a.wild.example.invalid:8443/wild")), "ok");
    assert!(one(&outside, "/wild").head.contains(API));
    assert_eq!(get("-H \"X-Key: $OLD\" http://old.example.invalid/plain"), "ok");
    assert!(one(&outside, "/plain").head.contains(OLD));
    assert_eq!(get("-X POST -d \"a body with $API_KEY\" https://api.example.invalid/body"), "ok");
    assert_eq!(one(&outside, "/body").body, format!("a body with {placeholder}"), "headers only");
    assert_eq!(get("https://api.example.invalid/chunked https://api.example.invalid/second"), "okok");
    assert!(get("-I https://api.example.invalid/head").contains("77"));
    assert_eq!(get("-H 'Transfer-Encoding: chunked' -d twice https://api.example.invalid/up"), "ok");
    assert_eq!(one(&outside, "/up").body, "twice");

    // Other programs believe the way out as well, by their own variables.
    world.sh(
        "agent",
        r#"/usr/bin/python3 - <<'END'
import os, urllib.request
request = urllib.request.Request("https://api.example.invalid/python", headers={"x-api-key": os.environ["API_KEY"]})
assert urllib.request.urlopen(request, timeout=20).read() == b"ok"
END"#,
    );
    assert!(one(&outside, "/python").head.contains(API));
    world.sh(
        "agent",
        r#"if command -v node > /dev/null; then node - <<'END'
const http = require("http"), https = require("https");
http.request({ port: 61080, host: "127.0.0.1", method: "CONNECT", path: "api.example.invalid:443" })
  .on("connect", (_, socket) => https.get({ host: "api.example.invalid", path: "/node", socket, agent: false,
    headers: { "x-api-key": process.env.API_KEY } }, (answer) => answer.resume()))
  .end();
END
else curl -sS -H "x-api-key: $API_KEY" https://api.example.invalid/node; fi"#,
    );
    assert!(one(&outside, "/node").head.contains(API));
    world.sh(
        "agent",
        "GIT_TERMINAL_PROMPT=0 git ls-remote \"https://me:$GIT_TOKEN@git.example.invalid/repository\" || true",
    );
    // `me:` and the value, as git writes them.
    let login = "bWU6Z2l0LXZhbHVlLTBkNTJiZTE5";
    let asked = outside.with("info/refs");
    assert!(asked.iter().any(|seen| seen.head.contains(&format!("Basic {login}"))), "{asked:#?}");
    assert!(outside.with(login).iter().all(|seen| seen.of == "https://git.example.invalid"), "{asked:#?}");

    // Nobody else gets it.
    get(&format!("{bearer} https://other.example.invalid/other -k"));
    assert!(one(&outside, "/other").head.contains(&placeholder), "as it is");
    get(&format!("{bearer} http://api.example.invalid/no-tls"));
    assert!(one(&outside, "/no-tls").head.contains(&placeholder), "without TLS it is another host");
    get(&format!("-k -L --location-trusted {bearer} https://api.example.invalid/redirect"));
    assert!(one(&outside, "/redirected").head.contains(&placeholder), "the client follows with what it has");
    get(&format!("-H \"X: $GIT_TOKEN\" {bearer} https://api.example.invalid/both"));
    let seen = one(&outside, "/both");
    assert!(seen.head.contains(API) && seen.head.contains(PLACEHOLDER), "{seen:?}");
    let refused = get(&format!("{bearer} https://bad.example.invalid/bad"));
    assert!(refused.contains("bad.example.invalid is not believed"), "{refused}");
    assert_kept(&outside, &[]);

    websocket(&world, &outside);
    what_is_no_plain_request_does_not_pass(&world, &outside);
    assert_kept(&outside, &[]);

    // It is nowhere inside, and nowhere on the host but in the memory of the shim. The pattern does not find itself.
    for value in [API, GIT, OLD] {
        let pattern = format!("{}[{}]", &value[..value.len() - 1], &value[value.len() - 1..]);
        let places =
            "/proc/[0-9]*/environ /proc/[0-9]*/cmdline /run /tmp /etc /root /home /var/lib /workspace";
        assert_eq!(world.sh("agent", &format!("grep -rls '{pattern}' {places} || true")), "", "{value}");
    }
    for verb in [
        &["plan", "-o", "json"][..],
        &["config"],
        &["status", "-o", "json"],
        &["describe"],
        &["events", "-o", "json"],
        &["egress", "agent", "-o", "json"],
    ] {
        world.run(verb);
    }
    let allowed = world.run(&["egress", "agent"]).ends(0).stdout;
    assert!(allowed.contains("api.example.invalid:443"), "{allowed}");
    for value in [API, GIT, OLD] {
        assert!(!world.printed().contains(value));
        let mut found = Vec::new();
        find(&world.home(), value.as_bytes(), &mut found);
        assert!(found.is_empty(), "on the disk: {found:?}");
        for process in world.processes() {
            assert!(!process.command.contains(value));
            // Of a process that is closed to inspection nobody reads it.
            let environment = std::fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
            assert!(!String::from_utf8_lossy(&environment).contains(value), "{process:?}");
        }
    }
    world.assert_converged();

    // Another value, while it runs.
    world.set("API_KEY", "api-value-rotated");
    let plan = world.assert_out_of_sync();
    assert!(plan.stdout.contains("secrets.API_KEY"), "{}", plan.stdout);
    world.apply();
    assert!(worker.lives(), "nothing is restarted");
    curl(&world, &format!("{bearer} https://api.example.invalid/rotated"));
    assert!(one(&outside, "/rotated").head.contains("Bearer api-value-rotated\r\n"));
    world.assert_converged();

    // Who starts it without the value opens no way out with it.
    world.run(&["stop", "agent"]).ends(0);
    let mut start = world.command(&[]);
    start.env("BOUND_START", world.id("agent"));
    world.unset("API_KEY");
    start_elsewhere(start);
    let bearer_of = format!("-H \"Authorization: Bearer {placeholder}\"");
    let refused = curl(&world, &format!("{bearer_of} https://api.example.invalid/lost"));
    assert!(refused.contains("`API_KEY` is not here") && refused.contains("pocketenv apply"), "{refused}");
    assert_eq!(outside.with("/lost").len(), 0);
    assert_eq!(curl(&world, "https://api.example.invalid/without"), "ok", "what needs no secret passes");
    let status = world.run(&["status"]).ends(0);
    assert!(!status.stdout.contains("Synced and Healthy"), "{}", status.stdout);
    world.set("API_KEY", "api-value-rotated");
    let plan = world.assert_out_of_sync();
    assert!(plan.stdout.contains("the value of secret `API_KEY`"), "{}", plan.stdout);
    world.apply();
    curl(&world, &format!("{bearer} https://api.example.invalid/found"));
    assert!(one(&outside, "/found").head.contains("api-value-rotated"));
    world.assert_converged();
    assert_kept(&outside, &[("api-value-rotated", "")]);
    world.destroy_and_see_nothing_left(&[]);
}

/// Runs `start_without_values` below in a process of its own, in the environment of the program.
fn start_elsewhere(program: Command) {
    let mut tests = Command::new(std::env::current_exe().unwrap());
    tests.args(["--ignored", "--exact", "scenarios::bound::start_without_values"]).env_clear();
    tests.env("POCKETENV_TEST_EXE", crate::scenarios::world::program());
    for (name, value) in program.get_envs() {
        tests.env(name, value.unwrap_or_default());
    }
    let output = tests.output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// The engine starts a sandbox for whoever asks, and has no values.
#[tokio::test]
#[ignore = "run by `bound_secrets`"]
async fn start_without_values() {
    let home = std::path::PathBuf::from(std::env::var_os("POCKETENV_HOME").unwrap());
    let (data_dir, runtime_dir) = (home.join("data"), home.join("run"));
    let exe = crate::scenarios::world::program();
    let engine = Engine::new(EngineConfig { data_dir, runtime_dir, exe });
    engine.start(&std::env::var("BOUND_START").unwrap()).await.unwrap();
}

fn websocket(world: &World, outside: &Outside) {
    let script = r#"
import os, socket, ssl
plain = socket.create_connection(("127.0.0.1", 61080), timeout=20)
plain.sendall(b"CONNECT api.example.invalid:443 HTTP/1.1\r\n\r\n")
assert b" 200 " in plain.recv(4096)
stream = ssl.create_default_context().wrap_socket(plain, server_hostname="api.example.invalid")
stream.sendall(("GET /ws HTTP/1.1\r\nHost: api.example.invalid\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nAuthorization: Bearer " + os.environ["API_KEY"] + "\r\n\r\n").encode())
head = b""
while b"\r\n\r\n" not in head: head += stream.recv(1)
assert head.startswith(b"HTTP/1.1 101 ") and b"close" not in head.lower(), head
stream.sendall(b"ping")
got = b""
while len(got) < 4: got += stream.recv(4)
print(got.decode())
"#;
    assert_eq!(world.sh("agent", &format!("/usr/bin/python3 - <<'END'\n{script}\nEND")), "ping");
    assert!(one(outside, "/ws").head.contains(API));
}

/// Sends requests as they stand, over TLS, and tells the status of each answer.
const RAW: &str = r#"
import os, socket, ssl, sys
key = os.environ["API_KEY"]
host = "Host: api.example.invalid\r\n"
auth = "Authorization: Bearer " + key + "\r\n"
cases = {
    "fine": (host + auth, "GET"),
    "two hosts": (host + "Host: other.example.invalid\r\n" + auth, "GET"),
    "no host": (auth, "GET"),
    "other host": ("Host: other.example.invalid\r\n" + auth, "GET"),
    "other port": ("Host: api.example.invalid:8443\r\n" + auth, "GET"),
    "folded": (host + "X: a\r\n b\r\n" + auth, "GET"),
    "space": ("Host : api.example.invalid\r\n" + auth, "GET"),
    "two lengths": (host + auth + "Content-Length: 0\r\nContent-Length: 5\r\n", "POST"),
    "odd length": (host + auth + "Content-Length: +0\r\n", "POST"),
    "other coding": (host + auth + "Transfer-Encoding: xchunked\r\n", "POST"),
    "coding after chunked": (host + auth + "Transfer-Encoding: chunked, identity\r\n", "POST"),
    "nul": (host + "X: a\0b\r\n" + auth, "GET"),
    "connection host": (host + "Connection: host\r\n" + auth, "GET"),
    "trace": (host + auth, "TRACE"),
    "large": (host + auth + "X: " + "a" * 100000 + "\r\n", "GET"),
    "other target": (host + auth, "GET https://other.example.invalid/"),
}
def tls(name):
    plain = socket.create_connection(("127.0.0.1", 61080), timeout=20)
    plain.sendall(b"CONNECT api.example.invalid:443 HTTP/1.1\r\n\r\n")
    assert b" 200 " in plain.recv(4096)
    context = ssl.create_default_context()
    context.check_hostname = False
    return context.wrap_socket(plain, server_hostname=name)
def status(stream):
    line = b""
    try:
        while not line.endswith(b"\r\n"):
            byte = stream.recv(1)
            if not byte: break
            line += byte
    except OSError: pass
    return line[9:12].decode() or "closed"
for name, (headers, method) in cases.items():
    stream = tls("api.example.invalid")
    start = method if " " in method else method + " /raw-" + name.replace(" ", "-")
    try: stream.sendall((start + " HTTP/1.1\r\n" + headers + "\r\n").encode())
    except OSError: pass
    print(name + ":", status(stream))
stream = tls("api.example.invalid")
stream.sendall((f"POST /both-framings HTTP/1.1\r\n{host}{auth}Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: other.example.invalid\r\n{auth}\r\n").encode())
print("both framings:", status(stream))
for name in ["other.example.invalid", None]:
    try: tls(name); print("sni", name)
    except OSError: print("sni refused")
plain = socket.create_connection(("127.0.0.1", 61080), timeout=20)
plain.sendall(b"CONNECT api.example.invalid:443 HTTP/1.1\r\n\r\n")
assert b" 200 " in plain.recv(4096)
plain.sendall(("GET /raw-no-tls HTTP/1.1\r\n" + host + auth + "\r\n").encode())
try: said = plain.recv(1)
except OSError: said = b""
print("no tls:", said)
"#;

fn what_is_no_plain_request_does_not_pass(world: &World, outside: &Outside) {
    let told = world.sh("agent", &format!("/usr/bin/python3 - <<'END'\n{RAW}\nEND"));
    let expected = "fine: 200
two hosts: 400
no host: 400
other host: 400
other port: 400
folded: 400
space: 400
two lengths: 400
odd length: 400
other coding: 400
coding after chunked: 400
nul: 400
connection host: 400
trace: 405
large: 431
other target: 400
both framings: 200
sni refused
sni refused
no tls: b''";
    assert_eq!(told, expected);
    assert_eq!(outside.with("/raw-").len(), 1, "only the fine one: {:#?}", outside.with("/raw-"));
    let seen = one(outside, "/both-framings");
    assert!(
        !seen.head.to_ascii_lowercase().contains("content-length"),
        "its one end is written anew: {seen:?}"
    );
    assert_eq!(outside.with("/smuggled").len(), 0, "what follows such a request is not read");
}
