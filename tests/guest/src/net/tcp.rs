//! TCP over loopback.

use super::*;
use std::ptr::null_mut;

pub const CASES: &[crate::Case] = cases![
    given_up_connects,
    bytes_both_ways,
    names,
    creation,
    bind_errors,
    port_conflicts,
    reuse,
    listen_rules,
    refused,
    nonblocking_connect,
    nonblocking_refused,
    connect_states,
    backlog,
    accept_blocks,
    accept_interrupted,
    accept_timeout,
    end_of_file,
    broken_pipe,
    sigpipe,
    reset_by_linger,
    reset_by_unread,
    shutdown_rules,
    shutdown_listener,
    closed_listener,
    poll_states,
    peek_and_wait_all,
    trunc_discards,
    urgent,
    urgent_inline,
    full_buffers,
    disconnect,
    epoll_edges,
    fork_server,
    many_connections,
    reuseport_spreads,
    big_stream,
];

unsafe fn bytes_both_ways() {
    let (c, s) = pair();
    put(c, b"question");
    assert_eq!(get(s, 99), b"question");
    put(s, b"answer");
    put(s, b" two");
    assert_eq!(get_all(c, 10), b"answer two");
}

unsafe fn names() {
    let (l, port) = server(1);
    assert!((32768..61000).contains(&port), "{port}");
    assert_eq!(name4(l), ([127, 0, 0, 1], port));
    peer_fails(l, ENOTCONN);
    let c = tcp();
    assert_eq!(name4(c), ([0; 4], 0));
    peer_fails(c, ENOTCONN);
    ok(connect4(c, lo(1, port)));
    let (ip, own) = name4(c);
    assert_eq!(ip, [127, 0, 0, 1]);
    assert_eq!(peer4(c), ([127, 0, 0, 1], port));
    let mut a: sockaddr_in = zeroed();
    let mut n = 100;
    let s = ok(accept(l, (&raw mut a).cast(), &mut n));
    assert_eq!((n, u16::from_be(a.sin_port)), (LEN4, own));
    assert_eq!(name4(s), ([127, 0, 0, 1], port));
    assert_eq!(peer4(s), ([127, 0, 0, 1], own));
    // A value is cut to the buffer, and the length returned is the full one.
    let mut n = 4;
    let mut b = [0xaau8; 16];
    ok(getsockname(s, b.as_mut_ptr().cast(), &mut n));
    assert_eq!((n, b[4]), (LEN4, 0xaa));
    fails(getsockname(s, b.as_mut_ptr().cast(), BAD.cast()), EFAULT);
}

unsafe fn creation() {
    for (d, k, p, e) in [
        (AF_INET, SOCK_STREAM, IPPROTO_UDP, EPROTONOSUPPORT),
        (AF_INET, SOCK_DGRAM, IPPROTO_TCP, EPROTONOSUPPORT),
        (AF_INET, SOCK_SEQPACKET, 0, ESOCKTNOSUPPORT),
        (AF_INET, SOCK_RAW, 0, EPROTONOSUPPORT),
        (AF_INET, SOCK_STREAM, -1, EINVAL),
        (AF_INET, 77, 0, EINVAL),
        (AF_INET, SOCK_STREAM | 0x100, 0, EINVAL),
        (AF_INET6, SOCK_STREAM, IPPROTO_UDP, EPROTONOSUPPORT),
        (99, SOCK_STREAM, 0, EAFNOSUPPORT),
        (-1, SOCK_STREAM, 0, EAFNOSUPPORT),
    ] {
        fails(socket(d, k, p), e);
    }
    let mut fds = [0; 2];
    fails(socketpair(AF_INET, SOCK_STREAM, 0, fds.as_mut_ptr()), EOPNOTSUPP);
    let t = ok(socket(AF_INET, SOCK_STREAM, IPPROTO_TCP));
    assert_eq!(get_int(t, SOL_SOCKET, SO_PROTOCOL), IPPROTO_TCP);
    assert_eq!(get_int(t, SOL_SOCKET, SO_TYPE), SOCK_STREAM);
    assert_eq!(get_int(t, SOL_SOCKET, SO_DOMAIN), AF_INET);
    in_child(|| {
        if geteuid() == 0 {
            become_nobody();
        }
        fails(socket(AF_INET, SOCK_RAW, IPPROTO_ICMP), EPERM);
    });
}

unsafe fn bind_errors() {
    let s = tcp();
    let a = lo(1, 0);
    fails(bind(s, (&raw const a).cast(), 8), EINVAL);
    fails(bind(s, BAD.cast(), LEN4), EFAULT);
    let mut six = lo(1, 0);
    six.sin_family = AF_INET6 as u16;
    fails(bind4(s, six), EAFNOSUPPORT);
    fails(bind4(s, v4([192, 0, 2, 1], 0)), EADDRNOTAVAIL);
    let mut unspec = lo(1, 0);
    unspec.sin_family = 0;
    fails(bind4(s, unspec), EAFNOSUPPORT);
    unspec.sin_addr.s_addr = 0;
    ok(bind4(s, unspec));
    fails(bind4(s, lo(1, 0)), EINVAL);
    fails(bind4(0x7fff, lo(1, 0)), EBADF);
    let (r, _) = pipe_pair();
    fails(bind4(r, lo(1, 0)), ENOTSOCK);
    in_child(|| {
        if geteuid() == 0 {
            become_nobody();
        }
        fails(bind4(tcp(), lo(1, 79)), EACCES);
    });
}

unsafe fn port_conflicts() {
    let a = tcp();
    ok(bind4(a, lo(1, 0)));
    let port = name4(a).1;
    fails(bind4(tcp(), lo(1, port)), EADDRINUSE);
    fails(bind4(tcp(), v4([0; 4], port)), EADDRINUSE);
    ok(bind4(tcp(), lo(2, port)));
    // UDP has its own ports.
    ok(bind4(udp(), lo(1, port)));
    close(a);
    ok(bind4(tcp(), lo(1, port)));
}

unsafe fn reuse() {
    let one = |f: i32| {
        let s = tcp();
        if f != 0 {
            ok(set(s, SOL_SOCKET, f, 1));
        }
        s
    };
    let a = one(SO_REUSEADDR);
    ok(bind4(a, lo(1, 0)));
    let port = name4(a).1;
    let b = one(SO_REUSEADDR);
    ok(bind4(b, lo(1, port)));
    fails(bind4(one(0), lo(1, port)), EADDRINUSE);
    ok(listen(a, 1));
    fails(listen(b, 1), EADDRINUSE);
    fails(bind4(one(SO_REUSEADDR), lo(1, port)), EADDRINUSE);
    // With SO_REUSEADDR, connections left behind by a server do not hold its port.
    let c = tcp();
    ok(connect4(c, lo(1, port)));
    let s = take(a);
    close(a);
    close(b);
    fails(bind4(one(0), lo(1, port)), EADDRINUSE);
    let again = one(SO_REUSEADDR);
    ok(bind4(again, lo(1, port)));
    ok(listen(again, 1));
    put(c, b"x");
    assert_eq!(get(s, 9), b"x");
    let p = one(SO_REUSEPORT);
    ok(bind4(p, lo(1, 0)));
    let port = name4(p).1;
    fails(bind4(one(0), lo(1, port)), EADDRINUSE);
    let q = one(SO_REUSEPORT);
    ok(bind4(q, lo(1, port)));
    ok(listen(p, 1));
    ok(listen(q, 1));
}

unsafe fn listen_rules() {
    let s = tcp();
    fails(accept(s, null_mut(), null_mut()), EINVAL);
    ok(listen(s, 1));
    let (ip, port) = name4(s);
    assert!(ip == [0; 4] && port != 0);
    assert_eq!(get_int(s, SOL_SOCKET, SO_ACCEPTCONN), 1);
    ok(listen(s, 7));
    let c = tcp();
    ok(connect4(c, lo(1, port)));
    fails(listen(c, 1), EINVAL);
    fails(connect4(s, lo(1, port)), EISCONN);
    fails(accept(c, null_mut(), null_mut()), EINVAL);
    recv_fails(s, 0, ENOTCONN);
    fails(send_to(s, b"x", 0), EPIPE);
    fails(listen(udp(), 1), EOPNOTSUPP);
    fails(accept(udp(), null_mut(), null_mut()), EOPNOTSUPP);
}

/// A port of 127.0.0.1 without a listener.
unsafe fn dead_port() -> (i32, u16) {
    let s = tcp();
    ok(bind4(s, lo(1, 0)));
    (s, name4(s).1)
}

unsafe fn refused() {
    let (hold, port) = dead_port();
    let c = tcp();
    fails(connect4(c, lo(1, port)), ECONNREFUSED);
    assert_eq!(so_error(c), 0);
    // The same socket can try again.
    ok(listen(hold, 1));
    ok(connect4(c, lo(1, port)));
    fails(connect4(c, lo(1, port)), EISCONN);
    let c = tcp();
    fails(connect(c, (&raw const port).cast(), 1), EINVAL);
    let a = lo(1, port);
    fails(connect(c, (&raw const a).cast(), 8), EINVAL);
    let mut a = lo(1, port);
    a.sin_family = AF_UNIX as u16;
    fails(connect4(c, a), EAFNOSUPPORT);
}

unsafe fn nonblocking_connect() {
    let (l, port) = server(3);
    let c = tcp();
    nonblock(c);
    fails(connect4(c, lo(1, port)), EINPROGRESS);
    shows(c, POLLOUT);
    assert_eq!(so_error(c), 0);
    is(connect4(c, lo(1, port)), 0);
    fails(connect4(c, lo(1, port)), EISCONN);
    recv_fails(c, 0, EAGAIN);
    let s = take(l);
    put(s, b"hi");
    shows(c, POLLIN | POLLOUT);
    assert_eq!(get(c, 9), b"hi");
    nonblock(l);
    fails(accept(l, null_mut(), null_mut()), EAGAIN);
}

unsafe fn nonblocking_refused() {
    let (_hold, port) = dead_port();
    let c = tcp();
    nonblock(c);
    fails(connect4(c, lo(1, port)), EINPROGRESS);
    shows(c, POLLIN | POLLOUT | POLLERR | POLLHUP | POLLRDHUP);
    assert_eq!(so_error(c), ECONNREFUSED);
    assert_eq!(so_error(c), 0);
    fails(connect4(c, lo(1, port)), ECONNABORTED);
    fails(connect4(c, lo(1, port)), EINPROGRESS);
    fails(connect4(c, lo(1, port)), ECONNREFUSED);
}

unsafe fn connect_states() {
    let c = tcp();
    recv_fails(c, 0, ENOTCONN);
    fails(send_to(c, b"x", 0), EPIPE);
    assert_eq!(ready(c), i32::from(POLLOUT | POLLHUP));
    fails(shutdown(c, SHUT_RDWR), ENOTCONN);
    fails(shutdown(c, 9), EINVAL);
}

unsafe fn backlog() {
    let (l, port) = server(1);
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let c = tcp();
        ok(connect4(c, lo(1, port)));
        waiting.push(c);
    }
    // The backlog is full: the next connection neither completes nor fails.
    let c = tcp();
    nonblock(c);
    fails(connect4(c, lo(1, port)), EINPROGRESS);
    assert_eq!(ready_in(c, 50), 0);
    fails(connect4(c, lo(1, port)), EALREADY);
    fails(send_to(c, b"x", 0), EAGAIN);
    recv_fails(c, 0, EAGAIN);
    peer_fails(c, ENOTCONN);
    take(l);
    shows(c, POLLOUT);
    take(l);
    put(c, b"at last");
    assert_eq!(get(take(l), 99), b"at last");
}

unsafe fn accept_blocks() {
    let (l, port) = server(1);
    let me = getpid();
    let pid = spawn(|| {
        asleep(me);
        let c = tcp();
        ok(connect4(c, lo(1, port)));
        put(c, b"hello");
        0
    });
    let s = take(l);
    assert_eq!(get_all(s, 5), b"hello");
    assert_eq!(get(s, 9), b"");
    exits(pid, 0);
}

unsafe fn accept_interrupted() {
    let (l, _) = server(1);
    on(SIGUSR1, nothing as *const () as usize, 0);
    let pid = interrupt_me(SIGUSR1);
    fails(accept(l, null_mut(), null_mut()), EINTR);
    exits(pid, 0);
    let (c, _s) = pair();
    let pid = interrupt_me(SIGUSR1);
    recv_fails(c, 0, EINTR);
    exits(pid, 0);
}

unsafe fn accept_timeout() {
    let (l, _) = server(1);
    let t = timeval { tv_sec: 0, tv_usec: 20_000 };
    ok(setsockopt(l, SOL_SOCKET, SO_RCVTIMEO, (&raw const t).cast(), 16));
    fails(accept(l, null_mut(), null_mut()), EAGAIN);
    let (c, _s) = pair();
    ok(setsockopt(c, SOL_SOCKET, SO_RCVTIMEO, (&raw const t).cast(), 16));
    recv_fails(c, 0, EAGAIN);
}

unsafe fn end_of_file() {
    let (c, s) = pair();
    put(c, b"last words");
    close(c);
    shows(s, POLLIN | POLLOUT | POLLRDHUP);
    assert_eq!(get(s, 99), b"last words");
    assert_eq!(get(s, 99), b"");
    assert_eq!(get(s, 99), b"");
}

unsafe fn broken_pipe() {
    let (c, s) = pair();
    close(s);
    shows(c, POLLIN | POLLOUT | POLLRDHUP);
    is(send_to(c, b"", 0), 0);
    // The first byte goes out and is answered by a reset, which the second send sees.
    is(send_to(c, b"x", 0), 1);
    eventually("reset", || ready(c) & i32::from(POLLERR) != 0);
    fails(send_to(c, b"x", 0), EPIPE);
    fails(send_to(c, b"x", 0), EPIPE);
    assert_eq!(get(c, 9), b"");
    peer_fails(c, ENOTCONN);
}

unsafe fn sigpipe() {
    let (c, s) = pair();
    ok(shutdown(c, SHUT_WR));
    in_child(|| {
        signal(SIGPIPE, SIG_IGN);
        fails(write(c, b"x".as_ptr().cast(), 1), EPIPE);
        fails(send(c, b"x".as_ptr().cast(), 1, 0), EPIPE);
    });
    let pid = spawn(|| {
        write(c, b"x".as_ptr().cast(), 1);
        0
    });
    dies(pid, SIGPIPE);
    let pid = spawn(|| {
        fails(send_to(c, b"x", 0), EPIPE);
        7
    });
    exits(pid, 7);
    assert_eq!(get(s, 9), b"");
}

unsafe fn reset_by_linger() {
    let (c, s) = pair();
    put(c, b"data");
    let l = linger { l_onoff: 1, l_linger: 0 };
    ok(setsockopt(c, SOL_SOCKET, SO_LINGER, (&raw const l).cast(), 8));
    close(c);
    shows(s, POLLIN | POLLOUT | POLLERR | POLLHUP | POLLRDHUP);
    // Bytes that arrived before can still be read.
    assert_eq!(get(s, 99), b"data");
    recv_fails(s, 0, ECONNRESET);
    assert_eq!(get(s, 99), b"");
    fails(send_to(s, b"x", 0), EPIPE);
    let (c, s) = pair();
    ok(setsockopt(c, SOL_SOCKET, SO_LINGER, (&raw const l).cast(), 8));
    close(c);
    eventually("error", || ready(s) & i32::from(POLLERR) != 0);
    assert_eq!(so_error(s), ECONNRESET);
    assert_eq!(get(s, 99), b"");
}

unsafe fn reset_by_unread() {
    let (c, s) = pair();
    put(c, b"never read");
    shows(s, POLLIN | POLLOUT);
    close(s);
    eventually("error", || ready(c) & i32::from(POLLERR) != 0);
    fails(send_to(c, b"x", 0), ECONNRESET);
    fails(send_to(c, b"x", 0), EPIPE);
}

unsafe fn shutdown_rules() {
    let (c, s) = pair();
    put(c, b"abc");
    ok(shutdown(c, SHUT_WR));
    ok(shutdown(c, SHUT_WR));
    assert_eq!(get(s, 99), b"abc");
    assert_eq!(get(s, 99), b"");
    put(s, b"still");
    assert_eq!(get(c, 99), b"still");
    ok(shutdown(s, SHUT_WR));
    assert_eq!(get(c, 99), b"");
    shows(c, POLLIN | POLLOUT | POLLHUP | POLLRDHUP);
    // After SHUT_RD a socket still receives data.
    let (c, s) = pair();
    ok(shutdown(c, SHUT_RD));
    assert_eq!(get(c, 9), b"");
    shows(c, POLLIN | POLLOUT | POLLRDHUP);
    put(s, b"late");
    eventually("late bytes", || recv_from(c, MSG_DONTWAIT) == b"late");
    ok(shutdown(c, SHUT_WR));
    assert_eq!(ready(c), i32::from(POLLIN | POLLOUT | POLLHUP | POLLRDHUP));
}

unsafe fn shutdown_listener() {
    let (l, port) = server(1);
    let c = tcp();
    ok(connect4(c, lo(1, port)));
    ok(shutdown(l, SHUT_WR));
    let c2 = tcp();
    ok(connect4(c2, lo(1, port)));
    ok(shutdown(l, SHUT_RD));
    fails(accept(l, null_mut(), null_mut()), EINVAL);
    fails(connect4(tcp(), lo(1, port)), ECONNREFUSED);
    recv_fails(c, 0, ECONNRESET);
    ok(listen(l, 1));
    assert_ne!(name4(l).1, 0);
}

unsafe fn closed_listener() {
    let (l, port) = server(1);
    let c = tcp();
    ok(connect4(c, lo(1, port)));
    put(c, b"unheard");
    close(l);
    eventually("error", || ready(c) & i32::from(POLLERR) != 0);
    recv_fails(c, 0, ECONNRESET);
    fails(connect4(tcp(), lo(1, port)), ECONNREFUSED);
}

unsafe fn poll_states() {
    let (l, port) = server(1);
    assert_eq!(ready(l), 0);
    let c = tcp();
    ok(connect4(c, lo(1, port)));
    shows(l, POLLIN);
    let s = take(l);
    assert_eq!(ready(l), 0);
    assert_eq!((ready(c), ready(s)), (i32::from(POLLOUT), i32::from(POLLOUT)));
    put(c, b"xy");
    shows(s, POLLIN | POLLOUT);
    ok(set(s, SOL_SOCKET, SO_RCVLOWAT, 3));
    assert_eq!(ready(s), i32::from(POLLOUT));
    put(c, b"z");
    shows(s, POLLIN | POLLOUT);
}

unsafe fn peek_and_wait_all() {
    let (c, s) = pair();
    put(c, b"abcdef");
    eventually("bytes", || {
        let mut n = 0;
        ok(ioctl(s, FIONREAD, &mut n));
        n == 6
    });
    assert_eq!(recv_from(s, MSG_PEEK), b"abcdef");
    let mut b = [0u8; 4];
    is(recv(s, b.as_mut_ptr().cast(), 4, 0), 4);
    assert_eq!(&b, b"abcd");
    let me = getpid();
    let pid = spawn(|| {
        asleep(me);
        put(c, b"gh");
        0
    });
    is(recv(s, b.as_mut_ptr().cast(), 4, MSG_WAITALL), 4);
    assert_eq!(&b, b"efgh");
    exits(pid, 0);
    recv_fails(s, MSG_DONTWAIT, EAGAIN);
    is(read(s, b.as_mut_ptr().cast(), 0), 0);
    let mut a: sockaddr_in = zeroed();
    let mut n = LEN4;
    put(c, b"z");
    is(recvfrom(s, b.as_mut_ptr().cast(), 4, 0, (&raw mut a).cast(), &mut n), 1);
    assert_eq!(n, 0);
}

unsafe fn trunc_discards() {
    let (c, s) = pair();
    put(c, b"abcdef");
    eventually("bytes", || recv_from(s, MSG_PEEK).len() == 6);
    let mut b = [b'-'; 4];
    is(recv(s, b.as_mut_ptr().cast(), 4, MSG_TRUNC), 4);
    assert_eq!(&b, b"----");
    assert_eq!(get(s, 9), b"ef");
}

unsafe fn at_mark(fd: i32) -> bool {
    const SIOCATMARK: u64 = 0x8905;
    let mut at = -1;
    ok(ioctl(fd, SIOCATMARK, &mut at));
    at == 1
}

unsafe fn urgent() {
    let (c, s) = pair();
    recv_fails(s, MSG_OOB | MSG_DONTWAIT, EINVAL);
    put(c, b"ab");
    is(send_to(c, b"c!", MSG_OOB), 2);
    put(c, b"de");
    shows(s, POLLIN | POLLOUT | POLLPRI);
    eventually("all", || {
        let mut n = 0;
        ok(ioctl(s, FIONREAD, &mut n));
        n >= 3
    });
    assert!(!at_mark(s));
    assert_eq!(recv_from(s, 0), b"abc");
    assert!(at_mark(s));
    assert_eq!(recv_from(s, MSG_OOB), b"!");
    recv_fails(s, MSG_OOB, EINVAL);
    assert_eq!(ready(s), i32::from(POLLIN | POLLOUT));
    assert_eq!(recv_from(s, 0), b"de");
    assert!(!at_mark(s));
}

unsafe fn urgent_inline() {
    let (c, s) = pair();
    ok(set(s, SOL_SOCKET, SO_OOBINLINE, 1));
    put(c, b"ab");
    is(send_to(c, b"!", MSG_OOB), 1);
    put(c, b"cd");
    shows(s, POLLIN | POLLOUT | POLLPRI);
    eventually("all", || recv_from(s, MSG_PEEK).starts_with(b"ab"));
    assert_eq!(recv_from(s, 0), b"ab");
    assert!(at_mark(s));
    recv_fails(s, MSG_OOB, EINVAL);
    eventually("rest", || recv_from(s, MSG_PEEK) == b"!cd");
    assert_eq!(recv_from(s, 0), b"!cd");
}

unsafe fn full_buffers() {
    let (c, s) = pair();
    nonblock(c);
    let block = [7u8; 65536];
    let mut sent = 0usize;
    eventually("full", || {
        let n = send(c, block.as_ptr().cast(), block.len(), MSG_NOSIGNAL);
        if n > 0 {
            sent += n as usize;
            return false;
        }
        assert_eq!(errno(), EAGAIN);
        true
    });
    eventually("not writable", || ready(c) & i32::from(POLLOUT) == 0);
    let mut got = 0;
    let mut b = vec![0u8; 1 << 20];
    while got < sent {
        let n = ok(recv(s, b.as_mut_ptr().cast(), b.len(), 0));
        assert!(n > 0 && b[..n as usize].iter().all(|&x| x == 7));
        got += n as usize;
    }
    shows(c, POLLOUT);
}

unsafe fn disconnect() {
    let (c, s) = pair();
    let mut a = lo(1, 0);
    a.sin_family = AF_UNSPEC as u16;
    ok(connect4(c, a));
    assert_eq!(name4(c).0, [0; 4]);
    peer_fails(c, ENOTCONN);
    recv_fails(s, 0, ECONNRESET);
    let (l, port) = server(1);
    ok(connect4(c, lo(1, port)));
    put(c, b"again");
    assert_eq!(get(take(l), 9), b"again");
}

unsafe fn epoll_edges() {
    let (l, port) = server(4);
    let ep = ok(epoll_create1(EPOLL_CLOEXEC));
    let add = |fd: i32, events: i32| {
        let mut ev = epoll_event { events: events as u32, u64: fd as u64 };
        ok(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &mut ev));
    };
    let wait = |ms: i32| {
        let mut ev: [epoll_event; 4] = zeroed();
        let n = ok(epoll_wait(ep, ev.as_mut_ptr(), 4, ms));
        ev[..n as usize].iter().map(|e| ({ e.u64 } as i32, { e.events } as i32)).collect::<Vec<_>>()
    };
    add(l, EPOLLIN | EPOLLET);
    let c = tcp();
    nonblock(c);
    add(c, EPOLLOUT | EPOLLIN | EPOLLRDHUP | EPOLLET);
    wait(0);
    fails(connect4(c, lo(1, port)), EINPROGRESS);
    let mut seen = Vec::new();
    eventually("both", || {
        seen.extend(wait(100));
        seen.contains(&(l, EPOLLIN)) && seen.contains(&(c, EPOLLOUT))
    });
    assert_eq!(wait(0), []);
    let s = take(l);
    put(s, b"1");
    assert_eq!(wait(1000), [(c, EPOLLIN | EPOLLOUT)]);
    assert_eq!(wait(0), []);
    put(s, b"2");
    assert_eq!(wait(1000), [(c, EPOLLIN | EPOLLOUT)]);
    close(s);
    eventually("hang-up", || wait(100).iter().any(|(_, e)| e & EPOLLRDHUP != 0));
}

unsafe fn fork_server() {
    let (l, port) = server(16);
    let workers: Vec<_> = (0..3)
        .map(|i| {
            spawn(|| {
                for _ in 0..10 {
                    let s = take(l);
                    let n = get_all(s, 1)[0];
                    put(s, &[n, i]);
                    close(s);
                }
                0
            })
        })
        .collect();
    for n in 0..30u8 {
        let c = tcp();
        ok(connect4(c, lo(1, port)));
        put(c, &[n]);
        let got = get_all(c, 2);
        assert!(got[0] == n && got[1] < 3);
        assert_eq!(get(c, 9), b"");
        close(c);
    }
    for w in workers {
        exits(w, 0);
    }
}

unsafe fn many_connections() {
    let (l, port) = server(200);
    let mut all = Vec::new();
    for i in 0..150u8 {
        let c = tcp();
        ok(connect4(c, lo(1, port)));
        put(c, &[i]);
        all.push(c);
    }
    let mut ports: Vec<u16> = all.iter().map(|c| name4(*c).1).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 150);
    for i in 0..150u8 {
        let s = take(l);
        assert_eq!(get(s, 9), [i]);
        close(s);
    }
}

unsafe fn reuseport_spreads() {
    let bound = |port: u16| {
        let s = tcp();
        ok(set(s, SOL_SOCKET, SO_REUSEPORT, 1));
        ok(bind4(s, lo(1, port)));
        ok(listen(s, 64));
        s
    };
    let a = bound(0);
    let port = name4(a).1;
    let b = bound(port);
    let clients: Vec<i32> = (0..40)
        .map(|_| {
            let c = tcp();
            ok(connect4(c, lo(1, port)));
            c
        })
        .collect();
    let mut n = [0, 0];
    for (i, l) in [a, b].into_iter().enumerate() {
        nonblock(l);
        while accept(l, null_mut(), null_mut()) >= 0 {
            n[i] += 1;
        }
    }
    assert!(n[0] > 0 && n[1] > 0 && n[0] + n[1] == clients.len(), "{n:?}");
}

unsafe fn big_stream() {
    let (c, s) = pair();
    const TOTAL: usize = 8 << 20;
    let pid = spawn(|| {
        close(c);
        let mut block = vec![0u8; 100_000];
        let mut at = 0usize;
        while at < TOTAL {
            let n = block.len().min(TOTAL - at);
            for (i, b) in block[..n].iter_mut().enumerate() {
                *b = ((at + i) % 251) as u8;
            }
            put(s, &block[..n]);
            at += n;
        }
        0
    });
    close(s);
    let mut at = 0;
    loop {
        let b = get(c, 70_001);
        if b.is_empty() {
            break;
        }
        for (i, x) in b.iter().enumerate() {
            assert_eq!(*x, ((at + i) % 251) as u8);
        }
        at += b.len();
    }
    assert_eq!(at, TOTAL);
    exits(pid, 0);
}

/// A socket that gave up connecting to a full listener is never accepted there, whatever it connects to next.
unsafe fn given_up_connects() {
    let (a, a_port) = server(0);
    let (b, b_port) = server(0);
    let fillers = [a_port, b_port].map(|port| {
        let f = tcp();
        ok(connect4(f, lo(1, port)));
        f
    });
    let s = tcp();
    nonblock(s);
    let mut none: sockaddr = std::mem::zeroed();
    none.sa_family = AF_UNSPEC as u16;
    for _ in 0..100 {
        fails(connect4(s, lo(1, a_port)), EINPROGRESS);
        ok(connect(s, &none, size_of::<sockaddr>() as u32));
    }
    fails(connect4(s, lo(1, b_port)), EINPROGRESS);
    nonblock(a);
    let first = take(a);
    assert_eq!(peer4(first), name4(fillers[0]));
    fails(accept(a, null_mut(), null_mut()), EAGAIN);
    // The other listener has room now; the SYN is retransmitted after a second.
    let first = take(b);
    assert_eq!(peer4(first), name4(fillers[1]));
    assert_eq!(peer4(take(b)), name4(s));
    assert_eq!(peer4(s).1, b_port);
}
