//! What `loadgen` reports beside what theory says it must: a server that stalls for known times at known moments has
//! response times in closed form, and a Poisson load on one exponential worker is M/M/1.
//!
//! The server is one thread that keeps a record of when it began and ended each request, on the clock that the client
//! uses too. So a machine that was busy with something else can be told from a client that is wrong: the requests that
//! found the server idle, and the client's send delay, say by how much somebody overslept. If that is more than the
//! resolution, the run is repeated, twice at most; if it still is, the report is held to the record of that very run,
//! with this much more room, and the test is inconclusive.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use acceptlab::load::schedule::{Arrivals, Profile, Schedule, ScheduleLimits, Spacing};
use acceptlab::report::{Latency, LoadReport};
use acceptlab::sys::epoll::{Epoll, Interest};
use acceptlab::units::monotonic_ns;
use fastrand::Rng;
use nix::sys::prctl;
use nix::unistd::gettid;
use socket2::{Domain, Socket, Type};

use super::together;
use crate::support::{FOREVER, Needs, TempFolder, inconclusive, raise_descriptor_limit};

const S: f64 = 1e9;
const ATTEMPTS: u32 = 3;

// ---- the server -------------------------------------------------------------------------------------------

/// When a request got the worker, and when it had its answer.
#[derive(Clone, Copy)]
struct ServicePeriod {
    begin_ns: u64,
    end_ns: u64,
}

/// One worker, first come, first served: epoll reports connections in the order in which they became readable. It
/// answers `count` requests, each after `work`, which is told the time since the first one and may sleep.
fn serve(
    listener: TcpListener,
    count: usize,
    mut work: impl FnMut(u64) + Send + 'static,
) -> thread::JoinHandle<Vec<ServicePeriod>> {
    const LISTENER: u64 = u64::MAX;
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        prctl::set_timerslack(1).unwrap();
        if may_go_first() {
            let thread = gettid().to_string();
            let first = Command::new("chrt").args(["--fifo", "--pid", "10", &thread]).status();
            assert!(first.is_ok_and(|status| status.success()));
        }
        let mut epoll = Epoll::new(4096).unwrap();
        epoll.add(&listener, LISTENER, Interest::EPOLLIN).unwrap();
        // Level-triggered a connection stays in line after its report, and its next request would jump the queue.
        let interest = Interest::EPOLLIN | Interest::EPOLLET;
        let mut connections: Vec<TcpStream> = Vec::new();
        let mut served: Vec<ServicePeriod> = Vec::with_capacity(count);
        while served.len() < count {
            let asleep = Instant::now();
            let reports = epoll.wait(Some(FOREVER)).unwrap();
            // A signal interrupts, too: another test's program may end while the thread that started it blocks SIGCHLD.
            let is_in_time = reports > 0 || asleep.elapsed() < FOREVER;
            assert!(is_in_time, "only {} of {count} requests came", served.len());
            for i in 0..reports {
                let token = epoll.report(i).token;
                if token == LISTENER {
                    while let Ok((connection, _)) = listener.accept() {
                        epoll.add(&connection, connections.len() as u64, interest).unwrap();
                        connections.push(connection);
                    }
                    continue;
                }
                let connection = &mut connections[token as usize];
                let mut request = [0; 1024];
                match connection.read(&mut request) {
                    Ok(0) => epoll.delete(&*connection).unwrap(),
                    Ok(bytes) => {
                        assert!(request[..bytes].ends_with(b"\r\n\r\n"), "a request is one segment");
                        let begin_ns = monotonic_ns();
                        let first_ns = served.first().map_or(begin_ns, |first| first.begin_ns);
                        work(begin_ns - first_ns);
                        connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
                        served.push(ServicePeriod { begin_ns, end_ns: monotonic_ns() });
                    }
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
            }
        }
        served
    })
}

/// With room for all connections at once: behind a full backlog requests are lost, sent again, and no longer in order.
fn listen() -> (TcpListener, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(4096).unwrap();
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().unwrap();
    (listener, address)
}

// ---- what is due ------------------------------------------------------------------------------------------

fn due_ns(rate: &str, spacing: Spacing, seed: u64, seconds: u64) -> Vec<u64> {
    let arrivals = Arrivals::Open { profile: Profile::Constant(rate.parse().unwrap()), spacing, seed };
    let extent = ScheduleLimits { measured_from_ns: 0, end_ns: seconds * S as u64, requests: u64::MAX };
    let mut schedule = Schedule::new(arrivals, extent, 0, 1);
    std::iter::from_fn(|| schedule.take(u64::MAX)).collect()
}

/// A run as the server's record has it.
struct Record {
    due_ns: Vec<u64>,
    served: Vec<ServicePeriod>,
    /// The client's clock began with its schedule; the request that came fastest tells when.
    began_ns: u64,
}

impl Record {
    fn new(due_ns: &[u64], served: Vec<ServicePeriod>) -> Record {
        assert_eq!(due_ns.len(), served.len());
        let began_ns = due_ns.iter().zip(&served).map(|(due, served)| served.begin_ns - due).min().unwrap();
        Record { due_ns: due_ns.to_vec(), served, began_ns }
    }

    fn response_times_s(&self) -> Vec<f64> {
        let ended = self.served.iter().map(|served| served.end_ns - self.began_ns);
        ended.zip(&self.due_ns).map(|(end_ns, due_ns)| (end_ns - due_ns) as f64 / S).collect()
    }

    /// From the answer before where this request was due by then, else from its own begin: what passes between two
    /// requests of a backlog belongs to the service, and the server is idle only where nothing is due.
    fn service_times_s(&self) -> Vec<f64> {
        let service_ns = |k: usize| {
            let ServicePeriod { begin_ns, end_ns } = self.served[k];
            let free_ns = if k > 0 { self.served[k - 1].end_ns } else { 0 };
            end_ns - if self.due_at_ns(k) <= free_ns { free_ns } else { begin_ns }
        };
        (0..self.served.len()).map(|k| service_ns(k) as f64 / S).collect()
    }

    fn due_at_ns(&self, k: usize) -> u64 {
        self.began_ns + self.due_ns[k]
    }

    /// The 99th percentile of how long a request that was due while nothing was to be done waited for the worker all
    /// the same: the client sent late, or the worker woke late.
    fn overslept_s(&self) -> f64 {
        let found_idle = |k: &usize| self.served[k - 1].end_ns < self.due_at_ns(*k);
        let mut late_ns: Vec<u64> =
            (1..self.served.len()).filter(found_idle).map(|k| self.served[k].begin_ns - self.due_at_ns(k)).collect();
        late_ns.sort_unstable();
        late_ns[late_ns.len() * 99 / 100] as f64 / S
    }
}

struct Run {
    report: LoadReport,
    record: Record,
    /// What somebody was late, in the 99th percentile.
    disturbance_s: f64,
}

/// Runs until the machine lets us, or for the last time; each run is held to its record.
fn measure(
    resolution_s: f64,
    other_disturbance_s: impl Fn(&LoadReport, &Record) -> f64,
    run: impl Fn() -> (LoadReport, Record),
) -> Run {
    for attempt in 1.. {
        let (report, record) = run();
        assert_eq!(report.errors.total(), 0, "{:?}", report.errors);
        let overslept_s = record.overslept_s();
        assert_figures(&report.latency_us, record.response_times_s(), resolution_s + overslept_s);
        let disturbance_s = overslept_s.max(other_disturbance_s(&report, &record));
        if disturbance_s <= resolution_s || attempt == ATTEMPTS {
            return Run { report, record, disturbance_s };
        }
    }
    unreachable!("the last attempt returns")
}

/// How late the client sent, in the 99th percentile.
fn client_send_delay_s(report: &LoadReport, _: &Record) -> f64 {
    report.send_delay_us.p99 / 1e6
}

/// Whether the theory can be tested on such a run.
fn is_undisturbed(run: &Run, resolution_s: f64) -> bool {
    let is = run.disturbance_s <= resolution_s;
    if !is {
        let why = format!("the machine was {} s late, theory needs {resolution_s} s", run.disturbance_s);
        inconclusive(Needs::QuietMachine, why);
    }
    is
}

/// `loadgen`'s report, before everything else that wants the CPU where we may ask for that.
fn load_first(address: SocketAddr, flags: &str) -> LoadReport {
    let loadgen = env!("CARGO_BIN_EXE_loadgen");
    let mut command = if may_go_first() { Command::new("chrt") } else { Command::new(loadgen) };
    if may_go_first() {
        command.args(["--fifo", "10", loadgen]);
    }
    let url = format!("http://{address}/");
    let output = command.args(flags.split_whitespace()).args(["--format", "json", &url]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}; loadgen said: {stderr}"))
}

/// Real time needs CAP_SYS_NICE and chrt (util-linux); the threads that have it sleep almost always.
fn may_go_first() -> bool {
    Command::new("chrt").args(["--fifo", "10", "true"]).output().is_ok_and(|output| output.status.success())
}

#[track_caller]
fn assert_figures(reported: &Latency, mut expected_s: Vec<f64>, resolution_s: f64) {
    expected_s.sort_by(f64::total_cmp);
    let mean_s = expected_s.iter().sum::<f64>() / expected_s.len() as f64;
    assert_near("mean", reported.mean, mean_s, resolution_s);
    for (name, reported_us, q) in [("p50", reported.p50, 0.5), ("p90", reported.p90, 0.9), ("p99", reported.p99, 0.99)]
    {
        assert_near(name, reported_us, quantile(&expected_s, q), resolution_s);
    }
}

/// In seconds.
#[track_caller]
fn assert_near(name: &str, reported_us: f64, expected_s: f64, resolution_s: f64) {
    let reported_s = reported_us / 1e6;
    let allowed_s = 0.01 * expected_s + resolution_s;
    let is_near = (reported_s - expected_s).abs() <= allowed_s;
    assert!(is_near, "{name}: {reported_s:.6} s reported, {expected_s:.6} s expected, {allowed_s:.6} s allowed");
}

/// The value that a share `q` of a sorted sample does not exceed, as the histogram defines it.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    sorted[((q * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len()) - 1]
}

// ---- a server that stalls ---------------------------------------------------------------------------------

/// The stalls of the test: from when, how long, in seconds after the first request.
const STALLS_S: [(f64, f64); 2] = [(0.2, 2.0), (3.7, 1.0)];
const RATE_PER_S: f64 = 400.0;
const RUN_S: f64 = 6.0;
/// Two gaps between requests: a stall may begin anywhere within one, and a percentile lies between two requests.
const STALL_RESOLUTION_S: f64 = 2.0 / RATE_PER_S;

/// A request that is due u into a stall of S waits for the rest of it and for the requests before it, S − u + ρ·u: all
/// delays of one stall are uniform on (0, S), for S / (1 − ρ) seconds of due times. So the share of the requests that
/// wait longer than w is Σ (S − w)⁺ / ((1 − ρ)·T).
fn share_above(wait_s: f64, utilization: f64) -> f64 {
    let longer: f64 = STALLS_S.iter().map(|(_, length_s)| (length_s - wait_s).max(0.0)).sum();
    longer / ((1.0 - utilization) * RUN_S)
}

/// The wait that a share `q` does not exceed, by halving: the share falls with the wait.
fn stalled_quantile_s(q: f64, utilization: f64) -> f64 {
    let (mut low, mut high) = (0.0, 10.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if share_above(middle, utilization) > 1.0 - q { low = middle } else { high = middle }
    }
    low
}

fn mean_beside_the_stalls(service_s: &[f64]) -> f64 {
    let beside = || service_s.iter().filter(|&&service_s| service_s < 0.1);
    beside().sum::<f64>() / beside().count() as f64
}

/// The closed form takes one service time for all, and the stalls as they were asked for; how much later or earlier than
/// by it the backlog of a stall was gone.
fn unsteadiness_s(record: &Record) -> f64 {
    let service_s = record.service_times_s();
    let asked_s: f64 = STALLS_S.iter().map(|(_, length_s)| length_s).sum();
    let stalled_s: f64 = service_s.iter().filter(|&&service_s| service_s >= 0.1).sum();
    let mean_s = mean_beside_the_stalls(&service_s);
    let found_busy = |&k: &usize| record.due_at_ns(k) <= record.served[k - 1].end_ns;
    let requests: Vec<usize> = (1..service_s.len()).collect();
    let backlogs = requests.chunk_by(|_, next| found_busy(next));
    let later_s = |backlog: &[usize]| -> f64 {
        let beside_the_stall = backlog.iter().map(|&k| service_s[k]).filter(|&service_s| service_s < 0.1);
        beside_the_stall.map(|service_s| service_s - mean_s).sum()
    };
    backlogs.map(|backlog| later_s(backlog).abs()).fold((stalled_s - asked_s).abs(), f64::max)
}

/// Holds a run to the closed form; what it reported, unless the machine disturbed it.
fn stalled(connections: &str, send_delay_is_the_machines: bool) -> Option<LoadReport> {
    raise_descriptor_limit();
    let due_ns = due_ns(&RATE_PER_S.to_string(), Spacing::Fixed, 1, RUN_S as u64);
    let other_disturbance_s = |report: &LoadReport, record: &Record| {
        let send_delay_s = if send_delay_is_the_machines { client_send_delay_s(report, record) } else { 0.0 };
        send_delay_s.max(unsteadiness_s(record))
    };
    let run = measure(STALL_RESOLUTION_S, other_disturbance_s, || {
        let (listener, address) = listen();
        let server = serve(listener, due_ns.len(), |age_ns| {
            let age_s = age_ns as f64 / S;
            for (from_s, length_s) in STALLS_S {
                if (from_s..from_s + length_s).contains(&age_s) {
                    thread::sleep(Duration::from_secs_f64(from_s + length_s - age_s));
                }
            }
            thread::sleep(Duration::from_micros(500));
        });
        let flags = format!("--rate {RATE_PER_S} --duration {RUN_S}s --connections {connections}");
        let report = load_first(address, &flags);
        (report, Record::new(&due_ns, server.join().unwrap()))
    });
    if !is_undisturbed(&run, STALL_RESOLUTION_S) {
        return None;
    }
    let service_s = mean_beside_the_stalls(&run.record.service_times_s());
    let utilization = RATE_PER_S * service_s;
    if utilization > 0.4 {
        let why = format!("a request took {service_s} s, and one stall's backlog lasted into the next");
        inconclusive(Needs::QuietMachine, why);
        return None;
    }
    let Latency { p50, p90, p99, p99_9, max, mean, .. } = run.report.latency_us;
    for (name, q, reported_us) in
        [("p50", 0.5, p50), ("p90", 0.9, p90), ("p99", 0.99, p99), ("p99.9", 0.999, p99_9), ("max", 1.0, max)]
    {
        let expected_s = stalled_quantile_s(q, utilization) + service_s;
        assert_near(name, reported_us, expected_s, STALL_RESOLUTION_S);
    }
    let squares: f64 = STALLS_S.iter().map(|(_, length_s)| length_s * length_s).sum();
    let expected_s = squares / 2.0 / ((1.0 - utilization) * RUN_S) + service_s;
    assert_near("mean", mean, expected_s, STALL_RESOLUTION_S);
    Some(run.report)
}

#[test]
fn response_times_of_a_server_that_stalls_are_those_of_the_closed_form() {
    let _together = together();
    // More connections than ever wait: the queue is the server's, and nothing but the machine makes the client late.
    let Some(report) = stalled("1200", true) else { return };
    assert_near("service p90", report.service_us.p90, report.latency_us.p90 / 1e6, STALL_RESOLUTION_S);
}

#[test]
fn response_times_count_from_the_due_time_when_the_queue_is_the_clients() {
    let _together = together();
    // Of a stall only four requests are ever sent, and yet the closed form is the same.
    let Some(report) = stalled("4", false) else { return };
    assert!(report.service_us.p90 < report.latency_us.p90 / 10.0, "{:?}", report.service_us);
}

// ---- M/M/1 ------------------------------------------------------------------------------------------------

const ARRIVALS_PER_S: f64 = 125.0;
const MEAN_SERVICE_S: f64 = 0.004;
const SEED: u64 = 5;
/// Of the machine: when threads wake.
const WAKE_RESOLUTION_S: f64 = 0.002;

/// Response times with the waiting time W' = (W + service − gap)⁺ (Lindley 1952).
fn lindley_s(arrive_s: impl Iterator<Item = f64>, service_s: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut free_s = 0.0_f64;
    let respond = |(arrive_s, service_s): (f64, f64)| {
        free_s = free_s.max(arrive_s) + service_s;
        free_s - arrive_s
    };
    arrive_s.zip(service_s).map(respond).collect()
}

fn exponential(rng: &mut Rng, mean: f64) -> f64 {
    -(1.0 - rng.f64()).ln() * mean
}

/// Mean, median, p90, p99.
fn figures(mut times_s: Vec<f64>) -> [f64; 4] {
    times_s.sort_by(f64::total_cmp);
    let mean = times_s.iter().sum::<f64>() / times_s.len() as f64;
    [mean, quantile(&times_s, 0.5), quantile(&times_s, 0.9), quantile(&times_s, 0.99)]
}

/// Between which two values 99.8 % of all runs as long as ours have their figures, each: response times of neighbours
/// are alike, so no textbook interval for independent ones holds; runs of M/M/1 from a seed do. `overhead_s` is what
/// the server takes for each request beside its work.
fn intervals(overhead_s: f64, seconds: f64) -> [(f64, f64); 4] {
    const RUNS: usize = 1000;
    let mut rng = Rng::with_seed(1);
    let mut runs: Vec<[f64; 4]> = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let (mut arrive_s, mut arrivals) = (0.0, Vec::new());
        while arrive_s < seconds {
            arrivals.push(arrive_s);
            arrive_s += exponential(&mut rng, 1.0 / ARRIVALS_PER_S);
        }
        let services = std::iter::repeat_with(|| exponential(&mut rng, MEAN_SERVICE_S) + overhead_s);
        runs.push(figures(lindley_s(arrivals.into_iter(), services)));
    }
    std::array::from_fn(|figure| {
        let mut values: Vec<f64> = runs.iter().map(|run| run[figure]).collect();
        values.sort_by(f64::total_cmp);
        (quantile(&values, 0.001), quantile(&values, 0.999))
    })
}

#[test]
fn a_poisson_load_on_one_exponential_worker_is_m_m_1() {
    let _together = together();
    const SECONDS: u64 = 10;
    let rate = ARRIVALS_PER_S.to_string();
    let due_ns = due_ns(&rate, Spacing::Poisson, SEED, SECONDS);
    let mut rng = Rng::with_seed(SEED + 1);
    let work_s: Vec<f64> = due_ns.iter().map(|_| exponential(&mut rng, MEAN_SERVICE_S)).collect();
    let exact_s =
        |record: &Record| lindley_s(due_ns.iter().map(|&ns| ns as f64 / S), record.service_times_s().into_iter());
    // A worker that wakes late once keeps all waiting who come meanwhile, which may be more than one in a hundred.
    let disturbance_s = |report: &LoadReport, record: &Record| {
        let both = figures(record.response_times_s()).into_iter().zip(figures(exact_s(record)));
        both.map(|(found_s, exact_s)| (found_s - exact_s).abs()).fold(client_send_delay_s(report, record), f64::max)
    };
    let run = measure(WAKE_RESOLUTION_S, disturbance_s, || {
        let (listener, address) = listen();
        let mut work = work_s.clone().into_iter();
        let server = serve(listener, due_ns.len(), move |_| {
            thread::sleep(Duration::from_secs_f64(work.next().unwrap()));
        });
        let flags = format!("--rate {rate} --arrivals poisson --seed {SEED} --duration {SECONDS}s --connections 128");
        let report = load_first(address, &flags);
        (report, Record::new(&due_ns, server.join().unwrap()))
    });
    if !is_undisturbed(&run, WAKE_RESOLUTION_S) {
        return;
    }

    // This very run: the moments that were due and the services that were given leave no freedom.
    let service_s = run.record.service_times_s();
    assert_figures(&run.report.latency_us, exact_s(&run.record), WAKE_RESOLUTION_S);

    // All such runs: the law, 1 / (μ − λ) on average and exponentially distributed, and its spread.
    let overhead_s = (service_s.iter().sum::<f64>() - work_s.iter().sum::<f64>()) / work_s.len() as f64;
    let intervals = intervals(overhead_s, SECONDS as f64);
    let Latency { p50, p90, p99, mean, .. } = run.report.latency_us;
    let law_s = 1.0 / (1.0 / (MEAN_SERVICE_S + overhead_s) - ARRIVALS_PER_S);
    for (((name, reported_us), (low_s, high_s)), factor) in [("mean", mean), ("p50", p50), ("p90", p90), ("p99", p99)]
        .into_iter()
        .zip(intervals)
        .zip([1.0, 2f64.ln(), 10f64.ln(), 100f64.ln()])
    {
        let interval = low_s..high_s;
        assert!(interval.contains(&(law_s * factor)), "{name}: M/M/1 says {} in {interval:?}", law_s * factor);
        assert!(interval.contains(&(reported_us / 1e6)), "{name}: {reported_us} us in {interval:?} s");
    }
}

// ---- replay -----------------------------------------------------------------------------------------------

#[test]
fn a_replay_asks_once_for_each_line_of_its_file_and_ends_by_itself() {
    let _together = together();
    let folder = TempFolder::new("replay");
    let file = folder.file("times");
    let flags = format!("--arrivals replay:{file} --connections 4 --threads 2");
    let (listener, address) = listen();
    let server = serve(listener, 5, |_| {});
    std::fs::write(&file, "# five\n0\n\n0.1 # two at once\n0.1\n0.25\n0.4\n").unwrap();
    let report = load_first(address, &flags);
    let served = server.join().unwrap();
    assert_eq!(report.requests + report.outside_window.late, 5);
    // To the last one and a mean gap further.
    assert_eq!(report.duration_s, 0.48);
    // No request is sent before its time, and the first is not a fifth of a second late.
    let last_s = (served[4].begin_ns - served[0].begin_ns) as f64 / S;
    assert!(last_s > 0.2, "{last_s} s between the first and the last");

    std::fs::write(&file, "0.1\n0.4\n0.3\n").unwrap();
    let url = format!("http://{address}/");
    let loadgen = || Command::new(env!("CARGO_BIN_EXE_loadgen"));
    let output = loadgen().args(flags.split_whitespace()).arg(&url).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(stderr.contains("line 3: 0.3 is earlier than the time before it"), "{stderr}");
}

#[test]
fn a_replay_may_come_out_of_a_pipe() {
    let (listener, address) = listen();
    let server = serve(listener, 3, |_| {});
    let mut loadgen = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args([
            "--arrivals",
            "replay:/dev/stdin",
            "--connections",
            "1",
            "--format",
            "json",
            &format!("http://{address}/"),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    loadgen.stdin.take().unwrap().write_all(b"0\n0.01\n0.02\n").unwrap();
    let output = loadgen.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let report: LoadReport = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{stderr}"));
    assert_eq!(report.requests + report.outside_window.late, 3);
    server.join().unwrap();
}

// ---- the lecture ------------------------------------------------------------------------------------------

#[test]
fn the_demonstration_shows_a_stall_that_the_closed_loop_omits() {
    let _together = together();
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(["demo", "--format", "json"])
        .output()
        .expect("cargo has built it");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("closed loop") && stderr.contains("open loop"), "{stderr}");
    let both: serde_json::Value = serde_json::from_slice(&output.stdout).expect(&stderr);
    let [closed, open] =
        ["closed", "open"].map(|name| serde_json::from_value::<LoadReport>(both[name].clone()).unwrap());
    // Between them lies the second that was lost; no machine is half a second slow one time in a hundred.
    assert!(closed.latency_us.p99 < 500e3, "{:?}", closed.latency_us);
    assert!(closed.latency_us.max > 900e3, "{:?}", closed.latency_us);
    assert!(open.latency_us.p99 > 900e3 && open.latency_us.p90 > 600e3, "{:?}", open.latency_us);
}
