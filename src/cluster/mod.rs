//! What a master needs that keeps workers of any program alive, in the protocol of Node's cluster. In reading order:
//!
//! - [`protocol`]: what workers say and what they are answered; [`events`]: what is told of it on standard error;
//! - [`worker`]: one worker process; [`roster`]: all of them;
//! - [`handle`]: one listening socket of the program, and who is free for it;
//! - [`token`] and [`timers`]: what the master waits for, and until when;
//! - [`master`]: waits for all of that; [`restarts`]: how many are too many.
//!
//! What is to be done about an event is decided by the program, as in every architecture.

pub mod events;
pub mod handle;
pub mod master;
pub mod protocol;
pub mod restarts;
pub mod roster;
pub mod timers;
pub mod token;
pub mod worker;

pub use master::{Happening, Master, Settings};
pub use restarts::Restarts;
pub use token::Uid;
