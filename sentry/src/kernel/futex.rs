//! futex(2): waiting on words of guest memory, and robust lists.
//!
//! A waiter is queued under its bucket's lock and tests the word afterwards; a waker changes the word before it calls, so
//! no wake is lost. The word is read by the Sentry once per test.

use super::futex_pi::compare_exchange;
use super::wait::{WaitError, WaitQueue};
use super::Task;
use crate::abi::PollEvents;
use crate::error::{Errno, Restart, Result, SysError, SysResult};
use crate::mm::space::Key;
use crate::syscalls::Ctx;
use parking_lot::Mutex;
use platform::GuestThread;
use std::collections::hash_map::RandomState;
use std::collections::VecDeque;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

struct FutexWaiter {
    key: Mutex<Key>,
    bitset: u32,
    woken: AtomicBool,
    queue: Arc<WaitQueue>,
}

impl FutexWaiter {
    fn new(key: Key, bitset: u32, queue: Arc<WaitQueue>) -> Arc<Self> {
        Arc::new(FutexWaiter { key: Mutex::new(key), bitset, woken: AtomicBool::new(false), queue })
    }
}

#[derive(Default)]
struct Bucket {
    waiters: Mutex<VecDeque<Arc<FutexWaiter>>>,
}

struct Table {
    buckets: Vec<Bucket>,
    hash: RandomState,
}

fn table() -> &'static Table {
    static T: OnceLock<Table> = OnceLock::new();
    T.get_or_init(|| Table { buckets: (0..256).map(|_| Bucket::default()).collect(), hash: RandomState::new() })
}

impl Table {
    fn bucket(&self, k: &Key) -> &Bucket {
        &self.buckets[self.hash.hash_one(k) as usize % self.buckets.len()]
    }
}

pub(super) fn key_of(task: &Task, addr: u64, private: bool) -> Result<Key> {
    if addr % 4 != 0 {
        return Err(Errno::EINVAL);
    }
    let mm = task.mm();
    if private {
        return Ok(Key::Private(Arc::as_ptr(&mm.space()) as *const () as usize, addr));
    }
    mm.key(addr).ok_or(Errno::EFAULT)
}

fn remove(w: &Arc<FutexWaiter>) {
    loop {
        let key = *w.key.lock();
        let mut b = table().bucket(&key).waiters.lock();
        // It may have been moved to another bucket by a requeue in between.
        if *w.key.lock() != key {
            continue;
        }
        b.retain(|x| !Arc::ptr_eq(x, w));
        return;
    }
}

/// `FUTEX_WAIT`/`FUTEX_WAIT_BITSET`: `deadline_ns` is host monotonic.
pub async fn wait(
    task: &Arc<Task>,
    addr: u64,
    private: bool,
    expected: u32,
    bitset: u32,
    deadline_ns: Option<u64>,
) -> SysResult {
    if bitset == 0 {
        return Err(Errno::EINVAL.into());
    }
    let key = key_of(task, addr, private)?;
    let w = FutexWaiter::new(key, bitset, Arc::default());
    {
        // Under the bucket's lock, as a waker of this word must see either the queue entry or the old value changed.
        let mut b = table().bucket(&key).waiters.lock();
        let now: u32 = task.mem().read(addr)?;
        if now != expected {
            return Err(Errno::EAGAIN.into());
        }
        b.push_back(w.clone());
    }
    let r =
        task.wait(&[(&w.queue, PollEvents::all())], deadline_ns, || w.woken.load(Ordering::SeqCst).then_some(())).await;
    if r.is_err() {
        remove(&w);
        if w.woken.load(Ordering::SeqCst) {
            return Ok(0);
        }
    }
    match r {
        Ok(()) => Ok(0),
        Err(WaitError::TimedOut) => Err(Errno::ETIMEDOUT.into()),
        Err(WaitError::Interrupted) if deadline_ns.is_some() => Err(SysError::Restart(Restart::NoHand)),
        Err(WaitError::Interrupted) => Err(SysError::Restart(Restart::Sys)),
    }
}

/// One of the words that [`wait_any`] waits for.
#[derive(Clone, Copy, Debug)]
pub struct WaitFor {
    pub addr: u64,
    pub private: bool,
    pub expected: u32,
}

/// `futex_waitv`: until one of the words is woken; answers which.
pub async fn wait_any(task: &Arc<Task>, list: &[WaitFor], deadline_ns: Option<u64>) -> SysResult {
    let keys = list.iter().map(|w| key_of(task, w.addr, w.private)).collect::<Result<Vec<_>>>()?;
    let queue = Arc::new(WaitQueue::new());
    let mut waiters: Vec<Arc<FutexWaiter>> = Vec::with_capacity(list.len());
    // The last that was woken counts, as on Linux, though any would do.
    let leave = |waiters: &[Arc<FutexWaiter>]| {
        waiters.iter().for_each(remove);
        waiters.iter().rposition(|w| w.woken.load(Ordering::SeqCst))
    };
    for (w, key) in list.iter().zip(keys) {
        let mut b = table().bucket(&key).waiters.lock();
        let now = task.mem().read::<u32>(w.addr).map_err(SysError::from);
        match now {
            Ok(v) if v == w.expected => {
                let waiter = FutexWaiter::new(key, u32::MAX, queue.clone());
                b.push_back(waiter.clone());
                waiters.push(waiter);
            }
            other => {
                drop(b);
                // One may have been woken already.
                return match leave(&waiters) {
                    Some(i) => Ok(i as u64),
                    None => Err(other.err().unwrap_or(Errno::EAGAIN.into())),
                };
            }
        }
    }
    let woken = || waiters.iter().any(|w| w.woken.load(Ordering::SeqCst)).then_some(());
    let r = task.wait(&[(&*queue, PollEvents::all())], deadline_ns, woken).await;
    match (leave(&waiters), r) {
        (Some(i), _) => Ok(i as u64),
        (None, Err(WaitError::TimedOut)) => Err(Errno::ETIMEDOUT.into()),
        (None, _) => Err(SysError::Restart(Restart::Sys)),
    }
}

fn wake_key(key: Key, n: u32, bitset: u32) -> u32 {
    let mut hit = Vec::new();
    {
        let mut b = table().bucket(&key).waiters.lock();
        let mut i = 0;
        while i < b.len() && (hit.len() as u32) < n {
            if *b[i].key.lock() == key && b[i].bitset & bitset != 0 {
                if let Some(w) = b.remove(i) {
                    w.woken.store(true, Ordering::SeqCst);
                    hit.push(w);
                }
            } else {
                i += 1;
            }
        }
    }
    for w in &hit {
        w.queue.wake_all();
    }
    hit.len() as u32
}

/// `FUTEX_WAKE`/`FUTEX_WAKE_BITSET`.
pub fn wake(task: &Task, addr: u64, private: bool, n: u32, bitset: u32) -> SysResult {
    if bitset == 0 {
        return Err(Errno::EINVAL.into());
    }
    Ok(u64::from(wake_key(key_of(task, addr, private)?, n, bitset)))
}

/// Whether the calls without `FUTEX_PRIVATE_FLAG` on this word are the stubs' own: it is in memory that nobody else has. (With the
/// flag they are so anyway.)
pub fn at_host(task: &Task, addr: u64) -> bool {
    !task.kernel.options.strace && matches!(key_of(task, addr, false), Ok(Key::Private(..)))
}

/// As the kernel itself wakes at thread exit: like a non-private `FUTEX_WAKE`. `true`: the stub is to do it.
pub fn wake_at_exit(task: &Task, addr: u64) -> bool {
    if at_host(task, addr) {
        return true;
    }
    if let Ok(k) = key_of(task, addr, false) {
        wake_key(k, 1, u32::MAX);
    }
    false
}

/// `FUTEX_REQUEUE`/`FUTEX_CMP_REQUEUE`: returns how many were woken or moved, for either (futex(2) says otherwise of the first).
pub fn requeue(
    task: &Task,
    from: u64,
    to: u64,
    private: bool,
    wake_n: u32,
    move_n: u32,
    cmp: Option<u32>,
) -> SysResult {
    let (k1, k2) = (key_of(task, from, private)?, key_of(task, to, private)?);
    if let Some(v) = cmp {
        let now: u32 = task.mem().read(from)?;
        if now != v {
            return Err(Errno::EAGAIN.into());
        }
    }
    let woken = wake_key(k1, wake_n, u32::MAX);
    // Both are held, so that a waiter who leaves meanwhile finds itself in one of them; in the order of the table.
    let (from, to) = (table().bucket(&k1), table().bucket(&k2));
    let (mut a, mut b);
    match std::ptr::from_ref(from).cmp(&std::ptr::from_ref(to)) {
        std::cmp::Ordering::Less => {
            a = from.waiters.lock();
            b = Some(to.waiters.lock());
        }
        std::cmp::Ordering::Equal => {
            a = from.waiters.lock();
            b = None;
        }
        std::cmp::Ordering::Greater => {
            b = Some(to.waiters.lock());
            a = from.waiters.lock();
        }
    }
    let mut moved = Vec::new();
    let mut stay = VecDeque::with_capacity(a.len());
    while let Some(w) = a.pop_front() {
        if (moved.len() as u32) < move_n && *w.key.lock() == k1 {
            *w.key.lock() = k2;
            moved.push(w);
        } else {
            stay.push_back(w);
        }
    }
    *a = stay;
    let n = moved.len() as u32;
    b.as_mut().unwrap_or(&mut a).extend(moved);
    Ok(u64::from(woken + n))
}

/// `FUTEX_WAKE_OP`.
pub async fn wake_op(cx: &mut Ctx<'_>, a1: u64, a2: u64, private: bool, n1: u32, n2: u32, op: u32) -> SysResult {
    let task = cx.task.clone();
    let task = &*task;
    let (k1, k2) = (key_of(task, a1, private)?, key_of(task, a2, private)?);
    let sext12 = |v: u32| ((v << 20) as i32 >> 20) as u32;
    let mut arg = sext12((op >> 12) & 0xfff);
    let cmparg = sext12(op & 0xfff);
    if op & (8 << 28) != 0 {
        arg = 1u32.checked_shl(arg & 31).unwrap_or(0);
    }
    let mem = task.mem();
    let old = loop {
        let old: u32 = mem.read(a2)?;
        let new = match (op >> 28) & 7 {
            0 => arg,
            1 => old.wrapping_add(arg),
            2 => old | arg,
            3 => old & !arg,
            4 => old ^ arg,
            _ => return Err(Errno::ENOSYS.into()),
        };
        if compare_exchange(cx, a2, old, new).await? {
            break old;
        }
    };
    let mut woken = wake_key(k1, n1, u32::MAX);
    let (o, c) = (old as i32, cmparg as i32);
    let yes = match (op >> 24) & 0xf {
        0 => o == c,
        1 => o != c,
        2 => o < c,
        3 => o <= c,
        4 => o > c,
        5 => o >= c,
        _ => return Err(Errno::ENOSYS.into()),
    };
    if yes {
        woken += wake_key(k2, n2, u32::MAX);
    }
    Ok(u64::from(woken))
}

/// Entries looked at in one robust list (`ROBUST_LIST_LIMIT`).
const ROBUST_LIST_LIMIT: usize = 2048;
pub(super) const FUTEX_WAITERS: u32 = 0x8000_0000;
pub(super) const FUTEX_OWNER_DIED: u32 = 0x4000_0000;
pub(super) const FUTEX_TID_MASK: u32 = 0x3fff_ffff;

/// Marks the futexes that a dying thread still holds (get_robust_list(2)); returns those that somebody waits for.
pub fn exit_robust_list(task: &Task, thread: &dyn GuestThread) -> Vec<u64> {
    let mut waited = Vec::new();
    let head = task.robust_list.swap(0, Ordering::SeqCst);
    if head == 0 {
        return waited;
    }
    let mem = task.mem();
    let known = thread.prefetched(head).and_then(|b| b.first_chunk::<24>());
    let Ok([first, offset, pending]) =
        known.map_or_else(|| mem.read::<[u64; 3]>(head), |b| Ok(zerocopy::transmute!(*b)))
    else {
        return waited;
    };
    let mut release = |entry: u64| {
        let addr = (entry & !1).wrapping_add(offset);
        let Ok(v) = mem.read::<u32>(addr) else { return };
        if addr % 4 != 0 || v & FUTEX_TID_MASK != task.tid() as u32 {
            return;
        }
        let _ = mem.write(addr, &((v & FUTEX_WAITERS) | FUTEX_OWNER_DIED));
        if v & FUTEX_WAITERS != 0 {
            waited.push(addr);
        }
    };
    let mut at = first;
    for _ in 0..ROBUST_LIST_LIMIT {
        if at & !1 == head || at == 0 {
            break;
        }
        let Ok(next) = mem.read::<u64>(at & !1) else { break };
        if at != pending {
            release(at);
        }
        at = next;
    }
    if pending != 0 {
        release(pending);
    }
    waited
}
