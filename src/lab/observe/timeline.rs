//! How many connections each worker holds, over the time of a run. Reading the scoreboard costs the server nothing.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use serde::{Deserialize, Serialize};

use crate::scoreboard::{Count, Scoreboard};

/// Between two snapshots.
const INTERVAL: Duration = Duration::from_millis(50);

/// Snapshots kept in the row, evenly spaced, the last one included.
const KEPT: usize = 8;

/// The open connections of all workers at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// From the start of the client.
    pub at_ms: u64,
    /// The open connections of each worker.
    pub active: Vec<u64>,
}

/// A thread that takes snapshots until it is ended.
pub struct Sampler {
    end: Sender<()>,
    snapshots: JoinHandle<Vec<Snapshot>>,
}

impl Sampler {
    pub fn start(scoreboard: Scoreboard) -> Sampler {
        let (end, ended) = bounded::<()>(0);
        let snapshots = std::thread::spawn(move || {
            let start = Instant::now();
            let mut snapshots = Vec::new();
            while ended.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let active = (0..scoreboard.rows()).map(|id| scoreboard.row(id).get(Count::Active)).collect();
                snapshots.push(Snapshot { at_ms: start.elapsed().as_millis() as u64, active });
            }
            snapshots
        });
        Sampler { end, snapshots }
    }

    /// The snapshots with at least one connection.
    pub fn finish(self) -> Vec<Snapshot> {
        drop(self.end);
        let mut snapshots = self.snapshots.join().unwrap_or_default();
        snapshots.retain(|snapshot| snapshot.active.iter().any(|&active| active > 0));
        thin(snapshots)
    }
}

fn thin(snapshots: Vec<Snapshot>) -> Vec<Snapshot> {
    let n = snapshots.len();
    if n <= KEPT {
        return snapshots;
    }
    (1..=KEPT).map(|i| snapshots[i * n / KEPT - 1].clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_thinned_evenly_and_the_last_is_kept() {
        let snapshot = |at_ms| Snapshot { at_ms, active: vec![1] };
        let kept: Vec<u64> = thin((1..=20).map(snapshot).collect()).iter().map(|snapshot| snapshot.at_ms).collect();
        assert_eq!(kept, [2, 5, 7, 10, 12, 15, 17, 20]);
        assert_eq!(thin(vec![snapshot(3)]), [snapshot(3)]);
    }
}
