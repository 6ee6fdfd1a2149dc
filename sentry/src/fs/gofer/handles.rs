//! Handles, and descriptors of files, obtained from the Gofer.
//!
//! The Sentry checks permissions against attributes that it has cached, then asks the Gofer for the file by name. In
//! between, a host process may have replaced the file or changed its owner. So every reply carries the attributes of
//! each file along the path, and [`Way::check`] compares them: another file is never taken for this one, and if owner
//! or mode differ from those that were checked, the call starts over with the new ones. Both show as `ESTALE`. The
//! system call is then repeated once (`syscalls::dispatch`), and the names of lost inodes are looked up again
//! ([`Inode::gone`]).

use super::*;
use crate::fs::vfs::dentry;

/// Number of ancestors that are checked for being lost.
const LOOK_UP: usize = 256;

/// The path to an inode from a directory whose handle the Sentry has.
pub(super) struct Way<'a> {
    pub(super) start: Arc<Handle>,
    pub(super) names: Vec<&'a [u8]>,
    /// The inode that each name led to.
    nodes: Vec<&'a GoferInode>,
}

impl<'a> Way<'a> {
    fn push(&mut self, name: &'a [u8], node: &'a GoferInode) {
        self.names.push(name);
        self.nodes.push(node);
    }

    /// Compares the attributes that the Gofer found (possibly fewer than names) with the inodes of the path. `ESTALE`
    /// if one is another file or has another owner or mode.
    pub(super) fn check<'b>(&self, found: impl IntoIterator<Item = &'b protocol::Attr>) -> Result<()> {
        let mut result = Ok(());
        for (node, a) in self.nodes.iter().zip(found) {
            // Below a lost inode nothing is the same, so the check ends there; otherwise all attributes are taken in.
            match node.confirm(a) {
                Err(e) if node.lost.load(Ordering::Acquire) => return Err(e),
                Err(e) => result = Err(e),
                Ok(()) => {}
            }
        }
        result
    }

    /// Like `check`, for a walk, which must have reached the end of the path.
    pub(super) fn check_walk(&self, walk: &Walk) -> Result<()> {
        self.check(walk.nodes.iter().map(|n| &n.attr))?;
        match (self.nodes.get(walk.nodes.len()), walk.end) {
            (None, _) => Ok(()),
            (_, WalkEnd::Failed(e)) => Err(Errno::from_raw(e as i32)),
            (Some(missing), _) => Err(missing.lose()),
        }
    }
}

/// The Gofer's limit of open files is the system's (`ENFILE`), not the calling process's.
pub(super) fn full(e: Errno) -> Errno {
    if e == Errno::EMFILE {
        Errno::ENFILE
    } else {
        e
    }
}

impl GoferFs {
    /// Walks; if the Gofer has no room left, releases handles and walks again.
    pub(super) fn walk(
        &self,
        start: &Handle,
        names: &[&[u8]],
        fids: WalkFids,
        open: Option<OpenFlags>,
    ) -> Result<Walk> {
        let is_full = |walk: &Result<Walk>| match walk {
            Ok(w) => w.end == WalkEnd::Failed(Errno::EMFILE as u32),
            Err(e) => *e == Errno::EMFILE,
        };
        let mut walk = start.walk(names, fids, open);
        if is_full(&walk) {
            self.let_go();
            walk = start.walk(names, fids, open);
        }
        if is_full(&walk) {
            Err(Errno::ENFILE)
        } else {
            walk
        }
    }
}

impl GoferInode {
    pub(super) fn held(&self) -> Option<Arc<Handle>> {
        self.handle.lock().clone()
    }
    pub(super) fn let_go(&self) {
        if self.origin.is_some() && !self.pinned.load(Ordering::Acquire) {
            let handle = self.handle.lock().take();
            drop(handle);
        }
    }
    /// Keeps the handle until the inode goes: its name is about to disappear.
    pub(super) fn pin(&self) -> Result<()> {
        self.pinned.store(true, Ordering::Release);
        self.handle().map(drop)
    }

    /// Whether these attributes belong to this inode's file.
    pub(super) fn is(&self, a: &protocol::Attr) -> bool {
        let born = a.btime != protocol::Time::default();
        // An inode of a shared tree holds its file open, so the inode number cannot be reused.
        self.key == key(a) && self.kind == a.mode & libc::S_IFMT && (born || !self.fs.exclusive || self.is_as_judged(a))
    }

    fn is_as_judged(&self, a: &protocol::Attr) -> bool {
        let now = self.attr.read();
        (now.mode, now.uid, now.gid) == (a.mode, a.uid, a.gid)
    }

    /// Takes in attributes of the file found under this inode's name. If it is another file, this inode is lost; if
    /// owner or mode changed, `ESTALE` has the caller check permissions again.
    fn confirm(&self, a: &protocol::Attr) -> Result<()> {
        // In a shared tree the handle identifies the file, and the attributes were fetched just before the check.
        let same = !self.fs.exclusive || self.is_as_judged(a);
        if self.fs.exclusive && !self.is(a) {
            return Err(self.lose());
        }
        self.store(a);
        if same {
            Ok(())
        } else {
            Err(Errno::ESTALE)
        }
    }

    /// Marks the inode as lost and drops the cached state that led to it.
    fn lose(&self) -> Errno {
        self.lost.store(true, Ordering::Release);
        self.fs.losses.store(true, Ordering::Release);
        dentry::something_is_gone();
        if let Some((dir, name)) = &self.origin {
            let ahead = dir.ahead.lock().remove(&**name);
            drop(ahead);
            dir.forget_listing();
        }
        Errno::ESTALE
    }

    /// Whether this inode or one of its ancestors is lost.
    pub(super) fn is_lost(&self) -> bool {
        if !self.fs.losses.load(Ordering::Acquire) {
            return false;
        }
        let mut at = self;
        for _ in 0..LOOK_UP {
            if at.lost.load(Ordering::Acquire) {
                return true;
            }
            let Some((above, _)) = &at.origin else { return false };
            at = above;
        }
        false
    }

    /// The path to this inode from the nearest ancestor with a handle; without names if this inode has one.
    pub(super) fn way(&self) -> Result<Way<'_>> {
        let mut way = self.nearest()?;
        let Some((parent, name)) = self.origin.as_ref().filter(|_| way.names.len() > 1) else { return Ok(way) };
        // After several paths through the parent, fetching its handle pays.
        if parent.passed.fetch_add(1, Ordering::Relaxed) < PASSED {
            return Ok(way);
        }
        way.names.pop();
        way.nodes.pop();
        let mut walk = self.fs.walk(&way.start, &way.names, WalkFids::Last, None)?;
        way.check_walk(&walk)?;
        let handle = walk.nodes.pop().and_then(|n| n.handle).ok_or(Errno::EIO)?;
        Ok(Way { start: parent.take_handle(handle), names: vec![name], nodes: vec![self] })
    }

    /// Like `way`, with room for one more name.
    pub(super) fn way_on(&self) -> Result<Way<'_>> {
        let way = self.way()?;
        if way.names.len() < MAX_WALK {
            return Ok(way);
        }
        Ok(Way { start: self.handle()?, names: Vec::new(), nodes: Vec::new() })
    }

    fn nearest(&self) -> Result<Way<'_>> {
        let (mut names, mut nodes): (Vec<&[u8]>, Vec<&GoferInode>) = Default::default();
        let mut at = self;
        let start = loop {
            if let Some(h) = at.held() {
                break h;
            }
            if names.len() == MAX_WALK {
                break at.handle()?;
            }
            let (parent, name) = at.origin.as_ref().ok_or(Errno::ESTALE)?;
            names.push(name);
            nodes.push(at);
            at = parent;
        };
        names.reverse();
        nodes.reverse();
        Ok(Way { start, names, nodes })
    }

    /// Walks to this inode from the nearest ancestor with a handle.
    pub(super) fn again(&self, fids: WalkFids, open: Option<OpenFlags>) -> Result<Walk> {
        let (parent, name) = self.origin.as_ref().ok_or(Errno::ESTALE)?;
        let mut way = parent.way_on()?;
        way.push(name, self);
        let walk = self.fs.walk(&way.start, &way.names, fids, open)?;
        way.check_walk(&walk)?;
        Ok(walk)
    }

    pub(super) fn handle(&self) -> Result<Arc<Handle>> {
        if let Some(h) = self.held() {
            return Ok(h);
        }
        let mut walk = self.again(WalkFids::Last, None)?;
        Ok(self.take_handle(walk.nodes.pop().and_then(|n| n.handle).ok_or(Errno::EIO)?))
    }

    /// Stores a handle; the oldest handles are released when there are too many.
    fn take_handle(&self, new: Handle) -> Arc<Handle> {
        let handle = self.handle.lock().get_or_insert(Arc::new(new)).clone();
        self.fs.hold(self);
        handle
    }

    /// Whether the cached attributes are those of the open file (same ctime). In a shared tree they were fetched just
    /// before.
    fn is_judged(&self, fd: &OwnedFd) -> bool {
        let ctime = self.attr.read().ctime;
        let now = |st: nix::sys::stat::FileStat| (st.st_ctime, st.st_ctime_nsec) == (ctime.sec, i64::from(ctime.nsec));
        !self.fs.exclusive || nix::sys::stat::fstat(fd).is_ok_and(now)
    }

    /// A descriptor of a regular file for this access mode, shared with other opens.
    pub fn descriptor(&self, access: i32) -> Result<Arc<OwnedFd>> {
        let (slot, flags) = match access {
            libc::O_RDONLY => (RO, OpenFlags::READ),
            libc::O_WRONLY => (WO, OpenFlags::WRITE),
            _ => (RW, OpenFlags::READ_WRITE),
        };
        let mut cached = self.fds.get(slot).ok_or(Errno::EINVAL)?.lock();
        if let Some(fd) = cached.upgrade().filter(|fd| self.is_judged(fd)) {
            return Ok(fd);
        }
        let fd = match self.held() {
            Some(h) => {
                let (attr, fd) = h.open_and_look(flags)?;
                self.confirm(&attr)?;
                fd
            }
            None => self.again(WalkFids::None, Some(flags))?.file.ok_or(Errno::EIO)??,
        };
        let fd = Arc::new(fd);
        *cached = Arc::downgrade(&fd);
        drop(cached);
        self.fs.keep(&fd);
        Ok(fd)
    }
}
