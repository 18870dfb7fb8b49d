//! The program under test as a process: started, ready, signalled, ended. Whatever it does, nothing of it is left
//! behind.

use std::net::SocketAddr;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{CommonCause, NotHeld, ProbeResult, broken};
use crate::lab::observe::processes::{Process, family, poll_until};
pub use crate::lab::program::{NotReady, Program};
use crate::lab::program::{Running, reason};
use crate::report::ServerReport;

/// From the start to the ready line. An interpreter may need a while to come up on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// From SIGTERM to the end: the contract gives up after 5 s, the rest is for printing and reaping.
pub const STOP_WITHIN: Duration = Duration::from_secs(7);

/// From the end of a server to the end of its output: the thread that reads it may have to wait for a CPU. A process
/// that the server leaves behind may hold the pipe open for longer.
const REST_WITHIN: Duration = Duration::from_secs(3);

/// A running server. Dropping it kills all of its processes.
pub struct Server {
    /// The address of its ready line.
    pub addr: SocketAddr,
    running: Running,
    /// Its processes when it became ready: a child whose parent is gone is not in the family any more.
    born: Vec<Process>,
}

/// A program that has ended: its status and what it said after the ready line.
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Program {
    /// Starts it on a free port of 127.0.0.1 and awaits its ready line.
    pub fn start(&self, flags: &[&str]) -> ProbeResult<Server> {
        self.start_on("127.0.0.1:0", flags).map_err(|not_ready| not_ready.into_broken(flags))
    }

    /// Starts it on `listen` and awaits its ready line.
    pub fn start_on(&self, listen: &str, flags: &[&str]) -> Result<Server, NotReady> {
        let flags = [&["--listen", listen], flags].concat();
        let mut running = self.launch(&flags).map_err(NotReady::NotStarted)?;
        let address = running.await_ready(READY_WITHIN)?;
        let Ok(addr) = address.parse() else {
            let (found, stderr) = (format!("printed \"ready {address}\""), running.unread_stderr());
            return Err(NotReady::Silent { status: None, found, stderr });
        };
        let born = family(running.pid());
        Ok(Server { addr, running, born })
    }
}

impl NotReady {
    /// A program that refuses a flag breaks all points with this flag, and one that is silent breaks them all.
    pub fn into_broken(self, flags: &[&str]) -> NotHeld {
        let (found, cause) = match self {
            NotReady::NotStarted(why) => (why, None),
            NotReady::Interrupted => ("interrupted".to_string(), None),
            NotReady::Silent { status, found, stderr } => {
                let said = stderr.trim();
                let is_refusal = status.and_then(|status| status.code()) == Some(2);
                let mut names = flags.iter().filter(|flag| flag.starts_with("--") && **flag != "--listen");
                let refused = names.clone().find(|flag| said.contains(**flag)).or(names.next());
                let cause = match refused {
                    Some(flag) => is_refusal.then(|| CommonCause::Flag(flag.to_string())),
                    None => flags.is_empty().then_some(CommonCause::NotReady),
                };
                let said = reason(said).map_or(String::new(), |line| format!("; it said: {line}"));
                (format!("it {found}{said}"), cause)
            }
        };
        let expected = with_flags("first line on standard output `ready ADDR:PORT`", flags);
        NotHeld::Broken { expected, found, sent: None, cause }
    }
}

impl Server {
    pub fn pid(&self) -> i32 {
        self.running.pid()
    }

    /// All its processes that have not ended, the one we started first.
    pub fn processes(&self) -> Vec<Process> {
        family(self.pid())
    }

    pub fn cpu_time(&self) -> Duration {
        self.processes().iter().map(Process::cpu_time).sum()
    }

    pub fn open_descriptors(&self) -> usize {
        self.processes().iter().map(Process::open_descriptors).sum()
    }

    /// Signals the process we started, and no other.
    pub fn signal(&self, signal: Signal) {
        self.running.signal(signal);
    }

    /// Awaits its end.
    pub fn ended(&mut self, within: Duration) -> ProbeResult<Ended> {
        let Ok(Some(status)) = self.running.await_exit(within) else {
            return broken(format!("its end within {within:?}"), "it is still running");
        };
        let (stdout, stderr) = (self.running.rest_of_stdout(REST_WITHIN), self.running.unread_stderr());
        Ok(Ended { status, stdout, stderr })
    }

    /// SIGTERM, and the report it prints.
    pub fn stop(&mut self) -> ProbeResult<ServerReport> {
        self.signal(Signal::SIGTERM);
        self.ended(STOP_WITHIN)?.report()
    }

    /// What it wrote to standard error and we have not read yet.
    pub fn said(&self) -> String {
        self.running.unread_stderr()
    }

    /// Those of `processes` that outlived it, after waiting for them to go. They are killed.
    pub fn left_behind(processes: &[Process], within: Duration) -> Vec<Process> {
        let left = || processes.iter().copied().filter(Process::is_alive).collect::<Vec<_>>();
        poll_until(within, || left().is_empty().then_some(()));
        let left = left();
        left.iter().for_each(Process::kill);
        left
    }

    /// Adds to a broken point that the server is not there any more, where that is so.
    pub fn explain(&self, why: NotHeld) -> NotHeld {
        match why {
            NotHeld::Broken { expected, found, sent, cause } if Process::find(self.pid()).is_none() => {
                NotHeld::Broken { expected, found: format!("{found}; the server has ended by itself"), sent, cause }
            }
            other => other,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.processes().iter().chain(&self.born).for_each(Process::kill);
    }
}

impl Ended {
    /// Exit status 0 and one JSON document.
    pub fn document(&self) -> ProbeResult<Value> {
        if !self.status.success() {
            let found = format!("{}; it said: {:?}", self.status, self.stderr.trim());
            return Err(NotHeld::new("exit status 0", found).because(CommonCause::Report));
        }
        let expected = "one JSON document on standard output after the ready line";
        let unreadable = |error| NotHeld::new(expected, format!("{error} in {:?}", self.stdout));
        serde_json::from_str(&self.stdout).map_err(|error| unreadable(error).because(CommonCause::Report))
    }

    /// The document with all the fields of the contract.
    pub fn report(&self) -> ProbeResult<ServerReport> {
        let lacking = |error| NotHeld::new("the fields of the contract", format!("{error} in {:?}", self.stdout));
        serde_json::from_value(self.document()?).map_err(|error| lacking(error).because(CommonCause::Report))
    }
}

/// `what`, and the flags it was started with where there are some.
pub fn with_flags(what: &str, flags: &[&str]) -> String {
    if flags.is_empty() { what.to_string() } else { format!("{what} with {}", flags.join(" ")) }
}
