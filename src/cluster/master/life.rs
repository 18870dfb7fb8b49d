//! How workers begin and end.

use std::mem;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;

use super::{Happening, Master};
use crate::cluster::protocol;
use crate::cluster::timers::Due;
use crate::cluster::token::{Token, Uid};
use crate::cluster::worker::{State, Worker};
use crate::failure::Failure;
use crate::report::ServerReport;
use crate::sys::epoll::Interest;
use crate::sys::process::{Ending, Usage, reap};
use crate::units::monotonic_ns;

/// A worker that could not be started is tried again after this long; and one that was killed is killed again, should
/// it be stuck in the kernel.
const RETRY_NS: u64 = 1_000_000_000;

impl Master {
    /// Starts the successor of a dead worker at once; where that fails, in a while the number is free once more.
    pub fn restart(&mut self, number: usize) {
        if let Err(failure) = self.fork(number) {
            self.events.tell("failure", json!({"worker": number, "what": failure.to_string()}));
            self.timers.at(monotonic_ns() + RETRY_NS, Due::Start(number));
        }
    }

    /// No worker is started any more. Those who live go on.
    pub fn give_up(&mut self) {
        if !mem::replace(&mut self.has_given_up, true) {
            self.events.tell("giveup", json!({"workers_left": self.roster.len()}));
        }
    }

    /// Asks all workers to disconnect and lets them finish, kills who is left after the time-out, reaps all.
    pub fn stop(mut self) -> Result<ServerReport, Failure> {
        // Nobody new is taken: in `rr` this closes the listening sockets, in `none` our copies of them.
        let handles = mem::take(&mut self.handles);
        for uid in self.roster.uids() {
            self.dismiss(uid);
        }
        drop(handles);
        while !self.roster.is_empty() {
            self.happenings.clear();
            self.wait()?;
        }
        // A program that has never listened has no address.
        let address = self.address.unwrap_or_else(|| ([0, 0, 0, 0], 0).into());
        Ok(self.scoreboard.report(address, Some(Usage::of_process())))
    }

    pub(super) fn fork(&mut self, number: usize) -> Result<(), Failure> {
        let uid = self.roster.next_uid();
        let worker = Worker::start(&self.settings.command_line, number, uid)?;
        if let Some(ipc) = &worker.ipc {
            let watched = self.epoll.add(ipc, Token::Worker(uid).encode(), Interest::empty());
            if let Err(errno) = watched {
                worker.kill();
                return Err(Failure::new("watch a worker", errno));
            }
        }
        if uid == Uid(1) {
            // Not before: a program that cannot be started is one line and no event.
            let words: Vec<_> =
                self.settings.command_line.iter().map(|word| word.to_string_lossy()).collect();
            self.events.tell("setup", json!({"workers": self.settings.workers, "command_line": words}));
        }
        self.scoreboard.row(number).set_pid(worker.pid.as_raw() as u32);
        self.roster.insert(worker);
        self.tell("fork", uid, json!({}));
        self.watch(uid);
        Ok(())
    }

    /// Asks it to leave, and kills it should it not have left after the time-out.
    pub(super) fn dismiss(&mut self, uid: Uid) {
        let seq = self.next_seq();
        let Some(worker) = self.roster.get_mut(uid) else { return };
        worker.state = State::Leaving;
        if let Some(ipc) = &mut worker.ipc {
            ipc.send(&protocol::disconnect(seq));
        }
        self.expect_to_leave_within(uid, self.settings.kill_timeout);
        self.watch(uid);
    }

    fn expect_to_leave_within(&mut self, uid: Uid, within: Duration) {
        let Some(worker) = self.roster.get_mut(uid) else { return };
        let deadline_ns = monotonic_ns() + within.as_nanos() as u64;
        if worker.deadline_ns.is_none_or(|earlier_ns| deadline_ns < earlier_ns) {
            worker.deadline_ns = Some(deadline_ns);
            self.timers.at(deadline_ns, Due::Kill(uid));
        }
    }

    pub(super) fn kill_overdue(&mut self, uid: Uid, now_ns: u64) {
        let Some(worker) = self.roster.get_mut(uid) else { return };
        if worker.deadline_ns.is_some_and(|deadline_ns| deadline_ns <= now_ns) {
            worker.kill();
            worker.deadline_ns = Some(now_ns + RETRY_NS);
            self.timers.at(now_ns + RETRY_NS, Due::Kill(uid));
        }
    }

    /// Its channel is closed. It may still answer what it has.
    pub(super) fn disconnected(&mut self, uid: Uid) {
        let Some(worker) = self.roster.get_mut(uid) else { return };
        let Some(ipc) = worker.ipc.take() else { return };
        // Before the close: what the worker has started may hold the other end, but not this one; it cannot fail.
        let _ = self.epoll.delete(&ipc);
        self.take_back(uid);
        self.expect_to_leave_within(uid, self.settings.kill_timeout);
        self.happenings.retain(|happening| !matches!(happening, Happening::Query(asker, _) if *asker == uid));
        self.tell("disconnect", uid, json!({}));
    }

    /// True: somebody has ended.
    pub(super) fn reap_one(&mut self) -> bool {
        let Ok(Some((pid, ending, usage))) = reap() else { return false };
        let Some(uid) = self.roster.find(pid) else { return true };
        // What it said before it died counts.
        while self.receive(uid) {}
        self.disconnected(uid);
        let (status, signal) = match ending {
            Ending::Exited(status) => (Some(status), None),
            Ending::KilledBy(signal) => (None, Some(signal)),
        };
        let signal = signal.and_then(|signal| Signal::try_from(signal).ok()).map(Signal::as_str);
        self.tell("exit", uid, json!({"status": status, "signal": signal}));
        let Some(worker) = self.roster.remove(uid) else { return true };
        let number = worker.number;
        self.usages[number] = sum(self.usages[number], usage);
        self.scoreboard.row(number).set_usage(self.usages[number]);
        if self.roster.holder(number).is_none() {
            self.happenings.push_back(Happening::Exit(number));
        }
        true
    }
}

fn sum(one: Usage, other: Usage) -> Usage {
    Usage {
        cpu_user_us: one.cpu_user_us + other.cpu_user_us,
        cpu_system_us: one.cpu_system_us + other.cpu_system_us,
        voluntary_switches: one.voluntary_switches + other.voluntary_switches,
        involuntary_switches: one.involuntary_switches + other.involuntary_switches,
        max_rss_kib: one.max_rss_kib.max(other.max_rss_kib),
    }
}
