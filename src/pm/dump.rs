//! What survives the daemon: the applications and their processes, as one JSON file. `state.json` is what runs now, and
//! the next daemon adopts it; `dump.json` is what `pm save` has kept, and `pm resurrect` starts it.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::config::AppConfig;
use super::fork_mode::ProcessIdentity;
use super::launch::Launch;
use super::protocol::ProcessStatus;
use super::restarts::RestartBudget;
use crate::failure::Failure;
use crate::units::wall_ms;

#[derive(Debug, Serialize, Deserialize)]
pub struct SavedState {
    /// The id of the machine's start: numbers and times of processes mean nothing after the next.
    boot: String,
    pub apps: Vec<SavedApplication>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct SavedApplication {
    pub app: Application,
    pub processes: Vec<ProcessRecord>,
}

/// What is to be run, and the environment of whoever has asked for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Application {
    pub config: AppConfig,
    pub environment: BTreeMap<String, String>,
}

/// What the daemon knows of one process of an application, and the next daemon has to know.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ProcessRecord {
    pub id: u32,
    /// Its number among the instances of the application.
    pub number: usize,
    pub status: ProcessStatus,
    /// It has ended by itself and stays so: its clock may start it again, unless somebody stops that, too.
    #[serde(default)]
    pub has_finished: bool,
    /// What becomes of it when it has ended, where it was asked to end.
    pub after_stop: Option<AfterStop>,
    pub identity: Option<ProcessIdentity>,
    pub launch: Launch,
    pub budget: RestartBudget,
    pub created_ms: u64,
    /// Why it is not online, or how it ended last.
    pub reason: Option<String>,
    /// Why its cluster starts no workers any more; those that live go on.
    #[serde(default)]
    pub giveup: Option<String>,
    pub exit_code: Option<i32>,
    /// In cluster mode each worker is listed by itself; in fork mode the process is the only one.
    pub workers: Vec<WorkerRecord>,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct WorkerRecord {
    /// The first one's is that of the process.
    pub id: u32,
    pub restarts: u64,
    /// Its last process has ended as it was to, and has no successor.
    #[serde(default)]
    pub has_finished: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AfterStop {
    Remain,
    Restart,
    Delete,
    /// It is errored, with the reason that it has.
    Fail,
}

impl ProcessRecord {
    /// The record of a process that has not been started yet.
    pub fn new(id: u32, number: usize) -> ProcessRecord {
        let workers = vec![WorkerRecord { id, ..WorkerRecord::default() }];
        let (launch, created_ms) = (Launch::of_new_process(), wall_ms());
        ProcessRecord { id, number, launch, created_ms, workers, ..ProcessRecord::default() }
    }
}

impl SavedState {
    pub fn new(apps: Vec<SavedApplication>) -> SavedState {
        SavedState { boot: boot(), apps }
    }

    pub fn is_of_this_boot(&self) -> bool {
        self.boot == boot()
    }

    /// After a crash of the program or of the machine the file has its old or its new content, and is whole.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        let temporary = path.with_extension("json.new");
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.sync_data()?;
            fs::rename(&temporary, path)
        };
        write().map_err(|error: io::Error| Failure::new(format_args!("write {}", path.display()), error))
    }

    pub fn read(path: &Path) -> Result<Option<SavedState>, Failure> {
        let read = match fs::read(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            read => read.and_then(|content| Ok(serde_json::from_slice(&content)?)),
        };
        read.map(Some).map_err(|error| Failure::new(format_args!("read {}", path.display()), error))
    }
}

/// random(4): another one after each start of the machine.
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
