//! Processor time: clocks, timers, and `RLIMIT_CPU`.
//!
//! The host counts, per guest address space ([`platform::AddressSpace::cpu_time`]); what a process used in address spaces that it has left
//! is kept in its `Links` ([`settle`]). Nobody tells when a process has used so much time: a [`CpuTimer`] looks again
//! at the earliest moment at which it can have, and more rarely while the process does not run.

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

/// Time that a process has used, without its children.
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

/// Time that a thread has used, as others see it: the host tells us by process, so threads of one process show their common time. (A thread
/// that asks for its own has its stub ask the host: `Op::ThreadTime`.)
pub fn task_time(task: &Task) -> Times {
    group_time(&task.group)
}

/// The process leaves its address space (`execve`, the end), and nobody else lives there: keeps what it has used there.
pub fn settle(task: &Task) {
    let used = task.mm().space().cpu_time();
    let mut r = task.group.links.lock();
    r.dead_utime = r.dead_utime.saturating_add(used.0);
    r.dead_stime = r.dead_stime.saturating_add(used.1);
}

/// Which part counts (`CPUCLOCK_*`).
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

/// Looks no oftener than this, and at least so often while armed.
const SHORTEST_LOOK_NS: u64 = 4_000_000;
const LONGEST_LOOK_NS: u64 = 1_000_000_000;

#[derive(Default)]
struct CpuState {
    /// Processor time at which it expires next.
    target: Option<u64>,
    interval: u64,
    ticks: u64,
    held: bool,
    /// Processor time at the last look, and how long to wait while it does not move.
    seen: u64,
    patience: u64,
}

struct CpuInner {
    clock: Box<dyn Fn() -> Option<u64> + Send + Sync>,
    expire: Box<dyn Fn(u64) -> Next + Send + Sync>,
    state: Mutex<CpuState>,
    host: Timer,
}

/// A timer over processor time; otherwise as [`Timer`].
pub struct CpuTimer {
    inner: Arc<CpuInner>,
}

impl CpuInner {
    /// Asks to look again when the target can have been reached.
    fn look_later(&self, s: &mut CpuState, now: u64) {
        let Some(target) = s.target else {
            self.host.set(Setting::default());
            return;
        };
        let cpus = u64::from(sched::cpu_count()).max(1);
        let soonest = target.saturating_sub(now) / cpus;
        if now == s.seen {
            s.patience = (s.patience * 2).clamp(SHORTEST_LOOK_NS, LONGEST_LOOK_NS);
        } else {
            s.patience = SHORTEST_LOOK_NS;
        }
        s.seen = now;
        let wait = soonest.max(s.patience);
        self.host.set(Setting { deadline_ns: Some(now_ns().saturating_add(wait)), interval_ns: 0 });
    }

    fn look(&self) {
        let Some(now) = (self.clock)() else { return };
        let n = {
            let mut s = self.state.lock();
            let n = forward(&mut s, now);
            s.ticks = s.ticks.saturating_add(n);
            if n == 0 {
                self.look_later(&mut s, now);
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
                self.look_later(&mut s, now);
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
    /// `clock`: the processor time used so far; `None` when the process is gone.
    pub fn new(
        executor: &Arc<Executor>,
        clock: impl Fn() -> Option<u64> + Send + Sync + 'static,
        expire: impl Fn(u64) -> Next + Send + Sync + 'static,
    ) -> Self {
        let inner = Arc::new_cyclic(|weak: &Weak<CpuInner>| {
            let weak = weak.clone();
            let host = Timer::new(executor, move |_| {
                if let Some(inner) = weak.upgrade() {
                    inner.look();
                }
                Next::Hold
            });
            CpuInner { clock: Box::new(clock), expire: Box::new(expire), state: Mutex::default(), host }
        });
        CpuTimer { inner }
    }

    /// `setting.deadline_ns` counts processor time.
    pub fn set(&self, setting: Setting) -> Left {
        let now = (self.inner.clock)().unwrap_or(0);
        let mut s = self.inner.state.lock();
        let before = left(&s, now);
        *s = CpuState { target: setting.deadline_ns, interval: setting.interval_ns, seen: now, ..CpuState::default() };
        self.inner.look_later(&mut s, now);
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
            self.inner.look_later(&mut s, now);
        }
        std::mem::take(&mut s.ticks)
    }
}

fn left(s: &CpuState, now: u64) -> Left {
    let value_ns = match s.target {
        None => 0,
        Some(t) if t > now => t - now,
        // Due, only nobody has looked yet.
        Some(t) if s.interval > 0 => s.interval - (now - t) % s.interval,
        Some(_) => 1,
    };
    Left { value_ns, interval_ns: s.interval }
}

/// The clock of a process, for a [`CpuTimer`] that must not keep it alive.
pub fn group_clock(group: &Arc<ThreadGroup>, part: Part) -> impl Fn() -> Option<u64> + Send + Sync + 'static {
    let weak = Arc::downgrade(group);
    move || weak.upgrade().map(|g| part.of(group_time(&g)))
}

/// Watches `RLIMIT_CPU` of one process.
struct LimitWatch(CpuTimer);

/// The limit was set, or a process was made with one: SIGXCPU each second from the soft limit on, SIGKILL at the hard limit.
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
    // Linux takes a limit of 0 as 1 second.
    let first = limit.cur.min(limit.max).max(1).saturating_mul(SECOND);
    watch.0.set(Setting { deadline_ns: Some(first), interval_ns: SECOND });
}
