//! What came back: an HTTP/1 answer, put together from whatever pieces the network delivers. Bytes in,
//! answers out.
//!
//! The common case, a whole answer in one piece, is read where it lies and copies nothing. Only a head that
//! arrives in pieces is collected, in a buffer that the connection keeps.
//!
//! The heads of a server under load are the same bytes again and again, but for the number of the worker. So
//! each thread remembers the last head that it parsed, and the next one is compared before it is parsed: see
//! [`Template`].

use std::mem::MaybeUninit;
use std::ops::Range;

/// A head that is longer is not an answer but an attack or a mistake.
const MAX_HEAD_BYTES: usize = 64 * 1024;
const MAX_HEADERS: usize = 100;
/// Worker numbers index a table; a number beyond this is not one of ours and counts as "not named".
pub const MAX_WORKERS: u32 = 65_536;

/// One complete answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// From `X-Worker`.
    pub worker: Option<u32>,
    /// Bytes of the body, without head and chunk sizes.
    pub body_bytes: u64,
    /// The server announced that it closes the connection after this answer.
    pub close: bool,
}

/// What a piece of bytes led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The answer goes on.
    More,
    Done(Answer),
    /// Not HTTP.
    Malformed,
}

/// What a piece of bytes led to, and how many of them: fewer than all only behind a complete answer. The rest
/// is the next answer of a pipeline, or more than was promised; the caller knows what it has asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fed {
    pub progress: Progress,
    pub consumed: usize,
}

/// Reads one answer after the other from one connection.
#[derive(Default)]
pub struct Reader {
    phase: Phase,
    /// The beginning of a head that came in pieces.
    partial: Vec<u8>,
}

#[derive(Default)]
enum Phase {
    #[default]
    Head,
    Body(Answer, Framing),
}

/// How much body is left, and how its end is known (RFC 9112, section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked(Chunked),
    UntilClose,
}

/// A head, and what follows from it.
struct Head {
    answer: Answer,
    framing: Framing,
    /// Its length.
    bytes: usize,
    /// Where the worker's number stands, when it is only digits.
    worker_at: Option<Range<usize>>,
}

struct Malformed;

impl Reader {
    /// Takes the next bytes, up to the end of one answer.
    pub fn feed(&mut self, bytes: &[u8], template: &mut Template) -> Fed {
        if self.is_at_rest()
            && let Some((answer, consumed)) = template.whole_answer(bytes)
        {
            return Fed { progress: Progress::Done(answer), consumed };
        }
        match self.advance(bytes, template) {
            Ok(Some((answer, consumed))) => Fed { progress: Progress::Done(answer), consumed },
            Ok(None) => Fed { progress: Progress::More, consumed: bytes.len() },
            Err(Malformed) => Fed { progress: Progress::Malformed, consumed: bytes.len() },
        }
    }

    /// Whether the next byte begins a head.
    fn is_at_rest(&self) -> bool {
        matches!(self.phase, Phase::Head) && self.partial.is_empty()
    }

    /// The server closed: the end of an answer that only the close delimits, of no other.
    pub fn end(&mut self) -> Option<Answer> {
        match std::mem::take(&mut self.phase) {
            Phase::Body(answer, Framing::UntilClose) => Some(answer),
            _ => None,
        }
    }

    /// For the next connection.
    pub fn reset(&mut self) {
        self.phase = Phase::Head;
        self.partial.clear();
    }

    /// A complete answer and the bytes up to its end, or `None` when all bytes are used up before that.
    fn advance(
        &mut self,
        bytes: &[u8],
        template: &mut Template,
    ) -> Result<Option<(Answer, usize)>, Malformed> {
        let mut consumed = 0;
        while let Phase::Head = self.phase {
            let Some(head) = self.head(&bytes[consumed..], template)? else { return Ok(None) };
            consumed += head.bytes;
            // 1xx only announces the answer (RFC 9110, section 15.2).
            if !(100..200).contains(&head.answer.status) {
                self.phase = Phase::Body(head.answer, head.framing);
            }
        }
        let Phase::Body(answer, framing) = &mut self.phase else {
            unreachable!("the loop above ends with a body")
        };
        consumed += framing.take(&bytes[consumed..], &mut answer.body_bytes)?;
        if !framing.is_complete() {
            return Ok(None);
        }
        let answer = *answer;
        self.phase = Phase::Head;
        Ok(Some((answer, consumed)))
    }

    /// The next head; its length is the part of it that lies in *these* bytes.
    fn head(&mut self, bytes: &[u8], template: &mut Template) -> Result<Option<Head>, Malformed> {
        let held = self.partial.len();
        if held > 0 {
            self.partial.extend_from_slice(bytes);
        }
        let all = if held > 0 { &self.partial } else { bytes };
        match parse_head(all, template.no_body)? {
            Some(head) => {
                template.learn(&all[..head.bytes], &head);
                self.partial.clear();
                Ok(Some(Head { bytes: head.bytes - held, ..head }))
            }
            None if all.len() > MAX_HEAD_BYTES => Err(Malformed),
            None => {
                if held == 0 {
                    self.partial.extend_from_slice(bytes);
                }
                Ok(None)
            }
        }
    }
}

/// The last head that was parsed, of which only the worker's number may be another next time. A head that is
/// the same byte for byte means the same, and what follows from it need not be found out again. Every other
/// head goes to the parser.
///
/// One per thread, for one method: the answer to HEAD ends with its head.
pub struct Template {
    no_body: bool,
    /// Empty when nothing was learned.
    head: Vec<u8>,
    /// Where the worker's number stands in it; at its end, and empty, when there is none to replace.
    worker_at: Range<usize>,
    answer: Answer,
    body_bytes: usize,
}

impl Template {
    /// A longer head is not learned: the memory is taken beforehand.
    const MAX_BYTES: usize = 4096;
    /// A longer number is left to the parser.
    const MAX_DIGITS: usize = 5;

    pub fn new(no_body: bool) -> Template {
        Template {
            no_body,
            head: Vec::with_capacity(Template::MAX_BYTES),
            worker_at: 0..0,
            answer: Answer { status: 0, worker: None, body_bytes: 0, close: false },
            body_bytes: 0,
        }
    }

    /// As at the beginning.
    pub fn forget(&mut self) {
        self.head.clear();
    }

    fn learn(&mut self, bytes: &[u8], head: &Head) {
        let Framing::Length(body_bytes) = head.framing else { return };
        let Ok(body_bytes) = usize::try_from(body_bytes) else { return };
        if bytes.len() > Template::MAX_BYTES || (100..200).contains(&head.answer.status) {
            return;
        }
        self.head.clear();
        self.head.extend_from_slice(bytes);
        self.worker_at = head.worker_at.clone().unwrap_or(bytes.len()..bytes.len());
        self.answer = Answer { body_bytes: body_bytes as u64, ..head.answer };
        self.body_bytes = body_bytes;
    }

    /// The answer at the beginning of these bytes and its length, if its head is the learned one and all of its
    /// body is there.
    fn whole_answer(&self, bytes: &[u8]) -> Option<(Answer, usize)> {
        if self.head.is_empty() {
            return None;
        }
        let (before, after) = (&self.head[..self.worker_at.start], &self.head[self.worker_at.end..]);
        let rest = bytes.strip_prefix(before)?;
        let (answer, rest) = if after.is_empty() {
            (self.answer, rest)
        } else {
            let (number, rest) = leading_number(rest)?;
            (Answer { worker: worker_number(number), ..self.answer }, rest.strip_prefix(after)?)
        };
        let left = rest.len().checked_sub(self.body_bytes)?;
        Some((answer, bytes.len() - left))
    }
}

/// One to [`Template::MAX_DIGITS`] digits, and what is behind them.
fn leading_number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let digits = bytes.iter().take(Template::MAX_DIGITS).take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = bytes.split_at(digits);
    Some((decimal(number)?, rest))
}

fn parse_head(bytes: &[u8], no_body: bool) -> Result<Option<Head>, Malformed> {
    let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
        &mut response,
        bytes,
        &mut headers,
    );
    let head_bytes = match parsed {
        Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Malformed),
    };
    let (Some(status), Some(version)) = (response.code, response.version) else { return Err(Malformed) };
    let fields = Fields::read(response.headers)?;
    // A 1.0 server closes unless it says otherwise, a 1.1 server stays (RFC 9112, section 9.3).
    let close = fields.close || (version == 0 && !fields.keep_alive);
    let framing = if no_body || status == 204 || status == 304 {
        Framing::Length(0)
    } else if fields.chunked {
        Framing::Chunked(Chunked::Size { bytes: 0, digits: 0 })
    } else {
        fields.length.map_or(Framing::UntilClose, Framing::Length)
    };
    let close = close || framing == Framing::UntilClose;
    let worker = fields.worker.and_then(decimal).and_then(worker_number);
    let worker_at = fields.worker.filter(|value| value.iter().all(u8::is_ascii_digit)).map(|value| {
        let start = value.as_ptr().addr() - bytes.as_ptr().addr();
        start..start + value.len()
    });
    let answer = Answer { status, worker, body_bytes: 0, close };
    Ok(Some(Head { answer, framing, bytes: head_bytes, worker_at }))
}

/// The few header fields that matter.
#[derive(Default)]
struct Fields<'a> {
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    /// The value of the last `X-Worker`.
    worker: Option<&'a [u8]>,
}

impl<'a> Fields<'a> {
    fn read(headers: &[httparse::Header<'a>]) -> Result<Fields<'a>, Malformed> {
        let mut fields = Fields::default();
        for header in headers {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            // The length of a name decides almost always, without comparing letters.
            match header.name.len() {
                8 if is("x-worker") => fields.worker = Some(header.value),
                10 if is("connection") => {
                    fields.close |= has_token(header.value, "close");
                    fields.keep_alive |= has_token(header.value, "keep-alive");
                }
                14 if is("content-length") => {
                    let length = decimal(header.value).ok_or(Malformed)?;
                    if fields.length.is_some_and(|other| other != length) {
                        return Err(Malformed);
                    }
                    fields.length = Some(length);
                }
                17 if is("transfer-encoding") => fields.chunked |= has_token(header.value, "chunked"),
                _ => {}
            }
        }
        Ok(fields)
    }
}

fn worker_number(number: u64) -> Option<u32> {
    u32::try_from(number).ok().filter(|&worker| worker < MAX_WORKERS)
}

fn decimal(value: &[u8]) -> Option<u64> {
    let digits = value.trim_ascii();
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

fn has_token(value: &[u8], token: &str) -> bool {
    value.split(|&byte| byte == b',').any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

impl Framing {
    /// Takes what belongs to the body and returns how many bytes that were.
    fn take(&mut self, bytes: &[u8], body_bytes: &mut u64) -> Result<usize, Malformed> {
        match self {
            Framing::Length(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= taken as u64;
                *body_bytes += taken as u64;
                Ok(taken)
            }
            Framing::Chunked(chunked) => chunked.take(bytes, body_bytes),
            Framing::UntilClose => {
                *body_bytes += bytes.len() as u64;
                Ok(bytes.len())
            }
        }
    }

    fn is_complete(&self) -> bool {
        matches!(self, Framing::Length(0) | Framing::Chunked(Chunked::Done))
    }
}

/// The chunked transfer coding (RFC 9112, section 7.1), byte by byte except for the data. A bare LF ends a
/// line too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chunked {
    Size { bytes: u64, digits: u32 },
    Extension { bytes: u64 },
    Data { left: u64 },
    DataEnd,
    Trailer { line_is_empty: bool },
    Done,
}

impl Chunked {
    fn take(&mut self, bytes: &[u8], body_bytes: &mut u64) -> Result<usize, Malformed> {
        let mut at = 0;
        while at < bytes.len() && *self != Chunked::Done {
            if let Chunked::Data { left } = self {
                let taken = (*left).min((bytes.len() - at) as u64);
                *left -= taken;
                *body_bytes += taken;
                at += taken as usize;
                if *left == 0 {
                    *self = Chunked::DataEnd;
                }
            } else {
                *self = self.after(bytes[at])?;
                at += 1;
            }
        }
        Ok(at)
    }

    /// The state after one byte of framing.
    fn after(self, byte: u8) -> Result<Chunked, Malformed> {
        /// As many hexadecimal digits as a u64 surely holds.
        const MAX_DIGITS: u32 = 15;
        let size_known = |bytes| match bytes {
            0 => Chunked::Trailer { line_is_empty: true },
            left => Chunked::Data { left },
        };
        match (self, byte) {
            (Chunked::Size { bytes, digits: 1.. } | Chunked::Extension { bytes }, b'\n') => {
                Ok(size_known(bytes))
            }
            (Chunked::Size { bytes, digits: 1.. }, b'\r' | b';' | b' ' | b'\t') => {
                Ok(Chunked::Extension { bytes })
            }
            (Chunked::Size { bytes, digits }, _) if byte.is_ascii_hexdigit() && digits < MAX_DIGITS => {
                let digit = (byte as char).to_digit(16).unwrap_or(0);
                Ok(Chunked::Size { bytes: bytes * 16 + u64::from(digit), digits: digits + 1 })
            }
            (Chunked::Extension { bytes }, _) => Ok(Chunked::Extension { bytes }),
            (Chunked::DataEnd, b'\r') => Ok(Chunked::DataEnd),
            (Chunked::DataEnd, b'\n') => Ok(Chunked::Size { bytes: 0, digits: 0 }),
            (Chunked::Trailer { line_is_empty: true }, b'\n') => Ok(Chunked::Done),
            (Chunked::Trailer { .. }, b'\n') => Ok(Chunked::Trailer { line_is_empty: true }),
            (Chunked::Trailer { line_is_empty }, b'\r') => Ok(Chunked::Trailer { line_is_empty }),
            (Chunked::Trailer { .. }, _) => Ok(Chunked::Trailer { line_is_empty: false }),
            _ => Err(Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, worker: Option<u32>, body_bytes: u64, close: bool) -> Progress {
        Progress::Done(Answer { status, worker, body_bytes, close })
    }

    fn feed(reader: &mut Reader, bytes: &[u8]) -> Progress {
        reader.feed(bytes, &mut Template::new(false)).progress
    }

    /// Feeds the bytes whole, then to a fresh reader one by one, then whole to one that has seen them before, and
    /// expects the same outcome.
    fn read(bytes: &str) -> Progress {
        let mut template = Template::new(false);
        let whole = Reader::default().feed(bytes.as_bytes(), &mut template);
        let again = Reader::default().feed(bytes.as_bytes(), &mut template);
        assert_eq!(whole, again, "the first and the second time differ for {bytes:?}");
        assert_eq!(whole.consumed, bytes.len());
        let mut reader = Reader::default();
        let mut last = Progress::More;
        for byte in bytes.as_bytes().chunks(1) {
            last = feed(&mut reader, byte);
            if last == Progress::Malformed {
                break;
            }
        }
        assert_eq!(whole.progress, last, "in one piece and byte by byte differ for {bytes:?}");
        last
    }

    #[test]
    fn an_answer_with_a_length_is_read_whole_and_byte_by_byte() {
        let bytes = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Worker: 3\r\n\r\nhello";
        assert_eq!(read(bytes), answer(200, Some(3), 5, false));
    }

    #[test]
    fn header_names_and_tokens_ignore_case() {
        let bytes = "HTTP/1.1 200 OK\r\ncontent-LENGTH: 0\r\nx-worker: 12\r\nCONNECTION: foo, Close\r\n\r\n";
        assert_eq!(read(bytes), answer(200, Some(12), 0, true));
    }

    #[test]
    fn a_server_of_version_1_0_closes_unless_it_says_otherwise() {
        assert_eq!(read("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"), answer(200, None, 0, true));
        let bytes = "HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n";
        assert_eq!(read(bytes), answer(200, None, 0, false));
    }

    #[test]
    fn chunks_extensions_and_trailers_are_read() {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let body = "5\r\nhello\r\nA;name=value\r\n0123456789\r\n0\r\nDate: now\r\n\r\n";
        assert_eq!(read(&format!("{head}{body}")), answer(200, None, 15, false));
        assert_eq!(read(&format!("{head}0\r\n\r\n")), answer(200, None, 0, false));
        for bad in ["xyz\r\n", "5\r\nhelloX", "\r\n", "1234567890abcdef0\r\n"] {
            assert_eq!(read(&format!("{head}{bad}")), Progress::Malformed, "{bad:?}");
        }
    }

    #[test]
    fn an_answer_without_a_length_ends_with_the_connection() {
        let mut reader = Reader::default();
        assert_eq!(feed(&mut reader, b"HTTP/1.1 200 OK\r\n\r\nhello"), Progress::More);
        assert_eq!(reader.end(), Some(Answer { status: 200, worker: None, body_bytes: 5, close: true }));
    }

    #[test]
    fn a_close_in_the_middle_of_an_answer_is_no_end() {
        for bytes in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell"] {
            let mut reader = Reader::default();
            feed(&mut reader, bytes.as_bytes());
            assert_eq!(reader.end(), None, "{bytes:?}");
        }
    }

    #[test]
    fn interim_answers_are_skipped() {
        let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
        let bytes = format!("{interim}HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno");
        assert_eq!(read(&bytes), answer(404, None, 2, false));
    }

    #[test]
    fn answers_that_never_have_a_body_end_with_their_head() {
        assert_eq!(read("HTTP/1.1 204 No Content\r\n\r\n"), answer(204, None, 0, false));
        assert_eq!(
            read("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"),
            answer(304, None, 0, false)
        );
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n";
        let fed = Reader::default().feed(head, &mut Template::new(true));
        assert_eq!(fed, Fed { progress: answer(200, None, 0, false), consumed: head.len() });
    }

    #[test]
    fn more_than_was_promised_is_left_to_the_caller() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhello";
        let fed = Reader::default().feed(bytes, &mut Template::new(false));
        assert_eq!(fed, Fed { progress: answer(200, None, 2, false), consumed: bytes.len() - 3 });
    }

    #[test]
    fn two_answers_and_a_half_in_one_piece_are_two_answers_and_a_half() {
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
        let fixed = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Worker: 7\r\n\r\nok";
        let bare = "HTTP/1.1 204 No Content\r\n\r\n";
        for (first, second, third) in [(fixed, fixed, fixed), (chunked, bare, fixed), (bare, fixed, chunked)]
        {
            let expected = [first, second, third].map(read);
            for cut in 0..third.len() {
                let (head, tail) = third.split_at(cut);
                let piece = format!("{first}{second}{head}");
                let (mut reader, mut template) = (Reader::default(), Template::new(false));
                let one = reader.feed(piece.as_bytes(), &mut template);
                assert_eq!(one, Fed { progress: expected[0], consumed: first.len() });
                let two = reader.feed(&piece.as_bytes()[first.len()..], &mut template);
                assert_eq!(two, Fed { progress: expected[1], consumed: second.len() });
                let half = reader.feed(&piece.as_bytes()[first.len() + second.len()..], &mut template);
                assert_eq!(half, Fed { progress: Progress::More, consumed: head.len() });
                let three = reader.feed(tail.as_bytes(), &mut template);
                assert_eq!(three, Fed { progress: expected[2], consumed: tail.len() });
            }
        }
    }

    #[test]
    fn only_the_number_of_the_worker_may_differ_from_what_was_learned() {
        let first = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Worker: 3\r\n\r\n";
        let mut template = Template::new(false);
        Reader::default().feed(first.as_bytes(), &mut template);
        let known = |bytes: &str| template.whole_answer(bytes.as_bytes());
        for (worker, expected) in [("0", Some(0)), ("17", Some(17)), ("00004", Some(4)), ("65536", None)] {
            let bytes = format!("{}ok", first.replace("3", worker));
            let answer = Answer { status: 200, worker: expected, body_bytes: 2, close: false };
            assert_eq!(known(&bytes), Some((answer, bytes.len())));
        }
        for (from, to) in [
            ("200", "201"),
            (": 2", ": 3"),
            ("X-", "x-"),
            ("3", ""),
            ("3", "3 "),
            ("3", "000003"),
            ("3", "-3"),
        ] {
            assert_eq!(known(&format!("{}ok", first.replace(from, to))), None, "{from:?} → {to:?}");
        }
        assert_eq!(known(&format!("{first}o")), None, "half a body");
        assert_eq!(known(&first.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\nok")), None);
    }

    mod whatever_was_learned {
        use super::*;
        use proptest::prelude::*;
        use proptest::sample::select;

        fn head() -> impl Strategy<Value = String> {
            let status = select(vec!["200 OK", "204 No Content", "100 Continue", "503 No"]);
            let fields = prop::collection::vec(
                select(vec![
                    "Content-Length: 2",
                    "Content-Length: 12",
                    "X-Worker: 3",
                    "X-Worker: 4",
                    "X-Worker: 12",
                    "X-Worker:  8 ",
                    "X-Worker: one",
                    "Connection: close",
                    "Transfer-Encoding: chunked",
                    "Date: Sat",
                ]),
                0..5,
            );
            (status, fields).prop_map(|(status, fields)| {
                let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
                format!("HTTP/1.1 {status}\r\n{fields}\r\nhello, world")
            })
        }

        proptest! {
            /// The head that was learned, and one that differs in a byte, a few bytes or altogether.
            #[test]
            fn answers_are_read_as_without_it(
                learned in head(),
                other in head(),
                takes_other in any::<bool>(),
                changes in prop::collection::vec((any::<prop::sample::Index>(), select(b"0123 :\r\nxX-".to_vec())), 0..3),
                cut in any::<prop::sample::Index>(),
            ) {
                let mut template = Template::new(false);
                Reader::default().feed(learned.as_bytes(), &mut template);
                let mut bytes = if takes_other { other } else { learned }.into_bytes();
                for (at, byte) in changes {
                    let at = at.index(bytes.len());
                    bytes[at] = byte;
                }
                let fresh = Reader::default().feed(&bytes, &mut Template::new(false));
                prop_assert_eq!(Reader::default().feed(&bytes, &mut template), fresh);
                let piece = &bytes[..cut.index(bytes.len())];
                let fresh = Reader::default().feed(piece, &mut Template::new(false));
                prop_assert_eq!(Reader::default().feed(piece, &mut template), fresh);
            }
        }
    }

    #[test]
    fn what_is_not_http_is_malformed() {
        let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(MAX_HEAD_BYTES));
        for bytes in [
            "SSH-2.0-OpenSSH\r\n",
            "HTTP/2 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
            &long,
        ] {
            assert_eq!(feed(&mut Reader::default(), bytes.as_bytes()), Progress::Malformed);
        }
    }

    #[test]
    fn an_absurd_worker_number_counts_as_unnamed() {
        for worker in ["65536", "4294967296", "-1", "", "one"] {
            let bytes = format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Worker: {worker}\r\n\r\n");
            assert_eq!(read(&bytes), answer(200, None, 0, false));
        }
    }

    #[test]
    fn a_reader_reads_one_answer_after_the_other() {
        let mut reader = Reader::default();
        for worker in 0..3 {
            let bytes = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Worker: {worker}\r\n\r\nok");
            let (first, second) = bytes.as_bytes().split_at(20);
            assert_eq!(feed(&mut reader, first), Progress::More);
            assert_eq!(feed(&mut reader, second), answer(200, Some(worker), 2, false));
        }
    }
}
