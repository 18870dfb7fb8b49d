//! Which file of `src/` imports which: the paths of its code (`use crate::a::{b, c::d}`, `super::x`, `crate::x::y()`),
//! each resolved to the file of the deepest module it names. What `#[cfg(test)]` covers is no part of the program.

use std::collections::{BTreeMap, BTreeSet};

/// A file of `src/` by its module path, as in `load/client/mod` or `http`.
pub type Imports = BTreeMap<String, BTreeSet<String>>;

/// The imports of files given as (path below src without `.rs`, text).
///
/// A folder's `mod.rs` and its files are one room: a file may use what stands in its own `mod.rs`, and that is no
/// arrow.
pub fn imports(files: &[(String, String)]) -> Imports {
    let modules: BTreeMap<Vec<&str>, &str> =
        files.iter().map(|(path, _)| (module(path), path.as_str())).filter(|(module, _)| !module.is_empty()).collect();
    let of = |path: &str, text: &str| {
        let tokens = without_tests(tokens(text));
        let own = module(path);
        let paths = paths(&tokens).into_iter().filter_map(|path| absolute(&own, &path, &modules));
        let files = paths.filter_map(|path| {
            (1..=path.len()).rev().find_map(|length| {
                let prefix: Vec<&str> = path[..length].iter().map(String::as_str).collect();
                modules.get(&prefix).copied()
            })
        });
        let is_own_folder = |file: &str| own.split_last().is_some_and(|(_, folder)| module(file) == folder);
        files.filter(|&file| file != path && !is_own_folder(file)).map(String::from).collect()
    };
    files.iter().map(|(path, text)| (path.clone(), of(path, text))).collect()
}

/// `load/client/mod` is `load::client`; the crate's root is empty.
fn module(path: &str) -> Vec<&str> {
    path.split('/').filter(|&name| name != "mod" && name != "lib").collect()
}

/// The path from the crate's root; `None` for a path into another crate.
fn absolute(own: &[&str], path: &[String], modules: &BTreeMap<Vec<&str>, &str>) -> Option<Vec<String>> {
    let mut base: Vec<String> = own.iter().map(|&name| name.to_string()).collect();
    let mut rest = path;
    match path.first()?.as_str() {
        "crate" => {
            base.clear();
            rest = &path[1..];
        }
        "self" => rest = &path[1..],
        "super" => {
            while rest.first().is_some_and(|name| name == "super") {
                base.pop();
                rest = &rest[1..];
            }
        }
        name => {
            let child: Vec<&str> = own.iter().copied().chain([name]).collect();
            modules.get(&child)?;
        }
    }
    base.extend(rest.iter().cloned());
    Some(base)
}

/// Every path of the code, in full: `use a::{b, c::d}` is two.
fn paths(tokens: &[String]) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at] == "use" {
            at = tree(tokens, at + 1, &[], &mut paths);
        } else if is_name(&tokens[at]) && tokens.get(at + 1).is_some_and(|next| next == "::") {
            let mut path = vec![tokens[at].clone()];
            while tokens.get(at + 1).is_some_and(|next| next == "::")
                && tokens.get(at + 2).is_some_and(|next| is_name(next))
            {
                path.push(tokens[at + 2].clone());
                at += 2;
            }
            paths.push(path);
            at += 1;
        } else {
            at += 1;
        }
    }
    paths
}

/// One branch of a `use`, and where it ends.
fn tree(tokens: &[String], mut at: usize, prefix: &[String], paths: &mut Vec<Vec<String>>) -> usize {
    let mut path = prefix.to_vec();
    while at < tokens.len() {
        match tokens[at].as_str() {
            "{" => {
                at += 1;
                while tokens[at] != "}" {
                    at = tree(tokens, at, &path, paths);
                    at += usize::from(tokens[at] == ",");
                }
                return at + 1;
            }
            "," | "}" | ";" => break,
            "as" => at += 2,
            name => {
                // `use a::{self}` is a; `use self::b` begins with it.
                if is_name(name) && (name != "self" || path.is_empty()) {
                    path.push(name.to_string());
                }
                at += 1;
            }
        }
    }
    paths.push(path);
    at
}

fn is_name(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// Names, `::` and single signs; no comments, no literals.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(length) = string(rest) {
            length
        } else if is_word(first) {
            let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            tokens.push(rest[..length].to_string());
            length
        } else if rest.starts_with("::") {
            tokens.push("::".to_string());
            2
        } else {
            if !first.is_whitespace() {
                tokens.push(first.to_string());
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

/// How long the string or character literal is that the text begins with, if it does.
fn string(text: &str) -> Option<usize> {
    let prefix = ["br", "cr", "r", "b", "c", ""]
        .into_iter()
        .find(|prefix| text.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(['"', '#', '\''])))?;
    let rest = &text[prefix.len()..];
    if prefix.ends_with('r') {
        let hashes = rest.find(|c| c != '#')?;
        let end = format!("\"{}", &rest[..hashes]);
        let inside = rest[hashes..].strip_prefix('"')?;
        return inside.find(&end).map(|at| prefix.len() + hashes + 1 + at + end.len());
    }
    let quote = rest.chars().next().filter(|&quote| quote != '#')?;
    let mut characters = rest.char_indices().skip(1);
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => drop(characters.next()),
            character if character == quote => return Some(prefix.len() + at + 1),
            // A lifetime, not a character: 'a without a second quote.
            _ if quote == '\'' && !rest[at + character.len_utf8()..].starts_with('\'') => return None,
            _ => {}
        }
    }
    None
}

/// Without each item below a `#[cfg(test)]`.
fn without_tests(tokens: Vec<String>) -> Vec<String> {
    const TEST: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at..].len() >= TEST.len() && tokens[at..].iter().zip(TEST).all(|(token, part)| token == part) {
            let mut depth = 0;
            at += TEST.len();
            while at < tokens.len() {
                match tokens[at].as_str() {
                    "{" => depth += 1,
                    "}" => depth -= 1,
                    _ => {}
                }
                at += 1;
                if depth == 0 && matches!(tokens[at - 1].as_str(), ";" | "}") {
                    break;
                }
            }
        } else {
            kept.push(tokens[at].clone());
            at += 1;
        }
    }
    kept
}

/// The circles: each is all files that reach one another.
pub fn circles(imports: &Imports) -> Vec<BTreeSet<&str>> {
    let reached: BTreeMap<&str, BTreeSet<&str>> =
        imports.keys().map(|from| (from.as_str(), reachable(imports, from))).collect();
    let mut circles: Vec<BTreeSet<&str>> = Vec::new();
    for (&from, there) in reached.iter().filter(|(from, there)| there.contains(*from)) {
        let circle = there.iter().copied().filter(|to| reached[to].contains(from)).collect();
        if !circles.contains(&circle) {
            circles.push(circle);
        }
    }
    circles
}

fn reachable<'a>(imports: &'a Imports, from: &str) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&str> = imports[from].iter().map(String::as_str).collect();
    while let Some(file) = next.pop() {
        if reached.insert(file) {
            next.extend(imports.get(file).into_iter().flatten().map(String::as_str));
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrows(files: &[(&str, &str)]) -> Vec<(String, String)> {
        let files: Vec<(String, String)> =
            files.iter().map(|(path, text)| (path.to_string(), text.to_string())).collect();
        let imports = imports(&files);
        imports.into_iter().flat_map(|(from, to)| to.into_iter().map(move |to| (from.clone(), to))).collect()
    }

    #[track_caller]
    fn one_imports(text: &str, expected: &[&str]) {
        let rest = ["two", "a/mod", "a/b", "a/b/c", "room/mod", "room/other"].map(|path| (path, ""));
        let found = arrows(&[&[("room/one", text)], &rest[..]].concat());
        assert_eq!(found.iter().map(|(_, to)| to.as_str()).collect::<Vec<_>>(), expected, "{text}");
    }

    #[test]
    fn the_house_reads_every_way_to_write_a_path() {
        one_imports("use crate::two::X;", &["two"]);
        one_imports("use crate::{two, a::{self, b::{C, c::D}}};", &["a/b", "a/b/c", "a/mod", "two"]);
        one_imports("use super::other::X as Y; fn f() -> super::super::two::Z {}", &["room/other", "two"]);
        one_imports("fn f() { crate::a::g(\"use crate::two;\", 'x', r#\"\"crate::two::\"#) }", &["a/mod"]);
        one_imports("use std::fs; use clap::two; // use crate::two;\nfn f<'a>(x: &'a str) { two::x() }", &[]);
        one_imports("#[cfg(test)]\nmod tests { use crate::two; fn f() {} }\nuse crate::a;", &["a/mod"]);
        one_imports("use super::{X, other}; use self::super::Y;", &["room/other"]);
    }

    #[test]
    fn the_house_sees_a_circle_through_a_mod_rs_and_none_within_one_room() {
        let room = [("a/mod", "mod x; use self::x::X;"), ("a/x", "use super::Y;")];
        let imports = |files: &[(&str, &str)]| {
            imports(&files.iter().map(|(path, text)| (path.to_string(), text.to_string())).collect::<Vec<_>>())
        };
        assert!(circles(&imports(&room)).is_empty());
        let through = [("a/mod", "use x::X;"), ("a/x", "use crate::b;"), ("b", "use crate::a::Y;")];
        assert_eq!(circles(&imports(&through)), [BTreeSet::from(["a/mod", "a/x", "b"])]);
    }
}
