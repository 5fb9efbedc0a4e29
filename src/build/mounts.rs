//! `RUN --mount`: what a command has besides its image while it runs, and what is no part of what it makes. Pure.
//!
//! The options and their defaults are those of the Dockerfile reference. What is not done here is refused with a reason, never left out.

use std::collections::BTreeMap;

use serde::Serialize;

use super::context::normal;
use crate::engine::Sharing;

/// What kind of thing is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bind,
    Cache,
    Tmpfs,
    Secret,
}

/// A mount as it stands in the file: its options are known, their values not looked at, since variables may stand in them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    kind: Kind,
    options: BTreeMap<&'static str, String>,
}

/// A mount with all values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mount {
    /// Where, from the root of the image; absent for a secret that is a variable only.
    pub target: Option<String>,
    /// What.
    pub what: What,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum What {
    /// A file or directory of the context, or of another stage or image; nobody writes there.
    Bind {
        /// From the root of where it comes from.
        source: String,
    },
    /// A directory that outlives the build.
    Cache {
        /// What it is found by.
        id: String,
        /// Whether two commands may have it at once.
        sharing: Sharing,
        /// Permissions of a new one.
        mode: u32,
        /// Owner of a new one.
        uid: u32,
        /// Group of a new one.
        gid: u32,
        /// The command does not write there.
        read_only: bool,
    },
    /// Memory, gone with the command.
    Tmpfs {
        /// The most bytes.
        size: Option<u64>,
    },
    /// The value of a secret. It is not here: what a step comes to must not depend on it.
    Secret {
        /// What it is called.
        id: String,
        /// The variable that holds it.
        env: Option<String>,
        /// Without a value there is no build.
        required: bool,
        /// Permissions of the file.
        mode: u32,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
}

/// Every option by its names, the first of which is the one that it is known by here.
const OPTIONS: [&[&str]; 13] = [
    &["target", "dst", "destination"],
    &["source", "src"],
    &["from"],
    &["id"],
    &["sharing"],
    &["mode"],
    &["uid"],
    &["gid"],
    &["ro", "readonly"],
    &["rw", "readwrite"],
    &["size"],
    &["env"],
    &["required"],
];

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Bind => "bind",
            Kind::Cache => "cache",
            Kind::Tmpfs => "tmpfs",
            Kind::Secret => "secret",
        }
    }

    fn options(self) -> &'static [&'static str] {
        match self {
            Kind::Bind => &["target", "source", "from", "ro"],
            Kind::Cache => &["target", "id", "sharing", "mode", "uid", "gid", "ro"],
            Kind::Tmpfs => &["target", "size"],
            Kind::Secret => &["id", "target", "env", "required", "mode", "uid", "gid"],
        }
    }

    /// Why an option that others have for this kind is not one here.
    fn why_not(self, option: &str) -> &'static str {
        match (self, option) {
            (Kind::Bind, "rw") => {
                "; what is written there would be lost: copy it with COPY, or in the command"
            }
            (Kind::Cache, "from" | "source") => "; a cache begins empty: fill it in the command",
            _ => "",
        }
    }
}

/// Reads what stands behind `--mount=`.
///
/// # Errors
/// What was found, what is expected, and what to do.
pub fn read(text: &str) -> Result<Written, String> {
    let mut kind = Kind::Bind;
    let mut given: Vec<(&'static str, String, String)> = Vec::new();
    for option in text.split(',') {
        let (name, value) =
            option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
        let (shown, name) = (name.escape_debug().to_string(), name.trim().to_ascii_lowercase());
        let value = value.map(|value| value.trim_matches('"'));
        if name == "type" {
            kind = match value {
                Some("bind") => Kind::Bind,
                Some("cache") => Kind::Cache,
                Some("tmpfs") => Kind::Tmpfs,
                Some("secret") => Kind::Secret,
                Some("ssh") => {
                    return Err("`--mount=type=ssh` is not supported: no agent of this machine reaches into a sandbox; give a deploy key or a token as `type=secret`".to_owned());
                }
                other => {
                    return Err(format!(
                        "`--mount` has `type={}`; expected `bind`, `cache`, `secret` or `tmpfs`",
                        other.unwrap_or_default().escape_debug()
                    ));
                }
            };
            continue;
        }
        let Some(known) = OPTIONS.iter().find(|names| names.contains(&name.as_str())) else {
            return Err(format!(
                "`--mount` has the option `{shown}`; expected options such as `type`, `target` and `id`, divided by commas"
            ));
        };
        let value = match (known[0], value) {
            // `ro` alone is `ro=true`.
            ("ro" | "rw" | "required", None) => "true".to_owned(),
            (_, None | Some("")) => {
                return Err(format!(
                    "`--mount` has the option `{shown}` without a value; expected `{shown}=VALUE`"
                ));
            }
            (_, Some(value)) => value.to_owned(),
        };
        given.push((known[0], shown, value));
    }
    let mut options = BTreeMap::new();
    for (name, shown, value) in given {
        // What is no more than the default is no request.
        if kind == Kind::Bind && name == "rw" && value == "false" {
            continue;
        }
        if !kind.options().contains(&name) {
            let (kind_name, why) = (kind.name(), kind.why_not(name));
            let expected = kind.options().join("`, `");
            return Err(format!(
                "`--mount=type={kind_name}` has no option `{shown}`{why}; expected `{expected}`"
            ));
        }
        if options.insert(name, value).is_some() {
            return Err(format!("`--mount` has the option `{shown}` twice; expected it once"));
        }
    }
    let has = |name| options.contains_key(name);
    let missing = match kind {
        Kind::Secret if !has("id") && !has("target") => Some("id"),
        Kind::Secret => None,
        _ if !has("target") => Some("target"),
        _ => None,
    };
    match missing {
        Some(option) => {
            Err(format!("`--mount=type={}` has no `{option}`; expected `{option}=…`", kind.name()))
        }
        None => Ok(Written { kind, options }),
    }
}

impl Written {
    /// The stage or image that it takes from.
    pub fn from(&self) -> Option<&str> {
        self.options.get("from").map(String::as_str)
    }

    /// The mount, when `expand` gives variables their values, for a command that runs in `working_dir`.
    ///
    /// # Errors
    /// As [`read`].
    pub fn evaluate(
        &self,
        expand: &dyn Fn(&str) -> Result<String, String>,
        working_dir: &str,
    ) -> Result<Mount, String> {
        let get = |name: &str| self.options.get(name).map(|value| expand(value)).transpose();
        let number = |name: &str| number(name, get(name)?.as_deref());
        let target = get("target")?.map(|text| target(&text, working_dir)).transpose()?;
        let what = match self.kind {
            Kind::Bind => {
                flag("ro", get("ro")?.as_deref().or(Some("true")))?.then_some(()).ok_or(
                    "`--mount=type=bind` has `ro=false`; expected `ro`: what is written there would be lost",
                )?;
                let source = get("source")?.unwrap_or_default();
                if source.contains(['*', '?', '[']) {
                    return Err(format!(
                        "`--mount` has `source={}`; expected one file or directory, not a pattern",
                        source.escape_debug()
                    ));
                }
                What::Bind { source: normal(&source) }
            }
            Kind::Cache => {
                let id = get("id")?.or_else(|| target.clone()).unwrap_or_default();
                let sharing = match get("sharing")?.as_deref() {
                    None | Some("shared") => Sharing::Shared,
                    Some("private") => Sharing::Private,
                    Some("locked") => Sharing::Locked,
                    Some(other) => {
                        return Err(format!(
                            "`--mount` has `sharing={}`; expected `shared`, `private` or `locked`",
                            other.escape_debug()
                        ));
                    }
                };
                let read_only = flag("ro", get("ro")?.as_deref())?;
                What::Cache {
                    id,
                    sharing,
                    mode: mode(get("mode")?.as_deref(), 0o755)?,
                    uid: number("uid")?,
                    gid: number("gid")?,
                    read_only,
                }
            }
            Kind::Tmpfs => What::Tmpfs { size: get("size")?.map(|text| size(&text)).transpose()? },
            Kind::Secret => {
                let of_target = || {
                    target
                        .as_ref()
                        .and_then(|target| target.rsplit('/').next())
                        .unwrap_or_default()
                        .to_owned()
                };
                let id = get("id")?.unwrap_or_else(of_target);
                if !is_id(&id) {
                    return Err(format!(
                        "`--mount` has `id={}`; expected letters, digits, `.`, `_` and `-`",
                        id.escape_debug()
                    ));
                }
                let env = get("env")?;
                if let Some(name) = env.as_ref().filter(|name| !is_variable(name)) {
                    return Err(format!(
                        "`--mount` has `env={}`; expected the name of a variable",
                        name.escape_debug()
                    ));
                }
                // A secret that is a variable is a file only where that is asked for.
                let target = match (target, &env) {
                    (None, None) => Some(format!("/run/secrets/{id}")),
                    (target, _) => target,
                };
                let required = flag("required", get("required")?.as_deref())?;
                let what = What::Secret {
                    id,
                    env,
                    required,
                    mode: mode(get("mode")?.as_deref(), 0o400)?,
                    uid: number("uid")?,
                    gid: number("gid")?,
                };
                return Ok(Mount { target, what });
            }
        };
        Ok(Mount { target, what })
    }
}

/// The name of a secret of a build.
pub fn is_id(id: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=128).contains(&id.len()) && id.chars().all(legal) && !matches!(id, "." | "..")
}

fn is_variable(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(legal)
}

fn target(text: &str, working_dir: &str) -> Result<String, String> {
    let base = if text.starts_with('/') { "" } else { working_dir };
    let target = normal(&format!("{base}/{text}"));
    let below = |dir: &str| target == dir || target.starts_with(&format!("{dir}/"));
    let reserved = ["/proc", "/sys", "/dev"].into_iter().find(|dir| below(dir) && target != "/dev/shm");
    match reserved {
        _ if target == "/" => {
            Err(format!("`--mount` has `target={}`; expected a path below the root", text.escape_debug()))
        }
        Some(dir) => Err(format!(
            "`--mount` has `target={}`; expected a path outside of {dir}, which the system fills",
            text.escape_debug()
        )),
        None => Ok(target),
    }
}

fn flag(name: &str, value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("false" | "0") => Ok(false),
        Some("true" | "1") => Ok(true),
        Some(other) => {
            Err(format!("`--mount` has `{name}={}`; expected `true` or `false`", other.escape_debug()))
        }
    }
}

fn number(name: &str, value: Option<&str>) -> Result<u32, String> {
    let Some(value) = value else { return Ok(0) };
    // The last number is none: to the kernel it means that nothing is changed.
    let number = value.parse().ok().filter(|number| *number < u32::MAX);
    number.ok_or_else(|| format!("`--mount` has `{name}={}`; expected a number", value.escape_debug()))
}

fn mode(value: Option<&str>, default: u32) -> Result<u32, String> {
    let Some(value) = value else { return Ok(default) };
    let octal = u32::from_str_radix(value.trim_start_matches("0o"), 8).ok().filter(|mode| *mode <= 0o7777);
    octal.ok_or_else(|| {
        format!(
            "`--mount` has `mode={}`; expected permissions in octal, such as `0755`",
            value.escape_debug()
        )
    })
}

/// Bytes, or a number of `k`, `m`, `g` of them.
fn size(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &lower[digits.len()..] {
        "" | "b" => Some(0),
        "k" | "kb" | "kib" => Some(10),
        "m" | "mb" | "mib" => Some(20),
        "g" | "gb" | "gib" => Some(30),
        _ => None,
    };
    let bytes =
        shift.zip(digits.parse::<u64>().ok()).and_then(|(shift, number)| number.checked_mul(1 << shift));
    bytes
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| format!("`--mount` has `size={}`; expected bytes, such as `64m`", text.escape_debug()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn evaluated(text: &str) -> Result<Mount, String> {
        let expand = |word: &str| Ok(word.replace("$V", "v"));
        read(text)?.evaluate(&expand, "/srv")
    }

    #[test]
    fn defaults_are_those_of_the_reference() {
        let cache = |id: &str, sharing| What::Cache {
            id: id.into(),
            sharing,
            mode: 0o755,
            uid: 0,
            gid: 0,
            read_only: false,
        };
        let secret = |id: &str, env: Option<&str>| What::Secret {
            id: id.into(),
            env: env.map(Into::into),
            required: false,
            mode: 0o400,
            uid: 0,
            gid: 0,
        };
        for (text, target, what) in [
            ("type=cache,target=/c/$V", Some("/c/v"), cache("/c/v", Sharing::Shared)),
            ("type=cache,dst=c,id=$V,sharing=locked", Some("/srv/c"), cache("v", Sharing::Locked)),
            ("type=secret,id=npm", Some("/run/secrets/npm"), secret("npm", None)),
            ("type=secret,target=/root/.npmrc", Some("/root/.npmrc"), secret(".npmrc", None)),
            ("type=secret,id=a,env=TOKEN", None, secret("a", Some("TOKEN"))),
            ("type=secret,id=a,env=TOKEN,target=t", Some("/srv/t"), secret("a", Some("TOKEN"))),
            ("target=.", Some("/srv"), What::Bind { source: "/".into() }),
            ("type=bind,source=a/../b,target=/b,ro", Some("/b"), What::Bind { source: "/b".into() }),
            ("type=tmpfs,target=/t,size=64m", Some("/t"), What::Tmpfs { size: Some(64 << 20) }),
        ] {
            assert_eq!(evaluated(text).unwrap(), Mount { target: target.map(Into::into), what }, "{text}");
        }
        let What::Cache { mode, uid, gid, read_only, .. } =
            evaluated("type=cache,target=/c,mode=1777,uid=5,gid=6,readonly").unwrap().what
        else {
            panic!()
        };
        assert_eq!((mode, uid, gid, read_only), (0o1777, 5, 6, true));
    }

    #[test]
    fn what_is_wrong_names_the_option_what_was_found_and_what_is_expected() {
        for (text, found, expected) in [
            ("type=ssh", "type=ssh", "type=secret"),
            ("type=nfs,target=/x", "type=nfs", "`tmpfs`"),
            ("type=cache", "no `target`", "`target=…`"),
            ("type=secret", "no `id`", "`id=…`"),
            ("type=secret,id=a/b", "id=a/b", "letters"),
            ("type=secret,id=a,env=1x", "env=1x", "name of a variable"),
            ("type=secret,id=a,required=maybe", "required=maybe", "`true` or `false`"),
            ("type=cache,target=/x,sharing=often", "sharing=often", "`private`"),
            ("type=cache,target=/x,mode=rwx", "mode=rwx", "octal"),
            ("type=cache,target=/x,uid=me", "uid=me", "a number"),
            ("type=cache,target=/x,from=a", "`from`", "begins empty"),
            ("type=bind,target=/x,rw", "`rw`", "would be lost"),
            ("type=bind,target=/x,source=*.c", "source=*.c", "not a pattern"),
            ("type=tmpfs,target=/x,size=big", "size=big", "`64m`"),
            ("type=tmpfs,target=/", "target=/", "below the root"),
            ("type=cache,target=/proc/x", "target=/proc/x", "outside of /proc"),
            ("type=cache,target=", "`target` without a value", "target=VALUE"),
            ("type=cache,target=/x,target=/y", "twice", "once"),
            ("type=cache,traget=/x", "`traget`", "divided by commas"),
        ] {
            let why = evaluated(text).unwrap_err();
            assert!(why.contains(found) && why.contains(expected), "{text}: {why}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_too_strange(text in "(type=(cache|bind|secret|tmpfs),)?[ -~]{0,60}") {
            let _ = evaluated(&text);
        }
    }
}
