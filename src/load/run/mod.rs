//! One run, from the plan to the report: [`preflight`] asks whether it fits on this machine, [`threads`] measure, the
//! [`supervisor`] waits for them, [`observers`] see each interval, and `load::verdict` judges the result.

pub mod observers;
pub mod preflight;
pub mod settings;
pub mod summary;
pub mod supervisor;
pub mod threads;

use std::time::Duration;

use nix::errno::Errno;

use crate::console;
use crate::failure::Failure;
use crate::load::background::BackgroundConnections;
use crate::load::client::control::RunControl;
use crate::load::client::engine::epoll::EpollEngine;
use crate::load::client::engine::uring::UringEngine;
use crate::load::counts::distributions::{Distributions, Span};
use crate::load::options::plan::{EngineName, Plan};
use crate::load::run::observers::Observers;
use crate::load::run::settings::{settings, unreachable};
use crate::load::run::summary::report;
use crate::load::run::supervisor::Supervisor;
use crate::load::run::threads::{Counted, measure};
use crate::load::verdict::{RunFacts, judge};
use crate::machine::{Counters, Limits};
use crate::report::{LoadReport, Trust};
use crate::units::monotonic_ns;

pub struct RunResult {
    pub report: LoadReport,
    pub distributions: Distributions,
    pub span: Span,
    /// What hindered the observers; the report is printed even then.
    pub observed: Result<(), String>,
}

pub fn run(plan: &Plan, observers: Observers) -> Result<RunResult, String> {
    let setup = |errno: Errno| Failure::new("set up the run", errno);
    // A name server may take its time: until the signals are ours Ctrl-C ends the program.
    let settings = settings(plan)?;
    let control = RunControl::new().map_err(setup)?;
    let mut supervisor = Supervisor::new(&control, plan.progress).map_err(setup)?;
    for line in preflight::prepare(plan)? {
        console::log(format_args!("loadgen: {line}"));
    }

    if plan.background.idle > 0 {
        supervisor.announce("background");
    }
    let start_background = || {
        let one = settings.requests[..settings.request_bytes].to_vec();
        BackgroundConnections::start(settings.route.clone(), one, plan.background, plan.connections.timeout)
    };
    let background = (plan.background.total() > 0).then(start_background).transpose().map_err(setup)?;
    if let Some(background) = &background {
        let opened = background.wait_until_open(&|| supervisor.is_interrupted());
        opened.map_err(|errno| unreachable(plan, &settings, errno))?;
    }
    let (counters, since_ns) = (Counters::now(), monotonic_ns());
    let measure = match plan.threads.engine {
        EngineName::Epoll => measure::<EpollEngine>,
        EngineName::IoUring => measure::<UringEngine>,
    };
    let counted = measure(plan, &settings, &control, &mut supervisor, observers)?;
    let interrupted = control.stopped_at_ns().is_some() || counted.tally.gave_up;
    let background = background.map(|mut connections| connections.stop()).unwrap_or_default();
    let mut report = report(plan, &counted, &background, interrupted);
    let machine_s = (monotonic_ns() - since_ns) as f64 / 1e9;
    report.trust = Some(trust(plan, &counted, &report, Counters::now().since(&counters), machine_s));
    let Counted { tally, window, began, observed, .. } = counted;
    let span = Span {
        began,
        start: Duration::from_nanos(window.open_ns - window.start_ns),
        duration: Duration::from_nanos(window.duration_ns()),
    };
    Ok(RunResult { report, distributions: tally.times, span, observed })
}

fn trust(plan: &Plan, counted: &Counted, report: &LoadReport, machine: Counters, machine_s: f64) -> Trust {
    let tally = &counted.tally;
    // A window that a number of requests ends is not divided: its last part is whatever was left.
    let is_divided = plan.window.requests.is_none() && tally.answered_in_window > 0;
    let parts = if is_divided { tally.series.parts(counted.window.duration_ns()) } else { Vec::new() };
    judge(&RunFacts {
        report,
        run: report.run.as_ref().expect("a report says which run it is of"),
        due_in_window: tally.due_in_window,
        answered_of_due: tally.due_in_window - tally.censored,
        sent: tally.times.service.count(),
        responses: tally.times.response.count(),
        sends: &tally.sends,
        parts: &parts,
        machine,
        machine_s,
        connections_peak: tally.peak_open,
        connections_opened: tally.totals.established,
        connections_starved: tally.starved,
        ports_per_s: preflight::ports_per_s(plan, &Limits::now(), tally.totals.established),
    })
}
