//! The system call in which a thread waits, from `/proc/PID/task/TID/syscall` (proc_pid_syscall(5)): its number and its
//! arguments. Where we may not read that, from `wchan`: the name of the kernel's function.

use std::fs;
use std::io::IoSliceMut;

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// What a thread was doing when it was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Call {
    /// It ran, or waited for a CPU.
    Running,
    Accept,
    Poll,
    Select,
    Epoll,
    IoUring,
    /// flock(2), fcntl(2) with F_SETLKW, semop(2).
    Lock,
    Futex,
    /// For bytes of a descriptor, or for room to write some.
    Transfer,
    Sleep,
    #[default]
    Other,
}

/// A call, and what it waits for: the descriptors of accept, poll, select, epoll_wait and io_uring_enter; a futex's
/// address.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Waiting {
    pub call: Call,
    pub descriptors: Vec<i32>,
    pub address: u64,
    /// Only the kernel's function is known.
    pub is_a_guess: bool,
}

/// The most descriptors of a list that are read.
const MOST_DESCRIPTORS: u64 = 4096;

/// `None` when the thread has ended, or may not be looked at.
pub fn waiting(pid: i32, tid: i32) -> Option<Waiting> {
    let folder = format!("/proc/{pid}/task/{tid}");
    match fs::read_to_string(format!("{folder}/syscall")) {
        Ok(line) => Some(parse(&line, |at, length| read_memory(pid, at, length))),
        Err(_) => {
            let function = fs::read_to_string(format!("{folder}/wchan")).ok()?;
            Some(Waiting { call: of_function(&function), is_a_guess: true, ..Waiting::default() })
        }
    }
}

/// Copies from the memory of a process; it notices nothing (process_vm_readv(2)).
fn read_memory(pid: i32, at: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    let from = [RemoteIoVec { base: at as usize, len: bytes.len() }];
    let read = process_vm_readv(Pid::from_raw(pid), &mut [IoSliceMut::new(&mut bytes)], &from).unwrap_or(0);
    bytes.truncate(read);
    bytes
}

fn parse(line: &str, memory: impl Fn(u64, u64) -> Vec<u8>) -> Waiting {
    let mut words = line.split_ascii_whitespace();
    let number = words.next().unwrap_or_default();
    if number == "running" {
        return Waiting { call: Call::Running, ..Waiting::default() };
    }
    let Ok(number) = number.parse::<i64>() else { return Waiting::default() };
    let arguments: Vec<u64> = words
        .map_while(|word| word.strip_prefix("0x"))
        .map(|word| u64::from_str_radix(word, 16).unwrap_or(0))
        .collect();
    let argument = |i: usize| arguments.get(i).copied().unwrap_or(0);
    let call = of_number(number, argument(1));
    let descriptors = match call {
        Call::Accept | Call::Epoll | Call::IoUring | Call::Transfer => vec![argument(0) as i32],
        Call::Poll => polled(&memory(argument(0), 8 * argument(1).min(MOST_DESCRIPTORS))),
        Call::Select => selected(&memory(argument(1), argument(0).min(MOST_DESCRIPTORS).div_ceil(64) * 8)),
        _ => Vec::new(),
    };
    let address = if call == Call::Futex { argument(0) } else { 0 };
    Waiting { call, descriptors, address, is_a_guess: false }
}

/// The descriptors of an array of `struct pollfd` in which something is awaited.
fn polled(array: &[u8]) -> Vec<i32> {
    let entries = array.chunks_exact(8).filter(|entry| entry[4..6] != [0, 0]);
    entries.map(|entry| i32::from_ne_bytes(entry[..4].try_into().expect("four bytes"))).collect()
}

/// The bits of an fd_set.
fn selected(set: &[u8]) -> Vec<i32> {
    (0..8 * set.len()).filter(|bit| set[bit / 8] & (1 << (bit % 8)) != 0).map(|bit| bit as i32).collect()
}

fn of_number(number: i64, command: u64) -> Call {
    const WAITING_LOCKS: [i32; 2] = [libc::F_SETLKW, libc::F_OFD_SETLKW];
    #[cfg(target_arch = "x86_64")]
    match number {
        libc::SYS_poll => return Call::Poll,
        libc::SYS_select => return Call::Select,
        libc::SYS_epoll_wait => return Call::Epoll,
        _ => {}
    }
    match number {
        libc::SYS_accept | libc::SYS_accept4 => Call::Accept,
        libc::SYS_ppoll => Call::Poll,
        libc::SYS_pselect6 => Call::Select,
        libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 => Call::Epoll,
        libc::SYS_io_uring_enter => Call::IoUring,
        libc::SYS_flock | libc::SYS_semop | libc::SYS_semtimedop => Call::Lock,
        libc::SYS_fcntl if WAITING_LOCKS.contains(&(command as i32)) => Call::Lock,
        libc::SYS_futex => Call::Futex,
        libc::SYS_read | libc::SYS_recvfrom | libc::SYS_recvmsg | libc::SYS_readv => Call::Transfer,
        libc::SYS_write | libc::SYS_sendto | libc::SYS_sendmsg | libc::SYS_writev | libc::SYS_sendfile => {
            Call::Transfer
        }
        libc::SYS_nanosleep | libc::SYS_clock_nanosleep => Call::Sleep,
        _ => Call::Other,
    }
}

/// The functions of Linux 5 and 6 that a thread sleeps in. The compiler may add a suffix: `.constprop.0`. poll(2) and
/// select(2) sleep in the same one.
fn of_function(name: &str) -> Call {
    match name.split('.').next().unwrap_or_default() {
        "0" => Call::Running,
        "inet_csk_accept" | "inet_csk_wait_for_connect" | "unix_accept" => Call::Accept,
        "ep_poll" | "do_epoll_wait" => Call::Epoll,
        "do_poll" | "do_sys_poll" | "poll_schedule_timeout" => Call::Poll,
        "do_select" => Call::Select,
        "io_cqring_wait" => Call::IoUring,
        "hrtimer_nanosleep" => Call::Sleep,
        "sk_wait_data" | "wait_woken" | "pipe_read" | "anon_pipe_read" => Call::Transfer,
        name if name.starts_with("futex_") => Call::Futex,
        name if ["lock_inode_wait", "semtimedop", "fcntl_setlk"].iter().any(|part| name.contains(part)) => Call::Lock,
        _ => Call::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Waiting {
        parse(line, |_, _| Vec::new())
    }

    #[test]
    fn a_call_and_its_descriptor_are_read() {
        let line = format!("{} 0x5 0x0 0x0 0x80800 0x0 0x0 0x7ffe 0x7f05", libc::SYS_accept4);
        assert_eq!((of(&line).call, of(&line).descriptors), (Call::Accept, vec![5]));
        assert_eq!(of("running\n").call, Call::Running);
        assert_eq!(of("-1 0x7ffe 0x7f05").call, Call::Other);
        let futex = of(&format!("{} 0x7f00 0x80 0x2", libc::SYS_futex));
        assert_eq!((futex.call, futex.address), (Call::Futex, 0x7f00));
    }

    #[test]
    fn a_lock_that_is_waited_for_is_one_and_other_calls_of_fcntl_are_none() {
        let fcntl = |command: i32| of(&format!("{} 0x3 {command:#x} 0x0", libc::SYS_fcntl)).call;
        assert_eq!((fcntl(libc::F_SETLKW), fcntl(libc::F_GETFL)), (Call::Lock, Call::Other));
    }

    #[test]
    fn what_poll_and_select_wait_for_is_in_the_memory_of_the_process() {
        let entry = |fd: i32, events: i16| [&fd.to_ne_bytes()[..], &events.to_ne_bytes(), &[0; 2]].concat();
        let array = [entry(3, 1), entry(7, 0), entry(9, 5)].concat();
        let poll = parse(&format!("{} 0x1000 0x3 0x0", libc::SYS_ppoll), |at, length| {
            assert_eq!((at, length), (0x1000, 24));
            array.clone()
        });
        assert_eq!((poll.call, poll.descriptors), (Call::Poll, vec![3, 9]));
        let select = parse(&format!("{} 0x7 0x2000 0x0", libc::SYS_pselect6), |_, length| {
            assert_eq!(length, 8);
            vec![0b0100_1000, 0, 0, 0, 0, 0, 0, 0]
        });
        assert_eq!((select.call, select.descriptors), (Call::Select, vec![3, 6]));
    }

    #[test]
    fn our_own_memory_can_be_read() {
        let bytes = *b"acceptlab";
        let read = read_memory(std::process::id() as i32, bytes.as_ptr() as u64, bytes.len() as u64);
        // Where the kernel forbids it, there is nothing.
        assert!(read == bytes || read.is_empty());
    }

    #[test]
    fn the_kernels_function_is_a_second_best() {
        let calls = ["inet_csk_accept", "ep_poll", "do_select", "futex_wait_queue", "flock_lock_inode_wait", "0"];
        let expected = [Call::Accept, Call::Epoll, Call::Select, Call::Futex, Call::Lock, Call::Running];
        assert_eq!(calls.map(of_function), expected);
        let of_linux_6_18 = ["poll_schedule_timeout.constprop.0", "futex_do_wait", "fcntl_setlk", "__do_semtimedop"];
        assert_eq!(of_linux_6_18.map(of_function), [Call::Poll, Call::Futex, Call::Lock, Call::Lock]);
    }
}
