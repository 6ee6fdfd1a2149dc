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

/// Sends a timer's signal to a process. It comes from the kernel, so init is not spared.
fn signal_group(group: &Arc<ThreadGroup>, info: SigInfo) {
    // A full queue loses it, as Linux does.
    let _ = send::from_outside(group, info);
}

/// As [`signal_group`], for one thread.
fn signal_task(task: &Task, info: SigInfo) {
    let _ = send::to_task(task, info);
}

/// `execve` ends a process's POSIX timers; interval timers go on.
pub fn on_exec(group: &ThreadGroup) {
    group.timers.remove::<posix::PosixTimers>();
}
