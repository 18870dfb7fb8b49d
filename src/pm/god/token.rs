//! What a report of the daemon's epoll instance is about.

/// In the 64 bits that the kernel keeps for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PmToken {
    Signals,
    /// The control socket (0), or one of its clients.
    Client(u64),
    /// A restart by the clock on the wall is due, or that clock was set.
    WallClock,
    /// The process with this id has ended.
    Ended(u32),
    /// It may say that it is ready.
    Channel(u32),
    /// Its cluster has answered, or takes the rest of a request.
    Call(u32),
    /// Something has happened to the workers of its cluster.
    Workers(u32),
    /// A file that it watches may have changed.
    Watch(u32),
    /// One of its outputs can be read.
    Output(u32, usize),
}

const KIND_SHIFT: u32 = 56;
const OUTPUT_BITS: u32 = 16;

impl PmToken {
    /// The kind is in the highest byte, which one of them below.
    pub fn encode(self) -> u64 {
        let (kind, which) = match self {
            PmToken::Signals => (0, 0),
            PmToken::Client(client) => (1, client),
            PmToken::WallClock => (2, 0),
            PmToken::Ended(id) => (3, id.into()),
            PmToken::Channel(id) => (4, id.into()),
            PmToken::Call(id) => (5, id.into()),
            PmToken::Workers(id) => (6, id.into()),
            PmToken::Watch(id) => (7, id.into()),
            PmToken::Output(id, output) => (8, u64::from(id) << OUTPUT_BITS | output as u64),
        };
        kind << KIND_SHIFT | which
    }

    pub fn decode(word: u64) -> Option<PmToken> {
        let which = word & ((1 << KIND_SHIFT) - 1);
        let id = which as u32;
        Some(match word >> KIND_SHIFT {
            0 => PmToken::Signals,
            1 => PmToken::Client(which),
            2 => PmToken::WallClock,
            3 => PmToken::Ended(id),
            4 => PmToken::Channel(id),
            5 => PmToken::Call(id),
            6 => PmToken::Workers(id),
            7 => PmToken::Watch(id),
            8 => PmToken::Output((which >> OUTPUT_BITS) as u32, (which & ((1 << OUTPUT_BITS) - 1)) as usize),
            _ => return None,
        })
    }
}
