//! A connection as a coroutine: the blocking handler ([`super::blocking::handle`]) on a stack of its own. Where it
//! would block, it suspends itself, and the event loop resumes it when its socket is ready, its time is up, or its work
//! is done.
//!
//! A silent connection costs the pages of its stack that have been touched. So it holds no buffer, and stacks are used
//! again: their pages are there already.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use corosensei::stack::DefaultStack;
use corosensei::{CoroutineResult, Yielder};
use nix::errno::Errno;
use nix::sys::socket::MsgFlags;

use super::accept::log_once;
use super::blocking::{ConnectionLost, Io, make_room};
use super::connection::{
    Awaited, EventHandler, RECEIVES_PER_STEP, Step, WITH_THE_END, Wake, receive, send_end, send_with,
};
use super::worker::Worker;
use crate::failure::Failure;
use crate::http::{Next, RequestReader};
use crate::machine::sysctl;
use crate::sys::errno_of;
use crate::sys::signal::has_given_up;
use crate::work::Cost;

/// The handler takes less than 8 KiB of it. A signal may come meanwhile, whose frame takes up to 12 KiB where the CPU
/// has large registers (getauxval(3), AT_MINSIGSTKSZ); and a panic has to be printed and unwound.
const LEAST_STACK_KIB: usize = 32;
/// Address space is not endless.
const MOST_STACK_KIB: usize = 1 << 20;

/// Stacks of ended connections that are kept: as many as a burst may end at once, few enough to forget about.
const MOST_FREE_STACKS: usize = 256;

/// Mappings of this process that are not stacks, and a margin: at the limit the heap could not grow, either, and that
/// ends a process.
const OTHER_MAPPINGS: usize = 1024;

/// What the coroutines of one loop share.
pub struct Coroutines {
    stack_bytes: usize,
    most_stacks: usize,
    pool: Rc<Pool>,
}

#[derive(Default)]
struct Pool {
    stacks: RefCell<Vec<DefaultStack>>,
    /// Stacks there are, free or not.
    mapped: Cell<usize>,
    /// Whichever coroutine is served receives into it. One with half a request keeps it, and the next has a new one.
    buffer: Cell<Vec<u8>>,
}

pub fn parse_stack_kib(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(kib) if (LEAST_STACK_KIB..=MOST_STACK_KIB).contains(&kib) => Ok(kib),
        _ => Err(format!(
            "a stack has {LEAST_STACK_KIB} to {MOST_STACK_KIB} KiB: in less, a signal or a panic might not find room"
        )),
    }
}

impl Coroutines {
    pub fn with_stacks_of(bytes: usize) -> Coroutines {
        let mappings = sysctl("vm.max_map_count").and_then(|text| text.parse::<usize>().ok()).unwrap_or(usize::MAX);
        let most_stacks = mappings.saturating_sub(OTHER_MAPPINGS) / 2;
        Coroutines { stack_bytes: bytes, most_stacks, pool: Rc::default() }
    }

    /// Makes sure that the next coroutine has a stack.
    ///
    /// # Errors
    /// ENOMEM when there is no memory, or this process may have no more mappings.
    pub fn reserve_stack(&self) -> nix::Result<()> {
        let stack = self.take_stack()?;
        self.pool.give_back(stack);
        Ok(())
    }

    /// A coroutine that runs `handle` with this socket, which is in non-blocking mode. It has not begun yet.
    ///
    /// # Errors
    /// As [`Coroutines::reserve_stack`].
    pub fn spawn(
        &self,
        socket: OwnedFd,
        handle: impl FnOnce(&mut CoroutineIo) -> Result<(), ConnectionLost> + 'static,
    ) -> nix::Result<Coroutine> {
        let socket = Rc::new(Socket {
            fd: socket,
            awaited: Cell::new(Awaited::Request),
            readable: Cell::new(true),
            end_announced: Cell::new(false),
            owes_end: Cell::new(false),
        });
        let (of_io, pool) = (socket.clone(), self.pool.clone());
        let body = Body::with_stack(self.take_stack()?, move |yielder, _| {
            let buffer = pool.buffer.take();
            let mut io = CoroutineIo { socket: of_io, yielder, pool, buffer, receives: 0 };
            let lost = handle(&mut io).is_err();
            io.release_buffer();
            Step::Close { lost }
        });
        Ok(Coroutine { socket, body: Some(body), pool: self.pool.clone() })
    }

    fn take_stack(&self) -> nix::Result<DefaultStack> {
        if let Some(free) = self.pool.stacks.borrow_mut().pop() {
            return Ok(free);
        }
        let is_one_too_many = self.pool.mapped.get() >= self.most_stacks;
        let mapped = if is_one_too_many { Err(Errno::ENOMEM) } else { self.map_stack() };
        if let Err(errno) = mapped {
            let advice =
                "connections wait until others end (raise vm.max_map_count, each has two mappings; or `ulimit -v`)";
            log_once(Failure::new("map a stack", errno).advise(advice));
        }
        mapped
    }

    fn map_stack(&self) -> nix::Result<DefaultStack> {
        let stack = DefaultStack::new(self.stack_bytes).map_err(errno_of)?;
        self.pool.mapped.set(self.pool.mapped.get() + 1);
        Ok(stack)
    }
}

impl Pool {
    fn give_back(&self, stack: DefaultStack) {
        let mut stacks = self.stacks.borrow_mut();
        if stacks.len() < MOST_FREE_STACKS {
            stacks.push(stack);
        } else {
            drop(stack);
            self.mapped.set(self.mapped.get() - 1);
        }
    }
}

/// Resumed with `None` when its connection is to be closed: then whatever it waits for fails.
type Body = corosensei::Coroutine<Option<Wake>, Step, Step>;

pub struct Coroutine {
    socket: Rc<Socket>,
    /// `None` only while it is dropped.
    body: Option<Body>,
    pool: Rc<Pool>,
}

struct Socket {
    fd: OwnedFd,
    awaited: Cell<Awaited>,
    /// False when the last receive emptied the socket: the next edge will tell.
    readable: Cell<bool>,
    /// Whether the end of the stream stands behind the last byte.
    end_announced: Cell<bool>,
    /// What was sent last waits in the kernel for the end.
    owes_end: Cell<bool>,
}

/// Whoever drops it has counted the connection as closed: a client that sees the end finds it in the scoreboard.
impl Drop for Socket {
    fn drop(&mut self) {
        if self.owes_end.get() {
            send_end(&self.fd);
        }
    }
}

impl EventHandler for Coroutine {
    type Shared = ();

    fn go_on(&mut self, wake: Wake, _: &mut Worker, (): &mut ()) -> Step {
        if wake == Wake::Ready && self.awaited() == Awaited::Work {
            // What arrives now is for later.
            return Step::AwaitInput;
        }
        self.body.as_mut().map_or(Step::Close { lost: true }, |body| resume(body, Some(wake)))
    }

    fn mark_readable(&mut self, end_announced: bool) {
        self.socket.readable.set(true);
        self.socket.end_announced.set(self.socket.end_announced.get() || end_announced);
    }

    fn awaited(&self) -> Awaited {
        self.socket.awaited.get()
    }
}

fn resume(body: &mut Body, wake: Option<Wake>) -> Step {
    // A panic ends its connection, as it would end a thread.
    match catch_unwind(AssertUnwindSafe(|| body.resume(wake))) {
        Ok(CoroutineResult::Yield(step) | CoroutineResult::Return(step)) => step,
        Err(_) => Step::Close { lost: true },
    }
}

impl AsFd for Coroutine {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.fd.as_fd()
    }
}

impl Drop for Coroutine {
    fn drop(&mut self) {
        let Some(mut body) = self.body.take() else { return };
        // It returns by itself. Unwinding from outside would take far more of its stack.
        while body.started() && !body.done() {
            resume(&mut body, None);
        }
        // One that has not begun drops what it was given.
        body.force_unwind();
        self.pool.give_back(body.into_stack());
    }
}

/// Calls that do not block, and a suspension where they would.
pub struct CoroutineIo<'a> {
    socket: Rc<Socket>,
    yielder: &'a Yielder<Option<Wake>, Step>,
    pool: Rc<Pool>,
    buffer: Vec<u8>,
    /// The receives since others had their turn.
    receives: usize,
}

impl CoroutineIo<'_> {
    fn suspend(&mut self, step: Step, awaited: Awaited) -> nix::Result<()> {
        self.receives = 0;
        self.socket.awaited.set(awaited);
        match self.yielder.suspend(step) {
            Some(Wake::Ready | Wake::WorkDone) => Ok(()),
            Some(Wake::TimedOut) => Err(Errno::EAGAIN),
            None => Err(Errno::ECANCELED),
        }
    }

    /// As recv(2) on a socket that blocks, but while it waits this asks for `step`.
    fn receive_or(&mut self, step: fn() -> Step, filled: usize, awaited: Awaited) -> nix::Result<usize> {
        loop {
            if self.receives == RECEIVES_PER_STEP {
                self.suspend(Step::Yield, awaited)?;
            }
            if self.socket.readable.get() {
                self.receives += 1;
                make_room(&mut self.buffer, filled);
                match receive(&self.socket.fd, &mut self.buffer[filled..]) {
                    Err(Errno::EAGAIN) => self.socket.readable.set(false),
                    received => {
                        // A short receive has emptied a stream socket (epoll(7), question 9).
                        let is_full = received.is_ok_and(|received| filled + received == self.buffer.len());
                        self.socket.readable.set(is_full || self.socket.end_announced.get());
                        return received;
                    }
                }
            } else {
                if filled == 0 {
                    self.release_buffer();
                }
                let woken = self.suspend(step(), awaited);
                if filled == 0 {
                    self.buffer = self.pool.buffer.take();
                }
                woken?;
            }
        }
    }

    fn release_buffer(&mut self) {
        self.pool.buffer.set(std::mem::take(&mut self.buffer));
    }
}

impl Io for CoroutineIo<'_> {
    fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Parses on the thread's stack: it goes deeper than the rest, and the pages that it touches are the same for all.
    fn parse(&mut self, reader: &mut RequestReader, filled: usize) -> (usize, Next) {
        let bytes = &self.buffer[..filled];
        self.yielder.on_parent_stack(|| reader.next(bytes))
    }

    fn receive(&mut self, filled: usize, awaited: Awaited) -> nix::Result<usize> {
        self.receive_or(|| Step::AwaitInput, filled, awaited)
    }

    fn send_all(&mut self, flags: MsgFlags, mut bytes: &[u8]) -> Result<(), ConnectionLost> {
        self.socket.owes_end.set(flags == WITH_THE_END);
        loop {
            bytes = &bytes[send_with(flags, &self.socket.fd, bytes).map_err(|_| ConnectionLost)?..];
            if bytes.is_empty() {
                return Ok(());
            }
            self.suspend(Step::AwaitOutput, Awaited::RoomForAnswer).map_err(|_| ConnectionLost)?;
        }
    }

    fn spend(&mut self, cost: Cost) -> Result<(), ConnectionLost> {
        match cost {
            Cost::Wait(_) => self.suspend(Step::AwaitWork(cost), Awaited::Work).map_err(|_| ConnectionLost),
            // The others wait as well: this is what `block` and `spin` do to one thread.
            Cost::None | Cost::Block(_) | Cost::Spin(_) => {
                cost.spend(has_given_up);
                Ok(())
            }
        }
    }

    fn linger(&mut self) {
        send_end(&self.socket.fd);
        // The loop closes it when the moment is over.
        while matches!(self.receive_or(|| Step::Linger, 0, Awaited::EndOfStream), Ok(1..)) {}
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::server::reactor::tests::impatient_worker;

    fn spawn_one(
        coroutines: &Coroutines,
        handle: impl FnOnce(&mut CoroutineIo) -> Result<(), ConnectionLost> + 'static,
    ) -> (UnixStream, Coroutine) {
        let (client, socket) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        (client, coroutines.spawn(socket.into(), handle).unwrap())
    }

    #[test]
    fn a_panic_in_the_smallest_stack_ends_its_connection_and_leaves_the_stack_for_the_next() {
        let (coroutines, mut worker) = (Coroutines::with_stacks_of(LEAST_STACK_KIB * 1024), impatient_worker().1);
        let (mut client, mut coroutine) = spawn_one(&coroutines, |io| {
            io.spend(Cost::Wait(std::time::Duration::ZERO))?;
            panic!("as a bug would, in {} words", 5);
        });
        assert!(matches!(coroutine.go_on(Wake::Ready, &mut worker, &mut ()), Step::AwaitWork(_)));
        assert_eq!(coroutine.go_on(Wake::WorkDone, &mut worker, &mut ()), Step::Close { lost: true });
        drop(coroutine);
        assert_eq!((client.read(&mut [0]).unwrap(), coroutines.pool.stacks.borrow().len()), (0, 1));

        let (_client, mut next) = spawn_one(&coroutines, |_| Ok(()));
        assert_eq!(coroutines.pool.stacks.borrow().len(), 0);
        assert_eq!(next.go_on(Wake::Ready, &mut worker, &mut ()), Step::Close { lost: false });
    }

    /// Two mappings each: the stack, and the page that guards it.
    #[test]
    fn no_more_stacks_are_mapped_than_the_kernel_allows_with_a_margin() {
        let mut coroutines = Coroutines::with_stacks_of(64 * 1024);
        coroutines.most_stacks = 2;
        let mut both = (0..2).map(|_| spawn_one(&coroutines, |_| Ok(()))).collect::<Vec<_>>();
        assert_eq!(coroutines.reserve_stack(), Err(Errno::ENOMEM));
        let (_, ended) = &mut both[0];
        ended.go_on(Wake::Ready, &mut impatient_worker().1, &mut ());
        both.remove(0);
        assert_eq!(coroutines.reserve_stack(), Ok(()));
    }

    #[test]
    fn a_coroutine_that_is_dropped_while_it_waits_returns_and_drops_what_it_has() {
        let (coroutines, mut worker) = (Coroutines::with_stacks_of(64 * 1024), impatient_worker().1);
        let held = Rc::new(());
        let theirs = held.clone();
        let (_client, mut coroutine) = spawn_one(&coroutines, move |io| {
            let _until_the_end = theirs;
            let received = io.receive(0, Awaited::Request);
            assert_eq!(received, Err(Errno::ECANCELED));
            // It may wait again, in vain.
            io.spend(Cost::Wait(std::time::Duration::ZERO))
        });
        assert_eq!(coroutine.go_on(Wake::Ready, &mut worker, &mut ()), Step::AwaitInput);
        assert_eq!((coroutine.awaited(), Rc::strong_count(&held)), (Awaited::Request, 2));
        drop(coroutine);
        assert_eq!((Rc::strong_count(&held), coroutines.pool.stacks.borrow().len()), (1, 1));
    }

    #[test]
    fn a_silent_coroutine_holds_no_buffer_and_one_with_half_a_request_keeps_it() {
        let (coroutines, mut worker) = (Coroutines::with_stacks_of(64 * 1024), impatient_worker().1);
        let (mut client, mut coroutine) = spawn_one(&coroutines, |io| {
            let first = io.receive(0, Awaited::Request).map_err(|_| ConnectionLost)?;
            io.receive(first, Awaited::RestOfRequest).map(drop).map_err(|_| ConnectionLost)
        });
        let spare = || {
            let buffer = coroutines.pool.buffer.take();
            let bytes = buffer.len();
            coroutines.pool.buffer.set(buffer);
            bytes
        };
        coroutine.go_on(Wake::Ready, &mut worker, &mut ());
        let released = spare();
        assert!(released > 0);
        std::io::Write::write_all(&mut client, b"GET").unwrap();
        coroutine.mark_readable(false);
        coroutine.go_on(Wake::Ready, &mut worker, &mut ());
        assert_eq!((spare(), coroutine.awaited()), (0, Awaited::RestOfRequest));
        coroutine.go_on(Wake::TimedOut, &mut worker, &mut ());
        assert_eq!(spare(), released);
    }
}
