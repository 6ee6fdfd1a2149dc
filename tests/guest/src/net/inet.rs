//! Addresses and options of internet sockets.

use super::*;

pub const CASES: &[crate::Case] = cases![
    options,
    option_errors,
    inherited_options,
    info,
    dual_stack,
    v6_only,
    v6_loopback,
    unreachable,
    wildcard_destination,
    requests,
    from_another_address,
    tables,
];

unsafe fn options() {
    let s = tcp();
    for (level, name, default, set_to, shown) in [
        (IPPROTO_TCP, TCP_NODELAY, 0, 5, 1),
        (IPPROTO_TCP, TCP_CORK, 0, 1, 1),
        (IPPROTO_TCP, TCP_KEEPIDLE, 7200, 30, 30),
        (IPPROTO_TCP, TCP_KEEPINTVL, 75, 5, 5),
        (IPPROTO_TCP, TCP_KEEPCNT, 9, 3, 3),
        (IPPROTO_TCP, TCP_USER_TIMEOUT, 0, 1234, 1234),
        (IPPROTO_TCP, TCP_SYNCNT, 6, 2, 2),
        (SOL_SOCKET, SO_KEEPALIVE, 0, 1, 1),
        (SOL_SOCKET, SO_REUSEADDR, 0, 3, 1),
        (SOL_SOCKET, SO_REUSEPORT, 0, 1, 1),
        (SOL_SOCKET, SO_OOBINLINE, 0, 1, 1),
        (SOL_SOCKET, SO_RCVLOWAT, 1, 9, 9),
        (IPPROTO_IP, IP_TTL, 64, 3, 3),
        (IPPROTO_IP, IP_TOS, 0, 0x10, 0x10),
        (IPPROTO_IP, IP_RECVTTL, 0, 1, 1),
    ] {
        assert_eq!(get_int(s, level, name), default, "default of {level} {name}");
        ok(set(s, level, name, set_to));
        assert_eq!(get_int(s, level, name), shown, "{level} {name}");
    }
    ok(set(s, SOL_SOCKET, SO_SNDBUF, 10_000));
    ok(set(s, SOL_SOCKET, SO_RCVBUF, 1));
    assert_eq!(get_int(s, SOL_SOCKET, SO_SNDBUF), 20_000);
    assert_eq!(get_int(s, SOL_SOCKET, SO_RCVBUF), 2304);
    let mut b = [0u8; 16];
    let mut n = 16;
    ok(getsockopt(s, IPPROTO_TCP, TCP_CONGESTION, b.as_mut_ptr().cast(), &mut n));
    assert!(n == 16 && b[0] != 0);
}

unsafe fn option_errors() {
    let s = tcp();
    fails(set(s, IPPROTO_TCP, 200, 1), ENOPROTOOPT);
    fails(set(s, SOL_SOCKET, 250, 1), ENOPROTOOPT);
    fails(set(s, IPPROTO_TCP, TCP_KEEPIDLE, 0), EINVAL);
    fails(set(s, IPPROTO_TCP, TCP_KEEPCNT, 128), EINVAL);
    fails(set(s, IPPROTO_IP, IP_TTL, 256), EINVAL);
    fails(set(s, IPPROTO_IPV6, IPV6_V6ONLY, 1), ENOPROTOOPT);
    fails(setsockopt(s, IPPROTO_TCP, TCP_NODELAY, (&raw const s).cast(), 3), EINVAL);
    fails(setsockopt(s, IPPROTO_TCP, TCP_NODELAY, BAD, 4), EFAULT);
    fails(setsockopt(s, IPPROTO_TCP, TCP_CONGESTION, c("nonesuch").as_ptr().cast(), 8), ENOENT);
    let (mut v, mut n) = (0, 4);
    fails(getsockopt(s, IPPROTO_TCP, 200, (&raw mut v).cast(), &mut n), ENOPROTOOPT);
    fails(getsockopt(s, IPPROTO_IP, IP_MTU, (&raw mut v).cast(), &mut n), ENOTCONN);
    n = u32::MAX;
    fails(getsockopt(s, IPPROTO_TCP, TCP_NODELAY, (&raw mut v).cast(), &mut n), EINVAL);
}

unsafe fn inherited_options() {
    let (l, port) = server(1);
    ok(set(l, IPPROTO_TCP, TCP_NODELAY, 1));
    ok(set(l, IPPROTO_TCP, TCP_KEEPIDLE, 99));
    ok(set(l, SOL_SOCKET, SO_KEEPALIVE, 1));
    nonblock(l);
    let c = tcp();
    ok(connect4(c, lo(1, port)));
    shows(l, POLLIN);
    let s = take(l);
    assert_eq!(get_int(s, IPPROTO_TCP, TCP_NODELAY), 1);
    assert_eq!(get_int(s, IPPROTO_TCP, TCP_KEEPIDLE), 99);
    assert_eq!(get_int(s, SOL_SOCKET, SO_KEEPALIVE), 1);
    assert_eq!(get_int(s, SOL_SOCKET, SO_ACCEPTCONN), 0);
    assert_eq!(ok(fcntl(s, F_GETFL)) & O_NONBLOCK, 0);
}

unsafe fn info() {
    let state = |fd: i32| {
        let mut b = [0u8; 100];
        let mut n = 100;
        ok(getsockopt(fd, IPPROTO_TCP, TCP_INFO, b.as_mut_ptr().cast(), &mut n));
        assert_eq!(n, 100);
        i32::from(b[0])
    };
    // ESTABLISHED, CLOSE, CLOSE_WAIT, LISTEN of include/net/tcp_states.h
    let (c, s) = pair();
    assert_eq!((state(c), state(tcp())), (1, 7));
    assert_eq!(state(server(1).0), 10);
    ok(shutdown(c, SHUT_WR));
    eventually("close wait", || state(s) == 8);
    assert_eq!(get_int(s, IPPROTO_IP, IP_MTU), 65535);
    let m = get_int(s, IPPROTO_TCP, TCP_MAXSEG);
    assert!(m > 1000, "{m}");
}

unsafe fn dual_stack() {
    let l = tcp6();
    ok(bind6(l, v6(ANY6, 0)));
    ok(listen(l, 4));
    let port = name6(l).1;
    let c = tcp();
    ok(connect4(c, lo(1, port)));
    let mut a: sockaddr_in6 = zeroed();
    let mut n = LEN6;
    let s = ok(accept(l, (&raw mut a).cast(), &mut n));
    assert_eq!((a.sin6_addr.s6_addr, u16::from_be(a.sin6_port)), (MAPPED, name4(c).1));
    assert_eq!(name6(s), (MAPPED, port));
    put(c, b"four");
    assert_eq!(get(s, 9), b"four");
    let c = tcp6();
    ok(connect6(c, v6(MAPPED, port)));
    assert_eq!(name6(c).0, MAPPED);
    assert_eq!(name6(take(l)).0, MAPPED);
    // An IPv6 wildcard holds the port for both families.
    fails(bind4(tcp(), lo(1, port)), EADDRINUSE);
}

unsafe fn v6_only() {
    let l = tcp6();
    assert_eq!(get_int(l, IPPROTO_IPV6, IPV6_V6ONLY), 0);
    ok(set(l, IPPROTO_IPV6, IPV6_V6ONLY, 1));
    fails(bind6(l, v6(MAPPED, 0)), EINVAL);
    ok(bind6(l, v6(ANY6, 0)));
    fails(set(l, IPPROTO_IPV6, IPV6_V6ONLY, 0), EINVAL);
    ok(listen(l, 4));
    let port = name6(l).1;
    fails(connect4(tcp(), lo(1, port)), ECONNREFUSED);
    let c = tcp6();
    ok(connect6(c, v6(ONE6, port)));
    ok(bind4(tcp(), lo(1, port)));
    let c = tcp6();
    ok(set(c, IPPROTO_IPV6, IPV6_V6ONLY, 1));
    fails(connect6(c, v6(MAPPED, port)), ENETUNREACH);
}

unsafe fn v6_loopback() {
    let l = tcp6();
    ok(bind6(l, v6(ONE6, 0)));
    ok(listen(l, 4));
    let port = name6(l).1;
    let c = tcp6();
    let a = v6(ONE6, port);
    fails(connect(c, (&raw const a).cast(), 20), EINVAL);
    let four = lo(1, port);
    fails(connect(c, (&raw const four).cast(), LEN4), EINVAL);
    ok(connect6(c, a));
    let s = take(l);
    assert_eq!((name6(c).0, name6(s)), (ONE6, (ONE6, port)));
    put(s, b"six");
    assert_eq!(get(c, 9), b"six");
    fails(connect4(tcp(), lo(1, port)), ECONNREFUSED);
}

/// Whether `lo` is the only interface.
fn lo_only() -> bool {
    std::fs::read_to_string("/proc/net/route").is_ok_and(|r| r.lines().count() <= 1)
}

unsafe fn unreachable() {
    if !lo_only() {
        eprintln!("left out: there is a network");
        return;
    }
    fails(connect4(tcp(), v4([192, 0, 2, 1], 80)), ENETUNREACH);
    fails(connect4(tcp(), v4([224, 0, 0, 1], 80)), ENETUNREACH);
    fails(connect4(tcp(), v4([255; 4], 80)), ENETUNREACH);
    let mut far = ONE6;
    far[0] = 0x20;
    fails(connect6(tcp6(), v6(far, 80)), ENETUNREACH);
    let c = tcp();
    nonblock(c);
    fails(connect4(c, v4([192, 0, 2, 1], 80)), ENETUNREACH);
    assert_eq!(so_error(c), 0);
}

unsafe fn wildcard_destination() {
    let (l, port) = server(2);
    let c = tcp();
    ok(connect4(c, v4([0; 4], port)));
    assert_eq!(peer4(c), ([127, 0, 0, 1], port));
    take(l);
    let l = tcp6();
    ok(bind6(l, v6(ONE6, 0)));
    ok(listen(l, 1));
    ok(connect6(tcp6(), v6(ANY6, name6(l).1)));
}

unsafe fn requests() {
    let s = tcp();
    let mut req: ifreq = zeroed();
    for (i, b) in b"lo".iter().enumerate() {
        req.ifr_name[i] = *b as c_char;
    }
    ok(ioctl(s, SIOCGIFINDEX, &mut req));
    assert_eq!(req.ifr_ifru.ifru_ifindex, 1);
    ok(ioctl(s, SIOCGIFFLAGS, &mut req));
    assert_eq!(i32::from(req.ifr_ifru.ifru_flags) & (IFF_UP | IFF_LOOPBACK), IFF_UP | IFF_LOOPBACK);
    ok(ioctl(s, SIOCGIFMTU, &mut req));
    assert_eq!(req.ifr_ifru.ifru_mtu, 65536);
    ok(ioctl(s, SIOCGIFADDR, &mut req));
    assert_eq!(req.ifr_ifru.ifru_addr.sa_data[2], 127);
    assert_eq!(if_nametoindex(c("lo").as_ptr()), 1);
    let mut name = [0; 16];
    assert!(!if_indextoname(1, name.as_mut_ptr()).is_null());
    assert_eq!(name[..3], [b'l' as c_char, b'o' as c_char, 0]);
    req.ifr_name[1] = b'x' as c_char;
    fails(ioctl(s, SIOCGIFINDEX, &mut req), ENODEV);
    let mut conf: ifconf = zeroed();
    let mut space = [0u8; 400];
    conf.ifc_len = 400;
    conf.ifc_ifcu.ifcu_buf = space.as_mut_ptr().cast();
    ok(ioctl(s, SIOCGIFCONF, &mut conf));
    assert!(conf.ifc_len >= 40 && &space[..3] == b"lo\0" && space[20..24] == [127, 0, 0, 1]);
}

unsafe fn from_another_address() {
    let (l, port) = server(2);
    let c = tcp();
    ok(bind4(c, lo(9, 0)));
    let own = name4(c).1;
    ok(connect4(c, lo(1, port)));
    assert_eq!(peer4(take(l)), ([127, 0, 0, 9], own));
    // The same two addresses cannot be connected twice.
    let d = tcp();
    ok(set(d, SOL_SOCKET, SO_REUSEADDR, 1));
    ok(set(c, SOL_SOCKET, SO_REUSEADDR, 1));
    ok(bind4(d, lo(9, own)));
    fails(connect4(d, lo(1, port)), EADDRNOTAVAIL);
}

/// The lines about a port in a table of /proc/net, split into words.
unsafe fn rows(file: &str, port: u16) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/net/{file}")).unwrap();
    let hex = format!(":{port:04X}");
    let own = |l: &&str| l.split_whitespace().nth(1).is_some_and(|a| a.ends_with(&hex));
    text.lines().filter(own).map(|l| l.split_whitespace().map(String::from).collect()).collect()
}

unsafe fn tables() {
    let (l, port) = server(4);
    let r = rows("tcp", port);
    assert_eq!(r.len(), 1);
    assert_eq!((r[0][1].as_str(), r[0][3].as_str()), (format!("0100007F:{port:04X}").as_str(), "0A"));
    assert_eq!(r[0][9], fstat_of(l).st_ino.to_string());
    let c = tcp();
    ok(connect4(c, lo(1, port)));
    let s = take(l);
    put(c, b"12345");
    let own = name4(c).1;
    let mine = rows("tcp", own);
    assert_eq!((mine[0][2].as_str(), mine[0][3].as_str()), (format!("0100007F:{port:04X}").as_str(), "01"));
    eventually("5 bytes wait", || rows("tcp", port).iter().any(|r| r[4] == "00000000:00000005"));
    close(s);
    let u = udp();
    ok(bind4(u, lo(1, 0)));
    assert_eq!(rows("udp", name4(u).1)[0][3], "07");
    let six = tcp6();
    ok(bind6(six, v6(ONE6, 0)));
    ok(listen(six, 1));
    assert_eq!(rows("tcp6", name6(six).1)[0][1].split(':').next().unwrap(), "00000000000000000000000001000000");
}
