//! The host side of one sandbox: makes its namespaces, then serves its control socket until the sandbox ends.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::WaitOptions;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::authority::Authority;
use super::bound::{self, Trust};
use super::cgroup::{self, Available, Group};
use super::device;
use super::disk::{Disk, Files};
use super::init::{self, Given, Launched};
use super::launch::{self, HostFacts, IdMap, LaunchRequest, Places, wants_idmap};
use super::lifecycle::Engine;
use super::lifetime::{Moment, Over};
use super::proto::Request;
use super::proxy::Upstream;
use super::remove;
use super::serve::{self, End};
use super::skeleton::{self, Skeleton};
use super::spec::{Forward, Image, Link, Name, Network, Socket};
use super::state::{self, Ended, ProcessId, Run};
use super::{layers, rootfs, scope, seccomp, seq, snapshot, sys, syscalls};
use crate::image;

/// The first argument by which the program becomes a shim.
pub const ARGUMENT: &str = "__engine-shim";
/// The most bytes of a launch order.
const MAX_ORDER: u64 = 32 * 1024 * 1024;

/// What the engine sends to a new shim, on its standard input.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Launch a sandbox and serve it.
    Launch(Box<Order>),
    /// Remove a tree whose files belong to the ids of a sandbox, which the caller itself may not touch.
    Remove {
        /// Those ids.
        id_map: IdMap,
        /// The tree.
        path: PathBuf,
    },
    /// Copy the files of a sandbox into a snapshot, as those ids.
    Copy {
        /// Those ids.
        id_map: IdMap,
        /// The sandbox's directory.
        from: PathBuf,
        /// The snapshot's.
        to: PathBuf,
        /// The groups of the sandbox if it was frozen for this: it goes on as soon as its files are copied, whatever became of the caller.
        thaw: Vec<Group>,
    },
    /// Measure the files of a sandbox, as those ids.
    Measure {
        /// Those ids.
        id_map: IdMap,
        /// The sandbox's directory.
        path: PathBuf,
    },
    /// Unpack a layer of an image with the ids of a sandbox.
    Unpack(Box<Unpack>),
    /// Work on layers of images with the ids of a sandbox.
    Layers(Box<layers::Work>),
}

/// A layer to unpack.
#[derive(Debug, Serialize, Deserialize)]
pub struct Unpack {
    /// The ids.
    pub id_map: IdMap,
    /// Where the layer is.
    pub place: image::Place,
    /// What it must be.
    pub expected: image::Expected,
    /// Where it comes into being.
    pub new: PathBuf,
    /// Where it is when it is whole and on the disk.
    pub path: PathBuf,
}

/// A sandbox to launch.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    /// What to launch.
    pub request: LaunchRequest,
    /// The sandbox's directory.
    pub dir: PathBuf,
    /// The directory of the engine's skeletons.
    pub skeletons: PathBuf,
    /// The directory of its control socket; it exists.
    pub control: PathBuf,
    /// Host addresses that lead inside.
    pub forwards: Vec<Forward>,
    /// Ports inside that lead to the host.
    pub links: Vec<Link>,
    /// Ports of other sandboxes, by name.
    pub names: Vec<Name>,
    /// Unix sockets of the host that lead inside.
    pub sockets: Vec<Socket>,
    /// When it was created, in milliseconds since the Unix epoch and by a clock that nobody sets.
    pub created: (u64, Option<Moment>),
    /// The host's own proxies.
    pub upstream: Upstream,
    /// Whom its proxy believes, where it ends TLS itself.
    pub trust: Trust,
}

/// What the shim answers, once.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// The sandbox runs and its control socket listens.
    Ready,
    /// Its files were copied or measured; the bytes that they take.
    Bytes(u64),
    /// The layer is there.
    Unpacked(image::Unpacked),
    /// The work on layers is done.
    Layers(layers::Outcome),
    /// It does not run.
    Failed {
        /// The step.
        step: String,
        /// Why.
        reason: String,
    },
}

/// Who asked for the shim, until it is answered.
#[derive(Debug)]
pub struct Caller {
    socket: File,
    /// The caller's lock on the sandbox, on standard output. Held here too: if the caller dies, nobody else begins a second
    /// launch while this one is under way.
    lock: OwnedFd,
}

impl Caller {
    /// Answers, and lets go of the lock. A caller that is gone reads the outcome from the state.
    pub fn answer(mut self, answer: &Answer) {
        let _ = serde_json::to_vec(answer).map(|bytes| self.socket.write_all(&bytes));
        drop(self.lock);
    }
}

type Failure = (String, io::Error);

fn step(name: &str) -> impl FnOnce(io::Error) -> Failure + '_ {
    move |error| (name.to_owned(), error)
}

/// The program of the shim. Call it before anything starts a thread.
pub fn main() -> ExitCode {
    sys::close_inherited();
    let (Ok(caller), Ok(lock)) = (sys::copy_of(0), sys::copy_of(1)) else { return ExitCode::FAILURE };
    let mut caller = Caller { socket: File::from(caller), lock };
    sys::set_process_name(c"pocketenv-shim");
    let done = match read_task(&mut caller.socket) {
        Ok(Task::Launch(order)) => {
            let launched =
                detach(&order).map_err(step("detach from the caller")).and_then(|()| launch(&order));
            match launched {
                Ok(live) => return served(run(*order, caller, live)),
                Err(failure) => Err(failure),
            }
        }
        Ok(Task::Remove { id_map, path }) => with_ids(&id_map, || remove::remove_tree(&path))
            .map(|()| Answer::Ready)
            .map_err(step("remove files")),
        Ok(Task::Copy { id_map, from, to, thaw }) => {
            let _ = rustix::process::setsid(); // so that the terminal's Ctrl-C is not for it; it leads no group, so this cannot fail
            let copied = as_owner(&id_map, || snapshot::copy_parts(&from, &to)).map_err(step("copy files"));
            let thawed = cgroup::thaw(&thaw).map_err(step("let the sandbox go on"));
            thawed.and(copied).map(Answer::Bytes)
        }
        Ok(Task::Measure { id_map, path }) => as_owner(&id_map, || snapshot::size_of_parts(&path))
            .map(Answer::Bytes)
            .map_err(step("measure files")),
        Ok(Task::Unpack(task)) => unpack(&task).map(Answer::Unpacked).map_err(step("unpack")),
        Ok(Task::Layers(work)) => {
            layers::carry_out(&work).map(Answer::Layers).map_err(step("work on layers"))
        }
        Err(failure) => Err(failure),
    };
    let answer = done.unwrap_or_else(|(step, error)| Answer::Failed { step, reason: error.to_string() });
    caller.answer(&answer);
    ExitCode::SUCCESS
}

fn served(result: io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shim: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Works on files of a sandbox whoever they belong to: root as itself, others with its ids.
fn as_owner(id_map: &IdMap, work: impl FnOnce() -> io::Result<u64>) -> io::Result<u64> {
    if rustix::process::geteuid().is_root() { work() } else { with_ids(id_map, work) }
}

/// Works as root of a user namespace in which the ids of a sandbox exist, and nobody else.
pub(super) fn with_ids<T: Serialize + DeserializeOwned>(
    id_map: &IdMap,
    work: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    in_namespaces(libc::CLONE_NEWUSER, id_map, || Ok(()), |()| work())
}

/// The same in further namespaces; `open` comes before, still as whoever made the sandbox.
pub(super) fn in_namespaces<O, T: Serialize + DeserializeOwned>(
    namespaces: i32,
    id_map: &IdMap,
    open: impl FnOnce() -> io::Result<O>,
    work: impl FnOnce(O) -> io::Result<T>,
) -> io::Result<T> {
    let (ours, theirs) = seq::pair()?;
    match sys::clone_into_namespaces(namespaces)? {
        sys::Fork::Child => {
            drop(ours);
            let done = seq::recv(&theirs)
                .and_then(|go| go.ok_or(io::ErrorKind::UnexpectedEof.into()))
                .and_then(|_| open())
                .and_then(|opened| {
                    sys::become_user(0, 0, None)?;
                    sys::die_with_parent()?;
                    work(opened)
                });
            let _ = seq::send(&theirs, &done.map_err(|error| error.to_string()), &[]); // its end says the same, without the reason
            sys::exit_now(0)
        }
        sys::Fork::Parent { pid, .. } => {
            drop(theirs);
            write_id_maps(pid, id_map)?;
            seq::send(&ours, &(), &[])?;
            let (bytes, _) = seq::recv(&ours)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            seq::decode::<Result<T, String>>(&bytes)?.map_err(io::Error::other)
        }
    }
}

/// Unpacks a layer into a new directory, and gives it its name when all of it is on the disk.
fn unpack(task: &Unpack) -> io::Result<image::Unpacked> {
    let archive = task.place.open()?;
    fs::DirBuilder::new().mode(0o755).create(&task.new)?;
    let (uid, gid) = task.id_map.root();
    std::os::unix::fs::chown(&task.new, Some(uid), Some(gid))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(&task.new, flags, Mode::empty())?;
    let unpacked = with_ids(&task.id_map, || {
        rustix::process::umask(Mode::empty());
        image::unpack(archive, &root, &task.expected, task.id_map.has_range())
    })?;
    rustix::fs::syncfs(&root)?;
    fs::rename(&task.new, &task.path)?;
    state::sync(&task.path)?;
    Ok(unpacked)
}

fn read_task(caller: &mut File) -> Result<Task, Failure> {
    let mut bytes = Vec::new();
    caller.take(MAX_ORDER).read_to_end(&mut bytes).map_err(step("read the launch order"))?;
    serde_json::from_slice(&bytes).map_err(|error| step("read the launch order")(error.into()))
}

/// A session of its own, nothing on the terminal, messages to the sandbox's log, the sandbox's directory as working directory.
fn detach(order: &Order) -> io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    state::private_dir(&order.dir.join("logs"))?;
    let log = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(order.dir.join("logs/shim.log"))?;
    sys::install_fd(File::open("/dev/null")?, 0)?;
    sys::install_fd(&log, 1)?;
    sys::install_fd(&log, 2)?;
    // Init starts here: relative paths reach the sandbox's files although the way to them is closed to it.
    Ok(rustix::process::chdir(&order.dir)?)
}

struct Live {
    init: OwnedFd,
    pidfd: OwnedFd,
    listener: OwnedFd,
    skeleton: Skeleton,
    authority: Option<Authority>,
    run: Run,
}

fn launch(order: &Order) -> Result<Live, Failure> {
    let request = &order.request;
    let facts = match &request.spec.image {
        Image::Host => rootfs::host_facts(),
        Image::Oci(_) => HostFacts::default(),
    };
    let files = Files::ready(&order.dir, request.spec.limits.disk).map_err(step("prepare its disk"))?;
    rootfs::prepare(files.path(), request, &facts).map_err(step("prepare the files"))?;
    device::make(&order.dir, &request.id_map, &request.devices).map_err(step("make nodes of devices"))?;
    let entries = match &request.spec.image {
        Image::Host => skeleton::for_host(&facts),
        Image::Oci(_) => skeleton::for_image(),
    };
    let skeleton = Skeleton::find_or_make(&order.skeletons, request.id_map.root(), &entries)
        .map_err(step("prepare the files"))?;
    let places = Places { dir: order.dir.clone(), skeleton: skeleton.path().to_owned() };
    let plan = launch::plan(request, &places, &facts);
    let listener = listen(&order.control).map_err(step("open the control socket"))?;
    let (ours, theirs) = seq::pair().map_err(step("make a socket"))?;
    let image = match &request.spec.image {
        Image::Host => None,
        Image::Oci(image) => Some(image),
    };
    let context = init::Context {
        env: environment(order),
        single_id: !request.id_map.has_range(),
        filter: seccomp::program(!request.id_map.has_range()),
        working_dir: image
            .and_then(|image| image.working_dir.as_ref())
            .and_then(|dir| CString::new(dir.as_os_str().as_bytes()).ok()),
    };
    let shim = ProcessId::of(std::process::id() as i32).map_err(step("read /proc"))?;
    let cgroups = limited(order, &files).map_err(step("make the control groups"))?;
    let (pid, pidfd) = match sys::clone_into_namespaces(launch::namespaces(request.spec.network))
        .map_err(step("make the namespaces"))?
    {
        sys::Fork::Child => {
            sys::close_all_but(theirs.as_fd()); // nothing of the host side goes inside
            init::main(theirs, &plan, context)
        }
        sys::Fork::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop(theirs); // so that init's end is seen
    cgroup::enter(&cgroups.0, pid).map_err(step("enter the control groups"))?;
    write_id_maps(pid, &request.id_map).map_err(step("write the id maps"))?;
    let (slots, mounts, mut choices) = mapped_mounts(pid, request);
    let disk = files.disk().map(Disk::mount);
    let fds: Vec<_> = mounts.iter().chain(disk).map(AsFd::as_fd).collect();
    // Made after init was: nothing inside ever has its key.
    let authority = bound::ends_tls(&request.spec).then(Authority::new).transpose();
    let authority = authority.map_err(step("make an authority for its proxy"))?;
    let pem = authority.as_ref().map(|authority| authority.pem().to_owned());
    let given = Given { slots, authority: pem, disk: disk.is_some() };
    seq::send(&ours, &given, &fds).map_err(step("talk to init"))?;
    drop(mounts);
    let answer = seq::recv(&ours).map_err(step("talk to init"))?;
    let (bytes, _) =
        answer.ok_or_else(|| step("talk to init")(io::Error::other("it ended before it was ready")))?;
    match seq::decode(&bytes).map_err(step("talk to init"))? {
        Launched::Failed { step, reason } => return Err((step, io::Error::other(reason))),
        Launched::Ready(taken) => choices.extend(taken),
    }
    choices.insert(0, request.id_map.describe());
    choices.extend(request.devices.iter().map(|node| format!("device: {}", node.display())));
    if cgroups.0.iter().any(|group| group.path.ancestors().any(scope::is_ours)) {
        choices.extend(scope::note(rustix::process::geteuid().as_raw()));
    }
    if let Some(image) = image {
        choices.push(format!("image: {}", image.digest));
        choices.extend(image.notes.iter().map(|note| format!("image: {note}")));
    }
    let run = Run {
        boot: state::boot_id().map_err(step("read /proc"))?,
        shim,
        init: ProcessId::of(pid).map_err(step("read /proc"))?,
        since: state::now_ms(),
        choices,
        cgroups: cgroups.keep(),
        ended: None,
    };
    state::write(Path::new("run.json"), &run, false).map_err(step("record the run"))?;
    Ok(Live { init: ours, pidfd, listener, skeleton, authority, run })
}

/// Control groups that are removed unless the launch succeeds.
struct Groups(Vec<Group>);

impl Groups {
    fn keep(mut self) -> Vec<Group> {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        if let Err(error) = cgroup::remove(&self.0) {
            eprintln!("control groups: {error}");
        }
    }
}

/// The groups of a sandbox with a limit, with the limits in force.
fn limited(order: &Order, files: &Files) -> io::Result<Groups> {
    let limits = &order.request.spec.limits;
    if !limits.need_groups() {
        return Ok(Groups(Vec::new()));
    }
    let available = Available::of(std::process::id() as i32)?;
    available.check(limits).map_err(io::Error::other)?;
    if let Some(scope) = available.scope() {
        scope::make_room(scope)?;
    }
    let groups = Groups(available.make(&cgroup::name(&order.dir, &order.request.id))?);
    cgroup::limit(&groups.0, limits, &files.devices(&order.dir))?;
    Ok(groups)
}

fn listen(dir: &Path) -> io::Result<OwnedFd> {
    let (_dir, address) = state::socket_address(dir)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 1024)?;
    Ok(socket)
}

fn environment(order: &Order) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut env = BTreeMap::new();
    if let Image::Oci(image) = &order.request.spec.image {
        for (name, value) in &image.env {
            env.insert(name.as_bytes().to_vec(), value.as_bytes().to_vec());
        }
    }
    if order.request.spec.network == Network::Isolated {
        for (name, value) in super::proxy::environment() {
            env.insert(name.as_bytes().to_vec(), value.into_bytes());
        }
    }
    if bound::ends_tls(&order.request.spec) {
        for (name, value) in bound::environment() {
            env.insert(name.as_bytes().to_vec(), value.into_bytes());
        }
    }
    for (name, value) in &order.request.spec.env {
        env.insert(name.as_bytes().to_vec(), value.as_bytes().to_vec());
    }
    env
}

fn write_id_maps(pid: i32, id_map: &IdMap) -> io::Result<()> {
    let file = |name: &str, content: String| fs::write(format!("/proc/{pid}/{name}"), content);
    match *id_map {
        IdMap::High { base } => {
            file("uid_map", format!("0 {base} 65536"))?;
            file("gid_map", format!("0 {base} 65536"))
        }
        IdMap::Single { ids: (uid, gid) } => {
            file("setgroups", "deny".to_owned())?;
            file("uid_map", format!("0 {uid} 1"))?;
            file("gid_map", format!("0 {gid} 1"))
        }
        IdMap::Subordinate { ids: (uid, gid), uids, gids } => {
            for (program, own, (start, count)) in [("newuidmap", uid, uids), ("newgidmap", gid, gids)] {
                let path = rootfs::find_program(program).ok_or(io::ErrorKind::NotFound)?;
                let numbers = [
                    pid.to_string(),
                    "0".into(),
                    own.to_string(),
                    "1".into(),
                    "1".into(),
                    start.to_string(),
                    count.to_string(),
                ];
                let output = std::process::Command::new(path).args(numbers).output()?;
                if !output.status.success() {
                    return Err(io::Error::other(format!(
                        "{program}: {}",
                        String::from_utf8_lossy(&output.stderr).trim()
                    )));
                }
            }
            Ok(())
        }
    }
}

/// The mounts that only the host side can make: host directories whose owners appear as they are. Where that is refused,
/// init mounts them plainly, and it is said.
fn mapped_mounts(pid: i32, request: &LaunchRequest) -> (Vec<usize>, Vec<OwnedFd>, Vec<String>) {
    let (mut slots, mut mounts, mut choices) = (Vec::new(), Vec::new(), Vec::new());
    for (slot, (mount, path)) in request.spec.mounts.iter().zip(&request.mount_paths).enumerate() {
        if !wants_idmap(&request.id_map, &mount.source) {
            continue;
        }
        let mapped = || -> io::Result<OwnedFd> {
            let tree = syscalls::detached(path)?;
            sys::mount_idmap(&tree, File::open(format!("/proc/{pid}/ns/user"))?)?;
            Ok(tree)
        };
        match mapped() {
            Ok(tree) => {
                slots.push(slot);
                mounts.push(tree);
            }
            Err(error) => choices.push(format!("{}: owners are not mapped ({error})", path.display())),
        }
    }
    (slots, mounts, choices)
}

fn run(order: Order, caller: Caller, live: Live) -> io::Result<()> {
    let Live { init, pidfd, listener, skeleton: _held, authority, mut run } = live;
    let control = order.control.clone();
    let (id, dir) = (order.request.id.clone(), order.dir.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let asked = runtime.block_on(serve::serve(order, caller, run.init.pid, init, pidfd, listener, authority));
    let status = rustix::process::wait(WaitOptions::NOHANG).ok().flatten();
    let asked = asked?;
    run.ended = Some(match (asked, status.and_then(|(_, status)| status.terminating_signal())) {
        (End::Asked, _) => Ended::Stopped,
        (End::Over(over), _) => Ended::Unclean(over.to_string()),
        (End::Alone, Some(signal)) => {
            Ended::Unclean(format!("its first process was killed by signal {signal}"))
        }
        (End::Alone, None) => Ended::Unclean("its first process ended".to_owned()),
    });
    // The engine may have added groups since.
    if let Ok(Some(now)) = state::read::<Run>(Path::new("run.json")) {
        run.cgroups = now.cgroups;
    }
    match cgroup::remove(&run.cgroups) {
        Ok(()) => run.cgroups.clear(),
        Err(error) => eprintln!("control groups: {error}"), // the engine tries again
    }
    let written = state::write(Path::new("run.json"), &run, false);
    let _ = fs::remove_file(control.join("control.sock")); // the engine removes what is left
    let _ = fs::remove_dir(control.join("sockets"));
    let _ = fs::remove_dir(&control);
    if matches!(asked, End::Over(Over::Old(_)))
        && let (Some(root), Some(sockets)) = (dir.ancestors().nth(2), control.parent())
        && let Err(error) = runtime.block_on(Engine::of_shim(root, sockets).expire(&id))
    {
        eprintln!("its time is over, and it could not be deleted: {error}"); // whoever looks at it next tries again
    }
    runtime.shutdown_background();
    written
}

/// Whether a client may ask this of the shim.
pub fn is_for_clients(request: &Request) -> bool {
    !matches!(
        request,
        Request::DialPath(_)
            | Request::DialUdp(_)
            | Request::Listen(_)
            | Request::ListenUdp(_)
            | Request::Hosts(_)
            | Request::Idle
    )
}
