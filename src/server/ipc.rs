//! The channel between Node's cluster and its workers: a Unix stream socket, one JSON value a line, and a descriptor as
//! SCM_RIGHTS with its line (unix(7)). Here are both ends.
//!
//! A line that carries a descriptor is wrapped as `{"cmd":"NODE_HANDLE","type":…,"msg":…}` and answered with
//! `NODE_HANDLE_ACK`, or `NODE_HANDLE_NACK` where the descriptor did not arrive; until then nothing else is sent, so
//! that the order stays. See `lib/internal/child_process.js` of Node 20.
//!
//! Nothing blocks: what the socket does not take waits here, and what it brings may end in the middle of a line.
//! Whatever does not follow the protocol is reported and passed over.
//!
//! What comes with every connection is cheap: its message is written as text into a line that was used before, and its
//! acknowledgement and its answer are read without making a [`Value`] of them.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::io::Write;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use memchr::memchr;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::failure::Failure;
use crate::sys::epoll::Interest;
use crate::sys::fd::{receive_with_fds, send_with_fd};

/// No message of the protocol is nearly as long. A longer line is a message of the program's own: only its bytes are
/// counted, and it is not kept.
pub const LONGEST_LINE: usize = 1 << 20;

/// What the line of a message with a descriptor begins with, as Node writes it.
const WITH_HANDLE: &[u8] = b"{\"cmd\":\"NODE_HANDLE\",";

const PING: &[u8] =
    b"{\"cmd\":\"NODE_HANDLE\",\"type\":\"net.Native\",\"msg\":{\"cmd\":\"NODE_CLUSTER\",\"act\":\"heartbeat\"}}\n";

const ACKNOWLEDGEMENT: &[u8] = b"{\"cmd\":\"NODE_HANDLE_ACK\"}";

/// A buffer for a line is used again unless one message has made it larger than this.
const MOST_SPARE_BYTES: usize = 4096;

/// While this much waits for the other end to take it, nothing is received from there.
const MOST_UNSENT_BYTES: usize = 256 * 1024;

/// How often a descriptor that did not arrive is sent again, as in Node.
const MOST_RETRANSMISSIONS: u32 = 3;

pub const BUFFER_BYTES: usize = 64 * 1024;

#[derive(Debug)]
pub enum Incoming {
    /// A message, unwrapped and acknowledged where it came with a descriptor.
    Message(Value, Option<OwnedFd>),
    /// What has become of the connection with this number: the only message that comes for each connection.
    Answer { ack: u64, accepted: bool },
    /// A connection, expected if its handle is that of [`Ipc::expected_key`]. It is to be answered with
    /// [`Ipc::answer_connection`].
    Connection { seq: u64, is_expected: bool, connection: OwnedFd },
    /// A message of so many bytes, more than [`LONGEST_LINE`].
    Large(usize),
    /// The descriptor that was sent with this tag did not arrive, however often it was sent.
    Undelivered(u64),
    /// Something that the protocol does not know; it has been passed over.
    Violation(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    Something,
    Nothing,
    End,
}

pub struct Ipc {
    socket: OwnedFd,
    /// The beginning of a line, whose end has not arrived.
    line: Vec<u8>,
    /// That line is too long to be kept: so many bytes of it have come besides.
    skipped: Option<usize>,
    /// It came with a line that has no end yet.
    handle: Option<OwnedFd>,
    outbox: VecDeque<OutgoingMessage>,
    /// Bytes of the first message that have been sent.
    sent: usize,
    pub unsent_bytes: usize,
    /// Sent with its descriptor, and not acknowledged.
    unacknowledged: Option<OutgoingMessage>,
    /// Connections of this handle are expected.
    pub expected_key: Option<String>,
    spare: Vec<u8>,
    is_full: bool,
    /// The other end takes nothing any more.
    pub is_broken: bool,
    /// The kernel has too many descriptors on their way (unix(7), ETOOMANYREFS), and does not say when that ends:
    /// [`Ipc::flush`] again in a while.
    pub is_starved: bool,
}

#[derive(Default)]
struct OutgoingMessage {
    line: Vec<u8>,
    handle: Option<(Arc<OwnedFd>, u64)>,
    /// It says what has become of a descriptor, and is not held back while ours are unacknowledged.
    is_acknowledgement: bool,
    /// It speaks of a descriptor that it does not have.
    is_ping: bool,
    retransmissions: u32,
}

#[derive(Serialize)]
struct WithHandle<'a, M> {
    cmd: &'static str,
    r#type: &'static str,
    msg: &'a M,
}

/// In whatever order its fields come; others do not matter.
#[derive(Deserialize)]
struct ConnectionAnswer<'a> {
    cmd: &'a str,
    ack: u64,
    accepted: bool,
}

#[derive(Deserialize)]
struct Passed<'a> {
    #[serde(borrow)]
    msg: NewConnection<'a>,
}

#[derive(Deserialize)]
struct NewConnection<'a> {
    act: &'a str,
    // Borrowed unless there is something in it that JSON writes in another way.
    #[serde(borrow)]
    key: Cow<'a, str>,
    seq: u64,
}

/// The message that a connection of this key comes with, up to its number.
pub fn connection_head(key: &str) -> String {
    let key = Value::from(key);
    format!(
        r#"{{"cmd":"NODE_HANDLE","type":"net.Native","msg":{{"cmd":"NODE_CLUSTER","act":"newconn","key":{key},"seq":"#
    )
}

impl Ipc {
    pub fn pair() -> Result<(Ipc, OwnedFd), Failure> {
        let (ours, theirs) = UnixStream::pair()
            .map_err(|error| Failure::new("open a Unix socket pair", error).advise("raise ulimit -n"))?;
        Ok((Ipc::over(ours.into()), theirs.into()))
    }

    pub fn over(socket: OwnedFd) -> Ipc {
        Ipc {
            socket,
            line: Vec::new(),
            skipped: None,
            handle: None,
            outbox: VecDeque::new(),
            sent: 0,
            unsent_bytes: 0,
            unacknowledged: None,
            expected_key: None,
            spare: Vec::new(),
            is_full: false,
            is_broken: false,
            is_starved: false,
        }
    }

    /// Says that a connection has arrived, and what has become of it, in one message, ahead of what waits.
    pub fn answer_connection(&mut self, seq: u64, accepted: bool, our_seq: u64) {
        let mut line = self.empty_line();
        line.extend_from_slice(ACKNOWLEDGEMENT);
        let answer =
            format_args!("\n{{\"cmd\":\"NODE_CLUSTER\",\"ack\":{seq},\"accepted\":{accepted},\"seq\":{our_seq}}}\n");
        line.write_fmt(answer).expect("memory takes it");
        self.post_message(OutgoingMessage { line, is_acknowledgement: true, ..OutgoingMessage::default() });
    }

    /// Sends a message, or keeps it until it can be sent.
    pub fn send(&mut self, message: &impl Serialize) {
        self.post(message, None);
    }

    /// Sends a message with a copy of a stream socket, listening or connected. The tag names it to us.
    pub fn send_handle(&mut self, message: &impl Serialize, handle: Arc<OwnedFd>, tag: u64) {
        let message = WithHandle { cmd: "NODE_HANDLE", r#type: "net.Native", msg: message };
        self.post(&message, Some((handle, tag)));
    }

    /// Passes a connection of a handle, of which all that is the same each time has been written once
    /// ([`connection_head`]); the number is its tag.
    pub fn send_connection(&mut self, head: &str, seq: u64, connection: Arc<OwnedFd>) {
        let mut line = self.empty_line();
        line.extend_from_slice(head.as_bytes());
        line.write_fmt(format_args!("{seq}}}}}\n")).expect("memory takes it");
        self.post_message(OutgoingMessage { line, handle: Some((connection, seq)), ..OutgoingMessage::default() });
    }

    /// The tags of those descriptors that nothing has been sent of yet. They are not sent any more.
    pub fn recall(&mut self) -> Vec<u64> {
        let begun = usize::from(self.sent > 0);
        let is_recalled = |message: &OutgoingMessage| message.handle.is_some();
        let (recalled, kept): (Vec<_>, Vec<_>) = self.outbox.drain(begun..).partition(is_recalled);
        self.outbox.extend(kept);
        self.unsent_bytes -= recalled.iter().map(|message| message.line.len()).sum::<usize>();
        recalled.into_iter().filter_map(|message| message.handle).map(|(_, tag)| tag).collect()
    }

    /// Asks for a sign of life: a message that speaks of a descriptor and has none. The other end's library says that
    /// it did not arrive (`NODE_HANDLE_NACK`), without asking its program.
    pub fn ping(&mut self) {
        self.post_message(OutgoingMessage { line: PING.to_vec(), is_ping: true, ..OutgoingMessage::default() });
    }

    /// Something was sent that the other end's library acknowledges as soon as it reads it.
    pub fn awaits_acknowledgement(&self) -> bool {
        self.unacknowledged.is_some()
    }

    pub fn flush(&mut self) {
        self.is_full = false;
        self.is_starved = false;
        while let Some(message) = self.outbox.front() {
            if self.unacknowledged.is_some() && !message.is_acknowledgement {
                return;
            }
            let handle = message.handle.as_ref().filter(|_| self.sent == 0).map(|(handle, _)| handle.as_fd());
            match send_with_fd(&self.socket, &message.line[self.sent..], handle) {
                Ok(sent) => {
                    self.sent += sent;
                    self.unsent_bytes -= sent;
                    if self.sent == message.line.len() {
                        self.sent = 0;
                        let message = self.outbox.pop_front().expect("it was just looked at");
                        match message.handle.is_some() || message.is_ping {
                            true => self.unacknowledged = Some(message),
                            false => self.recycle(message),
                        }
                    }
                }
                Err(Errno::EAGAIN) => return self.is_full = true,
                Err(Errno::ETOOMANYREFS | Errno::ENOBUFS | Errno::ENOMEM) => return self.is_starved = true,
                Err(_) => {
                    self.is_broken = true;
                    self.outbox.clear();
                    self.sent = 0;
                    self.unsent_bytes = 0;
                }
            }
        }
    }

    pub fn interest(&self) -> Interest {
        let mut interest = Interest::empty();
        interest.set(Interest::EPOLLOUT, self.is_full);
        // What waits behind a descriptor or a ping waits for an acknowledgement, which has to be received.
        let is_received_from = self.unsent_bytes < MOST_UNSENT_BYTES || self.unacknowledged.is_some();
        interest.set(Interest::EPOLLIN, is_received_from);
        interest
    }

    /// Receives once into `buffer`, and adds what that completes to `incoming`.
    pub fn receive(&mut self, buffer: &mut [u8], incoming: &mut VecDeque<Incoming>) -> Received {
        let handle = &mut self.handle;
        let mut surplus = 0;
        let received = receive_with_fds(&self.socket, buffer, |fd| match handle {
            None => *handle = Some(fd),
            Some(_) => surplus += 1,
        });
        if surplus > 0 {
            incoming.push_back(violation(format_args!("{surplus} descriptors where none belongs")));
        }
        let received = match received {
            Ok(length @ 1..) => {
                self.take_bytes(&buffer[..length], incoming);
                Received::Something
            }
            Err(Errno::EAGAIN) => Received::Nothing,
            // ECONNRESET when it has not read all that we sent.
            Ok(0) | Err(_) => return Received::End,
        };
        if self.line.is_empty() && self.handle.take().is_some() {
            incoming.push_back(violation("a descriptor where none belongs"));
        }
        self.flush();
        received
    }

    fn post(&mut self, message: &impl Serialize, handle: Option<(Arc<OwnedFd>, u64)>) {
        let mut line = self.empty_line();
        serde_json::to_writer(&mut line, message).expect("memory takes it, and its keys are strings");
        line.push(b'\n');
        self.post_message(OutgoingMessage { line, handle, ..OutgoingMessage::default() });
    }

    fn post_message(&mut self, message: OutgoingMessage) {
        self.unsent_bytes += message.line.len();
        match message.is_acknowledgement || message.retransmissions > 0 {
            // Not into the middle of a line.
            true => self.outbox.insert(usize::from(self.sent > 0), message),
            false => self.outbox.push_back(message),
        }
        self.flush();
    }

    fn empty_line(&mut self) -> Vec<u8> {
        self.spare.clear();
        mem::take(&mut self.spare)
    }

    fn recycle(&mut self, message: OutgoingMessage) {
        if message.line.capacity() <= MOST_SPARE_BYTES {
            self.spare = message.line;
        }
    }

    fn take_bytes(&mut self, mut bytes: &[u8], incoming: &mut VecDeque<Incoming>) {
        while let Some(end) = memchr(b'\n', bytes) {
            let head = &bytes[..end];
            bytes = &bytes[end + 1..];
            let line = mem::take(&mut self.line);
            match self.skipped.take() {
                Some(skipped) => self.take_large(&line, skipped + end, incoming),
                None if line.is_empty() => self.take_line(head, incoming),
                None => self.take_line(&[&line, head].concat(), incoming),
            }
        }
        match &mut self.skipped {
            Some(skipped) => *skipped += bytes.len(),
            None if self.line.len() + bytes.len() > LONGEST_LINE => {
                // Its beginning says whether the other end waits for an acknowledgement of a descriptor.
                self.line.extend_from_slice(bytes);
                self.skipped = Some(self.line.len() - WITH_HANDLE.len());
                self.line.truncate(WITH_HANDLE.len());
                self.line.shrink_to_fit();
            }
            None => self.line.extend_from_slice(bytes),
        }
    }

    fn take_large(&mut self, beginning: &[u8], skipped: usize, incoming: &mut VecDeque<Incoming>) {
        if beginning == WITH_HANDLE {
            self.acknowledge();
        }
        self.handle = None;
        incoming.push_back(Incoming::Large(beginning.len() + skipped));
    }

    fn take_line(&mut self, line: &[u8], incoming: &mut VecDeque<Incoming>) {
        if line == ACKNOWLEDGEMENT {
            return self.take_acknowledgement(true, incoming);
        }
        if let Ok(ConnectionAnswer { cmd: "NODE_CLUSTER", ack, accepted }) = serde_json::from_slice(line) {
            return incoming.push_back(Incoming::Answer { ack, accepted });
        }
        if self.expected_key.is_some() && self.handle.is_some() && self.take_connection(line, incoming) {
            return;
        }
        let mut message: Value = match serde_json::from_slice(line) {
            Ok(message) => message,
            Err(error) => {
                let begin = String::from_utf8_lossy(&line[..line.len().min(40)]);
                return incoming.push_back(violation(format_args!("a line {begin:?} that is not JSON: {error}")));
            }
        };
        match message.get("cmd").and_then(Value::as_str) {
            Some("NODE_HANDLE") => {
                self.acknowledge();
                incoming.push_back(match self.handle.take() {
                    None => violation("a message whose descriptor has not arrived"),
                    handle => Incoming::Message(message["msg"].take(), handle),
                });
            }
            Some("NODE_HANDLE_ACK") => self.take_acknowledgement(true, incoming),
            Some("NODE_HANDLE_NACK") => self.take_acknowledgement(false, incoming),
            _ => incoming.push_back(Incoming::Message(message, None)),
        }
    }

    /// False: that is not a connection.
    fn take_connection(&mut self, line: &[u8], incoming: &mut VecDeque<Incoming>) -> bool {
        let Ok(Passed { msg: NewConnection { act: "newconn", key, seq } }) = serde_json::from_slice(line) else {
            return false;
        };
        let Some(connection) = self.handle.take() else { return false };
        let is_expected = self.expected_key.as_deref() == Some(&*key);
        incoming.push_back(Incoming::Connection { seq, is_expected, connection });
        true
    }

    fn acknowledge(&mut self) {
        let answer = if self.handle.is_some() { "NODE_HANDLE_ACK" } else { "NODE_HANDLE_NACK" };
        let line = format!("{{\"cmd\":\"{answer}\"}}\n").into_bytes();
        self.post_message(OutgoingMessage { line, is_acknowledgement: true, ..OutgoingMessage::default() });
    }

    fn take_acknowledgement(&mut self, has_arrived: bool, incoming: &mut VecDeque<Incoming>) {
        let Some(mut message) = self.unacknowledged.take() else {
            return incoming.push_back(violation("an acknowledgement where nothing was sent"));
        };
        if has_arrived || message.is_ping {
            return self.recycle(message);
        }
        message.retransmissions += 1;
        if message.retransmissions <= MOST_RETRANSMISSIONS {
            self.post_message(message);
        } else {
            incoming.extend(message.handle.map(|(_, tag)| Incoming::Undelivered(tag)));
        }
    }
}

impl AsFd for Ipc {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn violation(what: impl ToString) -> Incoming {
    Incoming::Violation(what.to_string())
}

#[cfg(test)]
mod tests;
