//! Images: found, pulled, or built from a directory.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bollard::auth::DockerCredentials;
use bollard::models::ErrorDetail;
use bollard::query_parameters::{BuildImageOptionsBuilder, CreateImageOptionsBuilder};
use futures::StreamExt as _;
use secrecy::ExposeSecret as _;
use tokio_util::io::{ReaderStream, SyncIoBridge};

use super::api::Api;
use super::map;
use crate::image::{Hashing, ImageError, credentials};
use crate::model::{Image, labels, sha256_hex};
use crate::provider::script::shown;
use crate::provider::{ProviderError, base};
use crate::tree::{TreeEntry, TreeKind, scan, tree_sha256};

/// The name that the daemon has for Docker's own registry.
const DOCKER_IO: &str = "https://index.docker.io/v1/";
/// How long a pull or a build may say nothing.
const SILENCE: Duration = Duration::from_secs(600);
/// What of a failed build's output is shown, in bytes.
const OUTPUT_LIMIT: usize = 2000;
/// Repository of the images that are built here; the tag is the hash of what they were built from.
const BUILT: &str = "pocketenv-build";

/// The reference of an image that is there now. Snapshots are those of the project.
///
/// # Errors
/// [`ProviderError::Invalid`] if there is no such image or it cannot be built.
pub(super) async fn ensure(api: &Api, image: &Image, project: &str) -> Result<String, ProviderError> {
    match image {
        Image::Oci(reference) => {
            if !exists(api, reference).await? {
                pull(api, reference).await?;
            }
            Ok(reference.clone())
        }
        Image::Build { context, dockerfile, sha256 } => {
            build(api, &context.0, dockerfile.as_deref(), sha256).await
        }
        Image::Host => Err(ProviderError::Unsupported {
            message: "provider `docker` cannot make a sandbox from the system of this machine; use `image`"
                .to_owned(),
        }),
        Image::Base(name) => {
            let (context, sha256) = base::context(name)?;
            build(api, context.path(), None, &sha256).await
        }
        Image::Snapshot(name) => {
            for reference in [map::snapshot_reference(project, name), name.clone()] {
                if map::is_snapshot(&reference) && exists(api, &reference).await? {
                    return Ok(reference);
                }
            }
            let message = format!("there is no snapshot `{name}` of project `{project}` at this daemon");
            Err(ProviderError::Invalid { message })
        }
    }
}

async fn exists(api: &Api, reference: &str) -> Result<bool, ProviderError> {
    let doing = format!("look for image {reference}");
    match api.client().await?.inspect_image(&path(reference)?).await.map_err(|error| api.error(&doing, error))
    {
        Ok(_) => Ok(true),
        Err(ProviderError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A reference that may stand in a path: what else stands there would change the path.
fn path(reference: &str) -> Result<String, ProviderError> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte);
    let walks = reference.split('/').any(|part| part.is_empty() || part.starts_with('.'));
    match !reference.is_empty() && reference.bytes().all(fine) && !walks {
        true => Ok(reference.to_owned()),
        false => {
            Err(ProviderError::Invalid { message: format!("`{}` is not an image", reference.escape_debug()) })
        }
    }
}

/// The repository and the tag or digest. Without either, Docker would pull every tag there is.
fn parts(reference: &str) -> (&str, &str) {
    if let Some((name, digest)) = reference.split_once('@') {
        return (name, digest);
    }
    match reference.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, tag),
        _ => (reference, "latest"),
    }
}

async fn pull(api: &Api, reference: &str) -> Result<(), ProviderError> {
    let doing = format!("pull image {reference}");
    let (name, tag) = parts(reference);
    tracing::info!(image = reference, "pulling");
    let options = CreateImageOptionsBuilder::new().from_image(name).tag(tag).build();
    let registry = registry(name);
    let credentials = credentials_for(api, registry, reference).await?;
    let known = credentials.is_some();
    let mut progress = api.client().await?.create_image(Some(options), None, credentials);
    loop {
        match next(api, &doing, &mut progress).await {
            Ok(Some(news)) => {
                if let Some(why) = news.error_detail {
                    return Err(not_pulled(reference, registry, known, &said(why)));
                }
            }
            Ok(None) => break,
            // Docker repeats what the registry said, with a status of its own.
            Err(error) if is_denied(&error.to_string()) => {
                return Err(not_pulled(reference, registry, known, &error.to_string()));
            }
            Err(error) => return Err(error),
        }
    }
    if exists(api, reference).await? {
        Ok(())
    } else {
        Err(not_pulled(reference, registry, known, "it is still not there"))
    }
}

/// Whether a registry wants to know who asks, or does not let them.
fn is_denied(said: &str) -> bool {
    ["unauthorized", "no basic auth credentials", "denied"].iter().any(|word| said.contains(word))
}

fn not_pulled(reference: &str, registry: &str, known: bool, why: &str) -> ProviderError {
    let message = format!("cannot pull image {reference}: {why}");
    match (is_denied(why), known) {
        (false, _) => ProviderError::Invalid { message },
        (true, true) => ProviderError::Unauthorised {
            message: format!(
                "{message}; the credentials for {registry} in Docker's `config.json` do not open it"
            ),
        },
        (true, false) => ProviderError::Unauthorised {
            message: format!(
                "{message}; Docker's `config.json` on this machine has no credentials for {registry}: `docker login {registry}` writes them"
            ),
        },
    }
}

/// The registry of a repository, as Docker tells it: what has a dot or a port is a host.
fn registry(name: &str) -> &str {
    match name.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

/// Credentials of this machine for a registry, as the daemon takes them.
async fn credentials_for(
    api: &Api,
    registry: &str,
    reference: &str,
) -> Result<Option<DockerCredentials>, ProviderError> {
    let Some(file) = &api.config else { return Ok(None) };
    let found = credentials::find(file, registry, reference).await.map_err(|error| match error {
        error @ ImageError::Unauthorised(..) => ProviderError::Unauthorised { message: error.to_string() },
        error => ProviderError::permanent(format!("cannot find the credentials for {registry}"), error),
    })?;
    Ok(found.map(|found| DockerCredentials {
        username: Some(found.user),
        password: Some(found.password.expose_secret().to_owned()),
        serveraddress: Some(if registry == "docker.io" { DOCKER_IO } else { registry }.to_owned()),
        ..DockerCredentials::default()
    }))
}

/// Credentials for the registries that a build names, and for Docker's own: no other's leave this machine.
async fn credentials_of_build(
    api: &Api,
    dockerfile: &Path,
) -> Result<HashMap<String, DockerCredentials>, ProviderError> {
    let mut all = HashMap::new();
    let Some(file) = &api.config else { return Ok(all) };
    let unreadable = |error| ProviderError::permanent("cannot find the credentials of registries", error);
    let mut wanted = credentials::registries(file).map_err(unreadable)?;
    let text = match std::fs::read_to_string(dockerfile) {
        // The builder says so.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(all),
        text => text.map_err(|error| {
            ProviderError::permanent(format!("cannot read {}", dockerfile.display()), error)
        })?,
    };
    wanted.retain(|name| name == "docker.io" || text.contains(name.as_str()));
    // One that keeps the credentials of all is named for none.
    wanted.extend(bases(&text).filter(|name| !name.contains('$')).map(registry).map(str::to_owned));
    for registry in &wanted {
        let what = dockerfile.display().to_string();
        if let Some(found) = credentials_for(api, registry, &what).await? {
            all.insert(found.serveraddress.clone().unwrap_or_default(), found);
        }
    }
    Ok(all)
}

/// What the lines `FROM` of a Dockerfile name.
fn bases(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        words.next().filter(|word| word.eq_ignore_ascii_case("from"))?;
        words.find(|word| !word.starts_with("--"))
    })
}

fn said(detail: ErrorDetail) -> String {
    shown(&detail.message.unwrap_or_default())
}

/// The next news of a pull or a build.
async fn next<T>(
    api: &Api,
    doing: &str,
    progress: &mut (impl futures::Stream<Item = Result<T, bollard::errors::Error>> + Unpin),
) -> Result<Option<T>, ProviderError> {
    match tokio::time::timeout(SILENCE, progress.next()).await {
        Ok(news) => match news.transpose().map_err(|error| api.error(doing, error)) {
            Err(ProviderError::NotFound { what }) => Err(ProviderError::Invalid { message: what }),
            news => news,
        },
        Err(_) => Err(ProviderError::Transient {
            message: format!("cannot {doing}: nothing was heard for {} s", SILENCE.as_secs()),
            source: None,
        }),
    }
}

/// Builds an image unless one was built from just this before.
async fn build(
    api: &Api,
    context: &Path,
    dockerfile: Option<&str>,
    sha256: &str,
) -> Result<String, ProviderError> {
    let wanted = dockerfile.unwrap_or("Dockerfile").trim_start_matches("./");
    let hash = sha256_hex(format!("1\n{wanted}\n{sha256}").as_bytes());
    let reference = format!("{BUILT}:{}", &hash[..32]);
    if exists(api, &reference).await? {
        return Ok(reference);
    }
    let root = context.to_owned();
    let entries = tokio::task::spawn_blocking(move || scan(&root)).await;
    let unreadable = |why: String| ProviderError::Invalid {
        message: format!("cannot build {}: {why}", context.display()),
    };
    let entries = entries
        .map_err(|error| unreadable(error.to_string()))?
        .map_err(|error| unreadable(error.to_string()))?;
    if tree_sha256(&entries) != sha256 {
        return Err(unreadable("it has changed since it was looked at; plan again".to_owned()));
    }

    tracing::info!(context = %context.display(), "building");
    let doing = format!("build {}", context.display());
    let credentials = credentials_of_build(api, &context.join(wanted)).await?;
    let (reader, writer) = tokio::io::duplex(256 * 1024);
    let root = context.to_owned();
    let packing = tokio::task::spawn_blocking(move || pack(&root, &entries, SyncIoBridge::new(writer)));
    let owned = std::collections::HashMap::from([(labels::MANAGED_BY, "pocketenv")]);
    let options = BuildImageOptionsBuilder::new()
        .dockerfile(wanted)
        .t(&reference)
        .rm(true)
        .forcerm(true)
        .labels(&owned)
        .build();
    let body = bollard::body_try_stream(ReaderStream::new(reader));
    let mut progress = Box::pin(api.client().await?.build_image(options, Some(credentials), Some(body)));
    let (mut output, mut failure) = (String::new(), None);
    let built = loop {
        match next(api, &doing, &mut progress).await {
            Ok(Some(news)) => {
                output.push_str(&news.stream.unwrap_or_default());
                let cut = output.len().saturating_sub(OUTPUT_LIMIT);
                let cut = (cut..output.len()).find(|at| output.is_char_boundary(*at)).unwrap_or(0);
                output.drain(..cut);
                failure = news.error_detail.map(said).or(failure);
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    drop(progress);
    // What went wrong on this side explains what went wrong there.
    if let Ok(Err(error)) = packing.await
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        return Err(unreadable(error.to_string()));
    }
    let failure = match built {
        Err(ProviderError::Permanent { message, .. }) => Some(message),
        other => {
            other?;
            failure
        }
    };
    match failure {
        Some(why) => Err(unreadable(format!("{why}\n{}", output.trim_end()))),
        None => Ok(reference),
    }
}

/// Writes the context as an archive that is the same whenever the context is: no times, no owners.
fn pack(root: &Path, entries: &[TreeEntry], out: impl Write) -> io::Result<()> {
    let mut builder = tar::Builder::new(io::BufWriter::with_capacity(64 * 1024, out));
    for entry in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_mtime(0);
        match &entry.kind {
            TreeKind::Dir { mode } => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(*mode);
                builder.append_data(&mut header, format!("{}/", entry.path), io::empty())?;
            }
            TreeKind::Symlink { target } => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                builder.append_link(&mut header, &entry.path, target)?;
            }
            TreeKind::File { sha256, size, mode } => {
                let path = root.join(&entry.path);
                header.set_mode(*mode);
                header.set_size(*size);
                let mut file = Hashing::new(std::fs::File::open(&path)?.take(*size));
                builder.append_data(&mut header, &entry.path, &mut file)?;
                if file.count() != *size || file.digest().hex() != sha256 {
                    return Err(changed(path));
                }
            }
        }
    }
    builder.into_inner()?.flush()
}

fn changed(path: PathBuf) -> io::Error {
    io::Error::other(format!("{} has changed since it was looked at; try again", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_tag_is_pulled_and_not_all() {
        assert_eq!(parts("debian"), ("debian", "latest"));
        assert_eq!(parts("localhost:5000/a/b"), ("localhost:5000/a/b", "latest"));
        assert_eq!(parts("localhost:5000/a/b:1.2"), ("localhost:5000/a/b", "1.2"));
        assert_eq!(parts("a/b@sha256:00"), ("a/b", "sha256:00"));
        assert_eq!((registry("debian"), registry("acme/app")), ("docker.io", "docker.io"));
        assert_eq!((registry("localhost:5000/a"), registry("ghcr.io/a/b")), ("localhost:5000", "ghcr.io"));
    }

    #[test]
    fn the_bases_of_a_build_are_what_it_names() {
        let text = "ARG X\nFROM --platform=linux/amd64 r.test/a AS one\n  from b:1\nRUN echo FROM c\nFROM\n";
        assert_eq!(bases(text).collect::<Vec<_>>(), ["r.test/a", "b:1"]);
    }

    #[test]
    fn a_reference_cannot_change_the_path() {
        for text in ["", "a?b", "../x", "a/../b", "a b", "a#b", "/a", "a//b", "é"] {
            assert!(path(text).is_err(), "{text}");
        }
        assert!(path("docker.io/library/postgres:17").is_ok() && path("a@sha256:0a").is_ok());
    }
}
