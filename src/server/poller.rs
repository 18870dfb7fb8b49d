//! One epoll for the connections of several threads.
//!
//! A connection is in one place at a time: it waits here ([`WaitingConnections`]), or one thread has it. The thread
//! that has the [`Poller`] waits for all of them, and [`Poller::next_event`] takes one out that is ready or has been
//! silent for too long. Any thread puts it back, and the poller is not woken for that: with EPOLLONESHOT a connection
//! is reported once, until it is registered anew, and that reports what is there already (epoll_ctl(2)).

use std::collections::BTreeSet;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;

use super::accept::{Acceptor, NoConnection, log_pause, no_connection, pause_end_ns};
use super::connection::{Awaited, Connection, EventHandler, LINGER, SharedBuffers, Step, TakeStep, end};
use super::event_loop::free_descriptors;
use super::listener::Listener;
use super::member::is_passed_connections;
use super::worker::Worker;
use crate::failure::Failure;
use crate::report::AcceptCounts;
use crate::scoreboard::{Count, WorkerRow};
use crate::slots::{SlotKey, Slots};
use crate::sys::epoll::{Epoll, Interest, Ready};
use crate::sys::signal::{forget_listener, has_given_up, is_leaving, is_stopping, wake_on_termination};
use crate::units::monotonic_ns;
use crate::work::Cost;

const ACCEPTOR: u64 = u64::MAX;
const TERMINATION: u64 = u64::MAX - 1;

/// Reports taken per wait: enough to spread its cost over several connections.
const REPORTS_PER_WAIT: usize = 64;

/// What the poller has found.
pub enum Event {
    /// A connection waits at the acceptor: accept it and give it to [`Poller::add_accepted`].
    New,
    /// A connection that is the caller's until it is put back.
    Ready(ReadyConnection),
}

/// A connection that has something to be read, or room for its answer.
pub struct ReadyConnection {
    open: OpenConnection,
    take_step: TakeStep,
}

/// A connection with a whole request, whose work is to be done.
pub struct WaitingRequest {
    open: OpenConnection,
    pub cost: Cost,
}

/// A connection from its accept to its end, wherever it is. It is closed and no longer counted when it is dropped, also
/// by a thread that panics.
struct OpenConnection {
    connection: Connection,
    all: Arc<OpenCount>,
    /// The row of the first worker that served it.
    row: Option<WorkerRow>,
    is_registered: bool,
    lingers_until_ns: Option<u64>,
}

struct OpenCount {
    count: AtomicUsize,
    termination: BorrowedFd<'static>,
}

/// What all threads share.
pub struct WaitingConnections {
    epoll: Epoll,
    idle_timeout: Duration,
    open: Arc<OpenCount>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// The connections that wait, with the times at which they have been silent for too long.
    connections: Slots<(OpenConnection, u64)>,
    due: BTreeSet<(u64, SlotKey)>,
    is_ending: bool,
}

/// The thread that has it waits for the connections of all.
pub struct Poller<A> {
    pub acceptor: A,
    pub connections: Arc<WaitingConnections>,
    epoll: Epoll,
    reports: usize,
    reports_taken: usize,
    room: usize,
    is_watching: bool,
    paused_until_ns: Option<u64>,
    is_ending: bool,
    /// The connections that are served once more at the end.
    last: Vec<ReadyConnection>,
}

impl<A: Acceptor> Poller<A> {
    pub fn new(acceptor: A, idle_timeout: Duration) -> Result<Poller<A>, Failure> {
        let open = || {
            let epoll = Epoll::new(REPORTS_PER_WAIT)?;
            let termination = wake_on_termination()?;
            // Edge-triggered: it stays readable, and each write to it is reported once.
            epoll.add(termination, TERMINATION, Interest::EPOLLIN | Interest::EPOLLET)?;
            let count = OpenCount { count: AtomicUsize::new(0), termination };
            let connections = WaitingConnections {
                epoll: epoll.try_clone()?,
                idle_timeout,
                open: Arc::new(count),
                waiting: Mutex::default(),
            };
            Ok::<_, Errno>((epoll, connections))
        };
        let (epoll, connections) = open().map_err(|errno| Failure::new("open an epoll instance", errno))?;
        let mut poller = Poller {
            acceptor,
            connections: Arc::new(connections),
            epoll,
            reports: 0,
            reports_taken: 0,
            room: free_descriptors(),
            is_watching: false,
            paused_until_ns: None,
            is_ending: false,
            last: Vec::new(),
        };
        poller.watch_acceptor()?;
        Ok(poller)
    }

    /// Waits for the next event. `None` when the server is to stop and has answered what it had read, or gives up.
    pub fn next_event(&mut self) -> Result<Option<Event>, Failure> {
        loop {
            if (is_stopping() || is_leaving()) && !self.is_ending {
                self.begin_end()?;
            }
            if let Some(ready) = self.last.pop() {
                return Ok(Some(Event::Ready(ready)));
            }
            if self.is_ending && (self.connections.open() == 0 || has_given_up()) {
                return Ok(None);
            }
            if self.reports_taken < self.reports {
                self.reports_taken += 1;
                if let Some(event) = self.event(self.epoll.report(self.reports_taken - 1))? {
                    return Ok(Some(event));
                }
                continue;
            }
            let now_ns = monotonic_ns();
            if let Some(ready) = self.connections.take_silent(now_ns) {
                return Ok(Some(Event::Ready(ready)));
            }
            self.wait(now_ns)?;
        }
    }

    /// Takes what an accept returned: a connection, or the reason why there is none. True when it was a connection.
    pub fn add_accepted(
        &mut self,
        accepted: nix::Result<OwnedFd>,
        mut count: impl FnMut(Count),
    ) -> Result<bool, Failure> {
        let errno = match accepted {
            Ok(socket) => {
                count(Count::Wakeups);
                self.connections.add(socket);
                return Ok(true);
            }
            Err(errno) => errno,
        };
        match no_connection(errno, false, &mut count)? {
            NoConnection::Nobody => count(Count::Wakeups),
            NoConnection::Pause(errno) => self.pause_accepting(errno)?,
            NoConnection::Shut => self.begin_end()?,
        }
        Ok(false)
    }

    fn event(&mut self, ready: Ready) -> Result<Option<Event>, Failure> {
        match ready.token {
            TERMINATION => Ok(None),
            ACCEPTOR if !self.is_watching => Ok(None),
            // A listening socket would keep the connection; a master's channel would lose it.
            ACCEPTOR if self.connections.open() >= self.room => {
                self.acceptor.receive_messages();
                self.pause_accepting(Errno::EMFILE).map(|()| None)
            }
            ACCEPTOR => Ok(Some(Event::New)),
            _ => Ok(self.connections.take_reported(ready).map(Event::Ready)),
        }
    }

    fn wait(&mut self, now_ns: u64) -> Result<(), Failure> {
        if self.paused_until_ns.take_if(|until_ns| now_ns >= *until_ns).is_some() && !self.is_ending {
            self.watch_acceptor()?;
        }
        // What is put back meanwhile is due after the shortest time-out at the earliest, and then this looks again.
        let longest_ns = now_ns + self.connections.idle_timeout.min(LINGER).as_nanos() as u64;
        let due_ns = [self.connections.first_due_ns(), self.paused_until_ns].into_iter().flatten().min();
        let timeout = Duration::from_nanos(due_ns.unwrap_or(longest_ns).min(longest_ns).saturating_sub(now_ns));
        self.reports = self.epoll.wait(Some(timeout)).map_err(|errno| Failure::new("wait for events", errno))?;
        self.reports_taken = 0;
        Ok(())
    }

    /// Accepts no more, and takes out all that wait: what has arrived is answered, and the rest is closed.
    fn begin_end(&mut self) -> Result<(), Failure> {
        self.is_ending = true;
        if self.is_watching {
            self.stop_watching()?;
        }
        forget_listener();
        self.last = self.connections.end();
        Ok(())
    }

    fn pause_accepting(&mut self, reason: Errno) -> Result<(), Failure> {
        log_pause(reason);
        self.paused_until_ns = Some(pause_end_ns(monotonic_ns()));
        self.stop_watching()
    }

    fn watch_acceptor(&mut self) -> Result<(), Failure> {
        self.is_watching = true;
        let mut descriptors = std::iter::once(self.acceptor.as_fd()).chain(self.acceptor.second_descriptor());
        let added = descriptors.try_for_each(|fd| self.epoll.add(fd, ACCEPTOR, Interest::EPOLLIN));
        added.map_err(|errno| Failure::new("watch the acceptor", errno))
    }

    fn stop_watching(&mut self) -> Result<(), Failure> {
        self.is_watching = false;
        let mut descriptors = std::iter::once(self.acceptor.as_fd()).chain(self.acceptor.second_descriptor());
        let deleted = descriptors.try_for_each(|fd| self.epoll.delete(fd));
        deleted.map_err(|errno| Failure::new("stop watching the acceptor", errno))
    }
}

impl Poller<Listener> {
    /// Accepts the connection that waits; other threads serve it, and the acceptor has counts of its own.
    pub fn accept(&mut self, counts: &mut AcceptCounts) -> Result<(), Failure> {
        let connection = self.acceptor.accept_nonblocking();
        if self.add_accepted(connection, |count| counts.count(count))? {
            counts.count(Count::Accepted);
        }
        Ok(())
    }
}

impl WaitingConnections {
    /// Takes the step, does the work of the requests, and puts the connection back.
    pub fn serve(&self, mut ready: ReadyConnection, worker: &mut Worker, buffers: &mut SharedBuffers) {
        ready.open.count_for(worker);
        let mut next = self.read(ready, worker, buffers);
        while let Some(mut request) = next {
            request.cost.spend(has_given_up);
            let step = request.open.connection.finish_wait(worker, buffers);
            next = self.after(request.open, step, worker);
        }
    }

    /// Takes the step. A request that the worker does not serve itself is handed out, and its connection with it;
    /// otherwise the connection is put back.
    pub fn read(
        &self,
        mut ready: ReadyConnection,
        worker: &mut Worker,
        buffers: &mut SharedBuffers,
    ) -> Option<WaitingRequest> {
        let step = (ready.take_step)(&mut ready.open.connection, worker, buffers);
        self.after(ready.open, step, worker)
    }

    /// Answers a request whose work is done, and puts the connection back.
    pub fn answer(&self, mut request: WaitingRequest, worker: &Worker, buffers: &mut SharedBuffers) {
        request.open.count_for(worker);
        let step = request.open.connection.finish_wait_and_send(worker, buffers);
        self.after(request.open, step, worker);
    }

    /// Where a connection belongs after a step.
    fn after(&self, mut open: OpenConnection, step: Step, worker: &Worker) -> Option<WaitingRequest> {
        let now_ns = monotonic_ns();
        let silent_ns = now_ns + self.idle_timeout.as_nanos() as u64;
        match step {
            Step::AwaitWork(cost) => return Some(WaitingRequest { open, cost }),
            Step::AwaitInput => self.put_back(open, Interest::EPOLLIN | Interest::EPOLLRDHUP, silent_ns),
            Step::AwaitOutput => self.put_back(open, Interest::EPOLLOUT, silent_ns),
            // It has room for output, so it is reported at once, behind the others.
            Step::Yield => self.put_back(open, Interest::EPOLLIN | Interest::EPOLLOUT, silent_ns),
            Step::Linger => {
                open.count_for(worker);
                let until_ns = *open.lingers_until_ns.get_or_insert(now_ns + LINGER.as_nanos() as u64);
                self.put_back(open, Interest::EPOLLIN | Interest::EPOLLRDHUP, until_ns);
            }
            Step::Close { lost } => {
                if lost {
                    open.count_for(worker);
                }
                open.close(lost);
            }
        }
        None
    }

    fn add(&self, socket: OwnedFd) {
        self.open.count.fetch_add(1, SeqCst);
        let connection = Connection::from(socket);
        let (all, row) = (self.open.clone(), None);
        let open = OpenConnection { connection, all, row, is_registered: false, lingers_until_ns: None };
        let silent_ns = monotonic_ns() + self.idle_timeout.as_nanos() as u64;
        self.put_back(open, Interest::EPOLLIN | Interest::EPOLLRDHUP, silent_ns);
    }

    fn put_back(&self, mut open: OpenConnection, interest: Interest, due_ns: u64) {
        let mut waiting = self.waiting();
        let awaited = open.connection.awaited();
        let is_owed =
            interest.contains(Interest::EPOLLOUT) || [Awaited::RoomForAnswer, Awaited::EndOfStream].contains(&awaited);
        // The next request may have come since the answer, which did not say that it was the last one.
        if waiting.is_ending && !is_owed && !open.connection.is_ready() {
            return open.close(awaited == Awaited::RestOfRequest);
        }
        let was_registered = std::mem::replace(&mut open.is_registered, true);
        let key = waiting.connections.insert((open, due_ns));
        let Some((open, _)) = waiting.connections.get(key) else { return };
        // Under the lock: from here on it may be reported, and the poller looks for it.
        let interest = interest | Interest::EPOLLONESHOT;
        let registered = if was_registered {
            self.epoll.modify(&open.connection, key, interest)
        } else {
            self.epoll.add(&open.connection, key, interest)
        };
        if registered.is_ok() {
            waiting.due.insert((due_ns, key));
        } else if let Some((open, _)) = waiting.connections.remove(key) {
            // No memory or no watch left (epoll_ctl(2)): a connection we cannot wait for cannot be served.
            open.close(true);
        }
    }

    fn take_reported(&self, ready: Ready) -> Option<ReadyConnection> {
        // It may have been taken out since.
        let mut open = self.waiting().remove(ready.token)?;
        let is_gone = ready.flags.intersects(Interest::EPOLLRDHUP | Interest::EPOLLERR | Interest::EPOLLHUP);
        if is_gone || ready.flags.contains(Interest::EPOLLIN) {
            open.connection.mark_readable(is_gone);
        }
        Some(ReadyConnection { open, take_step: Connection::step })
    }

    /// Closes the connections that have been silent for too long, and returns one of them with which something is still
    /// to be done.
    fn take_silent(&self, now_ns: u64) -> Option<ReadyConnection> {
        let mut waiting = self.waiting();
        while let Some(&(_, key)) = waiting.due.first().filter(|(due_ns, _)| *due_ns <= now_ns) {
            let mut open = waiting.remove(key)?;
            let connection = &mut open.connection;
            let awaited = connection.awaited();
            if awaited == Awaited::EndOfStream {
                open.close(true);
            } else if connection.is_ready() {
                // It has been silent only to a poller that was late.
                connection.mark_readable(false);
                return Some(ReadyConnection { open, take_step: Connection::step });
            } else if awaited == Awaited::RestOfRequest {
                return Some(ReadyConnection { open, take_step: Connection::time_out });
            } else {
                let does_not_read = awaited == Awaited::RoomForAnswer;
                open.close(does_not_read);
            }
        }
        None
    }

    /// From now on nothing waits here for a request that has not come. Returns the connections that did, to be served
    /// once more.
    fn end(&self) -> Vec<ReadyConnection> {
        let mut waiting = self.waiting();
        waiting.is_ending = true;
        let keys = waiting.connections.keys();
        let taken = keys.into_iter().filter_map(|key| waiting.remove(key));
        let ready = taken.map(|mut open| {
            open.connection.mark_readable(false);
            ReadyConnection { open, take_step: Connection::step }
        });
        ready.collect()
    }

    fn open(&self) -> usize {
        self.open.count.load(SeqCst)
    }

    fn first_due_ns(&self) -> Option<u64> {
        self.waiting().due.first().map(|(due_ns, _)| *due_ns)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // A thread that panicked in here has left a whole map: each change of it is one call.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn remove(&mut self, key: SlotKey) -> Option<OpenConnection> {
        let (open, due_ns) = self.connections.remove(key)?;
        self.due.remove(&(due_ns, key));
        Some(open)
    }
}

impl OpenConnection {
    /// The first worker that serves a connection counts it.
    fn count_for(&mut self, worker: &Worker) {
        if self.row.is_none() {
            worker.opened();
            self.row = Some(worker.row);
        }
    }

    /// `lost` when the client reset it, stopped in the middle, or sent nonsense.
    fn close(self, lost: bool) {
        if let Some(row) = self.row.filter(|_| lost) {
            row.add(Count::ClientErrors, 1);
        }
    }
}

impl Drop for OpenConnection {
    /// Counted first: a client that sees the end finds it in the scoreboard. Then its socket is dropped.
    fn drop(&mut self) {
        if let Some(row) = self.row {
            row.subtract(Count::Active, 1);
        }
        if is_passed_connections() {
            end(&self.connection);
        }
        if self.all.count.fetch_sub(1, SeqCst) == 1 && (is_stopping() || is_leaving()) {
            // The poller may wait for the last one. A counter that is full is readable already.
            let _ = nix::unistd::write(self.all.termination, &1u64.to_ne_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    use super::*;

    impl Acceptor for TcpListener {}

    #[test]
    fn a_connection_is_reported_once_and_again_when_it_is_put_back() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut poller = Poller::new(listener, Duration::from_secs(30)).unwrap();
        assert!(matches!(poller.next_event(), Ok(Some(Event::New))));
        let (socket, _) = poller.acceptor.accept().unwrap();
        socket.set_nonblocking(true).unwrap();
        assert!(poller.add_accepted(Ok(socket.into()), |_| {}).unwrap());

        std::io::Write::write_all(&mut &client, b"GET").unwrap();
        let Ok(Some(Event::Ready(ready))) = poller.next_event() else { panic!("it has three bytes") };
        assert_eq!((poller.epoll.wait(Some(Duration::ZERO)), poller.connections.open()), (Ok(0), 1));
        poller.connections.put_back(ready.open, Interest::EPOLLIN, u64::MAX);
        assert!(matches!(poller.next_event(), Ok(Some(Event::Ready(_)))));
    }

    #[test]
    fn a_connection_put_back_after_the_end_is_served_when_it_has_a_request_and_closed_when_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut poller = Poller::new(listener, Duration::from_secs(30)).unwrap();
        let (asking, silent) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        poller.connections.add(asking.1.into());
        poller.connections.add(silent.1.into());
        let taken = poller.connections.end();
        std::io::Write::write_all(&mut &asking.0, b"GET").unwrap();
        taken.into_iter().for_each(|ready| poller.connections.put_back(ready.open, Interest::EPOLLIN, u64::MAX));
        assert_eq!(poller.connections.open(), 1);
        assert!(matches!(poller.next_event(), Ok(Some(Event::Ready(_)))));
        assert_eq!(std::io::Read::read(&mut &silent.0, &mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn a_connection_of_a_thread_that_panics_is_closed_and_no_longer_counted() {
        let (client, socket) = UnixStream::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let poller = Poller::new(listener, Duration::from_secs(30)).unwrap();
        poller.connections.add(socket.into());
        let mut taken = poller.connections.end();
        let panicked = std::thread::spawn(move || {
            let _mine = taken.pop();
            panic!("as a bug would");
        });
        assert!(panicked.join().is_err());
        assert_eq!(poller.connections.open(), 0);
        assert_eq!(std::io::Read::read(&mut &client, &mut [0; 1]).unwrap(), 0);
    }
}
