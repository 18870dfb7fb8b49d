//! Trials of process managers: the same task for `pm` and for npm's PM2, from the same configuration. Each trial starts
//! a manager of its own, with a folder of its own, and returns numbers; what they mean stands in [`crate::metrics`].
//!
//! - [`manager`]: the two managers, each by its command line, and the folder that a trial leaves nothing behind in;
//! - [`load`]: requests to an application, by `loadgen`, while something is done to it;
//! - [`serving`]: what a reload, a new version, a killed daemon and a slow worker cost those who ask;
//! - [`keeping`]: what a manager does when an application crashes or grows, or when the manager itself is killed;
//! - [`telling`]: what it writes and says: logs, sockets, `jlist`, and what it costs while nothing happens.
//!
//! And of `lab inspect`, which needs no manager: [`watching`] measures what it costs the server that it looks at.
//! [`complaints`] is about no process manager: a server of another project starts as a public complaint has it, and with
//! its cure.
//! [`blind_test`] asks `lab inspect` what servers are, and [`modes`] has the answers.

pub mod blind_test;
pub mod complaints;
pub mod keeping;
pub mod load;
pub mod manager;
pub mod modes;
pub mod serving;
pub mod telling;
pub mod watching;

use std::collections::BTreeMap;

use crate::lab::program::Stop;

/// What a trial has measured, by the keys of [`crate::metrics`].
pub type Numbers = BTreeMap<String, f64>;

pub type Measured = Result<Numbers, Stop>;

fn numbers<const N: usize>(pairs: [(&str, f64); N]) -> Numbers {
    pairs.into_iter().map(|(key, number)| (key.to_string(), number)).collect()
}
