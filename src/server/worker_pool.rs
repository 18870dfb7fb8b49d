//! A pool of worker processes, from the first fork to the last reaped child.
//!
//! The parent forks all of them, waits until each has announced that it can take connections, and then only supervises.
//! A worker that dies is logged and the others go on; when the parent dies, the kernel kills its workers.

use std::cell::RefCell;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::process::exit;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use nix::unistd::pipe2;

use super::children::Children;
use crate::console;
use crate::failure::Failure;
use crate::report::ServerReport;
use crate::scoreboard::Scoreboard;
use crate::sys::process::Usage;

pub struct WorkerPool {
    children: Children,
    /// Workers that were forked.
    workers: usize,
    /// Both ends of a pipe. A worker writes one line into it: `ready`, or why it failed.
    announced: OwnedFd,
    announce: Option<OwnedFd>,
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

    /// Sends the failure to the parent, if it still waits for this worker to be ready, and ends the worker. Otherwise
    /// returns the failure.
    fn report_failure(self, failure: Failure) -> Failure {
        if let Some(mut pipe) = self.pipe.take() {
            let _ = writeln!(pipe, "{failure}");
            exit(1);
        }
        failure
    }
}

impl WorkerPool {
    /// A pool without workers. From now on SIGCHLD and the signals that stop a server wait for
    /// [`WorkerPool::supervise`].
    ///
    /// # Errors
    /// In a worker of a cluster ([`Children::new`]).
    pub fn new(scoreboard: Scoreboard) -> Result<WorkerPool, Failure> {
        let children = Children::new(scoreboard)?;
        let (announced, announce) = pipe2(OFlag::O_CLOEXEC).map_err(|errno| Failure::new("open a pipe", errno))?;
        Ok(WorkerPool { children, workers: 0, announced, announce: Some(announce) })
    }

    /// Forks the next worker. `serve` runs in the child, which ends with it.
    pub fn fork(&mut self, serve: impl FnOnce(ReadyPipe) -> Result<(), Failure>) -> Result<(), Failure> {
        let id = self.workers;
        let forked = self.children.fork(id, || {
            let ready = ReadyPipe { pipe: Rc::new(RefCell::new(self.announce.take().map(File::from))) };
            serve(ready.clone()).map_err(|failure| ready.report_failure(failure))
        });
        self.workers += 1;
        forked.map_err(|errno| {
            Failure::new(format_args!("fork worker {id}"), errno)
                .advise("start fewer with --workers, or raise ulimit -u")
        })
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
            if ready == self.workers {
                return Ok(());
            }
        }
        Err(Failure::relay(format!("start {} workers: only {ready} became ready", self.workers)))
    }

    /// Supervises the workers until a signal stops the server, then stops them: `stop_accepting` first, so that no
    /// worker can take another connection; then SIGTERM to each; after [`GRACE`](crate::sys::signal::GRACE) SIGKILL.
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
        let signal = self.children.next_signal(at_most).map_err(|errno| Failure::new("wait for signals", errno))?;
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
        self.children.signals()
    }

    pub fn is_alive(&self, id: usize) -> bool {
        self.children.is_alive(id)
    }

    pub fn scoreboard(&self) -> &Scoreboard {
        self.children.scoreboard()
    }

    /// Reaps the workers that have died on their own, says so, and returns how many are left.
    pub fn reap_dead(&mut self) -> usize {
        while let Some((id, pid, ending)) = self.children.reap_one() {
            console::log(format_args!("worker {id} (pid {pid}) {ending}; {} left", self.children.count()));
        }
        self.children.count()
    }

    /// For a master that serves, when [`WorkerPool::signals`] may have woken it. Its handlers take the signals that
    /// stop it, so only SIGCHLD waits there.
    pub fn reap_dead_after_signal(&mut self) {
        let _ = self.children.waiting_signal();
        self.reap_dead();
    }

    /// Asks every worker to stop, waits for [`GRACE`](crate::sys::signal::GRACE), kills the rest, reaps all.
    pub fn stop(&mut self) {
        self.children.stop();
    }

    /// Asks every worker to stop and leaves the reaping to a master that still has something to do meanwhile. Returns
    /// when they will be killed.
    pub fn begin_stop(&mut self) -> Instant {
        self.children.begin_stop()
    }

    /// After a signal while they stop: reaps those that have ended.
    pub fn reap_stopped(&mut self) {
        // Whichever signal it was, it must not stay readable; a second SIGTERM changes nothing.
        let _ = self.children.waiting_signal();
        while self.children.reap_one().is_some() {}
    }

    pub fn is_empty(&self) -> bool {
        self.children.count() == 0
    }

    pub fn kill(&mut self) {
        self.children.kill();
    }

    pub fn report(&self, address: SocketAddr) -> ServerReport {
        self.scoreboard().report(address, Some(Usage::of_process()))
    }
}
