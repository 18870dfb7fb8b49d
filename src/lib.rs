//! acceptlab: who accepts the connection, who serves it, and what does that cost?
//!
//! The programs in `bins/` are the architectures; this library is what they share. It does not know which
//! architectures exist. In reading order:
//!
//! - [`http`] and [`work`]: what one request is, and what it costs;
//! - [`server`]: listener, blocking handler, non-blocking connection, event loop, forking; passing connections and
//!   relaying bytes, choosing among sockets, locks, being told to stop;
//! - [`uring`]: an event loop over io_uring(7), asked once and told what has been done;
//! - [`phased_loop`]: an event loop with Node's phases: observers, callbacks, request objects;
//! - [`cluster`]: workers of any program, in the protocol of Node's cluster: kept alive, and given connections;
//! - [`pm`]: applications of any kind, kept alive by a daemon;
//! - [`load`]: when to send, how to send, what came back; [`evenness`]: how evenly the workers shared it;
//! - [`lab`]: experiment file → cases → rows → record → report;
//! - [`report`] and [`scoreboard`]: the JSON documents and the live counters in which `server`, `load` and `lab`
//!   meet;
//! - [`classic_bpf`] and [`extended_bpf`]: programs that choose a socket in the kernel, for servers of ours and of
//!   others;
//! - [`membership`]: whether this process is a worker of a cluster;
//! - [`control_socket`]: how a program that runs is asked to do something;
//! - [`failure`]: how a program that cannot go on says so; [`console`]: standard error and output, read or not;
//! - [`logs`]: what other programs write, line by line, into files;
//! - [`metrics`]: every number that anything prints, defined once; [`terminal`] and [`keyboard`]: what is
//!   drawn in a terminal and what is typed there;
//! - [`slots`]: values under keys that can be out of date;
//! - [`units`], [`stats`], [`cpu`], [`machine`], [`sys`]: durations, statistics, the CPUs we may use, what the kernel
//!   counted, and the system calls as thin safe lines.
//!
//! `cluster` uses `accept`, `args` and `ipc` of `server`. `server`, `load` and `lab` do not import each other: they
//! meet through the command line, the `ready` line and JSON, like the programs made of them.

// A module's introduction names its parts, public or not: read it with `cargo doc --document-private-items`.
#![allow(rustdoc::private_intra_doc_links)]

pub mod http;
pub mod work;

pub mod phased_loop;

pub mod uring;

pub mod server;

pub mod cluster;

pub mod pm;

pub mod load;

pub mod lab;

pub mod classic_bpf;
pub mod console;
pub mod control_socket;
pub mod cpu;
pub mod evenness;
pub mod extended_bpf;
pub mod failure;
pub mod keyboard;
pub mod logs;
pub mod machine;
pub mod membership;
pub mod metrics;
pub mod report;
pub mod scoreboard;
pub mod slots;
pub mod stats;
pub mod sys;
pub mod terminal;
pub mod units;
