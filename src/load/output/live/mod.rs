//! The run as it goes on, for whoever waits in front of it: `--progress live` draws a picture, and where there is no screen to
//! draw on, a line from time to time must do.
//!
//! Both are drawn by the main thread, which measures nothing, from what the measuring threads hand over at the end of
//! an interval. They go to standard error: standard output belongs to the report. The terminal is given back however
//! the run ends: a key, a signal, an error, a panic.

mod screen;
mod state;

use std::io::{IsTerminal, Write, stderr};
use std::time::Duration;

use ratatui::crossterm::event;

use crate::load::options::plan::Plan;
use crate::load::run::observers::Observer;
use crate::report::{IntervalReport, Latency};
use crate::terminal::{Screen, has_colour, is_quit, width};
use crate::units::{grouped, time};
pub use state::Phase;
use state::{Goal, State};

/// The picture on the terminal, from the first interval on: what is to be said before, and a Ctrl-C before, find the
/// terminal as it was.
pub struct View {
    screen: Option<Screen>,
    state: State,
    has_colour: bool,
}

impl View {
    /// For the terminal behind standard error.
    ///
    /// # Errors
    /// One line, when there is none.
    pub fn open(plan: &Plan) -> Result<View, String> {
        if !stderr().is_terminal() {
            return Err(
                "--progress live: standard error is no terminal, so there is a line every 2 s instead".into(),
            );
        }
        Ok(View { screen: None, state: State::new(Goal::of(plan)), has_colour: has_colour(&stderr()) })
    }

    /// A terminal that is gone or does not obey costs the picture, not the run.
    fn draw(&mut self) {
        if self.screen.is_none() {
            self.screen = Screen::take(&stderr()).ok();
        }
        if let Some(screen) = &mut self.screen {
            let _ = screen.draw(|frame| screen::draw(frame, &self.state, self.has_colour));
        }
    }

    /// Reads what was typed; true when it asks to end the run.
    fn poll_keys(&mut self) -> bool {
        let mut asks_to_stop = false;
        while self.screen.is_some() && event::poll(Duration::ZERO).unwrap_or(false) {
            match event::read() {
                Ok(event) => asks_to_stop |= is_quit(&event),
                Err(_) => return asks_to_stop,
            }
        }
        asks_to_stop
    }
}

impl Observer for View {
    fn observe(&mut self, interval: &IntervalReport, so_far: &Latency) {
        self.state.so_far = *so_far;
        self.state.add(interval);
        self.draw();
    }

    fn asks_to_stop(&mut self) -> bool {
        self.poll_keys()
    }
}

/// A line about the run: one that replaces itself on a terminal, and one every two seconds elsewhere.
pub struct Progress {
    goal: Goal,
    phase: Phase,
    is_terminal: bool,
    due_s: f64,
}

impl Progress {
    pub fn new(plan: &Plan) -> Progress {
        let is_terminal = stderr().is_terminal();
        Progress { goal: Goal::of(plan), phase: Phase::default(), is_terminal, due_s: pause_s(is_terminal) }
    }

    /// What to write after this interval, if anything.
    fn after(&mut self, interval: &IntervalReport, columns: usize) -> Option<String> {
        self.phase = self.phase.then(interval);
        if interval.to_s < self.due_s {
            return None;
        }
        self.due_s = interval.to_s + pause_s(self.is_terminal);
        let line = progress_line(interval, self.phase, self.goal.seconds);
        if !self.is_terminal {
            return Some(line + "\n");
        }
        // A line that is broken does not go away with a carriage return. "Erase to the end": ECMA-48, EL.
        let line: String = line.chars().take(columns.saturating_sub(1)).collect();
        Some(format!("\r\x1b[K{line}"))
    }
}

fn pause_s(is_terminal: bool) -> f64 {
    if is_terminal { 0.5 } else { 2.0 }
}

impl Observer for Progress {
    fn observe(&mut self, interval: &IntervalReport, _so_far: &Latency) {
        let columns = if self.is_terminal { width(&stderr()) } else { 0 };
        if let Some(text) = self.after(interval, columns) {
            let _ = stderr().write_all(text.as_bytes());
        }
    }

    fn finish(self: Box<Self>) -> Result<(), String> {
        if self.is_terminal {
            let _ = stderr().write_all(b"\r\x1b[K");
        }
        Ok(())
    }
}

/// The run in one line, without control characters: `measuring 3 s of 10 s · 81,234/s · p50 251us · p99 612us · 64 open`.
pub fn progress_line(interval: &IntervalReport, phase: Phase, of_s: Option<f64>) -> String {
    let mut line = format!("{} {:.0} s", phase.in_words(), interval.to_s);
    line += &of_s.map_or(String::new(), |of_s| format!(" of {} s", (of_s * 10.0).round() / 10.0));
    line += &format!(" · {}/s", grouped(interval.qps.round() as u64));
    if interval.latency_us.max > 0.0 {
        let latency = &interval.latency_us;
        line += &format!(" · p50 {} · p99 {}", time(latency.p50), time(latency.p99));
    }
    line += &format!(" · {} open", grouped(interval.connections_open));
    if interval.errors > 0 {
        line += &format!(" · {} errors", grouped(interval.errors));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::state::tests::interval;
    use super::*;

    fn progress(is_terminal: bool) -> Progress {
        let goal = Goal { seconds: Some(9.0), ..Goal::default() };
        Progress { goal, phase: Phase::default(), is_terminal, due_s: pause_s(is_terminal) }
    }

    #[test]
    fn a_line_every_two_seconds_without_control_characters_where_there_is_no_terminal() {
        let mut progress = progress(false);
        let said: Vec<String> =
            (0..90).filter_map(|number| progress.after(&interval(number, number >= 10, 8_123), 0)).collect();
        assert_eq!(said.len(), 4, "{said:?}");
        assert_eq!(said[0], "measuring 2 s of 9 s · 81,230/s · p50 251us · p99 612us · 64 open\n");
        assert!(said.iter().all(|line| line.trim_end().chars().all(|c| !c.is_control())));
    }

    #[test]
    fn on_a_terminal_the_line_replaces_itself_and_is_never_broken() {
        let mut progress = progress(true);
        let mut failing = interval(20, false, 1);
        failing.errors = 12;
        let line = progress.after(&failing, 30).unwrap();
        assert_eq!(line, "\r\x1b[Kwarming up 2 s of 9 s · 10/s ");
        assert_eq!(progress.after(&interval(21, false, 1), 30), None);
    }
}
