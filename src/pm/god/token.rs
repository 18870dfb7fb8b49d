//! What a report of the daemon's epoll instance is about, in the 64 bits that the kernel keeps for it.

/// Its number is the highest byte of the token; what is below says which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PmSource {
    Signals,
    /// The control socket (0), or one of its clients.
    Client,
    /// A restart by the clock on the wall is due, or that clock was set.
    WallClock,
    Ended,
    /// It may say that it is ready.
    Channel,
    /// Its cluster has answered, or takes the rest of a request.
    Call,
    /// Something has happened to the workers of its cluster.
    Workers,
    Watch,
    /// One of its outputs can be read: the output's number is above the id's 32 bits.
    Output,
}

use PmSource::*;

const SOURCES: [PmSource; 9] = [Signals, Client, WallClock, Ended, Channel, Call, Workers, Watch, Output];
const SOURCE_SHIFT: u32 = 56;

impl PmSource {
    pub fn token(self, which: impl Into<u64>) -> u64 {
        (self as u64) << SOURCE_SHIFT | which.into()
    }

    pub fn of_output(id: u32, output: usize) -> u64 {
        Output.token((output as u64) << 32 | u64::from(id))
    }

    pub fn decode(token: u64) -> Option<(PmSource, u64)> {
        let source = SOURCES.get((token >> SOURCE_SHIFT) as usize)?;
        Some((*source, token & ((1 << SOURCE_SHIFT) - 1)))
    }
}
