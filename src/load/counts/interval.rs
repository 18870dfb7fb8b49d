//! The same answers in intervals, sent to the main thread while the run goes on; only where an observer needs them. A
//! thread that is late ends several intervals at once: their counts belong to the last of them.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{Add, Sub};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use crate::evenness;
use crate::load::counts::histogram::Times;
use crate::load::counts::window::Window;
use crate::report::{IntervalReport, Latency, WorkerShare};

/// The evenness of more workers is judged for the whole run only.
const JUDGED_WORKERS: usize = 256;

/// What a thread has counted since its start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    pub open: u64,
    pub established: u64,
    pub errors: u64,
    pub retried: u64,
    /// Requests taken from the schedule.
    pub due: u64,
}

impl Totals {
    pub fn with(&self, other: &Totals, combine: fn(u64, u64) -> u64) -> Totals {
        Totals {
            open: combine(self.open, other.open),
            established: combine(self.established, other.established),
            errors: combine(self.errors, other.errors),
            retried: combine(self.retried, other.retried),
            due: combine(self.due, other.due),
        }
    }
}

struct IntervalCounts {
    answers: u64,
    /// The difference to the end of the interval before; `open` is the number at the end of this one.
    totals: Totals,
    latency: Times,
    send_delay: Times,
    /// Connections and requests; index = worker.
    workers: Vec<(u64, u64)>,
}

impl IntervalCounts {
    fn new(workers: usize) -> IntervalCounts {
        IntervalCounts {
            answers: 0,
            totals: Totals::default(),
            latency: Times::with_digits(2),
            send_delay: Times::with_digits(2),
            workers: vec![(0, 0); workers],
        }
    }

    fn worker(&mut self, worker: usize) -> &mut (u64, u64) {
        if worker >= self.workers.len() {
            self.workers.resize(worker + 1, (0, 0));
        }
        &mut self.workers[worker]
    }

    fn add(&mut self, other: &IntervalCounts) {
        self.answers += other.answers;
        self.totals = self.totals.with(&other.totals, u64::add);
        self.latency.add(&other.latency);
        self.send_delay.add(&other.send_delay);
        for (worker, (connections, requests)) in other.workers.iter().enumerate() {
            let sum = self.worker(worker);
            *sum = (sum.0 + connections, sum.1 + requests);
        }
    }
}

/// The counts of a thread, and the number of the interval that they end with.
type NumberedCounts = (usize, u64, IntervalCounts);

pub struct IntervalSender {
    thread: usize,
    counts: IntervalCounts,
    /// The totals at the beginning of the present interval; `open` is 0, since it is not a difference.
    before: Totals,
    length_ns: u64,
    start_ns: u64,
    pub ends_ns: u64,
    sender: Sender<NumberedCounts>,
}

impl IntervalSender {
    pub fn begin(&mut self, start_ns: u64) {
        self.start_ns = start_ns;
        self.ends_ns = start_ns + self.length_ns;
    }

    pub fn answered(&mut self, latency_ns: u64, send_delay_ns: Option<u64>, worker: Option<u32>, first: bool) {
        self.counts.answers += 1;
        self.counts.latency.record(latency_ns);
        if let Some(send_delay_ns) = send_delay_ns {
            self.counts.send_delay.record(send_delay_ns);
        }
        if let Some(worker) = worker {
            let counts = self.counts.worker(worker as usize);
            *counts = (counts.0 + u64::from(first), counts.1 + 1);
        }
    }

    pub fn unanswered(&mut self, age_ns: u64) {
        self.counts.latency.record(age_ns);
    }

    pub fn send(&mut self, now_ns: u64, totals: Totals) {
        let begun = now_ns.saturating_sub(self.start_ns) / self.length_ns;
        self.ends_ns = self.start_ns + (begun + 1) * self.length_ns;
        self.close(begun.saturating_sub(1), totals);
    }

    pub fn finish(mut self, now_ns: u64, totals: Totals) {
        self.close(now_ns.saturating_sub(self.start_ns) / self.length_ns, totals);
    }

    fn close(&mut self, index: u64, totals: Totals) {
        let next = IntervalCounts::new(self.counts.workers.len());
        let mut counts = std::mem::replace(&mut self.counts, next);
        counts.totals = totals.with(&self.before, u64::sub);
        self.before = Totals { open: 0, ..totals };
        // The main thread is gone at the end of a run that failed.
        let _ = self.sender.send((self.thread, index, counts));
    }
}

pub struct IntervalMerger {
    length_ns: u64,
    receiver: Receiver<NumberedCounts>,
    /// The interval that each thread sent last; `None` before its first.
    last: Vec<Option<u64>>,
    /// Intervals that some thread has not sent yet.
    pending: BTreeMap<u64, IntervalCounts>,
    next: u64,
    connections_requested: u64,
    expected_workers: usize,
    so_far: Times,
}

pub fn channel(
    threads: usize,
    length: Duration,
    connections_requested: u64,
    expected_workers: usize,
) -> (Vec<IntervalSender>, IntervalMerger) {
    let length_ns = length.as_nanos() as u64;
    let (sender, receiver) = mpsc::channel();
    let sender = |thread| IntervalSender {
        thread,
        counts: IntervalCounts::new(0),
        before: Totals::default(),
        length_ns,
        start_ns: 0,
        ends_ns: u64::MAX,
        sender: sender.clone(),
    };
    let senders = (0..threads).map(sender).collect();
    let merger = IntervalMerger {
        length_ns,
        receiver,
        last: vec![None; threads],
        pending: BTreeMap::new(),
        next: 0,
        connections_requested,
        expected_workers,
        so_far: Times::with_digits(2),
    };
    (senders, merger)
}

impl IntervalMerger {
    /// Every interval that all threads have sent by now, oldest first.
    pub fn receive(&mut self, window: &Window) -> VecDeque<IntervalReport> {
        while let Ok((thread, index, counts)) = self.receiver.try_recv() {
            self.last[thread] = Some(index);
            self.pending.entry(index).and_modify(|sum| sum.add(&counts)).or_insert(counts);
        }
        // `None` is less than any number: nothing is complete before each thread has sent once.
        let complete = self.last.iter().min().copied().flatten();
        let mut reports = VecDeque::new();
        while let Some(entry) = self.pending.first_entry().filter(|entry| Some(*entry.key()) <= complete) {
            let (index, counts) = entry.remove_entry();
            let report = self.one(index, &counts, window);
            if report.measured {
                self.so_far.add(&counts.latency);
            }
            reports.push_back(report);
            self.next = self.next.max(index + 1);
        }
        reports
    }

    pub fn so_far(&self) -> Latency {
        self.so_far.latency()
    }

    /// All threads have ended: what is pending is complete.
    pub fn receive_rest(&mut self, window: &Window) -> VecDeque<IntervalReport> {
        let mut reports = self.receive(window);
        self.last.fill(Some(u64::MAX));
        reports.append(&mut self.receive(window));
        reports
    }

    fn one(&self, index: u64, counts: &IntervalCounts, window: &Window) -> IntervalReport {
        let (from_ns, to_ns) = (self.next.min(index) * self.length_ns, (index + 1) * self.length_ns);
        let mut workers = counts.workers.clone();
        if !workers.is_empty() {
            workers.resize(workers.len().max(self.expected_workers), (0, 0));
        }
        let share = |&(connections, requests): &(u64, u64)| WorkerShare { connections, requests, latency_us: None };
        let totals = &counts.totals;
        IntervalReport {
            from_s: from_ns as f64 / 1e9,
            to_s: to_ns as f64 / 1e9,
            measured: window.contains(window.start_ns + from_ns),
            requests: counts.answers,
            qps: counts.answers as f64 / ((to_ns - from_ns) as f64 / 1e9),
            errors: totals.errors,
            retried: totals.retried,
            due: (totals.due > 0).then_some(totals.due),
            connections_open: totals.open,
            connections_requested: self.connections_requested,
            connections_established: totals.established,
            latency_us: counts.latency.latency(),
            send_delay_us: counts.send_delay.latency(),
            // Of so many workers the p-values would be simulated for longer than an interval lasts.
            evenness: (workers.len() <= JUDGED_WORKERS).then(|| evenness::pair(workers.iter().copied())).flatten(),
            // Beyond those that are known to be there only workers that did something: a number may be high.
            workers: std::iter::zip(0.., &workers)
                .filter(|&(worker, &counts)| worker < self.expected_workers || counts != (0, 0))
                .map(|(worker, counts): (usize, _)| (worker.to_string(), share(counts)))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const WINDOW: Window = Window { start_ns: 0, open_ns: 100 * MS, close_ns: 1_000 * MS };

    fn open(open: u64) -> Totals {
        Totals { open, ..Totals::default() }
    }

    fn begun(threads: usize) -> (Vec<IntervalSender>, IntervalMerger) {
        let (mut senders, merger) = channel(threads, Duration::from_millis(100), 8, 2);
        senders.iter_mut().for_each(|sender| sender.begin(0));
        (senders, merger)
    }

    fn answer(sender: &mut IntervalSender, worker: u32) {
        sender.answered(2 * MS, None, Some(worker), true);
    }

    #[test]
    fn an_interval_is_reported_when_every_thread_has_told_it() {
        let (mut senders, mut merger) = begun(2);
        answer(&mut senders[0], 0);
        senders[0].send(101 * MS, open(3));
        assert!(merger.receive(&WINDOW).is_empty());
        answer(&mut senders[1], 1);
        answer(&mut senders[1], 1);
        senders[1].send(102 * MS, open(4));
        let reports = merger.receive(&WINDOW);
        assert_eq!(reports.len(), 1);
        let report = &reports[0];
        assert_eq!((report.requests, report.qps, report.connections_open), (3, 30.0, 7));
        assert_eq!((report.from_s, report.to_s, report.measured), (0.0, 0.1, false));
        assert_eq!((report.workers["0"].requests, report.workers["1"].requests), (1, 2));
        assert!((report.latency_us.p50 - 2000.0).abs() < 20.0);
    }

    #[test]
    fn a_silent_stretch_belongs_to_the_interval_that_ends_it() {
        let (mut senders, mut merger) = begun(1);
        answer(&mut senders[0], 0);
        senders[0].send(350 * MS, open(0));
        let reports = merger.receive(&WINDOW);
        assert_eq!((reports[0].from_s, reports[0].to_s, reports[0].requests), (0.0, 0.3, 1));
        answer(&mut senders[0], 0);
        senders.remove(0).finish(420 * MS, open(0));
        let reports = merger.receive_rest(&WINDOW);
        assert_eq!((reports[0].from_s, reports[0].to_s, reports[0].requests), (0.3, 0.5, 1));
        assert!(reports[0].measured);
    }

    #[test]
    fn a_high_number_of_a_worker_brings_no_empty_ones_below_it() {
        let (mut senders, mut merger) = begun(1);
        answer(&mut senders[0], 65_000);
        senders.remove(0).finish(50 * MS, open(0));
        let report = &merger.receive_rest(&WINDOW)[0];
        assert_eq!(report.workers.keys().collect::<Vec<_>>(), ["0", "1", "65000"]);
        assert_eq!(report.evenness, None, "so many are judged for the whole run alone");
    }

    #[test]
    fn nothing_is_lost_when_nobody_listens_for_a_while() {
        let (mut senders, mut merger) = begun(1);
        for interval in 1..=20 {
            answer(&mut senders[0], 0);
            senders[0].send(interval * 100 * MS, open(0));
        }
        senders.remove(0).finish(2_050 * MS, open(0));
        let reports = merger.receive_rest(&WINDOW);
        assert_eq!(reports.iter().map(|report| report.requests).sum::<u64>(), 20);
        assert_eq!(reports.len(), 21);
    }
}
