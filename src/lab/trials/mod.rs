//! Trials: one task for one program; a trial returns numbers, whose meaning stands in [`crate::metrics`].
//!
//! Of process managers: the same task for `pm` and for npm's PM2, from the same configuration, each in a folder of its
//! own.
//!
//! - [`manager`]: the two managers, each by its command line, and the folder that a trial leaves nothing behind in;
//! - [`load`]: requests to an application, by `loadgen`, while something is done to it;
//! - [`serving`]: what a reload, a new version, a killed daemon and a slow worker cost those who ask;
//! - [`keeping`]: what a manager does when an application crashes or grows, or when the manager itself is killed;
//! - [`telling`]: what it writes and says: logs, sockets, `jlist`, and what it costs while nothing happens.
//!
//! Of the lab's own tools:
//!
//! - [`complaints`]: a server of another project as a public complaint has it, what `lab inspect` says, and the cure;
//! - [`blind_test`]: servers that `lab inspect` does not know; [`modes`] has the answers;
//! - [`watching`]: what `lab inspect` costs the server that it looks at;
//! - [`steering`]: what `lab steer` does for a server, and what it costs;
//! - [`served`]: who serves a server's connections, seen by `lab inspect` and said by the answers.

pub mod blind_test;
pub mod complaints;
pub mod keeping;
pub mod load;
pub mod manager;
pub mod modes;
pub mod served;
pub mod serving;
pub mod steering;
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
