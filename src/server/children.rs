//! Child processes that serve: forked, told to stop, reaped.
//!
//! SIGCHLD and the signals that stop a server wait in a queue, which the parent reads when it has time. When the parent
//! dies, the kernel kills its children.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::exit;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::blocking;
use super::listener::Listener;
use super::worker::Worker;
use crate::console;
use crate::failure::Failure;
use crate::membership::is_member;
use crate::scoreboard::Scoreboard;
use crate::sys::process::{Ending, Fork, fork, reap};
use crate::sys::signal::{GRACE, SignalQueue, has_given_up};

pub struct Children {
    scoreboard: Scoreboard,
    signals: SignalQueue,
    /// Those that have not been reaped, each with the number of its worker.
    ids: HashMap<Pid, usize>,
    deadline: Option<Instant>,
}

impl Children {
    /// No children yet. From now on SIGCHLD and the signals that stop a server wait.
    ///
    /// # Errors
    /// In a worker of a cluster: a program that forks has workers of its own, whose numbers are not the master's.
    pub fn new(scoreboard: Scoreboard) -> Result<Children, Failure> {
        if is_member() {
            let line = "fork workers: this is a worker of a cluster, which has one process; give `cluster` a server \
                        that is one, such as event-driven or threaded";
            return Err(Failure::relay(line.to_owned()));
        }
        let signals = SignalQueue::open().map_err(|errno| Failure::new("open a signalfd", errno))?;
        Ok(Children { scoreboard, signals, ids: HashMap::new(), deadline: None })
    }

    /// Forks a child that is worker `id`, or one of several that are together. `serve` runs in the child, which ends
    /// with it; what `serve` owns is dropped in the parent.
    pub fn fork(&mut self, id: usize, serve: impl FnOnce() -> Result<(), Failure>) -> nix::Result<()> {
        match fork()? {
            Fork::Parent { child } => {
                self.ids.insert(child, id);
                Ok(())
            }
            Fork::Child => {
                // The others are not our children: should we panic, we must not kill them.
                self.ids.clear();
                exit(match serve() {
                    Ok(()) => 0,
                    Err(failure) => {
                        console::log_last(failure);
                        1
                    }
                });
            }
        }
    }

    /// For a parent that accepts: sleeps until there is a connection, and reaps meanwhile. `None` when the server is to
    /// stop. The listener must be non-blocking: the signals end no accept.
    pub fn accept(&mut self, listener: &Listener, worker: &Worker) -> Result<Option<OwnedFd>, Failure> {
        blocking::accept_after(|| self.sleep(listener), listener, worker)
    }

    fn sleep(&mut self, listener: &Listener) -> nix::Result<()> {
        loop {
            let awaited = [listener.as_fd(), self.signals.as_fd()];
            let mut awaited = awaited.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            poll(&mut awaited, PollTimeout::NONE)?;
            if awaited[1].any() != Some(true) {
                return Ok(());
            }
            match self.signals.take()? {
                Some(Signal::SIGCHLD) | None => while self.reap_one().is_some() {},
                // The accept that follows finds it shut.
                Some(_) => {
                    listener.shut();
                    return Ok(());
                }
            }
        }
    }

    /// The next signal that waits, at most after a time.
    pub fn next_signal(&self, at_most: Option<Duration>) -> nix::Result<Option<Signal>> {
        self.signals.wait(at_most)
    }

    /// A signal that waits already.
    pub fn waiting_signal(&self) -> nix::Result<Option<Signal>> {
        self.signals.take()
    }

    /// Readable while a signal waits.
    pub fn signals(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }

    pub fn count(&self) -> usize {
        self.ids.len()
    }

    pub fn is_alive(&self, id: usize) -> bool {
        self.ids.values().any(|&other| other == id)
    }

    pub fn scoreboard(&self) -> &Scoreboard {
        &self.scoreboard
    }

    /// Asks every child to stop, waits for [`GRACE`], kills the rest, reaps all.
    pub fn stop(&mut self) {
        let deadline = self.begin_stop();
        self.reap_all_until(Some(deadline));
        self.kill();
    }

    /// Asks every child to stop and leaves the reaping to a parent that still has something to do meanwhile. Returns
    /// when they will be killed; to ask again gives no more time.
    pub fn begin_stop(&mut self) -> Instant {
        self.signal_all(Signal::SIGTERM);
        *self.deadline.get_or_insert_with(|| Instant::now() + GRACE)
    }

    pub fn kill(&mut self) {
        self.signal_all(Signal::SIGKILL);
        self.reap_all_until(None);
    }

    /// Reaps a child that has ended, if there is one, and adds what it used to its worker's row.
    pub fn reap_one(&mut self) -> Option<(usize, Pid, Ending)> {
        let (pid, ending, usage) = match reap() {
            Ok(found) => found?,
            Err(Errno::ECHILD) => {
                // There is no child left, whatever our list says.
                self.ids.clear();
                return None;
            }
            Err(_) => return None,
        };
        let id = self.ids.remove(&pid)?;
        let row = self.scoreboard.row(id);
        row.add_usage(usage);
        if let Ending::KilledBy(_) = ending {
            // It cannot say that the kernel has closed its connections.
            if self.is_alive(id) { row.lose_open_connection() } else { row.lose_open_connections() }
        }
        Some((id, pid, ending))
    }

    /// Reaps until no child is left or the time is up. Several SIGCHLD may merge into one, so each is followed by
    /// reaping all there are; one that comes between the look and the wait is waiting in the queue.
    fn reap_all_until(&mut self, deadline: Option<Instant>) {
        loop {
            while self.reap_one().is_some() {}
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            // A parent that serves may have received SIGTERM before it could ask the children; its time counts.
            let is_over = left.is_some_and(|left| left.is_zero() || has_given_up());
            if self.ids.is_empty() || is_over {
                return;
            }
            let _ = self.signals.wait(left);
        }
    }

    fn signal_all(&self, signal: Signal) {
        for pid in self.ids.keys() {
            // It may have died and not been reaped yet; then the signal reaches nobody.
            let _ = kill(*pid, signal);
        }
    }
}

impl Drop for Children {
    /// Whatever went wrong: no child outlives its parent.
    fn drop(&mut self) {
        self.kill();
    }
}
