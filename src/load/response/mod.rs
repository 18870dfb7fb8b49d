//! Answers out of bytes: [`head`] reads status line and header fields of HTTP/1, [`body`] finds the end of what follows
//! them. What bytes mean does not depend on where the network cut them.
//!
//! The common case, a whole answer in one piece, is read where it lies and copies nothing. Only a head that
//! arrives in pieces is collected, in a buffer that the connection keeps. The heads of a server under load differ only
//! in the number of the worker: each thread compares the next head with the last one first ([`CachedHead`]).

mod body;
mod head;
#[cfg(test)]
mod tests;

use std::ops::Range;

use memchr::memchr;

use body::Framing;
use head::{Head, leading_number, worker_number};

use crate::http::{SIGNATURE_BYTES, signature};

/// Worker numbers index a table; a number beyond this is not one of ours and counts as "not named".
pub const MAX_WORKERS: u32 = 65_536;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub worker: Option<u32>,
    /// Bytes of the body, without head and chunk sizes.
    pub body_bytes: u64,
    /// It names its worker, and its body does not, as the contract asks.
    pub wrong_body: bool,
    /// The connection cannot carry another one: the server announced that it closes it, or the answer ends with it.
    pub close: bool,
}

impl Answer {
    /// Compares the worker of the head with the one that the body, or its beginning, names.
    fn compare(&mut self, body: &[u8]) {
        let worker = self.worker.filter(|_| self.wrong_body);
        self.wrong_body =
            worker.is_some_and(|worker| signature(body).is_none_or(|(named, _)| named != worker as usize));
    }
}

/// The bytes are not an answer; which part of it they should have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Malformed(pub &'static str);

#[derive(Default)]
pub struct ResponseReader {
    /// The bytes of a head whose end has not come, or of the body behind it.
    beginning: Vec<u8>,
    body: Option<(Answer, Framing)>,
}

impl ResponseReader {
    /// Returns a complete answer and the number of bytes up to its end, or `None` when all of them belong to one that
    /// goes on.
    pub fn feed(&mut self, bytes: &[u8], cached_head: &mut CachedHead) -> Result<Option<(Answer, usize)>, Malformed> {
        if self.body.is_none()
            && self.beginning.is_empty()
            && let Some(whole) = cached_head.whole_answer(bytes)
        {
            return Ok(Some(whole));
        }
        let mut consumed = 0;
        let (answer, framing) = loop {
            if let Some(body) = &mut self.body {
                break body;
            }
            let Some(head) = self.read_head(&bytes[consumed..], cached_head)? else { return Ok(None) };
            consumed += head.bytes;
            if !head.is_interim() {
                self.body = Some((head.answer, head.framing));
            }
        };
        let taken = framing.take(&bytes[consumed..], &mut answer.body_bytes)?;
        if answer.wrong_body && matches!(framing, Framing::Length(_)) {
            let part = taken.min(SIGNATURE_BYTES - self.beginning.len());
            self.beginning.extend_from_slice(&bytes[consumed..][..part]);
        }
        consumed += taken;
        if !framing.is_complete() {
            return Ok(None);
        }
        answer.compare(&self.beginning);
        self.beginning.clear();
        Ok(self.body.take().map(|(answer, _)| (answer, consumed)))
    }

    /// Whether the answer ends when the server closes the connection, and not before.
    pub fn ends_with_connection(&self) -> bool {
        matches!(self.body, Some((_, Framing::UntilClose)))
    }

    /// The server closed: the end of an answer that ends with its connection, of no other.
    pub fn end(&mut self) -> Option<Answer> {
        self.body.take_if(|(_, framing)| *framing == Framing::UntilClose).map(|(answer, _)| answer)
    }

    pub fn reset(&mut self) {
        self.body = None;
        self.beginning.clear();
    }

    /// The next head; its length is the part of it that lies in *these* bytes.
    fn read_head(&mut self, bytes: &[u8], cached_head: &mut CachedHead) -> Result<Option<Head>, Malformed> {
        let held = self.beginning.len();
        if held > 0 {
            self.beginning.extend_from_slice(bytes);
            // Once it is clear that this is HTTP, only the end of a line brings something new.
            let is_http = self.beginning[..held].starts_with(head::MAGIC);
            if is_http && self.beginning.len() < head::MAX_BYTES && memchr(b'\n', bytes).is_none() {
                return Ok(None);
            }
        }
        let all = if held > 0 { &self.beginning } else { bytes };
        let Some(head) = head::parse(all, cached_head.no_body)? else {
            if held == 0 {
                self.beginning.extend_from_slice(bytes);
            }
            return Ok(None);
        };
        cached_head.remember(&all[..head.bytes], &head);
        self.beginning.clear();
        Ok(Some(Head { bytes: head.bytes - held, ..head }))
    }
}

/// The last head that was parsed: one with the same bytes, but for the worker's number, is not parsed again.
pub struct CachedHead {
    /// The answer to HEAD ends with its head.
    no_body: bool,
    /// Empty when nothing is remembered.
    head: Vec<u8>,
    /// Where the worker's number stands in it; at its end, and empty, when there is none to replace.
    worker_at: Range<usize>,
    /// The answer to the remembered head, with all of its body.
    answer: Answer,
}

impl CachedHead {
    /// A longer head is not remembered: the memory is taken beforehand.
    const MAX_BYTES: usize = 4096;

    pub fn new(no_body: bool) -> CachedHead {
        let head = Vec::with_capacity(CachedHead::MAX_BYTES);
        CachedHead { no_body, head, worker_at: 0..0, answer: Answer::default() }
    }

    fn remember(&mut self, bytes: &[u8], head: &Head) {
        let Framing::Length(body_bytes) = head.framing else { return };
        if bytes.len() > CachedHead::MAX_BYTES || head.is_interim() {
            return;
        }
        self.head.clear();
        self.head.extend_from_slice(bytes);
        self.worker_at = head.worker_at.clone().unwrap_or(bytes.len()..bytes.len());
        self.answer = Answer { body_bytes, ..head.answer };
    }

    /// The answer at the beginning of these bytes and its length, if all of it is there and its head is that one.
    fn whole_answer(&self, bytes: &[u8]) -> Option<(Answer, usize)> {
        if self.head.is_empty() {
            return None;
        }
        let (before, after) = (&self.head[..self.worker_at.start], &self.head[self.worker_at.end..]);
        let rest = bytes.strip_prefix(before)?;
        let (mut answer, body) = if after.is_empty() {
            (self.answer, rest)
        } else {
            let (number, rest) = leading_number(rest)?;
            (Answer { worker: worker_number(number), ..self.answer }, rest.strip_prefix(after)?)
        };
        let left = (body.len() as u64).checked_sub(answer.body_bytes)? as usize;
        answer.compare(&body[..body.len() - left]);
        Some((answer, bytes.len() - left))
    }
}
