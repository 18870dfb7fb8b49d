//! What to do, in the words of the server that is inspected: the option's own name.

use Kind::*;

use crate::lab::inspect::look::Recording;
use crate::lab::server_kind::Kind;

pub fn kind(recording: &Recording) -> Kind {
    let kinds = || recording.commands.values().map(|words| Kind::of(words));
    kinds().find(|kind| *kind != Kind::Other).unwrap_or(Kind::Other)
}

pub fn kind_of(recording: &Recording, pid: i32) -> Kind {
    recording.commands.get(&pid).map_or(Kind::Other, |words| Kind::of(words))
}

/// What helps, by kind of server; the last line is for any other.
pub type Advice = &'static [(Kind, &'static str)];

/// Against a herd: wake one worker, or give each a socket.
pub const HERD: Advice = &[
    (Nginx, "nginx: `listen 80 reuseport;`, or 1.11.3 or later, which registers with EPOLLEXCLUSIVE"),
    (Gunicorn, "gunicorn: fewer workers with `--worker-class gthread --threads N`, or `--reuse-port`"),
    (Uvicorn, "uvicorn: a process for each CPU under a supervisor, each with a SO_REUSEPORT socket as its `--fd`"),
    (Haproxy, "haproxy: `shards by-thread` on the bind line"),
    (Apache, "Apache: `ListenCoresBucketsRatio 8`, which opens SO_REUSEPORT sockets"),
    (Node, "Node: cluster.schedulingPolicy = cluster.SCHED_RR (NODE_CLUSTER_SCHED_POLICY=rr)"),
    (Puma, "puma: fewer `workers`, and more threads in each"),
    (Other, "register the socket with EPOLLEXCLUSIVE, block in accept, or give each worker a SO_REUSEPORT socket"),
];

/// Against an uneven share.
pub const UNEVEN: Advice = &[
    (Nginx, "nginx: `listen 80 reuseport;` spreads by hash, which evens out many connections"),
    (Gunicorn, "gunicorn: `--reuse-port` spreads by hash; `--max-requests` sheds old workers"),
    (
        Uvicorn,
        "uvicorn: a process for each CPU, each with a SO_REUSEPORT socket as its `--fd`, spreads by hash; haproxy \
         `balance leastconn` in front counts connections",
    ),
    (Haproxy, "haproxy: `tune.listener.multi-queue fair`, or `shards by-thread`"),
    (Apache, "Apache: `ListenCoresBucketsRatio 8`, and `MaxConnectionsPerChild` to shed old connections"),
    (Node, "Node: cluster.schedulingPolicy = cluster.SCHED_RR (NODE_CLUSTER_SCHED_POLICY=rr)"),
    (Puma, "puma: `wait_for_less_busy_worker 0.005`, which lets a busy worker accept later"),
    (Other, "it costs nothing while the favourite has CPU time left; else pass connections to the least busy"),
];

/// Against an uneven share where the master passes the connections on, by its own policy.
pub const PASSED: Advice = &[
    (
        Node,
        "Node: by turns (SCHED_RR) a burst goes to the workers that acknowledge first; `server.maxRequestsPerSocket` \
         lets connections come anew, one by one",
    ),
    (Other, "another policy of the master: the worker with the fewest open connections"),
];

/// Against a worker that hangs.
pub const HUNG: Advice = &[
    (Nginx, "nginx: kill this worker, the master starts another; one shared socket isolates it"),
    (Gunicorn, "gunicorn: `--timeout 30` kills a worker that gives no sign"),
    (Uvicorn, "uvicorn: `--timeout-worker-healthcheck`, or a supervisor that restarts it"),
    (Haproxy, "haproxy: restart the process; its watchdog ends one whose thread runs in circles"),
    (Apache, "Apache: kill this child, the parent starts another"),
    (Node, "Node: a heartbeat by process.send; the master kills the worker that misses it, and forks another"),
    (Puma, "puma: `worker_timeout 60` restarts a worker that does not check in"),
    (Other, "kill it, so that its supervisor starts another; what waits in a socket of its own is then reset"),
];

/// Against a queue that overflows.
pub const QUEUE: Advice = &[
    (Nginx, "nginx: `listen 80 backlog=4096;`"),
    (Gunicorn, "gunicorn: `--backlog 4096`"),
    (Uvicorn, "uvicorn: `--backlog 4096`"),
    (Haproxy, "haproxy: `backlog 4096` in the frontend, and a higher `maxconn`, at which it stops accepting"),
    (Apache, "Apache: `ListenBacklog 4096`"),
    (Node, "Node: server.listen({port, backlog: 4096})"),
    (Puma, "puma: `bind 'tcp://0.0.0.0:80?backlog=4096'`"),
    (Other, "a larger backlog in listen(2); if the workers are at their limit, a longer queue only waits longer"),
];

/// Where each worker should have a socket of its own, and has none.
pub const REUSEPORT: Advice = &[
    (Gunicorn, "gunicorn: one with `--workers 1 --reuse-port` for each CPU, each of which binds for itself"),
    (Uvicorn, "uvicorn: one process for each CPU, each with a socket of its own as `--fd`"),
    (Other, "bind in each worker, after the fork"),
];

/// Where the kernel goes on to choose the socket of a worker that does not accept.
pub const BLIND: Advice = &[
    (Nginx, "nginx: `listen 80` without `reuseport`: one socket for all, from which any worker that runs accepts"),
    (Gunicorn, "gunicorn: without `--reuse-port`: one socket for all, from which any worker that runs accepts"),
    (Haproxy, "haproxy: `shards 1` on the bind line"),
    (Apache, "Apache: `ListenCoresBucketsRatio 0`, its default"),
    (Other, "a selector that knows the workers (SO_ATTACH_REUSEPORT_CBPF or _EBPF), or one shared socket"),
];

/// Where all workers wait for bytes of the clients they have.
pub const SILENT: Advice = &[
    (Gunicorn, "gunicorn: `--worker-class gthread --threads 4`, or `gevent`: silent connections wait in an event loop"),
    (Apache, "Apache: the MPM `event` instead of `prefork`: silent connections wait in an event loop"),
    (Puma, "puma: `queue_requests true`, its default: a reactor reads requests, and threads answer them"),
    (Other, "more workers, or event loops, which hold a silent client for the price of a descriptor"),
];

/// Where all workers are at work and have no time to accept.
pub const BUSY: Advice = &[
    (Node, "Node: what takes long into worker_threads, and a process for each CPU (node:cluster)"),
    (Other, "a worker for each CPU; if there are so many, less work for each request, or more CPUs"),
];

/// Where one thread accepts for all and is at its limit.
pub const ACCEPTORS: Advice = &[
    (Node, "Node: cluster.SCHED_NONE lets the workers accept, or listen({reusePort: true}) in each (22.12)"),
    (Haproxy, "haproxy: `shards by-thread` on the bind line"),
    (Puma, "puma: `workers N`, each of which accepts"),
    (Gunicorn, "gunicorn: more `--workers`, each of which accepts"),
    (Other, "let every worker accept: from one socket with EPOLLEXCLUSIVE, or from a SO_REUSEPORT socket each"),
];

/// Where there are more event loops than CPUs.
pub const LOOPS: Advice = &[
    (Nginx, "nginx: `worker_processes auto;`"),
    (Haproxy, "haproxy: leave `nbthread` to its default, a thread for each CPU"),
    (Other, "one event loop for each CPU is enough: it never waits for anything but its sockets"),
];

pub fn of(advice: Advice, kind: Kind) -> &'static str {
    let found = advice.iter().find(|(of, _)| *of == kind).or(advice.last());
    found.map_or("", |(_, says)| says)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_advised_and_any_other_too() {
        assert!(of(QUEUE, Kind::Nginx).starts_with("nginx: ") && of(REUSEPORT, Kind::Nginx).starts_with("bind "));
        for advice in [HERD, UNEVEN, PASSED, HUNG, QUEUE, REUSEPORT, BLIND, SILENT, BUSY, ACCEPTORS, LOOPS] {
            assert_eq!(advice.last().map(|(kind, _)| *kind), Some(Kind::Other));
        }
    }
}
