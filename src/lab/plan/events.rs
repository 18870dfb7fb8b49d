//! What happens to a server while the client measures, as a matrix writes it: `disturb = "stop 0; after 300ms; kill
//! 0"`, or `disturb = "every 1s: kill any"`. Signals and a file are all that is used, so every server that keeps the
//! contract can take part, and an ordinary user can do it. [`crate::lab::run::fault_injector`] carries the events out.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::units::parse_positive_duration;

/// The events of one run, in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Events {
    /// As written.
    pub text: String,
    pub list: Vec<Event>,
}

/// One thing that happens to the server, or a pause before the next.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// SIGSTOP: the worker hangs, and the kernel keeps its sockets open. SIGKILL: it is gone, and its sockets with it.
    /// SIGUSR2: it behaves as after a fatal error, and tells its master.
    Signal(Signal, WorkerChoice),
    /// SIGHUP to the server's first process, which then replaces its workers.
    Reload,
    /// The worker runs for one `factor`-th of the time, from now to the end. The last event.
    Slow {
        worker: usize,
        factor: u32,
    },
    /// The file gets a new content in one step: the time, in nanoseconds of CLOCK_MONOTONIC.
    Write(PathBuf),
    After(Duration),
    /// One of these each time, in turn, to the end. The last event.
    Every(Duration, Vec<Event>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum WorkerChoice {
    Number(usize),
    /// One of the living workers, drawn at random each time.
    Any,
}

/// An event that was carried out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InjectedEvent {
    /// From the beginning of the measured window.
    pub at_ms: u64,
    pub what: String,
}

/// Reads `stop 0; after 300ms; kill 0`, `slow 0 50` or `every 1s: kill any, hup`.
pub fn parse(text: String) -> Result<Events, String> {
    let list: Vec<Event> = text.split(';').map(|event| parse_one(event.trim())).collect::<Result<_, _>>()?;
    match list.iter().position(Event::lasts) {
        Some(place) if place + 1 < list.len() => Err(format!("{text:?}: nothing can follow `slow` and `every`")),
        _ => Ok(Events { text, list }),
    }
}

impl Events {
    /// Every event, and in place of `every` those that it repeats.
    fn each(&self) -> impl Iterator<Item = &Event> {
        self.list.iter().flat_map(|event| match event {
            Event::Every(_, events) => events.as_slice(),
            event => std::slice::from_ref(event),
        })
    }

    /// The largest worker number that is named.
    pub fn largest_worker(&self) -> Option<usize> {
        let worker = |event: &Event| match event {
            Event::Signal(_, WorkerChoice::Number(worker)) | Event::Slow { worker, .. } => Some(*worker),
            _ => None,
        };
        self.each().filter_map(worker).max()
    }

    /// The files that are written.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.each().filter_map(|event| if let Event::Write(path) = event { Some(path.as_path()) } else { None })
    }
}

fn parse_one(event: &str) -> Result<Event, String> {
    let words: Vec<&str> = event.split_whitespace().collect();
    let refusal = || {
        format!(
            "{event:?} is not an event; write `stop W`, `kill W` or `usr2 W` with a number or `any`, `slow W FACTOR`, `hup`, \
             `write PATH`, `after DUR` or `every DUR: EVENT, EVENT`"
        )
    };
    let number = |word: &str| word.parse().map_err(|_| refusal());
    let target =
        |word: &str| if word == "any" { Ok(WorkerChoice::Any) } else { number(word).map(WorkerChoice::Number) };
    match words[..] {
        ["stop", worker] => Ok(Event::Signal(Signal::SIGSTOP, target(worker)?)),
        ["kill", worker] => Ok(Event::Signal(Signal::SIGKILL, target(worker)?)),
        ["usr2", worker] => Ok(Event::Signal(Signal::SIGUSR2, target(worker)?)),
        ["hup"] => Ok(Event::Reload),
        ["slow", worker, factor] => {
            let factor = factor.parse().ok().filter(|&factor| factor > 1).ok_or_else(refusal)?;
            Ok(Event::Slow { worker: number(worker)?, factor })
        }
        ["write", path] => Ok(Event::Write(path.into())),
        ["after", time] => Ok(Event::After(parse_positive_duration(time)?)),
        ["every", ..] => {
            let (time, events) = event["every".len()..].split_once(':').ok_or_else(refusal)?;
            let events: Vec<Event> =
                events.split(',').map(|event| parse_one(event.trim())).collect::<Result<_, _>>()?;
            let is_instant = |event: &Event| !event.lasts() && !matches!(event, Event::After(_));
            if !events.iter().all(is_instant) {
                return Err(refusal());
            }
            Ok(Event::Every(parse_positive_duration(time.trim())?, events))
        }
        _ => Err(refusal()),
    }
}

impl Event {
    /// It lasts to the end of the measurement.
    fn lasts(&self) -> bool {
        matches!(self, Event::Slow { .. } | Event::Every(..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_in_order() {
        let list = |text: &str| parse(text.to_string()).unwrap().list;
        let stop = Event::Signal(Signal::SIGSTOP, WorkerChoice::Number(0));
        let kill = Event::Signal(Signal::SIGKILL, WorkerChoice::Any);
        assert_eq!(
            list("stop 0; after 300ms; kill any"),
            [stop, Event::After(Duration::from_millis(300)), kill.clone()]
        );
        assert_eq!(list("slow 1 50"), [Event::Slow { worker: 1, factor: 50 }]);
        let every = Event::Every(Duration::from_secs(1), vec![kill, Event::Reload]);
        assert_eq!(list("write /tmp/x; every 1s: kill any, hup"), [Event::Write("/tmp/x".into()), every]);
    }

    #[test]
    fn what_is_not_an_event_is_refused_with_the_list_of_events() {
        for text in [
            "",
            "stop",
            "stop x",
            "slow 0",
            "slow 0 1",
            "slow any 2",
            "hit 0",
            "stop 0;",
            "hup 0",
            "every 1s",
            "every 1s:",
            "every 1s: slow 0 2",
            "every 1s: after 1s",
        ] {
            assert!(parse(text.to_string()).unwrap_err().contains("write `stop W`"), "{text}");
        }
        assert!(parse("every 0s: hup".to_string()).is_err());
        for text in ["slow 0 50; kill 0", "every 1s: hup; kill 0"] {
            assert!(parse(text.to_string()).unwrap_err().contains("nothing can follow"));
        }
    }

    #[test]
    fn the_largest_number_that_is_named_is_known() {
        let named = |text: &str| parse(text.to_string()).unwrap().largest_worker();
        assert_eq!(named("kill 2; every 1s: kill 5, usr2 any"), Some(5));
        assert_eq!(named("kill any; hup"), None);
    }
}
