//! Connections as tasks of an asynchronous runtime, tokio's. A task takes steps ([`AsyncConnection::step`]), each on
//! the thread that runs it at that moment, and awaits its socket or a timer in between; then another thread may run it.
//!
//! Nothing here awaits a signal. It shuts all sockets ([`super::termination::shut_sockets_when_stopping`]), so whoever
//! awaits one is woken, receives what has come, and then the end of the stream.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use nix::sys::signal::{Signal, raise};
use tokio::io::Interest;
use tokio::io::unix::AsyncFdReadyGuard;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::accept::{Acceptor, BACK_OFF, NoConnection, log_pause, no_connection};
use super::connection::{Awaited, Connection, EventHandler, LINGER, SharedBuffers, Step, TakeStep, end};
use super::listener::Listener;
use super::member::is_passed_connections;
use super::worker::{Worker, pin_or_log};
use crate::failure::Failure;
use crate::scoreboard::{Count, WorkerRow};
use crate::sys::async_fd::AsyncDescriptor;
use crate::sys::signal::{is_leaving, note_socket};

thread_local! {
    /// What the tasks of this thread use, one after another.
    static THREAD: RefCell<Option<(Worker, SharedBuffers)>> = const { RefCell::new(None) };
}

/// The calling thread is this worker, until [`leave`].
pub fn enter(worker: Worker, pin: Option<usize>) {
    pin_or_log(pin);
    THREAD.set(Some((worker, SharedBuffers::default())));
}

/// Records what the thread has used.
pub fn leave() {
    if let Some((worker, _)) = THREAD.take() {
        worker.record_thread_usage();
    }
}

/// # Panics
/// In a thread that is no worker.
fn on_this_thread<T>(action: impl FnOnce(&mut Worker, &mut SharedBuffers) -> T) -> T {
    THREAD.with_borrow_mut(|entered| {
        let (worker, buffers) = entered.as_mut().expect("a runtime runs its tasks in threads that have entered");
        action(worker, buffers)
    })
}

pub struct AsyncAcceptor {
    listener: Listener,
    /// A copy of what the listener waits for; and of its second descriptor.
    first: AsyncDescriptor,
    second: Option<AsyncDescriptor>,
    /// A connection has been taken since the last wake-up, so that wake-up was not empty.
    has_taken: bool,
}

impl AsyncAcceptor {
    /// # Errors
    /// When the runtime's epoll does not take it.
    pub fn new(listener: Listener) -> Result<AsyncAcceptor, Failure> {
        let watch = |fd: BorrowedFd| AsyncDescriptor::watch(fd.try_clone_to_owned()?, Interest::READABLE);
        let open = || {
            let (first, second) = (watch(listener.as_fd())?, listener.second_descriptor().map(watch).transpose()?);
            Ok((first, second))
        };
        let (first, second) = open().map_err(|error: io::Error| Failure::new("watch the acceptor", error))?;
        Ok(AsyncAcceptor { listener, first, second, has_taken: false })
    }

    /// The next connection; `None` when the server is to stop. The thread that runs it counts the wake-up.
    ///
    /// # Errors
    /// Of the listener.
    pub async fn accept(&mut self) -> Result<Option<OwnedFd>, Failure> {
        loop {
            let ready = poll_fn(|context| poll_acceptor(&self.first, self.second.as_ref(), context)).await;
            let ready = ready.map_err(|error| Failure::new("await a connection", error))?;
            let accepted = self.listener.accept_nonblocking();
            if !self.has_taken {
                on_this_thread(|worker, _| worker.count(Count::Wakeups));
            }
            let errno = match accepted {
                Ok(socket) => {
                    note_socket(&socket);
                    self.has_taken = true;
                    return Ok(Some(socket));
                }
                Err(errno) => errno,
            };
            let has_taken = std::mem::take(&mut self.has_taken);
            match on_this_thread(|worker, _| no_connection(errno, has_taken, |count| worker.count(count)))? {
                NoConnection::Nobody if is_leaving() => {
                    // As SIGTERM ends it. This cannot fail for a signal that exists.
                    let _ = raise(Signal::SIGTERM);
                }
                NoConnection::Nobody => {
                    if let Some(mut ready) = ready {
                        ready.clear_ready();
                    }
                }
                NoConnection::Pause(errno) => {
                    log_pause(errno);
                    sleep(BACK_OFF).await;
                }
                NoConnection::Shut => return Ok(None),
            }
        }
    }
}

/// What is to be cleared when the listener turns out to be empty; `None` when something else is to be looked at.
fn poll_acceptor<'a>(
    first: &'a AsyncDescriptor,
    second: Option<&AsyncDescriptor>,
    context: &mut Context,
) -> Poll<io::Result<Option<AsyncFdReadyGuard<'a, OwnedFd>>>> {
    if let Some(Poll::Ready(ready)) = second.map(|second| second.poll_readable(context)) {
        ready?.clear_ready();
        return Poll::Ready(Ok(None));
    }
    first.poll_readable(context).map_ok(Some)
}

/// A connection that one task serves, closed and no longer counted when it is dropped, also by a task that panics.
pub struct AsyncConnection {
    connection: Connection<AsyncDescriptor>,
    next_step: TakeStep<AsyncDescriptor>,
    /// The row of the first thread that served it.
    row: Option<WorkerRow>,
    /// When it will have been silent for too long.
    due: Instant,
}

impl AsyncConnection {
    /// `None`, and it is closed, when it cannot be waited for: no memory or no watch is left (epoll_ctl(2)).
    pub fn new(socket: OwnedFd) -> Option<AsyncConnection> {
        let Ok(socket) = AsyncDescriptor::watch(socket, Interest::READABLE | Interest::WRITABLE) else {
            on_this_thread(|worker, _| worker.count(Count::ClientErrors));
            return None;
        };
        let due = Instant::now() + on_this_thread(|worker, _| worker.idle_timeout);
        let connection = Connection::from(socket);
        Some(AsyncConnection { connection, next_step: Connection::step, row: None, due })
    }

    /// The one timer of this connection, for [`AsyncConnection::ready`] and [`AsyncConnection::wait`].
    pub fn timer(&self) -> Sleep {
        sleep_until(self.due)
    }

    /// Goes on as far as it can without waiting, on the thread of this moment. The first thread that does so counts the
    /// connection, and each the requests that it answers.
    pub fn step(&mut self) -> Step {
        let next_step = std::mem::replace(&mut self.next_step, Connection::step);
        let was_lingering = self.connection.awaited() == Awaited::EndOfStream;
        on_this_thread(|worker, buffers| {
            if self.row.is_none() {
                worker.opened();
                self.row = Some(worker.row);
            }
            let step = next_step(&mut self.connection, worker, buffers);
            if !was_lingering {
                self.due = Instant::now() + if step == Step::Linger { LINGER } else { worker.idle_timeout };
            }
            step
        })
    }

    /// Waits until its socket has something for us ([`Interest::READABLE`]) or takes something, or it has been silent
    /// for too long: then the next step ends it.
    pub async fn ready(&mut self, interest: Interest, mut timer: Pin<&mut Sleep>) {
        if timer.deadline() > self.due {
            timer.as_mut().reset(self.due);
        }
        poll_fn(|context| {
            let socket = self.connection.socket();
            let ready = match interest.is_readable() {
                true => socket.poll_readable(context),
                false => socket.poll_writable(context),
            };
            match ready {
                Poll::Ready(Ok(mut ready)) => {
                    let end_announced = ready.ready().is_read_closed();
                    // Before the step that empties the socket: what comes after it is a new report.
                    ready.clear_ready();
                    if interest.is_readable() {
                        self.connection.mark_readable(end_announced);
                    }
                    return Poll::Ready(());
                }
                // The runtime ends, and drops its tasks.
                Poll::Ready(Err(_)) => return Poll::Pending,
                Poll::Pending => {}
            }
            // The timer is not set for each wait: it may come early, and then it is set again.
            while timer.as_mut().poll(context).is_ready() {
                if Instant::now() >= self.due {
                    self.next_step = Connection::end_silence;
                    return Poll::Ready(());
                }
                timer.as_mut().reset(self.due);
            }
            Poll::Pending
        })
        .await;
    }

    /// Waits for so long, which the request costs: the next step answers it. The thread serves others meanwhile.
    pub async fn wait(&mut self, duration: Duration, mut timer: Pin<&mut Sleep>) {
        timer.as_mut().reset(Instant::now() + duration);
        timer.await;
        self.next_step = Connection::finish_wait;
    }

    /// `lost` when the client reset it, stopped in the middle, or sent nonsense.
    pub fn close(self, lost: bool) {
        if let Some(row) = self.row.filter(|_| lost) {
            row.add(Count::ClientErrors, 1);
        }
    }
}

impl Drop for AsyncConnection {
    /// Counted first: a client that sees the end finds it in the scoreboard.
    fn drop(&mut self) {
        if let Some(row) = self.row {
            row.subtract(Count::Active, 1);
        }
        if is_passed_connections() {
            end(&self.connection);
        }
    }
}
