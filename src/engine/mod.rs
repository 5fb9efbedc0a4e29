//! The local Linux engine: sandboxes out of namespaces, by system calls from this binary; no daemon and no helper program.
//!
//! A sandbox is two processes. The *shim* on the host side makes the namespaces and then keeps the control socket, the
//! forwards and the way out. *Init* is the first process inside: it starts commands and makes sockets. Either dies with the
//! other. A request travels from the caller to the shim, which passes it on with the caller's own connection, so a command's
//! streams and answers go straight between caller and init.
//!
//! On disk, under `<data>/engine/`: `boxes/<id>/{state.json,run.json,rootfs,upper,work,logs}` (with a limit on the disk
//! its files are in `disk.img` instead, see `disk`), `volumes/<name>/`, `snapshots/<name>/`,
//! `skeletons/<hash>/` with what sandboxes have in common, `images/` (see `image::Store`), `locks/`;
//! under `<runtime>/engine/<id>/` the control socket, and in `sockets/` those that lead inside and are at no path of the caller's. What is there is the truth; whether a sandbox runs is always measured.

mod authority;
mod bound;
mod cgroup;
mod client;
mod command;
mod copy;
mod datagram;
mod destination;
mod device;
mod disk;
mod egress;
mod error;
mod export;
mod fence;
mod hello;
mod hits;
mod hosts;
mod images;
mod init;
mod intercept;
mod launch;
mod layers;
mod lifecycle;
mod lifetime;
mod mounts;
mod pause;
mod probe;
mod proto;
mod proxy;
mod relay;
mod remove;
mod rootfs;
mod run_mounts;
mod running;
mod scope;
mod scrollback;
mod seccomp;
mod seq;
mod serve;
mod session;
pub mod shim;
mod skeleton;
mod snapshot;
mod socket;
mod spawn;
mod spec;
mod state;
mod sys;
mod syscalls;
mod throttle;
mod user;
mod volume;

pub use bound::{BoundHost, BoundSecret, BoundValue};
pub use client::{Attached, ExecHandle, Stdio, resize};
pub use device::Device;
pub use disk::{MAX as MAX_DISK, MIN as MIN_DISK};
pub use egress::{Attempt, EgressHost, EgressRule, Outcome};
pub use error::EngineError;
pub use hits::{Held, Hit};
pub use layers::{RunStep, Taken};
pub use lifecycle::{Engine, EngineConfig};
pub use lifetime::boot_ms;
pub use probe::{Probe, probe};
pub use run_mounts::{RunMount, Sharing};
pub use spec::{
    BoxInfo, BoxSpec, BoxState, DiskInfo, ExecRequest, Exit, Forward, ForwardInfo, Image, ImageInfo,
    IoLimits, Lifetime, Limits, LimitsInfo, Link, Mount, MountSource, Name, Network, OciImage, Outside, Port,
    Protocol, SessionInfo, SnapshotInfo, Socket, SocketInfo, SocketTarget, VolumeInfo,
};
