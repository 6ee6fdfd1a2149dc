//! Processors, and permission to change scheduling (sched(7)).
//!
//! The host's scheduler runs the guest's threads; see [`super::attrs`].

use super::attrs::TaskAttrs;
use super::cred::CAP_SYS_NICE;
use super::user_ns::Id;
use super::{Cred, Kernel, Task, ThreadGroup};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

/// The processors that the sandbox may use (the affinity of the first calling thread), as a mask of 64-bit
/// words. It has at least one word and at least one bit.
pub fn cpus() -> &'static [u64] {
    static CPUS: OnceLock<Vec<u64>> = OnceLock::new();
    CPUS.get_or_init(|| {
        let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap_or_default();
        let mut words = vec![0u64];
        for cpu in (0..nix::sched::CpuSet::count()).filter(|&c| set.is_set(c).unwrap_or(false)) {
            words.resize(words.len().max(cpu / 64 + 1), 0);
            words[cpu / 64] |= 1 << (cpu % 64);
        }
        if words.iter().all(|w| *w == 0) {
            words[0] = 1;
        }
        words
    })
}

/// Number of processors in [`cpus`].
pub fn cpu_count() -> u32 {
    cpus().iter().map(|w| w.count_ones()).sum()
}

/// A thread as seen by the scheduling calls. A zombie counts until it is reaped.
pub struct SchedTarget {
    pub attrs: Arc<TaskAttrs>,
    pub cred: Arc<Cred>,
    pub group: Arc<ThreadGroup>,
    /// `None`: a zombie.
    pub task: Option<Arc<Task>>,
}

impl From<&Arc<Task>> for SchedTarget {
    fn from(t: &Arc<Task>) -> Self {
        SchedTarget { attrs: t.attrs.clone(), cred: t.cred(), group: t.group.clone(), task: Some(t.clone()) }
    }
}

impl SchedTarget {
    pub fn find(kernel: &Kernel, tid: i32) -> Option<Self> {
        if let Some(t) = kernel.task(tid) {
            return Some((&t).into());
        }
        let group = kernel.group(tid)?;
        let (attrs, cred) = group.remains.lock().as_ref().map(|z| (z.attrs.clone(), z.cred.clone()))?;
        Some(SchedTarget { attrs, cred, group, task: None })
    }

    pub fn nice(&self) -> i32 {
        self.attrs.nice.load(Ordering::Relaxed)
    }

    /// Sets the affinity mask, which is non-empty and within [`cpus`].
    pub fn set_affinity(&self, set: Vec<u64>) {
        *self.attrs.affinity.lock() = set;
        if let Some(t) = &self.task {
            t.pin();
        }
    }

    /// Whether the nice value may become `nice` without privilege (`RLIMIT_NICE`).
    pub fn can_nice(&self, caller: &Task, nice: i32) -> bool {
        let limit = self.group.limit(libc::RLIMIT_NICE);
        i64::from(20 - nice) <= i64::try_from(limit).unwrap_or(i64::MAX) || caller.cred.read().has(CAP_SYS_NICE)
    }
}

impl TaskAttrs {
    /// The affinity mask: as set, or all processors.
    pub fn affinity(&self) -> Vec<u64> {
        let set = self.affinity.lock();
        if set.is_empty() {
            cpus().to_vec()
        } else {
            set.clone()
        }
    }
}

impl Task {
    /// Binds the host thread to the task's processors. To be called again when the task moves to another
    /// stub.
    pub fn pin(&self) {
        let set = self.attrs.affinity.lock().clone();
        if set.is_empty() {
            return;
        }
        if let Some(i) = &*self.interrupter.read() {
            i.pin((set != cpus()).then_some(&set));
        }
    }

    pub fn nice(&self) -> i32 {
        self.attrs.nice.load(Ordering::Relaxed)
    }
}

/// The threads that `which`/`who` of getpriority(2) and ioprio_get(2) select.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrioWhich {
    Thread(i32),
    Group(i32),
    User(u32),
}

/// The selected threads; `who` 0 means the caller's.
pub fn select(caller: &Arc<Task>, who: PrioWhich) -> Vec<SchedTarget> {
    let own = |tasks: Vec<Arc<Task>>| tasks.iter().map(SchedTarget::from).collect();
    match who {
        PrioWhich::Thread(0) => own(vec![caller.clone()]),
        PrioWhich::Thread(tid) => {
            caller.global_of(tid).and_then(|tid| SchedTarget::find(&caller.kernel, tid)).into_iter().collect()
        }
        PrioWhich::Group(pgid) => {
            let pgid = if pgid == 0 { Some(caller.group.links.lock().pgid) } else { caller.global_of(pgid) };
            let tasks: Vec<_> = caller.kernel.tree.lock().tasks.values().cloned().collect();
            own(tasks.into_iter().filter(|t| Some(t.group.links.lock().pgid) == pgid).collect())
        }
        PrioWhich::User(uid) => {
            let cred = caller.cred();
            let uid = if uid == 0 { Some(cred.uid) } else { cred.user_ns.id_in(Id::User, uid) };
            let tasks: Vec<_> = caller.kernel.tree.lock().tasks.values().cloned().collect();
            // Of those that the caller has a number for.
            let ours = |t: &Arc<Task>| Some(t.cred.read().uid) == uid && caller.nr_of(t.number()) != 0;
            own(tasks.into_iter().filter(ours).collect())
        }
    }
}
