//! One of the two process managers, by its command line: what a trial asks for is the same for both.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use crossbeam_channel::select;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::lab::deadline::Deadline;
use crate::lab::observe::processes::{Process, with_variable};
use crate::lab::program::{Interrupt, Program, Running, Stop, on_path};

/// How long a command of a manager may take.
const COMMAND_WITHIN: Duration = Duration::from_secs(60);
/// How long a manager may take to end with all applications; then they are killed.
const KILL_WITHIN: Duration = Duration::from_secs(15);
/// How often a state is looked at that nobody announces.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// In the environment of all that a trial starts: its folder.
const MARK: &str = "ACCEPTLAB_TRIAL";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ManagerKind {
    Pm,
    Pm2,
}

impl ManagerKind {
    fn program(self) -> &'static str {
        match self {
            ManagerKind::Pm => "pm",
            ManagerKind::Pm2 => "pm2",
        }
    }

    /// Which program is missing, and how to get it.
    pub fn missing(self) -> Option<String> {
        let needed = [
            ("node", "Debian: apt-get install nodejs"),
            (self.program(), if self == ManagerKind::Pm { "cargo build" } else { "npm install -g pm2@7" }),
        ];
        let (name, how) = needed.into_iter().find(|(name, _)| on_path(name).is_none())?;
        Some(format!("{name} is not installed ({how})"))
    }
}

/// How a manager runs the processes of an application: each for itself, or as workers that share a port.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExecMode {
    Fork,
    Cluster,
}

/// A manager with a folder of its own. Dropping it ends the manager and all that it has started, and removes the
/// folder.
pub struct Manager {
    kind: ManagerKind,
    folder: PathBuf,
    /// The folder of the programs that applications are.
    programs: PathBuf,
    interrupt: Interrupt,
}

/// An entry of `jlist`, as far as both managers have it.
#[derive(Debug, Deserialize)]
pub struct Entry {
    pub name: String,
    pub pid: i32,
    pub pm2_env: EntryState,
}

#[derive(Debug, Deserialize)]
pub struct EntryState {
    pub status: String,
}

impl Manager {
    /// The programs of the applications are in `programs`.
    pub fn new(kind: ManagerKind, programs: &Path, interrupt: Interrupt) -> Result<Manager, Stop> {
        let programs = programs.canonicalize().map_err(|error| {
            let failure = Failure::new(format_args!("find {}", programs.display()), error);
            failure.advise("start it in the repository, or say where with --programs").to_string()
        })?;
        let folder = std::env::temp_dir().join(format!("acceptlab-trial-{}", std::process::id()));
        let manager = Manager { kind, folder, programs, interrupt };
        // Other users may look into the folder: to keep them out is the manager's business.
        let made = fs::create_dir(&manager.folder);
        let made = made.and_then(|()| fs::set_permissions(&manager.folder, Permissions::from_mode(0o755)));
        made.map_err(|error| Failure::new(format_args!("make {}", manager.folder.display()), error).to_string())?;
        Ok(manager)
    }

    /// A file in the folder of the trial.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// One of the programs that applications are.
    pub fn program_file(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// The keys of one application: the program, its arguments, and `more`.
    pub fn app(&self, name: &str, program: &str, args: &[&str], more: Value) -> Value {
        let mut app = json!({"name": name, "script": self.program_file(program), "args": args, "cwd": self.folder});
        let more = more.as_object().cloned().unwrap_or_default();
        app.as_object_mut().expect("it is one").extend(more);
        app
    }

    /// The version, as the manager says it itself.
    pub fn version(&self) -> Result<String, Stop> {
        let text = self.output(&["--version"])?;
        Ok(text.split_whitespace().next_back().unwrap_or_default().to_string())
    }

    /// Starts these applications, from a file.
    ///
    /// # Errors
    /// When the manager refuses: what follows would measure nothing.
    pub fn start(&self, apps: &[Value]) -> Result<(), Stop> {
        let file = self.configure(apps)?;
        match self.succeeds(&["start", &file])? {
            true => Ok(()),
            false => Err(Stop::Failed(format!("{} refuses to start {file}", self.kind.program()))),
        }
    }

    /// Reads the configuration anew, replaces what runs, and says whether the command ends with status 0.
    pub fn reload(&self, apps: &[Value]) -> Result<bool, Stop> {
        let file = self.configure(apps)?;
        self.succeeds(&["reload", &file])
    }

    fn configure(&self, apps: &[Value]) -> Result<String, Stop> {
        let file = self.path("ecosystem.json");
        self.write(&file, &json!({"apps": apps}).to_string())?;
        Ok(file.to_string_lossy().into_owned())
    }

    pub fn write(&self, file: &Path, text: &str) -> Result<(), Stop> {
        let failed = |error| Failure::new(format_args!("write {}", file.display()), error).to_string();
        Ok(fs::write(file, text).map_err(failed)?)
    }

    /// All processes that it has in its list.
    pub fn list(&self) -> Result<Vec<Entry>, Stop> {
        let text = self.jlist()?;
        serde_json::from_str(&text).map_err(|error| Stop::Failed(format!("{} jlist: {error}", self.kind.program())))
    }

    /// The JSON array that `jlist` prints. PM2 tells before it that it has started its daemon.
    pub fn jlist(&self) -> Result<String, Stop> {
        let text = self.output(&["jlist"])?;
        let array = text.lines().rfind(|line| line.starts_with('['));
        array.map(str::to_string).ok_or_else(|| Stop::Failed(format!("{} jlist printed no list", self.kind.program())))
    }

    /// The processes with this status.
    pub fn count(&self, status: &str) -> Result<usize, Stop> {
        Ok(self.list()?.iter().filter(|entry| entry.pm2_env.status == status).count())
    }

    /// After logrotate(8), or somebody else, has renamed the logs.
    pub fn reopen_logs(&self) -> Result<(), Stop> {
        let word = if self.kind == ManagerKind::Pm { "reload-logs" } else { "reloadLogs" };
        self.output(&[word]).map(drop)
    }

    /// The file of `save`.
    pub fn dump(&self) -> PathBuf {
        self.home().join(if self.kind == ManagerKind::Pm { "dump.json" } else { "dump.pm2" })
    }

    pub fn daemon(&self) -> Result<Process, Stop> {
        let file = self.home().join(if self.kind == ManagerKind::Pm { "daemon.lock" } else { "pm2.pid" });
        let pid = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
        let process = pid.and_then(Process::find);
        process.ok_or_else(|| Stop::Failed(format!("{} names no process that lives", file.display())))
    }

    /// Kills it, and returns when it is gone: until then it still has its lock and its sockets.
    pub fn kill_daemon(&self) -> Result<(), Stop> {
        let daemon = self.daemon()?;
        daemon.kill();
        self.await_value(KILL_WITHIN, "the end of the killed daemon", || Ok((!daemon.is_alive()).then_some(())))
    }

    pub fn home(&self) -> PathBuf {
        self.path("home")
    }

    /// All Unix sockets in its folder.
    pub fn sockets(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.home()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                    Ok(kind) if kind.is_socket() => found.push(entry.path()),
                    _ => {}
                }
            }
        }
        found
    }

    /// What a command prints; an error where it fails.
    pub fn output(&self, words: &[&str]) -> Result<String, Stop> {
        self.launch(words)?.finish(COMMAND_WITHIN, |_| ())
    }

    /// Whether a command ends with status 0.
    pub fn succeeds(&self, words: &[&str]) -> Result<bool, Stop> {
        let mut running = self.launch(words)?;
        match running.finish(COMMAND_WITHIN, |_| ()) {
            Ok(_) => Ok(true),
            Err(Stop::Failed(_)) if running.has_ended() => Ok(false),
            Err(stop) => Err(stop),
        }
    }

    /// A command, begun.
    pub fn launch(&self, words: &[&str]) -> Result<Running, Stop> {
        Ok(self.marked(self.kind.program()).until(&self.interrupt).launch(words)?)
    }

    /// A program of the trial, which ends with it.
    pub fn marked(&self, command: &str) -> Program {
        let variable = if self.kind == ManagerKind::Pm { "PM_HOME" } else { "PM2_HOME" };
        let program = Program::of(command).with_variable(MARK, &self.folder).with_variable("HOME", &self.folder);
        program.with_variable(variable, self.home())
    }

    /// Any other program of the trial.
    pub fn launch_other(&self, command: &str, words: &[&str]) -> Result<Running, Stop> {
        Ok(self.marked(command).until(&self.interrupt).launch(words)?)
    }

    /// Waits until `probe` returns a value. An error where the time is up: `what` did not come.
    pub fn await_value<T>(
        &self,
        within: Duration,
        what: &str,
        mut probe: impl FnMut() -> Result<Option<T>, Stop>,
    ) -> Result<T, Stop> {
        let found = self.poll(within, &mut probe)?;
        found.ok_or_else(|| Stop::Failed(format!("{}: {what} did not come within {within:?}", self.kind.program())))
    }

    /// The same; `None` where the time is up.
    pub fn poll<T>(
        &self,
        within: Duration,
        mut probe: impl FnMut() -> Result<Option<T>, Stop>,
    ) -> Result<Option<T>, Stop> {
        let mut deadline = Deadline::after(within);
        loop {
            if let Some(found) = probe()? {
                return Ok(Some(found));
            }
            if deadline.next_look().is_none() {
                return Ok(None);
            }
            self.pause_until(Instant::now() + LOOK_EVERY)?;
        }
    }

    /// The time of a trial passes, for example between two reloads.
    pub fn pause_until(&self, then: Instant) -> Result<(), Stop> {
        select! {
            recv(self.interrupt) -> _ => Err(Stop::Interrupted),
            default(then.saturating_duration_since(Instant::now())) => Ok(()),
        }
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // The trial may have been interrupted, so this waits for no interrupt; whatever it leaves is killed below.
        if let Ok(mut kill) = self.marked(self.kind.program()).launch(&["kill"]) {
            let _ = kill.finish(KILL_WITHIN, |_| ());
        }
        // A daemon that was not reached may start something between two looks.
        loop {
            let left = with_variable(MARK, &self.folder.to_string_lossy());
            if left.is_empty() {
                break;
            }
            left.iter().for_each(Process::kill);
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}
