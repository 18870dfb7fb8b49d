//! From what the threads counted to the document that other programs read: [`LoadReport`].

use std::collections::BTreeMap;

use crate::load::args::LoadArgs;
use crate::load::crowd::Crowd;
use crate::load::evenness;
use crate::load::histogram::Times;
use crate::load::tally::{Tally, Window};
use crate::load::watch::Cpu;
use crate::report::{ClientCost, ConnectionBook, EvennessPair, LoadReport, OutsideWindow, WorkerShare};

/// The version of the document.
pub const SCHEMA: u32 = 1;

/// All that a run brought.
pub struct Measured<'a> {
    /// Of all threads together.
    pub tally: Tally,
    pub window: Window,
    /// Spent in the window.
    pub cpu: Cpu,
    pub crowd: &'a Crowd,
    pub max_rss_kib: u64,
}

pub fn report(args: &LoadArgs, measured: &Measured) -> LoadReport {
    let Measured { tally, window, crowd, .. } = measured;
    let duration_s = window.duration_ns() as f64 / 1e9;
    let workers = workers(tally, args.workers.unwrap_or(0) as usize);
    let mut failures = tally.failures.clone();
    failures.add(crowd.failures.clone());
    LoadReport {
        schema: SCHEMA,
        requests: tally.answered_in_window,
        qps: over(tally.answered_in_window as f64, duration_s),
        duration_s,
        errors: failures.named(),
        latency_us: latency(tally, args.is_open_loop()).latency(),
        service_us: tally.service.latency(),
        connect_us: tally.connect.latency(),
        evenness: evenness(&workers),
        workers: (0..)
            .zip(workers)
            .map(|(worker, share): (usize, _)| (worker.to_string(), share))
            .collect::<BTreeMap<_, _>>(),
        connections: ConnectionBook {
            requested: u64::from(args.connections) + u64::from(args.idle),
            peak_open: tally.peak_open + crowd.established(),
            established: tally.established + crowd.established(),
            answered: tally.answered_connections,
            crowd_lost: crowd.lost(),
        },
        outside_window: OutsideWindow { warmup: tally.answered_before, late: tally.answered_late },
        trace: tally.trace.clone(),
        client: ClientCost {
            threads: args.threads as usize,
            cpu_user_us: measured.cpu.user_us,
            cpu_system_us: measured.cpu.system_us,
            cpu_share: over(
                (measured.cpu.user_us + measured.cpu.system_us) as f64 / 1e6,
                duration_s * f64::from(args.threads),
            ),
            max_rss_kib: measured.max_rss_kib,
        },
        ..LoadReport::default()
    }
}

fn over(amount: f64, span: f64) -> f64 {
    if span > 0.0 { amount / span } else { 0.0 }
}

/// In closed loop a request is due when it is sent.
pub fn latency(tally: &Tally, open_loop: bool) -> &Times {
    if open_loop { &tally.latency } else { &tally.service }
}

/// One row for each worker there is: those that got nothing, too. Empty when no answer named its worker.
fn workers(tally: &Tally, expected: usize) -> Vec<WorkerShare> {
    let mut workers = tally.workers.clone();
    if !workers.is_empty() {
        workers.resize(workers.len().max(expected), WorkerShare::default());
    }
    workers
}

fn evenness(workers: &[WorkerShare]) -> Option<EvennessPair> {
    if workers.is_empty() {
        return None;
    }
    let measure =
        |count: fn(&WorkerShare) -> u64| evenness::measure(&workers.iter().map(count).collect::<Vec<_>>());
    Some(EvennessPair {
        connections: measure(|share| share.connections),
        requests: measure(|share| share.requests),
    })
}
