//! What the process manager does when something else fails: a damaged file, a program that is not there, a worker or a
//! cluster that dies or hangs, a machine that was started again.

use std::fs;
use std::process::{Command, Stdio};

use acceptlab::lab::observe::processes::poll_until;
use acceptlab::sys::procfs::Stat;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::pm::{Manager, await_end, cluster_app, environment_of, is_alive, web_pids};
use crate::support::{FOREVER, Needs, inconclusive};

fn kill_9(pid: i32) {
    assert!(pid > 0, "0 is this group of processes, tests and all");
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

#[test]
fn a_script_that_is_not_there_is_refused_with_its_path_and_nothing_is_listed() {
    let pm = Manager::new("no-script");
    let there = pm.script("there.sh", "exec sleep 600\n");
    for (missing, instances) in [("nothing.sh", "1"), ("nothing.js", "1"), ("./nothing", "1"), ("./nothing", "2")] {
        let said = pm.refused(&["start", missing, "-i", instances]);
        assert!(said.contains("start /") && said.contains("nothing") && said.contains("no such file"), "{said}");
    }
    // One of several: then none is started.
    let apps = json!({"apps": [{"name": "there", "script": there}, {"name": "missing", "script": "nothing.sh"}]});
    let said = pm.refused(&["start", &pm.script("apps.json", &apps.to_string())]);
    assert!(said.contains("nothing.sh"), "{said}");
    assert_eq!(pm.list(), [] as [Value; 0]);
    // One that was there, and is gone when it is to start again.
    pm.done(&["start", &there]);
    fs::remove_file(&there).unwrap();
    let said = pm.refused(&["restart", "there"]);
    assert!(said.contains("there: start /") && said.contains("no such file"), "{said}");
    assert_eq!(pm.process("there")["pm2_env"]["status"], "errored");
}

#[test]
fn a_process_that_has_failed_before_does_not_make_a_scale_fail() {
    let pm = Manager::new("scale-errored");
    let script = pm.script("first.sh", "[ $NODE_APP_INSTANCE = 0 ] && exit 3\nexec sleep 600\n");
    pm.done(&["start", &script, "--max-restarts", "0"]);
    pm.await_status("first", "errored");
    pm.done(&["scale", "first", "2"]);
    let statuses: Vec<Value> = pm.list().iter().map(|entry| entry["pm2_env"]["status"].clone()).collect();
    assert_eq!(statuses, ["errored", "online"]);
}

#[test]
fn a_worker_of_a_cluster_that_dies_is_counted_and_is_an_event() {
    let pm = Manager::new("worker-dies");
    let (file, _) = cluster_app(&pm, json!({}));
    pm.done(&["start", &file]);
    let first = web_pids(&pm);
    // What the cluster itself says does not grow for ever.
    let log = pm.home().join("logs/web-cluster-0.log");
    fs::File::options().append(true).open(&log).unwrap().set_len(11 << 20).unwrap();
    kill_9(first[1]);
    assert!(poll_until(FOREVER, || (fs::metadata(&log).unwrap().len() < 1 << 20).then_some(())).is_some());
    fs::File::options().append(true).open(&log).unwrap().set_len(2 << 20).unwrap();
    pm.done(&["flush", "web"]);
    assert!(fs::metadata(&log).unwrap().len() < 1 << 20);
    let restarts = |pm: &Manager| -> Vec<Value> {
        pm.list().iter().map(|entry| entry["pm2_env"]["restart_time"].clone()).collect()
    };
    let is_counted = || (restarts(&pm) == [0, 1] && web_pids(&pm)[1] > 0).then_some(());
    assert!(poll_until(FOREVER, is_counted).is_some(), "{:?}", pm.list());
    let exit = format!("\"pid\":{},\"pm_id\":1,\"reason\":\"was killed by SIGKILL\"", first[1]);
    let log = fs::read_to_string(pm.home().join("pm.log")).unwrap();
    assert!(log.lines().any(|line| line.contains("\"event\":\"exit\"") && line.contains(&exit)), "{log}");
    // One that dies while there is no daemon is counted by the next.
    pm.kill_daemon();
    kill_9(first[0]);
    let is_counted = || (restarts(&pm) == [1, 1] && web_pids(&pm)[0] > 0).then_some(());
    assert!(poll_until(FOREVER, is_counted).is_some(), "{:?}", pm.list());
    // Those that are replaced or too many have not died.
    pm.done(&["scale", "web", "-1"]);
    pm.done(&["reload", "web"]);
    assert_eq!(restarts(&pm), [2]);
    let log = fs::read_to_string(pm.home().join("pm.log")).unwrap();
    let count = |event: &str| log.matches(&format!("\"event\":\"{event}\"")).count();
    assert_eq!((count("scaled"), count("reloaded"), count("exit")), (1, 1, 2), "{log}");
}

/// It may die before it has accepted the client, before it has read the request, or still have the lock.
#[test]
fn a_command_directly_after_the_daemon_was_killed_is_done_by_the_next_one() {
    let pm = Manager::new("killed-often");
    pm.done(&["start", "sleep", "--name", "nap", "--", "1000"]);
    let pid = pm.pid("nap");
    for round in 0..20 {
        // Nobody waits for its end.
        kill_9(pm.daemon());
        assert_eq!(pm.pid("nap"), pid, "round {round}");
    }
}

/// A folder has the name of the file that would become the state: writing it fails, as on a disk that is full.
#[test]
fn a_state_that_could_not_be_written_is_written_with_the_next_command() {
    let pm = Manager::new("unsaved");
    pm.done(&["start", "sleep", "--name", "nap", "--", "1000"]);
    let obstacle = pm.home().join("state.json.new");
    // The state with the new process may just be written.
    assert!(poll_until(FOREVER, || fs::create_dir(&obstacle).ok()).is_some());
    pm.done(&["stop", "nap"]);
    let log = fs::read_to_string(pm.home().join("pm.log")).unwrap();
    assert!(log.contains("state.json: is a directory"), "{log}");
    // A new process would be unknown to the next daemon.
    let said = pm.refused(&["start", "sleep", "--name", "new", "--", "1000"]);
    assert!(said.starts_with("start new: write ") && said.ends_with("; nothing was started\n"), "{said}");
    assert!(pm.refused(&["scale", "nap", "2"]).starts_with("start nap: write "));
    assert_eq!(pm.process("nap")["pm2_env"]["instances"], 1);
    fs::remove_dir(&obstacle).unwrap();
    pm.done(&["ping"]);
    // Only the state tells the next daemon that somebody has stopped it.
    pm.kill_daemon();
    assert_eq!(pm.process("nap")["pm2_env"]["status"], "stopped");
}

#[test]
fn a_damaged_state_is_kept_and_the_applications_that_run_are_found_again() {
    let pm = Manager::new("damaged");
    let script = pm.script("sleep.sh", "exec sleep 600\n");
    pm.done(&["start", &script, "--name", "sleep", "-i", "2", "--kill-timeout", "5s"]);
    pm.done(&["save"]);
    // The configuration of one is in the dump; of the others there is only what the system shows.
    pm.done(&["start", &script, "--name", "unsaved"]);
    let (file, _) = cluster_app(&pm, json!({}));
    pm.done(&["start", &file]);
    let pids = |pm: &Manager| -> Vec<Value> { pm.list().iter().map(|entry| entry["pid"].clone()).collect() };
    let before = pids(&pm);
    pm.kill_daemon();
    fs::write(pm.home().join("state.json"), "{").unwrap();
    assert_eq!(pids(&pm), before);
    let log = fs::read_to_string(pm.home().join("pm.log")).unwrap();
    let said: Vec<&str> = log.lines().filter(|line| line.contains("read ") && line.contains("state.json")).collect();
    assert!(said.len() == 1 && said[0].contains("kept as "), "{log}");
    let kept = said[0].split("kept as ").nth(1).unwrap().split(';').next().unwrap();
    assert_eq!(fs::read_to_string(kept).unwrap(), "{");
    // They are kept alive as before.
    let pid = pm.pid("unsaved");
    kill_9(pid);
    pm.await_successor("unsaved", pid);
    let workers = web_pids(&pm);
    kill_9(workers[0]);
    let is_replaced = || (web_pids(&pm)[0] != workers[0] && web_pids(&pm)[0] > 0).then_some(());
    assert!(poll_until(FOREVER, is_replaced).is_some(), "{:?}", pm.list());
}

/// What an application has started in a session of its own has its environment, too.
#[test]
fn what_an_application_has_started_is_not_adopted_in_its_place() {
    let pm = Manager::new("stranger");
    let script = pm.script("parent.sh", "setsid sleep 601 &\necho $!\nexec sleep 602\n");
    pm.done(&["start", &script]);
    let child: i32 = pm.await_log("parent-out-0.log", "\n").trim().parse().unwrap();
    let pid = pm.pid("parent");
    pm.kill_daemon();
    kill_9(pid);
    await_end(pid);
    let successor = pm.await_successor("parent", pid);
    assert!(successor != child && is_alive(child));
    assert_eq!(pm.process("parent")["pm2_env"]["restart_time"], 1);
    // It belongs to the application nevertheless, and ends with it.
    pm.done(&["stop", "parent"]);
    assert!(!is_alive(child));
}

/// The next daemon knows only the mark that they carry.
#[test]
fn children_that_ignore_the_signal_do_not_survive_a_stop_that_the_daemon_did_not() {
    let pm = Manager::new("orphans");
    let script = pm.script("parent.sh", "(trap '' INT; exec sleep 605) &\necho $!\nexec sleep 606\n");
    pm.done(&["start", &script, "--kill-timeout", "3s"]);
    let child: i32 = pm.await_log("parent-out-0.log", "\n").trim().parse().unwrap();
    let pid = pm.pid("parent");
    let mut stop = pm.command(&["stop", "parent"]).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    await_end(pid);
    let state = || fs::read_to_string(pm.home().join("state.json")).unwrap();
    let is_saved = || state().contains("\"after_stop\":\"Remain\"").then_some(());
    assert!(poll_until(FOREVER, is_saved).is_some(), "{}", state());
    pm.kill_daemon();
    assert!(is_alive(child) && !stop.wait().unwrap().success());
    pm.await_status("parent", "stopped");
    assert!(!is_alive(child));
}

#[test]
fn a_child_that_is_started_while_its_parent_ends_does_not_stay_behind() {
    let pm = Manager::new("late-child");
    let text =
        "trap 'setsid sleep 603 & echo $!; sleep 604 & echo $!; exit' INT\necho ready\nwhile :; do sleep 0.1; done\n";
    let script = pm.script("late.sh", text);
    pm.done(&["start", &script, "--kill-timeout", "300"]);
    pm.await_log("late-out-0.log", "ready");
    pm.done(&["stop", "late"]);
    let log = pm.await_log("late-out-0.log", "\n");
    let children: Vec<i32> = log.lines().skip(1).map(|line| line.parse().unwrap()).collect();
    assert!(children.len() == 2 && children.iter().all(|&child| !is_alive(child)), "{log}");
}

#[test]
fn a_new_start_of_the_machine_is_no_crash() {
    let pm = Manager::new("boot");
    let script = pm.script("sleep.sh", "exec sleep 600\n");
    pm.done(&["start", &script, "--name", "sleep", "--max-restarts", "0"]);
    pm.done(&["start", &script, "--name", "stopped"]);
    pm.done(&["stop", "stopped"]);
    let pid = pm.pid("sleep");
    pm.kill_daemon();
    kill_9(pid);
    await_end(pid);
    let path = pm.home().join("state.json");
    let mut state: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    state["boot"] = json!("another");
    fs::write(&path, state.to_string()).unwrap();
    let sleep = pm.await_status("sleep", "online");
    assert_eq!((&sleep["pm2_env"]["restart_time"], &sleep["pm2_env"]["unstable_restarts"]), (&json!(0), &json!(0)));
    pm.await_status("stopped", "stopped");
}

/// The daemon needs many descriptors, and may have been started by a Node program. Both is nothing to an application.
#[test]
fn an_application_has_the_limits_of_the_client_and_none_of_its_channels() {
    let pm = Manager::new("limits");
    let script = pm.script("sleep.sh", "exec sleep 600\n");
    let mut shell = std::process::Command::new("sh");
    let line = format!("ulimit -S -n 200; exec {} start {script} --name sleep", env!("CARGO_BIN_EXE_pm"));
    shell.args(["-c", &line]).env("PM_HOME", pm.home()).env("NODE_CHANNEL_FD", "3").env("NODE_UNIQUE_ID", "7");
    assert!(shell.stdout(Stdio::null()).status().unwrap().success());
    let pid = pm.pid("sleep");
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let limit = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(limit.split_whitespace().nth(3), Some("200"));
    let environment = environment_of(pid);
    assert!(!environment.iter().any(|variable| variable.starts_with("NODE_CHANNEL") || variable.starts_with("NODE_U")));
}

/// A request with a large environment does not fit into the socket of a cluster that does not read.
#[test]
fn a_cluster_that_hangs_keeps_nobody_else_waiting() {
    let pm = Manager::new("hung-cluster");
    let (file, _) = cluster_app(&pm, json!({}));
    pm.done(&["start", &file]);
    let large: Vec<(String, String)> = (0..5).map(|i| (format!("LARGE_{i}"), "x".repeat(100_000))).collect();
    let master = Stat::of(web_pids(&pm)[0]).unwrap().parent;
    kill(Pid::from_raw(master), Signal::SIGSTOP).unwrap();
    let mut reload = pm.command(&["reload", &file]);
    let mut reload = reload.envs(large).stdout(Stdio::null()).spawn().unwrap();
    let is_asked = || {
        let log = fs::read_to_string(pm.home().join("pm.log")).unwrap();
        log.contains("\"event\":\"reload\"").then_some(())
    };
    assert!(poll_until(FOREVER, is_asked).is_some());
    assert_eq!(pm.list().len(), 2);
    // Its answer would be taken for that to the reload.
    assert!(pm.refused(&["scale", "web", "3"]).contains("web is being reloaded"));
    assert!(reload.try_wait().unwrap().is_none());
    kill(Pid::from_raw(master), Signal::SIGCONT).unwrap();
    assert!(reload.wait().unwrap().success());
    assert!(environment_of(web_pids(&pm)[0]).iter().any(|variable| variable.starts_with("LARGE_4=x")));
}

/// A worker that writes what Node's process.send('ready') writes, after a while; or never.
fn ready_app(pm: &Manager, text: &str, more: Value) -> String {
    let script = pm.script("worker.sh", text);
    let mut app = json!({"name": "web", "script": script, "interpreter": "bash", "exec_mode": "cluster", "instances": 2,
                         "listen_timeout": 1500});
    more.as_object().unwrap().iter().for_each(|(key, value)| app[key] = value.clone());
    pm.script("web.json", &json!({"apps": [app]}).to_string())
}

#[test]
fn a_cluster_whose_workers_say_when_they_are_ready_is_awaited_and_a_version_that_never_does_keeps_the_old() {
    let pm = Manager::new("cluster-ready");
    let says_ready = "echo '\"ready\"' >&$NODE_CHANNEL_FD\nexec sleep 600\n";
    let file = ready_app(&pm, says_ready, json!({"wait_ready": true}));
    pm.done(&["start", &file]);
    let first = web_pids(&pm);
    assert!(first.len() == 2 && first.iter().all(|&pid| pid > 0), "{:?}", pm.list());
    pm.script("worker.sh", "exec sleep 600\n");
    let said = pm.refused(&["reload", "web"]);
    assert!(said.contains("has not said after 1.5s"), "{said}");
    assert_eq!(web_pids(&pm), first);
    let log = fs::read_to_string(pm.home().join("pm.log")).unwrap();
    let refused = log.lines().find(|line| line.contains("\"event\":\"refused\"")).unwrap();
    assert!(refused.contains("has not said after 1.5s"), "{refused}");
    // That is no failure of a later command.
    pm.done(&["start", "web"]);
    pm.script("worker.sh", says_ready);
    pm.done(&["reload", "web"]);
    assert!(web_pids(&pm).iter().all(|pid| !first.contains(pid) && *pid > 0), "{:?}", pm.list());
}

#[test]
fn a_cluster_that_is_reloaded_with_a_configuration_awaits_and_restarts_its_workers_as_that_says() {
    let pm = Manager::new("reload-keys");
    let configure = |keys| ready_app(&pm, "exec sleep 600\n", keys);
    pm.done(&["start", &configure(json!({"listen_timeout": 300}))]);
    let first = web_pids(&pm);
    let refused = json!({"listen_timeout": 200, "wait_ready": true, "env": {"REFUSED": "1"}});
    let said = pm.refused(&["reload", &configure(refused)]);
    assert!(said.contains("has not said after 200ms"), "{said}");
    assert_eq!(web_pids(&pm), first);
    // A worker that dies has a successor of the old version.
    kill_9(first[0]);
    let successor = poll_until(FOREVER, || Some(web_pids(&pm)[0]).filter(|&pid| pid > 0 && pid != first[0])).unwrap();
    assert!(!environment_of(successor).contains(&"REFUSED=1".to_owned()));
    pm.done(&["reload", &configure(json!({"listen_timeout": 300, "autorestart": false}))]);
    web_pids(&pm).into_iter().for_each(kill_9);
    let is_stopped = || pm.list().iter().all(|entry| entry["pm2_env"]["status"] == "stopped").then_some(());
    assert!(poll_until(FOREVER, is_stopped).is_some(), "{:?}", pm.list());
}

/// It reads a queue, say.
#[test]
fn a_cluster_whose_workers_never_listen_is_online_after_listen_timeout() {
    let pm = Manager::new("cluster-silent");
    pm.done(&["start", &ready_app(&pm, "exec sleep 600\n", json!({}))]);
    assert!(pm.list().iter().all(|entry| entry["pm2_env"]["status"] == "online"), "{:?}", pm.list());
}

#[test]
fn workers_that_end_as_they_are_to_have_no_successors_and_with_the_last_the_application_is_stopped() {
    // The kernel closes the channel of one that ends before it reports the end.
    let text = "echo begun\nsleep 2\neval \"exec $NODE_CHANNEL_FD>&-\"\nsleep 0.3\nexit 7\n";
    for (name, key) in [("codes", json!({"stop_exit_codes": [7]})), ("once", json!({"autorestart": false}))] {
        let pm = Manager::new(&format!("cluster-{name}"));
        pm.done(&["start", &ready_app(&pm, text, key)]);
        let is_stopped = || {
            let list = pm.list();
            list.iter().all(|entry| entry["pm2_env"]["status"] == "stopped").then_some(list)
        };
        let stopped = poll_until(FOREVER, is_stopped).unwrap_or_else(|| panic!("{:?}", pm.list()));
        assert!(stopped.iter().all(|entry| entry["pm2_env"]["restart_time"] == 0), "{stopped:?}");
        assert_eq!(["web-out-0.log", "web-out-1.log"].map(|log| pm.await_log(log, "begun")), ["begun\n"; 2]);
    }
}

#[test]
fn a_worker_that_has_ended_as_it_was_to_has_a_successor_after_a_reload_or_when_its_number_is_wanted_again() {
    let pm = Manager::new("finished");
    // The kernel may close the channel long before it reports the end.
    let text = "trap 'eval \"exec $NODE_CHANNEL_FD>&-\"; sleep 1; exit 7' USR1\nwhile :; do sleep 0.05; done\n";
    let keys = |codes: &[i32]| json!({"listen_timeout": 300, "stop_exit_codes": codes});
    pm.done(&["start", &ready_app(&pm, text, keys(&[7]))]);
    let is_gone = || (pm.list()[1]["pm2_env"]["status"] == "stopped").then_some(());
    let is_there = || Some(web_pids(&pm)).filter(|pids| pids.len() == 2 && pids[1] > 0).map(|pids| pids[1]);
    let ask_to_end = || {
        let pid = web_pids(&pm)[1];
        let status = || fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let caught =
            || status().lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigCgt:")?.trim(), 16).ok());
        let has_trap = || caught().filter(|caught| caught & 1 << (Signal::SIGUSR1 as i32 - 1) != 0);
        assert!(poll_until(FOREVER, has_trap).is_some(), "{}", status());
        kill(Pid::from_raw(pid), Signal::SIGUSR1).unwrap();
        pid
    };
    // One that ends while its successor is there already leaves that one alone.
    let old = ask_to_end();
    pm.await_log("web-cluster-0.log", "\"event\":\"disconnect\"");
    pm.done(&["reload", "web"]);
    await_end(old);
    let next = poll_until(FOREVER, is_there).unwrap();
    kill_9(next);
    let is_replaced = || is_there().filter(|&pid| pid != next);
    assert!(poll_until(FOREVER, is_replaced).is_some(), "{:?}", pm.list());

    let finish = || {
        ask_to_end();
        assert!(poll_until(FOREVER, is_gone).is_some(), "{:?}", pm.list());
    };
    finish();
    pm.done(&["scale", "web", "1"]);
    pm.done(&["scale", "web", "2"]);
    assert!(poll_until(FOREVER, is_there).is_some(), "it is scaled: {:?}", pm.list());
    finish();
    pm.done(&["reload", &ready_app(&pm, text, keys(&[]))]);
    assert!(poll_until(FOREVER, is_there).is_some(), "it is reloaded: {:?}", pm.list());
}

#[test]
fn a_worker_without_a_process_is_not_online() {
    let pm = Manager::new("vacant");
    let text = "[ $NODE_APP_INSTANCE = 1 ] && [ -e broken ] && exit 3\nexec sleep 600\n";
    let keys = |delay| json!({"listen_timeout": 300, "max_restarts": 1, "restart_delay": delay});
    let statuses =
        |pm: &Manager| -> Vec<Value> { pm.list().iter().map(|entry| entry["pm2_env"]["status"].clone()).collect() };
    pm.done(&["start", &ready_app(&pm, text, keys(600_000))]);
    kill_9(web_pids(&pm)[1]);
    assert!(poll_until(FOREVER, || (statuses(&pm) == ["online", "waiting restart"]).then_some(())).is_some());

    pm.done(&["restart", &ready_app(&pm, text, keys(0))]);
    pm.script("broken", "");
    kill_9(web_pids(&pm)[1]);
    let is_given_up = || (statuses(&pm) == ["online", "errored"]).then_some(());
    assert!(poll_until(FOREVER, is_given_up).is_some(), "{:?}", pm.list());
    let reason = pm.list()[1]["pm2_env"]["reason"].clone();
    // Its channel may close before the kernel says how it has ended.
    assert!(reason.as_str().unwrap().starts_with("its cluster has given it up: worker 1 "), "{reason}");
    // The next daemon knows it, too.
    pm.kill_daemon();
    assert_eq!((statuses(&pm), &pm.list()[1]["pm2_env"]["reason"]), (vec!["online".into(), "errored".into()], &reason));
}

/// prctl(2), PR_SET_NAME: the name may be any bytes, and stands in /proc/PID/stat.
#[test]
fn a_process_that_has_given_itself_an_odd_name_is_adopted() {
    let pm = Manager::new("odd-name");
    let name = r"open('/proc/self/comm', 'wb').write(b'\xff) Z 1 (')";
    let script = pm.script("named.py", &format!("import time\n{name}\nprint('ready', flush=True)\ntime.sleep(600)\n"));
    pm.done(&["start", &script, "--interpreter", "python3"]);
    pm.await_log("named-out-0.log", "ready");
    let pid = pm.pid("named");
    pm.kill_daemon();
    assert_eq!(pm.pid("named"), pid);
}

/// A script that deploys, say. The daemon that it starts is not a part of it.
#[test]
fn an_application_may_start_the_daemon_and_end_without_it() {
    let pm = Manager::new("client-app");
    let pm_program = env!("CARGO_BIN_EXE_pm");
    let text = format!("echo ready\nread line < fifo\n{pm_program} ping\necho asked\nexec sleep 600\n");
    let script = pm.script("client.sh", &text);
    nix::unistd::mkfifo(&pm.home().with_file_name("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    pm.done(&["start", &script]);
    pm.await_log("client-out-0.log", "ready");
    pm.kill_daemon();
    fs::write(pm.home().with_file_name("fifo"), "go\n").unwrap();
    pm.await_log("client-out-0.log", "asked");
    let daemon = pm.daemon();
    pm.done(&["stop", "client"]);
    assert_eq!((pm.daemon(), is_alive(daemon)), (daemon, true));
}

#[test]
fn a_daemon_that_cannot_start_tells_the_client_why() {
    let pm = Manager::new("no-socket");
    fs::create_dir_all(pm.home().join("control.sock/not-a-socket")).unwrap();
    let said = pm.refused(&["list"]);
    assert!(said.contains("control.sock: ") && said.contains("in use"), "{said}");
}

/// A configuration of so many programs that sleep.
fn sleepers(manager: &Manager, number: usize) -> String {
    let app = |i: usize| json!({"name": format!("sleeper-{i}"), "script": "sleep", "args": "1000"});
    let apps: Vec<Value> = (0..number).map(app).collect();
    manager.script("sleepers.json", &json!({ "apps": apps }).to_string())
}

fn statuses(manager: &Manager) -> Vec<String> {
    manager.list().iter().map(|process| process["pm2_env"]["status"].as_str().unwrap().to_string()).collect()
}

#[test]
fn two_hundred_applications_are_started_restarted_and_adopted() {
    let manager = Manager::new("two-hundred");
    manager.done(&["start", &sleepers(&manager, 200)]);
    assert_eq!(statuses(&manager), ["online"; 200]);
    manager.done(&["restart", "all"]);
    let pids = |manager: &Manager| manager.list().iter().map(|process| process["pid"].as_i64()).collect::<Vec<_>>();
    let before = pids(&manager);
    manager.kill_daemon();
    assert_eq!(pids(&manager), before, "the next daemon has them all");
}

#[test]
fn applications_leave_the_daemon_descriptors_for_its_clients_and_for_a_restart() {
    let manager = Manager::new("few-descriptors");
    let file = sleepers(&manager, 60);
    let with_few = |args: &[&str]| {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n 256 && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_pm")]).args(args);
        command.env("PM_HOME", manager.home()).output().unwrap()
    };
    let said = String::from_utf8(with_few(&["start", &file]).stderr).unwrap();
    assert!(said.contains("the daemon may open 256 files") && said.contains("ulimit -Hn"), "{said}");
    let online = || statuses(&manager).iter().filter(|status| *status == "online").count();
    let started = online();
    assert!((20..60).contains(&started), "{started}");

    manager.done(&["restart", "sleeper-3"]);
    manager.kill_daemon();
    assert!(with_few(&["ping"]).status.success(), "a daemon that adopts as many as it may is ready");
    assert_eq!(online(), started);
    manager.done(&["restart", "sleeper-5"]);
}

#[test]
fn a_folder_on_a_disk_that_may_only_be_read_is_one_line_with_what_to_do() {
    let manager = Manager::new("read-only");
    fs::create_dir(manager.home()).unwrap();
    let script = "mount -t tmpfs -o ro none \"$PM_HOME\" && exec \"$0\" \"$@\"";
    let read_only = |program: &str, args: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, program]).args(args).env("PM_HOME", manager.home());
        command.output().unwrap()
    };
    if !read_only("true", &[]).status.success() {
        return inconclusive(Needs::Privilege("CAP_SYS_ADMIN"), "unshare --mount and mount are refused");
    }
    for args in [&["list"][..], &["start", "sleep", "--", "1000"]] {
        let output = read_only(env!("CARGO_BIN_EXE_pm"), args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
        assert!(said.contains("read-only file system; set PM_HOME"), "{said}");
    }
}
