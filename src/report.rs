//! The two documents in which the programs meet: what a server prints when it stops, and what `loadgen` prints
//! when it is done. Counts are totals, times carry their unit in the name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::scoreboard::Count;

/// What a server prints on standard output when it has stopped (section 1 of the contract).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerReport {
    /// The name of the program, which is the name of the architecture.
    pub model: String,
    /// The address it listened on.
    pub listen: String,
    pub uptime_s: f64,
    pub workers: Vec<WorkerReport>,
    /// The process (or thread) that only accepts or supervises, where there is one beside the workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<MasterReport>,
}

/// One worker's row of the scoreboard and what the kernel accounted to it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerReport {
    pub id: usize,
    pub pid: i32,
    /// Connections this worker took, from the kernel or from a master.
    pub accepted: u64,
    /// Requests it answered, bad ones included.
    pub requests: u64,
    /// Connections open at the moment of the report.
    pub active: u64,
    /// Returns to user space from the call it waits in that were about the listening socket.
    pub wakeups: u64,
    /// Those of them that then found nothing to accept.
    pub empty_wakeups: u64,
    /// Accepts that returned EAGAIN: more than the empty wake-ups where a worker takes all there is, and looks once
    /// more.
    #[serde(default)]
    pub accept_eagain: u64,
    /// Connections lost to the client: resets, malformed requests, time-outs.
    pub client_errors: u64,
    pub cpu_user_us: u64,
    pub cpu_system_us: u64,
    /// `ru_nvcsw`: the times it went to sleep in the kernel (getrusage(2)).
    pub voluntary_switches: u64,
    /// `ru_nivcsw`: the times the CPU was taken from it.
    pub involuntary_switches: u64,
    pub max_rss_kib: u64,
}

/// What the kernel accounted to a process that serves no request itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct MasterReport {
    pub pid: i32,
    pub cpu_user_us: u64,
    pub cpu_system_us: u64,
    pub voluntary_switches: u64,
    pub involuntary_switches: u64,
    pub max_rss_kib: u64,
    /// Absent where the master does not accept (and in documents older than this).
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub accepts: Option<AcceptBook>,
}

/// What a master that accepts for its workers has counted; each as in [`WorkerReport`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct AcceptBook {
    /// Connections it took from the kernel, whatever became of them.
    pub accepted: u64,
    pub wakeups: u64,
    pub empty_wakeups: u64,
    pub accept_eagain: u64,
}

impl AcceptBook {
    pub fn count(&mut self, count: Count) {
        match count {
            Count::Accepted => self.accepted += 1,
            Count::Wakeups => self.wakeups += 1,
            Count::EmptyWakeups => self.empty_wakeups += 1,
            Count::AcceptEagain => self.accept_eagain += 1,
            // Who serves keeps the rest.
            _ => {}
        }
    }
}

impl ServerReport {
    /// The master's book beside the workers'.
    pub fn with_accepts(mut self, accepts: AcceptBook) -> ServerReport {
        self.master.iter_mut().for_each(|master| master.accepts = Some(accepts));
        self
    }
}

/// What `loadgen --format json` prints (section 2 of the contract).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    /// The version of this document.
    pub schema: u32,
    /// Requests answered within the measured window.
    pub requests: u64,
    /// `requests / duration_s`.
    pub qps: f64,
    /// The measured window: without warm-up, and without the wait for the last answers.
    pub duration_s: f64,
    /// Of the whole run, warm-up and last answers included.
    pub errors: Errors,
    /// Response time. Open loop: from the moment the request was due. Closed loop: from the moment it was sent.
    /// Each request due (sent) in the window is in it once; one that failed or was given up, at its age then.
    pub latency_us: Latency,
    /// Service time, from the moment the request was sent; in closed loop the same as `latency_us`. A request
    /// that was never sent has none.
    pub service_us: Latency,
    /// From `connect(2)` to an established connection, over the whole run, without the idle crowd.
    pub connect_us: Latency,
    /// The client's book, by the worker's number in `X-Worker`. Connections of the whole run (warm-up included:
    /// a connection keeps its worker for life), requests of the measured window.
    pub workers: BTreeMap<String, WorkerShare>,
    /// Absent when no answer named its worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evenness: Option<EvennessPair>,
    pub connections: ConnectionBook,
    /// Requests answered before the measured window, and those due in it but answered after its end (they are
    /// in the histograms, not in `qps`).
    pub outside_window: OutsideWindow,
    /// The first answers one by one, when `--trace` asked for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trace: Vec<Traced>,
    pub client: ClientCost,
}

/// Everything that went wrong, by the phase it happened in and the name of the errno (or `eof`, `malformed`, …).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Errors {
    pub connect: BTreeMap<String, u64>,
    pub write: BTreeMap<String, u64>,
    pub read: BTreeMap<String, u64>,
    /// Answers outside 2xx, by status.
    pub status: BTreeMap<String, u64>,
    /// Requests that were due or sent and never answered.
    pub timeout: u64,
}

impl Errors {
    pub fn total(&self) -> u64 {
        let by_name = [&self.connect, &self.write, &self.read, &self.status];
        by_name.iter().flat_map(|map| map.values()).sum::<u64>() + self.timeout
    }
}

/// A distribution of times in microseconds; all zero when there was nothing to measure.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
    pub mean: f64,
    pub stdev: f64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerShare {
    pub connections: u64,
    pub requests: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvennessPair {
    pub connections: Evenness,
    pub requests: Evenness,
}

/// How evenly n items fell on k workers, beside what chance would have given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Evenness {
    pub workers: usize,
    pub n: u64,
    /// D = X² / (k − 1): about 0 for round robin, about 1 for hashing, far above 1 for a pile-up.
    pub dispersion: f64,
    /// Two-sided, against a uniform multinomial.
    pub p_value: f64,
    pub max_over_mean: f64,
    pub jain: f64,
    pub cv: f64,
    pub expected_max_over_mean_if_random: f64,
}

/// Connections as the client saw them, over the whole run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ConnectionBook {
    /// Asked for on the command line: the active ones and the idle crowd.
    pub requested: u64,
    /// The most that were open at one time.
    pub peak_open: u64,
    /// `connect(2)` calls that ended in an established connection.
    pub established: u64,
    /// Those that got at least one answer: the ones the workers' book can know.
    pub answered: u64,
    /// Members of the idle crowd that the server had closed before the end: fewer were idle than were asked for.
    #[serde(default)]
    pub crowd_lost: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct OutsideWindow {
    pub warmup: u64,
    pub late: u64,
}

/// One answer, as siege prints it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Traced {
    /// When the answer was complete, from the start of the run.
    pub at_us: f64,
    pub latency_us: f64,
    pub status: u16,
    pub bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ClientCost {
    pub threads: usize,
    /// CPU of the measured window alone, so that it can be divided by `requests`.
    pub cpu_user_us: u64,
    pub cpu_system_us: u64,
    /// CPU time of the measured window over its length and the number of threads: 1.0 is a saturated client.
    pub cpu_share: f64,
    pub max_rss_kib: u64,
}
