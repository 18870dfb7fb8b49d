//! Coordinated omission, shown in one command: the same server with the same stall, as a closed loop and as an
//! open loop see it (Tene 2013, "How NOT to Measure Latency").
//!
//! The server is a thread of this process. Each loop has one connection, so what waits for the stall to end waits in
//! the client's schedule, and response times count it.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl;
use serde::Serialize;

use crate::console;
use crate::failure::Failure;
use crate::load::options::args::plan_of;
use crate::load::output::text::{STATISTICS, heads};
use crate::load::run;
use crate::load::run::observers::Observers;
use crate::report::{Latency, LoadReport, Traced};
use crate::terminal::{step, wrapped};

/// What the work for a request takes; the worker sleeps meanwhile.
const SERVICE: Duration = Duration::from_millis(1);
/// When in a run the server stops answering, and for how long.
const STALL_FROM: Duration = Duration::from_secs(1);
const STALL: Duration = Duration::from_secs(1);
/// Long enough to work the backlog off.
const RUN: Duration = Duration::from_secs(3);
/// The rate of the open loop, a fifth of what the server can do.
const RATE_PER_S: f64 = 200.0;
const BIN: Duration = Duration::from_millis(100);

#[derive(Serialize)]
pub struct Demonstration {
    closed: LoadReport,
    open: LoadReport,
    /// Pictures of the closed and of the open loop, made of single answers, which the reports then leave out.
    #[serde(skip)]
    pictures: [String; 2],
}

pub fn run() -> Result<Demonstration, String> {
    let server = start_server().map_err(|error| Failure::new("start a server on 127.0.0.1", error))?;
    let measure = |name: &str, flags: &str| {
        console::log(format_args!("{name}: {} s …", RUN.as_secs()));
        let options = format!("--connections 1 --duration {}s --show answers:100000 {flags}", RUN.as_secs());
        let plan = plan_of(&format!("{options} --progress none"), &format!("http://{server}/"));
        Ok::<_, String>(run::run(&plan, Observers::none())?.report)
    };
    let mut closed = measure("closed loop", "")?;
    let mut open = measure("open loop", &format!("--rate {RATE_PER_S}"))?;
    let pictures = [&mut closed, &mut open].map(|report| picture(&std::mem::take(&mut report.trace)));
    Ok(Demonstration { closed, open, pictures })
}

/// It ends with the process.
fn start_server() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::Builder::new().spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || serve(connection));
        }
    })?;
    Ok(address)
}

/// A client that goes away ends its connection, and that is all.
fn serve(mut connection: TcpStream) -> io::Result<()> {
    // A millisecond is to be one, without 50 µs of slack (prctl(2), PR_SET_TIMERSLACK).
    let _ = prctl::set_timerslack(1);
    let mut requests = BufReader::new(connection.try_clone()?);
    let mut first = None;
    let mut line = String::new();
    while requests.read_line(&mut line)? > 0 {
        if line == "\r\n" {
            let age = first.get_or_insert_with(Instant::now).elapsed();
            if (STALL_FROM..STALL_FROM + STALL).contains(&age) {
                thread::sleep(STALL_FROM + STALL - age);
            }
            thread::sleep(SERVICE);
            connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
        }
        line.clear();
    }
    Ok(())
}

/// What a stall of length S does to requests that are due at a constant rate. One that is due u after its beginning
/// waits for the rest of the stall, S − u, and for the requests before it, ρ·u. So the delay falls in a straight line
/// from S to zero at u = S / (1 − ρ), and over all delayed requests it is uniform between 0 and S.
struct Expected {
    service_s: f64,
    /// ρ = rate · service time: the share of the server that new requests need.
    utilization: f64,
    /// S / (1 − ρ).
    delayed_for_s: f64,
    delayed: f64,
}

impl Expected {
    fn open(service_s: f64) -> Expected {
        let utilization = RATE_PER_S * service_s;
        // A machine that is too slow for the rate does not catch up within the run.
        let rest_s = (RUN - STALL_FROM).as_secs_f64();
        let delayed_for_s = (STALL.as_secs_f64() / (1.0 - utilization).max(f64::EPSILON)).min(rest_s);
        Expected { service_s, utilization, delayed_for_s, delayed: delayed_for_s / RUN.as_secs_f64() }
    }

    fn quantile_s(&self, quantile: f64) -> f64 {
        let from_the_top = ((1.0 - quantile) / self.delayed).min(1.0);
        STALL.as_secs_f64() * (1.0 - from_the_top) + self.service_s
    }
}

fn latency(quantile_s: impl Fn(f64) -> f64) -> Latency {
    let us = |quantile| quantile_s(quantile) * 1e6;
    Latency { p50: us(0.5), p90: us(0.9), p99: us(0.99), p99_9: us(0.999), max: us(1.0), ..Latency::default() }
}

impl Demonstration {
    pub fn render(&self) -> String {
        let Demonstration { closed, open, pictures: [closed_picture, open_picture] } = self;
        // The typical request of the closed loop did not wait.
        let service_s = closed.latency_us.p50 / 1e6;
        let expected = Expected::open(service_s);
        let n = closed.requests;
        // Of n requests on one connection one waits.
        let closed_s = |q: f64| service_s + if (1.0 - q) * n as f64 <= 1.0 { STALL.as_secs_f64() } else { 0.0 };
        let columns = heads(STATISTICS, 9);
        let rows = [
            row("closed loop", &n.to_string(), &closed.latency_us),
            row("  expected", "", &latency(closed_s)),
            row(&format!("open loop, {RATE_PER_S}/s"), &open.requests.to_string(), &open.latency_us),
            row("  expected", "", &latency(|quantile| expected.quantile_s(quantile))),
        ];
        let mut text = format!(
            "One server, one worker, 1 ms of work for a request.\nFrom 1 s to 2 s of each run it stands still.\n\n\
             {:21}requests{columns} ms\n{}\n\
             The longest response time, by the tenth of a second in which the request was\ndue (·: there was none)\n\n\
             closed loop  {closed_picture}\nopen loop    {open_picture}\n{:13}0 s       1 s       2 s       3 s\n",
            "",
            rows.concat(),
            ""
        );
        let percent = |share: f64| format!("{:.3} %", share * 100.0);
        let (delayed_one, delayed) = (1.0 / n.max(1) as f64, percent(expected.delayed));
        let (one, all_but_one) = (percent(delayed_one), percent(1.0 - delayed_one));
        let Expected { utilization, delayed_for_s, .. } = expected;
        let (service_ms, p99_ms) = (service_s * 1e3, expected.quantile_s(0.99) * 1e3);
        let (stall_s, run_s, of_100) = (STALL.as_secs(), RUN.as_secs(), expected.delayed * 100.0);
        let paragraphs = [
            format!(
                "Closed loop: the only connection waits, and nothing else is sent. 1 request of {n} is delayed, \
                 {one}, and no percentile below {all_but_one} sees it."
            ),
            format!(
                "Open loop: {RATE_PER_S} requests are due in each second of the stall S = {stall_s} s too. When it \
                 is over, new ones go on taking ρ = rate x service time = {RATE_PER_S}/s x {service_ms:.2} ms = \
                 {utilization:.2} of the server, so the backlog is gone S / (1 - ρ) = {delayed_for_s:.2} s after the \
                 stall began. Who was due in that time is delayed: {delayed_for_s:.2} s of {run_s} s, {delayed}. The \
                 first waits for S, the last for nothing, those between evenly less:"
            ),
            format!("p99 = S x (1 - 1 % / {delayed}) + {service_ms:.2} ms = {p99_ms:.0} ms."),
            format!(
                "In short: both clients used the same server with the same lost second. The closed loop sent nothing \
                 while it waited, so the requests that would have waited are missing, and it reports one slow \
                 request in {n}. Users do not wait for the server before they come: the open loop sends when they \
                 would, and of every 100 of them {of_100:.0} had to wait."
            ),
        ];
        for paragraph in &paragraphs {
            text += &format!("\n{}\n", wrapped(paragraph, 80, 2).join("\n"));
        }
        text
    }
}

fn row(name: &str, requests: &str, latency: &Latency) -> String {
    let times = latency.named()[..STATISTICS].iter().map(|(_, us)| format!("{:>9.2}", us / 1e3)).collect::<String>();
    format!("{name:20}{requests:>9}{times}\n")
}

/// The longest response time of each bin, in eighths of the stall (Unicode block elements).
fn picture(trace: &[Traced]) -> String {
    let bins = (RUN.as_micros() / BIN.as_micros()) as usize;
    let mut longest_us: Vec<Option<f64>> = vec![None; bins];
    for answer in trace {
        let due_us = (answer.at_us - answer.latency_us).max(0.0);
        if let Some(longest) = longest_us.get_mut((due_us / BIN.as_micros() as f64) as usize) {
            *longest = Some(longest.unwrap_or(0.0).max(answer.latency_us));
        }
    }
    let mark = |us: &Option<f64>| us.map_or('·', |us| step(us, STALL.as_micros() as f64));
    longest_us.iter().map(mark).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Response times, request by request: each begins when it is due, when the one before is done, and not within
    /// the stall (Lindley 1952, with a break).
    fn simulated_s(service_s: f64) -> Vec<f64> {
        let (from_s, until_s) = (STALL_FROM.as_secs_f64(), (STALL_FROM + STALL).as_secs_f64());
        let mut free_s = 0.0_f64;
        let n = (RATE_PER_S * RUN.as_secs_f64()) as u32;
        let due_s = (0..n).map(|k| f64::from(k) / RATE_PER_S);
        let mut times: Vec<f64> = due_s
            .map(|due_s| {
                let ready_s = free_s.max(due_s);
                let begin_s = if (from_s..until_s).contains(&ready_s) { until_s } else { ready_s };
                free_s = begin_s + service_s;
                free_s - due_s
            })
            .collect();
        times.sort_by(f64::total_cmp);
        times
    }

    #[test]
    fn the_closed_form_is_what_a_simulation_of_the_stall_gives() {
        for service_s in [0.0001, 0.001, 0.0025] {
            let times = simulated_s(service_s);
            let expected = Expected::open(service_s);
            for quantile in [0.3, 0.5, 0.6, 0.75, 0.9, 0.99, 0.999] {
                let simulated = times[(quantile * times.len() as f64) as usize];
                let difference = (expected.quantile_s(quantile) - simulated).abs();
                // One request more or less is a gap, and the requests of a gap take a little of their own.
                assert!(difference < 2.0 / RATE_PER_S, "{service_s} s, {quantile}: {difference} s");
            }
            let delayed = times.iter().filter(|&&time| time > service_s * 1.5).count();
            let share = delayed as f64 / times.len() as f64;
            assert!((share - expected.delayed).abs() < 0.01, "{share} of {}", expected.delayed);
        }
    }

    #[test]
    fn the_picture_shows_the_worst_by_due_time_and_where_nobody_asked() {
        let answer = |due_ms: f64, latency_ms: f64| Traced {
            at_us: (due_ms + latency_ms) * 1e3,
            latency_us: latency_ms * 1e3,
            ..Traced::default()
        };
        let trace = [answer(0.0, 1.0), answer(50.0, 600.0), answer(60.0, 1.0), answer(250.0, 1000.0)];
        let picture = picture(&trace);
        assert!(picture.starts_with("▆·█·") && picture.chars().count() == 30, "{picture}");
    }

    #[test]
    fn the_page_names_the_share_and_the_percentile_that_the_formula_gives() {
        let latency_us = Latency { p50: 1000.0, ..Latency::default() };
        let closed = LoadReport { requests: 2000, latency_us, ..LoadReport::default() };
        let open = LoadReport { requests: 600, ..LoadReport::default() };
        let page = Demonstration { closed, open, pictures: Default::default() }.render();
        // Wherever the lines break.
        let words = page.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in ["1 request of 2000 is delayed, 0.050 %", "1.25 s of 3 s, 41.667 %", "= 977 ms", "100 of them 42"] {
            assert!(words.contains(part), "{part} is not in\n{page}");
        }
        assert!(page.lines().all(|line| line.chars().count() <= 80), "{page}");
    }
}
