//! What a manager does when an application crashes or needs too much memory, and what is left when the manager is
//! killed.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::manager::{ExecMode, Manager};
use super::{Measured, numbers};
use crate::lab::observe::processes::Process;
use crate::lab::program::Stop;

/// How often the list is asked for, which costs the manager something.
const LIST_EVERY: Duration = Duration::from_millis(500);
/// Beyond the time that a loop should take: starting Node, and the manager's own time.
const GRACE: Duration = Duration::from_secs(6);
const STARTED_WITHIN: Duration = Duration::from_secs(30);

/// Programs that end again and again, one for each period, without a delay before a restart and with this one.
pub fn crash_loops(manager: &Manager, max_restarts: u32, periods: &[Duration], delay: Duration) -> Measured {
    let loops: Vec<(Duration, Duration)> =
        periods.iter().flat_map(|period| [(*period, Duration::ZERO), (*period, delay)]).collect();
    let name = |number: usize| format!("loop-{number}");
    let app = |(number, (period, delay)): (usize, &(Duration, Duration))| {
        let starts = manager.path(&name(number));
        let args = [&*starts.to_string_lossy(), &period.as_millis().to_string()];
        let keys = json!({"max_restarts": max_restarts, "restart_delay": delay.as_millis() as u64});
        manager.app(&name(number), "crash.js", &args, keys)
    };
    manager.start(&loops.iter().enumerate().map(app).collect::<Vec<Value>>())?;
    let lives = max_restarts + 1;
    let longest = loops.iter().map(|(period, delay)| (*period + *delay) * lives).max().unwrap_or_default();
    let begin = Instant::now();
    let mut given_up = Vec::new();
    while given_up.len() < loops.len() && begin.elapsed() < longest + GRACE {
        manager.pause_until(Instant::now() + LIST_EVERY)?;
        let entries = manager.list()?.into_iter();
        given_up = entries.filter(|entry| entry.pm2_env.status == "errored").map(|entry| entry.name).collect();
    }
    // `crash.js` appends a byte to its file at each start.
    let starts = |number: usize| fs::metadata(manager.path(&name(number))).map_or(0, |file| file.len());
    // Given up within its restarts: a program that was never started does not count, nor one that had too many starts.
    let within =
        |number: &usize| given_up.contains(&name(*number)) && (1..=u64::from(lives)).contains(&starts(*number));
    Ok(numbers([
        ("crash_loops", loops.len() as f64),
        ("given_up", (0..loops.len()).filter(within).count() as f64),
        ("most_starts", (0..loops.len()).map(starts).max().unwrap_or(0) as f64),
    ]))
}

/// How long a process stays that needs more than its limit of memory.
pub fn memory_limit(manager: &Manager, within: Duration) -> Measured {
    let file = manager.path("over-the-limit");
    let args = [&*file.to_string_lossy(), "200"];
    manager.start(&[manager.app("memory", "use-memory.js", &args, json!({"max_memory_restart": "100M"}))])?;
    let first = manager.list()?.first().and_then(|entry| Process::find(entry.pid));
    let first = first.ok_or_else(|| Stop::Failed("the program that needs memory does not run".to_string()))?;
    manager.await_value(STARTED_WITHIN, "the memory", || Ok(file.exists().then_some(())))?;
    let begin = Instant::now();
    let ended = manager.poll(within, || Ok((!first.is_alive()).then(|| begin.elapsed())))?;
    Ok(numbers([("over_limit_s", ended.unwrap_or(within).as_secs_f64()), ("still_over", f64::from(ended.is_none()))]))
}

/// Kills the daemon at random moments while it saves its list, and looks at what is saved.
pub fn killed_saves(manager: &Manager, kills: u32, within: Duration, seed: u64) -> Measured {
    const APPS: usize = 5;
    let apps: Vec<Value> = (0..APPS)
        .map(|number| json!({"name": format!("sleep-{number}"), "script": "sleep", "args": "1000", "interpreter": "none", "exec_mode": ExecMode::Fork}))
        .collect();
    manager.start(&apps)?;
    let then = Instant::now();
    manager.output(&["save"])?;
    let usual = then.elapsed();
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut done, mut damaged, mut missing) = (0, 0, 0);
    let begin = Instant::now();
    while done < kills && begin.elapsed() < within {
        let mut save = manager.launch(&["save"])?;
        manager.pause_until(Instant::now() + usual.mul_f64(random.f64()))?;
        manager.kill_daemon()?;
        save.terminate(GRACE);
        done += 1;
        let saved = fs::read(manager.dump()).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        damaged += u32::from(!saved.is_some_and(|saved| has_all(&saved, &apps)));
        manager.succeeds(&["resurrect"])?;
        let online = manager.count("online")?;
        missing += u32::from(online < APPS);
        if online < APPS {
            manager.succeeds(&["kill"])?;
            manager.start(&apps)?;
            manager.output(&["save"])?;
        }
    }
    Ok(numbers([("kills", done.into()), ("dumps_damaged", damaged.into()), ("lists_incomplete", missing.into())]))
}

/// Whether a dump names all applications, wherever each manager writes the names.
fn has_all(saved: &Value, apps: &[Value]) -> bool {
    let text = saved.to_string();
    apps.iter().all(|app| text.contains(&format!("\"name\":{}", app["name"])))
}
