//! The listening socket: bind, listen with a backlog, accept.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, Once};

use nix::sys::socket::{Shutdown, SockFlag, shutdown};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::accept::{Acceptor, accept_next};
use super::args::ServerArgs;
use super::member::{Member, is_passed_connections, lock};
use crate::console;
use crate::failure::Failure;
use crate::machine::sysctl;
use crate::membership::{self, is_member};
use crate::sys::socket::accept_queue_length;

/// A bound TCP socket that queues connections until they are accepted; or, in a worker of a cluster, what the master
/// gives instead.
pub struct Listener {
    /// The socket, or what a worker of a cluster waits for.
    fd: OwnedFd,
    /// Another descriptor to wait for.
    second: Option<OwnedFd>,
    address: SocketAddr,
    cluster: Option<Cluster>,
}

struct Cluster {
    member: Arc<Mutex<Member>>,
    /// A copy of its descriptor: what a signal shuts.
    channel: OwnedFd,
}

impl Listener {
    /// Binds and listens, or asks the master to. `accept` on it blocks.
    ///
    /// # Errors
    /// The address cannot be bound or listened on; in a worker of a cluster, the master does not give a socket, or has
    /// given this process one already.
    pub fn bind(args: &ServerArgs) -> Result<Listener, Failure> {
        if let Some(membership) = membership::of_this_process().map_err(Failure::relay)? {
            return Listener::of_cluster(Member::join(membership, args)?);
        }
        Listener::bind_with(args.listen, args.backlog, |_| Ok(()))
    }

    /// A group of non-blocking sockets on one port; the kernel hashes each connection to one of them (socket(7),
    /// SO_REUSEPORT). With port 0 the first takes any free port and the others follow.
    ///
    /// # Errors
    /// In a worker of a cluster, which has one listener; and when one of the sockets cannot be bound, as where another
    /// server has the port.
    pub fn bind_group(sockets: usize, args: &ServerArgs) -> Result<Vec<Listener>, Failure> {
        if is_member() {
            let line = "bind a group of sockets: this is a worker of a cluster, which has one listener; give `cluster` \
                        a server that has one";
            return Err(Failure::relay(line.to_owned()));
        }
        let mut address = args.listen;
        if address.port() != 0 {
            // A group of another server of ours would let us join and take half of its connections. A socket
            // without the option finds the port taken.
            drop(Listener::bind(args)?);
        }
        let mut group = Vec::with_capacity(sockets);
        for _ in 0..sockets {
            let bound = Listener::bind_with(address, args.backlog, |socket| socket.set_reuse_port(true))?;
            address = bound.address;
            group.push(bound.nonblocking()?);
        }
        Ok(group)
    }

    /// The listening socket that another process has bound and passed to us.
    ///
    /// # Errors
    /// The kernel does not say the socket's address (getsockname(2)).
    ///
    /// # Panics
    /// When it is not a TCP socket.
    pub fn from_passed(socket: OwnedFd) -> Result<Listener, Failure> {
        let bound = SockRef::from(&socket).local_addr();
        let bound = bound.map_err(|error| Failure::new("ask a listening socket for its address", error))?;
        let address = bound.as_socket().expect("a TCP socket has an IP address");
        Ok(Listener { fd: socket, second: None, address, cluster: None })
    }

    fn of_cluster(member: Arc<Mutex<Member>>) -> Result<Listener, Failure> {
        let borrowed = lock(&member);
        let (wait, second) = borrowed.descriptors();
        let fd = copy(wait)?;
        let second = second.map(copy).transpose()?;
        let channel = copy(borrowed.ipc.as_fd())?;
        let address = borrowed.address;
        drop(borrowed);
        Ok(Listener { fd, second, address, cluster: Some(Cluster { member, channel }) })
    }

    fn bind_with(
        address: SocketAddr,
        backlog: i32,
        set_options: impl FnOnce(&Socket) -> std::io::Result<()>,
    ) -> Result<Listener, Failure> {
        let open = || {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            // Connections of an earlier run in TIME_WAIT must not keep us from the port (socket(7)).
            socket.set_reuse_address(true)?;
            // Inherited by every accepted connection; a second small answer is not to wait for an ACK (tcp(7)).
            socket.set_tcp_nodelay(true)?;
            set_options(&socket)?;
            Ok::<_, std::io::Error>(socket)
        };
        let socket = open().map_err(|error| Failure::new(format_args!("open a socket for {address}"), error))?;
        let started = socket.bind(&address.into()).and_then(|()| socket.listen(backlog));
        started.map_err(|error| explain_bind(address, error))?;
        warn_once_if_clamped(backlog);
        Listener::from_passed(socket.into())
    }

    /// The address in use, with the port the kernel chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets `accept` return EAGAIN instead of blocking. A property of the socket, not of our descriptor:
    /// processes that share the socket share it (open(2), O_NONBLOCK).
    ///
    /// # Errors
    /// The mode cannot be changed (fcntl(2)). In a worker of a cluster there is nothing to change.
    pub fn nonblocking(self) -> Result<Listener, Failure> {
        self.set_nonblocking(true)
    }

    /// The opposite of [`Listener::nonblocking`].
    ///
    /// # Errors
    /// As [`Listener::nonblocking`].
    pub fn blocking(self) -> Result<Listener, Failure> {
        self.set_nonblocking(false)
    }

    fn set_nonblocking(self, nonblocking: bool) -> Result<Listener, Failure> {
        if self.cluster.is_none() {
            let tried = format_args!("set the mode of {}", self.address);
            SockRef::from(&self.fd).set_nonblocking(nonblocking).map_err(|error| Failure::new(tried, error))?;
        }
        Ok(self)
    }

    /// The socket, for several threads that accept from it.
    ///
    /// # Errors
    /// In a worker of a cluster: connections reach it over a channel, which one thread reads.
    pub fn into_shared(self) -> Result<Arc<OwnedFd>, Failure> {
        if self.cluster.is_some() {
            let line = "accept in several threads: this is a worker of a cluster, which has one thread that accepts; \
                        give `cluster` a server that is so, such as thread-pool or threaded";
            return Err(Failure::relay(line.to_owned()));
        }
        Ok(Arc::new(self.fd))
    }

    /// An event loop that waits for a connection is woken when `other` is readable, too; then no connection may be
    /// there.
    ///
    /// # Errors
    /// No descriptor is left for a copy of `other`.
    pub fn woken_by(self, other: impl AsFd) -> Result<Listener, Failure> {
        Ok(Listener { second: Some(copy(other.as_fd())?), ..self })
    }

    /// Shuts it in every process that holds it: none takes a new connection, blocked and later accepts return EINVAL.
    pub fn shut(&self) {
        // It fails only on a socket that is not open.
        let _ = shutdown(self.fd.as_raw_fd(), Shutdown::Read);
    }

    /// The next connection, for a worker that blocks in recv(2) and send(2).
    ///
    /// # Errors
    /// Those of [`accept_next`]: EINVAL once the socket was shut, EINTR when a signal came, EAGAIN on a non-blocking
    /// socket with an empty queue. In a worker of a cluster those of [`Member::accept_blocking`].
    pub fn accept(&self) -> nix::Result<OwnedFd> {
        match &self.cluster {
            None => accept_next(&self.fd, SockFlag::empty()),
            Some(cluster) => lock(&cluster.member).accept_blocking(),
        }
    }

    /// The next connection, for an event loop in another thread: the accept blocks, the connection does not.
    ///
    /// # Errors
    /// As [`Listener::accept`]; in a worker of a cluster those of [`Member::await_next`].
    pub fn accept_for_another(&self) -> nix::Result<OwnedFd> {
        match &self.cluster {
            None => accept_next(&self.fd, SockFlag::SOCK_NONBLOCK),
            Some(cluster) => lock(&cluster.member).await_next(),
        }
    }

    /// The next connection, for an event loop.
    ///
    /// # Errors
    /// As [`Listener::accept`]; in a worker of a cluster those of [`Member::accept`].
    pub fn accept_nonblocking(&self) -> nix::Result<OwnedFd> {
        match &self.cluster {
            None => accept_next(&self.fd, SockFlag::SOCK_NONBLOCK),
            Some(cluster) => lock(&cluster.member).accept(),
        }
    }

    /// How many connections wait to be accepted; `None` where the kernel does not say.
    pub fn queued(&self) -> Option<usize> {
        accept_queue_length(&self.fd).ok()
    }

    pub fn with_shared_socket<T>(&self, call: impl FnOnce(Option<BorrowedFd>) -> T) -> T {
        match &self.cluster {
            None => call(None),
            Some(cluster) => call(lock(&cluster.member).shared_socket()),
        }
    }

    /// What a signal shuts so that this process accepts no more.
    pub fn end(&self) -> BorrowedFd<'_> {
        self.cluster.as_ref().map_or(self.fd.as_fd(), |cluster| cluster.channel.as_fd())
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Acceptor for Listener {
    fn receive_messages(&self) {
        self.cluster.iter().for_each(|cluster| lock(&cluster.member).refuse());
    }

    fn second_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.second.as_ref().map(OwnedFd::as_fd)
    }

    fn sender_keeps_copies(&self) -> bool {
        is_passed_connections()
    }
}

/// A listener that workers share is never a cluster's: nothing is passed.
impl Acceptor for &Listener {}

fn copy(fd: BorrowedFd) -> Result<OwnedFd, Failure> {
    fd.try_clone_to_owned().map_err(|error| Failure::new("copy a descriptor", error))
}

fn explain_bind(address: SocketAddr, error: std::io::Error) -> Failure {
    let advice = match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "stop the program that has it (ss -ltnp shows which), or take any free port with --listen 127.0.0.1:0"
        }
        std::io::ErrorKind::PermissionDenied => "take a port from 1024 up",
        std::io::ErrorKind::AddrNotAvailable => "take an address of this machine (ip addr shows them)",
        _ => "try --listen 127.0.0.1:0",
    };
    Failure::new(format_args!("bind {address}"), error).advise(advice)
}

fn warn_once_if_clamped(backlog: i32) {
    static SAID: Once = Once::new();
    let somaxconn = sysctl("net.core.somaxconn").and_then(|text| text.parse::<i32>().ok());
    if let Some(limit) = somaxconn.filter(|&limit| backlog > limit) {
        SAID.call_once(|| {
            console::log(format_args!(
                "backlog {backlog}: the kernel clamps it to {limit}; raise net.core.somaxconn to have more"
            ));
        });
    }
}
