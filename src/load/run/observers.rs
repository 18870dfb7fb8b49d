//! Whatever receives each interval while the run goes on: a file, a terminal.

use std::collections::VecDeque;
use std::time::Duration;

use crate::load::counts::interval::{self, IntervalMerger, IntervalSender};
use crate::load::counts::window::Window;
use crate::load::options::plan::Plan;
use crate::report::{IntervalReport, Latency};

/// One of them. It runs on the main thread, and costs the measuring threads nothing.
pub trait Observer {
    /// `so_far`: the response times since the measurement began.
    fn observe(&mut self, interval: &IntervalReport, so_far: &Latency);

    fn asks_to_stop(&mut self) -> bool {
        false
    }

    /// The run is over. The error is one line; the report is printed nevertheless.
    fn finish(self: Box<Self>) -> Result<(), String> {
        Ok(())
    }
}

pub struct Observers {
    observers: Vec<Box<dyn Observer>>,
    every: Duration,
    merger: Option<IntervalMerger>,
}

impl Observers {
    pub fn new(observers: Vec<Box<dyn Observer>>, every: Duration) -> Observers {
        Observers { observers, every, merger: None }
    }

    pub fn none() -> Observers {
        Observers::new(Vec::new(), Duration::MAX)
    }

    /// What the threads send their intervals with; none where nobody observes.
    pub fn senders(&mut self, plan: &Plan) -> Vec<IntervalSender> {
        if self.observers.is_empty() {
            return Vec::new();
        }
        let (threads, connections) = (plan.threads.count as usize, u64::from(plan.connections.count));
        let (senders, merger) = interval::channel(threads, self.every, connections, plan.workers as usize);
        self.merger = Some(merger);
        senders
    }

    pub fn next_ns(&self, now_ns: u64) -> u64 {
        self.merger.as_ref().map_or(u64::MAX, |_| now_ns + self.every.as_nanos() as u64)
    }

    /// Passes on what the threads have sent; true when an observer asks to end the run.
    pub fn observe(&mut self, window: &Window) -> bool {
        self.pass_on(|merger| merger.receive(window));
        self.observers.iter_mut().any(|observer| observer.asks_to_stop())
    }

    /// Passes on the rest, and ends all of them; the first that failed is the result.
    pub fn finish(mut self, window: &Window) -> Result<(), String> {
        self.pass_on(|merger| merger.receive_rest(window));
        self.observers.into_iter().map(|observer| observer.finish()).fold(Ok(()), Result::and)
    }

    fn pass_on(&mut self, receive: impl FnOnce(&mut IntervalMerger) -> VecDeque<IntervalReport>) {
        let Some(merger) = &mut self.merger else { return };
        let intervals = receive(merger);
        let so_far = merger.so_far();
        for interval in &intervals {
            self.observers.iter_mut().for_each(|observer| observer.observe(interval, &so_far));
        }
    }
}
