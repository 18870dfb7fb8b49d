//! The master's loop: channels, listening sockets, signals and deadlines, one after another, and nothing waits for a
//! worker that does not answer.
//!
//! A connection is accepted only while some worker is free, and kept until the worker that was given it has answered for
//! it: who refuses, dies or closes gives it back, and another gets it. So what no worker has answered for is not lost with
//! a worker.
//!
//! Here is what it waits for. [`life`] starts and ends the workers, [`channels`] hears what they say, [`sockets`] has the
//! listening sockets and gives connections, [`reload`] replaces the workers one by one, [`health`] looks who is alive,
//! [`orders`] does what `cluster ctl` asks for, [`notices`] tells the workers of a file.

mod channels;
mod health;
mod life;
mod notices;
mod orders;
mod reload;
mod sockets;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io::IsTerminal;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use self::reload::Roll;
use super::args::MasterArgs;
use super::control::Control;
use super::events::Events;
use super::handle::{Handle, Inherited};
use super::lives::Lives;
use super::notifier::Notifier;
use super::output::Outputs;
use super::protocol::{Address, Query};
use super::roster::Roster;
use super::timers::{Due, Timers};
use super::token::{Token, Uid};
use super::worker::Worker;
use crate::console::Console;
use crate::failure::Failure;
use crate::scoreboard::Scoreboard;
use crate::server::ipc::{BUFFER_BYTES, Incoming};
use crate::sys::epoll::{Epoll, Interest, Ready};
use crate::sys::fd::close_all;
use crate::sys::process::Usage;
use crate::sys::signal::SignalQueue;
use crate::units::monotonic_ns;

const REPORTS_PER_WAIT: usize = 64;

/// What the program has to decide about; everything else the master does by itself.
pub enum Happening {
    /// A worker has called `listen()`: [`Master::keep`] the socket or [`Master::share`] it.
    Query(Uid, Box<Query>),
    /// A connection, and at least one worker is [`Master::free`] to [`Master::pass`] it to.
    Connection(u64, Rc<OwnedFd>),
    /// For the first time all workers take connections.
    Ready(Address),
    /// This number has no worker that serves, or is about to: [`Master::restart`] it or [`Master::give_up`]. The last may
    /// never have listened.
    Vacant { number: usize, has_served: bool },
}

/// The workers and everything that the master holds for them.
pub struct Master {
    args: MasterArgs,
    /// How many workers there are to be.
    workers: usize,
    epoll: Epoll,
    signals: SignalQueue,
    timers: Timers,
    events: Events,
    outputs: Outputs,
    console: Rc<RefCell<Console>>,
    control: Option<Control>,
    notifier: Option<Notifier>,
    scoreboard: Scoreboard,
    /// What the workers inherit of it.
    scoreboard_fd: OwnedFd,
    lives: Lives,
    /// By number: what the kernel accounted to all processes that were it, and since when its place is vacant.
    usages: Vec<Usage>,
    vacant_since_ns: Vec<Option<u64>>,
    /// By number: the program has been told that it is vacant, and nobody has been started since.
    is_start_due: Vec<bool>,
    roster: Roster,
    roll: Option<Roll>,
    handles: BTreeMap<u64, Handle>,
    inherited: Inherited,
    next_handle: u64,
    seq: u64,
    happenings: VecDeque<Happening>,
    /// A worker's now; our copies are to be closed.
    passed: Vec<OwnedFd>,
    address: Option<Address>,
    /// Clients of the control socket that wait for the end.
    stop_clients: Vec<u64>,
    /// Our standard error was a terminal when we began.
    had_terminal: bool,
    is_told_to_stop: bool,
    /// Why a worker could not serve, or ended.
    last_trouble: String,
    /// Why we end, though nobody has asked us to.
    last_words: Option<String>,
    has_given_up: bool,
    /// There was no descriptor left: nothing is accepted until [`Due::AcceptAgain`].
    is_exhausted: bool,
    /// When the last wait ended.
    now_ns: u64,
    buffer: Vec<u8>,
    incoming: VecDeque<Incoming>,
}

impl Master {
    /// Starts all workers. From now on SIGTERM, SIGINT, SIGHUP and SIGCHLD wait for [`Master::next_happening`].
    pub fn start(model: &str, args: MasterArgs) -> Result<Master, Failure> {
        let open = || {
            let epoll = Epoll::new(REPORTS_PER_WAIT)?;
            let signals = SignalQueue::open_for(&[Signal::SIGHUP])?;
            epoll.add(&signals, Token::Signals.encode(), Interest::EPOLLIN)?;
            Ok((epoll, signals))
        };
        let (epoll, signals) =
            open().map_err(|errno: Errno| Failure::new("open an epoll instance", errno))?;
        let (workers, capacity) = (args.workers, args.capacity());
        let console = Rc::new(RefCell::new(Console::default()));
        let (scoreboard, scoreboard_fd) =
            Scoreboard::create_shared(model, workers, capacity, args.scoreboard.as_deref())?;
        let mut master = Master {
            workers,
            signals,
            timers: Timers::default(),
            events: Events::new(Rc::clone(&console), args.events.as_deref())?,
            outputs: Outputs::new(Rc::clone(&console), args.log.as_deref(), args.silent)?,
            console,
            control: args.control.as_deref().map(|path| Control::open(path, &epoll)).transpose()?,
            notifier: args
                .notify
                .as_deref()
                .map(|path| Notifier::new(path, args.notify_every))
                .transpose()?,
            epoll,
            scoreboard,
            scoreboard_fd,
            lives: Lives::default(),
            usages: vec![Usage::default(); capacity],
            vacant_since_ns: vec![None; capacity],
            is_start_due: vec![false; capacity],
            roster: Roster::default(),
            roll: None,
            handles: BTreeMap::new(),
            inherited: Inherited::default(),
            next_handle: 0,
            seq: 0,
            happenings: VecDeque::new(),
            passed: Vec::new(),
            address: None,
            stop_clients: Vec::new(),
            had_terminal: std::io::stderr().is_terminal(),
            is_told_to_stop: false,
            last_trouble: String::new(),
            last_words: None,
            has_given_up: false,
            is_exhausted: false,
            now_ns: monotonic_ns(),
            buffer: vec![0; BUFFER_BYTES],
            incoming: VecDeque::new(),
            args,
        };
        master.begin_watching()?;
        for number in 0..workers {
            master.fork(number, None)?;
        }
        Ok(master)
    }

    fn begin_watching(&mut self) -> Result<(), Failure> {
        if let Some(inotify) = self.notifier.as_ref().and_then(Notifier::inotify) {
            let watched = self.epoll.add(inotify, Token::Notifier.encode(), Interest::EPOLLIN);
            watched.map_err(|errno| Failure::new("watch a file", errno))?;
        }
        if let Some(next_ns) = self.notifier.as_ref().and_then(Notifier::next_look_ns) {
            self.timers.at(next_ns, Due::Look);
        }
        self.timers.at(monotonic_ns() + self.heartbeat_ns(), Due::Heartbeat);
        Ok(())
    }

    /// What happens next. `None`: the master is to stop, or has given up and the last worker is dead.
    ///
    /// # Errors
    /// The same when the program never served.
    pub fn next_happening(&mut self) -> Result<Option<Happening>, Failure> {
        loop {
            if self.is_told_to_stop {
                return Ok(None);
            }
            if let Some(happening) = self.happenings.pop_front() {
                return Ok(Some(happening));
            }
            if self.has_given_up && self.roster.is_empty() {
                return self.end_by_itself();
            }
            if let Some((handle, connection)) = self.next_connection()? {
                return Ok(Some(Happening::Connection(handle, connection)));
            }
            self.wait()?;
        }
    }

    fn end_by_itself(&mut self) -> Result<Option<Happening>, Failure> {
        let line =
            format!("serve: the last worker has died, and no more are started; last: {}", self.last_trouble);
        let failure = Failure::relay(line);
        if self.address.is_none() {
            return Err(failure);
        }
        // It has served, so there is something to report first.
        self.last_words = Some(failure.to_string());
        Ok(None)
    }

    fn wait(&mut self) -> Result<(), Failure> {
        close_all(&mut self.passed);
        let reports =
            self.epoll.wait(self.until_due()).map_err(|errno| Failure::new("wait for the workers", errno))?;
        self.now_ns = monotonic_ns();
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
            Token::Output(uid, stream) => {
                if let Some(trouble) = self.outputs.read(uid, stream, &mut self.buffer) {
                    self.events.tell("failure", json!({"what": trouble}));
                }
            }
            Token::Control(0) => self.control.iter_mut().for_each(|control| control.accept(&self.epoll)),
            Token::Control(client) => self.hear_client(client),
            Token::Notifier => self.look_at_source(),
        }
        Ok(())
    }

    fn hear_signal(&mut self) -> Result<(), Failure> {
        let signal = self.signals.wait(Some(Duration::ZERO));
        match signal.map_err(|errno| Failure::new("wait for signals", errno))? {
            Some(Signal::SIGTERM | Signal::SIGINT) => self.is_told_to_stop = true,
            // Of a terminal that was closed it says what it always has.
            Some(Signal::SIGHUP) if self.had_terminal && !std::io::stderr().is_terminal() => {
                self.is_told_to_stop = true;
            }
            Some(Signal::SIGHUP) => self.reload(None),
            // Several SIGCHLD may merge into one.
            _ => while self.reap_one() {},
        }
        Ok(())
    }

    fn do_what_is_due(&mut self) {
        // What has become due since the wait ended is found at the end of the next, which then does not sleep.
        let now_ns = self.now_ns;
        while let Some(due) = self.timers.take_due(now_ns) {
            match due {
                Due::AcceptAgain => self.is_exhausted = false,
                Due::Rested(handle, uid) => self.set_free(handle, uid),
                Due::Orphan(handle) => self.close_orphan(handle, now_ns),
                Due::Closed(handle, uid) => self.close_for_good(handle, uid),
                Due::Flush(uid) => self.flush_again(uid),
                Due::Kill(uid) => self.kill_overdue(uid, now_ns),
                Due::Start(number) => self.start_if_vacant(number),
                Due::Listen(uid) => self.kill_if_not_listening(uid),
                Due::Heartbeat => self.look_for_life(now_ns),
                Due::Look => self.look_at_source(),
            }
        }
    }

    fn until_due(&self) -> Option<Duration> {
        let due_ns = self.timers.next_ns()?;
        Some(Duration::from_nanos(due_ns.saturating_sub(monotonic_ns())))
    }

    fn tell(&mut self, event: &str, uid: Uid, mut fields: Value) {
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
        // What they said last may say why.
        for trouble in self.outputs.drain(&mut self.buffer) {
            self.events.tell("failure", json!({"what": trouble}));
        }
    }
}
