//! Mounts: which file system is where.
//!
//! A [`Mount`] shows a superblock's tree, or a part of it (bind mount), at a place of its parent mount. The table is the `children`
//! lists of the mounts; a walk looks at them only at dentries whose `mounted` count is not zero.

use super::dentry::{Dentry, SuperBlock};
use super::Path;
use crate::error::{Errno, Result};
use crate::fs::Inode;
use crate::kernel::ns::{Maker, NsCommon, NsKind};
use parking_lot::{Mutex, RwLock};
use platform::executor::Rounds;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

bitflags::bitflags! {
    /// Per-mount flags, with the values of `MS_*`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct MountFlags: u32 {
        const RDONLY = 1;
        const NOSUID = 2;
        const NODEV = 4;
        const NOEXEC = 8;
        const NOATIME = 1024;
        const NODIRATIME = 2048;
        const RELATIME = 1 << 21;
    }
}

/// Most mounts of a namespace (`fs.mount-max`).
const MAX_MOUNTS: usize = 100_000;

static NEXT_ID: AtomicU64 = AtomicU64::new(20);
// `Kernel::next_dev` counts from 1; these stay clear of it.
static NEXT_DEV: AtomicU64 = AtomicU64::new(0x1000);

/// A device number for a file system that is on no device.
pub fn anonymous_dev() -> u64 {
    libc::makedev(0, NEXT_DEV.fetch_add(1, Ordering::Relaxed) as u32)
}

pub struct Mount {
    pub id: u64,
    root: Arc<Dentry>,
    flags: AtomicU32,
    /// Where it is mounted; none for the root of the namespace and for what was unmounted.
    at: RwLock<Option<(Weak<Mount>, Arc<Dentry>)>>,
    children: RwLock<Below>,
}

/// The mounts on dentries of one mount.
#[derive(Default)]
struct Below {
    /// In the order in which they were put there.
    all: BTreeMap<u64, (Arc<Dentry>, Arc<Mount>)>,
    next: u64,
    /// Those on one dentry (by its address: it is kept alive by `all`), the topmost last.
    on: HashMap<usize, Vec<u64>>,
}

fn address(dentry: &Arc<Dentry>) -> usize {
    Arc::as_ptr(dentry) as usize
}

impl Below {
    fn top(&self, dentry: &Arc<Dentry>) -> Option<&Arc<Mount>> {
        self.all.get(self.on.get(&address(dentry))?.last()?).map(|(_, m)| m)
    }
    fn push(&mut self, dentry: Arc<Dentry>, mount: Arc<Mount>) {
        self.on.entry(address(&dentry)).or_default().push(self.next);
        self.all.insert(self.next, (dentry, mount));
        self.next += 1;
    }
    /// Whether it was there.
    fn remove(&mut self, dentry: &Arc<Dentry>, mount: &Arc<Mount>) -> bool {
        let Below { all, on, .. } = self;
        let Some(stack) = on.get_mut(&address(dentry)) else { return false };
        let is_it = |n: &u64| all.get(n).is_some_and(|(_, m)| Arc::ptr_eq(m, mount));
        let Some(i) = stack.iter().rposition(is_it) else { return false };
        let n = stack.remove(i);
        if stack.is_empty() {
            on.remove(&address(dentry));
        }
        all.remove(&n).is_some()
    }
    fn iter(&self) -> impl Iterator<Item = &(Arc<Dentry>, Arc<Mount>)> {
        self.all.values()
    }
    fn take(&mut self) -> Vec<(Arc<Dentry>, Arc<Mount>)> {
        self.on.clear();
        std::mem::take(&mut self.all).into_values().collect()
    }
}

impl Mount {
    pub fn new(root: Arc<Dentry>, flags: MountFlags) -> Arc<Mount> {
        root.sb().mounts.fetch_add(1, Ordering::Relaxed);
        Arc::new(Mount {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            root,
            flags: AtomicU32::new(flags.bits()),
            at: RwLock::new(None),
            children: RwLock::default(),
        })
    }
    /// A mount of a new file system.
    pub fn of(root: Arc<dyn Inode>, sb: Arc<SuperBlock>, flags: MountFlags) -> Result<Arc<Mount>> {
        Ok(Mount::new(Dentry::root(root, &sb)?, flags))
    }
    pub fn root(self: &Arc<Self>) -> Path {
        Path::new(self.clone(), self.root.clone())
    }
    pub fn root_dentry(&self) -> &Arc<Dentry> {
        &self.root
    }
    pub fn sb(&self) -> &Arc<SuperBlock> {
        self.root.sb()
    }
    pub fn flags(&self) -> MountFlags {
        MountFlags::from_bits_truncate(self.flags.load(Ordering::Relaxed))
    }
    pub fn set_flags(&self, flags: MountFlags) {
        self.flags.store(flags.bits(), Ordering::Relaxed);
    }
    pub fn read_only(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & MountFlags::RDONLY.bits() != 0
    }
    /// Where it is mounted.
    pub fn mountpoint(&self) -> Option<Path> {
        let at = self.at.read();
        let (parent, dentry) = at.as_ref()?;
        Some(Path::new(parent.upgrade()?, dentry.clone()))
    }
    /// The mount on top of `dentry` of this mount (the last one made there).
    pub(super) fn covering(&self, dentry: &Arc<Dentry>) -> Option<Arc<Mount>> {
        self.children.read().top(dentry).cloned()
    }
    pub fn children(&self) -> Vec<Arc<Mount>> {
        self.children.read().iter().map(|(_, m)| m.clone()).collect()
    }

    /// It and the mounts below it, parents first.
    fn all(self: &Arc<Self>) -> Vec<Arc<Mount>> {
        let mut out = vec![self.clone()];
        let mut i = 0;
        while let Some(m) = out.get(i) {
            let below = m.children();
            out.extend(below);
            i += 1;
        }
        out
    }

    /// Puts `self` at `place`.
    fn attach(self: &Arc<Self>, place: &Path) {
        place.dentry().pin();
        *self.at.write() = Some((Arc::downgrade(place.mount()), place.dentry().clone()));
        place.mount().children.write().push(place.dentry().clone(), self.clone());
        place.dentry().mounted.fetch_add(1, Ordering::Release);
    }

    fn detach(self: &Arc<Self>) -> Result<()> {
        let place = self.mountpoint().ok_or(Errno::EINVAL)?;
        if !place.mount().children.write().remove(place.dentry(), self) {
            return Err(Errno::EINVAL);
        }
        place.dentry().mounted.fetch_sub(1, Ordering::Release);
        *self.at.write() = None;
        Ok(())
    }
}

impl Drop for Mount {
    /// Lets go of what is below one by one: a guest can nest mounts deeper than our stack is.
    fn drop(&mut self) {
        let mut below = self.children.get_mut().take();
        while let Some((_, m)) = below.pop() {
            if let Some(mut m) = Arc::into_inner(m) {
                below.append(&mut m.children.get_mut().take());
            }
        }
        if self.root.sb().mounts.fetch_sub(1, Ordering::AcqRel) == 1 {
            let mut top = self.root.clone();
            while let Some(p) = top.parent() {
                top = p;
            }
            top.clear();
        }
    }
}

/// The mounts of a container.
pub struct MountNamespace {
    common: NsCommon,
    root: Arc<Mount>,
    /// How many there are below the root. Held while the table changes.
    change: Mutex<usize>,
}

/// `n` more mounts than there are.
fn room(there: usize, n: usize) -> Result<usize> {
    there.checked_add(n).filter(|all| *all < MAX_MOUNTS).ok_or(Errno::ENOSPC)
}

impl MountNamespace {
    pub fn new(root: Arc<Mount>) -> Arc<Self> {
        Arc::new(MountNamespace {
            common: NsCommon::first(NsKind::Mnt),
            change: Mutex::new(root.all().len() - 1),
            root,
        })
    }
    pub fn common(&self) -> &NsCommon {
        &self.common
    }
    /// A copy of all mounts, in which `moved` are the same places as before.
    pub fn copy(&self, _maker: &Maker, _moved: &mut [&mut Path]) -> Result<Arc<Self>> {
        Err(Errno::EINVAL)
    }
    pub fn root(&self) -> Path {
        self.root.root()
    }
    /// Mounts `mount` on `place` (which a walk has resolved, so it is the topmost mount there).
    pub fn mount(&self, mount: &Arc<Mount>, place: &Path) -> Result<()> {
        let mut count = self.change.lock();
        if mount.root.is_dir() != place.dentry().is_dir() {
            return Err(Errno::ENOTDIR);
        }
        if place.dentry().is_deleted() {
            return Err(Errno::ENOENT);
        }
        *count = room(*count, 1)?;
        mount.attach(place);
        Ok(())
    }
    /// A bind mount of `from` at `place`; with `recursive` also of the mounts below `from`.
    pub fn bind(&self, from: &Path, place: &Path, recursive: bool) -> Result<Arc<Mount>> {
        let mut count = self.change.lock();
        if from.dentry().is_dir() != place.dentry().is_dir() {
            return Err(Errno::ENOTDIR);
        }
        let below = if recursive { Self::below(from, place, room(*count, 1)?)? } else { Vec::new() };
        *count = room(*count, 1 + below.len())?;
        let m = Mount::new(from.dentry().clone(), from.mount().flags());
        // Parents come first, so that the copy of one is there when a child asks for it.
        let mut copies = vec![m.clone()];
        for (parent, at, of) in below {
            let copy = Mount::new(of.root.clone(), of.flags());
            if let Some(parent) = copies.get(parent) {
                copy.attach(&Path::new(parent.clone(), at));
            }
            copies.push(copy);
        }
        m.attach(place);
        Ok(m)
    }
    /// The mounts below `from`, each with its place and the number of its parent in this list (`from`'s own mount is 0, the
    /// first of the list 1); `ENOSPC` if they do not fit beside the `there` that there are.
    #[allow(clippy::type_complexity)]
    fn below(from: &Path, except: &Path, there: usize) -> Result<Vec<(usize, Arc<Dentry>, Arc<Mount>)>> {
        let mut out: Vec<(usize, Arc<Dentry>, Arc<Mount>)> = Vec::new();
        let mut next = 0;
        loop {
            let (of, root) = match next {
                0 => (from.mount().clone(), from.dentry().clone()),
                n => match out.get(n - 1) {
                    Some((_, _, m)) => (m.clone(), m.root.clone()),
                    None => return Ok(out),
                },
            };
            for (at, m) in of.children.read().iter() {
                // What is mounted at the place itself is not bound into itself.
                let itself = Arc::ptr_eq(at, except.dentry()) && Arc::ptr_eq(&of, except.mount());
                if !itself && at.is_within(&root)? {
                    room(there, out.len() + 1)?;
                    out.push((next, at.clone(), m.clone()));
                }
            }
            next += 1;
        }
    }
    /// umount2(2) of the mount whose root `at` is.
    pub fn umount(&self, at: &Path, detach: bool) -> Result<()> {
        let mut count = self.change.lock();
        let m = at.mount();
        if !Arc::ptr_eq(&m.root, at.dentry()) || m.mountpoint().is_none() {
            return Err(Errno::EINVAL);
        }
        if !detach {
            if !m.children.read().all.is_empty() {
                return Err(Errno::EBUSY);
            }
            // The parent's list, and the caller's path; anyone else uses it.
            if Arc::strong_count(m) > 2 {
                return Err(Errno::EBUSY);
            }
        }
        let gone = m.all();
        m.detach()?;
        // Each by itself: who is still in one of them keeps that one alone, and all of them count no longer.
        let mut rounds = Rounds::new();
        for m in &gone {
            rounds.next();
            for (at, child) in m.children.write().take() {
                at.mounted.fetch_sub(1, Ordering::Release);
                *child.at.write() = None;
            }
        }
        *count = count.saturating_sub(gone.len());
        drop(count);
        Ok(())
    }
    /// Moves the mount whose root `from` is to `place`.
    pub fn move_mount(&self, from: &Path, place: &Path) -> Result<()> {
        let _g = self.change.lock();
        let m = from.mount();
        if !Arc::ptr_eq(&m.root, from.dentry()) || m.mountpoint().is_none() {
            return Err(Errno::EINVAL);
        }
        if m.root.is_dir() != place.dentry().is_dir() {
            return Err(Errno::ENOTDIR);
        }
        let mut up = Some(place.clone());
        while let Some(p) = up {
            if Arc::ptr_eq(p.mount(), m) {
                return Err(Errno::ELOOP);
            }
            up = p.mount().mountpoint();
        }
        m.detach()?;
        m.attach(place);
        Ok(())
    }
    /// All mounts, parents before children, in the order they were made.
    pub fn list(&self) -> Vec<Arc<Mount>> {
        let mut out = self.root.all();
        out.sort_by_key(|m| m.id);
        out
    }
}
