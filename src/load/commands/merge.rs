//! `loadgen merge`: from the results of many client machines what one would have reported that had seen it all. What
//! cannot be added exactly is left out (no two machines agree on the time well enough to sort the order of the
//! workers). A sum only means something when its parts belong together, so that is what most of this file is about.

use std::fmt::Display;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::read::ZlibDecoder;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogHistogram, IntervalLogIterator, LogEntry};
use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::load::commands::measure::Measured;
use crate::load::counts::distributions::{Distributions, Span};
use crate::load::counts::histogram::Times;
use crate::load::options::plan::FileFormat;
use crate::load::output::export::{self, Files};
use crate::load::run::summary::{SCHEMA, compute};
use crate::load::verdict::{self, LATE_START_NS};
use crate::report::{Check, Configuration, LoadReport, RunInfo, RunPart, Trust, Verdict};

/// Share of the window that all clients must have in common.
const MIN_OVERLAP: f64 = 0.9;
/// Windows that differ by more than this share have no rate in common.
const MAX_DIFFERENCE: f64 = 0.01;
/// Decimal fractions come back from JSON with an error in the last bit or two.
const ROUNDING: f64 = 1e-9;
/// No number of a report is larger: it is thirty years in microseconds. Thousands of them add up without an overflow.
const LARGEST: f64 = 1e15;
/// A cookie and a length, before what zlib has compressed.
const V2_COMPRESSED_HEAD_BYTES: usize = 8;

/// Reads, compares and adds. An error is one line that says which file does not belong, and why.
pub fn merge(files: &[PathBuf], hlog: Option<&Path>, force: bool) -> Result<Measured, String> {
    let parts = files.iter().map(|path| ReportFile::read(path)).collect::<Result<Vec<_>, _>>()?;
    let incompatibilities = incompatibilities(&parts);
    if let Some(why) = incompatibilities.first().filter(|_| !force) {
        return Err(format!("{why} (--force merges nonetheless)"));
    }
    let mut logs = parts.iter().map(|part| part.path.with_extension("hlog"));
    let place = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let out = hlog.and_then(place);
    if let Some(log) = logs.find(|log| out.is_some() && place(log) == out) {
        return Err(format!("write {}: it is a part of the sum; choose another name", log.display()));
    }
    let hlog: Vec<_> = hlog.map(|path| (FileFormat::Hlog, path.into())).into_iter().collect();
    let files = Files::create(&hlog)?;

    let mut distributions = Distributions::default();
    parts.iter().for_each(|part| distributions.add(&part.distributions));
    let report = sum(&parts, &distributions, incompatibilities).map_err(|error| format!("add the reports: {error}"))?;
    let span = Span {
        began: SystemTime::UNIX_EPOCH + Duration::from_nanos(report.run.as_ref().map_or(0, |run| run.started_unix_ns)),
        start: parts[0].window_start,
        duration: Duration::from_secs_f64(longest_s(&parts)),
    };
    let files = files.write(&distributions, &span, &report);
    Ok(Measured { report, files })
}

struct ReportFile {
    path: PathBuf,
    report: LoadReport,
    run: RunInfo,
    distributions: Distributions,
    /// From the start of the run to the measured window.
    window_start: Duration,
}

impl ReportFile {
    fn read(path: &Path) -> Result<ReportFile, String> {
        let failed = |why: &dyn Display| format!("read {}: {why}", path.display());
        let document = read(path, "is the name right, and may this user read it?")?;
        let mut report: LoadReport = serde_json::from_slice(&document)
            .map_err(|error| failed(&format!("not what `loadgen --format json` prints: {error}")))?;
        if report.schema != SCHEMA {
            return Err(failed(&format!("it has schema {}, and this loadgen knows {SCHEMA}", report.schema)));
        }
        let run = report.run.take();
        let run = run.ok_or_else(|| failed(&"it does not say where and when it was measured (`run`)"))?;
        if let Some(number) = impossible(&report) {
            return Err(failed(&format!("damaged: no run has {number}; copy it from its machine again")));
        }
        let hlog = path.with_extension("hlog");
        let log = read(&hlog, "every client needs --hlog, with the name of its JSON")?;
        let (distributions, window_start) = parse_hlog(&log)
            .map_err(|why| format!("read {}: {why}; copy it from its machine again", hlog.display()))?;
        Ok(ReportFile { path: path.into(), report, run, distributions, window_start })
    }

    /// The runs that are in it: more than one when it is a sum itself.
    fn runs(&self) -> Vec<RunPart> {
        if !self.run.parts.is_empty() {
            return self.run.parts.clone();
        }
        let RunInfo { host, started_unix_ns, seed, .. } = &self.run;
        vec![RunPart { host: host.clone(), started_unix_ns: *started_unix_ns, seed: *seed }]
    }

    /// Where the document and the histograms are not of the same run: all numbers of all five distributions are
    /// compared, to nine digits.
    fn contradiction(&self) -> Option<String> {
        let LoadReport { connect_us, first_byte_us, service_us, latency_us, send_delay_us, .. } = &self.report;
        let reported = [connect_us, first_byte_us, service_us, latency_us, send_delay_us];
        for ((tag, times), reported) in self.distributions.tagged().into_iter().zip(reported) {
            for ((name, logged), (_, reported)) in times.latency().named().into_iter().zip(reported.named()) {
                if (logged - reported).abs() > ROUNDING * logged.abs().max(reported.abs()) {
                    let path = self.path.display();
                    return Some(format!(
                        "{path} and its .hlog are not of the same run: {name} of {tag} is {reported} us in one, \
                         {logged} us in the other"
                    ));
                }
            }
        }
        None
    }
}

fn impossible(report: &LoadReport) -> Option<String> {
    let mut found = None;
    export::leaves(&serde_json::to_value(report).ok()?, "", &mut |name, value| {
        if value.is_number() && !value.as_f64().is_some_and(|number| (0.0..=LARGEST).contains(&number)) {
            found = Some(format!("{name} = {value}"));
        }
    });
    found
}

fn read(path: &Path, advice: &str) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(|error| Failure::new(format_args!("read {}", path.display()), error).advise(advice))
}

fn parse_hlog(bytes: &[u8]) -> Result<(Distributions, Duration), String> {
    let mut distributions = Distributions::default();
    let mut missing: Vec<&str> = distributions.tagged().map(|(tag, _)| tag).into();
    let mut start = Duration::ZERO;
    for entry in IntervalLogIterator::new(bytes) {
        let LogEntry::Interval(interval) = entry.map_err(|_| "corrupt: a line is not an interval".to_string())? else {
            continue;
        };
        let tag = interval.tag().ok_or("an interval without a tag is not loadgen's")?;
        let times = decode(&interval).ok_or_else(|| format!("corrupt: no histogram in {}", tag.as_str()))?;
        let sum = distributions.by_tag(tag.as_str()).ok_or("a tag in it is not loadgen's")?;
        sum.add(&times);
        start = interval.start_timestamp();
        missing.retain(|&missing| missing != tag.as_str());
    }
    match missing.first() {
        None => Ok((distributions, start)),
        Some(tag) => Err(format!("corrupt: it has no distribution of {tag}")),
    }
}

fn decode(interval: &IntervalLogHistogram) -> Option<Times> {
    let encoded = STANDARD.decode(interval.encoded_histogram()).ok()?;
    // The deserializer stops at the last count; the end and its checksum (RFC 1950, section 2.2) come after that.
    let (head, compressed) = encoded.split_at_checked(V2_COMPRESSED_HEAD_BYTES)?;
    let length = u32::from_be_bytes(head.last_chunk().copied()?);
    io::copy(&mut ZlibDecoder::new(compressed), &mut io::sink()).ok()?;
    if length as usize != compressed.len() {
        return None;
    }
    Times::from_histogram(Deserializer::new().deserialize(&mut encoded.as_slice()).ok()?)
}

fn incompatibilities(parts: &[ReportFile]) -> Vec<String> {
    let mut found = Vec::new();
    for (number, part) in parts.iter().enumerate() {
        let name = part.path.display();
        for earlier in &parts[..number] {
            found.extend(incompatible(earlier, part));
        }
        found.extend(part.contradiction());
        if part.run.interrupted {
            found.push(format!("{name}: its run ended early"));
        }
        found.extend(invalid_part(part));
    }
    found.extend(windows_differ(parts));
    found
}

fn incompatible(one: &ReportFile, other: &ReportFile) -> Option<String> {
    let (name, first) = (other.path.display(), one.path.display());
    if let Some(difference) = difference(&other.run.configuration, &one.run.configuration) {
        return Some(format!("{name}: another configuration than {first}: {difference}"));
    }
    let (theirs, ours) = (one.runs(), other.runs());
    if let Some(run) = ours.iter().find(|run| theirs.contains(run)) {
        let host = &run.host;
        return Some(format!("{name}: it has the same run as {first} ({host}), which would count twice"));
    }
    // Equal seeds give equal due times: all machines would send at the same times, and the sum would not be Poisson.
    let seed = ours.iter().map(|run| run.seed).find(|&seed| theirs.iter().any(|run| run.seed == seed));
    if let Some(seed) = seed.filter(|_| one.run.configuration.is_random()) {
        return Some(format!(
            "{name}: the same --seed {seed} as {first}, so that both drew the same gaps; give each its own"
        ));
    }
    None
}

fn difference(one: &Configuration, other: &Configuration) -> Option<String> {
    let values = |configuration| match serde_json::to_value(configuration) {
        Ok(Value::Object(values)) => values,
        _ => Map::new(),
    };
    let (one, other) = (values(one), values(other));
    let name = one.keys().chain(other.keys()).find(|&name| one.get(name) != other.get(name))?;
    let said = |values: &Map<String, Value>| values.get(name).map_or("nothing".into(), Value::to_string);
    Some(format!("`{name}` is {} where that has {}", said(&one), said(&other)))
}

/// A client that was not in time measured something else than was asked for.
fn invalid_part(part: &ReportFile) -> Option<String> {
    let (path, RunInfo { host, .. }) = (part.path.display(), &part.run);
    let late_ms = part.run.start_at_unix_ns.map_or(0, |at| part.run.started_unix_ns.saturating_sub(at)) / 1_000_000;
    let bearable_ms = LATE_START_NS / 1_000_000;
    if late_ms > bearable_ms {
        return Some(format!(
            "{path}: {host} started {late_ms} ms late, and {bearable_ms} are bearable; give all a later --start-at"
        ));
    }
    let late = verdict::SEND_DELAY.failed(&part.report).map(|check| ("was late", check));
    let is_invalid = |check: &&Check| check.verdict == Verdict::Invalid;
    let invalid =
        || part.report.trust.as_ref()?.checks.iter().find(is_invalid).map(|check| ("has no valid result", check));
    let (what, check) = late.or_else(invalid)?;
    Some(format!("{path}: {host} {what}: {}", check.reason))
}

/// Windows that do not overlap enough. Equal configurations have equal warm-ups, so it is enough to compare the starts.
fn windows_differ(parts: &[ReportFile]) -> Option<String> {
    let shortest = parts.iter().min_by(|a, b| a.report.duration_s.total_cmp(&b.report.duration_s))?;
    let longest_s = longest_s(parts);
    let shortest_s = shortest.report.duration_s;
    if longest_s - shortest_s > MAX_DIFFERENCE * longest_s {
        let path = shortest.path.display();
        return Some(format!(
            "{path}: it measured for {shortest_s:.3} s, another for {longest_s:.3} s: no common rate; use --duration, \
             not --requests"
        ));
    }
    let first = parts.iter().map(|part| part.run.started_unix_ns).min()?;
    let last = parts.iter().max_by_key(|part| part.run.started_unix_ns)?;
    let apart_s = (last.run.started_unix_ns - first) as f64 / 1e9;
    let overlap = (1.0 - apart_s / shortest_s).max(0.0);
    let (path, percent, least) = (last.path.display(), overlap * 100.0, MIN_OVERLAP * 100.0);
    (overlap < MIN_OVERLAP).then(|| {
        format!(
            "{path}: it began {apart_s:.3} s after the first: all clients together measured {percent:.0} % of the \
             window, and {least:.0} % are needed; give all the same --start-at"
        )
    })
}

fn longest_s(parts: &[ReportFile]) -> f64 {
    parts.iter().map(|part| part.report.duration_s).fold(0.0, f64::max)
}

/// What is not a count, wherever it stands: computed again from the sums, or left out.
#[rustfmt::skip]
const NOT_ADDED: [&str; 21] = [
    "schema", "qps", "duration_s", "latency_us", "service_us", "connect_us", "first_byte_us", "send_delay_us",
    "worst_second", "longest_silence_ms", "time_series", "latency_quantiles_us", "pipeline", "evenness", "trace", "order",
    "closed_after_ms", "cpu_share", "max_rss_kib", "trust", "run",
];

fn sum(parts: &[ReportFile], distributions: &Distributions, forced: Vec<String>) -> serde_json::Result<LoadReport> {
    let LoadReport { schema, pipeline, .. } = parts[0].report;
    let mut counts = serde_json::to_value(LoadReport { schema, pipeline, ..LoadReport::default() })?;
    for part in parts {
        add(&mut counts, serde_json::to_value(&part.report)?);
    }
    let mut sum: LoadReport = serde_json::from_value(counts)?;
    sum.lost.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
    sum.lost_more += sum.lost.len().saturating_sub(LoadReport::MOST_LOST) as u64;
    sum.lost.truncate(LoadReport::MOST_LOST);
    sum.duration_s = longest_s(parts);
    compute(&mut sum, distributions);
    // A machine has to have room for one of them.
    sum.client.max_rss_kib = parts.iter().map(|part| part.report.client.max_rss_kib).max().unwrap_or(0);
    sum.workers.values_mut().for_each(|share| share.latency_us = None);
    sum.slow.iter_mut().for_each(|counts| counts.closed_after_ms = None);
    sum.trust = trust(parts, forced);
    sum.run = Some(origin(parts));
    Ok(sum)
}

/// Adds numbers of the same name, and puts lists together; background connections of one kind are one entry. (All
/// clients ran at the same time, so the sum of their peaks is the peak, or a little more.)
fn add(sum: &mut Value, part: Value) {
    match (sum, part) {
        (Value::Object(sum), Value::Object(part)) => {
            for (name, part) in part.into_iter().filter(|(name, _)| !NOT_ADDED.contains(&name.as_str())) {
                match sum.get_mut(&name) {
                    Some(sum) => add(sum, part),
                    None => drop(sum.insert(name, part)),
                }
            }
        }
        (Value::Array(sum), Value::Array(part)) => {
            for part in part {
                let is_its_kind = |other: &&mut Value| part.get("kind").is_some() && other["kind"] == part["kind"];
                match sum.iter_mut().find(is_its_kind) {
                    Some(sum) => add(sum, part),
                    None => sum.push(part),
                }
            }
        }
        (sum @ Value::Number(_), Value::Number(part)) => {
            *sum = match (sum.as_u64(), part.as_u64()) {
                (Some(a), Some(b)) => (a + b).into(),
                _ => (sum.as_f64().unwrap_or(0.0) + part.as_f64().unwrap_or(0.0)).into(),
            }
        }
        _ => {}
    }
}

fn origin(parts: &[ReportFile]) -> RunInfo {
    let first = parts.iter().min_by_key(|part| part.run.started_unix_ns).expect("clap requires a file");
    let runs: Vec<RunPart> = parts.iter().flat_map(ReportFile::runs).collect();
    RunInfo {
        host: parts.iter().map(|part| part.run.host.as_str()).collect::<Vec<_>>().join(" "),
        interrupted: parts.iter().any(|part| part.run.interrupted),
        merged_from: Some(runs.len() as u64),
        parts: runs,
        ..first.run.clone()
    }
}

fn trust(parts: &[ReportFile], forced: Vec<String>) -> Option<Trust> {
    let mut checks = Vec::new();
    for part in parts {
        for check in part.report.trust.iter().flat_map(|trust| &trust.checks) {
            checks.push(Check { reason: format!("{}: {}", part.run.host, check.reason), ..check.clone() });
        }
    }
    let overruled = |reason| Check { name: "merge".into(), verdict: Verdict::Suspect, reason };
    checks.extend(forced.into_iter().map(overruled));
    let verdict = checks.iter().map(|check| check.verdict).max()?;
    Some(Trust { verdict, checks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_of_two_configurations_is_the_first_that_differs() {
        let base = Configuration { connections: 4, rate_per_s: Some(100.0), ..Configuration::default() };
        assert_eq!(difference(&base, &base.clone()), None);
        let other = Configuration { connections: 5, rate_per_s: None, ..base.clone() };
        assert_eq!(difference(&other, &base).unwrap(), "`connections` is 5 where that has 4");
        let other = Configuration { rate_per_s: None, ..base.clone() };
        assert_eq!(difference(&other, &base).unwrap(), "`rate_per_s` is nothing where that has 100.0");
    }

    #[test]
    fn a_log_comes_back_bucket_by_bucket() {
        let (log, distributions) = log();
        let (read, start) = parse_hlog(&log).unwrap();
        assert_eq!(start, Duration::from_secs(2));
        for ((tag, ours), (_, read)) in distributions.tagged().into_iter().zip(read.tagged()) {
            assert_eq!(ours.histogram(), read.histogram(), "{tag}");
        }
    }

    #[test]
    fn a_damaged_log_is_refused_and_never_a_panic() {
        let (log, _) = log();
        assert!(parse_hlog(&[]).is_err());
        assert!(parse_hlog(&[0xff; 64]).is_err());
        for end in (0..log.len()).step_by(101) {
            // A cut within the last histogram's digits may fall where base64 allows it, but not deflate.
            assert!(parse_hlog(&log[..end]).is_err() || end >= log.len() - 1, "cut at {end}");
        }
        let mut rng = fastrand::Rng::with_seed(5);
        for _ in 0..100 {
            let mut damaged = log.clone();
            damaged[rng.usize(..log.len())] = rng.u8(..);
            // A comment or a time may change without harm; what counts is that nothing panics.
            let _ = parse_hlog(&damaged);
        }
    }

    #[test]
    fn no_wrong_digit_in_a_histogram_goes_unnoticed() {
        let (log, _) = log();
        let last = log.trim_ascii_end().iter().rposition(|&byte| byte == b',').unwrap() + 1;
        for at in last..log.len() - 1 {
            let mut damaged = log.clone();
            damaged[at] = if log[at] == b'A' { b'B' } else { b'A' };
            assert!(parse_hlog(&damaged).is_err(), "digit {at} of {}", log.len());
        }
    }

    fn log() -> (Vec<u8>, Distributions) {
        let mut distributions = Distributions::default();
        let mut rng = fastrand::Rng::with_seed(4);
        for tag in ["connect", "first_byte", "service", "response", "send_delay"] {
            let times = distributions.by_tag(tag).unwrap();
            (0..500).for_each(|_| times.record(10u64.pow(rng.u32(0..11)) * rng.u64(0..100)));
        }
        let span = Span { began: SystemTime::now(), start: Duration::from_secs(2), duration: Duration::from_secs(1) };
        (export::hlog(&distributions, &span), distributions)
    }
}
