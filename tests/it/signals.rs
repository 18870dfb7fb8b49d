//! What supervisors, terminals and people send to a server: it stops in order, or nothing happens.

use std::fs;
use std::process::Command;

use acceptlab::lab::check::client::served;
use acceptlab::lab::check::server::{Program, STOP_WITHIN, Server};
use acceptlab::lab::observe::processes::{Process, poll_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{FOREVER, SERVERS, held, kind, start};

fn signal_all(server: &Server, signal: Signal) {
    // A worker may have been stopped by its master before it is its turn.
    for process in server.processes() {
        let _ = kill(Pid::from_raw(process.pid), signal);
    }
}

/// To the master, and to its whole group as a terminal does.
#[test]
fn a_quit_and_a_lost_terminal_stop_a_server_in_order() {
    for kind in SERVERS {
        for signal in [Signal::SIGQUIT, Signal::SIGHUP] {
            for send in [|server: &Server, signal| server.signal(signal), signal_all] {
                // Under nohup(1) the tests ignore SIGHUP, and so would the server.
                let command = ["env", "--default-signal=HUP,QUIT", kind.path].map(String::from);
                let mut server = held(Program::new(&command).start(&[]));
                held(served(server.addr));
                let processes = server.processes();
                send(&server, signal);
                let ended = server.ended(STOP_WITHIN).unwrap_or_else(|why| {
                    let waits_in = |process: &Process| fs::read_to_string(format!("/proc/{}/wchan", process.pid));
                    let waits = processes.iter().map(|process| (process, waits_in(process)));
                    panic!("{} {signal}: {why:?}; {:?}", kind.name, waits.collect::<Vec<_>>())
                });
                assert_eq!(ended.status.code(), Some(0), "{} {signal}: {}", kind.name, ended.stderr);
                let report = held(ended.report());
                assert_eq!(report.workers.iter().map(|worker| worker.requests).sum::<u64>(), 1, "{}", kind.name);
                assert!(Server::left_behind(&processes, FOREVER).is_empty(), "{} {signal}", kind.name);
            }
        }
    }
}

#[test]
fn signals_that_mean_nothing_to_a_server_change_nothing() {
    use Signal::{SIGALRM, SIGPIPE, SIGTTOU, SIGUSR1, SIGUSR2, SIGWINCH};
    for kind in SERVERS {
        let mut server = start(kind.name, &[]);
        let before = server.processes();
        for signal in [SIGUSR1, SIGUSR2, SIGALRM, SIGPIPE, SIGWINCH, SIGTTOU] {
            signal_all(&server, signal);
            held(served(server.addr).map_err(|why| server.explain(why)));
            // A process that was forked for the connection ends with it.
            let unchanged = poll_until(FOREVER, || (server.processes() == before).then_some(()));
            assert!(unchanged.is_some(), "{} {signal}: {:?} from {before:?}", kind.name, server.processes());
        }
        held(server.stop());
    }
}

#[test]
fn a_server_under_nohup_outlives_its_terminal() {
    for name in ["event-driven", "prefork"] {
        let command = ["nohup", kind(name).path].map(String::from);
        if Command::new("nohup").arg("true").output().is_err() {
            return crate::support::inconclusive(crate::support::Needs::Tool("nohup"), "not installed");
        }
        let mut server = held(Program::new(&command).start(&[]));
        signal_all(&server, Signal::SIGHUP);
        held(served(server.addr));
        held(server.stop());
    }
}
