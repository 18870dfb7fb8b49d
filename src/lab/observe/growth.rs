//! By how much a server's first process grows while it works: memory, descriptors and children that were not reaped. A
//! server that runs for years must not grow.

use serde::{Deserialize, Serialize};

use crate::sys::procfs::{Stat, descriptors, resident_kib};

/// The server's first process at the end of the measurement, less what it was at the beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Growth {
    pub rss_kib: i64,
    pub fds: i64,
    pub zombies: i64,
}

/// A process at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    rss_kib: i64,
    fds: i64,
    zombies: i64,
}

impl Size {
    /// `None` when there is no such process.
    pub fn of(pid: i32) -> Option<Size> {
        Some(Size {
            rss_kib: resident_kib(pid)? as i64,
            fds: descriptors(pid)? as i64,
            zombies: Stat::everybody().filter(|stat| stat.parent == pid && stat.is_zombie()).count() as i64,
        })
    }

    pub fn since(self, before: Size) -> Growth {
        Growth {
            rss_kib: self.rss_kib - before.rss_kib,
            fds: self.fds - before.fds,
            zombies: self.zombies - before.zombies,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::observe::processes::poll_until;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    #[test]
    fn descriptors_and_zombies_are_seen() {
        let mut child = Command::new("sh")
            .args(["-c", "exec 9</dev/null; true & exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("sh starts");
        let pid = child.id() as i32;
        // cat does not know that it has a child, and never waits for it.
        let seen = poll_until(Duration::from_secs(5), || Size::of(pid).filter(|size| size.zombies == 1));
        drop(child.stdin.take());
        child.wait().expect("cat ends");
        let size = seen.expect("a zombie");
        assert!(size.fds >= 4 && size.rss_kib > 0, "{size:?}");
        assert!(Size::of(pid).is_none());
    }

    #[test]
    fn what_is_gained_is_a_difference() {
        let before = Size { rss_kib: 100, fds: 7, zombies: 0 };
        let growth = Size { rss_kib: 90, fds: 9, zombies: 1 }.since(before);
        assert_eq!(growth, Growth { rss_kib: -10, fds: 2, zombies: 1 });
    }
}
