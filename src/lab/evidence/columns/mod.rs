//! The columns a table may have: how each number comes out of a row. What it means stands in [`metrics`].

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::evenness;
use crate::lab::evidence::{accounting, numbers};
use crate::lab::observe::cpu_window::CpuWindow;
use crate::lab::observe::kernel_counts::ProcessCounts;
use crate::lab::observe::timeline::Snapshot;
use crate::lab::plan::law::Law;
use crate::lab::plan::matrix::ColumnKind;
use crate::lab::record::{ForeignReport, Row};
use crate::metrics;
use crate::report::{ClusterReport, Evenness, Latency, LoadReport, WorkerReport, WorkerShare};
use crate::stats;
use crate::terminal::step;

/// A row, and the row it is compared with, which ran directly beside it.
#[derive(Clone, Copy)]
pub struct Sample<'a> {
    pub row: &'a Row,
    pub baseline: Option<&'a Row>,
}

pub struct Column {
    /// As the matrix writes it.
    pub name: &'static str,
    /// The key of what it shows in [`metrics`], which has its header and its definition.
    metric: &'static str,
    pub value: Formula,
}

impl Column {
    /// As the table prints it, with the unit.
    pub fn header(&self) -> String {
        metrics::meaning(self.metric).header
    }

    pub fn definition(&self) -> String {
        metrics::meaning(self.metric).definition
    }

    /// What the plan checks a claim against.
    pub fn kind(&self) -> ColumnKind {
        match self.value {
            Picture { .. } => ColumnKind::Picture,
            _ => ColumnKind::Number { unit: metrics::meaning(self.metric).unit },
        }
    }

    /// The number of a row; for a picture the number by which its run is chosen.
    pub fn number(&self, sample: Sample) -> Option<f64> {
        match self.value {
            Count(of) | Real(of) | Picture { median_by: of, .. } => of(sample),
            Pooled(of) => of(&[sample]),
        }
    }

    pub fn print(&self, number: f64) -> String {
        match self.value {
            Count(_) => numbers::count(number),
            Pooled(_) => numbers::probability(number),
            Real(_) | Picture { .. } => numbers::real(number),
        }
    }
}

/// How a cell comes out of a row; `None` prints as –.
pub enum Formula {
    /// Whole numbers.
    Count(fn(Sample) -> Option<f64>),
    Real(fn(Sample) -> Option<f64>),
    /// A probability, from all runs together: a median of probabilities means nothing. Never printed as 0: what was
    /// measured cannot be impossible.
    Pooled(fn(&[Sample]) -> Option<f64>),
    /// One run's picture: that of the run with the median of the number.
    Picture {
        of: fn(&Row) -> Option<String>,
        median_by: fn(Sample) -> Option<f64>,
    },
}

pub fn find(name: &str) -> Option<&'static Column> {
    COLUMNS.iter().find(|column| column.name == name)
}

use Formula::{Count, Picture, Pooled, Real};

/// A number that only the lab computes: the column has its metric's key.
const fn own(name: &'static str, value: Formula) -> Column {
    Column { name, metric: name, value }
}

/// A number of loadgen's report.
const fn report(name: &'static str, metric: &'static str, value: Formula) -> Column {
    Column { name, metric, value }
}

// One line each, however long.
#[rustfmt::skip]
pub static COLUMNS: &[Column] = &[
    // How much.
    report("qps", "qps", Count(qps)),
    own("law_qps", Count(law_qps)),
    own("deviation", Real(deviation)),
    own("share_of_baseline", Real(|s| over_baseline(s, qps))),
    own("connections_per_s", Count(connections_per_s)),
    // How long.
    report("p50", "latency_us.p50", Count(|s| latency(s, |l| l.p50))),
    report("p90", "latency_us.p90", Count(|s| latency(s, |l| l.p90))),
    report("p99", "latency_us.p99", Count(|s| latency(s, |l| l.p99))),
    report("p99_9", "latency_us.p99_9", Count(|s| latency(s, |l| l.p99_9))),
    report("max", "latency_us.max", Count(|s| latency(s, |l| l.max))),
    report("mean", "latency_us.mean", Count(|s| latency(s, |l| l.mean))),
    report("stdev", "latency_us.stdev", Count(|s| latency(s, |l| l.stdev))),
    own("first_answer", Count(|s| Some(load(s)?.trace.first()?.latency_us))),
    own("mean_over_baseline", Real(|s| over_baseline(s, |s| latency(s, |l| l.mean)))),
    own("stdev_over_baseline", Real(|s| over_baseline(s, |s| latency(s, |l| l.stdev)))),
    report("connect_p99", "connect_us.p99", Count(|s| of_load(s, |r| &r.connect_us, |l| l.p99))),
    report("first_byte_p50", "first_byte_us.p50", Real(|s| of_load(s, |r| &r.first_byte_us, |l| l.p50))),
    report("first_byte_p99", "first_byte_us.p99", Real(|s| of_load(s, |r| &r.first_byte_us, |l| l.p99))),
    report("send_delay_p50", "send_delay_us.p50", Real(|s| of_load(s, |r| &r.send_delay_us, |l| l.p50))),
    report("send_delay_p99", "send_delay_us.p99", Real(|s| of_load(s, |r| &r.send_delay_us, |l| l.p99))),
    report("send_delay_p99_9", "send_delay_us.p99_9", Real(|s| of_load(s, |r| &r.send_delay_us, |l| l.p99_9))),
    // What went wrong.
    report("peak_open", "connections.peak_open", Count(|s| Some(load(s)?.connections.peak_open as f64))),
    report("timeouts", "errors.timeout", Count(timeouts)),
    report("served", "connections.answered", Count(|s| Some(load(s)?.connections.answered as f64))),
    own("stuck", Real(stuck)),
    own("lost", Real(lost)),
    own("resets", Count(resets)),
    report("answered", "requests", Count(|s| Some(load(s)?.requests as f64))),
    own("lost_requests", Count(|s| Some((load(s)?.lost.len() as u64 + load(s)?.lost_more) as f64))),
    report("retried", "retried", Count(|s| Some(load(s)?.retried as f64))),
    report("worst_second_p99", "worst_second.latency_us.p99", Count(|s| Some(load(s)?.worst_second?.latency_us.p99))),
    report("longest_silence", "longest_silence_ms", Count(|s| Some(load(s)?.longest_silence_ms? as f64))),
    // What it cost.
    own("server_cpu_per_request", Real(server_cpu_per_request)),
    own("client_cpu_per_request", Real(client_cpu_per_request)),
    own("client_cpu_over_baseline", Real(|s| over_baseline(s, client_cpu_per_request))),
    own("server_cpu_per_connection", Real(server_cpu_per_connection)),
    own("worker_cpu_per_connection", Real(|s| Some(server_cpu_per_connection(s)? - master_cpu_per_connection(s).unwrap_or(0.0)))),
    own("master_cpu_per_connection", Real(master_cpu_per_connection)),
    own("client_cpu_per_connection", Real(client_cpu_per_connection)),
    own("limit_2_cpus", Real(|s| limit_of_cpus(s, 2.0))),
    own("limit_64_cpus", Real(|s| limit_of_cpus(s, 64.0))),
    report("client_cpu_share", "client.cpu_share", Real(client_cpu_share)),
    report("client_max_rss", "client.max_rss_kib", Count(|s| Some(load(s)?.client.max_rss_kib as f64))),
    // Who got the connections.
    report("dispersion", "evenness.*.dispersion", Real(dispersion)),
    own("p_value", Pooled(pooled_p_value)),
    report("max_over_mean", "evenness.*.max_over_mean", Real(|s| Some(evenness(s.row)?.max_over_mean))),
    report("expected_max_over_mean", "evenness.*.expected_max_over_mean_if_random", Real(|s| Some(evenness(s.row)?.expected_max_over_mean_if_random))),
    own("answers_dispersion", Real(|s| Some(answers(s)?.dispersion))),
    own("answers_max_over_mean", Real(|s| Some(answers(s)?.max_over_mean))),
    own("top_two", Real(top_two)),
    own("max_over_min", Real(max_over_min)),
    own("max_minus_min", Count(max_minus_min)),
    own("bars", Picture { of: bars, median_by: dispersion_of_bars }),
    own("orders", Picture { of: orders, median_by: commonest_order }),
    own("run_ms", Real(|s| s.row.run_ms)),
    own("distinct_orders", Count(|s| Some(s.row.orders.len() as f64).filter(|orders| *orders > 0.0))),
    own("commonest_order", Real(commonest_order)),
    own("same_order", Real(same_order)),
    own("live", Picture { of: live, median_by: live_max_over_mean }),
    own("live_max_over_mean", Real(live_max_over_mean)),
    // What the kernel did for it.
    own("wakeups", Real(|s| per_connection(s, |w| w.wakeups))),
    own("empty_wakeups", Real(|s| per_connection(s, |w| w.empty_wakeups))),
    own("accept_eagain", Real(accept_eagain)),
    own("switches", Real(switches)),
    own("kernel_wakeups", Real(|s| observed(s, |c| c.wakeups))),
    own("kernel_switches", Real(|s| observed(s, |c| c.switches))),
    // What it occupies.
    own("processes", Count(|s| Some(s.row.footprint.as_ref()?.processes as f64))),
    own("threads", Count(|s| Some(s.row.footprint.as_ref()?.threads as f64))),
    own("fds", Count(|s| Some(s.row.footprint.as_ref()?.fds as f64))),
    own("master_fds", Count(master_fds)),
    own("pss", Count(|s| Some(s.row.footprint.as_ref()?.pss_kib as f64))),
    own("pss_per_connection", Real(pss_per_connection)),
    own("growth_rss", Count(|s| Some(s.row.growth?.rss_kib as f64))),
    own("growth_fds", Count(|s| Some(s.row.growth?.fds as f64))),
    own("zombies", Count(|s| Some(s.row.growth?.zombies as f64))),
    // What a master did to keep its workers alive.
    own("forks", Count(|s| Some(cluster(s)?.forks as f64))),
    own("deaths", Count(|s| Some(cluster(s)?.deaths as f64))),
    own("suicides", Count(|s| Some(cluster(s)?.suicides as f64))),
    own("hangs", Count(|s| Some(cluster(s)?.hangs as f64))),
    own("reloads", Count(|s| Some(cluster(s)?.reloads as f64))),
    own("reloads_failed", Count(|s| Some(cluster(s)?.reloads_failed as f64))),
    own("recovery_p50", Real(|s| Some(cluster(s)?.recovery_ms?.p50))),
    own("recovery_max", Real(|s| Some(cluster(s)?.recovery_ms?.max))),
    own("gave_up", Picture { of: gave_up, median_by: |s| cluster(s).map(|c| c.gave_up.into()) }),
    own("returned", Count(|s| Some(cluster(s)?.returned as f64))),
    // What the workers counted themselves, or the master for them.
    own("looks", Real(|s| per_second(s, counted_of(s, &["polls", "notifier_looks"])?))),
    own("idle_looks", Real(idle_looks)),
    own("pushes", Real(|s| per_second(s, counted(s, "notifier_pushes")?))),
    own("updates", Count(|s| counted(s, "updates"))),
    own("stale", Real(|s| Some(ratio(counted(s, "stale_us")?, counted(s, "updates")?)? / 1e3))),
    own("queries", Count(|s| counted(s, "queries"))),
    own("queries_per_expiry", Real(|s| ratio(counted(s, "queries")?, counted(s, "expiries")?))),
    // What a trial of a process manager has measured.
    own("trial_answered", Count(|s| trial(s, "trial_answered"))),
    own("lost_kept_alive", Count(|s| trial(s, "lost_kept_alive"))),
    own("retried_kept_alive", Count(|s| trial(s, "retried_kept_alive"))),
    own("lost_new_connections", Count(|s| trial(s, "lost_new_connections"))),
    own("reload_s", Real(|s| trial(s, "reload_s"))),
    own("reloads_refused", Count(|s| trial(s, "reloads_refused"))),
    own("old_answers", Real(|s| trial(s, "old_answers"))),
    own("crash_loops", Count(|s| trial(s, "crash_loops"))),
    own("given_up", Count(|s| trial(s, "given_up"))),
    own("most_starts", Count(|s| trial(s, "most_starts"))),
    own("lines_written", Count(|s| trial(s, "lines_written"))),
    own("lines_per_minute", Count(|s| trial(s, "lines_per_minute"))),
    own("lines_lost", Count(|s| trial(s, "lines_lost"))),
    own("lines_broken", Count(|s| trial(s, "lines_broken"))),
    own("lines_out_of_order", Count(|s| trial(s, "lines_out_of_order"))),
    own("log_rotations", Count(|s| trial(s, "log_rotations"))),
    own("daemon_rss_mib", Real(|s| trial(s, "daemon_rss_mib"))),
    own("daemon_growth_mib", Real(|s| trial(s, "daemon_growth_mib"))),
    own("over_limit_s", Real(|s| trial(s, "over_limit_s"))),
    own("still_over", Count(|s| trial(s, "still_over"))),
    own("adopted", Real(|s| trial(s, "adopted"))),
    own("variables_wrong", Count(|s| trial(s, "variables_wrong"))),
    own("variables_left", Count(|s| trial(s, "variables_left"))),
    own("kills", Count(|s| trial(s, "kills"))),
    own("dumps_damaged", Count(|s| trial(s, "dumps_damaged"))),
    own("lists_incomplete", Count(|s| trial(s, "lists_incomplete"))),
    own("sockets", Count(|s| trial(s, "sockets"))),
    own("sockets_open", Count(|s| trial(s, "sockets_open"))),
    own("strangers_admitted", Count(|s| trial(s, "strangers_admitted"))),
    own("keys_read", Count(|s| trial(s, "keys_read"))),
    own("keys_wrong", Count(|s| trial(s, "keys_wrong"))),
    own("answer_p50_ms", Real(|s| trial(s, "answer_p50_ms"))),
    own("answer_p99_ms", Real(|s| trial(s, "answer_p99_ms"))),
    own("daemon_wakeups", Real(|s| trial(s, "daemon_wakeups"))),
    own("list_ms", Real(|s| trial(s, "list_ms"))),
    own("restart_ms", Real(|s| trial(s, "restart_ms"))),
    own("start_ms", Count(|s| trial(s, "start_ms"))),
    own("start_all_ms", Count(|s| trial(s, "start_all_ms"))),
    // What a trial of `lab inspect` has measured.
    own("unwatched_qps", Count(|s| trial(s, "unwatched_qps"))),
    own("watched_cost", Real(|s| trial(s, "watched_cost"))),
    own("watched_cpu_cost", Real(|s| trial(s, "watched_cpu_cost"))),
    own("looker_cpu", Real(|s| trial(s, "looker_cpu"))),
    own("connections_seen", Count(|s| trial(s, "connections_seen"))),
    own("processes_seen", Count(|s| trial(s, "processes_seen"))),
    own("first_look_ms", Real(|s| trial(s, "first_look_ms"))),
    own("look_ms", Real(|s| trial(s, "look_ms"))),
    // What the trial of a complaint has measured.
    own("busiest_before", Real(|s| trial(s, "busiest_before"))),
    own("busiest_after", Real(|s| trial(s, "busiest_after"))),
    own("stuck_before", Real(|s| trial(s, "stuck_before"))),
    own("stuck_after", Real(|s| trial(s, "stuck_after"))),
    own("connect_before_ms", Real(|s| trial(s, "connect_before_ms"))),
    own("connect_after_ms", Real(|s| trial(s, "connect_after_ms"))),
    own("switches_before", Real(|s| trial(s, "switches_before"))),
    own("switches_after", Real(|s| trial(s, "switches_after"))),
    own("diagnosed", Count(|s| trial(s, "diagnosed"))),
    own("advised", Count(|s| trial(s, "advised"))),
    own("found_after", Count(|s| trial(s, "found_after"))),
    // What an examination of `lab inspect` has found.
    own("cases", Count(|s| trial(s, "cases"))),
    own("mechanism_right", Real(|s| trial(s, "mechanism_right"))),
    own("healthy_called_hung", Count(|s| trial(s, "healthy_called_hung"))),
    own("hung_found", Real(|s| trial(s, "hung_found"))),
    own("hung_found_s", Real(|s| trial(s, "hung_found_s"))),
    own("findings_right", Real(|s| trial(s, "findings_right"))),
    // What `lab steer` does for a server, and what it costs.
    own("steer_connections", Count(|s| trial(s, "steer_connections"))),
    own("steer_stuck", Real(|s| trial(s, "steer_stuck"))),
    own("steer_open", Real(|s| trial(s, "steer_open"))),
    own("steer_spread", Real(|s| trial(s, "steer_spread"))),
    own("steer_spread_chance", Real(|s| trial(s, "steer_spread_chance"))),
    own("rate_unsteered", Count(|s| trial(s, "rate_unsteered"))),
    own("rate_steered", Count(|s| trial(s, "rate_steered"))),
    own("rate_ratio", Real(|s| trial(s, "rate_ratio"))),
    // Who serves a server's connections, seen by `lab inspect` and said by the answers.
    own("served_by_accepts", Real(|s| trial(s, "served_by_accepts"))),
    own("served_d", Real(|s| trial(s, "served_d"))),
    own("served_p", Real(|s| trial(s, "served_p"))),
    own("served_by_cpu", Real(|s| trial(s, "served_by_cpu"))),
    own("served_by_answers", Real(|s| trial(s, "served_by_answers"))),
    own("served_difference", Count(|s| trial(s, "served_difference"))),
];

fn load<'a>(sample: Sample<'a>) -> Option<&'a LoadReport> {
    sample.row.load.as_ref()
}

pub fn qps(sample: Sample) -> Option<f64> {
    load(sample).map(|report| report.qps).or(sample.row.foreign.as_ref().map(|foreign| foreign.qps))
}

fn law_qps(sample: Sample) -> Option<f64> {
    let row = sample.row;
    let law = Law::parse(row.law.as_ref()?).ok()?;
    law.predict(&row.server_command, &row.client_command, row.server_cpus.len())
}

fn deviation(sample: Sample) -> Option<f64> {
    let law = law_qps(sample)?;
    Some(100.0 * (qps(sample)? - law) / law)
}

fn over_baseline(sample: Sample, of: fn(Sample) -> Option<f64>) -> Option<f64> {
    ratio(of(sample)?, of(Sample { row: sample.baseline?, baseline: None })?)
}

/// Connections are counted over the whole run, so the requests beside them must be too.
fn connections_per_request(report: &LoadReport) -> Option<f64> {
    let requests = report.requests + report.outside_window.warmup + report.outside_window.late;
    ratio(report.connections.established as f64, requests as f64)
}

fn connections_per_s(sample: Sample) -> Option<f64> {
    Some(load(sample)?.qps * connections_per_request(load(sample)?)?)
}

fn latency(sample: Sample, of: fn(&Latency) -> f64) -> Option<f64> {
    if let Some(foreign) = &sample.row.foreign {
        let or_nan = |us: Option<f64>| us.unwrap_or(f64::NAN);
        let known = Latency {
            p50: or_nan(foreign.p50_us),
            p90: or_nan(foreign.p90_us),
            p99: or_nan(foreign.p99_us),
            p99_9: or_nan(foreign.p99_9_us),
            max: or_nan(foreign.max_us),
            mean: or_nan(foreign.mean_us),
            stdev: f64::NAN,
        };
        return Some(of(&known)).filter(|value| !value.is_nan());
    }
    measured(&load(sample)?.latency_us, of)
}

/// One of the distributions that only loadgen has.
fn of_load(sample: Sample, which: fn(&LoadReport) -> &Latency, of: fn(&Latency) -> f64) -> Option<f64> {
    measured(which(load(sample)?), of)
}

/// A distribution without a value is all zero; that is not a measurement.
fn measured(latency: &Latency, of: fn(&Latency) -> f64) -> Option<f64> {
    (latency.max > 0.0).then(|| of(latency))
}

fn timeouts(sample: Sample) -> Option<f64> {
    let foreign = sample.row.foreign.as_ref().map(|foreign| foreign.timeouts);
    load(sample).map(|report| report.errors.timeout).or(foreign).map(|count| count as f64)
}

/// Errors that left a request without an answer. A status outside 2xx is an answer.
fn unanswered(report: &LoadReport) -> u64 {
    report.errors.total() - report.errors.status.values().sum::<u64>()
}

/// What `stuck` and `lost` are shares of: answered in the measured window, answered after it, without an answer.
fn answered_or_not(report: &LoadReport) -> f64 {
    (report.requests + report.outside_window.late + unanswered(report)) as f64
}

fn stuck(sample: Sample) -> Option<f64> {
    ratio(100.0 * load(sample)?.errors.timeout as f64, answered_or_not(load(sample)?))
}

fn lost(sample: Sample) -> Option<f64> {
    ratio(100.0 * unanswered(load(sample)?) as f64, answered_or_not(load(sample)?))
}

fn resets(sample: Sample) -> Option<f64> {
    let errors = &load(sample)?.errors;
    let names = [&errors.connect, &errors.write, &errors.read];
    Some(names.iter().flat_map(|names| names.values()).sum::<u64>() as f64)
}

fn cluster(sample: Sample<'_>) -> Option<&ClusterReport> {
    sample.row.server.as_ref()?.cluster.as_ref()
}

fn gave_up(row: &Row) -> Option<String> {
    let gave_up = row.server.as_ref()?.cluster.as_ref()?.gave_up;
    Some(if gave_up { "yes" } else { "no" }.to_string())
}

/// What workers have counted by this name; `None` when none has.
fn counted(sample: Sample, name: &str) -> Option<f64> {
    cluster(sample)?.counts.get(name).copied()
}

fn counted_of(sample: Sample, names: &[&str]) -> Option<f64> {
    names.iter().filter_map(|name| counted(sample, name)).reduce(|a, b| a + b)
}

fn trial(sample: Sample, key: &str) -> Option<f64> {
    sample.row.trial.as_ref()?.numbers.get(key).copied()
}

fn per_second(sample: Sample, count: f64) -> Option<f64> {
    ratio(count, sample.row.server.as_ref()?.uptime_s)
}

fn idle_looks(sample: Sample) -> Option<f64> {
    ratio(100.0 * counted(sample, "idle_polls")?, counted(sample, "polls")?)
}

/// CPU time per request in the client's window: both as rates, because the lab's window is not exactly the client's.
fn in_the_window(sample: Sample, of: fn(&CpuWindow) -> u64) -> Option<f64> {
    let window = sample.row.cpu.as_ref()?;
    ratio(1e6 * of(window) as f64 / window.length_us as f64, load(sample)?.qps)
}

/// Where no window is known: of the whole run, like the counts that it is divided by.
fn server_cpu_us(row: &Row) -> Option<f64> {
    if let Some(cpu_us) = row.observed.as_ref().and_then(|observed| observed.total(|counts| counts.cpu_us)) {
        return Some(cpu_us as f64);
    }
    let master = row.server.as_ref()?.master.as_ref().map_or(0, |m| m.cpu_user_us + m.cpu_system_us);
    Some((row.workers_total(|w| w.cpu_user_us + w.cpu_system_us)? + master) as f64)
}

fn server_cpu_per_request(sample: Sample) -> Option<f64> {
    if let Some(cpu_us) = in_the_window(sample, |window| window.cpu_us) {
        return Some(cpu_us);
    }
    let (_, requests) = accounting::counted_by_server(sample.row)?;
    ratio(server_cpu_us(sample.row)?, requests.or_else(|| accounting::answers_read(sample.row))? as f64)
}

fn server_cpu_per_connection(sample: Sample) -> Option<f64> {
    if let Some(cpu_us) = in_the_window(sample, |window| window.cpu_us) {
        return ratio(cpu_us, connections_per_request(load(sample)?)?);
    }
    let (accepted, _) = accounting::counted_by_server(sample.row)?;
    let established = || Some(load(sample)?.connections.established);
    ratio(server_cpu_us(sample.row)?, accepted.or_else(established)? as f64)
}

/// The CPU time of the master only, in µs per connection.
fn master_cpu_per_connection(sample: Sample) -> Option<f64> {
    let report = sample.row.server.as_ref()?;
    let master = report.master.as_ref()?;
    if report.workers.iter().any(|worker| worker.pid == master.pid) {
        // Threads of one process: the kernel's counts are of all of them together.
        let own = (master.cpu_user_us + master.cpu_system_us) as f64;
        let workers = sample.row.workers_total(|worker| worker.cpu_user_us + worker.cpu_system_us)? as f64;
        return Some(server_cpu_per_connection(sample)? * ratio(own, own + workers)?);
    }
    if let Some(cpu_us) = in_the_window(sample, |window| window.first_us) {
        return ratio(cpu_us, connections_per_request(load(sample)?)?);
    }
    let observed = sample.row.observed.as_ref().filter(|observed| observed.missing.is_none());
    let its = |counts: &&ProcessCounts| counts.pid == master.pid;
    let meanwhile = observed.and_then(|observed| observed.processes.iter().find(its)?.cpu_us);
    let cpu_us = meanwhile.unwrap_or(master.cpu_user_us + master.cpu_system_us);
    ratio(cpu_us as f64, load(sample)?.connections.established as f64)
}

/// What the CPU times allow: all of them together on the CPUs, and those of one acceptor on one CPU.
fn limit_of_cpus(sample: Sample, cpus: f64) -> Option<f64> {
    let of_all = ratio(1e6 * cpus, server_cpu_per_connection(sample)?)?;
    let of_acceptor = master_cpu_per_connection(sample).and_then(|cpu_us| ratio(1e6, cpu_us));
    ratio(of_acceptor.map_or(of_all, |rate| rate.min(of_all)), connections_per_request(load(sample)?)?)
}

fn master_fds(sample: Sample) -> Option<f64> {
    sample.row.server.as_ref()?.master.as_ref()?;
    Some(sample.row.footprint.as_ref()?.master_fds? as f64)
}

fn client_cpu_per_request(sample: Sample) -> Option<f64> {
    if let Some(foreign) = &sample.row.foreign {
        return ratio(foreign.cpu_us as f64, foreign.requests as f64);
    }
    let report = load(sample)?;
    ratio((report.client.cpu_user_us + report.client.cpu_system_us) as f64, report.requests as f64)
}

fn client_cpu_per_connection(sample: Sample) -> Option<f64> {
    ratio(client_cpu_per_request(sample)?, connections_per_request(load(sample)?)?)
}

fn client_cpu_share(sample: Sample) -> Option<f64> {
    // A foreign client's threads are one here: the tables start it so, like loadgen.
    let share = |foreign: &ForeignReport| ratio(foreign.cpu_us as f64 / 1e6, foreign.duration_s);
    load(sample).map(|report| report.client.cpu_share).or(sample.row.foreign.as_ref().and_then(share))
}

/// The evenness of all workers, also of those that answered nothing, where their number is known; otherwise as loadgen
/// saw it.
fn evenness(row: &Row) -> Option<Evenness> {
    let of_all = connections_per_worker(row).map(|counts| evenness::measure(&counts));
    let of_loadgen = || Some(row.load.as_ref()?.evenness.as_ref()?.connections.clone());
    of_all.or_else(of_loadgen).filter(|evenness| evenness.n > 0)
}

/// X² and the degrees of freedom of independent runs add up (Fisher, Statistical Methods for Research Workers, 1925, §
/// 20), also where another worker is the busiest in each. With few connections per worker the sum is closer to
/// chi-square than its parts.
fn pooled_p_value(samples: &[Sample]) -> Option<f64> {
    let runs = samples.iter().filter_map(|sample| evenness(sample.row));
    let comparable = runs.filter(|run| run.workers > 1);
    let degrees = comparable.map(|run| (run.dispersion, (run.workers - 1) as f64));
    let (x, degrees) = degrees.fold((0.0, 0.0), |(x, sum), (d, degrees)| (x + d * degrees, sum + degrees));
    (degrees > 0.0).then(|| stats::two_sided_chi_square(x, degrees))
}

/// Connections by worker as the client counted them, with workers that answered nothing; `None` when all did so.
pub fn connections_per_worker(row: &Row) -> Option<Vec<u64>> {
    per_worker(row, |share| share.connections)
}

fn answers(sample: Sample) -> Option<Evenness> {
    per_worker(sample.row, |share| share.requests).map(|counts| evenness::measure(&counts))
}

fn per_worker(row: &Row, counted: fn(&WorkerShare) -> u64) -> Option<Vec<u64>> {
    if row.workers_folded.is_some() {
        return None;
    }
    let report = row.load.as_ref()?;
    // A worker that answered nothing is in the server's report only.
    let all = row.server.iter().flat_map(|server| &server.workers);
    let mut counts: BTreeMap<usize, u64> = all.map(|worker| (worker.id, 0)).collect();
    for (worker, share) in &report.workers {
        counts.insert(worker.parse().ok()?, counted(share));
    }
    let mut counts: Vec<u64> = counts.into_values().collect();
    if row.server.is_none() {
        // Of a server of another project we know how many workers it was to have, and not their numbers.
        counts.resize(counts.len().max(row.server_command.workers.unwrap_or(0)), 0);
    }
    Some(counts).filter(|counts| counts.iter().any(|count| *count > 0))
}

fn max_over_min(sample: Sample) -> Option<f64> {
    let counts = connections_per_worker(sample.row)?;
    ratio(*counts.iter().max()? as f64, *counts.iter().min()? as f64)
}

fn max_minus_min(sample: Sample) -> Option<f64> {
    let counts = connections_per_worker(sample.row)?;
    Some((counts.iter().max()? - counts.iter().min()?) as f64)
}

fn top_two(sample: Sample) -> Option<f64> {
    let mut counts = connections_per_worker(sample.row)?;
    counts.sort_by(|a, b| b.cmp(a));
    ratio(100.0 * counts.iter().take(2).sum::<u64>() as f64, counts.iter().sum::<u64>() as f64)
}

/// The run whose number is the median, the lower one of two.
pub fn median_run<'a>(samples: &[Sample<'a>], number: fn(Sample) -> Option<f64>) -> Option<&'a Row> {
    let mut ranked: Vec<(f64, &Row)> =
        samples.iter().filter_map(|sample| Some((number(*sample)?, sample.row))).collect();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (_, row) = ranked.get(ranked.len().checked_sub(1)? / 2)?;
    Some(row)
}

/// The connections by worker that stand for a row: those of one run, which the column `bars` shows, too.
pub fn connections_of_median_run(rows: &[&Row]) -> Option<Vec<u64>> {
    let samples: Vec<Sample> = rows.iter().map(|row| Sample { row, baseline: None }).collect();
    connections_per_worker(median_run(&samples, dispersion_of_bars)?)
}

fn dispersion(sample: Sample) -> Option<f64> {
    Some(evenness(sample.row)?.dispersion)
}

/// Only of a run that has bars: another may not be chosen to show them.
fn dispersion_of_bars(sample: Sample) -> Option<f64> {
    connections_per_worker(sample.row).and_then(|_| dispersion(sample))
}

/// `█▇▅ 2503 2417 1580`: eighths of the busiest worker's count, then the counts.
fn bars(row: &Row) -> Option<String> {
    let counts = connections_per_worker(row)?;
    let most = *counts.iter().max()?;
    let picture: String = counts.iter().map(|count| step(*count as f64, most as f64)).collect();
    let numbers: Vec<String> = counts.iter().map(u64::to_string).collect();
    Some(format!("{picture} {}", numbers.join(" ")))
}

/// `timer, immediate 62 %; immediate, timer 38 %`.
fn orders(row: &Row) -> Option<String> {
    let all: u64 = row.orders.values().sum();
    let mut orders: Vec<(&String, &u64)> = row.orders.iter().collect();
    orders.sort_by_key(|(_, times)| Reverse(**times));
    let share = |times: u64| numbers::real(100.0 * times as f64 / all as f64);
    let orders: Vec<String> = orders.into_iter().map(|(order, times)| format!("{order} {} %", share(*times))).collect();
    (!orders.is_empty()).then(|| orders.join("; "))
}

fn commonest_order(sample: Sample) -> Option<f64> {
    let orders = &sample.row.orders;
    ratio(100.0 * orders.values().copied().max()? as f64, orders.values().sum::<u64>() as f64)
}

fn same_order(sample: Sample) -> Option<f64> {
    let (commonest, _) = sample.baseline?.orders.iter().max_by_key(|(_, times)| **times)?;
    let orders = &sample.row.orders;
    ratio(100.0 * orders.get(commonest).copied().unwrap_or(0) as f64, orders.values().sum::<u64>() as f64)
}

/// `▃▄▅▆ ▃▃▃▂`: a group for each worker, a bar for each look.
fn live(row: &Row) -> Option<String> {
    let most = row.timeline.iter().flat_map(|look| &look.active).copied().max().filter(|most| *most > 0)?;
    let workers = row.timeline.first()?.active.len();
    let of = |worker: usize| row.timeline.iter().map(move |look| look.active.get(worker).copied().unwrap_or(0));
    let line = |worker: usize| of(worker).map(|active| step(active as f64, most as f64)).collect::<String>();
    Some((0..workers).map(line).collect::<Vec<_>>().join(" "))
}

fn live_max_over_mean(sample: Sample) -> Option<f64> {
    let worst = |active: &[u64]| {
        let mean = active.iter().sum::<u64>() as f64 / active.len() as f64;
        ratio(active.iter().copied().max()? as f64, mean)
    };
    // While connections come or go, the first or the last worker has all of them.
    let total = |look: &Snapshot| look.active.iter().sum::<u64>();
    let most = sample.row.timeline.iter().map(total).max()?;
    let settled = sample.row.timeline.iter().filter(|look| 2 * total(look) >= most);
    settled.filter_map(|look| worst(&look.active)).max_by(f64::total_cmp)
}

fn per_connection(sample: Sample, of: fn(&WorkerReport) -> u64) -> Option<f64> {
    ratio(sample.row.workers_total(of)? as f64, sample.row.workers_total(|w| w.accepted)? as f64)
}

fn accept_eagain(sample: Sample) -> Option<f64> {
    let master = sample.row.server.as_ref()?.master.as_ref().and_then(|master| master.accepts);
    let master = master.map_or(0, |accepts| accepts.accept_eagain);
    let workers = sample.row.workers_total(|w| w.accept_eagain)?;
    ratio((workers + master) as f64, sample.row.workers_total(|w| w.accepted)? as f64)
}

/// What the kernel counted while the client ran.
fn observed(sample: Sample, of: fn(&ProcessCounts) -> Option<u64>) -> Option<f64> {
    let total = sample.row.observed.as_ref()?.total(of)?;
    // A server of another project has no report.
    let established = || Some(load(sample)?.connections.established);
    ratio(total as f64, sample.row.workers_total(|w| w.accepted).or_else(established)? as f64)
}

/// Those of whole lives where the kernel's counts are missing.
fn switches(sample: Sample) -> Option<f64> {
    if let Some(counted) = observed(sample, |c| Some(c.voluntary_switches)) {
        return Some(counted);
    }
    let master = sample.row.server.as_ref()?.master.as_ref().map_or(0, |m| m.voluntary_switches);
    let workers = sample.row.workers_total(|w| w.voluntary_switches)?;
    ratio((workers + master) as f64, sample.row.workers_total(|w| w.accepted)? as f64)
}

fn pss_per_connection(sample: Sample) -> Option<f64> {
    let occupied = |row: &Row| {
        let open = row.load.as_ref()?.connections.peak_open;
        Some((row.footprint.as_ref()?.pss_kib as f64, open as f64))
    };
    let (pss, open) = occupied(sample.row)?;
    let (pss_before, open_before) = occupied(sample.baseline?)?;
    ratio(pss - pss_before, open - open_before)
}

fn ratio(a: f64, b: f64) -> Option<f64> {
    (b > 0.0).then(|| a / b)
}

#[cfg(test)]
pub(crate) mod tests;
