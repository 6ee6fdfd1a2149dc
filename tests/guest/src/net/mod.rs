//! Sockets.

use crate::t::*;
use libc::*;

mod inet;
mod netlink;
mod splice;
mod tcp;
mod udp;
mod unix;

pub const GROUPS: &[(&str, &[crate::Case])] = &[
    ("inet", inet::CASES),
    ("netlink", netlink::CASES),
    ("splice", splice::CASES),
    ("tcp", tcp::CASES),
    ("udp", udp::CASES),
    ("unix", unix::CASES),
];

pub const LEN4: u32 = size_of::<sockaddr_in>() as u32;
pub const LEN6: u32 = size_of::<sockaddr_in6>() as u32;

/// `sockaddr_in` of 127.0.0.`last`.
pub unsafe fn lo(last: u8, port: u16) -> sockaddr_in {
    let mut a: sockaddr_in = zeroed();
    a.sin_family = AF_INET as u16;
    a.sin_port = port.to_be();
    a.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, last]);
    a
}

pub unsafe fn v4(ip: [u8; 4], port: u16) -> sockaddr_in {
    let mut a = lo(1, port);
    a.sin_addr.s_addr = u32::from_ne_bytes(ip);
    a
}

/// `sockaddr_in6`; `mapped` gives ::ffff:127.0.0.1, otherwise ::1 or, if `any`, ::.
pub unsafe fn v6(ip: [u8; 16], port: u16) -> sockaddr_in6 {
    let mut a: sockaddr_in6 = zeroed();
    a.sin6_family = AF_INET6 as u16;
    a.sin6_port = port.to_be();
    a.sin6_addr.s6_addr = ip;
    a
}

pub const ANY6: [u8; 16] = [0; 16];
pub const ONE6: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
pub const MAPPED: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1];

pub unsafe fn bind4(fd: i32, a: sockaddr_in) -> i32 {
    bind(fd, (&raw const a).cast(), LEN4)
}
pub unsafe fn bind6(fd: i32, a: sockaddr_in6) -> i32 {
    bind(fd, (&raw const a).cast(), LEN6)
}
pub unsafe fn connect4(fd: i32, a: sockaddr_in) -> i32 {
    connect(fd, (&raw const a).cast(), LEN4)
}
pub unsafe fn connect6(fd: i32, a: sockaddr_in6) -> i32 {
    connect(fd, (&raw const a).cast(), LEN6)
}

/// The local address of a socket: address bytes and port.
pub unsafe fn name4(fd: i32) -> ([u8; 4], u16) {
    let mut a: sockaddr_in = zeroed();
    let mut n = LEN4;
    ok(getsockname(fd, (&raw mut a).cast(), &mut n));
    assert_eq!((n, a.sin_family), (LEN4, AF_INET as u16));
    (a.sin_addr.s_addr.to_ne_bytes(), u16::from_be(a.sin_port))
}
pub unsafe fn name6(fd: i32) -> ([u8; 16], u16) {
    let mut a: sockaddr_in6 = zeroed();
    let mut n = LEN6;
    ok(getsockname(fd, (&raw mut a).cast(), &mut n));
    assert_eq!((n, a.sin6_family), (LEN6, AF_INET6 as u16));
    (a.sin6_addr.s6_addr, u16::from_be(a.sin6_port))
}
pub unsafe fn peer4(fd: i32) -> ([u8; 4], u16) {
    let mut a: sockaddr_in = zeroed();
    let mut n = LEN4;
    ok(getpeername(fd, (&raw mut a).cast(), &mut n));
    (a.sin_addr.s_addr.to_ne_bytes(), u16::from_be(a.sin_port))
}
pub unsafe fn peer_fails(fd: i32, want: i32) {
    let mut a: sockaddr_in6 = zeroed();
    let mut n = LEN6;
    fails(getpeername(fd, (&raw mut a).cast(), &mut n), want);
}

pub unsafe fn tcp() -> i32 {
    ok(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0))
}
pub unsafe fn tcp6() -> i32 {
    ok(socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0))
}
pub unsafe fn udp() -> i32 {
    ok(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0))
}

pub unsafe fn set(fd: i32, level: i32, name: i32, v: i32) -> i32 {
    setsockopt(fd, level, name, (&raw const v).cast(), 4)
}
pub unsafe fn get_int(fd: i32, level: i32, name: i32) -> i32 {
    let (mut v, mut n) = (-77, 4);
    ok(getsockopt(fd, level, name, (&raw mut v).cast(), &mut n));
    v
}
pub unsafe fn so_error(fd: i32) -> i32 {
    get_int(fd, SOL_SOCKET, SO_ERROR)
}

pub unsafe fn nonblock(fd: i32) {
    ok(fcntl(fd, F_SETFL, ok(fcntl(fd, F_GETFL)) | O_NONBLOCK));
}

/// The events that poll reports now, of all possible ones.
pub unsafe fn ready(fd: i32) -> i32 {
    ready_in(fd, 0)
}
pub unsafe fn ready_in(fd: i32, ms: i32) -> i32 {
    let mut p = pollfd { fd, events: POLLIN | POLLPRI | POLLOUT | POLLRDHUP, revents: 0 };
    ok(poll(&mut p, 1, ms));
    i32::from(p.revents)
}
/// Waits for one of `events` and requires that poll reports no others.
#[track_caller]
pub unsafe fn shows(fd: i32, events: i16) {
    let want = i32::from(events);
    eventually(&format!("poll shows {want:#x}"), || ready(fd) == want);
}

/// A listening socket on 127.0.0.1 and its port.
pub unsafe fn server(backlog: i32) -> (i32, u16) {
    let l = tcp();
    ok(bind4(l, lo(1, 0)));
    ok(listen(l, backlog));
    (l, name4(l).1)
}

/// A connection: the client's and the server's end.
pub unsafe fn pair() -> (i32, i32) {
    let (l, port) = server(8);
    let c = tcp();
    ok(connect4(c, lo(1, port)));
    let s = ok(accept(l, std::ptr::null_mut(), std::ptr::null_mut()));
    close(l);
    (c, s)
}

pub unsafe fn take(fd: i32) -> i32 {
    ok(accept4(fd, std::ptr::null_mut(), std::ptr::null_mut(), SOCK_CLOEXEC))
}

pub unsafe fn send_to(fd: i32, b: &[u8], flags: i32) -> isize {
    send(fd, b.as_ptr().cast(), b.len(), flags | MSG_NOSIGNAL)
}
/// Receives at most 64 bytes.
pub unsafe fn recv_from(fd: i32, flags: i32) -> Vec<u8> {
    let mut v = vec![0u8; 64];
    let n = ok(recv(fd, v.as_mut_ptr().cast(), v.len(), flags));
    v.truncate(n as usize);
    v
}
pub unsafe fn recv_fails(fd: i32, flags: i32, want: i32) {
    let mut v = [0u8; 64];
    fails(recv(fd, v.as_mut_ptr().cast(), v.len(), flags), want);
}
