//! Processors, and who may change whose scheduling (sched(7)).
//!
//! The host's scheduler runs the guest's threads; see [`super::attrs`].

use super::cred::CAP_SYS_NICE;
use super::Task;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

/// The processors that the sandbox may use, as a mask of 64-bit words (at least one word, at least one bit).
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

/// How many there are.
pub fn cpu_count() -> u32 {
    cpus().iter().map(|w| w.count_ones()).sum()
}

impl Task {
    /// Its affinity mask: as set, or all processors.
    pub fn affinity(&self) -> Vec<u64> {
        let set = self.affinity.lock();
        if set.is_empty() {
            cpus().to_vec()
        } else {
            set.clone()
        }
    }

    /// May its nice value become `nice` without privilege (`RLIMIT_NICE`)?
    pub fn can_nice(&self, caller: &Task, nice: i32) -> bool {
        i64::from(20 - nice) <= i64::try_from(self.limit(libc::RLIMIT_NICE)).unwrap_or(i64::MAX)
            || caller.cred.read().has(CAP_SYS_NICE)
    }

    pub fn nice(&self) -> i32 {
        self.nice.load(Ordering::Relaxed)
    }
}

/// The threads that `which`/`who` of getpriority(2) and ioprio_get(2) mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Thread(i32),
    Group(i32),
    User(u32),
}

/// Those threads; `who` 0 means the caller's.
pub fn select(caller: &Arc<Task>, who: Who) -> Vec<Arc<Task>> {
    match who {
        Who::Thread(0) => vec![caller.clone()],
        Who::Thread(tid) => caller.kernel.task(tid).into_iter().collect(),
        Who::Group(pgid) => {
            let pgid = if pgid == 0 { caller.group.rel.lock().pgid } else { pgid };
            let tree = caller.kernel.tree.lock();
            tree.tasks.values().filter(|t| t.group.rel.lock().pgid == pgid).cloned().collect()
        }
        Who::User(uid) => {
            let uid = if uid == 0 { caller.cred.read().uid } else { uid };
            let tasks: Vec<_> = caller.kernel.tree.lock().tasks.values().cloned().collect();
            tasks.into_iter().filter(|t| t.cred.read().uid == uid).collect()
        }
    }
}
