//! Builds the Sentry's seccomp filter from the reviewed lists, and applies it to the process.
//!
//! A call that is not listed raises SIGSYS; the handler ([`crate::sys::report_sigsys`]) names the call and ends the
//! process. Since `rt_sigaction` is not on the list the handler cannot be replaced. A forced SIGSYS cannot be blocked
//! either: the kernel kills the process then.

use super::calls::{When, PLATFORM, RUNTIME, SENTRY};
use crate::sys;
use anyhow::{Context, Result};
use libc::c_long;
use platform::systrap::HOST_CALLS;
use seccompiler::{
    apply_filter_all_threads, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::{BTreeMap, BTreeSet};

type Rules = &'static [&'static [When]];

/// All permitted host calls of the Sentry: number, reason, rules.
pub fn all_calls() -> impl Iterator<Item = (c_long, &'static str, Rules)> {
    let ours = RUNTIME.iter().chain(SENTRY).map(|c| (c.nr, c.why, c.rules));
    let platforms = HOST_CALLS.iter().map(|&(nr, why)| {
        let rules = PLATFORM.iter().find(|p| p.0 == nr).map_or(&[][..], |p| p.1);
        (nr, why, rules)
    });
    ours.chain(platforms)
}

/// The Sentry's compiled filter.
pub struct Filter {
    list: BpfProgram,
    /// Answers `clone3` with ENOSYS; of two filters' verdicts the stricter one counts.
    clone3: BpfProgram,
}

impl Filter {
    pub fn make() -> Result<Filter> {
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
        let mut unconditional = BTreeSet::new();
        for (nr, _, of_call) in all_calls() {
            let all = rules.entry(nr).or_default();
            if of_call.is_empty() {
                unconditional.insert(nr);
            }
            for rule in of_call {
                all.push(SeccompRule::new(rule.iter().map(condition).collect::<Result<_, _>>()?)?);
            }
        }
        for nr in unconditional {
            rules.insert(nr, Vec::new());
        }
        let program = |rules, mismatch, matched| -> Result<BpfProgram> {
            Ok(SeccompFilter::new(rules, mismatch, matched, TargetArch::x86_64)?.try_into()?)
        };
        let no_clone3 = BTreeMap::from([(libc::SYS_clone3, vec![])]);
        Ok(Filter {
            list: program(rules, SeccompAction::Trap, SeccompAction::Allow)?,
            clone3: program(no_clone3, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))?,
        })
    }

    /// Applies the filter to all threads, for good.
    pub fn lock(&self) -> Result<()> {
        sys::report_sigsys().context("sigaction(SIGSYS)")?;
        const HINT: &str = "the host refuses a seccomp filter (a kernel with CONFIG_SECCOMP_FILTER is needed)";
        // The main list comes last, because seccomp(2) is not on it.
        apply_filter_all_threads(&self.clone3).context(HINT)?;
        apply_filter_all_threads(&self.list).context(HINT)?;
        Ok(())
    }
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

    #[test]
    fn each_list_names_a_call_once_with_a_reason() {
        let lists: [Vec<(c_long, &str)>; 3] = [
            RUNTIME.iter().map(|c| (c.nr, c.why)).collect(),
            SENTRY.iter().map(|c| (c.nr, c.why)).collect(),
            HOST_CALLS.to_vec(),
        ];
        for list in lists {
            let mut seen = BTreeSet::new();
            for (nr, why) in list {
                assert!(seen.insert(nr), "call {nr} is listed twice");
                assert!(why.len() > 4, "call {nr} needs a reason");
            }
        }
        let ours: BTreeSet<_> = RUNTIME.iter().map(|c| c.nr).collect();
        assert!(SENTRY.iter().all(|c| !ours.contains(&c.nr)), "a call is in both of our lists");
    }

    #[test]
    fn only_the_platforms_own_calls_are_narrowed() {
        for (nr, _) in PLATFORM {
            assert!(HOST_CALLS.iter().any(|c| c.0 == *nr), "call {nr} is not the platform's");
        }
    }

    /// A list that allows a call with any arguments makes the conditions of other lists ineffective, and so misleading.
    #[test]
    fn conditions_take_effect() {
        for (nr, why, rules) in all_calls() {
            let open = all_calls().any(|c| c.0 == nr && c.2.is_empty());
            assert!(rules.is_empty() || !open, "call {nr} ({why}) is narrowed here but open elsewhere");
        }
    }

    #[test]
    fn calls_that_reach_the_host_are_not_listed() {
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
            assert!(all_calls().all(|c| c.0 != nr), "call {nr} must not be listed");
        }
    }

    #[test]
    fn the_filter_compiles() {
        Filter::make().unwrap();
    }

    /// Set in the process that [`many_threads_allocate_under_the_filter`] starts.
    const CONFINED: &str = "RUNSC_RS_TEST_CONFINED";

    /// 64 concurrent threads allocate, free each other's memory and end. The filter cannot be removed, so a separate
    /// process does this.
    #[test]
    fn many_threads_allocate_under_the_filter() {
        if std::env::var_os(CONFINED).is_none() {
            let name = "confine::seccomp::tests::many_threads_allocate_under_the_filter";
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            let ended = again.args(["--exact", name, "--nocapture"]).env(CONFINED, "1").output().unwrap();
            let err = String::from_utf8_lossy(&ended.stderr);
            assert_eq!(ended.status.code(), Some(77), "{err}");
            return;
        }
        // A thread exists before the filter is applied, as in the Sentry.
        let filter = std::thread::spawn(Filter::make).join().unwrap().unwrap();
        filter.lock().unwrap();
        let all = std::sync::Arc::new(std::sync::Barrier::new(64));
        let threads: Vec<_> = (0..64)
            .map(|n| {
                let all = all.clone();
                std::thread::spawn(move || {
                    all.wait();
                    let blocks: Vec<Vec<u8>> = (0..200).map(|i| vec![n; (i * 977) % (150 << 10)]).collect();
                    all.wait();
                    blocks
                })
            })
            .collect();
        for thread in threads {
            drop(thread.join().unwrap());
        }
        sys::exit_now(77);
    }
}
