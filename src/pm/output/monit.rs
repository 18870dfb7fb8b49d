//! The full screen: all processes and what each uses now, and of the chosen one the facts and the last lines of its logs.

use ratatui::Frame;
use ratatui::layout::Constraint::{Fill, Length};
use ratatui::layout::Layout;
use ratatui::style::{Color, Modifier};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table, TableState, Wrap};

use super::describe::facts;
use super::{colour, row, size};
use crate::pm::protocol::{ProcessEntry, ProcessStatus};
use crate::terminal::{Paint, bar, shortened};

/// Columns of a bar. A full one is one CPU, or the memory of the largest process.
const BAR: u16 = 10;

pub struct MonitView<'a> {
    pub entries: &'a [ProcessEntry],
    /// Which of them is chosen.
    pub chosen: usize,
    /// The last lines of its two logs.
    pub output: String,
    pub errors: String,
    pub paint: Paint,
}

impl MonitView<'_> {
    pub fn draw(&self, frame: &mut Frame) {
        // Its head, all processes if there is room, and the half of the screen if not.
        let listed = (self.entries.len() as u16 + 1).min(frame.area().height / 2);
        let rows = [Length(1), Length(listed), Length(4), Fill(3), Fill(2), Length(1)];
        let [all, list, about, output, errors, keys] = Layout::vertical(rows).areas(frame.area());
        frame.render_widget(self.all(), all);
        frame.render_stateful_widget(self.list(list.width), list, &mut TableState::new().with_selected(self.chosen));
        frame.render_widget(Line::styled("up and down choose a process, q quits", Modifier::DIM), keys);
        let Some(entry) = self.entries.get(self.chosen) else { return };
        let known = facts(entry).into_iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>();
        let title = |text: &str| Block::new().borders(Borders::TOP).title(format!(" {text} "));
        let known = Paragraph::new(known.join(" · ")).wrap(Wrap { trim: true });
        frame.render_widget(known.block(title(&format!("{} (id {})", entry.name, entry.pm_id))), about);
        // The last lines, which are those at the bottom.
        let lines = |text: &str, height: u16| {
            let lines: Vec<String> = text.lines().map(|line| line.replace('\t', "    ")).collect();
            let first = lines.len().saturating_sub(usize::from(height) - 1);
            Text::from_iter(lines.into_iter().skip(first).map(Line::from))
        };
        frame.render_widget(Paragraph::new(lines(&self.output, output.height.max(1))).block(title("output")), output);
        let text = lines(&self.errors, errors.height.max(1)).style(self.paint.style(Color::Red));
        frame.render_widget(Paragraph::new(text).block(title("errors")), errors);
    }

    fn all(&self) -> String {
        let online = self.entries.iter().filter(|entry| entry.pm2_env.status == ProcessStatus::Online).count();
        // From 0.0: the sum of none is -0.0.
        let cpu = self.entries.iter().fold(0.0, |sum, entry| sum + entry.monit.cpu);
        let memory: u64 = self.entries.iter().map(|entry| entry.monit.memory).sum();
        format!("{online} of {} processes online, {cpu:.1}% of a CPU, {}", self.entries.len(), size(memory))
    }

    fn list(&self, width: u16) -> Table<'_> {
        let widths = [4, 0, 9, 6, 4, 6, BAR, 9, BAR];
        // Between columns is a space.
        let name_width = usize::from(width.saturating_sub(widths.iter().sum::<u16>() + widths.len() as u16 - 1));
        let most = self.entries.iter().map(|entry| entry.monit.memory).max().unwrap_or(0);
        let cells = |entry: &ProcessEntry| {
            let [id, name, _, _, _, uptime, restarts, status, cpu, memory] = row(entry);
            let right = |text: String| Cell::new(Text::from(text).right_aligned());
            Row::new([
                right(id),
                Cell::new(shortened(&name, name_width)),
                Cell::new(status).style(self.paint.style(colour(entry.pm2_env.status).1)),
                right(uptime),
                right(restarts),
                right(cpu),
                Cell::new(bar(entry.monit.cpu, 100.0, BAR.into())),
                right(memory),
                Cell::new(bar(entry.monit.memory as f64, most as f64, BAR.into())),
            ])
        };
        let widths = widths.map(|width| if width == 0 { Fill(1) } else { Length(width) });
        let head = ["  id", "name", "status", "uptime", "   ↺", "   cpu", "", "   memory", ""];
        Table::new(self.entries.iter().map(cells), widths)
            .header(Row::new(head).style(Modifier::DIM))
            .row_highlight_style(Modifier::REVERSED)
    }
}
