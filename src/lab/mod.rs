//! The lab: experiments in, evidence out, as the data travels.
//!
//! - [`plan`]: experiment file → matrix → cases, and what theory promises each;
//! - [`run`]: one case after another: processes, faults, the clients of other projects;
//! - [`observe`]: what the kernel and /proc counted meanwhile;
//! - [`record`]: rows on disk, append-only, and the machine they were made on;
//! - [`evidence`]: rows → columns → tables → pages;
//! - [`verify`]: the same cases as tests; [`check`]: any server against the contract; [`order`]: who takes connections
//!   that come one after another; [`watch`]: a running server's counters on the terminal.
//!
//! Errors are one line each, complete with file, argument and remedy, and are printed by `bins/lab.rs` alone.

pub mod evidence;
pub mod observe;
pub mod plan;
pub mod record;
pub mod run;

pub mod check;
pub mod order;
pub mod verify;
pub mod watch;
