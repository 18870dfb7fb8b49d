//! What `lab inspect` costs the server that it looks at, and how long a look takes.
//!
//! The server has the first CPU for itself; its client and `lab inspect` are on the others. Each pair of windows has
//! the same load, one with `lab inspect` and one without, and the next pair has them in the other order.

use std::time::{Duration, Instant};

use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;

use super::numbers;
use crate::cpu;
use crate::failure::Failure;
use crate::lab::inspect::Observer;
use crate::lab::observe::processes::{cpu_ns, family};
use crate::lab::program::{Interrupt, Program, Running, Stop, is_closed};
use crate::lab::target::Target;
use crate::report::{LoadReport, TrialReport};
use crate::stats::median;

/// How long a thousand processes may take to be forked.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long so many connections may take to be made, and a program to end behind its time.
const GRACE: Duration = Duration::from_secs(120);
/// Before a window counts; `lab inspect` begins at the same moment.
const WARMUP: Duration = Duration::from_millis(300);
/// `lab inspect` looks so much longer than the client sends.
const MARGIN: Duration = Duration::from_millis(200);
/// The idle connections of one client: a source address has 28,000 ports, and many systems allow a process 20,000
/// descriptors.
const IDLE_PER_CLIENT: usize = 15_000;
/// Looks whose time is measured.
const LOOKS: usize = 5;

#[derive(Args)]
pub struct Watched {
    #[arg(long, value_name = "N", default_value_t = 10)]
    pairs: usize,
    #[arg(long, value_name = "DUR", default_value = "1s", value_parser = crate::units::parse_positive_duration)]
    window: Duration,
    /// Of the server
    #[arg(long, value_name = "N")]
    workers: Option<usize>,
    /// Of the server: what each request costs
    #[arg(long, value_name = "WORK")]
    work: Option<String>,
    /// A new connection for each request
    #[arg(long)]
    new_connections: bool,
    /// Silent connections beside those that are measured
    #[arg(long, value_name = "N", default_value_t = 0)]
    idle: usize,
    /// Let `lab inspect` count with the kernel's tracepoints
    #[arg(long)]
    exact: bool,
}

/// One server, the address that it listens on, and the CPUs of all others.
struct Subject<'a> {
    trial: &'a Watched,
    server: Running,
    address: String,
    others: Vec<usize>,
    interrupt: &'a Interrupt,
}

/// What was measured in one window.
struct Window {
    qps: f64,
    cpu_per_request: f64,
    looker: Option<Looker>,
}

/// What `lab inspect` did meanwhile.
struct Looker {
    /// CPU time, per time.
    cpu_share: f64,
    /// Why the kernel did not count exactly, where it was asked to.
    uncounted: Option<String>,
}

pub fn watched(of: &str, trial: &Watched, interrupt: &Interrupt) -> Result<TrialReport, Stop> {
    raise_descriptor_limit()?;
    let mut subject = Subject::start(of, trial, interrupt)?;
    let idle = subject.connect_idle()?;
    let target = Target::parse(&subject.address)?;
    subject.await_connections(&target, |open| open >= trial.idle)?;
    let (mut without, mut lost, mut more, mut looker) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for pair in 0..trial.pairs {
        let is_first_watched = pair % 2 == 0;
        let [one, other] = [subject.window(is_first_watched)?, subject.window(!is_first_watched)?];
        let (with, alone) = if is_first_watched { (one, other) } else { (other, one) };
        without.push(alone.qps);
        lost.push(100.0 * (1.0 - with.qps / alone.qps));
        more.push(100.0 * (with.cpu_per_request / alone.cpu_per_request - 1.0));
        if let Some(Looker { cpu_share, uncounted }) = with.looker {
            if uncounted.is_some() {
                return Ok(TrialReport { skipped: uncounted, ..TrialReport::default() });
            }
            looker.push(100.0 * cpu_share);
        }
    }
    // The server may not have closed those of the last window yet. Each idle client has one that is not silent.
    subject.await_connections(&target, |open| open <= trial.idle + idle.len())?;
    let begin = Instant::now();
    let mut observer = Observer::begin(target)?;
    observer.look()?;
    let first_look = begin.elapsed();
    let mut looks = Vec::new();
    for _ in 0..LOOKS {
        let begin = Instant::now();
        observer.look()?;
        looks.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    let last = observer.recording.last();
    let middle = |values: &[f64]| median(values).unwrap_or(0.0);
    let found = numbers([
        ("unwatched_qps", middle(&without)),
        ("watched_cost", middle(&lost)),
        ("watched_cpu_cost", middle(&more)),
        ("looker_cpu", middle(&looker)),
        ("connections_seen", last.open as f64),
        ("processes_seen", last.processes.len() as f64),
        ("first_look_ms", first_look.as_secs_f64() * 1e3),
        ("look_ms", middle(&looks)),
    ]);
    subject.server.terminate(READY_WITHIN);
    let version = env!("CARGO_PKG_VERSION").to_string();
    Ok(TrialReport { version, numbers: found, ..TrialReport::default() })
}

impl<'a> Subject<'a> {
    fn start(of: &str, trial: &'a Watched, interrupt: &'a Interrupt) -> Result<Subject<'a>, Stop> {
        let allowed = cpu::allowed();
        let others = if allowed.len() > 1 { allowed[1..].to_vec() } else { allowed.clone() };
        let mut words = vec!["--listen".to_string(), "127.0.0.1:0".to_string()];
        words.extend(["--idle-timeout", "1h"].map(String::from));
        words.extend(trial.workers.map(|count| format!("--workers={count}")));
        words.extend(trial.work.as_ref().map(|work| format!("--work={work}")));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut server = Program::of(of).on_cpus(&allowed[..1]).until(interrupt).launch(&words)?;
        let address = server.await_ready(READY_WITHIN).map_err(|not_ready| not_ready.stop(of))?;
        Ok(Subject { trial, server, address, others, interrupt })
    }

    fn launch(&self, command: &str) -> Result<Running, Stop> {
        Ok(Program::of(command).on_cpus(&self.others).until(self.interrupt).launch(&[])?)
    }

    /// The clients that hold the silent connections.
    fn connect_idle(&self) -> Result<Vec<Running>, Stop> {
        let idle = self.trial.idle;
        let counts = (0..idle).step_by(IDLE_PER_CLIENT).map(|begin| IDLE_PER_CLIENT.min(idle - begin));
        let client = |(number, count)| {
            let source = format!("127.1.0.{}", number + 1);
            self.launch(&format!(
                "loadgen --threads 1 --connections 1 --rate 1 --background idle:{count} --source {source} \
                 --warmup 1h --duration 1s --progress none --format json http://{}/",
                self.address
            ))
        };
        counts.enumerate().map(client).collect()
    }

    /// Looks until as many connections are there as should be.
    fn await_connections(&self, target: &Target, is_right: impl Fn(usize) -> bool) -> Result<(), Stop> {
        let mut observer = Observer::begin(target.clone())?;
        let until = Instant::now() + GRACE;
        loop {
            observer.look()?;
            let open = observer.recording.looks.last().map_or(0, |look| look.open);
            match is_right(open as usize) {
                true => return Ok(()),
                false if is_closed(self.interrupt) => return Err(Stop::Interrupted),
                false if Instant::now() > until => {
                    return Err(format!("{open} connections are there; {} should be silent", self.trial.idle).into());
                }
                false => {}
            }
        }
    }

    fn window(&self, is_watched: bool) -> Result<Window, Stop> {
        let Subject { trial, address, .. } = self;
        let [window, warmup, all] =
            [trial.window, WARMUP, WARMUP + trial.window + MARGIN].map(|time| format!("{}ms", time.as_millis()));
        let exact = if trial.exact { " --exact" } else { "" };
        let begin = Instant::now();
        let looker = match is_watched {
            true => Some(self.launch(&format!("lab inspect {address} --duration {all} --format json{exact}"))?),
            false => None,
        };
        let each = if trial.new_connections { " --requests-per-connection 1" } else { "" };
        let before = self.cpu_ns();
        let mut client = self.launch(&format!(
            "loadgen --threads 1 --connections 16{each} --warmup {warmup} --duration {window} --progress phases \
             --format json http://{address}/"
        ))?;
        // Absent when it has ended by then.
        let mut cpu_share = None;
        let document = client.finish(trial.window + GRACE, |line| {
            if let Some(looker) = looker.as_ref().filter(|_| line.trim() == "phase drain") {
                cpu_share = cpu_ns(looker.pid()).map(|used| used as f64 / begin.elapsed().as_nanos() as f64);
            }
        })?;
        let cpu_ns_of_server = self.cpu_ns() - before;
        let report: LoadReport = client.parse(&document)?;
        let mut window =
            Window { qps: report.qps, cpu_per_request: cpu_ns_of_server as f64 / all_requests(&report), looker: None };
        if let Some(mut looker) = looker {
            let document = looker.finish(trial.window + GRACE, |_| ())?;
            let early = || Stop::Failed(looker.failure("inspect ended before its window: the machine is too busy"));
            let cpu_share = cpu_share.ok_or_else(early)?;
            let uncounted = uncounted(&looker.parse(&document)?);
            window.looker = Some(Looker { cpu_share, uncounted });
        }
        Ok(window)
    }

    fn cpu_ns(&self) -> u64 {
        family(self.server.pid()).iter().filter_map(|process| cpu_ns(process.pid)).sum()
    }
}

/// The line in which `lab inspect --exact` says that the kernel does not count for it.
fn uncounted(diagnosis: &Value) -> Option<String> {
    let lines = diagnosis["unseen"].as_array().into_iter().flatten().filter_map(Value::as_str);
    lines.filter(|line| line.starts_with("exact")).map(str::to_string).next()
}

/// Those before and behind the window, too.
fn all_requests(report: &LoadReport) -> f64 {
    (report.requests + report.outside_window.warmup + report.outside_window.late).max(1) as f64
}

/// As far as we may: ours, and since limits are inherited, the server's and the clients'.
fn raise_descriptor_limit() -> Result<(), String> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|errno| Failure::new("getrlimit", errno).to_string())?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).map_err(|errno| Failure::new("setrlimit", errno).to_string())
}
