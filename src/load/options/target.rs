//! The URL, taken apart, and the address behind it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use nix::net::if_::if_nametoindex;

/// How long an address of a name is tried before the next: long enough for one lost SYN (RFC 6298, section 2.1).
const TRY_FOR: Duration = Duration::from_secs(3);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Without the brackets of an IPv6 address, with its zone behind a `%`.
    pub host: String,
    pub port: u16,
    /// What stands in the `Host` header: host and port as in the URL, without a zone, which only this machine knows
    /// (RFC 6874, section 4).
    pub authority: String,
    /// Path and query, at least `/`.
    pub path: String,
    pub unix: Option<PathBuf>,
}

impl Target {
    pub fn url(&self) -> String {
        match &self.unix {
            Some(socket) => format!("http://unix:{}:{}", socket.display(), self.path),
            None => match self.host.split_once('%') {
                Some((address, zone)) => format!("http://[{address}%25{zone}]:{}{}", self.port, self.path),
                None => format!("http://{}{}", self.authority, self.path),
            },
        }
    }

    /// The address to connect to. Each address of a name is tried, those of IPv4 first since the servers listen on
    /// 127.0.0.1 by default; the first that takes a connection is the one.
    pub fn resolve(&self) -> Result<SocketAddr, String> {
        let mut addresses = self.addresses().map_err(|why| format!("resolve {}: {why}", self.host))?;
        addresses.sort_by_key(SocketAddr::is_ipv6);
        addresses.dedup();
        match addresses[..] {
            [] => Err(format!("resolve {}: the name has no address", self.host)),
            // The connections of the run will show whether it answers.
            [only] => Ok(only),
            _ => first_that_connects(&addresses)
                .map_err(|why| format!("connect {}: {why}; is the server running?", self.authority)),
        }
    }

    fn addresses(&self) -> Result<Vec<SocketAddr>, String> {
        if let Some((address, zone)) = self.host.split_once('%') {
            let address: Ipv6Addr = address.parse().map_err(|_| format!("{address} is not an IPv6 address"))?;
            // A zone is a number or the name of an interface (RFC 4007, section 11.2).
            let index = zone.parse().or_else(|_| if_nametoindex(zone));
            let index = index.map_err(|_| format!("there is no network interface {zone}"))?;
            return Ok(vec![SocketAddrV6::new(address, self.port, 0, index).into()]);
        }
        if self.host.eq_ignore_ascii_case("localhost") {
            // Both, whatever the file of names says (RFC 6761, section 6.3).
            let both: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            return Ok(both.map(|address| SocketAddr::new(address, self.port)).into());
        }
        let found = (self.host.as_str(), self.port).to_socket_addrs();
        Ok(found.map_err(|error| format!("{error}; is the name right?"))?.collect())
    }
}

fn first_that_connects(addresses: &[SocketAddr]) -> Result<SocketAddr, String> {
    let mut refusals = Vec::new();
    for address in addresses {
        match TcpStream::connect_timeout(address, TRY_FOR) {
            Ok(_) => return Ok(*address),
            Err(error) => refusals.push(format!("{} {}", address.ip(), error.kind())),
        }
    }
    Err(refusals.join(", "))
}

impl FromStr for Target {
    type Err = String;

    fn from_str(url: &str) -> Result<Target, String> {
        let (scheme, rest) =
            url.split_once("://").ok_or("a URL looks like http://HOST:PORT/PATH; the scheme is missing")?;
        if !scheme.eq_ignore_ascii_case("http") {
            let hint = if scheme.eq_ignore_ascii_case("https") { ": measure the server behind the TLS" } else { "" };
            return Err(format!("{scheme} is not spoken here, only http{hint}"));
        }
        // Anything else in the request line would be a second request (RFC 3986: a URL is printable ASCII).
        if !rest.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("a URL holds no spaces, control or non-ASCII characters; write them as %20".into());
        }
        let rest = rest.split('#').next().unwrap_or(rest);
        let (host, port, authority, path, unix) = match rest.strip_prefix("unix:") {
            Some(rest) => {
                // As nginx writes it: /path/to/socket:/path?query.
                let (socket, path) = rest.split_once(':').unwrap_or((rest, "/"));
                if !Path::new(socket).is_absolute() {
                    return Err("a Unix socket stands in a URL like http://unix:/path/to/socket:/path".into());
                }
                // What curl sends for a socket without a name.
                ("localhost".into(), 80, "localhost".into(), path, Some(socket.into()))
            }
            None => {
                let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
                let (host, port) = split_authority(authority)?;
                let authority = match (host.split_once('%'), authority.rsplit_once(']')) {
                    (Some((address, _)), Some((_, port))) => format!("[{address}]{port}"),
                    _ => authority.into(),
                };
                (host, port, authority, path, None)
            }
        };
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Target { host, port, authority, path: format!("{slash}{path}"), unix })
    }
}

/// The host, with the zone of an IPv6 address as `address%zone`, and the port.
fn split_authority(authority: &str) -> Result<(String, u16), String> {
    if authority.contains('@') {
        return Err("user and password in a URL are not supported".into());
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or("the ] after the IPv6 address is missing")?;
            // A `%` is written %25 in a URL (RFC 6874, section 2).
            let host = host.replacen("%25", "%", 1);
            let address = host.split_once('%').map_or(&*host, |(address, _)| address);
            if address.parse::<Ipv6Addr>().is_err() || host.ends_with('%') {
                return Err(format!("[{host}] is not an IPv6 address"));
            }
            (host, port)
        }
        None => {
            let (host, port) = authority.split_at(authority.find(':').unwrap_or(authority.len()));
            (host.to_string(), port)
        }
    };
    if host.is_empty() {
        return Err("the URL names no host".into());
    }
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().ok().filter(|&port| port > 0).ok_or("a port lies between 1 and 65535")?,
        None if port.is_empty() => 80,
        None => return Err(format!("{port:?} after the address is not a port")),
    };
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use socket2::{Domain, Socket, Type};

    #[test]
    fn urls_are_taken_apart() {
        let target: Target = "http://127.0.0.1:8080/a/b?c=d#e".parse().unwrap();
        assert_eq!((target.host.as_str(), target.port), ("127.0.0.1", 8080));
        assert_eq!((target.authority.as_str(), target.path.as_str()), ("127.0.0.1:8080", "/a/b?c=d"));
        let target: Target = "HTTP://localhost".parse().unwrap();
        assert_eq!((target.host.as_str(), target.port, target.path.as_str()), ("localhost", 80, "/"));
        let target: Target = "http://[::1]:81?q".parse().unwrap();
        assert_eq!((target.host.as_str(), target.port, target.path.as_str()), ("::1", 81, "/?q"));
        let target: Target = "http://unix:/tmp/a.sock:/b?c".parse().unwrap();
        assert_eq!((target.unix.as_deref(), target.path.as_str()), (Some(Path::new("/tmp/a.sock")), "/b?c"));
        assert_eq!(target.url(), "http://unix:/tmp/a.sock:/b?c");
        assert_eq!("http://unix:/tmp/a".parse::<Target>().unwrap().path, "/");
    }

    #[test]
    fn a_zone_belongs_to_the_address_and_not_to_the_host_header() {
        for url in ["http://[fe80::1%25lo]:81/a", "http://[fe80::1%lo]:81/a"] {
            let target: Target = url.parse().unwrap();
            assert_eq!((&*target.host, &*target.authority), ("fe80::1%lo", "[fe80::1]:81"));
            assert_eq!(target.url(), "http://[fe80::1%25lo]:81/a");
            let SocketAddr::V6(address) = target.resolve().unwrap() else { panic!("{target:?}") };
            assert_eq!(Ok(address.scope_id()), if_nametoindex("lo"));
        }
        let error = "http://[fe80::1%25nowhere]/".parse::<Target>().unwrap().resolve().unwrap_err();
        assert_eq!(error, "resolve fe80::1%nowhere: there is no network interface nowhere");
    }

    #[test]
    fn each_address_is_tried_until_one_takes_the_connection() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let open = listener.local_addr().unwrap();
        // Bound, so that no other test can listen there, and not listening.
        let bound: Vec<Socket> = [[127, 0, 0, 1], [127, 0, 0, 2]].into_iter().map(bind).collect();
        let closed: Vec<SocketAddr> =
            bound.iter().map(|socket| socket.local_addr().unwrap().as_socket().unwrap()).collect();
        assert_eq!(first_that_connects(&[closed[0], open]), Ok(open));
        let refused = first_that_connects(&closed);
        assert_eq!(refused.unwrap_err(), "127.0.0.1 connection refused, 127.0.0.2 connection refused");
    }

    fn bind(address: [u8; 4]) -> Socket {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((address, 0)).into()).unwrap();
        socket
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for bad in [
            "",
            "127.0.0.1:8080",
            "https://127.0.0.1/",
            "ftp://127.0.0.1/",
            "http://",
            "http:///path",
            "http://host:0/",
            "http://host:65536/",
            "http://host:x/",
            "http://[::1/",
            "http://[host]:80/",
            "http://[::1%25]:80/",
            "http://[::1]80/",
            "http://user@host/",
            "http://host/a b",
            "http://unix:a.sock:/",
            "http://host/\r\nX: y",
        ] {
            assert!(bad.parse::<Target>().is_err(), "{bad:?} was accepted");
        }
    }
}
