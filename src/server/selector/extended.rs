//! Selectors in extended BPF: they keep a memory between connections and name the socket in a map of their own.
//!
//! They are written instruction by instruction ([`crate::extended_bpf`]). Both return SK_PASS whatever happens: a socket
//! that was selected gets the connection, and where none was, the kernel's hash chooses.

use std::num::NonZeroUsize;

use nix::errno::Errno;

use super::super::listener::Listener;
use super::heartbeat::Load;
pub use crate::extended_bpf::MAX_LOADS;
use crate::extended_bpf::instructions::{
    add, add_constant, and, call, copy, exit, fetch_add, load_u8, load_u64, modulo, multiply, set, skip_if_at_least,
    skip_if_at_least_signed, skip_if_below, skip_unless_zero, store_u32, store_u64, subtract,
};
use crate::extended_bpf::{R0, R1, R2, R3, R4, R6, R7, R8, R9, R10, set_to_map, set_to_words};
use crate::failure::Failure;
use crate::sys::bpf::{self, Instruction, SocketMap, WordMap};

/// In words: two cache lines, like a row of the scoreboard, because one CPU's SYN must not slow another's worker down.
const SLOT_WORDS: usize = 16;

/// Worker i gets connection i mod N.
///
/// A worker that has died leaves an empty place, and its turns go to the others by the hash. (The next in line would
/// get twice as many as anybody else.)
///
/// # Errors
/// Without CAP_BPF, or on a kernel before 5.12.
pub fn take_turns(listeners: &[Listener]) -> Result<(), Failure> {
    let (sockets, memory) = create_maps(listeners, 1)?;
    load_and_attach(&round_robin(&sockets, &memory, listeners.len() as i32), &listeners[0])
}

/// The worker with the lowest load gets the connection, and among equals the one who has waited longest. Returns the
/// workers' accounts, in which each is to enter what it has finished.
///
/// The load is counted up here and not by the worker when it accepts: a burst would go to one worker as a whole if its
/// connections did not count before they are accepted, and a worker that hangs would look idle for ever. A worker that
/// has died is such a one: its place is empty, the hash chooses in its stead, and soon it has the highest load.
pub fn weigh_loads(listeners: &[Listener]) -> Result<Vec<Load>, Failure> {
    let (sockets, memory) = create_maps(listeners, 1 + listeners.len())?;
    load_and_attach(&least_loaded(&sockets, &memory, listeners.len() as i32), &listeners[0])?;
    let slots = memory.words.chunks_exact(SLOT_WORDS).skip(1);
    Ok(slots.map(|slot| Load { assigned: &slot[0], finished: &slot[1] }).collect())
}

fn create_maps(listeners: &[Listener], slots: usize) -> Result<(SocketMap, WordMap), Failure> {
    let sockets = SocketMap::of(listeners).map_err(|errno| explain("create a BPF map of sockets", errno))?;
    let words = NonZeroUsize::new(slots * SLOT_WORDS).expect("there is a slot at least");
    Ok((sockets, WordMap::new(words).map_err(|errno| explain("create a BPF map", errno))?))
}

fn load_and_attach(program: &[Instruction], member: &Listener) -> Result<(), Failure> {
    let program = bpf::load(program).map_err(|errno| explain("load the BPF program", errno))?;
    let tried = || format!("attach the BPF program to {}", member.address());
    bpf::attach_extended(member, program).map_err(|errno| Failure::new(tried(), errno))
}

fn explain(tried: &str, errno: Errno) -> Failure {
    let advice = match errno {
        Errno::EPERM => "needs CAP_BPF",
        Errno::ENOSYS => "this kernel is built without CONFIG_BPF_SYSCALL; use --select hash",
        _ => "it needs Linux 5.12; use --select hash",
    };
    Failure::new(tried, errno).advise(advice)
}

/// The first word counts the connections.
fn round_robin(sockets: &SocketMap, memory: &WordMap, workers: i32) -> Vec<Instruction> {
    let mut program = pass_unless_syn();
    program.extend(set_to_words(R7, memory));
    // The addition returns the value before it, so that SYNs on two CPUs at once have two turns.
    program.extend([set(R8, 1), fetch_add(R7, 0, R8), modulo(R8, workers)]);
    program.extend(select(sockets, R8));
    program
}

/// The first slot's first word says whom the next scan prefers among equals; slot 1 + i is worker i's account.
fn least_loaded(sockets: &SocketMap, memory: &WordMap, workers: i32) -> Vec<Instruction> {
    let slot_bytes = 8 * SLOT_WORDS as i16;
    let (assigned, finished) = (slot_bytes, slot_bytes + 8);

    let mut program = pass_unless_syn();
    program.extend(set_to_words(R7, memory));
    program.extend([load_u64(R8, R7, 0), modulo(R8, workers)]);
    // The score is load * N + distance from the preferred worker, and the lowest wins. All are different, because the
    // distances are.
    program.push(set(R9, -1));
    for i in 0..workers {
        let slot = i as i16 * slot_bytes;
        program.extend([load_u64(R1, R7, assigned + slot), load_u64(R2, R7, finished + slot), subtract(R1, R2)]);
        // More finished than assigned: what the hash has sent here was never assigned.
        program.extend([skip_if_at_least_signed(R1, 0, 1), set(R1, 0), multiply(R1, workers)]);
        program.extend([set(R2, i + workers), subtract(R2, R8), modulo(R2, workers), add(R1, R2)]);
        program.extend([skip_if_at_least(R1, R9, 1), copy(R9, R1)]);
    }
    // The distance that won leads back to the worker, and who comes after it is preferred next time. Two SYNs on two
    // CPUs at once may find the same loads and choose the same worker: a difference of one, for the next to level.
    program.extend([modulo(R9, workers), add(R8, R9), modulo(R8, workers)]);
    program.extend([copy(R1, R8), add_constant(R1, 1), store_u64(R7, 0, R1)]);
    // Not every verifier knows that a remainder is smaller than the divisor.
    program.push(skip_if_below(R8, workers, 2));
    program.extend(PASS);
    program.extend([copy(R1, R8), multiply(R1, slot_bytes.into()), add(R1, R7)]);
    program.extend([set(R2, 1), fetch_add(R1, assigned, R2)]);
    program.extend(select(sockets, R8));
    program
}

/// Only a SYN begins a connection. What else comes to a listener belongs to none (see [`super`]) and has no turn.
/// Leaves the context, which the kernel passes in R1, in R6.
fn pass_unless_syn() -> Vec<Instruction> {
    // struct sk_reuseport_md (linux/bpf.h): the packet's first byte, here of the TCP header, and its end.
    const DATA: i16 = 0;
    const DATA_END: i16 = 8;
    // RFC 9293, section 3.1.
    const FLAGS: i16 = 13;
    const SYN: i32 = 0x02;

    let mut program = vec![
        copy(R6, R1),
        load_u64(R2, R6, DATA),
        load_u64(R3, R6, DATA_END),
        copy(R4, R2),
        add_constant(R4, (FLAGS + 1).into()),
        skip_if_at_least(R3, R4, 2),
    ];
    program.extend(PASS);
    program.extend([load_u8(R4, R2, FLAGS), and(R4, SYN), skip_unless_zero(R4, 2)]);
    program.extend(PASS);
    program
}

/// Sends the connection to the socket whose number is in `number`, and leaves it to the hash if there is none: the
/// helper's error is not looked at.
fn select(sockets: &SocketMap, number: u8) -> Vec<Instruction> {
    const BPF_FUNC_SK_SELECT_REUSEPORT: i32 = 82;
    // The key is passed by address, so it has to be on the stack.
    const KEY: i16 = -4;

    let mut program = vec![store_u32(R10, KEY, number), copy(R1, R6)];
    program.extend(set_to_map(R2, sockets));
    program.extend([copy(R3, R10), add_constant(R3, KEY.into()), set(R4, 0), call(BPF_FUNC_SK_SELECT_REUSEPORT)]);
    program.extend(PASS);
    program
}

/// `enum sk_action`: take the packet. The other one, SK_DROP, would refuse the connection.
const SK_PASS: i32 = 1;
const PASS: [Instruction; 2] = [set(R0, SK_PASS), exit()];
