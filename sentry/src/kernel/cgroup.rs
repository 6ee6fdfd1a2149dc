//! Control groups (cgroups(7)): the processes that are counted, limited and frozen together. Each container has one.
//!
//! A process is in the cgroup of its parent, so a container's processes are those whose cgroup is the container's or below it.

use super::wait::WaitQueue;
use super::{Kernel, ThreadGroup};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;

#[derive(Default)]
pub struct Cgroup {
    parent: Option<Arc<Cgroup>>,
    frozen: AtomicBool,
    /// Tasks of a frozen cgroup wait here.
    thaw_wait: WaitQueue,
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

    /// As [`Cgroup::charge_pid`], whatever the limits are: for a process that comes from outside, as on Linux a process that is moved in.
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

    pub fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::SeqCst) || self.parent.as_ref().is_some_and(|p| p.is_frozen())
    }

    /// The queue that a task of a frozen cgroup waits on: that of the outermost frozen one.
    pub fn frozen_by(self: &Arc<Self>) -> Option<&Arc<Cgroup>> {
        self.up().filter(|c| c.frozen.load(Ordering::SeqCst)).last()
    }
    pub fn thaw_wait(&self) -> &WaitQueue {
        &self.thaw_wait
    }

    /// The processes in it and below it.
    pub fn processes(self: &Arc<Self>, kernel: &Kernel) -> Vec<Arc<ThreadGroup>> {
        let tree = kernel.tree.lock();
        tree.groups.values().filter(|g| g.cgroup.is_within(self)).cloned().collect()
    }

    /// Lets no task in it run guest code until [`Cgroup::thaw`]. A task that waits in a call stays there, and stops when the call ends.
    pub fn freeze(self: &Arc<Self>, kernel: &Kernel) {
        if self.frozen.swap(true, Ordering::SeqCst) {
            return;
        }
        for group in self.processes(kernel) {
            let threads = group.links.lock().threads.clone();
            threads.iter().for_each(|t| t.notify());
        }
    }

    pub fn thaw(&self) {
        self.frozen.store(false, Ordering::SeqCst);
        self.thaw_wait.wake_all();
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
        assert!(child.frozen_by().is_some_and(|c| Arc::ptr_eq(c, &root)));
        assert!(child.is_within(&root) && !root.is_within(&child));
        root.thaw();
        assert!(!child.is_frozen() && child.frozen_by().is_none());
    }
}
