//! One file per verb: flags in, a use case, the answer out.

pub mod completion;
pub mod man;
pub mod provider;
pub mod version;
