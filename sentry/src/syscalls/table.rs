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
    }
    wait {
        0 read(fd: Fd, buf: Addr, count: usize) => io::read, Full, "";
        1 write(fd: Fd, buf: Addr, count: usize) => io::write, Full, "";
    }
}
