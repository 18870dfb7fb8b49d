//! One background connection: its kind, and what became of it.

use nix::errno::Errno;
use socket2::{Domain, Socket};

use crate::load::client::route::Route;
use crate::load::options::background::Background;
use crate::load::response::ResponseReader;
use crate::report::SlowCounts;
use crate::sys::socket::{receive_now, send_now};
use crate::units::monotonic_ns;

/// What a slow reader asks the kernel to hold for it: less than the kernel's least, which it then gets (tcp(7)).
const SMALL_BUFFER_BYTES: usize = 1;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BackgroundKind {
    #[default]
    Idle,
    SlowSend,
    SlowRead,
    HalfOpen,
}

impl BackgroundKind {
    /// How many of each are wanted, and its name in the report, in the order in which they are opened.
    pub fn each(wanted: &Background) -> [(BackgroundKind, u32, &'static str); 4] {
        [
            (BackgroundKind::Idle, wanted.idle, "idle"),
            (BackgroundKind::SlowSend, wanted.slow_send, "send"),
            (BackgroundKind::SlowRead, wanted.slow_read, "read"),
            (BackgroundKind::HalfOpen, wanted.half_open, "half-open"),
        ]
    }
}

#[derive(Default)]
pub struct BackgroundConnection {
    pub kind: BackgroundKind,
    pub socket: Option<Socket>,
    /// When connect(2) was called: its age counts from here, since the server may know of it before us.
    pub began_ns: u64,
    pub is_established: bool,
    pub written: usize,
    pub reader: ResponseReader,
    pub answered: u64,
    /// How old it was when the server ended it before it was done.
    pub closed_after_ns: Option<u64>,
}

impl BackgroundConnection {
    pub fn connect(&mut self, route: &Route, number: u64) -> nix::Result<&Socket> {
        self.began_ns = monotonic_ns();
        let is_unix = Domain::from(i32::from(route.address.family())) == Domain::UNIX;
        let socket = route.connect(number, |socket| match self.kind {
            // Before connect(2): the first window is offered in the handshake, and none is taken back.
            BackgroundKind::SlowRead => socket.set_recv_buffer_size(SMALL_BUFFER_BYTES),
            // Each byte a segment: Nagle's algorithm would put several into one when acknowledgements are late.
            BackgroundKind::SlowSend if !is_unix => socket.set_tcp_nodelay(true),
            _ => Ok(()),
        })?;
        Ok(self.socket.insert(socket))
    }

    /// As far as the kernel takes what it has not taken yet.
    pub fn send(&mut self, request: &[u8]) -> nix::Result<()> {
        if let Some(socket) = &self.socket
            && self.written < request.len()
        {
            self.written += send_now(socket, &request[self.written..])?;
        }
        Ok(())
    }

    pub fn receive(&self, buffer: &mut [u8]) -> nix::Result<usize> {
        receive_now(self.socket.as_ref().ok_or(Errno::ENOTCONN)?, buffer)
    }
}

pub fn counts_of(connections: &[BackgroundConnection], kind: BackgroundKind, requested: u32, name: &str) -> SlowCounts {
    let of_kind = || connections.iter().filter(|connection| connection.kind == kind);
    let mut closed_after_ns: Vec<u64> = of_kind().filter_map(|connection| connection.closed_after_ns).collect();
    closed_after_ns.sort_unstable();
    SlowCounts {
        kind: name.into(),
        requested: u64::from(requested),
        established: of_kind().filter(|connection| connection.is_established).count() as u64,
        answered: of_kind().map(|connection| connection.answered).sum(),
        closed_by_server: closed_after_ns.len() as u64,
        closed_after_ms: closed_after_ns.get(closed_after_ns.len() / 2).map(|&ns| ns as f64 / 1e6),
    }
}
