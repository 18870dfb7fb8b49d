//! What `cluster ctl` asks for.

use serde_json::{Value, json};

use super::Master;
use crate::cluster::control::Request;
use crate::cluster::protocol::Address;
use crate::cluster::token::Uid;
use crate::cluster::worker::{State, Worker};
use crate::scoreboard::Count;
use crate::sys::procfs::resident_kib;
use crate::units::monotonic_ns;

impl Master {
    pub(super) fn hear_client(&mut self, client: u64) {
        let Some(request) = self.control.as_mut().and_then(|control| control.hear(client)) else { return };
        if self.is_told_to_stop {
            return self.refuse(client, "the cluster stops");
        }
        match request {
            Request::Status => self.answer(client, self.status()),
            Request::Scale { .. } if self.has_given_up => {
                self.refuse(
                    client,
                    "the program was given up; mend it, and `cluster ctl reload` tries it once more",
                );
            }
            Request::Reload => self.reload(Some(client)),
            Request::Scale { workers } => self.scale(client, workers),
            Request::Send { worker, message } => self.send_message(client, worker, &message),
            Request::Stop => {
                self.is_told_to_stop = true;
                self.stop_clients.push(client);
            }
        }
    }

    pub(super) fn answer(&mut self, client: u64, line: Value) {
        self.control.iter_mut().for_each(|control| control.answer(client, line.clone()));
    }

    pub(super) fn refuse(&mut self, client: u64, why: &str) {
        self.control.iter_mut().for_each(|control| control.refuse(client, why));
    }

    pub(super) fn tell_client(&mut self, client: u64, line: &Value) {
        self.control.iter_mut().for_each(|control| control.tell(client, line));
    }

    fn status(&self) -> Value {
        let words: Vec<_> = self.args.program.iter().map(|word| word.to_string_lossy()).collect();
        let mut workers: Vec<&Worker> = self.roster.iter().collect();
        workers.sort_by_key(|worker| (worker.number, worker.uid));
        let mut rows: Vec<Value> = workers.into_iter().map(|worker| self.status_of(worker)).collect();
        let vacant = (0..self.workers).filter(|&number| self.is_vacant(number));
        rows.extend(vacant.map(|number| json!({"worker": number, "state": "vacant"})));
        rows.sort_by_key(|row| row["worker"].as_u64());
        json!({
            "program": words.join(" "),
            "listen": self.address.as_ref().map(Address::to_string),
            "uptime_s": self.scoreboard.uptime_s(),
            "wanted": self.workers,
            "reloading": self.roll.is_some(),
            "gave_up": self.has_given_up,
            "lives": self.lives.report(),
            "workers": rows,
        })
    }

    /// What the program alone knows (requests, open connections) is there where it counts in the scoreboard. Counts are of
    /// all who were this number.
    fn status_of(&self, worker: &Worker) -> Value {
        let row = self.scoreboard.row(worker.number);
        json!({
            "worker": worker.number,
            "unique_id": worker.uid.0,
            "pid": worker.pid.as_raw(),
            "state": if worker.is_hung { "hung" } else { worker.state.name() },
            "age_s": (monotonic_ns() - worker.started_ns) as f64 / 1e9,
            "accepted": row.get(Count::Accepted),
            "requests": worker.counts.then(|| row.get(Count::Requests)),
            "active": worker.counts.then(|| row.get(Count::Active)),
            "unanswered": worker.unanswered.len(),
            "rss_kib": resident_kib(worker.pid.as_raw()),
        })
    }

    fn scale(&mut self, client: u64, workers: usize) {
        let (before, most) = (self.workers, self.args.capacity());
        if !(1..=most).contains(&workers) {
            let why = format!("there can be 1 to {most} workers here; --most-workers allows more");
            return self.refuse(client, &why);
        }
        self.events.tell("scale", json!({"from": before, "to": workers}));
        self.workers = workers;
        self.scoreboard.set_rows(workers.max(self.scoreboard.rows()));
        let surplus = |worker: &&Worker| worker.number >= workers && worker.state != State::Leaving;
        let surplus: Vec<Uid> = self.roster.iter().filter(surplus).map(|worker| worker.uid).collect();
        surplus.into_iter().for_each(|uid| self.dismiss(uid));
        // Nobody misses them.
        self.vacant_since_ns[workers..].fill(None);
        self.is_start_due[workers..].fill(false);
        self.shorten_reload(workers);
        (before..workers).for_each(|number| self.start_if_vacant(number));
        let done = format!("from {before} to {workers} workers");
        self.answer(client, json!({"done": done, "wanted": workers}));
    }

    fn send_message(&mut self, client: u64, to: Option<usize>, message: &Value) {
        if message["cmd"].as_str().is_some_and(|cmd| cmd.starts_with("NODE_")) {
            return self.refuse(client, "messages with a cmd that begins with NODE_ are the library's own");
        }
        let is_meant = |worker: &Worker| to.is_none_or(|number| number == worker.number);
        let is_able =
            |worker: &&Worker| is_meant(worker) && worker.state != State::Leaving && worker.has_room();
        let able: Vec<Uid> = self.roster.iter().filter(is_able).map(|worker| worker.uid).collect();
        for &uid in &able {
            self.send(uid, message);
        }
        match able.len() {
            0 => self.refuse(client, "no such worker is there, or it does not read what it is sent"),
            sent => {
                self.answer(client, json!({"done": format!("workers it was sent to: {sent}"), "sent": sent}))
            }
        }
    }

    pub(super) fn send(&mut self, uid: Uid, message: &Value) {
        if let Some(ipc) = self.roster.ipc(uid) {
            ipc.send(message);
        }
        self.watch(uid);
    }
}
