//! The idle crowd: connections that send nothing and only want to be there. What does it cost a server to
//! keep them, and does it slow those that work?

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use socket2::Socket;

use crate::load::client::route::{Route, errno};
use crate::load::counts::tally::{Failures, count};
use crate::sys::epoll::{Epoll, Interest};

/// Handshakes under way at one time: few enough for the backlog of any server.
const MAX_IN_FLIGHT: usize = 256;
/// How long one wait lasts at most, so that Ctrl-C is heard.
const LONGEST_WAIT: Duration = Duration::from_millis(50);

#[derive(Default)]
pub struct Crowd {
    members: Vec<Socket>,
    pub failures: Failures,
}

impl Crowd {
    /// Opens `size` connections, in batches. One that fails is counted and not tried again; when the first
    /// batch fails altogether, its errno is the result. `interrupted` ends the opening early.
    pub fn open(
        route: &Route,
        size: usize,
        timeout: Duration,
        interrupted: &dyn Fn() -> bool,
    ) -> nix::Result<Crowd> {
        let mut crowd = Crowd { members: Vec::with_capacity(size), failures: Failures::default() };
        let mut asked = 0;
        while asked < size && !interrupted() {
            let batch = MAX_IN_FLIGHT.min(size - asked);
            let last_error = crowd.open_batch(route, batch, timeout, interrupted)?;
            if let Some(errno) = last_error.filter(|_| crowd.members.is_empty()) {
                return Err(errno);
            }
            asked += batch;
        }
        Ok(crowd)
    }

    /// Connections that came about.
    pub fn established(&self) -> u64 {
        self.members.len() as u64
    }

    /// Members that the server has closed by now: it did not want an idle crowd.
    pub fn lost(&self) -> u64 {
        let peek = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        let is_closed = |socket: &&Socket| {
            !matches!(recv(socket.as_raw_fd(), &mut [0], peek), Ok(1..) | Err(Errno::EAGAIN))
        };
        self.members.iter().filter(is_closed).count() as u64
    }

    /// Returns the errno of the last failure, if there was one.
    fn open_batch(
        &mut self,
        route: &Route,
        size: usize,
        timeout: Duration,
        interrupted: &dyn Fn() -> bool,
    ) -> nix::Result<Option<Errno>> {
        let mut epoll = Epoll::new(size)?;
        let mut last_error = None;
        let mut pending: Vec<Option<Socket>> = Vec::with_capacity(size);
        for token in 0..size as u64 {
            let socket = route.connect(token).and_then(|socket| {
                epoll.add(&socket, token, Interest::EPOLLOUT | Interest::EPOLLET)?;
                Ok(socket)
            });
            pending.push(socket.map_err(|errno| last_error = Some(self.failed(errno))).ok());
        }
        let mut left = pending.iter().flatten().count();
        let began = Instant::now();
        while left > 0 && began.elapsed() < timeout && !interrupted() {
            for i in 0..epoll.wait(Some(LONGEST_WAIT))? {
                if let Some(socket) = pending[epoll.report(i).token as usize].take() {
                    left -= 1;
                    last_error = self.join(socket).or(last_error);
                }
            }
        }
        for _ in pending.into_iter().flatten().filter(|_| !interrupted()) {
            last_error = Some(self.failed(Errno::ETIMEDOUT));
        }
        Ok(last_error)
    }

    fn join(&mut self, socket: Socket) -> Option<Errno> {
        match socket.take_error() {
            Ok(None) => {
                self.members.push(socket);
                None
            }
            Ok(Some(error)) | Err(error) => Some(self.failed(errno(error))),
        }
    }

    fn failed(&mut self, errno: Errno) -> Errno {
        count(&mut self.failures.connect, errno, 1);
        errno
    }
}
