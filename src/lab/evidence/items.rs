//! Which files of a change can change what a program does, item by item (an item is a function, a type, a constant, …
//! at the top of a file).
//!
//! Comments, unit tests and the visibility of an item change nothing. Neither does an item that has only moved to
//! another file, nor one that is new, as long as nothing that was there before speaks of it: whoever calls a new
//! function has changed as well. Nor one that has gone, if nobody speaks of it. The fields of a structure and the
//! functions of a type are items, too: one field more behind the others changes nothing until somebody fills or reads it.
//! A `use` counts like an item that comes to a file by another way.

use std::collections::{BTreeMap, BTreeSet};

use quote::ToTokens;
use syn::visit_mut::{VisitMut, visit_file_mut};
use syn::{Attribute, Fields, ImplItem, Item, ItemImpl, ItemStruct, Type, UseTree, Visibility};

/// A file that differs between two commits.
struct ChangedFile {
    name: String,
    then: Code,
    now: Code,
}

/// All files that differ between two commits.
pub struct Changes(Vec<ChangedFile>);

impl Changes {
    /// Name, text then and text now of each file; a text is empty where there was or is no file.
    pub fn new(files: impl IntoIterator<Item = (String, String, String)>) -> Changes {
        let changed = |(name, then, now): (String, String, String)| {
            let (then, now) = (Code::of(&then), Code::of(&now));
            ChangedFile { name, then, now }
        };
        Changes(files.into_iter().map(changed).collect())
    }

    /// The files whose change can change what a program does, of those that take part in it.
    pub fn deciding(&self, takes_part: impl Fn(&str) -> bool) -> BTreeSet<&str> {
        let files: Vec<&ChangedFile> = self.0.iter().filter(|file| takes_part(&file.name)).collect();
        let mut comparison = Comparison::new(&self.0, &files);
        let mut deciding = comparison.whose_items_have_gone(&files);
        let has_new = |file: &&&ChangedFile| comparison.has_something_new(file);
        deciding.extend(files.iter().filter(has_new).map(|file| file.name.as_str()));
        deciding
    }
}

/// What the files tell of one another.
struct Comparison<'a> {
    all: &'a [ChangedFile],
    /// Items of files that take part which were there before, here or elsewhere.
    kept: Vec<&'a Named>,
    /// What is new in files that take part: kind, type and name.
    successors: BTreeSet<(Kind, &'a str, &'a str)>,
    /// Texts that a file has now and did not have before, with the number of such files: where an item may have moved.
    arrived: BTreeMap<&'a str, u32>,
    /// Names of items that nobody had before.
    new_names: BTreeSet<&'a str>,
    /// Texts that stand in another file now, and the names of those items.
    moved: BTreeSet<&'a str>,
    moved_names: BTreeSet<&'a str>,
}

impl<'a> Comparison<'a> {
    /// `files` are those of `all` that take part.
    fn new(all: &'a [ChangedFile], files: &[&'a ChangedFile]) -> Comparison<'a> {
        let old: BTreeSet<&str> = all.iter().flat_map(|file| &file.then.items).map(|item| &*item.text).collect();
        let now = files.iter().flat_map(|file| &file.now.items);
        let kept = now.filter(|item| old.contains(&*item.text)).collect();
        let new = |file: &'a ChangedFile| file.now.without(&file.then);
        let mut arrived = BTreeMap::new();
        all.iter().flat_map(new).for_each(|item| *arrived.entry(&*item.text).or_insert(0) += 1);
        let own = all.iter().flat_map(new).filter(|item| item.kind == Kind::Own);
        let new_names = own.map(|item| &*item.name).collect();
        let successors = files.iter().flat_map(|file| new(file)).map(Named::place).collect();
        let (moved, moved_names) = (BTreeSet::new(), BTreeSet::new());
        Comparison { all, kept, successors, arrived, new_names, moved, moved_names }
    }

    /// The files that lack an item which has not moved, and which somebody uses. Tells from then on what has moved, and
    /// which names are new.
    fn whose_items_have_gone(&mut self, files: &[&'a ChangedFile]) -> BTreeSet<&'a str> {
        let mut found = BTreeSet::new();
        for file in files {
            for item in file.then.without(&file.now) {
                self.new_names.remove(&*item.name);
                // Where one of its name stands now, that one has changed, whoever else has the old text.
                let has_moved = !file.now.has_one_like(item) && self.takes_an_arrival(&item.text);
                if has_moved {
                    self.moved.insert(&*item.text);
                    self.moved_names.extend((item.kind == Kind::Own).then_some(&*item.name));
                } else if !self.has_no_user(item) {
                    found.insert(file.name.as_str());
                }
            }
        }
        found
    }

    /// Whether this text has arrived in a file for which no other has gone yet.
    fn takes_an_arrival(&mut self, text: &str) -> bool {
        let left = self.arrived.get_mut(text).filter(|left| **left > 0);
        left.map(|left| *left -= 1).is_some()
    }

    /// One of the same name with another text has only changed: its users may stand in files that are as they were.
    fn has_no_user(&self, item: &Named) -> bool {
        let has_gone = item.kind != Kind::Other && !self.successors.contains(&item.place());
        // Who speaks of a member speaks of its type, or has it from somebody who does.
        let is_user = |user: &Named| user.speaks_of(&item.name) && (item.of.is_empty() || user.speaks_of(&item.of));
        has_gone && !self.kept.iter().any(|user| is_user(user))
    }

    /// Whether an item of the file is new to what was there before, or a name comes to it by another way.
    fn has_something_new(&self, file: &ChangedFile) -> bool {
        let ChangedFile { then, now, .. } = file;
        let kept: Vec<&Named> = now.items.iter().filter(|item| then.items.contains(item)).collect();
        let is_spoken_of = |name: &str| kept.iter().any(|item| item.speaks_of(name));
        let meets_the_old = |item: &Named| match item.kind {
            // Of a new type, all of it is new.
            Kind::Member if self.is_new_type(&item.of, file) => false,
            Kind::Impl if self.is_new_type(&item.name, file) => false,
            Kind::Own | Kind::Member => is_spoken_of(&item.name),
            Kind::Impl | Kind::Other => true,
        };
        let decides = |item: &Named| match self.moved.contains(&*item.text) {
            true => self.means_another(item, now),
            false => meets_the_old(item),
        };
        // A name that others have by way of this file, too.
        let comes_anew = |(name, path): (&String, &String)| match then.uses.get(name) {
            Some(before) => before != path && !self.moved_names.contains(&**name),
            None if name.starts_with('*') => !kept.is_empty(),
            None => !self.moved_names.contains(&**name) && (is_spoken_of(name) || then.has_own(name)),
        };
        now.without(then).any(decides) || now.uses.iter().any(comes_anew)
    }

    /// Of two types with one name the one of this file is meant.
    fn is_new_type(&self, name: &str, file: &ChangedFile) -> bool {
        match file.now.has_own(name) {
            true => !file.then.has_own(name),
            false => self.new_names.contains(name),
        }
    }

    /// Whether something that a moved item speaks of is something else where it stands now.
    fn means_another(&self, item: &Named, now: &Code) -> bool {
        let differs = |origin: &Code| {
            let own = now.items.iter().filter(|here| here.kind == Kind::Own && item.speaks_of(&here.name));
            let mut own = own.map(|here| &*here.name).filter(|name| origin.has_own(name));
            let mut uses = now.uses.iter().filter(|(name, _)| item.speaks_of(name));
            own.any(|name| origin.all_of(name).ne(now.all_of(name)))
                || uses.any(|(name, path)| origin.uses.get(name).is_some_and(|before| before != path))
        };
        self.all.iter().map(|file| &file.then).filter(|then| then.items.contains(item)).any(differs)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// It has a name of its own, and does nothing until that is used.
    Own,
    /// The field of a structure, or a function of a type: the same.
    Member,
    /// What implements a trait, named by its type.
    Impl,
    /// A static, a macro, or a text that is no Rust.
    Other,
}

#[derive(Debug, PartialEq, Eq)]
struct Named {
    kind: Kind,
    name: String,
    /// The type of a member.
    of: String,
    /// Its tokens.
    text: String,
    /// The names among them.
    words: BTreeSet<String>,
}

impl Named {
    fn new(kind: Kind, name: String, of: String, text: String) -> Named {
        let words = text.split(|c: char| !c.is_alphanumeric() && c != '_').map(String::from).collect();
        Named { kind, name, of, text, words }
    }

    fn other(text: String) -> Named {
        Named::new(Kind::Other, String::new(), String::new(), text)
    }

    fn speaks_of(&self, name: &str) -> bool {
        self.words.contains(name)
    }

    /// What another item must have in common with it to stand in its place.
    fn place(&self) -> (Kind, &str, &str) {
        (self.kind, &self.of, &self.name)
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
            code.items.push(Named::other(text.to_string()));
            return code;
        };
        visit_file_mut(&mut WithoutDocs, &mut file);
        let attributes: Vec<String> =
            file.attrs.iter().map(|attribute| attribute.to_token_stream().to_string()).collect();
        code.items.extend(attributes.into_iter().map(Named::other));
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
            Item::Mod(item) => {
                // What it has from the file around it, the file has.
                let is_from_file = |item: &&Item| item.to_token_stream().to_string().starts_with("use super ::");
                let items = item.content.iter().flat_map(|(_, items)| items);
                return items.filter(|item| !is_from_file(item)).for_each(|item| self.add(item));
            }
            Item::Const(item) => (Kind::Own, item.ident.to_string()),
            Item::Enum(item) => (Kind::Own, item.ident.to_string()),
            Item::Fn(item) => (Kind::Own, item.sig.ident.to_string()),
            Item::Struct(item) if !is_laid_out(item) => return self.add_struct(item.clone()),
            Item::Struct(item) => (Kind::Own, item.ident.to_string()),
            Item::Trait(item) => (Kind::Own, item.ident.to_string()),
            Item::Type(item) => (Kind::Own, item.ident.to_string()),
            Item::Impl(item) if item.trait_.is_none() => return self.add_functions(item.clone()),
            Item::Impl(item) => (Kind::Impl, last_name(&item.self_ty)),
            _ => (Kind::Other, String::new()),
        };
        let text = ["pub (crate) ", "pub (super) ", "pub "]
            .iter()
            .fold(&*text, |text, public| text.strip_prefix(public).unwrap_or(text));
        self.items.push(Named::new(kind, name, String::new(), text.to_string()));
    }

    /// Each field with the name of the one before it: their order decides in which order they are dropped.
    fn add_struct(&mut self, mut item: ItemStruct) {
        let name = item.ident.to_string();
        let fields = std::mem::replace(&mut item.fields, Fields::Unit);
        item.vis = Visibility::Inherited;
        let text = item.to_token_stream().to_string();
        self.items.push(Named::new(Kind::Own, name.clone(), String::new(), text));
        let mut before = String::new();
        for mut field in fields {
            field.vis = Visibility::Inherited;
            let text = format!("{name} {before} {}", field.to_token_stream());
            before = field.ident.map_or(String::new(), |ident| ident.to_string());
            self.items.push(Named::new(Kind::Member, before.clone(), name.clone(), text));
        }
    }

    /// The functions and constants of a type, each with the head of its impl.
    fn add_functions(&mut self, mut item: ItemImpl) {
        let members = std::mem::take(&mut item.items);
        let (of, head) = (last_name(&item.self_ty), item.to_token_stream().to_string());
        for mut member in members {
            let (kind, name) = match &mut member {
                ImplItem::Const(member) => {
                    member.vis = Visibility::Inherited;
                    (Kind::Member, member.ident.to_string())
                }
                ImplItem::Fn(member) => {
                    member.vis = Visibility::Inherited;
                    (Kind::Member, member.sig.ident.to_string())
                }
                _ => (Kind::Other, String::new()),
            };
            let text = format!("{head} {}", member.to_token_stream());
            self.items.push(Named::new(kind, name, of.clone(), text));
        }
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

    fn has_own(&self, name: &str) -> bool {
        self.items.iter().any(|item| item.kind == Kind::Own && item.name == name)
    }

    /// Whether one of the same name is here, with whatever text.
    fn has_one_like(&self, item: &Named) -> bool {
        matches!(item.kind, Kind::Own | Kind::Member) && self.items.iter().any(|other| other.place() == item.place())
    }

    /// The texts of an item of its own and of its members.
    fn all_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let is_of = move |item: &&Named| item.of == name || (item.kind == Kind::Own && item.name == name);
        self.items.iter().filter(is_of).map(|item| &*item.text)
    }

    /// The items that `other` does not have.
    fn without<'a>(&'a self, other: &'a Code) -> impl Iterator<Item = &'a Named> {
        self.items.iter().filter(|item| !other.items.contains(item))
    }
}

/// Whether the place of each field in memory, or among the others, means something.
fn is_laid_out(item: &ItemStruct) -> bool {
    let means_order = |attribute: &Attribute| {
        attribute.path().is_ident("repr") || attribute.to_token_stream().to_string().contains("Ord")
    };
    !matches!(item.fields, Fields::Named(_)) || item.attrs.iter().any(means_order)
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
    fn decide(files: &[(&str, &str, &str)]) -> Vec<String> {
        let texts = files.iter().map(|(file, then, now)| (file.to_string(), then.to_string(), now.to_string()));
        Changes::new(texts).deciding(|file| file != "reader").into_iter().map(String::from).collect()
    }

    #[test]
    fn comments_tests_order_and_visibility_decide_nothing() {
        let then = "//! One.\nuse std::fmt;\nfn a() -> u8 { 1 }\n/// B.\nfn b() { a(); }\nmod c { pub fn d() {} }";
        let now = "//! Two.\nuse std::fmt;\npub(crate) fn b() { a(); } // it\nfn a() -> u8 { 1 }\n\
                   mod c { pub fn d() {} fn e() {} }\n#[cfg(test)]\nmod tests { fn c() {} }";
        assert_eq!(decide(&[("x", then, now)]), [""; 0]);
    }

    #[test]
    fn an_item_decides_when_it_has_changed_or_gone_and_not_when_it_has_moved() {
        let (one, two) = ("fn a() -> u8 { 1 }\nfn b() { a() }", "fn a() -> u8 { 2 }\nfn b() { a() }");
        assert_eq!(decide(&[("x", one, two)]), ["x"]);
        assert_eq!(decide(&[("x", one, "fn b() { a() }")]), ["x"]);
        assert_eq!(decide(&[("x", one, "fn b() { a() }"), ("y", "", "pub fn a() -> u8 { 1 }")]), [""; 0]);
        // Who uses it may stand in a file that is as it was.
        assert_eq!(decide(&[("x", "pub const A: u8 = 1;", "pub const A: u8 = 2;")]), ["x"]);
        assert_eq!(decide(&[("x", "fn main() { run(1) }", "fn main() { run(2) }")]), ["x"]);
        assert_eq!(decide(&[("x", "impl A { fn b() {} }", "impl A { fn b() { c() } }")]), ["x"]);
        // Its old text stands elsewhere now; or two have changed places.
        let copied = ("y", "", "const A: u8 = 1; fn c() { w(A) }");
        assert_eq!(decide(&[("x", "pub const A: u8 = 1;", "pub const A: u8 = 2;"), copied]), ["x"]);
        // Two had it, and now one has.
        assert_eq!(decide(&[("x", one, "fn b() { a() }"), ("y", one, one)]), ["x"]);
        assert_eq!(decide(&[("x", "#![no_std]", "")]), ["x"]);
    }

    #[test]
    fn an_item_that_has_moved_decides_when_it_means_something_else_there() {
        let (x, end) = ("const T: u8 = 60; fn c() { wait(T) }", "fn end() { wait(T) }");
        let y = "const T: u8 = 2; fn d() { wait(T) }";
        let (x_then, y_now) = (format!("{x} {end}"), format!("{y} {end}"));
        assert_eq!(decide(&[("x", &x_then, x), ("y", y, &y_now)]), ["y"]);
        let (x, y) = ("struct T { n: u8 }", "struct T { n: u64 }");
        assert_eq!(decide(&[("x", &format!("{x} {end}"), x), ("y", y, &format!("{y} {end}"))]), ["y"]);
        let (x, y) = ("use a::T; fn c() { T }", "use b::T; fn d() { T }");
        assert_eq!(decide(&[("x", &format!("{x} {end}"), x), ("y", y, &format!("{y} {end}"))]), ["y"]);
    }

    #[test]
    fn a_new_item_decides_when_an_old_one_speaks_of_it() {
        let then = "use o::a;\nfn b() { f(a(1)); }";
        assert_eq!(decide(&[("x", then, "use o::a;\nfn b() { f(a(1)); }\nfn c() {}")]), [""; 0]);
        assert_eq!(decide(&[("x", then, "fn b() { f(a(1)); }\nfn a() {}")]), ["x"]);
        let (a, methods) = ("struct A; fn b() { A::c() }", "impl A { fn d() {} }");
        assert_eq!(decide(&[("x", a, &format!("{a} {methods}"))]), [""; 0]);
        assert_eq!(decide(&[("x", a, &format!("{a} {}", methods.replace('d', "c")))]), ["x"]);
        assert_eq!(decide(&[("x", a, &format!("{a} struct D; impl D {{ fn c() {{}} }}"))]), [""; 0]);
        let structure = "use o::a;\nfn b() { f(a(1)); }\nstruct C;\nimpl Drop for C { fn drop(&mut self) {} }";
        assert_eq!(decide(&[("x", then, structure)]), [""; 0]);
        assert_eq!(decide(&[("x", then, "use o::a;\nfn b() { f(a(1)); }\nimpl Drop for Old {}")]), ["x"]);
    }

    #[test]
    fn a_new_field_behind_the_others_decides_nothing_by_itself() {
        let then = "#[derive(Default)]\npub struct A { b: u8, pub c: u8 }\nfn d(a: &A) -> u8 { a.c }";
        assert_eq!(decide(&[("x", then, &then.replace("pub c: u8", "c: u8, e: u8"))]), [""; 0]);
        assert_eq!(decide(&[("x", then, &then.replace("b: u8", "b: u8, e: u8"))]), ["x"], "the order is another");
        assert_eq!(decide(&[("x", then, &then.replace("c: u8", "c: u16"))]), ["x"]);
        assert_eq!(decide(&[("x", then, &then.replace("Default", "Clone"))]), ["x"]);
        let laid_out = then.replace("Default", "Ord");
        assert_eq!(decide(&[("x", &laid_out, &laid_out.replace("c: u8", "c: u8, e: u8"))]), ["x"]);
        let repr = format!("#[repr(C)] {then}");
        assert_eq!(decide(&[("x", &repr, &repr.replace("c: u8", "c: u8, e: u8"))]), ["x"]);
        // A type of this name that is new elsewhere is another.
        let dropped = format!("{then} impl Drop for A {{ fn drop(&mut self) {{}} }}");
        assert_eq!(decide(&[("x", then, &dropped), ("y", "", "struct A { n: u8 }")]), ["x"]);
        // A new structure has new fields, whatever others call theirs.
        assert_eq!(decide(&[("x", then, &format!("{then} struct F {{ c: u8 }}"))]), [""; 0]);
        // Nobody reads it.
        assert_eq!(decide(&[("x", &then.replace("c: u8", "c: u8, e: u8"), then)]), [""; 0]);
    }

    #[test]
    fn a_function_of_a_type_decides_for_itself() {
        let then = "struct A;\nimpl A { pub fn b() {} fn c() { A::b() } }";
        assert_eq!(decide(&[("x", then, &then.replace("} }", "} pub fn d() {} }"))]), [""; 0]);
        assert_eq!(decide(&[("x", then, &then.replace("b() {}", "b() { A::c() }"))]), ["x"]);
        assert_eq!(decide(&[("x", then, "struct A;\nimpl A { fn b() {} }\nimpl A { fn c() { A::b() } }")]), [""; 0]);
    }

    #[test]
    fn an_item_that_has_gone_decides_when_what_makes_rows_still_speaks_of_it() {
        let then = "struct A;\nimpl A { fn b() {} }\nfn c() {}";
        let gone = ("x", then, "fn c() {}");
        assert_eq!(decide(&[gone, ("reader", "", "struct A;\nimpl A { fn b() -> u8 { 1 } }")]), [""; 0]);
        assert_eq!(decide(&[gone, ("y", "fn d() {}", "use crate::reader::A;\nfn d() { A::b() }")]), ["y"]);
        let moved = ("y", "", "use crate::reader::A;\nfn c() { A::b() }");
        assert_eq!(decide(&[("x", "struct A;\nfn c() { A::b() }", ""), moved]), ["x"]);
        assert_eq!(decide(&[("x", then, "struct A;\nfn c() {}")]), [""; 0]);
        let used = "struct A;\nimpl A { fn b() {} }\nfn c() { A::b() }";
        assert_eq!(decide(&[("x", used, "struct A;\nfn c() { A::b() }")]), ["x"]);
    }

    #[test]
    fn a_use_decides_when_it_brings_another_thing_under_an_old_name() {
        let then = "use o::{self, a};\nfn b() { a(); o::c() }";
        assert_eq!(decide(&[("x", then, "use o::{a, self};\nuse p::d;\nfn b() { a(); o::c() }")]), [""; 0]);
        assert_eq!(decide(&[("x", then, "use o;\nuse p::a;\nfn b() { a(); o::c() }")]), ["x"]);
        assert_eq!(decide(&[("x", then, "use o::{self, a};\nuse p::*;\nfn b() { a(); o::c() }")]), ["x"]);
        // A module inside the file had it from the file.
        let (inside, around) = ("mod e { use super::a; pub fn f() { a() } }", "use o::a;\nfn b() { a(); }");
        assert_eq!(decide(&[("x", &format!("{around}\n{inside}"), &format!("{around}\nfn f() {{ a() }}"))]), [""; 0]);
        // What has left for a file of no part in it, and has changed there.
        let (from, to) = ("pub fn a() -> u8 { 1 }", "pub fn a() -> u8 { 2 }");
        assert_eq!(decide(&[("x", from, "pub use reader::a;"), ("reader", "", to)]), ["x"]);
        // A function of a type that has moved excuses nothing.
        let (z, w) = ("use p::wait; fn d() { wait() }", "use q::wait; fn d() { wait() }");
        let (method, other) = ("impl S { fn wait(&self) { s() } }", "fn e() {}");
        assert_eq!(decide(&[("z", z, w), ("x", method, ""), ("y", other, &format!("{other} {method}"))]), ["z"]);
        // Others have it from here.
        assert_eq!(decide(&[("x", "pub use o::E;", "pub use p::E;")]), ["x"]);
        let (from, to) = ("pub fn a() {}", "pub fn a() {}");
        let now = "use o;\nuse p::a;\nfn b() { a(); o::c() }";
        assert_eq!(decide(&[("x", then, now), ("o", from, ""), ("p", "", to)]), [""; 0]);
    }
}
