//! Digests by which a guest remembers what it was given. Secrets enter as keyed digests, never as values.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::model::{
    DesiredFile, FileContent, GuestSpec, RepositorySpec, SecretUse, ServiceSpec, hash_of, sha256_hex,
};

/// The digest of a sandbox's environment: values of `env` and keyed digests of environment secrets. `Err` names the secret whose value is not known.
pub fn env_digest<'a>(guest: &'a GuestSpec, secrets: &BTreeMap<String, String>) -> Result<String, &'a str> {
    #[derive(Serialize)]
    struct Content<'a> {
        env: &'a BTreeMap<String, String>,
        secrets: BTreeMap<&'a str, &'a str>,
    }
    Ok(hash_of(&Content { env: &guest.env, secrets: env_secrets(guest, secrets)? }).0)
}

fn env_secrets<'a: 'b, 'b>(
    guest: &'a GuestSpec,
    secrets: &'b BTreeMap<String, String>,
) -> Result<BTreeMap<&'a str, &'b str>, &'a str> {
    let mut found = BTreeMap::new();
    for (name, usage) in &guest.secrets {
        match usage {
            SecretUse::Env(variable) => {
                let digest = secrets.get(name).ok_or(name.as_str())?;
                found.insert(variable.as_str(), digest.as_str());
            }
            // Another value changes nothing inside.
            SecretUse::Bound { variable, placeholder } => {
                found.insert(variable.as_str(), placeholder.as_str());
            }
            SecretUse::File(_) => {}
        }
    }
    Ok(found)
}

/// The digest of a managed file: what it holds and its mode, not where it came from.
pub fn file_digest(file: &DesiredFile) -> String {
    let (kind, hash) = match &file.content {
        FileContent::Inline(text) => ("file", sha256_hex(text.as_bytes())),
        FileContent::Source { sha256, .. } => ("file", sha256.clone()),
        FileContent::Tree { sha256, .. } => ("tree", sha256.clone()),
    };
    hash_of(&(kind, hash, file_mode(file))).0
}

/// The mode a single managed file gets; `None` for a directory that keeps the modes of its source.
fn file_mode(file: &DesiredFile) -> Option<u32> {
    match (&file.content, file.mode) {
        (_, Some(mode)) => Some(mode),
        (FileContent::Inline(_), None) => Some(0o644),
        (FileContent::Source { mode, .. }, None) => Some(*mode),
        (FileContent::Tree { .. }, None) => None,
    }
}

/// The digest of a secret given as a file, from the keyed digest of its value.
pub fn secret_file_digest(keyed: &str) -> String {
    sha256_hex(format!("secret file {keyed}").as_bytes())
}

/// The digest of a repository: any change of it needs a fetch.
pub fn repository_digest(spec: &RepositorySpec) -> String {
    hash_of(&(&spec.url, &spec.reference, spec.depth)).0
}

/// The digest of something that has this one and belongs to `owner`; that of what has no declared owner is its own.
pub fn owned_digest(digest: String, owner: Option<&str>) -> String {
    match owner {
        Some(owner) => hash_of(&(digest, owner)).0,
        None => digest,
    }
}

/// The digest of a service: what its processes are started from. Health check, dependencies and wanted state are not part of it, because a
/// change of those needs no restart. `Err` names the secret whose value is not known.
pub fn service_digest<'a>(
    guest: &'a GuestSpec,
    service: &ServiceSpec,
    secrets: &BTreeMap<String, String>,
) -> Result<String, &'a str> {
    #[derive(Serialize)]
    struct Content<'a> {
        command: &'a [String],
        working_dir: Option<&'a String>,
        user: Option<&'a String>,
        env: BTreeMap<&'a str, &'a str>,
        secrets: BTreeMap<&'a str, &'a str>,
        restart: &'a crate::model::RestartPolicy,
        stop_signal: &'a str,
        stop_timeout: crate::model::Duration,
        log_max_size: crate::model::Quantity,
        log_max_files: u32,
    }
    let mut env: BTreeMap<&str, &str> =
        guest.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    env.extend(service.env.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    Ok(hash_of(&Content {
        command: &service.command,
        working_dir: service.working_dir.as_ref().or(guest.working_dir.as_ref()),
        user: service.user.as_ref().or(guest.user.as_ref()),
        env,
        secrets: env_secrets(guest, secrets)?,
        restart: &service.restart,
        stop_signal: &service.stop_signal,
        stop_timeout: service.stop_timeout,
        log_max_size: service.log_max_size,
        log_max_files: service.log_max_files,
    })
    .0)
}
