//! The open descriptors of any process, as `/proc/PID/fd` and `/proc/PID/fdinfo` show them: what each one is, and what
//! an epoll instance watches.

use std::collections::BTreeMap;
use std::fs::{self, File};

use nix::fcntl::readlinkat;

use crate::sys::procfs::status_field;

/// What an open descriptor is, of kinds that say how a process waits.
#[derive(Clone, Copy, PartialEq)]
pub enum Link {
    /// Its inode.
    Socket(u32),
    Epoll,
    Ring,
}

/// The descriptors of a process, of the kinds of [`Link`].
#[derive(Default)]
pub struct Descriptors {
    links: BTreeMap<i32, Link>,
    count: usize,
}

impl Descriptors {
    /// `None` when there is no such process, or it may not be looked into.
    pub fn of(pid: i32) -> Option<Descriptors> {
        let mut found = Descriptors::default();
        let path = format!("/proc/{pid}/fd");
        // By the folder's descriptor: for each link the kernel looks up one name, not four.
        let folder = File::open(&path).ok()?;
        for entry in fs::read_dir(&path).ok()?.flatten() {
            found.count += 1;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.parse().ok());
            let link = readlinkat(&folder, &*name).ok().and_then(|link| parse_link(link.to_str()?));
            if let (Some(number), Some(link)) = (number, link) {
                found.links.insert(number, link);
            }
        }
        Some(found)
    }

    /// The number of descriptors of all kinds.
    pub fn count(&self) -> usize {
        self.count
    }

    pub fn sockets(&self) -> impl Iterator<Item = u32> {
        self.links.values().filter_map(|link| if let Link::Socket(inode) = link { Some(*inode) } else { None })
    }

    /// Their numbers.
    pub fn with(&self, wanted: Link) -> impl Iterator<Item = i32> {
        self.links.iter().filter(move |(_, link)| **link == wanted).map(|(number, _)| *number)
    }

    /// The inode of a socket.
    pub fn socket(&self, number: i32) -> Option<u32> {
        self.links.get(&number).and_then(|link| if let Link::Socket(inode) = link { Some(*inode) } else { None })
    }
}

fn parse_link(link: &str) -> Option<Link> {
    match link {
        "anon_inode:[eventpoll]" => Some(Link::Epoll),
        "anon_inode:[io_uring]" => Some(Link::Ring),
        _ => link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok().map(Link::Socket),
    }
}

/// The flags of an open file (proc_pid_fdinfo(5)).
pub fn open_flags(pid: i32, number: i32) -> i32 {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap_or_default();
    status_field(&info, "flags:").and_then(|octal| i32::from_str_radix(octal, 8).ok()).unwrap_or(0)
}

/// What an epoll instance watches: inode and events of each.
pub fn epoll_entries(pid: i32, number: i32) -> Vec<(u32, u32)> {
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap_or_default();
    info.lines().filter_map(parse_epoll_entry).collect()
}

/// Requests to accept that wait in an io_uring instance: its list of armed polls has the numbers of the operations.
pub fn ring_accepts(pid: i32, number: i32) -> u32 {
    const IORING_OP_ACCEPT: &str = "op=13,";
    let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap_or_default();
    info.matches(IORING_OP_ACCEPT).count() as u32
}

/// `tfd: 7 events: 19 data: 0 pos:0 ino:61fe sdev:9`, numbers in hexadecimal but for the first (proc_pid_fdinfo(5)).
fn parse_epoll_entry(line: &str) -> Option<(u32, u32)> {
    let after = |name: &str| line.split_once(name)?.1.split_ascii_whitespace().next();
    let hexadecimal = |name| u32::from_str_radix(after(name)?, 16).ok();
    line.starts_with("tfd:").then_some((hexadecimal("ino:")?, hexadecimal("events:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_an_epoll_instance_is_read() {
        let line = "tfd:        7 events: 10000019 data:                5  pos:0 ino:61fe sdev:9";
        assert_eq!(parse_epoll_entry(line), Some((0x61fe, 0x1000_0019)));
        assert!(parse_epoll_entry("pos:\t0").is_none() && parse_epoll_entry("flags:\t02").is_none());
    }
}
