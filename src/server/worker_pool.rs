//! A pool of worker processes, from the first fork to the last reaped child.
//!
//! The parent forks all of them, waits until each has announced that it can take connections, and then only supervises.
//! A worker that dies is logged and the others go on; when the parent dies, the kernel kills its workers.

use std::cell::RefCell;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::exit;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, pipe2};

use crate::console;
use crate::failure::Failure;
use crate::membership::is_member;
use crate::report::ServerReport;
use crate::scoreboard::Scoreboard;
use crate::sys::process::{Ending, Fork, Usage, fork, reap};
use crate::sys::signal::{GRACE, SignalQueue, has_given_up};

pub struct WorkerPool {
    scoreboard: Scoreboard,
    signals: SignalQueue,
    /// Both ends of a pipe. A worker writes one line into it: `ready`, or why it failed.
    announced: OwnedFd,
    announce: Option<OwnedFd>,
    /// By worker; `None` once it has been reaped.
    pids: Vec<Option<Pid>>,
    deadline: Option<Instant>,
}

/// How a worker tells the parent that it can take connections. It closes its end of the pipe afterwards: when all have
/// written or died, the parent reads the end of the file.
#[derive(Clone)]
pub struct ReadyPipe {
    pipe: Rc<RefCell<Option<File>>>,
}

impl ReadyPipe {
    pub fn announce(self) {
        if let Some(mut pipe) = self.pipe.take() {
            // A pipe takes a line this short whole or not at all (pipe(7), PIPE_BUF); a parent that is gone has
            // already had us killed.
            let _ = pipe.write_all(b"ready\n");
        }
    }

    /// To the parent while it still waits for this worker, to standard error afterwards.
    fn report_failure(self, failure: Failure) {
        match self.pipe.take() {
            Some(mut pipe) => drop(writeln!(pipe, "{failure}")),
            None => console::log_last(failure),
        }
    }
}

impl WorkerPool {
    /// A pool without workers. From now on SIGCHLD and the signals that stop a server wait for
    /// [`WorkerPool::supervise`].
    ///
    /// # Errors
    /// In a worker of a cluster: a program that forks has workers of its own, whose numbers are not the master's.
    pub fn new(scoreboard: Scoreboard) -> Result<WorkerPool, Failure> {
        if is_member() {
            let line = "fork workers: this is a worker of a cluster, which has one process; give `cluster` a server \
                        that is one, such as event-driven or threaded";
            return Err(Failure::relay(line.to_owned()));
        }
        let signals = SignalQueue::open().map_err(|errno| Failure::new("open a signalfd", errno))?;
        let (announced, announce) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| Failure::new("open a pipe", errno))?;
        Ok(WorkerPool { scoreboard, signals, announced, announce: Some(announce), pids: Vec::new(), deadline: None })
    }

    /// Forks the next worker. `serve` runs in the child, which ends with it.
    pub fn fork(&mut self, serve: impl FnOnce(ReadyPipe) -> Result<(), Failure>) -> Result<(), Failure> {
        match fork() {
            Ok(Fork::Parent { child }) => self.pids.push(Some(child)),
            Ok(Fork::Child) => {
                // The other workers are not our children: should we panic, we must not kill them.
                self.pids.clear();
                let ready = ReadyPipe { pipe: Rc::new(RefCell::new(self.announce.take().map(File::from))) };
                let outcome = serve(ready.clone());
                exit(match outcome {
                    Ok(()) => 0,
                    Err(failure) => {
                        ready.report_failure(failure);
                        1
                    }
                });
            }
            Err(errno) => {
                let failure = Failure::new(format_args!("fork worker {}", self.pids.len()), errno)
                    .advise("start fewer with --workers, or raise ulimit -u");
                return Err(failure);
            }
        }
        Ok(())
    }

    /// Waits until every worker can take connections, or the first says why it cannot.
    pub fn await_ready(&mut self) -> Result<(), Failure> {
        self.announce = None;
        let announced = self.announced.try_clone().map_err(|error| Failure::new("copy a pipe", error))?;
        let mut ready = 0;
        for line in BufReader::new(File::from(announced)).lines() {
            match line {
                Ok(line) if line == "ready" => ready += 1,
                Ok(line) => return Err(Failure::relay(line)),
                Err(error) => return Err(Failure::new("read what the workers announce", error)),
            }
            if ready == self.pids.len() {
                return Ok(());
            }
        }
        Err(Failure::relay(format!("start {} workers: only {ready} became ready", self.pids.len())))
    }

    /// Supervises the workers until a signal stops the server, then stops them: `stop_accepting` first, so that no
    /// worker can take another connection; then SIGTERM to each; after [`GRACE`] SIGKILL.
    ///
    /// # Errors
    /// When the last worker has died without being asked to.
    pub fn supervise(&mut self, stop_accepting: impl FnOnce()) -> Result<(), Failure> {
        while !self.next_signal_stops(None)? {}
        stop_accepting();
        self.stop();
        Ok(())
    }

    /// Waits for the next signal, or at most for a time. True: it stops the server. Workers that have died are reaped.
    pub fn next_signal_stops(&mut self, at_most: Option<Duration>) -> Result<bool, Failure> {
        let signal = self.signals.wait(at_most).map_err(|errno| Failure::new("wait for signals", errno))?;
        if signal.is_some_and(|signal| signal != Signal::SIGCHLD) {
            return Ok(true);
        }
        match self.reap_dead() {
            0 => Err(Failure::relay("serve: the last worker has died".to_owned())),
            _ => Ok(false),
        }
    }

    /// Readable while a signal waits for [`WorkerPool::next_signal_stops`]: for a parent that waits for more.
    pub fn signals(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }

    pub fn is_alive(&self, id: usize) -> bool {
        self.pids[id].is_some()
    }

    pub fn scoreboard(&self) -> &Scoreboard {
        &self.scoreboard
    }

    /// Reaps the workers that have died on their own, says so, and returns how many are left.
    pub fn reap_dead(&mut self) -> usize {
        while let Some((id, pid, ending)) = self.reap_one() {
            let left = self.pids.iter().flatten().count();
            console::log(format_args!("worker {id} (pid {pid}) {ending}; {left} left"));
        }
        self.pids.iter().flatten().count()
    }

    /// For a master that serves, when [`WorkerPool::signals`] may have woken it. Its handlers take the signals that stop
    /// it, so only SIGCHLD waits there.
    pub fn reap_dead_after_signal(&mut self) {
        let _ = self.signals.take();
        self.reap_dead();
    }

    /// Asks every worker to stop, waits for [`GRACE`], kills the rest, reaps all.
    pub fn stop(&mut self) {
        let deadline = self.begin_stop();
        self.reap_all_until(Some(deadline));
        self.kill();
    }

    /// Asks every worker to stop and leaves the reaping to a master that still has something to do meanwhile. Returns
    /// when they will be killed; to ask again gives no more time.
    pub fn begin_stop(&mut self) -> Instant {
        self.signal_all(Signal::SIGTERM);
        *self.deadline.get_or_insert_with(|| Instant::now() + GRACE)
    }

    /// After a signal while they stop: reaps those that have ended.
    pub fn reap_stopped(&mut self) {
        // Whichever signal it was, it must not stay readable; a second SIGTERM changes nothing.
        let _ = self.signals.take();
        while self.reap_one().is_some() {}
    }

    pub fn is_empty(&self) -> bool {
        self.pids.iter().all(Option::is_none)
    }

    pub fn kill(&mut self) {
        self.signal_all(Signal::SIGKILL);
        self.reap_all_until(None);
    }

    pub fn report(&self, address: SocketAddr) -> ServerReport {
        self.scoreboard.report(address, Some(Usage::of_process()))
    }

    /// Reaps until no worker is left or the time is up. Several SIGCHLD may merge into one, so each is followed by
    /// reaping all there are; one that comes between the look and the wait is waiting in the queue.
    fn reap_all_until(&mut self, deadline: Option<Instant>) {
        loop {
            while self.reap_one().is_some() {}
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            // A master that serves may have received SIGTERM before it could ask the workers; its time counts.
            let is_over = left.is_some_and(|left| left.is_zero() || has_given_up());
            if self.is_empty() || is_over {
                return;
            }
            let _ = self.signals.wait(left);
        }
    }

    fn signal_all(&self, signal: Signal) {
        for pid in self.pids.iter().flatten() {
            // It may have died and not been reaped yet; then the signal reaches nobody.
            let _ = kill(*pid, signal);
        }
    }

    fn reap_one(&mut self) -> Option<(usize, Pid, Ending)> {
        let (pid, ending, usage) = match reap() {
            Ok(found) => found?,
            Err(Errno::ECHILD) => {
                // There is no child left, whatever our list says.
                self.pids.fill(None);
                return None;
            }
            Err(_) => return None,
        };
        let id = self.pids.iter().position(|&known| known == Some(pid))?;
        self.pids[id] = None;
        self.scoreboard.row(id).set_usage(usage);
        if let Ending::KilledBy(_) = ending {
            self.scoreboard.row(id).lose_open_connections();
        }
        Some((id, pid, ending))
    }
}

impl Drop for WorkerPool {
    /// Whatever went wrong: no worker outlives the pool.
    fn drop(&mut self) {
        self.kill();
    }
}
