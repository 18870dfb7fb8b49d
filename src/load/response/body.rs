//! Where the body of an answer ends (RFC 9112, section 6.3).

use super::Malformed;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    Length(u64),
    Chunked(Chunked),
    UntilClose,
}

impl Framing {
    /// Takes what belongs to the body and returns how many bytes that were.
    pub fn take(&mut self, bytes: &[u8], body_bytes: &mut u64) -> Result<usize, Malformed> {
        let taken = match self {
            Framing::Chunked(chunked) => return chunked.take(bytes, body_bytes),
            Framing::UntilClose => bytes.len() as u64,
            Framing::Length(left) => {
                let taken = (*left).min(bytes.len() as u64);
                *left -= taken;
                taken
            }
        };
        *body_bytes += taken;
        Ok(taken as usize)
    }

    pub fn is_complete(&self) -> bool {
        matches!(self, Framing::Length(0) | Framing::Chunked(Chunked::Done))
    }
}

/// The chunked transfer coding (RFC 9112, section 7.1). A bare LF ends a line too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chunked {
    /// The size so far; `None` before its first digit.
    Size(Option<u64>),
    /// Behind the size, up to the end of the line.
    Extension(u64),
    Data(u64),
    DataEnd,
    /// At the beginning of a line.
    TrailerStart,
    Trailer,
    Done,
}

impl Chunked {
    pub const START: Chunked = Chunked::Size(None);

    fn take(&mut self, bytes: &[u8], body_bytes: &mut u64) -> Result<usize, Malformed> {
        let mut at = 0;
        while at < bytes.len() && *self != Chunked::Done {
            if let Chunked::Data(left) = self {
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

    fn after(self, byte: u8) -> Result<Chunked, Malformed> {
        Ok(match (self, byte) {
            (Chunked::Size(Some(0)) | Chunked::Extension(0), b'\n') => Chunked::TrailerStart,
            (Chunked::Size(Some(size)) | Chunked::Extension(size), b'\n') => Chunked::Data(size),
            (Chunked::Size(Some(size)), b'\r' | b';' | b' ' | b'\t') => Chunked::Extension(size),
            (Chunked::Size(size), _) => {
                // A size may begin with any number of zeros.
                let digit = (byte as char).to_digit(16).ok_or(Malformed("chunk size"))?;
                let larger = size.unwrap_or(0).checked_mul(16).ok_or(Malformed("chunk size"))?;
                Chunked::Size(Some(larger + u64::from(digit)))
            }
            (Chunked::Extension(size), _) => Chunked::Extension(size),
            (Chunked::DataEnd, b'\r') => Chunked::DataEnd,
            (Chunked::DataEnd, b'\n') => Chunked::START,
            (Chunked::TrailerStart, b'\n') => Chunked::Done,
            (Chunked::Trailer, b'\n') => Chunked::TrailerStart,
            (Chunked::TrailerStart | Chunked::Trailer, b'\r') => self,
            (Chunked::TrailerStart | Chunked::Trailer, _) => Chunked::Trailer,
            (Chunked::DataEnd | Chunked::Data(_) | Chunked::Done, _) => return Err(Malformed("chunk end")),
        })
    }
}
