//! The command line, as people who know PM2 type it: what may be a target, the other names of commands, and the options.

use std::fs;
use std::io::{BufRead, BufReader, Write};

use acceptlab::lab::observe::processes::poll_until;
use acceptlab::sys::procfs::Stat;
use serde_json::{Value, json};

use crate::pm::{Manager, cluster_app, environment_of, web_pids};
use crate::support::FOREVER;
use crate::terminal::Terminal;

/// Two sleeping applications, and the configuration that describes them.
fn configured(name: &str) -> (Manager, String) {
    let manager = Manager::new(name);
    let apps = json!({"apps": [
        {"name": "web", "script": "sleep", "args": "1000"},
        {"name": "job", "script": "sleep", "args": "1000"},
    ]});
    let file = manager.script("apps.json", &apps.to_string());
    (manager, file)
}

/// The status of each process, by its name.
fn statuses(manager: &Manager) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    manager.list().iter().map(|process| (text(&process["name"]), text(&process["pm2_env"]["status"]))).collect()
}

fn are(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|&(name, status)| (name.to_owned(), status.to_owned())).collect()
}

#[test]
fn a_configuration_stands_for_its_applications_in_every_command() {
    let (pm, file) = configured("config-target");
    pm.done(&["start", "sleep", "--name", "other", "--", "1000"]);
    let other = pm.pid("other");
    pm.done(&["start", &file, "--only", "web"]);
    assert_eq!(statuses(&pm), are(&[("other", "online"), ("web", "online")]));
    // The application that was never started is no reason to refuse the other.
    pm.done(&["stop", &file]);
    assert_eq!(statuses(&pm), are(&[("other", "online"), ("web", "stopped")]));
    pm.done(&["restart", &file]);
    assert_eq!(statuses(&pm), are(&[("other", "online"), ("web", "online"), ("job", "online")]));
    let [web, job] = ["web", "job"].map(|name| pm.pid(name));
    pm.done(&["reload", &file, "--only", "job"]);
    assert_eq!(pm.pid("web"), web);
    assert_ne!(pm.pid("job"), job);
    pm.done(&["stop", &file, "--only", "web,job"]);
    assert_eq!(statuses(&pm), are(&[("other", "online"), ("web", "stopped"), ("job", "stopped")]));
    pm.done(&["delete", &file, "job"]);
    assert_eq!(statuses(&pm), are(&[("other", "online"), ("web", "stopped")]));
    pm.done(&["delete", &file]);
    assert_eq!((statuses(&pm), pm.pid("other")), (are(&[("other", "online")]), other));
    assert!(pm.refused(&["delete", &file]).contains("no application of"));
    assert!(pm.refused(&["stop", &file, "--only", "wbe"]).contains("there are: web, job"));
    for [command, option] in [["stop", "--only"], ["restart", "--env"], ["start", "--env"]] {
        assert!(pm.refused(&[command, "other", option, "web"]).contains("for a configuration"), "{command}");
    }
}

#[test]
fn start_without_a_file_takes_the_ecosystem_file_of_this_folder() {
    let (pm, _) = configured("config-default");
    assert!(pm.refused(&["start"]).contains("ecosystem.config.js: no such file"));
}

#[test]
fn commands_have_the_names_that_people_type() {
    let (pm, file) = configured("aliases");
    pm.done(&["startOrRestart", &file]);
    pm.done(&["startOrReload", &file]);
    for list in ["list", "l", "ls", "ps", "status"] {
        assert!(pm.done(&[list]).contains("web"), "{list}");
    }
    for describe in ["describe", "show", "info", "desc"] {
        assert!(pm.done(&[describe, "web"]).contains("web-out-"), "{describe}");
    }
    pm.done(&["log", "--nostream"]);
    pm.done(&["reloadLogs"]);
    pm.done(&["del", "all"]);
    let unknown = |args: &[&str]| {
        let output = pm.run(args);
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(unknown(&["strat", "app.js"]).contains("'start'"));
    assert!(unknown(&["start", "--nmae", "x"]).contains("'--name'"));
}

#[test]
fn flush_without_a_target_empties_all_logs() {
    let pm = Manager::new("flush-all");
    for name in ["one", "two"] {
        let script = pm.script(&format!("{name}.sh"), "echo begun\nexec sleep 1000\n");
        pm.done(&["start", &script]);
        pm.await_log(&format!("{name}-out-{}.log", pm.process(name)["pm_id"]), "begun");
    }
    pm.done(&["flush"]);
    for log in ["one-out-0.log", "two-out-1.log"] {
        assert_eq!(fs::read_to_string(pm.home().join("logs").join(log)).unwrap(), "", "{log}");
    }
}

#[test]
fn options_of_start_set_the_keys_of_the_configuration() {
    let pm = Manager::new("options");
    let script = pm.script("say.sh", "echo \"out $* $PWD\"\necho err >&2\nexec sleep 1000\n");
    let folder = pm.home().with_file_name("sub");
    fs::create_dir_all(&folder).unwrap();
    let [out, error, both] = ["o.log", "e.log", "both.log"].map(|file| folder.join(file).display().to_string());
    let cwd = folder.display().to_string();
    let mut args =
        vec!["start", &script, "-n", "say", "--time", "--merge-logs", "--cwd", &cwd, "-o", &out, "-e", &error];
    args.extend(["--interpreter", "bash", "--interpreter-args", "-e", "--stop-exit-codes", "3,4", "--no-autorestart"]);
    args.extend(["--kill-timeout", "900", "--", "--port", "80", "-i"]);
    pm.done(&args);
    let said = pm.await_log(&out, "out --port 80 -i");
    assert!(said.starts_with("20") && said.trim_end().ends_with(&cwd), "{said}");
    pm.await_log(&error, ": err\n");
    assert_eq!(pm.process("say")["pm2_env"]["autorestart"], false);

    pm.done(&["start", &script, "-n", "both", "--log", &both, "--", "x"]);
    pm.await_log(&both, "out x");
    pm.await_log(&both, "err\n");
    let shown = pm.done(&["logs", "both", "--nostream", "--raw"]);
    assert_eq!(shown.lines().filter(|line| *line == "err").count(), 1, "{shown}");
}

#[test]
fn several_programs_a_command_line_and_the_arguments_of_a_program_are_started() {
    let pm = Manager::new("programs");
    let [one, two] = ["one", "two"].map(|name| pm.script(&format!("{name}.sh"), "exec sleep 1000\n"));
    pm.done(&["start", &one, &two]);
    assert_eq!(statuses(&pm), are(&[("one", "online"), ("two", "online")]));
    for twice in [&["start", &one, &two, "--name", "x"][..], &["start", &one, &one, "--force"]] {
        assert!(pm.refused(twice).contains("two programs have the name"), "{twice:?}");
    }
    pm.done(&["stop", "all"]);
    pm.done(&["start", "one", "two"]);
    assert_eq!(statuses(&pm), are(&[("one", "online"), ("two", "online")]));
    pm.done(&["start", "echo a b | tr ab cd; exec sleep 1000", "--name", "line"]);
    pm.await_log("line-out-2.log", "c d\n");
    pm.done(&["start", "env", "--name", "words", "--no-autorestart", "--", "echo", "run", "-x"]);
    pm.await_log("words-out-3.log", "run -x\n");
}

#[test]
fn env_shows_every_variable_that_the_process_gets() {
    let pm = Manager::new("env");
    let apps = json!([{"name": "web", "script": "sleep", "args": "1000", "env": {"COLOUR": "blue"}}]);
    let file = pm.script("apps.json", &apps.to_string());
    let mut start = pm.command(&["start", &file]);
    assert!(start.env("OF_THE_SHELL", "a b").status().unwrap().success());
    let shown = pm.done(&["env", "web"]);
    for variable in ["COLOUR=blue", "OF_THE_SHELL=a b", "NODE_APP_INSTANCE=0"] {
        assert!(shown.lines().any(|line| line == variable), "no {variable} in {shown}");
    }
    assert!(shown.lines().any(|line| line.starts_with("PATH=")), "{shown}");
    pm.done(&["stop", "web"]);
    let output = pm.run(&["env", "web"]);
    assert_eq!(output.stdout, b"COLOUR=blue\n");
    assert!(String::from_utf8(output.stderr).unwrap().contains("web does not run"));
}

/// What an application has of these variables.
fn variables_of(pid: i32, names: &[&str]) -> Vec<String> {
    let is_meant = |variable: &String| names.iter().any(|name| variable.starts_with(&format!("{name}=")));
    let mut found: Vec<String> = environment_of(pid).into_iter().filter(is_meant).collect();
    found.sort_unstable();
    found
}

#[test]
fn a_restart_keeps_the_environment_and_with_update_env_that_of_the_command_takes_its_place() {
    let pm = Manager::new("update-env");
    let (names, nobody) = (["OLD", "NEW", "BOTH", "KEPT"], json!({"BOTH": "file", "KEPT": "file"}));
    let app = json!([{"name": "web", "script": "sleep", "args": "1000", "instances": 2, "env": nobody}]);
    let file = pm.script("apps.json", &app.to_string());
    let run = |args: &[&str], variables: &[(&str, &str)]| {
        assert!(pm.command(args).envs(variables.to_vec()).status().unwrap().success(), "{args:?}");
        pm.list().iter().map(|one| variables_of(one["pid"].as_i64().unwrap() as i32, &names)).collect::<Vec<_>>()
    };
    let before = ["BOTH=file", "KEPT=file", "OLD=1"].map(str::to_owned).to_vec();
    let after = ["BOTH=shell", "KEPT=file", "NEW=1"].map(str::to_owned).to_vec();
    let new = [("NEW", "1"), ("BOTH", "shell")];
    assert_eq!(run(&["start", &file], &[("OLD", "1")]), [before.clone(), before.clone()]);
    assert_eq!(run(&["restart", "web"], &new), [before.clone(), before.clone()]);
    assert_eq!(run(&["restart", "1", "--update-env"], &new), [before.clone(), after.clone()]);
    // A scale leaves each its own.
    let mut three = vec![before.clone(), after.clone(), before.clone()];
    assert_eq!(run(&["scale", "web", "3"], &[]), three);
    assert_eq!(run(&["restart", "web"], &[]), three);
    three.pop();
    assert_eq!(run(&["scale", "web", "2"], &[]), three);
    assert_eq!(run(&["reload", "web", "--update-env"], &new), [after.clone(), after.clone()]);
    // One request, so that nothing can come in between.
    let mut client = pm.connect();
    let request = json!({"do": "restart", "targets": ["0"], "environment": {"PATH": "/bin:/usr/bin", "ALONE": "1"}});
    writeln!(client, "{request}").unwrap();
    BufReader::new(&client).read_line(&mut String::new()).unwrap();
    assert_eq!(run(&["list"], &[])[0], ["KEPT=file"]);
    assert_eq!(run(&["reload", "web", "--update-env"], &new), [after.clone(), after.clone()]);
    // The next daemon knows it, too.
    pm.kill_daemon();
    assert_eq!(run(&["restart", "web"], &[]), [after.clone(), after]);
    assert_eq!(run(&["restart", &file], &[("OLD", "1")]), [before.clone(), before]);
}

#[test]
fn the_workers_of_a_cluster_get_the_environment_of_a_reload_with_update_env() {
    let pm = Manager::new("update-env-cluster");
    let (file, _) = cluster_app(&pm, json!({}));
    pm.done(&["start", &file]);
    assert!(pm.command(&["reload", "web", "--update-env"]).env("NEW", "1").status().unwrap().success());
    assert!(web_pids(&pm).into_iter().all(|pid| variables_of(pid, &["NEW"]) == ["NEW=1"]));
}

/// A table that is wider than its terminal is broken into lines that nobody can read.
#[test]
fn the_table_fits_a_terminal_of_any_width_and_says_why_an_application_is_errored() {
    let Some(terminal) = Terminal::open("pm-list") else { return };
    let pm = Manager::new("table");
    let script = pm.script("broken.sh", "exit 3\n");
    pm.done(&["start", "sleep", "--name", "an-application-with-a-long-name", "--namespace", "nightly", "--", "1000"]);
    pm.done(&["start", "sleep", "--name", "网络服务器", "-i", "3", "--", "1000"]);
    pm.done(&["start", &script, "--max-restarts", "1"]);
    pm.await_status("broken", "errored");
    let line =
        format!("clear; PM_HOME={} {} list; echo $((40 + 2)) shown", pm.home().display(), env!("CARGO_BIN_EXE_pm"));
    for (width, has) in [(60, "↺"), (80, "uptime"), (100, "mode"), (160, "an-application-with-a-long-name")] {
        terminal.tmux(&["resize-window", "-x", &width.to_string(), "-y", "24"]);
        // The terminal hears of it a little later than tmux.
        terminal.keys(&[&format!("clear; until stty size | grep '^24 {width}$'; do :; done"), "Enter"]);
        terminal.shows(|screen| screen.contains(&format!("24 {width}\nprompt>")));
        terminal.keys(&[&line, "Enter"]);
        let screen = terminal.shows(|screen| screen.contains("\n42 shown"));
        let table: Vec<&str> = screen.lines().skip_while(|line| !line.starts_with('┌')).collect();
        assert!(table.len() > 9 && table[..9].iter().all(|line| line.starts_with(['┌', '│', '╞', '└'])), "{screen}");
        assert!(table[8].starts_with('└') && table[8].ends_with('┘') && screen.contains(has), "{width}: {screen}");
        assert!(screen.contains("an-app") && screen.contains("网络服务器"), "{screen}");
        assert!(table[9].starts_with("broken: it ended with status 3"), "{screen}");
    }
    assert!(!pm.done(&["list"]).contains('\x1b'), "what is not a terminal gets no colours");
}

#[test]
fn monit_shows_all_processes_and_the_logs_of_the_one_that_is_chosen() {
    let Some(terminal) = Terminal::open("pm-monit") else { return };
    let pm = Manager::new("monit");
    for name in ["one", "two"] {
        let text = format!("echo out of {name}; printf '\\033[31merr of {name}\\033[0m\\n' >&2; exec sleep 1000\n");
        pm.done(&["start", &pm.script(&format!("{name}.sh"), &text)]);
    }
    pm.await_log("two-error-1.log", "err of two");
    terminal.keys(&[&format!("PM_HOME={} {} monit", pm.home().display(), env!("CARGO_BIN_EXE_pm")), "Enter"]);
    let screen = terminal.shows(|screen| screen.contains("err of one"));
    for shown in ["2 of 2 processes online", "one (id 0)", "status: online", "\nout of one\n", "\nerr of one\n"] {
        assert!(screen.contains(shown), "no {shown} in\n{screen}");
    }
    terminal.keys(&["Down"]);
    terminal.shows(|screen| screen.contains("two (id 1)") && screen.contains("\nout of two\n"));
    terminal.keys(&["q"]);
    // The line that was typed may be longer than the screen is wide.
    terminal.shows(|screen| screen.replace('\n', "").trim_end().ends_with("monitprompt>"));
    terminal.is_given_back();
}

/// Only its workers are replaced; what the daemon does for the application is by the new configuration, too.
#[test]
fn a_cluster_that_is_reloaded_with_a_configuration_watches_and_keeps_the_time_as_it_says() {
    let pm = Manager::new("reload-watch");
    let script = pm.script("web.sh", &format!("exec {} --listen 127.0.0.1:0\n", env!("CARGO_BIN_EXE_event-driven")));
    let watched = pm.script("watched", "");
    let configure = |key: &str, value: Value| {
        let mut app = json!({"name": "web", "script": script, "exec_mode": "cluster", "instances": 1,
                             "listen_timeout": FOREVER.as_millis() as u64});
        app[key] = value;
        pm.script("web.json", &json!([app]).to_string())
    };
    let restarts = || pm.process("web")["pm2_env"]["restart_time"].as_u64().unwrap();
    pm.done(&["start", &configure("autorestart", json!(true))]);
    pm.done(&["reload", &configure("watch", json!([watched]))]);
    let before = restarts();
    fs::write(&watched, "changed").unwrap();
    assert!(poll_until(FOREVER, || (restarts() > before).then_some(())).is_some(), "its file has changed");
    // The worker that was listed may have left since, as the reload goes on.
    let cluster = || poll_until(FOREVER, || Stat::of(*web_pids(&pm).first()?).map(|worker| worker.parent));
    let first = cluster().unwrap_or_else(|| panic!("no worker: {:?}", pm.list()));
    pm.done(&["reload", &configure("cron_restart", json!("* * * * * *"))]);
    let before = restarts();
    assert!(poll_until(FOREVER, || (restarts() > before + 1).then_some(())).is_some(), "two seconds have passed");
    assert_eq!(cluster(), Some(first), "it is reloaded, so it goes on serving");
}
