//! Emulators, held to the vendors' own SDKs.

mod e2b;
pub mod sdk;
