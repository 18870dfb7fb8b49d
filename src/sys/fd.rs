//! Descriptors that the kernel hands us: by accept4(2), and as SCM_RIGHTS over a Unix socket (unix(7)). How to give
//! many back at once, and how to call until no signal comes between.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{ControlMessage, MsgFlags, SockFlag, UnixAddr, accept4, sendmsg};

/// Descriptors in one message. The kernel takes up to 253 (unix(7), SCM_RIGHTS); sixteen get
/// most of what batching can save, and the first of them has not waited long for the last.
pub const MOST_PER_MESSAGE: usize = 16;

/// Takes over a descriptor that the parent has left open for this program, and whose number it has passed.
///
/// # Errors
/// EBADF when it is not open, or not ours to take: a standard stream, one that was taken before, or one of our own.
pub fn take_inherited(number: RawFd) -> nix::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(Errno::EBADF);
    }
    // SAFETY: fcntl(2) with F_GETFD touches no memory; on a number that is not open it fails.
    let flags = Errno::result(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(Errno::EBADF);
    }
    // SAFETY: fcntl(2) with F_SETFD touches no memory.
    Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, and was without FD_CLOEXEC (above): so it has come through execve(2), and nobody here owns
    // it, since whatever we open or take has that flag.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Makes a call again as long as a signal interrupts it (signal(7), EINTR).
///
/// # Errors
/// Those of `call`, but for EINTR.
pub fn until_uninterrupted<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// Whether two descriptors of two processes mean the same open file (kcmp(2)).
///
/// # Errors
/// EPERM when one of the processes is another user's, ENOSYS where the kernel was built without it, ESRCH, EBADF.
pub fn is_same_file((pid, fd): (i32, RawFd), (other_pid, other_fd): (i32, RawFd)) -> nix::Result<bool> {
    const KCMP_FILE: libc::c_int = 0;
    // SAFETY: kcmp(2) with KCMP_FILE takes five numbers and touches no memory.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, pid, other_pid, KCMP_FILE, fd as u64, other_fd as u64) };
    Errno::result(order).map(|order| order == 0)
}

/// The next connection of a listening socket. Its peer's address is not asked for: almost no server needs it.
///
/// # Errors
/// Those of accept(2): EAGAIN when a non-blocking socket has nothing in its queue, EINVAL once it was shut, EINTR,
/// EMFILE or ENFILE without a descriptor left, and those that belong to one connection.
pub fn accept(listener: impl AsFd, flags: SockFlag) -> nix::Result<OwnedFd> {
    let fd = accept4(listener.as_fd().as_raw_fd(), flags | SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: accept4(2) returned this descriptor as new, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// From now on calls on this descriptor wait, unless they are told not to.
pub fn set_blocking(fd: impl AsFd) -> nix::Result<()> {
    let mut nonblocking: libc::c_int = 0;
    // SAFETY: FIONBIO reads one int (ioctl_fs(2)), which lives for the call. One call, where fcntl(2) takes two.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FIONBIO, &raw mut nonblocking) };
    Errno::result(result).map(drop)
}

/// Passes copies of 1 to [`MOST_PER_MESSAGE`] descriptors to the process at the other end, in one message whose only
/// byte says how many they are.
///
/// # Errors
/// EAGAIN while a non-blocking channel is full, EPIPE or ECONNRESET when the other end is closed; ETOOMANYREFS, ENOBUFS
/// or ENOMEM while too many descriptors are on their way.
///
/// # Panics
/// With none, or more than [`MOST_PER_MESSAGE`].
pub fn send_fds(channel: impl AsFd, fds: &[impl AsFd]) -> nix::Result<()> {
    assert!((1..=MOST_PER_MESSAGE).contains(&fds.len()), "a message carries 1 to {MOST_PER_MESSAGE} descriptors");
    let mut raw: [RawFd; MOST_PER_MESSAGE] = [-1; MOST_PER_MESSAGE];
    for (raw, fd) in raw.iter_mut().zip(fds) {
        *raw = fd.as_fd().as_raw_fd();
    }
    let rights = [ControlMessage::ScmRights(&raw[..fds.len()])];
    let count = [fds.len() as u8];
    let bytes = [IoSlice::new(&count)];
    sendmsg::<UnixAddr>(channel.as_fd().as_raw_fd(), &bytes, &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Room for one control message with [`MOST_PER_MESSAGE`] descriptors, aligned as cmsg(3) demands.
#[repr(C)]
union Control {
    _alignment: libc::cmsghdr,
    bytes: [u8; CONTROL_BYTES],
}

// SAFETY: CMSG_SPACE only computes (cmsg(3)).
const CONTROL_BYTES: usize = unsafe { libc::CMSG_SPACE(size_of::<[RawFd; MOST_PER_MESSAGE]>() as u32) } as usize;

/// Takes the next message from a channel and hands over each of its descriptors; behind them EMFILE if some could not
/// be installed because our table is full. The message is consumed and these are gone, unlike a connection that
/// accept(2) refuses with EMFILE. False: the other end is closed.
///
/// # Errors
/// EAGAIN when a non-blocking channel has no message; otherwise those of recvmsg(2).
pub fn receive_fds(channel: impl AsFd, mut take: impl FnMut(nix::Result<OwnedFd>)) -> nix::Result<bool> {
    let mut announced = [0];
    let mut installed = 0;
    let install = |fd| {
        installed += 1;
        take(Ok(fd));
    };
    if receive_with_fds(channel, &mut announced, install)? == 0 {
        return Ok(false);
    }
    if installed < announced[0] {
        take(Err(Errno::EMFILE));
    }
    Ok(true)
}

/// Sends what the kernel takes of these bytes without waiting, and with the first of them a copy of the descriptor: if
/// any byte was sent, so was the copy.
///
/// # Errors
/// EAGAIN when there is no room, EPIPE or ECONNRESET when the other end is closed, ETOOMANYREFS while too many
/// descriptors are on their way.
pub fn send_with_fd(channel: impl AsFd, bytes: &[u8], fd: Option<BorrowedFd>) -> nix::Result<usize> {
    let raw = [fd.map_or(-1, |fd| fd.as_raw_fd())];
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = if fd.is_some() { &rights[..] } else { &[] };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    let bytes = [IoSlice::new(bytes)];
    until_uninterrupted(|| sendmsg::<UnixAddr>(channel.as_fd().as_raw_fd(), &bytes, rights, flags, None))
}

/// Receives what is there without waiting, at most `buffer`, and hands over each descriptor that came with it, of those
/// that could be installed. A receive never goes beyond the bytes that a descriptor was sent with, so those it brings
/// belong to the last of them (unix(7)). Returns the number of bytes, 0 at the end of the stream.
///
/// # Errors
/// EAGAIN when there is nothing yet.
pub fn receive_with_fds(channel: impl AsFd, buffer: &mut [u8], mut take: impl FnMut(OwnedFd)) -> nix::Result<usize> {
    let mut control = Control { bytes: [0; CONTROL_BYTES] };
    let mut data = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: msghdr is a plain struct of integers and pointers, for which all zeros is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = CONTROL_BYTES as _;
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    // SAFETY: the message points to the buffer and to CONTROL_BYTES of control data, each of the size it states; both
    // live and are ours alone for the call.
    let received = unsafe { libc::recvmsg(channel.as_fd().as_raw_fd(), &raw mut message, flags) };
    let received = Errno::result(received)? as usize;
    // SAFETY: recvmsg(2) has set msg_controllen to what it wrote, and the header is null or within it (cmsg(3)).
    let first = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: as above; a reference for the header alone.
    if let Some(header) = unsafe { first.as_ref() }.filter(|header| is_rights(header)) {
        // SAFETY: computes only. The length of a message that was truncated counts what was installed (unix(7)).
        let empty = unsafe { libc::CMSG_LEN(0) } as usize;
        let installed = (header.cmsg_len - empty) / size_of::<RawFd>();
        for i in 0..installed {
            // SAFETY: the header lies in `control`, and its length covers `installed` numbers behind it; they are
            // reached by the pointer into all of `control`, not by the reference to the header.
            let fd = unsafe { libc::CMSG_DATA(first).cast::<RawFd>().add(i).read_unaligned() };
            // SAFETY: the kernel has just installed this descriptor in our table, and each is taken exactly once.
            take(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    Ok(received)
}

fn is_rights(header: &libc::cmsghdr) -> bool {
    header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS
}

/// Gives the calling thread a table of descriptors of its own, with copies of the standard streams and of `kept` alone.
/// While threads share one table, each system call counts the references of the file that it works on, with atomic
/// operations; the only user of a table need not (fdget in the kernel's `fs/file.c`).
///
/// What was opened before and is not kept does not exist for this thread: it must not use it. What it opens from now on
/// exists for it alone, and is closed when it ends. Where the kernel refuses, everything stays as it was.
pub fn leave_shared_table(kept: &[BorrowedFd]) {
    if unshare(CloneFlags::CLONE_FILES).is_err() {
        return;
    }
    // Otherwise our copies would keep open what other threads close.
    let mut kept: Vec<libc::c_uint> = kept.iter().map(|fd| fd.as_raw_fd() as libc::c_uint).collect();
    kept.sort_unstable();
    let mut first = libc::STDERR_FILENO as libc::c_uint + 1;
    for last in kept.into_iter().chain([libc::c_uint::MAX]) {
        if first < last {
            // SAFETY: close_range(2) touches no memory. The table is this thread's alone (above), so no descriptor of
            // anybody else is closed; the thread itself uses none of these (see above). Where the call does not exist
            // they stay open in this thread, until it ends.
            let _ = unsafe { libc::syscall(libc::SYS_close_range, first, last - 1, 0) };
        }
        first = last.saturating_add(1);
    }
}

/// Closes all of them. The kernel gives out the lowest free number, so what was opened in a row has numbers in a
/// row, and these go with one system call (close_range(2), since Linux 5.9).
pub fn close_all(fds: &mut Vec<OwnedFd>) {
    fds.sort_unstable_by_key(AsRawFd::as_raw_fd);
    let mut fds = fds.drain(..).map(IntoRawFd::into_raw_fd).peekable();
    while let Some(first) = fds.next() {
        let mut last = first;
        while let Some(next) = fds.next_if_eq(&(last + 1)) {
            last = next;
        }
        close_from_to(first, last);
    }
}

/// `first` to `last` are ours: each comes from an `OwnedFd` that has given it up.
fn close_from_to(first: RawFd, last: RawFd) {
    // SAFETY: close_range(2) touches no memory, and every descriptor in the range is ours to close.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if closed != 0 {
        // An older kernel: one by one.
        for fd in first..=last {
            // SAFETY: it is ours, and the call above has closed none when it fails (close_range(2), "Errors").
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockType, socketpair};
    use std::fs::File;

    fn open() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    fn is_open(fd: RawFd) -> bool {
        std::fs::exists(format!("/proc/self/fd/{fd}")).unwrap()
    }

    #[test]
    fn a_message_carries_several_descriptors_and_says_how_many() {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (one, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        for count in [1, 2, MOST_PER_MESSAGE] {
            let fds: Vec<OwnedFd> = (0..count).map(|_| open()).collect();
            send_fds(&one, &fds).unwrap();
            let mut received = Vec::new();
            assert!(receive_fds(&other, |fd| received.push(fd.unwrap())).unwrap());
            assert_eq!(received.len(), count);
            assert!(received.iter().all(|fd| is_open(fd.as_raw_fd())));
        }
        drop(one);
        assert!(!receive_fds(&other, |_| panic!("nothing was sent")).unwrap());
    }

    #[test]
    fn a_thread_with_a_table_of_its_own_keeps_what_it_asks_for_and_disturbs_nobody() {
        let (kept, other) = (open(), open());
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                leave_shared_table(&[kept.as_fd()]);
                let copies = |fd: RawFd| std::fs::exists(format!("/proc/thread-self/fd/{fd}")).unwrap();
                assert!(copies(2) && copies(kept.as_raw_fd()));
                assert!(!copies(other.as_raw_fd()));
            });
            thread.join().unwrap();
        });
        assert!(is_open(kept.as_raw_fd()) && is_open(other.as_raw_fd()));
    }

    /// Other tests of this process open descriptors too, so only numbers that are still ours can be looked at.
    #[test]
    fn closing_all_closes_runs_and_single_ones_and_nothing_between_them() {
        let mut fds: Vec<OwnedFd> = (0..8).map(|_| open()).collect();
        let kept = [fds.remove(5), fds.remove(2)];
        close_all(&mut fds);
        assert!(fds.is_empty());
        assert!(kept.iter().all(|fd| is_open(fd.as_raw_fd())));
    }
}
