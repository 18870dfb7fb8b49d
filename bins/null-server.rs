//! The baseline for servers: recv and send of a constant, nothing parsed.
//!
//! One thread, one epoll. Whatever arrives in one `recv` counts as one request. The rows of the throughput tables are
//! shares of this one: it makes the calls of a server, and nothing else costs time. It is not an upper limit: a server
//! of several processes may make a part of the calls elsewhere, as `master-dispatch` does, which accepts in its master.
//!
//! With `--close` it closes after each answer, as the others do when they are asked to: then accept, recv, send and
//! close are the whole of a connection. The end of the stream (FIN) then travels with the answer, as in the others;
//! with `--fin apart` it is a segment of its own. It takes the flags of the other servers, and has no work and no
//! time-outs.

#![forbid(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;

use acceptlab::http::{Persistence, Request};
use acceptlab::report::ServerReport;
use acceptlab::scoreboard::Count;
use acceptlab::server::accept::{BACK_OFF, log_pause, reason_to_pause};
use acceptlab::server::connection::WITH_THE_END;
use acceptlab::server::{self, Failure, Listener, Scoreboard, ServerArgs, Worker};
use acceptlab::sys::epoll::{Epoll, Interest};
use acceptlab::sys::signal::wake_on_termination;
use clap::{Parser, ValueEnum};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};

/// The baseline for servers: recv and send of a constant, nothing parsed
#[derive(Parser)]
#[command(name = "null-server", version)]
struct Args {
    /// Close every connection after its first answer
    #[arg(long)]
    close: bool,

    /// With --close: where the end of the stream travels
    #[arg(long, value_enum, default_value_t = Fin::Along, requires = "close")]
    fin: Fin,

    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Fin {
    /// In the segment of the answer (MSG_MORE, then close)
    Along,
    /// In a segment of its own
    Apart,
}

const LISTENER: u64 = u64::MAX;
const TERMINATION: u64 = u64::MAX - 1;

fn main() -> ExitCode {
    server::finish(run(&Args::parse()))
}

fn run(Args { close, fin, server: args }: &Args) -> Result<ServerReport, Failure> {
    let listener = Listener::bind(args)?.nonblocking()?;
    let scoreboard = Scoreboard::create("null-server", 1, args.scoreboard.as_deref())?;
    let worker = Worker::start(0, args, &scoreboard)?;
    let epoll = open_epoll(&listener).map_err(|errno| Failure::new("open an epoll instance", errno))?;
    server::ready(listener.address())?;

    serve(&listener, &worker, epoll, *close, *fin)?;

    worker.record_usage();
    Ok(scoreboard.report(listener.address(), None))
}

fn open_epoll(listener: &Listener) -> nix::Result<Epoll> {
    let epoll = Epoll::new(256)?;
    epoll.add(listener, LISTENER, Interest::EPOLLIN)?;
    epoll.add(wake_on_termination()?, TERMINATION, Interest::EPOLLIN)?;
    Ok(epoll)
}

fn serve(listener: &Listener, worker: &Worker, mut epoll: Epoll, closes: bool, fin: Fin) -> Result<(), Failure> {
    let failed = |errno: Errno| Failure::new("wait for events", errno);
    let persistence = if closes { Persistence::Close } else { Persistence::Implicit };
    let answer = worker.responses.ok(Request { persistence, head_only: false });
    // The close sends the answer, and the end of the stream with it.
    let flags = if closes && fin == Fin::Along { WITH_THE_END } else { MsgFlags::empty() };
    let mut buffer = [0; 16 * 1024];
    // By descriptor number, which is the token as well.
    let mut connections: Vec<Option<OwnedFd>> = Vec::new();
    loop {
        for i in 0..epoll.wait(None).map_err(failed)? {
            match epoll.report(i).token {
                TERMINATION => return Ok(()),
                LISTENER => {
                    worker.count(Count::Wakeups);
                    let connection = match listener.accept_nonblocking() {
                        Ok(connection) => connection,
                        Err(errno) => {
                            if let Some(reason) = reason_to_pause(errno, false, |count| worker.count(count))? {
                                // The listener would report again at once.
                                log_pause(reason);
                                std::thread::sleep(BACK_OFF);
                            }
                            continue;
                        }
                    };
                    worker.opened();
                    // The request is often there already, and then nothing needs to be registered.
                    if closes && answer_once(&connection, answer, flags, &mut buffer, worker) != AfterRequest::Wait {
                        worker.closed();
                        continue;
                    }
                    let fd = connection.as_raw_fd() as usize;
                    epoll.add(&connection, fd as u64, Interest::EPOLLIN).map_err(failed)?;
                    connections.resize_with(connections.len().max(fd + 1), || None);
                    connections[fd] = Some(connection);
                }
                token => {
                    let Some(connection) = &connections[token as usize] else { continue };
                    let next = answer_once(connection, answer, flags, &mut buffer, worker);
                    if next == AfterRequest::Lost || (closes && next == AfterRequest::Answered) {
                        worker.closed();
                        connections[token as usize] = None;
                    }
                }
            }
        }
    }
}

#[derive(PartialEq, Eq)]
enum AfterRequest {
    Answered,
    Wait,
    Lost,
}

fn answer_once(
    connection: &OwnedFd,
    answer: &[u8],
    flags: MsgFlags,
    buffer: &mut [u8],
    worker: &Worker,
) -> AfterRequest {
    let fd = connection.as_raw_fd();
    match recv(fd, buffer, MsgFlags::empty()) {
        Err(Errno::EAGAIN) => AfterRequest::Wait,
        Ok(1..) if send(fd, answer, flags | MsgFlags::MSG_NOSIGNAL) == Ok(answer.len()) => {
            worker.count(Count::Requests);
            AfterRequest::Answered
        }
        _ => AfterRequest::Lost,
    }
}
