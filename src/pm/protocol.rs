//! What a client and the daemon say to each other on the control socket. A client sends one request, a line of JSON; the
//! answer is lines of JSON, of which the last has the key `"ok"`. Any program may be a client:
//!
//! ```text
//! $ echo '{"do":"list"}' | nc -U ~/.pm/control.sock
//! {"ok":true,"processes":[{"pid":604,"name":"web","pm_id":0,…}]}
//! ```

use std::collections::BTreeMap;
use std::fmt;

use clap::Subcommand;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::config::{AppConfig, LogType};

/// The event of a daemon that ends in order; after one that was killed there is none.
pub const LAST_EVENT: &str = "end";

/// What the targets of a request are.
pub const TARGETS: &str = "An id, a name, a namespace, /regex/ over names, or all";

/// A request; those that the command line has in the same form are its subcommands, too.
#[derive(Clone, Debug, Subcommand, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum PmRequest {
    #[command(skip)]
    List,
    /// An application whose name is there already is restarted with the new configuration.
    #[command(skip)]
    Start {
        apps: Vec<AppConfig>,
        /// The client's environment: what the applications' own variables are added to.
        #[serde(default)]
        environment: BTreeMap<String, String>,
        /// A name that is there already is an error.
        #[serde(default)]
        only_new: bool,
        /// One that is there is reloaded instead of restarted.
        #[serde(default)]
        reload: bool,
    },
    /// Starts what is stopped.
    #[command(skip)]
    Wake { targets: Vec<String> },
    #[command(skip)]
    Stop { targets: Vec<String> },
    #[command(skip)]
    Restart {
        targets: Vec<String>,
        /// The client's environment, in place of the one before.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        environment: Option<BTreeMap<String, String>>,
    },
    /// Replaces the workers of a cluster, one after another; restarts what is none.
    #[command(skip)]
    Reload {
        targets: Vec<String>,
        /// The same.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        environment: Option<BTreeMap<String, String>>,
    },
    #[command(skip)]
    Delete { targets: Vec<String> },
    /// Show all that is known about a process
    #[command(visible_aliases = ["show", "info", "desc"])]
    Describe {
        #[arg(required = true, value_name = "APPLICATION", help = TARGETS)]
        targets: Vec<String>,
    },
    /// Set the number of processes; +N or -N changes it by N
    Scale {
        name: String,
        #[arg(value_name = "N", value_parser = parse_instances, allow_hyphen_values = true)]
        instances: Instances,
    },
    /// Empty the logs of applications
    Flush {
        #[arg(value_name = "APPLICATION", default_value = "all", help = TARGETS)]
        targets: Vec<String>,
    },
    /// Open the logs anew, after logrotate(8) has renamed them; so does SIGUSR2 to the daemon
    #[command(alias = "reloadLogs")]
    ReloadLogs,
    /// Send a signal to applications
    #[command(alias = "sendSignal")]
    Signal {
        /// Such as SIGUSR2, or its number
        #[arg(value_parser = parse_signal)]
        signal: i32,
        #[arg(required = true, value_name = "APPLICATION", help = TARGETS)]
        targets: Vec<String>,
    },
    /// Set the count of restarts to 0
    Reset {
        #[arg(required = true, value_name = "APPLICATION", help = TARGETS)]
        targets: Vec<String>,
    },
    /// Keep the list of applications in a file, for `resurrect`
    #[command(visible_alias = "dump")]
    Save,
    /// Start the applications that `save` has kept
    Resurrect {
        /// Only where the list is empty: a daemon that has adopted one knows better what is wanted
        #[arg(long, hide = true)]
        #[serde(default)]
        if_empty: bool,
    },
    /// Events, each a line, until the client leaves.
    #[command(skip)]
    Events,
    /// Say whether the daemon answers, and start it if there is none
    Ping,
    /// Stops all processes, and the daemon.
    #[command(skip)]
    Kill,
}

impl PmRequest {
    /// It wants to know, and changes nothing.
    pub fn only_looks(&self) -> bool {
        matches!(self, PmRequest::Ping | PmRequest::List | PmRequest::Describe { .. })
    }
}

/// A name with or without SIG, or a number: the number.
fn parse_signal(text: &str) -> Result<i32, String> {
    let named = format!("SIG{}", text.to_uppercase().trim_start_matches("SIG"));
    let numbered = || text.parse::<i32>().ok().and_then(|number| Signal::try_from(number).ok());
    let odd = || format!("{text:?} is not a signal; write it like SIGUSR2 or 12");
    named.parse().ok().or_else(numbered).map(|signal| signal as i32).ok_or_else(odd)
}

/// How many processes an application is to have.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Instances {
    Exactly(usize),
    /// Than there are; a negative number, fewer.
    More {
        more: isize,
    },
}

fn parse_instances(text: &str) -> Result<Instances, String> {
    let number = if text.starts_with(['+', '-']) {
        text.parse().ok().map(|more| Instances::More { more })
    } else {
        text.parse().ok().map(Instances::Exactly)
    };
    number.ok_or_else(|| "write it like 4, +2 or -1".to_owned())
}

/// The last line of an answer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PmReply {
    pub ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// All of them for `list`, otherwise those that the request was about, as they are now.
    #[serde(default)]
    pub processes: Vec<ProcessEntry>,
}

/// One process as `pm jlist` shows it, with PM2's keys, so that programs written for PM2's list read ours.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProcessEntry {
    /// 0: there is none.
    pub pid: i32,
    pub name: String,
    pub pm_id: u32,
    pub monit: ProcessUsage,
    pub pm2_env: ProcessState,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct ProcessUsage {
    /// Resident, in bytes.
    pub memory: u64,
    /// Percent of one CPU.
    pub cpu: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProcessState {
    pub status: ProcessStatus,
    /// The last start, in milliseconds since 1970.
    pub pm_uptime: u64,
    pub created_at: u64,
    /// How long the process has been up, in milliseconds of a clock that does not jump; 0 where there is none.
    pub uptime_ms: u64,
    #[serde(rename = "restart_time")]
    pub restarts: u64,
    pub unstable_restarts: u64,
    /// `fork_mode` or `cluster_mode`.
    pub exec_mode: String,
    pub instances: usize,
    pub pm_exec_path: String,
    pub pm_cwd: String,
    pub pm_out_log_path: String,
    pub pm_err_log_path: String,
    pub exec_interpreter: String,
    pub args: Vec<String>,
    pub namespace: String,
    #[serde(rename = "NODE_APP_INSTANCE")]
    pub number: usize,
    pub env: BTreeMap<String, String>,
    /// Why it is not online, or how it ended last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why lines that it writes are lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_problem: Option<String>,
    /// How the last process ended: a status, or 128 and the signal's number as in a shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Keys of the configuration that nobody here knows.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub unknown: Map<String, Value>,
    pub log_type: LogType,
    pub autorestart: bool,
    pub watch: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron_restart: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_memory_restart: Option<u64>,
}

/// How a process is, in PM2's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProcessStatus {
    Online,
    /// It runs, and has not said yet that it is ready.
    Launching,
    /// It was asked to end.
    Stopping,
    #[default]
    Stopped,
    /// It ended, and is started again after a delay.
    #[serde(rename = "waiting restart")]
    WaitingRestart,
    /// It could not be started, or ended too often.
    Errored,
}

impl ProcessStatus {
    /// Nobody has stopped it, and it has not failed.
    pub fn is_to_run(self) -> bool {
        !matches!(self, ProcessStatus::Stopped | ProcessStatus::Errored)
    }
}

/// As in JSON.
impl fmt::Display for ProcessStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        self.serialize(formatter)
    }
}
