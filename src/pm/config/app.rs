//! What an application is, as plain values: one field per key of the configuration, with PM2's names and defaults.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use smart_default::SmartDefault;

/// How the processes of an application are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExecMode {
    /// Each is a process of its own, of any program.
    Fork,
    /// They are the workers of one `cluster` and share its ports.
    Cluster,
}

/// Who accepts the connections of an application in cluster mode, as in Node's cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// The master, which passes them to the workers by turns.
    Rr,
    /// The workers, each when it is free.
    None,
}

/// As in a configuration, and as an option of `cluster`.
impl fmt::Display for Schedule {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        self.serialize(formatter)
    }
}

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogType {
    Text,
    Json,
}

/// One application. Paths are absolute, durations are written in milliseconds, sizes in bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, SmartDefault)]
#[serde(default)]
pub struct AppConfig {
    /// Without a slash: it is part of the names of files.
    pub name: String,
    #[default = "default"]
    pub namespace: String,
    /// An absolute path, or the name of a program that PATH finds.
    pub script: PathBuf,
    pub args: Vec<String>,
    /// The program that runs the script; `None`: the script is a program itself.
    pub interpreter: Option<String>,
    pub interpreter_args: Vec<String>,
    pub cwd: PathBuf,
    #[default(ExecMode::Fork)]
    pub exec_mode: ExecMode,
    /// At least 1: `max`, 0 and negative numbers have become a number of processes.
    #[default = 1]
    pub instances: usize,
    /// What the application gets beside, or instead of, the environment of the one who starts it.
    pub env: BTreeMap<String, String>,
    /// The variable that tells each process its number among the instances.
    #[default = "NODE_APP_INSTANCE"]
    pub instance_var: String,
    #[default(Schedule::Rr)]
    pub schedule: Schedule,
    #[default = true]
    pub autorestart: bool,
    #[default = 16]
    pub max_restarts: u64,
    #[serde(with = "milliseconds")]
    #[default(Duration::from_millis(1000))]
    pub min_uptime: Duration,
    #[serde(with = "milliseconds")]
    pub restart_delay: Duration,
    /// 0: the delay does not grow.
    #[serde(with = "milliseconds")]
    pub exp_backoff_restart_delay: Duration,
    pub stop_exit_codes: Vec<i32>,
    /// A pattern of crontab(5), with seconds in front where it has six fields.
    pub cron_restart: Option<String>,
    /// Bytes of resident memory of one process.
    pub max_memory_restart: Option<u64>,
    /// The files and folders that are watched; none: nothing is.
    pub watch: Vec<PathBuf>,
    /// Globs of what is not watched below them.
    pub ignore_watch: Vec<String>,
    #[serde(with = "milliseconds")]
    pub watch_delay: Duration,
    /// From the signal that asks a process to end until SIGKILL.
    #[serde(with = "milliseconds")]
    #[default(Duration::from_millis(1600))]
    pub kill_timeout: Duration,
    /// The process says itself when it is ready.
    pub wait_ready: bool,
    #[serde(with = "milliseconds")]
    #[default(Duration::from_millis(3000))]
    pub listen_timeout: Duration,
    /// What the process has started ends with it.
    #[default = true]
    pub treekill: bool,
    /// `None`: a file in the folder of the process manager.
    pub out_file: Option<PathBuf>,
    pub error_file: Option<PathBuf>,
    pub log_date_format: Option<String>,
    #[default(LogType::Text)]
    pub log_type: LogType,
    /// All instances write into the same files.
    pub merge_logs: bool,
    /// In bytes; a larger log is rotated. `None`: it is not.
    pub log_max_size: Option<u64>,
    /// How many rotated logs stay.
    #[default = 10]
    pub log_retain: u64,
    /// Keys that mean nothing to us, as they were.
    pub unknown: Map<String, Value>,
}

mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}
