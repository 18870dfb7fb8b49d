//! What is done to a process because of a time, a file that has changed, or the memory that it uses.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::super::cron::CronRestart;
use super::super::dump::AfterStop;
use super::super::fork_mode::RunningProcess;
use super::super::protocol::ProcessStatus;
use super::super::restarts::Decision;
use super::super::watch::Watcher;
use super::process::ProcessDue;
use super::{God, ManagedProcess, PmSource, Shared};
use crate::console;
use crate::failure::Failure;
use crate::sys::epoll::Interest;
use crate::sys::process::Ending;
use crate::sys::procfs;
use crate::units::{format_duration, monotonic_ns, wall_ms};

/// Between two looks at the memory of a process that has a limit.
const LOOK_AT_MEMORY_EVERY: Duration = Duration::from_millis(500);

impl God {
    /// How long to wait for events; for ever while nothing is due.
    pub(super) fn until_due(&self) -> Option<Duration> {
        let next_ns = self.processes.values().filter_map(ManagedProcess::next_due_ns).min()?;
        Some(Duration::from_nanos(next_ns.saturating_sub(monotonic_ns())))
    }

    pub fn run_due(&mut self) {
        let now_ns = monotonic_ns();
        for id in self.all() {
            self.with(id, |process, shared| process.run_due(shared, now_ns));
        }
    }

    pub(super) fn wall_clock_ready(&mut self) {
        let _ = self.wall_clock.clear();
        for id in self.all() {
            self.with(id, ManagedProcess::restart_by_clock);
        }
        self.shared.has_changed = true;
    }
}

impl ManagedProcess {
    fn next_due_ns(&self) -> Option<u64> {
        let watcher = self.watcher.as_ref().and_then(Watcher::due_ns);
        self.due.values().copied().chain(watcher).min()
    }

    fn run_due(&mut self, shared: &mut Shared, now_ns: u64) {
        while let Some(due) = self.due.iter().find(|(_, due_ns)| **due_ns <= now_ns).map(|(&due, _)| due) {
            self.due.remove(&due);
            match due {
                ProcessDue::Kill => self.kill(shared),
                ProcessDue::LookAtTree => self.finish_stop_when_alone(shared),
                ProcessDue::Restart => self.launch(shared),
                ProcessDue::NotReady => {
                    let within = format_duration(self.app.config.listen_timeout);
                    let why = format!("it has not said within {within} that it is ready (listen_timeout)");
                    self.saved.reason = Some(why);
                    self.stop(shared, AfterStop::Fail);
                }
                ProcessDue::LookAtMemory => self.look_at_memory(shared),
            }
        }
        if self.next_due_ns().is_some_and(|due_ns| due_ns <= now_ns) {
            self.watch_ready(shared);
        }
    }

    /// It has started: what its configuration names is watched from now on.
    pub(super) fn begin_watching(&mut self, shared: &mut Shared) {
        if self.app.config.max_memory_restart.is_some() {
            self.set_due(LOOK_AT_MEMORY_EVERY, ProcessDue::LookAtMemory);
        }
        if !self.app.config.watch.is_empty() && self.watcher.is_none() {
            self.watch_files(shared);
        }
    }

    /// Its clock runs, where it has one, unless somebody has stopped it or it has failed.
    pub(super) fn keep_clock(&mut self) {
        let pattern = self.app.config.cron_restart.as_deref();
        let pattern = pattern.filter(|_| self.saved.status.is_to_run() || self.saved.has_finished);
        let new = || pattern.and_then(|pattern| CronRestart::new(pattern, wall_s()).ok());
        self.cron = self.cron.take().filter(|_| pattern.is_some()).or_else(new);
    }

    fn look_at_memory(&mut self, shared: &mut Shared) {
        self.set_due(LOOK_AT_MEMORY_EVERY, ProcessDue::LookAtMemory);
        let Some(most) = self.app.config.max_memory_restart else { return };
        let used = self.working_pids().into_iter().filter_map(procfs::resident_kib).max().unwrap_or(0) * 1024;
        if used <= most || self.call.is_some() || self.saved.after_stop.is_some() {
            return;
        }
        self.saved.reason = Some(format!("it used {used} bytes of memory, and may use {most}"));
        // It counts as a failure, so that a program that always needs more is given up.
        let uptime = self.running.as_ref().map(RunningProcess::uptime).unwrap_or_default();
        let ending = Ending::KilledBy(Signal::SIGKILL as i32);
        let decision = self.saved.budget.exited(&self.app.config, uptime, ending);
        shared.report(self, "memory");
        match decision {
            Decision::RestartAfter(_) => self.reload_unasked(shared),
            Decision::GiveUp { .. } | Decision::Stopped => self.stop(shared, AfterStop::Fail),
        }
    }

    fn restart_by_clock(&mut self, shared: &mut Shared) {
        // It may have been stopped since the clock was set.
        self.keep_clock();
        let is_due = self.cron.as_mut().is_some_and(|cron| cron.is_due(wall_s()));
        // One that is being restarted or reloaded is as new as it can be; cut short, its command would fail.
        if is_due && !self.is_busy() {
            shared.report(self, "cron");
            self.reload_unasked(shared);
        }
    }

    fn watch_files(&mut self, shared: &mut Shared) {
        let config = &self.app.config;
        // Our own folder may be in there, and changes with everything that we do.
        let own = globset::escape(&shared.home.folder().to_string_lossy());
        let mut watched = config.clone();
        watched.ignore_watch.push(own);
        let watched = Watcher::new(watched).and_then(|watcher| {
            shared.epoll.add(&watcher, PmSource::Watch.token(self.id()), Interest::EPOLLIN)?;
            Ok(watcher)
        });
        match watched {
            Ok(mut watcher) => {
                watcher.take_problems().into_iter().for_each(|why| shared.report_because(self, "watch", Some(&why)));
                self.watcher = Some(watcher);
            }
            Err(errno) => console::log(Failure::new(format_args!("watch the files of {}", config.name), errno)),
        }
    }

    /// A file may have changed: when the burst of changes is over, the application is reloaded.
    pub(super) fn watch_ready(&mut self, shared: &mut Shared) {
        let Some(watcher) = &mut self.watcher else { return };
        let changed = watcher.changed(monotonic_ns());
        watcher.take_problems().into_iter().for_each(|why| shared.report_because(self, "watch", Some(&why)));
        // That we have rotated or emptied a log is no reason to restart anything.
        let Some(first) = changed.into_iter().flatten().find(|path| !shared.files.has(path)) else { return };
        // What somebody has stopped, or is just ending, does not begin again because of a file.
        if self.saved.status == ProcessStatus::Stopped || self.saved.after_stop.is_some() {
            return;
        }
        self.saved.reason = Some(format!("{} has changed", first.display()));
        shared.report(self, "change");
        self.reload(shared);
    }
}

fn wall_s() -> i64 {
    (wall_ms() / 1000) as i64
}
