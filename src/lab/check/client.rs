//! The program as seen from the network: a blocking client on a raw socket that never waits without a deadline and
//! sends exactly the bytes it is given.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::SockRef;

use super::{CommonCause, NotHeld, ProbeResult, SentRequest, broken, not_applicable};
use crate::http::signature;
use crate::lab::deadline::Deadline;
use crate::lab::observe::processes::poll_until;
use crate::sys::sock_diag::tcp_connection;

/// How long an answer may take that needs no time at all.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The shortest request with nothing special about it.
pub const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// The same from a client that sends no second request.
pub const GET_AND_CLOSE: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

/// One connection.
pub struct Client {
    pub stream: TcpStream,
    /// Received and not yet part of an answer.
    received: Vec<u8>,
    answers: usize,
    /// What was sent since the last answer; after an answer it stays until the next is sent.
    sent: SentRequest,
    /// How the server has ended it: `closed` or `reset`.
    end: &'static str,
}

/// One response, whole.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// What it answers.
    sent: SentRequest,
}

/// Asks once on a connection of its own and expects a 200 within [`ANSWER_TIMEOUT`]: the server is alive.
pub fn served(addr: SocketAddr) -> ProbeResult<Response> {
    served_within(addr, ANSWER_TIMEOUT)
}

/// The same for a server that may keep us waiting for longer.
pub fn served_within(addr: SocketAddr, timeout: Duration) -> ProbeResult<Response> {
    let mut client = Client::connect(addr)?;
    client.send(GET_AND_CLOSE)?;
    let answer = client.answer_within(timeout)?;
    answer.expect(200)?;
    Ok(answer)
}

impl Client {
    pub fn connect(addr: SocketAddr) -> ProbeResult<Client> {
        let connected = TcpStream::connect_timeout(&addr, ANSWER_TIMEOUT).and_then(|stream| {
            // Each write leaves as a segment of its own; otherwise no request would arrive in pieces.
            stream.set_nodelay(true)?;
            stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
            Ok(stream)
        });
        match connected {
            Ok(stream) => {
                let (received, sent) = (Vec::new(), SentRequest::default());
                Ok(Client { stream, received, answers: 0, sent, end: "closed" })
            }
            Err(error) => broken(format!("a connection to {addr}"), error.to_string()),
        }
    }

    /// Sends `bytes`. A server may answer and close before it has read the last of them; only the answer shows whether
    /// that was right.
    pub fn send(&mut self, bytes: &[u8]) -> ProbeResult {
        if self.sent.request <= self.answers {
            self.sent = SentRequest { request: self.answers + 1, ..SentRequest::default() };
        }
        self.sent.add(bytes);
        match self.stream.write_all(bytes) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                self.broken("the request is read", format!("it is not read for {ANSWER_TIMEOUT:?}"))
            }
            _ => Ok(()),
        }
    }

    /// Sends a request (no HEAD) and awaits its answer.
    pub fn ask(&mut self, request: &[u8]) -> ProbeResult<Response> {
        self.send(request)?;
        self.answer()
    }

    pub fn answer(&mut self) -> ProbeResult<Response> {
        self.answer_within(ANSWER_TIMEOUT)
    }

    pub fn answer_within(&mut self, timeout: Duration) -> ProbeResult<Response> {
        self.read_answer(true, timeout)
    }

    /// An answer, or a close without one.
    pub fn answer_or_close(&mut self, within: Duration) -> ProbeResult<Option<Response>> {
        self.read(true, within)
    }

    /// An answer to HEAD: its Content-Length announces a body that does not come.
    pub fn answer_to_head(&mut self) -> ProbeResult<Response> {
        self.read_answer(false, ANSWER_TIMEOUT)
    }

    /// The server closes the connection, and sends nothing before it does.
    pub fn closes(&mut self, within: Duration) -> ProbeResult {
        let expected = format!("the connection is closed within {within:?}");
        match self.receive(&mut Deadline::after(within)) {
            Ok(0) if self.received.is_empty() => Ok(()),
            Ok(_) => self.broken(expected, format!("{} more bytes: {}", self.received.len(), self.shown())),
            Err(error) if is_timeout(&error) => self.broken(expected, "it stays open"),
            // A reset is a close by a server that had not read everything.
            Err(_) => Ok(()),
        }
    }

    /// Closes with a reset (SO_LINGER of zero, socket(7)).
    pub fn reset(self) {
        let lingerless = SockRef::from(&self.stream).set_linger(Some(Duration::ZERO));
        lingerless.expect("a TCP socket takes SO_LINGER");
    }

    /// Waits until every byte we sent has arrived and the server has taken it out of its socket.
    pub fn was_read(&self) -> ProbeResult {
        let (ours, theirs) = self.addresses()?;
        let read = poll_until(ANSWER_TIMEOUT, || match (tcp_connection(ours, theirs), tcp_connection(theirs, ours)) {
            (Err(errno), _) | (_, Err(errno)) => Some(not_applicable(format!("sock_diag(7): {errno}"))),
            (Ok(Some(near)), Ok(Some(far))) => (near.sent == 0 && far.received == 0).then_some(Ok(())),
            _ => None,
        });
        read.unwrap_or_else(|| self.broken("the request is read", "it is not read"))
    }

    /// Waits until an answer has begun to arrive and, since we do not read it, no more of it comes: the sockets are
    /// full, or the server has sent everything.
    pub fn lets_answers_pile_up(&self) -> ProbeResult {
        let (ours, theirs) = self.addresses()?;
        // A server that has an answer ready does not pause for so long in the middle of sending.
        let standstill = Duration::from_millis(50);
        let mut last = (0, Instant::now());
        let piled_up = poll_until(ANSWER_TIMEOUT, || match tcp_connection(ours, theirs) {
            Err(errno) => Some(not_applicable(format!("sock_diag(7): {errno}"))),
            Ok(Some(near)) if near.received != last.0 => {
                last = (near.received, Instant::now());
                None
            }
            Ok(_) => (last.0 > 0 && last.1.elapsed() >= standstill).then_some(Ok(())),
        });
        piled_up.unwrap_or_else(|| self.broken("an answer begins to arrive", format!("{} bytes came", last.0)))
    }

    /// The addresses of both ends, ours first.
    fn addresses(&self) -> ProbeResult<(SocketAddr, SocketAddr)> {
        match (self.stream.local_addr(), self.stream.peer_addr()) {
            (Ok(ours), Ok(theirs)) => Ok((ours, theirs)),
            // A connection that was reset has no peer any more (getpeername(2)).
            (Err(_), _) | (_, Err(_)) if self.answers > 0 => Err(self.closed_after_an_answer()),
            (Err(error), _) | (_, Err(error)) => self.broken("the connection stays open", error.to_string()),
        }
    }

    fn read_answer(&mut self, with_body: bool, timeout: Duration) -> ProbeResult<Response> {
        match self.read(with_body, timeout)? {
            Some(answer) => Ok(answer),
            None if self.answers > 0 => Err(self.closed_after_an_answer()),
            None => self.broken("an answer", format!("the connection is {} without one", self.end)),
        }
    }

    /// Nothing has asked for a close: a probe sends nothing behind `Connection: close`.
    fn closed_after_an_answer(&self) -> NotHeld {
        let found = format!("the connection is closed after answer {}", self.answers);
        NotHeld::new("an answer on the same connection", found).after(&self.sent).because(CommonCause::KeepAlive)
    }

    fn broken<T>(&self, expected: impl Into<String>, found: impl Into<String>) -> ProbeResult<T> {
        Err(NotHeld::new(expected, found).after(&self.sent))
    }

    /// An answer, or nothing where the connection was closed before its first byte.
    fn read(&mut self, with_body: bool, timeout: Duration) -> ProbeResult<Option<Response>> {
        let mut deadline = Deadline::after(timeout);
        loop {
            if let Some(answer) = self.take_answer(with_body)? {
                return Ok(Some(answer));
            }
            match self.receive(&mut deadline) {
                Ok(count) if count > 0 => {}
                Err(error) if is_timeout(&error) => {
                    return self.broken("an answer or a close", format!("{} in {timeout:?}", self.shown()));
                }
                ended => {
                    self.end = if ended.is_ok() { "closed" } else { "reset" };
                    if self.received.is_empty() {
                        return Ok(None);
                    }
                    let found = format!("the connection is {} after {}", self.end, self.shown());
                    return self.broken("a whole answer", found);
                }
            }
        }
    }

    /// Takes one answer off what was received, if it is there in full.
    fn take_answer(&mut self, with_body: bool) -> ProbeResult<Option<Response>> {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut head = httparse::Response::new(&mut headers);
        let head_length = match head.parse(&self.received) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return self.broken("an HTTP response", format!("{error}: {}", self.shown())),
        };
        let owned =
            |header: &httparse::Header| (header.name.into(), String::from_utf8_lossy(header.value).into_owned());
        let mut answer = Response {
            status: head.code.expect("a complete head has a status"),
            headers: head.headers.iter().map(owned).collect(),
            body: Vec::new(),
            sent: self.sent.clone(),
        };
        let body_length = if with_body { answer.content_length()? } else { 0 };
        if self.received.len() < head_length + body_length {
            return Ok(None);
        }
        answer.body = self.received[head_length..head_length + body_length].to_vec();
        self.received.drain(..head_length + body_length);
        self.answers += 1;
        Ok(Some(answer))
    }

    fn receive(&mut self, deadline: &mut Deadline) -> std::io::Result<usize> {
        let mut buffer = [0; 65536];
        loop {
            let pause = deadline.next_look().ok_or(ErrorKind::TimedOut)?;
            self.stream.set_read_timeout(Some(pause))?;
            match self.stream.read(&mut buffer) {
                Err(error) if is_timeout(&error) => {}
                // Whoever was stopped and goes on has this, too, where a receive has a time-out (signal(7)).
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                received => {
                    let count = received?;
                    self.received.extend_from_slice(&buffer[..count]);
                    return Ok(count);
                }
            }
        }
    }

    fn shown(&self) -> String {
        if self.received.is_empty() {
            return "no byte".into();
        }
        let start = &self.received[..self.received.len().min(120)];
        format!("{:?}", String::from_utf8_lossy(start))
    }
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name))?;
        Some(value)
    }

    /// A point is broken by this answer.
    pub fn broken<T>(&self, expected: impl Into<String>, found: impl Into<String>) -> ProbeResult<T> {
        Err(NotHeld::new(expected, found).after(&self.sent))
    }

    pub fn content_length(&self) -> ProbeResult<usize> {
        self.number("Content-Length")
    }

    /// The number in `X-Worker`.
    pub fn worker(&self) -> ProbeResult<usize> {
        self.number("X-Worker")
    }

    fn number(&self, header: &str) -> ProbeResult<usize> {
        let value = self.header(header);
        let number = value.and_then(|value| value.parse().ok());
        number.map_or_else(|| self.broken(format!("`{header}: N`"), format!("{value:?} in {:?}", self.headers)), Ok)
    }

    pub fn expect(&self, status: u16) -> ProbeResult {
        if self.status == status {
            return Ok(());
        }
        self.broken(format!("status {status}"), format!("status {}", self.status))
    }

    /// The connection option it carries is `option` (`close`, `keep-alive`), in any case.
    pub fn expect_connection(&self, option: &str) -> ProbeResult {
        match self.header("connection") {
            Some(value) if value.eq_ignore_ascii_case(option) => Ok(()),
            Some(value) => self.broken(format!("`Connection: {option}`"), format!("`Connection: {value}`")),
            None => self.broken(format!("`Connection: {option}`"), "no Connection header"),
        }
    }

    /// Worker and process as the body names them: `handled by worker I, pid P`.
    pub fn signature(&self) -> ProbeResult<(usize, i32)> {
        let expected = "a body that begins `handled by worker I, pid P`";
        let found = || format!("{:?}", String::from_utf8_lossy(&self.body));
        signature(&self.body).map_or_else(|| self.broken(expected, found()), Ok)
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
