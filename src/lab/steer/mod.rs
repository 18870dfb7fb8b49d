//! `lab steer PID|:PORT|ADDR:PORT --select WAY`: another way to choose among the sockets of a running SO_REUSEPORT
//! group. The server is not changed: a program is attached to its group, through a duplicate of one of its listeners
//! (pidfd_getfd(2)), and replaced whenever the workers' state asks for it.
//!
//! - [`group`]: the sockets, the processes, and the listener to attach through;
//! - [`probe`]: connections of ours that find out which number in the group belongs to whom, and who accepts;
//! - [`choice`]: which sockets may be chosen, as a program in classic BPF: pure;
//! - [`exact`]: a program in extended BPF that counts what it chooses;
//! - [`steering`]: look, choose, attach, again and again;
//! - [`watchdog`]: the process that gives the group back, also when we are killed;
//! - [`events`]: a line for each thing that happens.

mod choice;
mod events;
mod exact;
mod group;
mod probe;
mod steering;
mod watchdog;

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use clap::Args;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::console::Format;
use crate::failure::Failure;
use crate::lab::target::{Target, enter_namespace_of};
use crate::sys::fd::until_uninterrupted;
use crate::sys::process::spawn_child;
use crate::sys::signal::SignalQueue;
pub use choice::Select;
use events::{Event, Events};
use group::Group;
use steering::Steering;

/// Between two looks; what they show is this old at most when a connection comes.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A command has its group within the second time; it is said when it takes longer than the first. So long it may be
/// unseen whether another group has a program.
const LISTENS_SOON: Duration = Duration::from_secs(2);
const LISTENS_WITHIN: Duration = Duration::from_secs(30);

const PASSED_ON: [Signal; 5] = [Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGWINCH];

#[derive(Args)]
pub struct Options {
    /// What to steer: a process and those it has started, a port, or an address; needed with a COMMAND only where that
    /// has several groups.
    #[arg(value_name = "PID|:PORT|ADDR:PORT", value_parser = Target::parse)]
    #[arg(required_unless_present_any = ["command", "watchdog"])]
    target: Option<Target>,
    /// How to choose the socket of a new connection.
    #[arg(long, value_enum, required_unless_present = "watchdog")]
    select: Option<Select>,
    /// Steer also a group that has a program of its own. At the end the kernel's hash chooses.
    #[arg(long)]
    replace: bool,
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// In the network namespace of this process, a container's say.
    #[arg(long, value_name = "PID")]
    netns: Option<i32>,
    #[arg(long, hide = true, value_name = "NUMBER")]
    watchdog: Option<i32>,
    /// The server's command line, to start it and to end with it.
    #[arg(last = true)]
    command: Vec<String>,
}

/// Steers until it is told to end, or the server ends, and returns the exit status: the command's, where there is one.
///
/// # Errors
/// One line: why it cannot be steered, and what to do.
pub fn run(options: Options) -> Result<u8, String> {
    if let Some(channel) = options.watchdog {
        return watchdog::run(channel).map(|()| 0);
    }
    options.netns.map_or(Ok(()), enter_namespace_of)?;
    let signals = SignalQueue::open_for(&PASSED_ON);
    let signals = signals.map_err(|errno| Failure::new("wait for signals (signalfd)", errno).to_string())?;
    let mut server = match &options.command[..] {
        [] => None,
        words => Some(Server::start(words)?),
    };
    let steered = steer(&options, &signals, server.as_mut());
    let Some(server) = server else { return steered.map(|()| 0) };
    if steered.is_err() {
        server.signal(Signal::SIGTERM);
    }
    let status = server.status(&signals)?;
    steered.map(|()| status).map_err(|why| why + "; the command was ended (SIGTERM)")
}

fn steer(options: &Options, signals: &SignalQueue, mut server: Option<&mut Server>) -> Result<(), String> {
    let own = server.as_ref().map(|server| Target::Process(server.child.id() as i32));
    let target = options.target.clone().or(own).expect("clap asks for a target or a command");
    let mut events = Events::new(options.format == Format::Json, server.is_some());
    let begun = Instant::now();
    let mut is_said = false;
    let group = loop {
        let why = match Group::find(&target) {
            Ok(group) if options.replace => break group,
            Ok(group) => match group.has_no_program()? {
                None => break group,
                Some(why) => why,
            },
            Err(why) if server.is_none() => return Err(why),
            Err(why) => why,
        };
        let is_late = begun.elapsed() > LISTENS_SOON;
        if begun.elapsed() > LISTENS_WITHIN || is_late && server.is_none() {
            return Err(why);
        }
        if is_late && !is_said {
            events.say(&Event::Waiting { why: &why });
            is_said = true;
        }
        if wait(signals, None, server.as_deref_mut())?.is_some() {
            return Ok(());
        }
    };
    let select = options.select.expect("clap asks for it");
    let mut steering = Steering::begin(group, select, events)?;
    loop {
        let holder = Some(steering.group.holder.pidfd.as_fd());
        let step = match wait(signals, holder, server.as_deref_mut()) {
            Ok(None) => steering.look(),
            end => end,
        };
        match step {
            Ok(None) => {}
            Ok(Some(why)) => {
                steering.end(why);
                return Ok(());
            }
            Err(why) => {
                steering.end("given back, because of an error: the kernel's hash chooses again");
                return Err(why);
            }
        }
    }
}

/// Until the next look, or until `ended` is readable. Passes signals on to the server; why to end, where there is a
/// reason.
fn wait(
    signals: &SignalQueue,
    ended: Option<BorrowedFd>,
    server: Option<&mut Server>,
) -> Result<Option<&'static str>, String> {
    let failed = |errno| Failure::new("wait for signals (poll)", errno).to_string();
    let mut waited: Vec<PollFd> =
        [Some(signals.as_fd()), ended].into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    until_uninterrupted(|| poll(&mut waited, LOOK_EVERY.as_millis() as u16)).map_err(failed)?;
    let mut reason = None;
    while waited[0].any() == Some(true)
        && let Some(signal) = signals.take().map_err(failed)?
    {
        match (signal, &server) {
            (Signal::SIGCHLD, _) => {}
            (_, Some(server)) => server.signal(signal),
            (Signal::SIGUSR1 | Signal::SIGUSR2 | Signal::SIGWINCH, None) => {}
            _ => reason = Some("given back: the kernel's hash chooses again"),
        }
    }
    Ok(reason.or(server.and_then(|server| server.has_ended().then_some("the command has ended"))))
}

/// A server that we have started. The kernel sends it SIGTERM when we are killed.
struct Server {
    child: Child,
}

impl Server {
    fn start(words: &[String]) -> Result<Server, String> {
        let mut command = Command::new(&words[0]);
        let child = spawn_child(command.args(&words[1..]), &[], Signal::SIGTERM, None);
        let child = child.map_err(|error| Failure::new(format_args!("start {}", words[0]), error).to_string())?;
        Ok(Server { child })
    }

    fn signal(&self, signal: Signal) {
        // It may have ended already, and is a zombie then.
        let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
    }

    fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// How it ends: its status or, where a signal kills it, 128 and the signal, as shells report it.
    fn status(mut self, signals: &SignalQueue) -> Result<u8, String> {
        while wait(signals, None, Some(&mut self))?.is_none() {}
        let status = self.child.wait().ok();
        Ok(status.and_then(|status| status.code().or_else(|| Some(128 + status.signal()?))).unwrap_or(1) as u8)
    }
}
