//! From a bundle's seccomp profile to classic BPF.
//!
//! The rules are grouped by system call; calls with the same outcome make ranges, and a binary search over the ranges
//! finds the one of a call. Within a call, rules that compare arguments are tried in the profile's order, before the
//! call's unconditional rule; libseccomp, which other runtimes use, orders them by its own criteria, which differs only
//! where rules of different actions overlap.

mod emit;
#[cfg(test)]
mod tests;

use crate::config::SeccompFilter;
use anyhow::{bail, Result};
use emit::{Leaf, Range};
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompFilterFlag};
use std::collections::BTreeMap;
use std::str::FromStr;

/// `AUDIT_ARCH_X86_64`.
const ARCH: u32 = 0xc000_003e;
/// First number of an x32 call.
const X32: u32 = 0x4000_0000;
/// Above those that carry an errno, `MAX_ERRNO` of the kernel.
const MAX_ERRNO: u32 = 4095;
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`: the filter's notifications go to a descriptor that the process gets at its
/// start.
pub const NEW_LISTENER: u32 = 1 << 3;
/// More rules than any profile has. There are some 400 calls.
const MAX_RULES: usize = 1 << 16;

/// `SECCOMP_RET_*`, data included.
type Verdict = u32;

/// Comparisons that must all hold, and what happens then.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    conditions: Vec<LinuxSeccompArg>,
    verdict: Verdict,
}

/// The rules of one call.
#[derive(Clone, Debug, Default)]
struct Call {
    conditional: Vec<Rule>,
    unconditional: Option<Verdict>,
}

/// Compiles a profile; the filters are to be put in force in their order. Empty: the profile allows everything.
pub fn compile(profile: &LinuxSeccomp) -> Result<Vec<SeccompFilter>> {
    let default = verdict(profile.default_action(), profile.default_errno_ret());
    let calls = calls(profile, default)?;
    let notifies = check_notify(profile, &calls)?;
    if calls.is_empty() && profile.default_action() == Action::ScmpActAllow {
        return Ok(Vec::new());
    }
    let x32 = profile.architectures().as_ref().is_some_and(|archs| archs.contains(&Arch::ScmpArchX32));
    let unknown = unknown_calls(profile, default);
    let ranges = ranges(&calls, default, unknown);
    let program = emit::program(&ranges, if x32 { default } else { verdict_kill() })?;
    Ok(vec![SeccompFilter { program, flags: flags(profile) | if notifies { NEW_LISTENER } else { 0 } }])
}

fn verdict(action: Action, errno: Option<u32>) -> Verdict {
    // What libseccomp does with numbers that are too large.
    action.as_u32(errno.map(|e| e.min(MAX_ERRNO)))
}

/// What happens to a call of an architecture that the profile does not have: libseccomp kills the thread.
fn verdict_kill() -> Verdict {
    verdict(Action::ScmpActKill, None)
}

/// The rules by number. Names that this architecture does not have are left out, as profiles are written for all
/// architectures at once.
fn calls(profile: &LinuxSeccomp, default: Verdict) -> Result<BTreeMap<u32, Call>> {
    let mut calls: BTreeMap<u32, Call> = BTreeMap::new();
    let mut count = 0;
    for entry in profile.syscalls().iter().flatten() {
        let verdict = verdict(entry.action(), entry.errno_ret());
        let args = entry.args().as_deref().unwrap_or_default();
        check_args(args)?;
        // libseccomp refuses rules that say what the default says; they have no effect.
        if verdict == default {
            continue;
        }
        for name in entry.names() {
            let Some(nr) = number(name) else {
                log::debug!("seccomp: {name} is no system call of x86-64");
                continue;
            };
            count += 1;
            if count > MAX_RULES {
                bail!("seccomp: more than {MAX_RULES} rules");
            }
            let call = calls.entry(nr).or_default();
            if args.is_empty() {
                call.unconditional.get_or_insert(verdict);
            } else {
                call.conditional.extend(alternatives(args).map(|conditions| Rule { conditions, verdict }));
            }
        }
    }
    Ok(calls)
}

/// The number of a call on x86-64.
pub fn number(name: &str) -> Option<u32> {
    syscalls::x86_64::Sysno::from_str(name).ok().and_then(|s| u32::try_from(s.id()).ok())
}

fn check_args(args: &[LinuxSeccompArg]) -> Result<()> {
    match args.iter().find(|a| a.index() > 5) {
        Some(arg) => bail!("seccomp: index {} of an argument: a system call has 6, counted from 0", arg.index()),
        None => Ok(()),
    }
}

/// As in runc: comparisons of different arguments must all hold; as soon as one argument is compared twice, each
/// comparison stands for itself.
fn alternatives(args: &[LinuxSeccompArg]) -> impl Iterator<Item = Vec<LinuxSeccompArg>> {
    let repeated = (0..6).any(|i| args.iter().filter(|a| a.index() == i).count() > 1);
    let all: Vec<Vec<LinuxSeccompArg>> =
        if repeated { args.iter().map(|a| vec![*a]).collect() } else { vec![args.to_vec()] };
    all.into_iter()
}

/// Whether rules notify, after the checks of runc: a listener that has to answer the call by which it is set up waits
/// for itself.
fn check_notify(profile: &LinuxSeccomp, calls: &BTreeMap<u32, Call>) -> Result<bool> {
    let notify = verdict(Action::ScmpActNotify, None);
    if profile.default_action() == Action::ScmpActNotify {
        bail!("seccomp: SCMP_ACT_NOTIFY cannot be used as default action");
    }
    let notifies =
        |call: &Call| call.unconditional == Some(notify) || call.conditional.iter().any(|r| r.verdict == notify);
    if number("write").and_then(|nr| calls.get(&nr)).is_some_and(notifies) {
        bail!("seccomp: SCMP_ACT_NOTIFY cannot be used for the write syscall");
    }
    let any = calls.values().any(notifies);
    if any && profile.listener_path().is_none() {
        bail!("seccomp: listenerPath is needed for SCMP_ACT_NOTIFY");
    }
    Ok(any)
}

/// Calls that are newer than all that the profile names answer ENOSYS, as in runc, unless the profile allows by default
/// or says so itself: a C library falls back on ENOSYS and gives up on EPERM. `None`: they are as any other call.
fn unknown_calls(profile: &LinuxSeccomp, default: Verdict) -> Option<(u32, Verdict)> {
    let enosys = verdict(Action::ScmpActErrno, Some(libc::ENOSYS as u32));
    let permissive =
        matches!(profile.default_action(), Action::ScmpActAllow | Action::ScmpActLog | Action::ScmpActTrace);
    let named = profile.syscalls().iter().flatten().flat_map(|entry| entry.names());
    let newest = named.filter_map(|name| number(name)).max()?;
    (!permissive && default != enosys).then_some((newest.checked_add(1)?, enosys))
}

/// Ranges of numbers from 0 up, without gaps, each with its outcome.
fn ranges(calls: &BTreeMap<u32, Call>, default: Verdict, unknown: Option<(u32, Verdict)>) -> Vec<Range> {
    let plain = |verdict| Leaf { rules: Vec::new(), verdict };
    let mut ranges: Vec<Range> = Vec::new();
    let mut push = |first: u32, leaf: Leaf| match ranges.last() {
        Some(last) if last.leaf == leaf => {}
        _ => ranges.push(Range { first, leaf }),
    };
    let mut next = 0;
    for (&nr, call) in calls {
        if nr > next {
            push(next, plain(default));
        }
        push(nr, Leaf { rules: call.conditional.clone(), verdict: call.unconditional.unwrap_or(default) });
        next = nr.saturating_add(1);
    }
    match unknown {
        Some((first, verdict)) => {
            if first > next {
                push(next, plain(default));
            }
            push(first, plain(verdict));
        }
        None => push(next, plain(default)),
    }
    ranges
}

/// `SECCOMP_FILTER_FLAG_*` of the profile. Synchronising threads has no meaning for a process that has not begun.
fn flags(profile: &LinuxSeccomp) -> u32 {
    profile.flags().iter().flatten().fold(0, |flags, flag| {
        flags
            | match flag {
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => 1 << 1,
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => 1 << 2,
                LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 1 << 5,
            }
    })
}
