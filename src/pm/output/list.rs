//! All processes in a table that is as wide as the terminal, and why those are not online that should be.

use std::collections::BTreeMap;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, Table};

use super::{colour, row};
use crate::pm::protocol::{ProcessEntry, ProcessStatus};
use crate::terminal::{Paint, columns_of, shortened, wrapped};

const COLUMNS: [&str; 10] = ["id", "name", "namespace", "mode", "pid", "uptime", "↺", "status", "cpu", "memory"];
const NAME: usize = 1;
const STATUS: usize = 7;

/// In this order columns are left out of a narrow terminal: namespace, mode, uptime, pid, restarts, cpu.
const LEFT_OUT: [usize; 6] = [2, 3, 5, 4, 6, 8];

/// So much of a name is shown before a column is left out for more.
const SHORTEST_NAME: usize = 16;

pub fn list(entries: &[ProcessEntry], width: usize, paint: Paint) -> String {
    if entries.is_empty() {
        return "no application; `pm start FILE` starts one\n".to_owned();
    }
    let rows: Vec<[String; COLUMNS.len()]> = entries.iter().map(row).collect();
    let widest = |column: usize| {
        let cells = rows.iter().map(|row| columns_of(&row[column]));
        cells.max().unwrap_or(0).max(columns_of(COLUMNS[column]))
    };
    // Beside the text each column has two spaces and a line, and there is one line more.
    let taken = |columns: &[usize]| {
        columns.iter().map(|&column| if column == NAME { 3 } else { widest(column) + 3 }).sum::<usize>() + 1
    };
    let mut columns: Vec<usize> = (0..COLUMNS.len()).collect();
    for left_out in LEFT_OUT {
        if taken(&columns) + widest(NAME).min(SHORTEST_NAME) > width {
            columns.retain(|&column| column != left_out);
        }
    }
    let name_width = width.saturating_sub(taken(&columns)).max(4);
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    if paint.has_colour {
        table.enforce_styling();
    }
    table.set_header(columns.iter().map(|&column| COLUMNS[column]));
    for (entry, row) in entries.iter().zip(&rows) {
        table.add_row(columns.iter().map(|&column| match column {
            NAME => Cell::new(shortened(&row[NAME], name_width)),
            STATUS if paint.has_colour => Cell::new(&row[STATUS]).fg(colour(entry.pm2_env.status).0),
            2 | 3 | STATUS => Cell::new(&row[column]),
            _ => Cell::new(&row[column]).set_alignment(CellAlignment::Right),
        }));
    }
    // Instances fail for the same reason: once for each application.
    let reason = |entry: &ProcessEntry| match entry.pm2_env.status {
        ProcessStatus::Errored | ProcessStatus::WaitingRestart => entry.pm2_env.reason.clone(),
        _ => entry.pm2_env.log_problem.clone(),
    };
    let reasons: BTreeMap<&str, String> =
        entries.iter().filter_map(|entry| Some((entry.name.as_str(), reason(entry)?))).collect();
    let lines = reasons.into_iter().flat_map(|(name, why)| wrapped(&format!("{name}: {why}"), width, 2));
    format!("{table}\n{}", lines.map(|line| line + "\n").collect::<String>())
}
