//! The baseline for servers with io_uring: receive and send of a constant, nothing parsed.
//!
//! As `null-server`, with one ring instead of an epoll. Whatever arrives at once counts as one request. The kernel is
//! asked once to accept all connections, and once for each to receive all that comes (multishot); an answer is one
//! more request, of which only failure would be reported. What a turn of the loop asks for goes to the kernel with the
//! call that waits for the next.
//!
//! It takes the flags of the other servers, and has no work and no time-outs.

#![forbid(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;

use acceptlab::http::{Persistence, Request};
use acceptlab::report::ServerReport;
use acceptlab::scoreboard::Count;
use acceptlab::server::accept::{BACK_OFF, is_about_one_connection, log_pause, reason_to_pause};
use acceptlab::server::{self, Failure, Listener, Scoreboard, ServerArgs, Worker};
use acceptlab::sys::signal::wake_on_termination;
use acceptlab::sys::uring::{ACCEPTED, Uring};
use clap::Parser;
use nix::errno::Errno;

/// The baseline for servers with io_uring: receive and send of a constant, nothing parsed
#[derive(Parser)]
#[command(name = "null-uring", version)]
struct Args {
    #[command(flatten)]
    server: ServerArgs,
}

/// Tokens beside the descriptors of connections.
const TERMINATION: u64 = 1 << 32;
/// The token of a send that has failed: the client is gone, and the receive says so.
const NOT_SENT: u64 = TERMINATION + 1;

const BUFFERS: u16 = 256;
const BUFFER_BYTES: usize = 4096;

fn main() -> ExitCode {
    server::finish(run(&Args::parse().server))
}

fn run(args: &ServerArgs) -> Result<ServerReport, Failure> {
    Uring::probe().map_err(|why| Failure::relay(why).advise("the same with epoll: null-server"))?;
    let listener = Listener::bind(args)?.blocking()?;
    let scoreboard = Scoreboard::create("null-uring", 1, args.scoreboard.as_deref())?;
    let worker = Worker::start(0, args, &scoreboard)?;
    let answer = worker.responses.ok(Request { persistence: Persistence::Implicit, head_only: false });
    let opened = Uring::new(BUFFERS, BUFFER_BYTES, vec![answer.into()]);
    let mut ring = opened.map_err(|errno| Failure::new("open a ring", errno))?;
    let termination = wake_on_termination().map_err(|errno| Failure::new("handle SIGTERM", errno))?;
    ring.watch(termination, TERMINATION);
    server::ready(listener.address())?;

    serve(&listener, &worker, ring, answer.len())?;

    worker.record_usage();
    Ok(scoreboard.report(listener.address(), None))
}

fn serve(listener: &Listener, worker: &Worker, mut ring: Uring, answer_bytes: usize) -> Result<(), Failure> {
    // By descriptor number, which is the token as well.
    let mut connections: Vec<Option<OwnedFd>> = Vec::new();
    ring.accept(listener);
    loop {
        ring.wait(None).map_err(|errno| Failure::new("wait for the ring", errno))?;
        while let Some(completion) = ring.next_completion() {
            let token = completion.token;
            match token {
                TERMINATION => return Ok(()),
                NOT_SENT => {}
                ACCEPTED => {
                    worker.count(Count::Wakeups);
                    if let Err(errno) = completion.result
                        && !is_about_one_connection(errno)
                        && let Some(reason) = reason_to_pause(errno, false, |count| worker.count(count))?
                    {
                        log_pause(reason);
                        std::thread::sleep(BACK_OFF);
                    }
                    if let Some(connection) = ring.take_accepted() {
                        worker.opened();
                        let fd = connection.as_raw_fd() as usize;
                        ring.receive(&connection, fd as u64);
                        connections.resize_with(connections.len().max(fd + 1), || None);
                        connections[fd] = Some(connection);
                    }
                    if !completion.more {
                        ring.accept(listener);
                    }
                }
                _ => {
                    let Some(connection) = &connections[token as usize] else { continue };
                    match completion.result {
                        Ok(1..) => {
                            worker.count(Count::Requests);
                            ring.send(connection, 0, 0..answer_bytes, NOT_SENT);
                        }
                        // All buffers were taken, and come back with their completions.
                        Err(Errno::ENOBUFS) => {}
                        _ => {
                            worker.closed();
                            // In its turn: an answer may be queued that names it.
                            connections[token as usize].take().into_iter().for_each(|gone| ring.close(gone, NOT_SENT));
                            continue;
                        }
                    }
                    if !completion.more {
                        ring.receive(connection, token);
                    }
                }
            }
        }
    }
}
