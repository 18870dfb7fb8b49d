//! Reports of clients that are not `loadgen`, as far as a table can use them. None of them has connect times, a count
//! per worker or an errno.

use serde_json::Value;

use crate::lab::record::ForeignReport;
use crate::units::parse_duration;

/// Reads what one of [`FOREIGN_CLIENTS`](crate::lab::plan::command::FOREIGN_CLIENTS) has printed; `None` when it is not
/// this client's text.
pub fn parse(program: &str, text: &str) -> Option<ForeignReport> {
    match program {
        "wrk" => parse_wrk(text),
        "oha" => parse_oha(text),
        "shb" => parse_shb(text),
        "bare-client" => parse_bare_client(text),
        _ => None,
    }
}

/// wrk's text; percentiles exist with `--latency` only.
fn parse_wrk(text: &str) -> Option<ForeignReport> {
    let totals = text.lines().find(|line| line.contains(" requests in "))?;
    let (requests, rest) = totals.trim().split_once(" requests in ")?;
    let percentile = |name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name))?;
        Some(parse_duration(line.trim()).ok()?.as_nanos() as f64 / 1e3)
    };
    let socket_errors = after(text, "Socket errors:").map_or(Vec::new(), counts);
    let (timeouts, others) = socket_errors.split_last().unwrap_or((&0, &[]));
    let bad_answers = after(text, "Non-2xx or 3xx responses:").and_then(|n| n.parse().ok()).unwrap_or(0);
    Some(ForeignReport {
        requests: requests.parse().ok()?,
        qps: after(text, "Requests/sec:")?.parse().ok()?,
        duration_s: parse_duration(rest.split(',').next()?).ok()?.as_secs_f64(),
        p50_us: percentile("50%"),
        p90_us: percentile("90%"),
        p99_us: percentile("99%"),
        errors: others.iter().sum::<u64>() + bad_answers,
        timeouts: *timeouts,
        ..ForeignReport::default()
    })
}

/// What `oha --output-format json` prints; times are seconds.
fn parse_oha(text: &str) -> Option<ForeignReport> {
    let report: Value = serde_json::from_str(text).ok()?;
    let (summary, percentiles) = (&report["summary"], &report["latencyPercentiles"]);
    let us = |value: &Value| Some(value.as_f64()? * 1e6);
    let statuses = report["statusCodeDistribution"].as_object()?;
    let of_status = |is_wanted: fn(&str) -> bool| {
        let wanted = statuses.iter().filter(|(status, _)| is_wanted(status));
        wanted.filter_map(|(_, count)| count.as_u64()).sum::<u64>()
    };
    // Requests under way when its time is up are not errors.
    let failures = report["errorDistribution"].as_object()?.iter();
    let failures = failures.filter(|(what, _)| *what != "aborted due to deadline");
    let (late, others): (Vec<_>, Vec<_>) = failures.partition(|(what, _)| what.contains("timeout"));
    let sum = |counts: Vec<(&String, &Value)>| counts.iter().filter_map(|(_, n)| n.as_u64()).sum::<u64>();
    let (requests, duration_s) = (of_status(|_| true), summary["total"].as_f64()?);
    Some(ForeignReport {
        requests,
        // Its own `requestsPerSec` counts the aborted ones as well.
        qps: requests as f64 / duration_s,
        duration_s,
        p50_us: us(&percentiles["p50"]),
        p90_us: us(&percentiles["p90"]),
        p99_us: us(&percentiles["p99"]),
        p99_9_us: us(&percentiles["p99.9"]),
        max_us: us(&summary["slowest"]),
        mean_us: us(&summary["average"]),
        errors: of_status(|status| !status.starts_with(['2', '3'])) + sum(others),
        timeouts: sum(late),
        ..ForeignReport::default()
    })
}

/// What `shb --json` prints; times are seconds.
fn parse_shb(text: &str) -> Option<ForeignReport> {
    let report: Value = serde_json::from_str(text).ok()?;
    let (requests, times) = (&report["requests"], &report["latencySeconds"]);
    let us = |value: &Value| Some(value.as_f64()? * 1e6);
    let statuses = report["statusCodes"].as_object()?.iter();
    let bad_answers = statuses.filter(|(status, _)| !status.starts_with(['2', '3'])).filter_map(|(_, n)| n.as_u64());
    Some(ForeignReport {
        requests: requests["ok"].as_u64()?,
        qps: report["requestsPerSec"].as_f64()?,
        duration_s: report["durationSeconds"].as_f64()?,
        p50_us: us(&times["percentiles"]["p50"]),
        p90_us: us(&times["percentiles"]["p90"]),
        p99_us: us(&times["percentiles"]["p99"]),
        p99_9_us: us(&times["percentiles"]["p99.9"]),
        max_us: us(&times["max"]),
        mean_us: us(&times["mean"]),
        errors: requests["errors"].as_u64()? + requests["connectErrors"].as_u64()? + bad_answers.sum::<u64>(),
        ..ForeignReport::default()
    })
}

/// The one line of `bare-client`.
fn parse_bare_client(text: &str) -> Option<ForeignReport> {
    let report: Value = serde_json::from_str(text).ok()?;
    Some(ForeignReport {
        requests: report["requests"].as_u64()?,
        qps: report["qps"].as_f64()?,
        duration_s: report["duration_s"].as_f64()?,
        cpu_us: report["cpu_us"].as_u64()?,
        ..ForeignReport::default()
    })
}

fn after<'a>(text: &'a str, label: &str) -> Option<&'a str> {
    Some(text.lines().find_map(|line| line.trim().strip_prefix(label))?.trim())
}

/// The numbers of `connect 0, read 3, write 0, timeout 64`.
fn counts(text: &str) -> Vec<u64> {
    text.split(',').filter_map(|part| part.trim().rsplit(' ').next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Running 1s test @ http://127.0.0.1:8080/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   257.50us   24.10us   1.19ms   92.23%
    Req/Sec   248.90k     2.10k  251.00k    72.73%
  Latency Distribution
     50%  251.00us
     75%  262.00us
     90%  1.27ms
     99%  2.33ms
  273344 requests in 1.10s, 33.89MB read
  Socket errors: connect 0, read 3, write 1, timeout 64
Requests/sec: 248494.57
Transfer/sec:     30.81MB
";

    #[test]
    fn wrk_is_read_with_percentiles_and_errors() {
        let report = parse_wrk(TEXT).unwrap();
        assert_eq!((report.requests, report.qps), (273_344, 248_494.57));
        assert_eq!((report.p50_us, report.p90_us), (Some(251.0), Some(1270.0)));
        assert_eq!((report.errors, report.timeouts), (4, 64));
        assert!((report.duration_s - 1.1).abs() < 1e-9);
    }

    #[test]
    fn without_errors_and_percentiles_there_are_none() {
        let text = "  10 requests in 1.00s, 1KB read\nRequests/sec: 10.00\n";
        let report = parse_wrk(text).unwrap();
        assert_eq!((report.errors, report.timeouts, report.p99_us), (0, 0, None));
        assert_eq!(parse_wrk("unable to connect"), None);
    }

    #[test]
    fn shb_is_read_with_percentiles_and_answers_that_are_errors() {
        let text = r#"{"durationSeconds": 0.5, "requestsPerSec": 300000.0, "statusCodes": {"200": 149999, "500": 1},
            "requests": {"total": 150002, "ok": 150000, "errors": 2, "connectErrors": 3},
            "latencySeconds": {"min": 1e-5, "mean": 2e-4, "max": 0.002, "percentiles": {"p50": 2.1e-4, "p99": 1e-3}}}"#;
        let report = parse_shb(text).unwrap();
        assert_eq!((report.requests, report.qps, report.duration_s), (150_000, 300_000.0, 0.5));
        assert_eq!((report.p50_us, report.p99_us, report.max_us), (Some(210.0), Some(1000.0), Some(2000.0)));
        assert_eq!((report.errors, report.timeouts), (6, 0));
        assert_eq!(parse_shb("shb 0.6.0"), None);
    }

    #[test]
    fn oha_is_read_without_the_requests_it_gave_up_at_its_end() {
        let text = r#"{"summary": {"total": 2.0, "slowest": 0.004, "fastest": 0.00004, "average": 0.0001,
            "requestsPerSec": 45.0}, "latencyPercentiles": {"p50": 0.00008, "p90": 0.0001, "p99": 0.0004, "p99.9": null},
            "statusCodeDistribution": {"200": 80, "503": 4}, "errorDistribution": {"aborted due to deadline": 6,
            "timeout": 2, "Connection refused (os error 111)": 3}}"#;
        let report = parse_oha(text).unwrap();
        assert_eq!((report.requests, report.qps, report.duration_s), (84, 42.0, 2.0));
        assert_eq!((report.errors, report.timeouts), (7, 2));
        assert_eq!(report.p99_9_us, None);
        assert!((report.p99_us.unwrap() - 400.0).abs() < 1e-6);
        assert_eq!(parse_oha("oha 1.16.0"), None);
    }

    #[test]
    fn the_bare_client_prints_its_own_cpu_time() {
        let report = parse_bare_client(r#"{"requests":10,"duration_s":2.0,"qps":5.0,"cpu_us":30}"#).unwrap();
        assert_eq!((report.requests, report.qps, report.duration_s, report.cpu_us), (10, 5.0, 2.0, 30));
    }
}
