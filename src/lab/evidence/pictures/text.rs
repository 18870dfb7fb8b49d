//! A picture in characters, as far as a terminal has room.

use crate::lab::evidence::columns::{self, Column, connections_of_median_run};
use crate::lab::evidence::pictures::series::{Line, PicturePoint};
use crate::lab::plan::matrix::PictureKind;
use crate::lab::plan::picture::{Picture, X};
use crate::terminal::{bar, shortened, step};

/// A bar with its number.
struct TextBar {
    value: f64,
    text: String,
}

/// What stands beside one another: a table, or a value of the axis.
struct TextPanel {
    head: String,
    /// A bar for each line that has one.
    cells: Vec<Option<TextBar>>,
}

const LONGEST_NAME: usize = 32;
const NARROWEST_PANEL: usize = 18;
const NUMBER: usize = 8;

/// A head and a line for each row, at most so many of them; where rows are left out, the largest and the smallest stay.
pub fn of_lines(picture: &Picture, lines: &[Line], width: usize, most: usize) -> Vec<String> {
    let names: Vec<String> = lines.iter().map(|line| shortened(&line.name, LONGEST_NAME.min(width / 3))).collect();
    let longest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    if picture.kind == PictureKind::Shares {
        let drawn =
            lines.iter().zip(&names).filter_map(|(line, name)| Some(format!("{name:>longest$}  {}", shares(line)?)));
        return drawn.take(most).collect();
    }
    let panels = panels(picture, lines);
    let room = width.saturating_sub(longest);
    // Of an axis with many values the last ones differ most.
    let panels = &panels[panels.len().saturating_sub((room / NARROWEST_PANEL).clamp(1, 3))..];
    let Some(last) = panels.last() else { return Vec::new() };
    let each = room / panels.len();
    let mut drawn = vec![panels.iter().fold(" ".repeat(longest), |head, panel| {
        head + &format!("  {:<1$}", shortened(&panel.head, each.saturating_sub(3)), each.saturating_sub(2))
    })];
    for row in chosen(&last.cells, most.saturating_sub(1)) {
        let of_panel = |panel: &TextPanel| {
            let largest = panel.cells.iter().flatten().map(|cell| cell.value).fold(0.0, f64::max);
            let text = panel.cells[row].as_ref().map_or("–".to_string(), |cell| {
                format!("{} {}", bar(cell.value, largest, each.saturating_sub(3 + NUMBER)), cell.text)
            });
            format!("  {text:<0$}", each.saturating_sub(2))
        };
        drawn.push(format!("{:>longest$}", names[row]) + &panels.iter().map(of_panel).collect::<String>());
    }
    drawn.into_iter().map(|line| shortened(line.trim_end(), width)).collect()
}

fn panels(picture: &Picture, lines: &[Line]) -> Vec<TextPanel> {
    let Some(header) = picture.y.first().and_then(|name| columns::find(name)).map(Column::header) else {
        return Vec::new();
    };
    let mut places: Vec<(&str, &str, &PicturePoint)> = Vec::new();
    for point in lines.iter().flat_map(|line| &line.points) {
        // Lines share one panel, whatever tables they come from.
        let table = if picture.kind == PictureKind::Bars { point.table.id.as_str() } else { "" };
        if !places.iter().any(|(id, x, _)| (*id, *x) == (table, point.x_text.as_str())) {
            places.push((table, &point.x_text, point));
        }
    }
    if picture.kind != PictureKind::Bars {
        places.sort_by(|a, b| a.2.x.total_cmp(&b.2.x));
    }
    let panel = |(table, x, point): &(&str, &str, &PicturePoint)| {
        let of_line = |line: &Line| {
            let mut points = line.points.iter();
            let its = points.find(|point| (table.is_empty() || point.table.id == *table) && point.x_text == *x)?;
            let value = its.values.first()?.as_ref()?;
            let text = value.text.split(' ').next().unwrap_or_default().to_string();
            Some(TextBar { value: value.summary.median, text })
        };
        let place = match &picture.x {
            Some(X::Axis(axis)) => format!("{} {x}, {header}", picture.x_title.as_ref().unwrap_or(axis)),
            _ if table.is_empty() => header.clone(),
            _ => point.table.title.split(':').next().unwrap_or_default().to_string(),
        };
        TextPanel { head: place, cells: lines.iter().map(of_line).collect() }
    };
    places.iter().map(panel).collect()
}

/// Which rows are shown: at most `most`, in their order.
fn chosen(cells: &[Option<TextBar>], most: usize) -> Vec<usize> {
    let mut ranked: Vec<usize> = (0..cells.len()).collect();
    let value = |row: &usize| cells[*row].as_ref().map(|cell| cell.value);
    ranked.sort_by(|a, b| value(b).partial_cmp(&value(a)).unwrap_or(std::cmp::Ordering::Equal));
    // From both ends, the largest first.
    let mut ends = Vec::new();
    while let Some(largest) = (!ranked.is_empty()).then(|| ranked.remove(0)) {
        ends.push(largest);
        ends.extend(ranked.pop());
    }
    let mut rows: Vec<usize> = ends.into_iter().take(most).collect();
    rows.sort();
    rows
}

/// `▇▇▅▂ busiest 46.2 %`: one run, as in the picture.
fn shares(line: &Line) -> Option<String> {
    let counts = connections_of_median_run(&line.points.first()?.runs)?;
    let (busiest, total) = (*counts.iter().max()?, counts.iter().sum::<u64>());
    let steps: String = counts.iter().map(|count| step(*count as f64, busiest as f64)).collect();
    Some(format!(
        "{steps}  busiest {:.1} %, by chance {:.1} %",
        100.0 * busiest as f64 / total as f64,
        100.0 / counts.len() as f64
    ))
}
