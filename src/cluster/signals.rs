//! What the signals of supervisors and people mean to a master. It reads them one after another (signalfd(2)); each
//! worker starts with none of them blocked.

use std::io::IsTerminal;

use nix::sys::signal::Signal::{self, *};

use super::poller::{Poller, Token};
use crate::sys::epoll::Interest;
use crate::sys::signal::SignalQueue;

/// These would end the master, or stop it where a background process writes to its terminal (SIGTTOU): they are
/// ignored. SIGTSTP and SIGCONT keep their meaning. Without SIGXFSZ, a log at `ulimit -f` is an error of write(2).
const IGNORED: [Signal; 9] = [SIGUSR2, SIGPIPE, SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGTTIN, SIGTTOU, SIGXFSZ];

pub struct Signals {
    pub queue: SignalQueue,
    /// Our standard error was a terminal when we began.
    had_terminal: bool,
}

impl Signals {
    /// From now on signals wait here.
    pub fn open(poller: &Poller) -> nix::Result<Signals> {
        let mut signals = vec![SIGHUP, SIGQUIT, SIGUSR1];
        signals.extend(IGNORED);
        let queue = SignalQueue::open_for(&signals)?;
        poller.epoll.add(&queue, Token::Signals.encode(), Interest::EPOLLIN)?;
        Ok(Signals { queue, had_terminal: std::io::stderr().is_terminal() })
    }

    /// The next that has come. A SIGHUP because the terminal was closed means what it always does, the end: SIGTERM.
    pub fn next(&self) -> nix::Result<Option<Signal>> {
        let signal = self.queue.take()?;
        let has_lost_terminal = self.had_terminal && !std::io::stderr().is_terminal();
        Ok(signal.map(|signal| if signal == SIGHUP && has_lost_terminal { SIGTERM } else { signal }))
    }
}
