//! What a master needs that keeps workers of any program alive, in the protocol of Node's cluster. In reading order:
//!
//! - [`protocol`]: what workers say and what they are answered; [`events`]: what is told of it, in a [`journal`] too;
//! - [`worker`]: one worker process; [`roster`]: all of them; [`output`]: what they write;
//! - [`handle`]: one listening socket of the program, and who is free for it;
//! - [`token`] and [`timers`]: what the master waits for, and until when;
//! - [`master`]: waits for all of that; [`args`]: its command line; [`lives`]: its books;
//! - [`restarts`]: how many are too many;
//! - [`control`] and [`ctl`]: the two ends of the control socket; [`notifier`]: a file that all workers want to know.
//!
//! What is to be done about an event is decided by the program, as in every architecture.

pub mod args;
pub mod control;
pub mod ctl;
pub mod events;
pub mod handle;
pub mod journal;
pub mod lives;
pub mod master;
pub mod notifier;
pub mod output;
pub mod protocol;
pub mod restarts;
pub mod roster;
pub mod timers;
pub mod token;
pub mod worker;

pub use args::{MasterArgs, remind_of_dashes};
pub use ctl::CtlArgs;
pub use master::{Happening, Master};
pub use restarts::Restarts;
pub use token::Uid;
