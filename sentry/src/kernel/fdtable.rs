//! Descriptor tables.

use crate::error::{Errno, Result};
use crate::fs::File;
use parking_lot::RwLock;
use platform::executor::{aside, Rounds};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// Upper bound of descriptors in one table, whatever `RLIMIT_NOFILE` says (`fs.nr_open`).
pub const NR_OPEN: usize = 1 << 20;

#[derive(Clone)]
pub struct FdEntry {
    pub file: Arc<File>,
    pub cloexec: bool,
}

/// Entries processed before other tasks run.
const PART: usize = 1024;
/// Copying a table with more slots takes long.
const MANY: usize = 32 * 1024;

/// Slots per page.
const PAGE: usize = 256;

/// Slots in pages that are as long as their last entry: a table with one high number stays small, and so does
/// its copy.
#[derive(Default)]
struct Slots {
    pages: Vec<Vec<Option<FdEntry>>>,
    /// No slot below this is free.
    low: usize,
}

impl Slots {
    fn get(&self, i: usize) -> Option<&FdEntry> {
        self.pages.get(i / PAGE)?.get(i % PAGE)?.as_ref()
    }
    fn get_mut(&mut self, i: usize) -> Option<&mut FdEntry> {
        self.pages.get_mut(i / PAGE)?.get_mut(i % PAGE)?.as_mut()
    }
    /// The first free slot at or above `from`.
    fn free(&self, from: usize) -> usize {
        let mut at = from;
        while let Some(page) = self.pages.get(at / PAGE) {
            let rest = page.get(at % PAGE..).unwrap_or(&[]);
            if let Some(n) = rest.iter().position(Option::is_none) {
                return at + n;
            }
            at = at.max(at / PAGE * PAGE + page.len());
            if page.len() < PAGE {
                break;
            }
        }
        at
    }
    /// The first used slot at or above `from`.
    fn next(&self, from: usize) -> Option<usize> {
        let pages = self.pages.iter().enumerate().skip(from / PAGE);
        pages
            .filter_map(|(p, page)| {
                let first = from.saturating_sub(p * PAGE);
                Some(p * PAGE + first + page.get(first..)?.iter().position(Option::is_some)?)
            })
            .next()
    }
    fn put(&mut self, i: usize, entry: FdEntry) -> Option<FdEntry> {
        if i / PAGE >= self.pages.len() {
            self.pages.resize_with(i / PAGE + 1, Vec::new);
        }
        let page = &mut self.pages[i / PAGE];
        if i % PAGE >= page.len() {
            page.resize(i % PAGE + 1, None);
        }
        page[i % PAGE].replace(entry)
    }
    fn take(&mut self, i: usize) -> Option<FdEntry> {
        let page = self.pages.get_mut(i / PAGE)?;
        let old = page.get_mut(i % PAGE)?.take()?;
        while page.last().is_some_and(Option::is_none) {
            page.pop();
        }
        if page.is_empty() {
            *page = Vec::new();
        }
        self.low = self.low.min(i);
        Some(old)
    }
    /// Numbers and entries, ascending.
    fn iter(&self) -> impl Iterator<Item = (usize, &FdEntry)> {
        self.iter_from(0)
    }
    fn iter_from(&self, from: usize) -> impl Iterator<Item = (usize, &FdEntry)> {
        let pages = self.pages.iter().enumerate().skip(from / PAGE);
        let all = pages
            .flat_map(|(p, page)| page.iter().enumerate().filter_map(move |(i, e)| Some((p * PAGE + i, e.as_ref()?))));
        all.skip_while(move |(i, _)| *i < from)
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        let mut rounds = Rounds::new();
        for page in self.pages.drain(..) {
            for entry in page {
                rounds.next();
                drop(entry);
            }
        }
    }
}

impl Clone for Slots {
    fn clone(&self) -> Self {
        let used = self.pages.iter().rposition(|p| !p.is_empty()).map_or(0, |p| p + 1);
        Slots { pages: self.pages[..used].to_vec(), low: self.low }
    }
}

/// Ids of descriptor tables, as owners of POSIX locks.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// A table of descriptors; shared between tasks by `CLONE_FILES`.
pub struct FdTable {
    id: u64,
    /// POSIX locks were set through this table; they end with it.
    pub has_locks: std::sync::atomic::AtomicBool,
    slots: RwLock<Slots>,
}

impl Default for FdTable {
    fn default() -> Self {
        FdTable { id: NEXT_ID.fetch_add(1, Ordering::Relaxed), has_locks: Default::default(), slots: RwLock::default() }
    }
}

impl FdTable {
    pub fn id(&self) -> u64 {
        self.id
    }
    pub fn new() -> Arc<Self> {
        Arc::default()
    }
    /// A copy for `fork`.
    pub fn duplicate(&self) -> Arc<Self> {
        let copy = FdTable::default();
        let slots = if self.is_large() { aside(|| self.slots.read().clone()) } else { self.slots.read().clone() };
        *copy.slots.write() = slots;
        Arc::new(copy)
    }
    /// Whether a descriptor refers to `file`.
    pub fn holds(&self, file: &Arc<File>) -> bool {
        self.slots.read().iter().any(|(_, e)| Arc::ptr_eq(&e.file, file))
    }
    pub fn get(&self, fd: i32) -> Result<Arc<File>> {
        self.entry(fd).map(|e| e.file)
    }
    /// As `get`, but refuses `O_PATH` descriptions.
    pub fn get_io(&self, fd: i32) -> Result<Arc<File>> {
        let f = self.get(fd)?;
        if f.flags() & libc::O_PATH != 0 {
            return Err(Errno::EBADF);
        }
        Ok(f)
    }
    pub fn entry(&self, fd: i32) -> Result<FdEntry> {
        let i = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        self.slots.read().get(i).cloned().ok_or(Errno::EBADF)
    }
    /// Installs at the lowest free number of at least `min` and below `limit` (`RLIMIT_NOFILE`).
    pub fn install(&self, file: Arc<File>, cloexec: bool, min: usize, limit: u64) -> Result<i32> {
        let limit = usize::try_from(limit).unwrap_or(NR_OPEN).min(NR_OPEN);
        let mut s = self.slots.write();
        let from = min.max(s.low);
        let i = s.free(from);
        if i >= limit {
            return Err(Errno::EMFILE);
        }
        s.put(i, FdEntry { file, cloexec });
        if min <= s.low {
            s.low = i + 1;
        }
        Ok(i as i32)
    }
    /// Installs at exactly `fd`; returns the previous file.
    pub fn replace(&self, fd: i32, file: Arc<File>, cloexec: bool, limit: u64) -> Result<Option<Arc<File>>> {
        let i = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        if i as u64 >= limit || i >= NR_OPEN {
            return Err(Errno::EBADF);
        }
        let mut s = self.slots.write();
        Ok(s.put(i, FdEntry { file, cloexec }).map(|e| e.file))
    }
    pub fn remove(&self, fd: i32) -> Result<Arc<File>> {
        let i = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        let mut s = self.slots.write();
        s.take(i).map(|e| e.file).ok_or(Errno::EBADF)
    }
    pub fn set_cloexec(&self, fd: i32, on: bool) -> Result<()> {
        let i = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        match self.slots.write().get_mut(i) {
            Some(e) => {
                e.cloexec = on;
                Ok(())
            }
            None => Err(Errno::EBADF),
        }
    }
    /// Removes entries that `doomed` says yes to, from number `from` on, and returns their files: a part of them, and where the next
    /// part begins, if one may be left.
    pub fn remove_some(
        &self,
        from: usize,
        doomed: impl Fn(usize, &FdEntry) -> bool,
    ) -> (Vec<Arc<File>>, Option<usize>) {
        let mut s = self.slots.write();
        let mut found = Vec::new();
        let mut next = None;
        for (seen, (i, e)) in s.iter_from(from).enumerate() {
            if seen == PART {
                next = Some(i);
                break;
            }
            if doomed(i, e) {
                found.push(i);
            }
        }
        (found.into_iter().filter_map(|i| s.take(i)).map(|e| e.file).collect(), next)
    }
    /// Marks those in use from `first` to `last`: a part of them, and where the next part begins, if one may be left.
    pub fn mark_some(&self, first: usize, last: usize) -> Option<usize> {
        let mut s = self.slots.write();
        let some: Vec<usize> = s.iter_from(first).map(|(i, _)| i).take(PART).collect();
        for i in some.iter().filter(|i| **i <= last) {
            if let Some(e) = s.get_mut(*i) {
                e.cloexec = true;
            }
        }
        some.get(PART - 1).filter(|i| **i < last).map(|i| i + 1)
    }
    /// One more than the highest number in use, about.
    pub fn top(&self) -> usize {
        let s = self.slots.read();
        let used = s.pages.iter().rposition(|p| !p.is_empty());
        used.map_or(0, |p| p * PAGE + s.pages.get(p).map_or(0, Vec::len))
    }
    /// Whether a copy takes long.
    pub fn is_large(&self) -> bool {
        let s = self.slots.read();
        s.pages.len() > MANY / PAGE && s.pages.iter().filter(|p| !p.is_empty()).count() > MANY / PAGE
    }
    /// Number of descriptors in use.
    pub fn count(&self) -> usize {
        self.slots.read().iter().count()
    }
    /// The first number in use at or above `from`.
    pub fn next(&self, from: usize) -> Option<i32> {
        self.slots.read().next(from).map(|i| i as i32)
    }
    /// Numbers in use, ascending.
    pub fn numbers(&self) -> Vec<i32> {
        self.slots.read().iter().map(|(i, _)| i as i32).collect()
    }
}

impl Drop for FdTable {
    fn drop(&mut self) {
        if *self.has_locks.get_mut() {
            for (_, e) in self.slots.get_mut().iter() {
                crate::fs::lock::release_table(self.id, &e.file);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_in_parts() {
        let (file, t) = (crate::fs::eventfd::new(0, false, 0), FdTable::default());
        for _ in 0..3 * PART {
            t.install(file.clone(), false, 0, 1 << 20).unwrap();
        }
        assert_eq!(t.mark_some(5, PART + 4), None);
        assert_eq!(t.mark_some(5, PART + 5), Some(PART + 5));
        assert_eq!(t.mark_some(PART + 5, PART + 5), None);
        let marked = |t: &FdTable| t.slots.read().iter().filter(|(_, e)| e.cloexec).count();
        assert_eq!(marked(&t), PART + 1);
        let (mut from, mut gone) = (Some(0), Vec::new());
        while let Some(at) = from {
            let (some, next) = t.remove_some(at, |_, e| e.cloexec);
            (gone, from) = ([gone, some].concat(), next);
        }
        assert_eq!((gone.len(), marked(&t), t.count()), (PART + 1, 0, 2 * PART - 1));
    }

    #[test]
    fn install_takes_the_lowest_free_number() {
        let file = || crate::fs::eventfd::new(0, false, 0);
        let t = FdTable::default();
        for i in 0..600 {
            assert_eq!(t.install(file(), i == 5, 0, 1 << 20), Ok(i));
        }
        for i in [3, 255, 256, 599] {
            t.remove(i).unwrap();
        }
        for i in [3, 255, 256, 599, 600] {
            assert_eq!(t.install(file(), false, 0, 1 << 20), Ok(i));
        }
        assert_eq!(t.install(file(), false, 1000, 1 << 20), Ok(1000));
        assert_eq!(t.install(file(), false, 1000, 1 << 20), Ok(1001));
        assert_eq!(t.install(file(), false, 602, 602), Err(Errno::EMFILE));
        let (gone, next) = t.remove_some(0, |_, e| e.cloexec);
        assert_eq!((gone.len(), next), (1, None));
        assert_eq!(t.install(file(), false, 0, 1 << 20), Ok(5));
        let top = NR_OPEN as i32 - 1;
        assert!(t.replace(top, file(), false, 1 << 20).unwrap().is_none());
        assert!(t.replace(top, file(), false, 1 << 20).unwrap().is_some());
        assert_eq!(t.replace(top + 1, file(), false, u64::MAX).err(), Some(Errno::EBADF));
        let copy = t.duplicate();
        assert_eq!(copy.numbers().last(), Some(&top));
        assert!(copy.slots.read().pages.iter().map(|p| p.capacity()).sum::<usize>() < 2000);
        t.remove(top).unwrap();
        assert!(t.get(top).is_err() && copy.get(top).is_ok());
        assert_eq!(t.duplicate().slots.read().pages.len(), 4);
        assert_eq!((t.numbers().len(), t.count()), (603, 603));
        assert_eq!((t.top(), t.is_large(), copy.top(), copy.is_large()), (1002, false, NR_OPEN, false));
        assert_eq!((t.next(0), t.next(601), t.next(top as usize)), (Some(0), Some(1000), None));
    }
}
