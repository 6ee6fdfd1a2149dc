//! Options of the levels `IPPROTO_IP`, `IPPROTO_IPV6`, `IPPROTO_TCP` and `IPPROTO_UDPLITE` (ip(7), ipv6(7), tcp(7),
//! udplite(7)).
//!
//! Most have no effect where no packet is sent; their values are range-checked, stored and reported back, as programs
//! may check.

use crate::error::{Errno, Result};
use crate::kernel::cred::{CAP_NET_ADMIN, CAP_NET_RAW};
use crate::kernel::Task;
use parking_lot::Mutex;

/// The properties of a socket that decide which options it has.
#[derive(Clone, Copy)]
pub struct Shape {
    pub v6: bool,
    pub tcp: bool,
    pub lite: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// An integer within the limits; others give `EINVAL`.
    Int(i32, i32),
    /// Any integer, stored as 0 or 1.
    Bool,
    /// A hop limit: -1 stands for the default.
    Hops,
    /// A boolean; setting it needs `CAP_NET_ADMIN` or `CAP_NET_RAW`.
    Privileged,
}
use Kind::*;

struct OptionRow {
    level: i32,
    name: i32,
    default: i32,
    kind: Kind,
}

const fn o(level: i32, name: i32, default: i32, kind: Kind) -> OptionRow {
    OptionRow { level, name, default, kind }
}

const IP: i32 = libc::IPPROTO_IP;
const V6: i32 = libc::IPPROTO_IPV6;
const TCP: i32 = libc::IPPROTO_TCP;
const ANY: Kind = Int(i32::MIN, i32::MAX);
const HOPS: i32 = 64;
/// Constants that the libc crate lacks.
const IP_MULTICAST_ALL: i32 = 49;
const IP_CHECKSUM: i32 = 23;
const IP_NODEFRAG: i32 = 22;
const IP_RECVFRAGSIZE: i32 = 25;
const TCP_THIN_LINEAR_TIMEOUTS: i32 = 16;
const TCP_THIN_DUPACK: i32 = 17;
const TCP_SAVE_SYN: i32 = 27;
const IPV6_AUTOFLOWLABEL: i32 = 70;
const IPV6_MINHOPCOUNT: i32 = 73;
const IPV6_RECVFRAGSIZE: i32 = 77;
const IPV6_MULTICAST_ALL: i32 = 29;

static KNOWN: &[OptionRow] = &[
    o(IP, libc::IP_TOS, 0, Int(0, 255)),
    o(IP, libc::IP_TTL, HOPS, Hops),
    o(IP, libc::IP_RECVTOS, 0, Bool),
    o(IP, libc::IP_RECVTTL, 0, Bool),
    o(IP, libc::IP_RECVOPTS, 0, Bool),
    o(IP, libc::IP_RETOPTS, 0, Bool),
    o(IP, libc::IP_RECVERR, 0, Bool),
    o(IP, libc::IP_PKTINFO, 0, Bool),
    o(IP, libc::IP_MTU_DISCOVER, 1, Int(0, 5)),
    o(IP, libc::IP_FREEBIND, 0, Bool),
    o(IP, libc::IP_MINTTL, 0, Int(0, 255)),
    o(IP, IP_NODEFRAG, 0, Bool),
    o(IP, IP_CHECKSUM, 0, Bool),
    o(IP, libc::IP_BIND_ADDRESS_NO_PORT, 0, Bool),
    o(IP, IP_RECVFRAGSIZE, 0, Bool),
    o(IP, libc::IP_RECVORIGDSTADDR, 0, Bool),
    o(IP, libc::IP_TRANSPARENT, 0, Privileged),
    o(IP, libc::IP_MULTICAST_TTL, 1, Hops),
    o(IP, libc::IP_MULTICAST_LOOP, 1, Bool),
    o(IP, IP_MULTICAST_ALL, 1, Bool),
    o(V6, libc::IPV6_V6ONLY, 0, Bool),
    o(V6, libc::IPV6_UNICAST_HOPS, HOPS, Hops),
    o(V6, libc::IPV6_MULTICAST_HOPS, 1, Hops),
    o(V6, libc::IPV6_MULTICAST_LOOP, 1, Bool),
    o(V6, IPV6_MULTICAST_ALL, 1, Bool),
    o(V6, libc::IPV6_TCLASS, 0, Int(-1, 255)),
    o(V6, libc::IPV6_RECVPKTINFO, 0, Bool),
    o(V6, libc::IPV6_RECVHOPLIMIT, 0, Bool),
    o(V6, libc::IPV6_RECVTCLASS, 0, Bool),
    o(V6, libc::IPV6_RECVRTHDR, 0, Bool),
    o(V6, libc::IPV6_RECVHOPOPTS, 0, Bool),
    o(V6, libc::IPV6_RECVDSTOPTS, 0, Bool),
    o(V6, libc::IPV6_RECVPATHMTU, 0, Bool),
    o(V6, IPV6_RECVFRAGSIZE, 0, Bool),
    o(V6, libc::IPV6_RECVORIGDSTADDR, 0, Bool),
    o(V6, libc::IPV6_RECVERR, 0, Bool),
    o(V6, libc::IPV6_MTU_DISCOVER, 1, Int(0, 5)),
    o(V6, libc::IPV6_DONTFRAG, 0, Bool),
    o(V6, libc::IPV6_FREEBIND, 0, Bool),
    o(V6, libc::IPV6_TRANSPARENT, 0, Privileged),
    o(V6, IPV6_AUTOFLOWLABEL, 1, Bool),
    o(V6, IPV6_MINHOPCOUNT, 0, Int(0, 255)),
    o(TCP, libc::TCP_NODELAY, 0, Bool),
    o(TCP, libc::TCP_CORK, 0, Bool),
    o(TCP, libc::TCP_KEEPIDLE, 7200, Int(1, 32767)),
    o(TCP, libc::TCP_KEEPINTVL, 75, Int(1, 32767)),
    o(TCP, libc::TCP_KEEPCNT, 9, Int(1, 127)),
    o(TCP, libc::TCP_SYNCNT, 6, Int(1, 127)),
    o(TCP, libc::TCP_LINGER2, 60, ANY),
    o(TCP, libc::TCP_DEFER_ACCEPT, 0, ANY),
    o(TCP, libc::TCP_WINDOW_CLAMP, 0, Int(0, i32::MAX)),
    o(TCP, libc::TCP_QUICKACK, 1, Bool),
    o(TCP, libc::TCP_USER_TIMEOUT, 0, Int(0, i32::MAX)),
    o(TCP, TCP_THIN_LINEAR_TIMEOUTS, 0, Int(0, 1)),
    o(TCP, TCP_THIN_DUPACK, 0, Int(0, 1)),
    o(TCP, libc::TCP_NOTSENT_LOWAT, 0, ANY),
    o(TCP, TCP_SAVE_SYN, 0, Int(0, 2)),
    o(TCP, libc::TCP_MAXSEG, 0, Int(88, 32767)),
    // UDPLITE_SEND_CSCOV, UDPLITE_RECV_CSCOV.
    o(libc::IPPROTO_UDPLITE, 10, 0, Int(0, 65535)),
    o(libc::IPPROTO_UDPLITE, 11, 0, Int(0, 65535)),
];

fn known(level: i32, name: i32) -> Option<&'static OptionRow> {
    KNOWN.iter().find(|k| k.level == level && k.name == name)
}

/// The options of a socket that differ from their defaults.
#[derive(Default)]
pub struct IpOpts {
    set: Mutex<Vec<(i32, i32, i32)>>,
}

/// Parses an integer as the IP level takes it: an `int`, or one byte.
fn number(value: &[u8]) -> i32 {
    match value {
        [a, b, c, d, ..] => i32::from_ne_bytes([*a, *b, *c, *d]),
        [a, ..] => i32::from(*a),
        [] => 0,
    }
}

impl IpOpts {
    pub fn get(&self, level: i32, name: i32) -> Option<i32> {
        let k = known(level, name)?;
        let set = self.set.lock().iter().find(|(l, n, _)| (*l, *n) == (level, name)).map(|(_, _, v)| *v);
        Some(set.unwrap_or(k.default))
    }
    pub fn on(&self, level: i32, name: i32) -> bool {
        self.get(level, name).is_some_and(|v| v != 0)
    }
    fn put(&self, level: i32, name: i32, value: i32) {
        let mut set = self.set.lock();
        match set.iter_mut().find(|(l, n, _)| (*l, *n) == (level, name)) {
            Some(e) => e.2 = value,
            None => set.push((level, name, value)),
        }
    }
    /// The options that an accepted connection takes over from its listener.
    pub fn inherit(&self) -> Self {
        IpOpts { set: Mutex::new(self.set.lock().clone()) }
    }

    pub fn set(&self, shape: Shape, task: &Task, level: i32, name: i32, value: &[u8]) -> Result<()> {
        check_level(shape, level)?;
        let k = known(level, name).ok_or(Errno::ENOPROTOOPT)?;
        if (level == TCP || level == V6) && value.len() < 4 {
            return Err(Errno::EINVAL);
        }
        let mut v = number(value);
        match k.kind {
            Int(low, high) if !(low..=high).contains(&v) => return Err(Errno::EINVAL),
            Int(..) => {}
            Bool => v = i32::from(v != 0),
            Hops => {
                let low = if level == IP && name == libc::IP_TTL { 1 } else { 0 };
                if v != -1 && !(low..=255).contains(&v) {
                    return Err(Errno::EINVAL);
                }
                if v == -1 {
                    v = k.default;
                }
            }
            Privileged => {
                let c = task.cred();
                if v != 0 && !c.has(CAP_NET_ADMIN) && !c.has(CAP_NET_RAW) {
                    return Err(Errno::EPERM);
                }
                v = i32::from(v != 0);
            }
        }
        if (level, name) == (V6, libc::IPV6_TCLASS) {
            v = v.max(0);
        }
        if (level, name) == (IP, libc::IP_TOS) && shape.tcp {
            // TCP manages the two ECN bits itself.
            v &= !3;
        }
        self.put(level, name, v);
        Ok(())
    }

    pub fn show(&self, shape: Shape, level: i32, name: i32) -> Result<Vec<u8>> {
        // On IPv4, getsockopt(2) and setsockopt(2) give different errors for an unknown level.
        check_level(shape, level).map_err(|e| if shape.v6 { e } else { Errno::EOPNOTSUPP })?;
        match self.get(level, name) {
            Some(v) => Ok(v.to_ne_bytes().to_vec()),
            None => Err(Errno::ENOPROTOOPT),
        }
    }
}

fn check_level(shape: Shape, level: i32) -> Result<()> {
    let there = match level {
        IP => true,
        V6 => shape.v6,
        TCP => shape.tcp,
        libc::IPPROTO_UDPLITE => shape.lite,
        _ => false,
    };
    if there {
        Ok(())
    } else {
        Err(Errno::ENOPROTOOPT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_levels() {
        let o = IpOpts::default();
        let four = Shape { v6: false, tcp: false, lite: false };
        assert_eq!(o.show(four, IP, libc::IP_TTL), Ok(64i32.to_ne_bytes().to_vec()));
        assert_eq!(o.show(four, V6, libc::IPV6_V6ONLY), Err(Errno::EOPNOTSUPP));
        assert_eq!(o.show(four, TCP, libc::TCP_NODELAY), Err(Errno::EOPNOTSUPP));
        assert_eq!(check_level(four, TCP), Err(Errno::ENOPROTOOPT));
        o.put(IP, libc::IP_TTL, 3);
        assert_eq!(o.inherit().get(IP, libc::IP_TTL), Some(3));
        let mut seen: Vec<_> = KNOWN.iter().map(|k| (k.level, k.name)).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), KNOWN.len());
    }
}
