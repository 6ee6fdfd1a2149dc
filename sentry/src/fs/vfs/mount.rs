//! Mounts: which file system is where.
//!
//! A [`Mount`] shows a superblock's tree, or a part of it (bind mount), at a place of its parent mount. The table is
//! the `children` lists of the mounts; a walk looks at them only at dentries whose `mounted` count is not zero. What
//! changes the table is in [`super::mount_ns`]; [`super::propagation`] tells which mounts pass changes on.

use super::dentry::{Dentry, SuperBlock};
use super::propagation::Sharing;
use super::Path;
use crate::error::{Errno, Result};
use crate::fs::Inode;
use crate::kernel::user_ns::UserNs;
use parking_lot::{Mutex, RwLock};
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
        const NOSYMFOLLOW = 256;
        const NOATIME = 1024;
        const NODIRATIME = 2048;
        const RELATIME = 1 << 21;
    }

    /// What a namespace with fewer privileges may not undo (mount_namespaces(7), "Restrictions on mount namespaces").
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct MountLocks: u32 {
        const RDONLY = 1;
        const NOSUID = 2;
        const NODEV = 4;
        const NOEXEC = 8;
        /// How times of access are kept.
        const ATIME = 16;
        /// The mount stays with the one that it is on.
        const PLACE = 32;
    }
}

impl MountFlags {
    pub const ATIME: MountFlags = MountFlags::NOATIME.union(MountFlags::NODIRATIME).union(MountFlags::RELATIME);

    /// The locks that keep what is set.
    fn locks(self) -> MountLocks {
        let mut locks = MountLocks::ATIME;
        for (flag, lock) in LOCKED_FLAGS {
            locks.set(lock, self.contains(flag));
        }
        locks
    }
}

const LOCKED_FLAGS: [(MountFlags, MountLocks); 4] = [
    (MountFlags::RDONLY, MountLocks::RDONLY),
    (MountFlags::NOSUID, MountLocks::NOSUID),
    (MountFlags::NODEV, MountLocks::NODEV),
    (MountFlags::NOEXEC, MountLocks::NOEXEC),
];

static NEXT_ID: AtomicU64 = AtomicU64::new(20);
// `Kernel::next_dev` counts from 1; these stay clear of it.
static NEXT_DEV: AtomicU64 = AtomicU64::new(0x1000);

/// A device number for a file system that is on no device.
pub fn anonymous_dev() -> u64 {
    libc::makedev(0, NEXT_DEV.fetch_add(1, Ordering::Relaxed) as u32)
}

/// The namespace, or the detached tree, that a mount is in.
#[derive(Clone)]
pub struct Home {
    pub id: u64,
    pub owner: Arc<UserNs>,
    /// A detached tree (open_tree(2), fsmount(2)).
    pub detached: bool,
}

pub struct Mount {
    pub id: u64,
    root: Arc<Dentry>,
    /// The root is not that of the file system.
    partial: bool,
    flags: AtomicU32,
    locks: AtomicU32,
    /// Where it is mounted; none for the root of the namespace and for what was unmounted.
    at: RwLock<Option<(Weak<Mount>, Arc<Dentry>)>>,
    children: RwLock<Below>,
    /// None: it was unmounted, or is not mounted yet.
    home: RwLock<Option<Home>>,
    /// With whom it shares changes. Changed under the table's lock.
    pub(super) sharing: Mutex<Sharing>,
    /// `MNT_EXPIRE` was asked for once.
    pub(super) expiring: std::sync::atomic::AtomicBool,
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
    /// What was there.
    fn remove(&mut self, dentry: &Arc<Dentry>, mount: &Arc<Mount>) -> Option<Arc<Mount>> {
        let Below { all, on, .. } = self;
        let stack = on.get_mut(&address(dentry))?;
        let is_it = |n: &u64| all.get(n).is_some_and(|(_, m)| Arc::ptr_eq(m, mount));
        let i = stack.iter().rposition(is_it)?;
        let n = stack.remove(i);
        if stack.is_empty() {
            on.remove(&address(dentry));
        }
        all.remove(&n).map(|(_, m)| m)
    }
    fn take(&mut self) -> Vec<(Arc<Dentry>, Arc<Mount>)> {
        self.on.clear();
        std::mem::take(&mut self.all).into_values().collect()
    }
}

/// The mounts on each dentry, in whatever namespace, by the dentry's address: a mountpoint lives as long as what is
/// mounted on it.
static MOUNTPOINTS: Mutex<BTreeMap<usize, BTreeMap<u64, Weak<Mount>>>> = Mutex::new(BTreeMap::new());

/// The mount `id` is not on `dentry` any more.
fn uncover(dentry: &Arc<Dentry>, id: u64) {
    let mut all = MOUNTPOINTS.lock();
    if let Some(on) = all.get_mut(&address(dentry)) {
        on.remove(&id);
        if on.is_empty() {
            all.remove(&address(dentry));
        }
    }
    drop(all);
    dentry.mounted.fetch_sub(1, Ordering::Release);
}

/// What is mounted on `dentry`, in all namespaces.
pub(super) fn on_dentry(dentry: &Arc<Dentry>) -> Vec<Arc<Mount>> {
    // Dropped with no lock held.
    let found = MOUNTPOINTS.lock().get(&address(dentry)).map(|on| on.values().cloned().collect::<Vec<_>>());
    found.unwrap_or_default().iter().filter_map(Weak::upgrade).collect()
}

impl Mount {
    pub fn new(root: Arc<Dentry>, flags: MountFlags) -> Arc<Mount> {
        root.sb().mounts.fetch_add(1, Ordering::Relaxed);
        Arc::new(Mount {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            partial: root.parent().is_some(),
            root,
            flags: AtomicU32::new(flags.bits()),
            locks: AtomicU32::new(0),
            at: RwLock::new(None),
            children: RwLock::default(),
            home: RwLock::new(None),
            sharing: Mutex::default(),
            expiring: Default::default(),
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
    /// Whether it shows `dentry`: a directory may have been moved out of the part of the file system that it shows.
    pub(super) fn shows(&self, dentry: &Arc<Dentry>) -> Result<bool> {
        Ok(!self.partial || dentry.is_within(&self.root)?)
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
    pub fn locks(&self) -> MountLocks {
        MountLocks::from_bits_truncate(self.locks.load(Ordering::Relaxed))
    }
    pub fn set_locks(&self, locks: MountLocks) {
        self.locks.store(locks.bits(), Ordering::Relaxed);
    }
    /// A namespace with fewer privileges has it: it stays as it is and (unless it is the topmost that the namespace
    /// got) where it is.
    pub(super) fn lock_down(&self, place: bool) {
        let mut locks = self.locks() | self.flags().locks();
        locks.set(MountLocks::PLACE, place);
        self.set_locks(locks);
    }
    /// Whether its locks allow these flags.
    pub fn may_become(&self, flags: MountFlags) -> bool {
        let locks = self.locks();
        let kept = LOCKED_FLAGS.iter().all(|(f, l)| !locks.contains(*l) || flags.contains(*f));
        kept && (!locks.contains(MountLocks::ATIME) || flags & MountFlags::ATIME == self.flags() & MountFlags::ATIME)
    }
    pub fn read_only(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & MountFlags::RDONLY.bits() != 0 || self.sb().read_only()
    }
    /// `MNT_EXPIRE`: whether it was asked for before, with no use since.
    pub fn mark_expiring(&self) -> bool {
        self.expiring.swap(true, Ordering::Relaxed)
    }
    pub fn home(&self) -> Option<Home> {
        self.home.read().clone()
    }
    pub(super) fn set_home(&self, home: Option<Home>) {
        *self.home.write() = home;
    }
    /// It is in the namespace, or the detached tree, with this id.
    pub fn lives_in(&self, id: u64) -> bool {
        self.home.read().as_ref().is_some_and(|h| h.id == id)
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
        self.children.read().all.values().map(|(_, m)| m.clone()).collect()
    }
    /// The mounts on it with their places.
    pub(super) fn children_at(&self) -> Vec<(Arc<Dentry>, Arc<Mount>)> {
        self.children.read().all.values().cloned().collect()
    }
    pub(super) fn has_children(&self) -> bool {
        !self.children.read().all.is_empty()
    }

    /// It and the mounts below it, parents first.
    pub(super) fn all(self: &Arc<Self>) -> Vec<Arc<Mount>> {
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
    pub(super) fn attach(self: &Arc<Self>, place: &Path) {
        place.dentry().pin();
        *self.at.write() = Some((Arc::downgrade(place.mount()), place.dentry().clone()));
        place.mount().children.write().push(place.dentry().clone(), self.clone());
        MOUNTPOINTS.lock().entry(address(place.dentry())).or_default().insert(self.id, Arc::downgrade(self));
        place.dentry().mounted.fetch_add(1, Ordering::Release);
    }

    pub(super) fn detach(self: &Arc<Self>) -> Result<()> {
        let place = self.mountpoint().ok_or(Errno::EINVAL)?;
        // Dropped with no lock held.
        let held = place.mount().children.write().remove(place.dentry(), self).ok_or(Errno::EINVAL)?;
        uncover(place.dentry(), self.id);
        *self.at.write() = None;
        drop(held);
        Ok(())
    }
}

impl Drop for Mount {
    /// Lets go of what is below one by one: a guest can nest mounts deeper than our stack is.
    fn drop(&mut self) {
        self.sharing.get_mut().leave_all(self.id);
        let mut below = self.children.get_mut().take();
        while let Some((at, m)) = below.pop() {
            uncover(&at, m.id);
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
