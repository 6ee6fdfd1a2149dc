//! futex(2): waiting on words of guest memory.
//!
//! A waiter is queued first and tests the word afterwards; a waker changes the word before it calls, so no wake is lost. The word
//! is read by the Sentry once per test, with no lock held.

use super::futex_pi::compare_exchange;
use super::wait::{in_parts, Turn, WaitError, WaitQueue};
use super::Task;
use crate::abi::PollEvents;
use crate::error::{Errno, Restart, Result, SysError, SysResult};
use crate::mm::space::Key;
use crate::syscalls::Ctx;
use parking_lot::{Mutex, MutexGuard};
use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

/// One task at one word. `futex_waitv` may name a word many times: a wake counts each, but there is one entry.
struct FutexWaiter {
    /// Where it is queued.
    place: Mutex<Place>,
    bitset: u32,
    /// How often the task waits for the word, and how many of these have been woken.
    times: u32,
    woken: AtomicU32,
    queue: Arc<WaitQueue>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    key: Key,
    ticket: u64,
}

impl FutexWaiter {
    fn is_woken(&self) -> bool {
        self.woken.load(Ordering::SeqCst) > 0
    }
}

/// The waiters of one word, by their order.
type Queue = BTreeMap<u64, Arc<FutexWaiter>>;

/// Some of the words. A word without waiters has no queue.
#[derive(Default)]
struct Shard {
    words: HashMap<Key, Queue>,
    next: u64,
}

impl Shard {
    fn push(&mut self, key: Key, w: Arc<FutexWaiter>) {
        self.next += 1;
        *w.place.lock() = Place { key, ticket: self.next };
        self.words.entry(key).or_default().insert(self.next, w);
    }
    /// Takes the queue of a word, to be given back by `put`.
    fn take(&mut self, key: &Key) -> Queue {
        self.words.remove(key).unwrap_or_default()
    }
    fn put(&mut self, key: Key, queue: Queue) {
        if !queue.is_empty() {
            self.words.insert(key, queue);
        }
    }
}

struct Table {
    shards: Vec<Mutex<Shard>>,
    hash: RandomState,
}

fn table() -> &'static Table {
    static T: OnceLock<Table> = OnceLock::new();
    T.get_or_init(Table::new)
}

impl Table {
    fn new() -> Table {
        Table { shards: (0..256).map(|_| Mutex::default()).collect(), hash: RandomState::new() }
    }

    fn index(&self, k: &Key) -> usize {
        self.hash.hash_one(k) as usize % self.shards.len()
    }

    fn shard(&self, k: &Key) -> MutexGuard<'_, Shard> {
        self.shards[self.index(k)].lock()
    }

    fn add(&self, key: Key, bitset: u32, times: u32, queue: Arc<WaitQueue>) -> Arc<FutexWaiter> {
        let place = Mutex::new(Place { key, ticket: 0 });
        let w = Arc::new(FutexWaiter { place, bitset, times, woken: AtomicU32::new(0), queue });
        self.shard(&key).push(key, w.clone());
        w
    }

    fn remove(&self, w: &Arc<FutexWaiter>) {
        loop {
            let place = *w.place.lock();
            let mut shard = self.shard(&place.key);
            // It may have been moved to another word by a requeue in between.
            if *w.place.lock() != place {
                continue;
            }
            let Some(queue) = shard.words.get_mut(&place.key) else { return };
            queue.remove(&place.ticket);
            if queue.is_empty() {
                shard.words.remove(&place.key);
            }
            return;
        }
    }

    /// Marks up to `n` waiters as woken, and takes them out; they are still to be told.
    fn pick(&self, key: Key, n: u32, bitset: u32) -> (u32, Vec<Arc<FutexWaiter>>) {
        let (mut left, mut hit, mut over) = (n, Vec::new(), Vec::new());
        let mut shard = self.shard(&key);
        let Some(queue) = shard.words.get_mut(&key) else { return (0, hit) };
        for (ticket, w) in queue.iter() {
            if left == 0 {
                break;
            }
            if w.bitset & bitset == 0 {
                continue;
            }
            let before = w.woken.load(Ordering::SeqCst);
            let now = (w.times - before).min(left);
            w.woken.store(before + now, Ordering::SeqCst);
            left -= now;
            if before + now == w.times {
                over.push(*ticket);
            }
            hit.push(w.clone());
        }
        if over.len() == queue.len() {
            shard.words.remove(&key);
        } else {
            over.iter().for_each(|ticket| drop(queue.remove(ticket)));
        }
        (n - left, hit)
    }

    fn wake(&self, key: Key, n: u32, bitset: u32) -> u32 {
        let (count, hit) = self.pick(key, n, bitset);
        in_parts(hit, |w| w.queue.wake_all());
        count
    }

    /// Moves up to `n` waiters (one that waits several times goes as a whole) behind those of another word.
    fn requeue(&self, from: Key, to: Key, n: u32) -> u32 {
        let (i, k) = (self.index(&from), self.index(&to));
        // Both are held, so that a waiter who leaves meanwhile finds itself in one of them; in the order of the table.
        let mut first = self.shards[i.min(k)].lock();
        let mut second = (i != k).then(|| self.shards[i.max(k)].lock());
        let mut shard = |at: usize, f: &mut dyn FnMut(&mut Shard)| match &mut second {
            Some(s) if at == i.max(k) => f(s),
            _ => f(&mut first),
        };
        let mut queue = Queue::new();
        shard(i, &mut |s| queue = s.take(&from));
        let mut left = n;
        let mut moved = Vec::new();
        while left > 0 {
            let Some((ticket, w)) = queue.pop_first() else { break };
            left -= (w.times - w.woken.load(Ordering::SeqCst)).min(left);
            moved.push((ticket, w));
        }
        if from == to {
            queue.extend(std::mem::take(&mut moved));
        }
        shard(i, &mut |s| s.put(from, std::mem::take(&mut queue)));
        shard(k, &mut |s| moved.drain(..).for_each(|(_, w)| s.push(to, w)));
        n - left
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
    let w = table().add(key, bitset, 1, Arc::default());
    let now = task.mem().read::<u32>(addr).map_err(SysError::from);
    if !matches!(now, Ok(v) if v == expected) {
        table().remove(&w);
        // It may have been woken already, in place of another one.
        return if w.is_woken() { Ok(0) } else { Err(now.err().unwrap_or(Errno::EAGAIN.into())) };
    }
    let r = task.wait(&[(&w.queue, PollEvents::all())], deadline_ns, || w.is_woken().then_some(())).await;
    if r.is_err() {
        table().remove(&w);
        if w.is_woken() {
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

/// The words of a list, each once, with where it stands there.
struct Words(Vec<(Key, Vec<usize>)>);

impl Words {
    fn new(keys: &[Key]) -> Words {
        let (mut words, mut known) = (Vec::<(Key, Vec<usize>)>::new(), HashMap::new());
        for (i, key) in keys.iter().enumerate() {
            let at = *known.entry(*key).or_insert(words.len());
            if at == words.len() {
                words.push((*key, Vec::new()));
            }
            words[at].1.push(i);
        }
        Words(words)
    }

    /// The last of the list that was woken counts, as on Linux, though any would do. `woken`: how often each word was.
    fn last_woken(&self, woken: impl Iterator<Item = u32>) -> Option<usize> {
        let of_word = |((_, at), n): (&(Key, Vec<usize>), u32)| at.get((n as usize).checked_sub(1)?).copied();
        self.0.iter().zip(woken).filter_map(of_word).max()
    }
}

/// `futex_waitv`: until one of the words is woken; answers which.
pub async fn wait_any(task: &Arc<Task>, list: &[WaitFor], deadline_ns: Option<u64>) -> SysResult {
    let keys = list.iter().map(|w| key_of(task, w.addr, w.private)).collect::<Result<Vec<_>>>()?;
    let queue = Arc::new(WaitQueue::new());
    let words = Words::new(&keys);
    let waiters: Vec<_> =
        words.0.iter().map(|(key, at)| table().add(*key, u32::MAX, at.len() as u32, queue.clone())).collect();
    let leave = || {
        waiters.iter().for_each(|w| table().remove(w));
        words.last_woken(waiters.iter().map(|w| w.woken.load(Ordering::SeqCst)))
    };
    let mut turn = Turn::new();
    for (word, _) in words.0.iter().zip(&waiters) {
        let mut at = word.1.iter().map(|i| &list[*i]);
        let now = task.mem().read::<u32>(at.clone().next().map_or(0, |w| w.addr)).map_err(SysError::from);
        if !now.as_ref().is_ok_and(|v| at.all(|w| w.expected == *v)) {
            // One may have been woken already.
            return match leave() {
                Some(i) => Ok(i as u64),
                None => Err(now.err().unwrap_or(Errno::EAGAIN.into())),
            };
        }
        turn.look().await;
    }
    let woken = || waiters.iter().any(|w| w.is_woken()).then_some(());
    let r = task.wait(&[(&*queue, PollEvents::all())], deadline_ns, woken).await;
    match (leave(), r) {
        (Some(i), _) => Ok(i as u64),
        (None, Err(WaitError::TimedOut)) => Err(Errno::ETIMEDOUT.into()),
        (None, _) => Err(SysError::Restart(Restart::Sys)),
    }
}

/// `FUTEX_WAKE`/`FUTEX_WAKE_BITSET`.
pub fn wake(task: &Task, addr: u64, private: bool, n: u32, bitset: u32) -> SysResult {
    if bitset == 0 {
        return Err(Errno::EINVAL.into());
    }
    Ok(u64::from(table().wake(key_of(task, addr, private)?, n, bitset)))
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
        table().wake(k, 1, u32::MAX);
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
    let woken = table().wake(k1, wake_n, u32::MAX);
    Ok(u64::from(woken + table().requeue(k1, k2, move_n)))
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
    let mut woken = table().wake(k1, n1, u32::MAX);
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
        woken += table().wake(k2, n2, u32::MAX);
    }
    Ok(u64::from(woken))
}

pub(super) const FUTEX_WAITERS: u32 = 0x8000_0000;
pub(super) const FUTEX_OWNER_DIED: u32 = 0x4000_0000;
pub(super) const FUTEX_TID_MASK: u32 = 0x3fff_ffff;

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> Key {
        Key::Object(1, n)
    }

    fn entries(t: &Table) -> usize {
        t.shards.iter().map(|s| s.lock().words.values().map(Queue::len).sum::<usize>()).sum()
    }

    #[test]
    fn equal_words_are_one_entry_and_count_each() {
        let (t, queue) = (Table::new(), Arc::<WaitQueue>::default());
        let words = Words::new(&[key(1), key(2), key(1), key(1)]);
        assert_eq!(words.0.iter().map(|w| w.1.clone()).collect::<Vec<_>>(), [vec![0, 2, 3], vec![1]]);
        let w: Vec<_> = words.0.iter().map(|(k, at)| t.add(*k, 1, at.len() as u32, queue.clone())).collect();
        assert_eq!(entries(&t), 2);
        let last = || words.last_woken(w.iter().map(|w| w.woken.load(Ordering::SeqCst)));
        assert_eq!(last(), None);
        assert_eq!((t.wake(key(1), 2, 1), last(), entries(&t)), (2, Some(2), 2));
        assert_eq!((t.wake(key(1), 9, 1), last(), entries(&t)), (1, Some(3), 1));
        assert_eq!((t.wake(key(1), 9, 1), t.wake(key(2), 9, 1), entries(&t)), (0, 1, 0));
    }

    #[test]
    fn waiters_leave_in_any_order_and_from_where_they_were_moved() {
        let t = Table::new();
        let w: Vec<_> = (0..100).map(|i| t.add(key(i % 2), 1 << (i % 3), 1, Arc::default())).collect();
        assert_eq!(t.requeue(key(0), key(1), 20), 20);
        assert_eq!(t.requeue(key(0), key(0), 7), 7);
        assert_eq!((t.wake(key(0), 100, 1), entries(&t)), (10, 90));
        // Behind those that were there, in their order.
        assert_eq!(t.wake(key(1), 50, u32::MAX), 50);
        assert!(w.iter().skip(1).step_by(2).all(|w| w.is_woken()) && !w[0].is_woken());
        w.iter().for_each(|w| t.remove(w));
        w.iter().for_each(|w| t.remove(w));
        assert_eq!(entries(&t), 0);
        assert!(t.shards.iter().all(|s| s.lock().words.is_empty()));
    }
}
