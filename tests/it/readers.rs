//! The reader of a server's output may be stalled or gone: the server serves, obeys and reports all the same.

use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use acceptlab::lab::check::client::served;
use acceptlab::lab::check::server::STOP_WITHIN;
use acceptlab::lab::observe::processes::{family, poll_until};
use acceptlab::sys::procfs::Stat;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::Socket;

use crate::support::{FOREVER, SERVERS, kind, reserve_port};

struct Process {
    child: Child,
    _port: Socket,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    /// With an address that it is told: its ready line may not be to be had.
    fn start(path: &str, flags: &[&str], stdout: Stdio, stderr: Stdio) -> (Process, SocketAddr) {
        let (port, addr) = reserve_port();
        let mut command = Command::new(path);
        command.args(["--backlog", "128", "--listen", &addr.to_string()]).args(flags);
        let child = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn().unwrap();
        (Process { child, _port: port }, addr)
    }

    #[track_caller]
    fn serves(&self, addr: SocketAddr) {
        assert!(poll_until(FOREVER, || served(addr).ok()).is_some(), "nobody serves on {addr}");
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    #[track_caller]
    fn ends(&mut self) -> ExitStatus {
        poll_until(STOP_WITHIN, || self.child.try_wait().unwrap()).expect("it does not end")
    }

    /// Kills a worker, and waits until it has been reaped and the master sleeps again: then it has logged it, or has not.
    fn loses_a_worker(&self) {
        let pid = family(self.child.id() as i32)[1].pid;
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        let master = self.child.id() as i32;
        let is_reaped = || family(master).iter().all(|process| process.pid != pid);
        let sleeps = || Stat::of(master).is_some_and(|stat| stat.state == 'S');
        let is_over = poll_until(FOREVER, || (is_reaped() && sleeps()).then_some(()));
        assert!(is_over.is_some(), "{pid} was not reaped");
    }
}

/// A pipe that has no room left.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while writer.write(&[b'.'; 4096]).is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    (reader, writer)
}

#[test]
fn a_master_whose_log_nobody_reads_any_more_loses_a_worker_and_serves_on() {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let (mut master, addr) = Process::start(kind("prefork").path, &["--workers", "2"], Stdio::piped(), writer.into());
    master.serves(addr);
    master.loses_a_worker();
    master.serves(addr);
    master.signal(Signal::SIGTERM);
    assert_eq!(master.ends().code(), Some(0));
    let mut said = String::new();
    master.child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.ends_with("}\n"), "no report: {said}");
}

#[test]
fn a_line_for_which_a_stalled_log_has_no_room_is_dropped_and_the_loss_is_logged_later() {
    let (mut reader, writer) = full_pipe();
    let (mut master, addr) = Process::start(kind("prefork").path, &["--workers", "4"], Stdio::null(), writer.into());
    master.serves(addr);
    master.loses_a_worker();
    master.loses_a_worker();
    master.serves(addr);
    // All that was there before: now there is room again.
    let mut dots = vec![0; 1 << 16];
    reader.read_exact(&mut dots).unwrap();
    assert!(dots.iter().all(|&byte| byte == b'.'));
    master.loses_a_worker();
    // A master that has been told to stop says no more of its workers: the line comes first.
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let mut said = String::new();
    let is_said = poll_until(FOREVER, || {
        let _ = reader.read_to_string(&mut said);
        said.ends_with("; 1 left\n").then_some(())
    });
    assert!(
        is_said.is_some() && said.starts_with("2 lines were dropped here: standard error was not read\n"),
        "{said}"
    );
    master.signal(Signal::SIGTERM);
    assert_eq!(master.ends().code(), Some(0));
}

#[test]
fn a_server_whose_ready_line_nobody_reads_serves_and_stops() {
    for kind in SERVERS {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let (mut server, addr) = Process::start(kind.path, &[], writer.into(), Stdio::null());
        server.serves(addr);
        server.signal(Signal::SIGTERM);
        assert_eq!(server.ends().code(), Some(0), "{}", kind.name);
    }
}

/// It would write its ready line and then its report; the first signal ends the one wait, the second the other.
#[test]
fn a_server_whose_output_is_stalled_ends_at_the_second_signal() {
    for kind in SERVERS {
        let (_reader, writer) = full_pipe();
        let (mut server, addr) = Process::start(kind.path, &[], writer.into(), Stdio::null());
        let listens = poll_until(FOREVER, || TcpStream::connect(addr).ok());
        assert!(listens.is_some(), "{} does not listen", kind.name);
        let status = poll_until(STOP_WITHIN, || {
            server.signal(Signal::SIGTERM);
            std::thread::sleep(Duration::from_millis(50));
            server.child.try_wait().unwrap()
        });
        let status = status.unwrap_or_else(|| panic!("{} does not end", kind.name));
        assert_eq!(status.signal(), Some(Signal::SIGTERM as i32), "{}: {status}", kind.name);
    }
}

#[test]
fn a_report_that_finds_the_disk_full_is_an_error() {
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let (mut server, _) = Process::start(kind("sync").path, &[], full.into(), Stdio::piped());
    assert_eq!(server.ends().code(), Some(1));
    let mut said = String::new();
    server.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "write to standard output: no space left on device\n");
}

#[test]
fn a_document_whose_reader_has_seen_enough_is_no_failure() {
    for (path, flags) in [(env!("CARGO_BIN_EXE_ports"), &[][..]), (env!("CARGO_BIN_EXE_ports"), &["--format", "json"])]
    {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let output = Command::new(path).args(flags).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!((output.status.code(), output.stderr.is_empty()), (Some(0), true), "{flags:?}");
    }
}
