//! Named sessions: what attaches to them, and `session`.

use std::str::FromStr;

use clap::{Args, Subcommand};

/// The flags of `exec` and `shell` about sessions.
#[derive(Debug, Args)]
pub struct SessionArgs {
    /// Attach to the named session, or make it; it goes on without us, and others may attach
    #[arg(long, value_name = "SESSION")]
    pub session: Option<String>,
    /// The key that detaches from a session, such as ctrl-]
    #[arg(long, value_name = "KEY", default_value = "ctrl-\\", requires = "session")]
    pub detach_key: DetachKey,
}

/// `session`.
#[derive(Debug, Subcommand)]
pub enum SessionCommand {
    /// List the sessions of sandboxes
    List {
        /// Only of these sandboxes
        #[arg(value_name = "NAME")]
        names: Vec<String>,
    },
    /// End sessions with all of their processes
    #[command(visible_alias = "rm")]
    Kill {
        /// The sandbox
        #[arg(value_name = "NAME")]
        name: String,
        /// The sessions
        #[arg(value_name = "SESSION", required = true)]
        sessions: Vec<String>,
    },
}

/// A key with Ctrl, as it is typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetachKey(char);

impl FromStr for DetachKey {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let key =
            text.strip_prefix("ctrl-").or_else(|| text.strip_prefix("ctrl+")).or(text.strip_prefix('^'));
        let mut key = key.unwrap_or_default().chars();
        match (key.next().map(|key| key.to_ascii_lowercase()), key.next()) {
            (Some(key @ ('a'..='z' | '@' | '[' | '\\' | ']' | '^' | '_')), None) => Ok(Self(key)),
            _ => Err("expected `ctrl-` and a letter or one of @ [ \\ ] ^ _".to_owned()),
        }
    }
}

impl std::fmt::Display for DetachKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ctrl-{}", self.0)
    }
}

impl DetachKey {
    /// Where it stands in what was typed: as a control character, or as terminals write it when a program asked them to tell keys apart.
    pub fn find(&self, typed: &[u8]) -> Option<usize> {
        let code = u32::from(self.0);
        let control = [(self.0 as u8) & 0x1f];
        let long = [format!("\x1b[{code};5u"), format!("\x1b[{code};5:1u"), format!("\x1b[27;5;{code}~")];
        let forms = long.iter().map(String::as_bytes).chain([&control[..]]);
        let find = |form: &[u8]| typed.windows(form.len()).position(|window| window == form);
        forms.filter_map(find).min()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_key_is_found_however_the_terminal_writes_it() {
        let key: DetachKey = "ctrl-\\".parse().unwrap();
        for typed in [&b"ab\x1c"[..], b"ab\x1b[92;5u", b"ab\x1b[27;5;92~", b"ab\x1b[92;5:1uc"] {
            assert_eq!(key.find(typed), Some(2), "{}", typed.escape_ascii());
        }
        for typed in [&b"ab\\"[..], b"\x1b[92;6u", b"\x1b", b""] {
            assert_eq!(key.find(typed), None, "{}", typed.escape_ascii());
        }
        assert_eq!("^]".parse::<DetachKey>().unwrap().find(b"\x1d"), Some(0));
        assert_eq!("ctrl-B".parse::<DetachKey>().unwrap().to_string(), "ctrl-b");
        for wrong in ["", "ctrl-", "ctrl-1", "b", "ctrl-ab", "alt-b", "ctrl-\u{e9}"] {
            assert!(wrong.parse::<DetachKey>().is_err(), "{wrong}");
        }
    }
}
