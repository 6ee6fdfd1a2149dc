//! Open files and directories of an overlay. A file opened for reading switches to the upper file when its inode is
//! copied up.

use super::{Listing, OvlInode};
use crate::error::{Errno, Result, SysResult};
use crate::fs::dir::{Dir, Snapshot};
use crate::fs::tmpfs::file::seek;
use crate::fs::tmpfs::TmpInode;
use crate::fs::*;
use crate::mm::io::{Dst, Src};
use std::any::Any;
use std::sync::Arc;

pub(super) fn open(inode: Arc<OvlInode>, flags: i32) -> Result<Box<dyn FileOps>> {
    match inode.kind {
        libc::S_IFREG => {
            if flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0 {
                inode.copy_up(flags & libc::O_TRUNC == 0)?;
            }
            let lower = match (inode.upper.get(), &inode.lower) {
                (None, Some(l)) => Some(l.clone().open(libc::O_RDONLY)?),
                _ => None,
            };
            Ok(Box::new(OvlFile { inode, lower }))
        }
        libc::S_IFDIR => Ok(Box::new(DirFile(OvlDir { inode, entries: Snapshot::default() }))),
        libc::S_IFLNK => Err(Errno::ELOOP),
        libc::S_IFCHR => {
            let task = crate::kernel::current::get().ok_or(Errno::ENXIO)?;
            dev::open_char(&task.kernel, inode.attr()?.rdev, flags)
        }
        _ => Err(Errno::ENXIO),
    }
}

struct OvlFile {
    inode: Arc<OvlInode>,
    /// The lower file, if it was opened before the copy-up.
    lower: Option<Box<dyn FileOps>>,
}

impl OvlFile {
    fn lower(&self) -> Result<&dyn FileOps> {
        self.lower.as_deref().ok_or(Errno::EBADF)
    }
}

impl FileOps for OvlFile {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn read(&self, file: &File, dst: &mut Dst<'_>, offset: u64) -> SysResult<usize> {
        let Some(u) = self.inode.upper.get() else { return self.lower()?.read(file, dst, offset) };
        let n = u.read_at(dst, offset)?;
        if n > 0 && file.updates_atime() {
            u.accessed();
        }
        Ok(n)
    }
    fn write(&self, file: &File, src: &mut Src<'_>, offset: u64) -> SysResult<(usize, u64)> {
        let u = self.inode.copy_up(true)?;
        let append = src.appends(file.flags());
        Ok(u.write_at(src, offset, append)?)
    }
    fn seekable(&self) -> bool {
        true
    }
    fn seek(&self, file: &File, offset: i64, whence: i32, current: u64) -> Result<u64> {
        match self.inode.upper.get() {
            Some(u) => seek(u, file, offset, whence, current),
            None => self.lower()?.seek(file, offset, whence, current),
        }
    }
    fn map(&self, file: &File, write_shared: bool) -> Result<MapSource> {
        match self.inode.upper.get() {
            Some(u) => u.map_source(file.writable(), write_shared),
            None => self.lower()?.map(file, write_shared),
        }
    }
    fn copied(&self, offset: u64, len: u64) -> Option<Vec<u8>> {
        match self.inode.upper.get() {
            Some(_) => None,
            None => self.lower.as_ref()?.copied(offset, len),
        }
    }
    fn fsync(&self, _data_only: bool) -> Result<()> {
        Ok(())
    }
    fn fallocate(&self, _file: &File, mode: i32, offset: u64, len: u64) -> Result<()> {
        self.inode.copy_up(true)?.fallocate(mode, offset, len)
    }
    fn attr(&self) -> Result<Attr> {
        self.inode.attr()
    }
    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        self.inode.set_attr(set)
    }
}

struct OvlDir {
    inode: Arc<OvlInode>,
    entries: Snapshot<Entries>,
}

enum Entries {
    /// The directory is unchanged: the lower layer's file.
    Lower(Box<dyn FileOps>),
    /// The merged entries of both layers, taken when the listing began; entry `i` is at offset `i + 2`.
    Merged(Listing),
}

impl OvlDir {
    fn take(&self) -> Result<Arc<Entries>> {
        Ok(Arc::new(match (self.inode.upper.get(), &self.inode.lower) {
            (None, Some(l)) => Entries::Lower(l.clone().open(libc::O_RDONLY | libc::O_DIRECTORY)?),
            _ => Entries::Merged(self.inode.entries()?),
        }))
    }
}

impl Dir for OvlDir {
    fn attr(&self) -> Result<Attr> {
        self.inode.attr()
    }
    fn ino(&self) -> Result<u64> {
        Ok(self.inode.ino)
    }
    fn rewind(&self) -> Result<()> {
        self.entries.forget();
        Ok(())
    }
    fn list(&self, file: &File, pos: u64, sink: &mut DirSink<'_>) -> Result<()> {
        if let (Some(upper), None) = (self.inode.upper.get(), &self.inode.lower) {
            // No snapshot is needed: the offsets of an in-memory directory are stable.
            return list_upper(upper, pos, sink);
        }
        let entries = self.entries.get(|| self.take())?;
        let list = match &*entries {
            Entries::Lower(dir) => return dir.readdir(file, pos, sink),
            Entries::Merged(listing) => &listing.list,
        };
        let skip = usize::try_from(pos.saturating_sub(2)).unwrap_or(usize::MAX);
        for (i, (name, ino, kind)) in list.iter().enumerate().skip(skip) {
            if !sink(DirEntry { name, ino: *ino, kind: *kind, next: i as u64 + 3 }) {
                break;
            }
        }
        Ok(())
    }
}

fn list_upper(upper: &TmpInode, mut pos: u64, sink: &mut DirSink<'_>) -> Result<()> {
    loop {
        let batch = upper.entries(pos, 64);
        let Some(last) = batch.last() else { return Ok(()) };
        pos = last.0;
        for (next, name, inode) in batch.iter().filter(|(_, _, i)| !i.is_whiteout()) {
            if !sink(DirEntry { name, ino: inode.ino(), kind: (inode.kind() >> 12) as u8, next: *next }) {
                return Ok(());
            }
        }
    }
}
