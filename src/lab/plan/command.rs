//! A command line, read once: its text, which the lab starts, and the values in it that the lab needs itself.
//!
//! Reading never fails: the program is the judge of its own flags. A flag that is absent, or whose value is not what
//! it should be, is `None`. Words are split at blanks, without quoting. In a record a command line is its text.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::parse_duration;
use crate::work::Work;

/// Clients of other projects (and `bare-client`) whose output the lab can read.
pub const FOREIGN_CLIENTS: [&str; 4] = ["wrk", "oha", "shb", "bare-client"];

/// The command line of a server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct ServerCommand {
    text: String,
    pub workers: Option<usize>,
    /// Helper threads.
    pub pool: Option<usize>,
    pub work: Option<Work>,
}

/// The command line of a client: loadgen's, or that of one of [`FOREIGN_CLIENTS`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct ClientCommand {
    text: String,
    pub connections: Option<u64>,
    /// Connections that stay open and send nothing.
    pub idle: u64,
    pub requests: Option<f64>,
    /// The same without a rate: the answers alone decide how long they take.
    pub unpaced_requests: Option<f64>,
    /// A connection for each request.
    is_churning: bool,
    /// Requests per second: with it the client is an open loop.
    pub rate: Option<f64>,
    pub warmup: Option<Duration>,
    /// The measured window (`--duration`; wrk calls it `-d`, oha `-z`).
    pub duration: Option<Duration>,
    pub is_pipelined: bool,
}

impl From<String> for ServerCommand {
    fn from(text: String) -> ServerCommand {
        let (workers, pool, work) = (value(&text, "--workers"), value(&text, "--pool"), value(&text, "--work"));
        ServerCommand { workers, pool, work, text }
    }
}

impl ServerCommand {
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The first word.
    pub fn program(&self) -> &str {
        self.text.split_whitespace().next().unwrap_or_default()
    }

    /// The command with one more flag of the server's own. Where the server starts another program, that one's command
    /// line begins behind `--`, and the flag stands before it.
    pub fn with(&self, flag: &str) -> ServerCommand {
        match self.text.split_once(" -- ") {
            Some((own, started)) => format!("{own} {flag} -- {started}").into(),
            None => format!("{} {flag}", self.text).into(),
        }
    }
}

impl From<String> for ClientCommand {
    fn from(text: String) -> ClientCommand {
        let time = |name| parse_duration(&value::<String>(&text, name)?).ok();
        let background = value::<String>(&text, "--background").unwrap_or_default();
        let idle = background.split(',').find_map(|kind| kind.strip_prefix("idle:")?.parse().ok());
        ClientCommand {
            connections: value(&text, "--connections"),
            idle: idle.or(value(&text, "--idle")).unwrap_or(0),
            requests: value(&text, "--requests"),
            unpaced_requests: value(&text, "--requests").filter(|_| value::<String>(&text, "--rate").is_none()),
            is_churning: value(&text, "--requests-per-connection") == Some(1),
            rate: value(&text, "--rate"),
            warmup: time("--warmup"),
            duration: ["--duration", "-d", "-z"].into_iter().find_map(time),
            is_pipelined: value::<String>(&text, "--pipeline").is_some(),
            text,
        }
    }
}

impl ClientCommand {
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The first word.
    pub fn program(&self) -> &str {
        self.text.split_whitespace().next().unwrap_or_default()
    }

    /// How often the program of a table of orders runs to its end.
    pub fn runs(&self) -> Option<u64> {
        self.text.strip_prefix("runs ")?.parse().ok()
    }

    /// How long it sends, warm-up included. A number of requests says so only together with a rate.
    pub fn length(&self) -> Duration {
        let counted = self.requests.zip(self.rate).filter(|(_, rate)| *rate > 0.0);
        let counted = counted.map_or(Duration::ZERO, |(requests, rate)| Duration::from_secs_f64(requests / rate));
        counted + self.warmup.unwrap_or_default() + self.duration.unwrap_or_default()
    }

    /// About so many requests per second are answered here when they cost no work: only an estimate.
    pub fn assumed_rate(&self) -> f64 {
        if self.is_churning { 10_000.0 } else { 100_000.0 }
    }

    pub fn with_url(&self, url: &str) -> ClientCommand {
        format!("{} {url}", self.text).into()
    }

    /// Whether chance decides when it sends: only then does a seed mean anything.
    fn is_random(&self) -> bool {
        let has = |flag: &str| value::<String>(&self.text, flag);
        let is_fixed = has("--arrivals").is_some_and(|how| how != "poisson");
        let sessions = self.text.split_whitespace().any(|word| word == "--sessions");
        let thinks = has("--think").is_some_and(|how| how.starts_with("exp:"));
        self.program() == "loadgen" && (thinks || !is_fixed && (sessions || has("--arrivals").is_some()))
    }

    /// The command with a seed of its own, unless the matrix has chosen one or chance decides nothing.
    pub fn with_seed(&self, seed: u64) -> ClientCommand {
        if !self.is_random() || value::<String>(&self.text, "--seed").is_some() {
            return self.clone();
        }
        format!("{} --seed {seed}", self.text).into()
    }

    /// The command with another value behind `--warmup`.
    pub fn with_warmup(&self, warmup: Duration) -> ClientCommand {
        let mut words: Vec<String> = self.text.split_whitespace().map(str::to_string).collect();
        let place = words.iter().position(|word| word == "--warmup").map(|flag| flag + 1);
        if let Some(value) = place.and_then(|place| words.get_mut(place)) {
            *value = format!("{}ms", warmup.as_millis());
        }
        words.join(" ").into()
    }
}

impl From<ServerCommand> for String {
    fn from(command: ServerCommand) -> String {
        command.text
    }
}

impl From<ClientCommand> for String {
    fn from(command: ClientCommand) -> String {
        command.text
    }
}

/// The value of a flag, written `--flag VALUE` or `--flag=VALUE`.
fn value<T: FromStr>(text: &str, flag: &str) -> Option<T> {
    let mut words = text.split_whitespace();
    let rest =
        words.find_map(|word| word.strip_prefix(flag).filter(|rest| rest.is_empty() || rest.starts_with('=')))?;
    let value = if rest.is_empty() { words.next()? } else { &rest[1..] };
    value.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(text: &str) -> ClientCommand {
        text.to_string().into()
    }

    #[test]
    fn a_flag_has_its_value_behind_a_blank_or_an_equals_sign() {
        let command = client(
            "loadgen --connections 8 --rate=2000 --requests 4000 --warmup 200ms --background idle:30,slow-read:2",
        );
        assert_eq!((command.connections, command.rate, command.idle), (Some(8), Some(2000.0), 30));
        assert_eq!(command.length(), Duration::from_millis(2200));
        assert_eq!(client("oha -z 3s --idle 4").length(), Duration::from_secs(3));
        assert_eq!(client("loadgen --connections many --connections-more 3").connections, None);
    }

    #[test]
    fn a_longer_warmup_changes_the_text() {
        let longer = client("loadgen --warmup 200ms --duration 1s").with_warmup(Duration::from_millis(2500));
        assert_eq!(longer.text(), "loadgen --warmup 2500ms --duration 1s");
        assert_eq!(longer.length(), Duration::from_millis(3500));
    }

    #[test]
    fn only_a_client_that_leaves_something_to_chance_gets_a_seed() {
        for random in ["--rate 5 --arrivals poisson", "--think exp:20ms", "--rate 5 --sessions"] {
            let text = format!("loadgen {random}");
            assert_eq!(client(&text).with_seed(7).text(), format!("{text} --seed 7"));
        }
        for other in [
            "loadgen --rate 5",
            "loadgen --think 20ms",
            "loadgen --rate 5 --arrivals fixed --sessions",
            "loadgen --rate 5 --arrivals poisson --seed 3",
            "wrk --arrivals poisson",
        ] {
            assert_eq!(client(other).with_seed(7).text(), other);
        }
    }

    #[test]
    fn a_flag_of_the_master_stands_before_the_program_it_starts() {
        let with = |text: &str| String::from(ServerCommand::from(text.to_string()).with("--b c"));
        assert_eq!(with("cluster -- node x.js --listen a"), "cluster --b c -- node x.js --listen a");
        assert_eq!(with("sync --listen a"), "sync --listen a --b c");
    }

    #[test]
    fn in_a_record_a_command_line_is_its_text() {
        let command = ServerCommand::from("prefork --workers 3".to_string());
        assert_eq!(serde_json::to_string(&command).unwrap(), "\"prefork --workers 3\"");
        assert_eq!(serde_json::from_str::<ServerCommand>("\"prefork --workers 3\"").unwrap(), command);
    }
}
