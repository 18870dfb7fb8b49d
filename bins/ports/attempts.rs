//! What the attempts on a port are made of: sockets, options, restarts, a child; and what is said of each.

#![forbid(unsafe_code)]

use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Uid, geteuid, seteuid};
use serde::Serialize;
use socket2::{Domain, Socket, Type};

use acceptlab::console::Format;
use acceptlab::server::Failure;
use acceptlab::sys::process::{Fork, fork};

/// What is tried, what Linux 6.18 says to it, and why.
pub struct Attempt {
    pub attempt: &'static str,
    pub expected: &'static str,
    pub why: &'static str,
    pub try_it: fn() -> Outcome,
}

/// What the kernel said to the last step, unless the steps before it have failed.
pub type Outcome = Result<io::Result<()>, NotTried>;

pub enum NotTried {
    /// What is missing for it here.
    Skipped(&'static str),
    Failed(io::Error),
}

impl<E: Into<io::Error>> From<E> for NotTried {
    fn from(error: E) -> NotTried {
        NotTried::Failed(error.into())
    }
}

pub const TAKEN: &str = "EADDRINUSE";
pub const OK: &str = "ok";

/// An attempt, and its result here.
#[derive(Serialize)]
pub struct AttemptResult {
    pub attempt: &'static str,
    /// `ok`, the name of the error, or `skipped: …`.
    said: String,
    why: &'static str,
    /// What Linux 6.18 says; another answer is news, and `why` does not explain it.
    expected: &'static str,
}

/// Makes an attempt.
///
/// # Errors
/// When what has to be there before the attempt cannot be made.
pub fn make_attempt(tried: &Attempt) -> Result<AttemptResult, Failure> {
    let said = match (tried.try_it)() {
        Ok(Ok(())) => OK.to_owned(),
        Ok(Err(error)) => name(&error),
        Err(NotTried::Skipped(missing)) => format!("skipped: {missing}"),
        Err(NotTried::Failed(error)) => {
            return Err(Failure::new(format_args!("prepare \"{}\"", tried.attempt), error));
        }
    };
    Ok(AttemptResult { attempt: tried.attempt, said, why: tried.why, expected: tried.expected })
}

pub fn render(rows: &[AttemptResult], format: Format) -> String {
    match format {
        Format::Json => serde_json::json!({ "schema": 1, "attempts": rows }).to_string(),
        Format::Text => rows.iter().map(line).collect::<Vec<_>>().join("\n"),
    }
}

/// Two lines for a person: what the kernel said to it, and why.
fn line(row: &AttemptResult) -> String {
    let AttemptResult { attempt, said, why, expected } = row;
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

pub const ANY_PORT: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));
pub const BACKLOG: i32 = 8;

#[derive(Clone, Copy)]
pub enum Reuse {
    ReuseAddr,
    ReusePort,
}
pub use Reuse::{ReuseAddr, ReusePort};

pub fn socket(options: &[Reuse]) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    for option in options {
        match option {
            ReuseAddr => socket.set_reuse_address(true)?,
            ReusePort => socket.set_reuse_port(true)?,
        }
    }
    Ok(socket)
}

pub fn bound(address: SocketAddr, options: &[Reuse]) -> io::Result<Socket> {
    let socket = socket(options)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

pub fn listener(options: &[Reuse]) -> io::Result<Socket> {
    let socket = bound(ANY_PORT, options)?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

pub fn address(socket: &Socket) -> io::Result<SocketAddr> {
    socket.local_addr()?.as_socket().ok_or_else(|| Errno::EAFNOSUPPORT.into())
}

pub fn binds_beside(first: Socket, options: &[Reuse]) -> Outcome {
    binds_at(Ipv4Addr::LOCALHOST, first, options)
}

/// A second socket is bound to the first one's port while that is open. It never listens, so it is never reachable.
pub fn binds_at(ip: Ipv4Addr, first: Socket, options: &[Reuse]) -> Outcome {
    let port = address(&first)?.port();
    Ok(socket(options)?.bind(&SocketAddr::from((ip, port)).into()))
}

/// A listener takes one connection and ends; when that has come to the state that `age` brings it to, another takes
/// its port.
pub fn binds_after_a_listener<T>(
    old: &[Reuse],
    new: &[Reuse],
    age: fn(Socket, TcpStream) -> Result<T, NotTried>,
) -> Outcome {
    let listener = listener(old)?;
    let address = address(&listener)?;
    let client = TcpStream::connect(address)?;
    let (connection, _) = listener.accept()?;
    drop(listener);
    let _aged = age(connection, client)?;
    Ok(socket(new)?.bind(&address.into()))
}

pub fn served(connection: Socket, client: TcpStream) -> Result<(Socket, TcpStream), NotTried> {
    Ok((connection, client))
}

/// Our side closes first, so that TIME_WAIT is on it.
pub fn in_time_wait(connection: Socket, mut client: TcpStream) -> Result<(), NotTried> {
    let here = format!(":{:04X} ", address(&connection)?.port());
    drop(connection);
    // The end of the stream has arrived: now the client's close is the second one.
    client.read_exact(&mut [0]).expect_err("nothing was sent");
    drop(client);
    // A kernel that has enough of them forgets the next one at once (ip-sysctl.rst, tcp_max_tw_buckets).
    let is_kept = |line: &str| line.split_once(": ").is_some_and(|(_, line)| line[8..].starts_with(&here));
    match std::fs::read_to_string("/proc/net/tcp")?.lines().skip(1).any(is_kept) {
        true => Ok(()),
        false => Err(NotTried::Skipped("needs room for one more TIME_WAIT (net.ipv4.tcp_max_tw_buckets)")),
    }
}

/// The client is in the accept queue before the child is there, so the child does not have to wait.
pub fn child_accepts() -> Outcome {
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
pub fn as_another_user<T>(create: impl FnOnce() -> io::Result<T>) -> Result<T, NotTried> {
    const NOBODY: Uid = Uid::from_raw(65534);
    let ourselves = geteuid();
    // An ordinary user may "become" himself without a privilege, and would be no other user then.
    if ourselves == NOBODY || seteuid(NOBODY).is_err() {
        return Err(NotTried::Skipped("needs CAP_SETUID"));
    }
    let created = create();
    seteuid(ourselves)?;
    Ok(created?)
}
