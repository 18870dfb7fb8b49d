//! Other people's clients against our servers. Each comes from a Debian package; without it its test is
//! inconclusive, and `scripts/install_clients.sh` installs all of them.

use std::process::Command;

use crate::support::{Kind, Needs, SERVERS, inconclusive, start};

/// Runs a client and returns what it said on both outputs; `None` when it is not installed.
fn run(client: &'static str, args: &[&str]) -> Option<String> {
    match Command::new(client).args(args).output() {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{client} {args:?} failed: {said}");
            Some(said.into_owned())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            inconclusive(Needs::Tool(client), "not installed");
            None
        }
        Err(error) => panic!("{client}: {error}"),
    }
}

/// As many clients as every server can serve at the same time over connections that stay open.
fn clients(kind: &Kind) -> &'static str {
    if kind.name == "sync" { "1" } else { "4" }
}

fn flags(kind: &Kind) -> &'static [&'static str] {
    if matches!(kind.name, "prefork" | "prefork-poll" | "prefork-lock" | "prethreaded" | "thread-pool") {
        &["--workers", "4"]
    } else {
        &[]
    }
}

fn against_every_server(test: impl Fn(&Kind, &str)) {
    for kind in SERVERS {
        let server = start(kind.name, flags(kind));
        test(kind, &format!("http://{}/", server.addr));
    }
}

/// The number behind a label, as in `Failed requests:        0`.
#[track_caller]
fn number_after(label: &str, said: &str) -> f64 {
    let rest = said.split_once(label).unwrap_or_else(|| panic!("no {label:?} in {said}")).1;
    let digits: String =
        rest.trim_start().chars().take_while(|character| character.is_ascii_digit() || *character == '.').collect();
    digits.parse().unwrap_or_else(|_| panic!("no number after {label:?} in {said}"))
}

#[test]
fn curl_gets_its_page_from_every_server() {
    against_every_server(|kind, url| {
        for flag in ["--http1.1", "--http1.0", "--head"] {
            let Some(said) = run("curl", &["--silent", "--show-error", "--include", flag, url]) else {
                return;
            };
            assert!(said.starts_with("HTTP/1.1 200 OK\r\n"), "{}: {said}", kind.name);
        }
        let posted = run("curl", &["--silent", "--show-error", "--data", "some=thing", url, url]);
        assert_eq!(posted.map(|said| said.matches("handled by worker").count()), Some(2), "{}", kind.name);
    });
}

#[test]
fn ab_finds_no_failed_request_with_keep_alive_and_without() {
    against_every_server(|kind, url| {
        for keep_alive in [&["-k"][..], &[]] {
            let args = [&["-q", "-n", "500", "-c", clients(kind)], keep_alive, &[url]].concat();
            let Some(said) = run("ab", &args) else { return };
            assert_eq!(number_after("Complete requests:", &said), 500.0, "{}", kind.name);
            assert_eq!(number_after("Failed requests:", &said), 0.0, "{}", kind.name);
            if !keep_alive.is_empty() {
                assert_eq!(number_after("Keep-Alive requests:", &said), 500.0, "{}", kind.name);
            }
        }
    });
}

#[test]
fn wrk_reports_no_socket_error() {
    against_every_server(|kind, url| {
        let Some(said) = run("wrk", &["-t", "1", "-c", clients(kind), "-d", "1s", url]) else { return };
        assert!(number_after("Requests/sec:", &said) > 0.0, "{}", kind.name);
        assert!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{}: {said}", kind.name);
    });
}

#[test]
fn h2load_over_http_1_succeeds_with_every_request() {
    against_every_server(|kind, url| {
        let Some(said) = run("h2load", &["--h1", "-n", "500", "-c", clients(kind), url]) else { return };
        assert!(said.contains("500 succeeded, 0 failed, 0 errored, 0 timeout"), "{}: {said}", kind.name);
    });
}

/// The two tables of the text that lesson 1 follows, as siege tells them.
#[test]
fn siege_sees_serial_times_from_sync_and_parallel_ones_from_prefork() {
    let response_time_s = |name, flags: &[&str]| {
        let server = start(name, flags);
        let said = run("siege", &["-b", "-c", "2", "-r", "3", &format!("http://{}/", server.addr)])?;
        assert_eq!(number_after("\"availability\":", &said), 100.0, "{name}");
        assert_eq!(number_after("\"failed_transactions\":", &said), 0.0, "{name}");
        Some((number_after("\"response_time\":", &said), number_after("\"elapsed_time\":", &said)))
    };
    let Some((serial_s, serial_elapsed_s)) = response_time_s("sync", &["--work", "block:500ms"]) else {
        return;
    };
    let parallel = response_time_s("prefork", &["--workers", "3", "--work", "block:500ms"]);
    let (parallel_s, _) = parallel.expect("siege was there a moment ago");
    // Six requests one after another cannot take less than six times half a second. In parallel a request takes
    // half a second, in series (all but the first) two of them.
    assert!(serial_elapsed_s >= 3.0, "{serial_elapsed_s}");
    assert!(serial_s > 1.4 * parallel_s, "serial {serial_s} s, parallel {parallel_s} s");
}
