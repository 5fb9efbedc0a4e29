//! The loop: observe, plan, execute, until what exists is what is desired.
//!
//! [`observe`] looks, `plan/` decides, [`execute`] does exactly what the plan says, and [`status`] tells what is measured.
//! It is the same loop for `apply`, `destroy`, `watch` and the controller.

mod event;
pub mod execute;
mod inside;
pub mod observe;
pub mod queue;
mod retry;
pub mod status;

pub use event::{Event, EventKind, EventSink, Failure, FailureKind, NullSink};
pub use retry::Backoff;
