//! An application whose processes share its ports: one `cluster`, which starts, restarts and replaces the workers. Here
//! it is started like any process, asked over its control socket, and its workers are looked up.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::config::AppConfig;
use super::home::PmHome;
use super::restarts::MADE_UP_AFTER;
use crate::failure::Failure;
use crate::sys::procfs::Stat;

/// The most workers that `pm scale` may ask for.
const MOST_WORKERS: usize = 256;

/// Where the `cluster` of this application is asked. A folder of its own: a master locks the folder while it starts.
pub fn control_socket(home: &PmHome, id: u32) -> PathBuf {
    home.folder().join("masters").join(id.to_string()).join("control.sock")
}

/// What the `cluster` itself says: its events.
pub fn log(home: &PmHome, config: &AppConfig, id: u32) -> PathBuf {
    home.logs().join(format!("{}-cluster-{id}.log", config.name))
}

/// The command line of the `cluster` (`program`), which runs this command in each worker. What it says itself goes to a
/// log of its own.
///
/// # Errors
/// A folder or a log that cannot be made.
pub fn command(
    program: &Path,
    worker: &Command,
    config: &AppConfig,
    home: &PmHome,
    id: u32,
) -> Result<Command, Failure> {
    let socket = control_socket(home, id);
    let log = log(home, config, id);
    let prepare = || {
        DirBuilder::new().recursive(true).mode(0o700).create(socket.parent().expect("it is in a folder"))?;
        OpenOptions::new().append(true).create(true).mode(0o600).open(&log)
    };
    let log = prepare().map_err(|error: io::Error| Failure::new(format_args!("start {}", config.name), error))?;
    let ms = |duration: Duration| format!("{}ms", duration.as_millis());
    let within = MADE_UP_AFTER.saturating_mul(config.max_restarts.clamp(1, 10_000) as u32);
    let mut command = Command::new(program);
    command.arg("--control").arg(socket);
    command.arg("--worker-output").arg(home.fifo_base(id));
    command.args(["--instance-var", &config.instance_var]);
    command.args(["--workers", &config.instances.to_string()]);
    command.args(["--most-workers", &MOST_WORKERS.max(config.instances).to_string()]);
    command.args(["--max-restarts", &config.max_restarts.to_string(), "--within", &ms(within)]);
    command.args(["--backoff", &ms(config.restart_delay)]);
    command.args(["--kill-timeout", &ms(config.kill_timeout), "--listen-timeout", &ms(config.listen_timeout)]);
    command.arg("--").arg(worker.get_program()).args(worker.get_args());
    if let Some(folder) = worker.get_current_dir() {
        command.current_dir(folder);
    }
    command.env_clear().envs(worker.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::null()).stderr(log);
    Ok(command)
}

/// Requests to a `cluster`, one after another, and its answers.
pub struct ClusterCall {
    stream: UnixStream,
    received: Vec<u8>,
}

impl ClusterCall {
    pub fn reload(home: &PmHome, id: u32, environment: &BTreeMap<String, String>) -> io::Result<ClusterCall> {
        ClusterCall::ask(home, id, &json!({"do": "reload", "environment": environment}))
    }

    pub fn scale(home: &PmHome, id: u32, workers: usize) -> io::Result<ClusterCall> {
        ClusterCall::ask(home, id, &json!({"do": "scale", "workers": workers}))
    }

    fn ask(home: &PmHome, id: u32, request: &Value) -> io::Result<ClusterCall> {
        let mut stream = UnixStream::connect(control_socket(home, id))?;
        stream.write_all(format!("{request}\n").as_bytes())?;
        stream.set_nonblocking(true)?;
        Ok(ClusterCall { stream, received: Vec::new() })
    }

    /// Reads what has come. `None`: the answer is not complete. An error says why it was not done.
    pub fn read(&mut self) -> Option<Result<(), String>> {
        let mut buffer = [0; 4096];
        let mut has_ended = false;
        while !has_ended {
            match self.stream.read(&mut buffer) {
                // Behind the answer it closes its end.
                Ok(0) => has_ended = true,
                Ok(length) => self.received.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Some(Err(error.to_string())),
            }
        }
        // Lines before the last are steps on the way.
        let lines = self.received.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
        let mut answers = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
        let Some(answer) = answers.find(|line| line["ok"].is_boolean()) else {
            return has_ended.then(|| Err("its cluster has ended meanwhile".to_owned()));
        };
        let why = || answer["error"].as_str().unwrap_or("its cluster refused").to_owned();
        Some(if answer["ok"] == true { Ok(()) } else { Err(why()) })
    }
}

/// In an epoll set.
impl AsFd for ClusterCall {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// The workers of this `cluster` by their number: its children. Of two with one number, as during a reload, the older.
pub fn workers(master: i32) -> BTreeMap<usize, Stat> {
    let mut workers: BTreeMap<usize, Stat> = BTreeMap::new();
    for stat in Stat::everybody().filter(|stat| stat.parent == master && stat.is_alive()) {
        let Ok(environment) = std::fs::read(format!("/proc/{}/environ", stat.pid)) else { continue };
        let numbers = environment.split(|&byte| byte == 0).filter_map(|variable| variable.strip_prefix(b"WORKER_ID="));
        let number = numbers.filter_map(|number| str::from_utf8(number).ok()?.parse().ok()).next_back();
        let Some(number) = number else { continue };
        if workers.get(&number).is_none_or(|other| stat.started < other.started) {
            workers.insert(number, stat);
        }
    }
    workers
}
