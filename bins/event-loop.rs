//! 黄金 gold: an event loop with Node's phases; what blocks, blocks a helper thread.
//!
//! Who accepts: a callback of the loop. Who serves: callbacks of the same loop, all connections at once; work that
//! blocks (`--work block:1s`) becomes a request object at one of N helper threads, and its result comes back as an
//! event. Flash called this AMPED (Pai et al., USENIX 1999); Node does it with libuv. Who balances: the pool's queue;
//! the helper that is free takes the next request, not the next connection. What is inherited: nothing, because threads
//! share everything. With N helpers the (N + 1)th blocking request waits, and all others are answered meanwhile.
//!
//! Compare with `event-driven.rs` (whoever blocks stops all) and `thread-pool.rs` (a thread for a whole connection).
//!
//! See it: `event-loop --pool 4 --work block:1s`, then `loadgen --connections 5 --requests 5 http://127.0.0.1:8080/`:
//! four answers after one second, the fifth after two. In which order callbacks run, `scenario.rs` shows.

#![forbid(unsafe_code)]

mod moved;

use std::cell::RefCell;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use acceptlab::membership::is_member;
use acceptlab::phased_loop::pool::PoolArgs;
use acceptlab::phased_loop::{ObservedEvent, Observer, Phase, PhasedLoop, RunMode};
use acceptlab::report::ServerReport;
use acceptlab::scoreboard::Count;
use acceptlab::server::accept::{BACK_OFF, NoConnection, log_pause, no_connection};
use acceptlab::server::callbacks::Connections;
use acceptlab::server::{self, Failure, Listener, Scoreboard, ServerArgs, Worker, termination};
use acceptlab::sys::epoll::Interest;
use acceptlab::sys::signal::{forget_listener, has_given_up, wake_on_termination};
use acceptlab::units::parse_duration;
use clap::Parser;

/// An event loop with Node's phases; what blocks, blocks a helper thread
#[derive(Parser)]
#[command(name = "event-loop", version, after_help = "`event-loop --scenario FILE` is `scenario FILE`")]
struct Args {
    #[command(flatten)]
    pool: PoolArgs,

    /// Work that blocks for this long or longer may occupy at most half of the helper threads, rounded up
    #[arg(long, value_name = "DUR", value_parser = parse_duration)]
    slow: Option<Duration>,

    #[command(flatten)]
    server: ServerArgs,
}

fn main() -> ExitCode {
    server::finish(run(&Args::parse_from(moved::arguments())))
}

fn run(Args { pool, slow, server: args }: &Args) -> Result<ServerReport, Failure> {
    if is_member() {
        let line = "this server does not speak with the master of a cluster; give `cluster` event-driven instead";
        return Err(Failure::relay(line.to_owned()));
    }
    let listener = Rc::new(Listener::bind(args)?.nonblocking()?);
    let address = listener.address();
    let scoreboard = Scoreboard::create("event-loop", 1, args.scoreboard.as_deref())?;
    let mut worker = Worker::start(0, args, &scoreboard)?;
    worker.has_helpers = true;
    termination::shut_listener_when_stopping(&listener)?;
    let mut events = PhasedLoop::new(pool.threads).map_err(|errno| Failure::new("open an event loop", errno))?;
    let connections = Connections::new(worker, slow.unwrap_or(Duration::MAX));
    let failed = Rc::new(RefCell::new(None));

    // The first observer: the listening socket. Its callback accepts.
    let acceptor = events.observe(Phase::Poll, {
        let (listener, connections, failed) = (listener.clone(), connections.clone(), failed.clone());
        move |events, event| {
            if let Err(failure) = accept(events, event, &listener, &connections, &failed) {
                fail(events, &failed, failure);
            }
        }
    });
    watch(&mut events, acceptor, &listener)?;
    // The second: the signal to stop, and the end of the time that is left then.
    let stop = events.observe(Phase::Poll, {
        let (listener, connections) = (listener.clone(), connections.clone());
        move |events, _| {
            // Unwatched first: it is shut, and would be reported as ready for ever.
            let _ = events.stop_io(acceptor, &*listener);
            events.close(acceptor, |_| {});
            if has_given_up() { events.stop() } else { connections.finish(events) }
        }
    });
    let signal = wake_on_termination().map_err(|errno| Failure::new("handle SIGTERM", errno))?;
    let started = events.start_io(stop, signal, Interest::EPOLLIN | Interest::EPOLLET);
    started.map_err(|errno| Failure::new("watch for SIGTERM", errno))?;
    server::ready(address)?;

    events.run(RunMode::UntilDone).map_err(|errno| Failure::new("wait for events", errno))?;

    if let Some(failure) = failed.take() {
        return Err(failure);
    }
    forget_listener();
    connections.record_usage();
    Ok(scoreboard.report(address, None))
}

/// The callback of the listening socket: one connection for each event, so that the open ones have their turn.
fn accept(
    events: &mut PhasedLoop,
    event: ObservedEvent,
    listener: &Rc<Listener>,
    connections: &Connections,
    failed: &Rc<RefCell<Option<Failure>>>,
) -> Result<(), Failure> {
    connections.count(Count::Wakeups);
    let errno = match listener.accept_nonblocking() {
        Ok(socket) => {
            connections.add(events, socket);
            return Ok(());
        }
        Err(errno) => errno,
    };
    match no_connection(errno, false, |count| connections.count(count))? {
        NoConnection::Nobody => {}
        NoConnection::Pause(errno) => {
            log_pause(errno);
            events
                .stop_io(event.observer, &**listener)
                .map_err(|errno| Failure::new("stop watching the listener", errno))?;
            let (acceptor, listener, failed) = (event.observer, listener.clone(), failed.clone());
            events.set_timeout(BACK_OFF, move |events| {
                watch(events, acceptor, &listener).unwrap_or_else(|failure| fail(events, &failed, failure));
            });
        }
        // The signal's own observer does the rest. This event was not about a connection.
        NoConnection::Shut => {
            connections.uncount(Count::Wakeups);
            let _ = events.stop_io(event.observer, &**listener);
        }
    }
    Ok(())
}

fn watch(events: &mut PhasedLoop, acceptor: Observer, listener: &Listener) -> Result<(), Failure> {
    let watched = events.start_io(acceptor, listener, Interest::EPOLLIN);
    watched.map_err(|errno| Failure::new("watch the listener", errno))
}

/// What a callback cannot return: the loop ends, and the program says why.
fn fail(events: &mut PhasedLoop, failed: &RefCell<Option<Failure>>, failure: Failure) {
    *failed.borrow_mut() = Some(failure);
    events.stop();
}
