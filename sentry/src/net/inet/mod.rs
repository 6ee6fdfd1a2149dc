//! AF_INET and AF_INET6 on a host whose only interface is `lo` (`127.0.0.0/8`, `::1`). No packets are built: data goes
//! from queue to queue.
//!
//! * [`addr`]: addresses and how they route.
//! * [`ports`]: the port tables.
//! * [`tcp`]: sockets that connect and listen; [`conn`]: a connection.
//! * [`udp`]: datagrams; [`mcast`]: groups.
//! * [`opts`], [`tcp_info`]: socket options.
//!
//! Raw and ICMP sockets do not exist, and neither does `TIME_WAIT`: a port is free when its last socket is closed.

pub mod addr;
pub mod conn;
pub mod mcast;
pub mod opts;
pub mod ports;
pub mod tcp;
mod tcp_info;
pub mod udp;

use super::socket::{Proto, Socket};
use crate::error::{Errno, Result};
use crate::kernel::cred::CAP_NET_RAW;
use crate::kernel::Task;

pub const SIOCATMARK: u32 = 0x8905;
/// MTU of `lo` as IPv4 and IPv6 sockets see it.
const MTU_V4: i32 = 65535;
const MTU_V6: i32 = 65536;
/// One more than the highest protocol number (`IPPROTO_MAX`).
const PROTO_MAX: i32 = 263;

/// The ports of a network namespace.
#[derive(Default)]
pub struct InetNs {
    pub tcp: ports::Table<tcp::Inner>,
    pub udp: ports::Table<udp::Inner>,
    pub udplite: ports::Table<udp::Inner>,
}

/// Creates a socket for socket(2); returns its protocol number too.
pub fn create(task: &Task, v6: bool, kind: i32, protocol: i32) -> Result<(i32, Box<dyn Proto>)> {
    if !(0..PROTO_MAX).contains(&protocol) {
        return Err(Errno::EINVAL);
    }
    let icmp = if v6 { libc::IPPROTO_ICMPV6 } else { libc::IPPROTO_ICMP };
    match (kind, protocol) {
        (libc::SOCK_STREAM, 0 | libc::IPPROTO_TCP) => Ok((libc::IPPROTO_TCP, Box::new(tcp::Tcp::new(task, v6)))),
        (libc::SOCK_DGRAM, 0 | libc::IPPROTO_UDP) => Ok((libc::IPPROTO_UDP, Box::new(udp::Udp::new(task, v6, false)))),
        (libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE) => Ok((protocol, Box::new(udp::Udp::new(task, v6, true)))),
        // `net.ipv4.ping_group_range` is empty.
        (libc::SOCK_DGRAM, p) if p == icmp => Err(Errno::EACCES),
        (libc::SOCK_STREAM | libc::SOCK_DGRAM, _) | (libc::SOCK_RAW, 0) => Err(Errno::EPROTONOSUPPORT),
        (libc::SOCK_RAW, _) if !task.cred().capable_in(&task.ns().net.common.owner(), CAP_NET_RAW) => Err(Errno::EPERM),
        (libc::SOCK_RAW, _) => Err(Errno::EPROTONOSUPPORT),
        _ => Err(Errno::ESOCKTNOSUPPORT),
    }
}

/// An option that all sockets of the family report alike.
fn get_opt(
    o: &opts::IpOpts,
    shape: opts::Shape,
    _s: &Socket,
    connected: bool,
    level: i32,
    name: i32,
) -> Result<Vec<u8>> {
    let mtu = |v: i32| if connected { Ok(v.to_ne_bytes().to_vec()) } else { Err(Errno::ENOTCONN) };
    match (level, name) {
        (libc::IPPROTO_IP, libc::IP_MTU) => mtu(MTU_V4),
        (libc::IPPROTO_IPV6, libc::IPV6_MTU) if shape.v6 => mtu(MTU_V6),
        (libc::IPPROTO_IP, libc::IP_OPTIONS) => Ok(Vec::new()),
        _ => o.show(shape, level, name),
    }
}
