//! One process of an application as the daemon keeps it: how it is doing, what is due next, and how it is listed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use nix::unistd::Pid;

use super::config::{AppConfig, ExecMode, LogType};
use super::dump::{AfterStop, SavedProcess};
use super::fork_mode::{RunningProcess, open_fifo};
use super::home::{self, PmHome};
use super::logs::{LineFormat, LogFiles, LogSettings, LogStream, LogWriter};
use super::protocol::{ProcessEntry, ProcessState, ProcessStatus, ProcessUsage};
use super::restarts::RestartBudget;
use crate::failure::Failure;
use crate::sys::process::Ending;
use crate::sys::procfs::{self, Stat};
use crate::units::{monotonic_ns, wall_ms};

/// The kernel's ticks of CPU time in one second (`USER_HZ`, proc_pid_stat(5)).
const TICKS_PER_SECOND: f64 = 100.0;

/// Between two looks at the CPU time from which a share is computed.
const CPU_SAMPLE_NS: u64 = 200_000_000;

/// What is to be run, and the environment of who has asked for it.
pub struct Application {
    pub config: AppConfig,
    pub environment: BTreeMap<String, String>,
}

/// What is due at a time of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessDue {
    /// It was asked to end and had its time.
    Kill,
    /// The process has ended; has what it had started ended, too?
    LookAtGroup,
    Restart,
    /// Of its memory.
    LookAtMemory,
}

pub struct ManagedProcess {
    pub id: u32,
    pub number: usize,
    pub app: Rc<Application>,
    pub status: ProcessStatus,
    pub running: Option<RunningProcess>,
    pub after_stop: Option<AfterStop>,
    /// It has ended; what is left of its group is still awaited.
    pub left: Option<Pid>,
    /// At most one of each kind.
    pub due: Vec<(u64, ProcessDue)>,
    pub budget: RestartBudget,
    pub restart_time: u64,
    pub created_ms: u64,
    pub reason: Option<String>,
    pub exit_code: Option<i32>,
    /// The writers of its two outputs, from its first start on.
    pub outputs: Vec<(LogStream, LogWriter)>,
    cpu: CpuSample,
}

#[derive(Clone, Copy, Default)]
struct CpuSample {
    at_ns: u64,
    ticks: u64,
    percent: f64,
}

impl ManagedProcess {
    pub fn new(id: u32, number: usize, app: Rc<Application>) -> ManagedProcess {
        let budget = RestartBudget::new(&app.config);
        ManagedProcess {
            id,
            number,
            app,
            status: ProcessStatus::Stopped,
            running: None,
            after_stop: None,
            left: None,
            due: Vec::new(),
            budget,
            restart_time: 0,
            created_ms: wall_ms(),
            reason: None,
            exit_code: None,
            outputs: Vec::new(),
            cpu: CpuSample::default(),
        }
    }

    pub fn restore(saved: SavedProcess, app: Rc<Application>) -> ManagedProcess {
        ManagedProcess {
            status: saved.status,
            after_stop: saved.after_stop,
            budget: saved.budget,
            restart_time: saved.restart_time,
            created_ms: saved.created_ms,
            reason: saved.reason,
            exit_code: saved.exit_code,
            ..ManagedProcess::new(saved.id, saved.number, app)
        }
    }

    pub fn save(&self) -> SavedProcess {
        SavedProcess {
            id: self.id,
            number: self.number,
            status: self.status,
            after_stop: self.after_stop,
            identity: self.running.as_ref().map(|running| running.identity),
            budget: self.budget.clone(),
            restart_time: self.restart_time,
            created_ms: self.created_ms,
            reason: self.reason.clone(),
            exit_code: self.exit_code,
        }
    }

    /// A command that asked for this is still waiting.
    pub fn is_busy(&self) -> bool {
        matches!(self.status, ProcessStatus::Stopping | ProcessStatus::Launching)
    }

    pub fn set_due(&mut self, after: Duration, due: ProcessDue) {
        self.forget_due(due);
        self.due.push((monotonic_ns().saturating_add(after.as_nanos() as u64), due));
    }

    pub fn forget_due(&mut self, due: ProcessDue) {
        self.due.retain(|(_, other)| *other != due);
    }

    /// Takes what was due at this time.
    pub fn take_due(&mut self, now_ns: u64) -> Option<ProcessDue> {
        let at = self.due.iter().position(|(due_ns, _)| *due_ns <= now_ns)?;
        Some(self.due.swap_remove(at).1)
    }

    pub fn note_ending(&mut self, ending: Option<Ending>) {
        self.exit_code = ending.map(|ending| match ending {
            Ending::Exited(status) => status,
            Ending::KilledBy(signal) => 128 + signal,
        });
        self.reason = Some(ending.map_or("it has ended, nobody knows how".to_owned(), |ending| format!("it {ending}")));
    }

    /// The command line, with the environment: that of the client, the application's over it, and ours.
    pub fn command(&self, home: &PmHome) -> Command {
        let config = &self.app.config;
        let mut command = match &config.interpreter {
            None => Command::new(&config.script),
            Some(interpreter) => {
                let mut command = Command::new(interpreter);
                command.args(&config.interpreter_args).arg(&config.script);
                command
            }
        };
        command.args(&config.args).current_dir(&config.cwd);
        command.env_clear().envs(&self.app.environment).envs(&config.env);
        command.env(&config.instance_var, self.number.to_string());
        command.env(home::VARIABLE, home.folder()).env("pm_id", self.id.to_string()).env("name", &config.name);
        command
    }

    /// Opens the reading ends of its FIFOs, where they are not open yet.
    pub fn open_outputs(&mut self, home: &PmHome, files: &LogFiles) -> Result<bool, Failure> {
        if !self.outputs.is_empty() {
            return Ok(false);
        }
        for stream in [LogStream::Out, LogStream::Error] {
            let fifo = open_fifo(home, self.id, stream)?;
            let config = &self.app.config;
            let format = match config.log_type {
                LogType::Text => LineFormat::Plain,
                LogType::Json => LineFormat::Json { stream, process_id: self.id, app_name: config.name.clone() },
            };
            let settings = LogSettings {
                paths: vec![self.log_path(home, stream)],
                format,
                date_format: config.log_date_format.clone(),
                rotation: None,
            };
            let writer = LogWriter::open(fifo.into(), &settings, files);
            let writer =
                writer.map_err(|errno| Failure::new(format_args!("read the output of {}", config.name), errno))?;
            self.outputs.push((stream, writer));
        }
        Ok(true)
    }

    /// Instances have files of their own unless `merge_logs` is set: the id stands before the extension.
    pub fn log_path(&self, home: &PmHome, stream: LogStream) -> PathBuf {
        let config = &self.app.config;
        let (file, word) = match stream {
            LogStream::Out => (&config.out_file, "out"),
            LogStream::Error => (&config.error_file, "error"),
        };
        let id = if config.merge_logs { String::new() } else { format!("-{}", self.id) };
        match file {
            None => home.logs().join(format!("{}-{word}{id}.log", config.name)),
            Some(file) if config.instances == 1 || config.merge_logs => file.clone(),
            Some(file) => with_id(file, &id),
        }
    }

    /// As it is listed. The CPU share is that since the last look, or over the life of the process.
    pub fn entry(&mut self, home: &PmHome) -> ProcessEntry {
        let usage = self.usage();
        let config = &self.app.config;
        let running = self.running.as_ref().map(|running| running.identity);
        let path = |stream| self.log_path(home, stream).display().to_string();
        let state = ProcessState {
            status: self.status,
            pm_uptime: running.map_or(0, |running| running.since_ms),
            created_at: self.created_ms,
            uptime_ms: running.map_or(0, |running| monotonic_ns().saturating_sub(running.since_ns) / 1_000_000),
            restart_time: self.restart_time,
            unstable_restarts: self.budget.unstable(),
            exec_mode: match config.exec_mode {
                ExecMode::Fork => "fork_mode".to_owned(),
                ExecMode::Cluster => "cluster_mode".to_owned(),
            },
            instances: config.instances,
            pm_exec_path: config.script.display().to_string(),
            pm_cwd: config.cwd.display().to_string(),
            pm_out_log_path: path(LogStream::Out),
            pm_err_log_path: path(LogStream::Error),
            exec_interpreter: config.interpreter.clone().unwrap_or_else(|| "none".to_owned()),
            args: config.args.clone(),
            namespace: config.namespace.clone(),
            number: self.number,
            env: config.env.clone(),
            reason: self.reason.clone(),
            exit_code: self.exit_code,
            unknown: config.unknown.clone(),
            autorestart: config.autorestart,
            watch: !config.watch.is_empty(),
            cron_restart: config.cron_restart.clone(),
            max_memory_restart: config.max_memory_restart,
        };
        let pid = running.map_or(0, |running| running.pid);
        ProcessEntry { pid, name: config.name.clone(), pm_id: self.id, monit: usage, pm2_env: state }
    }

    fn usage(&mut self) -> ProcessUsage {
        let Some(running) = &self.running else { return ProcessUsage::default() };
        let identity = running.identity;
        let Some(stat) = Stat::of(identity.pid) else { return ProcessUsage::default() };
        let now_ns = monotonic_ns();
        let last = if self.cpu.at_ns < identity.since_ns {
            CpuSample { at_ns: identity.since_ns, ..CpuSample::default() }
        } else {
            self.cpu
        };
        let elapsed_ns = now_ns.saturating_sub(last.at_ns);
        if elapsed_ns >= CPU_SAMPLE_NS {
            let seconds = stat.cpu_ticks.saturating_sub(last.ticks) as f64 / TICKS_PER_SECOND;
            let percent = (seconds / (elapsed_ns as f64 / 1e9) * 1000.0).round() / 10.0;
            self.cpu = CpuSample { at_ns: now_ns, ticks: stat.cpu_ticks, percent };
        }
        let memory = procfs::resident_kib(identity.pid).unwrap_or(0) * 1024;
        ProcessUsage { memory, cpu: self.cpu.percent }
    }
}

/// `app.log` becomes `app-3.log`.
fn with_id(file: &Path, id: &str) -> PathBuf {
    let mut name = file.file_stem().unwrap_or_default().to_owned();
    name.push(id);
    if let Some(extension) = file.extension() {
        name.push(".");
        name.push(extension);
    }
    file.with_file_name(name)
}
