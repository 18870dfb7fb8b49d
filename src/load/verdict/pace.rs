//! Whether requests were due, and sent, as asked for.

use super::*;
use crate::stats::{gamma_cdf, kolmogorov_smirnov, spearman};

pub(super) fn rate(evidence: &Evidence) -> Option<Check> {
    let asked =
        evidence.rate_asked.filter(|_| !evidence.ends_by_count && evidence.pattern != Pattern::Sessions)?;
    let expected = asked * evidence.duration_s;
    let tolerance = match evidence.pattern {
        // The count of a Poisson process has the standard deviation √(λT).
        Pattern::Poisson => Z_STRICT * expected.sqrt() + 1.0,
        Pattern::Burst(size) => f64::from(size) + expected / 1000.0,
        _ => 2.0 + expected / 1000.0,
    };
    let due = evidence.due_in_window as f64;
    Some(suspect_if(
        "rate",
        (due - expected).abs() > tolerance,
        format!("{due} requests were due, {expected:.0} asked for (bar: within {tolerance:.0})"),
    ))
}

pub(super) fn achieved(evidence: &Evidence) -> Option<Check> {
    if !evidence.is_open_loop() || evidence.due_in_window == 0 {
        return None;
    }
    let due = evidence.due_in_window as f64;
    let due_per_s = over(due, evidence.duration_s);
    let under_way = if evidence.ends_by_count {
        due
    } else {
        rightly_under_way(due_per_s, evidence.response_us.mean, evidence.duration_s)
    };
    // What was answered at all, and what was answered in time not to pile up.
    let answered = (evidence.answered_of_due as f64).min(evidence.requests as f64 + under_way);
    let achieved = (answered / due).min(1.0);
    let (verdict, why) = match achieved {
        share if share >= ACHIEVED => (Verdict::Valid, ""),
        share if share < ACHIEVED_AT_ALL && client_was_late(evidence) => {
            (Verdict::Invalid, "; the client could not send them in time: more --threads, or a lower --rate")
        }
        _ if evidence.errors as f64 > 0.5 * (due - answered) => {
            (Verdict::Suspect, "; most of the others failed: see the errors")
        }
        _ => (
            Verdict::Suspect,
            "; the server did not keep up: its latency here depends on the length of the run",
        ),
    };
    Some(check(
        "achieved",
        verdict,
        format!(
            "{:.2} % of the {due} requests due were answered in time (bar {} %){why}",
            achieved * 100.0,
            ACHIEVED * 100.0
        ),
    ))
}

/// Whether it is the client that is to blame for what was not answered: it had no CPU time left, or it let connections
/// lie idle while it was as late as it takes to lose so much. A slip of a millisecond loses nothing; a connection that
/// waits, backs off or is broken is not the client's.
fn client_was_late(evidence: &Evidence) -> bool {
    let lost_s = (1.0 - ACHIEVED_AT_ALL) * evidence.duration_s;
    // With --deadline what is later than that is never sent, and its slip not known.
    let late_s = evidence.deadline_s.map_or(lost_s, |deadline_s| lost_s.min(0.5 * deadline_s));
    let missing = evidence.due_in_window.saturating_sub(evidence.requests);
    let is_broken = (evidence.errors + evidence.given_up) * 2 > missing;
    evidence.client_is_busy()
        || (evidence.slip_us.p50 > late_s * 1e6
            && evidence.connections_busy() < CONNECTIONS_BUSY
            && !is_broken)
}

pub(super) fn gaps(evidence: &Evidence) -> Option<Check> {
    let skipped = |why: &str| Some(check("gaps", Verdict::Valid, format!("not judged: {why}")));
    match evidence.pattern {
        Pattern::Closed => None,
        Pattern::Sessions => skipped("when a session's next request is due depends on the answer before"),
        Pattern::Poisson => match Gaps::of(evidence) {
            None => skipped("too few requests, or no rate, to tell a distribution"),
            Some(gaps) => Some(exponential(&gaps)),
        },
        Pattern::Fixed | Pattern::Burst(_) | Pattern::Ramp | Pattern::Replay => Some(punctuality(evidence)),
    }
}

/// The gaps actually sent against the exponential distribution (sums of them: against the gamma distribution).
fn exponential(gaps: &Gaps) -> Check {
    let mut sorted: Vec<f64> = gaps.in_means.clone();
    sorted.sort_by(f64::total_cmp);
    let (distance, p_value) = kolmogorov_smirnov(&sorted, |x| gamma_cdf(gaps.summed as f64, x));
    suspect_if(
        "gaps",
        p_value < P_BAR && distance > KS_SIZE,
        format!(
            "{} sums of {} gaps are {} from Poisson's (Kolmogorov-Smirnov D; bar {KS_SIZE}), p = {} (bar {P_BAR})",
            gaps.in_means.len(),
            gaps.summed,
            number(distance),
            number(p_value)
        ),
    )
}

/// Sends against due times, for schedules that are no distribution.
fn punctuality(evidence: &Evidence) -> Check {
    let pairs = evidence.sends.iter().zip(evidence.dues);
    let late = |tolerance_ns: f64| {
        pairs.clone().filter(|&(&send, &due)| send.abs_diff(due) as f64 > tolerance_ns).count()
    };
    let tolerance_ns = evidence.rate_asked.map_or(0.0, |rate| 1e9 / rate).max(LATE_FLOOR_NS);
    let count = pairs.len();
    if count == 0 {
        return check("gaps", Verdict::Valid, "not judged: no request was sent".into());
    }
    let late_share = late(tolerance_ns) as f64 / count as f64;
    suspect_if(
        "gaps",
        late_share > LATE_SHARE,
        format!(
            "{:.2} % of the first {count} requests were sent more than {} from their due time (bar {} %)",
            late_share * 100.0,
            time(tolerance_ns / 1e3),
            LATE_SHARE * 100.0
        ),
    )
}

pub(super) fn independence(evidence: &Evidence) -> Option<Check> {
    if evidence.pattern != Pattern::Poisson {
        return None;
    }
    let gaps = Gaps::of(evidence)?.in_means;
    let n = gaps.len() - 1;
    let correlation = spearman(&gaps[..n], &gaps[1..]);
    let bar = (Z_BAR / (n as f64).sqrt()).max(CORRELATION_SIZE);
    Some(suspect_if(
        "independence",
        correlation.abs() > bar,
        format!(
            "neighbouring gaps correlate by {correlation:.3} (Spearman; bar {bar:.3}, standard error {:.3})",
            1.0 / (n as f64).sqrt()
        ),
    ))
}

/// Gaps between sends, or sums of so many of them that each is long enough to be kept.
struct Gaps {
    summed: usize,
    /// In units of the mean gap that was asked for.
    in_means: Vec<f64>,
}

impl Gaps {
    /// `None` when they are too few.
    fn of(evidence: &Evidence) -> Option<Gaps> {
        let mean_ns = 1e9 / evidence.rate_asked?;
        let summed = (GAP_SCALE_NS / mean_ns).ceil().max(1.0) as usize;
        // Threads hand over their sends in the order of the due times: nearly sorted.
        let mut sends = evidence.sends.to_vec();
        sends.sort_unstable();
        let marks: Vec<u64> = sends.into_iter().step_by(summed).collect();
        let in_means: Vec<f64> = marks.windows(2).map(|pair| (pair[1] - pair[0]) as f64 / mean_ns).collect();
        (in_means.len() >= MIN_GAPS).then_some(Gaps { summed, in_means })
    }
}

pub(super) fn slip(evidence: &Evidence) -> Option<Check> {
    if !evidence.is_open_loop() {
        return None;
    }
    if evidence.errors > evidence.requests {
        // Their ages are no response times to hold a slip against.
        return Some(check("slip", Verdict::Valid, "not judged: most requests failed".into()));
    }
    let found = slip_matters(evidence);
    let why = match found {
        Some(_) if evidence.connections_busy() >= CONNECTIONS_BUSY => {
            "; all connections were busy: more --connections, unless that is what you ask"
        }
        Some(_) => "; that is the client's own lateness: --pin, --busy-poll, or an idle CPU for it",
        None => "",
    };
    let (name, slip_us, of_us, bar) = found.unwrap_or_else(|| slips(evidence)[0]);
    Some(suspect_if(
        "slip",
        found.is_some(),
        format!(
            "requests were sent {} late at {name}, where the response takes {} (bar {} %, or {}){why}",
            time(slip_us),
            time(of_us),
            bar * 100.0,
            time(SLIP_FLOOR_US)
        ),
    ))
}

/// A slip that is a material share of the response it belongs to: percentile, slip, response, bar.
fn slip_matters(evidence: &Evidence) -> Option<(&'static str, f64, f64, f64)> {
    slips(evidence)
        .into_iter()
        .find(|&(_, slip_us, of_us, bar)| slip_us > SLIP_FLOOR_US && slip_us > bar * of_us)
}

fn slips(evidence: &Evidence) -> Vec<(&'static str, f64, f64, f64)> {
    let (slip, response) = (&evidence.slip_us, &evidence.response_us);
    // A request that needs a handshake is not late while it has it.
    let handshake = evidence.handshake_us.unwrap_or_default();
    let rests_on = |quantile: f64| evidence.responses as f64 * (1.0 - quantile) >= ANSWERS_BEYOND;
    let mut slips = vec![("p50", slip.p50 - handshake.p50, response.p50, SLIP_OF_MEDIAN)];
    if rests_on(0.99) {
        slips.push(("p99", slip.p99 - handshake.p99, response.p99, SLIP_OF_TAIL));
    }
    if rests_on(0.999) {
        slips.push(("p99.9", slip.p99_9 - handshake.p99_9, response.p99_9, SLIP_OF_TAIL));
    }
    slips.into_iter().map(|(name, slip_us, of_us, bar)| (name, slip_us.max(0.0), of_us, bar)).collect()
}
