//! What one thread counted. Each thread has its own, nothing in it is shared, and counting allocates only
//! when a name (an errno, a status, a worker) appears for the first time.

use std::collections::BTreeMap;

use nix::errno::Errno;

use crate::load::histogram::Times;
use crate::load::response::{Answer, MAX_WORKERS};
use crate::report::{Errors, Traced, WorkerShare};

/// The measured window, in nanoseconds of the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// Start of the schedule, and of the warm-up.
    pub start_ns: u64,
    pub open_ns: u64,
    /// `u64::MAX` as long as a number of requests, or Ctrl-C, is still to end it.
    pub close_ns: u64,
}

impl Window {
    /// Zero when the run was stopped before the window opened.
    pub fn duration_ns(&self) -> u64 {
        self.close_ns.saturating_sub(self.open_ns)
    }

    pub fn contains(&self, at_ns: u64) -> bool {
        (self.open_ns..self.close_ns).contains(&at_ns)
    }
}

/// Why something failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The number of the errno, since [`Errno`] has no order.
    Errno(i32),
    Eof,
    Malformed,
}

impl From<Errno> for Cause {
    fn from(errno: Errno) -> Cause {
        Cause::Errno(errno as i32)
    }
}

impl Cause {
    fn name(self) -> String {
        match self {
            Cause::Errno(errno) => format!("{:?}", Errno::from_raw(errno)),
            Cause::Eof => "eof".into(),
            Cause::Malformed => "malformed".into(),
        }
    }
}

/// One request's moments.
#[derive(Debug, Clone, Copy)]
pub struct Moments {
    pub due_ns: u64,
    /// `None` when it never was.
    pub sent_ns: Option<u64>,
    /// Answered, failed or given up.
    pub end_ns: u64,
}

/// Errors by phase and cause, before they get their names.
#[derive(Debug, Clone, Default)]
pub struct Failures {
    pub connect: BTreeMap<Cause, u64>,
    pub write: BTreeMap<Cause, u64>,
    pub read: BTreeMap<Cause, u64>,
    pub status: BTreeMap<u16, u64>,
    pub timeout: u64,
}

#[derive(Clone, Default)]
pub struct Tally {
    /// In closed loop latency *is* service time, and nothing is recorded here.
    pub latency: Times,
    pub service: Times,
    pub connect: Times,
    pub answered_in_window: u64,
    pub answered_before: u64,
    pub answered_late: u64,
    /// When the last request was answered, failed or given up.
    pub last_end_ns: u64,
    /// Index = worker.
    pub workers: Vec<WorkerShare>,
    pub failures: Failures,
    pub established: u64,
    pub answered_connections: u64,
    pub open: u64,
    pub peak_open: u64,
    pub trace: Vec<Traced>,
    pub trace_limit: usize,
}

impl Tally {
    pub fn new(trace_limit: usize) -> Tally {
        Tally { trace: Vec::with_capacity(trace_limit), trace_limit, ..Tally::default() }
    }

    /// A request of the measured window enters the histograms once, whatever became of it: at its response
    /// time, or at its age when it became clear that no answer would come.
    pub fn record(&mut self, window: &Window, open_loop: bool, moments: Moments) {
        self.last_end_ns = moments.end_ns;
        if !window.contains(moments.due_ns) {
            return;
        }
        if let Some(sent_ns) = moments.sent_ns {
            self.service.record(moments.end_ns.saturating_sub(sent_ns));
        }
        if open_loop {
            self.latency.record(moments.end_ns.saturating_sub(moments.due_ns));
        }
    }

    /// Counts an answer for the rate, the worker, the status and the trace.
    pub fn answer(
        &mut self,
        window: &Window,
        open_loop: bool,
        moments: Moments,
        answer: &Answer,
        first: bool,
    ) {
        self.record(window, open_loop, moments);
        let in_window = window.contains(moments.end_ns);
        if in_window {
            self.answered_in_window += 1;
        } else if moments.end_ns < window.open_ns {
            self.answered_before += 1;
        } else {
            self.answered_late += 1;
        }
        self.answered_connections += u64::from(first);
        if let Some(worker) = answer.worker {
            let share = self.worker(worker);
            share.connections += u64::from(first);
            share.requests += u64::from(in_window);
        }
        if !(200..300).contains(&answer.status) {
            *self.failures.status.entry(answer.status).or_default() += 1;
        }
        if self.trace.len() < self.trace_limit {
            self.trace.push(traced(window, open_loop, moments, answer));
        }
    }

    pub fn opened(&mut self) {
        self.open += 1;
        self.peak_open = self.peak_open.max(self.open);
    }

    fn worker(&mut self, worker: u32) -> &mut WorkerShare {
        debug_assert!(worker < MAX_WORKERS);
        let index = worker as usize;
        if index >= self.workers.len() {
            self.workers.resize(index + 1, WorkerShare::default());
        }
        &mut self.workers[index]
    }

    /// Adds another thread's book to this one.
    pub fn add(&mut self, other: Tally) {
        self.latency.add(&other.latency);
        self.service.add(&other.service);
        self.connect.add(&other.connect);
        self.answered_in_window += other.answered_in_window;
        self.answered_before += other.answered_before;
        self.answered_late += other.answered_late;
        self.last_end_ns = self.last_end_ns.max(other.last_end_ns);
        for (worker, share) in (0..).zip(&other.workers) {
            let sum = self.worker(worker);
            sum.connections += share.connections;
            sum.requests += share.requests;
        }
        self.failures.add(other.failures);
        self.established += other.established;
        self.answered_connections += other.answered_connections;
        // Threads hold their connections at the same time, so the sum of the peaks is the peak.
        self.peak_open += other.peak_open;
        self.trace.extend(other.trace);
        self.trace_limit = self.trace_limit.max(other.trace_limit);
        self.trace.sort_by(|a, b| a.at_us.total_cmp(&b.at_us));
        self.trace.truncate(self.trace_limit);
    }
}

fn traced(window: &Window, open_loop: bool, moments: Moments, answer: &Answer) -> Traced {
    let from_ns = moments.sent_ns.filter(|_| !open_loop).unwrap_or(moments.due_ns);
    Traced {
        at_us: moments.end_ns.saturating_sub(window.start_ns) as f64 / 1e3,
        latency_us: moments.end_ns.saturating_sub(from_ns) as f64 / 1e3,
        status: answer.status,
        bytes: answer.body_bytes,
        worker: answer.worker,
    }
}

impl Failures {
    pub fn add(&mut self, other: Failures) {
        merge(&mut self.connect, other.connect);
        merge(&mut self.write, other.write);
        merge(&mut self.read, other.read);
        merge(&mut self.status, other.status);
        self.timeout += other.timeout;
    }

    /// With names, as the report has them.
    pub fn named(&self) -> Errors {
        let by_cause = |counts: &BTreeMap<Cause, u64>| {
            counts.iter().map(|(cause, &count)| (cause.name(), count)).collect::<BTreeMap<_, _>>()
        };
        Errors {
            connect: by_cause(&self.connect),
            write: by_cause(&self.write),
            read: by_cause(&self.read),
            status: self.status.iter().map(|(status, &count)| (status.to_string(), count)).collect(),
            timeout: self.timeout,
        }
    }
}

fn merge<K: Ord>(into: &mut BTreeMap<K, u64>, from: BTreeMap<K, u64>) {
    for (key, count) in from {
        *into.entry(key).or_default() += count;
    }
}

/// One more failure of this cause.
pub fn count(failures: &mut BTreeMap<Cause, u64>, cause: impl Into<Cause>) {
    *failures.entry(cause.into()).or_default() += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Window = Window { start_ns: 0, open_ns: 1_000, close_ns: 2_000 };
    const ANSWER: Answer = Answer { status: 200, worker: Some(1), body_bytes: 64, close: false };

    fn moments(due_ns: u64, sent_ns: u64, end_ns: u64) -> Moments {
        Moments { due_ns, sent_ns: Some(sent_ns), end_ns }
    }

    #[test]
    fn answers_count_where_they_end_and_times_count_where_they_were_due() {
        let mut tally = Tally::new(0);
        tally.answer(&WINDOW, true, moments(500, 500, 900), &ANSWER, true);
        tally.answer(&WINDOW, true, moments(900, 900, 1_100), &ANSWER, false);
        tally.answer(&WINDOW, true, moments(1_200, 1_500, 1_600), &ANSWER, false);
        tally.answer(&WINDOW, true, moments(1_900, 1_900, 2_500), &ANSWER, false);
        assert_eq!((tally.answered_before, tally.answered_in_window, tally.answered_late), (1, 2, 1));
        assert_eq!((tally.latency.count(), tally.service.count()), (2, 2));
        assert_eq!(tally.workers[1], WorkerShare { connections: 1, requests: 2, latency_us: None });
        assert_eq!(tally.latency.latency().max, 0.6);
        assert_eq!(tally.service.latency().max, 0.6);
    }

    #[test]
    fn answers_outside_2xx_are_answers_and_errors() {
        let mut tally = Tally::new(0);
        for status in [200, 204, 301, 404, 503, 503] {
            let answer = Answer { status, ..ANSWER };
            tally.answer(&WINDOW, false, moments(1_000, 1_000, 1_001), &answer, false);
        }
        assert_eq!(tally.answered_in_window, 6);
        let errors = tally.failures.named();
        let expected = [("301", 1), ("404", 1), ("503", 2)].map(|(status, n)| (status.to_string(), n));
        assert_eq!(errors.status, BTreeMap::from(expected));
    }

    #[test]
    fn two_threads_books_add_up() {
        let (mut a, mut b) = (Tally::new(2), Tally::new(2));
        a.answer(&WINDOW, false, moments(1_000, 1_000, 1_300), &ANSWER, true);
        a.answer(&WINDOW, false, moments(1_000, 1_000, 1_500), &ANSWER, true);
        b.answer(&WINDOW, false, moments(1_000, 1_000, 1_400), &Answer { worker: Some(3), ..ANSWER }, true);
        count(&mut a.failures.connect, Errno::ECONNREFUSED);
        count(&mut b.failures.connect, Errno::ECONNREFUSED);
        count(&mut b.failures.read, Cause::Eof);
        a.add(b);
        assert_eq!(a.answered_in_window, 3);
        assert_eq!(a.workers.iter().map(|share| share.connections).collect::<Vec<_>>(), [0, 2, 0, 1]);
        assert_eq!(a.failures.named().connect, BTreeMap::from([("ECONNREFUSED".to_string(), 2)]));
        assert_eq!(a.failures.named().read, BTreeMap::from([("eof".to_string(), 1)]));
        assert_eq!(a.trace.iter().map(|traced| traced.at_us).collect::<Vec<_>>(), [1.3, 1.4]);
    }
}
