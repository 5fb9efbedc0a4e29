//! Following what services do, as it happens.

use super::script::script;
use crate::model::ServiceStatus;
use crate::provider::{ExecIo, Guest, GuestError, Input, Output, Sink};

/// What a service does now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceNews {
    /// The service.
    pub name: String,
    /// What it does.
    pub state: ServiceStatus,
    /// How it exited last.
    pub exit_code: Option<i32>,
    /// How often it was started again.
    pub restarts: u32,
}

/// Gives the state of each service to `sink` now and whenever it changes, until the future is dropped.
///
/// # Errors
/// Whatever running a command gives; it also ends when the sandbox does, then with whatever status the command had.
pub async fn follow_services(
    guest: &dyn Guest,
    sink: &mut (dyn FnMut(ServiceNews) + Send),
) -> Result<(), GuestError> {
    let command = script!("follow").command::<_, String>([]);
    let mut lines = Lines { pending: Vec::new(), sink };
    let mut writer = Sink(|data: &[u8]| lines.push(data));
    let io = ExecIo { stdin: Input::Null, stdout: Output::Writer(&mut writer), stderr: Output::Null };
    guest.exec(&command, io).await.map(drop)
}

/// Longer lines are not ours.
const LINE_LIMIT: usize = 4096;

struct Lines<'a> {
    pending: Vec<u8>,
    sink: &'a mut (dyn FnMut(ServiceNews) + Send),
}

impl Lines<'_> {
    fn push(&mut self, data: &[u8]) {
        for &byte in data {
            if byte == b'\n' {
                let line = std::mem::take(&mut self.pending);
                if let Some(news) = std::str::from_utf8(&line).ok().and_then(parse) {
                    (self.sink)(news);
                }
            } else if self.pending.len() < LINE_LIMIT {
                self.pending.push(byte);
            }
        }
    }
}

fn parse(line: &str) -> Option<ServiceNews> {
    let mut fields = line.split('\t');
    let name = fields.next()?.to_owned();
    let state = match fields.next()? {
        "running" => ServiceStatus::Running,
        "backoff" => ServiceStatus::Backoff,
        "stopped" => ServiceStatus::Stopped,
        "failed" => ServiceStatus::Failed,
        "completed" => ServiceStatus::Completed,
        "dead" => ServiceStatus::Dead,
        _ => return None,
    };
    let exit_code = fields.next()?.parse().ok();
    Some(ServiceNews { name, state, exit_code, restarts: fields.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_and_nonsense_is_not() {
        let news = parse("web\tbackoff\t3\t2");
        let expected = ServiceNews {
            name: "web".to_owned(),
            state: ServiceStatus::Backoff,
            exit_code: Some(3),
            restarts: 2,
        };
        assert_eq!(news, Some(expected));
        assert_eq!(parse("web\tdancing\t3\t2"), None);
        assert_eq!(parse(""), None);
    }
}
