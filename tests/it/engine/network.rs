use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use pocketenv::engine::{
    Attempt, BoxSpec, EgressHost, EgressRule, EngineError, Exit, Forward, Link, Network, Outcome, Port,
};

use super::support::{Fixture, Output, eventually, is_root, null, request};

/// Answers every connection with `text` as HTTP, for as long as the test runs.
fn serve(listener: TcpListener, text: &'static str) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request);
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
                    text.len()
                );
            });
        }
    });
}

fn host_service(text: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    serve(listener, text);
    port
}

pub(super) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn get(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text).filter(|text| !text.is_empty())
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

const SERVER: &str = "
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(sys.argv[2].encode())
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer((sys.argv[3], int(sys.argv[1])), Handler).serve_forever()
";

/// A server inside; nothing when the machine has no Python or curl.
async fn server(fixture: &Fixture, id: &str, port: u16, text: &str) -> bool {
    if fixture.sh(id, "test -x /usr/bin/python3 && command -v curl").await.exit != Exit::Code(0) {
        eprintln!("SKIPPED: /usr/bin/python3 and curl are needed inside");
        return false;
    }
    let port = port.to_string();
    let mut command = request(["setsid", "-f", "/usr/bin/python3", "-c", SERVER, &port, text, "127.0.0.1"]);
    command.cwd = Some("/".into());
    fixture.run(id, command).await.unwrap();
    eventually("the server inside listens", async || {
        fixture.engine.dial(id, port.parse().unwrap()).await.is_ok()
    })
    .await;
    true
}

async fn curl(fixture: &Fixture, id: &str, arguments: &str) -> Output {
    fixture.sh(id, &format!("curl -sS --max-time 5 {arguments}")).await
}

#[tokio::test]
async fn forwards_lead_inside_until_they_are_withdrawn() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    if !server(&fixture, "one", 8080, "inside").await {
        return;
    }
    let (first, second) = (free_port(), free_port());
    let forward = |port| Forward { listen: loopback(port), to: Port::Tcp(8080) };
    fixture.engine.set_forwards("one", &[forward(first), forward(second)]).await.unwrap();
    assert!(get(loopback(first)).unwrap().ends_with("inside"));
    assert!(get(loopback(second)).unwrap().ends_with("inside"));
    fixture.engine.set_forwards("one", &[forward(first)]).await.unwrap();
    assert_eq!(get(loopback(second)), None);
    assert!(get(loopback(first)).is_some());

    let busy = host_service("busy");
    let refused = fixture.engine.set_forwards("one", &[forward(first), forward(busy)]).await.unwrap_err();
    assert!(
        matches!(&refused, EngineError::Listen { address, .. } if address.contains(&busy.to_string())),
        "{refused:?}"
    );
    let forwards = fixture.engine.get("one").await.unwrap().unwrap().forwards;
    assert_eq!((forwards.len(), forwards[0].listening), (1, true));

    fixture
        .engine
        .set_forwards("one", &[Forward { listen: loopback(first), to: Port::Tcp(8081) }])
        .await
        .unwrap();
    assert_eq!(get(loopback(first)), None, "nothing listens on 8081 inside");
    fixture.engine.set_forwards("one", &[forward(first)]).await.unwrap();

    fixture.engine.stop("one", Duration::ZERO).await.unwrap();
    assert_eq!(get(loopback(first)), None);
    assert!(!fixture.engine.get("one").await.unwrap().unwrap().forwards[0].listening);
    fixture.engine.start("one").await.unwrap();
    assert!(server(&fixture, "one", 8080, "again").await);
    assert!(get(loopback(first)).unwrap().ends_with("again"));
    fixture.engine.delete("one").await.unwrap();
    assert!(TcpListener::bind(loopback(first)).is_ok(), "the port is free again");
}

#[tokio::test]
async fn links_lead_to_the_declared_address_only() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    let (wanted, other) = (host_service("wanted"), host_service("other"));
    let links = [Link { listen_port: 5432, host: pocketenv::engine::Outside::Tcp(loopback(wanted)) }];
    fixture.engine.set_links("one", &links).await.unwrap();
    assert_eq!(curl(&fixture, "one", "http://127.0.0.1:5432/").await.ok(), "wanted");
    assert_ne!(curl(&fixture, "one", &format!("http://127.0.0.1:{other}/")).await.exit, Exit::Code(0));
    fixture.engine.stop("one", Duration::ZERO).await.unwrap();
    fixture.engine.start("one").await.unwrap();
    assert_eq!(curl(&fixture, "one", "http://127.0.0.1:5432/").await.ok(), "wanted", "kept over a restart");
    fixture.engine.set_links("one", &[]).await.unwrap();
    assert_ne!(curl(&fixture, "one", "http://127.0.0.1:5432/").await.exit, Exit::Code(0));
}

#[tokio::test]
async fn an_isolated_sandbox_cannot_reach_the_host() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    let port = host_service("the host's secret");
    if fixture.sh("one", "command -v curl").await.exit != Exit::Code(0) {
        eprintln!("SKIPPED: curl is missing");
        return;
    }
    let hosts = [
        "127.0.0.1",
        "localhost",
        "127.1",
        "0.0.0.0",
        "0",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::]",
        "localhost.",
        "x.localhost",
    ];
    let proxy = "http://127.0.0.1:61080";
    for host in hosts {
        for way in [
            "--noproxy '*'",
            "",
            &format!("--noproxy '' -x {proxy}"),
            &format!("--noproxy '' -p -x {proxy}"),
            "--noproxy '' -x socks5h://127.0.0.1:61080",
            "--noproxy '' -x socks5://127.0.0.1:61080",
        ] {
            let output = curl(&fixture, "one", &format!("{way} 'http://{host}:{port}/'")).await;
            assert!(!output.text().contains("secret"), "{way} {host}");
        }
    }
    let refusal =
        curl(&fixture, "one", &format!("--noproxy '' -x {proxy} http://127.1.2.3:{port}/")).await.ok();
    assert!(refusal.contains("this machine"), "{refusal}");
    // every address the host has
    for address in nix::ifaddrs::getifaddrs().unwrap().filter_map(|i| Some(i.address?.as_sockaddr_in()?.ip()))
    {
        let output =
            curl(&fixture, "one", &format!("--noproxy '' -x {proxy} http://{address}:{port}/")).await;
        assert!(output.text().contains("this machine"), "{address}: {output:?}");
    }
    fixture.create("two").await;
    if server(&fixture, "two", 7777, "the other").await {
        assert_ne!(curl(&fixture, "one", "--noproxy '*' http://127.0.0.1:7777/").await.exit, Exit::Code(0));
    }
}

#[tokio::test]
async fn none_has_no_way_and_host_has_the_hosts() {
    let fixture = Fixture::new();
    let port = host_service("of the host");
    fixture.create_with("none", BoxSpec { network: Network::None, ..BoxSpec::default() }).await;
    assert_eq!(fixture.sh("none", "cat /proc/net/route | wc -l; env | grep -ci _proxy").await.text(), "1\n0");
    assert_ne!(curl(&fixture, "none", &format!("http://127.0.0.1:{port}/")).await.exit, Exit::Code(0));
    assert_ne!(
        curl(&fixture, "none", "http://127.0.0.1:61080/").await.exit,
        Exit::Code(0),
        "no proxy either"
    );
    fixture.create_with("host", BoxSpec { network: Network::Host, ..BoxSpec::default() }).await;
    assert_eq!(curl(&fixture, "host", &format!("http://127.0.0.1:{port}/")).await.ok(), "of the host");
}

/// A network beyond a virtual cable: the nearest thing to the outside that a test can make.
struct Outside {
    name: String,
    /// The machine at its far end.
    address: Ipv4Addr,
}

impl Outside {
    /// `number` tells the networks of tests that run at once apart.
    fn new(number: u8) -> Outside {
        let name = format!("pe{number}x{}", std::process::id());
        let (near, far) = (Ipv4Addr::new(10, 231, number, 1), Ipv4Addr::new(10, 231, number, 2));
        for command in [
            format!("netns add {name}"),
            format!("link add {name}h type veth peer name {name}n netns {name}"),
            format!("address add {near}/24 dev {name}h"),
            format!("link set {name}h up"),
            format!("-n {name} address add {far}/24 dev {name}n"),
            format!("-n {name} link set {name}n up"),
        ] {
            let status = Command::new("ip").args(command.split(' ')).status().unwrap();
            assert!(status.success(), "ip {command}");
        }
        Outside { name, address: far }
    }

    fn serve(&self, port: u16, text: &'static str) {
        serve(self.listen(port), text);
    }

    fn listen(&self, port: u16) -> TcpListener {
        let namespace = std::fs::File::open(format!("/run/netns/{}", self.name)).unwrap();
        let address = self.address;
        std::thread::spawn(move || {
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            TcpListener::bind((address, port)).unwrap()
        })
        .join()
        .unwrap()
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", &format!("{}h", self.name)]).status();
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

#[tokio::test]
async fn an_isolated_sandbox_reaches_the_outside_through_the_proxy() {
    if !is_root() || Command::new("ip").arg("-V").output().is_err() {
        eprintln!("SKIPPED: root and `ip` are needed to make an outside");
        return;
    }
    let outside = Outside::new(77);
    outside.serve(8080, "outside");
    let fixture = Fixture::new();
    fixture.create("one").await;
    let url = "http://10.231.77.2:8080/path?query";
    assert_eq!(curl(&fixture, "one", url).await.ok(), "outside", "by the default environment");
    assert_eq!(curl(&fixture, "one", &format!("-p {url}")).await.ok(), "outside", "by CONNECT");
    assert_eq!(
        curl(&fixture, "one", &format!("-x socks5h://127.0.0.1:61080 {url}")).await.ok(),
        "outside",
        "by SOCKS"
    );
    assert_ne!(
        curl(&fixture, "one", &format!("--noproxy '*' {url}")).await.exit,
        Exit::Code(0),
        "there is no other way"
    );
    // the host's own address on that cable is the host
    let own = host_on("10.231.77.1", "the host's secret");
    assert!(!curl(&fixture, "one", &format!("http://10.231.77.1:{own}/")).await.text().contains("secret"));
    assert!(
        curl(&fixture, "one", "http://10.231.77.2:8081/ -o /dev/null -w '%{http_code}'")
            .await
            .ok()
            .contains("502")
    );
}

fn host_on(address: &str, text: &'static str) -> u16 {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    serve(listener, text);
    port
}

/// A TLS client that goes through the proxy to one host and asks for another.
const TLS: &str = r#"
import socket, ssl, sys
stream = socket.create_connection(("127.0.0.1", 61080), timeout=10)
stream.sendall(f"CONNECT {sys.argv[1]} HTTP/1.1\r\n\r\n".encode())
assert b" 200 " in stream.recv(4096), "no tunnel"
context = ssl._create_unverified_context()
try:
    context.wrap_socket(stream, server_hostname=sys.argv[2] or None)
except OSError as error:
    print(type(error).__name__)
"#;

#[tokio::test]
async fn egress_is_denied_but_for_what_rules_allow() {
    if !is_root() || Command::new("ip").arg("-V").output().is_err() {
        eprintln!("SKIPPED: root and `ip` are needed to make an outside");
        return;
    }
    let outside = Outside::new(78);
    outside.serve(8080, "outside");
    outside.serve(9090, "elsewhere");
    let address = outside.address;
    // The resolver reads this form of the address, so it stands for a name without a name server.
    let name = format!("{:#010x}", u32::from(address));
    let fixture = Fixture::new();
    let network = |port| EgressRule {
        host: EgressHost::Network { address: address.into(), prefix: 32 },
        port: Some(port),
    };
    let named = EgressRule { host: EgressHost::Name(name.clone()), port: Some(8443) };
    let rules = vec![network(8080), network(7070), named];
    fixture.create_with("one", BoxSpec { egress: Some(rules.clone()), ..BoxSpec::default() }).await;

    assert_eq!(curl(&fixture, "one", &format!("http://{address}:8080/")).await.ok(), "outside");
    for way in ["", "-p", "-x socks5h://127.0.0.1:61080", "-x socks5://127.0.0.1:61080", "--noproxy '*'"] {
        let output = curl(&fixture, "one", &format!("{way} http://{address}:9090/")).await;
        assert!(!output.text().contains("elsewhere"), "{way}: {output:?}");
    }
    let refusal = curl(&fixture, "one", &format!("http://{address}:9090/")).await.ok();
    assert!(refusal.contains("network.allow"), "{refusal}");
    let refusal = curl(&fixture, "one", "http://example.invalid/").await.ok();
    assert!(refusal.contains("network.allow"), "a name that nothing allows is not even looked up: {refusal}");

    // TLS by an allowed name: for that name only.
    let tls = outside.listen(8443);
    tls.set_nonblocking(true).unwrap();
    let received = |what: &str, expected: bool| {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            match tls.accept() {
                Ok((mut stream, _)) => {
                    stream.set_nonblocking(false).unwrap();
                    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                    let mut bytes = [0; 3];
                    let got = stream.read(&mut bytes).unwrap_or(0) == 3 && bytes[..2] == [22, 3];
                    assert_eq!(got, expected, "{what}: {bytes:?}");
                    return;
                }
                Err(error) => assert!(std::time::Instant::now() < deadline, "{what}: {error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    for (asked, through) in [(name.as_str(), true), ("evil.example", false), ("", false)] {
        let target = format!("{name}:8443");
        let command = request(["/usr/bin/python3", "-c", TLS, &target, asked]);
        let mut client = fixture.start("one", command, null(), null(), null()).await.unwrap();
        received(asked, through);
        client.wait().await.unwrap();
    }

    // What was tried is told.
    let outcomes = async || fixture.engine.egress_attempts("one").await.unwrap();
    let has = |attempts: &[Attempt], host: &str, port: u16, outcome: fn(&Outcome) -> bool| {
        attempts.iter().any(|a| a.host == host && a.port == port && outcome(&a.outcome) && a.count > 0)
    };
    curl(&fixture, "one", "--noproxy '' -x http://127.0.0.1:61080 http://127.0.0.9:1/").await;
    eventually("the account is written", async || {
        let attempts = outcomes().await;
        has(&attempts, &address.to_string(), 8080, |o| *o == Outcome::Allowed)
            && has(&attempts, &address.to_string(), 9090, |o| *o == Outcome::Denied)
            && has(&attempts, "example.invalid", 80, |o| *o == Outcome::Denied)
            && has(&attempts, "evil.example", 8443, |o| *o == Outcome::Denied)
            && has(&attempts, "127.0.0.9", 1, |o| matches!(o, Outcome::Forbidden(_)))
    })
    .await;

    // A connection ends with the rule that allowed it.
    let held = outside.listen(7070);
    let mut open = TcpStream::from(fixture.engine.dial("one", 61080).await.unwrap());
    open.set_nonblocking(false).unwrap();
    open.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(open, "CONNECT {address}:7070 HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = [0; 256];
    let length = open.read(&mut answer).unwrap();
    assert!(String::from_utf8_lossy(&answer[..length]).contains(" 200 "));
    let _far = held.accept().unwrap();
    fixture.engine.set_egress("one", Some(&rules[..1])).await.unwrap();
    assert_eq!(open.read(&mut answer).unwrap_or(0), 0, "the connection is ended");
    assert_eq!(curl(&fixture, "one", &format!("http://{address}:8080/")).await.ok(), "outside");

    fixture.engine.stop("one", Duration::ZERO).await.unwrap();
    fixture.engine.start("one").await.unwrap();
    assert!(curl(&fixture, "one", &format!("http://{address}:7070/")).await.ok().contains("network.allow"));
    assert!(
        has(&outcomes().await, "evil.example", 8443, |o| *o == Outcome::Denied),
        "the account outlives a run"
    );
    fixture.engine.set_egress("one", None).await.unwrap();
    assert_eq!(curl(&fixture, "one", &format!("http://{address}:9090/")).await.ok(), "elsewhere");
}
