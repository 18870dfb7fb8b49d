//! From a matrix to its cases: every combination of axes, server and client, with the command lines written out.
//!
//! A command line may hold `{axis}`, `{axis+64}`, `{axis*8}`, `{duration}` and `{warmup}`. Words are split at blanks;
//! there is no quoting, so that a command line in a table can be pasted into a shell.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use nix::sys::signal::Signal;
use toml::Spanned;

use crate::lab::plan::command::{ClientCommand, FOREIGN_CLIENTS, ServerCommand};
use crate::lab::plan::events::{self, Events};
use crate::lab::plan::law::Law;
use crate::lab::plan::matrix::{
    AxisValue, ClientSpec, Matrix, MatrixError, Overrides, PictureKind, PictureSpec, ServerSpec, TableKind, TableSpec,
};
use crate::units::parse_duration;

/// The columns that need the kernel's tracepoints. Only a table that asks for one pays for them: every filter is tried
/// at every wake-up and every switch of the whole machine.
pub const TRACED_COLUMNS: [&str; 2] = ["kernel_wakeups", "kernel_switches"];

/// The columns that compare the server's first process at the end of the measurement with the same at its beginning.
const GROWTH_COLUMNS: [&str; 3] = ["growth_rss", "growth_fds", "zombies"];

/// What starting, stopping and collecting take beside the client's run; used to estimate times only.
const OVERHEAD: Duration = Duration::from_millis(150);
/// The same for a program that Node runs.
const NODE_OVERHEAD: Duration = Duration::from_millis(500);
/// The same for a server of another project.
const CONTENDER_OVERHEAD: Duration = Duration::from_millis(1200);

/// One line of a table, to be run `repeats` times.
#[derive(Debug, Clone)]
pub struct Case {
    pub experiment: String,
    /// As the matrix writes them.
    pub table: TableSpec,
    pub server_spec: ServerSpec,
    /// Position within the experiment: the order of the rows in its tables.
    pub index: usize,
    /// What distinguishes it: the axes, then `server`, then `client`. Baselines are found by these.
    pub coordinates: Vec<(String, String)>,
    /// The index of the case it is compared with, which is its own for a baseline.
    pub baseline: Option<usize>,
    /// The server's command line as written, placeholders filled in: its name in the table.
    pub label: String,
    /// Complete command lines, except for the addresses, which only the run knows.
    pub server: ServerCommand,
    pub client: ClientCommand,
    /// What is done to the server.
    pub events: Option<Events>,
    /// The signal that stands for `hup` in them.
    pub reload: Signal,
    /// Kernel settings: name, value.
    pub sysctl: Vec<(String, String)>,
    /// The kinds of the pictures that show it, which decide what its rows keep.
    pub drawn_as: Vec<PictureKind>,
    pub repeats: usize,
    /// How long one run should take.
    pub estimate: Duration,
}

impl Case {
    pub fn needs_tracepoints(&self) -> bool {
        has_column_of(&self.table, &TRACED_COLUMNS)
    }

    pub fn needs_growth(&self) -> bool {
        has_column_of(&self.table, &GROWTH_COLUMNS)
    }

    /// The same case with a client that warms up for so long.
    pub fn with_warmup(&self, warmup: Duration) -> Case {
        let client = self.client.with_warmup(warmup);
        Case { estimate: estimate(&self.server_spec, &self.server, &client), client, ..self.clone() }
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{} {}: {} < {}", self.experiment, self.table.id, self.server.text(), self.client.text())
    }
}

/// All cases of an experiment, or the first thing in its matrix that makes no sense.
pub fn expand(experiment: &str, matrix: &Matrix, quick: bool) -> Result<Vec<Case>, MatrixError> {
    let mut cases: Vec<Case> = Vec::new();
    for (i, table) in matrix.tables.iter().enumerate() {
        if matrix.tables[..i].iter().any(|other| other.id == table.id) {
            return Err(MatrixError::anywhere(format!("two tables have the id {:?}; rename one", table.id)));
        }
        let settings = TableSettings::of(matrix, table, quick)?;
        if settings.repeats == 0 {
            continue;
        }
        let shows_it = |picture: &&PictureSpec| picture.table.get_ref().texts().contains(&table.id);
        let drawn_as: Vec<PictureKind> = matrix.pictures.iter().filter(shows_it).map(|picture| picture.kind).collect();
        let first = cases.len();
        for combination in combinations(&settings.axes) {
            for server in &table.server {
                for client in table.load.get_ref().all() {
                    let mut case = one(table, &settings, &combination, server, client)?;
                    if cases[first..].iter().any(|other| other.coordinates == case.coordinates) {
                        let what = format!("two lines are called {:?}; give a client a name", case.coordinates);
                        return Err(MatrixError::at(table.load.span(), what));
                    }
                    case.experiment = experiment.to_string();
                    case.index = cases.len();
                    case.drawn_as = drawn_as.clone();
                    cases.push(case);
                }
            }
        }
        check_pipelining(table, &cases[first..])?;
        check_baseline(table, &cases)?;
        compare(table, &mut cases[first..]);
    }
    Ok(cases)
}

/// What holds for a table after `--quick` and the defaults at the top have been applied.
struct TableSettings {
    repeats: usize,
    axes: BTreeMap<String, Vec<String>>,
    duration: String,
    warmup: String,
}

impl TableSettings {
    fn of(matrix: &Matrix, table: &TableSpec, quick: bool) -> Result<TableSettings, MatrixError> {
        check_axes(matrix, table)?;
        // The table's own word counts before the matrix's.
        let overrides: &[&Overrides] = if quick { &[&table.quick, &matrix.quick] } else { &[] };
        let overrides = || overrides.iter();
        let duration = overrides().find_map(|set| set.duration.clone()).or(table.duration.clone());
        let warmup = overrides().find_map(|set| set.warmup.clone()).or(table.warmup.clone());
        let settings = TableSettings {
            repeats: overrides().find_map(|set| set.repeats).or(table.repeats).unwrap_or(matrix.repeats),
            axes: table.axes.iter().map(|(name, values)| axis(name, values, overrides())).collect(),
            duration: duration.unwrap_or(matrix.duration.clone()),
            warmup: warmup.unwrap_or(matrix.warmup.clone()),
        };
        if settings.repeats == 0 && !quick {
            return Err(MatrixError::anywhere(format!("table {:?}: repeats = 0 measures nothing", table.id)));
        }
        for value in [&settings.duration, &settings.warmup] {
            parse_duration(value).map_err(MatrixError::anywhere)?;
        }
        Ok(settings)
    }
}

/// An axis with its values as text, those of the first override that names it.
fn axis<'a>(
    name: &str,
    values: &'a [AxisValue],
    mut overrides: impl Iterator<Item = &'a &'a Overrides>,
) -> (String, Vec<String>) {
    let values = overrides.find_map(|set| set.axes.get(name)).map_or(values, |values| values);
    (name.to_string(), values.iter().map(AxisValue::to_string).collect())
}

/// Every combination of the axes; the first axis varies slowest.
fn combinations(axes: &BTreeMap<String, Vec<String>>) -> Vec<Vec<(String, String)>> {
    axes.iter().fold(vec![Vec::new()], |so_far, (name, values)| {
        let extend = |prefix: &Vec<(String, String)>, value: &String| {
            let mut longer = prefix.clone();
            longer.push((name.clone(), value.clone()));
            longer
        };
        so_far.iter().flat_map(|prefix| values.iter().map(move |value| extend(prefix, value))).collect()
    })
}

/// One server under one client for one combination. Its place among the cases is set by the caller.
fn one(
    table: &TableSpec,
    settings: &TableSettings,
    combination: &[(String, String)],
    server: &ServerSpec,
    client: &ClientSpec,
) -> Result<Case, MatrixError> {
    let mut values: BTreeMap<String, String> = combination.iter().cloned().collect();
    values.insert("duration".to_string(), settings.duration.clone());
    values.insert("warmup".to_string(), settings.warmup.clone());
    let fill = |text: &Spanned<String>| fill(text.get_ref(), &values, text.span());
    let label = fill(&server.run)?;
    let flags = table.server_flags.as_ref().map(fill).transpose()?.map_or(String::new(), |flags| format!(" {flags}"));
    if let Some(law) = &server.law {
        Law::parse(law.get_ref()).map_err(|what| MatrixError::at(law.span(), what))?;
    }
    let reload = server.reload_signal()?;
    let name = client.name();
    let mut client = ClientCommand::from(self::fill(client.run(), &values, table.load.span())?);
    let program = client.program().to_string();
    let is_loadgen = program == "loadgen";
    let (fits, remedy) = match table.kind {
        TableKind::Orders => (client.runs().is_some(), "`kind = \"orders\"` needs `load = \"runs N\"`".to_string()),
        TableKind::Trials => (program == "trial", "`kind = \"trials\"` needs `load = \"trial NAME\"`".to_string()),
        TableKind::Summary | TableKind::Trace => {
            let others = FOREIGN_CLIENTS.join(", ");
            let remedy = format!("the lab cannot read what {program:?} prints; use loadgen or one of {others}");
            (is_loadgen || FOREIGN_CLIENTS.contains(&&*program), remedy)
        }
    };
    if !fits {
        return Err(MatrixError::at(table.load.span(), remedy));
    }
    if table.kind == TableKind::Trials {
        client = format!("{} --manager {label}", client.text()).into();
    }
    let parse =
        |written: &Spanned<String>| events::parse(fill(written)?).map_err(|what| MatrixError::at(written.span(), what));
    let events = table.events.as_ref().map(parse).transpose()?;
    let setting = |(name, value): (&String, &Spanned<String>)| Ok((name.clone(), fill(value)?));
    let needs_phases = events.is_some() || table.timeline || has_column_of(table, &GROWTH_COLUMNS);
    if !is_loadgen && needs_phases {
        let what = format!("{program} does not say when it measures; disturb, timeline and growth need loadgen");
        return Err(MatrixError::at(table.load.span(), what));
    }
    if server.contender && table.timeline {
        let what = "a contender has no scoreboard to take a timeline from".to_string();
        return Err(MatrixError::at(server.run.span(), what));
    }
    // Behind ` -- ` the flag is the started program's, like `server_flags`.
    let serves = matches!(table.kind, TableKind::Summary | TableKind::Trace);
    let listen = if serves { " --listen 127.0.0.1:0" } else { "" };
    let server_command = ServerCommand::from(format!("{label}{flags}{listen}"));
    let mut coordinates = combination.to_vec();
    coordinates.push(("server".to_string(), server.run.get_ref().clone()));
    coordinates.push(("client".to_string(), name.unwrap_or(&program).to_string()));
    Ok(Case {
        experiment: String::new(),
        table: table.clone(),
        server_spec: server.clone(),
        index: 0,
        coordinates,
        baseline: None,
        label,
        events,
        reload,
        drawn_as: Vec::new(),
        sysctl: table.sysctl.iter().map(setting).collect::<Result<_, _>>()?,
        repeats: settings.repeats,
        estimate: match table.kind {
            TableKind::Trials => parse_duration(&settings.duration).map_err(MatrixError::anywhere)?,
            _ => estimate(server, &server_command, &client),
        },
        server: server_command,
        client,
    })
}

/// How long a run should take. Where only a number of requests ends it, the work of each decides, or without work what
/// these programs do in a second.
fn estimate(spec: &ServerSpec, server: &ServerCommand, client: &ClientCommand) -> Duration {
    let is_node = server.text().split_whitespace().any(|word| word == "node");
    let overhead = match spec.contender {
        true => CONTENDER_OVERHEAD,
        false if is_node => NODE_OVERHEAD,
        false => OVERHEAD,
    };
    let work_s = server.work.as_ref().map_or(0.0, |work| work.mean_s());
    let at_a_time = client.connections.unwrap_or(1).max(1) as f64;
    let unpaced = client.unpaced_requests.unwrap_or(0.0) * work_s / at_a_time;
    let answering = client.unpaced_requests.map_or(0.0, |requests| requests / client.assumed_rate());
    overhead + client.length() + Duration::from_secs_f64(unpaced + answering)
}

fn has_column_of(table: &TableSpec, names: &[&str]) -> bool {
    table.columns.iter().any(|name| names.contains(&name.get_ref().as_str()))
}

/// Replaces `{name}`, `{name+K}` and `{name*K}`.
fn fill(template: &str, values: &BTreeMap<String, String>, span: Range<usize>) -> Result<String, MatrixError> {
    let mut filled = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((inside, after)) = after.split_once('}') else {
            let what = format!("{template:?} opens a placeholder and never closes it");
            return Err(MatrixError::at(span, what));
        };
        filled.push_str(before);
        filled.push_str(&value_of(inside, values).map_err(|what| MatrixError::at(span.clone(), what))?);
        rest = after;
    }
    Ok(filled + rest)
}

fn value_of(inside: &str, values: &BTreeMap<String, String>) -> Result<String, String> {
    let operator = inside.find(['+', '*']);
    let (name, operand) = operator.map_or((inside, ""), |place| (&inside[..place], &inside[place + 1..]));
    let Some(value) = values.get(name) else {
        let names: Vec<&str> = values.keys().map(String::as_str).collect();
        return Err(format!("{{{inside}}} is not a placeholder; there are {}", names.join(", ")));
    };
    if operator.is_none() {
        return Ok(value.clone());
    }
    match (value.parse::<i64>(), operand.parse::<i64>()) {
        (Ok(a), Ok(b)) if inside.contains('*') => Ok((a * b).to_string()),
        (Ok(a), Ok(b)) => Ok((a + b).to_string()),
        _ => Err(format!("{{{inside}}} needs an axis of whole numbers; write it like {{axis+64}} or {{axis*8}}")),
    }
}

/// An axis that is empty, or that stands in `quick` only, is a mistake.
fn check_axes(matrix: &Matrix, table: &TableSpec) -> Result<(), MatrixError> {
    if let Some((name, _)) = table.axes.iter().find(|(_, values)| values.is_empty()) {
        return Err(MatrixError::anywhere(format!("table {:?}: axis {name:?} has no value", table.id)));
    }
    let known_somewhere = |name: &String| matrix.tables.iter().any(|other| other.axes.contains_key(name));
    let stray = table.quick.axes.keys().find(|name| !table.axes.contains_key(*name));
    if let Some(name) = stray.or_else(|| matrix.quick.axes.keys().find(|name| !known_somewhere(name))) {
        return Err(MatrixError::anywhere(format!("quick.axes.{name} changes an axis that does not exist")));
    }
    Ok(())
}

/// Requests sent in bundles share their system calls, so that they are another unit.
fn check_pipelining(table: &TableSpec, cases: &[Case]) -> Result<(), MatrixError> {
    let is_pipelined = |case: &Case| case.client.is_pipelined;
    if cases.iter().any(is_pipelined) && !cases.iter().all(is_pipelined) {
        let what = "pipelined requests stand in a table of their own, not beside others";
        return Err(MatrixError::at(table.load.span(), what.to_string()));
    }
    Ok(())
}

fn check_baseline(table: &TableSpec, cases: &[Case]) -> Result<(), MatrixError> {
    let mut rows = cases.iter().filter(|case| case.table.id == table.id);
    for (name, value) in &table.baseline {
        let wanted = (name.clone(), value.get_ref().to_string());
        if !rows.any(|case| case.coordinates.contains(&wanted)) {
            let what = format!("the baseline {name} = {:?} is not a row of table {:?}", wanted.1, table.id);
            return Err(MatrixError::at(value.span(), what));
        }
    }
    Ok(())
}

/// Sets for each case of a table the index of the one it is compared with.
fn compare(table: &TableSpec, cases: &mut [Case]) {
    if table.baseline.is_empty() {
        return;
    }
    for i in 0..cases.len() {
        let wanted = table.baseline_of(&cases[i].coordinates);
        cases[i].baseline = cases.iter().find(|other| other.coordinates == wanted).map(|baseline| baseline.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::plan::experiment::tests::parse_lesson;

    const TABLE: &str = r#"
server = [{ run = "sync", law = "1/N" }, { run = "prefork --workers {connections+1}" }]
server_flags = "--work {work}"
load = "loadgen --connections {connections} --duration {duration} --warmup {warmup}"
axes = { work = ["block:10ms"], connections = [1, 8] }
columns = ["qps", "p50"]
baseline = { server = "sync" }
quick = { axes = { connections = [8] } }"#;

    #[test]
    fn every_combination_becomes_a_case_with_complete_command_lines() {
        let cases = parse_lesson(TABLE).unwrap().cases(false);
        assert_eq!(cases.len(), 4);
        assert_eq!(cases[3].server.text(), "prefork --workers 9 --work block:10ms --listen 127.0.0.1:0");
        assert_eq!(cases[3].client.text(), "loadgen --connections 8 --duration 1s --warmup 200ms");
        assert_eq!(cases[3].label, "prefork --workers 9");
        assert_eq!(cases[3].estimate, Duration::from_millis(1350));
        assert_eq!(cases.iter().map(|case| case.index).collect::<Vec<_>>(), [0, 1, 2, 3]);
        let baselines: Vec<Option<usize>> = cases.iter().map(|case| case.baseline).collect();
        assert_eq!(baselines, [Some(0), Some(0), Some(2), Some(2)]);
    }

    #[test]
    fn two_clients_of_one_program_differ_by_name() {
        let clients = "load = [\"loadgen\", { name = \"in a hurry\", run = \"loadgen --busy-poll\" }] #";
        let table = TABLE.replace("load =", clients).replace("server = \"sync\"", "client = \"loadgen\"");
        let cases = parse_lesson(&table).unwrap().cases(true);
        assert_eq!(cases.len(), 4);
        assert_eq!(cases[1].coordinates.last().unwrap().1, "in a hurry");
        assert_eq!((cases[1].client.text(), cases[1].baseline), ("loadgen --busy-poll", Some(0)));
    }

    #[test]
    fn quick_replaces_axes_repeats_and_times() {
        let cases = parse_lesson(TABLE).unwrap().cases(true);
        assert_eq!(cases.len(), 2);
        assert_eq!(cases[0].client.text(), "loadgen --connections 8 --duration 300ms --warmup 200ms");
        assert_eq!(cases[0].repeats, 1);
    }

    #[test]
    fn a_number_of_requests_takes_the_time_of_their_work() {
        let seconds = |load: &str| {
            let table =
                format!("server = [{{ run = \"threaded --work block:3s\" }}]\nload = \"loadgen {load}\"\ncolumns = []");
            parse_lesson(&table).unwrap().cases(false)[0].estimate.as_secs_f64()
        };
        assert!((seconds("--connections 2 --requests 8") - 12.0).abs() < 0.2);
        assert!((seconds("--connections 2 --requests 8 --rate 2") - 4.0).abs() < 0.2);
    }

    #[test]
    fn a_table_without_repeats_in_a_quick_run_is_left_out_of_it() {
        let experiment = parse_lesson(&TABLE.replace("quick = {", "quick = { repeats = 0,")).unwrap();
        assert_eq!((experiment.cases(true).len(), experiment.cases(false).len()), (0, 4));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_remedy() {
        for (from, to, expected) in [
            ("{work}", "{wrok}", "{wrok} is not a placeholder; there are connections, duration, warmup, work"),
            ("{connections+1}", "{work+1}", "needs an axis of whole numbers"),
            ("{connections+1}", "{connections", "never closes"),
            ("\"1/N\"", "\"2/N\"", "is not a law"),
            ("law = \"1/N\"", "reload = \"HUP\"", "write it like SIGUSR2"),
            ("\"loadgen", "\"siege", "use loadgen or one of wrk, oha"),
            ("server = \"sync\"", "server = \"snyc\"", "is not a row of table"),
            ("[8] } }", "[] , cores = [2] } }", "does not exist"),
            ("[1, 8]", "[]", "has no value"),
            (
                "\"loadgen --connections {connections} --duration {duration} --warmup {warmup}\"",
                "[\"loadgen\", { name = \"piped\", run = \"loadgen --pipeline 4\" }]",
                "a table of their own",
            ),
            ("\"p50\"", "\"p51\"", "lab explain"),
            ("axes = { work", "kind = \"trials\"\naxes = { work", "needs `load = \"trial NAME\"`"),
            ("axes = { work", "kind = \"orders\"\naxes = { work", "needs `load = \"runs N\"`"),
            ("load = \"loadgen", "load = [\"loadgen\", \"loadgen --pin\"] #", "give a client a name"),
        ] {
            let broken = TABLE.replace(from, to);
            assert_ne!(broken, TABLE);
            let (_, what) = parse_lesson(&broken).unwrap_err();
            assert!(what.contains(expected), "{to}: {what}");
        }
    }
}
