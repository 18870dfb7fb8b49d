//! What an application in cluster mode has more: its `cluster` is asked for something, and says what happens to the
//! workers.

use std::io;

use serde_json::json;

use super::super::cluster_mode::{CallOutcome, ClusterCall, WorkerEvent, WorkerEventKind};
use super::{God, PmToken};
use crate::console;
use crate::failure::Failure;
use crate::sys::epoll::Interest;
use crate::units::utc_now_ms;

impl God {
    /// Replaces the workers of a cluster one by one, each when its successor listens; anything else is restarted.
    pub fn reload(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        process.saved.budget.reset();
        self.reload_unasked(id);
    }

    pub(super) fn reload_unasked(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        if !process.is_cluster() || process.running.is_none() || process.saved.after_stop.is_some() {
            return self.restart_unasked(id);
        }
        process.count_restart();
        let call = ClusterCall::reload(&self.home, id, &process.environment(&self.home));
        if let Err(failure) = self.watch_outputs(id) {
            console::log(failure);
        }
        self.call(id, call);
        // A new configuration has taken away what the old one watched.
        if let Some(process) = self.processes.get_mut(&id) {
            process.begin_watching();
        }
        self.watch_files(id);
        self.report(id, "reload");
    }

    pub(super) fn call(&mut self, id: u32, call: io::Result<ClusterCall>) {
        let interest = Interest::EPOLLIN | Interest::EPOLLOUT | Interest::EPOLLET;
        let watched = call.and_then(|call| {
            self.epoll.add(&call, PmToken::Call(id).encode(), interest)?;
            Ok(call)
        });
        self.has_changed = true;
        let Some(process) = self.processes.get_mut(&id) else { return };
        match watched {
            Ok(call) => (process.call, process.refusal) = (Some(call), None),
            Err(error) => process.refusal = Some(Failure::new("ask its cluster", error).to_string()),
        }
    }

    pub(super) fn call_ready(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let event = match process.call.as_mut().map(ClusterCall::go_on) {
            None | Some(CallOutcome::Pending) => return,
            Some(CallOutcome::Done(event)) => {
                process.saved.reason = None;
                event
            }
            Some(CallOutcome::Refused(why)) => {
                process.refusal = Some(why);
                "refused"
            }
        };
        process.call = None;
        self.report(id, event);
    }

    /// What its cluster says of the workers: one that ends unasked is a restart.
    pub(super) fn workers_ready(&mut self, id: u32) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        let Some(events) = &mut process.worker_events else { return };
        for WorkerEvent { worker, pid, kind } in events.read() {
            let Some(process) = self.processes.get_mut(&id) else { return };
            let Some(record) = process.saved.workers.get_mut(worker) else { continue };
            let mut line = json!({"at": utc_now_ms(), "event": "online", "pm_id": record.id, "pid": pid});
            match kind {
                WorkerEventKind::Online => {
                    process.online_workers.insert(worker);
                }
                WorkerEventKind::Exited(ending) => {
                    record.restarts += 1;
                    (line["event"], line["reason"]) = (json!("exit"), json!(ending));
                    process.saved.reason = Some(format!("worker {worker} {ending}"));
                }
            }
            line["name"] = json!(process.name());
            let are_online = process.online_workers.len() >= process.app.config.instances;
            self.has_changed = true;
            self.publish(line);
            if are_online {
                self.note_ready(id);
            }
        }
    }
}
