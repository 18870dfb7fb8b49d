//! The programs under test, and clients for them. Starting, signalling and reading a server is what `lab check`
//! does to anybody's server; the tests do it to ours.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use acceptlab::lab::check::ProbeResult;
use acceptlab::lab::check::client::{Client, GET, Response};
use acceptlab::lab::check::server::{Program, Server};
use acceptlab::lab::observe::processes::poll_until;
use acceptlab::report::{LoadReport, ServerReport};
use acceptlab::server::GRACE;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

pub use crate::inconclusive::{Needs, inconclusive};

/// One server of the syllabus.
pub struct Kind {
    pub name: &'static str,
    pub path: &'static str,
    pub processes: Processes,
    /// One worker serves many connections at a time.
    pub is_event_loop: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Processes {
    One,
    /// One for each connection.
    PerConnection,
    /// As many as `--workers` says, and a master.
    Workers,
}

/// In teaching order.
pub const SERVERS: &[Kind] = &[
    one_process("sync", env!("CARGO_BIN_EXE_sync")),
    Kind { processes: Processes::PerConnection, ..one_process("fork", env!("CARGO_BIN_EXE_fork")) },
    Kind { processes: Processes::Workers, ..one_process("prefork", env!("CARGO_BIN_EXE_prefork")) },
    Kind { processes: Processes::Workers, ..one_process("prefork-poll", env!("CARGO_BIN_EXE_prefork-poll")) },
    Kind { processes: Processes::Workers, ..one_process("prefork-lock", env!("CARGO_BIN_EXE_prefork-lock")) },
    one_process("threaded", env!("CARGO_BIN_EXE_threaded")),
    one_process("prethreaded", env!("CARGO_BIN_EXE_prethreaded")),
    one_process("thread-pool", env!("CARGO_BIN_EXE_thread-pool")),
    Kind { is_event_loop: true, ..one_process("idle-busy", env!("CARGO_BIN_EXE_idle-busy")) },
    Kind { is_event_loop: true, ..one_process("half-sync", env!("CARGO_BIN_EXE_half-sync")) },
    Kind { is_event_loop: true, ..one_process("pipeline", env!("CARGO_BIN_EXE_pipeline")) },
    Kind { is_event_loop: true, ..one_process("leader-follower", env!("CARGO_BIN_EXE_leader-follower")) },
    Kind { is_event_loop: true, ..one_process("select-poll", env!("CARGO_BIN_EXE_select-poll")) },
    Kind { is_event_loop: true, ..one_process("event-driven", env!("CARGO_BIN_EXE_event-driven")) },
    Kind { is_event_loop: true, ..one_process("event-loop", env!("CARGO_BIN_EXE_event-loop")) },
    event_loops("shared-accept", env!("CARGO_BIN_EXE_shared-accept")),
    event_loops("accept-mutex", env!("CARGO_BIN_EXE_accept-mutex")),
    event_loops("reuseport", env!("CARGO_BIN_EXE_reuseport")),
    event_loops("master-dispatch", env!("CARGO_BIN_EXE_master-dispatch")),
    event_loops("pass-listener", env!("CARGO_BIN_EXE_pass-listener")),
    event_loops("peers", env!("CARGO_BIN_EXE_peers")),
    event_loops("proxy", env!("CARGO_BIN_EXE_proxy")),
    event_loops("uring", env!("CARGO_BIN_EXE_uring")),
    Kind { is_event_loop: true, ..one_process("coroutines", env!("CARGO_BIN_EXE_coroutines")) },
    Kind { is_event_loop: true, ..one_process("tokio", env!("CARGO_BIN_EXE_tokio")) },
];

const fn one_process(name: &'static str, path: &'static str) -> Kind {
    Kind { name, path, processes: Processes::One, is_event_loop: false }
}

const fn event_loops(name: &'static str, path: &'static str) -> Kind {
    Kind { name, path, processes: Processes::Workers, is_event_loop: true }
}

pub fn kind(name: &str) -> &'static Kind {
    SERVERS.iter().find(|kind| kind.name == name).expect("a server of the syllabus")
}

/// Starts a server on a free port and awaits its ready line; it is killed when it is dropped.
pub fn start(name: &str, flags: &[&str]) -> Server {
    held(Program::new(&[kind(name).path.into()]).start(flags))
}

/// The same from a shell that runs `preparation` first, as in `ulimit -n 32`.
pub fn start_after(preparation: &str, name: &str, flags: &[&str]) -> Server {
    let command = ["sh", "-c", &format!("{preparation}; exec \"$0\" \"$@\""), kind(name).path];
    held(Program::new(&command.map(String::from)).start(flags))
}

/// What the server has said on standard error, from the moment that `line` is in it: it has written that line already,
/// and the thread that reads it may be late.
pub fn said_with(server: &Server, line: &str) -> String {
    let mut said = String::new();
    let is_there = poll_until(FOREVER, || {
        said += &server.said();
        said.contains(line).then_some(())
    });
    assert!(is_there.is_some(), "nowhere does it say {line:?}: {said:?}");
    said
}

/// The value, or a panic with what was expected and found.
#[track_caller]
pub fn held<T>(verdict: ProbeResult<T>) -> T {
    verdict.unwrap_or_else(|why| panic!("{why:?}"))
}

#[track_caller]
pub fn connect(server: &Server) -> Client {
    held(Client::connect(server.addr))
}

/// A server that waits for somebody in vain ends when the grace is over, and not before. This one does not.
#[track_caller]
pub fn ends_at_once(server: &mut Server, signal: Signal) -> ServerReport {
    server.signal(signal);
    held(held(server.ended(GRACE / 2)).report())
}

/// Connects `count` clients that have all sent a request before the first is answered.
pub fn ask_together(server: &Server, count: usize) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..count).map(|_| connect(server)).collect();
    for client in &mut clients {
        held(client.send(GET));
    }
    clients
}

/// So many connections with a request each, and between them a pause in which idle workers fall asleep.
pub fn one_after_another(server: &Server, connections: u64) {
    let requests = connections.to_string();
    load(
        server.addr,
        &["--connections", "1", "--requests-per-connection", "1", "--rate", "500", "--requests", &requests],
    );
}

/// A run of `loadgen` without a warm-up: what it reports.
pub fn load(addr: SocketAddr, flags: &[&str]) -> LoadReport {
    let output = Command::new(env!("CARGO_BIN_EXE_loadgen"))
        .args(["--warmup", "0s", "--format", "json"])
        .args(flags)
        .arg(format!("http://{addr}/"))
        .output()
        .expect("cargo has built it");
    let stderr = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}; loadgen said: {stderr}"))
}

/// A folder of a test, which every user may enter. It goes with all that is in it when it is dropped.
pub struct TempFolder(TempDir);

impl TempFolder {
    /// Two may have the same name, which only tells what they are for.
    pub fn new(name: &str) -> TempFolder {
        let (prefix, mode) = (format!("acceptlab-{name}-"), Permissions::from_mode(0o755));
        let folder = tempfile::Builder::new().prefix(&prefix).permissions(mode).tempdir();
        TempFolder(folder.expect("there is room for a folder"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The path of a file in it, which need not be there, as a command line has it.
    pub fn file(&self, name: &str) -> String {
        self.path().join(name).to_str().expect("the folder for temporary files has a name in UTF-8").to_owned()
    }
}

/// A port of 127.0.0.1 that the kernel gives to no other test while the socket is open, which does not listen: whoever
/// connects is refused, but for as long as a server with SO_REUSEADDR listens there (socket(7)).
pub fn reserve_port() -> (Socket, SocketAddr) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("there is room for a socket");
    socket.set_reuse_address(true).expect("every socket has this option");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("there is a free port");
    let address = socket.local_addr().ok().and_then(|address| address.as_socket());
    (socket, address.expect("it is bound"))
}

/// Not fs::copy: a child that another test forks meanwhile would have our copy open for writing until it execs, and
/// whoever execs the copy before that gets ETXTBSY.
pub fn copy_program(program: &str, to: &Path) {
    let installed = Command::new("install").args(["-m", "755", program]).arg(to).status();
    assert!(installed.is_ok_and(|status| status.success()), "no room for {}", to.display());
}

/// A program as a user without any privilege runs it, and without a way to gain one: as we do or, where we are root,
/// as nobody in particular. He may not be able to reach the folder cargo builds in, so he has a copy.
pub struct Ordinary {
    command: Vec<String>,
    _copy: Option<TempFolder>,
}

impl Ordinary {
    /// `None`, and the test is inconclusive, where we are root and may not become anybody else.
    #[track_caller]
    pub fn new(program: &str) -> Option<Ordinary> {
        if !geteuid().is_root() {
            return Some(Ordinary { command: vec![program.into()], _copy: None });
        }
        let folder = TempFolder::new("ordinary");
        let copy = folder.path().join(Path::new(program).file_name().unwrap_or_default());
        copy_program(program, &copy);
        // 65534, whom everybody calls nobody, is who `ports` takes for another user.
        let drop_to = "setpriv --reuid=65533 --regid=65533 --clear-groups --inh-caps=-all --bounding-set=-all";
        let command: Vec<String> = drop_to.split(' ').map(String::from).chain([copy.display().to_string()]).collect();
        let ordinary = Ordinary { command, _copy: Some(folder) };
        match ordinary.command().arg("--version").output() {
            Ok(output) if output.status.success() => Some(ordinary),
            Ok(output) => {
                inconclusive(Needs::Privilege("CAP_SETUID"), String::from_utf8_lossy(&output.stderr));
                None
            }
            Err(error) => {
                inconclusive(Needs::Tool("setpriv"), error);
                None
            }
        }
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]);
        command
    }

    /// As a server.
    pub fn program(&self) -> Program {
        Program::new(&self.command)
    }
}

/// Whether strace(1) is installed and may trace; the test is inconclusive where not.
#[track_caller]
pub fn can_trace() -> bool {
    let tried = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).output();
    match &tried {
        Ok(output) if output.status.success() => return true,
        Ok(output) => inconclusive(Needs::Privilege("ptrace"), String::from_utf8_lossy(&output.stderr)),
        Err(error) => inconclusive(Needs::Tool("strace"), error),
    }
    false
}

/// Room for a thousand clients: ours and, since limits are inherited, the servers'.
pub fn raise_descriptor_limit() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit can be read");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("the soft limit may rise to the hard one");
}

/// Long enough for any machine: whatever waits so long is stuck.
pub const FOREVER: Duration = Duration::from_secs(30);

#[track_caller]
pub fn answer(client: &mut Client) -> Response {
    let answer = held(client.answer_within(FOREVER));
    held(answer.expect(200));
    answer
}
