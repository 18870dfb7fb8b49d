//! What the load generator is made of. *When* to send and *how* to send know nothing of each other:
//!
//! - [`args`]: the command line;
//! - [`search`], [`calibrate`]: many runs for one answer;
//! - [`schedule`]: WHEN: closed loop, open loop at moments of its own, replay; pure arithmetic;
//! - [`client`]: HOW: one loop per thread; [`engine`] carries its bytes, by epoll or io_uring; [`connection`] is one
//!   of its connections, [`response`] reads what comes back, [`crowd`] is those that only want to be there, [`slow`] those that
//!   are slow on purpose;
//! - [`tally`], [`histogram`] and [`seconds`]: what one thread counted;
//! - [`preflight`], [`run`], [`control`], [`watch`]: whether it can fit, the threads' beginning and end, phases,
//!   signals;
//! - [`interval`], [`audience`], [`live`]: what is told, and shown, while it goes on;
//! - [`evidence`], [`verdict`], [`gate`]: whether to trust it, and whether it is good enough;
//! - [`evenness`], [`summary`], [`export`], [`text`]: what it means, for programs and for people; [`explain`]
//!   defines it;
//! - [`merge`]: one result from those of many client machines;
//! - [`demo`]: what a closed loop leaves out, shown.

pub mod args;
pub mod calibrate;
pub mod gate;
pub mod schedule;
pub mod search;
pub mod source;
pub mod target;

pub mod client;
pub mod connection;
pub mod crowd;
pub mod engine;
pub mod response;
pub mod slow;

pub mod histogram;
pub mod interval;
pub mod seconds;
pub mod tally;

pub mod audience;
pub mod control;
pub mod live;
pub mod preflight;
pub mod run;
pub mod watch;

pub mod demo;
pub mod evenness;
pub mod evidence;
pub mod explain;
pub mod export;
pub mod merge;
pub mod summary;
pub mod text;
pub mod verdict;
