//! The simulated cloud: a sandbox vendor in a process of its own, with a seed, faults on demand, and its truth readable at `/inventory`.
//!
//! A request goes through four stations: chance decides what goes wrong with it (`chance`), the cloud decides what it does (`cloud`), the effect is
//! written down (`journal`), and the answer is given, spoilt or withheld (`route`). `docs/sim.md` describes it from outside.

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

use crate::secret::SecretValue;

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
    /// The bearer token that every call of `/v1` has to carry, if any.
    pub token: Option<SecretValue>,
}

/// A simulator that is ready to serve.
pub struct Simulator {
    cloud: Arc<Mutex<Cloud>>,
    token: Option<SecretValue>,
}

impl Simulator {
    /// Opens the cloud that lives in the file, or a new one.
    ///
    /// # Errors
    /// [`JournalError`] if the file cannot be used.
    pub fn open(options: SimOptions) -> Result<Self, JournalError> {
        let cloud = Cloud::open(&options.state, options.seed, options.settings)?;
        Ok(Self { cloud: Arc::new(Mutex::new(cloud)), token: options.token })
    }

    /// Serves it until the future is dropped.
    pub async fn serve(self, listener: TcpListener) {
        route::serve(listener, self.cloud, self.token).await;
    }
}
