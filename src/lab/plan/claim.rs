//! Claims: what a lesson says, in a form that rows can confirm or refute. Each is a `[[claim]]` of the matrix. It is
//! checked when the file is read, so that a claim about a row that no case has is found before anything is measured.

use std::fmt;
use std::ops::Range;

use toml::Spanned;

use crate::lab::plan::case::Case;
use crate::lab::plan::matrix::{AxisValue, CellSpec, ClaimSpec, ColumnKind, FindColumn, Matrix, MatrixError, check_id};

/// The unit of a ratio.
const TIMES: &str = "times";

/// A checked claim.
#[derive(Debug, Clone, PartialEq)]
pub struct Claim {
    pub id: String,
    pub says: String,
    pub basis: Basis,
    /// Where a figure from elsewhere was published.
    pub source: Option<String>,
    /// That figure, in the bar's unit.
    pub published: Option<f64>,
    /// It counts something exact: `lab verify` asserts it on any machine.
    pub is_counted: bool,
    /// Why it fails or stays undecided on the machine of the repository's records.
    pub why: Option<String>,
}

/// What a claim is judged by.
#[derive(Debug, Clone, PartialEq)]
pub enum Basis {
    Measured(Box<Comparison>),
    /// No experiment for it exists: the reason.
    Nothing(String),
}

/// A number of one row, or of two rows, and the bar that it must reach.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    pub value: Cell,
    pub other: Option<(Operation, Cell)>,
    pub bar: Bar,
    /// How many of the bar's units make one of the column's: a bar for microseconds may be in milliseconds or seconds.
    pub scale: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Over,
    Minus,
}

/// One column of the runs of one case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    pub table: String,
    pub column: String,
    /// All coordinates of the case.
    pub coordinates: Vec<(String, String)>,
    /// The coordinates of the case with `--quick`, whose axes may have other values; absent where no case or several
    /// fit.
    pub quick: Option<Vec<(String, String)>>,
}

/// The values that a claim allows, from `low` to `high`; one of the two may be infinite.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    pub low: f64,
    pub high: f64,
    pub unit: String,
}

impl Claim {
    /// What is compared, where there is an experiment for it.
    pub fn comparison(&self) -> Option<&Comparison> {
        match &self.basis {
            Basis::Measured(comparison) => Some(comparison),
            Basis::Nothing(_) => None,
        }
    }

    /// The cells that its verdict depends on.
    pub fn cells(&self) -> impl Iterator<Item = &Cell> {
        let comparison = self.comparison().into_iter();
        comparison.flat_map(|it| [Some(&it.value), it.other.as_ref().map(|(_, cell)| cell)]).flatten()
    }

    /// Whether its verdict depends on this case.
    pub fn uses(&self, case: &Case) -> bool {
        self.cells().any(|cell| cell.is_at(&case.table.id, &case.coordinates))
    }
}

impl Comparison {
    /// Whether the bar is a number of the column as it is: not a ratio, and not in another unit of time.
    pub fn bar_is_in_the_columns_unit(&self) -> bool {
        self.scale == 1.0 && !matches!(self.other, Some((Operation::Over, _)))
    }
}

impl Cell {
    /// Whether a case, or a run of it, is its row.
    pub fn is_at(&self, table: &str, coordinates: &[(String, String)]) -> bool {
        self.table == table && (self.coordinates == coordinates || self.quick.as_deref() == Some(coordinates))
    }
}

impl Bar {
    /// `>= 25.6 switches/connection`, `<= 0.1 %` or `0.95..1.05 times`.
    fn parse(text: &str) -> Result<Bar, String> {
        let form = || {
            let forms = "`>= 25.6 switches/connection`, `<= 0.1 %` or `0.95..1.05 times`";
            format!("{text:?} is not a bar; write a comparison, a number and a unit, like {forms}")
        };
        let number = |text: &str| text.trim().parse::<f64>().ok().filter(|it| it.is_finite()).ok_or_else(form);
        let with_unit = |text: &str| match text.trim().split_once(' ') {
            Some((value, unit)) => Ok((number(value)?, unit.trim().to_string())),
            None => Err(format!("the bar has no unit: {}", form())),
        };
        let text = text.trim();
        if let Some(rest) = text.strip_prefix(">=") {
            let (low, unit) = with_unit(rest)?;
            return Ok(Bar { low, high: f64::INFINITY, unit });
        }
        if let Some(rest) = text.strip_prefix("<=") {
            let (high, unit) = with_unit(rest)?;
            return Ok(Bar { low: f64::NEG_INFINITY, high, unit });
        }
        let (low, rest) = text.split_once("..").ok_or_else(form)?;
        let (low, (high, unit)) = (number(low)?, with_unit(rest)?);
        if low > high {
            return Err(format!("{text:?} is an empty range; write the smaller number first"));
        }
        Ok(Bar { low, high, unit })
    }

    pub fn contains(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

impl fmt::Display for Bar {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Bar { low, high, unit } = self;
        match (low.is_finite(), high.is_finite()) {
            (true, false) => write!(f, "≥ {low} {unit}"),
            (false, _) => write!(f, "≤ {high} {unit}"),
            _ => write!(f, "{low} to {high} {unit}"),
        }
    }
}

/// What claims are about.
pub struct Subject<'a> {
    pub full: &'a [Case],
    pub quick: &'a [Case],
    pub find_column: FindColumn,
}

/// The claims of a matrix, or the first thing in them that makes no sense.
pub fn resolve(matrix: &Matrix, subject: &Subject) -> Result<Vec<Claim>, MatrixError> {
    let mut claims: Vec<Claim> = Vec::new();
    for spec in &matrix.claims {
        let claim = one(spec, subject)?;
        check_id("claims", &spec.id, claims.iter().map(|other| &other.id))?;
        if claim.is_counted && !claim.cells().all(|cell| cell.quick.is_some()) {
            let what = "is counted, so `lab verify` asserts it; keep its rows in the quick axes";
            return Err(MatrixError::at(spec.id.span(), format!("the claim {:?} {what}", claim.id)));
        }
        claims.push(claim);
    }
    Ok(claims)
}

fn one(spec: &ClaimSpec, subject: &Subject) -> Result<Claim, MatrixError> {
    let refuse = |what: &str| Err(MatrixError::at(spec.id.span(), format!("the claim {:?} {what}", spec.id.get_ref())));
    let basis = match (&spec.skipped, &spec.value, &spec.bar) {
        (Some(reason), None, None) => Basis::Nothing(reason.clone()),
        (Some(_), _, _) => return refuse("is skipped, so that it has neither a value nor a bar; remove them"),
        (None, Some(value), Some(bar)) => Basis::Measured(Box::new(compare(spec, value, bar, subject)?)),
        (None, None, _) => return refuse("has no value; write `value = { table = …, column = …, server = … }`"),
        (None, _, None) => return refuse("has no bar; write `bar = \">= 25.6 switches/connection\"`"),
    };
    if let (Some(published), None) = (&spec.published, &spec.source) {
        let what = "a published figure needs its `source`".to_string();
        return Err(MatrixError::at(published.span(), what));
    }
    Ok(Claim {
        id: spec.id.get_ref().clone(),
        says: spec.says.clone(),
        basis,
        source: spec.source.clone(),
        published: spec.published.as_ref().map(|figure| *figure.get_ref()),
        is_counted: spec.counted,
        why: spec.why.clone(),
    })
}

fn compare(
    spec: &ClaimSpec,
    value: &Spanned<CellSpec>,
    bar: &Spanned<String>,
    subject: &Subject,
) -> Result<Comparison, MatrixError> {
    let (cell, unit) = resolve_cell(value.get_ref(), value.span(), subject)?;
    let (operation, other) = match (&spec.over, &spec.minus) {
        (None, None) => (Operation::Over, None),
        (Some(other), None) => (Operation::Over, Some(other)),
        (None, Some(other)) => (Operation::Minus, Some(other)),
        (Some(_), Some(other)) => {
            return Err(MatrixError::at(other.span(), "write `over` or `minus`, not both".to_string()));
        }
    };
    let resolve_other = |other: &Spanned<CellSpec>| {
        let merged = merge(value.get_ref(), other.get_ref(), subject.full);
        let (other_cell, other_unit) = resolve_cell(&merged, other.span(), subject)?;
        let refuse = |what: String| Err(MatrixError::at(other.span(), what));
        if other_cell == cell {
            return refuse("a row is compared with itself; name another row or column".to_string());
        }
        if operation == Operation::Minus && !is_same(&other_unit, &unit) {
            return refuse(format!(
                "{other_unit:?} cannot be subtracted from {unit:?}; name a column of the same unit"
            ));
        }
        Ok((operation, other_cell, other_unit))
    };
    let other = other.map(resolve_other).transpose()?;
    let unit = match &other {
        Some((Operation::Over, _, other_unit)) if is_same(&unit, other_unit) => TIMES.to_string(),
        Some((Operation::Over, _, other_unit)) => format!("{unit} per {}", singular(other_unit)),
        _ => unit,
    };
    let bar_at = |what: String| MatrixError::at(bar.span(), what);
    let parsed = Bar::parse(bar.get_ref()).map_err(bar_at)?;
    let scale = match (unit.as_str(), parsed.unit.as_str()) {
        ("µs", "ms") => 1e-3,
        ("µs", "s") => 1e-6,
        (unit, written) if unit == written => 1.0,
        (unit, written) => {
            return Err(bar_at(format!(
                "the bar is in {written:?}, what it is compared with in {unit:?}; write that unit"
            )));
        }
    };
    let other = other.map(|(operation, cell, _)| (operation, cell));
    Ok(Comparison { value: cell, other, bar: parsed, scale })
}

/// `law requests/s` and `requests/s` count the same thing.
fn is_same(unit: &str, other: &str) -> bool {
    unit.rsplit(' ').next() == other.rsplit(' ').next()
}

/// `death` of `deaths`; a symbol such as `µs` stays.
fn singular(unit: &str) -> &str {
    unit.strip_suffix('s').filter(|word| word.chars().count() > 2).unwrap_or(unit)
}

/// What the other cell leaves out is as in the value's cell, as far as the other table has such an axis.
fn merge(value: &CellSpec, other: &CellSpec, cases: &[Case]) -> CellSpec {
    let table = other.get("table").or(value.get("table")).map(|table| table.get_ref().to_string());
    let first = cases.iter().find(|case| Some(&case.table.id) == table.as_ref());
    let is_known = |name: &str| {
        let is_axis = first.is_some_and(|case| case.coordinates.iter().any(|(axis, _)| axis == name));
        is_axis || ["table", "column"].contains(&name)
    };
    let mut merged = value.clone();
    merged.retain(|name, _| is_known(name));
    merged.extend(other.clone());
    merged
}

/// The one case that a cell names, and the unit of its column.
fn resolve_cell(spec: &CellSpec, span: Range<usize>, subject: &Subject) -> Result<(Cell, String), MatrixError> {
    let required = |name: &str| {
        let what = format!("no {name} is named; write `{name} = …`");
        spec.get(name).ok_or_else(|| MatrixError::at(span.clone(), what))
    };
    let (table, column) = (required("table")?, required("column")?);
    let (id, name) = (table.get_ref().to_string(), column.get_ref().to_string());
    let of_table = of_table(subject.full, &id);
    let Some(first) = of_table.first() else {
        let what =
            format!("there is no table {id:?}; there are {}", distinct(subject.full.iter().map(|case| &case.table.id)));
        return Err(MatrixError::at(table.span(), what));
    };
    if !first.table.columns.iter().any(|column| column.get_ref() == &name) {
        let columns = distinct(first.table.columns.iter().map(Spanned::get_ref));
        let what = format!("table {id:?} has no column {name:?}; it has {columns}");
        return Err(MatrixError::at(column.span(), what));
    }
    let Some(ColumnKind::Number { unit }) = (subject.find_column)(&name) else {
        let what = format!("column {name:?} is a picture; a claim compares numbers");
        return Err(MatrixError::at(column.span(), what));
    };
    let mut rows = of_table.clone();
    for (axis, wanted) in axes(spec) {
        if !first.coordinates.iter().any(|(name, _)| name == axis) {
            let axes = distinct(first.coordinates.iter().map(|(name, _)| name));
            let what = format!("table {id:?} has no axis {axis:?}; it has {axes}");
            return Err(MatrixError::at(wanted.span(), what));
        }
        rows = chosen(&rows, axis, &wanted.get_ref().to_string());
        if rows.is_empty() {
            let values = distinct(of_table.iter().map(|case| shown(case, axis)));
            let what = format!("no row of table {id:?} has {axis} = \"{}\"; it has {values}", wanted.get_ref());
            return Err(MatrixError::at(wanted.span(), what));
        }
    }
    let [row] = rows[..] else {
        let differing = rows[0].coordinates.iter().map(|(axis, _)| axis);
        let differing = differing.filter(|axis| rows.iter().any(|row| shown(row, axis) != shown(rows[0], axis)));
        let choices = differing.map(|axis| format!("{axis} ({})", distinct(rows.iter().map(|row| shown(row, axis)))));
        let choices = choices.collect::<Vec<_>>().join(" or ");
        let what = format!("this names {} rows of table {id:?}; choose by {choices}", rows.len());
        return Err(MatrixError::at(span, what));
    };
    let quick = axes(spec).fold(self::of_table(subject.quick, &id), |rows, (axis, wanted)| {
        chosen(&rows, axis, &wanted.get_ref().to_string())
    });
    let quick = if let [row] = quick[..] { Some(row.coordinates.clone()) } else { None };
    Ok((Cell { table: id, column: name, coordinates: row.coordinates.clone(), quick }, unit))
}

fn of_table<'a>(cases: &'a [Case], id: &str) -> Vec<&'a Case> {
    cases.iter().filter(|case| case.table.id == id).collect()
}

fn axes(spec: &CellSpec) -> impl Iterator<Item = (&String, &Spanned<AxisValue>)> {
    spec.iter().filter(|(name, _)| !["table", "column"].contains(&name.as_str()))
}

/// The rows with this value of an axis. A server is named by its command line, or by consecutive words of it.
pub fn chosen<'a>(rows: &[&'a Case], axis: &str, wanted: &str) -> Vec<&'a Case> {
    let those = |is_wanted: &dyn Fn(&str) -> bool| -> Vec<&'a Case> {
        let written = |case: &Case| case.coordinates.iter().any(|(name, value)| name == axis && is_wanted(value));
        rows.iter().copied().filter(|case| written(case) || is_wanted(shown(case, axis))).collect()
    };
    let exact = those(&|value| value == wanted);
    if axis != "server" || !exact.is_empty() {
        return exact;
    }
    let words: Vec<&str> = wanted.split_whitespace().collect();
    let contains = |value: &str| {
        let all: Vec<&str> = value.split_whitespace().collect();
        !words.is_empty() && all.windows(words.len()).any(|window| window == words)
    };
    those(&contains)
}

/// The value of an axis; of `server` with its placeholders filled in.
fn shown<'a>(case: &'a Case, axis: &str) -> &'a str {
    let value = case.coordinates.iter().find(|(name, _)| name == axis).map_or("", |(_, value)| value);
    if axis == "server" { &case.label } else { value }
}

/// Each value once, in order, separated by commas.
pub fn distinct<'a>(values: impl Iterator<Item = impl AsRef<str> + 'a>) -> String {
    let mut seen: Vec<String> = Vec::new();
    for value in values {
        if !seen.iter().any(|other| other == value.as_ref()) {
            seen.push(value.as_ref().to_string());
        }
    }
    seen.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::plan::experiment::tests::parse_lesson;

    const TABLE: &str = r#"
server = [{ run = "a --wait epoll" }, { run = "a --wait epoll-edge" }, { run = "b" }, { run = "b --fast" }]
load = "loadgen -c {c}"
axes = { c = [1, 8] }
columns = ["qps", "p50", "picture"]
quick = { axes = { c = [8] } }
[[claim]]
id = "x"
says = "X"
"#;

    fn claim(lines: &str) -> Result<Claim, (usize, String)> {
        parse_lesson(&format!("{TABLE}{lines}")).map(|mut experiment| experiment.claims.remove(0))
    }

    fn comparison(lines: &str) -> Comparison {
        claim(lines).unwrap().comparison().unwrap().clone()
    }

    #[test]
    fn an_axis_that_is_not_named_may_have_another_value_in_a_quick_run() {
        let lines = "value = { table = \"t\", column = \"qps\", server = \"b\" }\nbar = \">= 7 requests/s\"";
        let one_value = TABLE.replace("c = [1, 8] }", "c = [1] }");
        let experiment = parse_lesson(&format!("{one_value}{lines}")).unwrap();
        let cell = &experiment.claims[0].comparison().unwrap().value;
        let mut coordinates = cell.coordinates.clone();
        assert_eq!((coordinates[0].1.as_str(), cell.quick.clone().unwrap()[0].1.as_str()), ("1", "8"));
        assert!(cell.is_at("t", &coordinates) && !cell.is_at("u", &coordinates));
        coordinates[0].1 = "8".to_string();
        assert!(cell.is_at("t", &coordinates));
    }

    fn server(cell: &Cell) -> &str {
        &cell.coordinates[1].1
    }

    #[test]
    fn a_row_is_chosen_by_its_coordinates_and_by_words_of_its_server() {
        for (named, chosen) in [
            ("--wait epoll", "a --wait epoll"),
            ("epoll", "a --wait epoll"),
            ("epoll-edge", "a --wait epoll-edge"),
            ("b", "b"),
            ("--fast", "b --fast"),
        ] {
            let lines = format!("value = {{ table = \"t\", column = \"qps\", c = 1, server = \"{named}\" }}\n");
            let comparison = comparison(&(lines + "bar = \">= 7 requests/s\""));
            assert_eq!(server(&comparison.value), chosen);
            assert_eq!(comparison.value.coordinates[0], ("c".to_string(), "1".to_string()));
        }
    }

    #[test]
    fn what_the_other_row_leaves_out_is_taken_from_the_value() {
        let value = "value = { table = \"t\", column = \"qps\", c = 8, server = \"b\" }\n";
        let ratio = comparison(&format!("{value}over = {{ server = \"--fast\" }}\nbar = \"0.5..2 times\""));
        let (operation, other) = ratio.other.unwrap();
        assert_eq!((operation, server(&other)), (Operation::Over, "b --fast"));
        assert_eq!((other.column, other.coordinates[0].1.as_str()), ("qps".to_string(), "8"));
        assert_eq!(ratio.bar, Bar { low: 0.5, high: 2.0, unit: "times".to_string() });
        let difference = comparison(&format!("{value}minus = {{ c = 1 }}\nbar = \"<= -3 requests/s\""));
        let (operation, other) = difference.other.unwrap();
        assert_eq!((operation, other.coordinates[0].1.as_str()), (Operation::Minus, "1"));
        assert_eq!((difference.bar.low, difference.bar.high), (f64::NEG_INFINITY, -3.0));
    }

    #[test]
    fn a_bar_for_microseconds_may_be_in_larger_units() {
        let value = "value = { table = \"t\", column = \"p50\", c = 8, server = \"b\" }\n";
        let scale = |bar: &str| comparison(&format!("{value}bar = \"<= 3 {bar}\"")).scale;
        assert_eq!([scale("µs"), scale("ms"), scale("s")], [1.0, 1e-3, 1e-6]);
    }

    #[test]
    fn a_claim_without_a_design_has_a_reason() {
        let claim = claim("skipped = \"no lock yet\"\nsource = \"a book\"\npublished = 2").unwrap();
        assert_eq!(claim.basis, Basis::Nothing("no lock yet".to_string()));
        assert_eq!(claim.published, Some(2.0));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_line_and_the_remedy() {
        const GOOD: &str = "value = { table = \"t\", column = \"qps\", c = 8, server = \"b\" }\n\
                            over = { server = \"--fast\" }\nbar = \">= 1 times\"\n";
        assert!(claim(GOOD).is_ok());
        for (from, to, line, expected) in [
            ("table = \"t\"", "table = \"u\"", 25, "there is no table \"u\"; there are t"),
            ("column = \"qps\"", "column = \"p51\"", 25, "table \"t\" has no column \"p51\"; it has qps, p50, picture"),
            ("column = \"qps\"", "column = \"picture\"", 25, "is a picture"),
            ("column = \"qps\", ", "", 25, "write `column = …`"),
            ("c = 8", "d = 8", 25, "has no axis \"d\"; it has c, server, client"),
            ("c = 8", "c = 9", 25, "no row of table \"t\" has c = \"9\"; it has 1, 8"),
            ("c = 8, ", "", 25, "this names 2 rows of table \"t\"; choose by c (1, 8)"),
            ("server = \"b\"", "server = \"a\"", 25, "choose by server (a --wait epoll, a --wait epoll-edge)"),
            ("server = \"b\"", "server = \"c\"", 25, "no row of table \"t\" has server = \"c\""),
            ("server = \"--fast\"", "server = \"b\"", 26, "compared with itself"),
            ("server = \"--fast\"", "column = \"p50\"", 27, "is compared with in \"requests/s per µs\""),
            ("over = { server = \"--fast\"", "minus = { column = \"p50\"", 26, "cannot be subtracted"),
            ("bar = \">= 1 times\"", "minus = { c = 1 }\nbar = \">= 1 times\"", 27, "not both"),
            (">= 1 times", ">= 1", 27, "the bar has no unit"),
            (">= 1 times", "> 1 times", 27, "is not a bar"),
            (">= 1 times", "2..1 times", 27, "is an empty range"),
            (">= 1 times", ">= 1 requests/s", 27, "is compared with in \"times\""),
            ("bar = \">= 1 times\"", "", 23, "has no bar"),
            ("bar =", "published = 3\nbar =", 27, "needs its `source`"),
            ("bar =", "skipped = \"no\"\nbar =", 23, "remove them"),
            ("bar =", "colour = 1\nbar =", 27, "colour"),
            ("c = 8", "c = 1", 23, "keep its rows in the quick axes"),
        ] {
            let counted = if expected.contains("quick") { "counted = true\n" } else { "" };
            let broken = GOOD.replacen(from, to, 1) + counted;
            assert_ne!(broken, GOOD);
            let (at, what) = claim(&broken).unwrap_err();
            assert!(what.contains(expected), "{to}: {what}");
            assert_eq!(at, line, "{to}: {what}");
        }
        let again = format!("{GOOD}[[claim]]\nid = \"x\"\nsays = \"X\"\nskipped = \"no\"");
        assert!(claim(&again).unwrap_err().1.contains("two claims have the id"));
    }
}
