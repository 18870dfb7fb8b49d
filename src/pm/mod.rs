//! The process manager: it keeps applications alive, of any program (fork mode) or of several workers that share a
//! port (cluster mode). In reading order, which is the way of a command:
//!
//! - [`args`]: the command line; [`commands`]: what each command asks, and prints;
//! - [`config`]: what an application is, out of a file or the command line;
//! - [`home`]: the folder of one manager; [`protocol`]: what client and daemon say to each other; [`client`]: asks the
//!   daemon, and starts it when it is not there;
//! - [`daemon`]: waits for clients, processes and times, in one loop; [`god`]: the applications and their processes, and
//!   what happens to them; [`restarts`] and [`cron`]: whether and when a process starts again;
//! - [`program`]: whether what a process runs is there; [`fork_mode`]: how it is started; [`json_lines`]: how it says how it
//!   is; [`launch`]: how it is known again; [`process_tree`]: what it has started;
//! - [`logs`]: what the processes write; [`watch`]: files that changed; [`dump`]: what survives the daemon;
//! - [`output`]: what a person reads; [`startup`]: the systemd unit, and what systemd and the daemon say to each other.

pub mod args;
pub mod client;
pub mod commands;
pub mod config;
pub mod cron;
pub mod daemon;
pub mod dump;
pub mod fork_mode;
pub mod god;
pub mod home;
mod json_lines;
pub mod launch;
pub mod logs;
pub mod output;
pub mod process_tree;
pub mod program;
pub mod protocol;
pub mod restarts;
pub mod startup;
pub mod watch;
