//! Every server × section 1 of the contract, point by point as `lab check` judges it.

use acceptlab::lab::check::{self, NotHeld};
use acceptlab::lab::program::Program;
use acceptlab::terminal::Paint;

use crate::support::{SERVERS, kind};

pub fn keeps_the_contract(name: &str, flags: &[&str]) {
    let points = check::points();
    let command: Vec<String> = [&[kind(name).path], flags].concat().into_iter().map(String::from).collect();
    let verdicts = check::judge(&Program::new(&command), &points).expect("cargo has built it");
    let judged = points.iter().zip(&verdicts);
    let broken = judged.filter(|(_, verdict)| matches!(verdict, Err(NotHeld::Broken { .. })));
    let broken: Vec<String> =
        broken.map(|(point, verdict)| check::line(point, verdict, Paint { has_colour: false })).collect();
    assert!(broken.is_empty(), "{name} {flags:?}:\n{}", broken.join("\n"));
}

/// One server with several strategies. A check mostly waits, so three at a time are as honest as one.
pub fn all_keep_the_contract(name: &str, strategies: &[[&str; 2]]) {
    for some in strategies.chunks(3) {
        std::thread::scope(|scope| {
            for flags in some {
                scope.spawn(|| keeps_the_contract(name, flags));
            }
        });
    }
}

macro_rules! each_keeps_the_contract {
    ($($test:ident $server:literal)*) => {
        $(#[test] fn $test() { keeps_the_contract($server, &[]); })*
        /// The servers that these tests judge.
        const JUDGED: &[&str] = &[$($server),*];
    };
}

each_keeps_the_contract! {
    sync_keeps_the_contract "sync"
    fork_keeps_the_contract "fork"
    prefork_keeps_the_contract "prefork"
    prefork_poll_keeps_the_contract "prefork-poll"
    prefork_lock_keeps_the_contract "prefork-lock"
    threaded_keeps_the_contract "threaded"
    prethreaded_keeps_the_contract "prethreaded"
    thread_pool_keeps_the_contract "thread-pool"
    idle_busy_keeps_the_contract "idle-busy"
    half_sync_keeps_the_contract "half-sync"
    pipeline_keeps_the_contract "pipeline"
    leader_follower_keeps_the_contract "leader-follower"
    select_poll_keeps_the_contract "select-poll"
    event_driven_keeps_the_contract "event-driven"
    event_loop_keeps_the_contract "event-loop"
    shared_accept_keeps_the_contract "shared-accept"
    accept_mutex_keeps_the_contract "accept-mutex"
    reuseport_keeps_the_contract "reuseport"
    master_dispatch_keeps_the_contract "master-dispatch"
    pass_listener_keeps_the_contract "pass-listener"
    peers_keeps_the_contract "peers"
    proxy_keeps_the_contract "proxy"
    uring_keeps_the_contract "uring"
    coroutines_keep_the_contract "coroutines"
    tokio_keeps_the_contract "tokio"
}

#[test]
fn every_server_of_the_syllabus_is_tested() {
    let manifest: toml::Table = include_str!("../../Cargo.toml").parse().expect("cargo reads it too");
    let programs = manifest["bin"].as_array().expect("[[bin]] entries").iter();
    let names = programs.map(|bin| bin["name"].as_str().expect("a bin has a name"));
    // The baselines parse nothing; the programs of the cluster and of the process manager are others'; the
    // demonstration and the instruments serve nobody.
    let others =
        ["ports", "scenario", "cluster", "pm", "null-server", "null-uring", "loadgen", "bare-client", "lab", "trial"];
    let servers: Vec<&str> = names.filter(|name| !others.contains(name)).collect();
    assert_eq!(servers, SERVERS.iter().map(|kind| kind.name).collect::<Vec<_>>());
    assert_eq!(servers, JUDGED);
}
