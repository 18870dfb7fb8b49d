//! From what the threads counted to the document that other programs read: [`LoadReport`].

use std::collections::BTreeMap;
use std::time::SystemTime;

use nix::unistd::gethostname;

use crate::evenness;
use crate::load::background::BackgroundCounts;
use crate::load::counts::distributions::Distributions;
use crate::load::counts::tally::{Tally, WorkerTally};
use crate::load::counts::window::Window;
use crate::load::options::plan::Plan;
use crate::load::run::threads::Counted;
use crate::report::{ClientCost, ConnectionCounts, DeadlineCounts, LoadReport, OutsideWindow, RunInfo, WorkerShare};
use crate::sys::procfs::peak_resident_kib;
use crate::units::over;

/// The version of the document.
pub const SCHEMA: u32 = 1;

pub fn report(plan: &Plan, counted: &Counted, background: &BackgroundCounts, interrupted: bool) -> LoadReport {
    let Counted { tally, window, cpu, .. } = counted;
    let is_open_loop = plan.pacing.is_open_loop();
    let mut failures = tally.failures.clone();
    failures.add(background.failures.clone());
    let mut report = LoadReport {
        schema: SCHEMA,
        requests: tally.answered_in_window,
        duration_s: window.duration_ns() as f64 / 1e9,
        errors: failures.named(),
        censored: tally.censored,
        offered_per_s: is_open_loop.then(|| offered(plan, tally, window)),
        deadline: plan.pacing.deadline.map(|_| DeadlineCounts { shed: tally.shed, abandoned: tally.abandoned }),
        retried: tally.totals.retried,
        wrong_bodies: tally.wrong_bodies,
        lost: tally.failures.named_lost(window.start_ns),
        lost_more: tally.failures.lost_more,
        worst_second: tally.series.worst_second(),
        longest_silence_ms: tally.series.longest_silence_ms(window.duration_ns()),
        time_series: tally.series.over_time(window.duration_ns()),
        pipeline: (plan.connections.pipeline > 1).then_some(plan.connections.pipeline),
        workers: workers(tally, plan.workers as usize),
        connections: ConnectionCounts {
            requested: u64::from(plan.connections.count) + u64::from(plan.background.idle),
            peak_open: tally.peak_open + background.idle.established,
            established: tally.totals.established + background.idle.established,
            answered: tally.answered_connections,
            idle_lost: background.idle.closed_by_server,
        },
        outside_window: OutsideWindow { warmup: tally.answered_before, late: tally.answered_late },
        trace: tally.trace.clone(),
        order: tally.order.iter().map(|&(_, worker)| worker).collect(),
        slow: background.slow.clone(),
        client: ClientCost {
            threads: plan.threads.count as usize,
            cpu_user_us: cpu.cpu_user_us,
            cpu_system_us: cpu.cpu_system_us,
            max_rss_kib: peak_resident_kib(std::process::id() as i32).unwrap_or(0),
            ..ClientCost::default()
        },
        run: Some(run_info(plan, counted, interrupted)),
        ..LoadReport::default()
    };
    compute(&mut report, &tally.times);
    report
}

/// What follows from the counts and the distributions, of one run or of the sum of several.
pub fn compute(report: &mut LoadReport, times: &Distributions) {
    report.qps = over(report.requests as f64, report.duration_s);
    report.latency_us = times.response.latency();
    report.latency_quantiles_us = LoadReport::QUANTILES.map(|quantile| times.response.quantile_us(quantile)).into();
    report.service_us = times.service.latency();
    report.connect_us = times.connect.latency();
    report.first_byte_us = times.first_byte.latency();
    report.send_delay_us = times.send_delay.latency();
    report.evenness = evenness::pair(report.workers.values().map(|share| (share.connections, share.requests)));
    let client = &mut report.client;
    let cpu_s = (client.cpu_user_us + client.cpu_system_us) as f64 / 1e6;
    client.cpu_share = over(cpu_s, report.duration_s * client.threads as f64);
}

/// A number of requests should have taken as long as their due times span: n of them have n − 1 gaps.
fn offered(plan: &Plan, tally: &Tally, window: &Window) -> f64 {
    let (due, span_ns) = match plan.window.requests {
        None => (tally.due_in_window, window.duration_ns()),
        Some(_) => (tally.due_in_window.saturating_sub(1), tally.last_due_ns.saturating_sub(window.open_ns)),
    };
    over(due as f64, span_ns as f64 / 1e9)
}

fn run_info(plan: &Plan, counted: &Counted, interrupted: bool) -> RunInfo {
    let unix_ns =
        |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    RunInfo {
        host: gethostname().map_or_else(|_| String::new(), |name| name.to_string_lossy().into_owned()),
        started_unix_ns: unix_ns(counted.began),
        start_at_unix_ns: plan.window.start_at.map(unix_ns),
        seed: plan.pacing.seed,
        configuration: plan.configuration(),
        interrupted,
        ..RunInfo::default()
    }
}

/// One row for each worker there is: those that got nothing, too. Empty when no answer named its worker.
fn workers(tally: &Tally, expected: usize) -> BTreeMap<String, WorkerShare> {
    let report = |share: &WorkerTally| WorkerShare {
        connections: share.connections,
        requests: share.requests,
        latency_us: share.latency.as_ref().filter(|times| times.count() > 0).map(|times| times.latency()),
    };
    let mut workers: Vec<WorkerShare> = tally.workers.iter().map(report).collect();
    // Room was made before the start; workers are known only from answers.
    if workers.iter().all(|share| share.connections == 0) {
        return BTreeMap::new();
    }
    workers.resize(workers.len().max(expected), WorkerShare::default());
    (0..).zip(workers).map(|(worker, share): (usize, _)| (worker.to_string(), share)).collect()
}
