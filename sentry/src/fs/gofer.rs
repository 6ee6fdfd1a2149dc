//! Files of the host, through the Gofer.
//!
//! An *exclusive* tree is changed by nobody else: names (the dentry cache), attributes and listings are kept, and a repeated `stat`
//! or `open` asks nobody. A cold walk fetches all its names in one request ([`Inode::prefetch`]); what the later lookups will want waits in
//! `ahead`. A *shared* tree is asked every time.
//!
//! Content is read, written and mapped through descriptors that the Gofer donates; opens of one file for the same access share one, and
//! a few hundred recently used ones are kept open.

use super::tmpfs::file::{dir_seek, emit_dots};
use super::vfs::dentry::NameMap;
use super::vfs::{anonymous_dev, Mount, MountFlags, SuperBlock};
use super::*;
use crate::error::{Errno, Result, SysResult};
use crate::mm::io::{Dst, Src};
use nix::sys::uio::{pread, pwrite};
use parking_lot::{Mutex, RwLock};
use protocol::client::WalkEnd;
use protocol::{Client, Handle, MknodKind, NewNode as Fresh, OpenFlags, SetTime, WalkFids, XattrMode};
use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

/// Descriptors kept open though no open file has them.
const KEEP_OPEN: usize = 256;
/// Names known to be missing that one directory keeps.
const MISSING_MAX: usize = 4096;
/// Bytes moved at a time.
const CHUNK: usize = 256 * 1024;

/// One attached tree.
pub struct GoferFs {
    dev: u64,
    exclusive: bool,
    /// Inodes in use, by the host's device and number: two names of one file are one inode.
    nodes: Mutex<HashMap<(u64, u64), Weak<GoferInode>>>,
    /// Devices of the host that inodes are on; the first is the root's.
    devs: Mutex<Vec<u64>>,
    recent: Mutex<VecDeque<Arc<OwnedFd>>>,
}

/// Access of a donated descriptor, as index.
const RO: usize = 0;
const WO: usize = 1;
const RW: usize = 2;

pub struct GoferInode {
    me: Weak<GoferInode>,
    fs: Arc<GoferFs>,
    handle: Handle,
    key: (u64, u64),
    kind: u32,
    attr: RwLock<Attr>,
    /// `attr` must be asked for again.
    stale: AtomicBool,
    target: OnceLock<Box<[u8]>>,
    fds: [Mutex<Weak<OwnedFd>>; 3],
    /// Children that a compound walk brought along.
    ahead: Mutex<NameMap<Option<Arc<GoferInode>>>>,
    listing: Mutex<Option<Arc<Listing>>>,
    /// Held while a write appends.
    appending: Mutex<()>,
    extra: InodeExtra,
}

/// Names of a directory: entry `i` is at offset `i + 2`.
type Listing = Vec<(Box<[u8]>, u64, u8)>;

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
        });
        let node = client.attach(name)?;
        Ok(fs.inode(node.handle, &node.attr, None))
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

    fn inode(self: &Arc<Self>, handle: Handle, a: &protocol::Attr, target: Option<Box<[u8]>>) -> Arc<GoferInode> {
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
            handle,
            key,
            kind: attr.file_type(),
            attr: RwLock::new(attr),
            stale: AtomicBool::new(false),
            target: OnceLock::new(),
            fds: Default::default(),
            ahead: Mutex::default(),
            listing: Mutex::default(),
            appending: Mutex::new(()),
            extra: InodeExtra::default(),
        });
        if let Some(t) = target {
            let _ = i.target.set(t);
        }
        self.nodes.lock().insert(key, Arc::downgrade(&i));
        i
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
        let a = self.handle.getattr()?;
        self.store(self.fs.convert(&a));
        Ok(())
    }
    /// The directory's entries changed.
    fn entries_changed(&self, name: &[u8]) {
        self.ahead.lock().remove(name);
        *self.listing.lock() = None;
        self.stale.store(true, Ordering::Release);
    }
    pub fn mark_stale(&self) {
        self.stale.store(true, Ordering::Release);
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
        let fd = Arc::new(self.handle.open(flags)?);
        *cached = Arc::downgrade(&fd);
        drop(cached);
        self.fs.keep(&fd);
        Ok(fd)
    }

    fn add_child(self: &Arc<Self>, node: protocol::client::Node, name: &[u8]) -> Arc<GoferInode> {
        self.entries_changed(name);
        self.fs.inode(node.handle, &node.attr, None)
    }

    fn list(&self) -> Result<Arc<Listing>> {
        if self.fs.exclusive {
            if let Some(l) = &*self.listing.lock() {
                return Ok(l.clone());
            }
        }
        let mut out = Listing::new();
        let mut cookie = 0;
        loop {
            let page = self.handle.read_dir(cookie, false)?;
            let before = out.len();
            for e in page.iter() {
                cookie = e.cookie;
                out.push((e.name.into(), e.ino, e.kind.dirent()));
            }
            if page.eof || out.len() == before {
                break;
            }
        }
        let l = Arc::new(out);
        if self.fs.exclusive {
            *self.listing.lock() = Some(l.clone());
        }
        Ok(l)
    }
}

/// Reads from a host descriptor at an offset.
pub fn read_fd(fd: &OwnedFd, dst: &mut Dst<'_>, offset: u64) -> Result<usize> {
    let mut done = 0usize;
    while dst.remaining() > 0 {
        let at = i64::try_from(offset.saturating_add(done as u64)).map_err(|_| Errno::EINVAL)?;
        let want = dst.remaining().min(CHUNK);
        let mut got = 0;
        let r = dst.fill(want, &mut |buf| {
            got = retry(|| pread(fd, buf, at))?;
            Ok(got)
        });
        match r {
            Ok(n) => {
                done += n;
                if n < want {
                    break;
                }
            }
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Writes to a host descriptor at an offset.
pub fn write_fd(fd: &OwnedFd, src: &mut Src<'_>, offset: u64) -> Result<usize> {
    let mut done = 0usize;
    let mut buf = vec![0u8; src.remaining().min(CHUNK)];
    while src.remaining() > 0 {
        let at = i64::try_from(offset.saturating_add(done as u64)).map_err(|_| Errno::EFBIG)?;
        let n = match src.take(&mut buf) {
            Ok(0) => break,
            Ok(n) => n,
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        };
        match retry(|| pwrite(fd, &buf[..n], at)) {
            Ok(k) => {
                done += k;
                if k < n {
                    src.give_back(n - k);
                    break;
                }
            }
            Err(e) => {
                src.give_back(n);
                return if done > 0 { Ok(done) } else { Err(e) };
            }
        }
    }
    Ok(done)
}

fn retry<T>(mut f: impl FnMut() -> nix::Result<T>) -> Result<T> {
    loop {
        match f() {
            Err(Errno::EINTR) => {}
            r => return r,
        }
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
        let a = self.handle.setattr(protocol::SetAttr {
            mode: set.mode,
            uid: set.uid,
            gid: set.gid,
            size: set.size,
            atime: t(set.atime),
            mtime: t(set.mtime),
        })?;
        self.store(self.fs.convert(&a));
        Ok(())
    }
    fn prefetch(&self, names: &[&[u8]], open: bool) {
        if !self.fs.exclusive || names.is_empty() || self.kind != libc::S_IFDIR {
            return;
        }
        let Ok(walk) = self.handle.walk(names, WalkFids::Each, open.then_some(OpenFlags::READ)) else { return };
        let Ok(mut dir) = self.arc() else { return };
        let complete = walk.nodes.len() == names.len();
        let mut names = names.iter();
        for node in walk.nodes {
            let (Some(name), Some(handle)) = (names.next(), node.handle) else { return };
            let inode = self.fs.inode(handle, &node.attr, node.target);
            dir.ahead.lock().insert((*name).into(), Some(inode.clone()));
            dir = inode;
        }
        if let (WalkEnd::Missing, Some(name)) = (walk.end, names.next()) {
            dir.ahead.lock().insert((*name).into(), None);
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
        if self.fs.exclusive {
            let mut ahead = self.ahead.lock();
            match ahead.get(name) {
                // What does not exist is kept: the overlay asks again for names it has made itself.
                Some(None) => return Err(Errno::ENOENT),
                Some(Some(_)) => {
                    if let Some(Some(i)) = ahead.remove(name) {
                        return Ok(i);
                    }
                }
                None => {}
            }
        }
        let mut walk = self.handle.walk(&[name], WalkFids::Last, None)?;
        match (walk.nodes.pop(), walk.end) {
            (Some(node), _) => {
                let handle = node.handle.ok_or(Errno::EIO)?;
                Ok(self.fs.inode(handle, &node.attr, node.target))
            }
            (None, WalkEnd::Failed(e)) => Err(Errno::from_raw(e as i32)),
            (None, WalkEnd::NotDirectory) => Err(Errno::ENOTDIR),
            (None, _) => {
                if self.fs.exclusive {
                    let mut ahead = self.ahead.lock();
                    if ahead.len() >= MISSING_MAX {
                        ahead.clear();
                    }
                    ahead.insert(name.into(), None);
                }
                Err(Errno::ENOENT)
            }
        }
    }
    fn create(&self, name: &[u8], node: NewNode<'_>, mode: u32, uid: u32, gid: u32) -> Result<Arc<dyn Inode>> {
        let me = self.arc()?;
        let h = &self.handle;
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
        let n = self.handle.link(name, &t.handle)?;
        self.entries_changed(name);
        t.store(self.fs.convert(&n.attr));
        Ok(())
    }
    fn unlink(&self, name: &[u8], child: &Arc<dyn Inode>) -> Result<()> {
        self.handle.unlink(name, false)?;
        self.entries_changed(name);
        gofer(child)?.mark_stale();
        Ok(())
    }
    fn rmdir(&self, name: &[u8], child: &Arc<dyn Inode>) -> Result<()> {
        self.handle.unlink(name, true)?;
        self.entries_changed(name);
        gofer(child)?.mark_stale();
        Ok(())
    }
    fn rename(&self, name: &[u8], _moved: &Arc<dyn Inode>, target: &Target<'_>, flags: RenameFlags) -> Result<()> {
        let to = gofer(target.dir)?;
        let new_name = target.name;
        if flags.contains(RenameFlags::WHITEOUT) {
            return Err(Errno::EINVAL);
        }
        let f = protocol::RenameFlags::from_bits_truncate(flags.bits());
        self.handle.rename(name, &to.handle, new_name, f)?;
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
        let t = self.handle.readlink()?;
        Ok(self.target.get_or_init(|| t.into()).to_vec())
    }
    fn open(self: Arc<Self>, flags: i32) -> Result<Box<dyn FileOps>> {
        match self.kind {
            libc::S_IFREG => {
                let fd = self.descriptor(flags & libc::O_ACCMODE)?;
                Ok(Box::new(GoferFile { inode: self, fd }))
            }
            libc::S_IFDIR => Ok(Box::new(GoferDir { inode: self, snapshot: Mutex::default() })),
            libc::S_IFLNK => Err(Errno::ELOOP),
            _ => Err(Errno::ENXIO),
        }
    }
    fn statfs(&self) -> Result<StatFs> {
        let s = self.handle.statfs()?;
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
        self.handle.get_xattr(name)
    }
    fn set_xattr(&self, name: &[u8], value: &[u8], flags: i32) -> Result<()> {
        let mode = match flags {
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => XattrMode::Any,
        };
        self.handle.set_xattr(name, value, mode)?;
        self.mark_stale();
        Ok(())
    }
    fn list_xattr(&self) -> Result<Vec<Vec<u8>>> {
        let raw = self.handle.list_xattr()?;
        Ok(raw.split(|&b| b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect())
    }
    fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        self.handle.remove_xattr(name)?;
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

struct GoferFile {
    inode: Arc<GoferInode>,
    fd: Arc<OwnedFd>,
}

impl FileOps for GoferFile {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn read(&self, _file: &File, dst: &mut Dst<'_>, offset: u64) -> SysResult<usize> {
        Ok(read_fd(&self.fd, dst, offset)?)
    }
    fn write(&self, file: &File, src: &mut Src<'_>, offset: u64) -> SysResult<(usize, u64)> {
        let append = file.flags() & libc::O_APPEND != 0;
        let _one_at_a_time = append.then(|| self.inode.appending.lock());
        let at = if append { nix::sys::stat::fstat(&*self.fd)?.st_size as u64 } else { offset };
        let n = write_fd(&self.fd, src, at)?;
        if n > 0 {
            self.inode.mark_stale();
        }
        Ok((n, at + n as u64))
    }
    fn seekable(&self) -> bool {
        true
    }
    fn seek(&self, file: &File, offset: i64, whence: i32, current: u64) -> Result<u64> {
        let how = match whence {
            libc::SEEK_DATA => nix::unistd::Whence::SeekData,
            libc::SEEK_HOLE => nix::unistd::Whence::SeekHole,
            _ => return file.default_seek(offset, whence, current),
        };
        // The descriptor's own offset is used for nothing else.
        Ok(nix::unistd::lseek(&*self.fd, offset, how)? as u64)
    }
    fn map(&self, _file: &File, write_shared: bool) -> Result<MapSource> {
        if write_shared {
            self.inode.mark_stale();
        }
        Ok(MapSource::Host(self.fd.clone()))
    }
    fn fsync(&self, data_only: bool) -> Result<()> {
        retry(|| if data_only { nix::unistd::fdatasync(&*self.fd) } else { nix::unistd::fsync(&*self.fd) })
    }
    fn fallocate(&self, _file: &File, mode: i32, offset: u64, len: u64) -> Result<()> {
        let (Ok(o), Ok(l)) = (i64::try_from(offset), i64::try_from(len)) else { return Err(Errno::EFBIG) };
        platform::host::fallocate(self.fd.as_fd(), mode, o, l)?;
        self.inode.mark_stale();
        Ok(())
    }
    fn attr(&self) -> Result<Attr> {
        self.inode.attr()
    }
}

struct GoferDir {
    inode: Arc<GoferInode>,
    /// The listing as it was when offset 0 was read last.
    snapshot: Mutex<Option<Arc<Listing>>>,
}

impl FileOps for GoferDir {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn read(&self, _file: &File, _dst: &mut Dst<'_>, _offset: u64) -> SysResult<usize> {
        Err(Errno::EISDIR.into())
    }
    fn seekable(&self) -> bool {
        true
    }
    fn seek(&self, file: &File, offset: i64, whence: i32, current: u64) -> Result<u64> {
        dir_seek(file, offset, whence, current)
    }
    fn readdir(&self, file: &File, pos: u64, sink: &mut DirSink<'_>) -> Result<()> {
        let list = {
            let mut s = self.snapshot.lock();
            match &*s {
                Some(l) if pos != 0 => l.clone(),
                _ => {
                    let l = self.inode.list()?;
                    *s = Some(l.clone());
                    l
                }
            }
        };
        if !emit_dots(file, pos, self.inode.attr()?.ino, sink) {
            return Ok(());
        }
        for (i, (name, ino, kind)) in list.iter().enumerate().skip(pos.saturating_sub(2) as usize) {
            if !sink(DirEntry { name, ino: *ino, kind: *kind, next: i as u64 + 3 }) {
                break;
            }
        }
        Ok(())
    }
    fn fsync(&self, data_only: bool) -> Result<()> {
        self.inode.handle.fsync(data_only)
    }
    fn attr(&self) -> Result<Attr> {
        self.inode.attr()
    }
}
