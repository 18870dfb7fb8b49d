//! `least-loaded`, exactly: a program in extended BPF that counts each choice at once, so that the next one knows of it.
//!
//! A worker's load is `base + chosen`. The program adds to `chosen`, and we write `base` at each look: what the worker
//! has by then, less what was chosen until then. So a connection that begins counts at once, one that ends from the next
//! look on, and no error stays: each look counts anew. Of a burst that comes during a look some are counted twice until the
//! next one. A handshake that is under way at a look is missing until it is in a queue: where one takes longer than the
//! time between two looks, what was chosen last is forgotten, and the choice is no better than the looks are.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use nix::errno::Errno;

use crate::extended_bpf::instructions::*;
use crate::extended_bpf::{
    MAX_LOADS, R0, R1, R2, R6, R7, R8, R9, SYN, load_tcp_flags, own_connections_first, set_to_words,
};
use crate::failure::Failure;
use crate::sys::bpf::{Instruction, WordMap};

/// The load of a worker that is not to be chosen: more than any has.
const OUT: u64 = 1 << 23;
/// A score is the load, from this bit on, and below it the time of the last choice: of equals the one wins that has waited
/// longest. Should the time get so far, it adds the same to all.
const LOAD_AT: i32 = 40;
/// A choice takes so much time. Below it a time has the number of the worker, so the lowest score leads to its worker.
const TICK: usize = MAX_LOADS;

/// The first word of the map is the time, then each worker has three: its base, what was chosen, and when it was last.
const FIRST_SLOT: usize = 1;
const SLOT: usize = 3;
const BYTES: i16 = 8;

/// Loads by the number in the group, shared with the program.
pub struct LoadMap(WordMap);

impl LoadMap {
    /// # Errors
    /// Why it cannot be exact.
    pub fn new() -> Result<LoadMap, String> {
        let words = NonZeroUsize::new(FIRST_SLOT + SLOT * MAX_LOADS).expect("there are some");
        let map = LoadMap(WordMap::new(words).map_err(|errno| explain("make a BPF map", errno))?);
        map.0.words[0].store(TICK as u64, Relaxed);
        map.slots().enumerate().for_each(|(number, slot)| slot[2].store(number as u64, Relaxed));
        Ok(map)
    }

    fn slots(&self) -> impl Iterator<Item = &[AtomicU64]> {
        self.0.words[FIRST_SLOT..].chunks_exact(SLOT)
    }

    /// What was chosen until now. It is read before a look: what comes during the look counts twice, and not never.
    pub fn chosen(&self) -> Vec<u64> {
        self.slots().map(|slot| slot[1].load(Relaxed)).collect()
    }

    /// The loads that a look has shown, nothing of a worker that is not to be chosen, and what was chosen before it.
    pub fn set(&self, loads: &[Option<u64>], chosen: &[u64]) {
        for ((slot, load), chosen) in self.slots().zip(loads).zip(chosen) {
            slot[0].store(load.unwrap_or(OUT).wrapping_sub(*chosen), Relaxed);
        }
    }

    /// The lowest of so many loads gets the connection, except that connections of ours, by the address that they come
    /// from, get the socket with the number beside it, and are not counted.
    pub fn program(&self, sockets: usize, ours: &[(SocketAddr, usize)]) -> Vec<Instruction> {
        let offset = |number: usize, word: usize| (FIRST_SLOT + SLOT * number + word) as i16 * BYTES;
        let mut program = vec![copy(R6, R1)];
        program.extend(own_connections_first(ours));
        program.extend(set_to_words(R7, &self.0));
        program.push(set(R9, -1));
        for number in 0..sockets {
            let [base, chosen, last] = [0, 1, 2].map(|word| offset(number, word));
            program.extend([load_u64(R1, R7, base), load_u64(R2, R7, chosen), add(R1, R2), shift_left(R1, LOAD_AT)]);
            program.extend([load_u64(R2, R7, last), add(R1, R2), skip_if_at_least(R1, R9, 1), copy(R9, R1)]);
        }
        program.extend([copy(R8, R9), and(R8, TICK as i32 - 1)]);
        // Two SYNs on two CPUs at once may find the same loads and choose the same worker: a difference of one, for the
        // next to level.
        let [chosen, last] = [1, 2].map(|word| offset(0, word));
        let count = [
            [copy(R1, R8), multiply(R1, SLOT as i32 * i32::from(BYTES)), add(R1, R7)],
            [set(R2, 1), fetch_add(R1, chosen, R2), set(R2, TICK as i32)],
            [fetch_add(R7, 0, R2), add(R2, R8), store_u64(R1, last, R2)],
        ];
        program.extend(load_tcp_flags());
        program.extend([and(R0, SYN), skip_if_equal_u32(R0, 0, count.as_flattened().len() as i16)]);
        program.extend(count.as_flattened());
        program.extend([copy(R0, R8), exit()]);
        program
    }
}

/// Why it is not exact.
pub fn explain(tried: &str, errno: Errno) -> String {
    let advice = match errno {
        Errno::EPERM => "needs CAP_BPF",
        Errno::ENOMEM => "raise net.core.optmem_max",
        Errno::ENOSYS => "this kernel is built without CONFIG_BPF_SYSCALL",
        _ => "it needs Linux 5.12",
    };
    Failure::new(tried, errno).advise(advice).to_string()
}
