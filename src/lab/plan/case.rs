//! From a matrix to its cases: every combination of axes, server and client, with the command lines written out.
//!
//! A command line may hold `{axis}`, `{axis+64}`, `{axis*8}`, `{duration}` and `{warmup}`. Words are split at blanks; there
//! is no quoting, so that a command line in a table can be pasted into a shell.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use toml::Spanned;

use crate::lab::evidence::columns;
use crate::lab::observe::growth;
use crate::lab::observe::kernel_counts;
use crate::lab::plan::experiment::{AxisValue, Client, Contender, Fault, Kind, Matrix, Overrides, TableSpec};
use crate::lab::plan::laws::Law;
use crate::lab::run::disturb;
use crate::lab::run::foreign;
use crate::units::parse_duration;

/// What starting, stopping and collecting cost beside warm-up and measurement; for the remaining time only.
const OVERHEAD: Duration = Duration::from_millis(300);

/// One line of a table, to be run `repeats` times.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    pub experiment: String,
    pub table: String,
    /// Position within the experiment: the order of the rows in its tables.
    pub index: usize,
    /// What distinguishes it, as written in the matrix: the axes, then `server`, then `client`. Baselines are
    /// found by these.
    pub coordinates: Vec<(String, String)>,
    /// The index of the case it is compared with, which is its own for a baseline.
    pub baseline: Option<usize>,
    /// The server's command line as written, placeholders filled in: its name in the table.
    pub label: String,
    /// Complete command lines, except for the addresses, which only the run knows.
    pub server: String,
    pub client: String,
    pub law: Option<String>,
    pub server_cpus: Vec<usize>,
    pub client_cpus: Vec<usize>,
    pub probe: bool,
    /// The table has a column that needs the kernel's tracepoints.
    pub tracepoints: bool,
    pub trace: bool,
    pub expect_timeouts: bool,
    pub expect_death: bool,
    /// The table has a column that compares the master with itself.
    pub growth: bool,
    /// What is done to the server, as written.
    pub disturb: Option<String>,
    /// Kernel settings: name, value.
    pub sysctl: Vec<(String, String)>,
    pub timeline: bool,
    pub repeats: usize,
    /// How long one run should take.
    pub estimate: Duration,
}

impl Case {
    /// The same case with another value behind the client's `--warmup`.
    pub fn with_warmup(&self, warmup: Duration) -> Case {
        let mut words: Vec<String> = self.client.split_whitespace().map(str::to_string).collect();
        if let Some(place) = words.iter().position(|word| word == "--warmup")
            && let Some(value) = words.get_mut(place + 1)
        {
            *value = format!("{}ms", warmup.as_millis());
        }
        let client = words.join(" ");
        Case { estimate: OVERHEAD + declared(&client), client, ..self.clone() }
    }
}

/// All cases of an experiment, or the first thing in its matrix that makes no sense.
pub fn expand(experiment: &str, matrix: &Matrix, quick: bool) -> Result<Vec<Case>, Fault> {
    let mut cases: Vec<Case> = Vec::new();
    for (i, table) in matrix.tables.iter().enumerate() {
        if matrix.tables[..i].iter().any(|other| other.id == table.id) {
            return Err(Fault::anywhere(format!("two tables have the id {:?}; rename one", table.id)));
        }
        check_columns(table)?;
        let settings = Settings::of(matrix, table, quick)?;
        let first = cases.len();
        for combination in combinations(&settings.axes) {
            for contender in &table.server {
                for client in table.load.get_ref().clients() {
                    let mut case = one(table, &settings, &combination, contender, client)?;
                    if cases[first..].iter().any(|other| other.coordinates == case.coordinates) {
                        let what =
                            format!("two lines are called {:?}; give a client a name", case.coordinates);
                        return Err(Fault::at(table.load.span(), what));
                    }
                    case.experiment = experiment.to_string();
                    case.index = cases.len();
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
struct Settings {
    repeats: usize,
    axes: BTreeMap<String, Vec<String>>,
    duration: String,
    warmup: String,
}

impl Settings {
    fn of(matrix: &Matrix, table: &TableSpec, quick: bool) -> Result<Settings, Fault> {
        check_axes(matrix, table)?;
        // The table's own word counts before the matrix's.
        let overrides: &[&Overrides] = if quick { &[&table.quick, &matrix.quick] } else { &[] };
        let overrides = || overrides.iter();
        let duration = overrides().find_map(|set| set.duration.clone()).or(table.duration.clone());
        let warmup = overrides().find_map(|set| set.warmup.clone()).or(table.warmup.clone());
        let settings = Settings {
            repeats: overrides().find_map(|set| set.repeats).or(table.repeats).unwrap_or(matrix.repeats),
            axes: table.axes.iter().map(|(name, values)| axis(name, values, overrides())).collect(),
            duration: duration.unwrap_or(matrix.duration.clone()),
            warmup: warmup.unwrap_or(matrix.warmup.clone()),
        };
        if settings.repeats == 0 {
            return Err(Fault::anywhere(format!("table {:?}: repeats = 0 measures nothing", table.id)));
        }
        for value in [&settings.duration, &settings.warmup] {
            parse_duration(value).map_err(Fault::anywhere)?;
        }
        Ok(settings)
    }

    /// The values of all placeholders under one combination of the axes.
    fn values(&self, combination: &[(String, String)]) -> BTreeMap<String, String> {
        let mut values: BTreeMap<String, String> = combination.iter().cloned().collect();
        values.insert("duration".to_string(), self.duration.clone());
        values.insert("warmup".to_string(), self.warmup.clone());
        values
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

/// One contender under one client and one combination; its place among the cases is the caller's.
fn one(
    table: &TableSpec,
    settings: &Settings,
    combination: &[(String, String)],
    contender: &Contender,
    load: &Client,
) -> Result<Case, Fault> {
    let values = settings.values(combination);
    let label = fill(contender.run.get_ref(), &values, contender.run.span())?;
    let flags = match &table.server_flags {
        Some(flags) => format!(" {}", fill(flags.get_ref(), &values, flags.span())?),
        None => String::new(),
    };
    let client = fill(load.run(), &values, table.load.span())?;
    if let Some(law) = &contender.law {
        Law::parse(law.get_ref()).map_err(|what| Fault::at(law.span(), what))?;
    }
    let program = program_of(&client);
    if program != "loadgen" && foreign::find(program).is_none() {
        let others: Vec<&str> = foreign::CLIENTS.iter().map(|client| client.name).collect();
        let others = others.join(", ");
        let what = format!("{program:?} is no client the lab can read; use loadgen or one of {others}");
        return Err(Fault::at(table.load.span(), what));
    }
    let disturb =
        table.disturb.as_ref().map(|acts| fill(acts.get_ref(), &values, acts.span())).transpose()?;
    if let (Some(acts), Some(written)) = (&disturb, &table.disturb) {
        disturb::parse(acts).map_err(|what| Fault::at(written.span(), what))?;
    }
    let setting = |(name, value): (&String, &Spanned<String>)| {
        Ok((name.clone(), fill(value.get_ref(), &values, value.span())?))
    };
    let sysctl = table.sysctl.iter().map(setting).collect::<Result<_, Fault>>()?;
    let needs_phases = disturb.is_some() || table.timeline || has_column_of(table, &growth::COLUMNS);
    if program != "loadgen" && needs_phases {
        let what =
            format!("{program} does not say when it measures; disturb, timeline and growth need loadgen");
        return Err(Fault::at(table.load.span(), what));
    }
    let mut coordinates = combination.to_vec();
    coordinates.push(("server".to_string(), contender.run.get_ref().clone()));
    coordinates.push(("client".to_string(), load.name().unwrap_or(program).to_string()));
    Ok(Case {
        experiment: String::new(),
        table: table.id.clone(),
        index: 0,
        coordinates,
        baseline: None,
        // Behind ` -- ` it is the program's, like `server_flags`.
        server: format!("{label}{flags} --listen 127.0.0.1:0"),
        label,
        law: contender.law.as_ref().map(|law| law.get_ref().clone()),
        server_cpus: table.server_cpus.clone(),
        client_cpus: table.client_cpus.clone(),
        probe: table.probe,
        tracepoints: has_column_of(table, &kernel_counts::TRACED),
        growth: has_column_of(table, &growth::COLUMNS),
        trace: table.kind == Kind::Trace,
        expect_timeouts: contender.expect_timeouts,
        expect_death: contender.expect_death,
        disturb,
        sysctl,
        timeline: table.timeline,
        repeats: settings.repeats,
        estimate: OVERHEAD + declared(&client),
        client,
    })
}

fn has_column_of(table: &TableSpec, names: &[&str]) -> bool {
    table.columns.iter().any(|name| names.contains(&name.get_ref().as_str()))
}

/// A server's command line with one more flag of its own: where it starts another program, that one's begins behind
/// `--`.
pub fn with_own_flag(server: &str, flag: &str) -> String {
    match server.split_once(" -- ") {
        Some((own, program)) => format!("{own} {flag} -- {program}"),
        None => format!("{server} {flag}"),
    }
}

/// The first word of a command line.
pub fn program_of(command: &str) -> &str {
    command.split_whitespace().next().unwrap_or_default()
}

/// The value after `--flag` in a command line.
pub fn flag<'a>(command: &'a str, name: &str) -> Option<&'a str> {
    let mut words = command.split_whitespace();
    words.find(|word| *word == name)?;
    words.next()
}

/// Warm-up plus duration as the client's command line says (wrk calls it `-d`, oha `-z`). A count of requests says how long it
/// takes only where there is a rate.
fn declared(client: &str) -> Duration {
    let number = |name| flag(client, name).and_then(|text| text.parse::<f64>().ok());
    let counted = match (number("--requests"), number("--rate")) {
        (Some(requests), Some(rate)) if rate > 0.0 => Duration::from_secs_f64(requests / rate),
        _ => Duration::ZERO,
    };
    counted
        + ["--warmup", "--duration", "-d", "-z"]
            .iter()
            .filter_map(|name| parse_duration(flag(client, name)?).ok())
            .sum::<Duration>()
}

/// Replaces `{name}`, `{name+K}` and `{name*K}`.
fn fill(template: &str, values: &BTreeMap<String, String>, span: Range<usize>) -> Result<String, Fault> {
    let mut filled = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((inside, after)) = after.split_once('}') else {
            return Err(Fault::at(span, format!("{template:?} opens a placeholder and never closes it")));
        };
        filled.push_str(before);
        filled.push_str(&value_of(inside, values).map_err(|what| Fault::at(span.clone(), what))?);
        rest = after;
    }
    Ok(filled + rest)
}

fn value_of(inside: &str, values: &BTreeMap<String, String>) -> Result<String, String> {
    let operator = inside.find(['+', '*']);
    let (name, operand) = operator.map_or((inside, ""), |place| (&inside[..place], &inside[place + 1..]));
    let Some(value) = values.get(name) else {
        let names: Vec<&str> = values.keys().map(String::as_str).collect();
        return Err(format!("{{{inside}}} is no placeholder; there are {}", names.join(", ")));
    };
    if operator.is_none() {
        return Ok(value.clone());
    }
    match (value.parse::<i64>(), operand.parse::<i64>()) {
        (Ok(a), Ok(b)) if inside.contains('*') => Ok((a * b).to_string()),
        (Ok(a), Ok(b)) => Ok((a + b).to_string()),
        _ => Err(format!(
            "{{{inside}}} reckons with what is no number; write {{axis+64}} or {{axis*8}} with a whole-number axis"
        )),
    }
}

fn check_columns(table: &TableSpec) -> Result<(), Fault> {
    for name in &table.columns {
        if columns::find(name.get_ref()).is_none() {
            let what = format!("no column {:?}; `lab explain` lists them", name.get_ref());
            return Err(Fault::at(name.span(), what));
        }
    }
    Ok(())
}

/// An axis that is empty, or that only `quick` knows, is a slip of the pen.
fn check_axes(matrix: &Matrix, table: &TableSpec) -> Result<(), Fault> {
    if let Some((name, _)) = table.axes.iter().find(|(_, values)| values.is_empty()) {
        return Err(Fault::anywhere(format!("table {:?}: axis {name:?} has no value", table.id)));
    }
    let known_somewhere = |name: &String| matrix.tables.iter().any(|other| other.axes.contains_key(name));
    let stray = table.quick.axes.keys().find(|name| !table.axes.contains_key(*name));
    match stray.or_else(|| matrix.quick.axes.keys().find(|name| !known_somewhere(name))) {
        Some(name) => Err(Fault::anywhere(format!("quick.axes.{name} changes an axis that does not exist"))),
        None => Ok(()),
    }
}

/// Requests sent in bundles share their system calls, so that they are another unit.
fn check_pipelining(table: &TableSpec, cases: &[Case]) -> Result<(), Fault> {
    let is_pipelined = |case: &Case| flag(&case.client, "--pipeline").is_some();
    if cases.iter().any(is_pipelined) && !cases.iter().all(is_pipelined) {
        let what = "pipelined requests stand in a table of their own, not beside others";
        return Err(Fault::at(table.load.span(), what.to_string()));
    }
    Ok(())
}

fn check_baseline(table: &TableSpec, cases: &[Case]) -> Result<(), Fault> {
    let mut rows = cases.iter().filter(|case| case.table == table.id);
    for (name, value) in &table.baseline {
        let wanted = (name.clone(), value.get_ref().to_string());
        if !rows.any(|case| case.coordinates.contains(&wanted)) {
            let what = format!("the baseline {name} = {:?} is no row of table {:?}", wanted.1, table.id);
            return Err(Fault::at(value.span(), what));
        }
    }
    Ok(())
}

/// Tells each case of a table which one it is compared with.
fn compare(table: &TableSpec, cases: &mut [Case]) {
    if table.baseline.is_empty() {
        return;
    }
    for i in 0..cases.len() {
        let wanted = table.baseline_of(&cases[i].coordinates);
        cases[i].baseline =
            cases.iter().find(|other| other.coordinates == wanted).map(|baseline| baseline.index);
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
        assert_eq!(cases[3].server, "prefork --workers 9 --work block:10ms --listen 127.0.0.1:0");
        assert_eq!(cases[3].client, "loadgen --connections 8 --duration 1s --warmup 200ms");
        assert_eq!(cases[3].label, "prefork --workers 9");
        assert_eq!(cases[3].estimate, Duration::from_millis(1500));
        assert_eq!(cases.iter().map(|case| case.index).collect::<Vec<_>>(), [0, 1, 2, 3]);
        let baselines: Vec<Option<usize>> = cases.iter().map(|case| case.baseline).collect();
        assert_eq!(baselines, [Some(0), Some(0), Some(2), Some(2)]);
    }

    #[test]
    fn two_clients_of_one_program_are_told_apart_by_name() {
        let clients = "load = [\"loadgen\", { name = \"in a hurry\", run = \"loadgen --busy-poll\" }] #";
        let table = TABLE.replace("load =", clients).replace("server = \"sync\"", "client = \"loadgen\"");
        let cases = parse_lesson(&table).unwrap().cases(true);
        assert_eq!(cases.len(), 4);
        assert_eq!(cases[1].coordinates.last().unwrap().1, "in a hurry");
        assert_eq!((cases[1].client.as_str(), cases[1].baseline), ("loadgen --busy-poll", Some(0)));
    }

    #[test]
    fn quick_replaces_axes_repeats_and_times() {
        let cases = parse_lesson(TABLE).unwrap().cases(true);
        assert_eq!(cases.len(), 2);
        assert_eq!(cases[0].client, "loadgen --connections 8 --duration 300ms --warmup 200ms");
        assert_eq!(cases[0].repeats, 1);
    }

    #[test]
    fn a_longer_warmup_changes_the_command_line_and_the_estimate() {
        let case = parse_lesson(TABLE).unwrap().cases(false)[0].with_warmup(Duration::from_millis(2500));
        assert_eq!(case.client, "loadgen --connections 1 --duration 1s --warmup 2500ms");
        assert_eq!(case.estimate, Duration::from_millis(3800));
    }

    #[test]
    fn a_flag_of_the_master_stands_before_the_program_it_starts() {
        assert_eq!(
            with_own_flag("cluster -- node x.js --listen a", "--b c"),
            "cluster --b c -- node x.js --listen a"
        );
        assert_eq!(with_own_flag("sync --listen a", "--b c"), "sync --listen a --b c");
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_remedy() {
        for (from, to, told) in [
            ("{work}", "{wrok}", "{wrok} is no placeholder; there are connections, duration, warmup, work"),
            ("{connections+1}", "{work+1}", "reckons with what is no number"),
            ("{connections+1}", "{connections", "never closes"),
            ("\"1/N\"", "\"2/N\"", "no law"),
            ("\"loadgen", "\"siege", "use loadgen or one of wrk, oha"),
            ("server = \"sync\"", "server = \"snyc\"", "is no row of table"),
            ("[8] } }", "[] , cores = [2] } }", "does not exist"),
            ("[1, 8]", "[]", "has no value"),
            (
                "\"loadgen --connections {connections} --duration {duration} --warmup {warmup}\"",
                "[\"loadgen\", { name = \"piped\", run = \"loadgen --pipeline 4\" }]",
                "a table of their own",
            ),
            ("\"p50\"", "\"p51\"", "lab explain"),
            ("load = \"loadgen", "load = [\"loadgen\", \"loadgen --pin\"] #", "give a client a name"),
        ] {
            let broken = TABLE.replace(from, to);
            assert_ne!(broken, TABLE);
            let (_, what) = parse_lesson(&broken).unwrap_err();
            assert!(what.contains(told), "{to}: {what}");
        }
    }
}
