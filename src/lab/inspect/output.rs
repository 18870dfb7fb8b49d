//! A diagnosis as text for a terminal, and as JSON. From finished values only.

use super::findings::{self, Diagnosis, Dispatch, Finding, ListenerState, Sharing, State, Wait, Way, Worker};
use crate::terminal::{Paint, columns_of, shortened, wrapped};
use crate::units::{grouped, number, short};

/// So many workers have a line each; of more, the first and a line about the rest.
const MOST_LINES: usize = 32;

/// The width of the cell with the call, in which `epoll-exclusive` has room.
const WAIT_COLUMNS: usize = 15;

pub fn json(diagnosis: &Diagnosis) -> String {
    serde_json::to_string(diagnosis).expect("plain structs serialize") + "\n"
}

/// All there is to say, in lines of at most `width` columns.
pub fn text(diagnosis: &Diagnosis, width: usize, paint: Paint) -> String {
    let mut lines = Vec::new();
    let mut say = |text: &str| lines.extend(wrapped(text, width, 2));
    say(&paint.bold(&shortened(&diagnosis.command, width)));
    for listener in &diagnosis.listeners {
        say(&about_listener(listener));
    }
    say(&mechanism(diagnosis));
    say(&connections(diagnosis));
    lines.push(String::new());
    lines.extend(table(diagnosis, width, paint));
    if let Some(line) = evenness(diagnosis) {
        lines.extend(wrapped(&line, width, 2));
    }
    lines.push(String::new());
    if diagnosis.findings.is_empty() {
        lines.push(match diagnosis.unseen.is_empty() && diagnosis.dispatch != Dispatch::Unknown {
            true => paint.green("no findings"),
            false => "no findings in what could be seen".to_string(),
        });
    }
    for finding in &diagnosis.findings {
        lines.extend(about_finding(finding, width, paint));
    }
    for line in &diagnosis.unseen {
        lines.extend(wrapped(&format!("not seen: {line}"), width, 2));
    }
    lines.join("\n") + "\n"
}

fn about_listener(listener: &ListenerState) -> String {
    let ListenerState { address, sockets, backlog, queued, drops, .. } = listener;
    let dual = if listener.is_dual { " (IPv6 and IPv4)" } else { "" };
    let sharing = match listener.sharing {
        Sharing::One => "one socket".to_string(),
        Sharing::Shared => format!("one socket, shared by {} processes", grouped(listener.queues[0].pids.len() as u64)),
        Sharing::Reuseport => format!("{sockets} sockets (SO_REUSEPORT)"),
    };
    let each = if *sockets > 1 { " each" } else { "" };
    let queued = findings::connections((*queued).into());
    format!("{address}{dual}: {sharing}; queued {queued}, backlog {backlog}{each}, {drops} drops")
}

/// Who accepts, who serves, and how a worker waits.
pub fn mechanism(diagnosis: &Diagnosis) -> String {
    let count = diagnosis.workers.len();
    let wait = waits(diagnosis);
    let processes = if count == 1 { "one process".to_string() } else { format!("{} processes", grouped(count as u64)) };
    match (diagnosis.dispatch, diagnosis.way) {
        (Dispatch::WorkersAccept, _) if count == 1 => format!("{processes} accepts and serves; it waits in {wait}"),
        (Dispatch::WorkersAccept, _) => format!("{processes} accept, each for itself; they wait in {wait}"),
        (Dispatch::MasterPassesDescriptors, Way::Children) => {
            format!("the parent accepts and forks a child for each connection; it waits in {wait}")
        }
        (Dispatch::MasterPassesDescriptors, _) => {
            format!("a master accepts (it waits in {wait}) and passes each connection to one of {processes}")
        }
        (Dispatch::MasterProxies, _) => {
            format!("a master accepts (it waits in {wait}) and forwards the bytes to {processes} on ports of their own")
        }
        (Dispatch::Threads, Way::ThreadsAccept) => format!("threads of {processes} accept; they wait in {wait}"),
        (Dispatch::Threads, _) => format!("one thread of {processes} accepts for the others; it waits in {wait}"),
        (Dispatch::Unknown, _) => "no process was seen that accepts".to_string(),
    }
}

fn waits(diagnosis: &Diagnosis) -> String {
    let acceptor = diagnosis.master.as_ref().or(diagnosis.workers.first());
    let Some(Worker { waits_in, shares_epoll, .. }) = acceptor else { return "nothing".to_string() };
    let call = match waits_in {
        Wait::Epoll if *shares_epoll => "one epoll instance that all share",
        Wait::Epoll => "epoll, level-triggered",
        Wait::EpollEdge => "epoll, edge-triggered",
        Wait::EpollExclusive => "epoll with EPOLLEXCLUSIVE",
        Wait::Accept => "accept",
        Wait::Poll => "poll",
        Wait::Select => "select",
        Wait::IoUring => "io_uring",
        Wait::Lock => "a lock before accept",
        Wait::Other => "a call that was not seen",
    };
    call.to_string()
}

pub fn connections(diagnosis: &Diagnosis) -> String {
    let totals = &diagnosis.totals;
    let per =
        |value: Option<f64>, what: &str| value.map_or(String::new(), |value| format!(", {} {what}", number(value)));
    format!(
        "in {} s {} new connections, {} open{}{}{}; {} not accepted, {} of them for 1 s",
        number(diagnosis.duration_s),
        grouped(totals.new_connections),
        grouped(totals.connections),
        totals.more_requests.map_or(String::new(), |count| format!(", {} more requests", grouped(count))),
        per(totals.switches_per_connection, "switches per connection"),
        per(totals.cpu_us_per_connection, "µs of CPU per connection"),
        grouped(totals.unaccepted),
        grouped(totals.unaccepted_long),
    )
}

/// A line for each worker, of at most 80 columns.
pub fn table(diagnosis: &Diagnosis, width: usize, paint: Paint) -> Vec<String> {
    let is_exact = diagnosis.workers.iter().any(|worker| worker.accepted.is_some());
    let more = if is_exact { " accepts      woken" } else { " ready % switches/s" };
    let mut lines = vec![format!("    pid waits in         share    open  CPU % {more} queued state")];
    let master = diagnosis.master.iter().map(|worker| (worker, true));
    let workers = diagnosis.workers.iter().map(|worker| (worker, false));
    let all: Vec<_> = master.chain(workers).collect();
    // The hung ones are shown in any case.
    let (mut shown, mut rest) = (Vec::new(), 0);
    for (worker, is_master) in all {
        match shown.len() < MOST_LINES || worker.state == State::Hung {
            true => shown.push(row(worker, is_master, paint)),
            false => rest += 1,
        }
    }
    lines.extend(shown);
    if rest > 0 {
        lines.push(format!("     and {rest} more"));
    }
    lines.into_iter().map(|line| if paint.has_colour { line } else { shortened(&line, width) }).collect()
}

fn row(worker: &Worker, is_master: bool, paint: Paint) -> String {
    let percent = |value: f64| format!("{:.1}", 100.0 * value);
    let share = worker.accepted_share.map_or("–".to_string(), |share| format!("{} %", percent(share)));
    let state = worker.state_name(is_master);
    let state = if worker.state == State::Hung { paint.red(state) } else { state.to_string() };
    let threads = if worker.threads > 1 { format!(" × {}", worker.threads) } else { String::new() };
    let wait = shortened(&worker.waits_in.name(), WAIT_COLUMNS - columns_of(&threads)) + &threads;
    let [first, second] = match (worker.accepted, worker.woken) {
        (Some(accepted), Some(woken)) => [accepted, woken].map(|count| short(count as f64)),
        _ => [percent(worker.waited_share), short(worker.switches_per_s)],
    };
    let line = format!(
        "{:>7} {wait:<WAIT_COLUMNS$} {share:>7} {:>6} {:>6} {first:>8} {second:>10} {:>6} {}",
        worker.pid,
        worker.connections,
        percent(worker.cpu_share),
        worker.queued.map_or("–".to_string(), |queued| queued.to_string()),
        state,
    );
    line.trim_end().to_string()
}

fn evenness(diagnosis: &Diagnosis) -> Option<String> {
    let most = number(diagnosis.max_over_mean?);
    let Some(even) = &diagnosis.evenness_of_counts else {
        return Some(format!("share by CPU time, because few connections were seen: max/mean = {most}"));
    };
    let chance = number(even.expected_max_over_mean_if_random);
    let p = if even.p_value < 0.001 { "p < 0.001".to_string() } else { format!("p = {:.3}", even.p_value) };
    Some(format!(
        "share of {} that were seen: D = {} (0 in turns, 1 by chance), {p}; max/mean = {most} (by chance {chance})",
        findings::connections(even.n),
        number(even.dispersion),
    ))
}

fn about_finding(finding: &Finding, width: usize, paint: Paint) -> Vec<String> {
    let mut lines = wrapped(&format!("{}: {}", finding.id, finding.says), width, 2);
    if let Some(first) = lines.first_mut() {
        *first = first.replacen(finding.id, &paint.red(finding.id), 1);
    }
    lines.extend(wrapped(&format!("  do: {}", finding.advice), width, 6));
    let number = finding.lesson.split('-').next().unwrap_or_default().trim_start_matches('0');
    lines.push(format!("  why: lesson {number}, experiments/{}.md", finding.lesson));
    lines
}
