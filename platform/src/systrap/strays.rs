//! Processes that hostile code has cloned without being asked (*strays*): found, killed and reaped.
//!
//! Such a process has its maker's memory and no hand-off area: its first trapped call or fault ends it, but it may compute, and keeps its
//! maker's control socket. It is a child of the Sentry's, as every stub is, whatever it does (`CLONE_PARENT`). The host gives out numbers
//! in a row, so it lies between those of the stubs that were born before and after it, and the host tells of each number whether a child
//! has it. (All this where the Sentry is process 1 of its namespace, and has no other children.) A child is a stray if it is no known stub, and no birth is awaited that was so when it was first seen.
//!
//! The search costs a host call for each number that has been given out since the last one. It goes on while processes are born or end
//! (`fork_broker.rs`, `guard`) or strays are found, ten times a second, for [`AT_ONCE`] numbers. What it may miss for as long as nothing of
//! that happens: strays of a sandbox in which no process is made and none ends; and for good: such as compute, on hosts whose
//! numbers have wrapped around just before the search got to them. Both count against the host user's limit of processes and the caller's
//! cgroup, and end with the sandbox.

use std::sync::Arc;

use parking_lot::Mutex;

use super::Inner;
use crate::executor::now_ns;
use crate::Errno;

/// Most numbers that are asked for in one search.
const AT_ONCE: i32 = 1024;
/// How far beyond the number of the youngest stub.
const AHEAD: i32 = 256;
/// Most children that are dead, or suspected, and dealt with in one search.
const MOST: usize = 256;
/// A birth that has just been served is known to be a stub by then.
const SETTLES_NS: u64 = 50_000_000;

#[derive(Default)]
pub(super) struct Strays(Mutex<State>);

#[derive(Default)]
struct State {
    /// All numbers up to this one have been asked for.
    asked: i32,
    /// The number of the youngest child that is known of.
    youngest: i32,
    /// Children that are no stubs, and when each was first seen.
    suspects: Vec<(i32, u64)>,
}

impl Strays {
    /// The host has given out this number.
    pub(super) fn born(&self, pid: i32) {
        let mut state = self.0.lock();
        if state.asked == 0 {
            state.asked = pid;
        } else if pid < state.youngest / 2 {
            // The host has begun at the bottom again.
            (state.asked, state.youngest) = (0, 0);
        }
        state.youngest = state.youngest.max(pid);
    }

    /// The number of the youngest child that is known of.
    pub(super) fn youngest(&self) -> i32 {
        self.0.lock().youngest
    }

    /// One search; returns whether there is reason for another one.
    pub(super) fn search(&self, inner: &Arc<Inner>) -> bool {
        if std::process::id() != 1 {
            // There may be children that are not ours.
            return false;
        }
        reap_dead(inner);
        let now = now_ns();
        let (from, to) = {
            let mut state = self.0.lock();
            let from = state.asked + 1;
            let to = state.youngest.saturating_add(AHEAD).min(from.saturating_add(AT_ONCE));
            state.asked = to.min(state.youngest).max(state.asked);
            (from, to)
        };
        let found: Vec<i32> = (from.max(2)..=to)
            .filter(|pid| !inner.stubs.lock().contains_key(pid) && is_child(*pid))
            .take(MOST)
            .collect();
        let (due, more) = {
            let mut state = self.0.lock();
            for pid in found {
                if state.suspects.len() < MOST && !state.suspects.iter().any(|s| s.0 == pid) {
                    state.suspects.push((pid, now));
                }
            }
            state.suspects.retain(|(pid, _)| !inner.stubs.lock().contains_key(pid) && is_child(*pid));
            let ripe = |since: u64| now.saturating_sub(since) >= SETTLES_NS;
            let due: Vec<_> = state.suspects.iter().copied().filter(|(_, since)| ripe(*since)).collect();
            (due, !state.suspects.is_empty() || state.asked < state.youngest)
        };
        for (pid, since) in due {
            // Asked for last: it may have been born meanwhile.
            if !inner.fork_broker.may_be(pid, since) && !inner.stubs.lock().contains_key(&pid) {
                log::debug!("stub {pid}: cloned by itself; ended");
                inner.end_orphan(pid);
            }
        }
        more
    }
}

/// Reaps children that are dead and that nobody else reaps.
fn reap_dead(inner: &Arc<Inner>) {
    for _ in 0..MOST {
        let Some(pid) = child_state(libc::P_ALL, 0).filter(|pid| *pid > 0) else { return };
        if inner.stubs.lock().contains_key(&pid) {
            inner.reap(pid);
        } else if inner.fork_broker.may_be(pid, now_ns()) {
            // What it died of counts if it was to be born: `ForkBroker::check` asks. If it was not, a later search sees to it.
            return;
        } else {
            super::space::exit_state_of(pid);
        }
    }
}

/// Whether a child has this number, dead or alive.
fn is_child(pid: i32) -> bool {
    child_state(libc::P_PID, pid as libc::id_t).is_some()
}

/// The number of a dead child among those named (0: all are alive); `None` if there are none.
fn child_state(which: libc::idtype_t, id: libc::id_t) -> Option<i32> {
    // SAFETY: all zeroes is a valid `siginfo_t`, which the kernel fills in for a dead child.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        Errno::result(libc::waitid(which, id, &mut info, flags)).ok()?;
        Some(info.si_pid())
    }
}
