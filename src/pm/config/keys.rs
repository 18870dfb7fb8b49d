//! The keys of one application become its values. A key may have several names, as in PM2; what has none of them is
//! unknown, and is kept.

use std::env;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use super::app::{AppConfig, ExecMode, LogType, Schedule};
use super::values::{
    ReadValue, count, cron_pattern, duration, instances, interpreter, size, statuses, text, texts, watch, word, words,
    yes_or_no,
};

pub type KeyMap = Map<String, Value>;

/// The names of a key, of which the first is its name in [`AppConfig`]; how its value is read; and as an option of
/// `pm start`, its letter and what its value is, and its help. No value: a switch, which means true, or `no-`, false.
pub type ConfigKey = (&'static str, fn(&Value) -> ReadValue, &'static str, &'static str);

pub const KEYS: &[ConfigKey] = &[
    ("name", text, "n NAME", "What the application is called [default: the file without its extension]"),
    ("instances", instances, "i N|max|-N", "Processes: a number, max (one for each CPU), or -1 (all CPUs but one)"),
    ("namespace", text, "NAME", "A name for several applications"),
    ("script exec", text, "", ""),
    ("args", words, "", ""),
    (
        "interpreter exec_interpreter",
        interpreter,
        "PROGRAM",
        "What runs the script [default: by its extension: node, python3, ...]; or none",
    ),
    ("interpreter_args node_args", words, "ARGS", "What the interpreter gets before the script"),
    ("cwd", text, "FOLDER", "The folder that it runs in [default: this one]"),
    ("exec_mode", word::<ExecMode>, "", ""),
    ("instance_var", text, "", ""),
    ("schedule", word::<Schedule>, "", ""),
    ("watch", watch, "", "Restart it when a file below its folder changes"),
    ("ignore_watch", texts, "GLOB...", "What --watch does not watch; may be given several times"),
    ("watch_delay", duration, "", ""),
    ("max_memory_restart", size, "SIZE", "Restart it when it uses more memory, such as 300M"),
    ("cron_restart cron", cron_pattern, "c PATTERN", "Restart it at these times, written as in crontab(5)"),
    ("max_restarts", count, "N", "Give it up after so many restarts [default: 16]"),
    ("min_uptime", duration, "MS", "A process that ends sooner is unstable [default: 1000]"),
    ("restart_delay", duration, "MS", "Wait so long before a restart [default: 0]"),
    ("exp_backoff_restart_delay", duration, "MS", "Wait so long before a restart, and longer each time, up to 15 s"),
    ("stop_exit_codes", statuses, "STATUS,...", "Do not restart it when it ends with one of these statuses"),
    ("autorestart", yes_or_no, "no-", "Do not restart it when it ends"),
    ("kill_timeout", duration, "MS", "From the signal that asks it to end until SIGKILL [default: 1600]"),
    ("wait_ready", yes_or_no, "", "It says itself when it is ready: process.send('ready')"),
    (
        "listen_timeout",
        duration,
        "MS",
        "Give a start up after so long, with --wait-ready or in cluster mode [default: 3000]",
    ),
    ("treekill", yes_or_no, "no-", "Do not end what the process has started, when the process ends"),
    ("out_file output out out_log", text, "o FILE", "Where its output goes [default: $PM_HOME/logs/NAME-out-ID.log]"),
    (
        "error_file error err_file err err_log",
        text,
        "e FILE",
        "Where its standard error goes [default: $PM_HOME/logs/NAME-error-ID.log]",
    ),
    // `log_file` and `time` stand for others, and are not in AppConfig.
    ("log_file log", text, "l FILE", "The log of both outputs, where they have none of their own"),
    ("log_date_format", text, "FORMAT", "Put a time before each line, such as 'YYYY-MM-DD HH:mm:ss'"),
    ("time", yes_or_no, "", "The same, with the time as YYYY-MM-DDTHH:mm:ss"),
    ("log_type", word::<LogType>, "text|json", "Each line as JSON, or as it is"),
    ("merge_logs combine_logs", yes_or_no, "", "All its processes write into the same files"),
    ("log_max_size", size, "SIZE", "Rotate a log that is larger, such as 10M: it gets the number 1 behind its name"),
    ("log_retain", count, "N", "So many rotated logs stay [default: 10]"),
];

/// One application out of its keys. Those in `over` count more, whatever name of the key the file uses. Relative paths
/// begin at `folder`, which is absolute.
pub fn application(
    mut file: KeyMap,
    mut over: KeyMap,
    folder: &Path,
    env_name: Option<&str>,
) -> Result<AppConfig, String> {
    let env = environment(&mut file, &mut over, env_name)?;
    let mut keys = Map::from_iter([("env".to_owned(), Value::Object(env))]);
    for &(names, read, ..) in KEYS {
        let of_file = take(&mut file, names)?;
        if let Some((name, value)) = take(&mut over, names)?.or(of_file) {
            keys.insert(first(names).to_owned(), read(&value).map_err(|why| format!("{name}: {why}"))?);
        }
    }
    if keys.remove("time") == Some(Value::Bool(true)) {
        keys.entry("log_date_format").or_insert("YYYY-MM-DDTHH:mm:ss".into());
    }
    if let Some(both) = keys.remove("log_file") {
        for file in ["out_file", "error_file"] {
            keys.entry(file).or_insert(both.clone());
        }
    }
    let mut app: AppConfig = serde_json::from_value(Value::Object(keys.clone())).map_err(|error| error.to_string())?;
    app.cwd = absolute(folder, &app.cwd);
    set_script(&mut app, &keys)?;
    check_name(&app.name)?;
    let is_node = app.interpreter.as_deref().is_some_and(|program| program.ends_with("node"));
    if is_node && keys.contains_key("instances") && !keys.contains_key("exec_mode") {
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

pub fn first(names: &str) -> &str {
    names.split(' ').next().unwrap_or_default()
}

/// Takes the key that has one of these names. `null` is as good as no key.
fn take<'n>(keys: &mut KeyMap, names: &'n str) -> Result<Option<(&'n str, Value)>, String> {
    let found = names.split(' ').filter_map(|name| Some((name, keys.remove(name).filter(|value| !value.is_null())?)));
    let mut found: Vec<(&str, Value)> = found.collect();
    if let Some((name, _)) = found.iter().find(|(_, value)| *value != found[0].1) {
        return Err(format!("\"{}\" and \"{name}\" are two names of one key; give one", found[0].0));
    }
    Ok(found.pop())
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
/// variable there but the key of that name, for this environment: it goes to `over`.
fn environment(file: &mut KeyMap, over: &mut KeyMap, env_name: Option<&str>) -> Result<KeyMap, String> {
    let mut env = Map::new();
    for block in ["env".to_owned()].into_iter().chain(env_name.map(|name| format!("env_{name}"))) {
        let variables = match file.remove(&block) {
            Some(Value::Object(variables)) => variables,
            None | Some(Value::Null) => continue,
            Some(_) => return Err(format!("{block} is not an object of variables")),
        };
        for (name, value) in variables {
            if name.is_empty() || name.contains(['=', '\0']) {
                return Err(format!("{block}: {name:?} cannot be the name of a variable"));
            }
            match value {
                value if name == "watch" && (value.is_array() || yes_or_no(&value).is_ok()) => {
                    drop(over.insert(name, value))
                }
                Value::Null => drop(env.remove(&name)),
                Value::String(_) | Value::Number(_) => {
                    let value = text(&value).map_err(|why| format!("{block}.{name}: {why}"))?;
                    drop(env.insert(name, value))
                }
                value => drop(env.insert(name, value.to_string().into())),
            }
        }
    }
    file.retain(|key, _| !key.starts_with("env_"));
    Ok(env)
}

/// A file in `cwd`, or a program that PATH finds, or, if there is no such file and the text has spaces, a command line. It
/// says the name and the interpreter, too, where the keys do not.
fn set_script(app: &mut AppConfig, keys: &KeyMap) -> Result<(), String> {
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
        if !keys.contains_key("interpreter") {
            app.interpreter = interpreter.map(str::to_owned);
        }
        app.script = file;
    }
    if !keys.contains_key("name") {
        app.name = named.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    }
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
pub fn check_name(name: &str) -> Result<(), String> {
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
