//! The address of a resource: `sandbox/api`, `sandbox/api/service/web`, `volume/pgdata`, `sandbox/api/port/3000`, …

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One addressable thing of a project. The order of variants and fields gives plans and listings their order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// A volume: `volume/pgdata`.
    Volume(String),
    /// A snapshot: `snapshot/before-upgrade`.
    Snapshot(String),
    /// A sandbox: `sandbox/api`.
    Sandbox(String),
    /// The environment and secrets of a sandbox: `sandbox/api/env`.
    Env(String),
    /// A managed file or directory by its absolute path inside: `sandbox/api/file/etc/motd`.
    File(String, String),
    /// A repository by its absolute path inside: `sandbox/api/repo/work/shop`.
    Repo(String, String),
    /// A preset applied to a sandbox: `sandbox/api/preset/node`.
    Preset(String, String),
    /// A supervised service: `sandbox/api/service/web`.
    Service(String, String),
    /// A declared port: `sandbox/api/port/3000`.
    Port(String, u16),
    /// A unix socket of this machine that leads inside: `sandbox/api/socket/db`.
    Socket(String, String),
}

impl Address {
    /// The sandbox this resource is or lives in; `None` for a volume or snapshot.
    pub fn sandbox(&self) -> Option<&str> {
        match self {
            Self::Volume(_) | Self::Snapshot(_) => None,
            Self::Sandbox(s)
            | Self::Env(s)
            | Self::File(s, _)
            | Self::Repo(s, _)
            | Self::Preset(s, _)
            | Self::Service(s, _)
            | Self::Port(s, _)
            | Self::Socket(s, _) => Some(s),
        }
    }

    /// True if `self` is `other` or lives inside it, as `--target` understands it.
    pub fn is_within(&self, other: &Address) -> bool {
        self == other || matches!(other, Self::Sandbox(s) if self.sandbox() == Some(s))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(v) => write!(f, "volume/{v}"),
            Self::Snapshot(s) => write!(f, "snapshot/{s}"),
            Self::Sandbox(s) => write!(f, "sandbox/{s}"),
            Self::Env(s) => write!(f, "sandbox/{s}/env"),
            Self::File(s, p) => write!(f, "sandbox/{s}/file{p}"),
            Self::Repo(s, p) => write!(f, "sandbox/{s}/repo{p}"),
            Self::Preset(s, p) => write!(f, "sandbox/{s}/preset/{p}"),
            Self::Service(s, n) => write!(f, "sandbox/{s}/service/{n}"),
            Self::Port(s, p) => write!(f, "sandbox/{s}/port/{p}"),
            Self::Socket(s, n) => write!(f, "sandbox/{s}/socket/{n}"),
        }
    }
}

/// The text is not an address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{0}` is not an address; expected for example `sandbox/api`, `sandbox/api/service/web`, `sandbox/api/port/3000` or `volume/data`"
)]
pub struct ParseAddressError(pub String);

impl FromStr for Address {
    type Err = ParseAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseAddressError(text.to_owned());
        let mut parts = text.splitn(4, '/');
        let kind = parts.next().ok_or_else(bad)?;
        let name = parts.next().filter(|n| !n.is_empty()).ok_or_else(bad)?;
        let name = name.to_owned();
        match (kind, parts.next(), parts.next()) {
            ("volume", None, None) => Ok(Self::Volume(name)),
            ("snapshot", None, None) => Ok(Self::Snapshot(name)),
            ("sandbox", None, None) => Ok(Self::Sandbox(name)),
            ("sandbox", Some("env"), None) => Ok(Self::Env(name)),
            ("sandbox", Some("file"), Some(p)) if !p.is_empty() => Ok(Self::File(name, format!("/{p}"))),
            ("sandbox", Some("repo"), Some(p)) if !p.is_empty() => Ok(Self::Repo(name, format!("/{p}"))),
            ("sandbox", Some("preset"), Some(p)) if !p.is_empty() => Ok(Self::Preset(name, p.to_owned())),
            ("sandbox", Some("service"), Some(p)) if !p.is_empty() => Ok(Self::Service(name, p.to_owned())),
            ("sandbox", Some("socket"), Some(n)) if !n.is_empty() => Ok(Self::Socket(name, n.to_owned())),
            ("sandbox", Some("port"), Some(p)) => {
                p.parse().ok().filter(|p| *p > 0).map(|p| Self::Port(name, p)).ok_or_else(bad)
            }
            _ => Err(bad()),
        }
    }
}

impl Serialize for Address {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_reads_back_as_it_prints() {
        for text in [
            "volume/pgdata",
            "snapshot/before-upgrade",
            "sandbox/api",
            "sandbox/api/env",
            "sandbox/api/file/etc/motd",
            "sandbox/api/repo/work/shop",
            "sandbox/api/preset/node",
            "sandbox/api/service/web",
            "sandbox/api/port/3000",
            "sandbox/api/socket/db",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in ["", "sandbox", "sandbox/", "sandbox/a/port/0", "sandbox/a/port/x", "box/a"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_resource_is_within_its_sandbox() {
        let api: Address = "sandbox/api".parse().unwrap();
        assert!("sandbox/api/service/web".parse::<Address>().unwrap().is_within(&api));
        assert!(!"sandbox/db".parse::<Address>().unwrap().is_within(&api));
    }
}
