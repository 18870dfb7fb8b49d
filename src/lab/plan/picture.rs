//! Pictures: which rows and columns of a lesson are drawn, and how. Each is a `[[picture]]` of the matrix and is
//! checked when the file is read. [`crate::lab::evidence::pictures`] draws them.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::lab::plan::case::Case;
use crate::lab::plan::claim::{chosen, distinct};
use crate::lab::plan::matrix::{
    ColumnKind, Direction, FindColumn, Matrix, MatrixError, PictureKind, PictureSpec, PublishedPoint, TheorySpec,
    check_id,
};

/// One line above a picture.
const LONGEST_TITLE: usize = 96;

/// A checked picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    pub id: String,
    pub title: String,
    pub kind: PictureKind,
    pub tables: Vec<String>,
    pub x: Option<X>,
    pub x_title: Option<String>,
    /// Columns.
    pub y: Vec<String>,
    pub mark: Option<String>,
    pub log_x: bool,
    pub log_y: bool,
    /// The values that are drawn, by coordinate; all of them where there is none.
    pub only: BTreeMap<String, Vec<String>>,
    /// The name of each server in the picture, by the server as a row's coordinate has it.
    pub names: BTreeMap<String, String>,
    pub theory: Vec<TheorySpec>,
    pub headline: bool,
    pub published: Vec<Published>,
}

impl Picture {
    /// A curve needs more than lines of characters.
    pub fn fits_a_terminal(&self) -> bool {
        !matches!(self.kind, PictureKind::Distribution | PictureKind::OverTime)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum X {
    Axis(String),
    Column(String),
}

/// A figure from elsewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// The per cent of the requests that took at most the value.
    pub percent: f64,
    pub value: f64,
    pub label: String,
}

/// The pictures of a matrix, or the first thing in them that cannot be drawn. `cases` are those of the full scale.
pub fn resolve(matrix: &Matrix, find_column: FindColumn, cases: &[Case]) -> Result<Vec<Picture>, MatrixError> {
    let mut pictures: Vec<Picture> = Vec::new();
    for spec in &matrix.pictures {
        let picture = one(spec, find_column, cases)?;
        check_id("pictures", &spec.id, pictures.iter().map(|other| &other.id))?;
        pictures.push(picture);
    }
    Ok(pictures)
}

fn one(spec: &PictureSpec, find_column: FindColumn, cases: &[Case]) -> Result<Picture, MatrixError> {
    let length = spec.title.get_ref().chars().count();
    if length > LONGEST_TITLE {
        let what = format!("a title of {length} characters is wider than a picture; {LONGEST_TITLE} are not");
        return Err(MatrixError::at(spec.title.span(), what));
    }
    let tables = spec.table.get_ref().texts();
    for id in &tables {
        if !cases.iter().any(|case| case.table.id == *id) {
            let known = distinct(cases.iter().map(|case| &case.table.id));
            return Err(MatrixError::at(spec.table.span(), format!("there is no table {id:?}; there are {known}")));
        }
    }
    let of_tables: Vec<&Case> = cases.iter().filter(|case| tables.contains(&case.table.id)).collect();
    let column = |name: &str, span: Range<usize>| match find_column(name) {
        Some(ColumnKind::Number { .. }) => Ok(name.to_string()),
        Some(ColumnKind::Picture) => Err(MatrixError::at(span, format!("the column {name:?} holds no number"))),
        None => Err(MatrixError::at(span, format!("no column {name:?}; `lab explain` lists them"))),
    };
    let y = spec.y.as_ref().map_or(Ok(Vec::new()), |names| {
        names.get_ref().texts().iter().map(|name| column(name, names.span())).collect::<Result<Vec<_>, _>>()
    })?;
    let x = match &spec.x {
        Some(name) if has_axis(&of_tables, name.get_ref()) => Some(X::Axis(name.get_ref().clone())),
        Some(name) => Some(X::Column(column(name.get_ref(), name.span())?)),
        None => None,
    };
    let refuse =
        |what: &str| Err(MatrixError::at(spec.id.span(), format!("the picture {:?} {what}", spec.id.get_ref())));
    match (spec.kind, &x, y.len()) {
        (PictureKind::Lines, Some(_), 1..) | (PictureKind::Bars, None | Some(X::Axis(_)), 1) => {}
        (PictureKind::Shares | PictureKind::Distribution | PictureKind::OverTime, None, 0) => {}
        (PictureKind::Stack, None, 2..) => {}
        (PictureKind::Lines, ..) => return refuse("of lines needs an `x` and a `y`"),
        (PictureKind::Bars, ..) => return refuse("of bars needs one `y`; its `x`, if any, is an axis"),
        (PictureKind::Stack, ..) => return refuse("of a stack needs several `y`, and no `x`"),
        _ => return refuse("needs neither `x` nor `y`"),
    }
    let published =
        |point: &PublishedPoint| Published { percent: point.at, value: point.value, label: point.label.clone() };
    Ok(Picture {
        id: spec.id.get_ref().clone(),
        title: spec.title.get_ref().clone(),
        kind: spec.kind,
        theory: spec.theory.clone(),
        headline: spec.headline,
        published: spec.published.iter().map(published).collect(),
        x,
        x_title: spec.x_title.clone(),
        y,
        mark: spec.mark.as_ref().map(|name| column(name.get_ref(), name.span())).transpose()?,
        log_x: spec.log.contains(&Direction::X),
        log_y: spec.log.contains(&Direction::Y),
        only: only(spec, &of_tables)?,
        names: names(spec, &of_tables)?,
        tables,
    })
}

fn has_axis(cases: &[&Case], name: &str) -> bool {
    cases.iter().any(|case| case.coordinates.iter().any(|(axis, _)| axis == name))
}

/// The coordinates that are drawn, each as the rows have it.
fn only(spec: &PictureSpec, cases: &[&Case]) -> Result<BTreeMap<String, Vec<String>>, MatrixError> {
    let mut only = BTreeMap::new();
    for (axis, wanted) in &spec.only {
        let wanted_values = wanted.get_ref().texts();
        let values = wanted_values.iter().map(|value| values(cases, axis, value, wanted.span()));
        only.insert(axis.clone(), values.collect::<Result<Vec<_>, _>>()?.concat());
    }
    Ok(only)
}

fn names(spec: &PictureSpec, cases: &[&Case]) -> Result<BTreeMap<String, String>, MatrixError> {
    let mut names = BTreeMap::new();
    for (server, name) in &spec.names {
        for value in values(cases, "server", server, name.span())? {
            names.insert(value, name.get_ref().clone());
        }
    }
    Ok(names)
}

/// The values of a coordinate that this one names: several servers may have the same words.
fn values(cases: &[&Case], axis: &str, wanted: &str, span: Range<usize>) -> Result<Vec<String>, MatrixError> {
    let of = |case: &&Case| case.coordinates.iter().find(|(name, _)| name == axis).map(|(_, value)| value.clone());
    let mut values: Vec<String> = chosen(cases, axis, wanted).iter().filter_map(of).collect();
    values.sort();
    values.dedup();
    if values.is_empty() {
        let known = distinct(cases.iter().filter_map(of));
        return Err(MatrixError::at(span, format!("no row has {axis} = {wanted:?}; there is {known}")));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::plan::experiment::tests::parse_lesson;

    const LESSON: &str = "server = [{ run = \"sync\" }, { run = \"prefork --workers {w}\" }]\nload = \"loadgen\"\n\
                          axes = { w = [1, 2] }\ncolumns = [\"qps\"]\n[[picture]]\nid = \"p\"\ntitle = \"T\"\n\
                          kind = \"lines\"\ntable = \"t\"\nx = \"w\"\ny = \"qps\"\nonly = { server = \"prefork\" }\n\
                          names = { prefork = \"forked\" }";

    #[test]
    fn a_picture_names_its_rows_as_a_claim_does() {
        let picture = parse_lesson(LESSON).unwrap().pictures.remove(0);
        assert_eq!((picture.x, picture.y), (Some(X::Axis("w".to_string())), vec!["qps".to_string()]));
        assert_eq!(picture.only["server"], ["prefork --workers {w}"]);
        assert_eq!(picture.names["prefork --workers {w}"], "forked");
    }

    #[test]
    fn what_cannot_be_drawn_is_refused_with_its_line() {
        for (from, to, line, told) in [
            ("y = \"qps\"", "y = \"speed\"", 26, "no column \"speed\""),
            ("x = \"w\"", "x = \"p51\"", 25, "no column \"p51\""),
            ("table = \"t\"", "table = \"u\"", 24, "no table \"u\"; there are t"),
            ("only = { server = \"prefork\" }", "only = { w = 3 }", 27, "no row has w = \"3\"; there is 1, 2"),
            ("names = { prefork", "names = { pre", 28, "no row has server = \"pre\""),
            ("x = \"w\"\n", "", 21, "needs an `x` and a `y`"),
            ("kind = \"lines\"", "kind = \"pie\"", 23, "unknown variant `pie`"),
        ] {
            let (at, what) = parse_lesson(&LESSON.replacen(from, to, 1)).unwrap_err();
            assert!(what.contains(told), "{what}");
            assert_eq!(at, line, "{what}");
        }
    }
}
