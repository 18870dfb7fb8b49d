//! io_uring(7): one thread's ring with the few operations that a client or a server needs. Requests are queued in
//! memory and go to the kernel all together with the next wait; what became of them comes back as completions.
//!
//! A ring of this kind belongs to one thread (SINGLE_ISSUER), and the kernel does its part only while this thread
//! waits (DEFER_TASKRUN): no interrupt between two answers, no other thread. Bytes received lie in buffers that the
//! kernel chooses when they arrive, from a ring of free ones, so idle connections hold none.

use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{BufRingEntry, CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};
use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use nix::sys::socket::MsgFlags;

use super::errno_of;
use crate::slots::Slots;

/// Requests that may be queued before the kernel has to take them.
const QUEUED: u32 = 512;
/// The only group of buffers.
const GROUP: u16 = 0;

/// The token of completions that bring a connection: see [`Uring::take_accepted`].
pub const ACCEPTED: u64 = u64::MAX;
/// The token of a connection that could not be passed, less its descriptor: in a ring that passes, no other is as high.
const NOT_PASSED: u64 = ACCEPTED - 1;
const MOST_DESCRIPTORS: u64 = 1 << 30;
/// The token of a completion has this bit when it is about [`Uring::send_owned`]; others of a ring that uses it do not.
pub const SENT: u64 = 1 << 63;

#[derive(Debug, Clone, Copy)]
pub struct Completion {
    pub token: u64,
    /// Bytes, or events.
    pub result: Result<u32, Errno>,
    /// The request goes on, and more completions will come.
    pub more: bool,
}

pub struct Uring {
    ring: IoUring,
    buffers: Buffers,
    messages: Vec<Box<[u8]>>,
    /// What is being sent, and the token of the request.
    outgoing: Slots<(u64, Vec<u8>)>,
    /// What has been sent last, until it is taken.
    sent: Vec<u8>,
    /// The connection that the last completion has brought, until it is taken.
    accepted: Option<OwnedFd>,
    /// It has passed a connection, so a token may be one of [`NOT_PASSED`].
    has_passed: bool,
    /// A completion that was looked at before its turn.
    ahead: Option<cqueue::Entry>,
    /// The buffer of the last completion and its filled part.
    held: Option<(u16, usize)>,
    /// Times that the kernel has taken requests.
    submissions: u64,
}

impl Uring {
    /// A ring with `buffers` (a power of two) buffers of `buffer_bytes`, that can send parts of `messages`. It
    /// belongs to the calling thread.
    ///
    /// # Errors
    /// What the kernel says when it does not give us such a ring; [`Uring::probe`] says it in words.
    pub fn new(buffers: u16, buffer_bytes: usize, messages: Vec<Box<[u8]>>) -> nix::Result<Uring> {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all();
        builder.setup_cqsize(8 * QUEUED).setup_clamp();
        let ring: IoUring = builder.build(QUEUED).map_err(errno_of)?;
        let buffers = Buffers::map(buffers, buffer_bytes)?;
        // SAFETY: the address is the beginning of a page-aligned mapping with room for that many entries. It stays
        // until `Drop`, which unmaps it only when no request is left that could take a buffer.
        unsafe { ring.submitter().register_buf_ring_with_flags(buffers.address(), buffers.count, GROUP, 0) }
            .map_err(errno_of)?;
        let (outgoing, sent) = (Slots::default(), Vec::new());
        Ok(Uring {
            ring,
            buffers,
            messages,
            outgoing,
            sent,
            accepted: None,
            has_passed: false,
            ahead: None,
            held: None,
            submissions: 0,
        })
    }

    /// Whether this kernel gives us such a ring. One that does (DEFER_TASKRUN, Linux 6.1) has multishot receive and
    /// rings of buffers too.
    ///
    /// # Errors
    /// One line that says why not.
    pub fn probe() -> Result<(), String> {
        Uring::new(1, 4096, Vec::new()).map(drop).map_err(explain)
    }

    /// Reports what arrives, again and again: until a completion has no `more`.
    pub fn receive(&mut self, socket: impl AsFd, token: u64) {
        let entry = opcode::RecvMulti::new(Fd(socket.as_fd().as_raw_fd()), GROUP).build();
        self.push(entry.user_data(token));
    }

    /// Receives once.
    pub fn receive_once(&mut self, socket: impl AsFd, token: u64) {
        let entry = opcode::Recv::new(Fd(socket.as_fd().as_raw_fd()), std::ptr::null_mut(), 0).buf_group(GROUP);
        self.push(entry.build().flags(Flags::BUFFER_SELECT).user_data(token));
    }

    /// Accepts, again and again: until a completion with the token [`ACCEPTED`] has no `more`. The listening socket
    /// must be in blocking mode, otherwise an empty queue is an error.
    pub fn accept(&mut self, listener: impl AsFd) {
        let entry = opcode::AcceptMulti::new(Fd(listener.as_fd().as_raw_fd())).flags(libc::SOCK_CLOEXEC);
        self.push(entry.build().user_data(ACCEPTED));
    }

    /// Accepts no more; what has been accepted is still reported.
    pub fn stop_accepting(&mut self, of_this: u64) {
        self.cancel(ACCEPTED, of_this);
    }

    /// The connection of the last completion, when its token is [`ACCEPTED`] and its result none of an error.
    pub fn take_accepted(&mut self) -> Option<OwnedFd> {
        self.accepted.take()
    }

    /// Gives a connection to the thread of another ring in this process, where it is reported like an accepted one.
    /// When that fails, this ring reports an error, and [`Uring::take_accepted`] has the connection back.
    pub fn pass(&mut self, ring: BorrowedFd, connection: OwnedFd) {
        self.has_passed = true;
        let descriptor = connection.into_raw_fd();
        let entry = opcode::MsgRingData::new(Fd(ring.as_raw_fd()), descriptor, ACCEPTED, None);
        self.push(entry.build().flags(Flags::SKIP_SUCCESS).user_data(NOT_PASSED - descriptor as u64));
    }

    /// Sends these bytes, all of them; flags as in send(2). The ring keeps them until it reports what became of them,
    /// with the token `SENT | token`; then [`Uring::take_sent`] has them back.
    pub fn send_owned(&mut self, socket: impl AsFd, bytes: Vec<u8>, flags: MsgFlags, token: u64) {
        let (start, length) = (bytes.as_ptr(), bytes.len() as u32);
        let key = self.outgoing.insert((token, bytes));
        let entry = opcode::Send::new(Fd(socket.as_fd().as_raw_fd()), start, length);
        let entry = entry.flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL | flags.bits()).build();
        self.push(entry.user_data(SENT | key));
    }

    /// What the last completion says has been sent.
    pub fn take_sent(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.sent)
    }

    /// Closes a descriptor, in its turn.
    pub fn close(&mut self, descriptor: OwnedFd, token: u64) {
        let entry = opcode::Close::new(Fd(descriptor.into_raw_fd())).build();
        self.push(entry.flags(Flags::SKIP_SUCCESS).user_data(token));
    }

    /// Reports once that one of `events` (poll(2)) is there.
    pub fn poll(&mut self, fd: impl AsFd, events: i16, token: u64) {
        let entry = opcode::PollAdd::new(Fd(fd.as_fd().as_raw_fd()), events as u32).build();
        self.push(entry.user_data(token));
    }

    /// Reports now whether, and from then on each time that, the descriptor becomes readable.
    pub fn watch(&mut self, fd: impl AsFd, token: u64) {
        let events = libc::POLLIN as u32;
        let entry = opcode::PollAdd::new(Fd(fd.as_fd().as_raw_fd()), events).multi(true).build();
        self.push(entry.user_data(token));
    }

    /// Sends that part of a message, all of it; only failure is reported.
    pub fn send(&mut self, socket: impl AsFd, message: usize, part: Range<usize>, token: u64) {
        let bytes = &self.messages[message][part];
        let entry = opcode::Send::new(Fd(socket.as_fd().as_raw_fd()), bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build();
        self.push(entry.flags(Flags::SKIP_SUCCESS).user_data(token));
    }

    /// Ends the request with this token, which completes with ECANCELED, if it is there. The completion of the
    /// cancelling itself has the token `of_this` and comes only when it failed.
    pub fn cancel(&mut self, token: u64, of_this: u64) {
        let entry = opcode::AsyncCancel::new(token).build();
        self.push(entry.flags(Flags::SKIP_SUCCESS).user_data(of_this));
    }

    /// Counts how often the kernel has taken what was queued. Until the next time, a descriptor in a queued request is
    /// only a number, and must not be closed.
    pub fn submissions(&self) -> u64 {
        self.submissions
    }

    pub fn submit(&mut self) {
        // What fails here (EBUSY, EAGAIN: too much is outstanding) stays queued for the next time.
        let _ = self.ring.submit();
        self.submissions += 1;
    }

    /// Hands the queued requests to the kernel and waits until something is completed or the time is up. `None` waits
    /// for ever. An interrupting signal counts as "nothing yet".
    ///
    /// # Errors
    /// Those of io_uring_enter(2), but for EINTR, ETIME, EBUSY and EAGAIN: these pass.
    pub fn wait(&mut self, timeout: Option<Duration>) -> nix::Result<()> {
        self.submissions += 1;
        let waited = match timeout {
            Some(Duration::ZERO) => self.look(),
            None => self.ring.submit_and_wait(1),
            Some(timeout) => {
                let timespec = Timespec::from(timeout);
                self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timespec))
            }
        };
        match waited.map_err(errno_of) {
            // ETIME: the time is up. EBUSY: completions must be taken first. EAGAIN: not enough memory now.
            Ok(_) | Err(Errno::EINTR | Errno::ETIME | Errno::EBUSY | Errno::EAGAIN) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Without a system call when nothing is queued and the kernel has nothing to do for us.
    fn look(&mut self) -> io::Result<usize> {
        let queue = self.ring.submission();
        let is_idle = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
        drop(queue);
        if is_idle { Ok(0) } else { self.ring.submit() }
    }

    /// The next completion. The buffer of the one before goes back to the kernel.
    #[inline]
    pub fn next_completion(&mut self) -> Option<Completion> {
        if let Some((buffer, _)) = self.held.take() {
            self.buffers.give_back(buffer);
        }
        let entry = self.ahead.take().or_else(|| self.ring.completion().next())?;
        let mut completion = read(&entry);
        if completion.token & SENT != 0 {
            self.take_back(&mut completion);
        }
        self.held =
            cqueue::buffer_select(entry.flags()).map(|buffer| (buffer, completion.result.unwrap_or(0) as usize));
        Some(completion)
    }

    /// What a request has held, or has brought, is ours again.
    fn take_back(&mut self, completion: &mut Completion) {
        let descriptor = match completion.result {
            Ok(accepted) if completion.token == ACCEPTED => Some(accepted as i32),
            Err(_) if self.has_passed && (NOT_PASSED - MOST_DESCRIPTORS..=NOT_PASSED).contains(&completion.token) => {
                Some((NOT_PASSED - completion.token) as i32)
            }
            _ => None,
        };
        // SAFETY: the kernel has opened it for this completion, or a `pass` has given it up: nobody else owns it.
        self.accepted = descriptor.map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) });
        if let Some((token, bytes)) = self.outgoing.remove(completion.token & !SENT) {
            (completion.token, self.sent) = (SENT | token, bytes);
        }
    }

    /// The completion behind the last one; it keeps its turn.
    #[inline]
    pub fn peek(&mut self) -> Option<Completion> {
        self.ahead = self.ahead.take().or_else(|| self.ring.completion().next());
        self.ahead.as_ref().map(read)
    }

    #[inline]
    pub fn data(&self) -> &[u8] {
        self.held.map_or(&[], |(buffer, length)| self.buffers.bytes(buffer, length))
    }

    fn push(&mut self, entry: Entry) {
        loop {
            // SAFETY: the only pointers in entries of ours are into a message (`send`) and into outgoing bytes.
            // Messages are never changed; outgoing bytes leave their slot when the kernel has reported that it has sent
            // them; both are dropped only when no request is left (`Drop`). Descriptors need not be valid: EBADF.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            self.submit();
        }
    }
}

impl AsFd for Uring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring's descriptor is open as long as the ring.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // Closing the ring cancels too, but later and out of our sight. After this call no request reads a message or
        // takes a buffer; ENOENT: there was none.
        let _ = self.ring.submit();
        let cancelled = self.ring.submitter().register_sync_cancel(None, CancelBuilder::any());
        let is_quiet = cancelled.map_or_else(|error| error.raw_os_error() == Some(libc::ENOENT), |()| true);
        // A cancelled accept still waits at its listening socket until this thread has let it go: a wake-up for a new
        // connection would end there, and no other ring that waits would hear of it.
        let _ = self.ring.submit();
        if !is_quiet {
            // Better lost than written to by the kernel when somebody else has it.
            std::mem::forget(std::mem::take(&mut self.messages));
            std::mem::forget(std::mem::take(&mut self.outgoing));
            self.buffers.is_lost = true;
        }
    }
}

/// Buffers, and the ring of free ones in front of them, in one mapping.
struct Buffers {
    start: NonNull<libc::c_void>,
    length: NonZeroUsize,
    count: u16,
    bytes_each: usize,
    tail: u16,
    is_lost: bool,
}

impl Buffers {
    fn map(count: u16, bytes_each: usize) -> nix::Result<Buffers> {
        assert!(count.is_power_of_two());
        let length = usize::from(count) * (size_of::<BufRingEntry>() + bytes_each);
        let length = NonZeroUsize::new(length).ok_or(Errno::EINVAL)?;
        // SAFETY: the kernel chooses the address, so nothing that exists is mapped over (mmap(2)).
        let start = unsafe {
            mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)?
        };
        let mut buffers = Buffers { start, length, count, bytes_each, tail: 0, is_lost: false };
        (0..count).for_each(|buffer| buffers.give_back(buffer));
        Ok(buffers)
    }

    fn address(&self) -> u64 {
        self.start.as_ptr().addr() as u64
    }

    fn buffer(&self, buffer: u16) -> *mut u8 {
        let offset = usize::from(self.count) * size_of::<BufRingEntry>() + usize::from(buffer) * self.bytes_each;
        assert!(buffer < self.count);
        self.start.as_ptr().cast::<u8>().wrapping_add(offset)
    }

    fn bytes(&self, buffer: u16, length: usize) -> &[u8] {
        assert!(length <= self.bytes_each);
        // SAFETY: it lies in the mapping (two assertions), which was zeroed and has been filled this far by the kernel,
        // and the kernel leaves it alone until it is given back, for which the ring has to be borrowed mutably.
        unsafe { std::slice::from_raw_parts(self.buffer(buffer), length) }
    }

    fn give_back(&mut self, buffer: u16) {
        let address = self.buffer(buffer).addr() as u64;
        let entries = self.start.as_ptr().cast::<BufRingEntry>();
        // SAFETY: the mapping begins with `count` entries, zeroed or written here; the index is below `count`, and the
        // kernel only reads entries that the tail has passed.
        let entry = unsafe { &mut *entries.add(usize::from(self.tail & (self.count - 1))) };
        entry.set_addr(address);
        entry.set_len(self.bytes_each as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail lies in the first entry, in the mapping, aligned, and is only ever stored here; the kernel
        // loads it with acquire (io_uring_register_buf_ring(3)).
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(entries).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        if !self.is_lost {
            // SAFETY: nobody has a pointer into the mapping any more: the ring's user has dropped it, and the kernel
            // has no request left that could take a buffer (`Uring::drop`, or none was ever made).
            let _ = unsafe { munmap(self.start, self.length.get()) };
        }
    }
}

fn read(entry: &cqueue::Entry) -> Completion {
    let result = match entry.result() {
        result @ 0.. => Ok(result as u32),
        error => Err(Errno::from_raw(-error)),
    };
    Completion { token: entry.user_data(), result, more: cqueue::more(entry.flags()) }
}

/// Why there is no ring, in a line.
pub fn explain(errno: Errno) -> String {
    match errno {
        Errno::ENOSYS => "this kernel has no io_uring".into(),
        Errno::EPERM | Errno::EACCES => {
            "io_uring is not allowed here (sysctl kernel.io_uring_disabled, or a seccomp filter)".into()
        }
        Errno::EINVAL => "this kernel's io_uring is too old, it takes Linux 6.1".into(),
        Errno::ENOMEM => "no memory may be locked for io_uring; raise `ulimit -l`".into(),
        Errno::EMFILE => "no descriptor is left for a ring; raise `ulimit -n`".into(),
        errno => format!("io_uring_setup: {errno}"),
    }
}
