//! What the applications write, from their pipes into files, and from the files to a person. As the data travels:
//!
//! - [`lines`]: whole lines out of the bytes of a pipe, each as text or as JSON;
//! - [`time_stamp`]: the time before a line, as `log_date_format` says;
//! - [`file`]: a file that lines are added to: rotated, emptied, opened anew, and tried again where it is full;
//! - [`writer`]: one output of one process: from its pipe, line by line, to its files;
//! - [`follow`]: the last lines of several files, and each new one.

pub mod file;
pub mod follow;
pub mod lines;
pub mod time_stamp;
pub mod writer;

pub use file::{LogFiles, Rotation};
pub use follow::{FollowOptions, FollowedFile, ShownAs, follow};
pub use lines::{LineFormat, LogStream};
pub use writer::{LogSettings, LogWriter};
