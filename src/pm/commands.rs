//! What each command asks the daemon, and what it prints of the answer.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, stdout};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regex_lite::Regex;
use serde_json::{Map, Value, json};

use super::args::{AgainArgs, KeyArgs, LogsArgs, OfConfigArgs, PmCommand, StartArgs, TargetArgs};
use super::client::{self, PmConnection, PmEvents};
use super::config::{self, AppConfig, Configuration, LogType};
use super::daemon;
use super::home::{self, PmHome};
use super::logs::{AppLog, LaterLogs, follow, own_log};
use super::output::{self, MonitView};
use super::protocol::{PmReply, PmRequest, ProcessEntry};
use super::startup;
use crate::console::{self, Format};
use crate::failure::Failure;
use crate::keyboard::{Key, Keyboard};
use crate::logs::lines::LogStream;
use crate::sys::procfs;
use crate::terminal::{Paint, Screen, width};

/// Runs one command to its end. Cluster mode runs the program `cluster`, which is beside this one.
pub fn run(command: PmCommand, cluster: &str) -> Result<(), Failure> {
    let home = PmHome::find()?;
    let program = std::env::current_exe().map_err(|error| Failure::new("find this program", error))?;
    let cluster = program.with_file_name(cluster);
    let ask = |request: PmRequest| PmConnection::open(&home)?.ask(&request);
    match command {
        PmCommand::Start(args) => start(&home, cluster, *args),
        PmCommand::Stop(args) => end(&home, &args, |targets| PmRequest::Stop { targets }),
        PmCommand::Delete(args) => end(&home, &args, |targets| PmRequest::Delete { targets }),
        PmCommand::Restart(args) => again(&home, args, false),
        PmCommand::Reload(args) => again(&home, args, true),
        PmCommand::List { format: Format::Text } => print_list(&ask(PmRequest::List)?),
        PmCommand::List { format: Format::Json } | PmCommand::Jlist => {
            let list = serde_json::to_string(&ask(PmRequest::List)?.processes).expect("its keys are strings");
            console::print(&format!("{list}\n"))
        }
        PmCommand::Env { targets } => console::print(&environments(&ask(PmRequest::Describe { targets })?.processes)),
        PmCommand::Logs(args) => logs(&home, &args),
        PmCommand::Monit => monit(&home),
        PmCommand::Ask(request) => {
            let reply = ask(request.clone())?;
            match request {
                PmRequest::Describe { .. } => console::print(&output::describe(&reply.processes, Paint::on(&stdout()))),
                PmRequest::Save => {
                    let (processes, dump) = (reply.processes.len(), home.dump());
                    console::print(&format!("{processes} processes saved in {}\n", dump.display()))
                }
                PmRequest::Ping => console::print(&format!("the daemon of {} answers\n", home.folder().display())),
                PmRequest::ReloadLogs => Ok(()),
                _ => print_list(&reply),
            }
        }
        PmCommand::Startup(args) => console::print(&startup::startup(&args)?),
        PmCommand::Unstartup(args) => console::print(&startup::unstartup(&args)?),
        PmCommand::Events => events(&home),
        PmCommand::Kill => kill(&home),
        PmCommand::Daemon => {
            let outcome = client::ready_message().and_then(|ready| daemon::run(&home, cluster, None, ready));
            outcome.inspect_err(|why| {
                // To the client that waits for the first word, if it still does; `pm.log` has it, too.
                if own_log::is_standard_error(&home) {
                    let _ = console::print(&format!("{why}\n"));
                }
            })
        }
    }
}

fn start(home: &PmHome, cluster: PathBuf, args: StartArgs) -> Result<(), Failure> {
    let StartArgs { files, of_config, no_daemon, force, keys: KeyArgs(mut keys), arguments } = args;
    // With an option they are programs, even if an application has such a name.
    let has_options = no_daemon || !keys.is_empty() || !arguments.is_empty() || !of_config.is_empty();
    if !has_options && files.iter().all(|file| !Path::new(file).is_file()) {
        let targets = files.clone();
        // A daemon that is not there knows no application.
        if let Some(mut connection) = PmConnection::find(home)?
            && connection.ask(&PmRequest::Describe { targets: targets.clone() }).is_ok()
        {
            return print_list(&connection.ask(&PmRequest::Wake { targets })?);
        }
    }
    if !arguments.is_empty() {
        keys.insert("args".to_owned(), json!(arguments));
    }
    let configured = read_configuration(&files, &of_config, &keys)?;
    let only_new = configured.is_none() && !force;
    let of_program = |file| {
        keys.insert("script".to_owned(), Value::String(file));
        config::from_keys(keys.clone())
    };
    let apps: Vec<AppConfig> = configured.map_or_else(|| files.into_iter().map(of_program).collect(), Ok)?;
    let mut names = BTreeSet::new();
    if let Some(app) = apps.iter().find(|app| !names.insert(&app.name)) {
        let advice = "start them one by one, each with a --name of its own";
        return Err(Failure::relay(format!("two programs have the name {:?}", app.name)).advise(advice));
    }
    let request = PmRequest::Start { apps, environment: environment(), only_new, reload: false };
    if no_daemon {
        return daemon::run(home, cluster, Some(request), || {});
    }
    print_list(&PmConnection::open(home)?.ask(&request)?)
}

/// A restart or a reload, with the configuration as it is now where one is named.
fn again(home: &PmHome, args: AgainArgs, reload: bool) -> Result<(), Failure> {
    let AgainArgs { which: TargetArgs { targets, of_config }, update_env } = args;
    let configured = read_configuration(&targets, &of_config, &Map::new())?;
    let request = match (configured, update_env.then(environment)) {
        (Some(apps), _) => PmRequest::Start { apps, environment: environment(), only_new: false, reload },
        (None, environment) if reload => PmRequest::Reload { targets, environment },
        (None, environment) => PmRequest::Restart { targets, environment },
    };
    print_list(&PmConnection::open(home)?.ask(&request)?)
}

/// A stop or a delete, of those applications of a configuration that are in the list where one is named.
fn end(home: &PmHome, args: &TargetArgs, request: fn(Vec<String>) -> PmRequest) -> Result<(), Failure> {
    let mut connection = PmConnection::open(home)?;
    let mut targets = args.targets.clone();
    if let Some(apps) = read_configuration(&targets, &args.of_config, &Map::new())? {
        let listed = connection.ask(&PmRequest::List)?.processes;
        let names = apps.into_iter().map(|app| app.name);
        targets = names.filter(|name| listed.iter().any(|entry| entry.name == *name)).collect();
        if targets.is_empty() {
            let file = &args.targets[0];
            return Err(Failure::relay(format!("no application of {file} is in the list; `pm list` shows it")));
        }
    }
    let reply = connection.ask(&request(targets))?;
    let is_gone = reply.processes.is_empty();
    print_list(&if is_gone { connection.ask(&PmRequest::List)? } else { reply })
}

/// The applications that are meant, where the first target is a configuration.
fn read_configuration(
    targets: &[String],
    of_config: &OfConfigArgs,
    over: &Map<String, Value>,
) -> Result<Option<Vec<AppConfig>>, Failure> {
    let path = Path::new(&targets[0]);
    if !config::is_configuration(path) {
        let why = || format!("--env and --only are for a configuration, and {} is not one", path.display());
        return if of_config.is_empty() { Ok(None) } else { Err(Failure::relay(why())) };
    }
    let Configuration { mut apps, warnings } = config::read(path, of_config.env.as_deref(), over)?;
    warnings.iter().for_each(console::log);
    let names = [&targets[1..], &of_config.only].concat();
    if let Some(name) = names.iter().find(|name| !apps.iter().any(|app| app.name == **name)) {
        let there = apps.iter().map(|app| app.name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(Failure::relay(format!("no application {name:?} in the configuration; there are: {there}")));
    }
    apps.retain(|app| names.is_empty() || names.contains(&app.name));
    Ok(Some(apps))
}

/// Ours, for the applications; without the variables that are not text.
fn environment() -> BTreeMap<String, String> {
    let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    let is_theirs = |name: &str| name != home::VARIABLE && !startup::VARIABLES.contains(&name);
    std::env::vars_os().filter_map(text).filter(|(name, _)| is_theirs(name)).collect()
}

fn print_list(reply: &PmReply) -> Result<(), Failure> {
    console::print(&output::list(&reply.processes, width(&stdout()), Paint::on(&stdout())))
}

fn monit(home: &PmHome) -> Result<(), Failure> {
    const LOOK_EVERY: Duration = Duration::from_secs(1);
    let odd = |error| Failure::new("draw on the terminal", error).advise("`pm list` needs none");
    let mut connection = PmConnection::open(home)?;
    let mut keyboard = Keyboard::open().map_err(odd)?;
    let mut screen = Screen::take(&stdout()).map_err(odd)?;
    let mut chosen = 0;
    loop {
        let entries = connection.ask(&PmRequest::List)?.processes;
        let last = entries.len().saturating_sub(1);
        chosen = last.min(chosen);
        let logs = entries.get(chosen).map(|entry| (&entry.pm2_env.pm_out_log_path, &entry.pm2_env.pm_err_log_path));
        let (output, errors) = logs.map(|(output, errors)| (tail(output), tail(errors))).unwrap_or_default();
        let view = MonitView { entries: &entries, chosen, output, errors, paint: Paint::on(&stdout()) };
        screen.draw(|frame| view.draw(frame)).map_err(odd)?;
        for key in keyboard.read(Some(LOOK_EVERY)).map_err(odd)? {
            match key {
                Key::Quit => return Ok(()),
                Key::Up => chosen = chosen.saturating_sub(1),
                Key::Down => chosen = last.min(chosen + 1),
                Key::Home | Key::PageUp => chosen = 0,
                Key::End | Key::PageDown => chosen = last,
                Key::Tab => chosen = if chosen == last { 0 } else { chosen + 1 },
            }
        }
    }
}

/// The end of a log, as much as a screen may show, without colours.
fn tail(path: &str) -> String {
    const SHOWN: u64 = 32 << 10;
    let read = || {
        let file = File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(SHOWN);
        let mut end = vec![0; SHOWN as usize];
        let length = file.read_at(&mut end, start)?;
        end.truncate(length);
        Ok(end)
    };
    let end = read().unwrap_or_else(|error: io::Error| Failure::new(path, error).to_string().into_bytes());
    let colours = Regex::new("\x1b\\[[0-9;]*[A-Za-z]").expect("it is a regular expression");
    colours.replace_all(&String::from_utf8_lossy(&end), "").into_owned()
}

/// The variables that each process has; those of the configuration, where it does not run.
fn environments(entries: &[ProcessEntry]) -> String {
    let variables = entries.iter().flat_map(|entry| {
        procfs::environment(entry.pid).unwrap_or_else(|| {
            console::log(format_args!("{} does not run: only what its configuration sets", entry.name));
            entry.pm2_env.env.clone()
        })
    });
    variables.map(|(name, value)| format!("{name}={value}\n")).collect()
}

fn logs(home: &PmHome, args: &LogsArgs) -> Result<(), Failure> {
    // First, so that no application that starts now is missed.
    let events = PmEvents::open(home)?;
    let mut connection = PmConnection::open(home)?;
    let mut logs = || -> Result<Vec<AppLog>, Failure> {
        let reply = connection.ask(&PmRequest::Describe { targets: args.targets.clone() })?;
        let is_wanted = |log: &AppLog| if log.stream == LogStream::Out { !args.err } else { !args.out };
        Ok(reply.processes.iter().flat_map(logs_of).filter(is_wanted).collect())
    };
    let first = logs()?;
    // One that is unknown now may come again.
    let mut logs = || logs().unwrap_or_default();
    follow(&first, args, &stdout(), Some(LaterLogs { events, logs: &mut logs }))
}

fn logs_of(entry: &ProcessEntry) -> [AppLog; 2] {
    let state = &entry.pm2_env;
    let logs = [(LogStream::Out, &state.pm_out_log_path), (LogStream::Error, &state.pm_err_log_path)];
    logs.map(|(stream, path)| AppLog {
        path: path.into(),
        stream,
        app_name: entry.name.clone(),
        process_id: entry.pm_id,
        is_json: state.log_type == LogType::Json,
    })
}

fn events(home: &PmHome) -> Result<(), Failure> {
    let mut events = PmEvents::open(home)?;
    while let Some(line) = events.next_event()? {
        console::print(&line)?;
    }
    Ok(())
}

fn kill(home: &PmHome) -> Result<(), Failure> {
    let Some(mut connection) = PmConnection::find(home)? else {
        return console::print("there is no daemon\n");
    };
    connection.ask(&PmRequest::Kill)?;
    // It has ended when it has left us.
    while connection.receive()?.is_some() {}
    console::print("all applications and the daemon have ended\n")
}
