//! The report for people: the same numbers, in shapes. Pure: a report in, a text out.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::report::{Evenness, Latency, LoadReport, Traced};

/// Columns of the longest bar.
const BAR_COLUMNS: f64 = 40.0;
/// From this share of its threads' time on the client may be what limits the figures.
const BUSY_CLIENT: f64 = 0.9;

/// What the report itself does not say.
pub struct Heading<'a> {
    pub url: String,
    pub load: String,
    pub method: &'a str,
    pub path: &'a str,
    pub open_loop: bool,
    /// Standard output is a terminal.
    pub colour: bool,
}

pub fn render(report: &LoadReport, heading: &Heading) -> String {
    let mut text = String::new();
    let paint = Paint { colour: heading.colour };
    trace(&mut text, &report.trace, heading);
    let _ = writeln!(text, "{}\n{}\n", paint.bold(&heading.url), heading.load);
    rate(&mut text, report, &paint);
    latencies(&mut text, report, heading.open_loop);
    errors(&mut text, report, &paint);
    connections(&mut text, report);
    workers(&mut text, report, &paint);
    client(&mut text, report, &paint);
    text
}

struct Paint {
    colour: bool,
}

impl Paint {
    fn bold(&self, text: &str) -> String {
        self.sgr("1", text)
    }

    fn red(&self, text: &str) -> String {
        self.sgr("31", text)
    }

    fn cyan(&self, text: &str) -> String {
        self.sgr("36", text)
    }

    /// Select Graphic Rendition (ECMA-48, 8.3.117).
    fn sgr(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
    }
}

/// As siege prints it.
fn trace(text: &mut String, trace: &[Traced], heading: &Heading) {
    for answer in trace {
        let _ = writeln!(
            text,
            "HTTP/1.1 {} {:6.2} secs: {:7} bytes ==> {:4} {}",
            answer.status,
            answer.latency_us / 1e6,
            answer.bytes,
            heading.method,
            heading.path
        );
    }
    if !trace.is_empty() {
        text.push('\n');
    }
}

fn rate(text: &mut String, report: &LoadReport, paint: &Paint) {
    let qps = paint.bold(&format!("{:.1} requests/s", report.qps));
    let _ = writeln!(text, "{qps}   {} answers in {:.3} s", report.requests, report.duration_s);
    let outside = &report.outside_window;
    if outside.warmup + outside.late > 0 {
        let _ =
            writeln!(text, "beside them {} in the warm-up, {} after the end", outside.warmup, outside.late);
    }
    text.push('\n');
}

fn latencies(text: &mut String, report: &LoadReport, open_loop: bool) {
    let _ = writeln!(
        text,
        "{:10}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}",
        "", "p50", "p90", "p99", "p99.9", "max", "mean", "stdev"
    );
    if open_loop {
        // From due, and from sent: the difference is what the client's own waiting would have hidden.
        row(text, "response", &report.latency_us);
        row(text, "service", &report.service_us);
    } else {
        row(text, "latency", &report.latency_us);
    }
    row(text, "connect", &report.connect_us);
    text.push('\n');
}

fn row(text: &mut String, name: &str, latency: &Latency) {
    let columns =
        [latency.p50, latency.p90, latency.p99, latency.p99_9, latency.max, latency.mean, latency.stdev];
    let cells: String = columns.iter().map(|&us| format!("{:>10}", time(us))).collect();
    let _ = writeln!(text, "{name:10}{cells}");
}

/// Three digits and the unit that makes them readable.
pub(crate) fn time(us: f64) -> String {
    let (value, unit) = match us {
        us if us < 999.5 => (us, "us"),
        us if us < 999.5e3 => (us / 1e3, "ms"),
        us => (us / 1e6, "s"),
    };
    let decimals = match value {
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}{unit}")
}

fn errors(text: &mut String, report: &LoadReport, paint: &Paint) {
    let errors = &report.errors;
    let mut parts = Vec::new();
    let phases = [
        ("connect", &errors.connect),
        ("write", &errors.write),
        ("read", &errors.read),
        ("status", &errors.status),
    ];
    for (phase, counts) in phases {
        parts.extend(counts.iter().map(|(cause, count)| format!("{phase} {cause} {count}")));
    }
    if errors.timeout > 0 {
        parts.push(format!("unanswered {}", errors.timeout));
    }
    let line = if parts.is_empty() { "none".into() } else { paint.red(&parts.join(", ")) };
    let _ = writeln!(text, "errors       {line}");
}

fn connections(text: &mut String, report: &LoadReport) {
    let book = &report.connections;
    let _ = write!(
        text,
        "connections  {} asked for, {} open at most, {} established, {} answered",
        book.requested, book.peak_open, book.established, book.answered
    );
    if book.crowd_lost > 0 {
        let _ = write!(text, "; the server closed {} of the idle crowd", book.crowd_lost);
    }
    text.push('\n');
}

fn workers(text: &mut String, report: &LoadReport, paint: &Paint) {
    let Some(evenness) = &report.evenness else {
        text.push_str("workers      unknown: the answers carry no X-Worker\n");
        return;
    };
    let connections: BTreeMap<u32, u64> = by_number(report, |share| share.connections);
    let requests: BTreeMap<u32, u64> = by_number(report, |share| share.requests);
    for (name, counts, evenness) in
        [("connections", &connections, &evenness.connections), ("requests", &requests, &evenness.requests)]
    {
        let _ = writeln!(text, "\n{} per worker{}", paint.bold(name), judged(evenness));
        bars(text, counts, paint);
    }
}

/// The JSON's keys are text, and "10" would come before "2".
fn by_number(report: &LoadReport, count: fn(&crate::report::WorkerShare) -> u64) -> BTreeMap<u32, u64> {
    report.workers.iter().filter_map(|(worker, share)| Some((worker.parse().ok()?, count(share)))).collect()
}

fn judged(evenness: &Evenness) -> String {
    if evenness.workers < 2 || evenness.n == 0 {
        return String::new();
    }
    format!(
        "   D = {:.2} (0 in turns, 1 by chance), p = {:.3}, max/mean = {:.3} (by chance {:.3})",
        evenness.dispersion,
        evenness.p_value,
        evenness.max_over_mean,
        evenness.expected_max_over_mean_if_random
    )
}

fn bars(text: &mut String, counts: &BTreeMap<u32, u64>, paint: &Paint) {
    let most = counts.values().copied().max().unwrap_or(0).max(1);
    for (worker, &count) in counts {
        let bar = bar(count as f64 / most as f64 * BAR_COLUMNS);
        let _ = writeln!(text, "{worker:>6} {count:>10} {}", paint.cyan(&bar));
    }
}

/// A bar in eighths of a column (Unicode block elements).
pub(crate) fn bar(columns: f64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (columns * 8.0).round() as usize;
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}

fn client(text: &mut String, report: &LoadReport, paint: &Paint) {
    let client = &report.client;
    let cpu_us = (client.cpu_user_us + client.cpu_system_us) as f64;
    let per_request_us = cpu_us / report.requests.max(1) as f64;
    let _ = writeln!(
        text,
        "\nclient       {:.0} % of {} CPU{}, {per_request_us:.2}us per request, {:.1} MiB",
        client.cpu_share * 100.0,
        client.threads,
        if client.threads == 1 { "" } else { "s" },
        client.max_rss_kib as f64 / 1024.0
    );
    if client.cpu_share > BUSY_CLIENT {
        let advice = "the client is busy: it may be the limit, not the server; try more --threads";
        let _ = writeln!(text, "             {}", paint.red(advice));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_and_the_unit_that_suits_them() {
        for (us, expected) in [
            (0.0, "0.00us"),
            (9.994, "9.99us"),
            (9.996, "10.0us"),
            (99.96, "100us"),
            (999.6, "1.00ms"),
            (30_390.0, "30.4ms"),
            (3_010_000.0, "3.01s"),
            (3_600_000_000.0, "3600s"),
        ] {
            assert_eq!(time(us), expected);
        }
    }

    #[test]
    fn bars_are_drawn_in_eighths_of_a_column() {
        assert_eq!(bar(0.0), "");
        assert_eq!(bar(1.5), "█▌");
        assert_eq!(bar(2.0), "██");
    }

    #[test]
    fn colour_only_where_it_is_asked_for() {
        let mut report = LoadReport::default();
        report.errors.timeout = 3;
        let heading = |colour| Heading {
            url: "http://127.0.0.1/".into(),
            load: String::new(),
            method: "GET",
            path: "/",
            open_loop: false,
            colour,
        };
        assert!(render(&report, &heading(true)).contains("\x1b[31munanswered 3\x1b[0m"));
        assert!(!render(&report, &heading(false)).contains('\x1b'));
    }
}
