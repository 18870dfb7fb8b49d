//! How much faster than any server is this client, here? The answer needs a server that does nothing: one thread, one
//! epoll, recv and send of a constant, in a process and, where there are two, on a CPU of its own. It is the yardstick
//! of `bins/null-server.rs` without what a server owes its user, since `load` knows nothing of `server`.

use std::env;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use clap::{Parser, value_parser};
use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::socket::{MsgFlags, recv, send};
use nix::unistd::getppid;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use crate::cpu;
use crate::load::counts::histogram::Times;
use crate::load::options::args::{Format, LoadArgs};
use crate::load::run;
use crate::report::{Latency, LoadReport};
use crate::sys::epoll::{Epoll, Interest};
use crate::units::{format_duration, monotonic_ns, parse_positive_duration, time};

/// Show how much faster than any server this client is, on this machine: against a server that does nothing
#[derive(Debug, Parser)]
#[command(name = "calibrate", bin_name = "loadgen calibrate")]
pub struct CalibrateArgs {
    /// How long each of the four measurements takes
    #[arg(long, value_name = "DUR", default_value = "1s", value_parser = parse_positive_duration)]
    pub duration: Duration,

    /// Connections
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = value_parser!(u32).range(1..=10_000))]
    pub connections: u32,

    /// How to print the result
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

impl CalibrateArgs {
    /// The command line of this process, if it is `loadgen calibrate`.
    pub fn from_command_line() -> Option<CalibrateArgs> {
        let mut arguments = env::args_os().skip(1).peekable();
        (arguments.peek()? == "calibrate").then(|| CalibrateArgs::parse_from(arguments))
    }
}

/// What one thread of this client can do here.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    pub connections: u32,
    /// The null server had a CPU of its own.
    pub cpu_apart: bool,
    /// Closed loop, connections kept.
    pub requests_per_s: f64,
    pub cpu_us_per_request: f64,
    pub cpu_share: f64,
    /// What the thread could do if the null server were no limit: 1 / `cpu_us_per_request`, or `requests_per_s`
    /// where that was more.
    pub ceiling_per_s: f64,
    /// Closed loop, a connection per request.
    pub connections_per_s: f64,
    pub cpu_us_per_connection: f64,
    /// Open loop at [`OPEN_RATE`]: how late requests were sent. `None`: busy polling needs a CPU of its own.
    pub slip_us: Latency,
    pub slip_busy_poll_us: Option<Latency>,
    /// The same of a client that only reads the clock: what the machine takes from anybody.
    pub slip_clock_us: Latency,
}

/// The rate at which the slip is measured.
pub const OPEN_RATE: u32 = 10_000;
/// A server that takes more than this share of the ceiling shares the credit with the client.
const HEADROOM: f64 = 0.8;

/// Makes the four measurements.
///
/// # Errors
/// One line that says what could not be started or measured.
pub fn calibrate(args: &CalibrateArgs) -> Result<Calibration, String> {
    let cpus = cpu::allowed();
    let apart = (cpus.len() > 1).then(|| cpus.split_last()).flatten();
    if let Some((_, ours)) = apart {
        cpu::pin_to(ours).map_err(|errno| format!("pin the client to CPUs {ours:?}: {}", errno.desc()))?;
    }
    let server_cpu = apart.map(|(&theirs, _)| theirs);
    let measure = |keeps: bool, flags: &[&str]| {
        let server = NullServer::start(keeps, server_cpu)?;
        measure(args, flags, server.address)
    };
    let closed = measure(true, &[])?;
    let churn = measure(false, &["--requests-per-connection", "1"])?;
    let rate = OPEN_RATE.to_string();
    let open = measure(true, &["--rate", &rate])?;
    // On one CPU a client that never sleeps takes the server's time.
    let spinning = apart.map(|_| measure(true, &["--rate", &rate, "--busy-poll"])).transpose()?;
    let cpu_us_per_request = cpu_us_each(&closed);
    Ok(Calibration {
        connections: args.connections,
        cpu_apart: apart.is_some(),
        requests_per_s: closed.qps,
        cpu_us_per_request,
        cpu_share: closed.client.cpu_share,
        ceiling_per_s: closed.qps.max(1e6 / cpu_us_per_request.max(1e-3)),
        connections_per_s: churn.qps,
        cpu_us_per_connection: cpu_us_each(&churn),
        slip_us: open.slip_us,
        slip_busy_poll_us: spinning.map(|report| report.slip_us),
        slip_clock_us: clock_alone(OPEN_RATE, args.duration),
    })
}

/// How late a thread is that does nothing but look whether the next request would be due. What it shows are interrupts,
/// other threads on its CPU, and the pauses of the host below: no client can be earlier.
fn clock_alone(per_s: u32, duration: Duration) -> Latency {
    let (start_ns, gap_ns) = (monotonic_ns(), 1_000_000_000 / u64::from(per_s));
    let mut late = Times::new();
    for due_ns in (start_ns..start_ns + duration.as_nanos() as u64).step_by(gap_ns as usize) {
        let mut now_ns = monotonic_ns();
        while now_ns < due_ns {
            now_ns = monotonic_ns();
        }
        late.record(now_ns - due_ns);
    }
    late.latency()
}

fn measure(args: &CalibrateArgs, flags: &[&str], server: SocketAddr) -> Result<LoadReport, String> {
    let duration = format_duration(args.duration);
    let warmup = format_duration(args.duration / 5);
    let connections = args.connections.to_string();
    let fixed = ["loadgen", "--duration", &duration, "--warmup", &warmup, "--connections", &connections];
    let url = format!("http://{server}/");
    let line = fixed.iter().chain(flags).copied().chain([url.as_str()]);
    let load = LoadArgs::try_parse_from(line).map_err(|error| format!("calibrate: {error}"))?;
    let report = run::run(&load)?.report;
    if report.duration_s < 0.99 * args.duration.as_secs_f64() {
        return Err("calibrate: ended early".into());
    }
    if report.requests == 0 {
        return Err(format!("calibrate: the null server at {server} answered nothing"));
    }
    Ok(report)
}

fn cpu_us_each(report: &LoadReport) -> f64 {
    (report.client.cpu_user_us + report.client.cpu_system_us) as f64 / report.requests.max(1) as f64
}

impl Calibration {
    /// A table for people.
    pub fn render(&self) -> String {
        let mut text =
            format!("one thread, {} connections, against a server that does nothing", self.connections);
        text += if self.cpu_apart {
            " on a CPU of its own\n\n"
        } else {
            " ON THE SAME CPU: expect half of this\n\n"
        };
        let _ = writeln!(
            text,
            "connections kept     {:>10.0} requests/s     {:>7.2} us of CPU each, {:.0} % of a CPU",
            self.requests_per_s,
            self.cpu_us_per_request,
            self.cpu_share * 100.0
        );
        let _ = writeln!(
            text,
            "one per request      {:>10.0} connections/s  {:>7.2} us of CPU each\n",
            self.connections_per_s, self.cpu_us_per_connection
        );
        let _ = writeln!(text, "{:28}{:>10}{:>10}{:>10}{:>10}", "slip", "p50", "p99", "p99.9", "max");
        let polling = self.slip_busy_poll_us.as_ref().map(|slip| ("with --busy-poll", slip));
        let clock = [("the clock alone", &self.slip_clock_us)];
        for (name, slip) in [("sleeping", &self.slip_us)].into_iter().chain(polling).chain(clock) {
            let cells: String =
                [slip.p50, slip.p99, slip.p99_9, slip.max].map(|us| format!("{:>10}", time(us))).concat();
            let _ = writeln!(text, "{:28}{cells}", format!("{OPEN_RATE}/s, {name}"));
        }
        let _ = writeln!(
            text,
            "\nThis client can do {:.0} requests/s per thread here: a server measured at more than\n\
             {:.0}/s ({:.0} %) with one thread is limited by the client; give it more --threads.\n\
             No client is more punctual than the clock alone: the rest of a slip is its own.",
            self.ceiling_per_s,
            self.ceiling_per_s * HEADROOM,
            HEADROOM * 100.0
        );
        text
    }
}

/// The first argument of the process that is the null server.
const NULL_SERVER: &str = "null-server";
const CLOSES: &str = "close";

/// The null server's process; killed when dropped, and by the kernel when we die first.
struct NullServer {
    child: Child,
    address: SocketAddr,
}

impl NullServer {
    fn start(keeps: bool, cpu: Option<usize>) -> Result<NullServer, String> {
        let failed = |error: &dyn std::fmt::Display| format!("start the null server: {error}");
        let program = env::current_exe().map_err(|error| failed(&error))?;
        let mut command = Command::new(program);
        command.arg(NULL_SERVER).arg(std::process::id().to_string());
        command.arg(cpu.map_or("any".into(), |cpu| cpu.to_string()));
        if !keeps {
            command.arg(CLOSES);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| failed(&error))?;
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it was asked for");
        let read = BufReader::new(stdout).read_line(&mut line);
        let address = line.trim().parse().map_err(|_| failed(&format!("it said {line:?} ({read:?})")));
        match address {
            Ok(address) => Ok(NullServer { child, address }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }
}

impl Drop for NullServer {
    fn drop(&mut self) {
        // It may have died already; that was seen as errors.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the null server is told, if this process is one.
pub fn server_arguments() -> Option<Vec<String>> {
    // Not env::args(), which panics on what is no UTF-8.
    let mut arguments = env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned());
    (arguments.next()? == NULL_SERVER).then(|| arguments.collect())
}

/// The null server itself: `loadgen null-server PARENT CPU|any [close]`. Prints its address and serves until killed.
///
/// # Errors
/// One line that says what failed.
pub fn serve(arguments: &[String]) -> Result<(), String> {
    let failed = |tried: &'static str| move |error: io::Error| format!("null server: {tried}: {error}");
    let os = |errno: Errno| io::Error::from(errno);
    let parent = arguments.first().and_then(|pid| pid.parse::<i32>().ok());
    set_pdeathsig(Signal::SIGKILL).map_err(os).map_err(failed("die with the parent"))?;
    // It may have died before the promise was given, or somebody calls us by hand.
    if parent != Some(getppid().as_raw()) {
        return Err("null server: it serves `loadgen calibrate` alone; try `null-server`, the program".into());
    }
    // Ctrl-C is for the client, which prints what it has and then ends us.
    SigSet::from(Signal::SIGINT).thread_block().map_err(os).map_err(failed("block SIGINT"))?;
    if let Some(cpu) = arguments.get(1).and_then(|cpu| cpu.parse().ok()) {
        cpu::pin_to(&[cpu]).map_err(os).map_err(failed("pin to a CPU"))?;
    }
    let listener = listen().map_err(failed("listen on 127.0.0.1"))?;
    let address = listener.local_addr().map_err(failed("ask for the address"))?;
    writeln!(io::stdout(), "{address}").map_err(failed("tell the address"))?;
    let closes = arguments.get(2).is_some_and(|word| word == CLOSES);
    answer_all(&listener, closes).map_err(os).map_err(failed("wait for events"))
}

fn listen() -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

const LISTENER: u64 = u64::MAX;
const KEEP: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Worker: 0\r\n\r\nok";
const CLOSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Worker: 0\r\nConnection: close\r\n\r\nok";

fn answer_all(listener: &TcpListener, closes: bool) -> nix::Result<()> {
    let answer = if closes { CLOSE } else { KEEP };
    let mut epoll = Epoll::new(256)?;
    epoll.add(listener, LISTENER, Interest::EPOLLIN)?;
    let mut buffer = [0; 16 * 1024];
    // By descriptor number, which is the token as well.
    let mut connections: Vec<Option<TcpStream>> = Vec::new();
    loop {
        for i in 0..epoll.wait(None)? {
            let token = epoll.report(i).token;
            if token != LISTENER {
                let Some(connection) = &connections[token as usize] else { continue };
                let next = answer_once(connection, answer, &mut buffer);
                if next == Next::Lost || closes && next == Next::Answered {
                    connections[token as usize] = None;
                }
                continue;
            }
            // A client that has left again, or no descriptor for it: the next report will tell.
            let Ok((connection, _)) = listener.accept() else { continue };
            // The request is often there already, and then nothing needs to be registered.
            if closes && answer_once(&connection, answer, &mut buffer) != Next::Wait {
                continue;
            }
            let fd = connection.as_raw_fd() as usize;
            epoll.add(&connection, fd as u64, Interest::EPOLLIN)?;
            connections.resize_with(connections.len().max(fd + 1), || None);
            connections[fd] = Some(connection);
        }
    }
}

#[derive(PartialEq, Eq)]
enum Next {
    Answered,
    Wait,
    Lost,
}

/// Whatever arrives in one recv is one request.
fn answer_once(connection: &TcpStream, answer: &[u8], buffer: &mut [u8]) -> Next {
    let fd = connection.as_raw_fd();
    match recv(fd, buffer, MsgFlags::MSG_DONTWAIT) {
        Err(Errno::EAGAIN) => Next::Wait,
        Ok(1..) if send(fd, answer, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) == Ok(answer.len()) => {
            Next::Answered
        }
        _ => Next::Lost,
    }
}
