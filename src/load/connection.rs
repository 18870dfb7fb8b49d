//! One connection of the client: what it is doing, for which request, and until when that may take.

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::load::response::Reader;

/// What a connection is doing:
///
/// ```text
///            connect                 established            sent              answered
/// Closed ──────────────► Connecting ─────────────► Writing ───────► Reading ───────────► Idle ──► Writing …
///    ▲                       │ refused                                 │ `Connection: close`
///    │        later          ▼                                         ▼            FIN
///    └─────────────────── BackingOff                                Closing ───────────────► Closed
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Closed,
    Connecting,
    /// Established, with nothing outstanding.
    Idle,
    /// The socket buffer took only a part of the request, or nothing yet.
    Writing,
    Reading,
    /// The server said that it closes; it goes first, so that the TIME_WAIT stays at its side.
    Closing,
    /// After a failed connect(2) or send(2): a dead server is not asked a hundred thousand times a second.
    BackingOff,
}

pub struct Connection {
    pub socket: Option<Socket>,
    pub state: State,
    /// Counts the sockets of this slot; a report for an earlier one is stale.
    pub generation: u32,
    /// When the request in hand was due; it is in hand until it is answered, failed or given up.
    pub due_ns: Option<u64>,
    pub sent_ns: u64,
    /// When connect(2) was called.
    pub began_ns: u64,
    /// When the present state has lasted too long; `u64::MAX` for never.
    pub deadline_ns: u64,
    /// Bytes of the request that the kernel has taken.
    pub written: usize,
    /// Answers on this connection.
    pub answers: u64,
    /// Failures since the last answer.
    pub failures: u32,
    pub reader: Reader,
}

impl Default for Connection {
    fn default() -> Connection {
        Connection {
            socket: None,
            state: State::Closed,
            generation: 0,
            due_ns: None,
            sent_ns: 0,
            began_ns: 0,
            deadline_ns: u64::MAX,
            written: 0,
            answers: 0,
            failures: 0,
            reader: Reader::default(),
        }
    }
}

impl Connection {
    /// Whether the three-way handshake is behind it.
    pub fn is_established(&self) -> bool {
        matches!(self.state, State::Idle | State::Writing | State::Reading | State::Closing)
    }

    /// Whether the request in hand has begun its way to the server.
    pub fn has_sent(&self) -> bool {
        matches!(self.state, State::Writing | State::Reading)
    }

    /// Writes what the kernel takes of the rest of the request; EAGAIN is no failure. True when all of it is
    /// gone.
    pub fn write(&mut self, request: &[u8]) -> Result<bool, Errno> {
        let Some(socket) = &self.socket else { return Err(Errno::ENOTCONN) };
        // MSG_NOSIGNAL: a closed peer is an EPIPE to count, not a SIGPIPE to die of (send(2)).
        match send(socket.as_raw_fd(), &request[self.written..], MsgFlags::MSG_NOSIGNAL) {
            Ok(written) => self.written += written,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        Ok(self.written == request.len())
    }

    /// What the kernel holds for us: the number of bytes, 0 at the end of the stream, EAGAIN for nothing yet.
    pub fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let Some(socket) = &self.socket else { return Err(Errno::ENOTCONN) };
        recv(socket.as_raw_fd(), buffer, MsgFlags::empty())
    }
}

/// A non-blocking socket on its way to `address`.
pub fn connect(address: &SockAddr, no_delay: bool) -> Result<Socket, Errno> {
    let open = || {
        let socket = Socket::new(
            Domain::from(i32::from(address.family())),
            Type::STREAM.nonblocking().cloexec(),
            Some(Protocol::TCP),
        )?;
        if no_delay {
            socket.set_tcp_nodelay(true)?;
        }
        Ok(socket)
    };
    let socket: Socket = open().map_err(errno)?;
    match socket.connect(address).map_err(errno) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
        Err(errno) => Err(errno),
    }
}

/// The errno behind an error of socket2.
pub fn errno(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
