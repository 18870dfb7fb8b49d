//! An application is brought to its configuration: started, scaled, started again with other keys. And what is known of
//! it survives the daemon: it is saved, resurrected, adopted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::rc::Rc;
use std::time::Duration;

use serde_json::json;

use super::super::config::{self, AppConfig, ExecMode};
use super::super::dump::{AfterStop, Application, ProcessRecord, SavedApplication, SavedState};
use super::super::fork_mode::{ProcessIdentity, RunningProcess};
use super::super::home::PmHome;
use super::super::launch::{LaunchedProcess, find_launched};
use super::super::process_tree::{NOBODY, ProcessTree};
use super::super::program::check_program;
use super::super::protocol::{Instances, ProcessStatus};
use super::super::restarts::RestartBudget;
use super::process::ProcessDue;
use super::{God, ManagedProcess, PmSource, Shared, cluster_mode};
use crate::console;
use crate::failure::Failure;
use crate::sys::epoll::Interest;
use crate::sys::procfs;
use crate::units::monotonic_ns;

/// The most that `pm scale` may ask for in fork mode.
const MOST_PROCESSES: usize = 10_000;

impl God {
    /// Starts these applications. One whose name is there already gets the new configuration: its processes are
    /// restarted (or, with `reload`, reloaded), further ones are added, and those too many are deleted.
    ///
    /// # Errors
    /// A name that cannot be one, or too many processes; a program that is not there; a name that is, where only new ones
    /// are wanted; a state that cannot be written. Then nothing is started.
    pub fn start(
        &mut self,
        apps: Vec<AppConfig>,
        environment: &BTreeMap<String, String>,
        only_new: bool,
        reload: bool,
    ) -> Result<BTreeSet<u32>, String> {
        config::check(&apps)?;
        if let Some(known) = apps.iter().find(|app| only_new && !self.of_name(&app.name).is_empty()) {
            let name = &known.name;
            return Err(format!("there is an application {name:?} already; `pm restart {name}`, or choose a --name"));
        }
        let apps = apps.into_iter().map(|config| Rc::new(Application { config, environment: environment.clone() }));
        let apps: Vec<Rc<Application>> = apps.collect();
        apps.iter().try_for_each(|app| check_program(app))?;
        let known: Vec<Vec<u32>> = apps.iter().map(|app| self.of_name(&app.config.name)).collect();
        let mut started = self.launch_missing(&apps)?;
        for (app, known) in apps.iter().zip(known) {
            for (id, is_same_program) in self.configure(known, app, |_| Rc::clone(app)) {
                let is_reloaded = reload && is_same_program;
                self.with(id, if is_reloaded { ManagedProcess::reload } else { ManagedProcess::restart });
                started.insert(id);
            }
        }
        Ok(started)
    }

    pub fn scale(&mut self, name: &str, instances: Instances) -> Result<BTreeSet<u32>, String> {
        let known = self.of_name(name);
        let first = known.first().and_then(|id| self.processes.get(id)).ok_or_else(|| self.unknown(name))?;
        let wanted = match instances {
            Instances::Exactly(wanted) => wanted,
            Instances::More { more } => first.app.config.instances.saturating_add_signed(more),
        };
        let most = if first.is_cluster() { cluster_mode::MOST_WORKERS } else { MOST_PROCESSES };
        if !(1..=most).contains(&wanted) {
            return Err(format!("{name} would have {wanted} processes; 1 to {most} are possible"));
        }
        if known.iter().any(|id| self.processes[id].call.is_some()) {
            // What it answers to one client is not for another.
            return Err(format!("{name} is being reloaded or scaled; try again when that has ended"));
        }
        let resized = |app: &Application| {
            let config = AppConfig { instances: wanted, ..app.config.clone() };
            Rc::new(Application { config, environment: app.environment.clone() })
        };
        let app = resized(&first.app);
        let new = self.launch_missing(&[Rc::clone(&app)])?;
        // Each may have an environment of its own (`restart ID --update-env`).
        for (id, _) in self.configure(known.clone(), &app, resized) {
            self.with(id, |process, shared| {
                if process.is_cluster() && process.running.is_some() {
                    process.call(shared, "scaled", &json!({"do": "scale", "workers": wanted}));
                }
            });
        }
        Ok(new.into_iter().chain(known).collect())
    }

    /// Starts the processes that these applications have too few.
    fn launch_missing(&mut self, apps: &[Rc<Application>]) -> Result<BTreeSet<u32>, Failure> {
        let mut new = Vec::new();
        for app in apps {
            let first = self.of_name(&app.config.name).len();
            new.extend((first..process_count(app)).map(|number| self.add(number, Rc::clone(app))));
        }
        self.launch_new(&new)?;
        Ok(new.into_iter().collect())
    }

    /// Deletes those of these processes that are too many, and gives the others what takes the place of their
    /// application; each with what [`ManagedProcess::configure`] says.
    fn configure(
        &mut self,
        mut known: Vec<u32>,
        app: &Application,
        of_known: impl Fn(&Application) -> Rc<Application>,
    ) -> Vec<(u32, bool)> {
        for id in known.split_off(known.len().min(process_count(app))) {
            self.with(id, |process, shared| process.stop(shared, AfterStop::Delete));
        }
        self.shared.has_changed = true;
        let configured = known.iter().enumerate().filter_map(|(number, id)| {
            let first_free = self.first_free_id();
            let process = self.processes.get_mut(id)?;
            let app = of_known(&process.app);
            Some((*id, process.configure(&mut self.shared, number, &app, first_free)))
        });
        configured.collect()
    }

    fn add(&mut self, number: usize, app: Rc<Application>) -> u32 {
        let id = self.first_free_id();
        let mut process = ManagedProcess::new(ProcessRecord::new(id, number), app);
        process.name_workers(id + 1);
        process.saved.status = ProcessStatus::WaitingRestart;
        self.processes.insert(id, process);
        id
    }

    /// The state file knows them before they exist, so a daemon that is killed in between leaves no process that nobody
    /// knows. Where it cannot be written, as on a full disk, they are forgotten.
    fn launch_new(&mut self, ids: &[u32]) -> Result<(), Failure> {
        self.shared.has_changed = true;
        if !ids.is_empty()
            && let Err(failure) = self.write_state()
        {
            let removed = ids.iter().filter_map(|id| self.processes.remove(id));
            let names: BTreeSet<String> = removed.map(|process| process.name().to_owned()).collect();
            let names = Vec::from_iter(names).join(", ");
            return Err(Failure::relay(format!("start {names}: {failure}")).advise("nothing was started"));
        }
        ids.iter().for_each(|&id| self.with(id, ManagedProcess::launch));
        Ok(())
    }

    /// Those of an application, in the order of their numbers. One that is being deleted is none any more.
    fn of_name(&self, name: &str) -> Vec<u32> {
        let of_name = self.processes.values().filter(|process| process.name() == name && !process.is_leaving());
        let mut ids: Vec<(usize, u32)> = of_name.map(|process| (process.saved.number, process.id())).collect();
        ids.sort_unstable();
        ids.into_iter().map(|(_, id)| id).collect()
    }

    fn first_free_id(&self) -> u32 {
        let workers = self.processes.values().flat_map(|process| &process.saved.workers);
        workers.map(|worker| worker.id).max().map_or(0, |last| last + 1)
    }

    /// Where the state file could not be written, as on a full disk, it is tried once more.
    pub fn retry_save(&mut self) {
        if std::mem::take(&mut self.is_unsaved) {
            self.shared.has_changed = true;
            self.save_state();
        }
    }

    pub fn save_state(&mut self) {
        if self.shared.has_changed
            && let Err(failure) = self.write_state()
        {
            let until_then = "a daemon that starts before that uses the old state";
            console::log(failure.advise(format_args!("the next command writes it again; {until_then}")));
        }
    }

    fn write_state(&mut self) -> Result<(), Failure> {
        self.shared.has_changed = false;
        self.processes.values_mut().for_each(ManagedProcess::keep_clock);
        let due_s = self.processes.values().filter_map(|process| process.cron.as_ref()?.due_s);
        if let Err(errno) = self.wall_clock.set(due_s) {
            console::log(Failure::new("set the timer of cron_restart", errno));
        }
        self.state().write(&self.shared.home.state()).inspect_err(|_| self.is_unsaved = true)
    }

    /// Keeps the applications as they are for [`God::resurrect`].
    pub fn save_dump(&self) -> Result<(), Failure> {
        self.state().write(&self.shared.home.dump())?;
        self.shared.home.sync()
    }

    fn state(&self) -> SavedState {
        let mut apps: Vec<SavedApplication> = Vec::new();
        for process in self.processes.values() {
            let at = apps.iter().position(|saved| saved.app == *process.app).unwrap_or_else(|| {
                apps.push(SavedApplication { app: Application::clone(&process.app), processes: Vec::new() });
                apps.len() - 1
            });
            let identity = process.running.as_ref().map(|running| running.identity);
            apps[at].processes.push(ProcessRecord { identity, ..process.saved.clone() });
        }
        SavedState::new(apps)
    }

    /// Starts what was online when it was saved, and knows the rest again as stopped. A name that is there stays as it
    /// is.
    pub fn resurrect(&mut self) -> Result<BTreeSet<u32>, Failure> {
        let path = self.shared.home.dump();
        let Some(state) = SavedState::read(&path)? else {
            return Err(Failure::relay(format!("read {}: there is none; `pm save` writes it", path.display())));
        };
        let is_missing = |saved: &SavedApplication| self.of_name(&saved.app.config.name).is_empty();
        let missing: Vec<SavedApplication> = state.apps.into_iter().filter(is_missing).collect();
        let (mut new, mut all) = (Vec::new(), BTreeSet::new());
        for saved in missing {
            let app = Rc::new(saved.app);
            for record in saved.processes {
                let id = self.add(record.number, Rc::clone(&app));
                all.insert(id);
                if record.status.is_to_run() {
                    new.push(id);
                } else if let Some(process) = self.processes.get_mut(&id) {
                    process.saved.status = ProcessStatus::Stopped;
                    process.saved.has_finished = record.has_finished;
                }
            }
        }
        self.launch_new(&new).inspect_err(|_| self.processes.retain(|id, _| !all.contains(id)))?;
        Ok(all)
    }

    /// Adopts what a daemon before us has left, as its state file says.
    pub fn adopt(&mut self) {
        let (home, launched) = (&self.shared.home, find_launched(&self.shared.home));
        let state = match SavedState::read(&home.state()) {
            Ok(state) => state.unwrap_or_else(|| SavedState::new(Vec::new())),
            Err(failure) => {
                let kept = match home.set_aside(&home.state()) {
                    Ok(path) => format!("kept as {}", path.display()),
                    Err(failure) => failure.into(),
                };
                let found = "the applications that run are found again by their environment";
                console::log(failure.advise(format_args!("{kept}; {found}, stopped ones are lost")));
                found_state(home, &launched)
            }
        };
        let is_of_this_boot = state.is_of_this_boot();
        let last = state.apps.iter().flat_map(|saved| &saved.processes).map(|record| record.id).max().unwrap_or(0);
        for saved in state.apps {
            let app = Rc::new(saved.app);
            for mut record in saved.processes {
                let identity = record.identity.take().filter(|_| is_of_this_boot);
                // It may have been started after the state was written for the last time.
                let newer = record.launch.find_later(&launched).filter(|_| record.status.is_to_run());
                let running = identity.and_then(RunningProcess::adopt);
                let running = running.or_else(|| RunningProcess::adopt(ProcessIdentity::of(&newer?.stat)));
                if let Some(newer) = newer {
                    record.launch = newer.launch.clone();
                }
                if !is_of_this_boot && record.status.is_to_run() {
                    // The machine has ended it: nobody has failed.
                    record.status = ProcessStatus::WaitingRestart;
                }
                let id = record.id;
                let since_ns = identity.map_or(0, |identity| identity.since_ns);
                let mut process = ManagedProcess::new(record, Rc::clone(&app));
                process.name_workers(self.first_free_id().max(last + 1));
                process.running = running;
                self.processes.insert(id, process);
                self.with(id, |process, shared| process.resume(shared, since_ns));
            }
        }
    }
}

impl ManagedProcess {
    /// From the next start on, in place of that of before. As in PM2, it counts more than what the configuration says.
    pub fn update_environment(&mut self, environment: &BTreeMap<String, String>) {
        let app = Rc::make_mut(&mut self.app);
        app.config.env.retain(|name, _| !environment.contains_key(name));
        app.environment.clone_from(environment);
    }

    /// True when a running cluster can go over to the new configuration worker by worker: the program is the same.
    fn configure(&mut self, shared: &mut Shared, number: usize, app: &Rc<Application>, first_free: u32) -> bool {
        let (old, new) = (&self.app.config, &app.config);
        let program = |config: &AppConfig| {
            let AppConfig { script, args, interpreter, interpreter_args, cwd, .. } = config.clone();
            (script, args, interpreter, interpreter_args, cwd, config.exec_mode, config.schedule, config.instances)
        };
        let is_same_program = program(old) == program(new);
        let other_number = AppConfig { instances: new.instances, ..old.clone() };
        if other_number != *new {
            self.saved.budget = RestartBudget::default();
            (self.watcher, self.cron) = (None, None);
        }
        if old != new {
            // Its logs may have other names now.
            self.finish_outputs(shared);
            self.outputs.clear();
        }
        self.saved.number = number;
        self.app = Rc::clone(app);
        self.name_workers(first_free);
        if self.running.is_some() {
            self.watch_outputs_or_say(shared);
        }
        is_same_program
    }

    fn watch_outputs_or_say(&mut self, shared: &mut Shared) {
        if let Err(failure) = self.watch_outputs(shared) {
            console::log(failure);
        }
    }

    /// One of a daemon before us. Its process, if it is gone, was up since then.
    fn resume(&mut self, shared: &mut Shared, since_ns: u64) {
        shared.has_changed = true;
        self.watch_outputs_or_say(shared);
        if let Some(running) = &self.running {
            if let Err(errno) = shared.epoll.add(&running.pidfd, PmSource::Ended.token(self.id()), Interest::EPOLLIN) {
                console::log(Failure::new(format_args!("watch process {}", running.identity.pid), errno));
            }
            if let Some(after) = self.saved.after_stop.take() {
                return self.stop(shared, after);
            }
            self.saved.status = ProcessStatus::Online;
            shared.report(self, "adopt");
            return self.begin_watching(shared);
        }
        match self.saved.status {
            _ if self.saved.after_stop.is_some() => {
                // What it has started may live on, and has its time to end.
                let of_the_dead = || ProcessTree::new(NOBODY, self.saved.launch.clone());
                self.tree = self.app.config.treekill.then(of_the_dead);
                self.set_due(self.app.config.kill_timeout, ProcessDue::Kill);
                self.finish_stop_when_alone(shared);
            }
            ProcessStatus::Stopped | ProcessStatus::Errored => {}
            ProcessStatus::WaitingRestart => self.launch(shared),
            _ => {
                self.note_ending(None);
                shared.report(self, "exit");
                self.decide(shared, Duration::from_nanos(monotonic_ns().saturating_sub(since_ns)), None);
            }
        }
    }
}

/// A cluster starts its workers itself.
fn process_count(app: &Application) -> usize {
    if app.config.exec_mode == ExecMode::Fork { app.config.instances } else { 1 }
}

/// Without a state file: the configuration is that of the dump, or what the command line tells.
fn found_state(home: &PmHome, launched: &[LaunchedProcess]) -> SavedState {
    let dump = SavedState::read(&home.dump()).ok().flatten();
    let saved: Vec<Application> = dump.into_iter().flat_map(|dump| dump.apps).map(|saved| saved.app).collect();
    let mut by_id: BTreeMap<u32, &LaunchedProcess> = BTreeMap::new();
    for process in launched {
        let first = by_id.entry(process.id).or_insert(process);
        // What a process has started in a session of its own has its mark, too, and is younger.
        if process.stat.started < first.stat.started {
            *first = process;
        }
    }
    let mut apps: BTreeMap<&String, SavedApplication> = BTreeMap::new();
    for (&id, process) in &by_id {
        let Some(name) = process.environment.get("name") else { continue };
        let SavedApplication { app, processes } = apps.entry(name).or_insert_with(|| {
            let count = by_id.values().filter(|other| other.environment.get("name") == Some(name)).count();
            let known = saved.iter().find(|app| app.config.name == *name).cloned();
            let app = known.unwrap_or_else(|| found_application(name, process, count));
            SavedApplication { app, processes: Vec::new() }
        });
        let number = process.environment.get(&app.config.instance_var).and_then(|number| number.parse().ok());
        processes.push(ProcessRecord {
            identity: Some(ProcessIdentity::of(&process.stat)),
            launch: process.launch.clone(),
            status: ProcessStatus::Online,
            ..ProcessRecord::new(id, number.unwrap_or(0))
        });
    }
    SavedState::new(apps.into_values().collect())
}

/// As far as the process itself tells: its command line is the script and its arguments.
fn found_application(name: &str, process: &LaunchedProcess, count: usize) -> Application {
    let mut words = procfs::command_line(process.stat.pid);
    let (mut exec_mode, mut instances) = (ExecMode::Fork, count);
    // A `cluster`: its program is behind the dashes.
    let is_cluster = words.iter().any(|word| word == "--control");
    if let Some(dashes) = words.iter().position(|word| word == "--").filter(|_| is_cluster) {
        let workers = words.iter().skip_while(|word| *word != "--workers").nth(1);
        instances = workers.and_then(|workers| workers.parse().ok()).unwrap_or(1);
        exec_mode = ExecMode::Cluster;
        words.drain(..=dashes);
    }
    let script = if words.is_empty() { name.to_owned() } else { words.remove(0) };
    let cwd = fs::read_link(format!("/proc/{}/cwd", process.stat.pid)).unwrap_or_else(|_| "/".into());
    let (name, script) = (name.to_owned(), script.into());
    let config = AppConfig { name, script, args: words, cwd, exec_mode, instances, ..AppConfig::default() };
    Application { config, environment: process.environment.clone() }
}
