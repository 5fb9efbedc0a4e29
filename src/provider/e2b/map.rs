//! Our words ↔ E2B's. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use super::api;
use crate::model::{
    Egress, Endpoint, Identity, Image, Mount, NetworkMode, ObservedSandbox, SandboxId, SandboxSpec,
    SandboxState, Timestamp,
};
use crate::provider::ProviderError;
use crate::provider::http::timestamp;
use crate::provider::label::{self, SPEC, labelled_spec, labels};

/// The metadata that says when a sandbox with a limited life ends, in milliseconds since the epoch.
const ENDS_AT: &str = "pocketenv.io/ends-at";
/// The longest time that may be asked for.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Everything outside.
const ANYWHERE: &str = "0.0.0.0/0";

fn invalid<T>(message: impl Into<String>) -> Result<T, ProviderError> {
    Err(ProviderError::Invalid { message: message.into() })
}

/// Whole seconds, upwards.
pub(super) fn seconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis().div_ceil(1000)).unwrap_or(u64::MAX)
}

/// How long a sandbox may run from now.
pub(super) fn time_left(metadata: &BTreeMap<String, String>, usual: Duration, now: Timestamp) -> Duration {
    match metadata.get(ENDS_AT).and_then(|at| at.parse().ok()) {
        Some(at) => {
            Duration::from_millis(Timestamp(at).millis_since(now)).max(Duration::from_secs(1)).min(LONGEST)
        }
        None => usual,
    }
}

/// The template that a sandbox is made from; a snapshot by our name of it. `usual` is the one that is meant if nothing is said.
pub(super) fn template<'a>(spec: &'a SandboxSpec, usual: &'a str) -> Result<&'a str, ProviderError> {
    match &spec.image {
        Image::Host => Ok(usual),
        Image::Oci(name) | Image::Snapshot(name) => Ok(name),
        Image::Base(_) | Image::Build { .. } => {
            invalid("E2B makes sandboxes from templates: name one as `image`")
        }
    }
}

/// The volumes of a sandbox by E2B's names for them.
pub(super) fn mounts(
    spec: &SandboxSpec,
    project: &str,
    volumes: &[api::Volume],
) -> Result<Vec<api::VolumeMount>, ProviderError> {
    let mount = |volume: &api::Volume, mount: &Mount| api::VolumeMount {
        name: volume.name.clone(),
        path: mount.path.clone(),
    };
    label::mounts(("E2B", spec, project), volumes, |volume| &volume.name, mount)
}

/// The labels of a snapshot of ours: they are its name.
pub(super) fn snapshot_labels(snapshot: &api::SnapshotInfo) -> Option<BTreeMap<String, String>> {
    let names = snapshot.names.iter().chain([&snapshot.snapshot_id]);
    names.into_iter().find_map(|name| {
        // TEAM/NAME:TAG
        let name = name.rsplit_once('/').map_or(name.as_str(), |(_, name)| name);
        label::named(name.split(':').next().unwrap_or_default())
    })
}

/// The request that makes a sandbox from a template with volumes, by E2B's names for them.
pub(super) fn new_sandbox(
    spec: &SandboxSpec,
    identity: &Identity,
    template: String,
    mounts: Vec<api::VolumeMount>,
    usual: Duration,
    now: Timestamp,
) -> Result<api::NewSandbox, ProviderError> {
    if let Some(link) = spec.links.first() {
        return invalid(format!("a sandbox of E2B does not reach port {} of this machine", link.host_port));
    }
    let mut metadata = labels(spec, identity)?;
    if let Some(ttl) = spec.lifecycle.ttl {
        let end = now.0.saturating_add(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX));
        metadata.insert(ENDS_AT.to_owned(), end.to_string());
    }
    let timeout = time_left(&metadata, usual, now);
    let (allow_internet_access, mut network) = reach(spec)?;
    // A sandbox's ports are open to everybody who knows its name, or to those who have its token.
    let public = spec.ports.values().filter(|port| port.public).count();
    if public > 0 && public < spec.ports.len() {
        return invalid("E2B publishes all ports of a sandbox or none: `public` must be the same for each");
    }
    network.allow_public_traffic = Some(public > 0);
    Ok(api::NewSandbox {
        template_id: template,
        volume_mounts: (!mounts.is_empty()).then_some(mounts),
        timeout: Some(seconds(timeout)),
        // Without a limit to its life its disk is to outlive its time; with one it is to be gone.
        auto_pause: Some(spec.lifecycle.ttl.is_none()),
        allow_internet_access,
        network: Some(network),
        metadata: Some(metadata),
        ..api::NewSandbox::default()
    })
}

fn reach(spec: &SandboxSpec) -> Result<(Option<bool>, api::Network), ProviderError> {
    let mut network = api::Network::default();
    if spec.network.mode != NetworkMode::Isolated {
        return invalid("E2B gives every sandbox a network of its own");
    }
    if spec.network.egress != Some(Egress::Deny) {
        return Ok((None, network));
    }
    if spec.network.allow.is_empty() {
        return Ok((Some(false), network));
    }
    for destination in &spec.network.allow {
        // An address of IPv6 has more than one colon.
        if destination.split(':').count() == 2 {
            return invalid(format!(
                "E2B lets a sandbox reach a host at every port or at none: `{destination}`"
            ));
        }
    }
    network.allow_out = Some(spec.network.allow.clone());
    network.deny_out = Some(vec![ANYWHERE.to_owned()]);
    Ok((None, network))
}

/// The value of `metadata` in a query: each name and value is encoded twice, since the service decodes the whole before it takes it apart.
pub(super) fn filter(wanted: &[(&str, &str)]) -> String {
    let pair =
        |(name, value): &(&str, &str)| format!("{}={}", encoded(&encoded(name)), encoded(&encoded(value)));
    wanted.iter().map(pair).collect::<Vec<_>>().join("&")
}

/// Percent-encoding of everything but what never needs it.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            byte => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// What E2B reports, in our words. `domain` is where ports are reached if it does not say.
pub(super) fn observed(sandbox: api::SandboxDetail, domain: &str) -> ObservedSandbox {
    let mut labels = sandbox.metadata;
    let spec = labelled_spec(&labels);
    labels.remove(SPEC);
    labels.remove(ENDS_AT);
    let domain = sandbox.domain.as_deref().unwrap_or(domain);
    let state = match sandbox.state.as_str() {
        "running" => SandboxState::Running,
        "paused" => SandboxState::Stopped { unclean: None },
        other => SandboxState::Failed(format!("its state at E2B is `{other}`")),
    };
    let (host, port) = match domain.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().unwrap_or(443)),
        None => (domain, 443),
    };
    let endpoints = spec.iter().flat_map(|spec| spec.ports.keys()).map(|inside| {
        let host = format!("{inside}-{}.{host}", sandbox.sandbox_id);
        // Whether something listens behind it is not told.
        (*inside, Endpoint { host, port, listening: state == SandboxState::Running })
    });
    ObservedSandbox {
        endpoints: endpoints.collect(),
        id: SandboxId(sandbox.sandbox_id.clone()),
        state: state.clone(),
        created_at: None,
        started_at: timestamp(&sandbox.started_at),
        bound: BTreeMap::new(),
        sockets: BTreeMap::new(),
        missing_mounts: Vec::new(),
        usage: Default::default(),
        notes: match (state == SandboxState::Running, timestamp(&sandbox.end_at)) {
            (true, Some(at)) => {
                let at = jiff::Timestamp::from_millisecond(at.0).unwrap_or_default();
                vec![format!("E2B ends or pauses it at {at}")]
            }
            _ => Vec::new(),
        },
        spec,
        labels,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::model::PortSpec;
    use crate::provider::label::any_identity as identity;

    fn made(spec: &SandboxSpec) -> Result<api::NewSandbox, ProviderError> {
        let from = template(spec, "base")?.to_owned();
        new_sandbox(spec, &identity(), from, Vec::new(), Duration::from_secs(3600), Timestamp(1000))
    }

    #[test]
    fn a_filter_is_encoded_as_the_vendor_decodes_it() {
        assert_eq!(filter(&[("fleet", "f1"), ("k v", "x&y")]), "fleet=f1&k%2520v=x%2526y");
    }

    #[test]
    fn what_is_asked_for_is_read_back() {
        let mut spec = SandboxSpec::default();
        spec.ports.insert(3000, PortSpec::default());
        let new = made(&spec).unwrap();
        assert_eq!((new.template_id.as_str(), new.timeout, new.auto_pause), ("base", Some(3600), Some(true)));
        assert_eq!(new.network.unwrap().allow_public_traffic, Some(false));
        let detail = api::SandboxDetail {
            template_id: "base".to_owned(),
            alias: None,
            sandbox_id: "iabc".to_owned(),
            client_id: String::new(),
            started_at: "2026-01-01T00:00:00Z".to_owned(),
            end_at: "2026-01-01T01:00:00Z".to_owned(),
            cpu_count: 2,
            memory_mb: 512,
            disk_size_mb: 1024,
            metadata: new.metadata.unwrap(),
            state: "running".to_owned(),
            envd_version: String::new(),
            envd_access_token: None,
            allow_internet_access: None,
            domain: None,
            lifecycle: None,
            network: None,
            volume_mounts: None,
        };
        let seen = observed(detail, "e2b.app");
        assert_eq!(seen.spec, Some(spec));
        assert_eq!(Identity::from_labels(&seen.labels).unwrap(), Some(identity()));
        assert_eq!(seen.endpoints[&3000].host, "3000-iabc.e2b.app");
    }

    #[test]
    fn a_limited_life_ends_when_it_was_to_end() {
        let mut spec = SandboxSpec::default();
        spec.lifecycle.ttl = Some("2h".parse().unwrap());
        let new = made(&spec).unwrap();
        assert_eq!((new.timeout, new.auto_pause), (Some(7200), Some(false)));
        let later = Timestamp(1000 + 3600 * 1000);
        let left = time_left(&new.metadata.unwrap(), Duration::from_secs(3600), later);
        assert_eq!(left, Duration::from_secs(3600));
    }

    #[test]
    fn snapshots_and_volumes_are_told_by_their_names() {
        let named = |address: &str| {
            label::name(&Identity { address: address.parse().unwrap(), ..identity() }.to_labels())
        };
        let name = named("snapshot/s");
        let snapshot = api::SnapshotInfo {
            snapshot_id: format!("team/{name}:default"),
            names: vec![format!("team/{name}:default")],
        };
        let found = snapshot_labels(&snapshot).unwrap();
        assert!(label::are_of(&found, "shop", "snapshot/s"));
        let theirs = api::SnapshotInfo { snapshot_id: "abc:default".to_owned(), names: Vec::new() };
        assert_eq!(snapshot_labels(&theirs), None);

        let volume = api::Volume { volume_id: "v".to_owned(), name: named("volume/data"), token: None };
        let mount = Mount { path: "/data".to_owned(), volume: "data".to_owned(), read_only: false };
        let mut spec = SandboxSpec { mounts: vec![mount], ..SandboxSpec::default() };
        let asked = mounts(&spec, "shop", std::slice::from_ref(&volume)).unwrap();
        assert_eq!(asked, [api::VolumeMount { name: volume.name.clone(), path: "/data".to_owned() }]);
        assert!(mounts(&spec, "other", std::slice::from_ref(&volume)).is_err());
        spec.mounts[0].read_only = true;
        assert!(mounts(&spec, "shop", &[volume]).is_err());
    }

    #[test]
    fn what_cannot_be_had_is_refused() {
        let mut spec = SandboxSpec::default();
        spec.network.egress = Some(Egress::Deny);
        assert_eq!(made(&spec).unwrap().allow_internet_access, Some(false));
        spec.network.allow = vec!["github.com".to_owned()];
        assert_eq!(made(&spec).unwrap().network.unwrap().deny_out, Some(vec![ANYWHERE.to_owned()]));
        spec.network.allow = vec!["github.com:443".to_owned()];
        assert!(made(&spec).is_err());
        let mut spec = SandboxSpec { image: Image::Base("claude".to_owned()), ..SandboxSpec::default() };
        assert!(made(&spec).is_err());
        spec.image = Image::Host;
        spec.ports.insert(1, PortSpec { public: true, ..PortSpec::default() });
        assert_eq!(made(&spec).unwrap().network.unwrap().allow_public_traffic, Some(true));
        spec.ports.insert(2, PortSpec::default());
        assert!(made(&spec).is_err());
    }
}
