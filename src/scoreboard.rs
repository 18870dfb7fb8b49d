//! The scoreboard: one row of counters per worker, in memory that all processes of a server share and, with
//! `--scoreboard PATH`, other programs too.
//!
//! Rules of use: a row is written only by its worker (or by whoever reaps it, afterwards), each row has cache
//! lines of its own, and readers need no lock: each counter is exact by itself, two of them may be a moment apart.
//! In two cases others write to it as well; both add, so nothing gets lost: in a cluster a worker and its successor may
//! have one row at the same time; and whoever passes a connection on may count it as open for the worker that gets it.
//!
//! Layout, in 64-bit words of the machine's byte order: a header of [`ROW_WORDS`] (magic, version, rows, start in
//! nanoseconds of CLOCK_MONOTONIC, pid of the first process, eight words of program name), then the rows, each in
//! the order of [`Count`], and behind them room for more.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::failure::Failure;
use crate::membership::{self, Membership};
use crate::report::{AcceptCounts, MasterReport, ServerReport, WorkerReport};
use crate::sys::fd::{take_inherited, until_uninterrupted};
use crate::sys::memory::{Access, shared_words};
use crate::sys::process::Usage;
use crate::units::monotonic_ns;

/// Two cache lines: processors fetch lines in pairs, and a neighbour's counter must not come along.
pub const ROW_WORDS: usize = 16;

const MAGIC: u64 = u64::from_be_bytes(*b"acceptlb");
const VERSION: u64 = 2;
const NAME_WORDS: usize = 8;
const HEADER_NAME: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Count {
    Pid,
    Accepted,
    Requests,
    Active,
    Wakeups,
    EmptyWakeups,
    /// Accepts that returned EAGAIN: empty wake-ups, and the last look of those who take all there is.
    AcceptEagain,
    ClientErrors,
    CpuUserUs,
    CpuSystemUs,
    VoluntarySwitches,
    InvoluntarySwitches,
    MaxRssKib,
    /// When the worker last showed that it is alive, in nanoseconds of CLOCK_MONOTONIC; zero where nobody asks.
    AliveNs,
}

#[derive(Clone, Copy, Debug)]
pub struct WorkerRow {
    words: &'static [AtomicU64],
}

impl WorkerRow {
    /// A reader that sees the new count sees what this worker has done before (see [`WorkerRow::get`]): some readers rely
    /// on the order of two counts.
    pub fn add(self, count: Count, n: u64) {
        self.words[count as usize].fetch_add(n, Release);
    }

    /// As [`WorkerRow::add`].
    pub fn subtract(self, count: Count, n: u64) {
        self.words[count as usize].fetch_sub(n, Release);
    }

    pub fn get(self, count: Count) -> u64 {
        self.words[count as usize].load(Acquire)
    }

    /// The kernel has closed the connections of a worker that was killed, and it cannot say so.
    pub fn lose_open_connections(self) {
        self.words[Count::Active as usize].store(0, Release);
    }

    /// The same for one connection, where others of the row stay open. A process that is killed just after it has
    /// counted its last one as closed has none left to lose.
    pub fn lose_open_connection(self) {
        let _ = self.words[Count::Active as usize].fetch_update(Release, Acquire, |open| open.checked_sub(1));
    }

    /// Its process has ended and was reaped: what it has used is not known earlier.
    fn has_ended(self) -> bool {
        self.get(Count::MaxRssKib) > 0
    }

    pub fn set_pid(self, pid: u32) {
        self.words[Count::Pid as usize].store(pid.into(), Relaxed);
    }

    pub fn set_alive(self, now_ns: u64) {
        self.words[Count::AliveNs as usize].store(now_ns, Relaxed);
    }

    pub fn set_usage(self, usage: Usage) {
        for (count, value) in [
            (Count::CpuUserUs, usage.cpu_user_us),
            (Count::CpuSystemUs, usage.cpu_system_us),
            (Count::VoluntarySwitches, usage.voluntary_switches),
            (Count::InvoluntarySwitches, usage.involuntary_switches),
            (Count::MaxRssKib, usage.max_rss_kib),
        ] {
            self.words[count as usize].store(value, Relaxed);
        }
    }

    /// Adds the usage of one more process that has served for this row.
    pub fn add_usage(self, usage: Usage) {
        self.add(Count::CpuUserUs, usage.cpu_user_us);
        self.add(Count::CpuSystemUs, usage.cpu_system_us);
        self.add(Count::VoluntarySwitches, usage.voluntary_switches);
        self.add(Count::InvoluntarySwitches, usage.involuntary_switches);
        self.words[Count::MaxRssKib as usize].fetch_max(usage.max_rss_kib, Release);
    }

    fn report(self, id: usize) -> WorkerReport {
        WorkerReport {
            id,
            pid: self.get(Count::Pid) as i32,
            accepted: self.get(Count::Accepted),
            requests: self.get(Count::Requests),
            active: self.get(Count::Active),
            wakeups: self.get(Count::Wakeups),
            empty_wakeups: self.get(Count::EmptyWakeups),
            accept_eagain: self.get(Count::AcceptEagain),
            client_errors: self.get(Count::ClientErrors),
            cpu_user_us: self.get(Count::CpuUserUs),
            cpu_system_us: self.get(Count::CpuSystemUs),
            voluntary_switches: self.get(Count::VoluntarySwitches),
            involuntary_switches: self.get(Count::InvoluntarySwitches),
            max_rss_kib: self.get(Count::MaxRssKib),
        }
    }
}

impl AcceptCounts {
    /// The same count of a master that accepts for its workers, which has no row.
    pub fn count(&mut self, count: Count) {
        match count {
            Count::Accepted => self.accepted += 1,
            Count::Wakeups => self.wakeups += 1,
            Count::EmptyWakeups => self.empty_wakeups += 1,
            Count::AcceptEagain => self.accept_eagain += 1,
            // The worker that serves the connection counts the rest.
            _ => {}
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Scoreboard {
    words: &'static [AtomicU64],
    /// In a worker of a cluster, the one row that is ours, whatever number we give ourselves.
    own: Option<usize>,
}

impl Scoreboard {
    /// Makes the scoreboard of a server that starts now. Before the first fork: children inherit the mapping.
    pub fn create(model: &str, rows: usize, file: Option<&Path>) -> Result<Scoreboard, Failure> {
        if let (None, Some(membership)) = (file, membership::of_this_process().ok().flatten()) {
            return Scoreboard::join(model, membership);
        }
        let words = words_for(rows);
        let mapped = match file {
            None => shared_words(words, None).map_err(cannot_map)?,
            Some(path) => create_file(path, words)?.0,
        };
        Ok(Scoreboard::begin(mapped, model, rows))
    }

    /// As [`Scoreboard::create`], for workers that are programs of their own, with room for `capacity` rows in all:
    /// they inherit the file (memfd_create(2), where it has no name).
    pub fn create_shared(
        model: &str,
        rows: usize,
        capacity: usize,
        file: Option<&Path>,
    ) -> Result<(Scoreboard, OwnedFd), Failure> {
        let words = words_for(capacity.max(rows));
        let (mapped, file) = match file {
            None => memory(words).map_err(cannot_map)?,
            Some(path) => create_file(path, words)?,
        };
        Ok((Scoreboard::begin(mapped, model, rows), file.into()))
    }

    /// The master's scoreboard, in a worker of a cluster; one of its own where the master has none.
    fn join(model: &str, membership: Membership) -> Result<Scoreboard, Failure> {
        let Some(number) = membership.scoreboard else {
            let words = shared_words(words_for(1), None).map_err(cannot_map)?;
            return Ok(Scoreboard { own: Some(0), ..Scoreboard::begin(words, model, 1) });
        };
        let tried = || format!("scoreboard of the master, descriptor {number}");
        let file = take_inherited(number).map_err(|errno| Failure::new(tried(), errno))?;
        let board = Scoreboard::map_existing(&File::from(file), Access::Write, tried)?;
        if membership.number >= board.capacity() {
            let why = format!("it has no row {}", membership.number);
            return Err(Failure::new(tried(), std::io::Error::other(why)));
        }
        Ok(Scoreboard { own: Some(membership.number), ..board })
    }

    fn begin(words: &'static [AtomicU64], model: &str, rows: usize) -> Scoreboard {
        let board = Scoreboard { words, own: None };
        for (i, chunk) in model.as_bytes().chunks(8).take(NAME_WORDS).enumerate() {
            let mut bytes = [0; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            board.words[HEADER_NAME + i].store(u64::from_ne_bytes(bytes), Relaxed);
        }
        let header = [MAGIC, VERSION, rows as u64, monotonic_ns(), std::process::id().into()];
        // The magic number last: a reader that finds it finds the rest.
        for (word, value) in board.words.iter().zip(header).rev() {
            word.store(value, Release);
        }
        board
    }

    /// From now on so many rows count, of those there is room for.
    pub fn set_rows(&self, rows: usize) {
        assert!(rows <= self.capacity(), "there is room for {} rows", self.capacity());
        self.words[2].store(rows as u64, Release);
    }

    fn capacity(&self) -> usize {
        self.words.len() / ROW_WORDS - 1
    }

    /// Opens the scoreboard of a running server from another process, for reading.
    pub fn open(path: &Path) -> Result<Scoreboard, Failure> {
        let tried = || format!("scoreboard {}", path.display());
        let file = File::open(path).map_err(|error| Failure::new(tried(), error))?;
        Scoreboard::map_existing(&file, Access::Read, tried)
    }

    fn map_existing(file: &File, access: Access, tried: impl Fn() -> String) -> Result<Scoreboard, Failure> {
        let odd = |what: &str| Failure::new(tried(), std::io::Error::other(what.to_owned()));
        let length = file.metadata().map_err(|error| Failure::new(tried(), error))?.len() as usize / 8;
        let words = NonZeroUsize::new(length).filter(|words| words.get() >= ROW_WORDS);
        let words = words.ok_or_else(|| odd("too short for a scoreboard"))?;
        let words = shared_words(words, Some((file, access))).map_err(|errno| Failure::new(tried(), errno))?;
        let header = |i: usize| words[i].load(Acquire);
        if header(0) != MAGIC {
            return Err(odd("not a scoreboard (yet)"));
        }
        if header(1) != VERSION {
            return Err(odd("a scoreboard of another version of acceptlab"));
        }
        if header(2) as usize > length / ROW_WORDS - 1 {
            return Err(odd("a scoreboard with rows missing"));
        }
        Ok(Scoreboard { words, own: None })
    }

    pub fn rows(&self) -> usize {
        // Of our own we know it, and a foreign one must not make us read beyond its end.
        (self.words[2].load(Acquire) as usize).min(self.capacity())
    }

    pub fn bytes(&self) -> u64 {
        8 * self.words.len() as u64
    }

    pub fn row(&self, id: usize) -> WorkerRow {
        let id = self.own.unwrap_or(id);
        let start = ROW_WORDS * (1 + id);
        WorkerRow { words: &self.words[start..start + ROW_WORDS] }
    }

    /// The worker with the fewest open connections among these, which are processes, and how many that are. One that
    /// has died has none and will take none: it is left out.
    pub fn least_busy(&self, among: impl IntoIterator<Item = usize>) -> Option<(usize, u64)> {
        let alive = among.into_iter().filter(|&id| !self.row(id).has_ended());
        alive.map(|id| (id, self.row(id).get(Count::Active))).min_by_key(|&(_, open)| open)
    }

    pub fn model(&self) -> String {
        let name = &self.words[HEADER_NAME..HEADER_NAME + NAME_WORDS];
        let bytes: Vec<u8> = name.iter().flat_map(|word| word.load(Relaxed).to_ne_bytes()).collect();
        String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
    }

    /// The first process of the server, which the others descend from.
    pub fn pid(&self) -> i32 {
        self.words[4].load(Relaxed) as i32
    }

    pub fn uptime_s(&self) -> f64 {
        monotonic_ns().saturating_sub(self.words[3].load(Relaxed)) as f64 / 1e9
    }

    /// Made before this machine was booted: CLOCK_MONOTONIC, which begins at the boot, has not come so far yet.
    pub fn is_from_an_earlier_boot(&self) -> bool {
        self.words[3].load(Relaxed) > monotonic_ns()
    }

    /// The document for standard output; `master` when a process beside the workers did part of the work.
    pub fn report(&self, address: impl fmt::Display, master: Option<Usage>) -> ServerReport {
        ServerReport {
            model: self.model(),
            listen: address.to_string(),
            uptime_s: self.uptime_s(),
            workers: (0..self.rows()).map(|id| self.row(id).report(id)).collect(),
            master: master.map(|usage| MasterReport {
                pid: std::process::id() as i32,
                cpu_user_us: usage.cpu_user_us,
                cpu_system_us: usage.cpu_system_us,
                voluntary_switches: usage.voluntary_switches,
                involuntary_switches: usage.involuntary_switches,
                max_rss_kib: usage.max_rss_kib,
                accepts: None,
            }),
            cluster: None,
        }
    }
}

fn memory(words: NonZeroUsize) -> std::io::Result<(&'static [AtomicU64], File)> {
    let memory = anonymous_file()?;
    allocate(&memory, 8 * words.get() as u64)?;
    // A worker that made it shorter would be our SIGBUS (mmap(2)). Only a memfd can be sealed; with any other file the
    // workers are trusted.
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    let _ = fcntl(&memory, FcntlArg::F_ADD_SEALS(seals));
    Ok((shared_words(words, Some((&memory, Access::Write)))?, memory))
}

/// A file without a name: memfd_create(2), or where a sandbox forbids that, a temporary one.
fn anonymous_file() -> std::io::Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    if let Ok(memory) = memfd_create(c"scoreboard", flags) {
        return Ok(File::from(memory));
    }
    let path = std::env::temp_dir().join(format!("scoreboard-{}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(path)?;
    Ok(file)
}

fn words_for(rows: usize) -> NonZeroUsize {
    NonZeroUsize::new(ROW_WORDS * (1 + rows)).expect("a header is never empty")
}

fn cannot_map(error: impl Into<std::io::Error>) -> Failure {
    Failure::new("map the scoreboard", error)
}

fn create_file(path: &Path, words: NonZeroUsize) -> Result<(&'static [AtomicU64], File), Failure> {
    let create = || {
        remove_stale(path)?;
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        allocate(&file, 8 * words.get() as u64)?;
        let mapped = shared_words(words, Some((&file, Access::Write)))?;
        Ok::<_, std::io::Error>((mapped, file))
    };
    let tried = format_args!("scoreboard {}", path.display());
    create()
        .map_err(|error| Failure::new(tried, error).advise("choose a file you may write, such as one under /dev/shm"))
}

/// Gives the file its length, and the blocks for it now: to store into a page for which there is no block left, as on a
/// full /dev/shm, would be SIGBUS (mmap(2)).
fn allocate(file: &File, bytes: u64) -> std::io::Result<()> {
    match until_uninterrupted(|| fallocate(file, FallocateFlags::empty(), 0, bytes as i64)) {
        // A file system that cannot promise (fallocate(2)), or a sandbox that forbids it.
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EPERM) => file.set_len(bytes),
        other => other.map_err(std::io::Error::from),
    }
}

/// Makes room for a new scoreboard. The file of a server that still runs loses its name, not its contents: that
/// server goes on counting in the memory it has mapped. What is no scoreboard is not ours to remove.
fn remove_stale(path: &Path) -> std::io::Result<()> {
    let mut magic = [0; 8];
    match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(file) if file.metadata()?.len() == 0 && file.metadata()?.is_file() => {}
        Ok(mut file) => {
            if file.read_exact(&mut magic).is_err() || u64::from_ne_bytes(magic) != MAGIC {
                return Err(std::io::Error::other("there is a file of another kind in its place"));
            }
        }
    }
    std::fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_scoreboard_has_its_blocks_before_anybody_counts() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("board");
        let board = Scoreboard::create("test", 1000, Some(&file)).unwrap();
        let metadata = std::fs::metadata(&file).unwrap();
        assert_eq!(metadata.len(), board.bytes());
        assert!(512 * metadata.blocks() >= board.bytes(), "{} blocks", metadata.blocks());
    }

    #[test]
    fn rows_are_added_where_there_is_room_and_readers_see_them() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("board");
        let (board, _inherited) = Scoreboard::create_shared("test", 2, 4, Some(&file)).unwrap();
        let reader = Scoreboard::open(&file).unwrap();
        assert_eq!((board.rows(), reader.rows()), (2, 2));
        board.set_rows(4);
        board.row(3).add(Count::Requests, 7);
        assert_eq!((reader.rows(), reader.row(3).get(Count::Requests)), (4, 7));
        assert_eq!(board.report("nowhere", None).workers.len(), 4);
    }

    #[test]
    fn the_least_busy_worker_is_not_one_that_has_ended() {
        let board = Scoreboard::create("test", 3, None).unwrap();
        board.row(0).add(Count::Active, 3);
        board.row(2).add(Count::Active, 2);
        assert_eq!(board.least_busy(0..3), Some((1, 0)));
        board.row(1).add_usage(Usage::of_process());
        assert_eq!(board.least_busy(0..3), Some((2, 2)));
        assert_eq!(board.least_busy([1]), None);
    }

    #[test]
    fn a_scoreboard_from_before_the_boot_has_no_uptime_and_says_so() {
        let board = Scoreboard::create("test", 1, None).unwrap();
        assert!(!board.is_from_an_earlier_boot());
        board.words[3].store(monotonic_ns() + 3_600_000_000_000, Relaxed);
        assert!(board.is_from_an_earlier_boot());
        assert_eq!(board.uptime_s(), 0.0);
    }
}
