//! Named sessions: commands on terminals whose outer sides init keeps, for clients that come and go.
//!
//! Every client reads the scrollback at its own pace. The command goes at the pace of the fastest of them; one that has fallen too far behind
//! misses what has gone from the scrollback, and of clients that take nothing nobody waits.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::termios::Winsize;

use super::init::{fail, reply, signal_group};
use super::proto::{ExecControl, Reply, SessionHead};
use super::scrollback::{KEPT, Scrollback};
use super::seq;
use super::spec::{Exit, SessionInfo};
use super::state::now_ms;
use super::sys;

/// Sessions of a sandbox, with those that have ended.
const MAX_SESSIONS: usize = 16;
/// Clients of a session.
const MAX_CLIENTS: usize = 16;
/// How long the command waits for clients none of which takes any output.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long a session is kept that ended when nobody was attached.
const KEPT_FOR: Duration = Duration::from_secs(3600);
/// How long the processes of a session may take to end.
const GRACE: Duration = Duration::from_secs(2);
/// How often a terminal is looked at that no process has open.
const CLOSED: Duration = Duration::from_secs(1);
/// Bytes of output on the way to a client.
const STREAM: usize = 64 * 1024;
/// Bytes of keys that the command has not taken yet.
const KEYS: usize = 4096;

/// What a client sees that was too slow.
const MISSED: &str = "\x1b[7m this terminal was too slow, and some output is missing \x1b[m\r\n";

/// The sessions of a sandbox.
#[derive(Default)]
pub struct Sessions {
    all: Vec<Session>,
    count: u64,
}

struct Session {
    id: u64,
    head: Head,
    pid: i32,
    /// The terminal's outer side, until the command has ended.
    pty: Option<OwnedFd>,
    size: (u16, u16),
    output: Scrollback,
    /// What was typed and is not taken yet.
    keys: Vec<u8>,
    clients: Vec<Client>,
    /// The client that was last attached, resized or typed at.
    latest: u64,
    /// Clients that wait for the command to be executed; `None` when it was.
    starting: Option<Vec<Newcomer>>,
    /// When a client last took output.
    taken: Instant,
    /// Until when no process has the terminal open, as far as is known.
    closed: Option<Instant>,
    /// When its processes are killed.
    kill_at: Option<Instant>,
    /// Who wants to know that it has ended.
    told: Vec<OwnedFd>,
    end: Option<End>,
}

struct Head {
    name: String,
    what: String,
    since: u64,
}

struct End {
    exit: Exit,
    at: Instant,
    /// It is there for who asks later.
    kept: bool,
}

struct Newcomer {
    connection: OwnedFd,
    size: Option<(u16, u16)>,
    made: bool,
    leaves: bool,
}

struct Client {
    id: u64,
    connection: OwnedFd,
    stream: OwnedFd,
    size: Option<(u16, u16)>,
    /// What comes first.
    replay: Vec<u8>,
    /// How many bytes of all output come before what follows that.
    at: u64,
    gone: bool,
}

impl Sessions {
    /// Attaches to the session that is meant; gives the connection back if there is none.
    pub fn attach(&mut self, connection: OwnedFd, head: &SessionHead) -> Option<OwnedFd> {
        self.forget();
        self.count += 1;
        let wanted = |session: &&mut Session| {
            session.head.name == head.name && (session.end.is_none() || head.exec.is_none())
        };
        let Some(session) = self.all.iter_mut().find(wanted) else { return Some(connection) };
        let newcomer = Newcomer { connection, size: head.size, made: false, leaves: head.leave };
        match &mut session.starting {
            Some(waiting) => waiting.push(newcomer),
            None => session.admit(self.count, newcomer),
        }
        None
    }

    /// Makes room for a session of this name, which does not run.
    ///
    /// # Errors
    /// `EUSERS`, with the reason, if too many run.
    pub fn make_room(&mut self, name: &str) -> Result<(), (String, io::Error)> {
        self.all.retain(|session| session.end.is_none() || session.head.name != name);
        if self.all.len() >= MAX_SESSIONS {
            let oldest =
                self.all.iter().filter_map(|session| Some((session.end.as_ref()?.at, session.id))).min();
            let Some((_, oldest)) = oldest else {
                let what = format!("there are {MAX_SESSIONS} sessions already, the most a sandbox may have");
                return Err((what, Errno::USERS.into()));
            };
            self.all.retain(|session| session.id != oldest);
        }
        Ok(())
    }

    /// Takes a command whose process was made for the client.
    pub fn begin(&mut self, head: SessionHead, pid: i32, pty: Option<OwnedFd>, connection: OwnedFd) {
        self.count += 1;
        let now = Instant::now();
        self.all.push(Session {
            id: self.count,
            size: head.exec.as_ref().and_then(|exec| exec.pty).unwrap_or_default(),
            head: Head { name: head.name, what: head.what, since: now_ms() },
            pid,
            pty: pty.filter(|pty| rustix::io::ioctl_fionbio(pty, true).is_ok()),
            output: Scrollback::default(),
            keys: Vec::new(),
            clients: Vec::new(),
            latest: 0,
            starting: Some(vec![Newcomer { connection, size: head.size, made: true, leaves: head.leave }]),
            taken: now,
            closed: None,
            kill_at: None,
            told: Vec::new(),
            end: None,
        });
    }

    /// The command of this process was executed, or why not.
    pub fn started(&mut self, pid: i32, failure: Option<(String, io::Error)>) {
        let starting = |session: &&mut Session| session.pid == pid && session.starting.is_some();
        let Some(session) = self.all.iter_mut().find(starting) else { return };
        let waiting = session.starting.take().unwrap_or_default();
        match failure {
            None => {
                for newcomer in waiting {
                    self.count += 1;
                    session.admit(self.count, newcomer);
                }
            }
            Some((what, error)) => {
                for newcomer in &waiting {
                    fail(&newcomer.connection, what.clone(), &error);
                }
                let id = session.id;
                self.all.retain(|session| session.id != id);
            }
        }
    }

    /// The process has ended. Its last output is shown, and then the end. Whether it was that of a session.
    pub fn ended(&mut self, pid: i32, exit: Exit) -> bool {
        let running = |session: &&mut Session| session.pid == pid && session.end.is_none();
        let Some(session) = self.all.iter_mut().find(running) else { return false };
        session.drain();
        session.pty = None;
        if session.kill_at.take().is_some() {
            session.kill();
        }
        let kept = session.clients.is_empty() && session.told.is_empty();
        for connection in session.told.drain(..) {
            reply(&connection, &Reply::Done, &[]);
        }
        session.end = Some(End { exit, at: Instant::now(), kept });
        let id = session.id;
        self.turn(id);
        true
    }

    /// All there are, in order of name.
    pub fn list(&mut self) -> Vec<SessionInfo> {
        self.forget();
        let mut all: Vec<SessionInfo> =
            self.all.iter().filter(|session| session.starting.is_none()).map(Session::info).collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        all
    }

    /// Ends one, gently first, and answers when it is done.
    pub fn end(&mut self, name: &str, connection: OwnedFd) {
        self.forget();
        let Some(session) = self.all.iter_mut().find(|session| session.head.name == name) else {
            return fail(&connection, format!("find session {name}"), &Errno::SRCH.into());
        };
        if session.end.is_some() {
            let id = session.id;
            self.all.retain(|session| session.id != id);
            return reply(&connection, &Reply::Done, &[]);
        }
        session.told.push(connection);
        if session.kill_at.is_none() {
            session.kill_at = Some(Instant::now() + GRACE);
            session.hang_up();
        }
    }

    /// Tells all of them that their terminals go away, as shells want to be told.
    pub fn hang_up(&self) {
        self.all.iter().filter(|session| session.end.is_none()).for_each(Session::hang_up);
    }

    /// Whether anybody is attached to one that runs.
    pub fn attached(&self) -> bool {
        self.all.iter().any(|session| session.end.is_none() && !session.clients.is_empty())
    }

    /// What to wait for, with the session that it is of.
    pub fn watch<'a>(&'a self, mut add: impl FnMut(u64, PollFd<'a>)) {
        let now = Instant::now();
        for session in self.all.iter().filter(|session| session.starting.is_none()) {
            if let (Some(pty), None) = (&session.pty, session.closed) {
                let mut events = PollFlags::empty();
                events.set(PollFlags::IN, session.may_go_on(now));
                events.set(PollFlags::OUT, !session.keys.is_empty());
                if !events.is_empty() {
                    add(session.id, PollFd::new(pty, events));
                }
            }
            for client in &session.clients {
                add(session.id, PollFd::new(&client.connection, PollFlags::IN));
                let mut events = PollFlags::empty();
                events.set(PollFlags::IN, session.takes_keys());
                events.set(PollFlags::OUT, client.lag(&session.output) > 0);
                if !events.is_empty() {
                    add(session.id, PollFd::new(&client.stream, events));
                }
            }
        }
    }

    /// When something is to be done although nothing happens.
    pub fn deadline(&self) -> Option<Instant> {
        let now = Instant::now();
        let of = |session: &Session| {
            let waits = session.pty.is_some() && !session.may_go_on(now);
            let patience = waits.then(|| session.taken + PATIENCE);
            [patience, session.closed, session.kill_at].into_iter().flatten().min()
        };
        self.all.iter().filter_map(of).min()
    }

    /// Does what time has come for.
    pub fn expire(&mut self, now: Instant) {
        for session in &mut self.all {
            session.closed = session.closed.filter(|at| *at > now);
            if session.kill_at.is_some_and(|at| at <= now) {
                session.kill();
                session.kill_at = Some(now + GRACE);
            }
        }
    }

    /// Something happened at a session. Whether it was used: something was typed or shown, or somebody left.
    pub fn turn(&mut self, id: u64) -> bool {
        let Some(at) = self.all.iter().position(|session| session.id == id) else { return false };
        let used = self.all[at].turn();
        let over = |session: &Session| session.end.as_ref().is_some_and(|end| !end.kept);
        if over(&self.all[at]) && self.all[at].clients.is_empty() {
            self.all.remove(at);
        }
        used
    }

    fn forget(&mut self) {
        let old = |end: &End| end.kept && end.at.elapsed() > KEPT_FOR;
        self.all.retain(|session| !session.end.as_ref().is_some_and(old));
    }
}

impl Session {
    fn info(&self) -> SessionInfo {
        SessionInfo {
            name: self.head.name.clone(),
            what: self.head.what.clone(),
            pid: self.pid,
            since: self.head.since,
            clients: self.clients.len(),
            rows: self.size.0,
            cols: self.size.1,
            exit: self.end.as_ref().map(|end| end.exit),
        }
    }

    fn admit(&mut self, id: u64, newcomer: Newcomer) {
        let Newcomer { connection, size, made, leaves } = newcomer;
        if self.clients.len() >= MAX_CLIENTS {
            let what = format!(
                "{MAX_CLIENTS} are attached to session `{}` already, the most there may be",
                self.head.name
            );
            return fail(&connection, what, &Errno::USERS.into());
        }
        let (stream, theirs) = match stream() {
            Ok(ends) => ends,
            Err(error) => return fail(&connection, "make a stream".to_owned(), &error),
        };
        if leaves {
            let session = self.info();
            return reply(&connection, &Reply::Attached { session, made }, &[theirs.as_fd()]);
        }
        let (replay, at) = (self.output.replay(), self.output.end());
        self.clients.push(Client { id, connection, stream, size, replay, at, gone: false });
        self.taken = Instant::now();
        let before = self.size;
        self.follow(id);
        let session = self.info();
        if let Some(client) = self.clients.last() {
            reply(&client.connection, &Reply::Attached { session, made }, &[theirs.as_fd()]);
        }
        if self.size == before && !made {
            // What fills the screen draws it again, for the one that has not seen it.
            if let Some(group) = self.foreground() {
                sys::kill(-group, libc::SIGWINCH);
            }
        }
        self.turn();
    }

    /// Has the size of this client from now on.
    fn follow(&mut self, id: u64) {
        self.latest = id;
        let size = self.clients.iter().find(|client| client.id == id).and_then(|client| client.size);
        let (Some(size), Some(pty)) = (size.filter(|size| *size != self.size), &self.pty) else { return };
        let winsize = Winsize { ws_row: size.0, ws_col: size.1, ws_xpixel: 0, ws_ypixel: 0 };
        if rustix::termios::tcsetwinsize(pty, winsize).is_ok() {
            self.size = size;
        }
    }

    fn turn(&mut self) -> bool {
        let mut used = false;
        for at in 0..self.clients.len() {
            self.listen(at);
            used |= self.type_for(at);
        }
        self.pass_keys();
        used |= self.read(Instant::now());
        let told = self.end.as_ref().map(|end| end.exit);
        for client in &mut self.clients {
            if client.show(&self.output) {
                self.taken = Instant::now();
            }
            if let Some(exit) = told
                && client.lag(&self.output) == 0
            {
                reply(&client.connection, &Reply::Exited(exit), &[]);
                client.gone = true;
            }
        }
        let before = self.clients.len();
        self.clients.retain(|client| !client.gone);
        used || self.clients.len() < before
    }

    /// Does what a client says.
    fn listen(&mut self, at: usize) {
        let client = &mut self.clients[at];
        match seq::try_recv(&client.connection) {
            Ok(Some((bytes, _))) => match seq::decode(&bytes) {
                Ok(ExecControl::Resize(rows, cols)) => {
                    client.size = Some((rows, cols));
                    let id = client.id;
                    self.follow(id);
                }
                Ok(ExecControl::Detach) => {
                    client.show(&self.output);
                    let _ = rustix::io::write(&client.stream, &self.output.undo()); // a client that reads nothing is not waited for
                    client.gone = true;
                }
                Ok(ExecControl::Signal(signal)) if self.end.is_none() => signal_group(self.pid, signal),
                Ok(ExecControl::Signal(_)) | Err(_) => {}
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(None) | Err(_) => client.gone = true,
        }
    }

    fn takes_keys(&self) -> bool {
        self.end.is_none() && self.keys.len() < KEYS
    }

    /// Takes what was typed at a client.
    fn type_for(&mut self, at: usize) -> bool {
        if !self.takes_keys() {
            return false;
        }
        let client = &mut self.clients[at];
        let mut typed = [0; KEYS];
        match rustix::io::read(&client.stream, &mut typed) {
            Err(Errno::AGAIN | Errno::INTR) => false,
            Ok(0) | Err(_) => {
                client.gone = true;
                false
            }
            Ok(n) => {
                self.keys.extend_from_slice(&typed[..n]);
                let id = client.id;
                if self.latest != id {
                    self.follow(id);
                }
                true
            }
        }
    }

    fn pass_keys(&mut self) {
        let Some(pty) = &self.pty else { return self.keys.clear() };
        while !self.keys.is_empty() {
            match rustix::io::write(pty, &self.keys) {
                Ok(n) => drop(self.keys.drain(..n)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => return self.keys.clear(),
            }
        }
    }

    /// Whether output is read: somebody takes it, nobody wants it, or those who do take none.
    fn may_go_on(&self, now: Instant) -> bool {
        let keeps_up = |client: &Client| client.lag(&self.output) <= KEPT as u64 / 2;
        self.clients.is_empty() || self.clients.iter().any(keeps_up) || now >= self.taken + PATIENCE
    }

    fn read(&mut self, now: Instant) -> bool {
        let mut any = false;
        // A few reads, so that others have their turn.
        for _ in 0..4 {
            if self.closed.is_some() || !self.may_go_on(now) || !self.read_once(now) {
                break;
            }
            any = true;
        }
        any
    }

    fn read_once(&mut self, now: Instant) -> bool {
        let Some(pty) = &self.pty else { return false };
        let mut bytes = [0; 16 * 1024];
        match rustix::io::read(pty, &mut bytes) {
            Ok(n @ 1..) => {
                self.output.push(&bytes[..n]);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => false,
            // No process has it open; one may open it again.
            Ok(0) | Err(_) => {
                self.closed = Some(now + CLOSED);
                false
            }
        }
    }

    /// What is left of the output of a command that has ended: no more than a terminal holds.
    fn drain(&mut self) {
        for _ in 0..KEPT / 2 / 1024 {
            if !self.read_once(Instant::now()) {
                return;
            }
        }
    }

    fn foreground(&self) -> Option<i32> {
        let group = rustix::termios::tcgetpgrp(self.pty.as_ref()?).ok()?;
        Some(group.as_raw_nonzero().get())
    }

    fn hang_up(&self) {
        for group in [Some(self.pid), self.foreground()].into_iter().flatten() {
            sys::kill(-group, libc::SIGHUP);
            sys::kill(-group, libc::SIGCONT);
        }
    }

    /// Kills everything that belongs to the terminal.
    fn kill(&self) {
        let groups = [Some(self.pid), self.foreground()].into_iter().flatten().map(|group| -group);
        for pid in groups.chain(members(self.pid)) {
            sys::kill(pid, libc::SIGKILL);
        }
    }
}

impl Client {
    /// How much of the output it has not got.
    fn lag(&self, output: &Scrollback) -> u64 {
        self.replay.len() as u64 + (output.end() - self.at)
    }

    /// Gives it as much as it takes. Whether it took any.
    fn show(&mut self, output: &Scrollback) -> bool {
        let mut any = false;
        loop {
            if self.replay.is_empty() && output.from(self.at).is_none() {
                (self.replay, self.at) = (output.replay_over(MISSED), output.end());
            }
            let first = !self.replay.is_empty();
            let next = if first { &self.replay[..] } else { output.from(self.at).unwrap_or_default() };
            if next.is_empty() {
                return any;
            }
            match rustix::net::send(&self.stream, next, rustix::net::SendFlags::NOSIGNAL) {
                Ok(n) if first => drop(self.replay.drain(..n)),
                Ok(n) => self.at += n as u64,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return any,
                Err(_) => {
                    self.gone = true;
                    return any;
                }
            }
            any = true;
        }
    }
}

/// Our end of a client's stream, which never makes us wait, and the client's.
fn stream() -> io::Result<(OwnedFd, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    rustix::net::sockopt::set_socket_send_buffer_size(&ours, STREAM)?;
    Ok((ours.into(), theirs))
}

/// The processes of a terminal's session, by what `/proc` says, where it is our own.
fn members(leader: i32) -> Vec<i32> {
    let own = std::fs::read_link("/proc/self").is_ok_and(|pid| pid.as_os_str() == "1");
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_member = |pid: &i32| {
        let stat = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
        let stat = String::from_utf8_lossy(&stat);
        // Behind the name in parentheses: state, parent, group, session.
        let session = stat.rsplit_once(')').and_then(|(_, fields)| fields.split_whitespace().nth(3));
        session == Some(leader.to_string().as_str())
    };
    pids.filter(|_| own).filter(is_member).collect()
}
