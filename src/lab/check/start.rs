//! Points about flags and the start: what it listens on, when it says so, and how it explains a failure.

use std::net::TcpListener;

use super::client::Client;
use super::server::{NotReady, Program, Server, with_flags};
use super::{FLAGS, Point, ProbeResult, START, broken, not_applicable, own, shared};

pub const READY: Point =
    shared(START, "ready-line", "the first line is `ready ADDR:PORT`, printed when it takes connections", listens);

pub const POINTS: &[Point] = &[
    READY,
    own(FLAGS, "port-0", "port 0 takes any free port", free_port)
        .hint("after bind(2), getsockname(2) tells the port that the kernel chose"),
    own(FLAGS, "ipv6", "IPv6 works", ipv6).hint("getaddrinfo(3) makes the right address of both families"),
    own(START, "taken-port", "a start that fails prints one line and exits with status 1", taken_port)
        .hint("look at what bind(2) returns; print the address and strerror(3), nothing else"),
    own(FLAGS, "wrong-flag", "a wrong flag exits with 2", |program| refused(program, &["--no-such-flag"])),
    own(FLAGS, "wrong-duration", "a duration without a unit is wrong", |program| {
        refused(program, &["--idle-timeout", "5"])
    }),
];

/// The line means that a client can connect at once.
pub fn listens(server: &Server) -> ProbeResult {
    Client::connect(server.addr).map(drop)
}

fn free_port(program: &Program) -> ProbeResult {
    let (one, other) = (program.start(&[])?, program.start(&[])?);
    if one.addr.port() == 0 || one.addr.port() == other.addr.port() {
        return broken("two starts, two ports", format!("{} and {}", one.addr, other.addr));
    }
    listens(&one)?;
    listens(&other)
}

fn ipv6(program: &Program) -> ProbeResult {
    if TcpListener::bind("[::1]:0").is_err() {
        return not_applicable("this machine has no IPv6 loopback");
    }
    let server = program.start_on("[::1]:0", &[]).map_err(|why| why.into_broken(&["--listen", "[::1]:0"]))?;
    if !server.addr.is_ipv6() {
        return broken("`ready [::1]:PORT` with --listen [::1]:0", format!("`ready {}`", server.addr));
    }
    listens(&server)
}

fn taken_port(program: &Program) -> ProbeResult {
    let owner = TcpListener::bind("127.0.0.1:0").expect("the loopback has a free port");
    let taken = owner.local_addr().expect("a bound socket has an address").to_string();
    let expected = format!("exit status 1 and one line on standard error that names {taken}");
    match program.start_on(&taken, &[]) {
        Ok(_) => broken(expected, "it says that it is ready"),
        Err(NotReady::Silent { status: Some(status), stderr, .. })
            if status.code() == Some(1) && stderr.lines().count() == 1 && stderr.contains(&taken) =>
        {
            Ok(())
        }
        Err(NotReady::Silent { status: Some(status), stderr, .. }) => {
            broken(expected, format!("{status}, and it said {stderr:?}"))
        }
        Err(_) => broken(expected, "it is still running and not ready"),
    }
}

/// A wrong flag is the caller's mistake; its exit status is another than that of a failed start.
pub fn refused(program: &Program, flags: &[&str]) -> ProbeResult {
    let expected = with_flags("exit status 2 and a line about it on standard error", flags);
    match program.start_on("127.0.0.1:0", flags) {
        Err(NotReady::Silent { status: Some(status), stderr, .. }) => {
            if status.code() == Some(2) && !stderr.trim().is_empty() {
                return Ok(());
            }
            broken(expected, format!("{status}, and it said {stderr:?}"))
        }
        Err(_) => broken(expected, "it is still running and not ready"),
        Ok(_) => broken(expected, "it says that it is ready"),
    }
}
