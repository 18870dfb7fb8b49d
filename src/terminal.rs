//! What is drawn in a terminal: bars, colour, and lines of its width. Every view uses it.

use std::io::IsTerminal;

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
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            *line += &format!(" {word}");
        } else {
            lines.push(format!("{:indent$}{word}", ""));
        }
    }
    lines
}

/// Whether to write colours to this stream: only to a terminal, and not where `NO_COLOR` is set to anything but the
/// empty text (no-color.org).
pub fn has_colour(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Colours a text, or leaves it as it is.
#[derive(Debug, Clone, Copy)]
pub struct Paint {
    pub has_colour: bool,
}

impl Paint {
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

    /// Select Graphic Rendition (ECMA-48, 8.3.117).
    fn sgr(self, code: &str, text: &str) -> String {
        if self.has_colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn colour_only_where_it_is_asked_for() {
        assert_eq!(Paint { has_colour: true }.red("x"), "\x1b[31mx\x1b[0m");
        assert_eq!(Paint { has_colour: false }.red("x"), "x");
    }
}
