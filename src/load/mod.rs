//! What the load generator is made of. *When* to send and *how* to send know nothing of each other:
//!
//! - [`args`]: the command line;
//! - [`schedule`]: WHEN: closed loop, open loop at fixed or Poisson moments; pure arithmetic;
//! - [`client`]: HOW: one epoll loop per thread; [`connection`] is one of its connections, [`response`] reads
//!   what comes back, [`crowd`] is those that only want to be there;
//! - [`tally`] and [`histogram`]: what one thread counted;
//! - [`run`], [`control`], [`watch`]: the threads' beginning and end, phases, signals;
//! - [`evenness`], [`summary`], [`text`]: what it means, for programs and for people.

pub mod args;
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
pub mod interval;
pub mod tally;

pub mod audience;
pub mod control;
pub mod live;
pub mod run;
pub mod watch;

pub mod evenness;
pub mod summary;
pub mod text;
