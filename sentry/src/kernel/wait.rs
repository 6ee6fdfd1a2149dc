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
use std::task::{Poll, Waker};

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

enum WakeTarget {
    /// A task's future: no allocation of its own.
    Task(Waker),
    Other(Arc<dyn Waiter>),
}

impl WakeTarget {
    fn wake(self, events: u32) {
        match self {
            WakeTarget::Task(w) => w.wake(),
            WakeTarget::Other(w) => w.wake(events),
        }
    }
}

struct Entry {
    id: u64,
    mask: u32,
    /// Of the exclusive entries, a wake picks one that has not been picked since it last looked.
    exclusive: bool,
    picked: bool,
    /// `None`, with an empty mask: removed.
    target: Option<WakeTarget>,
}

/// By their numbers. Removed ones stay until they are at the end or half of all, so that removing costs the same however many wait.
#[derive(Default)]
struct Entries {
    next: u64,
    list: Vec<Entry>,
    removed: usize,
}

impl Entries {
    fn get(&mut self, id: u64) -> Option<&mut Entry> {
        let at = self.list.binary_search_by_key(&id, |e| e.id).ok()?;
        self.list.get_mut(at)
    }

    fn remove(&mut self, id: u64) -> Option<Entry> {
        let entry = self.get(id)?;
        let target = entry.target.take()?;
        let old = Entry { target: Some(target), ..*entry };
        (entry.mask, entry.exclusive) = (0, false);
        self.removed += 1;
        while self.list.last().is_some_and(|e| e.target.is_none()) {
            self.list.pop();
            self.removed -= 1;
        }
        if self.removed * 2 > self.list.len() {
            self.list.retain(|e| e.target.is_some());
            self.removed = 0;
        }
        Some(old)
    }

    fn len(&self) -> usize {
        self.list.len() - self.removed
    }
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

    fn insert(&self, mask: u32, exclusive: bool, target: WakeTarget) -> u64 {
        let mut e = self.entries.lock();
        let id = e.next;
        e.next += 1;
        e.list.push(Entry { id, mask, exclusive, picked: false, target: Some(target) });
        self.len.store(e.len(), Ordering::SeqCst);
        id
    }

    /// Registers until [`WaitQueue::remove`]. `mask` is a set of `POLL*` bits; `u32::MAX` means everything.
    pub fn add(&self, mask: u32, waiter: Arc<dyn Waiter>) -> u64 {
        self.insert(mask, false, WakeTarget::Other(waiter))
    }

    /// As [`WaitQueue::add`], for a future.
    pub fn add_waker(&self, mask: u32, waker: Waker) -> u64 {
        self.insert(mask, false, WakeTarget::Task(waker))
    }

    /// As [`WaitQueue::add_waker`], but a wake picks only one of the exclusive entries. One that was picked tests its
    /// condition after [`WaitQueue::rearm`]; one that leaves without having used the wake passes it on.
    pub fn add_exclusive(&self, mask: u32, waker: Waker) -> u64 {
        self.insert(mask, true, WakeTarget::Task(waker))
    }

    /// Makes an exclusive entry eligible again.
    pub fn rearm(&self, id: u64) {
        if let Some(x) = self.entries.lock().get(id) {
            x.picked = false;
        }
    }

    /// Ends a registration; true if a wake had picked it as an exclusive entry.
    pub fn remove(&self, id: u64) -> bool {
        let mut e = self.entries.lock();
        let old = e.remove(id);
        self.len.store(e.len(), Ordering::SeqCst);
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
        let mut few: [Option<WakeTarget>; 4] = [const { None }; 4];
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
            let target = match &e.target {
                Some(WakeTarget::Task(w)) => WakeTarget::Task(w.clone()),
                Some(WakeTarget::Other(w)) => WakeTarget::Other(w.clone()),
                None => continue,
            };
            match few.get_mut(n) {
                Some(slot) => *slot = Some(target),
                None => more.push(target),
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

/// Lets all others who are ready go first: for calls that do much before they end, every few milliseconds.
pub async fn yield_now() {
    let mut begun = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut begun, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// For a loop of many short rounds: lets all others go first each time it has gone on for a while.
#[derive(Debug, Default)]
pub struct Turn {
    count: u32,
    since: u64,
}

impl Turn {
    /// How long one may go on, and how many rounds the clock is not asked for.
    const LENGTH_NS: u64 = 1_000_000;
    const LOOK_EACH: u32 = 16;

    pub fn new() -> Turn {
        Turn::default()
    }

    /// To be awaited after each round.
    pub async fn next(&mut self) {
        self.count += 1;
        if self.count % Self::LOOK_EACH == 0 {
            self.look().await;
        }
    }

    /// As `next`, where one round may take long.
    pub async fn look(&mut self) {
        let now = platform::executor::now_ns();
        if self.since == 0 {
            self.since = now;
        } else if now - self.since > Self::LENGTH_NS {
            yield_now().await;
            self.since = platform::executor::now_ns();
        }
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
    fn leaving_in_any_order() {
        let q = WaitQueue::new();
        let c: Vec<Arc<Count>> = (0..100).map(|_| Arc::default()).collect();
        let ids: Vec<u64> = c.iter().map(|c| q.add_waker(1, c.clone().into())).collect();
        // 7 and 100 have no common divisor, so each goes once.
        for (n, at) in (0..100).map(|i| i * 7 % 100).enumerate() {
            assert_eq!(q.len.load(Ordering::SeqCst), 100 - n);
            assert!(!q.remove(ids[at]));
            q.remove(ids[at]);
            q.wake(1);
        }
        assert!(!q.has_waiters());
        assert!(q.entries.lock().list.is_empty());
        // Each was woken until it left.
        for (n, at) in (0..100).map(|i| i * 7 % 100).enumerate() {
            assert_eq!(c[at].0.load(Ordering::SeqCst), n);
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
