//! What each number of the report means, and its formula (`--explain`). In the order of the text report; every number
//! is named as the JSON names it, and a test holds that none is left out.

use std::fmt::Write;

use crate::load::verdict;

/// Columns of a definition, and its indentation.
const WIDTH: usize = 92;
const INDENT: &str = "      ";

/// A part of the report: its numbers by the name they have in the JSON (`*` is any name, `[]` any element), and what
/// they are.
struct Section {
    title: &'static str,
    numbers: &'static [(&'static str, &'static str)],
}

const SECTIONS: &[Section] = &[
    Section {
        title: "Rate",
        numbers: &[
            ("qps", "Requests per second: requests / duration_s."),
            (
                "requests",
                "Answers that were complete within the measured window, whatever their status. With --connect-only \
                 the connections established in it.",
            ),
            (
                "duration_s",
                "Length of the measured window: without the warm-up, and without the wait for the last answers.",
            ),
            (
                "offered_per_s",
                "Open loop: requests due in the measured window / duration_s; of a number of requests n: (n - 1) / the \
                 time from the window's beginning to the last due time. Above qps, the rest failed, was given up, \
                 or is behind.",
            ),
            ("outside_window.warmup", "Answers before the measured window; in no other number."),
            (
                "outside_window.late",
                "Answers after the window to requests that were due in it: in the times, not in qps.",
            ),
            (
                "pipeline",
                "Requests under way on one connection at a time (--pipeline). Not to be compared with one at a time.",
            ),
        ],
    },
    Section {
        title: "Times, in microseconds",
        numbers: &[
            (
                "latency_us",
                "Response time: from the moment a request was due to the last byte of its answer. Open loop: due when \
                 the schedule says, however late it was sent, so that a stall is felt by all who would have come \
                 (coordinated omission accounted for: Tene); response = slip + service. Closed loop, with --think too: \
                 the service time; slip is not in it. A request that failed or was given up is in it with its age then.",
            ),
            (
                "service_us",
                "Service time: from the moment the request was sent. What a client sees that waits for each answer \
                 before it asks again. A request that was never sent has none.",
            ),
            (
                "first_byte_us",
                "From the moment the request was sent to the moment the first bytes of its answer were read. Of an \
                 answer that comes in one piece it is the service time; a request of which no byte came has none.",
            ),
            (
                "connect_us",
                "From connect(2) to the established connection, over the whole run, without the idle crowd; a \
                 handshake that timed out, or that the end of the run cut short, with its age then. The kernel \
                 answers for the server: it does not tell when somebody accepts.",
            ),
            (
                "slip_us",
                "How late a request was sent: sent - due. The client's own lateness and the wait for a free \
                 connection. Zero in closed loop without --think.",
            ),
            (
                "*_us.p50",
                "Median: half of the times are at most this. HDR histogram, three digits: 0.1 % high at most.",
            ),
            ("*_us.p90", "90 of 100 are at most this."),
            (
                "*_us.p99",
                "99 of 100 are at most this. It rests on that hundredth of the answers that took longer.",
            ),
            (
                "*_us.p99_9",
                "999 of 1000 are at most this. It rests on that thousandth of the answers that took longer.",
            ),
            ("*_us.max", "The longest."),
            ("*_us.mean", "Sum / n."),
            (
                "*_us.stdev",
                "sqrt(sum of (x - mean)^2 / n). Latencies are skewed: no percentile follows from it.",
            ),
            (
                "worst_second.from_s",
                "The second of the window with the highest p99 (of the first hour), as it ended: when it began.",
            ),
            ("worst_second.requests", "How many requests ended in it."),
            (
                "worst_second.latency_us",
                "Their response times; one that failed at its age. To one digit: 6 % high at most.",
            ),
            (
                "longest_silence_ms",
                "The longest part of the window (of its first hour) without any complete answer, in whole milliseconds.",
            ),
            (
                "censored",
                "Times that are ages: no answer came, and it would have taken longer than this. Percentiles beyond \
                 their share are lower bounds.",
            ),
        ],
    },
    Section {
        title: "Errors, of the whole run",
        numbers: &[
            ("errors.connect.*", "Connections that failed, by errno."),
            ("errors.write.*", "Requests that could not be sent, by errno."),
            ("errors.read.*", "Answers that did not come or were none: errno, eof, malformed, ..."),
            ("errors.status.*", "Complete answers outside 2xx, by status. They count among requests too."),
            (
                "errors.timeout",
                "Requests due or sent that were not answered within --timeout or before the end.",
            ),
            (
                "deadline.shed",
                "Older than --deadline before they could be sent, and never sent: the user has gone.",
            ),
            ("deadline.abandoned", "Under way when --deadline was over: sent, and given up."),
            (
                "retried",
                "Requests that went out once more (--retry): before any byte of the answer the server had closed a \
                 connection that had answered before (RFC 9112, 9.3.1). No errors, unless the second try failed: that \
                 is one. Their time counts from the first try.",
            ),
            (
                "lost[].at_s",
                "A request without an answer (those in errors.write, errors.read and errors.timeout): when that was \
                 clear, in seconds from the start of the run. The first 10,000.",
            ),
            ("lost[].client", "The address of its connection at our end, by which the server knows it."),
            ("lost[].cause", "The phase and the cause."),
            ("lost[].worker", "The X-Worker of the last answer on its connection."),
            ("lost_more", "How many more were lost."),
        ],
    },
    Section {
        title: "Connections, of the whole run",
        numbers: &[
            ("connections.requested", "Asked for: --connections and --idle."),
            (
                "connections.peak_open",
                "The most that were open at one time on each thread, added up (and of each client, in a sum).",
            ),
            ("connections.established", "connect(2) calls that ended in a connection."),
            (
                "connections.answered",
                "Of them, those that got an answer: the ones a worker can have counted. The sum of \
                 workers.*.connections.",
            ),
            (
                "connections.crowd_lost",
                "Members of the idle crowd that the server had closed before the end.",
            ),
            ("slow[].kind", "Deliberately slow clients: send, read or half-open."),
            ("slow[].requested", "How many were asked for."),
            ("slow[].established", "How many got a connection."),
            ("slow[].answered", "How many got a complete answer, however slowly."),
            ("slow[].closed_by_server", "How many the server ended before they were done."),
            ("slow[].closed_after_ms", "The median time until it did."),
        ],
    },
    Section {
        title: "Workers, by X-Worker",
        numbers: &[
            (
                "workers.*.connections",
                "Connections whose first answer named this worker; warm-up included, since a connection keeps its worker.",
            ),
            ("workers.*.requests", "Answers of this worker in the measured window."),
            ("workers.*.latency_us", "Response time of its answers; of the first workers alone."),
            (
                "evenness.*.dispersion",
                "D = X^2 / (k - 1), with X^2 = sum of (count - n/k)^2 / (n/k) over the k workers. About 0: in turns; \
                 about 1: by chance, as a hash does; far above 1: a pile-up. It does not change its meaning with n. \
                 For connections; requests come in clusters and have no such scale.",
            ),
            (
                "evenness.*.p_value",
                "Twice the smaller tail of chi-square with k - 1 degrees of freedom, and at most 1 (up to 10^4 simulations \
                 where n/k < 5). Small: more uneven than chance, or more even than chance; D tells which (above or \
                 below 1).",
            ),
            ("evenness.*.max_over_mean", "The busiest worker's count / (n/k)."),
            (
                "evenness.*.jain",
                "Jain's index (sum x)^2 / (k * sum x^2) = 1 / (1 + CV^2): 1 is even, 1/k all on one. Near 1 by chance too.",
            ),
            (
                "evenness.*.cv",
                "Coefficient of variation: standard deviation / mean of the counts; X^2 = n * CV^2.",
            ),
            (
                "evenness.*.expected_max_over_mean_if_random",
                "What chance gives: 1 + E_k * sqrt(k/n), E_k the expected maximum of k standard normals (1.03, 1.42, \
                 1.77 for k = 4, 8, 16: Harter 1961).",
            ),
            ("evenness.*.workers", "k: the highest worker number seen + 1, or --workers if that is more."),
            ("evenness.*.n", "What was shared: connections, or requests."),
            (
                "order[]",
                "The workers that took the first connections, in the order of their first answers (--order).",
            ),
        ],
    },
    Section {
        title: "Client",
        numbers: &[
            ("client.threads", "Measuring threads."),
            ("client.cpu_user_us", "CPU time of this process in the measured window, in user space."),
            (
                "client.cpu_system_us",
                "The same in the kernel. On a loopback the sender also does the receiver's protocol work.",
            ),
            (
                "client.cpu_share",
                "(cpu_user_us + cpu_system_us) / (duration_s * threads * 10^6). Near 1 the client may be the limit: \
                 see loadgen calibrate. With --busy-poll it is always 1.",
            ),
            ("client.max_rss_kib", "The most memory that was resident at one time."),
        ],
    },
    Section {
        title: "Trust",
        numbers: &[
            (
                "trust.verdict",
                "The worst of the checks: valid; suspect, look closer before you quote it; invalid, the run did not \
                 measure what was asked for.",
            ),
            (
                "trust.checks[].name",
                "One of the checks below; those that do not apply to a run are left out.",
            ),
            ("trust.checks[].verdict", "Whether the run is within its bar."),
            ("trust.checks[].reason", "What was found, and the bar it was held to."),
        ],
    },
    Section {
        title: "Single answers (--trace)",
        numbers: &[
            ("trace[].at_us", "When the answer was complete, from the start of the run."),
            ("trace[].status", "Its status."),
            ("trace[].bytes", "Bytes of its body."),
            ("trace[].worker", "Its X-Worker."),
            ("trace[].latency_us", "Its response time."),
        ],
    },
    Section {
        title: "Origin",
        numbers: &[
            ("schema", "The version of this document."),
            ("run.host", "The machine the client ran on."),
            (
                "run.started_unix_ns",
                "When the warm-up began: nanoseconds since 1970 by that machine's clock.",
            ),
            ("run.start_at_unix_ns", "When it should have begun (--start-at)."),
            ("run.seed", "Of everything random: the same seed gives the same due times."),
            (
                "run.configuration",
                "The flags that decide what is measured; results with equal ones can be merged.",
            ),
            ("run.interrupted", "Ended early, by Ctrl-C or since the server was gone."),
            ("run.merged_from", "How many results loadgen merge added up to this one."),
            ("run.parts[].host", "The machine of one of those results,"),
            ("run.parts[].started_unix_ns", "when it began,"),
            ("run.parts[].seed", "and its seed: none is added twice."),
        ],
    },
];

/// All definitions.
pub fn explain() -> String {
    let mut text = String::from(
        "Every number of the report by its name in the JSON (--format json). Counts are totals; times end in their unit.\n",
    );
    for section in SECTIONS {
        let _ = writeln!(text, "\n{}", section.title.to_uppercase());
        section.numbers.iter().for_each(|(name, definition)| define(&mut text, name, definition));
        if section.title == "Trust" {
            verdict::bars()
                .iter()
                .for_each(|(name, bar)| define(&mut text, &format!("check {name}"), &format!("{bar}.")));
        }
    }
    text
}

fn define(text: &mut String, name: &str, definition: &str) {
    let _ = write!(text, "  {name}");
    let mut column = usize::MAX;
    for word in definition.split_whitespace() {
        if column.saturating_add(1 + word.len()) > WIDTH {
            let _ = write!(text, "\n{INDENT}{word}");
            column = word.len();
        } else {
            let _ = write!(text, " {word}");
            column += 1 + word.len();
        }
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{
        Check, DeadlineBook, Evenness, EvennessPair, Latency, LoadReport, Lost, RunInfo, RunPart, SlowBook,
        Traced, Trust, WorkerShare, WorstSecond,
    };
    use serde_json::Value;

    /// A report in which nothing is absent.
    fn full() -> LoadReport {
        let mut report = LoadReport {
            offered_per_s: Some(1.0),
            deadline: Some(DeadlineBook::default()),
            pipeline: Some(2),
            evenness: Some(EvennessPair { connections: Evenness::default(), requests: Evenness::default() }),
            trace: vec![Traced { worker: Some(1), ..Traced::default() }],
            order: vec![1],
            lost: vec![Lost { client: Some("x".into()), worker: Some(1), ..Lost::default() }],
            worst_second: Some(WorstSecond::default()),
            longest_silence_ms: Some(1),
            slow: vec![SlowBook { closed_after_ms: Some(1.0), ..SlowBook::default() }],
            trust: Some(Trust { checks: vec![Check::default()], ..Trust::default() }),
            run: Some(RunInfo {
                start_at_unix_ns: Some(1),
                merged_from: Some(2),
                parts: vec![RunPart::default()],
                ..RunInfo::default()
            }),
            ..LoadReport::default()
        };
        let share = WorkerShare { latency_us: Some(Latency::default()), ..WorkerShare::default() };
        report.workers.insert("0".into(), share);
        let errors = &mut report.errors;
        for phase in [&mut errors.connect, &mut errors.write, &mut errors.read, &mut errors.status] {
            phase.insert("x".into(), 1);
        }
        report
    }

    fn leaves(value: &Value, path: String, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, value)| {
                let separator = if path.is_empty() { "" } else { "." };
                leaves(value, format!("{path}{separator}{name}"), found);
            }),
            Value::Array(elements) => {
                elements.iter().for_each(|value| leaves(value, format!("{path}[]"), found))
            }
            _ => found.push(path),
        }
    }

    fn matches(pattern: &str, path: &str) -> bool {
        let (pattern, path): (Vec<&str>, Vec<&str>) =
            (pattern.split('.').collect(), path.split('.').collect());
        let fits = |(wanted, found): (&&str, &&str)| {
            wanted.strip_prefix('*').map_or(wanted == found, |end| found.ends_with(end))
        };
        pattern.len() == path.len() && pattern.iter().zip(&path).all(fits)
    }

    fn names() -> impl Iterator<Item = &'static str> {
        SECTIONS.iter().flat_map(|section| section.numbers).map(|(name, _)| *name)
    }

    /// A percentile is explained when its distribution and the percentile both are.
    fn is_explained(path: &str) -> bool {
        if names().any(|name| !name.starts_with("*_us") && matches(name, path)) {
            return true;
        }
        let Some((distribution, _)) = path.rsplit_once('.') else { return false };
        let last_two = path.rsplitn(3, '.').take(2).collect::<Vec<_>>();
        let tail = format!("{}.{}", last_two[1], last_two[0]);
        names().any(|name| matches(name, distribution))
            && names().any(|name| name.starts_with("*_us") && matches(name, &tail))
    }

    #[test]
    fn every_number_of_the_report_is_explained_and_nothing_else() {
        let mut paths = Vec::new();
        leaves(&serde_json::to_value(full()).unwrap(), String::new(), &mut paths);
        assert!(paths.len() > 80, "{}", paths.len());
        let missing: Vec<&String> = paths.iter().filter(|path| !is_explained(path)).collect();
        assert!(missing.is_empty(), "not explained: {missing:?}");
        let is_of_report = |name: &str| {
            paths.iter().any(|path| {
                let tail = path
                    .rsplitn(3, '.')
                    .take(2)
                    .collect::<Vec<_>>()
                    .into_iter()
                    .rev()
                    .collect::<Vec<_>>()
                    .join(".");
                let distribution = path.rsplit_once('.').map_or("", |(distribution, _)| distribution);
                matches(name, path) || matches(name, &tail) || matches(name, distribution)
            })
        };
        let stale: Vec<&str> = names().filter(|name| !is_of_report(name)).collect();
        assert!(stale.is_empty(), "explained, and not there: {stale:?}");
    }

    #[test]
    fn every_check_is_explained_and_lines_are_short() {
        let text = explain();
        for (name, _) in verdict::bars() {
            assert!(text.contains(&format!("check {name}\n")), "{name}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 120), "{text}");
    }
}
