//! Terminals that lie about their size, change it, or do not read: both live views draw on, end in time and give the
//! terminal back.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use acceptlab::lab::check::server::Server;
use acceptlab::lab::observe::processes::poll_until;
use nix::fcntl::OFlag;
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, ttyname};

use crate::support::{TempFolder, start};

const LAB: &str = env!("CARGO_BIN_EXE_lab");
const LOADGEN: &str = env!("CARGO_BIN_EXE_loadgen");

/// What a program writes to take the screen over, and to give it back.
const TAKEN: &[u8] = b"\x1b[?1049h";
const GIVEN_BACK: &[u8] = b"\x1b[?1049l\x1b[?25h";

/// Far more than a run of one second needs on a busy machine.
const IN_TIME: Duration = Duration::from_secs(30);

/// Our end of a terminal, and the program's.
struct Pty {
    ours: File,
    theirs: OwnedFd,
}

impl Pty {
    /// Both ends are closed in programs that other tests start at the same time (O_CLOEXEC).
    fn open(columns: u16, lines: u16) -> Pty {
        let ours = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
        grantpt(&ours).and_then(|()| unlockpt(&ours)).unwrap();
        let flags = OFlag::O_NOCTTY.bits();
        let theirs = OpenOptions::new().read(true).write(true).custom_flags(flags).open(ptsname_r(&ours).unwrap());
        let pty = Pty { ours: OwnedFd::from(ours).into(), theirs: theirs.unwrap().into() };
        pty.resize(columns, lines);
        pty
    }

    fn end(&self) -> OwnedFd {
        self.theirs.try_clone().unwrap()
    }

    fn resize(&self, columns: u16, lines: u16) {
        let path = ttyname(&self.theirs).unwrap();
        let size = [format!("{columns}"), format!("{lines}")];
        let set = Command::new("stty").arg("-F").arg(path).args(["cols", &size[0], "rows", &size[1]]).status();
        assert!(set.unwrap().success());
    }

    /// Reads all that is written to the terminal until the last program has closed it.
    fn read(self) -> JoinHandle<Vec<u8>> {
        drop(self.theirs);
        let mut ours = self.ours;
        thread::spawn(move || {
            let (mut all, mut piece) = (Vec::new(), [0; 65536]);
            loop {
                match ours.read(&mut piece) {
                    Ok(0) => return all,
                    Ok(n) => all.extend_from_slice(&piece[..n]),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    // EIO: the other end is closed (pty(7)).
                    Err(_) => return all,
                }
            }
        })
    }
}

fn loadgen(server: &Server, pty: &Pty) -> Child {
    Command::new(LOADGEN)
        .args(["--progress", "live", "--connections", "2", "--rate", "200", "--duration", "1s", "--interval", "20ms"])
        .arg(format!("http://{}/", server.addr))
        .stdin(pty.end())
        .stderr(pty.end())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// A server and `lab watch` in front of it.
struct Watch {
    _server: Server,
    _folder: TempFolder,
    lab: Child,
}

impl Watch {
    fn start(name: &str, pty: &Pty) -> Watch {
        let folder = TempFolder::new(name);
        let board = folder.file("board");
        let server = start("shared-accept", &["--workers", "3", "--scoreboard", &board]);
        let mut lab = Command::new(LAB);
        lab.args(["watch", "--interval", "50ms", &board]);
        let lab = lab.stdin(pty.end()).stdout(pty.end()).stderr(pty.end()).spawn().unwrap();
        Watch { _server: server, _folder: folder, lab }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.lab.kill();
        let _ = self.lab.wait();
    }
}

/// The status of a program that ends in time, and what it printed; one that does not is killed.
#[track_caller]
fn ends(child: &mut Child) -> (Option<i32>, String) {
    let Some(status) = poll_until(IN_TIME, || child.try_wait().unwrap()) else {
        child.kill().unwrap();
        panic!("it does not end");
    };
    let mut text = String::new();
    if let Some(mut out) = child.stdout.take() {
        out.read_to_string(&mut text).unwrap();
    }
    (status.code(), text)
}

fn is_taken_and_given_back(written: &[u8]) {
    let at = |what: &[u8]| written.windows(what.len()).position(|window| window == what);
    let text = String::from_utf8_lossy(written);
    assert!(at(TAKEN).is_some() && at(TAKEN) < at(GIVEN_BACK), "{text:?}");
}

#[test]
fn a_screen_of_any_size_is_drawn_on_and_given_back_after_a_run() {
    let server = start("event-driven", &[]);
    for (columns, lines) in [(65535, 65535), (1, 1), (0, 0), (65535, 1)] {
        let pty = Pty::open(columns, lines);
        let mut loadgen = loadgen(&server, &pty);
        let written = pty.read();
        let (status, report) = ends(&mut loadgen);
        assert_eq!(status, Some(0), "{columns} x {lines}");
        assert!(report.contains("requests/s"), "{report}");
        is_taken_and_given_back(&written.join().unwrap());
    }
}

#[test]
fn a_screen_that_changes_its_size_is_drawn_on_and_given_back_by_watch() {
    let pty = Pty::open(80, 24);
    let mut watch = Watch::start("resized", &pty);
    let mut keyboard = pty.ours.try_clone().unwrap();
    for (columns, lines) in [(65535, 65535), (1, 1), (200, 50), (0, 0)] {
        pty.resize(columns, lines);
        // A key, so that it draws now: down has nothing to scroll.
        keyboard.write_all(b"j").unwrap();
    }
    let written = pty.read();
    keyboard.write_all(b"q").unwrap();
    assert_eq!(ends(&mut watch.lab).0, Some(0));
    is_taken_and_given_back(&written.join().unwrap());
}

#[test]
fn a_terminal_that_does_not_read_holds_up_neither_the_run_nor_its_report() {
    let server = start("event-driven", &[]);
    let pty = Pty::open(200, 60);
    let mut loadgen = loadgen(&server, &pty);
    let (status, report) = ends(&mut loadgen);
    assert_eq!(status, Some(0));
    assert!(report.contains("requests/s"), "{report}");
}

#[test]
fn watch_ends_at_a_key_or_a_signal_though_its_terminal_does_not_read() {
    for way_out in ["q", "TERM"] {
        let pty = Pty::open(200, 60);
        let mut watch = Watch::start(way_out, &pty);
        // Its first picture has come: it is there to be asked.
        let mut first = [0; 64];
        assert!((&pty.ours).read(&mut first).unwrap() > 0);
        match way_out {
            "TERM" => kill(Pid::from_raw(watch.lab.id() as i32), Signal::SIGTERM).unwrap(),
            key => (&pty.ours).write_all(key.as_bytes()).unwrap(),
        }
        let status = if way_out == "q" { 0 } else { 130 };
        assert_eq!(ends(&mut watch.lab).0, Some(status));
    }
}

#[test]
fn a_terminal_that_goes_away_ends_neither_the_run_nor_its_report() {
    let server = start("event-driven", &[]);
    let pty = Pty::open(80, 24);
    let mut loadgen = loadgen(&server, &pty);
    let mut first = [0; 64];
    assert!((&pty.ours).read(&mut first).unwrap() > 0);
    // From now on every write to the terminal fails with EIO, and a read finds its end (pty(7)).
    drop(pty);
    let (status, report) = ends(&mut loadgen);
    assert_eq!(status, Some(0), "{report}");
    assert!(report.contains("requests/s"), "{report}");
}

#[test]
fn watch_ends_when_its_terminal_goes_away() {
    let pty = Pty::open(80, 24);
    let mut watch = Watch::start("gone", &pty);
    let mut first = [0; 64];
    assert!((&pty.ours).read(&mut first).unwrap() > 0);
    drop(pty);
    assert!(ends(&mut watch.lab).0.is_some());
}
