//! Reads the counters of a running server from its scoreboard, and opens it again when another server has taken its
//! name. The server notices nothing: its memory is mapped for reading, and the rest is in /proc.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::failure::Failure;
use crate::lab::observe::processes::Process;
use crate::scoreboard::{Count, Scoreboard, WorkerRow};
use crate::sys::descriptors::Descriptors;
use crate::sys::procfs::voluntary_switches;
use crate::sys::sock_diag::listeners;
use crate::units::monotonic_ns;

/// A server that runs, or ran at the last look.
pub struct WatchedServer {
    path: PathBuf,
    board: Scoreboard,
    /// Which file the name meant when it was opened.
    file: (u64, u64),
    process: Process,
    /// The command line as the server was started, without the folder of the program.
    pub command: String,
    /// The sockets it listens on, where the user may see them.
    pub addresses: Vec<SocketAddr>,
}

/// The counters at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerSample {
    pub at_ns: u64,
    pub uptime_s: f64,
    /// The server's first process lives.
    pub is_running: bool,
    /// The context switches of all workers' processes, as the kernel counts them: a worker that is woken for nothing
    /// and sleeps again inside `epoll_wait` shows only here.
    pub switches: Option<u64>,
    pub workers: Vec<WorkerSample>,
}

/// One row of the scoreboard, as one line of `--once`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct WorkerSample {
    pub worker: usize,
    pub pid: i32,
    pub state: ProcessState,
    pub accepted: u64,
    pub requests: u64,
    pub active: u64,
    pub wakeups: u64,
    pub empty_wakeups: u64,
    pub accept_eagain: u64,
    pub client_errors: u64,
    /// Absent where workers share a process, and of one that has ended.
    pub voluntary_switches: Option<u64>,
}

/// What a worker's process does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProcessState {
    #[default]
    Running,
    /// Forked at most; it has not written its name into its row.
    Starting,
    /// By SIGSTOP or a debugger.
    Stopped,
    /// Its counters are its last ones.
    Ended,
}

/// What became of a server between two looks.
pub enum Look {
    Seen(ServerSample),
    /// Another server has taken the name, and this is its first sample.
    Replaced(ServerSample),
}

impl WatchedServer {
    /// # Errors
    /// When there is no scoreboard under this name, or its server has ended.
    pub fn open(path: &Path) -> Result<WatchedServer, Failure> {
        let tried = || format!("scoreboard {}", path.display());
        let odd = |what: String| Failure::new(tried(), std::io::Error::other(what));
        let advice = "start a server with --scoreboard PATH and give the same path here";
        let file = identity(path).map_err(|error| Failure::new(tried(), error).advise(advice))?;
        let board = Scoreboard::open(path)?;
        if identity(path).ok() != Some(file) {
            return Err(odd("another server has just taken this name; try again".to_string()));
        }
        let ended = || odd(format!("its server, pid {}, has ended", board.pid())).advise(advice);
        let process = Process::find(board.pid()).ok_or_else(ended)?;
        // A process younger than the scoreboard has only reused the pid of the one that made it. Ticks round.
        if board.is_from_an_earlier_boot() || process.age_s() + 0.05 < board.uptime_s() {
            return Err(ended());
        }
        let workers = (0..board.rows()).map(|id| board.row(id).get(Count::Pid) as i32);
        let processes: BTreeSet<i32> = workers.chain([process.pid]).collect();
        Ok(WatchedServer {
            path: path.to_owned(),
            board,
            file,
            process,
            command: command(process.pid).unwrap_or_else(|| board.model()),
            addresses: listening(&processes),
        })
    }

    /// Reads all counters.
    ///
    /// # Errors
    /// When the file has been cut short: reading the missing part would kill this process (SIGBUS).
    pub fn look(&mut self) -> Result<Look, Failure> {
        let named = fs::metadata(&self.path).ok();
        let is_ours = |named: &fs::Metadata| (named.dev(), named.ino()) == self.file;
        if named.as_ref().filter(|named| is_ours(named)).is_some_and(|named| named.len() < self.board.bytes()) {
            let tried = format!("scoreboard {}", self.path.display());
            return Err(Failure::new(tried, std::io::Error::other("it has been cut short while it was watched")));
        }
        // A new server that has not finished its scoreboard is opened at the next look.
        if let Some(new) = named.filter(|named| !is_ours(named)).and_then(|_| WatchedServer::open(&self.path).ok()) {
            *self = new;
            return Ok(Look::Replaced(self.sample()));
        }
        Ok(Look::Seen(self.sample()))
    }

    pub fn sample(&self) -> ServerSample {
        let mut workers: Vec<WorkerSample> = (0..self.board.rows()).map(|id| worker(id, self.board.row(id))).collect();
        let switches = count_switches(&mut workers);
        // Looked at last: a server that lives now lived when its counters were read.
        let (at_ns, uptime_s) = (monotonic_ns(), self.board.uptime_s());
        ServerSample { at_ns, uptime_s, is_running: self.process.is_alive(), switches, workers }
    }

    pub fn pid(&self) -> i32 {
        self.process.pid
    }
}

fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

fn worker(id: usize, row: WorkerRow) -> WorkerSample {
    let pid = row.get(Count::Pid) as i32;
    WorkerSample {
        worker: id,
        pid,
        state: match Process::find(pid) {
            None if pid == 0 => ProcessState::Starting,
            None => ProcessState::Ended,
            Some(process) if process.is_stopped() => ProcessState::Stopped,
            Some(_) => ProcessState::Running,
        },
        accepted: row.get(Count::Accepted),
        requests: row.get(Count::Requests),
        active: row.get(Count::Active),
        wakeups: row.get(Count::Wakeups),
        empty_wakeups: row.get(Count::EmptyWakeups),
        accept_eagain: row.get(Count::AcceptEagain),
        client_errors: row.get(Count::ClientErrors),
        voluntary_switches: None,
    }
}

/// The sum over the processes of the workers, each of which gets its own count. Unknown where one of them has ended:
/// what it had counted is gone.
fn count_switches(workers: &mut [WorkerSample]) -> Option<u64> {
    let mut of_process = BTreeMap::new();
    for worker in workers.iter().filter(|worker| worker.pid > 0) {
        let (_, sharing) = of_process.entry(worker.pid).or_insert_with(|| (voluntary_switches(worker.pid), 0));
        *sharing += 1;
    }
    for worker in workers.iter_mut() {
        let own = of_process.get(&worker.pid).filter(|(_, sharing)| *sharing == 1);
        worker.voluntary_switches = own.and_then(|(switches, _)| *switches);
    }
    of_process.values().map(|(switches, _)| *switches).sum()
}

/// The words a process was started with.
fn command(pid: i32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let mut words: Vec<&str> = text.split('\0').filter(|word| !word.is_empty()).collect();
    *words.first_mut()? = words.first()?.rsplit('/').next()?;
    Some(words.join(" "))
}

/// The TCP sockets on which one of these processes listens.
fn listening(processes: &BTreeSet<i32>) -> Vec<SocketAddr> {
    let descriptors: Vec<Descriptors> = processes.iter().filter_map(|&pid| Descriptors::of(pid)).collect();
    let sockets: BTreeSet<u32> = descriptors.iter().flat_map(Descriptors::sockets).collect();
    // Where the kernel cannot be asked, the heading has no address.
    let ours = listeners().unwrap_or_default().into_iter().filter(|listener| sockets.contains(&listener.inode));
    let found: BTreeSet<SocketAddr> = ours.filter_map(|listener| listener.ip()).collect();
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_listener_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let found = listening(&[std::process::id() as i32].into());
        assert!(found.contains(&listener.local_addr().unwrap()), "{found:?}");
    }
}
