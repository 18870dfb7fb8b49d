//! Everything but what says so runs as an ordinary user: root drops to one to see it.

use acceptlab::lab::check::client::GET;
use acceptlab::lab::check::server::NotReady;

use crate::support::{Ordinary, SERVERS, connect, held, kind};

/// Flags of the strategies that differ in what they ask of the kernel.
const STRATEGIES: [(&str, &[&str]); 12] = [
    ("shared-accept", &["--wait", "epoll-exclusive-rearm"]),
    ("prefork-lock", &["--lock", "fcntl"]),
    ("prefork-lock", &["--lock", "flock"]),
    ("prefork-lock", &["--lock", "semaphore"]),
    ("prefork-lock", &["--lock", "mutex"]),
    ("accept-mutex", &[]),
    ("reuseport", &["--select", "cpu"]),
    ("reuseport", &["--select", "random"]),
    ("reuseport", &["--select", "live-set"]),
    ("master-dispatch", &["--policy", "acknowledged"]),
    ("master-dispatch", &["--policy", "sticky"]),
    ("pass-listener", &["--master", "serves", "--workers", "2"]),
];

/// What only a capability opens: a `--select` of `reuseport`.
const PRIVILEGED: [&str; 2] = ["round-robin", "least-loaded"];

#[test]
fn every_server_and_strategy_serves_without_a_privilege() {
    for server in &SERVERS {
        let Some(ordinary) = Ordinary::new(server.path) else { return };
        let program = ordinary.program();
        let strategies = STRATEGIES.iter().filter(|(name, _)| *name == server.name);
        for flags in strategies.map(|(_, flags)| *flags).chain([&[][..]]) {
            let mut started = held(program.start(flags));
            held(held(connect(&started).ask(GET)).expect(200));
            let workers = held(started.stop()).workers;
            let requests: u64 = workers.iter().map(|worker| worker.requests).sum();
            assert_eq!(requests, 1, "{} {flags:?}", server.name);
        }
    }
}

#[test]
fn what_needs_a_privilege_says_which_in_one_line() {
    let Some(ordinary) = Ordinary::new(kind("reuseport").path) else { return };
    for select in PRIVILEGED {
        // With the default backlog a kernel whose somaxconn is smaller is a line of its own.
        let flags = ["--backlog", "128", "--select", select];
        match ordinary.program().start_on("127.0.0.1:0", &flags) {
            // A kernel that lets everybody load programs (kernel.unprivileged_bpf_disabled = 0) still refuses this type.
            Ok(_) => panic!("{select} ran without a privilege"),
            Err(NotReady::Silent { status: Some(status), stderr, .. }) => {
                assert_eq!(status.code(), Some(1), "{select}: {stderr}");
                assert_eq!(stderr.lines().count(), 1, "{select}: {stderr}");
                let end = "operation not permitted; needs CAP_BPF";
                assert!(stderr.trim_end().ends_with(end), "{select}: {stderr}");
            }
            Err(not_ready) => panic!("{select}: {:?}", not_ready.into_broken(&flags)),
        }
    }
}
