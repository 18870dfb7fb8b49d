//! Good requests in all their forms: methods, bodies, versions, and bytes that the network may divide wherever it
//! likes.

use super::answer::answered_and_closed;
use super::client::{ANSWER_TIMEOUT, Client, GET, GET_AND_CLOSE};
use super::server::Server;
use super::{Point, ProbeResult, SERVE, shared};

const HEAD: &[u8] = b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n";

/// The most a request body may have: 1 MiB is read and discarded.
pub const LARGEST_BODY: usize = 1 << 20;

pub const POINTS: &[Point] = &[
    shared(SERVE, "connection-close-wins", "close in one Connection line beats keep-alive in another", close_wins),
    shared(SERVE, "keep-alive-1.0", "a 1.0 request for keep-alive gets `Connection: keep-alive`", keep_alive_1_0)
        .hint("HTTP/1.0 closes unless both sides say keep-alive; without the header `ab -k` waits for ever"),
    shared(SERVE, "pipelining", "ten requests in one write get ten answers in order", pipelining)
        .hint("keep the bytes behind the first request: they are the next one"),
    shared(SERVE, "byte-by-byte", "a request may come one byte at a time", byte_by_byte).hint(READ_ON),
    shared(SERVE, "split-anywhere", "a request may be split at any byte", split_anywhere).hint(READ_ON),
    shared(SERVE, "head", "HEAD is answered without a body", head)
        .hint("the head as for GET, Content-Length included, and no body behind it"),
    shared(SERVE, "post", "a request body is read and discarded", |server| post(server, 1000)).hint(SKIP_THE_BODY),
    shared(SERVE, "post-1mib", "a request body may have 1 MiB", |server| post(server, LARGEST_BODY))
        .hint(SKIP_THE_BODY),
];

const READ_ON: &str = "one read(2) is not one request: read on until the empty line (\\r\\n\\r\\n)";
const SKIP_THE_BODY: &str = "read and discard Content-Length bytes before the next request";

/// Several lines of one name are one list (RFC 9110, section 5.2), and close in it is decisive (RFC 9112, section
/// 9.3), whichever comes first.
fn close_wins(server: &Server) -> ProbeResult {
    let close_first = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n";
    let close_last = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nConnection: close\r\n\r\n";
    answered_and_closed(server, close_first)?;
    answered_and_closed(server, close_last)
}

/// `ab -k` hangs otherwise.
fn keep_alive_1_0(server: &Server) -> ProbeResult {
    let mut client = Client::connect(server.addr)?;
    for _ in 0..2 {
        let answer = client.ask(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")?;
        answer.expect(200)?;
        answer.expect_connection("keep-alive")?;
    }
    Ok(())
}

/// GET and HEAD in turns, so that an answer in the wrong place has or lacks a body; only the last one closes.
fn pipelining(server: &Server) -> ProbeResult {
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
    client.closes(ANSWER_TIMEOUT)
}

fn byte_by_byte(server: &Server) -> ProbeResult {
    let mut client = Client::connect(server.addr)?;
    for byte in GET {
        send_apart(&mut client, &[*byte])?;
    }
    client.answer()?.expect(200)
}

fn split_anywhere(server: &Server) -> ProbeResult {
    let mut client = Client::connect(server.addr)?;
    for position in 1..GET.len() {
        let (front, back) = GET.split_at(position);
        send_apart(&mut client, front)?;
        client.ask(back)?.expect(200)?;
    }
    Ok(())
}

/// Sends and waits until the server has read it, so that what follows comes to it as another piece.
fn send_apart(client: &mut Client, bytes: &[u8]) -> ProbeResult {
    client.send(bytes)?;
    client.was_read()
}

fn head(server: &Server) -> ProbeResult {
    let mut client = Client::connect(server.addr)?;
    let announced = client.ask(GET)?.content_length()?;
    client.send(HEAD)?;
    let answer = client.answer_to_head()?;
    answer.expect(200)?;
    if answer.content_length()? != announced {
        return answer.broken(format!("Content-Length {announced}, as for GET"), format!("{:?}", answer.headers));
    }
    // A body would come before the next answer.
    client.ask(GET)?.expect(200)
}

fn post(server: &Server, length: usize) -> ProbeResult {
    let mut client = Client::connect(server.addr)?;
    let mut request = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n").into_bytes();
    // A body that looks like requests: a server that does not skip it answers them.
    request.extend(GET.iter().cycle().take(length));
    client.ask(&request)?.expect(200)?;
    client.ask(GET_AND_CLOSE)?.expect(200)?;
    client.closes(ANSWER_TIMEOUT)
}
