//! Files of /proc that nobody else here reads.

use std::fs;

use crate::lab::observe::tracepoints::parse_cpus;
use crate::sys::procfs::{command_line, status_field};

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

/// `tfd: 7 events: 19 data: 0 pos:0 ino:61fe sdev:9`, numbers in hexadecimal but for the first (proc_pid_fdinfo(5)).
fn parse_epoll_entry(line: &str) -> Option<(u32, u32)> {
    let after = |name: &str| line.split_once(name)?.1.split_ascii_whitespace().next();
    let hexadecimal = |name| u32::from_str_radix(after(name)?, 16).ok();
    line.starts_with("tfd:").then_some((hexadecimal("ino:")?, hexadecimal("events:")?))
}

/// The name of a program, at most 15 bytes of it.
pub fn comm(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_string()
}

/// The command line, or the name where there is none.
pub fn title(pid: i32) -> Vec<String> {
    let words = command_line(pid);
    if words.is_empty() { vec![comm(pid)] } else { words }
}

/// How many CPUs a process may use (`Cpus_allowed_list` of proc_pid_status(5)).
pub fn allowed_cpus(pid: i32) -> Option<usize> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    parse_cpus(status_field(&status, "Cpus_allowed_list:")?).map(|cpus| cpus.len())
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
