//! All processes on a full screen: what each uses now, as bars.

use ratatui::style::{Color, Modifier};
use ratatui::text::{Line, Span};

use super::{age, size};
use crate::pm::protocol::{ProcessEntry, ProcessStatus};
use crate::terminal::{Paint, bar, shortened};

/// Columns of a name, and of a bar.
const NAME: usize = 20;
const BAR: usize = 16;

/// A line for all, and one for each process. A full bar is one CPU, or the memory of the largest process.
pub fn monit(entries: &[ProcessEntry], paint: Paint) -> Vec<Line<'static>> {
    let online = entries.iter().filter(|entry| entry.pm2_env.status == ProcessStatus::Online).count();
    let cpu: f64 = entries.iter().map(|entry| entry.monit.cpu).sum();
    let memory: u64 = entries.iter().map(|entry| entry.monit.memory).sum();
    let most = entries.iter().map(|entry| entry.monit.memory).max().unwrap_or(0);
    let all = format!("{online} of {} processes online, {cpu:.1}% of a CPU, {}", entries.len(), size(memory));
    let names = format!(
        "{:>4} {:NAME$} {:16}{:>6} {:>8} {:>7} cpu{:19}memory",
        "id", "name", "status", "age", "restarts", "", ""
    );
    let head = [Line::from(all), Line::default(), Line::styled(names, Modifier::DIM)];
    let row = |entry: &ProcessEntry| {
        let state = &entry.pm2_env;
        let colour = match state.status {
            ProcessStatus::Online => Color::Green,
            ProcessStatus::Stopped | ProcessStatus::Errored => Color::Red,
            _ => Color::Yellow,
        };
        let cpu = bar(entry.monit.cpu, 100.0, BAR);
        let memory = bar(entry.monit.memory as f64, most as f64, BAR);
        Line::from(vec![
            Span::raw(format!("{:>4} {:NAME$} ", entry.pm_id, shortened(&entry.name, NAME))),
            Span::styled(format!("{:16}", state.status.name()), paint.style(colour)),
            Span::raw(format!("{:>6} {:>8} ", age(state.uptime_ms), state.restart_time)),
            Span::raw(format!("{:>6.1}% {cpu:BAR$} {memory:BAR$} {}", entry.monit.cpu, size(entry.monit.memory))),
        ])
    };
    head.into_iter().chain(entries.iter().map(row)).collect()
}
