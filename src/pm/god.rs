//! The applications and their processes: starts and stops them, notices who has ended, and decides what happens then.
//! Nothing here waits: a process that was asked to end is `stopping` until the kernel says that it has ended, or its
//! time is up.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use regex_lite::Regex;
use serde_json::{Value, json};

use super::cluster_mode::{self, ClusterCall};
use super::config::{AppConfig, ExecMode};
use super::cron::WallClockTimer;
use super::dump::{AfterStop, SavedApplication, SavedState};
use super::fork_mode::{
    self, ChannelEvent, ReadyChannel, RunningProcess, find_leaders, is_alive, kill_group, signal_all,
};
use super::home::PmHome;
use super::logs::LogFiles;
use super::process::{Application, LOOK_AT_MEMORY_EVERY, ManagedProcess, ProcessDue};
use super::protocol::{ProcessEntry, ProcessStatus};
use super::restarts::{Decision, RestartBudget};
use super::watch::{WatchSettings, Watcher};
use crate::console;
use crate::failure::Failure;
use crate::logs::lines::LogStream;
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::process::Ending;
use crate::sys::procfs;
use crate::terminal::Paint;
use crate::units::{format_duration, monotonic_ns, utc_now_ms, wall_ms};

const REPORTS_PER_WAIT: usize = 64;

/// Between two looks at what is left of the tree of a process that has ended.
const LOOK_AT_TREE_EVERY: Duration = Duration::from_millis(20);

/// What a cluster needs beyond the time of its workers, to end in order.
const CLUSTER_NEEDS: Duration = Duration::from_secs(2);

/// And until its workers listen: at this time after listen_timeout it is ready, whatever they do.
const CLUSTER_IS_SLOW: Duration = Duration::from_secs(10);

/// What an epoll report is about, in the 64 bits that the kernel keeps for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PmToken {
    Signals,
    /// The control socket (0), or one of its clients.
    Client(u64),
    /// The process with this id has ended.
    Process(u32),
    /// One of its outputs can be read.
    Output(u32, usize),
    /// The process may say that it is ready.
    Channel(u32),
    /// A restart by the clock on the wall is due, or that clock was set.
    WallClock,
    /// Its cluster has answered.
    Call(u32),
    /// A file that it watches may have changed.
    Watch(u32),
}

impl PmToken {
    pub fn encode(self) -> u64 {
        let (kind, which) = match self {
            PmToken::Signals => (0, 0),
            PmToken::Client(client) => (1, client),
            PmToken::Process(id) => (2, u64::from(id)),
            PmToken::Output(id, output) => (3, u64::from(id) << 16 | output as u64),
            PmToken::Channel(id) => (4, u64::from(id)),
            PmToken::WallClock => (5, 0),
            PmToken::Call(id) => (6, u64::from(id)),
            PmToken::Watch(id) => (7, u64::from(id)),
        };
        kind << 56 | which
    }

    pub fn decode(word: u64) -> Option<PmToken> {
        let which = word & ((1 << 56) - 1);
        Some(match word >> 56 {
            0 => PmToken::Signals,
            1 => PmToken::Client(which),
            2 => PmToken::Process(which as u32),
            3 => PmToken::Output((which >> 16) as u32, (which & 0xffff) as usize),
            4 => PmToken::Channel(which as u32),
            5 => PmToken::WallClock,
            6 => PmToken::Call(which as u32),
            7 => PmToken::Watch(which as u32),
            _ => return None,
        })
    }
}

pub struct God {
    home: PmHome,
    /// The program that cluster mode runs.
    cluster: PathBuf,
    pub epoll: Epoll,
    processes: BTreeMap<u32, ManagedProcess>,
    files: LogFiles,
    wall_clock: WallClockTimer,
    /// Since they were last taken.
    events: Vec<Value>,
    /// The state file is older than the processes.
    has_changed: bool,
}

/// What to do with applications whose names are there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartMode {
    /// It is an error.
    New,
    Restart,
    Reload,
}

/// How many processes the daemon has to start: a cluster starts its workers itself.
fn processes_of(config: &AppConfig) -> usize {
    match config.exec_mode {
        ExecMode::Fork => config.instances,
        ExecMode::Cluster => 1,
    }
}

impl God {
    pub fn new(home: PmHome, cluster: PathBuf) -> Result<God, Failure> {
        let open = || {
            let (epoll, wall_clock) = (Epoll::new(REPORTS_PER_WAIT)?, WallClockTimer::new()?);
            epoll.add(&wall_clock, PmToken::WallClock.encode(), Interest::EPOLLIN)?;
            Ok((epoll, wall_clock))
        };
        let (epoll, wall_clock) = open().map_err(|errno: Errno| Failure::new("wait for events", errno))?;
        let (processes, files) = (BTreeMap::new(), LogFiles::default());
        Ok(God { home, cluster, epoll, processes, files, wall_clock, events: Vec::new(), has_changed: false })
    }

    /// The ids of the processes that these words are about: an id, a name, a namespace, `/regex/` over names, or `all`.
    ///
    /// # Errors
    /// A word that is about none, with the names there are.
    pub fn find(&self, targets: &[String]) -> Result<BTreeSet<u32>, String> {
        let mut found = BTreeSet::new();
        for target in targets {
            let regex =
                target.strip_prefix('/').and_then(|rest| rest.strip_suffix('/')).filter(|rest| !rest.is_empty());
            let regex = regex.map(Regex::new).transpose().map_err(|error| format!("{target}: {error}"))?;
            let with = |is_meant: &dyn Fn(&ManagedProcess) -> bool| -> Vec<u32> {
                self.processes.values().filter(|process| is_meant(process)).map(|process| process.id).collect()
            };
            let ids = if target == "all" {
                with(&|_| true)
            } else if let Some(regex) = regex {
                with(&|process| regex.is_match(&process.app.config.name))
            } else {
                let named = with(&|process| process.app.config.name == *target);
                let numbered = with(&|process| target.parse().is_ok_and(|id| process.worker_ids.contains(&id)));
                let spaced = with(&|process| process.app.config.namespace == *target);
                [named, numbered, spaced].into_iter().find(|ids| !ids.is_empty()).unwrap_or_default()
            };
            if ids.is_empty() && target != "all" {
                return Err(self.unknown(target));
            }
            found.extend(ids);
        }
        Ok(found)
    }

    fn unknown(&self, target: &str) -> String {
        let names: BTreeSet<&str> = self.processes.values().map(|process| process.app.config.name.as_str()).collect();
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        let there = if names.is_empty() { "there is none at all".to_owned() } else { format!("there are: {names}") };
        format!("no application {target:?}; {there}")
    }

    /// Those of an application, in the order of their numbers.
    fn of_name(&self, name: &str) -> Vec<u32> {
        let of_name = self.processes.values().filter(|process| process.app.config.name == name);
        let mut ids: Vec<(usize, u32)> = of_name.map(|process| (process.number, process.id)).collect();
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| id).collect()
    }

    pub fn all(&self) -> BTreeSet<u32> {
        self.processes.keys().copied().collect()
    }

    pub fn entries(&mut self, ids: &BTreeSet<u32>) -> Vec<ProcessEntry> {
        let chosen = self.processes.values_mut().filter(|process| ids.contains(&process.id));
        chosen.flat_map(|process| process.entries(&self.home)).collect()
    }

    /// A process runs, or will.
    pub fn has_work(&self) -> bool {
        self.processes.values().any(|process| process.running.is_some() || !process.due.is_empty())
    }

    pub fn is_busy(&self, id: u32) -> bool {
        self.processes.get(&id).is_some_and(ManagedProcess::is_busy)
    }

    /// Starts these applications. One whose name is there already gets the new configuration: its processes are
    /// restarted, further ones are added, and those too many are deleted.
    ///
    /// # Errors
    /// A name that is there already, when only new ones are wanted: then nothing is started.
    pub fn start(
        &mut self,
        apps: Vec<AppConfig>,
        environment: &BTreeMap<String, String>,
        mode: StartMode,
    ) -> Result<BTreeSet<u32>, String> {
        if let Some(known) = apps.iter().find(|app| mode == StartMode::New && !self.of_name(&app.name).is_empty()) {
            let name = &known.name;
            return Err(format!("there is an application {name:?} already; `pm restart {name}`, or choose a --name"));
        }
        let (mut again, mut new) = (Vec::new(), Vec::new());
        for config in apps {
            let app = Rc::new(Application { config, environment: environment.clone() });
            let known = self.of_name(&app.config.name);
            let wanted = processes_of(&app.config);
            for (number, &id) in known.iter().enumerate() {
                if number < wanted {
                    again.push((id, self.configure(id, number, &app)));
                } else {
                    self.stop(id, AfterStop::Delete);
                }
            }
            new.extend((known.len()..wanted).map(|number| self.add(number, Rc::clone(&app))));
        }
        self.launch_new(&new);
        for &(id, is_same_program) in &again {
            if mode == StartMode::Reload && is_same_program { self.reload(id) } else { self.restart(id) }
        }
        Ok(again.into_iter().map(|(id, _)| id).chain(new).collect())
    }

    /// The state file knows them before they exist, so a daemon that is killed in between leaves no process that nobody
    /// knows.
    fn launch_new(&mut self, ids: &[u32]) {
        self.has_changed = true;
        self.save_state();
        ids.iter().for_each(|&id| self.launch(id));
    }

    /// From now on so many processes of this application.
    pub fn scale(&mut self, name: &str, instances: usize) -> Result<BTreeSet<u32>, String> {
        let known = self.of_name(name);
        let first = known.first().and_then(|id| self.processes.get(id)).ok_or_else(|| self.unknown(name))?;
        let config = AppConfig { instances, ..first.app.config.clone() };
        let wanted = processes_of(&config);
        let app = Rc::new(Application { config, environment: first.app.environment.clone() });
        let first_free = self.first_free_id();
        for (number, &id) in known.iter().enumerate() {
            if number >= wanted {
                self.stop(id, AfterStop::Delete);
            } else if let Some(process) = self.processes.get_mut(&id) {
                process.app = Rc::clone(&app);
                process.name_workers(first_free);
                if process.is_cluster() && process.running.is_some() {
                    self.watch_outputs(id).map_err(String::from)?;
                    self.call(id, ClusterCall::scale(&self.home, id, instances));
                }
            }
        }
        let new: Vec<u32> = (known.len()..wanted).map(|number| self.add(number, Rc::clone(&app))).collect();
        self.launch_new(&new);
        Ok(self.of_name(name).into_iter().chain(known).collect())
    }

    /// True when a running cluster can go over to the new configuration worker by worker: the program is the same.
    fn configure(&mut self, id: u32, number: usize, app: &Rc<Application>) -> bool {
        let first_free = self.first_free_id();
        let Some(process) = self.processes.get_mut(&id) else { return false };
        let (old, new) = (&process.app.config, &app.config);
        let program = |config: &AppConfig| {
            let AppConfig { script, args, interpreter, interpreter_args, cwd, exec_mode, .. } = config.clone();
            (script, args, interpreter, interpreter_args, cwd, exec_mode)
        };
        let is_same_program = program(old) == program(new) && old.instances == new.instances;
        process.number = number;
        process.app = Rc::clone(app);
        process.budget = RestartBudget::new(&app.config);
        process.name_workers(first_free);
        // Its logs and what it watches may have other names now.
        process.outputs.clear();
        process.watcher = None;
        process.cron = None;
        is_same_program
    }

    fn first_free_id(&self) -> u32 {
        self.processes.values().flat_map(|process| &process.worker_ids).max().map_or(0, |last| last + 1)
    }

    fn add(&mut self, number: usize, app: Rc<Application>) -> u32 {
        let id = self.first_free_id();
        let mut process = ManagedProcess::new(id, number, app);
        process.name_workers(id + 1);
        process.status = ProcessStatus::WaitingRestart;
        self.processes.insert(id, process);
        id
    }

    /// Starts what does not run.
    pub fn wake(&mut self, id: u32) {
        if self.processes.get(&id).is_some_and(|process| process.running.is_none()) {
            self.restart(id);
        }
    }

    /// Somebody asks for it: earlier failures count no longer.
    pub fn restart(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        process.budget.reset();
        self.restart_unasked(id);
    }

    /// Earlier failures still count: otherwise a clock or a limit would restart a program for ever that fails each time.
    fn restart_unasked(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        process.restart_time += 1;
        self.stop(id, AfterStop::Restart);
    }

    /// Replaces the workers of a cluster one by one, each when its successor listens; anything else is restarted.
    pub fn reload(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        process.budget.reset();
        self.reload_unasked(id);
    }

    fn reload_unasked(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        if !process.is_cluster() || process.running.is_none() || process.after_stop.is_some() {
            return self.restart_unasked(id);
        }
        process.restart_time += 1;
        let environment = process.environment(&self.home);
        let call = ClusterCall::reload(&self.home, id, &environment);
        if let Err(failure) = self.watch_outputs(id) {
            console::log(failure);
        }
        self.call(id, call);
        // A new configuration has taken away what the old one watched.
        if let Some(process) = self.processes.get_mut(&id) {
            process.begin_watching();
        }
        self.watch_files(id);
        self.report(id, "reload");
    }

    fn call(&mut self, id: u32, call: io::Result<ClusterCall>) {
        let watched = call.and_then(|call| {
            self.epoll.add(&call, PmToken::Call(id).encode(), Interest::EPOLLIN)?;
            Ok(call)
        });
        self.has_changed = true;
        let Some(process) = self.processes.get_mut(&id) else { return };
        match watched {
            Ok(call) => (process.call, process.refusal) = (Some(call), None),
            Err(error) => process.refusal = Some(Failure::new("ask its cluster", error).to_string()),
        }
    }

    /// Its cluster has answered.
    pub fn call_ready(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Some(outcome) = process.call.as_mut().and_then(ClusterCall::read) else { return };
        process.call = None;
        process.refusal = outcome.err();
        let event = if process.refusal.is_none() { "reloaded" } else { "refused" };
        self.report(id, event);
    }

    /// What the last command could not do with it.
    pub fn failure(&self, id: u32) -> Option<String> {
        let process = self.processes.get(&id)?;
        let name = &process.app.config.name;
        let errored = process.reason.as_deref().filter(|_| process.status == ProcessStatus::Errored);
        let refused = process.refusal.as_deref();
        errored.or(refused).map(|why| format!("{name}: {why}"))
    }

    /// Asks it to end, and does the rest when it has. One that does not run has ended already.
    pub fn stop(&mut self, id: u32, after: AfterStop) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        // Who deletes it has the last word.
        if process.after_stop == Some(AfterStop::Delete) {
            return;
        }
        self.has_changed = true;
        process.forget_due(ProcessDue::Restart);
        process.refusal = None;
        let was_asked = process.after_stop.replace(after).is_some();
        if let Some(running) = &process.running {
            if !was_asked {
                let config = &process.app.config;
                // A cluster asks its workers itself, and has to outlive them.
                let (signal, tree, more) = match config.exec_mode {
                    ExecMode::Fork => (Signal::SIGINT, config.treekill, Duration::ZERO),
                    ExecMode::Cluster => (Signal::SIGTERM, false, CLUSTER_NEEDS),
                };
                process.tree = if tree { running.descendants() } else { Vec::new() };
                // One that has ended is reported by its descriptor.
                let _ = running.signal(signal);
                signal_all(&process.tree, signal);
                let timeout = config.kill_timeout + more;
                process.status = ProcessStatus::Stopping;
                process.set_due(timeout, ProcessDue::Kill);
                process.forget_due(ProcessDue::LookAtMemory);
                process.forget_due(ProcessDue::NotReady);
            }
        } else if !was_asked {
            self.finish_stop(id);
        }
    }

    /// It has ended, as it was asked to.
    fn finish_stop(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let after = process.after_stop.take();
        process.due.clear();
        process.status = ProcessStatus::Stopped;
        self.has_changed = true;
        match after {
            Some(AfterStop::Restart) => self.launch(id),
            Some(AfterStop::Delete) => self.remove(id),
            Some(AfterStop::Fail) => {
                process.status = ProcessStatus::Errored;
                self.report(id, "errored");
            }
            Some(AfterStop::Remain) | None => {
                process.cron = None;
                self.report(id, "stop");
            }
        }
    }

    fn remove(&mut self, id: u32) {
        self.report(id, "delete");
        let Some(mut process) = self.processes.remove(&id) else { return };
        for (output, mut writer) in process.outputs.drain(..).enumerate() {
            let _ = writer.finish(&mut self.files);
            // Whoever still has it open writes into the void, as if the terminal were gone.
            let stream = [LogStream::Out, LogStream::Error][output % 2];
            let _ = fs::remove_file(self.home.fifo(id, output / 2, stream));
        }
    }

    fn launch(&mut self, id: u32) {
        self.has_changed = true;
        let started = self.watch_outputs(id).and_then(|()| self.start_process(id));
        let Some(process) = self.processes.get_mut(&id) else { return };
        process.due.clear();
        match started {
            Ok(running) => {
                process.running = Some(running);
                process.reason = None;
                process.begin_watching();
                let config = &process.app.config;
                if process.channel.is_some() {
                    let more = if process.is_cluster() { CLUSTER_IS_SLOW } else { Duration::ZERO };
                    let timeout = config.listen_timeout + more;
                    process.status = ProcessStatus::Launching;
                    process.set_due(timeout, ProcessDue::NotReady);
                    self.report(id, "launching");
                } else {
                    process.status = ProcessStatus::Online;
                    self.report(id, "online");
                }
                self.watch_files(id);
            }
            Err(failure) => {
                process.status = ProcessStatus::Errored;
                process.reason = Some(failure.to_string());
                self.report(id, "errored");
            }
        }
    }

    /// Starts it, in its mode; its end and its channel, where it has one, are watched.
    fn start_process(&mut self, id: u32) -> Result<RunningProcess, Failure> {
        let Some(process) = self.processes.get_mut(&id) else { return Err(Failure::new("start", Errno::ESRCH)) };
        let (home, config) = (&self.home, &process.app.config);
        let mut command = process.command(home);
        let mut channel = None;
        let running = if process.is_cluster() {
            let (ours, theirs) = ReadyChannel::open()?;
            channel = Some(ours);
            let mut command = cluster_mode::command(&self.cluster, &command, config, home, id)?;
            RunningProcess::start(command.stdout(OwnedFd::from(theirs)), None)?
        } else {
            fork_mode::redirect(&mut command, home, id)?;
            if config.wait_ready {
                let (ours, theirs) = ReadyChannel::open()?;
                channel = Some(ours);
                fork_mode::announce_channel(&mut command, &theirs);
                RunningProcess::start(&mut command, Some(theirs.as_fd()))?
            } else {
                RunningProcess::start(&mut command, None)?
            }
        };
        let watch = || {
            if let Some(channel) = &channel {
                self.epoll.add(channel, PmToken::Channel(id).encode(), Interest::EPOLLIN)?;
            }
            self.epoll.add(&running.pidfd, PmToken::Process(id).encode(), Interest::EPOLLIN)
        };
        watch().map_err(|errno| Failure::new("watch a process", errno))?;
        process.channel = channel;
        Ok(running)
    }

    /// Reads what it writes, from now on.
    fn watch_outputs(&mut self, id: u32) -> Result<(), Failure> {
        let Some(process) = self.processes.get_mut(&id) else { return Ok(()) };
        let opened = process.open_outputs(&self.home, &mut self.files)?;
        for (output, writer) in process.outputs.iter().enumerate().skip(opened) {
            let watched = self.epoll.add(writer, PmToken::Output(id, output).encode(), Interest::EPOLLIN);
            watched.map_err(|errno| Failure::new("watch an output", errno))?;
        }
        self.report_logs(id);
        Ok(())
    }

    /// Notices changes of the files that its configuration names.
    fn watch_files(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let config = &process.app.config;
        if config.watch.is_empty() || process.watcher.is_some() {
            return;
        }
        let settings = WatchSettings {
            roots: config.watch.clone(),
            ignore: config.ignore_watch.clone(),
            working_folder: config.cwd.clone(),
            own_files: [LogStream::Out, LogStream::Error].map(|stream| process.log_path(&self.home, 0, stream)).into(),
            delay: config.watch_delay,
        };
        let watched = Watcher::new(settings).and_then(|watcher| {
            self.epoll.add(&watcher, PmToken::Watch(id).encode(), Interest::EPOLLIN)?;
            Ok(watcher)
        });
        match watched {
            Ok(mut watcher) => {
                watcher.take_problems().iter().for_each(console::log);
                process.watcher = Some(watcher);
            }
            Err(errno) => console::log(Failure::new(format_args!("watch the files of {}", config.name), errno)),
        }
    }

    /// A file may have changed: when the burst of changes is over, the application is reloaded.
    pub fn watch_ready(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Some(watcher) = &mut process.watcher else { return };
        let changed = watcher.changed(monotonic_ns());
        watcher.take_problems().iter().for_each(console::log);
        if let Some(first) = changed.as_ref().and_then(|paths| paths.first()) {
            // What somebody has stopped, or is just ending, does not begin again because of a file.
            if process.status == ProcessStatus::Stopped || process.after_stop.is_some() {
                return;
            }
            process.reason = Some(format!("{} has changed", first.display()));
            self.report(id, "change");
            self.reload(id);
        }
    }

    /// Its descriptor says that it has ended.
    pub fn process_ended(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Some(running) = process.running.take() else { return };
        let (pid, uptime) = (running.pid(), running.uptime(monotonic_ns()));
        process.call = None;
        process.channel = None;
        let tree = process.app.config.treekill && !process.is_cluster();
        if tree && process.after_stop.is_none() {
            // As long as the leader is not reaped, its number is no other group's.
            kill_group(pid);
        }
        let ending = running.reap();
        let _ = self.epoll.delete(&running.pidfd);
        drop(running);
        process.note_ending(ending);
        for writer in &mut process.outputs {
            let _ = writer.finish(&mut self.files);
        }
        if process.after_stop.is_some() {
            process.tree.retain(is_alive);
            if !process.tree.is_empty() {
                process.set_due(LOOK_AT_TREE_EVERY, ProcessDue::LookAtTree);
            } else {
                self.finish_stop(id);
            }
            return;
        }
        self.report(id, "exit");
        self.decide(id, uptime, ending);
    }

    /// It has ended without being asked to.
    fn decide(&mut self, id: u32, uptime: Duration, ending: Option<Ending>) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        self.has_changed = true;
        process.due.clear();
        if process.is_cluster() && ending == Some(Ending::Exited(1)) {
            process.status = ProcessStatus::Errored;
            process.reason = Some(format!(
                "its cluster has given it up: see {}",
                cluster_mode::log(&self.home, &process.app.config, id).display()
            ));
            return self.report(id, "errored");
        }
        // One whose end nobody saw counts as killed.
        match process.budget.exited(uptime, ending.unwrap_or(Ending::KilledBy(Signal::SIGKILL as i32))) {
            Decision::Restart => {
                process.restart_time += 1;
                self.launch(id);
            }
            Decision::RestartAfter(delay) => {
                process.restart_time += 1;
                process.status = ProcessStatus::WaitingRestart;
                process.set_due(delay, ProcessDue::Restart);
            }
            Decision::GiveUp { why } => {
                process.status = ProcessStatus::Errored;
                process.reason = Some(why);
                self.report(id, "errored");
            }
            Decision::Stopped => process.status = ProcessStatus::Stopped,
        }
    }

    /// It has said something on its channel, or closed it.
    pub fn channel_ready(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Some(channel) = &mut process.channel else { return };
        match channel.read() {
            ChannelEvent::Nothing => {}
            ChannelEvent::Closed => process.channel = None,
            ChannelEvent::Ready => {
                if process.status == ProcessStatus::Launching {
                    process.status = ProcessStatus::Online;
                    process.forget_due(ProcessDue::NotReady);
                    self.has_changed = true;
                    self.report(id, "online");
                }
            }
        }
    }

    pub fn wall_clock_ready(&mut self) {
        let _ = self.wall_clock.clear();
        let now_s = (wall_ms() / 1000) as i64;
        for id in self.all() {
            let Some(process) = self.processes.get_mut(&id) else { continue };
            let is_due = process.cron.as_mut().is_some_and(|cron| cron.is_due(now_s));
            if is_due && process.after_stop.is_none() && process.status != ProcessStatus::Errored {
                self.report(id, "cron");
                self.restart_unasked(id);
            }
        }
        self.has_changed = true;
    }

    pub fn output_ready(&mut self, id: u32, output: usize) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Some(writer) = process.outputs.get_mut(output) else { return };
        if let Err(errno) = writer.read_available(&mut self.files) {
            let _ = self.epoll.delete(&*writer);
            console::log(Failure::new(format_args!("read the output of {}", process.app.config.name), errno));
        }
        self.report_logs(id);
    }

    /// That lines of a log are lost, or are no more.
    fn report_logs(&mut self, id: u32) {
        for problem in self.files.take_problems() {
            self.report_because(id, "log", Some(problem));
        }
    }

    /// How long to wait for events; for ever while nothing is due.
    pub fn until_due(&self) -> Option<Duration> {
        let all = self.processes.values().flat_map(|process| &process.due);
        let watched = self.processes.values().filter_map(|process| process.watcher.as_ref()?.due_ns());
        let next_ns = all.map(|(due_ns, _)| *due_ns).chain(watched).min()?;
        Some(Duration::from_nanos(next_ns.saturating_sub(monotonic_ns())))
    }

    pub fn run_due(&mut self) {
        let now_ns = monotonic_ns();
        for id in self.all() {
            while let Some(due) = self.processes.get_mut(&id).and_then(|process| process.take_due(now_ns)) {
                self.run(id, due);
            }
            let watched_ns = self.processes.get(&id).and_then(|process| process.watcher.as_ref()?.due_ns());
            if watched_ns.is_some_and(|due_ns| due_ns <= now_ns) {
                self.watch_ready(id);
            }
        }
    }

    fn run(&mut self, id: u32, due: ProcessDue) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let config = &process.app.config;
        match due {
            ProcessDue::Kill => {
                if let Some(running) = &process.running {
                    if config.treekill {
                        process.tree.extend(running.descendants());
                    }
                    let _ = running.signal(Signal::SIGKILL);
                }
                process.tree.retain(is_alive);
                signal_all(&process.tree, Signal::SIGKILL);
            }
            ProcessDue::LookAtTree => {
                process.tree.retain(is_alive);
                if process.tree.is_empty() {
                    self.finish_stop(id);
                } else {
                    process.set_due(LOOK_AT_TREE_EVERY, ProcessDue::LookAtTree);
                }
            }
            ProcessDue::Restart => self.launch(id),
            ProcessDue::NotReady => {
                let within = format_duration(config.listen_timeout);
                process.reason = Some(format!("it has not said within {within} that it is ready (listen_timeout)"));
                self.stop(id, AfterStop::Fail);
            }
            ProcessDue::LookAtMemory => {
                let used =
                    process.working_pids().into_iter().filter_map(procfs::resident_kib).max().unwrap_or(0) * 1024;
                match config.max_memory_restart {
                    Some(most) if used > most && process.call.is_none() && process.after_stop.is_none() => {
                        process.reason = Some(format!("it used {used} bytes of memory, and may use {most}"));
                        process.set_due(LOOK_AT_MEMORY_EVERY, ProcessDue::LookAtMemory);
                        // It counts as a failure, so that a program that always needs more is given up.
                        let uptime = process.running.as_ref().map(|running| running.uptime(monotonic_ns()));
                        let ending = Ending::KilledBy(Signal::SIGKILL as i32);
                        let decision = process.budget.exited(uptime.unwrap_or_default(), ending);
                        self.report(id, "memory");
                        match decision {
                            Decision::GiveUp { .. } => self.stop(id, AfterStop::Fail),
                            _ => self.reload_unasked(id),
                        }
                    }
                    _ => process.set_due(LOOK_AT_MEMORY_EVERY, ProcessDue::LookAtMemory),
                }
            }
        }
    }

    pub fn signal(&mut self, id: u32, signal: Signal) -> Result<(), Failure> {
        let Some(process) = self.processes.get(&id) else { return Ok(()) };
        let mut sent = process.working_pids().into_iter().map(|pid| kill(Pid::from_raw(pid), signal));
        sent.try_for_each(|sent| sent)
            .map_err(|errno| Failure::new(format_args!("send {signal} to {}", process.app.config.name), errno))
    }

    pub fn reset(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        process.restart_time = 0;
        process.budget.reset();
        self.has_changed = true;
    }

    /// Empties the logs.
    pub fn flush_logs(&mut self, id: u32) {
        let outputs = self.processes.get(&id).map_or(&[][..], |process| &process.outputs);
        outputs.iter().for_each(|writer| writer.flush(&mut self.files));
    }

    pub fn reopen_logs(&mut self) {
        self.files.reopen();
        self.files.take_problems().iter().for_each(console::log);
    }

    /// From now on what the applications write is shown on standard output, too.
    pub fn show_lines(&mut self) {
        self.files.show(Paint::on(&io::stdout()));
    }

    /// Adopts what a daemon before us has left.
    pub fn adopt(&mut self, state: SavedState) {
        let is_of_this_boot = state.is_of_this_boot();
        let unsaved = find_leaders(&self.home);
        for saved_app in state.apps {
            let app = Application { config: saved_app.config, environment: saved_app.environment };
            let app = Rc::new(app);
            for saved in saved_app.processes {
                let id = saved.id;
                let identity = saved.identity.filter(|_| is_of_this_boot);
                let mut process = ManagedProcess::restore(saved, Rc::clone(&app));
                // It may have been restarted, or started, after the state was written for the last time.
                let runs = !matches!(process.status, ProcessStatus::Stopped | ProcessStatus::Errored);
                let unsaved = unsaved.get(&id).copied().filter(|_| runs);
                process.running =
                    identity.and_then(RunningProcess::adopt).or_else(|| unsaved.and_then(RunningProcess::adopt));
                self.processes.insert(id, process);
                self.resume(id, identity.map_or(0, |identity| identity.since_ns));
            }
        }
    }

    fn resume(&mut self, id: u32, since_ns: u64) {
        if let Err(failure) = self.watch_outputs(id) {
            console::log(failure);
        }
        let Some(process) = self.processes.get_mut(&id) else { return };
        match &process.running {
            Some(running) => {
                let _ = self.epoll.add(&running.pidfd, PmToken::Process(id).encode(), Interest::EPOLLIN);
                if let Some(after) = process.after_stop.take() {
                    self.stop(id, after);
                    return;
                }
                process.status = ProcessStatus::Online;
                process.begin_watching();
                self.report(id, "adopt");
                self.watch_files(id);
            }
            None if process.after_stop.is_some() => self.finish_stop(id),
            None => match process.status {
                ProcessStatus::Stopped | ProcessStatus::Errored => {}
                ProcessStatus::WaitingRestart => self.launch(id),
                _ => {
                    process.note_ending(None);
                    let uptime = Duration::from_nanos(monotonic_ns().saturating_sub(since_ns));
                    self.report(id, "exit");
                    self.decide(id, uptime, None);
                }
            },
        }
    }

    fn state(&self) -> SavedState {
        let mut apps: Vec<(*const Application, SavedApplication)> = Vec::new();
        for process in self.processes.values() {
            let of = Rc::as_ptr(&process.app);
            let at = apps.iter().position(|(app, _)| *app == of).unwrap_or_else(|| {
                let Application { config, environment } = &*process.app;
                let (config, environment) = (config.clone(), environment.clone());
                apps.push((of, SavedApplication { config, environment, processes: Vec::new() }));
                apps.len() - 1
            });
            apps[at].1.processes.push(process.save());
        }
        SavedState::new(apps.into_iter().map(|(_, app)| app).collect())
    }

    /// Keeps the applications as they are for [`God::resurrect`].
    pub fn save_dump(&self) -> Result<(), Failure> {
        self.state().write(&self.home, &self.home.dump())
    }

    /// Starts what was online when it was saved, and knows the rest again as stopped. A name that is there stays as it is.
    pub fn resurrect(&mut self) -> Result<BTreeSet<u32>, Failure> {
        let path = self.home.dump();
        let Some(state) = SavedState::read(&self.home, &path)? else {
            return Err(Failure::relay(format!("read {}: there is none; `pm save` writes it", path.display())));
        };
        let (mut new, mut stopped) = (Vec::new(), Vec::new());
        for saved in state.apps.into_iter().filter(|app| self.of_name(&app.config.name).is_empty()).collect::<Vec<_>>()
        {
            let app = Rc::new(Application { config: saved.config, environment: saved.environment });
            for process in saved.processes {
                let id = self.add(process.number, Rc::clone(&app));
                if matches!(process.status, ProcessStatus::Stopped | ProcessStatus::Errored) {
                    self.processes.get_mut(&id).expect("it was added").status = ProcessStatus::Stopped;
                    stopped.push(id);
                } else {
                    new.push(id);
                }
            }
        }
        self.launch_new(&new);
        Ok(new.into_iter().chain(stopped).collect())
    }

    /// Writes the state file, if something has changed since.
    pub fn save_state(&mut self) {
        if !self.has_changed {
            return;
        }
        self.has_changed = false;
        let due_s = self.processes.values().filter_map(|process| process.cron.as_ref()?.due_s());
        if let Err(errno) = self.wall_clock.set(due_s) {
            console::log(Failure::new("set the timer of cron_restart", errno));
        }
        if let Err(failure) = self.state().write(&self.home, &self.home.state()) {
            console::log(failure.advise("the next daemon would not find what runs now"));
        }
    }

    pub fn take_events(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.events)
    }

    fn report(&mut self, id: u32, event: &str) {
        let reason = self.processes.get(&id).and_then(|process| process.reason.clone());
        self.report_because(id, event, reason);
    }

    fn report_because(&mut self, id: u32, event: &str, reason: Option<String>) {
        let Some(process) = self.processes.get(&id) else { return };
        let pid = process.running.as_ref().map_or(0, |running| running.identity.pid);
        let name = &process.app.config.name;
        let mut line = json!({"at": utc_now_ms(), "event": event, "name": name, "pm_id": id, "pid": pid});
        if let Some(reason) = reason {
            line["reason"] = json!(reason);
        }
        console::log(&line);
        self.events.push(line);
    }
}
