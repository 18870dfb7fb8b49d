//! Running `loadgen`, and servers of a few lines to run it against.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use acceptlab::report::LoadReport;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use socket2::SockRef;

pub const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Worker: 0\r\n\r\nok";
pub const OK_AND_CLOSE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Worker: 0\r\nConnection: close\r\n\r\nok";

// ---- the servers ------------------------------------------------------------------------------------------

/// Runs `handler` in a thread per connection, with the connection's number.
pub fn serve(handler: impl Fn(u64, TcpStream) + Send + Sync + 'static) -> SocketAddr {
    serve_on(TcpListener::bind("127.0.0.1:0").unwrap(), handler)
}

pub fn serve_on(listener: TcpListener, handler: impl Fn(u64, TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let address = listener.local_addr().unwrap();
    let handler = Arc::new(handler);
    thread::spawn(move || {
        for (number, stream) in (0..).zip(listener.incoming().map_while(Result::ok)) {
            let handler = handler.clone();
            thread::spawn(move || handler(number, stream));
        }
    });
    address
}

/// Reads one request head; `None` when the client has closed.
pub fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return None,
        }
    }
    Some(String::from_utf8(head).unwrap())
}

/// Answers every request, and closes after the one that asks for it.
pub fn answer_all(mut stream: TcpStream) {
    while let Some(request) = read_request(&mut stream) {
        let last = request.contains("Connection: close\r\n");
        let sent = stream.write_all(if last { OK_AND_CLOSE } else { OK }.as_bytes());
        if last || sent.is_err() {
            return;
        }
    }
}

/// Waits for the client to go, so that the server's close is never the event.
pub fn wait_for_close(mut stream: TcpStream) {
    while matches!(stream.read(&mut [0; 1024]), Ok(1..)) {}
}

/// Closes with RST instead of FIN (socket(7), SO_LINGER).
pub fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// The environment variable that says which `--engine` to test.
pub const ENGINE: &str = "ACCEPTLAB_TEST_ENGINE";

// ---- running the program ----------------------------------------------------------------------------------

pub fn loadgen(flags: &str, url: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadgen"));
    command.args(flags.split_whitespace()).arg(url).stdin(Stdio::null());
    // The tests of the engines run the other tests again with another engine.
    if let Ok(engine) = std::env::var(ENGINE) {
        command.args(["--engine", &engine]);
    }
    command
}

pub fn url(address: SocketAddr) -> String {
    format!("http://{address}/")
}

pub fn run(flags: &str, address: SocketAddr) -> LoadReport {
    let output = loadgen(flags, &url(address)).args(["--format", "json"]).output().unwrap();
    report(&output)
}

pub fn report(output: &Output) -> LoadReport {
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

pub fn start(flags: &str, address: SocketAddr) -> Child {
    loadgen(flags, &url(address))
        .args(["--format", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

pub fn send_signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
}

/// The one line on standard error, and the exit status, of a run that fails.
pub fn failure(flags: &str, url: &str) -> (String, Option<i32>) {
    let output = loadgen(flags, url).output().unwrap();
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    (String::from_utf8(output.stderr).unwrap(), output.status.code())
}
