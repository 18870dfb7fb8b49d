//! What all servers share. In reading order:
//!
//! - [`args`]: the command line of every server; [`listener`]: the listening socket; [`accept`]: a failed accept;
//! - [`worker`]: what one worker carries with it;
//! - [`blocking`]: serve a connection and do nothing else meanwhile;
//! - [`conversation`]: requests in, answers out, without a socket; [`connection`], [`table`], [`multiplexer`],
//!   [`reactor`] and [`event_loop`]: serve many connections step by step; [`spin`]: look again before sleeping;
//! - [`coroutine`]: the blocking handler on a stack of its own, which such a loop resumes;
//! - [`callbacks`]: the steps, as callbacks of a [`PhasedLoop`](crate::phased_loop::PhasedLoop);
//! - [`children`]: fork processes, stop and reap them; [`worker_pool`]: wait until they are ready, and supervise them;
//! - [`threads`]: worker threads and their queue; [`accepted_queue`]: one for connections; [`poller`]: one epoll for
//!   the connections of several threads;
//! - [`tasks`]: connections as tasks of an asynchronous runtime;
//! - [`selector`]: programs in the kernel that choose among the sockets of a group;
//! - [`channel`]: pass connections to another process; [`dispatch`]: accept for others, and who has how many;
//!   [`policy`]: who is next;
//! - [`ipc`]: the same in Node's way, with JSON messages; [`member`]: a server as a worker of a cluster;
//! - [`lock`]: locks that let one worker at a time accept;
//! - [`relay`]: copy bytes between clients and workers that have ports of their own;
//! - [`waiting`]: other calls to wait in than accept and an epoll of one's own;
//! - [`moved_flags`]: a program that was split goes on under its old flags;
//! - [`termination`]: how a server learns that it must stop.
//!
//! The beginning and the end of every program are here: [`ready`] and [`finish`].

use std::fmt;
use std::net::SocketAddr;
use std::process::ExitCode;

use crate::console;
use crate::membership::is_member;
use crate::report::ServerReport;

pub mod accept;
pub mod accepted_queue;
pub mod args;
pub mod blocking;
pub mod callbacks;
pub mod channel;
pub mod children;
pub mod connection;
pub mod conversation;
pub mod coroutine;
pub mod dispatch;
pub mod event_loop;
pub mod ipc;
pub mod listener;
pub mod lock;
pub mod member;
pub mod moved_flags;
pub mod multiplexer;
pub mod policy;
pub mod poller;
pub mod reactor;
pub mod relay;
pub mod selector;
pub mod spin;
pub mod table;
pub mod tasks;
pub mod termination;
pub mod threads;
pub mod waiting;
pub mod worker;
pub mod worker_pool;

// What most servers need; what one architecture is about is imported from its module.
pub use args::{QueueArgs, ServerArgs, WorkersArgs};
pub use event_loop::EventLoop;
pub use listener::Listener;
pub use spin::SpinArgs;
pub use worker::Worker;
pub use worker_pool::WorkerPool;

pub use crate::failure::Failure;
pub use crate::scoreboard::Scoreboard;
pub use crate::sys::signal::{GRACE, has_given_up, is_stopping};

/// Prints the line that everybody waits for, or in a cluster tells the master. Call it when every worker can take a
/// connection.
pub fn ready(address: SocketAddr) -> Result<(), Failure> {
    if member::notify_listening(address) { Ok(()) } else { print_ready(address) }
}

/// Prints it: for a master too, whose workers may listen on a Unix socket.
pub fn print_ready(address: impl fmt::Display) -> Result<(), Failure> {
    console::print_unless_stopping(&format!("ready {address}\n"))
}

/// Prints the report, or the one line that says what went wrong, and gives the exit status: 0 or 1, which is also that
/// of a master that had to give up. A worker of a cluster prints no report: its counts are in the master's.
pub fn finish(outcome: Result<ServerReport, Failure>) -> ExitCode {
    if outcome.is_ok() && is_member() {
        return if member::has_failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    let has_given_up = |report: &ServerReport| report.cluster.as_ref().is_some_and(|cluster| cluster.gave_up);
    let gave_up = outcome.as_ref().is_ok_and(has_given_up);
    let printed = console::end(
        outcome.map(|report| serde_json::to_string(&report).expect("a report has only numbers and strings")),
    );
    if gave_up { ExitCode::FAILURE } else { printed }
}
