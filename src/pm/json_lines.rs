//! Values that come as lines of JSON on a descriptor that does not block.

use std::io::{ErrorKind, Read};

use serde::de::DeserializeOwned;

/// A line that has no end after so many bytes is dropped.
const LONGEST_LINE: usize = 1 << 20;

pub struct JsonLines<F> {
    pub source: F,
    /// The beginning of a line whose end has not come yet.
    received: Vec<u8>,
}

impl<F: Read> JsonLines<F> {
    pub fn new(source: F) -> JsonLines<F> {
        JsonLines { source, received: Vec::new() }
    }

    /// The values that have come whole, without lines that are none; and whether the other end is closed.
    pub fn read<T: DeserializeOwned>(&mut self) -> (Vec<T>, bool) {
        let mut buffer = [0; 4096];
        let mut is_closed = false;
        while !is_closed && self.received.len() <= LONGEST_LINE {
            match self.source.read(&mut buffer) {
                Ok(0) => is_closed = true,
                Ok(length) => self.received.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => is_closed = true,
            }
        }
        let whole = self.received.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let lines: Vec<u8> = self.received.drain(..whole).collect();
        if self.received.len() > LONGEST_LINE {
            self.received.clear();
        }
        let values = lines.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        (values.collect(), is_closed)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn lines() -> (JsonLines<UnixStream>, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (JsonLines::new(ours), theirs)
    }

    #[test]
    fn a_value_comes_when_its_line_is_whole_and_what_is_none_is_left_out() {
        let (mut lines, mut writer) = lines();
        writer.write_all(b"1\n\"text\"\nodd\n2").unwrap();
        assert_eq!(lines.read::<u32>(), (vec![1], false));
        writer.write_all(b"3\n4\n").unwrap();
        drop(writer);
        assert_eq!(lines.read::<u32>(), (vec![23, 4], true));
    }

    #[test]
    fn a_line_without_an_end_is_dropped_and_the_next_is_read() {
        let (mut lines, mut writer) = lines();
        let long = std::thread::spawn(move || {
            writer.write_all(&vec![b' '; 2 * LONGEST_LINE]).unwrap();
            writer.write_all(b"x\n5\n").unwrap();
        });
        let mut values = Vec::new();
        while {
            let (new, is_closed) = lines.read::<u32>();
            values.extend(new);
            assert!(lines.received.len() <= LONGEST_LINE);
            !is_closed
        } {}
        long.join().unwrap();
        assert_eq!(values, [5]);
    }
}
