//! An application whose processes share its ports: one `cluster`, which starts, restarts and replaces the workers. Here
//! is what it has more than another process: it is asked over its control socket, says what happens to its workers, and
//! they are looked up.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::config::AppConfig;
use super::super::fork_mode::open_fifo;
use super::super::home::PmHome;
use super::super::json_lines::JsonLines;
use super::super::restarts::{MADE_UP_AFTER, RestartBudget};
use super::process::ManagedProcess;
use super::{PmSource, Shared};
use crate::console::write_within;
use crate::control_socket::connect_without_waiting;
use crate::failure::Failure;
use crate::sys::epoll::Interest;
use crate::sys::procfs::{self, Stat};

/// The most processes that `pm scale` may ask for.
pub const MOST_WORKERS: usize = 256;

/// Where the `cluster` of this application is asked. A folder of its own: a master locks the folder while it starts.
fn control_socket(home: &PmHome, id: u32) -> PathBuf {
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
    command.args(["--instance-var", &config.instance_var, "--schedule", &config.schedule.to_string()]);
    command.args(["--workers", &config.instances.to_string()]);
    command.args(["--most-workers", &MOST_WORKERS.max(config.instances).to_string()]);
    command.args(["--max-restarts", &config.max_restarts.to_string(), "--within", &ms(within)]);
    command.args(["--backoff", &ms(config.restart_delay)]);
    command.args(["--kill-timeout", &ms(config.kill_timeout), "--listen-timeout", &ms(config.listen_timeout)]);
    command.args(config.stop_exit_codes.iter().map(|status| format!("--stop-codes={status}")));
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
    lines: JsonLines<UnixStream>,
    unsent: Vec<u8>,
    /// What has happened when it is done.
    event: &'static str,
}

impl ClusterCall {
    /// Sends what there is room for, and reads what has come. The outcome: the event's name, or why it was refused.
    fn go_on(&mut self) -> Option<Result<&'static str, String>> {
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
#[derive(Deserialize)]
struct WorkerEvent {
    event: String,
    /// Its number.
    worker: usize,
    pid: i32,
    /// It was asked to end.
    #[serde(default)]
    expected: bool,
    /// It has ended.
    #[serde(default)]
    how: String,
}

/// Where a `cluster` says what happens to its workers: a FIFO, which outlives the daemon.
pub fn open_worker_events(home: &PmHome, id: u32) -> Result<JsonLines<File>, Failure> {
    let fifo = open_fifo(&home.worker_events(id))?;
    fcntl(&fifo, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|errno| Failure::new("read a FIFO", errno))?;
    Ok(JsonLines::new(fifo))
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

impl ManagedProcess {
    /// Replaces the workers of a cluster one by one, each when its successor listens; anything else is restarted.
    pub fn reload(&mut self, shared: &mut Shared) {
        self.saved.budget = RestartBudget::default();
        self.reload_unasked(shared);
    }

    pub(super) fn reload_unasked(&mut self, shared: &mut Shared) {
        if !self.is_cluster() || self.running.is_none() || self.saved.after_stop.is_some() {
            return self.restart_unasked(shared);
        }
        self.count_restart();
        let environment = self.environment(&shared.home);
        self.call(shared, "reloaded", &json!({"do": "reload", "environment": environment}));
        // A new configuration has taken away what the old one watched.
        self.begin_watching(shared);
        shared.report(self, "reload");
    }

    /// Asks its cluster. When that has done it, this event has happened.
    pub(super) fn call(&mut self, shared: &mut Shared, event: &'static str, request: &Value) {
        let id = self.id();
        let interest = Interest::EPOLLIN | Interest::EPOLLOUT | Interest::EPOLLET;
        let call = || {
            let lines = JsonLines::new(connect_without_waiting(&control_socket(&shared.home, id))?);
            shared.epoll.add(&lines.source, PmSource::Call.token(id), interest)?;
            Ok(ClusterCall { lines, unsent: format!("{request}\n").into_bytes(), event })
        };
        let call = call().map_err(|error: io::Error| Failure::new("ask its cluster", error).to_string());
        shared.has_changed = true;
        match call {
            Ok(call) => (self.call, self.refusal) = (Some(call), None),
            Err(why) => self.refusal = Some(why),
        }
    }

    pub(super) fn call_ready(&mut self, shared: &mut Shared) {
        let Some(outcome) = self.call.as_mut().and_then(ClusterCall::go_on) else { return };
        self.call = None;
        match outcome {
            Ok(event) => {
                self.saved.reason = None;
                shared.report(self, event);
            }
            Err(why) => {
                self.refusal = Some(why);
                shared.report(self, "refused");
            }
        }
    }

    /// What its cluster says of the workers: one that ends unasked is a restart.
    pub(super) fn workers_ready(&mut self, shared: &mut Shared) {
        let Some(events) = &mut self.worker_events else { return };
        let (events, _): (Vec<WorkerEvent>, bool) = events.read();
        for WorkerEvent { event, worker, pid, expected, how } in events {
            let Some(record) = self.saved.workers.get_mut(worker) else { continue };
            let id = record.id;
            let (event, reason) = match event.as_str() {
                // To listen is not to be ready.
                "listening" if self.app.config.wait_ready => continue,
                "listening" | "ready" | "not-listening" => {
                    self.online_workers.insert(worker);
                    ("online", None)
                }
                "exit" if !expected => {
                    record.restarts += 1;
                    self.saved.reason = Some(format!("worker {worker} {how}"));
                    ("exit", Some(how))
                }
                _ => continue,
            };
            shared.has_changed = true;
            shared.publish(event, self.name(), id, pid, reason.as_deref());
            if self.online_workers.len() >= self.app.config.instances {
                self.note_ready(shared);
            }
        }
    }
}
