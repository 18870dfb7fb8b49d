//! The keys of one application become its values. A key may have several names, as in PM2; what has none of them is
//! unknown, and is kept.

use std::collections::BTreeMap;
use std::env;
use std::path::{Component, Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::app::{AppConfig, ExecMode};
use super::values;
use crate::cpu;
use crate::pm::cron::CronSchedule;

/// Where a configuration is read: what relative paths, `~` and `max` mean there.
pub struct ConfigFolder {
    /// The folder of the file, as an absolute path.
    pub folder: PathBuf,
    pub home: Option<PathBuf>,
    pub cpus: usize,
}

impl ConfigFolder {
    /// # Errors
    /// There is no such folder.
    pub fn at(folder: &Path) -> std::io::Result<ConfigFolder> {
        let home = env::var_os("HOME").map(PathBuf::from);
        Ok(ConfigFolder { folder: folder.canonicalize()?, home, cpus: cpu::allowed().len() })
    }

    /// `~/` is the home, `base` is where other relative paths begin; `.` and `..` are gone.
    fn absolute(&self, base: &Path, path: &str) -> PathBuf {
        let path = match (path.strip_prefix('~'), &self.home) {
            (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => {
                home.join(rest.trim_start_matches('/'))
            }
            _ => base.join(path),
        };
        let mut plain = PathBuf::new();
        for part in path.components() {
            match part {
                Component::ParentDir => drop(plain.pop()),
                Component::CurDir => {}
                part => plain.push(part),
            }
        }
        plain
    }
}

/// One application out of its keys. Those in `over` count more, whatever name of the key the file uses.
///
/// # Errors
/// What is wrong with which key, or which key is missing.
pub fn application(
    keys: Map<String, Value>,
    over: Map<String, Value>,
    config_folder: &ConfigFolder,
    env_name: Option<&str>,
) -> Result<AppConfig, String> {
    let mut keys = UnreadKeys { file: keys, over };
    let mut app = AppConfig::default();
    let folder = &config_folder.folder;
    let (env, mut watched) = environment(&mut keys, env_name)?;
    app.env = env;

    app.cwd = config_folder.absolute(folder, &keys.read(&["cwd"], values::text)?.unwrap_or_default());
    let script = keys.read(&["script", "exec"], values::text)?.filter(|script| !script.is_empty());
    let script = script.ok_or("there is no \"script\": say which program or file is to run")?;
    let args = keys.read(&["args"], values::words)?.unwrap_or_default();
    set_script(&mut app, &script, args, config_folder);
    keys.set(&mut app.interpreter, &["interpreter", "exec_interpreter"], |value| {
        values::text(value).map(|program| Some(program).filter(|program| !matches!(program.as_str(), "none" | "")))
    })?;
    keys.set(&mut app.interpreter_args, &["interpreter_args", "node_args"], values::words)?;
    keys.set(&mut app.name, &["name"], values::text)?;
    check_name(&app.name)?;
    keys.set(&mut app.namespace, &["namespace"], values::text)?;

    let instances = keys.read(&["instances"], |value| values::instances(value, config_folder.cpus))?;
    app.instances = instances.unwrap_or(1);
    let is_node = app.interpreter.as_deref().is_some_and(|program| program.ends_with("node"));
    if instances.is_some() && is_node {
        app.exec_mode = ExecMode::Cluster;
    }
    keys.set(&mut app.exec_mode, &["exec_mode"], word)?;
    keys.set(&mut app.instance_var, &["instance_var"], values::text)?;

    keys.set(&mut app.autorestart, &["autorestart"], values::yes_or_no)?;
    keys.set(&mut app.max_restarts, &["max_restarts"], values::count)?;
    keys.set(&mut app.min_uptime, &["min_uptime"], values::duration)?;
    keys.set(&mut app.restart_delay, &["restart_delay"], values::duration)?;
    keys.set(&mut app.exp_backoff_restart_delay, &["exp_backoff_restart_delay"], values::duration)?;
    keys.set(&mut app.stop_exit_codes, &["stop_exit_codes"], values::statuses)?;
    keys.set(&mut app.cron_restart, &["cron_restart", "cron"], cron_pattern)?;
    keys.set(&mut app.max_memory_restart, &["max_memory_restart"], |value| values::size(value).map(Some))?;

    // Said for the environment, it counts more than what is said for all.
    let whole = keys.read(&["watch"], |value| watch(value, &app.cwd, config_folder))?;
    let chosen = watched.take().map(|value| watch(&value, &app.cwd, config_folder)).transpose()?;
    app.watch = chosen.or(whole).unwrap_or_default();
    keys.set(&mut app.ignore_watch, &["ignore_watch"], values::texts)?;
    keys.set(&mut app.watch_delay, &["watch_delay"], values::duration)?;

    keys.set(&mut app.kill_timeout, &["kill_timeout"], values::duration)?;
    keys.set(&mut app.wait_ready, &["wait_ready"], values::yes_or_no)?;
    keys.set(&mut app.listen_timeout, &["listen_timeout"], values::duration)?;
    keys.set(&mut app.treekill, &["treekill"], values::yes_or_no)?;

    let log = |value: &Value| {
        let file = values::text(value)?;
        let file = if file == "NULL" { PathBuf::from("/dev/null") } else { config_folder.absolute(folder, &file) };
        Ok(Some(file))
    };
    keys.set(&mut app.out_file, &["out_file", "output", "out", "out_log"], log)?;
    keys.set(&mut app.error_file, &["error_file", "error", "err_file", "err", "err_log"], log)?;
    let both = keys.read(&["log_file", "log"], log)?.flatten();
    app.out_file = app.out_file.or_else(|| both.clone());
    app.error_file = app.error_file.or(both);
    if keys.read(&["time"], values::yes_or_no)? == Some(true) {
        app.log_date_format = Some("YYYY-MM-DDTHH:mm:ss".to_owned());
    }
    keys.set(&mut app.log_date_format, &["log_date_format"], |value| values::text(value).map(Some))?;
    keys.set(&mut app.log_type, &["log_type"], word)?;
    keys.set(&mut app.merge_logs, &["merge_logs", "combine_logs"], values::yes_or_no)?;
    keys.set(&mut app.log_max_size, &["log_max_size"], |value| values::size(value).map(Some))?;
    keys.set(&mut app.log_retain, &["log_retain"], values::count)?;

    app.unknown = keys.file;
    app.unknown.extend(keys.over);
    Ok(app)
}

/// The keys that are not read yet.
struct UnreadKeys {
    file: Map<String, Value>,
    over: Map<String, Value>,
}

impl UnreadKeys {
    /// Takes the key that has one of these names. `null` is as good as no key.
    fn read<T>(&mut self, names: &[&str], read: impl FnOnce(&Value) -> Result<T, String>) -> Result<Option<T>, String> {
        let of_file = take(&mut self.file, names);
        let found = take(&mut self.over, names)?.map_or(of_file, |over| Ok(Some(over)))?;
        found.map(|(name, value)| read(&value).map_err(|why| format!("{name}: {why}"))).transpose()
    }

    fn set<T>(
        &mut self,
        place: &mut T,
        names: &[&str],
        read: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Result<(), String> {
        if let Some(value) = self.read(names, read)? {
            *place = value;
        }
        Ok(())
    }
}

fn take<'n>(keys: &mut Map<String, Value>, names: &[&'n str]) -> Result<Option<(&'n str, Value)>, String> {
    let mut found: Option<(&str, Value)> = None;
    for &name in names {
        match (keys.remove(name), &found) {
            (None | Some(Value::Null), _) => {}
            (Some(value), Some((first, same))) if value != *same => {
                return Err(format!("\"{first}\" and \"{name}\" are two names of one key; give one"));
            }
            (Some(value), _) => found = Some((name, value)),
        }
    }
    Ok(found)
}

/// The variables of `env`, and over them those of the chosen `env_NAME`. `null` takes a variable away. `watch` is no
/// variable there but the key of that name, for this environment.
fn environment(
    keys: &mut UnreadKeys,
    env_name: Option<&str>,
) -> Result<(BTreeMap<String, String>, Option<Value>), String> {
    let names: Vec<String> = keys.file.keys().filter(|key| key.starts_with("env_")).cloned().collect();
    let mut blocks = vec![("env".to_owned(), keys.file.remove("env"))];
    for name in names {
        let block = keys.file.remove(&name);
        if env_name.is_some_and(|chosen| name["env_".len()..] == *chosen) {
            blocks.push((name, block));
        }
    }
    let (mut env, mut watched) = (BTreeMap::new(), None);
    for (block, variables) in blocks {
        let variables = match variables {
            Some(Value::Object(variables)) => variables,
            None | Some(Value::Null) => continue,
            Some(_) => return Err(format!("{block} is not an object of variables")),
        };
        for (name, value) in variables {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(format!("{block}: {name:?} cannot be the name of a variable"));
            }
            match value {
                Value::Bool(_) | Value::Array(_) if name == "watch" => watched = Some(value),
                Value::Null => drop(env.remove(&name)),
                Value::String(_) | Value::Number(_) => {
                    let value = values::text(&value).map_err(|why| format!("{block}.{name}: {why}"))?;
                    env.insert(name, value);
                }
                value => drop(env.insert(name, value.to_string())),
            }
        }
    }
    Ok((env, watched))
}

/// A file in `cwd`, or a program that PATH finds, or, if there is no such file and the text has spaces, a command line.
fn set_script(app: &mut AppConfig, script: &str, args: Vec<String>, config_folder: &ConfigFolder) {
    let file = config_folder.absolute(&app.cwd, script);
    let interpreter = Path::new(script).extension().and_then(|extension| interpreter(extension.to_str()?));
    let is_command_line = script.contains(char::is_whitespace) && !file.exists();
    let words = shell_words::split(script).ok().filter(|_| !script.contains(['|', '&', ';', '<', '>', '$', '`', '(']));
    app.args = args;
    let named = match words {
        Some(words) if is_command_line && words.len() > 1 => {
            app.script = words[0].clone().into();
            app.args.splice(0..0, words.into_iter().skip(1));
            app.script.clone()
        }
        _ if is_command_line => {
            app.script = "sh".into();
            app.args.splice(0..0, ["-c".to_owned(), script.to_owned(), "sh".to_owned()]);
            script.split_whitespace().next().unwrap_or_default().into()
        }
        _ if file.is_file() || script.contains('/') || interpreter.is_some() => {
            app.interpreter = interpreter.map(str::to_owned);
            app.script = file;
            app.script.clone()
        }
        _ => {
            app.script = script.into();
            app.script.clone()
        }
    };
    app.name = named.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
}

/// What runs a file of this kind, if it does not run by itself.
fn interpreter(extension: &str) -> Option<&'static str> {
    Some(match extension {
        "js" | "cjs" | "mjs" => "node",
        "ts" => "ts-node",
        "py" => "python3",
        "sh" => "bash",
        "rb" => "ruby",
        "pl" => "perl",
        "php" => "php",
        _ => return None,
    })
}

/// A name stands in commands, tables and names of files.
fn check_name(name: &str) -> Result<(), String> {
    let why = match name {
        "" => "it is empty",
        "all" => "it means every application",
        "." | ".." => "it is the name of a folder",
        name if name.contains('/') || name.contains("..") => "it is a part of the names of files: no / and no ..",
        name if name.starts_with('-') => "it would be read as an option",
        name if name.contains(char::is_control) => "it contains a control character",
        // With `-error-ID.log` a name of a file has at most 255 bytes (NAME_MAX, pathconf(3)).
        name if name.len() > 200 => "it is longer than 200 bytes",
        _ => return Ok(()),
    };
    Err(format!("name: {name:?} cannot be a name: {why}"))
}

/// A word of `T`; PM2 also writes `fork_mode`, and `raw` for text.
fn word<T: DeserializeOwned>(value: &Value) -> Result<T, String> {
    let word = match values::text(value)?.as_str() {
        "raw" => "text".to_owned(),
        word => word.trim_end_matches("_mode").to_owned(),
    };
    serde_json::from_value(word.into()).map_err(|error| error.to_string())
}

/// A pattern, or false or 0 for none.
fn cron_pattern(value: &Value) -> Result<Option<String>, String> {
    if *value == Value::Bool(false) || *value == 0 || value == "0" {
        return Ok(None);
    }
    let pattern = values::text(value)?;
    CronSchedule::new(&pattern).map(|_| Some(pattern))
}

/// `true` watches all of the working directory, a list these files and folders in it.
fn watch(value: &Value, cwd: &Path, config_folder: &ConfigFolder) -> Result<Vec<PathBuf>, String> {
    match values::yes_or_no(value) {
        Ok(true) => Ok(vec![cwd.to_owned()]),
        Ok(false) => Ok(Vec::new()),
        Err(_) => Ok(values::texts(value)?.iter().map(|path| config_folder.absolute(cwd, path)).collect()),
    }
}
