//! The load generator, as the data travels. A stage imports the stages before it and the values at the bottom, never
//! the stages behind it.
//!
//! - [`options`]: the command line, turned into plain values once;
//! - [`schedule`]: WHEN to send: closed loop, open loop, replay; pure arithmetic;
//! - [`response`]: answers out of bytes;
//! - [`client`]: HOW to send: one loop per thread; its engines carry the bytes, by epoll or io_uring;
//! - [`background`]: connections that are only there, or slow on purpose;
//! - [`counts`]: what was counted: histograms, tallies, intervals, evenness;
//! - [`verdict`]: whether to trust it;
//! - [`run`]: one run: preflight, threads, supervisor, observers;
//! - [`output`]: text, files and the live view, from finished values;
//! - [`commands`]: many runs for one answer: search, calibrate, merge, demo.

pub mod background;
pub mod client;
pub mod commands;
pub mod counts;
pub mod options;
pub mod output;
pub mod response;
pub mod run;
pub mod schedule;
pub mod verdict;
