//! A client: asks the daemon, and starts it where there is none.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use nix::unistd::dup2_stdout;

use super::home::{self, PmHome};
use super::launch;
use super::protocol::{PmReply, PmRequest};
use super::startup;
use crate::console;
use crate::control_socket;
use crate::failure::Failure;
use crate::sys::process::spawn_in_session;

/// The word on the command line that makes this program the daemon.
const DAEMON: &str = "daemon";

/// What the daemon says on its standard output when clients can come; anything else is why it could not start.
const READY: &str = "ready";

pub struct PmConnection {
    stream: BufReader<UnixStream>,
}

impl PmConnection {
    /// `None`: there is no daemon.
    pub fn find(home: &PmHome) -> Result<Option<PmConnection>, Failure> {
        match control_socket::connect(&home.socket()) {
            Ok(stream) => Ok(Some(PmConnection { stream: BufReader::new(stream) })),
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

    pub fn send(&mut self, request: &PmRequest) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(request).expect("its keys are strings");
        line.push(b'\n');
        // A daemon that refuses us at once has closed its end already, and its answer is there.
        match self.stream.get_mut().write_all(&line) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Failure::new("ask the daemon", error)),
            _ => Ok(()),
        }
    }

    /// The next line; `None` when the daemon is gone.
    pub fn receive(&mut self) -> Result<Option<String>, Failure> {
        let mut line = String::new();
        let length = self.stream.read_line(&mut line);
        Ok((length.map_err(|error| Failure::new("read the daemon's answer", error))? > 0).then_some(line))
    }

    /// Reads what is there, and forgets it: whether there was something. `None`: the daemon is gone.
    pub fn discard(&mut self) -> Option<bool> {
        self.stream.get_ref().set_nonblocking(true).ok()?;
        let mut said = Vec::new();
        let error = self.stream.read_to_end(&mut said).err()?;
        (error.kind() == ErrorKind::WouldBlock).then_some(!said.is_empty())
    }

    /// Asks, and awaits the answer.
    ///
    /// # Errors
    /// What the daemon answers if it could not do it.
    pub fn ask(&mut self, request: &PmRequest) -> Result<PmReply, Failure> {
        self.send(request)?;
        let line = self.receive()?.ok_or_else(|| Failure::relay("the daemon ended before it answered".to_owned()))?;
        let reply: PmReply = serde_json::from_str(&line)
            .map_err(|error| Failure::new("read the daemon's answer", error).advise("is it of another version?"))?;
        match reply.error {
            Some(error) => Err(Failure::relay(error)),
            None => Ok(reply),
        }
    }
}

/// Readable when the daemon has said something, or is gone.
impl AsFd for PmConnection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.get_ref().as_fd()
    }
}

/// Tells the client or systemd that has started us, and leaves it: what we say later has nobody to read it.
pub fn daemon_is_ready() {
    if let Err(error) = startup::notify("READY=1") {
        console::log(Failure::new("tell systemd that we are ready", error));
    }
    let _ = console::print(&format!("{READY}\n"));
    let nowhere = OpenOptions::new().write(true).open("/dev/null");
    let _ = nowhere.map(|nowhere| dup2_stdout(&nowhere));
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
