//! The task that this executor thread currently works for (Linux's `current`).
//!
//! File-system code is synchronous and its traits carry no task, but some objects depend on the caller:
//! `/proc/self`, `/dev/tty`. They call [`get`]. The value is set for one poll of the task's future
//! ([`scope`]) or for the life of a [`Guard`]; outside of a task it is `None`.

use super::Task;
use std::cell::RefCell;
use std::future::{poll_fn, Future};
use std::marker::PhantomData;
use std::sync::Arc;

thread_local! {
    static CURRENT: RefCell<Option<Arc<Task>>> = const { RefCell::new(None) };
}

/// The calling task.
pub fn get() -> Option<Arc<Task>> {
    CURRENT.with(|c| c.borrow().clone())
}

/// Restores the previous value when dropped. Not `Send`: it belongs to the thread.
pub struct Guard {
    before: Option<Arc<Task>>,
    _thread: PhantomData<*const ()>,
}

/// Makes `task` the current one until the guard is dropped.
pub fn enter(task: &Arc<Task>) -> Guard {
    Guard { before: CURRENT.with(|c| c.replace(Some(task.clone()))), _thread: PhantomData }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mine = CURRENT.with(|c| c.replace(self.before.take()));
        // Dropped after the cell is free again: dropping the last reference to a task can run code that calls
        // `get`.
        drop(mine);
    }
}

/// Polls `future` with `task` as the current one.
pub async fn scope<F: Future>(task: Arc<Task>, future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    poll_fn(move |cx| {
        let _guard = enter(&task);
        future.as_mut().poll(cx)
    })
    .await
}
