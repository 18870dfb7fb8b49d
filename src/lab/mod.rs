//! The lab: experiments in, evidence out. In the order in which they import each other:
//!
//! - [`plan`]: experiment file → matrix → cases, typed command lines, events, laws, and the order of the runs;
//! - [`deadline`]: how long to wait on a machine that is busy;
//! - [`observe`]: what /proc, the scoreboard and the kernel's tracepoints show of a server;
//! - [`record`]: the row that a run fills, rows on disk, append-only, and the machine they were made on;
//! - [`program`]: starting a program, awaiting its `ready` line, its output and its end;
//! - [`run`]: one case after another: processes, faults, the clients of other projects;
//! - [`evidence`]: rows → columns → tables, claims judged, pictures → pages;
//! - [`commands`]: what `lab list`, `explain`, `run`, `report` and `claims` do with all of these;
//! - [`verify`]: the same cases as tests; [`check`]: any server against the contract; [`order`]: which worker takes
//!   connections that come one after another; [`watch`]: a running server's counters on the terminal;
//! - [`target`]: what `inspect` and `steer` are pointed at; [`server_kind`]: whose program it is; [`inspect`]: how any
//!   running server accepts, seen from outside; [`steer`]: another way to choose among its sockets;
//! - [`trials`]: one task for one program (a manager, a server, a tool), as the program `trial` runs it.
//!
//! Errors are one line each, complete with file, argument and remedy, and are printed by `bins/lab.rs` only.

pub mod deadline;
pub mod evidence;
pub mod observe;
pub mod plan;
pub mod program;
pub mod record;
pub mod run;

pub mod check;
pub mod commands;
pub mod inspect;
pub mod order;
pub mod server_kind;
pub mod steer;
pub mod target;
pub mod trials;
pub mod verify;
pub mod watch;
