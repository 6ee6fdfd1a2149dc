//! Files of the host, through the Gofer.
//!
//! An *exclusive* tree is changed by nobody else: names (the dentry cache), attributes and listings are kept, and a repeated `stat`
//! or `open` asks nobody. A *shared* tree is asked every time.
//!
//! # How little is asked of an exclusive tree
//! * A cold walk fetches all its names in one request ([`Inode::prefetch`]); what the later lookups will want waits in `ahead`.
//! * An inode needs no handle (a file that the Gofer holds open): the tree stays as it is, so whatever needs one can be found again by the way
//!   that led there, in the same request. Only directories listed in several pages and objects asked for other things get one.
//!   What is found there is not believed to be the same: see `handles`.
//! * A listing with attributes answers the lookups of all its names, and of those that are not there. It is fetched instead of single names
//!   once those have cost about as much ([`GoferInode::worth_listing`]), and right away while programs look up what they list.
//!
//! Content is read, written and mapped through descriptors that the Gofer donates; opens of one file for the same access share one, and
//! a few hundred recently used ones are kept open. Listings, handles and descriptors that are kept are bounded; the oldest go first.
//!
//! Locks are leaves, each held for a few instructions, but for `fds`, which is held over an open; none while the Gofer is asked otherwise.

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

/// Descriptors kept open though no open file has them.
const KEEP_OPEN: usize = 256;
/// Names that one directory keeps for the lookups to come, or as missing.
const AHEAD_MAX: usize = 4096;
/// Handles that can be had again and are kept all the same.
const HOLD_MAX: usize = 512;
/// Ways through a directory before its handle is worth having.
const PASSED: u32 = 2;
/// Bytes of listings that are kept.
const LISTED_MAX: usize = 32 << 20;
/// Entries of the largest directory whose attributes are fetched all at once.
const FULL_MAX: usize = 16 * 1024;
/// Size of the largest root that is listed as soon as it is attached.
const LISTED_FIRST: u64 = 4096;
/// Listings to come with attributes after a lookup of a listed name.
const LOOKED_UP: u32 = 32;

/// One attached tree.
pub struct GoferFs {
    dev: u64,
    /// Files that the Gofer can hold.
    most: u32,
    exclusive: bool,
    /// Inodes in use: two names of one file are one inode.
    nodes: Mutex<HashMap<Key, Weak<GoferInode>>>,
    /// Devices of the host that inodes are on; the first is the root's.
    devs: Mutex<Vec<u64>>,
    recent: Mutex<VecDeque<Arc<OwnedFd>>>,
    /// Inodes whose handle may be dropped.
    held: Mutex<VecDeque<Weak<GoferInode>>>,
    listed: Mutex<Kept>,
    /// Contents that are kept.
    read: Mutex<Kept>,
    /// How much of what is read ahead is used.
    trust: Trust,
    /// The same for listings of whole trees.
    trees: Trust,
    /// The listing that the last of those broke off in, of which directory, and from where to go on.
    begun: Mutex<Option<(Weak<GoferInode>, Listing, u64)>>,
    /// Programs look up what they list: how many listings to fetch with attributes.
    looked_up: AtomicU32,
    /// We have changed something: attributes in listings may be old.
    changed: AtomicBool,
    /// Some inode has been lost.
    losses: AtomicBool,
}

/// Identity of a file of the host: device, inode number and birth time. Inode numbers alone are reused, and an inode here
/// need not hold its file. On file systems without birth times (zero), owner and mode must stay the same, too.
type Key = (u64, u64, protocol::Time);

fn key(a: &protocol::Attr) -> Key {
    (a.dev, a.ino, a.btime)
}

/// Who keeps listings, or contents, oldest first.
#[derive(Default)]
struct Kept {
    inodes: VecDeque<Weak<GoferInode>>,
    bytes: usize,
}

/// Access of a donated descriptor, as index.
const RO: usize = 0;
const WO: usize = 1;
const RW: usize = 2;

pub struct GoferInode {
    me: Weak<GoferInode>,
    fs: Arc<GoferFs>,
    key: Key,
    kind: u32,
    /// Where it was found, in a tree that stays as it is.
    origin: Option<(Arc<GoferInode>, Box<[u8]>)>,
    /// Always there if there is no origin.
    handle: Mutex<Option<Arc<Handle>>>,
    /// Whose part that one is of.
    share: OnceLock<Share>,
    /// The handle must stay: the origin does not lead here any more.
    pinned: AtomicBool,
    attr: RwLock<Attr>,
    acl: AclCache,
    /// What its mount on the host forbids, as [`MountFlags`].
    limits: AtomicU32,
    /// `attr` must be asked for again.
    stale: AtomicBool,
    /// Its origin does not lead here any more: something else has its name, and this inode is not to be found by it again.
    lost: AtomicBool,
    target: OnceLock<Box<[u8]>>,
    fds: [Mutex<Weak<OwnedFd>>; 3],
    /// Children that a compound walk brought along.
    ahead: Mutex<NameMap<Option<Arc<GoferInode>>>>,
    listing: Mutex<Option<Arc<Listing>>>,
    /// Lookups in this directory that the Gofer was asked for.
    misses: AtomicU32,
    /// All of a small file, read ahead of its being opened.
    content: Mutex<Option<Arc<Content>>>,
    /// What was read ahead of it has been used.
    used: AtomicBool,
    /// How far the files of this directory have been read ahead.
    reading: Mutex<Reading>,
    /// Ways that led through this directory.
    passed: AtomicU32,
    /// Directories in this one whose listings came, how many of those were used, and of how many the Gofer was asked for the files.
    listed_below: AtomicU32,
    used_below: AtomicU32,
    read_below: AtomicU32,
    /// Held while the position of a descriptor counts.
    appending: Mutex<()>,
    extra: InodeExtra,
}

/// What is known about a name without asking.
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
    /// The root inode of the tree that the launcher calls `name`.
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
            // Programs look up one name in here after the other. If it fails they do it one by one.
            let _ = root.list(true);
        }
        Ok(root)
    }

    /// A mount of such a tree.
    pub fn mount(client: &Client, name: &str, exclusive: bool, flags: MountFlags) -> Result<Arc<Mount>> {
        let root = Self::attach(client, name, exclusive)?;
        Mount::of(root, SuperBlock::new("gofer", name.as_bytes(), String::new()), flags)
    }

    /// Guest's view of attributes.
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

    /// Inode numbers stay as they are on the root's device; those of other devices get its index on top.
    fn number(&self, dev: u64, ino: u64) -> u64 {
        let mut devs = self.devs.lock();
        let i = devs.iter().position(|d| *d == dev).unwrap_or_else(|| {
            devs.push(dev);
            devs.len() - 1
        });
        ino ^ ((i as u64) << 48)
    }

    /// The inode of these attributes. A new one is to be found by `origin` (of an exclusive tree) or has a handle.
    fn inode(
        self: &Arc<Self>,
        a: &protocol::Attr,
        origin: Option<(&Arc<GoferInode>, &[u8])>,
        handle: Option<Handle>,
        target: Option<Box<[u8]>>,
    ) -> Arc<GoferInode> {
        self.inode_or_new(a, origin, handle, target).0
    }

    /// As `inode`, and whether it is a new one.
    fn inode_or_new(
        self: &Arc<Self>,
        a: &protocol::Attr,
        origin: Option<(&Arc<GoferInode>, &[u8])>,
        handle: Option<Handle>,
        target: Option<Box<[u8]>>,
    ) -> (Arc<GoferInode>, bool) {
        let attr = self.convert(a);
        let key = key(a);
        // An inode must not be dropped with the table locked.
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

    /// `inode` has got a handle that it can do without.
    fn hold(&self, inode: &GoferInode) {
        let mut h = self.held.lock();
        h.push_back(inode.me.clone());
        let old = if h.len() > HOLD_MAX { h.pop_front() } else { None };
        drop(h);
        if let Some(i) = old.and_then(|w| w.upgrade()) {
            i.let_go();
        }
    }

    /// Gives the Gofer back all handles that can be had again.
    fn let_go(&self) {
        let all = std::mem::take(&mut *self.held.lock());
        for i in all.iter().filter_map(Weak::upgrade) {
            i.let_go();
        }
    }

    /// Room for one more inode.
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

/// Counts what was fetched ahead and how much of that was used; both fade.
struct Trust {
    read: AtomicU32,
    used: AtomicU32,
    /// What part of it must be used for it to pay: the first of so many.
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
    /// Much was read for nothing.
    fn disproven(&self) -> bool {
        self.read.load(Ordering::Relaxed) > 512 && !self.proven()
    }
    /// Enough of what was read has been used, or is about to be.
    fn proven(&self) -> bool {
        let (read, used) = (self.read.load(Ordering::Relaxed), self.used.load(Ordering::Relaxed));
        used >= 32 && used.saturating_mul(self.part) >= read
    }
}

impl Kept {
    /// `inode` keeps `new` bytes instead of `old`. If that is too much in all, the oldest have to `forget` theirs, and say how many those are.
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
            // An inode may not be dropped with the list locked.
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
        // The parents one by one: a tree can be deeper than our stack is.
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
    /// The directory's entries changed.
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
