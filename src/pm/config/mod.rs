//! What an application is: plain values, out of a file or the command line. In reading order:
//!
//! - [`app`]: the values, one field per key;
//! - [`evaluate`]: a file in JavaScript becomes one value, and [`documents`]: one in JSON, YAML or TOML;
//! - [`values`]: what one value may be; [`keys`]: the keys of one application become its values.

mod app;
mod documents;
pub mod evaluate;
mod keys;
mod values;

use std::collections::BTreeSet;
use std::path::Path;
use std::{env, fs, mem};

use serde_json::{Map, Value, json};

pub use app::{AppConfig, ExecMode, LogType};
use keys::KeyMap;
pub use keys::{ConfigKey, KEYS, first};

use crate::failure::Failure;

/// No configuration comes near it, in bytes.
const LARGEST: u64 = 16 << 20;

/// More of them are a mistake that would stop the machine.
const MOST_PROCESSES: usize = 2000;

#[derive(Debug)]
pub struct Configuration {
    pub apps: Vec<AppConfig>,
    pub warnings: Vec<String>,
}

/// Whether a file describes applications, by its name; otherwise it is a program.
pub fn is_configuration(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let endings = [".json", ".yaml", ".yml", ".toml", ".config.js", ".config.cjs", ".config.mjs"];
    endings.iter().any(|ending| name.ends_with(ending))
}

/// Reads a configuration file. With a name, the variables of its `env_NAME` come over those of `env`. The keys in `over`
/// count more than those of the file: for example `{"instances": "max"}` from the command line.
///
/// # Errors
/// One line with the file, and the line in it or the application and the key.
pub fn read(path: &Path, env_name: Option<&str>, over: &Map<String, Value>) -> Result<Configuration, Failure> {
    let failure = |why: String| Failure::relay(format!("{}: {why}", path.display()));
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = folder.canonicalize().map_err(|error| Failure::new(path.display(), error))?;
    let (document, mut warnings) = document(path)?;
    let (applications, others) = applications(document, path).map_err(failure)?;
    warnings.extend(others.iter().map(|key| match key.as_str() {
        "deploy" => "\"deploy\" is ignored: pm does not deploy".to_owned(),
        _ => format!("{key:?} is ignored: pm does not know it"),
    }));
    let block = env_name.map(|name| format!("env_{name}"));
    let unused = block.filter(|block| applications.iter().all(|keys| !keys.contains_key(block)));
    warnings.extend(unused.map(|block| format!("no application has {block:?}")));
    let mut names = BTreeSet::new();
    let mut apps = Vec::new();
    for (i, keys) in applications.into_iter().enumerate() {
        let which = match keys.get("name") {
            Some(Value::String(name)) => format!("application {name:?}"),
            _ => format!("application {}", i + 1),
        };
        let app = keys::application(keys, over.clone(), &folder, env_name)
            .map_err(|why| failure(format!("{which}: {why}")))?;
        if !names.insert(app.name.clone()) {
            return Err(failure(format!("two applications have the name {:?}; a name stands for one", app.name)));
        }
        let unknown = app.unknown.keys().map(|key| format!("{which}: {key:?} has no effect: pm does not know it"));
        warnings.extend(unknown);
        apps.push(app);
    }
    check(&apps).map_err(failure)?;
    let warnings = warnings.into_iter().map(|warning| format!("{}: {warning}", path.display())).collect();
    Ok(Configuration { apps, warnings })
}

/// What the daemon takes from no client, whoever has read the configuration.
pub fn check(apps: &[AppConfig]) -> Result<(), String> {
    apps.iter().try_for_each(|app| keys::check_name(&app.name))?;
    match apps.iter().fold(0, |all: usize, app| all.saturating_add(app.instances)) {
        ..=MOST_PROCESSES => Ok(()),
        all => Err(format!("{all} processes are more than the {MOST_PROCESSES} that pm starts at most")),
    }
}

/// One application that no file describes: its keys come from the command line, and paths begin at the current folder.
pub fn from_keys(keys: Map<String, Value>) -> Result<AppConfig, Failure> {
    let folder = env::current_dir().map_err(|error| Failure::new("find the current folder", error))?;
    keys::application(keys, Map::new(), &folder, None).map_err(Failure::relay)
}

/// The file as one value, and notes about what is not in it.
fn document(path: &Path) -> Result<(Value, Vec<String>), Failure> {
    let failed = |error| Failure::new(path.display(), error);
    let metadata = fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() || metadata.len() > LARGEST {
        let why = if metadata.is_file() { "it has more than 16 MiB" } else { "it is not a file" };
        return Err(Failure::relay(format!("{}: {why}", path.display())));
    }
    let text = || fs::read_to_string(path).map_err(failed);
    let value = match path.extension().and_then(|extension| extension.to_str()) {
        Some("js" | "cjs" | "mjs") => {
            text()?;
            return evaluate::evaluate("node", path, evaluate::TIME);
        }
        Some("json") => documents::json(path, &text()?)?,
        Some("yaml" | "yml") => documents::yaml(path, &text()?)?,
        Some("toml") => documents::toml(path, &text()?)?,
        _ => {
            let failure = Failure::relay(format!("{} is not a configuration by its name", path.display()));
            return Err(failure.advise("it ends with .js, .cjs, .mjs, .json, .yaml, .yml or .toml"));
        }
    };
    Ok((value, Vec::new()))
}

/// The applications of a file, whichever shape it has: `{apps: [...]}`, `{apps: {...}}`, a list, one application, or a
/// package.json. And the keys beside `apps`.
fn applications(document: Value, path: &Path) -> Result<(Vec<KeyMap>, Vec<String>), String> {
    let mut keys = match document {
        Value::Object(keys) => keys,
        Value::Array(_) => Map::from_iter([("apps".to_owned(), document)]),
        _ => return Err("it is neither an object with \"apps\" nor a list of applications".into()),
    };
    let is_package = path.file_name().is_some_and(|name| name == "package.json");
    if let Some(pm2) = keys.remove("pm2").filter(|_| is_package) {
        return applications(pm2, Path::new("pm2"));
    }
    let apps = match keys.remove("apps") {
        Some(Value::Array(apps)) => apps,
        Some(app @ Value::Object(_)) => vec![app],
        Some(_) => return Err("\"apps\" is neither a list nor an object".into()),
        None if is_package => {
            let script = keys.get("main").cloned().unwrap_or_else(|| "index.js".into());
            // Of "@scope/name", the name.
            let name = keys.get("name").and_then(Value::as_str).and_then(|name| name.rsplit('/').next());
            vec![json!({"script": script, "name": name})]
        }
        None if keys.contains_key("script") || keys.contains_key("exec") => {
            vec![Value::Object(mem::take(&mut keys))]
        }
        None => return Err("it has neither \"apps\" nor \"script\"".into()),
    };
    if apps.is_empty() {
        return Err("it has no application".into());
    }
    let keys_of = |(i, app)| match app {
        Value::Object(keys) => Ok(keys),
        _ => Err(format!("application {} is not an object", i + 1)),
    };
    let apps = apps.into_iter().enumerate().map(keys_of).collect::<Result<_, _>>()?;
    Ok((apps, if is_package { Vec::new() } else { keys.keys().cloned().collect() }))
}
