//! What a master needs to keep workers of any program alive, in the protocol of Node's cluster. In reading order:
//!
//! - [`protocol`]: the messages of workers and the master's answers; [`node`]: what matters of Node's command line;
//! - [`log_file`]: a file for lines that never waits; [`event_log`]: what happens, line by line;
//! - [`token`] and [`poller`]: what the master waits for, and until when; [`signals`]: what signals ask for;
//! - [`output`]: what the workers write; [`worker`]: one worker process; [`workers`]: all of them, by number, with
//!   [`restart_counts`];
//! - [`listening_socket`]: one listening socket of the program; [`sockets`]: all of them, and the way of a connection;
//! - [`reload`]: how far a rolling reload has come; [`restarts`]: how many restarts are too many;
//! - [`control`], [`status`] and [`ctl`]: the two ends of the control socket; [`notifier`]: a file that all workers need;
//! - [`master`]: waits for all of that; [`args`]: its command line.
//!
//! What is to be done about an event is decided by the program in `bins/`, as in every architecture.

pub mod args;
pub mod control;
pub mod ctl;
pub mod event_log;
pub mod listening_socket;
pub mod log_file;
pub mod master;
pub mod node;
pub mod notifier;
pub mod output;
pub mod poller;
pub mod protocol;
pub mod reload;
pub mod restart_counts;
pub mod restarts;
pub mod signals;
pub mod sockets;
pub mod status;
pub mod token;
pub mod worker;
pub mod workers;

pub use args::{MasterArgs, remind_of_dashes};
pub use ctl::CtlArgs;
pub use master::{Event, Master};
pub use restarts::Restarts;
pub use sockets::Acceptor;
