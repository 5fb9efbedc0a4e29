#[path = "it/guest/mod.rs"]
mod guest;
