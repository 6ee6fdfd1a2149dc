//! The table of system calls, by number (`linux-raw-sys`/asm unistd_64.h). Everything else answers `ENOSYS`.

use super::arg::*;
use super::*;

syscall_table! {
    now {
        3 close(fd: Fd) => io::close, Full, "";
        39 getpid() => ids::getpid, Full, "";
        110 getppid() => ids::getppid, Full, "";
        186 gettid() => ids::gettid, Full, "";
        102 getuid() => ids::getuid, Full, "";
        104 getgid() => ids::getgid, Full, "";
        107 geteuid() => ids::geteuid, Full, "";
        108 getegid() => ids::getegid, Full, "";
        105 setuid(uid: u32) => ids::setuid, Full, "";
        106 setgid(gid: u32) => ids::setgid, Full, "";
        113 setreuid(ruid: u32, euid: u32) => ids::setreuid, Full, "";
        114 setregid(rgid: u32, egid: u32) => ids::setregid, Full, "";
        115 getgroups(size: i32, list: Addr) => ids::getgroups, Full, "";
        116 setgroups(size: i32, list: Addr) => ids::setgroups, Full, "";
        117 setresuid(ruid: u32, euid: u32, suid: u32) => ids::setresuid, Full, "";
        118 getresuid(ruid: Addr, euid: Addr, suid: Addr) => ids::getresuid, Full, "";
        119 setresgid(rgid: u32, egid: u32, sgid: u32) => ids::setresgid, Full, "";
        120 getresgid(rgid: Addr, egid: Addr, sgid: Addr) => ids::getresgid, Full, "";
        122 setfsuid(uid: u32) => ids::setfsuid, Full, "";
        123 setfsgid(gid: u32) => ids::setfsgid, Full, "";
        125 capget(hdrp: Addr, datap: Addr) => cred::capget, Full, "";
        126 capset(hdrp: Addr, datap: Addr) => cred::capset, Full, "";
        22 pipe(fds: Addr) => pipe::pipe, Full, "";
        213 epoll_create(size: i32) => epoll::epoll_create, Full, "";
        233 epoll_ctl(epfd: Fd, op: i32, fd: Fd, event: Addr) => epoll::epoll_ctl, Full, "";
        283 timerfd_create(clockid: i32, flags: i32) => pipe::timerfd_create, Full, "";
        284 eventfd(initval: u32) => pipe::eventfd, Full, "";
        286 timerfd_settime(fd: Fd, flags: i32, new: Addr, old: Addr) => pipe::timerfd_settime, Partial, "TFD_TIMER_CANCEL_ON_SET never cancels: nobody sets the clock";
        287 timerfd_gettime(fd: Fd, cur: Addr) => pipe::timerfd_gettime, Full, "";
        290 eventfd2(initval: u32, flags: i32) => pipe::eventfd2, Full, "";
        291 epoll_create1(flags: i32) => epoll::epoll_create1, Full, "";
        293 pipe2(fds: Addr, flags: i32) => pipe::pipe2, Full, "";
    }
    wait {
        0 read(fd: Fd, buf: Addr, count: usize) => io::read, Full, "";
        1 write(fd: Fd, buf: Addr, count: usize) => io::write, Full, "";
        7 poll(fds: Addr, nfds: u32, timeout: i32) => poll::poll, Full, "";
        23 select(n: i32, readfds: Addr, writefds: Addr, exceptfds: Addr, timeout: Addr) => poll::select, Full, "";
        232 epoll_wait(epfd: Fd, events: Addr, maxevents: i32, timeout: i32) => epoll::epoll_wait, Full, "";
        270 pselect6(n: i32, readfds: Addr, writefds: Addr, exceptfds: Addr, timeout: Addr, sig: Addr) => poll::pselect6, Full, "";
        271 ppoll(fds: Addr, nfds: u32, timeout: Addr, sigmask: Addr, size: usize) => poll::ppoll, Full, "";
        281 epoll_pwait(epfd: Fd, events: Addr, maxevents: i32, timeout: i32, sigmask: Addr, size: usize) => epoll::epoll_pwait, Full, "";
        441 epoll_pwait2(epfd: Fd, events: Addr, maxevents: i32, timeout: Addr, sigmask: Addr, size: usize) => epoll::epoll_pwait2, Full, "";
    }
}
