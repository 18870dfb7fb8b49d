//! What the applications write, from their pipes into files ([`writer`]), and from the files to a person ([`follow`]). The
//! lines themselves, and the files, are those of [`crate::logs`]. What the daemon says is in [`own_log`].

pub mod app_log;
pub mod follow;
pub mod own_log;
pub mod writer;

pub use app_log::AppLog;
pub use follow::{LaterLogs, follow};
pub use writer::{LogFiles, LogWriter};
