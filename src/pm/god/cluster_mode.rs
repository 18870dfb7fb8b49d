//! An application whose processes share its ports: one `cluster`, which starts, restarts and replaces the workers. Here
//! is how it is started, asked over its control socket, and where it says what happens to its workers.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::super::config::AppConfig;
use super::super::home::PmHome;
use super::super::json_lines::JsonLines;
use super::super::restarts::MADE_UP_AFTER;
use crate::console::write_within;
use crate::failure::Failure;
use crate::sys::procfs::{self, Stat};

/// When the log of a `cluster` is emptied, in bytes.
pub const LARGEST_LOG: u64 = 10 << 20;

/// The most processes that `pm scale` may ask for.
pub const MOST_WORKERS: usize = 256;

/// Where the `cluster` of this application is asked. A folder of its own: a master locks the folder while it starts.
pub fn control_socket(home: &PmHome, id: u32) -> PathBuf {
    home.folder().join("masters").join(id.to_string()).join("control.sock")
}

/// What the `cluster` itself says: its events.
pub fn log(home: &PmHome, name: &str, id: u32) -> PathBuf {
    home.logs().join(format!("{name}-cluster-{id}.log"))
}

/// Empties it where it is larger than this: a `cluster` may run for years, and adds to it (O_APPEND).
pub fn empty_log(home: &PmHome, name: &str, id: u32, largest: u64) {
    let file = OpenOptions::new().write(true).open(log(home, name, id));
    if let Ok(file) = file
        && file.metadata().is_ok_and(|metadata| metadata.len() > largest)
    {
        // What cannot be emptied is emptied later.
        let _ = file.set_len(0);
    }
}

/// The command line of the `cluster` (`program`), which runs this command in each worker. What it says itself goes to a
/// log of its own.
pub fn command(
    program: &Path,
    worker: &Command,
    config: &AppConfig,
    home: &PmHome,
    id: u32,
) -> Result<Command, Failure> {
    let socket = control_socket(home, id);
    let log = log(home, &config.name, id);
    let prepare = || {
        DirBuilder::new().recursive(true).mode(0o700).create(socket.parent().expect("it is in a folder"))?;
        OpenOptions::new().append(true).create(true).mode(0o600).open(&log)
    };
    let log = prepare().map_err(|error: io::Error| Failure::new(format_args!("start {}", config.name), error))?;
    let mut command = Command::new(program);
    command.arg("--control").arg(socket);
    command.arg("--worker-output").arg(home.fifo_base(id)).arg("--events").arg(home.worker_events(id));
    command.args(["--schedule", &config.schedule.to_string(), "--workers", &config.instances.to_string()]);
    command.args(["--most-workers", &MOST_WORKERS.max(config.instances).to_string()]).args(options(config));
    command.arg("--").arg(worker.get_program()).args(worker.get_args());
    if let Some(folder) = worker.get_current_dir() {
        command.current_dir(folder);
    }
    command.env_clear().envs(worker.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    Ok(command)
}

/// How it awaits its workers, asks them to end, and restarts them. A reload may change that.
pub fn options(config: &AppConfig) -> Vec<String> {
    let ms = |name: &str, duration: Duration| format!("--{name}={}ms", duration.as_millis());
    let mut options = vec![
        format!("--instance-var={}", config.instance_var),
        format!("--max-restarts={}", config.max_restarts),
        ms("within", MADE_UP_AFTER.saturating_mul(config.max_restarts.clamp(1, 10_000) as u32)),
        ms("backoff", config.restart_delay),
        ms("kill-timeout", config.kill_timeout),
        ms("listen-timeout", config.listen_timeout),
    ];
    options.extend(config.stop_exit_codes.iter().map(|status| format!("--stop-codes={status}")));
    options.extend(config.wait_ready.then(|| "--wait-ready".to_owned()));
    options.extend((!config.autorestart).then(|| "--no-restart".to_owned()));
    options
}

/// A request to a `cluster`, and its answer.
pub struct ClusterCall {
    pub lines: JsonLines<UnixStream>,
    pub unsent: Vec<u8>,
    /// What has happened when it is done.
    pub event: &'static str,
}

impl ClusterCall {
    /// Sends what there is room for, and reads what has come. The outcome: the event's name, or why it was refused.
    pub fn go_on(&mut self) -> Option<Result<&'static str, String>> {
        // A cluster that refuses us at once has closed its end already, and its answer is there.
        let _ = write_within(&self.lines.source, &mut self.unsent, Duration::ZERO);
        let (lines, has_ended): (Vec<Value>, bool) = self.lines.read();
        // Lines before the last are steps on the way.
        match lines.iter().find(|line| line["ok"].is_boolean()) {
            Some(answer) if answer["ok"] == true => Some(Ok(self.event)),
            Some(answer) => Some(Err(answer["error"].as_str().unwrap_or("its cluster refused").to_owned())),
            None => has_ended.then(|| Err("its cluster has ended meanwhile".to_owned())),
        }
    }
}

/// What has happened to a worker, as its `cluster` says it (`--events`).
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct WorkerEvent {
    pub event: String,
    pub worker: usize,
    pub pid: i32,
    /// It was asked to end, or `finished`.
    pub expected: bool,
    /// It has no successor, because of how it has ended.
    pub finished: bool,
    pub how: String,
    /// Why the last worker has ended; only of the event `giveup`.
    pub last: String,
}

/// The workers of this `cluster` by their number: its children. Of two with one number, as during a reload, the older.
pub fn workers(master: i32) -> BTreeMap<usize, Stat> {
    let mut workers: BTreeMap<usize, Stat> = BTreeMap::new();
    for stat in Stat::all_processes().filter(|stat| stat.parent == master && stat.is_alive()) {
        let number = || procfs::environment(stat.pid)?.remove("WORKER_ID")?.parse().ok();
        let Some(number) = number() else { continue };
        if workers.get(&number).is_none_or(|other| stat.started < other.started) {
            workers.insert(number, stat);
        }
    }
    workers
}
