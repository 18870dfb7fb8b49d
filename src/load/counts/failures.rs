//! What failed: errors by phase and cause, and the requests that were lost to them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use nix::errno::Errno;

use crate::load::response::Malformed;
use crate::report::{Errors, LoadReport, Lost};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The number of the errno, since [`Errno`] has no order.
    Errno(i32),
    /// The server closed before the answer was complete.
    Eof,
    Malformed(Malformed),
    /// Bytes that belong to no request: before one was sent, or behind its answer.
    Unsolicited,
    /// The answer has no length, and so ends with the connection; the server kept that open.
    NoLength,
}

impl From<Errno> for Cause {
    fn from(errno: Errno) -> Cause {
        Cause::Errno(errno as i32)
    }
}

impl Cause {
    fn name(self) -> String {
        match self {
            Cause::Errno(errno) => format!("{:?}", Errno::from_raw(errno)),
            Cause::Eof => "eof".into(),
            Cause::Malformed(Malformed(what)) => format!("malformed: {what}"),
            Cause::Unsolicited => "unsolicited".into(),
            Cause::NoLength => "no length".into(),
        }
    }
}

/// How a request that was sent or due ended without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LostCause {
    Write(Cause),
    Read(Cause),
    Timeout,
}

impl LostCause {
    fn name(self) -> String {
        match self {
            LostCause::Write(cause) => format!("write {}", cause.name()),
            LostCause::Read(cause) => format!("read {}", cause.name()),
            LostCause::Timeout => "timeout".into(),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct LostRequest {
    pub at_ns: u64,
    pub client: Option<SocketAddr>,
    pub cause: LostCause,
    pub worker: Option<u32>,
}

#[derive(Debug, Clone, Default)]
pub struct Failures {
    pub connect: BTreeMap<Cause, u64>,
    pub write: BTreeMap<Cause, u64>,
    pub read: BTreeMap<Cause, u64>,
    pub status: BTreeMap<u16, u64>,
    pub timeout: u64,
    pub lost: Vec<LostRequest>,
    pub lost_more: u64,
}

impl Failures {
    pub fn add(&mut self, other: Failures) {
        merge(&mut self.connect, other.connect);
        merge(&mut self.write, other.write);
        merge(&mut self.read, other.read);
        merge(&mut self.status, other.status);
        self.timeout += other.timeout;
        self.lost.extend(other.lost);
        self.lost.sort_by_key(|lost| lost.at_ns);
        self.lost_more += other.lost_more + self.lost.len().saturating_sub(LoadReport::MOST_LOST) as u64;
        self.lost.truncate(LoadReport::MOST_LOST);
    }

    pub fn lose(&mut self, lost: LostRequest, requests: u64) {
        match lost.cause {
            LostCause::Write(cause) => count(&mut self.write, cause, requests),
            LostCause::Read(cause) => count(&mut self.read, cause, requests),
            LostCause::Timeout => self.timeout += requests,
        }
        let named = requests.min((LoadReport::MOST_LOST - self.lost.len()) as u64);
        self.lost.extend((0..named).map(|_| lost));
        self.lost_more += requests - named;
    }

    pub fn named_lost(&self, start_ns: u64) -> Vec<Lost> {
        let named = |lost: &LostRequest| Lost {
            at_s: lost.at_ns.saturating_sub(start_ns) as f64 / 1e9,
            client: lost.client.map(|client| client.to_string()),
            cause: lost.cause.name(),
            worker: lost.worker,
        };
        self.lost.iter().map(named).collect()
    }

    pub fn total(&self) -> u64 {
        let by_cause = [&self.connect, &self.write, &self.read];
        by_cause.iter().flat_map(|counts| counts.values()).chain(self.status.values()).sum::<u64>() + self.timeout
    }

    pub fn named(&self) -> Errors {
        let by_cause =
            |counts: &BTreeMap<Cause, u64>| counts.iter().map(|(cause, &count)| (cause.name(), count)).collect();
        Errors {
            connect: by_cause(&self.connect),
            write: by_cause(&self.write),
            read: by_cause(&self.read),
            status: self.status.iter().map(|(status, &count)| (status.to_string(), count)).collect(),
            timeout: self.timeout,
        }
    }
}

fn merge<K: Ord>(into: &mut BTreeMap<K, u64>, from: BTreeMap<K, u64>) {
    from.into_iter().for_each(|(key, failed)| count(into, key, failed));
}

pub fn count<K: Ord>(failures: &mut BTreeMap<K, u64>, cause: impl Into<K>, failed: u64) {
    *failures.entry(cause.into()).or_default() += failed;
}
