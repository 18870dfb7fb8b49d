//! One non-blocking connection: it goes on with its [`Conversation`] as far as it can whenever its socket is ready.
//!
//! An idle connection owns no buffer. Bytes are received into the event loop's one buffer; only what is left over
//! (half a request, an answer the socket would not take) is kept here until the next step.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};

use super::conversation::{Conversation, GATHER_BYTES, ServingState};
use super::worker::Worker;
use crate::http::MAX_HEAD_BYTES;
use crate::sys::fd::until_uninterrupted;
use crate::work::Cost;

/// Room for what one receive brings, after what may be left over from the one before.
const BUFFER_BYTES: usize = 4 * MAX_HEAD_BYTES;

/// A client that sends without end gets this many receives, and then it is the others' turn.
pub const RECEIVES_PER_STEP: usize = 16;

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

/// What is done next with a connection, by a worker with its buffers.
pub type TakeStep<S = OwnedFd> = fn(&mut Connection<S>, &mut Worker, &mut SharedBuffers) -> Step;

/// What a connection waits for between two steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    Request,
    /// Part of a request has arrived, and it is the client's turn.
    RestOfRequest,
    Work,
    /// That the client takes its answer.
    RoomForAnswer,
    /// It lingers.
    EndOfStream,
}

/// Why a loop goes on with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Its socket is ready, or it is its turn again.
    Ready,
    WorkDone,
    /// Half a request and then silence.
    TimedOut,
}

/// What a reactor serves step by step. (Schmidt's word, in "Reactor", Pattern Languages of Program Design, 1995.)
pub trait EventHandler: AsFd {
    /// What all of one loop use, one after another.
    type Shared: Default;

    fn go_on(&mut self, wake: Wake, worker: &mut Worker, shared: &mut Self::Shared) -> Step;

    /// The socket has become readable; `end_announced` when its other end has been closed, too.
    fn mark_readable(&mut self, end_announced: bool);

    fn awaited(&self) -> Awaited;

    /// Its socket has something for us, or takes more from us where that is what it waits for, whatever has been
    /// reported so far.
    fn is_ready(&self) -> bool {
        let events = if self.awaited() == Awaited::RoomForAnswer { PollFlags::POLLOUT } else { PollFlags::POLLIN };
        poll(&mut [PollFd::new(self.as_fd(), events)], PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }
}

#[derive(Debug)]
pub struct Connection<S: AsRawFd = OwnedFd> {
    socket: S,
    conversation: Conversation,
    /// Received but not consumed.
    left_over: Vec<u8>,
    /// Answered but not sent.
    unsent: Vec<u8>,
    /// False when the last receive emptied the socket: the next edge will tell.
    readable: bool,
    /// The client has said that it will send no more; behind its last byte stands the end of the stream.
    end_announced: bool,
}

impl<S: AsFd + AsRawFd> Connection<S> {
    pub fn socket(&self) -> &S {
        &self.socket
    }

    pub fn step(&mut self, worker: &mut Worker, scratch: &mut SharedBuffers) -> Step {
        self.step_or_lose(worker, scratch).unwrap_or_else(|_| {
            // All connections share the buffer: what cannot be sent to this client must not go to the next.
            scratch.output.clear();
            Step::Close { lost: true }
        })
    }

    pub fn finish_wait(&mut self, worker: &mut Worker, scratch: &mut SharedBuffers) -> Step {
        self.conversation.finish_work(worker, &mut scratch.output);
        self.step(worker, scratch)
    }

    /// As [`Connection::finish_wait`], for a worker that answers and reads nothing.
    pub fn finish_wait_and_send(&mut self, worker: &Worker, scratch: &mut SharedBuffers) -> Step {
        self.conversation.finish_work(worker, &mut scratch.output);
        if self.flush(scratch).is_err() {
            scratch.output.clear();
            return Step::Close { lost: true };
        }
        match self.conversation.state() {
            _ if !self.unsent.is_empty() => Step::AwaitOutput,
            ServingState::Closing => Step::Close { lost: false },
            // They came with the request that was answered, and no report will tell of them.
            _ if !self.left_over.is_empty() => Step::Yield,
            _ => Step::AwaitInput,
        }
    }

    /// Half a request and then silence: says so, and closes.
    pub fn time_out(&mut self, worker: &mut Worker, scratch: &mut SharedBuffers) -> Step {
        self.conversation.time_out(worker, &mut scratch.output);
        self.step(worker, scratch)
    }

    /// It has been silent for too long, unless something has come that nobody has looked at yet: ends it.
    pub fn end_silence(&mut self, worker: &mut Worker, scratch: &mut SharedBuffers) -> Step {
        match self.awaited() {
            Awaited::EndOfStream => Step::Close { lost: true },
            _ if self.is_ready() => {
                self.mark_readable(false);
                self.step(worker, scratch)
            }
            Awaited::RestOfRequest => self.time_out(worker, scratch),
            awaited => Step::Close { lost: awaited == Awaited::RoomForAnswer },
        }
    }

    fn step_or_lose(&mut self, worker: &mut Worker, scratch: &mut SharedBuffers) -> nix::Result<Step> {
        match self.conversation.state() {
            ServingState::Lingering => return self.discard(scratch),
            // Answers come in the order of the requests, so what arrives now is for later. (While earlier answers
            // are unsent, the wait has not begun.)
            ServingState::Waiting(..) if self.unsent.is_empty() => return Ok(Step::AwaitInput),
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
                Ok(0) => return Ok(Step::Close { lost: filled > 0 || self.conversation.is_inside_body() }),
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
            let mut needs_more = false;
            if self.unsent.is_empty() {
                let received = &scratch.input[..*filled];
                let used = self.conversation.answer_requests(received, worker, &mut scratch.output);
                needs_more = self.conversation.state() == ServingState::Serving && scratch.output.len() < GATHER_BYTES;
                scratch.input.copy_within(used..*filled, 0);
                *filled -= used;
            }
            self.flush(scratch)?;
            if !self.unsent.is_empty() {
                return Ok(Some(Step::AwaitOutput));
            }
            match self.conversation.state() {
                ServingState::Serving if needs_more => return Ok(None),
                ServingState::Serving => {}
                ServingState::Waiting(cost) => return Ok(Some(Step::AwaitWork(cost))),
                ServingState::Closing => return Ok(Some(Step::Close { lost: false })),
                ServingState::Refusing | ServingState::Lingering => {
                    self.conversation.linger();
                    send_end(&self.socket);
                    return Ok(Some(Step::Linger));
                }
            }
        }
    }

    fn flush(&mut self, scratch: &mut SharedBuffers) -> nix::Result<()> {
        let is_last = matches!(self.conversation.state(), ServingState::Closing | ServingState::Refusing);
        let flags = if is_last { WITH_THE_END } else { MsgFlags::empty() };
        let sent = send_with(flags, &self.socket, &self.unsent)?;
        self.unsent.drain(..sent);
        if self.unsent.is_empty() {
            // Gives the memory back: an idle connection owns no buffer.
            self.unsent = Vec::new();
            let sent = send_with(flags, &self.socket, &scratch.output)?;
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

impl<S: AsFd + AsRawFd> EventHandler for Connection<S> {
    type Shared = SharedBuffers;

    fn go_on(&mut self, wake: Wake, worker: &mut Worker, scratch: &mut SharedBuffers) -> Step {
        match wake {
            Wake::Ready => self.step(worker, scratch),
            Wake::WorkDone => self.finish_wait(worker, scratch),
            Wake::TimedOut => self.time_out(worker, scratch),
        }
    }

    fn mark_readable(&mut self, end_announced: bool) {
        self.readable = true;
        self.end_announced |= end_announced;
    }

    fn awaited(&self) -> Awaited {
        match self.conversation.state() {
            ServingState::Lingering => Awaited::EndOfStream,
            _ if !self.unsent.is_empty() => Awaited::RoomForAnswer,
            ServingState::Waiting(_) => Awaited::Work,
            _ if !self.left_over.is_empty() || self.conversation.is_inside_body() => Awaited::RestOfRequest,
            _ => Awaited::Request,
        }
    }
}

/// Takes over a socket that is in non-blocking mode.
impl<S: AsRawFd> From<S> for Connection<S> {
    fn from(socket: S) -> Connection<S> {
        Connection {
            socket,
            conversation: Conversation::default(),
            left_over: Vec::new(),
            unsent: Vec::new(),
            readable: true,
            end_announced: false,
        }
    }
}

impl<S: AsFd + AsRawFd> AsFd for Connection<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Whoever drops it has counted it as closed: a client that sees the end finds it in the scoreboard.
impl<S: AsRawFd> Drop for Connection<S> {
    fn drop(&mut self) {
        if self.conversation.state() == ServingState::Closing {
            send_end(&self.socket);
        }
    }
}

/// Ends the connection for the client even if another process holds a copy of the socket: until the last copy is
/// closed, a close sends nothing (close(2), shutdown(2)).
pub fn end(socket: impl AsFd) {
    // It fails only on a connection that is gone already.
    let _ = shutdown(socket.as_fd().as_raw_fd(), Shutdown::Both);
}

/// For the last bytes of a connection: the kernel keeps them until [`send_end`], so that both are one segment
/// (MSG_MORE, send(2)).
pub const WITH_THE_END: MsgFlags = MsgFlags::from_bits_retain(libc::MSG_MORE);

/// Tells the client that nothing more comes. A close would tell it too, but it throws away what is still to be sent
/// when the client has sent more than we have read.
pub fn send_end(socket: &impl AsRawFd) {
    // It fails only on a connection that is gone already.
    let _ = shutdown(socket.as_raw_fd(), Shutdown::Write);
}

/// Receives what is there, 0 bytes at the end of the stream; EAGAIN when there is nothing yet.
pub fn receive(socket: &impl AsRawFd, buffer: &mut [u8]) -> nix::Result<usize> {
    until_uninterrupted(|| recv(socket.as_raw_fd(), buffer, MsgFlags::empty()))
}

/// How many of the bytes the socket took; fewer than all when it is full.
pub fn send_some(socket: &impl AsRawFd, bytes: &[u8]) -> nix::Result<usize> {
    send_with(MsgFlags::empty(), socket, bytes)
}

pub fn send_with(flags: MsgFlags, socket: &impl AsRawFd, bytes: &[u8]) -> nix::Result<usize> {
    let (mut sent, flags) = (0, flags | MsgFlags::MSG_NOSIGNAL);
    while sent < bytes.len() {
        match until_uninterrupted(|| send(socket.as_raw_fd(), &bytes[sent..], flags)) {
            Ok(n) => sent += n,
            Err(Errno::EAGAIN) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(sent)
}
