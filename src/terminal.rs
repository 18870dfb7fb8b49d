//! What is drawn in a terminal: bars, colour, lines of its width, and a screen of our own. Every view uses it.
//!
//! A [`Screen`] is given back on every way out: a key, a signal, an error, a panic. Writing to it never waits: while
//! the terminal does not read, pictures are left out.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::terminal::{disable_raw_mode, enable_raw_mode};
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::{Frame, TerminalOptions, Viewport};

use crate::console::write_within;
use crate::sys::terminal::window_size;

/// A bar that fills `width` columns when `value` is `most`, in eighths of a column (Unicode block elements). What is
/// not zero is visible.
pub fn bar(value: f64, most: f64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = eighths(value, most, width);
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}

/// Upright bars side by side, one for each value, so many lines high: the lines from the top down. An unknown value is
/// a dash.
pub fn columns(values: &[Option<f64>], most: f64, height: usize) -> Vec<String> {
    const EIGHTHS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let piece = |value: &Option<f64>, line: usize| match value {
        Some(value) => EIGHTHS[eighths(*value, most, height).saturating_sub(8 * line).min(8)],
        None if line == 0 => '–',
        None => ' ',
    };
    (0..height).rev().map(|line| values.iter().map(|value| piece(value, line)).collect()).collect()
}

/// One upright bar of one character; zero is its lowest step.
pub fn step(value: f64, most: f64) -> char {
    const STEPS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let share = if most > 0.0 { value / most } else { 0.0 };
    STEPS[((share * 7.0).ceil() as usize).min(7)]
}

fn eighths(value: f64, most: f64, length: usize) -> usize {
    let full = if most > 0.0 { value / most * 8.0 * length as f64 } else { 0.0 };
    (full.round() as usize).max(usize::from(value > 0.0)).min(8 * length)
}

/// In lines of at most `width` columns, broken between words; the second and later ones begin with `indent` blanks.
pub fn wrapped(text: &str, width: usize, indent: usize) -> Vec<String> {
    let words = text.trim_start_matches(' ');
    let mut lines = vec![" ".repeat(text.len() - words.len())];
    for word in words.split(' ') {
        let line = lines.last_mut().expect("one is there from the start");
        if line.trim().is_empty() {
            line.push_str(word);
        } else if columns_of(line) + 1 + columns_of(word) <= width {
            *line += &format!(" {word}");
        } else {
            lines.push(format!("{:indent$}{word}", ""));
        }
    }
    lines
}

/// How many columns of a terminal this text takes; a Chinese character takes two.
pub fn columns_of(text: &str) -> usize {
    Span::raw(text).width()
}

/// The text in at most so many columns; what is cut ends with `…`.
pub fn shortened(text: &str, width: usize) -> String {
    if columns_of(text) <= width {
        return text.to_string();
    }
    let Some(room) = width.checked_sub(1) else { return String::new() };
    let ends = text.char_indices().map(|(at, character)| at + character.len_utf8());
    let kept = ends.take_while(|&end| columns_of(&text[..end]) <= room).last().unwrap_or(0);
    format!("{}…", text[..kept].trim_end())
}

/// Words of others, such as a process gives itself as its title, without what a terminal would obey.
pub fn printable(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Paint {
    pub has_colour: bool,
}

impl Paint {
    /// For what is written to this stream: only a terminal gets colours, and not where `NO_COLOR` is set to anything
    /// but the empty text (no-color.org).
    pub fn on(stream: &impl IsTerminal) -> Paint {
        let is_unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Paint { has_colour: stream.is_terminal() && !is_unwanted }
    }

    pub fn bold(self, text: &str) -> String {
        self.sgr("1", text)
    }

    pub fn red(self, text: &str) -> String {
        self.sgr("31", text)
    }

    pub fn green(self, text: &str) -> String {
        self.sgr("32", text)
    }

    pub fn yellow(self, text: &str) -> String {
        self.sgr("33", text)
    }

    pub fn cyan(self, text: &str) -> String {
        self.sgr("36", text)
    }

    /// The same for what a [`Screen`] draws.
    pub fn style(self, colour: Color) -> Style {
        if self.has_colour { Style::new().fg(colour) } else { Style::new() }
    }

    /// Select Graphic Rendition (ECMA-48, 8.3.117).
    fn sgr(self, code: &str, text: &str) -> String {
        if self.has_colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
    }
}

/// Draws lines under one another, and the keys at the bottom, whatever has no room above them.
pub fn draw_lines(frame: &mut Frame, mut lines: Vec<Line>, keys: String) {
    let Rect { x, y, width, height } = frame.area();
    lines.resize(usize::from(height).saturating_sub(1), Line::default());
    lines.push(Line::styled(keys, Modifier::DIM));
    for (row, line) in (y..y + height).zip(lines) {
        frame.render_widget(line, Rect { x, y: row, width, height: 1 });
    }
}

/// Columns of the terminal behind this stream, and 100 where there is none.
pub fn width(stream: &impl AsFd) -> usize {
    window_size(stream).ok().filter(|&(columns, _)| columns > 0).map_or(100, |(columns, _)| columns.into())
}

/// No picture is larger, whatever the terminal claims: a window may be 65,535 columns wide (ioctl_tty(2)).
const LARGEST: (u16, u16) = (512, 256);
/// The size of a terminal that does not know it.
const USUAL: (u16, u16) = (80, 24);
/// Alternate screen, cursor hidden; and back (xterm, "Control Sequences", DECSET 1049 and 25).
const TAKE: &[u8] = b"\x1b[?1049h\x1b[?25l\x1b[2J";
const GIVE_BACK: &[u8] = b"\x1b[?1049l\x1b[?25h";
const CLEAR: &[u8] = b"\x1b[2J";
/// How long the end of a screen waits for a terminal that does not read.
const RESTORE_TIMEOUT: Duration = Duration::from_millis(500);

static OURS: Mutex<Option<Arc<File>>> = Mutex::new(None);

/// A terminal in raw mode, on its second screen, until this is dropped.
pub struct Screen {
    terminal: ratatui::Terminal<CrosstermBackend<PendingOutput>>,
    output: PendingOutput,
    size: (u16, u16),
}

impl Screen {
    /// Takes over the terminal behind this stream.
    ///
    /// # Errors
    /// When it is no terminal, or gone.
    pub fn take(stream: &impl AsFd) -> io::Result<Screen> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let next = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                give_back();
                next(panic);
            }));
        });
        let mut output = PendingOutput { file: Arc::new(open_without_waiting(stream)?), bytes: Arc::default() };
        enable_raw_mode()?;
        *ours() = Some(Arc::clone(&output.file));
        let size = size_of(&output.file);
        let taken = output.write_all(TAKE).and_then(|()| terminal(&output, size));
        let terminal = taken.inspect_err(|_| give_back())?;
        Ok(Screen { terminal, output, size })
    }

    pub fn size(&self) -> (u16, u16) {
        size_of(&self.output.file)
    }

    /// Draws a picture, or leaves it out while the terminal has not read the one before.
    pub fn draw(&mut self, picture: impl FnOnce(&mut Frame)) -> io::Result<()> {
        self.output.write_out()?;
        if !self.output.bytes().is_empty() {
            return Ok(());
        }
        if self.size() != self.size {
            self.size = self.size();
            self.output.write_all(CLEAR)?;
            self.terminal = terminal(&self.output, self.size)?;
        }
        self.terminal.draw(picture)?;
        self.output.write_out()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

fn terminal(
    output: &PendingOutput,
    (width, height): (u16, u16),
) -> io::Result<ratatui::Terminal<CrosstermBackend<PendingOutput>>> {
    let viewport = Viewport::Fixed(Rect { x: 0, y: 0, width, height });
    ratatui::Terminal::with_options(CrosstermBackend::new(output.clone()), TerminalOptions { viewport })
}

fn size_of(terminal: &File) -> (u16, u16) {
    let known = window_size(terminal).ok().filter(|&(columns, lines)| columns > 0 && lines > 0);
    let (columns, lines) = known.unwrap_or(USUAL);
    (columns.min(LARGEST.0), lines.min(LARGEST.1))
}

/// The same terminal, opened once more: O_NONBLOCK belongs to the open file (open(2)), and the one behind a standard
/// stream belongs to the shell, too. Where that is not allowed, writing may wait.
fn open_without_waiting(stream: &impl AsFd) -> io::Result<File> {
    let stream = stream.as_fd();
    window_size(stream)?;
    let path = format!("/proc/self/fd/{}", stream.as_raw_fd());
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let again = OpenOptions::new().write(true).custom_flags(flags).open(path);
    again.or_else(|_| stream.try_clone_to_owned().map(File::from))
}

/// Gives the terminal back if it is ours: once, even if a panic and a drop both ask for it.
fn give_back() {
    let Some(file) = ours().take() else { return };
    let _ = disable_raw_mode();
    // Where the terminal is gone there is nothing to give back.
    let _ = write_within(&file, &mut GIVE_BACK.to_vec(), RESTORE_TIMEOUT);
}

fn ours() -> MutexGuard<'static, Option<Arc<File>>> {
    OURS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A terminal, and the bytes that it has not taken yet.
#[derive(Clone)]
struct PendingOutput {
    file: Arc<File>,
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl PendingOutput {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what the terminal takes now.
    fn write_out(&self) -> io::Result<()> {
        Ok(write_within(&self.file, &mut self.bytes(), Duration::ZERO)?)
    }
}

impl Write for PendingOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    /// Writes nothing: when ratatui cannot write, it says so on standard error, and panics where that is gone, too.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use ratatui::backend::TestBackend;
    use ratatui::buffer::Cell;

    use super::*;

    /// The lines of a screen of this size.
    pub(crate) fn lines_of(width: u16, height: u16, picture: impl FnOnce(&mut Frame)) -> Vec<String> {
        let mut terminal = ratatui::Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(picture).unwrap();
        let line = |cells: &[Cell]| cells.iter().map(Cell::symbol).collect::<String>().trim_end().to_string();
        terminal.backend().buffer().content().chunks(width.into()).map(line).collect()
    }

    #[test]
    fn bars_are_drawn_in_eighths_and_what_is_not_zero_is_visible() {
        assert_eq!([0.0, 1.5, 2.0, 0.001].map(|value| bar(value, 4.0, 4)), ["", "█▌", "██", "▏"]);
        assert_eq!([bar(1.0, 0.0, 4), bar(9.0, 4.0, 4)], ["▏", "████"]);
    }

    #[test]
    fn columns_grow_upwards_and_the_unknown_is_a_dash() {
        assert_eq!(columns(&[Some(0.0), Some(1.0), Some(1.5), Some(2.0), None], 2.0, 2), ["  ▄█ ", " ███–"]);
        assert_eq!([0.0, 0.1, 4.0, 8.0].map(|value| step(value, 8.0)), ['▁', '▂', '▅', '█']);
    }

    #[test]
    fn a_text_is_broken_between_words_and_only_a_word_alone_is_longer() {
        assert_eq!(wrapped("a bc def", 4, 2), ["a bc", "  def"]);
        assert_eq!(wrapped("  a b c", 5, 2), ["  a b", "  c"]);
        assert_eq!(wrapped("a verylong b", 4, 0), ["a", "verylong", "b"]);
    }

    #[test]
    fn what_is_cut_fits_its_columns_and_a_wide_character_takes_two() {
        assert_eq!(
            ["plain", "a name", "观察者", "观察者a"].map(|text| shortened(text, 5)),
            ["plain", "a na…", "观察…", "观察…"]
        );
        assert_eq!([6, 4, 1, 0].map(|width| shortened("观察者", width)), ["观察者", "观…", "…", ""]);
        assert_eq!(shortened("a bcd", 3), "a…");
        assert_eq!(wrapped("观察 者", 6, 0), ["观察", "者"]);
    }

    #[test]
    fn colour_only_where_it_is_asked_for() {
        assert_eq!(Paint { has_colour: true }.red("x"), "\x1b[31mx\x1b[0m");
        assert_eq!(Paint { has_colour: false }.red("x"), "x");
    }
}
