//! Makes the Sentry's seccomp filter from the reviewed lists and locks the process in.
//!
//! A call that is not listed raises SIGSYS; the handler ([`crate::sys::report_sigsys`]) names the call and ends the process. Since
//! `rt_sigaction` is not on the list the handler stays, and SIGSYS cannot be blocked: the kernel would then kill at once.

use super::calls::{Call, When, RUNTIME, SENTRY};
use crate::sys;
use anyhow::{Context, Result};
use seccompiler::{
    apply_filter_all_threads, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// Everything the Sentry may ask of the host.
pub fn all_calls() -> impl Iterator<Item = &'static Call> {
    RUNTIME.iter().chain(SENTRY)
}

/// From here on, no thread of this process can make any other call.
pub fn lock() -> Result<()> {
    let (list, clone3) = programs()?;
    sys::report_sigsys().context("sigaction(SIGSYS)")?;
    const HINT: &str = "the host refuses a seccomp filter (a kernel with CONFIG_SECCOMP_FILTER is needed)";
    // The second one first: afterwards seccomp(2) is no longer to be had.
    apply_filter_all_threads(&clone3).context(HINT)?;
    apply_filter_all_threads(&list).context(HINT)?;
    Ok(())
}

/// The list itself, and the filter that answers `clone3` with ENOSYS (the stricter of two verdicts counts).
fn programs() -> Result<(BpfProgram, BpfProgram)> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for call in all_calls() {
        let of_call = rules.entry(call.nr).or_default();
        for rule in call.rules {
            of_call.push(SeccompRule::new(rule.iter().map(condition).collect::<Result<_, _>>()?)?);
        }
    }
    let list = SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)?.try_into()?;
    let clone3 = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_clone3, vec![])]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS as u32),
        TargetArch::x86_64,
    )?
    .try_into()?;
    Ok((list, clone3))
}

fn condition(when: &When) -> Result<SeccompCondition, seccompiler::BackendError> {
    use {SeccompCmpArgLen::*, SeccompCmpOp::*};
    match *when {
        When::Is(arg, value) => SeccompCondition::new(arg, Dword, Eq, u64::from(value)),
        When::Is64(arg, value) => SeccompCondition::new(arg, Qword, Eq, value),
        When::Without(arg, mask) => SeccompCondition::new(arg, Qword, MaskedEq(mask), 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_call_is_listed_once_and_has_a_reason() {
        let mut seen = BTreeSet::new();
        for call in all_calls() {
            assert!(seen.insert(call.nr), "call {} is listed twice", call.nr);
            assert!(call.why.len() > 4, "call {} needs a reason", call.nr);
        }
    }

    #[test]
    fn nothing_that_reaches_the_host_is_listed() {
        for nr in [
            libc::SYS_open,
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_ptrace,
            libc::SYS_mount,
            libc::SYS_setuid,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_rt_sigaction,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_keyctl,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_chroot,
            libc::SYS_pivot_root,
            libc::SYS_open_by_handle_at,
        ] {
            assert!(all_calls().all(|c| c.nr != nr), "call {nr} must not be listed");
        }
    }

    #[test]
    fn the_filter_compiles() {
        programs().unwrap();
    }
}
