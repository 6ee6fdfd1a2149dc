//! Listing interfaces and routes.

use super::*;

pub const CASES: &[crate::Case] = cases![addresses, one_link, errors, ports, no_such_protocol];

unsafe fn addresses() {
    let mut list: *mut ifaddrs = std::ptr::null_mut();
    is(getifaddrs(&mut list), 0);
    let mut seen = Vec::new();
    let mut at = list;
    while !at.is_null() {
        let a = &*at;
        if std::ffi::CStr::from_ptr(a.ifa_name).to_bytes() == b"lo" && !a.ifa_addr.is_null() {
            assert_eq!(a.ifa_flags as i32 & (IFF_UP | IFF_LOOPBACK), IFF_UP | IFF_LOOPBACK);
            let family = i32::from((*a.ifa_addr).sa_family);
            if family == AF_INET {
                let ip = (*a.ifa_addr.cast::<sockaddr_in>()).sin_addr.s_addr.to_ne_bytes();
                let mask = (*a.ifa_netmask.cast::<sockaddr_in>()).sin_addr.s_addr.to_ne_bytes();
                assert_eq!((ip, mask), ([127, 0, 0, 1], [255, 0, 0, 0]));
            }
            if family == AF_INET6 {
                assert_eq!((*a.ifa_addr.cast::<sockaddr_in6>()).sin6_addr.s6_addr, ONE6);
            }
            seen.push(family);
        }
        at = a.ifa_next;
    }
    freeifaddrs(list);
    seen.sort_unstable();
    assert!(seen.contains(&AF_INET) && seen.contains(&AF_PACKET), "{seen:?}");
}

unsafe fn open_route() -> i32 {
    ok(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE))
}

fn word(b: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(b[at..at + 4].try_into().unwrap())
}

/// Sends a request with this fixed part and returns the answer.
unsafe fn ask(fd: i32, kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut m = (16 + body.len() as u32).to_ne_bytes().to_vec();
    m.extend(kind.to_ne_bytes());
    m.extend(flags.to_ne_bytes());
    m.extend(77u32.to_ne_bytes());
    m.extend(0u32.to_ne_bytes());
    m.extend(body);
    let mut to: sockaddr_nl = zeroed();
    to.nl_family = AF_NETLINK as u16;
    is(sendto(fd, m.as_ptr().cast(), m.len(), 0, (&raw const to).cast(), 12), m.len() as i64);
    let mut b = vec![0u8; 32768];
    let n = ok(recv(fd, b.as_mut_ptr().cast(), b.len(), 0));
    b.truncate(n as usize);
    assert_eq!(word(&b, 8), 77);
    b
}

unsafe fn one_link() {
    let s = open_route();
    let mut body = [0u8; 16];
    body[4] = 1;
    let b = ask(s, RTM_GETLINK, NLM_F_REQUEST as u16, &body);
    assert_eq!(u16::from_ne_bytes([b[4], b[5]]), RTM_NEWLINK);
    assert_eq!(word(&b, 20), 1);
    assert!(b.windows(3).any(|w| w == b"lo\0"));
    body[4..8].copy_from_slice(&9999i32.to_ne_bytes());
    let b = ask(s, RTM_GETLINK, NLM_F_REQUEST as u16, &body);
    assert_eq!(u16::from_ne_bytes([b[4], b[5]]), NLMSG_ERROR as u16);
    assert_eq!(word(&b, 16) as i32, -ENODEV);
}

unsafe fn errors() {
    let s = open_route();
    // An empty request that asks for an acknowledgement.
    let b = ask(s, NLMSG_NOOP as u16, (NLM_F_REQUEST | NLM_F_ACK) as u16, &[]);
    assert_eq!((u16::from_ne_bytes([b[4], b[5]]), word(&b, 16)), (NLMSG_ERROR as u16, 0));
    in_child(|| {
        if geteuid() == 0 {
            become_nobody();
        }
        let s = open_route();
        let b = ask(s, RTM_NEWADDR, (NLM_F_REQUEST | NLM_F_ACK) as u16, &[0; 8]);
        assert_eq!(word(&b, 16) as i32, -EPERM);
    });
    recv_fails(s, MSG_DONTWAIT, EAGAIN);
    fails(shutdown(s, SHUT_RD), EOPNOTSUPP);
    fails(listen(s, 1), EOPNOTSUPP);
}

unsafe fn ports() {
    let (a, b) = (open_route(), open_route());
    let mut addr: sockaddr_nl = zeroed();
    addr.nl_family = AF_NETLINK as u16;
    let name = |fd: i32| {
        let mut a: sockaddr_nl = zeroed();
        let mut n = 12;
        ok(getsockname(fd, (&raw mut a).cast(), &mut n));
        assert_eq!(n, 12);
        a.nl_pid
    };
    assert_eq!(name(a), 0);
    fails(bind(a, (&raw const addr).cast(), 4), EINVAL);
    ok(bind(a, (&raw const addr).cast(), 12));
    ok(bind(b, (&raw const addr).cast(), 12));
    assert_eq!(name(a), getpid() as u32);
    assert!(name(b) != 0 && name(b) != name(a));
    addr.nl_pid = name(a);
    fails(bind(open_route(), (&raw const addr).cast(), 12), EADDRINUSE);
}

unsafe fn no_such_protocol() {
    fails(socket(AF_NETLINK, SOCK_RAW, 31), EPROTONOSUPPORT);
    fails(socket(AF_NETLINK, SOCK_RAW, 99), EPROTONOSUPPORT);
    fails(socket(AF_NETLINK, SOCK_STREAM, NETLINK_ROUTE), ESOCKTNOSUPPORT);
}
