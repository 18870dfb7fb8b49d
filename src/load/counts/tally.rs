//! What one thread counted. Each thread has its own, nothing in it is shared, and counting allocates only
//! when a name (an errno, a status, a worker) appears for the first time, when a second begins and when a request is
//! lost. Its size does not depend on the number of requests.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use nix::errno::Errno;

use crate::load::counts::histogram::Times;
use crate::load::counts::seconds::Seconds;
use crate::load::response::{Answer, MAX_WORKERS, Malformed};
use crate::report::{Errors, LoadReport, Lost, Traced};

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
    /// The server closed before the answer was complete.
    Eof,
    Malformed(Malformed),
    /// Bytes that belong to no request: before one was sent, or behind its answer.
    Unasked,
    /// The answer has no length, and so ends with the connection; the server kept that open.
    NoLength,
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
            Cause::Malformed(Malformed(what)) => format!("malformed: {what}"),
            Cause::Unasked => "unasked".into(),
            Cause::NoLength => "no length".into(),
        }
    }
}

/// How a request that was sent or due ended without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LostCause {
    Write(Cause),
    Read(Cause),
    Timeout,
}

impl LostCause {
    fn name(self) -> String {
        match self {
            LostCause::Write(cause) => format!("write {}", cause.name()),
            LostCause::Read(cause) => format!("read {}", cause.name()),
            LostCause::Timeout => "timeout".into(),
        }
    }
}

/// A request that was lost, before its cause gets its name.
#[derive(Debug, Clone, Copy)]
pub struct LostRequest {
    pub at_ns: u64,
    pub client: Option<SocketAddr>,
    pub loss: LostCause,
    pub worker: Option<u32>,
}

/// One request's timestamps.
#[derive(Debug, Clone, Copy)]
pub struct Timestamps {
    pub due_ns: u64,
    /// `None` when it never was.
    pub sent_ns: Option<u64>,
    /// Of the answer.
    pub first_byte_ns: Option<u64>,
    /// Answered, failed or given up.
    pub end_ns: u64,
}

/// What of it is measured; the same for all requests of a run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Measures {
    /// Response time counts from the due time, and is not the service time.
    pub from_due: bool,
    /// There are due times that a request can be late for.
    pub slip: bool,
    /// Workers expected to answer, for room made beforehand.
    pub workers: usize,
    /// Answers to keep one by one.
    pub trace: usize,
    /// Connections whose worker is kept in order.
    pub order: usize,
    /// Sends to keep with their due times.
    pub sends: usize,
    /// Parts of the window that are told apart, to see a drift; 0 for none.
    pub slices: usize,
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

/// What one worker gave, as this client saw it.
#[derive(Clone, Default)]
pub struct WorkerTally {
    pub connections: u64,
    pub requests: u64,
    /// Response times; kept for the first [`TIMED_WORKERS`] alone.
    pub latency: Option<Box<Times>>,
}

/// Each worker's histogram takes 140 KiB in each thread.
pub const TIMED_WORKERS: usize = 64;

/// A part of the measured window.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Slice {
    pub answers: u64,
    /// Response times of those that were answered in it.
    pub latency_sum_ns: u64,
}

/// A request that was sent, and when it should have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sent {
    pub due_ns: u64,
    pub sent_ns: u64,
}

#[derive(Clone, Default)]
pub struct Tally {
    pub measures: Measures,
    /// In closed loop latency *is* service time, and nothing is recorded here.
    pub latency: Times,
    pub service: Times,
    pub first_byte: Times,
    pub slip: Times,
    pub connect: Times,
    /// Requests due in the window, whatever became of them.
    pub due_in_window: u64,
    /// Those of them that never got an answer.
    pub censored: u64,
    /// Given up because of their deadline, in the whole run.
    pub shed: u64,
    pub abandoned: u64,
    pub answered_in_window: u64,
    pub answered_before: u64,
    pub answered_late: u64,
    /// When the last request was answered, failed or given up; when the last was answered; and when the last of the
    /// window was due.
    pub last_end_ns: u64,
    pub last_answer_ns: u64,
    pub last_due_ns: u64,
    /// The errno of the first connect(2), when no thread had a connection yet.
    pub unreachable: Option<Errno>,
    /// The server stayed away, and the rest of the requests was not waited for.
    pub gave_up: bool,
    /// Index = worker.
    pub workers: Vec<WorkerTally>,
    pub failures: Failures,
    /// Requests sent a second time.
    pub retried: u64,
    /// The first requests that were lost, and how many more.
    pub lost: Vec<LostRequest>,
    pub lost_more: u64,
    pub seconds: Seconds,
    pub established: u64,
    pub answered_connections: u64,
    pub open: u64,
    pub peak_open: u64,
    pub trace: Vec<Traced>,
    /// When a connection had its first answer, and whose.
    pub order: Vec<(u64, u32)>,
    /// The first sends whose requests were due in the window.
    pub sends: Vec<Sent>,
    pub slices: Vec<Slice>,
}

impl Tally {
    pub fn new(measures: Measures) -> Tally {
        let timed = |worker| WorkerTally { latency: times_of(worker), ..WorkerTally::default() };
        Tally {
            measures,
            workers: (0..measures.workers).map(timed).collect(),
            trace: Vec::with_capacity(measures.trace),
            order: Vec::with_capacity(measures.order),
            sends: Vec::with_capacity(measures.sends),
            slices: vec![Slice::default(); measures.slices],
            ..Tally::default()
        }
    }

    /// A request of the measured window enters the histograms once, whatever became of it: at its response
    /// time, or at its age when it became clear that no answer would come.
    pub fn record(&mut self, window: &Window, timestamps: Timestamps, answered: bool) {
        self.last_end_ns = timestamps.end_ns;
        if !window.contains(timestamps.due_ns) {
            return;
        }
        self.due_in_window += 1;
        self.last_due_ns = self.last_due_ns.max(timestamps.due_ns);
        self.censored += u64::from(!answered);
        if let Some(sent_ns) = timestamps.sent_ns {
            self.service.record(timestamps.end_ns.saturating_sub(sent_ns));
            if let Some(first_byte_ns) = timestamps.first_byte_ns {
                self.first_byte.record(first_byte_ns.saturating_sub(sent_ns));
            }
            if self.measures.slip {
                self.slip.record(sent_ns.saturating_sub(timestamps.due_ns));
            }
        }
        if self.measures.from_due {
            self.latency.record(timestamps.end_ns.saturating_sub(timestamps.due_ns));
        }
        if !answered && window.contains(timestamps.end_ns) {
            self.seconds.unanswered(timestamps.end_ns - window.open_ns, self.latency_ns(timestamps));
        }
    }

    /// Counts an answer for the rate, the worker, the status and the trace.
    pub fn answer(&mut self, window: &Window, timestamps: Timestamps, answer: &Answer, first: bool) {
        self.record(window, timestamps, true);
        self.last_answer_ns = timestamps.end_ns;
        let in_window = window.contains(timestamps.end_ns);
        let latency_ns = self.latency_ns(timestamps);
        if in_window {
            self.answered_in_window += 1;
            self.seconds.answered(timestamps.end_ns - window.open_ns, latency_ns);
            self.count_slice(window, timestamps.end_ns, latency_ns);
        } else if timestamps.end_ns < window.open_ns {
            self.answered_before += 1;
        } else {
            self.answered_late += 1;
        }
        self.answered_connections += u64::from(first);
        if let Some(worker) = answer.worker {
            let is_due_in_window = window.contains(timestamps.due_ns);
            let share = self.worker(worker);
            share.connections += u64::from(first);
            share.requests += u64::from(in_window);
            if let Some(times) = share.latency.as_mut().filter(|_| is_due_in_window) {
                times.record(latency_ns);
            }
            if first && self.order.len() < self.measures.order {
                self.order.push((timestamps.end_ns, worker));
            }
        }
        if !(200..300).contains(&answer.status) {
            *self.failures.status.entry(answer.status).or_default() += 1;
        }
        if self.trace.len() < self.measures.trace {
            self.trace.push(self.traced(window, timestamps, answer));
        }
    }

    /// These requests will get no answer.
    pub fn lose(&mut self, casualty: LostRequest, requests: u64) {
        let failures = &mut self.failures;
        match casualty.loss {
            LostCause::Write(cause) => count(&mut failures.write, cause, requests),
            LostCause::Read(cause) => count(&mut failures.read, cause, requests),
            LostCause::Timeout => failures.timeout += requests,
        }
        let named = requests.min((LoadReport::MOST_LOST - self.lost.len()) as u64);
        self.lost.extend((0..named).map(|_| casualty));
        self.lost_more += requests - named;
    }

    /// The lost requests as the report has them.
    pub fn lost_by_name(&self, window: &Window) -> Vec<Lost> {
        let lost = |casualty: &LostRequest| Lost {
            at_s: casualty.at_ns.saturating_sub(window.start_ns) as f64 / 1e9,
            client: casualty.client.map(|client| client.to_string()),
            cause: casualty.loss.name(),
            worker: casualty.worker,
        };
        self.lost.iter().map(lost).collect()
    }

    /// Response time of an answered request; what its histogram counts.
    pub fn latency_ns(&self, timestamps: Timestamps) -> u64 {
        let sent_ns = timestamps.sent_ns.filter(|_| !self.measures.from_due);
        timestamps.end_ns.saturating_sub(sent_ns.unwrap_or(timestamps.due_ns))
    }

    fn count_slice(&mut self, window: &Window, end_ns: u64, latency_ns: u64) {
        // Without slices, or with an end nobody knows yet, there is nothing to divide.
        let (slices, length_ns) = (self.slices.len() as u64, window.duration_ns());
        if slices == 0 || window.close_ns == u64::MAX {
            return;
        }
        let index = u128::from(end_ns - window.open_ns) * u128::from(slices) / u128::from(length_ns.max(1));
        let slice = &mut self.slices[(index as usize).min(slices as usize - 1)];
        slice.answers += 1;
        slice.latency_sum_ns = slice.latency_sum_ns.saturating_add(latency_ns);
    }

    /// A request goes out.
    pub fn sent(&mut self, window: &Window, due_ns: u64, sent_ns: u64) {
        if self.sends.len() < self.measures.sends && window.contains(due_ns) {
            self.sends.push(Sent { due_ns, sent_ns });
        }
    }

    pub fn opened(&mut self) {
        self.open += 1;
        self.peak_open = self.peak_open.max(self.open);
    }

    fn worker(&mut self, worker: u32) -> &mut WorkerTally {
        debug_assert!(worker < MAX_WORKERS);
        let index = worker as usize;
        while index >= self.workers.len() {
            let latency = times_of(self.workers.len());
            self.workers.push(WorkerTally { latency, ..WorkerTally::default() });
        }
        &mut self.workers[index]
    }

    /// Adds another thread's book to this one.
    pub fn add(&mut self, other: Tally) {
        self.latency.add(&other.latency);
        self.service.add(&other.service);
        self.first_byte.add(&other.first_byte);
        self.slip.add(&other.slip);
        self.connect.add(&other.connect);
        self.due_in_window += other.due_in_window;
        self.censored += other.censored;
        self.shed += other.shed;
        self.abandoned += other.abandoned;
        self.answered_in_window += other.answered_in_window;
        self.answered_before += other.answered_before;
        self.answered_late += other.answered_late;
        self.last_end_ns = self.last_end_ns.max(other.last_end_ns);
        self.last_answer_ns = self.last_answer_ns.max(other.last_answer_ns);
        self.last_due_ns = self.last_due_ns.max(other.last_due_ns);
        self.unreachable = self.unreachable.or(other.unreachable);
        self.gave_up |= other.gave_up;
        for (worker, share) in (0..).zip(other.workers) {
            let sum = self.worker(worker);
            sum.connections += share.connections;
            sum.requests += share.requests;
            if let (Some(sum), Some(times)) = (&mut sum.latency, &share.latency) {
                sum.add(times);
            }
        }
        self.failures.add(other.failures);
        self.retried += other.retried;
        self.lost.extend(other.lost);
        self.lost.sort_by_key(|casualty| casualty.at_ns);
        self.lost_more += other.lost_more + self.lost.len().saturating_sub(LoadReport::MOST_LOST) as u64;
        self.lost.truncate(LoadReport::MOST_LOST);
        self.seconds.add(other.seconds);
        self.established += other.established;
        self.answered_connections += other.answered_connections;
        // Threads hold their connections at the same time, so the sum of the peaks is the peak.
        self.peak_open += other.peak_open;
        self.trace.extend(other.trace);
        self.trace.sort_by(|a, b| a.at_us.total_cmp(&b.at_us));
        self.trace.truncate(self.measures.trace);
        self.order.extend(other.order);
        self.order.sort();
        self.order.truncate(self.measures.order);
        add_sends(&mut self.sends, other.sends, self.measures.sends);
        for (sum, slice) in self.slices.iter_mut().zip(other.slices) {
            sum.answers += slice.answers;
            sum.latency_sum_ns = sum.latency_sum_ns.saturating_add(slice.latency_sum_ns);
        }
    }

    fn traced(&self, window: &Window, timestamps: Timestamps, answer: &Answer) -> Traced {
        Traced {
            at_us: timestamps.end_ns.saturating_sub(window.start_ns) as f64 / 1e3,
            latency_us: self.latency_ns(timestamps) as f64 / 1e3,
            status: answer.status,
            bytes: answer.body_bytes,
            worker: answer.worker,
        }
    }
}

fn times_of(worker: usize) -> Option<Box<Times>> {
    (worker < TIMED_WORKERS).then(|| Box::new(Times::of_a_worker()))
}

/// A thread whose room was full has told nothing of what came later, and then the others must not either.
fn add_sends(sum: &mut Vec<Sent>, other: Vec<Sent>, room: usize) {
    let known_until = |sends: &[Sent]| match sends.iter().max_by_key(|sent| sent.due_ns) {
        Some(last) if sends.len() >= room => last.due_ns,
        _ => u64::MAX,
    };
    let until_ns = known_until(sum).min(known_until(&other));
    sum.extend(other);
    sum.retain(|sent| sent.due_ns <= until_ns);
    sum.sort();
}

impl Failures {
    pub fn add(&mut self, other: Failures) {
        merge(&mut self.connect, other.connect);
        merge(&mut self.write, other.write);
        merge(&mut self.read, other.read);
        merge(&mut self.status, other.status);
        self.timeout += other.timeout;
    }

    pub fn total(&self) -> u64 {
        let by_cause = [&self.connect, &self.write, &self.read];
        by_cause.iter().flat_map(|counts| counts.values()).chain(self.status.values()).sum::<u64>()
            + self.timeout
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

/// So many more failures of this cause.
pub fn count(failures: &mut BTreeMap<Cause, u64>, cause: impl Into<Cause>, failed: u64) {
    *failures.entry(cause.into()).or_default() += failed;
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Window = Window { start_ns: 0, open_ns: 1_000, close_ns: 2_000 };
    const ANSWER: Answer = Answer { status: 200, worker: Some(1), body_bytes: 64, close: false };

    fn timestamps(due_ns: u64, sent_ns: u64, end_ns: u64) -> Timestamps {
        Timestamps { due_ns, sent_ns: Some(sent_ns), first_byte_ns: Some(end_ns), end_ns }
    }

    fn tally(from_due: bool, trace: usize) -> Tally {
        Tally::new(Measures { from_due, trace, ..Measures::default() })
    }

    #[test]
    fn answers_count_where_they_end_and_times_count_where_they_were_due() {
        let mut tally = tally(true, 0);
        tally.answer(&WINDOW, timestamps(500, 500, 900), &ANSWER, true);
        tally.answer(&WINDOW, timestamps(900, 900, 1_100), &ANSWER, false);
        tally.answer(&WINDOW, timestamps(1_200, 1_500, 1_600), &ANSWER, false);
        tally.answer(&WINDOW, timestamps(1_900, 1_900, 2_500), &ANSWER, false);
        assert_eq!((tally.answered_before, tally.answered_in_window, tally.answered_late), (1, 2, 1));
        assert_eq!((tally.latency.count(), tally.service.count()), (2, 2));
        assert_eq!((tally.workers[1].connections, tally.workers[1].requests), (1, 2));
        assert_eq!(tally.workers[1].latency.as_ref().unwrap().count(), 2);
        assert_eq!(tally.latency.latency().max, 0.6);
        assert_eq!(tally.service.latency().max, 0.6);
    }

    #[test]
    fn answers_outside_2xx_are_answers_and_errors() {
        let mut tally = tally(false, 0);
        for status in [200, 204, 301, 404, 503, 503] {
            let answer = Answer { status, ..ANSWER };
            tally.answer(&WINDOW, timestamps(1_000, 1_000, 1_001), &answer, false);
        }
        assert_eq!(tally.answered_in_window, 6);
        let errors = tally.failures.named();
        let expected = [("301", 1), ("404", 1), ("503", 2)].map(|(status, n)| (status.to_string(), n));
        assert_eq!(errors.status, BTreeMap::from(expected));
    }

    #[test]
    fn two_threads_books_add_up() {
        let (mut a, mut b) = (tally(false, 2), tally(false, 2));
        a.answer(&WINDOW, timestamps(1_000, 1_000, 1_300), &ANSWER, true);
        a.answer(&WINDOW, timestamps(1_000, 1_000, 1_500), &ANSWER, true);
        b.answer(&WINDOW, timestamps(1_000, 1_000, 1_400), &Answer { worker: Some(3), ..ANSWER }, true);
        count(&mut a.failures.connect, Errno::ECONNREFUSED, 1);
        count(&mut b.failures.connect, Errno::ECONNREFUSED, 1);
        count(&mut b.failures.read, Cause::Eof, 1);
        a.add(b);
        assert_eq!(a.answered_in_window, 3);
        assert_eq!(a.workers.iter().map(|share| share.connections).collect::<Vec<_>>(), [0, 2, 0, 1]);
        assert_eq!(a.failures.named().connect, BTreeMap::from([("ECONNREFUSED".to_string(), 2)]));
        assert_eq!(a.failures.named().read, BTreeMap::from([("eof".to_string(), 1)]));
        assert_eq!(a.trace.iter().map(|traced| traced.at_us).collect::<Vec<_>>(), [1.3, 1.4]);
    }
}
