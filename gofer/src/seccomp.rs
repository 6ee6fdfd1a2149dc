//! The system calls allowed to the confined Gofer.
//!
//! Any other call kills the process. The table is data for review: each entry states the purpose of the call and the
//! condition on its arguments.

use std::collections::BTreeMap;

use rustix::io::Errno;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use crate::{setup, Error};

/// The bit set in the mode of device nodes (and symlinks), but not of fifos, sockets and regular files.
const S_IFCHR: i32 = 0o020_000;

/// Condition on an argument.
#[derive(Debug, Clone, Copy)]
pub enum Arg {
    /// Argument `.0` is one of these (its low 32 bits).
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
    /// Whether it is allowed only if some tree is writable.
    pub writes: bool,
    /// Conditions on its arguments, all of which must hold.
    pub args: &'static [Arg],
    /// Why the Gofer needs it.
    pub why: &'static str,
}

const fn rule(call: libc::c_long, args: &'static [Arg], why: &'static str) -> Rule {
    Rule { call, writes: false, args, why }
}

const fn rule_for_writes(call: libc::c_long, args: &'static [Arg], why: &'static str) -> Rule {
    Rule { call, writes: true, args, why }
}

/// The table.
pub const SECCOMP: &[Rule] = &[
    // The connection.
    rule(
        libc::SYS_getsockopt,
        &[Arg::OneOf(1, &[libc::SOL_SOCKET]), Arg::OneOf(2, &[libc::SO_TYPE])],
        "check that the connection is one of packets",
    ),
    rule(libc::SYS_recvmsg, &[], "requests"),
    rule(libc::SYS_sendto, &[], "replies"),
    rule(libc::SYS_sendmsg, &[], "replies with a descriptor"),
    // Lookup and open. The flags of `openat2` are in memory, invisible to the filter. It stays within the trees
    // because no other directory is reachable.
    rule(libc::SYS_openat2, &[], "look up a name; create a file"),
    rule(libc::SYS_openat, &[Arg::Descriptors(0)], "reopen a file held"),
    rule(libc::SYS_close, &[], "release files"),
    rule(
        libc::SYS_fcntl,
        &[Arg::OneOf(1, &[libc::F_DUPFD_CLOEXEC, libc::F_GET_SEALS, libc::F_GETFD])],
        "duplicate a tree's root; check for a memfd; the standard library's check of descriptors in debug builds",
    ),
    // Queries.
    rule(libc::SYS_read, &[], "content of small files"),
    rule(libc::SYS_statx, &[], "attributes"),
    rule(libc::SYS_readlinkat, &[], "target of a symlink"),
    rule(libc::SYS_fstatfs, &[], "statfs"),
    rule(libc::SYS_lseek, &[], "continue a listing"),
    rule(libc::SYS_getdents64, &[], "listing"),
    rule(libc::SYS_fgetxattr, &[], "value of an extended attribute"),
    rule(libc::SYS_getxattr, &[], "presence of an ACL (of a file held); ACL of a fifo or socket"),
    rule(libc::SYS_lgetxattr, &[Arg::OneOf(3, &[0])], "presence of an ACL (of an entry of a directory held)"),
    rule(libc::SYS_flistxattr, &[], "names of extended attributes"),
    rule(libc::SYS_fsync, &[], "fsync"),
    rule(libc::SYS_fdatasync, &[], "fdatasync"),
    // Changes.
    rule_for_writes(libc::SYS_mkdirat, &[], "make a directory"),
    rule_for_writes(libc::SYS_symlinkat, &[], "make a symlink"),
    rule_for_writes(libc::SYS_mknodat, &[Arg::Without(2, S_IFCHR)], "make a fifo, socket or file; never a device"),
    rule_for_writes(
        libc::SYS_linkat,
        &[Arg::Descriptors(0), Arg::OneOf(4, &[libc::AT_SYMLINK_FOLLOW])],
        "another name for a file held",
    ),
    rule_for_writes(libc::SYS_unlinkat, &[], "remove a name"),
    rule_for_writes(libc::SYS_renameat2, &[], "move a name"),
    rule_for_writes(libc::SYS_fchownat, &[Arg::OneOf(4, &[libc::AT_EMPTY_PATH])], "owner of a file that is held"),
    rule_for_writes(libc::SYS_fchmodat, &[Arg::Descriptors(0)], "permissions of a file that is held"),
    rule_for_writes(libc::SYS_setfsuid, &[], "make files as a guest's user"),
    rule_for_writes(libc::SYS_setfsgid, &[], "make files as a guest's group"),
    rule_for_writes(
        libc::SYS_prctl,
        &[Arg::OneOf(0, &[libc::PR_SET_PDEATHSIG, libc::PR_SET_DUMPABLE]), Arg::OneOf(1, &[libc::SIGKILL, 0])],
        "which makes the kernel forget these",
    ),
    rule_for_writes(libc::SYS_utimensat, &[Arg::OneOf(3, &[libc::AT_EMPTY_PATH])], "times of a file that is held"),
    rule_for_writes(libc::SYS_ftruncate, &[], "size of a file"),
    rule_for_writes(libc::SYS_fsetxattr, &[], "set an attribute"),
    rule_for_writes(libc::SYS_fremovexattr, &[], "remove an attribute"),
    // Memory, of which none may be executable.
    rule(libc::SYS_brk, &[], "memory"),
    rule(libc::SYS_mmap, &[Arg::Without(2, libc::PROT_EXEC)], "memory"),
    rule(libc::SYS_mprotect, &[Arg::Without(2, libc::PROT_EXEC)], "memory of the second thread's heap"),
    rule(libc::SYS_mremap, &[], "memory"),
    rule(libc::SYS_munmap, &[], "memory"),
    rule(libc::SYS_madvise, &[], "memory given back by the allocator"),
    // Messages, threads and exit.
    rule(libc::SYS_write, &[Arg::OneOf(0, &[libc::STDERR_FILENO])], "messages on standard error"),
    rule(
        libc::SYS_pwritev2,
        &[Arg::OneOf(0, &[libc::STDERR_FILENO])],
        "messages on standard error, without waiting for a reader",
    ),
    rule(libc::SYS_poll, &[], "check that standard error takes a message"),
    rule(libc::SYS_getcpu, &[], "current core, where the vDSO has no getcpu"),
    rule(libc::SYS_clock_gettime, &[], "time of a message, where the vDSO has no clock"),
    rule(libc::SYS_futex, &[], "locks; the second thread's sleep"),
    rule(libc::SYS_sigaltstack, &[], "exit of a thread"),
    rule(libc::SYS_rt_sigprocmask, &[], "exit of a thread; abort, in case of a panic"),
    rule(libc::SYS_exit, &[], "exit of the second thread"),
    rule(libc::SYS_gettid, &[], "abort, in case of a panic"),
    rule(libc::SYS_getpid, &[], "abort, in case of a panic"),
    rule(libc::SYS_tgkill, &[Arg::OneOf(2, &[libc::SIGABRT])], "abort, in case of a panic"),
    rule(libc::SYS_restart_syscall, &[], "the kernel's own, after a stop signal"),
    rule(libc::SYS_exit_group, &[], "exit"),
];

/// Applies the filter to every thread.
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

/// Expands the conditions to the alternatives that seccompiler expects: any of the rules may hold, and within a rule
/// all conditions.
fn chains(args: &[Arg], descriptors: i32) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    // The kernel's argument is the low 32 bits.
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
    // An entry without conditions is an empty list of rules, not a list with one empty rule.
    alternatives.into_iter().filter(|conditions| !conditions.is_empty()).map(SeccompRule::new).collect()
}
