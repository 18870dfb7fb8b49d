//! Whether records come from code that the history has, and whether they are still true of the code as it is.

use std::collections::BTreeMap;
use std::path::Path;

use crate::lab::plan::experiment::Experiment;
use crate::lab::record::content::{Content, History};
use crate::lab::record::{Record, newest};

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
    for experiment in experiments {
        let name = experiment.name.as_str();
        let Some(record) = newest(records, name) else { continue };
        let then = &record.header.content;
        if let Some(why) = changes(then, &now, name, has_git) {
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

/// Why a lesson's record is stale. Without git only the matrix can have changed.
fn changes(then: &Content, now: &Content, lesson: &str, has_git: bool) -> Option<String> {
    let Some(measured) = &then.trees else {
        return Some("the record names no commit: it is old, or of a dirty tree".to_string());
    };
    let mut changed = Vec::new();
    match &now.trees {
        Some(trees) => {
            changed.extend((trees.src != measured.src).then_some("src/"));
            changed.extend((trees.bins != measured.bins).then_some("bins/"));
        }
        None if has_git => changed.push("files that are not committed"),
        None => {}
    }
    changed.extend((then.matrices.get(lesson) != now.matrices.get(lesson)).then_some("the matrix"));
    (!changed.is_empty()).then(|| format!("changed since: {}", changed.join(", ")))
}
