//! The keys of one application become its values. A key may have several names, as in PM2; what has none of them is
//! unknown, and is kept.

use std::env;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use super::app::{AppConfig, ExecMode, LogType, Schedule};
use super::values::{
    self, ReadValue, count, cron_pattern, duration, instances, interpreter, size, statuses, text, texts, watch, word,
    words, yes_or_no,
};

pub type KeyMap = Map<String, Value>;

/// The names of a key, of which the first is its name in [`AppConfig`], and how its value is read.
type ConfigKey = (&'static [&'static str], fn(&Value) -> ReadValue);

const KEYS: &[ConfigKey] = &[
    (&["name"], text),
    (&["namespace"], text),
    (&["script", "exec"], text),
    (&["args"], words),
    (&["interpreter", "exec_interpreter"], interpreter),
    (&["interpreter_args", "node_args"], words),
    (&["cwd"], text),
    (&["instances"], instances),
    (&["exec_mode"], word::<ExecMode>),
    (&["instance_var"], text),
    (&["schedule"], word::<Schedule>),
    (&["autorestart"], yes_or_no),
    (&["max_restarts"], count),
    (&["min_uptime"], duration),
    (&["restart_delay"], duration),
    (&["exp_backoff_restart_delay"], duration),
    (&["stop_exit_codes"], statuses),
    (&["cron_restart", "cron"], cron_pattern),
    (&["max_memory_restart"], size),
    (&["watch"], watch),
    (&["ignore_watch"], texts),
    (&["watch_delay"], duration),
    (&["kill_timeout"], duration),
    (&["wait_ready"], yes_or_no),
    (&["listen_timeout"], duration),
    (&["treekill"], yes_or_no),
    (&["out_file", "output", "out", "out_log"], text),
    (&["error_file", "error", "err_file", "err", "err_log"], text),
    // The next two stand for others, and are not in AppConfig.
    (&["log_file", "log"], text),
    (&["time"], yes_or_no),
    (&["log_date_format"], text),
    (&["log_type"], word::<LogType>),
    (&["merge_logs", "combine_logs"], yes_or_no),
    (&["log_max_size"], size),
    (&["log_retain"], count),
];

/// One application out of its keys. Those in `over` count more, whatever name of the key the file uses. Relative paths
/// begin at `folder`, which is absolute.
///
/// # Errors
/// What is wrong with which key, or which key is missing.
pub fn application(
    mut file: KeyMap,
    mut over: KeyMap,
    folder: &Path,
    env_name: Option<&str>,
) -> Result<AppConfig, String> {
    let (env, watched) = environment(&mut file, env_name)?;
    let mut keys = Map::new();
    for (names, read) in KEYS {
        let of_file = take(&mut file, names)?;
        if let Some((name, value)) = take(&mut over, names)?.or(of_file) {
            keys.insert(names[0].to_owned(), read(&value).map_err(|why| format!("{name}: {why}"))?);
        }
    }
    // Said for the environment, it counts more than what is said for all.
    if let Some(watched) = watched {
        keys.insert("watch".to_owned(), watch(&watched).map_err(|why| format!("watch: {why}"))?);
    }
    if keys.remove("time") == Some(Value::Bool(true)) {
        keys.entry("log_date_format").or_insert("YYYY-MM-DDTHH:mm:ss".into());
    }
    if let Some(both) = keys.remove("log_file") {
        for file in ["out_file", "error_file"] {
            keys.entry(file).or_insert(both.clone());
        }
    }
    keys.insert("env".to_owned(), Value::Object(env));
    let is_named = |key: &str| keys.contains_key(key);
    let [has_name, has_interpreter, has_mode, has_instances] =
        ["name", "interpreter", "exec_mode", "instances"].map(is_named);
    let mut app: AppConfig = serde_json::from_value(Value::Object(keys)).map_err(|error| error.to_string())?;

    let given = (app.name.clone(), app.interpreter.take());
    app.cwd = absolute(folder, &app.cwd);
    set_script(&mut app)?;
    if has_name {
        app.name = given.0;
    }
    if has_interpreter {
        app.interpreter = given.1;
    }
    check_name(&app.name)?;
    let is_node = app.interpreter.as_deref().is_some_and(|program| program.ends_with("node"));
    if has_instances && is_node && !has_mode {
        app.exec_mode = ExecMode::Cluster;
    }
    app.watch = app.watch.iter().map(|path| absolute(&app.cwd, path)).collect();
    for log in [&mut app.out_file, &mut app.error_file].into_iter().flatten() {
        *log = if *log == Path::new("NULL") { "/dev/null".into() } else { absolute(folder, log) };
    }
    app.unknown = file;
    app.unknown.extend(over);
    Ok(app)
}

/// Takes the key that has one of these names. `null` is as good as no key.
fn take<'n>(keys: &mut KeyMap, names: &[&'n str]) -> Result<Option<(&'n str, Value)>, String> {
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

/// `~/` is the home, `base` is where other relative paths begin; `.` and `..` are gone.
fn absolute(base: &Path, path: &Path) -> PathBuf {
    let of_home = path.strip_prefix("~").ok().and_then(|rest| Some(Path::new(&env::var_os("HOME")?).join(rest)));
    let mut plain = PathBuf::new();
    for part in of_home.unwrap_or_else(|| base.join(path)).components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

/// The variables of `env`, and over them those of the chosen `env_NAME`. `null` takes a variable away. `watch` is no
/// variable there but the key of that name, for this environment.
fn environment(keys: &mut KeyMap, env_name: Option<&str>) -> Result<(KeyMap, Option<Value>), String> {
    let names: Vec<String> = keys.keys().filter(|key| key.starts_with("env_")).cloned().collect();
    let mut blocks = vec![("env".to_owned(), keys.remove("env"))];
    for name in names {
        let block = keys.remove(&name);
        if env_name.is_some_and(|chosen| name["env_".len()..] == *chosen) {
            blocks.push((name, block));
        }
    }
    let (mut env, mut watched) = (Map::new(), None);
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
                value if name == "watch" && (value.is_array() || values::yes_or_no(&value).is_ok()) => {
                    watched = Some(value)
                }
                Value::Null => drop(env.remove(&name)),
                Value::String(_) | Value::Number(_) => {
                    let value = values::text(&value).map_err(|why| format!("{block}.{name}: {why}"))?;
                    env.insert(name, value);
                }
                value => drop(env.insert(name, value.to_string().into())),
            }
        }
    }
    Ok((env, watched))
}

/// A file in `cwd`, or a program that PATH finds, or, if there is no such file and the text has spaces, a command line.
fn set_script(app: &mut AppConfig) -> Result<(), String> {
    let script = app.script.to_string_lossy().into_owned();
    if script.is_empty() {
        return Err("there is no \"script\": say which program or file is to run".to_owned());
    }
    let file = absolute(&app.cwd, &app.script);
    let interpreter = app.script.extension().and_then(|extension| interpreter_of(extension.to_str()?));
    let mut named = app.script.clone();
    if script.contains(char::is_whitespace) && !file.exists() {
        let is_plain = !script.contains(['|', '&', ';', '<', '>', '$', '`', '(']);
        let words = shell_words::split(&script).ok().filter(|words| is_plain && words.len() > 1);
        named = words.as_ref().map_or(script.split_whitespace().next().unwrap_or_default(), |words| &words[0]).into();
        let mut words = words.unwrap_or_else(|| ["sh", "-c", &script, "sh"].map(str::to_owned).into());
        app.script = words.remove(0).into();
        app.args.splice(0..0, words);
    } else if file.is_file() || script.contains('/') || interpreter.is_some() {
        app.interpreter = interpreter.map(str::to_owned);
        app.script = file;
    }
    app.name = named.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(())
}

/// What runs a file of this kind, if it does not run by itself.
fn interpreter_of(extension: &str) -> Option<&'static str> {
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
