//! What an epoll report of the master is about, in the 64 bits that the kernel keeps for it.

use std::fmt;

/// A process that was started as a worker, counted from 1 over the master's life, as Node does: `NODE_UNIQUE_ID`. Its
/// number (`WORKER_ID`) is its successor's too, this never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(pub u64);

impl fmt::Display for Uid {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Where a worker writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stream {
    Output,
    Error,
}

/// One descriptor that the master waits for. Each kind is answered in `Master::hear_of`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    Signals,
    /// A worker's channel.
    Worker(Uid),
    /// A listening socket of the program.
    Handle(u64),
    /// A pipe that a worker writes to.
    Output(Uid, Stream),
    /// The control socket (0), or one of its clients.
    Control(u64),
    /// The watched file's inotify instance.
    Notifier,
}

const KIND_SHIFT: u32 = 56;

impl Token {
    /// The kind is in the highest byte, who it is below.
    pub fn encode(self) -> u64 {
        let (kind, who) = match self {
            Token::Signals => (0, 0),
            Token::Worker(uid) => (1, uid.0),
            Token::Handle(handle) => (2, handle),
            Token::Output(uid, stream) => (3, uid.0 << 1 | u64::from(stream == Stream::Error)),
            Token::Control(client) => (4, client),
            Token::Notifier => (5, 0),
        };
        debug_assert!(who < 1 << KIND_SHIFT);
        kind << KIND_SHIFT | who
    }

    /// `None` for what no token is written as.
    pub fn decode(word: u64) -> Option<Token> {
        let who = word & ((1 << KIND_SHIFT) - 1);
        Some(match word >> KIND_SHIFT {
            0 => Token::Signals,
            1 => Token::Worker(Uid(who)),
            2 => Token::Handle(who),
            3 => Token::Output(Uid(who >> 1), if who & 1 == 0 { Stream::Output } else { Stream::Error }),
            4 => Token::Control(who),
            5 => Token::Notifier,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_registered_is_what_is_reported() {
        let most = (1 << 55) - 1;
        for token in [
            Token::Signals,
            Token::Worker(Uid(1)),
            Token::Worker(Uid(most)),
            Token::Handle(0),
            Token::Output(Uid(7), Stream::Output),
            Token::Output(Uid(most), Stream::Error),
            Token::Control(0),
            Token::Notifier,
        ] {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
        assert_eq!(Token::decode(u64::MAX), None);
    }
}
