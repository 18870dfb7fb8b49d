//! The same answers in intervals, sent to the main thread while the run goes on; only where an observer needs them.
//!
//! A measuring thread fills an [`IntervalCounts`], sends it at its end to the main thread and takes an empty one. The
//! main thread returns them, so that nothing is allocated after the start; when it has not returned one in time, the
//! thread goes on with the one it has, and the next interval is longer.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::Duration;

use crate::load::counts::evenness;
use crate::load::counts::histogram::Times;
use crate::load::counts::window::Window;
use crate::report::{IntervalReport, Latency, WorkerShare};

/// How many counts go round between the main thread and each measuring thread.
const ROUND: usize = 8;

/// The evenness of more workers is judged for the whole run only.
const JUDGED_WORKERS: usize = 256;

/// What a thread has counted since its start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Totals {
    /// Connections open now.
    pub open: u64,
    pub established: u64,
    pub errors: u64,
    pub retried: u64,
    /// Requests taken from the schedule.
    pub due: u64,
}

impl Totals {
    fn with(&self, other: &Totals, combine: fn(u64, u64) -> u64) -> Totals {
        Totals {
            open: combine(self.open, other.open),
            established: combine(self.established, other.established),
            errors: combine(self.errors, other.errors),
            retried: combine(self.retried, other.retried),
            due: combine(self.due, other.due),
        }
    }
}

/// What one thread counted in one interval.
pub struct IntervalCounts {
    thread: usize,
    /// Number of the interval that it ends with.
    index: u64,
    answers: u64,
    /// The difference to the end of the interval before; `open` is the number at the end of this one.
    totals: Totals,
    latency: Times,
    slip: Times,
    /// Connections and requests; index = worker.
    workers: Vec<(u64, u64)>,
}

impl IntervalCounts {
    fn new(thread: usize) -> IntervalCounts {
        IntervalCounts {
            thread,
            index: 0,
            answers: 0,
            totals: Totals::default(),
            latency: Times::of_an_interval(),
            slip: Times::of_an_interval(),
            workers: Vec::new(),
        }
    }

    fn clear(&mut self) {
        self.answers = 0;
        self.latency.clear();
        self.slip.clear();
        self.workers.fill((0, 0));
    }

    fn worker(&mut self, worker: usize) -> &mut (u64, u64) {
        if worker >= self.workers.len() {
            self.workers.resize(worker + 1, (0, 0));
        }
        &mut self.workers[worker]
    }

    fn add(&mut self, other: &IntervalCounts) {
        self.answers += other.answers;
        self.totals = self.totals.with(&other.totals, |a, b| a + b);
        self.latency.add(&other.latency);
        self.slip.add(&other.slip);
        for (worker, (connections, requests)) in other.workers.iter().enumerate() {
            let sum = self.worker(worker);
            *sum = (sum.0 + connections, sum.1 + requests);
        }
    }
}

/// The end of a measuring thread.
pub struct IntervalSender {
    counts: Box<IntervalCounts>,
    /// At the beginning of the present interval; `open` is 0, since it is not a difference.
    before: Totals,
    length_ns: u64,
    start_ns: u64,
    ends_ns: u64,
    full: SyncSender<Box<IntervalCounts>>,
    empty: Receiver<Box<IntervalCounts>>,
}

impl IntervalSender {
    /// The run begins at this moment.
    pub fn begin(&mut self, start_ns: u64) {
        self.start_ns = start_ns;
        self.ends_ns = start_ns + self.length_ns;
    }

    /// When the present interval ends.
    pub fn ends_ns(&self) -> u64 {
        self.ends_ns
    }

    /// One more answer; `first` on its connection.
    pub fn answered(&mut self, latency_ns: u64, slip_ns: Option<u64>, worker: Option<u32>, first: bool) {
        self.counts.answers += 1;
        self.counts.latency.record(latency_ns);
        if let Some(slip_ns) = slip_ns {
            self.counts.slip.record(slip_ns);
        }
        if let Some(worker) = worker {
            let counts = self.counts.worker(worker as usize);
            *counts = (counts.0 + u64::from(first), counts.1 + 1);
        }
    }

    /// A request that will get no answer counts at its age.
    pub fn unanswered(&mut self, age_ns: u64) {
        self.counts.latency.record(age_ns);
    }

    /// Sends what was counted in the interval that has ended, and begins the present one.
    pub fn send(&mut self, now_ns: u64, totals: Totals) {
        let begun = now_ns.saturating_sub(self.start_ns) / self.length_ns;
        self.ends_ns = self.start_ns + (begun + 1) * self.length_ns;
        if let Ok(mut next) = self.empty.try_recv() {
            self.close(begun.saturating_sub(1), totals);
            next.clear();
            let _ = self.full.try_send(std::mem::replace(&mut self.counts, next));
        }
    }

    /// Sends the rest.
    pub fn finish(mut self, now_ns: u64, totals: Totals) {
        self.close(now_ns.saturating_sub(self.start_ns) / self.length_ns, totals);
        // The main thread is gone at the end of a run that failed.
        let _ = self.full.try_send(self.counts);
    }

    fn close(&mut self, index: u64, totals: Totals) {
        self.counts.index = index;
        self.counts.totals = totals.with(&self.before, |now, before| now - before);
        self.before = Totals { open: 0, ..totals };
    }
}

/// The main thread's end: adds up what the threads counted in the same interval.
pub struct IntervalMerger {
    length_ns: u64,
    full: Receiver<Box<IntervalCounts>>,
    empty: Vec<SyncSender<Box<IntervalCounts>>>,
    /// The interval that each thread sent last; `None` before its first.
    last: Vec<Option<u64>>,
    /// Intervals that some thread has not sent yet.
    pending: BTreeMap<u64, Box<IntervalCounts>>,
    /// The next interval to report.
    next: u64,
    connections_requested: u64,
    expected_workers: usize,
    /// Response times of the measured intervals.
    so_far: Times,
}

/// Both ends, for so many threads.
pub fn channel(
    threads: usize,
    length: Duration,
    connections_requested: u64,
    expected_workers: usize,
) -> (Vec<IntervalSender>, IntervalMerger) {
    let length_ns = length.as_nanos() as u64;
    let (full, receiver) = mpsc::sync_channel(threads * (ROUND + 1));
    let (mut senders, mut empty) = (Vec::new(), Vec::new());
    for thread in 0..threads {
        let (returned, receiver) = mpsc::sync_channel(ROUND + 1);
        for _ in 0..ROUND {
            returned.try_send(Box::new(IntervalCounts::new(thread))).expect("the channel has room for the round");
        }
        empty.push(returned);
        senders.push(IntervalSender {
            counts: Box::new(IntervalCounts::new(thread)),
            before: Totals::default(),
            length_ns,
            start_ns: 0,
            ends_ns: u64::MAX,
            full: full.clone(),
            empty: receiver,
        });
    }
    let merger = IntervalMerger {
        length_ns,
        full: receiver,
        empty,
        last: vec![None; threads],
        pending: BTreeMap::new(),
        next: 0,
        connections_requested,
        expected_workers,
        so_far: Times::of_an_interval(),
    };
    (senders, merger)
}

impl IntervalMerger {
    /// Every interval that all threads have sent by now, oldest first.
    pub fn receive(&mut self, window: &Window) -> VecDeque<IntervalReport> {
        while let Ok(counts) = self.full.try_recv() {
            let thread = counts.thread;
            self.last[thread] = Some(counts.index);
            let sum = self.pending.entry(counts.index);
            sum.or_insert_with(|| Box::new(IntervalCounts::new(thread))).add(&counts);
            // The thread may have ended, and then does not need it back.
            let _ = self.empty[thread].try_send(counts);
        }
        let complete = self.last.iter().min().copied().flatten();
        self.report(complete, window)
    }

    /// Response times of all measured intervals that were reported.
    pub fn so_far(&self) -> Latency {
        self.so_far.latency()
    }

    /// What is left when all threads have ended.
    pub fn receive_rest(&mut self, window: &Window) -> VecDeque<IntervalReport> {
        let mut reports = self.receive(window);
        let last = self.pending.keys().next_back().copied();
        reports.extend(self.report(last, window));
        reports
    }

    fn report(&mut self, until: Option<u64>, window: &Window) -> VecDeque<IntervalReport> {
        let mut reports = VecDeque::new();
        while let Some(entry) = self.pending.first_entry().filter(|entry| Some(*entry.key()) <= until) {
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
            slip_us: counts.slip.latency(),
            // Of so many workers the p-values would be simulated for longer than an interval lasts.
            evenness: (workers.len() <= JUDGED_WORKERS).then(|| evenness::pair(workers.iter().copied())).flatten(),
            workers: (0..)
                .zip(&workers)
                // Beyond those that are known to be there only workers that did something: a number may be high.
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
        assert_eq!(reports.len(), ROUND + 1);
    }
}
