//! The record: one file per `lab run`, `<UTC time>-<full|quick>.jsonl`. The first line says which machine, seed and
//! command; every other line is one row, written when it was finished. Files are never rewritten, and each line has a
//! checksum that says so.

pub mod content;
pub mod fingerprint;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::console;
use crate::failure::Failure;
use crate::lab::observe::cpu_window::CpuWindow;
use crate::lab::observe::footprint::{Footprint, ProcessSize};
use crate::lab::observe::kernel_counts::KernelCounts;
use crate::lab::observe::speed::Speed;
use crate::lab::observe::timeline::Snapshot;
use crate::lab::plan::case::Case;
use crate::lab::plan::command::{ClientCommand, ServerCommand};
use crate::lab::plan::events::InjectedEvent;
use crate::lab::plan::experiment::fnv1a;
use crate::lab::record::content::Content;
use crate::lab::record::fingerprint::Fingerprint;
use crate::machine::Counters;
use crate::report::{LoadReport, ServerReport, TrialReport, WorkerReport};

/// The workers of a server with more than these are added up into one entry: ten thousand of them per row would make
/// the record unreadable, and no table shows them.
const WORKERS_KEPT: usize = 16;

/// More than all of the CPUs' time is impossible. What the two readings around a window may add: a share, since they
/// are not made at its very ends, and a tick of /proc (proc_pid_stat(5)), which is all of a window of a few
/// milliseconds.
const MOST_CPU: f64 = 1.05;
const TICK_S: f64 = 0.01;

/// The first line of a record.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// When the run began, UTC.
    pub date: String,
    /// `full` or `quick`.
    pub scale: String,
    pub seed: u64,
    /// The rows that were to be measured, by experiment.
    pub planned: BTreeMap<String, usize>,
    pub content: Content,
    /// A part of an experiment, or values that its matrix does not have: what the command line asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by_hand: Option<String>,
    pub machine: Fingerprint,
}

/// One run of one case with new processes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub experiment: String,
    pub table: String,
    /// The case's position in the experiment.
    pub case: usize,
    /// The repeat: block r holds one run of every case, and a baseline as often as it is needed.
    pub block: usize,
    /// Rows of a block with the same number ran directly one after another: a baseline and what is compared with it.
    /// Absent without a baseline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<usize>,
    /// Made because a claim was undecided, beyond the matrix' own repeats.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_further: bool,
    pub coordinates: Vec<(String, String)>,
    pub label: String,
    pub law: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub expect_timeouts: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub expect_death: bool,
    /// What was done to the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disturb: Option<String>,
    /// Kernel settings of this run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sysctl: Vec<(String, String)>,
    /// Server and client were in a network namespace of their own, because this user may not change the machine's
    /// settings.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own_network: bool,
    pub server_command: ServerCommand,
    pub client_command: ClientCommand,
    pub server_cpus: Vec<usize>,
    pub client_cpus: Vec<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerReport>,
    /// The number of workers where they were added up into one entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers_folded: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<LoadReport>,
    /// The report of a client that is not loadgen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub foreign: Option<ForeignReport>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub footprint: Option<Footprint>,
    /// Open connections over time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub timeline: Vec<Snapshot>,
    /// The events of `disturb` as they were carried out, where a picture shows them over time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<InjectedEvent>,
    /// In which orders the lines of a program came that ran to its end, and how often each.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub orders: BTreeMap<String, u64>,
    /// How long such a program ran, in the median.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_ms: Option<f64>,
    /// What a trial has measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<TrialReport>,
    /// By how much the server's first process grew while the client measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub growth: Option<ProcessSize>,
    /// How the server ended by itself, where the matrix expects that; it may have printed no document then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub death: Option<String>,
    /// The version of a server of another project, which prints no report; in the first block only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// What the kernel counted for the server from `ready` to the client's end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<KernelCounts>,
    /// What the server used while the client measured. Absent where the client does not say when it measures, and in a
    /// server whose processes come and go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuWindow>,
    /// How fast the CPUs were directly before the run: the server's, then the client's if it is another.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub speed: Vec<Speed>,
    /// By how much the kernel's counters of the whole machine grew meanwhile.
    pub machine: Counters,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

impl Row {
    /// What is known of a row before its run.
    pub fn planned(case: &Case, block: usize) -> Row {
        Row {
            experiment: case.experiment.clone(),
            table: case.table.id.clone(),
            case: case.index,
            block,
            coordinates: case.coordinates.clone(),
            label: case.label.clone(),
            law: case.server_spec.law.as_ref().map(|law| law.get_ref().clone()),
            expect_timeouts: case.server_spec.expect_timeouts,
            expect_death: case.server_spec.expect_death,
            disturb: case.events.as_ref().map(|events| events.text.clone()),
            sysctl: case.sysctl.clone(),
            server_command: case.server.clone(),
            client_command: case.client.clone(),
            ..Row::default()
        }
    }

    /// The value of an axis, of `server` or of `client`.
    pub fn coordinate(&self, name: &str) -> Option<&str> {
        self.coordinates.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Lost requests are what such a run measures, and what a dead worker had counted is lost as well.
    pub fn expects_losses(&self) -> bool {
        self.disturb.is_some() || self.expect_death
    }

    /// A sum over the server's workers.
    pub fn workers_total(&self, of: fn(&WorkerReport) -> u64) -> Option<u64> {
        Some(self.server.as_ref()?.workers.iter().map(of).sum())
    }

    /// CPU time that the CPUs cannot have given in the measured window: then it was not measured over that window.
    pub fn impossible_cpu(&self) -> Option<String> {
        let server = self.cpu.map(|cpu| ("server", cpu.cpus(), cpu.length_us as f64 / 1e6, self.server_cpus.len()));
        let client = self.load.as_ref().filter(|load| load.duration_s > 0.0).map(|load| {
            let cpu_us = load.client.cpu_user_us + load.client.cpu_system_us;
            ("client", cpu_us as f64 / 1e6 / load.duration_s, load.duration_s, self.client_cpus.len())
        });
        let is_impossible = |&(_, used, length_s, had): &(_, f64, f64, usize)| {
            used * length_s > MOST_CPU * had as f64 * length_s + TICK_S
        };
        let (who, used, _, had) = server.into_iter().chain(client).find(is_impossible)?;
        Some(format!("impossible: the {who} used {used:.2} CPUs of {had}"))
    }

    /// Takes the server's document, with many workers added up into one.
    pub fn keep_server(&mut self, mut report: ServerReport) {
        if let Some(observed) = &mut self.observed {
            observed.name_workers(&report, WORKERS_KEPT);
        }
        if report.workers.len() > WORKERS_KEPT {
            self.workers_folded = Some(report.workers.len());
            report.workers = vec![sum(&report.workers)];
        }
        self.server = Some(report);
    }
}

/// All workers as one: the sums of counts and times, the largest resident size, and the process that they have in
/// common.
fn sum(workers: &[WorkerReport]) -> WorkerReport {
    let pid = workers.first().map_or(0, |first| first.pid);
    let pid = if workers.iter().all(|worker| worker.pid == pid) { pid } else { 0 };
    workers.iter().fold(WorkerReport::default(), |a, b| WorkerReport {
        id: 0,
        pid,
        accepted: a.accepted + b.accepted,
        requests: a.requests + b.requests,
        active: a.active + b.active,
        wakeups: a.wakeups + b.wakeups,
        empty_wakeups: a.empty_wakeups + b.empty_wakeups,
        accept_eagain: a.accept_eagain + b.accept_eagain,
        client_errors: a.client_errors + b.client_errors,
        cpu_user_us: a.cpu_user_us + b.cpu_user_us,
        cpu_system_us: a.cpu_system_us + b.cpu_system_us,
        voluntary_switches: a.voluntary_switches + b.voluntary_switches,
        involuntary_switches: a.involuntary_switches + b.involuntary_switches,
        max_rss_kib: a.max_rss_kib.max(b.max_rss_kib),
    })
}

/// What a client that is not `loadgen` has printed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ForeignReport {
    pub requests: u64,
    pub qps: f64,
    pub duration_s: f64,
    /// From the moment a request was sent (with `oha --latency-correction`: was due). What a client does not print is
    /// absent.
    pub p50_us: Option<f64>,
    pub p90_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub p99_9_us: Option<f64>,
    pub max_us: Option<f64>,
    pub mean_us: Option<f64>,
    /// Socket errors and answers outside 2xx and 3xx.
    pub errors: u64,
    pub timeouts: u64,
    /// CPU time of all its threads over its whole life, measured by the lab; of `requests` only where it prints that
    /// itself.
    pub cpu_us: u64,
}

/// A record that has been read.
#[derive(Debug, Clone)]
pub struct Record {
    /// The file's name, without its folder.
    pub file: String,
    pub header: Header,
    pub rows: Vec<Row>,
}

/// A record being written.
pub struct Writer {
    file: File,
    path: PathBuf,
    /// The length of the whole lines in the file.
    bytes: u64,
    checksum: u64,
}

impl Writer {
    /// Makes a new file in `folder` and writes the header.
    pub fn create(folder: &Path, header: &Header) -> Result<Writer, String> {
        let path = folder.join(format!("{}-{}.jsonl", stamp(folder, &header.date), header.scale));
        let advise = |error| {
            let failure = Failure::new(format_args!("create {}", path.display()), error);
            failure.advise("lab run --out DIR records elsewhere")
        };
        fs::create_dir_all(folder).map_err(advise)?;
        let file = OpenOptions::new().append(true).create_new(true).open(&path).map_err(advise)?;
        let mut writer = Writer { file, path, bytes: 0, checksum: 0 };
        writer.line(header).inspect_err(|_| {
            // Without a header it is no record.
            let _ = fs::remove_file(&writer.path);
        })?;
        Ok(writer)
    }

    /// Writes one line, which the kernel has when this returns: a killed lab loses only the row that it was measuring.
    /// After an error the file ends with the line before.
    pub fn line(&mut self, value: &impl Serialize) -> Result<(), String> {
        let text = serde_json::to_string(value).expect("plain structs with string keys serialize");
        self.checksum = checksum(self.checksum, &text);
        let line = format!("{}{CHECKSUM}{:016x}\"}}\n", &text[..text.len() - 1], self.checksum);
        self.file.write_all(line.as_bytes()).map_err(|error| {
            // Only gives back: there is room for that.
            let _ = self.file.set_len(self.bytes);
            Failure::new(format_args!("write {}", self.path.display()), error)
        })?;
        self.bytes += line.len() as u64;
        Ok(())
    }
}

/// The time in a new record's name. It sorts behind all that are there, because the newest counts: where the clock has
/// been set back, the latest time gets another digit.
fn stamp(folder: &Path, date: &str) -> String {
    let now = date.replace([':', '-'], "");
    let latest = paths(folder).last().map_or(String::new(), |path| file_name(path));
    let latest_stamp = latest.split('-').next().unwrap_or_default();
    if latest_stamp > now.as_str() {
        console::log(format_args!(
            "the clock says {date}, and {latest} is from later; the new record is named behind it"
        ));
    }
    if latest_stamp < now.as_str() { now } else { format!("{latest_stamp}1") }
}

/// The last member of each line; its value is the [`checksum`] in hexadecimal digits.
const CHECKSUM: &str = ",\"checksum\":\"";

/// The checksum of a line and all before it, so that none can be changed, left out or put elsewhere unnoticed.
fn checksum(before: u64, line: &str) -> u64 {
    fnv1a(&format!("{before:016x}{line}"))
}

/// The records of a folder, the oldest first; none where there is no such folder.
fn paths(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    // The name begins with the time, so the order of the names is the order of the runs.
    paths.sort();
    paths
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// All records of a folder, the oldest first.
pub fn read_all(folder: &Path) -> Result<Vec<Record>, String> {
    paths(folder).iter().map(|path| read(path)).collect()
}

fn read(path: &Path) -> Result<Record, String> {
    let name = path.display();
    let text = fs::read_to_string(path).map_err(|error| Failure::new(format_args!("read {name}"), error))?;
    // A line without an end was being written when the machine or the lab was stopped.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    if !text.ends_with('\n') {
        console::log(format_args!("{name}: the last line is cut off; the lines before it count"));
    }
    let mut lines = (1..).zip(whole.lines());
    let (_, first) = lines.next().ok_or_else(|| format!("{name}: not one whole line; remove it"))?;
    if !first.contains(CHECKSUM) {
        return Err(format!("{name}: a record of an older form; remove it and measure again"));
    }
    let mut reader = RecordReader { name: name.to_string(), checksum: 0 };
    let header = reader.line(1, first)?;
    let rows = lines.map(|(number, line)| reader.line(number, line)).collect::<Result<Vec<Row>, String>>()?;
    Ok(Record { file: file_name(path), header, rows })
}

/// Reads the lines of a record in their order.
struct RecordReader {
    name: String,
    /// The checksum of the lines so far.
    checksum: u64,
}

impl RecordReader {
    fn line<T: DeserializeOwned>(&mut self, number: usize, line: &str) -> Result<T, String> {
        let broken = |what: &str| {
            let remedy = "a record is never edited: restore it, or remove it and measure again";
            Err(format!("{}:{number}: {what}; {remedy}", self.name))
        };
        let (text, written) = line.rsplit_once(CHECKSUM).unwrap_or((line, ""));
        self.checksum = checksum(self.checksum, &format!("{text}}}"));
        if written != format!("{:016x}\"}}", self.checksum) {
            return broken("this is not what was recorded (by its checksum)");
        }
        serde_json::from_str(line).or_else(|error| broken(&error.to_string()))
    }
}

/// The newest record that holds rows of this experiment as its matrix has them.
pub fn newest<'a>(records: &'a [Record], experiment: &str) -> Option<&'a Record> {
    let holds_it = |record: &&Record| record.rows.iter().any(|row| row.experiment == experiment);
    records.iter().rev().filter(|record| record.header.by_hand.is_none()).find(holds_it)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_uses_more_than_the_cpus_it_had() {
        let cpu = |cpu_us| Some(CpuWindow { length_us: 1_000_000, cpu_us, first_us: 0 });
        let row = Row { server_cpus: vec![0], client_cpus: vec![1], cpu: cpu(1_010_000), ..Row::default() };
        assert_eq!(row.impossible_cpu(), None);
        let dear = Row { cpu: cpu(1_350_000), ..row.clone() };
        assert_eq!(dear.impossible_cpu().unwrap(), "impossible: the server used 1.35 CPUs of 1");
        let mut load = LoadReport { duration_s: 1.0, ..LoadReport::default() };
        load.client.cpu_system_us = 1_200_000;
        let row = Row { load: Some(load), ..row };
        assert!(row.impossible_cpu().unwrap().contains("client used 1.20"));
        // Seven milliseconds, and the readings a third of one beside its ends.
        let mut load = LoadReport { duration_s: 0.006_925, ..LoadReport::default() };
        load.client.cpu_system_us = 7_278;
        assert_eq!(Row { load: Some(load), ..row }.impossible_cpu(), None);
    }

    #[test]
    fn many_workers_are_added_up_and_a_few_are_kept() {
        let worker = WorkerReport { accepted: 2, requests: 5, max_rss_kib: 7, ..WorkerReport::default() };
        let report = |count| ServerReport { workers: vec![worker.clone(); count], ..ServerReport::default() };
        let mut row = Row::default();
        row.keep_server(report(16));
        assert_eq!(row.server.as_ref().unwrap().workers.len(), 16);
        row.keep_server(report(17));
        let folded = &row.server.as_ref().unwrap().workers;
        assert_eq!((folded.len(), folded[0].accepted, folded[0].requests, folded[0].max_rss_kib), (1, 34, 85, 7));
        assert_eq!(row.workers_folded, Some(17));
        let pid_of = |pids: [i32; 2]| {
            let workers = (0..17).map(|i| WorkerReport { pid: pids[i % 2], ..worker.clone() }).collect();
            let mut row = Row::default();
            row.keep_server(ServerReport { workers, ..ServerReport::default() });
            row.server.unwrap().workers[0].pid
        };
        assert_eq!((pid_of([4, 4]), pid_of([4, 5])), (4, 0), "threads of one process, and processes");
    }
}
