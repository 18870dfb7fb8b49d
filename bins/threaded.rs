//! 白银 silver: a thread per connection.
//!
//! Who accepts: the main thread. Who serves: a new thread, for as long as the connection lives. Who balances: the
//! scheduler, which sees every connection as a thread. What is inherited: nothing, because threads share everything; a
//! thread is cheaper than a process and can bring all others down. With C clients and N seconds per request the server
//! answers C/N requests per second, while memory and scheduling grow with C.
//!
//! All threads together are worker 0: no thread outlives its connection, so no thread has a number.
//!
//! Compare with `prefork.rs` (workers made beforehand) and `thread-pool.rs` (a bounded number of threads).
//!
//! See it: `threaded --work block:1s`, then `loadgen --connections 100 http://127.0.0.1:8080/` and meanwhile
//! `ls /proc/$(pidof threaded)/task | wc -l`.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::thread;

use acceptlab::report::ServerReport;
use acceptlab::server::{self, Failure, Listener, Scoreboard, ServerArgs, Worker, blocking, termination, worker};
use clap::Parser;

/// A thread per connection
#[derive(Parser)]
#[command(name = "threaded", version)]
struct Args {
    #[command(flatten)]
    server: ServerArgs,
}

fn main() -> ExitCode {
    server::finish(run(&Args::parse().server))
}

fn run(args: &ServerArgs) -> Result<ServerReport, Failure> {
    let listener = Listener::bind(args)?;
    let address = listener.address();
    let scoreboard = Scoreboard::create("threaded", 1, args.scoreboard.as_deref())?;
    let mut all_threads = Worker::new(0, args, &scoreboard);
    termination::shut_sockets_when_stopping(&listener)?;

    // Nothing is ever sent: the channel ends when the last thread that holds `alive` has ended.
    let (alive, all_gone) = crossbeam_channel::bounded::<()>(0);
    server::ready(address)?;

    let mut threads = 0;
    while let Some(connection) = blocking::accept(&listener, &all_threads)? {
        let mut worker = all_threads.for_one_connection();
        let (alive, pin) = (alive.clone(), args.pin.then_some(threads));
        let spawned = thread::Builder::new().stack_size(blocking::STACK_BYTES).spawn(move || {
            let _held_until_the_end = alive;
            worker::pin_or_log(pin);
            blocking::serve(connection, &mut worker);
        });
        if let Err(error) = spawned {
            // The closure is gone and the connection in it closed: this client is lost, the others are not.
            blocking::back_off_from_spawning("spawn a thread", error);
        }
        threads += 1;
    }

    drop(alive);
    termination::wait_for_threads(&all_gone);
    all_threads.record_usage();
    Ok(scoreboard.report(address, None))
}
