//! A bar for each row, from left to right, with its name before it and its value behind it.

use crate::lab::evidence::columns;
use crate::lab::evidence::pictures::scale::{Scale, label};
use crate::lab::evidence::pictures::series::{Line, PicturePoint, description, tooltip};
use crate::lab::evidence::pictures::svg::{Anchor, Svg, WIDTH, fill, stroke, width_of};
use crate::lab::plan::picture::{Picture, X};
use crate::terminal::shortened;

const TOP: f64 = 76.0;
const ROW: f64 = 26.0;
const WIDEST_NAME: f64 = 364.0;
/// For a value behind its bar.
const BEHIND: f64 = 78.0;

/// What one panel shows.
#[derive(PartialEq)]
struct Panel<'a> {
    table: &'a str,
    x: &'a str,
}

/// A panel for each table and each value of the axis; the rows of all panels stand at the same height.
pub fn of_tables(picture: &Picture, lines: &[Line]) -> Option<String> {
    let header = columns::find(picture.y.first()?)?.header();
    let mark = picture.mark.as_ref().and_then(|name| Some(columns::find(name)?.header()));
    let below = mark.map_or(header.clone(), |mark| format!("{header}; the upright line: {mark}"));
    let names = names(lines);
    let panels = panels(lines);
    let left = names.iter().map(|name| width_of(name)).fold(0.0, f64::max).min(WIDEST_NAME) + 28.0;
    let bottom = TOP + ROW * names.len() as f64;
    let width = (WIDTH - left) / panels.len() as f64;
    let mut svg = Svg::new(&picture.title);
    svg.text((left, 62.0), Anchor::Start, "soft small", &below);
    for (row, name) in names.iter().enumerate() {
        svg.text((left - 12.0, middle(row) + 4.0), Anchor::End, "ink", &cut(name));
    }
    for (i, panel) in panels.iter().enumerate() {
        let from = left + i as f64 * width;
        let points = || lines.iter().flat_map(|line| line.points.iter().map(move |point| (line, point)));
        let of_panel = || points().filter(|(_, point)| panel_of(point) == *panel);
        let runs = of_panel().flat_map(|(_, point)| point.values.iter().flatten().flat_map(|value| value.runs.clone()));
        // A panel for each value of an axis compares them: all have one scale.
        let shared = points().flat_map(|(_, point)| point.values.iter().flatten().flat_map(|value| value.runs.clone()));
        let runs: Vec<f64> = if picture.x.is_some() { shared.collect() } else { runs.collect() };
        let marks = of_panel().filter_map(|(_, point)| point.mark);
        let x = Scale::new(
            runs.into_iter().chain(marks).collect::<Vec<_>>().into_iter(),
            false,
            from,
            from + width - BEHIND,
        );
        if panels.len() > 1 {
            let title = of_panel().next().map_or(String::new(), |(_, point)| head(picture, point, width));
            svg.text((from, 46.0), Anchor::Start, "ink name", &title);
        }
        grid(&mut svg, &x, bottom);
        for (line, point) in of_panel() {
            let Some(row) = names.iter().position(|name| *name == line.name) else { continue };
            bar(&mut svg, &x, row, line, point, &header);
            if let Some(place) = point.mark.map(|value| x.at(value)) {
                svg.line((place, middle(row) - 10.0), (place, middle(row) + 10.0), "rule thick");
            }
        }
    }
    Some(svg.finish(bottom + 28.0, &description(picture, lines)))
}

fn panel_of<'a>(point: &'a PicturePoint) -> Panel<'a> {
    Panel { table: &point.table.id, x: &point.x_text }
}

fn panels<'a>(lines: &'a [Line]) -> Vec<Panel<'a>> {
    let mut panels = Vec::new();
    for panel in lines.iter().flat_map(|line| &line.points).map(panel_of) {
        if !panels.contains(&panel) {
            panels.push(panel);
        }
    }
    panels
}

/// What a panel shows, as far as there is room.
fn head(picture: &Picture, point: &PicturePoint, width: f64) -> String {
    let of_table = point.table.title.split(':').next().unwrap_or_default();
    let head = match (&picture.x_title, &picture.x) {
        (Some(title), Some(_)) => format!("{title} {}", point.x_text),
        (None, Some(X::Axis(axis))) => format!("{axis} {}", point.x_text),
        _ => of_table.to_string(),
    };
    let room = (width / 7.5) as usize;
    shortened(&head, room)
}

/// The rows' names, each once, in the order of the first panel.
fn names(lines: &[Line]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for line in lines {
        if !names.contains(&line.name) {
            names.push(line.name.clone());
        }
    }
    names
}

/// A name as far as there is room; the whole one is shown where a reader points at the bar.
fn cut(name: &str) -> String {
    shortened(name, (WIDEST_NAME / width_of("x")) as usize)
}

fn middle(row: usize) -> f64 {
    TOP + ROW * (row as f64 + 0.5)
}

fn grid(svg: &mut Svg, x: &Scale, bottom: f64) {
    let mut free = f64::NEG_INFINITY;
    for tick in x.ticks() {
        let text = label(tick);
        svg.line((x.at(tick), TOP), (x.at(tick), bottom), "grid");
        let half = width_of(&text) * 0.42;
        if x.at(tick) - half > free {
            svg.text((x.at(tick), bottom + 16.0), Anchor::Middle, "soft small", &text);
            free = x.at(tick) + half + 4.0;
        }
    }
}

fn bar(svg: &mut Svg, x: &Scale, row: usize, line: &Line, point: &PicturePoint, header: &str) {
    let Some(value) = point.values.first().and_then(Option::as_ref) else { return };
    let (y, end) = (middle(row), x.at(value.summary.median));
    svg.open(&tooltip(&line.name, header, point, value));
    svg.rect((x.at(0.0), y - 8.0), (end - x.at(0.0), 16.0), &format!("bar {}", fill(0)));
    svg.line((x.at(value.summary.low), y), (x.at(value.summary.high), y), &format!("thick {}", stroke(0)));
    value.runs.iter().for_each(|run| svg.dot((x.at(*run), y), 0));
    let most = value.runs.iter().copied().chain(point.mark).fold(0.0, f64::max);
    let median = value.text.split(' ').next().unwrap_or_default();
    svg.text((x.at(most) + 9.0, y + 4.0), Anchor::Start, "ink small", median);
    svg.close();
}

/// The columns end to end; the first row names them.
pub fn stacked(picture: &Picture, lines: &[Line]) -> Option<String> {
    let headers: Vec<String> = picture.y.iter().filter_map(|name| Some(columns::find(name)?.header())).collect();
    let left = lines.iter().map(|line| width_of(&line.name)).fold(0.0, f64::max).min(WIDEST_NAME) + 28.0;
    let medians = |line: &Line| -> Vec<f64> {
        let values = line.points.first().map_or(&[][..], |point| &point.values);
        values.iter().map(|value| value.as_ref().map_or(0.0, |value| value.summary.median)).collect()
    };
    let totals: Vec<f64> = lines.iter().map(|line| medians(line).iter().sum()).collect();
    let bottom = TOP + ROW * lines.len() as f64;
    let x = Scale::new(totals.iter().copied(), false, left, WIDTH - BEHIND);
    let mut svg = Svg::new(&picture.title);
    let step = |header: &String| width_of(header) * 0.9 + 34.0;
    let mut place = left.min(WIDTH - headers.iter().map(step).sum::<f64>()).max(16.0);
    for (i, header) in headers.iter().enumerate() {
        svg.rect((place, 50.0), (10.0, 10.0), &format!("bar {}", fill(i)));
        svg.text((place + 15.0, 60.0), Anchor::Start, &format!("small {}", fill(i)), header);
        place += step(header);
    }
    grid(&mut svg, &x, bottom);
    for (row, line) in lines.iter().enumerate() {
        svg.text((left - 12.0, middle(row) + 4.0), Anchor::End, "ink", &cut(&line.name));
        let (mut before, mut end) = (0.0, 0.0f64);
        for (i, median) in medians(line).into_iter().enumerate() {
            let point = &line.points[0];
            let Some(value) = &point.values[i] else { continue };
            let (from, to) = (x.at(before), x.at(before + median));
            svg.open(&tooltip(&line.name, &headers[i], point, value));
            svg.rect((from, middle(row) - 9.0), ((to - from - 1.0).max(0.0), 18.0), &format!("bar {}", fill(i)));
            value.runs.iter().for_each(|run| svg.dot((x.at(before + run), middle(row)), i));
            if to - from > 50.0 {
                let text = label((median * 10.0).round() / 10.0);
                svg.text(((from + to) / 2.0, middle(row) + 4.0), Anchor::Middle, "ink small", &text);
            }
            end = value.runs.iter().fold(end, |end, run| end.max(before + run));
            svg.close();
            before += median;
        }
        let total = label((before * 10.0_f64).round() / 10.0);
        svg.text((x.at(end) + 9.0, middle(row) + 4.0), Anchor::Start, "ink small", &total);
    }
    Some(svg.finish(bottom + 28.0, &description(picture, lines)))
}
