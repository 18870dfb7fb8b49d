//! The daemon: one thread, which waits for clients, for processes that end, for what they write, and for what is due.
//! While nothing happens it makes no system call.
//!
//! Only the daemon's own user and root are served (SO_PEERCRED, and the socket's mode is 0600). A client that hangs, or
//! sends what is no request, disturbs nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::stat::{Mode, umask};
use nix::unistd::geteuid;
use serde::Serialize;

use super::dump::{AfterStop, SavedState};
use super::god::{God, PmToken, StartMode};
use super::home::PmHome;
use super::protocol::{PmReply, PmRequest};
use super::startup;
use crate::console::{self, write_within};
use crate::failure::Failure;
use crate::sys::epoll::Interest;
use crate::sys::signal::SignalQueue;

/// A client that comes when so many are there takes the place of the oldest: clients that hang do not keep others out.
const MOST_CLIENTS: usize = 64;

/// The longest request: hundreds of applications, each with its environment.
const LONGEST_REQUEST: usize = 16 << 20;

/// A client that does not read is disconnected when so many bytes wait for it.
const MOST_UNREAD: usize = 16 << 20;

/// How long the last answer may take to be read.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// How long the listener is not watched after a client that could not be accepted.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(50);

struct PmClient {
    stream: UnixStream,
    received: Vec<u8>,
    unsent: Vec<u8>,
    is_subscriber: bool,
    /// Its request is being carried out.
    awaited: Option<AwaitedChange>,
}

/// What a client waits for: until none of these processes is starting or stopping.
struct AwaitedChange {
    processes: BTreeSet<u32>,
    /// One that could not be started makes the answer a failure.
    starts: bool,
    /// It wants to know, and waits for nothing.
    only_looks: bool,
}

struct Daemon {
    god: God,
    listener: UnixListener,
    signals: SignalQueue,
    clients: BTreeMap<u64, PmClient>,
    last_client: u64,
    is_ending: bool,
    ends_with_last: bool,
    /// The listener is not watched: see [`Daemon::accept`].
    is_paused: bool,
}

/// Runs until `pm kill` or a signal. `ready` is called when clients can come. With a first request it carries that out,
/// and ends with the last process.
///
/// # Errors
/// Another daemon with the same folder; a folder or a socket that cannot be made.
pub fn run(home: &PmHome, cluster: PathBuf, first: Option<PmRequest>, ready: impl FnOnce()) -> Result<(), Failure> {
    home.make()?;
    let Some(lock) = home.lock_daemon()? else {
        let taken = format!("start the daemon: another one runs with {}", home.folder().display());
        return Err(Failure::relay(taken).advise("`pm kill` ends it"));
    };
    let failed = |errno| Failure::new("take signals", errno);
    let others = [Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGPIPE];
    let signals = SignalQueue::open_for(&others).map_err(failed)?;
    // Three for each process, and 1024 are soon too few. The applications inherit it.
    let _ = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    let god = God::new(home.clone(), cluster)?;
    let passed = take_passed_socket()?;
    let is_passed = passed.is_some();
    let listener = passed.map_or_else(|| listen(home), Ok)?;
    let watched = god.epoll.add(&listener, PmToken::Client(0).encode(), Interest::EPOLLIN);
    watched.and_then(|()| god.epoll.add(&signals, PmToken::Signals.encode(), Interest::EPOLLIN)).map_err(failed)?;
    let mut daemon = Daemon {
        god,
        listener,
        signals,
        clients: BTreeMap::new(),
        last_client: 0,
        is_ending: false,
        ends_with_last: false,
        is_paused: false,
    };
    match SavedState::read(home, &home.state()) {
        Ok(Some(state)) => daemon.god.adopt(state),
        Ok(None) => {}
        // What it says is lost, but the next state must be kept.
        Err(failure) => console::log(failure.advise("nothing is adopted; see with ps what still runs")),
    }
    ready();
    if let Some(first) = first {
        daemon.carry_out(0, first);
        daemon.ends_with_last = true;
    }
    let outcome = daemon.serve();
    // systemd's socket stays: whoever comes next makes systemd start us again.
    if !is_passed {
        let _ = fs::remove_file(home.socket());
    }
    // Before its clients see that it has ended: they may start the next daemon at once.
    drop(lock);
    drop(daemon);
    outcome
}

/// The socket that systemd has opened for us, if it has.
fn take_passed_socket() -> Result<Option<UnixListener>, Failure> {
    let failed = |error| Failure::new("take the socket of systemd", error);
    let passed = startup::passed_sockets().map_err(|errno| failed(errno.into()))?;
    let Some(listener) = passed.into_iter().next().map(UnixListener::from) else { return Ok(None) };
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(Some(listener))
}

/// Our own. The lock is ours, so a socket that is there is a dead daemon's.
fn listen(home: &PmHome) -> Result<UnixListener, Failure> {
    let path = home.socket();
    let _ = fs::remove_file(&path);
    // It is made with the rights that it will have, so that it is not open to others even for a moment.
    let before = umask(Mode::from_bits_truncate(0o177));
    let bound = UnixListener::bind(&path);
    umask(before);
    let prepared = bound.and_then(|listener| {
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    prepared.map_err(|error| Failure::new(format_args!("control socket {}", path.display()), error))
}

impl Daemon {
    fn serve(&mut self) -> Result<(), Failure> {
        loop {
            self.god.save_state();
            self.send_events();
            self.answer_awaited();
            if self.ends_with_last && !self.is_ending && !self.god.has_work() {
                self.end();
                continue;
            }
            if self.is_ending && self.god.all().is_empty() {
                self.flush_last();
                return Ok(());
            }
            let pause = self.is_paused.then_some(ACCEPT_AGAIN_AFTER);
            let timeout = [self.god.until_due(), pause].into_iter().flatten().min();
            let reports = self.god.epoll.wait(timeout).map_err(|errno| Failure::new("wait for events", errno))?;
            let tokens: Vec<u64> = (0..reports).map(|i| self.god.epoll.report(i).token).collect();
            self.accept_again();
            for token in tokens.into_iter().filter_map(PmToken::decode) {
                match token {
                    PmToken::Signals => self.take_signals(),
                    PmToken::Client(0) => self.accept(),
                    PmToken::Client(client) => self.client_ready(client),
                    PmToken::Process(id) => self.god.process_ended(id),
                    PmToken::Channel(id) => self.god.channel_ready(id),
                    PmToken::Call(id) => self.god.call_ready(id),
                    PmToken::Watch(id) => self.god.watch_ready(id),
                    PmToken::WallClock => self.god.wall_clock_ready(),
                    PmToken::Output(id, output) => self.god.output_ready(id, output),
                }
            }
            self.god.run_due();
        }
    }

    /// Time has passed, or something has happened that may have left us a descriptor.
    fn accept_again(&mut self) {
        if self.is_paused {
            let token = PmToken::Client(0).encode();
            self.is_paused = self.god.epoll.add(&self.listener, token, Interest::EPOLLIN).is_err();
        }
    }

    fn take_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.take() {
            match signal {
                Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT => self.end(),
                Signal::SIGUSR2 => self.god.reopen_logs(),
                _ => {}
            }
        }
    }

    /// All processes end, and then the daemon.
    fn end(&mut self) {
        self.is_ending = true;
        for id in self.god.all() {
            self.god.stop(id, AfterStop::Delete);
        }
    }

    fn accept(&mut self) {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind()) => return,
            // No descriptor left, perhaps. It would be reported again at once, so it is not watched for a while.
            Err(error) => {
                console::log(Failure::new("accept a client", error).advise("clients wait, and it is tried again"));
                self.is_paused = self.god.epoll.delete(&self.listener).is_ok();
                return;
            }
        };
        self.last_client += 1;
        let id = self.last_client;
        if self.clients.len() >= MOST_CLIENTS
            && let Some(oldest) = self.clients.keys().next().copied()
        {
            self.clients.remove(&oldest);
        }
        let interest = Interest::EPOLLIN | Interest::EPOLLOUT | Interest::EPOLLRDHUP | Interest::EPOLLET;
        let watched = stream.set_nonblocking(true).is_ok()
            && self.god.epoll.add(&stream, PmToken::Client(id).encode(), interest).is_ok();
        if !watched {
            return;
        }
        let is_known = is_our_user(&stream);
        let client = PmClient { stream, received: Vec::new(), unsent: Vec::new(), is_subscriber: false, awaited: None };
        self.clients.insert(id, client);
        if !is_known {
            self.answer(id, &PmReply::refusal("this process manager belongs to another user"));
            self.clients.remove(&id);
        }
    }

    fn client_ready(&mut self, id: u64) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        if !client.flush() || !client.receive() {
            self.clients.remove(&id);
            return;
        }
        self.serve_requests(id);
    }

    /// One after another: the next when the last is answered.
    fn serve_requests(&mut self, id: u64) {
        while let Some(client) = self.clients.get_mut(&id).filter(|client| client.awaited.is_none()) {
            let Some(end) = client.received.iter().position(|&byte| byte == b'\n') else {
                if client.received.len() > LONGEST_REQUEST {
                    self.answer(id, &PmReply::refusal("a request has at most 16 MiB"));
                    self.clients.remove(&id);
                }
                return;
            };
            let line: Vec<u8> = client.received.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(request) => self.carry_out(id, request),
                Err(error) => self.answer(id, &PmReply::refusal(format!("that is not a request: {error}"))),
            }
        }
    }

    fn carry_out(&mut self, client: u64, request: PmRequest) {
        let starts = matches!(
            request,
            PmRequest::Start { .. }
                | PmRequest::Wake { .. }
                | PmRequest::Restart { .. }
                | PmRequest::Reload { .. }
                | PmRequest::Scale { .. }
        );
        let only_looks = matches!(request, PmRequest::Ping | PmRequest::List | PmRequest::Describe { .. });
        let begun = match request {
            PmRequest::Ping => Ok(BTreeSet::new()),
            PmRequest::List => Ok(self.god.all()),
            PmRequest::Start { .. } | PmRequest::Wake { .. } | PmRequest::Resurrect if self.is_ending => {
                Err("the process manager is ending".to_owned())
            }
            PmRequest::Start { apps, environment, only_new, reload } => {
                let mode = match (only_new, reload) {
                    (true, _) => StartMode::New,
                    (false, true) => StartMode::Reload,
                    (false, false) => StartMode::Restart,
                };
                self.god.start(apps, &environment, mode)
            }
            PmRequest::Wake { targets } => self.each(&targets, |god, id| god.wake(id)),
            PmRequest::Stop { targets } => self.each(&targets, |god, id| god.stop(id, AfterStop::Remain)),
            PmRequest::Reload { targets } => self.each(&targets, God::reload),
            PmRequest::Restart { targets } => self.each(&targets, God::restart),
            PmRequest::Delete { targets } => self.each(&targets, |god, id| god.stop(id, AfterStop::Delete)),
            PmRequest::Describe { targets } => self.god.find(&targets),
            PmRequest::Reset { targets } => self.each(&targets, God::reset),
            PmRequest::Flush { targets } => self.each(&targets, |god, id| god.flush_logs(id)),
            PmRequest::ReloadLogs => {
                self.god.reopen_logs();
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
            PmRequest::Resurrect => self.god.resurrect().map_err(String::from),
            PmRequest::Events => {
                if let Some(client) = self.clients.get_mut(&client) {
                    client.is_subscriber = true;
                }
                return;
            }
            PmRequest::Kill => {
                self.end();
                Ok(self.god.all())
            }
        };
        match begun {
            Ok(processes) => {
                if let Some(client) = self.clients.get_mut(&client) {
                    client.awaited = Some(AwaitedChange { processes, starts, only_looks });
                }
                self.answer_awaited();
            }
            Err(error) => self.answer(client, &PmReply::refusal(error)),
        }
    }

    fn each(&mut self, targets: &[String], action: impl Fn(&mut God, u32)) -> Result<BTreeSet<u32>, String> {
        let found = self.god.find(targets)?;
        found.iter().for_each(|&id| action(&mut self.god, id));
        Ok(found)
    }

    fn signal(&mut self, number: i32, targets: &[String]) -> Result<BTreeSet<u32>, String> {
        let signal = Signal::try_from(number).map_err(|_| format!("{number} is not the number of a signal"))?;
        let found = self.god.find(targets)?;
        found.iter().try_for_each(|&id| self.god.signal(id, signal)).map_err(String::from)?;
        Ok(found)
    }

    /// Answers those whose processes have come to rest.
    fn answer_awaited(&mut self) {
        let is_done = |client: &PmClient| {
            let is_done = |awaited: &AwaitedChange| {
                awaited.only_looks || !awaited.processes.iter().any(|&id| self.god.is_busy(id))
            };
            client.awaited.as_ref().is_some_and(is_done)
        };
        let done: Vec<u64> = self.clients.iter().filter(|(_, client)| is_done(client)).map(|(&id, _)| id).collect();
        for id in done {
            let Some(awaited) = self.clients.get_mut(&id).and_then(|client| client.awaited.take()) else { continue };
            let processes = self.god.entries(&awaited.processes);
            let error = awaited.processes.iter().find_map(|&id| self.god.failure(id)).filter(|_| awaited.starts);
            self.answer(id, &PmReply { ok: error.is_none(), error, processes });
            self.serve_requests(id);
        }
    }

    fn send_events(&mut self) {
        for event in self.god.take_events() {
            let subscribers = self.clients.iter().filter(|(_, client)| client.is_subscriber);
            for id in subscribers.map(|(&id, _)| id).collect::<Vec<_>>() {
                self.answer(id, &event);
            }
        }
    }

    fn answer(&mut self, id: u64, line: &impl Serialize) {
        let Some(client) = self.clients.get_mut(&id) else { return };
        serde_json::to_writer(&mut client.unsent, line).expect("its keys are strings");
        client.unsent.push(b'\n');
        if !client.flush() || client.unsent.len() > MOST_UNREAD {
            self.clients.remove(&id);
        }
    }

    fn flush_last(&mut self) {
        for client in self.clients.values_mut() {
            let _ = write_within(&client.stream, &mut client.unsent, LAST_WAIT);
        }
    }
}

impl PmClient {
    /// False: it is gone.
    fn flush(&mut self) -> bool {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(written) => drop(self.unsent.drain(..written)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        true
    }

    /// False: it is gone. One that has asked may have shut its side, and waits.
    fn receive(&mut self) -> bool {
        let mut buffer = [0; 4096];
        while self.received.len() <= LONGEST_REQUEST {
            match self.stream.read(&mut buffer) {
                Ok(0) => return self.awaited.is_some() || self.is_subscriber || self.received.contains(&b'\n'),
                Ok(length) => self.received.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        true
    }
}

fn is_our_user(stream: &UnixStream) -> bool {
    let peer = getsockopt(&stream.as_fd(), sockopt::PeerCredentials);
    peer.is_ok_and(|peer| peer.uid() == 0 || peer.uid() == geteuid().as_raw())
}
