//! The blocking handler: accept a connection, serve it to its end, and do nothing else meanwhile.
//!
//! Its system calls are the plain ones: accept, recv, send, close. Time-outs are the socket's own (SO_RCVTIMEO,
//! SO_SNDTIMEO), and a worker that is to stop finds its sockets shut ([`crate::sys::signal`]), so nothing here
//! polls or races.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Once;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, SockFlag, recv, send, shutdown};
use socket2::SockRef;

use super::accept::{BACK_OFF, NoConnection, accept_next, log_pause, no_connection};
use super::connection::{LINGER, end, receive};
use super::listener::Listener;
use super::member::is_passed_connections;
use super::worker::Worker;
use crate::console;
use crate::failure::Failure;
use crate::http::{CONTINUE, MAX_HEAD_BYTES, Next, Persistence, Request, RequestReader, Status};
use crate::report::AcceptCounts;
use crate::scoreboard::Count;
use crate::sys::fd::until_uninterrupted;
use crate::sys::signal::{has_given_up, is_stopping, note_socket};

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
    let accepted = next_connection(|| listener.accept(), |count| counts.count(count))?;
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
    let buffer = std::mem::take(&mut worker.buffer);
    let mut served = BlockingConnection { socket: &connection, reader: RequestReader::default(), buffer, filled: 0 };
    if served.run(worker).is_err() {
        worker.count(Count::ClientErrors);
    }
    worker.buffer = served.buffer;
    if is_passed_connections() {
        end(&connection);
    }
    worker.closed();
}

/// A connection whose client reset it, sent nonsense, or stopped in the middle.
struct ConnectionLost;

struct BlockingConnection<'a> {
    socket: &'a OwnedFd,
    reader: RequestReader,
    /// The bytes not yet consumed are the first `filled` of it.
    buffer: Vec<u8>,
    filled: usize,
}

impl BlockingConnection<'_> {
    fn run(&mut self, worker: &mut Worker) -> Result<(), ConnectionLost> {
        if self.buffer.is_empty() {
            self.buffer.resize(FIRST_BUFFER_BYTES, 0);
        }
        self.set_timeouts(worker.idle_timeout)?;
        loop {
            let (used, next) = self.reader.next(&self.buffer[..self.filled]);
            self.buffer.copy_within(used..self.filled, 0);
            self.filled -= used;
            match next {
                Next::Request(request) => {
                    if self.answer(request, worker)? == Persistence::Close {
                        return Ok(());
                    }
                }
                Next::Bad(status) => return self.refuse(status, worker),
                Next::MoreAfterContinue => self.send_all(CONTINUE)?,
                Next::More => match self.receive() {
                    Ok(0) if self.is_between_requests() => return Ok(()),
                    Ok(0) => return Err(ConnectionLost),
                    Ok(received) => self.filled += received,
                    // SO_RCVTIMEO is over. An idle client's connection is closed; a client that stopped in the middle
                    // of a request gets a 408.
                    Err(Errno::EAGAIN) if self.is_between_requests() => return Ok(()),
                    Err(Errno::EAGAIN) => return self.refuse(Status::RequestTimeout, worker),
                    Err(_) => return Err(ConnectionLost),
                },
            }
        }
    }

    /// Spends what the request costs and sends the answer. Returns what the client was told about the connection.
    fn answer(&self, mut request: Request, worker: &mut Worker) -> Result<Persistence, ConnectionLost> {
        worker.draw_cost().spend(has_given_up);
        if is_stopping() {
            request.persistence = Persistence::Close;
        }
        // Counted first: a client that has its answer finds it in the scoreboard.
        worker.count(Count::Requests);
        self.send_all(worker.responses.ok(request))?;
        Ok(request.persistence)
    }

    /// Says why, ends our side, and reads on for a moment so that the answer is not lost to a reset.
    fn refuse(&self, status: Status, worker: &Worker) -> Result<(), ConnectionLost> {
        worker.count(Count::Requests);
        self.send_all(&worker.responses.refusal(status))?;
        let until = Instant::now() + LINGER;
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Write);
        self.set_timeouts(LINGER)?;
        let mut rest = [0; 4096];
        while Instant::now() < until && matches!(recv(self.socket.as_raw_fd(), &mut rest, MsgFlags::empty()), Ok(1..)) {
        }
        Err(ConnectionLost)
    }

    fn is_between_requests(&self) -> bool {
        self.filled == 0 && !self.reader.is_inside_body()
    }

    fn receive(&mut self) -> nix::Result<usize> {
        if self.filled == self.buffer.len() {
            // The reader refuses a head that fills MAX_HEAD_BYTES, so the buffer never outgrows that.
            self.buffer.resize((2 * self.filled).min(MAX_HEAD_BYTES), 0);
        }
        receive(self.socket, &mut self.buffer[self.filled..])
    }

    fn send_all(&self, mut bytes: &[u8]) -> Result<(), ConnectionLost> {
        while !bytes.is_empty() {
            let sent = until_uninterrupted(|| send(self.socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL));
            // EAGAIN is SO_SNDTIMEO: a client that does not read.
            bytes = &bytes[sent.map_err(|_| ConnectionLost)?..];
        }
        Ok(())
    }

    fn set_timeouts(&self, timeout: Duration) -> Result<(), ConnectionLost> {
        let socket = SockRef::from(self.socket);
        let set = socket.set_read_timeout(Some(timeout)).and_then(|()| socket.set_write_timeout(Some(timeout)));
        set.map_err(|_| ConnectionLost)
    }
}
