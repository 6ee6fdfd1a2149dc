//! Wait queues, the only way to wait.
//!
//! A [`WaitQueue`] belongs to an object that can become ready (a pipe, a child list, a futex). A waiter
//! registers a [`Waiter`] with a mask of events. A change of the object calls [`WaitQueue::wake`] *after* the
//! change is visible. A waiter registers first and tests its condition afterwards, so it never misses a
//! change between the two.
//!
//! Guest threads wait with [`Task::wait`](super::Task::wait), which a signal, a deadline or a kill
//! interrupts. `epoll` registers waiters of its own.

use crate::abi::PollEvents;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// Waiters that one wake reaches before it returns; others follow soon.
const WOKEN_AT_ONCE: usize = 1024;

/// Called when a queue is woken with events in the registration's mask. Must not block and must not take
/// locks of the object that wakes.
pub trait Waiter: Send + Sync {
    fn wake(&self, events: PollEvents);
}

impl Waiter for Waker {
    fn wake(&self, _events: PollEvents) {
        self.wake_by_ref();
    }
}

enum WakeTarget {
    /// A task's future; needs no allocation.
    Task(Waker),
    Other(Arc<dyn Waiter>),
}

impl WakeTarget {
    /// Wakes it, unless it is a task.
    fn wake_now(self, events: PollEvents) -> Option<WakeTarget> {
        match self {
            WakeTarget::Task(_) => Some(self),
            WakeTarget::Other(w) => {
                w.wake(events);
                None
            }
        }
    }
    fn wake(self, events: PollEvents) {
        match self {
            WakeTarget::Task(w) => w.wake(),
            WakeTarget::Other(w) => w.wake(events),
        }
    }
}

struct Entry {
    id: u64,
    mask: PollEvents,
    /// A wake picks one exclusive entry that has not been picked since its last `rearm`.
    exclusive: bool,
    picked: bool,
    /// `None`, with an empty mask: removed.
    target: Option<WakeTarget>,
}

/// Sorted by id. Removed entries stay until they are last or make up half of the list, so the cost of a
/// removal does not grow with the number of waiters.
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
        (entry.mask, entry.exclusive) = (PollEvents::empty(), false);
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

/// The waiters of one object. Cheap without waiters.
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

    fn insert(&self, mask: PollEvents, exclusive: bool, target: WakeTarget) -> u64 {
        let mut e = self.entries.lock();
        let id = e.next;
        e.next += 1;
        e.list.push(Entry { id, mask, exclusive, picked: false, target: Some(target) });
        self.len.store(e.len(), Ordering::SeqCst);
        id
    }

    /// Registers until [`WaitQueue::remove`]. `mask`: the events it asks for.
    pub fn add(&self, mask: PollEvents, waiter: Arc<dyn Waiter>) -> u64 {
        self.insert(mask, false, WakeTarget::Other(waiter))
    }

    /// As [`WaitQueue::add`], for a future.
    pub fn add_waker(&self, mask: PollEvents, waker: Waker) -> u64 {
        self.insert(mask, false, WakeTarget::Task(waker))
    }

    /// As [`WaitQueue::add_waker`], but a wake picks only one of the exclusive entries. A picked waiter tests
    /// its condition after [`WaitQueue::rearm`]; if it leaves without using the wake, it passes the wake on.
    pub fn add_exclusive(&self, mask: PollEvents, waker: Waker) -> u64 {
        self.insert(mask, true, WakeTarget::Task(waker))
    }

    /// Makes a picked exclusive entry eligible again.
    pub fn rearm(&self, id: u64) {
        if let Some(x) = self.entries.lock().get(id) {
            x.picked = false;
        }
    }

    /// Ends a registration; true if it was exclusive and a wake had picked it.
    pub fn remove(&self, id: u64) -> bool {
        let mut e = self.entries.lock();
        let old = e.remove(id);
        self.len.store(e.len(), Ordering::SeqCst);
        drop(e);
        old.is_some_and(|x| x.picked)
    }

    /// Wakes all entries whose mask meets `events`, but only one exclusive entry.
    pub fn wake(&self, events: PollEvents) {
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.len.load(Ordering::SeqCst) == 0 {
            return;
        }
        // Waiters run outside the lock, since they may use this queue. A small number needs no allocation.
        let mut inline: [Option<WakeTarget>; 4] = [const { None }; 4];
        let mut more = Vec::new();
        let mut n = 0;
        let mut exclusive_done = false;
        for e in &mut self.entries.lock().list {
            if !e.mask.intersects(events) || (e.exclusive && (exclusive_done || e.picked)) {
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
            match inline.get_mut(n) {
                Some(slot) => *slot = Some(target),
                None => more.push(target),
            }
            n += 1;
        }
        for w in inline.into_iter().flatten() {
            w.wake(events);
        }
        // Items of an epoll are ready when the call that made them so returns, as in Linux; waking one only queues it. Tasks
        // that wait cost more, and nothing says when they run.
        let tasks: Vec<WakeTarget> = more.into_iter().filter_map(|w| w.wake_now(events)).collect();
        in_parts(tasks, move |w| w.wake(events));
    }

    pub fn wake_all(&self) {
        self.wake(PollEvents::all());
    }

    pub fn has_waiters(&self) -> bool {
        self.len.load(Ordering::SeqCst) != 0
    }
}

/// Does `f`, which is short, with each, for some that one call wakes: [`WOKEN_AT_ONCE`] now, the others with other tasks in between.
pub fn in_parts<T: Send + 'static>(mut all: Vec<T>, f: impl Fn(T) + Send + 'static) {
    let mut rest = all.split_off(all.len().min(WOKEN_AT_ONCE));
    all.into_iter().for_each(&f);
    if rest.is_empty() {
        return;
    }
    let woken = platform::executor::spawn_here(async move {
        while !rest.is_empty() {
            yield_now().await;
            rest.drain(..rest.len().min(WOKEN_AT_ONCE)).for_each(&f);
        }
    });
    // Without an executor nothing of this is asynchronous.
    if let Err(mut now) = woken {
        while now.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {}
    }
}

/// Lets all other ready tasks run first: for long calls, every few milliseconds.
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

/// For loops of many short rounds: yields to other tasks at intervals.
#[derive(Debug, Default)]
pub struct Turn {
    count: u32,
    since: u64,
}

impl Turn {
    /// Time between yields, and rounds between reads of the clock.
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

    /// As `next`, for rounds that may take long.
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

/// Why a wait ended without its condition being met.
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
    fn waiters_leave_in_any_order() {
        let q = WaitQueue::new();
        let c: Vec<Arc<Count>> = (0..100).map(|_| Arc::default()).collect();
        let ids: Vec<u64> = c.iter().map(|c| q.add_waker(PollEvents::IN, c.clone().into())).collect();
        // 7 and 100 are coprime, so each is removed once.
        for (n, at) in (0..100).map(|i| i * 7 % 100).enumerate() {
            assert_eq!(q.len.load(Ordering::SeqCst), 100 - n);
            assert!(!q.remove(ids[at]));
            q.remove(ids[at]);
            q.wake(PollEvents::IN);
        }
        assert!(!q.has_waiters());
        assert!(q.entries.lock().list.is_empty());
        // Each was woken until it left.
        for (n, at) in (0..100).map(|i| i * 7 % 100).enumerate() {
            assert_eq!(c[at].0.load(Ordering::SeqCst), n);
        }
    }

    #[test]
    fn more_than_are_woken_at_once() {
        const N: usize = 3 * WOKEN_AT_ONCE + 7;
        let (q, c) = (WaitQueue::new(), Arc::<Count>::default());
        for _ in 0..N {
            q.add_waker(PollEvents::IN, c.clone().into());
        }
        q.wake(PollEvents::IN);
        assert_eq!(c.0.load(Ordering::SeqCst), N);
    }

    #[test]
    fn masks_and_exclusive_entries() {
        let q = WaitQueue::new();
        let c: Vec<Arc<Count>> = (0..8).map(|_| Arc::default()).collect();
        for x in &c[..6] {
            q.add_waker(PollEvents::IN, x.clone().into());
        }
        let a = q.add_exclusive(PollEvents::IN, c[6].clone().into());
        let b = q.add_exclusive(PollEvents::IN, c[7].clone().into());
        let seen = || c.iter().map(|x| x.0.load(Ordering::SeqCst)).collect::<Vec<_>>();
        q.wake(PollEvents::PRI);
        assert_eq!(seen(), [0; 8]);
        q.wake(PollEvents::IN);
        assert_eq!(seen(), [1, 1, 1, 1, 1, 1, 1, 0]);
        q.wake(PollEvents::IN);
        assert_eq!(seen(), [2, 2, 2, 2, 2, 2, 1, 1]);
        q.rearm(b);
        q.wake(PollEvents::IN);
        assert_eq!(seen()[6..], [1, 2]);
        assert!(q.remove(a));
        q.rearm(b);
        assert!(!q.remove(b));
    }
}
