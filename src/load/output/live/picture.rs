//! The picture of a [`LiveState`]. Nothing here looks at a clock or at a terminal.

use ratatui::Frame;
use ratatui::style::{Color, Modifier, Stylize};
use ratatui::text::{Line, Span};

use crate::evenness;
use crate::load::output::heading;
use crate::load::output::live::state::LiveState;
use crate::load::output::text::{STATISTICS, cells, heads};
use crate::report::{Latency, WorkerShare};
use crate::terminal::{Paint, bar, columns, draw_lines, wrapped};
use crate::units::{grouped, time};

/// From this height on there is room for empty lines.
const ROOMY: u16 = 20;
/// Below this, the numbers need all there is.
const TINY: u16 = 12;
const CURVE_LINES: usize = 8;
const KEYS: &str = "q or Ctrl-C ends the run and prints the report";

/// Draws it; a screen too small for it shows its upper left corner and the keys.
pub fn draw(frame: &mut Frame, state: &LiveState, paint: Paint) {
    let area = frame.area();
    draw_lines(frame, picture(state, paint, area.width.into(), area.height), KEYS.to_string());
}

fn picture(state: &LiveState, paint: Paint, width: usize, height: u16) -> Vec<Line<'static>> {
    let gap = || (height >= ROOMY).then(Line::default);
    let mut lines = vec![Line::from(state.configuration.url.clone().bold())];
    if height >= TINY {
        let load = heading::in_words(&state.configuration, Some(state.seed));
        lines.extend(wrapped(&load, width, 0).into_iter().map(Line::raw));
    }
    lines.push(progress(state, width));
    lines.extend(gap());
    lines.push(rate(state));

    let mut bottom: Vec<Line> = gap().into_iter().chain(times(state)).chain(gap()).collect();
    bottom.push(connections(state, paint));
    let mut workers = workers(state, paint, width);
    if !workers.is_empty() {
        bottom.extend(gap());
        bottom.push(evenness(state));
    }

    // The curve takes the rest.
    let free = usize::from(height).saturating_sub(lines.len() + bottom.len() + 1 + workers.len());
    lines.extend(curve(&state.rates.columns(width), free.clamp(1, CURVE_LINES), paint));
    lines.extend(bottom);
    let room = usize::from(height).saturating_sub(lines.len() + 1);
    if workers.len() > room {
        workers.truncate(room.saturating_sub(1));
        workers.push(Line::raw(format!("{:>6} more workers", state.workers.len() - workers.len())));
    }
    lines.extend(workers);
    lines
}

fn progress(state: &LiveState, width: usize) -> Line<'static> {
    let elapsed = state.now.to_s;
    let of = match (state.end_s(), state.configuration.requests) {
        (Some(end_s), _) => format!(" of {end_s:.1} s"),
        (None, Some(requests)) => format!(" · {} of {} requests", grouped(state.requests), grouped(requests)),
        (None, None) => String::new(),
    };
    let said = format!("{} · {elapsed:.1} s{of} ", state.phase.in_words());
    let room = width.saturating_sub(said.chars().count() + 2).min(40);
    let bar = state.progress().filter(|_| room >= 10).map_or(String::new(), |share| {
        let full = (share * room as f64).round() as usize;
        format!(" {}{}", "━".repeat(full), "┄".repeat(room - full))
    });
    Line::raw(said + &bar)
}

fn rate(state: &LiveState) -> Line<'static> {
    let now = format!("{} requests/s", grouped(state.now.qps.round() as u64)).bold();
    let length_s = state.now.to_s - state.now.from_s;
    let due = state.now.due.filter(|_| state.configuration.is_open_loop() && length_s > 0.0);
    let due = due.map_or(String::new(), |due| format!(" · {} due", grouped((due as f64 / length_s).round() as u64)));
    let rest = format!(
        "{due} · {} on average · {} at most",
        grouped(state.average_rate().round() as u64),
        grouped(state.highest_rate.round() as u64)
    );
    Line::from(vec![now, Span::raw(rest)])
}

fn curve(rates: &[f64], lines: usize, paint: Paint) -> Vec<Line<'static>> {
    let most = rates.iter().copied().fold(0.0, f64::max);
    let rates: Vec<Option<f64>> = rates.iter().copied().map(Some).collect();
    let line = |line| Line::from(Span::styled(line, paint.style(Color::Cyan)));
    columns(&rates, most, lines).into_iter().map(line).collect()
}

/// The percentiles and the maximum; the mean and the deviation are left to the report.
fn times(state: &LiveState) -> Vec<Line<'static>> {
    let row = |name: &str, latency: &Latency| Line::raw(format!("{name:10}{}", cells(latency, STATISTICS, 9)));
    vec![
        Line::styled(format!("{:10}{}", "response", heads(STATISTICS, 9)), Modifier::DIM),
        row("now", &state.now.latency_us),
        row("so far", &state.so_far),
    ]
}

fn connections(state: &LiveState, paint: Paint) -> Line<'static> {
    let (open, asked) = (state.now.connections_open, state.now.connections_requested);
    let open = format!("{} of {} connections open", grouped(open), grouped(asked));
    let errors = format!("{} errors", grouped(state.errors));
    let errors = if state.errors > 0 { Span::styled(errors, paint.style(Color::Red)) } else { Span::raw(errors) };
    let delay = &state.now.send_delay_us;
    let delay = if delay.max > 0.0 { format!(" · send delay p99 {}", time(delay.p99)) } else { String::new() };
    Line::from(vec![errors, Span::raw(format!(" · {open}{delay}"))])
}

/// The heading of the workers, with D as the report has it.
fn evenness(state: &LiveState) -> Line<'static> {
    let dispersion = |what: &str, of: fn(&WorkerShare) -> u64| {
        let d = evenness::dispersion(&state.workers.values().map(of).collect::<Vec<_>>());
        let d = d.map(|d| if d < 99.5 { format!("{d:.2}") } else { grouped(d.round() as u64) });
        d.map_or(String::new(), |d| format!(" · D of {what} {d}"))
    };
    let connections = dispersion("connections", |share| share.connections);
    let requests = dispersion("requests", |share| share.requests);
    Line::styled(format!("worker, connections, requests{connections}{requests}"), Modifier::DIM)
}

fn workers(state: &LiveState, paint: Paint, width: usize) -> Vec<Line<'static>> {
    let most = state.workers.values().map(|share| share.requests).max().unwrap_or(0);
    let line = |(worker, share): (&u32, &WorkerShare)| {
        let numbers = format!("{worker:>6} {:>8} {:>12} ", grouped(share.connections), grouped(share.requests));
        let room = width.saturating_sub(numbers.len()).min(40);
        let bar = Span::styled(bar(share.requests as f64, most as f64, room), paint.style(Color::Green));
        Line::from(vec![Span::raw(numbers), bar])
    };
    state.workers.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::output::live::tests::interval;
    use crate::report::{ArrivalsKind, Configuration};
    use crate::terminal::tests::lines_of;

    fn running(workers: u32) -> LiveState {
        let configuration = Configuration {
            url: "http://127.0.0.1:8080/".into(),
            arrivals: ArrivalsKind::Fixed,
            rate_per_s: Some(8000.0),
            connections: 64,
            threads: 1,
            engine: "epoll".into(),
            duration_s: Some(10.0),
            workers,
            ..Configuration::default()
        };
        let mut state = LiveState::new(configuration, 1);
        for number in 0..40 {
            state.add(&interval(number, number >= 10, 400 + 10 * u64::from(number)));
        }
        state.now.due = Some(800);
        state.now.send_delay_us = Latency { p99: 61.0, max: 80.0, ..Latency::default() };
        state.so_far = Latency { p50: 249.0, max: 8_000.0, ..state.now.latency_us };
        state
    }

    fn screen(state: &LiveState, width: u16, height: u16) -> Vec<String> {
        lines_of(width, height, |frame| draw(frame, state, Paint { has_colour: true }))
    }

    #[test]
    fn a_run_is_seen_at_80_by_24() {
        let lines = screen(&running(0), 80, 24);
        let expected = [
            "http://127.0.0.1:8080/",
            "open loop, 8000/s at fixed gaps, 64 connections, 1 thread",
            "measuring · 4.0 s of 10.0 s  ━━━━━━━━━━━━━━━━┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄",
            "",
            "7,900 requests/s · 8,000 due · 6,450 on average · 7,900 at most",
        ];
        assert_eq!(lines[..5], expected, "{lines:#?}");
        let after = lines.iter().position(|line| line.starts_with("response")).unwrap();
        let expected = [
            "response        p50      p90      p99    p99.9      max",
            "now           251us    280us    612us   1.27ms   4.31ms",
            "so far        249us    280us    612us   1.27ms   8.00ms",
            "",
            "0 errors · 64 of 64 connections open · send delay p99 61.0us",
            "",
        ];
        assert_eq!(lines[after..after + 6], expected, "{lines:#?}");
        assert!(lines[after + 6].starts_with("worker, connections, requests · D of connections 40.00"));
        assert!(lines[after + 8].ends_with(&"█".repeat(40)), "{lines:#?}");
        assert_eq!(lines[23], KEYS);
        assert!(lines[after - 2].contains('█') && lines[5].ends_with('█'), "{lines:#?}");
    }

    #[test]
    fn more_workers_than_lines_are_counted() {
        let lines = screen(&running(64), 80, 24);
        let last = lines[22].clone();
        let shown = lines.iter().filter(|line| line.ends_with("  0") || line.contains("██")).count();
        assert!(last.ends_with(" more workers") && lines[23] == KEYS && shown > 3, "{lines:#?}");
    }

    #[test]
    fn a_tiny_screen_has_the_numbers_and_a_long_load_is_broken_between_words() {
        let lines = screen(&running(2), 30, 8);
        assert!(lines[1].starts_with("measuring") && lines[6].starts_with("so far"), "{lines:#?}");
        let lines = screen(&running(2), 30, 12);
        assert_eq!(lines[1..3], ["open loop, 8000/s at fixed", "gaps, 64 connections, 1 thread"]);
    }

    #[test]
    fn what_is_unknown_is_no_zero() {
        let lines = screen(&LiveState::new(Configuration::default(), 1), 80, 24);
        assert_eq!(lines.concat().matches('–').count(), 10, "{lines:#?}");
        assert!(!lines.concat().contains("worker, "));
    }

    #[test]
    fn every_size_of_screen_is_drawn_on() {
        for (width, height) in [(1, 1), (2, 3), (30, 8), (80, 24), (120, 40), (400, 120)] {
            for workers in [0, 2, 300] {
                let lines = screen(&running(workers), width, height);
                let keys: String = KEYS.chars().take(width.into()).collect();
                assert_eq!(lines.last().unwrap(), keys.trim_end());
            }
        }
    }

    #[test]
    fn a_count_that_ends_the_run_is_its_progress() {
        let mut state = running(0);
        (state.configuration.duration_s, state.configuration.requests) = (None, Some(20_000));
        let lines = screen(&state, 80, 24);
        assert!(lines[2].starts_with("measuring · 4.0 s · 19,350 of 20,000 requests  ━"), "{lines:#?}");
    }
}
