//! What an epoll report of the master is about, in the 64 bits that the kernel keeps for it.

use std::fmt;

/// `NODE_UNIQUE_ID`: each process that is started as a worker has its own, counted from 1 over the master's life, as Node
/// does. Its number (`WORKER_ID`) passes to its successor, this id never does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UniqueId(pub u64);

impl fmt::Display for UniqueId {
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

/// One descriptor that the master waits for. Each kind is handled in `Master::handle_ready`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    Signals,
    /// A worker's channel.
    Worker(UniqueId),
    /// A listening socket of the program.
    Socket(u64),
    /// A pipe that a worker writes to.
    Output(UniqueId, Stream),
    /// The control socket (0), or one of its clients.
    Control(u64),
    /// The inotify instance that watches the --notify file.
    Notifier,
}

const KIND_SHIFT: u32 = 56;

impl Token {
    /// The kind is in the highest byte, which one of them below.
    pub fn encode(self) -> u64 {
        let (kind, which) = match self {
            Token::Signals => (0, 0),
            Token::Worker(id) => (1, id.0),
            Token::Socket(socket) => (2, socket),
            Token::Output(id, stream) => (3, id.0 << 1 | u64::from(stream == Stream::Error)),
            Token::Control(client) => (4, client),
            Token::Notifier => (5, 0),
        };
        debug_assert!(which < 1 << KIND_SHIFT);
        kind << KIND_SHIFT | which
    }

    /// `None` for a word that no token is encoded as.
    pub fn decode(word: u64) -> Option<Token> {
        let which = word & ((1 << KIND_SHIFT) - 1);
        let stream = if which & 1 == 0 { Stream::Output } else { Stream::Error };
        Some(match word >> KIND_SHIFT {
            0 => Token::Signals,
            1 => Token::Worker(UniqueId(which)),
            2 => Token::Socket(which),
            3 => Token::Output(UniqueId(which >> 1), stream),
            4 => Token::Control(which),
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
            Token::Worker(UniqueId(1)),
            Token::Worker(UniqueId(most)),
            Token::Socket(0),
            Token::Output(UniqueId(7), Stream::Output),
            Token::Output(UniqueId(most), Stream::Error),
            Token::Control(0),
            Token::Notifier,
        ] {
            assert_eq!(Token::decode(token.encode()), Some(token));
        }
        assert_eq!(Token::decode(u64::MAX), None);
    }
}
