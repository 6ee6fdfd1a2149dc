//! Addresses: `sockaddr_in` and `sockaddr_in6`, and the routing decision of a network whose only interface is `lo`.
//!
//! Internally a v4-mapped IPv6 address is always held as its IPv4 address; only [`sockaddr`] maps it back for an
//! AF_INET6 socket.

use crate::error::{Errno, Result};
use crate::net::NetNs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// `sizeof(struct sockaddr_in)`.
pub const SIN_LEN: usize = 16;
/// `sizeof(struct sockaddr_in6)`, and the length without `sin6_scope_id` (RFC 2133), which is accepted too.
pub const SIN6_LEN: usize = 28;
const SIN6_MIN: usize = 24;

pub const V4_LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
pub const V6_LOOPBACK: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// How an address routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The wildcard address.
    Any,
    Local,
    Broadcast,
    Multicast,
    /// No route leads to it.
    Elsewhere,
}

pub fn kind(ip: IpAddr) -> Kind {
    match ip {
        IpAddr::V4(a) if a.is_unspecified() => Kind::Any,
        IpAddr::V4(a) if a == Ipv4Addr::new(127, 255, 255, 255) || a.is_broadcast() => Kind::Broadcast,
        IpAddr::V4(a) if a.is_loopback() => Kind::Local,
        IpAddr::V4(a) if a.is_multicast() => Kind::Multicast,
        IpAddr::V6(a) if a.is_unspecified() => Kind::Any,
        IpAddr::V6(a) if a.is_loopback() => Kind::Local,
        IpAddr::V6(a) if a.is_multicast() => Kind::Multicast,
        _ => Kind::Elsewhere,
    }
}

/// Fails while `lo` is down: then nothing can be sent to `ip`.
pub fn reachable(net: &NetNs, ip: IpAddr) -> Result<()> {
    match ip {
        _ if net.is_up() => Ok(()),
        IpAddr::V4(_) => Err(Errno::ENETUNREACH),
        IpAddr::V6(_) => Err(Errno::EADDRNOTAVAIL),
    }
}

/// The wildcard address of a family.
pub fn any(v6: bool) -> IpAddr {
    if v6 {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    } else {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    }
}

/// The source address of a packet to `dst`.
pub fn source_for(dst: IpAddr) -> IpAddr {
    if dst.is_ipv4() {
        V4_LOOPBACK
    } else {
        V6_LOOPBACK
    }
}

/// `sa_family`; `EINVAL` if the buffer is too short for it.
pub fn family(addr: &[u8]) -> Result<i32> {
    match addr {
        [a, b, ..] => Ok(i32::from(u16::from_ne_bytes([*a, *b]))),
        _ => Err(Errno::EINVAL),
    }
}

/// Parses a whole `sockaddr_in`.
pub fn parse_v4(addr: &[u8]) -> Result<SocketAddr> {
    match addr {
        [_, _, p, q, a, b, c, d, ..] if addr.len() >= SIN_LEN => {
            Ok(SocketAddr::from(([*a, *b, *c, *d], u16::from_be_bytes([*p, *q]))))
        }
        _ => Err(Errno::EINVAL),
    }
}

/// Parses a whole `sockaddr_in6`; a v4-mapped address is returned as IPv4.
pub fn parse_v6(addr: &[u8]) -> Result<SocketAddr> {
    let (Some(&[_, _, p, q]), Some(Ok(ip))) =
        (addr.first_chunk::<4>(), addr.get(8..SIN6_MIN).map(<[u8; 16]>::try_from))
    else {
        return Err(Errno::EINVAL);
    };
    Ok(SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), u16::from_be_bytes([p, q])))
}

/// Parses the address that a call passes to a socket of this family.
pub fn parse(v6: bool, addr: &[u8]) -> Result<SocketAddr> {
    let fam = family(addr)?;
    if v6 {
        if addr.len() < SIN6_MIN {
            return Err(Errno::EINVAL);
        }
        if fam != libc::AF_INET6 {
            return Err(Errno::EAFNOSUPPORT);
        }
        return parse_v6(addr);
    }
    if addr.len() < SIN_LEN {
        return Err(Errno::EINVAL);
    }
    if fam != libc::AF_INET {
        return Err(Errno::EAFNOSUPPORT);
    }
    parse_v4(addr)
}

/// Like [`parse`], for bind(2): an AF_UNSPEC wildcard counts as AF_INET.
pub fn parse_bind(v6: bool, addr: &[u8]) -> Result<SocketAddr> {
    if !v6 && addr.len() >= SIN_LEN && family(addr)? == libc::AF_UNSPEC {
        let a = parse_v4(addr)?;
        return if a.ip().is_unspecified() { Ok(a) } else { Err(Errno::EAFNOSUPPORT) };
    }
    parse(v6, addr)
}

/// Encodes `a` as a `sockaddr` of the socket's family.
pub fn sockaddr(v6: bool, a: SocketAddr) -> Vec<u8> {
    let mut v = Vec::with_capacity(SIN6_LEN);
    if v6 {
        let ip = match a.ip() {
            IpAddr::V4(x) => x.to_ipv6_mapped(),
            IpAddr::V6(x) => x,
        };
        v.extend_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
        v.extend_from_slice(&a.port().to_be_bytes());
        v.extend_from_slice(&[0; 4]);
        v.extend_from_slice(&ip.octets());
        v.extend_from_slice(&[0; 4]);
        return v;
    }
    v.extend_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    v.extend_from_slice(&a.port().to_be_bytes());
    if let IpAddr::V4(x) = a.ip() {
        v.extend_from_slice(&x.octets());
    }
    v.resize(SIN_LEN, 0);
    v
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let four: SocketAddr = "127.0.0.1:80".parse().unwrap();
        let six: SocketAddr = "[::1]:443".parse().unwrap();
        assert_eq!(parse(false, &sockaddr(false, four)), Ok(four));
        assert_eq!(parse(true, &sockaddr(true, six)), Ok(six));
        assert_eq!(parse(true, &sockaddr(true, four)), Ok(four));
        assert_eq!(sockaddr(true, four)[18..20], [255, 255]);
        assert_eq!(parse(true, &sockaddr(false, four)), Err(Errno::EINVAL));
        assert_eq!(parse(false, &sockaddr(true, six)), Err(Errno::EAFNOSUPPORT));
        assert_eq!(parse(false, &[2, 0, 0]), Err(Errno::EINVAL));
        assert_eq!(parse_v6(&[10; 23]), Err(Errno::EINVAL));
        assert_eq!(kind("127.3.2.1".parse().unwrap()), Kind::Local);
        assert_eq!(kind("10.3.2.1".parse().unwrap()), Kind::Elsewhere);
    }
}
