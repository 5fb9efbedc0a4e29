//! The `pocketenv` program.

fn main() {}
