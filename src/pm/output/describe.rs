//! All that is known about processes, a line for each fact.

use super::{row, size};
use crate::pm::protocol::ProcessEntry;
use crate::terminal::Paint;

pub fn describe(entries: &[ProcessEntry], paint: Paint) -> String {
    let one = |entry: &ProcessEntry| {
        let title = paint.bold(&format!("{} (id {})", entry.name, entry.pm_id));
        let lines = facts(entry).into_iter().map(|(name, value)| format!("  {name:<22} {value}\n"));
        format!("{title}\n{}", lines.collect::<String>())
    };
    entries.iter().map(one).collect::<Vec<_>>().join("\n")
}

/// What is known about one, the most urgent first.
pub fn facts(entry: &ProcessEntry) -> Vec<(&'static str, String)> {
    let state = &entry.pm2_env;
    let [_, _, namespace, mode, pid, uptime, restarts, status, cpu, memory] = row(entry);
    let runs = |fact: String| Some(fact).filter(|_| entry.pid > 0);
    let yes_or_no = |yes: bool| Some(if yes { "yes" } else { "no" }.to_owned());
    let unknown = state.unknown.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let facts = [
        ("status", Some(status)),
        ("reason", state.reason.clone()),
        ("last exit status", state.exit_code.map(|code| code.to_string())),
        ("pid", runs(pid)),
        ("uptime", runs(uptime)),
        ("restarts", Some(restarts)),
        ("unstable restarts", Some(state.unstable_restarts.to_string())),
        ("memory", runs(memory)),
        ("memory limit", state.max_memory_restart.map(size)),
        ("cpu", runs(cpu)),
        ("namespace", Some(namespace)),
        ("mode", Some(mode)),
        ("instance", Some(format!("{} of {}", state.number + 1, state.instances))),
        ("script", Some(state.pm_exec_path.clone())),
        ("arguments", Some(state.args.join(" ")).filter(|args| !args.is_empty())),
        ("interpreter", Some(state.exec_interpreter.clone())),
        ("folder", Some(state.pm_cwd.clone())),
        ("output log", Some(state.pm_out_log_path.clone())),
        ("error log", Some(state.pm_err_log_path.clone())),
        ("lost lines", state.log_problem.clone()),
        ("restarts when it ends", yes_or_no(state.autorestart)),
        ("watched", yes_or_no(state.watch)),
        ("restarts at", state.cron_restart.clone()),
        ("unknown keys", Some(unknown).filter(|keys| !keys.is_empty())),
    ];
    facts.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}
