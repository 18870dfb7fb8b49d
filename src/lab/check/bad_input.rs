//! Points about bad requests: the right 4xx or 5xx and a close, never a crash and never a hang.

use super::client::{ANSWER_TIMEOUT, Client, GET, served};
use super::http::LARGEST_BODY;
use super::server::Server;
use super::{Point, ProbeResult, SERVE, shared};

pub const POINTS: &[Point] = &[
    shared(SERVE, "bad-request-line", "a malformed request line gets 400 and a close", |server| {
        refused(server, b"GET /\r\n\r\n", &[400, 505])?;
        refused(server, b"GE T / HTTP/1.1\r\n\r\n", &[400, 505])?;
        refused(server, b"nonsense\r\n\r\n", &[400])
    }),
    shared(SERVE, "bad-header", "a malformed header gets 400 and a close", |server| {
        refused(server, b"GET / HTTP/1.1\r\nno colon\r\n\r\n", &[400])?;
        refused(server, b"GET / HTTP/1.1\r\n: no name\r\n\r\n", &[400])?;
        refused(server, b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", &[400])
    }),
    shared(SERVE, "bare-lf", "lines that end in a bare LF get 400 and a close", |server| {
        refused(server, b"GET / HTTP/1.1\nHost: a\n\n", &[400])
    }),
    shared(SERVE, "nul-byte", "a NUL byte gets 400 and a close", |server| {
        refused(server, b"GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", &[400])?;
        refused(server, b"GET / HTTP/1.1\r\nHost: \0\r\n\r\n", &[400])
    }),
    shared(SERVE, "long-header", "a header over 16 KiB gets 431 and a close", |server| {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\nX-Long: {}\r\n\r\n", "a".repeat(17 << 10));
        refused(server, request.as_bytes(), &[400, 431])
    }),
    shared(SERVE, "long-target", "a request line over 16 KiB gets 414 or 431 and a close", |server| {
        let request = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(17 << 10));
        refused(server, request.as_bytes(), &[400, 414, 431])
    }),
    shared(SERVE, "many-headers", "over 100 headers get 431 and a close", |server| {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(101));
        refused(server, request.as_bytes(), &[400, 431])
    }),
    shared(SERVE, "method", "an unsupported method gets 405 or 501 and a close", |server| {
        refused(server, b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", &[405, 501])
    }),
    shared(SERVE, "version", "an unsupported version gets 505 and a close", |server| {
        refused(server, b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", &[505])
    }),
    shared(SERVE, "transfer-coding", "an unsupported transfer coding gets 501 and a close", |server| {
        refused(server, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", &[501])
    }),
    shared(SERVE, "chunked", "a chunked body is taken, or refused and the connection closed", chunked),
    shared(SERVE, "two-lengths", "contradicting Content-Lengths get 400 and a close", |server| {
        refused(server, &post_with("Content-Length: 3\r\nContent-Length: 4\r\n"), &[400])
    }),
    shared(SERVE, "bad-length", "a Content-Length that is not a length gets 400 and a close", |server| {
        for length in ["-1", "+1", "abc", "0x10", "1 2", "", "99999999999999999999999"] {
            refused(server, &post_with(&format!("Content-Length: {length}\r\n")), &[400, 413])?;
        }
        Ok(())
    }),
    shared(SERVE, "length-and-coding", "Content-Length beside Transfer-Encoding is refused", |server| {
        refused(server, &post_with("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"), &[400, 411, 501])
    }),
    shared(SERVE, "body-over-1mib", "a body over 1 MiB gets 413 and a close", |server| {
        let mut request = post_with(&format!("Content-Length: {}\r\n", LARGEST_BODY + 1));
        request.resize(request.len() + LARGEST_BODY + 1, b'a');
        refused(server, &request, &[413])
    }),
    shared(SERVE, "refusal-is-whole", "every response carries Content-Length, X-Worker and the body", |server| {
        let mut client = Client::connect(server.addr)?;
        let answer = client.ask(b"nonsense\r\n\r\n")?;
        let (worker, _) = answer.signature()?;
        if answer.worker()? != worker {
            return answer.broken("one worker in body and X-Worker", format!("{worker} and {}", answer.worker()?));
        }
        Ok(())
    }),
];

/// Sends `request` and a good one behind it: the answer has one of `statuses`, the connection is closed without
/// an answer to the second, and the next client is served.
fn refused(server: &Server, request: &[u8], statuses: &[u16]) -> ProbeResult {
    let mut client = Client::connect(server.addr)?;
    client.send(request)?;
    client.send(GET)?;
    let answer = client.answer()?;
    if !statuses.contains(&answer.status) {
        return answer.broken(format!("a status of {statuses:?}"), format!("status {}", answer.status));
    }
    client.closes(ANSWER_TIMEOUT)?;
    // A server may go on reading for a moment, so that no reset overtakes its answer; we have read it.
    drop(client);
    served(server.addr).map(drop)
}

fn post_with(headers: &str) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n").into_bytes()
}

fn chunked(server: &Server) -> ProbeResult {
    let mut request = post_with("Transfer-Encoding: chunked\r\n");
    request.extend_from_slice(b"3\r\nabc\r\n0\r\n\r\n");
    let mut client = Client::connect(server.addr)?;
    let answer = client.ask(&request)?;
    match answer.status {
        200..300 => client.ask(GET)?.expect(200),
        400 | 411 | 501 => client.closes(ANSWER_TIMEOUT),
        other => answer.broken("2xx, 400, 411 or 501", other.to_string()),
    }
}
