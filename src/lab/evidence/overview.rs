//! RESULTS.md: each lesson's question and answer, and which machine and record the numbers come from.

use std::collections::BTreeMap;

use crate::lab::evidence::claims::JudgedClaim;
use crate::lab::evidence::lesson::{Lesson, Links};
use crate::lab::evidence::markdown::{bullet, paragraph, table};
use crate::lab::evidence::pictures::escaped;
use crate::lab::evidence::table::speeds;
use crate::lab::record::fingerprint::Fingerprint;
use crate::lab::record::{Record, Row};
use crate::stats::RUNS_FOR_INTERVAL;

const BIAS: &str = include_str!("bias.md");

pub fn render(lessons: &[Lesson], links: &Links) -> String {
    let sections: String = lessons.iter().map(|lesson| section(lesson, links)).collect();
    before(lessons, links) + &sections + "\n" + &after(lessons)
}

/// What a reader must know first: how the page came about, the machine, the records.
pub fn before(lessons: &[Lesson], links: &Links) -> String {
    let how = format!(
        "Written by `lab report` from the records; not one number here was typed. A number is the median of \
               several runs of fresh processes; the brackets behind it are its 95 % interval, or with fewer than \
               {RUNS_FOR_INTERVAL} runs [the smallest, the largest]. A ratio is the median of the ratios within a block \
               of runs (one run of each line, close together), so it may differ from the ratio of two medians. A claim \
               `holds` when the whole bracket meets what is required, `fails` when none of it does, and is `undecided` \
               otherwise; `seen once` has one run and no bracket, `skipped` was not measured, for the reason given. With \
               three runs `holds` says no more than that all three agree. D is 0 when each worker gets the same number \
               of connections, about 1 by chance, and larger when few get most; p50 and p99 are the times that 50 % and \
               99 % of the requests do not exceed. GLOSSARY.md has the other words. Each lesson's page has all tables, \
               the commands behind them and the definitions. `lab report --check` compares every page with the record."
    );
    let records = records(lessons, links);
    format!("# Results\n\n{}{}\n## Which record\n\n{records}", paragraph(&how), machines(lessons))
}

/// What concerns all lessons: the figures of others, and our bias.
pub fn after(lessons: &[Lesson]) -> String {
    published(lessons) + BIAS
}

fn section(lesson: &Lesson, links: &Links) -> String {
    let experiment = lesson.experiment;
    let title = format!("{} · {}", lesson.number(), experiment.title);
    if lesson.record.is_none() {
        let command = lesson.command();
        return format!("\n## {title}\n\n")
            + &paragraph(&format!("{} Not measured yet: `{command}`.", experiment.question));
    }
    let text =
        [Some(format!("*{}*", experiment.question)), Some(lesson.short_answer().to_string()), lesson.incomplete()];
    let text: Vec<String> = text.into_iter().flatten().filter(|part| !part.is_empty()).collect();
    let picture = lesson.pictures.first();
    let picture =
        picture.map(|picture| format!(" ![{}]({})", picture.title, links.beside(&lesson.picture_file(picture))));
    // No empty line below, and the picture behind the text: there are only so many on a page that is read at once.
    let heading = format!("\n## [{title}]({})\n", links.page(&experiment.name));
    let text = paragraph(&text.join(" "));
    heading + text.trim_end() + &picture.unwrap_or_default() + "\n" + &claims(lesson)
}

fn claims(lesson: &Lesson) -> String {
    on_one_line(JudgedClaim::HEADERS, lesson.judged.iter().map(JudgedClaim::cells))
}

/// A table on one line: a line for each row would make this page too long to be read at once. Without a row, nothing.
fn on_one_line<const N: usize>(headers: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let row = |cells: [String; N]| {
        format!("<tr><td>{}</td></tr>", cells.each_ref().map(|cell| escaped(cell)).join("</td><td>"))
    };
    let rows: String = rows.map(row).collect();
    if rows.is_empty() {
        return rows;
    }
    // No empty line above: an HTML table ends a paragraph by itself (CommonMark, 4.6).
    format!("<table><tr><th>{}</th></tr>{rows}</table>\n", headers.join("</th><th>"))
}

/// What others have published, beside what was measured here.
fn published(lessons: &[Lesson]) -> String {
    let all = lessons.iter().flat_map(|lesson| lesson.judged.iter().map(move |judged| (lesson, judged)));
    let row = |(lesson, judged): (&Lesson, &JudgedClaim)| -> Option<[String; 6]> {
        let source = judged.claim.source.clone()?;
        let unit = judged.bar().map_or("", |bar| &bar.unit);
        let figure = judged.claim.published.map(|figure| format!("{figure} {unit}").trim_end().to_string());
        let (lesson, verdict) = (lesson.number().to_string(), judged.verdict.name().to_string());
        let figure = figure.unwrap_or_else(|| "–".to_string());
        Some([lesson, judged.claim.says.clone(), source, figure, judged.measured(), verdict])
    };
    let headers = ["lesson", "claim", "source", "published", "measured", "here"];
    let figures = on_one_line(headers, all.filter_map(row));
    if figures.is_empty() { figures } else { format!("## Published figures\n\n{figures}\n") }
}

/// Which lesson comes from which record and commit; a line for each record.
fn records(lessons: &[Lesson], links: &Links) -> String {
    let mut of_record: Vec<(&Record, Vec<String>)> = Vec::new();
    for (lesson, record) in lessons.iter().filter_map(|lesson| Some((lesson, lesson.record?))) {
        let link = format!("[{}]({})", lesson.number(), links.page(&lesson.experiment.name));
        match of_record.iter_mut().find(|(known, _)| known.file == record.file) {
            Some((_, of)) => of.push(link),
            None => of_record.push((record, vec![link])),
        }
    }
    if of_record.is_empty() {
        return "Nothing was measured yet.\n".to_string();
    }
    let line = |(record, lessons): &(&Record, Vec<String>)| {
        vec![
            lessons.join(", "),
            format!("[{}]({})", record.file, links.record(&record.file)),
            format!("{}, {}", record.header.scale, record.header.date),
            format!("`{}`", record.header.machine.commit),
        ]
    };
    let lines: Vec<Vec<String>> = of_record.iter().map(line).collect();
    table(&["lessons", "record", "run", "commit"].map(String::from), &lines, |_| true)
}

/// Each machine once, with its lessons where there are several.
fn machines(lessons: &[Lesson]) -> String {
    let mut described: Vec<(Fingerprint, Vec<&Lesson>)> = Vec::new();
    for (lesson, record) in lessons.iter().filter_map(|lesson| Some((lesson, lesson.record?))) {
        // The same machine at another commit is the same machine.
        let machine = Fingerprint { commit: String::new(), ..record.header.machine.clone() };
        match described.iter_mut().find(|(known, _)| *known == machine) {
            Some((_, of)) => of.push(lesson),
            None => described.push((machine, vec![lesson])),
        }
    }
    let several = described.len() > 1;
    let mut text = String::new();
    let mut known: Vec<String> = Vec::new();
    for (machine, of) in &described {
        let numbers: Vec<&str> = of.iter().map(|lesson| lesson.number()).collect();
        let whose = if several {
            format!(" ({} {})", if of.len() > 1 { "lessons" } else { "lesson" }, numbers.join(", "))
        } else {
            String::new()
        };
        let lines = machine_lines(machine, of);
        text += &format!("\n## The machine{whose}\n\n");
        text.extend(lines.iter().filter(|line| !known.contains(line)).map(|line| bullet(line)));
        if !known.is_empty() {
            text += &bullet("all else as above");
        }
        known.extend(lines);
    }
    text
}

fn machine_lines(machine: &Fingerprint, lessons: &[&Lesson]) -> Vec<String> {
    let pairs = |map: &BTreeMap<String, String>| {
        map.iter().map(|(key, value)| format!("{key} = {value}")).collect::<Vec<_>>().join("; ")
    };
    let mut records: Vec<&Record> = lessons.iter().filter_map(|lesson| lesson.record).collect();
    records.dedup_by_key(|record| &record.file);
    let rows: Vec<&Row> = records.iter().flat_map(|record| &record.rows).collect();
    let steal: u64 = rows.iter().map(|row| row.machine.steal_ticks).sum();
    let cpus: Vec<String> = machine.allowed_cpus.iter().map(usize::to_string).collect();
    let hardware = format!("{} MiB of memory; kernel {}; steal: {steal} ticks", machine.memory_mib, machine.kernel);
    let lines = [
        format!("CPU: {}, {} of them ({}); {hardware}", machine.cpu, cpus.len(), cpus.join(", ")),
        format!("mitigations: {}", pairs(&machine.mitigations)),
        format!("sysctls: {}", pairs(&machine.sysctls)),
        format!(
            "open files: {} per process, as {}; built by {}, {} profile",
            machine.open_files, machine.user, machine.rustc, machine.profile
        ),
    ];
    lines.into_iter().chain(speeds(&rows)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::evidence::lesson::tests::{experiment, record};
    use crate::lab::plan::experiment::Experiment;

    #[test]
    fn each_lesson_has_its_question_its_answer_and_a_link() {
        let experiment = Experiment { answer: "One. Two. Three.".to_string(), ..experiment() };
        let records = [record(2)];
        let text = render(&[Lesson::of(&experiment, &records)], &Links::OF_A_RUN);
        let unwrapped = text.replace('\n', " ");
        assert!(
            unwrapped.contains("*Why so? Or not?* One. Two. Three. **The run was interrupted after 1 of 2 rows.**"),
            "{text}"
        );
        assert!(text.contains("[x-quick.jsonl](record/x-quick.jsonl)"), "{text}");
        assert_eq!(text.matches("## The machine").count(), 1);
        assert!(text.contains("## Bias"));
    }

    #[test]
    fn a_lesson_without_a_record_says_so() {
        let text = render(&[Lesson::of(&experiment(), &[])], &Links::OF_A_RUN);
        assert!(text.contains("Not measured yet: `lab run 02-keep-alive`"), "{text}");
    }
}
