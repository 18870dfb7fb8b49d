//! The matrix of a lesson as it is written: tables, their servers, clients, axes and columns.
//! [`crate::lab::plan::case`] expands it.

use std::collections::BTreeMap;
use std::ops::Range;

use nix::sys::signal::Signal;
use serde::Deserialize;
use toml::Spanned;

/// The ```` ```toml ```` block. What a table does not say is taken from the top.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Matrix {
    /// Fresh processes for every case, this many times.
    pub repeats: usize,
    /// The values of `{duration}` and `{warmup}` in command lines.
    pub duration: String,
    pub warmup: String,
    /// It takes long: `lab run` without a name leaves it out, but not `lab run --quick`.
    #[serde(default)]
    pub only_named: bool,
    #[serde(default)]
    pub quick: Overrides,
    #[serde(rename = "table")]
    pub tables: Vec<TableSpec>,
    #[serde(default, rename = "claim")]
    pub claims: Vec<ClaimSpec>,
    #[serde(default, rename = "picture")]
    pub pictures: Vec<PictureSpec>,
}

/// A picture of a lesson as it is written; [`crate::lab::plan::picture`] checks it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PictureSpec {
    pub id: Spanned<String>,
    pub title: Spanned<String>,
    pub kind: PictureKind,
    /// The table whose rows are drawn, or several.
    pub table: Spanned<OneOrSeveral<AxisValue>>,
    /// An axis, or a column.
    pub x: Option<Spanned<String>>,
    /// What the axis is called; its own name where nothing is said.
    pub x_title: Option<String>,
    /// A column, or several.
    pub y: Option<Spanned<OneOrSeveral<AxisValue>>>,
    /// A column that is marked in each bar: a law beside what was measured.
    pub mark: Option<Spanned<String>>,
    /// What has a logarithmic scale: `["x", "y"]`.
    #[serde(default)]
    pub log: Vec<Direction>,
    /// Rows with these values of an axis, or of `server`, alone are drawn; a server as in a claim.
    #[serde(default)]
    pub only: BTreeMap<String, Spanned<OneOrSeveral<AxisValue>>>,
    /// What servers are called, by their command line or words of it.
    #[serde(default)]
    pub names: BTreeMap<String, Spanned<String>>,
    /// Curves of queueing theory beside response times, for arrivals by chance.
    #[serde(default)]
    pub theory: Vec<TheorySpec>,
    /// Shown at the end of a run of several lessons.
    #[serde(default)]
    pub headline: bool,
    /// Figures from elsewhere, marked beside ours.
    #[serde(default)]
    pub published: Vec<PublishedPoint>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PictureKind {
    /// Lines over `x`, one for each server; beside one another, one for each `y`.
    Lines,
    /// A bar for each row; beside one another, one picture for each table and each value of the axis `x`, if it is
    /// given.
    Bars,
    /// Each worker's share of the connections beside what chance would give, a small picture for each row.
    Shares,
    /// The share of the requests over the response time that they took at most; a curve for each row.
    Distribution,
    /// Answers per second above their p99 over the time of one run, with the events marked; a small picture for each
    /// row.
    OverTime,
    /// The columns `y` end to end, a bar for each row.
    Stack,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    X,
    Y,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TheorySpec {
    pub name: String,
    /// The workers and the requests are divided among so many queues.
    pub queues: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedPoint {
    /// The per cent of the requests that took at most the value.
    pub at: f64,
    pub value: f64,
    pub label: String,
}

/// A value, or a list of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum OneOrSeveral<T> {
    One(T),
    Several(Vec<T>),
}

impl<T> OneOrSeveral<T> {
    pub fn all(&self) -> &[T] {
        match self {
            OneOrSeveral::One(value) => std::slice::from_ref(value),
            OneOrSeveral::Several(values) => values,
        }
    }
}

impl OneOrSeveral<AxisValue> {
    pub fn texts(&self) -> Vec<String> {
        self.all().iter().map(AxisValue::to_string).collect()
    }
}

/// What the plan must know of a column. The columns are defined behind the plan, where rows become tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColumnKind {
    Number { unit: String },
    Picture,
}

/// The column of this name.
pub type FindColumn = fn(&str) -> Option<ColumnKind>;

/// One table of the results: every server under every client, for every combination of the axes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableSpec {
    pub id: String,
    pub title: String,
    #[serde(default)]
    pub kind: TableKind,
    pub server: Vec<ServerSpec>,
    /// Appended to every server's command line.
    #[serde(default)]
    pub server_flags: Option<Spanned<String>>,
    /// One client's command line, or several to be compared.
    pub load: Spanned<OneOrSeveral<ClientSpec>>,
    #[serde(default)]
    pub axes: BTreeMap<String, Vec<AxisValue>>,
    pub columns: Vec<Spanned<String>>,
    /// What rows are compared with: the row that differs in exactly these coordinates (`server`, `client`, an axis).
    #[serde(default)]
    pub baseline: BTreeMap<String, Spanned<AxisValue>>,
    /// Indices into the CPUs the lab may use; all of them when absent.
    #[serde(default)]
    pub server_cpus: Vec<usize>,
    #[serde(default)]
    pub client_cpus: Vec<usize>,
    /// Count threads, descriptors and memory during the warm-up, which must be long enough for it.
    #[serde(default)]
    pub probe: bool,
    /// What is done to the server once the client measures, see [`crate::lab::plan::events`].
    #[serde(default, rename = "disturb")]
    pub events: Option<Spanned<String>>,
    /// Kernel settings for the time of a run, see [`crate::lab::run::sysctl`].
    #[serde(default)]
    pub sysctl: BTreeMap<String, Spanned<String>>,
    /// Record each worker's open connections over the time of the run.
    #[serde(default)]
    pub timeline: bool,
    pub repeats: Option<usize>,
    pub duration: Option<String>,
    pub warmup: Option<String>,
    #[serde(default)]
    pub quick: Overrides,
}

impl TableSpec {
    /// The coordinates of what a row is compared with.
    pub fn baseline_of(&self, coordinates: &[(String, String)]) -> Vec<(String, String)> {
        let value = |name: &String, own: &String| {
            self.baseline.get(name).map_or(own.clone(), |value| value.get_ref().to_string())
        };
        coordinates.iter().map(|(name, own)| (name.clone(), value(name, own))).collect()
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TableKind {
    /// A row per case, medians in the cells.
    #[default]
    Summary,
    /// The first answers of one run, one by one, as siege prints them.
    Trace,
    /// A row per program that is no server: it runs to its end, again and again (`load = "runs 50"`), and each time
    /// prints JSON lines with an `id`. In how many orders do they come?
    Orders,
    /// A row per program that is tried (a manager, a server, a tool: it stands where servers do), with the numbers of a
    /// trial (`load = "trial NAME"`). `duration` says about how long it takes.
    Trials,
}

/// One server of a table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerSpec {
    /// Its command line, which is also its name in the table.
    pub run: Spanned<String>,
    /// The law it should follow, see [`crate::lab::plan::law`].
    pub law: Option<Spanned<String>>,
    /// Requests without an answer are normal for this server, and no failure of the run.
    #[serde(default)]
    pub expect_timeouts: bool,
    /// Its workers die during the run. With the last of them the server may end by itself.
    #[serde(default)]
    pub expect_death: bool,
    /// A server of another project, which prints neither a `ready` line nor a report: see
    /// [`crate::lab::run::contender`].
    #[serde(default)]
    pub contender: bool,
    /// The signal at which its first process replaces the workers; SIGHUP, as the contract has it, where nothing is
    /// said.
    pub reload: Option<Spanned<String>>,
}

impl ServerSpec {
    pub fn reload_signal(&self) -> Result<Signal, MatrixError> {
        let Some(name) = &self.reload else { return Ok(Signal::SIGHUP) };
        let what = || format!("{:?} is not a signal; write it like SIGUSR2", name.get_ref());
        name.get_ref().parse().map_err(|_| MatrixError::at(name.span(), what()))
    }
}

/// One client of a table: its command line, and a name where the program's own name is not enough.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum ClientSpec {
    Plain(String),
    Named { name: String, run: String },
}

impl ClientSpec {
    pub fn run(&self) -> &str {
        match self {
            ClientSpec::Plain(run) | ClientSpec::Named { run, .. } => run,
        }
    }

    pub fn name(&self) -> Option<&str> {
        match self {
            ClientSpec::Plain(_) => None,
            ClientSpec::Named { name, .. } => Some(name),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum AxisValue {
    Integer(i64),
    Text(String),
}

impl From<&str> for AxisValue {
    fn from(text: &str) -> AxisValue {
        text.parse().map_or_else(|_| AxisValue::Text(text.to_string()), AxisValue::Integer)
    }
}

impl std::fmt::Display for AxisValue {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            AxisValue::Integer(value) => value.fmt(f),
            AxisValue::Text(value) => value.fmt(f),
        }
    }
}

/// A number of a table as the matrix writes it: `table`, `column`, and as many coordinates as it takes to name one row.
pub type CellSpec = BTreeMap<String, Spanned<AxisValue>>;

/// What the lesson says, see [`crate::lab::plan::claim`].
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimSpec {
    pub id: Spanned<String>,
    pub says: String,
    pub value: Option<Spanned<CellSpec>>,
    /// What the value is divided by. What it leaves out is taken from `value`.
    pub over: Option<Spanned<CellSpec>>,
    /// What is subtracted from the value.
    pub minus: Option<Spanned<CellSpec>>,
    /// What the number must reach, with its unit.
    pub bar: Option<Spanned<String>>,
    /// Where a figure from elsewhere was published, and that figure.
    pub source: Option<String>,
    pub published: Option<Spanned<f64>>,
    /// It counts something exact: `lab verify` asserts it on any machine.
    #[serde(default)]
    pub counted: bool,
    /// Why it fails or stays undecided on the machine of the repository's records.
    pub why: Option<String>,
    /// Why no row can prove it yet.
    pub skipped: Option<String>,
}

/// What `--quick` changes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overrides {
    /// 0 leaves the table out.
    pub repeats: Option<usize>,
    pub duration: Option<String>,
    pub warmup: Option<String>,
    #[serde(default)]
    pub axes: BTreeMap<String, Vec<AxisValue>>,
}

/// What is wrong in a matrix, and where: a byte range of the block, if it has a place.
#[derive(Debug)]
pub struct MatrixError {
    pub span: Option<Range<usize>>,
    pub what: String,
}

/// Refuses an id that is not a name, or that one before has.
pub fn check_id<'a>(
    what: &str,
    id: &Spanned<String>,
    mut before: impl Iterator<Item = &'a String>,
) -> Result<(), MatrixError> {
    let name = id.get_ref();
    let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || !name.bytes().all(is_name) {
        return Err(MatrixError::at(id.span(), format!("the id {name:?} is not small letters, digits and hyphens")));
    }
    match before.any(|other| other == name) {
        true => Err(MatrixError::at(id.span(), format!("two {what} have the id {name:?}; rename one"))),
        false => Ok(()),
    }
}

impl MatrixError {
    pub fn at(span: Range<usize>, what: String) -> MatrixError {
        MatrixError { span: Some(span), what }
    }

    pub fn anywhere(what: String) -> MatrixError {
        MatrixError { span: None, what }
    }
}
