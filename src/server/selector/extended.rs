//! Selectors in extended BPF: they keep a memory between connections and name the socket in a map of their own.
//!
//! They are written here instruction by instruction, so that no compiler has to be installed; `bpftool prog dump
//! xlated` shows what the kernel made of them. Both return SK_PASS whatever happens: a socket that was selected gets
//! the connection, and where none was, the kernel's hash chooses.

use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;

use nix::errno::Errno;

use super::super::listener::Listener;
use super::heartbeat::Load;
use crate::failure::Failure;
use crate::sys::bpf::{self, Instruction, SocketMap, WordMap};
use instructions::*;

/// [`weigh_loads`] compares all workers for every SYN, a dozen instructions each: far above this number the choice
/// would cost more than the connection. It is the idea of Hermes (SIGCOMM 2025) in miniature.
pub const MAX_LOADS: usize = 64;

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

// The registers: R0 is what is returned, R1 to R5 are arguments and do not survive a call, R6 to R9 do, R10 is the end
// of the stack (Documentation/bpf/standardization/instruction-set.rst, as are the encodings below).
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const R6: u8 = 6;
const R7: u8 = 7;
const R8: u8 = 8;
const R9: u8 = 9;
const R10: u8 = 10;

/// `enum sk_action`: take the packet. The other one, SK_DROP, would refuse the connection.
const SK_PASS: i32 = 1;
const PASS: [Instruction; 2] = [set(R0, SK_PASS), exit()];

// An operation code is a class, an operation in the high nibble, and whether the operand is a register (X) or a
// constant.
const LD: u8 = 0x00;
const LDX: u8 = 0x01;
const STX: u8 = 0x03;
const JMP: u8 = 0x05;
const ALU64: u8 = 0x07;
const X: u8 = 0x08;
// Loads and stores have a size and a mode instead.
const U32: u8 = 0x00;
const U8: u8 = 0x10;
const U64: u8 = 0x18;
const MEMORY: u8 = 0x60;
const ATOMIC: u8 = 0xc0;

// An instruction is a code, a destination, a source, an offset and a constant. Comparisons are unsigned unless they say
// otherwise. `fetch_add` leaves in the register what the word in memory was before (since Linux 5.12).
// As a table, a line for each: rustfmt would make three of it.
#[rustfmt::skip]
mod instructions {
    use super::{ALU64, ATOMIC, Instruction, JMP, LDX, MEMORY, STX, U8, U32, U64, X};

    pub const fn set(to: u8, constant: i32) -> Instruction { Instruction::new(ALU64 | 0xb0, to, 0, 0, constant) }
    pub const fn copy(to: u8, from: u8) -> Instruction { Instruction::new(ALU64 | 0xb0 | X, to, from, 0, 0) }
    pub const fn add(to: u8, from: u8) -> Instruction { Instruction::new(ALU64 | X, to, from, 0, 0) }
    pub const fn add_constant(to: u8, constant: i32) -> Instruction { Instruction::new(ALU64, to, 0, 0, constant) }
    pub const fn subtract(from: u8, register: u8) -> Instruction { Instruction::new(ALU64 | 0x10 | X, from, register, 0, 0) }
    pub const fn multiply(to: u8, constant: i32) -> Instruction { Instruction::new(ALU64 | 0x20, to, 0, 0, constant) }
    pub const fn and(to: u8, constant: i32) -> Instruction { Instruction::new(ALU64 | 0x50, to, 0, 0, constant) }
    pub const fn modulo(to: u8, constant: i32) -> Instruction { Instruction::new(ALU64 | 0x90, to, 0, 0, constant) }

    pub const fn load_u8(to: u8, base: u8, offset: i16) -> Instruction { Instruction::new(LDX | U8 | MEMORY, to, base, offset, 0) }
    pub const fn load_u64(to: u8, base: u8, offset: i16) -> Instruction { Instruction::new(LDX | U64 | MEMORY, to, base, offset, 0) }
    pub const fn store_u64(base: u8, offset: i16, from: u8) -> Instruction { Instruction::new(STX | U64 | MEMORY, base, from, offset, 0) }
    pub const fn store_u32(base: u8, offset: i16, from: u8) -> Instruction { Instruction::new(STX | U32 | MEMORY, base, from, offset, 0) }
    pub const fn fetch_add(base: u8, offset: i16, register: u8) -> Instruction { Instruction::new(STX | U64 | ATOMIC, base, register, offset, 1) }

    pub const fn skip_if_at_least(a: u8, b: u8, skipped: i16) -> Instruction { Instruction::new(JMP | 0x30 | X, a, b, skipped, 0) }
    pub const fn skip_if_at_least_signed(a: u8, constant: i32, skipped: i16) -> Instruction { Instruction::new(JMP | 0x70, a, 0, skipped, constant) }
    pub const fn skip_if_below(a: u8, constant: i32, skipped: i16) -> Instruction { Instruction::new(JMP | 0xa0, a, 0, skipped, constant) }
    pub const fn skip_unless_zero(a: u8, skipped: i16) -> Instruction { Instruction::new(JMP | 0x50, a, 0, skipped, 0) }
    pub const fn call(helper: i32) -> Instruction { Instruction::new(JMP | 0x80, 0, 0, 0, helper) }
    pub const fn exit() -> Instruction { Instruction::new(JMP | 0x90, 0, 0, 0, 0) }
}

/// The kernel replaces the descriptor by the map (BPF_PSEUDO_MAP_FD). A 64-bit constant takes two instructions.
fn set_to_map(register: u8, map: &SocketMap) -> [Instruction; 2] {
    const PSEUDO_MAP_FD: u8 = 1;
    let fd = map.fd.as_raw_fd();
    [Instruction::new(LD | U64, register, PSEUDO_MAP_FD, 0, fd), Instruction::new(0, 0, 0, 0, 0)]
}

/// The same for the address of the map's only value (BPF_PSEUDO_MAP_VALUE).
fn set_to_words(register: u8, map: &WordMap) -> [Instruction; 2] {
    const PSEUDO_MAP_VALUE: u8 = 2;
    let fd = map.fd.as_raw_fd();
    [Instruction::new(LD | U64, register, PSEUDO_MAP_VALUE, 0, fd), Instruction::new(0, 0, 0, 0, 0)]
}
