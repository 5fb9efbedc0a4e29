//! What stands between a program and a simulated cloud, and kills the program at named points: when a request has arrived, when its effect has
//! happened and nobody knows, and when the answer was given.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How far a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Station {
    /// The cloud has not seen it.
    Asked,
    /// It has had its effect, and its answer is lost.
    Happened,
    /// Its answer was given.
    Answered,
}

/// A point of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// `create`, `list`, `get`, `start`, `stop`, `delete`, `update`, `exec` or `volume`.
    pub operation: &'static str,
    pub station: Station,
    /// Which request of this operation, from 0.
    pub nth: usize,
}

/// Who is killed where.
struct Aim {
    pid: i32,
    point: Point,
    seen: usize,
    fired: bool,
}

/// The one in between, for as long as the test runs.
#[derive(Clone)]
pub struct Between {
    pub url: String,
    aim: Arc<Mutex<Option<Aim>>>,
}

impl Between {
    pub fn start(cloud: &str) -> Between {
        let cloud: SocketAddr = cloud.strip_prefix("http://").unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let between =
            Between { url: format!("http://{}", listener.local_addr().unwrap()), aim: Arc::default() };
        let aim = Arc::clone(&between.aim);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let aim = Arc::clone(&aim);
                // A connection that is cut is what this is for.
                std::thread::spawn(move || carry(client, cloud, &aim));
            }
        });
        between
    }

    /// The process is killed at this point, once. It must not have been waited for.
    pub fn aim(&self, pid: u32, point: Point) {
        let pid = i32::try_from(pid).unwrap();
        *self.aim.lock().unwrap() = Some(Aim { pid, point, seen: 0, fired: false });
    }

    /// Whether the point was reached. Nobody is killed any more.
    pub fn lower(&self) -> bool {
        self.aim.lock().unwrap_or_else(PoisonError::into_inner).take().is_some_and(|aim| aim.fired)
    }
}

/// Whether the process is killed here.
fn fires(aim: &Mutex<Option<Aim>>, operation: &str, station: Station) -> bool {
    let mut aim = aim.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(aim) = aim.as_mut().filter(|aim| aim.point.operation == operation) else { return false };
    if aim.point.station != station || aim.fired {
        return false;
    }
    aim.seen += 1;
    aim.fired = aim.seen > aim.point.nth;
    if aim.fired {
        let _ = kill(Pid::from_raw(aim.pid), Signal::SIGKILL);
    }
    aim.fired
}

fn operation(head: &str) -> &'static str {
    let mut words = head.split([' ', '?']);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let rest: Vec<&str> = path.trim_matches('/').split('/').skip(1).collect();
    match (method, rest.as_slice()) {
        ("POST", ["sandboxes"]) => "create",
        ("GET", ["sandboxes" | "volumes"]) => "list",
        ("GET", ["sandboxes", _]) => "get",
        ("PATCH", _) => "update",
        ("DELETE", ["sandboxes", _]) => "delete",
        (_, ["sandboxes", _, "start"]) => "start",
        (_, ["sandboxes", _, "stop"]) => "stop",
        (_, ["sandboxes", _, "exec"]) => "exec",
        (_, ["volumes", ..]) => "volume",
        _ => "other",
    }
}

/// One message: its head and its body. Both sides tell the length.
fn message(from: &mut BufReader<TcpStream>) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let mut head = String::new();
    loop {
        if from.read_line(&mut head)? == 0 {
            return Ok(None);
        }
        if head.ends_with("\r\n\r\n") {
            break;
        }
    }
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let mut body = vec![0; length.unwrap_or(0)];
    from.read_exact(&mut body)?;
    Ok(Some((head, body)))
}

fn carry(client: TcpStream, cloud: SocketAddr, aim: &Mutex<Option<Aim>>) -> std::io::Result<()> {
    let cloud = TcpStream::connect(cloud)?;
    for stream in [&client, &cloud] {
        stream.set_nodelay(true)?;
    }
    let (mut to_client, mut to_cloud) = (client.try_clone()?, cloud.try_clone()?);
    let (mut client, mut cloud) = (BufReader::new(client), BufReader::new(cloud));
    while let Some((head, body)) = message(&mut client)? {
        let operation = operation(&head);
        if fires(aim, operation, Station::Asked) {
            break;
        }
        to_cloud.write_all(&[head.as_bytes(), &body].concat())?;
        let Some((head, body)) = message(&mut cloud)? else { break };
        if fires(aim, operation, Station::Happened) {
            break;
        }
        to_client.write_all(&[head.as_bytes(), &body].concat())?;
        fires(aim, operation, Station::Answered);
    }
    Ok(())
}
