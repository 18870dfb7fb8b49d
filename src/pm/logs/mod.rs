//! What the applications write, from their pipes into files ([`writer`]), and from the files to a person ([`follow`]). The
//! lines themselves, and the files, are those of [`crate::logs`].

pub mod follow;
pub mod writer;

pub use follow::{FollowOptions, FollowedFile, ShownAs, follow};
pub use writer::{LogFiles, LogSettings, LogWriter};
