//! The locks around accept: one worker at a time waits for the socket, and none of them is needed to go on.

use std::fs;
use std::process::Command;
use std::time::Duration;

use acceptlab::lab::check::client::{ANSWER_TIMEOUT, Client, GET, served_within};
use acceptlab::lab::check::server::Server;
use acceptlab::lab::observe::processes::{Process, poll_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::endings::ends_under_load;
use crate::support::{FOREVER, answer, connect, ends_at_once, held, kind, load, start, start_after};

/// Four kinds of lock for which a worker of `prefork-lock` sleeps, and the one that `accept-mutex` only tries.
const LOCKS: [(&str, &[&str]); 5] = [
    ("prefork-lock", &["--lock", "fcntl"]),
    ("prefork-lock", &["--lock", "flock"]),
    ("prefork-lock", &["--lock", "semaphore"]),
    ("prefork-lock", &["--lock", "mutex"]),
    ("accept-mutex", &[]),
];

fn start_locked((name, flags): (&str, &[&str]), workers: &str) -> Server {
    start(name, &[&["--workers", workers], flags].concat())
}

fn workers(server: &Server) -> Vec<Process> {
    server.processes().split_off(1)
}

/// It sleeps in accept, or watches the listener beside the descriptor that tells it to stop (proc(5)).
fn waits_for_the_listener(worker: &Process) -> bool {
    let proc = format!("/proc/{}", worker.pid);
    let accept = libc::SYS_accept4.to_string();
    let call = fs::read_to_string(format!("{proc}/syscall")).unwrap_or_default();
    let infos = fs::read_dir(format!("{proc}/fdinfo")).into_iter().flatten().flatten();
    let watched = infos.map(|info| fs::read_to_string(info.path()).unwrap_or_default().matches("tfd:").count());
    call.split(' ').next() == Some(&accept) || watched.max() == Some(2)
}

/// The one worker that waits for the listener, as soon as there is exactly one and the others do not run.
fn holder(server: &Server) -> Process {
    let holder = poll_until(ANSWER_TIMEOUT, || {
        let holders: Vec<Process> = workers(server).into_iter().filter(waits_for_the_listener).collect();
        <[Process; 1]>::try_from(holders).ok().map(|[holder]| holder)
    });
    holder.unwrap_or_else(|| panic!("not one of {:?} alone waits for the listener", workers(server)))
}

fn signal(process: &Process, signal: Signal) {
    kill(Pid::from_raw(process.pid), signal).expect("it is alive and ours");
}

#[test]
fn every_lock_serves_every_connection_and_both_sides_count_the_same() {
    for lock in LOCKS {
        let mut server = start_locked(lock, "4");
        let flags = ["--connections", "16", "--requests-per-connection", "1", "--requests", "2000"];
        let load = load(server.addr, &flags);
        assert_eq!(load.errors.total(), 0, "{lock:?}: {:?}", load.errors);
        let report = held(server.stop());
        let accepted: u64 = report.workers.iter().map(|worker| worker.accepted).sum();
        let requests: u64 = report.workers.iter().map(|worker| worker.requests).sum();
        assert_eq!((accepted, requests, load.requests), (2000, 2000, 2000), "{lock:?}");
        // A worker that the listener wakes has the lock, so no other can have been faster.
        for worker in &report.workers {
            assert_eq!((worker.wakeups, worker.empty_wakeups), (worker.accepted, 0), "{lock:?}: {worker:?}");
        }
    }
}

/// Without a lock all eight would.
#[test]
fn of_idle_workers_exactly_one_waits_for_the_listener() {
    for lock in LOCKS {
        let mut server = start_locked(lock, "8");
        for _ in 0..20 {
            holder(&server);
            held(served_within(server.addr, FOREVER));
        }
        held(server.stop());
    }
    let mut server = start("prefork", &["--workers", "8"]);
    let all = poll_until(ANSWER_TIMEOUT, || workers(&server).iter().all(waits_for_the_listener).then_some(()));
    assert!(all.is_some(), "without a lock not all sleep in accept");
    held(server.stop());
}

#[test]
fn a_worker_killed_while_it_holds_the_lock_stops_nobody() {
    std::thread::scope(|scope| {
        for lock in LOCKS {
            scope.spawn(move || outlives_its_holders(lock));
        }
    });
}

fn outlives_its_holders(lock: (&str, &[&str])) {
    let mut server = start_locked(lock, "5");
    for left in (1..5).rev() {
        let holder = holder(&server);
        holder.kill();
        // The next one has it without a connection that would have to come first.
        let gone = poll_until(ANSWER_TIMEOUT, || (workers(&server).len() == left).then_some(()));
        assert!(gone.is_some(), "{lock:?}: {} did not die", holder.pid);
        for _ in 0..10 {
            held(served_within(server.addr, FOREVER));
        }
    }
    let report = held(server.stop());
    let accepted: u64 = report.workers.iter().map(|worker| worker.accepted).sum();
    assert_eq!(accepted, 40, "{lock:?}");
}

/// The price of every lock, and of these more than of accept alone: the kernel sees a living holder.
#[test]
fn a_worker_stopped_while_it_holds_the_lock_stops_all_until_it_goes_on() {
    for lock in LOCKS {
        let mut server = start_locked(lock, "3");
        let stopped = holder(&server);
        signal(&stopped, Signal::SIGSTOP);
        let mut client = connect(&server);
        held(client.send(GET));
        assert!(client.answer_within(Duration::from_millis(700)).is_err(), "{lock:?}: somebody accepted");
        signal(&stopped, Signal::SIGCONT);
        held(held(client.answer_within(FOREVER)).expect(200));
        held(server.stop());
    }
}

/// The parent shuts the listener, and the lock goes from hand to hand among workers who all find it shut. A server
/// whose workers have to be killed takes at least the grace.
#[test]
fn eight_workers_at_the_lock_stop_at_once() {
    for lock in LOCKS {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let mut server = start_locked(lock, "8");
            holder(&server);
            let report = ends_at_once(&mut server, signal);
            assert_eq!(report.workers.iter().map(|worker| worker.accepted).sum::<u64>(), 0, "{lock:?}");
        }
    }
}

#[test]
fn sigterm_under_load_answers_what_was_read_with_every_lock() {
    for (name, lock) in LOCKS {
        ends_under_load(name, &[&["--workers", "8"], lock].concat());
    }
}

/// A mutex is not left for a signal (pthread_mutex_lock(3)): a worker that waits for it ends when its turn comes, and
/// with each connection the turn goes on.
#[test]
fn workers_at_the_lock_that_are_told_to_stop_leave_the_others_serving() {
    for lock in LOCKS {
        let mut server = start_locked(lock, "4");
        let holder = holder(&server);
        for worker in workers(&server).iter().filter(|&worker| *worker != holder) {
            signal(worker, Signal::SIGTERM);
        }
        let alone = poll_until(FOREVER, || {
            let served = served_within(server.addr, FOREVER);
            served.unwrap_or_else(|why| panic!("{lock:?}: {why:?}; it said: {}", server.said()));
            (workers(&server).len() == 1).then_some(())
        });
        assert!(alone.is_some(), "{lock:?}: {:?} are left", workers(&server));
        held(server.stop());
    }
}

/// The worker that has the accept mutex is awake after each connection and takes it again, while the others sleep until
/// they try.
/// Of 128 descriptors about 116 are free at the start, and from 102 connections on it leaves turns to the other.
#[test]
fn a_worker_without_much_room_leaves_the_accept_mutex_to_the_others() {
    // With the default backlog a kernel whose somaxconn is smaller is a line of its own.
    let mut server = start_after("ulimit -n 128", "accept-mutex", &["--workers", "2", "--backlog", "128"]);
    holder(&server);
    let clients: Vec<Client> = (0..114)
        .map(|_| {
            let mut client = connect(&server);
            held(client.send(GET));
            answer(&mut client);
            client
        })
        .collect();
    drop(clients);
    let said = server.said();
    let accepted = held(server.stop()).workers.iter().map(|worker| worker.accepted).collect::<Vec<_>>();
    assert!(!accepted.contains(&0), "{accepted:?}");
    assert_eq!(said, "", "{accepted:?}");
}

/// A semaphore is the only lock here that the kernel does not take away with its processes. Other tests have a few.
#[test]
fn semaphores_of_killed_servers_are_removed_by_the_next() {
    let semaphore = LOCKS[2];
    let sets = || fs::read_to_string("/proc/sysvipc/sem").unwrap().lines().count();
    let before = sets();
    for _ in 0..20 {
        let server = start_locked(semaphore, "2");
        held(served_within(server.addr, FOREVER));
        // Dropping it kills it.
    }
    held(start_locked(semaphore, "2").stop());
    assert!(sets() < before + 10, "{before} sets became {}", sets());
}

#[test]
fn a_lock_that_does_not_exist_and_a_pause_that_makes_no_sense_are_refused() {
    for (name, flags) in [
        ("prefork-lock", &["--lock", "spinlock"][..]),
        ("prefork-lock", &["--retry", "1ms"]),
        ("accept-mutex", &["--retry", "0s"]),
        ("shared-accept", &["--lock", "mutex", "--wait", "epoll"]),
        ("shared-accept", &["--lock", "accept-mutex", "--wait", "epoll-edge"]),
        ("shared-accept", &["--retry", "1ms"]),
    ] {
        let output = Command::new(kind(name).path).args(flags).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{name} {flags:?}: {said}");
        assert!(said.starts_with("error: "), "{name} {flags:?}: {said}");
    }
}
