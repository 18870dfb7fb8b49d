//! One started program: its process group, its lines as they come, its end; and the leash that makes it die with
//! the lab.
//!
//! Every wait is for a value: a line, the exit, or the interrupt, each on a channel, with a deadline.

use std::env;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select, unbounded};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::unistd::Pid;

use crate::cpu;

/// Why a wait ended without what it waited for.
#[derive(Debug)]
pub enum Stop {
    /// Somebody wants the lab to end (SIGINT, SIGTERM, SIGHUP).
    Interrupted,
    /// Something did not go as it must: one line.
    Failed(String),
}

/// Closed, and thereby readable for everybody for ever, once the lab is told to end. Nothing is ever sent.
pub type Interrupt = Receiver<()>;

/// Takes over SIGINT, SIGTERM and SIGHUP. Call it before any other thread exists: threads inherit the mask, and a
/// thread without it would still die of the signal.
pub fn watch_for_interrupt() -> Interrupt {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block().expect("blocking valid signals cannot fail (pthread_sigmask(3))");
    let (sender, receiver) = unbounded();
    thread::spawn(move || {
        let _ = signals.wait();
        drop(sender);
        // Whoever asks twice does not want to wait for the report; the leash takes the children down.
        let _ = signals.wait();
        std::process::exit(130);
    });
    receiver
}

/// What a program did.
#[derive(Debug)]
pub enum Event {
    Stdout(String),
    Stderr(String),
    /// Always the last: everything it and its descendants had to say has come.
    Exited(ExitStatus),
}

/// A running program; dropping it kills whatever is left of its process group.
pub struct Program {
    name: String,
    group: Pid,
    events: Receiver<Event>,
    exited: bool,
    /// The last lines of standard error, for the message when it fails.
    complaints: Vec<String>,
    /// What it had printed when it ended with a failure.
    last_output: String,
}

impl Program {
    /// Starts a command line on these CPUs, in a process group of its own, on the leash.
    pub fn start(command: &str, extra: &[&str], cpus: &[usize]) -> Result<Program, Stop> {
        let mut words = command.split_whitespace();
        let name = words.next().unwrap_or_default();
        let path = find(name).map_err(Stop::Failed)?;
        let lab =
            env::current_exe().map_err(|error| Stop::Failed(format!("find the lab's own file: {error}")))?;
        let cpus: Vec<String> = cpus.iter().map(usize::to_string).collect();
        let parent = std::process::id().to_string();
        let child = Command::new(lab)
            .args(["leash", "--parent", &parent, "--cpus", &cpus.join(","), "--"])
            .arg(path)
            .args(words)
            .args(extra)
            .env("PATH", search_path())
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| Stop::Failed(format!("start {command}: {error}")))?;
        let group = Pid::from_raw(child.id() as i32);
        let name = name.to_string();
        Ok(Program {
            name,
            group,
            events: watch(child),
            exited: false,
            complaints: Vec::new(),
            last_output: String::new(),
        })
    }

    pub fn pid(&self) -> i32 {
        self.group.as_raw()
    }

    /// The next thing that happens to it.
    pub fn next(&mut self, deadline: Instant, interrupt: &Interrupt) -> Result<Event, Stop> {
        let event = select! {
            recv(interrupt) -> _ => return Err(Stop::Interrupted),
            recv(self.events) -> event => event.expect("an exit is always reported"),
            default(deadline.saturating_duration_since(Instant::now())) => {
                return Err(Stop::Failed(self.failure("gave no sign of life before the deadline")));
            }
        };
        match &event {
            Event::Stderr(line) => {
                self.complaints.push(line.clone());
                // Enough for the reason; a server that complains per connection must not fill the memory.
                let surplus = self.complaints.len().saturating_sub(5);
                self.complaints.drain(..surplus);
            }
            Event::Exited(_) => self.exited = true,
            Event::Stdout(_) => {}
        }
        Ok(event)
    }

    /// Waits for the end and returns all of standard output. `on_stderr` sees every line of standard error when
    /// it comes.
    pub fn finish(
        &mut self,
        deadline: Instant,
        interrupt: &Interrupt,
        mut on_stderr: impl FnMut(&str),
    ) -> Result<String, Stop> {
        let mut output = String::new();
        loop {
            match self.next(deadline, interrupt)? {
                Event::Stdout(line) => output = output + &line + "\n",
                Event::Stderr(line) => on_stderr(&line),
                Event::Exited(exit) if exit.success() => return Ok(output),
                Event::Exited(exit) => {
                    self.last_output = output;
                    return Err(Stop::Failed(self.failure(&format!("ended with {exit}"))));
                }
            }
        }
    }

    /// What it had printed, where [`Program::finish`] was a failure: even that may be a document.
    pub fn last_output(&self) -> &str {
        &self.last_output
    }

    pub fn terminate(&self) {
        // It may have ended by itself; then its exit is already among the events.
        let _ = kill(self.group, Signal::SIGTERM);
    }

    pub fn has_ended(&self) -> bool {
        self.exited
    }

    /// After its exit: whether some descendant is still there.
    pub fn left_something_behind(&self) -> bool {
        killpg(self.group, None).is_ok()
    }

    /// `what` with the program's name and its last words.
    pub fn failure(&self, what: &str) -> String {
        match self.complaints.last() {
            Some(line) => format!("{} {what}: {line}", self.name),
            None => format!("{} {what}", self.name),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = killpg(self.group, Signal::SIGKILL);
        while !self.exited {
            // Ends: SIGKILL cannot be ignored, and the watching thread reports the exit.
            self.exited = matches!(self.events.recv(), Ok(Event::Exited(_)) | Err(_));
        }
    }
}

/// Three threads turn a child's output and end into events.
fn watch(mut child: Child) -> Receiver<Event> {
    let (sender, receiver) = unbounded();
    let stdout = child.stdout.take().expect("stdout is piped");
    let stderr = child.stderr.take().expect("stderr is piped");
    let (out, err) = (sender.clone(), sender.clone());
    let out = thread::spawn(move || forward(stdout, &out, Event::Stdout));
    let err = thread::spawn(move || forward(stderr, &err, Event::Stderr));
    thread::spawn(move || {
        let _ = (out.join(), err.join());
        let status = child.wait().expect("nobody else reaps this child");
        let _ = sender.send(Event::Exited(status));
    });
    receiver
}

fn forward(stream: impl Read, to: &Sender<Event>, event: fn(String) -> Event) {
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let _ = to.send(event(line));
    }
}

/// A program of the toolkit beside the lab's own file, or any other on the path; a path is taken as it is.
fn find(name: &str) -> Result<PathBuf, String> {
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    on_path(name)
        .ok_or_else(|| format!("{name} is neither beside lab nor on the PATH; cargo build --release --bins"))
}

/// Where we find it, and whatever we start, too.
pub fn on_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&search_path()).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// The folder of the lab's own file, then the PATH.
fn search_path() -> OsString {
    let beside = env::current_exe().ok().and_then(|lab| Some(lab.parent()?.to_path_buf()));
    let path = env::var_os("PATH");
    let folders = beside.into_iter().chain(path.iter().flat_map(env::split_paths));
    // A folder whose name holds the separator cannot be in a PATH.
    env::join_paths(folders).unwrap_or(path.unwrap_or_default())
}

/// Becomes `command`: restricted to `cpus`, with no signal blocked, and terminated when the lab dies, however it
/// dies (prctl(2), PR_SET_PDEATHSIG, which survives execve(2)). Returns only when that failed.
pub fn leash(parent: u32, cpus: &[usize], command: &[String]) -> String {
    let prepared = cpu::pin_to(cpus)
        .and_then(|()| set_pdeathsig(Signal::SIGTERM))
        .and_then(|()| SigSet::empty().thread_set_mask());
    if let Err(error) = prepared {
        return format!("restrict {command:?} to CPUs {cpus:?}: {error}");
    }
    // The lab may have died before prctl(2) took effect.
    if parent_id() != parent {
        return "the lab is gone".to_string();
    }
    let (program, arguments) = command.split_first().expect("clap demands a command");
    let error = Command::new(Path::new(program)).args(arguments).exec();
    format!("start {program}: {error}")
}

/// A deadline from now.
pub fn within(time: Duration) -> Instant {
    Instant::now() + time
}
