//! The process manager: it keeps applications alive, of any program (fork mode) or of several workers that share a
//! port (cluster mode). In reading order, which is the way of a command:
//!
//! - [`args`]: the command line; [`config`]: what an application is, out of a file or the command line;
//! - `home`: the folder of one manager; `protocol`: what client and daemon say to each other; `client`: asks the
//!   daemon, and starts it when it is not there;
//! - `daemon`: waits for clients, processes and times, in one loop; `god`: the applications and their processes, and
//!   what happens to them; [`restarts`]: whether a process that ended starts again;
//! - `fork_mode`: starts and stops one process; `cluster_mode`: does that with a cluster's workers;
//! - [`logs`]: what the processes write; [`watch`]: files that changed; `dump`: what survives the daemon;
//! - `output`: what a person reads.

pub mod args;
pub mod config;
pub mod cron;
pub mod logs;
pub mod restarts;
pub mod watch;
