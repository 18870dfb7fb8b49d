//! Flags of programs that were split, one idea to a program: command lines in scripts and lessons that are older than
//! the split go on working. `event-loop --scenario FILE` is in the contract.

#![forbid(unsafe_code)]

use std::ffi::OsString;

use acceptlab::server::moved_flags;

const MOVED: [(&str, &str, &str); 12] = [
    ("shared-accept", "--lock none", ""),
    ("shared-accept", "--lock accept-mutex --wait epoll", "accept-mutex"),
    ("shared-accept", "--lock fcntl --wait blocking", "prefork-lock --lock fcntl"),
    ("shared-accept", "--lock flock --wait blocking", "prefork-lock --lock flock"),
    ("shared-accept", "--lock semaphore --wait blocking", "prefork-lock --lock semaphore"),
    ("shared-accept", "--lock mutex --wait blocking", "prefork-lock --lock mutex"),
    ("shared-accept", "--wait blocking", "prefork"),
    ("shared-accept", "--wait poll", "prefork-poll"),
    ("shared-accept", "--wait epoll-shared", "prefork-poll --call epoll"),
    ("master-dispatch", "--pass connection", ""),
    ("master-dispatch", "--pass listener", "pass-listener"),
    ("event-loop", "--scenario", "scenario"),
];

/// The arguments of this program. Does not return where they are another program's now: that one goes on.
pub fn arguments() -> Vec<OsString> {
    moved_flags::arguments(env!("CARGO_BIN_NAME"), &MOVED)
}
