//! Trials: one task for one program, its numbers as JSON.
//!
//! They are for what needs more than load. The trials of process managers, `pm` and npm's PM2: each starts the manager
//! with a folder of its own, gives it a configuration that both managers read, does what its name says, and leaves
//! nothing behind: also after Ctrl-C the manager and all that it has started end, and the folder is removed. The
//! applications are the Node programs in experiments/watchmen/. The trial of a complaint starts a server of another
//! project as a public complaint has it, and then with its cure (experiments/contenders/complaints/). Where a program
//! is not installed, the trial says so in `skipped` and measures nothing.
//!
//! See it: `trial killed-daemon --of pm`, then the same with `--of pm2`; `trial complaint --of kong-12359`. The lab runs
//! all of them, in turns: `lab run 20 30`.

#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use acceptlab::console::{self, Format};
use acceptlab::lab::observe::tracepoints::mount_for_ourselves;
use acceptlab::lab::program::{Interrupt, Stop, watch_for_interrupt};
use acceptlab::lab::trials::blind_test::{self, BlindTest};
use acceptlab::lab::trials::manager::{Manager, ManagerKind};
use acceptlab::lab::trials::served::{self, Served};
use acceptlab::lab::trials::steering::{self, SteerCost, SteerStopped};
use acceptlab::lab::trials::watching::{self, Watched};
use acceptlab::lab::trials::{Measured, complaints, keeping, serving, telling};
use acceptlab::metrics;
use acceptlab::report::TrialReport;
use acceptlab::units::parse_duration;
use clap::{Parser, Subcommand, ValueEnum};

/// Trials: one task for one program, its numbers as JSON
#[derive(Parser)]
#[command(name = "trial", version)]
struct Args {
    #[command(subcommand)]
    trial: Trial,

    /// What is tried; its kind depends on the trial
    ///
    /// Of a trial of managers: pm or pm2.
    ///
    /// Of `watched`: a server of ours.
    ///
    /// Of `served`: a server with workers, ours or `experiments/contenders/NAME`.
    ///
    /// Of `steer-stopped` and `steer-cost`: a server with a listener for each worker, ours or
    /// `experiments/contenders/nginx reuseport`.
    ///
    /// Of `complaint`: the complaint's name.
    ///
    /// Of `blind-test`: ours or contenders.
    #[arg(long, alias = "manager", value_name = "WHO", global = true, default_value = "pm", num_args = 1..)]
    of: Vec<String>,

    /// The folder of the applications
    #[arg(long, value_name = "FOLDER", global = true, default_value = "experiments/watchmen")]
    programs: PathBuf,

    /// A line for each number with its definition, or one JSON object
    #[arg(long, value_enum, global = true, default_value = "text")]
    format: Format,
}

#[derive(Subcommand)]
enum Trial {
    #[command(flatten)]
    OfManager(ManagerTrial),
    /// What `lab inspect` costs a server of ours that it looks at: windows of load with it and without, in turns
    Watched(Watched),
    /// `lab steer`, one of four workers of a server is stopped: how many connections are stuck?
    SteerStopped(SteerStopped),
    /// `lab steer`, all four workers of a server are healthy: how many connections per second with it and without?
    SteerCost(SteerCost),
    /// A server with four workers: which of them gets the connections, as `lab inspect` sees it and as the answers say it?
    Served(Served),
    /// A public complaint about a server of another project (--of gunicorn-2670): its symptom, what `lab inspect` says
    /// of it, and the symptom after the cure
    Complaint {
        /// The folder of the scripts that start these servers; the complaints are in its folder complaints/
        #[arg(long, value_name = "FOLDER", default_value = complaints::SERVERS)]
        servers: PathBuf,
    },
    /// Servers in random order, healthy and with one worker stopped: what does `lab inspect` say of each?
    BlindTest(BlindTest),
}

#[derive(Subcommand)]
enum ManagerTrial {
    /// Reloads under load: how many requests are lost?
    Reloads {
        #[arg(long, value_name = "N", default_value_t = 20)]
        reloads: u32,
        #[arg(long, value_name = "DUR", default_value = "30s", value_parser = parse_duration)]
        duration: Duration,
    },
    /// A new version that never gets ready: does the old one go on serving?
    NeverReady {
        #[arg(long, value_name = "DUR", default_value = "6s", value_parser = parse_duration)]
        duration: Duration,
    },
    /// Programs that crash after each period, with and without a delay: is each given up within its restarts?
    CrashLoops {
        #[arg(long, value_name = "N", default_value_t = 3)]
        max_restarts: u32,
        #[arg(long, value_name = "DUR,…", default_value = "100ms,1s,5s,20s", value_delimiter = ',')]
        #[arg(value_parser = parse_duration)]
        periods: Vec<Duration>,
        #[arg(long, value_name = "DUR", default_value = "500ms", value_parser = parse_duration)]
        delay: Duration,
    },
    /// Lines of four processes in one log that is rotated: are they whole, in order and complete, and how large is the
    /// daemon?
    Logs {
        #[arg(long, value_name = "N", default_value_t = 4)]
        writers: usize,
        #[arg(long, value_name = "N", default_value_t = 1_000_000)]
        lines_per_minute: u32,
        #[arg(long, value_name = "DUR", default_value = "2m", value_parser = parse_duration)]
        duration: Duration,
        #[arg(long, value_name = "N", default_value_t = 7)]
        rotations: u32,
    },
    /// A process that needs more than its limit of memory: when does it end?
    MemoryLimit {
        /// Wait no longer
        #[arg(long, value_name = "DUR", default_value = "40s", value_parser = parse_duration)]
        within: Duration,
    },
    /// The daemon is killed: do the applications go on serving, and does the next daemon find them?
    KilledDaemon {
        #[arg(long, value_name = "DUR", default_value = "6s", value_parser = parse_duration)]
        duration: Duration,
        /// How long a request may take; longer on a machine that is too busy for the load
        #[arg(long, value_name = "DUR", default_value = "2s", value_parser = parse_duration)]
        timeout: Duration,
    },
    /// Variables that change between two configurations: which has the process after a reload?
    Environment,
    /// The daemon is killed at random moments while it saves its list: is what is saved whole?
    KilledSaves {
        #[arg(long, value_name = "N", default_value_t = 200)]
        kills: u32,
        /// Fewer, where they take longer
        #[arg(long, value_name = "DUR", default_value = "30s", value_parser = parse_duration)]
        within: Duration,
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
    },
    /// The manager's sockets: whom do they let in?
    Sockets,
    /// The list as JSON: does a program that was written for PM2 read it?
    Jlist,
    /// One of the workers is slow: how long do requests take?
    SlowWorker {
        /// rr: the master passes connections by turns; none: each worker accepts when it is free. PM2 does not know it
        #[arg(long, default_value = "rr", value_parser = ["rr", "none"])]
        schedule: String,
        #[arg(long, value_name = "N", default_value_t = 4)]
        workers: usize,
        #[arg(long, value_name = "DUR", default_value = "30ms", value_parser = parse_duration)]
        slow: Duration,
        #[arg(long, value_name = "DUR", default_value = "6s", value_parser = parse_duration)]
        duration: Duration,
    },
    /// Nothing happens: what does the daemon cost, how long do commands take, and how soon is a killed process back?
    Idle {
        #[arg(long, value_name = "N", default_value_t = 20)]
        applications: usize,
        #[arg(long, value_name = "DUR", default_value = "5s", value_parser = parse_duration)]
        duration: Duration,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(report) => console::end(Ok::<_, String>(print(&report, args.format))),
        // 128 + SIGINT, as shells report it.
        Err(Stop::Interrupted) => ExitCode::from(130),
        Err(Stop::Failed(line)) => console::end(Err(format!("trial: {line}"))),
    }
}

fn run(args: &Args) -> Result<TrialReport, Stop> {
    if let Trial::Served(_) = &args.trial {
        mount_for_ourselves();
    }
    let interrupt = watch_for_interrupt();
    let of = args.of.join(" ");
    match &args.trial {
        Trial::OfManager(trial) => of_manager(trial, &of, args, interrupt),
        Trial::Watched(trial) => watching::watched(&of, trial, &interrupt),
        Trial::SteerStopped(trial) => steering::stopped_worker(&of, trial, &interrupt),
        Trial::SteerCost(trial) => steering::cost(&of, trial, &interrupt),
        Trial::Served(trial) => served::served(&of, trial, &interrupt),
        Trial::Complaint { servers } => complaints::measure(&of, servers, &interrupt),
        Trial::BlindTest(test) => blind_test::run(test, &of, &interrupt),
    }
}

fn of_manager(trial: &ManagerTrial, of: &str, args: &Args, interrupt: Interrupt) -> Result<TrialReport, Stop> {
    let kind = ManagerKind::from_str(of, true).map_err(|_| format!("no process manager is called {of}: pm or pm2"))?;
    if let Some(why) = kind.missing() {
        return Ok(TrialReport { skipped: Some(why), ..TrialReport::default() });
    }
    let manager = Manager::new(kind, &args.programs, interrupt)?;
    let version = manager.version()?;
    Ok(TrialReport { version, numbers: measure(trial, &manager)?, ..TrialReport::default() })
}

fn measure(trial: &ManagerTrial, manager: &Manager) -> Measured {
    match *trial {
        ManagerTrial::Reloads { reloads, duration } => serving::reloads(manager, reloads, duration),
        ManagerTrial::NeverReady { duration } => serving::never_ready(manager, duration),
        ManagerTrial::CrashLoops { max_restarts, ref periods, delay } => {
            keeping::crash_loops(manager, max_restarts, periods, delay)
        }
        ManagerTrial::Logs { writers, lines_per_minute, duration, rotations } => {
            telling::logs(manager, writers, lines_per_minute, duration, rotations)
        }
        ManagerTrial::MemoryLimit { within } => keeping::memory_limit(manager, within),
        ManagerTrial::KilledDaemon { duration, timeout } => serving::killed_daemon(manager, duration, timeout),
        ManagerTrial::Environment => serving::environment(manager),
        ManagerTrial::KilledSaves { kills, within, seed } => keeping::killed_saves(manager, kills, within, seed),
        ManagerTrial::Sockets => telling::sockets(manager),
        ManagerTrial::Jlist => telling::jlist(manager),
        ManagerTrial::SlowWorker { ref schedule, workers, slow, duration } => {
            serving::slow_worker(manager, schedule, workers, slow, duration)
        }
        ManagerTrial::Idle { applications, duration } => telling::idle(manager, applications, duration),
    }
}

fn print(report: &TrialReport, format: Format) -> String {
    if format == Format::Json {
        return serde_json::to_string(report).expect("numbers and texts are JSON");
    }
    let line = |(key, number): (&String, &f64)| {
        let meaning = metrics::meaning(key);
        format!("{number:>12.3}  {}: {}", meaning.header, meaning.definition)
    };
    let lines = report.skipped.iter().map(|why| format!("skipped: {why}")).chain(report.numbers.iter().map(line));
    lines.chain(report.notes.iter().cloned()).collect::<Vec<_>>().join("\n")
}
