//! What to do, in the words of the server that is inspected: the option's own name.

use crate::lab::inspect::look::Recording;

/// A server of the world, recognized by the words of its command line; the first that fits.
const PROGRAMS: [(&str, Kind); 9] = [
    ("gunicorn", Kind::Gunicorn),
    ("uvicorn", Kind::Uvicorn),
    ("puma", Kind::Puma),
    ("pm2", Kind::Node),
    ("nginx", Kind::Nginx),
    ("haproxy", Kind::Haproxy),
    ("apache2", Kind::Apache),
    ("httpd", Kind::Apache),
    ("node", Kind::Node),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Gunicorn,
    Uvicorn,
    Puma,
    Nginx,
    Haproxy,
    Apache,
    Node,
    /// Any other.
    Other,
}

pub fn kind(recording: &Recording) -> Kind {
    let kinds = || recording.commands.values().map(|words| kind_of(words));
    kinds().find(|kind| *kind != Kind::Other).unwrap_or(Kind::Other)
}

/// Of one process, by the first words of its command line.
pub fn kind_of(words: &[String]) -> Kind {
    let names = words.iter().take(3).map(|word| word.rsplit('/').next().unwrap_or(word).to_lowercase());
    let names: Vec<String> = names.collect();
    let is_there = |program: &str| names.iter().any(|name| name.starts_with(program));
    PROGRAMS.iter().find(|(program, _)| is_there(program)).map_or(Kind::Other, |(_, kind)| *kind)
}

/// Against a herd: a socket for each worker, or waking one.
pub fn wake_one(kind: Kind) -> &'static str {
    match kind {
        Kind::Nginx => "nginx: `listen 80 reuseport;`, or 1.11.3 or later, which registers with EPOLLEXCLUSIVE",
        Kind::Gunicorn => "gunicorn: fewer workers with `--worker-class gthread --threads N`",
        Kind::Uvicorn => "uvicorn: start one process for each CPU under a supervisor, each on a socket with reuse_port",
        Kind::Haproxy => "haproxy: `shards by-thread` on the bind line",
        Kind::Apache => "Apache: `ListenCoresBucketsRatio 8`, which opens SO_REUSEPORT sockets",
        Kind::Node => "Node: cluster.schedulingPolicy = cluster.SCHED_RR (NODE_CLUSTER_SCHED_POLICY=rr)",
        Kind::Puma => "puma: `workers 0`, or fewer; more threads in each",
        Kind::Other => {
            "register the socket with EPOLLEXCLUSIVE, block in accept, or give each worker a SO_REUSEPORT socket"
        }
    }
}

/// Against an uneven share.
pub fn even_out(kind: Kind) -> &'static str {
    match kind {
        Kind::Nginx => "nginx: `listen 80 reuseport;` spreads by hash, which evens out many connections",
        Kind::Gunicorn => {
            "gunicorn: one with `--workers 1 --reuse-port` for each CPU; `--max-requests` sheds old workers"
        }
        Kind::Uvicorn => "uvicorn: a proxy in front that counts connections, such as haproxy `balance leastconn`",
        Kind::Haproxy => "haproxy: `tune.listener.multi-queue fair`, or `shards by-thread`",
        Kind::Apache => "Apache: `ListenCoresBucketsRatio 8`, and `MaxConnectionsPerChild` to shed old connections",
        Kind::Node => "Node: cluster.schedulingPolicy = cluster.SCHED_RR (NODE_CLUSTER_SCHED_POLICY=rr)",
        Kind::Puma => "puma: `wait_for_less_busy_worker 0.005`, which lets a busy worker accept later",
        Kind::Other => {
            "it costs nothing while the favourite has CPU time left; else pass connections to the least busy"
        }
    }
}

/// Against a worker that hangs.
pub fn replace(kind: Kind) -> &'static str {
    match kind {
        Kind::Nginx => {
            "nginx: kill this worker, the master starts another; a shared socket (no `reuseport`) isolates it"
        }
        Kind::Gunicorn => "gunicorn: `--timeout 30` kills a worker that gives no sign; gthread and gevent need it, too",
        Kind::Uvicorn => "uvicorn: `--timeout-worker-healthcheck`, or a supervisor that restarts it",
        Kind::Haproxy => "haproxy: its watchdog aborts a thread that hangs; restart the process",
        Kind::Apache => "Apache: kill this child, the parent starts another",
        Kind::Node => "Node: the master must kill and fork anew: cluster.on('online'), a heartbeat by process.send",
        Kind::Puma => "puma: `worker_timeout 60` restarts a worker that does not check in",
        Kind::Other => {
            "kill it, so that its supervisor starts another; what waits in a socket of its own is then reset"
        }
    }
}

/// Against a queue that overflows.
pub fn longer_queue(kind: Kind) -> &'static str {
    match kind {
        Kind::Nginx => "nginx: `listen 80 backlog=4096;`",
        Kind::Gunicorn => "gunicorn: `--backlog 4096`",
        Kind::Uvicorn => "uvicorn: `--backlog 4096`",
        Kind::Haproxy => "haproxy: `backlog 4096` in the frontend, and `maxconn`, which stops accepting",
        Kind::Apache => "Apache: `ListenBacklog 4096`",
        Kind::Node => "Node: server.listen({port, backlog: 4096})",
        Kind::Puma => "puma: `bind 'tcp://0.0.0.0:80?backlog=4096'`",
        Kind::Other => {
            "a larger backlog in listen(2); if the workers are at their limit, a longer queue only waits longer"
        }
    }
}

/// Where each worker should have a socket of its own, and has none.
pub fn really_reuseport(kind: Kind) -> &'static str {
    match kind {
        Kind::Gunicorn => "gunicorn: one with `--workers 1 --reuse-port` for each CPU, each of which binds for itself",
        Kind::Uvicorn => "uvicorn: one process for each CPU, each of which binds for itself",
        _ => "bind in each worker, after the fork",
    }
}

/// Where one thread accepts for all and is at its limit.
pub fn more_acceptors(kind: Kind) -> &'static str {
    match kind {
        Kind::Node => "Node: cluster.SCHED_NONE lets the workers accept, or listen({reusePort: true}) in each (22.12)",
        Kind::Haproxy => "haproxy: `shards by-thread` on the bind line",
        Kind::Puma => "puma: `workers N`, each of which accepts",
        Kind::Gunicorn => "gunicorn: more `--workers`, each of which accepts",
        _ => "let every worker accept: from a shared socket with EPOLLEXCLUSIVE, or from a SO_REUSEPORT socket each",
    }
}

/// Where there are more loops than CPUs.
pub fn fewer_workers(kind: Kind) -> &'static str {
    match kind {
        Kind::Nginx => "nginx: `worker_processes auto;`",
        Kind::Haproxy => "haproxy: leave `nbthread` to its default, a thread for each CPU",
        _ => "one event loop for each CPU is enough: a loop never waits for anything but its sockets",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_known_by_the_first_words_of_its_command() {
        let of = |command: &str| {
            let words = command.split(' ').map(String::from).collect();
            kind(&Recording { commands: [(1, words)].into(), ..Recording::default() })
        };
        assert_eq!(of("nginx: worker process"), Kind::Nginx);
        assert_eq!(of("/usr/bin/python3 /opt/venv/bin/gunicorn --reuse-port app"), Kind::Gunicorn);
        assert_eq!(of("/usr/bin/python3 -m uvicorn app:app"), Kind::Uvicorn);
        assert_eq!(of("node server.js"), Kind::Node);
        assert_eq!(of("./my-nginx-test --listen x"), Kind::Other);
    }
}
