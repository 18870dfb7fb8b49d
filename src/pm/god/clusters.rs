//! What an application in cluster mode has more: its `cluster` is asked for something, and says what happens to the
//! workers.

use std::io;

use serde_json::{Value, json};

use super::super::json_lines::JsonLines;
use super::super::restarts::RestartBudget;
use super::cluster_mode::{self, ClusterCall, LARGEST_LOG, WorkerEvent, control_socket, options};
use super::process::ManagedProcess;
use super::{PmSource, Shared};
use crate::control_socket::connect_without_waiting;
use crate::failure::Failure;
use crate::sys::epoll::Interest;

impl ManagedProcess {
    /// Replaces the workers of a cluster one by one, each when its successor listens; anything else is restarted.
    pub fn reload(&mut self, shared: &mut Shared) {
        self.saved.budget = RestartBudget::default();
        self.reload_unasked(shared);
    }

    pub(super) fn reload_unasked(&mut self, shared: &mut Shared) {
        if !self.is_cluster() || self.running.is_none() || self.saved.after_stop.is_some() {
            return self.restart_unasked(shared);
        }
        self.count_restart();
        let environment = self.environment(&shared.home);
        let request = json!({"do": "reload", "environment": environment, "options": options(&self.app.config)});
        shared.report(self, "reload");
        self.call(shared, "reloaded", &request);
        // A new configuration has taken away what the old one watched.
        self.begin_watching(shared);
    }

    /// Asks its cluster. When that has done it, this event has happened.
    pub(super) fn call(&mut self, shared: &mut Shared, event: &'static str, request: &Value) {
        let id = self.id();
        let interest = Interest::EPOLLIN | Interest::EPOLLOUT | Interest::EPOLLET;
        let call = || {
            let lines = JsonLines::new(connect_without_waiting(&control_socket(&shared.home, id))?);
            shared.epoll.add(&lines.source, PmSource::Call.token(id), interest)?;
            Ok(ClusterCall { lines, unsent: format!("{request}\n").into_bytes(), event })
        };
        let call = call().map_err(|error: io::Error| Failure::new("ask its cluster", error).to_string());
        shared.has_changed = true;
        match call {
            Ok(call) => (self.call, self.refusal) = (Some(call), None),
            Err(why) => self.note_refusal(shared, why),
        }
    }

    fn note_refusal(&mut self, shared: &mut Shared, why: String) {
        shared.report_because(self, "refused", Some(&why));
        self.refusal = Some(why);
    }

    pub(super) fn call_ready(&mut self, shared: &mut Shared) {
        let Some(outcome) = self.call.as_mut().and_then(ClusterCall::go_on) else { return };
        self.call = None;
        match outcome {
            Ok(event) => {
                (self.saved.reason, self.saved.giveup) = (None, None);
                shared.report(self, event);
            }
            Err(why) => self.note_refusal(shared, why),
        }
    }

    /// What its cluster says of the workers: one that ends unasked is a restart.
    pub(super) fn workers_ready(&mut self, shared: &mut Shared) {
        let Some(events) = &mut self.worker_events else { return };
        let (events, _): (Vec<WorkerEvent>, bool) = events.read();
        cluster_mode::empty_log(&shared.home, self.name(), self.id(), LARGEST_LOG);
        for WorkerEvent { event, worker, pid, expected, finished, how, last } in events {
            if event == "giveup" {
                self.saved.giveup = Some(format!("its cluster has given it up: {last}"));
                shared.has_changed = true;
                shared.report_because(self, "giveup", self.saved.giveup.as_deref());
                continue;
            }
            let Some(record) = self.saved.workers.get_mut(worker) else { continue };
            let id = record.id;
            let (event, reason) = match event.as_str() {
                // To listen is not to be ready.
                "listening" if self.app.config.wait_ready => continue,
                "listening" | "ready" | "not-listening" => {
                    self.online_workers.insert(worker);
                    record.has_finished = false;
                    ("online", None)
                }
                "exit" if finished => {
                    record.has_finished = true;
                    shared.has_changed = true;
                    continue;
                }
                "exit" if !expected => {
                    record.restarts += 1;
                    self.saved.reason = Some(format!("worker {worker} {how}"));
                    ("exit", Some(how))
                }
                _ => continue,
            };
            shared.has_changed = true;
            shared.publish(event, self.name(), id, pid, reason.as_deref());
            if self.online_workers.len() >= self.app.config.instances {
                self.note_ready(shared);
            }
        }
    }
}
