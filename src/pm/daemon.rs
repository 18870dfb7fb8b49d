//! The daemon: one thread, which waits for clients, for processes that end, for what they write, and for what is due.
//! While nothing happens it makes no system call; with a memory limit it looks twice a second.
//!
//! Only the daemon's own user and root are served (SO_PEERCRED, and the socket's mode is 0600). A client that hangs, or
//! sends what is no request, disturbs nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::json;

use super::dump::AfterStop;
use super::god::{God, ManagedProcess, PmSource, Shared};
use super::home::PmHome;
use super::logs::own_log;
use super::protocol::{LAST_EVENT, PmReply, PmRequest};
use super::startup;
use crate::console;
use crate::control_socket::{self, ControlSettings, ControlSocket};
use crate::failure::Failure;
use crate::sys::epoll::{Interest, Ready};
use crate::sys::pidfd::PidFd;
use crate::sys::process::DescriptorLimit;
use crate::sys::signal::SignalQueue;
use crate::terminal::Paint;
use crate::units::utc_now_ms;

/// The longest request has hundreds of applications, each with its environment; the longest answer as many entries.
const SETTINGS: ControlSettings = ControlSettings {
    owner: "this process manager",
    most_clients: 64,
    longest_request: 16 << 20,
    most_unread: 16 << 20,
    answers_once: false,
    token: |client| PmSource::Client.token(client),
};

/// How long the last answer may take to be read.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// How long the listener is not watched after a client that could not be accepted.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// What a client waits for: until none of these processes is starting or stopping.
struct AwaitedChange {
    processes: BTreeSet<u32>,
    /// The names of those that are to run then: one that could not be started, or was deleted, makes the answer a
    /// failure.
    starts: BTreeMap<u32, String>,
    /// It wants to know, and waits for nothing.
    only_looks: bool,
}

struct Daemon {
    god: God,
    control: ControlSocket,
    signals: SignalQueue,
    /// Our standard error is its `pm.log`.
    own_log: Option<PmHome>,
    /// The change that each client waits for; a client may have left.
    awaited: BTreeMap<u64, AwaitedChange>,
    is_ending: bool,
    ends_with_last: bool,
    /// Which of the applications that it ended with was given up, and why.
    given_up: Option<String>,
}

/// Runs until `pm kill` or a signal. `ready` is called when clients can come. With a first request it carries that out,
/// and ends with the last process.
///
/// # Errors
/// Another daemon with the same folder; a folder or a socket that cannot be made; after a first request, an application
/// that was given up.
pub fn run(home: &PmHome, cluster: PathBuf, first: Option<PmRequest>, ready: impl FnOnce()) -> Result<(), Failure> {
    home.make()?;
    let mut lock = home.lock_daemon()?;
    if lock.is_none() && control_socket::connect(&home.socket()).is_err() {
        // It was killed, and the lock is the last that the kernel takes from it.
        await_end_of_daemon(home);
        lock = home.lock_daemon()?;
    }
    let Some(lock) = lock else {
        let taken = format!("start the daemon: another one runs with {}", home.folder().display());
        return Err(Failure::relay(taken).advise("`pm kill` ends it"));
    };
    let failed = |errno| Failure::new("take signals", errno);
    let others = [Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGPIPE];
    let signals = SignalQueue::open_for(&others).map_err(failed)?;
    // Five for each process, and 1024 are soon too few.
    let god = God::new(home.clone(), cluster, DescriptorLimit::raise().ok())?;
    let passed = startup::passed_socket().map_err(|errno| Failure::new("take the socket of systemd", errno))?;
    let is_passed = passed.is_some();
    let listener = passed.map_or_else(|| listen(home), |socket| Ok(UnixListener::from(socket)))?;
    god.shared.epoll.add(&signals, PmSource::Signals.token(0u32), Interest::EPOLLIN).map_err(failed)?;
    let watched = ControlSocket::new(listener, SETTINGS, &god.shared.epoll);
    let control = watched.map_err(|error| Failure::new("wait for clients", error))?;
    let mut daemon = Daemon {
        god,
        control,
        signals,
        own_log: own_log::is_standard_error(home).then(|| home.clone()),
        awaited: BTreeMap::new(),
        is_ending: false,
        ends_with_last: first.is_some(),
        given_up: None,
    };
    if first.is_some() {
        daemon.god.shared.files.show(Paint::on(&io::stdout()));
    }
    daemon.god.adopt();
    ready();
    let begun = first.map_or(Ok(BTreeSet::new()), |first| daemon.begin(first));
    let outcome = begun.map_err(Failure::relay).and_then(|_| daemon.serve());
    // systemd's socket stays: whoever comes next makes systemd start us again.
    if !is_passed {
        let _ = fs::remove_file(home.socket());
    }
    // Before its clients see that it has ended: they may start the next daemon at once.
    drop(lock);
    drop(daemon);
    outcome
}

/// Waits until the daemon that has the lock is gone, at most for five seconds.
fn await_end_of_daemon(home: &PmHome) {
    let Some(daemon) = home.daemon_pid().and_then(|pid| PidFd::open(Pid::from_raw(pid)).ok()) else { return };
    let _ = poll(&mut [PollFd::new(daemon.as_fd(), PollFlags::POLLIN)], 5_000_u16);
}

/// Our own. The lock is ours, so a socket that is there is a dead daemon's.
fn listen(home: &PmHome) -> Result<UnixListener, Failure> {
    let path = home.socket();
    let _ = fs::remove_file(&path);
    control_socket::bind(&path).map_err(|error| Failure::new(format_args!("control socket {}", path.display()), error))
}

impl Daemon {
    fn serve(&mut self) -> Result<(), Failure> {
        loop {
            self.god.save_state();
            let events = std::mem::take(&mut self.god.shared.events);
            events.iter().for_each(|event| self.control.publish(event));
            self.own_log.iter().filter(|_| !events.is_empty()).for_each(own_log::check);
            self.answer_awaited().into_iter().for_each(|client| self.serve_requests(client));
            if self.ends_with_last && !self.is_ending && !self.god.has_work() {
                self.given_up = self.god.processes.values().find_map(ManagedProcess::failure);
                self.end();
                continue;
            }
            if self.is_ending && self.god.all().is_empty() {
                self.control.publish(&json!({"at": utc_now_ms(), "event": LAST_EVENT}));
                self.control.flush_within(LAST_WAIT);
                return self.given_up.take().map_or(Ok(()), |why| Err(Failure::relay(why)));
            }
            let pause = self.control.is_paused().then_some(ACCEPT_AGAIN_AFTER);
            let reports = self.god.wait(pause)?;
            self.control.accept_again(&self.god.shared.epoll);
            for Ready { token, flags } in reports {
                match PmSource::decode(token) {
                    None => {}
                    Some((PmSource::Signals, _)) => self.take_signals(),
                    Some((PmSource::Client, 0)) => {
                        if let Err(error) = self.control.accept(&self.god.shared.epoll) {
                            let failure = Failure::new("accept a client", error);
                            console::log(failure.advise("clients wait, and it is tried again"));
                        }
                    }
                    Some((PmSource::Client, client)) => {
                        self.control.receive(client, flags);
                        self.serve_requests(client);
                    }
                    Some((source, which)) => self.god.ready(source, which),
                }
            }
            self.god.run_due();
        }
    }

    fn reopen_logs(&mut self) {
        let files = &mut self.god.shared.files;
        files.reopen();
        files.take_problems().iter().for_each(console::log);
        self.own_log.iter().for_each(own_log::check);
    }

    fn take_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.take() {
            match signal {
                Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT => self.end(),
                Signal::SIGUSR2 => self.reopen_logs(),
                _ => {}
            }
        }
    }

    fn end(&mut self) {
        self.is_ending = true;
        for id in self.god.all() {
            self.god.with(id, |process, shared| process.stop(shared, AfterStop::Delete));
        }
    }

    /// One after another: the next when the last is answered. What one client asks for may be what others wait for.
    fn serve_requests(&mut self, client: u64) {
        let mut clients = BTreeSet::from([client]);
        while let Some(client) = clients.pop_first() {
            while let Some(request) = self.control.next_request(client) {
                self.carry_out(client, request);
                clients.extend(self.answer_awaited());
            }
        }
    }

    fn carry_out(&mut self, client: u64, request: PmRequest) {
        self.god.retry_save();
        let starts = matches!(
            request,
            PmRequest::Start { .. }
                | PmRequest::Wake { .. }
                | PmRequest::Restart { .. }
                | PmRequest::Reload { .. }
                | PmRequest::Scale { .. }
        );
        // A scale leaves those that do not run as they are.
        let is_scale = matches!(request, PmRequest::Scale { .. });
        let idle = self.god.processes.values().filter(|process| is_scale && process.running.is_none());
        let idle: BTreeSet<u32> = idle.map(ManagedProcess::id).collect();
        let only_looks = request.only_looks();
        if matches!(request, PmRequest::Events) {
            return self.control.subscribe(client);
        }
        match self.begin(request) {
            Ok(processes) => {
                let asked = processes.difference(&idle).filter_map(|id| self.god.processes.get(id)).filter(|_| starts);
                let (leaving, staying): (Vec<_>, Vec<_>) = asked.partition(|process| process.is_leaving());
                // Of several, those that are being deleted were not meant.
                let asked = if staying.is_empty() { leaving } else { staying };
                let starts = asked.into_iter().map(|process| (process.id(), process.name().to_owned())).collect();
                self.awaited.insert(client, AwaitedChange { processes, starts, only_looks });
            }
            Err(why) => self.control.refuse(client, &why),
        }
    }

    /// Begins what is asked for, and returns the processes that it is about.
    fn begin(&mut self, request: PmRequest) -> Result<BTreeSet<u32>, String> {
        match request {
            PmRequest::Ping | PmRequest::Events => Ok(BTreeSet::new()),
            PmRequest::List => Ok(self.god.all()),
            PmRequest::Start { .. }
            | PmRequest::Wake { .. }
            | PmRequest::Scale { .. }
            | PmRequest::Resurrect { .. }
                if self.is_ending =>
            {
                Err("the process manager is ending".to_owned())
            }
            PmRequest::Start { apps, environment, only_new, reload } => {
                self.god.start(apps, &environment, only_new, reload)
            }
            PmRequest::Wake { targets } => self.each(&targets, ManagedProcess::wake),
            PmRequest::Stop { targets } => {
                self.each(&targets, |process, shared| process.stop(shared, AfterStop::Remain))
            }
            PmRequest::Reload { targets, environment } => self.each(&targets, |process, shared| {
                environment.iter().for_each(|environment| process.update_environment(environment));
                process.reload(shared);
            }),
            PmRequest::Restart { targets, environment } => self.each(&targets, |process, shared| {
                environment.iter().for_each(|environment| process.update_environment(environment));
                process.restart(shared);
            }),
            PmRequest::Delete { targets } => {
                self.each(&targets, |process, shared| process.stop(shared, AfterStop::Delete))
            }
            PmRequest::Describe { targets } => self.god.find(&targets),
            PmRequest::Reset { targets } => self.each(&targets, ManagedProcess::reset),
            PmRequest::Flush { targets } => {
                let found = self.each(&targets, ManagedProcess::flush_logs)?;
                self.god.shared.files.take_problems().pop().map_or(Ok(found), Err)
            }
            PmRequest::ReloadLogs => {
                self.reopen_logs();
                Ok(BTreeSet::new())
            }
            PmRequest::Signal { signal, targets } => self.signal(signal, &targets),
            PmRequest::Scale { name, instances } => self.god.scale(&name, instances),
            // Most likely a mistake, and the file may be the only list there is.
            PmRequest::Save if self.god.all().is_empty() => {
                Err("save: there is no application; dump.json stays as it is (remove it to keep an empty list)"
                    .to_string())
            }
            PmRequest::Save => self.god.save_dump().map(|()| self.god.all()).map_err(String::from),
            PmRequest::Resurrect { if_empty: true } if !self.god.processes.is_empty() => Ok(self.god.all()),
            PmRequest::Resurrect { .. } => self.god.resurrect().map_err(String::from),
            PmRequest::Kill => {
                self.end();
                Ok(self.god.all())
            }
        }
    }

    fn each(
        &mut self,
        targets: &[String],
        action: impl Fn(&mut ManagedProcess, &mut Shared),
    ) -> Result<BTreeSet<u32>, String> {
        let found = self.god.find(targets)?;
        found.iter().for_each(|&id| self.god.with(id, &action));
        Ok(found)
    }

    fn signal(&mut self, number: i32, targets: &[String]) -> Result<BTreeSet<u32>, String> {
        let signal = Signal::try_from(number).map_err(|_| format!("{number} is not the number of a signal"))?;
        let found = self.god.find(targets)?;
        found.iter().filter_map(|id| self.god.processes.get(id)).try_for_each(|process| process.signal(signal))?;
        Ok(found)
    }

    /// Answers the clients whose processes have come to rest, and says who they are: each may have asked for more.
    fn answer_awaited(&mut self) -> Vec<u64> {
        let processes = &self.god.processes;
        let is_busy = |id: &u32| processes.get(id).is_some_and(ManagedProcess::is_busy);
        let is_done = |awaited: &AwaitedChange| awaited.only_looks || !awaited.processes.iter().any(is_busy);
        let done = self.awaited.iter().filter(|(_, awaited)| is_done(awaited)).map(|(&client, _)| client);
        let done: Vec<u64> = done.collect();
        for &client in &done {
            let Some(awaited) = self.awaited.remove(&client) else { continue };
            let processes = &self.god.processes;
            let failure = |(id, name): (&u32, &String)| match processes.get(id) {
                Some(process) => process.failure(),
                None => Some(format!("{name}: it was deleted meanwhile")),
            };
            let error = awaited.starts.iter().find_map(failure);
            let processes = self.god.entries(&awaited.processes);
            self.control.answer(client, &PmReply { ok: error.is_none(), error, processes });
        }
        done
    }
}
