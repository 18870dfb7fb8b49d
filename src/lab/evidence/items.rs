//! Which files of a change can change what a program does, item by item (an item is a function, a type, a constant, …
//! at the top of a file).
//!
//! Comments, unit tests and the visibility of an item change nothing. Neither does an item that has only moved to
//! another file, nor one that is new, as long as nothing that was there before speaks of it: whoever calls a new
//! function has changed as well. Nor one that has gone, if nobody speaks of it. A `use` counts like an item that comes to
//! a file by another way.

use std::collections::{BTreeMap, BTreeSet};

use quote::ToTokens;
use syn::visit_mut::{VisitMut, visit_file_mut};
use syn::{Attribute, Item, Type, UseTree};

/// A file as it was and as it is; empty where there was or is none.
pub struct Changed<'a> {
    pub file: &'a str,
    pub then: String,
    pub now: String,
    /// False where nothing in it, and nothing that it calls, takes part in making rows.
    pub makes_rows: bool,
}

/// The files of them whose change can change what a program does.
pub fn deciding<'a>(changes: &[Changed<'a>]) -> BTreeSet<&'a str> {
    let parse = |change: &Changed<'a>| (change.file, Code::of(&change.then), Code::of(&change.now));
    let files: Vec<(&str, Code, Code)> = changes.iter().map(parse).collect();
    let of_rows = || changes.iter().zip(&files).filter(|(change, _)| change.makes_rows).map(|(_, (_, _, now))| now);
    let has_no_user = |item: &Named| {
        item.kind != Kind::Other && !of_rows().any(|code| code.items.iter().any(|other| other.speaks_of(&item.name)))
    };
    let mut arrived: BTreeMap<&str, usize> = BTreeMap::new();
    let mut new_names = BTreeSet::new();
    for item in files.iter().flat_map(|(_, then, now)| now.without(then)) {
        *arrived.entry(&item.text).or_default() += 1;
        new_names.extend((item.kind == Kind::Own).then_some(&*item.name));
    }
    let (mut moved, mut moved_names) = (BTreeSet::new(), BTreeSet::new());
    let mut found = BTreeSet::new();
    for (file, then, now) in &files {
        for item in then.without(now) {
            new_names.remove(&*item.name);
            match arrived.get_mut(&*item.text).filter(|left| **left > 0) {
                Some(left) => {
                    *left -= 1;
                    moved.insert(&*item.text);
                    moved_names.insert(&*item.name);
                }
                None if has_no_user(item) => {}
                None => drop(found.insert(*file)),
            }
        }
    }
    for (file, then, now) in &files {
        let kept: Vec<&Named> = now.items.iter().filter(|item| then.items.contains(item)).collect();
        let is_spoken_of = |name: &str| kept.iter().any(|item| item.speaks_of(name));
        let meets_the_old = |item: &Named| match item.kind {
            Kind::Own => is_spoken_of(&item.name),
            Kind::Impl => !new_names.contains(&*item.name),
            Kind::Other => true,
        };
        let comes_anew = |(name, path): (&String, &String)| {
            let is_spoken_of = is_spoken_of(name) || (name.starts_with('*') && !kept.is_empty());
            then.uses.get(name) != Some(path) && !moved_names.contains(&**name) && is_spoken_of
        };
        let mut new = now.without(then).filter(|item| !moved.contains(&*item.text));
        if new.any(meets_the_old) || now.uses.iter().any(comes_anew) {
            found.insert(*file);
        }
    }
    changes.iter().filter(|change| change.makes_rows && found.contains(change.file)).map(|change| change.file).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It has a name of its own, and does nothing until that is used.
    Own,
    /// Named by its type.
    Impl,
    /// A static, a macro, or a text that is no Rust.
    Other,
}

#[derive(Debug, PartialEq, Eq)]
struct Named {
    kind: Kind,
    name: String,
    /// Its tokens, a blank between two.
    text: String,
}

impl Named {
    fn speaks_of(&self, name: &str) -> bool {
        self.text.split(' ').any(|word| word == name)
    }
}

/// The items of a file, and the path by which each name of others comes to it.
#[derive(Debug, Default)]
struct Code {
    items: Vec<Named>,
    uses: BTreeMap<String, String>,
}

impl Code {
    fn of(text: &str) -> Code {
        let mut code = Code::default();
        let Ok(mut file) = syn::parse_file(text) else {
            code.items.push(Named { kind: Kind::Other, name: String::new(), text: text.to_string() });
            return code;
        };
        visit_file_mut(&mut WithoutDocs, &mut file);
        let attributes: Vec<String> =
            file.attrs.iter().map(|attribute| attribute.to_token_stream().to_string()).collect();
        code.items.extend(attributes.into_iter().map(|text| Named { kind: Kind::Other, name: String::new(), text }));
        file.items.iter().for_each(|item| code.add(item));
        code
    }

    fn add(&mut self, item: &Item) {
        let text = item.to_token_stream().to_string();
        if text.starts_with("# [cfg (test)]") {
            return;
        }
        let (kind, name) = match item {
            Item::Use(item) => return self.add_use(&item.tree, String::new()),
            Item::Mod(item) if item.content.is_none() => return,
            Item::Const(item) => (Kind::Own, item.ident.to_string()),
            Item::Enum(item) => (Kind::Own, item.ident.to_string()),
            Item::Fn(item) => (Kind::Own, item.sig.ident.to_string()),
            Item::Mod(item) => (Kind::Own, item.ident.to_string()),
            Item::Struct(item) => (Kind::Own, item.ident.to_string()),
            Item::Trait(item) => (Kind::Own, item.ident.to_string()),
            Item::Type(item) => (Kind::Own, item.ident.to_string()),
            Item::Impl(item) => (Kind::Impl, last_name(&item.self_ty)),
            _ => (Kind::Other, String::new()),
        };
        let text = ["pub (crate) ", "pub (super) ", "pub "]
            .iter()
            .fold(&*text, |text, public| text.strip_prefix(public).unwrap_or(text));
        self.items.push(Named { kind, name, text: text.to_string() });
    }

    fn add_use(&mut self, tree: &UseTree, path: String) {
        match tree {
            UseTree::Path(tree) => self.add_use(&tree.tree, format!("{path}{}::", tree.ident)),
            UseTree::Group(tree) => tree.items.iter().for_each(|tree| self.add_use(tree, path.clone())),
            UseTree::Name(tree) if tree.ident == "self" => {
                let path = path.trim_end_matches("::");
                let name = path.rsplit("::").next().unwrap_or_default();
                self.uses.insert(name.to_string(), path.to_string());
            }
            UseTree::Name(tree) => drop(self.uses.insert(tree.ident.to_string(), format!("{path}{}", tree.ident))),
            UseTree::Rename(tree) => drop(self.uses.insert(tree.rename.to_string(), format!("{path}{}", tree.ident))),
            UseTree::Glob(_) => drop(self.uses.insert(format!("*{path}"), path)),
        }
    }

    /// The items that `other` does not have.
    fn without<'a>(&'a self, other: &'a Code) -> impl Iterator<Item = &'a Named> {
        self.items.iter().filter(|item| !other.items.contains(item))
    }
}

/// The name of a type without its path and parameters.
fn last_name(of: &Type) -> String {
    match of {
        Type::Path(of) => of.path.segments.last().map_or(String::new(), |segment| segment.ident.to_string()),
        _ => String::new(),
    }
}

struct WithoutDocs;

impl VisitMut for WithoutDocs {
    fn visit_attributes_mut(&mut self, attributes: &mut Vec<Attribute>) {
        attributes.retain(|attribute| !attribute.path().is_ident("doc"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The files whose change decides, of these: name, then, now.
    fn decide<'a>(files: &[(&'a str, &str, &str)]) -> Vec<&'a str> {
        let change = |&(file, then, now): &(&'a str, &str, &str)| {
            let makes_rows = file != "reader";
            Changed { file, then: then.into(), now: now.into(), makes_rows }
        };
        deciding(&files.iter().map(change).collect::<Vec<_>>()).into_iter().collect()
    }

    #[test]
    fn comments_tests_order_and_visibility_decide_nothing() {
        let then = "//! One.\nuse std::fmt;\nfn a() -> u8 { 1 }\n/// B.\nfn b() { a(); }";
        let now = "//! Two.\nuse std::fmt;\npub(crate) fn b() { a(); } // it\nfn a() -> u8 { 1 }\n\
                   #[cfg(test)]\nmod tests { fn c() {} }";
        assert_eq!(decide(&[("x", then, now)]), [""; 0]);
    }

    #[test]
    fn an_item_decides_when_it_has_changed_or_gone_and_not_when_it_has_moved() {
        let (one, two) = ("fn a() -> u8 { 1 }\nfn b() { a() }", "fn a() -> u8 { 2 }\nfn b() { a() }");
        assert_eq!(decide(&[("x", one, two)]), ["x"]);
        assert_eq!(decide(&[("x", one, "fn b() { a() }")]), ["x"]);
        assert_eq!(decide(&[("x", one, "fn b() { a() }"), ("y", "", "pub fn a() -> u8 { 1 }")]), [""; 0]);
        // Two had it, and now one has.
        assert_eq!(decide(&[("x", one, "fn b() { a() }"), ("y", one, one)]), ["x"]);
        assert_eq!(decide(&[("x", "#![no_std]", "")]), ["x"]);
    }

    #[test]
    fn a_new_item_decides_when_an_old_one_speaks_of_it() {
        let then = "use o::a;\nfn b() { a(); }";
        assert_eq!(decide(&[("x", then, "use o::a;\nfn b() { a(); }\nfn c() {}")]), [""; 0]);
        assert_eq!(decide(&[("x", then, "fn b() { a(); }\nfn a() {}")]), ["x"]);
        let structure = "use o::a;\nfn b() { a(); }\nstruct C;\nimpl Drop for C { fn drop(&mut self) {} }";
        assert_eq!(decide(&[("x", then, structure)]), [""; 0]);
        assert_eq!(decide(&[("x", then, "use o::a;\nfn b() { a(); }\nimpl Drop for Old {}")]), ["x"]);
    }

    #[test]
    fn an_item_that_has_gone_decides_when_what_makes_rows_still_speaks_of_it() {
        let then = "struct A;\nimpl A { fn b() {} }\nfn c() {}";
        let gone = ("x", then, "fn c() {}");
        assert_eq!(decide(&[gone, ("reader", "", "struct A;\nimpl A { fn b() -> u8 { 1 } }")]), [""; 0]);
        assert_eq!(decide(&[gone, ("y", "fn d() {}", "use crate::reader::A;\nfn d() { A::b() }")]), ["x", "y"]);
        assert_eq!(decide(&[("x", then, "struct A;\nfn c() {}")]), ["x"]);
    }

    #[test]
    fn a_use_decides_when_it_brings_another_thing_under_an_old_name() {
        let then = "use o::{self, a};\nfn b() { a(); o::c() }";
        assert_eq!(decide(&[("x", then, "use o::{a, self};\nuse p::d;\nfn b() { a(); o::c() }")]), [""; 0]);
        assert_eq!(decide(&[("x", then, "use o;\nuse p::a;\nfn b() { a(); o::c() }")]), ["x"]);
        assert_eq!(decide(&[("x", then, "use o::{self, a};\nuse p::*;\nfn b() { a(); o::c() }")]), ["x"]);
        let (from, to) = ("pub fn a() {}", "pub fn a() {}");
        let now = "use o;\nuse p::a;\nfn b() { a(); o::c() }";
        assert_eq!(decide(&[("x", then, now), ("o", from, ""), ("p", "", to)]), [""; 0]);
    }
}
