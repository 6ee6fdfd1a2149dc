//! A lock of each process (Linux's `cred_guard_mutex`). An execve holds it from where it computes the program's
//! credentials until it has set them; a seccomp filter for all threads is installed under it.

use super::wait::WaitQueue;
use super::{Task, ThreadGroup};
use crate::abi::PollEvents;
use crate::error::{Restart, SysError, SysResult};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

#[derive(Default)]
pub struct ExecGuard {
    held: AtomicBool,
    queue: WaitQueue,
}

/// Held until it is dropped.
pub struct Held(Arc<ThreadGroup>);

/// Waits for the guard of the task's process.
pub async fn hold(task: &Task) -> SysResult<Held> {
    let guard = &task.group.exec_guard;
    let take = || (!guard.held.swap(true, Ordering::SeqCst)).then(|| Held(task.group.clone()));
    let r = task.wait_exclusive(&guard.queue, PollEvents::all(), None, take).await;
    r.map_err(|_| SysError::Restart(Restart::NoIntr))
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.exec_guard.held.store(false, Ordering::SeqCst);
        self.0.exec_guard.queue.wake(PollEvents::all());
    }
}
