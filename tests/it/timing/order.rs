//! Who takes connections that come one after another to idle workers: the order that this kernel, and our own code,
//! give to each strategy. Conformance tests: on another kernel they may say that it differs.

use std::process::Command;
use std::time::Duration;

use acceptlab::lab::check::client::served;
use acceptlab::lab::observe::processes::{Process, poll_until};

use super::{bar, judged};
use crate::support::{FOREVER, Needs, held, inconclusive, kind, start};

/// The line `pattern …` of `lab order`, or why there is none.
fn pattern(name: &str, flags: &str, connections: u32) -> Result<String, String> {
    let server = format!("{} --workers 4 {flags}", kind(name).path);
    let output = Command::new(env!("CARGO_BIN_EXE_lab"))
        .args(["order", "--connections", &connections.to_string(), "--rate", "200", "--"])
        .args(server.split_whitespace())
        .output()
        .unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_string());
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().find_map(|line| line.strip_prefix("pattern")).unwrap_or_default().trim().to_string())
}

/// A fixed order repeats itself at once.
const OF_AN_ORDER: u32 = 100;
/// A choice that is not quite random shows only in many.
const OF_CHANCE: u32 = 200;

/// The connections come 5 ms apart: where the machine makes the workers late they are not back asleep when the next one
/// comes, and the order blurs. A fortieth of the time is tolerated.
fn tolerated(connections: u32) -> Duration {
    connections * Duration::from_millis(5) / 40
}

/// Catches any change of the order that a strategy gives to idle workers.
#[track_caller]
fn these_show(rule: &str, strategies: &[(&str, &str)]) {
    for (name, flags) in strategies {
        judged(tolerated(OF_AN_ORDER), || shows(rule, OF_AN_ORDER, name, flags));
    }
}

/// `Err` where the strategy shows another rule, with that rule.
fn shows(rule: &str, connections: u32, name: &str, flags: &str) -> Result<(), String> {
    match pattern(name, flags, connections) {
        Ok(pattern) => bar(pattern.starts_with(rule), || {
            format!("{name} {flags} is {rule:?} on Linux 6.18; here it is {pattern:?}")
        }),
        Err(why) if why.ends_with("needs CAP_BPF") => {
            inconclusive(Needs::Privilege("CAP_BPF"), format!("{name} {flags}: {why}"));
            Ok(())
        }
        Err(why) => panic!("{name} {flags}: {why}"),
    }
}

#[test]
fn workers_that_sleep_in_accept_or_at_a_semaphore_are_woken_in_turn() {
    these_show("round robin", &[("prefork", ""), ("prethreaded", ""), ("prefork-lock", "--lock semaphore")]);
}

#[test]
fn an_exclusive_epoll_and_a_shared_accept_of_rings_wake_the_worker_that_registered_first() {
    these_show("priority", &[("shared-accept", "--wait epoll-exclusive"), ("uring", "--accept shared")]);
}

#[test]
fn workers_that_register_again_after_every_connection_are_woken_in_turn() {
    these_show("round robin", &[("shared-accept", "--wait epoll-exclusive-rearm")]);
}

#[test]
fn a_hash_and_a_random_choice_do_not_depend_on_the_connection_before() {
    for (name, flags) in [
        ("reuseport", ""),
        ("reuseport", "--select random"),
        ("reuseport", "--select live-set"),
        ("master-dispatch", "--policy random"),
        ("uring", "--accept reuseport"),
        ("tokio", "--runtime per-core"),
        // Idle workers have nothing to pass on.
        ("peers", ""),
    ] {
        // By chance, a random choice looks as if it were not in two orders of a thousand (`lab order` looks for two
        // rules, each at 3.3 standard deviations). A choice that is not random looks so in the second order, too.
        let once = || shows("random", OF_CHANCE, name, flags);
        judged(tolerated(OF_CHANCE), || once().or_else(|_| once()));
    }
}

#[test]
fn selectors_and_masters_that_count_give_connections_to_idle_workers_in_turn() {
    these_show(
        "round robin",
        &[
            ("reuseport", "--select round-robin"),
            ("reuseport", "--select least-loaded"),
            ("master-dispatch", ""),
            ("master-dispatch", "--policy least-connections"),
            ("master-dispatch", "--policy acknowledged"),
            ("uring", "--accept handoff"),
            ("proxy", ""),
        ],
    );
}

#[test]
fn first_free_and_sticky_give_one_clients_connections_to_the_same_worker() {
    these_show("priority", &[("master-dispatch", "--policy first-free"), ("master-dispatch", "--policy sticky")]);
}

/// The next connection comes when all are asleep again, so the order cannot blur; but where the loopback hands a close
/// to ksoftirqd, the worker that it wakes looks asleep for a moment. Catches a worker that is left out or preferred.
#[test]
fn a_rotation_gives_four_idle_workers_a_quarter_of_a_thousand_connections_each_exactly() {
    for (name, flags) in [
        ("prefork", &[][..]),
        ("prefork-lock", &["--lock", "semaphore"]),
        ("shared-accept", &["--wait", "epoll-exclusive-rearm"]),
        ("proxy", &[]),
    ] {
        judged(Duration::from_millis(25), || {
            let shares = a_thousand_one_after_another(name, flags);
            bar(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1, || {
                format!("{name} {flags:?}: {shares:?} on a kernel that is not Linux 6.18, or differs from it")
            })
        });
    }
}

/// What each of four workers has accepted, by its own report.
fn a_thousand_one_after_another(name: &str, flags: &[&str]) -> Vec<u64> {
    let mut server = start(name, &[&["--workers", "4"], flags].concat());
    let all = server.processes();
    for _ in 0..1000 {
        let idle = poll_until(FOREVER, || all.iter().all(sleeps).then_some(()));
        assert!(idle.is_some(), "{name} {flags:?} is busy with nothing");
        held(served(server.addr));
    }
    let accepted: Vec<u64> = held(server.stop()).workers.iter().map(|worker| worker.accepted).collect();
    assert_eq!(accepted.iter().sum::<u64>(), 1000, "{name} {flags:?}");
    accepted
}

fn sleeps(process: &Process) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid)).expect("it runs");
    stat.rsplit_once(") ").expect("proc_pid_stat(5)").1.starts_with('S')
}
