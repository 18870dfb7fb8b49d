//! What a server does between accept and answer, seen from outside.

use std::fs;

use acceptlab::lab::check::server::Program;

use crate::support::{SERVERS, can_trace, held, load};

/// Servers with a queue between threads, or a role that threads hand on.
const HANDS_ON: [&str; 5] = ["thread-pool", "idle-busy", "half-sync", "pipeline", "leader-follower"];

/// Of a server's thousand requests over one connection strace(1) sees the calls for memory, for a lock that is contended
/// and for a log. Where a request goes from thread to thread, a queue has a lock, and is what that architecture is about.
#[test]
fn between_accept_and_response_there_is_no_allocation_lock_or_log() {
    if !can_trace() {
        return;
    }
    for server in SERVERS.iter().filter(|server| !HANDS_ON.contains(&server.name)) {
        let log = std::env::temp_dir().join(format!("acceptlab-rule-5-{}-{}", server.name, std::process::id()));
        // As a detached grandchild: the server is our child, and has its signals.
        let strace = "strace -D -f -qq -e trace=brk,mmap,munmap,mremap,madvise,futex,write,openat -o";
        let mut command: Vec<String> = strace.split(' ').map(String::from).collect();
        command.extend([log.display().to_string(), server.path.to_string()]);
        let mut running = held(Program::new(&command).start(&[]));
        let requests = |count| load(running.addr, &["--connections", "1", "--requests", count]).requests;
        let lines = || fs::read_to_string(&log).unwrap().lines().count();
        assert_eq!(requests("200"), 200);
        let before = lines();
        assert!(before > 0, "{}: nothing was traced", server.name);
        assert_eq!(requests("1000"), 1000);
        let calls = lines() - before;
        held(running.stop());
        fs::remove_file(&log).unwrap();
        // A thread for the connection, and its end, are a few; one call in ten requests would be a hundred.
        assert!(calls < 50, "{}: {calls} calls for memory, locks or logs in 1000 requests", server.name);
    }
}
