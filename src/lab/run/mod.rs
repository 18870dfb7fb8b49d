//! One case after another: start the processes, disturb them, measure, stop.

pub mod disturb;
pub mod foreign;
pub mod program;
pub mod runner;
pub mod session;
pub mod sysctl;
