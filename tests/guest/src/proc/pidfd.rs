//! pidfd_open(2) and the calls that take a pidfd.

use crate::t::*;
use libc::*;

pub const CASES: &[crate::Case] =
    cases![open_and_poll, send_signal, through_proc, errors, wait_by_pidfd, getfd, nonblocking_wait, epoll_on_pidfd];

unsafe fn pidfd(pid: pid_t, flags: u32) -> i32 {
    syscall(SYS_pidfd_open, pid, flags) as i32
}

unsafe fn idle() -> pid_t {
    spawn(|| loop {
        pause();
    })
}

unsafe fn open_and_poll() {
    let pid = idle();
    let fd = ok(pidfd(pid, 0));
    is(fcntl(fd, F_GETFD), FD_CLOEXEC.into());
    let mut p = pollfd { fd, events: POLLIN, revents: 0 };
    is(poll(&mut p, 1, 0), 0);
    ok(kill(pid, SIGKILL));
    is(poll(&mut p, 1, 5000), 1);
    assert_ne!(p.revents & POLLIN, 0);
    dies(pid, SIGKILL);
    is(poll(&mut p, 1, 0), 1);
}

unsafe fn send_signal() {
    let pid = idle();
    let fd = ok(pidfd(pid, 0));
    ok(syscall(SYS_pidfd_send_signal, fd, 0, 0, 0));
    ok(syscall(SYS_pidfd_send_signal, fd, SIGTERM, 0, 0));
    dies(pid, SIGTERM);
    fails(syscall(SYS_pidfd_send_signal, fd, 0, 0, 0), ESRCH);
}

unsafe fn through_proc() {
    let pid = idle();
    let fd = ok(open(c(&format!("/proc/{pid}")).as_ptr(), O_RDONLY | O_DIRECTORY));
    ok(syscall(SYS_pidfd_send_signal, fd, 0, 0, 0));
    ok(syscall(SYS_pidfd_send_signal, fd, SIGTERM, 0, 0));
    dies(pid, SIGTERM);
    fails(syscall(SYS_pidfd_send_signal, fd, 0, 0, 0), ESRCH);
    let other = ok(open(c("/proc").as_ptr(), O_RDONLY | O_DIRECTORY));
    fails(syscall(SYS_pidfd_send_signal, other, 0, 0, 0), EBADF);
}

unsafe fn errors() {
    fails(pidfd(0x3fff_ffff, 0), ESRCH);
    fails(pidfd(-1, 0), EINVAL);
    fails(pidfd(0, 0), EINVAL);
    fails(pidfd(getpid(), 0x1), EINVAL);
    fails(syscall(SYS_pidfd_send_signal, 0, SIGTERM, 0, 0), EBADF);
    fails(syscall(SYS_pidfd_send_signal, -1, SIGTERM, 0, 0), EBADF);
    let fd = ok(pidfd(getpid(), 0));
    fails(syscall(SYS_pidfd_send_signal, fd, 0, 0, 0x1000), EINVAL);
    fails(syscall(SYS_pidfd_send_signal, fd, 99, 0, 0), EINVAL);
    let mut b = 0u8;
    fails(read(fd, (&raw mut b).cast(), 1), EINVAL);
}

unsafe fn wait_by_pidfd() {
    let pid = spawn(|| 19);
    let fd = ok(pidfd(pid, 0));
    let mut i: siginfo_t = zeroed();
    is(waitid(P_PIDFD, fd as u32, &mut i, WEXITED), 0);
    assert_eq!((i.si_pid(), i.si_status()), (pid, 19));
    fails(waitid(P_PIDFD, fd as u32, &mut i, WEXITED), ECHILD);
    fails(waitid(P_PIDFD, 999, &mut i, WEXITED), EBADF);
}

unsafe fn getfd() {
    let (r, w) = pipe_pair();
    let (r2, w2) = pipe_pair();
    let pid = spawn(|| {
        let (a, b) = pipe_pair();
        ok(dup2(a, 300));
        put(b, b"inside");
        put(w, b"x");
        get(r2, 1);
        0
    });
    get(r, 1);
    let fd = ok(pidfd(pid, 0));
    let got = ok(syscall(SYS_pidfd_getfd, fd, 300, 0)) as i32;
    assert_eq!(get(got, 10), b"inside");
    is(fcntl(got, F_GETFD), 1);
    fails(syscall(SYS_pidfd_getfd, fd, 301, 0), EBADF);
    fails(syscall(SYS_pidfd_getfd, fd, 300, 1), EINVAL);
    fails(syscall(SYS_pidfd_getfd, r, 300, 0), EBADF);
    put(w2, b"x");
    exits(pid, 0);
    fails(syscall(SYS_pidfd_getfd, fd, 300, 0), ESRCH);
}

unsafe fn nonblocking_wait() {
    let pid = idle();
    let fd = ok(pidfd(pid, O_NONBLOCK as u32));
    let mut i: siginfo_t = zeroed();
    fails(waitid(P_PIDFD, fd as u32, &mut i, WEXITED), EAGAIN);
    ok(kill(pid, SIGKILL));
    dies(pid, SIGKILL);
}

unsafe fn epoll_on_pidfd() {
    let pid = idle();
    let fd = ok(pidfd(pid, 0));
    let e = ok(epoll_create1(0));
    let mut ev = epoll_event { events: EPOLLIN as u32, u64: 7 };
    ok(epoll_ctl(e, EPOLL_CTL_ADD, fd, &mut ev));
    let mut out: [epoll_event; 2] = zeroed();
    is(epoll_wait(e, out.as_mut_ptr(), 2, 0), 0);
    ok(kill(pid, SIGKILL));
    is(epoll_wait(e, out.as_mut_ptr(), 2, 5000), 1);
    dies(pid, SIGKILL);
}
