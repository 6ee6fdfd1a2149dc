//! Dentries: names in the tree, and the cache of them.
//!
//! A directory's dentry holds a map from name to what is known about it: a dentry, or that there is nothing. A walk whose names are all
//! in the maps asks no file system and allocates nothing. Names of a directory whose inode is `volatile` are asked for again each time; the
//! map then only keeps dentries in use from having doubles.
//!
//! The map's lock is also the lock of the directory: a change of it (create, unlink, rename) happens with the map locked for writing. Two
//! maps are locked only along a parent–child edge, the parent first, or with [`SuperBlock::rename`] held, and then neither is waited for while
//! the other is locked ([`Dentry::lock_both`]).
//!
//! A child points strongly at its parent and the parent's map at the child; the last mount of a superblock breaks the circles when it goes.

use crate::error::{later, Errno, Result};
use crate::fs::Inode;
use crate::kernel::user_ns::UserNs;
use parking_lot::{Mutex, RwLock, RwLockWriteGuard};
use platform::executor::Rounds;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

/// Dentries that one superblock keeps before it drops those not used lately.
const CACHE_MAX: usize = 192 * 1024;
/// Names known to be missing that one directory keeps, and all directories of a superblock.
const NEGATIVE_MAX: usize = 8 * 1024;
const NEGATIVE_ALL: usize = 64 * 1024;

/// An inode of some file system is [`gone`](Inode::gone).
static GONE: AtomicBool = AtomicBool::new(false);

/// From now on dentries are asked whether their inode is [`gone`](Inode::gone).
pub fn something_is_gone() {
    GONE.store(true, Ordering::Release);
}

/// A directory has become [`volatile`](Inode::volatile) that was none.
static VOLATILE: AtomicBool = AtomicBool::new(false);

/// From now on directories are asked whether they have become [`volatile`](Inode::volatile).
pub fn something_is_volatile() {
    VOLATILE.store(true, Ordering::Relaxed);
}

/// Hash for short names: eight bytes at a time, one multiplication each.
#[derive(Clone, Copy, Default)]
pub struct NameHash;
#[derive(Clone, Copy, Default)]
pub struct NameHasher(u64);

impl BuildHasher for NameHash {
    type Hasher = NameHasher;
    fn build_hasher(&self) -> NameHasher {
        NameHasher(0x9e37_79b9_7f4a_7c15)
    }
}

impl NameHasher {
    fn mix(&mut self, v: u64) {
        let m = u128::from(self.0 ^ v).wrapping_mul(0x9fb2_1c65_1e98_df25_d6e8_feb8_6659_fd93);
        self.0 = (m as u64) ^ ((m >> 64) as u64);
    }
}

impl Hasher for NameHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks_exact(8);
        for c in &mut chunks {
            self.mix(c.try_into().map_or(0, u64::from_le_bytes));
        }
        let mut last = [0u8; 8];
        let rest = chunks.remainder();
        last[..rest.len()].copy_from_slice(rest);
        self.mix(u64::from_le_bytes(last) ^ ((bytes.len() as u64) << 56));
    }
    fn write_usize(&mut self, _: usize) {
        // The length of a slice; `write` mixes it in.
    }
}

pub type NameMap<V> = HashMap<Arc<[u8]>, V, NameHash>;

/// What a directory knows about a name.
pub(super) enum Child {
    Here(Arc<Dentry>),
    /// In a volatile directory: only as long as someone uses it.
    Used(Weak<Dentry>),
    Missing,
}

#[derive(Default)]
pub(super) struct Children {
    pub(super) map: NameMap<Child>,
    negative: usize,
    /// It is among those that the superblock asks to forget what is missing.
    listed: bool,
    /// The directory has been removed: nothing can be made in it any more.
    pub(super) dead: bool,
}

/// One file system as mounted: what all mounts of it share.
pub struct SuperBlock {
    /// Name of the type, as `/proc/filesystems` has it.
    pub fstype: &'static str,
    /// What was mounted (first field of /proc/mounts).
    pub source: Vec<u8>,
    /// File-system options that /proc/mounts shows after the flags.
    pub options: String,
    /// The file system as a whole cannot be written to.
    read_only: AtomicBool,
    /// It can never be written to.
    never_written: AtomicBool,
    /// Overlays of guests that lie on each other in it.
    stacked: AtomicU32,
    /// The user namespace that it was mounted from, if not the first one.
    owner: OnceLock<Arc<UserNs>>,
    /// Held while names move between directories, and to read several parents in one go.
    pub(in crate::fs) rename: RwLock<()>,
    /// Mounts of it.
    pub(super) mounts: AtomicUsize,
    /// Cached dentries, oldest first, for eviction.
    recent: Mutex<VecDeque<Weak<Dentry>>>,
    /// Names known to be missing, and the directories that know them, first come first.
    negative: AtomicUsize,
    forgetful: Mutex<VecDeque<Weak<Dentry>>>,
}

impl SuperBlock {
    pub fn new(fstype: &'static str, source: &[u8], options: String) -> Arc<Self> {
        Arc::new(SuperBlock {
            fstype,
            source: source.to_vec(),
            options,
            read_only: AtomicBool::new(false),
            never_written: AtomicBool::new(false),
            stacked: AtomicU32::new(0),
            owner: OnceLock::new(),
            rename: RwLock::new(()),
            mounts: AtomicUsize::new(0),
            recent: Mutex::default(),
            negative: AtomicUsize::new(0),
            forgetful: Mutex::default(),
        })
    }

    pub fn read_only(&self) -> bool {
        self.read_only.load(Ordering::Relaxed) || self.never_written.load(Ordering::Relaxed)
    }
    pub fn never_writable(&self) {
        self.never_written.store(true, Ordering::Relaxed);
    }
    pub fn stacked(&self) -> u32 {
        self.stacked.load(Ordering::Relaxed)
    }
    pub fn set_stacked(&self, depth: u32) {
        self.stacked.store(depth, Ordering::Relaxed);
    }
    /// The user namespace whose capabilities count for it.
    pub fn owner(&self) -> Arc<UserNs> {
        self.owner.get().cloned().unwrap_or_else(UserNs::first)
    }
    pub fn set_owner(&self, owner: Arc<UserNs>) {
        if !owner.is_initial() {
            let _ = self.owner.set(owner);
        }
    }
    /// A user namespace has mounted it: its device nodes are nothing.
    pub fn hides_devices(&self) -> bool {
        self.owner.get().is_some() && self.fstype != "devpts"
    }
    /// Whether set-id bits and capabilities of its files count for a task of the user namespace `ns`.
    pub fn gives_rights_to(&self, ns: &UserNs) -> bool {
        self.owner.get().is_none_or(|o| o.contains(ns))
    }
    /// `EROFS` for one that can never be written to.
    pub fn set_read_only(&self, on: bool) -> Result<()> {
        if !on && self.never_written.load(Ordering::Relaxed) {
            return Err(Errno::EROFS);
        }
        self.read_only.store(on, Ordering::Relaxed);
        Ok(())
    }

    fn note(&self, d: &Arc<Dentry>) {
        let len = {
            let mut r = self.recent.lock();
            r.push_back(Arc::downgrade(d));
            r.len()
        };
        if len > CACHE_MAX {
            self.shrink(256);
        }
    }

    #[cfg(test)]
    pub(super) fn missing(&self) -> usize {
        self.negative.load(Ordering::Relaxed)
    }

    /// Has directories forget what is missing in them until there is room again. As `shrink`, it only tries locks.
    fn forget_missing(&self) {
        let mut busy = Vec::new();
        while self.negative.load(Ordering::Relaxed) > NEGATIVE_ALL {
            let Some(weak) = self.forgetful.lock().pop_front() else { break };
            let Some(d) = weak.upgrade() else { continue };
            match d.children.try_write() {
                Some(mut c) => {
                    c.listed = false;
                    d.forget_missing(&mut c);
                }
                None => busy.push(weak),
            }
            if busy.len() > 8 {
                break;
            }
        }
        if !busy.is_empty() {
            self.forgetful.lock().extend(busy);
        }
    }

    /// Looks at up to `n` dentries and forgets those that nobody uses (second chance for those that were found lately). Called with some
    /// directory locked, so it only tries locks.
    pub fn shrink(&self, n: usize) {
        let mut doomed = Vec::new();
        for _ in 0..n {
            let Some(weak) = self.recent.lock().pop_front() else { break };
            let Some(d) = weak.upgrade() else { continue };
            if d.is_deleted() {
                continue;
            }
            if !d.used.swap(false, Ordering::Relaxed) && d.try_forget() {
                doomed.push(d);
            } else {
                self.recent.lock().push_back(weak);
            }
        }
        // The dentries (and with them inodes) go here, with no lock of ours held.
        drop(doomed);
    }
}

struct Place {
    parent: Option<Arc<Dentry>>,
    name: Arc<[u8]>,
}

/// A name in the tree and the inode it stands for.
pub struct Dentry {
    inode: Arc<dyn Inode>,
    sb: Arc<SuperBlock>,
    /// `S_IFMT` bits; they never change.
    kind: u32,
    /// The directory's names could change by themselves from the start.
    volatile: bool,
    place: RwLock<Place>,
    deleted: AtomicBool,
    used: AtomicBool,
    /// Mounts on top of it.
    pub(super) mounted: AtomicU32,
    pub(super) children: RwLock<Children>,
}

impl Dentry {
    pub fn root(inode: Arc<dyn Inode>, sb: &Arc<SuperBlock>) -> Result<Arc<Dentry>> {
        Self::make(inode, sb, None, Arc::from(&b"/"[..]))
    }

    fn make(
        inode: Arc<dyn Inode>,
        sb: &Arc<SuperBlock>,
        parent: Option<Arc<Dentry>>,
        name: Arc<[u8]>,
    ) -> Result<Arc<Dentry>> {
        let kind = inode.perm()?.mode & libc::S_IFMT;
        let volatile = kind == libc::S_IFDIR && inode.volatile();
        Ok(Arc::new(Dentry {
            inode,
            sb: sb.clone(),
            kind,
            volatile,
            place: RwLock::new(Place { parent, name }),
            deleted: AtomicBool::new(false),
            used: AtomicBool::new(false),
            mounted: AtomicU32::new(0),
            children: RwLock::default(),
        }))
    }

    pub fn inode(&self) -> &Arc<dyn Inode> {
        &self.inode
    }
    pub fn sb(&self) -> &Arc<SuperBlock> {
        &self.sb
    }
    pub fn kind(&self) -> u32 {
        self.kind
    }
    pub fn is_dir(&self) -> bool {
        self.kind == libc::S_IFDIR
    }
    pub fn is_symlink(&self) -> bool {
        self.kind == libc::S_IFLNK
    }
    pub fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Acquire)
    }
    /// The directory's names can change by themselves.
    fn is_volatile(&self) -> bool {
        self.volatile || (VOLATILE.load(Ordering::Relaxed) && self.is_dir() && self.inode.volatile())
    }
    /// It has to be looked up anew. What is mounted on stays, as in a volatile directory.
    fn is_gone(&self) -> bool {
        GONE.load(Ordering::Acquire) && self.mounted.load(Ordering::Relaxed) == 0 && self.inode.gone()
    }
    pub fn parent(&self) -> Option<Arc<Dentry>> {
        self.place.read().parent.clone()
    }
    pub fn name(&self) -> Arc<[u8]> {
        self.place.read().name.clone()
    }

    /// The dentry of `name` in this directory, `None` if there is none.
    pub fn lookup(self: &Arc<Self>, name: &[u8]) -> Result<Option<Arc<Dentry>>> {
        if let Some(known) = self.cached(name) {
            return Ok(known);
        }
        self.lookup_locked(&mut self.children.write(), name)
    }

    /// What the cache says about `name`, if it may be believed.
    pub(super) fn cached(&self, name: &[u8]) -> Option<Option<Arc<Dentry>>> {
        if self.is_volatile() {
            return None;
        }
        match self.children.read().map.get(name) {
            Some(Child::Here(d)) if d.is_gone() => None,
            Some(Child::Here(d)) => {
                if !d.used.load(Ordering::Relaxed) {
                    d.used.store(true, Ordering::Relaxed);
                }
                Some(Some(d.clone()))
            }
            Some(Child::Missing) => Some(None),
            _ => None,
        }
    }

    /// As `lookup`, with the directory locked.
    pub(super) fn lookup_locked(self: &Arc<Self>, c: &mut Children, name: &[u8]) -> Result<Option<Arc<Dentry>>> {
        if c.dead {
            return Ok(None);
        }
        let old = match c.map.get(name) {
            Some(Child::Here(d)) => Some(d.clone()),
            Some(Child::Used(w)) => w.upgrade(),
            Some(Child::Missing) if !self.is_volatile() => return Ok(None),
            _ => None,
        };
        if let Some(d) = &old {
            let asks = self.is_volatile() || d.is_gone();
            if !asks || d.mounted.load(Ordering::Relaxed) > 0 {
                return Ok(old);
            }
        }
        let found = match self.inode.lookup(name) {
            Err(Errno::EMFILE | Errno::ENFILE) => {
                // The Gofer holds as many files as it may: let go of some.
                self.sb.shrink(4096);
                self.inode.lookup(name)
            }
            r => r,
        };
        match found {
            Ok(inode) => {
                if let Some(d) = old {
                    if Arc::ptr_eq(&d.inode, &inode) {
                        return Ok(Some(d));
                    }
                    if !self.is_volatile() {
                        d.deleted.store(true, Ordering::Release);
                    }
                }
                self.insert(c, name, inode).map(Some)
            }
            Err(Errno::ENOENT) => {
                if let Some(d) = old {
                    d.deleted.store(true, Ordering::Release);
                }
                self.insert_missing(c, name);
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Makes the dentry of a name that was found or made.
    pub(super) fn insert(
        self: &Arc<Self>,
        c: &mut Children,
        name: &[u8],
        inode: Arc<dyn Inode>,
    ) -> Result<Arc<Dentry>> {
        let name: Arc<[u8]> = name.into();
        let d = Dentry::make(inode, &self.sb, Some(self.clone()), name.clone())?;
        if self.is_volatile() {
            if c.map.len() > 64 && c.map.len().is_power_of_two() {
                c.map.retain(|_, v| !matches!(v, Child::Used(w) if w.strong_count() == 0));
            }
            c.put(name, Child::Used(Arc::downgrade(&d)), &self.sb);
        } else {
            c.put(name, Child::Here(d.clone()), &self.sb);
            self.sb.note(&d);
        }
        Ok(d)
    }

    /// A dentry in no directory (`O_TMPFILE`), which shows as deleted.
    pub fn nameless(self: &Arc<Self>, inode: Arc<dyn Inode>, name: &[u8]) -> Result<Arc<Dentry>> {
        let d = Dentry::make(inode, &self.sb, Some(self.clone()), name.into())?;
        d.deleted.store(true, Ordering::Release);
        Ok(d)
    }

    pub(super) fn insert_missing(self: &Arc<Self>, c: &mut Children, name: &[u8]) {
        if self.is_volatile() {
            c.remove(name, &self.sb);
            return;
        }
        if c.negative >= NEGATIVE_MAX {
            self.forget_missing(c);
        }
        c.put(name.into(), Child::Missing, &self.sb);
        if !c.listed {
            c.listed = true;
            self.sb.forgetful.lock().push_back(Arc::downgrade(self));
        }
        if self.sb.negative.load(Ordering::Relaxed) > NEGATIVE_ALL {
            self.sb.forget_missing();
        }
    }

    fn forget_missing(&self, c: &mut Children) {
        c.map.retain(|_, v| !matches!(v, Child::Missing));
        if c.map.capacity() > 64 && c.map.len() * 8 < c.map.capacity() {
            c.map.shrink_to_fit();
        }
        self.sb.negative.fetch_sub(std::mem::take(&mut c.negative), Ordering::Relaxed);
    }

    /// After `unlink`/`rmdir`: the name is gone; the dentry lives on for those who have it.
    pub(super) fn removed(self: &Arc<Self>, c: &mut Children, name: &[u8], child: &Dentry) {
        child.deleted.store(true, Ordering::Release);
        self.insert_missing(c, name);
    }

    /// After `rename`: the dentry has a new place.
    pub(super) fn moved(self: &Arc<Self>, to: &Arc<Dentry>, to_children: &mut Children, name: &[u8]) {
        let name: Arc<[u8]> = name.into();
        *self.place.write() = Place { parent: Some(to.clone()), name: name.clone() };
        let child = if to.is_volatile() { Child::Used(Arc::downgrade(self)) } else { Child::Here(self.clone()) };
        to_children.put(name, child, &self.sb);
    }

    /// Keeps the dentry in its parent's map for good, because something is mounted on it.
    pub(super) fn pin(self: &Arc<Self>) {
        let mut d = self.clone();
        while let Some(p) = d.parent() {
            let mut c = p.children.write();
            if !p.is_volatile() {
                break;
            }
            c.put(d.name(), Child::Here(d.clone()), &p.sb);
            drop(c);
            d = p;
        }
    }

    /// Whether `self` is `other` or below it.
    pub fn is_within(self: &Arc<Self>, other: &Arc<Dentry>) -> Result<bool> {
        let mut d = self.clone();
        let mut rounds = Rounds::new();
        loop {
            rounds.step().map_err(later)?;
            if Arc::ptr_eq(&d, other) {
                return Ok(true);
            }
            match d.parent() {
                Some(p) => d = p,
                None => return Ok(false),
            }
        }
    }

    pub(super) fn lock(&self) -> RwLockWriteGuard<'_, Children> {
        self.children.write()
    }

    /// Locks two directories (or one). Either may be above the other, so neither is waited for with the other one locked.
    pub(super) fn lock_both<'a>(
        first: &'a Dentry,
        second: Option<&'a Arc<Dentry>>,
    ) -> (RwLockWriteGuard<'a, Children>, Option<RwLockWriteGuard<'a, Children>>) {
        let Some(second) = second else { return (first.lock(), None) };
        loop {
            let a = first.lock();
            if let Some(b) = second.children.try_write() {
                return (a, Some(b));
            }
            drop(a);
            let b = second.lock();
            if let Some(a) = first.children.try_write() {
                return (a, Some(b));
            }
        }
    }

    /// Takes the dentry out of the cache if nobody but the cache and the caller has it.
    fn try_forget(self: &Arc<Self>) -> bool {
        let Some(parent) = self.parent() else { return false };
        let Some(mut c) = parent.children.try_write() else { return false };
        // The map's reference and the caller's; nobody can get another one from the map while it is locked.
        if Arc::strong_count(self) != 2 || self.mounted.load(Ordering::Relaxed) != 0 {
            return false;
        }
        if !self.children.try_read().is_some_and(|k| k.map.values().all(|v| matches!(v, Child::Missing))) {
            return false;
        }
        let name = self.name();
        if matches!(c.map.get(&name), Some(Child::Here(d)) if Arc::ptr_eq(d, self)) {
            c.remove(&name, &parent.sb);
            return true;
        }
        false
    }

    /// Forgets everything below: the file system has no mount any more.
    pub(super) fn clear(self: &Arc<Self>) {
        let mut todo = vec![self.clone()];
        let mut rounds = Rounds::new();
        while let Some(d) = todo.pop() {
            let mut c = d.children.write();
            for (_, child) in c.map.drain() {
                rounds.next();
                if let Child::Here(k) = child {
                    todo.push(k);
                }
            }
            d.sb.negative.fetch_sub(std::mem::take(&mut c.negative), Ordering::Relaxed);
        }
    }
}

impl Children {
    fn put(&mut self, name: Arc<[u8]>, child: Child, sb: &SuperBlock) {
        let missing = matches!(child, Child::Missing);
        let was_missing = matches!(self.map.insert(name, child), Some(Child::Missing));
        if missing && !was_missing {
            self.negative += 1;
            sb.negative.fetch_add(1, Ordering::Relaxed);
        } else if was_missing && !missing {
            self.known(sb);
        }
    }
    pub(super) fn remove(&mut self, name: &[u8], sb: &SuperBlock) {
        if let Some(Child::Missing) = self.map.remove(name) {
            self.known(sb);
        }
    }
    /// A name is not known to be missing any more.
    fn known(&mut self, sb: &SuperBlock) {
        self.negative -= 1;
        sb.negative.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Dentry {
    /// Lets go of the parents one by one: a guest can nest directories deeper than our stack is.
    fn drop(&mut self) {
        self.sb.negative.fetch_sub(self.children.get_mut().negative, Ordering::Relaxed);
        let mut up = self.place.get_mut().parent.take();
        while let Some(p) = up {
            up = Arc::into_inner(p).and_then(|mut d| d.place.get_mut().parent.take());
        }
    }
}
