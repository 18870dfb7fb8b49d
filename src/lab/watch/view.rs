//! What is on the screen: numbers as a value, and the drawing of it. Nothing here looks at a clock or at a server.

use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use crate::lab::watch::overview;
use crate::lab::watch::sample::{Sample, State, Target};
use crate::terminal::bar;
use crate::units::format_duration;

/// Lines that are not a worker's: three of heading, the columns' names, the total, the keys.
const FRAME_LINES: usize = 6;

/// Columns that are not bars: the worker's number, four numbers, active connections, what is odd about it.
const NUMBER: usize = 6;
const ACTIVE: usize = 7;
const STATE: usize = 8;

/// The four rates, in the order of [`Worker::rates`].
pub const RATES: [(&str, Color); 4] = [
    ("connections/s", Color::Cyan),
    ("requests/s", Color::Green),
    ("wake-ups/s", Color::Yellow),
    ("of them empty/s", Color::Red),
];

/// One picture.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    pub command: String,
    pub addresses: String,
    pub pid: i32,
    pub uptime_s: f64,
    pub is_running: bool,
    pub interval: Duration,
    pub workers: Vec<Worker>,
    /// The first worker that is shown; [`View::scroll`] keeps it where it makes sense.
    pub first: usize,
    /// All workers side by side, a column each, instead of a line each.
    pub is_overview: bool,
    /// Something to be said once.
    pub notice: Option<&'static str>,
    pub has_colour: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Worker {
    pub id: usize,
    pub state: State,
    /// Per second of the time between two looks, in the order of the columns; unknown at the first look.
    pub rates: Option<[f64; 4]>,
    /// Absent where the worker has ended: its row holds those it did not close.
    pub active: Option<u64>,
}

impl View {
    /// The picture of a server between two looks.
    pub fn of(target: &Target, earlier: Option<&Sample>, now: &Sample, interval: Duration) -> View {
        View {
            command: target.command.clone(),
            addresses: target.addresses.iter().map(|address| format!("{address} · ")).collect(),
            pid: target.pid(),
            uptime_s: now.uptime_s,
            is_running: now.is_running,
            interval,
            workers: workers(earlier, now),
            first: 0,
            is_overview: false,
            notice: None,
            has_colour: true,
        }
    }

    /// How many workers fit on a screen of this height.
    pub fn room(height: u16) -> usize {
        usize::from(height).saturating_sub(FRAME_LINES).max(1)
    }

    /// How many workers a screen shows at a time.
    pub fn page(&self, width: u16, height: u16) -> usize {
        if self.is_overview { usize::from(width).max(1) } else { View::room(height) }
    }

    /// Moves the picture so that it begins with worker `first`, or as far as it goes.
    pub fn scroll(&mut self, first: usize, page: usize) {
        self.first = first.min(self.workers.len().saturating_sub(page));
    }

    /// The largest rate of any worker, those out of sight included. Wake-ups and the empty ones among them have one
    /// scale, so that the bars can be compared.
    pub fn most(&self) -> [f64; 4] {
        let mut most = [0.0_f64; 4];
        for rates in self.workers.iter().filter_map(|worker| worker.rates) {
            (0..4).for_each(|i| most[i] = most[i].max(rates[i]));
        }
        most[3] = most[2].max(most[3]);
        most
    }

    /// Connections open at the workers that live: who ended has none any more, whatever its row says.
    pub fn active(&self) -> Option<u64> {
        let known = self.workers.iter().filter_map(|worker| worker.active);
        self.is_running.then(|| known.sum())
    }

    pub fn sums(&self) -> Option<[f64; 4]> {
        let mut sums = [0.0; 4];
        for worker in &self.workers {
            let rates = worker.rates?;
            (0..4).for_each(|i| sums[i] += rates[i]);
        }
        Some(sums)
    }
}

/// Rates are differences over the time that has really passed. What has not grown for an ended server is 0.
fn workers(earlier: Option<&Sample>, now: &Sample) -> Vec<Worker> {
    let seconds = earlier.map(|earlier| now.at_ns.saturating_sub(earlier.at_ns) as f64 / 1e9);
    let one = |(i, new): (usize, &super::sample::WorkerSample)| {
        let old = earlier.and_then(|earlier| earlier.workers.get(i));
        // A wake-up that turns out to be the server's end is taken back, so a count may shrink by one.
        let rate = |new: u64, old: u64, seconds: f64| new.saturating_sub(old) as f64 / seconds;
        let rates = old.zip(seconds.filter(|seconds| *seconds > 0.0)).map(|(old, seconds)| {
            [
                rate(new.accepted, old.accepted, seconds),
                rate(new.requests, old.requests, seconds),
                rate(new.wakeups, old.wakeups, seconds),
                rate(new.empty_wakeups, old.empty_wakeups, seconds),
            ]
        });
        let active = (new.state != State::Ended && now.is_running).then_some(new.active);
        Worker { id: new.worker, state: new.state, rates, active }
    };
    now.workers.iter().enumerate().map(one).collect()
}

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
        lines.extend(shown.iter().map(|worker| line(worker, label, bar_width, &most, view.has_colour)));
        lines.push(total(view, label, bar_width));
    }
    // The keys are at the bottom, whatever has no room above them.
    lines.resize(height.saturating_sub(1), Line::default());
    lines.push(keys(view, last));
    for (y, line) in lines.into_iter().take(height).enumerate() {
        frame.render_widget(line, Rect { x: area.x, y: area.y + y as u16, width: area.width, height: 1 });
    }
}

fn heading(view: &View, width: usize) -> Vec<Line<'static>> {
    let state = if view.is_running { format!("up {}", uptime(view.uptime_s)) } else { "ended".to_string() };
    let interval = format_duration(view.interval);
    let place = format!("{}pid {} · {state} · a look every {interval}", view.addresses, view.pid);
    let news = match (view.notice, view.sums()) {
        (Some(notice), _) => notice.to_string(),
        (None, Some([connections, _, wakeups, empty])) if connections > 0.0 => {
            let (wakeups, empty) = (wakeups / connections, empty / connections);
            format!("per connection: {wakeups:.2} wake-ups, {empty:.2} of them empty")
        }
        _ => String::new(),
    };
    let bold = Style::new().add_modifier(Modifier::BOLD);
    vec![
        Line::styled(shorten(&view.command, width), bold),
        Line::raw(shorten(&place, width)),
        Line::raw(shorten(&news, width)),
    ]
}

fn names(label: usize, bar_width: usize) -> Line<'static> {
    let names = RATES.map(|(name, _)| format!("{name:<width$}", width = bar_width + NUMBER + 2)).concat();
    Line::styled(
        format!("{:label$}{names}{:>ACTIVE$}", "", "active"),
        Style::new().add_modifier(Modifier::DIM),
    )
}

fn line(worker: &Worker, label: usize, bar_width: usize, most: &[f64; 4], has_colour: bool) -> Line<'static> {
    let mut spans = vec![Span::raw(format!("{:>width$} ", worker.id, width = label - 1))];
    for (i, (_, colour)) in RATES.iter().enumerate() {
        let rate = worker.rates.map(|rates| rates[i]);
        let style = if has_colour { Style::new().fg(*colour) } else { Style::new() };
        let bar = bar(rate.unwrap_or(0.0), most[i], bar_width);
        spans.push(Span::styled(format!("{bar:<bar_width$}"), style));
        spans.push(Span::raw(format!(" {:>NUMBER$} ", rate.map_or("–".to_string(), number))));
    }
    spans.push(Span::raw(format!(
        "{:>ACTIVE$} ",
        worker.active.map_or("–".to_string(), |n| number(n as f64))
    )));
    let state = match worker.state {
        State::Running => "",
        State::Starting => "starts",
        State::Stopped => "stopped",
        State::Ended => "ended",
    };
    spans.push(Span::styled(state, Style::new().add_modifier(Modifier::REVERSED)));
    Line::from(spans)
}

fn total(view: &View, label: usize, bar_width: usize) -> Line<'static> {
    let sums = view.sums();
    let cell = |i: usize| sums.map_or("–".to_string(), |sums| number(sums[i]));
    let cells: String =
        (0..4).map(|i| format!("{:>width$} ", cell(i), width = bar_width + 1 + NUMBER)).collect();
    let active = view.active().map_or("–".to_string(), |active| number(active as f64));
    let text = format!("{:<label$}{cells}{active:>ACTIVE$}", "all");
    Line::styled(text, Style::new().add_modifier(Modifier::BOLD))
}

fn keys(view: &View, last: usize) -> Line<'static> {
    let (count, shown) = (view.workers.len(), last - view.first);
    let other = if view.is_overview { "a line each" } else { "side by side" };
    let text = match (count, shown) {
        (1, _) => "q quits · the one worker".to_string(),
        _ if count == shown => format!("q quits · Tab {other} · all {count} workers"),
        _ => format!(
            "q quits · Tab {other} · ↑ ↓ PgUp PgDn move · workers {}–{} of {count}",
            view.first,
            last - 1
        ),
    };
    Line::styled(text, Style::new().add_modifier(Modifier::DIM))
}

/// At most six characters.
pub fn number(value: f64) -> String {
    match value {
        0.0 => "0".to_string(),
        _ if value < 9.95 => format!("{value:.1}"),
        _ if value < 999.5 => format!("{value:.0}"),
        _ if value < 99_999.5 => {
            let whole = value.round() as u64;
            format!("{},{:03}", whole / 1000, whole % 1000)
        }
        _ if value < 999_500.0 => format!("{:.0}k", value / 1e3),
        _ if value < 99.95e6 => format!("{:.1}M", value / 1e6),
        _ if value < 999.5e6 => format!("{:.0}M", value / 1e6),
        _ => format!("{:.0}G", value / 1e9),
    }
}

fn uptime(seconds: f64) -> String {
    let whole = seconds as u64;
    let (hours, minutes, seconds) = (whole / 3600, whole / 60 % 60, whole % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// The beginning of a text, with a sign where something is missing.
fn shorten(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_string();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::sample::WorkerSample;
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    pub(crate) fn view(workers: usize, rates: impl Fn(usize) -> Option<[f64; 4]>) -> View {
        let worker = |id| Worker { id, state: State::Running, rates: rates(id), active: Some(id as u64) };
        View {
            command: "server --workers 4".to_string(),
            addresses: "127.0.0.1:8080 · ".to_string(),
            pid: 7,
            uptime_s: 3725.0,
            is_running: true,
            interval: Duration::from_millis(500),
            workers: (0..workers).map(worker).collect(),
            first: 0,
            is_overview: false,
            notice: None,
            has_colour: true,
        }
    }

    pub(crate) fn screen(view: &View, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view)).unwrap();
        let cells = terminal.backend().buffer().content();
        let line =
            |cells: &[ratatui::buffer::Cell]| cells.iter().map(|cell| cell.symbol()).collect::<String>();
        cells.chunks(width.into()).map(|cells| line(cells).trim_end().to_string()).collect()
    }

    #[test]
    fn four_workers_fit_with_bars_numbers_and_their_sum() {
        let lines = screen(&view(4, |id| Some([100.0 * id as f64, 1234.0, 12.0, 0.0])), 80, 24);
        assert_eq!(lines[0], "server --workers 4");
        assert_eq!(lines[1], "127.0.0.1:8080 · pid 7 · up 1:02:05 · a look every 500ms");
        assert_eq!(lines[2], "per connection: 0.08 wake-ups, 0.00 of them empty");
        assert!(
            lines[3].contains("connections/s") && lines[3].ends_with("of them empty/s active"),
            "{lines:#?}"
        );
        assert_eq!(lines[4], "  0              0 ███████  1,234 ███████     12              0       0");
        assert_eq!(lines[7], "  3 ███████    300 ███████  1,234 ███████     12              0     3.0");
        assert_eq!(lines[8], "all            600          4,936             48              0     6.0");
        assert_eq!(lines[23], "q quits · Tab side by side · all 4 workers");
    }

    #[test]
    fn the_first_look_has_no_rates() {
        let lines = screen(&view(1, |_| None), 80, 24);
        assert_eq!(lines[4].matches('–').count(), 4, "{lines:#?}");
        assert_eq!(lines[5].matches('–').count(), 4, "{lines:#?}");
        assert_eq!(lines[2], "");
    }

    #[test]
    fn a_crowd_is_scrolled_and_the_screen_says_which_part_of_it_is_shown() {
        let mut crowd = view(64, |id| Some([id as f64; 4]));
        let lines = screen(&crowd, 80, 24);
        assert!(lines[4].starts_with("  0 ") && lines[21].starts_with(" 17 "), "{lines:#?}");
        assert!(lines[22].starts_with("all") && lines[23].ends_with("workers 0–17 of 64"), "{lines:#?}");
        crowd.scroll(1000, crowd.page(80, 24));
        let lines = screen(&crowd, 80, 24);
        assert!(
            lines[21].starts_with(" 63 ███████") && lines[23].ends_with("workers 46–63 of 64"),
            "{lines:#?}"
        );
    }

    #[test]
    fn every_size_of_screen_is_drawn_on() {
        for (width, height) in [(1, 1), (20, 5), (79, 7), (300, 100)] {
            let mut crowd = view(64, |_| Some([1e9; 4]));
            for is_overview in [false, true] {
                crowd.is_overview = is_overview;
                let lines = screen(&crowd, width, height);
                assert!(lines.last().unwrap().starts_with('q'), "{width} × {height}: {lines:#?}");
            }
        }
    }

    fn sample(at_ns: u64, is_running: bool, accepted: u64, state: State) -> Sample {
        let worker = WorkerSample { accepted, active: 5, state, ..WorkerSample::default() };
        Sample { at_ns, uptime_s: 1.0, is_running, workers: vec![worker] }
    }

    #[test]
    fn a_rate_is_a_difference_over_the_time_that_has_passed() {
        let (old, new) =
            (sample(0, true, 10, State::Running), sample(2_000_000_000, true, 40, State::Running));
        assert_eq!(workers(Some(&old), &new)[0].rates, Some([15.0, 0.0, 0.0, 0.0]));
        assert_eq!(workers(None, &new)[0].rates, None);
        assert_eq!(workers(Some(&new), &new)[0].rates, None);
    }

    #[test]
    fn who_has_ended_has_no_rates_and_no_connections() {
        let [old, new] = [1, 2].map(|s| sample(s * 1_000_000_000, false, 40, State::Ended));
        let worker = workers(Some(&old), &new)[0];
        assert_eq!((worker.rates, worker.active), (Some([0.0; 4]), None));
        let killed = sample(3_000_000_000, true, 40, State::Ended);
        assert_eq!(workers(Some(&new), &killed)[0].active, None);
    }

    #[test]
    fn numbers_never_need_more_than_their_six_columns() {
        for (value, text) in [
            (0.0, "0"),
            (0.4, "0.4"),
            (12.4, "12"),
            (999.6, "1,000"),
            (99_999.4, "99,999"),
            (99_999.6, "100k"),
            (999_600.0, "1.0M"),
            (12_345_678.0, "12.3M"),
            (2e9, "2G"),
        ] {
            assert_eq!(number(value), text);
            assert!(number(value).chars().count() <= NUMBER);
        }
    }
}
