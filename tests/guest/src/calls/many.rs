//! Waiting for several files: poll(2), select(2), epoll_wait(2), timerfd_create(2).

use super::waits::cut_short;
use crate::t::*;
use libc::*;

pub const CASES: &[crate::Case] =
    cases![polls, selects, epolls, epoll_chain_limits, masks_are_put_back, timerfds, interrupted];

unsafe fn polls() {
    let (r, w) = pipe_pair();
    let mut p = pollfd { fd: r, events: POLLIN, revents: 0 };
    let none = timespec { tv_sec: 0, tv_nsec: 0 };
    is(syscall(SYS_poll, &mut p, 1, 0), 0);
    is(syscall(SYS_ppoll, &mut p, 1, &none, 0, 8u64), 0);
    put(w, b"x");
    is(syscall(SYS_poll, &mut p, 1, -1), 1);
    is(syscall(SYS_ppoll, &mut p, 1, 0, 0, 8u64), 1);
    assert_eq!(p.revents, POLLIN);
    fails(syscall(SYS_poll, BAD, 1, 0), EFAULT);
    let wrong = timespec { tv_sec: 0, tv_nsec: 1_000_000_000 };
    fails(syscall(SYS_ppoll, &mut p, 1, &wrong, 0, 8u64), EINVAL);
    let set = set_of(&[SIGUSR1]);
    fails(syscall(SYS_ppoll, &mut p, 1, &none, &set, 4u64), EINVAL);
}

/// The number of epoll chains above one file is limited as by `path_limits`: 500 of length two.
unsafe fn epoll_chain_limits() {
    let mut event = epoll_event { events: EPOLLIN as u32, u64: 0 };
    let mut add = |to: i32, what: i32| epoll_ctl(to, EPOLL_CTL_ADD, what, &mut event);
    let file = ok(eventfd(0, 0));
    let low: Vec<i32> = (0..25).map(|_| ok(epoll_create1(0))).collect();
    let high: Vec<i32> = (0..20).map(|_| ok(epoll_create1(0))).collect();
    for &l in &low {
        zero(add(l, file));
    }
    for &h in &high {
        for &l in &low {
            zero(add(h, l));
        }
    }
    let more = ok(epoll_create1(0));
    fails(add(more, low[0]), EINVAL);
    // A refused item is not registered: it can be added when there are fewer chains.
    zero(epoll_ctl(high[0], EPOLL_CTL_DEL, low[0], std::ptr::null_mut()));
    zero(add(more, low[0]));
    fails(add(high[0], low[0]), EINVAL);
    // Another file below is counted separately.
    let other = ok(eventfd(1, 0));
    zero(add(low[0], other));
    let mut got: [epoll_event; 4] = zeroed();
    is(epoll_wait(more, got.as_mut_ptr(), 4, 0), 1);
}

unsafe fn selects() {
    let (r, w) = pipe_pair();
    let mut set: fd_set = zeroed();
    FD_SET(r, &mut set);
    let mut tv = timeval { tv_sec: 0, tv_usec: 0 };
    let none = timespec { tv_sec: 0, tv_nsec: 0 };
    is(syscall(SYS_select, r + 1, &mut set, 0, 0, &mut tv), 0);
    assert!(!FD_ISSET(r, &set));
    put(w, b"x");
    FD_SET(r, &mut set);
    is(syscall(SYS_select, r + 1, &mut set, 0, 0, 0), 1);
    is(syscall(SYS_pselect6, r + 1, &mut set, 0, 0, &none, 0), 1);
    assert!(FD_ISSET(r, &set));
    fails(syscall(SYS_select, -1, &mut set, 0, 0, &mut tv), EINVAL);
    fails(syscall(SYS_pselect6, -1, &mut set, 0, 0, &none, 0), EINVAL);
    fails(syscall(SYS_select, 1, BAD, 0, 0, &mut tv), EFAULT);
    ok(close(r));
    fails(syscall(SYS_select, r + 1, &mut set, 0, 0, &mut tv), EBADF);
    fails(syscall(SYS_pselect6, r + 1, &mut set, 0, 0, &none, 0), EBADF);
}

unsafe fn epolls() {
    let e = ok(epoll_create1(EPOLL_CLOEXEC));
    let (r, w) = pipe_pair();
    let mut ev = epoll_event { events: EPOLLIN as u32, u64: 7 };
    fails(epoll_ctl(e, EPOLL_CTL_MOD, r, &mut ev), ENOENT);
    zero(epoll_ctl(e, EPOLL_CTL_ADD, r, &mut ev));
    fails(epoll_ctl(e, EPOLL_CTL_ADD, r, &mut ev), EEXIST);
    fails(epoll_ctl(e, EPOLL_CTL_ADD, e, &mut ev), EINVAL);
    fails(epoll_ctl(e, 9, r, &mut ev), EINVAL);
    let none = timespec { tv_sec: 0, tv_nsec: 0 };
    let mut out = [epoll_event { events: 0, u64: 0 }; 2];
    put(w, b"x");
    is(syscall(SYS_epoll_wait, e, out.as_mut_ptr(), 2, 0), 1);
    is(syscall(SYS_epoll_pwait, e, out.as_mut_ptr(), 2, -1, 0, 8u64), 1);
    is(syscall(SYS_epoll_pwait2, e, out.as_mut_ptr(), 2, &none, 0, 8u64), 1);
    assert_eq!({ out[0].u64 }, 7);
    for nr in [SYS_epoll_wait, SYS_epoll_pwait] {
        fails(syscall(nr, e, out.as_mut_ptr(), 0, 0, 0, 8u64), EINVAL);
        fails(syscall(nr, -1, out.as_mut_ptr(), 1, 0, 0, 8u64), EBADF);
        fails(syscall(nr, r, out.as_mut_ptr(), 1, 0, 0, 8u64), EINVAL);
    }
    fails(syscall(SYS_epoll_pwait2, e, out.as_mut_ptr(), 0, &none, 0, 8u64), EINVAL);
    let set = set_of(&[SIGUSR1]);
    fails(syscall(SYS_epoll_pwait, e, out.as_mut_ptr(), 2, 0, &set, 4u64), EINVAL);
}

/// The mask applies to the wait only, and a signal that it unblocks is delivered.
unsafe fn masks_are_put_back() {
    block(&[SIGUSR1]);
    on(SIGUSR1, nothing as *const () as usize, 0);
    let (r, _w) = pipe_pair();
    let e = ok(epoll_create1(0));
    let mut p = pollfd { fd: r, events: POLLIN, revents: 0 };
    let open: sigset_t = zeroed();
    let mut out = epoll_event { events: 0, u64: 0 };
    let sets = [&raw const open as u64, 8];
    let long = timespec { tv_sec: 1000, tv_nsec: 0 };
    for i in 0..4 {
        ok(raise(SIGUSR1));
        let r = match i {
            0 => syscall(SYS_ppoll, &mut p, 1, &long, &open, 8u64),
            1 => syscall(SYS_pselect6, 0, 0, 0, 0, &long, &sets),
            2 => syscall(SYS_epoll_pwait, e, &mut out, 1, -1, &open, 8u64),
            _ => syscall(SYS_epoll_pwait2, e, &mut out, 1, &long, &open, 8u64),
        };
        fails(r, EINTR);
        let mut now: sigset_t = zeroed();
        ok(sigprocmask(SIG_BLOCK, std::ptr::null(), &mut now));
        is(sigismember(&now, SIGUSR1), 1);
    }
}

unsafe fn timerfds() {
    let fd = ok(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
    fails(timerfd_create(99, 0), EINVAL);
    fails(timerfd_create(CLOCK_MONOTONIC, 1), EINVAL);
    let soon = timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    let mut t = itimerspec { it_interval: soon, it_value: soon };
    fails(read(fd, [0u8; 8].as_mut_ptr().cast(), 8), EAGAIN);
    zero(timerfd_settime(fd, 0, &t, std::ptr::null_mut()));
    let mut p = pollfd { fd, events: POLLIN, revents: 0 };
    is(poll(&mut p, 1, 5000), 1);
    assert!(u64::from_ne_bytes(get(fd, 8).try_into().unwrap()) >= 1);
    zero(timerfd_gettime(fd, &mut t));
    assert_eq!(t.it_interval.tv_nsec, 1_000_000);
    fails(timerfd_gettime(fd, BAD.cast()), EFAULT);
    fails(timerfd_gettime(0, &mut t), EINVAL);
    fails(timerfd_settime(-1, 0, &t, std::ptr::null_mut()), EBADF);
    t.it_value.tv_nsec = -1;
    fails(timerfd_settime(fd, 0, &t, std::ptr::null_mut()), EINVAL);
}

unsafe fn interrupted() {
    let (r, _w) = pipe_pair();
    let e = ok(epoll_create1(0));
    let mut p = pollfd { fd: r, events: POLLIN, revents: 0 };
    let mut out = epoll_event { events: 0, u64: 0 };
    let long = timespec { tv_sec: 1000, tv_nsec: 0 };
    let mut tv = timeval { tv_sec: 1000, tv_usec: 0 };
    cut_short(|| syscall(SYS_poll, &mut p, 1, -1));
    cut_short(|| syscall(SYS_ppoll, &mut p, 1, &long, 0, 8u64));
    cut_short(|| syscall(SYS_select, 0, 0, 0, 0, &mut tv));
    cut_short(|| syscall(SYS_pselect6, 0, 0, 0, 0, &long, 0));
    cut_short(|| syscall(SYS_epoll_wait, e, &mut out, 1, -1));
    cut_short(|| syscall(SYS_epoll_pwait, e, &mut out, 1, 1_000_000, 0, 8u64));
    cut_short(|| syscall(SYS_epoll_pwait2, e, &mut out, 1, &long, 0, 8u64));
}
