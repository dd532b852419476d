//! What several test programs share. Each one compiles all of it and uses a part.

#![allow(dead_code, reason = "each test program uses a part")]

pub mod consul;
pub mod fleet;
pub mod loopback;
pub mod program;
