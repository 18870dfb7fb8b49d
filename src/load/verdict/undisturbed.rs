//! How the run went: answers from its beginning to its end, on a machine that did not disturb it.

use super::*;
use crate::report::Latency;
use crate::stats::{median, spearman};

pub(super) fn requests(facts: &RunFacts) -> Option<Finding> {
    let LoadReport { requests, duration_s, connect_us, .. } = *facts.report;
    if requests > 0 {
        return valid(format!("{requests} answers in {} s", number(duration_s)));
    }
    let longest = time(connect_us.max);
    let reason = match facts.connections_opened {
        0 => format!(
            "no connection was established; the longest handshake had waited for {longest}: is the address right, and \
             does no firewall drop the packets?"
        ),
        _ => "nothing was answered in the measured window".into(),
    };
    Some((Verdict::Invalid, reason))
}

/// A server that dies in the middle of the window leaves figures that look good: what is never answered has no rate,
/// and little weight among all that was answered.
pub(super) fn served(facts: &RunFacts) -> Option<Finding> {
    let LoadReport { requests, duration_s, censored, outside_window, .. } = *facts.report;
    if facts.run.interrupted || facts.parts.is_empty() || requests == 0 {
        return not_judged("the window has no parts to compare");
    }
    let silent = facts.parts.iter().rev().take_while(|(.., part)| part.answers == 0);
    let silent_s: f64 = silent.map(length_s).sum();
    let missed = if facts.run.configuration.is_open_loop() {
        facts.due_in_window.saturating_sub(requests) as f64
    } else {
        over(requests as f64, duration_s - silent_s) * silent_s
    };
    // A burst at the very end, or the last line of a log, may be answered after it.
    let ends_busy = matches!(facts.arrivals(), Some(ArrivalsKind::Burst(_) | ArrivalsKind::Replay(_)));
    let late = if ends_busy { 0 } else { outside_window.late };
    let errors = facts.report.errors.total();
    let lost = errors + censored + facts.given_up() + late;
    let is_silent =
        silent_s >= SILENCE * duration_s && silent_s > usual_response_s(facts) && missed >= ANSWERS_MISSED && lost > 0;
    if !is_silent {
        return valid("answers came until the end of the window".into());
    }
    // A queue of stale requests, each given up just before its answer, looks the same from here; it is a finding.
    let (verdict, why) = if facts.given_up() > errors {
        (Verdict::Suspect, "--deadline ended each request before: a collapse, or the server hangs")
    } else {
        (Verdict::Invalid, "is the server still there?")
    };
    let (silent, window, limit) = (time(silent_s * 1e6), time(duration_s * 1e6), SILENCE * 100.0);
    Some((verdict, format!("nothing was answered in the last {silent} of {window} (limit {limit} %): {why}")))
}

/// The p99.9 of what was answered. Where more than that share never was, it is the age of those; of an exponential
/// distribution ten means are more.
fn usual_response_s(facts: &RunFacts) -> f64 {
    if (facts.report.censored as f64) < 0.001 * facts.responses as f64 {
        return facts.report.latency_us.p99_9 / 1e6;
    }
    10.0 * over(facts.parts.iter().map(latency_sum_s).sum(), facts.report.requests as f64)
}

fn length_s((from_ns, to_ns, _): &(u64, u64, SeriesPart)) -> f64 {
    (to_ns - from_ns) as f64 / 1e9
}

fn latency_sum_s((.., part): &(u64, u64, SeriesPart)) -> f64 {
    part.latency_sum_ns as f64 / 1e9
}

pub(super) fn drift(facts: &RunFacts) -> Option<Finding> {
    let is_uneven = |arrivals| matches!(arrivals, &ArrivalsKind::Burst(_) | &ArrivalsKind::Replay(_));
    if facts.arrivals().map_or(!facts.run.configuration.sessions, is_uneven) {
        return not_judged("the load itself changes");
    }
    if facts.run.interrupted {
        return not_judged("the run was ended early");
    }
    let parts = parts(facts.parts);
    if parts.len() < PARTS {
        return not_judged(&format!("the run has fewer than {PARTS} intervals"));
    }
    let (qps, latency): (Vec<f64>, Vec<f64>) = parts.into_iter().unzip();
    let (qps, latency) = (Trend::of(&qps), Trend::of(&latency));
    // Steps are no trends: ranks see little of a fall in the last third, and the `served` check only its end.
    let is_over = qps.first > 0.0 && qps.last == 0.0 && facts.report.requests as f64 > PARTS as f64;
    let is_slower = latency.exceeds(DRIFT_LATENCY) && (latency.last - latency.first).abs() > DRIFT_LATENCY_US;
    let (from, to) = (number(qps.first.round()), number(qps.last.round()));
    let (from_us, to_us) = (time(latency.first), time(latency.last));
    let limits = format!("limits {} and {}", percent(DRIFT_QPS), percent(DRIFT_LATENCY));
    let reason = format!(
        "from the first to the last third: {from} to {to} requests/s, mean response {from_us} to {to_us} ({limits})"
    );
    suspect_if(is_over || qps.exceeds(DRIFT_QPS) || is_slower, reason)
}

/// Requests per second and mean response time of [`PARTS`] equal parts of the window, or of fewer when there are
/// not as many.
fn parts(parts: &[(u64, u64, SeriesPart)]) -> Vec<(f64, f64)> {
    let count = PARTS.min(parts.len());
    let sum = |i: usize| {
        let parts = &parts[i * parts.len() / count..(i + 1) * parts.len() / count];
        let answers: f64 = parts.iter().map(|(.., part)| part.answers as f64).sum();
        let latency_s: f64 = parts.iter().map(latency_sum_s).sum();
        (over(answers, parts.iter().map(length_s).sum()), over(latency_s * 1e6, answers))
    };
    (0..count).map(sum).collect()
}

struct Trend {
    /// Rank correlation with time, in standard errors.
    z: f64,
    /// Medians of the first and the last third.
    first: f64,
    last: f64,
}

impl Trend {
    fn of(values: &[f64]) -> Trend {
        let times: Vec<f64> = (0..values.len()).map(|i| i as f64).collect();
        let third = values.len() / 3;
        Trend {
            // Without a trend Spearman's coefficient has the variance 1/(n − 1) (Kendall & Gibbons, Rank
            // Correlation Methods, section 4.14).
            z: spearman(&times, values) * (values.len() as f64 - 1.0).sqrt(),
            first: median(&values[..third]).unwrap_or_default(),
            last: median(&values[values.len() - third..]).unwrap_or_default(),
        }
    }

    /// Whether it is no chance, and larger than this share of the middle of the two: the median of all is 0 when
    /// nothing was answered half of the time.
    fn exceeds(&self, share: f64) -> bool {
        self.z.abs() > Z_LIMIT && over((self.last - self.first).abs(), (self.first + self.last) / 2.0) > share
    }
}

pub(super) fn cpu(facts: &RunFacts) -> Option<Finding> {
    let used = format!("the client used {:.0} % of its threads' time", facts.report.client.cpu_share * 100.0);
    if facts.run.configuration.busy_poll {
        return not_judged(&format!("{used}, as --busy-poll always does"));
    }
    let advice = if facts.client_is_busy() { "; the client may be the limit: more --threads" } else { "" };
    suspect_if(facts.client_is_busy(), format!("{used} (limit {}){advice}", percent(BUSY_CLIENT)))
}

pub(super) fn steal(facts: &RunFacts) -> Option<Finding> {
    let stolen = facts.machine.steal_share(facts.machine_s);
    let (percent, limit) = (stolen * 100.0, STEAL_SHARE * 100.0);
    let reason = format!("the hypervisor took {percent:.1} % of the machine's time (limit {limit} %)");
    suspect_if(stolen > STEAL_SHARE && facts.machine.steal_ticks >= STEAL_TICKS, reason)
}

/// The kernel counts the overflows of all listeners of this machine. Ours were among them only if we opened more
/// connections than the smallest backlog holds, and then someone has waited for a retransmission.
pub(super) fn accept_queue(facts: &RunFacts) -> Option<Finding> {
    // An overflow counts as a drop too (tcp_conn_request, tcp_v4_syn_recv_sock).
    let lost = facts.machine.listen_overflows.max(facts.machine.listen_drops);
    let waited_us = facts.report.connect_us.max.max(facts.report.latency_us.max);
    let perhaps_ours = facts.connections_opened > SMALL_BACKLOG && waited_us >= RETRANSMISSION_US;
    let whose = match lost {
        0 => "",
        _ if perhaps_ours => "; if it was the server's: a larger --backlog and net.core.somaxconn",
        _ => "; others', since nothing here waited for it",
    };
    let reason = format!("accept queues of this machine overflowed {lost} times (limit 0){whose}");
    suspect_if(lost > 0 && perhaps_ours, reason)
}

/// Linux gives connect(2) the ports of one parity first, and searches when they are in use: the median stays, the tail
/// grows to milliseconds, and the rate cannot.
pub(super) fn ports(facts: &RunFacts) -> Option<Finding> {
    let limit_per_s = facts.ports_per_s?;
    let per_s = over(facts.report.requests as f64, facts.report.duration_s);
    let Latency { p99_9, mean, .. } = facts.report.connect_us;
    let rare = per_s > PORTS_SHARE * limit_per_s && mean.max(p99_9) > SLOW_CONNECT_US;
    let (p99_9, mean) = (time(p99_9), time(mean));
    let advice =
        "; it searches for a free port, and that is what was measured: --close rst, or more --source addresses";
    let why = if rare { advice } else { "" };
    let reason = format!(
        "{per_s:.0} connections/s where ports for {limit_per_s:.0} are at hand; connect(2) takes {p99_9} at p99.9, \
             {mean} in the mean{why}"
    );
    suspect_if(rare, reason)
}

pub(super) fn errors(facts: &RunFacts) -> Option<Finding> {
    let (errors, answers) = (facts.report.errors.total(), facts.report.requests);
    let reason = format!("{errors} errors beside {answers} answers (limit {} %)", ERROR_SHARE * 100.0);
    suspect_if(errors as f64 > ERROR_SHARE * (answers + errors) as f64, reason)
}

pub(super) fn censored(facts: &RunFacts) -> Option<Finding> {
    let (censored, times, limit) = (facts.report.censored, facts.responses, CENSORED_SHARE * 100.0);
    let reason =
        format!("{censored} of {times} times are ages of requests never answered, each too short (limit {limit} %)");
    suspect_if(censored as f64 > CENSORED_SHARE * times as f64, reason)
}

/// Few answers make a percentile uncertain, not wrong, and the reason says how few there are. Only below 100 answers is
/// a run suspect: then p99 is the maximum.
pub(super) fn percentiles(facts: &RunFacts) -> Option<Finding> {
    if facts.responses == 0 {
        return None;
    }
    let (p99, p99_9) = (facts.responses / 100, facts.responses / 1000);
    let rests_on = |count: u64| match count {
        0 => "is the maximum".into(),
        1 => "rests on 1 answer".into(),
        _ => format!("rests on {count} answers"),
    };
    let few = |count: u64| (count as f64) < ANSWERS_BEYOND;
    let reason = match (few(p99), few(p99_9)) {
        _ if p99 == 0 => format!("of {} times p99 is the maximum: do not quote it", facts.responses),
        (true, _) => format!("p99 {}, p99.9 {}: do not quote them", rests_on(p99), rests_on(p99_9)),
        (_, true) => format!("p99 {}, p99.9 {}: do not quote it", rests_on(p99), rests_on(p99_9)),
        _ => format!("p99 {}", rests_on(p99)),
    };
    suspect_if(p99 == 0, reason)
}

pub(super) fn connections(facts: &RunFacts) -> Option<Finding> {
    // Nobody opens more than there are requests, and connections for one request come and go.
    let configuration = &facts.run.configuration;
    if facts.one_request_each() || configuration.sessions {
        return None;
    }
    let asked = u64::from(configuration.connections).min(facts.report.requests.max(facts.due_in_window));
    let peak = facts.connections_peak;
    let verdict = match peak as f64 {
        open if open < CONNECTIONS_OPEN * asked as f64 => Verdict::Invalid,
        _ if peak < asked => Verdict::Suspect,
        _ => Verdict::Valid,
    };
    Some((verdict, format!("{peak} connections were open at most, {asked} wanted")))
}

/// A server that takes one connection at a time serves the one it has for as long as its client keeps it: the answers
/// are fast, and belong to few. Where a connection waits since all are slow, there are not enough answers for each.
pub(super) fn starved(facts: &RunFacts) -> Option<Finding> {
    if facts.one_request_each() {
        return None;
    }
    let (starved, opened, answers) = (facts.connections_starved, facts.connections_opened, facts.report.requests);
    let enough = ANSWERS_EACH * f64::from(facts.run.configuration.connections);
    let is_unfair = starved > 0 && answers as f64 >= enough;
    let advice = "; no worker was free for them: a worker that serves one connection at a time is held by a kept one \
                  (--requests-per-connection 1, or a server that serves more at once), or a worker hangs";
    let why = if is_unfair { advice } else { "" };
    let limit = format!("limit 0 where there are {enough} answers");
    let reason = format!("{starved} of {opened} connections got no answer, others {answers} ({limit}){why}");
    suspect_if(is_unfair, reason)
}

pub(super) fn complete(facts: &RunFacts) -> Option<Finding> {
    let how = if facts.run.interrupted { "the run was ended early" } else { "the run went to its end" };
    suspect_if(facts.run.interrupted, how.into())
}

pub(super) fn start(facts: &RunFacts) -> Option<Finding> {
    let late_ns = facts.run.started_unix_ns.saturating_sub(facts.run.start_at_unix_ns?);
    let verdict = if late_ns > LATE_START_NS { Verdict::Invalid } else { Verdict::Valid };
    let limit = time(LATE_START_NS as f64 / 1e3);
    Some((verdict, format!("it began {} after --start-at (limit {limit})", time(late_ns as f64 / 1e3))))
}
