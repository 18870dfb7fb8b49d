//! Can these numbers be trusted? Pure: the facts of a run in, a verdict with its reasons out.
//!
//! A [`Rule`] is one check: its name, its limit, and the function that holds a run to it. [`schedule_kept`] has those
//! about when requests were due and sent, [`undisturbed`] those about how the run went.
//!
//! Where chance plays a part a rule asks two things: is this more than chance would do, and is it large enough to
//! matter? The first alone would fail every long run, since no machine is exact; the second alone every short one.
//! `invalid` is for runs that did not measure what was asked for; a server that is too slow is a finding.

use crate::load::counts::series::SeriesPart;
use crate::load::counts::tally::Sent;
use crate::machine::Counters;
use crate::report::{ArrivalsKind, Check, LoadReport, RunInfo, Trust, Verdict};
use crate::units::{number, over, time};

mod schedule_kept;
mod undisturbed;

/// A run: its report, and what judging it needs besides.
#[derive(Clone, Copy)]
pub struct RunFacts<'a> {
    pub report: &'a LoadReport,
    pub run: &'a RunInfo,
    /// Open loop: requests due in the window, and those of them that got an answer, however late.
    pub due_in_window: u64,
    pub answered_of_due: u64,
    /// Requests of the window that were sent, whatever became of them.
    pub sent: u64,
    /// How many times the response time was taken.
    pub responses: u64,
    /// The first ones of the window, of all threads, nearly in the order of the due times.
    pub sends: &'a [Sent],
    /// The parts of the window, with the beginning and the end in nanoseconds; none where a number of requests ended
    /// it.
    pub parts: &'a [(u64, u64, SeriesPart)],
    /// What the machine counted meanwhile, and in how many seconds (warm-up and drain included).
    pub machine: Counters,
    pub machine_s: f64,
    /// Without the background.
    pub connections_peak: u64,
    pub connections_opened: u64,
    pub connections_starved: u64,
    /// Connections per second beyond which source ports become rare, where we close first.
    pub ports_per_s: Option<f64>,
}

/// Below this p-value chance does not explain it: of a thousand good runs one fails. z is the same in standard
/// deviations of the normal distribution, two-sided.
const P_LIMIT: f64 = 0.001;
const Z_LIMIT: f64 = 3.29;
/// The same where a check is made of every run and costs nothing to make strict (p < 10⁻⁵).
const Z_STRICT: f64 = 4.4;
pub(crate) const ACHIEVED_SHARE: f64 = 0.99;
/// Below this share, and with the client to blame, the run measured the client.
const ACHIEVED_AT_ALL: f64 = 0.95;
/// Gaps are summed up to this length before they are judged. A client that sleeps wakes up to 100 us late (timer slack,
/// scheduling), so gaps shorter than that collapse into one moment: at ten times that it moves the distribution
/// function by less than the limit, and a queue depends only on how many arrive in a millisecond.
const GAP_SCALE_NS: f64 = 1_000_000.0;
/// What a fixed schedule may always be late.
const LATE_FLOOR_NS: f64 = 200_000.0;
/// The largest distance between two distribution functions that is still no matter.
const KS_SIZE: f64 = 0.1;
/// Of the requests of a fixed schedule, this share may be sent later than a gap after their time.
const LATE_SHARE: f64 = 0.05;
/// A rank correlation of neighbouring gaps that is still no matter.
const CORRELATION_SIZE: f64 = 0.1;
const DRIFT_QPS: f64 = 0.1;
const DRIFT_LATENCY: f64 = 0.25;
const DRIFT_LATENCY_US: f64 = 50.0;
/// Intervals are averaged into this many parts, each long enough to be nearly independent of the next.
const PARTS: usize = 20;
pub(crate) const BUSY_CLIENT: f64 = 0.9;
/// The part of a response time that may be the client's send delay, at the median and in the tail, and the delay that
/// never matters.
const SEND_DELAY_OF_MEDIAN: f64 = 0.2;
const SEND_DELAY_OF_TAIL: f64 = 0.5;
const SEND_DELAY_FLOOR_US: f64 = 100.0;
/// From this share of their time on, by Little's law, the connections and not the clock decide when to send.
const CONNECTIONS_BUSY: f64 = 0.9;
/// From this share of their time on, waiting for handshakes explains why requests are late.
const CONNECTING: f64 = 0.1;
const STEAL_SHARE: f64 = 0.02;
/// The kernel counts steal in ticks: fewer are rounding.
const STEAL_TICKS: u64 = 3;
const ERROR_SHARE: f64 = 0.001;
const CENSORED_SHARE: f64 = 0.001;
/// A percentile rests on the answers beyond it.
const ANSWERS_BEYOND: f64 = 10.0;
const CONNECTIONS_OPEN: f64 = 0.9;
/// With so many answers for each connection, chance leaves one without any in 22,000 cases (e⁻¹⁰).
const ANSWERS_EACH: f64 = 10.0;
/// From this much on a client began too late to be part of the same load.
pub(crate) const LATE_START_NS: u64 = 100_000_000;
/// From this share of the window on, silence at its end is not chance; it must have cost so many answers, too.
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
const MIN_GAPS: usize = 100;

pub struct Rule {
    pub name: &'static str,
    pub limit: fn() -> String,
    /// The verdict and its reason; `None` when the rule does not apply to such a run.
    judge: fn(&RunFacts) -> Option<Finding>,
}

/// A verdict, and a sentence with the number that was found and the limit it was held to.
type Finding = (Verdict, String);

impl Rule {
    /// A rule that was not applied has not failed.
    pub fn failed<'a>(&self, report: &'a LoadReport) -> Option<&'a Check> {
        let mut checks = report.trust.iter().flat_map(|trust| &trust.checks);
        checks.find(|check| check.name == self.name && check.verdict != Verdict::Valid)
    }
}

const fn rule(name: &'static str, limit: fn() -> String, judge: fn(&RunFacts) -> Option<Finding>) -> Rule {
    Rule { name, limit, judge }
}

#[rustfmt::skip]
pub const DRIFT: Rule = rule("drift", || format!("rate and mean response time do not rise or fall with time \
        (Spearman, {PARTS} parts, p >= {P_LIMIT}), or the last third differs from the first by less than {} in rate, \
        {} in time", percent(DRIFT_QPS), percent(DRIFT_LATENCY)), undisturbed::drift);
#[rustfmt::skip]
pub const CPU: Rule = rule("cpu", || format!("the client used at most {} of its threads' time (not with --busy-poll)",
        percent(BUSY_CLIENT)), undisturbed::cpu);
#[rustfmt::skip]
pub const SEND_DELAY: Rule = rule("send_delay", || format!("open loop: the send delay is at most {} of the median \
        response time and {} of p99 and p99.9, or below {}",
        percent(SEND_DELAY_OF_MEDIAN), percent(SEND_DELAY_OF_TAIL), time(SEND_DELAY_FLOOR_US)), schedule_kept::send_delay);

#[rustfmt::skip]
pub static RULES: [Rule; 19] = [
    rule("requests", || "something was answered (else invalid)".into(), undisturbed::requests),
    rule("served", || format!("the end of the window, {} of it or more and longer than p99.9, was not without an \
        answer to {ANSWERS_MISSED} requests or more (else invalid; if --deadline ended them: suspect)",
        percent(SILENCE)), undisturbed::served),
    rule("rate", || format!("open loop: as many were due as were asked for, within chance ({Z_STRICT} standard \
        deviations of the Poisson count; one in 1000 otherwise)"), schedule_kept::rate),
    rule("achieved", || format!("open loop: at least {} of what was due was answered, apart from what is rightly \
        under way at the end (Little's law: rate x mean response); below {} because of the client (its CPU, or a \
        send delay as long while connections were free): invalid",
        percent(ACHIEVED_SHARE), percent(ACHIEVED_AT_ALL)), schedule_kept::achieved),
    rule("gaps", || format!("Poisson: sums of gaps, at least {} long, against the gamma distribution; \
        Kolmogorov-Smirnov p >= {P_LIMIT}, or D <= {KS_SIZE}. Otherwise: at most {} sent later than one gap (at least \
        {}) after they were due",
        time(GAP_SCALE_NS / 1e3), percent(LATE_SHARE), time(LATE_FLOOR_NS / 1e3)), schedule_kept::gaps),
    rule("independence", || format!("Poisson: Spearman's rank correlation of neighbouring gaps within \
        {Z_LIMIT}/sqrt(n), or below {CORRELATION_SIZE}"), schedule_kept::independence),
    DRIFT,
    CPU,
    SEND_DELAY,
    rule("steal", || format!("the hypervisor took at most {} of the machine's time",
        percent(STEAL_SHARE)), undisturbed::steal),
    rule("accept_queue", || format!("no accept queue of this machine overflowed, or it was another's: this run \
        opened at most {SMALL_BACKLOG} connections, or none of its requests waited as long as a retransmission \
        takes ({})", time(RETRANSMISSION_US)), undisturbed::accept_queue),
    rule("ports", || format!("--requests-per-connection 0 --close fin: at most {} of the connections/s that the \
        source ports allow, or connect(2) takes at most {} at p99.9",
        percent(PORTS_SHARE), time(SLOW_CONNECT_US)), undisturbed::ports),
    rule("errors", || format!("at most {} of the requests failed", percent(ERROR_SHARE)), undisturbed::errors),
    rule("censored", || format!("at most {} of the times are ages of requests that were never answered",
        percent(CENSORED_SHARE)), undisturbed::censored),
    rule("percentiles", || format!("p99 rests on one answer at least; fewer than {ANSWERS_BEYOND} beyond it, or \
        beyond p99.9, are remarked upon"), undisturbed::percentiles),
    rule("connections", || format!("as many were open as were asked for; below {} of them: invalid",
        percent(CONNECTIONS_OPEN)), undisturbed::connections),
    rule("starved", || format!("kept connections: none waited for its first answer until --timeout, or for the second \
        half of the window, while there were {ANSWERS_EACH} answers for each or more"),
        undisturbed::starved),
    rule("complete", || "the run was not ended early".into(), undisturbed::complete),
    rule("start", || format!("--start-at was kept to {} (else invalid)",
        time(LATE_START_NS as f64 / 1e3)), undisturbed::start),
];

/// The verdict is the worst of all rules that apply to this run.
pub fn judge(facts: &RunFacts) -> Trust {
    let apply = |rule: &Rule| {
        let (verdict, reason) = (rule.judge)(facts)?;
        Some(Check { name: rule.name.into(), verdict, reason })
    };
    let checks: Vec<Check> = RULES.iter().filter_map(apply).collect();
    Trust { verdict: checks.iter().map(|check| check.verdict).max().unwrap_or_default(), checks }
}

impl RunFacts<'_> {
    /// What decides when requests are due; `None` where thinking users or a changing rate do so too.
    fn arrivals(&self) -> Option<&ArrivalsKind> {
        let configuration = &self.run.configuration;
        let is_alone = !configuration.sessions && configuration.ramp_to_per_s.is_none();
        is_alone.then_some(&configuration.arrivals)
    }

    /// The rate that was asked for; absent for sessions, of which only the first requests are due by the clock.
    fn rate_asked(&self) -> Option<f64> {
        let configuration = &self.run.configuration;
        configuration.mean_rate_per_s().filter(|_| !configuration.sessions)
    }

    /// Given up since --deadline was over, in the whole run.
    fn given_up(&self) -> u64 {
        self.report.deadline.map_or(0, |deadline| deadline.shed + deadline.abandoned)
    }

    /// A connection is opened for every request, which is sent once that is established.
    fn one_request_each(&self) -> bool {
        self.run.configuration.requests_per_connection.is_some_and(|requests| requests <= 1)
    }

    /// The share of their time that the connections were waiting for answers or for handshakes (Little's law: L = λW).
    /// Requests that failed or were given up kept theirs busy as well.
    /// A burst of more requests than connections waits for them however idle they are otherwise.
    fn connections_busy(&self) -> f64 {
        let connections = self.run.configuration.connections;
        if matches!(self.arrivals(), Some(&ArrivalsKind::Burst(size)) if size > connections) {
            return 1.0;
        }
        let per_s = over(self.sent as f64, self.report.duration_s);
        over(per_s * self.report.service_us.mean / 1e6, connections.into()) + self.connections_in_handshake()
    }

    /// The share of their time that the connections were waiting for handshakes, over the whole run.
    fn connections_in_handshake(&self) -> f64 {
        let per_s = over(self.connections_opened as f64, self.machine_s);
        over(per_s * self.report.connect_us.mean / 1e6, self.run.configuration.connections.into())
    }

    fn client_is_busy(&self) -> bool {
        !self.run.configuration.busy_poll && self.report.client.cpu_share > BUSY_CLIENT
    }
}

/// Requests that a server which keeps up has outstanding at the end of the window (Little's law). A mean beyond
/// a twentieth of the run is not a steady state and excuses nothing.
pub(crate) fn expected_outstanding(offered_per_s: f64, mean_response_us: f64, duration_s: f64) -> f64 {
    offered_per_s * (mean_response_us / 1e6).min(0.05 * duration_s)
}

fn valid(reason: String) -> Option<Finding> {
    Some((Verdict::Valid, reason))
}

/// The rule applies, but this run gives it nothing to judge.
fn not_judged(why: &str) -> Option<Finding> {
    valid(format!("not judged: {why}"))
}

fn suspect_if(is_suspect: bool, reason: String) -> Option<Finding> {
    Some((if is_suspect { Verdict::Suspect } else { Verdict::Valid }, reason))
}

fn percent(share: f64) -> String {
    format!("{} %", number(share * 100.0))
}

#[cfg(test)]
mod tests;
