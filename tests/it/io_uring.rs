//! `sys::uring`: receiving into shared buffers, sending, accepting, passing, cancelling and waiting.
//!
//! What the kernel promises about accepting and passing, liburing's own tests assert, too (github.com/axboe/liburing,
//! test/accept.c, accept-non-empty.c, accept-mshot-stress.c, msg-ring.c, msg-ring-overflow.c). Here are those promises
//! that our servers rely on. They use neither descriptors that only a ring knows (fd-pass.c, msg-ring-fd.c) nor the
//! peer's address in an accept (accept-reuse.c).

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use acceptlab::sys::uring::{ACCEPTED, Completion, SENT, Uring};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, shutdown};

use crate::support::{Needs, inconclusive};

/// `None`, and the test is inconclusive, where the kernel has no such ring for us.
#[track_caller]
fn ring(messages: &[&[u8]]) -> Option<Uring> {
    let messages = messages.iter().map(|&message| message.into()).collect();
    match Uring::new(2, 16, messages) {
        Ok(ring) => Some(ring),
        Err(why) => {
            inconclusive(Needs::Kernel("io_uring"), why);
            None
        }
    }
}

fn next(ring: &mut Uring) -> Completion {
    loop {
        if let Some(completion) = ring.next_completion() {
            return completion;
        }
        ring.wait(None).unwrap();
    }
}

#[test]
fn what_is_sent_is_received_again_and_again_with_fewer_buffers_than_messages() {
    let Some(mut ring) = ring(&[b"hello, world"]) else { return };
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ring.receive(&ours, 7);
    for _ in 0..5 {
        ring.send(&ours, 0, 7..12, 8);
        ring.submit();
        let mut bytes = [0; 5];
        theirs.read_exact(&mut bytes).unwrap();
        theirs.write_all(&bytes).unwrap();
        let completion = next(&mut ring);
        assert_eq!((completion.token, completion.result, completion.more), (7, Ok(5), true));
        assert_eq!(ring.data(), b"world");
    }
    drop(theirs);
    let completion = next(&mut ring);
    assert_eq!((completion.result, completion.more), (Ok(0), false));
    assert_eq!(ring.data(), b"");
}

#[test]
fn without_a_free_buffer_receiving_ends_and_nothing_is_lost() {
    let Some(mut ring) = ring(&[]) else { return };
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(&[1; 40]).unwrap();
    ring.receive(&ours, 1);
    ring.wait(None).unwrap();
    let mut received = 0;
    while received < 40 {
        let completion = next(&mut ring);
        match completion.result {
            Ok(bytes) => received += bytes as usize,
            Err(errno) => assert_eq!(errno, Errno::ENOBUFS),
        }
        if !completion.more {
            ring.receive(&ours, 1);
        }
    }
}

#[test]
fn a_cancelled_request_says_so_and_then_lets_go_of_the_socket() {
    let Some(mut ring) = ring(&[]) else { return };
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ring.receive(&ours, 1);
    ring.wait(Some(Duration::ZERO)).unwrap();
    ring.cancel(1, 2);
    drop(ours);
    let completion = next(&mut ring);
    assert_eq!((completion.token, completion.result, completion.more), (1, Err(Errno::ECANCELED), false));
    assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
    ring.cancel(1, 2);
    let completion = next(&mut ring);
    assert_eq!((completion.token, completion.result), (2, Err(Errno::ENOENT)));
}

#[test]
fn a_wait_ends_with_its_time() {
    let Some(mut ring) = ring(&[]) else { return };
    ring.wait(Some(Duration::ZERO)).unwrap();
    ring.wait(Some(Duration::from_micros(100))).unwrap();
    assert!(ring.next_completion().is_none());
}

#[test]
fn a_send_that_fails_is_reported() {
    let Some(mut ring) = ring(&[b"x"]) else { return };
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    ring.send(&ours, 0, 0..1, 3);
    let completion = next(&mut ring);
    assert_eq!((completion.token, completion.result), (3, Err(Errno::EPIPE)));
}

#[test]
fn what_a_ring_sends_it_keeps_until_it_has_said_so_and_then_gives_back() {
    let Some(mut ring) = ring(&[]) else { return };
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ring.send_owned(&ours, b"hello".to_vec(), MsgFlags::empty(), 5);
    let completion = next(&mut ring);
    assert_eq!((completion.token, completion.result), (SENT | 5, Ok(5)));
    assert_eq!(ring.take_sent(), b"hello");
    assert_eq!(ring.take_sent(), b"");
    ring.close(ours.into(), 6);
    ring.submit();
    let mut received = Vec::new();
    theirs.read_to_end(&mut received).unwrap();
    assert_eq!(received, b"hello");
}

#[test]
fn one_request_accepts_all_connections_and_another_ring_of_the_process_can_be_given_them() {
    let (Some(mut acceptor), Some(mut other)) = (ring(&[]), ring(&[])) else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    acceptor.accept(&listener);
    for _ in 0..3 {
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let completion = next(&mut acceptor);
        assert_eq!((completion.token, completion.more), (ACCEPTED, true));
        let connection = acceptor.take_accepted().expect("a connection was reported");
        assert!(acceptor.take_accepted().is_none());
        acceptor.pass(other.as_fd(), connection);
        acceptor.submit();
        assert_eq!(next(&mut other).token, ACCEPTED);
        let passed = other.take_accepted().expect("a connection was passed");
        TcpStream::from(passed).write_all(b"!").unwrap();
        assert_eq!(client.read(&mut [0; 2]).unwrap(), 1);
        assert_eq!(client.read(&mut [0; 2]).unwrap(), 0, "nobody else holds the connection");
    }
    acceptor.stop_accepting(9);
    let completion = next(&mut acceptor);
    assert_eq!((completion.token, completion.result, completion.more), (ACCEPTED, Err(Errno::ECANCELED), false));
}

#[test]
fn an_accept_asked_while_connections_wait_brings_them_all_and_those_that_come_later() {
    let Some(mut ring) = ring(&[]) else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connect = || TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let waiting = [connect(), connect()];
    ring.accept(&listener);
    let mut take = |client: &TcpStream| {
        let completion = next(&mut ring);
        assert_eq!((completion.token, completion.more), (ACCEPTED, true));
        let connection = TcpStream::from(ring.take_accepted().expect("a connection was reported"));
        assert_eq!(connection.peer_addr().unwrap(), client.local_addr().unwrap(), "in the order of their coming");
    };
    waiting.iter().for_each(&mut take);
    take(&connect());
}

#[test]
fn a_connection_that_cannot_be_passed_comes_back() {
    let Some(mut ring) = ring(&[]) else { return };
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let no_ring = File::open("/dev/null").unwrap();
    ring.pass(no_ring.as_fd(), ours.into());
    assert_eq!(next(&mut ring).result, Err(Errno::EBADFD));
    drop(ring.take_accepted().expect("it is ours again"));
    assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
}

/// More completions than a ring of ours has room for: each of these requests is completed at once.
const MORE_THAN_FIT: usize = 5000;

fn fill(ring: &mut Uring) {
    let (readable, mut other) = UnixStream::pair().unwrap();
    other.write_all(b"!").unwrap();
    (0..MORE_THAN_FIT).for_each(|_| ring.poll(&readable, libc::POLLIN, 1));
    ring.wait(Some(Duration::ZERO)).unwrap();
}

/// The completion behind those of [`fill`], none of which may be missing.
fn next_after_fill(ring: &mut Uring) -> Completion {
    (0..MORE_THAN_FIT).for_each(|_| assert_eq!(next(ring).token, 1));
    next(ring)
}

/// Whoever does not ask again accepts nothing more.
#[test]
fn over_a_full_completion_queue_an_accept_brings_its_connection_and_says_that_it_is_over() {
    let Some(mut ring) = ring(&[]) else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connect = || TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    fill(&mut ring);
    ring.accept(&listener);
    let first = connect();
    ring.wait(Some(Duration::ZERO)).unwrap();
    let second = connect();
    let completion = next_after_fill(&mut ring);
    assert_eq!((completion.token, completion.more), (ACCEPTED, false));
    let accepted = TcpStream::from(ring.take_accepted().expect("a connection was reported"));
    assert_eq!(accepted.peer_addr().unwrap(), first.local_addr().unwrap());
    ring.wait(Some(Duration::from_millis(20))).unwrap();
    assert!(ring.next_completion().is_none());

    ring.accept(&listener);
    assert!(next(&mut ring).more);
    let accepted = TcpStream::from(ring.take_accepted().expect("it has waited in the accept queue"));
    assert_eq!(accepted.peer_addr().unwrap(), second.local_addr().unwrap());
}

#[test]
fn a_connection_passed_to_a_ring_with_a_full_completion_queue_waits_for_its_turn() {
    let (Some(mut acceptor), Some(mut other)) = (ring(&[]), ring(&[])) else { return };
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    fill(&mut other);
    acceptor.pass(other.as_fd(), ours.into());
    acceptor.submit();
    assert_eq!(next_after_fill(&mut other).token, ACCEPTED);
    UnixStream::from(other.take_accepted().expect("a connection was passed")).write_all(b"!").unwrap();
    assert_eq!(theirs.read(&mut [0; 2]).unwrap(), 1);
}

/// As many as an accept queue of the standard library holds.
const CLIENTS: u8 = 128;

#[test]
fn connections_whose_clients_have_gone_again_are_all_accepted_with_what_they_have_sent() {
    let Some(mut ring) = ring(&[]) else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    ring.accept(&listener);
    let clients = thread::spawn(move || {
        for byte in 0..CLIENTS {
            TcpStream::connect(address).unwrap().write_all(&[byte]).unwrap();
        }
    });
    for byte in 0..CLIENTS {
        let completion = next(&mut ring);
        assert_eq!((completion.token, completion.more), (ACCEPTED, true));
        let mut sent = Vec::new();
        TcpStream::from(ring.take_accepted().unwrap()).read_to_end(&mut sent).unwrap();
        assert_eq!(sent, [byte]);
    }
    clients.join().unwrap();
}

/// It has asked first: until it has let go, the next connection would wake it, and nobody else.
#[test]
fn a_ring_that_ends_while_it_accepts_leaves_the_listener_to_others() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    for _ in 0..50 {
        let (Some(mut first), Some(mut second)) = (ring(&[]), ring(&[])) else { return };
        for ring in [&mut first, &mut second] {
            ring.accept(&listener);
            ring.wait(Some(Duration::ZERO)).unwrap();
        }
        drop(first);
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(next(&mut second).token, ACCEPTED);
        let accepted = TcpStream::from(second.take_accepted().expect("a connection was reported"));
        assert_eq!(accepted.peer_addr().unwrap(), client.local_addr().unwrap());
    }
}

/// How a signal reaches a ring that accepts.
#[test]
fn a_listener_that_is_shut_ends_its_accept() {
    let Some(mut ring) = ring(&[]) else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    ring.accept(&listener);
    ring.wait(Some(Duration::ZERO)).unwrap();
    shutdown(listener.as_raw_fd(), Shutdown::Read).unwrap();
    let completion = next(&mut ring);
    assert_eq!((completion.token, completion.result, completion.more), (ACCEPTED, Err(Errno::EINVAL), false));
}
