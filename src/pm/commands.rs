//! What each command asks the daemon, and what it prints of the answer.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::stdout;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::args::{AgainArgs, LogsArgs, PmCommand, StartArgs, Targets};
use super::client::{self, PmConnection};
use super::config::{self, AppConfig, LogType};
use super::daemon;
use super::home::{self, PmHome};
use super::logs::{FollowOptions, FollowedFile, ShownAs, follow};
use super::output;
use super::protocol::{PmReply, PmRequest};
use super::startup;
use crate::console::{self, Format};
use crate::failure::Failure;
use crate::keyboard::{Key, Keyboard};
use crate::logs::lines::LogStream;
use crate::terminal::{Paint, Screen, draw_lines, width};

/// Runs one command to its end. Cluster mode runs the program `cluster`, which is beside this one.
///
/// # Errors
/// One line for the user.
pub fn run(command: PmCommand, cluster: &str) -> Result<(), Failure> {
    let home = PmHome::find()?;
    let program = std::env::current_exe().map_err(|error| Failure::new("find this program", error))?;
    let cluster = program.with_file_name(cluster);
    let ask = |request: PmRequest| PmConnection::open(&home)?.ask(&request);
    let change = |request: PmRequest| print_list(&ask(request)?);
    match command {
        PmCommand::Start(args) => start(&home, cluster, &args),
        PmCommand::Reload(args) => again(&home, args, true),
        PmCommand::Stop(Targets { targets }) => change(PmRequest::Stop { targets }),
        PmCommand::Restart(args) => again(&home, args, false),
        PmCommand::Delete(Targets { targets }) => {
            ask(PmRequest::Delete { targets })?;
            print_list(&ask(PmRequest::List)?)
        }
        PmCommand::Scale { name, instances } => change(PmRequest::Scale { name, instances: instances.into() }),
        PmCommand::List { format: Format::Text } => print_list(&ask(PmRequest::List)?),
        PmCommand::List { format: Format::Json } | PmCommand::Jlist => {
            let list = serde_json::to_string(&ask(PmRequest::List)?.processes).expect("its keys are strings");
            console::print(&format!("{list}\n"))
        }
        PmCommand::Describe(Targets { targets }) => {
            let reply = ask(PmRequest::Describe { targets })?;
            console::print(&output::describe(&reply.processes, Paint::on(&stdout())))
        }
        PmCommand::Monit => monit(&home),
        PmCommand::Env(Targets { targets }) => {
            console::print(&output::environment(&ask(PmRequest::Describe { targets })?.processes))
        }
        PmCommand::Signal { signal, targets: Targets { targets } } => {
            change(PmRequest::Signal { signal: signal as i32, targets })
        }
        PmCommand::Logs(args) => logs(&home, args),
        PmCommand::Flush(Targets { targets }) => change(PmRequest::Flush { targets }),
        PmCommand::ReloadLogs => ask(PmRequest::ReloadLogs).map(drop),
        PmCommand::Reset(Targets { targets }) => change(PmRequest::Reset { targets }),
        PmCommand::Save => {
            let reply = ask(PmRequest::Save)?;
            let processes = reply.processes.len();
            console::print(&format!("{processes} processes saved in {}\n", home.dump().display()))
        }
        PmCommand::Resurrect => change(PmRequest::Resurrect),
        PmCommand::Startup(args) => {
            let text = startup::startup(&args, std::env::var_os(home::VARIABLE).as_deref())?;
            console::print(&format!("{}\n", text.trim_end()))
        }
        PmCommand::Events => events(&home),
        PmCommand::Ping => {
            ask(PmRequest::Ping)?;
            console::print(&format!("the daemon of {} answers\n", home.folder().display()))
        }
        PmCommand::Kill => kill(&home),
        PmCommand::Daemon => daemon::run(&home, cluster, None, client::daemon_is_ready),
    }
}

fn start(home: &PmHome, cluster: PathBuf, args: &StartArgs) -> Result<(), Failure> {
    let path = Path::new(&args.file);
    let is_file = path.is_file();
    let mut keys = args.keys.to_keys();
    // With an option it is a program, even if an application has its name.
    if !is_file && !args.file.contains('/') && !args.no_daemon && keys.is_empty() && args.arguments.is_empty() {
        let targets = vec![args.file.clone()];
        // A daemon that is not there knows no application.
        if let Some(mut connection) = PmConnection::find(home)?
            && connection.ask(&PmRequest::Describe { targets: targets.clone() }).is_ok()
        {
            return print_list(&connection.ask(&PmRequest::Wake { targets })?);
        }
    }
    if !args.arguments.is_empty() {
        keys.insert("args".to_owned(), json!(args.arguments));
    }
    let is_configuration = is_file && config::is_configuration(path);
    let apps = if is_configuration {
        let configuration = config::read(path, args.env.as_deref(), &keys)?;
        configuration.warnings.iter().for_each(console::log);
        chosen(configuration.apps, &args.names)?
    } else {
        keys.insert("script".to_owned(), Value::from(args.file.clone()));
        let folder = std::env::current_dir().map_err(|error| Failure::new("find the current folder", error))?;
        vec![config::from_keys(keys, &folder)?]
    };
    let only_new = !is_configuration && !args.force;
    let request = PmRequest::Start { apps, environment: environment(), only_new, reload: false };
    if args.no_daemon {
        return daemon::run(home, cluster, Some(request), || {});
    }
    print_list(&PmConnection::open(home)?.ask(&request)?)
}

/// A restart or a reload, with the configuration as it is now where one is named.
fn again(home: &PmHome, args: AgainArgs, reload: bool) -> Result<(), Failure> {
    let file = Path::new(&args.targets[0]);
    let request = if file.is_file() && config::is_configuration(file) {
        let configuration = config::read(file, args.env.as_deref(), &Map::new())?;
        configuration.warnings.iter().for_each(console::log);
        let apps = chosen(configuration.apps, &args.targets[1..])?;
        PmRequest::Start { apps, environment: environment(), only_new: false, reload }
    } else if reload {
        PmRequest::Reload { targets: args.targets }
    } else {
        PmRequest::Restart { targets: args.targets }
    };
    print_list(&PmConnection::open(home)?.ask(&request)?)
}

/// Ours, for the applications; without the variables that are not text.
fn environment() -> BTreeMap<String, String> {
    let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
    let is_theirs = |name: &str| name != home::VARIABLE && !startup::VARIABLES.contains(&name);
    std::env::vars_os().filter_map(text).filter(|(name, _)| is_theirs(name)).collect()
}

/// Those with these names; all, when none is given.
fn chosen(apps: Vec<AppConfig>, names: &[String]) -> Result<Vec<AppConfig>, Failure> {
    if let Some(name) = names.iter().find(|name| !apps.iter().any(|app| app.name == **name)) {
        let there = apps.iter().map(|app| app.name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(Failure::relay(format!("no application {name:?} in the configuration; there are: {there}")));
    }
    Ok(apps.into_iter().filter(|app| names.is_empty() || names.contains(&app.name)).collect())
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
    loop {
        let entries = connection.ask(&PmRequest::List)?.processes;
        let lines = output::monit(&entries, Paint::on(&stdout()));
        screen.draw(|frame| draw_lines(frame, lines, "q quits".to_owned())).map_err(odd)?;
        if keyboard.read(Some(LOOK_EVERY)).map_err(odd)?.contains(&Key::Quit) {
            return Ok(());
        }
    }
}

fn logs(home: &PmHome, args: LogsArgs) -> Result<(), Failure> {
    let reply = PmConnection::open(home)?.ask(&PmRequest::Describe { targets: args.targets })?;
    let files = reply.processes.iter().flat_map(|entry| {
        let state = &entry.pm2_env;
        let paths =
            [(LogStream::Out, &state.pm_out_log_path, args.err), (LogStream::Error, &state.pm_err_log_path, args.out)];
        paths.into_iter().filter(|(_, _, is_unwanted)| !is_unwanted).map(|(stream, path, _)| FollowedFile {
            path: path.into(),
            stream,
            app_name: entry.name.clone(),
            process_id: entry.pm_id,
            is_json: state.log_type == LogType::Json,
        })
    });
    let shown_as = match (args.json, args.raw) {
        (true, _) => ShownAs::Json,
        (false, true) => ShownAs::Raw,
        (false, false) => ShownAs::Named,
    };
    let options = FollowOptions {
        lines: args.lines,
        shown_as,
        goes_on: !args.nostream,
        time_format: args.timestamp,
        paint: Paint::on(&stdout()),
    };
    follow(&files.collect::<Vec<_>>(), &options, &stdout())
}

fn events(home: &PmHome) -> Result<(), Failure> {
    let mut connection = PmConnection::open(home)?;
    connection.send(&PmRequest::Events)?;
    while let Some(line) = connection.receive()? {
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
