//! Sockets of the unix family.

use crate::t::*;
use libc::*;
use std::mem::{size_of, zeroed};

pub const CASES: &[crate::Case] = cases![
    connected_to_itself,
    connected_to_its_listener,
    files_under_way,
    mode_before_bind,
    listener_with_many_that_wait
];

/// An abstract name of the process's own, and its length.
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

/// Files under way count for the user that sent them (`ETOOMANYREFS` of unix(7)), and for no other one.
unsafe fn files_under_way() {
    if geteuid() != 0 {
        return;
    }
    let become_user = |n: u32| {
        // A user that nobody else is.
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

/// What fchmod(2) has made of a socket's mode is that of the file which bind(2) makes.
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

/// All of them are told when it closes.
unsafe fn listener_with_many_that_wait() {
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
