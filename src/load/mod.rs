//! The load generator, as the data travels. A stage imports the stages before it and the values at the bottom of the
//! library, never the stages behind it.
//!
//! - [`schedule`]: WHEN to send: closed loop, open loop, replay; pure arithmetic;
//! - [`options`]: the command line, turned once into a [`plan`](options::plan) of plain values;
//! - [`response`]: answers out of bytes;
//! - [`counts`]: what is counted: histograms, tallies, intervals;
//! - [`client`]: HOW to send: one loop per thread; its engines carry the bytes, by epoll or io_uring;
//! - [`background`]: connections that are not measured: idle, or slow on purpose;
//! - [`verdict`]: whether to trust the result;
//! - [`run`]: one run: preflight, threads, supervisor, observers;
//! - [`output`]: text, files and the live view, from finished values;
//! - [`commands`]: one run with its files, and many runs for one answer: search, calibrate, merge, demo.

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
