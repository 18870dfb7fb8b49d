//! Can these numbers be trusted? Pure: evidence in, a verdict with its reasons out.
//!
//! A check asks two things where chance plays a part: is this more than chance would do, and is it large enough to
//! matter? The first alone would condemn every long run, since no machine is exact; the second alone every short one.
//! `invalid` is kept for runs that did not measure what was asked for; a server that is too slow is a finding.

use crate::load::evenness::upper_incomplete_gamma;
use crate::load::gate::number;
use crate::load::text::time;
use crate::machine::Counters;
use crate::report::{Check, IntervalReport, Latency, Trust, Verdict};
use crate::units::over;

/// What decides the moments at which requests are due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pattern {
    #[default]
    Closed,
    Fixed,
    Poisson,
    /// So many at once.
    Burst(u32),
    Ramp,
    Replay,
    /// Users arrive by Poisson; what they ask next is due when they have thought.
    Sessions,
}

/// What a run knows about itself, in plain numbers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Evidence<'a> {
    pub pattern: Pattern,
    /// Requests per second asked for, the mean over the window; `None` in closed loop and with --replay.
    pub rate_asked: Option<f64>,
    /// A number of requests ended the window, with the last answer: its length then says nothing about the rate.
    pub ends_by_count: bool,
    pub duration_s: f64,
    /// Open loop: requests due in the window, and those of them that got an answer, however late.
    pub due_in_window: u64,
    pub answered_of_due: u64,
    /// Answered within the window; with --connect-only the connections.
    pub requests: u64,
    /// Requests of the window that were sent, whatever became of them; those answered after its end; those that were
    /// never answered since --deadline was over, in the whole run.
    pub sent: u64,
    pub answered_late: u64,
    pub given_up: u64,
    /// --deadline, after which nothing is sent any more.
    pub deadline_s: Option<f64>,
    /// When requests were sent and due, in nanoseconds, one pair per request in the order of the due times: the
    /// first ones of the window, of all threads.
    pub sends: &'a [u64],
    pub dues: &'a [u64],
    pub intervals: &'a [IntervalReport],
    /// Response time, and how many times are in it; then the same of service time and slip.
    pub response_us: Latency,
    pub responses: u64,
    pub service_us: Latency,
    pub slip_us: Latency,
    pub connect_us: Latency,
    /// Connect time, when every request opens a connection of its own and is sent once that is established.
    pub handshake_us: Option<Latency>,
    pub cpu_share: f64,
    pub busy_poll: bool,
    /// What the machine counted meanwhile, and in how many seconds (warm-up and drain included).
    pub machine: Counters,
    pub machine_s: f64,
    /// Connections, without the crowd.
    pub connections_asked: u64,
    pub connections_peak: u64,
    pub connections_opened: u64,
    /// Connections per second beyond which source ports become rare, where we close first.
    pub ports_per_s: Option<f64>,
    pub errors: u64,
    pub censored: u64,
    pub interrupted: bool,
    /// How much later than --start-at it began.
    pub late_start_ns: Option<u64>,
}

/// Below this p-value chance is no explanation: of a thousand good runs one is accused. z is the same in standard
/// deviations of the normal distribution, two-sided.
const P_BAR: f64 = 0.001;
const Z_BAR: f64 = 3.29;
/// The same where a check is made of every run and costs nothing to make strict (p < 10⁻⁵).
const Z_STRICT: f64 = 4.4;
/// Of what was due, this share must be answered.
pub(crate) const ACHIEVED: f64 = 0.99;
/// Below this share, and with the client to blame, the run measured the client.
const ACHIEVED_AT_ALL: f64 = 0.95;
/// Gaps are summed up to this length before they are judged. A client that sleeps wakes up to 100 us late (timer slack,
/// scheduling), so gaps shorter than that collapse into one moment: at ten times that it moves the distribution function
/// by less than the bar, and nothing is lost for a queue, which feels how many come in a millisecond.
const GAP_SCALE_NS: f64 = 1_000_000.0;
/// What a fixed schedule may always be late.
const LATE_FLOOR_NS: f64 = 200_000.0;
/// The largest distance between two distribution functions that is still no matter.
const KS_SIZE: f64 = 0.1;
/// Of the requests of a fixed schedule, this share may be sent later than a gap after their time.
const LATE_SHARE: f64 = 0.05;
/// A rank correlation of neighbouring gaps that is still no matter.
const CORRELATION_SIZE: f64 = 0.1;
/// What the last third of a run may differ from the first.
const DRIFT_QPS: f64 = 0.1;
const DRIFT_LATENCY: f64 = 0.25;
const DRIFT_LATENCY_US: f64 = 50.0;
/// Intervals are averaged into this many stretches, each long enough to be nearly independent of the next.
const STRETCHES: usize = 20;
/// From this share of its threads' time on the client may be what limits the figures.
pub(crate) const BUSY_CLIENT: f64 = 0.9;
/// The part of a response time that may be the client's own slip, at the median and in the tail, and the slip that
/// never matters.
const SLIP_OF_MEDIAN: f64 = 0.2;
const SLIP_OF_TAIL: f64 = 0.5;
const SLIP_FLOOR_US: f64 = 100.0;
/// From this share of their time on, by Little's law, the connections and not the clock decide when to send.
const CONNECTIONS_BUSY: f64 = 0.9;
const STEAL_SHARE: f64 = 0.02;
/// The kernel counts steal in ticks: fewer are rounding.
const STEAL_TICKS: u64 = 3;
const ERROR_SHARE: f64 = 0.001;
const CENSORED_SHARE: f64 = 0.001;
/// A percentile rests on the answers beyond it.
const ANSWERS_BEYOND: f64 = 10.0;
const CONNECTIONS_OPEN: f64 = 0.9;
/// From this much on a client began too late to be part of the same load.
pub(crate) const LATE_START_NS: u64 = 100_000_000;
/// From this share of the window on, silence at its end is no chance; it must have cost so many answers, too.
const SILENCE: f64 = 0.1;
const ANSWERS_MISSED: f64 = 10.0;
/// What was lost to an accept queue is sent again after this time at the earliest (TCP_RTO_MIN, include/net/tcp.h).
const RETRANSMISSION_US: f64 = 200_000.0;
/// No listener has a smaller backlog: the largest that 4.2BSD knew (Stevens, UNP vol. 1, section 4.5).
const SMALL_BACKLOG: u64 = 5;
/// From this share of the rate on that the source ports allow, they and not the server may set it; then a handshake
/// takes longer than this at p99.9 (on one machine 20 us otherwise).
const PORTS_SHARE: f64 = 0.9;
const SLOW_CONNECT_US: f64 = 1000.0;
/// Fewer values are no sample.
const MIN_GAPS: usize = 100;

/// Every check by its name, with the bar it holds a run to.
pub fn bars() -> Vec<(&'static str, String)> {
    let percent = |share: f64| format!("{} %", number(share * 100.0));
    vec![
        ("requests", "something was answered (else invalid)".into()),
        (
            "served",
            format!(
                "the end of the window, {} of it or more and longer than p99.9, was not without an answer to {ANSWERS_MISSED} requests or more (else invalid; if --deadline ended them: suspect)",
                percent(SILENCE)
            ),
        ),
        (
            "rate",
            format!(
                "open loop: as many were due as were asked for, within chance ({Z_STRICT} standard deviations of the Poisson count; one in 1000 otherwise)"
            ),
        ),
        (
            "achieved",
            format!(
                "open loop: at least {} of what was due was answered, apart from what is rightly under way at the end (Little's law: rate x mean response); below {} because of the client (its CPU, or a slip as long while connections were free): invalid",
                percent(ACHIEVED),
                percent(ACHIEVED_AT_ALL)
            ),
        ),
        (
            "gaps",
            format!(
                "Poisson: sums of gaps, at least {} long, against the gamma distribution; Kolmogorov-Smirnov p >= {P_BAR}, or D <= {KS_SIZE}. Otherwise: at most {} sent later than one gap (at least {}) after they were due",
                time(GAP_SCALE_NS / 1e3),
                percent(LATE_SHARE),
                time(LATE_FLOOR_NS / 1e3)
            ),
        ),
        (
            "independence",
            format!(
                "Poisson: Spearman's rank correlation of neighbouring gaps within {Z_BAR}/sqrt(n), or below {CORRELATION_SIZE}"
            ),
        ),
        (
            "drift",
            format!(
                "rate and mean response time do not rise or fall with time (Spearman, {STRETCHES} stretches, p >= {P_BAR}), or the last third differs from the first by less than {} in rate, {} in time",
                percent(DRIFT_QPS),
                percent(DRIFT_LATENCY)
            ),
        ),
        (
            "cpu",
            format!(
                "the client used at most {} of its threads' time (not with --busy-poll)",
                percent(BUSY_CLIENT)
            ),
        ),
        (
            "slip",
            format!(
                "open loop: the slip is at most {} of the median response time and {} of p99 and p99.9, or below {}",
                percent(SLIP_OF_MEDIAN),
                percent(SLIP_OF_TAIL),
                time(SLIP_FLOOR_US)
            ),
        ),
        ("steal", format!("the hypervisor took at most {} of the machine's time", percent(STEAL_SHARE))),
        (
            "accept_queue",
            format!(
                "no accept queue of this machine overflowed, or it was another's: this run opened at most {SMALL_BACKLOG} connections, or none of its requests waited as long as a retransmission takes ({})",
                time(RETRANSMISSION_US)
            ),
        ),
        (
            "ports",
            format!(
                "--connect-only --close fin: at most {} of the connections/s that the source ports allow, or connect(2) takes at most {} at p99.9",
                percent(PORTS_SHARE),
                time(SLOW_CONNECT_US)
            ),
        ),
        ("errors", format!("at most {} of the requests failed", percent(ERROR_SHARE))),
        (
            "censored",
            format!(
                "at most {} of the times are ages of requests that were never answered",
                percent(CENSORED_SHARE)
            ),
        ),
        (
            "percentiles",
            format!(
                "p99 rests on one answer at least; fewer than {ANSWERS_BEYOND} beyond it, or beyond p99.9, are remarked upon"
            ),
        ),
        (
            "connections",
            format!(
                "as many were open as were asked for; below {} of them: invalid",
                percent(CONNECTIONS_OPEN)
            ),
        ),
        ("complete", "the run was not ended early".into()),
        ("start", format!("--start-at was kept to {} (else invalid)", time(LATE_START_NS as f64 / 1e3))),
    ]
}

/// All checks that apply to this run; the verdict is the worst of them.
pub fn judge(evidence: &Evidence) -> Trust {
    let checks: Vec<Check> = [
        requests(evidence),
        served(evidence),
        rate(evidence),
        achieved(evidence),
        gaps(evidence),
        independence(evidence),
        drift(evidence),
        cpu(evidence),
        slip(evidence),
        steal(evidence),
        accept_queue(evidence),
        ports(evidence),
        errors(evidence),
        censored(evidence),
        percentiles(evidence),
        connections(evidence),
        complete(evidence),
        start(evidence),
    ]
    .into_iter()
    .flatten()
    .collect();
    Trust { verdict: checks.iter().map(|check| check.verdict).max().unwrap_or_default(), checks }
}

impl Evidence<'_> {
    fn is_open_loop(&self) -> bool {
        self.pattern != Pattern::Closed
    }

    /// The share of their time that the connections were waiting for answers (Little's law: L = λW).
    /// Requests that failed or were given up kept theirs busy as well.
    /// A burst larger than they are many waits for them however idle they are otherwise.
    fn connections_busy(&self) -> f64 {
        if matches!(self.pattern, Pattern::Burst(size) if u64::from(size) > self.connections_asked) {
            return 1.0;
        }
        let per_s = over(self.sent as f64, self.duration_s);
        over(per_s * self.service_us.mean / 1e6, self.connections_asked as f64)
    }

    fn client_is_busy(&self) -> bool {
        !self.busy_poll && self.cpu_share > BUSY_CLIENT
    }
}

/// Requests that a server which keeps up has under way at the end of the window (Little's law). A mean beyond
/// a twentieth of the run is no steady state and excuses nothing.
pub(crate) fn rightly_under_way(offered_per_s: f64, mean_response_us: f64, duration_s: f64) -> f64 {
    offered_per_s * (mean_response_us / 1e6).min(0.05 * duration_s)
}

fn requests(evidence: &Evidence) -> Option<Check> {
    Some(match evidence.requests {
        0 => check("requests", Verdict::Invalid, "nothing was answered in the measured window".into()),
        n => check("requests", Verdict::Valid, format!("{n} answers in {} s", number(evidence.duration_s))),
    })
}

/// Half of a run is no run: a server that dies in mid-window leaves figures that look sound, since what is never
/// answered has no rate, and little weight among all that was.
fn served(evidence: &Evidence) -> Option<Check> {
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

fn rate(evidence: &Evidence) -> Option<Check> {
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

fn achieved(evidence: &Evidence) -> Option<Check> {
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

fn gaps(evidence: &Evidence) -> Option<Check> {
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

fn independence(evidence: &Evidence) -> Option<Check> {
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

fn drift(evidence: &Evidence) -> Option<Check> {
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
            first: median(&values[..third]),
            last: median(&values[values.len() - third..]),
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

fn cpu(evidence: &Evidence) -> Option<Check> {
    let used = format!("the client used {:.0} % of its threads' time", evidence.cpu_share * 100.0);
    if evidence.busy_poll {
        return Some(check("cpu", Verdict::Valid, format!("not judged: {used}, as --busy-poll always does")));
    }
    let advice = if evidence.client_is_busy() { "; the client may be the limit: more --threads" } else { "" };
    let bar = BUSY_CLIENT * 100.0;
    Some(suspect_if("cpu", evidence.client_is_busy(), format!("{used} (bar {bar} %){advice}")))
}

fn slip(evidence: &Evidence) -> Option<Check> {
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

fn steal(evidence: &Evidence) -> Option<Check> {
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
fn accept_queue(evidence: &Evidence) -> Option<Check> {
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
fn ports(evidence: &Evidence) -> Option<Check> {
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

fn errors(evidence: &Evidence) -> Option<Check> {
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

fn censored(evidence: &Evidence) -> Option<Check> {
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
fn percentiles(evidence: &Evidence) -> Option<Check> {
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

fn connections(evidence: &Evidence) -> Option<Check> {
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

fn complete(evidence: &Evidence) -> Option<Check> {
    let how = if evidence.interrupted { "the run was ended early" } else { "the run went to its end" };
    Some(suspect_if("complete", evidence.interrupted, how.into()))
}

fn start(evidence: &Evidence) -> Option<Check> {
    let late_ns = evidence.late_start_ns?;
    let verdict = if late_ns > LATE_START_NS { Verdict::Invalid } else { Verdict::Valid };
    let bar = time(LATE_START_NS as f64 / 1e3);
    Some(check(
        "start",
        verdict,
        format!("it began {} after --start-at (bar {bar})", time(late_ns as f64 / 1e3)),
    ))
}

fn check(name: &str, verdict: Verdict, reason: String) -> Check {
    Check { name: name.into(), verdict, reason }
}

fn suspect_if(name: &str, is_suspect: bool, reason: String) -> Check {
    check(name, if is_suspect { Verdict::Suspect } else { Verdict::Valid }, reason)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

/// P(X ≤ x) of the sum of `shape` exponential variables with mean 1 (Erlang's distribution).
fn gamma_cdf(shape: f64, x: f64) -> f64 {
    if shape == 1.0 { -(-x).exp_m1() } else { 1.0 - upper_incomplete_gamma(shape, x) }
}

/// The largest distance D between the sample's distribution function and `cdf`, and the probability of one at least
/// as large: Q(λ) = 2 Σ (−1)^(j−1) exp(−2j²λ²) with λ = (√n + 0.12 + 0.11/√n)·D (Stephens, J. R. Stat. Soc. B 32
/// (1970); Press et al., Numerical Recipes, 3rd ed., section 14.3.3). The distribution is known, not fitted.
fn kolmogorov_smirnov(sorted: &[f64], cdf: impl Fn(f64) -> f64) -> (f64, f64) {
    let n = sorted.len() as f64;
    let distance = (0..).zip(sorted).fold(0.0f64, |most, (i, &x)| {
        let below = cdf(x);
        most.max(below - f64::from(i) / n).max(f64::from(i + 1) / n - below)
    });
    (distance, kolmogorov_tail((n.sqrt() + 0.12 + 0.11 / n.sqrt()) * distance))
}

fn kolmogorov_tail(lambda: f64) -> f64 {
    // Below, the alternating series converges slowly, and the value is 1 to ten digits.
    if lambda < 0.2 {
        return 1.0;
    }
    let term = |j: i32| (-2.0 * f64::from(j * j) * lambda * lambda).exp();
    (2.0 * (1..=100).map(|j| if j % 2 == 1 { term(j) } else { -term(j) }).sum::<f64>()).clamp(0.0, 1.0)
}

/// Spearman's rank correlation: Pearson's, of the ranks; ties share the mean of their ranks.
fn spearman(xs: &[f64], ys: &[f64]) -> f64 {
    let (xs, ys) = (ranks(xs), ranks(ys));
    // Ranks of n values have the mean (n + 1)/2, tied or not.
    let mean = (xs.len() as f64 + 1.0) / 2.0;
    let (mut xy, mut xx, mut yy) = (0.0, 0.0, 0.0);
    for (x, y) in xs.iter().zip(&ys) {
        xy += (x - mean) * (y - mean);
        xx += (x - mean).powi(2);
        yy += (y - mean).powi(2);
    }
    over(xy, (xx * yy).sqrt())
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut at = 0;
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        // Ranks at + 1 … at + length.
        let rank = at as f64 + (tied.len() as f64 + 1.0) / 2.0;
        tied.iter().for_each(|&i| ranks[i] = rank);
        at += tied.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;

    const RATE: f64 = 2000.0;
    const SECONDS: f64 = 10.0;

    /// A run and what its evidence borrows.
    struct Run {
        evidence: Evidence<'static>,
        sends: Vec<u64>,
        dues: Vec<u64>,
        intervals: Vec<IntervalReport>,
    }

    impl Run {
        fn judge(&self) -> Trust {
            let (sends, dues, intervals) = (&self.sends[..], &self.dues[..], &self.intervals[..]);
            super::judge(&Evidence { sends, dues, intervals, ..self.evidence })
        }

        /// The checks that did not pass.
        fn defects(&self) -> Vec<(String, Verdict)> {
            let checks = self.judge().checks.into_iter();
            let failed = checks.filter(|check| check.verdict != Verdict::Valid);
            failed.map(|check| (check.name, check.verdict)).collect()
        }
    }

    fn exponential_ns(rng: &mut Rng, mean_ns: f64) -> f64 {
        -mean_ns * (1.0 - rng.f64()).ln()
    }

    fn good(pattern: Pattern, seed: u64) -> Run {
        good_for(SECONDS, pattern, seed)
    }

    /// An idle server, and an idle client that is a few wake-ups late.
    fn good_for(seconds: f64, pattern: Pattern, seed: u64) -> Run {
        let mut rng = Rng::with_seed(seed);
        let times = Latency {
            p50: 300.0,
            p90: 450.0,
            p99: 900.0,
            p99_9: 2500.0,
            max: 4000.0,
            mean: 320.0,
            stdev: 90.0,
        };
        let n = (RATE * seconds) as u64;
        let mut due_ns = 0.0;
        let mut dues: Vec<u64> = (0..n)
            .map(|k| {
                due_ns = match pattern {
                    Pattern::Poisson => due_ns + exponential_ns(&mut rng, 1e9 / RATE),
                    Pattern::Burst(size) => (k / u64::from(size) * u64::from(size)) as f64 * 1e9 / RATE,
                    Pattern::Ramp => (k as f64 / n as f64).sqrt() * seconds * 1e9,
                    _ => k as f64 * 1e9 / RATE,
                };
                due_ns as u64
            })
            .collect();
        if pattern == Pattern::Poisson {
            dues.retain(|&due| due < (seconds * 1e9) as u64);
        }
        let sends = dues.iter().map(|due| due + 5_000 + exponential_ns(&mut rng, 15_000.0) as u64).collect();
        let intervals = (0..100)
            .map(|i| IntervalReport {
                from_s: f64::from(i) / 10.0,
                to_s: f64::from(i + 1) / 10.0,
                measured: true,
                requests: 180 + rng.u64(0..40),
                latency_us: Latency { mean: 300.0 + 40.0 * rng.f64(), ..times },
                ..IntervalReport::default()
            })
            .collect();
        let requests = dues.len() as u64;
        let open = pattern != Pattern::Closed;
        let evidence = Evidence {
            pattern,
            rate_asked: (open && pattern != Pattern::Replay).then_some(RATE),
            duration_s: seconds,
            due_in_window: if open { requests } else { 0 },
            answered_of_due: if open { requests } else { 0 },
            requests,
            sent: requests,
            response_us: times,
            responses: requests,
            service_us: Latency { p50: 270.0, mean: 290.0, ..times },
            slip_us: Latency {
                p50: 15.0,
                p90: 40.0,
                p99: 75.0,
                p99_9: 110.0,
                max: 200.0,
                mean: 20.0,
                stdev: 15.0,
            },
            cpu_share: 0.2,
            machine_s: seconds,
            connections_asked: 64,
            connections_peak: 64,
            connections_opened: 64,
            ..Evidence::default()
        };
        Run { evidence, sends, dues, intervals }
    }

    const PATTERNS: [Pattern; 6] = [
        Pattern::Closed,
        Pattern::Fixed,
        Pattern::Poisson,
        Pattern::Burst(10),
        Pattern::Ramp,
        Pattern::Replay,
    ];

    #[test]
    fn a_good_run_of_every_kind_is_valid_and_says_why() {
        for pattern in PATTERNS.into_iter().chain([Pattern::Sessions]) {
            let trust = good(pattern, 1).judge();
            assert_eq!(trust.verdict, Verdict::Valid, "{pattern:?}: {:?}", good(pattern, 1).defects());
            assert!(trust.checks.len() > 8);
            assert!(
                trust.checks.iter().all(|check| !check.reason.is_empty() && !check.reason.contains('\n'))
            );
            let known: Vec<&str> = bars().into_iter().map(|(name, _)| name).collect();
            assert!(trust.checks.iter().all(|check| known.contains(&check.name.as_str())));
        }
    }

    #[test]
    fn a_good_poisson_run_is_accused_less_than_once_in_a_hundred() {
        let accused =
            (0..1000).filter(|&seed| !good_for(1.0, Pattern::Poisson, seed).defects().is_empty()).count();
        assert!(accused <= 10, "{accused} of 1000");
    }

    /// Each defect alone fails its check, and no other.
    #[track_caller]
    fn fails(pattern: Pattern, name: &str, verdict: Verdict, spoil: impl Fn(&mut Run)) {
        let mut run = good(pattern, 3);
        spoil(&mut run);
        assert_eq!(run.defects(), [(name.to_string(), verdict)], "{:#?}", run.judge());
        assert_eq!(run.judge().verdict, verdict);
    }

    #[test]
    fn uniform_gaps_are_not_poisson() {
        fails(Pattern::Poisson, "gaps", Verdict::Suspect, |run| {
            let mut rng = Rng::with_seed(5);
            let mut at_ns = 0;
            for send in &mut run.sends {
                at_ns += rng.u64(0..(2e9 / RATE) as u64);
                *send = at_ns;
            }
        });
    }

    #[test]
    fn poisson_arrivals_sent_in_batches_are_neither_poisson_nor_independent() {
        let mut run = good(Pattern::Poisson, 3);
        // A client that looks at the clock once a millisecond.
        run.sends.iter_mut().for_each(|send| *send = send.div_ceil(1_000_000) * 1_000_000);
        let suspect = |name: &str| (name.to_string(), Verdict::Suspect);
        assert_eq!(run.defects(), [suspect("gaps"), suspect("independence")]);
    }

    #[test]
    fn gaps_in_a_certain_order_are_not_independent() {
        fails(Pattern::Poisson, "independence", Verdict::Suspect, |run| {
            // The same gaps by twos, as they are judged at this rate; each eight in ascending order: long follows long.
            let gaps: Vec<u64> = run.sends.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).collect();
            let mut twos: Vec<&[u64]> = gaps.chunks(2).collect();
            twos.chunks_mut(8).for_each(|part| part.sort_unstable_by_key(|two| two.iter().sum::<u64>()));
            let mut at_ns = run.sends[0];
            for (send, gap) in run.sends[1..].iter_mut().zip(twos.concat()) {
                at_ns += gap;
                *send = at_ns;
            }
        });
    }

    #[test]
    fn a_fixed_schedule_that_was_not_kept_is_seen() {
        for pattern in [Pattern::Fixed, Pattern::Burst(10), Pattern::Ramp, Pattern::Replay] {
            fails(pattern, "gaps", Verdict::Suspect, |run| {
                run.sends.iter_mut().step_by(10).for_each(|send| *send += 2_000_000);
            });
        }
    }

    #[test]
    fn a_run_that_grows_slower_or_loses_pace_drifts() {
        fails(Pattern::Poisson, "drift", Verdict::Suspect, |run| {
            for (i, interval) in run.intervals.iter_mut().enumerate() {
                interval.latency_us.mean *= 1.0 + i as f64 / 100.0;
            }
        });
        fails(Pattern::Closed, "drift", Verdict::Suspect, |run| {
            for (i, interval) in run.intervals.iter_mut().enumerate() {
                interval.requests = 300 - i as u64;
            }
        });
    }

    #[test]
    fn a_long_run_is_not_accused_of_trifles() {
        let mut run = good(Pattern::Closed, 3);
        let hours = (0..100_000).map(|i| {
            let interval = run.intervals[i % 100].clone();
            // Three per cent slower at the end: certain, and no matter.
            let mean = interval.latency_us.mean * (1.0 + 0.03 * i as f64 / 1e5);
            IntervalReport { latency_us: Latency { mean, ..interval.latency_us }, ..interval }
        });
        run.intervals = hours.collect();
        assert_eq!(run.defects(), []);
    }

    #[test]
    fn each_number_beyond_its_bar_fails_its_own_check() {
        use Pattern::{Closed, Fixed, Poisson};
        use Verdict::{Invalid, Suspect};
        fails(Fixed, "rate", Suspect, |run| run.evidence.rate_asked = Some(RATE * 1.02));
        fails(Poisson, "achieved", Suspect, |run| run.evidence.answered_of_due -= 1000);
        fails(Fixed, "achieved", Suspect, |run| run.evidence.requests -= 1000);
        fails(Closed, "cpu", Suspect, |run| run.evidence.cpu_share = 0.97);
        fails(Fixed, "cpu", Suspect, |run| run.evidence.cpu_share = 0.97);
        fails(Fixed, "slip", Suspect, |run| run.evidence.slip_us.p50 = 140.0);
        fails(Fixed, "slip", Suspect, |run| run.evidence.slip_us.p99 = 700.0);
        fails(Closed, "steal", Suspect, |run| run.evidence.machine.steal_ticks = 1_000_000);
        fails(Closed, "accept_queue", Suspect, |run| {
            run.evidence.machine.listen_overflows = 1;
            run.evidence.connect_us.max = 1_003_000.0;
        });
        fails(Closed, "ports", Suspect, |run| {
            run.evidence.ports_per_s = Some(RATE);
            run.evidence.connect_us.p99_9 = 6_400.0;
        });
        fails(Closed, "errors", Suspect, |run| run.evidence.errors = 30);
        fails(Closed, "censored", Suspect, |run| run.evidence.censored = 30);
        fails(Closed, "percentiles", Suspect, |run| run.evidence.responses = 99);
        fails(Closed, "connections", Suspect, |run| run.evidence.connections_peak = 63);
        fails(Closed, "connections", Invalid, |run| run.evidence.connections_peak = 40);
        fails(Closed, "complete", Suspect, |run| run.evidence.interrupted = true);
        fails(Closed, "start", Invalid, |run| run.evidence.late_start_ns = Some(150_000_000));
        fails(Closed, "requests", Invalid, |run| run.evidence.requests = 0);
    }

    #[test]
    fn a_rate_that_the_client_could_not_send_makes_the_run_invalid_a_slow_server_does_not() {
        let mut run = good(Pattern::Fixed, 3);
        run.evidence.answered_of_due /= 2;
        assert_eq!(run.judge().verdict, Verdict::Suspect);
        run.evidence.cpu_share = 0.99;
        assert_eq!(run.judge().verdict, Verdict::Invalid);
        // A client that spins is always busy, and that says nothing.
        run.evidence.busy_poll = true;
        assert_eq!(run.judge().verdict, Verdict::Suspect);
        // Late, and the connections had room.
        run.evidence.slip_us.p50 = 2e6;
        assert_eq!(run.judge().verdict, Verdict::Invalid);
        // Late since every connection was waiting for the server.
        run.evidence.service_us.mean = 64.0 / RATE * 1e6;
        assert_eq!(run.judge().verdict, Verdict::Suspect);
    }

    #[test]
    fn a_server_that_dies_in_mid_window_makes_the_run_invalid() {
        for pattern in [Pattern::Closed, Pattern::Fixed, Pattern::Poisson, Pattern::Replay] {
            for dies_at in [35, 65, 85] {
                let mut run = good(pattern, 3);
                run.intervals[dies_at..].iter_mut().for_each(|interval| {
                    (interval.requests, interval.latency_us) = (0, Latency::default());
                });
                run.evidence.requests = run.evidence.requests * dies_at as u64 / 100;
                run.evidence.errors = 40;
                let defects = run.defects();
                assert!(defects.contains(&("served".into(), Verdict::Invalid)), "{pattern:?} {defects:?}");
                let drifts = defects.iter().any(|(name, _)| name == "drift");
                assert!(drifts || dies_at > 67 || pattern == Pattern::Replay, "{pattern:?} {defects:?}");
                assert!(run.judge().checks.iter().any(|check| check.reason.contains("nothing was answered")));
            }
        }
    }

    #[test]
    fn silence_is_no_defect_when_nobody_asked_or_answers_take_so_long() {
        let silent = |run: &mut Run| {
            run.intervals[85..].iter_mut().for_each(|interval| interval.requests = 0);
            run.evidence.errors = 1;
        };
        let served = |run: &Run| run.defects().iter().all(|(name, _)| name != "served");
        // A replay whose log ends, or a thinking user.
        let mut run = good(Pattern::Replay, 3);
        silent(&mut run);
        assert!(served(&run));
        let mut run = good(Pattern::Closed, 3);
        silent(&mut run);
        run.evidence.requests = 20;
        assert!(served(&run));
        let mut run = good(Pattern::Closed, 3);
        silent(&mut run);
        assert!(!served(&run));
        run.evidence.response_us.p99_9 = 2e6;
        assert!(served(&run));
        run.evidence.response_us.p99_9 = 1e3;
        run.evidence.interrupted = true;
        assert!(served(&run));
    }

    #[test]
    fn an_early_end_leaves_no_drift_to_judge() {
        let mut run = good(Pattern::Closed, 3);
        run.intervals[10..].iter_mut().for_each(|interval| interval.requests = 0);
        run.evidence.interrupted = true;
        let trust = run.judge();
        let drift = trust.checks.iter().find(|check| check.name == "drift").unwrap();
        assert!(drift.reason.starts_with("not judged"), "{}", drift.reason);
    }

    #[test]
    fn a_server_that_breaks_or_wastes_connections_is_not_blamed_on_the_client() {
        let verdict = |run: &Run| {
            let trust = run.judge();
            trust.checks.into_iter().find(|check| check.name == "achieved").unwrap()
        };
        // Everything is reset at once, and the client is 0.2 ms late.
        let mut run = good(Pattern::Fixed, 3);
        (run.evidence.requests, run.evidence.answered_of_due, run.evidence.errors) = (0, 0, 20_000);
        run.evidence.slip_us.p50 = 200.0;
        run.evidence.service_us.mean = 50.0;
        assert_eq!(verdict(&run).verdict, Verdict::Suspect);
        assert!(verdict(&run).reason.contains("failed"), "{}", verdict(&run).reason);
        // Most are abandoned after 50 ms, on connections that are never free.
        let mut run = good(Pattern::Fixed, 3);
        (run.evidence.requests, run.evidence.answered_of_due) = (8_000, 8_000);
        run.evidence.slip_us.p50 = 40_000.0;
        run.evidence.deadline_s = Some(0.05);
        run.evidence.given_up = 12_000;
        assert_eq!(verdict(&run).verdict, Verdict::Suspect);
    }

    #[test]
    fn a_burst_larger_than_the_connections_waits_for_them_not_for_the_client() {
        let mut run = good(Pattern::Burst(100), 3);
        run.evidence.slip_us.p50 = 140.0;
        assert!(slip(&run.evidence).unwrap().reason.contains("more --connections"));
        run.evidence.pattern = Pattern::Burst(10);
        assert!(slip(&run.evidence).unwrap().reason.contains("client's own"));
    }

    #[test]
    fn few_answers_are_counted_and_not_accused() {
        let reason = |responses| {
            let mut run = good(Pattern::Closed, 3);
            run.evidence.responses = responses;
            percentiles(&run.evidence).unwrap().reason
        };
        assert_eq!(reason(99), "of 99 times p99 is the maximum: do not quote it");
        assert_eq!(reason(780), "p99 rests on 7 answers, p99.9 is the maximum: do not quote them");
        assert_eq!(reason(1_999), "p99 rests on 19 answers, p99.9 rests on 1 answer: do not quote it");
        assert_eq!(reason(50_000), "p99 rests on 500 answers");
    }

    #[test]
    fn what_is_no_defect_passes() {
        let passes = |pattern, spoil: fn(&mut Run)| {
            let mut run = good(pattern, 3);
            spoil(&mut run);
            assert_eq!(run.defects(), [], "{pattern:?}");
        };
        passes(Pattern::Closed, |run| run.evidence.responses = 100);
        // Four kept connections overflow no queue, and nobody here waited for one.
        passes(Pattern::Closed, |run| run.evidence.machine.listen_overflows = 9);
        passes(Pattern::Closed, |run| {
            run.evidence.machine.listen_overflows = 9;
            run.evidence.connections_opened = 4;
            run.evidence.response_us.max = 1e6;
        });
        // Two requests need no more than two connections, a connection per request opens as many as it needs.
        passes(Pattern::Closed, |run| (run.evidence.requests, run.evidence.connections_peak) = (2, 2));
        passes(Pattern::Fixed, |run| {
            run.evidence.handshake_us =
                Some(Latency { p50: 900.0, p99: 1500.0, p99_9: 2000.0, ..Latency::default() });
            run.evidence.slip_us = Latency { p50: 920.0, p99: 1550.0, p99_9: 2090.0, ..run.evidence.slip_us };
            run.evidence.connections_peak = 3;
        });
        // A slip of microseconds beside a response of microseconds.
        passes(Pattern::Fixed, |run| run.evidence.response_us.p50 = 40.0);
        // What is under way at the end of a short run is not missing.
        passes(Pattern::Fixed, |run| {
            run.evidence.response_us.mean = 400_000.0;
            run.evidence.requests -= 800;
        });
        // The end was a number of requests: the last answer decides how long it took.
        passes(Pattern::Fixed, |run| {
            run.evidence.ends_by_count = true;
            run.evidence.duration_s = SECONDS * 1.4;
        });
    }

    #[test]
    fn the_tail_of_kolmogorov_is_as_tabulated() {
        // Smirnov, Ann. Math. Stat. 19 (1948): critical values 1.2238, 1.3581, 1.6276, 1.9495.
        for (lambda, tail) in [(1.2238, 0.1), (1.3581, 0.05), (1.6276, 0.01), (1.9495, 0.001)] {
            assert!((kolmogorov_tail(lambda) / tail - 1.0).abs() < 2e-3, "{lambda}");
        }
        assert_eq!(kolmogorov_tail(0.0), 1.0);
    }

    #[test]
    fn rank_correlation_comes_out_as_by_hand() {
        assert_eq!(spearman(&[1.0, 2.0, 3.0, 4.0], &[10.0, 20.0, 30.0, 1e9]), 1.0);
        assert_eq!(spearman(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]), -1.0);
        // d = 0, 1, -1, so 1 - 6·2/(3·8) = 0.5.
        assert!((spearman(&[1.0, 2.0, 3.0], &[1.0, 3.0, 2.0]) - 0.5).abs() < 1e-12);
        assert_eq!(ranks(&[5.0, 1.0, 5.0]), [2.5, 1.0, 2.5]);
        assert_eq!(spearman(&[1.0, 2.0], &[7.0, 7.0]), 0.0);
    }

    #[test]
    fn p_values_of_true_samples_are_uniform() {
        let mut rng = Rng::with_seed(9);
        for summed in [1, 4] {
            let rejected = (0..1000).filter(|_| {
                let gap = |rng: &mut Rng| (0..summed).map(|_| exponential_ns(rng, 1.0)).sum::<f64>();
                let mut sample: Vec<f64> = (0..200).map(|_| gap(&mut rng)).collect();
                sample.sort_by(f64::total_cmp);
                kolmogorov_smirnov(&sample, |x| gamma_cdf(f64::from(summed), x)).1 < 0.05
            });
            let rejected = rejected.count();
            // Five standard deviations of the binomial.
            assert!((16..=84).contains(&rejected), "{rejected} of 1000 rejected at 5 %");
        }
    }
}
