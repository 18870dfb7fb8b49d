//! Whatever receives each interval while the run goes on: a file, a terminal.

use std::time::Duration;

use crate::load::counts::interval::IntervalMerger;
use crate::load::counts::window::Window;
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

/// All observers of a run; `every` is the length of an interval.
pub struct Observers {
    pub observers: Vec<Box<dyn Observer>>,
    pub every: Duration,
}

impl Observers {
    pub fn none() -> Observers {
        Observers { observers: Vec::new(), every: Duration::MAX }
    }

    pub fn is_empty(&self) -> bool {
        self.observers.is_empty()
    }

    /// Passes on what the threads have sent; true when an observer asks to end the run.
    pub fn observe(&mut self, merger: &mut IntervalMerger, window: &Window) -> bool {
        let intervals = merger.receive(window);
        let so_far = merger.so_far();
        for interval in &intervals {
            self.observers.iter_mut().for_each(|observer| observer.observe(interval, &so_far));
        }
        self.observers.iter_mut().any(|observer| observer.asks_to_stop())
    }

    /// Passes on the rest, and ends all of them; the first that failed is the result.
    pub fn finish(self, merger: Option<IntervalMerger>, window: &Window) -> Result<(), String> {
        let (rest, so_far) = merger.map_or((Default::default(), Latency::default()), |mut merger| {
            (merger.receive_rest(window), merger.so_far())
        });
        let mut outcome = Ok(());
        for mut observer in self.observers {
            rest.iter().for_each(|interval| observer.observe(interval, &so_far));
            outcome = outcome.and(observer.finish());
        }
        outcome
    }
}
