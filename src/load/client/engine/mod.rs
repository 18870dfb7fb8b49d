//! What carries the bytes: the mechanism under the client's loop, which decides what is sent and what an answer means.
//! [`epoll`] asks the kernel what is ready and then calls it for each connection; [`uring`] hands it all requests at
//! once and finds what arrived in memory. The loop is compiled once for each, so that neither pays for the other.

pub mod epoll;
pub mod uring;

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::errno::Errno;
use socket2::Socket;

use crate::load::options::plan::EngineName;
use crate::sys::uring::Uring;

/// The token of the stop event; no connection has it, since slots stay far below 2²⁹.
pub const STOP: u64 = u64::MAX - 2;

/// The slot of a connection, and in the upper half its generation: a report for a socket that was closed is stale.
pub fn token(slot: usize, generation: u32) -> u64 {
    u64::from(generation) << 32 | slot as u64
}

pub fn slot(token: u64) -> (usize, u32) {
    ((token & u64::from(u32::MAX)) as usize, (token >> 32) as u32)
}

/// Its number among those that [`Engine::new`] got, and its bytes.
pub type RequestBytes<'a> = (usize, &'a [u8]);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendProgress {
    Connecting,
    HalfSent,
    Sent,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct SocketReady {
    pub token: u64,
    /// The handshake is over, or there is room for more of a request.
    pub room: bool,
    /// [`Engine::receive`] has something.
    pub data: bool,
    /// The end of the stream, or an error, waits behind the data and is not reported a second time.
    pub ends: bool,
    /// What was taken by [`Engine::send`] failed after all.
    pub failed_send: Option<Errno>,
}

/// Sockets are named by their [`token`]. Each is handed over with [`Engine::begin`] and taken back with
/// [`Engine::close`] before it is closed.
pub trait Engine: Sized {
    /// The most bytes that one receive returns: where it returns so many, more may be there.
    const CAPACITY: usize;

    /// Made by the thread that calls everything below. `messages` is what will be sent; the stop event is reported with
    /// [`STOP`] each time that it is signalled.
    fn new(connections: usize, stop_event: BorrowedFd, messages: [&[u8]; 2]) -> nix::Result<Self>;

    fn begin(&mut self, token: u64, socket: &Socket, progress: SendProgress) -> nix::Result<()>;

    fn established(&mut self, token: u64, socket: &Socket) -> nix::Result<()>;

    /// Sends a part of the message and returns how many bytes were taken: none when there is no room. A socket that is
    /// not yet handed over may be sent on too.
    fn send(&mut self, token: u64, socket: &Socket, message: RequestBytes, part: Range<usize>) -> nix::Result<usize>;

    fn await_room(&mut self, token: u64, socket: &Socket) -> nix::Result<()>;

    fn close(&mut self, token: u64, socket: &Socket);

    /// Waits until something is ready or the time is up; `None` waits for ever.
    fn wait(&mut self, timeout: Option<Duration>) -> nix::Result<()>;

    fn next(&mut self) -> Option<SocketReady>;

    /// Takes what has arrived for the socket last reported: the number of bytes now at the beginning of
    /// [`Engine::data`], 0 at the end of the stream. The error is EAGAIN when there is nothing more; otherwise what
    /// became of the connection.
    fn receive(&mut self, token: u64, socket: &Socket) -> nix::Result<usize>;

    fn data(&self) -> &[u8];
}

/// The engine that a run can have: what was asked for, or epoll and why.
pub fn choose(asked: EngineName) -> (EngineName, Option<String>) {
    if asked == EngineName::IoUring
        && let Err(why) = Uring::probe()
    {
        return (EngineName::Epoll, Some(format!("--engine io-uring: {why}; epoll is used instead")));
    }
    (asked, None)
}
