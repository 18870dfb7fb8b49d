//! Ports of their own: what may share a port and what collides, each case really tried on a free port of 127.0.0.1.
//!
//! The workers of seed 001's first master listen on a port each, because two sockets on one port collide. The way
//! back to one port is the difference between a *socket* and a *descriptor*: an address belongs to a socket, and
//! what a fork or a Unix socket hands on is another descriptor of the same one. Nothing is bound a second time, so
//! nothing can collide. (It is not SO_REUSEADDR that lets Node's workers share a port, as the seed text has it.)
//!
//! Compare with `prefork.rs` (inherited), `master-dispatch.rs` (passed), `reuseport.rs` (several sockets after all) and
//! `proxy.rs` (ports of their own, behind one).
//!
//! See it: `ports`. The rules are socket(7)'s and ip(7)'s; what they leave open is decided in the kernel's
//! net/ipv4/inet_connection_sock.c, inet_bind_conflict().

#![forbid(unsafe_code)]

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::AsFd;
use std::process::ExitCode;

use acceptlab::console;
use acceptlab::server::{Channel, Failure};
use acceptlab::sys::process::{Fork, fork};
use clap::{Parser, ValueEnum};
use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Uid, geteuid, seteuid};
use serde::Serialize;
use socket2::{Domain, Socket, Type};

/// What may share a port and what collides, each case really tried
#[derive(Parser)]
#[command(
    name = "ports",
    version,
    after_help = "\
Every case opens sockets on a free port of 127.0.0.1 and says what the kernel answered to the
last step. Two sockets on one port collide unless both set SO_REUSEPORT, or both set
SO_REUSEADDR and neither listens. An inherited or passed descriptor is no second socket.
What the machine does not allow (only root can try another user's socket) is skipped."
)]
struct Args {
    /// How to print the table
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// One case: what is tried, what Linux 6.18 says to it, and why.
struct Case {
    attempt: &'static str,
    expected: &'static str,
    why: &'static str,
    attempt_it: fn() -> Outcome,
}

/// What the kernel said to the last step, unless the steps before it have failed.
type Outcome = Result<io::Result<()>, Unlearned>;

enum Unlearned {
    /// What is missing for it here.
    Skipped(&'static str),
    Failed(io::Error),
}

impl<E: Into<io::Error>> From<E> for Unlearned {
    fn from(error: E) -> Unlearned {
        Unlearned::Failed(error.into())
    }
}

const TAKEN: &str = "EADDRINUSE";
const OK: &str = "ok";

/// From the collision to the ways around it.
const CASES: [Case; 20] = [
    Case {
        attempt: "a second socket binds the port of a listener",
        expected: TAKEN,
        why: "an address belongs to one socket: this is why separately started workers need ports of their own",
        attempt_it: || binds_beside(listener(&[])?, &[]),
    },
    Case {
        attempt: "a second socket binds a port that is bound, and nobody listens yet",
        expected: TAKEN,
        why: "bind takes the port, not listen",
        attempt_it: || binds_beside(bound(ANY_PORT, &[])?, &[]),
    },
    Case {
        attempt: "a second socket binds the port on another address, 127.0.0.2",
        expected: OK,
        why: "a connection names its address, so it is clear whose it is",
        attempt_it: || binds_at(Ipv4Addr::new(127, 0, 0, 2), listener(&[])?, &[]),
    },
    Case {
        attempt: "a second socket binds the port on all addresses, 0.0.0.0",
        expected: TAKEN,
        why: "all addresses include the one that is taken",
        attempt_it: || binds_at(Ipv4Addr::UNSPECIFIED, listener(&[])?, &[]),
    },
    Case {
        attempt: "the port on 0.0.0.0 again, both with SO_REUSEADDR",
        expected: TAKEN,
        why: "Linux refuses as long as one of them listens; BSD would let the more specific address win (socket(7))",
        attempt_it: || binds_at(Ipv4Addr::UNSPECIFIED, listener(&[ReuseAddr])?, &[ReuseAddr]),
    },
    Case {
        attempt: "a UDP socket binds the port of a TCP listener",
        expected: OK,
        why: "each protocol counts its own ports",
        attempt_it: || {
            let taken = listener(&[])?;
            let udp = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
            Ok(udp.bind(&taken.local_addr()?))
        },
    },
    Case {
        attempt: "a restart: the listener is closed, one of its connections is still open",
        expected: TAKEN,
        why: "the connection has the port as its own",
        attempt_it: || binds_after_a_listener(&[], &[], served),
    },
    Case {
        attempt: "the same, the new one with SO_REUSEADDR",
        expected: TAKEN,
        why: "both must agree: the old connection has inherited its listener's option, which was off",
        attempt_it: || binds_after_a_listener(&[], &[ReuseAddr], served),
    },
    Case {
        attempt: "the same, the old one and the new one with SO_REUSEADDR",
        expected: OK,
        why: "a connection takes no connections, so it is clear whose the next one is",
        attempt_it: || binds_after_a_listener(&[ReuseAddr], &[ReuseAddr], served),
    },
    Case {
        attempt: "a restart: the last connection is closed, too, and in TIME_WAIT",
        expected: TAKEN,
        why: "who closes first keeps the port for a minute, lest late segments reach the next connection",
        attempt_it: || binds_after_a_listener(&[], &[], in_time_wait),
    },
    Case {
        attempt: "the same, both with SO_REUSEADDR",
        expected: OK,
        why: "this is what the option is for, and why every server sets it",
        attempt_it: || binds_after_a_listener(&[ReuseAddr], &[ReuseAddr], in_time_wait),
    },
    Case {
        attempt: "two sockets with SO_REUSEADDR, the first listens, the second binds",
        expected: TAKEN,
        why: "the option never lets two sockets listen: one port, one accept queue",
        attempt_it: || binds_beside(listener(&[ReuseAddr])?, &[ReuseAddr]),
    },
    Case {
        attempt: "two sockets with SO_REUSEADDR both bind, and neither listens",
        expected: OK,
        why: "while nobody can be connected to, nothing is unclear",
        attempt_it: || binds_beside(bound(ANY_PORT, &[ReuseAddr])?, &[ReuseAddr]),
    },
    Case {
        attempt: "then both listen",
        expected: TAKEN,
        why: "the first to listen has the port; the second is told by listen, not by bind",
        attempt_it: || {
            let first = bound(ANY_PORT, &[ReuseAddr])?;
            let second = bound(address(&first)?, &[ReuseAddr])?;
            first.listen(BACKLOG)?;
            Ok(second.listen(BACKLOG))
        },
    },
    Case {
        attempt: "two sockets with SO_REUSEPORT both listen",
        expected: OK,
        why: "the option makes a group; a hash of the addresses chooses a member for each connection",
        attempt_it: || {
            let first = listener(&[ReusePort])?;
            let second = bound(address(&first)?, &[ReusePort])?;
            Ok(second.listen(BACKLOG))
        },
    },
    Case {
        attempt: "a second socket with SO_REUSEPORT, the first is without",
        expected: TAKEN,
        why: "a group is joined by consent: all of its members have set the option before they were bound",
        attempt_it: || binds_beside(listener(&[])?, &[ReusePort]),
    },
    Case {
        attempt: "two sockets with SO_REUSEPORT, the second is another user's",
        expected: TAKEN,
        why: "the members have one effective user; nobody else may take a share of the connections",
        attempt_it: || {
            let first = listener(&[ReusePort])?;
            let second = as_another_user(|| socket(&[ReusePort]))?;
            Ok(second.bind(&first.local_addr()?))
        },
    },
    Case {
        attempt: "a forked child accepts from the listener it inherited",
        expected: OK,
        why: "a second descriptor of the same socket: nothing is bound, so nothing collides",
        attempt_it: child_accepts,
    },
    Case {
        attempt: "who was passed the listener over a Unix socket accepts from it",
        expected: OK,
        why: "the same: what travels is the socket, and the number the receiver sees is his own",
        attempt_it: || {
            let listener = listener(&[])?;
            let _client = TcpStream::connect(address(&listener)?)?;
            let (ours, mut theirs) =
                Channel::pair(false).map_err(|failure| io::Error::other(failure.to_string()))?;
            ours.pass(&[listener])?;
            Ok(Socket::from(theirs.receive()?).accept().map(drop))
        },
    },
    Case {
        attempt: "the listener is closed, but a copy of its descriptor is not; another binds the port",
        expected: TAKEN,
        why: "the port is free when the last descriptor is closed: a child that keeps one keeps the port",
        attempt_it: || {
            let listener = listener(&[])?;
            let address = address(&listener)?;
            let _copy = listener.as_fd().try_clone_to_owned()?;
            drop(listener);
            Ok(bound(address, &[]).map(drop))
        },
    },
];

/// A case and what came of it here.
#[derive(Serialize)]
struct Row {
    attempt: &'static str,
    /// `ok`, the name of the error, or `skipped: …`.
    said: String,
    why: &'static str,
    /// What Linux 6.18 says; another answer is news, and `why` does not explain it.
    expected: &'static str,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let rows: Result<Vec<Row>, Failure> = CASES.iter().map(try_case).collect();
    console::end(rows.map(|rows| match args.format {
        Format::Json => serde_json::json!({ "schema": 1, "attempts": rows }).to_string(),
        Format::Text => rows.iter().map(line).collect::<Vec<_>>().join("\n"),
    }))
}

fn try_case(case: &Case) -> Result<Row, Failure> {
    let said = match (case.attempt_it)() {
        Ok(Ok(())) => OK.to_owned(),
        Ok(Err(error)) => name(&error),
        Err(Unlearned::Skipped(missing)) => format!("skipped: {missing}"),
        Err(Unlearned::Failed(error)) => {
            return Err(Failure::new(format_args!("prepare \"{}\"", case.attempt), error));
        }
    };
    Ok(Row { attempt: case.attempt, said, why: case.why, expected: case.expected })
}

fn line(row: &Row) -> String {
    let Row { attempt, said, why, expected } = row;
    let (word, reason) = match said.split_once(": ") {
        _ if said == expected => (said.as_str(), why.to_string()),
        Some(("skipped", missing)) => ("skipped", missing.to_owned()),
        _ => (said.as_str(), format!("this kernel differs: Linux 6.18 says {expected}, since {why}")),
    };
    format!("{word:<11} {attempt}\n            {reason}")
}

fn name(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => format!("{:?}", Errno::from_raw(number)),
        None => error.to_string(),
    }
}

const ANY_PORT: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));
const BACKLOG: i32 = 8;

#[derive(Clone, Copy)]
enum Reuse {
    ReuseAddr,
    ReusePort,
}
use Reuse::{ReuseAddr, ReusePort};

fn socket(options: &[Reuse]) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    for option in options {
        match option {
            ReuseAddr => socket.set_reuse_address(true)?,
            ReusePort => socket.set_reuse_port(true)?,
        }
    }
    Ok(socket)
}

fn bound(address: SocketAddr, options: &[Reuse]) -> io::Result<Socket> {
    let socket = socket(options)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn listener(options: &[Reuse]) -> io::Result<Socket> {
    let socket = bound(ANY_PORT, options)?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn address(socket: &Socket) -> io::Result<SocketAddr> {
    socket.local_addr()?.as_socket().ok_or_else(|| Errno::EAFNOSUPPORT.into())
}

fn binds_beside(first: Socket, options: &[Reuse]) -> Outcome {
    binds_at(Ipv4Addr::LOCALHOST, first, options)
}

/// A second socket is bound to the first one's port while that is open. It never listens, so it is never reachable.
fn binds_at(ip: Ipv4Addr, first: Socket, options: &[Reuse]) -> Outcome {
    let port = address(&first)?.port();
    Ok(socket(options)?.bind(&SocketAddr::from((ip, port)).into()))
}

/// A listener takes one connection and ends; when that has come to the state that `age` brings it to, another takes
/// its port.
fn binds_after_a_listener<T>(
    old: &[Reuse],
    new: &[Reuse],
    age: fn(Socket, TcpStream) -> Result<T, Unlearned>,
) -> Outcome {
    let listener = listener(old)?;
    let address = address(&listener)?;
    let client = TcpStream::connect(address)?;
    let (connection, _) = listener.accept()?;
    drop(listener);
    let _aged = age(connection, client)?;
    Ok(socket(new)?.bind(&address.into()))
}

fn served(connection: Socket, client: TcpStream) -> Result<(Socket, TcpStream), Unlearned> {
    Ok((connection, client))
}

/// Our side closes first, so that TIME_WAIT is on it.
fn in_time_wait(connection: Socket, mut client: TcpStream) -> Result<(), Unlearned> {
    let here = format!(":{:04X} ", address(&connection)?.port());
    drop(connection);
    // The end of the stream has arrived: now the client's close is the second one.
    client.read_exact(&mut [0]).expect_err("nothing was sent");
    drop(client);
    // A kernel that has enough of them forgets the next one at once (ip-sysctl.rst, tcp_max_tw_buckets).
    let is_kept = |line: &str| line.split_once(": ").is_some_and(|(_, line)| line[8..].starts_with(&here));
    match std::fs::read_to_string("/proc/net/tcp")?.lines().skip(1).any(is_kept) {
        true => Ok(()),
        false => Err(Unlearned::Skipped("needs room for one more TIME_WAIT (net.ipv4.tcp_max_tw_buckets)")),
    }
}

/// The client is in the accept queue before the child is there, so the child does not have to wait.
fn child_accepts() -> Outcome {
    let listener = listener(&[])?;
    let _client = TcpStream::connect(address(&listener)?)?;
    match fork()? {
        Fork::Child => {
            let accepted = listener.accept();
            std::process::exit(accepted.err().and_then(|error| error.raw_os_error()).unwrap_or(0));
        }
        Fork::Parent { child } => Ok(match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            WaitStatus::Exited(_, errno) => Err(io::Error::from_raw_os_error(errno)),
            other => Err(io::Error::other(format!("{other:?}"))),
        }),
    }
}

/// A socket belongs to the effective user at its creation.
fn as_another_user<T>(create: impl FnOnce() -> io::Result<T>) -> Result<T, Unlearned> {
    const NOBODY: Uid = Uid::from_raw(65534);
    let ourselves = geteuid();
    // An ordinary user may "become" himself without a privilege, and would be no other user then.
    if ourselves == NOBODY || seteuid(NOBODY).is_err() {
        return Err(Unlearned::Skipped("needs CAP_SETUID"));
    }
    let created = create();
    seteuid(ourselves)?;
    Ok(created?)
}
