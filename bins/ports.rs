//! What may share a port and what collides, each case really tried.
//!
//! Workers that are started one by one listen on a port each, because two sockets on one port collide. The way back to
//! one port is the difference between a *socket* and a *descriptor*: an address belongs to a socket, and what a fork or
//! a Unix socket hands on is another descriptor of the same one. Nothing is bound a second time, so nothing can
//! collide. (It is not SO_REUSEADDR that lets Node's workers share a port, as texts on Node often say.)
//!
//! Compare with `prefork.rs` (inherited), `master-dispatch.rs` (passed), `reuseport.rs` (several sockets after all) and
//! `proxy.rs` (ports of their own, behind one).
//!
//! See it: `ports`. The rules are socket(7)'s and ip(7)'s; what they leave open is decided in the kernel's
//! net/ipv4/inet_connection_sock.c, inet_bind_conflict().

#![forbid(unsafe_code)]

#[path = "ports/attempts.rs"]
mod attempts;

use std::io;
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::AsFd;
use std::process::ExitCode;

use acceptlab::console::{self, Format};
use acceptlab::server::Failure;
use acceptlab::server::channel::Channel;
use attempts::*;
use clap::Parser;
use socket2::{Domain, Socket, Type};

/// What may share a port and what collides, each case really tried
#[derive(Parser)]
#[command(
    name = "ports",
    version,
    after_help = "\
Every case opens sockets on a free port of 127.0.0.1 and says what the kernel answered to the
last step. Two sockets on one port collide unless both set SO_REUSEPORT, or both set
SO_REUSEADDR and neither listens. An inherited or passed descriptor is not a second socket.
What the machine does not allow (only root can try another user's socket) is skipped."
)]
struct Args {
    /// How to print the table
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

fn main() -> ExitCode {
    let format = Args::parse().format;
    let rows: Result<Vec<AttemptResult>, Failure> = ATTEMPTS.iter().map(make_attempt).collect();
    console::end(rows.map(|rows| render(&rows, format)))
}

/// From the collision to the ways around it.
const ATTEMPTS: [Attempt; 20] = [
    Attempt {
        attempt: "a second socket binds the port of a listener",
        expected: TAKEN,
        why: "an address belongs to one socket: this is why separately started workers need ports of their own",
        try_it: || binds_beside(listener(&[])?, &[]),
    },
    Attempt {
        attempt: "a second socket binds a port that is bound, and nobody listens yet",
        expected: TAKEN,
        why: "bind takes the port, not listen",
        try_it: || binds_beside(bound(ANY_PORT, &[])?, &[]),
    },
    Attempt {
        attempt: "a second socket binds the port on another address, 127.0.0.2",
        expected: OK,
        why: "a connection names its address, so it is clear whose it is",
        try_it: || binds_at(Ipv4Addr::new(127, 0, 0, 2), listener(&[])?, &[]),
    },
    Attempt {
        attempt: "a second socket binds the port on all addresses, 0.0.0.0",
        expected: TAKEN,
        why: "all addresses include the one that is taken",
        try_it: || binds_at(Ipv4Addr::UNSPECIFIED, listener(&[])?, &[]),
    },
    Attempt {
        attempt: "the port on 0.0.0.0 again, both with SO_REUSEADDR",
        expected: TAKEN,
        why: "Linux refuses as long as one of them listens; BSD would let the more specific address win (socket(7))",
        try_it: || binds_at(Ipv4Addr::UNSPECIFIED, listener(&[ReuseAddr])?, &[ReuseAddr]),
    },
    Attempt {
        attempt: "a UDP socket binds the port of a TCP listener",
        expected: OK,
        why: "each protocol counts its own ports",
        try_it: || {
            let taken = listener(&[])?;
            let udp = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
            Ok(udp.bind(&taken.local_addr()?))
        },
    },
    Attempt {
        attempt: "a restart: the listener is closed, one of its connections is still open",
        expected: TAKEN,
        why: "the connection has the port as its own",
        try_it: || binds_after_a_listener(&[], &[], served),
    },
    Attempt {
        attempt: "the same, the new one with SO_REUSEADDR",
        expected: TAKEN,
        why: "both must agree: the old connection has inherited its listener's option, which was off",
        try_it: || binds_after_a_listener(&[], &[ReuseAddr], served),
    },
    Attempt {
        attempt: "the same, the old one and the new one with SO_REUSEADDR",
        expected: OK,
        why: "a connection takes no connections, so it is clear whose the next one is",
        try_it: || binds_after_a_listener(&[ReuseAddr], &[ReuseAddr], served),
    },
    Attempt {
        attempt: "a restart: the last connection is closed, too, and in TIME_WAIT",
        expected: TAKEN,
        why: "who closes first keeps the port for a minute, lest late segments reach the next connection",
        try_it: || binds_after_a_listener(&[], &[], in_time_wait),
    },
    Attempt {
        attempt: "the same, both with SO_REUSEADDR",
        expected: OK,
        why: "this is what the option is for, and why every server sets it",
        try_it: || binds_after_a_listener(&[ReuseAddr], &[ReuseAddr], in_time_wait),
    },
    Attempt {
        attempt: "two sockets with SO_REUSEADDR, the first listens, the second binds",
        expected: TAKEN,
        why: "the option never lets two sockets listen: one port, one accept queue",
        try_it: || binds_beside(listener(&[ReuseAddr])?, &[ReuseAddr]),
    },
    Attempt {
        attempt: "two sockets with SO_REUSEADDR both bind, and neither listens",
        expected: OK,
        why: "while nobody can be connected to, nothing is unclear",
        try_it: || binds_beside(bound(ANY_PORT, &[ReuseAddr])?, &[ReuseAddr]),
    },
    Attempt {
        attempt: "then both listen",
        expected: TAKEN,
        why: "the first to listen has the port; the second is told by listen, not by bind",
        try_it: || {
            let first = bound(ANY_PORT, &[ReuseAddr])?;
            let second = bound(address(&first)?, &[ReuseAddr])?;
            first.listen(BACKLOG)?;
            Ok(second.listen(BACKLOG))
        },
    },
    Attempt {
        attempt: "two sockets with SO_REUSEPORT both listen",
        expected: OK,
        why: "the option makes a group; a hash of the addresses chooses a member for each connection",
        try_it: || {
            let first = listener(&[ReusePort])?;
            let second = bound(address(&first)?, &[ReusePort])?;
            Ok(second.listen(BACKLOG))
        },
    },
    Attempt {
        attempt: "a second socket with SO_REUSEPORT, the first is without",
        expected: TAKEN,
        why: "a group is joined by consent: all of its members have set the option before they were bound",
        try_it: || binds_beside(listener(&[])?, &[ReusePort]),
    },
    Attempt {
        attempt: "two sockets with SO_REUSEPORT, the second is another user's",
        expected: TAKEN,
        why: "the members have one effective user; nobody else may take a share of the connections",
        try_it: || {
            let first = listener(&[ReusePort])?;
            let second = as_another_user(|| socket(&[ReusePort]))?;
            Ok(second.bind(&first.local_addr()?))
        },
    },
    Attempt {
        attempt: "a forked child accepts from the listener it inherited",
        expected: OK,
        why: "a second descriptor of the same socket: nothing is bound, so nothing collides",
        try_it: child_accepts,
    },
    Attempt {
        attempt: "who was passed the listener over a Unix socket accepts from it",
        expected: OK,
        why: "the same: what travels is the socket, and the number the receiver sees is his own",
        try_it: || {
            let listener = listener(&[])?;
            let _client = TcpStream::connect(address(&listener)?)?;
            let (ours, mut theirs) = Channel::pair(false).map_err(|failure| io::Error::other(failure.to_string()))?;
            ours.pass(&[listener])?;
            Ok(Socket::from(theirs.receive()?).accept().map(drop))
        },
    },
    Attempt {
        attempt: "the listener is closed, but a copy of its descriptor is not; another binds the port",
        expected: TAKEN,
        why: "the port is free when the last descriptor is closed: a child that keeps one keeps the port",
        try_it: || {
            let listener = listener(&[])?;
            let address = address(&listener)?;
            let _copy = listener.as_fd().try_clone_to_owned()?;
            drop(listener);
            Ok(bound(address, &[]).map(drop))
        },
    },
];
