//! Processor time: clocks, timers, and `RLIMIT_CPU`.
//!
//! The host counts per guest address space ([`platform::AddressSpace::cpu_time`]); the time used in address
//! spaces that a process has left is kept in its `Links` ([`settle`]). The host sends no event at a given
//! processor time, so a [`CpuTimer`] checks the clock: at the earliest time at which the target can be
//! reached, and more rarely while the process does not run.

use super::timer::{Left, Next, Setting, Timer};
use crate::kernel::limits::RLIM_INFINITY;
use crate::kernel::signal::SigInfo;
use crate::kernel::{sched, Kernel, Task, ThreadGroup};
use parking_lot::Mutex;
use platform::executor::now_ns;
use platform::Executor;
use std::sync::{Arc, Weak};

/// User and system time (ns).
pub type Times = (u64, u64);

fn add(a: Times, b: Times) -> Times {
    (a.0.saturating_add(b.0), a.1.saturating_add(b.1))
}

/// Time used by a process, without its children.
pub fn group_time(group: &ThreadGroup) -> Times {
    let (dead, any) = {
        let r = group.links.lock();
        ((r.dead_utime, r.dead_stime), r.threads.first().cloned())
    };
    match any {
        Some(t) => add(dead, t.mm().space().cpu_time()),
        None => dead,
    }
}

/// Time used by a thread, as seen by other threads. The host counts per process, so threads of one process
/// show their common time. (For a thread's own time, its stub asks the host: `Op::ThreadTime`.)
pub fn task_time(task: &Task) -> Times {
    group_time(&task.group)
}

/// Saves the time used in an address space that the process leaves (`execve`, exit) and no other process
/// uses.
pub fn settle(task: &Task) {
    let used = task.mm().space().cpu_time();
    let mut r = task.group.links.lock();
    r.dead_utime = r.dead_utime.saturating_add(used.0);
    r.dead_stime = r.dead_stime.saturating_add(used.1);
}

/// The times that count (`CPUCLOCK_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    All,
    User,
}

impl Part {
    pub fn of(self, t: Times) -> u64 {
        match self {
            Part::All => t.0.saturating_add(t.1),
            Part::User => t.0,
        }
    }
}

/// Shortest and longest time between two checks of an armed timer.
const MIN_CHECK_NS: u64 = 4_000_000;
const MAX_CHECK_NS: u64 = 1_000_000_000;

#[derive(Default)]
struct CpuState {
    /// Processor time at the next expiration.
    target: Option<u64>,
    interval: u64,
    ticks: u64,
    held: bool,
    /// Processor time at the last check, and the wait until the next check while it does not advance.
    seen: u64,
    idle_wait: u64,
}

struct CpuInner {
    clock: Box<dyn Fn() -> Option<u64> + Send + Sync>,
    expire: Box<dyn Fn(u64) -> Next + Send + Sync>,
    state: Mutex<CpuState>,
    host: Timer,
}

/// As [`Timer`], over processor time.
pub struct CpuTimer {
    inner: Arc<CpuInner>,
}

impl CpuInner {
    /// Schedules the next check for when the target can be reached.
    fn schedule_check(&self, s: &mut CpuState, now: u64) {
        let Some(target) = s.target else {
            self.host.set(Setting::default());
            return;
        };
        let cpus = u64::from(sched::cpu_count()).max(1);
        let soonest = target.saturating_sub(now) / cpus;
        if now == s.seen {
            s.idle_wait = (s.idle_wait * 2).clamp(MIN_CHECK_NS, MAX_CHECK_NS);
        } else {
            s.idle_wait = MIN_CHECK_NS;
        }
        s.seen = now;
        let wait = soonest.max(s.idle_wait);
        self.host.set(Setting { deadline_ns: Some(now_ns().saturating_add(wait)), interval_ns: 0 });
    }

    fn check(&self) {
        let Some(now) = (self.clock)() else { return };
        let n = {
            let mut s = self.state.lock();
            let n = forward(&mut s, now);
            s.ticks = s.ticks.saturating_add(n);
            if n == 0 {
                self.schedule_check(&mut s, now);
                return;
            }
            n
        };
        let next = (self.expire)(n);
        let mut s = self.state.lock();
        match next {
            Next::Hold if s.ticks > 0 => s.held = true,
            _ => {
                s.ticks = 0;
                self.schedule_check(&mut s, now);
            }
        }
    }
}

fn forward(s: &mut CpuState, now: u64) -> u64 {
    let Some(t) = s.target.filter(|t| *t <= now) else { return 0 };
    if s.interval == 0 {
        s.target = None;
        return 1;
    }
    let n = (now - t) / s.interval + 1;
    s.target = t.checked_add(n.saturating_mul(s.interval));
    n
}

impl CpuTimer {
    /// `clock`: the processor time used so far; `None` if the process is gone.
    pub fn new(
        executor: &Arc<Executor>,
        clock: impl Fn() -> Option<u64> + Send + Sync + 'static,
        expire: impl Fn(u64) -> Next + Send + Sync + 'static,
    ) -> Self {
        let inner = Arc::new_cyclic(|weak: &Weak<CpuInner>| {
            let weak = weak.clone();
            let host = Timer::new(executor, move |_| {
                if let Some(inner) = weak.upgrade() {
                    inner.check();
                }
                Next::Hold
            });
            CpuInner { clock: Box::new(clock), expire: Box::new(expire), state: Mutex::default(), host }
        });
        CpuTimer { inner }
    }

    /// `setting.deadline_ns` is processor time.
    pub fn set(&self, setting: Setting) -> Left {
        let now = (self.inner.clock)().unwrap_or(0);
        let mut s = self.inner.state.lock();
        let before = left(&s, now);
        *s = CpuState { target: setting.deadline_ns, interval: setting.interval_ns, seen: now, ..CpuState::default() };
        self.inner.schedule_check(&mut s, now);
        before
    }

    pub fn get(&self) -> Left {
        let now = (self.inner.clock)().unwrap_or(0);
        left(&self.inner.state.lock(), now)
    }

    pub fn now(&self) -> u64 {
        (self.inner.clock)().unwrap_or(0)
    }

    pub fn take(&self) -> u64 {
        let mut s = self.inner.state.lock();
        if s.held {
            s.held = false;
            let now = (self.inner.clock)().unwrap_or(0);
            let n = forward(&mut s, now);
            s.ticks = s.ticks.saturating_add(n);
            self.inner.schedule_check(&mut s, now);
        }
        std::mem::take(&mut s.ticks)
    }
}

fn left(s: &CpuState, now: u64) -> Left {
    let value_ns = match s.target {
        None => 0,
        Some(t) if t > now => t - now,
        // Due, but not checked yet.
        Some(t) if s.interval > 0 => s.interval - (now - t) % s.interval,
        Some(_) => 1,
    };
    Left { value_ns, interval_ns: s.interval }
}

/// The clock of a process, for a [`CpuTimer`], which must not keep the process alive.
pub fn group_clock(group: &Arc<ThreadGroup>, part: Part) -> impl Fn() -> Option<u64> + Send + Sync + 'static {
    let weak = Arc::downgrade(group);
    move || weak.upgrade().map(|g| part.of(group_time(&g)))
}

/// Enforces `RLIMIT_CPU` of one process.
struct LimitWatch(CpuTimer);

/// To be called when the limit is set or inherited: SIGXCPU each second from the soft limit on, SIGKILL at
/// the hard limit.
pub fn limit_changed(kernel: &Arc<Kernel>, group: &Arc<ThreadGroup>) {
    const SECOND: u64 = 1_000_000_000;
    let limit = group.limits.read().0[libc::RLIMIT_CPU as usize];
    if limit.cur == RLIM_INFINITY && limit.max == RLIM_INFINITY {
        group.timers.remove::<LimitWatch>();
        return;
    }
    let weak = Arc::downgrade(group);
    let watch = group.timers.get_or_insert(|| {
        let clock = group_clock(group, Part::All);
        LimitWatch(CpuTimer::new(&kernel.executor, clock, move |_| {
            let Some(group) = weak.upgrade() else { return Next::Hold };
            let limit = group.limits.read().0[libc::RLIMIT_CPU as usize];
            let used = Part::All.of(group_time(&group)) / SECOND;
            let sig = if used >= limit.max { libc::SIGKILL } else { libc::SIGXCPU };
            if used >= limit.cur || used >= limit.max {
                super::signal_group(&group, SigInfo::kernel(sig));
            }
            Next::Rearm
        }))
    });
    // Linux treats a limit of 0 as 1 second.
    let first = limit.cur.min(limit.max).max(1).saturating_mul(SECOND);
    watch.0.set(Setting { deadline_ns: Some(first), interval_ns: SECOND });
}
