//! `egress: deny`: a published port is reached, and nothing gets out.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command as Program;
use std::time::{Duration, Instant};

use pocketenv::model::{Egress, LinkSpec, NetworkMode, NetworkSpec, PortRef, PortSpec, SandboxSpec};
use pocketenv::provider::{Command, Guest, ProviderError, capture};

use super::support::{Daemon, identity, next, spec};

/// A service at an address of this machine that lies in no network of a container: to them it is outside.
struct Outside {
    address: Ipv4Addr,
    port: u16,
}

impl Outside {
    fn start() -> Self {
        let address = Ipv4Addr::new(192, 0, 2, 1 + (std::process::id() % 250) as u8);
        let added = Program::new("ip").args(["addr", "add", &format!("{address}/32"), "dev", "lo"]).status();
        assert!(added.unwrap().success());
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for mut connection in listener.incoming().flatten() {
                let _ = connection.write_all(b"outside\n");
            }
        });
        Self { address, port }
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ =
            Program::new("ip").args(["addr", "del", &format!("{}/32", self.address), "dev", "lo"]).status();
    }
}

async fn says(guest: &dyn Guest, text: &str) -> String {
    let output = capture(guest, &Command::new(["sh", "-c", text]), &[], 1 << 16).await.unwrap();
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

fn get(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"GET /page HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer.split_once("\r\n\r\n")?.1.trim_end().to_owned())
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

fn shut() -> SandboxSpec {
    let network = NetworkSpec { egress: Some(Egress::Deny), ..NetworkSpec::default() };
    SandboxSpec { network, ..spec() }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_gets_out_and_ports_are_published_all_the_same() {
    let Some(daemon) = Daemon::start() else { return };
    let outside = Outside::start();
    let reach =
        format!("nc -w 3 {} {} </dev/null 2>/dev/null || echo nothing", outside.address, outside.port);
    let provider = daemon.provider().await;
    let open = provider.create(&spec(), &identity("open", &spec())).await.unwrap();
    assert_eq!(says(&*provider.guest(&open).await.unwrap(), &reach).await, "outside");

    let port = free_port();
    let mut wanted = shut();
    wanted.ports.insert(8000, PortSpec { host_port: Some(port), ..PortSpec::default() });
    let named = identity("web", &wanted);
    let id = provider.create(&wanted, &named).await.unwrap();
    let seen = provider.get(&id).await.unwrap().unwrap();
    assert_eq!(seen.spec.as_ref(), Some(&wanted));
    let guest = provider.guest(&id).await.unwrap();
    assert_eq!(says(&*guest, &reach).await, "nothing");
    let served = async || {
        let guest = provider.guest(&id).await.unwrap();
        says(&*guest, "mkdir -p /srv; echo page > /srv/page; httpd -p 8000 -h /srv").await;
        let begun = Instant::now();
        while get(port).as_deref() != Some("page") {
            assert!(begun.elapsed() < Duration::from_secs(10), "the port is not reached");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    served().await;
    // Root inside cannot make a way out, by routes or by hand; and names outside are not asked for by the daemon.
    assert_eq!(
        says(&*guest, "ip route add default dev eth0 2>/dev/null && echo routed || echo no").await,
        "no"
    );
    assert_eq!(says(&*guest, "ping -c 1 -W 1 127.0.0.1 >/dev/null 2>&1 && echo raw || echo no").await, "no");
    assert_eq!(daemon.says(&["inspect", "-f", "{{.HostConfig.Dns}}", &id.0]), "[127.0.0.1]");

    // Whoever starts it again.
    daemon.says(&["restart", "-t", "3", &id.0]);
    let guest = provider.guest(&id).await.unwrap();
    assert_eq!(says(&*guest, &reach).await, "nothing");
    served().await;

    // Those of a kind reach each other; across, a link is refused.
    let to = PortRef { sandbox: "web".to_owned(), port: 8000 };
    let links = || [LinkSpec { to: to.clone(), host_port: port, udp: false }].into();
    let linked = SandboxSpec { links: links(), ..shut() };
    let second = provider.create(&linked, &identity("second", &linked)).await.unwrap();
    let fetch = format!("wget -q -O - http://127.0.0.1:{port}/page");
    assert_eq!(says(&*provider.guest(&second).await.unwrap(), &fetch).await, "page");
    let across = SandboxSpec { links: links(), ..spec() };
    let refused = |error: ProviderError| {
        let told = matches!(&error, ProviderError::Invalid { message } if message.contains("`web`"));
        assert!(told && error.to_string().contains("egress"), "{error}");
    };
    refused(provider.create(&across, &identity("across", &across)).await.unwrap_err());
    refused(provider.update(&open, &across, &next(&identity("open", &spec()), &across)).await.unwrap_err());

    // It is part of what a container is, and read back from where it really is.
    let opened = SandboxSpec { network: NetworkSpec::default(), ..wanted.clone() };
    let changed = provider.update(&id, &opened, &next(&named, &opened)).await;
    assert!(matches!(changed, Err(ProviderError::Unsupported { .. })), "{changed:?}");
    let mut host = shut();
    host.network.mode = NetworkMode::Host;
    let refused = provider.create(&host, &identity("host", &host)).await;
    assert!(matches!(refused, Err(ProviderError::Invalid { .. })), "{refused:?}");

    for id in [&second, &id, &open] {
        provider.delete(id).await.unwrap();
    }
    assert_eq!(daemon.inventory(), Vec::<String>::new());
}

/// A network of the name that leads out is none, whoever left it.
#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_leads_out_is_not_taken_for_a_shut_one() {
    let Some(daemon) = Daemon::start() else { return };
    let provider = daemon.provider().await;
    let label = "--label=pocketenv.io/managed-by=pocketenv";
    daemon.says(&["network", "create", label, "pocketenv.it.shut"]);
    let id = provider.create(&shut(), &identity("web", &shut())).await.unwrap();
    let route = says(&*provider.guest(&id).await.unwrap(), "ip route | grep default").await;
    let bridge =
        daemon.says(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "pocketenv.it.shut"]);
    assert!(
        route.starts_with("default via ") && !route.contains(&format!("via {bridge} ")),
        "{route}, {bridge}"
    );
    // Whoever moved it by hand has made something else of it.
    daemon.says(&["network", "create", label, "pocketenv.it"]);
    daemon.says(&["network", "connect", "pocketenv.it", &id.0]);
    let seen = provider.get(&id).await.unwrap().unwrap();
    assert_ne!(seen.spec.as_ref(), Some(&shut()), "a second network may lead out");
    provider.delete(&id).await.unwrap();
    assert_eq!(daemon.inventory(), Vec::<String>::new());
}
