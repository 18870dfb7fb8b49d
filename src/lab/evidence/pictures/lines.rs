//! Lines over an axis, each with its name at its end.

use crate::lab::evidence::columns;
use crate::lab::evidence::pictures::scale::{Scale, grid, label};
use crate::lab::evidence::pictures::series::{Line, MeasuredValue, PicturePoint, description, tooltip};
use crate::lab::evidence::pictures::svg::{Anchor, Svg, WIDTH, fill, stroke, width_of};
use crate::lab::evidence::pictures::theory::Queue;
use crate::lab::plan::matrix::TheorySpec;
use crate::lab::plan::picture::{Picture, X};

const TOP: f64 = 62.0;
const HEIGHT: f64 = 270.0;
const LEFT: f64 = 76.0;
/// Lines of text are so far apart.
const LEADING: f64 = 15.0;

/// A place of a line in pixels, with what was measured there.
struct PlottedPoint<'a> {
    x: f64,
    value: &'a MeasuredValue,
    tooltip: String,
}

/// A line as a panel shows it: its name, and whether its points are joined.
struct PanelLine<'a> {
    name: &'a str,
    places: Vec<PlottedPoint<'a>>,
    is_joined: bool,
}

/// A panel for each column.
pub fn over_x(picture: &Picture, lines: &[Line]) -> Option<String> {
    let (x_name, is_axis) = match picture.x.as_ref()? {
        X::Axis(name) => (picture.x_title.clone().unwrap_or(name.clone()), true),
        X::Column(name) => (columns::find(name)?.header(), false),
    };
    let points = || lines.iter().flat_map(|line| &line.points);
    let mut ticks: Vec<f64> = points().map(|point| point.x).collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    let mut svg = Svg::new(&picture.title);
    let width = (WIDTH - 16.0) / picture.y.len() as f64;
    let longest_name = lines.iter().map(|line| width_of(&line.name)).fold(0.0, f64::max);
    for (i, column) in picture.y.iter().enumerate() {
        let header = columns::find(column)?.header();
        let left = i as f64 * width;
        let right = left + width - (longest_name + 24.0).min(width / 2.0);
        let make = if is_axis { Scale::of_places } else { Scale::new };
        let x = make(ticks.iter().copied(), picture.log_x, left + LEFT + 8.0, right - 8.0);
        let shown: Vec<PanelLine> = lines.iter().map(|line| shown(line, i, &header, &x_name, is_axis, &x)).collect();
        let marks = if is_axis { ticks.clone() } else { x.ticks() };
        let marks: Vec<(f64, String)> = marks.into_iter().map(|value| (x.at(value), label(value))).collect();
        let curves = theory(picture, column, lines, &x);
        let heights: Vec<f64> = curves.iter().flat_map(|(_, curve)| curve.iter().map(|(_, value)| *value)).collect();
        let y = panel(&mut svg, &shown, (picture.log_y, &heights), (left, right), &marks, &header);
        for (name, curve) in &curves {
            let curve: Vec<(f64, f64)> = curve.iter().map(|(x, value)| (*x, y.at(*value))).collect();
            // Below the curve, where measured lines are seldom: requests wait longer than in theory.
            let Some((x, height)) = curve.get(1).or(curve.first()) else { continue };
            svg.text((x + 4.0, (height + 14.0).min(TOP + HEIGHT - 4.0)), Anchor::Start, "soft small", name);
            svg.expected(&curve);
        }
        svg.text(((left + LEFT + right) / 2.0, TOP + HEIGHT + 36.0), Anchor::Middle, "soft", &x_name);
    }
    Some(svg.finish(TOP + HEIGHT + 48.0, &description(picture, lines)))
}

/// A curve of theory for each name, places in pixels and values in µs; empty for columns of which theory says nothing.
fn theory<'a>(picture: &'a Picture, column: &str, lines: &[Line], x: &Scale) -> Vec<(&'a str, Vec<(f64, f64)>)> {
    let of_column: fn(&Queue) -> Option<f64> = match column {
        "mean" => Queue::mean_s,
        "p99" => Queue::p99_s,
        _ => return Vec::new(),
    };
    let Some(line) = lines.first() else { return Vec::new() };
    let curve = |spec: &'a TheorySpec| {
        let place = |point: &PicturePoint| {
            let row = point.runs.first()?;
            let queues = f64::from(spec.queues);
            let queue = Queue {
                arrivals_per_s: row.client_command.rate? / queues,
                workers: row.server_command.workers? as f64 / queues,
                work_s: row.server_command.work.as_ref()?.mean_s(),
            };
            Some((x.at(point.x), 1e6 * of_column(&queue)?))
        };
        (spec.name.as_str(), line.points.iter().filter_map(place).collect())
    };
    picture.theory.iter().map(curve).collect()
}

fn shown<'a>(line: &'a Line, column: usize, header: &str, x_name: &str, is_axis: bool, x: &Scale) -> PanelLine<'a> {
    let place = |point: &'a PicturePoint| {
        let value = point.values[column].as_ref()?;
        let name = if is_axis { format!("{}, {x_name} {}", line.name, point.x_text) } else { line.name.clone() };
        Some(PlottedPoint { x: x.at(point.x), value, tooltip: tooltip(&name, header, point, value) })
    };
    PanelLine { name: &line.name, places: line.points.iter().filter_map(place).collect(), is_joined: is_axis }
}

/// One panel between `left` and `right`: scales, lines, dots, intervals, names. The upright scale, which is returned,
/// has room for other values, too.
fn panel(
    svg: &mut Svg,
    lines: &[PanelLine],
    (is_log, also): (bool, &[f64]),
    (left, right): (f64, f64),
    marks: &[(f64, String)],
    header: &str,
) -> Scale {
    let bottom = TOP + HEIGHT;
    let values = lines.iter().flat_map(|line| &line.places).flat_map(|place| place.value.runs.iter().copied());
    let y = Scale::new(values.chain(also.iter().copied()), is_log, bottom, TOP);
    svg.text((left + 16.0, TOP - 16.0), Anchor::Start, "soft", header);
    grid(svg, &y, (left + LEFT, right));
    let mut free = f64::NEG_INFINITY;
    for (place, text) in marks {
        svg.line((*place, bottom), (*place, bottom + 4.0), "rule");
        let half = width_of(text) * 0.42;
        if place - half > free {
            svg.text((*place, bottom + 17.0), Anchor::Middle, "soft small", text);
            free = place + half + 4.0;
        }
    }
    svg.line((left + LEFT, bottom), (right, bottom), "rule");
    for (series, line) in lines.iter().enumerate() {
        let at = |place: &PlottedPoint| (place.x, y.at(place.value.summary.median));
        let points: Vec<(f64, f64)> = line.places.iter().map(at).collect();
        if line.is_joined && points.len() > 1 {
            svg.curve(&points, series);
        }
        for place in &line.places {
            svg.open(&place.tooltip);
            let (low, high) = (y.at(place.value.summary.low), y.at(place.value.summary.high));
            svg.line((place.x, low), (place.x, high), &format!("thick {}", stroke(series)));
            place.value.runs.iter().for_each(|run| svg.dot((place.x, y.at(*run)), series));
            svg.close();
        }
    }
    let end = |line: &PanelLine| Some(line.places.last()?).map(|place| (place.x, y.at(place.value.summary.median)));
    let is_joined = lines.iter().any(|line| line.is_joined);
    if !is_joined {
        for (series, line) in lines.iter().enumerate() {
            let Some((x, y)) = end(line) else { continue };
            svg.text((x + 8.0, y - 6.0), Anchor::Start, &fill(series), line.name);
        }
        return y;
    }
    let ends = lines.iter().map(end);
    name_ends(svg, lines, &ends.collect::<Vec<_>>(), right);
    y
}

/// Names beside the ends of lines, pushed apart where they would cover each other.
fn name_ends(svg: &mut Svg, lines: &[PanelLine], ends: &[Option<(f64, f64)>], right: f64) {
    let mut order: Vec<(usize, (f64, f64))> =
        ends.iter().enumerate().filter_map(|(i, end)| Some((i, (*end)?))).collect();
    order.sort_by(|a, b| a.1.1.total_cmp(&b.1.1));
    let mut heights: Vec<f64> = order.iter().map(|(_, (_, y))| *y).collect();
    for i in 1..heights.len() {
        heights[i] = heights[i].max(heights[i - 1] + LEADING);
    }
    // What was pushed below the axis moves up again, and its neighbours with it.
    let mut limit = TOP + HEIGHT;
    for height in heights.iter_mut().rev() {
        *height = height.min(limit);
        limit = *height - LEADING;
    }
    for ((series, end), height) in order.into_iter().zip(heights) {
        let is_moved = (height - end.1).abs() > 3.0 || end.0 + 8.0 < right;
        if is_moved {
            svg.line((end.0 + 5.0, end.1), (right + 4.0, height), &format!("thin {}", stroke(series)));
        }
        svg.text((right + 8.0, height + 4.0), Anchor::Start, &fill(series), lines[series].name);
    }
}
