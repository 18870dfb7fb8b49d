//! `loadgen merge`: the results of many clients are one result, or none.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use acceptlab::evenness;
use acceptlab::report::{ArrivalsKind, Check, LoadReport, ServerReport, Trust, Verdict, WorkerShare};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use crate::support::{Needs, TempFolder, inconclusive, kind, start};

const LOADGEN: &str = env!("CARGO_BIN_EXE_loadgen");

/// Three clients of one server, as if from three machines that began at the same moment: 1.json to 3.json with their
/// .hlog. How late they really were is up to the machine the test runs on, so it is written over.
fn three_parts(name: &str) -> TempFolder {
    let folder = TempFolder::new(name);
    let server = start("reuseport", &["--workers", "4"]);
    for part in 1..=3 {
        let output = Command::new(LOADGEN)
            .args(["--rate", "400", "--arrivals", "poisson", "--requests-per-connection", "2"])
            .args(["--duration", "300ms", "--warmup", "50ms", "--connections", "4", "--workers", "4"])
            .args(["--format", "json", "--seed", &part.to_string(), "--hlog"])
            .arg(folder.file(&format!("{part}.hlog")))
            .arg(format!("http://{}/", server.addr))
            .output()
            .unwrap();
        fs::write(folder.file(&format!("{part}.json")), output.stdout).unwrap();
        edit(&folder, part, |report| {
            let run = report.run.as_mut().unwrap();
            run.host = format!("host{part}");
            run.start_at_unix_ns = Some(1_700_000_000_000_000_000);
            run.started_unix_ns = 1_700_000_000_000_000_000 + part * 1_000_000;
            report.trust = None;
        });
    }
    folder
}

fn read(path: impl AsRef<Path>) -> LoadReport {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn edit(folder: &TempFolder, part: u64, change: impl Fn(&mut LoadReport)) {
    let path = folder.file(&format!("{part}.json"));
    let mut report = read(&path);
    change(&mut report);
    fs::write(path, serde_json::to_vec(&report).unwrap()).unwrap();
}

fn merge(folder: &TempFolder, files: &[&str], flags: &[&str]) -> Output {
    Command::new(LOADGEN).arg("merge").args(flags).args(files).current_dir(folder.path()).output().unwrap()
}

fn histograms(path: &Path) -> BTreeMap<String, Histogram<u64>> {
    let bytes = fs::read(path).unwrap();
    let intervals = IntervalLogIterator::new(&bytes).filter_map(|entry| match entry.unwrap() {
        LogEntry::Interval(interval) => Some(interval),
        _ => None,
    });
    let decoded = intervals.map(|interval| {
        let bytes = STANDARD.decode(interval.encoded_histogram()).unwrap();
        let histogram = Deserializer::new().deserialize(&mut bytes.as_slice()).unwrap();
        (interval.tag().unwrap().as_str().to_string(), histogram)
    });
    decoded.collect()
}

/// Every count and every bucket of `sum` is what its parts have together.
fn assert_is_sum(folder: &Path, parts: &[&str], sum: &str) {
    let file = |name: &str, kind: &str| folder.join(format!("{name}.{kind}"));
    let reports: Vec<LoadReport> = parts.iter().map(|part| read(file(part, "json"))).collect();
    let merged = read(file(sum, "json"));
    let total = |count: fn(&LoadReport) -> u64| reports.iter().map(count).sum::<u64>();

    let counts: [fn(&LoadReport) -> u64; 10] = [
        |report| report.requests,
        |report| report.censored,
        |report| report.errors.total(),
        |report| report.outside_window.warmup,
        |report| report.outside_window.late,
        |report| report.connections.requested,
        |report| report.connections.established,
        |report| report.connections.answered,
        |report| report.client.cpu_user_us + report.client.cpu_system_us,
        |report| report.workers.values().map(|share| share.connections + share.requests).sum(),
    ];
    for (index, count) in counts.into_iter().enumerate() {
        assert_eq!(count(&merged), total(count), "count {index}");
    }
    let mut counted = BTreeMap::<String, WorkerShare>::new();
    for (worker, share) in reports.iter().flat_map(|report| &report.workers) {
        let sum = counted.entry(worker.clone()).or_default();
        sum.connections += share.connections;
        sum.requests += share.requests;
    }
    assert_eq!(merged.workers, counted);
    let pair = merged.evenness.as_ref().unwrap();
    let column = |count: fn(&WorkerShare) -> u64| counted.values().map(count).collect::<Vec<_>>();
    assert_eq!(pair.connections.n, column(|share| share.connections).iter().sum::<u64>());
    for (found, counts) in
        [(&pair.connections, column(|share| share.connections)), (&pair.requests, column(|share| share.requests))]
    {
        // Decimal fractions may lose their last bit on the way through JSON.
        let expected = evenness::measure(&counts);
        assert!((found.dispersion - expected.dispersion).abs() <= 1e-9 * expected.dispersion);
        assert!((found.p_value - expected.p_value).abs() <= 1e-9);
    }
    let longest_s = reports.iter().map(|report| report.duration_s).fold(0.0, f64::max);
    assert!((merged.qps - merged.requests as f64 / longest_s).abs() < 1e-6 * merged.qps);
    let offered: Option<f64> = reports.iter().map(|report| report.offered_per_s).sum();
    assert!((merged.offered_per_s.unwrap() - offered.unwrap()).abs() < 1e-6 * offered.unwrap());

    let mut added = histograms(&file(parts[0], "hlog"));
    assert_eq!(added.keys().collect::<Vec<_>>(), ["connect", "first_byte", "response", "send_delay", "service"]);
    for part in &parts[1..] {
        for (tag, histogram) in histograms(&file(part, "hlog")) {
            added.get_mut(&tag).unwrap().add(histogram).unwrap();
        }
    }
    assert!(!added["response"].is_empty() && !added["connect"].is_empty());
    assert!(added == histograms(&file(sum, "hlog")), "the buckets differ");
    let blocks = [
        ("connect", merged.connect_us),
        ("first_byte", merged.first_byte_us),
        ("response", merged.latency_us),
        ("service", merged.service_us),
        ("send_delay", merged.send_delay_us),
    ];
    for (tag, block) in blocks {
        assert_eq!(block.p99, added[tag].value_at_quantile(0.99) as f64 / 1e3, "{tag}");
        assert_eq!(block.max, added[tag].max() as f64 / 1e3, "{tag}");
    }
    assert_eq!(merged.run.unwrap().merged_from, Some(parts.len() as u64));
}

#[test]
fn a_sum_equals_its_parts_to_the_last_bucket_and_can_be_part_of_another() {
    let folder = three_parts("merge-sum");
    let output = merge(&folder, &["1.json", "2.json", "3.json"], &["--format", "json", "--hlog", "sum.hlog"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::write(folder.file("sum.json"), output.stdout).unwrap();
    assert_is_sum(folder.path(), &["1", "2", "3"], "sum");

    let output = merge(&folder, &["1.json", "2.json"], &["--format", "json", "--hlog", "pair.hlog"]);
    fs::write(folder.file("pair.json"), output.stdout).unwrap();
    let output = merge(&folder, &["pair.json", "3.json"], &["--format", "json"]);
    let (once, twice) = (read(folder.file("sum.json")), serde_json::from_slice::<LoadReport>(&output.stdout));
    let twice = twice.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!((twice.latency_us, twice.workers), (once.latency_us, once.workers));
    assert_eq!(twice.run.unwrap().merged_from, Some(3));

    let again = "pair.json: it has the same run as 2.json (host2), which would count twice";
    assert_refused(&merge(&folder, &["2.json", "pair.json"], &[]), again);
    edit(&folder, 3, |report| report.run.as_mut().unwrap().seed = 2);
    assert_refused(&merge(&folder, &["pair.json", "3.json"], &[]), "3.json: the same --seed 2 as pair.json");
    edit(&folder, 3, |report| report.run.as_mut().unwrap().seed = 3);

    let text = merge(&folder, &["1.json", "2.json", "3.json"], &[]).stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("the sum of 3 clients: host1 host2 host3"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
}

#[test]
fn what_does_not_belong_together_is_refused_in_one_line_and_forced_only_as_suspect() {
    let second_ns = 1_000_000_000;
    let send_delay = |verdict| Trust {
        verdict,
        checks: vec![Check { name: "send_delay".into(), verdict, reason: "9 ms, bar 1 ms".into() }],
    };
    type Change<'a> = &'a dyn Fn(&mut LoadReport);
    let cases: [(Change, &str); 8] = [
        (
            &|report| {
                let run = report.run.as_mut().unwrap();
                run.configuration.connections = 5;
            },
            "2.json: another configuration than 1.json: `connections` is 5 where that has 4",
        ),
        (
            &|report| {
                let run = report.run.as_mut().unwrap();
                run.start_at_unix_ns = Some(run.started_unix_ns - 250_000_000);
            },
            "2.json: host2 started 250 ms late",
        ),
        (
            &|report| {
                let run = report.run.as_mut().unwrap();
                (run.start_at_unix_ns, run.started_unix_ns) = (None, run.started_unix_ns + 5 * second_ns);
            },
            "2.json: it began 5.001 s after the first",
        ),
        (&|report| report.duration_s /= 2.0, "no common rate"),
        (&|report| report.trust = Some(send_delay(Verdict::Suspect)), "2.json: host2 was late: 9 ms, bar 1 ms"),
        (&|report| report.run.as_mut().unwrap().seed = 1, "2.json: the same --seed 1 as 1.json"),
        (&|report| report.run.as_mut().unwrap().interrupted = true, "2.json: its run ended early"),
        (&|report| report.latency_us.p99 *= 2.0, "2.json and its .hlog are not of the same run: p99 of response"),
    ];
    let folder = three_parts("merge-refused");
    let original = fs::read(folder.file("2.json")).unwrap();
    let files = ["1.json", "2.json", "3.json"];
    for (change, complaint) in cases {
        edit(&folder, 2, change);
        assert_refused(&merge(&folder, &files, &[]), complaint);
        let output = merge(&folder, &files, &["--force", "--format", "json"]);
        let report: LoadReport = serde_json::from_slice(&output.stdout).expect(complaint);
        let trust = report.trust.unwrap();
        assert_eq!(trust.verdict, Verdict::Suspect, "{complaint}");
        assert!(trust.checks.iter().any(|check| check.reason.contains(complaint)), "{:?}", trust.checks);
        fs::write(folder.file("2.json"), &original).unwrap();
    }
    let twice = merge(&folder, &["1.json", "1.json"], &[]);
    assert_refused(&twice, "1.json: it has the same run as 1.json (host1)");

    // Thinking is random, too.
    for part in 1..=3 {
        edit(&folder, part, |report| {
            let run = report.run.as_mut().unwrap();
            run.seed = 1;
            run.configuration.arrivals = ArrivalsKind::Fixed;
        });
    }
    assert!(merge(&folder, &files, &[]).status.success());
    for part in 1..=3 {
        edit(&folder, part, |report| {
            let run = report.run.as_mut().unwrap();
            (run.configuration.think_s, run.configuration.think_is_exponential) = (Some(0.02), true);
        });
    }
    assert_refused(&merge(&folder, &files, &[]), "2.json: the same --seed 1 as 1.json");
}

#[test]
fn what_cannot_be_read_is_refused_even_by_force() {
    let folder = three_parts("merge-unreadable");
    let (original, log) = (fs::read(folder.file("2.json")).unwrap(), fs::read(folder.file("2.hlog")).unwrap());
    let refused = |complaint: &str| {
        for flags in [&[][..], &["--force"]] {
            assert_refused(&merge(&folder, &["1.json", "2.json"], flags), complaint);
        }
    };
    fs::write(folder.file("2.hlog"), &log[..log.len() / 2]).unwrap();
    refused("read 2.hlog: corrupt: ");
    let mut flipped = log.clone();
    let digit = log.len() - 20;
    flipped[digit] = if log[digit] == b'A' { b'B' } else { b'A' };
    fs::write(folder.file("2.hlog"), &flipped).unwrap();
    refused("read 2.hlog: corrupt: ");
    let incomplete = log.split_inclusive(|&byte| byte == b'\n').filter(|line| !line.starts_with(b"Tag=send_delay"));
    fs::write(folder.file("2.hlog"), incomplete.flatten().copied().collect::<Vec<_>>()).unwrap();
    refused("read 2.hlog: corrupt: it has no distribution of send_delay");
    fs::remove_file(folder.file("2.hlog")).unwrap();
    refused("read 2.hlog: no such file or directory; every client needs --hlog");
    fs::write(folder.file("2.hlog"), &log).unwrap();
    edit(&folder, 2, |report| report.schema = 2);
    refused("read 2.json: it has schema 2, and this loadgen knows 1");
    type Change<'a> = &'a dyn Fn(&mut LoadReport);
    let impossible: [Change; 4] = [
        &|report| report.duration_s = 1e300,
        &|report| report.duration_s = -1.0,
        &|report| report.requests = u64::MAX,
        &|report| report.workers.values_mut().for_each(|share| share.connections = u64::MAX),
    ];
    for change in impossible {
        edit(&folder, 2, |report| {
            report.schema = 1;
            change(report);
        });
        refused("read 2.json: damaged: no run has ");
        fs::write(folder.file("2.json"), &original).unwrap();
    }
    fs::write(folder.file("2.json"), "{\"model\":\"prefork\"}").unwrap();
    refused("read 2.json: not what `loadgen --format json` prints");
    fs::remove_file(folder.file("2.json")).unwrap();
    refused("read 2.json: no such file");
}

#[test]
fn a_full_disk_under_the_sum_does_not_cost_the_report() {
    let folder = three_parts("merge-full");
    // Nor may the sum replace what it was made from.
    let part = fs::read(folder.file("1.hlog")).unwrap();
    let output = merge(&folder, &["1.json", "2.json"], &["--hlog", "1.hlog"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("it is a part of the sum"));
    assert!(part == fs::read(folder.file("1.hlog")).unwrap());
    let output = merge(&folder, &["1.json", "2.json"], &["--format", "json", "--hlog", "/dev/full"]);
    let report: LoadReport = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((report.run.unwrap().merged_from, output.status.code()), (Some(2), Some(1)));
    let line = String::from_utf8(output.stderr).unwrap();
    assert!(line.starts_with("loadgen: write /dev/full: ") && line.lines().count() == 1, "{line}");
}

#[track_caller]
fn assert_refused(output: &Output, complaint: &str) {
    let line = String::from_utf8_lossy(&output.stderr);
    assert!(line.starts_with("loadgen: ") && line.contains(complaint), "{complaint:?} is not in: {line}");
    assert_eq!((line.lines().count(), output.status.code()), (1, Some(1)), "{line}");
    assert!(output.stdout.is_empty());
}

// ---- by ssh -----------------------------------------------------------------------------------------------

/// Two network namespaces joined by a veth pair: the server in one; sshd, and with it the clients, in the other.
/// All of it goes when the test ends, however it ends.
struct TwoMachines {
    server: String,
    clients: String,
    children: Vec<Child>,
}

const SERVER: &str = "10.199.77.1";
const SSHD: &str = "10.199.77.2";

impl TwoMachines {
    /// The error is the first command that failed.
    fn new() -> Result<TwoMachines, String> {
        let id = std::process::id();
        let (server, clients) = (format!("acceptlab-s{id}"), format!("acceptlab-c{id}"));
        let (s, c) = (format!("als{id}"), format!("alc{id}"));
        let machines = TwoMachines { server: server.clone(), clients: clients.clone(), children: Vec::new() };
        for command in [
            format!("netns add {server}"),
            format!("netns add {clients}"),
            format!("link add {s} netns {server} type veth peer name {c} netns {clients}"),
            format!("-n {server} address add {SERVER}/24 dev {s}"),
            format!("-n {clients} address add {SSHD}/24 dev {c}"),
            format!("-n {server} link set {s} up"),
            format!("-n {clients} link set {c} up"),
            format!("-n {clients} link set lo up"),
        ] {
            let output = Command::new("ip").args(command.split(' ')).output().map_err(|e| e.to_string())?;
            if !output.status.success() {
                return Err(format!("ip {command}: {}", String::from_utf8_lossy(&output.stderr).trim()));
            }
        }
        Ok(machines)
    }

    fn command(namespace: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, program]).stdin(Stdio::null());
        command
    }
}

impl Drop for TwoMachines {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        for namespace in [&self.server, &self.clients] {
            let _ = Command::new("ip").args(["netns", "delete", namespace]).stderr(Stdio::null()).status();
        }
    }
}

/// Keys that exist for this test alone, an sshd that accepts them, and an ssh that offers them to two names.
fn prepare_ssh(folder: &TempFolder) -> Result<(), String> {
    for key in ["host", "user"] {
        let output = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(folder.file(key))
            .output()
            .map_err(|error| format!("ssh-keygen: {error}"))?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let at = folder.path().display();
    let host_key = fs::read_to_string(folder.file("host.pub")).unwrap();
    fs::write(folder.file("known"), format!("{SSHD} {host_key}")).unwrap();
    let sshd = format!(
        "ListenAddress {SSHD}\nPort 2222\nHostKey {at}/host\nAuthorizedKeysFile {at}/user.pub\nPidFile none\n\
         StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
         PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
    );
    fs::write(folder.file("sshd_config"), sshd).unwrap();
    let ssh = format!(
        "Host one two\nHostName {SSHD}\nPort 2222\nUser root\nIdentityFile {at}/user\nIdentitiesOnly yes\n\
         UserKnownHostsFile {at}/known\nHostKeyAlias {SSHD}\nBatchMode yes\nLogLevel ERROR\n"
    );
    fs::write(folder.file("ssh_config"), ssh).unwrap();
    fs::write(folder.file("hosts"), "one\ntwo\n").unwrap();
    Ok(())
}

/// sshd wants this folder for its privilege separation, and where it is not installed as a service there is none. A
/// mount is seen in this namespace only (ip-netns(8)), so it is not in the way of another suite that runs at once.
const SSHD_WITH_ITS_FOLDER: &str =
    "mount -t tmpfs none /run && mkdir -m 755 /run/sshd && exec /usr/sbin/sshd -D -e -f \"$0\"";

/// Reads until a line contains it.
fn await_line(stream: impl Read, wanted: &str) -> String {
    let lines = BufReader::new(stream).lines().map_while(Result::ok);
    lines.inspect(|line| println!("{line}")).find(|line| line.contains(wanted)).unwrap_or_default()
}

#[test]
fn two_machines_reached_by_ssh_bring_a_result_that_equals_its_parts_and_the_servers_book() {
    if !geteuid().is_root() {
        return inconclusive(Needs::Privilege("root"), "only root may make network namespaces");
    }
    let is_there = |program: &str| {
        ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].iter().any(|folder| Path::new(folder).join(program).exists())
    };
    for program in ["ip", "sshd", "ssh", "scp", "ssh-keygen", "parallel"] {
        if !is_there(program) {
            return inconclusive(Needs::Tool(program), "not installed");
        }
    }
    let folder = TempFolder::new("many-clients");
    let mut machines = match TwoMachines::new() {
        Ok(machines) => machines,
        Err(why) => return inconclusive(Needs::Privilege("CAP_NET_ADMIN"), why),
    };
    prepare_ssh(&folder).unwrap();
    let mut sshd = TwoMachines::command(&machines.clients, "sh");
    let sshd = sshd.args(["-c", SSHD_WITH_ITS_FOLDER]).arg(folder.file("sshd_config")).stderr(Stdio::piped());
    machines.children.push(sshd.spawn().unwrap());
    let said = machines.children[0].stderr.take().unwrap();
    assert!(await_line(said, "listening").contains("listening"), "sshd did not start");

    let mut server = TwoMachines::command(&machines.server, kind("reuseport").path);
    let server = server.args(["--workers", "4", "--listen", &format!("{SERVER}:8080")]).stdout(Stdio::piped());
    machines.children.push(server.spawn().unwrap());
    let mut book = BufReader::new(machines.children[1].stdout.take().unwrap());
    let mut ready = String::new();
    book.read_line(&mut ready).unwrap();
    assert_eq!(ready.trim(), format!("ready {SERVER}:8080"));

    let out = folder.path().join("out");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/many_clients.sh");
    let config = folder.file("ssh_config");
    let output = TwoMachines::command(&machines.clients, script)
        .arg(folder.file("hosts"))
        .arg(&out)
        .args(["--rate", "300", "--arrivals", "poisson", "--requests-per-connection", "1"])
        .args(["--connections", "8", "--duration", "1s", &format!("http://{SERVER}:8080/")])
        .env("LOADGEN", LOADGEN)
        .env("SSH", format!("ssh -F {config}"))
        .env("SCP", format!("scp -q -F {config}"))
        .env("LEAD", "3")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        // A machine that is busy with other tests starts or sends late, and then a refusal is the right answer.
        assert!(said.contains("--force merges nonetheless"), "{said}");
        println!("by force, since: {said}");
        let flags = ["--force", "--format", "json", "--hlog", "out/sum.hlog"];
        let output = merge(&folder, &["out/1.json", "out/2.json"], &flags);
        fs::write(out.join("sum.json"), output.stdout).unwrap();
    } else {
        assert!(String::from_utf8_lossy(&output.stdout).contains("the sum of 2 clients"), "{said}");
    }
    assert_is_sum(&out, &["1", "2"], "sum");

    kill(Pid::from_raw(machines.children[1].id() as i32), Signal::SIGTERM).unwrap();
    let mut document = String::new();
    book.read_to_string(&mut document).unwrap();
    let book: ServerReport = serde_json::from_str(&document).unwrap();
    let sum = read(out.join("sum.json"));
    assert_eq!(sum.errors.total(), 0, "{:?}", sum.errors);
    let accepted: BTreeMap<_, _> = book.workers.iter().map(|worker| (worker.id.to_string(), worker.accepted)).collect();
    let seen: BTreeMap<_, _> = sum.workers.iter().map(|(id, share)| (id.clone(), share.connections)).collect();
    assert_eq!(accepted, seen);
}
