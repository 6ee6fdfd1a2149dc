//! Multicast on `lo`: a socket's group memberships and its outgoing interface (ip(7), ipv6(7)).
//!
//! No route for multicast exists, so a program must name the interface, as on a Linux host whose only interface is
//! `lo`.

use super::addr::{self, Kind};
use crate::error::{Errno, Result};
use crate::net::device::LO_INDEX;
use parking_lot::Mutex;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};

/// `net.ipv4.igmp_max_memberships`.
const MAX_GROUPS: usize = 20;
const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_LEAVE_GROUP: i32 = 45;
/// `sizeof(struct group_req)`.
const GROUP_REQ: usize = 136;

#[derive(Default)]
pub struct Multicast {
    groups: Mutex<Vec<IpAddr>>,
    /// Whether the outgoing interface is set to `lo`, for IPv4 and IPv6; if not, none is set.
    by_lo: [AtomicBool; 2],
}

fn v4(b: &[u8]) -> Option<Ipv4Addr> {
    b.first_chunk::<4>().map(|o| Ipv4Addr::from(*o))
}

fn int(b: Option<&[u8]>) -> Option<i32> {
    b?.first_chunk::<4>().map(|o| i32::from_ne_bytes(*o))
}

/// Whether the part of `struct ip_mreq` or `ip_mreqn` after the group names `lo`.
fn names_lo(rest: &[u8]) -> Result<bool> {
    let address = v4(rest).ok_or(Errno::EINVAL)?;
    Ok(match int(rest.get(4..)) {
        Some(0) | None => addr::kind(address.into()) == Kind::Local,
        Some(i) => i == LO_INDEX,
    })
}

impl Multicast {
    pub fn joined(&self, group: IpAddr) -> bool {
        self.groups.lock().contains(&group)
    }
    /// Whether a packet to `group` has an interface to leave by.
    pub fn routed(&self, group: IpAddr) -> bool {
        self.by_lo[usize::from(group.is_ipv6())].load(Ordering::Relaxed)
    }

    fn join(&self, group: IpAddr, on_lo: bool) -> Result<()> {
        if !group.is_multicast() {
            return Err(Errno::EINVAL);
        }
        if !on_lo {
            return Err(Errno::ENODEV);
        }
        let mut g = self.groups.lock();
        if g.contains(&group) {
            return Err(Errno::EADDRINUSE);
        }
        if g.len() >= MAX_GROUPS {
            return Err(Errno::ENOBUFS);
        }
        g.push(group);
        Ok(())
    }
    fn leave(&self, group: IpAddr) -> Result<()> {
        let mut g = self.groups.lock();
        let at = g.iter().position(|x| *x == group).ok_or(Errno::EADDRNOTAVAIL)?;
        g.remove(at);
        Ok(())
    }

    /// `struct group_req`: an interface and a `sockaddr_storage`.
    fn group_req(&self, level: i32, name: i32, value: &[u8]) -> Result<()> {
        let (Some(index), Some(addr)) = (int(Some(value)), value.get(8..GROUP_REQ)) else { return Err(Errno::EINVAL) };
        let group = match (level, addr::family(addr)?) {
            (libc::IPPROTO_IP, libc::AF_INET) => addr::parse_v4(addr)?,
            (libc::IPPROTO_IPV6, libc::AF_INET6) => addr::parse_v6(addr)?,
            _ => return Err(Errno::EADDRNOTAVAIL),
        };
        if name == MCAST_JOIN_GROUP {
            self.join(group.ip(), index == LO_INDEX)
        } else {
            self.leave(group.ip())
        }
    }

    /// Sets a multicast option. `None`: `name` is not one.
    pub fn set(&self, v6: bool, level: i32, name: i32, value: &[u8]) -> Option<Result<()>> {
        match (level, name) {
            (libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP | libc::IP_DROP_MEMBERSHIP) => {
                let (Some(group), Some(Ok(on_lo))) = (v4(value), value.get(4..).map(names_lo)) else {
                    return Some(Err(Errno::EINVAL));
                };
                let join = name == libc::IP_ADD_MEMBERSHIP;
                Some(if join { self.join(group.into(), on_lo) } else { self.leave(group.into()) })
            }
            (libc::IPPROTO_IP, MCAST_JOIN_GROUP | MCAST_LEAVE_GROUP)
            | (libc::IPPROTO_IPV6, MCAST_JOIN_GROUP | MCAST_LEAVE_GROUP) => Some(self.group_req(level, name, value)),
            (libc::IPPROTO_IP, libc::IP_MULTICAST_IF) => {
                let on = match value.len() {
                    4..8 => v4(value).map(|a| (a.is_unspecified(), addr::kind(a.into()) == Kind::Local)),
                    8.. => value.get(4..).and_then(|r| Some((r.iter().all(|b| *b == 0), names_lo(r).ok()?))),
                    _ => None,
                };
                Some(match on {
                    None => Err(Errno::EINVAL),
                    Some((true, _)) => {
                        self.by_lo[0].store(false, Ordering::Relaxed);
                        Ok(())
                    }
                    Some((_, true)) => {
                        self.by_lo[0].store(true, Ordering::Relaxed);
                        Ok(())
                    }
                    Some(_) => Err(Errno::EADDRNOTAVAIL),
                })
            }
            (libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP | libc::IPV6_DROP_MEMBERSHIP) if v6 => {
                let (Some(group), Some(index)) = (value.first_chunk::<16>(), int(value.get(16..))) else {
                    return Some(Err(Errno::EINVAL));
                };
                let group = IpAddr::V6(Ipv6Addr::from(*group));
                let join = name == libc::IPV6_ADD_MEMBERSHIP;
                Some(if join { self.join(group, index == LO_INDEX) } else { self.leave(group) })
            }
            (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF) if v6 => Some(match int(Some(value)) {
                None => Err(Errno::EINVAL),
                Some(i) if i == 0 || i == LO_INDEX => {
                    self.by_lo[1].store(i != 0, Ordering::Relaxed);
                    Ok(())
                }
                Some(_) => Err(Errno::ENODEV),
            }),
            _ => None,
        }
    }

    pub fn get(&self, v6: bool, level: i32, name: i32) -> Option<Vec<u8>> {
        match (level, name) {
            (libc::IPPROTO_IP, libc::IP_MULTICAST_IF) => Some(vec![0; 4]),
            (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF) if v6 => {
                let i = if self.by_lo[1].load(Ordering::Relaxed) { LO_INDEX } else { 0 };
                Some(i.to_ne_bytes().to_vec())
            }
            _ => None,
        }
    }
}
