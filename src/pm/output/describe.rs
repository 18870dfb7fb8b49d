//! All that is known about processes, a line for each fact.

use super::{age, size};
use crate::pm::protocol::ProcessEntry;
use crate::terminal::Paint;

pub fn describe(entries: &[ProcessEntry], paint: Paint) -> String {
    let one = |entry: &ProcessEntry| {
        let state = &entry.pm2_env;
        let title = format!("{} (id {})", entry.name, entry.pm_id);
        let instances = format!("{} of {}", state.number + 1, state.instances);
        let exit_code = state.exit_code.map(|code| code.to_string());
        let limit = state.max_memory_restart.map(size);
        let unknown = state.unknown.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let facts = [
            ("status", Some(state.status.name().to_owned())),
            ("reason", state.reason.clone()),
            ("last exit status", exit_code),
            ("pid", Some(entry.pid).filter(|&pid| pid > 0).map(|pid| pid.to_string())),
            ("uptime", Some(state.uptime_ms).filter(|_| entry.pid > 0).map(age)),
            ("restarts", Some(state.restart_time.to_string())),
            ("unstable restarts", Some(state.unstable_restarts.to_string())),
            ("memory", Some(entry.monit.memory).filter(|_| entry.pid > 0).map(size)),
            ("memory limit", limit),
            ("cpu", Some(format!("{:.1}%", entry.monit.cpu)).filter(|_| entry.pid > 0)),
            ("namespace", Some(state.namespace.clone())),
            ("mode", Some(state.exec_mode.trim_end_matches("_mode").to_owned())),
            ("instance", Some(instances)),
            ("script", Some(state.pm_exec_path.clone())),
            ("arguments", Some(state.args.join(" ")).filter(|args| !args.is_empty())),
            ("interpreter", Some(state.exec_interpreter.clone())),
            ("folder", Some(state.pm_cwd.clone())),
            ("output log", Some(state.pm_out_log_path.clone())),
            ("error log", Some(state.pm_err_log_path.clone())),
            ("restarts when it ends", Some(if state.autorestart { "yes" } else { "no" }.to_owned())),
            ("watched", Some(if state.watch { "yes" } else { "no" }.to_owned())),
            ("restarts at", state.cron_restart.clone()),
            ("unknown keys", Some(unknown).filter(|keys| !keys.is_empty())),
        ];
        let lines = facts.into_iter().filter_map(|(name, value)| Some(format!("  {name:<22} {}\n", value?)));
        format!("{}\n{}", paint.bold(&title), lines.collect::<String>())
    };
    entries.iter().map(one).collect::<Vec<_>>().join("\n")
}

/// The variables that an application sets, as a shell reads them.
pub fn environment(entries: &[ProcessEntry]) -> String {
    let variables = entries.iter().flat_map(|entry| &entry.pm2_env.env);
    variables.map(|(name, value)| format!("{name}={value}\n")).collect()
}
