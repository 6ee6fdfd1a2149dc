//! Waiting calls, each interrupted by a signal with a handler: they fail with EINTR and leave nothing behind.

use crate::t::*;
use libc::*;

pub const CASES: &[crate::Case] =
    cases![reads_and_writes, openings, moves_of_data, connections, messages, leases, sleeps, for_signals_only];

/// A signal interrupts the call, which has to wait.
#[track_caller]
pub unsafe fn cut_short<T: Ret>(call: impl FnOnce() -> T) {
    on(SIGUSR1, nothing as *const () as usize, 0);
    let other = interrupt_me(SIGUSR1);
    let r = call();
    let e = errno();
    exits(other, 0);
    assert!(r.value() == -1 && e == EINTR, "call returned {r:?} ({}) and should have been interrupted", name_of(e));
}

/// A pipe that is full.
unsafe fn full_pipe() -> (i32, i32) {
    let (r, w) = pipe_pair();
    ok(fcntl(w, F_SETFL, O_NONBLOCK));
    let page = [0u8; 4096];
    while write(w, page.as_ptr().cast(), 4096) > 0 {}
    while write(w, page.as_ptr().cast(), 1) > 0 {}
    ok(fcntl(w, F_SETFL, 0));
    (r, w)
}

unsafe fn reads_and_writes() {
    let (r, _keep) = pipe_pair();
    let (_keep, w) = full_pipe();
    let mut b = [0u8; 64];
    let iov = iovec { iov_base: b.as_mut_ptr().cast(), iov_len: 64 };
    cut_short(|| read(r, b.as_mut_ptr().cast(), 64));
    cut_short(|| readv(r, &iov, 1));
    cut_short(|| syscall(SYS_preadv2, r, &iov, 1, -1i64, -1i64, 0));
    cut_short(|| write(w, b.as_ptr().cast(), 64));
    cut_short(|| writev(w, &iov, 1));
    cut_short(|| syscall(SYS_pwritev2, w, &iov, 1, -1i64, -1i64, 0));
}

unsafe fn openings() {
    let t = Tmp::new();
    let p = t.p("fifo");
    ok(mkfifo(p.as_ptr(), 0o600));
    cut_short(|| syscall(SYS_open, p.as_ptr(), O_RDONLY));
    cut_short(|| syscall(SYS_openat, AT_FDCWD, p.as_ptr(), O_WRONLY));
    let how = [O_RDONLY as u64, 0, 0];
    cut_short(|| syscall(SYS_openat2, AT_FDCWD, p.as_ptr(), how.as_ptr(), 24));
    cut_short(|| syscall(SYS_creat, p.as_ptr(), 0o600));
}

unsafe fn moves_of_data() {
    let t = Tmp::new();
    let f = t.open("f");
    put(f, &[1; 4096]);
    let (empty, _keep) = pipe_pair();
    let (_keep, full) = full_pipe();
    let (some, more) = pipe_pair();
    put(more, b"abc");
    let mut at = 0i64;
    cut_short(|| sendfile(full, f, &mut at, 4096));
    cut_short(|| splice(empty, std::ptr::null_mut(), more, std::ptr::null_mut(), 64, 0));
    cut_short(|| splice(f, &mut at, full, std::ptr::null_mut(), 64, 0));
    cut_short(|| tee(empty, more, 64, 0));
    cut_short(|| tee(some, full, 64, 0));
    let b = [0u8; 64];
    let iov = iovec { iov_base: b.as_ptr().cast_mut().cast(), iov_len: 64 };
    cut_short(|| vmsplice(full, &iov, 1, 0));
}

unsafe fn address(t: &Tmp, name: &str) -> sockaddr_un {
    let mut a: sockaddr_un = zeroed();
    a.sun_family = AF_UNIX as u16;
    for (to, from) in a.sun_path.iter_mut().zip(t.s(name).bytes()) {
        *to = from as c_char;
    }
    a
}

unsafe fn connections() {
    let t = Tmp::new();
    let l = ok(socket(AF_UNIX, SOCK_STREAM, 0));
    let a = address(&t, "s");
    let len = size_of::<sockaddr_un>() as socklen_t;
    ok(bind(l, (&raw const a).cast(), len));
    ok(listen(l, 0));
    cut_short(|| accept(l, std::ptr::null_mut(), std::ptr::null_mut()));
    cut_short(|| accept4(l, std::ptr::null_mut(), std::ptr::null_mut(), SOCK_CLOEXEC));
    loop {
        let s = ok(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0));
        if connect(s, (&raw const a).cast(), len) == -1 {
            assert_eq!(errno(), EAGAIN);
            break;
        }
    }
    let s = ok(socket(AF_UNIX, SOCK_STREAM, 0));
    cut_short(|| connect(s, (&raw const a).cast(), len));
}

unsafe fn messages() {
    let mut s = [0; 2];
    ok(socketpair(AF_UNIX, SOCK_STREAM, 0, s.as_mut_ptr()));
    let mut b = [0u8; 256];
    let mut iov = iovec { iov_base: b.as_mut_ptr().cast(), iov_len: 256 };
    let mut header: mmsghdr = zeroed();
    header.msg_hdr.msg_iov = &mut iov;
    header.msg_hdr.msg_iovlen = 1;
    cut_short(|| recv(s[0], iov.iov_base, 1, 0));
    cut_short(|| recvmsg(s[0], &mut header.msg_hdr, 0));
    cut_short(|| recvmmsg(s[0], &mut header, 1, 0, std::ptr::null_mut()));
    while send(s[0], b.as_ptr().cast(), 256, MSG_DONTWAIT) > 0 {}
    while send(s[0], b.as_ptr().cast(), 1, MSG_DONTWAIT) > 0 {}
    assert_eq!(errno(), EAGAIN);
    cut_short(|| send(s[0], b.as_ptr().cast(), 256, 0));
    cut_short(|| sendmsg(s[0], &header.msg_hdr, 0));
    cut_short(|| sendmmsg(s[0], &mut header, 1, 0));
}

/// A lease delays opens and truncations of its file until the holder gives it up.
unsafe fn leases() {
    let t = Tmp::new();
    let p = t.file("f", b"12345");
    let (r, w) = pipe_pair();
    let holder = spawn(|| {
        signal(SIGIO, SIG_IGN);
        let fd = ok(open(p.as_ptr(), O_RDONLY));
        let got = fcntl(fd, F_SETLEASE, F_RDLCK);
        put(w, if got == 0 { b"y" } else { b"n" });
        loop {
            pause();
        }
    });
    if get(r, 1) == b"y" {
        cut_short(|| truncate(p.as_ptr(), 0));
        assert_eq!(stat_of(&p).st_size, 5);
    }
    ok(kill(holder, SIGKILL));
    dies(holder, SIGKILL);
}

unsafe fn sleeps() {
    let long = timespec { tv_sec: 1000, tv_nsec: 0 };
    let mut left: timespec = zeroed();
    cut_short(|| syscall(SYS_nanosleep, &long, &mut left));
    assert!(left.tv_sec >= 900 && left.tv_sec < 1000);
    cut_short(|| syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &long, &mut left));
    let wrong = timespec { tv_sec: 0, tv_nsec: 1_000_000_000 };
    fails(syscall(SYS_nanosleep, &wrong, 0), EINVAL);
    fails(syscall(SYS_nanosleep, BAD, 0), EFAULT);
    fails(syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &wrong, 0), EINVAL);
    fails(syscall(SYS_clock_nanosleep, 99, 0, &long, 0), EINVAL);
    let short = timespec { tv_sec: 0, tv_nsec: 1000 };
    zero(syscall(SYS_nanosleep, &short, 0) as i32);
    // There is no call to restart.
    fails(syscall(SYS_restart_syscall), EINTR);
}

unsafe fn for_signals_only() {
    cut_short(|| pause());
    let open: sigset_t = zeroed();
    cut_short(|| syscall(SYS_rt_sigsuspend, &open, 8));
    fails(syscall(SYS_rt_sigsuspend, &open, 4), EINVAL);
    let mut n = 0i32;
    fails(waitpid(-1, &mut n, 0), ECHILD);
}
