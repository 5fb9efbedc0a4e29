//! The whole spec beside the labels of ownership, at providers whose objects carry free text: a lost store reads it back. And ownership as a
//! name, for objects that carry no text at all.

use std::collections::BTreeMap;

use super::ProviderError;
use crate::model::{Identity, Image, Mount, ObservedSandbox, SandboxSpec, labels};

/// The label that keeps it, as JSON.
pub(super) const SPEC: &str = "pocketenv.io/spec";

/// The labels of a sandbox: whose it is, and what it is to be.
///
/// # Errors
/// [`ProviderError::Permanent`] if the spec cannot be written as JSON.
pub(super) fn labels(
    spec: &SandboxSpec,
    identity: &Identity,
) -> Result<BTreeMap<String, String>, ProviderError> {
    let json = serde_json::to_string(spec)
        .map_err(|error| ProviderError::permanent("the spec cannot be kept as a label", error))?;
    let mut labels = identity.to_labels();
    labels.insert(SPEC.to_owned(), json);
    Ok(labels)
}

/// The spec that labels carry; `None` if there is none that can be read.
pub(super) fn labelled_spec(labels: &BTreeMap<String, String>) -> Option<SandboxSpec> {
    serde_json::from_str(labels.get(SPEC)?).ok()
}

/// Begins the names that are labels.
const NAME: &str = "pocketenv-";
/// The labels in such a name, in their order. The others follow from nothing: only sandboxes have a spec.
const NAMED: [&str; 7] = [
    labels::PROJECT,
    labels::ADDRESS,
    labels::OWNER,
    labels::INTENT,
    labels::SNAPSHOT_OF,
    labels::FOR_FORKS,
    labels::EXPIRES_AT,
];

/// Labels as a name, for snapshots and volumes of providers that have no labels for them. It is of small letters, digits and one dash.
pub(super) fn name(labels: &BTreeMap<String, String>) -> String {
    let values = NAMED.map(|name| labels.get(name).map_or("", String::as_str));
    format!("{NAME}{}", hex::encode(values.join("\n").trim_end()))
}

/// The labels that a name is; `None` if it is none of ours.
pub(super) fn named(name: &str) -> Option<BTreeMap<String, String>> {
    let text = String::from_utf8(hex::decode(name.strip_prefix(NAME)?).ok()?).ok()?;
    let values: Vec<&str> = text.split('\n').collect();
    if !(4..=NAMED.len()).contains(&values.len()) {
        return None;
    }
    let said = NAMED.iter().zip(values).filter(|(_, value)| !value.is_empty());
    let mut labels: BTreeMap<String, String> =
        said.map(|(name, value)| ((*name).to_owned(), value.to_owned())).collect();
    labels.insert(labels::MANAGED_BY.to_owned(), "pocketenv".to_owned());
    labels.insert(labels::SPEC_HASH.to_owned(), SandboxSpec::default().hash().0);
    labels.insert(labels::GENERATION.to_owned(), "1".to_owned());
    Some(labels)
}

/// Whether labels are those of the volume or snapshot at an address of a project.
pub(super) fn are_of(labels: &BTreeMap<String, String>, project: &str, address: &str) -> bool {
    let is = |name: &str, value: &str| labels.get(name).is_some_and(|found| found == value);
    is(labels::PROJECT, project) && is(labels::ADDRESS, address)
}

/// Whether a name is that of the volume or snapshot at an address of a project.
pub(super) fn names(name: &str, project: &str, address: &str) -> bool {
    named(name).is_some_and(|labels| are_of(&labels, project, address))
}

/// The volumes of a sandbox, where only their names say whose they are and all are mounted to be written to. `name` is the provider's name of one.
///
/// # Errors
/// [`ProviderError::Invalid`] for one that is to be read only, or is not there.
pub(super) fn mounts<V, M>(
    (vendor, spec, project): (&str, &SandboxSpec, &str),
    volumes: &[V],
    name: impl Fn(&V) -> &str,
    mount: impl Fn(&V, &Mount) -> M,
) -> Result<Vec<M>, ProviderError> {
    let mounted = |wanted: &Mount| {
        let (volume, address) = (&wanted.volume, format!("volume/{}", wanted.volume));
        let found = volumes.iter().find(|volume| names(name(volume), project, &address));
        let message = match found {
            _ if wanted.read_only => {
                format!("{vendor} mounts volumes to be written to: `read_only` of `{volume}`")
            }
            Some(found) => return Ok(mount(found, wanted)),
            None => format!("volume `{volume}` of project `{project}` is not at {vendor}"),
        };
        Err(ProviderError::Invalid { message })
    };
    spec.mounts.iter().map(mounted).collect()
}

/// The ids of the sandboxes that are made from a snapshot of a project, by what they are to be.
pub(super) fn made_from<'a>(
    project: &str,
    snapshot: &str,
    sandboxes: impl Iterator<Item = &'a ObservedSandbox>,
) -> Vec<String> {
    let made = sandboxes.filter(|sandbox| {
        let image = sandbox.spec.as_ref().map(|spec| &spec.image);
        matches!(image, Some(Image::Snapshot(from)) if from == snapshot)
            && sandbox.labels.get(labels::PROJECT).is_some_and(|of| of == project)
    });
    made.map(|sandbox| sandbox.id.0.clone()).collect()
}

/// Nothing, if no sandbox is made from a snapshot of a project.
///
/// # Errors
/// [`ProviderError::Invalid`] with the ids of those that are.
pub(super) fn unused<'a>(
    project: &str,
    snapshot: &str,
    sandboxes: impl Iterator<Item = &'a ObservedSandbox>,
) -> Result<(), ProviderError> {
    let users = made_from(project, snapshot, sandboxes);
    if users.is_empty() {
        return Ok(());
    }
    let message = format!("snapshot {snapshot} is what {} is made from", users.join(", "));
    Err(ProviderError::Invalid { message })
}

/// An identity, for tests.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) fn any_identity() -> Identity {
    use crate::model::{IntentId, OwnerId, SpecHash};
    Identity {
        project: "shop".to_owned(),
        address: "sandbox/api".parse().unwrap(),
        owner: OwnerId("o".to_owned()),
        spec_hash: SpecHash("h".to_owned()),
        generation: 1,
        intent: IntentId("i".to_owned()),
        expires_at: None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::model::Address;

    #[test]
    fn a_name_says_what_labels_say() {
        let of = |address| Identity { address, spec_hash: SandboxSpec::default().hash(), ..any_identity() };
        let volume = of(Address::Volume("Data_1".to_owned())).to_labels();
        assert_eq!(named(&name(&volume)), Some(volume));
        let expires_at = Some(crate::model::Timestamp(7));
        let brief = Identity { expires_at, ..of(Address::Volume("v".to_owned())) }.to_labels();
        assert_eq!(named(&name(&brief)), Some(brief));
        let mut snapshot = of(Address::Snapshot("s".to_owned())).to_labels();
        snapshot.insert(labels::SNAPSHOT_OF.to_owned(), "sandbox/api".to_owned());
        assert_eq!(named(&name(&snapshot)), Some(snapshot.clone()));
        snapshot.insert(labels::FOR_FORKS.to_owned(), "true".to_owned());
        assert_eq!(named(&name(&snapshot)), Some(snapshot.clone()));
        assert!(name(&snapshot).bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
        assert!(are_of(&snapshot, "shop", "snapshot/s") && !are_of(&snapshot, "shop", "volume/s"));
        for other in ["", "pocketenv-", "pocketenv-zz", "pocketenv-6161", "theirs"] {
            assert_eq!(named(other), None, "{other}");
        }
    }
}
