//! UDP over loopback.

use super::*;

pub const CASES: &[crate::Case] = cases![
    messages,
    truncation,
    connected,
    refused_when_connected,
    not_refused_when_not,
    send_errors,
    sizes,
    empty_message,
    dual_stack,
    poll_states,
    shutdown_rules,
    port_sharing,
    full_queue,
    disconnect,
    packet_info,
    header_fields,
    in_pieces,
    udp_lite,
    many_messages,
    broadcast,
    multicast,
    unreachable,
    options,
];

unsafe fn bound() -> (i32, u16) {
    let s = udp();
    ok(bind4(s, lo(1, 0)));
    (s, name4(s).1)
}
unsafe fn to4(fd: i32, b: &[u8], a: sockaddr_in) -> isize {
    sendto(fd, b.as_ptr().cast(), b.len(), MSG_NOSIGNAL, (&raw const a).cast(), LEN4)
}
unsafe fn from4(fd: i32) -> (Vec<u8>, ([u8; 4], u16)) {
    let mut a: sockaddr_in = zeroed();
    let mut n = LEN4;
    let mut b = vec![0u8; 70_000];
    let k = ok(recvfrom(fd, b.as_mut_ptr().cast(), b.len(), 0, (&raw mut a).cast(), &mut n));
    b.truncate(k as usize);
    (b, (a.sin_addr.s_addr.to_ne_bytes(), u16::from_be(a.sin_port)))
}

unsafe fn messages() {
    let (s, port) = bound();
    let c = udp();
    assert_eq!(name4(c), ([0; 4], 0));
    is(to4(c, b"one", lo(1, port)), 3);
    is(to4(c, b"three", lo(1, port)), 5);
    let own = name4(c).1;
    assert_ne!(own, 0);
    assert_eq!(from4(s), (b"one".to_vec(), ([127, 0, 0, 1], own)));
    let mut n = 0;
    ok(ioctl(s, FIONREAD, &mut n));
    assert_eq!(n, 5);
    assert_eq!(from4(s).0, b"three");
    is(to4(s, b"back", lo(1, own)), 4);
    assert_eq!(from4(c), (b"back".to_vec(), ([127, 0, 0, 1], port)));
    recv_fails(s, MSG_DONTWAIT, EAGAIN);
}

unsafe fn truncation() {
    let (s, port) = bound();
    let c = udp();
    for _ in 0..3 {
        is(to4(c, b"0123456789", lo(1, port)), 10);
    }
    let mut b = [0u8; 4];
    is(recv(s, b.as_mut_ptr().cast(), 4, MSG_PEEK | MSG_TRUNC), 10);
    is(recv(s, b.as_mut_ptr().cast(), 4, 0), 4);
    is(recv(s, b.as_mut_ptr().cast(), 4, MSG_TRUNC), 10);
    let mut iov = iovec { iov_base: b.as_mut_ptr().cast(), iov_len: 4 };
    let mut m: msghdr = zeroed();
    m.msg_iov = &mut iov;
    m.msg_iovlen = 1;
    is(recvmsg(s, &mut m, 0), 4);
    assert_eq!(m.msg_flags & MSG_TRUNC, MSG_TRUNC);
}

unsafe fn connected() {
    let (s, port) = bound();
    let (c, own) = bound();
    peer_fails(c, ENOTCONN);
    fails(send_to(c, b"x", 0), EDESTADDRREQ);
    ok(connect4(c, lo(1, port)));
    assert_eq!(peer4(c), ([127, 0, 0, 1], port));
    put(c, b"hello");
    assert_eq!(from4(s).0, b"hello");
    // A connected socket receives only from its peer.
    let other = udp();
    is(to4(other, b"intruder", lo(1, own)), 8);
    is(to4(s, b"right", lo(1, own)), 5);
    assert_eq!(from4(c).0, b"right");
    recv_fails(c, MSG_DONTWAIT, EAGAIN);
    // But it may send to others.
    let (t, tp) = bound();
    is(to4(c, b"aside", lo(1, tp)), 5);
    assert_eq!(from4(t).0, b"aside");
    let d = udp();
    ok(connect4(d, lo(1, port)));
    assert_eq!(name4(d).0, [127, 0, 0, 1]);
}

unsafe fn refused_when_connected() {
    let (s, port) = bound();
    let c = udp();
    ok(connect4(c, lo(1, port)));
    close(s);
    is(send_to(c, b"x", 0), 1);
    shows(c, POLLOUT | POLLERR);
    recv_fails(c, 0, ECONNREFUSED);
    recv_fails(c, MSG_DONTWAIT, EAGAIN);
    is(send_to(c, b"x", 0), 1);
    eventually("error", || ready(c) & i32::from(POLLERR) != 0);
    fails(send_to(c, b"x", 0), ECONNREFUSED);
    is(send_to(c, b"x", 0), 1);
    eventually("error", || ready(c) & i32::from(POLLERR) != 0);
    assert_eq!(so_error(c), ECONNREFUSED);
}

unsafe fn not_refused_when_not() {
    let (s, port) = bound();
    close(s);
    let c = udp();
    is(to4(c, b"x", lo(1, port)), 1);
    assert_eq!(ready_in(c, 10), i32::from(POLLOUT));
}

unsafe fn send_errors() {
    let c = udp();
    fails(to4(c, b"x", lo(1, 0)), EINVAL);
    let a = lo(1, 9);
    fails(sendto(c, b"x".as_ptr().cast(), 1, 0, (&raw const a).cast(), 8), EINVAL);
    let mut wrong = lo(1, 9);
    wrong.sin_family = AF_UNIX as u16;
    fails(to4(c, b"x", wrong), EAFNOSUPPORT);
    fails(sendto(c, b"x".as_ptr().cast(), 1, MSG_OOB, (&raw const a).cast(), LEN4), EOPNOTSUPP);
    let (_s, port) = bound();
    let a = lo(1, port);
    fails(sendto(c, BAD, 10, 0, (&raw const a).cast(), LEN4), EFAULT);
    fails(sendto(c, b"x".as_ptr().cast(), 1, 0, (&raw const a).cast(), u32::MAX), EINVAL);
}

unsafe fn sizes() {
    let (s, port) = bound();
    let c = udp();
    let b = vec![3u8; 70_000];
    is(to4(c, &b[..65_507], lo(1, port)), 65_507);
    fails(to4(c, &b[..65_508], lo(1, port)), EMSGSIZE);
    fails(to4(c, &b, lo(1, port)), EMSGSIZE);
    assert_eq!(from4(s).0.len(), 65_507);
}

unsafe fn empty_message() {
    let (s, port) = bound();
    let c = udp();
    is(to4(c, b"", lo(1, port)), 0);
    is(to4(c, b"x", lo(1, port)), 1);
    shows(s, POLLIN | POLLOUT);
    assert_eq!(from4(s).0, b"");
    assert_eq!(from4(s).0, b"x");
}

unsafe fn dual_stack() {
    let s = ok(socket(AF_INET6, SOCK_DGRAM, 0));
    ok(bind6(s, v6(ANY6, 0)));
    let port = name6(s).1;
    let c = udp();
    is(to4(c, b"four", lo(1, port)), 4);
    let mut a: sockaddr_in6 = zeroed();
    let mut n = LEN6;
    let mut b = [0u8; 10];
    is(recvfrom(s, b.as_mut_ptr().cast(), 10, 0, (&raw mut a).cast(), &mut n), 4);
    assert_eq!((n, a.sin6_addr.s6_addr), (LEN6, MAPPED));
    is(sendto(s, b"back".as_ptr().cast(), 4, 0, (&raw const a).cast(), LEN6), 4);
    assert_eq!(from4(c), (b"back".to_vec(), ([127, 0, 0, 1], port)));
    let six = ok(socket(AF_INET6, SOCK_DGRAM, 0));
    let to = v6(ONE6, port);
    is(sendto(six, b"six".as_ptr().cast(), 3, 0, (&raw const to).cast(), LEN6), 3);
    is(recvfrom(s, b.as_mut_ptr().cast(), 10, 0, (&raw mut a).cast(), &mut n), 3);
    assert_eq!(a.sin6_addr.s6_addr, ONE6);
    // An IPv6 socket can send to IPv4 addresses.
    let to = lo(1, port);
    is(sendto(six, b"mix".as_ptr().cast(), 3, 0, (&raw const to).cast(), LEN4), 3);
    fails(bind4(udp(), lo(1, port)), EADDRINUSE);
}

unsafe fn poll_states() {
    let (s, port) = bound();
    assert_eq!(ready(s), i32::from(POLLOUT));
    let me = getpid();
    let pid = spawn(|| {
        asleep(me);
        to4(udp(), b"x", lo(1, port));
        0
    });
    let mut p = pollfd { fd: s, events: POLLIN, revents: 0 };
    is(poll(&mut p, 1, 5000), 1);
    exits(pid, 0);
    let t = timeval { tv_sec: 0, tv_usec: 20_000 };
    ok(setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, (&raw const t).cast(), 16));
    assert_eq!(recv_from(s, 0), b"x");
    recv_fails(s, 0, EAGAIN);
}

unsafe fn shutdown_rules() {
    let (s, port) = bound();
    fails(shutdown(s, SHUT_RDWR), ENOTCONN);
    let c = udp();
    ok(connect4(c, lo(1, port)));
    ok(shutdown(c, SHUT_WR));
    fails(send_to(c, b"x", 0), EPIPE);
    ok(shutdown(c, SHUT_RD));
    assert_eq!(recv_from(c, 0), b"");
    assert_eq!(ready(c), i32::from(POLLIN | POLLOUT | POLLHUP | POLLRDHUP));
}

unsafe fn port_sharing() {
    let (s, port) = bound();
    fails(bind4(udp(), lo(1, port)), EADDRINUSE);
    fails(bind4(s, lo(1, port)), EINVAL);
    ok(set(s, SOL_SOCKET, SO_REUSEADDR, 1));
    let t = udp();
    ok(set(t, SOL_SOCKET, SO_REUSEADDR, 1));
    ok(bind4(t, v4([0; 4], port)));
    // The more specific address wins.
    let c = udp();
    is(to4(c, b"special", lo(1, port)), 7);
    is(to4(c, b"general", lo(2, port)), 7);
    assert_eq!(from4(s).0, b"special");
    assert_eq!(from4(t).0, b"general");
}

unsafe fn full_queue() {
    let (s, port) = bound();
    ok(set(s, SOL_SOCKET, SO_RCVBUF, 8192));
    let c = udp();
    let b = [1u8; 1000];
    for _ in 0..500 {
        is(to4(c, &b, lo(1, port)), 1000);
    }
    let mut n = 0;
    while recv(s, b.as_ptr() as *mut c_void, 1000, MSG_DONTWAIT) >= 0 {
        n += 1;
    }
    assert!((1..100).contains(&n), "{n}");
}

unsafe fn disconnect() {
    let (_s, port) = bound();
    let c = udp();
    ok(connect4(c, lo(1, port)));
    let mut a = lo(1, 0);
    a.sin_family = AF_UNSPEC as u16;
    ok(connect4(c, a));
    peer_fails(c, ENOTCONN);
    fails(send_to(c, b"x", 0), EDESTADDRREQ);
    assert_eq!(name4(c).0, [0; 4]);
}

unsafe fn packet_info() {
    let s = udp();
    ok(bind4(s, v4([0; 4], 0)));
    let port = name4(s).1;
    ok(set(s, IPPROTO_IP, IP_PKTINFO, 1));
    is(to4(udp(), b"x", lo(5, port)), 1);
    let mut b = [0u8; 4];
    let mut control = [0u64; 16];
    let mut iov = iovec { iov_base: b.as_mut_ptr().cast(), iov_len: 4 };
    let mut m: msghdr = zeroed();
    m.msg_iov = &mut iov;
    m.msg_iovlen = 1;
    m.msg_control = control.as_mut_ptr().cast();
    m.msg_controllen = 128;
    is(recvmsg(s, &mut m, 0), 1);
    let h = CMSG_FIRSTHDR(&m);
    assert!(!h.is_null());
    assert_eq!(((*h).cmsg_level, (*h).cmsg_type), (IPPROTO_IP, IP_PKTINFO));
    let info: in_pktinfo = std::ptr::read_unaligned(CMSG_DATA(h).cast());
    assert_eq!((info.ipi_ifindex, info.ipi_addr.s_addr.to_ne_bytes()), (1, [127, 0, 0, 5]));
}

unsafe fn many_messages() {
    let (s, port) = bound();
    let c = udp();
    ok(connect4(c, lo(1, port)));
    let mut bufs = [[0u8; 8]; 10];
    let mut iov: Vec<iovec> = bufs.iter_mut().map(|b| iovec { iov_base: b.as_mut_ptr().cast(), iov_len: 8 }).collect();
    let mut v: Vec<mmsghdr> = iov
        .iter_mut()
        .map(|i| {
            let mut m: mmsghdr = zeroed();
            m.msg_hdr.msg_iov = i;
            m.msg_hdr.msg_iovlen = 1;
            m
        })
        .collect();
    is(sendmmsg(c, v.as_mut_ptr(), 10, 0), 10);
    is(recvmmsg(s, v.as_mut_ptr(), 4, 0, std::ptr::null_mut()), 4);
    is(recvmmsg(s, v.as_mut_ptr(), 10, MSG_WAITFORONE, std::ptr::null_mut()), 6);
    assert!(v[..6].iter().all(|m| m.msg_len == 8));
}

unsafe fn broadcast() {
    let s = udp();
    ok(bind4(s, v4([0; 4], 0)));
    let port = name4(s).1;
    let c = udp();
    let to = v4([127, 255, 255, 255], port);
    fails(to4(c, b"all", to), EACCES);
    fails(connect4(c, to), EACCES);
    ok(set(c, SOL_SOCKET, SO_BROADCAST, 1));
    is(to4(c, b"all", to), 3);
    assert_eq!(from4(s).0, b"all");
}

unsafe fn multicast() {
    let group = [239, 1, 2, 3];
    let s = udp();
    ok(bind4(s, v4([0; 4], 0)));
    let port = name4(s).1;
    let mut m: ip_mreq = zeroed();
    m.imr_multiaddr.s_addr = u32::from_ne_bytes(group);
    m.imr_interface.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
    let p: *const c_void = (&raw const m).cast();
    fails(setsockopt(s, IPPROTO_IP, IP_ADD_MEMBERSHIP, p, 4), EINVAL);
    ok(setsockopt(s, IPPROTO_IP, IP_ADD_MEMBERSHIP, p, 8));
    fails(setsockopt(s, IPPROTO_IP, IP_ADD_MEMBERSHIP, p, 8), EADDRINUSE);
    let c = udp();
    let by = in_addr { s_addr: u32::from_ne_bytes([127, 0, 0, 1]) };
    ok(setsockopt(c, IPPROTO_IP, IP_MULTICAST_IF, (&raw const by).cast(), 4));
    is(to4(c, b"group", v4(group, port)), 5);
    assert_eq!(from4(s), (b"group".to_vec(), ([127, 0, 0, 1], name4(c).1)));
    ok(setsockopt(s, IPPROTO_IP, IP_DROP_MEMBERSHIP, p, 8));
    fails(setsockopt(s, IPPROTO_IP, IP_DROP_MEMBERSHIP, p, 8), EADDRNOTAVAIL);
    let one = ip_mreq { imr_multiaddr: in_addr { s_addr: u32::from_ne_bytes([10, 0, 0, 1]) }, ..m };
    fails(setsockopt(s, IPPROTO_IP, IP_ADD_MEMBERSHIP, (&raw const one).cast(), 8), EINVAL);
}

unsafe fn unreachable() {
    if std::fs::read_to_string("/proc/net/route").is_ok_and(|r| r.lines().count() > 1) {
        eprintln!("left out: there is a network");
        return;
    }
    let c = udp();
    fails(to4(c, b"x", v4([192, 0, 2, 1], 9)), ENETUNREACH);
    fails(to4(c, b"x", v4([224, 0, 0, 1], 9)), ENETUNREACH);
    fails(to4(c, b"x", v4([255; 4], 9)), ENETUNREACH);
    fails(connect4(c, v4([192, 0, 2, 1], 9)), ENETUNREACH);
}

unsafe fn options() {
    let s = udp();
    for (level, name, default, to, shown) in [
        (SOL_SOCKET, SO_BROADCAST, 0, 1, 1),
        (IPPROTO_IP, IP_TTL, 64, 9, 9),
        (IPPROTO_IP, IP_TOS, 0, 0xff, 0xff),
        (IPPROTO_IP, IP_MULTICAST_TTL, 1, 7, 7),
        (IPPROTO_IP, IP_MULTICAST_LOOP, 1, 0, 0),
        (IPPROTO_IP, IP_PKTINFO, 0, 1, 1),
        (IPPROTO_IP, IP_RECVERR, 0, 1, 1),
        (IPPROTO_IP, IP_MTU_DISCOVER, 1, 2, 2),
    ] {
        assert_eq!(get_int(s, level, name), default, "default of {level} {name}");
        ok(set(s, level, name, to));
        assert_eq!(get_int(s, level, name), shown, "{level} {name}");
    }
    // One byte is enough.
    let b = 3u8;
    ok(setsockopt(s, IPPROTO_IP, IP_MULTICAST_TTL, (&raw const b).cast(), 1));
    assert_eq!(get_int(s, IPPROTO_IP, IP_MULTICAST_TTL), 3);
    assert_eq!(get_int(s, SOL_SOCKET, SO_RCVBUF), 212_992);
    let t = ok(socket(AF_INET6, SOCK_DGRAM, 0));
    assert_eq!(get_int(t, IPPROTO_IPV6, IPV6_UNICAST_HOPS), 64);
    ok(set(t, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1));
    assert_eq!(get_int(t, IPPROTO_IPV6, IPV6_RECVPKTINFO), 1);
}

/// The control messages of the next datagram: level, type, first byte.
unsafe fn control(fd: i32) -> Vec<(i32, i32, u8)> {
    let mut b = [0u8; 4];
    let mut space = [0u64; 32];
    let mut iov = iovec { iov_base: b.as_mut_ptr().cast(), iov_len: 4 };
    let mut m: msghdr = zeroed();
    m.msg_iov = &mut iov;
    m.msg_iovlen = 1;
    m.msg_control = space.as_mut_ptr().cast();
    m.msg_controllen = 256;
    ok(recvmsg(fd, &mut m, 0));
    let mut all = Vec::new();
    let mut h = CMSG_FIRSTHDR(&m);
    while !h.is_null() {
        all.push(((*h).cmsg_level, (*h).cmsg_type, *CMSG_DATA(h)));
        h = CMSG_NXTHDR(&m, h);
    }
    all.sort_unstable();
    all
}

unsafe fn header_fields() {
    let (s, port) = bound();
    ok(set(s, IPPROTO_IP, IP_RECVTTL, 1));
    ok(set(s, IPPROTO_IP, IP_RECVTOS, 1));
    let c = udp();
    ok(set(c, IPPROTO_IP, IP_TOS, 0x10));
    is(to4(c, b"x", lo(1, port)), 1);
    assert_eq!(control(s), [(IPPROTO_IP, IP_TOS, 0x10), (IPPROTO_IP, IP_TTL, 64)]);
    // A control message sets the value for one datagram.
    let s = ok(socket(AF_INET6, SOCK_DGRAM, 0));
    ok(bind6(s, v6(ONE6, 0)));
    ok(set(s, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1));
    ok(set(s, IPPROTO_IPV6, IPV6_RECVTCLASS, 1));
    let c = ok(socket(AF_INET6, SOCK_DGRAM, 0));
    ok(connect6(c, v6(ONE6, name6(s).1)));
    let mut b = *b"y";
    let mut space = [0u64; 8];
    let mut iov = iovec { iov_base: b.as_mut_ptr().cast(), iov_len: 1 };
    let mut m: msghdr = zeroed();
    m.msg_iov = &mut iov;
    m.msg_iovlen = 1;
    m.msg_control = space.as_mut_ptr().cast();
    m.msg_controllen = 24;
    let h = CMSG_FIRSTHDR(&m);
    (*h).cmsg_level = IPPROTO_IPV6;
    (*h).cmsg_type = IPV6_HOPLIMIT;
    (*h).cmsg_len = 20;
    std::ptr::write_unaligned(CMSG_DATA(h).cast(), 7i32);
    is(sendmsg(c, &m, 0), 1);
    assert_eq!(control(s), [(IPPROTO_IPV6, IPV6_HOPLIMIT, 7), (IPPROTO_IPV6, IPV6_TCLASS, 0)]);
    std::ptr::write_unaligned(CMSG_DATA(h).cast(), 256i32);
    fails(sendmsg(c, &m, 0), EINVAL);
}

unsafe fn udp_lite() {
    let lite = || socket(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE);
    let s = lite();
    if s == -1 && errno() == EPROTONOSUPPORT {
        eprintln!("left out: no UDP-Lite");
        return;
    }
    ok(bind4(s, lo(1, 0)));
    let port = name4(s).1;
    // UDP-Lite has its own ports.
    ok(bind4(udp(), lo(1, port)));
    is(to4(ok(lite()), b"lite", lo(1, port)), 4);
    assert_eq!(from4(s).0, b"lite");
    assert_eq!(get_int(s, SOL_SOCKET, SO_PROTOCOL), IPPROTO_UDPLITE);
}

unsafe fn in_pieces() {
    let (s, port) = bound();
    let c = udp();
    ok(connect4(c, lo(1, port)));
    is(send_to(c, b"one ", MSG_MORE), 4);
    is(send_to(c, b"data", MSG_MORE), 4);
    recv_fails(s, MSG_DONTWAIT, EAGAIN);
    is(send_to(c, b"gram", 0), 4);
    assert_eq!(from4(s).0, b"one datagram");
    is(send_to(c, b"x", 0), 1);
    assert_eq!(from4(s).0, b"x");
    // A bad buffer is an error even without a receiver.
    close(s);
    let a = lo(1, port);
    fails(sendto(udp(), BAD, 10, 0, (&raw const a).cast(), LEN4), EFAULT);
}
