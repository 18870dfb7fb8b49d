//! What each number of the report means (`--explain`), in the order of the text report, named as the JSON names it.

use std::fmt::Write;

use crate::load::verdict;
use crate::metrics::{INTERVAL, REPORT};
use crate::terminal::wrapped;

const WIDTH: usize = 100;
const INDENT: usize = 6;

pub fn explain() -> String {
    let mut text = String::from(
        "Every number of the report by its name in the JSON (--format json). Counts are totals; times end in their unit.\n",
    );
    for section in REPORT.iter().chain(INTERVAL) {
        let _ = writeln!(text, "\n{}", section.title.to_uppercase());
        for metric in section.metrics {
            define(&mut text, metric.key, &format!("{} {}", metric.definition, metric.remark));
        }
        if section.title == "Trust" {
            for rule in &verdict::RULES {
                define(&mut text, &format!("check {}", rule.name), &format!("{}.", (rule.limit)()));
            }
        }
    }
    text
}

fn define(text: &mut String, key: &str, definition: &str) {
    let _ = writeln!(text, "  {key}");
    for line in wrapped(&format!("{:INDENT$}{}", "", definition.trim_end()), WIDTH, INDENT) {
        let _ = writeln!(text, "{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{
        Check, DeadlineCounts, Evenness, EvennessPair, Latency, LoadReport, Lost, RunInfo, RunPart, SlowCounts,
        TimeSeries, Traced, Trust, WorkerShare, WorstSecond,
    };
    use serde_json::Value;

    /// A report in which nothing is absent.
    fn full() -> LoadReport {
        let mut report = LoadReport {
            offered_per_s: Some(1.0),
            deadline: Some(DeadlineCounts::default()),
            pipeline: Some(2),
            evenness: Some(EvennessPair { connections: Evenness::default(), requests: Evenness::default() }),
            trace: vec![Traced { worker: Some(1), ..Traced::default() }],
            order: vec![1],
            wrong_bodies: 1,
            lost: vec![Lost { client: Some("x".into()), worker: Some(1), ..Lost::default() }],
            worst_second: Some(WorstSecond::default()),
            longest_silence_ms: Some(1),
            time_series: Some(TimeSeries { answered: vec![1], p99_us: vec![1], ..TimeSeries::default() }),
            latency_quantiles_us: vec![1.0],
            slow: vec![SlowCounts { closed_after_ms: Some(1.0), ..SlowCounts::default() }],
            trust: Some(Trust { checks: vec![Check::default()], ..Trust::default() }),
            run: Some(RunInfo {
                start_at_unix_ns: Some(1),
                merged_from: Some(2),
                parts: vec![RunPart::default()],
                ..RunInfo::default()
            }),
            ..LoadReport::default()
        };
        let share = WorkerShare { latency_us: Some(Latency::default()), ..WorkerShare::default() };
        report.workers.insert("0".into(), share);
        let errors = &mut report.errors;
        for phase in [&mut errors.connect, &mut errors.write, &mut errors.read, &mut errors.status] {
            phase.insert("x".into(), 1);
        }
        report
    }

    fn leaves(value: &Value, path: String, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, value)| {
                let separator = if path.is_empty() { "" } else { "." };
                leaves(value, format!("{path}{separator}{name}"), found);
            }),
            Value::Array(elements) => elements.iter().for_each(|value| leaves(value, format!("{path}[]"), found)),
            _ => found.push(path),
        }
    }

    fn matches(pattern: &str, path: &str) -> bool {
        let (pattern, path): (Vec<&str>, Vec<&str>) = (pattern.split('.').collect(), path.split('.').collect());
        let fits = |(wanted, found): (&&str, &&str)| {
            wanted.strip_prefix('*').map_or(wanted == found, |end| found.ends_with(end))
        };
        pattern.len() == path.len() && pattern.iter().zip(&path).all(fits)
    }

    fn names() -> impl Iterator<Item = &'static str> {
        REPORT.iter().flat_map(|section| section.metrics).map(|metric| metric.key)
    }

    /// A percentile is explained when its distribution and the percentile both are.
    fn is_explained(path: &str) -> bool {
        if names().any(|name| !name.starts_with("*_us") && matches(name, path)) {
            return true;
        }
        let Some((distribution, _)) = path.rsplit_once('.') else { return false };
        let last_two = path.rsplitn(3, '.').take(2).collect::<Vec<_>>();
        let tail = format!("{}.{}", last_two[1], last_two[0]);
        names().any(|name| matches(name, distribution))
            && names().any(|name| name.starts_with("*_us") && matches(name, &tail))
    }

    #[test]
    fn every_number_of_the_report_is_explained_and_nothing_else() {
        let mut paths = Vec::new();
        leaves(&serde_json::to_value(full()).unwrap(), String::new(), &mut paths);
        assert!(paths.len() > 80, "{}", paths.len());
        let missing: Vec<&String> = paths.iter().filter(|path| !is_explained(path)).collect();
        assert!(missing.is_empty(), "not explained: {missing:?}");
        let is_of_report = |name: &str| {
            paths.iter().any(|path| {
                let tail =
                    path.rsplitn(3, '.').take(2).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join(".");
                let distribution = path.rsplit_once('.').map_or("", |(distribution, _)| distribution);
                matches(name, path) || matches(name, &tail) || matches(name, distribution)
            })
        };
        let stale: Vec<&str> = names().filter(|name| !is_of_report(name)).collect();
        assert!(stale.is_empty(), "explained, and not there: {stale:?}");
    }

    #[test]
    fn every_check_is_explained_and_lines_are_short() {
        let text = explain();
        for rule in &verdict::RULES {
            let name = rule.name;
            assert!(text.contains(&format!("check {name}\n")), "{name}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
    }
}
