//! A run over its time: answers per second above the p99 of the same intervals, and upright lines where something was
//! done to the server. A small picture for each row; all have the same scale of time and of the p99.

use crate::lab::evidence::pictures::scale::{Scale, grid, label};
use crate::lab::evidence::pictures::series::{Line, commands};
use crate::lab::evidence::pictures::svg::{Anchor, Svg, WIDTH, fill, stroke};
use crate::lab::plan::picture::Picture;
use crate::lab::record::Row;
use crate::report::{LoadReport, TimeSeries};
use crate::terminal::shortened;

const LEFT: f64 = 64.0;
const MOST_COLUMNS: usize = 2;
/// The height of a row of pictures, down from its head.
const CELL: f64 = 286.0;
const RATE: (f64, f64) = (46.0, 136.0);
const P99: (f64, f64) = (162.0, 252.0);
const TOP: f64 = 62.0;

/// The run of a row that is shown: the one with the median number of answers, the lower one of two.
struct ShownRun<'a> {
    line: &'a Line<'a>,
    row: &'a Row,
    /// Seconds and a value, for each interval.
    rates: Vec<(f64, f64)>,
    p99_us: Vec<(f64, f64)>,
}

pub fn of_runs(picture: &Picture, lines: &[Line]) -> Option<String> {
    let cells: Vec<ShownRun> = lines.iter().filter_map(shown).collect();
    let columns = cells.len().clamp(1, MOST_COLUMNS);
    let width = (WIDTH - 16.0) / columns as f64 - LEFT;
    let p99_us: Vec<f64> = cells.iter().flat_map(|cell| values(&cell.p99_us)).collect();
    let until_s = cells.iter().filter_map(|cell| Some(cell.row.load.as_ref()?.duration_s)).fold(0.0, f64::max);
    let mut svg = Svg::new(&picture.title);
    svg.text((16.0, 44.0), Anchor::Start, "soft", "One run of each row; the axis is seconds of the measured window.");
    for (i, cell) in cells.iter().enumerate() {
        let left = LEFT + (width + LEFT) * (i % columns) as f64;
        let top = TOP + CELL * (i / columns) as f64;
        let x = Scale::of_places([0.0, until_s].into_iter(), false, left, left + width);
        svg.open(&format!("{}{}", cell.in_words(), commands(&cell.line.points[0])));
        svg.text((left, top + 14.0), Anchor::Start, "ink name", &shortened(&cell.line.name, (width / 7.0) as usize));
        let rate = Scale::new(values(&cell.rates).into_iter(), false, top + RATE.1, top + RATE.0);
        let p99 = Scale::new(p99_us.iter().copied(), picture.log_y, top + P99.1, top + P99.0);
        for (y, (from, to), points, header) in
            [(rate, RATE, &cell.rates, "answers/s"), (p99, P99, &cell.p99_us, "p99 µs")]
        {
            grid(&mut svg, &y, (left, left + width));
            events(&mut svg, cell.row, &x, (top + from, top + to));
            svg.line((left, top + to), (left + width, top + to), "rule");
            svg.text((left, top + from - 7.0), Anchor::Start, "soft small", header);
            for part in joined(points, interval_s(cell.row)) {
                let places: Vec<(f64, f64)> = part.iter().map(|(s, value)| (x.at(*s), y.at(*value))).collect();
                match places[..] {
                    [alone] => svg.dot(alone, 0),
                    _ => svg.polyline(&places, &format!("line {}", stroke(0)), ""),
                }
            }
        }
        names_of_events(&mut svg, cell.row, (left + width, top + RATE.0 - 7.0));
        for tick in x.ticks().into_iter().filter(|tick| *tick <= until_s) {
            svg.line((x.at(tick), top + P99.1), (x.at(tick), top + P99.1 + 4.0), "rule");
            svg.text((x.at(tick), top + P99.1 + 17.0), Anchor::Middle, "soft small", &label(tick));
        }
        svg.close();
    }
    let height = TOP + CELL * cells.len().div_ceil(columns) as f64;
    let description = cells.iter().map(ShownRun::in_words).collect::<Vec<_>>().join("; ");
    (!cells.is_empty()).then(|| svg.finish(height, &description))
}

fn shown<'a>(line: &'a Line) -> Option<ShownRun<'a>> {
    let mut runs: Vec<(&Row, &LoadReport, &TimeSeries)> = Vec::new();
    for row in &line.points.first()?.runs {
        runs.extend(row.load.as_ref().and_then(|load| Some((*row, load, load.time_series.as_ref()?))));
    }
    runs.sort_by_key(|(_, load, _)| load.requests);
    let (row, load, series) = *runs.get(runs.len().saturating_sub(1) / 2)?;
    let interval_s = series.interval_s;
    let middle = |i: usize| (i as f64 + 0.5) * interval_s;
    // The last interval may be a moment, in which a rate says nothing.
    let is_whole = |i: &usize| middle(*i) <= load.duration_s;
    let indices = || (0..series.answered.len()).filter(is_whole);
    let length_s = |i: usize| interval_s.min(load.duration_s - i as f64 * interval_s);
    let rates = indices().map(|i| (middle(i), series.answered[i] as f64 / length_s(i))).collect();
    let p99_us = indices().filter_map(|i| Some((middle(i), *series.p99_us.get(i)? as f64)));
    Some(ShownRun { line, row, rates, p99_us: p99_us.filter(|(_, us)| *us > 0.0).collect() })
}

fn values(points: &[(f64, f64)]) -> Vec<f64> {
    points.iter().map(|(_, value)| *value).collect()
}

fn interval_s(row: &Row) -> f64 {
    row.load.as_ref().and_then(|load| load.time_series.as_ref()).map_or(0.0, |series| series.interval_s)
}

impl ShownRun<'_> {
    /// `rr: 12,300 to 45,600 answers/s, p99 310 to 2,900 µs, 20 reloads`.
    fn in_words(&self) -> String {
        let range = |points: &[(f64, f64)]| {
            let [low, high] = [f64::min, f64::max].map(|of| values(points).into_iter().reduce(of));
            [low, high].map(|end| label(end.unwrap_or(0.0).round())).join(" to ")
        };
        let events = kinds(self.row).into_iter().map(|(what, count)| format!(", {}", counted(count, what)));
        let (rates, p99) = (range(&self.rates), range(&self.p99_us));
        format!("{}: {rates} answers/s, p99 {p99} µs{}", self.line.name, events.collect::<String>())
    }
}

/// What was done to the server, and how often, in the order of the first times.
fn kinds(row: &Row) -> Vec<(&str, usize)> {
    let mut kinds: Vec<(&str, usize)> = Vec::new();
    for event in &row.events {
        match kinds.iter_mut().find(|(what, _)| *what == event.what) {
            Some((_, count)) => *count += 1,
            None => kinds.push((&event.what, 1)),
        }
    }
    kinds
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// The colour of an event: the lines of numbers have the first.
fn colour(kind: usize) -> usize {
    kind + 1
}

fn events(svg: &mut Svg, row: &Row, x: &Scale, (top, bottom): (f64, f64)) {
    const TICK: f64 = 7.0;
    for (kind, (what, _)) in kinds(row).into_iter().enumerate() {
        let its = row.events.iter().filter(|event| event.what == what);
        let places: Vec<f64> = its.map(|event| x.at(event.at_ms as f64 / 1e3)).collect();
        svg.uprights(&places, (top, bottom), "grid");
        svg.uprights(&places, (top, top + TICK), &format!("thick {}", stroke(colour(kind))));
    }
}

/// In the colours of their lines, from the right end to the left.
fn names_of_events(svg: &mut Svg, row: &Row, (mut right, y): (f64, f64)) {
    for (kind, (what, count)) in kinds(row).into_iter().enumerate().collect::<Vec<_>>().into_iter().rev() {
        let text = counted(count, what);
        svg.text((right, y), Anchor::End, &format!("small {}", fill(colour(kind))), &text);
        right -= 7.0 * text.len() as f64;
    }
}

/// Parts without a gap: where no request ended there is no p99.
fn joined(points: &[(f64, f64)], interval_s: f64) -> impl Iterator<Item = &[(f64, f64)]> {
    points.chunk_by(move |a, b| b.0 - a.0 < 1.5 * interval_s)
}
