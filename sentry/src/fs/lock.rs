//! File locks: POSIX record locks and open-file-description locks (fcntl(2)), and flock(2).
//!
//! Locks are attached to the inode ([`InodeExtra`](super::InodeExtra)). A record lock belongs to a descriptor table
//! (Linux's notion of "process" here) or to an open file description. The locks end with their owner: [`release_posix`]
//! when a descriptor is closed, [`release_table`] with the table, [`release_file`] with the description.

use super::File;
use crate::abi::PollEvents;
use crate::error::{Errno, Result, SysError, SysResult};
use crate::kernel::wait::{WaitError, WaitQueue};
use crate::kernel::{FdTable, Task};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Limit of the locks on one inode (`ENOLCK`).
const MAX_LOCKS: usize = 64 * 1024;

/// A range of bytes, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub start: u64,
    pub end: u64,
}

impl Range {
    const ALL: Range = Range { start: 0, end: u64::MAX };
}

/// The owner of a record lock: the number of a descriptor table (with the process id for `F_GETLK`) or the address of a
/// description.
#[derive(Clone, Copy, Debug)]
pub enum Owner {
    Posix { table: u64, pid: i32 },
    Ofd(usize),
}

impl PartialEq for Owner {
    fn eq(&self, o: &Owner) -> bool {
        self.key() == o.key()
    }
}

impl Owner {
    pub fn posix(files: &Arc<FdTable>, pid: i32) -> Owner {
        Owner::Posix { table: files.id(), pid }
    }
    pub fn ofd(file: &Arc<File>) -> Owner {
        Owner::Ofd(Arc::as_ptr(file) as usize)
    }
    fn key(&self) -> (bool, u64) {
        match self {
            Owner::Posix { table, .. } => (false, *table),
            Owner::Ofd(id) => (true, *id as u64),
        }
    }
    pub fn pid(&self) -> i32 {
        match self {
            Owner::Posix { pid, .. } => *pid,
            Owner::Ofd(_) => -1,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct RecordLock {
    pub owner: Owner,
    pub range: Range,
    pub write: bool,
}

/// Disjoint locks of one owner and kind: start, then end and the owner as given (its pid is the process that set the
/// lock).
#[derive(Default)]
struct Ranges(BTreeMap<u64, (u64, Owner)>);

impl Ranges {
    /// The first lock that overlaps `range`.
    fn first(&self, range: Range) -> Option<(Range, Owner)> {
        let before = self.0.range(..range.start).next_back().filter(|(_, (end, _))| *end >= range.start);
        let hit = before.or_else(|| self.0.range(range.start..=range.end).next());
        hit.map(|(start, (end, owner))| (Range { start: *start, end: *end }, *owner))
    }

    /// Removes `range`.
    fn cut(&mut self, range: Range) {
        if range == Range::ALL {
            return self.0.clear();
        }
        let ends =
            [self.first(range), self.0.range(..=range.end).next_back().map(|(s, (e, o))| (range_of(*s, *e), *o))];
        let within: Vec<u64> = self.0.range(range.start..=range.end).map(|(start, _)| *start).collect();
        for start in within {
            self.0.remove(&start);
        }
        if let Some((r, owner)) = ends[0].filter(|(r, _)| r.start < range.start) {
            self.0.insert(r.start, (range.start - 1, owner));
        }
        if let Some((r, owner)) = ends[1].filter(|(r, _)| r.end > range.end) {
            self.0.insert(range.end + 1, (r.end, owner));
        }
    }

    /// Adds `range`, which must be free, and merges it with its neighbours.
    fn join(&mut self, mut range: Range, owner: Owner) {
        let before = self.0.range(..range.start).next_back().map(|(start, (end, _))| range_of(*start, *end));
        if let Some(b) = before.filter(|b| b.end.checked_add(1) == Some(range.start)) {
            range.start = b.start;
        }
        let after = range.end.checked_add(1).and_then(|next| self.0.remove(&next));
        if let Some((end, _)) = after {
            range.end = end;
        }
        self.0.insert(range.start, (range.end, owner));
    }
}

fn range_of(start: u64, end: u64) -> Range {
    Range { start, end }
}

/// The locks of one owner.
#[derive(Default)]
struct Held {
    reads: Ranges,
    writes: Ranges,
}

impl Held {
    fn len(&self) -> usize {
        self.reads.0.len() + self.writes.0.len()
    }
}

#[derive(Default)]
struct Lists {
    /// Keyed by owner: a call stays cheap however many locks there are, because there are usually few owners.
    records: BTreeMap<(bool, u64), Held>,
    /// The number of record locks.
    count: usize,
    flocks: Flocks,
}

/// The flock(2) locks: address of the description, and whether exclusive (then it is the only one).
#[derive(Default)]
struct Flocks(BTreeMap<usize, bool>);

impl Flocks {
    fn stands_in_the_way(&self, exclusive: bool) -> bool {
        self.0.first_key_value().is_some_and(|(_, is_exclusive)| exclusive || *is_exclusive)
    }
}

/// All locks of one inode.
#[derive(Default)]
pub struct FileLocks {
    lists: Mutex<Lists>,
    queue: WaitQueue,
}

/// The locks of the inode behind `file`.
pub fn of(file: &File) -> Result<Arc<FileLocks>> {
    let extra = file.path.as_ref().and_then(|p| p.inode().extra());
    match extra {
        Some(e) => Ok(e.get_or_insert(FileLocks::default)),
        None => Err(Errno::EINVAL),
    }
}

fn existing(file: &File) -> Option<Arc<FileLocks>> {
    file.path.as_ref()?.inode().extra()?.get::<FileLocks>()
}

/// close(2) releases all POSIX locks of the table on that file, through whichever descriptor they were set.
pub fn release_posix(files: &Arc<FdTable>, file: &File) {
    release_table(files.id(), file);
}

/// Releases the locks of a descriptor table.
pub fn release_table(table: u64, file: &File) {
    if let Some(l) = existing(file) {
        l.unlock(&Owner::Posix { table, pid: 0 }, Range::ALL);
    }
}

/// Releases the locks of a description.
pub fn release_file(file: &File) {
    if let Some(l) = existing(file) {
        let id = file as *const File as usize;
        l.unlock(&Owner::Ofd(id), Range::ALL);
        l.flock_drop(id);
    }
}

impl FileLocks {
    /// The first conflicting lock of another owner.
    pub fn conflict(&self, owner: &Owner, range: Range, write: bool) -> Option<RecordLock> {
        Self::find(&self.lists.lock(), owner, range, write)
    }
    fn find(l: &Lists, owner: &Owner, range: Range, write: bool) -> Option<RecordLock> {
        let others = l.records.iter().filter(|(key, _)| **key != owner.key());
        let hits = others.flat_map(|(_, held)| {
            let reads = if write { held.reads.first(range) } else { None };
            [(reads, false), (held.writes.first(range), true)]
        });
        let hits = hits.filter_map(|(hit, write)| hit.map(|(range, owner)| RecordLock { owner, range, write }));
        hits.min_by_key(|r| r.range.start)
    }

    /// Removes `range` from the locks of `owner`.
    fn cut(l: &mut Lists, owner: &Owner, range: Range) {
        let Some(held) = l.records.get_mut(&owner.key()) else { return };
        let before = held.len();
        held.reads.cut(range);
        held.writes.cut(range);
        let after = held.len();
        l.count = (l.count + after).saturating_sub(before);
        if after == 0 {
            l.records.remove(&owner.key());
        }
    }

    fn try_lock(&self, owner: Owner, range: Range, write: bool) -> Result<()> {
        let mut l = self.lists.lock();
        if Self::find(&l, &owner, range, write).is_some() {
            return Err(Errno::EAGAIN);
        }
        if l.count >= MAX_LOCKS {
            return Err(Errno::ENOLCK);
        }
        let had = l.records.get(&owner.key()).is_some_and(|held| held.writes.first(range).is_some());
        Self::cut(&mut l, &owner, range);
        let held = l.records.entry(owner.key()).or_default();
        let before = held.len();
        if write { &mut held.writes } else { &mut held.reads }.join(range, owner);
        let after = held.len();
        l.count = (l.count + after).saturating_sub(before);
        drop(l);
        if had && !write {
            self.queue.wake_all();
        }
        Ok(())
    }

    pub fn unlock(&self, owner: &Owner, range: Range) {
        let mut l = self.lists.lock();
        if !l.records.contains_key(&owner.key()) {
            return;
        }
        Self::cut(&mut l, owner, range);
        drop(l);
        self.queue.wake_all();
    }

    /// `F_SETLK` and, with `wait`, `F_SETLKW`.
    pub async fn lock(&self, task: &Task, owner: Owner, range: Range, write: bool, wait: bool) -> SysResult<()> {
        let r = self.try_lock(owner, range, write);
        if !wait || r != Err(Errno::EAGAIN) {
            return Ok(r?);
        }
        let edge = Edge::new(task, owner);
        self.waiting(task, || loop {
            match self.try_lock(owner, range, write) {
                // The conflicting lock may have been released since.
                Err(Errno::EAGAIN) => match self.conflict(&owner, range, write) {
                    Some(holder) if edge.waits_for(holder.owner) => return Some(Err(Errno::EDEADLK)),
                    Some(_) => return None,
                    None => {}
                },
                r => return Some(r),
            }
        })
        .await
    }

    async fn waiting(&self, task: &Task, attempt: impl FnMut() -> Option<Result<()>> + Send) -> SysResult<()> {
        match task.wait(&[(&self.queue, PollEvents::all())], None, attempt).await {
            Ok(r) => Ok(r?),
            Err(WaitError::Interrupted | WaitError::TimedOut) => Err(SysError::INTR),
        }
    }

    fn try_flock(&self, id: usize, exclusive: bool) -> Result<()> {
        let mut l = self.lists.lock();
        let had = l.flocks.0.remove(&id);
        if l.flocks.stands_in_the_way(exclusive) {
            // A conversion that has to wait loses the old lock, as on Linux.
            drop(l);
            if had.is_some() {
                self.queue.wake_all();
            }
            return Err(Errno::EAGAIN);
        }
        l.flocks.0.insert(id, exclusive);
        drop(l);
        if had.is_some() {
            self.queue.wake_all();
        }
        Ok(())
    }

    pub async fn flock(&self, task: &Task, file: &Arc<File>, exclusive: bool, wait: bool) -> SysResult<()> {
        let id = Arc::as_ptr(file) as usize;
        let r = self.try_flock(id, exclusive);
        if !wait || r != Err(Errno::EAGAIN) {
            return Ok(r?);
        }
        self.waiting(task, || match self.try_flock(id, exclusive) {
            Err(Errno::EAGAIN) => None,
            r => Some(r),
        })
        .await
    }

    pub fn flock_release(&self, file: &Arc<File>) {
        self.flock_drop(Arc::as_ptr(file) as usize);
    }
    fn flock_drop(&self, id: usize) {
        if self.lists.lock().flocks.0.remove(&id).is_some() {
            self.queue.wake_all();
        }
    }
}

/// The wait-for graph of POSIX locks: waiting table and thread, then the table that holds the lock.
#[derive(Default)]
pub struct Waits(Mutex<BTreeMap<(u64, i32), u64>>);

/// Longest cycle that is detected, as on Linux.
const MAX_CIRCLE: usize = 10;

impl Waits {
    /// Records that `me` waits for `holder`; false if that would close a cycle.
    fn enter(&self, me: (u64, i32), holder: u64) -> bool {
        let mut map = self.0.lock();
        let next = |t: u64| map.range((t, 0)..=(t, i32::MAX)).next().map(|(_, h)| *h);
        let circle = std::iter::successors(Some(holder), |t| next(*t)).take(MAX_CIRCLE).any(|t| t == me.0);
        if !circle {
            map.insert(me, holder);
        }
        !circle
    }
}

/// A thread that waits for a record lock. Locks of descriptions are left out: any process with a descriptor may release
/// them.
struct Edge<'a> {
    waits: &'a Waits,
    me: Option<(u64, i32)>,
}

impl<'a> Edge<'a> {
    fn new(task: &'a Task, owner: Owner) -> Self {
        let me = match owner {
            Owner::Posix { table, .. } => Some((table, task.tid())),
            Owner::Ofd(_) => None,
        };
        Edge { waits: &task.kernel.lock_waits, me }
    }
    /// True if waiting for `holder` would be a deadlock.
    fn waits_for(&self, holder: Owner) -> bool {
        match (self.me, holder) {
            (Some(me), Owner::Posix { table, .. }) => !self.waits.enter(me, table),
            _ => false,
        }
    }
}

impl Drop for Edge<'_> {
    fn drop(&mut self) {
        if let Some(me) = self.me {
            self.waits.0.lock().remove(&me);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn r(start: u64, end: u64) -> Range {
        Range { start, end }
    }

    #[test]
    fn record_locks_split_and_join() {
        let l = FileLocks::default();
        let (a, b) = (Owner::Posix { table: 1, pid: 1 }, Owner::Ofd(2));
        l.try_lock(a, r(0, 99), true).unwrap();
        assert_eq!(l.try_lock(b, r(50, 50), false), Err(Errno::EAGAIN));
        l.unlock(&a, r(40, 59));
        l.try_lock(b, r(40, 59), true).unwrap();
        assert_eq!(l.conflict(&a, r(0, 200), false).unwrap().range, r(40, 59));
        assert!(l.conflict(&b, r(0, 39), false).is_some());
        l.unlock(&b, r(0, u64::MAX));
        l.try_lock(a, r(40, 59), true).unwrap();
        assert_eq!(l.lists.lock().count, 1);
        assert_eq!(l.conflict(&b, r(50, 50), true).unwrap().range, r(0, 99));
        // Read locks of two owners coexist.
        l.try_lock(a, r(0, 99), false).unwrap();
        l.try_lock(b, r(0, 99), false).unwrap();
        assert_eq!(l.try_lock(a, r(0, 0), true), Err(Errno::EAGAIN));
    }

    /// Compares with a plain array of bytes, over random calls that cut, join and replace.
    #[test]
    fn as_a_list_of_bytes() {
        const BYTES: u64 = 40;
        let l = FileLocks::default();
        let owners = [Owner::Posix { table: 1, pid: 1 }, Owner::Posix { table: 2, pid: 2 }, Owner::Ofd(2)];
        // For each owner and byte: unlocked, read or write.
        let mut model = [[0u8; BYTES as usize]; 3];
        let mut x = 1u64;
        let mut random = |n: u64| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x % n
        };
        for _ in 0..20_000 {
            let (o, a, b, what) = (random(3) as usize, random(BYTES), random(BYTES), random(3) as u8);
            let range = r(a.min(b), a.max(b));
            let bytes = range.start as usize..=range.end as usize;
            if what == 0 {
                l.unlock(&owners[o], range);
                model[o][bytes].fill(0);
                continue;
            }
            let others = (0..3).filter(|i| *i != o);
            let stands = |i: usize, at: usize| model[i][at] == 2 || (what == 2 && model[i][at] == 1);
            let free = others.flat_map(|i| bytes.clone().map(move |at| (i, at))).all(|(i, at)| !stands(i, at));
            assert_eq!(l.conflict(&owners[o], range, what == 2).is_none(), free);
            assert_eq!(l.try_lock(owners[o], range, what == 2), if free { Ok(()) } else { Err(Errno::EAGAIN) });
            if free {
                model[o][bytes].fill(what);
            }
            let runs = |m: &[u8]| (0..m.len()).filter(|&i| m[i] != 0 && (i == 0 || m[i - 1] != m[i])).count();
            assert_eq!(l.lists.lock().count, model.iter().map(|m| runs(m)).sum::<usize>());
        }
        for o in &owners {
            l.unlock(o, Range::ALL);
        }
        let lists = l.lists.lock();
        assert_eq!((lists.count, lists.records.len()), (0, 0));
    }

    /// So many locks that calls which visit all of them would take hours.
    #[test]
    fn many_locks() {
        let (l, a, b) = (FileLocks::default(), Owner::Ofd(1), Owner::Ofd(2));
        for i in 0..MAX_LOCKS as u64 {
            l.try_lock(a, r(3 * i, 3 * i), i % 2 == 0).unwrap();
        }
        assert_eq!(l.try_lock(a, r(3 * MAX_LOCKS as u64, u64::MAX), true), Err(Errno::ENOLCK));
        for i in 0..MAX_LOCKS as u64 {
            assert_eq!(l.conflict(&b, r(3 * i, u64::MAX), true).unwrap().range.start, 3 * i);
            l.unlock(&a, r(3 * i, 3 * i));
        }
        assert_eq!(l.lists.lock().count, 0);
        l.try_lock(b, Range::ALL, true).unwrap();
    }

    #[test]
    fn deadlocks_are_found() {
        let w = Waits::default();
        assert!(w.enter((1, 1), 2));
        assert!(w.enter((2, 5), 3));
        assert!(!w.enter((3, 7), 1));
        assert!(!w.enter((2, 6), 1));
        w.0.lock().remove(&(1, 1));
        assert!(w.enter((3, 7), 1));
    }

    /// The end of an owner wakes waiters only if it held a lock.
    #[test]
    fn many_flocks() {
        #[derive(Default)]
        struct Count(std::sync::atomic::AtomicUsize);
        impl crate::kernel::wait::Waiter for Count {
            fn wake(&self, _: PollEvents) {
                self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
        }
        const N: usize = 200_000;
        let (l, woken) = (FileLocks::default(), Arc::<Count>::default());
        (0..N).for_each(|id| l.try_flock(id, false).unwrap());
        l.queue.add(PollEvents::all(), woken.clone());
        for id in (N..2 * N).chain(0..N) {
            assert_eq!(l.try_flock(N, true), Err(Errno::EAGAIN));
            l.unlock(&Owner::Ofd(id), Range::ALL);
            l.flock_drop(id);
        }
        l.try_flock(N, true).unwrap();
        assert_eq!(woken.0.load(std::sync::atomic::Ordering::SeqCst), N);
    }

    #[test]
    fn flock_excludes() {
        let l = FileLocks::default();
        l.try_flock(1, false).unwrap();
        l.try_flock(2, false).unwrap();
        assert_eq!(l.try_flock(1, true), Err(Errno::EAGAIN));
        l.flock_drop(2);
        l.try_flock(1, true).unwrap();
        assert_eq!(l.try_flock(2, false), Err(Errno::EAGAIN));
    }
}
