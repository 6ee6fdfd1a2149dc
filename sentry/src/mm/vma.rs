//! The mappings of one address space. Pure bookkeeping: no host call, no lock.

use crate::fs::vfs::Path;
use crate::fs::File;
use platform::executor::Rounds;
use platform::{GUEST_MAX, GUEST_MIN, PAGE_SIZE};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The object behind a mapping.
#[derive(Clone)]
pub enum Backing {
    /// Private anonymous memory.
    Anon,
    /// Anonymous memory shared by `fork`; the number identifies the object, the offset is the VMA's `offset`.
    SharedAnon(u64),
    /// A file; the stub maps `fd`.
    File { file: Arc<File>, fd: Arc<OwnedFd> },
    /// A small file, mapped private: anonymous memory with a copy of its bytes.
    Copied { file: Arc<File> },
}

/// One mapping.
#[derive(Clone)]
pub struct Vma {
    pub start: u64,
    pub end: u64,
    /// `PROT_*`.
    pub prot: i32,
    /// Upper bound for `mprotect`.
    pub max_prot: i32,
    pub shared: bool,
    pub backing: Backing,
    /// Offset of `start` in the object.
    pub offset: u64,
    pub locked: bool,
    /// `[heap]`, `[stack]`, `[vdso]`.
    pub label: &'static str,
    /// `MAP_GROWSDOWN`. The first stack is mapped in full from the start.
    pub grows_down: bool,
    /// `madvise(MADV_DONTFORK)`.
    pub dont_fork: bool,
    /// The file's record as text, for a mapping of code that has never been writable.
    pub text: Option<Arc<super::text::FileText>>,
    /// Space for a trampoline page is kept free below.
    pub gap: bool,
}

impl Vma {
    pub fn len(&self) -> u64 {
        self.end - self.start
    }
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }
    pub fn path(&self) -> Option<&Path> {
        match &self.backing {
            Backing::File { file, .. } | Backing::Copied { file } => file.path.as_ref(),
            _ => None,
        }
    }
    fn advance(&mut self, start: u64) {
        self.gap &= start == self.start;
        self.offset += start - self.start;
        self.start = start;
    }
    fn joins(&self, next: &Vma) -> bool {
        self.end == next.start
            && self.prot == next.prot
            && self.max_prot == next.max_prot
            && self.shared == next.shared
            && self.locked == next.locked
            && self.label == next.label
            && self.grows_down == next.grows_down
            && self.dont_fork == next.dont_fork
            && self.text.is_some() == next.text.is_some()
            && !next.gap
            && match (&self.backing, &next.backing) {
                (Backing::Anon, Backing::Anon) => true,
                (Backing::SharedAnon(a), Backing::SharedAnon(b)) => a == b && self.offset + self.len() == next.offset,
                (Backing::File { file: a, .. }, Backing::File { file: b, .. })
                | (Backing::Copied { file: a }, Backing::Copied { file: b }) => {
                    Arc::ptr_eq(a, b) && self.offset + self.len() == next.offset
                }
                _ => false,
            }
    }
}

/// Above this number, mappings are changed in bulk.
const MANY: usize = 64;
/// Changing more takes milliseconds.
const LONG: usize = 8192;

/// Mappings by start address, never overlapping.
#[derive(Clone, Default)]
pub struct VmaTree {
    map: BTreeMap<u64, Vma>,
    /// Sum of the lengths.
    pub total: u64,
}

impl VmaTree {
    pub fn iter(&self) -> impl Iterator<Item = &Vma> {
        self.map.values()
    }
    /// Where the first begins and the last ends.
    pub fn ends(&self) -> Option<(u64, u64)> {
        Some((*self.map.first_key_value()?.0, self.map.last_key_value()?.1.end))
    }
    pub fn count(&self) -> usize {
        self.map.len()
    }
    pub fn find(&self, addr: u64) -> Option<&Vma> {
        self.map.range(..=addr).next_back().map(|(_, v)| v).filter(|v| addr < v.end)
    }
    /// Mappings that overlap the range, in order; none if `end` is before `start`.
    pub fn range(&self, start: u64, end: u64) -> impl Iterator<Item = &Vma> {
        let first = self.find(start).map_or(start, |v| v.start);
        self.map.range(first..end.max(first)).map(|(_, v)| v)
    }
    /// True if every page of the range is mapped.
    pub fn covers(&self, start: u64, end: u64) -> bool {
        let mut at = start;
        for v in self.range(start, end) {
            if v.start > at {
                return false;
            }
            at = v.end;
        }
        at >= end
    }
    /// True if every page of the range is writable.
    pub fn writable(&self, start: u64, end: u64) -> bool {
        let mut at = start;
        while at < end {
            match self.find(at) {
                Some(v) if v.prot & libc::PROT_WRITE != 0 => at = v.end,
                _ => return false,
            }
        }
        true
    }
    pub fn mapped_in(&self, start: u64, end: u64) -> u64 {
        self.range(start, end).map(|v| v.end.min(end) - v.start.max(start)).sum()
    }
    /// Whether changing these takes long.
    pub fn are_many(&self, start: u64, end: u64) -> bool {
        self.map.len() > LONG && self.map.range(start..end.max(start)).nth(LONG).is_some()
    }
    fn split(&mut self, at: u64) {
        let Some(v) = self.find(at) else { return };
        if v.start == at {
            return;
        }
        let mut hi = v.clone();
        let start = v.start;
        hi.advance(at);
        if let Some(lo) = self.map.get_mut(&start) {
            lo.end = at;
        }
        self.map.insert(at, hi);
    }
    /// Removes the range and returns its former mappings.
    pub fn remove(&mut self, start: u64, end: u64) -> Vec<Vma> {
        self.split(start);
        self.split(end);
        if self.map.range(start..end.max(start)).nth(MANY).is_some() {
            let part = self.cut(start, end);
            self.total -= part.values().map(Vma::len).sum::<u64>();
            return part.into_values().collect();
        }
        let keys: Vec<u64> = self.map.range(start..end.max(start)).map(|(k, _)| *k).collect();
        let mut out = Vec::with_capacity(keys.len());
        for k in keys {
            if let Some(v) = self.map.remove(&k) {
                self.total -= v.len();
                out.push(v);
            }
        }
        out
    }
    /// Inserts a mapping into a free range and joins it with its neighbours.
    pub fn insert(&mut self, mut v: Vma) {
        self.total += v.len();
        if let Some((&k, p)) = self.map.range(..v.start).next_back() {
            if p.joins(&v) {
                v.offset = p.offset;
                v.start = k;
                v.gap = p.gap;
                self.map.remove(&k);
            }
        }
        if let Some(n) = self.map.get(&v.end) {
            if v.joins(n) {
                let end = n.end;
                self.map.remove(&v.end);
                v.end = end;
            }
        }
        self.map.insert(v.start, v);
    }
    /// Applies `f` to every mapping in the range.
    pub fn update(&mut self, start: u64, end: u64, mut f: impl FnMut(&mut Vma)) {
        if self.map.range(start..end.max(start)).nth(MANY).is_some() {
            return self.update_many(start, end, f);
        }
        for mut v in self.remove(start, end) {
            f(&mut v);
            self.insert(v);
        }
    }
    /// Removes the mappings that begin in the range, without updating `total`.
    fn cut(&mut self, start: u64, end: u64) -> BTreeMap<u64, Vma> {
        let mut part = self.map.split_off(&start);
        let mut rest = part.split_off(&end.max(start));
        self.map.append(&mut rest);
        part
    }
    /// As `update`, but rebuilds this part of the tree instead of changing it per mapping.
    fn update_many(&mut self, start: u64, end: u64, mut f: impl FnMut(&mut Vma)) {
        self.split(start);
        self.split(end);
        let mut rounds = Rounds::new();
        let mut joined: Vec<(u64, Vma)> = Vec::new();
        for (_, mut v) in self.cut(start, end) {
            rounds.next();
            f(&mut v);
            match joined.last_mut() {
                Some((_, p)) if p.joins(&v) => p.end = v.end,
                _ => joined.push((v.start, v)),
            }
        }
        // The first and last mapping may now join with their neighbours.
        let (last, first) = (joined.pop(), joined.first().map(|(s, _)| *s));
        self.map.append(&mut joined.into_iter().collect());
        for v in first.and_then(|s| self.map.remove(&s)).into_iter().chain(last.map(|(_, v)| v)) {
            self.total -= v.len();
            self.insert(v);
        }
    }
    /// Highest free range of `len` bytes that ends at or below `top`.
    pub fn find_gap(&self, len: u64, top: u64) -> Option<u64> {
        let mut ceiling = top;
        for (_, v) in self.map.range(..top).rev() {
            if v.end <= ceiling && ceiling - v.end >= len {
                return Some(ceiling - len);
            }
            ceiling = ceiling.min(if v.gap { v.start.saturating_sub(platform::patch::TRAMPOLINE) } else { v.start });
        }
        (ceiling >= GUEST_MIN + len).then(|| ceiling - len)
    }
    /// Lowest free range at or above `from` (used when the area below the base is full).
    pub fn find_gap_up(&self, len: u64, from: u64) -> Option<u64> {
        let mut at = self.find(from).map_or(from, |v| v.end);
        for (_, v) in self.map.range(from..) {
            if v.start >= at && v.start - at >= len {
                return Some(at);
            }
            at = at.max(v.end);
        }
        (GUEST_MAX - at >= len).then_some(at)
    }
}

/// Rounds up to whole pages; `None` on overflow.
pub fn page_up(n: u64) -> Option<u64> {
    n.checked_add(PAGE_SIZE - 1).map(|x| x & !(PAGE_SIZE - 1))
}

pub fn page_aligned(n: u64) -> bool {
    n % PAGE_SIZE == 0
}

/// A page-aligned, non-empty range inside the guest's address space; `None` otherwise.
pub fn valid_range(addr: u64, len: u64) -> Option<(u64, u64)> {
    let len = page_up(len)?;
    let end = addr.checked_add(len)?;
    (page_aligned(addr) && len > 0 && addr >= GUEST_MIN && end <= GUEST_MAX).then_some((addr, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn anon(start: u64, end: u64, prot: i32) -> Vma {
        Vma {
            start,
            end,
            prot,
            max_prot: 7,
            shared: false,
            backing: Backing::Anon,
            offset: 0,
            locked: false,
            label: "",
            grows_down: false,
            dont_fork: false,
            text: None,
            gap: false,
        }
    }

    #[test]
    fn room_for_a_trampoline_page_stays_free() {
        let mut t = VmaTree::default();
        t.insert(Vma { gap: true, ..anon(0x90000, 0xa0000, 3) });
        assert_eq!(t.find_gap(0x1000, 0xa0000), Some(0x7f000));
        t.update(0x91000, 0x92000, |v| v.prot = 1);
        assert_eq!(t.find_gap(0x1000, 0xa0000), Some(0x7f000));
        t.remove(0x90000, 0x91000);
        assert_eq!(t.find_gap(0x1000, 0xa0000), Some(0x90000));
    }

    #[test]
    fn neighbours_join_and_split() {
        let mut t = VmaTree::default();
        t.insert(anon(0x10000, 0x12000, 3));
        t.insert(anon(0x12000, 0x14000, 3));
        assert_eq!(t.count(), 1);
        t.update(0x11000, 0x12000, |v| v.prot = 1);
        assert_eq!(t.count(), 3);
        t.update(0x11000, 0x12000, |v| v.prot = 3);
        assert_eq!(t.count(), 1);
        assert_eq!(t.total, 0x4000);
        t.remove(0x11000, 0x13000);
        assert_eq!(t.total, 0x2000);
        assert!(!t.covers(0x10000, 0x14000));
        assert!(t.covers(0x13000, 0x14000));
    }

    #[test]
    fn bulk_changes_equal_single_changes() {
        let make = || {
            let mut t = VmaTree::default();
            for i in 0..200u64 {
                t.insert(anon(0x10000 + i * 0x2000, 0x11000 + i * 0x2000, 1));
                t.insert(anon(0x11000 + i * 0x2000, 0x12000 + i * 0x2000, 3));
            }
            t
        };
        let seen = |t: &VmaTree| t.iter().map(|v| (v.start, v.end, v.prot)).collect::<Vec<_>>();
        for (start, end, prot) in
            [(0x10000, 0x1a0000, 3), (0x10800, 0x9b800, 3), (0x11000, 0x180000, 5), (0x12000, 0x19f000, 1)]
        {
            let (mut many, mut few) = (make(), make());
            many.update(start, end, |v| v.prot = prot);
            for v in few.remove(start, end) {
                few.insert(Vma { prot, ..v });
            }
            assert_eq!(seen(&many), seen(&few));
            assert_eq!(many.total, few.total);
            assert_eq!(many.total, many.iter().map(Vma::len).sum::<u64>());
            many.remove(start, end);
            assert_eq!(many.total, many.iter().map(Vma::len).sum::<u64>());
            assert!(many.range(start, end).next().is_none());
        }
    }

    #[test]
    fn gaps_are_found_from_the_top() {
        let mut t = VmaTree::default();
        t.insert(anon(0x90000, 0xa0000, 3));
        t.insert(anon(0x60000, 0x80000, 3));
        assert_eq!(t.find_gap(0x10000, 0xa0000), Some(0x80000));
        assert_eq!(t.find_gap(0x20000, 0xa0000), Some(0x40000));
    }
}
