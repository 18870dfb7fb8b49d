//! Selectors in classic BPF: an accumulator, a constant, a return. The value returned is the number of a socket.

use libc::sock_filter;
use nix::errno::Errno;

use super::super::listener::Listener;
use crate::failure::Failure;
use crate::sys::bpf::attach_classic;
use instructions::*;

pub type BpfProgram = Vec<sock_filter>;

/// The kernel takes no classic program that is longer (linux/bpf_common.h, BPF_MAXINSNS).
const MAX_INSTRUCTIONS: usize = 4096;

/// How many workers [`random`] has room for, were all but one of them gaps: three instructions and two per gap.
pub const MAX_MEMBERS: usize = (MAX_INSTRUCTIONS - 3) / 2 + 1;

/// Lets `program` choose among the listeners of a group, of which `member` is one.
///
/// # Errors
/// Where the kernel is older than 4.6, which has no such programs for TCP, or allows no memory for one.
pub fn attach(member: &Listener, program: &BpfProgram) -> Result<(), Failure> {
    attach_classic(member, program).map_err(|errno| {
        let tried = format_args!("attach a classic BPF program to {}", member.address());
        Failure::new(tried, errno).advise(match errno {
            Errno::ENOMEM => "raise net.core.optmem_max",
            _ => "it needs Linux 4.6",
        })
    })
}

/// The worker that is pinned to the CPU on which the SYN is processed: worker i for the i-th of `cpus`. Any other CPU
/// gets the worker that its number modulo `workers` gives.
///
/// That CPU is the one which the network card's queue interrupts, and on the loopback the client's own. With more
/// workers than CPUs the last ones get nothing.
pub fn by_cpu(cpus: &[usize], workers: usize) -> BpfProgram {
    let mut program = vec![load(libc::SKF_AD_CPU)];
    for (worker, &cpu) in cpus.iter().enumerate().take(workers) {
        program.extend([skip_unless_equal(cpu, 1), answer(worker)]);
    }
    program.extend([modulo(workers), answer_accumulator()]);
    program
}

/// One of `members` sockets by chance, never one of `gaps` (ascending, and fewer than the members).
///
/// Chance draws among those that are left, and each gap at or below the draw moves it up by one. So the length goes
/// with the gaps, and without any it is the plain draw.
pub fn random(members: usize, gaps: &[usize]) -> BpfProgram {
    let mut program = vec![load(libc::SKF_AD_RANDOM), modulo(members - gaps.len())];
    for &gap in gaps {
        program.extend([skip_unless_at_least(gap, 1), add(1)]);
    }
    program.push(answer_accumulator());
    program
}

/// A load of what the kernel knows beside the packet has a negative offset (linux/filter.h, SKF_AD_OFF). `skipped`
/// instructions are jumped over when the comparison fails, none when it holds.
// As a table, a line for each: rustfmt would make three of it.
#[rustfmt::skip]
mod instructions {
    use libc::*;

    pub fn load(what: c_int) -> sock_filter { instruction(BPF_LD | BPF_W | BPF_ABS, (SKF_AD_OFF + what) as u32, 0) }
    pub fn modulo(n: usize) -> sock_filter { instruction(BPF_ALU | BPF_MOD | BPF_K, n as u32, 0) }
    pub fn add(n: u32) -> sock_filter { instruction(BPF_ALU | BPF_ADD | BPF_K, n, 0) }
    pub fn skip_unless_equal(n: usize, skipped: u8) -> sock_filter { instruction(BPF_JMP | BPF_JEQ | BPF_K, n as u32, skipped) }
    pub fn skip_unless_at_least(n: usize, skipped: u8) -> sock_filter { instruction(BPF_JMP | BPF_JGE | BPF_K, n as u32, skipped) }
    pub fn answer(number: usize) -> sock_filter { instruction(BPF_RET | BPF_K, number as u32, 0) }
    pub fn answer_accumulator() -> sock_filter { instruction(BPF_RET | BPF_A, 0, 0) }

    fn instruction(code: u32, k: u32, skipped: u8) -> sock_filter { sock_filter { code: code as u16, jt: 0, jf: skipped, k } }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would answer, were the value it loads `loaded`.
    fn run(program: &BpfProgram, loaded: u32) -> u32 {
        let (mut accumulator, mut at) = (0, 0);
        loop {
            let sock_filter { code, jf, k, .. } = program[at];
            at += 1;
            match u32::from(code) {
                code if code == libc::BPF_LD | libc::BPF_W | libc::BPF_ABS => accumulator = loaded,
                code if code == libc::BPF_ALU | libc::BPF_MOD => accumulator %= k,
                code if code == libc::BPF_ALU | libc::BPF_ADD => accumulator += k,
                code if code == libc::BPF_JMP | libc::BPF_JEQ => {
                    at += if accumulator == k { 0 } else { usize::from(jf) };
                }
                code if code == libc::BPF_JMP | libc::BPF_JGE => {
                    at += if accumulator >= k { 0 } else { usize::from(jf) };
                }
                code if code == libc::BPF_RET | libc::BPF_A => return accumulator,
                code if code == libc::BPF_RET => return k,
                code => panic!("instruction {code:#x}"),
            }
        }
    }

    #[test]
    fn chance_passes_over_the_gaps_and_treats_all_others_alike() {
        for gaps in [&[][..], &[0], &[3], &[1, 2], &[0, 1, 3], &[0, 2]] {
            let program = random(4, gaps);
            let mut hits = [0; 4];
            (0..12).for_each(|draw| hits[run(&program, draw) as usize] += 1);
            let share = 12 / (4 - gaps.len());
            let expected: Vec<usize> = (0..4).map(|i| if gaps.contains(&i) { 0 } else { share }).collect();
            assert_eq!(hits.to_vec(), expected, "gaps {gaps:?}");
        }
    }

    #[test]
    fn the_longest_program_is_one_that_the_kernel_takes() {
        let gaps: Vec<usize> = (1..MAX_MEMBERS).collect();
        assert!(random(MAX_MEMBERS, &gaps).len() <= MAX_INSTRUCTIONS);
    }

    #[test]
    fn a_cpu_gets_the_worker_that_is_pinned_to_it() {
        let program = by_cpu(&[2, 5, 7], 3);
        assert_eq!([2, 5, 7, 4].map(|cpu| run(&program, cpu)), [0, 1, 2, 1]);
        let more_workers = by_cpu(&[2, 5], 4);
        assert_eq!([2, 5, 7].map(|cpu| run(&more_workers, cpu)), [0, 1, 3]);
        let fewer_workers = by_cpu(&[0, 1, 2, 3], 2);
        assert_eq!([0, 1, 2, 3].map(|cpu| run(&fewer_workers, cpu)), [0, 1, 0, 1]);
    }
}
