//! The kinds of each call's arguments, in the order of the man pages' sections. A call that is missing here
//! is printed by its types in the table of calls.

use super::flags::*;
use super::show::{self, Kind, View};
use super::sockets as net;
use super::structs as s;
use std::borrow::Cow;
use Kind::*;

/// The mode argument of open is present if the call can create a file.
fn creates(view: &View<'_>, flags: usize) -> bool {
    view.arg(flags) & (libc::O_CREAT | libc::O_TMPFILE & !libc::O_DIRECTORY) as u64 != 0
}

fn open_flags(_: &View<'_>, v: u64, out: &mut String) {
    show::open_flags(v, out);
}

fn clone_flags(_: &View<'_>, v: u64, out: &mut String) {
    s::clone_flags(v, out);
}

fn advice(_: &View<'_>, v: u64, out: &mut String) {
    show::one(MADVISE, v, out);
}

fn wants_tids(view: &View<'_>) -> bool {
    view.arg(0) & (libc::CLONE_PARENT_SETTID | libc::CLONE_PIDFD) as u64 != 0
}
fn wants_child_tid(view: &View<'_>) -> bool {
    view.arg(0) & (libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID) as u64 != 0
}
fn wants_tls(view: &View<'_>) -> bool {
    view.arg(0) & libc::CLONE_SETTLS as u64 != 0
}

/// Clocks of processes and threads have negative ids.
fn clock(_: &View<'_>, v: u64, out: &mut String) {
    match v as i32 {
        n if n < 0 => out.push_str(&format!("CPU_CLOCK(pid {})", !(n >> 3))),
        n => show::one(CLOCK, n as u64, out),
    }
}

const CLOCKID: Kind = In(clock);
const OFLAGS: Kind = In(open_flags);
const MODE2: Kind = If(|v| creates(v, 1), &Octal);
const MODE3: Kind = If(|v| creates(v, 2), &Octal);
const ATFLAGS: Kind = Bits(AT);
const TS: Kind = In(s::timespec);
const TS_OUT: Kind = Out(s::timespec);
const ADDR: Kind = Pointer;

/// Names of calls that are not in the table of calls.
const OTHERS: &[(u64, &str)] = &[
    (101, "ptrace"),
    (206, "io_setup"),
    (216, "remap_file_pages"),
    (237, "mbind"),
    (238, "set_mempolicy"),
    (239, "get_mempolicy"),
    (240, "mq_open"),
    (248, "add_key"),
    (249, "request_key"),
    (250, "keyctl"),
    (272, "unshare"),
    (275, "splice"),
    (276, "tee"),
    (278, "vmsplice"),
    (279, "move_pages"),
    (300, "fanotify_init"),
    (303, "name_to_handle_at"),
    (304, "open_by_handle_at"),
    (308, "setns"),
    (310, "process_vm_readv"),
    (311, "process_vm_writev"),
    (324, "membarrier"),
    (329, "pkey_mprotect"),
    (330, "pkey_alloc"),
    (331, "pkey_free"),
    (334, "rseq"),
    (424, "pidfd_send_signal"),
    (425, "io_uring_setup"),
    (426, "io_uring_enter"),
    (427, "io_uring_register"),
    (428, "open_tree"),
    (429, "move_mount"),
    (430, "fsopen"),
    (431, "fsconfig"),
    (432, "fsmount"),
    (433, "fspick"),
    (434, "pidfd_open"),
    (438, "pidfd_getfd"),
    (440, "process_madvise"),
    (442, "mount_setattr"),
    (444, "landlock_create_ruleset"),
    (445, "landlock_add_rule"),
    (446, "landlock_restrict_self"),
    (447, "memfd_secret"),
    (448, "process_mrelease"),
    (449, "futex_waitv"),
    (451, "cachestat"),
];

/// Name of a call, whether in the table or not; an unknown number is written as strace(1) writes it.
pub fn name(nr: u64) -> Cow<'static, str> {
    let known = crate::syscalls::entry(nr).map(|e| e.name);
    match known.or_else(|| OTHERS.iter().find(|o| o.0 == nr).map(|o| o.1)) {
        Some(name) => name.into(),
        None => format!("syscall_{nr:#x}").into(),
    }
}

/// The kinds of the arguments of a call.
pub fn arguments(name: &str) -> Option<&'static [Kind]> {
    Some(match name {
        // Files.
        "open" => &[Path, OFLAGS, MODE2],
        "openat" => &[Dir, Path, OFLAGS, MODE3],
        "openat2" => &[Dir, Path, In(s::open_how), Unsigned],
        "creat" => &[Path, Octal],
        "close" | "fsync" | "fdatasync" | "syncfs" | "fchdir" | "dup" => &[Fd],
        "close_range" => &[Unsigned, Unsigned, Bits(CLOSE_RANGE)],
        "dup2" => &[Fd, Fd],
        "dup3" => &[Fd, Fd, Bits(CLOEXEC_NONBLOCK)],
        "read" => &[Fd, Out(s::data_out), Unsigned],
        "write" => &[Fd, Data(2), Unsigned],
        "pread64" => &[Fd, Out(s::data_out), Unsigned, Long],
        "pwrite64" => &[Fd, Data(2), Unsigned, Long],
        "readv" => &[Fd, Out(s::iov_out), Unsigned],
        "writev" => &[Fd, In(s::iov_in), Unsigned],
        "preadv" => &[Fd, Out(s::iov_out), Unsigned, Long],
        "pwritev" => &[Fd, In(s::iov_in), Unsigned, Long],
        "preadv2" => &[Fd, Out(s::iov_out), Unsigned, Long, Unsigned, Bits(RWF)],
        "pwritev2" => &[Fd, In(s::iov_in), Unsigned, Long, Unsigned, Bits(RWF)],
        "lseek" => &[Fd, Long, One(SEEK)],
        "sendfile" => &[Fd, Fd, In(s::long), Unsigned],
        "copy_file_range" => &[Fd, In(s::long), Fd, In(s::long), Unsigned, Unsigned],
        "splice" => &[Fd, In(s::long), Fd, In(s::long), Unsigned, Bits(SPLICE)],
        "tee" => &[Fd, Fd, Unsigned, Bits(SPLICE)],
        "vmsplice" => &[Fd, In(s::iov_in), Unsigned, Bits(SPLICE)],
        "getdents" | "getdents64" => &[Fd, ADDR, Unsigned],
        "fallocate" => &[Fd, Bits(FALLOC), Long, Long],
        "ftruncate" => &[Fd, Long],
        "truncate" => &[Path, Long],
        "sync_file_range" => &[Fd, Long, Long, Hex],
        "fadvise64" => &[Fd, Long, Long, One(FADVISE)],
        "readahead" => &[Fd, Long, Unsigned],
        "flock" => &[Fd, Bits(FLOCK)],
        "fcntl" => &[Fd, One(FCNTL), If(s::fcntl_has_arg, &In(s::fcntl))],
        "ioctl" => &[Fd, One(IOCTL), Out(s::ioctl)],
        "umask" => &[Octal],
        "memfd_create" => &[Text, Bits(MEMFD)],
        // Names.
        "stat" | "lstat" => &[Path, Out(s::stat)],
        "fstat" => &[Fd, Out(s::stat)],
        "newfstatat" => &[Dir, Path, Out(s::stat), ATFLAGS],
        "statx" => &[Dir, Path, ATFLAGS, Bits(STATX), Out(s::statx)],
        "statfs" => &[Path, Out(s::statfs)],
        "fstatfs" => &[Fd, Out(s::statfs)],
        "access" => &[Path, Bits(ACCESS)],
        "faccessat" => &[Dir, Path, Bits(ACCESS)],
        "faccessat2" => &[Dir, Path, Bits(ACCESS), Bits(AT_ACCESS)],
        "readlink" => &[Path, Out(s::data_out), Unsigned],
        "readlinkat" => &[Dir, Path, Out(s::data_out), Unsigned],
        "getcwd" => &[Out(s::text_out), Unsigned],
        "chdir" | "rmdir" | "unlink" | "chroot" => &[Path],
        "mkdir" | "chmod" => &[Path, Octal],
        "mkdirat" | "fchmodat" => &[Dir, Path, Octal],
        "fchmodat2" => &[Dir, Path, Octal, ATFLAGS],
        "fchmod" => &[Fd, Octal],
        "mknod" => &[Path, Octal, Hex],
        "mknodat" => &[Dir, Path, Octal, Hex],
        "unlinkat" => &[Dir, Path, ATFLAGS],
        "symlink" | "link" | "rename" => &[Path, Path],
        "symlinkat" => &[Path, Dir, Path],
        "linkat" => &[Dir, Path, Dir, Path, ATFLAGS],
        "renameat" => &[Dir, Path, Dir, Path],
        "renameat2" => &[Dir, Path, Dir, Path, Bits(RENAME)],
        "chown" | "lchown" => &[Path, Signed, Signed],
        "fchown" => &[Fd, Signed, Signed],
        "fchownat" => &[Dir, Path, Signed, Signed, ATFLAGS],
        "utimes" => &[Path, In(s::timeval_pair)],
        "futimesat" => &[Dir, Path, In(s::timeval_pair)],
        "utimensat" => &[Dir, Path, In(s::timespec_pair), ATFLAGS],
        "setxattr" | "lsetxattr" => &[Path, Text, Data(3), Unsigned, Bits(XATTR)],
        "fsetxattr" => &[Fd, Text, Data(3), Unsigned, Bits(XATTR)],
        "getxattr" | "lgetxattr" => &[Path, Text, Out(s::data_out), Unsigned],
        "fgetxattr" => &[Fd, Text, Out(s::data_out), Unsigned],
        "listxattr" | "llistxattr" => &[Path, Out(s::data_out), Unsigned],
        "flistxattr" => &[Fd, Out(s::data_out), Unsigned],
        "removexattr" | "lremovexattr" => &[Path, Text],
        "fremovexattr" => &[Fd, Text],
        "mount" => &[Path, Path, Text, Bits(MOUNT), Text],
        "umount2" => &[Path, Bits(UMOUNT)],
        "inotify_init1" => &[Bits(CLOEXEC_NONBLOCK)],
        "inotify_add_watch" => &[Fd, Path, Bits(INOTIFY)],
        // Memory.
        "mmap" => &[ADDR, Unsigned, Bits(PROT), Bits(MAP), Fd, Hex],
        "mprotect" => &[ADDR, Unsigned, Bits(PROT)],
        "munmap" => &[ADDR, Unsigned],
        "brk" => &[ADDR],
        "mremap" => &[ADDR, Unsigned, Unsigned, Bits(MREMAP), ADDR],
        "msync" => &[ADDR, Unsigned, Bits(MSYNC)],
        "mincore" => &[ADDR, Unsigned, ADDR],
        "madvise" => &[ADDR, Unsigned, In(advice)],
        "mlock" | "munlock" => &[ADDR, Unsigned],
        "mlockall" => &[Bits(MLOCKALL)],
        "arch_prctl" => &[One(ARCH), ADDR],
        // Processes.
        "clone" => {
            &[In(clone_flags), ADDR, If(wants_tids, &Out(s::int)), If(wants_child_tid, &ADDR), If(wants_tls, &ADDR)]
        }
        "clone3" => &[In(s::clone_args), Unsigned],
        "execve" => &[Path, In(s::strings), In(s::variables)],
        "execveat" => &[Dir, Path, In(s::strings), In(s::variables), ATFLAGS],
        "exit" | "exit_group" => &[Signed],
        "wait4" => &[Signed, Out(s::wait_status), Bits(WAIT), Out(s::rusage)],
        "waitid" => &[One(IDTYPE), Signed, Out(s::siginfo), Bits(WAIT), Out(s::rusage)],
        "setpgid" => &[Signed, Signed],
        "getpgid" | "getsid" | "sched_getscheduler" => &[Signed],
        "prctl" => &[One(PRCTL), In(s::prctl), If(|v| !s::prctl_text(v), &Unsigned)],
        "personality" => &[Hex],
        "getresuid" | "getresgid" => &[Out(s::id), Out(s::id), Out(s::id)],
        "getgroups" => &[Signed, Out(s::groups_out)],
        "setgroups" => &[Signed, In(s::groups)],
        "setresuid" | "setresgid" => &[Signed, Signed, Signed],
        "setreuid" | "setregid" => &[Signed, Signed],
        "capget" => &[ADDR, Out(s::capabilities)],
        "capset" => &[ADDR, In(s::capabilities)],
        "getrlimit" => &[One(RLIMIT), Out(s::rlimit)],
        "setrlimit" => &[One(RLIMIT), In(s::rlimit)],
        "prlimit64" => &[Signed, One(RLIMIT), In(s::rlimit), Out(s::rlimit)],
        "getrusage" => &[One(RUSAGE), Out(s::rusage)],
        "getpriority" => &[One(PRIO), Signed],
        "setpriority" => &[One(PRIO), Signed, Signed],
        "sched_setaffinity" => &[Signed, Unsigned, In(s::affinity)],
        "sched_getaffinity" => &[Signed, Unsigned, Out(s::affinity)],
        "sched_setscheduler" => &[Signed, One(SCHED), In(s::int)],
        "sched_setparam" => &[Signed, In(s::int)],
        "sched_getparam" => &[Signed, Out(s::int)],
        "sched_get_priority_max" | "sched_get_priority_min" => &[One(SCHED)],
        "sched_rr_get_interval" => &[Signed, TS_OUT],
        "seccomp" => &[One(SECCOMP_OP), Bits(SECCOMP_FLAGS), In(s::seccomp_args)],
        "rseq" => &[ADDR, Unsigned, Bits(RSEQ), Hex],
        "uname" => &[Out(s::utsname)],
        "sysinfo" => &[Out(s::sysinfo)],
        "sethostname" | "setdomainname" => &[Data(1), Unsigned],
        "getrandom" => &[Out(s::data_out), Unsigned, Bits(GETRANDOM)],
        "getcpu" => &[Out(s::int), Out(s::int)],
        // Signals.
        "rt_sigaction" => &[Signal, In(s::sigaction), Out(s::sigaction), Unsigned],
        "rt_sigprocmask" => &[One(SIG_HOW), In(s::sigset), Out(s::sigset), Unsigned],
        "rt_sigpending" => &[Out(s::sigset), Unsigned],
        "rt_sigsuspend" => &[In(s::sigset), Unsigned],
        "rt_sigtimedwait" => &[In(s::sigset), Out(s::siginfo), TS, Unsigned],
        "rt_sigqueueinfo" => &[Signed, Signal, In(s::siginfo)],
        "rt_tgsigqueueinfo" => &[Signed, Signed, Signal, In(s::siginfo)],
        "kill" | "tkill" => &[Signed, Signal],
        "tgkill" => &[Signed, Signed, Signal],
        "sigaltstack" => &[In(s::altstack), Out(s::altstack)],
        "signalfd" => &[Fd, In(s::sigset), Unsigned],
        "signalfd4" => &[Fd, In(s::sigset), Unsigned, Bits(CLOEXEC_NONBLOCK)],
        "pidfd_open" => &[Signed, Bits(CLOEXEC_NONBLOCK)],
        "pidfd_send_signal" => &[Fd, Signal, In(s::siginfo), Unsigned],
        "pidfd_getfd" => &[Fd, Fd, Unsigned],
        // Time.
        "nanosleep" => &[TS, ADDR],
        "clock_nanosleep" => &[CLOCKID, Bits(TIMER), TS, ADDR],
        "clock_gettime" | "clock_getres" => &[CLOCKID, TS_OUT],
        "clock_settime" => &[CLOCKID, TS],
        "gettimeofday" => &[Out(s::timeval), ADDR],
        "time" => &[Out(s::long)],
        "getitimer" => &[One(ITIMER), Out(s::itimerval)],
        "setitimer" => &[One(ITIMER), In(s::itimerval), Out(s::itimerval)],
        "timer_create" => &[CLOCKID, ADDR, Out(s::int)],
        "timer_settime" => &[Signed, Bits(TIMER), In(s::itimerspec), Out(s::itimerspec)],
        "timer_gettime" => &[Signed, Out(s::itimerspec)],
        "timerfd_create" => &[CLOCKID, Bits(CLOEXEC_NONBLOCK)],
        "timerfd_settime" => &[Fd, Bits(TFD_SETTIME), In(s::itimerspec), Out(s::itimerspec)],
        "timerfd_gettime" => &[Fd, Out(s::itimerspec)],
        // Waiting.
        "futex" => &[
            ADDR,
            In(s::futex_op),
            Unsigned,
            If(s::futex_has_timeout, &In(s::futex_timeout)),
            If(s::futex_has_second, &ADDR),
            If(s::futex_has_third, &Hex),
        ],
        "poll" => &[In(net::pollfds), Unsigned, Signed],
        "ppoll" => &[In(net::pollfds), Unsigned, TS, In(s::sigset), Unsigned],
        "select" => &[Signed, In(net::fd_set), In(net::fd_set), In(net::fd_set), In(s::timeval)],
        "pselect6" => &[Signed, In(net::fd_set), In(net::fd_set), In(net::fd_set), TS, In(s::sigset_and_size)],
        "epoll_create1" => &[Bits(CLOEXEC_NONBLOCK)],
        "epoll_ctl" => &[Fd, One(EPOLL_OP), Fd, In(net::epoll_event)],
        "epoll_wait" => &[Fd, Out(net::epoll_events), Signed, Signed],
        "epoll_pwait" => &[Fd, Out(net::epoll_events), Signed, Signed, In(s::sigset), Unsigned],
        "epoll_pwait2" => &[Fd, Out(net::epoll_events), Signed, TS, In(s::sigset), Unsigned],
        "eventfd2" => &[Unsigned, Bits(EVENTFD)],
        "pipe" => &[Out(s::fd_pair)],
        "pipe2" => &[Out(s::fd_pair), Bits(CLOEXEC_NONBLOCK)],
        // Sockets.
        "socket" => &[One(FAMILY), In(net::kind), In(net::protocol)],
        "socketpair" => &[One(FAMILY), In(net::kind), In(net::protocol), Out(s::fd_pair)],
        "bind" | "connect" => &[Fd, In(net::address_in), Signed],
        "listen" => &[Fd, Signed],
        "accept" | "getsockname" | "getpeername" => &[Fd, Out(net::address_out), Out(s::int)],
        "accept4" => &[Fd, Out(net::address_out), Out(s::int), Bits(SOCK_FLAGS)],
        "shutdown" => &[Fd, One(SHUT)],
        "setsockopt" => &[Fd, One(SOL), In(net::option), In(net::option_in), Signed],
        "getsockopt" => &[Fd, One(SOL), In(net::option), Out(net::option_out), Out(s::int)],
        "sendto" => &[Fd, Data(2), Unsigned, Bits(MSG), In(net::address_fifth), Signed],
        "recvfrom" => &[Fd, Out(s::data_out), Unsigned, Bits(MSG), Out(net::address_fifth_out), Out(s::int)],
        "sendmsg" => &[Fd, In(net::message_in), Bits(MSG)],
        "recvmsg" => &[Fd, Out(net::message_out), Bits(MSG)],
        "sendmmsg" => &[Fd, In(net::messages_in), Unsigned, Bits(MSG)],
        "recvmmsg" => &[Fd, Out(net::messages_out), Unsigned, Bits(MSG), TS],
        // System V IPC.
        "shmget" => &[Hex, Unsigned, Bits(IPC_GET)],
        "shmat" => &[Signed, ADDR, Bits(SHMAT)],
        "shmdt" => &[ADDR],
        "shmctl" => &[Signed, One(IPC_CMD), ADDR],
        "semget" => &[Hex, Signed, Bits(IPC_GET)],
        "semctl" => &[Signed, Signed, One(SEM_CMD), Hex],
        "msgget" => &[Hex, Bits(IPC_GET)],
        "msgctl" => &[Signed, One(MSG_CMD), ADDR],
        "msgrcv" => &[Signed, ADDR, Unsigned, Long, Bits(MSGRCV)],
        "msgsnd" => &[Signed, ADDR, Unsigned, Bits(MSGRCV)],
        _ => return None,
    })
}

/// Writes the result, and further data at the end of the line.
pub fn result(name: &str, view: &View<'_>, out: &mut String) {
    use std::fmt::Write;
    let v = view.result;
    match name {
        "mmap" | "mremap" | "brk" | "shmat" => show::put!(out, "{v:#x}"),
        "umask" => show::put!(out, "0{v:o}"),
        "fcntl" if view.arg(1) == libc::F_GETFL as u64 => {
            show::put!(out, "{v:#x} (flags ");
            show::open_flags(v, out);
            out.push(')');
        }
        "fcntl" if view.arg(1) == libc::F_GETFD as u64 && v & 1 != 0 => out.push_str("0x1 (flags FD_CLOEXEC)"),
        "fcntl" if view.arg(1) == libc::F_GET_SEALS as u64 => {
            show::put!(out, "{v:#x} (seals ");
            show::bits(SEALS, v, out);
            out.push(')');
        }
        _ => show::put!(out, "{}", v as i64),
    }
    match name {
        "poll" | "ppoll" => net::poll_found(view, out),
        "select" | "pselect6" => net::select_found(view, out),
        _ => {}
    }
}
