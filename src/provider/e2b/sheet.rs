//! What E2B can do.

use crate::provider::capabilities::{honoured, refused, setting};
use crate::provider::{Capabilities, ChangeClass, FieldSupport, ProviderSetting, StopMeaning, Support};

const fn made_anew(path: &'static str) -> FieldSupport {
    honoured(path, ChangeClass::Recreate)
}

/// The sheet of provider `e2b`.
pub static SHEET: Capabilities = Capabilities {
    provider: "e2b",
    summary: "E2B: virtual machines in their cloud, paused when their time is over; needs an account and `E2B_API_KEY`",
    stop: StopMeaning::Suspend,
    labels: true,
    // It takes a key and does not say how long it remembers it, so what an interrupted create made is looked for.
    idempotent_create: false,
    settle_ms: 2_000,
    forwards_from_host: false,
    names_by_links: false,
    service: true,
    max_concurrency: 8,
    processes: true,
    interactive: true,
    pty: true,
    dial: true,
    longest_life_ms: Some(24 * 3600 * 1000),
    settings: &[
        ProviderSetting {
            name: "api_key",
            variable: Some(super::KEY_VARIABLE),
            secret: true,
            required: true,
            summary: "the key of your account",
        },
        setting("domain", Some(super::DOMAIN_VARIABLE), "where the service is, if not at e2b.app"),
        setting("api_url", Some(super::API_VARIABLE), "the address of the control plane, over the domain"),
        setting(
            "sandbox_url",
            Some(super::SANDBOX_VARIABLE),
            "the address of every sandbox, over the domain",
        ),
        setting("template", None, "the template of sandboxes that name no image; `base` if nothing is said"),
        setting("timeout", None, "how long a sandbox runs before it is paused; an hour if nothing is said"),
    ],
    fields: &[
        // A template by its name; `host`, which is what nothing means, is the template that the setting names.
        made_anew("image"),
        refused("base", "makes sandboxes from its own templates", "name a template of E2B as `image`"),
        refused("build", "builds templates with its own tools", "build a template, and name it as `image`"),
        made_anew("snapshot"),
        refused(
            "resources",
            "takes processor and memory from the template",
            "remove `resources`, and choose a template that has them",
        ),
        made_anew("network"),
        refused("network=host", "has no network of this machine", "remove `network`"),
        refused("network.mode=host", "has no network of this machine", "remove `network`"),
        refused("network=none", "gives every sandbox a network", "use `network: { egress: deny }`"),
        refused("network.mode=none", "gives every sandbox a network", "use `network: { egress: deny }`"),
        refused("hostname", "names its sandboxes itself", "remove `hostname`"),
        made_anew("volumes"),
        refused("volumes.*.read_only=true", "mounts volumes to be written to", "remove `read_only`"),
        refused("volumes.read_only=true", "mounts volumes to be written to", "remove `read_only`"),
        made_anew("ports"),
        refused("ports.*.host_port", "does not forward ports from this machine", "remove `host_port`"),
        refused("ports.*.host_ip", "does not forward ports from this machine", "remove `host_ip`"),
        refused(
            "ports.*.protocol=udp",
            "reaches the ports of a sandbox by HTTP only",
            "remove `protocol`, or use provider `local`, `docker` or `kubernetes`",
        ),
        made_anew("links"),
        refused("devices", "gives no devices", "remove `devices`, or use provider `local`"),
        made_anew("isolation"),
        refused("lifecycle.keep_alive", "pauses every sandbox when its time is over", "remove `keep_alive`"),
        refused(
            "lifecycle.idle_timeout",
            "knows no inactivity",
            "use `ttl`, or the setting `providers.e2b.timeout`",
        ),
        made_anew("lifecycle"),
        refused("lifecycle.on_delete", "does not make backups yet", "copy the data out with `pocketenv cp`"),
        FieldSupport { path: "sync", support: Support::Honoured(ChangeClass::Live) },
        refused(
            "secrets.*.hosts",
            "cannot bind a secret to hosts",
            "remove `hosts`: the value is then given to the sandbox; or use provider `local`",
        ),
        refused("ssh", "does not serve SSH", "use `pocketenv shell`"),
        refused("sockets", "makes no unix sockets on this machine", "use `ports`, or provider `local`"),
        refused("tailscale", "does not join a tailnet yet", "use `ports`"),
        refused("volumes.s3", "cannot mount object storage yet", "copy the data in with `files`"),
    ],
    ..Capabilities::NOTHING
};
