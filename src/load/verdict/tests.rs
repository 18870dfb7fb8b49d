use super::*;
use crate::report::{ClientCost, Configuration, DeadlineCounts, Latency};
use fastrand::Rng;

const RATE: f64 = 2000.0;
const SECONDS: f64 = 10.0;
const PART_NS: u64 = 100_000_000;

/// What decides the moments at which requests are due.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Pattern {
    Closed,
    Fixed,
    Poisson,
    Burst(u32),
    Ramp,
    Replay,
    Sessions,
}

/// What its facts borrow, and those that are numbers.
struct TestRun {
    report: LoadReport,
    run: RunInfo,
    sends: Vec<Sent>,
    parts: Vec<(u64, u64, SeriesPart)>,
    answered_of_due: u64,
    responses: u64,
    machine: Counters,
    connections_peak: u64,
    connections_opened: u64,
    connections_starved: u64,
    ports_per_s: Option<f64>,
}

impl TestRun {
    fn facts(&self) -> RunFacts<'_> {
        RunFacts {
            report: &self.report,
            run: &self.run,
            due_in_window: if self.run.configuration.is_open_loop() { self.sends.len() as u64 } else { 0 },
            answered_of_due: self.answered_of_due,
            sent: self.sends.len() as u64,
            responses: self.responses,
            sends: &self.sends,
            parts: &self.parts,
            machine: self.machine,
            machine_s: self.report.duration_s,
            connections_peak: self.connections_peak,
            connections_opened: self.connections_opened,
            connections_starved: self.connections_starved,
            ports_per_s: self.ports_per_s,
        }
    }

    fn judge(&self) -> Trust {
        super::judge(&self.facts())
    }

    fn fail(&mut self, requests: u64) {
        self.report.errors.read.insert("ECONNRESET".into(), requests);
    }

    /// The checks that did not pass.
    fn defects(&self) -> Vec<(String, Verdict)> {
        let checks = self.judge().checks.into_iter();
        let failed = checks.filter(|check| check.verdict != Verdict::Valid);
        failed.map(|check| (check.name, check.verdict)).collect()
    }
}

fn exponential_ns(rng: &mut Rng, mean_ns: f64) -> f64 {
    -mean_ns * (1.0 - rng.f64()).ln()
}

fn good(pattern: Pattern, seed: u64) -> TestRun {
    good_for(SECONDS, pattern, seed)
}

/// An idle server, and an idle client that is a few wake-ups late.
fn good_for(seconds: f64, pattern: Pattern, seed: u64) -> TestRun {
    let mut rng = Rng::with_seed(seed);
    let times = Latency { p50: 300.0, p90: 450.0, p99: 900.0, p99_9: 2500.0, max: 4000.0, mean: 320.0, stdev: 90.0 };
    let n = (RATE * seconds) as u64;
    let mut due_ns = 0.0;
    let mut dues: Vec<u64> = (0..n)
        .map(|k| {
            due_ns = match pattern {
                Pattern::Poisson => due_ns + exponential_ns(&mut rng, 1e9 / RATE),
                Pattern::Burst(size) => (k / u64::from(size) * u64::from(size)) as f64 * 1e9 / RATE,
                Pattern::Ramp => (k as f64 / n as f64).sqrt() * seconds * 1e9,
                _ => k as f64 * 1e9 / RATE,
            };
            due_ns as u64
        })
        .collect();
    if pattern == Pattern::Poisson {
        dues.retain(|&due| due < (seconds * 1e9) as u64);
    }
    let sends: Vec<Sent> = dues
        .iter()
        .map(|&due_ns| Sent { due_ns, sent_ns: due_ns + 5_000 + exponential_ns(&mut rng, 15_000.0) as u64 })
        .collect();
    let parts = (0..100)
        .map(|i| {
            let answers = 180 + rng.u64(0..40);
            let latency_sum_ns = (answers as f64 * (300.0 + 40.0 * rng.f64()) * 1e3) as u64;
            (i * PART_NS, (i + 1) * PART_NS, SeriesPart { answers, latency_sum_ns, ..SeriesPart::default() })
        })
        .collect();
    let requests = sends.len() as u64;
    let is_timed = !matches!(pattern, Pattern::Closed | Pattern::Replay);
    let configuration = Configuration {
        arrivals: match pattern {
            Pattern::Closed => ArrivalsKind::Closed,
            Pattern::Fixed | Pattern::Ramp => ArrivalsKind::Fixed,
            Pattern::Poisson | Pattern::Sessions => ArrivalsKind::Poisson,
            Pattern::Burst(size) => ArrivalsKind::Burst(size),
            Pattern::Replay => ArrivalsKind::Replay("times.txt".into()),
        },
        rate_per_s: is_timed.then_some(RATE),
        ramp_to_per_s: (pattern == Pattern::Ramp).then_some(RATE),
        sessions: pattern == Pattern::Sessions,
        connections: 64,
        duration_s: Some(seconds),
        ..Configuration::default()
    };
    let report = LoadReport {
        requests,
        duration_s: seconds,
        latency_us: times,
        service_us: Latency { p50: 270.0, mean: 290.0, ..times },
        send_delay_us: Latency { p50: 15.0, p90: 40.0, p99: 75.0, p99_9: 110.0, max: 200.0, mean: 20.0, stdev: 15.0 },
        client: ClientCost { cpu_share: 0.2, ..ClientCost::default() },
        ..LoadReport::default()
    };
    TestRun {
        report,
        run: RunInfo { configuration, ..RunInfo::default() },
        sends,
        parts,
        answered_of_due: if pattern == Pattern::Closed { 0 } else { requests },
        responses: requests,
        machine: Counters::default(),
        connections_peak: 64,
        connections_opened: 64,
        connections_starved: 0,
        ports_per_s: None,
    }
}

fn named(name: &str) -> &'static Rule {
    RULES.iter().find(|rule| rule.name == name).unwrap()
}

const PATTERNS: [Pattern; 6] =
    [Pattern::Closed, Pattern::Fixed, Pattern::Poisson, Pattern::Burst(10), Pattern::Ramp, Pattern::Replay];

#[test]
fn a_good_run_of_every_kind_is_valid_and_says_why() {
    for pattern in PATTERNS.into_iter().chain([Pattern::Sessions]) {
        let trust = good(pattern, 1).judge();
        assert_eq!(trust.verdict, Verdict::Valid, "{pattern:?}: {:?}", good(pattern, 1).defects());
        assert!(trust.checks.len() > 8);
        assert!(trust.checks.iter().all(|check| !check.reason.is_empty() && !check.reason.contains('\n')));
        assert!(RULES.iter().all(|rule| !(rule.limit)().is_empty()));
    }
}

#[test]
fn a_good_poisson_run_is_accused_less_than_once_in_a_hundred() {
    let accused = (0..1000).filter(|&seed| !good_for(1.0, Pattern::Poisson, seed).defects().is_empty()).count();
    assert!(accused <= 10, "{accused} of 1000");
}

/// Each defect alone fails its check, and no other.
#[track_caller]
fn fails(pattern: Pattern, name: &str, verdict: Verdict, spoil: impl Fn(&mut TestRun)) {
    let mut run = good(pattern, 3);
    spoil(&mut run);
    assert_eq!(run.defects(), [(name.to_string(), verdict)], "{:#?}", run.judge());
    assert_eq!(run.judge().verdict, verdict);
}

#[test]
fn uniform_gaps_are_not_poisson() {
    fails(Pattern::Poisson, "gaps", Verdict::Suspect, |run| {
        let mut rng = Rng::with_seed(5);
        let mut at_ns = 0;
        for send in &mut run.sends {
            at_ns += rng.u64(0..(2e9 / RATE) as u64);
            send.sent_ns = at_ns;
        }
    });
}

#[test]
fn poisson_arrivals_sent_in_batches_are_neither_poisson_nor_independent() {
    let mut run = good(Pattern::Poisson, 3);
    // A client that looks at the clock once a millisecond.
    run.sends.iter_mut().for_each(|send| send.sent_ns = send.sent_ns.div_ceil(1_000_000) * 1_000_000);
    let suspect = |name: &str| (name.to_string(), Verdict::Suspect);
    assert_eq!(run.defects(), [suspect("gaps"), suspect("independence")]);
}

#[test]
fn gaps_in_a_certain_order_are_not_independent() {
    fails(Pattern::Poisson, "independence", Verdict::Suspect, |run| {
        // The same gaps by twos, as they are judged at this rate; each eight in ascending order: long follows long.
        let gaps: Vec<u64> = run.sends.windows(2).map(|pair| pair[1].sent_ns.saturating_sub(pair[0].sent_ns)).collect();
        let mut twos: Vec<&[u64]> = gaps.chunks(2).collect();
        twos.chunks_mut(8).for_each(|part| part.sort_unstable_by_key(|two| two.iter().sum::<u64>()));
        let mut at_ns = run.sends[0].sent_ns;
        for (send, gap) in run.sends[1..].iter_mut().zip(twos.concat()) {
            at_ns += gap;
            send.sent_ns = at_ns;
        }
    });
}

#[test]
fn a_fixed_schedule_that_was_not_kept_is_seen() {
    for pattern in [Pattern::Fixed, Pattern::Burst(10), Pattern::Ramp, Pattern::Replay] {
        fails(pattern, "gaps", Verdict::Suspect, |run| {
            run.sends.iter_mut().step_by(10).for_each(|send| send.sent_ns += 2_000_000);
        });
    }
}

#[test]
fn a_run_that_grows_slower_or_loses_pace_drifts() {
    fails(Pattern::Poisson, "drift", Verdict::Suspect, |run| {
        for (i, (.., part)) in run.parts.iter_mut().enumerate() {
            part.latency_sum_ns += part.latency_sum_ns * i as u64 / 100;
        }
    });
    fails(Pattern::Closed, "drift", Verdict::Suspect, |run| {
        for (i, (.., part)) in run.parts.iter_mut().enumerate() {
            let answers = 300 - i as u64;
            *part = SeriesPart { answers, latency_sum_ns: part.latency_sum_ns * answers / part.answers, latency: None };
        }
    });
}

#[test]
fn a_long_run_is_not_accused_of_trifles() {
    let mut run = good(Pattern::Closed, 3);
    let hours = (0..100_000).map(|i| {
        let (from_ns, to_ns, part) = run.parts[i % 100].clone();
        // Three per cent slower at the end: certain, and no matter.
        let latency_sum_ns = (part.latency_sum_ns as f64 * (1.0 + 0.03 * i as f64 / 1e5)) as u64;
        (from_ns, to_ns, SeriesPart { latency_sum_ns, ..part })
    });
    run.parts = hours.collect();
    assert_eq!(run.defects(), []);
}

#[test]
fn each_number_beyond_its_bar_fails_its_own_check() {
    use Pattern::{Closed, Fixed, Poisson};
    use Verdict::{Invalid, Suspect};
    fails(Fixed, "rate", Suspect, |run| run.run.configuration.rate_per_s = Some(RATE * 1.02));
    fails(Poisson, "achieved", Suspect, |run| run.answered_of_due -= 1000);
    fails(Fixed, "achieved", Suspect, |run| run.report.requests -= 1000);
    fails(Closed, "cpu", Suspect, |run| run.report.client.cpu_share = 0.97);
    fails(Fixed, "cpu", Suspect, |run| run.report.client.cpu_share = 0.97);
    fails(Fixed, "send_delay", Suspect, |run| run.report.send_delay_us.p50 = 140.0);
    fails(Fixed, "send_delay", Suspect, |run| run.report.send_delay_us.p99 = 700.0);
    fails(Closed, "steal", Suspect, |run| run.machine.steal_ticks = 1_000_000);
    fails(Closed, "accept_queue", Suspect, |run| {
        run.machine.listen_overflows = 1;
        run.report.connect_us.max = 1_003_000.0;
    });
    fails(Closed, "ports", Suspect, |run| {
        run.ports_per_s = Some(RATE);
        run.report.connect_us.p99_9 = 6_400.0;
    });
    fails(Closed, "errors", Suspect, |run| run.fail(30));
    fails(Closed, "censored", Suspect, |run| run.report.censored = 30);
    fails(Closed, "percentiles", Suspect, |run| run.responses = 99);
    fails(Closed, "connections", Suspect, |run| run.connections_peak = 63);
    fails(Closed, "connections", Invalid, |run| run.connections_peak = 40);
    fails(Closed, "starved", Suspect, |run| run.connections_starved = 1);
    fails(Closed, "complete", Suspect, |run| run.run.interrupted = true);
    fails(Closed, "start", Invalid, |run| (run.run.started_unix_ns, run.run.start_at_unix_ns) = (150_000_000, Some(0)));
    fails(Closed, "requests", Invalid, |run| run.report.requests = 0);
}

#[test]
fn the_number_of_arrivals_of_a_poisson_ramp_is_left_to_chance_and_that_of_a_fixed_one_is_not() {
    let judged = |arrivals: ArrivalsKind, missing: usize| {
        let mut run = good(Pattern::Ramp, 3);
        run.run.configuration.arrivals = arrivals;
        run.sends.truncate(run.sends.len() - missing);
        (named("rate").judge)(&run.facts()).unwrap().0
    };
    // 20,000 of them have the standard deviation 141.
    assert_eq!(judged(ArrivalsKind::Poisson, 3 * 141), Verdict::Valid);
    assert_eq!(judged(ArrivalsKind::Poisson, 5 * 141), Verdict::Suspect);
    assert_eq!(judged(ArrivalsKind::Fixed, 3 * 141), Verdict::Suspect);
}

#[test]
fn connections_wait_in_vain_only_where_each_was_to_be_kept_and_the_answers_would_do_for_all() {
    let judged = |spoil: fn(&mut TestRun)| {
        let mut run = good(Pattern::Closed, 3);
        run.connections_starved = 60;
        spoil(&mut run);
        (named("starved").judge)(&run.facts())
    };
    let (verdict, reason) = judged(|_| {}).unwrap();
    assert_eq!(verdict, Verdict::Suspect);
    assert!(
        reason.starts_with("60 of 64 connections got no answer") && reason.contains("no worker was free"),
        "{reason}"
    );
    assert_eq!(judged(|run| run.report.requests = 639).unwrap().0, Verdict::Valid);
    assert!(judged(|run| run.run.configuration.requests_per_connection = Some(1)).is_none());
}

#[test]
fn a_rate_that_the_client_could_not_send_makes_the_run_invalid_a_slow_server_does_not() {
    let mut run = good(Pattern::Fixed, 3);
    run.answered_of_due /= 2;
    assert_eq!(run.judge().verdict, Verdict::Suspect);
    run.report.client.cpu_share = 0.99;
    assert_eq!(run.judge().verdict, Verdict::Invalid);
    // A client that spins is always busy, and that says nothing.
    run.run.configuration.busy_poll = true;
    assert_eq!(run.judge().verdict, Verdict::Suspect);
    // Late, and the connections had room.
    run.report.send_delay_us.p50 = 2e6;
    assert_eq!(run.judge().verdict, Verdict::Invalid);
    // Late since every connection was waiting for the server.
    run.report.service_us.mean = 64.0 / RATE * 1e6;
    assert_eq!(run.judge().verdict, Verdict::Suspect);
}

#[test]
fn a_server_that_dies_in_mid_window_makes_the_run_invalid() {
    for pattern in [Pattern::Closed, Pattern::Fixed, Pattern::Poisson, Pattern::Replay] {
        for dies_at in [35, 65, 85] {
            let mut run = good(pattern, 3);
            run.parts[dies_at..].iter_mut().for_each(|(.., part)| *part = SeriesPart::default());
            run.report.requests = run.report.requests * dies_at as u64 / 100;
            run.fail(40);
            let defects = run.defects();
            assert!(defects.contains(&("served".into(), Verdict::Invalid)), "{pattern:?} {defects:?}");
            let drifts = defects.iter().any(|(name, _)| name == "drift");
            assert!(drifts || dies_at > 67 || pattern == Pattern::Replay, "{pattern:?} {defects:?}");
            assert!(run.judge().checks.iter().any(|check| check.reason.contains("nothing was answered")));
        }
    }
}

#[test]
fn silence_is_no_defect_when_nobody_asked_or_answers_take_so_long() {
    let silent = |run: &mut TestRun| {
        run.parts[85..].iter_mut().for_each(|(.., part)| part.answers = 0);
        run.fail(1);
    };
    let served = |run: &TestRun| run.defects().iter().all(|(name, _)| name != "served");
    // A replay whose log ends, or a thinking user.
    let mut run = good(Pattern::Replay, 3);
    silent(&mut run);
    assert!(served(&run));
    let mut run = good(Pattern::Closed, 3);
    silent(&mut run);
    run.report.requests = 20;
    assert!(served(&run));
    let mut run = good(Pattern::Closed, 3);
    silent(&mut run);
    assert!(!served(&run));
    run.report.latency_us.p99_9 = 2e6;
    assert!(served(&run));
    run.report.latency_us.p99_9 = 1e3;
    run.run.interrupted = true;
    assert!(served(&run));
}

#[test]
fn an_early_end_leaves_no_drift_to_judge() {
    let mut run = good(Pattern::Closed, 3);
    run.parts[10..].iter_mut().for_each(|(.., part)| part.answers = 0);
    run.run.interrupted = true;
    let trust = run.judge();
    let drift = trust.checks.iter().find(|check| check.name == "drift").unwrap();
    assert!(drift.reason.starts_with("not judged"), "{}", drift.reason);
}

#[test]
fn a_server_that_breaks_or_wastes_connections_is_not_blamed_on_the_client() {
    let verdict = |run: &TestRun| {
        let trust = run.judge();
        trust.checks.into_iter().find(|check| check.name == "achieved").unwrap()
    };
    // Everything is reset at once, and the client is 0.2 ms late.
    let mut run = good(Pattern::Fixed, 3);
    (run.report.requests, run.answered_of_due) = (0, 0);
    run.fail(20_000);
    run.report.send_delay_us.p50 = 200.0;
    run.report.service_us.mean = 50.0;
    assert_eq!(verdict(&run).verdict, Verdict::Suspect);
    assert!(verdict(&run).reason.contains("failed"), "{}", verdict(&run).reason);
    // Most are abandoned after 50 ms, on connections that are never free.
    let mut run = good(Pattern::Fixed, 3);
    (run.report.requests, run.answered_of_due) = (8_000, 8_000);
    run.report.send_delay_us.p50 = 40_000.0;
    run.run.configuration.deadline_s = Some(0.05);
    run.report.deadline = Some(DeadlineCounts { shed: 12_000, abandoned: 0 });
    assert_eq!(verdict(&run).verdict, Verdict::Suspect);
}

#[test]
fn a_burst_larger_than_the_connections_waits_for_them_not_for_the_client() {
    let mut run = good(Pattern::Burst(100), 3);
    run.report.send_delay_us.p50 = 140.0;
    assert!((SEND_DELAY.judge)(&run.facts()).unwrap().1.contains("more --connections"));
    run.run.configuration.arrivals = ArrivalsKind::Burst(10);
    assert!((SEND_DELAY.judge)(&run.facts()).unwrap().1.contains("client's own"));
}

#[test]
fn requests_that_wait_for_a_handshake_are_not_blamed_on_the_client() {
    let mut run = good(Pattern::Poisson, 3);
    // An accept queue that is full: of 64 connections some are always waiting for the second SYN, sent after a second.
    run.report.send_delay_us.p99 = 1_000_000.0;
    run.connections_opened = 400;
    run.report.connect_us =
        Latency { p50: 90.0, p99: 1_020_000.0, max: 3_060_000.0, mean: 500_000.0, ..Latency::default() };
    let (verdict, reason) = (SEND_DELAY.judge)(&run.facts()).unwrap();
    assert_eq!(verdict, Verdict::Suspect);
    assert!(reason.contains("handshakes took 1.02s at p99") && reason.contains("--backlog"), "{reason}");
    // Nor is the run invalid because half of it was never answered.
    run.report.send_delay_us.p50 = 2_000_000.0;
    run.answered_of_due /= 2;
    run.connections_opened = 1200;
    assert_eq!((named("achieved").judge)(&run.facts()).unwrap().0, Verdict::Suspect);
}

#[test]
fn few_answers_are_counted_and_not_accused() {
    let reason = |responses| {
        let mut run = good(Pattern::Closed, 3);
        run.responses = responses;
        (named("percentiles").judge)(&run.facts()).unwrap().1
    };
    assert_eq!(reason(99), "of 99 times p99 is the maximum: do not quote it");
    assert_eq!(reason(780), "p99 rests on 7 answers, p99.9 is the maximum: do not quote them");
    assert_eq!(reason(1_999), "p99 rests on 19 answers, p99.9 rests on 1 answer: do not quote it");
    assert_eq!(reason(50_000), "p99 rests on 500 answers");
}

#[test]
fn what_is_no_defect_passes() {
    let passes = |pattern, spoil: fn(&mut TestRun)| {
        let mut run = good(pattern, 3);
        spoil(&mut run);
        assert_eq!(run.defects(), [], "{pattern:?}");
    };
    passes(Pattern::Closed, |run| run.responses = 100);
    // Four kept connections overflow no queue, and nobody here waited for one.
    passes(Pattern::Closed, |run| run.machine.listen_overflows = 9);
    passes(Pattern::Closed, |run| {
        run.machine.listen_overflows = 9;
        run.connections_opened = 4;
        run.report.latency_us.max = 1e6;
    });
    // Two requests need no more than two connections, a connection per request opens as many as it needs.
    passes(Pattern::Closed, |run| (run.report.requests, run.connections_peak) = (2, 2));
    passes(Pattern::Fixed, |run| {
        run.run.configuration.requests_per_connection = Some(1);
        run.report.connect_us = Latency { p50: 900.0, p99: 1500.0, p99_9: 2000.0, ..Latency::default() };
        run.report.send_delay_us = Latency { p50: 920.0, p99: 1550.0, p99_9: 2090.0, ..run.report.send_delay_us };
        run.connections_peak = 3;
    });
    // A send delay of microseconds beside a response of microseconds.
    passes(Pattern::Fixed, |run| run.report.latency_us.p50 = 40.0);
    // What is under way at the end of a short run is not missing.
    passes(Pattern::Fixed, |run| {
        run.report.latency_us.mean = 400_000.0;
        run.report.requests -= 800;
    });
    // The end was a number of requests: the last answer decides how long it took.
    passes(Pattern::Fixed, |run| {
        run.run.configuration.requests = Some(20_000);
        run.report.duration_s = SECONDS * 1.4;
    });
}
