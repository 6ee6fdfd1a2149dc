//! futex(2) with an owner: `FUTEX_LOCK_PI`, `FUTEX_LOCK_PI2`, `FUTEX_TRYLOCK_PI`, `FUTEX_UNLOCK_PI`.
//!
//! The futex word holds the owner's thread id (its number in its own pid namespace), and `FUTEX_WAITERS` while threads
//! queue here. No priority is raised: the host schedules guest threads. The rest of the contract holds: an unlock hands
//! the lock to the first waiter, the lock of a dead owner passes on with `FUTEX_OWNER_DIED`, and a thread does not wait
//! for itself.
//!
//! The guest can change the word at any time, so each change here is one compare-and-exchange made by the
//! caller's stub. Between choosing a waiter and storing its id in the word that waiter is in state
//! [`TAKING`], in which neither a timeout nor a signal removes it from the queue.
//!
//! ```text
//! WAITING --unlock chooses it--> TAKING --stored--> OWNER
//!    |  ^------the word changed-----'
//!    |--timeout, signal--> (removed from the queue)
//!    '--the lock became free before the waiter was queued--> AGAIN
//! ```

use super::futex::{key_of, FUTEX_OWNER_DIED, FUTEX_TID_MASK, FUTEX_WAITERS};
use super::wait::{yield_now, Turn, WaitError, WaitQueue};
use super::Task;
use crate::abi::PollEvents;
use crate::error::{Errno, Restart, Result, SysError, SysResult};
use crate::mm::space::Key;
use crate::mm::UserMem;
use crate::syscalls::Ctx;
use parking_lot::Mutex;
use platform::{Enter, Op, Trap};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};

const WAITING: u8 = 0;
const TAKING: u8 = 1;
const OWNER: u8 = 2;
/// Removed from the queue because the lock was already free: the waiter tries again.
const AGAIN: u8 = 3;

/// How far a task is that ends: it owns locks; passes them on; owns none any more.
#[derive(Debug, Default)]
pub struct Owning(AtomicU8);

const LIVES: u8 = 0;
const LEAVES: u8 = 1;
const HAS_LEFT: u8 = 2;

fn owning(task: &Task, owner: i32) -> u8 {
    task.find_task(owner).map_or(HAS_LEFT, |t| t.pi.0.load(Ordering::SeqCst))
}

struct Waiter {
    tid: i32,
    /// The owner that the waiter read from the word.
    seen_owner: i32,
    /// Address of the word in the waiter's memory, for the exit of an owner that no longer maps it.
    mem: UserMem,
    addr: u64,
    state: AtomicU8,
    queue: WaitQueue,
}

type Queue = VecDeque<Arc<Waiter>>;

/// A lock with waiters.
#[derive(Default)]
struct Lock {
    queue: Queue,
    /// The last owner chosen here; 0 if none.
    owner: i32,
}

impl Lock {
    /// Whether the lock may belong to this thread. Without an owner chosen here, the owner is the one that
    /// the first waiter read.
    fn may_be_of(&self, tid: i32) -> bool {
        self.owner == tid || self.queue.front().is_some_and(|w| w.seen_owner == tid)
    }
}

/// Locks with waiters. An entry is removed with its last waiter, so there are at most as many as threads.
static LOCKS: LazyLock<Mutex<HashMap<Key, Lock>>> = LazyLock::new(Default::default);
/// Number of entries, so that a thread's exit costs nothing without locks.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Changes a word of guest memory by compare-and-exchange; `false` if it did not hold `old`.
pub(super) async fn compare_exchange(cx: &mut Ctx<'_>, addr: u64, old: u32, new: u32) -> Result<bool> {
    cx.thread.queue(Op::CompareExchange { addr, old, new });
    cx.thread.enter(Enter::Stay);
    let thread = &mut *cx.thread;
    match poll_fn(|c| thread.poll_trap(c)).await {
        Trap::OpsDone => Ok(true),
        Trap::OpFailed { errno: Errno::EAGAIN, .. } => Ok(false),
        _ => Err(Errno::EFAULT),
    }
}

fn remove(key: &Key, w: &Arc<Waiter>) -> bool {
    let mut locks = LOCKS.lock();
    let Some(Lock { queue: q, .. }) = locks.get_mut(key) else { return false };
    let before = q.len();
    // A waiter chosen by an unlock is not in the queue; it becomes the owner or is queued again.
    q.retain(|x| !Arc::ptr_eq(x, w));
    let out = q.len() < before;
    if q.is_empty() && w.state.load(Ordering::SeqCst) != TAKING {
        locks.remove(key);
    }
    COUNT.store(locks.len(), Ordering::SeqCst);
    out
}

/// `deadline_ns` is host `CLOCK_MONOTONIC`.
pub async fn lock(cx: &mut Ctx<'_>, addr: u64, private: bool, deadline_ns: Option<u64>, only_try: bool) -> SysResult {
    let task = cx.task.clone();
    let me = task.number().own();
    let key = key_of(&task, addr, private)?;
    loop {
        let word: u32 = cx.mem().read(addr)?;
        let owner = (word & FUTEX_TID_MASK) as i32;
        if owner == me {
            return Err(Errno::EDEADLK.into());
        }
        if owner == 0 {
            if compare_exchange(cx, addr, word, word | me as u32).await? {
                return Ok(0);
            }
            continue;
        }
        if only_try {
            return Err(Errno::EAGAIN.into());
        }
        match owning(&task, owner) {
            LIVES => {}
            LEAVES => {
                yield_now().await;
                continue;
            }
            _ => return Err(Errno::ESRCH.into()),
        }
        if word & FUTEX_WAITERS == 0 && !compare_exchange(cx, addr, word, word | FUTEX_WAITERS).await? {
            continue;
        }
        let state = AtomicU8::new(WAITING);
        let w = Arc::new(Waiter { tid: me, seen_owner: owner, mem: cx.mem(), addr, state, queue: WaitQueue::new() });
        {
            let mut locks = LOCKS.lock();
            locks.entry(key).or_default().queue.push_back(w.clone());
            COUNT.store(locks.len(), Ordering::SeqCst);
        }
        // The owner may have exited before it could see the queue.
        let now: Result<u32> = cx.mem().read(addr);
        let waited_for = owner as u32 | FUTEX_WAITERS;
        if now.as_ref().is_ok_and(|n| n & (FUTEX_TID_MASK | FUTEX_WAITERS) == waited_for)
            && owning(&task, owner) == LIVES
        {
            let outcome = || match w.state.load(Ordering::SeqCst) {
                s @ (OWNER | AGAIN) => Some(s),
                _ => None,
            };
            let r = match task.wait(&[(&w.queue, PollEvents::all())], deadline_ns, outcome).await {
                Ok(OWNER) => return Ok(0),
                Ok(_) => continue,
                Err(e) => e,
            };
            if remove(&key, &w) {
                return Err(match r {
                    WaitError::TimedOut => Errno::ETIMEDOUT.into(),
                    WaitError::Interrupted => SysError::Restart(Restart::NoIntr),
                });
            }
        } else if remove(&key, &w) {
            now?;
            continue;
        }
        // Chosen by an unlock: the state soon becomes OWNER or WAITING.
        let settled = || (w.state.load(Ordering::SeqCst) != TAKING).then_some(());
        let _ = task.wait_killable(&w.queue, settled).await;
        if owned(&w).is_some() {
            return Ok(0);
        }
        remove(&key, &w);
    }
}

fn owned(w: &Waiter) -> Option<()> {
    (w.state.load(Ordering::SeqCst) == OWNER).then_some(())
}

pub async fn unlock(cx: &mut Ctx<'_>, addr: u64, private: bool) -> SysResult {
    let task = cx.task.clone();
    let key = key_of(&task, addr, private)?;
    loop {
        let word: u32 = cx.mem().read(addr)?;
        let me = task.number().own();
        if word & FUTEX_TID_MASK != me as u32 {
            return Err(Errno::EPERM.into());
        }
        let next = {
            let mut locks = LOCKS.lock();
            let w = locks.get_mut(&key).and_then(|l| l.queue.pop_front());
            // Set under the lock: a waiter that finds itself out of the queue sees the reason.
            w.inspect(|w| w.state.store(TAKING, Ordering::SeqCst))
        };
        // More waiters may queue before the word changes, so the next owner gets FUTEX_WAITERS and checks the
        // queue itself.
        let new = next.as_ref().map_or(0, |w| w.tid as u32 | FUTEX_WAITERS);
        let done = compare_exchange(cx, addr, word, new).await;
        let stored = matches!(done, Ok(true));
        if let Some(w) = next {
            let mut locks = LOCKS.lock();
            if stored {
                settle(&mut locks, &key, &w);
            } else {
                w.state.store(WAITING, Ordering::SeqCst);
                let lock = locks.entry(key).or_default();
                lock.owner = me;
                lock.queue.push_front(w.clone());
            }
            COUNT.store(locks.len(), Ordering::SeqCst);
            drop(locks);
            w.queue.wake_all();
        }
        if done? {
            if new == 0 {
                retry_all(&key);
            }
            return Ok(0);
        }
    }
}

/// The lock is free: all remaining waiters try again.
fn retry_all(key: &Key) {
    let mut locks = LOCKS.lock();
    let lock = locks.remove(key).unwrap_or_default();
    COUNT.store(locks.len(), Ordering::SeqCst);
    drop(locks);
    for w in lock.queue {
        w.state.store(AGAIN, Ordering::SeqCst);
        w.queue.wake_all();
    }
}

/// Makes `w` the owner.
fn settle(locks: &mut HashMap<Key, Lock>, key: &Key, w: &Waiter) {
    w.state.store(OWNER, Ordering::SeqCst);
    let Some(lock) = locks.get_mut(key) else { return };
    lock.owner = w.tid;
    if lock.queue.is_empty() {
        locks.remove(key);
    }
}

/// Exit of a thread: each lock that it owns passes to the first waiter, marked `FUTEX_OWNER_DIED`.
pub async fn exit(task: &Task) {
    let tid = task.number().own();
    // A waiter is counted first and looks at this afterwards.
    task.pi.0.store(LEAVES, Ordering::SeqCst);
    if COUNT.load(Ordering::SeqCst) > 0 {
        let keys = may_be_of(&LOCKS.lock(), tid);
        let mut turn = Turn::new();
        for key in keys {
            pass_on(&key, tid);
            turn.next().await;
        }
    }
    task.pi.0.store(HAS_LEFT, Ordering::SeqCst);
}

fn may_be_of(locks: &HashMap<Key, Lock>, tid: i32) -> Vec<Key> {
    locks.iter().filter(|(_, l)| l.may_be_of(tid)).map(|(k, _)| *k).collect()
}

/// If the word names the thread, which exits, as the owner. Guest memory is looked at with no lock held: each time is a host call, and a
/// thread may have thousands of locks.
fn pass_on(key: &Key, tid: i32) {
    loop {
        let first = LOCKS.lock().get(key).filter(|l| l.may_be_of(tid)).and_then(|l| l.queue.front().cloned());
        let Some(w) = first else { return };
        if !w.mem.read::<u32>(w.addr).is_ok_and(|word| word & FUTEX_TID_MASK == tid as u32) {
            return;
        }
        if !choose(&mut LOCKS.lock(), key, &w) {
            // It has left meanwhile.
            continue;
        }
        // No other thread may change the word while it names a dead owner, so a plain store is sufficient.
        let _ = w.mem.write(w.addr, &(w.tid as u32 | FUTEX_WAITERS | FUTEX_OWNER_DIED));
        let mut locks = LOCKS.lock();
        settle(&mut locks, key, &w);
        COUNT.store(locks.len(), Ordering::SeqCst);
        drop(locks);
        w.queue.wake_all();
        return;
    }
}

/// Takes the waiter out of the queue, if it is the first: it will be the owner.
fn choose(locks: &mut HashMap<Key, Lock>, key: &Key, w: &Arc<Waiter>) -> bool {
    let Some(lock) = locks.get_mut(key).filter(|l| l.queue.front().is_some_and(|x| Arc::ptr_eq(x, w))) else {
        return false;
    };
    lock.queue.pop_front();
    w.state.store(TAKING, Ordering::SeqCst);
    true
}
