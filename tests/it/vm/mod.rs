//! What only a whole machine can show, in a virtual one: control groups of version 2 under a real systemd.

mod groups;
mod life;
mod machine;
mod unit;
