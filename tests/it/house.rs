//! The rules of the house that a program can check.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                sources.push((path, text));
            }
        }
    }
    assert!(!sources.is_empty());
    sources
}

fn is_code(line: &&str) -> bool {
    !line.trim_start().starts_with("//")
}

#[test]
fn unsafe_code_is_in_sys_alone_and_each_has_its_argument() {
    for (path, text) in sources("src").into_iter().chain(sources("tests")) {
        if path.ends_with("tests/it/house.rs") {
            continue;
        }
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate().filter(|(_, line)| is_code(line)) {
            if !line.contains("unsafe {") && !line.contains("unsafe fn") && !line.contains("unsafe impl") {
                continue;
            }
            assert!(path.to_str().unwrap().contains("/src/sys/"), "unsafe in {}:{}", path.display(), i + 1);
            let argued = lines[i.saturating_sub(4)..i].iter().any(|before| before.contains("// SAFETY: "));
            assert!(argued, "no SAFETY argument above {}:{}", path.display(), i + 1);
        }
    }
}

#[test]
fn every_program_forbids_unsafe_code_and_says_what_it_is() {
    for (path, text) in sources("bins") {
        assert!(text.contains("#![forbid(unsafe_code)]"), "{}", path.display());
        assert!(text.starts_with("//! "), "{} does not open with what it is", path.display());
    }
}

#[test]
fn every_architecture_says_who_accepts_who_serves_and_who_balances() {
    // The demonstration, the yardsticks and the instruments are no architectures.
    let others = ["ports", "null-server", "loadgen", "bare-client", "lab"];
    for (path, text) in sources("bins") {
        let name = path.file_stem().unwrap().to_str().unwrap();
        if !others.contains(&name) {
            let header: Vec<&str> =
                text.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim).collect();
            let header = header.join(" ");
            for question in ["Who accepts", "Who serves", "Who balances", "Compare with", "See it"] {
                assert!(header.contains(question), "{name} does not say: {question}");
            }
        }
    }
}

#[test]
fn the_library_does_not_know_which_architectures_exist() {
    let names = [
        "prefork",
        "threaded",
        "thread-pool",
        "event-driven",
        "shared-accept",
        "master-dispatch",
        "proxy",
        "cluster",
    ];
    for (path, text) in sources("src") {
        let code = text.lines().filter(is_code).collect::<Vec<_>>().join("\n");
        let code = code.split("#[cfg(test)]").next().unwrap();
        for name in names {
            assert!(!code.contains(&format!("\"{name}\"")), "{} knows {name}", path.display());
        }
    }
}

#[test]
fn server_load_and_lab_do_not_import_each_other() {
    for (folder, others) in
        [("server", ["load", "lab"]), ("load", ["server", "lab"]), ("lab", ["server", "load"])]
    {
        for (path, text) in sources(&format!("src/{folder}")) {
            for other in others {
                assert!(!text.contains(&format!("crate::{other}::")), "{} imports {other}", path.display());
            }
        }
    }
}
