//! What a target is, and which of the sockets that listen it means.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use crate::sys::sock_diag::Listener;

/// What is to be inspected, as the user names it.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    Process(i32),
    Port(u16),
    Address(SocketAddr),
    /// The path of a Unix socket; of an abstract one with `@` in front.
    Unix(String),
}

impl Target {
    /// `PID`, `:PORT`, `ADDR:PORT`, or `unix:PATH`. An IPv6 address may name its interface: `[fe80::1%eth0]:80`.
    pub fn parse(text: &str) -> Result<Target, String> {
        let odd = || format!("{text:?} is none of PID, :PORT, ADDR:PORT and unix:PATH");
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Target::Unix(path.to_string()));
        }
        if let Some(port) = text.strip_prefix(':') {
            return port.parse().ok().filter(|&port| port > 0).map(Target::Port).ok_or_else(odd);
        }
        if let Ok(pid) = text.parse::<i32>() {
            return if pid > 0 { Ok(Target::Process(pid)) } else { Err(odd()) };
        }
        with_interface_number(text)?.parse().map(Target::Address).map_err(|_| odd())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Target::Process(pid) => write!(out, "pid {pid}"),
            Target::Port(port) => write!(out, "port {port}"),
            Target::Address(address) => write!(out, "{address}"),
            Target::Unix(path) => write!(out, "unix:{path}"),
        }
    }
}

/// The standard library reads `%2`, and no name.
fn with_interface_number(text: &str) -> Result<String, String> {
    let parts = text.split_once('%').and_then(|(address, rest)| Some((address, rest.split_once(']')?)));
    let Some((address, (name, port))) = parts else { return Ok(text.to_string()) };
    let number = name.parse().or_else(|_| if_nametoindex(name));
    let number =
        number.map_err(|errno: Errno| format!("{text}: no interface {name}: {}", errno.desc().to_lowercase()))?;
    Ok(format!("{address}%{number}]{port}"))
}

/// The addresses among these that a port or an address means. An address that nobody has bound is served by the one
/// that is bound to any address of the machine.
pub fn addresses_of(target: &Target, all: &[Listener]) -> BTreeSet<String> {
    let with = |is_meant: &dyn Fn(&Listener) -> bool| {
        all.iter().filter(|listener| is_meant(listener)).map(|listener| listener.address.clone()).collect()
    };
    match target {
        Target::Process(_) => BTreeSet::new(),
        Target::Port(port) => with(&|listener| listener.ip().is_some_and(|ip| ip.port() == *port)),
        Target::Unix(path) => with(&|listener| listener.address.strip_prefix("unix:") == Some(path)),
        Target::Address(wanted) => {
            let exact: BTreeSet<String> = with(&|listener| listener.ip() == Some(*wanted));
            if !exact.is_empty() {
                return exact;
            }
            with(&|listener| {
                let serves = |ip: IpAddr| ip.is_unspecified() && (ip.is_ipv4() == wanted.is_ipv4() || listener.is_dual);
                listener.ip().is_some_and(|ip| ip.port() == wanted.port() && serves(ip.ip()))
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_process_a_port_an_address_or_a_path() {
        assert_eq!(Target::parse("604"), Ok(Target::Process(604)));
        assert_eq!(Target::parse(":80"), Ok(Target::Port(80)));
        assert_eq!(Target::parse("127.0.0.1:80"), Ok(Target::Address("127.0.0.1:80".parse().unwrap())));
        assert_eq!(Target::parse("unix:/run/x"), Ok(Target::Unix("/run/x".to_string())));
        for odd in ["", "0", "-1", ":0", ":70000", "localhost:80", "1.2.3.4", "[::1]", "80x"] {
            assert!(Target::parse(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn an_ipv6_address_may_name_its_interface() {
        let number = if_nametoindex("lo").expect("every Linux has it");
        let expected: SocketAddr = format!("[fe80::1%{number}]:80").parse().unwrap();
        assert_eq!(Target::parse("[fe80::1%lo]:80"), Ok(Target::Address(expected)));
        assert!(Target::parse("[fe80::1%nowhere0]:80").is_err_and(|why| why.contains("no interface nowhere0")));
    }

    #[test]
    fn an_address_means_the_socket_bound_to_it_or_else_to_any() {
        let listener =
            |address: &str, is_dual| Listener { address: address.to_string(), is_dual, ..Listener::default() };
        let all = [listener("127.0.0.1:80", false), listener("[::]:80", true), listener("0.0.0.0:81", false)];
        let meant = |target: &str| addresses_of(&Target::parse(target).unwrap(), &all).into_iter().collect::<Vec<_>>();
        assert_eq!(meant("127.0.0.1:80"), ["127.0.0.1:80"]);
        assert_eq!(meant("10.0.0.1:80"), ["[::]:80"]);
        assert_eq!(meant("[::1]:81"), [""; 0]);
        assert_eq!(meant(":80"), ["127.0.0.1:80", "[::]:80"]);
    }
}
