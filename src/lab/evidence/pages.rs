//! All files that `lab report` writes, each as its path and its text. Nothing here is kept from what stands on disk: a
//! typed number does not survive, and `lab report --check` finds it.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::failure::Failure;
use crate::lab::evidence::claims::JudgedClaim;
use crate::lab::evidence::lesson::{Lesson, Links};
use crate::lab::evidence::markdown::{bullet, commands, paragraph, section, table};
use crate::lab::evidence::overview;
use crate::lab::evidence::pictures::Drawn;
use crate::lab::plan::experiment::Experiment;
use crate::lab::record::Record;

/// A file that is written.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    pub path: PathBuf,
    pub text: String,
}

/// Where RESULTS.md, the lessons' pages and their records are.
pub struct OutputFolder {
    folder: PathBuf,
    links: Links,
    is_repository: bool,
}

impl OutputFolder {
    /// In the repository, or in the folder given with `--out`.
    pub fn new(root: &Path, out: Option<&Path>) -> OutputFolder {
        let links = if out.is_some() { Links::OF_A_RUN } else { Links::REPOSITORY };
        OutputFolder { folder: out.unwrap_or(root).to_path_buf(), links, is_repository: out.is_none() }
    }

    pub fn results(&self) -> PathBuf {
        self.folder.join("RESULTS.md")
    }

    pub fn records(&self) -> PathBuf {
        self.folder.join(self.links.records)
    }

    /// Every file as the records give it.
    pub fn pages(&self, experiments: &[Experiment], records: &[Record]) -> Vec<Page> {
        let lessons = Lesson::all(experiments, records);
        let mut pages = vec![Page { path: self.results(), text: overview::render(&lessons, &self.links) }];
        for lesson in lessons.iter().filter(|lesson| lesson.record.is_some()) {
            let path = self.folder.join(self.links.page(&lesson.experiment.name));
            pages.push(Page { path, text: render(lesson, self.is_repository) });
            for picture in &lesson.pictures {
                let path = self.folder.join(self.links.beside(&lesson.picture_file(picture)));
                pages.push(Page { path, text: picture.svg.clone() });
            }
        }
        pages
    }

    /// Files in the results' folder that no record gives: a lesson's page that has a new name now.
    fn left_over(&self, pages: &[Page]) -> Vec<PathBuf> {
        let folder = fs::read_dir(self.folder.join(self.links.results));
        let mut files: Vec<PathBuf> =
            folder.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
        files.retain(|path| !pages.iter().any(|page| page.path == *path));
        files.sort();
        files
    }

    /// What differs from the files on disk, a line each.
    pub fn differences(&self, pages: &[Page]) -> Vec<String> {
        let differs = |page: &&Page| fs::read_to_string(&page.path).ok().as_ref() != Some(&page.text);
        let changed = pages.iter().filter(differs);
        let changed = changed.map(|page| format!("{} is not what the records give", page.path.display()));
        let left_over = self.left_over(pages).into_iter();
        changed.chain(left_over.map(|path| format!("{} belongs to no lesson", path.display()))).collect()
    }

    /// Writes what differs, and removes what is left over.
    pub fn write(&self, pages: &[Page]) -> Result<(), String> {
        let results = self.folder.join(self.links.results);
        fs::create_dir_all(&results).map_err(|error| failed("create", &results, error))?;
        for Page { path, text } in pages {
            replace(path, text)?;
        }
        for path in self.left_over(pages) {
            fs::remove_file(&path).map_err(|error| failed("remove", &path, error))?;
        }
        Ok(())
    }
}

/// The old file stays whole until the new one is: a full disk loses no page, and no lesson.
pub fn replace(path: &Path, text: &str) -> Result<(), String> {
    match fs::read_to_string(path) {
        Ok(old) if old == text => return Ok(()),
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed("read", path, error)),
        _ => {}
    }
    let new = path.with_extension("new");
    let written = fs::write(&new, text).and_then(|()| fs::rename(&new, path));
    written.map_err(|error| {
        let _ = fs::remove_file(&new);
        failed("write", path, error)
    })
}

fn failed(what: &str, path: &Path, error: io::Error) -> String {
    Failure::new(format_args!("{what} {}", path.display()), error).into()
}

/// A heading and what stands below it.
pub struct PageSection {
    pub level: usize,
    pub title: String,
    pub body: String,
}

/// The page of one lesson. Only in the repository is the lesson itself beside it.
fn render(lesson: &Lesson, is_repository: bool) -> String {
    let text = |part: PageSection| format!("{} {}\n\n{}", "#".repeat(part.level), part.title, part.body);
    let parts: Vec<String> = parts(lesson, is_repository).into_iter().map(text).collect();
    parts.join("\n").trim_end().to_string() + "\n"
}

/// The same in parts, those that are empty left out.
pub fn parts(lesson: &Lesson, is_repository: bool) -> Vec<PageSection> {
    let part = |level, title: &str, body| PageSection { level, title: title.to_string(), body };
    let shared = shared_notes(lesson);
    let title = format!("{} · {}", lesson.number(), lesson.experiment.title);
    let mut parts = vec![part(1, &title, beginning(lesson)), part(2, "Claims", claims(lesson))];
    parts.retain(|part| !part.body.is_empty());
    if lesson.record.is_none() {
        return parts;
    }
    parts.push(part(2, "Tables", String::new()));
    parts.extend(lesson.tables.iter().map(|table| part(3, &table.title, section(table, &shared))));
    parts.push(part(2, "Conditions", conditions(lesson, &shared, is_repository)));
    parts.push(part(2, "Commands of the first lines", all_commands(lesson)));
    parts.push(part(2, "The columns", definitions(lesson)));
    parts.retain(|part| !part.body.is_empty() || part.title == "Tables");
    parts
}

/// Question, answer, pictures.
fn beginning(lesson: &Lesson) -> String {
    let answer = Some(&lesson.answer).filter(|answer| !answer.is_empty()).map(|answer| format!("**Answer.** {answer}"));
    let unmeasured = lesson.record.is_none().then(|| format!("Not measured yet: `{}`.", lesson.command()));
    let texts = [Some(lesson.experiment.question.clone()), answer, lesson.incomplete(), unmeasured];
    let texts = texts.into_iter().flatten().map(|text| paragraph(&text));
    let picture = |picture: &Drawn| format!("![{}]({})\n", picture.title, lesson.picture_file(picture));
    let not_drawn = lesson.not_drawn().map(|line| paragraph(&line));
    texts.chain(lesson.pictures.iter().map(picture)).chain(not_drawn).collect::<Vec<_>>().join("\n")
}

fn conditions(lesson: &Lesson, shared: &[String], is_repository: bool) -> String {
    let file = lesson.record.map_or("", |record| &record.file);
    let name = &lesson.experiment.name;
    let why = if is_repository { format!(" The lesson says why: [{name}](../{name}.md).") } else { String::new() };
    let origin = format!(
        "The raw rows, a line of JSON for each run: [{file}](../record/{file}). Measured by `{}`.{why}",
        lesson.command()
    );
    let pairs = "The runs were made in blocks, each with one run of every line in random order (further blocks: only of \
                 the lines that an undecided claim needs). A ratio is taken within a block, and the median of all blocks \
                 is shown. Where a table has a baseline, a run of it stands in each group: the lines directly before and \
                 after are compared with that run. `block` and `group` of a raw row say where it belongs.";
    let noise = "Counts (switches, wake-ups, connections, losses) survive a noisy machine. Times and rates do not: compare \
                 ratios of lines of one table.";
    [&[origin, pairs.to_string()][..], shared, &[noise.to_string()]].concat().iter().map(|line| bullet(line)).collect()
}

/// Each claim with its verdict, and below them why those do not hold that do not.
fn claims(lesson: &Lesson) -> String {
    if lesson.judged.is_empty() {
        return String::new();
    }
    let lines: Vec<Vec<String>> = lesson.judged.iter().map(|judged| judged.cells().into()).collect();
    let table = table(&JudgedClaim::HEADERS.map(String::from), &lines, |header| header != "measured");
    let remark = |judged: &JudgedClaim| {
        let source = judged.claim.source.as_ref().map(|source| format!("Source: {source}."));
        let why = judged.why().map(|why| format!("*{}*: {why}", judged.verdict.name()));
        let remarks: Vec<String> = why.into_iter().chain(source).collect();
        (!remarks.is_empty()).then(|| bullet(&format!("{}: {}", judged.claim.says, remarks.join(" "))))
    };
    let remarks: String = lesson.judged.iter().filter_map(remark).collect();
    if remarks.is_empty() { table } else { format!("{table}\n{remarks}") }
}

/// What every table of the lesson says: below each it would be read several times.
fn shared_notes(lesson: &Lesson) -> Vec<String> {
    let [first, rest @ ..] = &lesson.tables[..] else { return Vec::new() };
    if rest.is_empty() {
        return Vec::new();
    }
    let is_shared = |note: &&String| rest.iter().all(|table| table.notes.contains(*note));
    first.notes.iter().filter(is_shared).cloned().collect()
}

/// How the first line of each table was measured, so that it can be tried by hand.
fn all_commands(lesson: &Lesson) -> String {
    let pinned = "Each server takes a free port, so the port differs from run to run. No `taskset` stands here, because the \
                  lab itself pins both programs before they start, to the CPUs that the notes name.";
    let mut text = String::new();
    for table in lesson.tables.iter().filter(|table| !table.commands.is_empty()) {
        let examples: Vec<String> = table.commands.iter().map(commands).collect();
        text += &format!("{}\n{}\n", paragraph(&format!("{}:", table.title)), examples.join("\n"));
    }
    if text.is_empty() { text } else { format!("{}\n{text}", paragraph(pinned)) }
}

/// What the columns mean, each once, in the order in which a reader meets them.
fn definitions(lesson: &Lesson) -> String {
    let mut lines: Vec<String> = Vec::new();
    for (header, definition) in lesson.tables.iter().flat_map(|table| &table.definitions) {
        let line = bullet(&format!("**{header}**: {definition}"));
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::evidence::lesson::tests::{experiment, record};

    fn page(planned: usize) -> String {
        let records = [record(planned)];
        render(&Lesson::of(&experiment(), &records), true)
    }

    #[test]
    fn a_page_says_how_it_was_made_and_whether_it_is_complete() {
        let text = page(2);
        assert!(text.contains("| prefork --workers 3 | 90 |"), "{text}");
        assert!(text.contains("`lab run 02-keep-alive --quick --seed 7`"), "{text}");
        assert!(text.contains("interrupted after 1 of 2 rows"), "{text}");
        assert!(text.contains("- **requests/s**: ") && text.contains("[02-keep-alive](../02-keep-alive.md)"), "{text}");
        assert!(!page(1).contains("interrupted"));
    }

    #[test]
    fn a_tampered_page_is_found_and_written_again_and_a_page_of_no_lesson_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let scratch = folder.path();
        let place = OutputFolder::new(scratch, Some(scratch));
        let pages = place.pages(&[experiment()], &[record(1)]);
        assert_eq!(place.differences(&pages).len(), 2);
        place.write(&pages).unwrap();
        assert_eq!(place.differences(&pages), Vec::<String>::new());
        let (path, stranger) = (scratch.join("results/02-keep-alive.md"), scratch.join("results/00-old.md"));
        fs::write(&path, pages[1].text.replace("| 90 |", "| 99 |")).unwrap();
        fs::write(&stranger, "").unwrap();
        let found = place.differences(&pages).join("\n");
        assert!(found.contains("02-keep-alive.md is not what") && found.contains("00-old.md belongs to no"), "{found}");
        place.write(&pages).unwrap();
        assert_eq!(place.differences(&pages), Vec::<String>::new());
        assert!(!stranger.exists());
    }

    #[test]
    fn a_place_that_cannot_be_written_is_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let scratch = folder.path();
        fs::write(scratch.join("results"), "").unwrap();
        let error = OutputFolder::new(scratch, Some(scratch)).write(&[]).unwrap_err();
        assert!(error.starts_with("create ") && error.lines().count() == 1, "{error}");
    }
}
