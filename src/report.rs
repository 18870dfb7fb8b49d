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
    /// Where the master keeps its workers alive: what that took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterReport>,
}

/// What a master that keeps its workers alive has counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterReport {
    /// Processes started, the first ones included.
    pub forks: u64,
    /// Those that ended though nobody had asked them to and they had not said that they would.
    pub deaths: u64,
    /// Those that said they would end.
    pub suicides: u64,
    /// Times that a worker was found not to answer.
    pub hangs: u64,
    /// Reloads that replaced every worker, and those that were abandoned.
    pub reloads: u64,
    pub reloads_failed: u64,
    pub gave_up: bool,
    /// Times from a death or a suicide to the moment a successor listened; absent where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery_ms: Option<Recovery>,
    /// Connections passed to workers, and those that came back (refused, or their worker died) and were passed again.
    pub passed: u64,
    pub returned: u64,
    /// What the workers counted themselves, by name, added up: the fields of their messages `{"act":"count",NAME:N}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counts: BTreeMap<String, f64>,
}

/// How long the places of workers were vacant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Recovery {
    pub count: u64,
    pub p50: f64,
    pub max: f64,
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
    /// From `connect(2)` to an established connection, over the whole run, without the idle crowd. A handshake that timed
    /// out, or that the end of the run cut short, is in it with its age then.
    pub connect_us: Latency,
    /// From the moment the request was sent to the first byte of its answer.
    #[serde(default)]
    pub first_byte_us: Latency,
    /// How late a request was sent: from the moment it was due. In closed loop without think time all zero.
    #[serde(default)]
    pub slip_us: Latency,
    /// Requests in the histograms at their age, since no answer came: each of them would have been longer.
    #[serde(default)]
    pub censored: u64,
    /// Requests due in the measured window over its length, or of a number of requests over the span of their due times;
    /// open loop alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offered_per_s: Option<f64>,
    /// What `--deadline` ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<DeadlineBook>,
    /// Requests that went out once more (`--retry`): before any byte of the answer the server had closed a connection
    /// that had answered before. No errors, unless the second try failed too.
    #[serde(default)]
    pub retried: u64,
    /// Each request of the whole run that was sent or due and got no answer, in the order of the failures: the first
    /// [`LoadReport::MOST_LOST`] of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<Lost>,
    /// How many more there were.
    #[serde(default)]
    pub lost_more: u64,
    /// The second of the measured window with the highest p99; absent when nothing was answered in it, and in a sum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worst_second: Option<WorstSecond>,
    /// The longest part of the window in which no answer was complete, to the millisecond; absent in a sum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub longest_silence_ms: Option<u64>,
    /// Requests under way on one connection at a time, when it was more than one (`--pipeline`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<u32>,
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
    /// The workers that took the first connections, in the order of the first answers (`--order`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub order: Vec<u32>,
    /// Deliberately slow clients, a book for each kind that was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slow: Vec<SlowBook>,
    pub client: ClientCost,
    /// Whether these numbers can be trusted, and why (not).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<Trust>,
    /// What was asked for, where and when, so that results can be put together or told apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunInfo>,
}

impl LoadReport {
    pub const MOST_LOST: usize = 10_000;
}

/// A request without an answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Lost {
    /// When that was clear, from the start of the run.
    pub at_s: f64,
    /// The address of the connection at our end, by which the server knows it; absent where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// The phase and the cause, as the errors have them: `read ECONNRESET`, `write EPIPE`, `timeout`.
    pub cause: String,
    /// Who answered last on this connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<u32>,
}

/// One second of the measured window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct WorstSecond {
    /// From the start of the window to the start of this second.
    pub from_s: f64,
    /// Requests that ended in it.
    pub requests: u64,
    /// Their response times, to one digit (6 % high at most).
    pub latency_us: Latency,
}

/// Requests that a user gave up before the answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct DeadlineBook {
    /// Stale before they could be sent, and never sent.
    pub shed: u64,
    /// Under way when their time was up.
    pub abandoned: u64,
}

/// What became of the deliberately slow clients of one kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SlowBook {
    /// `send`, `read` or `half-open`.
    pub kind: String,
    pub requested: u64,
    pub established: u64,
    /// Complete answers, however slow.
    pub answered: u64,
    /// Ended by the server before they were done.
    pub closed_by_server: u64,
    /// Median time until the server ended them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_after_ms: Option<f64>,
}

/// How far a result can be trusted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Trust {
    pub verdict: Verdict,
    /// Every check that was made, those that passed too.
    pub checks: Vec<Check>,
}

/// The worst of its checks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    #[default]
    Valid,
    /// Look closer before you quote it.
    Suspect,
    /// The run did not measure what was asked for.
    Invalid,
}

/// One reason to trust a result, or not to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Check {
    pub name: String,
    pub verdict: Verdict,
    /// A sentence with the number that was found and the bar it was held to.
    pub reason: String,
}

/// The origin of a result.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RunInfo {
    pub host: String,
    /// Nanoseconds since 1970 when the warm-up began, by this machine's clock.
    pub started_unix_ns: u64,
    /// When it should have begun (`--start-at`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_at_unix_ns: Option<u64>,
    pub seed: u64,
    /// The flags that decide what is measured, in a fixed order; equal texts are equal configurations.
    pub configuration: String,
    /// Ended early, by Ctrl-C or because the server was gone.
    #[serde(default)]
    pub interrupted: bool,
    /// How many results were added up to this one (`loadgen merge`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merged_from: Option<u64>,
    /// Of a sum: those results, so that none is added twice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<RunPart>,
}

/// Which run a part of a sum was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunPart {
    pub host: String,
    /// Nanoseconds since 1970 when its warm-up began, by that machine's clock.
    pub started_unix_ns: u64,
    pub seed: u64,
}

/// One interval of a run, as `--ndjson` writes it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct IntervalReport {
    /// Seconds from the start of the warm-up.
    pub from_s: f64,
    pub to_s: f64,
    /// The interval lies in the measured window.
    pub measured: bool,
    pub requests: u64,
    pub qps: f64,
    pub errors: u64,
    /// Requests that went out once more (`--retry`).
    #[serde(default)]
    pub retried: u64,
    /// Requests due in it, open loop alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<u64>,
    pub connections_open: u64,
    pub connections_requested: u64,
    pub connections_established: u64,
    /// Response time of the requests that ended in it; two digits.
    pub latency_us: Latency,
    pub slip_us: Latency,
    pub workers: BTreeMap<String, WorkerShare>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evenness: Option<EvennessPair>,
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

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerShare {
    pub connections: u64,
    pub requests: u64,
    /// Response time of its answers; for the first workers alone, and absent where none was measured.
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
    /// The most that were open at one time on each thread, added up; in a sum, of each client.
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
