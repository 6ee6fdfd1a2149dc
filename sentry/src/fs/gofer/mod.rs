//! Files of the host, accessed through the Gofer.
//!
//! An *exclusive* tree is changed only by this sandbox: names (the dentry cache), attributes and listings are cached,
//! and a repeated `stat` or `open` sends no request. In a *shared* tree every operation asks the Gofer.
//!
//! # How an exclusive tree saves requests
//! * A cold walk fetches all its names in one request ([`Inode::prefetch`]); the results wait in `ahead` for the
//!   lookups that follow.
//! * An inode needs no handle (a file that the Gofer holds open): the tree does not change, so an operation that needs
//!   the file can find it again by its path, in the same request. Only directories listed in several pages and objects
//!   used otherwise get a handle. The file found that way is verified: see `handles`.
//! * A listing with attributes answers the lookups of all its names, and of names that do not exist. It is fetched
//!   instead of single names once these have cost about as much ([`GoferInode::worth_listing`]), and at once while
//!   programs look up what they list.
//!
//! Content is read, written and mapped through descriptors that the Gofer donates. Opens of one file for the same
//! access share one, and a few hundred recently used ones are kept open. Cached listings, handles and descriptors are
//! bounded; the oldest are dropped first.
//!
//! Locks are leaves, each held for a few instructions. Only `fds` is held over a request, an open.

mod acl;
mod content;
mod file;
mod handles;
mod inode;
mod listing;
mod names;
mod share;

use super::vfs::dentry::NameMap;
use super::vfs::{anonymous_dev, Mount, MountFlags, SuperBlock};
use super::*;
use crate::error::{Errno, Result};
use acl::AclCache;
use content::{Content, Reading};
pub use file::{read_fd, write_fd};
use file::{GoferDir, GoferFile};
pub use inode::gofer;
use listing::Listing;
use parking_lot::{Mutex, RwLock};
use protocol::client::{Walk, WalkEnd};
use protocol::{
    Client, Detail, Handle, MknodKind, NewNode as Fresh, OpenFlags, SetTime, WalkFids, XattrMode, MAX_WALK,
};
use share::Share;
use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, Weak};

/// Recently used descriptors kept open.
const KEEP_OPEN: usize = 256;
/// Names that one directory caches for coming lookups, or as missing.
const AHEAD_MAX: usize = 4096;
/// Handles kept although the file could be found again by its path.
const HOLD_MAX: usize = 512;
/// Paths through a directory after which its handle is fetched.
const PASSED: u32 = 2;
/// Limit of the cached listings, in bytes.
const LISTED_MAX: usize = 32 << 20;
/// Largest number of entries whose attributes are fetched with the listing.
const FULL_MAX: usize = 16 * 1024;
/// Largest root directory (`st_size`) that is listed when attached.
const LISTED_FIRST: u64 = 4096;
/// How many listings are fetched with attributes after a lookup of a listed name.
const LOOKED_UP: u32 = 32;

/// One attached tree.
pub struct GoferFs {
    dev: u64,
    /// The number of files that the Gofer can hold open.
    most: u32,
    exclusive: bool,
    /// Inodes in use: two names of one file share one inode.
    nodes: Mutex<HashMap<Key, Weak<GoferInode>>>,
    /// Host devices of the inodes; the first is the root's.
    devs: Mutex<Vec<u64>>,
    recent: Mutex<VecDeque<Arc<OwnedFd>>>,
    /// Inodes whose handle may be released.
    held: Mutex<VecDeque<Weak<GoferInode>>>,
    listed: Mutex<Kept>,
    /// Cached contents.
    read: Mutex<Kept>,
    /// The hit rate of read-ahead.
    trust: Trust,
    /// The hit rate of listings fetched for subdirectories.
    trees: Trust,
    /// The last such listing that ended early: its directory, the entries so far, and the cookie to continue from.
    begun: Mutex<Option<(Weak<GoferInode>, Listing, u64)>>,
    /// Programs look up what they list: the number of listings still to fetch with attributes.
    looked_up: AtomicU32,
    /// The sandbox has changed something, so attributes in listings may be outdated.
    changed: AtomicBool,
    /// At least one inode has been lost.
    losses: AtomicBool,
}

/// Identity of a host file: device, inode number and birth time. Inode numbers alone are reused, and an inode here need
/// not hold its file. On file systems without birth times (zero) owner and mode must stay the same too.
type Key = (u64, u64, protocol::Time);

fn key(a: &protocol::Attr) -> Key {
    (a.dev, a.ino, a.btime)
}

/// The inodes that cache listings, or contents, oldest first.
#[derive(Default)]
struct Kept {
    inodes: VecDeque<Weak<GoferInode>>,
    bytes: usize,
}

/// Index of a donated descriptor by its access mode.
const RO: usize = 0;
const WO: usize = 1;
const RW: usize = 2;

pub struct GoferInode {
    me: Weak<GoferInode>,
    fs: Arc<GoferFs>,
    key: Key,
    kind: u32,
    /// Parent and name under which it was found, in an exclusive tree.
    origin: Option<(Arc<GoferInode>, Box<[u8]>)>,
    /// Always present if there is no origin.
    handle: Mutex<Option<Arc<Handle>>>,
    /// The charge for that handle.
    share: OnceLock<Share>,
    /// The handle must be kept: the origin does not lead here any more.
    pinned: AtomicBool,
    attr: RwLock<Attr>,
    acl: AclCache,
    /// Restrictions of its host mount, as [`MountFlags`].
    limits: AtomicU32,
    /// `attr` must be fetched again.
    stale: AtomicBool,
    /// The origin leads to another file now; this inode cannot be found by its path any more.
    lost: AtomicBool,
    target: OnceLock<Box<[u8]>>,
    fds: [Mutex<Weak<OwnedFd>>; 3],
    /// Children that a compound walk found.
    ahead: Mutex<NameMap<Option<Arc<GoferInode>>>>,
    listing: Mutex<Option<Arc<Listing>>>,
    /// Lookups in this directory that needed a request.
    misses: AtomicU32,
    /// The whole content of a small file, from read-ahead.
    content: Mutex<Option<Arc<Content>>>,
    /// The content has been used.
    used: AtomicBool,
    /// The state of read-ahead in this directory.
    reading: Mutex<Reading>,
    /// Paths that led through this directory.
    passed: AtomicU32,
    /// Subdirectories whose listings were fetched, those whose listings were used, and those whose files were read.
    listed_below: AtomicU32,
    used_below: AtomicU32,
    read_below: AtomicU32,
    /// Held while a descriptor's offset is in use.
    appending: Mutex<()>,
    extra: InodeExtra,
}

/// The cached answer for a name.
enum CachedName {
    Node(Arc<GoferInode>),
    Missing,
    Unknown,
}

fn limits(a: &protocol::Attr) -> MountFlags {
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::NOSUID, a.limits.contains(protocol::Limits::NOSUID));
    flags.set(MountFlags::NOEXEC, a.limits.contains(protocol::Limits::NOEXEC));
    flags
}

fn time(t: protocol::Time) -> Timespec {
    Timespec { sec: t.sec, nsec: t.nsec }
}

impl GoferFs {
    /// Attaches the tree that the launcher calls `name`; returns its root inode.
    pub fn attach(client: &Client, name: &str, exclusive: bool) -> Result<Arc<GoferInode>> {
        let fs = Arc::new(GoferFs {
            dev: anonymous_dev(),
            most: client.max_handles(),
            exclusive,
            nodes: Mutex::default(),
            devs: Mutex::default(),
            recent: Mutex::default(),
            held: Mutex::default(),
            listed: Mutex::default(),
            read: Mutex::default(),
            trust: Trust::new(8),
            trees: Trust::new(2),
            begun: Mutex::default(),
            looked_up: AtomicU32::new(0),
            changed: AtomicBool::new(false),
            losses: AtomicBool::new(false),
        });
        let node = client.attach(name)?;
        let root = fs.inode(&node.attr, None, Some(node.handle), None);
        if exclusive && root.kind == libc::S_IFDIR && node.attr.size <= LISTED_FIRST {
            // Programs usually look up several names in the root. If listing fails they are looked up one by one.
            let _ = root.list(true);
        }
        Ok(root)
    }

    /// Mounts such a tree.
    pub fn mount(client: &Client, name: &str, exclusive: bool, flags: MountFlags) -> Result<Arc<Mount>> {
        let root = Self::attach(client, name, exclusive)?;
        Mount::of(root, SuperBlock::new("gofer", name.as_bytes(), String::new()), flags)
    }

    /// Converts the Gofer's attributes into the guest's.
    fn convert(&self, a: &protocol::Attr) -> Attr {
        Attr {
            dev: self.dev,
            ino: self.number(a.dev, a.ino),
            mode: a.mode,
            nlink: a.nlink,
            uid: a.uid,
            gid: a.gid,
            rdev: a.rdev,
            size: a.size,
            blksize: a.blksize,
            blocks: a.blocks,
            atime: time(a.atime),
            mtime: time(a.mtime),
            ctime: time(a.ctime),
            btime: time(a.btime),
        }
    }

    /// Inode numbers of the root's device stay as they are; those of other devices get the device's index in the upper
    /// bits.
    fn number(&self, dev: u64, ino: u64) -> u64 {
        let mut devs = self.devs.lock();
        let i = devs.iter().position(|d| *d == dev).unwrap_or_else(|| {
            devs.push(dev);
            devs.len() - 1
        });
        ino ^ ((i as u64) << 48)
    }

    /// The inode with these attributes. A new one gets `origin` (in an exclusive tree) or a handle.
    fn inode(
        self: &Arc<Self>,
        a: &protocol::Attr,
        origin: Option<(&Arc<GoferInode>, &[u8])>,
        handle: Option<Handle>,
        target: Option<Box<[u8]>>,
    ) -> Arc<GoferInode> {
        self.inode_or_new(a, origin, handle, target).0
    }

    /// Like `inode`; also returns whether it is new.
    fn inode_or_new(
        self: &Arc<Self>,
        a: &protocol::Attr,
        origin: Option<(&Arc<GoferInode>, &[u8])>,
        handle: Option<Handle>,
        target: Option<Box<[u8]>>,
    ) -> (Arc<GoferInode>, bool) {
        let attr = self.convert(a);
        let key = key(a);
        // The last reference to an inode must not be dropped while the table is locked.
        let known = self.nodes.lock().get(&key).and_then(Weak::upgrade);
        if let Some(i) = known.filter(|i| i.is(a) && !i.is_lost()) {
            i.store(a);
            return (i, false);
        }
        let i = Arc::new_cyclic(|me| GoferInode {
            me: me.clone(),
            fs: self.clone(),
            key,
            kind: attr.file_type(),
            origin: origin.filter(|_| self.exclusive).map(|(d, n)| (d.clone(), n.into())),
            handle: Mutex::new(handle.map(Arc::new)),
            share: OnceLock::new(),
            pinned: AtomicBool::new(false),
            attr: RwLock::new(attr),
            acl: AclCache::new(a.acl),
            limits: AtomicU32::new(limits(a).bits()),
            stale: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            target: OnceLock::new(),
            fds: Default::default(),
            ahead: Mutex::default(),
            listing: Mutex::default(),
            misses: AtomicU32::new(0),
            content: Mutex::default(),
            used: AtomicBool::new(false),
            reading: Mutex::default(),
            passed: AtomicU32::new(0),
            listed_below: AtomicU32::new(0),
            used_below: AtomicU32::new(0),
            read_below: AtomicU32::new(0),
            appending: Mutex::new(()),
            extra: InodeExtra::default(),
        });
        if let Some(t) = target {
            let _ = i.target.set(t);
        }
        self.nodes.lock().insert(key, Arc::downgrade(&i));
        (i, true)
    }

    /// Registers a handle of `inode` that can be released; releases the oldest one above the limit.
    fn hold(&self, inode: &GoferInode) {
        let mut h = self.held.lock();
        h.push_back(inode.me.clone());
        let old = if h.len() > HOLD_MAX { h.pop_front() } else { None };
        drop(h);
        if let Some(i) = old.and_then(|w| w.upgrade()) {
            i.let_go();
        }
    }

    /// Releases all handles whose files can be found again by path.
    fn let_go(&self) {
        let all = std::mem::take(&mut *self.held.lock());
        for i in all.iter().filter_map(Weak::upgrade) {
            i.let_go();
        }
    }

    /// Charges one more inode of a shared tree.
    fn share(&self) -> Result<Option<Share>> {
        if self.exclusive {
            Ok(None)
        } else {
            Share::take(self.most).map(Some)
        }
    }

    fn keep(&self, fd: &Arc<OwnedFd>) {
        let mut r = self.recent.lock();
        r.push_back(fd.clone());
        let old = if r.len() > KEEP_OPEN { r.pop_front() } else { None };
        drop(r);
        drop(old);
    }
}

/// Counts what was fetched ahead and how much of it was used; both decay.
struct Trust {
    read: AtomicU32,
    used: AtomicU32,
    /// Fetching ahead pays if at least one in `part` is used.
    part: u32,
}

impl Trust {
    fn new(part: u32) -> Trust {
        Trust { read: AtomicU32::new(0), used: AtomicU32::new(0), part }
    }
    fn read(&self, n: u32) {
        if self.read.fetch_add(n, Ordering::Relaxed) > 1024 {
            for c in [&self.read, &self.used] {
                c.store(c.load(Ordering::Relaxed) / 2, Ordering::Relaxed);
            }
        }
    }
    fn used(&self) {
        self.used.fetch_add(1, Ordering::Relaxed);
    }
    /// Much was fetched and too little of it used.
    fn disproven(&self) -> bool {
        self.read.load(Ordering::Relaxed) > 512 && !self.proven()
    }
    /// Enough of what was fetched has been used.
    fn proven(&self) -> bool {
        let (read, used) = (self.read.load(Ordering::Relaxed), self.used.load(Ordering::Relaxed));
        used >= 32 && used.saturating_mul(self.part) >= read
    }
}

impl Kept {
    /// Records that `inode` caches `new` bytes instead of `old`. Above `max` in total the oldest inodes `forget`
    /// theirs; `forget` returns the bytes freed.
    fn add(
        kept: &Mutex<Kept>,
        inode: &GoferInode,
        (old, new): (usize, usize),
        max: usize,
        forget: impl Fn(&GoferInode) -> usize,
    ) {
        let mut doomed = Vec::new();
        let mut k = kept.lock();
        k.bytes = (k.bytes + new).saturating_sub(old);
        k.inodes.push_back(inode.me.clone());
        while k.bytes > max || k.inodes.len() > max / 256 {
            let Some(first) = k.inodes.pop_front() else { break };
            let Some(i) = first.upgrade() else { continue };
            k.bytes = k.bytes.saturating_sub(forget(&i));
            // The last reference to an inode must not be dropped while the list is locked.
            doomed.push(i);
        }
        drop(k);
    }
    fn less(kept: &Mutex<Kept>, bytes: usize) {
        let mut k = kept.lock();
        k.bytes = k.bytes.saturating_sub(bytes);
    }
}

impl Drop for GoferInode {
    fn drop(&mut self) {
        let mut nodes = self.fs.nodes.lock();
        if nodes.get(&self.key).is_some_and(|w| w.strong_count() == 0) {
            nodes.remove(&self.key);
        }
        drop(nodes);
        if let Some(l) = self.listing.get_mut() {
            Kept::less(&self.fs.listed, l.size());
        }
        if let Some(c) = self.content.get_mut() {
            Kept::less(&self.fs.read, c.bytes.len());
        }
        // Releases the ancestors in a loop: a tree can be deeper than the stack allows recursion.
        let mut up = self.origin.take();
        while let Some((p, _)) = up {
            up = Arc::into_inner(p).and_then(|mut i| i.origin.take());
        }
    }
}

impl GoferInode {
    fn arc(&self) -> Result<Arc<GoferInode>> {
        self.me.upgrade().ok_or(Errno::ESTALE)
    }
    pub fn kind(&self) -> u32 {
        self.kind
    }
    fn store(&self, a: &protocol::Attr) {
        let mut attr = self.fs.convert(a);
        let mut now = self.attr.write();
        attr.ino = now.ino;
        let changed = now.ctime != attr.ctime;
        self.acl.reported(a.acl, changed);
        self.limits.store(limits(a).bits(), Ordering::Relaxed);
        *now = attr;
        drop(now);
        if changed {
            self.forget_content();
        }
        self.stale.store(false, Ordering::Release);
    }
    fn fresh(&self) -> bool {
        self.fs.exclusive && !self.stale.load(Ordering::Acquire)
    }
    fn refresh(&self) -> Result<()> {
        if self.fresh() {
            return Ok(());
        }
        let a = self.handle()?.getattr()?;
        self.store(&a);
        Ok(())
    }
    /// An entry of this directory was added or removed.
    fn entries_changed(&self, name: &[u8]) {
        self.ahead.lock().remove(name);
        self.forget_listing();
        self.mark_stale();
    }
    fn forget_listing(&self) {
        let old = self.listing.lock().take();
        if let Some(l) = old {
            Kept::less(&self.fs.listed, l.size());
        }
    }
    pub fn mark_stale(&self) {
        self.fs.changed.store(true, Ordering::Release);
        self.stale.store(true, Ordering::Release);
    }

    fn add_child(self: &Arc<Self>, node: protocol::client::Node, name: &[u8], share: Option<Share>) -> Arc<GoferInode> {
        self.entries_changed(name);
        let (inode, new) = self.fs.inode_or_new(&node.attr, None, Some(node.handle), None);
        if let (true, Some(share)) = (new, share) {
            let _ = inode.share.set(share);
        }
        inode
    }
}
