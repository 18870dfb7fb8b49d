//! The applications and their processes: starts and stops them, notices who has ended, and decides what happens then.
//! Nothing here waits: a process that was asked to end is `stopping` until the kernel says that it has ended, or its
//! time is up.
//!
//! - here: who is there, and what is asked of one that runs;
//! - [`applications`]: an application is brought to its configuration, saved, adopted;
//! - [`lifecycle`]: one process starts, is ready, is asked to end, has ended;
//! - [`clusters`]: a cluster is asked, and says what happens to its workers;
//! - [`due`]: what is done because of a time, a file, or memory;
//! - [`token`]: what epoll reports.

mod applications;
mod clusters;
mod due;
mod lifecycle;
mod token;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use regex_lite::Regex;
use serde_json::{Value, json};

use super::cron::WallClockTimer;
use super::home::PmHome;
use super::logs::LogFiles;
use super::process::ManagedProcess;
use super::protocol::{ProcessEntry, ProcessStatus};
use crate::console;
use crate::failure::Failure;
use crate::sys::epoll::{Epoll, Interest, Ready};
use crate::sys::process::DescriptorLimit;
use crate::sys::procfs::Stat;
use crate::terminal::Paint;
use crate::units::utc_now_ms;

pub use token::PmToken;

const REPORTS_PER_WAIT: usize = 64;

pub struct God {
    home: PmHome,
    /// The program that cluster mode runs.
    cluster: PathBuf,
    /// What the daemon was started with, and its processes get.
    descriptor_limit: Option<DescriptorLimit>,
    pub epoll: Epoll,
    processes: BTreeMap<u32, ManagedProcess>,
    files: LogFiles,
    wall_clock: WallClockTimer,
    /// Since they were last taken.
    events: Vec<Value>,
    /// The state file is older than the processes.
    has_changed: bool,
    /// The processes of the machine, as they were at the first look after the last wait.
    everybody: Option<Rc<Vec<Stat>>>,
}

impl God {
    pub fn new(home: PmHome, cluster: PathBuf, descriptor_limit: Option<DescriptorLimit>) -> Result<God, Failure> {
        let open = || {
            let (epoll, wall_clock) = (Epoll::new(REPORTS_PER_WAIT)?, WallClockTimer::new()?);
            epoll.add(&wall_clock, PmToken::WallClock.encode(), Interest::EPOLLIN)?;
            Ok((epoll, wall_clock))
        };
        let (epoll, wall_clock) = open().map_err(|errno: Errno| Failure::new("wait for events", errno))?;
        Ok(God {
            home,
            cluster,
            descriptor_limit,
            epoll,
            processes: BTreeMap::new(),
            files: LogFiles::default(),
            wall_clock,
            events: Vec::new(),
            has_changed: false,
            everybody: None,
        })
    }

    /// Waits until something happens, something is due, or so much time has passed; for ever while nothing is due.
    pub fn wait(&mut self, most: Option<Duration>) -> Result<Vec<Ready>, Failure> {
        let timeout = [self.until_due(), most].into_iter().flatten().min();
        let reports = self.epoll.wait(timeout).map_err(|errno| Failure::new("wait for events", errno))?;
        self.everybody = None;
        Ok((0..reports).map(|i| self.epoll.report(i)).collect())
    }

    /// What has happened to a process.
    pub fn ready(&mut self, token: PmToken) {
        match token {
            PmToken::WallClock => self.wall_clock_ready(),
            PmToken::Ended(id) => self.process_ended(id),
            PmToken::Channel(id) => self.channel_ready(id),
            PmToken::Call(id) => self.call_ready(id),
            PmToken::Workers(id) => self.workers_ready(id),
            PmToken::Watch(id) => self.watch_ready(id),
            PmToken::Output(id, output) => self.output_ready(id, output),
            PmToken::Signals | PmToken::Client(_) => {}
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
                let numbered = with(&|process| target.parse().is_ok_and(|id| process.has_worker(id)));
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
        chosen.flat_map(|process| process.entries(&self.home)).collect()
    }

    /// A process runs, or will.
    pub fn has_work(&self) -> bool {
        self.processes.values().any(|process| process.running.is_some() || !process.due.is_empty())
    }

    /// A command that asked for something is still waiting.
    pub fn is_busy(&self, id: u32) -> bool {
        self.processes.get(&id).is_some_and(ManagedProcess::is_busy)
    }

    /// What the last command could not do with it.
    pub fn failure(&self, id: u32) -> Option<String> {
        let process = self.processes.get(&id)?;
        let errored = process.saved.reason.as_deref().filter(|_| process.saved.status == ProcessStatus::Errored);
        let why = errored.or(process.refusal.as_deref())?;
        Some(format!("{}: {why}", process.name()))
    }

    pub fn signal(&mut self, id: u32, signal: Signal) -> Result<(), Failure> {
        let Some(process) = self.processes.get(&id) else { return Ok(()) };
        let mut sent = process.working_pids().into_iter().map(|pid| kill(Pid::from_raw(pid), signal));
        sent.try_for_each(|sent| sent)
            .map_err(|errno| Failure::new(format_args!("send {signal} to {}", process.name()), errno))
    }

    /// Sets its counts of restarts to 0.
    pub fn reset(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        process.saved.workers.iter_mut().for_each(|worker| worker.restarts = 0);
        process.saved.budget.reset();
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

    pub fn take_events(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.events)
    }

    /// What has happened to this process is an event, with its reason.
    fn report(&mut self, id: u32, event: &str) {
        let reason = self.processes.get(&id).and_then(|process| process.saved.reason.clone());
        self.report_because(id, event, reason);
    }

    fn report_because(&mut self, id: u32, event: &str, reason: Option<String>) {
        let Some(process) = self.processes.get(&id) else { return };
        let pid = process.running.as_ref().map_or(0, |running| running.identity.pid);
        let mut line = json!({"at": utc_now_ms(), "event": event, "name": process.name(), "pm_id": id, "pid": pid});
        if let Some(reason) = reason {
            line["reason"] = json!(reason);
        }
        self.publish(line);
    }

    fn publish(&mut self, event: Value) {
        console::log(&event);
        self.events.push(event);
    }

    fn everybody(&mut self) -> Rc<Vec<Stat>> {
        Rc::clone(self.everybody.get_or_insert_with(|| Rc::new(Stat::everybody().collect())))
    }
}
