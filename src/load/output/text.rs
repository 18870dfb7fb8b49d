//! The report as text with bars, for people. Pure: a report in, a text out.

use std::collections::{BTreeMap, BTreeSet};

use crate::load::options::target::Target;
use crate::load::output::heading;
use crate::metrics;
use crate::report::{
    Configuration, ConnectionCounts, Evenness, Latency, LoadReport, OutsideWindow, SlowCounts, Traced, Verdict,
    WorkerShare,
};
use crate::terminal::{Paint, bar, wrapped};
use crate::units::time;

/// Sentences are no wider, however wide the terminal is.
const MOST_COLUMNS: usize = 100;
/// Bars and tables need so much.
const LEAST_COLUMNS: usize = 80;
const NAME_COLUMNS: usize = 13;
/// Where the figures of evenness stand: behind `connections per worker`.
const JUDGED_AT: usize = 25;
const BAR_COLUMNS: usize = 40;
/// Columns of the spectrum, so that the unit of its last decade still fits into the line.
const SPECTRUM_COLUMNS: usize = 60;
const ORDER_LINES: usize = 8;
const LOST_LINES: usize = 4;

pub fn render(report: &LoadReport, paint: Paint, columns: usize) -> String {
    let columns = columns.clamp(LEAST_COLUMNS, MOST_COLUMNS);
    let mut page = TextReport { text: String::new(), paint, columns };
    if let Some(run) = &report.run {
        trace(&mut page, &report.trace, &run.configuration);
        page.line(paint.bold(&run.configuration.url));
        heading::load(run).lines().for_each(|line| page.wrapped(line));
        page.line(String::new());
    }
    let configuration = report.run.as_ref().map(|run| &run.configuration);
    rate(&mut page, report);
    let rows = rows(report, configuration.is_some_and(Configuration::is_open_loop));
    latencies(&mut page, &rows, report);
    spectrum(&mut page, &rows);
    errors(&mut page, report);
    connections(&mut page, report);
    report.slow.iter().for_each(|counts| slow(&mut page, counts));
    let shares = shares(report, configuration.map_or(0, |configuration| configuration.workers));
    workers(&mut page, report, &shares);
    order(&mut page, report, shares.len());
    client(&mut page, report);
    trust(&mut page, report);
    page.text
}

struct TextReport {
    text: String,
    paint: Paint,
    columns: usize,
}

impl TextReport {
    fn line(&mut self, line: String) {
        self.text += &line;
        self.text.push('\n');
    }

    fn named(&mut self, name: &str, line: String) {
        self.line(format!("{name:NAME_COLUMNS$}{line}"));
    }

    fn counted(&mut self, name: &str, count: u64, what: &str) {
        if count > 0 {
            self.named(name, format!("{count} {what}"));
        }
    }

    fn wrapped(&mut self, line: &str) {
        wrapped(line, self.columns, 2).into_iter().for_each(|line| self.line(line));
    }
}

/// In the format of siege.
fn trace(page: &mut TextReport, trace: &[Traced], configuration: &Configuration) {
    let method = &configuration.method;
    let path = configuration.url.parse().map_or(String::new(), |target: Target| target.path);
    for answer in trace {
        let Traced { status, bytes, latency_us, worker, .. } = answer;
        let seconds = latency_us / 1e6;
        let worker = worker.map_or(String::new(), |worker| format!("   worker {worker}"));
        page.line(format!("HTTP/1.1 {status} {seconds:6.2} secs: {bytes:7} bytes ==> {method:4} {path}{worker}"));
    }
    if !trace.is_empty() {
        page.line(String::new());
    }
}

fn rate(page: &mut TextReport, report: &LoadReport) {
    // What was answered without a first byte is a connection that had no request (--requests-per-connection 0).
    let connects_only = report.requests > 0 && report.first_byte_us.max == 0.0;
    let (asked, got) = if connects_only { ("connections", "connections") } else { ("requests", "answers") };
    let qps = page.paint.bold(&format!("{:.1} {asked}/s", report.qps));
    page.line(format!("{qps}   {} {got} in {:.3} s", report.requests, report.duration_s));
    if let Some(offered) = report.offered_per_s.filter(|&offered| offered > 0.0) {
        let achieved = report.qps / offered * 100.0;
        page.line(format!("{offered:.1} were due per second; {achieved:.2} % of that was answered"));
    }
    let OutsideWindow { warmup, late } = report.outside_window;
    if warmup + late > 0 {
        page.line(format!("not counted in it: {warmup} in the warm-up, {late} after the end"));
    }
    if let Some(depth) = report.pipeline {
        let line = format!("{depth} requests under way on each connection: compare with the same --pipeline");
        page.line(page.paint.yellow(&line));
    }
    page.line(String::new());
}

fn rows(report: &LoadReport, open_loop: bool) -> Vec<(&'static str, &Latency)> {
    let rows = [
        ("latency_us", &report.latency_us, true),
        // From sent, not from due: the difference is the wait of the client itself.
        ("service_us", &report.service_us, open_loop),
        ("first_byte_us", &report.first_byte_us, report.first_byte_us.max > 0.0),
        ("connect_us", &report.connect_us, true),
        ("send_delay_us", &report.send_delay_us, open_loop || report.send_delay_us.max > 0.0),
    ];
    rows.into_iter().filter(|(.., shown)| *shown).map(|(key, times, _)| (metrics::name(key), times)).collect()
}

fn latencies(page: &mut TextReport, rows: &[(&str, &Latency)], report: &LoadReport) {
    page.line(format!("{:10}{}", "", heads(7, 10)));
    rows.iter().for_each(|(name, latency)| page.line(format!("{name:10}{}", cells(latency, 7, 10))));
    if let (Some(worst), Some(silence_ms)) = (report.worst_second, report.longest_silence_ms) {
        let (p99, from_s) = (time(worst.latency_us.p99), worst.from_s);
        let silence = time(silence_ms as f64 * 1e3);
        page.line(format!("worst second: p99 {p99}, from {from_s:.0} s on; longest silence: {silence}"));
    }
    page.line(String::new());
}

fn spectrum(page: &mut TextReport, rows: &[(&str, &Latency)]) {
    const SHADES: [char; 4] = ['█', '▓', '▒', '░'];
    let rows: Vec<_> = rows.iter().filter(|(_, latency)| latency.max > 0.0).collect();
    // Below a microsecond nothing is worth a decade of its own.
    let exponent = |us: f64| us.max(1.0).log10();
    let first = rows.iter().map(|(_, latency)| exponent(latency.p50)).fold(f64::INFINITY, f64::min).floor();
    let last = rows.iter().map(|(_, latency)| exponent(latency.max)).fold(0.0, f64::max).ceil();
    if rows.is_empty() {
        return;
    }
    let decades = ((last - first) as usize).max(1);
    let width = SPECTRUM_COLUMNS / decades;
    let column = |us: f64| ((exponent(us) - first) * width as f64) as usize;
    let axis: String = (0..=decades).map(|decade| format!("{:width$}", mark(first + decade as f64))).collect();
    page.named("", axis.trim_end().into());
    for (name, latency) in rows {
        let ends = [latency.p90, latency.p99, latency.p99_9, latency.max].map(column);
        let from = column(latency.p50);
        let shade = |at: usize| SHADES[ends.iter().position(|&end| at <= end).unwrap_or(3)];
        let bar: String = (from..=ends[3]).map(shade).collect();
        page.named(name, format!("{:from$}{}", "", page.paint.cyan(&bar)));
    }
    page.named("", "█ p50 to p90   ▓ to p99   ▒ to p99.9   ░ to max\n".into());
}

/// How many of [`Latency::named`] a narrow table has.
pub const STATISTICS: usize = 5;

/// The names of the first statistics of a [`Latency`], in columns.
pub fn heads(count: usize, width: usize) -> String {
    Latency::default().named()[..count].iter().map(|(name, _)| format!("{name:>width$}")).collect()
}

/// The same of their values. Nothing was measured: that is not 0.
pub fn cells(latency: &Latency, count: usize, width: usize) -> String {
    let cell = |us| if latency.max > 0.0 { time(us) } else { "–".into() };
    latency.named()[..count].iter().map(|&(_, us)| format!("{:>width$}", cell(us))).collect()
}

/// A power of ten of microseconds on the axis: |100us.
fn mark(exponent: f64) -> String {
    let (divisor, unit) = match exponent {
        exponent if exponent < 3.0 => (0.0, "us"),
        exponent if exponent < 6.0 => (3.0, "ms"),
        _ => (6.0, "s"),
    };
    format!("|{:.0}{unit}", 10f64.powf(exponent - divisor))
}

fn errors(page: &mut TextReport, report: &LoadReport) {
    let errors = &report.errors;
    let mut parts = Vec::new();
    let phases = ["connect", "write", "read", "status"];
    for (phase, counts) in phases.iter().zip([&errors.connect, &errors.write, &errors.read, &errors.status]) {
        parts.extend(counts.iter().map(|(cause, count)| format!("{phase} {cause} {count}")));
    }
    if errors.timeout > 0 {
        parts.push(format!("unanswered {}", errors.timeout));
    }
    page.named("errors", if parts.is_empty() { "none".into() } else { page.paint.red(&parts.join(", ")) });
    page.counted("retried", report.retried, "sent once more: the server had closed their kept connection");
    lost(page, report);
    page.counted("censored", report.censored, "without an answer count with their age: they took longer");
    if let Some(deadline) = report.deadline.filter(|deadline| deadline.shed + deadline.abandoned > 0) {
        let (shed, abandoned) = (deadline.shed, deadline.abandoned);
        page.named("deadline", format!("{shed} shed before they were sent, {abandoned} abandoned after"));
    }
}

fn lost(page: &mut TextReport, report: &LoadReport) {
    for (number, lost) in report.lost.iter().take(LOST_LINES).enumerate() {
        let name = if number == 0 { "lost" } else { "" };
        let client = lost.client.as_ref().map_or(String::new(), |client| format!(" from {client}"));
        let worker = lost.worker.map_or(String::new(), |worker| format!(", last answered by {worker}"));
        let line = format!("{name:NAME_COLUMNS$}{:.3} s{client}: {}{worker}", lost.at_s, lost.cause);
        page.wrapped(&line);
    }
    let unseen = report.lost.len().saturating_sub(LOST_LINES) as u64 + report.lost_more;
    if unseen > 0 {
        page.named("", format!("and {unseen} more (--format json names them)"));
    }
}

fn connections(page: &mut TextReport, report: &LoadReport) {
    let ConnectionCounts { requested, peak_open, established, answered, idle_lost } = report.connections;
    let opened = format!("{requested} asked for, {peak_open} open at most");
    page.named("connections", format!("{opened}, {established} established, {answered} answered"));
    if idle_lost > 0 {
        page.named("", format!("the server closed {idle_lost} of the idle connections"));
    }
}

fn slow(page: &mut TextReport, counts: &SlowCounts) {
    let SlowCounts { kind, requested, established, answered, closed_by_server, closed_after_ms } = counts;
    let name = if kind == "half-open" { kind.clone() } else { format!("slow {kind}") };
    let after = closed_after_ms.map_or(String::new(), |ms| format!(" after {}", time(ms * 1e3)));
    let got = format!("{established} established, {answered} answered, {closed_by_server} closed{after}");
    page.named(&name, format!("{requested} asked for, {got}"));
}

/// The workers that did something or are known to exist, by number: the JSON's keys are text, and "10" would come
/// before "2". A server may number its workers as it likes; one that calls its only worker 65000 has no others.
fn shares(report: &LoadReport, known: u32) -> BTreeMap<u32, &WorkerShare> {
    let numbered = report.workers.iter().filter_map(|(worker, share)| Some((worker.parse().ok()?, share)));
    numbered.filter(|&(worker, share)| worker < known || share.connections + share.requests > 0).collect()
}

fn workers(page: &mut TextReport, report: &LoadReport, shares: &BTreeMap<u32, &WorkerShare>) {
    let Some(evenness) = &report.evenness else {
        // A run that only connects reads no answers.
        if report.requests == 0 || report.first_byte_us.max > 0.0 {
            page.named("workers", "unknown: no answer names its worker (X-Worker: 0 to 65535)".into());
        }
        return;
    };
    let [connections, requests] = ["connections", "requests"].map(|name| page.paint.bold(name));
    page.line(format!("\n{connections} per worker{}", judged("   ", &evenness.connections)));
    bars(page, shares, |share| share.connections, |_| None);
    page.line(format!("\n{requests} per worker{}", judged("      ", &evenness.requests)));
    bars(page, shares, |share| share.requests, |share| share.latency_us.as_ref());
    let idle = report.workers.len() - shares.len();
    if idle > 0 {
        page.line(format!("{idle:>6} more worker{} got nothing", if idle == 1 { "" } else { "s" }));
    }
}

fn judged(gap: &str, evenness: &Evenness) -> String {
    if evenness.workers < 2 || evenness.n == 0 {
        return String::new();
    }
    let p = if evenness.p_value < 0.001 { "p < 0.001".to_string() } else { format!("p = {:.3}", evenness.p_value) };
    format!(
        "{gap}D = {:.2} (0 in turns, 1 by chance), {p}\n{:JUDGED_AT$}max/mean = {:.3} (by chance {:.3})",
        evenness.dispersion, "", evenness.max_over_mean, evenness.expected_max_over_mean_if_random
    )
}

fn bars(
    page: &mut TextReport,
    shares: &BTreeMap<u32, &WorkerShare>,
    count: fn(&WorkerShare) -> u64,
    latency: fn(&WorkerShare) -> Option<&Latency>,
) {
    let most = shares.values().map(|share| count(share)).max().unwrap_or(0).max(1);
    for (worker, share) in shares {
        let bar = bar(count(share) as f64, most as f64, BAR_COLUMNS);
        let rest = BAR_COLUMNS.saturating_sub(bar.chars().count());
        let p99 = latency(share).map(|latency| format!("{:rest$}  p99 {:>6}", "", time(latency.p99)));
        let (count, bar) = (count(share), page.paint.cyan(&bar));
        page.line(format!("{worker:>6} {count:>10} {bar}{}", p99.unwrap_or_default()));
    }
}

/// The workers that took the first connections, in groups of as many as there are workers: round robin shows as equal
/// groups.
fn order(page: &mut TextReport, report: &LoadReport, workers: usize) {
    let takers = &report.order;
    if takers.is_empty() {
        return;
    }
    let columns = page.columns - NAME_COLUMNS;
    let digits = takers.iter().max().map_or(1, |worker| worker.to_string().len());
    // 10 must not look like 1 0.
    let (within, between) = if digits > 1 { (" ", "  ") } else { ("", " ") };
    let workers = workers.max(takers.iter().collect::<BTreeSet<_>>().len());
    let group = workers.min(columns / (digits + within.len()));
    let groups: Vec<String> =
        takers.chunks(group).map(|group| group.iter().map(u32::to_string).collect::<Vec<_>>().join(within)).collect();
    let longest = groups.iter().map(String::len).max().unwrap_or(0);
    let per_line = ((columns + between.len()) / (longest + between.len())).max(1);
    page.line(String::new());
    for (line, groups) in groups.chunks(per_line).take(ORDER_LINES).enumerate() {
        let name = if line == 0 { "order" } else { "" };
        page.named(name, groups.join(between));
    }
    let unseen = takers.len().saturating_sub(ORDER_LINES * per_line * group);
    if unseen > 0 {
        page.named("", format!("and {unseen} more"));
    }
}

fn client(page: &mut TextReport, report: &LoadReport) {
    let client = &report.client;
    let cpu_us = (client.cpu_user_us + client.cpu_system_us) as f64;
    let each_us = cpu_us / report.requests as f64;
    let each = if report.requests > 0 { format!("{each_us:.2}us per request") } else { "nothing answered".into() };
    let (percent, threads) = (client.cpu_share * 100.0, client.threads);
    let cpus = if threads == 1 { "CPU" } else { "CPUs" };
    let mib = client.max_rss_kib as f64 / 1024.0;
    page.line(String::new());
    page.named("client", format!("{percent:.0} % of {threads} {cpus}, {each}, {mib:.1} MiB"));
}

fn trust(page: &mut TextReport, report: &LoadReport) {
    let Some(trust) = &report.trust else { return };
    page.line(String::new());
    if trust.verdict == Verdict::Valid {
        page.line(format!("{}: all {} checks hold", page.paint.bold("valid"), trust.checks.len()));
    }
    let mut failed: Vec<_> = trust.checks.iter().filter(|check| check.verdict > Verdict::Valid).collect();
    // The worst first: it is the verdict.
    failed.sort_by_key(|check| std::cmp::Reverse(check.verdict));
    for check in failed {
        let is_invalid = check.verdict == Verdict::Invalid;
        let said = format!("{}: {} ({})", check.verdict.name(), check.reason, check.name);
        for line in wrapped(&said, page.columns, 2) {
            page.line(if is_invalid { page.paint.red(&line) } else { page.paint.yellow(&line) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{ArrivalsKind, Check, DeadlineCounts, EvennessPair, Lost, RunInfo, Trust, WorstSecond};

    const PLAIN: Paint = Paint { has_colour: false };
    const COLOURED: Paint = Paint { has_colour: true };

    fn plain(report: &LoadReport) -> String {
        render(report, PLAIN, 80)
    }

    /// Of twelve workers, in an open loop; the words for its load need more than one line.
    fn run() -> RunInfo {
        let configuration = Configuration {
            url: "http://127.0.0.1/".into(),
            arrivals: ArrivalsKind::Poisson,
            retry: true,
            workers: 12,
            ..Configuration::default()
        };
        RunInfo { configuration, ..RunInfo::default() }
    }

    /// With something in every block.
    fn full() -> LoadReport {
        let spread = |us: f64| Latency {
            p50: us,
            p90: us * 2.0,
            p99: us * 20.0,
            p99_9: us * 50.0,
            max: us * 100.0,
            mean: us,
            stdev: us,
        };
        let share = |requests| WorkerShare { connections: 5, requests, latency_us: Some(spread(100.0)) };
        let workers: BTreeMap<_, _> = (0..12).map(|worker| (worker.to_string(), share(10 + worker))).collect();
        let evenness = Evenness { workers: 12, n: 60, dispersion: 12345.67, ..Evenness::default() };
        LoadReport {
            run: Some(run()),
            qps: 1234.5,
            latency_us: spread(1000.0),
            service_us: spread(100.0),
            connect_us: spread(12.0),
            first_byte_us: spread(90.0),
            send_delay_us: spread(0.1),
            offered_per_s: Some(2469.0),
            censored: 3,
            retried: 7,
            lost: vec![
                Lost {
                    at_s: 123.456,
                    client: Some("[fe80::1234:5678:9abc]:54321".into()),
                    cause: "read ECONNRESET".into(),
                    worker: Some(65_000)
                };
                6
            ],
            lost_more: 11,
            worst_second: Some(WorstSecond { from_s: 3.0, requests: 5, latency_us: spread(100.0) }),
            longest_silence_ms: Some(52),
            deadline: Some(DeadlineCounts { shed: 4, abandoned: 5 }),
            pipeline: Some(16),
            workers,
            evenness: Some(EvennessPair { connections: evenness.clone(), requests: evenness }),
            order: (0..24).map(|i| i % 12).collect(),
            slow: vec![SlowCounts {
                kind: "send".into(),
                requested: 100,
                established: 100,
                closed_by_server: 99,
                closed_after_ms: Some(30_001.0),
                ..SlowCounts::default()
            }],
            trust: Some(Trust {
                verdict: Verdict::Invalid,
                checks: [("send_delay", Verdict::Suspect), ("gaps", Verdict::Valid), ("rate", Verdict::Invalid)]
                    .map(|(name, verdict)| Check {
                        name: name.into(),
                        verdict,
                        reason: format!(
                            "a reason of {name} with so many words that a line cannot hold all {}",
                            "of them ".repeat(5)
                        ),
                    })
                    .into(),
            }),
            ..LoadReport::default()
        }
    }

    #[test]
    fn every_line_fits_into_the_terminal() {
        for columns in [80, 100] {
            for line in render(&full(), PLAIN, columns).lines() {
                assert!(line.chars().count() <= columns, "{line}");
            }
        }
    }

    #[test]
    fn what_a_reader_must_not_overlook_is_said() {
        let text = plain(&full());
        for said in [
            "2469.0 were due per second; 50.00 % of that was answered",
            "16 requests under way on each connection: compare",
            "worst second: p99 2.00ms, from 3 s on; longest silence: 52.0ms",
            "retried      7 sent once more",
            "lost         123.456 s from [fe80::1234:5678:9abc]:54321: read ECONNRESET",
            "and 13 more (--format json names them)",
            "censored     3 without an answer",
            "deadline     4 shed before they were sent, 5 abandoned after",
            "slow send    100 asked for, 100 established, 0 answered, 99 closed after 30.0s",
            "first byte",
            "p99 2.00ms",
            "order        0 1 2 3 4 5 6 7 8 9 10 11  0 1 2",
        ] {
            assert!(text.contains(said), "{said:?} is not in\n{text}");
        }
        let nothing = plain(&LoadReport::default());
        for unsaid in [
            "censored",
            "retried",
            "lost",
            "worst",
            "deadline",
            "under way",
            "slow",
            "order",
            "due per second",
            "valid",
        ] {
            assert!(!nothing.contains(unsaid), "{unsaid:?} is in\n{nothing}");
        }
        assert!(nothing.contains("unknown: no answer names its worker"));
    }

    #[test]
    fn a_worker_with_a_high_number_does_not_bring_empty_lines_for_all_below_it() {
        let mut report = full();
        let busy = report.workers["3"];
        report.workers = (0..=65_000).map(|worker: u32| (worker.to_string(), WorkerShare::default())).collect();
        report.workers.insert("65000".into(), busy);
        report.order = vec![65_000; 24];
        let text = plain(&report);
        assert!(text.lines().count() < 100 && text.lines().all(|line| line.chars().count() <= 80), "{text}");
        // Twelve are known to be there.
        assert!(text.contains("\n    11          0 \n") && text.contains("\n 65000          5 "), "{text}");
        assert!(text.contains("\n 64988 more workers got nothing\n"), "{text}");
    }

    #[test]
    fn turns_look_like_turns() {
        let mut report = full();
        report.workers.retain(|worker, _| worker.parse::<u32>().unwrap() < 4);
        report.order = (0..12).map(|i| i % 4).collect();
        assert!(plain(&report).contains("order        0123 0123 0123\n"));
        report.order = vec![2; 1000];
        assert!(plain(&report).contains("and "));
    }

    #[test]
    fn a_spectrum_runs_from_the_median_to_the_maximum_on_a_logarithmic_axis() {
        let mut page = TextReport { text: String::new(), paint: PLAIN, columns: 80 };
        let latency = Latency { p50: 10.0, p90: 100.0, p99: 1000.0, p99_9: 1e4, max: 1e5, ..Latency::default() };
        spectrum(&mut page, &[("response", &latency)]);
        let lines: Vec<&str> = page.text.lines().collect();
        assert!(lines[0].ends_with("|10us          |100us         |1ms           |10ms          |100ms"));
        let count = |shade| lines[1].chars().filter(|&c| c == shade).count();
        assert_eq!(['█', '▓', '▒', '░'].map(count), [16, 15, 15, 15]);
        spectrum(&mut page, &[("nothing", &Latency::default())]);
        assert!(!page.text.contains("nothing"));
    }

    #[test]
    fn the_verdict_comes_last_and_its_worst_reason_first() {
        let text = render(&full(), COLOURED, 80);
        let end = text.split("MiB\n\n").nth(1).unwrap();
        assert!(end.starts_with("\x1b[31minvalid: a reason of rate"), "{end}");
        assert!(end.contains("\x1b[33msuspect: a reason of send_delay") && !end.contains("gaps"), "{end}");
        let checks = vec![Check::default(); 7];
        let trust = Some(Trust { verdict: Verdict::Valid, checks });
        let text = plain(&LoadReport { trust, ..LoadReport::default() });
        assert!(text.ends_with("valid: all 7 checks hold\n"), "{text}");
    }

    #[test]
    fn colour_only_where_it_is_asked_for() {
        let mut report = LoadReport::default();
        report.errors.timeout = 3;
        assert!(render(&report, COLOURED, 80).contains("\x1b[31munanswered 3\x1b[0m"));
        assert!(!plain(&report).contains('\x1b'));
    }
}
