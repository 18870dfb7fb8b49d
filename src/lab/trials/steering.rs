//! `lab steer` on a server that was not made for it: which connections are stuck when a worker is stopped, and what the
//! steering costs while all are healthy.

use std::time::Duration;

use clap::Args;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Measured, numbers};
use crate::console;
use crate::cpu;
use crate::lab::observe::processes::{children, poll_until};
use crate::lab::plan::command::ServerCommand;
use crate::lab::program::{Interrupt, Program, Running, Stop, on_path};
use crate::lab::run::contender::{self, Contender};
use crate::report::{LoadReport, TrialReport};
use crate::stats;
use crate::units::parse_duration;

const WITHIN: Duration = Duration::from_secs(30);
/// A client that waits this long for an answer counts it as stuck; a worker that is healthy needs a few ms.
const STUCK_AFTER: &str = "300ms";
/// In every order of two, so that a machine that gets slower favours none.
const PAIR: [bool; 4] = [false, true, true, false];

pub const WORKERS: usize = 4;

/// Per cent: more is not what comes before the worker is noticed, and the events are printed.
const FEW_STUCK: f64 = 5.0;

#[derive(Args)]
pub struct SteerStopped {
    /// A way to choose of `lab steer`, or `none`
    #[arg(long, value_name = "WAY")]
    select: String,
    #[arg(long, value_name = "R", default_value_t = 500)]
    rate: u32,
    #[arg(long, value_name = "DUR", default_value = "2s", value_parser = parse_duration)]
    duration: Duration,
}

#[derive(Args)]
pub struct SteerCost {
    /// A way to choose of `lab steer`
    #[arg(long, value_name = "WAY")]
    select: String,
    /// Windows with it, and as many without
    #[arg(long, value_name = "N", default_value_t = 10)]
    pairs: usize,
    #[arg(long, value_name = "DUR", default_value = "400ms", value_parser = parse_duration)]
    window: Duration,
}

/// One of the workers of this server is stopped while connections with one request each come.
pub fn stopped_worker(of: &str, trial: &SteerStopped, interrupt: &Interrupt) -> Result<TrialReport, Stop> {
    let subject = Subject::new(of, interrupt);
    let select = Some(trial.select.as_str()).filter(|select| *select != "none");
    subject.report(|| subject.stopped_worker(select, trial.rate, trial.duration))
}

/// All workers of this server are healthy.
pub fn cost(of: &str, trial: &SteerCost, interrupt: &Interrupt) -> Result<TrialReport, Stop> {
    let subject = Subject::new(of, interrupt);
    subject.report(|| subject.cost(&trial.select, trial.pairs, trial.window))
}

/// A server with four workers, ours or another project's.
pub struct Subject {
    command: ServerCommand,
    interrupt: Interrupt,
}

pub struct Server {
    running: Running,
    contender: Option<Contender>,
    pub address: String,
}

struct Steer {
    running: Running,
    /// Its events, a line each.
    said: String,
}

impl Subject {
    pub fn new(words: &str, interrupt: &Interrupt) -> Subject {
        let command = format!("{words} --workers {WORKERS} --listen 127.0.0.1:0").into();
        Subject { command, interrupt: interrupt.clone() }
    }

    /// Measures, where the server is installed.
    pub fn report(&self, measure: impl FnOnce() -> Measured) -> Result<TrialReport, Stop> {
        // The script that starts a server of another project has its name.
        let contender = self.command.program().rsplit_once('/').map(|(_, name)| name);
        if let Some(name) = contender.filter(|name| on_path(name).is_none()) {
            let why = format!("{name} is not installed (scripts/install_contenders.sh)");
            return Ok(TrialReport { skipped: Some(why), ..TrialReport::default() });
        }
        let numbers = measure()?;
        let version = contender::version(&self.command, &self.interrupt).unwrap_or_default();
        Ok(TrialReport { version, numbers, ..TrialReport::default() })
    }

    /// On the first of our CPUs.
    pub fn start(&self) -> Result<Server, Stop> {
        let is_contender = self.command.program().contains('/');
        let contender = is_contender.then(Contender::new).transpose()?;
        let program = match &contender {
            Some(contender) => contender.program(&self.command),
            None => Program::of(self.command.text()),
        };
        let first = cpu::allowed().first().copied().into_iter().collect::<Vec<_>>();
        let program = program.on_cpus(&first).until(&self.interrupt);
        let mut running = program.launch(&[])?;
        let ready = match &contender {
            Some(contender) => contender.await_ready(&mut running, WITHIN),
            None => running.await_ready(WITHIN),
        };
        let address = ready.map_err(|why| why.stop(program.name()))?;
        Ok(Server { running, contender, address })
    }

    /// `lab steer`, from the moment when it has attached its program, and its events so far. `None` is no steering.
    fn steer(&self, server: &Server, select: Option<&str>) -> Result<Option<Steer>, Stop> {
        let Some(select) = select else { return Ok(None) };
        let program = Program::of(&format!("lab steer {} --select {select} --format json", server.address));
        let mut steering = program.until(&self.interrupt).launch(&[])?;
        let mut said = String::new();
        let is_attached = poll_until(WITHIN, || {
            said += &steering.unread_stdout();
            (said.contains("\"steering\"") || self.program_is_interrupted()).then_some(())
        });
        match is_attached {
            None => Err(Stop::Failed(steering.failure("did not begin"))),
            Some(()) if self.program_is_interrupted() => Err(Stop::Interrupted),
            Some(()) => Ok(Some(Steer { running: steering, said })),
        }
    }

    fn program_is_interrupted(&self) -> bool {
        Program::of("lab").until(&self.interrupt).is_interrupted()
    }

    /// On the last of our CPUs. `on_line` sees what it says.
    pub fn load(&self, server: &Server, flags: &str, on_line: impl FnMut(&str)) -> Result<LoadReport, Stop> {
        let last = cpu::allowed().last().copied().into_iter().collect::<Vec<_>>();
        let command = format!("loadgen {flags} --threads 1 --progress phases --format json http://{}/", server.address);
        let mut running = Program::of(&command).on_cpus(&last).until(&self.interrupt).launch(&[])?;
        let document = running.finish(WITHIN, on_line)?;
        running.parse(&document)
    }

    /// How many connections are stuck?
    fn stopped_worker(&self, select: Option<&str>, rate: u32, duration: Duration) -> Measured {
        let mut server = self.start()?;
        let steering = self.steer(&server, select)?;
        let worker = children(server.running.pid()).into_iter().nth(WORKERS / 2);
        let worker = worker.ok_or_else(|| Stop::Failed(server.running.failure("has too few workers")))?;
        let flags = format!(
            "--connections 400 --requests-per-connection 1 --rate {rate} --arrivals poisson --timeout {STUCK_AFTER} \
             --warmup 200ms --duration {}ms",
            duration.as_millis()
        );
        let mut is_stopped = false;
        let report = self.load(&server, &flags, |line| {
            is_stopped |= line.trim() == "phase measure" && worker.stop(WITHIN);
        });
        worker.resume(WITHIN);
        let report = report?;
        if !is_stopped {
            return Err(Stop::Failed("the worker was not stopped".to_string()));
        }
        let events = steering.map(Steer::end).transpose()?;
        server.end()?;
        let stuck = report.errors.timeout as f64;
        let percent = 100.0 * stuck / (super::load::answered(&report) + stuck);
        if let Some(events) = events.filter(|_| matches!(select, Some("live-set" | "least-loaded"))) {
            if percent > FEW_STUCK {
                console::log(format_args!("pid {} was stopped, {percent:.1} % are stuck:\n{events}", worker.pid));
            }
            is_out(&events, worker.pid)?;
        }
        Ok(numbers([("steer_connections", super::load::answered(&report) + stuck), ("steer_stuck", percent)]))
    }

    /// Connections per second, with and without steering, in turns.
    fn cost(&self, select: &str, pairs: usize, window: Duration) -> Measured {
        let mut server = self.start()?;
        let flags =
            format!("--connections 64 --requests-per-connection 1 --warmup 100ms --duration {}ms", window.as_millis());
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for is_steered in PAIR.into_iter().cycle().take(2 * pairs) {
            let steering = self.steer(&server, is_steered.then_some(select))?;
            let rate = self.load(&server, &flags, |_| ())?.qps;
            steering.map(Steer::end).transpose()?;
            if is_steered { with.push(rate) } else { without.push(rate) }
        }
        server.end()?;
        let median = |rates: &[f64]| stats::median(rates).unwrap_or(0.0);
        Ok(numbers([
            ("rate_unsteered", median(&without)),
            ("rate_steered", median(&with)),
            ("rate_ratio", 100.0 * median(&with) / median(&without)),
        ]))
    }
}

/// Whether `lab steer` has seen that this worker was stopped.
fn is_out(events: &str, pid: i32) -> Result<(), Stop> {
    let mut all = events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    match all.any(|event| event["event"] == "out" && event["pid"] == pid) {
        true => Ok(()),
        false => Err(Stop::Failed(format!("pid {pid} was stopped, and lab steer said:\n{events}"))),
    }
}

impl Steer {
    /// All its events.
    fn end(mut self) -> Result<String, Stop> {
        self.running.signal(Signal::SIGINT);
        self.running.finish(WITHIN, |_| ()).map(|rest| self.said + &rest)
    }
}

impl Server {
    pub fn end(&mut self) -> Result<(), Stop> {
        self.running.signal(Signal::SIGTERM);
        match &self.contender {
            Some(contender) => contender.await_end(&mut self.running, WITHIN),
            None => self.running.finish(WITHIN, |_| ()).map(drop),
        }
    }
}
