//! Ports: dialled from here, and forwarded from this host.

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::bench::{Bench, Failure, check, output, script, sh};
use super::{Need, Verdict, group};
use crate::model::{PortProtocol, PortSpec};
use crate::provider::{ExecIo, Guest};

/// Gives every line back, with whatever is there to do it.
const ECHO: &str = r#"
if command -v python3 >/dev/null; then exec python3 -c '
import socket, sys
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind(("0.0.0.0", int(sys.argv[1])))
s.listen(16)
while True:
    c, _ = s.accept()
    f = c.makefile("rb")
    c.sendall(f.readline())
    f.close()
    c.close()
' "$1"
elif command -v perl >/dev/null; then exec perl -e '
use Socket;
socket(S, PF_INET, SOCK_STREAM, 0) || die;
setsockopt(S, SOL_SOCKET, SO_REUSEADDR, 1);
bind(S, sockaddr_in($ARGV[0], INADDR_ANY)) || die;
listen(S, 16) || die;
while (accept(C, S)) { select(C); $| = 1; my $line = <C>; print C $line; close C; }
' "$1"
# One that takes one connection at a time turns the others away.
elif nc -h 2>&1 | grep -q -e '-ll'; then exec nc -ll -p "$1" -e head -n 1
else while :; do nc -l -p "$1" -e head -n 1; done
fi
"#;
/// Gives every datagram back.
const ECHO_UDP: &str = r#"
if command -v python3 >/dev/null; then exec python3 -c '
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("0.0.0.0", int(sys.argv[1])))
while True:
    data, client = s.recvfrom(65536)
    s.sendto(data, client)
' "$1"
else exec perl -e '
use Socket;
socket(S, PF_INET, SOCK_DGRAM, 0) || die;
bind(S, sockaddr_in($ARGV[0], INADDR_ANY)) || die;
while (my $client = recv(S, my $data, 65536, 0)) { send(S, $data, 0, $client); }
' "$1"
fi
"#;
const TOOLS_UDP: &str = "command -v python3 || command -v perl || :";
const TOOLS: &str = "command -v python3 || command -v perl || nc -h 2>&1 | grep -e '-e ' || :";
/// How long something may take to listen.
const UP: Duration = Duration::from_secs(30);
/// How long one exchange may take.
const EXCHANGE: Duration = Duration::from_secs(10);

group! {
    "ports/dialled": "a port inside is reached, several connections at a time", [Need::Processes, Need::Dial], dialled;
    "ports/closed": "dialling a port that nothing listens on is an error", [Need::Processes, Need::Dial], closed;
    "ports/forwarded": "a declared port is reached at the host's own port, and its endpoint says where and whether it listens",
        [Need::Processes, Need::HostPorts], forwarded;
    "ports/datagrams": "a declared port of UDP is reached at the host's own port, and each client gets its own answers",
        [Need::Processes, Need::HostPorts], datagrams;
}

/// A port of this host that is free now.
pub(super) fn free_port() -> Result<u16, Failure> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Fails as nothing to try with if nothing inside can listen.
async fn has_listener(guest: &dyn Guest) -> Result<(), Failure> {
    if sh(guest, TOOLS, []).await?.is_empty() {
        let why = "the image has none of python3, perl and nc, so nothing can listen";
        return Err(Failure::Nothing(why.to_owned()));
    }
    Ok(())
}

/// Runs `work` while something inside listens on a port and gives back every line.
async fn with_echo(
    guest: &dyn Guest,
    echo: &str,
    port: u16,
    work: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let command = script(echo, [port.to_string().as_str()]);
    tokio::select! {
        // Dropping it ends it.
        ended = guest.exec(&command, ExecIo::default()) => {
            Err(Failure::Broken(format!("what should listen inside ended with {}", ended?)))
        }
        done = work => done,
    }
}

/// Whether a line comes back.
async fn echoes(stream: impl AsyncRead + AsyncWrite + Unpin, line: &str) -> std::io::Result<bool> {
    let mut stream = BufReader::new(stream);
    stream.get_mut().write_all(format!("{line}\n").as_bytes()).await?;
    stream.get_mut().flush().await?;
    let mut answer = String::new();
    stream.read_line(&mut answer).await?;
    Ok(answer.trim_end() == line)
}

async fn dialled(bench: &Bench) -> Verdict {
    let guest = bench.inside().await?;
    has_listener(&*guest).await?;
    const PORT: u16 = 18_123;
    let one = |line: String| {
        let guest = &*guest;
        async move {
            match timeout(EXCHANGE, async {
                echoes(guest.dial(PORT).await?, &line).await.map_err(Failure::from)
            })
            .await
            {
                Ok(Ok(true)) => Ok(Ok(())),
                Ok(Ok(false)) => Ok(Err("the line that came back is not the one that was sent".to_owned())),
                Ok(Err(Failure::Broken(why) | Failure::Nothing(why))) => Ok::<_, Failure>(Err(why)),
                Err(_) => Ok(Err("no line came back".to_owned())),
            }
        }
    };
    let work = async {
        bench.eventually(UP, || one("first".to_owned())).await?;
        let several = futures::future::try_join_all((0..8).map(|n| one(format!("line {n}")))).await?;
        let failed = several.into_iter().find_map(Result::err);
        check(failed.is_none(), || format!("of eight connections at once one failed: {failed:?}"))
    };
    with_echo(&*guest, ECHO, PORT, work).await
}

async fn closed(bench: &Bench) -> Verdict {
    let guest = bench.inside().await?;
    let dialled = timeout(UP, async {
        match guest.dial(18_999).await {
            Err(_) => true,
            // Some relays only find out once something is sent.
            Ok(stream) => !echoes(stream, "anybody").await.unwrap_or(false),
        }
    });
    let refused = dialled.await;
    check(refused == Ok(true), || format!("dialling a port that nothing listens on: {refused:?}"))
}

async fn forwarded(bench: &Bench) -> Verdict {
    const PORT: u16 = 18_124;
    let mut spec = bench.spec("forwarded");
    let host_port = free_port()?;
    spec.ports.insert(PORT, PortSpec { host_port: Some(host_port), ..PortSpec::default() });
    let id = bench.create_as(&spec, &bench.identity("forwarded")).await?;
    let endpoint = bench.look(&id).await?.endpoints.remove(&PORT);
    let endpoint = endpoint.ok_or_else(|| Failure::Broken("the port has no endpoint".to_owned()))?;
    check(endpoint.port == host_port, || {
        format!("{host_port} was asked for, and the endpoint is {endpoint:?}")
    })?;
    let guest = bench.guest(&id).await?;
    has_listener(&*guest).await?;
    let exchange = || async {
        let work = async {
            echoes(TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await?, "line").await
        };
        Ok(match timeout(EXCHANGE, work).await {
            Ok(Ok(true)) => Ok(()),
            other => Err(format!("the port {host_port} of the host answers {other:?}")),
        })
    };
    let work = async {
        bench.eventually(UP, exchange).await?;
        let look = || async {
            let endpoint = bench.look(&id).await?.endpoints.remove(&PORT);
            Ok(if endpoint.as_ref().is_some_and(|e| e.listening) {
                Ok(())
            } else {
                Err(format!("it is {endpoint:?}"))
            })
        };
        bench.eventually(UP, look).await
    };
    with_echo(&*guest, ECHO, PORT, work).await?;
    // What listened is gone now, and with it whatever answered.
    let ended = output(&*guest, &script("exit 0", [])).await?;
    check(ended.status.success(), || "the inside is not reached any more".to_owned())
}

async fn datagrams(bench: &Bench) -> Verdict {
    const PORT: u16 = 18_125;
    if !bench.sheet().honours(&["ports", "*", "protocol"], Some("udp")) {
        return Err(Failure::Nothing("the sheet refuses UDP".to_owned()));
    }
    let mut spec = bench.spec("datagrams");
    let host_port = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?.local_addr()?.port();
    let declared =
        PortSpec { host_port: Some(host_port), protocol: PortProtocol::Udp, ..PortSpec::default() };
    spec.ports.insert(PORT, declared.clone());
    let id = bench.create_as(&spec, &bench.identity("datagrams")).await?;
    let found = bench.look(&id).await?;
    check(found.spec.as_ref().is_none_or(|spec| spec.ports.get(&PORT) == Some(&declared)), || {
        format!("it reads {:?}", found.spec)
    })?;
    let endpoint = found.endpoints.get(&PORT);
    let endpoint = endpoint.ok_or_else(|| Failure::Broken("the port has no endpoint".to_owned()))?;
    let guest = bench.guest(&id).await?;
    if sh(&*guest, TOOLS_UDP, []).await?.is_empty() {
        return Err(Failure::Nothing(
            "the image has neither python3 nor perl, so nothing can listen".to_owned(),
        ));
    }
    let one = |text: String| async move {
        let client = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        client.connect((endpoint.host.as_str(), endpoint.port)).await?;
        client.send(text.as_bytes()).await?;
        let mut answer = [0; 64];
        // A datagram may be lost, and is before anything listens.
        let received = timeout(Duration::from_secs(1), client.recv(&mut answer)).await;
        Ok::<_, Failure>(match received {
            Ok(Ok(length)) if answer.get(..length) == Some(text.as_bytes()) => Ok(()),
            other => Err(format!("the port {host_port} of the host answers {other:?} to {text:?}")),
        })
    };
    let work = async {
        bench.eventually(UP, || one("first".to_owned())).await?;
        let several = futures::future::try_join_all((0..8).map(|n| one(format!("datagram {n}")))).await?;
        let failed = several.into_iter().find_map(Result::err);
        check(failed.is_none(), || format!("of eight clients at once one failed: {failed:?}"))
    };
    with_echo(&*guest, ECHO_UDP, PORT, work).await
}
