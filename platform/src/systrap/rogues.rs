//! Threads that hostile code has cloned without being asked (*rogues*): looked for when a process or thread that was asked
//! for cannot be had, because the host gives the sandbox no more of them (`RLIMIT_NPROC`,
//! [`super::Config::max_host_tasks`]). They then cost their process, so that they do not keep others from theirs.
//!
//! The numbers that the host gives out are asked for, from the youngest down, [`ROUND_NS`] in each search: which process
//! has a thread by that number, and whether it is one that the process has told of, one for each slot that it was given.
//! A thread that stays untold of for [`RIPE_NS`] is a rogue; a few may be threads that are about to end.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::Arc;

use parking_lot::Mutex;

use super::Inner;
use crate::executor::now_ns;
use crate::host::is_thread_of;

/// How long one search takes; there are ten in a second.
const ROUND_NS: u64 = 2_000_000;
/// How often the time is looked at, in host calls.
const LOOK_EACH: u32 = 64;
const RIPE_NS: u64 = 2_000_000_000;
/// As many of a process are let be.
const FEW: usize = 2;
/// Numbers beyond the youngest stub's that may be threads', and the highest that a host gives out (`PID_MAX_LIMIT`).
const AHEAD: i32 = 1 << 15;
const HIGHEST: i32 = 1 << 22;
/// Most numbers that are remembered.
const MOST: usize = 1 << 15;

#[derive(Default)]
pub(super) struct Rogues {
    wanted: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Numbers that are still to be asked for, from the last range and there from the end down.
    left: Vec<std::ops::Range<i32>>,
    /// Threads that no process has told of, by process, and since when.
    found: HashMap<i32, HashMap<i32, u64>>,
    count: usize,
}

impl Rogues {
    pub(super) fn wanted(&self) -> bool {
        self.wanted.load(SeqCst)
    }

    /// A process or thread could not be had.
    pub(super) fn short(&self, inner: &Inner) {
        self.wanted.store(true, SeqCst);
        inner.fork_broker.watch(inner);
    }

    /// One search; returns whether there is reason for another one.
    pub(super) fn search(&self, inner: &Arc<Inner>) -> bool {
        if !self.wanted() || std::process::id() != 1 {
            return false;
        }
        let now = now_ns();
        let known = Known::of(inner);
        let mut state = self.state.lock();
        if state.left.is_empty() && state.found.is_empty() {
            let top = inner.strays.youngest().saturating_add(AHEAD).min(HIGHEST);
            state.left = vec![top..HIGHEST, 2..top];
        }
        state.ask(&known, now);
        let guilty = state.judge(&known, now);
        let more = !state.left.is_empty() || !state.found.is_empty();
        drop(state);
        if !more {
            self.wanted.store(false, SeqCst);
        }
        for pid in guilty {
            log::warn!("stub {pid}: it has made threads by itself, and others are short of them; killed");
            inner.kill_known(pid);
        }
        more
    }
}

/// What is known of the stubs.
struct Known {
    pids: Vec<i32>,
    /// Threads, as their stubs tell.
    told: HashSet<(i32, i32)>,
}

impl Known {
    fn of(inner: &Inner) -> Known {
        let spaces: Vec<_> = inner.stubs.lock().iter().map(|(pid, s)| (*pid, s.space.upgrade())).collect();
        let mut known = Known { pids: Vec::with_capacity(spaces.len()), told: HashSet::new() };
        for (pid, space) in spaces {
            known.pids.push(pid);
            known.told.insert((pid, pid));
            known.told.extend(space.iter().flat_map(|s| s.told_tids()).map(|tid| (pid, tid)));
        }
        known
    }

    /// The process that has a thread by this number; `last` is asked first, threads come in a row.
    fn owner(&self, tid: i32, last: i32) -> Option<i32> {
        if last != 0 && is_thread_of(tid, last) {
            return Some(last);
        }
        self.pids.iter().copied().find(|pid| is_thread_of(tid, *pid))
    }
}

impl State {
    /// Asks for as many numbers as there is time for.
    fn ask(&mut self, known: &Known, now: u64) {
        let (mut calls, mut last) = (0u32, 0);
        while let Some(range) = self.left.last_mut() {
            let Some(tid) = range.next_back() else {
                self.left.pop();
                continue;
            };
            // Without an owner all are asked, but not for a number that is nobody's.
            if exists(tid) {
                last = known.owner(tid, last).unwrap_or(0);
                calls += LOOK_EACH;
                if last != 0 && !known.told.contains(&(last, tid)) && self.count < MOST {
                    self.count += usize::from(self.found.entry(last).or_default().insert(tid, now).is_none());
                }
            }
            calls += 1;
            if calls >= LOOK_EACH {
                calls = 0;
                if now_ns().saturating_sub(now) >= ROUND_NS {
                    return;
                }
            }
        }
    }

    /// Forgets those that are gone, or have been told of meanwhile; names the processes whose rogues are ripe.
    fn judge(&mut self, known: &Known, now: u64) -> Vec<i32> {
        self.found.retain(|pid, tids| {
            tids.retain(|tid, _| is_thread_of(*tid, *pid) && !known.told.contains(&(*pid, *tid)));
            !tids.is_empty()
        });
        let ripe = |since: &u64| now.saturating_sub(*since) >= RIPE_NS;
        let many = |tids: &HashMap<i32, u64>| tids.values().filter(|since| ripe(since)).count() > FEW;
        let guilty = self.found.iter().filter(|(_, tids)| many(tids)).map(|(pid, _)| *pid).collect();
        // A few are let be, and not waited for.
        self.found.retain(|_, tids| !tids.values().all(ripe));
        self.count = self.found.values().map(HashMap::len).sum();
        guilty
    }
}

/// Whether there is a process or thread by this number.
fn exists(tid: i32) -> bool {
    // SAFETY: no memory is involved; signal 0 is none.
    unsafe { libc::kill(tid, 0) == 0 }
}
