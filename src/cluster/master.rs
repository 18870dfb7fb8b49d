//! The master's loop: channels, listening sockets, signals and timers, one after another. Nothing waits for a worker
//! that does not answer.
//!
//! Each part owns what belongs to it ([`Workers`] the processes, [`Sockets`] the connections); here is what one of them
//! has to know of another.

use std::collections::VecDeque;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal::*;
use serde_json::{Value, json};

use super::args::{MasterArgs, SupervisionArgs};
use super::control::{ControlRequest, MasterControl};
use super::log::Log;
use super::notifier::Notifier;
use super::poller::{Due, Poller, Token, UniqueId};
use super::protocol::{self, Address, Message, Query};
use super::restarts::RollingReload;
use super::signals::Signals;
use super::sockets::Sockets;
use super::worker::{WorkerProcess, WorkerState};
use super::workers::{Vacancy, Workers};
use crate::failure::Failure;
use crate::report::ServerReport;
use crate::server::ipc::{Incoming, Received};
use crate::sys::epoll::Interest;
use crate::sys::fd::close_all;
use crate::sys::process::Usage;
use crate::units::monotonic_ns;

/// A longer message of the program is logged by its size.
const LONGEST_LOGGED: usize = 4096;

/// What the program has to decide about; everything else the master does by itself.
pub enum MasterEvent {
    /// A worker has called `listen()`: [`Sockets::listen`] decides who accepts.
    Listen(UniqueId, Box<Query>),
    /// A connection of this socket, and at least one worker is free ([`Sockets::free`]) to [`Sockets::pass`] it to.
    Connection(u64, Arc<OwnedFd>),
    /// For the first time all workers take connections.
    Ready(Address),
    /// A number has no worker that serves, or is about to: [`Master::restart`] it or [`Master::give_up`].
    Vacant(Vacancy),
}

pub struct Master {
    signals: Signals,
    pub workers: Workers,
    pub sockets: Sockets,
    reload: Option<RollingReload>,
    control: MasterControl,
    /// Clients of the control socket that wait for the end.
    stop_clients: Vec<u64>,
    notifier: Option<Notifier>,
    /// Where the program listened first, once all workers do.
    address: Option<Address>,
    events: VecDeque<MasterEvent>,
    incoming: VecDeque<Incoming>,
}

impl Master {
    /// Starts all workers. A worker has at most `most_unanswered` connections to answer for before it is given no more.
    pub fn start(
        model: &str,
        args: MasterArgs,
        supervision: SupervisionArgs,
        most_unanswered: usize,
    ) -> Result<Master, Failure> {
        let open = || {
            let poller = Poller::new()?;
            let signals = Signals::open(&poller)?;
            Ok((poller, signals))
        };
        let (mut poller, signals) = open().map_err(|errno: Errno| Failure::new("open an epoll instance", errno))?;
        let log = Log::open(&args)?;
        let control = args.control.as_deref().map(|path| MasterControl::open(path, &poller)).transpose()?;
        let notifier = args.notify.as_deref().map(|path| Notifier::new(path, args.notify_every)).transpose()?;
        if let Some(notifier) = &notifier {
            poller.at(notifier.next_ns, Due::ReadFile);
            let watch = |inotify| poller.epoll.add(inotify, Token::Notifier.encode(), Interest::EPOLLIN);
            let watched = notifier.inotify.as_ref().map_or(Ok(()), watch);
            watched.map_err(|errno| Failure::new("watch a file", errno))?;
        }
        let mut master = Master {
            signals,
            control: control.unwrap_or_default(),
            stop_clients: Vec::new(),
            notifier,
            workers: Workers::new(model, args, supervision, poller, log)?,
            sockets: Sockets::new(most_unanswered),
            reload: None,
            address: None,
            events: VecDeque::new(),
            incoming: VecDeque::new(),
        };
        master.workers.poller.after(master.workers.heartbeat(), Due::Heartbeat);
        for number in 0..master.workers.wanted {
            master.workers.start(number, false)?;
        }
        Ok(master)
    }

    /// What happens next. `None`: the master is to stop, or has given up and the last worker is dead.
    ///
    /// # Errors
    /// The same when the program never served.
    pub fn next_event(&mut self) -> Result<Option<MasterEvent>, Failure> {
        loop {
            self.disconnect_broken();
            if self.workers.is_stopping {
                return Ok(None);
            }
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            if let Some(vacancy) = self.workers.vacancies.pop_front() {
                return Ok(Some(MasterEvent::Vacant(vacancy)));
            }
            if self.workers.are_finished() {
                return Ok(None);
            }
            if let Some(failure) = self.exit_reason() {
                // A program that has served has something to report first.
                return if self.address.is_none() { Err(failure) } else { Ok(None) };
            }
            if let Some((socket, connection)) = self.sockets.next_connection(&mut self.workers)? {
                return Ok(Some(MasterEvent::Connection(socket, connection)));
            }
            self.wait()?;
        }
    }

    /// Why it ends though it was not asked to.
    fn exit_reason(&self) -> Option<Failure> {
        let Workers { counts, last_error: last, .. } = &self.workers;
        let line = || format!("serve: the last worker has died, and no more are started; last: {last}");
        (counts.report.gave_up && self.workers.is_empty()).then(|| Failure::relay(line()))
    }

    /// Starts a successor after this pause; where that fails, it is tried again in a while.
    pub fn restart(&mut self, number: usize, after: Duration) {
        if after.is_zero() {
            self.workers.start_if_vacant(number);
        } else {
            self.workers.poller.after(after, Due::Start(number));
        }
    }

    /// No worker is started any more. Those that live go on.
    pub fn give_up(&mut self) {
        if !mem::replace(&mut self.workers.counts.report.gave_up, true) {
            let last = self.workers.last_error.as_str();
            self.workers.log.log("giveup", json!({"workers_left": self.workers.ids().len(), "last": last}));
        }
    }

    /// Asks all workers to disconnect and lets them finish, kills those left after the time-out, reaps all.
    pub fn stop(mut self) -> Result<ServerReport, Failure> {
        let exit_reason = self.exit_reason();
        self.workers.is_stopping = true;
        self.abandon_reload("the cluster stops");
        self.sockets.give_returned(&mut self.workers);
        for id in self.workers.ids() {
            self.dismiss(id);
            self.workers.terminate_if_own(id);
        }
        self.sockets.close();
        while !self.workers.is_empty() {
            self.events.clear();
            self.wait()?;
        }
        // A program that has never listened has no address.
        let address = self.address.take().unwrap_or_else(|| Address::Ip(([0, 0, 0, 0], 0).into()));
        let mut report = self.workers.scoreboard.report(address, Some(Usage::of_process()));
        self.workers.outputs.drain(&mut self.workers.log);
        self.workers.log.log("stopped", json!({"uptime_s": report.uptime_s}));
        let mut counts = self.workers.counts.report();
        counts.lines_dropped = self.workers.log.lines_dropped();
        report.cluster = Some(counts);
        if let Some(failure) = exit_reason {
            self.workers.log.console.write(format!("{failure}\n").as_bytes());
        }
        for client in mem::take(&mut self.stop_clients) {
            self.control.answer(client, json!({"done": "the cluster has stopped"}));
        }
        Ok(report)
    }

    fn wait(&mut self) -> Result<(), Failure> {
        self.disconnect_broken();
        close_all(&mut self.sockets.passed);
        let reports = self.workers.poller.wait().map_err(|errno| Failure::new("wait for the workers", errno))?;
        for i in 0..reports {
            let ready = self.workers.poller.epoll.report(i);
            if let Some(token) = Token::decode(ready.token) {
                self.handle_ready(token, ready.flags)?;
            }
        }
        while let Some(due) = self.workers.poller.next_due() {
            self.run_timer(due);
        }
        Ok(())
    }

    /// A descriptor is ready. It may be gone, since an earlier report of the same wait has ended it.
    fn handle_ready(&mut self, token: Token, flags: Interest) -> Result<(), Failure> {
        match token {
            Token::Signals => self.handle_signal()?,
            Token::Worker(id) => {
                if flags.intersects(Interest::EPOLLIN | Interest::EPOLLHUP | Interest::EPOLLERR) {
                    self.receive(id);
                }
                self.flush(id);
            }
            Token::Socket(socket) => self.sockets.set_ready(socket),
            Token::Output(id, stream) => {
                self.workers.outputs.read(id, stream, &mut self.workers.log);
            }
            Token::Control(0) => self.control.accept(&self.workers.poller),
            Token::Control(client) => self.handle_client(client, flags),
            Token::Notifier => self.read_watched_file(),
        }
        Ok(())
    }

    fn handle_signal(&mut self) -> Result<(), Failure> {
        match self.signals.next().map_err(|errno| Failure::new("wait for signals", errno))? {
            Some(SIGTERM | SIGINT | SIGQUIT) => self.workers.is_stopping = true,
            Some(SIGHUP) if !self.workers.is_stopping => self.start_reload(None, self.workers.supervision.clone()),
            Some(SIGUSR1) => self.workers.log.reopen(),
            // Several may merge into one.
            Some(SIGCHLD) => while self.reap_one() {},
            _ => {}
        }
        Ok(())
    }

    fn run_timer(&mut self, due: Due) {
        match due {
            Due::AcceptAgain => self.sockets.is_paused = false,
            Due::Retry(socket, id) => self.sockets.set_free(socket, id, &self.workers),
            Due::CloseOrphan(socket) => self.sockets.close_orphan(socket, &mut self.workers),
            Due::CloseUnused(socket, id) => self.sockets.close_unused(socket, id, &self.workers),
            Due::Flush(id) => self.flush(id),
            Due::Kill(id) => {
                if self.workers.kill_overdue(id) {
                    self.report_killed_in_reload(id);
                }
            }
            Due::Start(number) => self.workers.start_if_vacant(number),
            Due::Listen(id) => match self.workers.check_listening(id) {
                Ok(true) => self.note_working(id),
                Ok(false) => {}
                Err(why) => self.reload_without(id, &why),
            },
            Due::Heartbeat => self.check_all(),
            Due::ReadFile => self.read_watched_file(),
        }
    }

    fn check_all(&mut self) {
        for id in self.workers.ids() {
            if self.workers.check(id) {
                self.sockets.suspend(id, &mut self.workers);
            }
        }
        self.control.accept_again(&self.workers.poller);
        self.workers.log.console.flush(Duration::ZERO);
        self.workers.poller.after(self.workers.heartbeat(), Due::Heartbeat);
    }

    fn flush(&mut self, id: UniqueId) {
        if let Some(worker) = self.workers.get_mut(id) {
            worker.flush();
        }
        self.workers.watch(id);
    }

    /// Receives once. True: there may be more.
    fn receive(&mut self, id: UniqueId) -> bool {
        let mut incoming = mem::take(&mut self.incoming);
        let received = self.workers.receive(id, &mut incoming);
        // An acknowledgement is a sign of life that comes without a message.
        if received == Received::Something {
            self.note_life(id);
        }
        for incoming in incoming.drain(..) {
            match incoming {
                Incoming::Message(message, _unwanted) => match Message::parse(message) {
                    Ok(message) => self.handle_message(id, message),
                    Err(what) => self.workers.log_violation(id, &what),
                },
                Incoming::Answer { ack, accepted } => self.take_answer(id, ack, accepted),
                // It has no descriptor left: as if it had refused.
                Incoming::Undelivered(seq) => self.take_answer(id, seq, false),
                Incoming::Large(bytes) => self.workers.log_of(id, "message", json!({"bytes": bytes})),
                Incoming::Connection { .. } => self.workers.log_violation(id, "a connection where none belongs"),
                Incoming::Violation(what) => self.workers.log_violation(id, &what),
            }
        }
        self.incoming = incoming;
        if received == Received::End {
            self.disconnect(id);
        }
        received == Received::Something
    }

    fn handle_message(&mut self, id: UniqueId, message: Message) {
        match message {
            Message::Online { counts } => {
                if let Some(worker) = self.workers.get_mut(id) {
                    worker.is_online = true;
                    worker.counts = counts;
                }
                self.workers.log_of(id, "online", json!({}));
                if self.notifier.as_ref().is_some_and(|notifier| notifier.value.is_some()) {
                    self.notify(id);
                }
            }
            Message::Query(query) => self.events.push_back(MasterEvent::Listen(id, query)),
            Message::Listening { port } => self.note_listening(id, port),
            Message::Close(key) => self.sockets.close_of(id, &key, &mut self.workers),
            Message::ExitedAfterDisconnect { seq } => {
                self.note_leaving(id);
                self.workers.send_internal(id, json!({"ack": seq}));
            }
            Message::Suicide => {
                if self.workers.get(id).is_some_and(|worker| worker.state != WorkerState::Leaving) {
                    self.workers.counts.report.suicides += 1;
                    self.workers.log_of(id, "suicide", json!({}));
                    self.note_leaving(id);
                }
            }
            Message::Count(counts) => counts.iter().for_each(|(name, n)| self.workers.counts.count(name, *n)),
            Message::Program(message) => {
                if self.workers.supervision.wait_ready && message == "ready" {
                    self.workers.log_of(id, "ready", json!({}));
                    self.note_serving(id);
                }
                let fields = match message.to_string().len() {
                    bytes if bytes > LONGEST_LOGGED => json!({"bytes": bytes}),
                    _ => json!({"message": message}),
                };
                self.workers.log_of(id, "message", fields);
            }
        }
    }

    fn take_answer(&mut self, id: UniqueId, ack: u64, accepted: bool) {
        if !self.sockets.take_answer(id, ack, accepted, &mut self.workers) {
            self.workers.log_violation(id, "an answer about a connection that it was not given");
        }
        if self.workers.is_stopping {
            self.workers.terminate_if_own(id);
        }
    }

    fn note_life(&mut self, id: UniqueId) {
        let now_ns = self.workers.poller.now_ns;
        if self.workers.get_mut(id).is_some_and(|worker| worker.shows_life(now_ns)) {
            self.workers.log_of(id, "recovered", json!({}));
            self.sockets.resume(id, &self.workers);
        }
    }

    fn note_listening(&mut self, id: UniqueId, port: Option<u64>) {
        let is_meant = |address: &&Address| match address {
            Address::Ip(address) => port == Some(address.port().into()),
            Address::Path(_) => port.is_none(),
        };
        let first = self.sockets.addresses_of(id).next();
        let address = self.sockets.addresses_of(id).find(is_meant).or(first).map(Address::to_string);
        self.workers.log_of(id, "listening", json!({"address": address}));
        if address.is_some() && !self.workers.supervision.wait_ready {
            self.note_serving(id);
        }
    }

    fn note_serving(&mut self, id: UniqueId) {
        let is_first = self.workers.note_listening(id);
        if is_first {
            self.note_working(id);
        } else {
            self.note_ready();
        }
    }

    fn note_working(&mut self, id: UniqueId) {
        if let Some(reload) = self.reload.as_mut().filter(|reload| reload.candidate == Some(id)) {
            reload.candidate = None;
            reload.replaced += 1;
            match reload.old.filter(|&old| self.workers.get(old).is_some()) {
                Some(old) => self.dismiss(old),
                // It has left already.
                None => self.replace_next(),
            }
        }
        self.note_ready();
    }

    fn note_ready(&mut self) {
        if self.address.is_none() && self.workers.all_work() {
            self.address = self.sockets.first_address().cloned();
            self.events.extend(self.address.clone().map(MasterEvent::Ready));
        }
    }

    fn dismiss(&mut self, id: UniqueId) {
        self.workers.dismiss(id);
        // What it was given before it reads this, it takes or gives back.
        self.sockets.leave(id, None, &mut self.workers);
    }

    fn note_leaving(&mut self, id: UniqueId) {
        let Some(worker) = self.workers.get_mut(id) else { return };
        worker.was_expected = true;
        self.retire(id);
        self.reload_without(id, "it leaves by itself");
    }

    fn retire(&mut self, id: UniqueId) {
        if self.workers.get(id).is_some_and(|worker| worker.state != WorkerState::Leaving) {
            self.sockets.leave(id, None, &mut self.workers);
            self.workers.note_leaving(id);
        }
    }

    /// Its channel is closed. It may still answer what it has.
    fn disconnect(&mut self, id: UniqueId) {
        if self.workers.close_channel(id) {
            self.sockets.take_back_all(id, &mut self.workers);
            self.events.retain(|event| !matches!(event, MasterEvent::Listen(asker, _) if *asker == id));
            self.workers.log_of(id, "disconnect", json!({}));
            self.retire(id);
        }
    }

    /// The channels that take nothing more. What came over them still counts.
    fn disconnect_broken(&mut self) {
        while let Some(id) = self.workers.broken.pop() {
            while self.receive(id) {}
            self.disconnect(id);
        }
    }

    /// True: a process has ended.
    fn reap_one(&mut self) -> bool {
        let Some((worker, ending, usage)) = self.workers.reap() else { return false };
        let Some(id) = worker else { return true };
        // What it sent before it died counts.
        while self.receive(id) {}
        self.disconnect(id);
        if let Some(exit_reason) = self.workers.remove(id, ending, usage) {
            self.reload_without(id, &format!("it {exit_reason}"));
        }
        true
    }

    /// `before` was in force before it was asked for.
    fn start_reload(&mut self, client: Option<u64>, before: SupervisionArgs) {
        self.workers.log.reopen();
        if let Some(reload) = &mut self.reload {
            reload.again.get_or_insert(before);
            reload.clients.extend(client);
            if let Some(client) = client {
                self.control.send(client, &json!({"step": "a reload is under way; another follows it"}));
            }
            return;
        }
        self.begin_reload(client.into_iter().collect(), before);
    }

    fn begin_reload(&mut self, clients: Vec<u64>, before: SupervisionArgs) {
        // A program that was given up is tried once more.
        self.workers.counts.report.gave_up = false;
        self.workers.begin_anew();
        let wanted = self.workers.wanted;
        self.workers.log.log("reload", json!({"workers": wanted}));
        let (since_ns, left, before) = (monotonic_ns(), (0..wanted).collect(), Some(before));
        self.reload = Some(RollingReload { since_ns, left, clients, before, ..RollingReload::default() });
        (0..wanted).for_each(|number| self.restart(number, Duration::ZERO));
        self.replace_next();
    }

    fn replace_next(&mut self) {
        loop {
            if self.workers.counts.report.gave_up {
                return self.abandon_reload("the program was given up");
            }
            let Some(reload) = &mut self.reload else { return };
            let Some(number) = reload.left.pop_front() else { return self.finish_reload() };
            let since_ns = reload.since_ns;
            let old = self.workers.holder(number).filter(|worker| worker.started_ns < since_ns);
            let Some((old, must_listen)) = old.map(|worker| (worker.id, worker.has_listened)) else {
                continue;
            };
            match self.workers.start(number, must_listen) {
                Ok(candidate) => {
                    reload.old = Some(old);
                    reload.candidate = Some(candidate);
                    let total = self.workers.wanted;
                    self.report_step(&format!("worker {number} of {total}: a successor is started"));
                }
                Err(failure) => self.abandon_reload(&failure.to_string()),
            }
            return;
        }
    }

    fn reload_without(&mut self, id: UniqueId, why: &str) {
        let Some(reload) = &self.reload else { return };
        if reload.candidate == Some(id) {
            self.abandon_reload(&format!("the new worker does not serve: {why}"));
        } else if reload.waits_for(id) && self.workers.get(id).is_none() {
            self.replace_next();
        }
    }

    /// An old worker had to be killed: clients that wait for the reload learn that requests may have failed.
    fn report_killed_in_reload(&mut self, id: UniqueId) {
        let (Some(reload), Some(worker)) = (&mut self.reload, self.workers.get(id)) else { return };
        if reload.waits_for(id) && reload.killed.insert(id) {
            let number = worker.number;
            self.report_step(&format!(
                "worker {number}: the old one has not left in time (--kill-timeout), and is killed"
            ));
        }
    }

    fn report_step(&mut self, step: &str) {
        let clients = self.reload.iter().flat_map(|reload| &reload.clients);
        clients.for_each(|&client| self.control.send(client, &json!({"step": step})));
    }

    fn finish_reload(&mut self) {
        let Some(reload) = self.reload.take() else { return };
        self.workers.counts.report.reloads += 1;
        let (replaced, killed) = (reload.replaced, reload.killed.len());
        self.workers.log.log("reloaded", json!({"replaced": replaced, "killed": killed}));
        if let Some(before) = reload.again {
            return self.begin_reload(reload.clients, before);
        }
        let by_force = if killed > 0 { format!(", killed: {killed}") } else { String::new() };
        let done = format!("workers replaced: {replaced}{by_force}");
        for client in reload.clients {
            self.control.answer(client, json!({"done": done, "replaced": replaced, "killed": killed}));
        }
    }

    fn abandon_reload(&mut self, why: &str) {
        let Some(reload) = self.reload.take() else { return };
        self.workers.counts.report.reloads_failed += 1;
        if let Some(before) = reload.before.filter(|_| reload.replaced == 0) {
            self.workers.supervision = before;
        }
        let outcome = json!({"replaced": reload.replaced, "of": self.workers.wanted, "why": why});
        self.workers.log.log("reload-failed", outcome);
        for client in reload.clients {
            self.control.refuse(client, &format!("the reload was abandoned: {why}; the others go on as they were"));
        }
    }

    fn read_watched_file(&mut self) {
        let Some(notifier) = &mut self.notifier else { return };
        let (before, next_ns) = (notifier.looks, notifier.next_ns);
        let has_changed = notifier.has_changed(self.workers.poller.now_ns);
        self.workers.counts.count("notifier_looks", (notifier.looks - before) as f64);
        if notifier.next_ns != next_ns {
            self.workers.poller.at(notifier.next_ns, Due::ReadFile);
        }
        if has_changed {
            self.workers.ids().into_iter().for_each(|id| self.notify(id));
        }
    }

    fn notify(&mut self, id: UniqueId) {
        let Some(notifier) = &self.notifier else { return };
        let message = protocol::notify(&notifier.path.to_string_lossy(), notifier.value.as_deref());
        if self.workers.get(id).is_some_and(|worker| worker.is_online && worker.has_room()) {
            self.workers.counts.count("notifier_pushes", 1.0);
            self.workers.send(id, &message);
        }
    }

    fn handle_client(&mut self, client: u64, ready: Interest) {
        let Some(request) = self.control.receive(client, ready) else { return };
        if self.workers.is_stopping {
            return self.control.refuse(client, "the cluster stops");
        }
        match request {
            ControlRequest::Status => {
                let mut answer = self.workers.status();
                answer["listen"] = json!(self.address.as_ref().map(Address::to_string));
                answer["reloading"] = json!(self.reload.is_some());
                answer["gave_up"] = json!(self.workers.counts.report.gave_up);
                self.control.answer(client, answer);
            }
            ControlRequest::Scale { .. } if self.workers.counts.report.gave_up => {
                let why = "the program was given up; mend it, and `cluster ctl reload` tries it once more";
                self.control.refuse(client, why);
            }
            ControlRequest::Reload { environment, options } => {
                let before = self.workers.supervision.clone();
                match options.as_deref().map(SupervisionArgs::parse) {
                    Some(Err(why)) => return self.control.refuse(client, &why),
                    Some(Ok(supervision)) => self.workers.supervision = supervision,
                    None => {}
                }
                self.workers.supervision.environment = environment.or_else(|| before.environment.clone());
                self.start_reload(Some(client), before);
            }
            ControlRequest::Scale { workers } => self.scale(client, workers),
            ControlRequest::Send { worker, message } => self.send_message(client, worker, &message),
            ControlRequest::Stop => {
                self.workers.is_stopping = true;
                self.stop_clients.push(client);
            }
        }
    }

    fn scale(&mut self, client: u64, wanted: usize) {
        let (before, most) = (self.workers.wanted, self.workers.args.capacity());
        if !(1..=most).contains(&wanted) {
            let why = format!("there can be 1 to {most} workers here; --most-workers allows more");
            return self.control.refuse(client, &why);
        }
        self.workers.log.log("scale", json!({"from": before, "to": wanted}));
        self.workers.set_wanted(wanted);
        let is_surplus = |worker: &&WorkerProcess| worker.number >= wanted && worker.state != WorkerState::Leaving;
        let surplus: Vec<UniqueId> = self.workers.iter().filter(is_surplus).map(|worker| worker.id).collect();
        surplus.iter().for_each(|&id| self.dismiss(id));
        if let Some(reload) = &mut self.reload {
            reload.left.retain(|&number| number < wanted);
            // The number of the candidate is not wanted either.
            if reload.candidate.take_if(|candidate| surplus.contains(candidate)).is_some() {
                reload.old = None;
                self.replace_next();
            }
        }
        (before..wanted).for_each(|number| self.restart(number, Duration::ZERO));
        let done = format!("from {before} to {wanted} workers");
        self.control.answer(client, json!({"done": done, "wanted": wanted}));
    }

    fn send_message(&mut self, client: u64, to: Option<usize>, message: &Value) {
        if message["cmd"].as_str().is_some_and(|cmd| cmd.starts_with("NODE_")) {
            return self.control.refuse(client, "messages with a cmd that begins with NODE_ belong to Node's library");
        }
        let is_meant = |worker: &WorkerProcess| to.is_none_or(|number| number == worker.number);
        let is_able =
            |worker: &&WorkerProcess| is_meant(worker) && worker.state != WorkerState::Leaving && worker.has_room();
        let able: Vec<UniqueId> = self.workers.iter().filter(is_able).map(|worker| worker.id).collect();
        able.iter().for_each(|&id| self.workers.send(id, message));
        match able.len() {
            0 => self.control.refuse(client, "no such worker is there, or it does not read what it is sent"),
            sent => {
                let done = format!("workers it was sent to: {sent}");
                self.control.answer(client, json!({"done": done, "sent": sent}));
            }
        }
    }
}

impl Drop for Master {
    /// Whatever went wrong: no worker outlives its master.
    fn drop(&mut self) {
        self.workers.iter().for_each(WorkerProcess::kill);
        while !self.workers.is_empty() {
            if !self.reap_one() {
                // Waits a moment for any of them.
                let _ = self.signals.queue.wait(Some(Duration::from_millis(10)));
            }
        }
        // What they wrote last may say why.
        self.workers.outputs.drain(&mut self.workers.log);
    }
}
