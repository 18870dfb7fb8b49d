//! loadgen where no connection is established, or late, and where the other end of its output is gone.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;

use acceptlab::lab::observe::processes::poll_until;
use acceptlab::report::{Check, LoadReport, Verdict};
use nix::sys::signal::Signal;
use socket2::{Domain, Socket, Type};

use crate::generator::{answer_all, loadgen, report, send_signal, serve, serve_on, start, url};
use crate::support::FOREVER;

/// A server whose accept queue is full, so that the kernel drops every further SYN (listen(2)); and the connection
/// that fills it.
fn full_listener() -> (Socket, SocketAddr, TcpStream) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let filler = TcpStream::connect(address).unwrap();
    (listener, address, filler)
}

/// Waits until so many connections to this port have sent their SYN and got no answer: state 2, and a timer to send it
/// again (proc_net_tcp(5)).
fn wait_for_handshakes(address: SocketAddr, number: usize) {
    let to_port = format!(":{:04X}", address.port());
    let waits = |line: &&str| {
        let mut fields = line.split_whitespace().skip(2);
        let (to, state, timer) = (fields.next(), fields.next(), fields.nth(1));
        to.is_some_and(|to| to.ends_with(&to_port))
            && state == Some("02")
            && timer.is_some_and(|timer| timer.starts_with("01:"))
    };
    let all_wait = poll_until(FOREVER, || {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        (table.lines().filter(waits).count() >= number).then_some(())
    });
    assert!(all_wait.is_some(), "fewer than {number} connect to {address}");
}

fn check<'a>(report: &'a LoadReport, name: &str) -> &'a Check {
    let checks = &report.trust.as_ref().unwrap().checks;
    checks.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no {name} in {checks:?}"))
}

#[test]
fn an_interrupt_while_nothing_answers_the_handshake_prints_the_report_of_what_there_is() {
    for flags in ["", "--rate 10", "--rate 10 --requests-per-connection 1"] {
        let (_listener, address, _filler) = full_listener();
        let client = start(&format!("{flags} --connections 2 --timeout 60s --duration 60s"), address);
        wait_for_handshakes(address, 1);
        send_signal(&client, Signal::SIGINT);
        let report = report(&client.wait_with_output().unwrap());
        assert_eq!((report.requests, report.connections.established), (0, 0), "{flags}");
        assert!(report.run.as_ref().unwrap().interrupted && report.connect_us.max > 0.0, "{flags}");
        let reason = &check(&report, "requests").reason;
        assert!(reason.starts_with("no connection was established"), "{flags}: {reason}");
    }
}

#[test]
fn requests_that_are_late_since_the_accept_queue_was_full_are_not_blamed_on_the_client() {
    let (listener, address, filler) = full_listener();
    let flags = "--rate 20 --connections 4 --requests-per-connection 1000 --duration 1500ms";
    let client = start(flags, address);
    wait_for_handshakes(address, 4);
    // From now on there is room, but a SYN that was dropped is sent again only after a second.
    listener.listen(128).unwrap();
    drop(filler);
    serve_on(TcpListener::from(listener), |_, stream| answer_all(stream));
    let report = report(&client.wait_with_output().unwrap());
    assert!(report.connect_us.max >= 900e3, "{:?}", report.connect_us);
    let late = check(&report, "send_delay");
    assert_eq!(late.verdict, Verdict::Suspect, "{late:?}");
    assert!(late.reason.contains("whose handshakes took") && !late.reason.contains("client's"), "{late:?}");
}

#[test]
fn a_reader_that_is_gone_costs_its_output_and_nothing_else() {
    let address = serve(|_, stream| answer_all(stream));
    for flags in ["--requests 20 --connections 2", "--requests 20 --connections 2 --progress phases"] {
        // Nobody reads what standard output says, then standard error.
        let mut command = loadgen(flags, &url(address));
        let mut client = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(client.stdout.take());
        let output = client.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains("panic"), "{}: {said}", output.status);
        let mut client = command.args(["--format", "json"]).spawn().unwrap();
        drop(client.stderr.take());
        assert_eq!(report(&client.wait_with_output().unwrap()).requests, 20);
    }
}
