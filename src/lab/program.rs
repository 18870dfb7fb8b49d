//! Starting a program, awaiting its `ready` line, its output and its end. `lab run`, `lab order`, `lab check` and the
//! tests start every program this way.
//!
//! A started program leads a process group of its own and gets SIGTERM from the kernel when the thread that started it
//! ends, however it ends. Every wait is for a value with a deadline: a line, the exit, or the interrupt.

use std::env;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, never, select, unbounded};
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::unistd::Pid;
use serde::de::DeserializeOwned;

use crate::console;
use crate::cpu;
use crate::failure::Failure;
use crate::lab::deadline::Deadline;
use crate::lab::observe::processes::{Process, members};
use crate::sys::namespace::NetworkNamespace;
use crate::sys::process::spawn_child;

/// How long the output of a program that has ended may still be on its way through a pipe. A process that it left
/// behind may hold the pipe open for longer.
const DRAIN_WITHIN: Duration = Duration::from_secs(1);

/// Why a wait ended without what it waited for.
#[derive(Debug)]
pub enum Stop {
    /// The lab is to end (SIGINT, SIGTERM, SIGHUP).
    Interrupted,
    /// Something went wrong: one line.
    Failed(String),
}

impl From<String> for Stop {
    fn from(line: String) -> Stop {
        Stop::Failed(line)
    }
}

/// Closed, and thereby readable for every thread from then on, when the lab is to end. Nothing is ever sent.
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
        // A second signal does not wait for the report. The kernel ends what we have started.
        let _ = signals.wait();
        std::process::exit(130);
    });
    receiver
}

/// A command line that can be started.
pub struct Program {
    words: Vec<String>,
    variables: Vec<(String, OsString)>,
    cpus: Option<Vec<usize>>,
    namespace: Option<Arc<NetworkNamespace>>,
    interrupt: Interrupt,
}

/// A program that did not become ready.
#[derive(Debug)]
pub enum NotReady {
    /// There is no such program, or we may not run it.
    NotStarted(String),
    Interrupted,
    /// It ran and did not print the ready line; the status is missing when it was still running.
    Silent {
        status: Option<ExitStatus>,
        found: String,
        stderr: String,
    },
}

impl Program {
    pub fn new(words: &[String]) -> Program {
        Program { words: words.to_vec(), variables: Vec::new(), cpus: None, namespace: None, interrupt: never() }
    }

    /// A command line whose words are separated by blanks.
    pub fn of(command: &str) -> Program {
        Program::new(&command.split_whitespace().map(str::to_string).collect::<Vec<_>>())
    }

    pub fn on_cpus(self, cpus: &[usize]) -> Program {
        Program { cpus: Some(cpus.to_vec()), ..self }
    }

    /// The program with this variable in its environment.
    pub fn with_variable(mut self, name: &str, value: impl Into<OsString>) -> Program {
        self.variables.push((name.to_string(), value.into()));
        self
    }

    /// In this network; in ours when it is absent.
    pub fn inside(self, namespace: Option<&Arc<NetworkNamespace>>) -> Program {
        Program { namespace: namespace.cloned(), ..self }
    }

    /// Ends every wait for it when this interrupt comes.
    pub fn until(self, interrupt: &Interrupt) -> Program {
        Program { interrupt: interrupt.clone(), ..self }
    }

    pub fn name(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// Whether its own words hold this one.
    pub fn names(&self, word: &str) -> bool {
        self.words.iter().any(|own| own == word)
    }

    pub fn is_interrupted(&self) -> bool {
        is_closed(&self.interrupt)
    }

    /// Starts it with more words behind its own.
    pub fn launch(&self, more: &[&str]) -> Result<Running, String> {
        let Some((name, words)) = self.words.split_first() else {
            return Err("the command line is empty; name a program".to_string());
        };
        let path = find(name)?;
        let mut command = Command::new(path);
        command.args(words).args(more).env("PATH", search_path());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut start = || {
            spawn_child(&mut command, &[], Signal::SIGTERM, self.namespace.as_deref()).map_err(|error| {
                let is_missing = error.kind() == std::io::ErrorKind::NotFound;
                let failure = Failure::new(format_args!("start {name}"), error);
                if is_missing { failure.advise("is the path right?") } else { failure }
            })
        };
        let child = match &self.cpus {
            Some(cpus) => on_cpus(cpus, start),
            None => start(),
        };
        let child = child.map_err(|failure| failure.to_string())?;
        Ok(Running::watch(name.clone(), child, self.interrupt.clone()))
    }
}

impl NotReady {
    /// One line that begins with the program's name.
    pub fn stop(self, name: &str) -> Stop {
        match self {
            NotReady::NotStarted(why) => Stop::Failed(why),
            NotReady::Interrupted => Stop::Interrupted,
            NotReady::Silent { found, stderr, .. } => Stop::Failed(match reason(&stderr) {
                Some(line) => format!("{name} {found}: {line}"),
                None => format!("{name} {found}"),
            }),
        }
    }

    /// `needs CAP_BPF`, where the program ended with these words: nothing is broken, the privilege is missing.
    pub fn missing_privilege(&self) -> Option<&str> {
        let NotReady::Silent { status: Some(_), stderr, .. } = self else { return None };
        let line = stderr.trim_end();
        let (before, capability) = line.rsplit_once("needs CAP_")?;
        let is_name = capability.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
        is_name.then(|| &line[before.len()..])
    }
}

/// The line that says why a program ended: parsers of command lines surround it with their usage.
pub fn reason(stderr: &str) -> Option<&str> {
    let mut lines = stderr.lines().filter(|line| !line.trim().is_empty());
    lines.clone().find(|line| line.to_ascii_lowercase().contains("error")).or(lines.next_back()).map(str::trim)
}

/// What a thread starts inherits its CPUs (sched_setaffinity(2)): ours are changed for the moment of the start. A
/// sandbox may refuse that, so it is left out where nothing would change.
fn on_cpus<T>(cpus: &[usize], start: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let ours = cpu::allowed();
    if ours == cpus {
        return start();
    }
    let pin = |cpus: &[usize]| {
        cpu::pin_to(cpus).map_err(|errno| Failure::new(format_args!("sched_setaffinity to CPUs {cpus:?}"), errno))
    };
    pin(cpus)?;
    let started = start();
    pin(&ours)?;
    started
}

/// A started program. Dropping it kills whatever is left of its processes.
pub struct Running {
    name: String,
    group: Pid,
    interrupt: Interrupt,
    /// Its lines as they come.
    stdout: Receiver<String>,
    stderr: Receiver<String>,
    exit: Receiver<ExitStatus>,
    status: Option<ExitStatus>,
    /// What [`Running::finish`] has read.
    output: String,
    last_stderr_line: Option<String>,
}

impl Running {
    /// Three threads turn a child's output and its end into messages. The exit comes last.
    fn watch(name: String, mut child: Child, interrupt: Interrupt) -> Running {
        let group = Pid::from_raw(child.id() as i32);
        let (out, stdout) = unbounded();
        let (err, stderr) = unbounded();
        let (exited, exit) = unbounded();
        let (open, both_ended) = unbounded();
        forward(child.stdout.take().expect("stdout is piped"), out, open.clone());
        forward(child.stderr.take().expect("stderr is piped"), err, open);
        thread::spawn(move || {
            let status = child.wait().expect("no other thread reaps this child");
            let _ = both_ended.recv_timeout(DRAIN_WITHIN);
            let _ = exited.send(status);
        });
        let (status, output, last_stderr_line) = (None, String::new(), None);
        Running { name, group, interrupt, stdout, stderr, exit, status, output, last_stderr_line }
    }

    pub fn pid(&self) -> i32 {
        self.group.as_raw()
    }

    /// Signals the process we started, and no other: its children are its own business.
    pub fn signal(&self, signal: Signal) {
        // It may have ended already; whoever awaits its end will see that.
        let _ = kill(self.group, signal);
    }

    /// The address in its ready line.
    pub fn await_ready(&mut self, within: Duration) -> Result<String, NotReady> {
        let mut deadline = Deadline::after(within);
        let line = loop {
            let Some(pause) = deadline.next_look() else { break Err(format!("printed nothing within {within:?}")) };
            select! {
                recv(self.interrupt) -> _ => return Err(NotReady::Interrupted),
                recv(self.stdout) -> line => {
                    break line.map_err(|_| "closed its standard output before it was ready".to_string());
                }
                default(pause) => {}
            }
        };
        if let Some(address) = line.as_ref().ok().and_then(|line| line.strip_prefix("ready ")) {
            return Ok(address.to_string());
        }
        let status = self.await_exit(DRAIN_WITHIN).ok().flatten();
        let found = match (line, status) {
            (Ok(line), _) => format!("printed {line:?} instead of `ready ADDR:PORT`"),
            (Err(_), Some(status)) => format!("ended with {status} before it was ready"),
            (Err(silence), None) => silence,
        };
        Err(NotReady::Silent { status, found, stderr: self.unread_stderr() })
    }

    /// How it ended; `None` when it is still running then.
    pub fn await_exit(&mut self, within: Duration) -> Result<Option<ExitStatus>, Stop> {
        let mut deadline = Deadline::after(within);
        while self.status.is_none()
            && let Some(pause) = deadline.next_look()
        {
            select! {
                recv(self.exit) -> status => self.status = status.ok(),
                recv(self.interrupt) -> _ => return Err(Stop::Interrupted),
                default(pause) => {}
            }
        }
        Ok(self.status)
    }

    /// Waits for the end and returns all of standard output. `on_stderr` sees every line of standard error when it
    /// comes.
    pub fn finish(&mut self, within: Duration, mut on_stderr: impl FnMut(&str)) -> Result<String, Stop> {
        let mut deadline = Deadline::after(within);
        let (mut stdout, mut stderr) = (self.stdout.clone(), self.stderr.clone());
        let status = loop {
            let Some(pause) = deadline.next_look() else {
                return Err(Stop::Failed(self.failure(&format!("did not end within {within:?}"))));
            };
            select! {
                recv(self.interrupt) -> _ => return Err(Stop::Interrupted),
                recv(stdout) -> line => match line {
                    Ok(line) => self.output += &(line + "\n"),
                    Err(_) => stdout = never(),
                },
                recv(stderr) -> line => match line {
                    Ok(line) => {
                        on_stderr(&line);
                        self.last_stderr_line = Some(line);
                    }
                    Err(_) => stderr = never(),
                },
                recv(self.exit) -> status => break status.expect("an exit is always reported"),
                default(pause) => {}
            }
        };
        self.status = Some(status);
        self.output += &self.unread_stdout();
        for line in self.stderr.try_iter() {
            on_stderr(&line);
            self.last_stderr_line = Some(line);
        }
        if status.success() {
            return Ok(std::mem::take(&mut self.output));
        }
        Err(Stop::Failed(self.failure(&format!("ended with {status}"))))
    }

    /// The report that a finished program printed.
    pub fn parse<T: DeserializeOwned>(&mut self, document: &str) -> Result<T, Stop> {
        serde_json::from_str(document)
            .map_err(|error| Stop::Failed(self.failure(&format!("printed no report ({error})"))))
    }

    /// Asks it to end, and waits even when the lab itself is interrupted: a program that cleans up needs the time.
    pub fn terminate(&mut self, within: Duration) {
        self.signal(Signal::SIGTERM);
        self.status = self.status.or(self.exit.recv_timeout(within).ok());
    }

    /// What it had printed where [`Running::finish`] failed: even that may be a document.
    pub fn output(&self) -> &str {
        &self.output
    }

    /// The lines of standard output that have not been read yet.
    pub fn unread_stdout(&self) -> String {
        self.stdout.try_iter().map(|line| line + "\n").collect()
    }

    /// Those that come until it is closed, or until this time is over.
    pub fn rest_of_stdout(&self, within: Duration) -> String {
        let until = Instant::now() + within;
        std::iter::from_fn(|| self.stdout.recv_deadline(until).ok()).map(|line| line + "\n").collect()
    }

    pub fn unread_stderr(&self) -> String {
        self.stderr.try_iter().map(|line| line + "\n").collect()
    }

    pub fn has_ended(&self) -> bool {
        self.status.is_some()
    }

    /// After its exit: whether a process of its group is still there.
    pub fn left_something_behind(&self) -> bool {
        killpg(self.group, None).is_ok()
    }

    /// `what` with the program's name and the last line of its standard error.
    pub fn failure(&mut self, what: &str) -> String {
        self.last_stderr_line = self.stderr.try_iter().last().or(self.last_stderr_line.take());
        match &self.last_stderr_line {
            Some(line) => format!("{} {what}: {line}", self.name),
            None => format!("{} {what}", self.name),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.status.is_none() || self.left_something_behind() {
            // Workers may lead groups of their own.
            let all: Vec<Process> = members(self.pid()).iter().filter_map(|stat| Process::find(stat.pid)).collect();
            all.iter().for_each(Process::kill);
        }
        if self.status.is_none() {
            let _ = kill(self.group, Signal::SIGKILL);
            // Comes: SIGKILL cannot be ignored, and the watching thread reports the exit.
            let _ = self.exit.recv();
        }
    }
}

fn forward(pipe: impl Read + Send + 'static, to: Sender<String>, open: Sender<()>) {
    thread::spawn(move || {
        let _open = open;
        // What is not UTF-8 is shown as well as it can be: the pipe must be read on, or the program blocks.
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let _ = to.send(String::from_utf8_lossy(&line).into_owned());
        }
    });
}

pub fn is_closed(interrupt: &Interrupt) -> bool {
    interrupt.try_recv() == Err(TryRecvError::Disconnected)
}

/// Writes to standard output, as slowly as it is read. A reader that is gone is no error; a full disk is one.
pub fn print_until(interrupt: &Interrupt, text: &str) -> Result<(), Stop> {
    console::print_while(text, || !is_closed(interrupt)).map_err(|failure| Stop::Failed(failure.to_string()))?;
    if is_closed(interrupt) { Err(Stop::Interrupted) } else { Ok(()) }
}

/// A program of the toolkit beside the lab's own file, or any other on the path; a path is taken as it is.
fn find(name: &str) -> Result<PathBuf, String> {
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    let missing = "is neither beside lab nor on the PATH; give its path, or cargo build --release --bins";
    on_path(name).ok_or_else(|| format!("{name} {missing}"))
}

/// Where a program of this name is found, by us and by what we start.
pub fn on_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&search_path()).map(|folder| folder.join(name)).find(|path| path.is_file())
}

/// The folder of the lab's own file, the PATH, and where Debian puts servers.
fn search_path() -> OsString {
    let beside = env::current_exe().ok().and_then(|lab| Some(lab.parent()?.to_path_buf()));
    let path = env::var_os("PATH");
    let folders = beside.into_iter().chain(path.iter().flat_map(env::split_paths)).chain([PathBuf::from("/usr/sbin")]);
    // A folder whose name holds the separator cannot be in a PATH.
    env::join_paths(folders).unwrap_or(path.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn a_missing_privilege_is_not_a_failure() {
        let ended = |stderr: &str| NotReady::Silent {
            status: Some(ExitStatus::from_raw(256)),
            found: "ended with exit status: 1 before it was ready".to_string(),
            stderr: stderr.to_string(),
        };
        let refused = "one line\nload a program: operation not permitted; needs CAP_BPF";
        assert_eq!(ended(&format!("{refused}\n")).missing_privilege(), Some("needs CAP_BPF"));
        assert_eq!(ended("out of memory\n").missing_privilege(), None);
        assert_eq!(ended(&format!("{refused}, or so it seems")).missing_privilege(), None);
        let Stop::Failed(line) = ended(refused).stop("reuseport") else { panic!("not a failure") };
        assert!(line.starts_with("reuseport ended with exit status: 1 before") && !line.contains("one line"));
    }

    #[test]
    fn a_program_that_hangs_is_found_on_any_machine() {
        let launch = |script: &str| Program::new(&["sh", "-c", script].map(String::from)).launch(&[]).unwrap();
        let within = Duration::from_millis(100);
        let mut silent = launch("exec sleep 60");
        let Err(NotReady::Silent { status: None, found, .. }) = silent.await_ready(within) else { panic!("ready") };
        assert_eq!(found, "printed nothing within 100ms");
        assert!(silent.await_exit(within).unwrap().is_none());
        let Err(Stop::Failed(line)) = silent.finish(within, |_| ()) else { panic!("it has ended") };
        assert_eq!(line, "sh did not end within 100ms");
    }

    #[test]
    fn output_that_is_not_text_does_not_stop_the_reading() {
        let program = Program::of("printf ready\\0401\\n\\377\\nend\\n");
        let mut running = program.launch(&[]).unwrap();
        assert_eq!(running.await_ready(Duration::from_secs(30)).unwrap(), "1");
        assert_eq!(running.finish(Duration::from_secs(30), |_| ()).unwrap(), "\u{fffd}\nend\n");
    }

    #[test]
    fn a_dropped_program_takes_its_descendants_with_it() {
        let words = ["sh", "-c", "sleep 60 & echo ready $!; wait"].map(String::from);
        let mut running = Program::new(&words).launch(&[]).unwrap();
        let pid = running.await_ready(Duration::from_secs(30)).unwrap().parse().unwrap();
        let sleeper = Process::find(pid).unwrap();
        drop(running);
        let gone =
            crate::lab::observe::processes::poll_until(Duration::from_secs(30), || (!sleeper.is_alive()).then_some(()));
        assert_eq!(gone, Some(()));
    }
}
