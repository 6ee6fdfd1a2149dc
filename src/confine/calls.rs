//! Host calls of the Sentry, each with a reason and its permitted arguments. Together with the platform's own list
//! (`platform::systrap::HOST_CALLS`, narrowed by [`PLATFORM`]) this is everything that the Sentry can ask of the host;
//! [`super::seccomp`] builds the filter from it. If a call is in several lists, each of them can allow it.
//!
//! Deliberately absent: `open*`, `socket`, `connect`, `exec*`, `ptrace`, `mount`, `set*id`, `bpf`, `io_uring_*`,
//! `keyctl`, `rt_sigaction` (the handlers are installed before the filter), and executable memory.

use libc::c_long;

/// A condition on an argument. A rule matches if all its conditions hold; a call is allowed if one of its rules
/// matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Argument (counted from 0), taken as 32 bits, equals the value.
    Is(u8, u32),
    /// None of these bits is set in the argument (64 bits).
    Without(u8, u64),
    /// The argument (64 bits) equals the value.
    Is64(u8, u64),
}

/// A host call that is allowed.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub nr: c_long,
    pub why: &'static str,
    /// Empty: any arguments.
    pub rules: &'static [&'static [When]],
}

const fn any(nr: c_long, why: &'static str) -> Call {
    Call { nr, why, rules: &[] }
}

const fn only(nr: c_long, rules: &'static [&'static [When]], why: &'static str) -> Call {
    Call { nr, why, rules }
}

use When::{Is, Is64, Without};

/// The flags of glibc's `pthread_create` for `clone`.
const THREAD_FLAGS: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u64;
const EXEC: u64 = libc::PROT_EXEC as u64;

/// Calls of Rust's standard library, the allocator and glibc's threads.
pub const RUNTIME: &[Call] = &[
    any(libc::SYS_futex, "locks"),
    any(libc::SYS_brk, "allocator"),
    only(
        libc::SYS_mmap,
        &[&[Without(2, EXEC)]],
        "allocator, thread stacks, shared memory with stubs; never executable",
    ),
    only(libc::SYS_mprotect, &[&[Without(2, EXEC)]], "allocator, guard pages of stacks; never executable"),
    any(libc::SYS_munmap, "allocator, thread stacks"),
    any(libc::SYS_mremap, "allocator: growing large blocks"),
    any(libc::SYS_madvise, "allocator: freeing memory; stacks of ended threads"),
    only(libc::SYS_clone, &[&[Is64(0, THREAD_FLAGS)]], "threads of the executor; never a process"),
    any(
        libc::SYS_clone3,
        "glibc tries it first for a thread: a second filter answers ENOSYS, since a filter cannot read its flags",
    ),
    any(libc::SYS_set_robust_list, "start of a thread"),
    any(libc::SYS_rseq, "start of a thread"),
    any(libc::SYS_sigaltstack, "std gives each thread a signal stack for its overflow handler"),
    any(libc::SYS_rt_sigprocmask, "start of a thread, abort()"),
    any(libc::SYS_rt_sigreturn, "return from a signal handler"),
    only(libc::SYS_prctl, &[&[Is(0, libc::PR_SET_NAME as u32)]], "names of threads"),
    any(libc::SYS_sched_getaffinity, "the number of processors, for std and glibc; the guest's sched_getaffinity"),
    any(libc::SYS_gettid, "std: thread identity; abort()"),
    any(libc::SYS_getpid, "abort()"),
    only(
        libc::SYS_tgkill,
        &[&[Is(0, 1), Is(2, libc::SIGABRT as u32)]],
        "abort() of this process, which is process 1 of its namespace",
    ),
    any(libc::SYS_getrandom, "hash seeds; AT_RANDOM, /dev/urandom and getrandom(2) of the guest"),
    any(libc::SYS_exit, "end of a thread"),
    any(libc::SYS_exit_group, "end of the Sentry"),
    any(libc::SYS_restart_syscall, "the host restarts an interrupted sleep"),
    any(libc::SYS_sched_yield, "spin locks"),
    any(libc::SYS_clock_nanosleep, "std::thread::sleep"),
    any(libc::SYS_clock_gettime, "where the vDSO cannot read the clock"),
    any(libc::SYS_clock_getres, "the guest's clock_getres"),
    any(libc::SYS_gettimeofday, "where the vDSO cannot read the clock"),
    any(libc::SYS_poll, "waiting for one descriptor; std checks its streams"),
    any(libc::SYS_ppoll, "like poll"),
];

/// Calls of the guest kernel: for files donated by the Gofer or passed by the command, and for the connections to both.
pub const SENTRY: &[Call] = &[
    any(libc::SYS_read, "donated files and standard streams"),
    any(libc::SYS_readv, "donated files and standard streams"),
    any(libc::SYS_pread64, "donated files, memory files"),
    any(libc::SYS_preadv, "donated files, memory files"),
    any(libc::SYS_preadv2, "donated files, memory files; RWF_NOWAIT"),
    any(libc::SYS_write, "donated files, standard streams, the log"),
    any(libc::SYS_writev, "donated files, standard streams, the log"),
    any(libc::SYS_pwrite64, "donated files, memory files"),
    any(libc::SYS_pwritev, "donated files, memory files"),
    any(libc::SYS_pwritev2, "donated files, memory files"),
    any(libc::SYS_lseek, "size, holes and shared offsets of donated files and standard streams"),
    any(libc::SYS_close, "descriptors"),
    any(libc::SYS_fstat, "attributes of a descriptor"),
    only(libc::SYS_newfstatat, &[&[Is(3, libc::AT_EMPTY_PATH as u32)]], "glibc's fstat: no path"),
    only(
        libc::SYS_statx,
        &[&[Is(2, libc::AT_EMPTY_PATH as u32)], &[Is(2, (libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC) as u32)]],
        "attributes of a descriptor: no path",
    ),
    any(libc::SYS_fstatfs, "statfs of a descriptor"),
    any(libc::SYS_ftruncate, "size of donated and memory files"),
    any(libc::SYS_fallocate, "fallocate and hole punching of donated and memory files"),
    any(libc::SYS_fsync, "donated files"),
    any(libc::SYS_fdatasync, "donated files"),
    any(libc::SYS_fadvise64, "read-ahead of donated files"),
    any(libc::SYS_copy_file_range, "between donated or memory files"),
    any(libc::SYS_sendfile, "between donated or memory files"),
    any(libc::SYS_memfd_create, "contents of files in memory"),
    only(
        libc::SYS_fcntl,
        &[
            &[Is(1, libc::F_GETFL as u32)],
            &[Is(1, libc::F_SETFL as u32)],
            &[Is(1, libc::F_GETFD as u32)],
            &[Is(1, libc::F_SETFD as u32)],
            &[Is(1, libc::F_DUPFD_CLOEXEC as u32)],
            &[Is(1, libc::F_ADD_SEALS as u32)],
            &[Is(1, libc::F_GET_SEALS as u32)],
        ],
        "flags and copies of descriptors, seals of memory files",
    ),
    only(
        libc::SYS_ioctl,
        &[
            &[Is(1, libc::TCGETS as u32)],
            &[Is(1, libc::TCSETS as u32)],
            &[Is(1, libc::TCSETSW as u32)],
            &[Is(1, libc::TCSETSF as u32)],
            &[Is(1, libc::TIOCGWINSZ as u32)],
            &[Is(1, libc::TIOCSWINSZ as u32)],
            &[Is(1, libc::FIONREAD as u32)],
            &[Is(1, libc::TIOCOUTQ as u32)],
            &[Is(1, libc::TCFLSH as u32)],
            &[Is(1, libc::TCSBRK as u32)],
            &[Is(1, libc::TIOCGPGRP as u32)],
            &[Is(1, libc::TIOCGSID as u32)],
        ],
        "settings of a terminal among the standard streams; not TIOCSTI, TIOCLINUX or TCXONC, which affect others",
    ),
    any(libc::SYS_sendmsg, "requests to the Gofer, descriptors for stubs; all sockets are connected pairs"),
    any(libc::SYS_recvmsg, "answers of the Gofer, with descriptors"),
    only(libc::SYS_sendto, &[&[Is64(4, 0)]], "send() on a connected socket: no address"),
    any(libc::SYS_recvfrom, "recv()"),
    any(libc::SYS_shutdown, "ending a connection to the Gofer that has failed"),
    any(libc::SYS_getsockopt, "type of an inherited socket"),
    any(libc::SYS_sysinfo, "memory of the host, for the guest's sysinfo and /proc/meminfo"),
    any(libc::SYS_getrusage, "processor time of the sandbox"),
];

/// Requests to the seccomp listener, through which stubs are created: `SECCOMP_IOCTL_NOTIF_*` of linux/seccomp.h.
const NOTIF_RECV: u32 = 0xc050_2100;
const NOTIF_SEND: u32 = 0xc018_2101;
const NOTIF_ID_VALID: u32 = 0x4008_2102;
const NOTIF_ADDFD: u32 = 0x4018_2103;

const LOOK_ONLY: u32 = (libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL) as u32;

/// Permitted arguments of the platform's calls; calls of its list that are missing here take any arguments.
pub const PLATFORM: &[(c_long, &[&[When]])] = &[
    (libc::SYS_mmap, &[&[Without(2, EXEC)]]),
    (libc::SYS_fcntl, &[&[Is(1, libc::F_ADD_SEALS as u32)], &[Is(1, libc::F_DUPFD_CLOEXEC as u32)]]),
    (
        libc::SYS_ioctl,
        &[
            &[Is(1, NOTIF_RECV)],
            &[Is(1, NOTIF_SEND)],
            &[Is(1, NOTIF_ID_VALID)],
            &[Is(1, NOTIF_ADDFD)],
            &[Is(1, libc::TIOCOUTQ as u32)],
        ],
    ),
    (libc::SYS_socketpair, &[&[Is(0, libc::AF_UNIX as u32)]]),
    (libc::SYS_pidfd_open, &[&[Is(1, 0)]]),
    (libc::SYS_pidfd_send_signal, &[&[Is(1, libc::SIGKILL as u32)]]),
    (libc::SYS_waitid, &[&[Is(3, LOOK_ONLY)]]),
    // Signals are for stubs, which are the Sentry's children. The Sentry is process 1 of its namespace, and no other
    // processes exist there.
    (libc::SYS_tgkill, &[&[Is(2, libc::SIGUSR1 as u32)], &[Is(2, 0)]]),
    (libc::SYS_kill, &[&[Is(1, 0)]]),
];
