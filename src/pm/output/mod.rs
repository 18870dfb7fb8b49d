//! What a person reads: pure, from the entries of `jlist`. [`list`]: all processes in a table; [`describe`]: one of them;
//! [`monit`]: what they use now, and the logs of one, on a full screen.

pub mod describe;
pub mod list;
pub mod monit;

use super::protocol::{ProcessEntry, ProcessStatus};

pub use describe::describe;
pub use list::list;
pub use monit::MonitView;

/// What every table shows of a process, in the order of the list; what a process has only while it runs is – otherwise.
fn row(entry: &ProcessEntry) -> [String; 10] {
    let state = &entry.pm2_env;
    let if_it_runs = |text: String| if entry.pid == 0 { "–".to_owned() } else { text };
    [
        entry.pm_id.to_string(),
        entry.name.clone(),
        state.namespace.clone(),
        state.exec_mode.trim_end_matches("_mode").to_owned(),
        if_it_runs(entry.pid.to_string()),
        if_it_runs(age(state.uptime_ms)),
        state.restarts.to_string(),
        state.status.to_string(),
        if_it_runs(format!("{:.1}%", entry.monit.cpu)),
        if_it_runs(size(entry.monit.memory)),
    ]
}

/// The colour of a status, for the table of `pm list` and for the screen of `pm monit`.
fn colour(status: ProcessStatus) -> (comfy_table::Color, ratatui::style::Color) {
    match status {
        ProcessStatus::Online => (comfy_table::Color::Green, ratatui::style::Color::Green),
        ProcessStatus::Stopped | ProcessStatus::Errored => (comfy_table::Color::Red, ratatui::style::Color::Red),
        _ => (comfy_table::Color::Yellow, ratatui::style::Color::Yellow),
    }
}

/// A duration in its largest whole unit, as PM2 shows it: `12s`, `5m`, `3h`, `2D`.
fn age(ms: u64) -> String {
    match ms / 1000 {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m", seconds / 60),
        seconds @ 3600..86_400 => format!("{}h", seconds / 3600),
        seconds => format!("{}D", seconds / 86_400),
    }
}

fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1000.0 { format!("{mib:.1} MiB") } else { format!("{:.1} GiB", mib / 1024.0) }
}
