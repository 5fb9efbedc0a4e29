//! Limits, by control groups of the kernel, version 2 or 1, made and written by ourselves: as root anywhere, as an ordinary user
//! in a scope of the user's systemd (see `scope`) or below another group that was delegated. What cannot be enforced is an error and
//! never a claim.
//!
//! A sandbox with a limit has one group for each controller, `pocketenv/<name>` below the caller's own (below the top for root on
//! version 2, where a group with processes has no limited children). Only what is inside is in it: the shim is not, so that a
//! sandbox out of memory cannot take its host side along. The groups are written down with the run and removed at its end.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::Access;
use serde::{Deserialize, Serialize};

use super::scope::{self, Manager};
use super::spec::{IoLimits, Limits, LimitsInfo};
use super::throttle;

/// The directory of our groups, in whatever group they are made.
const OURS: &str = "pocketenv";
/// The period of processor limits in microseconds, and the shortest share of it that the kernel takes.
const PERIOD: u64 = 100_000;
const SHORTEST: u64 = 1_000;
/// How long a group may stay busy after its last process ended.
const BUSY: Duration = Duration::from_secs(2);
/// How long the kernel may take to freeze what is in a group.
const FREEZE: Duration = Duration::from_secs(5);
/// The most of the kernel's log that is looked through.
const MAX_LOG: usize = 4096;

/// What can be limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Controller {
    /// Processor time.
    Cpu,
    /// Memory.
    Memory,
    /// The number of processes and threads.
    Pids,
    /// Reading and writing of devices; version 1 calls it `blkio`.
    Io,
    /// Whether processes run at all. Limits nothing: its group is made when a sandbox is paused for the first time.
    Freezer,
}

impl Controller {
    /// Those that limit.
    const ALL: [Controller; 4] = [Controller::Cpu, Controller::Memory, Controller::Pids, Controller::Io];

    fn name(self) -> &'static str {
        match self {
            Controller::Cpu => "cpu",
            Controller::Memory => "memory",
            Controller::Pids => "pids",
            Controller::Io => "io",
            Controller::Freezer => "freezer",
        }
    }

    /// Its name in version 1.
    fn first_name(self) -> &'static str {
        match self {
            Controller::Io => "blkio",
            other => other.name(),
        }
    }

    fn is_wanted(self, limits: &Limits) -> bool {
        match self {
            Controller::Cpu => limits.cpu_millis.is_some(),
            Controller::Memory => limits.memory.is_some(),
            Controller::Pids => limits.pids.is_some(),
            Controller::Io => limits.io != IoLimits::default(),
            Controller::Freezer => false,
        }
    }
}

/// One group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// What it limits.
    pub controller: Controller,
    /// Its directory.
    pub path: PathBuf,
    /// Of version 2.
    pub unified: bool,
}

/// The controllers that this process can make groups of, with the directories to make them in, and why there are no more.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Available {
    /// Where `pocketenv/` belongs, by controller.
    places: Vec<(Controller, PathBuf, bool)>,
    /// Why some are missing.
    why_not: String,
    /// Where the group of a paused sandbox belongs, or why there is no such place.
    freezer: Freezer,
    /// Who is to be asked for a scope before there is such a place.
    manager: Option<Manager>,
}

/// Where sandboxes can be frozen.
#[derive(Debug, Default, PartialEq, Eq)]
enum Freezer {
    /// Below this group, of version 2 or not.
    At(PathBuf, bool),
    /// Nowhere, and why.
    Nowhere(String),
    /// It was not looked for.
    #[default]
    Unknown,
}

impl Available {
    /// What a sandbox that is started now can have. Changes nothing.
    ///
    /// # Errors
    /// What reading `/proc` reports.
    pub fn here() -> io::Result<Available> {
        let user = rustix::process::geteuid();
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let manager = match mounted(&mounts, &|kind, _| kind == "cgroup2") {
            Some((_, top)) if !user.is_root() => Manager::find(user.as_raw(), Path::new(top)),
            _ => None,
        };
        match manager.and_then(by_scope) {
            Some(available) => Ok(available),
            None => Available::of(std::process::id() as i32),
        }
    }

    /// What a sandbox whose host-side process runs already can have. Changes nothing.
    ///
    /// # Errors
    /// What reading `/proc` reports.
    pub fn of(shim: i32) -> io::Result<Available> {
        let own = fs::read_to_string(format!("/proc/{shim}/cgroup"))?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let writable = |path: &Path| {
            // No file of a group can be executed.
            let search = if path.is_dir() { Access::EXEC_OK } else { Access::empty() };
            rustix::fs::access(path, Access::WRITE_OK | search).is_ok()
        };
        Ok(find(&own, &mounts, rustix::process::geteuid().is_root(), &writable))
    }

    /// Who must start the host-side process of a sandbox with limits in a scope.
    pub fn manager(&self) -> Option<&Manager> {
        self.manager.as_ref()
    }

    /// The scope of ours in which the groups will be.
    pub fn scope(&self) -> Option<&Path> {
        self.places.iter().map(|(_, place, _)| place.as_path()).find(|place| scope::is_ours(place))
    }

    /// The names of what can be limited.
    pub fn names(&self) -> Vec<&'static str> {
        self.places.iter().map(|(controller, ..)| controller.name()).collect()
    }

    /// Why not everything can be.
    pub fn why_not(&self) -> &str {
        &self.why_not
    }

    /// What to do about it.
    pub fn remedy(&self) -> String {
        if self.manager.is_none() {
            let users = "as a user whose own systemd runs (after a login, or `loginctl enable-linger USER`)";
            return format!("run it as root, or {users}");
        }
        format!(
            "let systemd hand it on (`Delegate={}` under `[Service]` in /etc/systemd/system/user@.service.d/delegate.conf, then \
             restart user@{}.service), or run it as root",
            Controller::ALL.map(Controller::name).join(" "),
            rustix::process::geteuid().as_raw()
        )
    }

    /// Whether every one of these limits can be enforced.
    ///
    /// # Errors
    /// The text names the limits that cannot, why, and what to do.
    pub fn check(&self, limits: &Limits) -> Result<(), String> {
        let IoLimits { read, write, read_ops, write_ops } = limits.io;
        let zero = [limits.memory, read, write, read_ops, write_ops].contains(&Some(0));
        if zero || limits.cpu_millis == Some(0) || limits.pids == Some(0) {
            return Err("a limit of 0 lets nothing run".to_owned());
        }
        if limits.cpu_millis.is_some_and(|millis| u64::from(millis) * PERIOD / 1000 < SHORTEST) {
            return Err("less than 0.01 of a processor cannot be enforced".to_owned());
        }
        let has = |controller: &Controller| self.places.iter().any(|(c, ..)| c == controller);
        let missing: Vec<&str> = Controller::ALL
            .iter()
            .filter(|controller| controller.is_wanted(limits) && !has(controller))
            .map(|controller| controller.name())
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(format!(
            "{} cannot be limited here: {}; {}, or remove the limit",
            missing.join(" and "),
            self.why_not,
            self.remedy()
        ))
    }

    /// Makes the groups called `name`; groups of that name that are there already are taken.
    ///
    /// # Errors
    /// What the kernel reports, with the path; what was made until then is removed.
    pub fn make(&self, name: &str) -> io::Result<Vec<Group>> {
        let groups = self.named(name);
        for ((controller, parent, unified), group) in self.places.iter().zip(&groups) {
            if let Err(error) = make(parent, &group.path, unified.then_some(controller.name())) {
                let _ = remove(&groups); // the failure that led here says more
                return Err(at(&group.path, &error));
            }
        }
        Ok(groups)
    }

    /// Why no sandbox can be frozen; `None` where one can.
    pub fn no_freezer(&self) -> Option<&str> {
        match &self.freezer {
            Freezer::At(..) => None,
            Freezer::Nowhere(why) => Some(why),
            Freezer::Unknown => Some("it was not looked for"),
        }
    }

    /// Makes the group called `name` in which a sandbox can be frozen; one that is there already is taken.
    ///
    /// # Errors
    /// The text says why this machine has none for this user, and what to do.
    pub fn make_freezer(&self, name: &str) -> Result<Group, String> {
        let (parent, unified) = match &self.freezer {
            Freezer::At(parent, unified) => (parent, *unified),
            Freezer::Nowhere(why) => {
                return Err(format!(
                    "nothing can be paused here: {why}; run it as root, or give the sandbox a limit where the user's own systemd \
                     runs (it is started in a scope then), or stop it instead"
                ));
            }
            Freezer::Unknown => return Err("nothing can be paused here".to_owned()),
        };
        let path = parent.join(OURS).join(name);
        let group = Group { controller: Controller::Freezer, path, unified };
        make(parent, &group.path, None).map_err(|error| at(&group.path, &error).to_string())?;
        Ok(group)
    }

    /// The groups that [`Available::make`] makes, whether they are there or not.
    pub fn named(&self, name: &str) -> Vec<Group> {
        let group = |(controller, parent, unified): &(Controller, PathBuf, bool)| Group {
            controller: *controller,
            path: parent.join(OURS).join(name),
            unified: *unified,
        };
        self.places.iter().map(group).collect()
    }
}

/// `enable` is the controller that version 2 has to be told of.
fn make(parent: &Path, path: &Path, enable: Option<&str>) -> io::Result<()> {
    let ours = parent.join(OURS);
    loop {
        for dir in [ours.as_path(), path] {
            match fs::create_dir(dir) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                // whoever ended the last sandbox removed the parent meanwhile
                Err(error) if error.kind() == io::ErrorKind::NotFound && dir != ours => break,
                other => other?,
            }
        }
        if let Some(controller) = enable {
            for dir in [parent, &ours] {
                fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"))?;
            }
        }
        if path.is_dir() {
            return Ok(());
        }
    }
}

/// What the two files of `/proc` say about where groups can be made.
fn find(own: &str, mounts: &str, root: bool, writable: &dyn Fn(&Path) -> bool) -> Available {
    let mut available = Available::default();
    let mut reasons = Vec::new();
    for controller in Controller::ALL {
        match place(controller, own, mounts, root, writable) {
            Ok((path, unified)) => available.places.push((controller, path, unified)),
            Err(reason) if !reasons.contains(&reason) => reasons.push(reason),
            Err(_) => {}
        }
    }
    available.why_not = reasons.join(", ");
    available.freezer = match place(Controller::Freezer, own, mounts, root, writable) {
        Ok((path, unified)) => Freezer::At(path, unified),
        Err(reason) => Freezer::Nowhere(reason),
    };
    available
}

/// What there is in a scope of this manager; nothing where it has no control groups of version 2 to hand on.
fn by_scope(manager: Manager) -> Option<Available> {
    let offered = fs::read_to_string(manager.group.join("cgroup.controllers")).ok()?;
    let is_offered =
        |controller: &Controller| offered.split_whitespace().any(|item| item == controller.name());
    let (there, missing): (Vec<_>, Vec<_>) = Controller::ALL.into_iter().partition(is_offered);
    let why_not =
        |controller: Controller| format!("systemd hands no controller `{}` to its users", controller.name());
    (!there.is_empty()).then(|| Available {
        places: there.into_iter().map(|controller| (controller, manager.group.clone(), true)).collect(),
        why_not: missing.into_iter().map(why_not).collect::<Vec<_>>().join(", "),
        freezer: Freezer::At(manager.group.clone(), true),
        manager: Some(manager),
    })
}

/// What is mounted where, of the first mount of such a kind with such options.
fn mounted<'a>(mounts: &'a str, wanted: &dyn Fn(&str, &str) -> bool) -> Option<(&'a str, &'a str)> {
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let (kind, options) = (right.split(' ').next()?, right.split(' ').nth(2)?);
        let mut fields = left.split(' ').skip(3);
        let (from, to) = (fields.next()?, fields.next()?);
        wanted(kind, options).then_some((from, to))
    })
}

fn place(
    controller: Controller,
    own: &str,
    mounts: &str,
    root: bool,
    writable: &dyn Fn(&Path) -> bool,
) -> Result<(PathBuf, bool), String> {
    let (name, first_name) = (controller.name(), controller.first_name());
    let has = |list: &str| list.split(',').any(|item| item == first_name);
    // Version 1 has a line for the controller, version 2 one without any.
    let own_path = |wanted: &dyn Fn(&str) -> bool| {
        own.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            wanted(controllers).then_some(path)
        })
    };
    // Seen from the mount; outside of it where a container shows only part of the tree.
    let beneath = |path: &str, (from, to): (&str, &str)| {
        let rest = Path::new(path).strip_prefix(from).map_or(Path::new(""), |rest| rest);
        Path::new(to).join(rest)
    };
    if let Some(mount) = mounted(mounts, &|kind, options| kind == "cgroup" && has(options)) {
        let at = beneath(own_path(&|list| has(list)).unwrap_or("/"), mount);
        let place = if at.is_dir() { at } else { PathBuf::from(mount.1) };
        return match writable(&place) {
            true => Ok((place, false)),
            false => Err("control groups (version 1) belong to root".to_owned()),
        };
    }
    let mount = mounted(mounts, &|kind, _| kind == "cgroup2").ok_or("control groups are not mounted")?;
    let at = beneath(own_path(&str::is_empty).unwrap_or("/"), mount);
    let top = Path::new(mount.1);
    let place = if root {
        Some(top.to_owned())
    } else {
        // The highest delegated one; the caller's own has a process, so no child of it can be limited.
        let ours: Vec<&Path> = at.ancestors().skip(1).take_while(|path| path.starts_with(top)).collect();
        let delegated = |path: &&&Path| writable(path) && writable(&path.join("cgroup.procs"));
        let scope = at.ancestors().find(|path| scope::is_ours(path));
        scope.or_else(|| ours.iter().rev().find(delegated).copied()).map(Path::to_owned)
    };
    let place = place.filter(|place| writable(place)).ok_or("no control group is delegated to this user")?;
    if controller == Controller::Freezer {
        return Ok((place, true)); // every group of version 2 can be frozen
    }
    let controllers = fs::read_to_string(place.join("cgroup.controllers")).unwrap_or_default();
    match controllers.split_whitespace().any(|item| item == name) {
        true => Ok((place, true)),
        false => Err(format!("the kernel offers no controller `{name}` in {}", place.display())),
    }
}

/// The name of a sandbox's groups: engines on other directories may have the same id.
pub fn name(dir: &Path, id: &str) -> String {
    use sha2::{Digest, Sha256};
    use std::os::unix::ffi::OsStrExt;
    let digest = Sha256::digest(dir.as_os_str().as_bytes());
    let tag: String = digest[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{id}-{tag}")
}

/// Puts a process into the groups; what it starts later is in them too.
///
/// # Errors
/// What the kernel reports.
pub fn enter(groups: &[Group], pid: i32) -> io::Result<()> {
    groups.iter().try_for_each(|group| {
        fs::write(group.path.join("cgroup.procs"), pid.to_string()).map_err(|error| at(&group.path, &error))
    })
}

/// Puts a process and all that descend from it into the groups, also those that are born meanwhile.
///
/// # Errors
/// What the kernel reports.
pub fn enter_all(groups: &[Group], pid: i32) -> io::Result<()> {
    let mut entered = std::collections::BTreeSet::new();
    loop {
        let mut open = vec![pid];
        let before = entered.len();
        while let Some(pid) = open.pop() {
            if entered.insert(pid) {
                match enter(groups, pid) {
                    Err(error) if !Path::new("/proc").join(pid.to_string()).exists() => drop(error), // it ended
                    other => other?,
                }
            }
            open.extend(children(pid));
        }
        // A child of one that was entered is born inside; a look that finds no stranger was complete.
        if entered.len() == before {
            return Ok(());
        }
    }
}

/// What the threads of a process have started; nothing of one that ended.
fn children(pid: i32) -> Vec<i32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// Freezes what is in the group and waits until all of it is frozen, or lets it go on. Nothing inside can tell, or be asked.
///
/// # Errors
/// What the kernel reports; what could not be frozen in time goes on.
pub fn freeze(group: &Group, frozen: bool) -> io::Result<()> {
    let (file, value) = match (group.unified, frozen) {
        (true, true) => ("cgroup.freeze", "1"),
        (true, false) => ("cgroup.freeze", "0"),
        (false, true) => ("freezer.state", "FROZEN"),
        (false, false) => ("freezer.state", "THAWED"),
    };
    let set = || fs::write(group.path.join(file), value).map_err(|error| at(&group.path.join(file), &error));
    let deadline = Instant::now() + FREEZE;
    set()?;
    while frozen && !is_wholly_frozen(group)? {
        if Instant::now() >= deadline {
            freeze(group, false)?;
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("not frozen within {FREEZE:?}")));
        }
        std::thread::sleep(Duration::from_millis(1));
        if !group.unified {
            set()?; // version 1 takes along what was started meanwhile only when it is told again
        }
    }
    Ok(())
}

fn is_wholly_frozen(group: &Group) -> io::Result<bool> {
    let read = |file: &str| fs::read_to_string(group.path.join(file));
    Ok(match group.unified {
        true => counter(&read("cgroup.events")?, "frozen") == 1,
        false => read("freezer.state")?.trim() == "FROZEN",
    })
}

/// Whether what is in these groups is frozen, or on its way there. A group that is gone holds nothing.
///
/// # Errors
/// What reading the groups reports.
pub fn is_frozen(groups: &[Group]) -> io::Result<bool> {
    for group in groups.iter().filter(|group| group.controller == Controller::Freezer) {
        let (file, thawed) = if group.unified { ("cgroup.freeze", "0") } else { ("freezer.state", "THAWED") };
        match fs::read_to_string(group.path.join(file)) {
            Ok(state) if state.trim() == thawed => {}
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(at(&group.path, &error)),
        }
    }
    Ok(false)
}

/// Lets everything in these groups go on, whether it was frozen or not.
///
/// # Errors
/// What the kernel reports.
pub fn thaw(groups: &[Group]) -> io::Result<()> {
    for group in groups.iter().filter(|group| group.controller == Controller::Freezer) {
        match freeze(group, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

/// Sets the limits of the groups; what is absent is unlimited. `devices` hold the files of the sandbox.
///
/// # Errors
/// What the kernel reports: memory that is in use cannot always be taken back.
pub fn limit(groups: &[Group], limits: &Limits, devices: &[String]) -> io::Result<()> {
    for group in groups {
        let set = |file: &str, value: &str| {
            fs::write(group.path.join(file), value).map_err(|error| at(&group.path.join(file), &error))
        };
        match (group.controller, group.unified) {
            (Controller::Cpu, true) => match limits.cpu_millis {
                None => set("cpu.max", "max")?,
                Some(millis) => set("cpu.max", &format!("{} {PERIOD}", quota(millis)))?,
            },
            (Controller::Cpu, false) => {
                set("cpu.cfs_period_us", &PERIOD.to_string())?;
                set(
                    "cpu.cfs_quota_us",
                    &limits.cpu_millis.map_or("-1".to_owned(), |millis| quota(millis).to_string()),
                )?;
            }
            (Controller::Memory, true) => {
                // What is over the limit ends; it does not go to the disk.
                if group.path.join("memory.swap.max").exists() {
                    set("memory.swap.max", if limits.memory.is_some() { "0" } else { "max" })?;
                }
                set("memory.max", &limits.memory.map_or("max".to_owned(), |bytes| bytes.to_string()))?;
            }
            (Controller::Memory, false) => {
                let value = limits.memory.map_or("-1".to_owned(), |bytes| bytes.to_string());
                let both = "memory.memsw.limit_in_bytes";
                let swap = group.path.join(both).exists();
                // Memory alone may never be over both together, so a rise begins with both.
                if set("memory.limit_in_bytes", &value).is_err() && swap {
                    set(both, &value)?;
                }
                set("memory.limit_in_bytes", &value)?;
                if swap {
                    set(both, &value)?;
                }
            }
            (Controller::Freezer, _) => {}
            // Where nothing was limited and nothing is to be, the kernel may not even know how.
            (Controller::Io, _) if limits.io == throttle::read(group) => {}
            (Controller::Io, unified) => {
                for (file, line) in throttle::lines(&limits.io, unified, devices) {
                    set(file, &line)?;
                }
            }
            (Controller::Pids, _) => {
                set("pids.max", &limits.pids.map_or("max".to_owned(), |n| n.to_string()))?
            }
        }
    }
    Ok(())
}

fn quota(millis: u32) -> u64 {
    u64::from(millis) * PERIOD / 1000
}

/// What holds now, and what it led to.
///
/// # Errors
/// What reading the groups reports.
pub fn measure(groups: &[Group]) -> io::Result<LimitsInfo> {
    let mut info = LimitsInfo::default();
    for group in groups {
        let read = |file: &str| fs::read_to_string(group.path.join(file));
        if group.controller == Controller::Freezer {
            continue;
        }
        info.by = if group.unified { "cgroup v2" } else { "cgroup v1" }.to_owned();
        match (group.controller, group.unified) {
            (Controller::Cpu, true) => {
                let text = read("cpu.max")?;
                let mut fields = text.split_whitespace().map(|field| field.parse::<u64>().ok());
                info.in_force.cpu_millis = share(fields.next().flatten(), fields.next().flatten());
            }
            (Controller::Cpu, false) => {
                let number = |text: String| text.trim().parse::<u64>().ok();
                info.in_force.cpu_millis =
                    share(number(read("cpu.cfs_quota_us")?), number(read("cpu.cfs_period_us")?));
            }
            (Controller::Memory, unified) => {
                let (limit, events) = match unified {
                    true => ("memory.max", "memory.events"),
                    false => ("memory.limit_in_bytes", "memory.oom_control"),
                };
                let limit = read(limit)?.trim().parse().ok();
                // Version 1 has a number without a limit too: the greatest.
                info.in_force.memory = limit.filter(|bytes| *bytes < (1 << 60));
                info.oom_kills = counter(&read(events)?, "oom_kill");
                if info.oom_kills > 0 {
                    info.last_killed = killed(&group.path, 0).pop().map(|killed| killed.name);
                }
            }
            (Controller::Freezer, _) => {}
            (Controller::Io, _) => info.in_force.io = throttle::read(group),
            (Controller::Pids, _) => {
                info.in_force.pids = read("pids.max")?.trim().parse().ok();
                info.forks_refused = counter(&read("pids.events")?, "max");
            }
        }
    }
    Ok(info)
}

/// Processes that the kernel killed because the memory was used up, and those that could not be started because there were too many.
///
/// # Errors
/// What reading the groups reports.
pub fn counters(groups: &[Group]) -> io::Result<(u64, u64)> {
    let (mut killed, mut refused) = (0, 0);
    for group in groups {
        let read = |file: &str| fs::read_to_string(group.path.join(file));
        match (group.controller, group.unified) {
            (Controller::Memory, true) => killed = counter(&read("memory.events")?, "oom_kill"),
            (Controller::Memory, false) => killed = counter(&read("memory.oom_control")?, "oom_kill"),
            (Controller::Pids, _) => refused = counter(&read("pids.events")?, "max"),
            _ => {}
        }
    }
    Ok((killed, refused))
}

fn share(quota: Option<u64>, period: Option<u64>) -> Option<u32> {
    u32::try_from(quota?.checked_mul(1000)?.checked_div(period?)?).ok()
}

fn counter(text: &str, name: &str) -> u64 {
    let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(value).unwrap_or(0)
}

/// A process that the kernel killed because the memory of its group was used up.
#[derive(Debug, PartialEq, Eq)]
pub struct Killed {
    /// Its name.
    pub name: String,
    /// Its number, as seen from here.
    pub pid: i32,
    /// The number of the record of the kernel's log that tells of it.
    pub record: u64,
}

/// The processes that were killed in this group, by records of the kernel's log after this one; those that it still has, if it can be read.
pub fn killed(group: &Path, after: u64) -> Vec<Killed> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let mut killed = Vec::new();
    let Ok(mut log) = fs::OpenOptions::new().read(true).custom_flags(flags).open("/dev/kmsg") else {
        return killed;
    };
    let mut record = vec![0; 8192];
    for _ in 0..MAX_LOG {
        match log.read(&mut record) {
            Ok(n) => killed.extend(killed_in(&String::from_utf8_lossy(&record[..n]), group)),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {} // overwritten before it was read
            Err(_) => break,
        }
    }
    killed.retain(|killed| killed.record > after);
    killed
}

/// The process that a record of the kernel's log says was killed for this group.
fn killed_in(record: &str, group: &Path) -> Option<Killed> {
    let (head, fields) = record.split_once("oom-kill:")?;
    let number = head.split(',').nth(1)?.parse().ok()?;
    let field = |name: &str| fields.split(',').find_map(|field| field.trim_end().strip_prefix(name));
    let of = Path::new(field("task_memcg=")?).strip_prefix("/").ok()?;
    let (name, pid) = (field("task=")?.to_owned(), field("pid=")?.parse().ok()?);
    (!of.as_os_str().is_empty() && group.ends_with(of)).then_some(Killed { name, pid, record: number })
}

/// Removes the groups, and the directory that holds ours when they were the last. Absent is fine.
///
/// # Errors
/// What the kernel reports; a group with processes is busy.
pub fn remove(groups: &[Group]) -> io::Result<()> {
    let deadline = Instant::now() + BUSY;
    for group in groups {
        loop {
            match fs::remove_dir(&group.path) {
                // the last process has ended and is not quite gone
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(at(&group.path, &error));
                }
                _ => break,
            }
        }
        if let Some(ours) = group.path.parent() {
            let _ = fs::remove_dir(ours); // not empty: others are in it
        }
    }
    Ok(())
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const V1: &str = "31 30 0:27 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
        32 30 0:28 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
        33 30 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    fn all(mut limits: Limits) -> Limits {
        limits.memory.get_or_insert(1 << 20);
        limits.pids.get_or_insert(10);
        limits.cpu_millis.get_or_insert(500);
        limits
    }

    #[test]
    fn version_one_has_a_place_for_each_controller_and_none_for_strangers() {
        let found = find("3:cpu,cpuacct:/\n2:memory:/nowhere\n0::/\n", V1, true, &|_| true);
        let place = |name| found.places.iter().find(|(c, ..)| c.name() == name).cloned();
        assert_eq!(place("cpu"), Some((Controller::Cpu, "/sys/fs/cgroup/cpu".into(), false)));
        assert_eq!(place("memory"), Some((Controller::Memory, "/sys/fs/cgroup/memory".into(), false)));
        let closed = find("3:cpu,cpuacct:/\n2:memory:/\n0::/\n", V1, false, &|_| false);
        let refused = closed.check(&all(Limits::default())).unwrap_err();
        assert!(refused.starts_with("cpu and memory and pids cannot be limited here"), "{refused}");
        assert_eq!(closed.check(&Limits::default()), Ok(()));
        assert!(found.check(&Limits { memory: Some(0), ..Limits::default() }).is_err());
        assert!(found.check(&Limits { cpu_millis: Some(9), ..Limits::default() }).is_err());
    }

    #[test]
    fn version_two_is_used_where_it_is_delegated() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path();
        let service = top.join("user.slice/user-1.slice/user@1.service");
        let own = "/user.slice/user-1.slice/user@1.service/app.slice/term.scope";
        fs::create_dir_all(top.join(&own[1..])).unwrap();
        fs::write(service.join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        let mounts = format!("30 1 0:26 / {} rw - cgroup2 cgroup2 rw\n", top.display());
        let (own, delegated) = (format!("0::{own}\n"), |path: &Path| path.starts_with(&service));
        let found = find(&own, &mounts, false, &delegated);
        assert_eq!(found.names(), ["cpu", "memory", "pids"], "{found:?}");
        assert!(found.places.iter().all(|(_, path, unified)| *path == service && *unified), "{found:?}");
        // A login session's scope belongs to root.
        let session = find("0::/user.slice/user-1.slice/session-1.scope\n", &mounts, false, &delegated);
        assert!(session.names().is_empty() && session.why_not().contains("delegated"), "{session:?}");
        // The groups, on files that stand for the kernel's.
        for group in found.make("box").unwrap() {
            assert_eq!(group.path, service.join("pocketenv/box"));
            limit(&[group], &all(Limits::default()), &[]).unwrap();
        }
        let read = |file: &str| fs::read_to_string(service.join("pocketenv/box").join(file)).unwrap();
        assert_eq!(
            (read("cpu.max"), read("memory.max"), read("pids.max")),
            ("50000 100000".into(), "1048576".into(), "10".into())
        );
    }

    #[test]
    fn the_kernels_log_names_who_was_killed() {
        let record = "6,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,\
            oom_memcg=/pocketenv/a-1,task_memcg=/pocketenv/a-1,task=python3,pid=7,uid=0\n";
        let killed = |group: &str| killed_in(record, Path::new(group));
        let python = Killed { name: "python3".to_owned(), pid: 7, record: 1 };
        assert_eq!(killed("/sys/fs/cgroup/memory/pocketenv/a-1"), Some(python));
        assert_eq!(killed("/sys/fs/cgroup/memory/pocketenv/a-2"), None);
        assert_eq!(killed_in("6,1,2,-;something else", Path::new("/x")), None);
    }
}
