//! The baseline for clients: send and recv of constants, nothing parsed.
//!
//! One thread, one epoll. No latency is kept, and whatever one `recv` brings counts as one answer, so it is right only
//! where an answer is one small segment. A client that also parses
//! the answers and measures latency needs more time per request.
//!
//! With `--churn` each request has a connection of its own: connect, send, recv, close. The server must close first
//! (`null-server --close`), or the TIME_WAITs here use up the ports.
//!
//! ```text
//! cargo run --release --bin null-server &
//! cargo run --release --bin bare-client -- --duration 2s http://127.0.0.1:8080/
//! ```

#![forbid(unsafe_code)]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use acceptlab::console;
use acceptlab::load::options::target::Target;
use acceptlab::sys::epoll::{Epoll, Interest};
use acceptlab::sys::process::Usage;
use acceptlab::units::{monotonic_ns, parse_duration};
use clap::Parser;

/// The baseline for clients: send and recv of constants, nothing parsed
#[derive(Parser)]
#[command(name = "bare-client", version)]
struct Args {
    /// http://HOST:PORT/PATH
    target: Target,

    /// Connections, each with one outstanding request
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    connections: u32,

    /// How long to measure, after the warm-up
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = parse_duration)]
    duration: Duration,

    /// Send for this long before measuring
    #[arg(long, value_name = "DUR", default_value = "0s", value_parser = parse_duration)]
    warmup: Duration,

    /// A new connection for every request
    #[arg(long)]
    churn: bool,
}

fn main() -> ExitCode {
    console::end(run(&Args::parse()).map_err(|error| format!("bare-client: {error}")))
}

fn run(args: &Args) -> Result<String, String> {
    let client = Client {
        address: args.target.resolve()?,
        request: format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", args.target.path, args.target.authority),
        churn: args.churn,
    };
    let (began, ended) =
        client.measure(args).map_err(|error| format!("ask {}: {error}; is a server there?", args.target.authority))?;
    let requests = ended.requests - began.requests;
    let duration_s = (ended.at_ns - began.at_ns) as f64 / 1e9;
    let qps = requests as f64 / duration_s;
    let cpu_us = ended.cpu_us - began.cpu_us;
    Ok(format!(r#"{{"requests":{requests},"duration_s":{duration_s:.6},"qps":{qps:.1},"cpu_us":{cpu_us}}}"#))
}

struct Client {
    address: SocketAddr,
    request: String,
    churn: bool,
}

/// An end of the measured window.
#[derive(Clone, Copy)]
struct Mark {
    at_ns: u64,
    requests: u64,
    cpu_us: u64,
}

impl Client {
    /// Everything until the end of the window; the marks are its two ends.
    fn measure(&self, args: &Args) -> io::Result<(Mark, Mark)> {
        let mut epoll = Epoll::new(256)?;
        let mut connections =
            (0..args.connections).map(|slot| self.open(&epoll, slot.into())).collect::<io::Result<Vec<_>>>()?;
        let mut buffer = [0; 16 * 1024];
        let mut requests = 0;
        let (mut began, mut due_ns) = (None, monotonic_ns() + args.warmup.as_nanos() as u64);
        loop {
            let now_ns = monotonic_ns();
            if now_ns >= due_ns {
                let mark = Mark { at_ns: now_ns, requests, cpu_us: Usage::of_process().cpu_us() };
                match began {
                    Some(began) => return Ok((began, mark)),
                    None => (began, due_ns) = (Some(mark), now_ns + args.duration.as_nanos() as u64),
                }
            }
            for i in 0..epoll.wait(Some(Duration::from_nanos(due_ns.saturating_sub(now_ns))))? {
                let slot = epoll.report(i).token;
                let connection = &mut connections[slot as usize];
                if connection.read(&mut buffer)? == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                requests += 1;
                if self.churn {
                    // The old one is closed by this, and epoll forgets it.
                    *connection = self.open(&epoll, slot)?;
                } else {
                    self.ask(connection)?;
                }
            }
        }
    }

    /// Connects and sends a first request. The call blocks, but on the loopback device it does not wait: the
    /// handshake is over when it returns.
    fn open(&self, epoll: &Epoll, slot: u64) -> io::Result<TcpStream> {
        let mut connection = TcpStream::connect(self.address)?;
        self.ask(&mut connection)?;
        epoll.add(&connection, slot, Interest::EPOLLIN)?;
        Ok(connection)
    }

    /// A request of a hundred bytes fits at once where nothing else is outstanding.
    fn ask(&self, connection: &mut TcpStream) -> io::Result<()> {
        connection.write(self.request.as_bytes()).map(drop)
    }
}
