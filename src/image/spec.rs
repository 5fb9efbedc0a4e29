//! What images are made of: the parts of the OCI image spec that are used here, and Docker's forms of them, which have the same fields.

use serde::{Deserialize, Deserializer, Serialize};

use super::digest::Digest;

/// The most bytes of an index, manifest or config; registries keep to 4 MiB for manifests.
pub const MAX_DOCUMENT: u64 = 8 << 20;
/// The most layers of an image; what builds images keeps to 127.
pub const MAX_LAYERS: usize = 127;

/// Media types of an index.
pub const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
/// Media types of a manifest.
pub const MANIFESTS: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];

/// The media type of a layer that is a plain archive.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// What leads to a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// In an index: what it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Further facts, such as its name in a layout.
    #[serde(default, skip_serializing_if = "Annotations::is_empty", deserialize_with = "null_is_default")]
    pub annotations: Annotations,
}

type Annotations = std::collections::BTreeMap<String, String>;

/// What an image runs on, in Go's words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Such as `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// Such as `linux`.
    #[serde(default)]
    pub os: String,
    /// Such as `v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// One image for each of several platforms, or the images of a layout.
#[derive(Debug, Clone, Deserialize)]
pub struct Index {
    /// The images.
    pub manifests: Vec<Descriptor>,
}

/// One image.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2.
    pub schema_version: u32,
    /// The media type.
    #[serde(default)]
    pub media_type: Option<String>,
    /// How it is to be run.
    pub config: Descriptor,
    /// What it consists of, the lowest first.
    pub layers: Vec<Descriptor>,
}

/// The configuration of an image.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Config {
    /// Such as `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// Such as `linux`.
    #[serde(default)]
    pub os: String,
    /// How it is to be run.
    #[serde(default, deserialize_with = "null_is_default")]
    pub config: Execution,
    /// Its layers.
    pub rootfs: Rootfs,
}

/// The layers of an image by what they hold.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Rootfs {
    /// Digests of the layers as plain archives, the lowest first.
    #[serde(default)]
    pub diff_ids: Vec<Digest>,
}

/// How an image is to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Execution {
    /// A user, `user[:group]`.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Environment, as `NAME=VALUE`.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// What is run.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Its arguments, or what is run where there is no entry point.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// The working directory.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// The signal that asks it to end.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Ports that it listens on, as `8080/tcp`.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "std::collections::BTreeMap::is_empty"
    )]
    pub exposed_ports: std::collections::BTreeMap<String, serde_json::Value>,
    /// Directories that are meant to be volumes.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "std::collections::BTreeMap::is_empty"
    )]
    pub volumes: std::collections::BTreeMap<String, serde_json::Value>,
    /// Facts about it.
    #[serde(
        deserialize_with = "null_is_default",
        skip_serializing_if = "std::collections::BTreeMap::is_empty"
    )]
    pub labels: std::collections::BTreeMap<String, String>,
    /// What runs commands that are one text, where it is not `/bin/sh -c`: Docker's addition.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
}

/// Programs written in Go write `null` for what is empty.
fn null_is_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Platform {
    /// Of this machine.
    pub fn here() -> Platform {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "aarch64" => ("arm64", None),
            "x86" => ("386", None),
            "powerpc64" => ("ppc64le", None),
            "arm" => ("arm", Some("v7".to_owned())),
            other => (other, None),
        };
        Platform { architecture: architecture.to_owned(), os: "linux".to_owned(), variant }
    }

    /// How well an image for `other` fits here: not at all, or better the smaller the number.
    fn fit(&self, other: &Platform) -> Option<u8> {
        if (&self.os, &self.architecture) != (&other.os, &other.architecture) {
            return None;
        }
        match (&self.variant, &other.variant) {
            (ours, theirs) if ours == theirs => Some(0),
            (_, None) => Some(1),
            // Variants of an architecture can do what those before them can; of the 64-bit ones only the first is certain.
            (None, Some(theirs)) if theirs == "v8" || theirs == "v1" => Some(1),
            (Some(ours), Some(theirs)) if theirs < ours => Some(2),
            _ => None,
        }
    }

    /// In one word, `linux/arm/v7`.
    pub fn name(&self) -> String {
        let variant = self.variant.as_ref().map_or(String::new(), |variant| format!("/{variant}"));
        format!("{}/{}{variant}", self.os, self.architecture)
    }
}

impl Index {
    /// The image for this machine.
    ///
    /// # Errors
    /// A sentence that names what there is.
    pub fn choose(&self, here: &Platform) -> Result<&Descriptor, String> {
        let images = || self.manifests.iter().filter(|image| !image.is_attestation());
        let fitting = images().filter_map(|image| {
            let fit = image.platform.as_ref().map_or(Some(3), |platform| here.fit(platform))?;
            Some((fit, image))
        });
        fitting.min_by_key(|(fit, _)| *fit).map(|(_, image)| image).ok_or_else(|| {
            let names: Vec<_> =
                images().take(20).filter_map(|image| Some(image.platform.as_ref()?.name())).collect();
            format!("there is none for {}, only for {}", here.name(), names.join(", "))
        })
    }
}

impl Descriptor {
    /// Builders put signatures and the like beside images, as images for no platform.
    fn is_attestation(&self) -> bool {
        self.platform.as_ref().is_some_and(|platform| platform.os == "unknown")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn index(platforms: &[(&str, &str, Option<&str>)]) -> Index {
        let manifests = platforms.iter().map(|(os, architecture, variant)| Descriptor {
            media_type: String::new(),
            digest: Digest::of(format!("{os}{architecture}{variant:?}").as_bytes()),
            size: 1,
            platform: Some(Platform {
                architecture: (*architecture).to_owned(),
                os: (*os).to_owned(),
                variant: variant.map(str::to_owned),
            }),
            annotations: Annotations::new(),
        });
        Index { manifests: manifests.collect() }
    }

    #[test]
    fn the_image_for_this_machine_is_chosen() {
        let index = index(&[
            ("unknown", "unknown", None),
            ("linux", "arm", Some("v5")),
            ("linux", "arm", Some("v6")),
            ("linux", "arm64", Some("v8")),
            ("linux", "amd64", None),
        ]);
        let here = |architecture: &str, variant: Option<&str>| Platform {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            variant: variant.map(str::to_owned),
        };
        let chosen = |platform: Platform| index.choose(&platform).map(|d| d.platform.clone().unwrap().name());
        assert_eq!(chosen(here("amd64", None)).unwrap(), "linux/amd64");
        assert_eq!(chosen(here("arm64", None)).unwrap(), "linux/arm64/v8");
        assert!(chosen(here("arm", Some("v7"))).unwrap().starts_with("linux/arm/v"));
        let none = chosen(here("riscv64", None)).unwrap_err();
        assert!(none.contains("linux/riscv64") && !none.contains("unknown"), "{none}");
    }

    #[test]
    fn null_is_what_go_writes_for_nothing() {
        let config: Config = serde_json::from_str(
            r#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Cmd":["a"],"Volumes":null},"rootfs":{"type":"layers","diff_ids":[]}}"#,
        )
        .unwrap();
        assert_eq!(config.config.cmd, ["a"]);
        assert!(config.config.env.is_empty());
    }
}
