//! What the processes write: whole lines, with time stamps.
