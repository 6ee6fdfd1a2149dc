//! Clocks and timers.

pub mod clock;
pub mod cpu;
pub mod itimer;
pub mod posix;
pub mod timer;

pub use clock::Clock;
pub use timer::Timer;

use crate::kernel::signal::SigInfo;
use crate::kernel::{send, Task, ThreadGroup};
use std::sync::Arc;

/// Sends a timer's signal to a process. It comes from the kernel, so it affects init too.
fn signal_group(group: &Arc<ThreadGroup>, info: SigInfo) {
    // Lost if the signal queue is full, as in Linux.
    let _ = send::from_outside(group, info);
}

/// As [`signal_group`], for a processor-time timer: the running threads take the signals in turn.
fn signal_busy(group: &Arc<ThreadGroup>, info: SigInfo, nth: usize) {
    let _ = send::to_busy(group, info, nth);
}

/// As [`signal_group`], for one thread.
fn signal_task(task: &Task, info: SigInfo) {
    let _ = send::to_task(task, info);
}

/// Whether a signal sent to the process now would be ignored.
fn ignores(group: &ThreadGroup, sig: i32) -> bool {
    let actions = group.actions.read().clone();
    let ignored = actions.lock().ignored(sig);
    ignored
}

/// Whether a process has so many timers that [`unignored`] takes long.
pub fn has_many(group: &ThreadGroup) -> bool {
    posix::has_many(group)
}

/// A signal that a process ignored is not ignored any more: timers that waited for that go on.
pub fn unignored(group: &ThreadGroup, sig: i32) {
    posix::unignored(group, sig);
    if sig == libc::SIGALRM {
        itimer::alarm_taken(group);
    }
}

/// To be called with every signal taken from a queue.
pub fn signal_taken(group: &ThreadGroup, info: &mut SigInfo) {
    posix::signal_taken(group, info);
    if info.signo == libc::SIGALRM {
        itimer::alarm_taken(group);
    }
}

/// `execve` deletes a process's POSIX timers; interval timers continue.
pub fn on_exec(group: &ThreadGroup) {
    group.timers.remove::<posix::PosixTimers>();
}
