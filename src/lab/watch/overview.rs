//! All workers side by side, where there are many: a column for each, a strip for each rate and for the active
//! connections.

use ratatui::style::{Modifier, Style};
use ratatui::text::Line;

use crate::lab::watch::rates::{RATES, View, WorkerRates, cell};
use crate::lab::watch::sample::ProcessState;
use crate::terminal::columns;
use crate::units::short;

const STRIPS: usize = RATES.len() + 1;

/// The strips of the workers that are shown, on so many lines: each a title and bars above one another.
pub fn lines(view: &View, shown: &[WorkerRates], height: usize) -> Vec<Line<'static>> {
    let bar_height = (height / STRIPS).saturating_sub(1).max(1);
    let (most, sums) = (view.most(), view.sums());
    let mut lines = Vec::new();
    for (i, (name, colour)) in RATES.into_iter().enumerate() {
        let of = |worker: &WorkerRates| worker.rates.map(|rates| rates[i]);
        let title = match sums {
            Some(sums) => format!("{name}: {} in all, a full column is {}", short(sums[i]), short(most[i])),
            None => format!("{name}: –"),
        };
        lines.extend(strip(title, view.paint.style(colour), shown, of, most[i], bar_height));
    }
    let active = |worker: &WorkerRates| worker.active;
    let most = view.workers.iter().filter_map(active).fold(0.0, f64::max);
    let (sum, full) = (cell(view.active()), short(most));
    let title = format!("active: {sum} in all, a full column is {full}{}", not_running(view));
    lines.extend(strip(title, Style::new(), shown, active, most, bar_height));
    lines
}

fn strip(
    title: String,
    style: Style,
    shown: &[WorkerRates],
    of: impl Fn(&WorkerRates) -> Option<f64>,
    most: f64,
    height: usize,
) -> Vec<Line<'static>> {
    let mut lines = vec![Line::styled(title, Modifier::DIM)];
    let values: Vec<Option<f64>> = shown.iter().map(of).collect();
    lines.extend(columns(&values, most, height).into_iter().map(|line| Line::styled(line, style)));
    lines
}

/// The workers that do not run.
fn not_running(view: &View) -> String {
    let mut text = String::new();
    for (state, name) in
        [(ProcessState::Starting, "starting"), (ProcessState::Stopped, "stopped"), (ProcessState::Ended, "ended")]
    {
        let ids: Vec<usize> =
            view.workers.iter().filter(|worker| worker.state == state).map(|worker| worker.id).collect();
        match ids[..] {
            [] => {}
            [id] => text += &format!(" · {name}: worker {id}"),
            _ => text += &format!(" · {name}: {} workers", ids.len()),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::view::tests::{screen, view};

    #[test]
    fn sixty_four_workers_are_seen_at_once_at_80_by_24() {
        let mut many = view(64, |id| Some([id as f64, 63.0, 10.0, if id == 5 { 5.0 } else { 0.0 }]));
        many.is_overview = true;
        let lines = screen(&many, 80, 24);
        assert_eq!(lines[3], "connections/s: 2,016 in all, a full column is 63");
        assert!(lines[6].starts_with(" ▁▁▁▂▂▂▃▃") && lines[6].ends_with('█'), "{lines:#?}");
        assert_eq!(lines[8..11], ["█".repeat(64), "█".repeat(64), "█".repeat(64)]);
        // Half of the wake-ups of one worker: one and a half of three lines.
        assert_eq!(lines[15], "of them empty/s: 5.0 in all, a full column is 10");
        assert_eq!(lines[16..19], ["", "     ▄", "     █"]);
        assert!(lines[19].starts_with("active: 2,016 in all"), "{lines:#?}");
        assert_eq!(lines[23], "q quits · Tab a line each · all 64 workers");
    }

    #[test]
    fn what_is_unknown_is_no_empty_column() {
        let mut many = view(3, |_| None);
        many.is_overview = true;
        let lines = screen(&many, 80, 24);
        assert_eq!(lines[3..7], ["connections/s: –", "", "", "–––"]);
    }
}
