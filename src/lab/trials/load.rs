//! Requests to an application while something is done to it: `loadgen`, started as a program.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use serde_json::Value;

use super::manager::Manager;
use crate::lab::check::client::served_within;
use crate::lab::program::{Running, Stop};
use crate::report::LoadReport;

/// Beyond the time in which it may have an answer.
const GRACE: Duration = Duration::from_secs(60);
/// How long a request may take, unless a trial says otherwise.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// A port of the loopback device that nobody listens on.
pub fn free_port() -> Result<u16, Stop> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    listener.map(|address| address.port()).map_err(|error| Stop::Failed(format!("find a free port: {error}")))
}

/// What the application answers a request on a connection of its own; `None` where there is no answer.
pub fn ask(port: u16) -> Option<Value> {
    let answer = served_within(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), ANSWER_WITHIN).ok()?;
    serde_json::from_slice(&answer.body).ok()
}

/// A client that sends until it has a report.
pub struct Load {
    running: Running,
    within: Duration,
}

impl Load {
    /// Sends for so long, once it is there, and gives up a request after `timeout`; `flags` are those of `loadgen`.
    pub fn start(
        manager: &Manager,
        flags: &str,
        duration: Duration,
        timeout: Duration,
        port: u16,
    ) -> Result<Load, Stop> {
        let command = format!("loadgen {flags} --warmup 0s --progress phases --format json");
        let [duration_ms, timeout_ms] = [duration, timeout].map(|time| format!("{}ms", time.as_millis()));
        let url = format!("http://127.0.0.1:{port}/");
        let running = manager.launch_other(&command, &["--duration", &duration_ms, "--timeout", &timeout_ms, &url])?;
        Ok(Load { running, within: duration + timeout + GRACE })
    }

    pub fn finish(mut self) -> Result<LoadReport, Stop> {
        let document = self.running.finish(self.within, |_| ())?;
        self.running.parse(&document)
    }
}

/// Requests that were answered, in time or late.
pub fn answered(report: &LoadReport) -> f64 {
    (report.requests + report.outside_window.late) as f64
}

/// Requests that have no answer.
pub fn lost(report: &LoadReport) -> f64 {
    (report.lost.len() as u64 + report.lost_more) as f64
}
