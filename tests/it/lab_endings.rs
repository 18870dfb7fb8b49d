//! How the lab ends: when it is interrupted, when nobody reads what it prints, and where /proc is missing.

use std::fs;
use std::io::{BufRead, BufReader, PipeWriter, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use acceptlab::lab::observe::processes::{family, poll_until};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::{LESSON, Scratch};
use crate::support::{FOREVER, Needs, inconclusive, kind};

const LAB: &str = env!("CARGO_BIN_EXE_lab");

/// The lab with a mark in its environment, which everything it starts inherits.
struct Marked {
    scratch: Scratch,
}

impl Marked {
    fn new(name: &str) -> Marked {
        Marked { scratch: Scratch::new(name, &LESSON.replace("repeats = 60", "repeats = 2")) }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(LAB);
        command.arg("--root").arg(&self.scratch.root).args(arguments);
        command.env("ACCEPTLAB_TEST", &self.scratch.root).stdin(Stdio::null());
        command
    }

    /// Starts it, interrupts it as soon as `is_time`, and returns what it printed.
    fn interrupt_when(&self, arguments: &[&str], is_time: impl Fn(&str) -> bool) -> Output {
        let mut lab = self.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("built");
        let mut stdout = BufReader::new(lab.stdout.take().expect("piped"));
        let mut printed = String::new();
        while !is_time(&printed) {
            assert!(stdout.read_line(&mut printed).expect("text") > 0, "it ended before: {printed}");
        }
        interrupt(&lab);
        stdout.read_to_string(&mut printed).expect("text");
        let mut output = lab.wait_with_output().expect("it ends");
        output.stdout = printed.into_bytes();
        assert!(!self.scratch.lives(), "something the lab started outlives it");
        output
    }
}

fn interrupt(lab: &Child) {
    kill(Pid::from_raw(lab.id() as i32), Signal::SIGINT).expect("it is our child");
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_server_that_refuses_its_flags_is_quoted_and_no_value_is_printed_as_rust_has_it() {
    let refused =
        Command::new(LAB).args(["order", "--", kind("prefork").path, "--no-such-flag"]).output().expect("built");
    let line = text(&refused.stderr);
    assert_eq!((refused.status.code(), line.lines().count()), (Some(1), 1), "{line}");
    assert!(
        line.contains("ended with exit status: 2") && line.contains("unexpected argument '--no-such-flag'"),
        "{line}"
    );

    let deaf =
        "import socket; s = socket.create_server(('127.0.0.1', 0)); print('ready 127.0.0.1:1', flush=True); s.accept()";
    if Command::new("python3").arg("--version").output().is_err() {
        return inconclusive(Needs::Tool("python3"), "not installed");
    }
    let failed =
        Command::new(LAB).args(["order", "--connections", "2", "--", "python3", "-c", deaf]).output().expect("built");
    let line = text(&failed.stderr);
    assert!(!failed.status.success() && !line.contains('{') && line.contains("refused"), "{line}");
}

#[test]
fn an_interrupted_check_says_how_many_points_it_judged_and_leaves_no_server() {
    let marked = Marked::new("check-interrupted");
    let command = ["check", "--", kind("prefork").path];
    let output = marked.interrupt_when(&command, |printed| printed.contains("ready-line"));
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains(" points"), "{}", text(&output.stderr));
    assert!(!text(&output.stdout).contains("FAIL"), "{}", text(&output.stdout));
}

#[test]
fn an_interrupted_verify_says_how_many_cases_were_run() {
    let marked = Marked::new("verify-interrupted");
    let lesson = marked.scratch.root.join("experiments/01-lesson.md");
    let cases = LESSON.replace("repeats = 60", "repeats = 1").replace(
        "server_flags = \"--work block:1ms\"\n",
        "server_flags = \"--work block:1ms --body {body}\"\naxes = { body = [100, 200, 300, 400, 500, 600, 700] }\n",
    );
    fs::write(lesson, cases).expect("our folder");
    let output = marked.interrupt_when(&["verify"], |printed| printed.starts_with("ok "));
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("of 7 cases"), "{}", text(&output.stderr));
}

#[test]
fn an_interrupted_order_leaves_no_process() {
    let marked = Marked::new("order-interrupted");
    let command = ["order", "--rate", "1", "--connections", "1000", "--", kind("event-driven").path];
    let mut lab = marked.command(&command).stdout(Stdio::null()).spawn().expect("built");
    poll_until(FOREVER, || has_children(&lab).then_some(())).expect("the server starts");
    interrupt(&lab);
    assert_eq!(lab.wait().expect("it ends").code(), Some(130));
    assert!(!marked.scratch.lives(), "something the lab started outlives it");
}

/// The status of a lab whose standard output and standard error nobody reads.
fn status_without_a_reader(marked: &Marked, arguments: &[&str]) -> (Option<i32>, Option<i32>) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let error = writer.try_clone().expect("a descriptor");
    let status = marked.command(arguments).stdout(writer).stderr(error).status().expect("built");
    (status.code(), status.signal())
}

#[test]
fn a_reader_that_is_gone_changes_no_exit_status() {
    let marked = Marked::new("no-reader");
    let server = kind("event-driven").path;
    for arguments in [
        &["run", "--seed", "1"][..],
        &["report"],
        &["report", "--check"],
        &["verify"],
        &["list"],
        &["explain"],
        &["order", "--connections", "2", "--", server],
    ] {
        assert_eq!(status_without_a_reader(&marked, arguments), (Some(0), None), "{arguments:?}");
    }
    let refused = status_without_a_reader(&marked, &["check", "--", "/no/such/server"]);
    assert_eq!(refused, (Some(1), None));
    assert!(!marked.scratch.lives(), "something the lab started outlives it");
}

#[test]
fn a_lab_whose_reader_is_stalled_can_be_interrupted() {
    let marked = Marked::new("stalled");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    fill(&writer);
    let mut lab = marked.command(&["verify"]).stdout(writer).stderr(Stdio::null()).spawn().expect("built");
    poll_until(FOREVER, || has_had_children(&lab).then_some(())).expect("its only case ends");
    interrupt(&lab);
    let ended = poll_until(Duration::from_secs(10), || lab.try_wait().expect("our child"));
    drop(reader);
    assert_eq!(ended.and_then(|status| status.code()), Some(130));
}

/// Not one byte more fits into the pipe, until it is read.
fn fill(pipe: &PipeWriter) {
    let set = |flags| fcntl(pipe, FcntlArg::F_SETFL(flags)).expect("a flag of a pipe");
    set(OFlag::O_NONBLOCK);
    let mut writer = pipe;
    while writer.write(&[b'.'; 4096]).is_ok() {}
    while writer.write(b".").is_ok() {}
    set(OFlag::empty());
}

/// None is left, and one that it has waited for touched memory (`cminflt` in proc(5)).
fn has_had_children(lab: &Child) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", lab.id())).expect("it runs");
    let behind_the_name = stat.rsplit_once(") ").expect("a name in brackets").1;
    behind_the_name.split(' ').nth(8) != Some("0") && !has_children(lab)
}

fn has_children(lab: &Child) -> bool {
    family(lab.id() as i32).len() > 1
}

#[test]
fn without_proc_the_lab_says_so_in_one_line() {
    let hidden = "mount -t tmpfs none /proc && exec \"$0\" \"$@\"";
    let in_a_sandbox = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", hidden]).args(arguments);
        command.process_group(0).output()
    };
    match in_a_sandbox(&["true"]) {
        Ok(output) if output.status.success() => {}
        _ => return inconclusive(Needs::Privilege("CAP_SYS_ADMIN"), "unshare --mount and mount are refused"),
    }
    let server = kind("event-driven").path;
    for arguments in [&["check", "--", server][..], &["order", "--", server]] {
        let output = in_a_sandbox(&[&[LAB], arguments].concat()).expect("unshare exists");
        let line = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(line.contains("mount -t proc proc /proc"), "{line}");
    }
}
