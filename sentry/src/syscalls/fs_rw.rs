//! lseek(2), pread(2), pwrite(2), readv(2), getdents(2), fallocate(2), fsync(2), sendfile(2), copy_file_range(2).

use super::arg::*;
use super::io::{blocking, read_iov, sigpipe, write_iov, write_iov_as};
use super::{Ctx, MAX_INLINE_COPY, MAX_RW_COUNT};
use crate::abi::PollEvents;
use crate::error::{Errno, Result, SysError, SysResult};
use crate::fs::{inotify, vfs, DirEntry, File, SetAttr, NO_OFFSET};
use crate::kernel::wait::yield_now;
use crate::mm::io::{iov_len, Dst, IoVec, Src};
use std::sync::Arc;

/// Bytes that sendfile and copy_file_range move at a time.
const CHUNK: usize = 64 * 1024;

fn one(buf: Addr, count: usize) -> [IoVec; 1] {
    [IoVec { addr: buf.0, len: count.min(MAX_RW_COUNT as usize) }]
}

pub fn lseek(cx: &mut Ctx<'_>, fd: Fd, offset: i64, whence: i32) -> SysResult {
    let f = cx.io_file(fd.0)?;
    if !f.ops.seekable() {
        return Err(Errno::ESPIPE.into());
    }
    let mut at = f.offset.lock();
    *at = f.ops.seek(&f, offset, whence, *at)?;
    Ok(*at)
}

fn positioned(f: &File, offset: i64) -> Result<u64> {
    if !f.ops.seekable() {
        return Err(Errno::ESPIPE);
    }
    u64::try_from(offset).map_err(|_| Errno::EINVAL)
}

async fn read_at(cx: &mut Ctx<'_>, fd: Fd, iov: &[IoVec], offset: i64) -> SysResult {
    if offset < 0 {
        return Err(Errno::EINVAL.into());
    }
    let f = cx.io_file(fd.0)?;
    let at = positioned(&f, offset)?;
    if !f.readable() {
        return Err(Errno::EBADF.into());
    }
    let n = cx.in_chunk(iov_len(iov), |cx| cx.with_dst(iov, |dst| f.ops.read(&f, dst, at))).await?;
    super::io::was_read(&f, n);
    Ok(n as u64)
}

async fn write_at(cx: &mut Ctx<'_>, fd: Fd, iov: &[IoVec], offset: i64, append: Option<bool>) -> SysResult {
    if offset < 0 {
        return Err(Errno::EINVAL.into());
    }
    let f = cx.io_file(fd.0)?;
    let at = positioned(&f, offset)?;
    if !f.writable() {
        return Err(Errno::EBADF.into());
    }
    write_file_at(cx, &f, iov, at, append).await
}

/// Of a file that is seekable, and open for writing.
pub(super) async fn write_file_at(
    cx: &mut Ctx<'_>,
    f: &Arc<File>,
    iov: &[IoVec],
    at: u64,
    append: Option<bool>,
) -> SysResult {
    let iov = super::io::within_limit(cx, f, iov, at, append)?;
    let write = |src: &mut Src<'_>| {
        src.append = append;
        f.ops.write(f, src, at)
    };
    let n = cx.in_chunk(iov_len(&iov), |cx| cx.with_src(&iov, write)).await?.0;
    wrote(cx, f);
    Ok(n as u64)
}

pub async fn pread64(cx: &mut Ctx<'_>, fd: Fd, buf: Addr, count: usize, offset: i64) -> SysResult {
    read_at(cx, fd, &one(buf, count), offset).await
}

pub async fn pwrite64(cx: &mut Ctx<'_>, fd: Fd, buf: Addr, count: usize, offset: i64) -> SysResult {
    write_at(cx, fd, &one(buf, count), offset, None).await
}

pub async fn preadv(cx: &mut Ctx<'_>, fd: Fd, iov: Addr, n: usize, low: i64) -> SysResult {
    let iov = cx.read_iov(iov.0, n)?;
    read_at(cx, fd, &iov, low).await
}

pub async fn pwritev(cx: &mut Ctx<'_>, fd: Fd, iov: Addr, n: usize, low: i64) -> SysResult {
    let iov = cx.read_iov(iov.0, n)?;
    write_at(cx, fd, &iov, low, None).await
}

pub async fn readv(cx: &mut Ctx<'_>, fd: Fd, iov: Addr, n: usize) -> SysResult {
    let f = cx.io_file(fd.0)?;
    if !f.readable() {
        return Err(Errno::EBADF.into());
    }
    let iov = cx.read_iov(iov.0, n)?;
    read_iov(cx, f, &iov).await
}

pub async fn writev(cx: &mut Ctx<'_>, fd: Fd, iov: Addr, n: usize) -> SysResult {
    let f = cx.io_file(fd.0)?;
    if !f.writable() {
        return Err(Errno::EBADF.into());
    }
    let iov = cx.read_iov(iov.0, n)?;
    write_iov(cx, f, &iov).await
}

const RWF_HIPRI: i32 = 1;
const RWF_DSYNC: i32 = 2;
const RWF_SYNC: i32 = 4;
const RWF_NOWAIT: i32 = 8;
const RWF_APPEND: i32 = 0x10;
const RWF_NOAPPEND: i32 = 0x20;

pub async fn preadv2(cx: &mut Ctx<'_>, fd: Fd, iov: Addr, n: usize, low: i64, _high: u64, flags: i32) -> SysResult {
    if flags & !(RWF_HIPRI | RWF_NOWAIT) != 0 {
        return Err(Errno::EOPNOTSUPP.into());
    }
    if low != -1 {
        return preadv(cx, fd, iov, n, low).await;
    }
    if flags & RWF_NOWAIT == 0 {
        return readv(cx, fd, iov, n).await;
    }
    let f = cx.io_file(fd.0)?;
    if !f.readable() {
        return Err(Errno::EBADF.into());
    }
    let iov = cx.read_iov(iov.0, n)?;
    Ok(super::io::read_once(cx, &f, &iov)? as u64)
}

pub async fn pwritev2(cx: &mut Ctx<'_>, fd: Fd, iov: Addr, n: usize, low: i64, _high: u64, flags: i32) -> SysResult {
    if flags & !(RWF_HIPRI | RWF_DSYNC | RWF_SYNC | RWF_APPEND | RWF_NOAPPEND) != 0 {
        return Err(Errno::EOPNOTSUPP.into());
    }
    let append = match flags & (RWF_APPEND | RWF_NOAPPEND) {
        0 => None,
        RWF_APPEND => Some(true),
        RWF_NOAPPEND => Some(false),
        _ => return Err(Errno::EINVAL.into()),
    };
    let f = cx.io_file(fd.0)?;
    let iov = cx.read_iov(iov.0, n)?;
    let done = match low {
        -1 => write_iov_as(cx, f.clone(), &iov, append).await?,
        _ => write_at(cx, fd, &iov, low, append).await?,
    };
    if flags & (RWF_DSYNC | RWF_SYNC) != 0 {
        synced(cx, &f, flags & RWF_SYNC == 0).await?;
    }
    Ok(done)
}

/// One record of getdents, in the layout of `old` (getdents) or getdents64; `None` when it does not fit.
fn record(out: &mut Vec<u8>, room: usize, e: &DirEntry<'_>, old: bool) -> bool {
    let start = out.len();
    let head = if old { 18 } else { 19 };
    let len = (head + e.name.len() + if old { 2 } else { 1 }).next_multiple_of(8);
    if start + len > room {
        return false;
    }
    out.extend_from_slice(&e.ino.to_le_bytes());
    out.extend_from_slice(&e.next.to_le_bytes());
    out.extend_from_slice(&(len as u16).to_le_bytes());
    if !old {
        out.push(e.kind);
    }
    out.extend_from_slice(e.name);
    out.resize(start + len, 0);
    if old {
        if let Some(last) = out.last_mut() {
            *last = e.kind;
        }
    }
    true
}

/// Most bytes of a listing that one call gives.
const LISTED_AT_ONCE: usize = 256 << 10;

fn list(cx: &mut Ctx<'_>, fd: Fd, buf: Addr, count: u32, old: bool) -> SysResult {
    let f = cx.io_file(fd.0)?;
    let room = (count as usize).min(CHUNK);
    // One call need not fill a large buffer.
    let room = room.min(LISTED_AT_ONCE);
    let mut out = Vec::with_capacity(room.min(32 * 1024));
    let mut too_small = false;
    let mut at = f.offset.lock();
    let mut pos = *at;
    if f.path.as_ref().is_some_and(|p| p.is_dir() && p.dentry().is_deleted()) {
        return Err(Errno::ENOENT.into());
    }
    f.ops.readdir(&f, *at, &mut |e| {
        if record(&mut out, room, &e, old) {
            pos = e.next;
            true
        } else {
            too_small = out.is_empty();
            false
        }
    })?;
    if too_small {
        return Err(Errno::EINVAL.into());
    }
    let len = out.len();
    if cx.can_store(&one(buf, len)) {
        cx.staged.push(buf.0, out);
    } else {
        // At once: when it cannot be stored, the position stays.
        cx.mem().write_bytes(buf.0, &out)?;
    }
    *at = pos;
    Ok(len as u64)
}

pub fn getdents(cx: &mut Ctx<'_>, fd: Fd, buf: Addr, count: u32) -> SysResult {
    list(cx, fd, buf, count, true)
}

pub fn getdents64(cx: &mut Ctx<'_>, fd: Fd, buf: Addr, count: u32) -> SysResult {
    list(cx, fd, buf, count, false)
}

/// Bytes of a file that are allocated or given back before others are served.
const ALLOCATED_AT_ONCE: u64 = 4 << 20;

pub async fn fallocate(cx: &mut Ctx<'_>, fd: Fd, mode: i32, offset: i64, len: i64) -> SysResult {
    let f = cx.io_file(fd.0)?;
    if offset < 0 || len <= 0 {
        return Err(Errno::EINVAL.into());
    }
    if !f.writable() {
        return Err(Errno::EBADF.into());
    }
    if offset.checked_add(len).is_none() {
        return Err(Errno::EFBIG.into());
    }
    match f.path.as_ref().map(|p| p.kind()) {
        Some(libc::S_IFDIR) => return Err(Errno::EISDIR.into()),
        Some(libc::S_IFREG) => {}
        Some(libc::S_IFIFO) => return Err(Errno::ESPIPE.into()),
        None if f.attr().is_ok_and(|a| a.file_type() == libc::S_IFIFO) => return Err(Errno::ESPIPE.into()),
        _ => return Err(Errno::ENODEV.into()),
    }
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE;
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    let ok = matches!(mode, 0 | KEEP) || mode == PUNCH | KEEP || mode & !KEEP == libc::FALLOC_FL_ZERO_RANGE;
    if !ok {
        return Err(Errno::EOPNOTSUPP.into());
    }
    if mode == 0 {
        let end = (offset + len) as u64;
        if end > cx.task.limit(libc::RLIMIT_FSIZE) {
            return Err(super::io::too_big(cx));
        }
    }
    let (offset, len) = (offset as u64, len as u64);
    let was = f.attr()?.size;
    let mut done = 0;
    loop {
        let part = (len - done).min(ALLOCATED_AT_ONCE);
        if let Err(e) = f.ops.fallocate(&f, mode, offset + done, part) {
            if let Some(p) = f.path.as_ref().filter(|_| done > 0 && mode & KEEP == 0) {
                // The file is not longer for it.
                p.inode().set_attr(&SetAttr { size: Some(was), ..SetAttr::default() })?;
            }
            return Err(e.into());
        }
        done += part;
        if done >= len || cx.task.is_killed() {
            break;
        }
        yield_now().await;
    }
    wrote(cx, &f);
    Ok(0)
}

async fn synced(cx: &Ctx<'_>, f: &File, data: bool) -> Result<()> {
    let executor = &cx.kernel().executor;
    executor.room().await;
    executor.block_in_place(|| f.ops.fsync(data))
}

pub async fn fsync(cx: &mut Ctx<'_>, fd: Fd) -> SysResult {
    let f = cx.io_file(fd.0)?;
    synced(cx, &f, false).await?;
    Ok(0)
}

pub async fn fdatasync(cx: &mut Ctx<'_>, fd: Fd) -> SysResult {
    let f = cx.io_file(fd.0)?;
    synced(cx, &f, true).await?;
    Ok(0)
}

/// What is written is with the host already; there is nothing of ours to flush.
pub fn sync(_cx: &mut Ctx<'_>) -> SysResult {
    Ok(0)
}

pub fn syncfs(cx: &mut Ctx<'_>, fd: Fd) -> SysResult {
    cx.io_file(fd.0)?;
    Ok(0)
}

pub fn sync_file_range(cx: &mut Ctx<'_>, fd: Fd, offset: i64, len: i64, flags: u32) -> SysResult {
    let f = cx.io_file(fd.0)?;
    if flags & !7 != 0 || offset < 0 || len < 0 || offset.checked_add(len).is_none() {
        return Err(Errno::EINVAL.into());
    }
    let of_file =
        |p: &crate::fs::vfs::Path| matches!(p.kind(), libc::S_IFREG | libc::S_IFDIR | libc::S_IFLNK | libc::S_IFBLK);
    if !f.path.as_ref().is_some_and(of_file) {
        return Err(Errno::ESPIPE.into());
    }
    f.ops.fsync(true)?;
    Ok(0)
}

pub fn fadvise64(cx: &mut Ctx<'_>, fd: Fd, _offset: i64, len: i64, advice: i32) -> SysResult {
    let f = cx.io_file(fd.0)?;
    if !f.ops.seekable() {
        return Err(Errno::ESPIPE.into());
    }
    if len < 0 || !(0..=5).contains(&advice) {
        return Err(Errno::EINVAL.into());
    }
    Ok(0)
}

pub fn readahead(cx: &mut Ctx<'_>, fd: Fd, _offset: i64, _count: usize) -> SysResult {
    let f = cx.io_file(fd.0)?;
    if !f.readable() {
        return Err(Errno::EBADF.into());
    }
    if f.path.as_ref().is_none_or(|p| p.kind() != libc::S_IFREG) {
        return Err(Errno::EINVAL.into());
    }
    Ok(0)
}

/// Writes all of `data` to a file at its own offset, waiting as `write` does; returns how much went before an error.
async fn write_all(cx: &mut Ctx<'_>, f: &Arc<File>, data: &[u8]) -> (usize, SysResult<()>) {
    let mut done = 0;
    let nonblock = f.nonblocking();
    while done < data.len() {
        let rest = data.get(done..).unwrap_or(&[]);
        let r = blocking(cx, f, PollEvents::WRITE_WAIT, None, nonblock, |_| {
            let mut src = Src::kernel(rest);
            if !f.ops.seekable() || f.ops.own_offset() {
                return Ok(f.ops.write(f, &mut src, NO_OFFSET)?.0);
            }
            let mut at = f.offset.lock();
            let (n, end) = f.ops.write(f, &mut src, *at)?;
            *at = end;
            Ok(n)
        })
        .await;
        match r {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) => {
                if e == SysError::Errno(Errno::EPIPE) && f.ops.sigpipe() && done == 0 {
                    sigpipe(cx.task);
                }
                return (done, Err(e));
            }
        }
    }
    (done, Ok(()))
}

pub async fn sendfile(cx: &mut Ctx<'_>, out: Fd, input: Fd, offset: Addr, count: usize) -> SysResult {
    let from = cx.io_file(input.0)?;
    if !from.readable() {
        return Err(Errno::EBADF.into());
    }
    let to = cx.io_file(out.0)?;
    if !to.writable() {
        return Err(Errno::EBADF.into());
    }
    if to.flags() & libc::O_APPEND != 0 || from.path.as_ref().is_some_and(|p| p.is_dir()) {
        return Err(Errno::EINVAL.into());
    }
    let explicit = if offset.is_null() {
        None
    } else {
        if !from.ops.seekable() {
            return Err(Errno::ESPIPE.into());
        }
        Some(u64::try_from(cx.read::<i64>(offset.0)?).map_err(|_| Errno::EINVAL)?)
    };
    if !from.ops.seekable() {
        // What is read and then not taken would be lost.
        return Err(Errno::EINVAL.into());
    }
    let own = from.ops.own_offset() || !from.ops.seekable();
    let mut at = explicit.unwrap_or_else(|| *from.offset.lock());
    let count = count.min(MAX_RW_COUNT as usize);
    let mut total = 0usize;
    let mut buf = vec![0u8; count.min(CHUNK)];
    let mut result = Ok(());
    while total < count {
        let want = buf.len().min(count - total);
        let pos = if explicit.is_none() && own { NO_OFFSET } else { at };
        let nonblock = from.nonblocking() || total > 0;
        let part = buf.get_mut(..want).unwrap_or(&mut []);
        let n = match blocking(cx, &from, PollEvents::READ_WAIT, None, nonblock, |_| {
            from.ops.read(&from, &mut Dst::kernel(part), pos)
        })
        .await
        {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) => {
                result = Err(e);
                break;
            }
        };
        let (k, r) = write_all(cx, &to, buf.get(..n).unwrap_or(&[])).await;
        if k > 0 {
            // Each time: the caller may be killed before the next.
            wrote(cx, &to);
        }
        if total / MAX_INLINE_COPY != (total + k) / MAX_INLINE_COPY {
            yield_now().await;
        }
        total += k;
        at += k as u64;
        if r.is_err() || k < n {
            result = r;
            break;
        }
    }
    if explicit.is_some() {
        cx.write(offset.0, &(at as i64))?;
    } else if !own {
        *from.offset.lock() = at;
    }
    if total == 0 {
        result?;
    }
    Ok(total as u64)
}

pub async fn copy_file_range(
    cx: &mut Ctx<'_>,
    input: Fd,
    off_in: Addr,
    out: Fd,
    off_out: Addr,
    len: usize,
    flags: u32,
) -> SysResult {
    let (from, to) = (cx.io_file(input.0)?, cx.io_file(out.0)?);
    if flags != 0 {
        return Err(Errno::EINVAL.into());
    }
    if !from.readable() || !to.writable() || to.flags() & libc::O_APPEND != 0 {
        return Err(Errno::EBADF.into());
    }
    for f in [&from, &to] {
        match f.path.as_ref().map(|p| p.kind()) {
            Some(libc::S_IFREG) => {}
            Some(libc::S_IFDIR) => return Err(Errno::EISDIR.into()),
            _ => return Err(Errno::EINVAL.into()),
        }
    }
    let start = |cx: &Ctx<'_>, p: Addr, f: &File| -> Result<u64> {
        if p.is_null() {
            return Ok(*f.offset.lock());
        }
        u64::try_from(cx.read::<i64>(p.0)?).map_err(|_| Errno::EINVAL)
    };
    let (a, b) = (start(cx, off_in, &from)?, start(cx, off_out, &to)?);
    let len = (len.min(MAX_RW_COUNT as usize)) as u64;
    let same = match (&from.path, &to.path) {
        (Some(p), Some(q)) => Arc::ptr_eq(p.inode(), q.inode()),
        _ => false,
    };
    if same && a < b.saturating_add(len) && b < a.saturating_add(len) {
        return Err(Errno::EINVAL.into());
    }
    let done = copy(cx, (&from, a), (&to, b), len).await?;
    for (p, f, at) in [(off_in, &from, a + done), (off_out, &to, b + done)] {
        if p.is_null() {
            *f.offset.lock() = at;
        } else {
            cx.write(p.0, &(at as i64))?;
        }
    }
    Ok(done)
}

/// Copies up to `len` bytes from and to these offsets; an error only if there were none.
async fn copy(cx: &Ctx<'_>, (from, a): (&Arc<File>, u64), (to, b): (&Arc<File>, u64), len: u64) -> SysResult {
    let mut buf = vec![0u8; CHUNK.min(len as usize)];
    let mut done = 0u64;
    while done < len && !cx.task.is_killed() {
        let want = buf.len().min((len - done) as usize);
        let part = buf.get_mut(..want).unwrap_or(&mut []);
        let n = match from.ops.read(from, &mut Dst::kernel(part), a + done) {
            Ok(0) => break,
            Ok(n) => n,
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        };
        match to.ops.write(to, &mut Src::kernel(buf.get(..n).unwrap_or(&[])), b + done) {
            Ok((k, _)) => {
                done += k as u64;
                if k < n {
                    break;
                }
            }
            Err(_) if done > 0 => break,
            Err(e) => return Err(e),
        }
        if done % MAX_INLINE_COPY as u64 == 0 {
            yield_now().await;
        }
    }
    if done > 0 {
        wrote(cx, to);
    }
    Ok(done)
}

/// A file has been written to: whoever watches it is told, and its program has no rights of its own any more.
pub(super) fn wrote(cx: &Ctx<'_>, f: &File) {
    let Some(p) = &f.path else { return };
    inotify::event(p, libc::IN_MODIFY);
    vfs::perm::remove_privs(p.inode(), || cx.task.cred());
}
