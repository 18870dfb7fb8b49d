//! Arithmetic before the start: would this run out of descriptors, source ports or room in the accept queue? Then
//! which setting helps? Pure except for [`prepare`], which asks the kernel.

use std::net::IpAddr;

use nix::sys::resource::{Resource, setrlimit};

use crate::load::options::plan::{Close, Plan};
use crate::machine::{Limits, descriptor_limits};

/// Descriptors beside the connections: standard streams, epoll instances, the files of the run.
const OTHER_DESCRIPTORS: u64 = 32;
/// What one thread connects and closes per second on a loopback, at the very most (117,000 were seen, half of them
/// by the server): the bound for a closed loop, whose rate is not known beforehand.
const MAX_CONNECTIONS_PER_S: f64 = 50_000.0;
/// TCP_TIMEWAIT_LEN, a constant of the kernel (include/net/tcp.h).
const TIME_WAIT_S: f64 = 60.0;

/// connect(2) tries the ports of one parity first, so that bind(2) finds the others free; only when all of them are in
/// use does it go through the rest (__inet_hash_connect, net/ipv4/inet_hashtables.c). So one of two is at hand.
const PORTS_AT_HAND: f64 = 2.0;

/// Raises the soft limit of descriptors to the hard one, and gives advice on this run.
pub fn prepare(plan: &Plan) -> Result<Vec<String>, String> {
    let (soft, hard) = descriptor_limits();
    if soft < hard {
        // If this fails, a run that needs more counts EMFILE among its connect errors.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    advise(plan, &Limits::now())
}

/// What may go wrong with this run, a line each with the setting that helps.
pub fn advise(plan: &Plan, limits: &Limits) -> Result<Vec<String>, String> {
    let connections = u64::from(plan.connections.count) + plan.background.total();
    let needed = connections + u64::from(plan.threads.count) + OTHER_DESCRIPTORS;
    if needed > limits.descriptors {
        let limit = limits.descriptors;
        return Err(format!(
            "open {connections} connections: they need {needed} descriptors, the limit is {limit}; raise `ulimit -Hn` \
             or ask for fewer"
        ));
    }
    if plan.target.unix.is_some() {
        // No ports; the backlog of the socket is the server's own.
        return Ok(Vec::new());
    }
    let (ports, example) = (ports(plan, limits), example_of_sources(plan));
    if connections > ports {
        return Err(format!(
            "open {connections} connections to one server: there are {ports} ports for them \
             (net.ipv4.ip_local_port_range); connect from more addresses with --source{example}, or widen the range"
        ));
    }
    Ok([time_wait(plan, limits), accept_queue(plan, limits)].into_iter().flatten().collect())
}

fn ports(plan: &Plan, limits: &Limits) -> u64 {
    limits.ports * plan.sources.as_ref().map_or(1, |sources| sources.addresses.len() as u64)
}

fn is_on_loopback(plan: &Plan) -> bool {
    let host = &plan.target.host;
    host.parse().is_ok_and(|address: IpAddr| address.is_loopback()) || host.eq_ignore_ascii_case("localhost")
}

fn example_of_sources(plan: &Plan) -> &'static str {
    if is_on_loopback(plan) { " 127.1.0.0/24" } else { "" }
}

fn port_held_s(plan: &Plan, limits: &Limits) -> f64 {
    match limits.time_wait_reuse {
        1 => limits.time_wait_reuse_delay_s,
        2 if is_on_loopback(plan) => limits.time_wait_reuse_delay_s,
        _ => TIME_WAIT_S,
    }
}

/// The side that closes first keeps the port in TIME_WAIT. With requests that is the server, and then the client's port
/// is free at once (tried: 500 connections through 100 ports, tcp_tw_reuse 0); a reset leaves none.
fn closes_first(plan: &Plan) -> bool {
    plan.connections.connect_only() && plan.connections.close == Close::Fin && plan.target.unix.is_none()
}

/// Connections per second that find a source port at once where we close first and leave each in TIME_WAIT; `None` for
/// a run of so few that each has its own.
pub(crate) fn ports_per_s(plan: &Plan, limits: &Limits, connections: u64) -> Option<f64> {
    let at_hand = ports(plan, limits) as f64 / PORTS_AT_HAND;
    let is_bound = closes_first(plan) && connections as f64 > at_hand;
    is_bound.then(|| at_hand / port_held_s(plan, limits))
}

fn time_wait(plan: &Plan, limits: &Limits) -> Option<String> {
    let per_s = plan.configuration().mean_rate_per_s().unwrap_or(MAX_CONNECTIONS_PER_S * f64::from(plan.threads.count));
    let by_time = plan.window.duration.map(|duration| per_s * duration.as_secs_f64());
    let measured = by_time.or(plan.window.requests.map(|requests| requests as f64)).unwrap_or_default();
    let in_all = measured + per_s * plan.window.warmup.as_secs_f64();
    let (held_s, ports) = (port_held_s(plan, limits), ports(plan, limits));
    let at_hand = ports as f64 / PORTS_AT_HAND;
    if !closes_first(plan) || in_all.min(per_s * held_s) <= at_hand {
        return None;
    }
    let (per_s, example) = (at_hand / held_s, example_of_sources(plan));
    Some(format!(
        "each connection that we close holds its port for {held_s} s (TIME_WAIT), and connect(2) takes every second of \
         {ports} ports first: beyond {per_s:.0} connections/s it has to search and gets slow, and fails with \
         EADDRNOTAVAIL when none is left; --close rst leaves no TIME_WAIT, --source{example} has more ports"
    ))
}

/// Of a server on this machine: the limits of another machine are not known here.
fn accept_queue(plan: &Plan, limits: &Limits) -> Option<String> {
    let (at_once, limit) = (u64::from(plan.connections.count), limits.somaxconn);
    (is_on_loopback(plan) && at_once > limit).then(|| {
        format!(
            "{at_once} connections are opened at once, an accept queue holds {limit} (net.core.somaxconn): a server \
             that accepts more slowly lets some wait for a second or more; raise somaxconn and the server's --backlog"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::options::args::plan_of;

    const DEFAULTS: Limits = Limits {
        descriptors: 20_000,
        ports: 28_232,
        time_wait_reuse: 2,
        time_wait_reuse_delay_s: 1.0,
        somaxconn: 4096,
    };
    const ROOMY: Limits = Limits { descriptors: 1_000_000, ..DEFAULTS };

    fn advice_at(host: &str, flags: &str, limits: &Limits) -> Result<Vec<String>, String> {
        advise(&plan_of(flags, &format!("http://{host}/")), limits)
    }

    fn advice(flags: &str, limits: &Limits) -> Result<Vec<String>, String> {
        advice_at("127.0.0.1:8080", flags, limits)
    }

    #[test]
    fn a_common_run_is_started_without_a_word() {
        for flags in [
            "",
            "--duration 300ms --connections 4000 --threads 2",
            "--duration 250ms --requests-per-connection 0",
            "--requests-per-connection 1 --duration 1h",
            "--requests-per-connection 0 --rate 14000 --duration 1h",
            "--requests-per-connection 0 --close rst --duration 1h",
            "--requests-per-connection 0 --requests 14000",
            "--background idle:15000",
        ] {
            assert_eq!(advice(flags, &DEFAULTS), Ok(vec![]), "{flags}");
        }
    }

    #[test]
    fn what_needs_more_descriptors_than_there_are_is_refused() {
        let error = advice("--connections 15000 --background half-open:4000,slow-read:1000", &DEFAULTS).unwrap_err();
        assert!(error.contains("20000 connections") && error.contains("20033") && error.contains("ulimit"), "{error}");
        assert!(advice("--connections 19967", &DEFAULTS).is_ok());
        assert!(advice("--connections 19968", &DEFAULTS).is_err());
    }

    #[test]
    fn more_connections_than_ports_are_refused_unless_there_are_more_sources() {
        assert!(advice("--background idle:28168", &ROOMY).is_ok());
        let error = advice("--background idle:28169", &ROOMY).unwrap_err();
        assert!(error.contains("--source 127.1.0.0/24") && error.contains("28232 ports"), "{error}");
        assert!(advice("--background idle:28169 --source 127.0.0.2,127.0.0.3", &ROOMY).is_ok());
        assert!(advise(&plan_of("--background idle:40000", "http://unix:/tmp/socket"), &ROOMY).is_ok());
    }

    #[test]
    fn ports_in_time_wait_are_counted_by_how_long_they_are_held() {
        // Half of 28,232 ports: 235 connections a second for a minute, 14,116 where they are reused after a second.
        let warned = |flags: &str, host: &str, limits: &Limits| advice_at(host, flags, limits).unwrap().len();
        let never = Limits { time_wait_reuse: 0, ..DEFAULTS };
        let flags = "--requests-per-connection 0 --duration 2m --rate 236";
        assert_eq!(warned(flags, "127.0.0.1", &never), 1);
        assert_eq!(warned("--requests-per-connection 0 --duration 2m --rate 235", "127.0.0.1", &never), 0);
        assert_eq!(warned(flags, "localhost:80", &DEFAULTS), 0);
        assert_eq!(warned(flags, "[::1]:80", &DEFAULTS), 0);
        assert_eq!(warned(flags, "192.0.2.1", &DEFAULTS), 1);
        assert_eq!(warned(flags, "192.0.2.1", &Limits { time_wait_reuse: 1, ..DEFAULTS }), 0);
        assert_eq!(
            warned(
                "--requests-per-connection 0 --duration 2m --rate 236 --source 127.0.0.2,127.0.0.3",
                "127.0.0.1",
                &never
            ),
            0
        );
        // A run that ends before the ports do.
        assert_eq!(warned("--requests-per-connection 0 --duration 30s --rate 450", "127.0.0.1", &never), 0);
        // A closed loop may be fast enough.
        let line = advice("--requests-per-connection 0 --duration 10s", &DEFAULTS).unwrap().remove(0);
        assert!(
            line.contains("14116 connections/s") && line.contains("slow") && line.contains("--close rst"),
            "{line}"
        );
    }

    #[test]
    fn connections_that_open_at_once_are_compared_with_the_accept_queue() {
        assert_eq!(advice("--connections 4096", &DEFAULTS), Ok(vec![]));
        assert!(advice("--connections 4097", &DEFAULTS).unwrap()[0].contains("somaxconn"));
        assert_eq!(advice_at("192.0.2.1", "--connections 4097", &DEFAULTS), Ok(vec![]));
    }
}
