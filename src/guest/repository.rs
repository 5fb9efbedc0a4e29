//! Git repositories: cloned once, brought to another reference when it changes, local work never lost.

use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};

use super::bundle::{check_path, key};
use super::script::{Env, SHORT, one_line, run, script};
use crate::model::RepositorySpec;
use crate::provider::{Guest, GuestError};

/// How long a clone may take.
const CLONE_LIMIT: Duration = Duration::from_secs(3600);

/// Who clones, and with what.
#[derive(Clone, Copy)]
pub struct RepositoryAccess<'a> {
    /// The environment of git, such as proxies.
    pub env: &'a Env,
    /// Who clones; `None` for the sandbox's default user.
    pub user: Option<&'a str>,
    /// The owner of the working copy, where it can be given to one.
    pub owner: Option<&'a str>,
    /// A token for https. It reaches git through its environment, is in no argument and stays on no disk.
    pub token: Option<&'a SecretString>,
}

/// Clones a repository to `path`, or brings the one there to the URL and reference of `spec`. A branch is followed by fast-forward only.
///
/// # Errors
/// [`GuestError::Failed`] if git is missing or fails, if the directory is something else, and if uncommitted changes or commits of its own are in the
/// way; nothing of them is touched.
pub async fn bring_repository(
    guest: &dyn Guest,
    path: &str,
    spec: &RepositorySpec,
    digest: &str,
    access: RepositoryAccess<'_>,
) -> Result<(), GuestError> {
    check_path(path)?;
    one_line("the digest", digest)?;
    one_line("the URL", &spec.url)?;
    if spec.url.starts_with('-') || has_password(&spec.url) {
        return Err(GuestError::Unsupported(format!(
            "repository {path}: the URL must not start with `-` or hold a password"
        )));
    }
    let reference = spec.reference.as_deref().unwrap_or("-");
    let odd = |byte: u8| byte.is_ascii_control() || b" ~^:?*[\\".contains(&byte);
    if spec.reference.is_some()
        && (reference.is_empty() || reference.starts_with('-') || reference.bytes().any(odd))
    {
        return Err(GuestError::Unsupported(format!(
            "repository {path}: {reference:?} is not the name of a branch, tag or commit"
        )));
    }
    let what = format!(
        "bringing repository {path} to {}",
        spec.reference.as_deref().unwrap_or("its default branch")
    );
    let key = key(path);
    let own = async |arguments: &[&str]| {
        let mut command = script!("repositories", "owner").command(arguments.iter().copied());
        command.timeout = Some(SHORT);
        let output = run(guest, &what, &command, 0).await?;
        Ok::<_, GuestError>(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    };
    let last = own(&["recall", &key, path, access.owner.unwrap_or_default()]).await?;

    let depth = spec.depth.map_or("-".to_owned(), |depth| depth.to_string());
    let mut command = script!("repository").command([path, &spec.url, reference, &depth, &last]);
    command.env = access.env.clone();
    if let Some(token) = access.token {
        command.env.insert("POCKETENV_GIT_TOKEN".to_owned(), token.expose_secret().to_owned());
    }
    command.user = access.user.map(str::to_owned);
    command.timeout = Some(CLONE_LIMIT);
    let output = run(guest, &what, &command, 0).await?;
    let commit = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    if commit.is_empty() || !commit.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(GuestError::Protocol { what, message: format!("{commit:?} is not a commit") });
    }
    own(&["remember", &key, digest, &commit, path]).await.map(drop)
}

/// Forgets a repository. The working copy stays: it may hold work.
///
/// # Errors
/// Whatever running a command gives.
pub async fn forget_repository(guest: &dyn Guest, path: &str) -> Result<(), GuestError> {
    let mut command = script!("repositories", "owner").command(["forget", &key(path)]);
    command.timeout = Some(SHORT);
    run(guest, "forgetting a repository", &command, 0).await.map(drop)
}

/// Whether the user part of a URL holds a password.
fn has_password(url: &str) -> bool {
    let authority = url.split_once("://").map_or("", |(_, rest)| rest).split('/').next().unwrap_or_default();
    authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_password_in_a_url_is_seen() {
        for (url, expected) in [
            ("https://user:token@example.com/r", true),
            ("https://user@example.com:8443/r", false),
            ("ssh://git@example.com/r@v:1", false),
            ("git@example.com:o/r", false),
            ("/srv/r", false),
        ] {
            assert_eq!(super::has_password(url), expected, "{url}");
        }
    }
}
