//! Many runs for one answer.

pub mod calibrate;
pub mod demo;
pub mod merge;
pub mod search;
