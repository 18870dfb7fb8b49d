//! What is wrong, each with the numbers that say so, the lesson that explains it, and what to do about it.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde::Serialize;

use super::roles::{Dispatch, Roles, Way};
use super::summary::{Summary, Wait};
use super::{
    Basis, Diagnosis, ENOUGH, ListenerState, Queue, Sharing, State, Totals, Worker, advice, busiest, connections,
};
use crate::lab::inspect::look::{Call, Recording};
use crate::lab::server_kind::Kind;
use crate::lab::watch::is_herd;
use crate::stats::ordered_shares;
use crate::terminal::printable;
use crate::units::number;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    pub id: &'static str,
    pub says: String,
    pub numbers: BTreeMap<&'static str, f64>,
    pub lesson: &'static str,
    pub advice: String,
}

/// All there are, as `--fail-if` takes them.
pub const IDS: [&str; 9] = [
    "hung-worker",
    "queue-full",
    "blind-selector",
    "nobody-accepts",
    "herd",
    "uneven",
    "one-acceptor",
    "no-reuseport",
    "more-workers-than-cpus",
];

const HERD: &str = "06-the-thundering-herd";
const WHO_GETS_IT: &str = "07-who-gets-the-connection-all-strategies";
const ONE_QUEUE_OR_MANY: &str = "08-one-queue-or-many";
const HANGS: &str = "09-a-worker-that-hangs";
const LOST: &str = "10-lost-in-the-queue";
const STAYING: &str = "16-connections-that-stay";
const ONE_THREAD: &str = "18-one-thread-is-not-enough";
const ONE_ACCEPTOR: &str = "25-one-acceptor-or-many";

/// Chance makes this seldom enough.
const UNLIKELY: f64 = 0.01;
/// The busiest worker has at least so many times the mean; CPU time is a worse measure than connections.
const NOTABLE: f64 = 1.3;
const NOTABLE_BY_CPU: f64 = 1.6;
/// A worker that is woken for each connection, and does little besides, switches so often for each of all.
const AS_CONNECTIONS: RangeInclusive<f64> = 0.25..=2.0;
/// A thread with this share of a CPU has none left.
const CEILING: f64 = 0.85;

struct Case<'a> {
    recording: &'a Recording,
    summaries: &'a BTreeMap<i32, Summary<'a>>,
    roles: &'a Roles,
    found: &'a Diagnosis,
    kind: Kind,
}

/// In the order of [`IDS`].
pub fn findings(
    recording: &Recording,
    summaries: &BTreeMap<i32, Summary>,
    roles: &Roles,
    found: &Diagnosis,
) -> Vec<Finding> {
    let case = Case { recording, summaries, roles, found, kind: advice::kind(recording) };
    let mut findings = case.hung();
    findings.extend(case.found.listeners.iter().filter_map(|listener| case.queue_full(listener)));
    findings.extend(case.found.listeners.iter().filter_map(|listener| case.blind_selector(listener)));
    let of_connections = [case.nobody_accepts(), case.herd(), case.uneven(), case.one_acceptor()];
    findings.extend(of_connections.into_iter().flatten());
    findings.extend(case.no_reuseport().into_iter().chain(case.more_workers_than_cpus()));
    findings
}

fn finding(id: &'static str, lesson: &'static str, says: String, advice: &str) -> Finding {
    Finding { id, says, numbers: BTreeMap::new(), lesson, advice: advice.to_string() }
}

impl Finding {
    fn with(mut self, numbers: &[(&'static str, f64)]) -> Finding {
        self.numbers.extend(numbers.iter().copied());
        self
    }
}

impl Case<'_> {
    fn advice(&self, on: advice::Advice) -> &'static str {
        advice::of(on, self.kind)
    }

    fn hung(&self) -> Vec<Finding> {
        let all = self.found.workers.iter().chain(&self.found.master);
        let hung = all.filter(|worker| worker.state == State::Hung);
        let one = hung.map(|worker| {
            let pid = worker.pid;
            let process = &self.summaries[&pid].last;
            let why = worker.hangs_in.unwrap_or_default();
            let waits = match (worker.queued.unwrap_or(0), process.open) {
                (0, 0) => "no connection is seen that waits for it".to_string(),
                (queued, 0) => format!("in its own queue wait {}", connections(queued.into())),
                (0, open) => format!("it holds {}", connections(open)),
                (queued, open) => format!("it holds {}, and {queued} more in its own queue", connections(open)),
            };
            let signal =
                if why.starts_with("stopped") { format!("; `kill -CONT {pid}` lets it go on") } else { String::new() };
            // A main thread that is well gives its supervisor signs of life.
            let kind = if why.starts_with("all threads") { Kind::Other } else { self.kind };
            let advice = format!("{}{signal}", advice::of(advice::HUNG, kind));
            finding("hung-worker", HANGS, format!("pid {pid} hangs: {why}; {waits}"), &advice).with(&[
                ("pid", f64::from(pid)),
                ("queued", f64::from(worker.queued.unwrap_or(0))),
                ("connections", process.open as f64),
                ("unread_connections", process.unread as f64),
            ])
        });
        one.collect()
    }

    fn queue_full(&self, listener: &ListenerState) -> Option<Finding> {
        let (most, backlog, drops) = (listener.most_queued, listener.backlog, listener.drops);
        let (first, last) = (self.recording.first(), self.recording.last());
        // A socket counts as a drop whatever it throws away, with TCP_DEFER_ACCEPT an ACK of every connection; a full
        // queue also counts in ListenOverflows.
        let overflows = last.listen_overflows.saturating_sub(first.listen_overflows);
        let has_dropped = drops > 0 && overflows > 0 && most >= backlog.div_ceil(2);
        // The kernel takes one more than the backlog (`sk_acceptq_is_full` in include/net/sock.h).
        if most <= backlog && !has_dropped {
            return None;
        }
        let somaxconn = self.recording.machine.somaxconn;
        let limit = match u64::from(backlog) >= somaxconn {
            true => format!("; net.core.somaxconn is {somaxconn}, so it must rise first"),
            false => String::new(),
        };
        let dropped = if has_dropped { format!(", and {drops} were dropped meanwhile") } else { String::new() };
        let address = &listener.address;
        let says = format!("the accept queue of {address} is full: {most} waited, its backlog is {backlog}{dropped}");
        let advice = format!("{}{limit}", self.advice(advice::QUEUE));
        Some(finding("queue-full", LOST, says, &advice).with(&[
            ("most_queued", f64::from(most)),
            ("backlog", f64::from(backlog)),
            ("drops", f64::from(drops)),
            ("somaxconn", somaxconn as f64),
        ]))
    }

    /// The hash goes on to choose a socket whose owner does not accept.
    fn blind_selector(&self, listener: &ListenerState) -> Option<Finding> {
        let queues = &listener.queues;
        let is_hung = |pid: &i32| self.found.workers.iter().any(|w| w.pid == *pid && w.state == State::Hung);
        // An owner that may not be looked into accepts, as far as we know.
        let is_seen = |queue: &Queue| self.recording.last().processes.iter().any(|p| p.holds.contains(&queue.inode));
        let accepts = |queue: &&Queue| queue.pids.iter().any(|pid| !is_hung(pid)) || !is_seen(queue);
        let is_empty = |queue: &Queue| queue.least_queued == 0;
        let has_time = self.recording.recent().len() > 1 && self.recording.seconds() >= 1.0;
        // What the hash has given to a worker that hangs waits from its first moment. One that is busy has connections
        // in its queue at every look, but others each time.
        let waits_long = self.found.totals.unaccepted_long > 0;
        let blocked = queues.iter().filter(|queue| match accepts(queue) {
            false => queue.queued > 0,
            true => waits_long && queue.least_queued > 0 && queues.iter().any(is_empty),
        });
        let blocked: Vec<_> = blocked.collect();
        let is_group = listener.sharing == Sharing::Reuseport && has_time;
        if !is_group || blocked.is_empty() || blocked.len() == queues.len() || !queues.iter().any(|q| accepts(&q)) {
            return None;
        }
        let (sockets, waiting) = (queues.len(), blocked.iter().map(|queue| queue.queued).sum::<u32>());
        let whose = match blocked[0].pids.first() {
            Some(pid) => format!("of pid {pid}"),
            None if is_seen(blocked[0]) => "that nobody accepts from".to_string(),
            None => "whose owner cannot be seen".to_string(),
        };
        let says = format!(
            "the kernel chooses one of {sockets} sockets by a hash and does not look at their queues: \
             in that {whose} wait {}, while others are empty",
            connections(waiting.into())
        );
        let numbers = [("sockets", sockets as f64), ("blocked", blocked.len() as f64), ("queued", f64::from(waiting))];
        Some(finding("blind-selector", HANGS, says, self.advice(advice::BLIND)).with(&numbers))
    }

    fn nobody_accepts(&self) -> Option<Finding> {
        let long = self.found.totals.unaccepted_long;
        let is_explained = self.found.workers.iter().chain(&self.found.master).any(|w| w.state == State::Hung);
        if long == 0 || is_explained {
            return None;
        }
        let mut calls: BTreeMap<Call, usize> = BTreeMap::new();
        for pid in self.roles.acceptors.keys() {
            let tasks = self.recording.process(*pid).flat_map(|(_, process)| &process.tasks);
            for task in tasks.filter(|task| self.summaries[pid].accepts(task)) {
                *calls.entry(task.call).or_default() += 1;
            }
        }
        let most = calls.iter().max_by_key(|(_, count)| **count).map(|(call, _)| *call);
        let does = match most {
            None => "no process that accepts was seen",
            Some(Call::Transfer) => "the workers wait for bytes of the clients they have",
            Some(Call::Running) => "the workers have no CPU time left for them",
            Some(Call::Sleep | Call::Futex | Call::Lock) => "the workers sleep in other calls",
            Some(_) => "the workers wait for other events",
        };
        let says = format!("nobody has accepted {} for a second or longer: {does}", connections(long));
        let advice = self.advice(if most == Some(Call::Running) { advice::BUSY } else { advice::SILENT });
        Some(finding("nobody-accepts", ONE_THREAD, says, advice).with(&[("unaccepted", long as f64)]))
    }

    fn herd(&self) -> Option<Finding> {
        let Totals { new_connections, more_requests, .. } = self.found.totals;
        let alone = |pid: &&i32| {
            let summary = &self.summaries[pid];
            self.roles.acceptors[pid].wakes_all() && !summary.shares_epoll
        };
        let mut sleepers: Vec<&Summary> =
            self.roles.acceptors.keys().filter(alone).map(|pid| &self.summaries[pid]).collect();
        let is_shared = self.found.listeners.iter().any(|listener| listener.sharing == Sharing::Shared);
        let sum = |of: &[&Summary]| of.iter().map(|summary| summary.voluntary_of_acceptors).sum::<u64>() as f64;
        let (count, asked) = (new_connections as f64, (new_connections + more_requests?) as f64);
        // Those who accept least are woken for each connection, too; what they do besides is no herd.
        sleepers.sort_by_key(|summary| summary.accepted().unwrap_or(summary.voluntary_of_acceptors));
        let idle = &sleepers[..sleepers.len().div_ceil(2)];
        let by_connections = sum(idle) / (idle.len().max(1) as f64 * count);
        let switches = sum(&sleepers);
        if !is_shared
            || new_connections < ENOUGH
            || !AS_CONNECTIONS.contains(&by_connections)
            || !is_herd(switches, count, asked, sleepers.len())
        {
            return None;
        }
        let (per, workers) = (switches / asked, sleepers.len());
        let says = format!(
            "each connection wakes most of the {workers} workers, and one gets it: {} switches per connection or request, \
             where 1 would do",
            number(per)
        );
        let numbers = [
            ("switches_per_connection", per),
            ("workers", workers as f64),
            ("idle_switches_per_connection", by_connections),
        ];
        Some(finding("herd", HERD, says, self.advice(advice::HERD)).with(&numbers))
    }

    fn uneven(&self) -> Option<Finding> {
        let evenness = self.found.evenness.as_ref()?;
        let by_cpu = self.found.evenness_of == Some(Basis::Cpu);
        let notable = if by_cpu { self.notable_by_cpu() } else { NOTABLE };
        let is_chance = evenness.dispersion <= 1.0 || evenness.p_value >= UNLIKELY;
        let expected = evenness.expected_max_over_mean_if_random;
        if is_chance || evenness.max_over_mean < notable.max(expected) || self.roles.way == Way::Children {
            return None;
        }
        let share_of = |worker: &Worker| worker.accepted_share.unwrap_or(0.0);
        let healthy = self.found.workers.iter().filter(|worker| worker.state != State::Hung);
        let busiest = healthy.max_by(|a, b| share_of(a).total_cmp(&share_of(b)))?;
        let share = 100.0 * share_of(busiest);
        let measured = if by_cpu { "of the CPU time" } else { "of the connections that were seen" };
        let (most, dispersion) = (evenness.max_over_mean, evenness.dispersion);
        let (cause, lesson) = self.cause_of_unevenness(most);
        let mut numbers = vec![("max_over_mean", most), ("offered_load", self.offered_load())];
        let mut by_chance = String::new();
        if !by_cpu {
            by_chance = format!(" (chance would give {}): D = {}", number(expected), number(dispersion));
            numbers.extend([("dispersion", dispersion), ("p_value", evenness.p_value)]);
            numbers.push(("expected_max_over_mean_if_random", expected));
        }
        let (pid, share, most) = (busiest.pid, number(share), number(most));
        let says = format!("pid {pid} has {share} % {measured}, {most} times the mean{by_chance}; {cause}");
        let is_passed = self.found.dispatch == Dispatch::MasterPassesDescriptors;
        let advice = self.advice(if is_passed { advice::PASSED } else { advice::UNEVEN });
        Some(finding("uneven", lesson, says, advice).with(&numbers))
    }

    /// How many times the mean of the CPU time is notable. In a herd as many as of connections: what is woken in vain uses
    /// CPU time, too, which makes shares look evener than they are. Other workers that wait for a CPU longer than they run
    /// find several connections at a time, and these cost less each: then only one that is half way to having all counts.
    fn notable_by_cpu(&self) -> f64 {
        let sum = |of: fn(&Worker) -> f64| self.found.workers.iter().map(of).sum::<f64>();
        let is_crowded = sum(|worker| worker.waited_share) > sum(|worker| worker.cpu_share);
        match self.herd() {
            Some(_) => NOTABLE,
            None if is_crowded => (self.found.workers.len() as f64 + 1.0) / 2.0,
            None => NOTABLE_BY_CPU,
        }
    }

    /// In Erlangs: how many workers were busy at a time.
    fn offered_load(&self) -> f64 {
        self.found.workers.iter().map(|worker| worker.cpu_share).sum()
    }

    fn cause_of_unevenness(&self, max_over_mean: f64) -> (String, &'static str) {
        let waits: Vec<Wait> = self.roles.acceptors.values().copied().collect();
        let all = |wait| !waits.is_empty() && waits.iter().all(|other| *other == wait);
        let (load, count) = (self.offered_load(), self.found.workers.len());
        if self.found.dispatch == Dispatch::MasterPassesDescriptors || self.found.dispatch == Dispatch::MasterProxies {
            return ("the master chooses so".to_string(), WHO_GETS_IT);
        }
        if self.found.listeners.iter().all(|listener| listener.sharing == Sharing::Reuseport) {
            return ("the hash of few clients, or connections that stay".to_string(), STAYING);
        }
        if all(Wait::EpollExclusive) {
            let expected = ordered_shares(count, load).first().copied().unwrap_or(0.0) * count as f64;
            let explains = expected / max_over_mean > 0.75 && expected / max_over_mean < 1.33;
            let verdict = if explains { "which explains it" } else { "which does not explain all of it" };
            let says = format!(
                "EPOLLEXCLUSIVE wakes the first registered worker that sleeps: with {} of {count} workers busy it would \
                 have {} times the mean, {verdict}",
                number(load),
                number(expected)
            );
            return (says, WHO_GETS_IT);
        }
        let why = match waits.iter().any(|wait| wait.wakes_all()) {
            _ if all(Wait::Lock) => "the last holder of the lock often gets it again",
            true => "all are woken, and the first to run takes the connection",
            false => "the order in which the workers wait",
        };
        (why.to_string(), WHO_GETS_IT)
    }

    fn one_acceptor(&self) -> Option<Finding> {
        let is_one = !matches!(self.found.dispatch, Dispatch::WorkersAccept | Dispatch::Unknown);
        let pid = self.roles.acceptors.keys().next().filter(|_| is_one && self.roles.acceptors.len() == 1)?;
        let summary = &self.summaries[pid];
        let seconds = self.recording.seconds().max(1e-3);
        let share = |ns: u64| ns as f64 / 1e9 / seconds;
        let (task, cpu_ns) = busiest(summary)?;
        let is_acceptor = summary.acceptors.is_empty() || summary.acceptors.contains(&task.tid) || task.tid == *pid;
        let workers = self.found.workers.iter().filter(|worker| worker.pid != *pid);
        let others: f64 = match self.found.dispatch {
            Dispatch::Threads => share(summary.cpu_ns_of_others()) / (summary.threads.len().max(2) - 1) as f64,
            _ => workers.map(|worker| worker.cpu_share).sum::<f64>() / self.found.workers.len().max(1) as f64,
        };
        if self.roles.way == Way::ThreadsAccept || !is_acceptor || share(cpu_ns) < CEILING || others > 0.7 * CEILING {
            return None;
        }
        let says = format!(
            "one thread accepts for all and uses {} % of a CPU, its workers {} % each: the server takes no more \
             connections than that thread",
            number(100.0 * share(cpu_ns)),
            number(100.0 * others)
        );
        let numbers = [("acceptor_cpu_share", share(cpu_ns)), ("worker_cpu_share", others)];
        Some(finding("one-acceptor", ONE_ACCEPTOR, says, self.advice(advice::ACCEPTORS)).with(&numbers))
    }

    fn no_reuseport(&self) -> Option<Finding> {
        // `--reuse-port`, `reuse_port=True`, `reuseport`; but no path, and no refusal, be it the word behind it.
        let is_asked = |word: &str, next: &str| {
            let word = word.to_lowercase().replace(['-', '_'], "");
            let Some((before, after)) = word.split_once("reuse") else { return false };
            let Some(value) = after.strip_prefix("port") else { return false };
            let value = if value.is_empty() { next } else { value.trim_start_matches([' ', '=', ':']) };
            let is_refused = ["false", "off", "no", "0"].contains(&&*value.to_lowercase());
            !is_refused && !before.ends_with("no") && !word.contains('/')
        };
        let (commands, none) = (self.recording.commands.values(), String::new());
        let mut words = commands.flat_map(|words| words.iter().zip(words.iter().skip(1).chain([&none])).skip(1));
        let (asked, _) = words.find(|(word, next)| is_asked(word, next))?;
        let shared = self.found.listeners.iter().find(|listener| listener.sharing == Sharing::Shared)?;
        let workers = shared.queues[0].pids.len();
        let says =
            format!("{} is asked for, but {workers} workers share one socket of {}", printable(asked), shared.address);
        let numbers = [("sockets", 1.0), ("workers", workers as f64)];
        Some(finding("no-reuseport", ONE_QUEUE_OR_MANY, says, self.advice(advice::REUSEPORT)).with(&numbers))
    }

    fn more_workers_than_cpus(&self) -> Option<Finding> {
        let is_loop = |wait: &Wait| wait.is_epoll() || *wait == Wait::IoUring;
        let (workers, cpus) = (self.found.workers.len(), self.recording.machine.cpus);
        let sum = |of: fn(&Worker) -> f64| self.found.workers.iter().map(of).sum::<f64>();
        let (used, waited) = (sum(|worker| worker.cpu_share), sum(|worker| worker.waited_share));
        let are_loops = self.found.workers.iter().all(|worker| is_loop(&worker.waits_in));
        // A part of a CPU is used by an event loop, too.
        if !are_loops || workers as f64 <= cpus.ceil() || used < CEILING * cpus || waited < used {
            return None;
        }
        let says = format!(
            "{workers} event loops share {cpus} CPUs: together they ran {} % of the time and waited {} % of it for a CPU",
            number(100.0 * used),
            number(100.0 * waited)
        );
        let numbers = [("workers", workers as f64), ("cpus", cpus), ("cpu_share", used), ("waited_share", waited)];
        Some(finding("more-workers-than-cpus", HERD, says, self.advice(advice::LOOPS)).with(&numbers))
    }
}
