//! Unix sockets of the host that lead inside.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pocketenv::engine::{BoxState, EngineError, Exit, Socket, SocketTarget};

use super::support::{Fixture, eventually, processes_in, request};

/// Answers at a path or port, when the client has said all, with a word and what it said.
const SERVER: &str = "
import os, socket, sys, threading
where = sys.argv[1]
if where.startswith('/'):
    s = socket.socket(socket.AF_UNIX)
    s.bind(where)
else:
    s = socket.socket()
    s.bind(('127.0.0.1', int(where)))
s.listen(64)
open('/run/ready.' + sys.argv[2], 'w')
def serve(c):
    c.sendall(b'hello ')
    said = b''
    while True:
        part = c.recv(65536)
        if not part: break
        said += part
    c.sendall(sys.argv[2].encode() + said)
    c.close()
while True:
    threading.Thread(target=serve, args=(s.accept()[0],)).start()
";

async fn serve(fixture: &Fixture, at: &str, word: &str) -> bool {
    if fixture.sh("one", "test -x /usr/bin/python3").await.exit != Exit::Code(0) {
        eprintln!("SKIPPED: /usr/bin/python3 is needed inside");
        return false;
    }
    fixture.run("one", request(["setsid", "-f", "/usr/bin/python3", "-c", SERVER, at, word])).await.unwrap();
    let ready = format!("test -e /run/ready.{word}");
    eventually("the service listens", async || fixture.sh("one", &ready).await.exit == Exit::Code(0)).await;
    true
}

fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// All that comes back; the service answers only when it has heard the end.
fn talk(path: &Path, said: &[u8]) -> Vec<u8> {
    let mut stream = connect(path);
    let mut first = [0; 6];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"hello ", "the service speaks first");
    stream.write_all(said).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    rest
}

fn to_path(path: &Path, to: &str) -> Socket {
    Socket { path: path.to_owned(), to: SocketTarget::Path(to.to_owned()) }
}

/// A path that clients can connect to, wherever temporary files are.
fn place(fixture: &Fixture) -> PathBuf {
    fixture.dir.path().join("s.sock")
}

async fn listening(fixture: &Fixture) -> Vec<bool> {
    fixture.engine.get("one").await.unwrap().unwrap().sockets.iter().map(|socket| socket.listening).collect()
}

#[tokio::test]
async fn connections_lead_to_a_socket_or_a_port_inside() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    if !serve(&fixture, "/run/unix.sock", "unix:").await || !serve(&fixture, "8080", "tcp:").await {
        return;
    }
    let (path, own) = (place(&fixture), fixture.engine.socket_path("one", "web"));
    let web = Socket { path: own.clone(), to: SocketTarget::Port(8080) };
    fixture.engine.set_sockets("one", &[to_path(&path, "/run/unix.sock"), web]).await.unwrap();
    assert_eq!(listening(&fixture).await, [true, true]);
    assert_eq!(talk(&path, b"a"), b"unix:a");
    assert_eq!(talk(&own, b"b"), b"tcp:b");
    let long: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
    assert!(talk(&path, &long) == [b"unix:", long.as_slice()].concat());
    let streams: Vec<UnixStream> = (0..20).map(|_| connect(&path)).collect();
    for (number, mut stream) in streams.into_iter().enumerate() {
        write!(stream, "{number}").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, format!("hello unix:{number}"));
    }
    for path in [&path, &own] {
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    // Elsewhere, and back: the same path.
    let other = Socket { path: path.clone(), to: SocketTarget::Port(8080) };
    fixture.engine.set_sockets("one", &[other]).await.unwrap();
    assert_eq!(talk(&path, b"c"), b"tcp:c");
    assert!(!own.exists(), "what is not wanted any more is gone");
    fixture.engine.set_sockets("one", &[to_path(&path, "/run/unix.sock")]).await.unwrap();

    fixture.engine.stop("one", Duration::ZERO).await.unwrap();
    assert!(!path.exists());
    assert_eq!(listening(&fixture).await, [false]);
    fixture.engine.start("one").await.unwrap();
    assert!(serve(&fixture, "/run/unix.sock", "again:").await);
    assert_eq!(talk(&path, b"d"), b"again:d");
    fixture.engine.delete("one").await.unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn a_path_resolves_inside_and_nowhere_else() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    let secret = fixture.dir.path().join("secret.sock");
    let of_host = UnixListener::bind(&secret).unwrap();
    of_host.set_nonblocking(true).unwrap();
    let path = place(&fixture);
    fixture.engine.set_sockets("one", &[to_path(&path, "/run/app.sock")]).await.unwrap();
    let host = secret.display();
    for link in [
        format!("{host}"),
        format!("/proc/1/root{host}"),
        format!("/proc/self/root{host}"),
        "/proc/1/cwd/../../../secret.sock".to_owned(),
        "/proc/self/fd/3".to_owned(),
        "/dev/null".to_owned(),
    ] {
        assert_eq!(fixture.sh("one", &format!("ln -sfn {link} /run/app.sock")).await.exit, Exit::Code(0));
        let mut stream = connect(&path);
        assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0, "{link}");
        assert!(of_host.accept().is_err(), "{link}");
    }
    // A link that stays inside is followed.
    if serve(&fixture, "/tmp/real.sock", "real:").await {
        assert_eq!(fixture.sh("one", "ln -sfn /tmp/real.sock /run/app.sock").await.exit, Exit::Code(0));
        assert_eq!(talk(&path, b""), b"real:");
    }
}

#[tokio::test]
async fn a_path_is_taken_from_nobody_and_found_again() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    let path = place(&fixture);
    let wanted = [to_path(&path, "/run/app.sock")];
    std::fs::write(&path, "mine").unwrap();
    let refused = fixture.engine.set_sockets("one", &wanted).await.unwrap_err();
    assert!(
        matches!(&refused, EngineError::Listen { address, reason, .. } if address.contains("s.sock") && reason.contains("exists")),
        "{refused:?}"
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    std::fs::remove_file(&path).unwrap();
    let long = fixture.dir.path().join("x".repeat(110));
    let refused = fixture.engine.set_sockets("one", &[to_path(&long, "/run/app.sock")]).await.unwrap_err();
    assert!(matches!(&refused, EngineError::Invalid(why) if why.contains("107")), "{refused:?}");

    fixture.engine.set_sockets("one", &wanted).await.unwrap();
    assert_eq!(listening(&fixture).await, [true]);
    // Somebody takes it away: that is seen, and mended by asking for it again.
    std::fs::remove_file(&path).unwrap();
    assert_eq!(listening(&fixture).await, [false]);
    fixture.engine.set_sockets("one", &wanted).await.unwrap();
    assert_eq!(listening(&fixture).await, [true]);
    // Its process is killed: what it left is replaced by the next start.
    let shim = processes_in(&fixture.box_dir("one")).into_iter().min().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), nix::sys::signal::Signal::SIGKILL).unwrap();
    let ended = async || {
        let info = fixture.engine.get("one").await.unwrap().unwrap();
        matches!(info.state, BoxState::Stopped { unclean: Some(_) })
    };
    eventually("it has ended", ended).await;
    assert_eq!(listening(&fixture).await, [false]);
    assert!(path.exists(), "nobody was left to remove it");
    fixture.engine.start("one").await.unwrap();
    assert_eq!(listening(&fixture).await, [true]);
    fixture.engine.delete("one").await.unwrap();
    assert!(!path.exists());
}
