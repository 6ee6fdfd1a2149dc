//! The entries of a directory in the encoding of the Gofer's reply.

use crate::error::{Errno, Result};
use crate::fs::dir::listing_room;
use platform::budget::Charge;
use protocol::client::{DirEntry, DirPage};
use protocol::wire::Reader;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::OnceLock;

/// Entries of a directory without `.` and `..`: entry `i` is at directory offset `i + 2`.
pub struct Listing {
    bytes: Vec<u8>,
    /// The offset of each entry in `bytes`.
    at: Vec<u32>,
    /// The same, sorted by name; built on the first search.
    by_name: OnceLock<Box<[u32]>>,
    /// The entries have attributes.
    pub full: bool,
    /// The entries have contents of small files.
    pub with_contents: bool,
    /// A reader or a lookup has used it.
    pub used: AtomicBool,
    /// The entry that a lookup in listing order asks for next.
    next: AtomicUsize,
    /// Its charge against the memory for listings; zero if there was not enough.
    room: Charge,
}

impl Listing {
    pub fn new(full: bool) -> Listing {
        Listing {
            bytes: Vec::new(),
            at: Vec::new(),
            by_name: OnceLock::new(),
            full,
            with_contents: false,
            used: AtomicBool::new(false),
            next: AtomicUsize::new(0),
            room: listing_room(),
        }
    }
    /// Appends a page; returns the cookie of its last entry.
    pub fn push(&mut self, page: DirPage) -> Result<Option<u64>> {
        let last = page.last();
        let (bytes, at) = page.into_parts();
        if self.bytes.is_empty() {
            (self.bytes, self.at) = (bytes, at);
            return Ok(last);
        }
        let before = u32::try_from(self.bytes.len()).map_err(|_| Errno::ENOMEM)?;
        u32::try_from(self.bytes.len() + bytes.len()).map_err(|_| Errno::ENOMEM)?;
        self.bytes.extend_from_slice(&bytes);
        self.at.extend(at.iter().map(|at| before + at));
        Ok(last)
    }
    pub fn finish(&mut self) {
        self.bytes.shrink_to_fit();
        self.at.shrink_to_fit();
        self.room.set(self.size() as u64);
    }
    /// Whether its memory could be charged: if not, no open directory may keep it.
    pub fn counted(&self) -> bool {
        self.room.amount() > 0
    }
    pub fn len(&self) -> usize {
        self.at.len()
    }
    /// Its approximate size in memory.
    pub fn size(&self) -> usize {
        self.bytes.len() + 8 * self.at.len() + 64
    }
    fn tail(&self, at: u32) -> &[u8] {
        self.bytes.get(at as usize..).unwrap_or(&[])
    }
    /// The entries starting with number `from`.
    pub fn iter(&self, from: usize) -> impl Iterator<Item = DirEntry<'_>> {
        self.at
            .get(from..)
            .unwrap_or(&[])
            .iter()
            .map_while(|at| DirEntry::decode(&mut Reader::new(self.tail(*at))).ok())
    }
    /// The number of the entry `name`.
    pub fn index(&self, name: &[u8]) -> Option<usize> {
        let at = self.position(name)?;
        self.at.binary_search(&at).ok()
    }
    pub fn find(&self, name: &[u8]) -> Option<DirEntry<'_>> {
        DirEntry::decode(&mut Reader::new(self.tail(self.position(name)?))).ok()
    }
    /// The offset of the entry `name`.
    fn position(&self, name: &[u8]) -> Option<u32> {
        let named = |at: &u32| DirEntry::peek_name(self.tail(*at)).unwrap_or(&[]);
        let next = self.next.load(Ordering::Relaxed);
        if let Some(at) = self.at.get(next).filter(|at| named(at) == name) {
            self.next.store(next + 1, Ordering::Relaxed);
            return Some(*at);
        }
        let order = self.by_name.get_or_init(|| {
            let mut order = self.at.clone();
            order.sort_unstable_by(|a, b| named(a).cmp(named(b)));
            order.into_boxed_slice()
        });
        let i = order.binary_search_by(|at| named(at).cmp(name)).ok()?;
        let at = order.get(i).copied()?;
        self.next.store(self.at.binary_search(&at).map_or(0, |i| i + 1), Ordering::Relaxed);
        Some(at)
    }
}
