//! What happens inside a sandbox, once, for every provider: files, environment, repositories, presets, services, logs, copies.
//!
//! Built on the [`Guest`](crate::provider::Guest) trait alone; inside, POSIX `sh` and the usual small tools are all there is. Each operation
//! is one constant script (`sh/*.sh`) that gets its data as arguments, environment or standard input, and as few round trips as possible:
//! at a cloud each one costs a fifth of a second.
//!
//! State inside: `/var/lib/pocketenv` (records of files, repositories, preset steps; survives a stop), `/run/pocketenv` (environment, secrets,
//! services; in memory), `/var/log/pocketenv/SERVICE/log`. Without root: `~/.pocketenv` and a private directory in `/dev/shm` or `/tmp`. A record
//! is written after what it records, so that an interrupted operation is repeated and never believed.

mod archive;
mod bundle;
mod copy;
mod follow;
mod health;
mod isolation;
mod logs;
mod observe;
mod preset;
mod record;
mod repository;
mod script;
mod service;
mod sync;

pub use crate::provider::GuestError;
pub use crate::tree;
pub use bundle::{Bundle, Content, EnvBundle, FileToWrite, environment, write_bundle};
pub use copy::{End, copy_between, copy_in, copy_out};
pub use follow::{ServiceNews, follow_services};
pub use health::{probe, wait_healthy, wait_started};
pub use isolation::{IsolationCheck, IsolationVerdict, try_isolation};
pub use logs::{LogLine, LogOptions, logs};
pub use observe::observe;
pub use preset::{StepOutcome, forget_steps, run_step};
pub use repository::{RepositoryAccess, bring_repository, forget_repository};
pub use service::{ServiceDefaults, remove_service, restart_service, start_service, stop_service};
pub use sync::{Difference, Entries, Synced, sync, synced};
