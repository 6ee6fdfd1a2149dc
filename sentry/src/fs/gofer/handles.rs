//! Getting at what the Gofer holds, or could: handles, and descriptors of files.
//!
//! The Sentry judges by attributes that it has, and then asks the Gofer for a file by its name; others may have put another one there, or given
//! this one to somebody else, between the two. So every reply tells what the names have led through ([`Way::check`]): another file is not taken for this one, and where
//! owner or mode are not those by which was judged the call begins anew with those of now. Both show as `ESTALE`, upon which a system call is made once
//! more (`syscalls::dispatch`) and the names of lost inodes are looked up again ([`Inode::gone`]).

use super::*;
use crate::fs::vfs::dentry;

/// Levels above an inode among which it looks for a lost one.
const LOOK_UP: usize = 256;

/// How to get from a directory that the Gofer holds to an inode.
pub(super) struct Way<'a> {
    pub(super) start: Arc<Handle>,
    pub(super) names: Vec<&'a [u8]>,
    /// What each name led to.
    nodes: Vec<&'a GoferInode>,
}

impl<'a> Way<'a> {
    fn push(&mut self, name: &'a [u8], node: &'a GoferInode) {
        self.names.push(name);
        self.nodes.push(node);
    }

    /// `ESTALE` unless these attributes, as many as the Gofer has found, are of what the way led through before, with the same owners and modes.
    pub(super) fn check<'b>(&self, found: impl IntoIterator<Item = &'b protocol::Attr>) -> Result<()> {
        let mut result = Ok(());
        for (node, a) in self.nodes.iter().zip(found) {
            // What is below a lost one is not what it was either; else all is learned at once.
            match node.confirm(a) {
                Err(e) if node.lost.load(Ordering::Acquire) => return Err(e),
                Err(e) => result = Err(e),
                Ok(()) => {}
            }
        }
        result
    }

    /// The same for a walk, which has to have got to the end of the way at least.
    pub(super) fn check_walk(&self, walk: &Walk) -> Result<()> {
        self.check(walk.nodes.iter().map(|n| &n.attr))?;
        match (self.nodes.get(walk.nodes.len()), walk.end) {
            (None, _) => Ok(()),
            (_, WalkEnd::Failed(e)) => Err(Errno::from_raw(e as i32)),
            (Some(missing), _) => Err(missing.lose()),
        }
    }
}

/// The Gofer holds as many files as it may: that is no limit of the calling process.
pub(super) fn full(e: Errno) -> Errno {
    if e == Errno::EMFILE {
        Errno::ENFILE
    } else {
        e
    }
}

impl GoferFs {
    /// A walk. If the Gofer has no room left, once more with room.
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
    /// Keeps the handle for good: its name is about to go.
    pub(super) fn pin(&self) -> Result<()> {
        self.pinned.store(true, Ordering::Release);
        self.handle().map(drop)
    }

    /// Whether these attributes are of this very file.
    pub(super) fn is(&self, a: &protocol::Attr) -> bool {
        let born = a.btime != protocol::Time::default();
        // An inode of a shared tree holds its file: its number is not given out again.
        self.key == key(a) && self.kind == a.mode & libc::S_IFMT && (born || !self.fs.exclusive || self.is_as_judged(a))
    }

    fn is_as_judged(&self, a: &protocol::Attr) -> bool {
        let now = self.attr.read();
        (now.mode, now.uid, now.gid) == (a.mode, a.uid, a.gid)
    }

    /// Attributes have come of what was found where this inode was. If they are of another file this one is lost; if owner or mode have
    /// changed, whoever judged by the old ones has to do so again.
    fn confirm(&self, a: &protocol::Attr) -> Result<()> {
        // An inode of a shared tree is found by what the Gofer holds, and whoever judges it has just asked.
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

    /// Its name is to be looked up again, and what is known about it forgotten.
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

    /// Whether it is lost, or a directory above it, without which it cannot be found.
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

    /// From a directory above that the Gofer holds to here; no names if it holds this one.
    pub(super) fn way(&self) -> Result<Way<'_>> {
        let mut way = self.nearest()?;
        let Some((parent, name)) = self.origin.as_ref().filter(|_| way.names.len() > 1) else { return Ok(way) };
        // Where many ways lead through a directory, they are better begun there.
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

    /// As `way`, with room for one more name.
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

    /// Walks here again from the nearest directory that the Gofer holds.
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

    /// Keeps a handle for as long as there are not too many.
    fn take_handle(&self, new: Handle) -> Arc<Handle> {
        let handle = self.handle.lock().get_or_insert(Arc::new(new)).clone();
        self.fs.hold(self);
        handle
    }

    /// Whether what is known of the file is what its descriptor shows now. In a shared tree whoever judges has just asked.
    fn is_judged(&self, fd: &OwnedFd) -> bool {
        let ctime = self.attr.read().ctime;
        let now = |st: nix::sys::stat::FileStat| (st.st_ctime, st.st_ctime_nsec) == (ctime.sec, i64::from(ctime.nsec));
        !self.fs.exclusive || nix::sys::stat::fstat(fd).is_ok_and(now)
    }

    /// A descriptor of a regular file for this access, shared with other opens.
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
