//! One process of an application as the daemon keeps it: how it is doing, what is due next, and how it is listed.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::super::config::{ExecMode, LogType};
use super::super::cron::CronRestart;
use super::super::dump::{AfterStop, Application, ProcessRecord, WorkerRecord};
use super::super::fork_mode::{ProcessIdentity, RunningProcess, open_fifo};
use super::super::home::{self, PmHome};
use super::super::json_lines::JsonLines;
use super::super::launch;
use super::super::logs::{AppLog, LogFiles, LogWriter};
use super::super::process_tree::ProcessTree;
use super::super::protocol::{ProcessEntry, ProcessState, ProcessStatus, ProcessUsage};
use super::super::watch::Watcher;
use super::cluster_mode::{self, ClusterCall};
use crate::failure::Failure;
use crate::logs::append_file::Rotation;
use crate::logs::lines::LogStream;
use crate::sys::process::Ending;
use crate::sys::procfs::{self, Stat};
use crate::units::monotonic_ns;

/// The kernel's ticks of CPU time in one second (`USER_HZ`, proc_pid_stat(5)).
const TICKS_PER_SECOND: f64 = 100.0;

/// Between two looks at the CPU time from which a share is computed.
const CPU_SAMPLE_NS: u64 = 200_000_000;

/// What says of a process of Node that it has a parent to talk to. The client's parent is none of an application.
const NODE_VARIABLES: [&str; 3] = ["NODE_CHANNEL_FD", "NODE_CHANNEL_SERIALIZATION_MODE", "NODE_UNIQUE_ID"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProcessDue {
    Kill,
    /// The process has ended; has what it had started ended, too?
    LookAtTree,
    Restart,
    NotReady,
    LookAtMemory,
}

#[derive(Default)]
pub struct ManagedProcess {
    pub saved: ProcessRecord,
    pub app: Rc<Application>,
    pub running: Option<RunningProcess>,
    /// What it has started, since it was asked to end; that has the same time to do so.
    pub tree: Option<ProcessTree>,
    pub watcher: Option<Watcher>,
    /// When, of CLOCK_MONOTONIC.
    pub due: BTreeMap<ProcessDue, u64>,
    /// What its cluster is doing for us.
    pub call: Option<ClusterCall>,
    /// Why the last thing that its cluster was asked for was not done.
    pub refusal: Option<String>,
    pub worker_events: Option<JsonLines<File>>,
    /// The workers of its cluster that have been online since it was launched.
    pub online_workers: BTreeSet<usize>,
    /// The writers of its outputs, from its first start on: two for each worker.
    pub outputs: Vec<LogWriter>,
    /// Where it says that it is ready.
    pub channel: Option<JsonLines<UnixStream>>,
    /// Restarts by the clock on the wall.
    pub cron: Option<CronRestart>,
    /// It has ended, and leaves the list.
    pub is_deleted: bool,
    cpu: Vec<CpuSample>,
}

#[derive(Clone, Copy, Default)]
struct CpuSample {
    at_ns: u64,
    ticks: u64,
    percent: f64,
}

impl ManagedProcess {
    pub fn new(saved: ProcessRecord, app: Rc<Application>) -> ManagedProcess {
        ManagedProcess { saved, app, ..ManagedProcess::default() }
    }

    pub fn id(&self) -> u32 {
        self.saved.id
    }

    pub fn name(&self) -> &str {
        &self.app.config.name
    }

    /// Gives each worker of a cluster that has none an id, from this one on.
    pub fn name_workers(&mut self, first_free: u32) {
        let wanted = if self.is_cluster() { self.app.config.instances } else { 1 };
        let missing = wanted.saturating_sub(self.saved.workers.len()) as u32;
        let new = first_free..first_free + missing;
        self.saved.workers.extend(new.map(|id| WorkerRecord { id, ..WorkerRecord::default() }));
    }

    pub fn count_restart(&mut self) {
        self.saved.workers.iter_mut().for_each(|worker| worker.restarts += 1);
    }

    /// What it has started, where that ends with it.
    pub fn tree(&mut self) -> Option<&mut ProcessTree> {
        if let (None, Some(running), true) = (&self.tree, &self.running, self.app.config.treekill) {
            self.tree = Some(ProcessTree::new(running.identity.pid, self.saved.launch.clone()));
        }
        self.tree.as_mut()
    }

    pub fn is_cluster(&self) -> bool {
        self.app.config.exec_mode == ExecMode::Cluster
    }

    /// It is deleted when it has ended.
    pub fn is_leaving(&self) -> bool {
        self.saved.after_stop == Some(AfterStop::Delete)
    }

    /// It is starting or stopping, or its cluster is doing something.
    pub fn is_busy(&self) -> bool {
        matches!(self.saved.status, ProcessStatus::Stopping | ProcessStatus::Launching) || self.call.is_some()
    }

    /// What the last command could not do with it.
    pub fn failure(&self) -> Option<String> {
        let errored = self.saved.reason.as_deref().filter(|_| self.saved.status == ProcessStatus::Errored);
        let why = errored.or(self.refusal.as_deref())?;
        Some(format!("{}: {why}", self.name()))
    }

    /// Sends a signal to all processes that do its work.
    pub fn signal(&self, signal: Signal) -> Result<(), Failure> {
        let sent = self.working_pids().into_iter().map(|pid| kill(Pid::from_raw(pid), signal));
        // One that has just ended needs none.
        sent.filter(|sent| *sent != Err(Errno::ESRCH))
            .collect::<nix::Result<Vec<()>>>()
            .map(drop)
            .map_err(|errno| Failure::new(format_args!("send {signal} to {}", self.name()), errno))
    }

    pub fn set_due(&mut self, after: Duration, due: ProcessDue) {
        self.due.insert(due, monotonic_ns().saturating_add(after.as_nanos() as u64));
    }

    pub fn note_ending(&mut self, ending: Option<Ending>) {
        self.saved.exit_code = ending.map(|ending| match ending {
            Ending::Exited(status) => status,
            Ending::KilledBy(signal) => 128 + signal,
        });
        // A process that was stopped because of a failure has its reason already.
        if self.saved.after_stop != Some(AfterStop::Fail) {
            let how = ending.map_or("it has ended, nobody knows how".to_owned(), |ending| format!("it {ending}"));
            self.saved.reason = Some(how);
        }
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
        command.env_clear().envs(&self.app.environment);
        for name in NODE_VARIABLES {
            command.env_remove(name);
        }
        command.envs(&config.env).env(&config.instance_var, self.saved.number.to_string());
        command.env(home::VARIABLE, home.folder()).env("pm_id", self.id().to_string()).env("name", &config.name);
        command.env(launch::VARIABLE, self.saved.launch.mark());
        command
    }

    /// The environment as the process gets it.
    pub fn environment(&self, home: &PmHome) -> BTreeMap<String, String> {
        let command = self.command(home);
        let text = |text: &OsStr| text.to_str().map(str::to_owned);
        command.get_envs().filter_map(|(name, value)| Some((text(name)?, text(value?)?))).collect()
    }

    /// Reads one of its outputs from now on: two for each worker.
    pub fn open_output(&self, home: &PmHome, output: usize, files: &mut LogFiles) -> Result<LogWriter, Failure> {
        let (worker, stream) = (output / 2, [LogStream::Out, LogStream::Error][output % 2]);
        let fifo = open_fifo(&home.fifo(self.id(), worker, stream), OFlag::O_NONBLOCK)?;
        let config = &self.app.config;
        let log = AppLog {
            path: self.log_path(home, worker, stream),
            stream,
            app_name: config.name.clone(),
            process_id: self.saved.workers[worker].id,
            is_json: config.log_type == LogType::Json,
        };
        let kept = usize::try_from(config.log_retain).unwrap_or(usize::MAX);
        let rotation = config.log_max_size.map(|largest| Rotation { largest, kept });
        Ok(LogWriter::new(fifo.into(), &log, config.log_date_format.as_deref(), rotation, files))
    }

    /// Instances have files of their own unless `merge_logs` is set: the id stands before the extension.
    pub fn log_path(&self, home: &PmHome, worker: usize, stream: LogStream) -> PathBuf {
        let config = &self.app.config;
        let (file, word) = match stream {
            LogStream::Out => (&config.out_file, "out"),
            LogStream::Error => (&config.error_file, "error"),
        };
        let id = if config.merge_logs { String::new() } else { format!("-{}", self.saved.workers[worker].id) };
        match file {
            None => home.logs().join(format!("{}-{word}{id}.log", config.name)),
            // A device is the same for all.
            Some(file) if config.instances == 1 || config.merge_logs || file.starts_with("/dev") => file.clone(),
            Some(file) => with_id(file, &id),
        }
    }

    /// As it is listed: one entry, or in cluster mode one for each worker.
    pub fn entries(&mut self, home: &PmHome) -> Vec<ProcessEntry> {
        let identity = self.running.as_ref().map(|running| running.identity);
        if !self.is_cluster() {
            return vec![self.entry(home, 0, identity)];
        }
        let workers = identity.map(|master| cluster_mode::workers(master.pid)).unwrap_or_default();
        let wanted = self.app.config.instances.min(self.saved.workers.len());
        (0..wanted).map(|worker| self.entry(home, worker, workers.get(&worker).map(ProcessIdentity::of))).collect()
    }

    fn entry(&mut self, home: &PmHome, worker: usize, identity: Option<ProcessIdentity>) -> ProcessEntry {
        let monit = identity.map(|identity| self.usage(worker, identity)).unwrap_or_default();
        let config = &self.app.config;
        let (mut status, mut reason) = (self.saved.status, self.saved.reason.clone());
        if status == ProcessStatus::Online && identity.is_none() {
            status = match &self.saved.giveup {
                _ if self.saved.workers[worker].has_finished => ProcessStatus::Stopped,
                Some(_) => ProcessStatus::Errored,
                None => ProcessStatus::WaitingRestart,
            };
            reason = self.saved.giveup.clone().or(reason);
        }
        let path = |stream| self.log_path(home, worker, stream).display().to_string();
        let state = ProcessState {
            status,
            pm_uptime: identity.map_or(0, |identity| identity.since_ms),
            created_at: self.saved.created_ms,
            uptime_ms: identity.map_or(0, |identity| monotonic_ns().saturating_sub(identity.since_ns) / 1_000_000),
            restarts: self.saved.workers[worker].restarts,
            unstable_restarts: self.saved.budget.unstable,
            exec_mode: if self.is_cluster() { "cluster_mode" } else { "fork_mode" }.to_owned(),
            instances: config.instances,
            pm_exec_path: config.script.display().to_string(),
            pm_cwd: config.cwd.display().to_string(),
            pm_out_log_path: path(LogStream::Out),
            pm_err_log_path: path(LogStream::Error),
            exec_interpreter: config.interpreter.clone().unwrap_or_else(|| "none".to_owned()),
            args: config.args.clone(),
            namespace: config.namespace.clone(),
            number: self.saved.number + worker,
            env: config.env.clone(),
            reason,
            log_problem: self.outputs.iter().skip(2 * worker).take(2).find_map(LogWriter::problem),
            exit_code: self.saved.exit_code,
            unknown: config.unknown.clone(),
            log_type: config.log_type,
            autorestart: config.autorestart,
            watch: !config.watch.is_empty(),
            cron_restart: config.cron_restart.clone(),
            max_memory_restart: config.max_memory_restart,
        };
        let (pid, name) = (identity.map_or(0, |identity| identity.pid), config.name.clone());
        ProcessEntry { pid, name, pm_id: self.saved.workers[worker].id, monit, pm2_env: state }
    }

    /// The CPU share is that since the last look, or over the life of the process.
    fn usage(&mut self, worker: usize, identity: ProcessIdentity) -> ProcessUsage {
        let Some(stat) = Stat::of(identity.pid) else { return ProcessUsage::default() };
        let now_ns = monotonic_ns();
        self.cpu.resize_with(self.saved.workers.len(), CpuSample::default);
        let sample = &mut self.cpu[worker];
        if sample.at_ns < identity.since_ns {
            *sample = CpuSample { at_ns: identity.since_ns, ..CpuSample::default() };
        }
        let elapsed_ns = now_ns.saturating_sub(sample.at_ns);
        if elapsed_ns >= CPU_SAMPLE_NS {
            let seconds = stat.cpu_ticks.saturating_sub(sample.ticks) as f64 / TICKS_PER_SECOND;
            let percent = (seconds / (elapsed_ns as f64 / 1e9) * 1000.0).round() / 10.0;
            *sample = CpuSample { at_ns: now_ns, ticks: stat.cpu_ticks, percent };
        }
        let memory = procfs::resident_kib(identity.pid).unwrap_or(0) * 1024;
        ProcessUsage { memory, cpu: sample.percent }
    }

    pub fn working_pids(&self) -> Vec<i32> {
        let Some(running) = &self.running else { return Vec::new() };
        if !self.is_cluster() {
            return vec![running.identity.pid];
        }
        cluster_mode::workers(running.identity.pid).values().map(|stat| stat.pid).collect()
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
