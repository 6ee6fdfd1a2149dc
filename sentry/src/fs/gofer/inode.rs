//! The [`Inode`] operations.

use super::super::acl::Acl;
use super::handles::full;
use super::*;

/// The Gofer inode behind a trait object; `EXDEV` for others.
pub fn gofer(inode: &Arc<dyn Inode>) -> Result<&GoferInode> {
    inode.as_any().downcast_ref().ok_or(Errno::EXDEV)
}

/// Creates with the owner that the guest expects. Where the Gofer may not set owners, the file belongs to the Gofer's
/// user; then set-user-ID is dropped, because it would grant that user's rights.
fn with_owner<T>(mode: u32, uid: u32, gid: u32, f: impl Fn(Fresh) -> Result<T>) -> Result<T> {
    match f(Fresh { mode: mode & 0o7777, uid: Some(uid), gid: Some(gid) }) {
        Err(Errno::EPERM | Errno::EINVAL | Errno::EOVERFLOW) => f(Fresh::with_mode(mode & 0o1777)),
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
    fn acl(&self) -> Result<Option<Arc<Acl>>> {
        if self.acl.absent() {
            return Ok(None);
        }
        self.acl.get(|| self.handle()?.get_xattr(super::super::acl::ACCESS))
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
        self.store(&a);
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
                Ok(CachedName::Node(i)) => {
                    dir.expect(name, Some(i.clone()));
                    if i.kind != libc::S_IFDIR {
                        return;
                    }
                    (dir, rest) = (i, below);
                }
                Ok(CachedName::Unknown) => break,
                Ok(CachedName::Missing) | Err(_) => return,
            }
        }
        let known = dir.clone();
        let Ok(way) = known.way() else { return };
        let (above, mut names) = (way.names.len(), way.names.clone());
        names.extend(rest.iter().take(MAX_WALK.saturating_sub(above)));
        if names.len() == above {
            return;
        }
        let Ok(walk) = way.start.walk(&names, WalkFids::None, open.then_some(OpenFlags::READ)) else { return };
        if way.check_walk(&walk).is_err() {
            return;
        }
        let complete = walk.nodes.len() == names.len() && names.len() == above + rest.len();
        let mut names = names.iter().skip(above);
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
                CachedName::Node(i) => return Ok(i),
                CachedName::Missing => return Err(Errno::ENOENT),
                CachedName::Unknown => {}
            }
        }
        let share = self.fs.share()?;
        let mut walk = if exclusive {
            let way = self.way_on()?;
            let mut names = way.names.clone();
            names.push(name);
            let mut walk = way.start.walk(&names, WalkFids::None, None)?;
            way.check_walk(&walk)?;
            walk.nodes.drain(..way.names.len());
            walk
        } else {
            self.fs.walk(&*self.handle()?, &[name], WalkFids::Last, None)?
        };
        match (walk.nodes.pop(), walk.end) {
            (Some(node), _) => {
                if !exclusive && node.handle.is_none() {
                    return Err(Errno::EIO);
                }
                let (inode, new) = self.fs.inode_or_new(&node.attr, Some((&me, name)), node.handle, node.target);
                if let (true, Some(share)) = (new, share) {
                    let _ = inode.share.set(share);
                }
                Ok(inode)
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
        let share = self.fs.share()?;
        let h = self.handle()?;
        let own =
            |make: &dyn Fn(Fresh) -> Result<protocol::client::Node>| with_owner(mode, uid, gid, make).map_err(full);
        let inode = match node {
            NewNode::File => {
                // The creator may write the new file whatever its mode.
                let (n, fd) =
                    with_owner(mode, uid, gid, |new| h.create(name, new, OpenFlags::READ_WRITE)).map_err(full)?;
                let inode = me.add_child(n, name, share);
                let fd = Arc::new(fd);
                for slot in [RO, WO, RW] {
                    if let Some(s) = inode.fds.get(slot).filter(|_| slot != RO) {
                        *s.lock() = Arc::downgrade(&fd);
                    }
                }
                self.fs.keep(&fd);
                inode
            }
            NewNode::Dir => me.add_child(own(&|new| h.mkdir(name, new))?, name, share),
            NewNode::Symlink(t) => me.add_child(own(&|new| h.symlink(name, t, new))?, name, share),
            NewNode::Fifo => me.add_child(own(&|new| h.mknod(name, MknodKind::Fifo, new))?, name, share),
            NewNode::Socket => me.add_child(own(&|new| h.mknod(name, MknodKind::Socket, new))?, name, share),
            NewNode::Char(_) | NewNode::Block(_) => return Err(Errno::EPERM),
        };
        Ok(inode)
    }
    fn link(&self, name: &[u8], target: &Arc<dyn Inode>) -> Result<()> {
        let t = gofer(target)?;
        let n = self.handle()?.link(name, &*t.handle()?)?;
        self.entries_changed(name);
        t.store(&n.attr);
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
    fn rename(&self, name: &[u8], moved: &Arc<dyn Inode>, target: &RenameTarget<'_>, flags: RenameFlags) -> Result<()> {
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
        // A replaced file has lost a name, and a moved one has a new ctime.
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
                let access = flags & libc::O_ACCMODE;
                let content = if access == libc::O_RDONLY { self.content() } else { None };
                Ok(Box::new(match content {
                    Some(c) => GoferFile::with_content(self, c),
                    None => {
                        let fd = self.descriptor(access)?;
                        GoferFile::with_descriptor(self, fd)
                    }
                }))
            }
            libc::S_IFDIR => Ok(Box::new(GoferDir::open(self))),
            libc::S_IFLNK => Err(Errno::ELOOP),
            _ => Err(Errno::ENXIO),
        }
    }
    fn statfs(&self) -> Result<StatFs> {
        self.handle()?.statfs()
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
        self.acl.forget();
        self.mark_stale();
        Ok(())
    }
    fn list_xattr(&self) -> Result<Vec<Vec<u8>>> {
        let raw = self.handle()?.list_xattr()?;
        Ok(raw.split(|&b| b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect())
    }
    fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        self.handle()?.remove_xattr(name)?;
        self.acl.forget();
        self.mark_stale();
        Ok(())
    }
    fn volatile(&self) -> bool {
        !self.fs.exclusive
    }
    fn limits(&self) -> MountFlags {
        MountFlags::from_bits_truncate(self.limits.load(Ordering::Relaxed))
    }
    fn gone(&self) -> bool {
        self.is_lost()
    }
    fn extra(&self) -> Option<&InodeExtra> {
        Some(&self.extra)
    }
}
