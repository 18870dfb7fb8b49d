//! One run from the command line to the report: open the crowd, start the threads, hand out the schedule,
//! collect what was counted.

use std::fs::File;
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::thread::{self, ScopedJoinHandle};
use std::time::SystemTime;

use nix::errno::Errno;

use crate::load::args::{LoadArgs, Method};
use crate::load::client::{Client, Plan};
use crate::load::control::{Control, Voice};
use crate::load::crowd::Crowd;
use crate::load::preflight;
use crate::load::schedule::{Extent, Schedule, share};
use crate::load::summary::{Measured, report, write_hlog};
use crate::load::tally::{Tally, Window};
use crate::load::watch::{Cpu, Watch, max_rss_kib};
use crate::report::LoadReport;
use crate::units::monotonic_ns;

/// The schedule begins this much after the threads are told, so that they have heard it by then.
const LEAD_NS: u64 = 1_000_000;

/// What a run leaves behind.
pub struct Outcome {
    pub report: LoadReport,
    /// A full disk must not cost the report.
    pub hlog: Result<(), String>,
}

/// Does what the command line asks for. An error is one line that says what was tried and what to do.
pub fn run(args: &LoadArgs) -> Result<Outcome, String> {
    let setup = |errno: Errno| format!("set up the run: {}", words(errno));
    let control = Control::new().map_err(setup)?;
    let mut watch = Watch::new(&control, args).map_err(setup)?;
    let hlog = args.hlog.as_deref().map(create).transpose()?;
    let plan = plan(args)?;
    for line in preflight::prepare(args)? {
        eprintln!("loadgen: {line}");
    }
    let unreachable = |errno| {
        let address =
            plan.address.as_socket().map_or_else(|| args.target().authority.clone(), |a| a.to_string());
        format!("connect {address}: {}; is the server running?", words(errno))
    };

    let crowd = open_crowd(args, &plan, &watch).map_err(unreachable)?;
    let began = SystemTime::now();
    let (tally, window, cpu) = measure(args, &plan, &control, &mut watch).map_err(unreachable)?;
    let hlog = hlog.map_or(Ok(()), |(file, path)| {
        write_hlog(file, &tally, &window, plan.open_loop, began)
            .map_err(|error| format!("write {}: {error}", path.display()))
    });
    let measured = Measured { tally, window, cpu, crowd: &crowd, max_rss_kib: max_rss_kib() };
    Ok(Outcome { report: report(args, &measured), hlog })
}

/// Before the run: a path that cannot be written should not cost a measurement.
fn create(path: &Path) -> Result<(File, &Path), String> {
    File::create(path).map(|file| (file, path)).map_err(|error| format!("create {}: {error}", path.display()))
}

/// An errno as it stands in the middle of a sentence.
fn words(errno: Errno) -> String {
    let text = errno.desc();
    text[..1].to_ascii_lowercase() + &text[1..]
}

fn plan(args: &LoadArgs) -> Result<Plan, String> {
    Ok(Plan {
        address: args.target().resolve()?.into(),
        request: request(args, ""),
        last_request: request(args, "Connection: close\r\n"),
        no_body: args.method == Method::Head,
        open_loop: args.is_open_loop(),
        requests_per_connection: args.requests_per_connection,
        timeout_ns: args.timeout.as_nanos() as u64,
        ends_by_count: args.requests.is_some(),
        trace: args.trace as usize,
    })
}

/// The bytes of a request: as few headers as HTTP/1.1 allows.
fn request(args: &LoadArgs, more_headers: &str) -> Vec<u8> {
    let length = match args.method {
        Method::Post => format!("Content-Length: {}\r\n", args.body_bytes),
        Method::Get | Method::Head => String::new(),
    };
    let (method, path, authority) = (args.method.name(), &args.target().path, &args.target().authority);
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {authority}\r\n{length}{more_headers}\r\n");
    let mut bytes = head.into_bytes();
    bytes.resize(bytes.len() + args.body_bytes as usize, b'x');
    bytes
}

fn open_crowd(args: &LoadArgs, plan: &Plan, watch: &Watch) -> nix::Result<Crowd> {
    if args.idle > 0 {
        watch.announce("crowd");
    }
    Crowd::open(&plan.address, args.idle as usize, args.timeout, &|| watch.is_interrupted())
}

/// Starts the threads, gives them the schedule, waits for them and adds up their books; or the errno, when
/// the server cannot be reached.
fn measure(
    args: &LoadArgs,
    plan: &Plan,
    control: &Control,
    watch: &mut Watch,
) -> nix::Result<(Tally, Window, Cpu)> {
    let threads = u64::from(args.threads);
    let clients = (0..threads)
        .map(|thread| Client::new(plan, control, share(u64::from(args.connections), thread, threads)))
        .collect::<nix::Result<Vec<_>>>()?;
    thread::scope(|scope| {
        let (mut starters, mut handles) = (Vec::new(), Vec::new());
        for client in clients {
            let (starter, start) = mpsc::channel();
            starters.push(starter);
            handles.push(scope.spawn(move || measure_thread(plan, control, client, &start)));
        }
        watch.until_ready(threads)?;
        let window = window(args, monotonic_ns() + LEAD_NS);
        for (thread, starter) in (0..).zip(starters) {
            let schedule = Schedule::new(args.arrivals(), extent(args), thread, threads);
            // A thread that does not listen has panicked; joining it says so.
            let _ = starter.send((window, schedule));
        }
        let (mut window, cpu) = watch.until_done(threads, window)?;
        let tally = add_up(handles)?;
        if window.close_ns == u64::MAX {
            // The number of requests ended it: with the last of them.
            window.close_ns = tally.last_end_ns.max(window.open_ns);
        }
        Ok((tally, window, cpu))
    })
}

/// What one measuring thread does.
fn measure_thread(
    plan: &Plan,
    control: &Control,
    mut client: Client,
    start: &Receiver<(Window, Schedule)>,
) -> nix::Result<Tally> {
    let mut voice = Voice::new(control);
    // Handshakes belong to a closed loop, and to a connection per request, but not to an open loop whose
    // connections are kept: there they would only make its first requests late.
    if plan.open_loop && plan.requests_per_connection.is_none() {
        client.open_all();
    }
    voice.say_ready();
    match start.recv() {
        Ok((window, schedule)) => client.run(window, schedule),
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

fn add_up(handles: Vec<ScopedJoinHandle<nix::Result<Tally>>>) -> nix::Result<Tally> {
    let mut sum = Tally::new(0);
    for handle in handles {
        match handle.join() {
            Ok(tally) => sum.add(tally?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    Ok(sum)
}
