//! read(2) and write(2), and the one place where a blocking file makes the caller wait.

use super::arg::*;
use super::{Ctx, MAX_INLINE_COPY, MAX_RW_COUNT};
use crate::abi::PollEvents;
use crate::error::{Errno, SysError, SysResult};
use crate::fs::{File, NO_OFFSET};
use crate::kernel::signal::SigInfo;
use crate::kernel::wait::{yield_now, WaitError};
use crate::kernel::Task;
use crate::mm::io::{iov_len, part, IoVec, Src};
use std::borrow::Cow;
use std::sync::Arc;

/// Waits until `attempt` gives something other than `EAGAIN`; for non-blocking files, tries once.
/// `deadline_ns`: host monotonic ns (SO_RCVTIMEO and the like), after which the answer is `EAGAIN`.
/// `attempt` is made again at every wake, so it must not depend on what `poll` says.
pub async fn blocking<T: Send>(
    cx: &mut Ctx<'_>,
    file: &Arc<File>,
    events: PollEvents,
    deadline_ns: Option<u64>,
    nonblock: bool,
    mut attempt: impl FnMut(&mut Ctx<'_>) -> SysResult<T> + Send,
) -> SysResult<T> {
    if nonblock {
        return attempt(cx);
    }
    let Some(q) = file.ops.wait_queue() else { return attempt(cx) };
    let task = cx.task;
    let r = task
        .wait(&[(q, events)], deadline_ns, || match attempt(cx) {
            Err(SysError::Errno(Errno::EAGAIN)) => None,
            r => Some(r),
        })
        .await;
    match r {
        Ok(r) => r,
        // A call with a timeout is not restarted (signal(7)).
        Err(WaitError::Interrupted) if deadline_ns.is_some() => Err(Errno::EINTR.into()),
        Err(WaitError::Interrupted) => Err(SysError::INTR),
        Err(WaitError::TimedOut) => Err(Errno::EAGAIN.into()),
    }
}

/// Raises SIGPIPE for a write that met `EPIPE`.
pub fn sigpipe(task: &Task) {
    task.queue_signal(SigInfo::user(libc::SIGPIPE, task.group.pid, task.cred().uid));
}

/// One read at the file's own offset.
pub(super) fn read_once(cx: &mut Ctx<'_>, file: &Arc<File>, iov: &[IoVec]) -> SysResult<usize> {
    if !file.ops.seekable() || file.ops.own_offset() {
        return cx.with_dst(iov, |dst| file.ops.read(file, dst, NO_OFFSET));
    }
    let mut off = file.offset.lock();
    let n = cx.with_dst(iov, |dst| file.ops.read(file, dst, *off))?;
    *off += n as u64;
    was_read(file, n);
    Ok(n)
}

/// Tells watchers of a read.
pub(super) fn was_read(file: &File, n: usize) {
    if let Some(p) = file.path.as_ref().filter(|_| n > 0) {
        crate::fs::inotify::event(p, libc::IN_ACCESS);
    }
}

fn write_once(cx: &mut Ctx<'_>, file: &Arc<File>, iov: &[IoVec], append: Option<bool>) -> SysResult<usize> {
    let write = |src: &mut Src<'_>, at| {
        src.append = append;
        file.ops.write(file, src, at)
    };
    if !file.ops.seekable() || file.ops.own_offset() {
        return Ok(cx.with_src(iov, |src| write(src, NO_OFFSET))?.0);
    }
    let mut off = file.offset.lock();
    let part = within_limit(cx, file, iov, *off, append)?;
    let (n, end) = cx.with_src(&part, |src| write(src, *off))?;
    *off = end;
    drop(off);
    super::fs_rw::wrote(cx, file);
    Ok(n)
}

/// A file would be longer than `RLIMIT_FSIZE`: SIGXFSZ and `EFBIG`.
pub fn too_big(cx: &Ctx<'_>) -> SysError {
    let me = cx.task;
    me.queue_signal(SigInfo::user(libc::SIGXFSZ, me.group.pid, me.cred().uid));
    Errno::EFBIG.into()
}

/// The part of a write at `offset` that `RLIMIT_FSIZE` allows; none is an error.
pub fn within_limit<'a>(
    cx: &Ctx<'_>,
    file: &File,
    iov: &'a [IoVec],
    offset: u64,
    append: Option<bool>,
) -> SysResult<Cow<'a, [IoVec]>> {
    let limit = cx.task.limit(libc::RLIMIT_FSIZE);
    if limit == u64::MAX || file.path.as_ref().is_none_or(|p| p.kind() != libc::S_IFREG) {
        return Ok(Cow::Borrowed(iov));
    }
    let append = append.unwrap_or(file.flags() & libc::O_APPEND != 0);
    let at = if append { file.attr()?.size } else { offset };
    let total = iov_len(iov) as u64;
    if total == 0 || at.saturating_add(total) <= limit {
        return Ok(Cow::Borrowed(iov));
    }
    let mut left = limit.saturating_sub(at) as usize;
    if left == 0 {
        return Err(too_big(cx));
    }
    let mut out = Vec::new();
    for v in iov {
        let n = v.len.min(left);
        out.push(IoVec { addr: v.addr, len: n });
        left -= n;
    }
    Ok(Cow::Owned(out))
}

/// When a blocking call on `file` gives up.
pub fn deadline(file: &File, write: bool) -> Option<u64> {
    file.ops.timeout(write).map(|t| platform::executor::now_ns().saturating_add(t))
}

/// Whether so much is to be moved that others must be served in between. What can make its caller wait never has so much.
fn is_long(file: &File, total: usize) -> bool {
    total > MAX_INLINE_COPY && file.ops.wait_queue().is_none()
}

/// Moves `total` bytes in parts of `MAX_INLINE_COPY` by `f`, which tells how many of a part's it has moved.
async fn in_parts(
    cx: &mut Ctx<'_>,
    file: &File,
    total: usize,
    mut f: impl FnMut(&mut Ctx<'_>, usize) -> SysResult<usize> + Send,
) -> SysResult {
    let device = file.path.as_ref().is_some_and(|p| p.kind() == libc::S_IFCHR);
    let mut done = 0;
    loop {
        match f(cx, done) {
            Ok(n) => {
                done += n;
                // Any signal ends it for a device (mem(4)), only death for a file.
                let stop = if device { cx.task.signal_pending() } else { cx.task.is_killed() };
                if n < MAX_INLINE_COPY || done >= total || stop {
                    return Ok(done as u64);
                }
            }
            Err(_) if done > 0 => return Ok(done as u64),
            Err(e) => return Err(e),
        }
        yield_now().await;
    }
}

pub async fn read_iov(cx: &mut Ctx<'_>, file: Arc<File>, iov: &[IoVec]) -> SysResult {
    if !file.readable() {
        return Err(Errno::EBADF.into());
    }
    let total = iov_len(iov);
    if is_long(&file, total) {
        return in_parts(cx, &file, total, |cx, at| read_once(cx, &file, &part(iov, at, MAX_INLINE_COPY))).await;
    }
    let nonblock = file.nonblocking();
    let n =
        blocking(cx, &file, PollEvents::READ_WAIT, deadline(&file, false), nonblock, |cx| read_once(cx, &file, iov))
            .await?;
    Ok(n as u64)
}

pub async fn write_iov(cx: &mut Ctx<'_>, file: Arc<File>, iov: &[IoVec]) -> SysResult {
    write_iov_as(cx, file, iov, None).await
}

/// As `write_iov`; `append`: whether at the end, whatever mode the file is in.
pub async fn write_iov_as(cx: &mut Ctx<'_>, file: Arc<File>, iov: &[IoVec], append: Option<bool>) -> SysResult {
    if !file.writable() {
        return Err(Errno::EBADF.into());
    }
    let nonblock = file.nonblocking();
    let deadline = deadline(&file, true);
    let total = iov_len(iov);
    if is_long(&file, total) {
        let at = *file.offset.lock();
        let iov = within_limit(cx, &file, iov, at, append)?;
        let write = |cx: &mut Ctx<'_>, at| write_once(cx, &file, &part(&iov, at, MAX_INLINE_COPY), append);
        return in_parts(cx, &file, iov_len(&iov), write).await;
    }
    let mut done = 0usize;
    // A blocking write to a stream goes on until all is written (pipe(7)); an error or signal after a part gives the part.
    let mut rest = None;
    loop {
        let part = rest.as_deref().unwrap_or(iov);
        let r =
            blocking(cx, &file, PollEvents::WRITE_WAIT, deadline, nonblock, |cx| write_once(cx, &file, part, append))
                .await;
        if r == Err(SysError::Errno(Errno::EPIPE)) && file.ops.sigpipe() {
            sigpipe(cx.task);
        }
        match r {
            Ok(n) => {
                done += n;
                if done >= total || n == 0 || nonblock || file.ops.seekable() {
                    return Ok(done as u64);
                }
                rest = Some(crate::mm::io::skip(iov, done));
            }
            Err(_) if done > 0 => return Ok(done as u64),
            Err(e) => return Err(e),
        }
    }
}

pub async fn read(cx: &mut Ctx<'_>, fd: Fd, buf: Addr, count: usize) -> SysResult {
    let file = cx.io_file(fd.0)?;
    let iov = [IoVec { addr: buf.0, len: count.min(MAX_RW_COUNT as usize) }];
    read_iov(cx, file, &iov).await
}

pub async fn write(cx: &mut Ctx<'_>, fd: Fd, buf: Addr, count: usize) -> SysResult {
    let file = cx.io_file(fd.0)?;
    let iov = [IoVec { addr: buf.0, len: count.min(MAX_RW_COUNT as usize) }];
    write_iov(cx, file, &iov).await
}

pub fn close(cx: &mut Ctx<'_>, fd: Fd) -> SysResult {
    let file = cx.task.files.read().remove(fd.0)?;
    super::fs_fd::closed(cx.task, &file);
    Ok(0)
}
