//! From the plan to what all measuring threads have in common: the address, and the bytes of the requests.

use nix::errno::Errno;
use socket2::SockAddr;

use crate::failure::Failure;
use crate::load::client::ClientSettings;
use crate::load::client::route::Route;
use crate::load::counts::tally::Measures;
use crate::load::options::plan::{Close, Plan};
use crate::load::options::values::is_host;

/// Fits into one segment on every path (RFC 9293, section 3.7.1).
const ONE_SEGMENT_BYTES: usize = 536;
/// Sends that are kept with their due times to judge the schedule by.
const SENDS_KEPT: usize = 20_000;

pub fn settings(plan: &Plan) -> Result<ClientSettings, String> {
    let Plan { target, connections, pacing, .. } = plan;
    let address = match &target.unix {
        None => target.resolve()?.into(),
        Some(path) => SockAddr::unix(path).map_err(|error| format!("connect {}: {error}", path.display()))?,
    };
    let one = request_bytes(plan, "");
    let no_delay = one.len() > ONE_SEGMENT_BYTES;
    let reset = connections.close == Close::Rst;
    let is_open_loop = pacing.is_open_loop();
    Ok(ClientSettings {
        route: Route { address, sources: plan.sources.clone(), no_delay, reset },
        requests: one.repeat(connections.pipeline as usize),
        request_bytes: one.len(),
        pipeline: connections.pipeline as usize,
        // A client that resets is first to close, and need not ask for it.
        last_request: request_bytes(plan, if reset { "" } else { "Connection: close\r\n" }),
        no_body: plan.method.name == "HEAD",
        open_loop: is_open_loop,
        sessions: pacing.sessions,
        thinks: pacing.think.is_some(),
        connect_only: connections.connect_only(),
        retry: connections.retry,
        requests_per_connection: connections.requests_each.filter(|&requests| requests > 0),
        timeout_ns: connections.timeout.as_nanos() as u64,
        deadline_ns: pacing.deadline.map_or(u64::MAX, |deadline| deadline.as_nanos() as u64),
        ends_by_count: plan.window.requests.is_some(),
        busy_poll: plan.threads.busy_poll,
        measures: Measures {
            from_due: is_open_loop,
            send_delay: is_open_loop || pacing.think.is_some(),
            workers: plan.workers as usize,
            trace: plan.show.answers as usize,
            order: plan.show.order as usize,
            sends: if is_open_loop { SENDS_KEPT / plan.threads.count as usize } else { 0 },
        },
    })
}

/// No connection was established: the errno of the first attempt.
pub fn unreachable(plan: &Plan, settings: &ClientSettings, errno: Errno) -> Failure {
    let unix = plan.target.unix.as_ref().map(|path| path.display().to_string());
    let inet = settings.route.address.as_socket().map(|address| address.to_string());
    let address = unix.or(inet).unwrap_or_else(|| plan.target.authority.clone());
    let advice = match errno {
        Errno::ECONNREFUSED | Errno::ETIMEDOUT | Errno::ENOENT => "is the server running?",
        Errno::EADDRNOTAVAIL => "is each --source an address of this machine, with a port to spare?",
        Errno::ENETUNREACH | Errno::EHOSTUNREACH => "no route leads to this address; is it right?",
        Errno::EMFILE | Errno::ENFILE => "raise `ulimit -n`, or ask for fewer connections",
        Errno::EACCES | Errno::EPERM => "may this user connect, and does no firewall forbid it?",
        _ => "is the address right?",
    };
    Failure::new(format_args!("connect {address}"), errno).advise(advice)
}

/// As few headers as HTTP/1.1 allows.
fn request_bytes(plan: &Plan, more_headers: &str) -> Vec<u8> {
    let Plan { target, method, headers, .. } = plan;
    let mut head = format!("{} {} HTTP/1.1\r\n", method.name, target.path);
    if !headers.iter().any(|header| is_host(header)) {
        head += &format!("Host: {}\r\n", target.authority);
    }
    headers.iter().for_each(|header| head += &format!("{header}\r\n"));
    if method.has_body() {
        head += &format!("Content-Length: {}\r\n", method.body_bytes);
    }
    let mut bytes = (head + more_headers + "\r\n").into_bytes();
    bytes.resize(bytes.len() + method.body_bytes as usize, b'x');
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::options::args::plan_of;

    #[test]
    fn a_host_header_replaces_that_of_the_url() {
        let bytes = |options: &str| settings(&plan_of(options, "http://127.0.0.1:80/a?b")).unwrap().requests;
        assert_eq!(bytes(""), b"GET /a?b HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\r\n");
        assert_eq!(bytes("-H host:x.org"), b"GET /a?b HTTP/1.1\r\nhost: x.org\r\n\r\n");
        let post = b"POST /a?b HTTP/1.1\r\nHost: 127.0.0.1:80\r\nContent-Length: 2\r\n\r\nxx";
        assert_eq!(bytes("--method POST:2"), post);
    }
}
