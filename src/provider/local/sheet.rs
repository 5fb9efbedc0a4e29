//! What the local engine can do.

use crate::provider::base;
use crate::provider::capabilities::{honoured, refused};
use crate::provider::{Capabilities, ChangeClass, Range, ResourceRanges, StopMeaning};

/// The sheet of provider `local`.
pub static SHEET: Capabilities = Capabilities {
    provider: "local",
    summary: "Linux namespaces on this machine, by Pocketenv itself: nothing to install, no account",
    stop: StopMeaning::Suspend,
    pause: true,
    labels: true,
    idempotent_create: true,
    settle_ms: 0,
    forwards_from_host: true,
    names_by_links: true,
    service: false,
    max_concurrency: 16,
    processes: true,
    interactive: true,
    pty: true,
    sessions: true,
    dial: true,
    longest_life_ms: None,
    resources: ResourceRanges {
        disk: Some(Range { min: crate::engine::MIN_DISK, max: crate::engine::MAX_DISK }),
        ..ResourceRanges::ANY
    },
    settings: &[],
    fields: &[
        honoured("image", ChangeClass::Recreate),
        honoured("image=host", ChangeClass::Recreate),
        honoured("image=PATH", ChangeClass::Recreate),
        honoured("base", ChangeClass::Recreate),
        refused("base=OTHER", "has no base image of this name", base::USE),
        honoured("build", ChangeClass::Recreate),
        honoured("snapshot", ChangeClass::Recreate),
        honoured("services.*.command=IMAGE", ChangeClass::Live),
        honoured("resources", ChangeClass::Live),
        honoured("resources.disk", ChangeClass::Restart),
        honoured("network.egress", ChangeClass::Live),
        honoured("network.allow", ChangeClass::Live),
        honoured("network", ChangeClass::Restart),
        honoured("secrets.*.hosts", ChangeClass::Restart),
        honoured("hostname", ChangeClass::Restart),
        honoured("volumes", ChangeClass::Restart),
        honoured("ports", ChangeClass::Live),
        honoured("ports.*.protocol=udp", ChangeClass::Live),
        honoured("sockets", ChangeClass::Live),
        honoured("links", ChangeClass::Live),
        refused(
            "ports.*.public=true",
            "has no address that others can reach",
            "remove `public`, and publish the host port yourself",
        ),
        honoured("devices", ChangeClass::Restart),
        refused("devices.*=fuse", "lets nobody mount inside", "remove `fuse`"),
        refused("isolation.require=gvisor", "isolates by namespaces", "use `require: namespace`"),
        refused("isolation.require=vm", "isolates by namespaces", "use `require: namespace`"),
        honoured("isolation", ChangeClass::Live),
        honoured("lifecycle.keep_alive", ChangeClass::Live),
        refused(
            "lifecycle.keep_alive=false",
            "stops a sandbox for inactivity only after a time that is said",
            "remove `keep_alive`, and say `idle_timeout`",
        ),
        refused("lifecycle.on_delete", "does not make backups yet", "keep the data in a volume"),
        honoured("lifecycle", ChangeClass::Live),
        // Only what is shared is part of the spec; what is copied is the guest's.
        honoured("sync", ChangeClass::Restart),
        honoured("sync.*.mode=bind", ChangeClass::Restart),
        refused("ssh", "does not serve SSH", "use `pocketenv shell`"),
        refused("tailscale", "does not join a tailnet yet", "use `ports`"),
        refused("volumes.s3", "cannot mount object storage yet", "use a managed volume: `{}`"),
    ],
};
