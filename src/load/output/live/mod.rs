//! A run while it goes on (`--progress live`): a picture on the terminal behind standard error, and where there is
//! none, or none any more, a line every two seconds. Standard output belongs to the report. The main thread draws,
//! which measures nothing, from what the measuring threads send at the end of an interval.

mod picture;
mod state;

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use crate::console::log;
use crate::keyboard::{Key, Keyboard};
use crate::load::options::plan::Plan;
use crate::load::run::observers::Observer;
use crate::report::{IntervalReport, Latency};
use crate::terminal::{Paint, Screen};
use crate::units::{grouped, time};
use state::LiveState;

const PAUSE_S: f64 = 2.0;

pub struct Live {
    state: LiveState,
    shown: LiveOutput,
    paint: Paint,
}

/// Nothing until the first interval: the terminal is as it was, for messages and for Ctrl-C.
enum LiveOutput {
    Nothing,
    Picture(Screen, Option<Keyboard>),
    Lines { next_s: f64 },
}

impl Live {
    pub fn new(plan: &Plan) -> Live {
        let state = LiveState::new(plan.configuration(), plan.pacing.seed);
        let mut live = Live { state, shown: LiveOutput::Nothing, paint: Paint::on(&stderr()) };
        if !stderr().is_terminal() {
            live.show_lines("standard error is not a terminal");
        }
        live
    }

    fn show_lines(&mut self, why: impl std::fmt::Display) {
        self.shown = LiveOutput::Lines { next_s: self.state.now.to_s + PAUSE_S };
        log(format!("loadgen: --progress live: {why}; there is a line every {PAUSE_S} s instead"));
    }
}

impl Observer for Live {
    fn observe(&mut self, interval: &IntervalReport, so_far: &Latency) {
        self.state.so_far = *so_far;
        self.state.add(interval);
        if let LiveOutput::Nothing = self.shown {
            match Screen::take(&stderr()) {
                Ok(screen) => self.shown = LiveOutput::Picture(screen, Keyboard::open().ok()),
                Err(error) => self.show_lines(error),
            }
        }
        match &mut self.shown {
            LiveOutput::Picture(screen, _) => {
                let drawn = screen.draw(|frame| picture::draw(frame, &self.state, self.paint));
                drawn.unwrap_or_else(|error| self.show_lines(error));
            }
            LiveOutput::Lines { next_s } if interval.to_s >= *next_s => {
                *next_s = interval.to_s + PAUSE_S;
                log(line(&self.state));
            }
            LiveOutput::Nothing | LiveOutput::Lines { .. } => {}
        }
    }

    fn asks_to_stop(&mut self) -> bool {
        let LiveOutput::Picture(_, keyboard) = &mut self.shown else { return false };
        // Where there is no keyboard, or none any more, signals still stop the run.
        let typed = keyboard.as_mut().and_then(|keyboard| keyboard.read(Some(Duration::ZERO)).ok());
        typed.is_some_and(|keys| keys.contains(&Key::Quit))
    }
}

/// One line without control characters: `measuring 3 s of 10 s · 81,234/s · p50 251us · p99 612us · 64 open`.
fn line(state: &LiveState) -> String {
    let now = &state.now;
    let end = state.end_s().map_or(String::new(), |end_s| format!(" of {} s", (end_s * 10.0).round() / 10.0));
    let Latency { p50, p99, max, .. } = now.latency_us;
    let times = if max > 0.0 { format!(" · p50 {} · p99 {}", time(p50), time(p99)) } else { String::new() };
    let errors = if now.errors > 0 { format!(" · {} errors", grouped(now.errors)) } else { String::new() };
    let (phase, qps, open) = (state.phase.in_words(), grouped(now.qps.round() as u64), grouped(now.connections_open));
    format!("{phase} {:.0} s{end} · {qps}/s{times} · {open} open{errors}", now.to_s)
}

#[cfg(test)]
mod tests;
