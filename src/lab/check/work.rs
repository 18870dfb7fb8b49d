//! Points about what one request costs.

use std::time::{Duration, Instant};

use super::client::{Client, GET};
use super::server::Program;
use super::{FLAGS, Point, ProbeResult, broken, own, start};

pub const POINTS: &[Point] = &[
    own(FLAGS, "work-wait", "--work wait:DUR takes at least so long", |program| takes(program, "wait:80ms", 80)),
    own(FLAGS, "work-block", "--work block:DUR takes at least so long", |program| takes(program, "block:80ms", 80)),
    // Short: where fifty others want the CPU, each of its milliseconds takes fifty.
    own(FLAGS, "work-spin", "--work spin:DUR takes at least so long", |program| takes(program, "spin:20ms", 20)),
    own(FLAGS, "work-fraction", "a duration may have a fraction", |program| takes(program, "block:1.8ms", 1)),
    own(FLAGS, "work-mixture", "a mixture makes some requests cheap and some expensive", mixture),
    own(FLAGS, "wrong-work", "wrong work is a wrong flag", |program| {
        for work in ["dance:1s", "block", "block:1", "50%none,20%block:1ms"] {
            start::refused(program, &["--work", work])?;
        }
        Ok(())
    }),
];

fn takes(program: &Program, work: &str, at_least_ms: u64) -> ProbeResult {
    let server = program.start(&["--work", work])?;
    let mut client = Client::connect(server.addr)?;
    for _ in 0..2 {
        let took = timed(&mut client)?;
        if took < Duration::from_millis(at_least_ms) {
            return broken(format!("at least {at_least_ms}ms with --work {work}"), format!("{took:?}"));
        }
    }
    Ok(())
}

/// On a machine that is late even what costs nothing may take the first time, so that only the second one tells.
fn mixture(program: &Program) -> ProbeResult {
    mixes(program, Duration::from_millis(50)).or_else(|_| mixes(program, Duration::from_millis(500)))
}

/// By chance, 40 requests are all of one kind once in 2³⁹ times. Each has a connection of its own, because a server
/// must not begin with the same random numbers at every connection.
fn mixes(program: &Program, expensive: Duration) -> ProbeResult {
    let server = program.start(&["--work", &format!("50%none,50%wait:{}ms", expensive.as_millis())])?;
    let times = (0..40).map(|_| timed(&mut Client::connect(server.addr)?)).collect::<ProbeResult<Vec<_>>>()?;
    let count = times.iter().filter(|took| **took >= expensive).count();
    if count == 0 || count == times.len() {
        return broken(
            format!("some of 40 requests take {expensive:?} and some do not"),
            format!("{count} of them do"),
        );
    }
    Ok(())
}

fn timed(client: &mut Client) -> ProbeResult<Duration> {
    let sent = Instant::now();
    client.ask(GET)?.expect(200)?;
    Ok(sent.elapsed())
}
