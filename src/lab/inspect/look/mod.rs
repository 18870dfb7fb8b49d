//! What is read of a running server: looks, one after another, as plain values. A look reads /proc and asks the kernel
//! for its sockets (sock_diag(7)); the server is not stopped and not written to.
//!
//! [`process`] reads the processes that have the sockets of a target and what belongs to these, and [`connections`]
//! counts from look to look. Findings are made of a [`Recording`] alone.

mod connections;
mod observer;
mod process;

use serde::{Deserialize, Serialize};

pub use crate::sys::sock_diag::Listener;
pub use crate::sys::waiting::Call;
pub use connections::LONG_NS;
pub use observer::Observer;
pub use process::{Process, Task, Watch};

/// All that was read of a server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Recording {
    pub machine: Machine,
    /// The command lines of processes, by pid.
    pub commands: std::collections::BTreeMap<i32, Vec<String>>,
    /// In the order of time; at least two.
    pub looks: Vec<Look>,
    /// What could not be seen, and why, a line each.
    pub unseen: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// CPUs that the server may use, by its affinity and by the quota of its cgroups.
    pub cpus: f64,
    pub somaxconn: u64,
    /// Sockets of the network namespace that listen for TCP connections and are not inspected, at the last look.
    pub other_listeners: usize,
}

/// What was there at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Look {
    /// CLOCK_MONOTONIC.
    pub at_ns: u64,
    pub listeners: Vec<Listener>,
    pub processes: Vec<Process>,
    pub open: u64,
    pub unaccepted: u64,
    /// Those that nobody has accepted for a second.
    pub unaccepted_long: u64,
    /// Connections that began since the first look, as far as they were seen.
    pub new: u64,
    /// Segments with data since the first look, beside the first of each connection, where they were read.
    pub requests: Option<u64>,
    /// `PassiveOpens` of the network namespace: the connections of all its listeners.
    pub passive_opens: u64,
    /// `ListenOverflows` of the network namespace: connections that found an accept queue full.
    pub listen_overflows: u64,
}

impl Recording {
    pub fn first(&self) -> &Look {
        self.looks.first().expect("at least two looks")
    }

    pub fn last(&self) -> &Look {
        self.looks.last().expect("at least two looks")
    }

    pub fn seconds(&self) -> f64 {
        (self.last().at_ns - self.first().at_ns) as f64 / 1e9
    }

    /// A process at every look at which it was there; not an earlier one that had its number.
    pub fn process(&self, pid: i32) -> impl Iterator<Item = (&Look, &Process)> {
        let all = || self.looks.iter().flat_map(|look| look.processes.iter().map(move |process| (look, process)));
        let started = all().rfind(|(_, process)| process.pid == pid).map(|(_, process)| process.started);
        all().filter(move |(_, process)| process.pid == pid && Some(process.started) == started)
    }
}
