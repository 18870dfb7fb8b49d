//! How many connections each worker holds, over the time of a run: looks at the scoreboard, which costs the server
//! nothing.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded};
use serde::{Deserialize, Serialize};

use crate::scoreboard::{Count, Scoreboard};

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(50);

/// Looks kept in the row, evenly spaced, the last one included.
const KEPT: usize = 8;

/// The live connections of all workers at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// From the start of the client.
    pub at_ms: u64,
    /// By worker.
    pub active: Vec<u64>,
}

/// Looks again and again until it is told to end.
pub struct Observer {
    end: Sender<()>,
    looks: JoinHandle<Vec<Look>>,
}

impl Observer {
    pub fn start(scoreboard: Scoreboard) -> Observer {
        let (end, ended) = bounded::<()>(0);
        let looks = std::thread::spawn(move || {
            let start = Instant::now();
            let mut looks = Vec::new();
            while ended.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let active = (0..scoreboard.rows()).map(|id| scoreboard.row(id).get(Count::Active)).collect();
                looks.push(Look { at_ms: start.elapsed().as_millis() as u64, active });
            }
            looks
        });
        Observer { end, looks }
    }

    /// What was seen while anybody was connected.
    pub fn finish(self) -> Vec<Look> {
        drop(self.end);
        let mut looks = self.looks.join().unwrap_or_default();
        looks.retain(|look| look.active.iter().any(|&active| active > 0));
        thin(looks)
    }
}

fn thin(looks: Vec<Look>) -> Vec<Look> {
    let n = looks.len();
    if n <= KEPT {
        return looks;
    }
    (1..=KEPT).map(|i| looks[i * n / KEPT - 1].clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_thinned_evenly_and_the_last_is_kept() {
        let look = |at_ms| Look { at_ms, active: vec![1] };
        let kept: Vec<u64> = thin((1..=20).map(look).collect()).iter().map(|look| look.at_ms).collect();
        assert_eq!(kept, [2, 5, 7, 10, 12, 15, 17, 20]);
        assert_eq!(thin(vec![look(3)]), [look(3)]);
    }
}
