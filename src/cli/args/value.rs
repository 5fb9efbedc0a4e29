//! Values of flags that are more than one word.

use std::path::PathBuf;
use std::str::FromStr;

use crate::model::Address;
use crate::secret::SecretSource;

/// `NAME=VALUE`. `Debug` shows the name only: the value may be a secret.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// What stands before the first `=`.
    pub key: String,
    /// What stands after it.
    pub value: String,
}

impl KeyValue {
    /// A pair.
    pub fn new(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self { key: key.into(), value: value.into() }
    }
}

impl std::fmt::Debug for KeyValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}=…", self.key)
    }
}

impl FromStr for KeyValue {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self::new(key, value)),
            // Not the text itself: somebody may have typed a secret in the wrong place.
            _ => Err("expected NAME=VALUE".to_owned()),
        }
    }
}

/// A secret of a build: `id=ID,src=FILE` or `id=ID,env=NAME`; `id=NAME` is the variable of that name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildSecret {
    /// What the Containerfile calls it.
    pub id: String,
    /// Where its value comes from.
    pub source: SecretSource,
}

impl FromStr for BuildSecret {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = "expected `id=ID,src=FILE` or `id=ID,env=NAME`";
        let (mut id, mut file, mut env) = (None, None, None);
        for part in text.split(',') {
            // Not the text itself: somebody may have typed a secret in the wrong place.
            let (name, value) = part.split_once('=').ok_or(expected)?;
            let place = match name {
                "id" => &mut id,
                "src" | "source" => &mut file,
                "env" => &mut env,
                "type" if matches!(value, "file" | "env") => continue,
                _ => return Err(format!("{expected}, found the option `{}`", name.escape_debug())),
            };
            if value.is_empty() || place.replace(value.to_owned()).is_some() {
                return Err(format!("{expected}, found `{name}` twice or without a value"));
            }
        }
        let id = id.or_else(|| env.clone()).ok_or(expected)?;
        if !crate::build::is_id(&id) {
            return Err(format!(
                "found id={}; expected letters, digits, `.`, `_` and `-`",
                id.escape_debug()
            ));
        }
        let source = match (file, env) {
            (Some(_), Some(_)) => return Err(format!("{expected}, found both")),
            (Some(file), None) => SecretSource::File(file.into()),
            (None, env) => SecretSource::Env(env.unwrap_or_else(|| id.clone())),
        };
        Ok(Self { id, source })
    }
}

/// One end of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyEnd {
    /// A path on this machine.
    Host(PathBuf),
    /// A path inside a sandbox.
    Sandbox {
        /// The sandbox, as the user names it.
        name: String,
        /// The path inside; relative to the user's home.
        path: String,
    },
}

impl FromStr for CopyEnd {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            // `./a:b` and `/a:b` are files of this machine.
            Some((name, _)) if name.starts_with(['.', '/']) => Ok(Self::Host(text.into())),
            Some(("", _)) => {
                Err("expected NAME:PATH or a path; write ./ before a path that begins with `:`".into())
            }
            Some((_, "")) => Err("expected a path after `:`".into()),
            Some((name, path)) => Ok(Self::Sandbox { name: name.to_owned(), path: path.to_owned() }),
            None if text.is_empty() => Err("expected a path".into()),
            None => Ok(Self::Host(text.into())),
        }
    }
}

/// `SANDBOX` or `SANDBOX/SERVICE`, also as an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSource {
    /// The sandbox, as the user names it.
    pub sandbox: String,
    /// One service of it; `None` for all.
    pub service: Option<String>,
}

impl FromStr for LogSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<Address>() {
            Ok(Address::Sandbox(sandbox)) => return Ok(Self { sandbox, service: None }),
            Ok(Address::Service(sandbox, service)) => return Ok(Self { sandbox, service: Some(service) }),
            Ok(other) => return Err(format!("{other} writes no log; expected SANDBOX or SANDBOX/SERVICE")),
            Err(_) => {}
        }
        let (sandbox, service) = match text.split_once('/') {
            Some((sandbox, service)) => (sandbox, Some(service.to_owned())),
            None => (text, None),
        };
        if sandbox.is_empty() || service.as_deref().is_some_and(|s| s.is_empty() || s.contains('/')) {
            return Err("expected SANDBOX or SANDBOX/SERVICE".to_owned());
        }
        Ok(Self { sandbox: sandbox.to_owned(), service })
    }
}

/// An address; a bare word is the name of a sandbox, and `SANDBOX/SERVICE` a service.
pub fn address(text: &str) -> Result<Address, String> {
    match text.parse::<Address>() {
        Ok(address) => Ok(address),
        Err(error) => match text.split_once('/') {
            None if !text.is_empty() => Ok(Address::Sandbox(text.to_owned())),
            Some((sandbox, service))
                if !matches!(sandbox, "" | "sandbox" | "volume")
                    && !service.is_empty()
                    && !service.contains('/') =>
            {
                Ok(Address::Service(sandbox.to_owned(), service.to_owned()))
            }
            _ => Err(error.to_string()),
        },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_end_is_a_sandbox_only_where_it_says_so() {
        let inside = |name: &str, path: &str| CopyEnd::Sandbox { name: name.into(), path: path.into() };
        assert_eq!("api:/etc/motd".parse(), Ok(inside("api", "/etc/motd")));
        assert_eq!("sandbox/api:a:b".parse(), Ok(inside("sandbox/api", "a:b")));
        for host in ["./a:b", "/a:b", "a", "../x"] {
            assert_eq!(host.parse(), Ok(CopyEnd::Host(host.into())));
        }
        for bad in ["", ":x", "api:"] {
            assert!(bad.parse::<CopyEnd>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_log_source_names_a_sandbox_or_one_service() {
        let source = |s: &str, v: Option<&str>| LogSource { sandbox: s.into(), service: v.map(Into::into) };
        assert_eq!("api".parse(), Ok(source("api", None)));
        assert_eq!("api/web".parse(), Ok(source("api", Some("web"))));
        assert_eq!("sandbox/api".parse(), Ok(source("api", None)));
        assert_eq!("sandbox/api/service/web".parse(), Ok(source("api", Some("web"))));
        for bad in ["", "/web", "api/", "api/a/b", "volume/data"] {
            assert!(bad.parse::<LogSource>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bare_word_is_a_sandbox() {
        assert_eq!(address("api").unwrap().to_string(), "sandbox/api");
        assert_eq!(address("api/web").unwrap().to_string(), "sandbox/api/service/web");
        assert_eq!(address("volume/data").unwrap().to_string(), "volume/data");
        for bad in ["", "sandbox/", "volume/", "a/b/c"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
