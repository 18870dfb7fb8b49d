//! The applications and their processes: starts and stops them, notices who has ended, and decides what happens then.
//! Nothing here waits: a process that was asked to end is `stopping` until the kernel says that it has ended, or its
//! time is up.
//!
//! - here: which processes there are, and what they share;
//! - [`applications`]: an application is brought to its configuration, saved, adopted;
//! - [`lifecycle`]: one process starts, is ready, is asked to end, has ended;
//! - [`process`]: one process as the daemon keeps it; [`cluster_mode`]: how a cluster is started, asked and heard;
//! - [`clusters`]: it is asked, and says what happens to its workers;
//! - [`due`]: what is done because of a time, a file, or memory;
//! - [`token`]: what epoll reports.

mod applications;
mod cluster_mode;
mod clusters;
mod due;
mod lifecycle;
mod process;
mod token;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use regex_lite::Regex;
use serde_json::{Value, json};

use super::cron::WallClockTimer;
use super::dump::WorkerRecord;
use super::home::PmHome;
use super::logs::LogFiles;
use super::protocol::ProcessEntry;
use super::restarts::RestartBudget;
use crate::console;
use crate::failure::Failure;
use crate::sys::epoll::{Epoll, Interest, Ready};
use crate::sys::process::DescriptorLimit;
use crate::sys::procfs::Stat;
use crate::units::utc_now_ms;

pub use process::ManagedProcess;
pub use token::PmSource;

const REPORTS_PER_WAIT: usize = 64;

pub struct God {
    pub processes: BTreeMap<u32, ManagedProcess>,
    pub shared: Shared,
    wall_clock: WallClockTimer,
    is_unsaved: bool,
}

/// What all processes share.
pub struct Shared {
    home: PmHome,
    cluster: PathBuf,
    /// What the daemon was started with, and its processes get.
    descriptor_limit: Option<DescriptorLimit>,
    pub epoll: Epoll,
    pub files: LogFiles,
    /// The events since they were last taken.
    pub events: Vec<Value>,
    /// The state file is older than the processes.
    has_changed: bool,
    /// The processes of the machine, as they were at the first look after the last wait.
    all_processes: Option<Vec<Stat>>,
}

impl God {
    pub fn new(home: PmHome, cluster: PathBuf, descriptor_limit: Option<DescriptorLimit>) -> Result<God, Failure> {
        let open = || {
            let (epoll, wall_clock) = (Epoll::new(REPORTS_PER_WAIT)?, WallClockTimer::new()?);
            epoll.add(&wall_clock, PmSource::WallClock.token(0u32), Interest::EPOLLIN)?;
            Ok((epoll, wall_clock))
        };
        let (epoll, wall_clock) = open().map_err(|errno: Errno| Failure::new("wait for events", errno))?;
        let (files, events) = (LogFiles::default(), Vec::new());
        let shared =
            Shared { home, cluster, descriptor_limit, epoll, files, events, has_changed: false, all_processes: None };
        Ok(God { processes: BTreeMap::new(), shared, wall_clock, is_unsaved: false })
    }

    /// Waits until something happens, something is due, or so much time has passed; for ever while nothing is due.
    pub fn wait(&mut self, most: Option<Duration>) -> Result<Vec<Ready>, Failure> {
        let timeout = [self.until_due(), most].into_iter().flatten().min();
        let reports = self.shared.epoll.wait(timeout).map_err(|errno| Failure::new("wait for events", errno))?;
        self.shared.all_processes = None;
        Ok((0..reports).map(|i| self.shared.epoll.report(i)).collect())
    }

    /// Does this with a process, if there still is one with this id.
    pub fn with(&mut self, id: u32, action: impl FnOnce(&mut ManagedProcess, &mut Shared)) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        action(process, &mut self.shared);
        if process.is_deleted {
            self.processes.remove(&id);
        }
    }

    pub fn ready(&mut self, source: PmSource, which: u64) {
        let (id, output) = (which as u32, (which >> 32) as usize);
        match source {
            PmSource::WallClock => self.wall_clock_ready(),
            PmSource::Ended => self.with(id, ManagedProcess::has_ended),
            PmSource::Channel => self.with(id, ManagedProcess::channel_ready),
            PmSource::Call => self.with(id, ManagedProcess::call_ready),
            PmSource::Workers => self.with(id, ManagedProcess::workers_ready),
            PmSource::Watch => self.with(id, ManagedProcess::watch_ready),
            PmSource::Output => self.with(id, |process, shared| process.output_ready(shared, output)),
            PmSource::Signals | PmSource::Client => {}
        }
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
                self.processes.values().filter(|process| is_meant(process)).map(ManagedProcess::id).collect()
            };
            let ids = if target == "all" {
                with(&|_| true)
            } else if let Some(regex) = regex {
                with(&|process| regex.is_match(process.name()))
            } else {
                let named = with(&|process| process.name() == target);
                let has_id = |worker: &WorkerRecord| target.parse() == Ok(worker.id);
                let numbered = with(&|process| process.saved.workers.iter().any(has_id));
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
        let names: BTreeSet<&str> = self.processes.values().map(ManagedProcess::name).collect();
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        let there = if names.is_empty() { "there is none at all".to_owned() } else { format!("there are: {names}") };
        format!("no application {target:?}; {there}")
    }

    pub fn all(&self) -> BTreeSet<u32> {
        self.processes.keys().copied().collect()
    }

    pub fn entries(&mut self, ids: &BTreeSet<u32>) -> Vec<ProcessEntry> {
        let chosen = self.processes.values_mut().filter(|process| ids.contains(&process.id()));
        chosen.flat_map(|process| process.entries(&self.shared.home)).collect()
    }

    /// A process runs, or will.
    pub fn has_work(&self) -> bool {
        self.processes.values().any(|process| process.running.is_some() || !process.due.is_empty())
    }
}

impl ManagedProcess {
    pub fn reset(&mut self, shared: &mut Shared) {
        self.saved.workers.iter_mut().for_each(|worker| worker.restarts = 0);
        self.saved.budget = RestartBudget::default();
        shared.has_changed = true;
    }

    pub fn flush_logs(&mut self, shared: &mut Shared) {
        self.outputs.iter().for_each(|writer| writer.flush(&mut shared.files));
        if self.is_cluster() {
            cluster_mode::empty_log(&shared.home, self.name(), self.id(), 0);
        }
    }
}

impl Shared {
    /// What has happened to this process is an event, with its reason.
    fn report(&mut self, process: &ManagedProcess, event: &str) {
        self.report_because(process, event, process.saved.reason.as_deref());
    }

    fn report_because(&mut self, process: &ManagedProcess, event: &str, reason: Option<&str>) {
        let pid = process.running.as_ref().map_or(0, |running| running.identity.pid);
        self.publish(event, process.name(), process.id(), pid, reason);
    }

    fn publish(&mut self, event: &str, name: &str, id: u32, pid: i32, reason: Option<&str>) {
        let mut line = json!({"at": utc_now_ms(), "event": event, "name": name, "pm_id": id, "pid": pid});
        if let Some(reason) = reason {
            line["reason"] = json!(reason);
        }
        console::log(&line);
        self.events.push(line);
    }

    /// That lines of a log are lost, or are no more.
    fn report_logs(&mut self, process: &ManagedProcess) {
        self.files.take_problems().iter().for_each(|why| self.report_because(process, "log", Some(why)));
    }

    fn all_processes(&mut self) -> &[Stat] {
        self.all_processes.get_or_insert_with(|| Stat::all_processes().collect())
    }
}
