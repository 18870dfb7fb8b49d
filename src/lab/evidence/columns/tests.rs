use super::*;
use crate::lab::observe::kernel_counts::KernelCounts;
use crate::report::{
    AcceptCounts, ConnectionCounts, EvennessPair, MasterReport, OutsideWindow, ServerReport, WorkerShare,
};

/// A row as a connection-per-request run leaves it: 90 of 100 requests in the window.
pub(crate) fn row() -> Row {
    let worker = |id, accepted| WorkerReport {
        id,
        accepted,
        requests: accepted,
        wakeups: accepted + 1,
        cpu_user_us: 10 * accepted,
        voluntary_switches: 2 * accepted,
        ..WorkerReport::default()
    };
    let share = |n| WorkerShare { connections: n, requests: n, ..WorkerShare::default() };
    let report = LoadReport {
        requests: 90,
        qps: 90.0,
        duration_s: 1.0,
        workers: [("0".to_string(), share(80)), ("1".to_string(), share(20))].into(),
        connections: ConnectionCounts {
            requested: 8,
            peak_open: 8,
            established: 100,
            answered: 100,
            ..ConnectionCounts::default()
        },
        outside_window: OutsideWindow { warmup: 6, late: 4 },
        ..LoadReport::default()
    };
    Row {
        label: "prefork --workers 3".to_string(),
        server_command: "prefork --workers 3 --work block:20ms --listen 127.0.0.1:0".to_string().into(),
        client_command: "loadgen --connections 8".to_string().into(),
        law: Some("min(M,C)/N".to_string()),
        server_cpus: vec![0, 1],
        server: Some(ServerReport {
            workers: vec![worker(0, 80), worker(1, 20), worker(2, 0)],
            ..ServerReport::default()
        }),
        load: Some(report),
        ..Row::default()
    }
}

fn number(name: &str, row: &Row) -> Option<f64> {
    find(name).unwrap().number(Sample { row, baseline: Some(row) })
}

#[test]
fn numbers_come_from_both_reports() {
    let row = row();
    for (name, value) in [
        ("qps", 90.0),
        ("law_qps", 150.0),
        ("deviation", -40.0),
        ("share_of_baseline", 1.0),
        ("connections_per_s", 90.0),
        ("server_cpu_per_connection", 10.0),
        ("wakeups", 1.03),
        ("switches", 2.0),
        ("timeouts", 0.0),
    ] {
        assert!((number(name, &row).unwrap() - value).abs() < 1e-9, "{name}");
    }
}

#[test]
fn a_worker_that_answered_nothing_counts_also_where_the_server_has_no_report() {
    let row = Row { server: None, ..row() };
    assert_eq!(connections_per_worker(&row), Some(vec![80, 20, 0]));
    assert!((number("max_over_mean", &row).unwrap() - 2.4).abs() < 1e-9);
}

#[test]
fn late_answers_and_all_failures_are_in_what_stuck_and_lost_are_shares_of() {
    let mut row = row();
    let report = row.load.as_mut().unwrap();
    report.errors.timeout = 4;
    report.errors.read.insert("ECONNRESET".to_string(), 2);
    // 90 answers in the window and 4 late ones; the 6 of the warm-up do not count.
    assert_eq!((number("stuck", &row), number("lost", &row)), (Some(4.0), Some(6.0)));
}

#[test]
fn what_was_not_measured_has_no_number() {
    for name in ["p50", "pss", "pss_per_connection", "connect_p99", "send_delay_p99"] {
        assert_eq!(number(name, &row()), None, "{name}");
    }
}

#[test]
fn a_master_that_accepts_adds_its_eagain_to_the_workers() {
    let mut row = row();
    assert_eq!(number("accept_eagain", &row), Some(0.0));
    let accepts = AcceptCounts { accept_eagain: 50, ..AcceptCounts::default() };
    let master = MasterReport { accepts: Some(accepts), ..MasterReport::default() };
    row.server.as_mut().unwrap().master = Some(master);
    assert_eq!(number("accept_eagain", &row), Some(0.5));
}

/// The row of a master, 600 µs of CPU, whose workers counted these.
fn of_master(counts: &[(&str, f64)]) -> Row {
    let mut row = row();
    let server = row.server.as_mut().unwrap();
    server.uptime_s = 2.0;
    server.master = Some(MasterReport { pid: 7, cpu_user_us: 600, ..MasterReport::default() });
    let counts = counts.iter().map(|(name, n)| (name.to_string(), *n)).collect();
    server.cluster = Some(ClusterReport { forks: 3, counts, ..ClusterReport::default() });
    row
}

#[test]
fn a_masters_cpu_is_that_of_the_run_where_it_is_known() {
    let mut row = of_master(&[]);
    assert_eq!(number("master_cpu_per_connection", &row), Some(6.0));
    let meanwhile = ProcessCounts { pid: 7, cpu_us: Some(200), ..ProcessCounts::default() };
    let worker = ProcessCounts { pid: 8, cpu_us: Some(999), ..ProcessCounts::default() };
    row.observed = Some(KernelCounts { processes: vec![worker, meanwhile], ..KernelCounts::default() });
    assert_eq!(number("master_cpu_per_connection", &row), Some(2.0));
    row.observed.as_mut().unwrap().missing = Some("a task ended".to_string());
    assert_eq!(number("master_cpu_per_connection", &row), Some(6.0));
}

#[test]
fn one_acceptor_limits_many_cpus_and_all_cpu_time_limits_few() {
    let row = of_master(&[]);
    assert_eq!(number("server_cpu_per_connection", &row), Some(16.0));
    assert_eq!(number("limit_2_cpus", &row), Some(125_000.0));
    assert!((number("limit_64_cpus", &row).unwrap() - 1e6 / 6.0).abs() < 1e-6);
}

#[test]
fn answers_can_be_spread_otherwise_than_connections() {
    let mut row = row();
    let workers = &mut row.load.as_mut().unwrap().workers;
    workers.get_mut("0").unwrap().requests = 150;
    workers.get_mut("1").unwrap().requests = 50;
    assert_eq!((number("max_over_mean", &row), number("answers_max_over_mean", &row)), (Some(2.4), Some(2.25)));
    assert_eq!(number("answers_dispersion", &row), Some(87.5));
}

#[test]
fn a_master_that_is_a_thread_among_the_workers_has_its_share_of_the_process() {
    let mut row = of_master(&[]);
    let own = {
        let server = row.server.as_mut().unwrap();
        server.workers[0].pid = server.master.as_ref().unwrap().pid;
        let master = server.master.as_ref().unwrap();
        master.cpu_user_us + master.cpu_system_us
    };
    let all = row.workers_total(|worker| worker.cpu_user_us + worker.cpu_system_us).unwrap() + own;
    let share = number("master_cpu_per_connection", &row).unwrap() / number("server_cpu_per_connection", &row).unwrap();
    assert!((share - own as f64 / all as f64).abs() < 1e-9, "{share}");
}

#[test]
fn what_workers_counted_becomes_rates_and_means_and_nothing_where_none_did() {
    let names = ["polls", "idle_polls", "notifier_looks", "updates", "stale_us", "expiries", "queries"];
    let row = of_master(&std::array::from_fn::<_, 7, _>(|i| (names[i], 10.0 * (i + 1) as f64)));
    for (name, value) in [
        ("looks", 20.0),
        ("idle_looks", 200.0),
        ("stale", 0.00125),
        ("queries_per_expiry", 70.0 / 60.0),
        ("forks", 3.0),
    ] {
        assert_eq!(number(name, &row), Some(value), "{name}");
    }
    for name in ["looks", "idle_looks", "pushes", "stale", "queries_per_expiry"] {
        assert_eq!(number(name, &of_master(&[])), None, "{name}");
    }
    assert_eq!((gave_up(&of_master(&[])), gave_up(&self::row())), (Some("no".to_string()), None));
}

#[test]
fn a_worker_without_connections_still_has_its_bar() {
    assert_eq!(bars(&row()).unwrap(), "█▃▁ 80 20 0");
}

#[test]
fn workers_that_answered_nothing_count_in_the_dispersion() {
    let mut row = row();
    let (server, load) = (row.server.as_mut().unwrap(), row.load.as_mut().unwrap());
    server.workers = (0..4).map(|id| WorkerReport { id, ..WorkerReport::default() }).collect();
    load.workers.remove("1");
    // All that loadgen saw is one worker: perfectly even.
    let seen = evenness::measure(&[80]);
    load.evenness = Some(EvennessPair { connections: seen.clone(), requests: seen });
    assert_eq!((number("dispersion", &row), number("max_over_mean", &row)), (Some(80.0), Some(4.0)));
    assert!(number("p_value", &row).unwrap() < 1e-9);
    row.load.as_mut().unwrap().workers.clear();
    row.load.as_mut().unwrap().evenness = None;
    assert_eq!((number("dispersion", &row), number("max_minus_min", &row), bars(&row)), (None, None, None));
}

#[test]
fn every_column_has_a_name_and_a_header_of_its_own_and_every_metric_of_the_tables_a_column() {
    for (i, column) in COLUMNS.iter().enumerate() {
        let same = |other: &Column| other.name == column.name || other.header() == column.header();
        assert!(!COLUMNS[..i].iter().any(same), "{}", column.name);
    }
    for metric in metrics::TABLES.iter().flat_map(|section| section.metrics) {
        assert!(COLUMNS.iter().any(|column| column.metric == metric.key), "{} has no column", metric.key);
    }
}

#[test]
fn the_runs_of_a_case_are_one_sample_of_chance() {
    let run = |dispersion| {
        let mut row = row();
        row.workers_folded = Some(8);
        let evenness = Evenness { workers: 8, n: 800, dispersion, ..Evenness::default() };
        row.load.as_mut().unwrap().evenness = Some(EvennessPair { connections: evenness.clone(), requests: evenness });
        row
    };
    let p = |dispersions: &[f64]| {
        let rows: Vec<Row> = dispersions.iter().map(|dispersion| run(*dispersion)).collect();
        let samples: Vec<Sample> = rows.iter().map(|row| Sample { row, baseline: None }).collect();
        let Pooled(of) = find("p_value").unwrap().value else { panic!("not pooled") };
        of(&samples).unwrap()
    };
    // One run at 5 % of chance proves little; six of them do.
    assert!((p(&[14.067 / 7.0]) - 0.1).abs() < 1e-3);
    assert!(p(&[14.067 / 7.0; 6]) < 0.001);
    // Turns in one run and a heap in another are not chance in the middle; nor is a median of their p-values.
    assert!(p(&[0.0, 9.0]) < 0.001 && p(&[1.0, 0.9, 1.1]) > 0.5);
}

#[test]
fn a_programs_runs_are_compared_with_the_order_that_is_its_baselines_most_often() {
    let with = |orders: &[(&str, u64)]| Row {
        orders: orders.iter().map(|(order, times)| (order.to_string(), *times)).collect(),
        ..row()
    };
    let measured = with(&[("a, b", 3), ("b, a", 1)]);
    let [baseline, other] = [with(&[("a, b", 6), ("b, a", 2)]), with(&[("c", 1)])];
    let same = |baseline| find("same_order").unwrap().number(Sample { row: &measured, baseline });
    assert_eq!(same(Some(&baseline)), Some(75.0));
    assert_eq!(same(Some(&other)), Some(0.0));
    assert_eq!(same(None), None);
}
