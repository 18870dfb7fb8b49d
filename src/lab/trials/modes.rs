//! Servers and their modes, each with what is known of it: how it accepts, and what may be found. The answers come from
//! the first lines of `bins/*.rs`, from the source and the manuals of the other projects, and from what strace(1) shows
//! of their calls; none of them comes from `lab inspect`, which is examined with this list.
//!
//! In the terms of the contract (section 6), for four workers.

use super::blind_test::Load;

/// One way to start a server.
#[derive(Debug, Clone, Copy)]
pub struct Mode {
    /// Without the address.
    pub command: &'static str,
    pub dispatch: &'static str,
    pub sharing: &'static str,
    /// How whoever accepts waits for a connection: each of them in one of these.
    pub waits_in: &'static [&'static str],
    /// Those who serve: processes.
    pub workers: usize,
    /// So many connections that stay may be open and somebody still waits for the next one.
    pub open: usize,
    /// What is to be found when few connections come and no worker is stopped.
    pub wrong: &'static [&'static str],
    /// What may be found or not, because it depends on the moment.
    pub unsure: &'static [&'static str],
}

const ACCEPT: &str = "workers-accept";
const PASSES: &str = "master-passes-descriptors";
const PROXIES: &str = "master-proxies";
const THREADS: &str = "threads";

const HERD: &[&str] = &["herd"];
const UNEVEN: &[&str] = &["uneven"];
const NOTHING: &[&str] = &[];

/// Processes that accept for themselves, or one that does everything.
const fn accepts(command: &'static str, sharing: &'static str, wait: &'static [&'static str]) -> Mode {
    let workers = if matches!(sharing.as_bytes(), b"one") { 1 } else { 4 };
    Mode { command, dispatch: ACCEPT, sharing, waits_in: wait, workers, open: 2, wrong: NOTHING, unsure: NOTHING }
}

/// Threads of one process.
const fn threads(command: &'static str, sharing: &'static str, wait: &'static [&'static str], open: usize) -> Mode {
    Mode { dispatch: THREADS, workers: 1, open, ..accepts(command, sharing, wait) }
}

/// One process accepts for others.
const fn hands_on(command: &'static str, dispatch: &'static str, wait: &'static [&'static str]) -> Mode {
    Mode { dispatch, workers: 4, ..accepts(command, "one", wait) }
}

/// Every idle worker is woken for each connection, and which of them is the first to run may favour one.
const fn herd(command: &'static str, wait: &'static [&'static str]) -> Mode {
    Mode { wrong: HERD, unsure: UNEVEN, ..accepts(command, "shared", wait) }
}

/// The order in which the workers get connections or a lock is nobody's decision, so it may favour one.
const fn ordered(command: &'static str, wait: &'static [&'static str]) -> Mode {
    Mode { unsure: UNEVEN, ..accepts(command, "shared", wait) }
}

/// While all are idle one worker gets nearly all connections.
const fn favourite(command: &'static str, wait: &'static [&'static str]) -> Mode {
    Mode { wrong: UNEVEN, ..accepts(command, "shared", wait) }
}

/// Each worker has a connection at a time, so a client that stays keeps it.
const fn one_at_a_time(mode: Mode) -> Mode {
    Mode { open: 0, ..mode }
}

/// The servers of the syllabus.
pub const OURS: [Mode; 42] = [
    one_at_a_time(accepts("sync", "one", &["accept"])),
    // The parent polls for connections and for its children's ends; each child serves one connection.
    Mode { workers: 2, ..hands_on("fork", PASSES, &["poll"]) },
    // accept(2) wakes one of the sleepers, in turn.
    Mode { open: 1, ..accepts("prefork --workers 4", "shared", &["accept"]) },
    one_at_a_time(herd("prefork-poll --workers 4", &["poll"])),
    one_at_a_time(ordered("prefork-poll --workers 4 --call epoll", &["epoll"])),
    one_at_a_time(ordered("prefork-lock --workers 4 --lock fcntl", &["lock"])),
    one_at_a_time(ordered("prefork-lock --workers 4 --lock flock", &["lock"])),
    one_at_a_time(ordered("prefork-lock --workers 4 --lock semaphore", &["lock"])),
    one_at_a_time(ordered("prefork-lock --workers 4 --lock mutex", &["lock"])),
    threads("threaded", "one", &["accept"], 2),
    threads("prethreaded --workers 4", "one", &["accept"], 1),
    threads("prethreaded --workers 4 --lock mutex", "one", &["lock"], 0),
    threads("thread-pool --workers 4", "one", &["accept"], 1),
    threads("idle-busy --workers 4", "one", &["epoll"], 2),
    threads("half-sync --workers 4", "one", &["epoll"], 2),
    threads("pipeline --workers 4", "one", &["accept"], 2),
    threads("leader-follower --workers 4", "one", &["epoll"], 2),
    accepts("select-poll --call select", "one", &["select"]),
    accepts("select-poll --call poll", "one", &["poll"]),
    accepts("event-driven", "one", &["epoll"]),
    accepts("event-loop", "one", &["epoll"]),
    herd("shared-accept --workers 4", &["epoll"]),
    herd("shared-accept --workers 4 --wait epoll-edge", &["epoll-edge"]),
    favourite("shared-accept --workers 4 --wait epoll-exclusive", &["epoll-exclusive"]),
    favourite("accept-mutex --workers 4", &["lock"]),
    accepts("reuseport --workers 4", "reuseport", &["epoll"]),
    accepts("reuseport --workers 4 --select random", "reuseport", &["epoll"]),
    hands_on("master-dispatch --workers 4", PASSES, &["epoll-edge"]),
    // Always worker 0 while it has no connection.
    Mode { wrong: UNEVEN, ..hands_on("master-dispatch --workers 4 --policy first-free", PASSES, &["epoll-edge"]) },
    // All clients have one address.
    Mode { wrong: UNEVEN, ..hands_on("master-dispatch --workers 4 --policy sticky", PASSES, &["epoll-edge"]) },
    herd("pass-listener --workers 4", &["epoll"]),
    // The master is the last of the four.
    herd("pass-listener --workers 4 --master serves", &["epoll"]),
    accepts("peers --workers 4", "reuseport", &["epoll"]),
    hands_on("proxy --workers 4", PROXIES, &["epoll"]),
    hands_on("cluster --workers 4 --schedule rr -- event-driven", PASSES, &["epoll-edge"]),
    herd("cluster --workers 4 --schedule none -- event-driven", &["epoll"]),
    ordered("uring --workers 4 --accept shared", &["io_uring"]),
    accepts("uring --workers 4 --accept reuseport", "reuseport", &["io_uring"]),
    threads("uring --workers 4 --accept handoff", "one", &["io_uring"], 2),
    accepts("coroutines", "one", &["epoll"]),
    threads("tokio --workers 4", "one", &["epoll-edge"], 2),
    threads("tokio --workers 4 --runtime per-core", "reuseport", &["epoll-edge"], 2),
];

/// Servers of other projects, with the configurations in experiments/contenders/ (nginx 1.22, HAProxy 2.6, Apache 2.4,
/// Node 20, PM2 7, gunicorn 26, uvicorn 0.54, puma 5.6).
pub const CONTENDERS: [Mode; 16] = [
    // It registers anew after every 16th accept, which puts it at the end of the queue of waiters.
    ordered("experiments/contenders/nginx shared --workers 4", &["epoll-exclusive"]),
    favourite("experiments/contenders/nginx mutex --workers 4", &["lock"]),
    accepts("experiments/contenders/nginx reuseport --workers 4", "reuseport", &["epoll"]),
    threads("experiments/contenders/haproxy --workers 4", "one", &["epoll"], 2),
    herd("experiments/contenders/apache2 event --workers 4", &["epoll"]),
    // Who was woken for nothing waits in accept(2): the socket is blocking.
    Mode {
        unsure: &["herd", "uneven"],
        ..one_at_a_time(ordered("experiments/contenders/apache2 prefork --workers 4", &["epoll", "accept"]))
    },
    accepts("experiments/contenders/node", "one", &["epoll"]),
    hands_on("node experiments/node-cluster.js --workers 4 --policy rr", PASSES, &["epoll"]),
    herd("node experiments/node-cluster.js --workers 4 --policy none", &["epoll"]),
    hands_on("experiments/contenders/pm2 --workers 4", PASSES, &["epoll"]),
    one_at_a_time(herd("experiments/contenders/gunicorn --worker-class sync --workers 4", &["select"])),
    herd("experiments/contenders/gunicorn --worker-class gthread --threads 4 --workers 4", &["epoll"]),
    accepts(
        "experiments/contenders/gunicorn --worker-class gthread --threads 4 --reuse-port --workers 4",
        "reuseport",
        &["epoll"],
    ),
    herd("experiments/contenders/gunicorn --worker-class gevent --workers 4", &["epoll"]),
    herd("experiments/contenders/uvicorn --workers 4", &["epoll"]),
    herd("experiments/contenders/puma --workers 4", &["select"]),
];

/// What must be found, and what may be found beside it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Expected {
    pub surely: Vec<&'static str>,
    pub perhaps: Vec<&'static str>,
}

impl Mode {
    /// The program, without its folder.
    pub fn program(&self) -> &'static str {
        let first = self.command.split(' ').next().unwrap_or_default();
        first.rsplit('/').next().unwrap_or_default()
    }

    /// A script of experiments/contenders/, which prints no ready line.
    pub fn is_contender(&self) -> bool {
        self.command.starts_with("experiments/")
    }

    /// Whether the process that was started serves by itself, so that it is the worker.
    pub fn is_one_process(&self) -> bool {
        self.workers == 1 && self.program() != "haproxy"
    }

    pub fn expected(&self, load: Load, is_stopped: bool) -> Expected {
        let mut expected = Expected { perhaps: self.unsure.to_vec(), ..Expected::default() };
        // Under heavy load nobody sleeps, so nobody is woken for nothing, and all are needed. Among fewer workers less
        // is wrong.
        match load {
            Load::Light if !is_stopped => expected.surely.extend(self.wrong),
            _ => expected.perhaps.extend(self.wrong),
        }
        let is_alone = self.dispatch == ACCEPT && self.sharing == "one";
        if load == Load::Heavy {
            // Whether the one or the others are at their limit first depends on the machine.
            expected.perhaps.extend((!is_alone && self.dispatch != ACCEPT).then_some("one-acceptor"));
            expected.perhaps.extend((self.workers > 1 && self.open > 1).then_some("more-workers-than-cpus"));
        }
        if is_stopped {
            expected.surely.push("hung-worker");
            // The hash goes on to choose it, unless all sockets belong to the one process that is stopped.
            expected.surely.extend((self.sharing == "reuseport" && self.workers > 1).then_some("blind-selector"));
        }
        expected
    }
}

impl Expected {
    /// Nothing that must be there is missing, and nothing else was found.
    pub fn is_met_by(&self, found: &[&str]) -> bool {
        let is_known = |id: &&str| self.surely.contains(id) || self.perhaps.contains(id);
        self.surely.iter().all(|id| found.contains(id)) && found.iter().all(|id| is_known(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(command: &str) -> &'static Mode {
        OURS.iter().find(|mode| mode.command == command).expect("it is in the list")
    }

    #[test]
    fn there_are_more_modes_than_were_asked_for_and_none_twice() {
        let mut commands: Vec<&str> = OURS.iter().chain(&CONTENDERS).map(|mode| mode.command).collect();
        commands.sort_unstable();
        commands.dedup();
        assert_eq!(commands.len(), OURS.len() + CONTENDERS.len());
        assert!(OURS.len() >= 35 && CONTENDERS.len() >= 12);
    }

    #[test]
    fn a_stopped_worker_and_the_hash_that_goes_on_to_choose_it_must_be_found() {
        let expected = mode("reuseport --workers 4").expected(Load::Light, true);
        assert_eq!(expected.surely, ["hung-worker", "blind-selector"]);
        assert!(!expected.is_met_by(&["hung-worker"]) && expected.is_met_by(&["blind-selector", "hung-worker"]));
        assert_eq!(mode("tokio --workers 4 --runtime per-core").expected(Load::Light, true).surely, ["hung-worker"]);
    }

    #[test]
    fn a_herd_must_be_found_while_few_connections_come_and_may_be_under_heavy_load() {
        let herd = mode("shared-accept --workers 4");
        assert_eq!(herd.expected(Load::Light, false).surely, ["herd"]);
        assert!(!herd.expected(Load::Light, false).is_met_by(&[]));
        assert!(herd.expected(Load::Heavy, false).is_met_by(&[]) && herd.expected(Load::Heavy, false).is_met_by(HERD));
        assert!(!mode("event-driven").expected(Load::Heavy, false).is_met_by(HERD));
    }
}
