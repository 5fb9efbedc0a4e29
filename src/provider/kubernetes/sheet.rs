//! What a Kubernetes cluster can do.

use crate::provider::capabilities::{honoured, refused, setting};
use crate::provider::{Capabilities, ChangeClass, Range, ResourceRanges, StopMeaning};

/// The least memory that a container can start with, in bytes.
pub(super) const MIN_MEMORY: u64 = 12 << 20;
/// The size of a volume's claim, where nothing is said.
pub(super) const VOLUME_SIZE: &str = "10Gi";

/// The sheet of provider `kubernetes`.
pub static SHEET: Capabilities = Capabilities {
    provider: "kubernetes",
    summary: "pods of a Kubernetes cluster; a stop ends the pod and loses its disk, volumes are kept; the egress policy holds where the cluster's network enforces it",
    // The disk of a pod is gone with the pod.
    stop: StopMeaning::Destroy,
    pause: false,
    labels: true,
    idempotent_create: true,
    settle_ms: 0,
    forwards_from_host: false,
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
        cpu_millis: Some(Range { min: 1, max: u32::MAX as u64 }),
        memory: Some(Range { min: MIN_MEMORY, max: i64::MAX as u64 }),
        disk: None,
    },
    settings: &[
        setting(
            "kubeconfig",
            Some("KUBECONFIG"),
            "the file that says where the cluster is; `~/.kube/config` if nothing is said, without it the cluster that this program runs in",
        ),
        setting("context", None, "the context of the kubeconfig; its current one if nothing is said"),
        setting("namespace", None, "the namespace of everything; that of the context if nothing is said"),
        setting("storage_class", None, "the storage class of volumes; the cluster's own if nothing is said"),
        setting("volume_size", None, "how large a new volume is; 10Gi if nothing is said"),
    ],
    fields: &[
        refused(
            "image=host",
            "runs sandboxes from images only",
            "name an image, such as `image: debian:13`, or use provider `local`",
        ),
        honoured("image", ChangeClass::Recreate),
        refused("base", "has no base images yet", "use `image`"),
        refused("snapshot", "does not make snapshots", "use `image`"),
        refused("build", "builds no images", "build and push the image, and name it as `image`"),
        honoured("resources", ChangeClass::Recreate),
        refused(
            "resources.disk",
            "evicts a pod that writes too much instead of refusing the writes",
            "remove `disk`",
        ),
        refused("resources.io", "has no limit on what a pod reads and writes", "remove `io`"),
        refused(
            "resources.pids",
            "limits the processes of a pod by the settings of its nodes only",
            "remove `pids`",
        ),
        honoured("hostname", ChangeClass::Recreate),
        honoured("volumes", ChangeClass::Recreate),
        refused("volumes.s3", "cannot mount object storage yet", "use a managed volume: `{}`"),
        honoured("ports", ChangeClass::Live),
        honoured("ports.*.protocol=udp", ChangeClass::Live),
        refused(
            "ports.*.host_port",
            "does not forward ports from this machine",
            "remove `host_port`; inside the cluster the port is reached at the sandbox's Service",
        ),
        refused("ports.*.host_ip", "does not forward ports from this machine", "remove `host_ip`"),
        refused(
            "ports.*.public=true",
            "opens no port to the outside of the cluster",
            "remove `public`, and make an Ingress of your own for the sandbox's Service",
        ),
        honoured("links", ChangeClass::Recreate),
        honoured("network", ChangeClass::Live),
        refused("network=host", "gives no sandbox the network of a node", "remove `network`"),
        refused("network.mode=host", "gives no sandbox the network of a node", "remove `network`"),
        refused("network=none", "gives every pod a network", "use `network: { egress: deny }`"),
        refused("network.mode=none", "gives every pod a network", "use `network: { egress: deny }`"),
        refused(
            "network.allow.*=NAME",
            "lets sandboxes out by address only",
            "write an address or a network, such as `10.1.0.0/16:443`",
        ),
        refused("devices", "is given no devices of its node", "remove `devices`, or use provider `local`"),
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
        refused("ssh", "does not serve SSH", "use `pocketenv shell`"),
        refused("sockets", "makes no unix sockets on this machine", "use `ports`, or provider `local`"),
        refused("tailscale", "does not join a tailnet yet", "use `ports`"),
    ],
};
