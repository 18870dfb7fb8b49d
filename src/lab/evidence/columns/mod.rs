//! The one dictionary of columns: what a header means, in which unit, and how it comes out of a row. Whatever a
//! table prints is defined here; `lab explain` and the notes below each table print the definitions.

use crate::lab::evidence::books;
use crate::lab::observe::kernel_counts::Counts;
use crate::lab::observe::timeline::Look;
use crate::lab::plan::laws::Law;
use crate::lab::record::Row;
use crate::lab::run::foreign::ForeignReport;
use crate::report::{ClusterReport, Evenness, Latency, LoadReport, WorkerReport};
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
    /// As the table prints it, with the unit.
    pub header: &'static str,
    /// One sentence: definition or formula.
    pub definition: &'static str,
    pub value: Value,
}

/// How a cell comes out of a row; `None` prints as –.
pub enum Value {
    /// Whole numbers.
    Count(fn(Sample) -> Option<f64>),
    Real(fn(Sample) -> Option<f64>),
    /// Never printed as 0: what was measured cannot be impossible.
    Probability(fn(Sample) -> Option<f64>),
    /// One run's picture: that of the run with the median of the number.
    Picture {
        of: fn(&Row) -> Option<String>,
        median_by: fn(Sample) -> Option<f64>,
    },
}

pub fn find(name: &str) -> Option<&'static Column> {
    COLUMNS.iter().find(|column| column.name == name)
}

use Value::{Count, Picture, Probability, Real};

const fn column(name: &'static str, header: &'static str, value: Value, definition: &'static str) -> Column {
    Column { name, header, definition, value }
}

// A dictionary is read entry by entry, two lines each.
#[rustfmt::skip]
pub static COLUMNS: &[Column] = &[
    // How much.
    column("qps", "requests/s", Count(qps),
        "requests answered in the measured window over its length"),
    column("law_qps", "law requests/s", Count(law_qps),
        "what the law promises (`lab explain`), with the N, M, C and P of the command lines"),
    column("deviation", "deviation %", Real(deviation),
        "100 · (requests/s − law) / law"),
    column("share_of_baseline", "share of baseline", Real(share_of_baseline),
        "requests/s over those of the baseline's run directly before or after"),
    column("connections_per_s", "connections/s", Count(connections_per_s),
        "requests/s times connections opened per answered request"),
    // How long.
    column("p50", "p50 µs", Count(|s| latency(s, |l| l.p50)),
        "median response time; in open loop from the moment the request was due"),
    column("p90", "p90 µs", Count(|s| latency(s, |l| l.p90)),
        "90 % of the response times are no longer; a request that failed or was given up is in it at its age then"),
    column("p99", "p99 µs", Count(|s| latency(s, |l| l.p99)),
        "99 % of the response times are no longer; a request that failed or was given up is in it at its age then"),
    column("p99_9", "p99.9 µs", Count(|s| latency(s, |l| l.p99_9)),
        "99.9 % of the response times are no longer; a request that failed or was given up is in it at its age then"),
    column("max", "max µs", Count(|s| latency(s, |l| l.max)),
        "longest response time, or wait of a request that failed or was given up"),
    column("mean", "mean µs", Count(|s| latency(s, |l| l.mean)),
        "mean response time; a request that failed or was given up is in it at its age then"),
    column("stdev", "stdev µs", Count(|s| latency(s, |l| l.stdev)),
        "standard deviation of the response times"),
    column("mean_over_baseline", "mean over baseline", Real(|s| latency_over_baseline(s, |l| l.mean)),
        "mean response time over that of the baseline's run"),
    column("stdev_over_baseline", "stdev over baseline", Real(|s| latency_over_baseline(s, |l| l.stdev)),
        "standard deviation of the response times over that of the baseline's run"),
    column("connect_p99", "connect p99 µs", Count(|s| of_load(s, |r| &r.connect_us, |l| l.p99)),
        "99 % of the connections were established no later"),
    column("first_byte_p50", "first byte p50 µs", Real(|s| of_load(s, |r| &r.first_byte_us, |l| l.p50)),
        "median time from the moment a request was sent to the first byte of its answer"),
    column("first_byte_p99", "first byte p99 µs", Real(|s| of_load(s, |r| &r.first_byte_us, |l| l.p99)),
        "99 % of the times to the first byte are no longer"),
    column("slip_p50", "slip p50 µs", Real(|s| of_load(s, |r| &r.slip_us, |l| l.p50)),
        "median send slip: how much later than due the client sent a request"),
    column("slip_p99", "slip p99 µs", Real(|s| of_load(s, |r| &r.slip_us, |l| l.p99)),
        "99 % of the requests were sent no later after they were due"),
    column("slip_p99_9", "slip p99.9 µs", Real(|s| of_load(s, |r| &r.slip_us, |l| l.p99_9)),
        "99.9 % of the requests were sent no later after they were due"),
    // What went wrong.
    column("peak_open", "connections open", Count(|s| Some(load(s)?.connections.peak_open as f64)),
        "the most connections the client had open at one time"),
    column("timeouts", "timeouts", Count(timeouts),
        "requests that never got an answer"),
    column("served", "connections served", Count(served),
        "connections that got at least one answer"),
    column("stuck", "stuck %", Real(stuck),
        "100 · requests that got no answer within the client's time-out, over those that were due since the measurement began"),
    column("lost", "lost %", Real(lost),
        "100 · requests without an answer for whatever reason (reset, refused, timed out), over those that were due since the measurement began"),
    column("resets", "resets", Count(resets),
        "connections that ended with an error of the network or without an answer, before the time-out"),
    column("answered", "answered", Count(|s| Some(load(s)?.requests as f64)),
        "requests answered in the measured window"),
    column("lost_requests", "lost requests", Count(lost_requests),
        "requests of the whole run that were due or sent and never answered, for whatever reason; the row names each (`lost`), the first ten thousand of them"),
    column("retried", "retried", Count(|s| Some(load(s)?.retried as f64)),
        "requests sent once more on a new connection (`--retry`), because the server had closed the old one before any byte of the answer, as a server may between two requests (RFC 9112, 9.3.1)"),
    column("worst_second_p99", "worst second p99 µs", Count(|s| Some(load(s)?.worst_second?.latency_us.p99)),
        "the p99 of the response times within the second of the measured window in which it was highest"),
    column("longest_silence", "longest silence ms", Count(|s| Some(load(s)?.longest_silence_ms? as f64)),
        "the longest part of the measured window in which no answer was complete"),
    // What it cost.
    column("server_cpu_per_request", "server CPU µs/request", Real(server_cpu_per_request),
        "CPU time of all workers and the master, user and system, over the requests they answered (where they do not count them: that the client read); from ready to the client's end, or over whole lives as for switches"),
    column("client_cpu_per_request", "client CPU µs/request", Real(client_cpu_per_request),
        "CPU time of the client over its requests, both of the measured window (of `wrk` and `oha`, which have no warm-up: of the whole run)"),
    column("client_cpu_over_baseline", "client CPU over baseline", Real(client_cpu_over_baseline),
        "client CPU per request over that of the baseline's run directly before or after"),
    column("server_cpu_per_connection", "server CPU µs/connection", Real(server_cpu_per_connection),
        "CPU time of all workers and the master over the connections they accepted (where they do not count them: that the client established); from ready to the client's end, or over whole lives as for switches"),
    column("master_cpu_per_connection", "master CPU µs/connection", Real(master_cpu_per_connection),
        "CPU time of the process that only accepts, passes or supervises, over the connections the client established; from ready to the client's end, or over its whole life where a task of the server ended between"),
    column("client_cpu_per_connection", "client CPU µs/connection", Real(client_cpu_per_connection),
        "client CPU per request times answered requests per connection opened"),
    column("client_cpu_share", "client CPU share", Real(client_cpu_share),
        "CPU time of the client over the time its threads had: 1.0 is a client that could not do more"),
    column("client_max_rss", "client max RSS KiB", Count(|s| Some(load(s)?.client.max_rss_kib as f64)),
        "the most memory the client had resident at one time (ru_maxrss, which outlives execve(2): the few MiB of the lab that became the client are the least it can show)"),
    // Who got the connections.
    column("dispersion", "D", Real(|s| evenness(s, |e| e.dispersion)),
        "dispersion index of connections per worker, X²/(k − 1): about 0 for round robin, about 1 for chance, far above 1 for a pile-up"),
    column("p_value", "p", Probability(|s| evenness(s, |e| e.p_value)),
        "probability, both tails, of a D at least as far off if every worker were equally likely"),
    column("max_over_mean", "max/mean", Real(|s| evenness(s, |e| e.max_over_mean)),
        "connections of the busiest worker over the mean"),
    column("expected_max_over_mean", "max/mean by chance", Real(|s| evenness(s, |e| e.expected_max_over_mean_if_random)),
        "what max/mean would be if every worker were equally likely"),
    column("top_two", "two busiest %", Real(top_two),
        "100 · connections of the two busiest workers over those of all"),
    column("max_minus_min", "max − min", Count(max_minus_min),
        "connections of the busiest worker less those of the idlest"),
    column("bars", "connections per worker", Picture { of: bars, median_by: |s| evenness(s, |e| e.dispersion) },
        "connections that were answered, by the worker that answered (client's book), of the run with the median D, workers 0, 1, 2, …; a bar's height is the share of the busiest"),
    column("live", "live connections over time", Picture { of: live, median_by: live_max_over_mean },
        "live connections of each worker at up to eight moments, from left to right, of the run with the median live max/mean; heights are shares of the largest"),
    column("live_max_over_mean", "live max/mean", Real(live_max_over_mean),
        "the worst moment: live connections of the busiest worker over the mean, while at least half of the most connections were open"),
    // What the kernel did for it.
    column("wakeups", "wake-ups/connection", Real(|s| per_connection(s, |w| w.wakeups)),
        "returns to user space about the listening socket, over connections accepted"),
    column("empty_wakeups", "empty wake-ups/connection", Real(|s| per_connection(s, |w| w.empty_wakeups)),
        "those that found nothing to accept, over connections accepted"),
    column("accept_eagain", "EAGAIN/connection", Real(accept_eagain),
        "accepts that returned EAGAIN, of the workers and of a master that accepts for them, over connections accepted: empty wake-ups, and the last look of who takes all there is"),
    column("switches", "switches/connection", Real(switches),
        "voluntary context switches of all tasks of the server, over connections accepted; counted from ready to the client's end, or over whole lives where a task ended between (and in records older than this count)"),
    column("kernel_wakeups", "kernel wake-ups/connection", Real(|s| observed(s, |c| c.wakeups)),
        "passages of the tracepoint sched:sched_wakeup for any task of the server, over connections accepted: what the kernel woke, whether or not it came back to user space"),
    column("kernel_switches", "kernel switches/connection", Real(|s| observed(s, |c| c.switches)),
        "passages of sched:sched_switch away from any task of the server, voluntary or not, over connections accepted; the filters take CPU time while the tracepoints are counted"),
    // What it occupies.
    column("processes", "processes", Count(|s| Some(s.row.footprint.as_ref()?.processes as f64)),
        "processes of the server while the connections are open"),
    column("threads", "threads", Count(|s| Some(s.row.footprint.as_ref()?.threads as f64)),
        "threads of the server while the connections are open, one per process included"),
    column("fds", "descriptors", Count(|s| Some(s.row.footprint.as_ref()?.fds as f64)),
        "open file descriptors of all its processes"),
    column("master_fds", "master's descriptors", Count(master_fds),
        "open file descriptors of the process that only accepts, passes or supervises, while the connections are open"),
    column("pss", "PSS KiB", Count(|s| Some(s.row.footprint.as_ref()?.pss_kib as f64)),
        "proportional set size of all its processes: user memory, shared pages divided among their users; kernel memory is not in it"),
    column("pss_per_connection", "added PSS KiB/connection", Real(pss_per_connection),
        "PSS beyond the baseline's over connections open beyond the baseline's"),
    column("growth_rss", "growth KiB", Count(|s| Some(s.row.growth?.rss_kib as f64)),
        "resident memory of the server's first process at the end of the measurement, less that at the beginning"),
    column("growth_fds", "growth descriptors", Count(|s| Some(s.row.growth?.fds as f64)),
        "its open file descriptors at the end, less those at the beginning; workers in the act of being replaced are in both"),
    column("zombies", "growth zombies", Count(|s| Some(s.row.growth?.zombies as f64)),
        "its children that have ended and were not reaped at the end, less those at the beginning"),
    // What a master did to keep its workers alive.
    column("forks", "started", Count(|s| Some(cluster(s)?.forks as f64)),
        "worker processes started, the first ones included"),
    column("deaths", "deaths", Count(|s| Some(cluster(s)?.deaths as f64)),
        "workers that ended though nobody had asked them to and they had not said that they would"),
    column("suicides", "suicides", Count(|s| Some(cluster(s)?.suicides as f64)),
        "workers that said they would end"),
    column("hangs", "hangs", Count(|s| Some(cluster(s)?.hangs as f64)),
        "times that a worker was found to give no sign of life"),
    column("reloads", "reloads", Count(|s| Some(cluster(s)?.reloads as f64)),
        "reloads that replaced every worker"),
    column("reloads_failed", "failed reloads", Count(|s| Some(cluster(s)?.reloads_failed as f64)),
        "reloads that were abandoned, because a new worker did not serve"),
    column("recovery_p50", "recovery p50 ms", Real(|s| Some(cluster(s)?.recovery_ms?.p50)),
        "median time from a death, or from the word that one would end, to the moment its successor listened"),
    column("recovery_max", "recovery max ms", Real(|s| Some(cluster(s)?.recovery_ms?.max)),
        "the longest of these times"),
    column("gave_up", "gave up", Picture { of: gave_up, median_by: |s| cluster(s).map(|c| c.gave_up.into()) },
        "the master started no more workers in the end, since too many had died"),
    column("returned", "returned", Count(|s| Some(cluster(s)?.returned as f64)),
        "connections that a worker refused or left unanswered at its death, and that were passed again"),
    // What the workers counted themselves, or the master for them.
    column("looks", "looks/s", Real(|s| per_second(s, counted_of(s, &["polls", "notifier_looks"])?)),
        "times per second that anybody looked at the source of the value: workers for themselves, the notifier for all"),
    column("idle_looks", "looks in vain %", Real(idle_looks),
        "100 · looks of workers that found the value they had, over all of theirs"),
    column("pushes", "pushes/s", Real(|s| per_second(s, counted(s, "notifier_pushes")?)),
        "messages per second with the value, from the notifier to a worker"),
    column("updates", "updates", Count(|s| counted(s, "updates")),
        "new values heard of, by all workers together"),
    column("stale", "stale ms", Real(|s| Some(ratio(counted(s, "stale_us")?, counted(s, "updates")?)? / 1e3)),
        "mean time from the moment a new value was written to the moment a worker had it"),
    column("queries", "queries", Count(|s| counted(s, "queries")),
        "queries that reached the database"),
    column("queries_per_expiry", "queries/expiry", Real(|s| ratio(counted(s, "queries")?, counted(s, "expiries")?)),
        "queries that reached the database, over the times that the entry of a worker's cache was asked for and had expired"),
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

fn share_of_baseline(sample: Sample) -> Option<f64> {
    ratio(qps(sample)?, qps(Sample { row: sample.baseline?, baseline: None })?)
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
        let known = Latency {
            p50: foreign.p50_us.unwrap_or(f64::NAN),
            p90: foreign.p90_us.unwrap_or(f64::NAN),
            p99: foreign.p99_us.unwrap_or(f64::NAN),
            p99_9: foreign.p99_9_us.unwrap_or(f64::NAN),
            max: foreign.max_us.unwrap_or(f64::NAN),
            mean: foreign.mean_us.unwrap_or(f64::NAN),
            stdev: f64::NAN,
        };
        return Some(of(&known)).filter(|value| !value.is_nan());
    }
    measured(&load(sample)?.latency_us, of)
}

fn latency_over_baseline(sample: Sample, of: fn(&Latency) -> f64) -> Option<f64> {
    ratio(latency(sample, of)?, latency(Sample { row: sample.baseline?, baseline: None }, of)?)
}

/// One of the distributions that only loadgen has.
fn of_load(sample: Sample, which: fn(&LoadReport) -> &Latency, of: fn(&Latency) -> f64) -> Option<f64> {
    measured(which(load(sample)?), of)
}

/// A distribution without a single value is all zero; that is no measurement.
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

/// Requests that were due since the measurement began: answered, or not.
fn due(report: &LoadReport) -> f64 {
    (report.requests + report.outside_window.late + unanswered(report)) as f64
}

fn stuck(sample: Sample) -> Option<f64> {
    ratio(100.0 * load(sample)?.errors.timeout as f64, due(load(sample)?))
}

fn lost(sample: Sample) -> Option<f64> {
    ratio(100.0 * unanswered(load(sample)?) as f64, due(load(sample)?))
}

fn resets(sample: Sample) -> Option<f64> {
    let errors = &load(sample)?.errors;
    let count =
        [&errors.connect, &errors.write, &errors.read].iter().flat_map(|names| names.values()).sum::<u64>();
    Some(count as f64)
}

fn served(sample: Sample) -> Option<f64> {
    Some(load(sample)?.connections.answered as f64)
}

fn lost_requests(sample: Sample) -> Option<f64> {
    load(sample).map(|report| (report.lost.len() as u64 + report.lost_more) as f64)
}

fn cluster(sample: Sample<'_>) -> Option<&ClusterReport> {
    sample.row.server.as_ref()?.cluster.as_ref()
}

fn gave_up(row: &Row) -> Option<String> {
    let cluster = row.server.as_ref()?.cluster.as_ref()?;
    Some(if cluster.gave_up { "yes" } else { "no" }.to_string())
}

/// What workers have counted by this name; nobody may have.
fn counted(sample: Sample, name: &str) -> Option<f64> {
    cluster(sample)?.counts.get(name).copied()
}

fn counted_of(sample: Sample, names: &[&str]) -> Option<f64> {
    names.iter().filter_map(|name| counted(sample, name)).reduce(|a, b| a + b)
}

fn per_second(sample: Sample, count: f64) -> Option<f64> {
    ratio(count, sample.row.server.as_ref()?.uptime_s)
}

fn idle_looks(sample: Sample) -> Option<f64> {
    ratio(100.0 * counted(sample, "idle_polls")?, counted(sample, "polls")?)
}

/// A total over all workers of the server's book.
pub fn sum(row: &Row, of: fn(&WorkerReport) -> u64) -> Option<u64> {
    Some(row.server.as_ref()?.workers.iter().map(of).sum())
}

/// Without births and ends where they could be left out.
fn server_cpu_us(row: &Row) -> Option<f64> {
    if let Some(cpu_us) = row.observed.as_ref().and_then(|observed| observed.total(|counts| counts.cpu_us)) {
        return Some(cpu_us as f64);
    }
    let master = row.server.as_ref()?.master.as_ref().map_or(0, |m| m.cpu_user_us + m.cpu_system_us);
    Some((sum(row, |w| w.cpu_user_us + w.cpu_system_us)? + master) as f64)
}

fn server_cpu_per_request(sample: Sample) -> Option<f64> {
    let (_, requests) = books::of_server(sample.row)?;
    ratio(server_cpu_us(sample.row)?, requests.or_else(|| books::read(sample.row))? as f64)
}

fn server_cpu_per_connection(sample: Sample) -> Option<f64> {
    let (accepted, _) = books::of_server(sample.row)?;
    let established = || Some(load(sample)?.connections.established);
    ratio(server_cpu_us(sample.row)?, accepted.or_else(established)? as f64)
}

/// Of the master alone.
fn master_cpu_per_connection(sample: Sample) -> Option<f64> {
    let master = sample.row.server.as_ref()?.master.as_ref()?;
    let observed = sample.row.observed.as_ref().filter(|observed| observed.missing.is_none());
    let its = |counts: &&Counts| counts.pid == master.pid;
    let meanwhile = observed.and_then(|observed| observed.processes.iter().find(its)?.cpu_us);
    let cpu_us = meanwhile.unwrap_or(master.cpu_user_us + master.cpu_system_us);
    ratio(cpu_us as f64, load(sample)?.connections.established as f64)
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

fn client_cpu_over_baseline(sample: Sample) -> Option<f64> {
    let baseline = Sample { row: sample.baseline?, baseline: None };
    ratio(client_cpu_per_request(sample)?, client_cpu_per_request(baseline)?)
}

fn client_cpu_per_connection(sample: Sample) -> Option<f64> {
    ratio(client_cpu_per_request(sample)?, connections_per_request(load(sample)?)?)
}

fn client_cpu_share(sample: Sample) -> Option<f64> {
    // A foreign client's threads are one here: the tables start it so, like loadgen.
    let share = |foreign: &ForeignReport| ratio(foreign.cpu_us as f64 / 1e6, foreign.duration_s);
    load(sample).map(|report| report.client.cpu_share).or(sample.row.foreign.as_ref().and_then(share))
}

fn evenness(sample: Sample, of: fn(&Evenness) -> f64) -> Option<f64> {
    load(sample)?.evenness.as_ref().map(|pair| of(&pair.connections))
}

/// The client's book: worker and connections, those it never met included.
fn connections_per_worker(row: &Row) -> Option<Vec<(usize, u64)>> {
    if row.workers_folded.is_some() {
        return None;
    }
    let report = row.load.as_ref()?;
    let mut counts: Vec<(usize, u64)> = Vec::new();
    for (worker, share) in &report.workers {
        counts.push((worker.parse().ok()?, share.connections));
    }
    // A worker the client never met is in the server's book only.
    let silent = row.server.iter().flat_map(|server| &server.workers).map(|worker| worker.id);
    for id in silent {
        if counts.iter().all(|(known, _)| *known != id) {
            counts.push((id, 0));
        }
    }
    counts.sort();
    Some(counts)
}

fn max_minus_min(sample: Sample) -> Option<f64> {
    let counts = connections_per_worker(sample.row)?;
    let of = |pick: fn(u64, u64) -> u64| counts.iter().map(|(_, count)| *count).reduce(pick);
    Some((of(u64::max)? - of(u64::min)?) as f64)
}

fn top_two(sample: Sample) -> Option<f64> {
    let mut counts: Vec<u64> = connections_per_worker(sample.row)?.iter().map(|(_, count)| *count).collect();
    counts.sort_by(|a, b| b.cmp(a));
    ratio(100.0 * counts.iter().take(2).sum::<u64>() as f64, counts.iter().sum::<u64>() as f64)
}

/// `█▇▅ 2503 2417 1580`: eighths of the busiest worker's count, then the counts.
fn bars(row: &Row) -> Option<String> {
    let counts = connections_per_worker(row)?;
    let most = counts.iter().map(|(_, count)| *count).max().filter(|most| *most > 0)?;
    let picture: String = counts.iter().map(|(_, count)| step(*count as f64, most as f64)).collect();
    let numbers: Vec<String> = counts.iter().map(|(_, count)| count.to_string()).collect();
    Some(format!("{picture} {}", numbers.join(" ")))
}

/// `▃▄▅▆ ▃▃▃▂`: a group for each worker, a bar for each look.
fn live(row: &Row) -> Option<String> {
    let most = row.timeline.iter().flat_map(|look| &look.active).copied().max().filter(|most| *most > 0)?;
    let workers = row.timeline.first()?.active.len();
    let of =
        |worker: usize| row.timeline.iter().map(move |look| look.active.get(worker).copied().unwrap_or(0));
    let line = |worker: usize| of(worker).map(|active| step(active as f64, most as f64)).collect::<String>();
    Some((0..workers).map(line).collect::<Vec<_>>().join(" "))
}

fn live_max_over_mean(sample: Sample) -> Option<f64> {
    let worst = |active: &[u64]| {
        let mean = active.iter().sum::<u64>() as f64 / active.len() as f64;
        ratio(active.iter().copied().max()? as f64, mean)
    };
    // While connections come or go, whoever is first or last has all.
    let total = |look: &Look| look.active.iter().sum::<u64>();
    let most = sample.row.timeline.iter().map(total).max()?;
    let settled = sample.row.timeline.iter().filter(|look| 2 * total(look) >= most);
    settled.filter_map(|look| worst(&look.active)).max_by(f64::total_cmp)
}

fn per_connection(sample: Sample, of: fn(&WorkerReport) -> u64) -> Option<f64> {
    ratio(sum(sample.row, of)? as f64, sum(sample.row, |w| w.accepted)? as f64)
}

fn accept_eagain(sample: Sample) -> Option<f64> {
    let master = sample.row.server.as_ref()?.master.as_ref().and_then(|master| master.accepts);
    let master = master.map_or(0, |accepts| accepts.accept_eagain);
    ratio((sum(sample.row, |w| w.accept_eagain)? + master) as f64, sum(sample.row, |w| w.accepted)? as f64)
}

/// What the kernel counted while the client ran.
fn observed(sample: Sample, of: fn(&Counts) -> Option<u64>) -> Option<f64> {
    let total = sample.row.observed.as_ref()?.total(of)?;
    ratio(total as f64, sum(sample.row, |w| w.accepted)? as f64)
}

fn switches(sample: Sample) -> Option<f64> {
    observed(sample, |c| Some(c.voluntary_switches)).or_else(|| switches_of_whole_lives(sample))
}

fn switches_of_whole_lives(sample: Sample) -> Option<f64> {
    let master = sample.row.server.as_ref()?.master.as_ref().map_or(0, |m| m.voluntary_switches);
    let workers = sum(sample.row, |w| w.voluntary_switches)?;
    ratio((workers + master) as f64, sum(sample.row, |w| w.accepted)? as f64)
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
