//! The simplest conversation: one request on a connection, a whole answer, a close.

use std::time::Duration;

use super::client::{ANSWER_TIMEOUT, Client, GET, GET_AND_CLOSE, served};
use super::server::Server;
use super::{Point, ProbeResult, SERVE, broken, shared};
use crate::lab::observe::processes::poll_until;

pub const POINTS: &[Point] = &[
    shared(SERVE, "get", "a GET is answered with 200 and a right Content-Length", |server| {
        answered_and_closed(server, GET_AND_CLOSE)
    })
    .hint("Content-Length counts the bytes of the body and no others"),
    shared(SERVE, "signature", "the body begins with `handled by worker I, pid P`, I as in X-Worker", signature),
    shared(SERVE, "close-1.0", "a 1.0 connection is closed after the answer", |server| {
        answered_and_closed(server, b"GET / HTTP/1.0\r\n\r\n")
    }),
    shared(SERVE, "header-names", "header names and connection options have no case", |server| {
        answered_and_closed(server, b"GET / HTTP/1.1\r\nhOST: a\r\ncONNECTION: CLOSE\r\n\r\n")
    }),
    shared(SERVE, "descriptors", "a connection that ended leaves no descriptor behind", no_leak)
        .hint("close(2) the connection on every way out, after an error, too"),
];

/// Asks on a connection of its own for a 200, and for a close right behind it.
pub fn answered_and_closed(server: &Server, request: &[u8]) -> ProbeResult {
    let mut client = Client::connect(server.addr)?;
    client.ask(request)?.expect(200)?;
    // Bytes that Content-Length does not announce would come before the close.
    client.closes(ANSWER_TIMEOUT)
}

fn signature(server: &Server) -> ProbeResult {
    // Open until the end: a process that was forked for a connection ends with it.
    let mut client = Client::connect(server.addr)?;
    let answer = client.ask(GET)?;
    answer.expect(200)?;
    let (worker, pid) = answer.signature()?;
    if worker != answer.worker()? {
        return answer.broken("one worker in body and X-Worker", format!("{worker} and {}", answer.worker()?));
    }
    let family: Vec<i32> = server.processes().iter().map(|process| process.pid).collect();
    if !family.contains(&pid) {
        return answer.broken("the pid of one of its processes", format!("{pid}, not one of {family:?}"));
    }
    Ok(())
}

fn no_leak(server: &Server) -> ProbeResult {
    let ways_to_leave: [fn(&mut Client) -> ProbeResult; 3] = [
        |client| client.ask(GET_AND_CLOSE).map(drop),
        |client| client.ask(GET).map(drop),
        |client| client.ask(b"nonsense\r\n\r\n").map(drop),
    ];
    served(server.addr)?;
    let before = server.open_descriptors();
    for leave in ways_to_leave.iter().cycle().take(60) {
        leave(&mut Client::connect(server.addr)?)?;
    }
    // The last connections may still be on their way out.
    let gone = poll_until(Duration::from_secs(2), || (server.open_descriptors() <= before + 1).then_some(()));
    let expected = || format!("{before} descriptors as before 60 connections");
    gone.map_or_else(|| broken(expected(), server.open_descriptors().to_string()), Ok)
}
