//! What a record was measured with, by its content: git's ids of `src/`, of `bins/` and of the files that lessons run,
//! and a hash of each lesson's matrix. They outlive a rebased or squashed commit. Here git is asked;
//! [`crate::lab::evidence::origin`] judges.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::lab::plan::experiment::{Experiment, measured_hash};

/// What decides the rows. The generated files below `experiments/` do not.
const MEASURED: [&str; 7] =
    ["src", "bins", "experiments", "Cargo.toml", "Cargo.lock", ":!experiments/record", ":!experiments/results"];

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Absent where git knows no `src/`, and in a record of a dirty tree: no commit has what that one measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trees: Option<Trees>,
    /// The hash of each lesson's matrix.
    pub matrices: BTreeMap<String, String>,
    /// The hashes of the programs and scenarios in `experiments/`, by path. Older records have none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Trees {
    pub src: String,
    pub bins: String,
}

impl Content {
    /// The content of the repository as it is.
    pub fn now(root: &Path, experiments: &[Experiment]) -> Content {
        let hash = |experiment: &Experiment| (experiment.name.clone(), experiment.measured_hash.clone());
        let id = |folder: &str| git(root, &["rev-parse", "--verify", "--quiet", &format!("HEAD:./{folder}")]);
        let trees = id("src").zip(id("bins")).map(|(src, bins)| Trees { src, bins });
        let trees = trees.filter(|_| dirty(root, experiments).is_empty());
        let files = trees.as_ref().map_or(BTreeMap::new(), |_| lesson_files(root));
        Content { trees, matrices: experiments.iter().map(hash).collect(), files }
    }
}

/// The committed files of `experiments/` that are no lesson and were not generated, with git's ids of their content.
fn lesson_files(root: &Path) -> BTreeMap<String, String> {
    let listed = git(root, &["ls-tree", "-r", "HEAD", "experiments/"]).unwrap_or_default();
    let file = |line: &str| {
        let (about, path) = line.split_once('\t')?;
        let is_other = path.ends_with(".md") || ["record/", "results/"].iter().any(|folder| path.contains(folder));
        let id = about.rsplit(' ').next()?;
        (!is_other).then(|| (path.to_string(), id.to_string()))
    };
    listed.lines().filter_map(file).collect()
}

/// The files below `src/` and `bins/` in which two contents differ; `None` where git does not know one of them.
pub fn changed_files(root: &Path, then: &Trees, now: &Trees) -> Option<Vec<String>> {
    let below = |folder: &str, then: &str, now: &str| {
        let names = git(root, &["diff", "--name-only", "--no-renames", then, now])?;
        Some(names.lines().map(|name| format!("{folder}/{name}")).collect::<Vec<_>>())
    };
    Some([below("src", &then.src, &now.src)?, below("bins", &then.bins, &now.bins)?].concat())
}

/// The text of a file of `src/` or `bins/` as these trees have it; `None` where they have none.
pub fn file_at(root: &Path, trees: &Trees, path: &str) -> Option<String> {
    let (folder, name) = path.split_once('/')?;
    let tree = if folder == "src" { &trees.src } else { &trees.bins };
    git(root, &["cat-file", "blob", &format!("{tree}:{name}")])
}

/// The commit's name, with `-dirty` where something else than it is measured; empty without git.
pub fn commit(root: &Path, experiments: &[Experiment]) -> String {
    let mark = if dirty(root, experiments).is_empty() { "" } else { "-dirty" };
    git(root, &["rev-parse", "--short=12", "HEAD"]).map_or(String::new(), |commit| commit + mark)
}

/// The files that decide the rows of these lessons and are not as the commit has them. A lesson's text does not decide
/// them: its matrix does, as far as it says what to measure. None where there is no git.
pub fn dirty(root: &Path, experiments: &[Experiment]) -> Vec<String> {
    let arguments = ["status", "--porcelain", "--no-renames", "--untracked-files=all", "--"];
    let status = git(root, &[&arguments[..], &MEASURED].concat()).unwrap_or_default();
    let paths = status.lines().filter_map(|line| line.trim_start().split_once(' ')).map(|(_, path)| path.trim());
    let decides = |path: &&str| match path.strip_suffix(".md").and_then(|path| path.rsplit_once("experiments/")) {
        Some((_, name)) => {
            let its = experiments.iter().find(|experiment| experiment.name == name);
            its.is_some_and(|its| matrix_at(root, "HEAD", name).as_ref() != Some(&its.measured_hash))
        }
        None => true,
    };
    paths.filter(decides).map(str::to_string).collect()
}

/// The hash of a lesson's matrix as a commit has it.
pub fn matrix_at(root: &Path, commit: &str, lesson: &str) -> Option<String> {
    measured_hash(&git(root, &["show", &format!("{commit}:./experiments/{lesson}.md")])?)
}

/// A program of the toolkit that is older than its source: it is not what the commit says.
pub fn older_than_its_source(root: &Path) -> Option<String> {
    let programs = std::env::current_exe().ok()?.parent()?.to_path_buf();
    let library = newest(&root.join("src"));
    fs::read_dir(root.join("bins")).ok()?.flatten().map(|entry| entry.path()).find_map(|source| {
        let program = programs.join(source.file_stem()?);
        let built = modified(&program)?;
        let (changed, source) = library.clone().into_iter().chain([(modified(&source)?, source)]).max()?;
        (built < changed).then(|| {
            let what = format!("{} is older than {}", program.display(), source.display());
            format!("{what}; build first: cargo build --release --bins")
        })
    })
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().ok()?.modified().ok()
}

/// The Rust file below a folder that was changed last.
fn newest(folder: &Path) -> Option<(SystemTime, PathBuf)> {
    let of = |path: PathBuf| match path.is_dir() {
        true => newest(&path),
        false => Some((modified(&path)?, path)).filter(|(_, path)| path.extension().is_some_and(|end| end == "rs")),
    };
    fs::read_dir(folder).ok()?.flatten().filter_map(|entry| of(entry.path())).max()
}

/// Every commit that the current one descends from, the newest first, with its trees where it has both.
pub struct History {
    pub is_shallow: bool,
    commits: Vec<(String, Trees)>,
}

impl History {
    /// `None` where there is no git, or no commit.
    pub fn read(root: &Path) -> Option<History> {
        let commits = git(root, &["rev-list", "HEAD"])?;
        let prefix = git(root, &["rev-parse", "--show-prefix"]).unwrap_or_default();
        let names: String =
            commits.lines().map(|commit| format!("{commit}:{prefix}src\n{commit}:{prefix}bins\n")).collect();
        let ids = git_with_input(root, &["cat-file", "--batch-check=%(objectname)"], names)?;
        let ids: Vec<&str> = ids.lines().collect();
        let trees = |pair: &[&str]| {
            let [src, bins] = pair else { return None };
            let is_there = !src.ends_with("missing") && !bins.ends_with("missing");
            is_there.then(|| Trees { src: src.to_string(), bins: bins.to_string() })
        };
        let commits = commits.lines().zip(ids.chunks(2));
        let commits = commits.filter_map(|(commit, pair)| Some((commit.to_string(), trees(pair)?))).collect();
        let is_shallow = git(root, &["rev-parse", "--is-shallow-repository"]).as_deref() == Some("true");
        Some(History { is_shallow, commits })
    }

    /// Whether a commit has these trees and this matrix of the lesson.
    pub fn has(&self, root: &Path, trees: &Trees, lesson: &str, matrix: &str) -> bool {
        let mut with_trees = self.commits.iter().filter(|(_, its)| its == trees);
        with_trees.any(|(commit, _)| matrix_at(root, commit, lesson).as_deref() == Some(matrix))
    }
}

/// What git prints; `None` when it fails or is not there.
fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    git_with_input(root, arguments, String::new())
}

fn git_with_input(root: &Path, arguments: &[&str], input: String) -> Option<String> {
    let mut command = Command::new("git");
    command.arg("-C").arg(root).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut git = command.spawn().ok()?;
    let mut stdin = git.stdin.take()?;
    // Beside the reading: git answers while it is asked, and a full pipe would stop both. A git that has failed reads
    // nothing, and its status says so.
    let asking = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = git.wait_with_output().ok()?;
    let _ = asking.join();
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim_end().to_string())
}
