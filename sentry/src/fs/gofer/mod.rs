//! Files of the host, through the Gofer.
//!
//! An *exclusive* tree is changed by nobody else: names (the dentry cache), attributes and listings are kept, and a repeated `stat`
//! or `open` asks nobody. A *shared* tree is asked every time.
//!
//! # How little is asked of an exclusive tree
//! * A cold walk fetches all its names in one request ([`Inode::prefetch`]); what the later lookups will want waits in `ahead`.
//! * An inode needs no handle (a file that the Gofer holds open): the tree stays as it is, so whatever needs one can be found again by the way
//!   that led there, in the same request. Only directories listed in several pages and objects asked for other things get one.
//! * A listing with attributes answers the lookups of all its names, and of those that are not there. It is fetched instead of single names
//!   once those have cost about as much ([`GoferInode::worth_listing`]), and right away while programs look up what they list.
//!
//! Content is read, written and mapped through descriptors that the Gofer donates; opens of one file for the same access share one, and
//! a few hundred recently used ones are kept open. Listings, handles and descriptors that are kept are bounded; the oldest go first.
//!
//! Locks are leaves, each held for a few instructions, but for `fds`, which is held over an open; none while the Gofer is asked otherwise.

mod file;
mod listing;

use super::vfs::dentry::NameMap;
use super::vfs::{anonymous_dev, Mount, MountFlags, SuperBlock};
use super::*;
use crate::error::{Errno, Result};
pub use file::{read_fd, write_fd};
use file::{GoferDir, GoferFile};
use listing::Listing;
use parking_lot::{Mutex, RwLock};
use protocol::client::{Walk, WalkEnd};
use protocol::{Client, Handle, MknodKind, NewNode as Fresh, OpenFlags, SetTime, WalkFids, XattrMode, MAX_WALK};
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
/// Bytes of listings that are kept.
const LISTED_MAX: usize = 32 << 20;
/// Entries of the largest directory whose attributes are fetched all at once.
const FULL_MAX: usize = 16 * 1024;
/// Listings to come with attributes after a lookup of a listed name.
const LOOKED_UP: u32 = 32;

/// One attached tree.
pub struct GoferFs {
    dev: u64,
    exclusive: bool,
    /// Inodes in use, by the host's device and number: two names of one file are one inode.
    nodes: Mutex<HashMap<(u64, u64), Weak<GoferInode>>>,
    /// Devices of the host that inodes are on; the first is the root's.
    devs: Mutex<Vec<u64>>,
    recent: Mutex<VecDeque<Arc<OwnedFd>>>,
    /// Inodes whose handle may be dropped.
    held: Mutex<VecDeque<Weak<GoferInode>>>,
    listed: Mutex<Listed>,
    /// Programs look up what they list: how many listings to fetch with attributes.
    looked_up: AtomicU32,
    /// We have changed something: attributes in listings may be old.
    changed: AtomicBool,
}

/// Listings that are kept, oldest first.
#[derive(Default)]
struct Listed {
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
    key: (u64, u64),
    kind: u32,
    /// Where it was found, in a tree that stays as it is.
    origin: Option<(Arc<GoferInode>, Box<[u8]>)>,
    /// Always there if there is no origin.
    handle: Mutex<Option<Arc<Handle>>>,
    /// The handle must stay: the origin does not lead here any more.
    pinned: AtomicBool,
    attr: RwLock<Attr>,
    /// `attr` must be asked for again.
    stale: AtomicBool,
    target: OnceLock<Box<[u8]>>,
    fds: [Mutex<Weak<OwnedFd>>; 3],
    /// Children that a compound walk brought along.
    ahead: Mutex<NameMap<Option<Arc<GoferInode>>>>,
    listing: Mutex<Option<Arc<Listing>>>,
    /// Lookups in this directory that the Gofer was asked for.
    misses: AtomicU32,
    /// Held while a write appends.
    appending: Mutex<()>,
    extra: InodeExtra,
}

/// What is known about a name without asking.
enum Known {
    Node(Arc<GoferInode>),
    Missing,
    Unknown,
}

fn time(t: protocol::Time) -> Timespec {
    Timespec { sec: t.sec, nsec: t.nsec }
}

impl GoferFs {
    /// The root inode of the tree that the launcher calls `name`.
    pub fn attach(client: &Client, name: &str, exclusive: bool) -> Result<Arc<GoferInode>> {
        let fs = Arc::new(GoferFs {
            dev: anonymous_dev(),
            exclusive,
            nodes: Mutex::default(),
            devs: Mutex::default(),
            recent: Mutex::default(),
            held: Mutex::default(),
            listed: Mutex::default(),
            looked_up: AtomicU32::new(0),
            changed: AtomicBool::new(false),
        });
        let node = client.attach(name)?;
        Ok(fs.inode(&node.attr, None, Some(node.handle), None))
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
        let attr = self.convert(a);
        let key = (a.dev, a.ino);
        // An inode must not be dropped with the table locked.
        let known = self.nodes.lock().get(&key).and_then(Weak::upgrade);
        if let Some(i) = known.filter(|i| i.kind == attr.file_type()) {
            i.store(attr);
            return i;
        }
        let i = Arc::new_cyclic(|me| GoferInode {
            me: me.clone(),
            fs: self.clone(),
            key,
            kind: attr.file_type(),
            origin: origin.filter(|_| self.exclusive).map(|(d, n)| (d.clone(), n.into())),
            handle: Mutex::new(handle.map(Arc::new)),
            pinned: AtomicBool::new(false),
            attr: RwLock::new(attr),
            stale: AtomicBool::new(false),
            target: OnceLock::new(),
            fds: Default::default(),
            ahead: Mutex::default(),
            listing: Mutex::default(),
            misses: AtomicU32::new(0),
            appending: Mutex::new(()),
            extra: InodeExtra::default(),
        });
        if let Some(t) = target {
            let _ = i.target.set(t);
        }
        self.nodes.lock().insert(key, Arc::downgrade(&i));
        i
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

    /// `inode` keeps a listing of `new` bytes, instead of one of `old`.
    fn keep_listing(&self, inode: &GoferInode, old: usize, new: usize) {
        let mut doomed = Vec::new();
        let mut l = self.listed.lock();
        l.bytes = (l.bytes + new).saturating_sub(old);
        l.inodes.push_back(inode.me.clone());
        while l.bytes > LISTED_MAX || l.inodes.len() > LISTED_MAX / 256 {
            let Some(first) = l.inodes.pop_front() else { break };
            let Some(i) = first.upgrade() else { continue };
            let listing = i.listing.lock().take();
            l.bytes = l.bytes.saturating_sub(listing.as_ref().map_or(0, |x| x.size()));
            // Neither may be dropped with the list locked.
            doomed.push((i, listing));
        }
        drop(l);
    }

    fn keep(&self, fd: &Arc<OwnedFd>) {
        let mut r = self.recent.lock();
        r.push_back(fd.clone());
        let old = if r.len() > KEEP_OPEN { r.pop_front() } else { None };
        drop(r);
        drop(old);
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
            let mut listed = self.fs.listed.lock();
            listed.bytes = listed.bytes.saturating_sub(l.size());
        }
        // The parents one by one: a tree can be deeper than our stack is.
        let mut up = self.origin.take();
        while let Some((p, _)) = up {
            up = Arc::into_inner(p).and_then(|mut i| i.origin.take());
        }
    }
}

/// The inode behind a trait object, if it is of the Gofer.
pub fn gofer(inode: &Arc<dyn Inode>) -> Result<&GoferInode> {
    inode.as_any().downcast_ref().ok_or(Errno::EXDEV)
}

impl GoferInode {
    fn arc(&self) -> Result<Arc<GoferInode>> {
        self.me.upgrade().ok_or(Errno::ESTALE)
    }
    pub fn kind(&self) -> u32 {
        self.kind
    }
    fn store(&self, attr: Attr) {
        *self.attr.write() = attr;
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
        self.store(self.fs.convert(&a));
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
            let mut listed = self.fs.listed.lock();
            listed.bytes = listed.bytes.saturating_sub(l.size());
        }
    }
    pub fn mark_stale(&self) {
        self.fs.changed.store(true, Ordering::Release);
        self.stale.store(true, Ordering::Release);
    }

    fn held(&self) -> Option<Arc<Handle>> {
        self.handle.lock().clone()
    }
    fn let_go(&self) {
        if self.origin.is_some() && !self.pinned.load(Ordering::Acquire) {
            let handle = self.handle.lock().take();
            drop(handle);
        }
    }
    /// Keeps the handle for good: its name is about to go.
    fn pin(&self) -> Result<()> {
        self.pinned.store(true, Ordering::Release);
        self.handle().map(drop)
    }

    /// A directory above that the Gofer holds, and the names from there to here; none if it holds this one.
    fn way(&self) -> Result<(Arc<Handle>, Vec<&[u8]>)> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut at = self;
        loop {
            if let Some(h) = at.held() {
                names.reverse();
                return Ok((h, names));
            }
            let (parent, name) = at.origin.as_ref().ok_or(Errno::ESTALE)?;
            names.push(name);
            at = parent;
            if names.len() == MAX_WALK {
                let h = at.handle()?;
                names.reverse();
                return Ok((h, names));
            }
        }
    }

    /// Walks here again from the nearest directory that the Gofer holds.
    fn again(&self, fids: WalkFids, open: Option<OpenFlags>) -> Result<Walk> {
        let (parent, name) = self.origin.as_ref().ok_or(Errno::ESTALE)?;
        let (mut start, mut names) = parent.way()?;
        if names.len() == MAX_WALK {
            start = parent.handle()?;
            names.clear();
        }
        names.push(name);
        let walk = match start.walk(&names, fids, open) {
            Err(Errno::EMFILE) => {
                self.fs.let_go();
                start.walk(&names, fids, open)?
            }
            r => r?,
        };
        let last = walk.nodes.last().filter(|_| walk.end == WalkEnd::Complete && walk.nodes.len() == names.len());
        let a = last.map(|n| self.fs.convert(&n.attr)).filter(|a| a.file_type() == self.kind).ok_or(Errno::ESTALE)?;
        // Someone may have put another file in its place, against the promise; then it is that one now.
        let ino = self.attr.read().ino;
        self.store(Attr { ino, ..a });
        Ok(walk)
    }

    fn handle(&self) -> Result<Arc<Handle>> {
        if let Some(h) = self.held() {
            return Ok(h);
        }
        let mut walk = self.again(WalkFids::Last, None)?;
        let new = Arc::new(walk.nodes.pop().and_then(|n| n.handle).ok_or(Errno::EIO)?);
        let handle = self.handle.lock().get_or_insert(new).clone();
        self.fs.hold(self);
        Ok(handle)
    }

    /// A descriptor of a regular file for this access, shared with other opens.
    pub fn descriptor(&self, access: i32) -> Result<Arc<OwnedFd>> {
        let (slot, flags) = match access {
            libc::O_RDONLY => (RO, OpenFlags::READ),
            libc::O_WRONLY => (WO, OpenFlags::WRITE),
            _ => (RW, OpenFlags::READ_WRITE),
        };
        let mut cached = self.fds.get(slot).ok_or(Errno::EINVAL)?.lock();
        if let Some(fd) = cached.upgrade() {
            return Ok(fd);
        }
        let fd = match self.held() {
            Some(h) => h.open(flags)?,
            None => self.again(WalkFids::None, Some(flags))?.file.ok_or(Errno::EIO)??,
        };
        let fd = Arc::new(fd);
        *cached = Arc::downgrade(&fd);
        drop(cached);
        self.fs.keep(&fd);
        Ok(fd)
    }

    fn add_child(self: &Arc<Self>, node: protocol::client::Node, name: &[u8]) -> Arc<GoferInode> {
        self.entries_changed(name);
        self.fs.inode(&node.attr, None, Some(node.handle), None)
    }

    /// The entries, for a reader.
    fn entries(&self) -> Result<Arc<Listing>> {
        let left = self.fs.looked_up.load(Ordering::Relaxed);
        if left > 0 {
            self.fs.looked_up.store(left - 1, Ordering::Relaxed);
        }
        Ok(self.list(self.fs.exclusive && left > 0)?.0)
    }

    /// The entries, `full`: with attributes, unless there are very many; and whether they can be kept.
    fn list(&self, full: bool) -> Result<(Arc<Listing>, bool)> {
        let full = full && !self.fs.changed.load(Ordering::Acquire);
        if self.fs.exclusive {
            if let Some(l) = self.listing.lock().as_ref().filter(|l| l.full || !full || l.len() > FULL_MAX) {
                return Ok((l.clone(), true));
            }
        }
        let mut out = Listing::new(full);
        let (mut handle, mut page) = match self.held() {
            Some(h) => (None, h.read_dir(0, full)?),
            None => {
                let (start, names) = self.way()?;
                match start.list(&names, full) {
                    Err(Errno::EMFILE) => {
                        self.fs.let_go();
                        start.list(&names, full)?
                    }
                    r => r?,
                }
            }
        };
        while let (Some(cookie), false) = (out.push(&page)?, page.eof) {
            let full = full && out.len() < FULL_MAX;
            out.full &= full;
            page = match &handle {
                Some(h) => h.read_dir(cookie, full)?,
                None => self.handle()?.read_dir(cookie, full)?,
            };
        }
        drop(handle.take());
        out.finish();
        let keep = self.fs.exclusive && out.size() < LISTED_MAX / 4;
        let l = Arc::new(out);
        if keep {
            let old = self.listing.lock().replace(l.clone());
            self.fs.keep_listing(self, old.map_or(0, |o| o.size()), l.size());
        }
        Ok((l, keep))
    }

    /// Whether a name that is not listed is missing: file systems that make up names on demand are not on a disk.
    fn lists_all(&self) -> bool {
        libc::major(self.key.0) != 0 || self.fs.devs.lock().first() == Some(&self.key.0)
    }

    /// What is known about a name. Takes it out of `ahead`.
    fn known(self: &Arc<Self>, name: &[u8]) -> Known {
        {
            let mut ahead = self.ahead.lock();
            match ahead.get(name) {
                // What does not exist is kept: the overlay asks again for names it has made itself.
                Some(None) => return Known::Missing,
                Some(Some(_)) => {
                    if let Some(Some(i)) = ahead.remove(name) {
                        return Known::Node(i);
                    }
                }
                None => {}
            }
        }
        let listing = self.listing.lock().clone();
        let Some(listing) = listing else { return Known::Unknown };
        match listing.find(name) {
            None if self.lists_all() => Known::Missing,
            Some(protocol::client::DirEntry { attr: Some(a), .. }) if !self.fs.changed.load(Ordering::Acquire) => {
                self.fs.looked_up.store(LOOKED_UP, Ordering::Relaxed);
                Known::Node(self.fs.inode(&a, Some((self, name)), None, None))
            }
            _ => Known::Unknown,
        }
    }

    /// Notes what was found, for a lookup to come.
    fn expect(&self, name: &[u8], found: Option<Arc<GoferInode>>) {
        let mut ahead = self.ahead.lock();
        let old = if ahead.len() >= AHEAD_MAX { std::mem::take(&mut *ahead) } else { NameMap::default() };
        ahead.insert(name.into(), found);
        drop(ahead);
        // Inodes go with nothing locked.
        drop(old);
    }

    /// The Gofer is about to be asked for one more name: is it better asked for all? An entry of a listing costs it about a sixteenth of
    /// a request, so this waits until the single requests have cost as much; but listing and then looking up is a habit.
    fn worth_listing(&self) -> bool {
        let misses = self.misses.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if self.fs.changed.load(Ordering::Acquire) {
            return false;
        }
        let listed = self.listing.lock().as_ref().map(|l| (l.full, l.len()));
        match listed {
            Some((full, n)) => !full && misses >= 2 && n <= FULL_MAX,
            None => {
                let guess = self.attr.read().size / 48;
                misses >= 4 && u64::from(misses) * 16 > guess && guess < FULL_MAX as u64
            }
        }
    }

    /// As `known`, after fetching the listing if that is worth it.
    fn find_out(self: &Arc<Self>, name: &[u8]) -> Result<Known> {
        let known = self.known(name);
        if !matches!(known, Known::Unknown) || !self.worth_listing() {
            return Ok(known);
        }
        self.list(true)?;
        Ok(self.known(name))
    }
}

/// With the owner that the guest means; without, where the Gofer may not give files away.
fn with_owner<T>(mode: u32, uid: u32, gid: u32, f: impl Fn(Fresh) -> Result<T>) -> Result<T> {
    match f(Fresh { mode: mode & 0o7777, uid: Some(uid), gid: Some(gid) }) {
        Err(Errno::EPERM) => f(Fresh::with_mode(mode & 0o7777)),
        r => r,
    }
}

impl Inode for GoferInode {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn attr(&self) -> Result<Attr> {
        self.refresh()?;
        Ok(*self.attr.read())
    }
    fn perm(&self) -> Result<Perm> {
        if !self.fs.exclusive {
            self.refresh()?;
        }
        let a = self.attr.read();
        Ok(Perm { mode: a.mode, uid: a.uid, gid: a.gid })
    }
    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        let t = |t: Option<Timespec>| t.map(|t| SetTime::At(protocol::Time { sec: t.sec, nsec: t.nsec }));
        let a = self.handle()?.setattr(protocol::SetAttr {
            mode: set.mode,
            uid: set.uid,
            gid: set.gid,
            size: set.size,
            atime: t(set.atime),
            mtime: t(set.mtime),
        })?;
        self.fs.changed.store(true, Ordering::Release);
        self.store(self.fs.convert(&a));
        Ok(())
    }
    fn prefetch(&self, names: &[&[u8]], open: bool) {
        if !self.fs.exclusive || self.kind != libc::S_IFDIR {
            return;
        }
        let Ok(mut dir) = self.arc() else { return };
        let mut rest = names;
        while let Some((name, below)) = rest.split_first() {
            match dir.find_out(name) {
                Ok(Known::Node(i)) => {
                    dir.expect(name, Some(i.clone()));
                    if i.kind != libc::S_IFDIR {
                        return;
                    }
                    (dir, rest) = (i, below);
                }
                Ok(Known::Unknown) => break,
                Ok(Known::Missing) | Err(_) => return,
            }
        }
        let known = dir.clone();
        let Ok((start, mut way)) = known.way() else { return };
        let above = way.len();
        way.extend(rest.iter().take(MAX_WALK.saturating_sub(above)));
        if way.len() == above {
            return;
        }
        let Ok(walk) = start.walk(&way, WalkFids::None, open.then_some(OpenFlags::READ)) else { return };
        let complete = walk.nodes.len() == way.len() && way.len() == above + rest.len();
        let mut names = way.iter().skip(above);
        for node in walk.nodes.into_iter().skip(above) {
            let Some(name) = names.next() else { return };
            let inode = self.fs.inode(&node.attr, Some((&dir, name)), None, node.target);
            dir.expect(name, Some(inode.clone()));
            dir = inode;
        }
        if let (WalkEnd::Missing, Some(name)) = (walk.end, names.next()) {
            dir.expect(name, None);
        }
        if let (Some(Ok(fd)), true) = (walk.file, complete) {
            let fd = Arc::new(fd);
            if let Some(slot) = dir.fds.get(RO) {
                let mut slot = slot.lock();
                if slot.strong_count() == 0 {
                    *slot = Arc::downgrade(&fd);
                    drop(slot);
                    self.fs.keep(&fd);
                }
            }
        }
    }
    fn lookup(&self, name: &[u8]) -> Result<Arc<dyn Inode>> {
        if self.kind != libc::S_IFDIR {
            return Err(Errno::ENOTDIR);
        }
        let me = self.arc()?;
        let exclusive = self.fs.exclusive;
        if exclusive {
            match me.find_out(name)? {
                Known::Node(i) => return Ok(i),
                Known::Missing => return Err(Errno::ENOENT),
                Known::Unknown => {}
            }
        }
        let mut walk = if exclusive {
            let (start, mut way) = self.way()?;
            let start = if way.len() == MAX_WALK { self.handle()? } else { start };
            way.truncate(if way.len() == MAX_WALK { 0 } else { MAX_WALK });
            way.push(name);
            let mut walk = start.walk(&way, WalkFids::None, None)?;
            if walk.nodes.len() < way.len() - 1 {
                return Err(Errno::ESTALE);
            }
            walk.nodes.drain(..way.len() - 1);
            walk
        } else {
            self.handle()?.walk(&[name], WalkFids::Last, None)?
        };
        match (walk.nodes.pop(), walk.end) {
            (Some(node), _) => {
                if !exclusive && node.handle.is_none() {
                    return Err(Errno::EIO);
                }
                Ok(self.fs.inode(&node.attr, Some((&me, name)), node.handle, node.target))
            }
            (None, WalkEnd::Failed(e)) => Err(Errno::from_raw(e as i32)),
            (None, WalkEnd::NotDirectory) => Err(Errno::ENOTDIR),
            (None, _) => {
                if exclusive {
                    self.expect(name, None);
                }
                Err(Errno::ENOENT)
            }
        }
    }
    fn create(&self, name: &[u8], node: NewNode<'_>, mode: u32, uid: u32, gid: u32) -> Result<Arc<dyn Inode>> {
        let me = self.arc()?;
        let h = self.handle()?;
        let inode = match node {
            NewNode::File => {
                // Whatever the mode says, the one who makes a file may write it.
                let (n, fd) = with_owner(mode, uid, gid, |new| h.create(name, new, OpenFlags::READ_WRITE))?;
                let inode = me.add_child(n, name);
                let fd = Arc::new(fd);
                for slot in [RO, WO, RW] {
                    if let Some(s) = inode.fds.get(slot).filter(|_| slot != RO) {
                        *s.lock() = Arc::downgrade(&fd);
                    }
                }
                self.fs.keep(&fd);
                inode
            }
            NewNode::Dir => me.add_child(with_owner(mode, uid, gid, |new| h.mkdir(name, new))?, name),
            NewNode::Symlink(t) => me.add_child(with_owner(mode, uid, gid, |new| h.symlink(name, t, new))?, name),
            NewNode::Fifo => me.add_child(with_owner(mode, uid, gid, |new| h.mknod(name, MknodKind::Fifo, new))?, name),
            NewNode::Socket => {
                me.add_child(with_owner(mode, uid, gid, |new| h.mknod(name, MknodKind::Socket, new))?, name)
            }
            NewNode::Char(_) | NewNode::Block(_) => return Err(Errno::EPERM),
        };
        Ok(inode)
    }
    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> Result<()> {
        let t = gofer(target)?;
        let n = self.handle()?.link(name, &*t.handle()?)?;
        self.entries_changed(name);
        t.store(self.fs.convert(&n.attr));
        Ok(())
    }
    fn unlink(&self, name: &[u8], child: &Arc<dyn Inode>) -> Result<()> {
        let child = gofer(child)?;
        child.pin()?;
        self.handle()?.unlink(name, false)?;
        self.entries_changed(name);
        child.mark_stale();
        Ok(())
    }
    fn rmdir(&self, name: &[u8], child: &Arc<dyn Inode>) -> Result<()> {
        let child = gofer(child)?;
        child.pin()?;
        self.handle()?.unlink(name, true)?;
        self.entries_changed(name);
        child.mark_stale();
        Ok(())
    }
    fn rename(&self, name: &[u8], moved: &Arc<dyn Inode>, target: &Target<'_>, flags: RenameFlags) -> Result<()> {
        let to = gofer(target.dir)?;
        let new_name = target.name;
        if flags.contains(RenameFlags::WHITEOUT) {
            return Err(Errno::EINVAL);
        }
        let f = protocol::RenameFlags::from_bits_truncate(flags.bits());
        gofer(moved)?.pin()?;
        if let Some(r) = target.replaced {
            gofer(r)?.pin()?;
        }
        self.handle()?.rename(name, &*to.handle()?, new_name, f)?;
        self.entries_changed(name);
        to.entries_changed(new_name);
        // A replaced file has lost a name, a moved one has a new ctime.
        let all: Vec<_> = self.fs.nodes.lock().values().filter_map(Weak::upgrade).collect();
        for i in all {
            i.mark_stale();
        }
        Ok(())
    }
    fn readlink(&self) -> Result<Vec<u8>> {
        if self.kind != libc::S_IFLNK {
            return Err(Errno::EINVAL);
        }
        if let Some(t) = self.target.get() {
            return Ok(t.to_vec());
        }
        let t = match self.held() {
            Some(h) => h.readlink()?.into(),
            None => self.again(WalkFids::None, None)?.nodes.pop().and_then(|n| n.target).ok_or(Errno::EIO)?,
        };
        Ok(self.target.get_or_init(|| t).to_vec())
    }
    fn open(self: Arc<Self>, flags: i32) -> Result<Box<dyn FileOps>> {
        match self.kind {
            libc::S_IFREG => {
                let fd = self.descriptor(flags & libc::O_ACCMODE)?;
                Ok(Box::new(GoferFile { inode: self, fd }))
            }
            libc::S_IFDIR => Ok(Box::new(GoferDir::new(self))),
            libc::S_IFLNK => Err(Errno::ELOOP),
            _ => Err(Errno::ENXIO),
        }
    }
    fn statfs(&self) -> Result<StatFs> {
        let s = self.handle()?.statfs()?;
        Ok(StatFs {
            magic: s.kind,
            bsize: s.bsize,
            blocks: s.blocks,
            bfree: s.bfree,
            bavail: s.bavail,
            files: s.files,
            ffree: s.ffree,
            namelen: s.namelen,
        })
    }
    fn get_xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        self.handle()?.get_xattr(name)
    }
    fn set_xattr(&self, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        let mode = match flags {
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => XattrMode::Any,
        };
        self.handle()?.set_xattr(name, value, mode)?;
        self.mark_stale();
        Ok(())
    }
    fn list_xattr(&self) -> Result<Vec<Vec<u8>>> {
        let raw = self.handle()?.list_xattr()?;
        Ok(raw.split(|&b| b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect())
    }
    fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        self.handle()?.remove_xattr(name)?;
        self.mark_stale();
        Ok(())
    }
    fn volatile(&self) -> bool {
        !self.fs.exclusive
    }
    fn extra(&self) -> Option<&InodeExtra> {
        Some(&self.extra)
    }
}
