//! The short forms. These types are never made: they only tell the schema what may be written.
#![allow(dead_code)]

use std::collections::BTreeMap;

use schemars::JsonSchema;

use super::{
    EnvPair, EnvText, HostPath, MountText, Name, PortNumber, PortText, RepoUrl, SecretName, SocketTo,
};
use super::{env_name_schema, name_schema};
use crate::model::NetworkMode;

/// One value, or a list of them.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum OneOrMany<T> {
    /// One.
    One(T),
    /// Several.
    Many(Vec<T>),
}

/// An image built from a directory: its path, or a mapping.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum Build {
    /// The directory.
    Context(HostPath),
    /// The long form.
    Long(super::Build),
}

/// An environment: a mapping, or a list of `KEY=VALUE`.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum Env {
    /// By name.
    Map(#[schemars(extend("propertyNames" = env_name_schema()))] BTreeMap<String, EnvText>),
    /// `KEY=VALUE`.
    List(Vec<EnvPair>),
}

/// Secrets: a list of names, or a mapping.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum Secrets {
    /// Names.
    List(Vec<SecretName>),
    /// By name.
    Map(#[schemars(extend("propertyNames" = env_name_schema()))] BTreeMap<String, Option<super::SecretUse>>),
}

/// A mount: `NAME:PATH[:ro]`, or a mapping.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum Mount {
    /// `NAME:PATH[:ro]`.
    Text(MountText),
    /// The long form.
    Long(super::Mount),
}

/// A port: a number, `HOST_PORT:PORT`, or a mapping.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum Port {
    /// The port inside.
    Number(PortNumber),
    /// `HOST_PORT:PORT`.
    Text(PortText),
    /// The long form.
    Long(super::Port),
}

/// A unix socket: where it leads, or a mapping.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum Socket {
    /// The path or port inside.
    To(SocketTo),
    /// The long form.
    Long(super::Socket),
}

/// A repository: a URL or a mapping.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum Repo {
    /// The URL.
    Url(RepoUrl),
    /// The long form.
    Long(super::Repo),
}

/// One repository, or several.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum Repos {
    /// The URL of one.
    Url(RepoUrl),
    /// One.
    One(super::Repo),
    /// Several.
    Many(Vec<Repo>),
}

/// A preset: a name or a mapping.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum PresetUse {
    /// Its name.
    Name(Name),
    /// The long form.
    Long(super::PresetUse),
}

/// Dependencies: a list of names, or a mapping.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum DependsOn {
    /// Names.
    List(Vec<Name>),
    /// By name.
    Map(#[schemars(extend("propertyNames" = name_schema()))] BTreeMap<String, Option<super::Dependency>>),
}

/// A network: a mode or a mapping.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum Network {
    /// The mode.
    Mode(NetworkMode),
    /// The long form.
    Long(super::Network),
}

/// A command: a list, or one text that `sh -c` runs.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum Command {
    /// A script for `sh -c`.
    Script(EnvText),
    /// The program with its arguments.
    Argv(#[schemars(length(min = 1))] Vec<EnvText>),
}

/// A reaction to changed files: `rebuild`, or a mapping.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum OnChange {
    /// `rebuild`.
    Word(Reaction),
    /// The long form.
    Long(super::OnChange),
}

/// The reaction that needs no more words.
#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum Reaction {
    /// Delete the sandbox and make it again.
    Rebuild,
}

/// An HTTP probe: a port or a mapping.
#[derive(JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(crate) enum HttpProbe {
    /// The port.
    Port(PortNumber),
    /// The long form.
    Long(super::HttpProbe),
}
