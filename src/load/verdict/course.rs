//! How the run went: answers from its beginning to its end, on a machine that left it alone.

use super::*;
use crate::stats::{median, spearman};

pub(super) fn requests(evidence: &Evidence) -> Option<Check> {
    Some(match evidence.requests {
        0 => check("requests", Verdict::Invalid, "nothing was answered in the measured window".into()),
        n => check("requests", Verdict::Valid, format!("{n} answers in {} s", number(evidence.duration_s))),
    })
}

/// Half of a run is no run: a server that dies in mid-window leaves figures that look sound, since what is never
/// answered has no rate, and little weight among all that was.
pub(super) fn served(evidence: &Evidence) -> Option<Check> {
    let valid = |reason: String| Some(check("served", Verdict::Valid, reason));
    let measured: Vec<&IntervalReport> =
        evidence.intervals.iter().filter(|interval| interval.measured).collect();
    if evidence.interrupted || measured.is_empty() || evidence.requests == 0 {
        return valid("not judged: the window has no parts to compare".into());
    }
    let silent = measured.iter().rev().take_while(|interval| interval.requests == 0);
    let silent_s: f64 = silent.map(|interval| interval.to_s - interval.from_s).sum();
    let missed = if evidence.is_open_loop() {
        evidence.due_in_window.saturating_sub(evidence.requests) as f64
    } else {
        over(evidence.requests as f64, evidence.duration_s - silent_s) * silent_s
    };
    // A burst at the very end, or the last line of a log, may be answered after it.
    let ends_busy = matches!(evidence.pattern, Pattern::Burst(_) | Pattern::Replay);
    let late = if ends_busy { 0 } else { evidence.answered_late };
    let lost = evidence.errors + evidence.censored + evidence.given_up + late;
    let is_silent = silent_s >= SILENCE * evidence.duration_s
        && silent_s > usual_response_s(evidence, &measured)
        && missed >= ANSWERS_MISSED
        && lost > 0;
    if !is_silent {
        return valid("answers came until the end of the window".into());
    }
    // A queue of stale requests, each given up just before its answer, looks the same from here; it is a finding.
    let (verdict, why) = if evidence.given_up > evidence.errors {
        (Verdict::Suspect, "--deadline ended each request before: a collapse, or the server hangs")
    } else {
        (Verdict::Invalid, "is the server still there?")
    };
    Some(check(
        "served",
        verdict,
        format!(
            "nothing was answered in the last {} of {} (bar {} %): {why}",
            time(silent_s * 1e6),
            time(evidence.duration_s * 1e6),
            SILENCE * 100.0
        ),
    ))
}

/// The p99.9 of what was answered. Where more than that share never was, it is the age of those; of an exponential
/// distribution ten means are more.
fn usual_response_s(evidence: &Evidence, measured: &[&IntervalReport]) -> f64 {
    if (evidence.censored as f64) < 0.001 * evidence.responses as f64 {
        return evidence.response_us.p99_9 / 1e6;
    }
    let total_us: f64 =
        measured.iter().map(|interval| interval.requests as f64 * interval.latency_us.mean).sum();
    10.0 * over(total_us, evidence.requests as f64) / 1e6
}

pub(super) fn drift(evidence: &Evidence) -> Option<Check> {
    let stretches = stretches(evidence.intervals);
    if matches!(evidence.pattern, Pattern::Ramp | Pattern::Replay | Pattern::Burst(_)) {
        return Some(check("drift", Verdict::Valid, "not judged: the load itself changes".into()));
    }
    if evidence.interrupted {
        return Some(check("drift", Verdict::Valid, "not judged: the run was ended early".into()));
    }
    if stretches.len() < STRETCHES {
        return Some(check(
            "drift",
            Verdict::Valid,
            format!("not judged: the run has fewer than {STRETCHES} intervals"),
        ));
    }
    let qps: Vec<f64> = stretches.iter().map(|&(qps, _)| qps).collect();
    let latency: Vec<f64> = stretches.iter().map(|&(_, us)| us).collect();
    let (qps, latency) = (Trend::of(&qps), Trend::of(&latency));
    // Steps are no trends: ranks see little of a fall in the last third, and the `served` check only its end.
    let is_over = qps.first > 0.0 && qps.last == 0.0 && evidence.requests as f64 > STRETCHES as f64;
    let is_drift = is_over
        || qps.is_real() && qps.size() > DRIFT_QPS
        || latency.is_real()
            && latency.size() > DRIFT_LATENCY
            && (latency.last - latency.first).abs() > DRIFT_LATENCY_US;
    Some(suspect_if(
        "drift",
        is_drift,
        format!(
            "from the first to the last third: {} to {} requests/s, mean response {} to {} (bars {} % and {} %)",
            number(qps.first.round()),
            number(qps.last.round()),
            time(latency.first),
            time(latency.last),
            DRIFT_QPS * 100.0,
            DRIFT_LATENCY * 100.0
        ),
    ))
}

/// Requests per second and mean response time of [`STRETCHES`] equal parts of the window, or of fewer when there are
/// not as many intervals.
fn stretches(intervals: &[IntervalReport]) -> Vec<(f64, f64)> {
    let measured: Vec<&IntervalReport> = intervals.iter().filter(|interval| interval.measured).collect();
    let per_stretch = (measured.len() / STRETCHES).max(1);
    let summed = measured.chunks_exact(per_stretch).map(|part| {
        let sum = |of: fn(&IntervalReport) -> f64| part.iter().map(|interval| of(interval)).sum::<f64>();
        let requests = sum(|interval| interval.requests as f64);
        (
            over(requests, sum(|interval| interval.to_s - interval.from_s)),
            over(sum(|interval| interval.requests as f64 * interval.latency_us.mean), requests),
        )
    });
    summed.take(STRETCHES).collect()
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

    fn is_real(&self) -> bool {
        self.z.abs() > Z_BAR
    }

    /// Against the middle of the two: the median of all is 0 when nothing was answered half of the time.
    fn size(&self) -> f64 {
        over((self.last - self.first).abs(), (self.first + self.last) / 2.0)
    }
}

pub(super) fn cpu(evidence: &Evidence) -> Option<Check> {
    let used = format!("the client used {:.0} % of its threads' time", evidence.cpu_share * 100.0);
    if evidence.busy_poll {
        return Some(check("cpu", Verdict::Valid, format!("not judged: {used}, as --busy-poll always does")));
    }
    let advice = if evidence.client_is_busy() { "; the client may be the limit: more --threads" } else { "" };
    let bar = BUSY_CLIENT * 100.0;
    Some(suspect_if("cpu", evidence.client_is_busy(), format!("{used} (bar {bar} %){advice}")))
}

pub(super) fn steal(evidence: &Evidence) -> Option<Check> {
    let stolen = evidence.machine.steal_share(evidence.machine_s);
    Some(suspect_if(
        "steal",
        stolen > STEAL_SHARE && evidence.machine.steal_ticks >= STEAL_TICKS,
        format!(
            "the hypervisor took {:.1} % of the machine's time (bar {} %)",
            stolen * 100.0,
            STEAL_SHARE * 100.0
        ),
    ))
}

/// The kernel counts the overflows of all listeners of this machine. Ours were among them only if we opened more
/// connections than the smallest backlog holds, and then someone has waited for a retransmission.
pub(super) fn accept_queue(evidence: &Evidence) -> Option<Check> {
    // An overflow counts as a drop too (tcp_conn_request, tcp_v4_syn_recv_sock).
    let lost = evidence.machine.listen_overflows.max(evidence.machine.listen_drops);
    let waited_us = evidence.connect_us.max.max(evidence.response_us.max);
    let perhaps_ours = evidence.connections_opened > SMALL_BACKLOG && waited_us >= RETRANSMISSION_US;
    let whose = match lost {
        0 => "",
        _ if perhaps_ours => "; if it was the server's: a larger --backlog and net.core.somaxconn",
        _ => "; others', since nothing here waited for it",
    };
    Some(suspect_if(
        "accept_queue",
        lost > 0 && perhaps_ours,
        format!("accept queues of this machine overflowed {lost} times (bar 0){whose}"),
    ))
}

/// Linux gives connect(2) the ports of one parity first, and searches when they are in use: the median stays, the tail
/// grows to milliseconds, and the rate cannot.
pub(super) fn ports(evidence: &Evidence) -> Option<Check> {
    let bar_per_s = evidence.ports_per_s?;
    let per_s = over(evidence.requests as f64, evidence.duration_s);
    let slowest_us = evidence.connect_us.mean.max(evidence.connect_us.p99_9);
    let rare = per_s > PORTS_SHARE * bar_per_s && slowest_us > SLOW_CONNECT_US;
    let why = if rare {
        "; it searches for a free port, and that is what was measured: --close rst, or more --source addresses"
    } else {
        ""
    };
    Some(suspect_if(
        "ports",
        rare,
        format!(
            "{per_s:.0} connections/s where ports for {bar_per_s:.0} are at hand; connect(2) takes {} at p99.9, {} in the mean{why}",
            time(evidence.connect_us.p99_9),
            time(evidence.connect_us.mean)
        ),
    ))
}

pub(super) fn errors(evidence: &Evidence) -> Option<Check> {
    let tried = (evidence.requests + evidence.errors) as f64;
    Some(suspect_if(
        "errors",
        evidence.errors as f64 > ERROR_SHARE * tried,
        format!(
            "{} errors beside {} answers (bar {} %)",
            evidence.errors,
            evidence.requests,
            ERROR_SHARE * 100.0
        ),
    ))
}

pub(super) fn censored(evidence: &Evidence) -> Option<Check> {
    Some(suspect_if(
        "censored",
        evidence.censored as f64 > CENSORED_SHARE * evidence.responses as f64,
        format!(
            "{} of {} times are ages of requests never answered, each too short (bar {} %)",
            evidence.censored,
            evidence.responses,
            CENSORED_SHARE * 100.0
        ),
    ))
}

/// Few answers make a percentile uncertain, not wrong, and the reader can be told how few. To call every short run
/// suspect teaches to ignore the word. Only below 100 answers is it one: what stands under p99 is the maximum then.
pub(super) fn percentiles(evidence: &Evidence) -> Option<Check> {
    if evidence.responses == 0 {
        return None;
    }
    let (p99, p99_9) = (evidence.responses / 100, evidence.responses / 1000);
    let rests_on = |count: u64| match count {
        0 => "is the maximum".into(),
        1 => "rests on 1 answer".into(),
        _ => format!("rests on {count} answers"),
    };
    let few = |count: u64| (count as f64) < ANSWERS_BEYOND;
    let reason = match (few(p99), few(p99_9)) {
        _ if p99 == 0 => format!("of {} times p99 is the maximum: do not quote it", evidence.responses),
        (true, _) => format!("p99 {}, p99.9 {}: do not quote them", rests_on(p99), rests_on(p99_9)),
        (_, true) => format!("p99 {}, p99.9 {}: do not quote it", rests_on(p99), rests_on(p99_9)),
        _ => format!("p99 {}", rests_on(p99)),
    };
    Some(suspect_if("percentiles", p99 == 0, reason))
}

pub(super) fn connections(evidence: &Evidence) -> Option<Check> {
    // Nobody opens more than there are requests, and connections for one request come and go.
    if evidence.handshake_us.is_some() || evidence.pattern == Pattern::Sessions {
        return None;
    }
    let asked = evidence.connections_asked.min(evidence.requests.max(evidence.due_in_window));
    let peak = evidence.connections_peak;
    let verdict = match peak as f64 {
        open if open < CONNECTIONS_OPEN * asked as f64 => Verdict::Invalid,
        _ if peak < asked => Verdict::Suspect,
        _ => Verdict::Valid,
    };
    Some(check("connections", verdict, format!("{peak} connections were open at most, {asked} wanted")))
}

pub(super) fn complete(evidence: &Evidence) -> Option<Check> {
    let how = if evidence.interrupted { "the run was ended early" } else { "the run went to its end" };
    Some(suspect_if("complete", evidence.interrupted, how.into()))
}

pub(super) fn start(evidence: &Evidence) -> Option<Check> {
    let late_ns = evidence.late_start_ns?;
    let verdict = if late_ns > LATE_START_NS { Verdict::Invalid } else { Verdict::Valid };
    let bar = time(LATE_START_NS as f64 / 1e3);
    Some(check(
        "start",
        verdict,
        format!("it began {} after --start-at (bar {bar})", time(late_ns as f64 / 1e3)),
    ))
}
