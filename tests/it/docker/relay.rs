//! The two programs that lead connections into and out of a sandbox, each by itself.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAMS: [(&str, &str, &str); 2] = [
    ("perl", "-e", include_str!("../../../src/provider/docker/sh/relay.pl")),
    ("python3", "-c", include_str!("../../../src/provider/docker/sh/relay.py")),
];

/// Gives back whatever comes, and ends each connection when its other end has.
fn echo() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
        }
    });
    port
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(program: (&str, &str, &str), arguments: &[&str]) -> Killed {
    let (name, option, text) = program;
    let mut command = Command::new(super::support::which(name).unwrap());
    command.args([option, text]).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
    Killed(command.spawn().unwrap())
}

#[test]
fn a_relay_carries_both_ways_and_ends_with_either_side() {
    let data: Vec<u8> = (0..2_000_000_u32).map(|n| (n % 253) as u8).collect();
    for program in PROGRAMS {
        if super::support::which(program.0).is_none() {
            eprintln!("SKIPPED: {} is missing", program.0);
            continue;
        }
        let port = echo();

        let mut dial = start(program, &["dial", &port.to_string()]);
        let (mut stdin, mut stdout) = (dial.0.stdin.take().unwrap(), dial.0.stdout.take().unwrap());
        let sent = data.clone();
        let feed = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
        let mut back = Vec::new();
        stdout.read_to_end(&mut back).unwrap();
        feed.join().unwrap();
        assert!(back.starts_with(b"open\n") && back[5..] == data, "{}: {} bytes", program.0, back.len());
        assert!(dial.0.wait().unwrap().success());

        let mut refused = start(program, &["dial", &free_port().to_string()]);
        let mut said = String::new();
        refused.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "refused\n", "{}", program.0);

        let listen = free_port();
        let _relay = start(program, &["listen", &listen.to_string(), "localhost", &port.to_string()]);
        let begun = Instant::now();
        let connect = || loop {
            match TcpStream::connect((Ipv4Addr::LOCALHOST, listen)) {
                Ok(stream) => return stream,
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(20), "{}: {error}", program.0),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut idle = connect();
        for _ in 0..3 {
            let mut stream = connect();
            let mut write = stream.try_clone().unwrap();
            let sent = data.clone();
            let feed = std::thread::spawn(move || {
                write.write_all(&sent).unwrap();
                write.shutdown(Shutdown::Write).unwrap();
            });
            let mut back = Vec::new();
            stream.read_to_end(&mut back).unwrap();
            feed.join().unwrap();
            assert!(back == data, "{}: {} bytes", program.0, back.len());
        }
        // One that waited all the while still works.
        idle.write_all(b"x").unwrap();
        let mut byte = [0];
        idle.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }
}
