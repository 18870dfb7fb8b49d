//! Instructions of extended BPF, for programs that choose a socket of a SO_REUSEPORT group: of our servers
//! (`server::selector`) and of `lab steer`.
//!
//! They are written here one by one, so that no compiler has to be installed; `bpftool prog dump xlated` shows what the
//! kernel made of a program. `sys::bpf` hands it to the kernel.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use crate::classic_bpf::Source;
use crate::sys::bpf::{Instruction, SocketMap, WordMap};
use instructions::*;

/// A program that weighs loads compares all workers for every SYN, a dozen instructions each: far above this number the
/// choice would cost more than the connection. It is the idea of Hermes (SIGCOMM 2025) in miniature.
pub const MAX_LOADS: usize = 64;

// The registers: R0 is what is returned, R1 to R5 are arguments and do not survive a call, R6 to R9 do, R10 is the end
// of the stack (Documentation/bpf/standardization/instruction-set.rst, as are the encodings below).
pub const R0: u8 = 0;
pub const R1: u8 = 1;
pub const R2: u8 = 2;
pub const R3: u8 = 3;
pub const R4: u8 = 4;
pub const R6: u8 = 6;
pub const R7: u8 = 7;
pub const R8: u8 = 8;
pub const R9: u8 = 9;
pub const R10: u8 = 10;

// An operation code is a class, an operation in the high nibble, and whether the operand is a register (X) or a
// constant.
const LD: u8 = 0x00;
const LDX: u8 = 0x01;
const STX: u8 = 0x03;
const JMP: u8 = 0x05;
const JMP32: u8 = 0x06;
const ALU64: u8 = 0x07;
const X: u8 = 0x08;
// Loads and stores have a size and a mode instead.
const U16: u8 = 0x08;
const U32: u8 = 0x00;
const U8: u8 = 0x10;
const U64: u8 = 0x18;
const ABSOLUTE: u8 = 0x20;
const INDIRECT: u8 = 0x40;
const MEMORY: u8 = 0x60;
const ATOMIC: u8 = 0xc0;

// An instruction is a code, a destination, a source, an offset and a constant. Comparisons are unsigned unless they say
// otherwise. `fetch_add` leaves in the register what the word in memory was before (since Linux 5.12). What is loaded from
// the packet's headers, as classic BPF does it, comes into R0; it needs the context in R6, and leaves nothing in R1 to R5.
// As a table, a line for each: rustfmt would make three of it.
#[rustfmt::skip]
pub mod instructions {
    use super::{
        ABSOLUTE, ALU64, ATOMIC, INDIRECT, Instruction, JMP, JMP32, LD, LDX, MEMORY, STX, U8, U32, U64, X,
    };

    pub const fn set(to: u8, constant: i32) -> Instruction { Instruction::new(ALU64 | 0xb0, to, 0, 0, constant) }
    pub const fn copy(to: u8, from: u8) -> Instruction { Instruction::new(ALU64 | 0xb0 | X, to, from, 0, 0) }
    pub const fn add(to: u8, from: u8) -> Instruction { Instruction::new(ALU64 | X, to, from, 0, 0) }
    pub const fn add_constant(to: u8, constant: i32) -> Instruction { Instruction::new(ALU64, to, 0, 0, constant) }
    pub const fn subtract(from: u8, register: u8) -> Instruction { Instruction::new(ALU64 | 0x10 | X, from, register, 0, 0) }
    pub const fn multiply(to: u8, constant: i32) -> Instruction { Instruction::new(ALU64 | 0x20, to, 0, 0, constant) }
    pub const fn and(to: u8, constant: i32) -> Instruction { Instruction::new(ALU64 | 0x50, to, 0, 0, constant) }
    pub const fn shift_left(to: u8, bits: i32) -> Instruction { Instruction::new(ALU64 | 0x60, to, 0, 0, bits) }
    pub const fn modulo(to: u8, constant: i32) -> Instruction { Instruction::new(ALU64 | 0x90, to, 0, 0, constant) }

    pub const fn load_u8(to: u8, base: u8, offset: i16) -> Instruction { Instruction::new(LDX | U8 | MEMORY, to, base, offset, 0) }
    pub const fn load_u32(to: u8, base: u8, offset: i16) -> Instruction { Instruction::new(LDX | U32 | MEMORY, to, base, offset, 0) }
    pub const fn load_u64(to: u8, base: u8, offset: i16) -> Instruction { Instruction::new(LDX | U64 | MEMORY, to, base, offset, 0) }
    pub const fn store_u64(base: u8, offset: i16, from: u8) -> Instruction { Instruction::new(STX | U64 | MEMORY, base, from, offset, 0) }
    pub const fn store_u32(base: u8, offset: i16, from: u8) -> Instruction { Instruction::new(STX | U32 | MEMORY, base, from, offset, 0) }
    pub const fn fetch_add(base: u8, offset: i16, register: u8) -> Instruction { Instruction::new(STX | U64 | ATOMIC, base, register, offset, 1) }

    pub const fn load_from_header(size: u8, offset: i32) -> Instruction { Instruction::new(LD | size | ABSOLUTE, 0, 0, 0, libc::SKF_NET_OFF + offset) }
    pub const fn load_from_header_beyond(size: u8, begin: u8, offset: i32) -> Instruction { Instruction::new(LD | size | INDIRECT, 0, begin, 0, libc::SKF_NET_OFF + offset) }

    pub const fn skip(skipped: i16) -> Instruction { Instruction::new(JMP, 0, 0, skipped, 0) }
    pub const fn skip_if_equal_u32(a: u8, constant: i32, skipped: i16) -> Instruction { Instruction::new(JMP32 | 0x10, a, 0, skipped, constant) }
    pub const fn skip_unless_equal_u32(a: u8, constant: i32, skipped: i16) -> Instruction { Instruction::new(JMP32 | 0x50, a, 0, skipped, constant) }
    pub const fn skip_if_at_least(a: u8, b: u8, skipped: i16) -> Instruction { Instruction::new(JMP | 0x30 | X, a, b, skipped, 0) }
    pub const fn skip_if_at_least_signed(a: u8, constant: i32, skipped: i16) -> Instruction { Instruction::new(JMP | 0x70, a, 0, skipped, constant) }
    pub const fn skip_if_below(a: u8, constant: i32, skipped: i16) -> Instruction { Instruction::new(JMP | 0xa0, a, 0, skipped, constant) }
    pub const fn skip_unless_zero(a: u8, skipped: i16) -> Instruction { Instruction::new(JMP | 0x50, a, 0, skipped, 0) }
    pub const fn call(helper: i32) -> Instruction { Instruction::new(JMP | 0x80, 0, 0, 0, helper) }
    pub const fn exit() -> Instruction { Instruction::new(JMP | 0x90, 0, 0, 0, 0) }
}

/// The kernel replaces the descriptor by the map (BPF_PSEUDO_MAP_FD). A 64-bit constant takes two instructions.
pub fn set_to_map(register: u8, map: &SocketMap) -> [Instruction; 2] {
    const PSEUDO_MAP_FD: u8 = 1;
    let fd = map.fd.as_raw_fd();
    [Instruction::new(LD | U64, register, PSEUDO_MAP_FD, 0, fd), Instruction::new(0, 0, 0, 0, 0)]
}

/// The same for the address of the map's only value (BPF_PSEUDO_MAP_VALUE).
pub fn set_to_words(register: u8, map: &WordMap) -> [Instruction; 2] {
    const PSEUDO_MAP_VALUE: u8 = 2;
    let fd = map.fd.as_raw_fd();
    [Instruction::new(LD | U64, register, PSEUDO_MAP_VALUE, 0, fd), Instruction::new(0, 0, 0, 0, 0)]
}

/// Of `struct __sk_buff` (linux/bpf.h): the protocol's number, in the order of the network.
const PROTOCOL: i16 = 16;

const fn protocol(number: i32) -> i32 {
    (number as u16).to_be() as i32
}

/// As [`crate::classic_bpf::own_connections_first`]; the rest of the program follows. It needs the context in R6.
pub fn own_connections_first(ours: &[(SocketAddr, usize)]) -> Vec<Instruction> {
    let Some((first, _)) = ours.first() else { return Vec::new() };
    let source = Source::of(first.ip());
    let mut by_port = vec![load_from_header(U16, source.port_at)];
    for (ours, number) in ours {
        by_port.extend([skip_unless_equal_u32(R0, ours.port().into(), 2), set(R0, *number as i32), exit()]);
    }
    let rest = by_port.len() as i16;
    let mut program = vec![load_u32(R0, R6, PROTOCOL), skip_unless_equal_u32(R0, protocol(source.protocol), rest + 2)];
    program.extend([load_from_header(U32, source.address_at), skip_unless_equal_u32(R0, source.address as i32, rest)]);
    program.extend(by_port);
    program
}

/// Only a SYN begins a connection.
pub const SYN: i32 = 0x02;

/// Leaves the flags of TCP in R0 (RFC 9293, section 3.1); none where IPv6 has extensions between its header (RFC 8200) and
/// TCP's. It needs the context in R6.
pub fn load_tcp_flags() -> [Instruction; 12] {
    const FLAGS: i32 = 13;
    const NEXT_HEADER: i32 = 6;
    const IPV6_HEADER: i32 = 40;
    [
        load_u32(R1, R6, PROTOCOL),
        skip_if_equal_u32(R1, protocol(libc::ETH_P_IPV6), 5),
        // The length of an IPv4 header, in words, is the first byte's lower half (RFC 791).
        load_from_header(U8, 0),
        and(R0, 0x0f),
        multiply(R0, 4),
        load_from_header_beyond(U8, R0, FLAGS),
        skip(5),
        load_from_header(U8, NEXT_HEADER),
        skip_if_equal_u32(R0, libc::IPPROTO_TCP, 2),
        set(R0, 0),
        skip(1),
        load_from_header(U8, IPV6_HEADER + FLAGS),
    ]
}
