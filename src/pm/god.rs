//! The applications and their processes: starts and stops them, notices who has ended, and decides what happens then.
//! Nothing here waits: a process that was asked to end is `stopping` until the kernel says that it has ended, or its
//! time is up.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use nix::sys::signal::Signal;
use regex_lite::Regex;
use serde_json::{Value, json};

use super::config::AppConfig;
use super::dump::{AfterStop, SavedApplication, SavedState};
use super::fork_mode::{RunningProcess, has_group, kill_group};
use super::home::PmHome;
use super::logs::LogFiles;
use super::process::{Application, ManagedProcess, ProcessDue};
use super::protocol::{ProcessEntry, ProcessStatus};
use super::restarts::{Decision, RestartBudget};
use crate::console;
use crate::failure::Failure;
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::process::Ending;
use crate::sys::procfs;
use crate::units::{monotonic_ns, utc_now_ms};

const REPORTS_PER_WAIT: usize = 64;

/// Between two looks at the memory of a process that has a limit.
const LOOK_AT_MEMORY_EVERY: Duration = Duration::from_millis(500);

/// Between two looks at what is left of the group of a process that has ended.
const LOOK_AT_GROUP_EVERY: Duration = Duration::from_millis(20);

/// What an epoll report is about, in the 64 bits that the kernel keeps for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PmToken {
    Signals,
    /// The control socket (0), or one of its clients.
    Client(u64),
    /// The process with this id has ended.
    Process(u32),
    /// One of its two outputs can be read.
    Output(u32, usize),
}

impl PmToken {
    pub fn encode(self) -> u64 {
        let (kind, which) = match self {
            PmToken::Signals => (0, 0),
            PmToken::Client(client) => (1, client),
            PmToken::Process(id) => (2, u64::from(id)),
            PmToken::Output(id, output) => (3, u64::from(id) << 1 | output as u64),
        };
        kind << 56 | which
    }

    pub fn decode(word: u64) -> Option<PmToken> {
        let which = word & ((1 << 56) - 1);
        Some(match word >> 56 {
            0 => PmToken::Signals,
            1 => PmToken::Client(which),
            2 => PmToken::Process(which as u32),
            3 => PmToken::Output((which >> 1) as u32, (which & 1) as usize),
            _ => return None,
        })
    }
}

pub struct God {
    home: PmHome,
    pub epoll: Epoll,
    processes: BTreeMap<u32, ManagedProcess>,
    files: LogFiles,
    /// Since they were last taken.
    events: Vec<Value>,
    /// The state file is older than the processes.
    has_changed: bool,
}

impl God {
    pub fn new(home: PmHome) -> Result<God, Failure> {
        let epoll = Epoll::new(REPORTS_PER_WAIT).map_err(|errno| Failure::new("wait for events", errno))?;
        let files = LogFiles::default();
        Ok(God { home, epoll, processes: BTreeMap::new(), files, events: Vec::new(), has_changed: false })
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
                let numbered = with(&|process| target.parse() == Ok(process.id));
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
        chosen.map(|process| process.entry(&self.home)).collect()
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
        only_new: bool,
    ) -> Result<BTreeSet<u32>, String> {
        if let Some(known) = apps.iter().find(|app| only_new && !self.of_name(&app.name).is_empty()) {
            let name = &known.name;
            return Err(format!("there is an application {name:?} already; `pm restart {name}`, or choose a --name"));
        }
        let mut started = BTreeSet::new();
        for config in apps {
            let app = Rc::new(Application { config, environment: environment.clone() });
            let known = self.of_name(&app.config.name);
            for (number, &id) in known.iter().enumerate() {
                if number < app.config.instances {
                    self.configure(id, number, &app);
                    self.restart(id);
                    started.insert(id);
                } else {
                    self.stop(id, AfterStop::Delete);
                }
            }
            for number in known.len()..app.config.instances {
                started.insert(self.add(number, Rc::clone(&app)));
            }
        }
        Ok(started)
    }

    /// From now on so many processes of this application.
    pub fn scale(&mut self, name: &str, instances: usize) -> Result<BTreeSet<u32>, String> {
        let known = self.of_name(name);
        let first = known.first().and_then(|id| self.processes.get(id)).ok_or_else(|| self.unknown(name))?;
        let config = AppConfig { instances, ..first.app.config.clone() };
        let app = Rc::new(Application { config, environment: first.app.environment.clone() });
        for (number, &id) in known.iter().enumerate() {
            if number < instances {
                self.processes.get_mut(&id).expect("it was found").app = Rc::clone(&app);
            } else {
                self.stop(id, AfterStop::Delete);
            }
        }
        for number in known.len()..instances {
            self.add(number, Rc::clone(&app));
        }
        self.has_changed = true;
        Ok(self.of_name(name).into_iter().chain(known).collect())
    }

    fn configure(&mut self, id: u32, number: usize, app: &Rc<Application>) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        process.number = number;
        process.app = Rc::clone(app);
        process.budget = RestartBudget::new(&app.config);
        // Its logs may have other names now.
        process.outputs.clear();
    }

    fn add(&mut self, number: usize, app: Rc<Application>) -> u32 {
        let id = self.processes.keys().next_back().map_or(0, |last| last + 1);
        self.processes.insert(id, ManagedProcess::new(id, number, app));
        self.launch(id);
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
        process.restart_time += 1;
        self.stop(id, AfterStop::Restart);
    }

    /// Asks it to end, and does the rest when it has. One that does not run has ended already.
    pub fn stop(&mut self, id: u32, after: AfterStop) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        self.has_changed = true;
        process.forget_due(ProcessDue::Restart);
        let was_asked = process.after_stop.replace(after).is_some();
        if let Some(running) = &process.running {
            if !was_asked {
                let config = &process.app.config;
                // One that has ended is reported by its descriptor.
                let _ = running.signal(Signal::SIGINT, config.treekill);
                let timeout = config.kill_timeout;
                process.status = ProcessStatus::Stopping;
                process.set_due(timeout, ProcessDue::Kill);
                process.forget_due(ProcessDue::LookAtMemory);
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
            Some(AfterStop::Remain) | None => self.report(id, "stop"),
        }
    }

    fn remove(&mut self, id: u32) {
        self.report(id, "delete");
        let Some(mut process) = self.processes.remove(&id) else { return };
        for (stream, mut writer) in process.outputs.drain(..) {
            let _ = writer.finish();
            // Whoever still has it open writes into the void, as if the terminal were gone.
            let _ = std::fs::remove_file(self.home.fifo(id, stream));
        }
    }

    fn launch(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        self.has_changed = true;
        process.due.clear();
        // Before it exists: the next daemon would look for it, if this one were killed in between.
        process.status = ProcessStatus::Online;
        let home = &self.home;
        let mut start = || {
            if process.open_outputs(home, &self.files)? {
                for (output, (_, writer)) in process.outputs.iter().enumerate() {
                    let token = PmToken::Output(id, output).encode();
                    let watched = self.epoll.add(writer, token, Interest::EPOLLIN);
                    watched.map_err(|errno| Failure::new("watch an output", errno))?;
                }
            }
            let running = RunningProcess::start(&mut process.command(home), home, id)?;
            let watched = self.epoll.add(&running.pidfd, PmToken::Process(id).encode(), Interest::EPOLLIN);
            watched.map_err(|errno| Failure::new("watch a process", errno))?;
            Ok::<_, Failure>(running)
        };
        match start() {
            Ok(running) => {
                process.running = Some(running);
                process.reason = None;
                if process.app.config.max_memory_restart.is_some() {
                    process.set_due(LOOK_AT_MEMORY_EVERY, ProcessDue::LookAtMemory);
                }
                self.report(id, "online");
            }
            Err(failure) => {
                process.status = ProcessStatus::Errored;
                process.reason = Some(failure.to_string());
                self.report(id, "errored");
            }
        }
    }

    /// Its descriptor says that it has ended.
    pub fn process_ended(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Some(running) = process.running.take() else { return };
        let (pid, uptime) = (running.pid(), running.uptime(monotonic_ns()));
        let tree = process.app.config.treekill;
        if tree && process.after_stop.is_none() {
            // As long as the leader is not reaped, its number is no other group's.
            kill_group(pid);
        }
        let ending = running.reap();
        let _ = self.epoll.delete(&running.pidfd);
        drop(running);
        process.note_ending(ending);
        for (_, writer) in &mut process.outputs {
            let _ = writer.finish();
        }
        if process.after_stop.is_some() {
            if tree && has_group(pid) {
                process.left = Some(pid);
                process.set_due(LOOK_AT_GROUP_EVERY, ProcessDue::LookAtGroup);
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

    pub fn output_ready(&mut self, id: u32, output: usize) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Some((_, writer)) = process.outputs.get_mut(output) else { return };
        if let Err(errno) = writer.read_available() {
            let _ = self.epoll.delete(&*writer);
            console::log(Failure::new(format_args!("read the output of {}", process.app.config.name), errno));
        }
        self.files.take_problems().iter().for_each(console::log);
    }

    /// How long to wait for events; for ever while nothing is due.
    pub fn until_due(&self) -> Option<Duration> {
        let all = self.processes.values().flat_map(|process| &process.due);
        let next_ns = all.map(|(due_ns, _)| *due_ns).min()?;
        Some(Duration::from_nanos(next_ns.saturating_sub(monotonic_ns())))
    }

    pub fn run_due(&mut self) {
        let now_ns = monotonic_ns();
        for id in self.all() {
            while let Some(due) = self.processes.get_mut(&id).and_then(|process| process.take_due(now_ns)) {
                self.run(id, due);
            }
        }
    }

    fn run(&mut self, id: u32, due: ProcessDue) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let config = &process.app.config;
        match due {
            ProcessDue::Kill => match (&process.running, process.left.take()) {
                (Some(running), _) => drop(running.signal(Signal::SIGKILL, config.treekill)),
                (None, Some(leader)) => {
                    kill_group(leader);
                    self.finish_stop(id);
                }
                (None, None) => {}
            },
            ProcessDue::LookAtGroup => match process.left {
                Some(leader) if has_group(leader) => {
                    process.set_due(LOOK_AT_GROUP_EVERY, ProcessDue::LookAtGroup);
                }
                _ => {
                    process.left = None;
                    self.finish_stop(id);
                }
            },
            ProcessDue::Restart => self.launch(id),
            ProcessDue::LookAtMemory => {
                let Some(running) = &process.running else { return };
                let used = procfs::resident_kib(running.identity.pid).unwrap_or(0) * 1024;
                match config.max_memory_restart {
                    Some(most) if used > most => {
                        process.reason = Some(format!("it used {used} bytes of memory, and may use {most}"));
                        process.restart_time += 1;
                        self.report(id, "memory");
                        self.stop(id, AfterStop::Restart);
                    }
                    _ => process.set_due(LOOK_AT_MEMORY_EVERY, ProcessDue::LookAtMemory),
                }
            }
        }
    }

    pub fn signal(&mut self, id: u32, signal: Signal) -> Result<(), Failure> {
        let Some(process) = self.processes.get(&id) else { return Ok(()) };
        let Some(running) = &process.running else { return Ok(()) };
        let sent = running.signal(signal, false);
        sent.map_err(|errno| Failure::new(format_args!("send {signal} to {}", process.app.config.name), errno))
    }

    pub fn reset(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        process.restart_time = 0;
        process.budget.reset();
        self.has_changed = true;
    }

    pub fn reopen_logs(&self) {
        self.files.reopen();
    }

    /// Adopts what a daemon before us has left.
    pub fn adopt(&mut self, state: SavedState) {
        let is_of_this_boot = state.is_of_this_boot();
        for saved_app in state.apps {
            let app = Application { config: saved_app.config, environment: saved_app.environment };
            let app = Rc::new(app);
            for saved in saved_app.processes {
                let id = saved.id;
                let identity = saved.identity.filter(|_| is_of_this_boot);
                let mut process = ManagedProcess::restore(saved, Rc::clone(&app));
                process.running = identity.and_then(RunningProcess::adopt);
                self.processes.insert(id, process);
                self.resume(id, identity.map_or(0, |identity| identity.since_ns));
            }
        }
    }

    fn resume(&mut self, id: u32, since_ns: u64) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        if let Err(failure) = process.open_outputs(&self.home, &self.files) {
            console::log(failure);
        }
        for (output, (_, writer)) in process.outputs.iter().enumerate() {
            let _ = self.epoll.add(writer, PmToken::Output(id, output).encode(), Interest::EPOLLIN);
        }
        match &process.running {
            Some(running) => {
                let _ = self.epoll.add(&running.pidfd, PmToken::Process(id).encode(), Interest::EPOLLIN);
                if let Some(after) = process.after_stop.take() {
                    self.stop(id, after);
                    return;
                }
                process.status = ProcessStatus::Online;
                if process.app.config.max_memory_restart.is_some() {
                    process.set_due(LOOK_AT_MEMORY_EVERY, ProcessDue::LookAtMemory);
                }
                self.report(id, "adopt");
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
        let mut started = BTreeSet::new();
        for saved in state.apps.into_iter().filter(|app| self.of_name(&app.config.name).is_empty()).collect::<Vec<_>>()
        {
            let app = Rc::new(Application { config: saved.config, environment: saved.environment });
            for process in saved.processes {
                let id = self.processes.keys().next_back().map_or(0, |last| last + 1);
                self.processes.insert(id, ManagedProcess::new(id, process.number, Rc::clone(&app)));
                if !matches!(process.status, ProcessStatus::Stopped | ProcessStatus::Errored) {
                    self.launch(id);
                }
                started.insert(id);
            }
        }
        self.has_changed = true;
        Ok(started)
    }

    /// Writes the state file, if something has changed since.
    pub fn save_state(&mut self) {
        if !self.has_changed {
            return;
        }
        self.has_changed = false;
        if let Err(failure) = self.state().write(&self.home, &self.home.state()) {
            console::log(failure.advise("the next daemon would not find what runs now"));
        }
    }

    pub fn take_events(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.events)
    }

    fn report(&mut self, id: u32, event: &str) {
        let Some(process) = self.processes.get(&id) else { return };
        let pid = process.running.as_ref().map_or(0, |running| running.identity.pid);
        let name = &process.app.config.name;
        let mut line = json!({"at": utc_now_ms(), "event": event, "name": name, "pm_id": id, "pid": pid});
        if let Some(reason) = &process.reason {
            line["reason"] = json!(reason);
        }
        console::log(&line);
        self.events.push(line);
    }
}
