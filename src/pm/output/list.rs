//! All processes in a table.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table};

use super::{age, size};
use crate::pm::protocol::{ProcessEntry, ProcessStatus};
use crate::terminal::Paint;

const COLUMNS: [&str; 10] = ["id", "name", "namespace", "mode", "pid", "uptime", "restarts", "status", "cpu", "memory"];

pub fn list(entries: &[ProcessEntry], width: usize, paint: Paint) -> String {
    if entries.is_empty() {
        return "no application; `pm start FILE` starts one\n".to_owned();
    }
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(u16::try_from(width).unwrap_or(u16::MAX));
    if paint.has_colour {
        table.enforce_styling();
    }
    table.set_header(COLUMNS);
    for entry in entries {
        let state = &entry.pm2_env;
        let is_there = |text: String| if entry.pid == 0 { "–".to_owned() } else { text };
        let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        let status = Cell::new(state.status.name());
        table.add_row([
            right(entry.pm_id.to_string()),
            Cell::new(&entry.name),
            Cell::new(&state.namespace),
            Cell::new(state.exec_mode.trim_end_matches("_mode")),
            right(is_there(entry.pid.to_string())),
            right(is_there(age(state.uptime_ms))),
            right(state.restart_time.to_string()),
            if paint.has_colour { status.fg(colour(state.status)) } else { status },
            right(is_there(format!("{:.1}%", entry.monit.cpu))),
            right(is_there(size(entry.monit.memory))),
        ]);
    }
    format!("{table}\n")
}

fn colour(status: ProcessStatus) -> Color {
    match status {
        ProcessStatus::Online => Color::Green,
        ProcessStatus::Stopped | ProcessStatus::Errored => Color::Red,
        _ => Color::Yellow,
    }
}
