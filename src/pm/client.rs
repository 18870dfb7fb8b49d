//! A client: asks the daemon, and starts it where there is none.

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::poll::poll;
use nix::unistd::dup2_stdout;
use serde_json::Value;

use super::home::{self, PmHome};
use super::launch;
use super::protocol::{LAST_EVENT, PmReply, PmRequest};
use super::startup;
use crate::console;
use crate::control_socket;
use crate::failure::Failure;
use crate::sys::process::spawn_in_session;

/// The word on the command line that makes this program the daemon.
const DAEMON: &str = "daemon";

/// What the daemon says on its standard output when clients can come; anything else is why it could not start.
const READY: &str = "ready";

/// How often a request is sent while daemons are killed: one that is dying may still take a connection.
const MOST_TRIES: usize = 5;

/// Within this time systemd, where it supervises the daemon, starts the next one (RestartSec, systemd.service(5)).
const SUPERVISOR_NEEDS: Duration = Duration::from_secs(1);

pub struct PmConnection {
    home: PmHome,
    stream: BufReader<UnixStream>,
}

impl PmConnection {
    /// `None`: there is no daemon.
    pub fn find(home: &PmHome) -> Result<Option<PmConnection>, Failure> {
        match control_socket::connect(&home.socket()) {
            Ok(stream) => Ok(Some(PmConnection { home: home.clone(), stream: BufReader::new(stream) })),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => Ok(None),
            Err(error) => {
                let tried = format!("connect to {}", home.socket().display());
                Err(Failure::new(tried, error).advise("are you the user who has started the daemon?"))
            }
        }
    }

    /// Starts the daemon if there is none.
    pub fn open(home: &PmHome) -> Result<PmConnection, Failure> {
        if let Some(connection) = PmConnection::find(home)? {
            return Ok(connection);
        }
        home.make()?;
        let _lock = home.lock_start()?;
        // Another client may have started it while we waited.
        if let Some(connection) = PmConnection::find(home)? {
            return Ok(connection);
        }
        start_daemon(home)?;
        let lost = || Failure::relay(format!("the daemon has started and is gone; see {}", home.log().display()));
        PmConnection::find(home)?.ok_or_else(lost)
    }

    /// False: the daemon has closed its end before it had all of it. One that refuses us has answered nevertheless.
    pub fn send(&mut self, request: &PmRequest) -> Result<bool, Failure> {
        let mut line = serde_json::to_vec(request).expect("its keys are strings");
        line.push(b'\n');
        match self.stream.get_mut().write_all(&line) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => Ok(false),
            Err(error) => Err(Failure::new("ask the daemon", error)),
        }
    }

    /// The next line; `None` when the daemon is gone.
    pub fn receive(&mut self) -> Result<Option<String>, Failure> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => Err(failed_to_read(error)),
            _ => Ok(Some(line).filter(|line| line.ends_with('\n'))),
        }
    }

    /// Asks, and awaits the answer; asks the next daemon where this one was killed and cannot have done anything.
    pub fn ask(&mut self, request: &PmRequest) -> Result<PmReply, Failure> {
        let mut tries = 1..MOST_TRIES;
        let line = loop {
            if let Some(line) = self.exchange(request)? {
                break line;
            }
            if tries.next().is_none() {
                return Err(lost());
            }
            *self = PmConnection::open(&self.home)?;
        };
        let reply: PmReply = serde_json::from_str(&line)
            .map_err(|error| failed_to_read(error.into()).advise("is it of another version?"))?;
        match reply.error {
            Some(error) => Err(Failure::relay(error)),
            None => Ok(reply),
        }
    }

    /// The answer. `None`: the daemon was killed, and the request may be sent again, because it changes nothing or was
    /// not read to its end.
    fn exchange(&mut self, request: &PmRequest) -> Result<Option<String>, Failure> {
        let is_sent = self.send(request)?;
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(_) if line.ends_with('\n') => Ok(Some(line)),
            Ok(_) if is_sent && !request.only_looks() => Err(lost()),
            Ok(_) => Ok(None),
            // There was something that it had not read when it ended (unix(7)).
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(failed_to_read(error)),
        }
    }
}

fn failed_to_read(error: io::Error) -> Failure {
    Failure::new("read the daemon's answer", error)
}

fn lost() -> Failure {
    Failure::relay("the daemon ended before it answered; it is not known whether it was done: see `pm list`".to_owned())
}

/// Events as they come. Where the daemon was killed, those of the next one.
pub struct PmEvents {
    connection: PmConnection,
    /// How many daemons in a row were killed before one said anything.
    losses: usize,
}

impl PmEvents {
    pub fn open(home: &PmHome) -> Result<PmEvents, Failure> {
        let mut connection = PmConnection::open(home)?;
        // A daemon that is being killed may still take a connection; one that answers is alive.
        connection.ask(&PmRequest::Ping)?;
        connection.send(&PmRequest::Events)?;
        Ok(PmEvents { connection, losses: 0 })
    }

    /// `None`: no more will come.
    pub fn next_event(&mut self) -> Result<Option<String>, Failure> {
        loop {
            match self.connection.receive()? {
                Some(line) if is_last(&line) => return Ok(None),
                None if self.reopen()? => {}
                line => {
                    self.losses = 0;
                    return Ok(line);
                }
            }
        }
    }

    /// Reads what is there, and forgets it: whether something may have happened. `None`: no more will come.
    pub fn discard(&mut self) -> Option<bool> {
        let stream = &mut self.connection.stream;
        stream.get_ref().set_nonblocking(true).ok()?;
        let mut said = Vec::new();
        match stream.read_to_end(&mut said) {
            _ if String::from_utf8_lossy(&said).lines().any(is_last) => None,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if !said.is_empty() {
                    self.losses = 0;
                }
                Some(!said.is_empty())
            }
            _ => self.reopen().ok()?.then_some(true),
        }
    }

    /// False: the daemon has removed its socket; or too many were killed.
    fn reopen(&mut self) -> Result<bool, Failure> {
        let home = self.connection.home.clone();
        self.losses += 1;
        if self.losses > MOST_TRIES || !home.socket().exists() {
            return Ok(false);
        }
        // systemd may be about to start the next one, which is then its own.
        let deadline = Instant::now() + SUPERVISOR_NEEDS;
        while PmConnection::find(&home)?.is_none() && Instant::now() < deadline {
            let _ = poll(&mut [], 20u16);
        }
        *self = PmEvents { losses: self.losses, ..PmEvents::open(&home)? };
        Ok(true)
    }
}

/// Whoever asked now would make systemd, where it has the socket, start the next daemon.
fn is_last(line: &str) -> bool {
    serde_json::from_str(line).is_ok_and(|event: Value| event["event"] == LAST_EVENT)
}

/// Readable when something has happened.
impl AsFd for PmEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.stream.get_ref().as_fd()
    }
}

/// Tells the client or systemd that has started us, and leaves it: what we say later has nobody to read it. Made before
/// the applications have what descriptors there are.
pub fn ready_message() -> Result<impl FnOnce(), Failure> {
    let nowhere = OpenOptions::new().write(true).open("/dev/null");
    let nowhere = nowhere.map_err(|error| Failure::new("open /dev/null", error))?;
    Ok(move || {
        if let Err(error) = startup::notify("READY=1") {
            console::log(Failure::new("tell systemd that we are ready", error));
        }
        let _ = console::print(&format!("{READY}\n"));
        let _ = dup2_stdout(&nowhere);
    })
}

/// This program again, in a session of its own; what it says goes to `pm.log`.
fn start_daemon(home: &PmHome) -> Result<(), Failure> {
    let failed = |error| Failure::new("start the daemon", error);
    let program = std::env::current_exe().map_err(failed)?;
    let log = home.open_log().map_err(|error| Failure::new(format_args!("write {}", home.log().display()), error))?;
    let mut command = Command::new(program);
    command.arg(DAEMON).env(home::VARIABLE, home.folder()).current_dir("/");
    // An application may be the client; the daemon does not end with it.
    command.env_remove(launch::VARIABLE);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut daemon = spawn_in_session(&mut command, None).map_err(failed)?;
    let mut said = String::new();
    let read = daemon.stdout.take().expect("it is a pipe").read_to_string(&mut said);
    read.map_err(failed)?;
    match said.trim_end() {
        READY => Ok(()),
        "" => Err(Failure::relay(format!("start the daemon: it ended at once; see {}", home.log().display()))),
        why => Err(Failure::relay(why.to_owned())),
    }
}
