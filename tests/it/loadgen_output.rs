//! What `loadgen` writes for other programs: the published schema, and the files other people's tools read.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use acceptlab::report::{
    Check, ClientCost, Configuration, ConnectionCounts, DeadlineCounts, Errors, Evenness, EvennessPair, IntervalReport,
    Latency, LoadReport, Lost, OutsideWindow, RunInfo, RunPart, SlowCounts, TimeSeries, Traced, Trust, Verdict,
    WorkerShare, WorstSecond,
};
use serde_json::{Value, json};

use crate::support::{Needs, TempFolder, inconclusive, start};

const LOADGEN: &str = env!("CARGO_BIN_EXE_loadgen");

/// The keywords of JSON Schema 2020-12 that ours uses, and one rule more: every member must be in it.
pub struct Schema {
    root: Value,
    /// Which members of which definition a document had.
    seen: RefCell<BTreeSet<(String, String)>>,
}

impl Schema {
    /// `schema/NAME.schema.json`.
    pub fn published(name: &str) -> Schema {
        let path = format!("{}/schema/{name}.schema.json", env!("CARGO_MANIFEST_DIR"));
        let root = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        Schema { root, seen: RefCell::default() }
    }

    /// Panics with the way to the first member that does not hold.
    #[track_caller]
    pub fn check(&self, definition: &str, document: &Value) {
        self.check_at(definition, &self.root["$defs"][definition], document, definition);
    }

    #[track_caller]
    fn check_at(&self, definition: &str, schema: &Value, value: &Value, at: &str) {
        for (keyword, rule) in schema.as_object().unwrap_or_else(|| panic!("no schema for {at}")) {
            match keyword.as_str() {
                "description" | "properties" | "additionalProperties" => {}
                "$ref" => {
                    let name = rule.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
                    self.check_at(name, &self.root["$defs"][name], value, at);
                }
                "type" => {
                    let holds = match rule.as_str().unwrap() {
                        "object" => value.is_object(),
                        "array" => value.is_array(),
                        "string" => value.is_string(),
                        "boolean" => value.is_boolean(),
                        "integer" => value.is_u64() || value.is_i64(),
                        "number" => value.is_number(),
                        other => panic!("type {other} is not known to this test"),
                    };
                    assert!(holds, "{at} is {value}, not of type {rule}");
                }
                "enum" => {
                    assert!(rule.as_array().unwrap().contains(value), "{at} is {value}, not of {rule}");
                }
                "minimum" => {
                    assert!(value.as_f64() >= rule.as_f64(), "{at} is {value}, below {rule}");
                }
                "required" => {
                    for name in rule.as_array().unwrap() {
                        assert!(value.get(name.as_str().unwrap()).is_some(), "{at} has no {name}");
                    }
                }
                "items" => value.as_array().into_iter().flatten().for_each(|item| {
                    self.check_at(definition, rule, item, &format!("{at}[]"));
                }),
                other => panic!("keyword {other} is not known to this test"),
            }
        }
        let is_closed = schema.get("properties").or(schema.get("additionalProperties")).is_some();
        for (name, member) in value.as_object().into_iter().flatten().filter(|_| is_closed) {
            self.seen.borrow_mut().insert((definition.into(), name.clone()));
            let rule = &schema["properties"][name];
            let rule = if rule.is_null() { &schema["additionalProperties"] } else { rule };
            assert!(!rule.is_null(), "{at}.{name} is not in the schema");
            self.check_at(definition, rule, member, &format!("{at}.{name}"));
        }
    }
}

/// Runs `loadgen` against four workers, and returns its JSON.
fn measure(flags: &[&str]) -> Value {
    let server = start("reuseport", &["--workers", "4"]);
    let output = Command::new(LOADGEN)
        .args(["--format", "json"])
        .args(flags)
        .arg(format!("http://{}/", server.addr))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn reports_of_all_kinds_of_load_hold_to_the_schema() {
    let schema = Schema::published("loadgen");
    let short = ["--duration", "200ms", "--connections", "4"];
    for flags in [
        &["--show", "answers:3,order:5"][..],
        &["--rate", "500", "--arrivals", "poisson", "--requests-per-connection", "1"],
        &["--rate", "500", "--deadline", "1ms", "--warmup", "50ms", "--background", "idle:3"],
    ] {
        schema.check("report", &measure(&[&short, flags].concat()));
    }
    let nobody = Command::new(LOADGEN)
        .args(["--format", "json", "--duration", "100ms", "--connections", "1", "http://127.0.0.1:9/"])
        .output()
        .unwrap();
    assert_eq!((nobody.status.code(), nobody.stdout.is_empty()), (Some(1), true), "a report of nothing");
}

#[test]
fn every_line_of_ndjson_holds_to_the_schema_and_together_they_are_the_report() {
    let folder = TempFolder::new("output");
    let file = folder.file("a.ndjson");
    let report = measure(&[
        "--rate",
        "1000",
        "--duration",
        "400ms",
        "--warmup",
        "100ms",
        "--interval",
        "50ms",
        "--connections",
        "4",
        "--out",
        &file,
    ]);
    let schema = Schema::published("loadgen");
    let text = fs::read_to_string(&file).unwrap();
    let intervals: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    intervals.iter().for_each(|interval| schema.check("interval", interval));
    let count = |name: &str| intervals.iter().map(|interval| interval[name].as_u64().unwrap()).sum::<u64>();
    let outside = &report["outside_window"];
    let answered = [&report["requests"], &outside["warmup"], &outside["late"]].map(|n| n.as_u64().unwrap());
    assert_eq!(count("requests"), answered.iter().sum::<u64>());
    assert!(intervals.iter().any(|interval| interval["measured"] == json!(true)));
}

/// Written out to the last field: a new one does not compile here until it has a value, and then it fails below until
/// it is in the schema.
fn everything() -> (LoadReport, IntervalReport) {
    let latency_us = Latency { p50: 1.0, p90: 2.0, p99: 3.0, p99_9: 4.0, max: 5.0, mean: 2.0, stdev: 1.5 };
    let evenness = || Evenness {
        workers: 2,
        n: 7,
        dispersion: 1.0,
        p_value: 0.5,
        max_over_mean: 1.1,
        jain: 0.9,
        cv: 0.1,
        expected_max_over_mean_if_random: 1.2,
    };
    let pair = || Some(EvennessPair { connections: evenness(), requests: evenness() });
    let share = WorkerShare { connections: 1, requests: 7, latency_us: Some(latency_us) };
    let workers = BTreeMap::from([("0".to_string(), share)]);
    let named = |name: &str| BTreeMap::from([(name.to_string(), 1)]);
    let report = LoadReport {
        schema: 1,
        requests: 7,
        qps: 7.0,
        duration_s: 1.0,
        errors: Errors {
            connect: named("ECONNREFUSED"),
            write: named("EPIPE"),
            read: named("eof"),
            status: named("503"),
            timeout: 1,
        },
        latency_us,
        service_us: latency_us,
        connect_us: latency_us,
        first_byte_us: latency_us,
        send_delay_us: latency_us,
        censored: 1,
        offered_per_s: Some(8.0),
        deadline: Some(DeadlineCounts { shed: 1, abandoned: 1 }),
        retried: 1,
        wrong_bodies: 1,
        lost: vec![Lost {
            at_s: 0.5,
            client: Some("127.0.0.1:40123".into()),
            cause: "read ECONNRESET".into(),
            worker: Some(0),
        }],
        lost_more: 1,
        worst_second: Some(WorstSecond { from_s: 0.0, requests: 7, latency_us }),
        longest_silence_ms: Some(52),
        time_series: Some(TimeSeries { interval_s: 0.5, answered: vec![7, 0], p99_us: vec![900, 0] }),
        latency_quantiles_us: vec![1.0; LoadReport::QUANTILES.len()],
        pipeline: Some(2),
        workers: workers.clone(),
        evenness: pair(),
        connections: ConnectionCounts { requested: 1, peak_open: 1, established: 1, answered: 1, idle_lost: 0 },
        outside_window: OutsideWindow { warmup: 1, late: 1 },
        trace: vec![Traced { at_us: 1.0, latency_us: 1.0, status: 200, bytes: 64, worker: Some(0) }],
        order: vec![0],
        slow: ["send", "read", "half-open"]
            .map(|kind| SlowCounts {
                kind: kind.into(),
                requested: 1,
                established: 1,
                answered: 0,
                closed_by_server: 1,
                closed_after_ms: Some(3.0),
            })
            .into(),
        client: ClientCost { threads: 1, cpu_user_us: 1, cpu_system_us: 1, cpu_share: 0.1, max_rss_kib: 1 },
        trust: Some(Trust {
            verdict: Verdict::Invalid,
            checks: [Verdict::Valid, Verdict::Suspect, Verdict::Invalid]
                .map(|verdict| Check { name: "send_delay".into(), verdict, reason: "because".into() })
                .into(),
        }),
        run: Some(RunInfo {
            host: "here".into(),
            started_unix_ns: 1,
            start_at_unix_ns: Some(1),
            seed: 1,
            configuration: Configuration::default(),
            interrupted: false,
            merged_from: Some(2),
            parts: vec![RunPart { host: "here".into(), started_unix_ns: 1, seed: 1 }],
        }),
    };
    let interval = IntervalReport {
        from_s: 0.0,
        to_s: 0.1,
        measured: true,
        requests: 7,
        qps: 70.0,
        errors: 0,
        retried: 1,
        due: Some(7),
        connections_open: 1,
        connections_requested: 1,
        connections_established: 1,
        latency_us,
        send_delay_us: latency_us,
        workers,
        evenness: pair(),
    };
    (report, interval)
}

#[test]
fn the_schema_has_every_field_of_the_report_and_no_other() {
    let schema = Schema::published("loadgen");
    let (report, interval) = everything();
    schema.check("report", &serde_json::to_value(&report).unwrap());
    schema.check("interval", &serde_json::to_value(&interval).unwrap());
    for (definition, rules) in schema.root["$defs"].as_object().unwrap() {
        for name in rules["properties"].as_object().into_iter().flat_map(|properties| properties.keys()) {
            let member = (definition.clone(), name.clone());
            assert!(schema.seen.borrow().contains(&member), "{definition}.{name} is in no report");
        }
    }
}

#[test]
#[should_panic(expected = "report.latency_us.p99 is \"fast\"")]
fn a_document_that_breaks_the_schema_is_noticed() {
    let mut report = serde_json::to_value(everything().0).unwrap();
    report["latency_us"]["p99"] = json!("fast");
    Schema::published("loadgen").check("report", &report);
}

#[test]
fn csv_and_percentile_table_say_what_the_report_says() {
    let folder = TempFolder::new("output");
    let (csv, hgrm) = (folder.file("a.csv"), folder.file("a.hgrm"));
    let report = measure(&["--requests", "500", "--connections", "4", "--out", &csv, "--out", &hgrm]);
    let csv = fs::read_to_string(csv).unwrap();
    for name in ["requests", "latency_us.p99", "workers.0.requests", "evenness.connections.dispersion"] {
        let value = name.split('.').fold(&report, |value, key| &value[key]);
        let line = csv.lines().find_map(|line| line.strip_prefix(&format!("{name},")));
        let told: f64 = line.unwrap_or_else(|| panic!("{name} is not in\n{csv}")).parse().unwrap();
        assert!((told - value.as_f64().unwrap()).abs() <= 1e-9 * told.abs(), "{name}");
    }
    let hgrm = fs::read_to_string(hgrm).unwrap();
    let max_ms = report["latency_us"]["max"].as_f64().unwrap() / 1e3;
    let footer = format!("#[Max     = {max_ms:12.3}, Total count    = {:12}]", 500);
    assert!(hgrm.contains(&footer), "{footer} is not in\n{hgrm}");
}

#[test]
fn a_full_disk_costs_the_file_and_not_the_report() {
    let folder = TempFolder::new("full");
    for (flag, name) in
        [("--hlog", "hlog"), ("--out", "a.hgrm"), ("--out", "a.csv"), ("--out", "a.json"), ("--out", "a.ndjson")]
    {
        let full = &folder.file(name);
        std::os::unix::fs::symlink("/dev/full", full).unwrap();
        let server = start("reuseport", &["--workers", "1"]);
        let output = Command::new(LOADGEN)
            .args(["--format", "json", "--connections", "1", "--requests", "20", flag, full])
            .arg(format!("http://{}/", server.addr))
            .output()
            .unwrap();
        let line = String::from_utf8_lossy(&output.stderr);
        let report: LoadReport = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report.requests, 20);
        let what = "no space left on device; the file is not complete: is there room, and does its reader stay?";
        let expected = format!(
            "loadgen: write {full}: {what}
"
        );
        assert_eq!((&*line, output.status.code()), (&*expected, Some(1)));
        // A path that is no path is told before anything is measured.
        let nowhere = format!("/nonexistent/{name}");
        let output = Command::new(LOADGEN).args([flag, &nowhere, "http://127.0.0.1:9/"]).output().unwrap();
        let line = String::from_utf8_lossy(&output.stderr);
        assert!(line.starts_with(&format!("loadgen: create {nowhere}: ")), "{line}");
        assert_eq!((line.lines().count(), output.status.code()), (1, Some(1)), "{name}");
    }
}

/// Prints tag, count and 99th percentile of every interval.
const PYTHON_READER: &str = "
import sys
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader
reader = HistogramLogReader(sys.argv[1], HdrHistogram(1, 3600 * 10**9, 3))
while (histogram := reader.get_next_interval_histogram()) is not None:
    print(histogram.get_tag(), histogram.get_total_count(), histogram.get_value_at_percentile(99))
";

#[test]
fn the_standard_python_reader_finds_all_five_distributions_in_an_hlog() {
    let python = |arguments: &[&str]| Command::new("python3").args(arguments).output();
    if !python(&["-c", "import hdrh.log"]).is_ok_and(|output| output.status.success()) {
        return inconclusive(Needs::Tool("python3"), "its package hdrhistogram is not installed");
    }
    let folder = TempFolder::new("output");
    let file = folder.file("hlog");
    let report = measure(&["--requests", "400", "--rate", "2000", "--connections", "3", "--hlog", &file]);
    let output = python(&["-c", PYTHON_READER, &file]).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let expected = [
        ("connect", 3, "connect_us"),
        ("first_byte", 400, "first_byte_us"),
        ("service", 400, "service_us"),
        ("response", 400, "latency_us"),
        ("send_delay", 400, "send_delay_us"),
    ];
    assert_eq!(text.lines().count(), expected.len(), "{text}");
    for (line, (tag, count, block)) in text.lines().zip(expected) {
        let cells: Vec<&str> = line.split(' ').collect();
        assert_eq!((cells[0], cells[1].parse()), (tag, Ok(count)), "{line}");
        let (theirs_us, ours_us) = (cells[2].parse::<f64>().unwrap() / 1e3, report[block]["p99"].as_f64().unwrap());
        assert!((theirs_us - ours_us).abs() <= 1e-3 * ours_us, "{tag}: {theirs_us} us there, {ours_us} here");
    }
}
