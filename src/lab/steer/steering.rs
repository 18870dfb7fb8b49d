//! One group that is steered: what is known of each of its sockets, and the program that is attached because of it.
//!
//! A program names a socket by its number in the group, and the kernel tells nobody which socket has which number: it is
//! the order of the listen(2) calls until one is closed. So connections of ours find out, one for each number
//! ([`super::probe`]); the program sends them there, and all others where they go anyway.
//!
//! A worker gets nothing while it is stopped by a signal, or while a connection of ours waits in its queue for longer
//! than [`ACCEPTED_WITHIN`]. Ours is sent when others have waited there for a tenth of a second, and never fewer than at
//! the look before; the worker is back when it has accepted it: a queue is first in, first out, so all before it were
//! accepted, too. A worker that is stopped gets one as well: were it accepted, the number would be another worker's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use super::choice::{Candidate, Select, loads, program};
use super::events::{Event, Events, Precision};
use super::exact::{LoadMap, explain};
use super::group::{Group, Program};
use super::probe::{ACCEPTED_WITHIN, Probe, State, acceptors, await_answers};
use super::watchdog::Watchdog;
use crate::classic_bpf::own_connections_first;
use crate::cpu;
use crate::extended_bpf::MAX_LOADS;
use crate::failure::Failure;
use crate::lab::target::no_sockets;
use crate::sys::foreign_listener::detach_selector;
use crate::sys::procfs::{Stat, open_descriptors};

/// So many connections of ours are on their way at once at most. For each the program has two instructions, and the
/// kernel takes no long program (BPF_MAXINSNS, net.core.optmem_max).
const MOST_ASKED: usize = 128;
/// To find out the numbers before the beginning is said, where sockets come and go.
const ATTEMPTS: usize = 5;
/// A queue that has not become shorter for so long may be one that nobody accepts from.
const DOUBT_AFTER: Duration = Duration::from_millis(100);

const STOPPED: &str = "it is stopped by a signal";
const HANGS: &str = "it does not accept";
const ENDED: &str = "the server does not listen any more";

/// By its number in the group.
#[derive(Default)]
struct Member {
    /// Its inode; `None` when it is not known which of the sockets has this number.
    socket: Option<u32>,
    /// Who accepts from it.
    pid: Option<i32>,
    /// Who has accepted the connection that asked for this number.
    answer: Option<i32>,
    queued: u32,
    /// Since when connections have waited, and never fewer than at the look before.
    waits_since: Option<Instant>,
    /// A connection of ours that nobody has accepted yet.
    probe: Option<Probe>,
    /// Why it gets no connection.
    out: Option<&'static str>,
}

pub struct Steering {
    pub group: Group,
    select: Select,
    members: Vec<Member>,
    /// All sockets of the group; none while they come and go, so that their numbers are not known.
    sockets: BTreeSet<u32>,
    attached: Program,
    /// Of `least-loaded`: what the program counts in, or why there is none.
    load_map: Option<Result<LoadMap, String>>,
    watchdog: Watchdog,
    /// The socket of which the watchdog has a duplicate.
    handed_over: Option<u32>,
    /// The number of the worker whose turn it is, modulo their number.
    turn: usize,
    events: Events,
}

impl Steering {
    /// Attaches the first program. From then on the watchdog gives the group back, whatever happens to us.
    pub fn begin(group: Group, select: Select, events: Events) -> Result<Steering, String> {
        let watchdog = Watchdog::start()?;
        let mut steering = Steering {
            group,
            select,
            members: Vec::new(),
            sockets: BTreeSet::new(),
            attached: Program::Classic(Vec::new()),
            load_map: (select == Select::LeastLoaded).then(LoadMap::new),
            watchdog,
            handed_over: None,
            turn: 0,
            events,
        };
        if let Err(why) = steering.attach_first() {
            steering.give_back();
            return Err(why);
        }
        let (address, program, pids) = (steering.group.address.to_string(), steering.group.program(), steering.pids());
        let precision = steering.precision();
        steering.events.say(&Event::Steering { address, program, select, pids, precision });
        Ok(steering)
    }

    fn attach_first(&mut self) -> Result<(), String> {
        for _ in 0..ATTEMPTS {
            if self.sockets.is_empty() && self.refresh()? {
                self.number_sockets()?;
            }
        }
        if self.members.is_empty() {
            return Err(ENDED.to_string());
        }
        self.weigh()?;
        self.choose().map(drop)
    }

    pub fn end(self, why: &str) {
        self.give_back().say(&Event::Ended { why });
    }

    /// Takes the program away, also where the watchdog was killed.
    fn give_back(self) -> Events {
        if !self.watchdog.release() {
            // A listener that is gone has no program to lose.
            let _ = self.group.holder.duplicate().and_then(detach_selector);
        }
        self.events
    }

    fn pids(&self) -> Vec<Option<i32>> {
        self.members.iter().map(|member| member.pid.filter(|_| !self.sockets.is_empty())).collect()
    }

    fn hand_over(&mut self) -> Result<(), String> {
        let socket = Some(self.group.holder.socket());
        if self.handed_over == socket {
            return Ok(());
        }
        match self.group.holder.duplicate().and_then(|member| self.watchdog.hand_over(member)) {
            Ok(()) => self.handed_over = socket,
            // It is gone again, and the next look finds another.
            Err(Errno::ESRCH | Errno::EBADF) => {}
            Err(errno) => return Err(Failure::new("give the watchdog a duplicate of a listener", errno).to_string()),
        }
        Ok(())
    }

    /// Looks once, and attaches another program if there is a reason. Why to end, where there is a reason.
    pub fn look(&mut self) -> Result<Option<&'static str>, String> {
        if self.watchdog.has_ended() {
            return Err(
                "the watchdog was killed; without it nobody would give the group back after a SIGKILL".to_string()
            );
        }
        let (pids, precision, were_all_out) = (self.pids(), self.precision(), self.are_all_out());
        let queues = self.group.queues()?;
        let is_same = !self.sockets.is_empty() && queues.keys().eq(&self.sockets);
        let is_due = !is_same || self.group.is_refresh_due();
        if is_due && !self.refresh()? {
            return Ok(Some(ENDED));
        }
        if !is_same {
            self.number_sockets()?;
        }
        if self.members.is_empty() {
            return Ok(Some(ENDED));
        }
        self.note_queues(&queues);
        if !self.sockets.is_empty() && self.select.looks_at_workers() {
            self.look_at_workers(is_due)?;
        }
        self.weigh()?;
        self.choose()?;
        if (self.pids(), self.precision()) != (pids, precision) {
            self.events.say(&Event::Changed { pids: self.pids(), precision: self.precision() });
        }
        if self.are_all_out() && !were_all_out {
            self.events.say(&Event::AllOut);
        }
        Ok(None)
    }

    fn note_queues(&mut self, queues: &BTreeMap<u32, u32>) {
        for member in &mut self.members {
            let queued = member.socket.and_then(|socket| queues.get(&socket)).copied().unwrap_or(0);
            // Only accept(2) takes one out.
            if queued == 0 || queued < member.queued {
                member.waits_since = None;
            }
            member.queued = queued;
        }
    }

    fn are_all_out(&self) -> bool {
        self.members.iter().all(|member| member.out.is_some())
    }

    /// Looks for the processes again. False when none of them listens any more.
    fn refresh(&mut self) -> Result<bool, String> {
        if !self.group.refresh(self.watchdog.pid())? {
            return Ok(false);
        }
        self.hand_over()?;
        let alive = self.group.pids();
        for member in &mut self.members {
            let pid = member.socket.and_then(|socket| self.group.acceptor(socket));
            member.pid = pid.or(member.pid.filter(|pid| alive.contains(pid)));
        }
        Ok(true)
    }

    /// Finds out which number belongs to whom. What the kernel does when sockets leave or join is known: the last takes
    /// the place of one that leaves (`reuseport_detach_sock`), and a new one is the last. Of two that leave between two
    /// looks the order is not known, though, so that is what is attached while all are asked, and only the answers count.
    /// This is one attempt: the next look, which hears signals before, makes another.
    fn number_sockets(&mut self) -> Result<(), String> {
        let now: BTreeSet<u32> = self.group.queues()?.into_keys().collect();
        self.expect_numbers(&now);
        self.weigh()?;
        self.sockets.clear();
        // While they are asked a number may go from one to another.
        if !self.ask()? || self.group.queues()?.keys().ne(&now) {
            return Ok(());
        }
        self.sockets = now;
        let answers: Vec<Option<i32>> = self.members.iter().map(|member| member.answer).collect();
        let twice = answers.iter().enumerate().find(|(i, pid)| pid.is_some() && answers[..*i].contains(pid));
        if let Some((_, Some(pid))) = twice
            && self.select.looks_at_workers()
        {
            return Err(format!(
                "pid {pid} accepts from several sockets of the group, by threads; which of them hangs cannot be seen \
                 from outside: use --select cpu or random"
            ));
        }
        let out: BTreeMap<u32, Option<&str>> =
            self.members.iter_mut().filter_map(|member| Some((member.socket.take()?, member.out))).collect();
        self.take_answers();
        for member in &mut self.members {
            let before = member.socket.and_then(|socket| out.get(&socket));
            // Where its socket is not known, it stays as out as the one that was expected there.
            member.out = before.copied().unwrap_or(member.out);
            member.waits_since = None;
        }
        Ok(())
    }

    fn expect_numbers(&mut self, now: &BTreeSet<u32>) {
        let has_left = |member: &Member| member.socket.is_some_and(|socket| !now.contains(&socket));
        while let Some(number) = self.members.iter().position(has_left) {
            self.members.swap_remove(number);
        }
        // Of those that are not known any may have left.
        while self.members.len() > now.len()
            && let Some(number) = self.members.iter().position(|member| member.socket.is_none())
        {
            self.members.swap_remove(number);
        }
        self.members.resize_with(now.len(), Member::default);
    }

    /// Sends a connection to each number, and notes who has accepted it. False when they could not be sent.
    fn ask(&mut self) -> Result<bool, String> {
        self.members.iter_mut().for_each(|member| (member.answer, member.probe) = (None, None));
        let all: Vec<usize> = (0..self.members.len()).collect();
        for some in all.chunks(MOST_ASKED) {
            if !self.send_probes(some)? {
                return Ok(false);
            }
            let sent = some.iter().filter_map(|&number| Some((number, self.members[number].probe.take()?))).collect();
            self.note_answers(sent)?;
        }
        Ok(true)
    }

    /// Notes who has accepted these; a process that was started since the last refresh is looked for.
    fn note_answers(&mut self, sent: Vec<(usize, Probe)>) -> Result<(), String> {
        let (numbers, mut probes): (Vec<usize>, Vec<Probe>) = sent.into_iter().unzip();
        await_answers(&mut probes).map_err(no_sockets)?;
        let mut answers = acceptors(&probes, &self.group.pids());
        let is_new = |(probe, pid): (&Probe, &Option<i32>)| probe.state == State::Accepted && pid.is_none();
        if probes.iter().zip(&answers).any(is_new) && self.refresh()? {
            answers = acceptors(&probes, &self.group.pids());
        }
        for ((number, probe), answer) in numbers.into_iter().zip(probes).zip(answers) {
            let is_kept = self.select.looks_at_workers() && !probe.is_over();
            (self.members[number].answer, self.members[number].probe) = (answer, is_kept.then_some(probe));
        }
        Ok(())
    }

    /// The socket of a number is the one from which the process accepts that has answered. Without an answer it is known
    /// only where one socket is left.
    fn take_answers(&mut self) {
        for member in self.members.iter_mut().filter(|member| member.socket.is_none()) {
            member.pid = member.answer;
            member.socket = member.answer.and_then(|pid| self.group.socket_of(pid));
        }
        let known: BTreeSet<u32> = self.members.iter().filter_map(|member| member.socket).collect();
        let mut unknown = self.members.iter_mut().filter(|member| member.socket.is_none());
        let mut left = self.sockets.difference(&known);
        if let (Some(member), None, Some(socket), None) = (unknown.next(), unknown.next(), left.next(), left.next()) {
            member.socket = Some(*socket);
            member.pid = self.group.acceptor(*socket).or(member.pid);
        }
    }

    /// Numbers that are not known are asked for again after each refresh.
    fn look_at_workers(&mut self, is_refreshed: bool) -> Result<(), String> {
        let (mut doubtful, mut late, mut changed) = (Vec::new(), Vec::new(), Vec::new());
        let (mut is_wrong, mut has_died) = (false, false);
        self.turn = (self.turn + 1) % self.members.len();
        for (number, member) in self.members.iter_mut().enumerate() {
            let was_out = member.out;
            let is_over = member.probe.as_mut().map_or(Ok(false), Probe::poll).map_err(no_sockets)?;
            let answered = member.probe.take_if(|_| is_over).filter(|probe| probe.state == State::Accepted);
            let is_answered = answered.is_some();
            if let Some(probe) = answered {
                member.waits_since = None;
                if member.socket.is_none() {
                    late.push((number, probe));
                }
            }
            // One that has nothing to accept is looked at in its turn.
            let is_looked_at = member.queued > 0 || is_answered || number == self.turn;
            let is_stopped = match member.pid {
                None => false,
                Some(_) if !is_looked_at => was_out == Some(STOPPED),
                Some(pid) => {
                    let stat = Stat::of(pid).filter(Stat::is_alive);
                    has_died |= stat.is_none();
                    stat.is_some_and(|stat| matches!(stat.state, 'T' | 't'))
                }
            };
            is_wrong |= is_answered && is_stopped && was_out == Some(STOPPED);
            let waits =
                member.queued > 0 && member.waits_since.get_or_insert_with(Instant::now).elapsed() > DOUBT_AFTER;
            member.out = match &member.probe {
                _ if is_stopped => Some(STOPPED),
                _ if is_answered => None,
                Some(probe) if probe.age() > ACCEPTED_WITHIN => Some(HANGS),
                _ => was_out,
            };
            let is_unknown = is_refreshed && member.socket.is_none();
            if member.probe.is_none() && (member.out.is_some() || waits || is_unknown) {
                doubtful.push(number);
            }
            if was_out.is_some() != member.out.is_some() {
                changed.push(number);
            }
        }
        if !late.is_empty() && !is_wrong {
            self.note_answers(late)?;
            self.take_answers();
        }
        for number in changed {
            let Member { pid, out, .. } = self.members[number];
            self.events.say(&out.map_or(Event::Back { number, pid }, |why| Event::Out { number, pid, why }));
        }
        if (has_died || is_wrong) && !self.refresh()? {
            return Ok(());
        }
        if is_wrong {
            return self.number_sockets();
        }
        self.send_probes(&doubtful).map(drop)
    }

    /// One to each of these numbers, as far as there is room. False when the program that leads them there could not be
    /// attached.
    fn send_probes(&mut self, numbers: &[usize]) -> Result<bool, String> {
        let address = self.group.address;
        let failed = |error| Failure::new(format_args!("connect to {address}"), error).to_string();
        let room = MOST_ASKED.saturating_sub(self.members.iter().filter_map(Member::on_its_way).count());
        let numbers = &numbers[..room.min(numbers.len())];
        if numbers.is_empty() {
            return Ok(true);
        }
        for &number in numbers {
            self.members[number].probe = Some(Probe::bind(address, None).map_err(failed)?);
        }
        let is_attached = self.choose()?;
        for &number in numbers {
            let probe = &mut self.members[number].probe;
            match is_attached {
                true => probe.iter_mut().try_for_each(Probe::connect).map_err(failed)?,
                false => *probe = None,
            }
        }
        Ok(is_attached)
    }

    /// Where the choice is exact, what it counts in.
    fn exact(&self) -> Result<&LoadMap, Precision> {
        let drawn = |why: String| Precision { exact: Some(false), why: Some(why) };
        match &self.load_map {
            None => Err(Precision::default()),
            Some(Err(why)) => Err(drawn(why.clone())),
            Some(Ok(_)) if self.members.len() > MAX_LOADS => Err(drawn(format!("more than {MAX_LOADS} sockets"))),
            Some(Ok(map)) => Ok(map),
        }
    }

    fn precision(&self) -> Precision {
        self.exact().map_or_else(|drawn| drawn, |_| Precision { exact: Some(true), why: None })
    }

    /// Looks at the workers' loads for an exact choice. A connection that is accepted between the two readings is counted
    /// twice until the next look, so nothing is done between them.
    fn weigh(&mut self) -> Result<(), String> {
        let Ok(map) = self.exact() else { return Ok(()) };
        let chosen = map.chosen();
        let queues = self.group.queues()?;
        self.note_queues(&queues);
        if let Ok(map) = self.exact() {
            map.set(&loads(&self.candidates()), &chosen);
        }
        Ok(())
    }

    fn candidates(&self) -> Vec<Candidate> {
        let weighs = self.select == Select::LeastLoaded;
        let load = |member: &Member| Some(u64::from(member.queued) + open_descriptors(member.pid?)?);
        let candidate = |member: &Member| Candidate {
            is_live: member.out.is_none(),
            load: if weighs { load(member) } else { None },
            cpu: if self.select == Select::Cpu { member.pid.and_then(only_cpu) } else { None },
        };
        self.members.iter().map(candidate).collect()
    }

    /// The program for what is known now.
    fn program(&self) -> Program {
        let numbered = self.members.iter().enumerate();
        let own = numbered.filter_map(|(number, member)| Some((member.on_its_way()?.ours, number)));
        let own: Vec<(SocketAddr, usize)> = own.collect();
        if let Ok(map) = self.exact() {
            return Program::Extended(map.program(self.members.len(), &own));
        }
        let cpus = if self.select == Select::Cpu { cpu::allowed() } else { Vec::new() };
        Program::Classic(own_connections_first(&own, &program(self.select, &self.candidates(), &cpus)))
    }

    /// Attaches the program, if it is another than the last. False when the listener is gone; the next look finds
    /// another.
    fn choose(&mut self) -> Result<bool, String> {
        let next = self.program();
        if next == self.attached {
            return Ok(true);
        }
        match self.group.attach(&next) {
            Ok(()) => self.attached = next,
            Err(Errno::ESRCH | Errno::EBADF) => return Ok(false),
            Err(errno) if matches!(next, Program::Extended(_)) => {
                self.load_map = Some(Err(explain("load or attach a BPF program", errno)));
                return self.choose();
            }
            Err(errno) => {
                let failure = Failure::new("attach a program (SO_ATTACH_REUSEPORT_CBPF)", errno);
                return Err(match errno {
                    Errno::ENOMEM => failure.advise("raise net.core.optmem_max").to_string(),
                    _ => failure.to_string(),
                });
            }
        }
        Ok(true)
    }
}

impl Member {
    /// The connection of ours that the program has to send there.
    fn on_its_way(&self) -> Option<&Probe> {
        self.probe.as_ref().filter(|probe| probe.state == State::Sent)
    }
}

fn only_cpu(pid: i32) -> Option<usize> {
    let set = sched_getaffinity(Pid::from_raw(pid)).ok()?;
    let mut allowed = (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false));
    allowed.next().filter(|_| allowed.next().is_none())
}
