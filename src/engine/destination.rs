//! Which destinations a sandbox may reach through the egress proxy: everything but the host itself and what only links reach.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// A destination that is never connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    host: String,
    what: &'static str,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}, which a sandbox may not reach", self.host.escape_debug(), self.what)
    }
}

/// Why there is no address to connect to.
#[derive(Debug)]
pub enum Failure {
    /// By rule.
    Refused(Refused),
    /// The name has no address here.
    Unresolved(io::Error),
}

/// The addresses of a destination. All of them are allowed: a name that resolves to one that is not is refused whole.
///
/// # Errors
/// [`Failure`].
pub async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>, Failure> {
    let refused = |what| Failure::Refused(Refused { host: host.to_owned(), what });
    if is_this_machine(host) {
        return Err(refused("this machine"));
    }
    let own = own_addresses().map_err(Failure::Unresolved)?;
    // the resolver also reads the forms that are not names: 127.1, 2130706433, 0x7f.1
    let addresses: Vec<SocketAddr> =
        tokio::net::lookup_host((host, port)).await.map_err(Failure::Unresolved)?.collect();
    match addresses.iter().find_map(|address| forbidden(address.ip(), &own)) {
        Some(what) => Err(refused(what)),
        None if addresses.is_empty() => {
            Err(Failure::Unresolved(io::Error::new(io::ErrorKind::NotFound, "no address")))
        }
        None => Ok(addresses),
    }
}

/// What is wrong with a host that is written as an address or as this machine, without asking anybody.
pub fn refused_as_written(host: &str) -> Option<Refused> {
    let refused = |what| Refused { host: host.to_owned(), what };
    if is_this_machine(host) {
        return Some(refused("this machine"));
    }
    let own = own_addresses().ok()?;
    forbidden(host.parse().ok()?, &own).map(refused)
}

fn is_this_machine(host: &str) -> bool {
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

fn own_addresses() -> io::Result<Vec<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs()?;
    Ok(interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        })
        .collect())
}

/// What is wrong with an address, if anything.
fn forbidden(address: IpAddr, own: &[IpAddr]) -> Option<&'static str> {
    let inner = match address {
        IpAddr::V6(v6) => embedded(v6.segments()),
        IpAddr::V4(_) => None,
    };
    if let Some(v4) = inner {
        return forbidden(IpAddr::V4(v4), own);
    }
    if own.contains(&address) {
        return Some("this machine");
    }
    match address {
        IpAddr::V4(v4) if v4.is_loopback() => Some("this machine"),
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("an unspecified address"),
        IpAddr::V4(v4) if v4.is_link_local() => Some("a link-local address"),
        IpAddr::V4(v4) if v4.is_multicast() || v4.octets()[0] >= 240 => {
            Some("a multicast or reserved address")
        }
        IpAddr::V6(v6) if v6.is_loopback() => Some("this machine"),
        IpAddr::V6(v6) if v6.is_unspecified() => Some("an unspecified address"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => Some("a link-local address"),
        IpAddr::V6(v6) if v6.is_multicast() => Some("a multicast or reserved address"),
        _ => None,
    }
}

/// The IPv4 address that an IPv6 one stands for: mapped, compatible, NAT64, 6to4.
fn embedded(segments: [u16; 8]) -> Option<Ipv4Addr> {
    let v4 = |high: u16, low: u16| Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    match segments {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(high, low),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => v4(high, low),
        [0x2002, high, low, ..] => v4(high, low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_host_has_many_names() {
        let own: Vec<IpAddr> = vec!["10.9.8.7".parse().unwrap(), "2001:db8::5".parse().unwrap()];
        for address in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "10.9.8.7",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::ffff:10.9.8.7",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "fe80::1",
            "ff02::1",
            "2001:db8::5",
        ] {
            assert!(forbidden(address.parse().unwrap(), &own).is_some(), "{address}");
        }
        for address in ["1.1.1.1", "10.9.8.6", "192.168.1.1", "2606:4700::1", "::ffff:1.1.1.1"] {
            assert_eq!(forbidden(address.parse().unwrap(), &own), None, "{address}");
        }
    }

    #[tokio::test]
    async fn odd_spellings_of_loopback_are_refused() {
        for host in [
            "localhost",
            "LOCALHOST.",
            "a.localhost",
            "127.1",
            "2130706433",
            "0x7f.1",
            "0",
            "::1",
            "::ffff:127.0.0.1",
        ] {
            let result = resolve(host, 80).await;
            assert!(matches!(result, Err(Failure::Refused(_))), "{host}: {result:?}");
        }
    }
}
