//! select(2) and poll(2), the calls before epoll(7): the kernel keeps nothing between two calls, so each call passes
//! all descriptors and looks at all of them.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::time::TimeSpec;

use super::epoll::{Interest, Ready};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// No descriptor from FD_SETSIZE (1,024) on, and a client that has gone shows only where something is awaited of
    /// it.
    Select,
    Poll,
}

/// The descriptors that one call watches, each with a token. Level-triggered: what is ready is reported by every wait.
pub struct PollSet {
    call: Call,
    entries: Vec<libc::pollfd>,
    /// The token of the entry at the same place.
    tokens: Vec<u64>,
    /// The place of a descriptor's entry.
    places: Vec<Option<usize>>,
    reports: Vec<Ready>,
}

impl PollSet {
    pub fn new(call: Call) -> PollSet {
        PollSet { call, entries: Vec::new(), tokens: Vec::new(), places: Vec::new(), reports: Vec::new() }
    }

    /// Watches a descriptor, or another interest of one that is watched.
    ///
    /// # Errors
    /// EINVAL for a descriptor that select(2) cannot watch: its bit would be outside of the set.
    pub fn set(&mut self, fd: impl AsFd, token: u64, interest: Interest) -> nix::Result<()> {
        let fd = fd.as_fd().as_raw_fd();
        if self.call == Call::Select && fd as usize >= libc::FD_SETSIZE {
            return Err(Errno::EINVAL);
        }
        let number = fd as usize;
        if number >= self.places.len() {
            self.places.resize(number + 1, None);
        }
        let place = *self.places[number].get_or_insert_with(|| {
            self.entries.push(libc::pollfd { fd, events: 0, revents: 0 });
            self.tokens.push(token);
            self.entries.len() - 1
        });
        self.tokens[place] = token;
        // The flags of epoll(7) have the values of those of poll(2).
        self.entries[place].events = interest.bits() as i16;
        Ok(())
    }

    /// Needed before a descriptor is closed: the next one with its number is another.
    pub fn remove(&mut self, fd: impl AsFd) {
        let Some(place) = self.places.get_mut(fd.as_fd().as_raw_fd() as usize).and_then(Option::take) else { return };
        self.entries.swap_remove(place);
        self.tokens.swap_remove(place);
        if let Some(moved) = self.entries.get(place) {
            self.places[moved.fd as usize] = Some(place);
        }
    }

    /// As [`Epoll::wait`](super::epoll::Epoll::wait).
    ///
    /// # Errors
    /// EBADF when a descriptor of the set was closed (select only), EINVAL when it has more than RLIMIT_NOFILE allows
    /// (poll only), ENOMEM.
    pub fn wait(&mut self, timeout: Option<Duration>) -> nix::Result<usize> {
        self.reports.clear();
        let timeout = timeout.map(TimeSpec::from_duration);
        let timeout = timeout.as_ref().map_or(std::ptr::null(), |timeout| std::ptr::from_ref(timeout.as_ref()));
        let waited = match self.call {
            Call::Select => self.select(timeout),
            Call::Poll => self.poll(timeout),
        };
        match waited {
            Err(Errno::EINTR) | Ok(0) => return Ok(0),
            waited => waited?,
        };
        let reported = self.entries.iter().zip(&self.tokens).filter(|(entry, _)| entry.revents != 0);
        self.reports.extend(reported.map(|(entry, &token)| Ready {
            token,
            flags: Interest::from_bits_truncate(libc::c_int::from(entry.revents)),
        }));
        Ok(self.reports.len())
    }

    pub fn report(&self, i: usize) -> Ready {
        self.reports[i]
    }

    fn poll(&mut self, timeout: *const libc::timespec) -> nix::Result<usize> {
        let (entries, count) = (self.entries.as_mut_ptr(), self.entries.len() as libc::nfds_t);
        // SAFETY: the kernel reads and writes `count` entries of the vector, which is borrowed mutably; the timespec,
        // if any, outlives the call, and a null signal mask means "leave it alone" (ppoll(2)).
        let ready = Errno::result(unsafe { libc::ppoll(entries, count, timeout, std::ptr::null()) })?;
        Ok(ready as usize)
    }

    /// The call writes its answer over the sets, so they are made anew for each.
    fn select(&mut self, timeout: *const libc::timespec) -> nix::Result<usize> {
        // SAFETY: a set of bits, for which all zeros is a value: the empty one (FD_ZERO, select(2)).
        let (mut readable, mut writable): (libc::fd_set, libc::fd_set) = unsafe { std::mem::zeroed() };
        let mut highest: RawFd = -1;
        for entry in &self.entries {
            for (set, awaited) in [(&mut readable, libc::POLLIN), (&mut writable, libc::POLLOUT)] {
                if entry.events & awaited != 0 {
                    // SAFETY: the descriptor is below FD_SETSIZE (`set` refuses others), so its bit is inside.
                    unsafe { libc::FD_SET(entry.fd, set) };
                    highest = highest.max(entry.fd);
                }
            }
        }
        // SAFETY: both sets have room for all descriptors up to `highest`, and are borrowed mutably; a null set is an
        // empty one, and the other pointers are as for ppoll(2) (pselect(2)).
        let selected = unsafe {
            let nobody = std::ptr::null_mut();
            libc::pselect(highest + 1, &raw mut readable, &raw mut writable, nobody, timeout, std::ptr::null())
        };
        let ready = Errno::result(selected)?;
        for entry in &mut self.entries {
            entry.revents = 0;
            for (set, awaited) in [(&readable, libc::POLLIN), (&writable, libc::POLLOUT)] {
                // SAFETY: as above.
                if unsafe { libc::FD_ISSET(entry.fd, set) } {
                    entry.revents |= awaited;
                }
            }
        }
        Ok(ready as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    fn waited(set: &mut PollSet) -> Vec<(u64, Interest)> {
        let count = set.wait(Some(Duration::ZERO)).unwrap();
        (0..count).map(|i| (set.report(i).token, set.report(i).flags)).collect()
    }

    #[test]
    fn what_is_awaited_is_reported_until_it_is_taken_and_nothing_else_is() {
        for call in [Call::Select, Call::Poll] {
            let mut set = PollSet::new(call);
            let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().unwrap()).collect();
            for (token, (ours, _)) in (0..).zip(&pairs) {
                set.set(ours, token, Interest::EPOLLIN).unwrap();
            }
            assert_eq!(waited(&mut set), [], "{call:?}");
            (&pairs[2].1).write_all(b"x").unwrap();
            for _ in 0..2 {
                assert_eq!(waited(&mut set), [(2, Interest::EPOLLIN)], "{call:?}");
            }
            set.set(&pairs[1].0, 7, Interest::EPOLLOUT).unwrap();
            set.remove(&pairs[0].0);
            set.remove(&pairs[0].0);
            let mut both = waited(&mut set);
            both.sort_by_key(|(token, _)| *token);
            assert_eq!(both, [(2, Interest::EPOLLIN), (7, Interest::EPOLLOUT)], "{call:?}");
            set.set(&pairs[2].0, 2, Interest::empty()).unwrap();
            assert_eq!(waited(&mut set), [(7, Interest::EPOLLOUT)], "{call:?}");
        }
    }

    #[test]
    fn select_refuses_a_descriptor_whose_bit_would_be_outside_of_the_set() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
        let beyond = nix::fcntl::fcntl(&ours, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(libc::FD_SETSIZE as i32));
        let beyond = beyond.expect("a hard limit of more than 1,024 descriptors (ulimit -Hn)");
        // SAFETY: fcntl(2) returned this descriptor as new, so nobody else owns it.
        let beyond = unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(beyond) };
        assert_eq!(PollSet::new(Call::Select).set(&beyond, 0, Interest::EPOLLIN), Err(Errno::EINVAL));
        assert_eq!(PollSet::new(Call::Poll).set(&beyond, 0, Interest::EPOLLIN), Ok(()));
    }
}
