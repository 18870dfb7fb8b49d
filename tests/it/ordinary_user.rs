//! Everything but what says so runs as an ordinary user: root drops to one to see it.

use std::fs;
use std::path::Path;

use acceptlab::lab::check::client::GET;
use acceptlab::lab::check::server::NotReady;

use crate::lab::LESSON;
use crate::support::{Needs, Ordinary, SERVERS, TempFolder, connect, copy_program, held, inconclusive, kind};

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
    for server in SERVERS {
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
            // A kernel that lets everybody load programs (kernel.unprivileged_bpf_disabled = 0) still refuses this
            // type.
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

const SETTING: &str = "/proc/sys/net/ipv4/tcp_migrate_req";

/// The lab, a server and the client in a folder that an ordinary user can reach, and a lesson with a kernel setting.
fn installed() -> TempFolder {
    let folder = TempFolder::new("own-network");
    let lesson = LESSON.replace("columns", "sysctl = { \"net.ipv4.tcp_migrate_req\" = \"1\" }\ncolumns");
    fs::create_dir(folder.file("experiments")).expect("room for a folder");
    fs::write(folder.file("experiments/01-lesson.md"), lesson).expect("room for a lesson");
    for program in [env!("CARGO_BIN_EXE_lab"), env!("CARGO_BIN_EXE_loadgen"), kind("sync").path] {
        copy_program(program, folder.path());
    }
    folder
}

#[test]
fn a_setting_of_the_network_is_made_in_a_network_of_ones_own_or_the_line_says_what_forbids_it() {
    if !Path::new(SETTING).exists() {
        return inconclusive(Needs::Kernel("net.ipv4.tcp_migrate_req"), "not there");
    }
    let Some(env) = Ordinary::new("/usr/bin/env") else { return };
    let (installed, before) = (installed(), fs::read_to_string(SETTING).expect("readable"));
    let lab = installed.file("lab");
    let output =
        env.command().arg(lab).arg("--root").arg(installed.path()).args(["verify", "1"]).output().expect("env runs");
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    let is_refused = line.contains("needs CAP_NET_ADMIN, or a user namespace: ");
    assert!(line.starts_with("ok ") || is_refused, "{line}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_to_string(SETTING).expect("readable"), before);
    if is_refused {
        inconclusive(Needs::Privilege("user namespaces"), line);
    }
}
