//! Strays: processes that hostile code has cloned without a request. They are found, killed and reaped.
//!
//! A stray has its maker's memory and no hand-off area: its first trapped call or fault ends it. But it may compute,
//! and keeps its maker's control socket. Like every stub it is a child of the Sentry, whatever it does
//! (`CLONE_PARENT`). The host assigns pids in sequence, so its pid lies between those of the stubs made before and
//! after it, and the host reports for each pid whether a child has it. (This requires that the Sentry is process 1 of
//! its namespace and has no other children.) A child is a stray if it is no registered stub, and no fork is pending
//! that was pending when the child was first seen.
//!
//! The search costs a host call for each pid assigned since the last one. It runs ten times a second, for
//! [`MAX_PIDS`] pids, while processes are made or end (`fork_broker.rs`, `guard`) or strays are found. It misses
//! strays as long as none of that happens, that is, in a sandbox in which no process is made and none ends. It misses
//! for good strays that compute, on hosts whose pids have wrapped around just before the search reached them. Both
//! count against the host user's limit of processes and the caller's cgroup, and end with the sandbox.

use std::sync::Arc;

use parking_lot::Mutex;

use super::Inner;
use crate::executor::now_ns;
use crate::Errno;

/// Most pids probed in one search.
const MAX_PIDS: i32 = 1024;
/// How far beyond the pid of the youngest stub to probe.
const PROBE_AHEAD: i32 = 256;
/// Most dead children reaped, and most suspects handled, in one search.
const MAX_HANDLED: usize = 256;
/// By then a fork whose handshake has just been served is a registered stub.
const SETTLES_NS: u64 = 50_000_000;

#[derive(Default)]
pub(super) struct Strays(Mutex<State>);

#[derive(Default)]
struct State {
    /// All pids up to this one have been probed.
    probed: i32,
    /// The pid of the youngest known child.
    youngest: i32,
    /// Children that are no stubs, and when each was first seen.
    suspects: Vec<(i32, u64)>,
}

impl Strays {
    /// Records a pid that the host has assigned.
    pub(super) fn add(&self, pid: i32) {
        let mut state = self.0.lock();
        if state.probed == 0 {
            state.probed = pid;
        } else if pid < state.youngest / 2 {
            // The host's pids have wrapped around.
            (state.probed, state.youngest) = (0, 0);
        }
        state.youngest = state.youngest.max(pid);
    }

    /// Does one search; returns whether another one is needed.
    pub(super) fn search(&self, inner: &Arc<Inner>) -> bool {
        if std::process::id() != 1 {
            // There may be children of other code in this process.
            return false;
        }
        reap_dead(inner);
        let now = now_ns();
        let (from, to) = {
            let mut state = self.0.lock();
            let from = state.probed + 1;
            let to = state.youngest.saturating_add(PROBE_AHEAD).min(from.saturating_add(MAX_PIDS));
            state.probed = to.min(state.youngest).max(state.probed);
            (from, to)
        };
        let found: Vec<i32> = (from.max(2)..=to)
            .filter(|pid| !inner.stubs.lock().contains_key(pid) && is_child(*pid))
            .take(MAX_HANDLED)
            .collect();
        let (due, more) = {
            let mut state = self.0.lock();
            for pid in found {
                if state.suspects.len() < MAX_HANDLED && !state.suspects.iter().any(|s| s.0 == pid) {
                    state.suspects.push((pid, now));
                }
            }
            state.suspects.retain(|(pid, _)| !inner.stubs.lock().contains_key(pid) && is_child(*pid));
            let settled = |since: u64| now.saturating_sub(since) >= SETTLES_NS;
            let due: Vec<_> = state.suspects.iter().copied().filter(|(_, since)| settled(*since)).collect();
            (due, !state.suspects.is_empty() || state.probed < state.youngest)
        };
        for (pid, since) in due {
            // Checked last: it may have been registered meanwhile.
            if !inner.fork_broker.may_be_expected(pid, since) && !inner.stubs.lock().contains_key(&pid) {
                log::debug!("stub {pid}: cloned by itself; ended");
                inner.end_orphan(pid);
            }
        }
        more
    }
}

/// Reaps dead children that are no registered stubs, too.
fn reap_dead(inner: &Arc<Inner>) {
    for _ in 0..MAX_HANDLED {
        let Some(pid) = child_state(libc::P_ALL, 0).filter(|pid| *pid > 0) else { return };
        if inner.stubs.lock().contains_key(&pid) {
            inner.reap(pid);
        } else if inner.fork_broker.may_be_expected(pid, now_ns()) {
            // If its fork was pending, `ForkBroker::check` needs its exit state. If not, a later search reaps it.
            return;
        } else {
            super::space::exit_state_of(pid);
        }
    }
}

/// Whether a child has this pid, dead or alive.
fn is_child(pid: i32) -> bool {
    child_state(libc::P_PID, pid as libc::id_t).is_some()
}

/// The pid of a dead child among those named (0: all are alive); `None` if there are none.
fn child_state(which: libc::idtype_t, id: libc::id_t) -> Option<i32> {
    // SAFETY: all zeroes is a valid `siginfo_t`, which the kernel fills in for a dead child.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        Errno::result(libc::waitid(which, id, &mut info, flags)).ok()?;
        Some(info.si_pid())
    }
}
