//! Kinds of text with a form of their own. The schema names them; the check of each is the same parser that reads it later.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use crate::model::{Duration, Quantity, SocketTarget};

const NAME_PATTERN: &str = "^[a-z0-9]([a-z0-9_-]*[a-z0-9])?$";
const ENV_NAME_PATTERN: &str = "^[A-Za-z_][A-Za-z0-9_]*$";

/// What the keys of a mapping from names must be.
pub(crate) fn name_schema() -> Json {
    json!({ "pattern": NAME_PATTERN, "maxLength": 63 })
}

/// What the keys of a mapping from environment variables must be.
pub(crate) fn env_name_schema() -> Json {
    json!({ "pattern": ENV_NAME_PATTERN, "maxLength": 255 })
}

/// The check behind a `pattern` of ours.
pub(crate) fn by_pattern(pattern: &str) -> Option<&'static ScalarType> {
    match pattern {
        NAME_PATTERN => by_name("Name"),
        ENV_NAME_PATTERN => by_name("EnvName"),
        _ => None,
    }
}

/// A kind of text: what the schema calls it, what a message says was expected, and the check.
pub(crate) struct ScalarType {
    pub name: &'static str,
    pub expected: &'static str,
    /// `Err` says what is wrong, as a clause after the text: "`x` …".
    pub check: fn(&str) -> Result<(), String>,
}

/// The kind of text that the schema calls `name`.
pub(crate) fn by_name(name: &str) -> Option<&'static ScalarType> {
    TYPES.iter().find(|t| t.name == name)
}

const TYPES: &[ScalarType] = &[
    ScalarType { name: "Text", expected: "a text", check: any },
    ScalarType { name: "EnvText", expected: "a text", check: no_nul },
    ScalarType {
        name: "Name",
        expected: "a name: lower-case letters, digits, `-` and `_`, at most 63, beginning and ending with a letter or digit",
        check: name,
    },
    ScalarType {
        name: "EnvName",
        expected: "a variable name: letters, digits and `_`, not beginning with a digit",
        check: env_name,
    },
    ScalarType {
        name: "SecretName",
        expected: "the name of a secret: letters, digits and `_`, not beginning with a digit",
        check: env_name,
    },
    ScalarType { name: "EnvPair", expected: "`KEY=VALUE`", check: env_pair },
    ScalarType {
        name: "GuestPath",
        expected: "an absolute path inside the sandbox, such as `/work/data`",
        check: guest_path,
    },
    ScalarType { name: "HostPath", expected: "a path of this machine", check: host_path },
    ScalarType {
        name: "ImageRef",
        expected: "`host`, an image reference such as `docker.io/library/debian:12`, or a file such as `oci:./image`",
        check: image_ref,
    },
    ScalarType {
        name: "Mode",
        expected: "permission bits in octal, such as `\"0644\"`",
        check: |t| parse_mode(t).map(drop),
    },
    ScalarType {
        name: "Cpu",
        expected: "a number of processors, such as `2` or `0.5`",
        check: |t| parse_cpu(t).map(drop),
    },
    ScalarType { name: "User", expected: "a user name, or `uid[:gid]`", check: user },
    ScalarType { name: "PortNumber", expected: "a port, 1 to 65535", check: |t| parse_port(t).map(drop) },
    ScalarType {
        name: "SocketTo",
        expected: "the absolute path of a unix socket inside, or a port inside",
        check: |t| parse_socket_to(t).map(drop),
    },
    ScalarType { name: "PortText", expected: "`HOST_PORT:PORT`", check: |t| parse_port_text(t).map(drop) },
    ScalarType {
        name: "MountText",
        expected: "a mount, `NAME:/path/inside` or `NAME:/path/inside:ro`",
        check: |t| parse_mount(t).map(drop),
    },
    ScalarType {
        name: "RepoUrl",
        expected: "a repository: an https or ssh URL, or `github:owner/name`",
        check: |t| super::super::repo::parse(t).map(drop),
    },
    ScalarType {
        name: "EgressRule",
        expected: "a destination: `github.com`, `*.example.com`, an address or a network, with an optional `:port`",
        check: egress_rule,
    },
    ScalarType {
        name: "BoundHost",
        expected: "a host: `api.example.com` or `*.example.com`, with an optional `:port`, or `http://…` where there is no TLS",
        check: |t| t.parse::<crate::model::BoundHost>().map(drop).map_err(|error| error.to_string()),
    },
    ScalarType {
        name: "Restart",
        expected: "`always`, `on-failure`, `on-failure:N` or `never`",
        check: |t| parse_restart(t).map(drop),
    },
    ScalarType { name: "Signal", expected: "a signal name such as `TERM` or `INT`", check: signal },
    ScalarType {
        name: "Duration",
        expected: "a duration: a number with a unit, such as `500ms`, `10s`, `5m`, `2h` or `7d`",
        check: |t| t.parse::<Duration>().map(drop).map_err(|_| "is not a duration".to_owned()),
    },
    ScalarType {
        name: "Quantity",
        expected: "a size: a whole number with a unit, such as `512MiB`, `4GiB` or `10GB`",
        check: |t| t.parse::<Quantity>().map(drop).map_err(|_| "is not a size".to_owned()),
    },
];

fn any(_: &str) -> Result<(), String> {
    Ok(())
}

fn no_nul(text: &str) -> Result<(), String> {
    if text.contains('\0') {
        Err("has a NUL character, which no process can be given".to_owned())
    } else {
        Ok(())
    }
}

/// A name of something the user declares.
pub(crate) fn name(text: &str) -> Result<(), String> {
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return Err("is empty".to_owned()) };
    if bytes.len() > 63 {
        return Err(format!("has {} characters; a name has at most 63", bytes.len()));
    }
    if edge(*first) && edge(*last) && bytes.iter().all(|b| edge(*b) || matches!(b, b'-' | b'_')) {
        Ok(())
    } else {
        Err("is not a name".to_owned())
    }
}

/// A name of an environment variable.
pub(crate) fn env_name(text: &str) -> Result<(), String> {
    let good = text.len() <= 255
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if good { Ok(()) } else { Err("is not a variable name".to_owned()) }
}

fn env_pair(text: &str) -> Result<(), String> {
    let (key, value) = text.split_once('=').ok_or("has no `=`")?;
    env_name(key).map_err(|_| format!("begins with `{key}`, which is not a variable name"))?;
    no_nul(value)
}

/// An absolute, normal path without control characters.
pub(crate) fn guest_path(text: &str) -> Result<(), String> {
    let Some(rest) = text.strip_prefix('/') else { return Err("is not absolute".to_owned()) };
    if text.len() > 4_000 {
        return Err("is longer than 4000 bytes".to_owned());
    }
    if text.chars().any(char::is_control) {
        return Err("has a control character".to_owned());
    }
    if rest.is_empty() {
        return Err("is the root directory".to_owned());
    }
    match rest.split('/').find(|part| matches!(*part, "" | "." | "..")) {
        Some("") => Err("has an empty part (`//`, or `/` at its end)".to_owned()),
        Some(part) => Err(format!("is not normal: it has a part `{part}`")),
        None => Ok(()),
    }
}

fn host_path(text: &str) -> Result<(), String> {
    if text.is_empty() {
        Err("is empty".to_owned())
    } else if text.chars().any(char::is_control) {
        Err("has a control character".to_owned())
    } else if text.starts_with('~') && !text.starts_with("~/") {
        Err("begins with `~` but not with `~/`".to_owned())
    } else {
        Ok(())
    }
}

fn image_ref(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    if let Some((_, path, name)) = crate::model::Image::file(text) {
        return host_path(path).and_then(|()| match name {
            ":" => Err("ends with a colon and no name".to_owned()),
            _ => Ok(()),
        });
    }
    if text.contains("://") {
        return Err("is a URL; an image reference has no scheme".to_owned());
    }
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '/' | ':' | '@');
    match text.chars().find(|c| !allowed(*c)) {
        Some(c) => Err(format!("has a character that no image reference has: {}", c.escape_default())),
        None if text.len() > 512 => Err("is longer than 512 characters".to_owned()),
        None => Ok(()),
    }
}

/// Permission bits from octal digits.
pub(crate) fn parse_mode(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    if digits.len() < 3 || digits.len() > 5 || !digits.bytes().all(|b| (b'0'..=b'7').contains(&b)) {
        return Err("is not a mode".to_owned());
    }
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err("is not a mode".to_owned()),
    }
}

/// Thousandths of a processor.
pub(crate) fn parse_cpu(text: &str) -> Result<u32, String> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return Err("is not a number of processors".to_owned());
    }
    if fraction.len() > 3 {
        return Err("is finer than a thousandth of a processor".to_owned());
    }
    let whole: u32 = whole.parse().ok().filter(|w| *w <= 4_096).ok_or("is more than 4096 processors")?;
    let millis: u32 = format!("{fraction:0<3}").parse().map_err(|_| "is not a number of processors")?;
    match whole * 1_000 + millis {
        0 => Err("is zero".to_owned()),
        n => Ok(n),
    }
}

fn user(text: &str) -> Result<(), String> {
    let id = |t: &str| t.parse::<u32>().is_ok() && t.bytes().all(|b| b.is_ascii_digit());
    let named = |t: &str| {
        !t.is_empty()
            && t.len() <= 32
            && !t.starts_with(|c: char| c.is_ascii_digit() || c == '-')
            && t.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
    };
    let good = match text.split_once(':') {
        Some((uid, gid)) => id(uid) && id(gid),
        None => id(text) || named(text),
    };
    if good { Ok(()) } else { Err("is not a user".to_owned()) }
}

/// A port inside a sandbox or on the host.
pub(crate) fn parse_port(text: &str) -> Result<u16, String> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err("is not a port".to_owned());
    }
    match text.parse::<u16>() {
        Ok(0) | Err(_) => Err("is not between 1 and 65535".to_owned()),
        Ok(port) => Ok(port),
    }
}

/// `/PATH/INSIDE` or `PORT`.
pub(crate) fn parse_socket_to(text: &str) -> Result<SocketTarget, String> {
    match text.strip_prefix('/') {
        Some(rest) if rest.is_empty() || text.contains('\0') => Err("is not the path of a socket".to_owned()),
        Some(_) => Ok(SocketTarget::Path(text.to_owned())),
        None => parse_port(text).map(SocketTarget::Port),
    }
}

/// `PORT` or `HOST_PORT:PORT`.
pub(crate) fn parse_port_text(text: &str) -> Result<(Option<u16>, u16), String> {
    match text.split_once(':') {
        None => Ok((None, parse_port(text)?)),
        Some((host, inside)) => Ok((Some(parse_port(host)?), parse_port(inside)?)),
    }
}

/// `NAME:PATH[:ro|:rw]`.
pub(crate) fn parse_mount(text: &str) -> Result<(&str, &str, bool), String> {
    let (volume, rest) = text.split_once(':').ok_or("is not a mount")?;
    let (path, read_only) = match rest.rsplit_once(':') {
        Some((path, "ro")) => (path, true),
        Some((path, "rw")) => (path, false),
        Some((_, other)) => return Err(format!("ends in `:{other}`, which is neither `:ro` nor `:rw`")),
        None => (rest, false),
    };
    if volume.starts_with(['.', '/', '~']) {
        return Err("mounts a path of this machine; use `files` or `sync` for that".to_owned());
    }
    name(volume).map_err(|_| format!("begins with `{volume}`, which is not the name of a volume"))?;
    guest_path(path).map_err(|why| format!("has the path `{path}`, which {why}"))?;
    Ok((volume, path, read_only))
}

fn egress_rule(text: &str) -> Result<(), String> {
    text.parse::<crate::model::EgressRule>().map(drop).map_err(|error| error.to_string())
}

/// A restart policy.
pub(crate) fn parse_restart(text: &str) -> Result<crate::model::RestartPolicy, String> {
    use crate::model::RestartPolicy;
    match text {
        "always" => Ok(RestartPolicy::Always),
        "never" => Ok(RestartPolicy::Never),
        "on-failure" => Ok(RestartPolicy::OnFailure { max: None }),
        _ => match text.strip_prefix("on-failure:").and_then(|n| n.parse().ok()).filter(|n| *n > 0) {
            Some(max) => Ok(RestartPolicy::OnFailure { max: Some(max) }),
            None => Err("is not a restart policy".to_owned()),
        },
    }
}

fn signal(text: &str) -> Result<(), String> {
    const SIGNALS: &[&str] =
        &["HUP", "INT", "QUIT", "KILL", "USR1", "USR2", "TERM", "WINCH", "ABRT", "CONT", "ALRM", "PIPE"];
    if SIGNALS.contains(&text.strip_prefix("SIG").unwrap_or(text)) {
        Ok(())
    } else {
        Err("is not a signal".to_owned())
    }
}

macro_rules! scalar {
    ($(#[doc = $doc:literal])+ $name:ident, $types:tt $(, $key:literal: $value:expr)*) => {
        $(#[doc = $doc])+
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": $types, "description": concat!($($doc),+).trim() $(, $key: $value)* })
            }
        }
    };
}

scalar!(
    /// A text. Numbers and booleans are taken as they are written.
    Text, ["string", "number", "boolean"]
);
scalar!(
    /// A text without NUL. Numbers and booleans are taken as they are written.
    EnvText, ["string", "number", "boolean"]
);
scalar!(
    /// A name: lower-case letters, digits, `-` and `_`, at most 63, beginning and ending with a letter or digit.
    Name, ["string", "integer"], "pattern": NAME_PATTERN, "maxLength": 63
);
scalar!(
    /// A variable name: letters, digits and `_`, not beginning with a digit.
    EnvName, "string", "pattern": ENV_NAME_PATTERN
);
scalar!(
    /// The name of a secret: letters, digits and `_`, not beginning with a digit.
    SecretName, "string", "pattern": ENV_NAME_PATTERN
);
scalar!(
    /// `KEY=VALUE`.
    EnvPair, "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*="
);
scalar!(
    /// An absolute, normal path inside the sandbox.
    GuestPath, "string", "pattern": "^/"
);
scalar!(
    /// A path of this machine, relative to the file it is written in; `~/` is the home directory.
    HostPath, "string", "minLength": 1
);
scalar!(
    /// `host`, an OCI image reference, or an image of this machine: `oci:DIR[:NAME]`, `oci-archive:FILE[:NAME]`, `docker-archive:FILE[:NAME]`.
    ImageRef, "string", "minLength": 1
);
scalar!(
    /// Permission bits in octal, such as `"0644"`.
    Mode, ["string", "integer"]
);
scalar!(
    /// A number of processors, such as `2` or `0.5`.
    Cpu, ["string", "number"]
);
scalar!(
    /// A user name, or `uid[:gid]`.
    User, ["string", "integer"]
);
scalar!(
    /// A port, 1 to 65535.
    PortNumber, ["integer", "string"], "minimum": 1, "maximum": 65535
);
scalar!(
    /// The absolute path of a unix socket inside, or a port inside.
    SocketTo, ["integer", "string"], "pattern": "^(/.|[0-9]+$)"
);
scalar!(
    /// `PORT` or `HOST_PORT:PORT`.
    PortText, "string", "pattern": "^([0-9]+:)?[0-9]+$"
);
scalar!(
    /// `NAME:PATH`, `NAME:PATH:ro` or `NAME:PATH:rw`.
    MountText, "string", "pattern": "^[a-z0-9_-]+:/"
);
scalar!(
    /// An https or ssh URL without credentials, or `github:owner/name`, `gitlab:owner/name`, `tangled:owner/name`.
    RepoUrl, "string", "minLength": 1
);
scalar!(
    /// A destination: a host name, `*.name` or an address, with an optional `:port`.
    EgressRule, "string", "minLength": 1
);
scalar!(
    /// A host that a secret is bound to: a host name or `*.name`, with an optional `:port` (443 if absent); `http://NAME` where there is no TLS.
    BoundHost, "string", "minLength": 1
);
scalar!(
    /// `always`, `on-failure`, `on-failure:N` or `never`.
    Restart, "string", "pattern": "^(always|never|on-failure(:[1-9][0-9]*)?)$"
);
scalar!(
    /// A signal name, such as `TERM`.
    Signal, "string"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        for (kind, good, bad) in [
            ("Name", &["a", "a-b_c1", "9"][..], &["", "-a", "a-", "A", "a.b"][..]),
            ("GuestPath", &["/a", "/a/b.c"], &["a", "/", "/a/", "/a//b", "/a/../b", "/a\nb"]),
            ("Mode", &["0644", "755", "0o600"], &["8", "0999", "77777", "rw"]),
            ("Cpu", &["2", "0.5", "1.125"], &["0", "-1", "1.0001", "two", "."]),
            ("User", &["root", "1000", "1000:1000"], &["", "a:b", "-x", "a b"]),
            ("PortText", &["80", "8080:80"], &["0", "80:", "65536", "a"]),
            ("MountText", &["v:/a", "v:/a:ro", "v:/a:rw"], &["v", "v:a", "v:/a:xx", "./d:/a"]),
            (
                "EgressRule",
                &["github.com", "*.a.b:443", "10.0.0.1", "10.0.0.1:80"],
                &["", "*", "a..b", "a:0"],
            ),
            (
                "BoundHost",
                &["a.org", "*.a.org:8443", "http://a.org", "http://a.org:8080"],
                &["", "*.org", "https://a.org", "10.0.0.1", "10.0.0.0/8", "a.org/x", "a.org:0"],
            ),
            ("Restart", &["always", "on-failure:3"], &["on-failure:0", "sometimes"]),
            ("ImageRef", &["host", "a/b:c@sha256:0"], &["", "https://x", "a b"]),
        ] {
            let check = by_name(kind).map(|t| t.check);
            assert!(check.is_some(), "{kind}");
            for text in good {
                assert_eq!(check.map(|c| c(text)), Some(Ok(())), "{kind} {text}");
            }
            for text in bad {
                assert!(check.is_some_and(|c| c(text).is_err()), "{kind} {text}");
            }
        }
    }
}
