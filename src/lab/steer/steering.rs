//! One group that is steered: what is known of each of its sockets, and the program that is attached because of it.
//!
//! A program names a socket by its number in the group, and the kernel tells nobody which socket has which number: it is
//! the order of the listen(2) calls until one is closed. So connections of ours find out, one for each number
//! ([`super::probe`]); the program sends them there, and all others where they go anyway.
//!
//! A worker gets nothing while it is stopped by a signal, or while a connection of ours waits in its queue for longer
//! than [`ACCEPTED_WITHIN`]. Ours is sent when others have waited there at every look for a tenth of a second, and the
//! worker is back when it has accepted it: a queue is first in, first out, so all before it were accepted, too.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use super::choice::{Candidate, Select, program};
use super::events::{Event, Events};
use super::group::Group;
use super::probe::{ACCEPTED_WITHIN, Probe, acceptors};
use super::watchdog::Watchdog;
use crate::classic_bpf::{BpfProgram, MAX_OWN, with_own};
use crate::cpu;
use crate::failure::Failure;
use crate::sys::foreign_listener::detach_selector;
use crate::sys::procfs::{Stat, descriptors};

/// A queue that was never empty for so long may be one that nobody accepts from.
const DOUBT_AFTER: Duration = Duration::from_millis(100);

/// A worker that is out, and whose queue grows by more than this, has another number than was found.
const FEW_MORE: u32 = 50;

/// By its number in the group.
#[derive(Default)]
struct Member {
    /// Its inode; `None` when it is not known which of the sockets has this number.
    socket: Option<u32>,
    /// Who accepts from it.
    pid: Option<i32>,
    queued: u32,
    /// Since when connections have waited at every look.
    waits_since: Option<Instant>,
    /// A connection of ours that nobody has accepted yet.
    probe: Option<Probe>,
    /// Why it gets no connection.
    out: Option<&'static str>,
    /// How many waited when the program that passes it over was attached.
    queued_when_out: Option<u32>,
}

pub struct Steering {
    pub group: Group,
    select: Select,
    members: Vec<Member>,
    /// All sockets of the group.
    sockets: BTreeSet<u32>,
    attached: BpfProgram,
    watchdog: Watchdog,
    events: Events,
}

impl Steering {
    /// Attaches the first program. From then on the watchdog gives the group back, whatever happens to us.
    pub fn begin(group: Group, select: Select, events: Events) -> Result<Steering, String> {
        let watchdog = Watchdog::start()?;
        let (members, sockets, attached) = (Vec::new(), BTreeSet::new(), BpfProgram::new());
        let mut steering = Steering { group, select, members, sockets, attached, watchdog, events };
        let begun = steering.hand_over().and_then(|()| steering.number_sockets());
        let begun = begun.and_then(|()| steering.choose());
        if let Err(why) = begun {
            steering.watchdog.release();
            return Err(why);
        }
        let (address, program, pids) = (steering.group.address.to_string(), steering.group.program(), steering.pids());
        steering.events.say(&Event::Steering { address, program, select, pids });
        Ok(steering)
    }

    /// Gives the group back, also where the watchdog was killed.
    pub fn end(mut self, why: &str) {
        if self.watchdog.has_ended() {
            // A listener that is gone has no program to lose.
            let _ = self.group.holder.duplicate().and_then(detach_selector);
        }
        self.watchdog.release();
        self.events.say(&Event::Ended { why });
    }

    fn pids(&self) -> Vec<Option<i32>> {
        self.members.iter().map(|member| member.pid).collect()
    }

    fn hand_over(&self) -> Result<(), String> {
        match self.group.holder.duplicate().and_then(|member| self.watchdog.hand_over(member)) {
            // It is gone again, and the next look finds another.
            Ok(()) | Err(Errno::ESRCH | Errno::EBADF) => Ok(()),
            Err(errno) => Err(Failure::new("give the watchdog a duplicate of a listener", errno).to_string()),
        }
    }

    /// Looks once, and attaches another program if there is a reason. Why to end, where there is a reason.
    pub fn look(&mut self) -> Result<Option<&'static str>, String> {
        const ENDED: &str = "the server does not listen any more";
        if self.watchdog.has_ended() {
            return Err(
                "the watchdog was killed; without it nobody would give the group back after a SIGKILL".to_string()
            );
        }
        let queues = self.group.queues();
        if queues.is_empty() {
            return Ok(Some(ENDED));
        }
        let is_same =
            queues.len() == self.sockets.len() && queues.iter().all(|(inode, _)| self.sockets.contains(inode));
        let has_died = self.members.iter().filter_map(|member| member.pid).any(|pid| !is_alive(pid));
        if (!is_same || has_died || self.group.is_refresh_due()) && !self.refresh()? {
            return Ok(Some(ENDED));
        }
        if !is_same {
            self.number_again()?;
        }
        for member in &mut self.members {
            let queue = queues.iter().find(|(inode, _)| Some(*inode) == member.socket);
            member.queued = queue.map_or(0, |(_, queued)| *queued);
        }
        if self.select.looks_at_workers() {
            self.look_at_workers()?;
        }
        self.choose().map(|()| None)
    }

    /// Looks for the processes again. False when none of them listens any more.
    fn refresh(&mut self) -> Result<bool, String> {
        let had = self.group.holder.socket();
        match self.group.refresh() {
            Ok(true) => {}
            // The kernel may have closed the last of them meanwhile.
            Err(why) if !self.group.queues().is_empty() => return Err(why),
            Ok(false) | Err(_) => return Ok(false),
        }
        if self.group.holder.socket() != had {
            self.hand_over()?;
        }
        let before = self.pids();
        for member in &mut self.members {
            let pid = member.socket.and_then(|socket| self.group.acceptor(socket));
            member.pid = pid.or(member.pid.filter(|pid| is_alive(*pid)));
        }
        if self.pids() != before {
            self.events.say(&Event::Changed { pids: self.pids() });
        }
        Ok(true)
    }

    /// Finds out which number belongs to whom.
    fn number_sockets(&mut self) -> Result<(), String> {
        self.sockets = self.group.queues().iter().map(|(inode, _)| *inode).collect();
        self.members = self.sockets.iter().map(|_| Member::default()).collect();
        self.ask((0..self.members.len()).collect())?;
        self.match_sockets();
        let known: Vec<i32> = self.pids().into_iter().flatten().collect();
        if let Some(pid) = known.iter().enumerate().find(|(i, pid)| known[..*i].contains(pid)).map(|(_, pid)| pid)
            && self.select.looks_at_workers()
        {
            return Err(format!(
                "pid {pid} accepts from several sockets of the group, by threads; which of them hangs cannot be seen \
                 from outside: use --select cpu or random"
            ));
        }
        Ok(())
    }

    /// After sockets have left or joined. What the kernel does then is known: the last takes the place of one that leaves
    /// (`reuseport_detach_sock`), and a new one is the last. So the choice is right at once, and those that accept are
    /// asked whether it is; if not, all are.
    fn number_again(&mut self) -> Result<(), String> {
        let now: BTreeSet<u32> = self.group.queues().iter().map(|(inode, _)| *inode).collect();
        let has_left = |member: &Member| member.socket.is_some_and(|socket| !now.contains(&socket));
        while let Some(number) = self.members.iter().position(has_left) {
            self.members.swap_remove(number);
        }
        for &socket in now.difference(&self.sockets) {
            let pid = self.group.acceptor(socket);
            self.members.push(Member { socket: Some(socket), pid, ..Member::default() });
        }
        self.sockets = now;
        let expected = self.pids();
        if self.members.len() == self.sockets.len() {
            self.choose()?;
            let accepting = self.members.iter().enumerate().filter(|(_, member)| member.out.is_none());
            self.ask(accepting.map(|(number, _)| number).collect())?;
        }
        if self.members.len() != self.sockets.len() || self.pids() != expected {
            self.number_sockets()?;
        }
        self.events.say(&Event::Changed { pids: self.pids() });
        Ok(())
    }

    /// Sends a connection to each of these numbers, and notes who has accepted it.
    fn ask(&mut self, numbers: Vec<usize>) -> Result<(), String> {
        let pids = self.group.pids();
        for numbers in numbers.chunks(MAX_OWN) {
            self.send_probes(numbers)?;
            let found = acceptors(numbers.iter().filter_map(|&number| self.members[number].probe.as_ref()), &pids);
            for (&number, pid) in numbers.iter().zip(found).filter(|(_, pid)| pid.is_some()) {
                (self.members[number].pid, self.members[number].probe) = (pid, None);
            }
        }
        Ok(())
    }

    /// The socket of each number, by the process that accepts from both; the last that is left belongs to the last number.
    fn match_sockets(&mut self) {
        let of: Vec<(u32, Option<i32>)> =
            self.sockets.iter().map(|&socket| (socket, self.group.acceptor(socket))).collect();
        for member in self.members.iter_mut().filter(|member| member.pid.is_some()) {
            let mut own = of.iter().filter(|(_, pid)| *pid == member.pid);
            member.socket = own.next().filter(|_| own.next().is_none()).map(|(socket, _)| *socket);
        }
        let taken: BTreeSet<u32> = self.members.iter().filter_map(|member| member.socket).collect();
        let mut left = self.members.iter_mut().filter(|member| member.socket.is_none());
        if let (Some(member), None) = (left.next(), left.next())
            && let Some((socket, pid)) = of.iter().find(|(socket, _)| !taken.contains(socket))
        {
            (member.socket, member.pid) = (Some(*socket), *pid);
        }
    }

    fn look_at_workers(&mut self) -> Result<(), String> {
        let mut doubtful = Vec::new();
        let (mut is_unknown_back, mut is_wrong) = (false, false);
        for (number, member) in self.members.iter_mut().enumerate() {
            let was_out = member.out;
            let is_stopped = member.pid.and_then(Stat::of).is_some_and(|stat| matches!(stat.state, 'T' | 't'));
            if member.probe.as_ref().is_some_and(Probe::is_over) {
                is_unknown_back |= member.pid.is_none() && member.probe.as_ref().is_some_and(|it| it.inode().is_some());
                (member.probe, member.waits_since) = (None, None);
            }
            let since = member.waits_since.get_or_insert_with(Instant::now).elapsed();
            if member.queued == 0 {
                member.waits_since = None;
            } else if since > DOUBT_AFTER && member.probe.is_none() && !is_stopped {
                doubtful.push(number);
            }
            member.out = match &member.probe {
                _ if is_stopped => Some("it is stopped by a signal"),
                None => None,
                Some(probe) if probe.age() > ACCEPTED_WITHIN => Some("it does not accept"),
                Some(_) => was_out,
            };
            // From the look after that on, when the program is attached.
            member.queued_when_out = member.out.and(was_out).map(|_| member.queued_when_out.unwrap_or(member.queued));
            is_wrong |= member.queued_when_out.is_some_and(|then| member.queued > then + FEW_MORE);
            match (was_out, member.out) {
                (None, Some(why)) => self.events.say(&Event::Out { number, pid: member.pid, why }),
                (Some(_), None) => self.events.say(&Event::Back { number, pid: member.pid }),
                _ => {}
            }
        }
        // Where all are out, all are chosen.
        let has_live = self.members.iter().any(|member| member.out.is_none());
        if is_unknown_back || (is_wrong && has_live) {
            self.number_sockets()?;
            self.events.say(&Event::Changed { pids: self.pids() });
            return Ok(());
        }
        self.send_probes(&doubtful)
    }

    /// One to each of these numbers.
    fn send_probes(&mut self, numbers: &[usize]) -> Result<(), String> {
        let address = self.group.address;
        let failed = |error| Failure::new(format_args!("connect to {address}"), error).to_string();
        if numbers.is_empty() {
            return Ok(());
        }
        for &number in numbers {
            self.members[number].probe = Some(Probe::bind(address, None).map_err(failed)?);
        }
        self.choose()?;
        for &number in numbers {
            self.members[number].probe.iter_mut().try_for_each(Probe::connect).map_err(failed)?;
        }
        Ok(())
    }

    /// Attaches the program for what is known now, if it is another than the last.
    fn choose(&mut self) -> Result<(), String> {
        let weighs = self.select == Select::LeastLoaded;
        let candidate = |member: &Member| Candidate {
            is_live: member.out.is_none(),
            load: if weighs { u64::from(member.queued) + member.pid.map_or(0, open_descriptors) } else { 0 },
            cpu: if self.select == Select::Cpu { member.pid.and_then(only_cpu) } else { None },
        };
        let candidates: Vec<Candidate> = self.members.iter().map(candidate).collect();
        let numbered = self.members.iter().enumerate();
        let own = numbered.filter_map(|(number, member)| Some((member.probe.as_ref()?.ours(), number)));
        let own: Vec<_> = own.take(MAX_OWN).collect();
        let next = with_own(&own, &program(self.select, &candidates, &cpu::allowed()));
        if next == self.attached {
            return Ok(());
        }
        match self.group.attach(&next) {
            Ok(()) => self.attached = next,
            // The listener is gone, and the next look finds another.
            Err(Errno::ESRCH | Errno::EBADF) => {}
            Err(errno) => {
                let failure = Failure::new("attach a program (SO_ATTACH_REUSEPORT_CBPF)", errno);
                return Err(match errno {
                    Errno::ENOMEM => failure.advise("raise net.core.optmem_max").to_string(),
                    _ => failure.to_string(),
                });
            }
        }
        Ok(())
    }
}

fn is_alive(pid: i32) -> bool {
    Stat::of(pid).is_some_and(|stat| stat.is_alive())
}

/// Its connections, and a few more. The size of the folder is their number since Linux 6.2.
fn open_descriptors(pid: i32) -> u64 {
    let size = fs::metadata(format!("/proc/{pid}/fd")).map_or(0, |folder| folder.len());
    if size > 0 { size } else { descriptors(pid).unwrap_or(0) }
}

fn only_cpu(pid: i32) -> Option<usize> {
    let set = sched_getaffinity(Pid::from_raw(pid)).ok()?;
    let mut allowed = (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false));
    allowed.next().filter(|_| allowed.next().is_none())
}
