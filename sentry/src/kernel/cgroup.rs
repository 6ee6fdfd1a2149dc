//! Control groups (cgroups(7)): the processes that are counted, limited and frozen together. Each container has one.
//!
//! A process is in the cgroup of its parent, so a container's processes are those whose cgroup is the container's or
//! below it.

use super::wait::WaitQueue;
use super::{Kernel, ThreadGroup};
use parking_lot::Mutex;
use platform::executor::Rounds;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

#[derive(Default)]
pub struct Cgroup {
    parent: Option<Arc<Cgroup>>,
    frozen: AtomicBool,
    /// Its processor time of this period is used up.
    throttled: AtomicBool,
    /// Tasks of a frozen or throttled cgroup wait here.
    thaw_wait: WaitQueue,
    cpu_max: Mutex<Option<CpuMax>>,
    /// Something enforces `cpu_max`.
    enforced: AtomicBool,
    /// Periods in which it was throttled, and for how long in all, in nanoseconds.
    throttled_periods: AtomicU64,
    throttled_ns: AtomicU64,
    /// Threads, and zombies until they are reaped.
    pids: AtomicU64,
    /// Most of them; 0: no limit.
    pids_max: AtomicU64,
    /// Forks refused because of `pids_max`.
    pids_refused: AtomicU64,
    /// User and system time of the processes that have ended, in nanoseconds.
    dead_utime: AtomicU64,
    dead_stime: AtomicU64,
}

/// Processor time that a cgroup may use in each period, both in microseconds (`cpu.max`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuMax {
    pub quota: u64,
    pub period: u64,
}

/// Bounds of a period and of a quota, in microseconds (cgroups v2, `cpu.max`).
pub const CPU_PERIOD_RANGE: std::ops::RangeInclusive<u64> = 1_000..=1_000_000;
pub const CPU_QUOTA_MIN: u64 = 1_000;

/// One thread or zombie, counted in a cgroup and its ancestors until it is dropped.
pub struct PidCharge(Arc<Cgroup>);

impl Cgroup {
    pub fn new(parent: Option<Arc<Cgroup>>) -> Arc<Cgroup> {
        Arc::new(Cgroup { parent, ..Cgroup::default() })
    }

    /// It and its ancestors.
    fn up(self: &Arc<Self>) -> impl Iterator<Item = &Arc<Cgroup>> {
        std::iter::successors(Some(self), |c| c.parent.as_ref())
    }

    /// Whether it is `other` or below it.
    pub fn is_within(self: &Arc<Self>, other: &Arc<Cgroup>) -> bool {
        self.up().any(|c| Arc::ptr_eq(c, other))
    }

    /// Counts one more thread; `None` if a limit refuses it.
    pub fn charge_pid(self: &Arc<Self>) -> Option<PidCharge> {
        for (n, c) in self.up().enumerate() {
            let max = c.pids_max.load(Ordering::Relaxed);
            let had = c.pids.fetch_add(1, Ordering::Relaxed);
            if max != 0 && had >= max {
                c.pids_refused.fetch_add(1, Ordering::Relaxed);
                self.up().take(n + 1).for_each(|c| {
                    c.pids.fetch_sub(1, Ordering::Relaxed);
                });
                return None;
            }
        }
        Some(PidCharge(self.clone()))
    }

    /// As [`Cgroup::charge_pid`], whatever the limits are: for a process that comes from outside, as on Linux a process
    /// that is moved in.
    pub fn charge_pid_anyway(self: &Arc<Self>) -> PidCharge {
        self.up().for_each(|c| {
            c.pids.fetch_add(1, Ordering::Relaxed);
        });
        PidCharge(self.clone())
    }

    pub fn pids(&self) -> u64 {
        self.pids.load(Ordering::Relaxed)
    }
    pub fn pids_max(&self) -> Option<u64> {
        Some(self.pids_max.load(Ordering::Relaxed)).filter(|n| *n != 0)
    }
    /// `None`: no limit. A lower limit than the number of threads ends none of them.
    pub fn set_pids_max(&self, max: Option<u64>) {
        self.pids_max.store(max.map_or(0, |n| n.max(1)), Ordering::Relaxed);
    }

    /// Adds the times of a process that has ended, in nanoseconds.
    pub fn add_dead_time(self: &Arc<Self>, user: u64, system: u64) {
        for c in self.up() {
            c.dead_utime.fetch_add(user, Ordering::Relaxed);
            c.dead_stime.fetch_add(system, Ordering::Relaxed);
        }
    }

    /// User and system time of the processes that have ended, in nanoseconds.
    pub fn dead_time(&self) -> (u64, u64) {
        (self.dead_utime.load(Ordering::Relaxed), self.dead_stime.load(Ordering::Relaxed))
    }

    pub fn cpu_max(&self) -> Option<CpuMax> {
        *self.cpu_max.lock()
    }
    /// `None`: no limit. [`crate::container`] enforces it.
    pub fn set_cpu_max(&self, max: Option<CpuMax>) {
        *self.cpu_max.lock() = max;
    }

    /// Whether the caller is to enforce [`Cgroup::cpu_max`] from now on: nothing else does.
    pub fn begin_enforcement(&self) -> bool {
        !self.enforced.swap(true, Ordering::SeqCst)
    }
    pub fn end_enforcement(&self) {
        self.enforced.store(false, Ordering::SeqCst);
    }

    /// User and system time of its processes, ended ones included, in nanoseconds.
    pub fn cpu_time(self: &Arc<Self>, kernel: &Kernel) -> (u64, u64) {
        let (mut user, mut system) = self.dead_time();
        for group in self.processes(kernel) {
            let (u, s) = crate::time::cpu::group_time(&group);
            (user, system) = (user.saturating_add(u), system.saturating_add(s));
        }
        (user, system)
    }

    /// Stopped by [`Cgroup::freeze`], its own or an ancestor's.
    pub fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::SeqCst) || self.parent.as_ref().is_some_and(|p| p.is_frozen())
    }

    fn holds(&self) -> bool {
        self.frozen.load(Ordering::SeqCst) || self.throttled.load(Ordering::SeqCst)
    }

    /// The outermost cgroup that lets its tasks run no guest code, frozen or throttled; they wait on its queue.
    pub fn held_by(self: &Arc<Self>) -> Option<&Arc<Cgroup>> {
        self.up().filter(|c| c.holds()).last()
    }
    pub fn is_held(&self) -> bool {
        self.holds() || self.parent.as_ref().is_some_and(|p| p.is_held())
    }
    pub fn thaw_wait(&self) -> &WaitQueue {
        &self.thaw_wait
    }

    /// The processes in it and below it.
    pub fn processes(self: &Arc<Self>, kernel: &Kernel) -> Vec<Arc<ThreadGroup>> {
        let tree = kernel.tree.lock();
        tree.groups.values().filter(|g| g.cgroup.is_within(self)).cloned().collect()
    }

    /// Lets no task in it run guest code until [`Cgroup::thaw`]. A task that waits in a call stays there, and stops
    /// when the call ends.
    pub fn freeze(self: &Arc<Self>, kernel: &Kernel) {
        if !self.frozen.swap(true, Ordering::SeqCst) {
            self.stop(kernel);
        }
    }

    pub fn thaw(&self) {
        self.frozen.store(false, Ordering::SeqCst);
        self.thaw_wait.wake_all();
    }

    /// As [`Cgroup::freeze`], until [`Cgroup::unthrottle`]; the two do not touch each other.
    pub fn throttle(self: &Arc<Self>, kernel: &Kernel) {
        if !self.throttled.swap(true, Ordering::SeqCst) {
            self.stop(kernel);
        }
    }

    /// Ends a throttling that has lasted for `ns`.
    pub fn unthrottle(&self, ns: u64) {
        if self.throttled.swap(false, Ordering::SeqCst) {
            self.throttled_periods.fetch_add(1, Ordering::Relaxed);
            self.throttled_ns.fetch_add(ns, Ordering::Relaxed);
            self.thaw_wait.wake_all();
        }
    }

    /// In how many periods it was throttled, and for how many nanoseconds in all.
    pub fn throttling(&self) -> (u64, u64) {
        (self.throttled_periods.load(Ordering::Relaxed), self.throttled_ns.load(Ordering::Relaxed))
    }

    /// Has all its tasks look at their cgroup.
    fn stop(self: &Arc<Self>, kernel: &Kernel) {
        let mut rounds = Rounds::new();
        for group in self.processes(kernel) {
            let threads = group.links.lock().threads.clone();
            for t in threads {
                t.notify();
                rounds.next();
            }
        }
    }
}

impl Drop for PidCharge {
    fn drop(&mut self) {
        self.0.up().for_each(|c| {
            c.pids.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pids_are_counted_up_to_the_root_and_given_back() {
        let root = Cgroup::new(None);
        let child = Cgroup::new(Some(root.clone()));
        root.set_pids_max(Some(2));
        let a = child.charge_pid().unwrap();
        let b = root.charge_pid().unwrap();
        assert!(child.charge_pid().is_none());
        assert_eq!((root.pids(), child.pids()), (2, 1));
        drop(b);
        child.set_pids_max(Some(1));
        assert!(child.charge_pid().is_none());
        assert_eq!((root.pids(), child.pids()), (1, 1));
        let moved = child.charge_pid_anyway();
        assert_eq!((root.pids(), child.pids()), (2, 2));
        drop((a, moved));
        assert_eq!((root.pids(), child.pids()), (0, 0));
    }

    #[test]
    fn a_cgroup_is_frozen_by_its_ancestors() {
        let root = Cgroup::new(None);
        let child = Cgroup::new(Some(root.clone()));
        let other = Cgroup::new(None);
        root.frozen.store(true, Ordering::SeqCst);
        assert!(child.is_frozen() && !other.is_frozen());
        child.throttled.store(true, Ordering::SeqCst);
        assert!(child.held_by().is_some_and(|c| Arc::ptr_eq(c, &root)));
        assert!(child.is_within(&root) && !root.is_within(&child));
        root.thaw();
        assert!(!child.is_frozen() && child.held_by().is_some_and(|c| Arc::ptr_eq(c, &child)));
        child.unthrottle(5);
        assert!(!child.is_held() && child.held_by().is_none());
        assert_eq!(child.throttling(), (1, 5));
    }
}
