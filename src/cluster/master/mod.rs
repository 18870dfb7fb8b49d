//! The master's loop: channels, listening sockets, signals and deadlines, one after another, and nothing waits for a
//! worker that does not answer.
//!
//! A connection is accepted only while a worker is free to have it, and kept until that worker has answered for it: who
//! refuses, dies or closes gives it back, and the next who is free gets it. So what has been accepted is never lost.
//!
//! Here is what it waits for. [`life`] starts and ends the workers, [`channels`] hears what they say, [`sockets`] has the
//! listening sockets and gives connections.

mod channels;
mod life;
mod sockets;

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::events::Events;
use super::handle::Handle;
use super::protocol::Query;
use super::roster::Roster;
use super::timers::{Due, Timers};
use super::token::{Token, Uid};
use super::worker::Worker;
use crate::failure::Failure;
use crate::scoreboard::Scoreboard;
use crate::server::ipc::BUFFER_BYTES;
use crate::sys::epoll::{Epoll, Interest, Ready};
use crate::sys::process::Usage;
use crate::sys::signal::SignalQueue;
use crate::units::monotonic_ns;

const REPORTS_PER_WAIT: usize = 64;

/// What the program wants.
pub struct Settings {
    pub command_line: Vec<OsString>,
    pub workers: usize,
    /// From the request to leave to the kill.
    pub kill_timeout: Duration,
}

/// What the master has to decide about; everything else it does by itself.
pub enum Happening {
    /// A worker has called `listen()`: [`Master::keep`] the socket or [`Master::share`] it.
    Query(Uid, Box<Query>),
    /// A connection, and at least one worker is [`Master::free`] to [`Master::pass`] it to.
    Connection(u64, Rc<OwnedFd>),
    /// For the first time all workers take connections.
    Ready(SocketAddr),
    /// This number has no worker any more: [`Master::restart`] it or [`Master::give_up`].
    Exit(usize),
}

/// The workers and everything that the master holds for them.
pub struct Master {
    settings: Settings,
    epoll: Epoll,
    signals: SignalQueue,
    timers: Timers,
    events: Events,
    scoreboard: Scoreboard,
    /// What the kernel accounted to all processes that were worker `i`.
    usages: Vec<Usage>,
    roster: Roster,
    handles: BTreeMap<u64, Handle>,
    next_handle: u64,
    seq: u64,
    happenings: VecDeque<Happening>,
    address: Option<SocketAddr>,
    is_told_to_stop: bool,
    has_given_up: bool,
    /// There was no descriptor left: nothing is accepted until [`Due::AcceptAgain`].
    is_exhausted: bool,
    buffer: Vec<u8>,
}

impl Master {
    /// Starts all workers. From now on SIGTERM, SIGINT and SIGCHLD wait for [`Master::next_happening`].
    pub fn start(model: &str, settings: Settings) -> Result<Master, Failure> {
        let open = || {
            let (epoll, signals) = (Epoll::new(REPORTS_PER_WAIT)?, SignalQueue::open()?);
            epoll.add(&signals, Token::Signals.encode(), Interest::EPOLLIN)?;
            Ok((epoll, signals))
        };
        let (epoll, signals) =
            open().map_err(|errno: Errno| Failure::new("open an epoll instance", errno))?;
        let workers = settings.workers;
        let mut master = Master {
            epoll,
            signals,
            timers: Timers::default(),
            events: Events::new(),
            scoreboard: Scoreboard::create(model, workers, None)?,
            usages: vec![Usage::default(); workers],
            roster: Roster::default(),
            handles: BTreeMap::new(),
            next_handle: 0,
            seq: 0,
            happenings: VecDeque::new(),
            address: None,
            is_told_to_stop: false,
            has_given_up: false,
            is_exhausted: false,
            buffer: vec![0; BUFFER_BYTES],
            settings,
        };
        for number in 0..workers {
            master.fork(number)?;
        }
        Ok(master)
    }

    /// What happens next. `None`: the master is to stop.
    ///
    /// # Errors
    /// When it has given up and the last worker is dead.
    pub fn next_happening(&mut self) -> Result<Option<Happening>, Failure> {
        loop {
            if self.is_told_to_stop {
                return Ok(None);
            }
            if let Some(happening) = self.happenings.pop_front() {
                return Ok(Some(happening));
            }
            if self.has_given_up && self.roster.is_empty() {
                let line =
                    "serve: the last worker has died, and no more are started; see why the program ends";
                return Err(Failure::relay(line.to_owned()));
            }
            if let Some((handle, connection)) = self.next_connection()? {
                return Ok(Some(Happening::Connection(handle, connection)));
            }
            self.wait()?;
        }
    }

    fn wait(&mut self) -> Result<(), Failure> {
        let reports =
            self.epoll.wait(self.until_due()).map_err(|errno| Failure::new("wait for the workers", errno))?;
        for i in 0..reports {
            let Ready { token, flags } = self.epoll.report(i);
            if let Some(token) = Token::decode(token) {
                self.hear_of(token, flags)?;
            }
        }
        self.do_what_is_due();
        Ok(())
    }

    /// A descriptor is ready. It may be gone, since an earlier report of the same wait has ended it.
    fn hear_of(&mut self, token: Token, flags: Interest) -> Result<(), Failure> {
        match token {
            Token::Signals => self.hear_signal()?,
            Token::Worker(uid) => self.hear_worker(uid, flags),
            Token::Handle(handle) => {
                self.handles.entry(handle).and_modify(|handle| handle.is_ready = true);
            }
            Token::Output(..) | Token::Control(_) | Token::Notifier(_) => {}
        }
        Ok(())
    }

    fn hear_signal(&mut self) -> Result<(), Failure> {
        let signal = self.signals.wait(Some(Duration::ZERO));
        match signal.map_err(|errno| Failure::new("wait for signals", errno))? {
            Some(Signal::SIGTERM | Signal::SIGINT) => self.is_told_to_stop = true,
            // Several SIGCHLD may merge into one.
            _ => while self.reap_one() {},
        }
        Ok(())
    }

    fn do_what_is_due(&mut self) {
        let now_ns = monotonic_ns();
        while let Some(due) = self.timers.take_due(now_ns) {
            match due {
                Due::AcceptAgain => self.is_exhausted = false,
                Due::Rested(handle, uid) => self.end_rest(handle, uid),
                Due::Orphan(handle) => self.close_orphan(handle, now_ns),
                Due::Flush(uid) => self.flush_again(uid),
                Due::Kill(uid) => self.kill_overdue(uid, now_ns),
                Due::Start(number) => self.happenings.push_back(Happening::Exit(number)),
            }
        }
    }

    fn until_due(&self) -> Option<Duration> {
        let due_ns = self.timers.next_ns()?;
        Some(Duration::from_nanos(due_ns.saturating_sub(monotonic_ns())))
    }

    fn tell(&self, event: &str, uid: Uid, mut fields: Value) {
        if let Some(worker) = self.roster.get(uid) {
            fields["worker"] = json!(worker.number);
            fields["unique_id"] = json!(uid.0);
            fields["pid"] = json!(worker.pid.as_raw());
        }
        self.events.tell(event, fields);
    }

    fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }
}

impl Drop for Master {
    /// Whatever went wrong: no worker outlives its master.
    fn drop(&mut self) {
        self.roster.iter().for_each(Worker::kill);
        while !self.roster.is_empty() {
            if !self.reap_one() {
                let _ = self.signals.wait(Some(Duration::from_millis(10)));
            }
        }
    }
}
