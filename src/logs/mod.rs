//! What other programs write, line by line, into files. As the data travels:
//!
//! - [`lines`]: whole lines out of the bytes of a pipe, each as text or as JSON;
//! - [`clock`]: the time before a line;
//! - [`append_file`]: a file that lines are added to: rotated, emptied, opened anew, and tried again where it is full.

pub mod append_file;
pub mod clock;
pub mod lines;
