//! Whole lines out of the bytes of a pipe, which come in any pieces. Pure: bytes in, bytes out.
//!
//! Bytes stay as they are, NUL and invalid UTF-8 too; in JSON they are escaped. A line longer than [`LONGEST_LINE`] is
//! written in pieces of that size, each on a line of its own that ends with [`GOES_ON`], so its writer cannot make us
//! keep any amount, and no byte of it is lost.

use std::borrow::Cow;
use std::str::{Utf8Chunk, Utf8Error};

use memchr::{memchr, memmem, memrchr};
use serde::Serialize;

/// The most that is kept of a line until its end comes.
pub const LONGEST_LINE: usize = 1 << 20;

/// The end of a piece of a line that is too long; in JSON it has `"goes_on":true`.
pub const GOES_ON: &str = " [the line goes on]";

/// Behind what a process has written to a FIFO that its successor inherits: it ends a line that has no end, and is in
/// no log. Whoever starts the processes writes it, because only they know in time that one has ended.
pub const END_OF_OUTPUT: &[u8] = b"\0\x1eend of output\x1e\0\n";

/// What a buffer keeps between two uses; a rare long line must not stay in memory.
pub const USUAL_CAPACITY: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogStream {
    Out,
    Error,
}

impl LogStream {
    /// As it is called in JSON.
    pub fn name(self) -> &'static str {
        match self {
            LogStream::Out => "out",
            LogStream::Error => "err",
        }
    }
}

/// What stands before and behind the text of a line.
#[derive(Clone, Debug)]
pub enum LineFormat {
    /// The line as it is, behind its time.
    Plain,
    /// The same behind a text, such as the name of who wrote it.
    Named(String),
    /// `{"timestamp":…,"type":"out","process_id":0,"app_name":"api","message":…}`
    Json { stream: LogStream, process_id: u32, app_name: String },
}

/// The lines of one output, as far as they have come.
pub struct LineSplitter {
    format: LineFormat,
    /// The beginning of a line whose end has not come yet.
    line: Vec<u8>,
}

impl LineSplitter {
    pub fn new(format: LineFormat) -> LineSplitter {
        LineSplitter { format, line: Vec::new() }
    }

    /// Adds to `lines` all lines that these bytes, at most [`LONGEST_LINE`], complete, at `time`, a text that may be
    /// empty.
    pub fn take(&mut self, mut bytes: &[u8], time: &str, lines: &mut Vec<u8>) {
        let has_end = memmem::find(bytes, END_OF_OUTPUT).is_some();
        let is_as_it_is = matches!(self.format, LineFormat::Plain) && time.is_empty() && !has_end;
        while let Some(end) = memchr(b'\n', bytes) {
            let mut length = end + 1;
            if !self.line.is_empty() {
                self.keep(&bytes[..end], time, lines);
                self.finish(time, lines);
            } else if is_as_it_is {
                // The others need no look at each.
                length = memrchr(b'\n', bytes).unwrap_or(end) + 1;
                lines.extend_from_slice(&bytes[..length]);
            } else {
                self.format.write_whole(&bytes[..end], time, lines);
            }
            bytes = &bytes[length..];
        }
        self.keep(bytes, time, lines);
    }

    /// The last line may have no end.
    pub fn end(&mut self, time: &str, lines: &mut Vec<u8>) {
        if !self.line.is_empty() {
            self.finish(time, lines);
        }
    }

    fn finish(&mut self, time: &str, lines: &mut Vec<u8>) {
        self.format.write_whole(&self.line, time, lines);
        self.line.clear();
        self.line.shrink_to(USUAL_CAPACITY);
    }

    fn keep(&mut self, mut bytes: &[u8], time: &str, lines: &mut Vec<u8>) {
        while self.line.len() + bytes.len() > LONGEST_LINE {
            let (head, rest) = bytes.split_at(LONGEST_LINE - self.line.len());
            self.line.extend_from_slice(head);
            let whole = whole_characters(&self.line);
            self.format.write(&self.line[..whole], true, time, lines);
            self.line.drain(..whole);
            bytes = rest;
        }
        self.line.extend_from_slice(bytes);
    }
}

/// Where to cut so that no character is cut; all of it where it is not UTF-8.
fn whole_characters(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(4);
    let start = (tail..bytes.len()).rev().find(|&i| bytes[i] & 0xc0 != 0x80).unwrap_or(bytes.len());
    let is_cut = |error: Utf8Error| error.error_len().is_none();
    let ends_early = str::from_utf8(&bytes[start..]).is_err_and(is_cut);
    if ends_early && start > 0 { start } else { bytes.len() }
}

impl LineFormat {
    fn write_whole(&self, line: &[u8], time: &str, lines: &mut Vec<u8>) {
        match line.strip_suffix(&END_OF_OUTPUT[..END_OF_OUTPUT.len() - 1]) {
            Some(b"") => {}
            unended => self.write(unended.unwrap_or(line), false, time, lines),
        }
    }

    fn write(&self, line: &[u8], goes_on: bool, time: &str, lines: &mut Vec<u8>) {
        match self {
            LineFormat::Plain | LineFormat::Named(_) => {
                if let LineFormat::Named(name) = self {
                    lines.extend_from_slice(name.as_bytes());
                }
                if !time.is_empty() {
                    lines.extend_from_slice(time.as_bytes());
                    lines.extend_from_slice(b": ");
                }
                lines.extend_from_slice(line);
                if goes_on {
                    lines.extend_from_slice(GOES_ON.as_bytes());
                }
            }
            LineFormat::Json { stream, process_id, app_name } => {
                let object = JsonLine {
                    timestamp: Some(time).filter(|time| !time.is_empty()),
                    stream: stream.name(),
                    process_id: *process_id,
                    app_name,
                    message: text_of(line),
                    goes_on: goes_on.then_some(true),
                };
                serde_json::to_writer(&mut *lines, &object).expect("its keys are strings");
            }
        }
        lines.push(b'\n');
    }
}

#[derive(Serialize)]
struct JsonLine<'a> {
    timestamp: Option<&'a str>,
    #[serde(rename = "type")]
    stream: &'a str,
    process_id: u32,
    app_name: &'a str,
    message: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    goes_on: Option<bool>,
}

/// A byte that is not UTF-8 becomes the four characters `\xff`: JSON has no way to say it.
fn text_of(bytes: &[u8]) -> Cow<'_, str> {
    let escaped = |_| {
        let chunks = bytes.utf8_chunks();
        let text = |chunk: Utf8Chunk| format!("{}{}", chunk.valid(), escape(chunk.invalid()));
        Cow::Owned(chunks.map(text).collect())
    };
    str::from_utf8(bytes).map_or_else(escaped, Cow::Borrowed)
}

fn escape(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json() -> LineFormat {
        LineFormat::Json { stream: LogStream::Error, process_id: 120, app_name: "a\"pi".to_string() }
    }

    /// What comes out when the bytes come in pieces of `size`.
    fn split(format: LineFormat, bytes: &[u8], size: usize, time: &str) -> Vec<u8> {
        let mut splitter = LineSplitter::new(format);
        let mut lines = Vec::new();
        bytes.chunks(size).for_each(|piece| splitter.take(piece, time, &mut lines));
        splitter.end(time, &mut lines);
        lines
    }

    #[test]
    fn lines_are_whole_in_whatever_pieces_they_come_and_the_last_needs_no_end() {
        let bytes = b"one\n\ntwo\0\xff\nthree\r\n\nlast";
        for size in 1..bytes.len() + 1 {
            assert_eq!(split(LineFormat::Plain, bytes, size, ""), b"one\n\ntwo\0\xff\nthree\r\n\nlast\n");
            let stamped = b"T: one\nT: \nT: two\0\xff\nT: three\r\nT: \nT: last\n";
            assert_eq!(split(LineFormat::Plain, bytes, size, "T"), stamped);
        }
    }

    #[test]
    fn only_whole_lines_leave_the_splitter() {
        let mut splitter = LineSplitter::new(LineFormat::Plain);
        let mut lines = Vec::new();
        splitter.take(b"ha", "", &mut lines);
        assert!(lines.is_empty());
        splitter.take(b"lf\na\nrest", "", &mut lines);
        assert_eq!(lines, b"half\na\n");
    }

    #[test]
    fn the_end_of_an_output_ends_a_line_and_is_none() {
        let bytes = [b"one\ntwo\nhalf", END_OF_OUTPUT, b"other\n", END_OF_OUTPUT, b"last\n"].concat();
        for size in 1..bytes.len() + 1 {
            assert_eq!(split(LineFormat::Plain, &bytes, size, ""), b"one\ntwo\nhalf\nother\nlast\n");
            assert_eq!(split(LineFormat::Plain, &bytes, size, "T"), b"T: one\nT: two\nT: half\nT: other\nT: last\n");
        }
    }

    #[test]
    fn any_bytes_become_a_json_object_that_says_them() {
        let line = "quote \" back \\ tab \t nul \0 bell \x07 ü 🙂 end".as_bytes();
        let bytes = [line, b" \xff\xc3"].concat();
        let written = split(json(), &bytes, 5, "12:00");
        let value: serde_json::Value = serde_json::from_slice(&written).unwrap();
        assert_eq!(value["message"], format!("{} \\xff\\xc3", str::from_utf8(line).unwrap()));
        assert_eq!((&value["type"], &value["process_id"]), (&"err".into(), &120.into()));
        assert_eq!((&value["timestamp"], &value["app_name"]), (&"12:00".into(), &"a\"pi".into()));
        assert!(value.get("goes_on").is_none());
    }

    #[test]
    fn an_endless_line_is_written_in_marked_pieces_and_no_byte_is_lost_and_little_is_kept() {
        let long = "aü".repeat(LONGEST_LINE);
        let mut splitter = LineSplitter::new(LineFormat::Plain);
        let mut lines = Vec::new();
        for piece in long.as_bytes().chunks(USUAL_CAPACITY) {
            splitter.take(piece, "", &mut lines);
            assert!(splitter.line.len() <= LONGEST_LINE);
        }
        splitter.take(b"\nnext\n", "", &mut lines);
        let text = String::from_utf8(lines).expect("no character is cut");
        let pieces: Vec<&str> = text.lines().collect();
        let (next, pieces) = pieces.split_last().unwrap();
        let (last, marked) = pieces.split_last().unwrap();
        let marked: Vec<&str> = marked.iter().map(|piece| piece.strip_suffix(GOES_ON).expect("marked")).collect();
        assert!(marked.iter().all(|piece| piece.len() <= LONGEST_LINE && piece.len() > LONGEST_LINE - 4));
        assert!(marked.concat() + last == long && *next == "next");
        assert!(splitter.line.capacity() <= USUAL_CAPACITY);
    }

    #[test]
    fn a_long_line_that_is_not_utf8_is_cut_anywhere() {
        for filler in [b'\x80', b'\xff', b'\xe2'] {
            let written = split(json(), &vec![filler; LONGEST_LINE + 1], USUAL_CAPACITY, "");
            let lines: Vec<&[u8]> = written.split_inclusive(|&byte| byte == b'\n').collect();
            let pieces = lines.iter().map(|line| serde_json::from_slice::<serde_json::Value>(line).unwrap());
            let text: String = pieces.map(|piece| piece["message"].as_str().unwrap().to_owned()).collect();
            assert_eq!(text, format!("\\x{filler:02x}").repeat(LONGEST_LINE + 1));
        }
    }
}
