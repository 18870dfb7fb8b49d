//! The command line of every server. The defaults of the flags that all servers share live here and nowhere else, so
//! two servers in one table differ only by name and by the flags that only one of them has.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::cpu;
use crate::units::parse_duration;
use crate::work::Work;

const AFTER_HELP: &str = "\
WORK is what every request costs:
  none           nothing
  wait:250us     the request waits for I/O; an event loop serves others meanwhile
  block:1.8ms    the worker sleeps and can do nothing else
  spin:3s        the worker burns CPU
  90%none,10%spin:5ms   a mixture

Try it: start the server, then `curl -i http://127.0.0.1:8080/` in another terminal.
The first line on standard output is `ready ADDR:PORT`. Ctrl-C or SIGTERM (also SIGQUIT and
SIGHUP) stops the server: it answers what it has read and prints the counters of every worker
as JSON. While nobody reads that, a second signal ends it. SIGUSR1 and SIGUSR2 are ignored.";

/// Flags that every server takes.
#[derive(Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct ServerArgs {
    /// Address to bind; port 0 takes any free port
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// Length of the accept queue, listen(2); the kernel clamps it to net.core.somaxconn
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(i32).range(0..))]
    pub backlog: i32,

    /// What one request costs
    #[arg(long, value_name = "WORK", default_value = "none")]
    pub work: Work,

    /// Bytes in the response body (at least the line that names the worker)
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = parse_body)]
    pub body: usize,

    /// Pin worker i to CPU i mod CPUs, of those this process may use
    #[arg(long)]
    pub pin: bool,

    /// Close a connection that sends nothing for this long
    #[arg(long, value_name = "DUR", default_value = "30s", value_parser = parse_idle_timeout)]
    pub idle_timeout: Duration,

    /// Keep the live counters in this file, so that another program can watch them
    #[arg(long, value_name = "PATH")]
    pub scoreboard: Option<PathBuf>,
}

/// Flags of a server that has several workers.
#[derive(Args, Clone, Debug)]
pub struct WorkersArgs {
    /// Worker processes or threads [default: the CPUs this process may use]
    #[arg(long, value_name = "N", default_value_t = cpu::allowed().len(), hide_default_value = true,
          value_parser = parse_workers)]
    pub workers: usize,

    #[command(flatten)]
    pub server: ServerArgs,
}

/// Flags of a server whose threads take their work from a queue.
#[derive(Args, Clone, Debug)]
pub struct QueueArgs {
    /// How many may wait in a queue; whoever would add one more waits
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub queue: usize,

    #[command(flatten)]
    pub workers: WorkersArgs,
}

/// The kernel takes a bigger number but could never run them (pid_max is at most 2^22).
const MAX_WORKERS: usize = 1 << 20;

pub fn parse_workers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(workers) if (1..=MAX_WORKERS).contains(&workers) => Ok(workers),
        _ => Err(format!("there can be 1 to {MAX_WORKERS} workers")),
    }
}

/// Three copies of the response are kept by every worker, so the body must stay far below the memory.
const MAX_BODY: usize = 64 << 20;

fn parse_body(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(bytes) if bytes <= MAX_BODY => Ok(bytes),
        _ => Err(format!("a body has 0 to {MAX_BODY} bytes")),
    }
}

fn parse_idle_timeout(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        // SO_RCVTIMEO counts microseconds, and zero would mean "never" to it (socket(7)).
        duration if duration < Duration::from_millis(1) => Err("the shortest idle time-out is 1ms".into()),
        duration => Ok(duration),
    }
}
