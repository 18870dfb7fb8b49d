//! The documents in which the programs meet: what a server prints when it stops, and what `loadgen` and `trial` print
//! when they are done. Counts are totals, times carry their unit in the name.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a server prints on standard output when it has stopped (section 1 of the contract).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerReport {
    pub model: String,
    pub listen: String,
    pub uptime_s: f64,
    pub workers: Vec<WorkerReport>,
    /// The process (or thread) that only accepts or supervises, where there is one beside the workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub master: Option<MasterReport>,
    /// Where the master keeps its workers alive: what that took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterReport>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterReport {
    pub forks: u64,
    pub deaths: u64,
    pub suicides: u64,
    pub hangs: u64,
    pub reloads: u64,
    pub reloads_failed: u64,
    pub gave_up: bool,
    /// Times from a death or an announced end to the moment a successor listened; absent where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_ms: Option<Recovery>,
    /// Connections passed to workers, and those that came back (refused, or their worker died) and were passed again.
    pub passed: u64,
    pub returned: u64,
    /// Lines that standard error, --events or --log did not take.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lines_dropped: u64,
    /// What the workers counted themselves, by name, added up: the fields of their messages `{"act":"count",NAME:N}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counts: BTreeMap<String, f64>,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// How long the numbers of workers were vacant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Recovery {
    pub count: u64,
    pub p50: f64,
    pub max: f64,
}

/// One worker's row of the scoreboard and what the kernel accounted to it; in [`metrics`](crate::metrics) as columns.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerReport {
    pub id: usize,
    pub pid: i32,
    /// Connections this worker took, from the kernel or from a master.
    pub accepted: u64,
    /// Requests it answered, bad ones included.
    pub requests: u64,
    pub active: u64,
    pub wakeups: u64,
    pub empty_wakeups: u64,
    #[serde(default)]
    pub accept_eagain: u64,
    /// Connections that ended by the client's fault: resets, malformed requests, time-outs.
    pub client_errors: u64,
    pub cpu_user_us: u64,
    pub cpu_system_us: u64,
    pub voluntary_switches: u64,
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
    /// Absent where the master does not accept.
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    pub accepts: Option<AcceptCounts>,
}

/// What a master that accepts for its workers has counted; each as in [`WorkerReport`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct AcceptCounts {
    /// Connections it took from the kernel, whatever became of them.
    pub accepted: u64,
    pub wakeups: u64,
    pub empty_wakeups: u64,
    pub accept_eagain: u64,
}

impl ServerReport {
    pub fn with_accepts(mut self, accepts: AcceptCounts) -> ServerReport {
        self.master.iter_mut().for_each(|master| master.accepts = Some(accepts));
        self
    }
}

/// What `trial --format json` prints: the numbers of one task for one program (a manager, a server, a tool), by the
/// keys of [`metrics`](crate::metrics).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TrialReport {
    /// The version of what was tried; empty where it has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Why nothing was measured: a program is not installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    #[serde(flatten)]
    pub numbers: BTreeMap<String, f64>,
    /// What a reader should know beside the numbers, a line each: which answers were wrong, say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What `loadgen --format json` prints (section 2 of the contract). What each number means stands in
/// [`metrics`](crate::metrics); what is absent was not asked for, or not measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    pub schema: u32,
    pub requests: u64,
    pub qps: f64,
    pub duration_s: f64,
    pub errors: Errors,
    pub latency_us: Latency,
    pub service_us: Latency,
    pub connect_us: Latency,
    pub first_byte_us: Latency,
    pub send_delay_us: Latency,
    pub censored: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offered_per_s: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<DeadlineCounts>,
    pub retried: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub wrong_bodies: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<Lost>,
    pub lost_more: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worst_second: Option<WorstSecond>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest_silence_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_series: Option<TimeSeries>,
    /// The response times at [`LoadReport::QUANTILES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub latency_quantiles_us: Vec<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<u32>,
    pub workers: BTreeMap<String, WorkerShare>,
    /// Absent when no answer named its worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evenness: Option<EvennessPair>,
    pub connections: ConnectionCounts,
    pub outside_window: OutsideWindow,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trace: Vec<Traced>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub order: Vec<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slow: Vec<SlowCounts>,
    pub client: ClientCost,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<Trust>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunInfo>,
}

impl LoadReport {
    pub const MOST_LOST: usize = 10_000;

    /// The shares of the requests that are a curve of the distribution.
    pub const QUANTILES: [f64; 15] = [0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0];
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Lost {
    pub at_s: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    pub cause: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<u32>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct WorstSecond {
    pub from_s: f64,
    pub requests: u64,
    pub latency_us: Latency,
}

/// An element of each list for each interval of the window.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TimeSeries {
    pub interval_s: f64,
    pub answered: Vec<u64>,
    pub p99_us: Vec<u64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct DeadlineCounts {
    pub shed: u64,
    pub abandoned: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SlowCounts {
    pub kind: String,
    pub requested: u64,
    pub established: u64,
    pub answered: u64,
    pub closed_by_server: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_after_ms: Option<f64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Trust {
    pub verdict: Verdict,
    pub checks: Vec<Check>,
}

/// The worst of its checks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    #[default]
    Valid,
    Suspect,
    Invalid,
}

impl Verdict {
    /// From good to bad.
    pub const ALL: [Verdict; 3] = [Verdict::Valid, Verdict::Suspect, Verdict::Invalid];

    pub fn name(self) -> &'static str {
        ["valid", "suspect", "invalid"][self as usize]
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub verdict: Verdict,
    pub reason: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    pub host: String,
    pub started_unix_ns: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_at_unix_ns: Option<u64>,
    pub seed: u64,
    pub configuration: Configuration,
    pub interrupted: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged_from: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<RunPart>,
}

/// What a run was asked to do, as far as it decides the result: neither the seed nor the start belongs to it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Configuration {
    pub url: String,
    pub method: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
    pub body_bytes: u32,
    pub connections: u32,
    /// Absent when connections are kept; 0 when they carry no request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_connection: Option<u64>,
    /// `fin` or `rst`.
    pub close: String,
    pub pipeline: u32,
    pub timeout_s: f64,
    pub retry: bool,
    /// Addresses that connections came from; 0 when the kernel chose.
    pub sources: usize,
    pub threads: u32,
    pub engine: String,
    pub busy_poll: bool,
    pub pin: bool,
    pub arrivals: ArrivalsKind,
    /// Requests per second, with `sessions` users; at the beginning of a ramp.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_per_s: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ramp_to_per_s: Option<f64>,
    pub sessions: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub think_s: Option<f64>,
    pub think_is_exponential: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_s: Option<f64>,
    pub warmup_s: f64,
    /// Absent when a number of requests ended the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_s: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    /// Workers that the server was said to have; 0 when it is not known.
    pub workers: u32,
    /// As `--background` is written; empty when there was none.
    pub background: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArrivalsKind {
    #[default]
    Closed,
    Fixed,
    Poisson,
    /// So many at once.
    Burst(u32),
    /// From this file.
    Replay(String),
}

impl Configuration {
    /// The seed decides when requests are due.
    pub fn is_random(&self) -> bool {
        self.arrivals == ArrivalsKind::Poisson || self.think_is_exponential
    }

    pub fn is_open_loop(&self) -> bool {
        self.arrivals != ArrivalsKind::Closed
    }

    /// Over the window; `None` in a closed loop and in a replay.
    pub fn mean_rate_per_s(&self) -> Option<f64> {
        self.rate_per_s.map(|from| (from + self.ramp_to_per_s.unwrap_or(from)) / 2.0)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunPart {
    pub host: String,
    pub started_unix_ns: u64,
    pub seed: u64,
}

/// One interval of a run, as a `.ndjson` file has it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct IntervalReport {
    pub from_s: f64,
    pub to_s: f64,
    pub measured: bool,
    pub requests: u64,
    pub qps: f64,
    pub errors: u64,
    pub retried: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<u64>,
    pub connections_open: u64,
    pub connections_requested: u64,
    pub connections_established: u64,
    pub latency_us: Latency,
    pub send_delay_us: Latency,
    pub workers: BTreeMap<String, WorkerShare>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evenness: Option<EvennessPair>,
}

/// Everything that went wrong, by the phase it happened in and the name of the errno (or `eof`, `malformed: WHERE`, …).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Errors {
    pub connect: BTreeMap<String, u64>,
    pub write: BTreeMap<String, u64>,
    pub read: BTreeMap<String, u64>,
    pub status: BTreeMap<String, u64>,
    pub timeout: u64,
}

impl Errors {
    pub fn total(&self) -> u64 {
        let by_name = [&self.connect, &self.write, &self.read, &self.status];
        by_name.iter().flat_map(|map| map.values()).sum::<u64>() + self.timeout
    }
}

/// A distribution of times in microseconds; all zero when there was nothing to measure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p99_9: f64,
    pub max: f64,
    pub mean: f64,
    pub stdev: f64,
}

impl Latency {
    /// All of it, each with its short name.
    pub fn named(&self) -> [(&'static str, f64); 7] {
        let Latency { p50, p90, p99, p99_9, max, mean, stdev } = *self;
        [("p50", p50), ("p90", p90), ("p99", p99), ("p99.9", p99_9), ("max", max), ("mean", mean), ("stdev", stdev)]
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerShare {
    pub connections: u64,
    pub requests: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<Latency>,
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
    pub dispersion: f64,
    pub p_value: f64,
    pub max_over_mean: f64,
    pub jain: f64,
    pub cv: f64,
    pub expected_max_over_mean_if_random: f64,
}

/// Connections as the client saw them, over the whole run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ConnectionCounts {
    pub requested: u64,
    pub peak_open: u64,
    pub established: u64,
    pub answered: u64,
    pub idle_lost: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct OutsideWindow {
    pub warmup: u64,
    pub late: u64,
}

/// One answer, as siege prints it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Traced {
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
    pub cpu_user_us: u64,
    pub cpu_system_us: u64,
    pub cpu_share: f64,
    pub max_rss_kib: u64,
}
