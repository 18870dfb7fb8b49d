//! `lab inspect --watch`: the last seconds of a server again and again, a bar per worker, as `lab watch` has it.

use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant};

use crossbeam_channel::{after, select};
use ratatui::style::Color;
use ratatui::text::{Line, Span};

use super::PAUSE_PER_COST;
use super::findings::{Diagnosis, State, Worker, diagnose};
use super::look::Observer;
use super::output::{connections, mechanism};
use crate::failure::Failure;
use crate::keyboard::Key;
use crate::lab::program::{Interrupt, Stop};
use crate::lab::target::Target;
use crate::lab::watch::keys;
use crate::terminal::{Paint, Screen, bar, draw_lines, shortened, wrapped};

/// Between two pictures; longer where a look costs much.
const DRAW_EVERY: Duration = Duration::from_millis(500);

/// The width of what is not a bar.
const CELLS: usize = 59;

/// Shows what the looks of the last `window` say until a key or a signal ends it.
pub fn run(target: Target, window: Duration, interrupt: &Interrupt) -> Result<(), Stop> {
    let failed = |tried: &str, error| Stop::Failed(Failure::new(tried, error).to_string());
    if !stdout().is_terminal() {
        let why = "show the workers: standard output is no terminal; without --watch it prints once";
        return Err(Stop::Failed(why.to_string()));
    }
    let mut observer = Observer::begin(target).map_err(Stop::Failed)?;
    let mut screen = Screen::take(&stdout()).map_err(|error| failed("take over the terminal", error))?;
    let keys = keys().map_err(|error| failed("open the keyboard", error))?;
    let paint = Paint::on(&stdout());
    let mut first = 0;
    loop {
        let cost = observer.look().map_err(Stop::Failed)?;
        let looks = &mut observer.recording.looks;
        let until_ns = looks.last().map_or(0, |look| look.at_ns).saturating_sub(window.as_nanos() as u64);
        let old = looks.iter().filter(|look| look.at_ns < until_ns).count();
        looks.drain(..old.min(looks.len().saturating_sub(2)));
        let due = Instant::now() + DRAW_EVERY.max(cost * PAUSE_PER_COST);
        let diagnosis = diagnose(&observer.recording);
        loop {
            let (width, height) = screen.size();
            first = first.min(diagnosis.workers.len().saturating_sub(1));
            let lines = lines(&diagnosis, first, usize::from(width), usize::from(height), paint);
            let drawn = screen.draw(|frame| draw_lines(frame, lines, "q quits · ↑ ↓ move".to_string()));
            drawn.map_err(|error| failed("draw on the terminal", error))?;
            select! {
                recv(interrupt) -> _ => return Err(Stop::Interrupted),
                recv(keys) -> key => match key {
                    Err(_) | Ok(Key::Quit) => return Ok(()),
                    Ok(key) => first = key.scroll(first, 1),
                },
                recv(after(due.saturating_duration_since(Instant::now()))) -> _ => break,
            }
        }
    }
}

/// The picture, from top to bottom; what has no room is left out at the end of the workers.
fn lines(diagnosis: &Diagnosis, first: usize, width: usize, height: usize, paint: Paint) -> Vec<Line<'static>> {
    let mut lines = vec![Line::raw(shortened(&diagnosis.command, width))];
    let heading = [mechanism(diagnosis), connections(diagnosis)];
    lines.extend(heading.iter().flat_map(|text| wrapped(text, width, 2)).map(Line::raw));
    let mut findings: Vec<Line> = Vec::new();
    for finding in &diagnosis.findings {
        let text = wrapped(&format!("{}: {}", finding.id, finding.says), width, 2);
        findings.extend(text.into_iter().map(|line| Line::styled(line, paint.style(Color::Red))));
    }
    findings.truncate(height / 2);
    let bar_width = width.saturating_sub(CELLS + 1) / 2;
    let cells = "    pid waits in         share    CPU  open queued state";
    lines.push(Line::raw(shortened(&format!("{cells:<CELLS$}{:<bar_width$} CPU", "share"), width)));
    let room = height.saturating_sub(lines.len() + findings.len() + 1);
    let workers = diagnosis.workers.iter().map(|worker| line(worker, false, bar_width, paint));
    let master = diagnosis.master.iter().map(|master| line(master, true, bar_width, paint));
    lines.extend(master.chain(workers).skip(first).take(room));
    lines.extend(findings);
    lines
}

fn line(worker: &Worker, is_master: bool, bar_width: usize, paint: Paint) -> Line<'static> {
    let percent = |value: f64| format!("{:.0} %", 100.0 * value);
    let queued = worker.queued.map_or("–".to_string(), |queued| queued.to_string());
    let colour = if worker.state == State::Hung { Color::Red } else { Color::Reset };
    let share = worker.accepted_share;
    Line::from(vec![
        Span::raw(format!("{:>7} {:<15} ", worker.pid, worker.waits_in.name())),
        Span::raw(format!("{:>6} {:>6} ", share.map_or("–".to_string(), percent), percent(worker.cpu_share))),
        Span::raw(format!("{:>5} {queued:>6} ", worker.connections)),
        Span::styled(format!("{:<8}", worker.state_name(is_master)), paint.style(colour)),
        Span::styled(format!("{:<bar_width$} ", bar(share.unwrap_or(0.0), 1.0, bar_width)), paint.style(Color::Cyan)),
        Span::styled(bar(worker.cpu_share.min(1.0), 1.0, bar_width), paint.style(Color::Yellow)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::inspect::findings::tests::recorded;
    use crate::terminal::tests::lines_of;

    #[test]
    fn workers_have_bars_and_the_hung_one_is_named() {
        let diagnosis = diagnose(&recorded("hung"));
        let shown = lines_of(80, 24, |frame| {
            let lines = lines(&diagnosis, 0, 80, 24, Paint { has_colour: false });
            draw_lines(frame, lines, "q quits".to_string());
        });
        assert!(shown.iter().any(|line| line.contains("hung") && line.contains("epoll")), "{shown:#?}");
        assert!(shown.iter().any(|line| line.starts_with("hung-worker: pid ")), "{shown:#?}");
    }

    #[test]
    fn every_size_of_screen_is_drawn_on() {
        let diagnosis = diagnose(&recorded("hung"));
        for (width, height) in [(1, 1), (20, 5), (300, 100)] {
            let paint = Paint { has_colour: true };
            let lines = lines(&diagnosis, 2, width.into(), height.into(), paint);
            let shown = lines_of(width, height, |frame| draw_lines(frame, lines, "q quits".to_string()));
            assert!(shown.last().unwrap().starts_with('q'), "{width} × {height}: {shown:#?}");
        }
    }
}
