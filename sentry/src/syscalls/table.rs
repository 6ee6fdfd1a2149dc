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
        13 rt_sigaction(sig: Sig, act: Addr, oldact: Addr, sigsetsize: usize) => signal::rt_sigaction, Full, "";
        14 rt_sigprocmask(how: i32, set: Addr, oldset: Addr, sigsetsize: usize) => signal::rt_sigprocmask, Full, "";
        15 rt_sigreturn() => crate::kernel::deliver::sigreturn, Full, "";
        27 mincore(addr: Addr, length: u64, vec: Addr) => memory::mincore, Partial, "mapped pages count as resident";
        60 exit(status: i32) => process::exit, Full, "";
        62 kill(pid: i32, sig: Sig) => signal::kill, Full, "";
        109 setpgid(pid: i32, pgid: i32) => process::setpgid, Full, "";
        111 getpgrp() => process::getpgrp, Full, "";
        112 setsid() => process::setsid, Full, "";
        121 getpgid(pid: i32) => process::getpgid, Full, "";
        124 getsid(pid: i32) => process::getsid, Full, "";
        127 rt_sigpending(set: Addr, sigsetsize: usize) => signal::rt_sigpending, Full, "";
        129 rt_sigqueueinfo(tgid: i32, sig: Sig, info: Addr) => signal::rt_sigqueueinfo, Full, "";
        131 sigaltstack(ss: Addr, old_ss: Addr) => signal::sigaltstack, Full, "";
        149 mlock(addr: Addr, len: u64) => memory::mlock, Full, "";
        150 munlock(addr: Addr, len: u64) => memory::munlock, Full, "";
        151 mlockall(flags: i32) => memory::mlockall, Full, "";
        152 munlockall() => memory::munlockall, Full, "";
        158 arch_prctl(code: i32, addr: Addr) => memory::arch_prctl, Partial, "FS and GS base; ARCH_GET_GS is not there";
        200 tkill(tid: i32, sig: Sig) => signal::tkill, Full, "";
        218 set_tid_address(tidptr: Addr) => futex::set_tid_address, Full, "";
        231 exit_group(status: i32) => process::exit_group, Full, "";
        234 tgkill(tgid: i32, tid: i32, sig: Sig) => signal::tgkill, Full, "";
        273 set_robust_list(head: Addr, len: usize) => futex::set_robust_list, Full, "";
        274 get_robust_list(pid: i32, head: Addr, len: Addr) => futex::get_robust_list, Full, "";
        297 rt_tgsigqueueinfo(tgid: i32, tid: i32, sig: Sig, info: Addr) => signal::rt_tgsigqueueinfo, Full, "";
        325 mlock2(addr: Addr, len: u64, flags: u32) => memory::mlock2, Full, "";
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
        9 mmap(addr: Addr, length: u64, prot: i32, flags: i32, fd: Fd, offset: u64) => memory::mmap, Partial, "no huge page pool";
        10 mprotect(addr: Addr, len: u64, prot: i32) => memory::mprotect, Full, "";
        11 munmap(addr: Addr, length: u64) => memory::munmap, Full, "";
        12 brk(addr: Addr) => memory::brk, Full, "";
        25 mremap(old_addr: Addr, old_size: u64, new_size: u64, flags: i32, new_addr: Addr) => memory::mremap, Partial, "no duplicating of shared mappings (old_size 0)";
        26 msync(addr: Addr, length: u64, flags: i32) => memory::msync, Full, "";
        28 madvise(addr: Addr, length: u64, advice: i32) => memory::madvise, Partial, "advice is passed to the host; merging and dump advice have no effect";
        34 pause() => signal::pause, Full, "";
        56 clone(flags: u64, stack: Addr, parent_tid: Addr, child_tid: Addr, tls: Addr) => process::clone, Partial, "no new namespaces";
        57 fork() => process::fork, Full, "";
        58 vfork() => process::vfork, Full, "";
        59 execve(pathname: PathPtr, argv: Addr, envp: Addr) => process::execve, Full, "";
        61 wait4(pid: i32, status: Addr, options: i32, rusage: Addr) => process::wait4, Full, "";
        128 rt_sigtimedwait(set: Addr, info: Addr, timeout: Addr, sigsetsize: usize) => signal::rt_sigtimedwait, Full, "";
        130 rt_sigsuspend(mask: Addr, sigsetsize: usize) => signal::rt_sigsuspend, Full, "";
        202 futex(uaddr: Addr, op: i32, val: u32, timeout: Addr, uaddr2: Addr, val3: u32) => futex::futex, Partial, "no priority inheritance";
        219 restart_syscall() => crate::kernel::run::restart_syscall, Full, "";
        247 waitid(idtype: i32, id: i32, info: Addr, options: i32, rusage: Addr) => process::waitid, Full, "";
        322 execveat(dirfd: Fd, pathname: PathPtr, argv: Addr, envp: Addr, flags: i32) => process::execveat, Full, "";
        435 clone3(args: Addr, size: usize) => process::clone3, Partial, "no new namespaces, no set_tid";
    }
}
