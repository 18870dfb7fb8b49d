//! Claims: what the lab says to those that make no sense, which verdict rows give, and that text and data cannot part.

use std::fs;
use std::process::Output;

use serde_json::Value;

use crate::lab::{LESSON, Scratch};
use crate::terminal::Terminal;

const VALUE: &str = "value = { table = \"t\", column = \"mean\", server = \"sync\" }";

/// A lesson of three short runs with these claims. Each is long enough for an answer on a busy machine.
fn lesson(claims: &str) -> String {
    let columns = "\"timeouts\"]\n";
    let lesson = LESSON.replace("repeats = 60", "repeats = 3").replace("\"300ms\"", "\"500ms\"");
    lesson.replace(columns, &format!("\"timeouts\", \"mean\"]\n{claims}"))
}

fn claim(id: &str, lines: &str) -> String {
    format!("[[claim]]\nid = \"{id}\"\nsays = \"The claim {id}\"\n{lines}\n")
}

fn rewrite(scratch: &Scratch, lesson: &str) {
    fs::write(scratch.root.join("experiments/01-lesson.md"), lesson).unwrap();
}

fn stdout(output: Output) -> String {
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}{text}", String::from_utf8_lossy(&output.stderr));
    text
}

fn json(scratch: &Scratch, more: &[&str]) -> Vec<Value> {
    let output = scratch.lab(&[&["claims", "--format", "json"], more].concat());
    serde_json::from_str(&stdout(output)).unwrap()
}

fn verdicts(claims: &[Value]) -> Vec<&str> {
    claims.iter().map(|claim| claim["verdict"].as_str().unwrap()).collect()
}

#[test]
fn each_verdict_comes_from_the_rows() {
    let scratch = Scratch::new("verdicts", &lesson(&claim("measured", &format!("{VALUE}\nbar = \">= 1 µs\""))));
    assert_eq!(verdicts(&json(&scratch, &[])), ["skipped"]);
    assert!(scratch.lab(&["run", "--seed", "1"]).status.success());
    let measured = &json(&scratch, &["1"])[0];
    assert_eq!((measured["verdict"].as_str(), measured["runs"].as_u64()), (Some("holds"), Some(3)));
    let [low, high] = [0, 1].map(|end| measured["interval"][end].as_f64().unwrap());
    assert!(low < high, "three runs have the same mean to the last digit: {measured}");

    // The record stays as it is: a claim about it may change.
    let middle = (low + high) / 2.0;
    let claims = [
        claim("fails", &format!("{VALUE}\nbar = \"<= 1 µs\"\nwhy = \"Work takes time.\"")),
        claim("undecided", &format!("{VALUE}\nbar = \">= {middle} µs\"")),
        claim("within", &format!("{VALUE}\nbar = \"{low}..{high} µs\"")),
        claim(
            "law",
            "value = { table = \"t\", column = \"qps\" }\nover = { column = \"law_qps\" }\nbar = \"<= 2 times\"",
        ),
        claim("none", "skipped = \"no lock yet\"\nsource = \"a book\"\npublished = 1.75"),
    ];
    rewrite(&scratch, &lesson(&claims.concat()));
    let judged = json(&scratch, &[]);
    assert_eq!(verdicts(&judged), ["fails", "undecided", "holds", "holds", "skipped"]);
    assert_eq!(judged[0]["why"], "Work takes time.");
    assert_eq!((judged[4]["reason"].as_str(), judged[4]["published"].as_f64()), (Some("no lock yet"), Some(1.75)));
    let text = stdout(scratch.lab(&["claims"]));
    assert_eq!(text.lines().count(), 6, "{text}");
    assert!(text.starts_with("01-lesson\nfails     The claim fails: "), "{text}");
    assert!(!text.contains('\x1b') && text.lines().all(|line| line.chars().count() <= 100), "{text}");

    // Whoever reads that a claim is undecided asks why.
    let check = scratch.lab(&["report", "--check"]);
    let error = String::from_utf8(check.stderr).unwrap();
    assert!(error.contains("01-lesson: the claim undecided is \"undecided\" and has no `why`"), "{error}");
    assert!(!error.contains("the claim fails"), "{error}");
}

#[test]
fn a_single_run_was_seen_once() {
    let scratch = Scratch::new("once", &lesson(&claim("one", &format!("{VALUE}\nbar = \">= 1 µs\""))));
    let out = scratch.root.join("elsewhere");
    let out = out.to_str().unwrap();
    let run = stdout(scratch.lab(&["run", "--quick", "--out", out]));
    assert!(run.contains("seen once The claim one: "), "{run}");
    let judged = &json(&scratch, &["--out", out])[0];
    assert_eq!((judged["verdict"].as_str(), judged["interval"].is_null()), (Some("seen once"), true), "{judged}");
    // It is another folder's record.
    assert_eq!(verdicts(&json(&scratch, &[])), ["skipped"]);
}

#[test]
fn a_claim_that_makes_no_sense_is_one_line_with_file_line_and_remedy() {
    let good = claim("x", &format!("{VALUE}\nbar = \">= 1 µs\""));
    for (i, (from, to, line, told)) in [
        ("\"mean\"", "\"maen\"", 20, "has no column \"maen\"; it has qps, law_qps, deviation, timeouts, mean"),
        ("\"t\"", "\"u\"", 20, "there is no table \"u\"; there are t"),
        ("\"sync\"", "\"snyc\"", 20, "no row of table \"t\" has server = \"snyc\"; it has sync"),
        ("server =", "sever =", 20, "has no axis \"sever\""),
        (">= 1 µs", ">= 1", 21, "the bar has no unit"),
        (">= 1 µs", ">= 1 requests/s", 21, "is compared with in \"µs\""),
        ("says", "say", 19, "unknown field `say`"),
    ]
    .into_iter()
    .enumerate()
    {
        let scratch = Scratch::new(&format!("claim-{i}"), &lesson(&good.replacen(from, to, 1)));
        for command in ["claims", "run", "verify"] {
            let output = scratch.lab(&[command]);
            let error = String::from_utf8(output.stderr).unwrap();
            assert_eq!((output.status.code(), error.lines().count()), (Some(1), 1), "{error}");
            assert!(error.contains(&format!("01-lesson.md:{line}: ")) && error.contains(told), "{error}");
        }
    }
}

#[test]
fn a_claim_about_a_row_that_was_skipped_has_its_reason() {
    let scratch = Scratch::new("claim-skipped", "");
    let server = scratch.root.join("server.sh");
    fs::write(&server, "#!/bin/sh\necho 'load a program: operation not permitted; needs CAP_BPF' >&2\nexit 1\n")
        .unwrap();
    fs::set_permissions(&server, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let claims = claim("privileged", "value = { table = \"t\", column = \"mean\" }\nbar = \">= 1 µs\"\ncounted = true");
    rewrite(&scratch, &lesson(&claims).replace("run = \"sync\"", &format!("run = \"{}\"", server.display())));
    assert!(scratch.lab(&["run", "--quick"]).status.success());
    let judged = &json(&scratch, &[])[0];
    assert_eq!((judged["verdict"].as_str(), judged["reason"].as_str()), (Some("skipped"), Some("needs CAP_BPF")));
    let verified = stdout(scratch.lab(&["verify"]));
    assert!(verified.contains("skipped  01-lesson: The claim privileged: needs CAP_BPF"), "{verified}");
}

#[test]
fn verify_asserts_what_is_counted_and_nothing_else() {
    let counted = |bar: &str| {
        let value = "value = { table = \"t\", column = \"timeouts\" }";
        claim("counted", &format!("{value}\nbar = \"{bar} timeouts\"\ncounted = true"))
    };
    let timed = claim("timed", &format!("{VALUE}\nbar = \"<= 1 µs\""));
    let scratch = Scratch::new("counted", &lesson(&(counted("<= 0") + &timed)));
    let verified = stdout(scratch.lab(&["verify"]));
    assert!(verified.contains("ok       01-lesson: The claim counted\n2 passed, 0 failed"), "{verified}");

    rewrite(&scratch, &lesson(&counted(">= 1")));
    let output = scratch.lab(&["verify"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("FAIL     01-lesson: The claim counted: it is 0, and the bar is ≥ 1 timeouts"), "{text}");
}

#[test]
fn the_numbers_in_a_lesson_are_those_of_its_full_record() {
    let answer = "**Answer.** It takes <!--claim:mean-->7<!--/--> µs (<!--claim:mean:interval-->7<!--/-->).\n\n```toml";
    let text = lesson(&claim("mean", &format!("{VALUE}\nbar = \">= 1 µs\""))).replace("```toml", answer);
    let scratch = Scratch::new("cited", &text);
    let path = scratch.root.join("experiments/01-lesson.md");
    let now = || fs::read_to_string(&path).unwrap();
    assert!(scratch.lab(&["run", "--quick"]).status.success());
    assert_eq!(now(), text, "a quick run has changed the lesson");
    assert!(scratch.lab(&["run"]).status.success());
    let measured = now();
    assert!(measured.contains("It takes <!--claim:mean-->") && !measured.contains("-->7<!--/-->"), "{measured}");
    assert!(scratch.lab(&["report", "--check"]).status.success());

    rewrite(&scratch, &text);
    let check = scratch.lab(&["report", "--check"]);
    let error = String::from_utf8(check.stderr).unwrap();
    assert_eq!(check.status.code(), Some(1), "{error}");
    assert!(error.contains("the numbers in ") && error.contains("`lab report` rewrites them"), "{error}");
    assert!(scratch.lab(&["report"]).status.success());
    assert_eq!(now(), measured);

    rewrite(&scratch, &text.replace("claim:mean-->", "claim:maen-->"));
    let error = String::from_utf8(scratch.lab(&["list"]).stderr).unwrap();
    assert!(error.contains("01-lesson.md:5: no claim \"maen\"; there are mean"), "{error}");
}

#[test]
fn a_terminal_of_40_columns_gets_coloured_lines_that_fit_and_the_whole_claim() {
    let says = "says = \"A sentence that is much longer than a narrow terminal is wide\"\n";
    let claims = claim("long", "skipped = \"no lock yet\"").replace("says = \"The claim long\"\n", says);
    let scratch = Scratch::new("narrow", &lesson(&claims));
    let Some(terminal) = Terminal::open("claims") else { return };
    terminal.tmux(&["resize-window", "-x", "40", "-y", "24"]);
    terminal.shows(|screen| screen.lines().all(|line| line.chars().count() <= 40));
    let root = scratch.root.display();
    terminal.keys(&[&format!("clear; {} --root {root} claims; echo end", env!("CARGO_BIN_EXE_lab")), "Enter"]);
    let screen = terminal.shows(|screen| screen.lines().any(|line| line == "end"));
    let lines: Vec<&str> = screen.lines().collect();
    let last = lines.iter().position(|line| *line == "end").unwrap();
    let first = lines.iter().position(|line| *line == "01-lesson").unwrap();
    let claim: Vec<&str> = lines[first + 1..last].iter().map(|line| line.trim_start()).collect();
    assert!(claim.len() > 1 && lines.iter().all(|line| line.chars().count() <= 40), "{screen}");
    assert!(
        claim.join(" ").contains("skipped   A sentence that is much longer than a narrow terminal is wide"),
        "{screen}"
    );
    let coloured = terminal.tmux(&["capture-pane", "-p", "-e"]);
    assert!(coloured.contains("\x1b[1m01-lesson"), "{coloured:?}");
}
