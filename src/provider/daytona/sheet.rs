//! What Daytona can do.

use crate::provider::capabilities::{honoured, refused, setting};
use crate::provider::{Capabilities, ChangeClass, ProviderSetting, Range, ResourceRanges, StopMeaning};

/// The sheet of provider `daytona`.
pub static SHEET: Capabilities = Capabilities {
    provider: "daytona",
    summary: "Daytona: sandboxes in their cloud, whose disk outlives a stop; needs an account and `DAYTONA_API_KEY`",
    stop: StopMeaning::Suspend,
    labels: true,
    // No two sandboxes have one name, and the name is made of the token.
    idempotent_create: true,
    settle_ms: 2_000,
    forwards_from_host: false,
    names_by_links: false,
    service: true,
    max_concurrency: 8,
    processes: true,
    interactive: true,
    pty: true,
    dial: true,
    longest_life_ms: None,
    resources: ResourceRanges {
        cpu_millis: Some(Range { min: 1000, max: u32::MAX as u64 }),
        memory: Some(Range { min: 1 << 30, max: i64::MAX as u64 }),
        disk: Some(Range { min: 1 << 30, max: i64::MAX as u64 }),
    },
    settings: &[
        ProviderSetting {
            name: "api_key",
            variable: Some("DAYTONA_API_KEY"),
            secret: true,
            required: true,
            summary: "a key of your account",
        },
        setting("api_url", Some("DAYTONA_API_URL"), "where the service is, if not at app.daytona.io"),
        setting(
            "target",
            Some("DAYTONA_TARGET"),
            "the region of new sandboxes; the organisation's own if nothing is said",
        ),
        setting(
            "organization_id",
            Some("DAYTONA_ORGANIZATION_ID"),
            "the organisation, where the key is a token of a person (JWT) and not of one",
        ),
        setting(
            "snapshot",
            None,
            "the snapshot of sandboxes that name no image; the vendor's own if nothing is said",
        ),
    ],
    fields: &[
        // An image by its name; `host`, which is what nothing means, is the snapshot that the setting names.
        honoured("image", ChangeClass::Recreate),
        refused("base", "has no base images of ours yet", "use `image` or `snapshot`"),
        refused("build", "builds no directories yet", "build and push the image, and name it as `image`"),
        honoured("snapshot", ChangeClass::Recreate),
        // Of an image. A snapshot has its own, and what is asked for has to be that.
        honoured("resources", ChangeClass::Recreate),
        refused("resources.pids", "limits no processes", "remove `pids`"),
        refused("resources.io", "has no limit on what a sandbox reads and writes", "remove `io`"),
        honoured("network", ChangeClass::Live),
        refused("network=host", "has no network of this machine", "remove `network`"),
        refused("network.mode=host", "has no network of this machine", "remove `network`"),
        refused("network=none", "gives every sandbox a network", "use `network: { egress: deny }`"),
        refused("network.mode=none", "gives every sandbox a network", "use `network: { egress: deny }`"),
        refused("hostname", "names its sandboxes itself", "remove `hostname`"),
        honoured("volumes", ChangeClass::Recreate),
        refused("volumes.*.read_only=true", "mounts volumes to be written to", "remove `read_only`"),
        refused("volumes.read_only=true", "mounts volumes to be written to", "remove `read_only`"),
        refused("volumes.s3", "cannot mount object storage yet", "copy the data in with `files`"),
        honoured("ports", ChangeClass::Live),
        refused("ports.*.host_port", "does not forward ports from this machine", "remove `host_port`"),
        refused("ports.*.host_ip", "does not forward ports from this machine", "remove `host_ip`"),
        refused(
            "ports.*.protocol=udp",
            "reaches the ports of a sandbox by HTTP only",
            "remove `protocol`, or use provider `local`, `docker` or `kubernetes`",
        ),
        honoured("links", ChangeClass::Recreate),
        refused("devices", "gives no devices", "remove `devices`, or use provider `local`"),
        refused("isolation.require=gvisor", "does not say how it isolates", "remove `isolation`"),
        refused("isolation.require=vm", "does not say how it isolates", "remove `isolation`"),
        honoured("isolation", ChangeClass::Live),
        honoured("lifecycle", ChangeClass::Live),
        refused("lifecycle.on_delete", "does not make backups yet", "copy the data out with `pocketenv cp`"),
        honoured("sync", ChangeClass::Live),
        refused(
            "sync.*.mode=bind",
            "shares no directory of this machine",
            "leave `mode` out: the directory is copied and kept in step",
        ),
        refused(
            "secrets.*.hosts",
            "cannot bind a secret to hosts",
            "remove `hosts`: the value is then given to the sandbox; or use provider `local`",
        ),
        refused("ssh", "does not serve SSH yet", "use `pocketenv shell`"),
        refused("sockets", "makes no unix sockets on this machine", "use `ports`, or provider `local`"),
        refused("tailscale", "does not join a tailnet yet", "use `ports`"),
    ],
    ..Capabilities::NOTHING
};
