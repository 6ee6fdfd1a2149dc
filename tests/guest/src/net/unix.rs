//! Sockets of the AF_UNIX family.

use crate::t::*;
use libc::*;
use std::mem::{size_of, zeroed};

pub const CASES: &[crate::Case] = cases![
    connected_to_itself,
    connected_to_its_listener,
    files_in_flight,
    cycles_are_collected,
    many_cycles,
    receivable_sockets_stay,
    mode_before_bind,
    listener_with_many_waiting,
];

/// An abstract name that no other process uses, and its length.
unsafe fn name(of: u8) -> (sockaddr_un, u32) {
    let mut a: sockaddr_un = zeroed();
    a.sun_family = AF_UNIX as u16;
    let text = format!("\0unix-{}-{of}", getpid());
    for (to, from) in a.sun_path.iter_mut().zip(text.bytes()) {
        *to = from as c_char;
    }
    (a, (size_of::<sa_family_t>() + text.len()) as u32)
}

unsafe fn named(kind: i32, of: u8) -> (i32, sockaddr_un, u32) {
    let fd = ok(socket(AF_UNIX, kind | SOCK_CLOEXEC, 0));
    let (a, len) = name(of);
    ok(bind(fd, (&raw const a).cast(), len));
    (fd, a, len)
}

unsafe fn connected_to_itself() {
    let (fd, a, len) = named(SOCK_DGRAM, 0);
    for _ in 0..2 {
        ok(connect(fd, (&raw const a).cast(), len));
        is(send(fd, b"mine".as_ptr().cast(), 4, 0), 4);
        assert_eq!(get(fd, 4), b"mine");
    }
    let mut cred: ucred = zeroed();
    let mut n = size_of::<ucred>() as u32;
    ok(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, (&raw mut cred).cast(), &mut n));
    let (mut peer, mut n): (sockaddr_un, u32) = (zeroed(), size_of::<sockaddr_un>() as u32);
    ok(getpeername(fd, (&raw mut peer).cast(), &mut n));
    assert_eq!((n, peer.sun_path), (len, a.sun_path));
}

unsafe fn connected_to_its_listener() {
    for kind in [SOCK_STREAM, SOCK_SEQPACKET] {
        let (fd, a, len) = named(kind, kind as u8);
        ok(listen(fd, 1));
        fails(connect(fd, (&raw const a).cast(), len), EINVAL);
    }
}

unsafe fn pass(sock: i32, fd: i32) -> i64 {
    let mut byte = [0u8];
    let mut part = iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let mut control = [0u64; 3];
    let mut m: msghdr = zeroed();
    (m.msg_iov, m.msg_iovlen) = (&mut part, 1);
    (m.msg_control, m.msg_controllen) = (control.as_mut_ptr().cast(), CMSG_LEN(4) as usize);
    let h = CMSG_FIRSTHDR(&m);
    ((*h).cmsg_level, (*h).cmsg_type, (*h).cmsg_len) = (SOL_SOCKET, SCM_RIGHTS, CMSG_LEN(4) as usize);
    std::ptr::write_unaligned(CMSG_DATA(h).cast(), fd);
    sendmsg(sock, &m, MSG_DONTWAIT) as i64
}

/// Files in flight are charged to the sending user (`ETOOMANYREFS` of unix(7)), and to no other.
unsafe fn files_in_flight() {
    if geteuid() != 0 {
        return;
    }
    let become_user = |n: u32| {
        // A user id that no other process has.
        let uid = 200_000 + 2 * getpid() as u32 + n;
        ok(setrlimit(RLIMIT_NOFILE, &rlimit { rlim_cur: 32, rlim_max: 32 }));
        ok(setresuid(uid, uid, uid));
    };
    let mut s = [0; 2];
    ok(socketpair(AF_UNIX, SOCK_STREAM, 0, s.as_mut_ptr()));
    in_child(|| {
        become_user(0);
        let sent = (0..100).take_while(|_| pass(s[0], 0) == 1).count();
        assert_eq!(sent, 33);
        fails(pass(s[0], 0), ETOOMANYREFS);
    });
    in_child(|| {
        become_user(1);
        is(pass(s[0], 0), 1);
    });
}

unsafe fn pass_all(sock: i32, fds: &[i32]) -> i64 {
    let mut byte = [0u8];
    let mut part = iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let mut control = [0u64; 64];
    let len = 4 * fds.len() as u32;
    let mut m: msghdr = zeroed();
    (m.msg_iov, m.msg_iovlen) = (&mut part, 1);
    (m.msg_control, m.msg_controllen) = (control.as_mut_ptr().cast(), CMSG_SPACE(len) as usize);
    let h = CMSG_FIRSTHDR(&m);
    ((*h).cmsg_level, (*h).cmsg_type, (*h).cmsg_len) = (SOL_SOCKET, SCM_RIGHTS, CMSG_LEN(len) as usize);
    std::ptr::copy_nonoverlapping(fds.as_ptr().cast(), CMSG_DATA(h), len as usize);
    sendmsg(sock, &m, 0) as i64
}

/// The descriptors of the next message.
unsafe fn take(sock: i32, flags: i32) -> Vec<i32> {
    let mut byte = [0u8];
    let mut part = iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    let mut control = [0u64; 64];
    let mut m: msghdr = zeroed();
    (m.msg_iov, m.msg_iovlen) = (&mut part, 1);
    (m.msg_control, m.msg_controllen) = (control.as_mut_ptr().cast(), 512);
    is(recvmsg(sock, &mut m, flags), 1);
    let h = CMSG_FIRSTHDR(&m);
    if h.is_null() {
        return Vec::new();
    }
    let n = ((*h).cmsg_len - CMSG_LEN(0) as usize) / 4;
    (0..n).map(|i| std::ptr::read_unaligned(CMSG_DATA(h).cast::<i32>().add(i))).collect()
}

unsafe fn sockets(kind: i32) -> [i32; 2] {
    let mut pair = [0; 2];
    ok(socketpair(AF_UNIX, kind | SOCK_CLOEXEC, 0, pair.as_mut_ptr()));
    pair
}

unsafe fn close_all(fds: &[i32]) {
    fds.iter().for_each(|f| {
        ok(close(*f));
    });
}

/// The last write end of the pipe is closed, at the latest when another socket is closed.
unsafe fn ends(r: i32) {
    let mut byte = 0u8;
    ok(fcntl(r, F_SETFL, O_NONBLOCK));
    eventually("the end of the pipe", || {
        close_all(&sockets(SOCK_STREAM));
        read(r, (&raw mut byte).cast(), 1) == 0
    });
    ok(close(r));
}

/// Sockets that are referenced only from each other's queues are closed, with the contents of these queues.
unsafe fn cycles_are_collected() {
    for kind in [SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM] {
        // A socket in its own queue.
        let ([a, b], (r, w)) = (sockets(kind), pipe_pair());
        is(pass_all(a, &[b, w]), 1);
        close_all(&[b, w, a]);
        ends(r);
        // Each in the other's queue, and one more behind them; some of them several times.
        let ([a, b], [c, d], [e, f], (r, w)) = (sockets(kind), sockets(kind), sockets(kind), pipe_pair());
        is(pass_all(e, &[w]), 1);
        is(pass_all(a, &[d, f, d]), 1);
        is(pass_all(c, &[b, b]), 1);
        close_all(&[a, b, c, d, e, f, w]);
        ends(r);
    }
    // A datagram socket that is sent through itself; it has no other end that could be closed.
    let ((fd, a, len), (r, w)) = (named(SOCK_DGRAM, 7), pipe_pair());
    ok(connect(fd, (&raw const a).cast(), len));
    is(pass_all(fd, &[fd, w]), 1);
    close_all(&[fd, w]);
    ends(r);
    // A listener in the queue of a connection that it has not accepted yet.
    for kind in [SOCK_STREAM, SOCK_SEQPACKET] {
        let ((l, a, len), (r, w)) = (named(kind, 8), pipe_pair());
        ok(listen(l, 4));
        let client = ok(socket(AF_UNIX, kind | SOCK_CLOEXEC, 0));
        ok(connect(client, (&raw const a).cast(), len));
        is(pass_all(client, &[l, w]), 1);
        close_all(&[l, w, client]);
        ends(r);
    }
}

/// More files than may be in flight at once.
unsafe fn many_cycles() {
    for _ in 0..2000 {
        let [a, b] = sockets(SOCK_STREAM);
        let all = [b; 20];
        eventually("room for one more", || match pass_all(a, &all) {
            -1 => {
                assert_eq!(errno(), ETOOMANYREFS);
                close_all(&sockets(SOCK_STREAM));
                false
            }
            _ => true,
        });
        close_all(&[a, b]);
    }
}

/// A socket that can still be received keeps the contents of its queue, however it is passed on in the meantime.
unsafe fn receivable_sockets_stay() {
    let [to, from] = sockets(SOCK_SEQPACKET);
    // Garbage is made and collected all the time.
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let other = std::thread::spawn(move || {
        while !stopped.load(std::sync::atomic::Ordering::SeqCst) {
            let [a, b] = sockets(SOCK_STREAM);
            is(pass_all(a, &[b]), 1);
            close_all(&[a, b]);
        }
    });
    for round in 0..500 {
        // A pipe's end in a socket in a socket, none of which has another reference.
        let ((r, w), [a, b], [c, d]) = (pipe_pair(), sockets(SOCK_STREAM), sockets(SOCK_STREAM));
        is(pass_all(a, &[w]), 1);
        is(pass_all(c, &[b, d]), 1);
        is(pass_all(to, &[d]), 1);
        close_all(&[w, a, b, c, d]);
        if round % 3 == 0 {
            // A peek returns it; closing the copy leaves it in the queue.
            close_all(&take(from, MSG_PEEK));
        }
        let got = take(from, 0);
        // It contains itself as well.
        let inner = take(got[0], 0);
        let last = take(inner[0], 0);
        put(last[0], b"there");
        assert_eq!(get(r, 5), b"there", "round {round}");
        close_all(&got);
        close_all(&inner);
        close_all(&last);
        assert_eq!(get(r, 1), b"", "round {round}");
        ok(close(r));
    }
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    other.join().unwrap();
}

/// A mode set by fchmod(2) on a socket is that of the file which bind(2) creates.
unsafe fn mode_before_bind() {
    let t = Tmp::new();
    for (i, kind) in [SOCK_STREAM, SOCK_DGRAM].into_iter().enumerate() {
        for (j, (mode, mask, want)) in [(0o600, 0, 0o600), (0o666, 0o22, 0o644)].into_iter().enumerate() {
            let mut a: sockaddr_un = zeroed();
            a.sun_family = AF_UNIX as u16;
            let path = t.s(&format!("{i}{j}"));
            for (to, from) in a.sun_path.iter_mut().zip(path.bytes()) {
                *to = from as c_char;
            }
            let fd = ok(socket(AF_UNIX, kind | SOCK_CLOEXEC, 0));
            ok(fchmod(fd, mode));
            umask(mask);
            ok(bind(fd, (&raw const a).cast(), size_of::<sockaddr_un>() as u32));
            umask(0o022);
            assert_eq!(stat_of(&c(&path)).st_mode & 0o7777, want);
        }
    }
}

/// Closing the listener wakes all of them.
unsafe fn listener_with_many_waiting() {
    let (fd, a, len) = named(SOCK_STREAM, 0);
    ok(listen(fd, 300));
    let waiting: Vec<i32> = (0..300)
        .map(|_| {
            let s = ok(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
            ok(connect(s, (&raw const a).cast(), len));
            put(s, b"text");
            s
        })
        .collect();
    ok(close(fd));
    for s in waiting {
        let mut b = [0u8; 4];
        fails(recv(s, b.as_mut_ptr().cast(), 4, MSG_DONTWAIT), ECONNRESET);
    }
}
