//! Ways out of a sandbox that take more than a command: tried from inside with system calls, beside a machine and another sandbox that have something
//! to be found. `ordinary_user` tries them again without privileges.

use std::collections::BTreeMap;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use pocketenv::engine::{BoxSpec, EngineError, Exit, Held, Limits, Stdio};

use super::support::{Fixture, eventually, null, request};

/// Runs the body of a Perl program, in which `attempt(name, code)` tells a name and why the code failed, or `OPEN` and what it gave.
async fn attempts(fixture: &Fixture, id: &str, body: &str) -> BTreeMap<String, String> {
    let script = format!(
        "use strict; use Socket qw(:DEFAULT :addrinfo inet_pton pack_sockaddr_in6 IN6ADDR_LOOPBACK);
         $SIG{{ALRM}} = sub {{ die \"timed out\\n\" }};
         sub attempt {{
             my ($name, $code) = @_;
             $! = 0;
             my $got = eval {{ alarm 5; my $got = $code->(); alarm 0; $got }};
             my $why = $@ || \"$!\";
             chomp $why;
             print \"$name=\", defined $got && $got ne '' && $got ne '-1' ? \"OPEN $got\" : $why, \"\\n\";
         }}
         {body}"
    );
    let output = fixture.run(id, request(["perl", "-e", &script])).await.unwrap();
    let text = output.ok();
    text.lines().filter_map(|line| line.split_once('=')).map(|(n, w)| (n.to_owned(), w.to_owned())).collect()
}

fn held(found: &BTreeMap<String, String>, expected: &[(&str, &str)]) {
    for (name, why) in expected {
        let got = found.get(*name).unwrap_or_else(|| panic!("{name} was not tried: {found:#?}"));
        assert!(why.split('|').any(|why| got.contains(why)), "{name}: {got}, expected {why}");
    }
    let open: Vec<_> = found.iter().filter(|(_, got)| got.starts_with("OPEN")).collect();
    assert!(open.is_empty(), "{open:?}");
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

/// The first process is the engine's own, and nothing of it is to be had.
#[tokio::test]
async fn the_first_process_is_out_of_reach() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    let found = attempts(
        &fixture,
        "one",
        &format!(
            "attempt('attach', sub {{ syscall({ptrace}, 16, 1, 0, 0) }});
             attempt('seize', sub {{ syscall({ptrace}, 0x4206, 1, 0, 0) }});
             attempt('memory', sub {{ open(my $f, '+<', '/proc/1/mem') ? 'memory' : '' }});
             attempt('root', sub {{ opendir(my $d, '/proc/1/root') or return ''; readdir($d) }});
             attempt('descriptors', sub {{ opendir(my $d, '/proc/1/fd') or return ''; readdir($d) }});
             attempt('directory', sub {{ readlink('/proc/1/cwd') }});
             attempt('program', sub {{ open(my $f, '+<', '/proc/1/exe') ? 'open' : '' }});
             attempt('environment', sub {{ open(my $f, '<', '/proc/1/environ') or return ''; <$f> }});
             my $pidfd = syscall({pidfd_open}, 1, 0);
             attempt('steal', sub {{ syscall({pidfd_getfd}, $pidfd, 3, 0) }});
             attempt('read', sub {{ my $b = ' ' x 64; syscall({process_vm_readv}, 1, $b, 1, $b, 1, 0) }});
             attempt('limits', sub {{ my $b = pack('QQ', 1, 1); syscall({prlimit}, 1, 7, $b, 0) == 0 ? 'set' : '' }});
             attempt('namespace', sub {{ open(my $f, '<', '/proc/1/ns/mnt') or return ''; syscall({setns}, fileno($f), 0) }});",
            ptrace = libc::SYS_ptrace,
            pidfd_open = libc::SYS_pidfd_open,
            pidfd_getfd = libc::SYS_pidfd_getfd,
            process_vm_readv = libc::SYS_process_vm_readv,
            prlimit = libc::SYS_prlimit64,
            setns = libc::SYS_setns,
        ),
    )
    .await;
    let refused = "not permitted|denied";
    held(
        &found,
        &[
            ("attach", refused),
            ("seize", refused),
            ("memory", refused),
            ("root", refused),
            ("descriptors", refused),
            ("directory", refused),
            ("program", refused),
            ("environment", refused),
            ("steal", refused),
            ("read", refused),
            ("limits", refused),
            ("namespace", refused),
        ],
    );
    // Signals that would end or stop any other process.
    let script = "kill -KILL 1; kill -STOP 1; kill -SEGV 1; echo sent";
    assert_eq!(fixture.sh("one", script).await.ok(), "sent");
    assert_eq!(fixture.sh("one", "echo alive").await.ok(), "alive");
    // A command begins with its own three descriptors and no other: none of the engine's has leaked into it.
    assert_eq!(fixture.sh("one", "ls /proc/$$/fd").await.ok(), "0\n1\n2");
    // No socket that commands the engine is anywhere in sight.
    assert_eq!(fixture.sh("one", "find / -xdev -type s 2>/dev/null").await.text(), "");
}

/// What listens on the machine and in another sandbox cannot be reached by any family of sockets, nor can a byte be sent out.
#[tokio::test]
async fn no_family_of_sockets_leads_out() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    fixture.create("two").await;
    let v4 = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let v6 = TcpListener::bind("[::1]:0");
    let v6 = v6.as_ref().map_or(1, |listener| listener.local_addr().unwrap().port());
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp.set_nonblocking(true).unwrap();
    let datagrams = udp.local_addr().unwrap().port();
    let name = format!("pocketenv-escape-{}", std::process::id());
    let _abstract = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let listen = "socket(my $s, 2, 1, 0); bind($s, pack_sockaddr_in(7070, INADDR_LOOPBACK)) or die; listen($s, 1);
                  socket(my $u, 1, 1, 0); bind($u, pack_sockaddr_un(qq(\\0other))) or die; listen($u, 1); print qq(up\\n); close STDOUT; sleep 100";
    let (mut reader, writer) = std::io::pipe().unwrap();
    let stdio = Stdio::Files { stdin: null(), stdout: writer.into(), stderr: null() };
    let command = request(["perl", "-MSocket", "-e", &format!("$| = 1; {listen}")]);
    let _other = fixture.engine.exec("two", command, stdio).await.unwrap();
    std::io::Read::read_exact(&mut reader, &mut [0; 3]).unwrap();

    let found = attempts(
        &fixture,
        "one",
        &format!(
            "sub tcp {{ my ($family, $address) = @_; socket(my $s, $family, SOCK_STREAM, 0) or return ''; connect($s, $address) ? 'connected' : '' }}
             sub dgram {{ my ($address) = @_; socket(my $s, AF_INET, SOCK_DGRAM, 0) or return ''; send($s, 'secret', 0, $address) ? '' : '' }}
             attempt('machine', sub {{ tcp(AF_INET, pack_sockaddr_in({v4}, INADDR_LOOPBACK)) }});
             attempt('machine-6', sub {{ tcp(AF_INET6, pack_sockaddr_in6({v6}, IN6ADDR_LOOPBACK)) }});
             attempt('other-sandbox', sub {{ tcp(AF_INET, pack_sockaddr_in(7070, INADDR_LOOPBACK)) }});
             attempt('metadata', sub {{ tcp(AF_INET, pack_sockaddr_in(80, inet_aton('169.254.169.254'))) }});
             attempt('world', sub {{ tcp(AF_INET, pack_sockaddr_in(443, inet_aton('192.0.2.1'))) }});
             attempt('world-6', sub {{ tcp(AF_INET6, pack_sockaddr_in6(443, inet_pton(AF_INET6, '2001:db8::1'))) }});
             attempt('dns', sub {{ socket(my $s, AF_INET, SOCK_DGRAM, 0); send($s, 'secret', 0, pack_sockaddr_in(53, inet_aton('192.0.2.53'))) }});
             attempt('local-dns', sub {{ socket(my $s, AF_INET, SOCK_DGRAM, 0); connect($s, pack_sockaddr_in(53, inet_aton('127.0.0.53'))); send($s, 'x', 0); send($s, 'x', 0) }});
             attempt('raw', sub {{ socket(my $s, AF_INET, SOCK_RAW, 1) ? 'made' : '' }});
             attempt('packet', sub {{ socket(my $s, 17, SOCK_RAW, 768) ? 'made' : '' }});
             attempt('hypervisor', sub {{ socket(my $s, 40, SOCK_STREAM, 0) or return ''; connect($s, pack('SSLLLL', 40, 0, 1024, 2, 0, 0)) ? 'connected' : '' }});
             attempt('abstract', sub {{ tcp(AF_UNIX, pack_sockaddr_un(qq(\\0{name}))) }});
             attempt('other-abstract', sub {{ tcp(AF_UNIX, pack_sockaddr_un(qq(\\0other))) }});
             socket(my $s, AF_INET, SOCK_DGRAM, 0); send($s, 'secret', 0, pack_sockaddr_in({datagrams}, INADDR_LOOPBACK));"
        ),
    )
    .await;
    held(
        &found,
        &[
            ("machine", "refused"),
            ("machine-6", "refused|Cannot assign"),
            ("other-sandbox", "refused"),
            ("metadata", "unreachable"),
            ("world", "unreachable"),
            ("world-6", "unreachable|Cannot assign"),
            ("dns", "unreachable"),
            ("local-dns", "refused"),
            ("raw", "not permitted"),
            ("packet", "not permitted"),
            ("hypervisor", "not permitted|not supported|No such device|unreachable"),
            ("abstract", "refused"),
            ("other-abstract", "refused"),
        ],
    );
    assert!(udp.recv(&mut [0; 16]).is_err(), "a datagram came out");
    // Nor are the other one's processes and files in sight.
    fixture.sh("two", "echo private > /tmp/of-two").await.ok();
    assert_eq!(
        fixture.sh("one", "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c '707[0]'; ls /tmp").await.text(),
        "0"
    );
}

/// The terminal of a command is its own, and nothing can be pushed into it for whoever reads it next.
#[tokio::test]
async fn nothing_is_typed_into_a_terminal() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    let script = "use strict; my $c = 'x';
        for my $call (0x5412, 0x541C) { my $b = $call == 0x541C ? chr(3) : $c; print ioctl(STDIN, $call, $b) ? 'OPEN' : \"$!\", \"\\n\" }";
    let stdio = Stdio::Pty { rows: 24, cols: 80 };
    let mut handle = fixture.engine.exec("one", request(["perl", "-e", script]), stdio).await.unwrap();
    let mut terminal = std::fs::File::from(handle.take_pty().unwrap());
    assert_eq!(handle.wait().await.unwrap(), Exit::Code(0));
    let mut said = [0; 256];
    let length = std::io::Read::read(&mut terminal, &mut said).unwrap();
    let said = String::from_utf8_lossy(&said[..length]);
    assert!(!said.contains("OPEN") && said.matches("not permitted").count() == 2, "{said}");
}

/// What bombs do without limits: they end with the sandbox, whatever they left.
#[tokio::test]
async fn a_crowd_of_processes_ends_with_its_sandbox() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    let script = "for i in $(seq 300); do (trap '' TERM HUP INT; setsid sleep 1000 &) ; done; echo up";
    assert_eq!(fixture.sh("one", script).await.ok(), "up");
    let dir = fixture.box_dir("one");
    assert!(super::support::processes_in(&dir).len() > 300);
    fixture.engine.stop("one", Duration::from_millis(100)).await.unwrap();
    eventually("nothing is left", async || super::support::processes_in(&dir).is_empty()).await;
}

/// Every bomb, against a sandbox with limits: the one beside it and the machine go on as if nothing were.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bombs_stay_in_a_limited_sandbox() {
    let fixture = Fixture::new();
    let limits = Limits {
        memory: Some(64 << 20),
        pids: Some(64),
        disk: Some(64 << 20),
        cpu_millis: Some(1000),
        ..Limits::default()
    };
    let spec = BoxSpec { limits, ..BoxSpec::default() };
    match fixture.engine.create("one", &spec, &BTreeMap::new()).await {
        Err(EngineError::Unenforceable(_)) if !super::support::is_root() => return,
        made => drop(made.unwrap()),
    }
    fixture.create("two").await;
    let bombs = "head -c 300M /dev/zero | tail -c 300M > /dev/null
        mkdir /root/many; (i=0; while :; do : > /root/many/$i; i=$((i+1)); done)
        rm -r /root/many; head -c 100M /dev/zero > /root/big
        bomb() { bomb | bomb; }; while :; do (bomb); done";
    let bombs = fixture.start("one", request(["sh", "-c", bombs]), null(), null(), null()).await.unwrap();
    eventually("every limit is reached", async || {
        let info = fixture.engine.get("one").await.unwrap().unwrap();
        let killed = info.hits.iter().any(|hit| matches!(hit.what, Held::Killed { .. }));
        let refused = info.hits.iter().any(|hit| matches!(hit.what, Held::Refused(_)));
        let full = info.hits.iter().any(|hit| matches!(hit.what, Held::Full(_)));
        killed && refused && full
    })
    .await;
    let beside =
        "head -c 100M /dev/zero > /root/big; head -c 100M /dev/zero | tail -c 100M | wc -c; rm /root/big";
    assert_eq!(fixture.sh("two", beside).await.ok(), "104857600");
    drop(bombs);
    fixture.engine.delete("one").await.unwrap();
    assert_eq!(super::support::processes_in(&fixture.box_dir("one")), Vec::<i32>::new());
}
