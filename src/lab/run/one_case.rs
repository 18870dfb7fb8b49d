//! One case, run once: start a fresh server, await `ready`, run the client, stop the server, and put both
//! documents into one row. Whatever goes wrong becomes the row's `failure`, so that no run is lost silently.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cpu;
use crate::lab::observe::cpu_window::CpuMeter;
use crate::lab::observe::footprint::{self, Footprint, ProcessSize};
use crate::lab::observe::kernel_counts::KernelCounter;
use crate::lab::observe::speed;
use crate::lab::observe::timeline::Sampler;
use crate::lab::plan::case::Case;
use crate::lab::plan::matrix::{PictureKind, TableKind};
use crate::lab::program::{Interrupt, Program, Running, Stop, on_path};
use crate::lab::record::Row;
use crate::lab::run::contender::{self, Contender};
use crate::lab::run::contract;
use crate::lab::run::fault_injector::{self, FaultInjector, Workers};
use crate::lab::run::foreign;
use crate::lab::run::sysctl::{KernelSettings, SettingError};
use crate::machine::Counters;
use crate::report::{LoadReport, TrialReport};
use crate::scoreboard::Scoreboard;
use crate::stats;
use crate::sys::namespace::NetworkNamespace;
use crate::sys::process::Usage;

/// Ten thousand processes need seconds to be forked, and to be reaped.
const START_WITHIN: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(60);
/// Beyond the time that the command line declares: for time-outs, late answers, and a number of requests.
const CLIENT_GRACE: Duration = Duration::from_secs(120);
/// A trial that is told to end stops all that it has started.
const CLEAN_UP_WITHIN: Duration = Duration::from_secs(30);
const ONE_REQUEST: &str =
    "loadgen --connections 1 --requests 1 --warmup 0s --timeout 10s --progress none --format json";
/// Runs in which a footprint is looked for.
const LOOKS: usize = 4;

/// Where server and client meet; absent where it is the machine's own network.
type Network<'a> = Option<&'a Arc<NetworkNamespace>>;

/// Runs one case. A failure is a row, too; the only error is the interrupt.
pub fn run(case: &Case, block: usize, interrupt: &Interrupt) -> Result<Row, Stop> {
    let allowed = cpu::allowed();
    let mut row = Row {
        server_cpus: choose(&allowed, &case.table.server_cpus),
        client_cpus: choose(&allowed, &case.table.client_cpus),
        ..Row::planned(case, block)
    };
    // Of the server's words, too: `cluster … -- node x.js` needs node.
    for word in [case.client.text(), case.server.text()].into_iter().flat_map(str::split_whitespace) {
        // The script that starts a server of another project has its name.
        let program = word.rsplit('/').next().unwrap_or(word);
        if let Some(how) = how_to_install(program).filter(|_| on_path(program).is_none()) {
            return Ok(Row { skipped: Some(format!("{program} is not installed ({how})")), ..row });
        }
    }
    let settings = match KernelSettings::make(&case.sysctl, interrupt) {
        Ok(settings) => settings,
        Err(SettingError::Missing(why) | SettingError::Forbidden(why)) => return Ok(Row { skipped: Some(why), ..row }),
        Err(SettingError::Failed(why)) => return Ok(Row { failure: Some(why), ..row }),
        Err(SettingError::Interrupted) => return Err(Stop::Interrupted),
    };
    row.speed = speed::beside(&row.server_cpus, &row.client_cpus);
    let namespace = settings.namespace.as_ref();
    row.own_network = namespace.is_some();
    let counters = || namespace.map_or_else(Counters::now, |namespace| Counters::seen_by(namespace.pid()));
    let before = counters();
    let measured = measure_with_footprint(case, &mut row, namespace, interrupt);
    case.events.iter().for_each(fault_injector::remove_files);
    match measured {
        Ok(()) => {}
        Err(Stop::Interrupted) => return Err(Stop::Interrupted),
        Err(Stop::Failed(why)) => row.failure = Some(why),
    }
    row.machine = counters().since(&before);
    Ok(row)
}

/// For programs that are not ours.
fn how_to_install(program: &str) -> Option<&'static str> {
    match program {
        "wrk" => Some("Debian: apt-get install wrk"),
        "oha" => Some("cargo install oha"),
        "shb" => Some("cargo install shb"),
        "node" => Some("Debian: apt-get install nodejs"),
        "nginx" | "haproxy" | "apache2" | "gunicorn" | "uvicorn" | "puma" => Some("scripts/install_contenders.sh"),
        _ => None,
    }
}

/// The CPUs at these indices of the allowed ones, all of them when none is named. On a smaller machine the indices wrap
/// around: server and client may share CPUs then, and the row says so.
fn choose(allowed: &[usize], indices: &[usize]) -> Vec<usize> {
    if indices.is_empty() {
        return allowed.to_vec();
    }
    let mut cpus: Vec<usize> = indices.iter().map(|index| allowed[index % allowed.len()]).collect();
    cpus.sort();
    cpus.dedup();
    cpus
}

/// Where the warm-up was too short to take the footprint of a thousand processes, fresh processes get a warm-up twice
/// as long, and the row's command says so.
fn measure_with_footprint(case: &Case, row: &mut Row, network: Network, interrupt: &Interrupt) -> Result<(), Stop> {
    let mut longer = case.clone();
    for _ in 0..LOOKS {
        measure(&longer, row, network, interrupt)?;
        if !case.table.probe || row.footprint.is_some() || row.skipped.is_some() {
            return Ok(());
        }
        longer = longer.with_warmup(2 * longer.client.warmup.unwrap_or_default());
    }
    let why = format!("the server's footprint had not settled in {LOOKS} runs, the warm-up doubled each time");
    Err(Stop::Failed(why))
}

fn measure(case: &Case, row: &mut Row, network: Network, interrupt: &Interrupt) -> Result<(), Stop> {
    if let Some(runs) = case.client.runs() {
        let (orders, took_ms) = run_to_the_end(case, row, runs, interrupt)?;
        (row.orders, row.run_ms) = (orders, stats::median(&took_ms));
        return Ok(());
    }
    if case.table.kind == TableKind::Trials {
        let report = trial_of(case, row, interrupt)?;
        row.skipped = report.skipped.clone();
        row.trial = Some(report);
        return Ok(());
    }
    let contender = case.server_spec.contender.then(Contender::new).transpose()?;
    if contender.is_some() && row.block == 0 {
        row.version = contender::version(&case.server, interrupt);
    }
    let needs_board = contender.is_none() && (case.events.is_some() || case.table.timeline);
    let board = needs_board.then(Board::new);
    let command = match &board {
        Some(board) => case.server.with(&format!("--scoreboard {}", board.path)),
        None => case.server.clone(),
    };
    let program = contender.as_ref().map_or_else(|| Program::of(command.text()), |its| its.program(&command));
    let program = program.on_cpus(&row.server_cpus).inside(network).until(interrupt);
    let mut server = program.launch(&[])?;
    let ready = match &contender {
        Some(contender) => contender.await_ready(&mut server, START_WITHIN),
        None => server.await_ready(START_WITHIN),
    };
    let address = match ready {
        Ok(address) => address,
        Err(why) => {
            row.skipped = why.missing_privilege().map(str::to_string);
            return if row.skipped.is_some() { Ok(()) } else { Err(why.stop(program.name())) };
        }
    };
    let scoreboard = board.map(Board::open).transpose()?;
    let url = format!("http://{address}/");
    row.client_command = case.client.with_url(&url);
    let counter = KernelCounter::begin(server.pid(), case.needs_tracepoints());
    if case.client.program() == "loadgen" {
        let sampler = scoreboard.filter(|_| case.table.timeline).map(Sampler::start);
        run_loadgen(case, row, network, &url, &server, scoreboard, interrupt)?;
        row.timeline = sampler.map_or(Vec::new(), Sampler::finish);
    } else {
        run_foreign(case, row, network, &url, interrupt)?;
    }
    row.observed = Some(counter.end());
    if row.foreign.is_some() {
        ask_once(case, row, network, &url, interrupt)?;
    }
    server.signal(Signal::SIGTERM);
    if let Some(contender) = contender {
        return contender.await_end(&mut server, STOP_WITHIN);
    }
    let document = match server.finish(STOP_WITHIN, |_| ()) {
        Err(Stop::Failed(why)) if case.server_spec.expect_death && server.has_ended() => {
            row.death = Some(why);
            if let Ok(report) = serde_json::from_str(server.output()) {
                row.keep_server(report);
            }
            return Ok(());
        }
        finished => finished?,
    };
    row.keep_server(server.parse(&document)?);
    if server.left_something_behind() {
        return Err(Stop::Failed(server.failure("ended and left a process behind")));
    }
    Ok(())
}

/// Runs a program to its end so many times: in which orders do its lines come, and how many ms does each run take?
fn run_to_the_end(
    case: &Case,
    row: &Row,
    runs: u64,
    interrupt: &Interrupt,
) -> Result<(BTreeMap<String, u64>, Vec<f64>), Stop> {
    let (mut orders, mut took_ms) = (BTreeMap::new(), Vec::new());
    for _ in 0..runs {
        let begin = Instant::now();
        let program = Program::of(case.server.text()).on_cpus(&row.server_cpus).until(interrupt);
        let mut running = program.launch(&[])?;
        let text = running.finish(CLIENT_GRACE, |_| ())?;
        took_ms.push(begin.elapsed().as_secs_f64() * 1e3);
        let id = |line: &str| Some(serde_json::from_str::<Value>(line).ok()?["id"].as_str()?.to_string());
        let order = text.lines().map(id).collect::<Option<Vec<String>>>().filter(|ids| !ids.is_empty());
        let order =
            order.ok_or_else(|| Stop::Failed(running.failure("printed something else than lines with an id")))?;
        *orders.entry(order.join(", ")).or_default() += 1;
    }
    Ok((orders, took_ms))
}

/// One trial of a program: a manager, a server, a tool. When the lab is interrupted it gets the time to end what it has
/// started.
fn trial_of(case: &Case, row: &Row, interrupt: &Interrupt) -> Result<TrialReport, Stop> {
    let program = Program::of(case.client.text()).on_cpus(&row.client_cpus).until(interrupt);
    let mut running = program.launch(&["--format", "json"])?;
    match running.finish(case.estimate + CLIENT_GRACE, |_| ()) {
        Ok(document) => running.parse(&document),
        Err(stop) => {
            running.terminate(CLEAN_UP_WITHIN);
            Err(stop)
        }
    }
}

/// A file for the server's scoreboard. It is removed when the server is ready; the mapping stays.
struct Board {
    path: String,
}

impl Board {
    /// In memory where we may write there.
    fn new() -> Board {
        let name = format!("acceptlab-{}", std::process::id());
        let memory = Path::new("/dev/shm").join(&name);
        let is_ours = std::fs::write(&memory, "").and_then(|()| std::fs::remove_file(&memory)).is_ok();
        let path = if is_ours { memory } else { std::env::temp_dir().join(name) };
        Board { path: path.to_string_lossy().into_owned() }
    }

    fn open(self) -> Result<Scoreboard, Stop> {
        Scoreboard::open(Path::new(&self.path)).map_err(|failure| Stop::Failed(failure.to_string()))
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // A server that did not start has made none.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn run_loadgen(
    case: &Case,
    row: &mut Row,
    network: Network,
    url: &str,
    server: &Running,
    scoreboard: Option<Scoreboard>,
    interrupt: &Interrupt,
) -> Result<(), Stop> {
    let group = server.pid();
    let held = if case.table.probe { footprint::of_group(group).fds } else { 0 };
    let expected = held + case.client.connections.unwrap_or(0) + case.client.idle;
    let program = Program::of(case.client.text()).on_cpus(&row.client_cpus).inside(network).until(interrupt);
    let mut client = program.launch(&["--progress", "phases", "--format", "json", url])?;
    let mut seen: Option<Footprint> = None;
    let mut injector = None;
    let (mut meter, mut window) = (Some(CpuMeter::of(group)), None);
    let (mut before, mut after) = (None, None);
    let mut fell_back = None;
    let on_line = |line: &str| match line.trim() {
        "phase warmup" if case.table.probe => {
            let deadline = Instant::now() + case.client.warmup.unwrap_or_default();
            seen = footprint::settled(group, expected, deadline);
            // The silent connections are there, and each may have a process of its own.
            meter = Some(CpuMeter::of(group));
        }
        "phase measure" => {
            meter.iter_mut().for_each(CpuMeter::begin);
            before = ProcessSize::of(group).filter(|_| case.needs_growth());
            let workers = scoreboard.map_or(Workers::Children(group), Workers::Scoreboard);
            injector = case.events.as_ref().map(|events| FaultInjector::begin(events, workers, case.reload));
        }
        "phase drain" => {
            window = meter.take().and_then(CpuMeter::end);
            after = ProcessSize::of(group).filter(|_| case.needs_growth());
            if let Some(Ok(injector)) = &injector {
                injector.end_window();
            }
        }
        line if line.contains("io_uring") => fell_back = Some(line.to_string()),
        _ => {}
    };
    let document = client.finish(case.estimate + CLIENT_GRACE, on_line)?;
    let injected = match injector {
        Some(injector) => injector.and_then(|mut injector| injector.finish()).map_err(Stop::Failed)?,
        None if case.events.is_some() => return Err(Stop::Failed(client.failure("never began to measure"))),
        None => Vec::new(),
    };
    row.growth = before.zip(after).map(|(before, after)| after.since(before));
    row.load = Some(without_unused(client.parse(&document)?, case));
    if case.drawn_as.contains(&PictureKind::OverTime) {
        row.events = injected;
    }
    // The numbers of the other engine must not stand in the line of io_uring.
    row.skipped = fell_back;
    row.footprint = seen;
    row.cpu = window;
    let expects_losses = row.expects_losses() || row.expect_timeouts;
    let broken = || contract::broken(row.load.as_ref()?, expects_losses, !case.server_spec.contender);
    row.impossible_cpu().or_else(broken).map_or(Ok(()), |why| Err(Stop::Failed(why)))
}

/// The report without what no table and no picture of this case shows.
fn without_unused(mut report: LoadReport, case: &Case) -> LoadReport {
    if case.table.kind != TableKind::Trace {
        report.trace.clear();
    }
    if !case.drawn_as.contains(&PictureKind::OverTime) {
        report.time_series = None;
    }
    if !case.drawn_as.contains(&PictureKind::Distribution) {
        report.latency_quantiles_us.clear();
    }
    // A worker that answered nothing is in the server's report.
    report.workers.retain(|_, share| share.connections > 0 || share.requests > 0);
    report
}

fn run_foreign(case: &Case, row: &mut Row, network: Network, url: &str, interrupt: &Interrupt) -> Result<(), Stop> {
    let before = Usage::of_children().cpu_us();
    let program = Program::of(case.client.text()).on_cpus(&row.client_cpus).inside(network).until(interrupt);
    let mut client = program.launch(&[url])?;
    let text = client.finish(case.estimate + CLIENT_GRACE, |_| ())?;
    let mut report = foreign::parse(case.client.program(), &text)
        .ok_or_else(|| Stop::Failed(client.failure("printed no result")))?;
    if report.cpu_us == 0 {
        // The server has not been reaped yet, so the growth of the children's CPU time is the client's.
        report.cpu_us = Usage::of_children().cpu_us() - before;
    }
    row.foreign = Some(report);
    Ok(())
}

/// A client of another project does not look at the bodies: the server is asked once more when all is measured.
fn ask_once(case: &Case, row: &Row, network: Network, url: &str, interrupt: &Interrupt) -> Result<(), Stop> {
    let program = Program::of(ONE_REQUEST).on_cpus(&row.client_cpus).inside(network).until(interrupt);
    let mut client = program.launch(&[url])?;
    let document = client.finish(CLIENT_GRACE, |_| ())?;
    let names_workers = !case.server_spec.contender;
    contract::broken(&client.parse(&document)?, false, names_workers).map_or(Ok(()), |why| Err(Stop::Failed(why)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_choose_among_the_allowed_cpus_and_wrap_around() {
        assert_eq!(choose(&[4, 6], &[1]), [6]);
        assert_eq!(choose(&[4, 6], &[]), [4, 6]);
        assert_eq!(choose(&[4], &[0, 1]), [4]);
    }
}
