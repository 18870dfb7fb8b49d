//! All worker processes, and the numbers they stand for. Several processes may have one number for a while: in a
//! reload, or when a worker has said that it is about to leave, one leaves and another is its successor.

use std::collections::{BTreeMap, VecDeque};
use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::args::{MasterArgs, SupervisionArgs};
use super::log::Log;
use super::node::{self, InspectorPorts};
use super::output::{self, Outputs};
use super::poller::{Due, OutputStream, Poller, Token, UniqueId};
use super::restarts::RestartCounts;
use super::worker::{WorkerProcess, WorkerState};
use crate::failure::Failure;
use crate::scoreboard::{Count, Scoreboard};
use crate::server::ipc::{BUFFER_BYTES, Incoming, Received};
use crate::sys::epoll::Interest;
use crate::sys::process::{Ending, Usage, ended, reap};
use crate::units::monotonic_ns;

/// A worker that could not be started is tried again after this long; and one that was killed is killed again, should
/// it be stuck in the kernel.
const RETRY: Duration = Duration::from_secs(1);

/// Further messages against the protocol are only counted.
const MOST_VIOLATIONS_LOGGED: u64 = 10;

#[derive(Clone, Default)]
struct WorkerSlot {
    /// What the kernel accounted to all processes that had it.
    usage: Usage,
    vacant_since_ns: Option<u64>,
    /// The last worker has ended as it was to (`--stop-codes`, `--no-restart`), and has no successor.
    is_finished: bool,
    /// The program was asked what to do about the vacancy, and no process was started since.
    is_start_due: bool,
}

/// A number that has no worker, or one that is about to leave. `has_served`: the last one did what it is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vacancy {
    pub number: usize,
    pub has_served: bool,
}

pub struct Workers {
    pub args: MasterArgs,
    pub supervision: SupervisionArgs,
    pub poller: Poller,
    pub log: Log,
    processes: BTreeMap<UniqueId, WorkerProcess>,
    pub wanted: usize,
    slots: Vec<WorkerSlot>,
    pub vacancies: VecDeque<Vacancy>,
    pub is_stopping: bool,
    pub counts: RestartCounts,
    pub scoreboard: Scoreboard,
    scoreboard_fd: OwnedFd,
    pub outputs: Outputs,
    inspector: Option<InspectorPorts>,
    last_id: u64,
    last_seq: u64,
    /// Their channels take nothing any more.
    pub broken: Vec<UniqueId>,
    pub last_error: String,
    buffer: Vec<u8>,
}

impl Workers {
    pub fn new(
        model: &str,
        args: MasterArgs,
        supervision: SupervisionArgs,
        poller: Poller,
        log: Log,
    ) -> Result<Workers, Failure> {
        let capacity = args.capacity();
        let (scoreboard, scoreboard_fd) =
            Scoreboard::create_shared(model, args.workers, capacity, args.scoreboard.as_deref())?;
        let from_args = args.env.iter().rev().find(|(name, _)| name == "NODE_OPTIONS");
        let node_options = from_args.map(|(_, value)| value.clone()).or(std::env::var_os("NODE_OPTIONS"));
        Ok(Workers {
            poller,
            log,
            outputs: Outputs::default(),
            inspector: InspectorPorts::of(&args.program, node_options.as_deref()),
            processes: BTreeMap::new(),
            wanted: args.workers,
            slots: vec![WorkerSlot::default(); capacity],
            vacancies: VecDeque::new(),
            is_stopping: false,
            counts: RestartCounts::default(),
            scoreboard,
            scoreboard_fd,
            last_id: 0,
            last_seq: 0,
            broken: Vec::new(),
            last_error: String::new(),
            buffer: vec![0; BUFFER_BYTES],
            args,
            supervision,
        })
    }

    pub fn get(&self, id: UniqueId) -> Option<&WorkerProcess> {
        self.processes.get(&id)
    }

    pub fn get_mut(&mut self, id: UniqueId) -> Option<&mut WorkerProcess> {
        self.processes.get_mut(&id)
    }

    /// In the order in which they were started.
    pub fn iter(&self) -> impl Iterator<Item = &WorkerProcess> {
        self.processes.values()
    }

    pub fn ids(&self) -> Vec<UniqueId> {
        self.processes.keys().copied().collect()
    }

    pub fn is_empty(&self) -> bool {
        self.processes.is_empty()
    }

    /// The worker that serves as this number, or is about to.
    pub fn holder(&self, number: usize) -> Option<&WorkerProcess> {
        self.iter().find(|worker| worker.number == number && worker.state != WorkerState::Leaving)
    }

    pub fn is_vacant(&self, number: usize) -> bool {
        number < self.wanted && !self.slots[number].is_finished && self.holder(number).is_none()
    }

    pub fn is_closed(&self) -> bool {
        self.is_stopping || self.counts.report.gave_up
    }

    /// All workers have ended as they were to.
    pub fn are_finished(&self) -> bool {
        self.is_empty() && self.slots[..self.wanted].iter().all(|slot| slot.is_finished)
    }

    /// Every number has a worker that does what it is there for.
    pub fn all_work(&self) -> bool {
        let mut works: Vec<bool> = self.slots[..self.wanted].iter().map(|slot| slot.is_finished).collect();
        let working = self.iter().filter(|worker| worker.state.is_working() && worker.number < self.wanted);
        working.for_each(|worker| works[worker.number] = true);
        works.into_iter().all(|works| works)
    }

    pub fn log_of(&mut self, id: UniqueId, event: &str, fields: Value) {
        if let Some(worker) = self.processes.get(&id) {
            self.log.log_of(worker, event, fields);
        }
    }

    pub fn next_seq(&mut self) -> u64 {
        self.last_seq += 1;
        self.last_seq
    }

    /// Starts a process as this number. `must_listen`: it is to replace a worker that has listened.
    pub fn start(&mut self, number: usize, must_listen: bool) -> Result<UniqueId, Failure> {
        self.last_id += 1;
        let id = UniqueId(self.last_id);
        let command = self.command(number, id)?;
        let board = self.scoreboard_fd.as_fd();
        let must_listen = must_listen || self.supervision.wait_ready;
        let worker = WorkerProcess::start(command, &self.args, number, id, must_listen, board)?;
        if let Some(ipc) = &worker.ipc
            && let Err(errno) = self.poller.epoll.add(ipc, Token::Worker(id).encode(), Interest::empty())
        {
            worker.kill();
            return Err(Failure::new("watch a worker", errno));
        }
        if self.counts.report.forks == 0 {
            // Not before: a program that cannot be started is one line and no event.
            let words: Vec<_> = self.args.program.iter().map(|word| word.to_string_lossy()).collect();
            self.log.log("setup", json!({"workers": self.wanted, "command_line": words, "silent": self.args.silent}));
            if let Some(what) = node::advice(&self.args.program) {
                self.log.log("advice", json!({"what": what}));
            }
        }
        self.counts.report.forks += 1;
        self.slots[number].is_start_due = false;
        self.scoreboard.row(number).set_pid(worker.pid.as_raw() as u32);
        self.poller.at(worker.started_ns + self.supervision.listen_timeout.as_nanos() as u64, Due::Listen(id));
        self.log.log_of(&worker, "fork", json!({}));
        self.processes.insert(id, worker);
        self.watch(id);
        Ok(id)
    }

    /// The command of a worker, with what differs from worker to worker: the pipes it writes to, and the inspector's
    /// port.
    fn command(&mut self, number: usize, id: UniqueId) -> Result<Command, Failure> {
        let mut output = |stream| {
            let Some(base) = &self.args.worker_output else {
                let opened = self.outputs.open(&self.poller, id, stream, number);
                return opened.map_err(|errno| Failure::new("open a pipe", errno).advise("raise ulimit -n"));
            };
            let path = output::path_of_worker(base, number, stream);
            // Open for reading too: a FIFO whose reader is gone for a while then ends nobody (fifo(7)).
            let opened = OpenOptions::new().read(true).append(true).open(&path);
            opened.map(OwnedFd::from).map_err(|error| Failure::new(format_args!("open {}", path.display()), error))
        };
        let (stdout, stderr) = (output(OutputStream::Output)?, output(OutputStream::Error)?);
        let program = &self.args.program;
        let inspected = self.inspector.as_mut().map(|inspector| inspector.next_command(program));
        let (arguments, node_options) = inspected.unwrap_or_else(|| (program.clone(), None));
        let mut command = Command::new(&arguments[0]);
        if let Some(environment) = &self.supervision.environment {
            command.env_clear().envs(environment);
        }
        command.envs(self.supervision.instance_var.iter().map(|name| (name, number.to_string())));
        command.args(&arguments[1..]).envs(self.args.env.iter().map(|(name, value)| (name, value)));
        command.envs(node_options.map(|options| ("NODE_OPTIONS", options)));
        command.stdout(stdout).stderr(stderr);
        Ok(command)
    }

    /// Starts a worker where one is missing; where that fails, it is tried again in a while.
    pub fn start_if_vacant(&mut self, number: usize) {
        if self.is_closed() || !self.is_vacant(number) {
            return;
        }
        if let Err(failure) = self.start(number, false) {
            self.log.log("failure", json!({"worker": number, "what": failure.to_string()}));
            self.poller.after(RETRY, Due::Start(number));
        }
    }

    pub fn set_wanted(&mut self, wanted: usize) {
        self.wanted = wanted;
        self.scoreboard.set_rows(wanted.max(self.scoreboard.rows()));
        // Workers with numbers above the new count are not replaced.
        for slot in &mut self.slots[wanted..] {
            *slot = WorkerSlot { usage: slot.usage, ..WorkerSlot::default() };
        }
    }

    /// Numbers whose workers have ended as they were to have workers again.
    pub fn begin_anew(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.is_finished = false);
    }

    /// Asks it to leave, and kills it should it not have left after the time-out.
    pub fn dismiss(&mut self, id: UniqueId) {
        let Some(worker) = self.get_mut(id) else { return };
        worker.state = WorkerState::Leaving;
        worker.was_expected = true;
        self.send_internal(id, json!({"act": "disconnect"}));
        self.kill_after(id, self.supervision.kill_timeout);
    }

    /// It serves no more, or not for long: its successor is started while it still answers what it has.
    pub fn note_leaving(&mut self, id: UniqueId) {
        let Some(worker) = self.get_mut(id).filter(|worker| worker.state != WorkerState::Leaving) else { return };
        let (has_served, was_expected) = (worker.state.is_working(), worker.was_expected);
        worker.state = WorkerState::Leaving;
        let number = worker.number;
        self.kill_after(id, self.supervision.kill_timeout);
        // Its channel is closed, and how it ends may say that it has no successor.
        let may_finish = self.supervision.no_restart || !self.supervision.stop_codes.is_empty();
        if was_expected || !may_finish {
            self.note_vacancy(number, has_served);
        }
    }

    fn note_vacancy(&mut self, number: usize, has_served: bool) {
        if !self.is_vacant(number) {
            return;
        }
        let slot = &mut self.slots[number];
        slot.vacant_since_ns.get_or_insert(monotonic_ns());
        // A worker that has said that it ends, and then does, leaves its number once.
        if !std::mem::replace(&mut slot.is_start_due, true) {
            self.vacancies.push_back(Vacancy { number, has_served });
        }
    }

    /// It listens. True: it is the first time.
    pub fn note_listening(&mut self, id: UniqueId) -> bool {
        let Some(worker) = self.get_mut(id) else { return false };
        if !matches!(worker.state, WorkerState::Starting { .. } | WorkerState::Running) {
            return false;
        }
        let is_new = worker.state != WorkerState::Running;
        worker.state = WorkerState::Serving;
        worker.has_listened = true;
        let number = worker.number;
        if let Some(since_ns) = self.slots[number].vacant_since_ns.take() {
            self.counts.recovered(monotonic_ns() - since_ns);
        }
        is_new
    }

    /// `--listen-timeout` is over. True: it works without listening, as far as can be known.
    ///
    /// # Errors
    /// It should have listened, and is killed.
    pub fn check_listening(&mut self, id: UniqueId) -> Result<bool, String> {
        let limit = format!("{:?} (--listen-timeout)", self.supervision.listen_timeout);
        let Some(worker) = self.processes.get_mut(&id) else { return Ok(false) };
        match worker.state {
            WorkerState::Starting { must_listen: true } => {
                let what = match self.supervision.wait_ready {
                    true => format!("it has not said after {limit} that it is ready"),
                    false => format!("it does not listen after {limit}, and the one it is to replace does"),
                };
                self.log.log_of(worker, "failure", json!({"what": what}));
                self.set_last_error(id, &what);
                self.kill_after(id, Duration::ZERO);
                Err(what)
            }
            WorkerState::Starting { must_listen: false } => {
                worker.state = WorkerState::Running;
                let what = format!("it does not listen after {limit}; it lives on");
                self.log.log_of(worker, "not-listening", json!({"what": what}));
                let number = worker.number;
                self.slots[number].vacant_since_ns = None;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Why it will not serve: that says more than how it will end.
    pub fn set_last_error(&mut self, id: UniqueId, what: &str) {
        if let Some(worker) = self.get_mut(id) {
            worker.last_error = Some(format!("worker {}: {what}", worker.number));
        }
    }

    /// One of our servers notices a signal even in the middle of a request, and knows what it means (section 1 of the
    /// contract): once it has taken what it was given, lest it end before. A Node program would end at once.
    pub fn terminate_if_own(&self, id: UniqueId) {
        if let Some(worker) = self.get(id).filter(|worker| worker.counts && worker.unanswered.is_empty()) {
            worker.terminate();
        }
    }

    pub fn kill_after(&mut self, id: UniqueId, pause: Duration) {
        let Some(worker) = self.get_mut(id) else { return };
        let deadline_ns = monotonic_ns() + pause.as_nanos() as u64;
        if worker.deadline_ns.is_none_or(|earlier_ns| deadline_ns < earlier_ns) {
            worker.deadline_ns = Some(deadline_ns);
            self.poller.at(deadline_ns, Due::Kill(id));
        }
    }

    /// True: its time was over, and it is killed.
    pub fn kill_overdue(&mut self, id: UniqueId) -> bool {
        let (now_ns, limit) = (self.poller.now_ns, self.supervision.kill_timeout);
        let Some(worker) = self.processes.get_mut(&id) else { return false };
        if worker.deadline_ns.is_none_or(|deadline_ns| deadline_ns > now_ns) {
            return false;
        }
        worker.kill();
        worker.deadline_ns = Some(now_ns + RETRY.as_nanos() as u64);
        self.poller.after(RETRY, Due::Kill(id));
        if worker.state == WorkerState::Leaving {
            let why = format!("it has not left in time: {limit:?} (--kill-timeout)");
            self.log.log_of(worker, "killed", json!({"why": why}));
        }
        true
    }

    /// How often to look for signs of life. A hang has to be noticed in time, so at least twice until the time-out.
    pub fn heartbeat(&self) -> Duration {
        let hang = self.args.hang_timeout;
        hang.map_or(self.args.heartbeat, |hang| self.args.heartbeat.min(hang / 2)).max(Duration::from_millis(1))
    }

    /// Looks whether it is alive; true: it is found to hang now. A worker that hangs for too long is killed.
    pub fn check(&mut self, id: UniqueId) -> bool {
        let beat_ns = self.heartbeat().as_nanos() as u64;
        let hang_timeout = self.args.hang_timeout;
        let Some(worker) = self.processes.get_mut(&id) else { return false };
        let silent_ns = worker.silence_ns(self.poller.now_ns, beat_ns).unwrap_or(0);
        let silent_s = silent_ns as f64 / 1e9;
        let hangs_now = silent_ns >= beat_ns && !worker.is_hung;
        if hangs_now {
            worker.is_hung = true;
            self.counts.report.hangs += 1;
            self.log.log_of(worker, "hang", json!({"silent_s": silent_s}));
        }
        if hang_timeout.is_some_and(|timeout| u128::from(silent_ns) >= timeout.as_nanos()) {
            let why = format!("it has given no sign of life for {silent_s:.3} s (--hang-timeout)");
            self.log.log_of(worker, "killed", json!({"why": why}));
            worker.kill();
        }
        self.watch(id);
        hangs_now
    }

    pub fn send(&mut self, id: UniqueId, message: &Value) {
        if let Some(ipc) = self.get_mut(id).and_then(|worker| worker.ipc.as_mut()) {
            ipc.send(message);
        }
        self.watch(id);
    }

    /// The same with a message of Node's library.
    pub fn send_internal(&mut self, id: UniqueId, mut message: Value) {
        (message["cmd"], message["seq"]) = (json!("NODE_CLUSTER"), json!(self.next_seq()));
        self.send(id, &message);
    }

    /// Lets the poller wait for what the channel of a worker needs now.
    pub fn watch(&mut self, id: UniqueId) {
        if self.processes.get_mut(&id).is_some_and(|worker| !worker.watch(&mut self.poller))
            && !self.broken.contains(&id)
        {
            self.broken.push(id);
        }
    }

    /// Receives once, so that a worker that sends without end leaves the others their turn.
    pub fn receive(&mut self, id: UniqueId, incoming: &mut VecDeque<Incoming>) -> Received {
        let ipc = self.processes.get_mut(&id).and_then(|worker| worker.ipc.as_mut());
        ipc.map_or(Received::Nothing, |ipc| ipc.receive(&mut self.buffer, incoming))
    }

    /// Its channel is closed; it may still answer what it has. False: it was closed before.
    pub fn close_channel(&mut self, id: UniqueId) -> bool {
        let Some(worker) = self.get_mut(id) else { return false };
        let number = worker.number;
        let Some(ipc) = worker.ipc.take() else { return false };
        // The kernel closes the channel of one that ends before it reports the end, and a successor may write
        // meanwhile.
        self.end_output(number);
        // What the worker has started may hold the other end, but not this one; so this cannot fail.
        let _ = self.poller.epoll.delete(&ipc);
        self.kill_after(id, self.supervision.kill_timeout);
        true
    }

    pub fn log_violation(&mut self, id: UniqueId, what: &str) {
        let Some(worker) = self.processes.get_mut(&id) else { return };
        worker.violations += 1;
        if worker.violations <= MOST_VIOLATIONS_LOGGED {
            let is_last = worker.violations == MOST_VIOLATIONS_LOGGED;
            self.log.log_of(worker, "violation", json!({"what": what, "is_last_told": is_last}));
        }
    }

    /// Reaps one process that has ended; its worker, if it is one, is still there.
    pub fn reap(&self) -> Option<(Option<UniqueId>, Ending, Usage)> {
        // What it has left in its group is killed first: until it is reaped its number belongs to no other process.
        if let Some(worker) = ended().and_then(|pid| self.find(pid)).and_then(|id| self.get(id)) {
            worker.kill();
        }
        let (pid, ending, usage) = reap().ok()??;
        Some((self.find(pid), ending, usage))
    }

    /// Removes a process that was reaped, enters what it has used, and returns how it ended.
    pub fn remove(&mut self, id: UniqueId, ending: Ending, usage: Usage) -> Option<String> {
        let worker = self.processes.remove(&id)?;
        let (status, signal) = match ending {
            Ending::Exited(status) => (Some(status), None),
            Ending::KilledBy(signal) => (None, Signal::try_from(signal).map(Signal::as_str).ok()),
        };
        let exit_reason = ending.to_string();
        let is_stop_code = status.is_some_and(|status| self.supervision.stop_codes.contains(&status));
        let is_to_end = self.supervision.no_restart || is_stop_code;
        let is_expected = worker.was_expected || is_to_end;
        // A reload may have started its successor before its end was known.
        let is_finished = is_to_end && !worker.was_expected && self.holder(worker.number).is_none();
        let fields = json!({"status": status, "signal": signal, "expected": is_expected, "finished": is_finished,
            "how": exit_reason});
        self.log.log_of(&worker, "exit", fields);
        let number = worker.number;
        self.end_output(number);
        if !is_expected {
            self.counts.report.deaths += 1;
        }
        let slot = &mut self.slots[number];
        slot.is_finished |= is_finished;
        slot.usage = slot.usage + usage;
        let row = self.scoreboard.row(number);
        row.set_usage(slot.usage);
        // The kernel has closed the connections of one that was killed. Where another process counts in the same row,
        // it is not known which are whose, and they stay in it until that one is gone too.
        if self.iter().all(|other| other.number != number) {
            row.lose_open_connections();
        }
        match &worker.last_error {
            Some(error) => self.last_error.clone_from(error),
            None if !worker.was_expected => self.last_error = format!("worker {number} {exit_reason}"),
            None => {}
        }
        self.note_vacancy(number, worker.has_listened);
        Some(exit_reason)
    }

    /// Ends the output in its FIFOs, where it writes to some (`--worker-output`).
    fn end_output(&self, number: usize) {
        self.args.worker_output.iter().for_each(|base| output::end_worker(base, number));
    }

    /// How many connections worker `number` has: those it has not answered for, and those that it counts as open, if it
    /// is a program that counts in the scoreboard.
    pub fn load(&self, number: usize) -> u64 {
        let unanswered = self.iter().filter(|worker| worker.number == number);
        let unanswered: usize = unanswered.map(|worker| worker.unanswered.len()).sum();
        self.scoreboard.row(number).get(Count::Active) + unanswered as u64
    }

    /// What `cluster ctl status` shows; the master adds what only it knows.
    pub fn status(&self) -> Value {
        let words: Vec<_> = self.args.program.iter().map(|word| word.to_string_lossy()).collect();
        let workers = self.iter().map(|worker| worker.status(self.scoreboard.row(worker.number)));
        let vacant = (0..self.wanted).filter(|&number| self.is_vacant(number));
        let mut rows: Vec<Value> =
            workers.chain(vacant.map(|number| json!({"worker": number, "state": "vacant"}))).collect();
        rows.sort_by_key(|row| row["worker"].as_u64());
        json!({
            "program": words.join(" "),
            "uptime_s": self.scoreboard.uptime_s(),
            "wanted": self.wanted,
            "restart_counts": self.counts.report(),
            "workers": rows,
        })
    }

    fn find(&self, pid: Pid) -> Option<UniqueId> {
        self.iter().find(|worker| worker.pid == pid).map(|worker| worker.id)
    }
}
