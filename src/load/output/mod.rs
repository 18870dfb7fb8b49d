//! The result as text, as files and on the terminal while it comes about.

pub mod destination;
pub mod explain;
pub mod export;
pub mod heading;
pub mod live;
pub mod text;
