//! The command line, as people who know PM2 type it: what may be a target, the other names of commands, and the options.

use std::fs;

use serde_json::{Value, json};

use crate::pm::Manager;

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
    assert!(pm.refused(&["stop", "other", "--only", "web"]).contains("for a configuration"));
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
    pm.done(&["stop", "all"]);
    pm.done(&["start", "one", "two"]);
    assert_eq!(statuses(&pm), are(&[("one", "online"), ("two", "online")]));
    pm.done(&["start", "echo a b | tr ab cd; exec sleep 1000", "--name", "line"]);
    pm.await_log("line-out-2.log", "c d\n");
    pm.done(&["start", "env", "--name", "words", "--no-autorestart", "--", "echo", "run", "-x"]);
    pm.await_log("words-out-3.log", "run -x\n");
}
