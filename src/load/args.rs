//! The command line, read once into plain values; what contradicts itself is refused here.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum, value_parser};

use crate::load::schedule::{Arrivals, Rate};
use crate::load::text::Heading;
use crate::units::{format_duration, parse_duration};

const EXAMPLES: &str = "\
Examples:
  loadgen http://127.0.0.1:8080/
      Closed loop: 64 connections, each sends its next request when the last is answered.
      What is the most that this server can do? It sets the pace: latency says little.

  loadgen --rate 10000 --arrivals poisson --warmup 2s http://127.0.0.1:8080/
      Open loop: requests are due at moments of their own, like those of real users.
      How long do they wait? Latency counts from the moment a request was due, so a
      server that stalls cannot hide it.

  loadgen --requests-per-connection 1 --threads 2 http://127.0.0.1:8080/
      A new connection for every request. What does accepting cost, and who gets them?

  loadgen --connections 2 --requests 6 --trace 6 http://127.0.0.1:8080/
      Two clients, answer by answer.

Exit status: 0 measured; 1 nothing could be measured, and standard error says why;
2 wrong flags. Ctrl-C ends the run early and still prints what was measured.";

/// Sends HTTP requests, measures the answers, and tells how evenly the workers behind the port shared them.
#[derive(Debug, Clone, Parser)]
#[command(name = "loadgen", version, after_help = EXAMPLES)]
pub struct LoadArgs {
    /// What to ask for: http://HOST:PORT/PATH; an IPv6 address stands in brackets
    #[arg(value_name = "URL")]
    pub target: Target,

    /// Connections that send requests, all threads together
    #[arg(long, value_name = "N", default_value_t = 64,
          value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub connections: u32,

    /// Threads, which divide connections and schedule among them; one saturates most servers
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = value_parser!(u32).range(1..=1024))]
    pub threads: u32,

    /// How long to measure, after the warm-up: 250ms, 10s, 2m
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = parse_positive_duration)]
    pub duration: Duration,

    /// Send exactly this many requests after the warm-up, instead of measuring for a --duration
    #[arg(long, value_name = "N", conflicts_with = "duration",
          value_parser = value_parser!(u64).range(1..u64::MAX))]
    pub requests: Option<u64>,

    /// Send for this long before measuring: caches fill, connections open, threads start
    #[arg(long, value_name = "DUR", default_value = "0s", value_parser = parse_duration)]
    pub warmup: Duration,

    /// Open loop: this many requests per second are due, whatever the server does; without it, closed loop
    #[arg(long, value_name = "R")]
    pub rate: Option<Rate>,

    /// Open loop: gaps all equal, or random as if from many independent users
    #[arg(long, value_enum, default_value_t = Spacing::Fixed, requires = "rate")]
    pub arrivals: Spacing,

    /// Close a connection after K answers; the K-th request says `Connection: close`, so that the server
    /// closes first and keeps the TIME_WAIT. Without it connections are kept for ever
    #[arg(long, value_name = "K", value_parser = value_parser!(u64).range(1..))]
    pub requests_per_connection: Option<u64>,

    /// Seed of everything random: the same seed gives the same due times
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,

    /// How long to wait for a connection, and for an answer from the moment its request was sent
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = parse_positive_duration)]
    pub timeout: Duration,

    /// An idle crowd: this many more connections, opened before the warm-up, that send nothing
    #[arg(long, value_name = "N", default_value_t = 0,
          value_parser = value_parser!(u32).range(0..=1_000_000))]
    pub idle: u32,

    /// Show the first N answers one by one, like siege
    #[arg(long, value_name = "N", default_value_t = 0,
          value_parser = value_parser!(u32).range(0..=1_000_000))]
    pub trace: u32,

    /// The method of the requests
    #[arg(long, value_enum, ignore_case = true, default_value_t = Method::Get)]
    pub method: Method,

    /// Bytes in the body of each POST
    #[arg(long, value_name = "N", default_value_t = 0,
          value_parser = value_parser!(u32).range(0..=16_777_216))]
    pub body_bytes: u32,

    /// How many workers the server has, so that those that got nothing count too
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..=65_536))]
    pub workers: Option<u32>,

    /// Say on standard error when a phase begins: `phase crowd`, then warmup, measure, drain
    #[arg(long)]
    pub phases: bool,

    /// How to print the result
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,

    /// Write the histograms here too: HdrHistogram V2 interval log, nanoseconds, tags latency, service,
    /// connect
    #[arg(long, value_name = "FILE")]
    pub hlog: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Spacing {
    Fixed,
    Poisson,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Method {
    #[value(name = "GET")]
    Get,
    #[value(name = "HEAD")]
    Head,
    #[value(name = "POST")]
    Post,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
}

impl LoadArgs {
    /// The command line of this process. Explains and exits with status 2 when it makes no sense.
    pub fn from_command_line() -> LoadArgs {
        let args = LoadArgs::parse();
        if let Some(contradiction) = args.contradiction() {
            LoadArgs::command().error(ErrorKind::ArgumentConflict, contradiction).exit();
        }
        args
    }

    /// What no single flag can know.
    fn contradiction(&self) -> Option<String> {
        if self.threads > self.connections {
            return Some(format!(
                "{} threads cannot share {} connections: each needs one",
                self.threads, self.connections
            ));
        }
        if self.body_bytes > 0 && self.method != Method::Post {
            return Some("--body-bytes needs --method POST: the other methods have no body".into());
        }
        None
    }

    pub fn arrivals(&self) -> Arrivals {
        match (self.rate, self.arrivals) {
            (None, _) => Arrivals::Closed,
            (Some(rate), Spacing::Fixed) => Arrivals::Fixed(rate),
            (Some(rate), Spacing::Poisson) => Arrivals::Poisson(rate, self.seed),
        }
    }

    /// What stands above the text report.
    pub fn heading(&self, colour: bool) -> Heading<'_> {
        Heading {
            url: format!("http://{}{}", self.target.authority, self.target.path),
            load: self.describe(),
            method: self.method.name(),
            path: &self.target.path,
            open_loop: self.rate.is_some(),
            colour,
        }
    }

    /// The load in words.
    fn describe(&self) -> String {
        let pace = match (self.rate, self.arrivals) {
            (None, _) => "closed loop".into(),
            (Some(rate), Spacing::Fixed) => format!("open loop, {}/s at fixed gaps", rate.per_s()),
            (Some(rate), Spacing::Poisson) => {
                format!("open loop, {}/s by Poisson (seed {})", rate.per_s(), self.seed)
            }
        };
        let churn = match self.requests_per_connection {
            None => String::new(),
            Some(1) => ", a new connection for every request".into(),
            Some(k) => format!(", {k} requests per connection"),
        };
        let crowd = if self.idle > 0 { format!(", {} more idle", self.idle) } else { String::new() };
        let warmup = match self.warmup {
            Duration::ZERO => String::new(),
            warmup => format!(", after {} of warm-up", format_duration(warmup)),
        };
        format!(
            "{pace}, {}{crowd}{churn}, {}{warmup}",
            counted(self.connections, "connection"),
            counted(self.threads, "thread")
        )
    }
}

/// `1 thread`, `2 threads`.
fn counted(count: u32, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

impl Method {
    pub fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
        }
    }
}

fn parse_positive_duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("it must be longer than nothing".into()),
        duration => Ok(duration),
    }
}

/// The parts of the URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Without the brackets of an IPv6 address.
    pub host: String,
    pub port: u16,
    /// What stands in the `Host` header: host and port as in the URL.
    pub authority: String,
    /// Path and query, at least `/`.
    pub path: String,
}

impl Target {
    /// The address to connect to. Of several the first IPv4 one, since the servers listen on 127.0.0.1 by
    /// default and `localhost` is often ::1 first.
    pub fn resolve(&self) -> Result<SocketAddr, String> {
        let addresses: Vec<SocketAddr> = (self.host.as_str(), self.port)
            .to_socket_addrs()
            .map_err(|error| format!("resolve {}: {error}; is the name right?", self.host))?
            .collect();
        let first_v4 = addresses.iter().find(|address| address.is_ipv4());
        first_v4
            .or(addresses.first())
            .copied()
            .ok_or_else(|| format!("resolve {}: the name has no address", self.host))
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(url: &str) -> Result<Target, String> {
        let (scheme, rest) =
            url.split_once("://").ok_or("a URL looks like http://HOST:PORT/PATH; the scheme is missing")?;
        match scheme.to_ascii_lowercase().as_str() {
            "http" => {}
            "https" => {
                return Err("https is not spoken here, only http: measure the server behind the TLS".into());
            }
            _ => return Err(format!("{scheme} is not spoken here, only http")),
        }
        // Anything else in the request line would be a second request (RFC 3986: a URL is printable ASCII).
        if !rest.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("a URL holds no spaces, control or non-ASCII characters; write them as %20".into());
        }
        let rest = rest.split('#').next().unwrap_or(rest);
        let path_at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(path_at);
        let (host, port) = split_authority(authority)?;
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Target { host, port, authority: authority.into(), path: format!("{slash}{path}") })
    }
}

fn split_authority(authority: &str) -> Result<(String, u16), String> {
    if authority.contains('@') {
        return Err("user and password in a URL are not supported".into());
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or("the ] after the IPv6 address is missing")?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| format!("[{host}] is not an IPv6 address"))?;
            (host, port)
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    if host.is_empty() {
        return Err("the URL names no host".into());
    }
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().ok().filter(|&port| port > 0).ok_or("a port lies between 1 and 65535")?,
        None if port.is_empty() => 80,
        None => return Err(format!("{port:?} after the address is not a port")),
    };
    Ok((host.into(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<LoadArgs, clap::Error> {
        LoadArgs::try_parse_from([&["loadgen"], arguments, &["http://127.0.0.1:8080/"]].concat())
    }

    #[test]
    fn urls_are_taken_apart() {
        let target: Target = "http://127.0.0.1:8080/a/b?c=d#e".parse().unwrap();
        assert_eq!((target.host.as_str(), target.port), ("127.0.0.1", 8080));
        assert_eq!((target.authority.as_str(), target.path.as_str()), ("127.0.0.1:8080", "/a/b?c=d"));
        let target: Target = "HTTP://localhost".parse().unwrap();
        assert_eq!((target.host.as_str(), target.port, target.path.as_str()), ("localhost", 80, "/"));
        let target: Target = "http://[::1]:81?q".parse().unwrap();
        assert_eq!((target.host.as_str(), target.port, target.path.as_str()), ("::1", 81, "/?q"));
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for bad in [
            "",
            "127.0.0.1:8080",
            "https://127.0.0.1/",
            "ftp://127.0.0.1/",
            "http://",
            "http:///path",
            "http://host:0/",
            "http://host:65536/",
            "http://host:x/",
            "http://[::1/",
            "http://[host]:80/",
            "http://[::1]80/",
            "http://user@host/",
            "http://host/a b",
            "http://host/\r\nX: y",
        ] {
            assert!(bad.parse::<Target>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn numbers_that_are_zero_negative_or_too_large_are_refused() {
        for bad in [
            ["--connections", "0"],
            ["--connections", "-1"],
            ["--connections", "99999999999"],
            ["--threads", "0"],
            ["--duration", "0s"],
            ["--duration", "10"],
            ["--requests", "0"],
            ["--requests", "18446744073709551615"],
            ["--rate", "0"],
            ["--rate=-5", "--phases"],
            ["--timeout", "0s"],
            ["--requests-per-connection", "0"],
            ["--idle", "-1"],
            ["--workers", "0"],
        ] {
            assert!(parse(&bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        assert!(parse(&["--duration", "1s", "--requests", "5"]).is_err());
        assert!(parse(&["--arrivals", "poisson"]).is_err());
        assert!(parse(&["--threads", "3", "--connections", "2"]).unwrap().contradiction().is_some());
        assert!(parse(&["--body-bytes", "3"]).unwrap().contradiction().is_some());
        assert!(parse(&["--body-bytes", "3", "--method", "post"]).unwrap().contradiction().is_none());
        assert!(parse(&["--requests", "5"]).unwrap().contradiction().is_none());
    }
}
