//! Who is alive. A worker that was given something answers for it; one that has nothing to answer for is asked for a sign
//! of life, which its library gives without asking the program (`Ipc::ping`): so it shows that the process's event loop turns,
//! and no more.

use std::time::Duration;

use serde_json::json;

use super::Master;
use crate::cluster::timers::Due;
use crate::cluster::token::Uid;
use crate::cluster::worker::State;

impl Master {
    /// How often to look. A hang is to be known in time, so at least twice until the time-out.
    pub(super) fn heartbeat_ns(&self) -> u64 {
        let beat =
            self.args.hang_timeout.map_or(self.args.heartbeat, |hang| self.args.heartbeat.min(hang / 2));
        beat.as_nanos().max(1_000_000) as u64
    }

    pub(super) fn look_for_life(&mut self, now_ns: u64) {
        let beat_ns = self.heartbeat_ns();
        for uid in self.roster.uids() {
            self.look_at(uid, now_ns, beat_ns);
        }
        self.control.iter_mut().for_each(|control| control.unmute(&self.epoll));
        // What its reader did not take before.
        self.console.borrow_mut().flush(Duration::ZERO);
        self.timers.at(now_ns + beat_ns, Due::Heartbeat);
    }

    fn look_at(&mut self, uid: Uid, now_ns: u64, beat_ns: u64) {
        let hang_ns = self.args.hang_timeout.map(|timeout| timeout.as_nanos() as u64);
        let Some(worker) = self.roster.get_mut(uid) else { return };
        // Who leaves has its time for that.
        let is_watched = worker.is_online && worker.state != State::Leaving;
        let Some(ipc) = worker.ipc.as_mut().filter(|_| is_watched) else { return };
        if ipc.awaits_acknowledgement() || !worker.unanswered.is_empty() {
            let since_ns = *worker.silent_since_ns.get_or_insert(now_ns);
            let silent_ns = now_ns - since_ns;
            let is_over = hang_ns.is_some_and(|hang_ns| silent_ns >= hang_ns);
            if silent_ns >= beat_ns && !worker.is_hung {
                worker.is_hung = true;
                self.lives.report.hangs += 1;
                self.tell("hang", uid, json!({"silent_s": silent_ns as f64 / 1e9}));
                self.leave_free_lists(uid);
            }
            if is_over {
                let what = format!("it has given no sign of life for {:.3} s", silent_ns as f64 / 1e9);
                self.tell("killed", uid, json!({"why": what}));
                self.roster.get(uid).iter().for_each(|worker| worker.kill());
            }
        } else if worker.heard_ns + beat_ns <= now_ns {
            ipc.ping();
            worker.silent_since_ns = Some(now_ns);
            self.watch(uid);
        }
    }

    /// Something came from this worker.
    pub(super) fn note_life(&mut self, uid: Uid) {
        let Some(worker) = self.roster.get_mut(uid) else { return };
        worker.heard_ns = self.now_ns;
        worker.silent_since_ns = None;
        if worker.is_hung {
            worker.is_hung = false;
            self.tell("recovered", uid, json!({}));
            self.return_to_free_lists(uid);
        }
    }
}
