//! Which socket of a SO_REUSEPORT group gets the next connection: programs that replace the kernel's hash.
//!
//! - [`classic`]: a few instructions of classic BPF that return the number of a socket; anybody may attach them;
//! - [`live_set`]: such a program, replaced whenever a worker falls silent or comes back;
//! - [`extended`]: programs with a memory, which take turns or weigh loads; they need CAP_BPF;
//! - [`heartbeat`]: what a worker shows of itself to those who choose.
//!
//! When it is asked. Once per connection, when the SYN arrives: the request that is made then belongs to the chosen
//! listener, and so does the connection that grows out of it. (A bare SYN from a raw socket takes a turn of
//! `round-robin`, and no connection comes of it.) Between the choice and the accept lie a round trip and the time in
//! the queue, and nobody chooses again. A segment that belongs to no connection asks, too: a straggler behind a reset,
//! and with SYN cookies the ACK, for then nothing was remembered of the SYN. Programs that count have to tell them
//! apart, and under SYN cookies they leave the choice to the hash.
//!
//! What a number means. The group is an array in the order of the listen(2) calls, so socket i is worker i's. When a
//! socket leaves, the kernel moves the last one into the hole (`reuseport_detach_sock` in net/core/sock_reuseport.c):
//! after the death of worker 1 of 4, number 1 is worker 3's and number 3 is nobody's. A number that is nobody's is no
//! error: the kernel falls back on its hash. So `cpu` and `random` go on by themselves when a worker dies, a little
//! less exactly; [`live_set`] follows the moves; the extended programs name sockets in a map of their own instead,
//! where a socket that has left is an empty place, and leave the choice to the hash when they come upon one.

pub mod classic;
pub mod extended;
pub mod heartbeat;
pub mod live_set;

pub use heartbeat::SelectorNeeds;
pub use live_set::LiveSet;
