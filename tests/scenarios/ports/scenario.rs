//! A port of the host that somebody else has is named, with the line, and nothing half-made is claimed to work.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use crate::scenarios::world::{World, eventually, free_port, http_get};

const ASK: &str = "import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(10)
s.connect((sys.argv[1], int(sys.argv[2])))
s.send(b'hello')
print(s.recv(64).decode())";

/// What comes back for a datagram, if anything does.
fn ask(at: SocketAddr, text: &str) -> Option<String> {
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(at).unwrap();
    client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut answer = [0; 64];
    client.send(text.as_bytes()).ok()?;
    let length = client.recv(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer[..length]).into_owned())
}

#[test]
fn a_taken_port() {
    let world = World::scenario("ports");
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap().port();
    world.edit("pocketenv.yaml", "18099", &taken.to_string());

    let failed = world.run(&["apply", "--yes"]);
    assert!([1, 4].contains(&failed.code), "{failed:?}");
    assert!(failed.stderr.contains(&taken.to_string()), "the port is named: {}", failed.stderr);
    assert_ne!(world.status("sandbox/box/port/8000")["health"], "Healthy");
    assert_ne!(world.status("sandbox/box")["health"], "Healthy");

    // the other goes away: apply mends it
    drop(other);
    world.apply();
    let address = ([127, 0, 0, 1], taken).into();
    assert_eq!(http_get(address, "/").unwrap().0, 200);

    // another port: only the forward changes
    let web = world.process("box", "python3 -m http.server");
    let port = free_port();
    world.edit("pocketenv.yaml", &format!("host_port: {taken}"), &format!("host_port: {port}"));
    world.apply();
    let moved = ([127, 0, 0, 1], port).into();
    assert_eq!(http_get(moved, "/").unwrap().0, 200);
    assert!(http_get(address, "/").is_err(), "the old one is closed");
    assert!(web.lives());

    // chosen for us: once, and kept over a restart
    world.edit("pocketenv.yaml", &format!(", host_port: {port}"), "");
    world.apply();
    let chosen = world.endpoint("box", 8000);
    assert_eq!(http_get(chosen, "/").unwrap().0, 200);
    world.run(&["restart", "box"]).ends(0);
    assert_eq!(world.endpoint("box", 8000), chosen);
    assert_eq!(http_get(chosen, "/").unwrap().0, 200);

    // for everybody who reaches the machine, and for its own programs again
    let elsewhere = |at: SocketAddr| SocketAddr::from(([127, 0, 0, 2], at.port()));
    assert!(http_get(elsewhere(chosen), "/").is_err());
    world.edit("pocketenv.yaml", "- { port: 8000 }", "- { port: 8000, host_ip: 0.0.0.0 }");
    world.apply();
    assert_eq!(http_get(elsewhere(chosen), "/").unwrap().0, 200);
    world.edit("pocketenv.yaml", ", host_ip: 0.0.0.0", "");
    world.apply();
    assert_eq!(http_get(chosen, "/").unwrap().0, 200);
    assert!(http_get(elsewhere(chosen), "/").is_err());
    world.assert_converged();

    // datagrams: from here, and from another sandbox by the name and by the template
    let at = world.endpoint("box", 5300);
    assert_eq!(world.status("sandbox/box/port/5300")["protocol"], "udp");
    let listed = world.run(&["ports"]).text();
    assert!(listed.contains(&format!("{at}/udp")), "{listed}");
    eventually("the service answers", || ask(at, "hello").is_some_and(|answer| answer == "re:hello"));
    for host in ["box 5300", "127.0.0.1 $ECHO"] {
        assert_eq!(
            world.sh("client", &format!("python3 -c \"$1\" {host}").replace("$1", ASK)),
            "re:hello",
            "{host}"
        );
    }
    world.edit("pocketenv.yaml", "      - { port: 5300, protocol: udp }\n", "");
    world.edit("pocketenv.yaml", ", env: { ECHO: \"{{ sandboxes.box.ports.5300.port }}\" }", "");
    world.apply();
    assert_eq!(ask(at, "hello"), None, "it is closed");
    world.assert_converged();
    world.destroy_and_see_nothing_left(&[moved]);
}
