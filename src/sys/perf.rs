//! Counting a tracepoint (perf_event_open(2), PERF_TYPE_TRACEPOINT): the kernel adds one whenever it passes the place
//! in its own code and the filter holds. Nothing is sampled and nobody is woken.

use std::ffi::CStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// The first published form of `struct perf_event_attr` (PERF_ATTR_SIZE_VER0), which every kernel goes on to accept:
/// what later versions added is taken as zero.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    breakpoint_address: u64,
}

const PERF_TYPE_TRACEPOINT: u32 = 2;
/// The first bit of the flags: the counter stands still until it is enabled.
const DISABLED: u64 = 1;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;
/// `_IO('$', 0)` and `_IOW('$', 6, char *)` of linux/perf_event.h.
const PERF_EVENT_IOC_ENABLE: u32 = 0x2400;
const PERF_EVENT_IOC_SET_FILTER: u32 = 0x4000_2406 | (size_of::<*const u8>() as u32) << 16;

/// A counter of one tracepoint on one CPU.
pub struct Counter {
    file: File,
}

impl Counter {
    /// Opens a counter of tracepoint `id` (tracefs, `events/…/id`) for whatever runs on `cpu`. It stands still.
    ///
    /// # Errors
    /// EACCES without CAP_PERFMON unless `kernel.perf_event_paranoid` is below 1; ENODEV for a CPU that is
    /// offline; EMFILE.
    pub fn open(id: u64, cpu: usize) -> nix::Result<Counter> {
        let attributes = Attributes {
            kind: PERF_TYPE_TRACEPOINT,
            size: size_of::<Attributes>() as u32,
            config: id,
            flags: DISABLED,
            ..Attributes::default()
        };
        let (every_task, no_group) = (-1 as libc::pid_t, -1 as libc::c_int);
        // SAFETY: the attributes live for the call and say their own size; the kernel reads no further
        // (perf_event_open(2), `size`). The other arguments are numbers.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_perf_event_open,
                &raw const attributes,
                every_task,
                cpu as libc::c_int,
                no_group,
                PERF_FLAG_FD_CLOEXEC,
            )
        };
        let fd = Errno::result(fd)? as i32;
        // SAFETY: perf_event_open(2) returned this descriptor as new, so nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Counter { file: File::from(fd) })
    }

    /// From now on only passages that fulfil the filter count; its names are the tracepoint's fields, as in
    /// `pid == 7` (Linux, Documentation/trace/events.rst, "Event filtering").
    ///
    /// # Errors
    /// EINVAL when the kernel cannot read it, or the tracepoint has no such field.
    pub fn filter(&self, filter: &CStr) -> nix::Result<()> {
        // SAFETY: the kernel copies the string up to its end, which a CStr has.
        let result =
            unsafe { libc::ioctl(self.file.as_raw_fd(), PERF_EVENT_IOC_SET_FILTER as libc::Ioctl, filter.as_ptr()) };
        Errno::result(result).map(drop)
    }

    /// # Errors
    /// EACCES where a security module forbids it.
    pub fn enable(&self) -> nix::Result<()> {
        // SAFETY: this request takes a number, no pointer.
        let result =
            unsafe { libc::ioctl(self.file.as_raw_fd(), PERF_EVENT_IOC_ENABLE as libc::Ioctl, 0 as libc::c_int) };
        Errno::result(result).map(drop)
    }

    /// # Errors
    /// As [`Counter::enable`].
    pub fn read(&self) -> std::io::Result<u64> {
        let mut count = [0; 8];
        (&self.file).read_exact(&mut count)?;
        Ok(u64::from_ne_bytes(count))
    }
}
