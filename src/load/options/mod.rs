//! The command line, turned into plain values once.

pub mod args;
pub mod background;
pub mod engine;
pub mod gate;
pub mod source;
pub mod target;
