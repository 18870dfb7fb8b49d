//! The system calls as thin safe lines. All `unsafe` of the toolkit is in this folder: each function takes owned
//! or borrowed descriptors, returns an owned one at once, checks the result, and says why it is sound.

pub mod bpf;
pub mod epoll;
pub mod fd;
pub mod lock;
pub mod memory;
pub mod namespace;
pub mod perf;
pub mod process;
pub mod procfs;
pub mod signal;
pub mod socket;
pub mod terminal;
pub mod uring;
