//! `NETLINK_ROUTE` (rtnetlink(7)): describes `lo` and its routes, sets `lo` up or down, and adds its address.

use super::msg::{attributes, Header, Reply, NLM_F_DUMP, NLM_F_MULTI};
use crate::error::{Errno, Result};
use crate::kernel::cred::CAP_NET_ADMIN;
use crate::kernel::Cred;
use crate::net::device::{lo_flags, LO_INDEX, LO_MTU, LO_NAME, LO_TXQLEN};
use crate::net::NetNs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_GETNEIGH: u16 = 30;
const RTM_NEWRULE: u16 = 32;
const RTM_GETRULE: u16 = 34;
const RTM_GETNEIGHTBL: u16 = 66;
const RTM_GETADDRLABEL: u16 = 74;
const RTM_NEWNSID: u16 = 88;
const RTM_GETNSID: u16 = 90;
/// Message types come in groups of four: new, delete, get, set.
const RTM_BASE: u16 = 16;
const GET: u16 = 2;

const IFF_LOWER_UP: u32 = 0x1_0000;
const IFLA_IFNAME: u16 = 3;
const IFLA_STATS_LEN: usize = 96;
const IFLA_STATS64_LEN: usize = 200;
const SCOPE_HOST: u8 = 254;
const SCOPE_LINK: u8 = 253;
const TABLE_LOCAL: u8 = 255;
const TABLE_MAIN: u8 = 254;
const PROTO_KERNEL: u8 = 2;
const AF_ANY: u8 = libc::AF_UNSPEC as u8;
const AF4: u8 = libc::AF_INET as u8;
const AF6: u8 = libc::AF_INET6 as u8;

/// Answers a request into `out`; true for a dump, which ends with `NLMSG_DONE`.
pub fn answer(net: &NetNs, cred: &Cred, h: &Header, body: &[u8], out: &mut Reply) -> Result<bool> {
    if h.kind < RTM_BASE {
        return Ok(false);
    }
    let dump = h.flags & NLM_F_DUMP == NLM_F_DUMP && (h.kind - RTM_BASE) % 4 == GET;
    if (h.kind - RTM_BASE) % 4 != GET {
        if !cred.capable_in(&net.common.owner(), CAP_NET_ADMIN) {
            return Err(Errno::EPERM);
        }
        return change(net, cred, h.kind, body).map(|()| false);
    }
    let family = body.first().copied().unwrap_or(AF_ANY);
    if !dump {
        match h.kind {
            RTM_GETLINK => one_link(net, body, out)?,
            RTM_GETROUTE if !net.is_up() => return Err(Errno::ENETUNREACH),
            RTM_GETROUTE => one_route(body, out)?,
            RTM_GETNSID => {
                // Other namespaces have no number here.
                out.begin(RTM_NEWNSID, 0, &[AF_ANY, 0, 0, 0]);
                out.attr_u32(1, u32::MAX);
            }
            _ => return Err(Errno::EOPNOTSUPP),
        }
        return Ok(false);
    }
    match h.kind {
        RTM_GETLINK => link(net, out, NLM_F_MULTI),
        RTM_GETROUTE if !net.is_up() => {}
        RTM_GETADDR => addresses(net, family, out),
        RTM_GETROUTE => routes(family, out),
        RTM_GETRULE => rules(family, out),
        RTM_GETNEIGH | RTM_GETNEIGHTBL | RTM_GETADDRLABEL | RTM_GETNSID => {}
        _ => return Err(Errno::EOPNOTSUPP),
    }
    Ok(true)
}

/// Carries out the supported changes: `lo` up or down, and its address.
fn change(net: &NetNs, cred: &Cred, kind: u16, body: &[u8]) -> Result<()> {
    let word = |at: usize| body.get(at..).and_then(|b| b.first_chunk()).map(|c| u32::from_ne_bytes(*c));
    if kind == RTM_NEWADDR {
        return add_address(net, body);
    }
    if !matches!(kind, RTM_NEWLINK | RTM_SETLINK) {
        return Err(Errno::EOPNOTSUPP);
    }
    let (Some(index), Some(flags), Some(mask)) = (word(4), word(8), word(12)) else { return Err(Errno::EINVAL) };
    let rest = body.get(16..).unwrap_or(&[]);
    let named = attributes(rest).all(|(k, v)| k == IFLA_IFNAME && is_lo(v));
    if index != LO_INDEX as u32 && !(index == 0 && named && !rest.is_empty()) {
        return Err(Errno::ENODEV);
    }
    let up = libc::IFF_UP as u32;
    if named && mask & !up == 0 {
        // Old programs leave the mask 0.
        return if mask == 0 && flags & up == 0 { Ok(()) } else { net.set_up(cred, flags & up != 0) };
    }
    Err(Errno::EOPNOTSUPP)
}

/// Adds an address to `lo`: only 127.0.0.1/8, the one that it also gets when it is set up.
fn add_address(net: &NetNs, body: &[u8]) -> Result<()> {
    const IFA_ADDRESS: u16 = 1;
    const IFA_LOCAL: u16 = 2;
    let [family, prefix, _, _, index @ ..] = body.first_chunk::<8>().ok_or(Errno::EINVAL)?;
    if i32::from_ne_bytes(*index) != LO_INDEX {
        return Err(Errno::ENODEV);
    }
    let mut values = attributes(body.get(8..).unwrap_or(&[])).filter(|(k, _)| matches!(*k, IFA_ADDRESS | IFA_LOCAL));
    if *family != AF4 || *prefix != 8 || !values.all(|(_, v)| v == [127, 0, 0, 1]) {
        return Err(Errno::EOPNOTSUPP);
    }
    net.add_address()
}

fn is_lo(name: &[u8]) -> bool {
    name.split(|&b| b == 0).next() == Some(LO_NAME)
}

fn one_link(net: &NetNs, body: &[u8], out: &mut Reply) -> Result<()> {
    let index = body.get(4..8).and_then(|b| b.first_chunk()).map_or(0, |c| i32::from_ne_bytes(*c));
    let by_name = || attributes(body.get(16..).unwrap_or(&[])).find(|(k, _)| *k == IFLA_IFNAME).map(|(_, v)| is_lo(v));
    let found = if index > 0 { index == LO_INDEX } else { by_name().ok_or(Errno::EINVAL)? };
    if !found {
        return Err(Errno::ENODEV);
    }
    link(net, out, 0);
    Ok(())
}

fn link(net: &NetNs, out: &mut Reply, flags: u16) {
    let up = net.is_up();
    let mut fixed = vec![AF_ANY, 0];
    fixed.extend_from_slice(&libc::ARPHRD_LOOPBACK.to_ne_bytes());
    fixed.extend_from_slice(&LO_INDEX.to_ne_bytes());
    fixed.extend_from_slice(&(lo_flags(net) | if up { IFF_LOWER_UP } else { 0 }).to_ne_bytes());
    fixed.extend_from_slice(&0u32.to_ne_bytes());
    out.begin(RTM_NEWLINK, flags, &fixed);
    // IFLA_* of linux/if_link.h.
    out.attr(IFLA_IFNAME, b"lo\0");
    out.attr_u32(13, LO_TXQLEN as u32);
    // Operational state: unknown (as of every loopback that is up), or down.
    out.attr(16, &[if up { 0 } else { 2 }]);
    out.attr(17, &[0]);
    out.attr_u32(4, LO_MTU as u32);
    out.attr_u32(50, 0);
    out.attr_u32(51, 0);
    out.attr_u32(27, 0);
    out.attr_u32(30, 0);
    out.attr_u32(31, 1);
    out.attr_u32(40, 65535);
    out.attr_u32(41, 65536);
    out.attr_u32(32, 1);
    out.attr(33, &[1]);
    out.attr(6, if up { b"noqueue\0".as_slice() } else { b"noop\0" });
    out.attr_u32(35, 0);
    out.attr(1, &[0; 6]);
    out.attr(2, &[0; 6]);
    out.attr(23, &[0; IFLA_STATS64_LEN]);
    out.attr(7, &[0; IFLA_STATS_LEN]);
}

fn addresses(net: &NetNs, family: u8, out: &mut Reply) {
    const PERMANENT: u8 = 0x80;
    let mut cache = [0xff; 16];
    cache[8..].fill(0);
    let head = |af: u8, prefix: u8, out: &mut Reply| {
        let mut fixed = vec![af, prefix, PERMANENT, SCOPE_HOST];
        fixed.extend_from_slice(&LO_INDEX.to_ne_bytes());
        out.begin(RTM_NEWADDR, NLM_F_MULTI, &fixed);
    };
    // IFA_* of linux/if_addr.h.
    if net.has_address() && (family == AF_ANY || family == AF4) {
        head(AF4, 8, out);
        out.attr(1, &[127, 0, 0, 1]);
        out.attr(2, &[127, 0, 0, 1]);
        out.attr(3, b"lo\0");
        out.attr_u32(8, PERMANENT.into());
        out.attr(6, &cache);
    }
    if net.is_up() && (family == AF_ANY || family == AF6) {
        head(AF6, 128, out);
        out.attr(1, &Ipv6Addr::LOCALHOST.octets());
        out.attr(6, &cache);
        out.attr_u32(8, PERMANENT.into());
    }
}

struct Route {
    dst: IpAddr,
    prefix: u8,
    table: u8,
    scope: u8,
    /// `RTN_*`.
    kind: u8,
    metric: Option<u32>,
}

const LOCAL: u8 = 2;
const BROADCAST: u8 = 3;

fn table() -> [Route; 4] {
    let v4 = |a: [u8; 4], prefix, scope, kind| Route {
        dst: Ipv4Addr::from(a).into(),
        prefix,
        table: TABLE_LOCAL,
        scope,
        kind,
        metric: None,
    };
    [
        v4([127, 0, 0, 0], 8, SCOPE_HOST, LOCAL),
        v4([127, 0, 0, 1], 32, SCOPE_HOST, LOCAL),
        v4([127, 255, 255, 255], 32, SCOPE_LINK, BROADCAST),
        Route {
            dst: Ipv6Addr::LOCALHOST.into(),
            prefix: 128,
            table: TABLE_LOCAL,
            scope: 0,
            kind: LOCAL,
            metric: Some(0),
        },
    ]
}

fn put_route(r: &Route, flags: u16, rtm_flags: u32, out: &mut Reply) {
    let af = if r.dst.is_ipv4() { AF4 } else { AF6 };
    let mut fixed = vec![af, r.prefix, 0, 0, r.table, PROTO_KERNEL, r.scope, r.kind];
    fixed.extend_from_slice(&rtm_flags.to_ne_bytes());
    out.begin(RTM_NEWROUTE, flags, &fixed);
    // RTA_* of linux/rtnetlink.h.
    out.attr_u32(15, r.table.into());
    match r.dst {
        IpAddr::V4(a) => out.attr(1, &a.octets()),
        IpAddr::V6(a) => out.attr(1, &a.octets()),
    }
    if let Some(m) = r.metric {
        out.attr_u32(6, m);
    }
    if r.dst.is_ipv4() {
        out.attr(7, &[127, 0, 0, 1]);
    }
    out.attr_u32(4, LO_INDEX as u32);
    if r.dst.is_ipv6() {
        // RTA_PREF: medium preference.
        out.attr(20, &[0]);
    }
}

fn routes(family: u8, out: &mut Reply) {
    for r in table() {
        let af = if r.dst.is_ipv4() { AF4 } else { AF6 };
        if family == AF_ANY || family == af {
            put_route(&r, NLM_F_MULTI, 0, out);
        }
    }
}

/// `ip route get`.
fn one_route(body: &[u8], out: &mut Reply) -> Result<()> {
    const CLONED: u32 = 0x200;
    const LOCAL_ROUTE: u32 = 1 << 31;
    let dst = attributes(body.get(12..).unwrap_or(&[])).find(|(k, _)| *k == 1).map(|(_, v)| v);
    let (ip, prefix): (IpAddr, u8) = match (body.first(), dst) {
        (Some(&AF4), Some(v)) => (Ipv4Addr::from(*v.first_chunk().ok_or(Errno::EINVAL)?).into(), 32),
        (Some(&AF6), Some(v)) => (Ipv6Addr::from(*v.first_chunk().ok_or(Errno::EINVAL)?).into(), 128),
        _ => return Err(Errno::EINVAL),
    };
    if !ip.is_loopback() {
        return Err(Errno::ENETUNREACH);
    }
    let r = Route { dst: ip, prefix, table: TABLE_MAIN, scope: 0, kind: LOCAL, metric: None };
    put_route(&r, 0, CLONED | LOCAL_ROUTE, out);
    Ok(())
}

/// The rules of a new network namespace.
fn rules(family: u8, out: &mut Reply) {
    const TO_TABLE: u8 = 1;
    const TABLE_DEFAULT: u8 = 253;
    for (af, tables) in [
        (AF4, &[(0u32, TABLE_LOCAL), (32766, TABLE_MAIN), (32767, TABLE_DEFAULT)][..]),
        (AF6, &[(0, TABLE_LOCAL), (32766, TABLE_MAIN)]),
    ] {
        if family != AF_ANY && family != af {
            continue;
        }
        for (priority, table) in tables {
            out.begin(RTM_NEWRULE, NLM_F_MULTI, &[af, 0, 0, 0, *table, 0, 0, TO_TABLE, 0, 0, 0, 0]);
            // FRA_TABLE, FRA_PRIORITY.
            out.attr_u32(15, (*table).into());
            out.attr_u32(6, *priority);
        }
    }
}
