//! Repository URLs: shorthands expanded, credentials refused.

/// A repository URL in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RepoAddress {
    pub url: String,
    /// The last part of the path without `.git`: the default directory's name.
    pub name: String,
}

const SHORTHANDS: &[(&str, &str)] = &[
    ("github:", "https://github.com/"),
    ("gitlab:", "https://gitlab.com/"),
    ("tangled:", "https://tangled.org/"),
];

/// Reads a URL or shorthand. `Err` says what is wrong, as a clause after the text.
pub(crate) fn parse(text: &str) -> Result<RepoAddress, String> {
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("has a space or control character".to_owned());
    }
    for (prefix, base) in SHORTHANDS {
        if let Some(rest) = text.strip_prefix(prefix) {
            let rest = rest.strip_suffix(".git").unwrap_or(rest);
            let parts: Vec<&str> = rest.split('/').collect();
            // GitLab has groups within groups.
            let enough = if *prefix == "gitlab:" { parts.len() >= 2 } else { parts.len() == 2 };
            if !enough || !parts.iter().all(|p| good_part(p)) {
                return Err(format!("is not `{prefix}owner/name`"));
            }
            return Ok(RepoAddress {
                url: format!("{base}{rest}"),
                name: parts.last().copied().unwrap_or_default().to_owned(),
            });
        }
    }
    let after_scheme = if let Some(rest) = text.strip_prefix("https://") {
        if rest.split('/').next().is_some_and(|host| host.contains('@')) {
            return Err("carries credentials; write them as a secret under `credentials`".to_owned());
        }
        rest
    } else if let Some(rest) = text.strip_prefix("ssh://") {
        let authority = rest.split('/').next().unwrap_or_default();
        if authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':')) {
            return Err("carries a password; use an SSH key".to_owned());
        }
        rest
    } else if let Some((user_host, path)) =
        text.split_once(':').filter(|(u, p)| u.contains('@') && !p.starts_with("//"))
    {
        // The form of scp: git@host:owner/name.
        if user_host.starts_with('-') || path.is_empty() {
            return Err("is not a repository".to_owned());
        }
        return finish(text, path);
    } else if text.starts_with("http://") || text.starts_with("git://") {
        return Err("is neither encrypted nor authenticated; use https or ssh".to_owned());
    } else {
        return Err("is not a repository".to_owned());
    };
    match after_scheme.split_once('/') {
        Some((host, path)) if !host.is_empty() && !host.starts_with('-') => finish(text, path),
        _ => Err("has no path after the host".to_owned()),
    }
}

fn finish(url: &str, path: &str) -> Result<RepoAddress, String> {
    if url.contains(['?', '#']) {
        return Err("has a query or fragment; write a branch as `ref`".to_owned());
    }
    let path = path.trim_matches('/');
    let last = path.rsplit('/').next().unwrap_or_default();
    let name = last.strip_suffix(".git").unwrap_or(last);
    if good_part(name) {
        Ok(RepoAddress { url: url.to_owned(), name: name.to_owned() })
    } else {
        Err("does not end in the name of a repository".to_owned())
    }
}

fn good_part(part: &str) -> bool {
    !part.is_empty()
        && !matches!(part, "." | "..")
        && !part.starts_with('-')
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'~'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn shorthands_and_urls() {
        for (text, url, name) in [
            ("github:acme/shop", "https://github.com/acme/shop", "shop"),
            ("gitlab:g/sub/shop", "https://gitlab.com/g/sub/shop", "shop"),
            ("tangled:me/x", "https://tangled.org/me/x", "x"),
            ("https://git.example.org/a/b.git", "https://git.example.org/a/b.git", "b"),
            ("git@github.com:acme/shop.git", "git@github.com:acme/shop.git", "shop"),
            ("ssh://git@host:2222/a/b", "ssh://git@host:2222/a/b", "b"),
        ] {
            assert_eq!(parse(text).unwrap(), RepoAddress { url: url.into(), name: name.into() }, "{text}");
        }
        for text in [
            "",
            "github:acme",
            "github:a/b/c",
            "https://user:pw@host/a/b",
            "https://token@host/a",
            "http://h/a",
            "--upload-pack=x",
            "file:///etc",
            "https://host",
            "a b",
            "https://h/a?b=c",
            "ssh://u:p@h/a",
            "-x@h:a/b",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
