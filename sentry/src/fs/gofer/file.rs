//! Open files and directories of a Gofer tree.

use super::listing::Listing;
use super::{Content, GoferInode};
use crate::error::{Errno, Result, SysResult};
use crate::fs::dir::{Dir, Snapshot};
use crate::fs::*;
use crate::mm::io::{Dst, Src};
use nix::sys::uio::{pread, pwrite};
use std::any::Any;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};

/// Bytes moved at a time.
const CHUNK: usize = 256 * 1024;

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
    write_by(src, |bytes, done| {
        let at = i64::try_from(offset.saturating_add(done)).map_err(|_| Errno::EFBIG)?;
        retry(|| pwrite(fd, bytes, at))
    })
}

/// Writes all of `src` in pieces. `put` gets the bytes and the count written before, and returns how many it has
/// written.
fn write_by(src: &mut Src<'_>, put: impl Fn(&[u8], u64) -> Result<usize>) -> Result<usize> {
    let mut done = 0usize;
    let mut buf = vec![0u8; src.remaining().min(CHUNK)];
    while src.remaining() > 0 {
        let n = match src.take(&mut buf) {
            Ok(0) => break,
            Ok(n) => n,
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        };
        match put(&buf[..n], done as u64) {
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

pub(super) fn retry<T>(mut f: impl FnMut() -> nix::Result<T>) -> Result<T> {
    loop {
        match f() {
            Err(Errno::EINTR) => {}
            r => return r,
        }
    }
}

pub(super) struct GoferFile {
    inode: Arc<GoferInode>,
    /// The whole content, if read-ahead fetched it: then the file is open for reading, in an exclusive tree.
    content: Option<Arc<Content>>,
    /// Opened on first use.
    fd: OnceLock<Arc<OwnedFd>>,
}

impl GoferFile {
    pub(super) fn with_descriptor(inode: Arc<GoferInode>, fd: Arc<OwnedFd>) -> GoferFile {
        GoferFile { inode, content: None, fd: OnceLock::from(fd) }
    }
    pub(super) fn with_content(inode: Arc<GoferInode>, content: Arc<Content>) -> GoferFile {
        GoferFile { inode, content: Some(content), fd: OnceLock::new() }
    }
    fn fd(&self) -> Result<&Arc<OwnedFd>> {
        if let Some(fd) = self.fd.get() {
            return Ok(fd);
        }
        let fd = self.inode.descriptor(libc::O_RDONLY)?;
        Ok(self.fd.get_or_init(|| fd))
    }
}

impl FileOps for GoferFile {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn read(&self, _file: &File, dst: &mut Dst<'_>, offset: u64) -> SysResult<usize> {
        match &self.content {
            Some(c) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                Ok(dst.put(c.bytes.get(from..).unwrap_or(&[]))?)
            }
            None => Ok(read_fd(self.fd()?, dst, offset)?),
        }
    }
    fn write(&self, file: &File, src: &mut Src<'_>, offset: u64) -> SysResult<(usize, u64)> {
        let fd = self.fd()?;
        let (n, end) = if src.appends(file.flags()) {
            // Host processes may append too, so only the host knows where the end is.
            let _position = self.inode.appending.lock();
            let n = write_by(src, |bytes, _| retry(|| platform::host::append(fd.as_fd(), bytes)))?;
            let end = nix::unistd::lseek(&**fd, 0, nix::unistd::Whence::SeekCur)? as u64;
            (n, if n > 0 { end } else { offset })
        } else {
            let n = write_fd(fd, src, offset)?;
            (n, offset + n as u64)
        };
        if n > 0 {
            self.inode.mark_stale();
        }
        Ok((n, end))
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
        // Only appending and seeking use the descriptor's own offset.
        let _position = self.inode.appending.lock();
        Ok(nix::unistd::lseek(&**self.fd()?, offset, how)? as u64)
    }
    fn map(&self, _file: &File, write_shared: bool) -> Result<MapSource> {
        if write_shared {
            self.inode.mark_stale();
        }
        if self.content.is_some() {
            self.inode.is_mapped();
        }
        Ok(MapSource::Host(self.fd()?.clone()))
    }
    fn copied(&self, offset: u64, len: u64) -> Option<Vec<u8>> {
        let bytes = self.content.as_ref()?.bytes.get(usize::try_from(offset).ok()?..)?;
        let len = usize::try_from(len).ok()?;
        if len > bytes.len().next_multiple_of(platform::PAGE_SIZE as usize) {
            return None;
        }
        Some(bytes.get(..len).unwrap_or(bytes).to_vec())
    }
    fn fsync(&self, data_only: bool) -> Result<()> {
        let fd = self.fd()?;
        retry(|| if data_only { nix::unistd::fdatasync(&**fd) } else { nix::unistd::fsync(&**fd) })
    }
    fn fallocate(&self, _file: &File, mode: i32, offset: u64, len: u64) -> Result<()> {
        let (Ok(o), Ok(l)) = (i64::try_from(offset), i64::try_from(len)) else { return Err(Errno::EFBIG) };
        platform::host::fallocate(self.fd()?.as_fd(), mode, o, l)?;
        self.inode.mark_stale();
        Ok(())
    }
    fn attr(&self) -> Result<Attr> {
        self.inode.attr()
    }
}

pub(super) struct GoferDir {
    inode: Arc<GoferInode>,
    listing: Snapshot<Listing>,
}

impl GoferDir {
    pub(super) fn open(inode: Arc<GoferInode>) -> DirFile<GoferDir> {
        DirFile(GoferDir { inode, listing: Snapshot::default() })
    }
}

impl Dir for GoferDir {
    fn attr(&self) -> Result<Attr> {
        self.inode.attr()
    }
    fn rewind(&self) -> Result<()> {
        self.listing.forget();
        Ok(())
    }
    fn list(&self, _file: &File, pos: u64, sink: &mut DirSink<'_>) -> Result<()> {
        let counted = |l: Arc<Listing>| if l.counted() { Ok(l) } else { Err(Errno::ENOMEM) };
        let list = self.listing.get(|| self.inode.entries().and_then(counted))?;
        let from = usize::try_from(pos.saturating_sub(2)).unwrap_or(usize::MAX);
        for (i, e) in list.iter(from).enumerate() {
            let next = (from + i) as u64 + 3;
            if !sink(DirEntry { name: e.name, ino: e.ino, kind: e.kind.dirent(), next }) {
                break;
            }
        }
        Ok(())
    }
    fn fsync(&self, data_only: bool) -> Result<()> {
        self.inode.handle()?.fsync(data_only)
    }
}
