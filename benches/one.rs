//! What does ONE of each cost? One fork, one thread, one accept, one passed descriptor, one wake-up, one hand-over,
//! one parse, and one connection served by each architecture.
//!
//! `cargo bench` runs all of them in a few minutes; `cargo bench -- fork` runs those with `fork` in their name. Two
//! threads that wake each other are pinned to the first and the last CPU of the allowed set, and a wake-up is half
//! of a round trip. Everything else runs on whatever CPU the scheduler chooses.

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use acceptlab::cpu;
use acceptlab::http::{Next, RequestReader};
use acceptlab::lab::check::server::Program;
use acceptlab::load::response as load;
use acceptlab::phased_loop::{Phase, PhasedLoop, RunMode};
use acceptlab::server::channel::Channel;
use acceptlab::sys::epoll::{Epoll, Interest};
use acceptlab::sys::process::{Fork, fork, reap};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use nix::sys::eventfd::{EfdFlags, EventFd};

criterion_group! {
    name = one;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = fork_and_wait, thread_spawn_and_join, accept, descriptor_pass, epoll_wakeup, channel_hand_over,
        a_million_timers, request_parse, answer_parse, connection_round_trip
}
criterion_main!(one);

/// A process that does nothing, from fork(2) to wait4(2). The child is a copy of this small program; the price
/// grows with the memory to be mapped.
fn fork_and_wait(criterion: &mut Criterion) {
    criterion.bench_function("fork and wait", |bencher| {
        bencher.iter(|| match fork().expect("fork") {
            Fork::Child => std::process::exit(0),
            Fork::Parent { .. } => while matches!(reap(), Ok(None)) {},
        });
    });
}

fn thread_spawn_and_join(criterion: &mut Criterion) {
    criterion.bench_function("thread spawn and join", |bencher| {
        bencher.iter(|| thread::spawn(|| ()).join().expect("an empty thread"));
    });
}

/// connect, accept, close, close, all by one thread: the kernel's part of a connection without a hand-over.
fn accept(criterion: &mut Criterion) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound address");
    criterion.bench_function("connect, accept, close", |bencher| {
        bencher.iter(|| {
            let client = TcpStream::connect(address).expect("connect");
            let (server, _) = listener.accept().expect("accept");
            // The server's side first: its address is the one that may keep the TIME_WAIT.
            drop(server);
            drop(client);
        });
    });
}

/// sendmsg, recvmsg and close of the copy, by one thread.
fn descriptor_pass(criterion: &mut Criterion) {
    let (master, mut worker) = Channel::pair(false).expect("a socket pair");
    let connection = [OwnedFd::from(std::fs::File::open("/dev/null").expect("/dev/null"))];
    criterion.bench_function("descriptor pass", |bencher| {
        bencher.iter(|| {
            master.pass(&connection).expect("pass");
            worker.receive().expect("receive")
        });
    });
}

/// A thread asleep in epoll_wait is woken through an eventfd from the other CPU.
fn epoll_wakeup(criterion: &mut Criterion) {
    let eventfd = || EventFd::from_flags(EfdFlags::EFD_NONBLOCK).expect("an eventfd");
    let (ping, pong) = (eventfd(), eventfd());
    let wait_for = |epoll: &mut Epoll, event: &EventFd| {
        while epoll.wait(None).expect("epoll_wait") == 0 {}
        event.read().expect("the eventfd is readable");
    };
    let epoll_on = |event: &EventFd| {
        let epoll = Epoll::new(1).expect("an epoll instance");
        epoll.add(event, 0, Interest::EPOLLIN).expect("epoll_ctl");
        epoll
    };
    let once_each_way = |rounds: u64| {
        thread::scope(|scope| {
            scope.spawn(|| {
                pin_to_last();
                let mut epoll = epoll_on(&ping);
                for _ in 0..rounds {
                    wait_for(&mut epoll, &ping);
                    pong.write(1).expect("wake");
                }
            });
            scope
                .spawn(|| {
                    pin_to_first();
                    let mut epoll = epoll_on(&pong);
                    let began = Instant::now();
                    for _ in 0..rounds {
                        ping.write(1).expect("wake");
                        wait_for(&mut epoll, &pong);
                    }
                    began.elapsed() / 2
                })
                .join()
                .expect("the measuring thread")
        })
    };
    criterion.bench_function("epoll wake-up", |bencher| bencher.iter_custom(once_each_way));
}

/// A hand-over between two threads through the queue of the thread pool. A receiver spins for a moment before it
/// sleeps, so this is the price between two threads that are awake; one that sleeps costs a wake-up more.
fn channel_hand_over(criterion: &mut Criterion) {
    let once_each_way = |rounds: u64| {
        let (ping, pinged) = crossbeam_channel::bounded::<u32>(1);
        let (pong, ponged) = crossbeam_channel::bounded::<u32>(1);
        thread::scope(|scope| {
            scope.spawn(move || {
                pin_to_last();
                pinged.iter().for_each(|token| pong.send(token).expect("the other side listens"));
            });
            scope
                .spawn(move || {
                    pin_to_first();
                    let began = Instant::now();
                    for token in 0..rounds {
                        ping.send(token as u32).expect("the other side listens");
                        black_box(ponged.recv().expect("the other side answers"));
                    }
                    began.elapsed() / 2
                })
                .join()
                .expect("the measuring thread")
        })
    };
    criterion.bench_function("channel hand-over", |bencher| bencher.iter_custom(once_each_way));
}

/// A timer of the event loop with phases, from its start to its close in its callback: one of a million, due within a
/// millisecond, in no order.
fn a_million_timers(criterion: &mut Criterion) {
    const TIMERS: u32 = 1_000_000;
    let mut group = criterion.benchmark_group("timer of the event loop");
    let one_of_a_million = |rounds: u64| {
        let mut took = Duration::ZERO;
        for _ in 0..rounds {
            let mut events = PhasedLoop::new(1).expect("an event loop");
            let mut random = fastrand::Rng::with_seed(7);
            let began = Instant::now();
            for _ in 0..TIMERS {
                let timer = events.observe(Phase::Timers, |events, event| events.close(event.observer, |_| {}));
                events.start_timer(timer, Duration::from_nanos(random.u64(0..1_000_000)), Duration::ZERO);
            }
            assert_eq!(events.run(RunMode::UntilDone), Ok(false));
            took += began.elapsed() / TIMERS;
        }
        took
    };
    group.sample_size(10).bench_function("start and run", |bencher| bencher.iter_custom(one_of_a_million));
}

/// The request that wrk sends.
fn request_parse(criterion: &mut Criterion) {
    let request = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n";
    criterion.bench_function("request parse", |bencher| {
        bencher.iter(|| {
            let (used, next) = RequestReader::default().next(black_box(request));
            assert!(matches!(next, Next::Request(_)));
            used
        });
    });
}

/// The answer of our servers, as the load generator sees it the first time and from then on.
fn answer_parse(criterion: &mut Criterion) {
    let answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 64\r\nX-Worker: 3\r\n\r\n\
        handled by worker 3, pid 4711                                   ";
    let read = |reader: &mut load::ResponseReader, cached_head: &mut load::CachedHead| {
        let fed = reader.feed(black_box(answer), cached_head);
        assert!(matches!(fed, Ok(Some((_, consumed))) if consumed == answer.len()));
        fed
    };
    let mut reader = load::ResponseReader::default();
    criterion.bench_function("answer parse, unknown head", |bencher| {
        bencher.iter_batched_ref(
            || load::CachedHead::new(false),
            |cached_head| read(&mut reader, cached_head),
            BatchSize::SmallInput,
        );
    });
    criterion.bench_function("answer parse, known head", |bencher| {
        let mut cached_head = load::CachedHead::new(false);
        bencher.iter(|| read(&mut reader, &mut cached_head));
    });
}

/// connect, one request, its answer, and the server's close, from one client that does nothing else.
fn connection_round_trip(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("connection round trip");
    for (name, path) in [
        ("sync", env!("CARGO_BIN_EXE_sync")),
        ("prefork", env!("CARGO_BIN_EXE_prefork")),
        ("threaded", env!("CARGO_BIN_EXE_threaded")),
        ("thread-pool", env!("CARGO_BIN_EXE_thread-pool")),
        ("event-driven", env!("CARGO_BIN_EXE_event-driven")),
        ("shared-accept", env!("CARGO_BIN_EXE_shared-accept")),
        ("reuseport", env!("CARGO_BIN_EXE_reuseport")),
        ("master-dispatch", env!("CARGO_BIN_EXE_master-dispatch")),
    ] {
        let server = Program::new(&[path.into()]).start(&[]).expect("a server that becomes ready");
        group.bench_function(name, |bencher| bencher.iter(|| ask_once(server.addr)));
    }
}

fn ask_once(server: SocketAddr) -> usize {
    let mut client = TcpStream::connect(server).expect("connect");
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").expect("send");
    let mut answer = Vec::with_capacity(1024);
    client.read_to_end(&mut answer).expect("an answer");
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "the server answers wrongly");
    answer.len()
}

fn pin_to_first() {
    cpu::pin_to(&cpu::allowed()[..1]).expect("an allowed CPU");
}

fn pin_to_last() {
    let cpus = cpu::allowed();
    cpu::pin_to(&cpus[cpus.len() - 1..]).expect("an allowed CPU");
}
