//! Programs in classic BPF that choose a socket of a SO_REUSEPORT group: an accumulator, a constant, a return. The value
//! returned is the number of a socket; what a number means stands in [`crate::server::selector`]. A program in the
//! kernel is attached by `sys::bpf`; any user may.

use std::net::{IpAddr, SocketAddr};

use libc::sock_filter;

use instructions::*;

pub type BpfProgram = Vec<sock_filter>;

/// The kernel takes no classic program that is longer (linux/bpf_common.h, BPF_MAXINSNS).
const MAX_INSTRUCTIONS: usize = 4096;

/// How many workers [`random`] has room for, were all but one of them gaps: three instructions and two per gap.
pub const MAX_MEMBERS: usize = (MAX_INSTRUCTIONS - 3) / 2 + 1;

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

/// The socket of the worker that may run on the CPU on which the SYN is processed and on no other: CPU and socket of
/// each. The others get the socket that the number of their CPU modulo `members` gives.
pub fn for_cpus(sockets: &[(usize, usize)], members: usize) -> BpfProgram {
    let mut program = vec![load(libc::SKF_AD_CPU)];
    program.extend(sockets.iter().flat_map(|&(cpu, socket)| [skip_unless_equal(cpu, 1), answer(socket)]));
    program.extend([modulo(members), answer_accumulator()]);
    program
}

/// One of the sockets by chance, each with its share of all; a share may be 0, but not all.
pub fn weighted(shares: &[u32]) -> BpfProgram {
    let mut program = vec![load(libc::SKF_AD_RANDOM), modulo(shares.iter().sum::<u32>() as usize)];
    // From the last to the first: a draw at or above where a share begins, and below all later ones, is in it.
    let mut begin: u32 = shares.iter().sum();
    for (socket, share) in shares.iter().enumerate().rev().filter(|(_, share)| **share > 0) {
        begin -= share;
        program.extend([skip_unless_at_least(begin as usize, 1), answer(socket)]);
    }
    program.push(answer(NOBODY));
    program
}

/// The number of no socket: the kernel chooses by its hash, as if there were no program.
pub fn hash() -> BpfProgram {
    vec![answer(NOBODY)]
}

const NOBODY: usize = u32::MAX as usize;

/// Connections of ours, by the address that they come from, get the socket with the number beside it; for all others
/// `rest` chooses. They come from one IP address, and from no interface that adds options to a header.
pub fn own_connections_first(ours: &[(SocketAddr, usize)], rest: &BpfProgram) -> BpfProgram {
    let Some((first, _)) = ours.first() else { return rest.clone() };
    let Source { protocol, address, address_at, port_at } = Source::of(first.ip());
    let cases = ours.iter().flat_map(|(ours, number)| [skip_unless_equal(ours.port().into(), 1), answer(*number)]);
    let mut by_port = vec![load_from_header(libc::BPF_H, port_at)];
    by_port.extend(cases);
    let mut program = vec![load(libc::SKF_AD_PROTOCOL), skip_if_equal(protocol as usize, 1), skip(3 + by_port.len())];
    program.extend([load_from_header(libc::BPF_W, address_at), skip_if_equal(address as usize, 1)]);
    program.push(skip(by_port.len()));
    program.extend(by_port);
    program.extend(rest);
    program
}

/// What a packet from an address is known by.
pub struct Source {
    /// The number of its protocol.
    pub protocol: i32,
    /// The end of the address.
    pub address: u32,
    /// Where a header has this end, and the source port (RFC 791, 8200, 9293).
    pub address_at: i32,
    pub port_at: i32,
}

impl Source {
    pub fn of(ip: IpAddr) -> Source {
        let (protocol, octets, address_at, port_at) = match ip.to_canonical() {
            IpAddr::V4(ip) => (libc::ETH_P_IP, ip.octets(), 12, 20),
            IpAddr::V6(ip) => (libc::ETH_P_IPV6, ip.octets().last_chunk().copied().expect("sixteen"), 20, 40),
        };
        Source { protocol, address: u32::from_be_bytes(octets), address_at, port_at }
    }
}

/// A load of what the kernel knows beside the packet has a negative offset (linux/filter.h, SKF_AD_OFF). A comparison
/// jumps over 255 instructions at most, `skip` over any number.
// As a table, a line for each: rustfmt would make three of it.
#[rustfmt::skip]
mod instructions {
    use libc::*;

    pub fn load(what: c_int) -> sock_filter { instruction(BPF_LD | BPF_W | BPF_ABS, (SKF_AD_OFF + what) as u32, 0) }
    pub fn load_from_header(size: u32, offset: i32) -> sock_filter { instruction(BPF_LD | size | BPF_ABS, (SKF_NET_OFF + offset) as u32, 0) }
    pub fn modulo(n: usize) -> sock_filter { instruction(BPF_ALU | BPF_MOD | BPF_K, n as u32, 0) }
    pub fn add(n: u32) -> sock_filter { instruction(BPF_ALU | BPF_ADD | BPF_K, n, 0) }
    pub fn skip(skipped: usize) -> sock_filter { instruction(BPF_JMP | BPF_JA, skipped as u32, 0) }
    pub fn skip_if_equal(n: usize, skipped: u8) -> sock_filter { sock_filter { jt: skipped, ..skip_unless_equal(n, 0) } }
    pub fn skip_unless_equal(n: usize, skipped: u8) -> sock_filter { instruction(BPF_JMP | BPF_JEQ | BPF_K, n as u32, skipped) }
    pub fn skip_unless_at_least(n: usize, skipped: u8) -> sock_filter { instruction(BPF_JMP | BPF_JGE | BPF_K, n as u32, skipped) }
    pub fn answer(number: usize) -> sock_filter { instruction(BPF_RET | BPF_K, number as u32, 0) }
    pub fn answer_accumulator() -> sock_filter { instruction(BPF_RET | BPF_A, 0, 0) }

    fn instruction(code: u32, k: u32, skipped: u8) -> sock_filter { sock_filter { code: code as u16, jt: 0, jf: skipped, k } }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would answer, were every value it loads `loaded`.
    fn run(program: &BpfProgram, loaded: u32) -> u32 {
        run_with(program, |_| loaded)
    }

    /// The same, where each place has its value.
    fn run_with(program: &BpfProgram, loaded: impl Fn(i32) -> u32) -> u32 {
        let (mut accumulator, mut at) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            at += 1;
            let skipped = |holds: bool| usize::from(if holds { jt } else { jf });
            match u32::from(code) {
                code if code & 7 == libc::BPF_LD => accumulator = loaded(k as i32),
                code if code == libc::BPF_ALU | libc::BPF_MOD => accumulator %= k,
                code if code == libc::BPF_ALU | libc::BPF_ADD => accumulator += k,
                code if code == libc::BPF_JMP | libc::BPF_JA => at += k as usize,
                code if code == libc::BPF_JMP | libc::BPF_JEQ => at += skipped(accumulator == k),
                code if code == libc::BPF_JMP | libc::BPF_JGE => at += skipped(accumulator >= k),
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

    #[test]
    fn any_number_of_own_connections_get_their_sockets_and_all_others_what_the_rest_answers() {
        let ours: Vec<_> = (0..300).map(|n| (SocketAddr::from(([127, 0, 0, 9], 5000 + n as u16)), n)).collect();
        let program = own_connections_first(&ours, &vec![answer(1000)]);
        let from = |protocol: i32, address: u32, port: u32| {
            run_with(&program, |at| match at - libc::SKF_NET_OFF {
                12 => address,
                20 => port,
                _ => protocol as u32,
            })
        };
        assert_eq!([5000, 5001, 5299].map(|port| from(libc::ETH_P_IP, 0x7f00_0009, port)), [0, 1, 299]);
        assert_eq!(from(libc::ETH_P_IP, 0x7f00_0009, 5300), 1000);
        assert_eq!(from(libc::ETH_P_IP, 0x7f00_0001, 5000), 1000);
        assert_eq!(from(libc::ETH_P_IPV6, 0x7f00_0009, 5000), 1000);
    }
}
