//! 黄金 gold × N: the master accepts and forwards the bytes to workers that listen on ports of their own.
//!
//! Who accepts: the master, from the client; then the worker, from the master, on a port of its own. Who serves: the
//! event loop of the worker. Who balances: the master, in turns: worker i = (i + 1) mod N, or the next after it that
//! does not refuse. What is inherited: one listening socket per worker, each on another port, bound before the
//! first fork because the master has to know the addresses.
//!
//! A proxy is the first way to share one port, and its price is why Node passes descriptors: the connection never
//! leaves the master, so each costs the master two descriptors (the client's, and its own to the worker) and the worker
//! one. Every request costs six system calls more (`strace -c -f`: two waits, two receives, two sends in the master),
//! and a connection for one request about 20 in the master where `master-dispatch` has three. The worker sees the
//! master's address; the client's is lost. What it buys: the workers need not be on the master's machine.
//!
//! Compare with `master-dispatch.rs`: the same turns, but the connection itself travels, and the master is out of it.
//!
//! See it: `proxy --workers 4 --idle-timeout 1h`, and `ls /proc/$(pgrep -ox proxy)/fd | wc -l` before and after
//! `loadgen --connections 100 --duration 1m http://127.0.0.1:8080/` has begun: 200 more.

#![forbid(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::process::ExitCode;

use acceptlab::report::ServerReport;
use acceptlab::server::relay::{Broken, Copied, Relay, RelayEvent, Stream, receive, send_some};
use acceptlab::server::{self, EventLoop, Failure, Listener, Scoreboard, ServerArgs, Worker, WorkerPool, WorkersArgs};
use clap::Parser;
use nix::errno::Errno;

/// The master accepts and forwards the bytes to workers that listen on ports of their own
#[derive(Parser)]
#[command(name = "proxy", version)]
struct Args {
    #[command(flatten)]
    workers: WorkersArgs,
}

fn main() -> ExitCode {
    server::finish(run(&Args::parse().workers))
}

fn run(args: &WorkersArgs) -> Result<ServerReport, Failure> {
    let listener = Listener::bind(&args.server)?.nonblocking()?;
    let address = listener.address();
    let mut listener = Some(listener);
    let inside = ServerArgs { listen: ([127, 0, 0, 1], 0).into(), ..args.server.clone() };
    let mut listeners = Vec::new();
    for _ in 0..args.workers {
        listeners.push(Listener::bind(&inside)?.nonblocking()?);
    }
    let addresses: Vec<_> = listeners.iter().map(Listener::address).collect();
    let scoreboard = Scoreboard::create("proxy", args.workers, args.server.scoreboard.as_deref())?;

    let mut pool = WorkerPool::new(scoreboard)?;
    for id in 0..args.workers {
        pool.fork(|ready| {
            listener = None;
            let ours = listeners.swap_remove(id);
            listeners.clear();
            let worker = Worker::start(id, &args.server, &scoreboard)?;
            let mut events = EventLoop::new(ours, worker)?;
            ready.announce();

            while events.serve_until_connection()? {
                let connection = events.acceptor.accept_nonblocking();
                events.add_accepted(connection)?;
            }
            // Of connections that still wait in the queue: the master may have sent their requests already, and no
            // other process can answer them.
            while let Ok(connection) = events.acceptor.accept_nonblocking() {
                events.add_accepted(Ok(connection))?;
            }
            events.finish().map(drop)
        })?;
    }
    // With a copy kept open, a dead worker's port would go on taking connections.
    drop(listeners);
    pool.await_ready()?;

    let listener = listener.expect("only a worker gives it up");
    let mut relay = Relay::new(listener, &pool, args.server.idle_timeout, copy)?;
    server::ready(address)?;

    let mut i = 0;
    loop {
        let client = match relay.next_event()? {
            RelayEvent::Acceptable => relay.accept()?,
            // That worker is dead or has no room: the client goes to the next, unless all have refused it.
            RelayEvent::Refused(client) => Some(client).filter(|client| client.refusals < args.workers),
            RelayEvent::Signal if pool.next_signal_stops(None)? => break,
            RelayEvent::Signal => None,
        };
        if let Some(client) = client {
            i = (i + 1) % args.workers;
            relay.connect(client, addresses[i]);
        }
    }

    let accepts = relay.finish(&mut pool)?;
    Ok(pool.report(address).with_accepts(accepts))
}

/// A side that sends without end gets this many receives, and then it is the others' turn.
const RECEIVES_PER_STEP: usize = 16;

/// All there is to forwarding, one way: what the source has sent is received into the master's one buffer and sent on
/// at once. What the sink does not take is kept, and until it is gone nothing more is received: a slow reader fills one
/// buffer and then the sender's socket, never the master's memory.
fn copy(stream: &mut Stream, source: BorrowedFd, sink: BorrowedFd, buffer: &mut [u8]) -> Result<Copied, Broken> {
    for _ in 0..RECEIVES_PER_STEP {
        let sent = send_some(&sink, &stream.unsent).map_err(|_| Broken::Sink)?;
        stream.unsent.drain(..sent);
        if !stream.unsent.is_empty() || !stream.readable || stream.has_ended {
            return Ok(Copied::All);
        }
        // Gives the memory back: a pair that waits for nobody owns no buffer.
        stream.unsent = Vec::new();
        match receive(&source, buffer) {
            Ok(0) => stream.has_ended = true,
            Ok(received) => {
                // A short receive has emptied a stream socket (epoll(7), question 9), unless the end of the stream
                // stands behind the bytes.
                stream.readable = stream.end_announced || received == buffer.len();
                if !stream.discards {
                    let sent = send_some(&sink, &buffer[..received]).map_err(|_| Broken::Sink)?;
                    stream.unsent.extend_from_slice(&buffer[sent..received]);
                }
            }
            Err(Errno::EAGAIN) => stream.readable = false,
            Err(_) => return Err(Broken::Source),
        }
    }
    Ok(Copied::Some)
}
