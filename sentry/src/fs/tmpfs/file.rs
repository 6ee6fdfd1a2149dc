//! Open files and directories of a tmpfs.

use super::{TmpInode, PAGE};
use crate::error::{Errno, Result, SysResult};
use crate::fs::dir::Dir;
use crate::fs::*;
use crate::mm::io::{Dst, Src};
use platform::budget::{admit, Use};
use std::any::Any;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::Arc;

/// Marks an unnamed file that linkat(2) may link once (`O_TMPFILE` without `O_EXCL`); true once linked.
#[derive(Default)]
pub struct Linkable(pub std::sync::atomic::AtomicBool);

/// Content of a regular file, shared by tmpfs and overlay.
impl TmpInode {
    pub fn read_at(&self, dst: &mut Dst<'_>, offset: u64) -> Result<usize> {
        self.data()?.read().read(dst, offset)
    }

    /// Writes at `offset`, or at the end. Returns the count and the new position.
    pub fn write_at(&self, src: &mut Src<'_>, offset: u64, append: bool) -> Result<(usize, u64)> {
        let mut d = self.data()?.write();
        let at = if append { d.len() } else { offset };
        let seals = self.seals.load(Ordering::Relaxed) as i32;
        if seals & (libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE) != 0 {
            return Err(Errno::EPERM);
        }
        if seals & libc::F_SEAL_GROW != 0 && at.saturating_add(src.remaining() as u64) > d.len() {
            return Err(Errno::EPERM);
        }
        let n = d.write(self.fs(), src, at)?;
        drop(d);
        if n > 0 {
            self.modified();
        }
        Ok((n, at + n as u64))
    }

    pub fn size(&self) -> u64 {
        self.data().map_or(0, |d| d.read().len())
    }

    pub fn seek_data(&self, offset: u64, whence: i32) -> Result<u64> {
        self.data()?.read().seek(offset, whence)
    }

    pub fn fallocate(&self, mode: i32, offset: u64, len: u64) -> Result<()> {
        let seals = self.seals.load(Ordering::Relaxed) as i32;
        let mut d = self.data()?.write();
        if (mode & libc::FALLOC_FL_PUNCH_HOLE != 0 && seals & (libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE) != 0)
            || (seals & libc::F_SEAL_GROW != 0 && offset.saturating_add(len) > d.len())
        {
            return Err(Errno::EPERM);
        }
        d.fallocate(self.fs(), mode, offset, len)?;
        drop(d);
        self.modified();
        Ok(())
    }

    /// A descriptor to map: writable only if the file is open for writing.
    pub fn map_source(&self, writable: bool, write_shared: bool) -> Result<MapSource> {
        let fd = match self.mappable(writable, write_shared) {
            Err(Errno::EMFILE | Errno::ENFILE) if super::mapped::make_room() => self.mappable(writable, write_shared),
            r => r,
        }?;
        super::mapped::note(self);
        Ok(MapSource::Host(fd))
    }
    fn mappable(&self, writable: bool, write_shared: bool) -> Result<Arc<OwnedFd>> {
        let seals = self.seals.load(Ordering::Relaxed) as i32;
        if write_shared && seals & (libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE) != 0 {
            return Err(Errno::EPERM);
        }
        // Held to the end: only this lock keeps [`unmap`](Self::unmap) from moving the content.
        let mut d = self.data()?.write();
        if write_shared {
            d.set_mapped();
        }
        let fd = d.share(self.fs())?.fd();
        if write_shared || writable && seals & (libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE) == 0 {
            d.set_given();
        }
        if write_shared {
            // A separate descriptor for shared writable mappings: its reference count tells whether any exists.
            let mut writable = self.mapped_writable.lock();
            if let Some(fd) = writable.upgrade() {
                return Ok(fd);
            }
            let own = Arc::new(admit(fd.try_clone().map_err(|_| Errno::ENFILE)?, Use::Mapped)?);
            *writable = Arc::downgrade(&own);
            return Ok(own);
        }
        if writable && seals & (libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE) == 0 {
            return Ok(fd);
        }
        let mut read_only = self.read_only.lock();
        if let Some(fd) = &*read_only {
            return Ok(fd.clone());
        }
        let reopen = self.fs().reopen.as_ref().ok_or(Errno::ENODEV)?;
        let fd = Arc::new(admit(reopen(fd.as_fd())?, Use::Mapped)?);
        *read_only = Some(fd.clone());
        Ok(fd)
    }

    /// Moves the content out of its memfd if the file is not mapped any more. True if it did.
    pub(super) fn unmap(&self) -> bool {
        let Some(mut d) = self.data().ok().and_then(|d| d.try_write()) else { return false };
        let mut read_only = self.read_only.lock();
        let used = self.mapped_writable.lock().strong_count() > 0
            || read_only.as_ref().is_some_and(|fd| Arc::strong_count(fd) > 1);
        if used || !d.unshare(self.fs()) {
            return false;
        }
        *read_only = None;
        true
    }

    pub fn seals(&self) -> i32 {
        self.seals.load(Ordering::Relaxed) as i32
    }
    /// Sets whether seals can be added (memfd_create(2)).
    pub fn allow_sealing(&self, allow: bool) {
        self.seals.store(if allow { 0 } else { libc::F_SEAL_SEAL as u32 }, Ordering::Relaxed);
    }
    /// `F_ADD_SEALS`.
    pub fn add_seals(&self, add: i32) -> Result<()> {
        let all = libc::F_SEAL_SEAL
            | libc::F_SEAL_SHRINK
            | libc::F_SEAL_GROW
            | libc::F_SEAL_WRITE
            | libc::F_SEAL_FUTURE_WRITE;
        if add & !all != 0 {
            return Err(Errno::EINVAL);
        }
        // The lock excludes a write in progress.
        let mut d = self.data()?.write();
        if self.seals() & libc::F_SEAL_SEAL != 0 {
            return Err(Errno::EPERM);
        }
        let mapped = self.mapped_writable.lock().strong_count() > 0;
        if add & libc::F_SEAL_WRITE != 0 && mapped {
            return Err(Errno::EBUSY);
        }
        // A process may have kept a writable descriptor or an unknown mapping, so the content is moved away from it.
        // Known mappings may continue to write under `F_SEAL_FUTURE_WRITE`, and their writes must stay visible.
        if add & (libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE) != 0 && !mapped {
            d.renew(self.fs()).map_err(|e| if e == Errno::ENFILE { Errno::ENOMEM } else { e })?;
            *self.read_only.lock() = None;
        }
        self.seals.fetch_or(add as u32, Ordering::Relaxed);
        Ok(())
    }
}

/// `lseek` for a file whose content is in `inode`.
pub fn seek(inode: &TmpInode, file: &File, offset: i64, whence: i32, current: u64) -> Result<u64> {
    match whence {
        libc::SEEK_DATA | libc::SEEK_HOLE => inode.seek_data(u64::try_from(offset).map_err(|_| Errno::ENXIO)?, whence),
        _ => file.default_seek(offset, whence, current),
    }
}

pub struct TmpFile(pub Arc<TmpInode>);

impl FileOps for TmpFile {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn read(&self, file: &File, dst: &mut Dst<'_>, offset: u64) -> SysResult<usize> {
        let n = self.0.read_at(dst, offset)?;
        if n > 0 && file.updates_atime() {
            self.0.accessed();
        }
        Ok(n)
    }
    fn write(&self, file: &File, src: &mut Src<'_>, offset: u64) -> SysResult<(usize, u64)> {
        let append = src.appends(file.flags());
        Ok(self.0.write_at(src, offset, append)?)
    }
    fn seekable(&self) -> bool {
        true
    }
    fn seek(&self, file: &File, offset: i64, whence: i32, current: u64) -> Result<u64> {
        seek(&self.0, file, offset, whence, current)
    }
    fn map(&self, file: &File, write_shared: bool) -> Result<MapSource> {
        self.0.map_source(file.writable(), write_shared)
    }
    fn fsync(&self, _data_only: bool) -> Result<()> {
        Ok(())
    }
    fn fallocate(&self, _file: &File, mode: i32, offset: u64, len: u64) -> Result<()> {
        self.0.fallocate(mode, offset, len)
    }
    fn attr(&self) -> Result<Attr> {
        self.0.attr()
    }
    fn set_attr(&self, set: &SetAttr) -> Result<()> {
        self.0.set_attr(set)
    }
}

pub struct TmpDir(pub Arc<TmpInode>);

impl Dir for TmpDir {
    fn attr(&self) -> Result<Attr> {
        self.0.attr()
    }
    fn ino(&self) -> Result<u64> {
        Ok(self.0.ino())
    }
    fn list(&self, _file: &File, mut pos: u64, sink: &mut DirSink<'_>) -> Result<()> {
        loop {
            let batch = self.0.entries(pos, 64);
            let Some(last) = batch.last() else { break };
            pos = last.0;
            for (next, name, inode) in &batch {
                let kind = (inode.kind() >> 12) as u8;
                if !sink(DirEntry { name, ino: inode.ino(), kind, next: *next }) {
                    return Ok(());
                }
            }
        }
        self.0.accessed();
        Ok(())
    }
}

const _: () = assert!(PAGE == platform::PAGE_SIZE);
