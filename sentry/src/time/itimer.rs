//! Interval timers of a process (setitimer(2)): real, virtual and profiling time.

use super::cpu::{group_clock, CpuTimer, Part};
use super::timer::{Left, Next, Setting, Timer};
use crate::kernel::signal::SigInfo;
use crate::kernel::{Kernel, ThreadGroup};
use platform::executor::now_ns;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

/// The three timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItimerKind {
    Real,
    Virtual,
    Prof,
}

/// The timers' types in `ThreadGroup::timers`.
struct Real(Timer);
struct Virtual(CpuTimer);
struct Prof(CpuTimer);

fn cpu_timer(kernel: &Arc<Kernel>, group: &Arc<ThreadGroup>, part: Part, sig: i32) -> CpuTimer {
    let weak = Arc::downgrade(group);
    let turns = AtomicUsize::new(0);
    CpuTimer::new(&kernel.executor, group_clock(group, part), move |_| {
        let Some(group) = weak.upgrade() else { return Next::Hold };
        super::signal_busy(&group, SigInfo::kernel(sig), turns.fetch_add(1, Ordering::Relaxed));
        Next::Rearm
    })
}

fn virt(kernel: &Arc<Kernel>, group: &Arc<ThreadGroup>) -> Arc<Virtual> {
    group.timers.get_or_insert(|| Virtual(cpu_timer(kernel, group, Part::User, libc::SIGVTALRM)))
}

fn prof(kernel: &Arc<Kernel>, group: &Arc<ThreadGroup>) -> Arc<Prof> {
    group.timers.get_or_insert(|| Prof(cpu_timer(kernel, group, Part::All, libc::SIGPROF)))
}

/// Sets a timer to `value` ns from now (0 disarms) and then every `interval` ns; returns the previous
/// remaining time.
pub fn set(kernel: &Arc<Kernel>, group: &Arc<ThreadGroup>, which: ItimerKind, value: u64, interval: u64) -> Left {
    let setting = |now: u64| Setting {
        deadline_ns: (value != 0).then(|| now.saturating_add(value)),
        // A disarmed timer has no period.
        interval_ns: if value == 0 { 0 } else { interval },
    };
    match which {
        ItimerKind::Real => {
            let timer = group.timers.get_or_insert(|| {
                let weak = Arc::downgrade(group);
                Real(Timer::new(&kernel.executor, move |_| {
                    let Some(group) = weak.upgrade() else { return Next::Hold };
                    super::signal_group(&group, SigInfo::kernel(libc::SIGALRM));
                    // Held until the signal is taken. A signal that is no longer pending was taken before
                    // this check.
                    let waits = group.pending.lock().set.has(libc::SIGALRM);
                    if waits || super::ignores(&group, libc::SIGALRM) {
                        Next::Hold
                    } else {
                        Next::Rearm
                    }
                }))
            });
            timer.0.set(setting(now_ns()))
        }
        ItimerKind::Virtual => {
            let t = virt(kernel, group);
            t.0.set(setting(t.0.now()))
        }
        ItimerKind::Prof => {
            let t = prof(kernel, group);
            t.0.set(setting(t.0.now()))
        }
    }
}

/// To be called when SIGALRM is taken or no longer ignored: the real-time timer continues.
pub fn alarm_taken(group: &ThreadGroup) {
    if let Some(t) = group.timers.get::<Real>() {
        t.0.take();
    }
}

/// The remaining time of a timer.
pub fn get(group: &ThreadGroup, which: ItimerKind) -> Left {
    match which {
        ItimerKind::Real => group.timers.get::<Real>().map(|t| t.0.get()),
        ItimerKind::Virtual => group.timers.get::<Virtual>().map(|t| t.0.get()),
        ItimerKind::Prof => group.timers.get::<Prof>().map(|t| t.0.get()),
    }
    .unwrap_or_default()
}
