//! Which repository and what of it, checked before git sees it.

use std::fmt;

use super::GitError;

/// The transports that git may use. `ext` and whatever a remote helper adds are not among them.
pub(super) const PROTOCOLS: &str = "https:http:ssh:git:file";

/// A branch, a tag, a commit, or what the repository calls its default.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reference {
    /// The default branch.
    Head,
    /// A branch.
    Branch(String),
    /// A tag.
    Tag(String),
    /// A commit, as 40 or 64 lowercase hex digits.
    Commit(String),
}

impl Reference {
    /// The full name of the ref at the remote; `None` for a commit.
    pub(super) fn full_name(&self) -> Option<String> {
        match self {
            Self::Head => Some("HEAD".to_owned()),
            Self::Branch(name) => Some(format!("refs/heads/{name}")),
            Self::Tag(name) => Some(format!("refs/tags/{name}")),
            Self::Commit(_) => None,
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head => f.write_str("default branch"),
            Self::Branch(name) => write!(f, "branch `{name}`"),
            Self::Tag(name) => write!(f, "tag `{name}`"),
            Self::Commit(id) => write!(f, "commit {id}"),
        }
    }
}

/// A repository and what of it is followed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Remote {
    url: String,
    reference: Reference,
}

impl Remote {
    /// Checks both.
    ///
    /// # Errors
    /// [`GitError::Invalid`], without the URL.
    pub fn new(url: &str, reference: Reference) -> Result<Self, GitError> {
        let invalid = |what, why: &str| Err(GitError::Invalid { what, why: why.to_owned() });
        if url.is_empty() || url.starts_with('-') || url.chars().any(|c| c.is_control() || c.is_whitespace())
        {
            return invalid("the URL", "is empty, begins with `-` or has white space");
        }
        // `helper::address` runs a program of that name.
        if url.contains("::") && !url.contains("://") {
            return invalid("the URL", "names a remote helper, which is not allowed");
        }
        if let Some((scheme, rest)) = url.split_once("://") {
            if !PROTOCOLS.split(':').any(|allowed| allowed == scheme) {
                let why = format!("begins with `{scheme}://`; expected https, ssh, git, http or file");
                return Err(GitError::Invalid { what: "the URL", why });
            }
            let authority = rest.split('/').next().unwrap_or_default();
            if authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':')) {
                return invalid("the URL", "holds a password; give it to git by a credential helper instead");
            }
            if authority.starts_with('-') {
                return invalid("the URL", "names a host that begins with `-`");
            }
        }
        match &reference {
            Reference::Head => {}
            Reference::Branch(name) | Reference::Tag(name) => {
                let bad = |c: char| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c);
                if name.is_empty()
                    || name.starts_with(['-', '/'])
                    || name.ends_with(['/', '.'])
                    || name.contains("..")
                    || name.contains("@{")
                    || name.contains(bad)
                {
                    return invalid("the branch or tag", "is not the name of a ref");
                }
            }
            Reference::Commit(id) => {
                let hex = id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
                if !hex || !matches!(id.len(), 40 | 64) {
                    return invalid("the commit", "is not a full id of 40 or 64 lowercase hex digits");
                }
            }
        }
        Ok(Self { url: url.to_owned(), reference })
    }

    /// The URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What of it is followed.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// The repository's own name: the last part of its URL, without `.git`.
    pub fn repository(&self) -> &str {
        let url = self.url.trim_end_matches('/');
        let url = url.strip_suffix(".git").unwrap_or(url).trim_end_matches('/');
        url.rsplit(['/', ':']).next().filter(|name| !name.is_empty() && *name != "..").unwrap_or("repository")
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.reference, self.url)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_git_would_take_for_something_else_is_refused() {
        for url in [
            "",
            "-u",
            "--upload-pack=touch x",
            "ext::sh -c x",
            "ext::x",
            "fd::17",
            "ftp://h/x",
            "https://u:p@h/x",
            "ssh://-oProxyCommand=x/y",
            "https://h/a\nb",
        ] {
            assert!(Remote::new(url, Reference::Head).is_err(), "{url}");
        }
        for name in ["", "-x", "a..b", "a b", "a:b", "a^", "@{u}", "a/"] {
            assert!(Remote::new("https://h/x", Reference::Branch(name.to_owned())).is_err(), "{name}");
        }
        for id in ["HEAD", "abc", &"A".repeat(40)] {
            assert!(Remote::new("https://h/x", Reference::Commit(id.to_owned())).is_err(), "{id}");
        }
    }

    #[test]
    fn what_people_write_is_taken() {
        for (url, name) in [
            ("https://example.org/acme/shop.git", "shop"),
            ("git@example.org:acme/shop.git", "shop"),
            ("ssh://git@example.org:2222/acme/shop/", "shop"),
            ("/srv/git/shop.git", "shop"),
            ("file:///srv/git/shop", "shop"),
        ] {
            let remote = Remote::new(url, Reference::Branch("feature/x".to_owned())).unwrap();
            assert_eq!(remote.repository(), name);
        }
    }
}
