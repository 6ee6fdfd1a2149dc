//! Getting at what the Gofer holds, or could: handles, and descriptors of files.

use super::*;

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

    /// A directory above that the Gofer holds, and the names from there to here; none if it holds this one.
    pub(super) fn way(&self) -> Result<(Arc<Handle>, Vec<&[u8]>)> {
        let (start, mut names) = self.nearest()?;
        let Some((parent, _)) = self.origin.as_ref().filter(|_| names.len() > 1) else { return Ok((start, names)) };
        // Where many ways lead through a directory, they are better begun there.
        if parent.passed.fetch_add(1, Ordering::Relaxed) < PASSED {
            return Ok((start, names));
        }
        let last = names.pop();
        let mut walk = start.walk(&names, WalkFids::Last, None)?;
        let found = walk.end == WalkEnd::Complete && walk.nodes.len() == names.len();
        match walk.nodes.pop().and_then(|n| n.handle).filter(|_| found) {
            Some(h) => Ok((parent.take_handle(h), Vec::from_iter(last))),
            None => Err(Errno::ESTALE),
        }
    }

    fn nearest(&self) -> Result<(Arc<Handle>, Vec<&[u8]>)> {
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
    pub(super) fn again(&self, fids: WalkFids, open: Option<OpenFlags>) -> Result<Walk> {
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
        let a = last.map(|n| n.attr).filter(|a| a.mode & libc::S_IFMT == self.kind).ok_or(Errno::ESTALE)?;
        self.store(&a);
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
}
