//! What Docker can do.

use crate::provider::base;
use crate::provider::capabilities::{honoured, refused};
use crate::provider::{Capabilities, ChangeClass, ProviderSetting, Range, ResourceRanges, StopMeaning};

/// The smallest quota of a processor that Linux has, in thousandths, and the least memory that Docker grants, in bytes.
pub(super) const MIN_CPU_MILLIS: u64 = 10;
pub(super) const MIN_MEMORY: u64 = 6 << 20;

/// The sheet of provider `docker`.
pub static SHEET: Capabilities = Capabilities {
    provider: "docker",
    summary: "containers of a Docker or Podman daemon; sandboxes of one project share a network; egress is free, or shut",
    stop: StopMeaning::Suspend,
    pause: true,
    labels: true,
    idempotent_create: true,
    settle_ms: 0,
    forwards_from_host: true,
    names_by_links: false,
    service: true,
    max_concurrency: 8,
    processes: true,
    interactive: true,
    pty: true,
    sessions: false,
    dial: true,
    longest_life_ms: None,
    resources: ResourceRanges {
        cpu_millis: Some(Range { min: MIN_CPU_MILLIS, max: u32::MAX as u64 }),
        memory: Some(Range { min: MIN_MEMORY, max: i64::MAX as u64 }),
        disk: None,
    },
    settings: &[ProviderSetting {
        name: "host",
        variable: Some("DOCKER_HOST"),
        secret: false,
        required: false,
        summary: "the address of the daemon, `unix:///PATH`, `tcp://HOST:PORT` or `ssh://USER@HOST`; without it that of the `docker` command",
    }],
    fields: &[
        refused(
            "image=host",
            "runs sandboxes from images only",
            "name an image, such as `image: debian:13`, or use provider `local`",
        ),
        honoured("image", ChangeClass::Recreate),
        honoured("base", ChangeClass::Recreate),
        refused("base=OTHER", "has no base image of this name", base::USE),
        honoured("snapshot", ChangeClass::Recreate),
        honoured("build", ChangeClass::Recreate),
        refused(
            "build.secrets",
            "asks the daemon for a build by a call that takes no secrets",
            "build with provider `local`, or push the image and name it as `image`",
        ),
        honoured("resources", ChangeClass::Live),
        refused("resources.disk", "cannot limit the disk of a sandbox", "remove `disk`"),
        refused(
            "resources.io",
            "limits devices by their names on the daemon's machine only, which a manifest does not know",
            "remove `io`",
        ),
        honoured("hostname", ChangeClass::Recreate),
        honoured("volumes", ChangeClass::Recreate),
        refused("volumes.s3", "cannot mount object storage yet", "use a managed volume: `{}`"),
        honoured("ports", ChangeClass::Recreate),
        honoured("ports.*.protocol", ChangeClass::Live),
        honoured("ports.*.protocol=udp", ChangeClass::Recreate),
        honoured("ports.*.description", ChangeClass::Live),
        honoured("ports.*.public", ChangeClass::Live),
        refused(
            "ports.*.public=true",
            "publishes ports on the loopback of its machine only",
            "remove `public`, and publish the host port yourself",
        ),
        honoured("links", ChangeClass::Live),
        honoured("network", ChangeClass::Recreate),
        refused(
            "network.allow",
            "lets a sandbox out everywhere or nowhere",
            "remove `allow`; `egress: deny` alone lets nothing out",
        ),
        refused("devices", "is given no devices of its machine", "remove `devices`, or use provider `local`"),
        refused("isolation.require=gvisor", "isolates by namespaces", "use `require: namespace`"),
        refused("isolation.require=vm", "isolates by namespaces", "use `require: namespace`"),
        honoured("isolation", ChangeClass::Live),
        honoured("lifecycle.keep_alive", ChangeClass::Live),
        refused("lifecycle.keep_alive=false", "never stops a sandbox for inactivity", "remove `keep_alive`"),
        refused(
            "lifecycle.idle_timeout",
            "never stops a sandbox for inactivity",
            "remove `idle_timeout`, and stop it with `state: stopped`",
        ),
        refused(
            "lifecycle.ttl",
            "does not end sandboxes by time",
            "remove `ttl`, and use `pocketenv destroy`",
        ),
        refused("lifecycle.on_delete", "does not make backups yet", "keep the data in a volume"),
        honoured("lifecycle", ChangeClass::Live),
        // Only what is shared is part of the spec; what is copied is the guest's.
        honoured("sync", ChangeClass::Recreate),
        honoured("sync.*.mode=bind", ChangeClass::Recreate),
        refused(
            "secrets.*.hosts",
            "cannot bind a secret to hosts",
            "remove `hosts`: the value is then given to the sandbox; or use provider `local`",
        ),
        refused("ssh", "does not serve SSH", "use `pocketenv shell`"),
        refused("sockets", "makes no unix sockets on this machine", "use `ports`, or provider `local`"),
        refused("tailscale", "does not join a tailnet yet", "use `ports`"),
    ],
};
