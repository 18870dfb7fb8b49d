//! One process: started in a session and process group of its own, watched by a descriptor, and asked to end together
//! with what it has started.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::stat::Mode;
use nix::time::ClockId;
use nix::unistd::{Pid, mkfifo};
use serde::{Deserialize, Serialize};

use super::home::{self, PmHome};
use crate::failure::Failure;
use crate::logs::lines::LogStream;
use crate::sys::pidfd::PidFd;
use crate::sys::process::{Ending, spawn_in_session};
use crate::sys::procfs::Stat;
use crate::units::{clock_ns, monotonic_ns, wall_ms};

/// What names one process for ever: its number and its start, in ticks since the machine was started. The state file
/// has it, so that the next daemon finds the process, and no other that has its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    pub pid: i32,
    pub started: u64,
    /// The same start by two clocks: CLOCK_MONOTONIC to measure, and the wall's to show.
    pub since_ns: u64,
    pub since_ms: u64,
}

impl ProcessIdentity {
    /// Of a process that somebody else has started.
    pub fn of(stat: &Stat) -> ProcessIdentity {
        // The kernel counts its start in ticks of 10 ms of CLOCK_BOOTTIME (proc_pid_stat(5)).
        let age_ms = (clock_ns(ClockId::CLOCK_BOOTTIME) / 1_000_000).saturating_sub(stat.started * 10);
        ProcessIdentity {
            pid: stat.pid,
            started: stat.started,
            since_ns: monotonic_ns().saturating_sub(age_ms * 1_000_000),
            since_ms: wall_ms().saturating_sub(age_ms),
        }
    }
}

/// A process that has been started, by this daemon or one before it, and has not been seen to end.
pub struct RunningProcess {
    pub identity: ProcessIdentity,
    pub pidfd: PidFd,
}

impl RunningProcess {
    /// Starts this program. `kept` is open there, too.
    ///
    /// # Errors
    /// What cannot be executed, and what to do about it.
    pub fn start(command: &mut Command, kept: Option<BorrowedFd>) -> Result<RunningProcess, Failure> {
        let tried = || format!("start {}", Path::new(command.get_program()).display());
        if let Some(folder) = command.get_current_dir().filter(|folder| !folder.is_dir()) {
            let cwd = format!("{} in {}", tried(), folder.display());
            return Err(Failure::new(cwd, Errno::ENOENT).advise("cwd has to be a folder"));
        }
        let (tried, program) = (tried(), command.get_program().to_owned());
        let child = spawn_in_session(command, kept).map_err(|error| {
            let failure = Failure::new(tried, error);
            let mode = fs::metadata(&program).map(|metadata| metadata.permissions().mode());
            if mode.is_ok_and(|mode| mode & 0o111 == 0) {
                return failure.advise("make it executable (chmod +x), or name an --interpreter");
            }
            failure
        })?;
        let pid = Pid::from_raw(child.id() as i32);
        let failed = |errno: Errno| Failure::new(format_args!("watch process {pid}"), errno);
        let pidfd = PidFd::open(pid).map_err(failed)?;
        // It is our child, so even if it has ended its entry is there.
        let started = Stat::of(pid.as_raw()).ok_or(Errno::ESRCH).map_err(failed)?.started;
        let identity = ProcessIdentity { pid: pid.as_raw(), started, since_ns: monotonic_ns(), since_ms: wall_ms() };
        Ok(RunningProcess { identity, pidfd })
    }

    /// The process of this number, if it is still the one that was started then.
    pub fn adopt(identity: ProcessIdentity) -> Option<RunningProcess> {
        // First the descriptor: a process that is looked at through it cannot be replaced by another meanwhile.
        let pidfd = PidFd::open(Pid::from_raw(identity.pid)).ok()?;
        let is_same = Stat::of(identity.pid).is_some_and(|stat| stat.started == identity.started && stat.is_alive());
        is_same.then_some(RunningProcess { identity, pidfd })
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.identity.pid)
    }

    pub fn uptime(&self, now_ns: u64) -> Duration {
        Duration::from_nanos(now_ns.saturating_sub(self.identity.since_ns))
    }

    /// How it has ended, once its descriptor says that it has. `None` where nobody knows: it was the child of a daemon
    /// before us, and the kernel does not tell.
    pub fn reap(&self) -> Option<Ending> {
        self.pidfd.reap().unwrap_or_else(|_| self.pidfd.ending())
    }

    /// # Errors
    /// ESRCH when it has ended.
    pub fn signal(&self, signal: Signal) -> nix::Result<()> {
        self.pidfd.signal(signal)
    }

    /// Processes that this one has started, and theirs, and all others of its group.
    pub fn descendants(&self) -> Vec<TreeMember> {
        let all: Vec<Stat> = Stat::everybody().collect();
        let leader = self.identity.pid;
        let mut found = vec![leader];
        let mut next = 0;
        while let Some(&parent) = found.get(next) {
            let is_child = |stat: &&Stat| stat.parent == parent || parent == leader && stat.group == leader;
            let new: Vec<i32> =
                all.iter().filter(is_child).map(|stat| stat.pid).filter(|pid| !found.contains(pid)).collect();
            found.extend(new);
            next += 1;
        }
        let members = all.iter().filter(|stat| stat.pid != leader && found.contains(&stat.pid));
        members.map(|stat| TreeMember { pid: stat.pid, started: stat.started }).collect()
    }
}

/// One of the processes that an application's process has started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeMember {
    pid: i32,
    started: u64,
}

pub fn is_alive(member: &TreeMember) -> bool {
    Stat::of(member.pid).is_some_and(|stat| stat.started == member.started && stat.is_alive())
}

pub fn signal_all(members: &[TreeMember], signal: Signal) {
    for member in members {
        // One that has ended meanwhile needs no signal.
        let _ = kill(Pid::from_raw(member.pid), signal);
    }
}

/// Where a process says that it is ready: `process.send('ready')` of a Node program, whose channel to its parent has a
/// JSON message a line; or a line like `ready 127.0.0.1:8080`, as our servers print it.
pub struct ReadyChannel {
    stream: UnixStream,
    line: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelEvent {
    Nothing,
    Ready,
    Closed,
}

impl ReadyChannel {
    /// Our end, and the one for the program.
    pub fn open() -> Result<(ReadyChannel, UnixStream), Failure> {
        let open = || {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            Ok((ours, theirs))
        };
        let (stream, theirs) = open().map_err(|error: io::Error| Failure::new("open a channel", error))?;
        Ok((ReadyChannel { stream, line: Vec::new() }, theirs))
    }

    pub fn read(&mut self) -> ChannelEvent {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => ChannelEvent::Closed,
            Ok(length) => {
                let is_ready = self.has_said_ready(&buffer[..length]);
                if is_ready { ChannelEvent::Ready } else { ChannelEvent::Nothing }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                ChannelEvent::Nothing
            }
            Err(_) => ChannelEvent::Closed,
        }
    }

    /// Other messages mean nothing to us; of a long one only the beginning is kept.
    fn has_said_ready(&mut self, bytes: &[u8]) -> bool {
        const MESSAGE: &[u8] = b"\"ready\"";
        const LINE: &[u8] = b"ready ";
        let mut is_ready = false;
        for &byte in bytes {
            if byte == b'\n' {
                is_ready |= self.line == MESSAGE || self.line.starts_with(LINE);
                self.line.clear();
            } else if self.line.len() <= MESSAGE.len() {
                self.line.push(byte);
            }
        }
        is_ready
    }
}

/// In an epoll set.
impl AsFd for ReadyChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The processes that a manager with this folder has started, by their ids: they lead a group, and have both in their
/// environment. What they have started may have it, too: the oldest counts.
pub fn find_leaders(home: &PmHome) -> BTreeMap<u32, ProcessIdentity> {
    let mut leaders: BTreeMap<u32, ProcessIdentity> = BTreeMap::new();
    let ours = [home::VARIABLE.as_bytes(), b"=", home.folder().as_os_str().as_bytes()].concat();
    for stat in Stat::everybody().filter(|stat| stat.pid == stat.group && stat.is_alive()) {
        let Ok(environment) = fs::read(format!("/proc/{}/environ", stat.pid)) else { continue };
        let mut variables = environment.split(|&byte| byte == 0);
        let id =
            variables.clone().find_map(|variable| str::from_utf8(variable.strip_prefix(b"pm_id=")?).ok()?.parse().ok());
        let Some(id) = id.filter(|_| variables.any(|variable| variable == ours)) else { continue };
        let identity = ProcessIdentity::of(&stat);
        leaders
            .entry(id)
            .and_modify(|oldest| {
                if identity.started < oldest.started {
                    *oldest = identity;
                }
            })
            .or_insert(identity);
    }
    leaders
}

/// Kills what is left of a group whose leader has ended.
pub fn kill_group(leader: Pid) {
    let _ = killpg(leader, Signal::SIGKILL);
}

/// Lets the program write to its FIFOs; it reads nothing.
pub fn redirect(command: &mut Command, home: &PmHome, id: u32) -> Result<(), Failure> {
    let open = |stream| open_fifo(home, id, 0, stream);
    command.stdin(Stdio::null()).stdout(open(LogStream::Out)?).stderr(open(LogStream::Error)?);
    Ok(())
}

/// Lets the program inherit the end of its channel, as Node's fork() does.
pub fn announce_channel(command: &mut Command, theirs: &UnixStream) {
    command.env("NODE_CHANNEL_FD", theirs.as_raw_fd().to_string());
    command.env("NODE_CHANNEL_SERIALIZATION_MODE", "json");
}

/// A FIFO that is open for reading too, so that its reader can go and come: nothing is lost, and nobody gets SIGPIPE
/// (fifo(7)). It is as large as any: a user may have 512 applications before the kernel makes their pipes smaller, and
/// would have 128 if ours held four times as much (pipe(7), pipe-user-pages-soft).
pub fn open_fifo(home: &PmHome, id: u32, worker: usize, stream: LogStream) -> Result<File, Failure> {
    let path = home.fifo(id, worker, stream);
    let failed = |error: std::io::Error| Failure::new(format_args!("open {}", path.display()), error);
    match mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(failed(errno.into())),
    }
    OpenOptions::new().read(true).write(true).open(&path).map_err(failed)
}
