//! The addresses to connect from.

use std::net::IpAddr;
use std::str::FromStr;

/// Addresses taken in turn; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sources {
    pub addresses: Vec<IpAddr>,
}

/// More than a server has ports for; a larger block is a typing error.
const MAX_ADDRESSES: u128 = 65_536;

impl Sources {
    pub fn turn(&self, number: u64) -> IpAddr {
        self.addresses[(number % self.addresses.len() as u64) as usize]
    }
}

impl FromStr for Sources {
    type Err = String;

    fn from_str(text: &str) -> Result<Sources, String> {
        let mut addresses = Vec::new();
        for part in text.split(',') {
            match part.split_once('/') {
                Some((base, bits)) => addresses.extend(block(base, bits)?),
                None => addresses.push(address(part)?),
            }
        }
        let v4 = addresses.iter().filter(|address| address.is_ipv4()).count();
        if v4 != 0 && v4 != addresses.len() {
            return Err("addresses of IPv4 and IPv6 do not mix: the server has one of them".into());
        }
        Ok(Sources { addresses })
    }
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an IP address"))
}

/// All addresses of a block, the network's and the broadcast's too: on the loopback both are usable.
fn block(base: &str, bits: &str) -> Result<Vec<IpAddr>, String> {
    let (width, number) = match address(base)? {
        IpAddr::V4(base) => (32, u128::from(u32::from(base))),
        IpAddr::V6(base) => (128, u128::from(base)),
    };
    let bits: u32 = bits.parse().ok().filter(|&bits| bits <= width).ok_or(format!("/{bits} is not a prefix length"))?;
    let count = 1u128.checked_shl(width - bits).filter(|&count| count <= MAX_ADDRESSES);
    let count = count.ok_or(format!("{base}/{bits} has more than {MAX_ADDRESSES} addresses"))?;
    let first = number & !(count - 1);
    let nth = |n: u128| if width == 32 { IpAddr::V4((n as u32).into()) } else { IpAddr::V6(n.into()) };
    Ok((0..count).map(|i| nth(first | i)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_blocks_are_read_and_taken_in_turn() {
        let sources: Sources = "127.0.0.9,127.1.0.7/30".parse().unwrap();
        let text: Vec<String> = sources.addresses.iter().map(IpAddr::to_string).collect();
        assert_eq!(text, ["127.0.0.9", "127.1.0.4", "127.1.0.5", "127.1.0.6", "127.1.0.7"]);
        assert_eq!(sources.turn(6), sources.addresses[1]);
        let sources: Sources = "::1".parse().unwrap();
        assert_eq!(sources.addresses.len(), 1);
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for bad in ["", "localhost", "127.0.0.1/33", "10.0.0.0/8", "::/0", "127.0.0.1,::1", "127.0.0.1/x"] {
            assert!(bad.parse::<Sources>().is_err(), "{bad:?} was accepted");
        }
    }
}
