//! Whether records come from code that the history has, and whether they are still true of the code as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::items::Changes;
use crate::lab::plan::experiment::Experiment;
use crate::lab::record::content::{Content, History, Trees, changed_files, file_at};
use crate::lab::record::{Record, newest};

/// Programs that take part in every run.
const IN_EVERY_RUN: [&str; 2] = ["lab", "loadgen"];

/// The trials of `lab inspect`, of `lab steer`, and of both, which find a server in the same way.
const INSPECTING: &[&str] = &["blind-test", "complaint", "served", "watched"];
const STEERING: &[&str] = &["steer-cost", "steer-stopped"];
const FINDING: &[&str] = &["blind-test", "complaint", "served", "steer-cost", "steer-stopped", "watched"];

/// Parts of the lab that only lessons with one of these words in a command line use: a program, a trial, or a folder of
/// programs.
const OF_WORDS: [(&str, &[&str]); 19] = [
    ("src/lab/trials/blind_test.rs", &["blind-test"]),
    ("src/lab/trials/modes.rs", &["blind-test"]),
    ("src/lab/trials/complaints.rs", &["complaint"]),
    ("src/lab/trials/watching.rs", &["watched"]),
    ("src/lab/trials/served.rs", &["served"]),
    ("src/lab/trials/steering.rs", &["served", "steer-cost", "steer-stopped"]),
    ("src/lab/trials/", &["trial"]),
    ("src/lab/steer/", STEERING),
    ("src/sys/foreign_listener.rs", STEERING),
    ("src/lab/inspect/", INSPECTING),
    ("src/lab/server_kind.rs", INSPECTING),
    ("src/lab/target.rs", FINDING),
    ("src/sys/connections.rs", INSPECTING),
    ("src/sys/descriptors.rs", FINDING),
    ("src/sys/sock_diag.rs", FINDING),
    ("src/sys/waiting.rs", INSPECTING),
    ("src/lab/run/contender.rs", &["contenders", "blind-test"]),
    // The two files of folders in `MAKES_NO_ROWS` that trials use: the rates by which `lab inspect` finds something, and
    // the client that asks a server.
    ("src/lab/watch/rates.rs", INSPECTING),
    ("src/lab/check/client.rs", &["trial"]),
];

/// Where lessons have programs and files of their own.
const FILES_OF_LESSONS: &str = "experiments/";

/// What reads rows, shows servers, says what a number means or where a record comes from, but takes no part in making
/// rows. `bins/lab.rs` reads a command line; what `lab` does stands in `src/lab/`.
const MAKES_NO_ROWS: [&str; 6] = [
    "bins/lab.rs",
    "src/lab/evidence/",
    "src/lab/watch/",
    "src/lab/check/",
    "src/lab/record/content.rs",
    "src/metrics.rs",
];

/// What was found, in lines for a person.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Origins {
    /// Records whose content no commit has.
    pub unknown: Vec<String>,
    /// Lessons that were measured with other code, or another matrix: one line for each reason.
    pub stale: Vec<String>,
    /// Why the history could not be searched.
    pub unsearched: Option<String>,
}

/// Judges the newest record of each lesson; one without a record has no origin.
pub fn judge(root: &Path, experiments: &[Experiment], records: &[Record]) -> Origins {
    let (now, history) = (Content::now(root, experiments), History::read(root));
    let has_git = history.is_some();
    let mut origins = Origins::default();
    let mut stale: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    // Of each commit that records name, once.
    let mut changed_since: BTreeMap<&Trees, Option<Changes>> = BTreeMap::new();
    for experiment in experiments {
        let name = experiment.name.as_str();
        let Some(record) = newest(records, name) else { continue };
        let then = &record.header.content;
        let trees = then.trees.as_ref().zip(now.trees.as_ref());
        let changed = trees
            .map(|(then, now)| changed_since.entry(then).or_insert_with(|| changed_code(root, then, now)).as_ref());
        if let Some(why) = changes(root, then, &now, changed, experiment, has_git) {
            stale.entry(why).or_default().push(name);
        }
        let (Some(trees), Some(matrix)) = (&then.trees, then.matrices.get(name)) else { continue };
        match &history {
            Some(history) if history.has(root, trees, name, matrix) => {}
            Some(history) if !history.is_shallow => origins.unknown.push(format!(
                "{name}: no commit of the history has what {} was measured with; measure again: lab run {name}",
                record.file
            )),
            Some(_) => {
                let why = "the history is cut short, so it may lack what the records were measured with; \
                           git fetch --unshallow";
                origins.unsearched = Some(why.to_string());
            }
            None => {
                let why = "there is no git history here, so the commits of the records were not looked for";
                origins.unsearched = Some(why.to_string());
            }
        }
    }
    let line = |(why, names): (String, Vec<&str>)| format!("stale, {why}: {}", names.join(", "));
    origins.stale = stale.into_iter().map(line).collect();
    origins
}

/// Why a lesson's record is stale. Without git only the matrix can have changed. `changed` is absent without commits to
/// compare, and empty where git does not know one of them.
fn changes(
    root: &Path,
    then: &Content,
    now: &Content,
    changed: Option<Option<&Changes>>,
    lesson: &Experiment,
    has_git: bool,
) -> Option<String> {
    if then.trees.is_none() {
        return Some("the record names no commit: it is old, or of a dirty tree".to_string());
    }
    let programs = programs(root, lesson);
    let mut reasons = match changed {
        Some(Some(code)) => [places(root, code, &programs), changed_lesson_files(then, now, &programs)].concat(),
        Some(None) => [changed_folders(then, now), changed_lesson_files(then, now, &programs)].concat(),
        None if has_git => vec!["files that are not committed".to_string()],
        None => Vec::new(),
    };
    let (matrix, name) = ("the matrix".to_string(), &lesson.name);
    reasons.extend((then.matrices.get(name) != now.matrices.get(name)).then_some(matrix));
    (!reasons.is_empty()).then(|| format!("changed since: {}", reasons.join(", ")))
}

/// What has changed in `src/` and `bins/`; `None` where git does not know one of these trees.
fn changed_code(root: &Path, then: &Trees, now: &Trees) -> Option<Changes> {
    let files = changed_files(root, then, now)?;
    let text = |trees, file: &str| file_at(root, trees, file).unwrap_or_default();
    Some(Changes::new(files.into_iter().map(|file| (file.clone(), text(then, &file), text(now, &file)))))
}

fn changed_folders(then: &Content, now: &Content) -> Vec<String> {
    let differs = |of: fn(&Trees) -> &String| then.trees.as_ref().map(of) != now.trees.as_ref().map(of);
    let (src, bins) = (differs(|trees| &trees.src).then_some("src/"), differs(|trees| &trees.bins).then_some("bins/"));
    src.into_iter().chain(bins).map(String::from).collect()
}

/// The folders and programs that have changed and that the lesson's rows come from.
fn places(root: &Path, code: &Changes, programs: &BTreeSet<String>) -> Vec<String> {
    // A program is named whole, the library by its folder.
    let place = |file: &str| match file.strip_prefix("src/").and_then(|file| file.split_once('/')) {
        Some((folder, _)) => format!("src/{folder}/"),
        None => file.to_string(),
    };
    let deciding = code.deciding(|file| decides(root, file, programs));
    deciding.into_iter().map(place).collect::<BTreeSet<_>>().into_iter().collect()
}

/// The files of `experiments/` that have changed and that the lesson names, or a folder that they are in.
fn changed_lesson_files(then: &Content, now: &Content, programs: &BTreeSet<String>) -> Vec<String> {
    let is_place = |place: &Path| {
        place.to_str().is_some_and(|place| place.starts_with(FILES_OF_LESSONS) && programs.contains(place))
    };
    let is_named = |path: &str| Path::new(path).ancestors().any(is_place);
    let changed = then.files.iter().filter(|(path, id)| now.files.get(*path) != Some(id) && is_named(path));
    changed.map(|(path, _)| path.clone()).collect()
}

/// The words of a lesson's command lines, the names of its programs among them; and those that a program of it names as
/// one that it starts, or as a folder of `experiments/`, or that a list among them names.
fn programs(root: &Path, lesson: &Experiment) -> BTreeSet<String> {
    let cases = lesson.cases(false);
    let words = cases.iter().flat_map(|case| [case.server.text(), case.client.text()]);
    let words = words.flat_map(|command| command.split(' ').chain(command.split([' ', '/']))).chain(IN_EVERY_RUN);
    // A flag of a program that was split has the name of the program that it starts.
    let mut programs: BTreeSet<String> = words.map(|word| word.trim_start_matches('-').to_string()).collect();
    for program in programs.clone() {
        let is_file = program.starts_with(FILES_OF_LESSONS);
        let path = if is_file { root.join(&program) } else { source(root, &program) };
        let text = fs::read_to_string(path).unwrap_or_default();
        // A script may speak of a program that it does not start, and a trial is told on its command line whom to start.
        let is_list = !is_file && program != "trial" || program.ends_with(".toml");
        let is_named = |word: &&str| word.starts_with(FILES_OF_LESSONS) || (is_list && source(root, word).exists());
        let ends: &[char] = if is_file { &['"', ' ', '\n'] } else { &['"'] };
        programs.extend(text.split(ends).filter(is_named).map(String::from));
    }
    programs
}

fn source(root: &Path, program: &str) -> PathBuf {
    root.join("bins").join(program).with_extension("rs")
}

/// Whether a change of this file may change the rows of a lesson that runs these programs. A folder of `src/` that has
/// the name of a program is a part of that one alone.
fn decides(root: &Path, file: &str, programs: &BTreeSet<String>) -> bool {
    let program =
        file.strip_prefix("bins/").and_then(|file| file.strip_suffix(".rs")).filter(|name| !name.contains('/'));
    let folder = file.strip_prefix("src/").and_then(|file| Some(file.split_once('/')?.0));
    if let Some((_, words)) = OF_WORDS.iter().find(|(place, _)| file.starts_with(place)) {
        return words.iter().any(|word| programs.contains(*word));
    }
    let of_one = program.or(folder.filter(|folder| source(root, folder).exists()));
    let makes_none = MAKES_NO_ROWS.iter().any(|place| file.starts_with(place));
    of_one.is_none_or(|name| programs.contains(name)) && !makes_none
}
