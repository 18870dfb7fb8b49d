//! The command line, turned into plain values once: [`args`] reads it, [`plan`] is what the stages behind it see.

pub mod args;
pub mod background;
pub mod condition;
pub mod plan;
pub mod source;
pub mod sweep;
pub mod target;
pub mod values;
