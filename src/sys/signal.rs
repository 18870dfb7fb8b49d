//! Stopping at a signal, without a race.
//!
//! If a worker checked a flag and then blocked, a signal between the two would be missed and the worker would sleep on.
//! So the handler does more than set a flag: it changes the state of something that the worker waits for.
//!
//! - A worker that blocks in `accept` or `recv` finds its sockets shut ([`shut_sockets_on_termination`]):
//!   `shutdown(2)` for reading makes a blocked or later `accept` return EINVAL, and a blocked or later `recv`
//!   return what has arrived already, then 0.
//! - An event loop finds a descriptor of its epoll set readable ([`wake_on_termination`]). In the middle of a
//!   request it looks at nothing, so the handler shuts its listener for it ([`shut_listener_on_termination`]).
//! - A parent that only supervises keeps the signals blocked and reads them from a [`SignalQueue`] (signalfd(2)).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::{alarm, getppid};

/// A stopping server gives up what is not done after this long (section 1 of the contract).
pub const GRACE: Duration = Duration::from_secs(5);

static STOPPING: AtomicBool = AtomicBool::new(false);
static LEAVING: AtomicBool = AtomicBool::new(false);
static GAVE_UP: AtomicBool = AtomicBool::new(false);
/// The highest descriptor that is a socket to be shut; 2 while there is none.
static HIGHEST: AtomicI32 = AtomicI32::new(2);
/// A listening socket that other processes accept from too; shutting it would stop them as well.
static SHARED: AtomicI32 = AtomicI32::new(-1);

/// The listening socket of an event loop, which the handler shuts; -1 while there is none.
static LISTENER: AtomicI32 = AtomicI32::new(-1);
/// The process whose signal shuts it; 0 when anybody's does.
static SENDER: AtomicI32 = AtomicI32::new(0);

/// An eventfd that the handler makes readable; -1 while there is none.
static WAKE: AtomicI32 = AtomicI32::new(-1);

pub fn is_stopping() -> bool {
    STOPPING.load(SeqCst)
}

/// True once this worker of a cluster is to leave: it answers what it has, and takes nothing new.
pub fn is_leaving() -> bool {
    LEAVING.load(SeqCst)
}

pub fn leave() {
    LEAVING.store(true, SeqCst);
}

/// True when [`GRACE`] is over: what is not done is given up.
pub fn has_given_up() -> bool {
    GAVE_UP.load(SeqCst)
}

/// From now on SIGTERM, and what else stops a server, shut this process's noted sockets for reading, and after
/// [`GRACE`] for writing too. A listener that other processes accept from is passed as `shared` and left alone.
///
/// # Errors
/// Those of sigaction(2), which for these signals has none.
pub fn shut_sockets_on_termination(shared: Option<BorrowedFd>) -> nix::Result<()> {
    SHARED.store(shared.map_or(-1, |fd| fd.as_raw_fd()), SeqCst);
    handle_termination()
}

/// From now on SIGTERM, and what else stops a server, make the returned descriptor readable for good, and once more
/// after [`GRACE`]. It belongs to the process until its end, because the handler may write to it until then.
///
/// # Errors
/// EMFILE or ENFILE without a descriptor left for it, ENOMEM.
pub fn wake_on_termination() -> nix::Result<BorrowedFd<'static>> {
    let wake: &'static EventFd =
        Box::leak(Box::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?));
    WAKE.store(wake.as_fd().as_raw_fd(), SeqCst);
    handle_termination()?;
    Ok(wake.as_fd())
}

/// From now on SIGTERM, and what else stops a server, shut this listening socket too, until [`forget_listener`]. Of a
/// socket that other processes accept from only the parent's signal says that all of them are to stop (`of_parent`).
///
/// # Errors
/// As [`shut_sockets_on_termination`].
pub fn shut_listener_on_termination(listener: impl AsFd, of_parent: bool) -> nix::Result<()> {
    // The parent cannot change: its death is ours (`super::process::fork`).
    SENDER.store(if of_parent { getppid().as_raw() } else { 0 }, SeqCst);
    LISTENER.store(listener.as_fd().as_raw_fd(), SeqCst);
    // A signal that came before has found no handler, or waits: it is blocked until now.
    handle_termination()
}

/// Before the listener is closed: its number may be a connection's afterwards.
pub fn forget_listener() {
    LISTENER.store(-1, SeqCst);
}

fn handle_termination() -> nix::Result<()> {
    ignore_meaningless()?;
    let stopping = stop_signals();
    let handlers = stopping.iter().map(|signal| (signal, SigHandler::SigAction(terminate)));
    for (signal, handler) in handlers.chain([(Signal::SIGALRM, SigHandler::Handler(give_up))]) {
        // Without SA_RESTART: a worker blocked in accept on a shared listener is to come back and look.
        // (nix adds SA_SIGINFO for the first handler, which asks where the signal came from.)
        let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
        // SAFETY: both handlers only use atomics, shutdown(2), write(2) and alarm(2), all async-signal-safe
        // (signal-safety(7)), and restore errno.
        unsafe { sigaction(signal, &action)? };
    }
    stopping.thread_unblock()
}

/// These mean nothing to a server, and by default would end or stop it. Signals that a worker of a cluster has blocked
/// wait for it all the same.
fn ignore_meaningless() -> nix::Result<()> {
    for signal in [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGALRM, Signal::SIGTTOU] {
        let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
        // SAFETY: ignoring runs no code of ours.
        unsafe { sigaction(signal, &ignore)? };
    }
    Ok(())
}

/// What stops a server in order: SIGTERM and SIGINT; SIGQUIT, which is a terminal's Ctrl-\ and nginx's word for it; and
/// SIGHUP, which comes when the terminal goes, unless the server was started to outlive that (nohup(1) ignores it).
fn stop_signals() -> SigSet {
    let mut signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT]);
    // SAFETY: all zeros is a value of this plain struct; with no new action sigaction(2) only fills it.
    let old = unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGHUP, std::ptr::null(), &raw mut old);
        old
    };
    if old.sa_sigaction != libc::SIG_IGN {
        signals.add(Signal::SIGHUP);
    }
    signals
}

/// Registers a socket with the handler. A connection accepted while the signal arrived is shut here: either the
/// handler sees the descriptor, or we see that it has run; both sides use one total order.
pub fn note_socket(socket: impl AsFd) {
    let fd = socket.as_fd().as_raw_fd();
    HIGHEST.fetch_max(fd, SeqCst);
    if is_stopping() {
        shut(fd, Shutdown::Read);
    }
}

extern "C" fn terminate(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a siginfo that lives for the call, and where it has no sender's pid
    // (a terminal's Ctrl-C) that field is zero (sigaction(2)).
    let sender = unsafe { (*info).si_pid() };
    let is_first = !STOPPING.swap(true, SeqCst);
    keep_errno(|| {
        shut_all(Shutdown::Read);
        // On no listener, number -1, shutdown(2) fails.
        if [0, sender].contains(&SENDER.load(SeqCst)) {
            shut(LISTENER.load(SeqCst), Shutdown::Read);
        }
        wake();
        // A second signal must not begin the grace period anew.
        if is_first {
            alarm::set(GRACE.as_secs() as u32);
        }
    });
}

extern "C" fn give_up(_: libc::c_int) {
    if !is_stopping() {
        // Not our own alarm.
        return;
    }
    GAVE_UP.store(true, SeqCst);
    keep_errno(|| {
        shut_all(Shutdown::Both);
        wake();
        // Again in a second: a sleep that began just before this signal has not been interrupted by it.
        alarm::set(1);
    });
}

fn shut_all(how: Shutdown) {
    let shared = SHARED.load(SeqCst);
    for fd in (3..=HIGHEST.load(SeqCst)).filter(|&fd| fd != shared) {
        shut(fd, how);
    }
}

fn shut(fd: i32, how: Shutdown) {
    // On a number that is no socket it fails, which is as good.
    let _ = shutdown(fd, how);
}

fn wake() {
    let wake = WAKE.load(SeqCst);
    if wake >= 0 {
        let one = 1u64.to_ne_bytes();
        // SAFETY: write(2) reads eight bytes that live for the call. A counter that is full is readable already.
        unsafe { libc::write(wake, one.as_ptr().cast(), one.len()) };
    }
}

fn keep_errno(action: impl FnOnce()) {
    let saved = nix::errno::Errno::last_raw();
    action();
    nix::errno::Errno::set_raw(saved);
}

/// From now on SIGTERM, and what else stops a server, end this process at once, by their default action. Those that have
/// arrived and are blocked are forgotten: ignoring a signal discards it (sigaction(2)).
pub fn end_at_once_on_termination() {
    for signal in &stop_signals() {
        for handler in [SigHandler::SigIgn, SigHandler::SigDfl] {
            // SAFETY: neither runs any code of ours. It cannot fail for these signals.
            let _ = unsafe { sigaction(signal, &SigAction::new(handler, SaFlags::empty(), SigSet::empty())) };
        }
    }
    let _ = stop_signals().thread_unblock();
}

/// True once a signal that stops a server has been handled, or waits because it is blocked.
pub fn has_termination_arrived() -> bool {
    let mut pending = SigSet::empty();
    // SAFETY: sigpending(2) writes one signal set to a place that is one: SigSet is a transparent sigset_t.
    unsafe { libc::sigpending((&raw mut pending).cast()) };
    is_stopping() || stop_signals().iter().any(|signal| pending.contains(signal))
}

/// The signals that stop a server, SIGCHLD and others, one after another.
pub struct SignalQueue {
    queue: SignalFd,
}

impl SignalQueue {
    /// Blocks the signals, so that from now on they wait here. What is forked later inherits the blocking, and unblocks
    /// them by [`shut_sockets_on_termination`], [`wake_on_termination`] or [`shut_listener_on_termination`].
    ///
    /// # Errors
    /// EMFILE or ENFILE without a descriptor left for the queue (signalfd(2)), ENOMEM.
    pub fn open() -> nix::Result<SignalQueue> {
        ignore_meaningless()?;
        SignalQueue::of(stop_signals())
    }

    /// As [`SignalQueue::open`], for SIGTERM, SIGINT, SIGCHLD and `others`; all other signals do what they did.
    ///
    /// # Errors
    /// As [`SignalQueue::open`].
    pub fn open_for(others: &[Signal]) -> nix::Result<SignalQueue> {
        SignalQueue::of([Signal::SIGTERM, Signal::SIGINT].iter().chain(others).copied().collect())
    }

    /// As [`SignalQueue::open`], for this signal only, in this thread and those that it starts.
    ///
    /// # Errors
    /// As [`SignalQueue::open`].
    pub fn open_only(signal: Signal) -> nix::Result<SignalQueue> {
        SignalQueue::block(SigSet::from_iter([signal]))
    }

    fn block(signals: SigSet) -> nix::Result<SignalQueue> {
        signals.thread_block()?;
        Ok(SignalQueue { queue: SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)? })
    }

    fn of(mut signals: SigSet) -> nix::Result<SignalQueue> {
        signals.add(Signal::SIGCHLD);
        let queue = SignalQueue::block(signals)?;
        // The process that started us may have ignored SIGCHLD, and exec keeps that. Then the kernel reaps by itself:
        // no signal would come, and the children's accounts would be lost (sigaction(2), wait(2)).
        let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
        // SAFETY: the default handler runs no code of ours.
        unsafe { sigaction(Signal::SIGCHLD, &default)? };
        Ok(queue)
    }

    /// One that has come.
    ///
    /// # Errors
    /// Those of read(2); that no signal has come is not one.
    pub fn take(&self) -> nix::Result<Option<Signal>> {
        let Some(info) = self.queue.read_signal()? else { return Ok(None) };
        Ok(Signal::try_from(info.ssi_signo as i32).ok())
    }

    /// The next signal; `None` when the time is up.
    ///
    /// # Errors
    /// Those of poll(2) and of [`SignalQueue::take`].
    pub fn wait(&self, timeout: Option<Duration>) -> nix::Result<Option<Signal>> {
        let timeout = match timeout {
            None => PollTimeout::NONE,
            Some(timeout) => PollTimeout::from(timeout.as_millis().min(60_000) as u16 + 1),
        };
        match poll(&mut [PollFd::new(self.queue.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => Ok(None),
            Ok(_) => self.take(),
            Err(errno) => Err(errno),
        }
    }
}

impl AsFd for SignalQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}
