//! What a master needs to keep workers of any program alive, in the protocol of Node's cluster. In reading order:
//!
//! - [`protocol`]: the messages of workers and the master's answers; [`node`]: what matters of Node's command line;
//! - [`poller`]: what the master waits for, and until when; [`signals`]: those it takes; [`log`]: what it writes;
//! - [`output`]: what the workers write; [`worker`]: one worker process; [`workers`]: all of them, by number;
//! - [`restarts`]: how many are too many, how far a reload has come, and what happened to workers, counted;
//! - [`listening_socket`]: one listening socket of the program; [`sockets`]: all of them, and the way of a connection;
//! - [`control`] and [`ctl`]: the two ends of the control socket; [`notifier`]: a file that all workers need;
//! - [`master`]: waits for all of that; [`args`]: its command line.
//!
//! What is to be done about an event is decided by the program in `bins/`, as in every architecture.

pub mod args;
pub mod control;
pub mod ctl;
pub mod listening_socket;
pub mod log;
pub mod master;
pub mod node;
pub mod notifier;
pub mod output;
pub mod poller;
pub mod protocol;
pub mod restarts;
pub mod signals;
pub mod sockets;
pub mod worker;
pub mod workers;

pub use args::{MasterArgs, SupervisionArgs, remind_of_dashes};
pub use ctl::CtlArgs;
pub use master::{Master, MasterEvent};
pub use restarts::Restarts;
pub use sockets::AcceptingProcess;
