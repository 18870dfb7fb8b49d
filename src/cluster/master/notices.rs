//! The file that all workers want to know: looked at once for all of them.

use super::Master;
use crate::cluster::protocol;
use crate::cluster::timers::Due;
use crate::cluster::token::Uid;
use crate::units::monotonic_ns;

impl Master {
    /// The watched file may have changed.
    pub(super) fn look_at_source(&mut self) {
        let Some(notifier) = &mut self.notifier else { return };
        let before = notifier.looks;
        let has_changed = notifier.has_changed(monotonic_ns());
        let looks = notifier.looks - before;
        if let Some(next_ns) = notifier.next_look_ns() {
            self.timers.at(next_ns, Due::Look);
        }
        self.lives.count("notifier_looks", looks as f64);
        if has_changed {
            for uid in self.roster.uids() {
                self.notify(uid);
            }
        }
    }

    /// Tells a worker what the watched file says.
    pub(super) fn notify(&mut self, uid: Uid) {
        let Some(notifier) = &self.notifier else { return };
        let message = protocol::notify(&notifier.path().to_string_lossy(), notifier.value());
        if self.roster.get(uid).is_some_and(|worker| worker.is_online && worker.has_room()) {
            self.lives.count("notifier_pushes", 1.0);
            self.send(uid, &message);
        }
    }
}
