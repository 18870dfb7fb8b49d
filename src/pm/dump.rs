//! What survives the daemon: the applications and their processes, as one JSON file. `state.json` is what runs now, and
//! the next daemon adopts it; `dump.json` is what `pm save` has kept, and `pm resurrect` starts it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::config::AppConfig;
use super::fork_mode::ProcessIdentity;
use super::home::PmHome;
use super::protocol::ProcessStatus;
use super::restarts::RestartBudget;
use crate::failure::Failure;

#[derive(Debug, Serialize, Deserialize)]
pub struct SavedState {
    /// Of the machine's start: numbers and times of processes mean nothing after the next.
    pub boot: String,
    pub apps: Vec<SavedApplication>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct SavedApplication {
    pub config: AppConfig,
    pub environment: BTreeMap<String, String>,
    pub processes: Vec<SavedProcess>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct SavedProcess {
    pub id: u32,
    /// Among the instances of the application.
    pub number: usize,
    pub status: ProcessStatus,
    pub after_stop: Option<AfterStop>,
    pub identity: Option<ProcessIdentity>,
    pub budget: RestartBudget,
    pub restart_time: u64,
    pub created_ms: u64,
    pub reason: Option<String>,
    pub exit_code: Option<i32>,
    pub worker_ids: Vec<u32>,
}

/// What becomes of a process that was asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AfterStop {
    Remain,
    Restart,
    Delete,
    /// It is errored, with the reason that it has.
    Fail,
}

impl SavedState {
    pub fn new(apps: Vec<SavedApplication>) -> SavedState {
        SavedState { boot: boot(), apps }
    }

    /// Whether the processes may still be there.
    pub fn is_of_this_boot(&self) -> bool {
        self.boot == boot()
    }

    pub fn write(&self, home: &PmHome, path: &Path) -> Result<(), Failure> {
        let content = serde_json::to_vec(self).expect("its keys are strings");
        home.replace(path, &content)
    }

    /// `None` when there is no such file.
    pub fn read(home: &PmHome, path: &Path) -> Result<Option<SavedState>, Failure> {
        let Some(content) = home.read(path)? else { return Ok(None) };
        let state = serde_json::from_slice(&content);
        state.map(Some).map_err(|error| Failure::new(format_args!("read {}", path.display()), error))
    }
}

/// random(4): another one after each start of the machine.
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
