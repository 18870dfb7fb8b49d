//! Rows → tables of finished cells, and tables → text. The same rows give the same text: nothing here reads a file or a
//! clock.

use std::collections::{BTreeMap, BTreeSet};

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ContentArrangement};

use crate::lab::evidence::columns::{self, Column, Formula, Sample};
use crate::lab::evidence::{accounting, numbers};
use crate::lab::plan::blocks::FURTHER;
use crate::lab::plan::case::TRACED_COLUMNS;
use crate::lab::plan::events;
use crate::lab::plan::matrix::{TableKind, TableSpec};
use crate::lab::record::Row;
use crate::stats::{self, RUNS_FOR_INTERVAL};
use crate::units::{format_duration, grouped};

/// Command lines that belong together: a server's and a client's.
pub type Commands = Vec<String>;

/// A table ready to be printed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    pub title: String,
    pub headers: Vec<String>,
    /// So many of the first columns say which line it is; the others have its numbers.
    pub coordinates: usize,
    pub cells: Vec<Vec<String>>,
    /// How the numbers were made, and what went wrong; one sentence each.
    pub notes: Vec<String>,
    /// The printed columns: header, definition.
    pub definitions: Vec<(String, String)>,
    /// The first line's commands, for each client of the table.
    pub commands: Vec<Commands>,
    /// Answer-by-answer texts: command lines, lines.
    pub traces: Vec<(Commands, Vec<String>)>,
}

/// Makes a table of the rows that were recorded for it.
pub fn of(spec: &TableSpec, rows: &[&Row]) -> Table {
    let cases = by_case(rows);
    let mut table = Table { title: spec.title.clone(), notes: conditions(spec, &cases), ..Table::default() };
    match spec.kind {
        TableKind::Summary | TableKind::Orders | TableKind::Trials => {
            summarize(&mut table, spec, rows, &cases);
            table.commands = first_commands(&cases);
        }
        TableKind::Trace => table.traces = cases.iter().filter_map(|case| trace(case.last()?)).collect(),
    }
    table.notes.extend(limits(&table));
    table.notes.extend(multiplicity(spec, &table));
    table.notes.extend(speeds(rows));
    table.notes.extend(uncounted(spec, rows));
    table.notes.extend(cases.iter().flat_map(|case| problems(case)));
    table
}

/// The runs of each case, in the order of the matrix.
pub fn by_case<'a>(rows: &[&'a Row]) -> Vec<Vec<&'a Row>> {
    let mut by_case: BTreeMap<usize, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        by_case.entry(row.case).or_default().push(row);
    }
    by_case.into_values().collect()
}

/// The finished runs of a case, each with the run that it is compared with.
pub fn samples<'a>(spec: &TableSpec, rows: &[&'a Row], case: &[&'a Row]) -> Vec<Sample<'a>> {
    let finished = case.iter().filter(|row| row.failure.is_none() && row.skipped.is_none());
    finished.map(|row| Sample { row, baseline: baseline(spec, rows, row) }).collect()
}

fn summarize(table: &mut Table, spec: &TableSpec, rows: &[&Row], cases: &[Vec<&Row>]) {
    let columns: Vec<&Column> = spec.columns.iter().filter_map(|name| columns::find(name.get_ref())).collect();
    let several_clients = spec.load.get_ref().all().len() > 1;
    let has_law = spec.server.iter().any(|server| server.law.is_some());
    table.headers = spec.axes.keys().cloned().collect();
    let runs = if spec.kind == TableKind::Trials { "trial of" } else { "server" };
    table.headers.push(runs.to_string());
    table.headers.extend(several_clients.then(|| "client".to_string()));
    table.headers.extend(has_law.then(|| "law".to_string()));
    table.coordinates = table.headers.len();
    table.headers.extend(columns.iter().map(|column| column.header()));
    let define = |column: &&Column| (column.header(), column.definition());
    table.definitions = columns.iter().map(define).collect();
    for case in cases {
        let Some(first) = case.first() else { continue };
        let axis = |name: &String| first.coordinate(name).unwrap_or("–").to_string();
        let mut line: Vec<String> = spec.axes.keys().map(axis).collect();
        line.push(first.label.clone());
        line.extend(several_clients.then(|| first.coordinate("client").unwrap_or("–").to_string()));
        line.extend(has_law.then(|| first.law.clone().unwrap_or("–".to_string())));
        let samples = samples(spec, rows, case);
        let is_limited = client_is_the_limit(&samples);
        line.extend(columns.iter().map(|column| {
            let cell = cell(column, &samples);
            let is_rate = ["qps", "connections_per_s"].contains(&column.name);
            if is_limited && is_rate && cell != "–" { cell + CLIENT_LIMIT_MARK } else { cell }
        }));
        if let (true, Some(why), Some(cell)) = (samples.is_empty(), &first.skipped, line.get_mut(table.coordinates)) {
            *cell = format!("skipped: {why}");
        }
        table.cells.push(line);
    }
}

/// The row of the same group that differs from this one in the baseline's coordinates.
pub fn baseline<'a>(spec: &TableSpec, rows: &[&'a Row], row: &Row) -> Option<&'a Row> {
    if spec.baseline.is_empty() {
        return None;
    }
    let wanted = spec.baseline_of(&row.coordinates);
    let beside = |other: &&Row| (other.block, other.group) == (row.block, row.group);
    rows.iter().copied().filter(beside).find(|other| other.failure.is_none() && other.coordinates == wanted)
}

/// A client that uses this share of its CPU has no time left to send more.
const CLIENT_LIMIT: f64 = 0.95;

const CLIENT_LIMIT_MARK: &str = " †";

/// Whether a client that sends as fast as it can was slower than the server.
fn client_is_the_limit(samples: &[Sample]) -> bool {
    let share = columns::find("client_cpu_share").expect("a column");
    let in_a_closed_loop = samples.iter().filter(|sample| sample.row.client_command.rate.is_none());
    let shares: Vec<f64> = in_a_closed_loop.filter_map(|sample| share.number(*sample)).collect();
    stats::median(&shares).is_some_and(|share| share >= CLIENT_LIMIT)
}

fn cell(column: &Column, samples: &[Sample]) -> String {
    let text = match column.value {
        Formula::Picture { of, median_by } => columns::median_run(samples, median_by).and_then(of),
        Formula::Pooled(of) => of(samples).map(|number| column.print(number)),
        _ => {
            let numbers: Vec<f64> = samples.iter().filter_map(|sample| column.number(*sample)).collect();
            stats::summarize(&numbers).map(|summary| numbers::spread(&summary, |number| column.print(number)))
        }
    };
    text.unwrap_or("–".to_string())
}

/// What a reader must know before comparing: repeats, spread, loop model, warm-up, pinning, command lines.
fn conditions(spec: &TableSpec, cases: &[Vec<&Row>]) -> Vec<String> {
    let Some(example) = cases.first().and_then(|case| case.first()) else { return Vec::new() };
    let is_baseline =
        |case: &&Vec<&Row>| !spec.baseline.is_empty() && spec.baseline_of(&case[0].coordinates) == case[0].coordinates;
    let repeats = repeats(&cases.iter().filter(|case| !is_baseline(case)).map(Vec::len).collect::<Vec<_>>());
    let client = &example.client_command;
    let model = if client.rate.is_some() { "open loop" } else { "closed loop" };
    let warmup = warmups(cases);
    let pinned = match (&example.server_cpus, &example.client_cpus) {
        (server, client) if server == client => format!("server and client share CPUs {}", list(server)),
        (server, client) => format!("server on CPU {}, client on CPU {}", list(server), list(client)),
    };
    let how = match client.runs() {
        _ if spec.kind == TableKind::Trials => [versions(cases), format!("on CPUs {}", list(&example.client_cpus))],
        Some(runs) => [format!("each ran {runs} times to its end"), format!("on CPUs {}", list(&example.server_cpus))],
        None => [format!("{model}, {warmup}"), pinned],
    };
    // A table of nothing but its baseline has no repeats to speak of here.
    let parts: Vec<String> = [repeats].into_iter().chain(how).collect();
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    let mut notes = vec![format!("{}.", parts.join("; "))];
    if let Some(acts) = &example.disturb {
        let names_a_worker = events::parse(acts.clone()).is_ok_and(|events| events.largest_worker().is_some());
        let hint = if names_a_worker { " (numbers are workers)" } else { "" };
        notes.push(format!("Once the client measured: `{acts}`{hint}."));
    }
    let versions: BTreeSet<&str> = cases.iter().flatten().filter_map(|row| row.version.as_deref()).collect();
    if !versions.is_empty() {
        notes.push(format!("Servers of other projects: {}.", versions.into_iter().collect::<Vec<_>>().join(", ")));
    }
    if cases.iter().flatten().any(|row| row.own_network) {
        notes.push(
            "Server and client in a network namespace of their own: this user may not change the machine's settings."
                .to_string(),
        );
    }
    if cases.iter().flatten().any(|row| row.is_further) {
        let time = FURTHER.as_secs();
        notes.push(format!(
            "Lines that an undecided claim needs ran in further blocks until it was decided, for at most {time} s of the \
             lesson; looking so often makes a wrong decision likelier than the 5 % of one look."
        ));
    }
    if !spec.baseline.is_empty() {
        let baseline_runs = cases.iter().filter(is_baseline).map(Vec::len).max().unwrap_or(0);
        notes.push(compared(spec, baseline_runs));
    }
    notes
}

/// What a number and its brackets are. A line that an undecided claim needs may have more runs, and then other
/// brackets.
fn repeats(runs: &[usize]) -> String {
    let of_kind = |from: usize, below: usize| {
        let its = runs.iter().filter(|runs| (from..below).contains(*runs));
        let (fewest, most) = (its.clone().min()?, its.max()?);
        Some(if fewest == most { most.to_string() } else { format!("{fewest} to {most}") })
    };
    let one = of_kind(1, 2).map(|_| "one run of fresh processes per line, so no spread is known".to_string());
    let few = of_kind(2, RUNS_FOR_INTERVAL).map(|number| {
        format!("median [smallest, largest] of {number} runs of fresh processes, too few for a confidence interval")
    });
    let many = of_kind(RUNS_FOR_INTERVAL, usize::MAX).map(|number| {
        format!("median [95 % interval of the median, order statistics] of {number} runs of fresh processes")
    });
    [one, few, many].into_iter().flatten().collect::<Vec<_>>().join("; lines with more runs: ")
}

/// One example for each client.
fn first_commands(cases: &[Vec<&Row>]) -> Vec<Commands> {
    let mut clients = BTreeSet::new();
    let rows = cases.iter().flatten();
    rows.filter(|row| clients.insert(client_name(row))).map(|row| commands(row)).collect()
}

/// `pm 0.1.0, pm2 7.0.4`.
fn versions(cases: &[Vec<&Row>]) -> String {
    let version = |case: &Vec<&Row>| {
        Some(format!("{} {}", case[0].label, case.iter().find_map(|row| row.trial.as_ref())?.version))
    };
    cases.iter().filter_map(version).collect::<Vec<_>>().join(", ")
}

fn commands(row: &Row) -> Commands {
    // The command of a trial names the manager.
    if row.trial.is_some() {
        return vec![row.client_command.text().to_string()];
    }
    vec![row.server_command.text().to_string(), row.client_command.text().to_string()]
}

/// What the ratios are ratios to.
fn compared(spec: &TableSpec, runs: usize) -> String {
    let coordinates: Vec<String> =
        spec.baseline.iter().map(|(name, value)| format!("{name} is `{}`", value.get_ref())).collect();
    let line = format!("Baseline: the line whose {} and which is otherwise the same", coordinates.join(", "));
    let runs = if runs == 1 { "1 run".to_string() } else { format!("{runs} runs") };
    format!("{line}, {runs}; each run is compared with the baseline's run directly before or after it.")
}

/// The client's name in the matrix.
fn client_name(row: &Row) -> &str {
    row.coordinate("client").unwrap_or(row.client_command.program())
}

/// The warm-up in the clients' command lines. Where the clients of a table differ in it, each is named.
fn warmups(cases: &[Vec<&Row>]) -> String {
    let of = |row: &&Row| match row.client_command.warmup {
        Some(time) => format!("{} of warm-up", format_duration(time)),
        None => "no warm-up".to_string(),
    };
    let mut by_client: BTreeMap<&str, String> = BTreeMap::new();
    for row in cases.iter().flatten() {
        by_client.insert(client_name(row), of(row));
    }
    match by_client.values().collect::<BTreeSet<_>>().len() {
        1 => by_client.into_values().next().unwrap_or_default(),
        _ => by_client.iter().map(|(client, text)| format!("{client}: {text}")).collect::<Vec<_>>().join(", "),
    }
}

fn list(cpus: &[usize]) -> String {
    cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

/// What the mark means.
fn limits(table: &Table) -> Option<String> {
    let is_marked = table.cells.iter().flatten().any(|cell| cell.ends_with(CLIENT_LIMIT_MARK));
    is_marked.then(|| {
        let percent = 100.0 * CLIENT_LIMIT;
        format!(
            "†: the client used {percent:.0} % of its CPU or more and was the limit; the server might have answered more, so \
             compare CPU times there."
        )
    })
}

/// Many tests find something by chance.
fn multiplicity(spec: &TableSpec, table: &Table) -> Option<String> {
    let shows_p = spec.columns.iter().any(|column| column.get_ref() == "p_value");
    let tests = table.cells.len();
    (shows_p && tests > 1).then(|| {
        let by_chance = numbers::real(0.05 * tests as f64);
        let bar = numbers::real(0.05 / tests as f64);
        format!(
            "Of {tests} values of p, {by_chance} are expected below 0.05 by chance alone; below {bar} one is not chance \
             (Bonferroni)."
        )
    })
}

/// Where the machine had two speeds, a median may lie between them.
pub fn speeds(rows: &[&Row]) -> Option<String> {
    let mut by_cpu: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for speed in rows.iter().flat_map(|row| &row.speed) {
        by_cpu.entry(speed.cpu).or_default().push(speed.loop_us + speed.calls_us);
    }
    let of_cpu = |(cpu, times): (usize, Vec<f64>)| {
        let modes = stats::two_modes(&times)?;
        let [low, high] = [modes.low, modes.high].map(numbers::count);
        let percent = numbers::count(100.0 * modes.low_share);
        Some(format!("CPU {cpu} {low} µs in {percent} % of the runs, else {high} µs"))
    };
    let two: Vec<String> = by_cpu.into_iter().filter_map(of_cpu).collect();
    let all = two.join("; ");
    (!two.is_empty()).then(|| format!("two speeds: fixed work took {all}. Trust ratios within a block."))
}

/// Why the kernel's counts are missing, or are others than the column says: each reason once for the whole table.
fn uncounted(spec: &TableSpec, rows: &[&Row]) -> Vec<String> {
    let shown = |name: &&str| spec.columns.iter().any(|column| column.get_ref() == *name);
    let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
    let observed = rows.iter().filter_map(|row| row.observed.as_ref());
    for why in observed.filter(|_| shown(&"switches")).filter_map(|observed| observed.missing.as_ref()) {
        *reasons.entry(format!("switches of whole lives: {why}")).or_default() += 1;
    }
    if TRACED_COLUMNS.iter().any(shown) {
        for why in rows.iter().filter_map(|row| untraced(row)) {
            *reasons.entry(why.to_string()).or_default() += 1;
        }
    }
    reasons.into_iter().map(|(why, runs)| format!("{why}; runs: {}.", grouped(runs))).collect()
}

/// Why a row lacks the counts of tracepoints that its table asked for.
pub fn untraced(row: &Row) -> Option<&str> {
    row.observed.as_ref()?.tracepoints_missing.as_deref()
}

/// What went wrong in a case's runs, each kind once.
fn problems(case: &[&Row]) -> Vec<String> {
    let Some(first) = case.first() else { return Vec::new() };
    let axes: Vec<String> = first
        .coordinates
        .iter()
        .filter(|(name, _)| !["server", "client"].contains(&name.as_str()))
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    let place = [axes, vec![first.label.clone()]].concat().join(", ");
    let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
    for row in case {
        let ends = [("skipped", &row.skipped), ("failed", &row.failure)];
        for (what, why) in ends.iter().filter_map(|(what, why)| Some((what, why.as_ref()?))) {
            *reasons.entry(format!("{what}: {why}; runs")).or_default() += 1;
        }
        for note in row.trial.iter().flat_map(|trial| &trial.notes) {
            *reasons.entry(format!("{note}; runs")).or_default() += 1;
        }
        if let Some(how) = &row.death {
            *reasons.entry(format!("the server had ended by itself ({how}); runs")).or_default() += 1;
        }
        // Where losses are expected, they are in the columns.
        if !row.expects_losses() {
            for (what, count) in accounting::unexpected_errors(row) {
                *reasons.entry(what).or_default() += count;
            }
            if let Some(what) = accounting::mismatch(row) {
                *reasons.entry(format!("{what}; runs")).or_default() += 1;
            }
        }
        if row.machine.listen_overflows > 0 {
            let what = "overflows of accept queues, on the whole machine".to_string();
            *reasons.entry(what).or_default() += row.machine.listen_overflows;
        }
    }
    reasons.into_iter().map(|(what, number)| format!("{place}: {what}: {}.", grouped(number))).collect()
}

/// The answers of one run, one by one, as siege prints them.
fn trace(row: &Row) -> Option<(Commands, Vec<String>)> {
    let line = |answer: &crate::report::Traced| {
        let worker = answer.worker.map_or(String::new(), |worker| format!(" ==> worker {worker}"));
        let seconds = answer.latency_us / 1e6;
        format!("HTTP/1.1 {} {seconds:6.2} secs: {:5} bytes{worker}", answer.status, answer.bytes)
    };
    Some((commands(row), row.load.as_ref()?.trace.iter().map(line).collect()))
}

/// Texts and pictures are aligned to the left, numbers to the right.
pub fn is_text(header: &str) -> bool {
    let is_picture = |column: &Column| column.header() == header && matches!(column.value, Formula::Picture { .. });
    ["server", "client", "law"].contains(&header) || columns::COLUMNS.iter().any(is_picture)
}

pub fn terminal(table: &Table) -> String {
    let mut text = format!("{}\n", table.title);
    for (commands, lines) in &table.traces {
        text += &format!("  {}\n    {}\n", commands.join("\n  "), lines.join("\n    "));
    }
    if !table.headers.is_empty() {
        let mut drawn = comfy_table::Table::new();
        drawn.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
        drawn.set_header(&table.headers);
        drawn.add_rows(&table.cells);
        for (column, header) in drawn.column_iter_mut().zip(&table.headers) {
            if !is_text(header) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        text += &format!("{drawn}\n");
    }
    table.notes.iter().for_each(|note| text += &format!("  {note}\n"));
    table.commands.iter().for_each(|commands| text += &format!("  {}\n", commands.join("\n  ")));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::evidence::columns::tests::row;
    use crate::lab::plan::experiment::tests::parse_lesson;
    use crate::report::TrialReport;

    fn spec(more: &str) -> TableSpec {
        let table = "server = [{ run = \"sync\" }, { run = \"prefork\" }]\nload = \"loadgen\"\n";
        parse_lesson(&format!("{table}{more}")).unwrap().matrix.tables.remove(0)
    }

    fn runs(case: usize, server: &str, rates: &[f64]) -> Vec<Row> {
        let one = |(block, rate): (usize, &f64)| {
            let mut row = row();
            (row.case, row.block, row.label) = (case, block, server.to_string());
            row.coordinates = vec![("server".to_string(), server.to_string())];
            row.load.as_mut().unwrap().qps = *rate;
            row
        };
        rates.iter().enumerate().map(one).collect()
    }

    #[test]
    fn ratios_are_taken_within_a_block_and_not_between_medians() {
        let spec = spec("columns = [\"qps\", \"share_of_baseline\"]\nbaseline = { server = \"sync\" }");
        let rows = [runs(0, "sync", &[100.0, 200.0, 400.0]), runs(1, "prefork", &[50.0, 100.0, 200.0])].concat();
        let table = of(&spec, &rows.iter().collect::<Vec<_>>());
        assert_eq!(table.headers, ["server", "requests/s", "share of baseline"]);
        assert_eq!(table.cells[1], ["prefork", "100 [50, 200]", "0.500"]);
        assert_eq!(table.cells[0][2], "1.00");
    }

    #[test]
    fn a_run_is_compared_with_the_baseline_of_its_group() {
        let spec = spec("columns = [\"share_of_baseline\"]\nbaseline = { server = \"sync\" }");
        let mut rows = [runs(0, "sync", &[100.0, 400.0]), runs(1, "prefork", &[100.0])].concat();
        // The machine was four times as fast when the second group ran.
        for (row, group) in rows.iter_mut().zip([0, 1, 1]) {
            (row.block, row.group) = (0, Some(group));
        }
        let table = of(&spec, &rows.iter().collect::<Vec<_>>());
        assert_eq!(table.cells[1], ["prefork", "0.250"]);
        assert!(table.notes[0].starts_with("one run"), "{:?}", table.notes);
        assert!(table.notes[1].contains("2 runs; each run is compared"), "{:?}", table.notes);
    }

    #[test]
    fn a_client_without_a_warm_up_is_not_given_one() {
        let mut rows = [runs(0, "sync", &[1.0]), runs(1, "sync", &[1.0])].concat();
        rows[0].client_command = "loadgen --warmup 200ms".to_string().into();
        rows[1].client_command = "wrk -t 1".to_string().into();
        let note = &of(&spec("columns = []"), &rows.iter().collect::<Vec<_>>()).notes[0];
        assert!(note.contains("loadgen: 200ms of warm-up, wrk: no warm-up"), "{note}");
    }

    #[test]
    fn lines_with_few_runs_and_lines_with_many_are_told_apart() {
        assert_eq!(
            repeats(&[3, 12, 3, 9]),
            "median [smallest, largest] of 3 runs of fresh processes, too few for a confidence interval; lines with more \
             runs: median [95 % interval of the median, order statistics] of 9 to 12 runs of fresh processes"
        );
    }

    #[test]
    fn a_table_of_nothing_but_its_baseline_does_not_begin_with_a_semicolon() {
        let spec = spec("columns = [\"qps\"]\nbaseline = { server = \"sync\" }");
        let rows = runs(0, "sync", &[1.0]);
        let note = &of(&spec, &rows.iter().collect::<Vec<_>>()).notes[0];
        assert!(note.starts_with("closed loop, "), "{note}");
    }

    #[test]
    fn a_failed_run_is_noted_and_is_not_in_the_numbers() {
        let mut rows = runs(0, "sync", &[100.0, 900.0]);
        rows[1].failure = Some("sync ended".to_string());
        rows[0].load.as_mut().unwrap().errors.timeout = 3;
        let table = of(&spec("columns = [\"qps\"]"), &rows.iter().collect::<Vec<_>>());
        assert_eq!(table.cells, [["sync", "100"]]);
        let notes = table.notes.join("\n");
        assert!(
            notes.contains("sync: failed: sync ended; runs: 1.")
                && notes.contains("sync: requests without an answer: 3."),
            "{notes}"
        );
    }

    #[test]
    fn what_a_trial_notes_stands_below_its_table() {
        let mut rows = runs(0, "ours", &[1.0, 2.0]);
        let notes = vec!["sync, healthy: herd was not found".to_string()];
        rows[1].trial = Some(TrialReport { notes, ..TrialReport::default() });
        let table = of(&spec("columns = []"), &rows.iter().collect::<Vec<_>>());
        assert_eq!(table.notes.last().unwrap(), "ours: sync, healthy: herd was not found; runs: 1.");
    }

    #[test]
    fn a_line_whose_client_was_the_limit_is_marked() {
        let mut rows = [runs(0, "sync", &[100.0, 200.0]), runs(1, "prefork", &[100.0])].concat();
        rows.iter_mut().for_each(|row| row.load.as_mut().unwrap().client.cpu_share = 0.99);
        rows[2].client_command = "loadgen --rate 100 --busy-poll".to_string().into();
        let table = of(&spec("columns = [\"qps\", \"p99\"]"), &rows.iter().collect::<Vec<_>>());
        assert_eq!(table.cells[0][1], "150 [100, 200] †");
        assert!(!table.cells[0][2].contains('†') && !table.cells[1][1].contains('†'), "{:?}", table.cells);
        assert!(table.notes.iter().any(|note| note.starts_with("†: the client used 95 %")), "{:?}", table.notes);
    }

    #[test]
    fn two_speeds_of_the_machine_are_noted() {
        let mut rows = runs(0, "sync", &[1.0; 20]);
        for (i, row) in rows.iter_mut().enumerate() {
            let total = if i < 8 { 1000.0 } else { 1400.0 };
            row.speed = vec![Speed { cpu: 3, loop_us: total - 400.0, calls_us: 400.0 }];
        }
        let note = |rows: &[Row]| of(&spec("columns = []"), &rows.iter().collect::<Vec<_>>()).notes.join("\n");
        assert!(note(&rows).contains("two speeds: fixed work took CPU 3 1,000 µs in 40 %"), "{}", note(&rows));
        rows.iter_mut().for_each(|row| row.speed[0].loop_us = 600.0);
        assert!(!note(&rows).contains("two speeds"));
    }

    use crate::lab::observe::speed::Speed;

    #[test]
    fn a_picture_is_that_of_the_median_run() {
        let spec = spec("columns = [\"bars\"]");
        let mut rows = runs(0, "sync", &[1.0, 2.0, 3.0]);
        for (row, count) in rows.iter_mut().zip([9, 0, 1]) {
            row.load.as_mut().unwrap().workers.get_mut("1").unwrap().connections = count;
        }
        let table = of(&spec, &rows.iter().collect::<Vec<_>>());
        assert_eq!(table.cells[0][1], "█▂▁ 80 1 0");
    }

    #[test]
    fn a_trace_reads_like_siege() {
        let spec = spec("kind = \"trace\"\ncolumns = []");
        let mut rows = runs(0, "sync", &[1.0]);
        rows[0].load.as_mut().unwrap().trace = vec![crate::report::Traced {
            at_us: 3e6,
            latency_us: 3_004_000.0,
            status: 200,
            bytes: 64,
            worker: Some(0),
        }];
        let text = terminal(&of(&spec, &rows.iter().collect::<Vec<_>>()));
        assert!(text.contains("HTTP/1.1 200   3.00 secs:    64 bytes ==> worker 0"), "{text}");
    }
}
