//! Forwards and links of UDP.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use pocketenv::engine::{EngineError, Exit, Forward, Link, Name, Outside, Port};

use super::network::free_port;
use super::support::{Fixture, eventually, processes_in, request};

/// Gives every datagram back, with a word before it.
const ECHO: &str = "
import os, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
s.bind((sys.argv[2], int(sys.argv[1])))
open('/run/echo.pid', 'w').write(str(os.getpid()))
while True:
    data, client = s.recvfrom(1 << 16)
    s.sendto(data if len(data) > 60000 else sys.argv[3].encode() + data, client)
";

/// A service inside; nothing when the machine has no Python.
async fn serve(fixture: &Fixture, id: &str, port: u16, word: &str) -> bool {
    if fixture.sh(id, "test -x /usr/bin/python3").await.exit != Exit::Code(0) {
        eprintln!("SKIPPED: /usr/bin/python3 is needed inside");
        return false;
    }
    let (number, at) = (port.to_string(), "127.0.0.1");
    let command = request(["setsid", "-f", "/usr/bin/python3", "-c", ECHO, &number, at, word]);
    fixture.run(id, command).await.unwrap();
    // A row of the kernel's table with this local port.
    let look = format!("grep -q ':{port:04X} 00000000:0000' /proc/net/udp");
    eventually("the service listens", async || fixture.sh(id, &look).await.exit == Exit::Code(0)).await;
    true
}

fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    (address.into(), port).into()
}

fn loopback(port: u16) -> SocketAddr {
    at(Ipv4Addr::LOCALHOST, port)
}

fn udp(listen: u16, port: u16) -> Forward {
    Forward { listen: loopback(listen), to: Port::Udp(port) }
}

/// A client with a socket of its own, which takes answers from there only.
fn client(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

fn answer(client: &UdpSocket) -> String {
    let mut buffer = [0; 2048];
    let length = client.recv(&mut buffer).expect("an answer");
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

fn ask(client: &UdpSocket, text: &str) -> String {
    client.send(text.as_bytes()).unwrap();
    answer(client)
}

/// Whether nobody answers; a port where nobody listens says so at once.
fn is_silent(to: SocketAddr) -> bool {
    let client = client(to);
    client.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let _ = client.send(b"anybody");
    client.recv(&mut [0; 64]).is_err()
}

#[tokio::test]
async fn datagrams_reach_the_service_and_answers_their_client() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    if !serve(&fixture, "one", 5300, "re:").await {
        return;
    }
    let port = free_port();
    fixture.engine.set_forwards("one", &[udp(port, 5300)]).await.unwrap();
    // Many at once: all have asked before the first one reads.
    let clients: Vec<UdpSocket> = (0..100).map(|_| client(loopback(port))).collect();
    for round in 0..3 {
        for (number, client) in clients.iter().enumerate() {
            client.send(format!("{round}/{number}").as_bytes()).unwrap();
        }
        for (number, client) in clients.iter().enumerate() {
            assert_eq!(answer(client), format!("re:{round}/{number}"));
        }
    }
    // In their order.
    let client = &clients[0];
    for window in 0..20 {
        for number in 0..10 {
            client.send(format!("{}", window * 10 + number).as_bytes()).unwrap();
        }
        for number in 0..10 {
            assert_eq!(answer(client), format!("re:{}", window * 10 + number));
        }
    }
    // The longest there can be, and the shortest.
    let long: Vec<u8> = (0..65_507_u32).map(|n| n as u8).collect();
    client.send(&long).unwrap();
    let mut buffer = vec![0; 70_000];
    let length = client.recv(&mut buffer).unwrap();
    assert!(buffer[..length] == long, "{length} bytes came back");
    assert_eq!(ask(client, ""), "re:");
}

#[tokio::test]
async fn a_service_that_begins_again_is_found_by_the_same_client() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    if !serve(&fixture, "one", 5300, "first:").await {
        return;
    }
    let port = free_port();
    fixture.engine.set_forwards("one", &[udp(port, 5300)]).await.unwrap();
    let client = client(loopback(port));
    assert_eq!(ask(&client, "a"), "first:a");
    let ended =
        "kill $(cat /run/echo.pid); while kill -0 $(cat /run/echo.pid) 2>/dev/null; do sleep 0.01; done";
    assert_eq!(fixture.sh("one", ended).await.exit, Exit::Code(0));
    for _ in 0..3 {
        client.send(b"nobody is there").unwrap();
    }
    assert!(serve(&fixture, "one", 5300, "second:").await);
    assert_eq!(ask(&client, "b"), "second:b");
}

#[tokio::test]
async fn a_flood_of_clients_is_bounded() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    if !serve(&fixture, "one", 5300, "re:").await {
        return;
    }
    let port = free_port();
    fixture.engine.set_forwards("one", &[udp(port, 5300)]).await.unwrap();
    let early = client(loopback(port));
    assert_eq!(ask(&early, "x"), "re:x");
    for number in 0..2000 {
        let client = client(loopback(port));
        let text = number.to_string();
        assert_eq!(ask(&client, &text), format!("re:{text}"));
    }
    // The sockets of the shim are in the sandbox's namespace, so its table counts them.
    let count = "grep -c ':14B4 01 ' /proc/net/udp";
    eventually("as many as may be are left", async || {
        let open: usize = fixture.sh("one", count).await.text().parse().unwrap();
        assert!(open <= 600, "{open} sockets");
        open <= 513
    })
    .await;
    let descriptors = |pid: &i32| std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    let most = processes_in(&fixture.box_dir("one")).iter().map(descriptors).max().unwrap();
    assert!(most < 600, "{most} descriptors");
    assert_eq!(ask(&early, "y"), "re:y", "who had to make room is served again");

    fixture.engine.set_forwards("one", &[]).await.unwrap();
    let gone = count;
    eventually("all are closed", async || fixture.sh("one", gone).await.text() == "0").await;
    UdpSocket::bind(loopback(port)).expect("the port is free again");
}

#[tokio::test]
async fn forwards_change_while_it_runs_and_outlive_a_stop() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    if !serve(&fixture, "one", 5300, "re:").await || !serve(&fixture, "one", 5301, "other:").await {
        return;
    }
    let (port, second) = (free_port(), free_port());
    // One number can stand for both; each is told and taken away by itself.
    let tcp = Forward { listen: loopback(port), to: Port::Tcp(5300) };
    fixture.engine.set_forwards("one", &[tcp, udp(port, 5300)]).await.unwrap();
    let held = client(loopback(port));
    assert_eq!(ask(&held, "a"), "re:a");
    let listening = async || {
        let mut forwards = fixture.engine.get("one").await.unwrap().unwrap().forwards;
        forwards.sort_by_key(|forward| forward.to.protocol());
        forwards.iter().map(|forward| (forward.to, forward.listening)).collect::<Vec<_>>()
    };
    assert_eq!(listening().await, [(Port::Tcp(5300), true), (Port::Udp(5300), true)]);
    fixture.engine.set_forwards("one", &[udp(port, 5300)]).await.unwrap();
    assert!(std::net::TcpListener::bind(loopback(port)).is_ok(), "the port of TCP is free again");
    assert_eq!(ask(&held, "b"), "re:b");

    let busy = UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken = busy.local_addr().unwrap().port();
    let refused = fixture.engine.set_forwards("one", &[udp(taken, 5300)]).await.unwrap_err();
    assert!(
        matches!(&refused, EngineError::Listen { address, .. } if address.contains(&format!("{taken} (udp)"))),
        "{refused:?}"
    );
    assert_eq!(ask(&held, "c"), "re:c", "nothing was changed");

    fixture.engine.set_forwards("one", &[udp(port, 5301)]).await.unwrap();
    assert_eq!(ask(&held, "d"), "other:d", "also for whom there was a socket");
    fixture.engine.set_forwards("one", &[udp(port, 5300), udp(second, 5301)]).await.unwrap();
    fixture.engine.stop("one", Duration::ZERO).await.unwrap();
    assert!(is_silent(loopback(port)));
    assert_eq!(listening().await, [(Port::Udp(5300), false), (Port::Udp(5301), false)]);
    fixture.engine.start("one").await.unwrap();
    assert!(serve(&fixture, "one", 5300, "again:").await);
    assert_eq!(ask(&client(loopback(port)), "e"), "again:e");
    fixture.engine.delete("one").await.unwrap();
    UdpSocket::bind(loopback(port)).expect("the port is free again");
}

#[tokio::test]
async fn only_the_address_that_is_asked_for_is_open() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    if !serve(&fixture, "one", 5300, "re:").await {
        return;
    }
    let (port, open) = (free_port(), free_port());
    let everywhere = Forward { listen: at(Ipv4Addr::UNSPECIFIED, open), to: Port::Udp(5300) };
    fixture.engine.set_forwards("one", &[udp(port, 5300), everywhere]).await.unwrap();
    let other = Ipv4Addr::new(127, 0, 0, 2);
    assert_eq!(ask(&client(loopback(port)), "a"), "re:a");
    assert!(is_silent(at(other, port)));
    for address in [Ipv4Addr::LOCALHOST, other] {
        assert_eq!(ask(&client(at(address, open)), "b"), "re:b", "the answer is from {address}");
    }
}

#[tokio::test]
async fn links_and_names_carry_datagrams() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    fixture.create("two").await;
    if !serve(&fixture, "one", 5300, "re:").await {
        return;
    }
    let port = free_port();
    fixture.engine.set_forwards("one", &[udp(port, 5300)]).await.unwrap();
    let host = Outside::Udp(loopback(port));
    let name = Name { name: "one".to_owned(), port: 5300, host };
    fixture.engine.set_links("two", &[Link { listen_port: port, host }]).await.unwrap();
    fixture.engine.set_names("two", &[name]).await.unwrap();
    let python = "import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(10)
s.connect((sys.argv[1], int(sys.argv[2])))
s.send(b'hello')
print(s.recv(64).decode())";
    for (host, port) in [("127.0.0.1", port), ("one", 5300)] {
        let command = request(["/usr/bin/python3", "-c", python, host, &port.to_string()]);
        assert_eq!(fixture.run("two", command).await.unwrap().ok(), "re:hello", "by {host}");
    }
    fixture.engine.set_links("two", &[]).await.unwrap();
    let command = request(["/usr/bin/python3", "-c", python, "127.0.0.1", &port.to_string()]);
    assert_ne!(fixture.run("two", command).await.unwrap().exit, Exit::Code(0), "the link is gone");
}
