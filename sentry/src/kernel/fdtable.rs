//! Descriptor tables.

use crate::error::{Errno, Result};
use crate::fs::File;
use parking_lot::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

/// Hard upper bound of descriptors in one table, whatever `RLIMIT_NOFILE` says (`fs.nr_open`).
pub const NR_OPEN: usize = 1 << 20;

#[derive(Clone)]
pub struct FdEntry {
    pub file: Arc<File>,
    pub cloexec: bool,
}

#[derive(Clone, Default)]
struct Slots {
    entries: Vec<Option<FdEntry>>,
    /// No free slot below this.
    low: usize,
}

/// A table of descriptors; shared between tasks by `CLONE_FILES`.
/// Tells descriptor tables apart, as owners of POSIX locks.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

pub struct FdTable {
    id: u64,
    /// POSIX locks have been made through it; they end with the table.
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
        *copy.slots.write() = self.slots.read().clone();
        Arc::new(copy)
    }
    /// Whether some descriptor leads to `file`.
    pub fn holds(&self, file: &Arc<File>) -> bool {
        self.slots.read().entries.iter().flatten().any(|e| Arc::ptr_eq(&e.file, file))
    }
    pub fn get(&self, fd: i32) -> Result<Arc<File>> {
        self.entry(fd).map(|e| e.file)
    }
    /// As `get`, refusing `O_PATH` descriptions.
    pub fn get_io(&self, fd: i32) -> Result<Arc<File>> {
        let f = self.get(fd)?;
        if f.flags() & libc::O_PATH != 0 {
            return Err(Errno::EBADF);
        }
        Ok(f)
    }
    pub fn entry(&self, fd: i32) -> Result<FdEntry> {
        let i = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        self.slots.read().entries.get(i).and_then(|e| e.clone()).ok_or(Errno::EBADF)
    }
    /// Installs at the lowest free number that is at least `min` and below `limit` (`RLIMIT_NOFILE`).
    pub fn install(&self, file: Arc<File>, cloexec: bool, min: usize, limit: u64) -> Result<i32> {
        let limit = usize::try_from(limit).unwrap_or(NR_OPEN).min(NR_OPEN);
        let mut s = self.slots.write();
        let from = min.max(s.low);
        let i = (from..s.entries.len()).find(|&i| s.entries[i].is_none()).unwrap_or(s.entries.len().max(from));
        if i >= limit {
            return Err(Errno::EMFILE);
        }
        if i >= s.entries.len() {
            s.entries.resize(i + 1, None);
        }
        s.entries[i] = Some(FdEntry { file, cloexec });
        if min <= s.low {
            s.low = i + 1;
        }
        Ok(i as i32)
    }
    /// Installs at exactly `fd`; returns what was there.
    pub fn replace(&self, fd: i32, file: Arc<File>, cloexec: bool, limit: u64) -> Result<Option<Arc<File>>> {
        let i = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        if i as u64 >= limit || i >= NR_OPEN {
            return Err(Errno::EBADF);
        }
        let mut s = self.slots.write();
        if i >= s.entries.len() {
            s.entries.resize(i + 1, None);
        }
        Ok(s.entries[i].replace(FdEntry { file, cloexec }).map(|e| e.file))
    }
    pub fn remove(&self, fd: i32) -> Result<Arc<File>> {
        let i = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        let mut s = self.slots.write();
        let old = s.entries.get_mut(i).and_then(|e| e.take()).ok_or(Errno::EBADF)?;
        s.low = s.low.min(i);
        Ok(old.file)
    }
    pub fn set_cloexec(&self, fd: i32, on: bool) -> Result<()> {
        let i = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        match self.slots.write().entries.get_mut(i) {
            Some(Some(e)) => {
                e.cloexec = on;
                Ok(())
            }
            _ => Err(Errno::EBADF),
        }
    }
    /// Removes all entries that `doomed` says yes to and returns their files.
    pub fn remove_where(&self, doomed: impl Fn(usize, &FdEntry) -> bool) -> Vec<Arc<File>> {
        let mut s = self.slots.write();
        let mut out = Vec::new();
        for i in 0..s.entries.len() {
            if s.entries[i].as_ref().is_some_and(|e| doomed(i, e)) {
                if let Some(e) = s.entries[i].take() {
                    out.push(e.file);
                }
                s.low = s.low.min(i);
            }
        }
        out
    }
    /// Numbers in use, ascending.
    pub fn numbers(&self) -> Vec<i32> {
        self.slots.read().entries.iter().enumerate().filter(|(_, e)| e.is_some()).map(|(i, _)| i as i32).collect()
    }
}

impl Drop for FdTable {
    fn drop(&mut self) {
        if *self.has_locks.get_mut() {
            for e in self.slots.get_mut().entries.iter().flatten() {
                crate::fs::lock::release_table(self.id, &e.file);
            }
        }
    }
}
