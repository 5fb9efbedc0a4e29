//! Unix sockets of this machine that lead inside.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::Lowering;
use crate::manifest::language::Sandbox;
use crate::manifest::language::scalar::parse_socket_to;
use crate::model::{Bind, SocketSpec};

/// The longest path that a program can connect to, in bytes: what a `sockaddr_un` holds.
const LONGEST_PATH: usize = 107;

impl Lowering<'_> {
    pub(super) fn sockets(&mut self, raw: &Sandbox, binds: &[Bind]) -> BTreeMap<String, SocketSpec> {
        let mut sockets = BTreeMap::new();
        for (name, socket) in &raw.sockets {
            let Ok(to) = parse_socket_to(&socket.to.0) else { continue };
            let host_path = match &socket.host_path {
                None => None,
                Some(path) => match self.socket_path(name, &path.0, binds) {
                    Some(path) => Some(path),
                    None => continue,
                },
            };
            sockets.insert(name.clone(), SocketSpec { to, host_path });
        }
        sockets
    }

    fn socket_path(&mut self, name: &str, text: &str, binds: &[Bind]) -> Option<PathBuf> {
        let at = ["sockets", name, "host_path"];
        let path = super::absolute(&self.host_path(&at, text)?);
        let length = path.as_os_str().len();
        if length > LONGEST_PATH {
            let message = format!(
                "{} has {length} bytes, and a program can connect to no path so long",
                path.display()
            );
            let problem = self.error("bad-value", &at, message);
            self.push(
                problem
                    .expected(format!("a path of at most {LONGEST_PATH} bytes, from the root on"))
                    .help("leave `host_path` out for a short one"),
            );
            return None;
        }
        if let Some(bind) = binds.iter().find(|bind| path.starts_with(&bind.from)) {
            let message = format!(
                "{} would be in a directory that the sandbox shares as {}",
                path.display(),
                bind.path
            );
            let problem = self.error("conflict", &at, message);
            self.push(problem.help("write a path elsewhere, or leave `host_path` out"));
            return None;
        }
        Some(path)
    }
}
