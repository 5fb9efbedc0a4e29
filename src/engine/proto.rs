//! The messages between a client, the shim and init. All three are the same binary at launch; a client may be newer, for sandboxes outlive an
//! upgrade. So a message that is not understood is answered, never ignored, nor is a part of it: what is added later is left out of a message
//! while it says nothing new, and refused where it is not known. `tests/corpus/engine` holds messages of every version.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;

use serde::{Deserialize, Serialize};

use super::egress::EgressRule;
use super::spec::{
    ExecRequest, Exit, Forward, ForwardInfo, Lifetime, Link, Name, SessionInfo, Socket, SocketInfo,
};

/// The most bytes of arguments, environment and directory of one command: what Linux itself accepts, and some.
const MAX_COMMAND: u64 = 8 * 1024 * 1024;

/// What failed, in the answer to a request that is not understood.
pub const NOT_UNDERSTOOD: &str = "understand the request";

/// What a client asks of the shim, and (`Exec`, `Session`, `Dial`, `Listen`, `Stop`) the shim of init. In a message to init the first
/// descriptor is the connection on which init answers the client itself.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Run a command. Descriptors: the packed command, then stdin, stdout, stderr unless a terminal is asked for.
    Exec(ExecHead),
    /// Attach to a session that runs, or run its command. Descriptor: the packed command, if there is one.
    Session(SessionHead),
    /// Which sessions there are.
    Sessions,
    /// End the session of this name; answered when it has ended.
    EndSession(String),
    /// Connect to a port of the sandbox's loopback; answered with the socket.
    Dial(u16),
    /// Open a regular file of root's below `/run`; answered with it, or without one if it is not in its directory.
    Open(String),
    /// Write a file in memory. Descriptor: what it is to hold.
    Fill(Fill),
    /// Connect to a unix socket inside, by its path there; answered with the socket. Only from the shim.
    DialPath(String),
    /// A socket for datagrams to a port of the sandbox's loopback; answered with it. Only from the shim.
    DialUdp(u16),
    /// Listen on an address of the sandbox's loopback; answered with the socket. Only from the shim.
    Listen(SocketAddrV4),
    /// A socket for datagrams at an address of the sandbox's loopback; answered with it. Only from the shim.
    ListenUdp(SocketAddrV4),
    /// Make these the names of loopback addresses in `/etc/hosts`, beside what else is there. Only from the shim.
    Hosts(BTreeMap<String, Ipv4Addr>),
    /// End everything inside: SIGTERM, then SIGKILL after the grace in milliseconds.
    Stop(u64),
    /// Which forwards listen.
    Status,
    /// Replace the set of forwards.
    SetForwards(Vec<Forward>),
    /// Replace the set of unix sockets of the host.
    SetSockets(Vec<Socket>),
    /// Which unix sockets of the host listen.
    Sockets,
    /// Replace the set of links.
    SetLinks(Vec<Link>),
    /// Replace the set of names.
    SetNames(Vec<Name>),
    /// For how long no command has run inside that somebody waits for. Only from the shim.
    Idle,
    /// Replace when it ends by itself.
    SetLifetime(Lifetime),
    /// Limits may be others now than they were.
    SetLimits,
    /// Replace the values of bound secrets. Descriptor: the packed values.
    Bind,
    /// Which bound secrets have a value.
    Bound,
    /// Replace the rules of egress.
    SetEgress(Option<Vec<EgressRule>>),
}

/// Which file in memory is written, and how it is left.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fill {
    /// Its number among the files of the spec.
    pub index: usize,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its permissions.
    pub mode: u32,
}

/// The small part of an exec request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecHead {
    /// Number of arguments in the packed command.
    pub args: usize,
    /// Number of environment entries.
    pub env: usize,
    /// Whether a working directory follows them.
    pub cwd: bool,
    /// As in [`ExecRequest`].
    pub user: Option<String>,
    /// Rows and columns of the terminal to make, if one is wanted.
    pub pty: Option<(u16, u16)>,
    /// As in [`ExecRequest`].
    #[serde(default)]
    pub look: bool,
}

/// The small part of a session request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionHead {
    /// Its name.
    pub name: String,
    /// What the command is called in lists.
    pub what: String,
    /// Rows and columns of the client's terminal, if it has one.
    pub size: Option<(u16, u16)>,
    /// The client leaves at once, and is not told the end.
    #[serde(default)]
    pub leave: bool,
    /// What to run if it does not run yet; without it, a session that has ended is attached to as well.
    pub exec: Option<ExecHead>,
}

/// The answers. `Exec` is answered by `Started` or `Failed`, and later `Exited`; `Session` by `Attached` or `Failed`, and later `Exited`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done. For `Dial`, `Listen` and their likes for datagrams the socket comes along, for `Open` the file if there is one.
    Done,
    /// The command runs (its pid inside). For a terminal its master comes along.
    Started(i32),
    /// Attached, to a session made for it if that is said. A stream comes along: the output, first what was missed, and the keys.
    Attached {
        /// The session.
        session: SessionInfo,
        /// It was made for this client.
        made: bool,
    },
    /// The sessions, in order of name.
    Sessions(Vec<SessionInfo>),
    /// The command ended.
    Exited(Exit),
    /// It could not be done: what, and the system's error number.
    Failed {
        /// The step and its object.
        what: String,
        /// An `errno` value.
        errno: i32,
    },
    /// So many milliseconds.
    Idle(u64),
    /// Digests of the values of bound secrets, by name.
    Bound(BTreeMap<String, String>),
    /// The forwards.
    Status(Vec<ForwardInfo>),
    /// The unix sockets of the host.
    Sockets(Vec<SocketInfo>),
}

/// What a client may say while its command runs. Hanging up kills the command's process group; of a session it only detaches.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecControl {
    /// Send this signal to the command's process group.
    Signal(i32),
    /// The client's terminal has these rows and columns. Of a session only.
    Resize(u16, u16),
    /// Detach; the stream ends with what undoes the modes of the terminal. Of a session only.
    Detach,
}

/// A command as init runs it.
#[derive(Debug, Default)]
pub struct Command {
    /// Program and arguments; never empty.
    pub argv: Vec<CString>,
    /// `NAME=value` entries.
    pub env: Vec<CString>,
    /// Working directory.
    pub cwd: Option<CString>,
}

fn c_string(bytes: Vec<u8>, what: &str) -> Result<CString, String> {
    CString::new(bytes).map_err(|_| format!("{what} contains a NUL byte"))
}

/// Packs a request for the wire: the head, and a memory file with NUL-terminated strings.
///
/// # Errors
/// The outer error is the system's; the inner text says what the request has wrong.
pub fn pack(
    request: ExecRequest,
    pty: Option<(u16, u16)>,
) -> io::Result<Result<(ExecHead, OwnedFd), String>> {
    let mut bytes = Vec::new();
    let head = ExecHead {
        args: request.argv.len(),
        env: request.env.len(),
        cwd: request.cwd.is_some(),
        user: request.user,
        pty,
        look: request.look,
    };
    if request.argv.first().is_none_or(|program| program.is_empty()) {
        return Ok(Err("the command is empty".to_owned()));
    }
    let mut strings = Vec::with_capacity(head.args + head.env + 1);
    for argument in request.argv {
        strings.push((argument.into_vec(), "an argument"));
    }
    for (name, value) in request.env {
        let mut entry = name.into_vec();
        if entry.is_empty() || entry.contains(&b'=') {
            return Ok(Err("an environment variable's name is empty or contains `=`".to_owned()));
        }
        entry.push(b'=');
        entry.extend(value.into_vec());
        strings.push((entry, "an environment variable"));
    }
    if let Some(cwd) = request.cwd {
        strings.push((cwd.into_os_string().into_vec(), "the working directory"));
    }
    for (string, what) in strings {
        match c_string(string, what) {
            Ok(string) => bytes.extend(string.into_bytes_with_nul()),
            Err(problem) => return Ok(Err(problem)),
        }
    }
    if bytes.len() as u64 > MAX_COMMAND {
        return Ok(Err(format!("the command with its environment is over {MAX_COMMAND} bytes")));
    }
    let mut file = File::from(rustix::fs::memfd_create("command", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(&bytes)?;
    io::Seek::rewind(&mut file)?;
    Ok(Ok((head, file.into())))
}

/// Reads a packed command back.
///
/// # Errors
/// `InvalidData` when it does not hold what the head says; else what reading reports.
pub fn unpack(head: &ExecHead, payload: OwnedFd) -> io::Result<Command> {
    let mut bytes = Vec::new();
    File::from(payload).take(MAX_COMMAND + 1).read_to_end(&mut bytes)?;
    let mut strings = bytes.split_inclusive(|byte| *byte == 0);
    let mut next = || -> io::Result<CString> {
        let string = strings.next().ok_or(io::ErrorKind::InvalidData)?;
        CString::from_vec_with_nul(string.to_vec())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    };
    let argv = (0..head.args).map(|_| next()).collect::<io::Result<Vec<_>>>()?;
    let env = (0..head.env).map(|_| next()).collect::<io::Result<Vec<_>>>()?;
    let cwd = if head.cwd { Some(next()?) } else { None };
    if argv.is_empty() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Command { argv, env, cwd })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::seq;
    use super::super::state::{Record, Run};
    use super::*;

    /// What the first version said and wrote down is read as long as sandboxes of it may run, and what says nothing new is said as it was, so that
    /// those understand it.
    #[test]
    fn messages_and_records_of_every_version_are_read() {
        fn read<T: Serialize + serde::de::DeserializeOwned>(text: &str) -> String {
            let value: T = seq::decode(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
            serde_json::to_string(&value).unwrap()
        }
        let corpus = include_str!("../../tests/corpus/engine/messages-1.txt");
        let mut kinds = std::collections::BTreeSet::new();
        for line in corpus.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (kind, text) = line.split_once(' ').unwrap();
            let again = match kind {
                "request" => read::<Request>(text),
                "reply" => read::<Reply>(text),
                "control" => read::<ExecControl>(text),
                "record" => read::<Record>(text),
                "run" => read::<Run>(text),
                other => panic!("{other}"),
            };
            // What is written down is only ever read by what is as new or newer.
            assert!(again == text || ["record", "run"].contains(&kind), "{text} is said as {again}");
            kinds.insert(kind);
        }
        assert_eq!(kinds.len(), 5);
    }

    #[test]
    fn what_is_added_later_is_refused_and_not_ignored() {
        for text in [
            r#"{"teleport":1}"#,
            r#"{"exec":{"args":1,"env":0,"cwd":false,"user":null,"pty":null,"look":false,"as_of":9}}"#,
            r#"{"set_lifetime":{"ttl":1,"idle":2,"at":3}}"#,
        ] {
            assert!(seq::decode::<Request>(text.as_bytes()).is_err(), "{text}");
        }
    }
}
