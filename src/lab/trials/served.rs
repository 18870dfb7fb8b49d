//! Who serves the connections of a server: as `lab inspect --exact` sees it from outside, and as the answers say it.
//!
//! The first look is before the first connection and the last one after the last: both count the same connections.

use clap::Args;

use super::steering::{Subject, WORKERS};
use super::{Measured, Numbers, numbers};
use crate::console;
use crate::evenness;
use crate::lab::inspect::findings::diagnose;
use crate::lab::inspect::{Observer, Target};
use crate::lab::program::{Interrupt, Stop};
use crate::report::{LoadReport, TrialReport};

#[derive(Args)]
pub struct Served {
    /// Connections per second, with a request each
    #[arg(long, value_name = "R", default_value_t = 500)]
    rate: u32,
    #[arg(long, value_name = "DUR", default_value = "2s")]
    duration: String,
}

pub fn served(of: &str, trial: &Served, interrupt: &Interrupt) -> Result<TrialReport, Stop> {
    let subject = Subject::new(of, interrupt);
    subject.report(|| measure(&subject, trial))
}

fn measure(subject: &Subject, Served { rate, duration }: &Served) -> Measured {
    let mut server = subject.start()?;
    let mut observer = Observer::begin(Target::parse(&server.address)?)?.exactly(true);
    observer.look()?;
    let flags = format!(
        "--connections 400 --requests-per-connection 1 --rate {rate} --arrivals poisson --warmup 0s --duration {duration}"
    );
    let report = subject.load(&server, &flags, |_| ())?;
    observer.look()?;
    server.end()?;
    observer.recording.unseen.iter().for_each(console::log);
    let workers = diagnose(&observer.recording).workers;
    let accepted: Vec<u64> = workers.iter().filter_map(|worker| worker.accepted).collect();
    let cpu_ns: Vec<u64> = workers.iter().map(|worker| worker.cpu_ns).collect();
    Ok(compare(accepted, &cpu_ns, answered(&report)))
}

/// The connections of each worker, by the answers; empty where these name none.
fn answered(report: &LoadReport) -> Vec<u64> {
    let mut counts: Vec<u64> =
        report.workers.values().map(|share| share.connections).filter(|&count| count > 0).collect();
    if !counts.is_empty() {
        // One that has answered nothing was not named.
        counts.resize(counts.len().max(WORKERS), 0);
    }
    counts
}

/// Without what was not seen: all threads of one process look alike from outside, and a worker to which connections are
/// passed accepts none.
fn compare(mut accepted: Vec<u64>, cpu_ns: &[u64], mut answered: Vec<u64>) -> Numbers {
    let measured = |counts: &[u64]| {
        let is_shared = counts.len() > 1 && counts.iter().any(|&count| count > 0);
        is_shared.then(|| evenness::measure(counts))
    };
    let mut found = Numbers::new();
    if let Some(even) = measured(cpu_ns) {
        found.extend(numbers([("served_by_cpu", even.max_over_mean)]));
    }
    if let Some(even) = measured(&answered) {
        found.extend(numbers([("served_by_answers", even.max_over_mean)]));
    }
    if let Some(even) = measured(&accepted) {
        let of = [("served_by_accepts", even.max_over_mean), ("served_d", even.dispersion), ("served_p", even.p_value)];
        found.extend(numbers(of));
        // Who is who in the answers is not known.
        accepted.sort_unstable();
        answered.sort_unstable();
        if accepted.len() == answered.len() {
            let differences = accepted.iter().zip(&answered).map(|(&one, &other)| one.abs_diff(other));
            found.extend(differences.max().map(|most| ("served_difference".to_string(), most as f64)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_counts_differ_by_nothing_whatever_the_order() {
        let found = compare(vec![10, 20, 0, 30], &[1, 2, 0, 3], vec![30, 10, 20, 0]);
        assert_eq!((found["served_by_accepts"], found["served_by_answers"], found["served_by_cpu"]), (2.0, 2.0, 2.0));
        assert_eq!((found["served_difference"], found["served_d"]), (0.0, 500.0 / 15.0 / 3.0));
        assert_eq!(compare(vec![10, 20], &[], vec![13, 17])["served_difference"], 3.0);
    }

    #[test]
    fn what_was_not_seen_is_left_out() {
        let keys = |found: Numbers| found.into_keys().collect::<Vec<_>>();
        assert_eq!(keys(compare(vec![], &[1, 2], vec![])), ["served_by_cpu"]);
        assert!(!compare(vec![1, 2], &[1, 2], vec![1, 1, 1]).contains_key("served_difference"));
        // Threads of one process; workers to which connections are passed.
        assert_eq!(keys(compare(vec![9], &[5], vec![4, 5])), ["served_by_answers"]);
        assert_eq!(keys(compare(vec![0, 0], &[1, 2], vec![4, 5])), ["served_by_answers", "served_by_cpu"]);
        assert_eq!(
            keys(compare(vec![1, 2], &[1, 2], vec![])),
            ["served_by_accepts", "served_by_cpu", "served_d", "served_p"]
        );
    }
}
