//! Public complaints about servers of other projects, live: a server starts as the complaint has it, and the symptom
//! becomes a number; meanwhile `lab inspect` is asked what is wrong, and what to do; then the server starts with the
//! cure, and the same number is measured again.
//!
//! A complaint is a file: `complaints/NAME.toml` in the folder of the scripts that start these servers.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::Deserialize;
use serde_json::Value;

use super::load::answered;
use super::{Numbers, numbers};
use crate::failure::Failure;
use crate::lab::observe::processes::{children, members};
use crate::lab::plan::command::ServerCommand;
use crate::lab::program::{Interrupt, Program, Running, Stop, on_path};
use crate::lab::run::contender::{self, Contender};
use crate::report::{LoadReport, TrialReport};
use crate::sys::procfs::voluntary_switches;

/// Where the scripts are.
pub const SERVERS: &str = "experiments/contenders";

/// How long `lab inspect` looks; the client sends for longer.
const LOOK: &str = "2s";

const START_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(60);
/// A process stops, or goes on, when the kernel has delivered the signal.
const SIGNAL_WITHIN: Duration = Duration::from_secs(5);
const FINISH_WITHIN: Duration = Duration::from_secs(120);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Complaint {
    /// Programs that must be installed.
    needs: Vec<String>,
    /// The server as the complaint has it: a script of the folder, and its words.
    server: String,
    /// The same with the cure that the advice names.
    cure: String,
    /// Flags of `loadgen`, which sends for some 3 s.
    load: String,
    /// One of its workers is stopped meanwhile.
    #[serde(default)]
    stops_a_worker: bool,
    symptom: Symptom,
    /// The finding that `lab inspect` should have.
    finding: String,
    /// A part of its advice: the server's own option.
    option: String,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Symptom {
    /// The share of the connections that the busiest worker has, in %.
    Busiest,
    /// Requests without an answer in time, in %.
    Stuck,
    /// The 99th percentile of the time until a connection is established, in ms.
    Connect,
    /// How often the server's threads go to sleep for each connection: as often they were woken.
    Switches,
}

impl Symptom {
    /// In [`crate::metrics`], before and after the cure.
    fn keys(self) -> [&'static str; 2] {
        match self {
            Symptom::Busiest => ["busiest_before", "busiest_after"],
            Symptom::Stuck => ["stuck_before", "stuck_after"],
            Symptom::Connect => ["connect_before_ms", "connect_after_ms"],
            Symptom::Switches => ["switches_before", "switches_after"],
        }
    }

    fn number(self, seen: &Observed) -> Result<f64, Stop> {
        let report = &seen.report;
        let connections = || report.workers.values().map(|share| share.connections);
        let timeouts = report.errors.timeout as f64;
        let (part, whole) = match self {
            Symptom::Busiest => (100.0 * connections().max().unwrap_or(0) as f64, connections().sum::<u64>() as f64),
            Symptom::Stuck => (100.0 * timeouts, answered(report) + timeouts),
            Symptom::Connect => (report.connect_us.p99, 1e3),
            Symptom::Switches => (seen.switches as f64, connections().sum::<u64>() as f64),
        };
        if whole > 0.0 { Ok(part / whole) } else { Err(Stop::Failed("the server has answered nothing".to_string())) }
    }
}

/// What happened while the client sent.
struct Observed {
    report: LoadReport,
    /// What `lab inspect --format json` has printed.
    diagnosis: Value,
    /// Voluntary context switches of all threads of the server.
    switches: u64,
}

/// Measures one complaint, by its name.
pub fn measure(name: &str, servers: &Path, interrupt: &Interrupt) -> Result<TrialReport, Stop> {
    let complaint = read(name, servers)?;
    if let Some(program) = complaint.needs.iter().find(|program| on_path(program).is_none()) {
        let why = format!("{program} is not installed (scripts/install_contenders.sh)");
        return Ok(TrialReport { skipped: Some(why), ..TrialReport::default() });
    }
    let command = |words: &str| ServerCommand::from(format!("{}/{words} --listen 127.0.0.1:0", servers.display()));
    let version = contender::version(&command(&complaint.server), interrupt).unwrap_or_default();
    let before = observe(&complaint, &command(&complaint.server), interrupt)?;
    let after = observe(&complaint, &command(&complaint.cure), interrupt)?;
    let found = |seen: &Observed| findings(&seen.diagnosis).find(|finding| finding["id"] == complaint.finding).cloned();
    let is_advised = |finding: &Value| finding["advice"].as_str().is_some_and(|text| text.contains(&complaint.option));
    let finding = found(&before);
    let [key_before, key_after] = complaint.symptom.keys();
    let numbers: Numbers = numbers([
        (key_before, complaint.symptom.number(&before)?),
        (key_after, complaint.symptom.number(&after)?),
        ("diagnosed", f64::from(finding.is_some())),
        ("advised", f64::from(finding.as_ref().is_some_and(is_advised))),
        ("found_after", f64::from(found(&after).is_some())),
    ]);
    Ok(TrialReport { version, numbers, ..TrialReport::default() })
}

fn read(name: &str, servers: &Path) -> Result<Complaint, Stop> {
    let folder = servers.join("complaints");
    let path = folder.join(format!("{name}.toml"));
    let text = fs::read_to_string(&path).map_err(|error| {
        let there = names(&folder).join(", ");
        Failure::new(format_args!("read {}", path.display()), error).advise(format!("there are {there}")).to_string()
    })?;
    toml::from_str(&text).map_err(|error| Stop::Failed(format!("{}: {}", path.display(), error.message())))
}

fn names(folder: &Path) -> Vec<String> {
    let files: Vec<PathBuf> = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    let mut names: Vec<String> =
        files.iter().filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned())).collect();
    names.sort();
    names
}

/// Starts the server and the client, and asks `lab inspect` while the client measures.
fn observe(complaint: &Complaint, command: &ServerCommand, interrupt: &Interrupt) -> Result<Observed, Stop> {
    let contender = Contender::new()?;
    let program = contender.program(command).until(interrupt);
    let mut server = program.launch(&[])?;
    let address = contender.await_ready(&mut server, START_WITHIN).map_err(|why| why.stop(program.name()))?;
    let stopped = children(server.pid()).into_iter().next().filter(|_| complaint.stops_a_worker);
    if let Some(worker) = &stopped
        && !worker.stop(SIGNAL_WITHIN)
    {
        return Err(Stop::Failed(server.failure("has a worker that SIGSTOP does not stop")));
    }
    let switches = || -> u64 { members(server.pid()).iter().filter_map(|stat| voluntary_switches(stat.pid)).sum() };
    let before = switches();
    let (report, diagnosis) = load_and_look(complaint, &address, interrupt)?;
    let switches = switches().saturating_sub(before);
    if let Some(worker) = &stopped {
        worker.resume(SIGNAL_WITHIN);
    }
    server.signal(Signal::SIGTERM);
    contender.await_end(&mut server, STOP_WITHIN)?;
    Ok(Observed { report, diagnosis, switches })
}

fn load_and_look(complaint: &Complaint, address: &str, interrupt: &Interrupt) -> Result<(LoadReport, Value), Stop> {
    let load = format!("loadgen {} --warmup 0s --progress phases --format json http://{address}/", complaint.load);
    let look = Program::of(&format!("lab inspect {address} --duration {LOOK} --format json")).until(interrupt);
    let mut client = Program::of(&load).until(interrupt).launch(&[])?;
    let mut inspect: Option<Result<Running, String>> = None;
    let document = client.finish(FINISH_WITHIN, |line| {
        if line.trim() == "phase measure" {
            inspect = Some(look.launch(&[]));
        }
    })?;
    let report = client.parse(&document)?;
    let mut inspect = inspect.ok_or_else(|| Stop::Failed(client.failure("never began to measure")))??;
    let document = inspect.finish(FINISH_WITHIN, |_| ())?;
    Ok((report, inspect.parse(&document)?))
}

fn findings(diagnosis: &Value) -> impl Iterator<Item = &Value> {
    diagnosis["findings"].as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_complaint_is_read_and_names_a_script_and_a_finding() {
        let servers = Path::new(env!("CARGO_MANIFEST_DIR")).join(SERVERS);
        let all = names(&servers.join("complaints"));
        assert!(all.len() >= 8, "{all:?}");
        for name in all {
            let complaint = read(&name, &servers).unwrap_or_else(|why| panic!("{why:?}"));
            for command in [&complaint.server, &complaint.cure] {
                let script = command.split(' ').next().unwrap_or_default();
                assert!(servers.join(script).exists(), "{name}: {command}");
            }
            assert!(crate::lab::inspect::findings::IDS.contains(&&*complaint.finding), "{name}: {}", complaint.finding);
        }
    }
}
