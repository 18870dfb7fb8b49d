//! One run from the command line to the report: open the crowd, start the threads, hand out the schedule,
//! collect what was counted.

pub mod audience;
pub mod evidence;
pub mod preflight;
pub mod summary;
pub mod watch;

use std::sync::mpsc::{self, Receiver};
use std::thread::{self, ScopedJoinHandle};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use socket2::SockAddr;

use crate::cpu;
use crate::load::background::crowd::Crowd;
use crate::load::background::slow::{Kinds, SlowCrowd};
use crate::load::client::control::{Control, Voice};
use crate::load::client::engine::Engine;
use crate::load::client::engine::epoll::EpollEngine;
use crate::load::client::engine::uring::UringEngine;
use crate::load::client::route::Route;
use crate::load::client::{Assignment, ClientLoop, Settings};
use crate::load::counts::interval::{self, IntervalMerger, IntervalSender};
use crate::load::counts::tally::{Measures, Tally, Window};
use crate::load::options::args::{Close, LoadArgs, Method};
use crate::load::options::engine::EngineName;
use crate::load::output::export::{Distributions, Files, Span, both};
use crate::load::output::live::Aside;
use crate::load::run::audience::Audience;
use crate::load::run::evidence::{Surroundings, trust};
use crate::load::run::summary::{Measured, latency, report};
use crate::load::run::watch::{Cpu, Watch, max_rss_kib};
use crate::load::schedule::{Arrivals, Extent, Schedule, Thinker, nth_part};
use crate::machine::Counters;
use crate::report::LoadReport;
use crate::sys::fd::leave_shared_table;
use crate::units::monotonic_ns;

/// The schedule begins this much after the threads are told, so that they have heard it by then.
const LEAD_NS: u64 = 1_000_000;
/// Whoever waits longer for --start-at is told.
const SILENT_WAIT: Duration = Duration::from_secs(2);
/// Fits into one segment on every path (RFC 9293, section 3.7.1).
const ONE_SEGMENT_BYTES: usize = 536;
/// Sends whose moments are kept to judge the schedule by.
const SENDS_KEPT: usize = 20_000;
/// Parts of the window that are compared to see a drift.
const SLICES: usize = 60;

/// What a run leaves behind.
pub struct Outcome {
    pub report: LoadReport,
    /// A full disk must not cost the report.
    pub files: Result<(), String>,
}

/// Does what the command line asks for. An error is one line that says what was tried and what to do.
pub fn run(args: &LoadArgs) -> Result<Outcome, String> {
    let setup = |errno: Errno| format!("set up the run: {}", words(errno));
    // What may wait for somebody else, a name server or the other end of a pipe, comes before the signals are ours:
    // until then Ctrl-C ends the program.
    let arrivals = args.arrivals()?;
    let settings = settings(args)?;
    let files = Files::create(args.hlog.as_deref(), args.hgrm.as_deref(), args.csv.as_deref())?;
    let control = Control::new().map_err(setup)?;
    let mut watch = Watch::new(&control, args).map_err(setup)?;
    let audience = Audience::new(args)?;
    for line in preflight::prepare(args)? {
        eprintln!("loadgen: {line}");
    }
    let unreachable = |errno| {
        let unix = args.unix.as_ref().map(|path| path.display().to_string());
        let inet = settings.route.address.as_socket().map(|address| address.to_string());
        let address = unix.or(inet).unwrap_or_else(|| args.target().authority.clone());
        format!("connect {address}: {}; {}", words(errno), advice(errno))
    };

    let crowd = open_crowd(args, &settings, &watch).map_err(unreachable)?;
    let slow = open_slow(args, &settings).map_err(setup)?;
    let (counters, since_ns) = (Counters::now(), monotonic_ns());
    let measure = match args.engine {
        EngineName::Epoll => measure::<EpollEngine>,
        EngineName::IoUring => measure::<UringEngine>,
    };
    let run = measure(args, &arrivals, &settings, &control, &mut watch, audience).map_err(unreachable)?;
    let gave_up = run.tally.gave_up;
    let measured = Measured {
        run,
        crowd: &crowd,
        slow: slow.map_or(Vec::new(), SlowCrowd::stop),
        max_rss_kib: max_rss_kib(),
        interrupted: control.stopped_at_ns().is_some() || gave_up,
    };
    let mut report = report(args, &measured);
    let around = Surroundings {
        counters: Counters::now().since(&counters),
        seconds: (monotonic_ns() - since_ns) as f64 / 1e9,
        crowd: crowd.established(),
    };
    report.trust = Some(trust(args, &measured.run, &report, around));
    let Run { tally, window, began, told, .. } = measured.run;
    let distributions = Distributions {
        connect: &tally.connect,
        first_byte: &tally.first_byte,
        service: &tally.service,
        response: latency(&tally, settings.open_loop),
        slip: &tally.slip,
    };
    let span = Span {
        began,
        start: Duration::from_nanos(window.open_ns - window.start_ns),
        duration: Duration::from_nanos(window.duration_ns()),
    };
    Ok(Outcome { files: both(files.write(&distributions, &span, &report), told), report })
}

/// What to do about a connection that does not come about.
fn advice(errno: Errno) -> &'static str {
    match errno {
        Errno::ECONNREFUSED | Errno::ETIMEDOUT | Errno::ENOENT => "is the server running?",
        Errno::EADDRNOTAVAIL => "is each --source an address of this machine, with a port to spare?",
        Errno::ENETUNREACH | Errno::EHOSTUNREACH => "there is no way to this address; is it right?",
        Errno::EMFILE | Errno::ENFILE => "raise `ulimit -n`, or ask for fewer connections",
        Errno::EACCES | Errno::EPERM => "may this user, and does no firewall forbid it?",
        _ => "is the address right?",
    }
}

/// An errno as it stands in the middle of a sentence.
fn words(errno: Errno) -> String {
    let text = errno.desc();
    text[..1].to_ascii_lowercase() + &text[1..]
}

fn settings(args: &LoadArgs) -> Result<Settings, String> {
    let one = request(args, "");
    let reset = args.close == Close::Rst;
    Ok(Settings {
        route: Route {
            address: address(args)?,
            sources: args.source.clone(),
            no_delay: one.len() > ONE_SEGMENT_BYTES,
            reset,
        },
        requests: one.repeat(args.pipeline as usize),
        request_bytes: one.len(),
        pipeline: args.pipeline as usize,
        // Who resets is first to close, and need not ask for it.
        last_request: request(args, if reset { "" } else { "Connection: close\r\n" }),
        no_body: args.method == Method::Head,
        open_loop: args.is_open_loop(),
        sessions: args.sessions,
        thinks: args.think.is_some(),
        connect_only: args.connect_only,
        retry: args.retry,
        requests_per_connection: args.requests_per_connection,
        timeout_ns: args.timeout.as_nanos() as u64,
        deadline_ns: args.deadline.map_or(u64::MAX, |deadline| deadline.as_nanos() as u64),
        ends_by_count: args.requests.is_some(),
        busy_poll: args.busy_poll,
        measures: Measures {
            from_due: args.is_open_loop(),
            slip: args.is_open_loop() || args.think.is_some(),
            workers: args.workers.unwrap_or(0) as usize,
            trace: args.trace as usize,
            order: args.order as usize,
            sends: if args.is_open_loop() { SENDS_KEPT / args.threads as usize } else { 0 },
            slices: SLICES,
        },
    })
}

fn address(args: &LoadArgs) -> Result<SockAddr, String> {
    match &args.unix {
        None => Ok(args.target().resolve()?.into()),
        Some(path) => SockAddr::unix(path).map_err(|error| format!("connect {}: {error}", path.display())),
    }
}

/// The bytes of a request: as few headers as HTTP/1.1 allows.
fn request(args: &LoadArgs, more_headers: &str) -> Vec<u8> {
    let length = match args.method.has_body() {
        true => format!("Content-Length: {}\r\n", args.body_bytes),
        false => String::new(),
    };
    let headers: String = args.header.iter().map(|header| format!("{header}\r\n")).collect();
    let (method, path, authority) = (args.method.name(), &args.target().path, &args.target().authority);
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: {authority}\r\n{headers}{length}{more_headers}\r\n");
    let mut bytes = head.into_bytes();
    bytes.resize(bytes.len() + args.body_bytes as usize, b'x');
    bytes
}

fn open_crowd(args: &LoadArgs, settings: &Settings, watch: &Watch) -> nix::Result<Crowd> {
    if args.idle > 0 {
        watch.announce("crowd");
    }
    Crowd::open(&settings.route, args.idle as usize, args.timeout, &|| watch.is_interrupted())
}

fn open_slow(args: &LoadArgs, settings: &Settings) -> nix::Result<Option<SlowCrowd>> {
    let kinds = Kinds::of(args);
    if kinds.total() == 0 {
        return Ok(None);
    }
    let one = settings.requests[..settings.request_bytes].to_vec();
    SlowCrowd::start(settings.route.clone(), one, kinds, args.slow_gap).map(Some)
}

/// What the threads brought home.
pub struct Run {
    /// Of all threads together.
    pub tally: Tally,
    pub window: Window,
    /// Spent in the window.
    pub cpu: Cpu,
    /// When the warm-up began.
    pub began: SystemTime,
    /// What hindered those who watched.
    pub told: Result<(), String>,
}

/// Starts the threads, gives them the schedule, waits for them and adds up their books; or the errno, when
/// the server cannot be reached.
fn measure<E: Engine>(
    args: &LoadArgs,
    arrivals: &Arrivals,
    settings: &Settings,
    control: &Control,
    watch: &mut Watch,
    mut audience: Audience,
) -> nix::Result<Run> {
    let threads = u64::from(args.threads);
    let (mut senders, mut merger) = senders(args, &audience);
    thread::scope(|scope| {
        let (mut starters, mut handles) = (Vec::new(), Vec::new());
        for thread in 0..threads {
            let (starter, start) = mpsc::channel();
            starters.push(starter);
            let cpu = args.pin.then_some(thread as usize);
            let connections = nth_part(u64::from(args.connections), thread, threads);
            handles
                .push(scope.spawn(move || measure_thread::<E>(settings, control, connections, cpu, &start)));
        }
        watch.until_ready(threads)?;
        let _aside = (args.live && args.pin).then(|| Aside::step(args.threads as usize));
        let (start_ns, began) = start(args);
        let window = window(args, start_ns);
        for (thread, starter) in (0..).zip(starters) {
            let assignment = Assignment {
                schedule: Schedule::new(arrivals.clone(), extent(args), thread, threads),
                thinker: Thinker::new(args.think, args.seed, thread),
                intervals: senders.pop(),
            };
            // A thread that does not listen has panicked; joining it says so.
            let _ = starter.send((window, assignment));
        }
        let (mut window, cpu) = watch.until_done(threads, window, merger.as_mut(), &mut audience)?;
        let tally = add_up(handles, settings.measures)?;
        if window.close_ns == u64::MAX {
            // The number of requests ended it, with the last answer; the wait for one that never came is no part of it.
            let last_ns = if tally.last_answer_ns > 0 { tally.last_answer_ns } else { tally.last_end_ns };
            window.close_ns = last_ns.max(window.open_ns);
        }
        let told = audience.leave(merger, &window);
        Ok(Run { tally, window, cpu, began, told })
    })
}

/// Somebody who watches needs the threads to tell.
fn senders(args: &LoadArgs, audience: &Audience) -> (Vec<IntervalSender>, Option<IntervalMerger>) {
    if audience.is_empty() {
        return (Vec::new(), None);
    }
    let workers = args.workers.unwrap_or(0) as usize;
    let (senders, merger) =
        interval::channel(args.threads as usize, args.interval, u64::from(args.connections), workers);
    (senders, Some(merger))
}

/// When the schedule begins: by the monotonic clock, and by the clock on the wall.
fn start(args: &LoadArgs) -> (u64, SystemTime) {
    let (soon_ns, now) = (monotonic_ns() + LEAD_NS, SystemTime::now());
    let soon = now + Duration::from_nanos(LEAD_NS);
    // Too late is too late: the report says by how much.
    let wait = args.start_at.and_then(|at| at.duration_since(soon).ok()).unwrap_or_default();
    // With --live the terminal is not ours to write on.
    if wait > SILENT_WAIT && !args.live {
        eprintln!("loadgen: waiting {:.0} s for --start-at", wait.as_secs_f64());
    }
    (soon_ns + wait.as_nanos() as u64, soon + wait)
}

/// What one measuring thread does.
fn measure_thread<E: Engine>(
    settings: &Settings,
    control: &Control,
    connections: u64,
    cpu: Option<usize>,
    start: &Receiver<(Window, Assignment)>,
) -> nix::Result<Tally> {
    let mut voice = Voice::new(control);
    if let Some(number) = cpu {
        let allowed = cpu::allowed();
        cpu::pin_to(&[allowed[number % allowed.len()]])?;
    }
    leave_shared_table(&control.descriptors());
    let mut client = ClientLoop::<E>::new(settings, control, connections)?;
    // Handshakes belong to a closed loop, and to a connection per request, but not to an open loop whose
    // connections are kept: there they would only make its first requests late.
    if settings.open_loop && settings.requests_per_connection.is_none() && !settings.connect_only {
        client.open_all();
    }
    voice.say_ready();
    match start.recv() {
        Ok((window, assignment)) => Ok(client.run(window, assignment)),
        // The main thread gave up before the start.
        Err(_) => Err(Errno::ECANCELED),
    }
}

fn window(args: &LoadArgs, start_ns: u64) -> Window {
    let open_ns = start_ns + args.warmup.as_nanos() as u64;
    let close_ns = match args.requests {
        Some(_) => u64::MAX,
        None => open_ns + args.duration.as_nanos() as u64,
    };
    Window { start_ns, open_ns, close_ns }
}

fn extent(args: &LoadArgs) -> Extent {
    let relative = window(args, 0);
    Extent {
        measured_from_ns: relative.open_ns,
        end_ns: relative.close_ns,
        requests: args.requests.unwrap_or(u64::MAX),
    }
}

fn add_up(handles: Vec<ScopedJoinHandle<nix::Result<Tally>>>, measures: Measures) -> nix::Result<Tally> {
    let mut sum = Tally::new(measures);
    for handle in handles {
        match handle.join() {
            Ok(tally) => sum.add(tally?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    // One thread may have found nobody while another was served.
    match sum.unreachable {
        Some(errno) if sum.established == 0 => Err(errno),
        _ => Ok(sum),
    }
}
