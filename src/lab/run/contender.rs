//! A server of another project. It answers as the contract says (CONTRACT.md, section 1), and that is all: it prints
//! neither a `ready` line nor a report, takes no free port by itself, and has no scoreboard. So the lab chooses the
//! port, asks until there is an answer, takes the children of its first process for its workers, and leaves empty what
//! it cannot know.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::lab::deadline::Deadline;
use crate::lab::observe::processes::{Process, members, poll_until, with_variable};
use crate::lab::plan::command::ServerCommand;
use crate::lab::program::{Interrupt, NotReady, Program, Running, Stop};

/// The variable that names its folder, by which everything it starts is found.
const FOLDER: &str = "CONTENDER_FOLDER";

/// Outside of the range from which the kernel takes ports (ip_local_port_range), so that no client gets it meanwhile.
const PORTS: Range<u16> = 20_000..30_000;
const TRIES: u32 = 20;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// It has started when nothing has changed in so many looks, or after so much time: a server that polls is never at
/// rest.
const STILL_LOOKS: u32 = 10;
const LOOK_EVERY: Duration = Duration::from_millis(20);
const AT_REST_WITHIN: Duration = Duration::from_secs(2);

/// What it has started, once it has ended: somebody must reap it.
const GONE_WITHIN: Duration = Duration::from_secs(5);
const KILLS: u32 = 3;
const VERSION_WITHIN: Duration = Duration::from_secs(20);

/// Where it listens and writes. Dropping it ends what is left of it and still has its environment, and removes its
/// files.
pub struct Contender {
    address: SocketAddr,
    folder: PathBuf,
}

impl Contender {
    pub fn new() -> Result<Contender, String> {
        let mut last = String::new();
        for _ in 0..TRIES {
            let address = SocketAddr::from(([127, 0, 0, 1], fastrand::u16(PORTS)));
            let name = format!("acceptlab-contender-{}-{}", std::process::id(), address.port());
            let folder = std::env::temp_dir().join(name);
            // The port is free again when this listener is gone. A folder that is there already is somebody else's.
            match TcpListener::bind(address).and_then(|_| fs::create_dir(&folder)) {
                Ok(()) => return Ok(Contender { address, folder }),
                Err(error) => last = Failure::new(format!("take {}", folder.display()), error).to_string(),
            }
        }
        Err(last)
    }

    /// The program of the command, with a port and a folder of its own.
    pub fn program(&self, command: &ServerCommand) -> Program {
        let text = command.text().replace("127.0.0.1:0", &self.address.to_string());
        Program::of(&text).with_variable(FOLDER, &self.folder)
    }

    /// Its address, once it answers and has started all that it starts.
    pub fn await_ready(&self, server: &mut Running, within: Duration) -> Result<String, NotReady> {
        let mut deadline = Deadline::after(within);
        loop {
            let has_answer = self.answers();
            // After an answer, too: another server may have given it.
            wait_a_look(server)?;
            if has_answer {
                break;
            }
            if deadline.next_look().is_none() {
                return Err(silent(server, None, format!("answered nothing within {within:?}")));
            }
        }
        let (begin, mut last, mut still) = (Instant::now(), state_of(server.pid()), 0);
        while still < STILL_LOOKS && begin.elapsed() < AT_REST_WITHIN {
            wait_a_look(server)?;
            let now = state_of(server.pid());
            still = if now == last { still + 1 } else { 0 };
            last = now;
        }
        Ok(self.address.to_string())
    }

    fn answers(&self) -> bool {
        let ask = || {
            let mut stream = TcpStream::connect_timeout(&self.address, ANSWER_WITHIN)?;
            stream.set_read_timeout(Some(ANSWER_WITHIN))?;
            stream.write_all(REQUEST)?;
            let mut status = [0; 12];
            stream.read_exact(&mut status).map(|()| status)
        };
        ask().is_ok_and(|status: [u8; 12]| &status == b"HTTP/1.1 200")
    }

    /// After SIGTERM: it ends, with whatever status, and everything that it has started with it.
    pub fn await_end(&self, server: &mut Running, within: Duration) -> Result<(), Stop> {
        if server.await_exit(within)?.is_none() {
            return Err(Stop::Failed(server.failure(&format!("did not end within {within:?}"))));
        }
        let is_gone = || !server.left_something_behind() && self.processes().is_empty();
        let gone = poll_until(GONE_WITHIN, || is_gone().then_some(()));
        gone.ok_or_else(|| Stop::Failed(server.failure("ended and left a process behind")))
    }

    /// Those that have not written over their environment, as nginx does; what stays in the group is found by that.
    fn processes(&self) -> Vec<Process> {
        with_variable(FOLDER, &self.folder.to_string_lossy())
    }
}

impl Contender {
    /// Its folder belongs to this user from now on: the server runs as this user.
    pub fn give_to(&self, user: u32) -> Result<(), String> {
        let given = std::os::unix::fs::chown(&self.folder, Some(user), Some(user));
        given.map_err(|error| Failure::new(format!("give away {}", self.folder.display()), error).to_string())
    }
}

/// Waits until the next look. A server that ends meanwhile was never ready.
fn wait_a_look(server: &mut Running) -> Result<(), NotReady> {
    match server.await_exit(LOOK_EVERY).map_err(|_| NotReady::Interrupted)? {
        None => Ok(()),
        Some(status) => Err(silent(server, Some(status), format!("ended with {status} before it was ready"))),
    }
}

fn silent(server: &mut Running, status: Option<ExitStatus>, found: String) -> NotReady {
    NotReady::Silent { status, found, stderr: server.unread_stderr() }
}

/// What it calls itself: the first line of `PROGRAM --version`.
pub fn version(command: &ServerCommand, interrupt: &Interrupt) -> Option<String> {
    let program = Program::of(&format!("{} --version", command.program())).until(interrupt);
    let text = program.launch(&[]).ok()?.finish(VERSION_WITHIN, |_| ()).ok()?;
    text.lines().next().map(str::to_string)
}

/// The number, the threads and the CPU time of each process.
fn state_of(server: i32) -> Vec<(i32, u64, u64)> {
    members(server).iter().map(|stat| (stat.pid, stat.threads, stat.cpu_ticks)).collect()
}

impl Drop for Contender {
    fn drop(&mut self) {
        // One that forks while it is looked for has left a child.
        for _ in 0..KILLS {
            let left = self.processes();
            if left.is_empty() {
                break;
            }
            left.iter().for_each(Process::kill);
        }
        // What is left in a temporary folder does no harm.
        let _ = fs::remove_dir_all(&self.folder);
    }
}
