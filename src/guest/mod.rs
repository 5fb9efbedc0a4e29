//! What happens inside a sandbox, once, for every provider.

pub mod tree;
