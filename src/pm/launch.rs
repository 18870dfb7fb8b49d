//! The mark that a process carries in its environment, so that a daemon finds what one before it has started, and takes
//! no other process for it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs;

use serde::{Deserialize, Serialize};

use super::home::{self, PmHome};
use crate::sys::procfs::{self, Stat};

/// Where a process, and what it has started, has the mark.
pub const VARIABLE: &str = "PM_LAUNCH";

/// One start of a process of an application.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// Random, and the same for all starts of this process.
    token: String,
    /// Counts them.
    number: u64,
}

impl Launch {
    /// Before the first start.
    pub fn of_new_process() -> Launch {
        // random(4): 122 random bits each time it is read.
        let token = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default().trim().to_owned();
        Launch { token, number: 0 }
    }

    pub fn begin_next(&mut self) {
        self.number += 1;
    }

    pub fn mark(&self) -> String {
        format!("{}.{}", self.token, self.number)
    }

    fn parse(mark: &str) -> Option<Launch> {
        let (token, number) = mark.split_once('.')?;
        Some(Launch { token: token.to_owned(), number: number.parse().ok()? })
    }

    /// The last start among the processes that were found, if it came after this one: the state file may not know it
    /// yet.
    pub fn find_later<'a>(&self, found: &'a [LaunchedProcess]) -> Option<&'a LaunchedProcess> {
        let ours = found.iter().filter(|process| process.launch.token == self.token);
        let later = ours.filter(|process| process.launch.number > self.number);
        // What it has started in a session of its own is younger.
        later.max_by_key(|process| (process.launch.number, Reverse(process.stat.started)))
    }

    /// It has the mark of a start of the same process, this or another.
    pub fn has_marked(&self, pid: i32) -> bool {
        let mark = procfs::environment(pid).and_then(|mut environment| environment.remove(VARIABLE));
        mark.and_then(|mark| Launch::parse(&mark)).is_some_and(|launch| launch.token == self.token)
    }
}

/// A process that a daemon with this folder has started.
pub struct LaunchedProcess {
    pub launch: Launch,
    pub stat: Stat,
    pub id: u32,
    pub environment: BTreeMap<String, String>,
}

/// All of them, and what they have started in a session of its own: by their environment.
pub fn find_launched(home: &PmHome) -> Vec<LaunchedProcess> {
    let of = |stat: Stat| {
        let environment = procfs::environment(stat.pid)?;
        let launch = Launch::parse(environment.get(VARIABLE)?)?;
        let id = environment.get("pm_id")?.parse().ok()?;
        let is_ours =
            environment.get(home::VARIABLE).is_some_and(|folder| home.folder().as_os_str() == folder.as_str());
        is_ours.then_some(LaunchedProcess { launch, stat, id, environment })
    };
    Stat::all_processes().filter(|stat| stat.pid == stat.session && stat.is_alive()).filter_map(of).collect()
}
