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

enum Who {
    /// A task's future: no allocation of its own.
    Task(Waker),
    Other(Arc<dyn Waiter>),
}

impl Who {
    fn wake(self, events: u32) {
        match self {
            Who::Task(w) => w.wake(),
            Who::Other(w) => w.wake(events),
        }
    }
}

struct Entry {
    id: u64,
    mask: u32,
    /// Of the exclusive entries, a wake picks one that has not been picked since it last looked.
    exclusive: bool,
    picked: bool,
    who: Who,
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

    fn insert(&self, mask: u32, exclusive: bool, who: Who) -> u64 {
        let mut e = self.entries.lock();
        let id = e.next;
        e.next += 1;
        e.list.push(Entry { id, mask, exclusive, picked: false, who });
        self.len.store(e.list.len(), Ordering::SeqCst);
        id
    }

    /// Registers until [`WaitQueue::remove`]. `mask` is a set of `POLL*` bits; `u32::MAX` means everything.
    pub fn add(&self, mask: u32, waiter: Arc<dyn Waiter>) -> u64 {
        self.insert(mask, false, Who::Other(waiter))
    }

    /// As [`WaitQueue::add`], for a future.
    pub fn add_waker(&self, mask: u32, waker: Waker) -> u64 {
        self.insert(mask, false, Who::Task(waker))
    }

    /// As [`WaitQueue::add_waker`], but a wake picks only one of the exclusive entries. One that was picked tests its
    /// condition after [`WaitQueue::rearm`]; one that leaves without having used the wake passes it on.
    pub fn add_exclusive(&self, mask: u32, waker: Waker) -> u64 {
        self.insert(mask, true, Who::Task(waker))
    }

    /// Makes an exclusive entry eligible again.
    pub fn rearm(&self, id: u64) {
        if let Some(x) = self.entries.lock().list.iter_mut().find(|x| x.id == id) {
            x.picked = false;
        }
    }

    /// Ends a registration; true if a wake had picked it as an exclusive entry.
    pub fn remove(&self, id: u64) -> bool {
        let mut e = self.entries.lock();
        let old = e.list.iter().position(|x| x.id == id).map(|i| e.list.remove(i));
        self.len.store(e.list.len(), Ordering::SeqCst);
        drop(e);
        old.is_some_and(|x| x.picked)
    }

    /// Wakes all whose mask meets `events`, but of exclusive entries only one.
    pub fn wake(&self, events: u32) {
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.len.load(Ordering::SeqCst) == 0 {
            return;
        }
        // Waiters run outside the lock: they may come back to this queue. A few are held without an allocation.
        let mut few: [Option<Who>; 4] = [const { None }; 4];
        let mut more = Vec::new();
        let mut n = 0;
        let mut exclusive_done = false;
        for e in &mut self.entries.lock().list {
            if e.mask & events == 0 || (e.exclusive && (exclusive_done || e.picked)) {
                continue;
            }
            if e.exclusive {
                exclusive_done = true;
                e.picked = true;
            }
            let who = match &e.who {
                Who::Task(w) => Who::Task(w.clone()),
                Who::Other(w) => Who::Other(w.clone()),
            };
            match few.get_mut(n) {
                Some(slot) => *slot = Some(who),
                None => more.push(who),
            }
            n += 1;
        }
        for w in few.into_iter().flatten().chain(more) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Wake;

    #[derive(Default)]
    struct Count(AtomicUsize);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn masks_and_exclusive_entries() {
        let q = WaitQueue::new();
        let c: Vec<Arc<Count>> = (0..8).map(|_| Arc::default()).collect();
        for x in &c[..6] {
            q.add_waker(1, x.clone().into());
        }
        let a = q.add_exclusive(1, c[6].clone().into());
        let b = q.add_exclusive(1, c[7].clone().into());
        let seen = || c.iter().map(|x| x.0.load(Ordering::SeqCst)).collect::<Vec<_>>();
        q.wake(2);
        assert_eq!(seen(), [0; 8]);
        q.wake(1);
        assert_eq!(seen(), [1, 1, 1, 1, 1, 1, 1, 0]);
        q.wake(1);
        assert_eq!(seen(), [2, 2, 2, 2, 2, 2, 1, 1]);
        q.rearm(b);
        q.wake(1);
        assert_eq!(seen()[6..], [1, 2]);
        assert!(q.remove(a));
        q.rearm(b);
        assert!(!q.remove(b));
    }
}
