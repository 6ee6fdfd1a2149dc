//! tmpfs: files in memory (tmpfs(5)). Also the upper layer of the overlay, and the files of `memfd_create`.
//!
//! An inode's mode, owner and link count are atomics, so that the checks of a path walk take no lock; its content is in
//! [`data`]. Directory entries are kept in creation order under a number that never changes: the directory offset. All
//! memory counts against the limit of the file system (`ENOSPC`).

pub mod data;
pub mod file;
mod mapped;
mod pages;
#[cfg(test)]
mod tests;

use super::acl::{self, Acl};
use super::vfs::dentry::NameMap;
use super::vfs::{anonymous_dev, Mount, MountFlags, SuperBlock};
use super::*;
use crate::error::{Errno, Result};
use data::Data;
use parking_lot::{Mutex, RwLock};
use platform::budget::{of_heap, Budget};
use platform::executor::Rounds;
use std::any::Any;
use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicU8, Ordering};
use std::sync::{Arc, LazyLock, Weak};

pub const TMPFS_MAGIC: u64 = 0x0102_1994;
pub const PAGE: u64 = 4096;
/// The extended attribute with the capabilities of a program.
const FILE_CAPS: &[u8] = b"security.capability";
const HAS_ACL: u8 = 1;
const HAS_DEFAULT: u8 = 2;
/// Limit of the extended attributes of one inode, in bytes.
const XATTR_TOTAL: u64 = 128 * 1024;

/// A shorter symbolic link text is stored in the inode; a longer one is charged a page.
const SHORT_TEXT: usize = 128;
/// The heap budget of all tmpfs: inodes, names, attributes and contents. Contents go to memfds when it is used up.
static HEAP: LazyLock<Budget> = LazyLock::new(|| Budget::new(of_heap(u64::MAX, 20)));
/// Charge for an inode, or for an additional name of one.
const NODE_COST: u64 = 1024;

/// Charge for an extended attribute in addition to its name and value.
const XATTR_COST: usize = 64;

fn text_cost(text: &[u8]) -> u64 {
    if text.len() < SHORT_TEXT {
        0
    } else {
        PAGE
    }
}
fn xattr_cost(name: &[u8], value: &[u8]) -> u64 {
    (name.len() + value.len() + XATTR_COST) as u64
}

/// Reopens a memfd read-only.
pub type Reopen = dyn Fn(BorrowedFd<'_>) -> Result<OwnedFd> + Send + Sync;

/// The limits of a tmpfs, and the attributes of its root.
#[derive(Clone, Debug)]
pub struct TmpOptions {
    /// Limit of the content, in bytes.
    pub size: u64,
    pub inodes: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// First inode number.
    pub first_ino: u64,
}

impl Default for TmpOptions {
    /// Half of the host's memory, as on Linux.
    fn default() -> Self {
        let pages = nix::unistd::sysconf(nix::unistd::SysconfVar::_PHYS_PAGES).ok().flatten().unwrap_or(1 << 18);
        let pages = u64::try_from(pages).unwrap_or(1 << 18) / 2;
        TmpOptions { size: pages * PAGE, inodes: pages.min(4 << 20), mode: 0o1777, uid: 0, gid: 0, first_ino: 1 }
    }
}

/// The state that all inodes of one tmpfs share.
pub struct TmpFs {
    pub dev: u64,
    limit: u64,
    used: AtomicU64,
    inode_limit: u64,
    inodes: AtomicU64,
    next_ino: AtomicU64,
    reopen: Option<Arc<Reopen>>,
}

impl TmpFs {
    /// Creates a file system; returns its root directory.
    pub fn root(options: &TmpOptions, reopen: Option<Arc<Reopen>>) -> Arc<TmpInode> {
        let fs = Arc::new(TmpFs {
            dev: anonymous_dev(),
            limit: options.size,
            used: AtomicU64::new(0),
            inode_limit: options.inodes,
            inodes: AtomicU64::new(0),
            next_ino: AtomicU64::new(options.first_ino),
            reopen,
        });
        let ino = fs.next_ino.fetch_add(1, Ordering::Relaxed);
        let mode = libc::S_IFDIR | (options.mode & 0o7777);
        fs.inodes.fetch_add(1, Ordering::Relaxed);
        HEAP.add_anyway(NODE_COST);
        TmpInode::make(&fs, ino, mode, options.uid, options.gid, 0, Body::Dir(RwLock::default()))
    }

    /// Mounts a new tmpfs.
    pub fn mount(options: &TmpOptions, flags: MountFlags, reopen: Option<Arc<Reopen>>) -> Result<Arc<Mount>> {
        let shown = format!("size={}k,mode={:o}", options.size / 1024, options.mode);
        Mount::of(TmpFs::root(options, reopen), SuperBlock::new("tmpfs", b"tmpfs", shown), flags)
    }

    /// Changes the charge from `old` to `new` bytes.
    fn charge(&self, old: u64, new: u64) -> Result<()> {
        if new <= old {
            self.used.fetch_sub(old - new, Ordering::Relaxed);
            return Ok(());
        }
        let more = new - old;
        if self.used.fetch_add(more, Ordering::Relaxed).saturating_add(more) > self.limit {
            self.used.fetch_sub(more, Ordering::Relaxed);
            return Err(Errno::ENOSPC);
        }
        Ok(())
    }
    /// Like `charge`, for heap memory other than content.
    fn charge_heap(&self, old: u64, new: u64) -> Result<()> {
        self.charge(old, new)?;
        if new <= old {
            HEAP.give_back(old - new);
        } else if !HEAP.add(new - old) {
            self.recharge(new, old);
            return Err(Errno::ENOSPC);
        }
        Ok(())
    }
    fn recharge_heap(&self, old: u64) {
        self.recharge(old, 0);
        HEAP.give_back(old);
    }
    /// Charges one more inode, or an additional name.
    fn count_node(&self) -> Result<()> {
        if self.inodes.load(Ordering::Relaxed) >= self.inode_limit || !HEAP.add(NODE_COST) {
            return Err(Errno::ENOSPC);
        }
        self.inodes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn discount_nodes(&self, n: u64) {
        self.inodes.fetch_sub(n, Ordering::Relaxed);
        HEAP.give_back(n * NODE_COST);
    }
    /// Like `charge`, after the fact: cannot fail.
    fn recharge(&self, old: u64, new: u64) {
        self.used.fetch_add(new.wrapping_sub(old), Ordering::Relaxed);
    }
    fn room(&self) -> u64 {
        self.limit.saturating_sub(self.used.load(Ordering::Relaxed))
    }

    fn statfs(&self) -> StatFs {
        let free = self.room() / PAGE;
        StatFs {
            kind: TMPFS_MAGIC,
            bsize: PAGE,
            blocks: self.limit / PAGE,
            bfree: free,
            bavail: free,
            files: self.inode_limit,
            ffree: self.inode_limit.saturating_sub(self.inodes.load(Ordering::Relaxed)),
            namelen: 255,
            ..StatFs::default()
        }
    }
}

#[derive(Clone, Copy)]
struct Times {
    atime: Timespec,
    mtime: Timespec,
    ctime: Timespec,
    btime: Timespec,
}

/// Offset of the first entry after `.` and `..`.
const FIRST: u64 = 2;

/// Growing a larger table takes milliseconds.
const MANY_NAMES: usize = 1 << 16;

struct Dir {
    entries: BTreeMap<u64, (Arc<[u8]>, Arc<TmpInode>)>,
    names: NameMap<u64>,
    next: u64,
}

impl Default for Dir {
    fn default() -> Self {
        Dir { entries: BTreeMap::new(), names: NameMap::default(), next: FIRST }
    }
}

impl Dir {
    fn get(&self, name: &[u8]) -> Option<&Arc<TmpInode>> {
        self.names.get(name).and_then(|c| self.entries.get(c)).map(|(_, i)| i)
    }
    fn put(&mut self, name: &[u8], inode: Arc<TmpInode>) -> Option<Arc<TmpInode>> {
        if let Some(c) = self.names.get(name) {
            if let Some(e) = self.entries.get_mut(c) {
                return Some(std::mem::replace(&mut e.1, inode));
            }
        }
        let (len, room) = (self.names.len(), self.names.capacity());
        if len == room && len > MANY_NAMES {
            // Growing rehashes every name.
            platform::executor::aside(|| self.names.reserve(len));
        }
        let name: Arc<[u8]> = name.into();
        self.names.insert(name.clone(), self.next);
        self.entries.insert(self.next, (name, inode));
        self.next += 1;
        None
    }
    /// Moves all entries out, of which there may be millions.
    fn clear(&mut self, into: &mut Vec<Arc<TmpInode>>, rounds: &mut Rounds) {
        for name in std::mem::take(&mut self.names) {
            rounds.next();
            drop(name);
        }
        for (_, inode) in std::mem::take(&mut self.entries).into_values() {
            rounds.next();
            into.push(inode);
        }
    }
    fn take(&mut self, name: &[u8]) -> Option<Arc<TmpInode>> {
        let c = self.names.remove(name)?;
        self.entries.remove(&c).map(|(_, i)| i)
    }
}

enum Body {
    File(RwLock<Data>),
    Dir(RwLock<Dir>),
    Symlink(Box<[u8]>),
    /// Device, FIFO, socket.
    Other,
}

pub struct TmpInode {
    me: Weak<TmpInode>,
    fs: Arc<TmpFs>,
    ino: u64,
    mode: AtomicU32,
    uid: AtomicU32,
    gid: AtomicU32,
    nlink: AtomicU32,
    /// Names added by link(2): each is charged like an inode.
    links: AtomicU32,
    rdev: u64,
    times: Mutex<Times>,
    body: Body,
    xattrs: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
    /// `xattrs` may hold file capabilities; changes under the lock of `xattrs`.
    caps: AtomicBool,
    /// The access control lists in `xattrs` ([`HAS_ACL`], [`HAS_DEFAULT`]); changes under the lock of `xattrs`.
    acls: AtomicU8,
    /// The decoded access control list, while in use; changes under the lock of `xattrs`.
    decoded: Mutex<Weak<Acl>>,
    extra: InodeExtra,
    /// `F_SEAL_*` of a memfd; files in a directory tree have `F_SEAL_SEAL`.
    seals: AtomicU32,
    /// The descriptor that the shared writable mappings hold.
    mapped_writable: Mutex<Weak<OwnedFd>>,
    read_only: Mutex<Option<Arc<OwnedFd>>>,
    /// [`mapped`] has recorded it.
    was_mapped: AtomicBool,
    /// Overlay: the lower directory whose entries are merged in; and the overlay inode of this one.
    pub below: Mutex<Option<Arc<dyn Inode>>>,
    pub owner: Mutex<Option<Weak<super::overlay::OvlInode>>>,
    /// Set for a directory that an overlay may change.
    in_overlay: AtomicBool,
    /// Overlay: restrictions of the mount that this was copied from ([`Inode::limits`]).
    limits: AtomicU32,
}

impl TmpInode {
    /// Creates an inode that the caller has charged.
    fn make(fs: &Arc<TmpFs>, ino: u64, mode: u32, uid: u32, gid: u32, rdev: u64, body: Body) -> Arc<TmpInode> {
        let now = Timespec::now();
        let nlink = if matches!(body, Body::Dir(_)) { 2 } else { 1 };
        Arc::new_cyclic(|me| TmpInode {
            me: me.clone(),
            fs: fs.clone(),
            ino,
            mode: AtomicU32::new(mode),
            uid: AtomicU32::new(uid),
            gid: AtomicU32::new(gid),
            nlink: AtomicU32::new(nlink),
            links: AtomicU32::new(0),
            rdev,
            times: Mutex::new(Times { atime: now, mtime: now, ctime: now, btime: now }),
            body,
            xattrs: Mutex::default(),
            caps: AtomicBool::new(false),
            acls: AtomicU8::new(0),
            decoded: Mutex::default(),
            extra: InodeExtra::default(),
            seals: AtomicU32::new(libc::F_SEAL_SEAL as u32),
            mapped_writable: Mutex::default(),
            read_only: Mutex::default(),
            was_mapped: AtomicBool::new(false),
            below: Mutex::new(None),
            owner: Mutex::new(None),
            in_overlay: AtomicBool::new(false),
            limits: AtomicU32::new(0),
        })
    }

    /// Creates a node without a name. `ino`: its inode number, instead of the next free one.
    pub fn node(&self, node: &NewNode<'_>, mode: u32, uid: u32, gid: u32, ino: Option<u64>) -> Result<Arc<TmpInode>> {
        let fs = &self.fs;
        let (kind, rdev, body) = match node {
            NewNode::File => (libc::S_IFREG, 0, Body::File(RwLock::default())),
            NewNode::Dir => (libc::S_IFDIR, 0, Body::Dir(RwLock::default())),
            NewNode::Symlink(t) => (libc::S_IFLNK, 0, Body::Symlink((*t).into())),
            NewNode::Fifo => (libc::S_IFIFO, 0, Body::Other),
            NewNode::Socket => (libc::S_IFSOCK, 0, Body::Other),
            NewNode::Char(d) => (libc::S_IFCHR, *d, Body::Other),
            NewNode::Block(d) => (libc::S_IFBLK, *d, Body::Other),
        };
        fs.count_node()?;
        if let Body::Symlink(t) = &body {
            fs.charge_heap(0, text_cost(t)).inspect_err(|_| fs.discount_nodes(1))?;
        }
        let mode = if kind == libc::S_IFLNK { 0o777 } else { mode & 0o7777 };
        let ino = ino.unwrap_or_else(|| fs.next_ino.fetch_add(1, Ordering::Relaxed));
        Ok(TmpInode::make(fs, ino, kind | mode, uid, gid, rdev, body))
    }

    pub fn fs(&self) -> &Arc<TmpFs> {
        &self.fs
    }
    /// Marks this directory as changeable by an overlay: the dentry cache must not rely on its entries.
    pub fn used_by_overlay(&self) {
        if self.is_dir() && !self.in_overlay.swap(true, Ordering::Relaxed) {
            super::vfs::dentry::something_is_volatile();
        }
    }
    pub fn handle(&self) -> Result<Arc<TmpInode>> {
        self.arc()
    }
    fn arc(&self) -> Result<Arc<TmpInode>> {
        self.me.upgrade().ok_or(Errno::ESTALE)
    }
    pub fn ino(&self) -> u64 {
        self.ino
    }
    pub fn mode(&self) -> u32 {
        self.mode.load(Ordering::Relaxed)
    }
    pub fn kind(&self) -> u32 {
        self.mode() & libc::S_IFMT
    }
    pub fn is_dir(&self) -> bool {
        matches!(self.body, Body::Dir(_))
    }
    /// Overlay: adds restrictions.
    pub fn limit(&self, limits: super::vfs::MountFlags) {
        self.limits.fetch_or(limits.bits(), Ordering::Relaxed);
    }
    /// Overlay: whether this marks a removed lower name. A lower device may have the number 0:0 too, but a whiteout
    /// never has an overlay inode.
    pub fn is_whiteout(&self) -> bool {
        self.rdev == 0 && self.kind() == libc::S_IFCHR && self.owner.lock().is_none()
    }

    fn dir(&self) -> Result<&RwLock<Dir>> {
        match &self.body {
            Body::Dir(d) => Ok(d),
            _ => Err(Errno::ENOTDIR),
        }
    }
    pub(super) fn data(&self) -> Result<&RwLock<Data>> {
        match &self.body {
            Body::File(d) => Ok(d),
            _ => Err(Errno::EINVAL),
        }
    }

    fn touch(&self, f: impl FnOnce(&mut Times, Timespec)) {
        let now = Timespec::now();
        f(&mut self.times.lock(), now);
    }
    /// Updates the times after the content or the entries changed.
    pub(super) fn modified(&self) {
        self.touch(|t, now| (t.mtime, t.ctime) = (now, now));
    }
    fn changed(&self) {
        self.touch(|t, now| t.ctime = now);
    }
    /// Updates atime after a read, by the rules of `relatime`.
    pub fn accessed(&self) {
        let mut t = self.times.lock();
        if t.atime <= t.mtime || t.atime <= t.ctime {
            t.atime = Timespec::now();
        }
    }

    pub fn get(&self, name: &[u8]) -> Option<Arc<TmpInode>> {
        self.dir().ok()?.read().get(name).cloned()
    }
    /// Adds an entry, or replaces the one of that name.
    pub fn put(&self, name: &[u8], inode: Arc<TmpInode>) -> Result<()> {
        let is_dir = inode.is_dir();
        let old = self.dir()?.write().put(name, inode);
        if let Some(old) = old {
            self.dropped(&old);
        }
        if is_dir {
            self.nlink.fetch_add(1, Ordering::Relaxed);
        }
        self.modified();
        Ok(())
    }
    /// Like `put`, for a copy-up: the name is visible already, so no time changes.
    pub fn put_quietly(&self, name: &[u8], inode: Arc<TmpInode>) -> Result<()> {
        if inode.is_dir() {
            self.nlink.fetch_add(1, Ordering::Relaxed);
        }
        self.dir()?.write().put(name, inode);
        Ok(())
    }
    pub fn set_nlink(&self, n: u32) {
        self.nlink.store(n, Ordering::Relaxed);
    }
    /// Updates inode and link count after a name outside of this file system was removed.
    pub fn unlinked(&self) {
        // The link count of a lower layer's file may be wrong.
        let _ = self.nlink.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        self.changed();
    }
    /// A regular file without a name (`O_TMPFILE`).
    pub fn nameless_file(&self, mode: u32, uid: u32, gid: u32, linkable: bool) -> Result<Arc<TmpInode>> {
        self.dir()?;
        let i = self.node(&NewNode::File, mode, uid, gid, None)?;
        i.forget_name();
        if linkable {
            i.extra.get_or_insert(file::Linkable::default);
        }
        Ok(i)
    }
    /// Adds an entry for an existing node to this directory.
    pub fn link_node(&self, name: &[u8], t: &Arc<TmpInode>) -> Result<()> {
        // A file without names cannot be linked, except once after `O_TMPFILE`.
        let may = || t.extra.get::<file::Linkable>().is_some_and(|l| !l.0.swap(true, Ordering::Relaxed));
        if !Arc::ptr_eq(&t.fs, &self.fs) || (t.nlink() == 0 && !may()) {
            return Err(Errno::ENOENT);
        }
        let fs = &self.fs;
        if t.nlink() > 0 {
            fs.count_node()?;
            t.links.fetch_add(1, Ordering::Relaxed);
        }
        t.linked();
        self.put(name, t.clone())
    }
    /// Removes an entry.
    pub fn take(&self, name: &[u8]) -> Result<Arc<TmpInode>> {
        let old = self.dir()?.write().take(name).ok_or(Errno::ENOENT)?;
        self.dropped(&old);
        self.modified();
        Ok(old)
    }
    /// Updates the counts after an entry has left this directory.
    fn dropped(&self, old: &TmpInode) {
        if old.is_dir() {
            self.nlink.fetch_sub(1, Ordering::Relaxed);
            old.nlink.store(0, Ordering::Relaxed);
        } else {
            old.unlinked();
            if old.links.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
                old.fs.discount_nodes(1);
            }
        }
        old.changed();
    }
    /// Raises the link count for an additional name that was [`put`](Self::put).
    pub fn linked(&self) {
        self.nlink.fetch_add(1, Ordering::Relaxed);
        self.changed();
    }
    /// Marks a node as having no name.
    pub fn forget_name(&self) {
        self.nlink.store(0, Ordering::Relaxed);
    }
    pub fn nlink(&self) -> u32 {
        self.nlink.load(Ordering::Relaxed)
    }
    pub fn is_empty_dir(&self) -> bool {
        self.dir().is_ok_and(|d| d.read().entries.is_empty())
    }
    /// Up to `max` entries at offsets `pos` and above: offset of the next entry, name, inode.
    pub fn entries(&self, pos: u64, max: usize) -> Vec<(u64, Arc<[u8]>, Arc<TmpInode>)> {
        let Ok(d) = self.dir() else { return Vec::new() };
        d.read().entries.range(pos.max(FIRST)..).take(max).map(|(c, (n, i))| (c + 1, n.clone(), i.clone())).collect()
    }
    /// Copies the times of another file.
    pub fn copy_times(&self, a: &Attr) {
        let mut t = self.times.lock();
        (t.atime, t.mtime, t.ctime) = (a.atime, a.mtime, a.ctime);
        if a.btime != Timespec::default() {
            t.btime = a.btime;
        }
    }
    pub fn rename_between(&self, name: &[u8], new_dir: &TmpInode, new_name: &[u8], flags: RenameFlags) -> Result<()> {
        let old = self.get(name).ok_or(Errno::ENOENT)?;
        let new = new_dir.get(new_name);
        if flags.contains(RenameFlags::EXCHANGE) {
            let new = new.ok_or(Errno::ENOENT)?;
            self.dir()?.write().put(name, new.clone());
            new_dir.dir()?.write().put(new_name, old.clone());
            if !std::ptr::eq(self, new_dir) && old.is_dir() != new.is_dir() {
                let (gain, lose) = if old.is_dir() { (new_dir, self) } else { (self, new_dir) };
                gain.nlink.fetch_add(1, Ordering::Relaxed);
                lose.nlink.fetch_sub(1, Ordering::Relaxed);
            }
            new.changed();
        } else {
            if let Some(n) = &new {
                if n.is_dir() && !n.is_empty_dir() {
                    return Err(Errno::ENOTEMPTY);
                }
            }
            let whiteout = if flags.contains(RenameFlags::WHITEOUT) {
                Some(self.node(&NewNode::Char(0), 0, 0, 0, None)?)
            } else {
                None
            };
            self.dir()?.write().take(name);
            if let Some(w) = whiteout {
                self.dir()?.write().put(name, w);
            }
            if let Some(n) = new_dir.dir()?.write().put(new_name, old.clone()) {
                new_dir.dropped(&n);
            }
            if old.is_dir() {
                self.nlink.fetch_sub(1, Ordering::Relaxed);
                new_dir.nlink.fetch_add(1, Ordering::Relaxed);
            }
        }
        old.changed();
        self.modified();
        if !std::ptr::eq(self, new_dir) {
            new_dir.modified();
        }
        Ok(())
    }
    fn list(&self, which: u8, name: &[u8]) -> Result<Option<Acl>> {
        if self.acls.load(Ordering::Acquire) & which == 0 {
            return Ok(None);
        }
        self.xattrs.lock().get(name).map_or(Ok(None), |v| Acl::parse_of_host(v))
    }
    /// Changes the permissions, and the access control list with them.
    fn set_mode(&self, mode: u32) {
        if self.acls.load(Ordering::Acquire) & HAS_ACL != 0 {
            if let Some(value) = self.xattrs.lock().get_mut(acl::ACCESS) {
                *self.decoded.lock() = Weak::new();
                if let Ok(Some(mut list)) = Acl::parse_of_host(value) {
                    list.chmod(mode);
                    *value = list.to_bytes();
                }
            }
        }
        self.mode.store(self.kind() | (mode & 0o7777), Ordering::Relaxed);
    }
    pub fn xattrs(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.xattrs.lock().iter().map(|(k, v)| (k.clone(), v.clone())).collect()
    }
}

fn which_list(name: &[u8]) -> u8 {
    match name {
        acl::ACCESS => HAS_ACL,
        acl::DEFAULT => HAS_DEFAULT,
        _ => 0,
    }
}

fn tmp(inode: &Arc<dyn Inode>) -> Result<&TmpInode> {
    inode.as_any().downcast_ref().ok_or(Errno::EXDEV)
}

impl Inode for TmpInode {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn volatile(&self) -> bool {
        self.in_overlay.load(Ordering::Relaxed)
    }
    fn perm(&self) -> Result<Perm> {
        Ok(Perm { mode: self.mode(), uid: self.uid.load(Ordering::Relaxed), gid: self.gid.load(Ordering::Relaxed) })
    }
    fn acl(&self) -> Result<Option<Arc<Acl>>> {
        if self.acls.load(Ordering::Acquire) & HAS_ACL == 0 {
            return Ok(None);
        }
        let xattrs = self.xattrs.lock();
        let mut decoded = self.decoded.lock();
        if let Some(list) = decoded.upgrade() {
            return Ok(Some(list));
        }
        let Some(value) = xattrs.get(acl::ACCESS) else { return Ok(None) };
        let Some(list) = Acl::parse_of_host(value)?.map(Arc::new) else { return Ok(None) };
        acl::keep(&list);
        *decoded = Arc::downgrade(&list);
        Ok(Some(list))
    }
    fn default_acl(&self) -> Result<Option<Acl>> {
        self.list(HAS_DEFAULT, acl::DEFAULT)
    }
    fn attr(&self) -> Result<Attr> {
        let (size, blocks) = match &self.body {
            Body::File(d) => {
                let d = d.read();
                (d.len(), d.blocks())
            }
            Body::Dir(d) => ((d.read().entries.len() as u64 + 2) * 20, 0),
            Body::Symlink(t) => (t.len() as u64, text_cost(t) / 512),
            Body::Other => (0, 0),
        };
        let t = *self.times.lock();
        Ok(Attr {
            dev: self.fs.dev,
            ino: self.ino,
            mode: self.mode(),
            nlink: self.nlink(),
            uid: self.uid.load(Ordering::Relaxed),
            gid: self.gid.load(Ordering::Relaxed),
            rdev: self.rdev,
            size,
            blksize: PAGE as u32,
            blocks,
            atime: t.atime,
            mtime: t.mtime,
            ctime: t.ctime,
            btime: t.btime,
        })
    }
    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        if let Some(size) = set.size {
            let seals = self.seals.load(Ordering::Relaxed) as i32;
            let mut d = self.data()?.write();
            let len = d.len();
            if (size < len && seals & libc::F_SEAL_SHRINK != 0) || (size > len && seals & libc::F_SEAL_GROW != 0) {
                return Err(Errno::EPERM);
            }
            d.set_len(&self.fs, size)?;
        }
        if let Some(m) = set.mode {
            self.set_mode(m);
        }
        if let Some(u) = set.uid {
            self.uid.store(u, Ordering::Relaxed);
        }
        if let Some(g) = set.gid {
            self.gid.store(g, Ordering::Relaxed);
        }
        self.touch(|t, now| {
            t.ctime = now;
            if set.size.is_some() {
                t.mtime = now;
            }
            if let Some(a) = set.atime {
                t.atime = a;
            }
            if let Some(m) = set.mtime {
                t.mtime = m;
            }
        });
        Ok(())
    }
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        match self.dir()?.read().get(name) {
            Some(i) => Ok(i.clone()),
            None => Err(Errno::ENOENT),
        }
    }
    fn create(&self, name: &[u8], node: NewNode<'_>, mode: u32, uid: u32, gid: u32) -> Result<Arc<dyn Inode>> {
        if self.dir()?.read().get(name).is_some() {
            return Err(Errno::EEXIST);
        }
        let i = self.node(&node, mode, uid, gid, None)?;
        self.put(name, i.clone())?;
        Ok(i)
    }
    fn tmpfile(&self, mode: u32, uid: u32, gid: u32, linkable: bool) -> Result<Arc<dyn Inode>> {
        Ok(self.nameless_file(mode, uid, gid, linkable)?)
    }
    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> Result<()> {
        self.link_node(name, &tmp(target)?.arc()?)
    }
    fn unlink(&self, name: &[u8], _child: &Arc<dyn Inode>) -> Result<()> {
        self.take(name).map(drop)
    }
    fn rmdir(&self, name: &[u8], child: &Arc<dyn Inode>) -> Result<()> {
        if !tmp(child)?.is_empty_dir() {
            return Err(Errno::ENOTEMPTY);
        }
        self.take(name).map(drop)
    }
    fn rename(&self, name: &[u8], _moved: &Arc<dyn Inode>, to: &RenameTarget<'_>, flags: RenameFlags) -> Result<()> {
        self.rename_between(name, tmp(to.dir)?, to.name, flags)
    }
    fn readlink(&self) -> Result<Vec<u8>> {
        match &self.body {
            Body::Symlink(t) => Ok(t.to_vec()),
            _ => Err(Errno::EINVAL),
        }
    }
    fn open(self: Arc<Self>, flags: i32) -> Result<Box<dyn FileOps>> {
        match &self.body {
            Body::File(_) => Ok(Box::new(file::TmpFile(self))),
            Body::Dir(_) => Ok(Box::new(DirFile(file::TmpDir(self)))),
            Body::Symlink(_) => Err(Errno::ELOOP),
            Body::Other if self.kind() == libc::S_IFCHR => {
                let task = crate::kernel::current::get().ok_or(Errno::ENXIO)?;
                super::dev::open_char(&task.kernel, self.rdev, flags)
            }
            Body::Other => Err(Errno::ENXIO),
        }
    }
    fn statfs(&self) -> Result<StatFs> {
        Ok(self.fs.statfs())
    }
    fn get_xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        self.xattrs.lock().get(name).cloned().ok_or(Errno::ENODATA)
    }
    fn set_xattr(&self, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        let mut x = self.xattrs.lock();
        let old = x.get(name);
        if old.is_some() && flags & libc::XATTR_CREATE != 0 {
            return Err(Errno::EEXIST);
        }
        if old.is_none() && flags & libc::XATTR_REPLACE != 0 {
            return Err(Errno::ENODATA);
        }
        let total: u64 = x.iter().map(|(k, v)| xattr_cost(k, v)).sum();
        if total + xattr_cost(name, value) > XATTR_TOTAL {
            return Err(Errno::ENOSPC);
        }
        self.fs.charge_heap(old.map_or(0, |v| xattr_cost(name, v)), xattr_cost(name, value))?;
        if name == FILE_CAPS {
            self.caps.store(true, Ordering::Relaxed);
        }
        *self.decoded.lock() = Weak::new();
        self.acls.fetch_or(which_list(name), Ordering::Release);
        x.insert(name.to_vec(), value.to_vec());
        drop(x);
        self.changed();
        Ok(())
    }
    fn list_xattr(&self) -> Result<Vec<Vec<u8>>> {
        Ok(self.xattrs.lock().keys().cloned().collect())
    }
    fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        let mut x = self.xattrs.lock();
        let old = x.remove(name).ok_or(Errno::ENODATA)?;
        self.fs.recharge_heap(xattr_cost(name, &old));
        *self.decoded.lock() = Weak::new();
        self.acls.fetch_and(!which_list(name), Ordering::Release);
        drop(x);
        self.changed();
        Ok(())
    }
    fn drop_caps(&self) {
        if self.caps.load(Ordering::Relaxed) {
            let mut x = self.xattrs.lock();
            self.caps.store(false, Ordering::Relaxed);
            let had = x.remove(FILE_CAPS);
            drop(x);
            if let Some(old) = had {
                self.fs.recharge_heap(xattr_cost(FILE_CAPS, &old));
                self.changed();
            }
        }
    }
    fn limits(&self) -> super::vfs::MountFlags {
        super::vfs::MountFlags::from_bits_truncate(self.limits.load(Ordering::Relaxed))
    }
    fn extra(&self) -> Option<&InodeExtra> {
        Some(&self.extra)
    }
}

impl Drop for TmpInode {
    /// Frees the tree below in a loop: a guest can nest directories deeper than the stack allows recursion.
    fn drop(&mut self) {
        self.fs.discount_nodes(1 + u64::from(*self.links.get_mut()));
        let attrs: u64 = self.xattrs.get_mut().iter().map(|(k, v)| xattr_cost(k, v)).sum();
        self.fs.recharge_heap(attrs);
        let (mut todo, mut rounds) = (Vec::new(), Rounds::new());
        match &mut self.body {
            Body::File(d) => d.get_mut().release(&self.fs),
            Body::Dir(d) => d.get_mut().clear(&mut todo, &mut rounds),
            Body::Symlink(t) => self.fs.recharge_heap(text_cost(t)),
            Body::Other => {}
        }
        while let Some(i) = todo.pop() {
            rounds.next();
            if let Some(mut i) = Arc::into_inner(i) {
                if let Body::Dir(d) = &mut i.body {
                    d.get_mut().clear(&mut todo, &mut rounds);
                }
            }
        }
    }
}
