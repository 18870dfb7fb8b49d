//! An application whose processes share its ports: one `cluster`, which starts, restarts and replaces the workers. Here
//! it is started like any process, asked over its control socket, and its workers are looked up.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::Deserialize;
use serde_json::{Value, json};

use super::config::AppConfig;
use super::fork_mode::open_fifo;
use super::home::PmHome;
use super::restarts::MADE_UP_AFTER;
use crate::console::write_within;
use crate::control_socket::connect_without_waiting;
use crate::failure::Failure;
use crate::sys::procfs::{self, Stat};

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
    let log = log(home, &config.name, id);
    let prepare = || {
        DirBuilder::new().recursive(true).mode(0o700).create(socket.parent().expect("it is in a folder"))?;
        OpenOptions::new().append(true).create(true).mode(0o600).open(&log)
    };
    let log = prepare().map_err(|error: io::Error| Failure::new(format_args!("start {}", config.name), error))?;
    let ms = |duration: Duration| format!("{}ms", duration.as_millis());
    let within = MADE_UP_AFTER.saturating_mul(config.max_restarts.clamp(1, 10_000) as u32);
    let mut command = Command::new(program);
    command.arg("--control").arg(socket);
    command.arg("--worker-output").arg(home.fifo_base(id)).arg("--events").arg(home.worker_events(id));
    command.args(["--instance-var", &config.instance_var, "--schedule", config.schedule.name()]);
    command.args(["--workers", &config.instances.to_string()]);
    command.args(["--most-workers", &MOST_WORKERS.max(config.instances).to_string()]);
    command.args(["--max-restarts", &config.max_restarts.to_string(), "--within", &ms(within)]);
    command.args(["--backoff", &ms(config.restart_delay)]);
    command.args(["--kill-timeout", &ms(config.kill_timeout), "--listen-timeout", &ms(config.listen_timeout)]);
    let stop_codes: Vec<String> =
        config.stop_exit_codes.iter().map(|status| format!("--stop-codes={status}")).collect();
    command.args(stop_codes);
    command.args(config.wait_ready.then_some("--wait-ready"));
    command.args((!config.autorestart).then_some("--no-restart"));
    command.arg("--").arg(worker.get_program()).args(worker.get_args());
    if let Some(folder) = worker.get_current_dir() {
        command.current_dir(folder);
    }
    command.env_clear().envs(worker.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    Ok(command)
}

/// A request to a `cluster`, and its answer.
pub struct ClusterCall {
    stream: UnixStream,
    unsent: Vec<u8>,
    received: Vec<u8>,
    /// What has happened when it is done.
    event: &'static str,
}

pub enum CallOutcome {
    Pending,
    /// With the event's name.
    Done(&'static str),
    /// Why not.
    Refused(String),
}

impl ClusterCall {
    pub fn reload(home: &PmHome, id: u32, environment: &BTreeMap<String, String>) -> io::Result<ClusterCall> {
        ClusterCall::new(home, id, "reloaded", &json!({"do": "reload", "environment": environment}))
    }

    pub fn scale(home: &PmHome, id: u32, workers: usize) -> io::Result<ClusterCall> {
        ClusterCall::new(home, id, "scaled", &json!({"do": "scale", "workers": workers}))
    }

    fn new(home: &PmHome, id: u32, event: &'static str, request: &Value) -> io::Result<ClusterCall> {
        let stream = connect_without_waiting(&control_socket(home, id))?;
        Ok(ClusterCall { stream, unsent: format!("{request}\n").into_bytes(), received: Vec::new(), event })
    }

    /// Sends what there is room for, and reads what has come.
    pub fn go_on(&mut self) -> CallOutcome {
        let mut buffer = [0; 4096];
        // A cluster that refuses us at once has closed its end already, and its answer is there.
        let _ = write_within(&self.stream, &mut self.unsent, Duration::ZERO);
        let has_ended = loop {
            match self.stream.read(&mut buffer) {
                // Behind the answer it closes its end.
                Ok(0) => break true,
                Ok(length) => self.received.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break false,
                Err(error) => return CallOutcome::Refused(error.to_string()),
            }
        };
        // Lines before the last are steps on the way.
        let lines = self.received.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
        let mut answers = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
        match answers.find(|line| line["ok"].is_boolean()) {
            Some(answer) if answer["ok"] == true => CallOutcome::Done(self.event),
            Some(answer) => CallOutcome::Refused(answer["error"].as_str().unwrap_or("its cluster refused").to_owned()),
            None if has_ended => CallOutcome::Refused("its cluster has ended meanwhile".to_owned()),
            None => CallOutcome::Pending,
        }
    }
}

/// In an epoll set.
impl AsFd for ClusterCall {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Where a `cluster` says what happens to its workers (`--events`): a FIFO, which outlives the daemon.
pub struct WorkerEvents {
    fifo: File,
    received: Vec<u8>,
    /// To listen is not to be ready.
    wait_ready: bool,
}

pub struct WorkerEvent {
    /// Its number.
    pub worker: usize,
    pub pid: i32,
    pub kind: WorkerEventKind,
}

pub enum WorkerEventKind {
    /// It takes connections, has said that it is ready, or lives without either.
    Online,
    /// It has ended without being asked to; how.
    Exited(String),
}

#[derive(Deserialize)]
struct EventLine {
    event: String,
    worker: usize,
    pid: i32,
    #[serde(default)]
    expected: bool,
    #[serde(default)]
    how: String,
}

impl WorkerEvents {
    pub fn open(home: &PmHome, id: u32, wait_ready: bool) -> Result<WorkerEvents, Failure> {
        let fifo = open_fifo(&home.worker_events(id))?;
        fcntl(&fifo, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|errno| Failure::new("read a FIFO", errno))?;
        Ok(WorkerEvents { fifo, received: Vec::new(), wait_ready })
    }

    /// What has come; other events are none of ours.
    pub fn read(&mut self) -> Vec<WorkerEvent> {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = self.fifo.read(&mut buffer) {
            self.received.extend_from_slice(&buffer[..length]);
        }
        let whole = self.received.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let lines: Vec<u8> = self.received.drain(..whole).collect();
        let events = lines.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
        let event = |EventLine { event, worker, pid, expected, how }| {
            let kind = match event.as_str() {
                "listening" if self.wait_ready => return None,
                "listening" | "ready" | "not-listening" => WorkerEventKind::Online,
                "exit" if !expected => WorkerEventKind::Exited(how),
                _ => return None,
            };
            Some(WorkerEvent { worker, pid, kind })
        };
        events.filter_map(event).collect()
    }
}

/// In an epoll set.
impl AsFd for WorkerEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fifo.as_fd()
    }
}

/// The workers of this `cluster` by their number: its children. Of two with one number, as during a reload, the older.
pub fn workers(master: i32) -> BTreeMap<usize, Stat> {
    let mut workers: BTreeMap<usize, Stat> = BTreeMap::new();
    for stat in Stat::everybody().filter(|stat| stat.parent == master && stat.is_alive()) {
        let number = || procfs::environment(stat.pid)?.remove("WORKER_ID")?.parse().ok();
        let Some(number) = number() else { continue };
        if workers.get(&number).is_none_or(|other| stat.started < other.started) {
            workers.insert(number, stat);
        }
    }
    workers
}
