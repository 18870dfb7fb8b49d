//! The blocking handler: accept a connection, serve it to its end, and do nothing else meanwhile.
//!
//! Its system calls are the plain ones: accept, setsockopt for the time-outs, recv, send, shutdown, close. Time-outs
//! are the socket's own (SO_RCVTIMEO, SO_SNDTIMEO), and a worker that is to stop finds its sockets shut
//! ([`crate::sys::signal`]), so nothing here polls.
//!
//! What it does between two waits ([`handle`]) does not depend on how it waits ([`Io`]).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Once;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockFlag};
use socket2::SockRef;

use super::accept::{BACK_OFF, NoConnection, accept_next, log_pause, no_connection};
use super::connection::{Awaited, LINGER, WITH_THE_END, end, receive, send_end, send_with};
use super::listener::Listener;
use super::member::is_passed_connections;
use super::worker::Worker;
use crate::console;
use crate::failure::Failure;
use crate::http::{CONTINUE, MAX_HEAD_BYTES, Next, Persistence, Request, RequestReader, Status};
use crate::report::AcceptCounts;
use crate::scoreboard::Count;
use crate::sys::signal::{has_given_up, is_leaving, is_stopping, note_socket};
use crate::work::Cost;

/// Room for most requests; a longer head makes the buffer grow.
const FIRST_BUFFER_BYTES: usize = 2048;

/// A thread's stack: enough to serve; the default of 2 MiB would reserve 20 GiB for 10,000 connections.
pub const STACK_BYTES: usize = 128 * 1024;

/// Blocks until there is a connection for this worker; `None` when the server is to stop.
pub fn accept(listener: &Listener, worker: &Worker) -> Result<Option<OwnedFd>, Failure> {
    accept_after(|| Ok(()), listener, worker)
}

/// As [`accept`], for a worker that waits in another call until the listener is ready. Others may be woken as well
/// and be faster, so the listener must be non-blocking.
pub fn accept_after(
    mut wait: impl FnMut() -> nix::Result<()>,
    listener: &Listener,
    worker: &Worker,
) -> Result<Option<OwnedFd>, Failure> {
    next_connection(|| wait().and_then(|()| listener.accept()), |count| worker.count(count))
}

/// As [`accept`], from a socket at which several threads of this process wait.
pub fn accept_beside_others(socket: impl AsFd, worker: &Worker) -> Result<Option<OwnedFd>, Failure> {
    next_connection(|| accept_next(&socket, SockFlag::empty()), |count| worker.count(count))
}

/// As [`accept`], for another thread of this process to serve; the acceptor has counts of its own.
pub fn accept_for_a_thread(listener: &Listener, counts: &mut AcceptCounts) -> Result<Option<OwnedFd>, Failure> {
    accept_counting(|| listener.accept(), counts)
}

/// As [`accept_for_a_thread`], for one that has an event loop.
pub fn accept_for_a_loop(listener: &Listener, counts: &mut AcceptCounts) -> Result<Option<OwnedFd>, Failure> {
    accept_counting(|| listener.accept_for_another(), counts)
}

fn accept_counting(
    accept: impl FnMut() -> nix::Result<OwnedFd>,
    counts: &mut AcceptCounts,
) -> Result<Option<OwnedFd>, Failure> {
    let accepted = next_connection(accept, |count| counts.count(count))?;
    if accepted.is_some() {
        counts.count(Count::Accepted);
    }
    Ok(accepted)
}

fn next_connection(
    mut accept: impl FnMut() -> nix::Result<OwnedFd>,
    mut count: impl FnMut(Count),
) -> Result<Option<OwnedFd>, Failure> {
    while !is_stopping() {
        match accept() {
            Ok(connection) => {
                note_socket(&connection);
                count(Count::Wakeups);
                return Ok(Some(connection));
            }
            // A signal, not the listening socket: no wake-up.
            Err(Errno::EINTR) => {}
            Err(_) if is_stopping() => break,
            Err(errno) => match no_connection(errno, false, &mut count)? {
                NoConnection::Nobody => count(Count::Wakeups),
                NoConnection::Pause(errno) => {
                    log_pause(errno);
                    std::thread::sleep(BACK_OFF);
                }
                NoConnection::Shut => break,
            },
        }
    }
    Ok(None)
}

/// For a thread or a process that could not be made (`tried`): says so once, and gives others time to end.
pub fn back_off_from_spawning(tried: &str, error: impl Into<std::io::Error>) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        console::log(Failure::new(tried, error.into()).advise("its connection is closed (raise ulimit -u)"));
    });
    std::thread::sleep(BACK_OFF);
}

pub fn serve(connection: OwnedFd, worker: &mut Worker) {
    worker.opened();
    // The worker's own buffer goes from connection to connection: taking one costs no allocation.
    let mut io = BlockingIo { socket: &connection, buffer: std::mem::take(&mut worker.buffer) };
    let served = io.set_timeouts(worker.idle_timeout).and_then(|()| handle(&mut io, worker));
    worker.buffer = io.buffer;
    if served.is_err() {
        worker.count(Count::ClientErrors);
    }
    // Counted first: a client that sees the end finds it in the scoreboard.
    worker.closed();
    if is_passed_connections() { end(&connection) } else { send_end(&connection) }
}

/// The calls in which the handler waits. A thread sleeps in them; a coroutine lets others run meanwhile.
pub trait Io {
    /// The bytes received and not yet consumed are the first of it.
    fn buffer(&mut self) -> &mut Vec<u8>;

    /// Reads on among the first `filled` bytes of the buffer.
    fn parse(&mut self, reader: &mut RequestReader, filled: usize) -> (usize, Next) {
        reader.next(&self.buffer()[..filled])
    }

    /// Receives behind the first `filled` bytes of the buffer. `awaited` is a request, or the rest of one.
    ///
    /// # Errors
    /// EAGAIN when the idle time-out is over.
    fn receive(&mut self, filled: usize, awaited: Awaited) -> nix::Result<usize>;

    fn send_all(&mut self, flags: MsgFlags, bytes: &[u8]) -> Result<(), ConnectionLost>;

    fn spend(&mut self, cost: Cost) -> Result<(), ConnectionLost>;

    /// Ends our side, and reads on for a moment so that a refusal is not lost to a reset.
    fn linger(&mut self);
}

/// A connection whose client reset it, sent nonsense, or stopped in the middle.
pub struct ConnectionLost;

/// Serves a connection to its end, in a straight line.
pub fn handle(io: &mut impl Io, worker: &mut Worker) -> Result<(), ConnectionLost> {
    Handler { io, reader: RequestReader::default(), filled: 0 }.run(worker)
}

struct Handler<'a, I> {
    io: &'a mut I,
    reader: RequestReader,
    /// How many bytes of the buffer are not yet consumed.
    filled: usize,
}

impl<I: Io> Handler<'_, I> {
    fn run(&mut self, worker: &mut Worker) -> Result<(), ConnectionLost> {
        loop {
            let (used, next) = self.io.parse(&mut self.reader, self.filled);
            self.io.buffer().copy_within(used..self.filled, 0);
            self.filled -= used;
            match next {
                Next::Request(request) => {
                    if self.answer(request, worker)? == Persistence::Close {
                        return Ok(());
                    }
                }
                Next::Bad(status) => return self.refuse(status, worker),
                Next::MoreAfterContinue => self.io.send_all(MsgFlags::empty(), CONTINUE)?,
                Next::More => match self.io.receive(self.filled, self.awaited()) {
                    Ok(0) if self.awaited() == Awaited::Request => return Ok(()),
                    Ok(0) => return Err(ConnectionLost),
                    Ok(received) => self.filled += received,
                    // An idle client's connection is closed; one that stopped in the middle of a request gets a 408.
                    Err(Errno::EAGAIN) if self.awaited() == Awaited::Request => return Ok(()),
                    Err(Errno::EAGAIN) => return self.refuse(Status::RequestTimeout, worker),
                    Err(_) => return Err(ConnectionLost),
                },
            }
        }
    }

    /// Spends what the request costs and sends the answer. Returns what the client was told about the connection.
    fn answer(&mut self, mut request: Request, worker: &mut Worker) -> Result<Persistence, ConnectionLost> {
        self.io.spend(worker.draw_cost())?;
        if is_stopping() || is_leaving() {
            request.persistence = Persistence::Close;
        }
        // Counted first: a client that has its answer finds it in the scoreboard.
        worker.count(Count::Requests);
        let answer = worker.responses.ok(request);
        let is_last = request.persistence == Persistence::Close;
        self.io.send_all(if is_last { WITH_THE_END } else { MsgFlags::empty() }, answer)?;
        Ok(request.persistence)
    }

    /// Says why, and lingers.
    fn refuse(&mut self, status: Status, worker: &Worker) -> Result<(), ConnectionLost> {
        worker.count(Count::Requests);
        self.io.send_all(WITH_THE_END, &worker.responses.refusal(status))?;
        self.io.linger();
        Err(ConnectionLost)
    }

    fn awaited(&self) -> Awaited {
        if self.filled == 0 && !self.reader.is_inside_body() { Awaited::Request } else { Awaited::RestOfRequest }
    }
}

/// Makes room behind the first `filled` bytes.
pub fn make_room(buffer: &mut Vec<u8>, filled: usize) {
    if filled == buffer.len() {
        // The reader refuses a head that fills MAX_HEAD_BYTES, so the buffer never outgrows that.
        buffer.resize((2 * filled).clamp(FIRST_BUFFER_BYTES, MAX_HEAD_BYTES), 0);
    }
}

/// The socket's own time-outs, and calls that sleep.
struct BlockingIo<'a> {
    socket: &'a OwnedFd,
    buffer: Vec<u8>,
}

impl BlockingIo<'_> {
    fn set_timeouts(&self, timeout: Duration) -> Result<(), ConnectionLost> {
        let socket = SockRef::from(self.socket);
        let set = socket.set_read_timeout(Some(timeout)).and_then(|()| socket.set_write_timeout(Some(timeout)));
        set.map_err(|_| ConnectionLost)
    }
}

impl Io for BlockingIo<'_> {
    fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    fn receive(&mut self, filled: usize, _: Awaited) -> nix::Result<usize> {
        make_room(&mut self.buffer, filled);
        // EAGAIN: SO_RCVTIMEO is over.
        receive(self.socket, &mut self.buffer[filled..])
    }

    fn send_all(&mut self, flags: MsgFlags, bytes: &[u8]) -> Result<(), ConnectionLost> {
        // Fewer than all: SO_SNDTIMEO is over, and the client does not read.
        let is_sent = send_with(flags, self.socket, bytes).is_ok_and(|sent| sent == bytes.len());
        if is_sent { Ok(()) } else { Err(ConnectionLost) }
    }

    fn spend(&mut self, cost: Cost) -> Result<(), ConnectionLost> {
        cost.spend(has_given_up);
        Ok(())
    }

    fn linger(&mut self) {
        let until = Instant::now() + LINGER;
        send_end(self.socket);
        if self.set_timeouts(LINGER).is_ok() {
            while Instant::now() < until && matches!(receive(self.socket, &mut self.buffer), Ok(1..)) {}
        }
    }
}
