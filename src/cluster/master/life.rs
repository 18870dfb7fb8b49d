//! How workers begin and end.

use std::mem;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{Happening, Master};
use crate::cluster::protocol::{self, Address};
use crate::cluster::timers::Due;
use crate::cluster::token::{Stream, Token, Uid};
use crate::cluster::worker::{State, Worker};
use crate::failure::Failure;
use crate::report::ServerReport;
use crate::sys::epoll::Interest;
use crate::sys::process::{Ending, Usage, ended, reap};
use crate::units::monotonic_ns;

/// A worker that could not be started is tried again after this long; and one that was killed is killed again, should
/// it be stuck in the kernel.
const RETRY_NS: u64 = 1_000_000_000;

impl Master {
    /// Starts a successor after this pause; where that fails, in a while once more.
    pub fn restart(&mut self, number: usize, after: Duration) {
        if after.is_zero() {
            self.start_if_vacant(number);
        } else {
            self.timers.at(monotonic_ns() + after.as_nanos() as u64, Due::Start(number));
        }
    }

    /// No worker is started any more. Those who live go on.
    pub fn give_up(&mut self) {
        if !mem::replace(&mut self.has_given_up, true) {
            self.lives.report.gave_up = true;
            let last = self.last_trouble.as_str();
            self.events.tell("giveup", json!({"workers_left": self.roster.len(), "last": last}));
        }
    }

    /// Asks all workers to disconnect and lets them finish, kills who is left after the time-out, reaps all.
    pub fn stop(mut self) -> Result<ServerReport, Failure> {
        self.is_told_to_stop = true;
        self.abandon_reload("the cluster stops");
        self.give_what_was_returned();
        // Nobody new is taken: in `rr` this closes the listening sockets, in `none` our copies of them.
        let handles = mem::take(&mut self.handles);
        for uid in self.roster.uids() {
            self.dismiss(uid);
            self.terminate_if_own(uid);
        }
        drop((handles, mem::take(&mut self.inherited)));
        while !self.roster.is_empty() {
            self.happenings.clear();
            self.wait()?;
        }
        // A program that has never listened has no address.
        let nowhere = || Address::Ip(([0, 0, 0, 0], 0).into());
        let mut report =
            self.scoreboard.report(self.address.take().unwrap_or_else(nowhere), Some(Usage::of_process()));
        report.cluster = Some(self.lives.report());
        self.events.tell("stopped", json!({"uptime_s": report.uptime_s}));
        if let Some(line) = self.last_words.take() {
            self.console.borrow_mut().write(format!("{line}\n").as_bytes());
        }
        for client in mem::take(&mut self.stop_clients) {
            self.answer(client, json!({"done": "the cluster has stopped"}));
        }
        Ok(report)
    }

    /// One of our own hears a signal even in the middle of a request, and knows what it means (section 1 of the contract):
    /// once it has taken what it was given, lest it end before. Of a Node program it would be the end.
    pub(super) fn terminate_if_own(&self, uid: Uid) {
        let is_ready = |worker: &&Worker| worker.counts && worker.unanswered.is_empty();
        self.roster.get(uid).filter(is_ready).into_iter().for_each(Worker::terminate);
    }

    /// Starts a process as this number, perhaps to take the place of another.
    pub(super) fn fork(&mut self, number: usize, candidate_for: Option<Uid>) -> Result<Uid, Failure> {
        let uid = self.roster.next_uid();
        let mut pipe = |stream| {
            let opened = self.outputs.open(&self.epoll, uid, stream, number);
            opened.map_err(|errno| Failure::new("open a pipe", errno).advise("raise ulimit -n"))
        };
        let output = [pipe(Stream::Output)?, pipe(Stream::Error)?];
        let board = self.scoreboard_fd.as_fd();
        let worker = Worker::start(&self.args, number, uid, candidate_for, output, board)?;
        if let Some(ipc) = &worker.ipc {
            let watched = self.epoll.add(ipc, Token::Worker(uid).encode(), Interest::empty());
            if let Err(errno) = watched {
                worker.kill();
                return Err(Failure::new("watch a worker", errno));
            }
        }
        if uid == Uid(1) {
            // Not before: a program that cannot be started is one line and no event.
            let words: Vec<_> = self.args.program.iter().map(|word| word.to_string_lossy()).collect();
            let setup = json!({"workers": self.workers, "command_line": words, "silent": self.args.silent});
            self.events.tell("setup", setup);
        }
        self.lives.report.forks += 1;
        self.is_start_due[number] = false;
        self.scoreboard.row(number).set_pid(worker.pid.as_raw() as u32);
        self.timers.at(worker.started_ns + self.args.listen_timeout.as_nanos() as u64, Due::Listen(uid));
        self.roster.insert(worker);
        self.tell("fork", uid, json!({}));
        self.watch(uid);
        Ok(uid)
    }

    pub(super) fn start_if_vacant(&mut self, number: usize) {
        if self.has_given_up || !self.is_vacant(number) {
            return;
        }
        if let Err(failure) = self.fork(number, None) {
            self.events.tell("failure", json!({"worker": number, "what": failure.to_string()}));
            self.timers.at(monotonic_ns() + RETRY_NS, Due::Start(number));
        }
    }

    pub(super) fn is_vacant(&self, number: usize) -> bool {
        number < self.workers && self.roster.holder(number).is_none()
    }

    /// Asks it to leave, and kills it should it not have left after the time-out.
    pub(super) fn dismiss(&mut self, uid: Uid) {
        let seq = self.next_seq();
        let Some(worker) = self.roster.get_mut(uid) else { return };
        (worker.state, worker.was_expected) = (State::Leaving, true);
        if let Some(ipc) = &mut worker.ipc {
            ipc.send(&protocol::disconnect(seq));
        }
        // What it was given before it hears of this, it takes or gives back.
        self.leave_handles(uid, |_| true);
        self.expect_to_leave_within(uid, self.args.kill_timeout);
        self.watch(uid);
    }

    /// It has met a fatal error, and will end.
    pub(super) fn hear_suicide(&mut self, uid: Uid) {
        let Some(worker) = self.roster.get_mut(uid) else { return };
        if worker.state == State::Leaving {
            return;
        }
        self.lives.report.suicides += 1;
        self.tell("suicide", uid, json!({}));
        self.note_leaving(uid);
    }

    /// It has said that it will leave.
    pub(super) fn note_leaving(&mut self, uid: Uid) {
        if let Some(worker) = self.roster.get_mut(uid) {
            worker.was_expected = true;
            self.begin_to_do_without(uid);
            self.reload_without(uid, "it leaves by itself");
        }
    }

    /// This worker serves no more, or not for long: its successor is started while it still answers what it has.
    fn begin_to_do_without(&mut self, uid: Uid) {
        let Some(worker) = self.roster.get_mut(uid) else { return };
        if worker.state == State::Leaving {
            return;
        }
        worker.state = State::Leaving;
        let (number, has_served) = (worker.number, worker.has_served);
        self.leave_handles(uid, |_| true);
        self.expect_to_leave_within(uid, self.args.kill_timeout);
        self.note_vacancy(number, has_served);
    }

    fn note_vacancy(&mut self, number: usize, has_served: bool) {
        if self.is_vacant(number) && !self.is_told_to_stop {
            self.vacant_since_ns[number].get_or_insert(monotonic_ns());
            // A worker that has said that it ends, and then does, leaves its place once.
            if !mem::replace(&mut self.is_start_due[number], true) {
                self.happenings.push_back(Happening::Vacant { number, has_served });
            }
        }
    }

    pub(super) fn end_vacancy(&mut self, number: usize) {
        if let Some(since_ns) = self.vacant_since_ns[number].take() {
            self.lives.recovered(monotonic_ns() - since_ns);
        }
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
            self.tell("killed", uid, json!({"why": "it has not left in time"}));
            self.reload_by_force(uid);
        }
    }

    pub(super) fn kill_if_not_listening(&mut self, uid: Uid) {
        let is_late = |worker: &Worker| matches!(worker.state, State::Starting { .. });
        if self.roster.get(uid).is_some_and(is_late) {
            let what = format!("it does not listen after {:?}", self.args.listen_timeout);
            self.note_trouble(uid, &what);
            self.tell("failure", uid, json!({"what": what}));
            self.expect_to_leave_within(uid, Duration::ZERO);
        }
    }

    /// Why it will not serve: what it ends with says less.
    pub(super) fn note_trouble(&mut self, uid: Uid, what: &str) {
        if let Some(worker) = self.roster.get_mut(uid) {
            worker.trouble = Some(format!("worker {}: {what}", worker.number));
        }
    }

    /// Its channel is closed. It may still answer what it has.
    pub(super) fn disconnected(&mut self, uid: Uid) {
        let Some(worker) = self.roster.get_mut(uid) else { return };
        let Some(ipc) = worker.ipc.take() else { return };
        // Before the close: what the worker has started may hold the other end, but not this one; it cannot fail.
        let _ = self.epoll.delete(&ipc);
        self.take_back(uid);
        self.expect_to_leave_within(uid, self.args.kill_timeout);
        self.happenings.retain(|happening| !matches!(happening, Happening::Query(asker, _) if *asker == uid));
        self.tell("disconnect", uid, json!({}));
        self.begin_to_do_without(uid);
    }

    /// True: somebody has ended.
    pub(super) fn reap_one(&mut self) -> bool {
        // While it is a zombie its number is nobody else's: what it has started and left in its group goes with it.
        if let Some(worker) =
            ended().and_then(|pid| self.roster.find(pid)).and_then(|uid| self.roster.get(uid))
        {
            worker.kill();
        }
        let Ok(Some((pid, ending, usage))) = reap() else { return false };
        let Some(uid) = self.roster.find(pid) else { return true };
        // What it said before it died counts.
        while self.receive(uid) {}
        self.disconnected(uid);
        self.tell("exit", uid, describe(ending));
        let why = in_words(ending);
        let Some(worker) = self.roster.remove(uid) else { return true };
        let number = worker.number;
        if !worker.was_expected {
            self.lives.report.deaths += 1;
        }
        self.usages[number] = sum(self.usages[number], usage);
        let row = self.scoreboard.row(number);
        row.set_usage(self.usages[number]);
        // The kernel has closed the connections of one that was killed. Where another process counts in the same row, it
        // is not known which are whose, and they stay in it until that one is gone too.
        if self.roster.iter().all(|other| other.number != number) {
            row.lose_open_connections();
        }
        match worker.trouble {
            Some(trouble) => self.last_trouble = trouble,
            None if !worker.was_expected => self.last_trouble = format!("worker {number} {why}"),
            None => {}
        }
        self.note_vacancy(number, worker.has_served);
        self.reload_without(uid, &format!("it {why}"));
        true
    }
}

fn describe(ending: Ending) -> Value {
    match ending {
        Ending::Exited(status) => json!({"status": status, "signal": null}),
        Ending::KilledBy(signal) => {
            let name = Signal::try_from(signal).map(Signal::as_str).ok();
            json!({"status": null, "signal": name})
        }
    }
}

fn in_words(ending: Ending) -> String {
    match ending {
        Ending::Exited(status) => format!("ended with status {status}"),
        Ending::KilledBy(signal) => {
            let name = Signal::try_from(signal).map_or("a signal", Signal::as_str);
            format!("was killed by {name}")
        }
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
