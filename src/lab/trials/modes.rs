//! Servers and their modes, each with what is known of it: how it accepts, and what may be found. The list is
//! `experiments/blind-test.toml`; none of it comes from `lab inspect`, which is examined with it.

use std::fs;
use std::path::Path;

use clap::ValueEnum;
use serde::Deserialize;

use crate::failure::Failure;

/// How much is asked of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Load {
    /// A few hundred connections a second, with a request each
    Light,
    /// 32 clients, each with its next connection as soon as it has an answer
    Heavy,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Modes {
    /// The servers of the syllabus.
    pub ours: Vec<Mode>,
    /// Servers of other projects.
    pub contenders: Vec<Mode>,
}

/// One way to start a server, with four workers where it has several.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mode {
    /// Without the address.
    pub command: String,
    pub dispatch: String,
    pub sharing: String,
    /// How whoever accepts waits for a connection: each of them in one of these.
    pub waits_in: Vec<String>,
    /// Those who serve: processes.
    pub workers: usize,
    /// So many connections that stay may be open and somebody still waits for the next one.
    pub open: usize,
    /// What is to be found when few connections come and no worker is stopped.
    #[serde(default)]
    pub wrong: Vec<String>,
    /// What may be found or not, because it depends on the moment.
    #[serde(default)]
    pub unsure: Vec<String>,
}

impl Modes {
    pub fn read(path: &Path) -> Result<Modes, String> {
        let text = fs::read_to_string(path);
        let text = text.map_err(|error| Failure::new(format_args!("read {}", path.display()), error).to_string())?;
        toml::from_str(&text).map_err(|error| format!("{}: {}", path.display(), error.message()))
    }
}

/// What must be found, and what may be found beside it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Expected<'a> {
    pub surely: Vec<&'a str>,
    pub perhaps: Vec<&'a str>,
}

impl Mode {
    /// The program, without its folder.
    pub fn program(&self) -> &str {
        let first = self.command.split(' ').next().unwrap_or_default();
        first.rsplit('/').next().unwrap_or_default()
    }

    /// A script of experiments/contenders/, which prints no ready line.
    pub fn is_contender(&self) -> bool {
        self.command.starts_with("experiments/")
    }

    pub fn needs_rings(&self) -> bool {
        self.waits_in.iter().any(|wait| wait == "io_uring")
    }

    /// Whether the process that was started serves by itself, so that it is the worker.
    pub fn is_one_process(&self) -> bool {
        self.workers == 1 && self.program() != "haproxy"
    }

    pub fn expected(&self, load: Load, is_stopped: bool) -> Expected<'_> {
        fn own(ids: &[String]) -> impl Iterator<Item = &str> {
            ids.iter().map(String::as_str)
        }
        let mut expected = Expected { perhaps: own(&self.unsure).collect(), ..Expected::default() };
        // Under heavy load nobody sleeps, so nobody is woken for nothing, and all are needed. Among fewer workers less
        // is wrong.
        match load {
            Load::Light if !is_stopped => expected.surely.extend(own(&self.wrong)),
            _ => expected.perhaps.extend(own(&self.wrong)),
        }
        if load == Load::Heavy {
            // Whether the one or the others are at their limit first depends on the machine.
            expected.perhaps.extend((self.dispatch != "workers-accept").then_some("one-acceptor"));
            expected.perhaps.extend((self.workers > 1 && self.open > 1).then_some("more-workers-than-cpus"));
        }
        if is_stopped {
            expected.surely.push("hung-worker");
            // The hash goes on to choose it, unless all sockets belong to the one process that is stopped.
            expected.surely.extend((self.sharing == "reuseport" && self.workers > 1).then_some("blind-selector"));
        }
        expected
    }
}

impl Expected<'_> {
    /// Nothing that must be there is missing, and nothing else was found.
    pub fn is_met_by(&self, found: &[&str]) -> bool {
        self.missing(found).next().is_none() && found.iter().all(|id| self.allows(id))
    }

    /// What must be there and is not.
    pub fn missing(&self, found: &[&str]) -> impl Iterator<Item = &str> {
        self.surely.iter().copied().filter(|id| !found.contains(id))
    }

    pub fn allows(&self, id: &str) -> bool {
        self.surely.iter().chain(&self.perhaps).any(|own| *own == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modes() -> Modes {
        Modes::read(Path::new("experiments/blind-test.toml")).unwrap()
    }

    fn mode(command: &str) -> Mode {
        modes().ours.into_iter().find(|mode| mode.command == command).expect("it is in the list")
    }

    #[test]
    fn there_are_more_modes_than_were_asked_for_and_none_twice() {
        let Modes { ours, contenders } = modes();
        let mut commands: Vec<&str> = ours.iter().chain(&contenders).map(|mode| mode.command.as_str()).collect();
        commands.sort_unstable();
        commands.dedup();
        assert_eq!(commands.len(), ours.len() + contenders.len());
        assert!(ours.len() >= 35 && contenders.len() >= 12);
    }

    #[test]
    fn a_stopped_worker_and_the_hash_that_goes_on_to_choose_it_must_be_found() {
        let (processes, threads) = (mode("reuseport --workers 4"), mode("tokio --workers 4 --runtime per-core"));
        let expected = processes.expected(Load::Light, true);
        assert_eq!(expected.surely, ["hung-worker", "blind-selector"]);
        assert!(!expected.is_met_by(&["hung-worker"]) && expected.is_met_by(&["blind-selector", "hung-worker"]));
        assert_eq!(threads.expected(Load::Light, true).surely, ["hung-worker"]);
    }

    #[test]
    fn a_herd_must_be_found_while_few_connections_come_and_may_be_under_heavy_load() {
        let (herd, other) = (mode("shared-accept --workers 4"), mode("event-driven"));
        assert_eq!(herd.expected(Load::Light, false).surely, ["herd"]);
        assert!(!herd.expected(Load::Light, false).is_met_by(&[]));
        let heavy = herd.expected(Load::Heavy, false);
        assert!(heavy.is_met_by(&[]) && heavy.is_met_by(&["herd"]));
        assert!(!other.expected(Load::Heavy, false).is_met_by(&["herd"]));
    }
}
