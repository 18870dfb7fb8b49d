//! The lab: experiment file → cases → rows → record → report, in that direction only.
//!
//! - [`experiment`]: `experiments/NN-name.md`, a lesson and its matrix; [`case`]: every combination the matrix names;
//! - [`laws`]: what the theory promises a case;
//! - [`program`]: one started program, its lines, its end; [`processes`]: what the kernel tells of them;
//! - [`footprint`], [`growth`] and [`timeline`]: what a server occupies, gains and holds; [`kernel_counts`] and
//!   [`tracepoints`]: what the kernel counted meanwhile; [`disturb`] and [`sysctl`]: what is done to it, and around it;
//! - [`runner`]: one case, run once, becomes one row; [`foreign`]: clients that are not ours, and what they print;
//! - [`fingerprint`]: the machine; [`record`]: rows on disk, append-only; [`session`]: a whole `lab run`;
//! - [`books`]: the client's against the server's; [`columns`], [`table`]: rows → cells; [`report`]: cells →
//!   terminal and RESULTS.md;
//! - [`verify`]: the same cases as tests; [`check`]: any server against the contract; [`order`]: who takes connections
//!   that come one after another; [`watch`]: a running server's counters on the terminal.
//!
//! Errors are one line each, complete with file, argument and remedy, and are printed by `bins/lab.rs` alone.

pub mod experiment;

pub mod case;
pub mod laws;

pub mod disturb;
pub mod footprint;
pub mod foreign;
pub mod growth;
pub mod kernel_counts;
pub mod processes;
pub mod program;
pub mod runner;
pub mod sysctl;
pub mod timeline;
pub mod tracepoints;

pub mod fingerprint;
pub mod record;
pub mod session;

pub mod books;
pub mod columns;
pub mod report;
pub mod table;

pub mod check;
pub mod order;
pub mod verify;
pub mod watch;
