//! The wire: parse a request head, skip a request body, write a response. Bytes in, bytes out, no sockets.
//!
//! HTTP/1.1 and 1.0 as far as a concurrency laboratory needs them (RFC 9110, RFC 9112): every target is the same
//! page, bodies are read and thrown away. What is refused, and how, is the table of [`Status`]. The grammar of a
//! head is httparse's; the limits, the framing rules and the refusal of a bare LF are ours. There is no `Date`
//! header: responses are rendered once per worker, not once per request.

use memchr::memchr_iter;

/// A request head (request line and headers) may have this many bytes …
pub const MAX_HEAD_BYTES: usize = 16 * 1024;
/// … and this many header lines.
pub const MAX_HEADERS: usize = 100;
/// A request body may have this many bytes; it is read and discarded.
pub const MAX_BODY_BYTES: u64 = 1 << 20;

/// What is sent to a client that announced a body with `Expect: 100-continue`.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// HTTP/1.1: stays open, and nothing needs to be said.
    Implicit,
    /// HTTP/1.0 with `Connection: keep-alive`: stays open, and the client must be told (`ab -k` waits for it).
    Announced,
    Close,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub persistence: Persistence,
    /// HEAD: the answer has no body.
    pub head_only: bool,
}

/// The ways to refuse a request. Each is sent with `Connection: close`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    BadRequest,
    MethodNotAllowed,
    RequestTimeout,
    LengthRequired,
    ContentTooLarge,
    HeaderFieldsTooLarge,
    NotImplemented,
    VersionNotSupported,
}

impl Status {
    fn line(self) -> &'static str {
        match self {
            Status::BadRequest => "400 Bad Request",
            Status::MethodNotAllowed => "405 Method Not Allowed\r\nAllow: GET, HEAD, POST, PUT",
            Status::RequestTimeout => "408 Request Timeout",
            Status::LengthRequired => "411 Length Required",
            Status::ContentTooLarge => "413 Content Too Large",
            Status::HeaderFieldsTooLarge => "431 Request Header Fields Too Large",
            Status::NotImplemented => "501 Not Implemented",
            Status::VersionNotSupported => "505 HTTP Version Not Supported",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The bytes so far are not a whole request.
    More,
    /// As `More`, and the client waits for [`CONTINUE`] before it sends the body.
    MoreAfterContinue,
    Request(Request),
    Bad(Status),
}

/// Where a connection stands in its stream of requests: between two, or inside the body of one.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestReader {
    /// The request, and the bytes of its body that are still to come.
    inside: Option<(Request, u64)>,
}

impl RequestReader {
    /// Looks at the unread bytes of a connection. Returns how many of them are done with, and what comes next.
    /// A request is handed out when its body, too, has been read.
    pub fn next(&mut self, bytes: &[u8]) -> (usize, Next) {
        if bytes.is_empty() {
            return (0, Next::More);
        }
        if self.inside.is_some() {
            return self.skip_body(bytes);
        }
        match parse_head(bytes) {
            ParsedHead::Partial => (0, Next::More),
            ParsedHead::Bad(status) => (bytes.len(), Next::Bad(status)),
            ParsedHead::Complete { head_bytes, request, body_bytes: 0, .. } => (head_bytes, Next::Request(request)),
            ParsedHead::Complete { head_bytes, request, body_bytes, expects_continue } => {
                self.inside = Some((request, body_bytes));
                let (body_read, next) = self.skip_body(&bytes[head_bytes..]);
                let next = if next == Next::More && expects_continue && body_read == 0 {
                    Next::MoreAfterContinue
                } else {
                    next
                };
                (head_bytes + body_read, next)
            }
        }
    }

    /// True when part of a request has been consumed and the rest of its body is still to come.
    pub fn is_inside_body(&self) -> bool {
        self.inside.is_some()
    }

    fn skip_body(&mut self, bytes: &[u8]) -> (usize, Next) {
        let Some((request, bytes_left)) = &mut self.inside else { return (0, Next::More) };
        let request = *request;
        let skipped = (*bytes_left).min(bytes.len() as u64);
        *bytes_left -= skipped;
        if *bytes_left > 0 {
            return (skipped as usize, Next::More);
        }
        self.inside = None;
        (skipped as usize, Next::Request(request))
    }
}

enum ParsedHead {
    Partial,
    Complete { head_bytes: usize, request: Request, body_bytes: u64, expects_continue: bool },
    Bad(Status),
}

fn parse_head(bytes: &[u8]) -> ParsedHead {
    let mut headers = [const { std::mem::MaybeUninit::uninit() }; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut []);
    let visible = &bytes[..bytes.len().min(MAX_HEAD_BYTES)];
    let head_bytes = match head.parse_with_uninit_headers(visible, &mut headers) {
        Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
        Ok(httparse::Status::Partial) if bytes.len() >= MAX_HEAD_BYTES => {
            return ParsedHead::Bad(Status::HeaderFieldsTooLarge);
        }
        Ok(httparse::Status::Partial) => return ParsedHead::Partial,
        Err(httparse::Error::TooManyHeaders) => return ParsedHead::Bad(Status::HeaderFieldsTooLarge),
        Err(httparse::Error::Version) => return judge_version(visible),
        Err(_) => return ParsedHead::Bad(Status::BadRequest),
    };
    // httparse takes a lone LF as the end of a line. A proxy in front might not, and then the two see different
    // requests (RFC 9112, section 2.2 and 11.2), so we do not.
    if has_bare_lf(&bytes[..head_bytes]) {
        return ParsedHead::Bad(Status::BadRequest);
    }
    match interpret(&head) {
        Ok((request, body_bytes, expects_continue)) => {
            ParsedHead::Complete { head_bytes, request, body_bytes, expects_continue }
        }
        Err(status) => ParsedHead::Bad(status),
    }
}

/// Applies the rules that need the meaning of the headers, not only their grammar.
fn interpret(head: &httparse::Request) -> Result<(Request, u64, bool), Status> {
    let is_1_1 = head.version == Some(1);
    let head_only = match head.method.unwrap_or_default() {
        "GET" | "POST" | "PUT" => false,
        "HEAD" => true,
        "DELETE" | "OPTIONS" | "TRACE" | "CONNECT" | "PATCH" => return Err(Status::MethodNotAllowed),
        _ => return Err(Status::NotImplemented),
    };

    let (mut says_close, mut says_keep_alive) = (false, false);
    let mut hosts = 0;
    let mut content_length: Option<u64> = None;
    let mut transfer_coding: Option<Status> = None;
    let mut expects_continue = false;
    for header in head.headers.iter() {
        // A switch on the length first: most headers of most requests do not concern us.
        match header.name.len() {
            4 if header.name.eq_ignore_ascii_case("host") => hosts += 1,
            6 if header.name.eq_ignore_ascii_case("expect") => {
                expects_continue = is_1_1 && header.value.eq_ignore_ascii_case(b"100-continue");
            }
            10 if header.name.eq_ignore_ascii_case("connection") => {
                for option in header.value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                    says_close |= option.eq_ignore_ascii_case(b"close");
                    says_keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            14 if header.name.eq_ignore_ascii_case("content-length") => {
                let length = parse_content_length(header.value).ok_or(Status::BadRequest)?;
                // Two lengths that differ are the classic smuggling request (RFC 9112, section 6.3).
                if content_length.is_some_and(|earlier| earlier != length) {
                    return Err(Status::BadRequest);
                }
                content_length = Some(length);
            }
            17 if header.name.eq_ignore_ascii_case("transfer-encoding") => {
                // A server may ask for a length instead of decoding chunks (RFC 9112, section 6.3); an
                // unknown coding is 501 (section 6.1).
                let is_chunked = header.value.trim_ascii().eq_ignore_ascii_case(b"chunked");
                transfer_coding = Some(if is_chunked { Status::LengthRequired } else { Status::NotImplemented });
            }
            _ => {}
        }
    }
    // RFC 9112, section 3.2: exactly one Host in HTTP/1.1, at most one before.
    if hosts > 1 || (is_1_1 && hosts == 0) {
        return Err(Status::BadRequest);
    }
    match (transfer_coding, content_length) {
        (Some(_), Some(_)) => return Err(Status::BadRequest),
        (Some(status), None) => return Err(status),
        (None, Some(length)) if length > MAX_BODY_BYTES => return Err(Status::ContentTooLarge),
        (None, _) => {}
    }
    // `close` wins over everything (RFC 9112, section 9.3).
    let keep_alive = !says_close && (is_1_1 || says_keep_alive);
    let persistence = match (keep_alive, is_1_1) {
        (true, true) => Persistence::Implicit,
        (true, false) => Persistence::Announced,
        (false, _) => Persistence::Close,
    };
    Ok((Request { persistence, head_only }, content_length.unwrap_or(0), expects_continue))
}

/// Digits only: no sign, no list, no overflow (RFC 9110, section 8.6).
fn parse_content_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn has_bare_lf(head: &[u8]) -> bool {
    memchr_iter(b'\n', head).any(|at| at == 0 || head[at - 1] != b'\r')
}

/// httparse refuses a version at its first odd byte, and to it a garbled line and an honest `HTTP/2.0` look the same.
/// They get different answers, and the same one however the network cuts the line: what may still become a version
/// waits for the line's end.
fn judge_version(bytes: &[u8]) -> ParsedHead {
    let is_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
    let start = bytes.iter().position(|byte| !is_end(byte)).unwrap_or(bytes.len());
    let mut lines = bytes[start..].splitn(2, is_end);
    let line = lines.next().unwrap_or_default();
    let has_ended = lines.next().is_some();
    let version = line.splitn(3, |&byte| byte == b' ').nth(2).unwrap_or_default();
    let may_become_one = version.iter().enumerate().all(|(i, &byte)| match i {
        0..=4 => byte == b"HTTP/"[i],
        6 => byte == b'.',
        _ => byte.is_ascii_digit() && i < 8,
    });
    match (may_become_one, has_ended) {
        (false, _) => ParsedHead::Bad(Status::BadRequest),
        (true, false) if bytes.len() >= MAX_HEAD_BYTES => ParsedHead::Bad(Status::HeaderFieldsTooLarge),
        (true, false) => ParsedHead::Partial,
        (true, true) if matches!(version.len(), 6 | 8) => ParsedHead::Bad(Status::VersionNotSupported),
        (true, true) => ParsedHead::Bad(Status::BadRequest),
    }
}

/// The answers of one worker, rendered once.
#[derive(Debug)]
pub struct Responses {
    worker: usize,
    pid: u32,
    /// In the order of [`Persistence`]; a HEAD answer is the first `head_bytes` of it.
    ok: [Rendered; 3],
}

#[derive(Debug)]
struct Rendered {
    bytes: Vec<u8>,
    head_bytes: usize,
}

impl Responses {
    /// `body_bytes` is what `--body` asks for; the body is never shorter than the line that names the worker.
    pub fn new(worker: usize, pid: u32, body_bytes: usize) -> Responses {
        let line = handled_by(worker, pid);
        let mut body = vec![b'.'; body_bytes.max(line.len())];
        body.iter_mut().skip(63).step_by(64).for_each(|end_of_line| *end_of_line = b'\n');
        *body.last_mut().expect("the line is in it") = b'\n';
        body[..line.len()].copy_from_slice(&line);
        let render = |connection| render("200 OK", worker, connection, &body);
        Responses { worker, pid, ok: [render(""), render("Connection: keep-alive\r\n"), render(CLOSE)] }
    }

    pub fn ok(&self, request: Request) -> &[u8] {
        let rendered = &self.ok[request.persistence as usize];
        if request.head_only { &rendered.bytes[..rendered.head_bytes] } else { &rendered.bytes }
    }

    /// The answer to a request that cannot be served; the connection ends with it.
    pub fn refusal(&self, status: Status) -> Vec<u8> {
        let mut body = handled_by(self.worker, self.pid);
        body.extend_from_slice(status.line().lines().next().unwrap_or_default().as_bytes());
        body.push(b'\n');
        render(status.line(), self.worker, CLOSE, &body).bytes
    }
}

const CLOSE: &str = "Connection: close\r\n";

fn handled_by(worker: usize, pid: u32) -> Vec<u8> {
    format!("handled by worker {worker}, pid {pid}\n").into_bytes()
}

/// In so many bytes at its beginning a body names its worker, if it does.
pub const SIGNATURE_BYTES: usize = "handled by worker 2147483647, pid 2147483647".len();

/// Worker and process as the body of an answer names them: `handled by worker I, pid P`.
pub fn signature(body: &[u8]) -> Option<(usize, i32)> {
    let (worker, rest) = leading_number(body.strip_prefix(b"handled by worker ")?)?;
    let (pid, _) = leading_number(rest.strip_prefix(b", pid ")?)?;
    Some((worker as usize, pid))
}

fn leading_number(bytes: &[u8]) -> Option<(i32, &[u8])> {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let add = |number: i32, byte: &u8| number.checked_mul(10)?.checked_add(i32::from(byte - b'0'));
    let number = bytes[..digits].iter().try_fold(0, add).filter(|_| digits > 0)?;
    Some((number, &bytes[digits..]))
}

fn render(status: &str, worker: usize, connection: &str, body: &[u8]) -> Rendered {
    let length = body.len();
    let mut bytes = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nX-Worker: {worker}\r\n\
         {connection}\r\n"
    )
    .into_bytes();
    let head_bytes = bytes.len();
    bytes.extend_from_slice(body);
    Rendered { bytes, head_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn next(bytes: &[u8]) -> Next {
        RequestReader::default().next(bytes).1
    }

    fn get(persistence: Persistence) -> Next {
        Next::Request(Request { persistence, head_only: false })
    }

    #[test]
    fn a_request_is_read_with_its_persistence() {
        for (head, expected) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Persistence::Implicit),
            ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", Persistence::Close),
            ("GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Close\r\n\r\n", Persistence::Close),
            ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nConnection: keep-alive\r\n\r\n", Persistence::Close),
            ("GET / HTTP/1.0\r\n\r\n", Persistence::Close),
            ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", Persistence::Announced),
        ] {
            assert_eq!(next(head.as_bytes()), get(expected), "{head:?}");
        }
    }

    #[test]
    fn bad_input_gets_its_status() {
        let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(MAX_HEAD_BYTES));
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(MAX_HEADERS));
        for (bytes, expected) in [
            ("nonsense\r\n\r\n", Status::BadRequest),
            ("GET / HTTP/1.1\r\n\r\n", Status::BadRequest),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", Status::BadRequest),
            ("GET / HTTP/1.1\nHost: a\n\n", Status::BadRequest),
            ("GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", Status::BadRequest),
            ("GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n", Status::BadRequest),
            ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", Status::BadRequest),
            ("GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", Status::BadRequest),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", Status::BadRequest),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n", Status::BadRequest),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", Status::BadRequest),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", Status::BadRequest),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                Status::BadRequest,
            ),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", Status::LengthRequired),
            ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", Status::NotImplemented),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1048577\r\n\r\n", Status::ContentTooLarge),
            ("DELETE / HTTP/1.1\r\nHost: a\r\n\r\n", Status::MethodNotAllowed),
            ("BREW / HTTP/1.1\r\nHost: a\r\n\r\n", Status::NotImplemented),
            ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", Status::VersionNotSupported),
            ("GET / HTTP/9\r\n\r\n", Status::VersionNotSupported),
            ("GET / FTP/1.1\r\n\r\n", Status::BadRequest),
            ("POST /x  HTTP/1.1\r\n\r\n", Status::BadRequest),
            ("\r\nGET / HTTP/2\r\n\r\n", Status::VersionNotSupported),
            (long.as_str(), Status::HeaderFieldsTooLarge),
            (many.as_str(), Status::HeaderFieldsTooLarge),
        ] {
            let shown = &bytes[..bytes.len().min(90)];
            assert_eq!(next(bytes.as_bytes()), Next::Bad(expected), "{shown:?}");
        }
    }

    #[test]
    fn a_body_is_skipped_and_the_next_request_follows() {
        let stream = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.0\r\n\r\n";
        let mut reader = RequestReader::default();
        let (used, first) = reader.next(stream);
        assert_eq!(first, get(Persistence::Implicit));
        assert_eq!(reader.next(&stream[used..]), (18, get(Persistence::Close)));
    }

    #[test]
    fn a_client_that_expects_continue_is_told_once() {
        let head = b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
        let mut reader = RequestReader::default();
        assert_eq!(reader.next(head), (head.len(), Next::MoreAfterContinue));
        assert_eq!(reader.next(b"x"), (1, Next::More));
        assert_eq!(reader.next(b"y"), (1, get(Persistence::Implicit)));
    }

    #[test]
    fn a_head_answer_has_the_length_but_not_the_body() {
        let responses = Responses::new(3, 604, 64);
        let head = Request { persistence: Persistence::Implicit, head_only: true };
        let text = String::from_utf8(responses.ok(head).to_vec()).unwrap();
        assert!(text.contains("Content-Length: 64\r\n") && text.ends_with("\r\n\r\n"), "{text:?}");
    }

    #[test]
    fn the_body_has_the_length_asked_for_and_begins_with_the_worker() {
        let request = Request { persistence: Persistence::Close, head_only: false };
        for (asked, expected) in [(0, 29), (29, 29), (64, 64), (1000, 1000)] {
            let responses = Responses::new(3, 604, asked);
            let text = String::from_utf8(responses.ok(request).to_vec()).unwrap();
            let (_, body) = text.split_once("\r\n\r\n").unwrap();
            assert_eq!(body.len(), expected);
            assert!(body.starts_with("handled by worker 3, pid 604\n") && body.ends_with('\n'));
            assert_eq!(signature(body.as_bytes()), Some((3, 604)));
        }
    }

    const DAMAGED: [&str; 6] = [
        "POST /x  HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET / HTTP/2.0\r\n\r\n",
        "\r\nGET / HTTP/1.0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcBREW / HTTP/1.1\r\nHost: a\r\n\r\n",
        "PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HEAD /a?b HTTP/9\nHost: a\r\n\r\n",
    ];

    fn odd_byte() -> impl Strategy<Value = u8> {
        prop_oneof![prop::sample::select(b" \r\n\t:/.0129HTP\0\x80".to_vec()), any::<u8>()]
    }

    /// What comes of a stream that arrives in pieces of these lengths, again and again, up to the first refusal.
    fn outcomes(stream: &[u8], cuts: &[usize]) -> Vec<Next> {
        let (mut reader, mut unread, mut found) = (RequestReader::default(), Vec::new(), Vec::new());
        let (mut at, mut cuts) = (0, cuts.iter().cycle());
        while at < stream.len() {
            let end = (at + cuts.next().unwrap()).min(stream.len());
            unread.extend_from_slice(&stream[at..end]);
            at = end;
            loop {
                let (used, next) = reader.next(&unread);
                unread.drain(..used);
                match next {
                    Next::Request(_) => found.push(next),
                    Next::Bad(_) => {
                        found.push(next);
                        return found;
                    }
                    _ => break,
                }
            }
        }
        found
    }

    proptest! {
        /// However the network cuts the stream, the same requests come out.
        #[test]
        fn any_chunking_gives_the_same_requests(cuts in proptest::collection::vec(1usize..40, 1..60)) {
            let stream = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n\
                POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nhello\r\n\r\nyo\
                HEAD / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n\r\n";
            let requests = outcomes(stream, &cuts);
            prop_assert_eq!(requests.len(), 4);
            let head = Next::Request(Request { persistence: Persistence::Announced, head_only: true });
            prop_assert_eq!(requests[2], head);
        }

        /// However the network cuts a damaged request, it gets the same status.
        #[test]
        fn any_chunking_of_a_bad_request_gives_the_same_status(
            template in 0usize..DAMAGED.len(),
            edits in proptest::collection::vec((any::<prop::sample::Index>(), 0usize..3, odd_byte()), 0..4),
            cuts in proptest::collection::vec(1usize..30, 1..20),
        ) {
            let mut stream = DAMAGED[template].as_bytes().to_vec();
            for (at, edit, byte) in edits {
                let at = at.index(stream.len());
                match edit {
                    0 => stream[at] = byte,
                    1 => stream.insert(at, byte),
                    _ => drop(stream.remove(at)),
                }
            }
            let shown = String::from_utf8_lossy(&stream).into_owned();
            let whole = outcomes(&stream, &[stream.len()]);
            prop_assert_eq!(&whole, &outcomes(&stream, &[1]), "byte by byte: {:?}", shown);
            prop_assert_eq!(&whole, &outcomes(&stream, &cuts), "{:?} in {:?}", shown, cuts);
        }

        /// Whatever arrives, the reader never panics and never claims more bytes than there are.
        #[test]
        fn garbage_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let (used, _) = RequestReader::default().next(&bytes);
            prop_assert!(used <= bytes.len());
        }

        /// The same for input that is almost a request: one byte of a good one replaced.
        #[test]
        fn a_damaged_request_is_survived(at in 0usize..53, byte in any::<u8>()) {
            let mut bytes = b"POST / HTTP/1.1\r\nHost: abc\r\nContent-Length: 4\r\n\r\nbody".to_vec();
            bytes[at] = byte;
            let (used, _) = RequestReader::default().next(&bytes);
            prop_assert!(used <= bytes.len());
        }
    }
}
