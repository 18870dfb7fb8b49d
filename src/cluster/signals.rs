//! What the signals of supervisors and people mean to a master. It reads them one after another (signalfd(2)); each worker
//! starts with none of them blocked.

use std::io::IsTerminal;
use std::time::Duration;

use nix::sys::signal::Signal::{self, *};

use super::poller::Poller;
use super::token::Token;
use crate::sys::epoll::Interest;
use crate::sys::signal::SignalQueue;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Stop,
    Reload,
    ReopenFiles,
    /// A child has ended.
    Reap,
    Nothing,
}

/// These would end the master, or stop it where a background process writes to its terminal (SIGTTOU): they are taken, and
/// ignored. SIGTSTP and SIGCONT keep their meaning. With SIGXFSZ blocked, a log at `ulimit -f` is an error of write(2).
const IGNORED: [Signal; 9] = [SIGUSR2, SIGPIPE, SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGTTIN, SIGTTOU, SIGXFSZ];

pub struct Signals {
    queue: SignalQueue,
    /// Our standard error was a terminal when we began.
    had_terminal: bool,
}

impl Signals {
    /// From now on signals wait here.
    pub fn open(poller: &Poller) -> nix::Result<Signals> {
        let mut signals = vec![SIGHUP, SIGQUIT, SIGUSR1];
        signals.extend(IGNORED);
        let queue = SignalQueue::open_for(&signals)?;
        poller.add(&queue, Token::Signals, Interest::EPOLLIN)?;
        Ok(Signals { queue, had_terminal: std::io::stderr().is_terminal() })
    }

    pub fn next(&self) -> nix::Result<Request> {
        Ok(match self.queue.wait(Some(Duration::ZERO))? {
            Some(SIGTERM | SIGINT | SIGQUIT) => Request::Stop,
            // Sent because the terminal was closed, it means what it always does: the end.
            Some(SIGHUP) if self.had_terminal && !std::io::stderr().is_terminal() => Request::Stop,
            Some(SIGHUP) => Request::Reload,
            Some(SIGUSR1) => Request::ReopenFiles,
            Some(SIGCHLD) => Request::Reap,
            _ => Request::Nothing,
        })
    }

    /// Waits a moment for any of them.
    pub fn pause(&self) {
        let _ = self.queue.wait(Some(Duration::from_millis(10)));
    }
}
