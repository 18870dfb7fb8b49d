//! What `cluster ctl status` shows.

use serde_json::{Value, json};

use super::worker::Worker;
use super::workers::Workers;
use crate::scoreboard::{Count, Scoreboard};
use crate::sys::procfs::resident_kib;
use crate::units::monotonic_ns;

/// Of the workers; the master adds what only it knows.
pub fn of(workers: &Workers) -> Value {
    let words: Vec<_> = workers.args.program.iter().map(|word| word.to_string_lossy()).collect();
    let mut sorted: Vec<&Worker> = workers.iter().collect();
    sorted.sort_by_key(|worker| (worker.number, worker.id));
    let mut rows: Vec<Value> = sorted.into_iter().map(|worker| row(worker, &workers.scoreboard)).collect();
    let vacant = (0..workers.wanted).filter(|&number| workers.is_vacant(number));
    rows.extend(vacant.map(|number| json!({"worker": number, "state": "vacant"})));
    rows.sort_by_key(|row| row["worker"].as_u64());
    json!({
        "program": words.join(" "),
        "uptime_s": workers.scoreboard.uptime_s(),
        "wanted": workers.wanted,
        "lives": workers.counts.report(),
        "workers": rows,
    })
}

/// What only the program knows (requests, open connections) is there where it counts in the scoreboard. Counts are of all
/// processes that had this number.
fn row(worker: &Worker, scoreboard: &Scoreboard) -> Value {
    let row = scoreboard.row(worker.number);
    json!({
        "worker": worker.number,
        "unique_id": worker.id.0,
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
