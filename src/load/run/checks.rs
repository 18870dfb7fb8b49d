//! What is known of a run when it is over, put together for the checks of [`verdict`](crate::load::verdict).

use std::time::SystemTime;

use crate::load::counts::series::Part;
use crate::load::options::plan::{Pacing, Plan};
use crate::load::run::preflight::{self, Limits};
use crate::load::run::threads::Counted;
use crate::load::schedule::{Arrivals, Profile, Spacing};
use crate::load::verdict::{Pattern, RunFacts, judge};
use crate::machine::Counters;
use crate::report::{IntervalReport, Latency, LoadReport, Trust};
use crate::units::over;

/// What the kernel counted of the whole machine while the run went on, and for how long.
#[derive(Debug, Clone, Copy, Default)]
pub struct MachineState {
    pub counters: Counters,
    pub seconds: f64,
}

/// The verdict on a run, given the report it led to. `idle` connections of the background are in the report's peak.
pub fn trust(plan: &Plan, counted: &Counted, report: &LoadReport, machine: MachineState, idle: u64) -> Trust {
    let tally = &counted.tally;
    let Plan { pacing, connections, .. } = plan;
    // A window that a number of requests ends is not divided: its last part is whatever was left.
    let is_divided = plan.window.requests().is_none() && tally.answered_in_window > 0;
    let intervals = if is_divided { intervals(counted) } else { Vec::new() };
    let sends: Vec<u64> = tally.sends.iter().map(|sent| sent.sent_ns).collect();
    let dues: Vec<u64> = tally.sends.iter().map(|sent| sent.due_ns).collect();
    judge(&RunFacts {
        pattern: pattern(pacing),
        // Of sessions, only their first requests are due by the clock.
        rate_asked: pacing.mean_rate().filter(|_| !pacing.sessions),
        ends_by_count: plan.window.requests().is_some(),
        duration_s: report.duration_s,
        due_in_window: tally.due_in_window,
        answered_of_due: tally.due_in_window - tally.censored,
        requests: report.requests,
        sent: tally.times.service.count(),
        answered_late: tally.answered_late,
        given_up: tally.shed + tally.abandoned,
        deadline_s: pacing.deadline.map(|deadline| deadline.as_secs_f64()),
        sends: &sends,
        dues: &dues,
        intervals: &intervals,
        response_us: report.latency_us,
        responses: tally.times.response.count(),
        service_us: report.service_us,
        slip_us: report.slip_us,
        connect_us: report.connect_us,
        handshake_us: connections.one_request_each().then_some(report.connect_us),
        cpu_share: report.client.cpu_share,
        busy_poll: plan.threads.busy_poll,
        machine: machine.counters,
        machine_s: machine.seconds,
        connections_asked: u64::from(connections.count),
        connections_peak: report.connections.peak_open.saturating_sub(idle),
        connections_opened: tally.established,
        ports_per_s: preflight::ports_per_s(plan, &Limits::now(), tally.established),
        errors: report.errors.total(),
        censored: report.censored,
        interrupted: report.run.as_ref().is_some_and(|run| run.interrupted),
        late_start_ns: plan.window.start_at.map(|at| late_ns(at, counted.began)),
    })
}

fn pattern(pacing: &Pacing) -> Pattern {
    match &pacing.arrivals {
        Arrivals::Closed => Pattern::Closed,
        Arrivals::Replay(_) => Pattern::Replay,
        Arrivals::Open { .. } if pacing.sessions => Pattern::Sessions,
        Arrivals::Open { profile: Profile::Ramp { .. }, .. } => Pattern::Ramp,
        Arrivals::Open { spacing: Spacing::Fixed, .. } => Pattern::Fixed,
        Arrivals::Open { spacing: Spacing::Poisson, .. } => Pattern::Poisson,
        Arrivals::Open { spacing: Spacing::Burst(size), .. } => Pattern::Burst(*size),
    }
}

/// The parts of the window as intervals, of which only counts and means are known.
fn intervals(counted: &Counted) -> Vec<IntervalReport> {
    let parts = counted.tally.series.parts(counted.window.duration_ns());
    let interval = |(from_ns, to_ns, part): (u64, u64, Part)| IntervalReport {
        from_s: from_ns as f64 / 1e9,
        to_s: to_ns as f64 / 1e9,
        measured: true,
        requests: part.answers,
        qps: over(part.answers as f64, (to_ns - from_ns) as f64 / 1e9),
        latency_us: Latency { mean: over(part.latency_sum_ns as f64 / 1e3, part.answers as f64), ..Latency::default() },
        ..IntervalReport::default()
    };
    parts.into_iter().map(interval).collect()
}

fn late_ns(at: SystemTime, began: SystemTime) -> u64 {
    began.duration_since(at).map_or(0, |late| late.as_nanos() as u64)
}
