//! Whether requests were due, and sent, as asked for.

use super::*;
use crate::report::Latency;
use crate::stats::{gamma_cdf, kolmogorov_smirnov, spearman};

pub(super) fn rate(facts: &RunFacts) -> Option<Finding> {
    // The last answer of a number of requests ends the window, whose length then says nothing about the rate.
    let asked = facts.rate_asked().filter(|_| facts.run.configuration.requests.is_none())?;
    let expected = asked * facts.report.duration_s;
    let tolerance = match facts.run.configuration.arrivals {
        // The count of a Poisson process, also of one whose rate changes, has the standard deviation √mean.
        ArrivalsKind::Poisson => Z_STRICT * expected.sqrt() + 1.0,
        ArrivalsKind::Burst(size) => f64::from(size) + expected / 1000.0,
        _ => 2.0 + expected / 1000.0,
    };
    let due = facts.due_in_window as f64;
    let reason = format!("{due} requests were due, {expected:.0} asked for (limit: within {tolerance:.0})");
    suspect_if((due - expected).abs() > tolerance, reason)
}

pub(super) fn achieved(facts: &RunFacts) -> Option<Finding> {
    let configuration = &facts.run.configuration;
    if !configuration.is_open_loop() || facts.due_in_window == 0 {
        return None;
    }
    let LoadReport { requests, duration_s, latency_us, .. } = *facts.report;
    let due = facts.due_in_window as f64;
    let expected = expected_outstanding(over(due, duration_s), latency_us.mean, duration_s);
    let outstanding = if configuration.requests.is_some() { due } else { expected };
    // What was answered at all, and what was answered in time not to pile up.
    let answered = (facts.answered_of_due as f64).min(requests as f64 + outstanding);
    let achieved = (answered / due).min(1.0);
    let (verdict, why) = match achieved {
        share if share >= ACHIEVED_SHARE => (Verdict::Valid, ""),
        share if share < ACHIEVED_AT_ALL && client_was_late(facts) => {
            (Verdict::Invalid, "; the client could not send them in time: more --threads, or a lower --rate")
        }
        _ if facts.report.errors.total() as f64 > 0.5 * (due - answered) => {
            (Verdict::Suspect, "; most of the others failed: see the errors")
        }
        _ => (Verdict::Suspect, "; the server did not keep up: its latency here depends on the length of the run"),
    };
    let (percent, limit) = (achieved * 100.0, ACHIEVED_SHARE * 100.0);
    Some((verdict, format!("{percent:.2} % of the {due} requests due were answered in time (limit {limit} %){why}")))
}

/// Whether it is the client that is to blame for what was not answered: it had no CPU time left, or it let connections
/// lie idle while it was as late as it takes to lose so much. A send delay of a millisecond loses nothing; a connection
/// that waits, backs off or is broken is not the client's.
fn client_was_late(facts: &RunFacts) -> bool {
    let report = facts.report;
    let lost_s = (1.0 - ACHIEVED_AT_ALL) * report.duration_s;
    // With --deadline what is later than that is never sent, and its send delay not known.
    let late_s = facts.run.configuration.deadline_s.map_or(lost_s, |deadline_s| lost_s.min(0.5 * deadline_s));
    let missing = facts.due_in_window.saturating_sub(report.requests);
    let is_broken = (report.errors.total() + facts.given_up()) * 2 > missing;
    facts.client_is_busy()
        || (report.send_delay_us.p50 > late_s * 1e6 && facts.connections_busy() < CONNECTIONS_BUSY && !is_broken)
}

pub(super) fn gaps(facts: &RunFacts) -> Option<Finding> {
    match facts.arrivals() {
        Some(ArrivalsKind::Closed) => None,
        Some(ArrivalsKind::Poisson) => match Gaps::of(facts) {
            None => not_judged("too few requests, or no rate, to tell a distribution"),
            Some(gaps) => exponential(&gaps),
        },
        None if facts.run.configuration.sessions => {
            not_judged("when a session's next request is due depends on the answer before")
        }
        _ => punctuality(facts),
    }
}

/// The gaps actually sent against the exponential distribution (sums of them: against the gamma distribution).
fn exponential(gaps: &Gaps) -> Option<Finding> {
    let mut sorted: Vec<f64> = gaps.in_means.clone();
    sorted.sort_by(f64::total_cmp);
    let (distance, p_value) = kolmogorov_smirnov(&sorted, |x| gamma_cdf(gaps.summed as f64, x));
    let (sums, summed, d, p) = (sorted.len(), gaps.summed, number(distance), number(p_value));
    let reason = format!(
        "{sums} sums of {summed} gaps are {d} from Poisson's (Kolmogorov-Smirnov D; limit {KS_SIZE}), p = {p} (limit \
             {P_LIMIT})"
    );
    suspect_if(p_value < P_LIMIT && distance > KS_SIZE, reason)
}

fn punctuality(facts: &RunFacts) -> Option<Finding> {
    let tolerance_ns = facts.rate_asked().map_or(0.0, |rate| 1e9 / rate).max(LATE_FLOOR_NS);
    let count = facts.sends.len();
    if count == 0 {
        return not_judged("no request was sent");
    }
    let is_late = |send: &&Sent| send.sent_ns.abs_diff(send.due_ns) as f64 > tolerance_ns;
    let late_share = facts.sends.iter().filter(is_late).count() as f64 / count as f64;
    let (percent, from, limit) = (late_share * 100.0, time(tolerance_ns / 1e3), LATE_SHARE * 100.0);
    let reason = format!(
        "{percent:.2} % of the first {count} requests were sent more than {from} from their due time (limit {limit} %)"
    );
    suspect_if(late_share > LATE_SHARE, reason)
}

pub(super) fn independence(facts: &RunFacts) -> Option<Finding> {
    if facts.arrivals() != Some(&ArrivalsKind::Poisson) {
        return None;
    }
    let gaps = Gaps::of(facts)?.in_means;
    let n = gaps.len() - 1;
    let correlation = spearman(&gaps[..n], &gaps[1..]);
    let error = 1.0 / (n as f64).sqrt();
    let limit = (Z_LIMIT * error).max(CORRELATION_SIZE);
    let reason = format!(
        "neighbouring gaps correlate by {correlation:.3} (Spearman; limit {limit:.3}, standard error {error:.3})"
    );
    suspect_if(correlation.abs() > limit, reason)
}

struct Gaps {
    summed: usize,
    /// In units of the mean gap that was asked for.
    in_means: Vec<f64>,
}

impl Gaps {
    fn of(facts: &RunFacts) -> Option<Gaps> {
        let mean_ns = 1e9 / facts.rate_asked()?;
        let summed = (GAP_SCALE_NS / mean_ns).ceil().max(1.0) as usize;
        let mut sends: Vec<u64> = facts.sends.iter().map(|send| send.sent_ns).collect();
        sends.sort_unstable();
        let marks: Vec<u64> = sends.into_iter().step_by(summed).collect();
        let in_means: Vec<f64> = marks.windows(2).map(|pair| (pair[1] - pair[0]) as f64 / mean_ns).collect();
        (in_means.len() >= MIN_GAPS).then_some(Gaps { summed, in_means })
    }
}

pub(super) fn send_delay(facts: &RunFacts) -> Option<Finding> {
    if !facts.run.configuration.is_open_loop() {
        return None;
    }
    if facts.report.errors.total() > facts.report.requests {
        // Their ages are no response times to hold a send delay against.
        return not_judged("most requests failed");
    }
    let delays = send_delays(facts);
    let found = delays.iter().find(|delay| delay.us > SEND_DELAY_FLOOR_US.max(delay.limit * delay.response_us));
    let why = match found {
        Some(delay) if waits_for_handshakes(facts, delay.us) => format!(
            "; they waited for their connections, whose handshakes took {} at p99 and {} at most: a server whose \
             accept queue is full lets a client try again after a second (a larger --backlog, or a server that accepts \
             faster)",
            time(facts.report.connect_us.p99),
            time(facts.report.connect_us.max)
        ),
        Some(_) if facts.connections_busy() >= CONNECTIONS_BUSY => {
            "; all connections were busy: more --connections, unless that is what you ask".into()
        }
        Some(_) => "; that is the client's own lateness: --pin, --busy-poll, or an idle CPU for it".into(),
        None => String::new(),
    };
    let SendDelay { name, us, response_us, limit } = found.unwrap_or(&delays[0]);
    let (delay, of, limit, floor) = (time(*us), time(*response_us), limit * 100.0, time(SEND_DELAY_FLOOR_US));
    let reason = format!(
        "requests were sent {delay} late at {name}, where the response takes {of} (limit {limit} %, or {floor}){why}"
    );
    suspect_if(found.is_some(), reason)
}

/// Whether requests are late since their connections are not established: handshakes take as long as the send delay,
/// and most of the time that connections are busy at all.
fn waits_for_handshakes(facts: &RunFacts, send_delay_us: f64) -> bool {
    let connecting = facts.connections_in_handshake();
    let longest_us = facts.report.connect_us.max;
    let took_as_long = longest_us >= 0.5 * send_delay_us && longest_us >= RETRANSMISSION_US;
    took_as_long && connecting > CONNECTING && connecting >= 0.5 * facts.connections_busy().min(1.0)
}

/// At one percentile.
struct SendDelay {
    name: &'static str,
    us: f64,
    response_us: f64,
    /// As a share of the response.
    limit: f64,
}

fn send_delays(facts: &RunFacts) -> Vec<SendDelay> {
    let (delay, response) = (&facts.report.send_delay_us, &facts.report.latency_us);
    // A request that needs a handshake is not late while it has it.
    let handshake = if facts.one_request_each() { facts.report.connect_us } else { Latency::default() };
    let rests_on = |quantile: f64| facts.responses as f64 * (1.0 - quantile) >= ANSWERS_BEYOND;
    let at = |name, delay_us: f64, handshake_us: f64, response_us, limit| {
        let us = (delay_us - handshake_us).max(0.0);
        SendDelay { name, us, response_us, limit }
    };
    let p50 = at("p50", delay.p50, handshake.p50, response.p50, SEND_DELAY_OF_MEDIAN);
    let p99 = at("p99", delay.p99, handshake.p99, response.p99, SEND_DELAY_OF_TAIL);
    let p99_9 = at("p99.9", delay.p99_9, handshake.p99_9, response.p99_9, SEND_DELAY_OF_TAIL);
    let tail = [(0.99, p99), (0.999, p99_9)].into_iter().filter(|&(quantile, _)| rests_on(quantile));
    std::iter::once(p50).chain(tail.map(|(_, delay)| delay)).collect()
}
