//! Those who are told about every interval while the run goes on: a file, a terminal.

use std::time::Duration;

use crate::load::args::LoadArgs;
use crate::load::export::Ndjson;
use crate::load::interval::Listener;
use crate::load::tally::Window;
use crate::report::IntervalReport;

/// One of them. It lives on the main thread, and never costs the measuring ones anything.
pub trait Spectator {
    fn see(&mut self, interval: &IntervalReport);

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
        Ok(Audience { spectators, every: args.interval })
    }

    pub fn is_empty(&self) -> bool {
        self.spectators.is_empty()
    }

    /// Tells what the threads have told; true when somebody asks to end the run.
    pub fn hear(&mut self, listener: &mut Listener, window: &Window) -> bool {
        for interval in listener.hear(window) {
            self.spectators.iter_mut().for_each(|spectator| spectator.see(&interval));
        }
        self.spectators.iter_mut().any(|spectator| spectator.asks_to_stop())
    }

    /// Tells the rest, and sends everybody home.
    pub fn leave(self, listener: Option<Listener>, window: &Window) -> Result<(), String> {
        let rest = listener.map(|mut listener| listener.rest(window)).unwrap_or_default();
        let mut outcome = Ok(());
        for mut spectator in self.spectators {
            rest.iter().for_each(|interval| spectator.see(interval));
            outcome = outcome.and(spectator.leave());
        }
        outcome
    }
}
