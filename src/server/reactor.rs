//! The reactor: waits for many connections at once and takes a step with each that is ready or due.
//!
//! Connections are registered only when they have to be waited for: a step goes on until the socket has nothing more.
//! What a connection is, a state machine or a coroutine, is its own affair.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::connection::{Awaited, EventHandler, LINGER, Step, Wake, end};
use super::multiplexer::{Multiplexer, REPORTS_PER_WAIT};
use super::selector::heartbeat::Heartbeat;
use super::table::ConnectionTable;
use super::worker::Worker;
use crate::failure::Failure;
use crate::scoreboard::Count;
use crate::slots::SlotKey;
use crate::sys::epoll::{Interest, Ready};
use crate::sys::signal::{has_given_up, wake_on_termination};
use crate::units::monotonic_ns;

pub const ACCEPTOR: u64 = u64::MAX;
/// The acceptor's second descriptor.
pub const SECOND: u64 = u64::MAX - 1;
const TERMINATION: u64 = u64::MAX - 2;

/// The clock is read once per wait. The time from one wait to the next can be longer than this, when the worker blocks
/// or does not get the CPU. Then a connection that was active in it counts as active until its end: otherwise a client
/// would be closed too early.
pub const LONG_ROUND_NS: u64 = 1_000_000;

pub struct Reactor<C: EventHandler> {
    pub worker: Worker,
    pub multiplexer: Multiplexer,
    pub now_ns: u64,
    termination: BorrowedFd<'static>,
    /// The sender of a passed connection keeps a copy of it until we have acknowledged it.
    pub sender_keeps_copies: bool,
    has_short_idle_timeout: bool,
    table: ConnectionTable<C>,
    shared: C::Shared,
    timers: BinaryHeap<Reverse<(u64, SlotKey, Purpose)>>,
    reports: usize,
    reports_taken: usize,
}

/// Why a connection is gone on with at some time. It may be gone by then.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Purpose {
    GoOn,
    Answer,
    Close,
}

impl<C: EventHandler> Reactor<C> {
    pub fn new(worker: Worker, mut multiplexer: Multiplexer) -> nix::Result<Reactor<C>> {
        let termination = wake_on_termination()?;
        multiplexer.add(termination, TERMINATION, Interest::EPOLLIN)?;
        Ok(Reactor {
            worker,
            multiplexer,
            termination,
            now_ns: monotonic_ns(),
            sender_keeps_copies: false,
            has_short_idle_timeout: false,
            table: ConnectionTable::default(),
            shared: C::Shared::default(),
            timers: BinaryHeap::new(),
            reports: 0,
            reports_taken: 0,
        })
    }

    /// The next report of the last wait. When all are taken: does what is due or, if nothing is, waits for more (at
    /// most until `wake_ns`, given while the acceptor is not watched). Either way it then returns `None` once, so that
    /// the caller can look around: what was due may have ended the last connection, and then there is nothing to wait
    /// for.
    pub fn next_report(&mut self, wake_ns: Option<u64>) -> Result<Option<Ready>, Failure> {
        if self.reports_taken < self.reports {
            self.reports_taken += 1;
            return Ok(Some(self.multiplexer.report(self.reports_taken - 1)));
        }
        if self.run_timers() | self.close_silent() {
            return Ok(None);
        }
        let beat_ns = self.worker.heartbeat.as_mut().map(Heartbeat::pause);
        let now_ns = monotonic_ns();
        if now_ns > self.now_ns + LONG_ROUND_NS {
            self.table.extend_activity(self.now_ns, now_ns);
        }
        let due_ns = [self.next_due_ns(wake_ns), beat_ns].into_iter().flatten().min();
        let timeout = due_ns.map(|due_ns| due_ns.saturating_sub(now_ns));
        let multiplexer = &mut self.multiplexer;
        let waited = self.worker.spin.wait(timeout.map(Duration::from_nanos), |timeout| multiplexer.wait(timeout));
        self.reports = waited.map_err(|errno| Failure::new("wait for events", errno))?;
        self.reports_taken = 0;
        self.now_ns = monotonic_ns();
        self.beat(wake_ns.is_none());
        Ok(None)
    }

    /// True when everything reported and everything due has been dealt with, so that [`Reactor::next_report`] waits.
    pub fn is_about_to_wait(&self) -> bool {
        self.reports_taken == self.reports && self.next_due_ns(None).is_none_or(|due_ns| due_ns > self.now_ns)
    }

    pub fn has_report_about(&self, token: u64) -> bool {
        (self.reports_taken..self.reports).any(|i| self.multiplexer.report(i).token == token)
    }

    /// Shows that the worker is alive, for a parent that watches. A wait that could have reported the acceptor and did
    /// not has seen an empty queue; one that was full of reports has not seen all.
    fn beat(&mut self, is_acceptor_watched: bool) {
        let Some(heartbeat) = &mut self.worker.heartbeat else { return };
        let has_seen_all = is_acceptor_watched && self.reports < REPORTS_PER_WAIT;
        let is_someone_queued = || (0..self.reports).any(|i| self.multiplexer.report(i).token == ACCEPTOR);
        heartbeat.beat(self.now_ns, has_seen_all && !is_someone_queued());
    }

    /// A new connection. Its first request is often there already, and then it is never registered at all.
    pub fn add(&mut self, connection: C) {
        self.worker.opened();
        let key = self.table.insert(connection, self.now_ns);
        self.take_step(key, Wake::Ready);
    }

    pub fn serve(&mut self, ready: Ready) {
        let key = ready.token;
        let Some(connection) = self.table.get_mut(key) else { return };
        let is_gone = ready.flags.intersects(Interest::EPOLLERR | Interest::EPOLLHUP);
        if is_gone && connection.awaited() == Awaited::Work {
            // There is no client left to answer.
            return self.close(key, true);
        }
        if ready.flags.intersects(Interest::EPOLLIN | Interest::EPOLLRDHUP) || is_gone {
            connection.mark_readable(is_gone || ready.flags.contains(Interest::EPOLLRDHUP));
        }
        self.table.touch(key, self.now_ns);
        self.take_step(key, Wake::Ready);
        if is_gone && self.table.get_mut(key).is_some_and(|connection| connection.awaited() == Awaited::Work) {
            // It came in one report with the request that was just read: no other report will tell.
            self.close(key, true);
        }
    }

    /// Answers what has arrived, closes the rest, and goes on until nothing is open or it is time to give up.
    pub fn finish(mut self) -> Result<Worker, Failure> {
        for key in self.table.keys() {
            if let Some(connection) = self.table.get_mut(key) {
                connection.mark_readable(false);
            }
            self.take_step(key, Wake::Ready);
            self.close_if_nothing_is_owed(key);
        }
        // It stays readable, and a wait that includes it would not wait. The end of the grace period interrupts
        // the wait instead.
        let _ = self.multiplexer.remove(self.termination);
        while self.table.count() > 0 && !has_given_up() {
            if let Some(ready) = self.next_report(None)? {
                self.serve(ready);
                self.close_if_nothing_is_owed(ready.token);
            }
        }
        Ok(self.worker)
    }

    /// From now on a connection between two requests may be silent for so long at most. The others have their time:
    /// what has begun is finished.
    pub fn shorten_idle_timeout(&mut self, timeout: Duration) {
        self.has_short_idle_timeout = true;
        self.worker.idle_timeout = timeout.min(self.worker.idle_timeout);
    }

    pub fn open(&self) -> usize {
        self.table.count()
    }

    /// Half a request is not one that has been read.
    fn close_if_nothing_is_owed(&mut self, key: SlotKey) {
        let Some(connection) = self.table.get_mut(key) else { return };
        match connection.awaited() {
            Awaited::Request => self.close(key, false),
            Awaited::RestOfRequest => self.close(key, true),
            Awaited::Work | Awaited::RoomForAnswer | Awaited::EndOfStream => {}
        }
    }

    fn take_step(&mut self, key: SlotKey, wake: Wake) {
        let Some(connection) = self.table.get_mut(key) else { return };
        match connection.go_on(wake, &mut self.worker, &mut self.shared) {
            Step::AwaitInput => self.watch(key, Interest::EPOLLIN),
            Step::AwaitOutput => self.watch(key, Interest::EPOLLOUT),
            Step::AwaitWork(cost) => self.set_timer(key, Interest::empty(), cost.duration(), Purpose::Answer),
            Step::Yield => self.set_timer(key, Interest::empty(), Duration::ZERO, Purpose::GoOn),
            Step::Linger => self.set_timer(key, Interest::EPOLLIN, LINGER, Purpose::Close),
            Step::Close { lost } => self.close(key, lost),
        }
    }

    fn set_timer(&mut self, key: SlotKey, awaited: Interest, after: Duration, purpose: Purpose) {
        self.watch(key, awaited);
        let due_ns = monotonic_ns() + after.as_nanos() as u64;
        self.timers.push(Reverse((due_ns, key, purpose)));
    }

    fn watch(&mut self, key: SlotKey, awaited: Interest) {
        let is_new = self.table.set_watched(key);
        let Some(connection) = self.table.get_mut(key) else { return };
        if self.multiplexer.await_of(&*connection, key, awaited, is_new).is_err() {
            // No memory or no watch left (epoll_ctl(2)): a connection we cannot wait for cannot be served.
            self.close(key, true);
        }
    }

    fn close(&mut self, key: SlotKey, lost: bool) {
        let is_watched = self.sender_keeps_copies && self.table.is_watched(key);
        let Some(connection) = self.table.remove(key) else { return };
        // Counted first: a client that sees the end finds it in the scoreboard.
        self.worker.closed();
        if lost {
            self.worker.count(Count::ClientErrors);
        }
        if self.sender_keeps_copies {
            // Otherwise the registration would live on, and report a connection that is gone (epoll(7), question 6).
            if is_watched {
                let _ = self.multiplexer.remove(&connection);
            }
            end(&connection);
        }
        self.multiplexer.forget(&connection);
        // This closes the socket, which also ends its registration where nobody else holds it.
        drop(connection);
    }

    fn run_timers(&mut self) -> bool {
        let mut any = false;
        while let Some(&Reverse((due_ns, key, purpose))) = self.timers.peek()
            && due_ns <= self.now_ns
        {
            self.timers.pop();
            any = true;
            if self.table.get_mut(key).is_none() {
                continue;
            }
            self.table.touch(key, self.now_ns);
            match purpose {
                Purpose::GoOn => self.take_step(key, Wake::Ready),
                Purpose::Answer => self.take_step(key, Wake::WorkDone),
                Purpose::Close => self.close(key, true),
            }
        }
        any
    }

    /// Ends the connections that have been silent for the idle time-out. True when there was one.
    fn close_silent(&mut self) -> bool {
        let mut any = false;
        let idle_ns = self.worker.idle_timeout.as_nanos() as u64;
        while let Some((key, since_ns)) = self.table.longest_idle() {
            if since_ns + idle_ns > self.now_ns {
                break;
            }
            let Some(connection) = self.table.get_mut(key) else { break };
            any = true;
            let awaited = connection.awaited();
            let is_ours = matches!(awaited, Awaited::Work | Awaited::EndOfStream);
            if is_ours || (self.has_short_idle_timeout && awaited != Awaited::Request) {
                // It is silent because we have not answered yet, and its timer will come; or this worker is leaving,
                // and a request that has begun is still finished.
                self.table.touch(key, self.now_ns);
            } else if connection.is_ready() {
                // The worker was blocked, or has had many others to serve first, and has not come to this one yet.
                connection.mark_readable(false);
                self.table.touch(key, self.now_ns);
                self.take_step(key, Wake::Ready);
            } else if awaited == Awaited::RestOfRequest {
                self.table.touch(key, self.now_ns);
                self.take_step(key, Wake::TimedOut);
            } else {
                let does_not_read = awaited == Awaited::RoomForAnswer;
                self.close(key, does_not_read);
            }
        }
        any
    }

    fn next_due_ns(&self, wake_ns: Option<u64>) -> Option<u64> {
        let timer_ns = self.timers.peek().map(|Reverse((due_ns, ..))| *due_ns);
        let idle_ns = self.worker.idle_timeout.as_nanos() as u64;
        let silent_ns = self.table.longest_idle().map(|(_, since_ns)| since_ns + idle_ns);
        [timer_ns, silent_ns, wake_ns].into_iter().flatten().min()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use clap::Parser;
    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    use super::*;
    use crate::scoreboard::Scoreboard;
    use crate::server::ServerArgs;
    use crate::server::connection::Connection;

    /// More than any loop of ours looks at in two turns.
    const MANY: usize = 2_200;

    #[derive(Parser)]
    struct Args {
        #[command(flatten)]
        server: ServerArgs,
    }

    /// A worker whose connections may be silent for 1 ms.
    pub fn impatient_worker() -> (ServerArgs, Worker) {
        let Args { server: args } = Args::parse_from(["test", "--listen", "127.0.0.1:0", "--idle-timeout", "1ms"]);
        let scoreboard = Scoreboard::create("test", 1, None).unwrap();
        let worker = Worker::new(0, &args, &scoreboard);
        (args, worker)
    }

    /// Gives a loop many connections, and returns their clients when all of them have sent a request and the idle
    /// time-out of each is over.
    pub fn clients_that_wait_too_long(mut add: impl FnMut(OwnedFd)) -> Vec<UnixStream> {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
        let mut connect = |_| {
            let (client, server) = UnixStream::pair().unwrap();
            server.set_nonblocking(true).unwrap();
            add(server.into());
            client
        };
        let mut clients: Vec<UnixStream> = (0..MANY).map(&mut connect).collect();
        clients.iter_mut().for_each(|client| client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap());
        let all_are_due_ns = monotonic_ns() + 1_000_000;
        while monotonic_ns() <= all_are_due_ns {}
        clients
    }

    pub fn assert_all_answered(clients: Vec<UnixStream>) {
        for mut client in clients {
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer:?}");
        }
    }

    #[test]
    fn a_connection_whose_request_has_arrived_is_not_silent_however_many_others_are_served_first() {
        let mut reactor = Reactor::<Connection>::new(impatient_worker().1, Multiplexer::epoll().unwrap()).unwrap();
        let clients = clients_that_wait_too_long(|socket| reactor.add(socket.into()));
        // Until all of them are silent again.
        while reactor.open() > 0 {
            if let Some(ready) = reactor.next_report(None).unwrap() {
                reactor.serve(ready);
            }
        }
        assert_all_answered(clients);
    }
}
