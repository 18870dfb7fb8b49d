//! Where connections go, where they come from, and how they begin and end; the same for all of a run.

use std::net::SocketAddr;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::load::options::source::Sources;

#[derive(Clone)]
pub struct Route {
    pub address: SockAddr,
    pub sources: Option<Sources>,
    /// Nagle's algorithm holds back only what does not fit into one segment.
    pub no_delay: bool,
    pub reset: bool,
}

impl Route {
    /// A non-blocking socket in its handshake; `number` chooses the source address, `set` sets further options.
    pub fn connect(&self, number: u64, set: impl FnOnce(&Socket) -> std::io::Result<()>) -> nix::Result<Socket> {
        let socket = self.open(number).map_err(errno)?;
        set(&socket).map_err(errno)?;
        match socket.connect(&self.address).map_err(errno) {
            Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
            Err(errno) => Err(errno),
        }
    }

    fn open(&self, number: u64) -> std::io::Result<Socket> {
        let domain = Domain::from(i32::from(self.address.family()));
        let protocol = (domain != Domain::UNIX).then_some(Protocol::TCP);
        let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), protocol)?;
        if self.no_delay && domain != Domain::UNIX {
            socket.set_tcp_nodelay(true)?;
        }
        if self.reset && domain != Domain::UNIX {
            // Closing then sends RST, and neither side keeps a TIME_WAIT (socket(7), SO_LINGER).
            socket.set_linger(Some(Duration::ZERO))?;
        }
        if let Some(sources) = &self.sources {
            // The port is chosen in connect(2), where the peer is known: the same port may then serve connections to
            // several peers (ip(7)).
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
            socket.bind(&SocketAddr::new(sources.turn(number), 0).into())?;
        }
        Ok(socket)
    }
}

pub fn errno(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
