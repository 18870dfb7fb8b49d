//! One non-blocking connection: a state machine that goes on as far as it can whenever its socket is ready.
//!
//! An idle connection owns no buffer. Bytes are received into the event loop's one buffer; only what is left over
//! (half a request, an answer the socket would not take) is kept here until the next step.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};

use super::worker::Worker;
use crate::http::{CONTINUE, MAX_HEAD_BYTES, Next, Persistence, Request, RequestReader, Status};
use crate::scoreboard::Count;
use crate::sys::fd::until_uninterrupted;
use crate::sys::signal::{has_given_up, is_leaving, is_stopping};
use crate::work::Cost;

/// Room for what one receive brings, after what may be left over from the one before.
const BUFFER_BYTES: usize = 4 * MAX_HEAD_BYTES;

/// Answers to pipelined requests are gathered up to here before they are sent.
const GATHER_BYTES: usize = 64 * 1024;

/// A client that sends without end gets this many receives, and then it is the others' turn.
const RECEIVES_PER_STEP: usize = 16;

/// How long to go on reading after a refusal, so that the client gets to see it: closing a socket with unread
/// bytes sends a reset, which overtakes the answer (RFC 9112, section 9.6).
pub const LINGER: Duration = Duration::from_secs(1);

/// What all connections of one event loop use, one after another.
pub struct SharedBuffers {
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Default for SharedBuffers {
    fn default() -> SharedBuffers {
        SharedBuffers { input: vec![0; BUFFER_BYTES], output: Vec::with_capacity(2 * GATHER_BYTES) }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Wait until the socket has more for us.
    AwaitInput,
    /// Wait until the socket takes more from us.
    AwaitOutput,
    /// The request waits, for I/O or for a helper thread: call [`Connection::finish_wait`] when this is spent.
    AwaitWork(Cost),
    /// It could go on, but others wait: come back to it after them.
    Yield,
    /// The refusal is sent; read what still comes for a moment, then close.
    Linger,
    /// Close. `lost` when the client reset it, stopped in the middle, or sent nonsense.
    Close { lost: bool },
}

#[derive(Debug, PartialEq, Eq)]
enum ServingState {
    Serving,
    /// A request waits; the next one is not looked at before it is answered.
    Waiting(Request, Cost),
    Closing,
    Refusing,
    Lingering,
}

#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    state: ServingState,
    reader: RequestReader,
    /// Received but not consumed.
    left_over: Vec<u8>,
    /// Answered but not sent.
    unsent: Vec<u8>,
    /// False when the last receive emptied the socket: the next edge will tell.
    readable: bool,
    /// The client has said that it will send no more; behind its last byte stands the end of the stream.
    end_announced: bool,
}

impl Connection {
    /// Takes over a socket that is in non-blocking mode.
    pub fn new(socket: OwnedFd) -> Connection {
        Connection {
            socket,
            state: ServingState::Serving,
            reader: RequestReader::default(),
            left_over: Vec::new(),
            unsent: Vec::new(),
            readable: true,
            end_announced: false,
        }
    }

    /// The socket has become readable; `end_announced` when its other end has been closed, too.
    pub fn mark_readable(&mut self, end_announced: bool) {
        self.readable = true;
        self.end_announced |= end_announced;
    }

    pub fn is_waiting(&self) -> bool {
        matches!(self.state, ServingState::Waiting(..))
    }

    pub fn is_lingering(&self) -> bool {
        self.state == ServingState::Lingering
    }

    pub fn is_between_requests(&self) -> bool {
        self.state == ServingState::Serving && !self.has_unsent() && !self.has_half_a_request()
    }

    /// Part of a request has arrived, and it is the client's turn.
    pub fn has_half_a_request(&self) -> bool {
        let has_part = !self.left_over.is_empty() || self.reader.is_inside_body();
        self.state == ServingState::Serving && !self.has_unsent() && has_part
    }

    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Its socket has something for us, or takes more from us where that is what it waits for, whatever has been reported
    /// so far.
    pub fn is_ready(&self) -> bool {
        let awaited = if self.has_unsent() { PollFlags::POLLOUT } else { PollFlags::POLLIN };
        poll(&mut [PollFd::new(self.socket.as_fd(), awaited)], PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    pub fn step(&mut self, worker: &mut Worker, scratch: &mut SharedBuffers) -> Step {
        self.step_or_lose(worker, scratch).unwrap_or_else(|_| {
            // All connections share the buffer: what cannot be sent to this client must not go to the next.
            scratch.output.clear();
            Step::Close { lost: true }
        })
    }

    pub fn finish_wait(&mut self, worker: &mut Worker, scratch: &mut SharedBuffers) -> Step {
        self.answer_waiting(worker, scratch);
        self.step(worker, scratch)
    }

    /// As [`Connection::finish_wait`], for a worker that answers and reads nothing.
    pub fn finish_wait_and_send(&mut self, worker: &Worker, scratch: &mut SharedBuffers) -> Step {
        self.answer_waiting(worker, scratch);
        if self.flush(scratch).is_err() {
            scratch.output.clear();
            return Step::Close { lost: true };
        }
        match self.state {
            _ if self.has_unsent() => Step::AwaitOutput,
            ServingState::Closing => Step::Close { lost: false },
            // They came with the request that was answered, and no report will tell of them.
            _ if !self.left_over.is_empty() => Step::Yield,
            _ => Step::AwaitInput,
        }
    }

    fn answer_waiting(&mut self, worker: &Worker, scratch: &mut SharedBuffers) {
        if let ServingState::Waiting(request, _) = self.state {
            self.state = ServingState::Serving;
            self.answer(request, worker, scratch);
        }
    }

    /// Half a request and then silence: says so, and closes.
    pub fn time_out(&mut self, worker: &mut Worker, scratch: &mut SharedBuffers) -> Step {
        self.refuse(Status::RequestTimeout, worker, scratch);
        self.step(worker, scratch)
    }

    fn step_or_lose(&mut self, worker: &mut Worker, scratch: &mut SharedBuffers) -> nix::Result<Step> {
        match self.state {
            ServingState::Lingering => return self.discard(scratch),
            // Answers come in the order of the requests, so what arrives now is for later. (While earlier answers
            // are unsent, the wait has not begun.)
            ServingState::Waiting(..) if !self.has_unsent() => return Ok(Step::AwaitInput),
            _ => {}
        }
        let mut filled = self.left_over.len();
        scratch.input[..filled].copy_from_slice(&self.left_over);
        self.left_over.clear();
        for _ in 0..RECEIVES_PER_STEP {
            if let Some(step) = self.answer_requests(&mut filled, worker, scratch)? {
                self.keep(&scratch.input[..filled]);
                return Ok(step);
            }
            if !self.readable {
                self.keep(&scratch.input[..filled]);
                return Ok(Step::AwaitInput);
            }
            match receive(&self.socket, &mut scratch.input[filled..]) {
                // Everything that came before the end of the stream has been answered.
                Ok(0) => return Ok(Step::Close { lost: filled > 0 || self.reader.is_inside_body() }),
                Ok(received) => {
                    filled += received;
                    // A short receive has emptied a stream socket (epoll(7), question 9), unless the end of the
                    // stream stands behind the bytes.
                    self.readable = self.end_announced || filled == scratch.input.len();
                }
                Err(Errno::EAGAIN) => self.readable = false,
                Err(errno) => return Err(errno),
            }
        }
        self.keep(&scratch.input[..filled]);
        Ok(Step::Yield)
    }

    /// Answers the whole requests among the first `filled` bytes and moves the rest to the front. `None` when
    /// it needs more bytes to go on.
    fn answer_requests(
        &mut self,
        filled: &mut usize,
        worker: &mut Worker,
        scratch: &mut SharedBuffers,
    ) -> nix::Result<Option<Step>> {
        loop {
            let needs_more = self.state == ServingState::Serving
                && self.unsent.is_empty()
                && self.gather_answers(filled, worker, scratch);
            self.flush(scratch)?;
            if !self.unsent.is_empty() {
                return Ok(Some(Step::AwaitOutput));
            }
            match self.state {
                ServingState::Serving if needs_more => return Ok(None),
                ServingState::Serving => {}
                ServingState::Waiting(_, cost) => return Ok(Some(Step::AwaitWork(cost))),
                ServingState::Closing => return Ok(Some(Step::Close { lost: false })),
                ServingState::Refusing | ServingState::Lingering => {
                    self.state = ServingState::Lingering;
                    // It fails only on a connection that is gone already.
                    let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Write);
                    return Ok(Some(Step::Linger));
                }
            }
        }
    }

    /// Answers requests until the bytes, or the room for answers, run out or a request changes the state. True
    /// when the bytes ran out.
    fn gather_answers(&mut self, filled: &mut usize, worker: &mut Worker, scratch: &mut SharedBuffers) -> bool {
        let mut at = 0;
        let mut needs_more = false;
        while self.state == ServingState::Serving && !needs_more && scratch.output.len() < GATHER_BYTES {
            let (used, next) = self.reader.next(&scratch.input[at..*filled]);
            at += used;
            match next {
                Next::More => needs_more = true,
                Next::MoreAfterContinue => scratch.output.extend_from_slice(CONTINUE),
                Next::Bad(status) => self.refuse(status, worker, scratch),
                Next::Request(request) => {
                    let cost = worker.draw_cost();
                    if (worker.is_free_during)(cost) {
                        self.state = ServingState::Waiting(request, cost);
                    } else {
                        // The others wait as well: this is what `block` and `spin` do to an event loop.
                        cost.spend(has_given_up);
                        self.answer(request, worker, scratch);
                    }
                }
            }
        }
        scratch.input.copy_within(at..*filled, 0);
        *filled -= at;
        needs_more
    }

    fn answer(&mut self, mut request: Request, worker: &Worker, scratch: &mut SharedBuffers) {
        if is_stopping() || is_leaving() {
            request.persistence = Persistence::Close;
        }
        if request.persistence == Persistence::Close {
            self.state = ServingState::Closing;
        }
        scratch.output.extend_from_slice(worker.responses.ok(request));
        worker.count(Count::Requests);
    }

    fn refuse(&mut self, status: Status, worker: &Worker, scratch: &mut SharedBuffers) {
        self.state = ServingState::Refusing;
        scratch.output.extend_from_slice(&worker.responses.refusal(status));
        worker.count(Count::Requests);
    }

    fn flush(&mut self, scratch: &mut SharedBuffers) -> nix::Result<()> {
        let sent = send_some(&self.socket, &self.unsent)?;
        self.unsent.drain(..sent);
        if self.unsent.is_empty() {
            // Gives the memory back: an idle connection owns no buffer.
            self.unsent = Vec::new();
            let sent = send_some(&self.socket, &scratch.output)?;
            self.unsent.extend_from_slice(&scratch.output[sent..]);
        } else {
            self.unsent.extend_from_slice(&scratch.output);
        }
        scratch.output.clear();
        Ok(())
    }

    fn keep(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            self.left_over = Vec::new();
        } else {
            self.left_over.extend_from_slice(bytes);
        }
    }

    fn discard(&mut self, scratch: &mut SharedBuffers) -> nix::Result<Step> {
        for _ in 0..RECEIVES_PER_STEP {
            match receive(&self.socket, &mut scratch.input) {
                Ok(0) => return Ok(Step::Close { lost: true }),
                Ok(_) => {}
                Err(Errno::EAGAIN) => return Ok(Step::Linger),
                Err(errno) => return Err(errno),
            }
        }
        Ok(Step::Yield)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Ends the connection for the client even if another process holds a copy of the socket: until the last copy is
/// closed, a close sends nothing (close(2), shutdown(2)).
pub(super) fn end(socket: impl AsFd) {
    // It fails only on a connection that is gone already.
    let _ = shutdown(socket.as_fd().as_raw_fd(), Shutdown::Both);
}

/// Receives what is there, 0 bytes at the end of the stream; EAGAIN when there is nothing yet.
pub fn receive(socket: &impl AsRawFd, buffer: &mut [u8]) -> nix::Result<usize> {
    until_uninterrupted(|| recv(socket.as_raw_fd(), buffer, MsgFlags::empty()))
}

/// How many of the bytes the socket took; fewer than all when it is full.
pub fn send_some(socket: &impl AsRawFd, bytes: &[u8]) -> nix::Result<usize> {
    let mut sent = 0;
    while sent < bytes.len() {
        match until_uninterrupted(|| send(socket.as_raw_fd(), &bytes[sent..], MsgFlags::MSG_NOSIGNAL)) {
            Ok(n) => sent += n,
            Err(Errno::EAGAIN) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(sent)
}
