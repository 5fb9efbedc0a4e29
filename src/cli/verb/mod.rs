//! One file per verb: flags in, a use case, the answer out.

pub mod apply;
pub mod change;
pub mod completion;
pub mod control;
pub mod describe;
pub mod destroy;
pub mod events;
pub mod exec;
pub mod history;
pub mod logs;
pub mod ls;
pub mod man;
pub mod plan;
pub mod ports;
pub mod preset;
pub mod provider;
pub mod ps;
pub mod schema;
pub mod state;
pub mod status;
pub mod validate;
pub mod version;
pub mod wait;
