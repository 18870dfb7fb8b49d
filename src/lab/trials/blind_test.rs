//! An examination of `lab inspect`: servers are started in random order, under light and under heavy load, and it is
//! asked what each of them is. It knows an address and nothing else. What it says is compared with what [`super::modes`]
//! knows; then a worker is stopped with SIGSTOP, and it is asked again.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use serde_json::Value;

use super::modes::{Load, Mode, Modes};
use super::numbers;
use crate::failure::Failure;
use crate::lab::check::ProbeResult;
use crate::lab::check::client::{Client, GET};
use crate::lab::observe::processes::{Process, children, poll_until};
use crate::lab::plan::command::ServerCommand;
use crate::lab::program::{Interrupt, Program, Running, Stop, is_closed, on_path};
use crate::lab::run::contender::Contender;
use crate::report::TrialReport;
use crate::sys::procfs::command_line;
use crate::sys::uring::Uring;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum User {
    Root,
    /// One without any privilege, who runs servers, clients and inspect
    Ordinary,
}

/// What is examined.
#[derive(Args)]
pub struct BlindTest {
    /// The servers, and what is known of each
    #[arg(long, value_name = "FILE", default_value = "experiments/blind-test.toml")]
    pub modes: PathBuf,
    /// As which user everything runs
    #[arg(long = "as", value_enum, default_value = "root")]
    pub user: User,
    /// Only this load
    #[arg(long, value_enum)]
    pub load: Option<Load>,
    /// Only so many of the cases, chosen by chance
    #[arg(long, value_name = "N")]
    pub sample: Option<usize>,
    /// Of the order, and of who is stopped; another one each time, if it is not given
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// Long enough to see that somebody has not run for a second.
const LOOK: &str = "1s";
/// A hung worker must be found by then.
const FIND_WITHIN: Duration = Duration::from_secs(3);
/// Light loads leave the CPUs to others; beside a heavy one another makes it heavier.
const LIGHT_AT_A_TIME: usize = 4;
const HEAVY_AT_A_TIME: usize = 2;
/// A child that is so old serves more than one request.
const STAYS_S: f64 = 1.0;
const START_WITHIN: Duration = Duration::from_secs(30);
const LOOK_WITHIN: Duration = Duration::from_secs(20);
const LOAD_WITHIN: Duration = Duration::from_secs(10);
const STOP_WITHIN: Duration = Duration::from_secs(2);
/// Longer than any case takes; a client is killed before.
const LOAD_FOR: &str = "60s";

/// A user whom no other file of a usual machine belongs to.
const ORDINARY: u32 = 65533;

/// `of` is `ours` or `contenders`.
pub fn run(test: &BlindTest, of: &str, interrupt: &Interrupt) -> Result<TrialReport, Stop> {
    let all = Modes::read(&test.modes)?;
    let modes = match of {
        "ours" => &all.ours,
        "contenders" => &all.contenders,
        other => return Err(Stop::Failed(format!("{other} cannot be examined; there are ours and contenders"))),
    };
    if test.user == User::Root && !geteuid().is_root() {
        return Ok(TrialReport { skipped: Some("needs root".to_string()), ..TrialReport::default() });
    }
    let no_rings = Uring::probe().err();
    let cases = cases(test, modes, no_rings.is_none());
    if cases.is_empty() {
        return Ok(TrialReport { skipped: Some(format!("of {of} none is installed")), ..TrialReport::default() });
    }
    let place = Place::new(test.user, &cases)?;
    let tally = Mutex::new(Tally { notes: left_out(modes, no_rings).into_iter().collect(), ..Tally::default() });
    let (heavy, light): (Vec<Case>, Vec<Case>) = cases.into_iter().partition(|case| case.load == Load::Heavy);
    examine_all(light, LIGHT_AT_A_TIME, &place, interrupt, &tally)?;
    examine_all(heavy, HEAVY_AT_A_TIME, &place, interrupt, &tally)?;
    let tally = tally.into_inner().expect("no thread has panicked");
    Ok(TrialReport { numbers: tally.numbers(), notes: tally.notes, ..TrialReport::default() })
}

/// A line about the servers that need io_uring, where there is none, for this reason.
fn left_out(modes: &[Mode], no_rings: Option<String>) -> Option<String> {
    let commands: Vec<&str> = modes.iter().filter(|mode| mode.needs_rings()).map(|mode| &*mode.command).collect();
    no_rings.filter(|_| !commands.is_empty()).map(|why| format!("left out: {}: {why}", commands.join(", ")))
}

/// A mode under a load; first healthy, then with a stopped worker.
struct Case<'a> {
    mode: &'a Mode,
    load: Load,
    /// Which of its workers is stopped.
    chance: usize,
}

/// In random order; without the programs that are missing, and without those that need io_uring where there is none.
fn cases<'a>(test: &BlindTest, modes: &'a [Mode], has_rings: bool) -> Vec<Case<'a>> {
    let mut chance = test.seed.map_or_else(fastrand::Rng::new, fastrand::Rng::with_seed);
    let installed = modes.iter().filter(|mode| on_path(mode.program()).is_some());
    let installed = installed.filter(|mode| has_rings || !mode.needs_rings());
    let loads = Load::value_variants().iter().filter(|&&load| test.load.is_none_or(|only| only == load));
    let mut cases: Vec<Case> = installed
        .flat_map(|mode| loads.clone().map(move |&load| (mode, load)))
        .map(|(mode, load)| Case { mode, load, chance: chance.usize(..) })
        .collect();
    chance.shuffle(&mut cases);
    cases.truncate(test.sample.unwrap_or(usize::MAX));
    cases
}

/// So many at a time, until none is left.
fn examine_all(
    cases: Vec<Case>,
    at_a_time: usize,
    place: &Place,
    interrupt: &Interrupt,
    tally: &Mutex<Tally>,
) -> Result<(), Stop> {
    let left = Mutex::new(cases);
    let next = || left.lock().expect("no thread has panicked").pop();
    let work = || -> Result<(), Stop> {
        while let Some(case) = next() {
            let marks = examine(&case, place, interrupt)?;
            tally.lock().expect("no thread has panicked").add(&case, marks);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..at_a_time).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no thread has panicked"))
    })
}

/// What was right in the last of some answers, and what was wrong, in words.
struct Mark {
    is_stopped: bool,
    mechanism: bool,
    findings: bool,
    /// The most healthy workers that any of the answers called hung.
    accused: usize,
    /// After which time the stopped worker was found.
    found_s: Option<f64>,
    wrong: Vec<String>,
}

fn examine(case: &Case, place: &Place, interrupt: &Interrupt) -> Result<[Mark; 2], Stop> {
    let server = Server::start(case.mode, place, interrupt)?;
    let url = format!("http://{}/", server.address);
    let load = place.program(&load_command(case.load)).until(interrupt).launch(&[&url])?;
    let mut said = String::new();
    let is_measuring = || {
        said += &load.unread_stderr();
        (said.contains("phase measure") || is_closed(interrupt)).then_some(())
    };
    poll_until(LOAD_WITHIN, is_measuring).ok_or_else(|| {
        Stop::Failed(format!("no connection to {} within {LOAD_WITHIN:?}: {said}", case.mode.command))
    })?;
    let _open = server.keep_open(case.mode.open)?;
    let answer = ask(&server.address, place, interrupt)?;
    let healthy = mark(case, &[answer], None, None);
    let Some(victim) = server.victim(case) else {
        return Err(Stop::Failed(format!("{} has no worker that could be stopped", case.mode.command)));
    };
    let then = Instant::now();
    victim.signal(Signal::SIGSTOP);
    let mut answers = Vec::new();
    let found_s = loop {
        let answer = ask(&server.address, place, interrupt)?;
        let took = then.elapsed();
        let (is_found, is_in_time) = (hung(&answer).contains(&victim.pid), took < FIND_WITHIN);
        answers.push(answer);
        if is_found || !is_in_time {
            break (is_found && is_in_time).then_some(took.as_secs_f64());
        }
    };
    victim.signal(Signal::SIGCONT);
    drop(load);
    let stopped = mark(case, &answers, Some(victim.pid), found_s);
    server.end();
    Ok([healthy, stopped])
}

fn load_command(load: Load) -> String {
    let how = match load {
        Load::Light => "--rate 200 --arrivals poisson",
        Load::Heavy => "",
    };
    format!(
        "loadgen --threads 1 --connections 32 --requests-per-connection 1 {how} --timeout 300ms --warmup 0s \
         --duration {LOAD_FOR} --progress phases --format json"
    )
}

fn ask(address: &str, place: &Place, interrupt: &Interrupt) -> Result<Value, Stop> {
    let command = format!("lab inspect {address} --format json --duration {LOOK}");
    let mut inspect = place.program(&command).until(interrupt).launch(&[])?;
    let document = inspect.finish(LOOK_WITHIN, |_| ())?;
    inspect.parse(&document)
}

/// All that it has seen of processes: the workers, and whoever accepts for them.
fn processes(answer: &Value) -> impl Iterator<Item = &Value> {
    answer["workers"].as_array().into_iter().flatten().chain(answer.get("master"))
}

fn hung(answer: &Value) -> Vec<i32> {
    let hung = processes(answer).filter(|process| process["state"] == "hung");
    hung.filter_map(|process| process["pid"].as_i64()).map(|pid| pid as i32).collect()
}

/// Compares answers with what is known. The last one counts, and nobody may be accused in any of them.
fn mark(case: &Case, answers: &[Value], victim: Option<i32>, found_s: Option<f64>) -> Mark {
    let (mode, is_stopped) = (case.mode, victim.is_some());
    let answer = answers.last().unwrap_or(&Value::Null);
    let mut wrong = Vec::new();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    let (dispatch, sharing) = (text(&answer["dispatch"]), text(&answer["listeners"][0]["sharing"]));
    let accepting: Vec<&Value> = match answer.get("master") {
        Some(master) => vec![master],
        None => answer["workers"].as_array().into_iter().flatten().collect(),
    };
    let waits: Vec<String> = accepting.iter().map(|process| text(&process["waits_in"])).collect();
    let is_known = |wait: &String| mode.waits_in.contains(wait);
    let mechanism =
        dispatch == mode.dispatch && sharing == mode.sharing && !waits.is_empty() && waits.iter().all(is_known);
    if !mechanism {
        let (known, waits_in) = (format!("{} {}", mode.dispatch, mode.sharing), mode.waits_in.join(" or "));
        wrong.push(format!("mechanism {dispatch} {sharing} {}, not {known} {waits_in}", waits.join(" ")));
    }
    let accused_in = |answer| hung(answer).iter().filter(|pid| Some(**pid) != victim).count();
    let accused = answers.iter().map(accused_in).max().unwrap_or(0);
    if accused > 0 {
        wrong.push(format!("{accused} of the healthy workers called hung"));
    }
    if is_stopped && found_s.is_none() {
        wrong.push(format!("the stopped worker was not found within {FIND_WITHIN:?}"));
    }
    let ids = || answer["findings"].as_array().into_iter().flatten();
    let found: Vec<&str> = ids().filter_map(|finding| finding["id"].as_str()).collect();
    let expected = mode.expected(case.load, is_stopped);
    let findings = expected.is_met_by(&found);
    wrong.extend(expected.missing(&found).map(|id| format!("{id} was not found")));
    let is_not_expected = |finding: &&Value| !expected.allows(finding["id"].as_str().unwrap_or_default());
    wrong.extend(
        ids().filter(is_not_expected).map(|finding| format!("{}: {}", text(&finding["id"]), text(&finding["says"]))),
    );
    Mark { is_stopped, mechanism, findings, accused, found_s, wrong }
}

#[derive(Default)]
struct Tally {
    /// What was wrong, and where.
    notes: Vec<String>,
    cases: usize,
    mechanism: usize,
    findings: usize,
    accused: usize,
    stopped: usize,
    found_s: Vec<f64>,
}

impl Tally {
    fn add(&mut self, case: &Case, marks: [Mark; 2]) {
        for mark in marks {
            self.cases += 1;
            self.mechanism += usize::from(mark.mechanism);
            self.findings += usize::from(mark.findings);
            self.accused += mark.accused;
            self.stopped += usize::from(mark.is_stopped);
            self.found_s.extend(mark.found_s);
            let state = if mark.is_stopped { "one worker stopped" } else { "healthy" };
            let load = format!("{:?}", case.load).to_lowercase();
            let note = |wrong| format!("{}, {load} load, {state}: {wrong}", case.mode.command);
            self.notes.extend(mark.wrong.into_iter().map(note));
        }
    }

    fn numbers(&self) -> super::Numbers {
        let percent = |count: usize, of: usize| 100.0 * count as f64 / of.max(1) as f64;
        numbers([
            ("cases", self.cases as f64),
            ("mechanism_right", percent(self.mechanism, self.cases)),
            ("healthy_called_hung", self.accused as f64),
            ("hung_found", percent(self.found_s.len(), self.stopped)),
            ("hung_found_s", self.found_s.iter().copied().fold(0.0, f64::max)),
            ("findings_right", percent(self.findings, self.cases)),
        ])
    }
}

/// A server that runs, and its address.
struct Server {
    running: Running,
    contender: Option<Contender>,
    address: String,
}

impl Server {
    fn start(mode: &Mode, place: &Place, interrupt: &Interrupt) -> Result<Server, Stop> {
        let contender = mode.is_contender().then(Contender::new).transpose()?;
        // Where a server starts another program, that one is told the address.
        let command = format!("{} --listen 127.0.0.1:0", place.command(&mode.command));
        let program = match &contender {
            Some(contender) => {
                if place.wrapper.is_some() {
                    contender.give_to(ORDINARY)?;
                }
                contender.program(&ServerCommand::from(command))
            }
            None => Program::of(&command),
        };
        let mut running = program.until(interrupt).launch(&[])?;
        let ready = match &contender {
            Some(contender) => contender.await_ready(&mut running, START_WITHIN),
            None => running.await_ready(START_WITHIN),
        };
        let address = ready.map_err(|not_ready| not_ready.stop(&mode.command))?;
        Ok(Server { running, contender, address })
    }

    /// Clients that have had an answer and stay.
    fn keep_open(&self, count: usize) -> Result<Vec<Client>, Stop> {
        let address = self.address.parse().map_err(|error| format!("{}: {error}", self.address))?;
        let one = || {
            let mut client = Client::connect(address)?;
            client.ask(GET)?.expect(200)?;
            Ok(client)
        };
        let all: ProbeResult<Vec<Client>> = (0..count).map(|_| one()).collect();
        all.map_err(|why| Stop::Failed(format!("a client of {}: {why:?}", self.address)))
    }

    /// One of its workers: the process itself, or a child that serves.
    fn victim(&self, case: &Case) -> Option<Process> {
        if case.mode.is_one_process() {
            return Process::find(self.running.pid());
        }
        // Python's multiprocessing has one more child, which only cleans up; and a child may be there for one connection.
        let serves = |child: &Process| {
            let words = command_line(child.pid);
            child.age_s() >= STAYS_S && !words.iter().any(|word| word.contains("resource_tracker"))
        };
        let chosen = || {
            let workers: Vec<Process> = children(self.running.pid()).into_iter().filter(serves).collect();
            (!workers.is_empty()).then(|| workers[case.chance % workers.len()])
        };
        poll_until(LOAD_WITHIN, chosen)
    }

    /// It gets the time to remove what it has made; dropping it kills what is left.
    fn end(mut self) {
        self.running.terminate(STOP_WITHIN);
        drop(self.running);
        drop(self.contender);
    }
}

/// Where the programs are. For another user than ours: links to them in a folder that this user can reach, and a script
/// that becomes this user.
struct Place {
    folder: PathBuf,
    wrapper: Option<PathBuf>,
}

impl Place {
    fn new(user: User, cases: &[Case]) -> Result<Place, Stop> {
        let folder = std::env::temp_dir().join(format!("acceptlab-blind-{}", std::process::id()));
        let mut place = Place { folder, wrapper: None };
        if user == User::Ordinary && geteuid().is_root() {
            place.fill(cases).map_err(|error| {
                Failure::new(format_args!("fill {} for another user", place.folder.display()), error).to_string()
            })?;
        }
        Ok(place)
    }

    fn fill(&mut self, cases: &[Case]) -> std::io::Result<()> {
        fs::create_dir(&self.folder)?;
        let wrapper = self.folder.join("as-ordinary");
        // Some servers open /dev/stderr by its name.
        let script = format!(
            "#!/bin/sh\nchown {ORDINARY} /dev/stdout /dev/stderr\nexec setpriv --reuid={ORDINARY} --regid={ORDINARY} \
             --clear-groups --inh-caps=-all --bounding-set=-all --pdeathsig=TERM \"$@\"\n"
        );
        fs::write(&wrapper, script)?;
        fs::set_permissions(&wrapper, Permissions::from_mode(0o755))?;
        self.wrapper = Some(wrapper);
        let words = cases.iter().flat_map(|case| case.mode.command.split(' ')).chain(["lab", "loadgen"]);
        let ours = std::env::current_exe()?;
        for word in words {
            let (from, to) = (ours.with_file_name(word), self.folder.join(word));
            if !word.contains('/') && from.is_file() && !to.exists() {
                fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(drop))?;
            }
        }
        copy_folder(Path::new("experiments"), &self.folder.join("experiments"))
    }

    /// The command line, as the user has it.
    fn command(&self, command: &str) -> String {
        let Some(wrapper) = &self.wrapper else { return command.to_string() };
        let mut words: Vec<String> = Vec::new();
        let mut is_program = true;
        for word in command.split(' ') {
            let own = self.folder.join(word);
            let is_ours = (is_program || word.contains('/')) && own.is_file();
            words.push(if is_ours { own.display().to_string() } else { word.to_string() });
            is_program = word == "--";
        }
        format!("{} {}", wrapper.display(), words.join(" "))
    }

    fn program(&self, command: &str) -> Program {
        Program::of(&self.command(command))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // It was never made where everything runs as we do.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The scripts that start servers: this folder's files, and those of `contenders`.
fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let (path, to) = (entry.as_ref().map(|entry| entry.path()).unwrap_or_default(), to.join(entry?.file_name()));
        let is_script = path.extension().is_none_or(|ending| ["js", "sh", "py"].iter().any(|known| ending == *known));
        if path.ends_with("contenders") {
            copy_folder(&path, &to)?;
        } else if path.is_file() && is_script {
            fs::copy(&path, &to)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn modes() -> Modes {
        Modes::read(Path::new("experiments/blind-test.toml")).unwrap()
    }

    fn case<'a>(modes: &'a Modes, command: &str) -> Case<'a> {
        let mode = modes.ours.iter().find(|mode| mode.command == command).expect("it is in the list");
        Case { mode, load: Load::Light, chance: 0 }
    }

    fn answer(dispatch: &str, waits_in: [&str; 2], findings: &[&str]) -> Value {
        let findings: Vec<Value> = findings.iter().map(|id| json!({"id": id, "says": "so"})).collect();
        let workers = waits_in.map(|waits_in| json!({"pid": 7, "waits_in": waits_in, "state": "idle"}));
        json!({"dispatch": dispatch, "listeners": [{"sharing": "shared"}], "workers": workers, "findings": findings})
    }

    #[test]
    fn an_answer_is_right_when_its_three_words_are_and_nothing_else_was_found() {
        let modes = modes();
        let case = case(&modes, "prefork --workers 4");
        let mark = |answer| mark(&case, &[answer], None, None);
        let right = mark(answer("workers-accept", ["accept", "accept"], &[]));
        assert!(right.mechanism && right.findings && right.wrong.is_empty());
        let wrong = mark(answer("threads", ["accept", "accept"], &["herd"]));
        assert!(!wrong.mechanism && !wrong.findings && wrong.wrong.len() == 2, "{:?}", wrong.wrong);
        let half = mark(answer("workers-accept", ["accept", "lock"], &[]));
        assert!(!half.mechanism && half.findings);
    }

    #[test]
    fn a_healthy_worker_that_is_called_hung_is_counted_and_a_stopped_one_must_be_found() {
        let modes = modes();
        let case = case(&modes, "prefork --workers 4");
        let mut answer = answer("workers-accept", ["accept", "accept"], &["hung-worker"]);
        answer["workers"][0]["state"] = json!("hung");
        let answers = [answer];
        assert_eq!(mark(&case, &answers, None, None).accused, 1);
        let stopped = mark(&case, &answers, Some(7), Some(1.1));
        assert!(stopped.accused == 0 && stopped.findings && stopped.wrong.is_empty(), "{:?}", stopped.wrong);
        assert_eq!(mark(&case, &answers, Some(7), None).wrong, ["the stopped worker was not found within 3s"]);
    }

    #[test]
    fn a_healthy_worker_is_called_hung_also_by_an_answer_before_the_last() {
        let modes = modes();
        let case = case(&modes, "prefork --workers 4");
        let mut answers = [(); 2].map(|()| answer("workers-accept", ["accept", "accept"], &["hung-worker"]));
        (answers[0]["workers"][1]["pid"], answers[0]["workers"][1]["state"]) = (json!(8), json!("hung"));
        answers[1]["workers"][0]["state"] = json!("hung");
        let stopped = mark(&case, &answers, Some(7), Some(2.2));
        assert_eq!(
            (stopped.accused, &stopped.wrong[..]),
            (1, &["1 of the healthy workers called hung".to_string()][..])
        );
    }

    #[test]
    fn a_note_says_which_answer_was_wrong_and_how() {
        let modes = modes();
        let case = case(&modes, "shared-accept --workers 4");
        let mut tally = Tally::default();
        let answers = || [answer("workers-accept", ["epoll", "epoll"], &["one-acceptor"])];
        tally.add(&case, [mark(&case, &answers(), None, None), mark(&case, &answers(), Some(7), Some(1.1))]);
        let place = "shared-accept --workers 4, light load";
        let expected = [
            format!("{place}, healthy: herd was not found"),
            format!("{place}, healthy: one-acceptor: so"),
            format!("{place}, one worker stopped: hung-worker was not found"),
            format!("{place}, one worker stopped: one-acceptor: so"),
        ];
        assert_eq!(tally.notes, expected);
    }

    #[test]
    fn the_order_is_random_and_the_same_for_the_same_seed() {
        let modes = modes();
        let test =
            |seed, sample| BlindTest { modes: PathBuf::new(), user: User::Root, load: None, sample, seed: Some(seed) };
        let order = |test: BlindTest| {
            cases(&test, &modes.contenders, true).iter().map(|case| case.mode.command.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(order(test(1, None)), order(test(1, None)));
        let few = order(test(1, Some(2)));
        assert!(few.len() <= 2 && order(test(1, None)).starts_with(&few));
    }
}
