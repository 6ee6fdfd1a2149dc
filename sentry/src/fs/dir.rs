//! Open directories, the part that all file systems share: `.` and `..` have the offsets 0 and 1, the entries follow
//! from 2 on.

use super::*;
use crate::error::{Errno, Result, SysResult};
use crate::mm::io::Dst;
use parking_lot::Mutex;
use platform::budget::{Budget, Charge};
use std::any::Any;
use std::sync::Arc;

/// The operations that a file system provides for an open directory.
pub trait Dir: Send + Sync + 'static {
    fn attr(&self) -> Result<Attr>;
    fn ino(&self) -> Result<u64> {
        Ok(self.attr()?.ino)
    }
    /// Called when a listing starts over: a kept snapshot is dropped.
    fn rewind(&self) -> Result<()> {
        Ok(())
    }
    /// The entries from offset `pos` (at least 2) on, each with the offset of the next one.
    fn list(&self, file: &File, pos: u64, sink: &mut DirSink<'_>) -> Result<()>;
    fn fsync(&self, _data_only: bool) -> Result<()> {
        Ok(())
    }
}

/// An open directory.
pub struct DirFile<D>(pub D);

impl<D: Dir> FileOps for DirFile<D> {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn read(&self, _file: &File, _dst: &mut Dst<'_>, _offset: u64) -> SysResult<usize> {
        Err(Errno::EISDIR.into())
    }
    fn seekable(&self) -> bool {
        true
    }
    /// Offsets are cookies, so there is no `SEEK_END`.
    fn seek(&self, _file: &File, offset: i64, whence: i32, current: u64) -> Result<u64> {
        seek_without_end(offset, whence, current)
    }
    fn readdir(&self, file: &File, pos: u64, sink: &mut DirSink<'_>) -> Result<()> {
        if pos == 0 {
            self.0.rewind()?;
        }
        if !emit_dots(file, pos, self.0.ino()?, sink) {
            return Ok(());
        }
        self.0.list(file, pos.max(2), sink)
    }
    fn fsync(&self, data_only: bool) -> Result<()> {
        self.0.fsync(data_only)
    }
    fn attr(&self) -> Result<Attr> {
        self.0.attr()
    }
}

/// lseek(2) on a file without an end.
pub fn seek_without_end(offset: i64, whence: i32, current: u64) -> Result<u64> {
    let base = match whence {
        libc::SEEK_SET => 0,
        libc::SEEK_CUR => current as i64,
        _ => return Err(Errno::EINVAL),
    };
    base.checked_add(offset).and_then(|v| u64::try_from(v).ok()).ok_or(Errno::EINVAL)
}

/// Emits `.` and `..`; false when the sink is full.
fn emit_dots(file: &File, pos: u64, ino: u64, sink: &mut DirSink<'_>) -> bool {
    if pos == 0 && !sink(DirEntry { name: b".", ino, kind: libc::DT_DIR, next: 1 }) {
        return false;
    }
    if pos <= 1 {
        let up = file.path.as_ref().and_then(|p| {
            let root = Arc::ptr_eq(p.dentry(), p.mount().root_dentry());
            let at = if root { p.mount().mountpoint()? } else { p.clone() };
            at.dentry().parent()?.inode().attr().ok()
        });
        let ino = up.map_or(ino, |a| a.ino);
        return sink(DirEntry { name: b"..", ino, kind: libc::DT_DIR, next: 2 });
    }
    true
}

/// Memory limit of the snapshots that open directories keep.
const LISTINGS_MAX: u64 = if cfg!(test) { 1 << 20 } else { 256 << 20 };
static LISTINGS: Budget = Budget::new(LISTINGS_MAX);

/// A charge for a growing listing.
pub fn listing_room() -> Charge {
    LISTINGS.nothing()
}

/// The entries as they were when the listing started.
pub struct Snapshot<T>(Mutex<Option<Arc<T>>>);

impl<T> Default for Snapshot<T> {
    fn default() -> Self {
        Snapshot(Mutex::new(None))
    }
}

impl<T> Snapshot<T> {
    pub fn forget(&self) {
        let old = self.0.lock().take();
        drop(old);
    }
    /// The snapshot; `take` makes it on the first call.
    pub fn get(&self, take: impl FnOnce() -> Result<Arc<T>>) -> Result<Arc<T>> {
        let mut s = self.0.lock();
        if let Some(l) = &*s {
            return Ok(l.clone());
        }
        Ok(s.insert(take()?).clone())
    }
}
