//! Sockets and polling: addresses, messages, sets of descriptors.

use super::flags;
use super::show::*;
use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

/// A socket address of `len` bytes.
fn address(view: &View<'_>, addr: u64, len: u64, out: &mut String) {
    let len = len.min(128) as usize;
    let Some(s) = view.raw(addr, len).filter(|_| len >= 2) else { return pointer(addr, out) };
    out.push_str("{sa_family=");
    one(flags::FAMILY, s.u16(0), out);
    match s.u16(0) as i32 {
        libc::AF_UNIX if len == 2 => {}
        libc::AF_UNIX => {
            out.push_str(", sun_path=");
            if s.u8(2) == 0 {
                out.push('@');
                quoted(s.0.get(3..).unwrap_or(&[]), false, out);
            } else {
                quoted(s.text(2, len - 2), false, out);
            }
        }
        libc::AF_INET if len >= 8 => {
            let port = u16::from_be(s.u16(2) as u16);
            let ip = Ipv4Addr::from(u32::from_be(s.u32(4) as u32));
            put!(out, ", sin_port=htons({port}), sin_addr=inet_addr(\"{ip}\")");
        }
        libc::AF_INET6 if len >= 24 => {
            let port = u16::from_be(s.u16(2) as u16);
            let ip: [u8; 16] = s.0.get(8..24).and_then(|b| b.try_into().ok()).unwrap_or([0; 16]);
            put!(out, ", sin6_port=htons({port}), sin6_addr=\"{}\"", Ipv6Addr::from(ip));
        }
        libc::AF_NETLINK if len >= 12 => put!(out, ", nl_pid={}, nl_groups={:#x}", s.u32(4), s.u32(8)),
        _ => out.push_str(", ..."),
    }
    out.push('}');
}

/// An address whose length is the next argument: bind, connect.
pub fn address_in(view: &View<'_>, addr: u64, out: &mut String) {
    address(view, addr, view.arg(2), out);
}

/// The address of sendto.
pub fn address_fifth(view: &View<'_>, addr: u64, out: &mut String) {
    address(view, addr, view.arg(5), out);
}

fn filled(view: &View<'_>, addr: u64, len: u64, out: &mut String) {
    match view.raw(len, 4) {
        Some(n) => address(view, addr, n.u32(0), out),
        None => pointer(addr, out),
    }
}

/// An address that the call fills, with its length at the address in the next argument: accept, getsockname.
pub fn address_out(view: &View<'_>, addr: u64, out: &mut String) {
    filled(view, addr, view.arg(2), out);
}

/// The address of recvfrom.
pub fn address_fifth_out(view: &View<'_>, addr: u64, out: &mut String) {
    filled(view, addr, view.arg(5), out);
}

/// `SOCK_STREAM|SOCK_CLOEXEC`
pub fn kind(_: &View<'_>, v: u64, out: &mut String) {
    one(flags::SOCK, v & 0xf, out);
    if v & 0xffff_fff0 != 0 {
        out.push('|');
        bits(flags::SOCK_FLAGS, v & 0xffff_fff0, out);
    }
}

/// The protocol depends on the family.
pub fn protocol(view: &View<'_>, v: u64, out: &mut String) {
    if matches!(view.arg(0) as i32, libc::AF_INET | libc::AF_INET6) {
        one(flags::IPPROTO, v, out);
    } else {
        put!(out, "{v}");
    }
}

/// The option depends on the level.
pub fn option(view: &View<'_>, v: u64, out: &mut String) {
    match view.arg(1) as i32 {
        libc::SOL_SOCKET => one(flags::SO, v, out),
        libc::IPPROTO_TCP => one(flags::TCP, v, out),
        _ => put!(out, "{v}"),
    }
}

fn option_value(view: &View<'_>, addr: u64, len: u64, out: &mut String) {
    match (len, view.raw(addr, len.min(16) as usize)) {
        (4, Some(s)) => put!(out, "[{}]", s.i32(0)),
        (_, Some(s)) if !s.0.is_empty() => quoted(&s.0, len > 16, out),
        _ => pointer(addr, out),
    }
}

pub fn option_in(view: &View<'_>, addr: u64, out: &mut String) {
    option_value(view, addr, view.arg(4), out);
}

pub fn option_out(view: &View<'_>, addr: u64, out: &mut String) {
    match view.raw(view.arg(4), 4) {
        Some(n) => option_value(view, addr, n.u32(0), out),
        None => pointer(addr, out),
    }
}

/// A message header; the first `left` bytes of the data are valid.
fn header(view: &View<'_>, s: &Raw, mut left: u64, out: &mut String) {
    out.push_str("{msg_name=");
    address(view, s.u64(0), s.u32(8), out);
    put!(out, ", msg_namelen={}, msg_iov=", s.u32(8));
    array(view, s.u64(16), s.u64(24), 16, out, |v, out| {
        out.push_str("{iov_base=");
        let len = v.u64(8).min(left);
        left -= len;
        data(view, v.u64(0), len, out);
        put!(out, ", iov_len={}}}", v.u64(8));
    });
    put!(out, ", msg_iovlen={}", s.u64(24));
    control(view, s.u64(32), s.u64(40), out);
    out.push_str(", msg_flags=");
    bits(flags::MSG, s.u32(48), out);
    out.push('}');
}

/// The control messages; descriptors and credentials are printed in full.
fn control(view: &View<'_>, addr: u64, len: u64, out: &mut String) {
    if addr == 0 || len == 0 {
        return;
    }
    let Some(s) = view.raw(addr, len.min(1024) as usize) else { return };
    out.push_str(", msg_control=[");
    let mut at = 0;
    while at + 16 <= s.0.len() {
        let size = s.u64(at) as usize;
        if size < 16 || size > s.0.len() - at {
            break;
        }
        if at > 0 {
            out.push_str(", ");
        }
        match (s.i32(at + 8) as i32, s.i32(at + 12) as i32) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                let fds: Vec<String> =
                    (0..((size - 16) / 4).min(ITEMS as usize)).map(|i| s.i32(at + 16 + i * 4).to_string()).collect();
                put!(out, "{{cmsg_type=SCM_RIGHTS, cmsg_data=[{}]}}", fds.join(", "));
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => put!(
                out,
                "{{cmsg_type=SCM_CREDENTIALS, cmsg_data={{pid={}, uid={}, gid={}}}}}",
                s.i32(at + 16),
                s.u32(at + 20),
                s.u32(at + 24)
            ),
            (level, kind) => put!(out, "{{cmsg_len={size}, cmsg_level={level}, cmsg_type={kind}}}"),
        }
        at += size.next_multiple_of(8);
    }
    out.push(']');
}

pub fn message_in(view: &View<'_>, addr: u64, out: &mut String) {
    match view.raw(addr, 56) {
        Some(s) => header(view, &s, u64::MAX, out),
        None => pointer(addr, out),
    }
}

pub fn message_out(view: &View<'_>, addr: u64, out: &mut String) {
    match view.raw(addr, 56) {
        Some(s) => header(view, &s, view.result, out),
        None => pointer(addr, out),
    }
}

pub fn messages_in(view: &View<'_>, addr: u64, out: &mut String) {
    array(view, addr, view.arg(2).min(8), 64, out, |s, out| header(view, s, u64::MAX, out));
}

pub fn messages_out(view: &View<'_>, addr: u64, out: &mut String) {
    array(view, addr, view.result.min(8), 64, out, |s, out| {
        header(view, s, s.u32(56), out);
        put!(out, "/{}", s.u32(56));
    });
}

pub fn pollfds(view: &View<'_>, addr: u64, out: &mut String) {
    array(view, addr, view.arg(1), 8, out, |s, out| {
        put!(out, "{{fd={}, events=", s.i32(0));
        bits(flags::POLL, s.u16(4), out);
        out.push('}');
    });
}

/// The ready descriptors of poll, for the end of the line.
pub fn poll_found(view: &View<'_>, out: &mut String) {
    let mut first = true;
    for i in 0..view.arg(1).min(1024) {
        let Some(s) = view.raw(view.arg(0).wrapping_add(i * 8), 8) else { break };
        if s.u16(6) != 0 {
            put!(out, "{}{{fd={}, revents=", if first { " ([" } else { ", " }, s.i32(0));
            bits(flags::POLL, s.u16(6), out);
            out.push('}');
            first = false;
        }
    }
    if view.result == 0 {
        out.push_str(" (Timeout)");
    } else if !first {
        out.push_str("])");
    }
}

pub fn fd_set(view: &View<'_>, addr: u64, out: &mut String) {
    let bytes = (view.arg(0).min(1024) as usize).div_ceil(64) * 8;
    let Some(s) = view.raw(addr, bytes) else { return pointer(addr, out) };
    out.push('[');
    let set = (0..view.arg(0).min(1024) as usize).filter(|n| s.u8(n / 8) >> (n % 8) & 1 != 0);
    for (i, n) in set.enumerate() {
        put!(out, "{}{n}", if i > 0 { " " } else { "" });
    }
    out.push(']');
}

/// The ready descriptors of select.
pub fn select_found(view: &View<'_>, out: &mut String) {
    if view.result == 0 {
        return out.push_str(" (Timeout)");
    }
    let mut first = true;
    for (i, name) in [(1, "in"), (2, "out"), (3, "except")] {
        let mut set = String::new();
        if view.arg(i) != 0 {
            fd_set(view, view.arg(i), &mut set);
        }
        if set.len() > 2 {
            put!(out, "{}{name} {set}", if first { " (" } else { ", " });
            first = false;
        }
    }
    if !first {
        out.push(')');
    }
}

pub fn epoll_event(view: &View<'_>, addr: u64, out: &mut String) {
    match view.raw(addr, 12) {
        Some(s) => event(&s, out),
        None => pointer(addr, out),
    }
}

fn event(s: &Raw, out: &mut String) {
    out.push_str("{events=");
    bits(flags::EPOLL, s.u32(0), out);
    put!(out, ", data={:#x}}}", s.u64(4));
}

pub fn epoll_events(view: &View<'_>, addr: u64, out: &mut String) {
    array(view, addr, view.result, 12, out, event);
}
