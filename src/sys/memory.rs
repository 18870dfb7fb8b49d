//! Memory that several processes see (mmap(2), MAP_SHARED).

use std::fs::File;
use std::num::NonZeroUsize;
use std::sync::atomic::AtomicU64;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous};

use super::errno_of;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Loads only: a store to the mapping would be SIGSEGV.
    Read,
    Write,
}

/// Maps `words` 64-bit counters that this process shares with every process it forks and, when a file is given, with
/// every process that maps the same file. Without a file they are zero. The mapping stays until the process ends.
///
/// The file must keep its length while it is mapped: its owner never shortens it, and replaces it by another
/// file of the same name instead.
///
/// # Errors
/// EINVAL when a file holds fewer words than asked for; otherwise what mmap(2) says.
pub fn shared_words(words: NonZeroUsize, file: Option<(&File, Access)>) -> nix::Result<&'static [AtomicU64]> {
    let bytes = words.checked_mul(const { NonZeroUsize::new(8).unwrap() }).ok_or(Errno::EOVERFLOW)?;
    let read_write = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let start = match file {
        None => {
            // SAFETY: the kernel chooses the address, so nothing that exists is mapped over (mmap(2)).
            unsafe { mmap_anonymous(None, bytes, read_write, MapFlags::MAP_SHARED)? }
        }
        Some((file, access)) => {
            // An access to a page behind the end of the file would be SIGBUS, not an error that we could report.
            let length = file.metadata().map_err(errno_of)?.len();
            if length < bytes.get() as u64 {
                return Err(Errno::EINVAL);
            }
            let protection = if access == Access::Read { ProtFlags::PROT_READ } else { read_write };
            // SAFETY: as above. The file covers the whole mapping (checked above), and nobody shortens it (see the
            // comment of this function).
            unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, file, 0)? }
        }
    };
    // SAFETY: the pages are mapped at least for reading, zeroed or the file's (both valid u64s), aligned to a page,
    // and never unmapped, so 'static holds; other processes change them only through atomics. An atomic load needs no
    // right to write (core::sync::atomic, "Atomic accesses to read-only memory": 64-bit loads on 64-bit targets).
    Ok(unsafe { std::slice::from_raw_parts(start.as_ptr().cast::<AtomicU64>(), words.get()) })
}
