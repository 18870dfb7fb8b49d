//! The folder of one process manager, `$PM_HOME`: where its files are, and the locks by which there is one daemon.
//!
//! ```text
//! control.sock       where clients find the daemon (0600)
//! daemon.lock        held by the daemon as long as it lives; it has the daemon's pid, for people
//! start.lock         held by a client that starts the daemon, so that two clients start one
//! state.json         what runs now: the next daemon adopts it
//! dump.json          what `pm save` has kept for `pm resurrect`
//! pm.log, pm.log.1   what the daemon says; the second is what it said before, when the first has reached 10 MiB
//! logs/NAME-out-ID.log, logs/NAME-error-ID.log
//! fifo/ID-events     what a cluster says of its workers
//! fifo/ID.N-out, fifo/ID.N-err     what the applications (N = 0) and their workers write; it outlives the daemon
//! masters/ID/control.sock          of the `cluster` that an application in cluster mode is
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::failure::Failure;
use crate::logs::lines::LogStream;
use crate::sys::errno_of;
use crate::sys::fd::until_uninterrupted;
use crate::units::wall_ms;

/// Where the environment names the folder.
pub const VARIABLE: &str = "PM_HOME";

#[derive(Clone, Debug)]
pub struct PmHome {
    folder: PathBuf,
}

impl PmHome {
    /// `$PM_HOME`, or `~/.pm`.
    pub fn find() -> Result<PmHome, Failure> {
        let named = std::env::var_os(VARIABLE).filter(|name| !name.is_empty()).map(PathBuf::from);
        let folder = named.or_else(|| std::env::home_dir().map(|home| home.join(".pm")));
        let Some(folder) = folder else {
            return Err(Failure::relay(format!("find the home folder: there is none; set {VARIABLE} to a folder")));
        };
        let folder = std::path::absolute(&folder).map_err(|error| Failure::new(folder.display(), error))?;
        Ok(PmHome { folder })
    }

    pub fn make(&self) -> Result<(), Failure> {
        for folder in [self.folder.clone(), self.logs(), self.folder.join("fifo")] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
            made.map_err(|error| {
                Failure::new(format_args!("create the folder {}", folder.display()), error)
                    .advise(format_args!("set {VARIABLE} to a folder that you may write"))
            })?;
        }
        Ok(())
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The pid of the daemon that has the lock, or had it last.
    pub fn daemon_pid(&self) -> Option<i32> {
        fs::read_to_string(self.folder.join("daemon.lock")).ok()?.trim().parse().ok()
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("control.sock")
    }

    pub fn state(&self) -> PathBuf {
        self.folder.join("state.json")
    }

    pub fn dump(&self) -> PathBuf {
        self.folder.join("dump.json")
    }

    pub fn log(&self) -> PathBuf {
        self.folder.join("pm.log")
    }

    pub fn open_log(&self) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(0o600).open(self.log())
    }

    pub fn logs(&self) -> PathBuf {
        self.folder.join("logs")
    }

    /// What the names of an application's FIFOs begin with.
    pub fn fifo_base(&self, id: u32) -> PathBuf {
        self.folder.join("fifo").join(id.to_string())
    }

    /// The FIFO of a worker of a cluster; worker 0 is all that there is in fork mode.
    pub fn fifo(&self, id: u32, worker: usize, stream: LogStream) -> PathBuf {
        self.folder.join("fifo").join(format!("{id}.{worker}-{}", stream.name()))
    }

    /// Where the cluster of an application says what happens to its workers.
    pub fn worker_events(&self, id: u32) -> PathBuf {
        self.folder.join("fifo").join(format!("{id}-events"))
    }

    /// The daemon of this folder is whoever holds this. `None`: another one does.
    pub fn lock_daemon(&self) -> Result<Option<Flock<File>>, Failure> {
        let Some(mut lock) = self.lock("daemon.lock", FlockArg::LockExclusiveNonblock)? else { return Ok(None) };
        // Only for people: whichever process holds the lock is the daemon, whatever number stands here.
        let written = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
        written.map_err(|error| Failure::new("write daemon.lock", error))?;
        Ok(Some(lock))
    }

    /// Waits until no other client starts a daemon.
    pub fn lock_start(&self) -> Result<Option<Flock<File>>, Failure> {
        self.lock("start.lock", FlockArg::LockExclusive)
    }

    /// The kernel releases it when its holder dies, however it dies.
    fn lock(&self, name: &str, how: FlockArg) -> Result<Option<Flock<File>>, Failure> {
        let path = self.folder.join(name);
        let locked = until_uninterrupted(|| {
            let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
            Flock::lock(file.map_err(errno_of)?, how).map_err(|(_, errno)| errno)
        });
        match locked {
            Err(Errno::EWOULDBLOCK) => Ok(None),
            locked => locked.map(Some).map_err(|errno| Failure::new(format_args!("lock {}", path.display()), errno)),
        }
    }

    /// Makes replaced files last: until then one may have its old content after a crash of the machine (fsync(2)).
    pub fn sync(&self) -> Result<(), Failure> {
        let synced = File::open(&self.folder).and_then(|folder| folder.sync_all());
        synced.map_err(|error| Failure::new(format_args!("write {}", self.folder.display()), error))
    }

    /// Gives a file another name, under which a person may look at it.
    pub fn set_aside(&self, path: &Path) -> Result<PathBuf, Failure> {
        let aside = path.with_extension(format!("damaged-{}.json", wall_ms()));
        fs::rename(path, &aside).map_err(|error| Failure::new(format_args!("rename {}", path.display()), error))?;
        Ok(aside)
    }
}
