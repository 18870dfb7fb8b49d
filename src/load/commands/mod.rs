//! What `loadgen` is asked for: one run, or many runs for one answer.

pub mod calibrate;
pub mod demo;
pub mod measure;
pub mod merge;
pub mod search;
