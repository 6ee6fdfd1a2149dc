//! splice(2), tee(2), vmsplice(2).
//!
//! Bytes are copied, not moved as pages. A transfer into a pipe reserves room before it reads the data; a
//! transfer out of a pipe holds the pipe's lock. So no byte is lost or duplicated, whatever other readers and
//! writers do.

use super::arg::*;
use super::io::{blocking, sigpipe, within_limit};
use super::{Ctx, MAX_RW_COUNT};
use crate::abi::PollEvents;
use crate::error::{Errno, Result, SysError, SysResult};
use crate::fs::pipe::{self, Pipe};
use crate::fs::{File, NO_OFFSET};
use crate::kernel::wait::{WaitError, WaitQueue};
use crate::mm::io::{Dst, IoVec, Src};
use parking_lot::Mutex;
use std::sync::Arc;

/// `SPLICE_F_*`: move, nonblock, more, gift.
const ALL: u32 = 0xf;
const NONBLOCK: u32 = 2;
/// Bytes per transfer.
const CHUNK: usize = 64 << 10;

/// Held while two pipes are locked.
static TWO_PIPES: Mutex<()> = Mutex::new(());

/// Retries on `EAGAIN`, waiting on both files.
async fn until(
    cx: &Ctx<'_>,
    files: [&Arc<File>; 2],
    nonblock: bool,
    mut attempt: impl FnMut() -> SysResult<usize> + Send,
) -> SysResult<usize> {
    if nonblock {
        return attempt();
    }
    let mut queues: Vec<(&WaitQueue, PollEvents)> = Vec::with_capacity(2);
    for (f, events) in [(files[0], PollEvents::READ_WAIT), (files[1], PollEvents::WRITE_WAIT)] {
        if let Some(q) = f.ops.wait_queue() {
            queues.push((q, events));
        }
    }
    let r = cx
        .task
        .wait(&queues, None, || match attempt() {
            Err(SysError::Errno(Errno::EAGAIN)) => None,
            r => Some(r),
        })
        .await;
    match r {
        Ok(r) => r,
        Err(WaitError::Interrupted | WaitError::TimedOut) => Err(SysError::INTR),
    }
}

/// From one pipe to another; `keep` leaves the bytes in the source.
fn pipe_to_pipe(from: &Pipe, to: &Pipe, len: usize, keep: bool) -> SysResult<usize> {
    let _two = TWO_PIPES.lock();
    let room = to.room()?;
    // An empty pipe without writers is at its end, whatever the state of the other pipe.
    if room == 0 && from.available() > 0 {
        return Err(Errno::EAGAIN.into());
    }
    from.drain(len.min(room.max(1)), keep, &mut |b| {
        let mut r = to.reserve(b.len())?;
        Ok(r.put(b)?)
    })
}

/// Position in a file: an offset given by the guest, or the file's own.
enum At {
    Given(u64),
    Own,
}

fn offset_arg(cx: &Ctx<'_>, p: Addr, f: &File) -> Result<At> {
    if p.is_null() {
        return Ok(At::Own);
    }
    if !f.ops.seekable() {
        return Err(Errno::EINVAL);
    }
    u64::try_from(cx.read::<i64>(p.0)?).map(At::Given).map_err(|_| Errno::EINVAL)
}

/// One read or write of a file at `at`, which advances.
fn at_offset(f: &File, at: &mut At, f_io: &mut dyn FnMut(u64) -> SysResult<(usize, u64)>) -> SysResult<usize> {
    match at {
        At::Given(o) => {
            let (n, _) = f_io(*o)?;
            *o += n as u64;
            Ok(n)
        }
        At::Own if !f.ops.seekable() || f.ops.own_offset() => Ok(f_io(NO_OFFSET)?.0),
        At::Own => {
            let mut o = f.offset.lock();
            let (n, end) = f_io(*o)?;
            *o = end;
            Ok(n)
        }
    }
}

/// Whether a file other than a pipe can take part. Anonymous inodes other than sockets cannot.
fn can_splice(f: &File) -> bool {
    match &f.path {
        Some(p) => !p.is_dir(),
        None => crate::net::socket::of(f).is_ok(),
    }
}

fn read_to_pipe(from: &Arc<File>, at: &mut At, to: &Pipe, len: usize) -> SysResult<usize> {
    let mut room = to.reserve(len.min(CHUNK))?;
    let mut buf = vec![0u8; room.room];
    let n = at_offset(from, at, &mut |o| {
        let n = from.ops.read(from, &mut Dst::kernel(&mut buf), o)?;
        Ok((n, o.wrapping_add(n as u64)))
    })?;
    Ok(room.put(buf.get(..n).unwrap_or(&[]))?)
}

fn write_from_pipe(from: &Pipe, to: &Arc<File>, at: &mut At, len: usize) -> SysResult<usize> {
    from.drain(len.min(CHUNK), false, &mut |b| at_offset(to, at, &mut |o| to.ops.write(to, &mut Src::kernel(b), o)))
}

pub async fn splice(
    cx: &mut Ctx<'_>,
    input: Fd,
    off_in: Addr,
    out: Fd,
    off_out: Addr,
    len: usize,
    flags: u32,
) -> SysResult {
    if len == 0 {
        return Ok(0);
    }
    if flags & !ALL != 0 {
        return Err(Errno::EINVAL.into());
    }
    let (from, to) = (cx.io_file(input.0)?, cx.io_file(out.0)?);
    if !from.readable() || !to.writable() {
        return Err(Errno::EBADF.into());
    }
    let nonblock = flags & NONBLOCK != 0 || from.nonblocking() || to.nonblocking();
    let len = len.min(MAX_RW_COUNT as usize);
    let (a, b) = (pipe::of(&from), pipe::of(&to));
    if (a.is_some() && !off_in.is_null()) || (b.is_some() && !off_out.is_null()) {
        return Err(Errno::ESPIPE.into());
    }
    let r = match (a, b) {
        (Some(a), Some(b)) if Arc::ptr_eq(a, b) => Err(Errno::EINVAL.into()),
        (Some(a), Some(b)) => until(cx, [&from, &to], nonblock, || pipe_to_pipe(a, b, len, false)).await,
        (None, Some(b)) => {
            if !can_splice(&from) {
                return Err(Errno::EINVAL.into());
            }
            let mut at = offset_arg(cx, off_in, &from)?;
            let mut done = 0;
            // A file fills the pipe; a socket gives the available bytes.
            let r = loop {
                let wait = nonblock || done > 0;
                match until(cx, [&from, &to], wait, || read_to_pipe(&from, &mut at, b, len - done)).await {
                    Ok(0) => break Ok(0),
                    Ok(n) => done += n,
                    Err(e) => break Err(e),
                }
                if done >= len || !from.ops.seekable() {
                    break Ok(0);
                }
            };
            give_back(cx, off_in, &at)?;
            super::io::was_read(&from, done);
            after(r, done)
        }
        (Some(a), None) => {
            if !can_splice(&to) || to.flags() & libc::O_APPEND != 0 {
                return Err(Errno::EINVAL.into());
            }
            let mut at = offset_arg(cx, off_out, &to)?;
            let len = limited(cx, &to, &at, len)?;
            let mut done = 0;
            let r = loop {
                let wait = nonblock || done > 0;
                match until(cx, [&from, &to], wait, || write_from_pipe(a, &to, &mut at, len - done)).await {
                    Ok(0) => break Ok(0),
                    Ok(n) => done += n,
                    Err(e) => break Err(e),
                }
                if done >= len {
                    break Ok(0);
                }
            };
            if done > 0 {
                // Before any step that can fail.
                super::fs_rw::wrote(cx, &to);
            }
            give_back(cx, off_out, &at)?;
            after(r, done)
        }
        (None, None) => Err(Errno::EINVAL.into()),
    };
    finish(cx, &to, r)
}

/// Bytes of a write that `RLIMIT_FSIZE` allows.
fn limited(cx: &Ctx<'_>, to: &File, at: &At, len: usize) -> SysResult<usize> {
    let start = match at {
        At::Given(o) => *o,
        At::Own => *to.offset.lock(),
    };
    let whole = [IoVec { addr: 0, len }];
    let part = within_limit(cx, to, &whole, start, None)?;
    Ok(part.iter().map(|v| v.len).sum())
}

fn give_back(cx: &mut Ctx<'_>, p: Addr, at: &At) -> Result<()> {
    match at {
        At::Given(o) if !p.is_null() => cx.write(p.0, &(*o as i64)),
        _ => Ok(()),
    }
}

/// An error after a partial transfer returns the partial count.
fn after(r: SysResult<usize>, done: usize) -> SysResult<usize> {
    if done > 0 {
        Ok(done)
    } else {
        r
    }
}

/// The result of the call; sends SIGPIPE if there is no reader.
fn finish(cx: &Ctx<'_>, to: &File, r: SysResult<usize>) -> SysResult {
    if r == Err(SysError::Errno(Errno::EPIPE)) && to.ops.sigpipe() {
        sigpipe(cx.task);
    }
    Ok(r? as u64)
}

pub async fn tee(cx: &mut Ctx<'_>, input: Fd, out: Fd, len: usize, flags: u32) -> SysResult {
    if flags & !ALL != 0 {
        return Err(Errno::EINVAL.into());
    }
    if len == 0 {
        return Ok(0);
    }
    let (from, to) = (cx.io_file(input.0)?, cx.io_file(out.0)?);
    if !from.readable() || !to.writable() {
        return Err(Errno::EBADF.into());
    }
    let (Some(a), Some(b)) = (pipe::of(&from), pipe::of(&to)) else { return Err(Errno::EINVAL.into()) };
    if Arc::ptr_eq(a, b) {
        return Err(Errno::EINVAL.into());
    }
    let nonblock = flags & NONBLOCK != 0 || from.nonblocking() || to.nonblocking();
    let r = until(cx, [&from, &to], nonblock, || pipe_to_pipe(a, b, len, true)).await;
    finish(cx, &to, r)
}

pub async fn vmsplice(cx: &mut Ctx<'_>, fd: Fd, iov: Addr, n: usize, flags: u32) -> SysResult {
    if flags & !ALL != 0 {
        return Err(Errno::EINVAL.into());
    }
    let file = cx.io_file(fd.0)?;
    if pipe::of(&file).is_none() {
        return Err(Errno::EBADF.into());
    }
    let iov = cx.read_iov(iov.0, n)?;
    if iov.iter().all(|v| v.len == 0) {
        return Ok(0);
    }
    let nonblock = flags & NONBLOCK != 0 || file.nonblocking();
    let r = if file.writable() {
        blocking(cx, &file, PollEvents::WRITE_WAIT, None, nonblock, |cx| {
            Ok(cx.with_src(&iov, |src| file.ops.write(&file, src, NO_OFFSET))?.0)
        })
        .await
    } else {
        blocking(cx, &file, PollEvents::READ_WAIT, None, nonblock, |cx| {
            cx.with_dst(&iov, |dst| file.ops.read(&file, dst, NO_OFFSET))
        })
        .await
    };
    finish(cx, &file, r)
}
