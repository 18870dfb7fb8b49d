//! The URL, taken apart, and the address behind it.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The parts of the URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Without the brackets of an IPv6 address.
    pub host: String,
    pub port: u16,
    /// What stands in the `Host` header: host and port as in the URL.
    pub authority: String,
    /// Path and query, at least `/`.
    pub path: String,
    /// The Unix socket to connect to, instead of host and port.
    pub unix: Option<PathBuf>,
}

impl Target {
    /// The root of the server at this address.
    pub fn at(address: SocketAddr) -> Target {
        Target {
            host: address.ip().to_string(),
            port: address.port(),
            authority: address.to_string(),
            path: "/".into(),
            unix: None,
        }
    }

    /// The URL again, without its fragment.
    pub fn url(&self) -> String {
        match &self.unix {
            Some(socket) => format!("http://unix:{}:{}", socket.display(), self.path),
            None => format!("http://{}{}", self.authority, self.path),
        }
    }

    /// The address to connect to. Of several the first IPv4 one, since the servers listen on 127.0.0.1 by
    /// default and `localhost` is often ::1 first.
    pub fn resolve(&self) -> Result<SocketAddr, String> {
        let addresses: Vec<SocketAddr> = (self.host.as_str(), self.port)
            .to_socket_addrs()
            .map_err(|error| format!("resolve {}: {error}; is the name right?", self.host))?
            .collect();
        let first_v4 = addresses.iter().find(|address| address.is_ipv4());
        first_v4
            .or(addresses.first())
            .copied()
            .ok_or_else(|| format!("resolve {}: the name has no address", self.host))
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(url: &str) -> Result<Target, String> {
        let (scheme, rest) =
            url.split_once("://").ok_or("a URL looks like http://HOST:PORT/PATH; the scheme is missing")?;
        match scheme.to_ascii_lowercase().as_str() {
            "http" => {}
            "https" => {
                return Err("https is not spoken here, only http: measure the server behind the TLS".into());
            }
            _ => return Err(format!("{scheme} is not spoken here, only http")),
        }
        // Anything else in the request line would be a second request (RFC 3986: a URL is printable ASCII).
        if !rest.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("a URL holds no spaces, control or non-ASCII characters; write them as %20".into());
        }
        let rest = rest.split('#').next().unwrap_or(rest);
        if let Some(rest) = rest.strip_prefix("unix:") {
            return unix_target(rest);
        }
        let path_at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(path_at);
        let (host, port) = split_authority(authority)?;
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Target { host, port, authority: authority.into(), path: format!("{slash}{path}"), unix: None })
    }
}

/// `/path/to/socket:/path?query`, as nginx writes it. The host is what curl sends for a socket without a name.
fn unix_target(text: &str) -> Result<Target, String> {
    let (socket, path) = text.split_once(':').unwrap_or((text, "/"));
    if !Path::new(socket).is_absolute() {
        return Err("a Unix socket stands in a URL like http://unix:/path/to/socket:/path".into());
    }
    let slash = if path.starts_with('/') { "" } else { "/" };
    Ok(Target {
        host: "localhost".into(),
        port: 80,
        authority: "localhost".into(),
        path: format!("{slash}{path}"),
        unix: Some(socket.into()),
    })
}

fn split_authority(authority: &str) -> Result<(String, u16), String> {
    if authority.contains('@') {
        return Err("user and password in a URL are not supported".into());
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or("the ] after the IPv6 address is missing")?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| format!("[{host}] is not an IPv6 address"))?;
            (host, port)
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    if host.is_empty() {
        return Err("the URL names no host".into());
    }
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().ok().filter(|&port| port > 0).ok_or("a port lies between 1 and 65535")?,
        None if port.is_empty() => 80,
        None => return Err(format!("{port:?} after the address is not a port")),
    };
    Ok((host.into(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

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
