//! Points about good requests: what an answer carries, when a connection stays open, and that the network may
//! cut the bytes wherever it likes.

use std::time::Duration;

use super::client::{Client, GET, GET_AND_CLOSE, PATIENCE, served};
use super::server::{Program, Server};
use super::{Point, Verdict, broken, own, shared};
use crate::lab::observe::processes::poll_until;

const HEAD: &[u8] = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n";

/// The most a request body may have: 1 MiB is read and discarded.
pub const LARGEST_BODY: usize = 1 << 20;

pub const POINTS: &[Point] = &[
    shared("get", "a GET is answered with 200 and a right Content-Length", get),
    shared("signature", "the body begins with `handled by worker I, pid P`, I as in X-Worker", signature),
    shared("keep-alive-1.1", "a 1.1 connection stays open", keep_alive_1_1),
    shared("close-1.1", "Connection: close is honoured", close_1_1),
    shared("connection-close-wins", "close in one Connection line beats keep-alive in another", close_wins),
    shared("close-1.0", "a 1.0 connection is closed after the answer", close_1_0),
    shared("keep-alive-1.0", "a 1.0 request for keep-alive gets `Connection: keep-alive`", keep_alive_1_0),
    shared("header-names", "header names and connection options have no case", header_names),
    shared("pipelining", "ten requests in one write get ten answers in order", pipelining),
    shared("byte-by-byte", "a request may come one byte at a time", byte_by_byte),
    shared("split-anywhere", "a request may be split at any byte", split_anywhere),
    shared("head", "HEAD is answered without a body", head),
    shared("post", "a request body is read and discarded", |server| post(server, 1000)),
    shared("post-1mib", "a request body may have 1 MiB", |server| post(server, LARGEST_BODY)),
    shared("descriptors", "a connection that ended leaves no descriptor behind", no_leak),
    own("body-n", "--body N bytes in the response body", body_n),
];

fn get(server: &Server) -> Verdict {
    let mut client = Client::connect(server.addr)?;
    client.ask(GET_AND_CLOSE)?.expect(200)?;
    // Bytes that Content-Length does not announce would come before the close.
    client.closes(PATIENCE)
}

fn signature(server: &Server) -> Verdict {
    let answer = served(server.addr)?;
    let (worker, pid) = answer.signature()?;
    if worker != answer.worker()? {
        return broken("one worker in body and X-Worker", format!("{worker} and {}", answer.worker()?));
    }
    let family: Vec<i32> = server.processes().iter().map(|process| process.pid).collect();
    if !family.contains(&pid) {
        return broken("the pid of one of its processes", format!("{pid}, not one of {family:?}"));
    }
    Ok(())
}

fn keep_alive_1_1(server: &Server) -> Verdict {
    let mut client = Client::connect(server.addr)?;
    for _ in 0..3 {
        client.ask(GET)?.expect(200)?;
    }
    Ok(())
}

fn close_1_1(server: &Server) -> Verdict {
    let mut client = Client::connect(server.addr)?;
    client.ask(GET)?.expect(200)?;
    client.ask(GET_AND_CLOSE)?.expect(200)?;
    client.closes(PATIENCE)
}

/// Several lines of one name are one list (RFC 9110, section 5.2), and close in it is decisive (RFC 9112, section
/// 9.3), whichever comes first.
fn close_wins(server: &Server) -> Verdict {
    for request in [
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n",
    ] {
        let mut client = Client::connect(server.addr)?;
        client.ask(request)?.expect(200)?;
        client.closes(PATIENCE)?;
    }
    Ok(())
}

fn close_1_0(server: &Server) -> Verdict {
    let mut client = Client::connect(server.addr)?;
    client.ask(b"GET / HTTP/1.0\r\n\r\n")?.expect(200)?;
    client.closes(PATIENCE)
}

/// `ab -k` hangs otherwise.
fn keep_alive_1_0(server: &Server) -> Verdict {
    let mut client = Client::connect(server.addr)?;
    for _ in 0..2 {
        let answer = client.ask(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")?;
        answer.expect(200)?;
        answer.expect_connection("keep-alive")?;
    }
    Ok(())
}

fn header_names(server: &Server) -> Verdict {
    let mut client = Client::connect(server.addr)?;
    client.ask(b"GET / HTTP/1.1\r\nhOST: a\r\ncONNECTION: CLOSE\r\n\r\n")?.expect(200)?;
    client.closes(PATIENCE)
}

/// GET and HEAD in turns, so that an answer in the wrong place has or lacks a body; only the last one closes.
fn pipelining(server: &Server) -> Verdict {
    let mut client = Client::connect(server.addr)?;
    let mut requests = [GET, HEAD].concat().repeat(4);
    requests.extend_from_slice(GET);
    requests.extend_from_slice(GET_AND_CLOSE);
    client.send(&requests)?;
    for _ in 0..4 {
        client.answer()?.expect(200)?;
        client.answer_to_head()?.expect(200)?;
    }
    client.answer()?.expect(200)?;
    client.answer()?.expect(200)?;
    client.closes(PATIENCE)
}

fn byte_by_byte(server: &Server) -> Verdict {
    let mut client = Client::connect(server.addr)?;
    for byte in GET {
        send_apart(&mut client, &[*byte])?;
    }
    client.answer()?.expect(200)
}

fn split_anywhere(server: &Server) -> Verdict {
    let mut client = Client::connect(server.addr)?;
    for position in 1..GET.len() {
        let (front, back) = GET.split_at(position);
        send_apart(&mut client, front)?;
        client.ask(back)?.expect(200)?;
    }
    Ok(())
}

/// Sends and waits until the server has read it, so that what follows comes to it as another piece.
fn send_apart(client: &mut Client, bytes: &[u8]) -> Verdict {
    client.send(bytes)?;
    client.was_read()
}

fn head(server: &Server) -> Verdict {
    let mut client = Client::connect(server.addr)?;
    let announced = client.ask(GET)?.content_length()?;
    client.send(HEAD)?;
    let answer = client.answer_to_head()?;
    answer.expect(200)?;
    if answer.content_length()? != announced {
        return broken(format!("Content-Length {announced}, as for GET"), format!("{:?}", answer.headers));
    }
    // A body would come before the next answer.
    client.ask(GET)?.expect(200)
}

fn post(server: &Server, length: usize) -> Verdict {
    let mut client = Client::connect(server.addr)?;
    let mut request = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n").into_bytes();
    // A body that looks like requests: a server that does not skip it answers them.
    request.extend(GET.iter().cycle().take(length));
    client.ask(&request)?.expect(200)?;
    client.ask(GET_AND_CLOSE)?.expect(200)?;
    client.closes(PATIENCE)
}

fn no_leak(server: &Server) -> Verdict {
    let ways_to_leave: [fn(&mut Client) -> Verdict; 3] = [
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

fn body_n(program: &Program) -> Verdict {
    let server = program.start(&["--body", "1000"])?;
    let answer = served(server.addr)?;
    answer.signature()?;
    match answer.body.len() {
        1000 => Ok(()),
        other => broken("1000 bytes in the body", other.to_string()),
    }
}
