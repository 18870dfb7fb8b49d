//! BPF programs that choose a socket of a SO_REUSEPORT group: classic ones by setsockopt(2), extended ones and
//! their maps by bpf(2).
//!
//! A program or a map lives as long as somebody holds it: a descriptor, a mapping, the program that names the map,
//! or the group that runs the program. So after attaching, all descriptors may be closed, and a capability that is
//! lost later takes nothing away.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::AttachReusePortCbpf;
use nix::{setsockopt_impl, sockopt_impl};

// linux/bpf.h, in the words of that file.
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_REUSEPORT_SOCKARRAY: u32 = 20;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
const BPF_PROG_TYPE_SK_REUSEPORT: u32 = 21;
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// Lets a classic program choose in the group of `member`, from the next connection on and instead of the program
/// before. It needs no privilege (socket(7), SO_ATTACH_REUSEPORT_CBPF).
///
/// # Errors
/// EINVAL when the socket is in no group (it was bound without SO_REUSEPORT), and for a program that the kernel refuses
/// or that has more than 4,096 instructions.
pub fn attach_classic(member: impl AsFd, program: &[libc::sock_filter]) -> nix::Result<()> {
    let len = u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?;
    // The kernel copies the instructions during the call, and only reads them.
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    setsockopt(&member, AttachReusePortCbpf, &program)
}

/// # Errors
/// EINVAL when the socket is in no group, and for a program of another type.
pub fn attach_extended(member: impl AsFd, program: impl AsFd) -> nix::Result<()> {
    setsockopt(&member, AttachReusePortEbpf, &program.as_fd().as_raw_fd())
}

sockopt_impl!(AttachReusePortEbpf, SetOnly, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_EBPF, libc::c_int);

/// One instruction of an extended program, as the kernel reads it (`struct bpf_insn`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    pub const fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Instruction {
        // Two bit fields of a C struct: which nibble comes first follows the byte order.
        let registers = match cfg!(target_endian = "little") {
            true => destination | source << 4,
            false => destination << 4 | source,
        };
        Instruction { code, registers, offset, immediate }
    }
}

/// Hands a program that chooses a socket (BPF_PROG_TYPE_SK_REUSEPORT) to the verifier.
///
/// # Errors
/// EPERM without CAP_BPF; EINVAL or EACCES when the verifier of this kernel refuses the program.
pub fn load(program: &[Instruction]) -> nix::Result<OwnedFd> {
    /// The beginning of what BPF_PROG_LOAD takes; what a shorter argument leaves out is zero (bpf(2)).
    #[repr(C)]
    struct ProgLoad {
        kind: u32,
        instructions: u32,
        first: u64,
        license: u64,
    }
    // The verifier asks for a licence because some helpers are for GPL programs alone. None of ours is.
    let license = c"MIT";
    let argument = ProgLoad {
        kind: BPF_PROG_TYPE_SK_REUSEPORT,
        instructions: u32::try_from(program.len()).map_err(|_| Errno::E2BIG)?,
        first: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
    };
    // SAFETY: the argument is the beginning of the union's member for this command; it points to as many
    // instructions as it says and to a C string, all of which live for the call and are only read.
    unsafe { bpf_for_fd(BPF_PROG_LOAD, &argument) }
}

/// The same for a program that returns the number of a socket, as a classic one does (BPF_PROG_TYPE_SOCKET_FILTER).
pub fn load_filter(program: &[Instruction]) -> nix::Result<OwnedFd> {
    #[repr(C)]
    struct FilterLoad {
        kind: u32,
        instructions: u32,
        first: u64,
        license: u64,
    }
    let (instructions, first) = (u32::try_from(program.len()).map_err(|_| Errno::E2BIG)?, program.as_ptr() as u64);
    let license = c"MIT".as_ptr() as u64;
    let argument = FilterLoad { kind: BPF_PROG_TYPE_SOCKET_FILTER, instructions, first, license };
    // A signal that comes while the verifier works ends it (bpf_check in kernel/bpf/verifier.c).
    const ATTEMPTS: usize = 5;
    // SAFETY: as in `load`: the beginning of the union's member; what it points to lives for the call and is only read.
    let mut loaded = (0..ATTEMPTS).map(|_| unsafe { bpf_for_fd(BPF_PROG_LOAD, &argument) });
    loaded.find(|result| !matches!(result, Err(Errno::EAGAIN))).unwrap_or(Err(Errno::EAGAIN))
}

/// Listening sockets by number, for a program to name one (BPF_MAP_TYPE_REUSEPORT_SOCKARRAY). It holds no reference:
/// a socket that is closed leaves its place empty.
#[derive(Debug)]
pub struct SocketMap {
    pub fd: OwnedFd,
}

impl SocketMap {
    /// # Errors
    /// EPERM without CAP_BPF; EINVAL when a socket does not listen as a member of a group, or the kernel is older
    /// than 4.19.
    pub fn of(sockets: &[impl AsFd]) -> nix::Result<SocketMap> {
        #[repr(C)]
        struct Update {
            map: u32,
            padding: u32,
            key: u64,
            value: u64,
            flags: u64,
        }
        let fd = create_map(BPF_MAP_TYPE_REUSEPORT_SOCKARRAY, size_of::<u32>(), sockets.len(), 0)?;
        for (number, socket) in sockets.iter().enumerate() {
            let (key, value) = (number as u32, socket.as_fd().as_raw_fd() as u32);
            let argument = Update {
                map: fd.as_raw_fd() as u32,
                padding: 0,
                key: &raw const key as u64,
                value: &raw const value as u64,
                flags: 0,
            };
            // SAFETY: the argument is the beginning of the union's member for this command; key and value have the
            // map's sizes, 4 bytes each, and live for the call.
            unsafe { bpf(BPF_MAP_UPDATE_ELEM, &argument)? };
        }
        Ok(SocketMap { fd })
    }
}

/// 64-bit words that a program and the processes of a server share: an array map with a single value, so that the
/// program reaches every word by a constant offset, mapped like any shared memory. All zero at first.
#[derive(Debug)]
pub struct WordMap {
    pub fd: OwnedFd,
    pub words: &'static [AtomicU64],
}

impl WordMap {
    /// # Errors
    /// EPERM without CAP_BPF; EINVAL on a kernel before 5.5, which does not map maps.
    pub fn new(words: NonZeroUsize) -> nix::Result<WordMap> {
        let bytes = words.checked_mul(const { NonZeroUsize::new(8).unwrap() }).ok_or(Errno::EOVERFLOW)?;
        let fd = create_map(BPF_MAP_TYPE_ARRAY, bytes.get(), 1, BPF_F_MMAPABLE)?;
        let read_write = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses the address, so nothing that exists is mapped over. The map was made with this
        // many bytes, whole pages of them; its size never changes, and the mapping keeps it alive.
        let start = unsafe { mmap(None, bytes, read_write, MapFlags::MAP_SHARED, &fd, 0)? };
        // SAFETY: the pages are zeroed, aligned to a page, mapped for reading and writing and never unmapped, so
        // 'static holds; programs and other processes change them only through atomics and through aligned 64-bit
        // stores, which do not tear (Documentation/memory-barriers.txt).
        let words = unsafe { std::slice::from_raw_parts(start.as_ptr().cast::<AtomicU64>(), words.get()) };
        Ok(WordMap { fd, words })
    }
}

fn create_map(kind: u32, value_bytes: usize, entries: usize, flags: u32) -> nix::Result<OwnedFd> {
    #[repr(C)]
    struct Create {
        kind: u32,
        key_bytes: u32,
        value_bytes: u32,
        entries: u32,
        flags: u32,
    }
    let narrow = |size| u32::try_from(size).map_err(|_| Errno::E2BIG);
    let argument = Create { kind, key_bytes: 4, value_bytes: narrow(value_bytes)?, entries: narrow(entries)?, flags };
    // SAFETY: the argument is the beginning of the union's member for this command, and has no pointers.
    unsafe { bpf_for_fd(BPF_MAP_CREATE, &argument) }
}

// SAFETY: the caller promises what `bpf` asks for, and that `command` returns a new descriptor.
unsafe fn bpf_for_fd<T>(command: libc::c_int, argument: &T) -> nix::Result<OwnedFd> {
    // SAFETY: the caller's promise; the descriptor is new (bpf(2)), so nobody else owns it. The kernel sets
    // close-on-exec by itself.
    unsafe { bpf(command, argument).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

// SAFETY: the caller promises that `argument` is the beginning of `union bpf_attr` as `command` reads it, and that its
// pointers hold for the call.
unsafe fn bpf<T>(command: libc::c_int, argument: &T) -> nix::Result<libc::c_int> {
    // SAFETY: the caller's promise. The kernel reads as many bytes as it is told and takes the rest for zero.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(argument), size_of::<T>() as libc::c_uint) };
    Errno::result(result).map(|result| result as libc::c_int)
}
