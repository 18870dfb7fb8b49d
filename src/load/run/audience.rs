//! Those who are told about every interval while the run goes on: a file, a terminal.

use std::time::Duration;

use crate::load::counts::interval::IntervalMerger;
use crate::load::counts::tally::Window;
use crate::load::options::args::LoadArgs;
use crate::load::output::export::Ndjson;
use crate::load::output::live::{Progress, View};
use crate::report::{IntervalReport, Latency};

/// One of them. It lives on the main thread, and never costs the measuring ones anything.
pub trait Spectator {
    fn see(&mut self, interval: &IntervalReport);

    /// Response times since the measurement began, just before an interval is shown.
    fn so_far(&mut self, _latency_us: &Latency) {}

    /// Has the person in front of it asked to end the run?
    fn asks_to_stop(&mut self) -> bool {
        false
    }

    /// The run is over. The error is one line; the report is printed nevertheless.
    fn leave(self: Box<Self>) -> Result<(), String> {
        Ok(())
    }
}

/// All of them, and the length of an interval.
pub struct Audience {
    spectators: Vec<Box<dyn Spectator>>,
    pub every: Duration,
}

impl Audience {
    pub fn new(args: &LoadArgs) -> Result<Audience, String> {
        let mut spectators: Vec<Box<dyn Spectator>> = Vec::new();
        if let Some(path) = &args.ndjson {
            spectators.push(Box::new(Ndjson::create(path)?));
        }
        // Last: what fails before is said on a terminal that is not ours yet.
        if args.live {
            match View::open(args) {
                Ok(view) => spectators.push(Box::new(view)),
                Err(why) => {
                    eprintln!("loadgen: {why}");
                    spectators.push(Box::new(Progress::new(args)));
                }
            }
        }
        Ok(Audience { spectators, every: args.interval })
    }

    pub fn is_empty(&self) -> bool {
        self.spectators.is_empty()
    }

    /// Tells what the threads have told; true when somebody asks to end the run.
    pub fn hear(&mut self, merger: &mut IntervalMerger, window: &Window) -> bool {
        let heard = merger.receive(window);
        let so_far = merger.so_far();
        for interval in heard {
            for spectator in &mut self.spectators {
                spectator.so_far(&so_far);
                spectator.see(&interval);
            }
        }
        self.spectators.iter_mut().any(|spectator| spectator.asks_to_stop())
    }

    /// Tells the rest, and sends everybody home.
    pub fn leave(self, merger: Option<IntervalMerger>, window: &Window) -> Result<(), String> {
        let rest = merger.map(|mut merger| merger.receive_rest(window)).unwrap_or_default();
        let mut outcome = Ok(());
        for mut spectator in self.spectators {
            rest.iter().for_each(|interval| spectator.see(interval));
            outcome = outcome.and(spectator.leave());
        }
        outcome
    }
}
