//! The launch of a sandbox as a value: which steps init takes, in which order, and what replaces a step that the machine
//! refuses. Pure; carrying the steps out is behind [`Syscalls`], so that plan and ladder are tested without privileges.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::bound;
use super::device;
use super::skeleton;
use super::spec::{BoxSpec, Image, MemoryOf, MountSource, Network};

/// The new root, relative to the sandbox's directory, or to its disk if it has one: init's working directory throughout.
pub const ROOT: &str = "rootfs";

/// Where files in memory are, besides the places that they are mounted at, by their numbers: below `/run`, closed to all but root.
pub const FILLED: &str = "pocketenv-filled";

/// How ids inside map to ids of the host. Fixed at creation, since the files belong to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdMap {
    /// Made by root: ids 0 to 65535 inside are `base`… outside, and nothing of the host maps, its root least of all.
    High {
        /// The first host id.
        base: u32,
    },
    /// Made by a user with a subordinate range, through `newuidmap`: root inside is the user, 1… are the range.
    Subordinate {
        /// The user and group.
        ids: (u32, u32),
        /// First host id and count for users.
        uids: (u32, u32),
        /// First host id and count for groups.
        gids: (u32, u32),
    },
    /// Made by a user without: only root exists inside and it is the user.
    Single {
        /// The user and group.
        ids: (u32, u32),
    },
}

impl IdMap {
    /// Whether more than one id exists inside.
    pub fn has_range(&self) -> bool {
        !matches!(self, IdMap::Single { .. })
    }

    /// The host's ids of root inside.
    pub fn root(&self) -> (u32, u32) {
        match *self {
            IdMap::High { base } => (base, base),
            IdMap::Subordinate { ids, .. } | IdMap::Single { ids } => ids,
        }
    }

    /// In words, for `choices`.
    pub fn describe(&self) -> String {
        match self {
            IdMap::High { base } => format!("ids: 65536 from {base}"),
            IdMap::Subordinate { uids, .. } => {
                format!("ids: own user and {} subordinate from {}", uids.1, uids.0)
            }
            IdMap::Single { .. } => "ids: a single one (changes of owner only seem to succeed)".to_owned(),
        }
    }
}

/// What the plan needs to know of the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// System directories that exist, as names under `/`, in order.
    pub system_dirs: Vec<String>,
    /// `/var/lib/dpkg` exists: what the package database says stays visible.
    pub dpkg: bool,
}

/// What is launched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchRequest {
    /// The sandbox.
    pub id: String,
    /// What it is made of.
    pub spec: BoxSpec,
    /// Its ids.
    pub id_map: IdMap,
    /// The host path of every mount of the spec, in its order.
    pub mount_paths: Vec<PathBuf>,
    /// The nodes of the devices of the spec.
    #[serde(default)]
    pub devices: Vec<PathBuf>,
    /// The snapshots that it starts from.
    #[serde(default)]
    pub snapshots: Below,
    /// The host path of every layer of its image, the lowest first.
    #[serde(default)]
    pub layers: Vec<PathBuf>,
}

/// What lies under a sandbox that starts from snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Below {
    /// Their directories, the uppermost first.
    pub dirs: Vec<PathBuf>,
    /// Directories of the host in which they changed something.
    pub held: BTreeSet<String>,
    /// Directories of the host that had to be copied, and are wholly in them.
    pub copied: BTreeSet<String>,
}

/// Where the files of a sandbox are on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// Its own directory; names its mounts, so that the host can tell whose they are.
    pub dir: PathBuf,
    /// What it has in common with others: see `skeleton`.
    pub skeleton: PathBuf,
}

/// One step of the launch, done by init before it serves. Relative paths start at the sandbox's directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Open the source of mount number `slot`, with the host identity that made the sandbox.
    OpenSource { slot: usize, path: PathBuf },
    /// Open the skeleton, with the host identity that made the sandbox.
    OpenSkeleton(PathBuf),
    /// Open the snapshots, the uppermost first, with the host identity that made the sandbox.
    OpenSnapshots(Vec<PathBuf>),
    /// Open the layers of the image, with the host identity that made the sandbox.
    OpenLayers(Vec<PathBuf>),
    /// Become root inside.
    BecomeRoot { groups: bool },
    /// Die with the shim.
    DieWithParent,
    /// Set the host name.
    Hostname(String),
    /// Bring loopback up.
    Loopback,
    /// Keep mounts from travelling to the host.
    PrivateMounts,
    /// Attach the sandbox's own disk, and go on there: its files are on it and not in its directory.
    EnterDisk,
    /// Mount a tree somewhere else, without set-user-id and devices.
    Bind { from: String, to: String, read_only: bool, recursive: bool },
    /// Bind one device node.
    Device(&'static str),
    /// Put the device node number `slot` in place and see that root inside can open it.
    Give { slot: usize, path: PathBuf },
    /// The skeleton's root under writes kept in `rootfs`, mounted there. `source` is what the mount is called.
    OverlayRoot { source: PathBuf },
    /// The layers of the image between the skeleton's mount points and its other directories, under the snapshots and writes kept in `rootfs`.
    OverlayImage { source: PathBuf },
    /// Copy the skeleton's root into `rootfs`, where nothing is yet.
    CopyRoot,
    /// The host's `/NAME`, with the skeleton's files over it if it has any, under writes kept in `upper/NAME`.
    Overlay { name: String, skeleton: bool },
    /// Copy the skeleton's files and what is readable of `/NAME` into the root, where nothing is yet.
    Copy { name: String },
    /// A new memory file system.
    Tmpfs { at: &'static str, options: &'static str, exec: bool },
    /// Terminals of our own.
    Devpts { group: bool },
    /// A symbolic link.
    Symlink { at: &'static str, to: &'static str },
    /// A directory on one of the file systems just made.
    Mkdir { at: String, mode: u32 },
    /// A fresh /proc.
    Proc,
    /// Hide a file or directory of /proc; one that is not there is fine.
    Mask { path: &'static str, directory: bool },
    /// Refuse writes below; a path that is not there is fine.
    Protect(&'static str),
    /// Put mount number `slot` in place, resolving `target` beneath the new root.
    Mount { slot: usize, target: PathBuf, read_only: bool },
    /// A new memory file system for everybody, resolving `target` beneath the new root.
    Memory { target: PathBuf, size: Option<u64> },
    /// File number `index` in memory, empty, with a mount of it that refuses writes at `target`, resolved beneath the new root.
    MemoryFile { index: usize, target: PathBuf },
    /// Put the authorities that the root's system trusts, and that of the proxy, into one file.
    Trust,
    /// Make a directory of the new root, resolved beneath it, unless it is there.
    MakeDir(PathBuf),
    /// Swap the root and let the old one go.
    PivotRoot,
    /// The same where the old root cannot be pivoted away.
    MoveRoot,
    /// No new privileges, few capabilities, opaque to the processes inside, and perhaps a second fence around it all.
    Lockdown { fence: bool },
    /// Try one way; if the machine refuses it, the other, and say so.
    Either { first: Box<Step>, second: Box<Step>, choice: &'static str },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::OpenSource { path, .. } => write!(f, "open {} to mount it", path.display()),
            Step::OpenSkeleton(path) => write!(f, "open {}", path.display()),
            Step::OpenSnapshots(_) => f.write_str("open the snapshots it starts from"),
            Step::OpenLayers(_) => f.write_str("open the layers of the image"),
            Step::BecomeRoot { .. } => f.write_str("become root inside"),
            Step::DieWithParent => f.write_str("tie to the parent"),
            Step::Hostname(_) => f.write_str("set the host name"),
            Step::Loopback => f.write_str("bring loopback up"),
            Step::PrivateMounts => f.write_str("make mounts private"),
            Step::EnterDisk => f.write_str("attach its disk"),
            Step::Bind { from, to, .. } => write!(f, "bind {from} to {to}"),
            Step::Device(name) => write!(f, "bind /dev/{name}"),
            Step::Give { path, .. } => write!(f, "open {} as root inside", path.display()),
            Step::OverlayRoot { .. } => f.write_str("overlay the root"),
            Step::OverlayImage { .. } => f.write_str("overlay the layers of the image"),
            Step::CopyRoot => f.write_str("copy the root"),
            Step::Overlay { name, .. } => write!(f, "overlay /{name}"),
            Step::Copy { name } => write!(f, "copy /{name}"),
            Step::Tmpfs { at, .. } => write!(f, "mount tmpfs at {at}"),
            Step::Devpts { .. } => f.write_str("mount devpts"),
            Step::Symlink { at, .. } => write!(f, "link {at}"),
            Step::Mkdir { at, .. } => write!(f, "make {at}"),
            Step::Proc => f.write_str("mount proc"),
            Step::Mask { path, .. } => write!(f, "mask {path}"),
            Step::Protect(path) => write!(f, "protect {path}"),
            Step::Mount { target, .. } => write!(f, "mount {}", target.display()),
            Step::Memory { target, .. } | Step::MemoryFile { target, .. } => {
                write!(f, "mount {}", target.display())
            }
            Step::Trust => f.write_str("write whom to trust"),
            Step::MakeDir(path) => write!(f, "make {}", path.display()),
            Step::PivotRoot => f.write_str("pivot the root"),
            Step::MoveRoot => f.write_str("move the root"),
            Step::Lockdown { fence: true } => f.write_str("put up a second fence"),
            Step::Lockdown { fence: false } => f.write_str("drop privileges"),
            Step::Either { first, second, .. } => write!(f, "{first}, or {second}"),
        }
    }
}

/// Carries out steps. The real one is `syscalls::Real`; tests record.
pub trait Syscalls {
    /// Does one step (never `Either`).
    ///
    /// # Errors
    /// What the system reports.
    fn perform(&mut self, step: &Step) -> io::Result<()>;
}

/// Carries a plan out and returns the fallbacks taken.
///
/// # Errors
/// The step that failed, in words, and why.
pub fn execute(plan: &[Step], syscalls: &mut dyn Syscalls) -> Result<Vec<String>, (String, io::Error)> {
    let mut choices = Vec::new();
    for step in plan {
        let Step::Either { first, second, choice } = step else {
            syscalls.perform(step).map_err(|error| (step.to_string(), error))?;
            continue;
        };
        if let Err(refused) = syscalls.perform(first) {
            syscalls.perform(second).map_err(|error| (second.to_string(), error))?;
            choices.push(format!("{choice} ({first}: {refused})"));
        }
    }
    Ok(choices)
}

/// The steps that launch a sandbox.
pub fn plan(request: &LaunchRequest, places: &Places, facts: &HostFacts) -> Vec<Step> {
    let spec = &request.spec;
    let mut steps = vec![Step::OpenSkeleton(places.skeleton.clone())];
    for (slot, path) in request.mount_paths.iter().enumerate() {
        steps.push(Step::OpenSource { slot, path: path.clone() });
    }
    let slots = request.mount_paths.len()..;
    for (index, (slot, node)) in slots.clone().zip(&request.devices).enumerate() {
        let path = device::source(&places.dir, &request.id_map, index, node);
        steps.push(Step::OpenSource { slot, path });
    }
    if !request.snapshots.dirs.is_empty() {
        steps.push(Step::OpenSnapshots(request.snapshots.dirs.clone()));
    }
    if matches!(spec.image, Image::Oci(_)) {
        steps.push(Step::OpenLayers(request.layers.clone()));
    }
    // The death signal is cleared by a change of credentials, so it comes after.
    steps.push(Step::BecomeRoot { groups: request.id_map.has_range() });
    steps.push(Step::DieWithParent);
    steps.push(Step::Hostname(spec.hostname.clone().unwrap_or_else(|| default_hostname(&request.id))));
    if spec.network != Network::Host {
        steps.push(Step::Loopback);
    }
    steps.push(Step::PrivateMounts);
    if spec.limits.disk.is_some() {
        steps.push(Step::EnterDisk);
    }
    match &spec.image {
        Image::Host => host_root(places, facts, &request.snapshots, &mut steps),
        // A copy would be as large as the image, for each sandbox.
        Image::Oci(_) => steps.push(Step::OverlayImage { source: places.dir.clone() }),
    }
    dev(request.id_map.has_range(), &mut steps);
    steps.extend(slots.zip(&request.devices).map(|(slot, node)| Step::Give { slot, path: node.clone() }));
    steps.push(Step::Tmpfs { at: "rootfs/run", options: "mode=755", exec: true });
    steps.push(Step::Mkdir { at: "rootfs/run/lock".into(), mode: 0o1777 });
    steps
        .extend(spec.run_dirs.iter().map(|dir| Step::Mkdir { at: format!("rootfs/run/{dir}"), mode: 0o711 }));
    if bound::ends_tls(spec) {
        steps.push(Step::Trust);
    }
    let host_proc =
        Step::Bind { from: "/proc".into(), to: format!("{ROOT}/proc"), read_only: true, recursive: true };
    steps.push(Step::Either {
        first: Box::new(Step::Proc),
        second: Box::new(host_proc),
        choice: "/proc is the host's, read-only",
    });
    for path in [
        "rootfs/proc/kcore",
        "rootfs/proc/keys",
        "rootfs/proc/timer_list",
        "rootfs/proc/sysrq-trigger",
        "rootfs/proc/kmsg",
    ] {
        steps.push(Step::Mask { path, directory: false });
    }
    for path in ["rootfs/proc/acpi", "rootfs/proc/scsi"] {
        steps.push(Step::Mask { path, directory: true });
    }
    for path in ["rootfs/proc/sys", "rootfs/proc/bus", "rootfs/proc/fs", "rootfs/proc/irq"] {
        steps.push(Step::Protect(path));
    }
    // A parent before what lies below it, whatever the order in the spec.
    let mut mounts: Vec<(usize, Step)> = Vec::new();
    for (slot, mount) in spec.mounts.iter().enumerate() {
        let step = Step::Mount { slot, target: mount.target.clone(), read_only: mount.read_only };
        mounts.push((mount.target.components().count(), step));
    }
    let mut files = 0..;
    for memory in &spec.memory {
        let target = memory.target.clone();
        let step = match memory.what {
            MemoryOf::Directory { size } => Step::Memory { target, size },
            MemoryOf::File => Step::MemoryFile { index: files.next().unwrap_or_default(), target },
        };
        mounts.push((memory.target.components().count(), step));
    }
    mounts.sort_by_key(|(depth, _)| *depth);
    if files.start > 0 {
        steps.push(Step::Mkdir { at: format!("rootfs/run/{FILLED}"), mode: 0o700 });
    }
    steps.extend(mounts.into_iter().map(|(_, step)| step));
    if let Image::Oci(image) = &spec.image {
        steps.extend(image.working_dir.iter().chain(&image.volumes).cloned().map(Step::MakeDir));
    }
    let choice = "the root was moved, not pivoted";
    steps.push(Step::Either { first: Box::new(Step::PivotRoot), second: Box::new(Step::MoveRoot), choice });
    let lockdown = |fence| Box::new(Step::Lockdown { fence });
    steps.push(Step::Either { first: lockdown(true), second: lockdown(false), choice: "no second fence" });
    steps
}

/// The root of a sandbox on the programs of this machine.
fn host_root(places: &Places, facts: &HostFacts, below: &Below, steps: &mut Vec<Step>) {
    let root = Step::OverlayRoot { source: places.dir.clone() };
    // Snapshots are layers of an overlay, and what they mean is lost in a copy.
    if below.dirs.is_empty() {
        let choice = "the root is a copy";
        steps.push(Step::Either { first: Box::new(root), second: Box::new(Step::CopyRoot), choice });
    } else {
        steps.push(root);
    }
    for name in facts.system_dirs.iter().filter(|name| !below.copied.contains(*name)) {
        let second = if name == "etc" {
            Step::Copy { name: name.clone() }
        } else {
            Step::Bind {
                from: format!("/{name}"),
                to: format!("{ROOT}/{name}"),
                read_only: true,
                recursive: true,
            }
        };
        let choice = if name == "etc" { "/etc is a copy" } else { "a system directory is read-only" };
        let overlay =
            Step::Overlay { name: name.clone(), skeleton: skeleton::LAYERS.contains(&name.as_str()) };
        if !below.held.contains(name) {
            steps.push(Step::Either { first: Box::new(overlay), second: Box::new(second), choice });
        } else {
            steps.push(overlay);
        }
    }
    if facts.dpkg {
        let to = format!("{ROOT}/var/lib/dpkg");
        steps.push(Step::Bind { from: "/var/lib/dpkg".into(), to, read_only: true, recursive: true });
    }
}

fn dev(group: bool, steps: &mut Vec<Step>) {
    steps.push(Step::Tmpfs { at: "rootfs/dev", options: "mode=755,size=64k", exec: false });
    steps.extend(["null", "zero", "full", "random", "urandom", "tty"].map(Step::Device));
    steps.push(Step::Mkdir { at: "rootfs/dev/pts".into(), mode: 0o755 });
    steps.push(Step::Devpts { group });
    steps.push(Step::Mkdir { at: "rootfs/dev/shm".into(), mode: 0o1777 });
    steps.push(Step::Tmpfs { at: "rootfs/dev/shm", options: "mode=1777", exec: true });
    let links = [
        ("rootfs/dev/ptmx", "pts/ptmx"),
        ("rootfs/dev/fd", "/proc/self/fd"),
        ("rootfs/dev/stdin", "/proc/self/fd/0"),
        ("rootfs/dev/stdout", "/proc/self/fd/1"),
        ("rootfs/dev/stderr", "/proc/self/fd/2"),
    ];
    steps.extend(links.map(|(at, to)| Step::Symlink { at, to }));
}

/// A host name made of the id: what a name may not contain becomes `-`, 63 characters at most.
pub fn default_hostname(id: &str) -> String {
    let name: String = id.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(63).collect();
    name.trim_matches('-').to_owned()
}

/// The namespaces of a sandbox, as `CLONE_NEW*` flags.
pub fn namespaces(network: Network) -> i32 {
    let all = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    if network == Network::Host { all } else { all | libc::CLONE_NEWNET }
}

/// Whether a mount's owner ids should be shown as the host has them: host directories of a sandbox made by root.
pub fn wants_idmap(id_map: &IdMap, source: &MountSource) -> bool {
    matches!((id_map, source), (IdMap::High { .. }, MountSource::Host(_)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::spec::{Mount, OciImage};
    use super::*;

    struct Recorder {
        done: Vec<Step>,
        refuse: fn(&Step) -> bool,
    }

    impl Syscalls for Recorder {
        fn perform(&mut self, step: &Step) -> io::Result<()> {
            if (self.refuse)(step) {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
            self.done.push(step.clone());
            Ok(())
        }
    }

    fn recorder(refuse: fn(&Step) -> bool) -> Recorder {
        Recorder { done: Vec::new(), refuse }
    }

    fn request(network: Network) -> LaunchRequest {
        let mount = |target: &str| Mount {
            source: MountSource::Volume("v".into()),
            target: target.into(),
            read_only: false,
        };
        let spec =
            BoxSpec { network, mounts: vec![mount("/data/inner"), mount("/data")], ..BoxSpec::default() };
        let mount_paths = vec!["/v/1".into(), "/v/2".into()];
        LaunchRequest {
            id: "a.b".into(),
            spec,
            id_map: IdMap::High { base: 100_000 },
            mount_paths,
            devices: vec!["/dev/kvm".into()],
            snapshots: Below::default(),
            layers: Vec::new(),
        }
    }

    fn plan(request: &LaunchRequest, facts: &HostFacts) -> Vec<Step> {
        super::plan(request, &Places { dir: "/e/boxes/a".into(), skeleton: "/e/skeletons/s".into() }, facts)
    }

    fn facts() -> HostFacts {
        HostFacts { system_dirs: vec!["usr".into(), "etc".into()], dpkg: false }
    }

    fn position(steps: &[Step], wanted: impl Fn(&Step) -> bool) -> usize {
        steps.iter().position(wanted).unwrap()
    }

    #[test]
    fn a_device_is_the_machines_own_or_a_node_of_the_sandboxs_own() {
        for (id_map, from) in [
            (IdMap::High { base: 100_000 }, "/e/boxes/a/devices/0"),
            (IdMap::Single { ids: (1000, 1000) }, "/dev/kvm"),
        ] {
            let steps = plan(&LaunchRequest { id_map, ..request(Network::Isolated) }, &facts());
            let open = position(&steps, |s| *s == Step::OpenSource { slot: 2, path: from.into() });
            let give = position(&steps, |s| *s == Step::Give { slot: 2, path: "/dev/kvm".into() });
            let root = position(&steps, |s| matches!(s, Step::BecomeRoot { .. }));
            let dev = position(&steps, |s| matches!(s, Step::Tmpfs { at: "rootfs/dev", .. }));
            assert!(open < root && root < give && dev < give, "{steps:?}");
        }
    }

    #[test]
    fn order_keeps_the_rules_the_kernel_has() {
        let mut recorder = recorder(|_| false);
        assert_eq!(
            execute(&plan(&request(Network::Isolated), &facts()), &mut recorder).unwrap(),
            Vec::<String>::new()
        );
        let steps = recorder.done;
        let become_root = position(&steps, |s| matches!(s, Step::BecomeRoot { .. }));
        assert!(
            position(&steps, |s| matches!(s, Step::OpenSource { .. })) < become_root,
            "sources are opened as the caller"
        );
        assert!(
            become_root < position(&steps, |s| matches!(s, Step::DieWithParent)),
            "a change of ids clears the death signal"
        );
        assert!(
            position(&steps, |s| matches!(s, Step::PrivateMounts))
                < position(&steps, |s| matches!(s, Step::OverlayRoot { .. }))
        );
        assert!(position(&steps, |s| matches!(s, Step::OpenSkeleton(_))) < become_root);
        let outer = position(&steps, |s| matches!(s, Step::Mount { slot: 1, .. }));
        let inner = position(&steps, |s| matches!(s, Step::Mount { slot: 0, .. }));
        assert!(outer < inner, "a mount below another comes after it");
        assert!(matches!(steps[steps.len() - 2..], [Step::PivotRoot, Step::Lockdown { fence: true }]));
    }

    #[test]
    fn every_rung_of_the_ladder_is_taken_and_reported() {
        let mut recorder = recorder(|s| {
            matches!(
                s,
                Step::OverlayRoot { .. }
                    | Step::Overlay { .. }
                    | Step::Proc
                    | Step::PivotRoot
                    | Step::Lockdown { fence: true }
            )
        });
        let choices = execute(&plan(&request(Network::None), &facts()), &mut recorder).unwrap();
        assert_eq!(choices.len(), 6, "{choices:?}");
        assert!(choices[0].starts_with("the root is a copy"), "{choices:?}");
        assert!(choices[2].starts_with("/etc is a copy"), "{choices:?}");
        assert!(
            recorder
                .done
                .iter()
                .any(|s| matches!(s, Step::Bind { from, read_only: true, .. } if from == "/usr"))
        );
        assert!(recorder.done.contains(&Step::MoveRoot));
    }

    #[test]
    fn snapshots_are_opened_as_the_caller_and_never_copied() {
        let mut request = request(Network::None);
        request.snapshots.dirs = vec!["/e/snapshots/s".into()];
        request.snapshots.held = ["usr".to_owned()].into();
        request.snapshots.copied = ["etc".to_owned()].into();
        let steps = plan(&request, &facts());
        let opened = position(&steps, |s| matches!(s, Step::OpenSnapshots(_)));
        assert!(opened < position(&steps, |s| matches!(s, Step::BecomeRoot { .. })));
        let mut recorder = recorder(|s| matches!(s, Step::Overlay { .. }));
        let (step, _) = execute(&steps, &mut recorder).unwrap_err();
        assert_eq!(step, "overlay /usr");
        let of_etc = |s: &Step| s.to_string().contains("/etc");
        assert!(!steps.iter().any(of_etc), "what was copied is in the root already");
    }

    #[test]
    fn a_refused_step_without_another_way_is_named() {
        let mut recorder = recorder(|s| matches!(s, Step::Lockdown { .. }));
        let (step, error) = execute(&plan(&request(Network::None), &facts()), &mut recorder).unwrap_err();
        assert_eq!((step.as_str(), error.kind()), ("drop privileges", io::ErrorKind::PermissionDenied));
    }

    #[test]
    fn host_network_keeps_the_hosts_loopback_alone() {
        assert!(!plan(&request(Network::Host), &facts()).contains(&Step::Loopback));
        assert_eq!(namespaces(Network::Host) & libc::CLONE_NEWNET, 0);
        assert_ne!(namespaces(Network::None) & libc::CLONE_NEWNET, 0);
    }

    #[test]
    fn an_image_is_opened_as_the_caller_and_nothing_of_the_host_is_in_it() {
        let mut request = request(Network::None);
        let working_dir = Some("/srv/app".into());
        request.spec.image = Image::Oci(OciImage { working_dir, ..OciImage::default() });
        request.layers = vec!["/e/images/layers/x/1".into()];
        let steps = plan(&request, &facts());
        let opened = position(&steps, |s| *s == Step::OpenLayers(request.layers.clone()));
        assert!(opened < position(&steps, |s| matches!(s, Step::BecomeRoot { .. })));
        let of_host = |s: &Step| match s {
            Step::Bind { from, .. } => from != "/proc",
            Step::Overlay { .. } | Step::Copy { .. } | Step::OverlayRoot { .. } | Step::CopyRoot => true,
            Step::Either { first, .. } => matches!(**first, Step::Overlay { .. } | Step::OverlayRoot { .. }),
            _ => false,
        };
        assert!(!steps.iter().any(of_host), "{steps:?}");
        assert!(steps.contains(&Step::MakeDir("/srv/app".into())));
    }

    #[test]
    fn a_disk_of_its_own_is_attached_before_anything_is_laid_on_it() {
        let mut request = request(Network::None);
        assert!(!plan(&request, &facts()).contains(&Step::EnterDisk));
        request.spec.limits.disk = Some(1 << 30);
        for image in [Image::Host, Image::Oci(OciImage::default())] {
            request.spec.image = image;
            let steps = plan(&request, &facts());
            let attached = position(&steps, |s| *s == Step::EnterDisk);
            assert!(
                position(&steps, |s| *s == Step::PrivateMounts) < attached,
                "it does not travel to the host"
            );
            assert!(attached < position(&steps, |s| s.to_string().contains("overlay")), "{steps:?}");
        }
    }

    #[test]
    fn host_names_are_legal() {
        assert_eq!(default_hostname("shop.api-1_x"), "shop-api-1-x");
        assert_eq!(default_hostname(&"a".repeat(100)).len(), 63);
    }
}
