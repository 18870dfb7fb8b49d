//! The call in which an event loop waits for all its descriptors at once: epoll(7), or one of the two before it.
//!
//! epoll is told once of each connection and reports changes (edge-triggered). select and poll are asked anew each
//! time, and report what is so (level-triggered): they are told only what the connection waits for at the moment, or
//! they would report the same bytes again and again.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::accept::log_once;
use crate::failure::Failure;
use crate::sys::epoll::{Epoll, Interest, Ready};
use crate::sys::poll::{Call, PollSet};

/// Reports taken per wait of epoll: enough to spread its cost, few enough that no connection waits long for its turn.
pub const REPORTS_PER_WAIT: usize = 256;

pub enum Multiplexer {
    Epoll(Epoll),
    PollSet(PollSet),
}

impl Multiplexer {
    pub fn epoll() -> Result<Multiplexer, Failure> {
        let epoll = Epoll::new(REPORTS_PER_WAIT).map_err(|errno| Failure::new("open an epoll instance", errno))?;
        Ok(Multiplexer::Epoll(epoll))
    }

    pub fn poll() -> Multiplexer {
        Multiplexer::PollSet(PollSet::new(Call::Poll))
    }

    /// A connection with a descriptor from FD_SETSIZE on could not be watched. So this process opens no such
    /// descriptor: the connection waits in the accept queue, as always when there is no descriptor left.
    pub fn select() -> Result<Multiplexer, Failure> {
        let most = libc::FD_SETSIZE as u64;
        let lower = || {
            let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
            if soft > most {
                setrlimit(Resource::RLIMIT_NOFILE, most, hard)?;
                log_once(format_args!(
                    "select watches {most} sockets at most: this process opens no more; other connections wait"
                ));
            }
            Ok(())
        };
        let lowered = lower().map_err(|errno: nix::Error| Failure::new(format_args!("set ulimit -n {most}"), errno));
        lowered.map(|()| Multiplexer::PollSet(PollSet::new(Call::Select)))
    }

    /// Watches a descriptor that is not a connection: the listener, or one that tells it to stop.
    pub fn add(&mut self, fd: impl AsFd, token: u64, interest: Interest) -> nix::Result<()> {
        match self {
            Multiplexer::Epoll(epoll) => epoll.add(fd, token, interest),
            Multiplexer::PollSet(set) => set.set(fd, token, interest),
        }
    }

    pub fn remove(&mut self, fd: impl AsFd) -> nix::Result<()> {
        match self {
            Multiplexer::Epoll(epoll) => epoll.delete(fd),
            Multiplexer::PollSet(set) => {
                set.remove(fd);
                Ok(())
            }
        }
    }

    /// Watches a connection that awaits this, EPOLLIN, EPOLLOUT or nothing. Registering reports what is ready already.
    pub fn await_of(&mut self, connection: impl AsFd, token: u64, awaited: Interest, is_new: bool) -> nix::Result<()> {
        match self {
            Multiplexer::PollSet(set) => set.set(connection, token, awaited),
            Multiplexer::Epoll(epoll) => {
                let interest = Interest::EPOLLIN | Interest::EPOLLRDHUP | Interest::EPOLLET | awaited;
                if is_new {
                    epoll.add(connection, token, interest)
                } else if awaited.contains(Interest::EPOLLOUT) {
                    epoll.modify(connection, token, interest)
                } else {
                    Ok(())
                }
            }
        }
    }

    /// Before a connection is closed that nobody else holds: the close ends its registration with epoll.
    pub fn forget(&mut self, connection: impl AsFd) {
        if let Multiplexer::PollSet(set) = self {
            set.remove(connection);
        }
    }

    /// Waits until something is ready or the time is up, and returns how many reports there are.
    pub fn wait(&mut self, timeout: Option<Duration>) -> nix::Result<usize> {
        match self {
            Multiplexer::Epoll(epoll) => epoll.wait(timeout),
            Multiplexer::PollSet(set) => set.wait(timeout),
        }
    }

    pub fn report(&self, i: usize) -> Ready {
        match self {
            Multiplexer::Epoll(epoll) => epoll.report(i),
            Multiplexer::PollSet(set) => set.report(i),
        }
    }
}
