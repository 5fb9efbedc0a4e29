//! Named sessions: a terminal that goes on when its clients come, go, are slow or die.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use pocketenv::engine::{
    Attached, BoxSpec, BoxState, EngineError, ExecHandle, ExecRequest, Exit, Lifetime, SessionInfo,
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use super::support::{Fixture, eventually, processes_in, request};

/// How many bytes of output are kept.
const KEPT: usize = 256 * 1024;

/// One who is attached.
struct Client {
    handle: ExecHandle,
    stream: UnixStream,
    seen: Vec<u8>,
    session: SessionInfo,
    made: bool,
}

impl Client {
    fn of(attached: Attached) -> Client {
        let Attached { mut handle, session, made } = attached;
        let stream = UnixStream::from(handle.take_pty().unwrap());
        stream.set_nonblocking(true).unwrap();
        Client { handle, stream, seen: Vec::new(), session, made }
    }

    fn types(&mut self, keys: &str) {
        self.stream.write_all(keys.as_bytes()).unwrap();
    }

    /// Takes what there is; whether more may come.
    fn take(&mut self) -> bool {
        let mut bytes = [0; 64 * 1024];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => return false,
                Ok(n) => self.seen.extend_from_slice(&bytes[..n]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return true,
                Err(_) => return false, // it left with keys that nobody took
            }
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    async fn sees(&mut self, what: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let more = self.take();
            if self.text().contains(what) {
                return;
            }
            let text = self.text();
            assert!(
                more && Instant::now() < deadline,
                "never seen: {what:?} in {:?}",
                &text[text.len().saturating_sub(2000)..]
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Takes all until the session has ended, and how it did.
    async fn end(&mut self) -> Exit {
        let exit = tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                tokio::select! {
                    biased;
                    exit = self.handle.wait() => return exit.unwrap(),
                    () = tokio::time::sleep(Duration::from_millis(2)) => {}
                }
                let mut bytes = [0; 64 * 1024];
                while let Ok(n @ 1..) = self.stream.read(&mut bytes) {
                    self.seen.extend_from_slice(&bytes[..n]);
                }
            }
        });
        let exit = exit.await.expect("it ends");
        eventually("the stream ends with it", async || !self.take()).await;
        exit
    }
}

impl Fixture {
    async fn attach_with(
        &self,
        name: &str,
        command: Option<ExecRequest>,
        size: Option<(u16, u16)>,
    ) -> Result<Client, EngineError> {
        self.engine.attach("one", name, "what".to_owned(), command, size, false).await.map(Client::of)
    }

    /// Attaches to a session that is made by this script.
    async fn attach(&self, name: &str, script: &str) -> Client {
        self.attach_with(name, Some(request(["sh", "-c", script])), Some((24, 80))).await.unwrap()
    }

    async fn session(&self, name: &str) -> Option<SessionInfo> {
        self.engine.sessions("one").await.unwrap().into_iter().find(|session| session.name == name)
    }

    async fn clients(&self, name: &str) -> Option<usize> {
        Some(self.session(name).await?.clients)
    }
}

const ECHO: &str = "echo ready; while read line; do echo got:$line; done";

#[tokio::test]
async fn several_see_the_same_and_type_and_what_was_missed_comes_first() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    let mut first = fixture.attach("work", ECHO).await;
    assert!(first.made && first.session.clients == 1);
    first.sees("ready").await;
    first.types("alpha\n");
    first.sees("got:alpha").await;
    let mut second = fixture.attach("work", "exit 9").await;
    assert!(!second.made, "a session that runs is not made again");
    assert_eq!((second.session.clients, second.session.pid), (2, first.session.pid));
    second.sees("got:alpha").await;
    second.types("beta\n");
    first.sees("got:beta").await;
    second.sees("got:beta").await;

    // One leaves politely and one just dies; the session goes on, and both may come again.
    first.handle.detach().await.unwrap();
    eventually("its stream ends", async || !first.take()).await;
    assert!(first.seen.ends_with(b"\x1b[m"), "{:?}", first.text());
    drop(second);
    eventually("nobody is attached", async || fixture.clients("work").await == Some(0)).await;
    let mut again = fixture.attach_with("work", None, None).await.unwrap();
    assert_eq!(again.session.pid, first.session.pid);
    again.sees("got:beta").await;
    assert_eq!(again.text().matches("ready").count(), 1);
    let mut other = fixture.attach_with("work", None, None).await.unwrap();
    again.types("\u{4}");
    assert_eq!((again.end().await, other.end().await), (Exit::Code(0), Exit::Code(0)));
    assert_eq!(fixture.session("work").await, None, "who was told need not ask");
}

#[tokio::test]
async fn names_are_told_apart_and_nonsense_is_refused() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    let mut a = fixture.attach("a", ECHO).await;
    let mut b = fixture.attach("b", ECHO).await;
    a.types("only a\n");
    a.sees("got:only a").await;
    b.types("only b\n");
    b.sees("got:only b").await;
    assert!(!b.text().contains("only a"));
    for name in ["", "a b", "../a", "\x1b[2J", ".a"] {
        let refused = fixture.attach_with(name, Some(request(["true"])), None).await.map(|_| ()).unwrap_err();
        assert!(matches!(refused, EngineError::Invalid(_)), "{refused:?}");
    }
    for missing in [
        fixture.attach_with("c", None, None).await.map(|_| ()).unwrap_err(),
        fixture.engine.end_session("one", "c").await.unwrap_err(),
    ] {
        assert!(matches!(&missing, EngineError::NoSession { name, .. } if name == "c"), "{missing:?}");
    }
    let no_program = fixture.attach_with("d", Some(request(["no-such-program"])), None).await.map(|_| ());
    assert!(matches!(no_program, Err(EngineError::Exec { .. })), "{no_program:?}");
    assert_eq!(fixture.engine.sessions("one").await.unwrap().len(), 2);
    assert!(matches!(fixture.engine.sessions("two").await, Err(EngineError::NotFound(_))));
}

#[tokio::test]
async fn it_has_the_size_of_who_used_it_last() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    let script = "trap 'echo changed' WINCH; while read line; do stty size; done";
    let command = || Some(request(["bash", "-c", script]));
    let mut first = fixture.attach_with("work", command(), Some((33, 77))).await.unwrap();
    first.types("\n");
    first.sees("33 77").await;
    let mut second = fixture.attach_with("work", None, Some((44, 88))).await.unwrap();
    second.types("\n");
    second.sees("changed").await;
    second.sees("44 88").await;
    first.seen.clear();
    first.types("\n");
    first.sees("33 77").await;
    first.seen.clear();
    second.handle.resize_session(55, 99).await.unwrap();
    let size = async || fixture.session("work").await.map(|info| (info.rows, info.cols));
    eventually("it is resized", async || size().await == Some((55, 99))).await;
    second.types("\n");
    first.sees("55 99").await;
    assert!(first.text().contains("changed"), "{}", first.text());
    // One without a terminal leaves the size alone; one of the same size makes programs draw again.
    let mut third = fixture.attach_with("work", None, None).await.unwrap();
    third.sees("55 99").await;
    let _same = fixture.attach_with("work", None, Some((55, 99))).await.unwrap();
    third.take();
    third.seen.clear();
    third.types("\n");
    third.sees("55 99").await;
    assert!(third.text().contains("changed"), "{}", third.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_a_client_that_takes_nothing() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    // Far more than is kept, twice: with a client that reads, and with nobody who does.
    let script = "read go; seq 1 400000; echo first-end; read go; seq 1 400000; echo second-end; read go";
    let mut fast = fixture.attach("work", script).await;
    let mut stopped = fixture.attach_with("work", None, None).await.unwrap();
    fast.types("\n");
    fast.sees("first-end").await;
    let lines: Vec<String> = fast.text().lines().map(|line| line.trim_end().to_owned()).collect();
    assert!((1..=400_000).all(|n| lines[n] == n.to_string()), "the fastest misses nothing");
    // The same at a slow but steady pace: the command waits for it.
    fast.seen.clear();
    fast.types("\n");
    drop(std::mem::replace(&mut fast, fixture.attach_with("work", None, None).await.unwrap()));
    // Now neither of the two takes anything, and it comes to its end all the same.
    let busy = async || {
        let out = fixture.sh("one", "pgrep -x seq | wc -l").await;
        out.text() != "0"
    };
    eventually("it goes on alone", async || !busy().await).await;
    let mut late = fixture.attach_with("work", None, None).await.unwrap();
    late.sees("second-end").await;
    assert!(late.seen.len() <= KEPT + 100, "{}", late.seen.len());
    // Whoever was too slow is told so, and sees the end like everybody else.
    for slow in [&mut stopped, &mut fast] {
        slow.sees("second-end").await;
        slow.sees("some output is missing").await;
        assert!(slow.seen.len() < 3 * KEPT, "{}", slow.seen.len());
    }
    let init = fixture.engine.get("one").await.unwrap().unwrap().state.pid().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{init}/status")).unwrap();
    let resident: usize = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap();
    assert!(resident < 6 * 1024, "{resident} kB after megabytes of output");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_client_that_reads_misses_nothing() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    let mut slow = fixture.attach("work", "read go; seq 1 150000; exit 4").await;
    slow.types("\n");
    let mut bytes = [0; 8 * 1024];
    while slow.seen.len() < 600_000 {
        match slow.stream.read(&mut bytes) {
            Ok(n) => slow.seen.extend_from_slice(&bytes[..n]),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    assert_eq!(slow.end().await, Exit::Code(4));
    let text = slow.text();
    assert!((1..=150_000).eq(text.lines().skip(1).map(|line| line.trim_end().parse::<usize>().unwrap())));
}

#[tokio::test]
async fn the_end_that_nobody_saw_can_be_asked_for_until_the_name_is_used_again() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    let script = "echo begin; read line; until [ -e /tmp/go ]; do sleep 0.05; done; head -c 60000 /dev/zero | tr '\\0' x; echo done; exit 7";
    drop(fixture.attach("build", script).await);
    eventually("nobody is attached", async || fixture.clients("build").await == Some(0)).await;
    let ended = async || fixture.session("build").await.is_some_and(|session| session.exit.is_some());
    let mut one = fixture.attach_with("build", None, None).await.unwrap();
    one.sees("begin").await;
    one.types("go\n");
    one.handle.detach().await.unwrap();
    eventually("nobody is attached", async || fixture.clients("build").await == Some(0)).await;
    fixture.sh("one", "touch /tmp/go").await.ok();
    eventually("it ends", async || ended().await).await;
    assert_eq!(fixture.session("build").await.unwrap().exit, Some(Exit::Code(7)));
    for _ in 0..2 {
        let mut asked = fixture.attach_with("build", None, None).await.unwrap();
        assert_eq!(asked.session.exit, Some(Exit::Code(7)));
        assert_eq!(asked.end().await, Exit::Code(7));
        assert!(
            asked.text().contains(&format!("{}done", "x".repeat(60_000))),
            "its last output to the last byte"
        );
    }
    let mut again = fixture.attach("build", "echo anew; exit 0").await;
    assert!(again.made);
    assert_eq!(again.end().await, Exit::Code(0));
    assert!(!again.text().contains("begin"), "{}", again.text());
    assert_eq!(fixture.session("build").await, None);
    // A command that a signal ends, in front of who looks.
    let mut killed = fixture.attach("build", "kill -KILL $$").await;
    assert_eq!(killed.end().await, Exit::Signal(9));
}

#[tokio::test]
async fn ending_one_ends_all_of_its_processes_and_nothing_else() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    // One of them in a process group of its own, as jobs of a shell at a terminal are.
    let stubborn = "trap '' HUP TERM; set -m; sleep 87653 & set +m; sh -c 'sleep 87653' & echo up; while :; do sleep 87653; done";
    let mut client = fixture.attach("bad", stubborn).await;
    let mut other = fixture.attach("good", ECHO).await;
    client.sees("up").await;
    let count =
        async || fixture.sh("one", "grep -lz 8765[3] /proc/*/cmdline 2>/dev/null | wc -l").await.text();
    eventually("they run", async || count().await.as_str() >= "4").await;
    let asked = Instant::now();
    fixture.engine.end_session("one", "bad").await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    assert_eq!(client.end().await, Exit::Signal(9));
    eventually("all of them are gone", async || count().await == "0").await;
    assert_eq!(fixture.session("bad").await, None);
    other.types("still\n");
    other.sees("got:still").await;

    // One that hears is given the time to.
    let mut client =
        fixture.attach("bad", "trap 'echo heard; exit 3' HUP; echo up; while :; do sleep 0.1; done").await;
    client.sees("up").await;
    fixture.engine.end_session("one", "bad").await.unwrap();
    assert_eq!(client.end().await, Exit::Code(3));
    assert!(client.text().contains("heard"));
}

#[tokio::test]
async fn there_are_only_so_many() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    let mut clients = Vec::new();
    for n in 0..16 {
        clients.push(fixture.attach(&format!("s{n}"), ECHO).await);
    }
    let refused = fixture.attach_with("more", Some(request(["true"])), None).await.map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("16 sessions already"), "{refused}");
    // The end of one that ended makes room; the oldest goes first.
    for n in [3, 4] {
        clients[n].types("\u{4}");
        clients[n].handle.detach().await.unwrap();
        let name = format!("s{n}");
        eventually("it has ended", async || fixture.session(&name).await.is_none_or(|s| s.exit.is_some()))
            .await;
    }
    let mut more = fixture.attach("more", ECHO).await;
    more.sees("ready").await;
    let mut crowd = Vec::new();
    for _ in 0..15 {
        crowd.push(fixture.attach_with("more", None, None).await.unwrap());
    }
    let refused = fixture.attach_with("more", None, None).await.map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("16 are attached"), "{refused}");
    more.types("all\n");
    for client in &mut crowd {
        client.sees("got:all").await;
    }
}

#[tokio::test]
async fn a_stop_ends_sessions_at_once_and_tells_those_who_are_attached() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    // A shell at a terminal ignores the signal that asks programs to end.
    let mut shell = fixture.attach_with("work", Some(request(["bash", "-i"])), Some((24, 80))).await.unwrap();
    shell.types("echo is-$((1+1))\n");
    shell.sees("is-2").await;
    let asked = Instant::now();
    fixture.engine.stop("one", Duration::from_secs(15)).await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    let told = shell.handle.wait().await;
    assert!(told.is_err() || matches!(told, Ok(Exit::Signal(_) | Exit::Code(_))), "{told:?}");
    assert!(matches!(fixture.engine.sessions("one").await, Err(EngineError::NotRunning(_))));
    assert_eq!(processes_in(fixture.dir.path()), Vec::<i32>::new());
    fixture.engine.start("one").await.unwrap();
    assert_eq!(fixture.engine.sessions("one").await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_freezes_it_and_it_goes_on() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    let mut client = fixture.attach("work", ECHO).await;
    client.sees("ready").await;
    if !super::pause::paused(&fixture, "one").await {
        return;
    }
    client.types("kept\n");
    tokio::time::sleep(Duration::from_millis(300)).await; // what runs would have answered long ago
    client.take();
    assert!(!client.text().contains("got:kept"), "{}", client.text());
    for refused in [
        fixture.attach_with("work", None, None).await.map(|_| ()).unwrap_err(),
        fixture.engine.sessions("one").await.map(|_| ()).unwrap_err(),
    ] {
        assert!(matches!(refused, EngineError::Paused(_)), "{refused:?}");
    }
    fixture.engine.start("one").await.unwrap();
    client.sees("got:kept").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_attached_keeps_it_and_one_that_is_left_alone_does_not() {
    let fixture = Fixture::new();
    let idle = BoxSpec { lifetime: Lifetime { ttl: None, idle: Some(1000) }, ..BoxSpec::default() };
    fixture.create_with("one", idle).await;
    let mut client = fixture.attach("work", ECHO).await;
    client.sees("ready").await;
    tokio::time::sleep(Duration::from_millis(2500)).await; // more than twice what it may be idle
    client.types("awake\n");
    client.sees("got:awake").await;
    // Output counts as well.
    client.types("\u{4}");
    client.end().await;
    let loud =
        fixture.attach("loud", "for n in $(seq 1 25); do echo $n; sleep 0.1; done; exec sleep 600").await;
    let left = Instant::now();
    drop(loud);
    let stopped =
        async || matches!(fixture.engine.get("one").await.unwrap().unwrap().state, BoxState::Stopped { .. });
    eventually("it is stopped", async || stopped().await).await;
    assert!(left.elapsed() > Duration::from_millis(3000), "{:?}", left.elapsed());
}

/// A terminal that its command closes does not keep init busy, and can be used again.
#[tokio::test]
async fn a_terminal_that_nobody_has_open_costs_nothing() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    let script =
        "echo up; exec 3<&0 </dev/null >/dev/null 2>&1 3<&-; sleep 3; echo back > /dev/tty; exec sleep 600";
    let mut client = fixture.attach("work", script).await;
    client.sees("up").await;
    let init = fixture.engine.get("one").await.unwrap().unwrap().state.pid().unwrap();
    let ticks = || {
        let stat = std::fs::read_to_string(format!("/proc/{init}/stat")).unwrap();
        let fields: Vec<u64> = stat[stat.rfind(')').unwrap() + 2..]
            .split(' ')
            .skip(11)
            .take(2)
            .map(|n| n.parse().unwrap())
            .collect();
        fields[0] + fields[1]
    };
    let before = ticks();
    tokio::time::sleep(Duration::from_millis(2000)).await;
    assert!(ticks() - before < 20, "{} of 200 ticks", ticks() - before);
    client.sees("back").await;
}

/// A shim that does not know the request says so, and what is said to people is what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_an_older_version_runs_is_told_apart() {
    let fixture = Fixture::new();
    fixture.create("one").await;
    fixture.engine.stop("one", Duration::ZERO).await.unwrap();
    let dir = fixture.dir.path().join("run/engine/one");
    std::fs::create_dir_all(&dir).unwrap();
    let old =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .unwrap();
    rustix::net::bind(&old, &SocketAddrUnix::new(dir.join("control.sock")).unwrap()).unwrap();
    rustix::net::listen(&old, 8).unwrap();
    std::thread::spawn(move || {
        for _ in 0..3 {
            let client: OwnedFd = rustix::net::accept(&old).unwrap();
            rustix::net::recv(&client, &mut [0; 4096], RecvFlags::empty()).unwrap();
            let answer = br#"{"failed":{"what":"understand the request","errno":38}}"#;
            rustix::net::send(client.as_fd(), answer, SendFlags::empty()).unwrap();
        }
    });
    for refused in [
        fixture.attach_with("work", Some(request(["true"])), None).await.map(|_| ()).unwrap_err(),
        fixture.engine.sessions("one").await.map(|_| ()).unwrap_err(),
        fixture.engine.end_session("one", "work").await.unwrap_err(),
    ] {
        assert!(matches!(refused, EngineError::Outdated(_)), "{refused:?}");
        assert!(refused.to_string().contains("stop and start it"), "{refused}");
    }
}
