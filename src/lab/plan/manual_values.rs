//! A part of an experiment with values of one's own: `lab run 6 --table herd --set workers=1,4,32,64`. What it measures
//! is shown, and no page and no claim is made from it, because the lesson does not ask this.

use crate::lab::plan::case;
use crate::lab::plan::experiment::Experiment;
use crate::lab::plan::matrix::{AxisValue, TableSpec};

/// What the command line asks for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ManualValues {
    /// Ids of tables; every table that has the axes when empty.
    pub tables: Vec<String>,
    pub axes: Vec<Axis>,
}

/// An axis and the values it is to have: `workers=1,4`.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    name: String,
    values: Vec<String>,
}

impl std::str::FromStr for Axis {
    type Err = String;

    fn from_str(text: &str) -> Result<Axis, String> {
        let (name, values) = text.split_once('=').ok_or("an axis and its values are written AXIS=VALUE,VALUE")?;
        // A mixture of work, `90%none,10%spin:5ms`, is one value.
        let values: Vec<String> = match values.contains('%') {
            true => vec![values.to_string()],
            false => values.split(',').map(|value| value.trim().to_string()).collect(),
        };
        if values.iter().any(String::is_empty) {
            return Err(format!("a value of {name:?} is empty; write {name}=1,4"));
        }
        Ok(Axis { name: name.trim().to_string(), values })
    }
}

/// As it is written on the command line: the mark of what is measured this way.
impl std::fmt::Display for ManualValues {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let tables = self.tables.iter().map(|id| format!("--table {id}"));
        let axes = self.axes.iter().map(|axis| format!("--set {}={}", axis.name, axis.values.join(",")));
        f.write_str(&tables.chain(axes).collect::<Vec<_>>().join(" "))
    }
}

impl ManualValues {
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.axes.is_empty()
    }

    /// The experiment with these tables only, and without claims and pictures: their rows may not be there.
    ///
    /// # Errors
    /// When there is no such table or axis: one line that lists those there are.
    pub fn narrow(&self, experiment: &Experiment) -> Result<Experiment, String> {
        let mut narrowed = experiment.clone();
        let (matrix, name) = (&mut narrowed.matrix, &experiment.name);
        let known: Vec<String> = matrix.tables.iter().map(|table| table.id.clone()).collect();
        if let Some(unknown) = self.tables.iter().find(|id| !known.contains(id)) {
            return Err(format!("{name} has no table {unknown:?}; there are {}", known.join(", ")));
        }
        matrix.tables.retain(|table| self.tables.is_empty() || self.tables.contains(&table.id));
        let has_axes = |table: &TableSpec| self.axes.iter().all(|axis| table.axes.contains_key(&axis.name));
        if let Some(lacking) = matrix.tables.iter().find(|table| !has_axes(table))
            && (!self.tables.is_empty() || !matrix.tables.iter().any(has_axes))
        {
            let missing = self.axes.iter().find(|axis| !lacking.axes.contains_key(&axis.name));
            let missing = missing.map_or("", |axis| &axis.name);
            let axes = |table: &TableSpec| table.axes.keys().cloned().collect::<Vec<_>>().join(", ");
            let all: Vec<String> =
                matrix.tables.iter().map(|table| format!("{}: {}", table.id, or_none(&axes(table)))).collect();
            return Err(format!("no axis {missing:?}; the axes of each table are {}", all.join("; ")));
        }
        matrix.tables.retain(has_axes);
        for table in &mut matrix.tables {
            for Axis { name, values } in &self.axes {
                table.axes.insert(name.clone(), values.iter().map(|value| AxisValue::from(value.as_str())).collect());
                table.quick.axes.remove(name);
            }
        }
        matrix.quick.axes.retain(|name, _| {
            let is_set = self.axes.iter().any(|axis| axis.name == *name);
            !is_set && matrix.tables.iter().any(|table| table.axes.contains_key(name))
        });
        matrix.claims.clear();
        matrix.pictures.clear();
        narrowed.claims.clear();
        narrowed.pictures.clear();
        narrowed.manual_values = Some(self.to_string());
        for quick in [false, true] {
            case::expand(name, &narrowed.matrix, quick).map_err(|error| format!("{name} {self}: {}", error.what))?;
        }
        Ok(narrowed)
    }
}

fn or_none(axes: &str) -> &str {
    if axes.is_empty() { "none" } else { axes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::plan::experiment::tests::parse_lesson;

    const TABLES: &str = r#"
server = [{ run = "prefork --workers {workers}" }]
load = "loadgen --connections {connections}"
axes = { workers = [1, 2], connections = [8] }
columns = ["qps"]
quick = { axes = { workers = [2] } }
[[table]]
id = "other"
title = "O"
server = [{ run = "sync" }]
load = "loadgen"
columns = ["qps"]"#;

    fn narrow(tables: &[&str], axes: &[&str]) -> Result<Vec<String>, String> {
        let tables = tables.iter().map(|id| id.to_string()).collect();
        let axes = axes.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        let narrowed = ManualValues { tables, axes }.narrow(&parse_lesson(TABLES).unwrap())?;
        Ok(narrowed.cases(true).iter().map(|case| case.server.text().to_string()).collect())
    }

    #[test]
    fn an_axis_set_by_hand_counts_with_quick_too_and_tables_without_it_are_left_out() {
        let listen = "--listen 127.0.0.1:0";
        let two = [format!("prefork --workers 4 {listen}"), format!("prefork --workers 64 {listen}")];
        assert_eq!(narrow(&[], &["workers=4,64"]).unwrap(), two);
        assert_eq!(narrow(&["other"], &[]).unwrap(), [format!("sync {listen}")]);
        assert_eq!(narrow(&["t"], &[]).unwrap(), [format!("prefork --workers 2 {listen}")]);
    }

    #[test]
    fn what_is_not_there_is_answered_with_what_there_is() {
        assert_eq!(narrow(&["x"], &[]).unwrap_err(), "02-keep-alive has no table \"x\"; there are t, other");
        let axes = "no axis \"cores\"; the axes of each table are t: connections, workers; other: none";
        assert_eq!(narrow(&[], &["cores=1"]).unwrap_err(), axes);
        let of_one = narrow(&["other"], &["workers=1"]).unwrap_err();
        assert_eq!(of_one, "no axis \"workers\"; the axes of each table are other: none");
        for wrong in ["workers", "workers=", "workers=1,,2"] {
            assert!(wrong.parse::<Axis>().is_err(), "{wrong}");
        }
        let mixture: Axis = "work=90%none,10%spin:5ms".parse().unwrap();
        assert_eq!(mixture.values.len(), 1);
    }

    #[test]
    fn the_mark_is_what_was_asked() {
        let manual_values = ManualValues { tables: vec!["t".to_string()], axes: vec!["workers=1, 4".parse().unwrap()] };
        assert_eq!(manual_values.to_string(), "--table t --set workers=1,4");
    }
}
