//! Configurations as people write them for PM2, unmodified: `node` evaluates those in JavaScript. Without node these
//! tests are inconclusive.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use acceptlab::pm::config::evaluate::evaluate;
use acceptlab::pm::config::{self, AppConfig, Configuration, ExecMode, LogType, is_configuration};
use serde_json::{Map, Value, json};

use crate::inconclusive::{Needs, inconclusive};
use crate::pm::Manager;
use crate::support::TempFolder;

fn ecosystem(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/ecosystem").join(file)
}

fn has_node() -> bool {
    let found = Command::new("node").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    let has_node = found.is_ok_and(|status| status.success());
    if !has_node {
        inconclusive(Needs::Tool("node"), "it evaluates configurations in JavaScript");
    }
    has_node
}

fn read(file: &str, env_name: Option<&str>) -> Configuration {
    config::read(&ecosystem(file), env_name, &Map::new()).unwrap()
}

/// A folder with these files.
struct ConfigurationFolder(TempFolder);

impl ConfigurationFolder {
    fn with(name: &str, files: &[(&str, &str)]) -> ConfigurationFolder {
        let folder = TempFolder::new(name);
        files.iter().for_each(|(file, text)| fs::write(folder.file(file), text).unwrap());
        ConfigurationFolder(folder)
    }

    fn read(&self, file: &str) -> Result<Vec<AppConfig>, String> {
        self.read_with(file, Map::new()).map(|configuration| configuration.apps)
    }

    fn read_with(&self, file: &str, over: Map<String, Value>) -> Result<Configuration, String> {
        config::read(&self.0.path().join(file), None, &over).map_err(String::from)
    }
}

/// One application with these keys, in JSON; or the line that says what is wrong.
fn app(name: &str, keys: Value) -> Result<AppConfig, String> {
    let mut keys = keys;
    keys.as_object_mut().unwrap().entry("script").or_insert("app.js".into());
    let folder = ConfigurationFolder::with(name, &[("apps.json", &json!({"apps": [keys]}).to_string())]);
    let apps = folder.read("apps.json").map_err(|line| line.replace(&folder.0.path().display().to_string(), ""));
    apps.map(|mut apps| apps.remove(0))
}

fn variables(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[test]
fn the_seeds_file_is_read_word_for_word() {
    if !has_node() {
        return;
    }
    let folder = ecosystem("");
    let folder = folder.canonicalize().unwrap();
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let Configuration { apps, warnings } = read("seed.config.js", Some("development"));
    assert_eq!(warnings, Vec::<String>::new());
    let expected = AppConfig {
        name: "nodejs-column".into(),
        script: folder.join("app.js"),
        interpreter: Some("node".into()),
        cwd: folder.clone(),
        exec_mode: ExecMode::Cluster,
        instances: 2,
        env: variables(&[("NODE_ENV", "development")]),
        watch: vec![folder],
        log_date_format: Some("YYYY-MM-DD HH:mm Z".into()),
        error_file: Some(home.join("data/err.log")),
        out_file: Some(home.join("data/info.log")),
        max_restarts: 10,
        ..AppConfig::default()
    };
    assert_eq!(apps, [expected]);
    let production = &read("seed.config.js", Some("production")).apps[0];
    assert_eq!(production.env, variables(&[("NODE_ENV", "production")]));
    assert!(production.watch.is_empty());
    let without = &read("seed.config.js", None).apps[0];
    assert_eq!((&without.env, &without.watch), (&BTreeMap::new(), &Vec::new()));
    assert_eq!(read("seed.config.js", Some("staging")).warnings.len(), 1, "no application has that environment");
}

#[test]
fn applications_beside_a_deploy_section_are_read_and_the_section_is_named() {
    if !has_node() {
        return;
    }
    let Configuration { apps, warnings } = read("deploy.config.js", None);
    assert!(warnings.len() == 1 && warnings[0].contains("\"deploy\" is ignored"), "{warnings:?}");
    let [shop, mail] = &apps[..] else { panic!("{apps:?}") };
    let folder = ecosystem("").canonicalize().unwrap();
    assert_eq!((&shop.cwd, &shop.script), (&folder.join("shop"), &folder.join("shop/server.js")));
    assert_eq!((shop.exec_mode, shop.instances), (ExecMode::Cluster, acceptlab::cpu::allowed().len()));
    assert!(shop.wait_ready);
    assert_eq!((shop.listen_timeout, shop.kill_timeout), (Duration::from_secs(10), Duration::from_secs(5)));
    let features = ("FEATURES", r#"{"cart":["a","b"]}"#);
    let development = [("PORT", "3000"), ("NODE_ENV", "development"), ("DEBUG", "true"), ("EMPTY", ""), features];
    assert_eq!(shop.env, variables(&development));
    let production = [("PORT", "3000"), ("NODE_ENV", "production"), ("EMPTY", ""), features];
    assert_eq!(read("deploy.config.js", Some("production")).apps[0].env, variables(&production));
    assert_eq!(mail.interpreter.as_deref(), Some("/usr/bin/python3"));
    assert_eq!(mail.interpreter_args, ["-u", "-W", "ignore"]);
    assert_eq!(mail.args, ["--queue", "outgoing mail"]);
    assert_eq!(mail.max_memory_restart, Some(300 << 20));
    assert!(!mail.autorestart && mail.merge_logs && mail.exec_mode == ExecMode::Fork);
}

#[test]
fn a_list_that_is_computed_from_another_file_is_read_and_what_the_file_prints_spoils_nothing() {
    if !has_node() {
        return;
    }
    let Configuration { apps, warnings } = read("list.config.cjs", None);
    assert_eq!(warnings, Vec::<String>::new());
    let names: Vec<&str> = apps.iter().map(|app| app.name.as_str()).collect();
    assert_eq!(names, ["users", "orders"]);
    let (orders, folder) = (&apps[1], ecosystem("").canonicalize().unwrap());
    assert_eq!(orders.script, folder.join("services/orders.js"));
    assert_eq!(orders.out_file, Some(folder.join("logs/orders.out.log")));
    assert_eq!(orders.error_file, Some(folder.join("logs/orders.err.log")));
    assert_eq!(orders.env, variables(&[("PORT", "4001")]));
    assert_eq!((orders.max_restarts, orders.restart_delay), (5, Duration::from_millis(250)));
    assert_eq!(orders.exp_backoff_restart_delay, Duration::from_millis(100));
    assert_eq!(orders.ignore_watch, ["node_modules", "*.log"]);
}

#[test]
fn a_module_with_a_default_export_and_an_await_is_read() {
    if !has_node() {
        return;
    }
    let Configuration { apps, warnings } = read("module.config.mjs", None);
    assert_eq!(warnings, Vec::<String>::new());
    let folder = ecosystem("").canonicalize().unwrap();
    let expected = AppConfig {
        name: "pages".into(),
        namespace: "web".into(),
        script: "npm".into(),
        args: ["run", "start", "--", "--port=80"].map(String::from).to_vec(),
        cwd: folder.clone(),
        watch: vec![folder.join("src"), folder.join("public")],
        ignore_watch: vec!["public/uploads".into()],
        watch_delay: Duration::from_millis(500),
        cron_restart: Some("0 3 * * *".into()),
        stop_exit_codes: vec![0],
        log_date_format: Some("YYYY-MM-DDTHH:mm:ss".into()),
        ..AppConfig::default()
    };
    assert_eq!(apps, [expected]);
}

#[test]
fn one_application_alone_is_read_and_its_unknown_keys_are_named_and_survive() {
    if !has_node() {
        return;
    }
    let Configuration { apps, warnings } = read("one.config.js", None);
    let [app] = &apps[..] else { panic!("{apps:?}") };
    assert_eq!((app.name.as_str(), app.log_type, app.min_uptime), ("app", LogType::Json, Duration::from_secs(10)));
    assert_eq!(app.error_file, Some("/dev/null".into()));
    assert_eq!(Value::from(app.unknown.clone()), json!({"vizion": false, "source_map_support": true}));
    let named = |what: &str| warnings.iter().filter(|warning| warning.contains(what)).count();
    assert_eq!(["filter", "\"vizion\"", "\"source_map_support\""].map(named), [1, 1, 1], "{warnings:?}");
    assert_eq!(warnings.len(), 3, "{warnings:?}");
}

#[test]
fn a_file_that_cannot_be_evaluated_leads_to_one_line_with_its_line() {
    if !has_node() {
        return;
    }
    let bad = [
        ("syntax.config.js", "module.exports = {\n  apps: [\n    { script: 'a' 'b' },\n  ],\n};\n", ":3: SyntaxError"),
        ("syntax.config.mjs", "export default {\n  apps: [ { script: 'a' 'b' } ],\n};\n", ":2: SyntaxError"),
        ("module.config.js", "\n\nexport default {\n  apps: [ { script: 'a' 'b' } ],\n};\n", ":4: SyntaxError"),
        ("throw.config.js", "\nfunction f() {\n  throw new TypeError('no\\nway');\n}\nf();\n", ":3: TypeError: no"),
        ("name.config.js", "\nmodule.exports = { apps: [ nowhere ] };\n", ":2: ReferenceError: nowhere"),
        ("missing.config.js", "\n\nrequire('./nowhere');\n", ":3: Error: Cannot find module './nowhere'"),
        ("text.config.js", "throw 'a text';\n", ": it throws \"a text\""),
        ("nothing.config.js", "throw undefined;\n", ": it throws undefined"),
        (
            "cycle.config.js",
            "const app = { script: 'a' };\napp.self = app;\nmodule.exports = app;\n",
            "self contains itself",
        ),
        ("promise.config.js", "module.exports = { apps: [Promise.resolve({})] };\n", "apps[0] is a Promise"),
        ("rejected.config.js", "module.exports = Promise.reject(new Error('late'));\n", ":1: Error: late"),
        ("function.config.js", "module.exports = () => ({ apps: [] });\n", "exports a function"),
        ("exit.config.js", "process.exit(3);\n", "node ended before the file was evaluated (exit status: 3)"),
        ("empty.config.js", "", "neither \"apps\" nor \"script\""),
        ("number.config.js", "module.exports = 7;\n", "neither an object with \"apps\" nor a list"),
    ];
    let files: Vec<(&str, &str)> = bad.iter().map(|&(file, text, _)| (file, text)).collect();
    let folder = ConfigurationFolder::with("bad", &files);
    for (file, _, expected) in bad {
        let line = folder.read(file).unwrap_err();
        assert!(line.contains(expected) && line.contains(file) && !line.contains('\n'), "{file}: {line}");
    }
}

#[test]
fn an_error_in_a_file_that_the_configuration_loads_names_that_file() {
    if !has_node() {
        return;
    }
    let files =
        [("ecosystem.config.js", "module.exports = require('./apps');\n"), ("apps.js", "\n\nmodule.exports = [;\n")];
    let folder = ConfigurationFolder::with("loads", &files);
    let line = folder.read("ecosystem.config.js").unwrap_err();
    assert!(line.starts_with(&format!("{}/apps.js:3: SyntaxError", folder.0.path().display())), "{line}");
}

#[test]
fn a_file_that_never_ends_is_given_up_and_what_it_has_started_ends_too() {
    if !has_node() {
        return;
    }
    let starts = "require('child_process').spawn('sleep', ['1000']);\nfor (;;) {}\n";
    let folder = ConfigurationFolder::with(
        "endless",
        &[("a.config.js", starts), ("b.config.mjs", "await new Promise((done) => setInterval(() => {}, 1000));\n")],
    );
    for file in ["a.config.js", "b.config.mjs"] {
        let begun = Instant::now();
        let line = evaluate("node", &folder.0.path().join(file), Duration::from_millis(700)).unwrap_err().to_string();
        assert!(line.contains(file) && line.contains("has not evaluated it within 700ms"), "{line}");
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    }
}

#[test]
fn a_file_that_prints_a_lot_and_keeps_a_timer_is_evaluated() {
    if !has_node() {
        return;
    }
    let text = "for (let i = 0; i < 3; i++) console.log('printed by a configuration: {}');\nsetInterval(() => {}, 1000);\n\
                exports.apps = [{ script: 'a', big: 'y'.repeat(300000), at: new Date(0), n: 1n, re: /x/ }];\n";
    let folder = ConfigurationFolder::with("prints", &[("a.config.js", text)]);
    let Configuration { apps, warnings } = folder.read_with("a.config.js", Map::new()).unwrap();
    assert_eq!(apps[0].unknown["big"].as_str().unwrap().len(), 300_000);
    assert_eq!(apps[0].unknown["at"], "1970-01-01T00:00:00.000Z");
    assert!(warnings.iter().any(|warning| warning.contains("apps[0].re is a regular expression")), "{warnings:?}");
}

#[test]
fn without_node_only_javascript_is_refused() {
    let folder = ConfigurationFolder::with(
        "no-node",
        &[("a.config.js", "module.exports = [];\n"), ("a.yaml", "script: app.js\n")],
    );
    let line =
        evaluate("no-such-node", &folder.0.path().join("a.config.js"), Duration::from_secs(9)).unwrap_err().to_string();
    assert!(line.contains("there is no no-such-node") && line.contains("JSON, YAML or TOML does not"), "{line}");
    assert_eq!(folder.read("a.yaml").unwrap()[0].name, "app");
}

#[test]
fn json_yaml_and_toml_say_the_same() {
    let files = [
        (
            "a.json",
            "{ // with a comment\n \"apps\": [{\"name\": \"a\", \"script\": \"a.sh\", \"args\": [\"x\", 1], \"env\": {\"A\": 1},}]\n}\n",
        ),
        ("a.yaml", "apps:\n  - name: a\n    script: a.sh\n    args: x 1\n    env:\n      A: 1\n"),
        ("a.toml", "[[apps]]\nname = 'a'\nscript = 'a.sh'\nargs = ['x', '1']\nenv.A = 1\n"),
    ];
    let folder = ConfigurationFolder::with("formats", &files);
    let expected = AppConfig {
        name: "a".into(),
        script: folder.0.path().join("a.sh"),
        interpreter: Some("bash".into()),
        args: vec!["x".into(), "1".into()],
        cwd: folder.0.path().to_owned(),
        env: variables(&[("A", "1")]),
        ..AppConfig::default()
    };
    for (file, _) in files {
        assert_eq!(folder.read(file).unwrap(), std::slice::from_ref(&expected), "{file}");
    }
}

#[test]
fn a_package_json_has_its_applications_under_pm2_or_apps_or_is_one() {
    let shapes = [
        (json!({"name": "x", "version": "1", "pm2": [{"script": "a.js"}]}), "a"),
        (json!({"name": "x", "pm2": {"apps": [{"script": "b.js"}]}}), "b"),
        (json!({"name": "x", "apps": {"script": "c.js"}}), "c"),
        (json!({"name": "@me/x", "main": "lib/d.js"}), "x"),
        (json!({"version": "1"}), "index"),
    ];
    for (i, (package, name)) in shapes.into_iter().enumerate() {
        let folder = ConfigurationFolder::with(&format!("package-{i}"), &[("package.json", &package.to_string())]);
        let Configuration { apps, warnings } = folder.read_with("package.json", Map::new()).unwrap();
        assert_eq!((apps[0].name.as_str(), apps.len(), warnings.len()), (name, 1, 0), "{package}: {warnings:?}");
    }
}

#[test]
fn what_is_wrong_is_named_with_its_application_and_key() {
    for (i, (keys, expected)) in [
        (json!({"name": "a/b"}), "application \"a/b\": name: \"a/b\" cannot be a name"),
        (json!({"name": "a..b"}), "no .."),
        (json!({"name": ".."}), "name: \"..\""),
        (json!({"name": ""}), "it is empty"),
        (json!({"name": "all"}), "every application"),
        (json!({"name": "-x"}), "an option"),
        (json!({"name": "a\nb"}), "control character"),
        (json!({"name": "x".repeat(201)}), "longer than 200"),
        (json!({"script": ""}), "application 1: there is no \"script\""),
        (json!({"script": ["a"]}), "script: [\"a\"] is not a text"),
        (json!({"max_restarts": "ten"}), "application 1: max_restarts: \"ten\" is not a whole number"),
        (json!({"instances": "many"}), "instances: \"many\" is not"),
        (json!({"exec_mode": "thread"}), "exec_mode: unknown variant `thread`, expected `fork` or `cluster`"),
        (json!({"max_memory_restart": "lots"}), "max_memory_restart: \"lots\" is not a size"),
        (json!({"min_uptime": "soon"}), "min_uptime: \"soon\" is not a duration"),
        (json!({"cron_restart": "often"}), "cron_restart: \"often\" is not a pattern"),
        (json!({"args": "'open"}), "args: \"'open\" is not closed"),
        (json!({"env": "A=1"}), "env is not an object"),
        (json!({"env": {"A=B": 1}}), "env: \"A=B\" cannot be the name of a variable"),
        (json!({"env": {"A": "\u{0}"}}), "env.A: "),
        (json!({"out": "a", "out_file": "b"}), "\"out_file\" and \"out\" are two names of one key"),
        (json!({"autorestart": "maybe"}), "autorestart: \"maybe\" is not true or false"),
        (json!({"stop_exit_codes": [256]}), "stop_exit_codes: 256 is not an exit status"),
        (json!({"log_type": "xml"}), "log_type: unknown variant `xml`, expected `text` or `json`"),
    ]
    .into_iter()
    .enumerate()
    {
        let line = app(&format!("wrong-{i}"), keys.clone()).unwrap_err();
        assert!(line.contains("apps.json: application") && line.contains(expected), "{keys}: {line}");
        assert!(!line.contains('\n'), "{line}");
    }
}

#[test]
fn two_applications_of_one_name_are_refused() {
    let folder = ConfigurationFolder::with("twice", &[("a.json", r#"[{"script": "a.js"}, {"script": "lib/a.py"}]"#)]);
    let line = folder.read("a.json").unwrap_err();
    assert!(line.contains("two applications have the name \"a\""), "{line}");
}

#[test]
fn files_without_applications_are_refused() {
    for (file, text, expected) in [
        ("a.json", "{}", "neither \"apps\" nor \"script\""),
        ("b.json", "[]", "no application"),
        ("c.json", "{\"apps\": 1}", "neither a list nor an object"),
        ("d.json", "{\"apps\": [1]}", "application 1 is not an object"),
        ("e.json", "", "e.json:1: "),
        ("f.txt", "script: a", "not a configuration by its name"),
    ] {
        let folder = ConfigurationFolder::with(&format!("none-{file}"), &[(file, text)]);
        let line = folder.read(file).unwrap_err();
        assert!(line.contains(expected), "{file}: {line}");
    }
    let line = config::read(Path::new("/nowhere/a.json"), None, &Map::new()).unwrap_err().to_string();
    assert_eq!(line, "/nowhere/a.json: no such file or directory");
}

#[test]
fn a_script_may_be_a_file_a_program_or_a_command_line() {
    let of = |script: &str| {
        let app = app("script", json!({"script": script, "args": "z"})).unwrap();
        let script = app.script.file_name().unwrap().to_string_lossy().into_owned();
        let is_file = app.script.is_absolute();
        (app.name, script, is_file, app.args.join(","), app.interpreter.unwrap_or_default())
    };
    let is = |name: &str, script: &str, is_file, args: &str, interpreter: &str| {
        (name.to_owned(), script.to_owned(), is_file, args.to_owned(), interpreter.to_owned())
    };
    assert_eq!(of("lib/app.py"), is("app", "app.py", true, "z", "python3"));
    assert_eq!(of("./program"), is("program", "program", true, "z", ""));
    assert_eq!(of("sleep"), is("sleep", "sleep", false, "z", ""));
    assert_eq!(of("npm run 'my start'"), is("npm", "npm", false, "run,my start,z", ""));
    assert_eq!(of("cat x | sort"), is("cat", "sh", false, "-c,cat x | sort,sh,z", ""));
}

#[test]
fn keys_from_the_command_line_count_more_than_the_files_whatever_name_the_file_uses() {
    let text = r#"[{"script": "a.js", "out": "a.log", "instances": 2, "exec_mode": "fork", "max_restarts": 3}]"#;
    let folder = ConfigurationFolder::with("over", &[("a.json", text)]);
    let over = json!({"out_file": "/tmp/b.log", "instances": "4", "watch": true});
    let configuration = folder.read_with("a.json", over.as_object().unwrap().clone()).unwrap();
    let app = &configuration.apps[0];
    assert_eq!((app.out_file.as_deref(), app.instances), (Some(Path::new("/tmp/b.log")), 4));
    assert_eq!((app.max_restarts, &app.watch), (3, &vec![folder.0.path().to_owned()]));
    assert_eq!((configuration.warnings.len(), app.unknown.len()), (0, 0));
}

#[test]
fn instances_of_a_node_program_share_its_ports_unless_the_file_says_fork() {
    let mode = |keys| app("mode", keys).unwrap().exec_mode;
    assert_eq!(mode(json!({"instances": 2})), ExecMode::Cluster);
    assert_eq!(mode(json!({"instances": 2, "exec_mode": "fork"})), ExecMode::Fork);
    assert_eq!(mode(json!({"instances": 2, "script": "a.py"})), ExecMode::Fork);
    assert_eq!(mode(json!({})), ExecMode::Fork);
}

#[test]
fn an_application_is_the_same_after_it_was_written_and_read() {
    let app = app(
        "again",
        json!({"env": {"A": 1}, "max_memory_restart": "1G", "min_uptime": "90s", "pmx": [1], "watch": ["x"], "cron": "@daily"}),
    );
    let app = app.unwrap();
    let again: AppConfig = serde_json::from_str(&serde_json::to_string(&app).unwrap()).unwrap();
    assert_eq!(again, app);
    let older: AppConfig = serde_json::from_str(r#"{"name": "a", "script": "/a"}"#).unwrap();
    assert_eq!(older.max_restarts, 16, "what an older file does not have is as by default");
}

#[test]
fn a_configuration_is_told_from_a_program_by_its_name() {
    let yes = ["ecosystem.config.js", "x/pm2.config.cjs", "a.config.mjs", "a.json", "a.yaml", "a.yml", "a.toml"];
    assert!(yes.iter().all(|name| is_configuration(Path::new(name))));
    assert!(["app.js", "config.js", "a.py", "json", "a"].iter().all(|name| !is_configuration(Path::new(name))));
}

/// The real program, and one line for each.
#[test]
fn a_configuration_that_cannot_be_one_is_refused_in_one_line_and_nothing_starts() {
    let pm = Manager::new("bad-config");
    let many: Vec<Value> = (0..10_000).map(|i| json!({"name": format!("app-{i}"), "script": "sleep"})).collect();
    let many = json!({"apps": many}).to_string();
    let endless = "for (;;) {}\n";
    let mut bad = vec![
        ("syntax.json", "{\n  \"apps\": [\n    {\"script\": }\n  ]\n}\n", "syntax.json:3: "),
        ("syntax.yaml", "apps:\n  - script: a\n   name: [\n", "syntax.yaml:3: "),
        ("syntax.toml", "[[apps]]\nscript = = 1\n", "syntax.toml:2: "),
        ("list.json", "[]", "it has no application"),
        ("empty.json", "{\"apps\": []}", "it has no application"),
        ("nothing.json", "{}", "neither \"apps\" nor \"script\""),
        ("number.json", "7", "neither an object with \"apps\" nor a list"),
        (
            "type.json",
            "[{\"name\": \"a\", \"script\": \"sleep\", \"max_restarts\": true}]",
            "application \"a\": max_restarts: true",
        ),
        ("slash.json", "[{\"name\": \"a/b\", \"script\": \"sleep\"}]", "no / and no .."),
        ("dots.yaml", "- name: '..'\n  script: sleep\n", "the name of a folder"),
        ("many.json", &many, "10000 processes are more than"),
    ];
    if has_node() {
        bad.extend([
            (
                "syntax.config.js",
                "module.exports = {\n  apps: [ { script: 'a' 'b' } ],\n};\n",
                "syntax.config.js:2: SyntaxError",
            ),
            (
                "cycle.config.js",
                "const app = { script: 'a' };\napp.self = app;\nmodule.exports = app;\n",
                "self contains itself",
            ),
            ("throw.config.js", "\nthrow new Error('no way');\n", "throw.config.js:2: Error: no way"),
            ("endless.config.js", endless, "has not evaluated it within 10s"),
        ]);
    }
    for (file, text, expected) in bad {
        let said = pm.refused(&["start", &pm.script(file, text)]);
        assert!(said.contains(file) && said.contains(expected), "{file}: {said}");
    }
    let folder = pm.home().with_file_name("folder.json");
    fs::create_dir(&folder).unwrap();
    let fifo = pm.home().with_file_name("fifo.yaml");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [folder, fifo] {
        assert!(pm.refused(&["start", path.to_str().unwrap()]).contains("it is not a file"));
    }
    let large = pm.script("large.json", "{");
    fs::File::options().write(true).open(&large).unwrap().set_len(100 << 20).unwrap();
    assert!(pm.refused(&["start", &large]).contains("more than 16 MiB"));
    assert_eq!(pm.list(), [] as [Value; 0]);
}

#[test]
fn without_node_in_path_programs_and_json_go_on_and_javascript_says_what_is_missing() {
    let pm = Manager::new("no-node");
    let javascript = pm.script("a.config.js", "module.exports = [];\n");
    let json = pm.script("a.json", r#"[{"name": "nap", "script": "/bin/sleep", "args": "1000"}]"#);
    let run = |file: &str| pm.command(&["start", file]).env("PATH", "/nowhere").output().unwrap();
    let (refused, started) = (run(&javascript), run(&json));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(
        refused.status.code() == Some(1) && said.contains("there is no node") && said.lines().count() == 1,
        "{said}"
    );
    assert!(started.status.success(), "{started:?}");
    assert_eq!(pm.process("nap")["pm2_env"]["status"], "online");
}

#[test]
fn variables_in_yaml_reach_the_process_as_they_are_written_and_a_name_may_be_a_number() {
    let pm = Manager::new("yaml-text");
    let script = pm.script("say.sh", "echo $A $B $C $D $E; exec sleep 1000\n");
    let text = format!(
        "apps:\n  - name: 42\n    script: {script}\n    instances: 1\n    autorestart: true\n    max_restarts: 3\n    env:\n      \
         A: 012\n      B: no\n      C: 1.10\n      D: on\n      E: 0x1F\n"
    );
    pm.done(&["start", &pm.script("apps.yaml", &text)]);
    pm.await_log("42-out-0.log", "012 no 1.10 on 0x1F\n");
}

/// A program that reads the list as one written for PM2 does: which keys there are, and what their types are.
#[test]
fn the_list_is_read_by_a_program_that_was_written_for_pm2() {
    if !has_node() {
        return;
    }
    let pm = Manager::new("jlist-reader");
    let reader = pm.script(
        "reader.js",
        r#"
        const number = (value) => { if (!Number.isInteger(value)) throw new Error(`${value} is not a whole number`); return value; };
        const text = (value) => { if (typeof value !== 'string') throw new Error(`${value} is not a text`); return value; };
        const list = JSON.parse(require('fs').readFileSync(0, 'utf8'));
        for (const { pid, name, pm_id, monit, pm2_env: env } of list) {
          [pid, pm_id, monit.memory, env.pm_uptime, env.created_at, env.restart_time, env.unstable_restarts,
           env.instances, env.NODE_APP_INSTANCE].forEach(number);
          if (typeof monit.cpu !== 'number') throw new Error('cpu');
          [name, env.pm_exec_path, env.pm_cwd, env.pm_out_log_path, env.pm_err_log_path, env.namespace].forEach(text);
          if (!['fork_mode', 'cluster_mode'].includes(env.exec_mode)) throw new Error(env.exec_mode);
          if (!['online', 'stopping', 'stopped', 'launching', 'errored', 'waiting restart'].includes(env.status)) throw new Error(env.status);
          if (env.status === 'online' && !(Date.now() - env.pm_uptime < 3600e3 && monit.memory > 0)) throw new Error('up');
          console.log(`${pm_id} ${name} ${env.status} ${env.restart_time} ${Array.isArray(env.args)}`);
        }
        "#,
    );
    pm.done(&["start", "sleep", "-i", "2", "--name", "two", "--", "1000"]);
    pm.done(&["start", "sleep", "--name", "one", "--", "1000"]);
    pm.done(&["restart", "one"]);
    pm.done(&["stop", "1"]);
    let mut program = Command::new("node").arg(&reader).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut program.stdin.take().unwrap(), pm.done(&["jlist"]).as_bytes()).unwrap();
    let output = program.wait_with_output().unwrap();
    let read = String::from_utf8(output.stdout).unwrap();
    assert_eq!(read, "0 two online 0 true\n1 two stopped 0 true\n2 one online 1 true\n");
}
