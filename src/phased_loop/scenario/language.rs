//! The language of scenarios: JSON, typed, and checked before anything runs.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::{format_duration, parse_duration};

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it shows, for the reader.
    #[serde(default)]
    pub about: String,
    pub steps: Vec<ScenarioStep>,
    /// Pairs of ids that can come in either order, for a reason that the loop cannot see.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub either: Vec<[String; 2]>,
}

/// What a callback can do. The phase in which the new callback runs stands first.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ScenarioStep {
    /// timers: `after` is a whole number of milliseconds, and at least 1 ms, as Node's setTimeout makes it. With
    /// `repeat` the callback runs every `after` until it is cleared.
    Timer(TimerStep),
    /// timers: so many, due after 1 ms to `within`, in no order. The callback of the last one to run is reported.
    Timers(TimersStep),
    /// check: of the turn that runs, or of the next one if this is the check phase.
    Immediate(CallbackStep),
    /// nextTick: when the callback that runs now has ended, before the loop goes on.
    NextTick(CallbackStep),
    /// microtask: when the ticks have run, before the loop goes on. Node: queueMicrotask, a promise's `then`.
    Microtask(CallbackStep),
    /// poll: when the scenario's file has been read. Four requests to the pool, one after another, as Node's
    /// fs.readFile makes them: open, ask for the size, read, close.
    ReadFile(CallbackStep),
    /// poll: a byte is sent to a socket now; the callback runs when the loop finds it readable.
    Socket(CallbackStep),
    /// closing: a handle is closed now. Those that are closed in one turn are reported last first, as libuv does it.
    Close(CallbackStep),
    /// pending: what an event's callback put off to the next turn. Node has no call for it.
    Pending(CallbackStep),
    /// idle: once, before the loop waits. Node has no call for it.
    Idle(CallbackStep),
    /// prepare: once, just before the loop waits. Node has no call for it.
    Prepare(CallbackStep),
    /// Clears a timer. One that has run or has not been started is no error, as in Node.
    Clear(ClearStep),
    /// Does the step with this id once more. A tick that does itself again starves the loop.
    Again(AgainStep),
    /// Keeps the thread busy: everything that becomes due meanwhile is late.
    Spin(SpinStep),
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct CallbackStep {
    pub id: String,
    /// What the callback does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub then: Vec<ScenarioStep>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TimerStep {
    pub id: String,
    #[serde(with = "whole_milliseconds")]
    pub after: Duration,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repeat: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub then: Vec<ScenarioStep>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TimersStep {
    pub id: String,
    pub count: NonZeroU32,
    #[serde(with = "whole_milliseconds")]
    pub within: Duration,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ClearStep {
    /// The id of a timer of this scenario.
    pub timer: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct AgainStep {
    /// The id of a step of this scenario.
    pub step: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SpinStep {
    #[serde(rename = "for", with = "whole_milliseconds")]
    pub duration: Duration,
}

mod whole_milliseconds {
    use super::*;

    pub fn serialize<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_duration(*duration))
    }

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        let duration = parse_duration(&text).map_err(serde::de::Error::custom)?;
        match duration.subsec_nanos() % 1_000_000 {
            0 => Ok(duration),
            _ => Err(serde::de::Error::custom(format!("{text:?} is not a whole number of milliseconds"))),
        }
    }
}

impl ScenarioStep {
    /// Its id, where it has a callback.
    pub fn id(&self) -> Option<&str> {
        match self {
            ScenarioStep::Timer(timer) => Some(&timer.id),
            ScenarioStep::Timers(timers) => Some(&timers.id),
            ScenarioStep::Immediate(callback)
            | ScenarioStep::NextTick(callback)
            | ScenarioStep::Microtask(callback)
            | ScenarioStep::ReadFile(callback)
            | ScenarioStep::Socket(callback)
            | ScenarioStep::Close(callback)
            | ScenarioStep::Pending(callback)
            | ScenarioStep::Idle(callback)
            | ScenarioStep::Prepare(callback) => Some(&callback.id),
            ScenarioStep::Clear(_) | ScenarioStep::Again(_) | ScenarioStep::Spin(_) => None,
        }
    }

    /// What its callback does.
    pub fn then(&self) -> &[ScenarioStep] {
        match self {
            ScenarioStep::Timer(timer) => &timer.then,
            ScenarioStep::Immediate(callback)
            | ScenarioStep::NextTick(callback)
            | ScenarioStep::Microtask(callback)
            | ScenarioStep::ReadFile(callback)
            | ScenarioStep::Socket(callback)
            | ScenarioStep::Close(callback)
            | ScenarioStep::Pending(callback)
            | ScenarioStep::Idle(callback)
            | ScenarioStep::Prepare(callback) => &callback.then,
            ScenarioStep::Timers(_) | ScenarioStep::Clear(_) | ScenarioStep::Again(_) | ScenarioStep::Spin(_) => &[],
        }
    }
}

impl Scenario {
    /// # Errors
    /// What is wrong with the text, where, and what to do.
    pub fn parse(text: &[u8]) -> Result<Scenario, String> {
        let scenario: Scenario = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        scenario.check()?;
        Ok(scenario)
    }

    /// Every step, each before those of its `then`.
    pub fn every_step(&self) -> Vec<&ScenarioStep> {
        let mut steps: Vec<&ScenarioStep> = Vec::new();
        let mut waiting: Vec<&ScenarioStep> = self.steps.iter().rev().collect();
        while let Some(step) = waiting.pop() {
            steps.push(step);
            waiting.extend(step.then().iter().rev());
        }
        steps
    }

    /// Ids are used once, and steps name only what there is.
    fn check(&self) -> Result<(), String> {
        let steps = self.every_step();
        let (mut ids, mut timers) = (BTreeSet::new(), BTreeSet::new());
        for step in &steps {
            if let Some(id) = step.id()
                && !ids.insert(id)
            {
                return Err(format!("two steps have the id {id:?}; give each its own"));
            }
            if let ScenarioStep::Timer(timer) = step {
                timers.insert(&timer.id[..]);
            }
        }
        let known = |names: &BTreeSet<&str>, name: &str, user: &str, noun: &str| match names.contains(name) {
            true => Ok(()),
            false if names.is_empty() => Err(format!("{user} names {name:?}, but the scenario has no {noun}")),
            false => {
                let names: Vec<&str> = names.iter().copied().collect();
                Err(format!("{user} names {name:?}, which is no {noun}; there are {}", names.join(", ")))
            }
        };
        for step in &steps {
            match step {
                ScenarioStep::Clear(clear) => known(&timers, &clear.timer, "clear", "timer")?,
                ScenarioStep::Again(again) => known(&ids, &again.step, "again", "step")?,
                _ => {}
            }
        }
        self.either.iter().flatten().try_for_each(|id| known(&ids, id, "either", "step"))
    }
}
