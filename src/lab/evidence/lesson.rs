//! What is known of one lesson: its text, its newest record, and what the rows give: tables, pictures, judged claims,
//! and the answer's numbers. Each page shows a part of it.

use crate::lab::evidence::answer::fill;
use crate::lab::evidence::claims::{JudgedClaim, judge};
use crate::lab::evidence::pictures::{Drawn, draw_all};
use crate::lab::evidence::table::{self, Table};
use crate::lab::plan::experiment::Experiment;
use crate::lab::plan::picture::Picture;
use crate::lab::record::{Record, Row, newest};

pub struct Lesson<'a> {
    pub experiment: &'a Experiment,
    pub record: Option<&'a Record>,
    pub tables: Vec<Table>,
    pub judged: Vec<JudgedClaim<'a>>,
    pub pictures: Vec<Drawn>,
    /// The lesson's answer with the numbers of the record; empty where the lesson has none.
    pub answer: String,
}

impl<'a> Lesson<'a> {
    pub fn of(experiment: &'a Experiment, records: &'a [Record]) -> Lesson<'a> {
        let record = newest(records, &experiment.name);
        let tables = record.map_or(Vec::new(), |record| tables(experiment, record));
        let judged = judge(experiment, record.map_or(&[], |record| &record.rows));
        let answer = fill(&experiment.answer, experiment, &judged);
        let pictures = record.map_or(Vec::new(), |record| draw_all(experiment, record));
        Lesson { experiment, record, tables, judged, pictures, answer }
    }

    pub fn all(experiments: &'a [Experiment], records: &'a [Record]) -> Vec<Lesson<'a>> {
        experiments.iter().map(|experiment| Lesson::of(experiment, records)).collect()
    }

    /// `06`.
    pub fn number(&self) -> &str {
        self.experiment.name.split('-').next().unwrap_or_default()
    }

    /// The file of a picture, beside the lesson's page.
    pub fn picture_file(&self, picture: &Drawn) -> String {
        format!("{}-{}.svg", self.number(), picture.id)
    }

    /// The command that measures it again.
    pub fn command(&self) -> String {
        let name = &self.experiment.name;
        match self.record {
            Some(record) => {
                let quick = if record.header.scale == "quick" { " --quick" } else { "" };
                format!("lab run {name}{quick} --seed {}", record.header.seed)
            }
            None => format!("lab run {name}"),
        }
    }

    /// The answer's first sentences: as few as say something.
    pub fn short_answer(&self) -> &str {
        const ENOUGH: usize = 140;
        let answer = &self.answer;
        let ends = answer.match_indices(". ").map(|(at, _)| at + 1).filter(|end| *end >= ENOUGH);
        let mut ends = ends.filter(|end| answer[..*end].matches('`').count().is_multiple_of(2));
        ends.next().map_or(answer, |end| &answer[..end])
    }

    /// The pictures of the lesson for which its record has nothing, a line each.
    pub fn not_drawn(&self) -> impl Iterator<Item = String> {
        let is_drawn = |picture: &&Picture| self.pictures.iter().any(|drawn| drawn.id == picture.id);
        let missing =
            self.experiment.pictures.iter().filter(move |picture| self.record.is_some() && !is_drawn(picture));
        let again = format!("`lab run {}`", self.experiment.name);
        missing.map(move |picture| {
            format!("Not drawn, because the record does not have its data: {}. {again} measures it.", picture.title)
        })
    }

    /// An interrupted run says so.
    pub fn incomplete(&self) -> Option<String> {
        let name = &self.experiment.name;
        let record = self.record?;
        let rows = rows_of(record, name).count();
        let planned = record.header.planned.get(name).copied().unwrap_or(rows);
        (rows < planned).then(|| format!("**The run was interrupted after {rows} of {planned} rows.**"))
    }
}

/// How RESULTS.md reaches the other files.
pub struct Links {
    /// The folder of the lessons' pages.
    pub results: &'static str,
    pub records: &'static str,
}

impl Links {
    /// In the repository.
    pub const REPOSITORY: Links = Links { results: "experiments/results", records: "experiments/record" };

    /// In a folder given with `--out`.
    pub const OF_A_RUN: Links = Links { results: "results", records: "record" };

    pub fn page(&self, experiment: &str) -> String {
        format!("{}/{experiment}.md", self.results)
    }

    /// A file beside the lessons' pages.
    pub fn beside(&self, file: &str) -> String {
        format!("{}/{file}", self.results)
    }

    pub fn record(&self, file: &str) -> String {
        format!("{}/{file}", self.records)
    }
}

pub fn rows_of<'a>(record: &'a Record, experiment: &'a str) -> impl Iterator<Item = &'a Row> {
    record.rows.iter().filter(move |row| row.experiment == experiment)
}

pub fn tables(experiment: &Experiment, record: &Record) -> Vec<Table> {
    let rows_of_table =
        |id: &str| -> Vec<&Row> { rows_of(record, &experiment.name).filter(|row| row.table == id).collect() };
    experiment.matrix.tables.iter().map(|spec| table::of(spec, &rows_of_table(&spec.id))).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::lab::evidence::columns::tests::row;
    use crate::lab::plan::experiment::tests::parse_lesson;
    use crate::lab::record::Header;
    use crate::lab::record::content::Content;

    pub(crate) fn experiment() -> Experiment {
        parse_lesson("server = [{ run = \"sync\" }]\nload = \"loadgen\"\ncolumns = [\"qps\"]").unwrap()
    }

    pub(crate) fn record(planned: usize) -> Record {
        let mut row = row();
        (row.experiment, row.table) = ("02-keep-alive".to_string(), "t".to_string());
        let header = Header {
            scale: "quick".to_string(),
            seed: 7,
            planned: [("02-keep-alive".to_string(), planned)].into(),
            content: Content {
                matrices: [("02-keep-alive".to_string(), experiment().measured_hash)].into(),
                ..Content::default()
            },
            ..Header::default()
        };
        Record { file: "x-quick.jsonl".to_string(), header, rows: vec![row] }
    }

    #[test]
    fn the_short_answer_ends_with_a_sentence_and_not_inside_a_command() {
        let (short, command) = ("s".repeat(100), "c".repeat(130));
        let answer = format!("{short}. `{command}. x` wakes 31.8. The other one. No more.");
        let experiment = Experiment { answer, ..experiment() };
        let expected = format!("{short}. `{command}. x` wakes 31.8.");
        assert_eq!(Lesson::of(&experiment, &[]).short_answer(), expected);
    }
}
