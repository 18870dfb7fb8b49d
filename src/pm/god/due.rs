//! What is done to a process because of a time, a file that has changed, or the memory that it uses.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::super::dump::AfterStop;
use super::super::process::{LOOK_AT_MEMORY_EVERY, ProcessDue};
use super::super::protocol::ProcessStatus;
use super::super::restarts::Decision;
use super::super::watch::Watcher;
use super::{God, PmToken};
use crate::console;
use crate::failure::Failure;
use crate::sys::epoll::Interest;
use crate::sys::process::Ending;
use crate::sys::procfs;
use crate::units::{format_duration, monotonic_ns, wall_ms};

impl God {
    /// How long to wait for events; for ever while nothing is due.
    pub(super) fn until_due(&self) -> Option<Duration> {
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
        match due {
            ProcessDue::Kill => self.kill(id),
            ProcessDue::LookAtTree => self.finish_stop_when_alone(id),
            ProcessDue::Restart => self.launch(id),
            ProcessDue::NotReady => {
                let Some(process) = self.processes.get_mut(&id) else { return };
                let within = format_duration(process.app.config.listen_timeout);
                process.saved.reason =
                    Some(format!("it has not said within {within} that it is ready (listen_timeout)"));
                self.stop(id, AfterStop::Fail);
            }
            ProcessDue::LookAtMemory => self.look_at_memory(id),
        }
    }

    fn look_at_memory(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        process.set_due(LOOK_AT_MEMORY_EVERY, ProcessDue::LookAtMemory);
        let Some(most) = process.app.config.max_memory_restart else { return };
        let used = process.working_pids().into_iter().filter_map(procfs::resident_kib).max().unwrap_or(0) * 1024;
        if used <= most || process.call.is_some() || process.saved.after_stop.is_some() {
            return;
        }
        process.saved.reason = Some(format!("it used {used} bytes of memory, and may use {most}"));
        // It counts as a failure, so that a program that always needs more is given up.
        let uptime = process.running.as_ref().map(|running| running.uptime(monotonic_ns()));
        let ending = Ending::KilledBy(Signal::SIGKILL as i32);
        let decision = process.saved.budget.exited(uptime.unwrap_or_default(), ending);
        self.report(id, "memory");
        match decision {
            Decision::GiveUp { .. } => self.stop(id, AfterStop::Fail),
            _ => self.reload_unasked(id),
        }
    }

    pub(super) fn wall_clock_ready(&mut self) {
        let _ = self.wall_clock.clear();
        let now_s = (wall_ms() / 1000) as i64;
        for id in self.all() {
            let Some(process) = self.processes.get_mut(&id) else { continue };
            let is_due = process.cron.as_mut().is_some_and(|cron| cron.is_due(now_s));
            // One that is being restarted or reloaded is as new as it can be; cut short, its command would fail.
            if is_due && !process.is_busy() && process.saved.status != ProcessStatus::Errored {
                self.report(id, "cron");
                self.restart_unasked(id);
            }
        }
        self.has_changed = true;
    }

    /// Notices changes of the files that its configuration names.
    pub(super) fn watch_files(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let config = &process.app.config;
        if config.watch.is_empty() || process.watcher.is_some() {
            return;
        }
        // Our own folder may be in there, and changes with everything that we do.
        let own = globset::escape(&self.home.folder().to_string_lossy());
        let mut watched = config.clone();
        watched.ignore_watch.push(own);
        let watched = Watcher::new(watched).and_then(|watcher| {
            self.epoll.add(&watcher, PmToken::Watch(id).encode(), Interest::EPOLLIN)?;
            Ok(watcher)
        });
        match watched {
            Ok(mut watcher) => {
                let problems = watcher.take_problems();
                process.watcher = Some(watcher);
                problems.into_iter().for_each(|problem| self.report_because(id, "watch", Some(problem)));
            }
            Err(errno) => console::log(Failure::new(format_args!("watch the files of {}", config.name), errno)),
        }
    }

    /// A file may have changed: when the burst of changes is over, the application is reloaded.
    pub(super) fn watch_ready(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Some(watcher) = &mut process.watcher else { return };
        let changed = watcher.changed(monotonic_ns());
        let problems = watcher.take_problems();
        problems.into_iter().for_each(|problem| self.report_because(id, "watch", Some(problem)));
        // That we have rotated or emptied a log is no reason to restart anything.
        let first = changed.into_iter().flatten().find(|path| !self.files.has(path));
        let (Some(first), Some(process)) = (first, self.processes.get_mut(&id)) else { return };
        // What somebody has stopped, or is just ending, does not begin again because of a file.
        if process.saved.status == ProcessStatus::Stopped || process.saved.after_stop.is_some() {
            return;
        }
        process.saved.reason = Some(format!("{} has changed", first.display()));
        self.report(id, "change");
        self.reload(id);
    }
}
