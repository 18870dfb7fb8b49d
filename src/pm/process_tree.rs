//! A process and what it has started: children and theirs, whatever session or group they are in, and also those whose
//! parent has ended, as long as they are in a session that was seen.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::launch::Launch;
use crate::sys::procfs::{Stat, with_descendants};

/// In place of a leader that is gone.
pub const NOBODY: i32 = -1;

/// What was there at the last look.
pub struct ProcessTree {
    leader: i32,
    /// Its mark, by which one is found whose parent has ended.
    launch: Launch,
    members: Vec<Member>,
}

#[derive(Clone, Copy)]
struct Member {
    pid: i32,
    started: u64,
    session: i32,
}

impl ProcessTree {
    /// The tree of a process that leads a session, or of [`NOBODY`].
    pub fn new(leader: i32, launch: Launch) -> ProcessTree {
        ProcessTree { leader, launch, members: Vec::new() }
    }

    /// Looks at who is there now, and sends `signal` to those that were not there before, except for the leader. The first
    /// look has to be made before the leader is reaped: until then its number is no other session's.
    pub fn look(&mut self, all: &[Stat], signal: Signal) {
        let is_first = self.members.is_empty();
        let was_there =
            |stat: &Stat| self.members.iter().any(|member| (member.pid, member.started) == (stat.pid, stat.started));
        let belongs = |stat: &Stat| {
            let is_of_session = self.members.iter().any(|member| member.session == stat.session);
            is_of_session
                || is_first && stat.session == self.leader
                || was_there(stat)
                || stat.parent == 1 && stat.is_alive() && self.launch.has_marked(stat.pid)
        };
        let found = with_descendants(all, belongs);
        let alive: Vec<&Stat> = found.into_iter().filter(|stat| stat.is_alive()).collect();
        alive.iter().filter(|stat| !was_there(stat)).for_each(|stat| self.send(stat.pid, signal));
        let member = |stat: &&Stat| Member { pid: stat.pid, started: stat.started, session: stat.session };
        self.members = alive.iter().map(member).collect();
    }

    /// Sends a signal to all but the leader.
    pub fn signal(&self, signal: Signal) {
        self.members.iter().for_each(|member| self.send(member.pid, signal));
    }

    /// Nobody was there at the last look.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    fn send(&self, pid: i32, signal: Signal) {
        if pid != self.leader {
            // One that has ended meanwhile needs no signal.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}
