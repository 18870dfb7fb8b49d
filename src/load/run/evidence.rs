//! What a run knows about itself, put together for [`verdict`](crate::load::verdict) to judge.

use std::time::SystemTime;

use crate::load::counts::tally::{Slice, Tally, Window};
use crate::load::options::args::{LoadArgs, Spacing};
use crate::load::run::Run;
use crate::load::run::preflight::{self, Limits};
use crate::load::verdict::{Evidence, Pattern, judge};
use crate::machine::Counters;
use crate::report::{IntervalReport, Latency, LoadReport, Trust};

/// What the machine did meanwhile.
#[derive(Debug, Clone, Copy, Default)]
pub struct Surroundings {
    pub counters: Counters,
    pub seconds: f64,
    pub crowd: u64,
}

/// The verdict on a run, given the report it led to.
pub fn trust(args: &LoadArgs, run: &Run, report: &LoadReport, around: Surroundings) -> Trust {
    let Run { tally, window, .. } = run;
    let pattern = pattern(args);
    let intervals = slices(&tally.slices, window);
    let sends: Vec<u64> = tally.sends.iter().map(|sent| sent.sent_ns).collect();
    let dues: Vec<u64> = tally.sends.iter().map(|sent| sent.due_ns).collect();
    let connects_each_time = args.requests_per_connection == Some(1) || args.connect_only;
    judge(&Evidence {
        pattern,
        rate_asked: rate_asked(args),
        ends_by_count: args.requests.is_some(),
        duration_s: report.duration_s,
        due_in_window: tally.due_in_window,
        answered_of_due: tally.due_in_window - tally.censored,
        requests: report.requests,
        sent: tally.service.count(),
        answered_late: tally.answered_late,
        given_up: tally.shed + tally.abandoned,
        deadline_s: args.deadline.map(|deadline| deadline.as_secs_f64()),
        sends: &sends,
        dues: &dues,
        intervals: &intervals,
        response_us: report.latency_us,
        responses: responses(tally, args.is_open_loop()),
        service_us: report.service_us,
        slip_us: report.slip_us,
        connect_us: report.connect_us,
        handshake_us: connects_each_time.then_some(report.connect_us),
        cpu_share: report.client.cpu_share,
        busy_poll: args.busy_poll,
        machine: around.counters,
        machine_s: around.seconds,
        connections_asked: u64::from(args.connections),
        connections_peak: report.connections.peak_open.saturating_sub(around.crowd),
        connections_opened: tally.established,
        ports_per_s: preflight::ports_per_s(args, &Limits::now(), tally.established),
        errors: report.errors.total(),
        censored: report.censored,
        interrupted: report.run.as_ref().is_some_and(|run| run.interrupted),
        late_start_ns: args.start_at.map(|at| late_ns(at, run.began)),
    })
}

fn pattern(args: &LoadArgs) -> Pattern {
    match (args.rate, args.arrivals) {
        (None, _) if args.replay.is_some() => Pattern::Replay,
        (None, _) => Pattern::Closed,
        _ if args.sessions => Pattern::Sessions,
        _ if args.ramp_to.is_some() => Pattern::Ramp,
        (Some(_), Spacing::Fixed) => Pattern::Fixed,
        (Some(_), Spacing::Poisson) => Pattern::Poisson,
        (Some(_), Spacing::Burst(size)) => Pattern::Burst(size),
    }
}

/// The mean over the window; of sessions, their first requests alone are due by the clock.
fn rate_asked(args: &LoadArgs) -> Option<f64> {
    let from = args.rate?.per_s();
    let to = args.ramp_to.map_or(from, |to| to.per_s());
    (!args.sessions).then_some((from + to) / 2.0)
}

fn responses(tally: &Tally, open_loop: bool) -> u64 {
    if open_loop { tally.latency.count() } else { tally.service.count() }
}

/// The slices of the window as intervals, so far as their means tell.
fn slices(slices: &[Slice], window: &Window) -> Vec<IntervalReport> {
    let length_s = window.duration_ns() as f64 / 1e9 / slices.len().max(1) as f64;
    // A run that ended by count never divided its window.
    if length_s <= 0.0 || slices.iter().all(|slice| slice.answers == 0) {
        return Vec::new();
    }
    let interval = |(i, slice): (usize, &Slice)| IntervalReport {
        from_s: i as f64 * length_s,
        to_s: (i + 1) as f64 * length_s,
        measured: true,
        requests: slice.answers,
        qps: slice.answers as f64 / length_s,
        latency_us: Latency {
            mean: slice.latency_sum_ns as f64 / 1e3 / slice.answers.max(1) as f64,
            ..Latency::default()
        },
        ..IntervalReport::default()
    };
    slices.iter().enumerate().map(interval).collect()
}

fn late_ns(at: SystemTime, began: SystemTime) -> u64 {
    began.duration_since(at).map_or(0, |late| late.as_nanos() as u64)
}
