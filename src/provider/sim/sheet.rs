//! What the simulated cloud can do. The fields stand here; its manners are asked for when it is opened.

use crate::provider::capabilities::{honoured, refused};
use crate::provider::{Capabilities, ChangeClass, ProviderSetting, ResourceRanges, StopMeaning};

/// The sheet of provider `sim` while nothing is known of its manners: the worst is assumed of each.
pub static SHEET: Capabilities = Capabilities {
    provider: "sim",
    summary: "a simulated cloud (`pocketenv sim`) for rehearsals and tests: everything but real processes",
    stop: StopMeaning::Destroy,
    pause: false,
    labels: false,
    idempotent_create: false,
    settle_ms: 0,
    forwards_from_host: false,
    names_by_links: false,
    service: true,
    max_concurrency: 16,
    processes: false,
    interactive: false,
    pty: false,
    sessions: false,
    dial: true,
    longest_life_ms: None,
    resources: ResourceRanges::ANY,
    settings: &[
        ProviderSetting {
            name: "url",
            variable: Some(super::URL_VARIABLE),
            secret: false,
            required: true,
            summary: "the address that `pocketenv sim` prints",
        },
        ProviderSetting {
            name: "token",
            variable: Some(super::TOKEN_VARIABLE),
            secret: true,
            required: false,
            summary: "the token that the simulator was started with",
        },
    ],
    fields: &[
        honoured("image", ChangeClass::Recreate),
        honoured("base", ChangeClass::Recreate),
        honoured("build", ChangeClass::Recreate),
        honoured("snapshot", ChangeClass::Recreate),
        honoured("hostname", ChangeClass::Restart),
        honoured("resources", ChangeClass::Restart),
        honoured("network", ChangeClass::Live),
        honoured("volumes", ChangeClass::Restart),
        honoured("ports", ChangeClass::Live),
        honoured("links", ChangeClass::Live),
        honoured("devices", ChangeClass::Restart),
        honoured("isolation", ChangeClass::Live),
        honoured("lifecycle", ChangeClass::Live),
        refused("lifecycle.on_delete", "does not make backups", "keep the data in a volume"),
        refused("sync", "has no files to follow", "use `files: [{ path, source }]`"),
        refused(
            "secrets.*.hosts",
            "cannot bind a secret to hosts",
            "remove `hosts`: the value is then given to the sandbox; or use provider `local`",
        ),
        refused("ssh", "does not serve SSH", "use `pocketenv exec`"),
        refused("tailscale", "does not join a tailnet", "use `ports`"),
        refused("volumes.s3", "cannot mount object storage", "use a managed volume: `{}`"),
        refused("ports.*.host_port", "does not forward ports from this machine", "remove `host_port`"),
    ],
};
