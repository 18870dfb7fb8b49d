//! The drawing of a [`View`]. Nothing here looks at a clock or at a server.

use ratatui::Frame;
use ratatui::style::{Color, Modifier};
use ratatui::text::{Line, Span};

use crate::lab::watch::overview;
use crate::lab::watch::rates::{RATES, View, WorkerRates, cell, is_herd};
use crate::lab::watch::sample::ProcessState;
use crate::terminal::{Paint, bar, draw_lines, shortened};
use crate::units::{clock, format_duration};

/// Columns that are not bars: the worker's number, four numbers, active connections, what is odd about it.
const NUMBER: usize = 6;
const ACTIVE: usize = 7;
const STATE: usize = 8;

/// Draws the picture; a screen too small for it shows its upper left corner.
pub fn draw(frame: &mut Frame, view: &View) {
    let area = frame.area();
    let last = view.workers.len().min(view.first + view.page(area.width, area.height));
    let (width, height) = (usize::from(area.width), usize::from(area.height));
    let label = view.workers.len().to_string().len().max(3) + 1;
    let bar_width = (width.saturating_sub(label + 4 * (NUMBER + 2) + ACTIVE + STATE) / 4).max(3);
    let shown = view.workers.get(view.first..last).unwrap_or_default();
    let mut lines = heading(view, width);
    if view.is_overview {
        lines.extend(overview::lines(view, shown, height.saturating_sub(lines.len() + 1)));
    } else {
        let most = view.most();
        lines.push(names(label, bar_width));
        lines.extend(shown.iter().map(|worker| line(worker, label, bar_width, &most, view.paint)));
        lines.push(total(view, label, bar_width));
    }
    draw_lines(frame, lines, keys(view, last));
}

fn heading(view: &View, width: usize) -> Vec<Line<'static>> {
    let state = if view.is_running { format!("up {}", clock(view.uptime_s)) } else { "ended".to_string() };
    let interval = format_duration(view.interval);
    let place = format!("{}pid {} · {state} · a look every {interval}", view.addresses, view.pid);
    let news = match (view.notice, view.sums()) {
        (Some(notice), _) => Line::raw(shortened(notice, width)),
        (None, Some(sums)) if sums[0] > 0.0 => per_connection(view, sums),
        _ => Line::default(),
    };
    let bold = Modifier::BOLD;
    vec![Line::styled(shortened(&view.command, width), bold), Line::raw(shortened(&place, width)), news]
}

/// What user space sees of the wake-ups, and what the kernel counts of them.
fn per_connection(view: &View, [connections, requests, wakeups, empty]: [f64; 4]) -> Line<'static> {
    let (wakeups, empty) = (wakeups / connections, empty / connections);
    let seen = format!("per connection: {wakeups:.2} wake-ups, {empty:.2} of them empty");
    let Some(switches) = view.switches else { return Line::raw(seen) };
    let counted = format!("{:.2} switches", switches / connections);
    match is_herd(switches, connections, requests, view.workers.len()) {
        true => Line::from(vec![
            Span::raw(seen + "; "),
            Span::styled(counted + ", a herd", view.paint.style(Color::Red).add_modifier(Modifier::BOLD)),
        ]),
        false => Line::raw(format!("{seen}; {counted}")),
    }
}

fn names(label: usize, bar_width: usize) -> Line<'static> {
    let names = RATES.map(|(name, _)| format!("{name:<width$}", width = bar_width + NUMBER + 2)).concat();
    Line::styled(format!("{:label$}{names}{:>ACTIVE$}", "", "active"), Modifier::DIM)
}

fn line(worker: &WorkerRates, label: usize, bar_width: usize, most: &[f64; 4], paint: Paint) -> Line<'static> {
    let mut spans = vec![Span::raw(format!("{:>width$} ", worker.id, width = label - 1))];
    for (i, (_, colour)) in RATES.iter().enumerate() {
        let rate = worker.rates.map(|rates| rates[i]);
        let bar = bar(rate.unwrap_or(0.0), most[i], bar_width);
        spans.push(Span::styled(format!("{bar:<bar_width$}"), paint.style(*colour)));
        spans.push(Span::raw(format!(" {:>NUMBER$} ", cell(rate))));
    }
    spans.push(Span::raw(format!("{:>ACTIVE$} ", cell(worker.active))));
    let state = match worker.state {
        ProcessState::Running => "",
        ProcessState::Starting => "starts",
        ProcessState::Stopped => "stopped",
        ProcessState::Ended => "ended",
    };
    spans.push(Span::styled(state, Modifier::REVERSED));
    Line::from(spans)
}

fn total(view: &View, label: usize, bar_width: usize) -> Line<'static> {
    let sums = view.sums();
    let width = bar_width + 1 + NUMBER;
    let cells: String = (0..4).map(|i| format!("{:>width$} ", cell(sums.map(|sums| sums[i])))).collect();
    let text = format!("{:<label$}{cells}{:>ACTIVE$}", "all", cell(view.active()));
    Line::styled(text, Modifier::BOLD)
}

fn keys(view: &View, last: usize) -> String {
    let (count, shown) = (view.workers.len(), last - view.first);
    let other = if view.is_overview { "a line each" } else { "side by side" };
    match (count, shown) {
        (1, _) => "q quits · the one worker".to_string(),
        _ if count == shown => format!("q quits · Tab {other} · all {count} workers"),
        _ => format!("q quits · Tab {other} · ↑ ↓ PgUp PgDn move · workers {}–{} of {count}", view.first, last - 1),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::terminal::tests::lines_of;

    pub(crate) fn view(workers: usize, rates: impl Fn(usize) -> Option<[f64; 4]>) -> View {
        let worker = |id| WorkerRates { id, state: ProcessState::Running, rates: rates(id), active: Some(id as f64) };
        View {
            command: "server --workers 4".to_string(),
            addresses: "127.0.0.1:8080 · ".to_string(),
            pid: 7,
            uptime_s: 3725.0,
            is_running: true,
            interval: Duration::from_millis(500),
            workers: (0..workers).map(worker).collect(),
            switches: None,
            first: 0,
            is_overview: false,
            notice: None,
            paint: Paint { has_colour: true },
        }
    }

    pub(crate) fn screen(view: &View, width: u16, height: u16) -> Vec<String> {
        lines_of(width, height, |frame| draw(frame, view))
    }

    #[test]
    fn four_workers_fit_with_bars_numbers_and_their_sum() {
        let lines = screen(&view(4, |id| Some([100.0 * id as f64, 1234.0, 12.0, 0.0])), 80, 24);
        assert_eq!(lines[0], "server --workers 4");
        assert_eq!(lines[1], "127.0.0.1:8080 · pid 7 · up 1:02:05 · a look every 500ms");
        assert_eq!(lines[2], "per connection: 0.08 wake-ups, 0.00 of them empty");
        assert!(lines[3].contains("connections/s") && lines[3].ends_with("of them empty/s active"), "{lines:#?}");
        assert_eq!(lines[4], "  0              0 ███████  1,234 ███████     12              0       0");
        assert_eq!(lines[7], "  3 ███████    300 ███████  1,234 ███████     12              0     3.0");
        assert_eq!(lines[8], "all            600          4,936             48              0     6.0");
        assert_eq!(lines[23], "q quits · Tab side by side · all 4 workers");
    }

    #[test]
    fn a_herd_that_user_space_does_not_see_is_named_from_the_kernels_switches() {
        let one_at_a_time = |switches| {
            let mut view = view(16, |_| Some([10.0, 10.0, 10.7, 0.7]));
            view.switches = Some(switches);
            screen(&view, 80, 24)[2].clone()
        };
        let herd = one_at_a_time(1424.0);
        assert_eq!(herd, "per connection: 1.07 wake-ups, 0.07 of them empty; 8.90 switches, a herd");
        assert!(one_at_a_time(176.0).ends_with("0.07 of them empty; 1.10 switches"));
    }

    #[test]
    fn the_first_look_has_no_rates() {
        let lines = screen(&view(1, |_| None), 80, 24);
        assert_eq!(lines[4].matches('–').count(), 4, "{lines:#?}");
        assert_eq!(lines[5].matches('–').count(), 4, "{lines:#?}");
        assert_eq!(lines[2], "");
    }

    #[test]
    fn many_workers_are_scrolled_and_the_screen_names_those_it_shows() {
        let mut many = view(64, |id| Some([id as f64; 4]));
        let lines = screen(&many, 80, 24);
        assert!(lines[4].starts_with("  0 ") && lines[21].starts_with(" 17 "), "{lines:#?}");
        assert!(lines[22].starts_with("all") && lines[23].ends_with("workers 0–17 of 64"), "{lines:#?}");
        many.scroll(1000, many.page(80, 24));
        let lines = screen(&many, 80, 24);
        assert!(lines[21].starts_with(" 63 ███████") && lines[23].ends_with("workers 46–63 of 64"), "{lines:#?}");
    }

    #[test]
    fn every_size_of_screen_is_drawn_on() {
        for (width, height) in [(1, 1), (20, 5), (79, 7), (300, 100)] {
            let mut many = view(64, |_| Some([1e9; 4]));
            for is_overview in [false, true] {
                many.is_overview = is_overview;
                let lines = screen(&many, width, height);
                assert!(lines.last().unwrap().starts_with('q'), "{width} × {height}: {lines:#?}");
            }
        }
    }
}
