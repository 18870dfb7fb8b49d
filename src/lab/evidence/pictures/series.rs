//! From rows to what is drawn: a line for each server (and client, and other axis), with a value for each case.

use std::collections::BTreeMap;

use crate::lab::evidence::columns::{self, Column};
use crate::lab::evidence::numbers::spread;
use crate::lab::evidence::table::{by_case, samples};
use crate::lab::plan::experiment::Experiment;
use crate::lab::plan::matrix::TableSpec;
use crate::lab::plan::picture::{Picture, X};
use crate::lab::record::Row;
use crate::stats::{Summary, median, summarize};

/// Name and value, as a row has them.
type Coordinates = Vec<(String, String)>;

/// One column of one case.
#[derive(Debug, Clone, PartialEq)]
pub struct MeasuredValue {
    pub runs: Vec<f64>,
    pub summary: Summary,
    /// `31.8 [31.7, 31.9]`.
    pub text: String,
}

/// One case: its place, and a value for each column of the picture.
#[derive(Debug, Clone)]
pub struct PicturePoint<'a> {
    pub table: &'a TableSpec,
    pub x: f64,
    /// As the axis has it.
    pub x_text: String,
    pub values: Vec<Option<MeasuredValue>>,
    pub mark: Option<f64>,
    pub runs: Vec<&'a Row>,
}

/// Cases that belong together, in the order of the matrix.
#[derive(Debug, Clone)]
pub struct Line<'a> {
    pub name: String,
    pub points: Vec<PicturePoint<'a>>,
}

/// The lines of a picture. Cases without one finished run are left out.
pub fn lines_of<'a>(picture: &'a Picture, experiment: &'a Experiment, rows: &[&'a Row]) -> Vec<Line<'a>> {
    let x_axis = match &picture.x {
        Some(X::Axis(axis)) => Some(axis.as_str()),
        _ => None,
    };
    let mut lines: Vec<(Coordinates, Vec<PicturePoint>)> = Vec::new();
    for id in &picture.tables {
        let Some(spec) = experiment.matrix.tables.iter().find(|spec| spec.id == *id) else { continue };
        let of_table: Vec<&Row> = rows.iter().copied().filter(|row| row.table == *id).collect();
        for case in by_case(&of_table) {
            let Some(first) = case.first().filter(|row| is_drawn(picture, row)) else { continue };
            let key: Vec<_> =
                first.coordinates.iter().filter(|(name, _)| Some(name.as_str()) != x_axis).cloned().collect();
            let Some(point) = point(picture, spec, &of_table, &case) else { continue };
            match lines.iter_mut().find(|(known, _)| *known == key) {
                Some((_, points)) => points.push(point),
                None => lines.push((key, vec![point])),
            }
        }
    }
    let keys: Vec<Coordinates> = lines.iter().map(|(key, _)| key.clone()).collect();
    let names = names(picture, &keys);
    let by_x = |mut points: Vec<PicturePoint<'a>>| {
        points.sort_by(|a, b| a.x.total_cmp(&b.x));
        points
    };
    lines.into_iter().zip(names).map(|((_, points), name)| Line { name, points: by_x(points) }).collect()
}

fn is_drawn(picture: &Picture, row: &Row) -> bool {
    picture
        .only
        .iter()
        .all(|(name, values)| row.coordinate(name).is_none_or(|value| values.iter().any(|allowed| allowed == value)))
}

fn point<'a>(picture: &Picture, spec: &'a TableSpec, rows: &[&'a Row], case: &[&'a Row]) -> Option<PicturePoint<'a>> {
    let samples = samples(spec, rows, case);
    let first = samples.first()?.row;
    let numbers =
        |column: &Column| -> Vec<f64> { samples.iter().filter_map(|sample| column.number(*sample)).collect() };
    let value = |name: &String| {
        let column = columns::find(name)?;
        let runs = numbers(column);
        let summary = summarize(&runs)?;
        Some(MeasuredValue { runs, summary, text: spread(&summary, |number| column.print(number)) })
    };
    let middle = |name: &String| median(&numbers(columns::find(name)?));
    let (x, x_text) = match &picture.x {
        Some(X::Axis(axis)) => {
            let text = first.coordinate(axis)?.to_string();
            (text.parse().ok()?, text)
        }
        Some(X::Column(name)) => (middle(name)?, String::new()),
        None => (0.0, String::new()),
    };
    Some(PicturePoint {
        table: spec,
        x,
        x_text,
        values: picture.y.iter().map(value).collect(),
        mark: picture.mark.as_ref().and_then(middle),
        runs: samples.iter().map(|sample| sample.row).collect(),
    })
}

/// Names that say what differs: words that all servers have, and coordinates that are the same everywhere, are left
/// out.
fn names(picture: &Picture, keys: &[Coordinates]) -> Vec<String> {
    let value = |key: &[(String, String)], name: &str| {
        key.iter().find(|(axis, _)| axis == name).map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let servers: Vec<String> = keys.iter().map(|key| value(key, "server")).collect();
    let shared = |word: &str| servers.iter().all(|server| server.split_whitespace().any(|other| other == word));
    let short = |server: &str| {
        if let Some(name) = picture.names.get(server) {
            return name.clone();
        }
        let words: Vec<&str> = server.split_whitespace().filter(|word| !shared(word) && !word.contains('{')).collect();
        // An option whose value is an axis says nothing without the value.
        let kept = words.iter().enumerate().filter(|(i, word)| {
            let is_cut = server.contains(&format!("{word} {{"));
            !(is_cut && (*i + 1 == words.len() || word.starts_with("--")))
        });
        let text = kept.map(|(_, word)| *word).collect::<Vec<_>>().join(" ");
        let program = server.split_whitespace().next().unwrap_or_default();
        if text.is_empty() { program.to_string() } else { text }
    };
    let mut axes: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, value) in keys.iter().flatten().filter(|(name, _)| name != "server") {
        let values = axes.entry(name).or_default();
        if !values.contains(&value.as_str()) {
            values.push(value);
        }
    }
    let others = |key: &[(String, String)]| {
        let differing = key.iter().filter(|(name, _)| axes.get(name.as_str()).is_some_and(|values| values.len() > 1));
        let part = |(name, value): &(String, String)| match name.as_str() {
            "client" => value.clone(),
            _ => format!("{name} {value}"),
        };
        differing.map(part).collect::<Vec<_>>()
    };
    let is_one_server = servers.iter().all(|server| server == &servers[0]);
    let name = |(key, server): (&Coordinates, &String)| {
        let others = others(key);
        let server = short(server);
        let parts = if is_one_server && !others.is_empty() { others } else { [vec![server], others].concat() };
        parts.join(", ")
    };
    keys.iter().zip(&servers).map(name).collect()
}

/// What is shown of a row when a reader points at it.
pub fn tooltip(name: &str, what: &str, point: &PicturePoint, value: &MeasuredValue) -> String {
    let runs: Vec<String> = value.runs.iter().map(|run| super::scale::label(*run)).collect();
    let commands = commands(point);
    let median = &value.text;
    let runs = if runs.len() > 1 { format!(" (runs: {})", runs.join("; ")) } else { String::new() };
    format!("{name}: {median} {what}{runs}{commands}")
}

/// What was run, on lines of their own.
pub fn commands(point: &PicturePoint) -> String {
    let commands = |row: &&Row| format!("\n{}\n{}", row.server_command.text(), row.client_command.text());
    point.runs.first().map_or(String::new(), commands)
}

/// The title, then each value: what somebody reads who does not see the picture.
pub fn description(picture: &Picture, lines: &[Line]) -> String {
    let header = |name: &String| columns::find(name).map_or(String::new(), Column::header);
    let mut text = String::new();
    for (i, column) in picture.y.iter().enumerate() {
        text += &format!("{}: ", header(column));
        let of_line = |line: &Line| {
            let values = line.points.iter().filter_map(|point| {
                let value = &point.values[i].as_ref()?.text;
                Some(if point.x_text.is_empty() { value.clone() } else { format!("{value} at {}", point.x_text) })
            });
            format!("{} {}", line.name, values.collect::<Vec<_>>().join(", "))
        };
        text += &(lines.iter().map(of_line).collect::<Vec<_>>().join("; ") + ". ");
    }
    text.trim_end().to_string()
}
