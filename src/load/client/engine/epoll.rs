//! Two system calls per request: one send, one recv.
//!
//! - EPOLLOUT is waited for only after EAGAIN: when the last answer has been read, the socket buffer is empty.
//! - Registration is edge-triggered: no epoll_ctl(2) after the one that adds the socket. A recv(2) that returns less
//!   than was asked for has emptied the socket (epoll(7), question 9): no second one has to say EAGAIN.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use socket2::Socket;

use crate::load::client::engine::{Engine, RequestBytes, STOP, SendProgress, SocketReady};
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::socket::{receive_now, send_now};

/// Reports per wait: enough to spread the cost of the call, few enough that none is old when its turn comes.
const MAX_REPORTS: usize = 256;
const DATA: Interest = Interest::EPOLLIN.union(Interest::EPOLLRDHUP).union(Interest::EPOLLET);

pub struct EpollEngine {
    epoll: Epoll,
    buffer: Box<[u8]>,
    reports: usize,
    next: usize,
}

impl Engine for EpollEngine {
    /// Larger than most answers, so that one recv(2) takes all; one buffer per thread, so that it stays in the cache.
    const CAPACITY: usize = 64 * 1024;

    fn new(connections: usize, stop_event: BorrowedFd, _messages: [&[u8]; 2]) -> nix::Result<EpollEngine> {
        let epoll = Epoll::new(MAX_REPORTS.min(connections + 1))?;
        // Edge-triggered, because it is never read: each signal is one report for each thread.
        epoll.add(stop_event, STOP, Interest::EPOLLIN | Interest::EPOLLET)?;
        Ok(EpollEngine { epoll, buffer: vec![0; EpollEngine::CAPACITY].into(), reports: 0, next: 0 })
    }

    fn begin(&mut self, token: u64, socket: &Socket, progress: SendProgress) -> nix::Result<()> {
        let room = if progress == SendProgress::Sent { Interest::empty() } else { Interest::EPOLLOUT };
        self.epoll.add(socket, token, DATA | room)
    }

    fn established(&mut self, _token: u64, _socket: &Socket) -> nix::Result<()> {
        Ok(())
    }

    #[inline]
    fn send(&mut self, _: u64, socket: &Socket, (_, bytes): RequestBytes, part: Range<usize>) -> nix::Result<usize> {
        send_now(socket, &bytes[part])
    }

    fn await_room(&mut self, token: u64, socket: &Socket) -> nix::Result<()> {
        self.epoll.modify(socket, token, DATA | Interest::EPOLLOUT)
    }

    /// No other process holds the descriptor, so closing it also ends its registration (epoll(7), question 6).
    fn close(&mut self, _token: u64, _socket: &Socket) {}

    fn wait(&mut self, timeout: Option<Duration>) -> nix::Result<()> {
        self.reports = self.epoll.wait(timeout)?;
        self.next = 0;
        Ok(())
    }

    #[inline]
    fn next(&mut self) -> Option<SocketReady> {
        if self.next == self.reports {
            return None;
        }
        let report = self.epoll.report(self.next);
        self.next += 1;
        let ends = report.flags.intersects(Interest::EPOLLRDHUP | Interest::EPOLLHUP | Interest::EPOLLERR);
        // An error too is found out by trying, hence `room`.
        let data = report.flags != Interest::EPOLLOUT;
        Some(SocketReady { token: report.token, room: true, data, ends, failed_send: None })
    }

    #[inline]
    fn receive(&mut self, _token: u64, socket: &Socket) -> nix::Result<usize> {
        receive_now(socket, &mut self.buffer)
    }

    #[inline]
    fn data(&self) -> &[u8] {
        &self.buffer
    }
}
