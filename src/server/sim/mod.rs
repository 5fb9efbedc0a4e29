//! The simulated cloud: a sandbox vendor in a process of its own, with a seed, faults on demand, and its truth readable at `/inventory`.
//!
//! A request goes through four stations: chance decides what goes wrong with it ([`Chance`]), the cloud decides what it does ([`cloud`]), the effect is
//! written down ([`journal`]), and the answer is given, spoilt or withheld ([`route`]). `docs/sim.md` describes it from outside.

mod chance;
mod cloud;
mod effect;
mod fault;
mod guest;
mod journal;
pub mod profile;
mod route;
mod state;

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::net::TcpListener;

pub use cloud::Cloud;
pub use fault::{Operation, SettingError, Settings};
pub use journal::JournalError;

/// What a simulator is started with.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// Where chance begins.
    pub seed: u64,
    /// The file that it lives in.
    pub state: PathBuf,
    /// What can go wrong, and its manners.
    pub settings: Settings,
}

/// Serves a cloud until the future is dropped.
///
/// # Errors
/// [`JournalError`] if its file cannot be used; afterwards it never ends by itself.
pub async fn serve(listener: TcpListener, options: SimOptions) -> Result<(), JournalError> {
    let cloud = Cloud::open(&options.state, options.seed, options.settings)?;
    route::serve(listener, Arc::new(Mutex::new(cloud))).await;
    Ok(())
}
