//! An experiment is one Markdown file, `experiments/NN-name.md`: the lesson for people and, in its only ```` ```toml
//! ```` block, the matrix for the lab. This module reads the file and checks all of it, so that a mistake is found
//! before anything is measured.

use std::fs;
use std::path::{Path, PathBuf};

use crate::lab::plan::case::{self, Case};
use crate::lab::plan::citation;
use crate::lab::plan::claim::{self, Claim, Subject};
use crate::lab::plan::matrix::{FindColumn, Matrix, MatrixError};
use crate::lab::plan::picture::{self, Picture};

/// What the paragraph with a lesson's answer begins with.
const ANSWER: &str = "**Answer.**";

/// A lesson with its matrix.
#[derive(Debug, Clone)]
pub struct Experiment {
    /// The file's name without `.md`: `02-keep-alive-throughput`.
    pub name: String,
    /// The first `#` heading.
    pub title: String,
    /// The first paragraph below the heading.
    pub question: String,
    /// The paragraph that begins with `**Answer.**`, without these words; it may cite claims, see
    /// [`crate::lab::plan::citation`]. Empty when there is none.
    pub answer: String,
    pub matrix: Matrix,
    /// The hash of what the matrix says about measuring, see [`measured_hash`].
    pub measured_hash: String,
    pub claims: Vec<Claim>,
    pub pictures: Vec<Picture>,
    /// What the command line has changed, see [`crate::lab::plan::manual_values`].
    pub manual_values: Option<String>,
}

impl Experiment {
    /// Every combination the matrix names; `quick` takes the small values.
    pub fn cases(&self, quick: bool) -> Vec<Case> {
        case::expand(&self.name, &self.matrix, quick).expect("the file was checked when it was read")
    }

    /// Whether `word` names this experiment: `2`, `02` or `02-keep-alive-throughput`.
    fn answers_to(&self, word: &str) -> bool {
        let number = self.name.split('-').next().unwrap_or_default();
        let is_number = word.parse::<u32>().is_ok_and(|word| number.parse() == Ok(word));
        self.name == word || is_number
    }
}

/// All experiments below `root`, in the order of their numbers.
pub fn load_all(root: &Path, find_column: FindColumn) -> Result<Vec<Experiment>, String> {
    let folder = root.join("experiments");
    let entries = fs::read_dir(&folder)
        .map_err(|error| format!("read {}: {error}; run lab inside the repository or pass --root", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    files.sort();
    files.iter().map(|path| load(path, find_column)).collect()
}

/// The experiments the command line names, all of them when it names none.
pub fn select(all: Vec<Experiment>, words: &[String]) -> Result<Vec<Experiment>, String> {
    for word in words {
        if !all.iter().any(|experiment| experiment.answers_to(word)) {
            let names: Vec<&str> = all.iter().map(|experiment| experiment.name.as_str()).collect();
            return Err(format!("no experiment {word:?}; there are {}", names.join(", ")));
        }
    }
    let named = |experiment: &Experiment| words.iter().any(|word| experiment.answers_to(word));
    Ok(all.into_iter().filter(|experiment| words.is_empty() || named(experiment)).collect())
}

/// Reads and checks one file. An error is one line: file, line, what is wrong, what to do.
fn load(path: &Path, find_column: FindColumn) -> Result<Experiment, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("read {}: {error}", path.display()))?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    parse(&name, &text, find_column).map_err(|(line, what)| format!("{}:{line}: {what}", path.display()))
}

fn parse(name: &str, text: &str, find_column: FindColumn) -> Result<Experiment, (usize, String)> {
    let numbered = name.split('-').next().is_some_and(|head| head.parse::<u32>().is_ok());
    if !numbered {
        return Err((1, "the file's name has no number; call it NN-name.md".to_string()));
    }
    let (title, question) = heading(text)?;
    let (block, first_line) = matrix_block(text)?;
    let place = |fault: MatrixError| {
        let offset = fault.span.map_or(0, |span| span.start.min(block.len()));
        (first_line + block[..offset].matches('\n').count(), fault.what)
    };
    let matrix: Matrix = toml::from_str(&block).map_err(|error| {
        let what = format!("{}; correct the matrix", error.message().replace('\n', " "));
        place(MatrixError { span: error.span(), what })
    })?;
    let columns = || matrix.tables.iter().flat_map(|table| &table.columns);
    if let Some(unknown) = columns().find(|name| find_column(name.get_ref()).is_none()) {
        let what = format!("no column {:?}; `lab explain` lists them", unknown.get_ref());
        return Err(place(MatrixError::at(unknown.span(), what)));
    }
    let cases = |quick| case::expand(name, &matrix, quick).map_err(place);
    let claims =
        claim::resolve(&matrix, &Subject { full: &cases(false)?, quick: &cases(true)?, find_column }).map_err(place)?;
    let pictures = picture::resolve(&matrix, find_column, &cases(false)?).map_err(place)?;
    if let Err((offset, what)) = citation::pieces(text, &claims) {
        return Err((1 + text[..offset].matches('\n').count(), what));
    }
    let measured_hash = measured_hash(text).expect("its block is a table: it has just been read");
    let (name, answer, manual_values) = (name.to_string(), answer(text), None);
    Ok(Experiment { name, title, question, answer, matrix, measured_hash, claims, pictures, manual_values })
}

/// A hash of what a lesson's matrix says about measuring: a claim, a title or a chosen column may change when the rows
/// are there. `None` when the text holds no matrix.
pub fn measured_hash(text: &str) -> Option<String> {
    let mut matrix: toml::Table = matrix_block(text).ok()?.0.parse().ok()?;
    matrix.retain(|key, _| ["repeats", "duration", "warmup", "quick", "table"].contains(&key));
    for table in matrix.get_mut("table").and_then(|tables| tables.as_array_mut()).into_iter().flatten() {
        table.as_table_mut()?.retain(|key, _| !["title", "columns"].contains(&key));
    }
    // JSON, because its form outlives a new version of the TOML library; keys are sorted.
    let text = serde_json::to_string(&matrix).ok()?;
    Some(format!("{:016x}", fnv1a(&text)))
}

/// 64-bit FNV-1a, written out because the standard library's hashes may change with its version.
pub fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The first `#` heading and the paragraph below it.
fn heading(text: &str) -> Result<(String, String), (usize, String)> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with("# "));
    let Some(title) = lines.next() else {
        return Err((1, "no heading; begin the file with `# Title`".to_string()));
    };
    let paragraph: Vec<&str> = lines
        .skip_while(|line| line.trim().is_empty())
        .take_while(|line| !line.trim().is_empty() && !line.starts_with('#') && !line.starts_with("```"))
        .collect();
    Ok((title[2..].trim().to_string(), paragraph.join(" ")))
}

fn answer(text: &str) -> String {
    let mut lines = text.lines().skip_while(|line| !line.starts_with(ANSWER));
    let first = lines.next().map(|line| line[ANSWER.len()..].trim());
    let others = lines.map(str::trim).take_while(|line| !line.is_empty());
    first.into_iter().chain(others).collect::<Vec<_>>().join(" ")
}

/// The text inside the only toml fence, and the number of its first line.
fn matrix_block(text: &str) -> Result<(String, usize), (usize, String)> {
    let lines: Vec<&str> = text.lines().collect();
    let is_opening = |line: &&str| line.trim_end() == "```toml";
    let openings: Vec<usize> = (0..lines.len()).filter(|&i| is_opening(&lines[i])).collect();
    let start = match openings[..] {
        [start] => start,
        [] => return Err((lines.len(), "no matrix; add one ```toml block".to_string())),
        [_, second, ..] => {
            return Err((second + 1, "a second ```toml block; keep one matrix per lesson".to_string()));
        }
    };
    let Some(length) = lines[start + 1..].iter().position(|line| line.trim_end() == "```") else {
        return Err((start + 1, "the ```toml block never ends; close it with ```".to_string()));
    };
    let block = lines[start + 1..start + 1 + length].iter().map(|line| format!("{line}\n")).collect();
    Ok((block, start + 2))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::lab::plan::matrix::ColumnKind;

    /// A complete lesson around a table's lines.
    pub(crate) fn lesson(table: &str) -> String {
        format!(
            "# A title\n\nWhy so?\nOr not?\n\n## Matrix\n\n```toml\nrepeats = 6\nduration = \"1s\"\nwarmup = \"200ms\"\n\
             quick = {{ repeats = 1, duration = \"300ms\" }}\n[[table]]\nid = \"t\"\ntitle = \"T\"\n{table}\n```\n"
        )
    }

    pub(crate) fn parse_lesson(table: &str) -> Result<Experiment, (usize, String)> {
        parse_text("02-keep-alive", &lesson(table))
    }

    fn parse_text(name: &str, text: &str) -> Result<Experiment, (usize, String)> {
        let find = |column: &str| match column {
            "speed" | "p51" => None,
            "picture" => Some(ColumnKind::Picture),
            "p50" => Some(ColumnKind::Number { unit: "µs".to_string() }),
            _ => Some(ColumnKind::Number { unit: "requests/s".to_string() }),
        };
        parse(name, text, find)
    }

    const GOOD: &str = "server = [{ run = \"sync\", law = \"1/N\" }]\nload = \"loadgen --duration {duration}\"\n\
                        columns = [\"qps\"]";

    #[test]
    fn a_lesson_has_a_title_a_question_and_a_matrix() {
        let experiment = parse_lesson(GOOD).unwrap();
        assert_eq!(experiment.title, "A title");
        assert_eq!(experiment.question, "Why so? Or not?");
        assert_eq!(experiment.matrix.tables[0].id, "t");
        assert_eq!(experiment.answer, "");
    }

    #[test]
    fn an_experiment_answers_to_its_number_and_its_name() {
        let experiment = parse_lesson(GOOD).unwrap();
        for word in ["2", "02", "02-keep-alive"] {
            assert!(experiment.answers_to(word), "{word}");
        }
        let first = parse_text("00-first", &lesson(GOOD)).unwrap();
        assert!(first.answers_to("0") && first.answers_to("00") && !first.answers_to(""));
        for word in ["", "3", "keep-alive", "2x"] {
            assert!(!experiment.answers_to(word), "{word}");
        }
    }

    #[test]
    fn a_mistake_is_reported_with_its_line() {
        let bad_column = GOOD.replace("\"qps\"", "\"speed\"");
        let (line, what) = parse_lesson(&bad_column).unwrap_err();
        assert_eq!(line, 18, "{what}");
        assert!(what.contains("speed"), "{what}");

        let (line, what) = parse_lesson(&format!("{GOOD}\ncolour = 1")).unwrap_err();
        assert_eq!(line, 19, "{what}");
        assert!(what.contains("colour"), "{what}");
    }

    #[test]
    fn the_hash_knows_what_is_measured_and_not_what_is_said_about_it() {
        let hash = |table: &str| parse_lesson(table).unwrap().measured_hash;
        assert_eq!(hash(GOOD), hash(&GOOD.replace("\"qps\"", "\"p99\"")));
        assert_ne!(hash(GOOD), hash(&GOOD.replace("{duration}", "2s")));
        let commented = lesson(GOOD).replace("repeats = 6", "# why\nrepeats=6").replace("Why so?", "Why?");
        assert_eq!(measured_hash(&commented), measured_hash(&lesson(GOOD)));
        assert_ne!(measured_hash(&commented.replace("repeats=6", "repeats=7")), measured_hash(&commented));
        assert_eq!(measured_hash("# No matrix"), None);
        assert_eq!(fnv1a("a"), 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn the_answer_is_a_paragraph_that_may_cite_claims() {
        let text = lesson(GOOD).replace("## Matrix", "**Answer.** Yes,\nalways.\n\n## Matrix");
        assert_eq!(parse_text("02-x", &text).unwrap().answer, "Yes, always.");
        assert_eq!(parse_lesson(GOOD).unwrap().answer, "");
        let broken = text.replace("always", "in <!--claim:x-->9<!--/--> of 10");
        let (line, what) = parse_text("02-x", &broken).unwrap_err();
        assert_eq!(line, 7, "{what}");
        assert!(what.contains("no claim \"x\""), "{what}");
    }

    #[test]
    fn one_block_is_needed_and_only_one() {
        let twice = format!("{}{}", lesson(GOOD), lesson(GOOD));
        assert!(parse_text("02-x", &twice).unwrap_err().1.contains("second"));
        assert!(parse_text("02-x", "# T\n").unwrap_err().1.contains("no matrix"));
        assert!(parse_text("02-x", "# T\n```toml\nrepeats = 1\n").unwrap_err().1.contains("never ends"));
        assert!(parse_text("02-x", "text\n").unwrap_err().1.contains("no heading"));
        assert!(parse_text("notes", &lesson(GOOD)).unwrap_err().1.contains("number"));
    }
}
