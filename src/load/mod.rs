//! What the load generator is made of. *When* to send and *how* to send know nothing of each other:
//!
//! - [`args`]: the command line;
//! - [`search`], [`calibrate`]: many runs for one answer;
//! - [`schedule`]: WHEN: closed loop, open loop at fixed or Poisson moments; pure arithmetic;
//! - [`client`]: HOW: one epoll loop per thread; [`connection`] is one of its connections, [`response`] reads
//!   what comes back, [`crowd`] is those that only want to be there;
//! - [`tally`] and [`histogram`]: what one thread counted;
//! - [`preflight`], [`run`], [`control`], [`watch`]: whether it can fit, the threads' beginning and end, phases,
//!   signals;
//! - [`verdict`], [`gate`]: whether to trust it, and whether it is good enough;
//! - [`evenness`], [`summary`], [`text`]: what it means, for programs and for people; [`explain`] defines it.

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
pub mod response;

pub mod histogram;
pub mod tally;

pub mod control;
pub mod preflight;
pub mod run;
pub mod watch;

pub mod evenness;
pub mod explain;
pub mod summary;
pub mod text;
pub mod verdict;
