//! The messages of Node's cluster, as `lib/internal/cluster/{primary,child}.js` of Node 20 send them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Debug)]
pub enum Message {
    /// It runs. `counts`: it is one of our servers, and counts in the scoreboard.
    Online { counts: bool },
    /// Its program has called `listen()`: what socket is it to have?
    Query(Box<Query>),
    /// It takes connections on this port.
    Listening { port: Option<u64> },
    /// It takes no more connections of this handle.
    Close(String),
    /// It is about to disconnect on its own, and wants an answer first.
    ExitedAfterDisconnect { seq: u64 },
    /// It has met a fatal error and will end: `process.send({act: 'suicide'})`, a message of the program's own.
    Suicide,
    /// It has counted something, by name: `process.send({act: 'count', queries: 1})`.
    Count(Vec<(String, f64)>),
    /// Another message of the program's own.
    Program(Value),
}

/// A call of `listen()`. Node passes on what the program and its own library have given, which is not always what it
/// should be (`"backlog": false` stands for none); a field of another type counts as missing.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Query {
    pub seq: Value,
    /// An IP address, without one any; or the file of a Unix socket.
    pub address: Value,
    pub port: Value,
    /// 4 or 6 for TCP, -1 for a Unix socket, `"udp4"` or `"udp6"`.
    pub address_type: Value,
    pub fd: Value,
    /// Tells calls of the same program with the same address apart.
    pub index: Value,
    pub flags: Value,
    pub backlog: Value,
    /// A Unix socket: all users may read from it, or write to it.
    pub readable_all: Value,
    pub writable_all: Value,
    /// The connections are to send small answers at once. Not Node's word: ours say it.
    pub no_delay: Value,
    /// What the workers share of a server, as the keys of TLS tickets: the first worker sends them for all.
    pub data: Value,
}

#[derive(Debug, PartialEq, Eq)]
pub enum ListenTarget {
    /// In the order of preference.
    Ip(Vec<SocketAddr>),
    /// A Unix socket; a name that begins with a NUL is abstract (unix(7)).
    Path(PathBuf),
    /// A descriptor that the master was started with, by number.
    Inherited(RawFd),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Ip(SocketAddr),
    Path(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Address::Ip(address) => address.fmt(formatter),
            // As ss(8) and systemd write it.
            Address::Path(path) if is_abstract(path) => {
                write!(formatter, "unix:{}", path.display().to_string().replace('\0', "@"))
            }
            Address::Path(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}

/// Not a file: a name that only the kernel knows (unix(7)).
pub fn is_abstract(path: &Path) -> bool {
    path.as_os_str().as_bytes().first() == Some(&0)
}

/// `UV_TCP_IPV6ONLY` of libuv's `uv.h`.
const IPV6_ONLY: u64 = 1;

/// How many listen(2) lets wait where the program does not say (Node's default).
const BACKLOG: i32 = 511;

impl Query {
    /// Calls with the same key, from whatever workers, share a handle.
    pub fn key(&self) -> String {
        let Query { address, port, address_type, fd, index, .. } = self;
        format!("{}:{port}:{address_type}:{fd}:{index}", address.as_str().unwrap_or("null"))
    }

    /// # Errors
    /// EINVAL for what is not an address, and ENOTSUP for UDP, where no connection is accepted.
    pub fn target(&self) -> nix::Result<ListenTarget> {
        match (self.fd(), self.address_type.as_i64()) {
            (Some(fd), _) => Ok(ListenTarget::Inherited(fd)),
            (None, Some(4 | 6)) => self.addresses().map(ListenTarget::Ip),
            (None, Some(-1)) => {
                let address = self.address.as_str().filter(|address| !address.is_empty());
                // Node's child puts its folder before every name, and its primary takes it off again. A NUL behind that
                // begins an abstract name; anywhere else it would end a path for the kernel.
                let path = address.and_then(|address| match address.find('\0') {
                    None => Some(address),
                    Some(at) if at == 0 || address[..at].ends_with('/') => Some(&address[at..]),
                    Some(_) => None,
                });
                path.filter(|&path| path != "\0").map(|path| ListenTarget::Path(path.into())).ok_or(Errno::EINVAL)
            }
            _ => Err(Errno::ENOTSUP),
        }
    }

    pub fn mode_for_all(&self) -> u32 {
        let bits = |flag: &Value, bits| if *flag == json!(true) { bits } else { 0 };
        bits(&self.readable_all, 0o444) | bits(&self.writable_all, 0o222)
    }

    pub fn in_words(&self) -> String {
        match self.target() {
            Ok(ListenTarget::Path(path)) => format!("{path:?}"),
            Ok(ListenTarget::Inherited(fd)) => format!("on descriptor {fd}"),
            _ => format!("{}:{}", self.address.as_str().unwrap_or("*").escape_debug(), self.port),
        }
    }

    /// A number that is too large is not an open descriptor either.
    fn fd(&self) -> Option<RawFd> {
        self.fd.as_i64().filter(|&fd| fd >= 0).map(|fd| RawFd::try_from(fd).unwrap_or(RawFd::MAX))
    }

    fn addresses(&self) -> nix::Result<Vec<SocketAddr>> {
        let port = self.port.as_u64().and_then(|port| u16::try_from(port).ok()).ok_or(Errno::EINVAL)?;
        // Any address: IPv6 takes both kinds, where it exists (`createServerHandle` in Node's `lib/net.js`).
        let candidates = self.address.as_str().map_or(vec!["::", "0.0.0.0"], |address| vec![address]);
        let addresses = candidates
            .into_iter()
            .map(|address| address.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port)).map_err(|_| Errno::EINVAL));
        addresses.collect()
    }

    pub fn is_ipv6_only(&self) -> bool {
        self.flags.as_u64().unwrap_or(0) & IPV6_ONLY != 0
    }

    pub fn backlog(&self) -> i32 {
        let backlog = self.backlog.as_i64().and_then(|backlog| i32::try_from(backlog).ok());
        backlog.filter(|&backlog| backlog > 0).unwrap_or(BACKLOG)
    }
}

impl Message {
    /// # Errors
    /// Why a message that claims to be of the cluster is none.
    pub fn parse(message: Value) -> Result<Message, String> {
        if message.get("cmd").and_then(Value::as_str) != Some("NODE_CLUSTER") {
            return Ok(Message::of_program(message));
        }
        match message.get("act").and_then(Value::as_str) {
            Some("online") => Ok(Message::Online { counts: message["counts"] == json!(true) }),
            Some("queryServer") if message.get("seq").is_none() => Err("a queryServer without seq".to_owned()),
            Some("queryServer") => serde_json::from_value(message)
                .map(|query| Message::Query(Box::new(query)))
                .map_err(|error| format!("a queryServer that cannot be read: {error}")),
            Some("listening") => Ok(Message::Listening { port: message["port"].as_u64() }),
            Some("close") => match message.get("key").and_then(Value::as_str) {
                Some(key) => Ok(Message::Close(key.to_owned())),
                None => Err("a close without a key".to_owned()),
            },
            Some("exitedAfterDisconnect") => match message["seq"].as_u64() {
                Some(seq) => Ok(Message::ExitedAfterDisconnect { seq }),
                None => Err("an exitedAfterDisconnect without seq".to_owned()),
            },
            _ => Err("an unknown act".to_owned()),
        }
    }

    fn of_program(message: Value) -> Message {
        match message.get("act").and_then(Value::as_str) {
            Some("suicide") => Message::Suicide,
            Some("count") => {
                let fields = message.as_object().into_iter().flatten();
                Message::Count(fields.filter_map(|(name, n)| Some((name.clone(), n.as_f64()?))).collect())
            }
            _ => Message::Program(message),
        }
    }
}

/// The socket is the master's: the worker is to wait for connections of `key`.
pub fn kept(query: &Query, key: &str, address: &Address, data: &Value, seq: u64) -> Value {
    let mut reply = shared(query, key, data, seq);
    if let Address::Ip(address) = address {
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        let (ip, port) = (address.ip().to_string(), address.port());
        reply["sockname"] = json!({"family": family, "address": ip, "port": port});
    }
    reply
}

/// The socket comes with this message: the worker is to listen and accept.
pub fn shared(query: &Query, key: &str, data: &Value, seq: u64) -> Value {
    json!({"cmd": "NODE_CLUSTER", "key": key, "data": data, "ack": query.seq, "seq": seq})
}

/// `listen()` fails, with the number in Node's sign.
pub fn failed(query: &Query, key: &str, errno: Errno, seq: u64) -> Value {
    let mut reply = shared(query, key, &Value::Null, seq);
    reply["errno"] = json!(-(errno as i32));
    reply
}

/// The contents of the watched file. A message of the master's own, which programs receive by `process.on('message')`.
pub fn notify(path: &str, value: Option<&str>) -> Value {
    json!({"act": "notify", "path": path, "value": value})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(fields: Value) -> Query {
        let mut message = json!({"cmd": "NODE_CLUSTER", "act": "queryServer", "seq": 1, "index": 0, "data": null});
        message.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        match Message::parse(message) {
            Ok(Message::Query(query)) => *query,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_listen_without_an_address_is_for_both_kinds_of_it() {
        let any = query(json!({"address": null, "port": 80, "addressType": 4, "flags": 0}));
        let ip = |address: &str| address.parse::<SocketAddr>().unwrap();
        assert_eq!(any.target(), Ok(ListenTarget::Ip(vec![ip("[::]:80"), ip("0.0.0.0:80")])));
        let one = query(json!({"address": "127.0.0.1", "port": 0, "addressType": 4, "backlog": false}));
        assert_eq!(one.target(), Ok(ListenTarget::Ip(vec![ip("127.0.0.1:0")])));
        assert_ne!(any.key(), one.key());
    }

    #[test]
    fn a_unix_socket_and_a_descriptor_are_as_good_as_a_port() {
        let path = query(json!({"address": "/tmp/socket", "port": -1, "addressType": -1, "fd": null}));
        assert_eq!(path.target(), Ok(ListenTarget::Path("/tmp/socket".into())));
        for name in ["\0name", "/some/folder/\0name"] {
            let path = query(json!({"address": name, "port": -1, "addressType": -1}));
            assert_eq!(path.target(), Ok(ListenTarget::Path("\0name".into())));
        }
        assert_eq!(Address::Path("\0name".into()).to_string(), "unix:@name");
        let fd = query(json!({"address": null, "port": null, "addressType": null, "fd": 5}));
        assert_eq!(fd.target(), Ok(ListenTarget::Inherited(5)));
    }

    #[test]
    fn what_is_not_an_address_is_refused() {
        for (fields, errno) in [
            (json!({"address": "127.0.0.1", "port": 1, "addressType": "udp4"}), Errno::ENOTSUP),
            (json!({"address": null, "port": -1, "addressType": -1}), Errno::EINVAL),
            (json!({"address": "", "port": -1, "addressType": -1}), Errno::EINVAL),
            (json!({"address": "/tmp/a\0b", "port": -1, "addressType": -1}), Errno::EINVAL),
            (json!({"address": "nowhere", "port": 1, "addressType": 4}), Errno::EINVAL),
            (json!({"address": null, "port": "80", "addressType": 4}), Errno::EINVAL),
            (json!({"address": null, "port": 70000, "addressType": 4}), Errno::EINVAL),
        ] {
            assert_eq!(query(fields).target(), Err(errno));
        }
    }

    #[test]
    fn of_the_programs_own_messages_two_mean_something() {
        assert!(matches!(Message::parse(json!({"act": "suicide"})), Ok(Message::Suicide)));
        match Message::parse(json!({"act": "count", "queries": 2, "of": "what", "late_us": 0.5})) {
            Ok(Message::Count(mut counts)) => {
                counts.sort_by(|a, b| a.0.cmp(&b.0));
                assert_eq!(counts, [("late_us".to_owned(), 0.5), ("queries".to_owned(), 2.0)]);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_message_that_only_claims_to_be_of_the_cluster_is_refused() {
        for message in [
            json!({"cmd": "NODE_CLUSTER"}),
            json!({"cmd": "NODE_CLUSTER", "act": 7}),
            json!({"cmd": "NODE_CLUSTER", "act": "queryServer", "port": 1}),
            json!({"cmd": "NODE_CLUSTER", "act": "close", "key": {}}),
            json!({"cmd": "NODE_CLUSTER", "ack": -1}),
        ] {
            assert!(Message::parse(message.clone()).is_err(), "{message}");
        }
        for message in [json!(null), json!({"cmd": 5}), json!(["NODE_CLUSTER"]), json!({"act": "online"})] {
            assert!(matches!(Message::parse(message), Ok(Message::Program(_))));
        }
    }
}
