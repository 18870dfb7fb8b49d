//! Connections beside those that are measured: only there, or slow on purpose.

pub mod crowd;
pub mod slow;
