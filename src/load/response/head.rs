//! The head of an answer: status line, header fields, empty line (RFC 9112, section 4).
//!
//! What says where the answer ends is read strictly, since a wrong guess moves the beginning of each answer behind it;
//! everything else is read as curl and Node's parser read it: a blank before the colon, a folded line, a bare LF, any
//! number of fields.

use std::ops::Range;

use memchr::memchr;

use super::body::{Chunked, Framing};
use super::{Answer, MAX_WORKERS, Malformed};

/// A longer head is an attack or a mistake; curl has the same limit.
pub const MAX_BYTES: usize = 300 * 1024;
pub const MAGIC: &[u8] = b"HTTP/1.";
/// A worker's number that has more digits is not looked for in a remembered head.
const MAX_DIGITS: usize = 5;

pub struct Head {
    pub answer: Answer,
    pub framing: Framing,
    pub bytes: usize,
    /// Where the worker's number stands, if it is one.
    pub worker_at: Option<Range<usize>>,
}

impl Head {
    /// 1xx only announces the answer (RFC 9110, section 15.2); 101 is the last that is said in HTTP.
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.answer.status) && self.answer.status != 101
    }
}

/// The head at the beginning of these bytes; `None` when its end is missing.
pub fn parse(bytes: &[u8], no_body: bool) -> Result<Option<Head>, Malformed> {
    // Some servers end a body with a line end too many.
    let start = bytes.iter().take_while(|&&byte| matches!(byte, b'\r' | b'\n')).count();
    let begun = &bytes[start..];
    if !begun.starts_with(&MAGIC[..MAGIC.len().min(begun.len())]) {
        return Err(Malformed("status line"));
    }
    let mut lines = Lines { bytes, at: start };
    let Some(line) = lines.next()? else { return Ok(None) };
    let (version, status) = status_line(line)?;
    let mut fields = Fields::default();
    loop {
        let Some(line) = lines.next()? else { return Ok(None) };
        if line.is_empty() {
            break;
        }
        fields.read(bytes, line)?;
    }
    let framing = match fields.is_chunked {
        _ if no_body || matches!(status, 100..200 | 204 | 304) => Framing::Length(0),
        Some(true) => Framing::Chunked(Chunked::START),
        // The last coding does not say where it ends, or nothing does (RFC 9112, section 6.3).
        Some(false) => Framing::UntilClose,
        None => fields.length.map_or(Framing::UntilClose, Framing::Length),
    };
    // A 1.0 server closes unless it says otherwise, a 1.1 server stays (RFC 9112, section 9.3).
    let says_close = fields.close || (version == b'0' && !fields.keep_alive);
    let close = says_close || status == 101 || framing == Framing::UntilClose;
    let number = fields.worker_at.clone().and_then(|at| decimal(&bytes[at]));
    let worker = number.and_then(worker_number);
    // Until the body has come.
    let wrong_body = worker.is_some() && status == 200 && !no_body;
    let answer = Answer { status, worker, body_bytes: 0, wrong_body, close };
    Ok(Some(Head { answer, framing, bytes: lines.at, worker_at: fields.worker_at.filter(|_| number.is_some()) }))
}

fn status_line(line: &[u8]) -> Result<(u8, u16), Malformed> {
    match line.strip_prefix(MAGIC) {
        Some(&[version @ (b'0' | b'1'), b' ', a, b, c, ref reason @ ..])
            if [a, b, c].iter().all(u8::is_ascii_digit) && matches!(reason, [] | [b' ', ..]) =>
        {
            let digit = |byte| u16::from(byte - b'0');
            Ok((version, digit(a) * 100 + digit(b) * 10 + digit(c)))
        }
        _ => Err(Malformed("status line")),
    }
}

struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Lines<'a> {
    fn next(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        let end = memchr(b'\n', &self.bytes[self.at..]).map(|length| self.at + length);
        if end.unwrap_or(self.bytes.len()) >= MAX_BYTES {
            return Err(Malformed("head too long"));
        }
        let Some(end) = end else { return Ok(None) };
        let start = std::mem::replace(&mut self.at, end + 1);
        let has_cr = end > start && self.bytes[end - 1] == b'\r';
        Ok(Some(&self.bytes[start..end - usize::from(has_cr)]))
    }
}

#[derive(Default)]
struct Fields {
    length: Option<u64>,
    /// Whether the last transfer coding is `chunked`; `None` without any.
    is_chunked: Option<bool>,
    close: bool,
    keep_alive: bool,
    /// Where the value of the last `X-Worker` stands.
    worker_at: Option<Range<usize>>,
    /// The last line was about the end of the answer.
    was_framing: bool,
}

impl Fields {
    /// `line` lies in `bytes`, and is not empty.
    fn read(&mut self, bytes: &[u8], line: &[u8]) -> Result<(), Malformed> {
        if memchr(0, line).is_some() {
            return Err(Malformed("header value"));
        }
        if matches!(line[0], b' ' | b'\t') {
            // The last value goes on in this line (RFC 9112, section 5.2).
            return if self.was_framing { Err(Malformed("header value")) } else { Ok(()) };
        }
        let colon = memchr(b':', line).ok_or(Malformed("header name"))?;
        let (name, value) = (line[..colon].trim_ascii_end(), line[colon + 1..].trim_ascii());
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        self.was_framing = false;
        // The length of a name decides almost always, without comparing letters.
        match name.len() {
            8 if is("x-worker") => {
                let start = value.as_ptr().addr() - bytes.as_ptr().addr();
                self.worker_at = Some(start..start + value.len());
            }
            10 if is("connection") => {
                self.close |= tokens(value).any(|token| token.eq_ignore_ascii_case(b"close"));
                self.keep_alive |= tokens(value).any(|token| token.eq_ignore_ascii_case(b"keep-alive"));
            }
            14 if is("content-length") => {
                self.was_framing = true;
                // The same length may be said more than once (RFC 9110, section 8.6).
                for token in value.split(|&byte| byte == b',') {
                    let length = decimal(token.trim_ascii()).ok_or(Malformed("content length"))?;
                    if self.length.replace(length).is_some_and(|other| other != length) {
                        return Err(Malformed("content length"));
                    }
                }
            }
            17 if is("transfer-encoding") => {
                self.was_framing = true;
                let last = tokens(value).last().map(|token| token.eq_ignore_ascii_case(b"chunked"));
                self.is_chunked = last.or(self.is_chunked).or(Some(false));
            }
            _ => {}
        }
        Ok(())
    }
}

fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

fn decimal(digits: &[u8]) -> Option<u64> {
    let add = |number: u64, byte: &u8| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    };
    if digits.is_empty() { None } else { digits.iter().try_fold(0, add) }
}

/// One to [`MAX_DIGITS`] digits, and what is behind them.
pub fn leading_number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let digits = bytes.iter().take(MAX_DIGITS).take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = bytes.split_at(digits);
    Some((decimal(number)?, rest))
}

pub fn worker_number(number: u64) -> Option<u32> {
    u32::try_from(number).ok().filter(|&worker| worker < MAX_WORKERS)
}
