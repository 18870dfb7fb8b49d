//! An experiment is one Markdown file, `experiments/NN-name.md`: the lesson for people and, in its only ```` ```toml ````
//! block, the matrix for the lab. This module reads the file; [`crate::lab::plan::case`] expands the matrix.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use crate::lab::plan::case::{self, Case};

/// A lesson with its matrix.
#[derive(Debug, Clone)]
pub struct Experiment {
    /// The file's name without `.md`: `02-keep-alive-throughput`.
    pub name: String,
    /// The first `#` heading.
    pub title: String,
    /// The first paragraph below the heading.
    pub question: String,
    pub matrix: Matrix,
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

/// The ```` ```toml ```` block. What a table does not say is taken from the top.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matrix {
    /// Fresh processes for every case, this many times.
    pub repeats: usize,
    /// The values of `{duration}` and `{warmup}` in command lines.
    pub duration: String,
    pub warmup: String,
    #[serde(default)]
    pub quick: Overrides,
    #[serde(rename = "table")]
    pub tables: Vec<TableSpec>,
}

/// One table of the results: contenders × axes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableSpec {
    pub id: String,
    pub title: String,
    #[serde(default)]
    pub kind: Kind,
    pub server: Vec<Contender>,
    /// Appended to every server's command line.
    #[serde(default)]
    pub server_flags: Option<Spanned<String>>,
    /// One client's command line, or several to be compared.
    pub load: Spanned<Load>,
    #[serde(default)]
    pub axes: BTreeMap<String, Vec<AxisValue>>,
    pub columns: Vec<Spanned<String>>,
    /// What rows are compared with: the row that differs in exactly these coordinates (`server`, `client`, an axis).
    #[serde(default)]
    pub baseline: BTreeMap<String, Spanned<AxisValue>>,
    /// Indices into the CPUs the lab may use; all of them when absent.
    #[serde(default)]
    pub server_cpus: Vec<usize>,
    #[serde(default)]
    pub client_cpus: Vec<usize>,
    /// Look at threads, descriptors and memory during the warm-up, which must be long enough for it.
    #[serde(default)]
    pub probe: bool,
    /// What is done to the server once the client measures, see [`crate::lab::run::disturb`].
    #[serde(default)]
    pub disturb: Option<Spanned<String>>,
    /// Kernel settings for the time of a run, see [`crate::lab::run::sysctl`].
    #[serde(default)]
    pub sysctl: BTreeMap<String, Spanned<String>>,
    /// Look at each worker's live connections all the time.
    #[serde(default)]
    pub timeline: bool,
    pub repeats: Option<usize>,
    pub duration: Option<String>,
    pub warmup: Option<String>,
    #[serde(default)]
    pub quick: Overrides,
}

impl TableSpec {
    /// The coordinates of what a row is compared with.
    pub fn baseline_of(&self, coordinates: &[(String, String)]) -> Vec<(String, String)> {
        let value = |name: &String, own: &String| {
            self.baseline.get(name).map_or(own.clone(), |value| value.get_ref().to_string())
        };
        coordinates.iter().map(|(name, own)| (name.clone(), value(name, own))).collect()
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A row per case, medians in the cells.
    #[default]
    Summary,
    /// The first answers of one run, one by one, as siege prints them.
    Trace,
}

/// One server of a table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contender {
    /// Its command line, which is also its name in the table.
    pub run: Spanned<String>,
    /// The law it should follow, see [`crate::lab::plan::laws`].
    pub law: Option<Spanned<String>>,
    /// Requests left unanswered are this server's nature, not a failure of the run.
    #[serde(default)]
    pub expect_timeouts: bool,
    /// Its workers die, of what is done to them or of themselves; with the last one it may end by itself.
    #[serde(default)]
    pub expect_death: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Load {
    One(Client),
    Several(Vec<Client>),
}

impl Load {
    pub fn clients(&self) -> &[Client] {
        match self {
            Load::One(client) => std::slice::from_ref(client),
            Load::Several(clients) => clients,
        }
    }
}

/// One client of a table: its command line, and its name there where the program's own would not tell it apart.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Client {
    Plain(String),
    Named { name: String, run: String },
}

impl Client {
    pub fn run(&self) -> &str {
        match self {
            Client::Plain(run) | Client::Named { run, .. } => run,
        }
    }

    pub fn name(&self) -> Option<&str> {
        match self {
            Client::Plain(_) => None,
            Client::Named { name, .. } => Some(name),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum AxisValue {
    Integer(i64),
    Text(String),
}

impl std::fmt::Display for AxisValue {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            AxisValue::Integer(value) => value.fmt(f),
            AxisValue::Text(value) => value.fmt(f),
        }
    }
}

/// What `--quick` changes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overrides {
    pub repeats: Option<usize>,
    pub duration: Option<String>,
    pub warmup: Option<String>,
    #[serde(default)]
    pub axes: BTreeMap<String, Vec<AxisValue>>,
}

/// What is wrong in a matrix, and where: a byte range of the block, if it has a place.
#[derive(Debug)]
pub struct Fault {
    pub span: Option<Range<usize>>,
    pub what: String,
}

impl Fault {
    pub fn at(span: Range<usize>, what: String) -> Fault {
        Fault { span: Some(span), what }
    }

    pub fn anywhere(what: String) -> Fault {
        Fault { span: None, what }
    }
}

/// All experiments below `root`, in the order of their numbers.
pub fn load_all(root: &Path) -> Result<Vec<Experiment>, String> {
    let folder = root.join("experiments");
    let entries = fs::read_dir(&folder).map_err(|error| {
        format!("read {}: {error}; run lab inside the repository or pass --root", folder.display())
    })?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    files.sort();
    files.iter().map(|path| load(path)).collect()
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
fn load(path: &Path) -> Result<Experiment, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("read {}: {error}", path.display()))?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    parse(&name, &text).map_err(|(line, what)| format!("{}:{line}: {what}", path.display()))
}

fn parse(name: &str, text: &str) -> Result<Experiment, (usize, String)> {
    let numbered = name.split('-').next().is_some_and(|head| head.parse::<u32>().is_ok());
    if !numbered {
        return Err((1, "the file's name has no number; call it NN-name.md".to_string()));
    }
    let (title, question) = heading(text)?;
    let (block, first_line) = matrix_block(text)?;
    let place = |fault: Fault| {
        let offset = fault.span.map_or(0, |span| span.start.min(block.len()));
        (first_line + block[..offset].matches('\n').count(), fault.what)
    };
    let matrix: Matrix = toml::from_str(&block).map_err(|error| {
        let what = format!("{}; mend the matrix", error.message().replace('\n', " "));
        place(Fault { span: error.span(), what })
    })?;
    for quick in [false, true] {
        case::expand(name, &matrix, quick).map_err(place)?;
    }
    Ok(Experiment { name: name.to_string(), title, question, matrix })
}

/// The first `#` heading and the paragraph below it.
fn heading(text: &str) -> Result<(String, String), (usize, String)> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with("# "));
    let Some(title) = lines.next() else {
        return Err((1, "no heading; begin the file with `# Title`".to_string()));
    };
    let paragraph: Vec<&str> = lines
        .skip_while(|line| line.trim().is_empty())
        .take_while(|line| !line.trim().is_empty() && !line.starts_with(['#', '`']))
        .collect();
    Ok((title[2..].trim().to_string(), paragraph.join(" ")))
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

    /// A complete lesson around a table's lines.
    pub(crate) fn lesson(table: &str) -> String {
        format!(
            "# A title\n\nWhy so?\nOr not?\n\n## Matrix\n\n```toml\nrepeats = 6\nduration = \"1s\"\nwarmup = \"200ms\"\n\
             quick = {{ repeats = 1, duration = \"300ms\" }}\n[[table]]\nid = \"t\"\ntitle = \"T\"\n{table}\n```\n"
        )
    }

    pub(crate) fn parse_lesson(table: &str) -> Result<Experiment, (usize, String)> {
        parse("02-keep-alive", &lesson(table))
    }

    const GOOD: &str = "server = [{ run = \"sync\", law = \"1/N\" }]\nload = \"loadgen --duration {duration}\"\n\
                        columns = [\"qps\"]";

    #[test]
    fn a_lesson_has_a_title_a_question_and_a_matrix() {
        let experiment = parse_lesson(GOOD).unwrap();
        assert_eq!(experiment.title, "A title");
        assert_eq!(experiment.question, "Why so? Or not?");
        assert_eq!(experiment.matrix.tables[0].id, "t");
    }

    #[test]
    fn an_experiment_answers_to_its_number_and_its_name() {
        let experiment = parse_lesson(GOOD).unwrap();
        for word in ["2", "02", "02-keep-alive"] {
            assert!(experiment.answers_to(word), "{word}");
        }
        let first = parse("00-first", &lesson(GOOD)).unwrap();
        assert!(first.answers_to("0") && first.answers_to("00") && !first.answers_to(""));
        for word in ["", "3", "keep-alive", "2x"] {
            assert!(!experiment.answers_to(word), "{word}");
        }
    }

    #[test]
    fn a_fault_names_its_line() {
        let bad_column = GOOD.replace("\"qps\"", "\"speed\"");
        let (line, what) = parse_lesson(&bad_column).unwrap_err();
        assert_eq!(line, 18, "{what}");
        assert!(what.contains("speed"), "{what}");

        let (line, what) = parse_lesson(&format!("{GOOD}\ncolour = 1")).unwrap_err();
        assert_eq!(line, 19, "{what}");
        assert!(what.contains("colour"), "{what}");
    }

    #[test]
    fn one_block_is_needed_and_only_one() {
        let twice = format!("{}{}", lesson(GOOD), lesson(GOOD));
        assert!(parse("02-x", &twice).unwrap_err().1.contains("second"));
        assert!(parse("02-x", "# T\n").unwrap_err().1.contains("no matrix"));
        assert!(parse("02-x", "# T\n```toml\nrepeats = 1\n").unwrap_err().1.contains("never ends"));
        assert!(parse("02-x", "text\n").unwrap_err().1.contains("no heading"));
        assert!(parse("notes", &lesson(GOOD)).unwrap_err().1.contains("number"));
    }
}
