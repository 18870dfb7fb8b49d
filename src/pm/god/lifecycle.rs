//! The life of one process: it is launched, says that it is ready, is restarted or asked to end, and has ended; then it
//! is decided whether there is a next one.

use std::fs;
use std::os::fd::AsFd;
use std::process::Stdio;
use std::time::Duration;

use super::super::dump::AfterStop;
use super::super::fork_mode::{RunningProcess, open_channel, open_fifo};
use super::super::json_lines::JsonLines;
use super::super::program::check_program;
use super::super::protocol::ProcessStatus;
use super::super::restarts::{Decision, RestartBudget};
use super::process::ProcessDue;
use super::{ManagedProcess, PmSource, Shared, cluster_mode};
use crate::console;
use crate::failure::Failure;
use crate::logs::lines::LogStream;
use crate::sys::epoll::Interest;
use crate::sys::process::Ending;
use crate::sys::procfs::descriptors;
use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::Signal;

/// Between two looks at what is left of the tree of a process that has ended.
const LOOK_AT_TREE_EVERY: Duration = Duration::from_millis(20);

/// What a cluster needs beyond the time of its workers, to end in order.
const CLUSTER_NEEDS: Duration = Duration::from_secs(2);

/// Descriptors that are left when applications have theirs: clients come, processes are started again, files written.
const ROOM: u64 = 64;

/// How long after listen_timeout a start has failed, if then not all workers of a cluster are online.
const CLUSTER_IS_SLOW: Duration = Duration::from_secs(10);

impl ManagedProcess {
    pub(super) fn launch(&mut self, shared: &mut Shared) {
        shared.has_changed = true;
        self.saved.has_finished = false;
        let started = self.watch_outputs(shared).and_then(|()| self.start(shared));
        self.due.clear();
        self.running = match started {
            Err(failure) => return self.fail(shared, failure.into()),
            Ok(running) => Some(running),
        };
        (self.saved.reason, self.saved.giveup) = (None, None);
        self.saved.workers.iter_mut().for_each(|worker| worker.has_finished = false);
        self.online_workers.clear();
        if self.is_cluster() || self.channel.is_some() {
            let more = if self.is_cluster() { CLUSTER_IS_SLOW } else { Duration::ZERO };
            self.set_due(self.app.config.listen_timeout + more, ProcessDue::NotReady);
            self.saved.status = ProcessStatus::Launching;
            shared.report(self, "launching");
        } else {
            self.saved.status = ProcessStatus::Online;
            shared.report(self, "online");
        }
        self.begin_watching(shared);
    }

    fn fail(&mut self, shared: &mut Shared, why: String) {
        self.saved.status = ProcessStatus::Errored;
        self.saved.reason = Some(why);
        shared.report(self, "errored");
    }

    /// Starts it, in its mode; its end and its channel, where it has one, are watched.
    fn start(&mut self, shared: &Shared) -> Result<RunningProcess, Failure> {
        check_program(&self.app)?;
        self.saved.launch.begin_next();
        let (id, config) = (self.id(), &self.app.config);
        let mut command = self.command(&shared.home);
        let mut channel = None;
        if self.is_cluster() {
            command = cluster_mode::command(&shared.cluster, &command, config, &shared.home, id)?;
        } else {
            let open = |stream| open_fifo(&shared.home.fifo(id, 0, stream), OFlag::empty());
            command.stdin(Stdio::null()).stdout(open(LogStream::Out)?).stderr(open(LogStream::Error)?);
            if config.wait_ready {
                channel = Some(open_channel(&mut command)?);
            }
        }
        if let Some(limit) = shared.descriptor_limit {
            limit.restore_in(&mut command);
        }
        let (ours, theirs) = channel.unzip();
        let running = RunningProcess::start(&mut command, theirs.as_ref().map(AsFd::as_fd), |pidfd| {
            if let Some(channel) = &ours {
                shared.epoll.add(&channel.source, PmSource::Channel.token(id), Interest::EPOLLIN)?;
            }
            shared.epoll.add(pidfd, PmSource::Ended.token(id), Interest::EPOLLIN)
        })?;
        self.channel = ours;
        Ok(running)
    }

    /// Reads what it writes, and what its cluster says of the workers, from now on.
    pub(super) fn watch_outputs(&mut self, shared: &mut Shared) -> Result<(), Failure> {
        let id = self.id();
        let failed = |errno| Failure::new("watch an output", errno);
        let missing = (2 * self.saved.workers.len()).saturating_sub(self.outputs.len());
        if missing > 0 {
            leave_room(missing as u64)?;
        }
        for output in self.outputs.len()..2 * self.saved.workers.len() {
            let writer = self.open_output(&shared.home, output, &mut shared.files)?;
            shared.epoll.add(&writer, PmSource::of_output(id, output), Interest::EPOLLIN).map_err(failed)?;
            self.outputs.push(writer);
        }
        if self.is_cluster() && self.worker_events.is_none() {
            let events = JsonLines::new(open_fifo(&shared.home.worker_events(id), OFlag::O_NONBLOCK)?);
            shared.epoll.add(&events.source, PmSource::Workers.token(id), Interest::EPOLLIN).map_err(failed)?;
            self.worker_events = Some(events);
        }
        shared.report_logs(self);
        Ok(())
    }

    pub(super) fn output_ready(&mut self, shared: &mut Shared, output: usize) {
        let Some(writer) = self.outputs.get_mut(output) else { return };
        if let Err(errno) = writer.read_available(&mut shared.files) {
            let _ = shared.epoll.delete(&*writer);
            console::log(Failure::new(format_args!("read the output of {}", self.name()), errno));
        }
        shared.report_logs(self);
    }

    /// Reads what it has written until now; what has no end yet is a line.
    pub(super) fn finish_outputs(&mut self, shared: &mut Shared) {
        for writer in &mut self.outputs {
            let _ = writer.finish(&mut shared.files);
        }
    }

    /// It has said something on its channel, or closed it.
    pub(super) fn channel_ready(&mut self, shared: &mut Shared) {
        let Some(channel) = &mut self.channel else { return };
        let (said, is_closed): (Vec<String>, bool) = channel.read();
        if is_closed {
            self.channel = None;
        }
        if said.iter().any(|word| word == "ready") && self.note_ready(shared) {
            shared.report(self, "online");
        }
    }

    /// True: it was awaited.
    pub(super) fn note_ready(&mut self, shared: &mut Shared) -> bool {
        if self.saved.status != ProcessStatus::Launching {
            return false;
        }
        self.saved.status = ProcessStatus::Online;
        self.due.remove(&ProcessDue::NotReady);
        shared.has_changed = true;
        true
    }

    pub fn wake(&mut self, shared: &mut Shared) {
        self.refusal = None;
        if self.running.is_none() {
            self.restart(shared);
        }
    }

    /// Somebody asks for it: earlier failures count no longer.
    pub fn restart(&mut self, shared: &mut Shared) {
        self.saved.budget = RestartBudget::default();
        self.restart_unasked(shared);
    }

    /// Earlier failures still count: otherwise a clock or a limit would restart a program for ever that fails each time.
    pub(super) fn restart_unasked(&mut self, shared: &mut Shared) {
        self.count_restart();
        self.stop(shared, AfterStop::Restart);
    }

    /// Asks it to end, and does the rest when it has. One that does not run has ended already.
    pub fn stop(&mut self, shared: &mut Shared, after: AfterStop) {
        // A process that is to be deleted stays so: a stop or restart that comes later changes nothing.
        if self.is_leaving() {
            return;
        }
        shared.has_changed = true;
        self.due.remove(&ProcessDue::Restart);
        self.refusal = None;
        let was_asked = self.saved.after_stop.replace(after).is_some();
        if was_asked {
            return;
        }
        let Some(running) = &self.running else { return self.finish_stop(shared) };
        // A cluster asks its workers itself, and has to outlive them.
        let (signal, more) =
            if self.is_cluster() { (Signal::SIGTERM, CLUSTER_NEEDS) } else { (Signal::SIGINT, Duration::ZERO) };
        // As long as it lives, its children are still its children.
        let all = shared.all_processes();
        // If the process has ended already, its pidfd reports that, and this error says nothing new.
        let _ = running.pidfd.signal(signal);
        if let Some(tree) = self.tree().filter(|_| signal == Signal::SIGINT) {
            tree.look(all, signal);
        }
        self.saved.status = ProcessStatus::Stopping;
        self.set_due(self.app.config.kill_timeout + more, ProcessDue::Kill);
        self.due.remove(&ProcessDue::LookAtMemory);
        self.due.remove(&ProcessDue::NotReady);
    }

    pub(super) fn kill(&mut self, shared: &mut Shared) {
        if let Some(running) = &self.running {
            let _ = running.pidfd.signal(Signal::SIGKILL);
        }
        self.look_at_tree(shared);
        if let Some(tree) = &self.tree {
            tree.signal(Signal::SIGKILL);
        }
    }

    /// Who is there of what it has started? Those that have come since the last look are asked to end as well. True:
    /// nobody is left.
    fn look_at_tree(&mut self, shared: &mut Shared) -> bool {
        let has_time = self.saved.after_stop.is_some() && self.due.contains_key(&ProcessDue::Kill);
        let Some(tree) = self.tree() else { return true };
        tree.look(shared.all_processes(), if has_time { Signal::SIGINT } else { Signal::SIGKILL });
        tree.is_empty()
    }

    /// Goes on when nobody is left of it.
    pub(super) fn finish_stop_when_alone(&mut self, shared: &mut Shared) {
        if self.look_at_tree(shared) {
            self.finish_stop(shared);
        } else {
            self.set_due(LOOK_AT_TREE_EVERY, ProcessDue::LookAtTree);
        }
    }

    pub(super) fn finish_stop(&mut self, shared: &mut Shared) {
        let after = self.saved.after_stop.take();
        self.due.clear();
        self.tree = None;
        self.saved.status = ProcessStatus::Stopped;
        shared.has_changed = true;
        match after {
            Some(AfterStop::Restart) => self.launch(shared),
            Some(AfterStop::Delete) => self.delete(shared),
            Some(AfterStop::Fail) => {
                self.saved.status = ProcessStatus::Errored;
                shared.report(self, "errored");
            }
            Some(AfterStop::Remain) | None => {
                self.saved.has_finished = false;
                shared.report(self, "stop");
            }
        }
    }

    fn delete(&mut self, shared: &mut Shared) {
        shared.report(self, "delete");
        self.is_deleted = true;
        self.finish_outputs(shared);
        for output in 0..std::mem::take(&mut self.outputs).len() {
            // A child that lives on and writes waits when the FIFO is full: nobody reads it.
            let stream = [LogStream::Out, LogStream::Error][output % 2];
            let _ = fs::remove_file(shared.home.fifo(self.saved.id, output / 2, stream));
        }
        let _ = fs::remove_file(shared.home.worker_events(self.id()));
    }

    /// Its descriptor says that it has ended.
    pub(super) fn has_ended(&mut self, shared: &mut Shared) {
        // Before it is reaped: its number is still that of its session.
        self.look_at_tree(shared);
        self.workers_ready(shared);
        let Some(running) = self.running.take() else { return };
        (self.call, self.channel) = (None, None);
        // `None` where nobody knows: it was the child of a daemon before us, and the kernel does not tell.
        let ending = running.pidfd.reap().unwrap_or_else(|_| running.pidfd.ending());
        let _ = shared.epoll.delete(&running.pidfd);
        self.note_ending(ending);
        self.finish_outputs(shared);
        if self.saved.after_stop.is_some() {
            return self.finish_stop_when_alone(shared);
        }
        // What the ended process has started is killed.
        self.tree.take().iter().for_each(|tree| tree.signal(Signal::SIGKILL));
        shared.report(self, "exit");
        self.decide(shared, running.uptime(), ending);
    }

    pub(super) fn decide(&mut self, shared: &mut Shared, uptime: Duration, ending: Option<Ending>) {
        shared.has_changed = true;
        self.due.clear();
        let config = &self.app.config;
        let may_finish = !config.autorestart || !config.stop_exit_codes.is_empty();
        let decision = match ending {
            // Its own restarts are over.
            Some(Ending::Exited(1)) if self.is_cluster() => {
                let log = cluster_mode::log(&shared.home, &config.name, self.id());
                Decision::GiveUp { why: format!("its cluster has given it up: see {}", log.display()) }
            }
            // All its workers have ended as they were to.
            Some(Ending::Exited(0)) if self.is_cluster() && may_finish => Decision::Stopped,
            // One whose end nobody saw counts as killed.
            _ => {
                let ending = ending.unwrap_or(Ending::KilledBy(Signal::SIGKILL as i32));
                self.saved.budget.exited(config, uptime, ending)
            }
        };
        match decision {
            Decision::RestartAfter(delay) => {
                self.count_restart();
                if delay.is_zero() {
                    return self.launch(shared);
                }
                self.saved.status = ProcessStatus::WaitingRestart;
                self.set_due(delay, ProcessDue::Restart);
            }
            Decision::GiveUp { why } => self.fail(shared, why),
            Decision::Stopped => (self.saved.status, self.saved.has_finished) = (ProcessStatus::Stopped, true),
        }
    }
}

/// # Errors
/// When too few descriptors would be left with so many outputs more, each a FIFO and a log.
fn leave_room(outputs: u64) -> Result<(), Failure> {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|errno| Failure::new("ask for our limits", errno))?;
    // Without one left the folder of them cannot be opened, either.
    let open = descriptors(std::process::id() as i32).unwrap_or(limit);
    if open.saturating_add(2 * outputs + ROOM) <= limit {
        return Ok(());
    }
    let what = format!("the daemon may open {limit} files, and a process needs five of them");
    Err(Failure::relay(what).advise("raise its hard limit before it starts: ulimit -Hn, or LimitNOFILE= of systemd"))
}
