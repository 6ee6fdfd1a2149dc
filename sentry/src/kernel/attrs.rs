//! Per-task attributes that are rarely read: scheduling, timer slack, I/O priority, seccomp.
//!
//! The host schedules guest threads. A policy that only changes a thread's share of processor time is stored,
//! reported back, and limits the values that the guest may set next (sched(7)).

use parking_lot::{Mutex, RwLock};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;

/// Default of `PR_SET_TIMERSLACK`.
pub const TIMER_SLACK_NS: u64 = 50_000;

pub struct TaskAttrs {
    pub nice: AtomicI32,
    /// Affinity mask as set, without bits beyond the sandbox's processors; empty: all processors.
    pub affinity: Mutex<Vec<u64>>,
    /// `SCHED_*`.
    pub policy: AtomicI32,
    pub reset_on_fork: AtomicBool,
    pub rt_priority: AtomicU32,
    pub timer_slack_ns: AtomicU64,
    pub default_timer_slack_ns: AtomicU64,
    /// `IOPRIO_PRIO_VALUE`; 0 for none.
    pub ioprio: AtomicU32,
    pub thp_disable: AtomicBool,
    /// `personality(2)`; `execve` reads `ADDR_NO_RANDOMIZE` (0x40000).
    pub personality: AtomicU32,
    /// Set if `filters` is not empty: dispatch reads one flag.
    pub filtered: AtomicBool,
    /// `SECCOMP_MODE_STRICT`.
    pub strict: AtomicBool,
    /// The newest filter comes first.
    pub filters: RwLock<Option<Arc<super::seccomp::Filter>>>,
}

impl Default for TaskAttrs {
    fn default() -> Self {
        TaskAttrs {
            nice: AtomicI32::new(0),
            affinity: Mutex::default(),
            policy: AtomicI32::new(libc::SCHED_OTHER),
            reset_on_fork: AtomicBool::new(false),
            rt_priority: AtomicU32::new(0),
            timer_slack_ns: AtomicU64::new(TIMER_SLACK_NS),
            default_timer_slack_ns: AtomicU64::new(TIMER_SLACK_NS),
            ioprio: AtomicU32::new(0),
            thp_disable: AtomicBool::new(false),
            personality: AtomicU32::new(0),
            filtered: AtomicBool::new(false),
            strict: AtomicBool::new(false),
            filters: RwLock::new(None),
        }
    }
}

impl TaskAttrs {
    /// The attributes of a task made by `clone`.
    pub fn for_child(&self) -> TaskAttrs {
        let reset = self.reset_on_fork.load(Ordering::Relaxed);
        let policy = self.policy.load(Ordering::Relaxed);
        let slack = self.timer_slack_ns.load(Ordering::Relaxed);
        let real_time = matches!(policy, libc::SCHED_FIFO | libc::SCHED_RR);
        let nice = if reset && !real_time { 0 } else { self.nice.load(Ordering::Relaxed) };
        TaskAttrs {
            nice: AtomicI32::new(nice),
            affinity: Mutex::new(self.affinity.lock().clone()),
            policy: AtomicI32::new(if reset { libc::SCHED_OTHER } else { policy }),
            reset_on_fork: AtomicBool::new(false),
            rt_priority: AtomicU32::new(if reset { 0 } else { self.rt_priority.load(Ordering::Relaxed) }),
            timer_slack_ns: AtomicU64::new(slack),
            default_timer_slack_ns: AtomicU64::new(slack),
            ioprio: AtomicU32::new(self.ioprio.load(Ordering::Relaxed)),
            thp_disable: AtomicBool::new(self.thp_disable.load(Ordering::Relaxed)),
            personality: AtomicU32::new(self.personality.load(Ordering::Relaxed)),
            filtered: AtomicBool::new(self.filtered.load(Ordering::SeqCst)),
            strict: AtomicBool::new(self.strict.load(Ordering::SeqCst)),
            filters: RwLock::new(self.filters.read().clone()),
        }
    }
}
