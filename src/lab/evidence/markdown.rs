//! Markdown as all pages write it. Prose and lists have lines of at most [`WIDTH`] characters, so that a diff of two
//! measurements shows what has changed; a table has as few columns as fit on a page, and the others are folded below
//! it.

use crate::lab::evidence::table::{Commands, Table, is_text};
use crate::terminal::wrapped;

pub const WIDTH: usize = 158;

/// Wider tables are cut by GitHub's pages and by every phone.
const MOST_COLUMNS: usize = 7;

pub fn paragraph(text: &str) -> String {
    wrapped(text, WIDTH, 0).join("\n") + "\n"
}

pub fn bullet(text: &str) -> String {
    wrapped(&format!("- {text}"), WIDTH, 2).join("\n") + "\n"
}

/// A table of these lines; texts are aligned to the left, numbers to the right.
pub fn table(headers: &[String], lines: &[Vec<String>], is_text: fn(&str) -> bool) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let dash = |header: &String| if is_text(header) { "---" } else { "---:" }.to_string();
    let escaped = |cells: &[String]| cells.iter().map(|text| cell(text)).collect::<Vec<String>>();
    let lines: String = lines.iter().map(|cells| line(escaped(cells))).collect();
    line(escaped(headers)) + &line(headers.iter().map(dash).collect()) + &lines
}

/// A text inside a table: `|` would begin the next cell, and `<` before a letter a tag.
pub fn cell(text: &str) -> String {
    let mut escaped = String::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '|' => escaped += "\\|",
            '<' if rest.peek().is_some_and(|next| next.is_ascii_alphabetic() || "/!?".contains(*next)) => {
                escaped += "&lt;"
            }
            '\n' => escaped.push(' '),
            _ => escaped.push(c),
        }
    }
    escaped
}

/// Command lines as a shell takes them.
pub fn commands(lines: &Commands) -> String {
    let folded = |line: &String| wrapped(line, WIDTH - 2, 2).join(" \\\n") + "\n";
    format!("```sh\n{}```\n", lines.iter().map(folded).collect::<String>())
}

/// A table of an experiment without its title, with what was recorded about it below.
pub fn section(table: &Table, without: &[String]) -> String {
    let mut text = String::new();
    for (lines, answers) in &table.traces {
        text += &format!("{}\n```text\n{}\n```\n\n", commands(lines), answers.join("\n"));
    }
    if !table.headers.is_empty() {
        text += &columns(table);
    }
    let notes = table.notes.iter().filter(|note| !without.contains(note));
    text + &notes.map(|note| bullet(note)).collect::<String>()
}

/// The first columns, and all others in tables of the same size that a reader unfolds.
fn columns(table_: &Table) -> String {
    let Table { headers, cells, coordinates, .. } = table_;
    let room = MOST_COLUMNS.saturating_sub(*coordinates).max(1);
    let numbers: Vec<usize> = (*coordinates..headers.len()).collect();
    let part = |shown: &[usize]| {
        let pick =
            |cells: &Vec<String>| (0..*coordinates).chain(shown.iter().copied()).map(|i| cells[i].clone()).collect();
        let picked: Vec<String> = pick(headers);
        table(&picked, &cells.iter().map(pick).collect::<Vec<_>>(), is_text) + "\n"
    };
    let mut parts = numbers.chunks(room).map(part);
    let first = parts.next().unwrap_or_else(|| part(&[]));
    let folded: String = parts.collect();
    if folded.is_empty() {
        return first;
    }
    let names: Vec<&str> = headers[coordinates + room..].iter().map(String::as_str).collect();
    format!("{first}<details><summary>{}</summary>\n\n{folded}</details>\n\n", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table_of(headers: &[&str], coordinates: usize) -> Table {
        let headers: Vec<String> = headers.iter().map(|header| header.to_string()).collect();
        let cells = vec![headers.iter().map(|header| format!("{header}!")).collect()];
        Table { title: "T".to_string(), headers, cells, coordinates, ..Table::default() }
    }

    #[test]
    fn columns_beyond_the_seventh_are_folded_beside_the_same_coordinates() {
        let text = section(&table_of(&["workers", "server", "a", "b", "c", "d", "e", "f", "g"], 2), &[]);
        assert!(
            text.contains("| workers! | server! | a! | b! | c! | d! | e! |\n\n<details><summary>f, g</summary>"),
            "{text}"
        );
        assert!(text.contains("| workers! | server! | f! | g! |\n\n</details>"), "{text}");
        assert!(!section(&table_of(&["server", "a"], 1), &[]).contains("details"));
    }

    #[test]
    fn a_cell_cannot_end_itself_or_begin_a_tag() {
        assert_eq!(cell("node -e 'a|b<c' <0.001 2 < 3"), "node -e 'a\\|b&lt;c' <0.001 2 < 3");
    }

    #[test]
    fn a_long_command_is_still_one_command() {
        let long = format!("loadgen {}", "--flag value ".repeat(30));
        let text = commands(&vec![long.trim().to_string()]);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert_eq!(text.replace(" \\\n ", ""), format!("```sh\n{}\n```\n", long.trim()));
    }
}
