//! One connection of the client: what it is doing, for which request, and until when that may take.

use std::collections::VecDeque;
use std::net::SocketAddr;

use socket2::Socket;

use crate::load::client::engine::token;
use crate::load::response::ResponseReader;

/// ```text
///            connect                 established            sent              answered
/// Closed ──────────────► Connecting ─────────────► Writing ───────► Reading ───────────► Idle ──► Writing …
///    ▲                       │ refused                                 │ `Connection: close`
///    │        later          ▼                                         ▼            FIN
///    └─────────────────── BackingOff                                Closing ───────────────► Closed
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ConnectionState {
    #[default]
    Closed,
    Connecting,
    Idle,
    /// The socket buffer took only a part of the request, or nothing yet.
    Writing,
    Reading,
    /// The server said that it closes; it goes first, so that the TIME_WAIT stays at its side.
    Closing,
    /// After a failed connect(2) or send(2): a dead server is not asked a hundred thousand times a second.
    BackingOff,
}

#[derive(Default)]
pub struct ClientConnection {
    pub socket: Option<Socket>,
    pub state: ConnectionState,
    /// Counts the sockets of this slot: a report for an earlier one is stale.
    pub generation: u32,
    /// When the outstanding requests were due: those that are neither answered nor failed nor given up, in their order.
    pub due_ns: VecDeque<u64>,
    pub sent_ns: u64,
    /// The outstanding request was sent before, at [`sent_ns`](Self::sent_ns), on a connection that the server closed.
    pub retried: bool,
    /// The time of the first byte of the answer that is coming in; 0 before it.
    pub first_byte_ns: u64,
    pub began_ns: u64,
    pub deadline_ns: u64,
    /// Bytes that the kernel has taken, of the requests that were outstanding when it began to send.
    pub written: usize,
    pub to_write: usize,
    pub answers: u64,
    pub worker: Option<u32>,
    /// Those that count for `--requests-per-connection`: a session goes on when the server closed in between.
    pub of_session: u64,
    pub failures: u32,
    pub reader: ResponseReader,
}

impl ClientConnection {
    pub fn is_established(&self) -> bool {
        !matches!(self.state, ConnectionState::Closed | ConnectionState::Connecting | ConnectionState::BackingOff)
    }

    /// Whether the kernel has finished the handshake, seen or not: getpeername(2) knows no peer before.
    pub fn is_connected(&self) -> bool {
        self.socket.as_ref().is_some_and(|socket| socket.peer_addr().is_ok())
    }

    pub fn has_request(&self) -> bool {
        !self.due_ns.is_empty()
    }

    /// Whether a byte of the outstanding requests may have reached the server.
    pub fn has_sent(&self) -> bool {
        self.retried || matches!(self.state, ConnectionState::Writing | ConnectionState::Reading)
    }

    /// Whether its first request is sent and no byte of an answer has come.
    pub fn awaits_first_answer(&self) -> bool {
        self.answers == 0 && self.first_byte_ns == 0 && self.has_sent()
    }

    /// Where the server sees it come from; the kernel knows it still after a reset.
    pub fn client(&self) -> Option<SocketAddr> {
        self.socket.as_ref()?.local_addr().ok()?.as_socket()
    }

    pub fn token(&self, slot: usize) -> u64 {
        token(slot, self.generation)
    }
}
