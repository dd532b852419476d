//! Wraps what the operating system and the async runtime provide: time, tasks, processes, files, signals. Nothing here
//! depends on ZFS.

pub(crate) mod batcher;
pub mod clock;
pub mod files;
pub mod log_limit;
pub mod process;
pub mod retry;
pub mod runtime;
pub mod service;
pub mod tree;
