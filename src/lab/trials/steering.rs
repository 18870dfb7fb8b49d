//! `lab steer` on a server that was not made for it: which connections are stuck when a worker is stopped, and how evenly
//! the workers share them and what the steering costs while all are healthy.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use clap::Args;
use crossbeam_channel::{RecvTimeoutError, bounded};
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use serde_json::Value;

use super::{Measured, Numbers, numbers};
use crate::console;
use crate::cpu;
use crate::lab::observe::processes::{Process, children, poll_until};
use crate::lab::plan::command::ServerCommand;
use crate::lab::program::{Interrupt, Program, Running, Stop, on_path};
use crate::lab::run::contender::{self, Contender};
use crate::report::{LoadReport, TrialReport};
use crate::stats;
use crate::sys::procfs::open_descriptors;
use crate::units::parse_duration;

const WITHIN: Duration = Duration::from_secs(30);
/// A client that waits this long for an answer counts it as stuck; a worker that is healthy needs a few ms.
const STUCK_AFTER: &str = "300ms";
/// In every order of two, so that a machine that gets slower favours none.
const PAIR: [bool; 4] = [false, true, true, false];

pub const WORKERS: usize = 4;

/// CAP_SYS_ADMIN holds CAP_BPF (capabilities(7)).
const WITHOUT_BPF: &str = "setpriv --bounding-set=-bpf,-sys_admin ";
/// Between two samples of the open connections.
const SAMPLE_EVERY: Duration = Duration::from_millis(20);
/// Users come by chance, ask twice with a pause between, exponential too, and leave: some 200 are there.
const USERS: &str = "--sessions --connections 2000 --requests-per-connection 2 --rate 800 --think exp:250ms \
                     --warmup 750ms --duration 1500ms";

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
    /// A way to choose of `lab steer`; with --even also `none`
    #[arg(long, value_name = "WAY")]
    select: String,
    /// Instead of the cost: how evenly do the workers share the open connections?
    #[arg(long)]
    even: bool,
    /// Without CAP_BPF, so that `least-loaded` is by chance
    #[arg(long, requires = "even")]
    draw: bool,
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
    if !trial.even {
        return subject.report(|| subject.cost(&trial.select, trial.pairs, trial.window));
    }
    let drops = trial.draw && geteuid().is_root();
    let mut why = (drops && on_path("setpriv").is_none()).then(|| "setpriv is not installed (util-linux)".to_string());
    if why.is_some() {
        return Ok(TrialReport { skipped: why, ..TrialReport::default() });
    }
    let report = subject.report(|| subject.even(trial, if drops { WITHOUT_BPF } else { "" }, &mut why))?;
    Ok(TrialReport { skipped: report.skipped.or(why), ..report })
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
    fn steer(&self, server: &Server, select: Option<&str>, launcher: &str) -> Result<Option<Steer>, Stop> {
        let Some(select) = select else { return Ok(None) };
        let program = Program::of(&format!("{launcher}lab steer {} --select {select} --format json", server.address));
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
        let steering = self.steer(&server, select, "")?;
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

    /// How even are the open connections? `why` says why nothing is measured: `least-loaded` is not as it should be, say.
    fn even(&self, trial: &SteerCost, launcher: &str, why: &mut Option<String>) -> Measured {
        let mut server = self.start()?;
        let workers = children(server.running.pid());
        let others = descriptors(&workers);
        if workers.len() != WORKERS {
            return Err(Stop::Failed(server.running.failure(&format!("has {} workers", workers.len()))));
        }
        let select = Some(trial.select.as_str()).filter(|select| *select != "none");
        let steering = self.steer(&server, select, launcher)?;
        let begun = steering.as_ref().and_then(|steer| all_of(&steer.said, "steering").next()).unwrap_or_default();
        let samples = match begun["exact"].as_bool() {
            Some(is_exact) if is_exact == trial.draw => Vec::new(),
            _ => self.sample(&server, &workers)?,
        };
        steering.map(Steer::end).transpose()?;
        server.end()?;
        if samples.is_empty() {
            *why = Some(match (begun["exact"].as_bool(), begun["why"].as_str()) {
                (Some(true), _) if trial.draw => {
                    "any user may load it (kernel.unprivileged_bpf_disabled is 0)".to_string()
                }
                (_, Some(why)) => why.to_string(),
                (_, None) => "the machine is too busy for a sample".to_string(),
            });
            return Ok(Numbers::new());
        }
        let open = |sample: &Vec<f64>| sample.iter().zip(&others).map(|(all, others)| all - others).collect();
        let (open, spread) = evenness(&samples.iter().map(open).collect::<Vec<Vec<f64>>>());
        let chance = (open / WORKERS as f64).sqrt();
        Ok(numbers([("steer_open", open), ("steer_spread", spread), ("steer_spread_chance", chance)]))
    }

    /// The descriptors of each worker, again and again while users come and go.
    fn sample(&self, server: &Server, workers: &[Process]) -> Result<Vec<Vec<f64>>, Stop> {
        let is_measured = AtomicBool::new(false);
        let (end, ended) = bounded::<()>(0);
        thread::scope(|scope| {
            let sampler = scope.spawn(|| {
                let mut samples = Vec::new();
                while ended.recv_timeout(SAMPLE_EVERY) == Err(RecvTimeoutError::Timeout) {
                    samples.extend(is_measured.load(Relaxed).then(|| descriptors(workers)));
                }
                samples
            });
            let report = self.load(server, USERS, |line| match line.trim() {
                "phase measure" => is_measured.store(true, Relaxed),
                "phase drain" => is_measured.store(false, Relaxed),
                _ => {}
            });
            drop(end);
            let samples = sampler.join().expect("it only reads");
            report.map(|_| samples)
        })
    }

    /// Connections per second, with and without steering, in turns.
    fn cost(&self, select: &str, pairs: usize, window: Duration) -> Measured {
        let mut server = self.start()?;
        let flags =
            format!("--connections 64 --requests-per-connection 1 --warmup 100ms --duration {}ms", window.as_millis());
        let (mut without, mut with) = (Vec::new(), Vec::new());
        for is_steered in PAIR.into_iter().cycle().take(2 * pairs) {
            let steering = self.steer(&server, is_steered.then_some(select), "")?;
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

fn descriptors(workers: &[Process]) -> Vec<f64> {
    workers.iter().map(|worker| open_descriptors(worker.pid).unwrap_or(0) as f64).collect()
}

/// The mean of the sum of each sample, and the root of the mean of their variances.
fn evenness(samples: &[Vec<f64>]) -> (f64, f64) {
    let variance = |sample: &Vec<f64>| {
        let mean = sample.iter().sum::<f64>() / sample.len() as f64;
        sample.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (sample.len() - 1) as f64
    };
    let mean = |of: &dyn Fn(&Vec<f64>) -> f64| samples.iter().map(of).sum::<f64>() / samples.len() as f64;
    (mean(&|sample| sample.iter().sum()), mean(&variance).sqrt())
}

fn all_of<'a>(events: &'a str, name: &'a str) -> impl Iterator<Item = Value> + 'a {
    let all = events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    all.filter(move |event| event["event"] == name)
}

/// Whether `lab steer` has seen that this worker was stopped.
fn is_out(events: &str, pid: i32) -> Result<(), Stop> {
    match all_of(events, "out").any(|event| event["pid"] == pid) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spread_is_the_root_of_the_mean_variance_and_two_workers_that_differ_by_2_have_a_variance_of_2() {
        assert_eq!(evenness(&[vec![1.0, 3.0], vec![2.0, 2.0]]), (4.0, 1.0));
    }
}
