//! Applications that serve: what a reload, a new version, a killed daemon and a slow worker cost those who ask.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::load::{self, ANSWER_WITHIN, Load};
use super::manager::{ExecMode, Manager};
use super::{Measured, numbers};
use crate::lab::program::Stop;
use crate::stats;

/// How long a new process may take to answer.
const STARTED_WITHIN: Duration = Duration::from_secs(30);
/// A client with connections that stay, and one with a connection for each request.
const KEPT_ALIVE: &str = "--connections 16 --retry";
const NEW_CONNECTIONS: &str = "--connections 8 --requests-per-connection 1 --rate 300";

/// The server, with these variables.
fn server(manager: &Manager, port: u16, mode: ExecMode, instances: usize, variables: Value, more: Value) -> Value {
    let mut env = json!({"PORT": port});
    env.as_object_mut().expect("it is one").extend(variables.as_object().cloned().unwrap_or_default());
    let mut keys = json!({"exec_mode": mode, "instances": instances, "env": env, "wait_ready": true});
    keys.as_object_mut().expect("it is one").extend(more.as_object().cloned().unwrap_or_default());
    manager.app(&format!("{mode:?}-server"), "server.js", &[], keys)
}

fn start_and_await(manager: &Manager, apps: &[Value], ports: &[u16]) -> Result<(), Stop> {
    manager.start(apps)?;
    ports
        .iter()
        .try_for_each(|port| manager.await_value(STARTED_WITHIN, "the first answer", || Ok(load::ask(*port))).map(drop))
}

/// Reloads two workers again and again while two clients ask them.
pub fn reloads(manager: &Manager, reloads: u32, duration: Duration) -> Measured {
    let port = load::free_port()?;
    let apps = [server(manager, port, ExecMode::Cluster, 2, json!({}), json!({}))];
    start_and_await(manager, &apps, &[port])?;
    let kept_alive = Load::start(manager, KEPT_ALIVE, duration, ANSWER_WITHIN, port)?;
    let new_connections = Load::start(manager, NEW_CONNECTIONS, duration, ANSWER_WITHIN, port)?;
    let begin = Instant::now();
    let (mut seconds, mut refused) = (Vec::new(), 0.0);
    for number in 1..=reloads {
        manager.pause_until(begin + duration * number / (reloads + 1))?;
        let then = Instant::now();
        refused += f64::from(!manager.reload(&apps)?);
        seconds.push(then.elapsed().as_secs_f64());
    }
    let (kept_alive, new_connections) = (kept_alive.finish()?, new_connections.finish()?);
    Ok(numbers([
        ("trial_answered", load::answered(&kept_alive) + load::answered(&new_connections)),
        ("lost_kept_alive", load::lost(&kept_alive)),
        ("retried_kept_alive", kept_alive.retried as f64),
        ("lost_new_connections", load::lost(&new_connections)),
        ("reload_s", stats::median(&seconds).unwrap_or(0.0)),
        ("reloads_refused", refused),
    ]))
}

/// A new version never gets ready. Which one answers?
pub fn never_ready(manager: &Manager, duration: Duration) -> Measured {
    let port = load::free_port()?;
    let app = |variables| [server(manager, port, ExecMode::Cluster, 2, variables, json!({"listen_timeout": 1000}))];
    start_and_await(manager, &app(json!({"TRIAL_VERSION": 1})), &[port])?;
    let client = Load::start(manager, NEW_CONNECTIONS, duration, ANSWER_WITHIN, port)?;
    let refused = !manager.reload(&app(json!({"TRIAL_VERSION": 2, "TRIAL_NEVER_READY": 1})))?;
    let report = client.finish()?;
    let answers: Vec<Option<Value>> = (0..20).map(|_| load::ask(port)).collect();
    let old = answers.iter().flatten().filter(|answer| answer["variables"]["TRIAL_VERSION"] == "1").count();
    Ok(numbers([
        ("trial_answered", load::answered(&report)),
        ("lost_new_connections", load::lost(&report)),
        ("reloads_refused", f64::from(refused)),
        ("old_answers", 100.0 * old as f64 / answers.len() as f64),
    ]))
}

/// The daemon is killed under load, and then asked for its list, which starts the next one.
pub fn killed_daemon(manager: &Manager, duration: Duration, timeout: Duration) -> Measured {
    let (shared, alone) = (load::free_port()?, load::free_port()?);
    let apps = [
        server(manager, shared, ExecMode::Cluster, 2, json!({}), json!({})),
        server(manager, alone, ExecMode::Fork, 1, json!({}), json!({})),
    ];
    start_and_await(manager, &apps, &[shared, alone])?;
    let before: Vec<i32> = manager.list()?.iter().map(|entry| entry.pid).collect();
    let clients = [
        Load::start(manager, NEW_CONNECTIONS, duration, timeout, shared)?,
        Load::start(manager, NEW_CONNECTIONS, duration, timeout, alone)?,
    ];
    let begin = Instant::now();
    manager.pause_until(begin + duration / 3)?;
    manager.kill_daemon()?;
    manager.pause_until(begin + duration * 2 / 3)?;
    let adopted = manager.list()?.iter().filter(|entry| entry.pid > 0 && before.contains(&entry.pid)).count();
    let reports = clients.into_iter().map(Load::finish).collect::<Result<Vec<_>, Stop>>()?;
    Ok(numbers([
        ("trial_answered", reports.iter().map(load::answered).sum()),
        ("lost_new_connections", reports.iter().map(load::lost).sum()),
        ("adopted", 100.0 * adopted as f64 / before.len() as f64),
    ]))
}

/// One variable stays, one changes, one comes, and one goes.
pub fn environment(manager: &Manager) -> Measured {
    let ports = [(ExecMode::Cluster, load::free_port()?), (ExecMode::Fork, load::free_port()?)];
    let apps =
        |variables: Value| ports.map(|(mode, port)| server(manager, port, mode, 1, variables.clone(), json!({})));
    start_and_await(
        manager,
        &apps(json!({"TRIAL_STAYS": "a", "TRIAL_CHANGES": "b", "TRIAL_GOES": "c"})),
        &ports.map(|(_, port)| port),
    )?;
    let pid = |port| load::ask(port).map(|answer| answer["pid"].clone());
    let old = ports.map(|(_, port)| pid(port));
    let wanted = json!({"TRIAL_STAYS": "a", "TRIAL_CHANGES": "d", "TRIAL_COMES": "e"});
    manager.reload(&apps(wanted.clone()))?;
    let wanted = wanted.as_object().expect("it is one");
    let (mut wrong, mut left) = (0, 0);
    for ((_, port), old) in ports.iter().zip(&old) {
        let is_new = |answer: &Value| old.as_ref() != Some(&answer["pid"]);
        let answer = manager
            .await_value(STARTED_WITHIN, "an answer of the new process", || Ok(load::ask(*port).filter(is_new)))?;
        let found = answer["variables"].as_object().cloned().unwrap_or_default();
        wrong += wanted.iter().filter(|(name, value)| found.get(*name) != Some(value)).count();
        left += found.keys().filter(|name| !wanted.contains_key(*name)).count();
    }
    Ok(numbers([("variables_wrong", wrong as f64), ("variables_left", left as f64)]))
}

/// The first of the workers needs longer for each request. `schedule` says who accepts, as in Node's cluster; PM2 does
/// not know the key.
pub fn slow_worker(manager: &Manager, schedule: &str, workers: usize, slow: Duration, duration: Duration) -> Measured {
    let port = load::free_port()?;
    let variables = json!({"TRIAL_SLOW_MS": slow.as_secs_f64() * 1e3});
    start_and_await(
        manager,
        &[server(manager, port, ExecMode::Cluster, workers, variables, json!({"schedule": schedule}))],
        &[port],
    )?;
    let report =
        Load::start(manager, "--connections 64 --requests-per-connection 1 --rate 200", duration, ANSWER_WITHIN, port)?
            .finish()?;
    Ok(numbers([
        ("trial_answered", load::answered(&report)),
        ("answer_p50_ms", report.latency_us.p50 / 1e3),
        ("answer_p99_ms", report.latency_us.p99 / 1e3),
    ]))
}
