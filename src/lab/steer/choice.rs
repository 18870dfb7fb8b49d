//! Which sockets may be chosen, and how often: a pure function of what was seen, as a program for the kernel.

use clap::ValueEnum;
use serde::Serialize;

use crate::classic_bpf::{BpfProgram, by_cpu, for_cpus, hash, random, weighted};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Select {
    /// The worker on the CPU that processes the SYN; where workers are not pinned, the i-th socket for the i-th CPU
    Cpu,
    /// By chance
    Random,
    /// By chance among the workers that accept
    LiveSet,
    /// The one of these with the fewest connections, open or waiting; without CAP_BPF by chance, and more often those that
    /// had fewer 20 ms ago
    LeastLoaded,
    /// By the kernel's hash, as without a program; to compare with
    Hash,
}

impl Select {
    /// Whether the choice depends on what the workers do.
    pub fn looks_at_workers(self) -> bool {
        matches!(self, Select::LiveSet | Select::LeastLoaded)
    }
}

/// What the choice knows of a socket of the group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// Its worker accepts.
    pub is_live: bool,
    /// Connections of its worker, open or waiting, beside a number that is the same for all. Where they are not known,
    /// they count as the most.
    pub load: Option<u64>,
    /// The only CPU on which its worker may run.
    pub cpu: Option<usize>,
}

/// So many sockets with the highest share still have a sum that a program can draw from.
const MOST_SHARE: u64 = 1 << 19;

/// The load of each that may be chosen. While no worker accepts, all may be: a queue is better than none.
pub fn loads(candidates: &[Candidate]) -> Vec<Option<u64>> {
    let is_out = |candidate: &Candidate| !candidate.is_live && candidates.iter().any(|other| other.is_live);
    let among = || candidates.iter().filter(|candidate| !is_out(candidate));
    let most = among().filter_map(|candidate| candidate.load).max().unwrap_or(0);
    candidates.iter().map(|candidate| (!is_out(candidate)).then(|| candidate.load.unwrap_or(most))).collect()
}

/// The program for these sockets, in the order of the group; `cpus` are those on which a SYN may be processed.
pub fn program(select: Select, candidates: &[Candidate], cpus: &[usize]) -> BpfProgram {
    match select {
        Select::Hash => hash(),
        Select::Random => random(candidates.len(), &[]),
        Select::LiveSet => {
            let out = loads(candidates).into_iter().enumerate().filter(|(_, load)| load.is_none());
            random(candidates.len(), &out.map(|(number, _)| number).collect::<Vec<_>>())
        }
        Select::LeastLoaded => {
            let loads = loads(candidates);
            let most = loads.iter().flatten().max().copied().unwrap_or(0);
            let share = |load: &Option<u64>| load.map_or(0, |load| (most - load + 1).min(MOST_SHARE) as u32);
            weighted(&loads.iter().map(share).collect::<Vec<_>>())
        }
        Select::Cpu => {
            let pinned = candidates.iter().enumerate().filter_map(|(number, candidate)| Some((candidate.cpu?, number)));
            let pinned: Vec<(usize, usize)> = pinned.collect();
            match pinned.is_empty() {
                true => by_cpu(cpus, candidates.len()),
                false => for_cpus(&pinned, candidates.len()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(live_and_load: &[(bool, u64)]) -> Vec<Candidate> {
        live_and_load.iter().map(|&(is_live, load)| Candidate { is_live, load: Some(load), cpu: None }).collect()
    }

    #[test]
    fn who_does_not_accept_is_passed_over_unless_nobody_does() {
        let one_hangs = candidates(&[(true, 0), (false, 0), (true, 0)]);
        assert_eq!(program(Select::LiveSet, &one_hangs, &[0]), random(3, &[1]));
        let all_hang = candidates(&[(false, 0), (false, 0)]);
        assert_eq!(program(Select::LiveSet, &all_hang, &[0]), random(2, &[]));
        assert_eq!(program(Select::LeastLoaded, &all_hang, &[0]), weighted(&[1, 1]));
    }

    #[test]
    fn fewer_connections_are_a_larger_share() {
        let loads = candidates(&[(true, 10), (true, 7), (false, 0), (true, 9)]);
        assert_eq!(program(Select::LeastLoaded, &loads, &[0]), weighted(&[1, 4, 0, 2]));
        let unknown = [Candidate { load: None, ..loads[0].clone() }, loads[1].clone(), loads[3].clone()];
        assert_eq!(program(Select::LeastLoaded, &unknown, &[0]), weighted(&[1, 3, 1]));
    }

    #[test]
    fn a_pinned_worker_is_found_by_its_cpu() {
        let mut two = candidates(&[(true, 0), (true, 0)]);
        assert_eq!(program(Select::Cpu, &two, &[0, 1]), by_cpu(&[0, 1], 2));
        (two[0].cpu, two[1].cpu) = (Some(1), Some(0));
        assert_eq!(program(Select::Cpu, &two, &[0, 1]), for_cpus(&[(1, 0), (0, 1)], 2));
    }
}
