//! Each worker: how it waits, its share, what it costs, and whether it hangs.

use serde::Serialize;

use super::advice::kind_of;
use super::roles::{Roles, Way};
use super::summary::{Summary, Wait, is_helper};
use super::{Basis, ENOUGH, ListenerState};
use crate::evenness;
use crate::lab::inspect::look::{Call, LONG_NS, Look, Process, Recording, Task};
use crate::lab::server_kind::Kind;
use crate::report::Evenness;

/// So many connections seen for each worker are enough to speak of its share, if they are half of all: of short ones a
/// look sees more at a worker that needs longer for each.
const SEEN_PER_WORKER: u64 = 5;
/// Below this, CPU time says nothing about connections.
const CPU_ENOUGH_NS: u64 = 5_000_000;
/// A worker that uses less than this share of a CPU, and has no connection, is idle.
const IDLE_SHARE: f64 = 0.002;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Worker {
    pub pid: i32,
    pub waits_in: Wait,
    pub shares_epoll: bool,
    pub threads: usize,
    pub accepted_share: Option<f64>,
    pub connections: u64,
    pub switches_per_connection: Option<f64>,
    pub cpu_share: f64,
    pub waited_share: f64,
    pub switches_per_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub woken: Option<u64>,
    pub state: State,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hangs_in: Option<&'static str>,
    #[serde(skip)]
    pub seen: u64,
    #[serde(skip)]
    pub cpu_ns: u64,
    #[serde(skip)]
    pub voluntary: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Serving,
    Idle,
    Hung,
}

impl Recording {
    /// The looks of the last second, from the last one that is a second old; all, where none is.
    pub fn recent(&self) -> &[Look] {
        let since = self.last().at_ns.saturating_sub(LONG_NS);
        let from = self.looks.iter().rposition(|look| look.at_ns <= since).unwrap_or(0);
        &self.looks[from..]
    }
}

impl Process {
    pub fn is_stopped(&self) -> bool {
        matches!(self.state, 'T' | 't')
    }
}

impl Worker {
    pub fn state_name(&self, is_master: bool) -> &'static str {
        match self.state {
            State::Hung => "hung",
            _ if is_master => "master",
            State::Idle => "idle",
            State::Serving => "serving",
        }
    }

    pub fn of(recording: &Recording, summary: &Summary, roles: &Roles, listeners: &[ListenerState]) -> Worker {
        let (pid, seconds) = (summary.pid(), recording.seconds().max(1e-3));
        let own = listeners.iter().flat_map(|listener| &listener.queues).filter(|queue| queue.pids == [pid]);
        let own: Vec<_> = own.collect();
        let least_queued = own.iter().map(|queue| queue.least_queued).max().unwrap_or(0);
        let hangs_in = hangs_in(recording, summary, least_queued);
        let cpu_share = summary.cpu_ns as f64 / 1e9 / seconds;
        let accepted = summary.accepted();
        // What a ring accepts is no system call of its own.
        let is_exact =
            roles.way == Way::OwnAccept && roles.acceptors.get(&pid).is_some_and(|&way| way != Wait::IoUring);
        Worker {
            pid,
            waits_in: roles.acceptors.get(&pid).copied().unwrap_or_else(|| sleeps_in(summary)),
            shares_epoll: summary.shares_epoll,
            threads: summary.threads.len(),
            accepted_share: None,
            connections: summary.last.open,
            switches_per_connection: None,
            cpu_share,
            waited_share: summary.wait_ns as f64 / 1e9 / seconds,
            switches_per_s: summary.voluntary as f64 / seconds,
            queued: (!own.is_empty()).then(|| own.iter().map(|queue| queue.queued).sum()),
            state: match hangs_in {
                Some(_) => State::Hung,
                None if summary.seen() == 0 && cpu_share < IDLE_SHARE => State::Idle,
                None => State::Serving,
            },
            hangs_in,
            accepted,
            woken: summary.last.woken.zip(summary.first.woken).map(|(last, first)| last.saturating_sub(first)),
            seen: accepted.filter(|_| is_exact).unwrap_or(summary.seen()),
            cpu_ns: summary.cpu_ns,
            voluntary: summary.voluntary,
        }
    }
}

/// The call of a worker that does not wait for the listener: for connections that are passed to it, say.
fn sleeps_in(summary: &Summary) -> Wait {
    match summary.sleeps_in {
        Some(Call::Accept) => Wait::Accept,
        Some(Call::Poll) => Wait::Poll,
        Some(Call::Select) => Wait::Select,
        Some(Call::Epoll) => Wait::Epoll,
        Some(Call::IoUring) => Wait::IoUring,
        Some(Call::Lock) => Wait::Lock,
        _ => Wait::Other,
    }
}

/// Why a worker counts as hung: it is stopped, or for a second it has not run, or has run in circles, while connections
/// wait for it. `least_queued` is the fewest that waited in a socket of its own.
fn hangs_in(recording: &Recording, summary: &Summary, least_queued: u32) -> Option<&'static str> {
    let (looks, pid) = (recording.recent(), summary.pid());
    let of = |look: &'_ Look| look.processes.iter().position(|process| process.pid == pid);
    let (first, last) = (looks.first()?, looks.last()?);
    let (first_seen, last_seen) = (&first.processes[of(first)?], &last.processes[of(last)?]);
    if last_seen.is_stopped() {
        return Some("stopped by a signal");
    }
    if last.at_ns - first.at_ns < LONG_NS || first_seen.started != last_seen.started {
        return None;
    }
    let kind = kind_of(recording, pid);
    let seen: Vec<&Process> = looks.iter().filter_map(|look| Some(&look.processes[of(look)?])).collect();
    // All threads of Node but the main one help it, whatever their names are.
    let serves = |task: &Task| task.tid == pid || (kind != Kind::Node && !is_helper(task));
    let accepts = |task: &Task| summary.accepts(task);
    let answers = |task: &Task| serves(task) && !accepts(task);
    let are_all = |chosen: &dyn Fn(&Task) -> bool, is: &dyn Fn(Call) -> bool| {
        let tasks = seen.iter().flat_map(|process| &process.tasks);
        tasks.filter(|task| chosen(task)).all(|task| is(task.call))
    };
    // A thread that has begun or ended meanwhile has done something.
    let has_grown = |chosen: &dyn Fn(&Task) -> bool, of: fn(&Task) -> u64| {
        let at = |process: &Process| -> Vec<(i32, u64)> {
            process.tasks.iter().filter(|task| chosen(task)).map(|task| (task.tid, of(task))).collect()
        };
        at(first_seen) != at(last_seen)
    };
    // A client that does not read its answers has unread requests, too, and an event loop is right to wait. So is a
    // worker that serves one connection at a time and waits for its client.
    let waits = |call| matches!(call, Call::Epoll | Call::Poll | Call::Select | Call::IoUring);
    let waits_for_client = seen.iter().any(|process| process.tasks.iter().any(|task| task.is_at_socket));
    let has_unread = last_seen.unread > 0;
    let is_stuck = least_queued > 0 || (has_unread && are_all(&serves, &|call| !waits(call)));
    if !has_grown(&serves, |task| task.cpu_ns) && is_stuck && !waits_for_client {
        return Some(match last_seen.state {
            'D' => "in the kernel, where no signal reaches it (state D)",
            _ => "asleep in another call than that for connections",
        });
    }
    let moves = last_seen.new > first_seen.new || last_seen.open < first_seen.open;
    // Their main thread passes what has come to one of the others, which waits for the client or the database in
    // another call than this. Where it runs coroutines, it serves by itself.
    let is_word = |word: &String| word.contains("gevent") || word.contains("eventlet");
    let has_coroutines = || recording.commands.values().flatten().any(is_word);
    let is_pool = matches!(kind, Kind::Gunicorn | Kind::Puma) && last_seen.tasks.iter().any(answers);
    let sleeps_at_locks = || are_all(&answers, &|call| call == Call::Futex) && !has_grown(&answers, |t| t.voluntary);
    if is_pool && has_unread && !moves && !has_coroutines() && sleeps_at_locks() {
        return Some("all threads that answer sleep at locks");
    }
    let runs = are_all(&accepts, &|call| call == Call::Running) && has_grown(&accepts, |task| task.cpu_ns);
    let is_in_circles = runs && !has_grown(&accepts, |task| task.voluntary) && !moves;
    (is_in_circles && (has_unread || least_queued > 0)).then_some("running, and in no system call")
}

/// Gives each worker its share: by the connections seen at it, or, where too few were seen, by its CPU time.
pub fn share_out(workers: &mut [Worker], new_connections: u64) -> (Option<Evenness>, Option<Basis>) {
    let count = workers.len() as u64;
    let seen: u64 = workers.iter().map(|worker| worker.seen).sum();
    let cpu_ns: u64 = workers.iter().map(|worker| worker.cpu_ns).sum();
    let (basis, shares): (_, Vec<f64>) = if seen >= (SEEN_PER_WORKER * count).max(ENOUGH) && 2 * seen >= new_connections
    {
        (Basis::Connections, workers.iter().map(|worker| worker.seen as f64 / seen as f64).collect())
    } else if new_connections >= ENOUGH && cpu_ns >= CPU_ENOUGH_NS {
        (Basis::Cpu, workers.iter().map(|worker| worker.cpu_ns as f64 / cpu_ns as f64).collect())
    } else {
        return (None, None);
    };
    for (worker, &share) in workers.iter_mut().zip(&shares) {
        worker.accepted_share = Some(share);
        let accepted = share * new_connections as f64;
        worker.switches_per_connection = (accepted >= 1.0).then(|| worker.voluntary as f64 / accepted);
    }
    // A worker that hangs is no surprise.
    let healthy = workers.iter().zip(&shares).filter(|(worker, _)| worker.state != State::Hung);
    let counts: Vec<u64> = match basis {
        Basis::Connections => healthy.map(|(worker, _)| worker.seen).collect(),
        Basis::Cpu => healthy.map(|(_, share)| (share * new_connections as f64).round() as u64).collect(),
    };
    let can_compare = counts.len() > 1 && counts.iter().any(|&count| count > 0);
    (can_compare.then(|| evenness::measure(&counts)), can_compare.then_some(basis))
}
