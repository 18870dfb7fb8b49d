//! The keys that are typed at a terminal in raw mode. A terminal that goes away is an error, not an endless wait.

use std::fs::File;
use std::io::{self, IsTerminal, Read, stdin};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// q, Escape, or Ctrl-C, which is a key like others in raw mode, and no signal.
    Quit,
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    Tab,
}

impl Key {
    /// The first line that is shown after this key, of a list that was shown from `first` on.
    pub fn scroll(self, first: usize, page: usize) -> usize {
        match self {
            Key::Up => first.saturating_sub(1),
            Key::Down => first + 1,
            Key::PageUp => first.saturating_sub(page),
            Key::PageDown => first + page,
            Key::Home => 0,
            Key::End => usize::MAX / 2,
            Key::Quit | Key::Tab => first,
        }
    }
}

/// Standard input, or the controlling terminal where standard input is something else.
pub struct Keyboard(File);

impl Keyboard {
    /// # Errors
    /// When there is no terminal to type at.
    pub fn open() -> io::Result<Keyboard> {
        let stdin = stdin();
        let is_terminal = stdin.is_terminal();
        let file = if is_terminal { stdin.as_fd().try_clone_to_owned()?.into() } else { File::open("/dev/tty")? };
        Ok(Keyboard(file))
    }

    /// What is typed within this time, as soon as something is; for ever with `None`.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn read(&mut self, wait: Option<Duration>) -> io::Result<Vec<Key>> {
        let wait = wait.map_or(PollTimeout::NONE, |wait| PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX));
        if poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], wait)? == 0 {
            return Ok(Vec::new());
        }
        let mut typed = [0; 256];
        match self.0.read(&mut typed)? {
            // A terminal that was hung up reads as a file that has ended (tty_hung_up in the kernel's tty_io.c).
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            length => Ok(keys_in(&typed[..length])),
        }
    }
}

/// A key that is more than a character is a control sequence: ESC [ or ESC O, up to its final byte (ECMA-48, 5.4).
fn keys_in(mut typed: &[u8]) -> Vec<Key> {
    let mut keys = Vec::new();
    while !typed.is_empty() {
        let length = match typed {
            [0x1b, b'[' | b'O', parameters @ ..] => {
                let last = parameters.iter().position(|byte| (0x40..=0x7e).contains(byte));
                last.map_or(typed.len(), |last| last + 3)
            }
            _ => 1,
        };
        let (sequence, behind) = typed.split_at(length);
        keys.extend(key(sequence));
        typed = behind;
    }
    keys
}

fn key(sequence: &[u8]) -> Option<Key> {
    Some(match sequence {
        b"q" | b"Q" | b"\x1b" | b"\x03" => Key::Quit,
        b"k" | b"\x1b[A" | b"\x1bOA" => Key::Up,
        b"j" | b"\x1b[B" | b"\x1bOB" => Key::Down,
        b"\x1b[5~" => Key::PageUp,
        b" " | b"\x1b[6~" => Key::PageDown,
        b"\x1b[H" | b"\x1bOH" | b"\x1b[1~" => Key::Home,
        b"\x1b[F" | b"\x1bOF" | b"\x1b[4~" => Key::End,
        b"\t" => Key::Tab,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn q_escape_and_ctrl_c_ask_to_end_and_no_other_key_does() {
        for quits in ["q", "Q", "\x1b", "\x03"] {
            assert_eq!(keys_in(quits.as_bytes()), [Key::Quit], "{quits:?}");
        }
        // c, Return, F5, Shift-F5, Alt-x, and a sequence that was cut off.
        for other in ["c", "\r", "\x1b[15~", "\x1b[15;2~", "\x1b[", "\x1bO"] {
            assert_eq!(keys_in(other.as_bytes()), [], "{other:?}");
        }
    }

    #[test]
    fn keys_that_are_typed_fast_are_told_apart() {
        let typed = b"jj\x1b[A\x1bOB\x1b[6~x\t\x1b[Hq";
        let keys = [Key::Down, Key::Down, Key::Up, Key::Down, Key::PageDown, Key::Tab, Key::Home, Key::Quit];
        assert_eq!(keys_in(typed), keys);
    }
}
