//! What one thread counted. Counting allocates only when an errno, a status or a worker appears for the first time,
//! when a second or an interval begins and when a request is lost: the size does not depend on the number of requests.

use std::ops::Add;

use nix::errno::Errno;

use crate::load::counts::distributions::Distributions;
use crate::load::counts::failures::{Failures, count};
use crate::load::counts::histogram::Times;
use crate::load::counts::interval::{IntervalSender, Totals};
use crate::load::counts::series::Series;
use crate::load::counts::window::{Timestamps, Window};
use crate::load::response::{Answer, MAX_WORKERS};
use crate::report::Traced;

#[derive(Debug, Clone, Copy, Default)]
pub struct Measures {
    /// Response time counts from the due time, and is not the service time.
    pub from_due: bool,
    pub send_delay: bool,
    /// Workers expected to answer, for room made beforehand.
    pub workers: usize,
    pub trace: usize,
    /// Connections whose worker is kept in order.
    pub order: usize,
    pub sends: usize,
}

pub struct WorkerTally {
    pub connections: u64,
    pub requests: u64,
    /// Response times, of the first workers only: each histogram takes 140 KiB in each thread.
    pub latency: Option<Box<Times>>,
}

impl WorkerTally {
    const TIMED: usize = 64;

    fn new(worker: usize) -> WorkerTally {
        let latency = (worker < WorkerTally::TIMED).then(|| Box::new(Times::with_digits(3)));
        WorkerTally { connections: 0, requests: 0, latency }
    }
}

/// A request that was sent, and when it should have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sent {
    pub due_ns: u64,
    pub sent_ns: u64,
}

#[derive(Default)]
pub struct Tally {
    pub measures: Measures,
    /// In a closed loop the response time is the service time; it is recorded once, and copied at the end.
    pub times: Distributions,
    pub due_in_window: u64,
    /// Due in the window and never answered.
    pub censored: u64,
    /// Given up because of their deadline, in the whole run.
    pub shed: u64,
    pub abandoned: u64,
    pub wrong_bodies: u64,
    /// Connections that waited for their first answer in vain, for the time-out or for half of the window at its end.
    pub starved: u64,
    pub answered_in_window: u64,
    pub answered_before: u64,
    pub answered_late: u64,
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
    pub series: Series,
    pub intervals: Option<IntervalSender>,
    pub answered_connections: u64,
    /// Without the errors, which are in the failures.
    pub totals: Totals,
    pub peak_open: u64,
    pub trace: Vec<Traced>,
    /// When a connection had its first answer, and whose.
    pub order: Vec<(u64, u32)>,
    /// The first whose requests were due in the window.
    pub sends: Vec<Sent>,
}

impl Tally {
    pub fn new(measures: Measures) -> Tally {
        Tally {
            measures,
            workers: (0..measures.workers).map(WorkerTally::new).collect(),
            trace: Vec::with_capacity(measures.trace),
            order: Vec::with_capacity(measures.order),
            sends: Vec::with_capacity(measures.sends),
            ..Tally::default()
        }
    }

    pub fn unanswered(&mut self, window: &Window, timestamps: Timestamps) {
        self.record(window, timestamps, false);
        let age_ns = self.latency_ns(timestamps);
        if window.contains(timestamps.due_ns) && window.contains(timestamps.end_ns) {
            self.series.record(timestamps.end_ns - window.open_ns, age_ns, false);
        }
        if let Some(intervals) = &mut self.intervals {
            intervals.unanswered(age_ns);
        }
    }

    pub fn answered(&mut self, window: &Window, timestamps: Timestamps, answer: &Answer, first: bool) {
        self.record(window, timestamps, true);
        self.last_answer_ns = timestamps.end_ns;
        let in_window = window.contains(timestamps.end_ns);
        let latency_ns = self.latency_ns(timestamps);
        if in_window {
            self.answered_in_window += 1;
            self.series.record(timestamps.end_ns - window.open_ns, latency_ns, true);
        } else if timestamps.end_ns < window.open_ns {
            self.answered_before += 1;
        } else {
            self.answered_late += 1;
        }
        if let Some(intervals) = &mut self.intervals {
            intervals.answered(latency_ns, timestamps.send_delay_ns(), answer.worker, first);
        }
        self.answered_connections += u64::from(first);
        self.wrong_bodies += u64::from(answer.wrong_body);
        if let Some(worker) = answer.worker {
            let is_due_in_window = window.contains(timestamps.due_ns);
            let tally = self.worker(worker);
            tally.connections += u64::from(first);
            tally.requests += u64::from(in_window);
            if let Some(times) = tally.latency.as_mut().filter(|_| is_due_in_window) {
                times.record(latency_ns);
            }
            if first && self.order.len() < self.measures.order {
                self.order.push((timestamps.end_ns, worker));
            }
        }
        if !(200..300).contains(&answer.status) {
            count(&mut self.failures.status, answer.status, 1);
        }
        if self.trace.len() < self.measures.trace {
            self.trace.push(Traced {
                at_us: timestamps.end_ns.saturating_sub(window.start_ns) as f64 / 1e3,
                latency_us: latency_ns as f64 / 1e3,
                status: answer.status,
                bytes: answer.body_bytes,
                worker: answer.worker,
            });
        }
    }

    /// A request of the measured window enters the histograms once: at its response time, or at its age when it became
    /// clear that no answer would come.
    fn record(&mut self, window: &Window, timestamps: Timestamps, answered: bool) {
        self.last_end_ns = timestamps.end_ns;
        if !window.contains(timestamps.due_ns) {
            return;
        }
        self.due_in_window += 1;
        self.last_due_ns = self.last_due_ns.max(timestamps.due_ns);
        self.censored += u64::from(!answered);
        if let Some(sent_ns) = timestamps.sent_ns {
            self.times.service.record(timestamps.end_ns.saturating_sub(sent_ns));
            if let Some(first_byte_ns) = timestamps.first_byte_ns {
                self.times.first_byte.record(first_byte_ns.saturating_sub(sent_ns));
            }
        }
        if let Some(send_delay_ns) = timestamps.send_delay_ns().filter(|_| self.measures.send_delay) {
            self.times.send_delay.record(send_delay_ns);
        }
        if self.measures.from_due {
            self.times.response.record(timestamps.end_ns.saturating_sub(timestamps.due_ns));
        }
    }

    /// What the histogram of response times counts.
    fn latency_ns(&self, timestamps: Timestamps) -> u64 {
        let sent_ns = timestamps.sent_ns.filter(|_| !self.measures.from_due);
        timestamps.end_ns.saturating_sub(sent_ns.unwrap_or(timestamps.due_ns))
    }

    pub fn sent(&mut self, window: &Window, due_ns: u64, sent_ns: u64) {
        if self.sends.len() < self.measures.sends && window.contains(due_ns) {
            self.sends.push(Sent { due_ns, sent_ns });
        }
    }

    pub fn totals(&self) -> Totals {
        Totals { errors: self.failures.total(), ..self.totals }
    }

    fn worker(&mut self, worker: u32) -> &mut WorkerTally {
        debug_assert!(worker < MAX_WORKERS);
        let index = worker as usize;
        while index >= self.workers.len() {
            self.workers.push(WorkerTally::new(self.workers.len()));
        }
        &mut self.workers[index]
    }

    pub fn add(&mut self, other: Tally) {
        self.times.add(&other.times);
        self.due_in_window += other.due_in_window;
        self.censored += other.censored;
        self.shed += other.shed;
        self.abandoned += other.abandoned;
        self.wrong_bodies += other.wrong_bodies;
        self.starved += other.starved;
        self.answered_in_window += other.answered_in_window;
        self.answered_before += other.answered_before;
        self.answered_late += other.answered_late;
        self.last_end_ns = self.last_end_ns.max(other.last_end_ns);
        self.last_answer_ns = self.last_answer_ns.max(other.last_answer_ns);
        self.last_due_ns = self.last_due_ns.max(other.last_due_ns);
        self.unreachable = self.unreachable.or(other.unreachable);
        self.gave_up |= other.gave_up;
        for (worker, more) in (0..).zip(other.workers) {
            let sum = self.worker(worker);
            sum.connections += more.connections;
            sum.requests += more.requests;
            if let (Some(sum), Some(times)) = (&mut sum.latency, &more.latency) {
                sum.add(times);
            }
        }
        self.failures.add(other.failures);
        self.series.add(other.series);
        self.totals = self.totals.with(&other.totals, u64::add);
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
    }
}

/// A thread whose room was full knows nothing of later sends: then those of the others are left out too.
fn add_sends(sum: &mut Vec<Sent>, other: Vec<Sent>, room: usize) {
    let known_until = |sends: &[Sent]| match sends.iter().max() {
        Some(last) if sends.len() >= room => last.due_ns,
        _ => u64::MAX,
    };
    let until_ns = known_until(sum).min(known_until(&other));
    sum.extend(other);
    sum.retain(|sent| sent.due_ns <= until_ns);
    sum.sort();
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::load::counts::failures::Cause;

    const WINDOW: Window = Window { start_ns: 0, open_ns: 1_000, close_ns: 2_000 };
    const ANSWER: Answer = Answer { status: 200, worker: Some(1), body_bytes: 64, wrong_body: false, close: false };

    fn timestamps(due_ns: u64, sent_ns: u64, end_ns: u64) -> Timestamps {
        Timestamps { due_ns, sent_ns: Some(sent_ns), first_byte_ns: Some(end_ns), end_ns }
    }

    fn tally(from_due: bool, trace: usize) -> Tally {
        Tally::new(Measures { from_due, trace, ..Measures::default() })
    }

    #[test]
    fn answers_count_where_they_end_and_times_count_where_they_were_due() {
        let mut tally = tally(true, 0);
        tally.answered(&WINDOW, timestamps(500, 500, 900), &ANSWER, true);
        tally.answered(&WINDOW, timestamps(900, 900, 1_100), &ANSWER, false);
        tally.answered(&WINDOW, timestamps(1_200, 1_500, 1_600), &ANSWER, false);
        tally.answered(&WINDOW, timestamps(1_900, 1_900, 2_500), &ANSWER, false);
        assert_eq!((tally.answered_before, tally.answered_in_window, tally.answered_late), (1, 2, 1));
        assert_eq!((tally.times.response.count(), tally.times.service.count()), (2, 2));
        assert_eq!((tally.workers[1].connections, tally.workers[1].requests), (1, 2));
        assert_eq!(tally.workers[1].latency.as_ref().unwrap().count(), 2);
        assert_eq!(tally.times.response.latency().max, 0.6);
        assert_eq!(tally.times.service.latency().max, 0.6);
    }

    #[test]
    fn answers_outside_2xx_are_answers_and_errors() {
        let mut tally = tally(false, 0);
        for status in [200, 204, 301, 404, 503, 503] {
            let answer = Answer { status, ..ANSWER };
            tally.answered(&WINDOW, timestamps(1_000, 1_000, 1_001), &answer, false);
        }
        assert_eq!(tally.answered_in_window, 6);
        let errors = tally.failures.named();
        let expected = [("301", 1), ("404", 1), ("503", 2)].map(|(status, n)| (status.to_string(), n));
        assert_eq!(errors.status, BTreeMap::from(expected));
    }

    #[test]
    fn two_threads_counts_add_up() {
        let (mut a, mut b) = (tally(false, 2), tally(false, 2));
        a.answered(&WINDOW, timestamps(1_000, 1_000, 1_300), &ANSWER, true);
        a.answered(&WINDOW, timestamps(1_000, 1_000, 1_500), &ANSWER, true);
        b.answered(&WINDOW, timestamps(1_000, 1_000, 1_400), &Answer { worker: Some(3), ..ANSWER }, true);
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
