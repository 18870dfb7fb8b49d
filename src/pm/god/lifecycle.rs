//! The life of one process: it is launched, says that it is ready, is restarted or asked to end, and has ended; then it
//! is decided whether there is a next one.

use std::fs;
use std::os::fd::AsFd;
use std::time::Duration;

use super::super::cluster_mode::{self, WorkerEvents};
use super::super::dump::AfterStop;
use super::super::fork_mode::{self, ChannelEvent, ReadyChannel, RunningProcess};
use super::super::process::ProcessDue;
use super::super::program::check_program;
use super::super::protocol::ProcessStatus;
use super::super::restarts::Decision;
use super::{God, PmToken};
use crate::console;
use crate::failure::Failure;
use crate::logs::lines::LogStream;
use crate::sys::epoll::Interest;
use crate::sys::process::Ending;
use crate::units::monotonic_ns;
use nix::errno::Errno;
use nix::sys::signal::Signal;

/// Between two looks at what is left of the tree of a process that has ended.
const LOOK_AT_TREE_EVERY: Duration = Duration::from_millis(20);

/// What a cluster needs beyond the time of its workers, to end in order.
const CLUSTER_NEEDS: Duration = Duration::from_secs(2);

/// And until all its workers are online: the start has failed so long after listen_timeout.
const CLUSTER_IS_SLOW: Duration = Duration::from_secs(10);

impl God {
    pub(super) fn launch(&mut self, id: u32) {
        self.has_changed = true;
        let started = self.watch_outputs(id).and_then(|()| self.start_process(id));
        let Some(process) = self.processes.get_mut(&id) else { return };
        process.due.clear();
        match started {
            Err(failure) => self.fail(id, failure.to_string()),
            Ok(running) => {
                process.running = Some(running);
                process.saved.reason = None;
                process.begin_watching();
                process.online_workers.clear();
                if process.is_cluster() || process.channel.is_some() {
                    let more = if process.is_cluster() { CLUSTER_IS_SLOW } else { Duration::ZERO };
                    process.set_due(process.app.config.listen_timeout + more, ProcessDue::NotReady);
                    process.saved.status = ProcessStatus::Launching;
                    self.report(id, "launching");
                } else {
                    process.saved.status = ProcessStatus::Online;
                    self.report(id, "online");
                }
                self.watch_files(id);
            }
        }
    }

    fn fail(&mut self, id: u32, why: String) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        process.saved.status = ProcessStatus::Errored;
        process.saved.reason = Some(why);
        self.report(id, "errored");
    }

    /// Starts it, in its mode; its end and its channel, where it has one, are watched.
    fn start_process(&mut self, id: u32) -> Result<RunningProcess, Failure> {
        let Some(process) = self.processes.get_mut(&id) else { return Err(Failure::new("start", Errno::ESRCH)) };
        check_program(&process.app)?;
        process.saved.launch.begin_next();
        let config = &process.app.config;
        let mut command = process.command(&self.home);
        let (mut channel, mut theirs) = (None, None);
        if process.is_cluster() {
            command = cluster_mode::command(&self.cluster, &command, config, &self.home, id)?;
        } else {
            fork_mode::redirect(&mut command, &self.home, id)?;
            if config.wait_ready {
                let (ours, end) = ReadyChannel::open()?;
                fork_mode::announce_channel(&mut command, &end);
                (channel, theirs) = (Some(ours), Some(end));
            }
        }
        if let Some(limit) = self.descriptor_limit {
            limit.restore_in(&mut command);
        }
        let running = RunningProcess::start(&mut command, theirs.as_ref().map(AsFd::as_fd))?;
        let watch = || {
            if let Some(channel) = &channel {
                self.epoll.add(channel, PmToken::Channel(id).encode(), Interest::EPOLLIN)?;
            }
            self.epoll.add(&running.pidfd, PmToken::Ended(id).encode(), Interest::EPOLLIN)
        };
        if let Err(errno) = watch() {
            running.kill_and_reap();
            return Err(Failure::new(format_args!("watch {}", config.name), errno).advise("it was killed"));
        }
        process.channel = channel;
        Ok(running)
    }

    /// Reads what it writes, and what its cluster says of the workers, from now on.
    pub(super) fn watch_outputs(&mut self, id: u32) -> Result<(), Failure> {
        let Some(process) = self.processes.get_mut(&id) else { return Ok(()) };
        let failed = |errno| Failure::new("watch an output", errno);
        let opened = process.open_outputs(&self.home, &mut self.files)?;
        for (output, writer) in process.outputs.iter().enumerate().skip(opened) {
            self.epoll.add(writer, PmToken::Output(id, output).encode(), Interest::EPOLLIN).map_err(failed)?;
        }
        if process.is_cluster() && process.worker_events.is_none() {
            let events = WorkerEvents::open(&self.home, id, process.app.config.wait_ready)?;
            self.epoll.add(&events, PmToken::Workers(id).encode(), Interest::EPOLLIN).map_err(failed)?;
            process.worker_events = Some(events);
        }
        self.report_logs(id);
        Ok(())
    }

    pub(super) fn output_ready(&mut self, id: u32, output: usize) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Some(writer) = process.outputs.get_mut(output) else { return };
        if let Err(errno) = writer.read_available(&mut self.files) {
            let _ = self.epoll.delete(&*writer);
            console::log(Failure::new(format_args!("read the output of {}", process.name()), errno));
        }
        self.report_logs(id);
    }

    /// That lines of a log are lost, or are no more.
    fn report_logs(&mut self, id: u32) {
        for problem in self.files.take_problems() {
            self.report_because(id, "log", Some(problem));
        }
    }

    /// It has said something on its channel, or closed it.
    pub(super) fn channel_ready(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Some(channel) = &mut process.channel else { return };
        match channel.read() {
            ChannelEvent::Nothing => {}
            ChannelEvent::Closed => process.channel = None,
            ChannelEvent::Ready => {
                if self.note_ready(id) {
                    self.report(id, "online");
                }
            }
        }
    }

    /// True: it was awaited.
    pub(super) fn note_ready(&mut self, id: u32) -> bool {
        let Some(process) = self.processes.get_mut(&id) else { return false };
        if process.saved.status != ProcessStatus::Launching {
            return false;
        }
        process.saved.status = ProcessStatus::Online;
        process.forget_due(ProcessDue::NotReady);
        self.has_changed = true;
        true
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
        process.saved.budget.reset();
        self.restart_unasked(id);
    }

    /// Earlier failures still count: otherwise a clock or a limit would restart a program for ever that fails each time.
    pub(super) fn restart_unasked(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        process.count_restart();
        self.stop(id, AfterStop::Restart);
    }

    /// Asks it to end, and does the rest when it has. One that does not run has ended already.
    pub fn stop(&mut self, id: u32, after: AfterStop) {
        let everybody = self.everybody();
        let Some(process) = self.processes.get_mut(&id) else { return };
        // Whoever deletes it has the last word.
        if process.saved.after_stop == Some(AfterStop::Delete) {
            return;
        }
        self.has_changed = true;
        process.forget_due(ProcessDue::Restart);
        process.refusal = None;
        let was_asked = process.saved.after_stop.replace(after).is_some();
        if was_asked {
            return;
        }
        let Some(running) = &process.running else { return self.finish_stop(id) };
        // A cluster asks its workers itself, and has to outlive them.
        let (signal, more) =
            if process.is_cluster() { (Signal::SIGTERM, CLUSTER_NEEDS) } else { (Signal::SIGINT, Duration::ZERO) };
        // One that has ended is reported by its descriptor.
        let _ = running.signal(signal);
        if let Some(tree) = process.tree().filter(|_| signal == Signal::SIGINT) {
            tree.look(&everybody, signal);
        }
        process.saved.status = ProcessStatus::Stopping;
        process.set_due(process.app.config.kill_timeout + more, ProcessDue::Kill);
        process.forget_due(ProcessDue::LookAtMemory);
        process.forget_due(ProcessDue::NotReady);
    }

    /// It was asked to end, and had its time.
    pub(super) fn kill(&mut self, id: u32) {
        if let Some(running) = self.processes.get(&id).and_then(|process| process.running.as_ref()) {
            let _ = running.signal(Signal::SIGKILL);
        }
        self.look_at_tree(id);
        if let Some(tree) = self.processes.get(&id).and_then(|process| process.tree.as_ref()) {
            tree.signal(Signal::SIGKILL);
        }
    }

    /// Who is there of what it has started? Those that have come since the last look are asked to end as well. True:
    /// nobody is left.
    fn look_at_tree(&mut self, id: u32) -> bool {
        let everybody = self.everybody();
        let Some(process) = self.processes.get_mut(&id) else { return true };
        let has_time = process.saved.after_stop.is_some() && process.is_due(ProcessDue::Kill);
        let Some(tree) = process.tree() else { return true };
        tree.look(&everybody, if has_time { Signal::SIGINT } else { Signal::SIGKILL });
        tree.is_empty()
    }

    /// Goes on when nobody is left of it.
    pub(super) fn finish_stop_when_alone(&mut self, id: u32) {
        if self.look_at_tree(id) {
            self.finish_stop(id);
        } else if let Some(process) = self.processes.get_mut(&id) {
            process.set_due(LOOK_AT_TREE_EVERY, ProcessDue::LookAtTree);
        }
    }

    /// It has ended, as it was asked to.
    pub(super) fn finish_stop(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let after = process.saved.after_stop.take();
        process.due.clear();
        process.tree = None;
        process.saved.status = ProcessStatus::Stopped;
        self.has_changed = true;
        match after {
            Some(AfterStop::Restart) => self.launch(id),
            Some(AfterStop::Delete) => self.remove(id),
            Some(AfterStop::Fail) => {
                process.saved.status = ProcessStatus::Errored;
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
        let _ = fs::remove_file(self.home.worker_events(id));
    }

    /// Its descriptor says that it has ended.
    pub(super) fn process_ended(&mut self, id: u32) {
        // Before it is reaped: its number is still that of its session.
        self.look_at_tree(id);
        self.workers_ready(id);
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Some(running) = process.running.take() else { return };
        (process.call, process.channel) = (None, None);
        let ending = running.reap();
        let _ = self.epoll.delete(&running.pidfd);
        process.note_ending(ending);
        for writer in &mut process.outputs {
            let _ = writer.finish(&mut self.files);
        }
        if process.saved.after_stop.is_some() {
            return self.finish_stop_when_alone(id);
        }
        // It leaves nobody behind.
        process.tree.take().iter().for_each(|tree| tree.signal(Signal::SIGKILL));
        self.report(id, "exit");
        self.decide(id, running.uptime(monotonic_ns()), ending);
    }

    /// It has ended without being asked to.
    pub(super) fn decide(&mut self, id: u32, uptime: Duration, ending: Option<Ending>) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        self.has_changed = true;
        process.due.clear();
        let decision = match ending {
            // Its own restarts are over.
            Some(Ending::Exited(1)) if process.is_cluster() => Decision::GiveUp {
                why: format!(
                    "its cluster has given it up: see {}",
                    cluster_mode::log(&self.home, process.name(), id).display()
                ),
            },
            // All its workers have ended as they were to.
            Some(Ending::Exited(0)) if process.is_cluster() && process.may_finish() => Decision::Stopped,
            // One whose end nobody saw counts as killed.
            _ => process.saved.budget.exited(uptime, ending.unwrap_or(Ending::KilledBy(Signal::SIGKILL as i32))),
        };
        match decision {
            Decision::Restart => {
                process.count_restart();
                self.launch(id);
            }
            Decision::RestartAfter(delay) => {
                process.count_restart();
                process.saved.status = ProcessStatus::WaitingRestart;
                process.set_due(delay, ProcessDue::Restart);
            }
            Decision::GiveUp { why } => self.fail(id, why),
            Decision::Stopped => process.saved.status = ProcessStatus::Stopped,
        }
    }
}
