//! The master's loop: channels, listening sockets, signals and deadlines, one after another, and nothing waits for a
//! worker that does not answer.
//!
//! A connection is accepted only while a worker is free to have it, and kept until that worker has answered for it: who
//! refuses, dies or closes gives it back, and the next who is free gets it. So what has been accepted is never lost.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::socket::SockFlag;
use serde_json::{Value, json};
use socket2::SockRef;

use super::events::Events;
use super::handle::Handle;
use super::protocol::{self, Message, NewConnection, Query};
use super::worker::{Unanswered, Worker};
use crate::failure::Failure;
use crate::report::ServerReport;
use crate::scoreboard::{Count, Scoreboard};
use crate::server::ipc::{BUFFER_BYTES, Incoming};
use crate::server::listener::{BACK_OFF, NoConnection, say_exhausted};
use crate::sys::epoll::{Epoll, Interest, Ready};
use crate::sys::fd::accept;
use crate::sys::process::{Ending, Usage, reap};
use crate::sys::signal::SignalQueue;
use crate::units::monotonic_ns;

const SIGNALS: u64 = u64::MAX;
/// Handles have the tokens from here on, workers their unique ids.
const FIRST_HANDLE: u64 = 1 << 48;

const REPORTS_PER_WAIT: usize = 64;

/// How long what a socket has accepted waits for the successor of its last worker.
const ORPHAN_WAITS_NS: u64 = 5_000_000_000;

/// A worker that could not be started is tried again after this long.
const RETRY_NS: u64 = 1_000_000_000;

/// Listening sockets that one worker may have: it must not use up everybody's descriptors.
const MOST_HANDLES: usize = 64;

/// What else a worker sends against the protocol is only counted.
const MOST_VIOLATIONS_TOLD: u64 = 10;

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
    Query(usize, Box<Query>),
    /// A connection, and at least one worker is [`Master::free`] to [`Master::pass`] it to.
    Connection(u64, Rc<OwnedFd>),
    /// For the first time all workers take connections.
    Ready(SocketAddr),
    /// A worker is dead: [`Master::restart`] it or [`Master::give_up`].
    Exit(usize),
}

/// The workers and everything that the master holds for them.
pub struct Master {
    settings: Settings,
    epoll: Epoll,
    signals: SignalQueue,
    events: Events,
    scoreboard: Scoreboard,
    /// What the kernel accounted to all processes that were worker `i`.
    usages: Vec<Usage>,
    workers: Vec<Option<Worker>>,
    last_unique_id: u64,
    handles: BTreeMap<u64, Handle>,
    next_handle: u64,
    seq: u64,
    happenings: VecDeque<Happening>,
    /// Workers that could not be started, and when to try again.
    vacant: Vec<(u64, usize)>,
    address: Option<SocketAddr>,
    is_told_to_stop: bool,
    has_given_up: bool,
    /// Until then nothing is accepted: there was no descriptor left.
    rests_until_ns: Option<u64>,
    buffer: Vec<u8>,
}

impl Master {
    /// Starts all workers. From now on SIGTERM, SIGINT and SIGCHLD wait for [`Master::next_happening`].
    pub fn start(model: &str, settings: Settings) -> Result<Master, Failure> {
        let open = || {
            let (epoll, signals) = (Epoll::new(REPORTS_PER_WAIT)?, SignalQueue::open()?);
            epoll.add(&signals, SIGNALS, Interest::EPOLLIN)?;
            Ok((epoll, signals))
        };
        let (epoll, signals) =
            open().map_err(|errno: Errno| Failure::new("open an epoll instance", errno))?;
        let workers = settings.workers;
        let mut master = Master {
            epoll,
            signals,
            events: Events::new(),
            scoreboard: Scoreboard::create(model, workers, None)?,
            usages: vec![Usage::default(); workers],
            workers: (0..workers).map(|_| None).collect(),
            last_unique_id: 0,
            handles: BTreeMap::new(),
            next_handle: FIRST_HANDLE,
            seq: 0,
            happenings: VecDeque::new(),
            vacant: Vec::new(),
            address: None,
            is_told_to_stop: false,
            has_given_up: false,
            rests_until_ns: None,
            buffer: vec![0; BUFFER_BYTES],
            settings,
        };
        for id in 0..workers {
            master.fork(id)?;
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
            if self.has_given_up && self.is_empty() {
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

    /// The workers that can be given a connection of this handle, in the order in which they became free.
    pub fn free(&self, handle: u64) -> &VecDeque<usize> {
        &self.handles[&handle].free
    }

    /// Passes a connection to a free worker, and keeps a copy until it is answered for.
    pub fn pass(&mut self, handle: u64, connection: Rc<OwnedFd>, id: usize) {
        let seq = self.next_seq();
        let Some(found) = self.handles.get_mut(&handle) else { return };
        found.free.retain(|&free| free != id);
        let Some(worker) = &mut self.workers[id] else { return found.returned.push_back(connection) };
        let Some(ipc) = &mut worker.ipc else { return found.returned.push_back(connection) };
        ipc.send_handle(&NewConnection::of(&found.key, seq), Rc::clone(&connection));
        worker.unanswered.push(Unanswered { seq, handle, connection });
        self.watch(id);
    }

    /// The master listens and accepts; the worker waits to be passed connections.
    pub fn keep(&mut self, id: usize, query: &Query) {
        self.answer_query(id, query, true);
    }

    /// The socket itself goes to the worker, which listens and accepts.
    pub fn share(&mut self, id: usize, query: &Query) {
        self.answer_query(id, query, false);
    }

    /// Starts the successor of a dead worker at once; where that fails, in a while it counts as dead once more.
    pub fn restart(&mut self, id: usize) {
        if let Err(failure) = self.fork(id) {
            self.events.tell("failure", json!({"worker": id, "what": failure.to_string()}));
            self.vacant.push((monotonic_ns() + RETRY_NS, id));
        }
    }

    /// No worker is started any more. Those who live go on.
    pub fn give_up(&mut self) {
        if !mem::replace(&mut self.has_given_up, true) {
            let left = self.workers.iter().flatten().count();
            self.events.tell("giveup", json!({"workers_left": left}));
        }
    }

    /// Asks all workers to disconnect and lets them finish, kills who is left after the time-out, reaps all.
    pub fn stop(mut self) -> Result<ServerReport, Failure> {
        // Nobody new is taken: in `rr` this closes the listening sockets, in `none` our copies of them.
        let handles = mem::take(&mut self.handles);
        let deadline_ns = monotonic_ns() + self.settings.kill_timeout.as_nanos() as u64;
        for id in 0..self.workers.len() {
            let seq = self.next_seq();
            let Some(worker) = &mut self.workers[id] else { continue };
            worker.deadline_ns = Some(deadline_ns);
            if let Some(ipc) = &mut worker.ipc {
                ipc.send(&protocol::disconnect(seq));
            }
            self.watch(id);
        }
        drop(handles);
        while !self.is_empty() {
            self.happenings.clear();
            self.wait()?;
        }
        // A program that has never listened has no address.
        let address = self.address.unwrap_or_else(|| ([0, 0, 0, 0], 0).into());
        Ok(self.scoreboard.report(address, Some(Usage::of_process())))
    }

    fn fork(&mut self, id: usize) -> Result<(), Failure> {
        self.last_unique_id += 1;
        let worker = Worker::start(&self.settings.command_line, id, self.last_unique_id)?;
        let unique_id = worker.unique_id;
        if let Some(ipc) = &worker.ipc {
            let watched = self.epoll.add(ipc, unique_id, Interest::empty());
            if let Err(errno) = watched {
                worker.kill();
                return Err(Failure::new("watch a worker", errno));
            }
        }
        if unique_id == 1 {
            // Not before: a program that cannot be started is one line and no event.
            let words: Vec<_> =
                self.settings.command_line.iter().map(|word| word.to_string_lossy()).collect();
            self.events.tell("setup", json!({"workers": self.workers.len(), "command_line": words}));
        }
        self.scoreboard.row(id).set_pid(worker.pid.as_raw() as u32);
        self.workers[id] = Some(worker);
        self.tell("fork", id, json!({}));
        self.watch(id);
        Ok(())
    }

    fn wait(&mut self) -> Result<(), Failure> {
        let reports =
            self.epoll.wait(self.until_due()).map_err(|errno| Failure::new("wait for the workers", errno))?;
        for i in 0..reports {
            match self.epoll.report(i) {
                Ready { token: SIGNALS, .. } => self.hear_signal()?,
                Ready { token: handle @ FIRST_HANDLE.., .. } => {
                    self.handles.entry(handle).and_modify(|handle| handle.is_ready = true);
                }
                Ready { token: unique_id, flags } => self.hear_worker(unique_id, flags),
            }
        }
        self.do_what_is_due();
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

    fn hear_worker(&mut self, unique_id: u64, flags: Interest) {
        let Some(id) = self.id_of(unique_id) else { return };
        if flags.intersects(Interest::EPOLLIN | Interest::EPOLLHUP | Interest::EPOLLERR) {
            self.receive(id);
        }
        if let Some(ipc) = self.ipc(id) {
            ipc.flush();
        }
        self.watch(id);
    }

    /// One receive, so that a worker that talks without end leaves the others their turn. True: there may be more.
    fn receive(&mut self, id: usize) -> bool {
        let mut incoming = VecDeque::new();
        let Some(ipc) = self.workers[id].as_mut().and_then(|worker| worker.ipc.as_mut()) else {
            return false;
        };
        let is_open = ipc.receive(&mut self.buffer, &mut incoming);
        let any = !incoming.is_empty();
        for incoming in incoming {
            let message = match incoming {
                Incoming::Message(message, _unwanted) => Message::parse(message),
                Incoming::Answer { ack, accepted } => Ok(Message::Answer { ack, accepted }),
                Incoming::Large(_) => Ok(Message::Other),
                Incoming::Violation(what) => Err(what),
            };
            match message {
                Ok(message) => self.hear(id, message),
                Err(what) => self.note_violation(id, &what),
            }
        }
        if !is_open {
            self.disconnected(id);
        }
        is_open && any
    }

    fn hear(&mut self, id: usize, message: Message) {
        match message {
            Message::Online => self.tell("online", id, json!({})),
            Message::Query(query) if !self.is_told_to_stop => {
                self.happenings.push_back(Happening::Query(id, query));
            }
            Message::Query(_) | Message::Other => {}
            Message::Listening => self.hear_listening(id),
            Message::Close(key) => {
                let now_ns = monotonic_ns();
                let handles = self.handles.values_mut().filter(|handle| handle.key == key);
                handles.for_each(|handle| handle.remove_member(id, now_ns));
            }
            Message::ExitedAfterDisconnect { seq: heard } => {
                let seq = self.next_seq();
                if let Some(ipc) = self.ipc(id) {
                    ipc.send(&protocol::acknowledge(heard, seq));
                }
            }
            Message::Answer { ack, accepted } => self.hear_answer(id, ack, accepted),
        }
    }

    fn hear_listening(&mut self, id: usize) {
        let address =
            self.handles.values().find(|handle| handle.members.contains(&id)).map(|handle| handle.address);
        self.tell("listening", id, json!({"address": address}));
        let (Some(worker), Some(address)) = (&mut self.workers[id], address) else { return };
        worker.is_listening = true;
        let all = self.workers.iter().all(|worker| worker.as_ref().is_some_and(|worker| worker.is_listening));
        if all && self.address.is_none() {
            let first = self.handles.values().next().map_or(address, |handle| handle.address);
            self.address = Some(first);
            self.happenings.push_back(Happening::Ready(first));
        }
    }

    fn hear_answer(&mut self, id: usize, ack: u64, accepted: bool) {
        let Some(worker) = &mut self.workers[id] else { return };
        let Some(at) = worker.unanswered.iter().position(|given| given.seq == ack) else {
            return self.note_violation(id, "an answer to what was not asked");
        };
        let Unanswered { handle, connection, .. } = worker.unanswered.swap_remove(at);
        let handle = self.handles.get_mut(&handle);
        if accepted {
            self.scoreboard.row(id).add(Count::Accepted, 1);
            handle.into_iter().for_each(|handle| handle.set_free(id));
        } else if let Some(handle) = handle {
            handle.returned.push_back(connection);
            // It has no room, or is about to leave: at once it would say no again.
            handle.resting.push((monotonic_ns() + BACK_OFF.as_nanos() as u64, id));
        }
    }

    fn answer_query(&mut self, id: usize, query: &Query, keep: bool) {
        let seq = self.next_seq();
        let key = query.key();
        let found = self.find_or_bind(id, query, &key, keep);
        let Some(ipc) = self.workers[id].as_mut().and_then(|worker| worker.ipc.as_mut()) else { return };
        match found {
            Ok(token) => {
                let Some(handle) = self.handles.get_mut(&token) else { return };
                if handle.data.is_null() {
                    handle.data = query.data.clone();
                }
                handle.add_member(id);
                if keep {
                    ipc.send(&protocol::kept(query, &key, handle.address, &handle.data, seq));
                    handle.set_free(id);
                } else {
                    let reply = protocol::shared(query, &key, &handle.data, seq);
                    ipc.send_handle(&reply, Rc::clone(&handle.socket));
                }
            }
            Err(errno) => {
                ipc.send(&protocol::failed(query, &key, errno, seq));
                let tried = format!("listen {}:{}", query.address.as_str().unwrap_or("*"), query.port);
                let what = Failure::new(tried, errno).to_string();
                self.tell("failure", id, json!({ "what": what }));
            }
        }
        self.watch(id);
    }

    fn find_or_bind(&mut self, id: usize, query: &Query, key: &str, listen: bool) -> nix::Result<u64> {
        if let Some((&token, _)) = self.handles.iter().find(|(_, handle)| handle.key == key) {
            return Ok(token);
        }
        // Orphans count for everybody.
        let is_its = |handle: &&Handle| handle.members.is_empty() || handle.members.contains(&id);
        if self.handles.values().filter(is_its).count() >= MOST_HANDLES {
            return Err(Errno::EMFILE);
        }
        let handle = Handle::bind(query, key.to_owned())?;
        let token = self.next_handle;
        self.next_handle += 1;
        if listen {
            let listening = SockRef::from(&handle).listen(query.backlog());
            listening.map_err(|error| error.raw_os_error().map_or(Errno::EINVAL, Errno::from_raw))?;
            self.epoll.add(&handle, token, Interest::EPOLLIN | Interest::EPOLLET)?;
        }
        self.handles.insert(token, handle);
        Ok(token)
    }

    /// Of all handles in turn: what was given back, then what the kernel has.
    fn next_connection(&mut self) -> Result<Option<(u64, Rc<OwnedFd>)>, Failure> {
        if self.rests_until_ns.is_some() {
            return Ok(None);
        }
        for (&token, handle) in &mut self.handles {
            while handle.can_give() {
                if let Some(connection) = handle.returned.pop_front() {
                    return Ok(Some((token, connection)));
                }
                // What a worker gets does not wait: libuv expects that of it.
                let failed = match accept(&*handle, SockFlag::SOCK_NONBLOCK) {
                    Ok(connection) => return Ok(Some((token, Rc::new(connection)))),
                    Err(errno) => errno,
                };
                match NoConnection::from(failed) {
                    NoConnection::Nobody if failed == Errno::EAGAIN => handle.is_ready = false,
                    NoConnection::Nobody => {}
                    NoConnection::Exhausted => {
                        say_exhausted();
                        self.rests_until_ns = Some(monotonic_ns() + BACK_OFF.as_nanos() as u64);
                        return Ok(None);
                    }
                    NoConnection::Shut | NoConnection::Fatal(_) => {
                        return Err(Failure::new(format_args!("accept on {}", handle.address), failed));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Its channel is closed. It may still answer what it has.
    fn disconnected(&mut self, id: usize) {
        let Some(worker) = &mut self.workers[id] else { return };
        let Some(ipc) = worker.ipc.take() else { return };
        // Before the close: what the worker has started may hold the other end, but not this one; it cannot fail.
        let _ = self.epoll.delete(&ipc);
        worker.is_listening = false;
        let now_ns = monotonic_ns();
        worker.deadline_ns.get_or_insert(now_ns + self.settings.kill_timeout.as_nanos() as u64);
        for given in mem::take(&mut worker.unanswered) {
            if let Some(handle) = self.handles.get_mut(&given.handle) {
                handle.returned.push_back(given.connection);
            }
        }
        self.handles.values_mut().for_each(|handle| handle.remove_member(id, now_ns));
        self.happenings.retain(|happening| !matches!(happening, Happening::Query(asker, _) if *asker == id));
        self.tell("disconnect", id, json!({}));
    }

    /// True: somebody has ended.
    fn reap_one(&mut self) -> bool {
        let Ok(Some((pid, ending, usage))) = reap() else { return false };
        let is_it = |worker: &Option<Worker>| worker.as_ref().is_some_and(|worker| worker.pid == pid);
        let Some(id) = self.workers.iter().position(is_it) else { return true };
        // What it said before it died counts.
        while self.receive(id) {}
        self.disconnected(id);
        let (status, signal) = match ending {
            Ending::Exited(status) => (Some(status), None),
            Ending::KilledBy(signal) => (None, Some(signal)),
        };
        let signal = signal.and_then(|signal| Signal::try_from(signal).ok()).map(Signal::as_str);
        self.tell("exit", id, json!({"status": status, "signal": signal}));
        self.usages[id] = sum(self.usages[id], usage);
        self.scoreboard.row(id).set_usage(self.usages[id]);
        self.workers[id] = None;
        self.happenings.push_back(Happening::Exit(id));
        true
    }

    fn do_what_is_due(&mut self) {
        let now_ns = monotonic_ns();
        self.rests_until_ns.take_if(|until_ns| *until_ns <= now_ns);
        for worker in self.workers.iter_mut().flatten() {
            if worker.deadline_ns.is_some_and(|deadline_ns| deadline_ns <= now_ns) {
                worker.kill();
                // It will be reaped; should it be stuck in the kernel, again in a second.
                worker.deadline_ns = Some(now_ns + RETRY_NS);
            }
        }
        for handle in self.handles.values_mut() {
            let rested = handle.resting.extract_if(.., |(until_ns, _)| *until_ns <= now_ns);
            let rested: Vec<usize> = rested.map(|(_, id)| id).collect();
            rested.into_iter().for_each(|id| handle.set_free(id));
        }
        let is_over =
            |handle: &Handle| handle.orphaned_ns.is_some_and(|since_ns| since_ns + ORPHAN_WAITS_NS <= now_ns);
        self.handles.retain(|_, handle| !is_over(handle));
        for (_, id) in self.vacant.extract_if(.., |(due_ns, _)| *due_ns <= now_ns) {
            self.happenings.push_back(Happening::Exit(id));
        }
        for id in 0..self.workers.len() {
            if let Some(ipc) = self.ipc(id).filter(|ipc| ipc.is_starved()) {
                ipc.flush();
                self.watch(id);
            }
        }
    }

    fn until_due(&self) -> Option<Duration> {
        let workers = self.workers.iter().flatten();
        let deadlines = workers.clone().filter_map(|worker| worker.deadline_ns);
        let is_starved = workers.filter_map(|worker| worker.ipc.as_ref()).any(|ipc| ipc.is_starved());
        let now_ns = monotonic_ns();
        let starved = is_starved.then_some(now_ns + BACK_OFF.as_nanos() as u64);
        let rests = self.handles.values().flat_map(|handle| &handle.resting).map(|&(until_ns, _)| until_ns);
        let orphans = self.handles.values().filter_map(|handle| handle.orphaned_ns);
        let due_ns = deadlines
            .chain(rests)
            .chain(orphans.map(|since_ns| since_ns + ORPHAN_WAITS_NS))
            .chain(self.vacant.iter().map(|&(due_ns, _)| due_ns))
            .chain(starved)
            .chain(self.rests_until_ns)
            .min();
        due_ns.map(|due_ns| Duration::from_nanos(due_ns.saturating_sub(now_ns)))
    }

    /// Waits for what the channel of a worker needs now.
    fn watch(&mut self, id: usize) {
        let Some(worker) = &mut self.workers[id] else { return };
        let Some(ipc) = &worker.ipc else { return };
        let interest = ipc.interest();
        if interest != worker.interest {
            // A registration is changed without allocating, so this cannot fail (epoll_ctl(2)).
            let _ = self.epoll.modify(ipc, worker.unique_id, interest);
            worker.interest = interest;
        }
    }

    fn note_violation(&mut self, id: usize, what: &str) {
        let Some(worker) = &mut self.workers[id] else { return };
        worker.violations += 1;
        let is_last = worker.violations == MOST_VIOLATIONS_TOLD;
        if worker.violations <= MOST_VIOLATIONS_TOLD {
            self.tell("violation", id, json!({"what": what, "is_last_told": is_last}));
        }
    }

    fn tell(&self, event: &str, id: usize, mut fields: Value) {
        fields["worker"] = json!(id);
        if let Some(worker) = &self.workers[id] {
            fields["unique_id"] = json!(worker.unique_id);
            fields["pid"] = json!(worker.pid.as_raw());
        }
        self.events.tell(event, fields);
    }

    fn ipc(&mut self, id: usize) -> Option<&mut crate::server::Ipc> {
        self.workers[id].as_mut()?.ipc.as_mut()
    }

    fn id_of(&self, unique_id: u64) -> Option<usize> {
        let is_it =
            |worker: &Option<Worker>| worker.as_ref().is_some_and(|worker| worker.unique_id == unique_id);
        self.workers.iter().position(is_it)
    }

    fn is_empty(&self) -> bool {
        self.workers.iter().all(Option::is_none)
    }

    fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }
}

impl Drop for Master {
    /// Whatever went wrong: no worker outlives its master.
    fn drop(&mut self) {
        self.workers.iter().flatten().for_each(Worker::kill);
        while !self.is_empty() {
            if !self.reap_one() {
                let _ = self.signals.wait(Some(Duration::from_millis(10)));
            }
        }
    }
}

fn sum(one: Usage, other: Usage) -> Usage {
    Usage {
        cpu_user_us: one.cpu_user_us + other.cpu_user_us,
        cpu_system_us: one.cpu_system_us + other.cpu_system_us,
        voluntary_switches: one.voluntary_switches + other.voluntary_switches,
        involuntary_switches: one.involuntary_switches + other.involuntary_switches,
        max_rss_kib: one.max_rss_kib.max(other.max_rss_kib),
    }
}
