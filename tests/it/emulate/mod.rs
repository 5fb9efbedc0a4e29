//! Emulators, held to the vendors' own SDKs.

mod daytona;
mod e2b;
pub mod sdk;
