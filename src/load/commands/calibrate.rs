//! How much faster than any server is this client, on this machine? The answer needs a server that does nothing: the
//! program `null-server` beside this one, on a CPU of its own where there are two.

use std::env;
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::cpu;
use crate::failure::Failure;
use crate::load::counts::histogram::Times;
use crate::load::options::args::plan_of;
use crate::load::options::plan::Plan;
use crate::load::output::text::{STATISTICS, cells, heads};
use crate::load::run;
use crate::load::run::observers::Observers;
use crate::report::{Latency, LoadReport};
use crate::sys::process;
use crate::units::{format_duration, monotonic_ns};

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    pub connections: u32,
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
    /// Open loop at [`OPEN_RATE_PER_S`]: how late requests were sent. `None`: busy polling needs a CPU of its own.
    pub send_delay_us: Latency,
    pub send_delay_busy_poll_us: Option<Latency>,
    /// The same of a client that only reads the clock: what the machine takes from anybody.
    pub send_delay_clock_us: Latency,
}

pub const OPEN_RATE_PER_S: u32 = 10_000;
/// Above this share of the ceiling the client may be what limits the server's figure.
const HEADROOM: f64 = 0.8;

pub fn calibrate(duration: Duration, connections: u32) -> Result<Calibration, String> {
    let cpus = cpu::allowed();
    let apart = match cpus.as_slice() {
        [ours @ .., theirs] if !ours.is_empty() => Some((*theirs, ours)),
        _ => None,
    };
    let measure = |keeps: bool, flags: &str| {
        let (_server, address) = NullServer::start(keeps, apart)?;
        let (duration, warmup) = (format_duration(duration), format_duration(duration / 5));
        let options =
            format!("--duration {duration} --warmup {warmup} --connections {connections} --progress none {flags}");
        measure(&plan_of(&options, &format!("http://{address}/")))
    };
    let closed = measure(true, "")?;
    let churn = measure(false, "--requests-per-connection 1")?;
    let open = measure(true, &format!("--rate {OPEN_RATE_PER_S}"))?;
    // On one CPU a client that never sleeps takes the server's time.
    let polling = apart.map(|_| measure(true, &format!("--rate {OPEN_RATE_PER_S} --busy-poll"))).transpose()?;
    let cpu_us_per_request = cpu_us_each(&closed);
    Ok(Calibration {
        connections,
        cpu_apart: apart.is_some(),
        requests_per_s: closed.qps,
        cpu_us_per_request,
        cpu_share: closed.client.cpu_share,
        ceiling_per_s: closed.qps.max(1e6 / cpu_us_per_request.max(1e-3)),
        connections_per_s: churn.qps,
        cpu_us_per_connection: cpu_us_each(&churn),
        send_delay_us: open.send_delay_us,
        send_delay_busy_poll_us: polling.map(|report| report.send_delay_us),
        send_delay_clock_us: clock_alone(OPEN_RATE_PER_S, duration),
    })
}

/// How late a thread is that does nothing but look whether the next request would be due. What it shows are interrupts,
/// other threads on its CPU, and the pauses of the host below: no client can be earlier.
fn clock_alone(per_s: u32, duration: Duration) -> Latency {
    let (start_ns, gap_ns) = (monotonic_ns(), 1_000_000_000 / u64::from(per_s));
    let mut late = Times::default();
    for due_ns in (start_ns..start_ns + duration.as_nanos() as u64).step_by(gap_ns as usize) {
        let mut now_ns = monotonic_ns();
        while now_ns < due_ns {
            now_ns = monotonic_ns();
        }
        late.record(now_ns - due_ns);
    }
    late.latency()
}

fn measure(plan: &Plan) -> Result<LoadReport, String> {
    let report = run::run(plan, Observers::none())?.report;
    if report.run.as_ref().is_some_and(|run| run.interrupted) {
        return Err("calibrate: ended early".into());
    }
    if report.requests == 0 {
        return Err(format!("calibrate: the null server at {} answered nothing", plan.target.authority));
    }
    Ok(report)
}

fn cpu_us_each(report: &LoadReport) -> f64 {
    (report.client.cpu_user_us + report.client.cpu_system_us) as f64 / report.requests.max(1) as f64
}

impl Calibration {
    pub fn render(&self) -> String {
        let place = if self.cpu_apart { "on a CPU of its own" } else { "ON THE SAME CPU: expect half of this" };
        let Calibration { connections, requests_per_s, connections_per_s, ceiling_per_s, .. } = self;
        let (per_request, per_connection) = (self.cpu_us_per_request, self.cpu_us_per_connection);
        let (percent, limit_per_s) = (self.cpu_share * 100.0, self.ceiling_per_s * HEADROOM);
        let row = |name: &str, delay: &Latency| {
            format!("{:28}{}\n", format!("{OPEN_RATE_PER_S}/s, {name}"), cells(delay, STATISTICS, 10))
        };
        let polling = self.send_delay_busy_poll_us.map_or(String::new(), |delay| row("with --busy-poll", &delay));
        format!(
            "one thread, {connections} connections, against a server that does nothing {place}\n\n\
             connections kept     {requests_per_s:>10.0} requests/s     {per_request:>7.2} us of CPU each, \
             {percent:.0} % of a CPU\n\
             one per request      {connections_per_s:>10.0} connections/s  {per_connection:>7.2} us of CPU each\n\n\
             {:28}{}\n{}{polling}{}\n\
             This client can do {ceiling_per_s:.0} requests/s per thread here: a server measured at more than\n\
             {limit_per_s:.0}/s ({:.0} %) with one thread is limited by the client; give it more --threads.\n\
             No client can be earlier than the clock itself: the rest of a send delay is its own.\n",
            "send delay",
            heads(STATISTICS, 10),
            row("sleeping", &self.send_delay_us),
            row("the clock itself", &self.send_delay_clock_us),
            HEADROOM * 100.0
        )
    }
}

/// The program `null-server` that stands beside this one; killed when dropped, and by the kernel when we die first.
struct NullServer(Pid);

impl NullServer {
    /// On this CPU, if one is given: a program inherits the CPUs of the thread that starts it.
    fn start(keeps: bool, cpus: Option<(usize, &[usize])>) -> Result<(NullServer, SocketAddr), String> {
        let ours = env::current_exe().map_err(|error| Failure::new("find this program", error))?;
        let program = ours.with_file_name("null-server");
        let tried = format!("start {}", program.display());
        let failed = |reason| Failure::new(&tried, reason).advise("calibrate needs this program beside loadgen");
        let (output, input) = io::pipe().map_err(failed)?;
        let mut command = Command::new(&program);
        command.args(["--listen", "127.0.0.1:0"]).args((!keeps).then_some("--close"));
        command.stdin(Stdio::null()).stdout(input);
        let pin = |cpus: &[usize]| cpu::pin_to(cpus).map_err(|errno| failed(errno.into()));
        if let Some((theirs, _)) = cpus {
            pin(&[theirs])?;
        }
        let started = process::spawn(&mut command, &[]).map_err(failed);
        if let Some((_, ours)) = cpus {
            pin(ours)?;
        }
        // Our copy of the other end: without it the read below ends when the program does.
        drop(command);
        let server = NullServer(started?);
        let mut line = String::new();
        let _ = BufReader::new(output).read_line(&mut line);
        let address = line.trim_end().strip_prefix("ready ").and_then(|address| address.parse().ok());
        let said = || io::Error::other(format!("it said {line:?}, and not `ready ADDRESS`"));
        Ok((server, address.ok_or_else(|| failed(said()))?))
    }
}

impl Drop for NullServer {
    fn drop(&mut self) {
        // It may have died already; that was seen as errors.
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}
