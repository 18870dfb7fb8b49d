//! Every number that anything prints, defined once. The text report takes its names from here, `loadgen --explain` and
//! `lab explain` print the definitions, a table of the lab takes its headers and the notes below it, and
//! `schema/loadgen.schema.json` and `schema/inspect.schema.json` their descriptions (a test compares them).
//!
//! A number of a document is named by the way to it: `workers.*.requests`, where `*` is any name, and `lost[].at_s`,
//! where `[]` is any element. A number that only the lab computes has the name that a matrix gives its column.

#[derive(Debug, Clone, Copy)]
pub struct Metric {
    pub key: &'static str,
    /// As reports and tables print it, without the unit.
    pub name: &'static str,
    /// Empty for a count, a ratio or a text; `/connection` and the like are written directly behind the name.
    pub unit: &'static str,
    /// What it is, or its formula, in one sentence.
    pub definition: &'static str,
    /// What a reader must know to use it; only `--explain` prints it.
    pub remark: &'static str,
}

pub struct Section {
    pub title: &'static str,
    pub metrics: &'static [Metric],
}

const fn metric(key: &'static str, name: &'static str, unit: &'static str, definition: &'static str) -> Metric {
    Metric { key, name, unit, definition, remark: "" }
}

impl Metric {
    const fn but(self, remark: &'static str) -> Metric {
        Metric { remark, ..self }
    }

    pub fn header(&self) -> String {
        let blank = if self.unit.is_empty() || self.unit.starts_with('/') { "" } else { " " };
        format!("{}{blank}{}", self.name, self.unit)
    }

    /// `12 µs`, but `12 requests/s` and `12 deaths`.
    fn unit_in_text(&self) -> String {
        if self.unit.is_empty() || self.unit.starts_with('/') { self.header() } else { self.unit.to_string() }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Meaning {
    pub header: String,
    /// What follows the number in a sentence: `µs`, `requests/s`; of a number without a unit its name.
    pub unit: String,
    pub definition: String,
}

/// The meaning of a metric by its key, or of one statistic of a distribution: `send_delay_us.p99`.
///
/// # Panics
/// When there is no such metric: keys are constants of this program.
pub fn meaning(key: &str) -> Meaning {
    if let Some(metric) = find(key) {
        return Meaning { header: metric.header(), unit: metric.unit_in_text(), definition: metric.definition.into() };
    }
    let parts = key.rsplit_once('.').and_then(|(of, statistic)| Some((find(of)?, find(&format!("*_us.{statistic}"))?)));
    let (of, statistic) = parts.unwrap_or_else(|| panic!("no metric is named {key}"));
    // A table's times are response times where nothing else is said.
    let of_what = if of.key == "latency_us" { String::new() } else { format!("{} ", of.name) };
    Meaning {
        header: format!("{of_what}{}", statistic.header()),
        unit: statistic.unit_in_text(),
        definition: format!("{} {}", of.definition, statistic.definition),
    }
}

pub fn find(key: &str) -> Option<&'static Metric> {
    let all = [REPORT, INTERVAL, TABLES, INSPECT];
    all.into_iter().flatten().flat_map(|section| section.metrics).find(|m| m.key == key)
}

pub fn name(key: &str) -> &'static str {
    find(key).unwrap_or_else(|| panic!("no metric is named {key}")).name
}

/// What `loadgen --format json` prints, in the order of the text report.
#[rustfmt::skip]
pub static REPORT: &[Section] = &[
    Section { title: "Rate", metrics: &[
        metric("qps", "requests", "/s",
            "Requests answered in the measured window, per second of it: requests / duration_s."),
        metric("requests", "answered", "",
            "Requests that were answered completely in the measured window, whatever the status.")
            .but("Where no request is sent, the connections established in it."),
        metric("duration_s", "duration", "s",
            "Length of the measured window, without the warm-up and without the wait for the last answers.")
            .but("In a sum, the longest of its parts."),
        metric("offered_per_s", "offered", "/s",
            "Open loop: requests due in the measured window / duration_s.")
            .but("If a number of requests n ends the run: (n - 1) / the time from the start of the window to the last due \
                  time. What is offered and not in qps failed, was given up, or is late."),
        metric("outside_window.warmup", "in the warm-up", "",
            "Answers before the measured window; no other number contains them."),
        metric("outside_window.late", "after the end", "",
            "Answers after the window to requests that were due in it: the times contain them, qps does not."),
        metric("pipeline", "pipeline", "",
            "Requests under way on one connection at a time (--pipeline), where that is more than one.")
            .but("Do not compare such a run with one that waits for each answer."),
    ]},
    Section { title: "Times, in microseconds", metrics: &[
        metric("latency_us", "response", "µs",
            "Response time: from the moment a request was due to the last byte of its answer, or until it failed or was given up.")
            .but("Open loop: due when the schedule says, even if it was sent later, so that a stall of the server counts \
                  for all requests that were due in it (no coordinated omission: Tene); response = send delay + service. \
                  Closed loop, with --think too: the service time, without send delay."),
        metric("service_us", "service", "µs",
            "Service time: from the moment a request was sent to the last byte of its answer.")
            .but("What a client sees that waits for each answer before it sends the next request. A request that was \
                  never sent has none."),
        metric("first_byte_us", "first byte", "µs",
            "From the moment a request was sent to the first bytes of its answer.")
            .but("For an answer that arrives in one piece it is the service time. A request without any byte of an answer \
                  has none."),
        metric("connect_us", "connect", "µs",
            "From connect(2) to the established connection, or until the handshake timed out or the run ended; in the whole run, \
             without the idle connections.")
            .but("The kernel answers for the server: this does not show when a process accepts."),
        metric("send_delay_us", "send delay", "µs",
            "How late a request was sent: sent - due.")
            .but("The delay of the client itself and the wait for a free connection. Zero in a closed loop without \
                  --think."),
        metric("*_us.p50", "p50", "µs", "The median: half of the times are at most this.")
            .but("From an HDR histogram with three digits: at most 0.1 % too high."),
        metric("*_us.p90", "p90", "µs", "90 of 100 are at most this."),
        metric("*_us.p99", "p99", "µs", "99 of 100 are at most this.")
            .but("It depends on the hundredth of the answers that took longer."),
        metric("*_us.p99_9", "p99.9", "µs", "999 of 1000 are at most this.")
            .but("It depends on the thousandth of the answers that took longer."),
        metric("*_us.max", "max", "µs", "The longest."),
        metric("*_us.mean", "mean", "µs", "Their sum / n."),
        metric("*_us.stdev", "stdev", "µs", "The standard deviation, sqrt(sum of (x - mean)^2 / n).")
            .but("Latencies are skewed: no percentile follows from it."),
        metric("latency_quantiles_us[]", "quantiles", "µs",
            "The response times at 1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 99.9 and 100 % of the requests.")
            .but("The curve of their distribution."),
        metric("time_series.interval_s", "interval", "s",
            "The window in at most 128 equal intervals, the last perhaps shorter: the length of one."),
        metric("time_series.answered[]", "answered in the interval", "", "Requests answered in each interval."),
        metric("time_series.p99_us[]", "p99 in the interval", "µs",
            "The p99 of the response times of the requests that ended in each interval; 0 where none did.")
            .but("To one digit: at most 6 % too high."),
        metric("worst_second.from_s", "worst second from", "s",
            "The second of the window with the highest p99 (of the first hour): when it began, from the start of the window."),
        metric("worst_second.requests", "worst second requests", "",
            "How many requests ended in that second."),
        metric("worst_second.latency_us", "worst second", "µs",
            "The response times of the requests that ended in the second of the window with the highest p99.")
            .but("To one digit: at most 6 % too high."),
        metric("longest_silence_ms", "longest silence", "ms",
            "The longest part of the measured window (of its first hour) in which no answer was complete, in whole \
             milliseconds."),
        metric("censored", "censored", "",
            "Times that are ages: no answer came, and it would have taken longer than this.")
            .but("A percentile beyond their share is a lower bound."),
    ]},
    Section { title: "Errors, of the whole run", metrics: &[
        metric("errors.connect.*", "connect errors", "", "Connections that failed, by errno."),
        metric("errors.write.*", "write errors", "", "Requests that could not be sent, by errno."),
        metric("errors.read.*", "read errors", "",
            "Requests without a valid answer, by cause: an errno, eof, malformed and what was, ..."),
        metric("errors.status.*", "status errors", "",
            "Complete answers with a status outside 2xx, by status; requests contains them too."),
        metric("errors.timeout", "timeouts", "",
            "Requests that were due or sent and not answered within --timeout or before the end of the run."),
        metric("deadline.shed", "shed", "",
            "Requests that were older than --deadline before they could be sent, and so were never sent."),
        metric("deadline.abandoned", "abandoned", "",
            "Requests that were sent and given up, because --deadline was over."),
        metric("retried", "retried", "",
            "Requests that were sent once more (--retry): the server had closed a connection that had answered before, \
             and no byte of the answer had come (RFC 9112, 9.3.1).")
            .but("They are no errors, unless the second attempt failed: that is one. Their time counts from the first \
                  attempt."),
        metric("wrong_bodies", "wrong bodies", "",
            "Answers of status 200 with an X-Worker whose body does not begin `handled by worker I, pid P` with the same I, \
             as the contract asks; absent when there are none.")
            .but("A server that has another use for X-Worker breaks nothing."),
        metric("lost[].at_s", "lost at", "s",
            "A request without an answer (errors.write, errors.read, errors.timeout): when that was clear, from the start \
             of the run; the first 10,000 are listed."),
        metric("lost[].client", "lost by", "",
            "The client's address of its connection, by which the server knows it; absent if there was none."),
        metric("lost[].cause", "lost because of", "",
            "The phase and the cause: read ECONNRESET, write EPIPE, timeout."),
        metric("lost[].worker", "lost at worker", "", "The X-Worker of the last answer on its connection."),
        metric("lost_more", "more lost", "", "How many more requests were lost."),
    ]},
    Section { title: "Connections, of the whole run", metrics: &[
        metric("connections.requested", "connections asked for", "",
            "Connections that the command line asks for, the idle ones included."),
        metric("connections.peak_open", "connections open", "",
            "The most connections that were open at one time, added up over threads (and over clients, in a sum)."),
        metric("connections.established", "connections established", "",
            "Calls of connect(2) that ended in a connection."),
        metric("connections.answered", "connections served", "",
            "Connections that got at least one answer: those that a worker can have counted.")
            .but("The sum of workers.*.connections."),
        metric("connections.idle_lost", "idle connections lost", "",
            "Idle connections that the server had closed before the end."),
        metric("slow[].kind", "kind", "", "What slow connections do: send slowly, read slowly, or stay half-open."),
        metric("slow[].requested", "slow asked for", "", "Slow connections that the command line asks for."),
        metric("slow[].established", "slow established", "", "How many of them were established."),
        metric("slow[].answered", "slow answered", "", "How many of them got a complete answer, however slowly."),
        metric("slow[].closed_by_server", "slow closed", "", "How many the server closed before they were done."),
        metric("slow[].closed_after_ms", "slow closed after", "ms",
            "The median time until the server closed them; absent in a sum."),
    ]},
    Section { title: "Workers, by X-Worker", metrics: &[
        metric("workers.*.connections", "connections per worker", "",
            "Connections whose first answer named this worker, in the whole run: a connection keeps its worker."),
        metric("workers.*.requests", "requests per worker", "", "Answers of this worker in the measured window."),
        metric("workers.*.latency_us", "response per worker", "µs",
            "The response times of this worker's answers, for the first workers; absent in a sum."),
        metric("evenness.*.dispersion", "D", "",
            "Dispersion of connections (requests) per worker: D = X^2 / (k - 1), X^2 = sum of (count - n/k)^2 / (n/k) over \
             the k workers; about 0: in turns, about 1: by chance, far above 1: few workers get most.")
            .but("It does not change its meaning with n. For connections; requests come in clusters and have no such \
                  scale."),
        metric("evenness.*.p_value", "p", "",
            "The probability of a D at least as far from 1, in both directions, if chance chose the worker.")
            .but("Twice the smaller tail of chi-square with k - 1 degrees of freedom, and at most 1 (up to 10^4 \
                  simulations where n/k < 5). Small: more uneven than chance, or more even than chance; D tells which."),
        metric("evenness.*.max_over_mean", "max/mean", "", "The count of the busiest worker / (n/k)."),
        metric("evenness.*.jain", "Jain's index", "",
            "(sum x)^2 / (k * sum x^2) = 1 / (1 + cv^2): 1 is even, 1/k is all on one worker.")
            .but("Chance also gives values near 1."),
        metric("evenness.*.cv", "cv", "",
            "Coefficient of variation: standard deviation / mean of the counts; X^2 = n * cv^2."),
        metric("evenness.*.expected_max_over_mean_if_random", "max/mean by chance", "",
            "The max/mean to expect if chance chose the worker.")
            .but("1 + E_k * sqrt(k/n), where E_k is the expected maximum of k standard normals (1.03, 1.42, 1.77 for \
                  k = 4, 8, 16: Harter 1961)."),
        metric("evenness.*.workers", "workers", "",
            "k: the highest worker number seen + 1, or --workers if that is more."),
        metric("evenness.*.n", "n", "", "How many connections (requests) the workers shared."),
        metric("order[]", "order", "",
            "The workers that took the first connections, in the order of their first answers; absent in a sum."),
    ]},
    Section { title: "Client", metrics: &[
        metric("client.threads", "client threads", "", "Threads that send and measure."),
        metric("client.cpu_user_us", "client CPU, user", "µs",
            "CPU time of loadgen in the measured window, in user space."),
        metric("client.cpu_system_us", "client CPU, kernel", "µs",
            "CPU time of loadgen in the measured window, in the kernel.")
            .but("On a loopback the sender also does the receiver's protocol work."),
        metric("client.cpu_share", "client CPU share", "",
            "CPU time of the client / the time of its threads: (cpu_user_us + cpu_system_us) / (duration_s * threads * \
             10^6); near 1 it could not do more.")
            .but("Then the client may be the limit: see loadgen calibrate. With --busy-poll it is always 1."),
        metric("client.max_rss_kib", "client max RSS", "KiB",
            "The most memory that the client had resident at one time (ru_maxrss, which survives execve(2): under the lab \
             it is at least the few MiB of the lab itself); in a sum, of the largest client."),
    ]},
    Section { title: "Trust", metrics: &[
        metric("trust.verdict", "verdict", "",
            "The worst of the checks: valid; suspect, look closer before you quote it; invalid, the run did not measure \
             what was asked for."),
        metric("trust.checks[].name", "check", "",
            "One of the checks listed by --explain; those that do not apply to a run are left out."),
        metric("trust.checks[].verdict", "check's verdict", "", "Whether the run is within the limit of this check."),
        metric("trust.checks[].reason", "check's reason", "", "The number that was found, and the limit."),
    ]},
    Section { title: "Single answers", metrics: &[
        metric("trace[].at_us", "at", "µs", "When the answer was complete, from the start of the run."),
        metric("trace[].status", "status", "", "Its status."),
        metric("trace[].bytes", "bytes", "", "Bytes of its body."),
        metric("trace[].worker", "worker", "", "Its X-Worker."),
        metric("trace[].latency_us", "time", "µs", "Its response time."),
    ]},
    Section { title: "Origin", metrics: &[
        metric("schema", "schema", "", "The version of this document."),
        metric("run.host", "host", "", "The machine that the client ran on; in a sum all of them, separated by blanks."),
        metric("run.started_unix_ns", "started", "ns",
            "When the warm-up began: nanoseconds since 1970 by that machine's clock."),
        metric("run.start_at_unix_ns", "start at", "ns", "When it should have begun (--start-at)."),
        metric("run.seed", "seed", "", "The seed of everything random: the same seed gives the same due times."),
        metric("run.configuration.*", "configuration", "",
            "The options that decide what is measured; results with equal ones can be merged."),
        metric("run.interrupted", "interrupted", "", "The run ended early, by Ctrl-C or because the server was gone."),
        metric("run.merged_from", "merged from", "", "How many results loadgen merge added up to this one."),
        metric("run.parts[].host", "part's host", "", "The machine of one of these results."),
        metric("run.parts[].started_unix_ns", "part's start", "ns",
            "When it began: nanoseconds since 1970 by that machine's clock."),
        metric("run.parts[].seed", "part's seed", "", "Its seed; no result is added twice."),
    ]},
];

/// A line of an `.ndjson` file.
#[rustfmt::skip]
pub static INTERVAL: &[Section] = &[Section { title: "One interval of a run (--out FILE.ndjson)", metrics: &[
    metric("interval.from_s", "from", "s", "When the interval began, from the start of the warm-up."),
    metric("interval.to_s", "to", "s", "When the interval ended, from the start of the warm-up."),
    metric("interval.measured", "measured", "", "Whether the interval lies in the measured window."),
    metric("interval.requests", "answered", "", "Requests answered in it."),
    metric("interval.qps", "requests", "/s", "Requests answered in it / its length."),
    metric("interval.errors", "errors", "", "Errors of all phases in it."),
    metric("interval.retried", "retried", "", "Requests sent once more in it (--retry)."),
    metric("interval.due", "due", "", "Open loop: requests due in it."),
    metric("interval.connections_open", "open", "", "Connections open at its end."),
    metric("interval.connections_requested", "asked for", "", "Connections that the command line asks for."),
    metric("interval.connections_established", "established", "", "Connections established in it."),
    metric("interval.latency_us", "response", "µs", "The response times of the requests that ended in it, to two digits."),
    metric("interval.send_delay_us", "send delay", "µs", "How late the requests of this interval were sent."),
    metric("interval.workers", "workers", "", "The connections and requests of each worker in it, as in workers.*."),
    metric("interval.evenness", "evenness", "", "How evenly they fell on the workers, as in evenness.*."),
]}];

/// What only the lab computes, from all that it recorded of a run.
#[rustfmt::skip]
pub static TABLES: &[Section] = &[
    Section { title: "How much", metrics: &[
        metric("law_qps", "law requests", "/s",
            "What the law promises (`lab explain`), with the N, M, C, H and P of the command lines."),
        metric("deviation", "deviation", "%", "100 · (requests/s − law) / law."),
        metric("share_of_baseline", "share of baseline", "",
            "Requests/s over those of the baseline's run directly before or after."),
        metric("connections_per_s", "connections", "/s",
            "Requests/s times connections opened per answered request."),
    ]},
    Section { title: "How long", metrics: &[
        metric("first_answer", "first answer", "µs",
            "The response time of the first answer of a run whose answers are shown one by one."),
        metric("mean_over_baseline", "mean over baseline", "",
            "The mean response time over that of the baseline's run."),
        metric("stdev_over_baseline", "stdev over baseline", "",
            "The standard deviation of the response times over that of the baseline's run."),
    ]},
    Section { title: "What went wrong", metrics: &[
        metric("stuck", "stuck", "%",
            "100 · timeouts / (answered + late + u). late: answers after the measured window to requests that were due in it; \
             u: timeouts and connect, write and read errors of the whole run."),
        metric("lost", "lost", "%",
            "100 · u / (answered + late + u). late: answers after the measured window to requests that were due in it; \
             u: timeouts and connect, write and read errors of the whole run."),
        metric("resets", "resets", "",
            "Connections that ended with a network error or without an answer, before the time-out."),
        metric("lost_requests", "lost requests", "",
            "Requests of the whole run that were due or sent and never answered, for any reason; the row names each \
             (`lost`), the first ten thousand of them."),
    ]},
    Section { title: "What it cost", metrics: &[
        metric("server_cpu_per_request", "server CPU", "µs/request",
            "CPU time of all workers and the master, user and system, per request, both in the measured window; over the \
             whole run and all its requests where the client has no window or a process came or went."),
        metric("client_cpu_per_request", "client CPU", "µs/request",
            "CPU time of the client over its requests, both in the measured window (for `wrk`, `oha` and `shb`, which have \
             no warm-up: in the whole run)."),
        metric("client_cpu_over_baseline", "client CPU over baseline", "",
            "Client CPU per request over that of the baseline's run directly before or after."),
        metric("server_cpu_per_connection", "server CPU", "µs/connection",
            "CPU time of all workers and the master per connection, as for server CPU per request."),
        metric("worker_cpu_per_connection", "worker CPU", "µs/connection",
            "Server CPU per connection without that of the master."),
        metric("master_cpu_per_connection", "master CPU", "µs/connection",
            "CPU time of the process that only accepts, passes or supervises, per connection, as for server CPU per request; \
             of a thread among the workers' threads: its share of their CPU time."),
        metric("client_cpu_per_connection", "client CPU", "µs/connection",
            "Client CPU per request times answered requests per connection opened."),
        metric("limit_2_cpus", "requests/s on 2 CPUs", "",
            "The requests/s that the CPU times of this row allow on 2 CPUs: r * min(10^6 / a, 2 * 10^6 / (a + w)), with r \
             requests per connection, a: master CPU and w: worker CPU per connection; one acceptor has one CPU at most."),
        metric("limit_64_cpus", "requests/s on 64 CPUs", "",
            "The same on 64 CPUs: r * min(10^6 / a, 64 * 10^6 / (a + w))."),
    ]},
    Section { title: "Who got the connections", metrics: &[
        metric("p_value", "p, all runs", "",
            "The probability of connections at least as uneven, or at least as even, if chance chose the worker in every run: \
             twice the smaller tail of chi-square, for X^2 = D * (k - 1) and its k - 1 degrees of freedom summed over the runs."),
        metric("answers_dispersion", "D of answers", "",
            "Dispersion of answers per worker, as that of connections."),
        metric("answers_max_over_mean", "answers max/mean", "", "Answers of the busiest worker / (answers / workers)."),
        metric("top_two", "two busiest", "%", "100 · connections of the two busiest workers over those of all."),
        metric("max_over_min", "max/min", "",
            "Connections of the busiest worker over those of the least busy one; nothing if that got none."),
        metric("max_minus_min", "max − min", "",
            "Connections of the busiest worker less those of the least busy one."),
        metric("bars", "connections per worker", "",
            "Connections that were answered, by worker 0, 1, 2, … (as the client counted), of the run with the median D; \
             the height of a bar is the share of the busiest."),
        metric("live", "live connections over time", "",
            "Live connections of each worker at up to eight moments, from left to right, of the run with the median live \
             max/mean; heights are shares of the largest."),
        metric("orders", "orders", "",
            "The orders in which the lines of a program came that ran to its end, and how often each, of the run with the \
             median share of its commonest order."),
        metric("run_ms", "run", "ms",
            "The median time from the start of a program that runs to its end to that end."),
        metric("distinct_orders", "distinct orders", "",
            "How many different orders there were."),
        metric("commonest_order", "commonest order", "%",
            "100 · the runs with the order that came most often / all runs."),
        metric("same_order", "in the baseline's order", "%",
            "100 · the runs with the order that came most often in the baseline's runs / all runs."),
        metric("live_max_over_mean", "live max/mean", "",
            "The worst moment: live connections of the busiest worker over the mean, while at least half of the most \
             connections were open."),
    ]},
    Section { title: "What the kernel did for it", metrics: &[
        metric("wakeups", "wake-ups", "/connection",
            "Returns to user space about the listening socket, over connections accepted."),
        metric("empty_wakeups", "empty wake-ups", "/connection",
            "Wake-ups that found nothing to accept, over connections accepted."),
        metric("accept_eagain", "EAGAIN", "/connection",
            "Accepts that returned EAGAIN, of the workers and of a master that accepts for them, over connections \
             accepted: empty wake-ups, and the last call of a worker that accepts until nothing is left."),
        metric("switches", "switches", "/connection",
            "Voluntary context switches of all tasks of the server, over connections accepted; counted from ready to the \
             client's end, or over whole lives if a task ended between."),
        metric("kernel_wakeups", "kernel wake-ups", "/connection",
            "Events of the tracepoint sched:sched_wakeup for any task of the server, over connections accepted: what the \
             kernel woke, whether or not it returned to user space."),
        metric("kernel_switches", "kernel switches", "/connection",
            "Events of sched:sched_switch away from any task of the server, voluntary or not, over connections accepted; \
             the filters take CPU time while the tracepoints are counted."),
    ]},
    Section { title: "What it occupies", metrics: &[
        metric("processes", "processes", "", "Processes of the server while the connections are open."),
        metric("threads", "threads", "",
            "Threads of the server while the connections are open, one per process included."),
        metric("fds", "descriptors", "", "Open file descriptors of all its processes."),
        metric("master_fds", "master's descriptors", "",
            "Open file descriptors of the process that only accepts, passes or supervises, while the connections are open."),
        metric("pss", "PSS", "KiB",
            "Proportional set size of all its processes: user memory, shared pages divided among their users, without \
             kernel memory."),
        metric("pss_per_connection", "added PSS", "KiB/connection",
            "PSS beyond the baseline's over connections open beyond the baseline's."),
        metric("growth_rss", "growth", "KiB",
            "Resident memory of the server's first process at the end of the measurement, less that at the beginning."),
        metric("growth_fds", "growth descriptors", "",
            "Its open file descriptors at the end, less those at the beginning; both contain workers that are just being \
             replaced."),
        metric("zombies", "growth zombies", "",
            "Its children that have ended and were not reaped at the end, less those at the beginning."),
    ]},
    Section { title: "What a master did to keep its workers alive", metrics: &[
        metric("forks", "started", "", "Worker processes started, the first ones included."),
        metric("deaths", "deaths", "", "Workers that ended unasked and without having announced it."),
        metric("suicides", "announced ends", "", "Workers that announced their end."),
        metric("hangs", "hangs", "", "Times that a worker gave no sign of life."),
        metric("reloads", "reloads", "", "Reloads that replaced every worker."),
        metric("reloads_failed", "failed reloads", "", "Reloads that were abandoned, because a new worker did not serve."),
        metric("recovery_p50", "recovery p50", "ms",
            "The median time from a death, or from the announcement of an end, to the moment the successor listened."),
        metric("recovery_max", "recovery max", "ms", "The longest of these times."),
        metric("gave_up", "gave up", "",
            "Whether the master started no more workers in the end, because too many had died."),
        metric("returned", "returned", "",
            "Connections that a worker refused or left unanswered when it died, and that were passed again."),
    ]},
    Section { title: "What the workers counted themselves, or the master for them", metrics: &[
        metric("looks", "reads", "/s",
            "Reads of the value's source per second: by each worker for itself, or by the notifier for all."),
        metric("idle_looks", "reads without news", "%",
            "100 · reads by workers that found the value they had, over all of theirs."),
        metric("pushes", "pushes", "/s", "Messages per second with the value, from the notifier to a worker."),
        metric("updates", "updates", "", "New values that arrived, at all workers together."),
        metric("stale", "stale", "ms", "Mean time from the moment a new value was written to the moment a worker had it."),
        metric("queries", "queries", "", "Queries that reached the database."),
        metric("queries_per_expiry", "queries", "/expiry",
            "Queries that reached the database, over the times that a worker's cache entry was asked for and had expired."),
    ]},
    Section { title: "Trials of process managers", metrics: &[
        metric("trial_answered", "answers", "", "Requests that the application has answered, to all clients."),
        metric("lost_kept_alive", "lost, kept alive", "",
            "Requests without an answer, of a client whose connections stay open."),
        metric("retried_kept_alive", "retried, kept alive", "",
            "Requests that this client has sent once more, because its connection was closed before any byte of an answer."),
        metric("lost_new_connections", "lost, new connections", "",
            "Requests without an answer, of clients with a connection for each request."),
        metric("reload_s", "reload", "s", "The median time of the command that reloads."),
        metric("reloads_refused", "reloads refused", "", "Commands that reload and end with another status than 0."),
        metric("old_answers", "old version", "%",
            "After the command: the answers of the version that was there before, over 20 requests."),
        metric("crash_loops", "loops", "", "Programs that end again and again."),
        metric("given_up", "given up", "",
            "Loops that the manager has given up after at most one start and `max_restarts` restarts."),
        metric("most_starts", "most starts", "", "Starts of the program that was started most often."),
        metric("lines_written", "lines", "", "Lines that the processes have written."),
        metric("lines_per_minute", "lines", "/min", "The same, over the time that they needed."),
        metric("lines_lost", "lines lost", "", "Lines written that are not in the logs, or not whole."),
        metric("lines_broken", "lines broken", "", "Lines in the logs that no process has written like this."),
        metric("lines_out_of_order", "out of order", "",
            "Lines in the logs behind a later one, or the same one, of the same process."),
        metric("log_rotations", "rotations", "", "Times that the log was renamed and opened anew meanwhile."),
        metric("daemon_rss_mib", "daemon", "MiB", "The most resident memory of the daemon."),
        metric("daemon_growth_mib", "daemon's growth", "MiB", "The same, less what it was after a tenth of the time."),
        metric("over_limit_s", "over the limit", "s",
            "How long a process stayed that used more memory than its limit; as long as the trial looked, if it is still there."),
        metric("still_over", "still over", "", "1 if the process was still there at the end of the trial."),
        metric("adopted", "adopted", "%",
            "Processes that the next daemon has in its list, over those that ran when the last one was killed."),
        metric("variables_wrong", "variables wrong", "",
            "Variables of the configuration that the processes do not have, or with another value; of six."),
        metric("variables_left", "variables left", "",
            "Variables that are no longer in the configuration, and that a process still has; of two."),
        metric("kills", "kills", "", "Times that the daemon was killed while it saved."),
        metric("dumps_damaged", "dumps damaged", "", "Times that the saved list was missing, no JSON, or not complete then."),
        metric("lists_incomplete", "lists incomplete", "",
            "Times that an application did not run when the next daemon had resurrected the list."),
        metric("sockets", "sockets", "", "Unix sockets in the manager's folder."),
        metric("sockets_open", "sockets open", "", "Those whose mode gives a right to other users or the group."),
        metric("strangers_admitted", "strangers admitted", "",
            "Those that let another user of our group in."),
        metric("keys_read", "keys read", "", "Keys of `jlist` that a program written for PM2 has read."),
        metric("keys_wrong", "keys wrong", "", "Those that were missing or no value of their kind."),
        metric("answer_p50_ms", "p50", "ms", "The median response time."),
        metric("answer_p99_ms", "p99", "ms", "99 of 100 response times are at most this."),
        metric("daemon_wakeups", "wake-ups", "/s",
            "Voluntary context switches of the daemon's threads per second, while nothing happens."),
        metric("list_ms", "list", "ms", "The median time of the command `list`."),
        metric("restart_ms", "back after", "ms",
            "The median time from the SIGKILL of an application's process to the moment when the next one is there."),
        metric("start_ms", "start one more", "ms", "The time of the command that starts one more application."),
        metric("start_all_ms", "start", "ms", "The time of the command that starts the daemon and all applications."),
    ]},
    Section { title: "Trials of `lab inspect`: what it costs", metrics: &[
        metric("unwatched_qps", "unwatched", "/s",
            "Requests per second while nobody looks: the median of the trial's windows."),
        metric("watched_cost", "throughput lost", "%",
            "100 · (1 - requests per second while `lab inspect` looks / the same in the window beside it, while nobody \
             looks): the median of the pairs."),
        metric("watched_cpu_cost", "more CPU", "%",
            "100 · (CPU time of the server per request while `lab inspect` looks / the same while nobody looks - 1): the \
             median of the pairs."),
        metric("looker_cpu", "lab inspect", "% CPU",
            "CPU time that `lab inspect` uses in a window, over the window."),
        metric("connections_seen", "connections seen", "", "Open connections of the server at the last look."),
        metric("processes_seen", "processes seen", "", "Processes of the server at the last look."),
        metric("first_look_ms", "first look", "ms", "The time from the start to the end of the first look."),
        metric("look_ms", "a look", "ms", "The median time of a look behind the first."),
    ]},
    Section { title: "Trials of complaints", metrics: &[
        metric("busiest_before", "busiest, before", "%",
            "100 · connections of the worker that has most of them / connections of all workers, as the answers say it; with the \
             server as the complaint has it."),
        metric("busiest_after", "busiest, after", "%", "The same with the cure."),
        metric("stuck_before", "stuck, before", "%",
            "100 · requests without an answer in time / (answered + those); with the server as the complaint has it."),
        metric("stuck_after", "stuck, after", "%", "The same with the cure."),
        metric("connect_before_ms", "connect, before", "ms",
            "99 of 100 connections are established within this time; with the server as the complaint has it."),
        metric("connect_after_ms", "connect, after", "ms", "The same with the cure."),
        metric("switches_before", "before", "switches/connection",
            "Voluntary context switches of all threads of the server, over the connections; with the server as the complaint has it."),
        metric("switches_after", "after", "switches/connection", "The same with the cure."),
        metric("diagnosed", "diagnosed", "",
            "1 if `lab inspect` has the finding that fits the complaint among its findings, asked before the cure."),
        metric("advised", "advised", "", "1 if the advice of this finding names the option that is the cure."),
        metric("found_after", "found after", "", "1 if `lab inspect` still has this finding with the cure."),
    ]},
    Section { title: "An examination of lab inspect", metrics: &[
        metric("cases", "cases", "", "Times that `lab inspect` was asked what a server is."),
        metric("mechanism_right", "mechanism right", "%",
            "Cases in which it named dispatch and sharing, and how each that accepts waits, over all cases."),
        metric("healthy_called_hung", "healthy called hung", "",
            "Workers that were not stopped, and that it called hung; of all cases together."),
        metric("hung_found", "hung found", "%",
            "Cases with a stopped worker in which it called this worker hung within 3 s, over all of them."),
        metric("hung_found_s", "slowest find", "s",
            "The longest time from the SIGSTOP of a worker to the answer that calls it hung, of those found within 3 s."),
        metric("findings_right", "findings right", "%",
            "Cases in which it found everything that must be found, and nothing else than what may be, over all cases."),
    ]},
    Section { title: "Trials of a server that is steered", metrics: &[
        metric("steer_connections", "connections", "", "Connections with one request each, answered or not."),
        metric("steer_stuck", "stuck connections", "%",
            "100 · those without an answer within 300 ms, over all; from the beginning one of four workers is stopped."),
        metric("steer_open", "open", "connections", "Open connections of all workers, on average."),
        metric("steer_spread", "spread", "connections",
            "Standard deviation of the open connections among the workers: the root of the mean of the variances (with \
             workers - 1) of samples 20 ms apart. The lives are exponential, and all workers healthy."),
        metric("steer_spread_chance", "spread by chance", "connections",
            "√(open connections / workers): the spread if chance chose the worker of each connection, since what each has \
             is then a Poisson variable."),
        metric("rate_unsteered", "unsteered", "/s",
            "Connections per second with one request each, all workers healthy: the median of the windows without `lab steer`."),
        metric("rate_steered", "steered", "/s", "The same of the windows with it; they alternate."),
        metric("rate_ratio", "of unsteered", "%", "100 · steered / unsteered."),
    ]},
    Section { title: "Trials of who serves", metrics: &[
        metric("served_by_accepts", "max/mean by accepts", "",
            "Connections that the busiest worker accepted / (connections / workers), as the kernel counted them for \
             `lab inspect --exact`."),
        metric("served_d", "D of accepts", "", "The dispersion D of the connections that the workers accepted."),
        metric("served_p", "p of accepts", "",
            "The probability of a D at least as far from 1, in both directions, if chance chose the worker."),
        metric("served_by_cpu", "max/mean by CPU time", "",
            "CPU time of the busiest worker / (CPU time of all / workers), as `lab inspect` sees it without any \
             privilege."),
        metric("served_by_answers", "max/mean by answers", "",
            "Connections of the worker that most answers name / (connections / workers)."),
        metric("served_difference", "difference", "connections",
            "The largest difference between what a worker accepted and what the answers say of one, with the workers in \
             the order of their connections."),
    ]},
];

/// What `lab inspect --format json` prints.
#[rustfmt::skip]
pub static INSPECT: &[Section] = &[
    Section { title: "Listeners", metrics: &[
        metric("inspect.listeners[].sockets", "sockets", "",
            "Listening sockets bound to this address."),
        metric("inspect.listeners[].backlog", "backlog", "",
            "How many connections may wait in the accept queue of one socket; the kernel takes one more."),
        metric("inspect.listeners[].queued", "queued", "",
            "Connections in the accept queues of all its sockets at the last look."),
        metric("inspect.listeners[].most_queued", "most queued", "",
            "The most connections in the accept queue of one of its sockets at any look."),
        metric("inspect.listeners[].drops", "drops", "",
            "Connections and packets that its sockets dropped between the first look and the last."),
        metric("inspect.listeners[].queues[].queued", "queued", "",
            "Connections in the accept queue of this socket at the last look."),
        metric("inspect.listeners[].queues[].least_queued", "least queued", "",
            "The fewest connections in the accept queue of this socket at the looks of the last second."),
    ]},
    Section { title: "Workers", metrics: &[
        metric("inspect.workers[].threads", "threads", "",
            "Threads of this process that may serve connections, seen at any look."),
        metric("inspect.workers[].accepted_share", "share", "",
            "The part of the connections that this worker had: of those that were seen at the workers, or, \
             where few were seen, of their CPU time."),
        metric("inspect.workers[].connections", "open", "",
            "Connections of the listener that this process had open at the last look."),
        metric("inspect.workers[].switches_per_connection", "switches", "/connection",
            "Voluntary context switches of this process / its part of the new connections."),
        metric("inspect.workers[].cpu_share", "CPU", "",
            "CPU time of all threads of this process / the time between the first look and the last."),
        metric("inspect.workers[].waited_share", "ready", "",
            "The time in which threads of this process were ready and had no CPU / the time between the first \
             look and the last."),
        metric("inspect.workers[].switches_per_s", "switches", "/s",
            "Voluntary context switches of this process per second."),
        metric("inspect.workers[].queued", "queued", "",
            "Connections in the accept queue of the socket that only this process accepts from."),
        metric("inspect.workers[].accepted", "accepts", "",
            "Calls of accept(2) and accept4(2) by the threads of this process that returned a connection between the \
             first look and the last, as the kernel counted them; only with --exact."),
        metric("inspect.workers[].woken", "woken", "",
            "How often the threads of this process were woken between the first look and the last, as the kernel \
             counted it; only with --exact."),
    ]},
    Section { title: "Totals", metrics: &[
        metric("inspect.duration_s", "duration", "s",
            "The time between the first look and the last."),
        metric("inspect.totals.new_connections", "new connections", "",
            "Connections that began between the first look and the last: on the loopback all that were seen, \
             also in TIME_WAIT, or were accepted, where the kernel counts that (--exact); elsewhere at least \
             PassiveOpens of the network namespace, which counts all its listeners."),
        metric("inspect.totals.connections", "open", "",
            "Connections of the listeners that were open at the last look."),
        metric("inspect.totals.more_requests", "more requests", "",
            "Segments with data that came on open connections, without the first of each new one: about the \
             requests that needed no new connection; absent where there are so many connections that they are \
             not read."),
        metric("inspect.totals.unaccepted", "not accepted", "",
            "Established connections that no process had accepted at the last look."),
        metric("inspect.totals.unaccepted_long", "not accepted for 1 s", "",
            "Those of them that were seen unaccepted for a second or longer."),
        metric("inspect.totals.switches_per_connection", "switches", "/connection",
            "Voluntary context switches of all processes that accept or serve / new connections; absent below \
             10 connections."),
        metric("inspect.totals.cpu_us_per_connection", "CPU/connection", "µs",
            "CPU time of all processes that accept or serve / new connections; absent below 10 connections."),
    ]},
];

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = &'static Metric> {
        [REPORT, INTERVAL, TABLES, INSPECT].into_iter().flatten().flat_map(|section| section.metrics)
    }

    #[test]
    fn a_metric_is_defined_once_in_sentences() {
        let keys: Vec<&str> = all().map(|metric| metric.key).collect();
        for (i, metric) in all().enumerate() {
            assert!(!keys[..i].contains(&metric.key), "{} is defined twice", metric.key);
            for text in [metric.definition, metric.remark] {
                assert!(text.is_empty() || text.ends_with(['.', ':']), "{}: {text}", metric.key);
            }
        }
    }

    #[test]
    fn the_unit_of_a_key_is_the_unit_of_its_metric() {
        let units = [("_us", "µs"), ("_ms", "ms"), ("_kib", "KiB"), ("_ns", "ns"), ("_per_s", "/s"), ("_s", "s")];
        for metric in all() {
            let unit = units.iter().find(|(end, _)| metric.key.ends_with(end));
            assert!(unit.is_none_or(|(_, unit)| metric.unit == *unit), "{} is in {}", metric.key, metric.unit);
        }
    }

    #[test]
    fn a_statistic_of_a_distribution_has_the_meaning_of_both() {
        let found = meaning("send_delay_us.p99");
        assert_eq!(found.header, "send delay p99 µs");
        assert_eq!(found.definition, "How late a request was sent: sent - due. 99 of 100 are at most this.");
        assert_eq!(meaning("latency_us.p99").header, "p99 µs");
        assert_eq!(meaning("wakeups").header, "wake-ups/connection");
    }

    /// The definitions of the schema, and where in the document they stand.
    const PLACES: [(&str, &str); 19] = [
        ("report", ""),
        ("distribution", "*_us."),
        ("errors", "errors."),
        ("deadline", "deadline."),
        ("lost", "lost[]."),
        ("worst_second", "worst_second."),
        ("time_series", "time_series."),
        ("worker", "workers.*."),
        ("evenness", "evenness.*."),
        ("connections", "connections."),
        ("outside_window", "outside_window."),
        ("traced", "trace[]."),
        ("slow", "slow[]."),
        ("client", "client."),
        ("trust", "trust."),
        ("check", "trust.checks[]."),
        ("run", "run."),
        ("run_part", "run.parts[]."),
        ("interval", "interval."),
    ];

    const PLACES_OF_INSPECT: [(&str, &str); 5] = [
        ("diagnosis", "inspect."),
        ("listener", "inspect.listeners[]."),
        ("queue", "inspect.listeners[].queues[]."),
        ("worker", "inspect.workers[]."),
        ("totals", "inspect.totals."),
    ];

    #[test]
    fn the_schemas_describe_every_number_of_the_documents_as_it_is_defined_here() {
        describes("loadgen", &[REPORT, INTERVAL], &PLACES);
        describes("inspect", &[INSPECT], &PLACES_OF_INSPECT);
    }

    #[track_caller]
    fn describes(schema: &str, sections: &[&'static [Section]], places: &[(&str, &str)]) {
        let path = format!("{}/schema/{schema}.schema.json", env!("CARGO_MANIFEST_DIR"));
        let schema: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let documented = || sections.iter().copied().flatten().flat_map(|section| section.metrics);
        let mut missing: Vec<&Metric> = documented().collect();
        let mut wrong = String::new();
        for (definition, place) in places {
            for (member, rule) in schema["$defs"][*definition]["properties"].as_object().unwrap() {
                let names = ["", ".*", "[]"].map(|end| format!("{place}{member}{end}"));
                let Some(metric) = documented().find(|metric| names.iter().any(|name| name == metric.key)) else {
                    continue;
                };
                missing.retain(|other| other.key != metric.key);
                if rule["description"] != metric.definition {
                    wrong += &format!("$defs/{definition}: \"{member}\": \"{}\"\n", metric.definition);
                }
            }
        }
        let missing: Vec<&str> = missing.iter().map(|metric| metric.key).collect();
        assert!(missing.is_empty(), "not in {path}: {missing:?}");
        assert!(wrong.is_empty(), "write these descriptions into {path}:\n{wrong}");
    }
}
