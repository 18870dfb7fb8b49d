//! What wrk prints, as far as a table can use it. wrk has no connect times, no count per worker and no errno.

use serde::{Deserialize, Serialize};

use crate::units::parse_duration;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct WrkReport {
    pub requests: u64,
    pub qps: f64,
    pub duration_s: f64,
    /// Percentiles exist with `--latency` only.
    pub p50_us: Option<f64>,
    pub p90_us: Option<f64>,
    pub p99_us: Option<f64>,
    /// Socket errors and answers outside 2xx and 3xx.
    pub errors: u64,
    pub timeouts: u64,
    /// All its threads, its whole life; measured by the lab.
    pub cpu_us: u64,
}

/// Reads wrk's text; `None` when it is not wrk's text.
pub fn parse(text: &str) -> Option<WrkReport> {
    let totals = text.lines().find(|line| line.contains(" requests in "))?;
    let (requests, rest) = totals.trim().split_once(" requests in ")?;
    let percentile = |name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name))?;
        Some(parse_duration(line.trim()).ok()?.as_nanos() as f64 / 1e3)
    };
    let socket_errors = after(text, "Socket errors:").map_or(Vec::new(), counts);
    let (timeouts, others) = socket_errors.split_last().unwrap_or((&0, &[]));
    let bad_answers = after(text, "Non-2xx or 3xx responses:").and_then(|n| n.parse().ok()).unwrap_or(0);
    Some(WrkReport {
        requests: requests.parse().ok()?,
        qps: after(text, "Requests/sec:")?.parse().ok()?,
        duration_s: parse_duration(rest.split(',').next()?).ok()?.as_secs_f64(),
        p50_us: percentile("50%"),
        p90_us: percentile("90%"),
        p99_us: percentile("99%"),
        errors: others.iter().sum::<u64>() + bad_answers,
        timeouts: *timeouts,
        cpu_us: 0,
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
        let report = parse(TEXT).unwrap();
        assert_eq!((report.requests, report.qps), (273_344, 248_494.57));
        assert_eq!((report.p50_us, report.p90_us), (Some(251.0), Some(1270.0)));
        assert_eq!((report.errors, report.timeouts), (4, 64));
        assert!((report.duration_s - 1.1).abs() < 1e-9);
    }

    #[test]
    fn without_errors_and_percentiles_there_are_none() {
        let text = "  10 requests in 1.00s, 1KB read\nRequests/sec: 10.00\n";
        let report = parse(text).unwrap();
        assert_eq!((report.errors, report.timeouts, report.p99_us), (0, 0, None));
        assert_eq!(parse("unable to connect"), None);
    }
}
