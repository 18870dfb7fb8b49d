//! What stands above a report: the load in words.

use std::time::Duration;

use crate::load::options::background::Background;
use crate::report::{ArrivalsKind, Configuration, RunInfo};
use crate::units::format_duration;

pub fn load(run: &RunInfo) -> String {
    let Some(clients) = run.merged_from else { return in_words(&run.configuration, Some(run.seed)) };
    format!("the sum of {clients} clients: {}\n{}", run.host, in_words(&run.configuration, None))
}

/// The load, without the seed when there are several.
pub fn in_words(configuration: &Configuration, seed: Option<u64>) -> String {
    let mut parts = vec![pace(configuration, seed)];
    if let Some(deadline) = configuration.deadline_s.map(duration) {
        parts.push(format!("given up {deadline} after they were due"));
    }
    parts.push(counted(u64::from(configuration.connections), "connection"));
    if configuration.pipeline > 1 {
        parts.push(format!("{} requests under way on each", configuration.pipeline));
    }
    match configuration.requests_per_connection {
        None => {}
        Some(0) => parts.push("connecting and closing, no request".into()),
        Some(1) if !configuration.sessions => parts.push("a new connection for every request".into()),
        Some(k) => parts.push(format!("{} per connection", counted(k, "request"))),
    }
    if configuration.retry {
        parts.push("sent once more where a kept connection had been closed".into());
    }
    if configuration.close == "rst" {
        parts.push("closed with a reset".into());
    }
    let background: Background = configuration.background.parse().unwrap_or_default();
    let beside = [
        (background.idle, "idle"),
        (background.slow_send, "sending slowly"),
        (background.slow_read, "reading slowly"),
        (background.half_open, "half open"),
    ];
    parts.extend(beside.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} more {what}")));
    if configuration.sources > 0 {
        parts.push(format!("from {}", counted(configuration.sources as u64, "source address")));
    }
    parts.push(counted(u64::from(configuration.threads), "thread"));
    if configuration.engine != "epoll" {
        parts.push(configuration.engine.replace('-', "_"));
    }
    if configuration.busy_poll {
        parts.push("never sleeping".into());
    }
    if configuration.warmup_s > 0.0 {
        parts.push(format!("after {} of warm-up", duration(configuration.warmup_s)));
    }
    parts.join(", ")
}

fn pace(configuration: &Configuration, seed: Option<u64>) -> String {
    let seed = seed.map_or(String::new(), |seed| format!(" (seed {seed})"));
    let think = match configuration.think_s.map(duration) {
        None => String::new(),
        Some(mean) if configuration.think_is_exponential => format!(", thinking {mean} on average{seed}"),
        Some(pause) => format!(", thinking {pause}"),
    };
    let gaps = match &configuration.arrivals {
        ArrivalsKind::Closed => return format!("closed loop{think}"),
        ArrivalsKind::Replay(file) => return format!("open loop, replay of {file}"),
        ArrivalsKind::Fixed => " at fixed gaps".into(),
        ArrivalsKind::Poisson => format!(" by Poisson{seed}"),
        ArrivalsKind::Burst(size) => format!(", {size} at once"),
    };
    let (model, users) = if configuration.sessions { ("partly open", " users") } else { ("open loop", "") };
    let from = configuration.rate_per_s.unwrap_or_default();
    let rates = match configuration.ramp_to_per_s {
        None => format!("{from}{users}/s"),
        Some(to) => format!("{from} to {to}{users}/s"),
    };
    format!("{model}, {rates}{gaps}{think}")
}

fn duration(seconds: f64) -> String {
    format_duration(Duration::from_secs_f64(seconds))
}

/// `1 thread`, `2 threads`, `3 addresses`.
fn counted(count: u64, noun: &str) -> String {
    let ending = match count {
        1 => "",
        _ if noun.ends_with('s') => "es",
        _ => "s",
    };
    format!("{count} {noun}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::options::args::plan_of;

    #[test]
    fn the_load_is_said_in_words() {
        let words = |options: &str| {
            let plan = plan_of(options, "http://127.0.0.1/");
            in_words(&plan.configuration(), Some(plan.pacing.seed))
        };
        for (options, expected) in [
            ("", "closed loop, 64 connections, 1 thread"),
            (
                "--think exp:20ms --connections 1 --close rst --warmup 2s",
                "closed loop, thinking 20ms on average (seed 1), 1 connection, closed with a reset, 1 thread, after \
                 2s of warm-up",
            ),
            (
                "--rate 200 --sessions --requests-per-connection 1 --think 5ms",
                "partly open, 200 users/s by Poisson (seed 1), thinking 5ms, 64 connections, 1 request per \
                 connection, 1 thread",
            ),
            (
                "--rate 100..900 --arrivals burst:8 --deadline 50ms --background slow-send:3,half-open:2",
                "open loop, 100 to 900/s, 8 at once, given up 50ms after they were due, 64 connections, 3 more \
                 sending slowly, 2 more half open, 1 thread",
            ),
            (
                "--source 127.0.0.1,127.0.0.2 --threads 2 --engine io-uring --busy-poll",
                "closed loop, 64 connections, from 2 source addresses, 2 threads, io_uring, never sleeping",
            ),
            (
                "--requests-per-connection 0 --background idle:9",
                "closed loop, 64 connections, connecting and closing, no request, 9 more idle, 1 thread",
            ),
        ] {
            assert_eq!(words(options), expected, "{options}");
        }
    }
}
