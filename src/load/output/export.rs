//! A result in the formats of other people's tools, as `--hlog` and `--out` name them. Pure: numbers in, bytes out. An
//! `.hlog` loses nothing, and [`merge`](crate::load::commands::merge) adds them up exactly.

use std::path::PathBuf;

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use serde::Serialize;
use serde_json::Value;

use crate::load::counts::distributions::{Distributions, Span};
use crate::load::counts::histogram::Times;
use crate::load::options::plan::FileFormat;
use crate::load::output::destination::Destination;
use crate::load::run::observers::Observer;
use crate::report::{IntervalReport, Latency, LoadReport};

/// Lines of an `.hgrm` between a percentile and the one half as far from 100 %; what the standard tools use.
const TICKS_PER_HALF_DISTANCE: u32 = 5;

pub fn hlog(distributions: &Distributions, span: &Span) -> Vec<u8> {
    const IN_MEMORY: &str = "memory takes all that is written";
    let mut bytes = Vec::new();
    // The compressed form is the one that the Java reader accepts in a log.
    let mut serializer = V2DeflateSerializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment("[acceptlab loadgen: one interval, the measured window; values in nanoseconds]")
        .with_start_time(span.began)
        .with_base_time(span.began)
        // The column "max" is in milliseconds, as the standard tools expect it.
        .with_max_value_divisor(1e6)
        .begin_log_with(&mut bytes, &mut serializer)
        .expect(IN_MEMORY);
    for (tag, times) in distributions.tagged() {
        log.write_histogram(times.histogram(), span.start, span.duration, Tag::new(tag)).expect(IN_MEMORY);
    }
    bytes
}

/// The percentiles in the layout of HdrHistogram's `outputPercentileDistribution`.
pub fn hgrm(times: &Times) -> String {
    let histogram = times.histogram();
    let ms = |ns: f64| ns / 1e6;
    let mut text = format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    let mut count = 0;
    for step in histogram.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        count += step.count_since_last_iteration();
        let (value, quantile) = (ms(step.value_iterated_to() as f64), step.quantile_iterated_to());
        text += &format!("{value:12.3} {quantile:14.12} {count:10}");
        // At the maximum the last column would be infinite, and is left out.
        if quantile < 1.0 {
            text += &format!(" {:14.2}", 1.0 / (1.0 - quantile));
        }
        text.push('\n');
    }
    let (mean, deviation) = (ms(histogram.mean()), ms(histogram.stdev()));
    let (max, total, buckets) = (ms(histogram.max() as f64), histogram.len(), histogram.buckets());
    // A bucket has room for twice as many values as the digits tell apart.
    let sub_buckets = (2 * 10u64.pow(u32::from(histogram.sigfig()))).next_power_of_two();
    text + &format!(
        "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]\n\
         #[Max     = {max:12.3}, Total count    = {total:12}]\n\
         #[Buckets = {buckets:12}, SubBuckets     = {sub_buckets:12}]\n"
    )
}

/// A line of JSON.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("a plain struct serializes") + "\n"
}

/// Every leaf of the report, named by the way to it: `latency_us.p99,123.4`.
pub fn csv(report: &LoadReport) -> String {
    let mut text = String::from("name,value\n");
    leaves(&serde_json::to_value(report).expect("a plain struct serializes"), "", &mut |name, value| {
        let value = match value {
            Value::Null => String::new(),
            Value::String(text) => quoted(text),
            number_or_bool => number_or_bool.to_string(),
        };
        text += &format!("{},{value}\n", quoted(name));
    });
    text
}

/// Visits each value that holds no others, with the way to it.
pub fn leaves(value: &Value, name: &str, visit: &mut impl FnMut(&str, &Value)) {
    let inner = |key: &str| if name.is_empty() { key.to_string() } else { format!("{name}.{key}") };
    match value {
        Value::Object(members) => members.iter().for_each(|(key, member)| leaves(member, &inner(key), visit)),
        Value::Array(items) => {
            (0..).zip(items).for_each(|(i, item): (usize, _)| leaves(item, &inner(&i.to_string()), visit));
        }
        leaf => visit(name, leaf),
    }
}

/// RFC 4180, section 2.
fn quoted(text: &str) -> String {
    if text.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.into() }
}

#[derive(Debug, Default)]
pub struct Files(Vec<(FileFormat, Destination)>);

impl Files {
    pub fn create(files: &[(FileFormat, PathBuf)]) -> Result<Files, String> {
        let at_the_end = files.iter().filter(|(format, _)| *format != FileFormat::Ndjson);
        let create = |(format, path): &(FileFormat, PathBuf)| Ok((*format, Destination::create(path)?));
        at_the_end.map(create).collect::<Result<_, String>>().map(Files)
    }

    /// Writes them all, whatever becomes of one; an error names each that is not complete.
    pub fn write(self, distributions: &Distributions, span: &Span, report: &LoadReport) -> Result<(), String> {
        let mut outcome = Ok(());
        for (format, mut destination) in self.0 {
            destination.write(&match format {
                FileFormat::Hlog => hlog(distributions, span),
                FileFormat::Hgrm => hgrm(&distributions.response).into(),
                FileFormat::Csv => csv(report).into(),
                FileFormat::Json => json(report).into(),
                FileFormat::Ndjson => Vec::new(),
            });
            outcome = both(outcome, destination.finish());
        }
        outcome
    }
}

pub fn both(one: Result<(), String>, other: Result<(), String>) -> Result<(), String> {
    match (one, other) {
        (Err(one), Err(other)) => Err(format!("{one}; {other}")),
        (one, other) => one.and(other),
    }
}

impl Observer for Destination {
    fn observe(&mut self, interval: &IntervalReport, _so_far: &Latency) {
        // One write(2) for a line: a program that follows the file sees whole ones.
        self.write(json(interval).as_bytes());
    }

    fn finish(self: Box<Self>) -> Result<(), String> {
        Destination::finish(*self)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::{Duration, SystemTime};

    use super::*;

    fn times(values_ns: impl IntoIterator<Item = u64>) -> Times {
        let mut times = Times::default();
        values_ns.into_iter().for_each(|ns| times.record(ns));
        times
    }

    #[test]
    fn an_hgrm_has_the_columns_the_plotter_reads_and_ends_at_the_maximum() {
        let text = hgrm(&times((1..=1000).map(|i| i * 1_000_000)));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0].split_whitespace().collect::<Vec<_>>(),
            ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]
        );
        assert_eq!(lines[1], "");
        let rows: Vec<Vec<f64>> = lines[2..]
            .iter()
            .take_while(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().map(|cell| cell.parse().unwrap()).collect())
            .collect();
        assert_eq!((rows[0][1], rows[0][3]), (0.0, 1.0));
        let median = rows.iter().find(|row| row[1] == 0.5).unwrap();
        assert!((median[0] - 500.0).abs() <= 0.5 && median[2] == 500.0 && median[3] == 2.0, "{median:?}");
        let last = rows.last().unwrap();
        assert_eq!((last.len(), last[1], last[2]), (3, 1.0, 1000.0));
        assert!(rows.windows(2).all(|pair| pair[0][0] <= pair[1][0] && pair[0][2] <= pair[1][2]));
        let footer = &lines[lines.len() - 3..];
        assert!(footer[0].starts_with("#[Mean    =      500."), "{}", footer[0]);
        assert!(
            footer[1].starts_with("#[Max     =     1000.") && footer[1].ends_with("        1000]"),
            "{}",
            footer[1]
        );
        assert!(footer[2].starts_with("#[Buckets = ") && footer[2].ends_with("        2048]"), "{}", footer[2]);
    }

    #[test]
    fn an_hgrm_of_nothing_has_its_head_and_foot() {
        let text = hgrm(&times([]));
        assert_eq!(text.lines().filter(|line| line.starts_with("#[")).count(), 3, "{text}");
    }

    #[test]
    fn every_leaf_is_a_line_and_what_contains_a_comma_is_quoted() {
        let mut report = LoadReport { requests: 7, order: vec![2, 0], ..LoadReport::default() };
        report.latency_us.p99 = 123.4;
        report.run = Some(crate::report::RunInfo { host: "a, \"b\"".into(), ..Default::default() });
        let text = csv(&report);
        let has = |line: &str| assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        assert!(text.starts_with("name,value\n"));
        for line in ["requests,7", "latency_us.p99,123.4", "order.0,2", "order.1,0"] {
            has(line);
        }
        has("run.host,\"a, \"\"b\"\"\"");
    }

    #[test]
    fn a_full_disk_costs_the_file_and_is_reported_once_for_each() {
        let full = Path::new("/dev/full");
        let span = Span { began: SystemTime::now(), start: Duration::ZERO, duration: Duration::from_secs(1) };
        let formats = [FileFormat::Hlog, FileFormat::Hgrm, FileFormat::Csv];
        let files = Files::create(&formats.map(|format| (format, full.into()))).unwrap();
        let line = files.write(&Distributions::default(), &span, &LoadReport::default()).unwrap_err();
        assert_eq!(line.matches("write /dev/full: ").count(), 3, "{line}");

        let mut ndjson = Box::new(Destination::create(full).unwrap());
        ndjson.observe(&IntervalReport::default(), &Latency::default());
        ndjson.observe(&IntervalReport::default(), &Latency::default());
        assert!(Observer::finish(ndjson).unwrap_err().starts_with("write /dev/full: "));
    }
}
