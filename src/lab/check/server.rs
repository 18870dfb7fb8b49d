//! The program under examination as a process: started, ready, signalled, ended. Nothing of it is left behind,
//! however it behaves.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{Unheld, Verdict, broken};
use crate::lab::observe::processes::{Process, family, poll_until};
use crate::report::ServerReport;

/// From the start to the ready line. An interpreter may need a while to come up on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// From SIGTERM to the end: the contract gives up after 5 s, the rest is for printing and reaping.
pub const STOP_WITHIN: Duration = Duration::from_secs(7);

/// How long the output of a process that has ended may still be on its way through a pipe.
const DRAIN_WITHIN: Duration = Duration::from_secs(1);

/// A command line to which `--listen` and further flags are appended.
pub struct Program {
    argv: Vec<String>,
}

/// A running server. Dropping it kills all of its processes.
pub struct Server {
    /// The address of its ready line.
    pub addr: SocketAddr,
    child: Child,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
    /// Its processes when it became ready: a child whose parent is gone is not in the family any more.
    born: Vec<Process>,
}

/// A program that has ended: its status and what it said after the ready line.
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// A program that did not become ready.
pub enum NotReady {
    /// There is no such program, or we may not run it.
    NotRun(std::io::Error),
    /// It ran and did not say the ready line; the status is missing when it was still running.
    Silent { status: Option<ExitStatus>, found: String, stderr: String },
}

impl Program {
    pub fn new(command: &[String]) -> Program {
        Program { argv: command.to_vec() }
    }

    /// Starts it on a free port of 127.0.0.1 and awaits its ready line.
    pub fn start(&self, flags: &[&str]) -> Verdict<Server> {
        self.start_on("127.0.0.1:0", flags).map_err(|not_ready| not_ready.into_broken(flags))
    }

    /// Starts it on `listen` and awaits its ready line.
    pub fn start_on(&self, listen: &str, flags: &[&str]) -> Result<Server, NotReady> {
        let mut child = self.spawn(listen, flags).map_err(NotReady::NotRun)?;
        let stdout = lines(child.stdout.take().expect("piped by spawn"));
        let stderr = lines(child.stderr.take().expect("piped by spawn"));
        // An address that is never used: the server exists from here on, so that a failing start is killed too.
        let mut server = Server { addr: ([0, 0, 0, 0], 0).into(), child, stdout, stderr, born: Vec::new() };
        match server.await_ready() {
            Ok(addr) => {
                server.addr = addr;
                server.born = server.processes();
                Ok(server)
            }
            Err(found) => {
                let status = server.exit_status(DRAIN_WITHIN);
                Err(NotReady::Silent { status, found, stderr: drain(&server.stderr) })
            }
        }
    }

    fn spawn(&self, listen: &str, flags: &[&str]) -> std::io::Result<Child> {
        Command::new(&self.argv[0])
            .args(&self.argv[1..])
            .args(["--listen", listen])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
    }
}

impl NotReady {
    pub fn into_broken(self, flags: &[&str]) -> Unheld {
        let found = match self {
            NotReady::NotRun(error) => error.to_string(),
            NotReady::Silent { found, stderr, .. } if stderr.trim().is_empty() => found,
            NotReady::Silent { found, stderr, .. } => format!("{found}; it said: {}", stderr.trim()),
        };
        let expected = with_flags("first line on standard output `ready ADDR:PORT`", flags);
        Unheld::Broken { expected, found }
    }
}

impl Server {
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
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

    /// Signals the process we started, and only that: telling its children is the program's business.
    pub fn signal(&self, signal: Signal) {
        // It may have ended already; whoever awaits its end will find out.
        let _ = kill(Pid::from_raw(self.pid()), signal);
    }

    /// Awaits its end.
    pub fn ended(&mut self, within: Duration) -> Verdict<Ended> {
        let Some(status) = self.exit_status(within) else {
            return broken(format!("its end within {within:?}"), "it is still running");
        };
        Ok(Ended { status, stdout: drain(&self.stdout), stderr: drain(&self.stderr) })
    }

    /// SIGTERM, and the report it prints.
    pub fn stop(&mut self) -> Verdict<ServerReport> {
        self.signal(Signal::SIGTERM);
        self.ended(STOP_WITHIN)?.report()
    }

    /// What it wrote to standard error and we have not read yet.
    pub fn said(&self) -> String {
        self.stderr.try_iter().map(|line| line + "\n").collect()
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
    pub fn explain(&self, why: Unheld) -> Unheld {
        match why {
            Unheld::Broken { expected, found } if Process::find(self.pid()).is_none() => {
                Unheld::Broken { expected, found: format!("{found}; the server has ended by itself") }
            }
            other => other,
        }
    }

    fn await_ready(&mut self) -> Result<SocketAddr, String> {
        let line = match self.stdout.recv_timeout(READY_WITHIN) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                return Err(format!("nothing on standard output for {READY_WITHIN:?}"));
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.exit_status(DRAIN_WITHIN).map(describe);
                return Err(status.unwrap_or_else(|| "standard output closed".into()));
            }
        };
        let addr = line.strip_prefix("ready ").and_then(|addr| addr.parse().ok());
        addr.ok_or_else(|| format!("{line:?}"))
    }

    fn exit_status(&mut self, within: Duration) -> Option<ExitStatus> {
        poll_until(within, || self.child.try_wait().ok().flatten())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let family = self.processes();
        family.iter().chain(&self.born).for_each(Process::kill);
        let _ = self.child.wait();
    }
}

impl Ended {
    /// Exit status 0 and one JSON document.
    pub fn document(&self) -> Verdict<Value> {
        if !self.status.success() {
            let said = self.stderr.trim();
            return broken("exit status 0", format!("{}; it said: {said:?}", describe(self.status)));
        }
        let document = serde_json::from_str(&self.stdout);
        let expected = "one JSON document on standard output after the ready line";
        document.or_else(|error| broken(expected, format!("{error} in {:?}", self.stdout)))
    }

    /// The document with all the fields of the contract.
    pub fn report(&self) -> Verdict<ServerReport> {
        let report = serde_json::from_value(self.document()?);
        report.or_else(|error| broken("the fields of the contract", format!("{error} in {:?}", self.stdout)))
    }
}

/// An exit status in words.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it exited with status {code}"),
        (None, Some(signal)) => format!("signal {signal} ended it"),
        (None, None) => format!("it ended with {status}"),
    }
}

/// `what`, and the flags it was started with where there are some.
pub fn with_flags(what: &str, flags: &[&str]) -> String {
    if flags.is_empty() { what.to_string() } else { format!("{what} with {}", flags.join(" ")) }
}

/// The lines of a pipe as they come. The thread ends with the last process that holds the pipe open, which may
/// be later than the end of the one we started.
fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn drain(lines: &Receiver<String>) -> String {
    let deadline = Instant::now() + DRAIN_WITHIN;
    let mut text = String::new();
    while let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        text += &line;
        text.push('\n');
    }
    text
}
