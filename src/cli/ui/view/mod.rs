//! The full-screen view of `watch`: resources with their conditions, events with their reasons, the logs of services.
//!
//! [`View`] is what is shown and how keys change that; it knows of no terminal. `draw` puts it on a canvas of any size. [`FullScreen`] owns the
//! terminal and gives it back on every way out.

mod draw;
mod state;
mod terminal;

pub use state::{Act, Key, Told, View};
pub use terminal::{FullScreen, LogWriter};
