//! The system calls the Gofer may make once it is locked in.
//!
//! Any other one kills the process. The table is data to be reviewed: each entry says what the call is for and what its arguments must be.

use std::collections::BTreeMap;

use rustix::io::Errno;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::{setup, Error};

/// The bit that device nodes (and symlinks) have in their mode and fifos, sockets and regular files have not.
const S_IFCHR: i32 = 0o020_000;

/// What an argument must be.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    /// Argument `.0` is one of these (32 bits of it count).
    OneOf(u8, &'static [i32]),
    /// Argument `.0` is the descriptor of `/proc/self/fd`.
    Descriptors(u8),
    /// Argument `.0` has none of these bits.
    Without(u8, i32),
}

/// An entry of the table.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// The call's number.
    pub call: libc::c_long,
    /// Whether it is allowed only if some tree may be changed.
    pub writes: bool,
    /// What its arguments must be. Conditions on different arguments must all hold.
    pub args: &'static [Arg],
    /// What the Gofer needs it for.
    pub why: &'static str,
}

const fn rule(call: libc::c_long, args: &'static [Arg], why: &'static str) -> Rule {
    Rule { call, writes: false, args, why }
}

const fn writing(call: libc::c_long, args: &'static [Arg], why: &'static str) -> Rule {
    Rule { call, writes: true, args, why }
}

/// The table.
pub const SECCOMP: &[Rule] = &[
    // The conversation.
    rule(
        libc::SYS_getsockopt,
        &[Arg::OneOf(1, &[libc::SOL_SOCKET]), Arg::OneOf(2, &[libc::SO_TYPE])],
        "is the connection one of packets?",
    ),
    rule(libc::SYS_recvmsg, &[], "requests"),
    rule(libc::SYS_sendto, &[], "replies"),
    rule(libc::SYS_sendmsg, &[], "replies with a descriptor"),
    // Looking up and opening. `openat2` takes its flags from memory where no filter can see them; what keeps it in the trees is that there is nothing else.
    rule(libc::SYS_openat2, &[], "look up a name; create a file"),
    rule(libc::SYS_openat, &[Arg::Descriptors(0)], "open a file that is held"),
    rule(libc::SYS_close, &[], "let go of files"),
    rule(
        libc::SYS_fcntl,
        &[Arg::OneOf(1, &[libc::F_DUPFD_CLOEXEC, libc::F_GET_SEALS, libc::F_GETFD])],
        "hold a tree's root; is it a memfd?; the standard library's check of descriptors in debug builds",
    ),
    // Asking.
    rule(libc::SYS_read, &[], "content of small files"),
    rule(libc::SYS_statx, &[], "attributes"),
    rule(libc::SYS_readlinkat, &[], "target of a symlink"),
    rule(libc::SYS_fstatfs, &[], "statfs"),
    rule(libc::SYS_lseek, &[], "go on with a listing"),
    rule(libc::SYS_getdents64, &[], "listing"),
    rule(libc::SYS_fgetxattr, &[], "value of an attribute"),
    rule(libc::SYS_getxattr, &[], "is there an ACL? (of a file that is held); that of a fifo or socket"),
    rule(libc::SYS_lgetxattr, &[Arg::OneOf(3, &[0])], "is there an ACL? (of an entry of a directory that is held)"),
    rule(libc::SYS_flistxattr, &[], "names of attributes"),
    rule(libc::SYS_fsync, &[], "fsync"),
    rule(libc::SYS_fdatasync, &[], "fdatasync"),
    // Changing.
    writing(libc::SYS_mkdirat, &[], "make a directory"),
    writing(libc::SYS_symlinkat, &[], "make a symlink"),
    writing(libc::SYS_mknodat, &[Arg::Without(2, S_IFCHR)], "make a fifo, socket or file; never a device"),
    writing(
        libc::SYS_linkat,
        &[Arg::Descriptors(0), Arg::OneOf(4, &[libc::AT_SYMLINK_FOLLOW])],
        "another name for a file that is held",
    ),
    writing(libc::SYS_unlinkat, &[], "remove a name"),
    writing(libc::SYS_renameat2, &[], "move a name"),
    writing(libc::SYS_fchownat, &[Arg::OneOf(4, &[libc::AT_EMPTY_PATH])], "owner of a file that is held"),
    writing(libc::SYS_fchmodat, &[Arg::Descriptors(0)], "permissions of a file that is held"),
    writing(libc::SYS_setfsuid, &[], "make files as a guest's user"),
    writing(libc::SYS_setfsgid, &[], "make files as a guest's group"),
    writing(
        libc::SYS_prctl,
        &[Arg::OneOf(0, &[libc::PR_SET_PDEATHSIG, libc::PR_SET_DUMPABLE]), Arg::OneOf(1, &[libc::SIGKILL, 0])],
        "which makes the kernel forget these",
    ),
    writing(libc::SYS_utimensat, &[Arg::OneOf(3, &[libc::AT_EMPTY_PATH])], "times of a file that is held"),
    writing(libc::SYS_ftruncate, &[], "size of a file"),
    writing(libc::SYS_fsetxattr, &[], "set an attribute"),
    writing(libc::SYS_fremovexattr, &[], "remove an attribute"),
    // Memory, of which none may be executable.
    rule(libc::SYS_brk, &[], "memory"),
    rule(libc::SYS_mmap, &[Arg::Without(2, libc::PROT_EXEC)], "memory"),
    rule(libc::SYS_mprotect, &[Arg::Without(2, libc::PROT_EXEC)], "memory of the second thread's heap"),
    rule(libc::SYS_mremap, &[], "memory"),
    rule(libc::SYS_munmap, &[], "memory"),
    rule(libc::SYS_madvise, &[], "memory given back by the allocator"),
    // Speaking up and leaving.
    rule(libc::SYS_write, &[Arg::OneOf(0, &[libc::STDERR_FILENO])], "messages on standard error"),
    rule(
        libc::SYS_pwritev2,
        &[Arg::OneOf(0, &[libc::STDERR_FILENO])],
        "messages on standard error, without waiting for a reader",
    ),
    rule(libc::SYS_poll, &[], "would standard error take a message?"),
    rule(libc::SYS_getcpu, &[], "which core is this, where the vDSO does not know"),
    rule(libc::SYS_clock_gettime, &[], "time of a message, where the vDSO has no clock"),
    rule(libc::SYS_futex, &[], "locks; the second thread's sleep"),
    rule(libc::SYS_sigaltstack, &[], "a thread's end"),
    rule(libc::SYS_rt_sigprocmask, &[], "a thread's end; abort, in case of a panic"),
    rule(libc::SYS_exit, &[], "the second thread's end"),
    rule(libc::SYS_gettid, &[], "abort, in case of a panic"),
    rule(libc::SYS_getpid, &[], "abort, in case of a panic"),
    rule(libc::SYS_tgkill, &[Arg::OneOf(2, &[libc::SIGABRT])], "abort, in case of a panic"),
    rule(libc::SYS_restart_syscall, &[], "the kernel's own, after a stop signal"),
    rule(libc::SYS_exit_group, &[], "the end"),
];

/// Puts the filter on every thread.
pub fn apply(descriptors: i32, writes: bool) -> Result<(), Error> {
    let program = compile(descriptors, writes).map_err(|e| {
        log::error!("seccomp filter: {e}");
        Error::Setup("make the seccomp filter".into(), Errno::INVAL)
    })?;
    seccompiler::apply_filter_all_threads(&program).map_err(|e| {
        log::error!("seccomp filter: {e}");
        setup("set the seccomp filter")(Errno::INVAL)
    })
}

fn compile(descriptors: i32, writes: bool) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules = BTreeMap::new();
    for rule in SECCOMP.iter().filter(|rule| writes || !rule.writes) {
        rules.insert(rule.call, chains(rule.args, descriptors)?);
    }
    let arch = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)?.try_into()
}

/// The conditions as the alternatives seccompiler wants: any of the rules may hold, and within a rule all conditions.
fn chains(args: &[Arg], descriptors: i32) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    // The kernel's argument is the 32 bits of it.
    let bits = |value: i32| u64::from(u32::from_ne_bytes(value.to_ne_bytes()));
    let mut alternatives: Vec<Vec<SeccompCondition>> = vec![vec![]];
    for arg in args {
        let choices = match *arg {
            Arg::OneOf(index, values) => values
                .iter()
                .map(|&value| SeccompCondition::new(index, Len::Dword, Op::Eq, bits(value)))
                .collect::<Result<Vec<_>, _>>()?,
            Arg::Descriptors(index) => vec![SeccompCondition::new(index, Len::Dword, Op::Eq, bits(descriptors))?],
            Arg::Without(index, mask) => vec![SeccompCondition::new(index, Len::Dword, Op::MaskedEq(bits(mask)), 0)?],
        };
        alternatives = alternatives
            .iter()
            .flat_map(|so_far| choices.iter().map(|choice| so_far.iter().chain([choice]).cloned().collect()))
            .collect();
    }
    // An entry without conditions is an empty list of rules, not a list of one empty rule.
    alternatives.into_iter().filter(|conditions| !conditions.is_empty()).map(SeccompRule::new).collect()
}
