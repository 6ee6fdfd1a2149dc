//! The one waiting primitive.
//!
//! A [`WaitQueue`] belongs to something that can become ready (a pipe, a child list, a futex). Whoever waits registers a
//! [`Waiter`] with a mask of events; whoever changes the thing calls [`WaitQueue::wake`] *after* the change is visible.
//! A waiter registers first and tests its condition afterwards, so a change between the two is never missed.
//!
//! Guest threads wait with [`Task::wait`](super::Task::wait), which a signal, a deadline or a kill cuts short. `epoll`
//! registers waiters of its own.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::task::Waker;

/// Called when a queue is woken with events that the registration's mask includes. Must not block and must not take
/// locks of the thing that wakes.
pub trait Waiter: Send + Sync {
    fn wake(&self, events: u32);
}

impl Waiter for Waker {
    fn wake(&self, _events: u32) {
        self.wake_by_ref();
    }
}

struct Entry {
    id: u64,
    mask: u32,
    waiter: Arc<dyn Waiter>,
}

#[derive(Default)]
struct Entries {
    next: u64,
    list: Vec<Entry>,
}

/// The parties that wait for one thing. Cheap when nobody waits.
#[derive(Default)]
pub struct WaitQueue {
    len: AtomicUsize,
    entries: Mutex<Entries>,
}

impl std::fmt::Debug for WaitQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WaitQueue({})", self.len.load(Ordering::Relaxed))
    }
}

impl WaitQueue {
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers until [`WaitQueue::remove`]. `mask` is a set of `POLL*` bits; `u32::MAX` means everything.
    pub fn add(&self, mask: u32, waiter: Arc<dyn Waiter>) -> u64 {
        let mut e = self.entries.lock();
        let id = e.next;
        e.next += 1;
        e.list.push(Entry { id, mask, waiter });
        self.len.store(e.list.len(), Ordering::SeqCst);
        id
    }

    pub fn remove(&self, id: u64) {
        let mut e = self.entries.lock();
        if let Some(i) = e.list.iter().position(|x| x.id == id) {
            e.list.remove(i);
        }
        self.len.store(e.list.len(), Ordering::SeqCst);
    }

    /// Wakes all whose mask meets `events`.
    pub fn wake(&self, events: u32) {
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.len.load(Ordering::SeqCst) == 0 {
            return;
        }
        // Waiters run outside the lock: they may come back to this queue.
        let hit: Vec<Arc<dyn Waiter>> =
            self.entries.lock().list.iter().filter(|e| e.mask & events != 0).map(|e| e.waiter.clone()).collect();
        for w in hit {
            w.wake(events);
        }
    }

    pub fn wake_all(&self) {
        self.wake(u32::MAX);
    }

    pub fn has_waiters(&self) -> bool {
        self.len.load(Ordering::SeqCst) != 0
    }
}

/// Why a wait ended without its condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitError {
    /// A signal is pending (or the task is being killed).
    Interrupted,
    TimedOut,
}
